"""Elementwise primitives on signals: run on the tables themselves, slopes included.

No primitive is approximated: its values and slopes at the nodes are those of JAX in float64. Two
things are approximated. A value that depends on more than two independent normal numbers is
compressed to one, unless it is a sum or product that :func:`_resolved` can write out. Two values
with a history in common that their sources do not tell are bounded.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from jaxinit.jaxpr import SUMS, Class, Node, Rules, bind, on_numpy
from jaxinit.signal import _tables as tables
from jaxinit.signal._rules import Aval, is_float, one_of, rules, unknown
from jaxinit.signal._sums import centred, softmax, spread_left
from jaxinit.signal._tape import (
    PARTLY,
    Constant,
    Discrete,
    Edge,
    Features,
    Shape,
    Signal,
    Tag,
    Tape,
    Value,
    either,
    features_of,
    reason,
)

# Functions whose values are between -1 and 1 whatever goes in.
_BOUNDED = ("sin", "cos", "tanh", "logistic", "erf")
# Logits below are those of a mask.
_BIG_NEGATIVE = -1e4


@rules(Class.REARRANGES)
def unmoved(tape: Tape, node: Node, operands: Sequence[Value], aval: Aval) -> Value | list[Value]:
    """The same entries at the same places: casts, copies, names, barriers, placements."""
    name, first = node.primitive, operands[0]
    if name == "convert_element_type":
        return _cast(tape, node, first, aval)
    if name == "stop_gradient" and isinstance(first, Signal):
        return tape.again(first, [])
    if name == "bitcast_convert_type":
        return _from_bits(tape, first, aval)
    return [tape.same(x) if isinstance(x, Signal) else x for x in operands]


def _cast(tape: Tape, node: Node, value: Value, aval: Aval) -> Value:
    if isinstance(value, Signal):
        return (
            tape.same(value) if is_float(aval) or aval.dtype == np.bool_ else Discrete(aval.shape)
        )
    if is_float(aval) and node.operand_avals[0].dtype == np.bool_:
        # A claim that data decide is 0 or 1, nobody knows how often.
        return tape.signal(np.array([0.0, 1.0]), (), aval.shape, [0] * len(aval.shape))
    if isinstance(value, Discrete) and value.label and value.moments and is_float(aval):
        return tape.parameter(value.label, value.moments, aval.shape)
    return unknown(tape, "integers of the data", aval, [value])


def _from_bits(tape: Tape, value: Value, aval: Aval) -> Value:
    if isinstance(value, Signal):
        return unknown(tape, "the bits of real numbers are not followed", aval, [value])
    # Random bits as a float between 1 and 2, which is how JAX draws uniform numbers. What they
    # decide keeps the axes of what it is decided for.
    features = [0] * len(aval.shape)
    # The largest of a float32 is not 1, whose inverse error function is infinite.
    table = np.minimum(tables.uniform(), 1 - 2.0**-23) + 1.0
    return tape.signal(table, [tape.source()], aval.shape, features)


@rules(Class.ELEMENTWISE)
def elementwise(tape: Tape, node: Node, operands: Sequence[Value], aval: Aval) -> Value | None:
    """What an elementwise primitive makes of signals and constants."""
    name = node.primitive
    signals = [x for x in operands if isinstance(x, Signal)]
    if any(isinstance(x, Discrete) for x in operands):
        return _of_integers(tape, node, operands, aval)
    if name in SUMS and _is_zero(operands[1]) and signals[0].shape == aval.shape:
        # Normalisation without a mean subtracts a zero; it is still the same value.
        return tape.same(signals[0])
    if name in SUMS and (logits := _hidden_by_sum(tape, node, operands, aval)) is not None:
        return logits
    special = _special(tape, name, operands, aval.shape)
    if special is not None:
        return special
    if name in _BOUNDED and signals[0].unknown:
        # Nobody knows where between 0 and 1 the square is.
        edges = [Edge(signals[0].number, gain=np.array([[0.0, np.inf]] * tables.ROWS))]
        claim = np.array([0.0, 1.0])
        return tape.signal(claim, (), aval.shape, signals[0].features, edges, unknown=None)
    prepared = [tape.as_signal(x) for x in operands]
    if not all(x.label for x in signals):
        prepared = [_at_positions(tape, x) for x in prepared]
    facts = _facts(node, operands, prepared)
    features = features_of(prepared, aval.shape)
    features = _summed(features, operands) if name in SUMS else features
    prepared = [_copied_to(tape, x, aval.shape) for x in prepared]
    return _joined(tape, node, prepared, aval.shape, features, facts)


def _joined(
    tape: Tape,
    node: Node,
    operands: Sequence[Signal],
    shape: Shape,
    features: Features,
    facts: dict[str, Any],
) -> Signal:
    """A function of all sources of its operands, where these are two at most."""
    name, whole = node.primitive, operands
    joint = _joint(operands)
    if (len(joint) > 2 and name in SUMS) or _is_unfollowed(tape, name, operands):
        found = _resolved(tape, name, operands, shape, features)
        if found is not None:
            return found
    if len(joint) > 2:
        operands = [tape.compressed(x) for x in operands]
        joint = _joint(operands)
    if len(joint) > 2:
        return either(tape, operands[-2:], shape)
    result = _run(tape, node, operands, joint, shape, features, facts)
    # A sum is one number again; a product keeps its factors, for what they meet next.
    final = tape.compressed(result) if name in SUMS else result
    if (name in SUMS or name == "mul") and len(whole) == 2:
        for x in (result, final):
            tape.combined[x.number] = name, whole
    return final


def _joint(signals: Sequence[Signal]) -> list[int]:
    return sorted({source for x in signals for source in x.sources})


def _copied_to(tape: Tape, signal: Signal, shape: Shape) -> Signal:
    """An operand of full shape: where it is copied, its gradients add up."""
    if signal.shape == tuple(shape) or len(signal.shape) != len(shape):
        return signal
    if not signal.sources and signal.mean.any():
        return signal
    return tape.copies(signal, shape, range(len(shape)))


def _summed(features: list[int], operands: Sequence[Value]) -> list[int]:
    """Flags of a sum: an axis that is units of one term and positions of the other is in part."""
    terms = [x for x in operands if isinstance(x, Signal) and not x.label and x.sources]
    if len(terms) < 2 or any(len(x.shape) != len(features) for x in terms):
        return features
    return [
        PARTLY if flag and not all(x.features[i] for x in terms if x.shape[i] > 1) else flag
        for i, flag in enumerate(features)
    ]


def _at_positions(tape: Tape, signal: Signal) -> Signal:
    """A table of positions among data: the same in every sample, another at every position."""
    if not signal.is_table or not signal.sources:
        return signal
    key = ("positions", signal.number)
    if key not in tape.slices:
        new = tape.other_entries(signal, signal.shape, signal.features, 1.0, independent=True)
        for source in new.sources:
            tape.sources[source].correlation = np.array([0.0, 1.0])
        tape.slices[key] = new
    found = tape.slices[key]
    assert isinstance(found, Signal)
    return found


# Integers of the data, masks, and statistics, which are more than their entries.


def _of_integers(tape: Tape, node: Node, operands: Sequence[Value], aval: Aval) -> Value | None:
    """Results that depend on integers of the data."""
    if node.primitive != "select_n":
        return None
    cases = [x for x in operands[1:] if not _is_mask_value(x)] or operands[1:]
    if len(cases) == 1 and isinstance(cases[0], Signal):
        return tape.view(cases[0], aval.shape, cases[0].features)
    return one_of(tape, cases, aval)


def _is_zero(value: Value) -> bool:
    return isinstance(value, Constant) and not np.any(value.array)


def _is_mask_value(value: Value) -> bool:
    return isinstance(value, Constant) and bool(np.all(value.array.astype(float) <= _BIG_NEGATIVE))


def _special(tape: Tape, name: str, operands: Sequence[Value], shape: Shape) -> Signal | None:
    """Statistics, masks and softmax."""
    if name == "select_n":
        return _masked(tape, operands)
    if len(operands) != 2:
        return None
    a, b = operands
    if not isinstance(a, Signal) or not isinstance(b, Signal) or b.tag is None:
        return None
    if name == "sub" and b.tag.kind == "max" and b.tag.of == a.base:
        # What a softmax subtracts from its logits changes nothing.
        return tape.same(a)
    if name == "sub" and b.tag.kind == "sum" and b.tag.of == a.base and b.tag.is_mean:
        return centred(tape, a, b)
    if a.tag is None:
        return None
    if name == "sub" and b.tag.kind == "square of mean" and a.tag.kind == "squares":
        return spread_left(tape, a, b) if a.tag.of == b.tag.of and a.tag.is_mean else None
    if name == "div" and a.tag.kind == "exp" and b.tag.kind == "sum" and b.tag.of == a.base:
        return softmax(tape, a, b.tag, shape) if b.tag.factor == b.tag.count else None
    return None


def _masked(tape: Tape, operands: Sequence[Value]) -> Signal | None:
    """Logits of which a constant mask hides some."""
    which, cases = operands[0], operands[1:]
    kept = [i for i, case in enumerate(cases) if isinstance(case, Signal)]
    if len(cases) != 2 or not isinstance(which, Constant) or len(kept) != 1:
        return None
    if not _is_mask_value(cases[1 - kept[0]]):
        return None
    signal, mask = cases[kept[0]], which.array.astype(bool)
    assert isinstance(signal, Signal)
    return tape.same(signal, mask=mask if kept[0] else ~mask)


def _hidden_by_sum(tape: Tape, node: Node, operands: Sequence[Value], aval: Aval) -> Value | None:
    """Logits to which a constant adds a large negative number where they do not count."""
    for place, operand in enumerate(operands):
        if not isinstance(operand, Constant):
            continue
        sign = -1 if node.primitive == "sub" and place == 1 else 1
        shown = sign * np.real(operand.array) > _BIG_NEGATIVE
        if shown.any() and not shown.all():
            rest = list(operands)
            rest[place] = Constant(np.where(shown, operand.array, 0))
            sums = elementwise(tape, node, rest, aval)
            assert isinstance(sums, Signal)
            return tape.same(sums, mask=shown if sums.mask is None else shown & sums.mask)
    return None


def _facts(node: Node, operands: Sequence[Value], signals: Sequence[Signal]) -> dict[str, Any]:
    """What is remembered of a result beside its law."""
    name = node.primitive
    given = [x for x in operands if isinstance(x, Signal)]
    main = max(given, key=lambda x: x.size)
    varied = [x for x in given if x.sources]
    facts: dict[str, Any] = {}
    if varied and all(x.label for x in varied):
        facts["label"] = max(varied, key=lambda x: x.size).label
    if len(given) == 1:
        facts.update(mask=main.mask, tag=_tag(node, main, signals))
    elif name == "mul" and given[0] is given[1]:
        facts["tag"] = _square_tag(given[0])
    statistics = {x.statistic_of for x in signals if x.statistic_of is not None}
    bodies = {y for x in signals for y in (x.base, x.centred_of)}
    normalised = name in ("mul", "div") and bool(statistics & bodies)
    if len(statistics) == 1 and not normalised:
        facts["statistic_of"] = next(iter(statistics))
        facts["terms"] = max(x.terms for x in signals)
    facts["unknown"] = None if normalised else reason(given)
    if not normalised and name in ("mul", "div", "add", "sub") and main.centred_of is not None:
        facts["centred_of"] = main.centred_of
    return facts


def _tag(node: Node, signal: Signal, operands: Sequence[Signal]) -> Tag | None:
    """Tag of what one signal and constants make."""
    name, tag = node.primitive, signal.tag
    constants = [float(x.table[0]) for x in operands if x is not signal and not x.sources]
    if name == "square" or (name == "integer_pow" and node.params["y"] == 2):
        return _square_tag(signal)
    if name == "exp":
        return Tag("exp", signal.number)
    if tag is None or tag.kind in ("exp", "square"):
        return None
    if name == "mul" and constants:
        return dataclasses.replace(tag, factor=tag.factor * constants[0])
    if name == "div" and constants and operands[0] is signal and constants[0]:
        return dataclasses.replace(tag, factor=tag.factor / constants[0])
    return tag if name == "max" else None


def _square_tag(signal: Signal) -> Tag:
    if signal.tag is not None and signal.tag.kind == "sum" and signal.tag.is_mean:
        return Tag("square of mean", signal.tag.of)
    return Tag("square", signal.base)


# Functions of the sources of the operands.


def _run(
    tape: Tape,
    node: Node,
    operands: Sequence[Signal],
    joint: Sequence[int],
    shape: Shape,
    features: Features,
    facts: dict[str, Any],
) -> Signal:
    """Runs the primitive on the joint table of its operands."""
    table, slopes = _evaluate(node, [tables.spread(x.table, x.sources, joint) for x in operands])
    factor = _through_spread(node, operands)
    edges = [
        Edge(x.number, slope=slope * factor)
        for x, slope in zip(operands, slopes, strict=True)
        # Statistics are constants of the values that they divide; a zero is one by chance.
        if slope is not None and (x.sources or not x.mean.any())
    ]
    full = np.broadcast_to(table, (tables.ROWS, *[tables.NODES] * len(joint)))
    if node.primitive in SUMS or node.primitive in ("mul", "div"):
        full = _bounded(tape, node.primitive, operands, full)
    if node.primitive in SUMS:
        edges = [_with_repeated(tape, edge, operands) for edge in edges]
    return tape.signal(full, joint, shape, features, edges, **facts)


def _through_spread(node: Node, operands: Sequence[Signal]) -> float:
    """Factor of the gradient of a value that is divided by its own spread.

    Of n normal entries with mean square s, ``E 1/s = n / (n - 2)``, and the gradient through s
    takes away one part in n. Where the mean is subtracted the two are ``n / (n - 3)`` and two parts
    in n; the spread, which is smaller by n - 1 in n, makes up for that up to order ``1 / n**2``.
    """
    terms = max((x.terms for x in operands), default=0)
    bases = {x.base for x in operands if x.centred_of is None}
    if node.primitive not in ("mul", "div") or terms < 3:
        return 1.0
    own = any(x.statistic_of in bases for x in operands if x.statistic_of is not None)
    return math.sqrt((terms - 1) / (terms - 2)) if own else 1.0


def _share_history(tape: Tape, a: Signal, b: Signal) -> bool:
    """Whether two values have a history in common that their sources do not tell."""
    return not set(a.sources) & set(b.sources) and bool(tape.roots(a) & tape.roots(b))


def _is_unfollowed(tape: Tape, name: str, operands: Sequence[Signal]) -> bool:
    """Whether the operands of a sum or product have a history in common that is not followed."""
    if name not in (*SUMS, "mul") or len(operands) != 2:
        return False
    a, b = (tape.compressed(x) for x in operands) if name == "mul" else operands
    return _share_history(tape, a, b)


def _bounded(tape: Tape, name: str, operands: Sequence[Signal], table: np.ndarray) -> np.ndarray:
    """Widens what two values make whose common history is not followed."""
    a, b = operands[:2]
    if not _share_history(tape, a, b):
        return table
    if name in SUMS:
        mean = tables.rowwise(tables.expectation(table), table)
        low = np.abs(np.sqrt(a.variance) - np.sqrt(b.variance))
        high = np.sqrt(a.variance) + np.sqrt(b.variance)
        own = np.sqrt(np.maximum(a.variance + b.variance, 1e-300))
        stretch = np.array([low[0], high[1]]) / own
        return mean + (table - mean) * tables.rowwise(stretch, table)
    # E (ab)**2 is at most 3 times the product of second moments for normal a and b.
    return table * tables.rowwise(np.array([0.0, np.sqrt(3.0)]), table)


def _with_repeated(tape: Tape, edge: Edge, operands: Sequence[Signal]) -> Edge:
    """Widens the gradient of what repeats a part of the other term of a sum.

    Behind it the same weights meet again, and what comes through them adds up with what comes
    through the other term: for sizes a and b to at most ``(sqrt a + sqrt b)**2``.
    """
    if len(operands) != 2 or not _share_history(tape, *operands):
        return edge
    own, other = operands if operands[0].number == edge.to else operands[::-1]
    if not tape.roots(own) & tape.repeated:
        return edge
    most = 1 + 2 * np.sqrt(other.variance / np.maximum(own.variance, 1e-300))
    return Edge(edge.to, gain=np.stack([np.zeros(tables.ROWS), most], axis=1))


_Slopes: TypeAlias = Sequence[np.ndarray | None]


def _evaluate(node: Node, arrays: Sequence[np.ndarray]) -> tuple[np.ndarray, _Slopes]:
    """Values of a primitive, and its slope in each operand; None where it has none."""
    slopes = _slopes.get(node.primitive)
    if slopes is not None:
        values = on_numpy(node.primitive, node.params, arrays)
        return np.asarray(values, float), slopes(*arrays)
    kind = bool if node.primitive in ("and", "or", "not", "xor") else float
    full = np.broadcast_arrays(*arrays)
    with jax.enable_x64(True), jax.default_device(jax.local_devices(backend="cpu")[0]):
        return _bound(node, [jnp.asarray(x.astype(kind)) for x in full])


def _bound(node: Node, values: Sequence[jax.Array]) -> tuple[np.ndarray, _Slopes]:
    first = bind(node.equation, values)[0]
    if not is_float(first):
        return np.asarray(first, dtype=float), [None] * len(values)
    slopes: list[np.ndarray | None] = []
    for index, value in enumerate(values):

        def only(x: jax.Array, index: int = index) -> jax.Array:
            return bind(node.equation, [*values[:index], x, *values[index + 1 :]])[0]

        try:
            slopes.append(np.asarray(jax.jvp(only, (value,), (jnp.ones_like(value),))[1]))
        except NotImplementedError:
            # JAX has no derivative either, as of `nextafter`.
            slopes.append(None)
    return np.asarray(first), slopes


def _slopes_of_choice(which: np.ndarray, *cases: np.ndarray) -> _Slopes:
    return [None, *((which.astype(int) == i).astype(float) for i in range(len(cases)))]


# Slopes of the commonest primitives, whose values NumPy computes without a compilation.
_slopes: Rules[Callable[..., _Slopes]] = Rules("slopes")
_slopes("add", "add_any")(lambda a, b: (tables.ONE, tables.ONE))
_slopes("sub")(lambda a, b: (tables.ONE, -tables.ONE))
_slopes("mul")(lambda a, b: (b, a))
_slopes("neg")(lambda a: (-tables.ONE,))
_slopes("square")(lambda a: (2 * a,))
_slopes("abs")(lambda a: (np.sign(a),))
_slopes("sqrt")(lambda a: (0.5 / np.sqrt(a),))
_slopes("rsqrt")(lambda a: (-0.5 / (a * np.sqrt(a)),))
_slopes("exp")(lambda a: (np.exp(a),))
_slopes("log")(lambda a: (1 / a,))
_slopes("log1p")(lambda a: (1 / (1 + a),))
_slopes("sin")(lambda a: (np.cos(a),))
_slopes("cos")(lambda a: (-np.sin(a),))
_slopes("tanh")(lambda a: (1 - np.tanh(a) ** 2,))
_slopes("logistic")(lambda a: (1 / (2 + np.exp(a) + np.exp(-a)),))
_slopes("div")(lambda a, b: (1 / b, -a / b**2))
# Half of the slope each where both are equal, as in JAX.
_slopes("max")(lambda a, b: ((1 + np.sign(a - b)) / 2, (1 + np.sign(b - a)) / 2))
_slopes("min")(lambda a, b: ((1 + np.sign(b - a)) / 2, (1 + np.sign(a - b)) / 2))
_slopes("ge", "gt", "le", "lt", "eq", "ne")(lambda a, b: (None, None))
_slopes("select_n")(_slopes_of_choice)


# Sums and products of values that depend on more numbers than a table has axes. ``n + z * (h - n)``
# is a function of three independent numbers, and ``h - n`` shares one of them with ``n``. What was
# added and multiplied is written out again until nothing is left that is not independent of
# everything else; then moments and derivatives of the polynomial are exact.

_SIGNS = {"add": 1.0, "add_any": 1.0, "sub": -1.0}
# Gates of gates of recurrent cells have at most 6 terms.
_MOST_TERMS = 12
_MOST_STEPS = 6

# Each product of values, by their numbers, and what it is multiplied with: one number per row.
_Polynomial: TypeAlias = dict[tuple[int, ...], np.ndarray]


def _resolved(
    tape: Tape, name: str, operands: Sequence[Signal], shape: Shape, features: Features
) -> Signal | None:
    """A sum or product with exact moments and a normal law; None where it cannot be told apart."""
    found = _independent(tape, name, operands)
    if found is None:
        return None
    polynomial, atoms = found
    mean = _expectation(polynomial, atoms)
    variance = _expectation(_product(polynomial, polynomial), atoms) - mean**2
    crossed = np.sum([tape.cross(x) - x.mean**2 for x in operands], axis=0)
    return tape.normal(
        mean,
        variance,
        shape,
        features,
        [_derivative(polynomial, atoms, number) for number in atoms],
        tables.fraction(crossed, variance),
        tape.roots(*operands),
        unknown=reason(operands),
    )


def _independent(
    tape: Tape, name: str, operands: Sequence[Signal]
) -> tuple[_Polynomial, dict[int, Signal]] | None:
    """The polynomial in values that are independent, or functions of the same one number."""
    atoms = {x.number: x for x in operands}
    polynomial = _combined(name, operands)
    for _ in range(_MOST_STEPS):
        entangled = _entangled(tape, list(atoms.values()))
        if not entangled:
            break
        last = max(entangled)
        if last not in tape.combined:
            return None
        inner, parts = tape.combined[last]
        polynomial = _substituted(polynomial, last, _combined(inner, parts))
        del atoms[last]
        atoms |= {x.number: x for x in parts}
        if len(polynomial) > _MOST_TERMS:
            return None
    else:
        return None
    flat = {number: tape.compressed(x) for number, x in atoms.items()}
    renamed = {
        tuple(sorted(flat[number].number for number in term)): factor
        for term, factor in polynomial.items()
    }
    return renamed, {x.number: x for x in flat.values()}


def _entangled(tape: Tape, atoms: Sequence[Signal]) -> set[int]:
    """Values that have a history in common with another, and are not functions of one number.

    Products are among them: what gates do is told apart from what they let through.
    """
    found = {x.number for x in atoms if len(x.sources) > 1 and x.number in tape.combined}
    for i, x in enumerate(atoms):
        for y in atoms[:i]:
            same = len(x.sources) == 1 and x.sources == y.sources
            if not same and tape.roots(x) & tape.roots(y):
                found |= {z.number for z in (x, y) if z.number in tape.combined} or {x.number}
    return found


def _combined(name: str, operands: Sequence[Signal]) -> _Polynomial:
    a, b = ({(x.number,): tables.ONE} for x in operands)
    return _product(a, b) if name == "mul" else _sum(a, b, _SIGNS[name])


def _sum(a: _Polynomial, b: _Polynomial, sign: float = 1.0) -> _Polynomial:
    result = dict(a)
    for term, factor in b.items():
        result[term] = result.get(term, np.zeros(tables.ROWS)) + sign * factor
    return result


def _product(a: _Polynomial, b: _Polynomial) -> _Polynomial:
    result: _Polynomial = {}
    for one, factor in a.items():
        for other, by in b.items():
            result = _sum(result, {tuple(sorted((*one, *other))): factor * by})
    return result


def _substituted(polynomial: _Polynomial, number: int, by: _Polynomial) -> _Polynomial:
    result: _Polynomial = {}
    for term, factor in polynomial.items():
        expanded: _Polynomial = {tuple(n for n in term if n != number): factor}
        for _ in range(term.count(number)):
            expanded = _product(expanded, by)
        result = _sum(result, expanded)
    return result


def _expectation(polynomial: _Polynomial, atoms: dict[int, Signal]) -> np.ndarray:
    total = np.zeros(tables.ROWS)
    for term, factor in polynomial.items():
        groups: dict[tuple[int, ...], np.ndarray] = {}
        for number in term:
            x = atoms[number]
            groups[x.sources] = groups.get(x.sources, 1.0) * x.table
        means = (tables.expectation(table) for table in groups.values())
        total = total + functools.reduce(np.multiply, means, factor)
    return total


def _derivative(polynomial: _Polynomial, atoms: dict[int, Signal], number: int) -> Edge:
    """The edge back to one of the values."""
    slopes: _Polynomial = {}
    for term, factor in polynomial.items():
        if number in term:
            left = list(term)
            left.remove(number)
            slopes = _sum(slopes, {tuple(left): term.count(number) * factor})
    joint = _joint([atoms[n] for term in slopes for n in term])
    if len(joint) > 2:
        square = _expectation(_product(slopes, slopes), atoms)
        return Edge(number, slope=np.sqrt(np.maximum(square, 0.0)), of=())
    table = np.zeros((tables.ROWS, *[tables.NODES] * len(joint)))
    for term, factor in slopes.items():
        parts = (tables.spread(atoms[n].table, atoms[n].sources, joint) for n in term)
        table = table + functools.reduce(np.multiply, parts, tables.rowwise(factor, table))
    return Edge(number, slope=table, of=tuple(joint))
