"""Rules for equations that move entries: what they do to the dimensions of a view, or of data.

Moves at places that are known when the model is traced, sums over axes, lookups by number, and
writing into arrays.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

import jax.extend.core as jex

from jaxinit.jaxpr import OVER_AXES, POOLING, Class, Node, is_integral
from jaxinit.reading._domain import (
    CONSTANT,
    FEATURE,
    OTHER,
    Cut,
    Dimension,
    ParameterDomain,
    Piece,
    Value,
    View,
    axes_of,
    cut_of,
    data,
    data_of,
    filler,
    parameters,
    rules,
    untagged,
)
from jaxinit.reading._records import Through


@rules(Class.REARRANGES, "sort")
def _stay(domain: ParameterDomain, node: Node, operands: list[Value]) -> list[Value]:
    """Casts, copies and barriers: every entry stays where it is; each result has its operand."""
    results = operands[: len(node.outputs)]
    avals = [domain.graph.aval(atom) for atom in (node.inputs[0], node.outputs[0])]
    if node.primitive == "convert_element_type" and [*map(is_integral, avals)] == [False, True]:
        return [_through_all(v, lambda t: t.powered(None, node.primitive)) for v in results]
    return results


@rules("reshape", "expand_dims", "transpose", "squeeze", "broadcast_in_dim", "pad", "tile", "fft")
def _move(domain: ParameterDomain, node: Node, operands: list[Value]) -> list[Value]:
    shape, params = domain.shape(node.outputs[0]), node.params

    def change(view: View) -> View:
        match node.primitive:
            case "reshape" | "expand_dims":
                order = params.get("dimensions") if node.primitive == "reshape" else None
                ordered = view if order is None else view.with_dims(view.dims[n] for n in order)
                return ordered.regrouped(shape)
            case "pad":
                return view.padded(params["padding_config"])
            case "tile":
                pairs = zip(view.dims, params["reps"], strict=True)
                return view.with_dims(filler(int(count)) + dim for dim, count in pairs)
            case "fft":
                rank = len(shape)
                return view.transformed(range(rank - len(params["fft_lengths"]), rank), shape)
        return view.moved(node, shape, drops=True)

    return [domain.changed(node, operands[0], change)]


@rules("cumlogsumexp", "cummax", "cummin", "cumprod", "cumsum", *POOLING)
def _along(domain: ParameterDomain, node: Node, operands: list[Value]) -> list[Value]:
    """Running sums and pooling: each axis stays one."""
    shape = domain.shape(node.outputs[0])
    result = domain.changed(node, operands[0], lambda view: view.resized(shape))
    return [_summary(_through_all(result, lambda through: through.times(None)))]


@rules("argmax", "argmin", *OVER_AXES)
def reduced(domain: ParameterDomain, node: Node, operands: Sequence[Value]) -> list[Value]:
    """Sums and the like over whole axes."""
    shape = domain.shape(node.outputs[0])
    result = domain.changed(node, operands[0], lambda view: view.moved(node, shape, drops=False))
    count = math.prod(domain.shape(node.inputs[0])) / max(math.prod(shape), 1)

    def change(through: Through) -> Through:
        if node.primitive != "reduce_sum":
            is_end = node.primitive in ("reduce_max", "reduce_min")
            return through.powered(1.0 if is_end else None, node.primitive).times(None)
        # Terms that are independent add their variances, squares add up.
        if through.degree == 1 and not through.functions:
            return through.times(math.sqrt(count))
        return through.times(count if through.degree == 2 else None)

    return [_summary(_through_all(result, change))]


def _through_all(value: Value, change: Callable[[Through], Through]) -> Value:
    """A value whose parameters went through one thing more."""
    made_of = tuple((leaf, change(through)) for leaf, through in value.made_of)
    if not value.is_view:
        return dataclasses.replace(value, made_of=made_of)
    return parameters(
        dataclasses.replace(view, through=change(view.through)) for view in value.views
    )


def _summary(value: Value) -> Value:
    """What is no rearrangement of its operand any more."""
    return dataclasses.replace(untagged(value), is_one_hot=False, is_iota=False)


@rules("slice")
def _slice(domain: ParameterDomain, node: Node, operands: list[Value]) -> list[Value]:
    params = node.params
    starts, limits = params["start_indices"], params["limit_indices"]
    steps = params["strides"] or (1,) * len(starts)
    ranges = tuple(zip(starts, limits, steps, strict=True))
    return [_sliced(domain, node, operands[0], ranges, node.outputs[0])]


@rules("split", "unstack")
def _split(domain: ParameterDomain, node: Node, operands: list[Value]) -> list[Value]:
    axis, whole = node.params["axis"], domain.shape(node.inputs[0])
    is_split = node.primitive == "split"
    sizes = map(int, node.params["sizes"]) if is_split else [1] * len(node.outputs)
    results, start = [], 0
    for output, size in zip(node.outputs, sizes, strict=True):
        ranges = [(0, n, 1) for n in whole]
        ranges[axis] = (start, start + size, 1)
        squeezed = None if is_split else axis
        results.append(_sliced(domain, node, operands[0], ranges, output, squeezed))
        start += size
    return results


def _sliced(
    domain: ParameterDomain,
    node: Node,
    value: Value,
    ranges: Sequence[tuple[int, int, int]],
    output: int,
    squeezed: int | None = None,
) -> Value:
    """A slice of a value.

    Args:
        domain: the domain, which notes slices of kernel outputs.
        node: the equation.
        value: what is cut.
        ranges: start, limit and step along every dimension.
        output: number of the result.
        squeezed: a dimension of size one that the result lacks.
    """

    def change(view: View) -> View:
        for number, (start, limit, step) in enumerate(ranges):
            view = view.cut(number, start, limit, step)
        if squeezed is None:
            return view
        dims = [dim for number, dim in enumerate(view.dims) if number != squeezed]
        return view.with_dims(dims, axes_of(view.dims[squeezed]))

    new = domain.changed(node, value, change, output)
    if not value.is_data:
        # Of concatenated arrays a slice may leave no entries.
        return parameters(
            view
            for view in new.views
            if all(piece.entries or not piece.size for piece in view.pieces())
        )
    new = dataclasses.replace(new, product=())
    for dim, (start, limit, step) in zip(value.dims, ranges, strict=True):
        found = cut_of(dim, start, limit, step)
        if found is not None:
            axis, first, last = found
            domain.notes.cut(axis, first, last, output)
            new = dataclasses.replace(new, cuts=new.cuts | {Cut(axis, first)})
    return new


@rules("concatenate", "stack")
def _join(domain: ParameterDomain, node: Node, operands: list[Value]) -> list[Value]:
    """Arrays side by side: views beside views make a view, beside data they enter the data."""
    is_stack, total = node.primitive == "stack", domain.shape(node.outputs[0])
    axis = node.params["axis" if is_stack else "dimension"]
    known = [value for value in operands if value.is_data]
    if known:
        for value in operands:
            domain.enters(value, node, node.outputs[0])
        domain.notes.rejoin(operands)
        dims = list(known[0].dims)
        first = dims[axis][0].axis if not is_stack and dims[axis] else OTHER
        dims[axis : axis + (not is_stack)] = [(Piece(min(first or FEATURE, OTHER), total[axis]),)]
        return [data(dims, is_real=any(value.is_real for value in known))]
    views, before = [], 0
    for atom, value in zip(node.inputs, operands, strict=True):

        def change(view: View, before: int = before) -> View:
            if is_stack:
                return view.with_dims([*view.dims[:axis], filler(total[axis]), *view.dims[axis:]])
            return view.beside(axis, before, total[axis])

        views += domain.changed(node, value, change).views
        before += 0 if is_stack else domain.shape(atom)[axis]
    return [parameters(views)]


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
        return [data_of(sizes, is_real=True) if by_data else CONSTANT]
    cuts = [number for number, (size, n) in enumerate(zip(sizes, shape, strict=True)) if size != n]
    # A loop's own counter picks a layer; what a cache counts picks a position.
    counted = all(value.kind == "constant" for value in starts) and any(
        sizes[number] == 1 for number in cuts
    )
    moving = any(not isinstance(node.inputs[1 + number], jex.Literal) for number in cuts)
    if operand.is_data and moving:
        return [data_of(sizes, is_real=operand.is_real or by_data)]
    window = [number for number, size in enumerate(sizes) if size > 1]
    if operand.is_view and by_data and len(window) <= 1:
        for view in domain.readable(operand, node):
            _note_lookup(domain, node, view, cuts, window)
        return [data_of(sizes, is_real=True, made=window)]
    ranges = []
    for atom, size, full in zip(node.inputs[1:], sizes, shape, strict=True):
        start = int(atom.val) if isinstance(atom, jex.Literal) else 0
        start = min(max(start, 0), full - size)
        ranges.append((start, start + size, 1))
    result = _sliced(domain, node, operand, ranges, node.outputs[0])
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
        return [data_of(shape, is_real=operand.is_real or indices.is_real)]
    numbers, sizes = node.params["dimension_numbers"], node.params["slice_sizes"]
    picked, batch = numbers.collapsed_slice_dims, numbers.operand_batching_dims
    window = [number for number in range(len(sizes)) if number not in (*picked, *batch)]
    if not indices.is_real or sum(sizes[number] > 1 for number in window) > 1:
        rows = _gathered(node, shape, window, indices.is_real)
        return [parameters(domain.changed(node, operand, rows).views)]
    for view in domain.readable(operand, node):
        _note_lookup(domain, node, view, picked, window, batch)
    return [data_of(shape, is_real=True, made=numbers.offset_dims)]


def _gathered(
    node: Node, shape: Sequence[int], window: Sequence[int], by_data: bool
) -> Callable[[View], View]:
    """What becomes of a view when rows of it are picked."""
    numbers, sizes = node.params["dimension_numbers"], node.params["slice_sizes"]
    gone = (*numbers.collapsed_slice_dims, *numbers.operand_batching_dims)
    rows = [number for number in range(len(shape)) if number not in numbers.offset_dims]

    def change(view: View) -> View:
        axes = [piece.axis for piece in view.pieces(gone) if piece.axis is not None]
        dims: list[Dimension] = [filler(size) for size in shape]
        for place, number in zip(numbers.offset_dims, window, strict=True):
            dims[place] = view.cut(number, 0, sizes[number]).dims[number]
        is_spread = by_data or not axes
        for place in rows if not is_spread else ():
            dims[place] = (Piece(axes[0], shape[place]),) if shape[place] != 1 else ()
        new = view.with_dims(dims, axes if is_spread or not rows else axes[1:])
        through = dataclasses.replace(view.through, is_table=view.through.is_table or bool(rows))
        return dataclasses.replace(new, is_indexed=view.is_indexed or bool(rows), through=through)

    return change


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
    domain.meets(node, view, "embedding", rows, columns, view.pieces(batch))


@rules(
    "scatter", "scatter-add", "scatter-max", "scatter-min", "scatter-mul", "dynamic_update_slice"
)
def _write(domain: ParameterDomain, node: Node, operands: list[Value]) -> list[Value]:
    """Writing into an array: of data, or of a constant that is filled up with parameters."""
    operand, shape = operands[0], domain.shape(node.outputs[0])
    update = operands[1 if node.primitive == "dynamic_update_slice" else 2]
    for value in operands[1:]:
        if value is not update:
            domain.picks(value, node)
    if not any(value.is_data for value in operands):
        # What is written over stays where it was; what is written may lie anywhere.
        why = domain.describe(node)
        lies = [
            view if view in operand.views else view.unknown(shape, why) for view in update.views
        ]
        return [parameters([*operand.views, *lies])]
    for value in (operand, update):
        domain.enters(value, node, node.outputs[0])
    is_real = any(value.is_real for value in operands)
    if operand.is_data:
        return [dataclasses.replace(operand, is_real=is_real, product=())]
    return [data_of(shape, is_real=is_real)]
