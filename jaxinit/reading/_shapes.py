"""Equations that move entries about: what they do to the dimensions of a view, or of data."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from jaxinit.jaxpr._graph import Node
from jaxinit.reading import _views as views
from jaxinit.reading._values import CONSTANT, TAGGED, Value, data, mapped, untagged, view
from jaxinit.reading._views import Part, Piece
from jaxinit.reading._walk import Place, Walk

Shape: TypeAlias = tuple[int, ...]
Rule: TypeAlias = Callable[[Part, Any, Shape], Part]


def _reshape(part: Part, params: Any, shape: Shape) -> Part:
    order = params.get("dimensions")
    return views.reshaped(views.transposed(part, order) if order is not None else part, shape)


def _same(part: Part, params: Any, shape: Shape) -> Part:
    return part


def _reduce(part: Part, params: Any, shape: Shape) -> Part:
    return views.without(part, params["axes"], keep_axes=False)


def _resize(part: Part, params: Any, shape: Shape) -> Part:
    """A Fourier transform: the axes stay where they are, the real ones change in length."""
    dims = list(part.dims)
    for number, size in enumerate(shape):
        if views.size_of(dims[number]) != size:
            if len(dims[number]) != 1:
                raise views.Mixed
            dims[number] = (dims[number][0]._replace(size=size),)
    return part.with_dims(dims)


def _tile(part: Part, params: Any, shape: Shape) -> Part:
    pairs = zip(part.dims, params["reps"], strict=True)
    return part.with_dims(views.filler(int(count)) + dim for dim, count in pairs)


_RULES: dict[str, Rule] = {
    "reshape": _reshape,
    "transpose": lambda part, params, shape: views.transposed(part, params["permutation"]),
    "squeeze": lambda part, params, shape: views.without(part, params["dimensions"]),
    "broadcast_in_dim": lambda part, params, shape: views.spread(
        part, shape, params["broadcast_dimensions"]
    ),
    "pad": lambda part, params, shape: views.padded(part, params["padding_config"]),
    "tile": _tile,
    "fft": _resize,
    **dict.fromkeys(
        ("reduce_sum", "reduce_max", "reduce_min", "reduce_prod", "reduce_and", "reduce_or"),
        _reduce,
    ),
    **dict.fromkeys(("argmax", "argmin"), _reduce),
    **dict.fromkeys(
        (
            "copy",
            "copy_p",
            "convert_element_type",
            "rev",
            "cumsum",
            "cumprod",
            "cummax",
            "cummin",
            "cumlogsumexp",
            "sharding_constraint",
            "name",
            "reshard",
            "pvary",
            "pcast",
            "layout_constraint",
            "reduce_precision",
            "stop_gradient",
        ),
        _same,
    ),
}
# Each result is the operand of the same number.
_SIDE_BY_SIDE = ("optimization_barrier", "device_put", "sort")
# After these a value is no rearrangement of what it was.
_SUMMARIES = tuple(name for name, rule in _RULES.items() if rule is _reduce or name[:3] == "cum")


def apply_shape_rule(walk: Walk, node: Node, values: list[Value]) -> list[Value] | None:
    """Results of an equation that moves entries about; None when it is another one."""
    name = node.primitive
    if name in _SIDE_BY_SIDE:
        return values[: len(node.outputs)]
    if name == "slice":
        return [_slice(walk, node, values[0])]
    if name in ("split", "unstack"):
        return _pieces(walk, node, values[0])
    rule = _RULES.get(name)
    if rule is None:
        return None
    shape = walk.shape(node.outputs[0])
    value = values[0]
    result = mapped(value, lambda part: rule(part, node.params, shape), shape, walk.spell(node))
    if name in ("convert_element_type", "copy", "copy_p"):
        result = dataclasses.replace(result, product=value.product)
    if name in _SUMMARIES:
        result = dataclasses.replace(untagged(result), is_one_hot=False, is_iota=False)
    return [result]


def _slice(walk: Walk, node: Node, value: Value) -> Value:
    params = node.params
    starts, limits = params["start_indices"], params["limit_indices"]
    steps = params["strides"] or (1,) * len(starts)
    return sliced(walk, node, value, tuple(zip(starts, limits, steps, strict=True)), 0)


def sliced(
    walk: Walk,
    node: Node,
    value: Value,
    ranges: Sequence[tuple[int, int, int]],
    result: int,
) -> Value:
    """A slice of a value.

    Args:
        walk: the walk, which notes slices of kernel outputs.
        node: the equation.
        value: what is cut.
        ranges: start, limit and step along every dimension.
        result: which of the equation's results it is.
    """

    def change(part: Part) -> Part:
        for number, (start, limit, step) in enumerate(ranges):
            part = views.cut(part, number, start, limit, step)
        return part

    output = node.outputs[result]
    shape = tuple(-(-(limit - start) // step) for start, limit, step in ranges)
    new = mapped(value, change, shape, walk.spell(node))
    if value.is_view:
        kept = [part for part in new.parts if _has_entries(part)]
        return view(kept) if kept else CONSTANT
    if not value.is_data:
        return new
    for old, (start, limit, step) in zip(value.parts[0].dims, ranges, strict=True):
        found = views.cut_of(old, start, limit, step)
        if found is None or (found[0].axis or 0) < TAGGED:
            continue
        piece, first, last = found
        place = Place(piece.axis or 0, piece.stride, piece.size)
        walk.cuts[place] = {**walk.cuts.get(place, {}), (first, last): output}
        new = dataclasses.replace(new, cuts=new.cuts | {(place, first)})
    return new


def _has_entries(part: Part) -> bool:
    """Whether a slice of concatenated arrays left anything of this one."""
    return all(piece.entries or not piece.size for dim in part.dims for piece in dim)


def _pieces(walk: Walk, node: Node, value: Value) -> list[Value]:
    axis, shape = node.params["axis"], walk.shape(node.inputs[0])
    single = node.primitive == "unstack"
    sizes = [1] * len(node.outputs) if single else [int(n) for n in node.params["sizes"]]
    results, start = [], 0
    for number, size in enumerate(sizes):
        ranges = [(0, n, 1) for n in shape]
        ranges[axis] = (start, start + size, 1)
        result = sliced(walk, node, value, ranges, number)
        if single:
            new = walk.shape(node.outputs[number])
            squeeze = functools.partial(views.without, dimensions=[axis])
            result = mapped(result, squeeze, new, "")
        results.append(result)
        start += size
    return results


def concatenated(walk: Walk, node: Node, values: list[Value]) -> list[Value]:
    """Arrays side by side: views beside views make a view, beside data they enter the data."""
    axis, shape = node.params["dimension"], walk.shape(node.outputs[0])
    before = 0
    placed = []
    for atom, value in zip(node.inputs, values, strict=True):
        place = functools.partial(views.beside, number=axis, before=before, total=shape[axis])
        placed.append(mapped(value, place, shape, walk.spell(node)))
        before += walk.shape(atom)[axis]
    known = [value for value in values if value.is_data]
    if not known:
        parts = [part for value in placed for part in value.parts]
        return [view(parts) if parts else CONSTANT]
    for value in values:
        walk.enters(value, "concatenate", node, node.outputs[0])
    rejoin(walk, values)
    dims = list(known[0].parts[0].dims)
    first = dims[axis][0].axis if len(dims[axis]) else 1
    dims[axis] = (Piece(min(first or 0, 1), shape[axis]),)
    return [data(dims, is_real=any(value.is_real for value in known))]


def rejoin(walk: Walk, values: Sequence[Value]) -> None:
    """Notes slices of one kernel output that come together again: halves of a rotary embedding."""
    starts: dict[Any, set[int]] = {}
    for place, start in (cut for value in values for cut in value.cuts):
        starts.setdefault(place, set()).add(start)
    walk.rejoined.update(place for place, found in starts.items() if len(found) > 1)
