"""What a value of a program is, as far as parameters go: a constant, views of parameters, or data.

A view is a parameter that was rearranged and computed with, alone or with other parameters. Data
depend on the model's inputs or on its state, or come of parameters that met constants in a
contraction. Of a view it is known which axes of the parameter each of its dimensions holds, of data
which dimensions a kernel produced.

A dimension holds pieces, major to minor: a whole axis of the parameter, a part of one after a
split, several after a merge, or filler that was broadcast. The methods of a view take it through
operations on shapes; they raise `MixedAxesError` where a dimension would hold no axis's entries.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Iterable, Sequence
from typing import Literal, NamedTuple, TypeAlias

from jaxinit.jaxpr import MixedAxesError, Node, factors, sources

# What holds a dimension of data: what some kernel produced, and what none did. From `TAGGED` on the
# output of the meeting with that number less `TAGGED`, as long as it is linear in that output.
FEATURE, OTHER, TAGGED = 0, 1, 2


class Piece(NamedTuple):
    """What a dimension holds of one axis.

    Attributes:
        axis: axis of the parameter, None for filler; of data `FEATURE`, `OTHER` or a tag.
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


class Joint(NamedTuple):
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
    """Pieces of a leading dimension that a scan walks along and its body does not see."""

    loop: int
    length: int
    pieces: Dimension


