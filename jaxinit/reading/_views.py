"""Values that are nothing but rearranged parameters: which axes each of their dimensions holds.

A dimension holds pieces, major to minor: a whole axis of the parameter, a part of one after a
split, several after a merge, or filler that was broadcast. Every function here takes a part of a
view through one operation on shapes, or raises `Mixed` where axes no longer keep apart.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple, TypeAlias


class Mixed(Exception):
    """An operation after which a dimension belongs to no axis of the parameter any more."""


class Piece(NamedTuple):
    """What a dimension holds of one axis.

    Attributes:
        axis: axis of the parameter, None for filler.
        size: entries along the dimension.
        stride: distance along the axis of two neighbours, so that parts of a split differ.
        start: where the parameter's own entries begin, after padding or concatenation.
        own: how many they are; -1 when all of ``size``.
        filled: entries that are not zeros of a padding; -1 when all of ``size``.
    """

    axis: int | None
    size: int
    stride: int = 1
    start: int = 0
    own: int = -1
    filled: int = -1

    @property
    def entries(self) -> int:
        """Entries of the parameter along the dimension."""
        return self.size if self.own < 0 else self.own

    @property
    def terms(self) -> int:
        """Entries that a sum over the dimension adds up."""
        return self.size if self.filled < 0 else self.filled

    @property
    def is_whole(self) -> bool:
        """Whether nothing was put beside the parameter's own entries."""
        return self.own < 0 and self.filled < 0


Dimension: TypeAlias = tuple[Piece, ...]


class Link(NamedTuple):
    """Axes over which one parameter was multiplied with another, before either met data.

    Attributes:
        number: of the product.
        side: 0 of its left factor, 1 of its right.
        pieces: what the parameter held of the axes that were summed over.
    """

    number: int
    side: int
    pieces: Dimension


class Taken(NamedTuple):
    """What a scan walks along: pieces of a leading dimension that the loop body does not see."""

    loop: int
    length: int
    pieces: Dimension


@dataclasses.dataclass(frozen=True, slots=True)
class Part:
    """What one parameter gives to a view, or one array of data to itself.

    Attributes:
        leaf: number of the parameter; -1 for data.
        dims: pieces of each dimension.
        dropped: axes that an index or a squeeze took away.
        taken: axes that scans walk along.
        links: products with other parameters.
        is_indexed: whether entries were picked by numbers that do not depend on data.
        is_chosen: whether entries were picked by data.
        is_cut: whether a slice left entries out.
        why: what made the dimensions unreadable, None while they are known.
    """

    leaf: int
    dims: tuple[Dimension, ...]
    dropped: tuple[int, ...] = ()
    taken: tuple[Taken, ...] = ()
    links: tuple[Link, ...] = ()
    is_indexed: bool = False
    is_chosen: bool = False
    is_cut: bool = False
    why: str | None = None

    def with_dims(self, dims: Iterable[Iterable[Piece]], dropped: Iterable[int] = ()) -> Part:
        """The part with other dimensions, and more axes dropped."""
        dims = tuple(map(tuple, dims))
        return dataclasses.replace(self, dims=dims, dropped=self.dropped + tuple(dropped))

    @property
    def held(self) -> frozenset[tuple[int, int, int]]:
        """Dimension, axis and stride of every piece that is no filler."""
        return frozenset(
            (number, piece.axis, piece.stride)
            for number, dim in enumerate(self.dims)
            for piece in dim
            if piece.axis is not None
        )


def whole(leaf: int, shape: Sequence[int]) -> Part:
    """A parameter as it is."""
    return Part(leaf, tuple((Piece(axis, size),) for axis, size in enumerate(shape)))


def filler(size: int) -> Dimension:
    """A dimension that the parameter has nothing to do with."""
    return (Piece(None, size),) if size != 1 else ()


def size_of(dim: Dimension) -> int:
    """Size of a dimension."""
    return math.prod(piece.size for piece in dim)


def axes_of(pieces: Iterable[Piece]) -> tuple[int, ...]:
    """Axes among pieces, each once, in order."""
    return tuple(sorted({piece.axis for piece in pieces if piece.axis is not None}))


