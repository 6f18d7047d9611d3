"""Slices: of stacked values the one that was stacked, of others so many entries of the same law.

A loop stacks what its rounds make, and a slice of the stack is the result of one round; only there
do gradients go. So a slice is pushed back through whatever moved the entries since, to the stack.
Where it cannot be (a map or a normalisation lies between), the entries are taken to be like all
others, and the gradient remembers which positions it came from (:class:`Link`).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from jaxinit.jaxpr._graph import Node
from jaxinit.signal._elementwise import PRIMITIVES, Operand
from jaxinit.signal._fields import Field, Known, Made, World
from jaxinit.signal._movement import mixture

_MOVES = frozenset(["broadcast_in_dim", "reshape", "rev", "squeeze", "transpose", "expand_dims"])


def remember(
    world: World,
    node: Node,
    operands: Sequence[Operand],
    avals: Sequence[Any],
    results: Sequence[Operand],
    apply: Callable[..., list[Operand]],
) -> None:
    """Notes how a field was made from a stacked one, so that slices of it find the stack.

    Args:
        world: all fields.
        node: the equation.
        operands: what it read.
        avals: shape and dtype of its results.
        results: what it made.
        apply: runs the node again, on a slice.
    """
    fields = [x for x in operands if isinstance(x, Field)]
    if len(fields) != 1 or node.primitive not in PRIMITIVES | _MOVES:
        return
    if fields[0].number in world.stacks or fields[0].number in world.made:
        for result in results:
            if isinstance(result, Field):
                world.made.setdefault(result.number, Made(node, tuple(operands), avals[0], apply))


def cut(world: World, value: Operand, axis: int, start: int, stop: int) -> Operand | None:
    """Entries from ``start`` to ``stop`` along an axis, if it is known what they were made of.

    Args:
        world: all fields.
        value: what to slice.
        axis: along which axis.
        start: first entry.
        stop: the entry after the last.
    """
    if isinstance(value, Known):
        return _cut_known(value, axis, start, stop)
    if (start, stop) == (0, value.shape[axis]):
        return value
    key = ("cut", value.number, axis, start, stop)
    if key not in world.parts:
        found = None
        if value.number in world.stacks:
            found = _cut_stack(world, value, axis, start, stop)
        elif value.number in world.made:
            found = _cut_made(world, world.made[value.number], axis, start, stop)
        if found is None:
            return None
        world.parts[key] = found
    return world.parts[key]


def _cut_known(value: Known, axis: int, start: int, stop: int) -> Known:
    shape = (*value.shape[:axis], stop - start, *value.shape[axis + 1 :])
    if value.array is None:
        return Known(None, shape)
    places = (*[slice(None)] * axis, slice(start, stop))
    return Known(value.array[places], shape)


def _cut_stack(world: World, field: Field, axis: int, start: int, stop: int) -> Operand | None:
    along, parts = world.stacks[field.number]
    if axis != along:
        return None
    pieces: list[Operand] = []
    reached = 0
    for piece in parts:
        first, last = max(start - reached, 0), min(stop - reached, piece.shape[axis])
        reached += piece.shape[axis]
        if first >= last:
            continue
        own = cut(world, piece, axis, first, last)
        if own is None:
            assert isinstance(piece, Field)
            own = others(world, piece, resized(piece.shape, axis, last - first))
        pieces.append(own)
    if len(pieces) == 1:
        return pieces[0]
    return mixture(world, pieces, resized(field.shape, axis, stop - start), field.features, axis)


def _cut_made(world: World, made: Made, axis: int, start: int, stop: int) -> Operand | None:
    """Slices the operands instead, and makes the result of that."""
    field = next(x for x in made.operands if isinstance(x, Field))
    before, node = _axis_before(made.node, field.shape, made.aval.shape, axis), made.node
    if before is None:
        return None
    if node.primitive == "rev" and axis in node.params["dimensions"]:
        start, stop = field.shape[axis] - stop, field.shape[axis] - start
    operands: list[Operand | None] = []
    for x in made.operands:
        if x is field or (len(x.shape) == len(field.shape) and x.shape[before] > 1):
            operands.append(cut(world, x, before, start, stop))
        else:
            operands.append(x)
    if any(x is None for x in operands):
        return None
    shape = resized(made.aval.shape, axis, stop - start)
    if node.primitive == "broadcast_in_dim":
        node = dataclasses.replace(node, params={**node.params, "shape": shape})
    aval = jax.ShapeDtypeStruct(shape, made.aval.dtype)
    return made.apply(world, node, operands, [aval])[0]


def _axis_before(node: Node, old: Sequence[int], new: Sequence[int], axis: int) -> int | None:
    """The axis of the operand that an axis of the result is; None where it is not one alone."""
    name = node.primitive
    if name == "transpose":
        return node.params["permutation"][axis]
    if name == "squeeze":
        return [i for i in range(len(old)) if i not in node.params["dimensions"]][axis]
    if name == "broadcast_in_dim":
        places = node.params["broadcast_dimensions"]
        found = places.index(axis) if axis in places else None
    elif name in ("reshape", "expand_dims"):
        sizes = [math.prod(old[:i]) for i in range(len(old))]
        matching = [i for i, n in enumerate(sizes) if n == math.prod(new[:axis])]
        found = next((i for i in matching if old[i] == new[axis]), None)
    else:
        found = axis
    return None if found is None or old[found] != new[axis] else found


def part(world: World, node: Node, operands: Any, avals: Any) -> list[Operand]:
    """A slice, at a place that is known or not."""
    field, shape = operands[0], avals[0].shape
    starts: Sequence[int | None] = [None] * len(shape)
    if node.primitive == "slice" and set(node.params["strides"] or [1]) == {1}:
        starts = node.params["start_indices"]
    elif node.primitive == "dynamic_slice":
        starts = place_of(operands[1:], field.shape, shape)
    key = (field.number, node.primitive, str(node.params), node.inputs[1:])
    return [_sliced(world, field, starts, shape, key)]


def place_of(starts: Sequence[Any], whole: Sequence[int], shape: Sequence[int]) -> list[int | None]:
    """Where a dynamic slice begins along each axis; None where data decide.

    Args:
        starts: operands of the primitive that say it.
        whole: shape that is sliced.
        shape: shape of the slice.
    """
    arrays = [x.array if isinstance(x, Known) else None for x in starts]
    return [
        None if a is None else int(np.clip(int(a), 0, n - m))
        for a, n, m in zip(arrays, whole, shape, strict=True)
    ]


def split(world: World, node: Node, operands: Any, avals: Any) -> list[Operand]:
    """Several slices that follow each other along an axis."""
    (field,), axis, reached = operands, node.params["axis"], 0
    results = []
    for aval in avals:
        starts = [reached if i == axis else 0 for i in range(len(aval.shape))]
        key = (field.number, "split", axis, reached)
        results.append(_sliced(world, field, starts, aval.shape, key))
        reached += aval.shape[axis]
    return results


def _sliced(
    world: World, field: Field, starts: Sequence[int | None], shape: Sequence[int], key: Any
) -> Operand:
    """A slice along several axes: pushed back along those where that can be done."""
    value: Operand = field
    for axis, (start, length) in enumerate(zip(starts, shape, strict=True)):
        if start is not None and length != field.shape[axis]:
            value = cut(world, value, axis, start, start + length) or value
    if value.shape == tuple(shape) or isinstance(value, Known):
        return value
    if key not in world.parts:
        world.parts[key] = others(world, value, shape, starts)
    return world.parts[key]


def others(
    world: World,
    field: Field,
    shape: Sequence[int],
    starts: Sequence[int | None] | None = None,
) -> Field:
    """Some of the entries. Other units are other draws; other positions share what is shared."""
    missing = [i for i, n in enumerate(shape) if n != field.shape[i]]
    independent = any(field.features[i] for i in missing)
    positions = [i for i in missing if not field.features[i]]
    profile = None
    if len(positions) == 1 and not field.label:
        (axis,) = positions
        start = (starts[axis] if starts is not None else 0) or 0
        profile = np.zeros(field.shape[axis])
        profile[start : start + shape[axis]] = field.shape[axis] / shape[axis]
    share = math.prod(shape) / max(field.size, 1)
    return world.other_entries(
        field, shape, field.features, share, independent=independent, profile=profile
    )


def taken(world: World, value: Field, number: int) -> Operand:
    """One entry of the leading axis: of a stack a round, of a parameter the draws of one layer."""
    shape, features = value.shape[1:], value.features[1:]
    found = cut(world, value, 0, number, number + 1)
    if isinstance(found, Known):
        array = None if found.array is None else found.array[0]
        return Known(array, tuple(shape))
    if found is not None:
        return world.view(found, shape, features)
    own = bool(value.features[0]) or value.label is not None
    profile = None
    if not own:
        profile = np.zeros(value.shape[0])
        profile[number] = value.shape[0]
    gain = 1 / max(value.shape[0], 1)
    return world.other_entries(value, shape, features, gain, independent=own, profile=profile)


def gather(world: World, node: Node, operands: Any, avals: Any) -> list[Operand]:
    """Entries that integers choose: rows of an embedding, or one position of many."""
    field, index = operands[:2]
    numbers, shape = node.params["dimension_numbers"], avals[0].shape
    gone = (*numbers.collapsed_slice_dims, *numbers.operand_batching_dims)
    left = [flag for axis, flag in enumerate(field.features) if axis not in gone]
    features = [False] * len(shape)
    for place, flag in zip(numbers.offset_dims, left, strict=True):
        features[place] = flag
    share = math.prod(shape) / max(field.size, 1)
    profile = None
    chosen = [i for i in numbers.start_index_map if not field.features[i]]
    if not field.label and len(chosen) == 1:
        # All that come may come from one position.
        profile = np.zeros(field.shape[chosen[0]])
        profile[:1] = len(profile)
    new = world.other_entries(
        field,
        shape,
        features,
        share,
        independent=True,
        label=None,
        profile=profile,
        chosen=field.label,
    )
    if field.label:
        # Two tokens are the same one time in as many as there are.
        rows = max(math.prod(field.shape[i] for i in numbers.start_index_map), 1)
        known = isinstance(index, Known) and index.array is not None
        for source in new.sources:
            world.correlations[source] = np.array([0.0, 1.0]) if known else np.full(2, 1 / rows)
    return [new]


def resized(shape: Sequence[int], axis: int, length: int) -> tuple[int, ...]:
    """A shape with another length of one axis."""
    return (*shape[:axis], length, *shape[axis + 1 :])
