"""Where data and parameters are multiplied and summed: products, convolutions, and their fans.

A view may hold several parameters: the two factors of a low-rank product are both kernels, the
first of them the one that data reach first.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import Any

from jaxinit.jaxpr._graph import Node
from jaxinit.reading import _views as views
from jaxinit.reading._records import Use
from jaxinit.reading._values import (
    FEATURE,
    OTHER,
    TAGGED,
    Value,
    combined,
    data,
    dims_of,
    plain,
    untagged,
    view,
)
from jaxinit.reading._views import Dimension, Link, Part, Piece
from jaxinit.reading._walk import Walk


@dataclasses.dataclass(frozen=True)
class Side:
    """One operand of a product, with its dimensions by what the product does to them."""

    value: Value
    shape: tuple[int, ...]
    contracted: tuple[int, ...]
    batched: tuple[int, ...]

    @property
    def free(self) -> tuple[int, ...]:
        """Dimensions that the output has for itself."""
        taken = {*self.contracted, *self.batched}
        return tuple(d for d in range(len(self.shape)) if d not in taken)

    def pieces(self, part: Part, dimensions: Iterable[int]) -> Dimension:
        """Pieces of a part in some dimensions."""
        return tuple(piece for number in dimensions for piece in part.dims[number])

    @property
    def is_broadcast(self) -> bool:
        """Whether no parameter holds one of the free dimensions: tokens repeated for a batch."""
        return any(
            self.shape[number] > 1
            and not any(views.is_held(part.dims[number]) for part in self.value.parts)
            for number in self.free
        )


def dot_general(walk: Walk, node: Node, values: list[Value]) -> list[Value]:
    """A product by its dimension numbers."""
    (contracted, batched) = node.params["dimension_numbers"]
    sides = [
        Side(value, walk.shape(atom), tuple(contracted[i]), tuple(batched[i]))
        for i, (value, atom) in enumerate(zip(values, node.inputs, strict=True))
    ]
    return [_product(walk, node, sides[0], sides[1])]


def ragged_dot(walk: Walk, node: Node, values: list[Value]) -> list[Value]:
    """Rows by group, each group with a matrix of its own: the group axis is batched."""
    numbers = node.params["ragged_dot_dimension_numbers"]
    contracted, batched = numbers.dot_dimension_numbers
    groups = tuple(numbers.rhs_group_dimensions)
    shapes = [walk.shape(atom) for atom in node.inputs[:2]]
    left = Side(values[0], shapes[0], tuple(contracted[0]), tuple(batched[0]))
    right = Side(values[1], shapes[1], tuple(contracted[1]), (*batched[1], *groups))
    shape = walk.shape(node.outputs[0])
    if values[0].is_view:
        walk.enters(values[0], "ragged_dot_general", node, node.outputs[0])
    if not values[1].is_view:
        return [plain(shape, is_real=any(value.is_real for value in values))]
    tag = _contract(walk, node, right)
    last = len(left.batched) + len(left.free)
    dims = [(Piece(OTHER if number < last else tag, size),) for number, size in enumerate(shape)]
    return [data(dims, is_real=any(value.is_real for value in values))]


def _product(walk: Walk, node: Node, left: Side, right: Side) -> Value:
    shape = walk.shape(node.outputs[0])
    if left.value.is_view and right.value.is_view:
        if left.is_broadcast == right.is_broadcast:
            return _linked(walk, left, right)
        used, other = (right, left) if left.is_broadcast else (left, right)
        walk.enters(other.value, node.primitive, node, node.outputs[0])
        other = dataclasses.replace(other, value=plain(other.shape, is_real=False))
        left, right = (other, used) if used is right else (used, other)
    tags = []
    for side, other in ((left, right), (right, left)):
        if not side.value.is_view:
            tags.append(None)
        elif other.value.is_one_hot and len(side.contracted) == 1:
            tags.append(_look_up(walk, node, side, other))
        elif _is_projected(side, other):
            tags.append(_project(walk, node, side))
        else:
            tags.append(_contract(walk, node, side, is_aside=not other.value.is_real))
    is_real = left.value.is_real or right.value.is_real
    if not (left.value.is_view or right.value.is_view or left.value.is_data or right.value.is_data):
        return plain(shape, is_real=False)
    return data(_product_dims(left, right, tags), is_real=is_real)


def _product_dims(left: Side, right: Side, tags: Sequence[int | None]) -> list[Dimension]:
    """Dimensions of the output: batch, free ones of the left, free ones of the right."""
    sides = (left, right)
    # Rows of constants are as good as rows of data: coordinates, for example.
    rows = [
        side.value if side.value.is_data else plain(side.shape, is_real=False) for side in sides
    ]
    own = [
        None if side.value.is_view else dims_of(untagged(row), side.shape)
        for side, row in zip(sides, rows, strict=True)
    ]
    dims: list[Dimension] = []
    for number, pair in enumerate(zip(left.batched, right.batched, strict=True)):
        known = [dims[d] for dims, d in zip(own, pair, strict=True) if dims is not None]
        held = any(
            side.value.is_view and any(views.is_held(p.dims[pair[i]]) for p in side.value.parts)
            for i, side in enumerate(sides)
        )
        size = left.shape[left.batched[number]]
        dims.append((Piece(FEATURE, size),) if held or not known else known[0])
    for side, side_dims, tag in zip(sides, own, tags, strict=True):
        for number in side.free:
            size = side.shape[number]
            if side_dims is not None:
                dims.append(side_dims[number])
            else:
                dims.append(_outlet(side, number, size, FEATURE if tag is None else tag))
    return dims


def _outlet(side: Side, number: int, size: int, tag: int) -> Dimension:
    """A dimension that a kernel makes, in the pieces in which the kernel holds it."""
    if len(side.value.parts) == 1:
        pieces = [p for p in side.value.parts[0].dims[number] if p.axis is not None]
        if math.prod(piece.size for piece in pieces) == size and len(pieces) > 1:
            return tuple(
                Piece(tag, piece.size, (piece.axis or 0) * 2**32 + piece.stride) for piece in pieces
            )
    held = any(views.is_held(part.dims[number]) for part in side.value.parts)
    axis = next((p.axis for part in side.value.parts for p in part.dims[number] if p.axis), 0)
    return (Piece(tag, size, axis * 2**32 + 1),) if held else views.filler(size)


def _linked(walk: Walk, left: Side, right: Side) -> Value:
    """The product of two views, which is a view of all that is in either."""
    walk.links += 1
    parts = []
    for number, (side, other) in enumerate(((left, right), (right, left))):
        beside = [views.filler(other.shape[dimension]) for dimension in other.free]
        for part in side.value.parts:
            own = [part.dims[dimension] for dimension in side.free]
            batch = [part.dims[dimension] for dimension in side.batched]
            link = Link(walk.links, number, side.pieces(part, side.contracted))
            free = [*own, *beside] if side is left else [*beside, *own]
            new = part.with_dims([*batch, *free])
            parts.append(dataclasses.replace(new, links=(*part.links, link)))
    return view(parts)


@dataclasses.dataclass
class _Roles:
    """Pieces of one part by what a contraction does with them."""

    contracted: list[Piece]
    produced: list[Piece]


def _roles(side: Side) -> list[_Roles]:
    """Pieces that each part contracts and produces, products with other parameters included.

    Data reach first the parameters that hold a contracted axis; what those hand on along a link is
    produced by them and contracted by the next.
    """
    parts = side.value.parts
    roles = []
    for part in parts:
        inner = side.pieces(part, side.contracted)
        reached = any(piece.axis is not None for piece in inner)
        free = [piece for piece in side.pieces(part, side.free) if piece.axis is not None]
        roles.append(_Roles(list(inner) if reached else [], free))
    seen = {number for number, role in enumerate(roles) if role.contracted}
    queue, used = sorted(seen), set()
    while queue:
        number = queue.pop(0)
        for link in parts[number].links:
            if (number, link.number) in used:
                continue
            roles[number].produced += [p for p in link.pieces if p.axis is not None]
            for other, theirs in _across(parts, link):
                if other not in seen and theirs.pieces:
                    seen.add(other)
                    used.add((other, link.number))
                    roles[other].contracted += theirs.pieces
                    queue.append(other)
    for number in set(range(len(parts))) - seen:
        inner = [piece for link in parts[number].links for piece in link.pieces]
        roles[number].produced += [piece for piece in inner if piece.axis is not None]
    return roles


def _across(parts: Sequence[Part], link: Link) -> list[tuple[int, Link]]:
    """Parts on the other side of a product, by number, with their end of the link."""
    return [
        (number, theirs)
        for number, part in enumerate(parts)
        for theirs in part.links
        if theirs.number == link.number and theirs.side != link.side
    ]


def _is_projected(side: Side, other: Side) -> bool:
    """Whether a product of parameters meets a fresh kernel output: learned queries and keys.

    Not so a low-rank kernel, which meets inputs, normalised or activated values.
    """
    parts = side.value.parts
    if not other.value.is_data or not all(part.links and part.why is None for part in parts):
        return False
    pieces = other.pieces(other.value.parts[0], other.contracted)
    return bool(pieces) and all((piece.axis or 0) >= TAGGED for piece in pieces)


def _project(walk: Walk, node: Node, side: Side) -> int:
    """Notes learned tokens and the kernel that maps them, where both meet data as one."""
    for part in side.value.parts:
        own = [p for p in side.pieces(part, side.contracted) if p.axis is not None]
        inner = [piece for link in part.links for piece in link.pieces]
        if not own and any(views.is_held(part.dims[number]) for number in side.free):
            walk.enters(view([part]), node.primitive, node, node.outputs[0])
        elif not own or len(part.links) > 1:
            walk.unknown(part, node.primitive, node, node.outputs[0])
        else:
            use = Use(
                node.primitive,
                "kernel",
                contracted=views.axes_of(inner),
                produced=views.axes_of(own),
                batched=walk.batched(part, side.pieces(part, side.batched)),
                fan_in=float(math.prod(piece.terms for piece in inner)),
                fan_out=float(math.prod(piece.entries for piece in own)),
                times=node.times,
                output=node.outputs[0],
            )
            walk.note(part, use)
    return FEATURE


def _contract(walk: Walk, node: Node, side: Side, *, is_aside: bool = False) -> int:
    """Notes what every parameter of a view does in a product; returns the tag of the output."""
    first = None
    for part, roles in zip(side.value.parts, _roles(side), strict=True):
        if part.why is not None:
            walk.unknown(part, node.primitive, node, node.outputs[0])
            continue
        batched = [piece for piece in side.pieces(part, side.batched)]
        outer = not side.contracted and any(piece.size > 1 for piece in roles.produced)
        use = Use(
            node.primitive,
            "kernel" if roles.contracted or outer else "scale",
            contracted=views.axes_of(roles.contracted),
            produced=views.axes_of(roles.produced),
            batched=walk.batched(part, batched),
            times=node.times,
            output=node.outputs[0],
        )
        if use.role == "kernel":
            use = dataclasses.replace(
                use,
                fan_in=float(math.prod(piece.terms for piece in roles.contracted)),
                fan_out=float(math.prod(piece.entries for piece in roles.produced)),
            )
        number = walk.note(part, use, is_aside=is_aside)
        if use.role == "kernel":
            first = number if first is None else first
            stretch = next((piece for piece in roles.produced if not piece.is_whole), None)
            if stretch is not None:
                region = (stretch.start, stretch.start + stretch.entries, number)
                walk.regions.setdefault(first, []).append(region)
    return FEATURE if first is None else TAGGED + first


def _look_up(walk: Walk, node: Node, side: Side, other: Side) -> int:
    """Notes the lookup in a table by a product with one-hot vectors."""
    for part in side.value.parts:
        if part.why is not None:
            walk.unknown(part, node.primitive, node, node.outputs[0])
            continue
        inner = side.pieces(part, side.contracted)
        role = "embedding" if other.value.is_real else "position"
        use = Use(
            node.primitive,
            role,
            contracted=views.axes_of(inner),
            produced=views.axes_of(side.pieces(part, side.free)),
            batched=walk.batched(part, side.pieces(part, side.batched)),
            times=node.times,
            output=node.outputs[0],
        )
        walk.note(part, use)
    return FEATURE


def conv(walk: Walk, node: Node, values: list[Value]) -> list[Value]:
    """A convolution by its kernel specification."""
    image, kernel = values
    shape = walk.shape(node.outputs[0])
    if image.is_view:
        walk.enters(image, node.primitive, node, node.outputs[0])
        image = plain(walk.shape(node.inputs[0]), is_real=False)
    is_real = image.is_real or kernel.is_real
    numbers = node.params["dimension_numbers"]
    tag = FEATURE
    for part in kernel.parts if kernel.is_view else ():
        tag = _convolve(walk, node, part)
    dims: list[Dimension] = [(Piece(OTHER, size),) for size in shape]
    feature = numbers.out_spec[1]
    dims[feature] = (Piece(tag, shape[feature]),)
    return [data(dims, is_real=is_real)]


def _convolve(walk: Walk, node: Node, part: Part) -> int:
    if part.why is not None:
        walk.unknown(part, node.primitive, node, node.outputs[0])
        return FEATURE
    params = node.params
    out, inner, *field = params["dimension_numbers"].rhs_spec
    groups = params["feature_group_count"] * params["batch_group_count"]
    batched, produced = [], [piece for piece in part.dims[out] if piece.axis is not None]
    # A vmapped convolution keeps its layers side by side, as groups.
    while len(produced) > 1 and groups > 1 and groups % produced[0].size == 0:
        groups //= produced[0].size
        batched.append(produced.pop(0))
    contracted = part.dims[inner]
    spatial = tuple(piece for number in field for piece in part.dims[number])
    strides = tuple(params["lhs_dilation"])
    strides = strides if math.prod(strides) > 1 else ()
    real = any(piece.axis is not None for piece in (*contracted, *spatial))
    taps = math.prod(piece.terms for piece in spatial)
    use = Use(
        node.primitive,
        "kernel" if real else "scale",
        contracted=views.axes_of(contracted),
        produced=views.axes_of(produced),
        batched=walk.batched(part, batched),
        field=views.axes_of(spatial),
        groups=groups,
        transposed_strides=strides,
        times=node.times,
        output=node.outputs[0],
    )
    if real:
        fan_in = math.prod(piece.terms for piece in contracted) * taps / math.prod(strides)
        fan_out = math.prod(piece.entries for piece in produced) * taps / groups
        use = dataclasses.replace(use, fan_in=float(fan_in), fan_out=float(fan_out))
    number = walk.note(part, use)
    return TAGGED + number if real and groups == 1 and not batched else FEATURE


def between_data(walk: Walk, node: Node, values: list[Value]) -> Any:
    """Dimensions of an elementwise function of data alone."""
    shape = walk.shape(node.outputs[0])
    return combined(values, shape)