def is_held(dim: Dimension) -> bool:
    """Whether a dimension holds an axis with more than one entry."""
    return any(piece.axis is not None and piece.size > 1 for piece in dim)


def aligned(part: Part, shape: Sequence[int]) -> Part:
    """A part broadcast to a shape as elementwise operations do: scalars, and dimensions of one."""
    if not part.dims and shape:
        return part.with_dims(filler(size) for size in shape)
    return part.with_dims(
        dim if size_of(dim) == size else dim + filler(size)
        for dim, size in zip(part.dims, shape, strict=True)
    )


def reshaped(part: Part, shape: Sequence[int]) -> Part:
    """Splits and merges dimensions, matching runs of equal products.

    Raises:
        Mixed: when a new dimension would hold fractions of an axis that no split gives.
    """
    rest = [piece for dim in part.dims for piece in dim][::-1]
    dims, dropped = [], []
    for size in shape:
        dim, need = [], size
        if size == 1 and rest and rest[-1].size == 1:
            dim.append(rest.pop())
        while need != 1:
            if not rest:
                raise Mixed
            piece = rest.pop()
            if piece.size == 1:
                dropped += [] if piece.axis is None else [piece.axis]
            elif need % piece.size == 0:
                dim.append(piece)
                need //= piece.size
            else:
                major, minor = _split(piece, need)
                dim.append(major)
                rest.append(minor)
                need = 1
        dims.append(dim)
    if any(piece.size != 1 for piece in rest):
        raise Mixed
    return part.with_dims(dims, dropped + [p.axis for p in rest if p.axis is not None])


def _split(piece: Piece, major: int) -> tuple[Piece, Piece]:
    if piece.size == 0 or piece.size % major or not (piece.is_whole or piece.axis is None):
        raise Mixed
    minor = piece.size // major
    return (
        Piece(piece.axis, major, piece.stride * minor),
        Piece(piece.axis, minor, piece.stride),
    )


def transposed(part: Part, permutation: Sequence[int]) -> Part:
    """Dimensions in another order."""
    return part.with_dims(part.dims[old] for old in permutation)


def without(part: Part, dimensions: Sequence[int], *, keep_axes: bool = True) -> Part:
    """Dimensions taken away: by a squeeze, or summed over when ``keep_axes`` is false."""
    gone = {number % len(part.dims) for number in dimensions} if part.dims else set()
    dropped = [axis for number in sorted(gone) for axis in axes_of(part.dims[number])]
    dims = [dim for number, dim in enumerate(part.dims) if number not in gone]
    return part.with_dims(dims, dropped if keep_axes else ())


def spread(part: Part, shape: Sequence[int], dimensions: Sequence[int]) -> Part:
    """`broadcast_in_dim`: old dimension i becomes new dimension ``dimensions[i]``."""
    dims = [filler(size) for size in shape]
    for old, new in zip(part.dims, dimensions, strict=True):
        dims[new] = old if size_of(old) == shape[new] else old + dims[new]
    return part.with_dims(dims)


def cut(part: Part, number: int, start: int, limit: int, step: int = 1) -> Part:
    """A slice of one dimension.

    Raises:
        Mixed: when the slice goes across the boundary of merged axes.
    """
    dim = part.dims[number]
    if (start, limit, step) == (0, size_of(dim), 1):
        return part
    real = [piece for piece in dim if piece.size != 1]
    ones = [piece for piece in dim if piece.size == 1]
    pieces = (*ones, *_cut(real, start, limit, step))
    dims = part.dims[:number] + (pieces,) + part.dims[number + 1 :]
    return dataclasses.replace(part, dims=dims, is_cut=part.is_cut or is_held(dim))


