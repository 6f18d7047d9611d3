"""Elementwise primitives on fields: run on the tables themselves, slopes included.

No primitive is approximated: its values and slopes at the nodes are those of JAX in float64. What
is approximated is said where it happens: values that depend on more than two independent normal
numbers are compressed first, and values that share a history that was not followed are bounded.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxinit.jaxpr._graph import Node
from jaxinit.signal import _polynomials as polynomials
from jaxinit.signal import _tables as tables
from jaxinit.signal._evaluation import evaluate
from jaxinit.signal._fields import PARTLY, Field, Known, Tag, World, spread_over
from jaxinit.signal._links import Link
from jaxinit.signal._statistics import centred, softmax, spread_left

Operand = Field | Known

PRIMITIVES = frozenset(
    """abs acos acosh add add_any and asin asinh atan atan2 atanh cbrt ceil clamp
    convert_element_type copy cos cosh digamma div eq erf erf_inv erfc exp exp2 expm1 floor ge gt
    integer_pow is_finite le lgamma log log1p logistic lt max min mul ne neg not or pow
    reduce_precision rem round rsqrt select_n sign sin sinh sqrt square stop_gradient sub tan tanh
    xor""".split()
)
_SUMS = ("add", "sub", "add_any")
_SAME = ("convert_element_type", "copy", "reduce_precision", "stop_gradient")
# Logits below are those of a mask.
_BIG_NEGATIVE = -1e4


def elementwise(world: World, node: Node, operands: Sequence[Operand], aval: Any) -> Operand:
    """What an elementwise primitive makes of fields and known arrays.

    Args:
        world: where the result is made.
        node: the equation.
        operands: its operands, at least one of them not a known array.
        aval: shape and dtype of the result.
    """
    name = node.primitive
    fields = [x for x in operands if isinstance(x, Field)]
    if any(isinstance(x, Known) and x.array is None for x in operands):
        return _of_integers(world, name, operands, aval)
    if name in _SAME:
        return _same(world, name, fields[0], aval)
    if name in _SUMS and _is_nothing(operands[1]) and fields[0].shape == aval.shape:
        # Normalisation without a mean subtracts a zero; it is still the same value.
        link = Link(fields[0].number, slope=np.ones(tables.ROWS))
        return world.again(fields[0], fields[0].table, [link])
    special = _special(world, name, operands, aval)
    if special is not None:
        return special
    prepared = [x if isinstance(x, Field) else known_as_field(world, x) for x in operands]
    if not all(x.label for x in fields):
        prepared = [_at_positions(world, x) for x in prepared]
    facts = _facts(node, operands, prepared)
    features = features_of(prepared, aval.shape)
    features = _summed(features, operands) if name in _SUMS else features
    prepared = [_copied_to(world, x, aval.shape) for x in prepared]
    joint = _joint(prepared)
    if (len(joint) > 2 and name in _SUMS) or _is_unfollowed(world, name, prepared):
        found = polynomials.resolved(world, name, prepared, aval.shape, features)
        if found is not None:
            return found
    whole = prepared
    if len(joint) > 2:
        prepared = [world.compressed(x) for x in prepared]
        joint = _joint(prepared)
    if len(joint) > 2:
        return hull(world, prepared[-2:], aval.shape)
    result = _run(world, node, prepared, joint, aval.shape, features, facts)
    # A sum is one number again; a product keeps its factors, for what they meet next.
    final = world.compressed(result) if name in _SUMS else result
    polynomials.note(world, name, whole, (result, final))
    return final


def _copied_to(world: World, field: Field, shape: Sequence[int]) -> Field:
    """An operand of full shape: where it is copied, its gradients add up."""
    if field.shape == tuple(shape) or len(field.shape) != len(shape):
        return field
    if not field.sources and field.mean.any():
        return field
    return world.copies(field, shape, range(len(shape)))


def features_of(operands: Sequence[Field], shape: Sequence[int]) -> list[int]:
    """Which axes of a result hold independent units: those that any operand has units along.

    A parameter that is added or multiplied entry by entry says nothing of its own: a table of
    positions has independent entries along them, what it is added to has not.
    """
    aligned = [x for x in operands if len(x.shape) == len(shape)]
    own = [x for x in aligned if not x.label or sum(n > 1 for n in x.shape) < 2]
    return [
        max((x.features[i] for x in own or aligned if x.shape[i] > 1), default=0)
        for i in range(len(shape))
    ]


def _summed(features: list[int], operands: Sequence[Operand]) -> list[int]:
    """Flags of a sum: an axis that is units of one term and positions of the other is in part."""
    terms = [x for x in operands if isinstance(x, Field) and not x.label and x.sources]
    if len(terms) < 2 or any(len(x.shape) != len(features) for x in terms):
        return features
    return [
        PARTLY if flag and not all(x.features[i] for x in terms if x.shape[i] > 1) else flag
        for i, flag in enumerate(features)
    ]


def known_as_field(world: World, known: Known) -> Field:
    """The entries of a known array as draws; the same array is the same draws each time."""
    array = np.asarray(known.array, dtype=float)
    low, high = (float(array.min()), float(array.max())) if array.size else (0.0, 0.0)
    features = [False] * len(known.shape)
    if low == high:
        return world.field(np.full(tables.ROWS, low), (), known.shape, features)
    if known not in world.of_known:
        # From one position to the next it varies, from one sample to the next it does not.
        source = world.source([0.0, 1.0])
        world.of_known[known] = tables.of_array(array), source
    table, source = world.of_known[known]
    return world.field(table, (source,), known.shape, features)


def _at_positions(world: World, field: Field) -> Field:
    """A table of positions among data: the same in every sample, another at every position."""
    if not field.label or sum(n > 1 for n in field.shape) < 2 or not field.sources:
        return field
    key = ("positions", field.number)
    if key not in world.parts:
        new = world.other_entries(field, field.shape, field.features, 1.0, independent=True)
        for source in new.sources:
            world.correlations[source] = np.array([0.0, 1.0])
        world.parts[key] = new
    return world.parts[key]


def hull(world: World, values: Sequence[Operand], shape: Sequence[int]) -> Field:
    """One of several values, nobody knows which: the smallest and the largest of them."""
    fields = [x if isinstance(x, Field) else known_as_field(world, x) for x in values]
    fields = [world.compressed(x) for x in fields]
    seconds = np.stack([x.second for x in fields])
    rows = [int(seconds[:, 0].argmin()), int(seconds[:, 1].argmax())]
    wide = [
        np.broadcast_to(x.table if x.sources else x.table[:, None], (2, tables.NODES))
        for x in fields
    ]
    table = np.stack([wide[choice][row] for row, choice in enumerate(rows)])
    roots = frozenset().union(*(world.all_roots(x) for x in fields))
    links = [Link(x.number, gain=np.array([[0.0, 1.0]] * 2)) for x in fields]
    lost = next((x.lost for x in fields if x.lost), None)
    source = world.source([0.0, 1.0], roots)
    return world.field(table, (source,), shape, features_of(fields, shape), links, lost=lost)


def _of_integers(world: World, name: str, operands: Sequence[Operand], aval: Any) -> Operand:
    """Results that depend on integers of the data."""
    if name == "select_n":
        cases = [x for x in operands[1:] if not _is_mask_value(x)]
        if not any(isinstance(x, Field) for x in cases):
            return Known(None, aval.shape)
        if len(cases) == 1 and isinstance(cases[0], Field):
            return world.view(cases[0], aval.shape, cases[0].features)
        if all(isinstance(x, Field) or x.array is not None for x in cases):
            return hull(world, cases, aval.shape)
    others = [x for x in operands if isinstance(x, Known) and x.array is not None]
    if name == "eq" and others and others[0].array is not None:
        # One of so many classes: what `one_hot` asks.
        share = 1 / max(len(np.unique(others[0].array)), 1)
        table = (tables.uniform() < share).astype(float)
        source = world.source(0.0)
        return world.field(table, (source,), aval.shape, [False] * len(aval.shape))
    if not jnp.issubdtype(aval.dtype, np.floating):
        return Known(None, aval.shape)
    fields = [x for x in operands if isinstance(x, Field)]
    return world.lost(f"{name} of integers of the data", aval.shape, fields)


def _is_nothing(value: Operand) -> bool:
    return isinstance(value, Known) and value.array is not None and not np.any(value.array)


def _is_mask_value(value: Operand) -> bool:
    return (
        isinstance(value, Known)
        and value.array is not None
        and bool(np.all(np.asarray(value.array, dtype=float) <= _BIG_NEGATIVE))
    )


def _same(world: World, name: str, field: Field, aval: Any) -> Operand:
    if not jnp.issubdtype(aval.dtype, np.floating) and aval.dtype != np.bool_:
        return Known(None, aval.shape)
    links = [] if name == "stop_gradient" else [Link(field.number, slope=np.ones(tables.ROWS))]
    return world.again(field, field.table, links)


def _special(world: World, name: str, operands: Sequence[Operand], aval: Any) -> Operand | None:
    """Statistics, masks and softmax, which are more than their entries."""
    if name == "select_n":
        return _masked(world, operands)
    if len(operands) != 2 or not all(isinstance(x, Field) for x in operands):
        return None
    a, b = operands
    assert isinstance(a, Field) and isinstance(b, Field)
    if b.tag is None:
        return None
    if name == "sub" and b.tag.kind == "max" and b.tag.of == a.base:
        # What a softmax subtracts from its logits changes nothing.
        return world.again(a, a.table, [Link(a.number, slope=np.ones(tables.ROWS))])
    if name == "sub" and b.tag.kind == "sum" and b.tag.of == a.base and b.tag.is_mean:
        return centred(world, a, b)
    if name == "sub" and b.tag.kind == "square of mean" and a.tag is not None:
        if a.tag.kind == "squares" and a.tag.of == b.tag.of and a.tag.is_mean:
            return spread_left(world, a, b)
    if name == "div" and a.tag is not None and a.tag.kind == "exp":
        if b.tag.kind == "sum" and b.tag.of == a.base and b.tag.factor == b.tag.count:
            return softmax(world, a, b.tag, aval.shape)
    return None


def _masked(world: World, operands: Sequence[Operand]) -> Field | None:
    """Logits of which a known mask hides some."""
    if len(operands) != 3 or not isinstance(operands[0], Known):
        return None
    which, cases = operands[0], operands[1:]
    kept = [i for i, case in enumerate(cases) if isinstance(case, Field)]
    if len(kept) != 1 or not _is_mask_value(cases[1 - kept[0]]):
        return None
    field = cases[kept[0]]
    assert isinstance(field, Field) and which.array is not None
    mask = np.asarray(which.array, dtype=bool)
    link = Link(field.number, slope=np.ones(tables.ROWS))
    return world.again(field, field.table, [link], mask=mask if kept[0] else ~mask)


def _facts(node: Node, operands: Sequence[Operand], fields: Sequence[Field]) -> dict[str, Any]:
    """What is remembered of a result beside its law."""
    name = node.primitive
    given = [x for x in operands if isinstance(x, Field)]
    main = max(given, key=lambda x: x.size)
    varied = [x for x in given if x.sources]
    facts: dict[str, Any] = {}
    if varied and all(x.label for x in varied):
        facts["label"] = max(varied, key=lambda x: x.size).label
    if len(given) == 1:
        facts.update(mask=main.mask, tag=_tag(node, main, fields))
    elif name == "mul" and given[0] is given[1]:
        facts["tag"] = _square_tag(given[0])
    statistics = {x.statistic_of for x in fields if x.statistic_of is not None}
    bodies = {y for x in fields for y in (x.base, x.centred_of)}
    normalised = name in ("mul", "div") and bool(statistics & bodies)
    if len(statistics) == 1 and not normalised:
        facts["statistic_of"] = next(iter(statistics))
        facts["terms"] = max(x.terms for x in fields)
    lost = next((x.lost for x in given if x.lost), None)
    facts["lost"] = None if normalised else lost
    if not normalised and name in ("mul", "div", "add", "sub") and main.centred_of is not None:
        facts["centred_of"] = main.centred_of
    return facts


def _tag(node: Node, field: Field, operands: Sequence[Field]) -> Tag | None:
    """Tag of what one field and constants make."""
    name, tag = node.primitive, field.tag
    constants = [float(x.table[0]) for x in operands if x is not field and not x.sources]
    if name == "square" or (name == "integer_pow" and node.params["y"] == 2):
        return _square_tag(field)
    if name == "exp":
        return Tag("exp", field.number)
    if tag is None or tag.kind in ("exp", "square"):
        return None
    if name == "mul" and constants:
        return dataclasses.replace(tag, factor=tag.factor * constants[0])
    if name == "div" and constants and operands[0] is field and constants[0]:
        return dataclasses.replace(tag, factor=tag.factor / constants[0])
    return tag if name == "max" else None


def _square_tag(field: Field) -> Tag:
    if field.tag is not None and field.tag.kind == "sum" and field.tag.is_mean:
        return Tag("square of mean", field.tag.of)
    return Tag("square", field.base)


def _joint(fields: Sequence[Field]) -> list[int]:
    return sorted({source for x in fields for source in x.sources})


def _run(
    world: World,
    node: Node,
    operands: Sequence[Field],
    joint: Sequence[int],
    shape: Sequence[int],
    features: Sequence[int],
    facts: dict[str, Any],
) -> Field:
    """Runs the primitive on the joint table of its operands."""
    spread = [spread_over(x.table, x.sources, joint) for x in operands]
    table, slopes = evaluate(node, spread)
    divided = _through_spread(node, operands)
    links = [
        Link(x.number, slope=slope * divided)
        for x, slope in zip(operands, slopes, strict=True)
        # Statistics are constants of the values that they divide; a zero is one by chance.
        if slope is not None and (x.sources or not x.mean.any())
    ]
    width = tables.NODES
    full = np.broadcast_to(table, (tables.ROWS, *[width] * len(joint)))
    if node.primitive in _SUMS or node.primitive in ("mul", "div"):
        full = _bounded(world, node.primitive, operands, full)
    return world.field(full, joint, shape, features, links, **facts)


def _through_spread(node: Node, operands: Sequence[Field]) -> float:
    """What a gradient is multiplied with where a value is divided by its own spread.

    Of n normal entries with mean square s, ``E 1/s = n / (n - 2)``, and the way through s takes
    away one part in n. With the mean taken away the two are ``n / (n - 3)`` and two parts, which
    the smaller spread of n - 1 in n makes up for, but for the order of ``1 / n**2``.
    """
    terms = max((x.terms for x in operands), default=0)
    bases = {x.base for x in operands if x.centred_of is None}
    if node.primitive not in ("mul", "div") or terms < 3:
        return 1.0
    own = any(x.statistic_of in bases for x in operands if x.statistic_of is not None)
    return math.sqrt((terms - 1) / (terms - 2)) if own else 1.0


def _is_unfollowed(world: World, name: str, operands: Sequence[Field]) -> bool:
    """Whether two values have a history in common that their sources do not tell."""
    if name not in (*_SUMS, "mul") or len(operands) != 2:
        return False
    a, b = (world.compressed(x) for x in operands) if name == "mul" else operands
    return not set(a.sources) & set(b.sources) and bool(world.all_roots(a) & world.all_roots(b))


def _bounded(world: World, name: str, operands: Sequence[Field], table: np.ndarray) -> np.ndarray:
    """Widens what two values with a shared history, that is not followed, make together."""
    a, b = operands[:2]
    apart = not set(a.sources) & set(b.sources)
    if not apart or not world.all_roots(a) & world.all_roots(b):
        return table
    mean = tables.expectation(table)
    rows = (slice(None), *[None] * (table.ndim - 1))
    if name in _SUMS:
        low = np.abs(np.sqrt(a.variance) - np.sqrt(b.variance))
        high = np.sqrt(a.variance) + np.sqrt(b.variance)
        own = np.sqrt(np.maximum(a.variance + b.variance, 1e-300))
        stretch = np.array([low[0], high[1]]) / own
        return mean[rows] + (table - mean[rows]) * stretch[rows]
    # E (ab)**2 is at most 3 times the product of second moments for normal a and b.
    return table * np.array([0.0, np.sqrt(3.0)])[rows]
