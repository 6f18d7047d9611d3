"""The domain of parameters: an interpreter that follows every parameter until it meets data.

A value is a constant, views of parameters, or data. A view is a parameter that was rearranged and
computed with, alone or with other parameters. Data depend on the model's inputs or on its state, or
come of parameters that met constants in a contraction. Of a view it is known which axes of the
parameter each of its dimensions holds, of data which dimensions a kernel produced.

A dimension holds pieces, major to minor: a whole axis of the parameter, a part of one after a
split, several after a merge, or filler that was broadcast. The methods of a view take it through
operations on shapes; they raise `MixedAxesError` where a dimension would hold no axis's entries.

What an equation makes of its operands is a rule, attached with `rules` in the modules that know
moves and meetings. The body of a loop is run until what it carries changes no more; notes of the
rounds before that are taken back.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np

from jaxinit.jaxpr import (
    SUMS,
    Atom,
    Class,
    Cond,
    Graph,
    Interpreter,
    MixedAxesError,
    Neighbours,
    Node,
    Rules,
    Scan,
    While,
    bind,
    factors,
    is_integral,
    is_key,
    is_of,
    on_numpy,
    sources,
    straighten,
)
from jaxinit.reading._records import AS_IT_IS, Role, Through, Use

# What holds a dimension of data: what some kernel produced, and what none did. From `TAGGED` on the
# output of the meeting with that number less `TAGGED`, as long as it is linear in that output.
FEATURE, OTHER, TAGGED = 0, 1, 2
# The stride of a piece that a kernel made tells axes of that kernel apart, in steps of this.
AXIS = 2**32


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
        through: what the parameter went through so far.
        mixed: pieces of axes that a Fourier transform mixed, as they were before.
    """

    leaf: int
    dims: tuple[Dimension, ...]
    dropped: tuple[int, ...] = ()
    taken: tuple[Taken, ...] = ()
    joints: tuple[Joint, ...] = ()
    is_indexed: bool = False
    why: str | None = None
    through: Through = AS_IT_IS
    mixed: Dimension = ()

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
        before = sources(node, list(map(length_of, self.dims)), shape)
        dims = [_fitted(self.pieces(axes), size) for axes, size in zip(before, shape, strict=True)]
        kept = {axis for axes in before for axis in axes}
        gone = [number for number in range(len(self.dims)) if number not in kept]
        dropped = [axis for number in gone for axis in axes_of(self.dims[number])]
        return self.with_dims(dims, dropped if drops else ())

    def resized(self, shape: Sequence[int]) -> View:
        """Axes that stay where they are and may change in length: a Fourier transform, pooling."""
        dims = list(self.dims)
        for number, (dim, size) in enumerate(zip(self.dims, shape, strict=True)):
            if length_of(dim) != size:
                if len(dim) != 1:
                    raise MixedAxesError
                dims[number] = (dim[0]._replace(size=size),)
        return self.with_dims(dims)

    def transformed(self, numbers: Iterable[int], shape: Sequence[int]) -> View:
        """A Fourier transform of some dimensions; the second one undoes the first."""
        pieces, before = self.pieces(numbers), axes_of(self.mixed)
        after = [piece for piece in pieces if piece.axis not in (None, *before)]
        kept = [piece for piece in self.mixed if piece.axis not in axes_of(pieces)]
        return dataclasses.replace(self.resized(shape), mixed=(*kept, *after))

    def cut(self, number: int, start: int, limit: int, step: int = 1) -> View:
        """A slice of one dimension."""
        dim = self.dims[number]
        if (start, limit, step) == (0, length_of(dim), 1):
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
        return dataclasses.replace(self, dims=tuple(dims), taken=(*self.taken, Taken(loop, first)))

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
        cuts: slices of kernel outputs that it is linear in.
        product: number of each meeting as a scale that it is the result of, with the parameter.
        terms: of a sum, the meetings as scales that its terms are the results of.
        is_outer: whether that product spread data along all axes of the parameter.
        made_of: of data that depend on no input, the parameters and the state that they are made
            of, and what those went through.
    """

    kind: Literal["constant", "parameters", "data"]
    views: tuple[View, ...] = ()
    is_real: bool = False
    is_one_hot: bool = False
    is_iota: bool = False
    cuts: frozenset[Cut] = frozenset()
    product: tuple[tuple[int, View], ...] = ()
    terms: tuple[Term, ...] = ()
    is_outer: bool = False
    made_of: tuple[tuple[int, Through], ...] = ()

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

    @property
    def parameter_axis(self) -> int:
        """The axis of the kernel that made it."""
        return self.stride // AXIS


class Cut(NamedTuple):
    """A slice of a kernel output: along which axis, from where, and whether data scaled it."""

    axis: OutputAxis
    start: int
    is_scaled: bool = False


class Term(NamedTuple):
    """A product with a parameter in a sum: number of the meeting, and the data without moves."""

    number: int
    view: View
    root: Atom


CONSTANT = Value("constant")


def whole(leaf: int, shape: Sequence[int]) -> View:
    """A parameter as it is."""
    return View(leaf, tuple((Piece(axis, size),) for axis, size in enumerate(shape)))


def parameters(views: Iterable[View]) -> Value:
    """A value of these views, each once; one that holds less of the same parameter gives way.

    So the norm of a kernel, which weight normalisation divides by, is no second use of it.
    """
    unique = _each_once(views)
    kept = tuple(
        view
        for view in unique
        if not any(
            other.leaf == view.leaf and other is not view and view.held < other.held
            for other in unique
        )
    )
    return Value("parameters", kept) if kept else CONSTANT


def _each_once(views: Iterable[View]) -> list[View]:
    """Views that differ in more than what the parameter went through."""
    found: dict[View, Through] = {}
    for view in views:
        bare = dataclasses.replace(view, through=AS_IT_IS)
        found[bare] = found[bare].joined(view.through) if bare in found else view.through
    return [dataclasses.replace(view, through=through) for view, through in found.items()]


def through_of(value: Value) -> dict[int, Through]:
    """What each parameter in a value went through; state too, in data that depend on no input."""
    found = dict(value.made_of)
    for view in value.views if value.is_view else ():
        known = found.get(view.leaf)
        found[view.leaf] = view.through if known is None else known.joined(view.through)
    return found


def data(dims: Sequence[Dimension], *, is_real: bool) -> Value:
    """Data with these dimensions."""
    return Value("data", (View(-1, tuple(dims)),), is_real)


def data_of(
    shape: Sequence[int], *, is_real: bool, made: Collection[int] = (), tag: int = FEATURE
) -> Value:
    """Data of some shape, of which a kernel produced some dimensions or none."""
    dims = [(Piece(tag if n in made else OTHER, size),) for n, size in enumerate(shape)]
    return data(dims, is_real=is_real)


def filler(size: int) -> Dimension:
    """A dimension that the parameter has nothing to do with."""
    return (Piece(None, size),) if size != 1 else ()


def length_of(dim: Dimension) -> int:
    """Entries along a dimension."""
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
    return dataclasses.replace(data(dims, is_real=value.is_real), made_of=value.made_of)


def combined(values: Sequence[Value], shape: Sequence[int]) -> tuple[Dimension, ...]:
    """Dimensions of a function of the entries of data: of each the most telling one.

    Of several that are outputs of kernels, the one that was made first.
    """

    def tells(dim: Dimension) -> tuple[int, int, int]:
        axes = [piece.axis for piece in dim if piece.axis is not None and piece.size > 1]
        kind = 0 if not axes else 3 if max(axes) >= TAGGED else 2 if FEATURE in axes else 1
        return kind, -max(axes, default=0), len(dim)

    candidates = [value.views[0].aligned(shape).dims for value in values if value.is_data]
    return tuple(max(dims, key=tells) for dims in zip(*candidates, strict=True))


# Dimensions.


def _fitted(dim: Dimension, size: int) -> Dimension:
    return dim if length_of(dim) == size else dim + filler(size)


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
    if (
        not pieces
        or (start, limit, step) == (0, length_of(dim), 1)
        or (pieces[0].axis or 0) < TAGGED
    ):
        return None
    minor = math.prod(piece.size for piece in pieces[1:])
    axis = OutputAxis(pieces[0].axis or 0, pieces[0].stride, pieces[0].size)
    if len(pieces) == 1:
        return axis, start, limit
    if step == 1 and start % minor == 0 and limit % minor == 0:
        return axis, start // minor, limit // minor
    return None


# Notes.

# Tags from here on are of sums of kernel outputs.
_JOINED = 2**32
# Entries of a constant that is worth computing, such as a mask of 2,048 positions.
_MOST_CONSTANT = 2**22
# A loop that carries something else each time for longer than this carries data.
_MOST_ROUNDS = 8


@dataclasses.dataclass(frozen=True, slots=True)
class Meeting:
    """One meeting of a parameter with data.

    Attributes:
        leaf: number of the parameter.
        use: what it does there.
        why: of an unknown use, the equation and what it does.
    """

    leaf: int
    use: Use
    why: str | None = None


@dataclasses.dataclass(slots=True)
class Notes:
    """What was noted so far.

    Attributes:
        meetings: in order of execution.
        cuts: slices that kernel outputs were cut into: by axis, where each starts and ends, with
            the number of the value that holds it.
        rejoined: axes of kernel outputs whose slices were added or concatenated again.
        regions: of a product with concatenated kernels, by the number of its first meeting: start
            and end of the stretch of the output that each meeting makes, with its number.
        asides: numbers of meetings with nothing that depends on the model's inputs, as in the
            power iteration that finds the norm of a kernel.
        products: number of products of parameters.
        joined: axes of outputs that were added up, two each, by the tag of the axis of their sum.
        latents: parameters that are no kernels, because layers were applied to them before anything
            met data: learned queries.
    """

    meetings: list[Meeting] = dataclasses.field(default_factory=list)
    cuts: dict[OutputAxis, dict[tuple[int, int], int]] = dataclasses.field(default_factory=dict)
    rejoined: set[OutputAxis] = dataclasses.field(default_factory=set)
    regions: dict[int, tuple[tuple[int, int, int], ...]] = dataclasses.field(default_factory=dict)
    asides: set[int] = dataclasses.field(default_factory=set)
    products: int = 0
    joined: dict[int, tuple[OutputAxis, OutputAxis]] = dataclasses.field(default_factory=dict)
    latents: set[int] = dataclasses.field(default_factory=set)

    def copy(self) -> Notes:
        """The notes as they stand."""
        held = {name: copy.copy(getattr(self, name)) for name in self.__slots__}
        return Notes(**held)

    def amend(self, number: int, **changes: Any) -> None:
        """Changes the use in a meeting."""
        met = self.meetings[number]
        self.meetings[number] = dataclasses.replace(
            met, use=_with_fans(dataclasses.replace(met.use, **changes), changes)
        )

    def cut(self, axis: OutputAxis, start: int, limit: int, output: int) -> None:
        """Notes a slice of a kernel's output."""
        self.cuts[axis] = {**self.cuts.get(axis, {}), (start, limit): output}

    def join(self, left: Dimension, right: Dimension) -> Dimension | None:
        """A dimension of a sum of two kernel outputs, where both are cut alike; else None."""
        if [piece.size for piece in left] != [piece.size for piece in right]:
            return None
        dim = []
        for pair in zip(left, right, strict=True):
            axes = [OutputAxis(piece.axis or 0, piece.stride, piece.size) for piece in pair]
            if min(axes).tag < TAGGED:
                return None
            tag = _JOINED + len(self.joined)
            self.joined[tag] = (axes[0], axes[1])
            dim.append(Piece(tag, pair[0].size))
        return tuple(dim)

    def outputs_of(self, axis: OutputAxis) -> Iterator[OutputAxis]:
        """The axes of kernel outputs that one of a sum is made of; else the axis itself."""
        pending = [axis]
        while pending:
            at = pending.pop()
            pending += self.joined.get(at.tag, ())
            if at.tag not in self.joined:
                yield at

    def rejoin(self, values: Sequence[Value]) -> None:
        """Notes slices of one kernel output that meet again: halves of a rotary embedding."""
        slices = {cut for value in values for cut in value.cuts}
        counts = Counter((cut.axis, cut.is_scaled) for cut in slices)
        self.rejoined.update(axis for (axis, _), count in counts.items() if count > 1)