@dataclasses.dataclass(frozen=True, slots=True)
class View:
    """What a value holds of one parameter; or an array of data, with its dimensions.

    Attributes:
        leaf: number of the parameter; -1 for data.
        dims: pieces of each dimension.
        dropped: axes that an index or a squeeze took away.
        taken: axes that scans walk along.
        joints: products with other parameters.
        is_indexed: whether entries were picked by numbers that do not depend on data.
        why: the equation that made the dimensions unknown; None while they are known.
    """

    leaf: int
    dims: tuple[Dimension, ...]
    dropped: tuple[int, ...] = ()
    taken: tuple[Taken, ...] = ()
    joints: tuple[Joint, ...] = ()
    is_indexed: bool = False
    why: str | None = None

    def with_dims(self, dims: Iterable[Iterable[Piece]], dropped: Iterable[int] = ()) -> View:
        """The view with other dimensions, and more axes dropped."""
        dims = tuple(map(tuple, dims))
        return dataclasses.replace(self, dims=dims, dropped=self.dropped + tuple(dropped))

    def replaced(self, number: int, dim: Iterable[Piece]) -> View:
        """The view with another dimension in the place of one."""
        return self.with_dims([*self.dims[:number], dim, *self.dims[number + 1 :]])

    def pieces(self, dimensions: Iterable[int] | None = None) -> Dimension:
        """Pieces in some dimensions, or in all of them."""
        numbers = range(len(self.dims)) if dimensions is None else dimensions
        return tuple(piece for number in numbers for piece in self.dims[number])

    def unknown(self, shape: Sequence[int], why: str) -> View:
        """The view when its dimensions are not known any more."""
        return dataclasses.replace(self, dims=tuple(map(filler, shape)), why=self.why or why)

    @property
    def held(self) -> frozenset[tuple[int, int, int]]:
        """Dimension, axis and stride of every piece that is no filler."""
        return frozenset(
            (number, piece.axis, piece.stride)
            for number, dim in enumerate(self.dims)
            for piece in dim
            if piece.axis is not None
        )

    # Through operations on shapes.

    def aligned(self, shape: Sequence[int]) -> View:
        """A view broadcast to a shape as functions of entries do: scalars, dimensions of one."""
        if not self.dims and shape:
            return self.with_dims(map(filler, shape))
        return self.with_dims(
            _fitted(dim, size) for dim, size in zip(self.dims, shape, strict=True)
        )

    def regrouped(self, shape: Sequence[int]) -> View:
        """A reshape: dimensions are split and merged."""
        pieces = self.pieces()
        dims, used = [], set()
        for parts in factors([piece.size for piece in pieces], shape):
            dim = []
            for number, size, stride in parts:
                piece = pieces[number]
                used.add(number)
                if size != piece.size:
                    if not piece.is_whole and piece.axis is not None:
                        raise MixedAxesError
                    piece = Piece(piece.axis, size, piece.stride * stride)
                dim.append(piece)
            dims.append(dim)
        left_out = [piece for number, piece in enumerate(pieces) if number not in used]
        return self.with_dims(dims, [piece.axis for piece in left_out if piece.axis is not None])

    def moved(self, node: Node, shape: Sequence[int], *, drops: bool) -> View:
        """Axes in another order, spread, squeezed away or reduced.

        Args:
            node: the equation.
            shape: of the result.
            drops: whether an axis that goes away stays an axis along which the layer repeats.
        """
        before = sources(node, list(map(size_of, self.dims)), shape)
        dims = [_fitted(self.pieces(axes), size) for axes, size in zip(before, shape, strict=True)]
        kept = {axis for axes in before for axis in axes}
        gone = [number for number in range(len(self.dims)) if number not in kept]
        dropped = [axis for number in gone for axis in axes_of(self.dims[number])]
        return self.with_dims(dims, dropped if drops else ())

    def resized(self, shape: Sequence[int]) -> View:
        """Axes that stay where they are and may change in length: a Fourier transform, pooling."""
        dims = list(self.dims)
        for number, (dim, size) in enumerate(zip(self.dims, shape, strict=True)):
            if size_of(dim) != size:
                if len(dim) != 1:
                    raise MixedAxesError
                dims[number] = (dim[0]._replace(size=size),)
        return self.with_dims(dims)

    def cut(self, number: int, start: int, limit: int, step: int = 1) -> View:
        """A slice of one dimension."""
        dim = self.dims[number]
        if (start, limit, step) == (0, size_of(dim), 1):
            return self
        real = [piece for piece in dim if piece.size != 1]
        ones = [piece for piece in dim if piece.size == 1]
        return self.replaced(number, (*ones, *_cut(real, start, limit, step)))

    def padded(self, configuration: Sequence[tuple[int, int, int]]) -> View:
        """Zeros around and between the entries, which count for no fan."""
        dims = []
        for dim, (low, high, interior) in zip(self.dims, configuration, strict=True):
            if not (low or high or interior):
                dims.append(dim)
                continue
            if min(low, high) < 0 or len(dim) > 1 or (dim and interior and not dim[0].is_whole):
                raise MixedAxesError
            old = dim[0] if dim else Piece(None, 1)
            size = low + high + old.size + interior * max(0, old.size - 1)
            start = low + old.start
            dims.append([old._replace(size=size, start=start, own=old.entries, filled=old.terms)])
        return self.with_dims(dims)

    def beside(self, number: int, before: int, total: int) -> View:
        """A view after concatenation along one dimension with other arrays."""
        dim = self.dims[number]
        if len([piece for piece in dim if piece.size != 1]) > 1:
            if all(piece.axis is None for piece in dim):
                return self.replaced(number, filler(total))
            raise MixedAxesError
        old = next((piece for piece in dim if piece.size != 1), dim[0] if dim else Piece(None, 1))
        new = old._replace(
            size=total,
            start=before + old.start,
            own=old.entries if old.axis is not None else -1,
            filled=old.terms + total - old.size if old.filled >= 0 else -1,
        )
        return self.replaced(number, [new])

    def one_round(self, loop: int) -> View:
        """A view inside a scan that walks along its leading dimension."""
        first, *dims = self.dims
        entry = Taken(loop, size_of(first), first)
        return dataclasses.replace(self, dims=tuple(dims), taken=(*self.taken, entry))

    def all_rounds(self, loop: int, length: int) -> View:
        """A view that comes out of a scan as one entry for each round."""
        if self.taken and self.taken[-1].loop == loop:
            dims = (self.taken[-1].pieces, *self.dims)
            return dataclasses.replace(self, dims=dims, taken=self.taken[:-1])
        return self.with_dims([filler(length), *self.dims])


@dataclasses.dataclass(frozen=True, slots=True)
class Value:
    """What the domain of parameters knows of one value.

    Attributes:
        kind: what it depends on.
        views: of parameters one for each; of data the one with its dimensions.
        is_real: whether data depend on the model's inputs, and not only on constants and state.
        is_one_hot: whether it is a comparison of numbers with all of their values.
        is_iota: whether it counts along a dimension.
        cuts: axes of kernel outputs that it is a slice of, with where the slice starts.
        product: number of each meeting as a scale that it is the result of, with the parameter.
        is_outer: whether that product spread data along all axes of the parameter.
    """

    kind: Literal["constant", "parameters", "data"]
    views: tuple[View, ...] = ()
    is_real: bool = False
    is_one_hot: bool = False
    is_iota: bool = False
    cuts: frozenset[tuple[OutputAxis, int]] = frozenset()
    product: tuple[tuple[int, View], ...] = ()
    is_outer: bool = False

    @property
    def is_view(self) -> bool:
        """Whether it depends on parameters and on nothing else but constants."""
        return self.kind == "parameters"

    @property
    def is_data(self) -> bool:
        """Whether it depends on inputs or state."""
        return self.kind == "data"

    @property
    def dims(self) -> tuple[Dimension, ...]:
        """Dimensions of data."""
        return self.views[0].dims


