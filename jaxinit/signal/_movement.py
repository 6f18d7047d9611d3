"""Rules of primitives that move entries and change none, and of values laid side by side.

Every rule is a function ``(world, node, operands, avals) -> results``, as in
:mod:`jaxinit.signal._moments`; the first operand is a field.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jaxinit.jaxpr._graph import Node
from jaxinit.signal import _tables as tables
from jaxinit.signal._elementwise import Operand, known_as_field
from jaxinit.signal._fields import Field, World
from jaxinit.signal._links import Link, both


def reshape(world: World, node: Node, operands: Any, avals: Any) -> list[Operand]:
    """The same entries in another shape."""
    (field, *_), shape = operands, avals[0].shape
    return [world.view(field, shape, reshaped(field.shape, shape, field.features))]


def reshaped(old: Sequence[int], new: Sequence[int], flags: Sequence[int]) -> list[int]:
    """Flags of axes after a reshape: axes that share entries share the flag of any of them."""
    result = [0] * len(new)
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
        flag = max((flags[k] for k in range(start_i, i) if old[k] > 1), default=0)
        for k in range(start_j, j):
            result[k] = flag if new[k] > 1 else 0
    return result


def transpose(world: World, node: Node, operands: Any, avals: Any) -> list[Operand]:
    """The same entries, axes in another order."""
    order = node.params["permutation"]
    field = operands[0]
    axes = [order.index(i) for i in range(len(order))]
    new = world.view(field, avals[0].shape, [field.features[i] for i in order], axes)
    return [_with_mask(world, field, new, lambda mask: np.transpose(mask, order))]


def broadcast_in_dim(world: World, node: Node, operands: Any, avals: Any) -> list[Operand]:
    """The same entries, each several times."""
    field, shape = operands[0], avals[0].shape
    places = tuple(node.params["broadcast_dimensions"])
    new = world.copies(field, shape, places)
    return [_with_mask(world, field, new, lambda mask: broadcast(mask, node.params))]


def squeeze(world: World, node: Node, operands: Any, avals: Any) -> list[Operand]:
    """The same entries without axes of length 1."""
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


def broadcast(array: np.ndarray, params: Any) -> np.ndarray:
    """A view: a mask of all heads and samples costs what one costs."""
    shape = [1] * len(params["shape"])
    for axis, place in enumerate(params["broadcast_dimensions"]):
        shape[place] = array.shape[axis]
    return np.broadcast_to(array.reshape(shape), params["shape"])


def mixture(
    world: World,
    parts: Sequence[Operand],
    shape: Sequence[int],
    features: Sequence[int],
    axis: int | None = None,
    sizes: Sequence[float] | None = None,
) -> Field:
    """Entries of which so many come from each part.

    Args:
        world: where it is made.
        parts: the values.
        shape: shape of the result.
        features: which of its axes hold independent units.
        axis: along which axis the values lie side by side, one after the other, if they do.
        sizes: how many entries come from each; the sizes of the parts by default.
    """
    fields = [x if isinstance(x, Field) else known_as_field(world, x) for x in parts]
    fields = [world.compressed(x) for x in fields]
    sizes = [math.prod(x.shape) for x in parts] if sizes is None else sizes
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
    stacked = axis is not None and not features[axis]
    links = [Link(x.number, gain=both(1.0), stacked=stacked) for x in fields]
    lost = next((x.lost for x in fields if x.lost), None)
    labels = [x.label for x in fields]
    label = labels[0] if all(labels) else None
    found = world.field(table, (source,), shape, features, links, lost=lost, label=label)
    if axis is not None:
        world.stacks[found.number] = axis, tuple(parts)
    return found


def permuted(world: World, node: Node, operands: Any, avals: Any) -> list[Operand]:
    """The same entries in another order."""
    field = operands[0]
    return [world.other_entries(field, field.shape, field.features, 1.0, independent=False)]
