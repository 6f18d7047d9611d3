"""Rules for equations that move entries: what they do to the dimensions of a view, or of data.

Moves at places that are known when the model is traced, sums over axes, lookups by number, and
writing into arrays.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, TypeAlias

import jax.extend.core as jex

from jaxinit.jaxpr import Class, MixedAxesError, Node
from jaxinit.reading._domain import ParameterDomain, rules
from jaxinit.reading._values import (
    CONSTANT,
    FEATURE,
    OTHER,
    Dimension,
    Piece,
    Value,
    View,
    axes_of,
    beside,
    changed,
    cut,
    cut_of,
    data,
    filler,
    moved,
    padded,
    parameters,
    plain,
    regrouped,
    resized,
    untagged,
)

Range: TypeAlias = tuple[int, int, int]


@rules(Class.REARRANGES, "sort")
def _stay(domain: ParameterDomain, node: Node, operands: list[Value]) -> list[Value]:
    """Casts, copies and barriers: every entry stays where it is; each result has its operand."""
    if len(node.outputs) > 1 or domain.shape(node.inputs[0]) == domain.shape(node.outputs[0]):
        return operands[: len(node.outputs)]
    return [_to_unknown(domain, node, operands[0])]


def _to_unknown(domain: ParameterDomain, node: Node, value: Value) -> Value:
    """A value after a move that no rule knows."""
    shape, why = domain.shape(node.outputs[0]), domain.describe(node)
    return changed(value, lambda view: view.unknown(shape, why), shape, why)


@rules("reshape", "expand_dims", "transpose", "squeeze", "broadcast_in_dim", "pad", "tile", "fft")
def _move(domain: ParameterDomain, node: Node, operands: list[Value]) -> list[Value]:
    shape, params = domain.shape(node.outputs[0]), node.params

    def change(view: View) -> View:
        match node.primitive:
            case "reshape" | "expand_dims":
                order = params.get("dimensions") if node.primitive == "reshape" else None
                ordered = view if order is None else view.with_dims(view.dims[n] for n in order)
                return regrouped(ordered, shape)
            case "pad":
                return padded(view, params["padding_config"])
            case "tile":
                pairs = zip(view.dims, params["reps"], strict=True)
                return view.with_dims(filler(int(count)) + dim for dim, count in pairs)
            case "fft":
                return resized(view, shape)
        return moved(view, node, shape, drops=True)

    return [changed(operands[0], change, shape, domain.describe(node))]


@rules(
    "cumlogsumexp", "cummax", "cummin", "cumprod", "cumsum",
    "reduce_window_max", "reduce_window_min", "reduce_window_sum",
)  # fmt: skip
def _along(domain: ParameterDomain, node: Node, operands: list[Value]) -> list[Value]:
    """Running sums and pooling: each axis stays one."""
    shape = domain.shape(node.outputs[0])
    change = functools.partial(resized, shape=shape)
    return [_summary(changed(operands[0], change, shape, domain.describe(node)))]


@rules(
    "argmax", "argmin", "reduce_and", "reduce_max", "reduce_min", "reduce_or", "reduce_prod",
    "reduce_xor",
)  # fmt: skip
def reduced(domain: ParameterDomain, node: Node, operands: list[Value]) -> list[Value]:
    """Sums and the like over whole axes."""
    shape = domain.shape(node.outputs[0])
    change = functools.partial(moved, node=node, shape=shape, drops=False)
    return [_summary(changed(operands[0], change, shape, domain.describe(node)))]


def _summary(value: Value) -> Value:
    """What is no rearrangement of its operand any more."""
    return dataclasses.replace(untagged(value), is_one_hot=False, is_iota=False)


@rules("slice")
def _slice(domain: ParameterDomain, node: Node, operands: list[Value]) -> list[Value]:
    params = node.params
    starts, limits = params["start_indices"], params["limit_indices"]
    steps = params["strides"] or (1,) * len(starts)
    ranges = tuple(zip(starts, limits, steps, strict=True))
    return [_sliced(domain, node, operands[0], ranges)]


@rules("split", "unstack")
def _split(domain: ParameterDomain, node: Node, operands: list[Value]) -> list[Value]:
    axis, whole = node.params["axis"], domain.shape(node.inputs[0])
    sizes = node.params.get("sizes", [1] * len(node.outputs))
    results, start = [], 0
    for output, size in zip(node.outputs, map(int, sizes), strict=True):
        ranges = [(0, n, 1) for n in whole]
        ranges[axis] = (start, start + size, 1)
        result = _sliced(domain, node, operands[0], ranges, output)
        shape = domain.shape(output)
        if len(shape) < len(whole):
            result = changed(result, functools.partial(_without, axis=axis), shape, "")
        results.append(result)
        start += size
    return results


def _without(view: View, axis: int) -> View:
    """A view without a dimension of size one."""
    dims = [dim for number, dim in enumerate(view.dims) if number != axis]
    return view.with_dims(dims, axes_of(view.dims[axis]))


def _sliced(
    domain: ParameterDomain,
    node: Node,
    value: Value,
    ranges: Sequence[Range],
    output: int | None = None,
) -> Value:
    """A slice of a value, by start, limit and step along every dimension."""

    def change(view: View) -> View:
        for number, (start, limit, step) in enumerate(ranges):
            view = cut(view, number, start, limit, step)
        return view

    shape = tuple(-(-(limit - start) // step) for start, limit, step in ranges)
    new = changed(value, change, shape, domain.describe(node))
    if not value.is_data:
        return parameters(view for view in new.views if _has_entries(view))
    for dim, (start, limit, step) in zip(value.dims, ranges, strict=True):
        found = cut_of(dim, start, limit, step)
        if found is not None:
            axis, first, last = found
            domain.notes.cut(axis, first, last, node.outputs[0] if output is None else output)
            new = dataclasses.replace(new, cuts=new.cuts | {(axis, first)})
    return new


def _has_entries(view: View) -> bool:
    """Whether a slice of concatenated arrays left anything of this one."""
    return all(piece.entries or not piece.size for piece in view.pieces())


@rules("concatenate", "stack")
def _join(domain: ParameterDomain, node: Node, operands: list[Value]) -> list[Value]:
    """Arrays side by side: views beside views make a view, beside data they enter the data."""
    shape, why = domain.shape(node.outputs[0]), domain.describe(node)
    is_stack = node.primitive == "stack"
    axis = node.params["axis" if is_stack else "dimension"]
    known = [value for value in operands if value.is_data]
    if not known:
        views, before = [], 0
        for atom, value in zip(node.inputs, operands, strict=True):
            place = functools.partial(
                _placed, axis=axis, before=before, total=shape[axis], is_new=is_stack
            )
            views += changed(value, place, shape, why).views
            before += 1 if is_stack else domain.shape(atom)[axis]
        return [parameters(views)]
    for value in operands:
        domain.enters(value, node, node.outputs[0])
    domain.notes.rejoin(operands)
    dims = list(known[0].dims)
    if is_stack:
        dims.insert(axis, (Piece(OTHER, shape[axis]),))
    else:
        first = dims[axis][0].axis if dims[axis] else OTHER
        dims[axis] = (Piece(min(first or FEATURE, OTHER), shape[axis]),)
    return [data(dims, is_real=any(value.is_real for value in known))]


def _placed(view: View, axis: int, before: int, total: int, is_new: bool) -> View:
    """A view beside others along an axis, which may be a new one."""
    if is_new:
        return view.with_dims([*view.dims[:axis], filler(total), *view.dims[axis:]])
    return beside(view, axis, before, total)


# Entries picked by number.


@rules("dynamic_slice")
def _dynamic_slice(domain: ParameterDomain, node: Node, operands: list[Value]) -> list[Value]:
    """A window whose place is computed: by a loop or a cache, or chosen by data."""
    operand, starts = operands[0], operands[1:]
    sizes, shape = node.params["slice_sizes"], domain.shape(node.inputs[0])
    by_data = any(value.is_real for value in starts)
    for value in starts:
        domain.picks(value, node)
    if operand.kind == "constant":
        return [plain(sizes, is_real=True) if by_data else CONSTANT]
    cuts = [number for number, (size, n) in enumerate(zip(sizes, shape, strict=True)) if size != n]
    # A loop's own counter picks a layer; what a cache counts picks a position.
    counted = all(value.kind == "constant" for value in starts) and any(
        sizes[number] == 1 for number in cuts
    )
    moving = any(not isinstance(node.inputs[1 + number], jex.Literal) for number in cuts)
    if operand.is_data and moving:
        return [plain(sizes, is_real=operand.is_real or by_data)]
    window = [number for number, size in enumerate(sizes) if size > 1]
    if operand.is_view and by_data and len(window) <= 1:
        for view in domain.readable(operand, node):
            _note_lookup(domain, node, view, cuts, window)
        dims = [(Piece(FEATURE if size > 1 else OTHER, size),) for size in sizes]
        return [data(dims, is_real=True)]
    ranges = []
    for atom, size, full in zip(node.inputs[1:], sizes, shape, strict=True):
        start = int(atom.val) if isinstance(atom, jex.Literal) else 0
        start = min(max(start, 0), full - size)
        ranges.append((start, start + size, 1))
    result = _sliced(domain, node, operand, ranges)
    if operand.is_data or not moving or counted:
        return [result]
    return [parameters(dataclasses.replace(view, is_indexed=True) for view in result.views)]


@rules("gather")
def _gather(domain: ParameterDomain, node: Node, operands: list[Value]) -> list[Value]:
    """Rows picked by a list of numbers."""
    operand, indices = operands
    shape = domain.shape(node.outputs[0])
    domain.picks(indices, node)
    if not operand.is_view:
        return [plain(shape, is_real=operand.is_real or indices.is_real)]
    numbers, sizes = node.params["dimension_numbers"], node.params["slice_sizes"]
    picked, batch = numbers.collapsed_slice_dims, numbers.operand_batching_dims
    window = [number for number in range(len(sizes)) if number not in (*picked, *batch)]
    if not indices.is_real or sum(sizes[number] > 1 for number in window) > 1:
        views = [_gathered(domain, node, view, window, indices.is_real) for view in operand.views]
        return [parameters(views)]
    for view in domain.readable(operand, node):
        _note_lookup(domain, node, view, picked, window, batch)
    offsets = numbers.offset_dims
    return [
        data(
            [(Piece(FEATURE if n in offsets else OTHER, size),) for n, size in enumerate(shape)],
            is_real=True,
        )
    ]


def _gathered(
    domain: ParameterDomain, node: Node, view: View, window: Sequence[int], by_data: bool
) -> View:
    """A view of the rows that were picked."""
    shape, why = domain.shape(node.outputs[0]), domain.describe(node)
    if view.why is not None:
        return view.unknown(shape, why)
    numbers, sizes = node.params["dimension_numbers"], node.params["slice_sizes"]
    gone = (*numbers.collapsed_slice_dims, *numbers.operand_batching_dims)
    axes = [piece.axis for piece in view.pieces(gone) if piece.axis is not None]
    rows = [number for number in range(len(shape)) if number not in numbers.offset_dims]
    dims: list[Dimension] = [filler(size) for size in shape]
    try:
        for place, number in zip(numbers.offset_dims, window, strict=True):
            dims[place] = cut(view, number, 0, sizes[number]).dims[number]
    except MixedAxesError:
        return view.unknown(shape, why)
    is_spread = by_data or not axes
    for place in rows if not is_spread else ():
        dims[place] = (Piece(axes[0], shape[place]),) if shape[place] != 1 else ()
    new = view.with_dims(dims, axes if is_spread or not rows else axes[1:])
    return dataclasses.replace(new, is_indexed=view.is_indexed or bool(rows))


def _note_lookup(
    domain: ParameterDomain,
    node: Node,
    view: View,
    picked: Sequence[int],
    window: Sequence[int],
    batch: Sequence[int] = (),
) -> None:
    """Notes an embedding: the axis of its rows counts as contracted, as with one-hot vectors."""
    rows = view.pieces(picked)
    columns = [piece for piece in view.pieces(window) if piece.axis not in axes_of(rows)]
    domain.note(view, domain.use(node, view, "embedding", rows, columns, view.pieces(batch)))


@rules("scatter", "scatter-add", "scatter-max", "scatter-min", "scatter-mul")
def _scatter(domain: ParameterDomain, node: Node, operands: list[Value]) -> list[Value]:
    operand, indices, update = operands
    return [_written(domain, node, operand, update, [indices])]


@rules("dynamic_update_slice")
def _update(domain: ParameterDomain, node: Node, operands: list[Value]) -> list[Value]:
    operand, update, *starts = operands
    return [_written(domain, node, operand, update, starts)]


def _written(
    domain: ParameterDomain, node: Node, operand: Value, update: Value, places: list[Value]
) -> Value:
    """Writing into an array: of data, or of a constant that is filled up with parameters."""
    shape = domain.shape(node.outputs[0])
    for value in places:
        domain.picks(value, node)
    values: list[Any] = [operand, update, *places]
    if not any(value.is_data for value in values):
        # What is written over stays where it was; what is written may lie anywhere.
        why = domain.describe(node)
        lies = [
            view if view in operand.views else view.unknown(shape, why) for view in update.views
        ]
        return parameters([*operand.views, *lies])
    for value in (operand, update):
        domain.enters(value, node, node.outputs[0])
    is_real = any(value.is_real for value in values)
    if operand.is_data:
        return dataclasses.replace(operand, is_real=is_real, product=())
    return plain(shape, is_real=is_real)
