"""Functions of single entries: what they make of views, and biases, scales and positions."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from jaxinit.jaxpr._graph import Node
from jaxinit.reading import _views as views
from jaxinit.reading._records import Role, Use
from jaxinit.reading._shapes import rejoin
from jaxinit.reading._values import (
    CONSTANT,
    FEATURE,
    Value,
    combined,
    data,
    is_feature,
    is_spread,
    opaque,
    untagged,
    view,
)
from jaxinit.reading._views import Dimension, Part, Piece
from jaxinit.reading._walk import Walk

_SUMS = ("add", "sub", "add_any")
_PRODUCTS = ("mul", "div")
_LINEAR = (*_SUMS, *_PRODUCTS, "neg")

NAMES = frozenset(
    (*_LINEAR,)
    + tuple(
        "abs acos acosh and asin asinh atan atan2 atanh bessel_i0e bessel_i1e cbrt ceil clamp "
        "clz complex conj cos cosh digamma eq eq_to erf erf_inv erfc exp exp2 expm1 floor ge gt "
        "igamma igammac imag integer_pow is_finite le le_to lgamma log log1p logistic lt lt_to "
        "max min ne nextafter not or polygamma population_count pow real regularized_incomplete_"
        "beta rem round rsqrt select_n shift_left shift_right_arithmetic shift_right_logical "
        "sign sin sinh sqrt square tan tanh xor zeta mulhi".split()
    )
)


def elementwise(walk: Walk, node: Node, values: list[Value]) -> list[Value]:
    """Results of a function of single entries."""
    shape = walk.shape(node.outputs[0])
    known = [value for value in values if value.is_data]
    seen = [value for value in values if value.is_view]
    if not known and not seen:
        return [_constant(node, values)]
    if not known:
        return [_view(walk, node, seen, shape)]
    is_real = any(value.is_real for value in known)
    if seen and not is_real and not _repeats(known, seen, shape):
        return [_view(walk, node, seen, shape)]
    _settle_outer(walk, node, values)
    dims = combined([_linear(node, values, value) for value in known], shape)
    result = data(dims, is_real=is_real)
    if seen:
        result = _meet(walk, node, values, result)
    return [_flags(walk, node, values, result)]


def _constant(node: Node, values: Sequence[Value]) -> Value:
    if node.primitive == "eq" and any(value.is_iota for value in values):
        return Value("constant", is_one_hot=True)
    counts = node.primitive in ("add", "sub") and any(value.is_iota for value in values)
    return Value("constant", is_iota=True) if counts else CONSTANT


def _view(walk: Walk, node: Node, seen: Sequence[Value], shape: tuple[int, ...]) -> Value:
    """A function of parameters alone is a view of all of them."""
    parts = []
    for part in (part for value in seen for part in value.parts):
        if part.why is None:
            parts.append(views.aligned(part, shape))
        else:
            parts.append(opaque(part, shape, part.why))
    return view(parts)


def _repeats(known: Sequence[Value], seen: Sequence[Value], shape: tuple[int, ...]) -> bool:
    """Whether derived data have a dimension that no parameter here has: a layer on its rows."""
    dims = combined(known, shape)
    parts = [
        views.aligned(part, shape) for value in seen for part in value.parts if part.why is None
    ]
    return any(
        size > 1
        and not is_spread(dims[number])
        and all(is_spread(part.dims[number]) for part in parts)
        for number, size in enumerate(shape)
    )


def _linear(node: Node, values: Sequence[Value], value: Value) -> Value:
    """Data as the output has them: unlinked from their kernel unless the function is linear."""
    known = sum(value.is_data for value in values)
    keeps = node.primitive in _SUMS or (node.primitive in _LINEAR and known == 1)
    return value if keeps else untagged(value)


def _flags(walk: Walk, node: Node, values: Sequence[Value], result: Value) -> Value:
    name = node.primitive
    if name == "eq" and any(value.is_iota for value in values):
        return dataclasses.replace(result, is_one_hot=True)
    known = [value for value in values if value.is_data]
    if name in _SUMS:
        rejoin(walk, known)
    if name in _SUMS or (name in _LINEAR and len(known) == 1):
        cuts = frozenset(cut for value in known for cut in value.cuts)
        result = dataclasses.replace(result, cuts=cuts)
    if name in ("mul", "div", "neg") and len(known) == 1 and known[0].is_outer:
        product = known[0].product + result.product
        result = dataclasses.replace(result, product=product, is_outer=True)
    return result


def _settle_outer(walk: Walk, node: Node, values: Sequence[Value]) -> None:
    """Data spread along a parameter's axes and multiplied by it: a kernel with one input.

    Unless it is multiplied once more with data that have those axes, as the scale of a
    normalisation is when it meets the inverse deviation first.
    """
    if node.primitive in ("mul", "div", "neg"):
        return
    for value in values:
        for number, part in value.product if value.is_outer else ():
            met = walk.met[number]
            if met.leaf != part.leaf or met.use.role != "scale":
                continue
            pieces = [p for dim in part.dims for p in dim if p.axis is not None]
            use = dataclasses.replace(
                met.use,
                role="kernel",
                produced=views.axes_of(pieces),
                fan_in=1.0,
                fan_out=float(math.prod(piece.entries for piece in pieces)),
            )
            walk.met[number] = dataclasses.replace(met, use=use)


def _meet(walk: Walk, node: Node, values: Sequence[Value], result: Value) -> Value:
    """Notes what each parameter does to the data, and marks the dimensions that it brings."""
    output = node.outputs[0]
    shape = walk.shape(output)
    dims = list(result.parts[0].dims)
    known = [value for value in values if value.is_data]
    product, outer = [], True
    for part in (part for value in values if value.is_view for part in value.parts):
        if part.why is not None:
            walk.unknown(part, node.primitive, node, output)
            continue
        part = views.aligned(part, shape)
        if node.primitive == "select_n" and not values[0].is_view:
            walk.enters(view([part]), node.primitive, node, output)
            continue
        role = _role(node, part, dims)
        if role is None:
            walk.unknown(part, node.primitive, node, output)
            continue
        number = walk.note(part, _use(walk, node, part, role))
        if node.primitive == "mul":
            product.append((number, part))
            outer &= _is_outer(part, combined(known, shape))
    held = [
        any(views.is_held(d) for d in together)
        for together in zip(
            *(
                views.aligned(part, shape).dims
                for value in values
                if value.is_view
                for part in value.parts
            ),
            strict=True,
        )
    ]
    for number, is_held in enumerate(held):
        if is_held and is_spread(dims[number]):
            dims[number] = (Piece(FEATURE, shape[number]),)
    result = data(dims, is_real=result.is_real)
    return dataclasses.replace(result, product=tuple(product), is_outer=bool(product) and outer)


def _use(walk: Walk, node: Node, part: Part, role: Role) -> Use:
    axes = views.axes_of(piece for dim in part.dims for piece in dim)
    return Use(
        node.primitive,
        role,
        produced=axes,
        batched=walk.batched(part),
        times=node.times,
        output=node.outputs[0],
    )


def _role(node: Node, part: Part, dims: Sequence[Dimension]) -> Role | None:
    if node.primitive in _PRODUCTS:
        return "scale"
    if node.primitive not in _SUMS:
        return None
    if part.is_indexed:
        return "position"
    held = [number for number, dim in enumerate(part.dims) if views.is_held(dim)]
    apart = [number for number in held if not is_feature(dims[number])]
    return "position" if len(held) > 1 and apart else "bias"


def _is_outer(part: Part, dims: Sequence[Dimension]) -> bool:
    held = [number for number, dim in enumerate(part.dims) if views.is_held(dim)]
    return bool(held) and all(is_spread(dims[number]) for number in held)


def summed(walk: Walk, node: Node, value: Value) -> None:
    """A product with a parameter that is summed over at once is a contraction.

    Only where nothing else reads the product: a normalisation that follows a scale sums it too.
    """
    atom = node.inputs[0]
    if not value.product or value.is_outer or walk.readers.get(atom, 0) != 1:
        return
    gone = set(node.params["axes"])
    for number, part in value.product:
        inner = [p for d in gone for p in part.dims[d] if p.axis is not None and p.size > 1]
        met = walk.met[number]
        if not inner or met.leaf != part.leaf:
            continue
        kept = [d for d in range(len(part.dims)) if d not in gone]
        outer = [p for d in kept for p in part.dims[d] if p.axis is not None]
        use = dataclasses.replace(
            met.use,
            operation="reduce_sum",
            role="kernel",
            contracted=views.axes_of(inner),
            produced=views.axes_of(outer),
            fan_in=float(math.prod(p.terms for d in gone for p in part.dims[d])),
            fan_out=float(math.prod(piece.entries for piece in outer)),
            output=node.outputs[0],
        )
        walk.met[number] = dataclasses.replace(met, use=use)
