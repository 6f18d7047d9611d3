"""Entries picked by number: lookups in tables, slices at moving places, and writing into arrays."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax.extend.core as jex

from jaxinit.jaxpr._graph import Node
from jaxinit.reading import _views as views
from jaxinit.reading._records import Use
from jaxinit.reading._shapes import sliced
from jaxinit.reading._values import (
    CONSTANT,
    FEATURE,
    OTHER,
    Value,
    data,
    mapped,
    opaque,
    plain,
    view,
)
from jaxinit.reading._views import Dimension, Part, Piece
from jaxinit.reading._walk import Walk


def dynamic_slice(walk: Walk, node: Node, values: list[Value]) -> list[Value]:
    """A window whose place is computed: by a loop or a cache, or chosen by data."""
    operand, starts = values[0], values[1:]
    sizes, shape = node.params["slice_sizes"], walk.shape(node.inputs[0])
    by_data = any(value.is_real for value in starts)
    for value in starts:
        walk.picks(value, node)
    if operand.kind == "constant":
        return [plain(sizes, is_real=True) if by_data else CONSTANT]
    # A loop's own counter picks a layer; what a cache counts picks a position.
    counted = all(value.kind == "constant" for value in starts) and any(
        size == 1 != full for size, full in zip(sizes, shape, strict=True)
    )
    moving = any(
        not isinstance(atom, jex.Literal) and size != full
        for atom, size, full in zip(node.inputs[1:], sizes, shape, strict=True)
    )
    places = [int(atom.val) if isinstance(atom, jex.Literal) else 0 for atom in node.inputs[1:]]
    ranges = [
        (min(max(place, 0), full - size), min(max(place, 0), full - size) + size, 1)
        for place, size, full in zip(places, sizes, shape, strict=True)
    ]
    if operand.is_data:
        new = plain(sizes, is_real=operand.is_real or by_data)
        return [new if moving else sliced(walk, node, operand, ranges, 0)]
    window = [number for number, size in enumerate(sizes) if size > 1]
    if not by_data or len(window) > 1:
        result = sliced(walk, node, operand, ranges, 0)
        parts = [
            dataclasses.replace(
                part,
                is_indexed=part.is_indexed or (moving and not counted),
                is_chosen=part.is_chosen or by_data,
            )
            for part in result.parts
        ]
        return [view(parts)]
    chosen = [
        number for number, (size, full) in enumerate(zip(sizes, shape, strict=True)) if size != full
    ]
    for part in operand.parts:
        _note_lookup(walk, node, part, chosen, window, ())
    dims = [(Piece(FEATURE if size > 1 else OTHER, size),) for size in sizes]
    return [data(dims, is_real=True)]


def gather(walk: Walk, node: Node, values: list[Value]) -> list[Value]:
    """Rows picked by a list of numbers."""
    operand, indices = values
    shape = walk.shape(node.outputs[0])
    walk.picks(indices, node)
    if not operand.is_view:
        is_real = operand.is_real or indices.is_real
        is_constant = operand.kind == "constant" and indices.kind == "constant"
        return [CONSTANT if is_constant else plain(shape, is_real=is_real)]
    numbers, sizes = node.params["dimension_numbers"], node.params["slice_sizes"]
    gone = (*numbers.collapsed_slice_dims, *numbers.operand_batching_dims)
    window = [number for number in range(len(sizes)) if number not in gone]
    if indices.is_real and sum(sizes[number] > 1 for number in window) < 2:
        picked = tuple(numbers.collapsed_slice_dims)
        for part in operand.parts:
            _note_lookup(walk, node, part, picked, window, numbers.operand_batching_dims)
        offsets = set(numbers.offset_dims)
        dims = [
            (Piece(FEATURE if number in offsets else OTHER, size),)
            for number, size in enumerate(shape)
        ]
        return [data(dims, is_real=True)]
    parts = [_gathered(walk, node, part, window, by_data=indices.is_real) for part in operand.parts]
    return [view(parts)]


def _gathered(walk: Walk, node: Node, part: Part, window: Sequence[int], *, by_data: bool) -> Part:
    """A view of the rows that were picked."""
    shape = walk.shape(node.outputs[0])
    if part.why is not None:
        return opaque(part, shape, part.why)
    numbers, sizes = node.params["dimension_numbers"], node.params["slice_sizes"]
    picked = [p for d in numbers.collapsed_slice_dims for p in part.dims[d]]
    repeated = [p for d in numbers.operand_batching_dims for p in part.dims[d]]
    axes = [piece.axis for piece in (*picked, *repeated) if piece.axis is not None]
    rows = [number for number in range(len(shape)) if number not in numbers.offset_dims]
    dims: list[Dimension] = [views.filler(size) for size in shape]
    try:
        for place, number in zip(numbers.offset_dims, window, strict=True):
            dims[place] = views.cut(part, number, 0, sizes[number]).dims[number]
    except views.Mixed:
        return opaque(part, shape, walk.spell(node))
    is_spread = by_data or not axes
    for place in rows if not is_spread else ():
        dims[place] = (Piece(axes[0], shape[place]),) if shape[place] != 1 else ()
    new = part.with_dims(dims, axes if is_spread or len(rows) == 0 else axes[1:])
    return dataclasses.replace(
        new, is_indexed=part.is_indexed or bool(rows), is_chosen=part.is_chosen or by_data
    )


def _note_lookup(
    walk: Walk,
    node: Node,
    part: Part,
    picked: Sequence[int],
    window: Sequence[int],
    batch: Sequence[int],
) -> None:
    """Notes an embedding: the axis of its rows counts as contracted, as with one-hot vectors."""
    if part.why is not None:
        walk.unknown(part, node.primitive, node, node.outputs[0])
        return

    def axes(dimensions: Sequence[int]) -> tuple[int, ...]:
        return views.axes_of(piece for number in dimensions for piece in part.dims[number])

    inner = axes(picked)
    use = Use(
        node.primitive,
        "embedding",
        contracted=inner,
        produced=tuple(axis for axis in axes(window) if axis not in inner),
        batched=walk.batched(part, [p for number in batch for p in part.dims[number]]),
        times=node.times,
        output=node.outputs[0],
    )
    walk.note(part, use)


def written(walk: Walk, node: Node, values: list[Value]) -> list[Value]:
    """Writing into an array: of data, or of a constant that is filled up with parameters."""
    shape = walk.shape(node.outputs[0])
    is_update = node.primitive == "dynamic_update_slice"
    operand, update = values[0], values[1 if is_update else 2]
    picks = values[2:] if is_update else values[1:2]
    for value in picks:
        walk.picks(value, node)
    if not any(value.is_data for value in values):
        parts = [part for value in (operand, update) for part in value.parts]
        if not parts:
            return [CONSTANT]
        why = walk.spell(node)
        return [view([_kept(part, operand, shape, why) for part in parts])]
    for value in (operand, update):
        walk.enters(value, node.primitive, node, node.outputs[0])
    is_real = any(value.is_real for value in values)
    if operand.is_data:
        return [mapped(dataclasses.replace(operand, is_real=is_real), lambda p: p, shape, "")]
    return [plain(shape, is_real=is_real)]


def _kept(part: Part, operand: Value, shape: tuple[int, ...], why: str) -> Part:
    """What is written over stays where it was; what is written may lie anywhere."""
    return part if part in operand.parts else opaque(part, shape, why)
