"""Products that are summed: dense maps, convolutions, attention.

With independent weights of mean zero the second moment of an output is the number of products it
sums times ``Var w`` times the second moment of the input, whatever the law of the input; where the
weights have a mean the pairs of different entries count as well.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxinit.jaxpr._graph import Node
from jaxinit.signal import _tables as tables
from jaxinit.signal._elementwise import Operand, known_as_field
from jaxinit.signal._fields import PARTLY, Field, World
from jaxinit.signal._links import Link, both
from jaxinit.signal._statistics import concentration

# Weights with a mean give all units of a layer a part in common; below this share it is nothing.
_IN_COMMON = 0.05


def contract(world: World, node: Node, operands: Sequence[Operand], aval: Any) -> Field:
    """The output of ``dot_general`` or ``conv_general_dilated``."""
    a, b = _kernels(node, *(_as_factor(world, x) for x in operands))
    found = _contract(world, node, a, b, aval)
    labels = [x.label for x in (a, b) if x.label]
    if labels:
        world.maps[found.number] = labels
    return found


def _kernels(node: Node, a: Field, b: Field) -> tuple[Field, Field]:
    """Entries that integers chose of a parameter are a kernel where data are mapped by them.

    A kernel has units that are summed and units that are left; a row of an embedding has units of
    one kind.
    """
    if node.primitive != "dot_general" or a.label or b.label or bool(a.chosen) == bool(b.chosen):
        return a, b
    summed, batch = node.params["dimension_numbers"]
    field, used = (a, (summed[0], batch[0])) if a.chosen else (b, (summed[1], batch[1]))
    left = [i for i in range(len(field.shape)) if i not in (*used[0], *used[1])]
    if not _has_units(field, used[0]) or not _has_units(field, left):
        return a, b
    kernel = dataclasses.replace(field, label=field.chosen)
    return (kernel, b) if a.chosen else (a, kernel)


def _contract(world: World, node: Node, a: Field, b: Field, aval: Any) -> Field:
    if node.primitive == "dot_general":
        (axes_a, axes_b), _ = node.params["dimension_numbers"]
        features = _features_of_dot(node, a, b)
        products = math.prod(a.shape[axis] for axis in axes_a) * math.prod(aval.shape)
        units = _has_units(a, axes_a), _has_units(b, axes_b)
        places = _places_of_dot(node, a, b)
        if a.simplex or b.simplex:
            found = _attention(world, a, b, (axes_a, axes_b), aval.shape, features)
            if found is not None:
                return found
    else:
        products = taps(node, a.shape, b.shape, aval.shape)
        features = _features_of_convolution(node, a, aval.shape)
        units = True, True
        numbers = node.params["dimension_numbers"]
        out = dict(zip(numbers.lhs_spec, numbers.out_spec, strict=True))
        out.pop(numbers.lhs_spec[1])
        places = tuple(out.get(axis) for axis in range(len(a.shape))), None
    return _sum_of_products(world, a, b, products, units, aval.shape, features, places)


def _as_factor(world: World, operand: Operand) -> Field:
    """A field; the entries of a known array count as independent draws of their law."""
    if isinstance(operand, Field):
        return world.compressed(operand) if operand.simplex is None else operand
    if operand.array is None:
        return world.lost("contraction with integers of the data", operand.shape)
    field = known_as_field(world, operand)
    return world.again(field, field.table, (), features=(True,) * len(field.shape))


def _has_units(field: Field, axes: Sequence[int]) -> bool:
    return any(field.features[axis] and field.shape[axis] > 1 for axis in axes)


def _sum_of_products(
    world: World,
    a: Field,
    b: Field,
    products: float,
    units: tuple[bool, bool],
    shape: Sequence[int],
    features: Sequence[int],
    places: Sequence[Any],
) -> Field:
    size = max(math.prod(shape), 1)
    fan = products / size
    crosses = [world.cross(x) for x in (a, b)]
    pairs = [x.mean**2 if own else c for x, own, c in zip((a, b), units, crosses, strict=True)]
    mean = fan * a.mean * b.mean
    others = max(fan - 1, 0.0)
    second = fan * a.second * b.second + fan * others * pairs[0] * pairs[1]
    roots = None
    if not a.label and not b.label and world.all_roots(a) & world.all_roots(b):
        # A value times itself: at most all products are alike.
        second = np.array([second[0], (fan**2 * a.second * b.second)[1]])
        roots = world.all_roots(a) | world.all_roots(b)
    variance = np.maximum(second - mean**2, 0.0)
    spread = np.where(variance > 0, variance, 1.0)
    crossed = fan * crosses[0] * crosses[1] + fan * others * (a.mean * b.mean) ** 2 - mean**2
    correlation = np.clip(crossed / spread, 0.0, 1.0)
    common = (
        max(np.max(fan * x.mean**2 * y.variance / spread) for x, y in ((a, b), (b, a)) if x.label)
        if a.label or b.label
        else 0.0
    )
    if common > _IN_COMMON:
        features = [False] * len(features)
        correlation = np.array([correlation[0], 1.0])
    links = []
    for x, y, cross, axes in ((a, b, crosses[1], places[0]), (b, a, crosses[0], places[1])):
        terms = products / max(x.size, 1)
        pooled = None
        if not a.label and not b.label:
            # Logits: with a gradient in common, what positions of queries share adds up in a key.
            together = terms * (y.second + max(terms - 1, 0.0) * cross)
            pooled = np.stack([terms * y.second, np.maximum(terms * y.second, together)], axis=1)
        links.append(Link(x.number, gain=both(terms * y.second), pooled=pooled, axes=axes))
    label = f"{a.label} {b.label}" if a.label and b.label else None
    lost = a.lost or b.lost
    found = world.normal(
        mean, variance, shape, features, links, correlation, roots, lost=lost, label=label
    )
    for source in found.sources if roots is None else ():
        world.calls[source] = frozenset((x.label, found.number) for x in (a, b) if x.label)
    return found


def _attention(
    world: World, a: Field, b: Field, axes: Any, shape: Sequence[int], features: Sequence[int]
) -> Field | None:
    """Mean of values, weighted by attention: between equal weights and independent logits."""
    p, values = (a, b) if a.simplex else (b, a)
    simplex = p.simplex
    (summed,) = (axes[0] if p is a else axes[1],)
    if simplex is None or len(summed) != 1 or p.shape[summed[0]] != simplex.keys:
        return None
    together, _ = concentration(simplex)
    shared = np.clip(world.cross(values), values.mean**2, values.second)
    second = together * (values.second - shared) + shared
    variance = np.maximum(second - values.mean**2, 0.0)
    products = math.prod(shape) * simplex.keys
    queries = products / max(values.size, 1)
    to_values = queries * together / simplex.keys
    to_weights = products / max(p.size, 1) * (values.second - shared)
    pooled = both((queries / simplex.keys) ** 2 * simplex.unevenness * np.ones(tables.ROWS))
    links = [
        Link(values.number, gain=both(to_values), pooled=pooled),
        Link(p.number, gain=both(to_weights)),
    ]
    spread = np.where(variance > 0, variance, 1.0)
    correlation = np.clip((shared - values.mean**2) / spread, 0.0, 1.0)
    correlation = np.array([correlation[0], 1.0])
    roots = world.all_roots(values)
    lost = p.lost or values.lost
    return world.normal(
        values.mean, variance, shape, features, links, correlation, roots, lost=lost
    )


def _features_of_dot(node: Node, a: Field, b: Field) -> list[int]:
    (sum_a, sum_b), (batch_a, batch_b) = node.params["dimension_numbers"]
    batch = [a.features[i] or b.features[j] for i, j in zip(batch_a, batch_b, strict=True)]
    free = [
        flag
        for field, used in ((a, (*sum_a, *batch_a)), (b, (*sum_b, *batch_b)))
        for axis, flag in enumerate(_after_map(field))
        if axis not in used
    ]
    return [*batch, *free]


def _places_of_dot(node: Node, a: Field, b: Field) -> list[tuple[int | None, ...]]:
    """For each operand and each of its axes, the axis of the output that it became."""
    (sum_a, sum_b), (batch_a, batch_b) = node.params["dimension_numbers"]
    reached, found = len(batch_a), []
    for field, summed, batch in ((a, sum_a, batch_a), (b, sum_b, batch_b)):
        places: list[int | None] = []
        for axis in range(len(field.shape)):
            if axis in batch:
                places.append(tuple(batch).index(axis))
            elif axis in summed:
                places.append(None)
            else:
                places.append(reached)
                reached += 1
        found.append(tuple(places))
    return found


def _after_map(field: Field) -> Sequence[int]:
    """Flags of data behind a map: units of data with a mean share what the map makes of it."""
    shared = np.any(field.mean**2 > _IN_COMMON * field.second)
    if field.label or not shared:
        return field.features
    return [PARTLY if flag else flag for flag in field.features]


def _features_of_convolution(node: Node, a: Field, shape: Sequence[int]) -> list[int]:
    numbers = node.params["dimension_numbers"]
    features: list[int] = [0] * len(shape)
    features[numbers.out_spec[0]] = a.features[numbers.lhs_spec[0]]
    features[numbers.out_spec[1]] = True
    return features


def taps(node: Node, data: Sequence[int], kernel: Sequence[int], out: Sequence[int]) -> float:
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
