"""Sums: over axes, over products of two operands, and the statistics that are made of them.

A mean of squares over the many units of a layer is a constant: the law of large numbers, and the
one place where width is assumed. So layer and rms normalisation need no rule of their own. Means
over positions and samples vary as far as positions are correlated, which is tracked; batch
normalisation subtracts that part and divides by what is left.

In a contraction with independent weights of mean zero the second moment of an output is the number
of products it sums times ``Var w`` times the second moment of the input, whatever the law of the
input; where the weights have a mean the pairs of different entries count as well.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np

from jaxinit.jaxpr import SUMS, Node
from jaxinit.signal import _tables as tables
from jaxinit.signal._rules import Aval, of_signal, rules
from jaxinit.signal._tape import (
    PARTLY,
    Application,
    Discrete,
    Edge,
    Features,
    Shape,
    Signal,
    Simplex,
    Tag,
    Tape,
    Value,
    over_nodes,
)

# A positive mean whose relative variance is below this is taken for a constant.
_CONSTANT = 0.02
# Draws of logits that the concentration of attention weights is averaged over: 2 % of error.
_DRAWS = 128
_QUERIES = 8
# Lengths of running sums whose laws are averaged, at most; few are as good as all of them.
_SUMMED = 128
# Weights with a mean give all units of a layer a part in common; below this share it is nothing.
_IN_COMMON = 0.05

# For each axis of an operand the axis of the result that it became; None where it was summed.
_Places: TypeAlias = tuple[int | None, ...]

# Over axes.


@of_signal("reduce_sum")
def reduce_sum(tape: Tape, node: Node, signal: Signal, aval: Aval) -> Value:
    """A sum over some axes."""
    axes, shape = node.params["axes"], aval.shape
    count = math.prod(signal.shape[a] for a in axes)
    mean, variance = count * signal.mean, variance_of_mean(tape, signal, axes)
    left = [axis for axis in range(len(signal.shape)) if axis not in axes]
    kept = [signal.features[axis] for axis in left]
    tag = _tag_of_sum(signal, axes, count)
    places = tuple(left.index(i) if i in left else None for i in range(len(signal.shape)))
    edges = [Edge(signal.number, gain=tables.ends(1.0), shares=not tag.over_units, axes=places)]
    facts = {"tag": tag, "label": signal.label}
    squares = tag.kind == "squares"
    if squares or np.all(variance <= _CONSTANT * signal.mean**2):
        of = tag.of if squares else None
        return tape.signal(mean, (), shape, kept, edges, statistic_of=of, terms=count, **facts)
    crossed = np.maximum(tape.cross(signal) - signal.mean**2, 0.0)
    share, roots = tables.fraction(crossed / tag.among, variance), tape.roots(signal)
    return tape.normal(mean, count**2 * variance, shape, kept, edges, share, roots, **facts)


def variance_of_mean(tape: Tape, signal: Signal, axes: Sequence[int]) -> np.ndarray:
    """Variance of the mean over some axes: units are independent, positions correlated.

    Units that may have a part in common are independent at the low end, positions at the high end.
    """
    if any(signal.features[a] == PARTLY for a in axes):
        ends = []
        for flag in (1, 0):
            flags = tuple(flag if f == PARTLY else f for f in signal.features)
            ends.append(variance_of_mean(tape, dataclasses.replace(signal, features=flags), axes))
        return np.array([min(e[0] for e in ends), max(e[1] for e in ends)])
    units = math.prod(signal.shape[a] for a in axes if signal.features[a])
    positions = math.prod(signal.shape[a] for a in axes if not signal.features[a])
    crossed = np.maximum(tape.cross(signal) - signal.mean**2, 0.0)
    return (signal.variance + (positions - 1) * crossed) / (units * positions)


def _tag_of_sum(signal: Signal, axes: Sequence[int], count: int) -> Tag:
    tag = signal.tag
    among = math.prod(signal.shape[a] for a in axes if signal.features[a])
    squares = tag is not None and tag.kind == "square"
    kind, of = ("squares", tag.of) if squares and tag else ("sum", signal.base)
    return Tag(kind, of, count, count, tuple(axes), among)


@of_signal("cumsum")
def _cumulative_sum(tape: Tape, node: Node, signal: Signal, aval: Aval) -> Value:
    """A running sum: the law of an entry is averaged over how many were summed.

    Each sum has the shape of the law of its terms, stretched: exponentials of running sums of
    negative numbers stay below 1.
    """
    signal, axis = tape.compressed(signal), node.params["axis"]
    count = signal.shape[axis]
    crossed = signal.mean**2 if signal.features[axis] else tape.cross(signal)
    shared = tables.fraction(crossed - signal.mean**2, signal.variance)
    edges = [Edge(signal.number, gain=tables.ends((count + 1) / 2), running=True)]
    features = [flag and i != axis for i, flag in enumerate(signal.features)]
    chosen = np.linspace(1, count, min(count, _SUMMED))
    numbers = over_nodes(signal) - signal.mean[:, None]
    stretch = np.sqrt(chosen + chosen * (chosen - 1) * shared[:, None])
    sums = chosen[:, None] * signal.mean[:, None, None] + stretch[..., None] * numbers[:, None]
    table, _ = tables.compress(sums, np.tile(tables.weights() / chosen.size, (chosen.size, 1)))
    source = tape.source([0.0, 1.0], tape.roots(signal))
    return tape.signal(table, (source,), signal.shape, features, edges)


@of_signal("reduce_window_sum")
def _pooled_sum(tape: Tape, node: Node, signal: Signal, aval: Aval) -> Value:
    signal = tape.compressed(signal)
    count = math.prod(node.params["window_dimensions"])
    crossed = tape.cross(signal)
    mean = count * signal.mean
    variance = count * signal.second + count * (count - 1) * crossed - mean**2
    common = tables.fraction(count**2 * (crossed - signal.mean**2), variance)
    gain = tables.ends(count * math.prod(aval.shape) / max(signal.size, 1))
    edges, roots = [Edge(signal.number, gain=gain)], tape.roots(signal)
    return tape.normal(mean, variance, aval.shape, signal.features, edges, common, roots)


@of_signal("reduce_max", "reduce_min", "reduce_window_max", "reduce_window_min")
def _largest(tape: Tape, node: Node, signal: Signal, aval: Aval) -> Value:
    """The largest or smallest entry along some axes, or of a window."""
    signal, shape, axes = tape.compressed(signal), aval.shape, node.params.get("axes", ())
    features = [flag for axis, flag in enumerate(signal.features) if axis not in axes]
    if not signal.sources:
        return tape.view(signal, shape, features)
    lengths = node.params.get("window_dimensions") or [signal.shape[axis] for axis in axes]
    count = max(math.prod(lengths), 1)
    if node.primitive.endswith("max"):
        return largest(tape, signal, count, shape, features)
    return _negative(tape, largest(tape, _negative(tape, signal), count, shape, features))


def _negative(tape: Tape, signal: Signal) -> Signal:
    edge = Edge(signal.number, slope=-tables.ONE)
    return tape.again(signal, [edge], table=-signal.table[:, ::-1])


def largest(tape: Tape, signal: Signal, count: int, shape: Shape, features: Features) -> Signal:
    """Largest of so many entries: between all equal and all independent."""
    candidates = np.stack([tables.largest_of(signal.table, n) for n in (1, count)])
    seconds = tables.expectation(candidates.reshape(-1, tables.NODES) ** 2).reshape(2, -1)
    low, high = int(seconds[:, 0].argmin()), int(seconds[:, 1].argmax())
    table = np.stack([candidates[low, 0], candidates[high, 1]])
    source = tape.source([0.0, 1.0], tape.roots(signal))
    gain = tables.ends(math.prod(shape) / max(signal.size, 1))
    edges = [Edge(signal.number, gain=gain)]
    return tape.signal(table, (source,), shape, features, edges, tag=Tag("max", signal.base))


# Normalisation and softmax.


def centred(tape: Tape, signal: Signal, mean: Signal) -> Signal:
    """A signal less its mean over some axes."""
    tag = mean.tag
    assert tag is not None
    scale = np.sqrt(tables.fraction(signal.variance - mean.variance, signal.variance))
    table = (signal.table - tables.rowwise(signal.mean, signal.table)) * tables.rowwise(
        scale, signal.table
    )
    edge, sources = Edge(signal.number, slope=tables.ONE), signal.sources
    if not tag.over_units:
        # What all positions share is gone.
        sources = tuple(tape.source(0.0, tape.sources[s].roots) for s in sources)
        share = 1 / tag.among, _positions(signal, tag)
        edge = Edge(signal.number, gain=tables.ends(1.0), removed=share)
    facts = {"label": signal.label, "centred_of": signal.base}
    return tape.signal(table, sources, signal.shape, signal.features, [edge], **facts)


def _positions(signal: Signal, tag: Tag) -> tuple[int, ...] | None:
    """Axes of positions that a mean was taken over, if they are still those of the signal."""
    lengths = [signal.shape[a] for a in tag.axes if a < len(signal.shape)]
    if len(lengths) != len(tag.axes) or math.prod(lengths) != tag.count:
        return None
    return tuple(a for a in tag.axes if not signal.features[a])


def spread_left(tape: Tape, squares: Signal, mean: Signal) -> Signal:
    """Mean of squares less the square of the mean: a constant."""
    value, of = np.maximum(squares.mean - mean.mean, 0.0), squares.tag and squares.tag.of
    facts = {"statistic_of": of, "terms": squares.terms, "unknown": squares.unknown}
    return tape.signal(value, (), squares.shape, squares.features, (), **facts)


def softmax(tape: Tape, exponentials: Signal, tag: Tag, shape: Shape) -> Signal:
    """Attention weights, from the exponentials of logits that are divided by their sum."""
    assert exponentials.tag is not None
    logits = tape.steps[exponentials.tag.of][0]
    count, unevenness = np.asarray([float(tag.count)]), 1.0
    if exponentials.mask is not None and len(tag.axes) == 1:
        count, unevenness = _visible(exponentials.mask, tag.axes[0])
    simplex = Simplex(count, tag.count, np.sqrt(logits.variance), unevenness)
    if logits.unknown:
        return tape.unknown(f"softmax of unknown values: {logits.unknown}", shape, [logits])
    together, slope = concentration(simplex)
    mean = np.full(tables.ROWS, 1 / tag.count)
    variance = together / tag.count - mean**2
    edges = [Edge(logits.number, gain=np.broadcast_to(np.sort(slope) / tag.count, (2, 2)))]
    features, roots = exponentials.features, tape.roots(logits)
    return tape.normal(mean, variance, shape, features, edges, [0.0, 1.0], roots, simplex=simplex)


def _visible(mask: np.ndarray, axis: int) -> tuple[np.ndarray, float]:
    """Keys that each query sees, and how unevenly keys are seen."""
    # Axes that a mask was broadcast along say the same over and over.
    repeated = [i for i, step in enumerate(mask.strides) if step == 0 and i != axis]
    mask = mask[tuple(slice(1) if i in repeated else slice(None) for i in range(mask.ndim))]
    counts = mask.sum(axis, keepdims=True)
    equal = mask / np.maximum(counts, 1)
    received = equal.mean(tuple(i for i in range(mask.ndim) if i != axis))
    unevenness = float((received**2).mean() / max(received.mean() ** 2, 1e-300))
    return counts[counts > 0].reshape(-1).astype(float), unevenness


def concentration(simplex: Simplex) -> tuple[np.ndarray, np.ndarray]:
    """How much attention weights are of one key.

    Args:
        simplex: the weights. Logits are taken to be normal; where keys share a part of theirs, the
            weights are more equal, so equal weights are the low end.

    Returns:
        For equal weights, and for independent logits: the expected sum over keys of the squared
        weights; and of the second moment of a logit's gradient over that of a weight's,
        ``sum_j p_j**2 (1 - 2 p_j + sum_k p_k**2)``.
    """
    counts = np.sort(simplex.count)
    chosen = counts[np.linspace(0, counts.size - 1, min(_QUERIES, counts.size)).astype(int)]
    equal, slope = np.mean(1 / counts), np.mean(1 / counts * (1 - 1 / counts))
    deviation = float(simplex.deviation[1])
    drawn = np.array([_drawn(int(n), round(deviation, 3)) for n in chosen])
    # Between the chosen counts the ratio to equal weights changes slowly.
    together, pulled = (
        np.mean(np.interp(counts, chosen, values * chosen) / counts) for values in drawn.T
    )
    return np.array([equal, max(together, equal)]), np.array([slope, pulled])


@functools.lru_cache(maxsize=512)
def _drawn(count: int, deviation: float) -> tuple[float, float]:
    if count < 2 or deviation == 0:
        return 1 / count, (1 - 1 / count) / count
    logits = deviation * np.random.default_rng(0).standard_normal((_DRAWS, min(count, 4096)))
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    squares = (p**2).sum(1, keepdims=True)
    pulled = (p**2 * (1 - 2 * p + squares)).sum(1)
    shrink = min(count, 4096) / count
    return float(squares.mean()) * shrink, float(pulled.mean()) * shrink


# Over products.


@dataclasses.dataclass(frozen=True, eq=False)
class _Product:
    """What a contraction sums: two operands, and how their axes meet.

    Attributes:
        a: the first operand.
        b: the second operand.
        products: how many products all entries of the result sum together.
        are_units: for each operand, whether what is summed over is units.
        features: of the result.
        places: for each operand, where its axes went; None where that is not known.
        summed: for each operand, the axes that are summed over; none where that is not told.
    """

    a: Signal
    b: Signal
    products: float
    are_units: tuple[bool, bool]
    features: Features
    places: tuple[_Places, _Places | None]
    summed: tuple[Sequence[int], Sequence[int]] = ((), ())


@rules("dot_general")
def _dot(tape: Tape, node: Node, operands: Sequence[Value], aval: Aval) -> Value:
    """Dense layers and attention."""
    numbers = node.params["dimension_numbers"]
    a, b = _kernels(numbers, *(_as_factor(tape, x) for x in operands))
    return _dense(tape, numbers, a, b, aval.shape)


@rules("ragged_dot_general")
def _ragged_dot(tape: Tape, node: Node, operands: Sequence[Value], aval: Aval) -> Value | None:
    """Rows of which each meets the kernel of one group."""
    numbers = node.params["ragged_dot_dimension_numbers"]
    (axes_a, axes_b), batch = numbers.dot_dimension_numbers
    groups = tuple(numbers.rhs_group_dimensions)
    if len(groups) != 1 or set(numbers.lhs_ragged_dimensions) & {*axes_a, *batch[0]}:
        return None
    a, b = (_as_factor(tape, x) for x in operands[:2])
    # The axis of groups is not in the result, and no sum goes over it.
    whole = (axes_a, (*axes_b, *groups)), batch
    return _dense(tape, whole, a, b, aval.shape)


_DotNumbers: TypeAlias = tuple[
    tuple[Sequence[int], Sequence[int]], tuple[Sequence[int], Sequence[int]]
]


def _dense(tape: Tape, numbers: _DotNumbers, a: Signal, b: Signal, shape: Shape) -> Signal:
    (axes_a, axes_b), _ = numbers
    features = _features_of_dot(numbers, a, b, shape)
    if a.simplex or b.simplex:
        found = _attention(tape, a, b, (axes_a, axes_b), shape, features)
        if found is not None:
            return tape.layer(found, (a, b))
    products = math.prod(a.shape[axis] for axis in axes_a) * math.prod(shape)
    are_units = _has_units(a, axes_a), _has_units(b, axes_b)
    places = _places_of_dot(numbers, a, b)
    product = _Product(a, b, products, are_units, features, places, (axes_a, axes_b))
    return _sum_of_products(tape, product, shape)


@rules("conv_general_dilated")
def _convolution(tape: Tape, node: Node, operands: Sequence[Value], aval: Aval) -> Value:
    a, b = (_as_factor(tape, x) for x in operands)
    numbers, shape = node.params["dimension_numbers"], aval.shape
    features = [0] * len(shape)
    features[numbers.out_spec[0]] = a.features[numbers.lhs_spec[0]]
    features[numbers.out_spec[1]] = 1
    out = dict(zip(numbers.lhs_spec, numbers.out_spec, strict=True))
    out.pop(numbers.lhs_spec[1])
    places = tuple(out.get(axis) for axis in range(len(a.shape)))
    products = _taps(node, a.shape, b.shape, shape)
    product = _Product(a, b, products, (True, True), features, (places, None))
    return _sum_of_products(tape, product, shape)


def _as_factor(tape: Tape, value: Value) -> Signal:
    """A signal; the entries of a constant array count as independent draws of their law."""
    if isinstance(value, Signal):
        return tape.compressed(value) if value.simplex is None else value
    if isinstance(value, Discrete):
        return tape.unknown("contraction with integers of the data", value.shape)
    return tape.again(tape.as_signal(value), (), features=(1,) * len(value.shape))


def _kernels(numbers: _DotNumbers, a: Signal, b: Signal) -> tuple[Signal, Signal]:
    """Entries that integers chose of a parameter are a kernel where they meet data.

    A kernel has units that are summed and units that are left; a row of an embedding has units of
    one kind.
    """
    if a.label or b.label or bool(a.chosen) == bool(b.chosen):
        return a, b
    side = 0 if a.chosen else 1
    signal, used = (a, b)[side], (numbers[0][side], numbers[1][side])
    left = [axis for axis in range(len(signal.shape)) if axis not in (*used[0], *used[1])]
    if signal.laid_out:
        signal = dataclasses.replace(signal, features=tuple(n > 1 for n in signal.shape))
    if not _has_units(signal, used[0]) or not _has_units(signal, left):
        return a, b
    kernel = dataclasses.replace(signal, label=signal.chosen)
    return (a, kernel) if side else (kernel, b)


def _has_units(signal: Signal, axes: Sequence[int]) -> bool:
    return any(signal.features[axis] and signal.shape[axis] > 1 for axis in axes)


def _sum_of_products(tape: Tape, product: _Product, shape: Shape) -> Signal:
    a, b, products = product.a, product.b, product.products
    fan = products / max(math.prod(shape), 1)
    others = max(fan - 1, 0.0)
    crosses = [tape.cross(x) for x in (a, b)]
    pairs = [
        x.mean**2 if own else cross
        for x, own, cross in zip((a, b), product.are_units, crosses, strict=True)
    ]
    mean = fan * a.mean * b.mean
    second = fan * a.second * b.second + fan * others * pairs[0] * pairs[1]
    roots = None
    if not a.label and not b.label and tape.roots(a) & tape.roots(b):
        # A value times itself: at most all products are alike.
        second = np.array([second[0], (fan**2 * a.second * b.second)[1]])
        roots = tape.roots(a, b)
    application, more = _met_before(tape, product, fan)
    second = second + more * (second - mean**2)
    if application is not None and np.any(more > _IN_COMMON):
        roots = tape.roots(a, b) | application.inputs
    variance = second - mean**2
    crossed = fan * crosses[0] * crosses[1] + fan * others * (a.mean * b.mean) ** 2 - mean**2
    correlation, features = tables.fraction(crossed, variance), product.features
    common = [
        tables.fraction(fan * x.mean**2 * y.variance, variance)
        for x, y in ((a, b), (b, a))
        if x.label
    ]
    if np.any(np.array(common) > _IN_COMMON):
        features, correlation = [0] * len(shape), np.array([correlation[0], 1.0])
    edges = []
    for x, y, cross, axes in (
        (a, b, crosses[1], product.places[0]),
        (b, a, crosses[0], product.places[1]),
    ):
        terms = products / max(x.size, 1)
        pooled = None
        if not a.label and not b.label:
            # Logits: with a gradient in common, what positions of queries share adds up in a key.
            together = terms * (y.second + max(terms - 1, 0.0) * cross)
            pooled = np.stack([terms * y.second, np.maximum(terms * y.second, together)], axis=1)
        edges.append(Edge(x.number, gain=tables.ends(terms * y.second), pooled=pooled, axes=axes))
    label = f"{a.label} {b.label}" if a.label and b.label else None
    found = tape.normal(mean, variance, shape, features, edges, correlation, roots, label=label)
    for source in found.sources if roots is None else ():
        uses = frozenset((x.label, found.number) for x in (a, b) if x.label)
        tape.sources[source].uses = uses
    _repeat(tape, product, found)
    _remember_use(tape, product, found, fan, application)
    return tape.layer(found, (a, b))


# Parameters that are used again. With ``z = W x``, the entries of ``W^T f(z)`` have a part along
# ``x`` beside what independent weights give. Of n entries of z, each a sum of m products, that part
# has n / m times the second moment of the part of ``f(z)`` that is linear in z. Weights that are
# applied once more in the same direction are as good as new ones.


def _met_before(tape: Tape, product: _Product, fan: float) -> tuple[Application | None, np.ndarray]:
    """The earlier use of a parameter that a contraction undoes, and what that adds to its output.

    Returns:
        The use, and the addition as a share of what independent weights give, one number per row.
    """
    nothing = np.zeros(tables.ROWS)
    used = _parameter_of(tape, product)
    if used is None:
        return None, _of_itself(tape, product, fan)
    data, number, summed, _ = used
    met = [
        m
        for m in tape.applications.get(number, ())
        if tape.roots(data) & tape.sources[m.source].roots and not _same_way(m, summed)
    ]
    if not met:
        return None, nothing
    ratio = fan / met[-1].fan
    if len(met) > 1 or met[0].before is not None or summed is None or summed != met[0].left:
        # No matrix stretches more than by its largest singular value.
        kernel = product.b if data is product.a else product.a
        most = (1 + fan / math.sqrt(max(kernel.size, 1))) ** (2 * len(str(kernel.label).split()))
        return met[-1], np.array([0.0, most - 1])
    along = tape.along(data, met[0].source)
    square = np.maximum(data.second, 1e-300)
    share = np.array([0.0, 1.0]) if along is None else np.minimum(along**2 / square, 1.0)
    return met[0], ratio * share


def _parameter_of(
    tape: Tape, product: _Product
) -> tuple[Signal, int, frozenset[int] | None, frozenset[int] | None] | None:
    """The data of a layer, the number of its parameter, and its axes: summed, and left."""
    a, b = product.a, product.b
    if bool(a.label) == bool(b.label) or not product.summed[0]:
        return None
    data, kernel, axes = (b, a, product.summed[0]) if a.label else (a, b, product.summed[1])
    root, summed = tape.first(kernel, axes)
    _, left = tape.first(kernel, [i for i in range(len(kernel.shape)) if i not in axes])
    if " " in str(kernel.label):
        # A product of parameters may be its own transpose.
        summed = left = None
    return data, root.number, summed, left


def _same_way(application: Application, summed: frozenset[int] | None) -> bool:
    return summed is not None and summed == application.summed


def _of_itself(tape: Tape, product: _Product, fan: float) -> np.ndarray:
    """What a parameter times its own transpose has more: entries that are sums of squares."""
    a, b = product.a, product.b
    if not a.label or not b.label or not product.summed[0]:
        return np.zeros(tables.ROWS)
    one, two = (tape.first(x, axes) for x, axes in zip((a, b), product.summed, strict=True))
    if one[0] is not two[0] or one[1] is None or one[1] != two[1]:
        return np.zeros(tables.ROWS)
    return np.full(tables.ROWS, fan / max(a.size / fan, 1.0))


def _repeat(tape: Tape, product: _Product, found: Signal) -> None:
    """Ties an output to earlier ones of the same weights, where data contain earlier data.

    On a residual stream ``W (x + r)`` is ``W x + W r``, and what is made of it repeats in part what
    was made of ``W x``.
    """
    used = _parameter_of(tape, product)
    if used is None:
        return
    data, number, summed, _ = used
    roots, earlier = tape.roots(data), tape.applications.get(number, ())
    alike = [met for met in earlier if roots & met.inputs and _same_way(met, summed)]
    terms = _terms(tape, data) if alike else set()
    for met in alike:
        if met.data in terms or roots & tape.repeated:
            for source in found.sources:
                own = tape.sources[source]
                own.roots = own.roots | tape.sources[met.source].roots
                tape.repeated.add(source)


def _terms(tape: Tape, data: Signal) -> set[int]:
    """Numbers of a value and of all that it is a sum of, without casts."""
    terms, pending = {data.number: data}, [data]
    while pending:
        name, parts = tape.combined.get(pending.pop().number, ("", ()))
        fresh = {part.number: part for part in parts if part.number not in terms}
        if name in SUMS:
            terms |= fresh
            pending += fresh.values()
    return {term.base for term in terms.values()}


def _remember_use(
    tape: Tape, product: _Product, found: Signal, fan: float, before: Application | None
) -> None:
    """Remembers a use; where it undoes an earlier one, so do gradients on their way back."""
    used = _parameter_of(tape, product)
    if used is None or not found.sources:
        return
    data, number, summed, left = used
    new = Application(
        found.number,
        found.sources[0],
        tape.roots(data),
        fan,
        summed,
        left,
        before,
        data.base,
    )
    tape.applications.setdefault(number, []).append(new)
    if before is not None:
        ratio = fan / before.fan
        _amplify(tape, before, 1 + ratio)
        if before.before is not None:
            _amplify(tape, before.before, (1 + math.sqrt(ratio)) ** 2)


def _amplify(tape: Tape, application: Application, most: float) -> None:
    """Widens the gradient behind a use: from that of independent weights to so many times it."""
    signal, edges = tape.steps[application.found]
    if not tape.layers.get(application.found):
        return
    wider = []
    for edge in edges:
        if edge.gain is not None and not tape.steps[edge.to][0].label:
            low = edge.gain[:, :1]
            edge = dataclasses.replace(edge, gain=np.concatenate([low, low * most], axis=1))
        wider.append(edge)
    tape.steps[application.found] = signal, tuple(wider)


def _attention(
    tape: Tape,
    a: Signal,
    b: Signal,
    axes: tuple[Sequence[int], Sequence[int]],
    shape: Shape,
    features: Features,
) -> Signal | None:
    """Mean of values, weighted by attention: between equal weights and independent logits."""
    weights, values = (a, b) if a.simplex else (b, a)
    simplex, summed = weights.simplex, axes[0 if weights is a else 1]
    if simplex is None or len(summed) != 1 or weights.shape[summed[0]] != simplex.keys:
        return None
    together, _ = concentration(simplex)
    shared = np.clip(tape.cross(values), values.mean**2, values.second)
    second = together * (values.second - shared) + shared
    variance = second - values.mean**2
    products = math.prod(shape) * simplex.keys
    queries = products / max(values.size, 1)
    to_values = queries * together / simplex.keys
    to_weights = products / max(weights.size, 1) * (values.second - shared)
    pooled = (queries / simplex.keys) ** 2 * simplex.unevenness
    edges = [
        Edge(values.number, gain=tables.ends(to_values), pooled=tables.ends(pooled)),
        Edge(weights.number, gain=tables.ends(to_weights)),
    ]
    correlation = tables.fraction(shared - values.mean**2, variance)
    correlation, roots = np.array([correlation[0], 1.0]), tape.roots(values)
    return tape.normal(values.mean, variance, shape, features, edges, correlation, roots)


def _places_of_dot(numbers: _DotNumbers, a: Signal, b: Signal) -> tuple[_Places, _Places]:
    """For each operand and each of its axes, the axis of the result that it became."""
    summed, batch = numbers
    reached, found = len(batch[0]), []
    for signal, own_summed, own_batch in zip((a, b), summed, batch, strict=True):
        places: list[int | None] = []
        for axis in range(len(signal.shape)):
            if axis in own_batch:
                places.append(tuple(own_batch).index(axis))
            elif axis in own_summed:
                places.append(None)
            else:
                places.append(reached)
                reached += 1
        found.append(tuple(places))
    return found[0], found[1]


def _features_of_dot(numbers: _DotNumbers, a: Signal, b: Signal, shape: Shape) -> list[int]:
    features, batch = [0] * len(shape), len(numbers[1][0])
    for signal, places in zip((a, b), _places_of_dot(numbers, a, b), strict=True):
        # Units of data with a mean share what a layer makes of the mean.
        shared = not signal.label and np.any(signal.mean**2 > _IN_COMMON * signal.second)
        for flag, place in zip(signal.features, places, strict=True):
            if place is not None:
                flag = PARTLY if flag and shared and place >= batch else flag
                features[place] = features[place] or flag
    return features


def _taps(node: Node, data: Shape, kernel: Shape, out: Shape) -> float:
    """Products that a convolution sums in all, those with padding and holes not counted.

    Args:
        node: a ``conv_general_dilated``.
        data: shape of its input.
        kernel: shape of its kernel.
        out: shape of its output.
    """
    params = node.params
    numbers = params["dimension_numbers"]
    total = out[numbers.out_spec[0]] * out[numbers.out_spec[1]] * kernel[numbers.rhs_spec[1]]
    for dim, (axis_in, axis_kernel, axis_out) in enumerate(
        zip(numbers.lhs_spec[2:], numbers.rhs_spec[2:], numbers.out_spec[2:], strict=True)
    ):
        starts = np.arange(out[axis_out]) * params["window_strides"][dim]
        offsets = np.arange(kernel[axis_kernel]) * params["rhs_dilation"][dim]
        places = starts[:, None] + offsets[None, :] - params["padding"][dim][0]
        holes = params["lhs_dilation"][dim]
        reach = (data[axis_in] - 1) * holes + 1
        total *= int(np.sum((places >= 0) & (places < reach) & (places % holes == 0)))
    return float(total)