class ParameterDomain(Interpreter[Value]):
    """Follows the parameters of a program.

    Args:
        leaves: shape and dtype of the parameters.
        graph: the program.
        paths: of the parameters.

    Attributes:
        notes: what was found so far.
    """

    def __init__(self, leaves: Sequence[Any], graph: Graph, paths: Sequence[str]) -> None:
        self.leaves, self.graph, self.paths = leaves, graph, paths
        self.arrays = _closed_over(graph)
        self.neighbours = Neighbours(straighten(graph))
        self.notes = Notes()

    def constant(self, value: Any) -> Value:
        """Closed-over arrays and literals are constants."""
        return CONSTANT

    def equation(self, node: Node, operands: list[Value]) -> Sequence[Value]:
        """The results of the rule for the primitive.

        An equation without a rule makes unknown uses of the parameters that it gets together with
        data, and unknown views of those that it gets alone.
        """
        if all(value.kind == "constant" for value in operands):
            return _constants(node, operands)
        return (rules.get(node.primitive) or _unknown)(self, node, operands)

    def scan(self, loop: Scan[Value]) -> list[Value]:
        """Runs the body until its carries settle."""
        number = loop.node.outputs[0] if loop.node.outputs else -1
        entries = [_taken(value, number) for value in loop.scanned]
        results: list[Value] = []

        def body(carries: list[Value]) -> list[Value]:
            after, results[:] = loop.body(carries, entries)
            return after

        carries = self._settled(loop.node, loop.carries, body)
        return [*carries, *(_stacked(value, number, loop.length) for value in results)]

    def while_loop(self, loop: While[Value]) -> list[Value]:
        """Runs condition and body until the carries settle."""

        def body(carries: list[Value]) -> list[Value]:
            loop.condition(carries)
            return loop.body(carries)

        return self._settled(loop.node, loop.carries, body)

    def cond(self, choice: Cond[Value]) -> list[Value]:
        """Runs all branches; each result may be that of any."""
        for view in choice.operands[0].views if choice.operands[0].is_view else ():
            self.note_unknown(view, choice.node, None)
        pairs = zip(zip(*choice.results(), strict=True), choice.node.outputs, strict=True)
        return [self._any_of(results, choice.node, output) for results, output in pairs]

    def _settled(
        self, node: Node, carries: list[Value], body: Callable[[list[Value]], list[Value]]
    ) -> list[Value]:
        """Runs the body of a loop until what it carries stays what it is."""
        for _ in range(_MOST_ROUNDS):
            before = self.notes.copy()
            after = body(carries)
            settled = self.notes.copy()
            joined = [
                value if value == back else self._any_of([value, back], node, None)
                for value, back in zip(carries, after, strict=True)
            ]
            if joined == carries:
                self.notes = settled
                return carries
            self.notes = before
            for old, new in zip(carries, joined, strict=True):
                if old.is_view and new.is_data:
                    self.enters(old, node, None)
            carries = joined
        raise RecursionError(
            f"jaxinit.read needs loops whose carries settle within {_MOST_ROUNDS} rounds, got "
            f"{self.describe(node)}. Please report this model."
        )

    def _any_of(self, values: Sequence[Value], node: Node, output: int | None) -> Value:
        """What may be any of these: of branches, or of the rounds of a loop."""
        held = [value for value in values if value.kind != "constant"]
        known = [untagged(value) for value in held if value.is_data]
        if not known:
            return parameters(view for value in held for view in value.views)
        for value in held:
            self.enters(value, node, output)
        dims = combined(known, tuple(map(length_of, known[0].dims)))
        made = data(dims, is_real=any(value.is_real for value in known))
        made_of: dict[int, Through] = {}
        for leaf, through in ((n, each) for v in held for n, each in through_of(v).items()):
            made_of[leaf] = through.joined(made_of.get(leaf, through))
        return dataclasses.replace(made, made_of=tuple(made_of.items()))

    # What rules ask.

    def shape(self, atom: Atom) -> tuple[int, ...]:
        """Shape of a value or a literal."""
        return tuple(self.graph.aval(atom).shape)

    def describe(self, node: Node) -> str:
        """An equation in one line: its primitive and the shapes of its operands."""
        shapes = ", ".join(str(list(self.shape(atom))) for atom in node.inputs)
        return f"{node.primitive} of {shapes}"

    def array(self, atom: Atom) -> np.ndarray | None:
        """A constant, computed; None where it is none, differs from round to round, or is large."""
        if not isinstance(atom, int):
            return np.asarray(atom.val)
        if atom not in self.arrays:
            self.arrays[atom] = None  # Until it is known: a loop may lead back here.
            node = self.neighbours.makers.get(atom)
            self.arrays[atom] = None if node is None else self._computed(node, atom)
        return self.arrays[atom]

    def _computed(self, node: Node, atom: int) -> np.ndarray | None:
        is_drawn = is_of(node.primitive, Class.DRAWS) and node.primitive != "iota"
        if is_drawn or math.prod(self.shape(atom)) > _MOST_CONSTANT:
            return None
        operands = [self.array(each) for each in node.inputs]
        if any(operand is None for operand in operands):
            return None
        if node.equation is None:
            return operands[0] if node.primitive == "enter" and len(operands) == 1 else None
        found = on_numpy(node.primitive, node.params, operands)
        if found is None:
            found = bind(node.equation, operands)[node.outputs.index(atom)]
        return np.asarray(found)

    def is_read_once(self, atom: Atom) -> bool:
        """Whether one equation reads a value, and nothing else does."""
        readers = self.neighbours.readers.get(atom, ())
        return len(readers) == 1 and atom not in self.graph.outputs

    def changed(
        self,
        node: Node,
        value: Value,
        change: Callable[[View], View],
        output: int | None = None,
    ) -> Value:
        """A value after an operation on shapes.

        Args:
            node: the operation.
            value: what goes in.
            change: what becomes of a view; may raise `MixedAxesError`.
            output: which result it is; the first where none is given.
        """
        shape = self.shape(node.outputs[0] if output is None else output)
        views = []
        for view in value.views:
            try:
                new = view if view.why else change(view)
                if view.why or tuple(map(length_of, new.dims)) != shape:
                    raise MixedAxesError
            except MixedAxesError:
                if value.is_data:
                    return data_of(shape, is_real=value.is_real)
                new = view.unknown(shape, self.describe(node))
            views.append(new)
        product = []
        for number, factor in value.product:
            with contextlib.suppress(MixedAxesError):
                product.append((number, change(factor)))
        unique = tuple(dict.fromkeys(views))
        return dataclasses.replace(value, views=unique, product=tuple(product))

    # What rules note.

    def activates(self, views: Sequence[View]) -> None:
        """Notes the latent among parameters whose product goes into an activation.

        A product of kernels makes a kernel, which goes into none. Of the factors the latent is the
        one with the most products, as queries are multiplied with several kernels; else the left.
        """
        products: dict[int, set[int]] = {}
        sides: dict[int, int] = {}
        for view in views:
            for joint in view.joints:
                products.setdefault(view.leaf, set()).add(joint.number)
                sides.setdefault(view.leaf, joint.side)
        if len(products) > 1 and not self.notes.latents & products.keys():
            latent = max(products, key=lambda leaf: (len(products[leaf]), -sides[leaf]))
            self.notes.latents.add(latent)

    def note(self, view: View, use: Use, why: str | None = None) -> int:
        """Notes a meeting, and returns its number."""
        rounds = math.prod(length_of(entry.pieces) for entry in view.taken)
        if use.times is not None and rounds and use.times % rounds == 0:
            use = dataclasses.replace(use, times=use.times // rounds)
        use = dataclasses.replace(use, through=view.through)
        use = _with_fans(use, ("fan_in", "fan_out"))
        self.notes.meetings.append(Meeting(view.leaf, use, why))
        return len(self.notes.meetings) - 1

    def meets(
        self,
        node: Node,
        view: View,
        role: Role,
        contracted: Sequence[Piece] = (),
        produced: Sequence[Piece] = (),
        batched: Sequence[Piece] = (),
        **changes: Any,
    ) -> int:
        """Notes that a parameter meets data, and returns the number of the meeting.

        Args:
            node: the equation.
            view: the parameter.
            role: what it is there; a kernel has fans.
            contracted: pieces of it that are summed over.
            produced: pieces of it that the output has.
            batched: pieces along which the layer repeats; so it does along axes that an index
                dropped or a scan took.
            **changes: other fields of the use.
        """
        shape = self.leaves[view.leaf].shape
        dropped = {axis for axis in view.dropped if shape[axis] > 1}
        scanned = [piece for entry in view.taken for piece in entry.pieces]
        fields: dict[str, Any] = {
            "contracted": axes_of(contracted),
            "produced": axes_of(produced),
            "batched": tuple(sorted(dropped.union(axes_of(batched), axes_of(scanned)))),
            "output": node.outputs[0] if node.outputs else None,
        }
        if view.mixed and node.primitive in ("dot_general", "mul"):
            # Products of transforms are convolutions: the axes are those of a receptive field.
            role, field = "kernel", axes_of(view.mixed)
            if node.primitive == "mul":
                batched, produced = produced, ()
            fields["batched"] = tuple(n for n in axes_of(batched) if n not in field)
            fields |= {"field": field, "produced": axes_of(produced)}
        if role == "kernel":
            fields |= fans((*contracted, *view.mixed), (*produced, *view.mixed))
        return self.note(view, Use(node.primitive, role, times=node.times, **fields | changes))

    def readable(self, value: Value, node: Node) -> Iterator[View]:
        """The views of a value whose dimensions are known; the others are noted as unknown."""
        for view in value.views if value.is_view else ():
            if view.why is None:
                yield view
            else:
                self.note_unknown(view, node, node.outputs[0])

    def enters(self, value: Value, node: Node, output: int | None) -> None:
        """Notes that parameters become data as they are: tokens, initial states."""
        for view in value.views if value.is_view else ():
            if view.why is not None:
                self.note_unknown(view, node, output)
                continue
            self.meets(node, view, "embedding", produced=view.pieces(), output=output)

    def picks(self, value: Value, node: Node) -> None:
        """Notes parameters that serve as indices; integers, such as counters, are state."""
        for view in value.views if value.is_view else ():
            if not is_integral(self.leaves[view.leaf]):
                self.note_unknown(view, node, node.outputs[0])

    def note_unknown(self, view: View, node: Node, output: int | None) -> None:
        """Notes a meeting that no rule knows."""
        use = Use(node.primitive, "unknown", times=node.times, output=output)
        self.note(view, use, view.why or self.describe(node))


def _with_fans(use: Use, fans: Collection[str]) -> Use:
    """A use whose new fans count the entries that constant masks keep."""
    kept = use.through.kept
    if kept == 1 or use.fan_in is None or use.fan_out is None or "fan_in" not in fans:
        return use
    return dataclasses.replace(use, fan_in=use.fan_in * kept, fan_out=use.fan_out * kept)


def _closed_over(graph: Graph) -> dict[int, np.ndarray | None]:
    """Arrays that a program holds, those of loops and branches among them, by number."""
    found = {
        number: None if is_key(array) else np.asarray(array)
        for number, array in graph.constants.items()
    }
    for body in (body for node in graph.nodes for body in node.bodies):
        found |= _closed_over(body)
    return found


Rule: TypeAlias = Callable[[ParameterDomain, Node, list[Value]], Sequence[Value]]
rules: Rules[Rule] = Rules("reading")


def fans(contracted: Sequence[Piece], produced: Sequence[Piece]) -> dict[str, float]:
    """``fan_in`` and ``fan_out`` of a kernel: terms that are summed, outputs that one input has."""
    return {
        "fan_in": float(math.prod(piece.terms for piece in contracted)),
        "fan_out": float(math.prod(piece.entries for piece in produced)),
    }


def _constants(node: Node, operands: list[Value]) -> list[Value]:
    """Results of an equation on constants; of counters, what makes vectors that are one-hot."""
    name, count = node.primitive, len(node.outputs)
    if is_of(name, Class.REARRANGES) and name not in ("concatenate", "stack"):
        return operands if len(operands) == count else operands[:1] * count
    counts = any(value.is_iota for value in operands)
    is_iota = name == "iota" or (counts and name in SUMS)
    is_one_hot = counts and name == "eq"
    return [dataclasses.replace(CONSTANT, is_iota=is_iota, is_one_hot=is_one_hot)] * count


# A cast of bits may put entries together.
@rules("bitcast_convert_type")
def _unknown(domain: ParameterDomain, node: Node, operands: list[Value]) -> list[Value]:
    known = [value for value in operands if value.is_data]
    views = [view for value in operands if value.is_view for view in value.views]
    shapes = [domain.shape(output) for output in node.outputs]
    if not known:
        why = domain.describe(node)
        return [parameters(view.unknown(shape, why) for view in views) for shape in shapes]
    for view in views:
        domain.note_unknown(view, node, node.outputs[0])
    is_real = any(value.is_real for value in known)
    return [data_of(shape, is_real=is_real) for shape in shapes]


def _taken(value: Value, loop: int) -> Value:
    """One round's entry of what a scan walks along."""
    if value.is_data:
        return dataclasses.replace(value, views=(value.views[0].with_dims(value.dims[1:]),))
    return parameters(view.one_round(loop) for view in value.views)


def _stacked(value: Value, loop: int, length: int) -> Value:
    """What all rounds of a scan give, along a new leading axis."""
    if value.is_data:
        dims = ((Piece(OTHER, length),), *value.dims)
        return dataclasses.replace(value, views=(View(-1, dims),), product=())
    return parameters(view.all_rounds(loop, length) for view in value.views)
