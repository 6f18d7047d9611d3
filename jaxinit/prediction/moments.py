"""The rules: what each primitive makes of fields, one line per primitive.

To teach the prediction a primitive, write a function ``(world, node, operands, avals) -> results``
and name it in `RULES`. What no rule is for is lost: the interval from 0 to infinity, until a
normalisation makes it known again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxinit.prediction import tables
from jaxinit.prediction.contractions import contract
from jaxinit.prediction.elementwise import (
    PRIMITIVES,
    Operand,
    elementwise,
    features_of,
    known_as_field,
)
from jaxinit.prediction.fields import Field, Known, Link, World, both
from jaxinit.prediction.statistics import cumulative_sum, largest, reduce_sum
from jaxinit.reading.graph import Node

Rule = Callable[[World, Node, Sequence[Any], Sequence[Any]], list[Operand]]

# Entries of a known array that is worth computing, such as a mask of 4,096 positions.
_MOST_KNOWN = 2**24


def apply_rule(
    world: World, node: Node, operands: Sequence[Operand], avals: Sequence[Any]
) -> list[Operand]:
    """Results of a node without bodies.

    Args:
        world: where fields are made.
        node: the equation.
        operands: what it reads.
        avals: shape and dtype of its results.
    """
    if not any(isinstance(x, Field) for x in operands):
        return _known(world, node, operands, avals)
    if node.primitive in PRIMITIVES:
        return [elementwise(world, node, operands, avals[0])]
    rule = RULES.get(node.primitive)
    return (
        _unknown(world, node, operands, avals)
        if rule is None
        else rule(world, node, operands, avals)
    )


def _known(
    world: World, node: Node, operands: Sequence[Operand], avals: Sequence[Any]
) -> list[Operand]:
    """Results that depend on no parameter and no real number of the data."""
    known = [x for x in operands if isinstance(x, Known)]
    if node.primitive == "bitcast_convert_type" and jnp.issubdtype(avals[0].dtype, np.floating):
        # Random bits as a float between 1 and 2, which is how JAX draws uniform numbers.
        table, source = tables.uniform() + 1.0, world.source(0.0)
        shape = avals[0].shape
        # What they decide keeps the axes of what it is decided for.
        return [world.field(table, (source,), shape, [False] * len(shape))]
    computable = all(x.array is not None for x in known) and all(
        math.prod(a.shape) <= _MOST_KNOWN and not _is_key(a) for a in avals
    )
    if (
        not computable
        or node.equation is None
        or node.bodies
        or node.primitive.startswith("random")
    ):
        return _unknown(world, node, operands, avals)
    arrays = [np.asarray(x.array) for x in known]
    if node.primitive == "broadcast_in_dim":
        return [Known(_broadcast(arrays[0], node.params), avals[0].shape)]
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        primitive = node.equation.primitive
        found = primitive.bind(*map(jnp.asarray, arrays), **node.equation.params)
    found = found if primitive.multiple_results else [found]
    return [Known(np.asarray(x), tuple(x.shape)) for x in found]


def _is_key(aval: Any) -> bool:
    return jnp.issubdtype(aval.dtype, jax.dtypes.prng_key)


def _broadcast(array: np.ndarray, params: Any) -> np.ndarray:
    """A view: a mask of all heads and samples costs what one costs."""
    shape = [1] * len(params["shape"])
    for axis, place in enumerate(params["broadcast_dimensions"]):
        shape[place] = array.shape[axis]
    return np.broadcast_to(array.reshape(shape), params["shape"])


def _unknown(
    world: World, node: Node, operands: Sequence[Operand], avals: Sequence[Any]
) -> list[Operand]:
    fields = [x for x in operands if isinstance(x, Field)]
    why = f"no rule for {node.primitive}"
    return [
        world.lost(why, a.shape, fields)
        if not _is_key(a) and jnp.issubdtype(a.dtype, np.inexact)
        else Known(None, a.shape)
        for a in avals
    ]


def _reshape(world: World, node: Node, operands: Any, avals: Any) -> list[Operand]:
    (field, *_), shape = operands, avals[0].shape
    return [world.view(field, shape, reshaped(field.shape, shape, field.features))]


def reshaped(old: Sequence[int], new: Sequence[int], flags: Sequence[bool]) -> list[bool]:
    """Flags of axes after a reshape: axes that share entries share the flag of any of them."""
    result = [False] * len(new)
    i = j = 0
    while i < len(old) and j < len(new):
        start_i, start_j = i, j
        size_i, size_j = old[i], new[j]
        i, j = i + 1, j + 1
        while size_i != size_j and (i < len(old) or j < len(new)):
            if (size_i < size_j and i < len(old)) or j >= len(new):
                size_i, i = size_i * old[i], i + 1
            else:
                size_j, j = size_j * new[j], j + 1
        flag = any(flags[k] and old[k] > 1 for k in range(start_i, i))
        for k in range(start_j, j):
            result[k] = flag and new[k] > 1
    return result


def _transpose(world: World, node: Node, operands: Any, avals: Any) -> list[Operand]:
    order = node.params["permutation"]
    field = operands[0]
    new = world.view(field, avals[0].shape, [field.features[i] for i in order])
    return [_with_mask(world, field, new, lambda mask: np.transpose(mask, order))]


def _broadcast_in_dim(world: World, node: Node, operands: Any, avals: Any) -> list[Operand]:
    field, shape = operands[0], avals[0].shape
    features = [False] * len(shape)
    for axis, place in enumerate(node.params["broadcast_dimensions"]):
        features[place] = field.features[axis]
    gain = math.prod(shape) / max(field.size, 1)
    new = world.view(field, shape, features, gain)
    return [_with_mask(world, field, new, lambda mask: _broadcast(mask, node.params))]


def _squeeze(world: World, node: Node, operands: Any, avals: Any) -> list[Operand]:
    field, gone = operands[0], node.params["dimensions"]
    features = [flag for i, flag in enumerate(field.features) if i not in gone]
    new = world.view(field, avals[0].shape, features)
    return [_with_mask(world, field, new, lambda mask: np.squeeze(mask, gone))]


def _with_mask(world: World, field: Field, new: Field, move: Callable[[Any], Any]) -> Field:
    if field.mask is None:
        return new
    mask = move(np.broadcast_to(field.mask, field.shape))
    link = Link(new.number, slope=np.ones(tables.ROWS))
    return world.again(new, new.table, [link], mask=mask)


def _part(world: World, node: Node, operands: Any, avals: Any) -> list[Operand]:
    """Some of the entries. Other units are other draws; other positions share what is shared."""
    field = operands[0]
    if not isinstance(field, Field):
        return _unknown(world, node, operands, avals)
    results = []
    for place, aval in enumerate(avals):
        key = (field.number, node.primitive, str(node.params), node.inputs[1:], place)
        if key not in world.parts:
            cut = [i for i, n in enumerate(aval.shape) if n != field.shape[i]]
            independent = any(field.features[i] for i in cut)
            share = math.prod(aval.shape) / max(field.size, 1)
            world.parts[key] = world.other_entries(
                field, aval.shape, field.features, share, independent=independent
            )
        results.append(world.parts[key])
    return results


def _gather(world: World, node: Node, operands: Any, avals: Any) -> list[Operand]:
    """Entries that integers choose: rows of an embedding, or one position of many."""
    field, index = operands[:2]
    if not isinstance(field, Field):
        return _unknown(world, node, operands, avals)
    numbers, shape = node.params["dimension_numbers"], avals[0].shape
    taken = (*numbers.collapsed_slice_dims, *numbers.operand_batching_dims)
    left = [flag for axis, flag in enumerate(field.features) if axis not in taken]
    features = [False] * len(shape)
    for place, flag in zip(numbers.offset_dims, left, strict=True):
        features[place] = flag
    share = math.prod(shape) / max(field.size, 1)
    new = world.other_entries(field, shape, features, share, independent=True, label=None)
    if field.label:
        # Two tokens are the same one time in as many as there are.
        rows = max(math.prod(field.shape[i] for i in numbers.start_index_map), 1)
        known = isinstance(index, Known) and index.array is not None
        for source in new.sources:
            world.correlations[source] = np.array([0.0, 1.0]) if known else np.full(2, 1 / rows)
    return [new]


def mixture(
    world: World, parts: Sequence[Operand], sizes: Sequence[float], shape: Any, features: Any
) -> Field:
    """Entries of which so many come from each part."""
    fields = [x if isinstance(x, Field) else known_as_field(world, x) for x in parts]
    fields = [world.compressed(x) for x in fields]
    shares = np.asarray(sizes, dtype=float) / max(sum(sizes), 1e-300)
    columns = [
        np.broadcast_to(x.table if x.sources else x.table[:, None], (tables.ROWS, tables.NODES))
        for x in fields
    ]
    mass = np.concatenate([share * tables.weights() for share in shares])
    table, _ = tables.compress(np.concatenate(columns, axis=1), mass)
    roots = frozenset().union(*(world.all_roots(x) for x in fields))
    crossed = sum(
        s * np.maximum(world.cross(x) - x.mean**2, 0) for s, x in zip(shares, fields, strict=True)
    )
    mean = tables.expectation(table)
    spread = np.maximum(tables.expectation(table**2) - mean**2, 0.0)
    correlation = np.clip(crossed / np.where(spread > 0, spread, 1.0), 0.0, 1.0)
    source = world.source(correlation, roots)
    links = [Link(x.number, gain=both(1.0)) for x in fields]
    lost = next((x.lost for x in fields if x.lost), None)
    labels = [x.label for x in fields]
    label = labels[0] if all(labels) else None
    return world.field(table, (source,), shape, features, links, lost=lost, label=label)


def _concatenate(world: World, node: Node, operands: Any, avals: Any) -> list[Operand]:
    if any(isinstance(x, Known) and x.array is None for x in operands):
        return _unknown(world, node, operands, avals)
    fields = [x for x in operands if isinstance(x, Field)]
    along = range(len(avals[0].shape))
    features = [any(x.features[i] and x.shape[i] > 1 for x in fields) for i in along]
    sizes = [math.prod(x.shape) for x in operands]
    return [mixture(world, operands, sizes, avals[0].shape, features)]


def _pad(world: World, node: Node, operands: Any, avals: Any) -> list[Operand]:
    field = operands[0]
    if not isinstance(field, Field):
        return _unknown(world, node, operands, avals)
    total = math.prod(avals[0].shape)
    inside = min(field.size, total)
    return [mixture(world, operands, [inside, total - inside], avals[0].shape, field.features)]


def _update(world: World, node: Node, operands: Any, avals: Any) -> list[Operand]:
    whole, part = operands[:2]
    if any(isinstance(x, Known) and x.array is None for x in (whole, part)):
        return _unknown(world, node, operands, avals)
    inside, total = math.prod(part.shape), math.prod(whole.shape)
    fields = [x for x in (whole, part) if isinstance(x, Field)]
    sizes = [total - inside, inside]
    return [mixture(world, [whole, part], sizes, avals[0].shape, features_of(fields, whole.shape))]


def _reduce_sum(world: World, node: Node, operands: Any, avals: Any) -> list[Operand]:
    return [reduce_sum(world, operands[0], node.params["axes"], avals[0].shape)]


def _reduce_max(world: World, node: Node, operands: Any, avals: Any) -> list[Operand]:
    field, shape, axes = world.compressed(operands[0]), avals[0].shape, node.params["axes"]
    features = [flag for i, flag in enumerate(field.features) if i not in axes]
    if not field.sources:
        return [world.view(field, shape, features)]
    count = max(field.size // max(math.prod(shape), 1), 1)
    table_of = (
        field
        if node.primitive == "reduce_max"
        else world.again(
            field, -field.table[:, ::-1], [Link(field.number, slope=-np.ones(tables.ROWS))]
        )
    )
    found = largest(world, table_of, count, shape, features)
    if node.primitive == "reduce_min":
        found = world.again(found, -found.table[:, ::-1], [Link(found.number, slope=-np.ones(2))])
    return [found]


def _window(world: World, node: Node, operands: Any, avals: Any) -> list[Operand]:
    """Pooling: the largest of a window, or its sum."""
    field, shape = world.compressed(operands[0]), avals[0].shape
    count = math.prod(node.params["window_dimensions"])
    if node.primitive == "reduce_window_max":
        return [largest(world, field, count, shape, field.features)] if field.sources else [field]
    crossed = world.cross(field)
    second = count * field.second + count * (count - 1) * crossed
    mean = count * field.mean
    gain = count * math.prod(shape) / max(field.size, 1)
    variance = np.maximum(second - mean**2, 0.0)
    above = count**2 * (crossed - field.mean**2) / np.where(variance > 0, variance, 1.0)
    return [
        world.normal(
            mean,
            variance,
            shape,
            field.features,
            [Link(field.number, gain=both(gain))],
            np.clip(above, 0.0, 1.0),
            world.all_roots(field),
            lost=field.lost,
        )
    ]


def _cumsum(world: World, node: Node, operands: Any, avals: Any) -> list[Operand]:
    return [cumulative_sum(world, world.compressed(operands[0]), node.params["axis"])]


def _contract(world: World, node: Node, operands: Any, avals: Any) -> list[Operand]:
    return [contract(world, node, operands, avals[0])]


def _permuted(world: World, node: Node, operands: Any, avals: Any) -> list[Operand]:
    field = operands[0]
    if not isinstance(field, Field):
        return _unknown(world, node, operands, avals)
    return [world.other_entries(field, field.shape, field.features, 1.0, independent=False)]


RULES: dict[str, Rule] = {
    "broadcast_in_dim": _broadcast_in_dim,
    "concatenate": _concatenate,
    "conv_general_dilated": _contract,
    "cumsum": _cumsum,
    "dot_general": _contract,
    "dynamic_slice": _part,
    "dynamic_update_slice": _update,
    "expand_dims": _reshape,
    "gather": _gather,
    "pad": _pad,
    "reduce_max": _reduce_max,
    "reduce_min": _reduce_max,
    "reduce_sum": _reduce_sum,
    "reduce_window_max": _window,
    "reduce_window_sum": _window,
    "reshape": _reshape,
    "rev": _permuted,
    "slice": _part,
    "split": _part,
    "squeeze": _squeeze,
    "transpose": _transpose,
}