def _cut(pieces: Sequence[Piece], start: int, limit: int, step: int) -> Dimension:
    if not pieces:
        return filler(-(-(limit - start) // step))
    major, minor = pieces[0], math.prod(piece.size for piece in pieces[1:])
    if len(pieces) == 1:
        return (_cut_one(major, start, limit, step),)
    if step == 1 and start % minor == 0 and limit % minor == 0:
        return (_cut_one(major, start // minor, limit // minor, 1), *pieces[1:])
    if start // minor == (limit - 1) // minor:
        base = start // minor * minor
        first = _cut_one(major, start // minor, start // minor + 1, 1)
        return (first, *_cut(pieces[1:], start - base, limit - base, step))
    raise Mixed


def _cut_one(piece: Piece, start: int, limit: int, step: int) -> Piece:
    size = -(-(limit - start) // step)
    if piece.is_whole:
        return piece._replace(size=size)
    own_start, own_limit = piece.start, piece.start + piece.entries
    first, last = max(own_start, start), min(own_limit, limit)
    own = max(0, -(-(last - first) // step))
    filled = min(piece.terms, size)
    return piece._replace(size=size, start=max(0, first - start) // step, own=own, filled=filled)


def cut_of(dim: Dimension, start: int, limit: int, step: int) -> tuple[Piece, int, int] | None:
    """The one piece of a dimension that a slice cuts, from where to where; None if there is none.

    Every other entry from an offset on, as interleaved halves are taken, counts as a cut too.
    """
    pieces = [piece for piece in dim if piece.size != 1]
    if not pieces or (start, limit, step) == (0, size_of(dim), 1):
        return None
    minor = math.prod(piece.size for piece in pieces[1:])
    if len(pieces) == 1:
        return pieces[0], start, limit
    if step == 1 and start % minor == 0 and limit % minor == 0:
        return pieces[0], start // minor, limit // minor
    return None


def padded(part: Part, configuration: Sequence[tuple[int, int, int]]) -> Part:
    """Zeros around and between the entries, which count for no fan."""
    dims = []
    for dim, (low, high, interior) in zip(part.dims, configuration, strict=True):
        if not (low or high or interior):
            dims.append(dim)
            continue
        if min(low, high) < 0 or len(dim) > 1 or (dim and interior and not dim[0].is_whole):
            raise Mixed
        old = dim[0] if dim else Piece(None, 1)
        size = low + high + old.size + interior * max(0, old.size - 1)
        new = old._replace(size=size, start=low + old.start, own=old.entries, filled=old.terms)
        dims.append((new,))
    return part.with_dims(dims)


def beside(part: Part, number: int, before: int, total: int) -> Part:
    """A part after concatenation along one dimension with other arrays."""
    dim = part.dims[number]
    if len([piece for piece in dim if piece.size != 1]) > 1:
        if all(piece.axis is None for piece in dim):
            return part.with_dims([*part.dims[:number], filler(total), *part.dims[number + 1 :]])
        raise Mixed
    old = next((piece for piece in dim if piece.size != 1), dim[0] if dim else Piece(None, 1))
    others = total - old.size
    new = old._replace(
        size=total,
        start=before + old.start,
        own=old.entries if old.axis is not None else -1,
        filled=old.terms + others if old.filled >= 0 else -1,
    )
    return part.with_dims([*part.dims[:number], (new,), *part.dims[number + 1 :]])


def taken(part: Part, loop: int) -> Part:
    """A part inside a scan that walks along its leading dimension."""
    first, *dims = part.dims
    entry = Taken(loop, size_of(first), first)
    return dataclasses.replace(part, dims=tuple(dims), taken=(*part.taken, entry))


def stacked(part: Part, loop: int, length: int) -> Part:
    """A part that comes out of a scan as one entry for each round."""
    if part.taken and part.taken[-1].loop == loop:
        dims = (part.taken[-1].pieces, *part.dims)
        return dataclasses.replace(part, dims=dims, taken=part.taken[:-1])
    return part.with_dims([filler(length), *part.dims])


def merged(parts: Iterable[Part]) -> tuple[Part, ...]:
    """Parts of one view, each once; one that holds less of the same parameter gives way.

    So the norm of a kernel, which weight normalisation divides by, is no second use of it.
    """
    unique = list(dict.fromkeys(parts))
    return tuple(
        part
        for part in unique
        if not any(
            other.leaf == part.leaf and other is not part and part.held < other.held
            for other in unique
        )
    )