class OutputAxis(NamedTuple):
    """An axis of what a kernel produced: tag of the meeting, stride along that axis, and size."""

    tag: int
    stride: int
    size: int


CONSTANT = Value("constant")


def whole(leaf: int, shape: Sequence[int]) -> View:
    """A parameter as it is."""
    return View(leaf, tuple((Piece(axis, size),) for axis, size in enumerate(shape)))


def parameters(views: Iterable[View]) -> Value:
    """A value of these views, each once; one that holds less of the same parameter gives way.

    So the norm of a kernel, which weight normalisation divides by, is no second use of it.
    """
    unique = list(dict.fromkeys(views))
    kept = tuple(
        view
        for view in unique
        if not any(
            other.leaf == view.leaf and other is not view and view.held < other.held
            for other in unique
        )
    )
    return Value("parameters", kept) if kept else CONSTANT


def data(dims: Sequence[Dimension], *, is_real: bool) -> Value:
    """Data with these dimensions."""
    return Value("data", (View(-1, tuple(dims)),), is_real)


def plain(
    shape: Sequence[int], *, is_real: bool, made: Collection[int] = (), tag: int = FEATURE
) -> Value:
    """Data of some shape, of which a kernel produced some dimensions or none."""
    dims = [(Piece(tag if n in made else OTHER, size),) for n, size in enumerate(shape)]
    return data(dims, is_real=is_real)


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


def is_feature(dim: Dimension) -> bool:
    """Whether a kernel produced a dimension of data."""
    return any(piece.axis not in (None, OTHER) for piece in dim)


# Data and their kernels.


def untagged(value: Value) -> Value:
    """Data that are no longer linear in the kernel output that they came from."""
    if not value.is_data:
        return value
    dims = tuple(
        tuple(p._replace(axis=FEATURE) if (p.axis or 0) >= TAGGED else p for p in dim)
        for dim in value.dims
    )
    return data(dims, is_real=value.is_real)


def combined(values: Sequence[Value], shape: Sequence[int]) -> tuple[Dimension, ...]:
    """Dimensions of a function of the entries of data: of each the most telling one."""

    def tells(dim: Dimension) -> int:
        axes = [piece.axis for piece in dim if piece.axis is not None and piece.size > 1]
        return 0 if not axes else 3 if max(axes) >= TAGGED else 2 if FEATURE in axes else 1

    candidates = [value.views[0].aligned(shape).dims for value in values if value.is_data]
    return tuple(max(dims, key=tells) for dims in zip(*candidates, strict=True))


# Dimensions.


def _fitted(dim: Dimension, size: int) -> Dimension:
    return dim if size_of(dim) == size else dim + filler(size)


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
    raise MixedAxesError


def _cut_one(piece: Piece, start: int, limit: int, step: int) -> Piece:
    size = -(-(limit - start) // step)
    if piece.is_whole:
        return piece._replace(size=size)
    own_start, own_limit = piece.start, piece.start + piece.entries
    first, last = max(own_start, start), min(own_limit, limit)
    own = max(0, -(-(last - first) // step))
    filled = min(piece.terms, size)
    return piece._replace(size=size, start=max(0, first - start) // step, own=own, filled=filled)


def cut_of(dim: Dimension, start: int, limit: int, step: int) -> tuple[OutputAxis, int, int] | None:
    """The axis of a kernel's output that a slice of data cuts, and from where to where.

    Every other entry from an offset on, as interleaved halves are taken, counts as a cut too.

    Returns:
        None where the slice takes everything, where no single axis is cut, or where that axis is
        not of the output of a kernel.
    """
    pieces = [piece for piece in dim if piece.size != 1]
    if not pieces or (start, limit, step) == (0, size_of(dim), 1) or (pieces[0].axis or 0) < TAGGED:
        return None
    minor = math.prod(piece.size for piece in pieces[1:])
    axis = OutputAxis(pieces[0].axis or 0, pieces[0].stride, pieces[0].size)
    if len(pieces) == 1:
        return axis, start, limit
    if step == 1 and start % minor == 0 and limit % minor == 0:
        return axis, start // minor, limit // minor
    return None
