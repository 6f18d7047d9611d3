"""What a value of a program is, as far as parameters go: a constant, a view of parameters, or data.

Data are what depends on the model's inputs, and what became of parameters once they met constants
or state in a contraction. Of data it is known which dimensions a kernel has produced.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable, Sequence
from typing import Literal

from jaxinit.reading._views import Mixed, Part, Piece, aligned, filler, is_held, merged, size_of

# Axes of data: what some kernel produced, and what it did not. From `TAGGED` on, the output of the
# use with that number less `TAGGED`, as long as nothing but linear maps of single entries followed.
FEATURE, OTHER, TAGGED = 0, 1, 2


@dataclasses.dataclass(frozen=True, slots=True)
class Value:
    """An abstract value.

    Attributes:
        kind: what it depends on.
        parts: of a view one for each parameter in it; of data the one with its dimensions.
        is_real: whether data depend on the model's inputs, and not only on constants and state.
        is_one_hot: whether it is a comparison of numbers with all of their values.
        is_iota: whether it counts along a dimension.
        cuts: pieces of kernel outputs that it is a slice of, with where the slice starts.
        product: uses as a scale that it came from just now, with the parameter's part.
        is_outer: whether that product spread data along all axes of the parameter.
    """

    kind: Literal["constant", "view", "data"]
    parts: tuple[Part, ...] = ()
    is_real: bool = False
    is_one_hot: bool = False
    is_iota: bool = False
    cuts: frozenset[tuple[Hashable, int]] = frozenset()
    product: tuple[tuple[int, Part], ...] = ()
    is_outer: bool = False

    @property
    def is_view(self) -> bool:
        """Whether it depends on parameters and on nothing else but constants."""
        return self.kind == "view"

    @property
    def is_data(self) -> bool:
        """Whether it depends on inputs or state."""
        return self.kind == "data"


CONSTANT = Value("constant")


def view(parts: Sequence[Part]) -> Value:
    """A view of these parts."""
    return Value("view", merged(parts))


def data(dims: Sequence[tuple[Piece, ...]], *, is_real: bool) -> Value:
    """Data with these dimensions."""
    return Value("data", (Part(-1, tuple(dims)),), is_real)


def plain(shape: Sequence[int], *, is_real: bool) -> Value:
    """Data none of whose dimensions a kernel produced."""
    return data([(Piece(OTHER, size),) for size in shape], is_real=is_real)


def dims_of(value: Value, shape: Sequence[int]) -> tuple[tuple[Piece, ...], ...]:
    """Dimensions of data or of a constant, at a shape."""
    if not value.is_data:
        return tuple(filler(size) for size in shape)
    return aligned(value.parts[0], shape).dims


def opaque(part: Part, shape: Sequence[int], why: str) -> Part:
    """A part whose dimensions are not known any more."""
    return dataclasses.replace(
        part, dims=tuple(filler(size) for size in shape), why=part.why or why
    )


def mapped(value: Value, change: Callable[[Part], Part], shape: Sequence[int], why: str) -> Value:
    """A value after an operation on shapes.

    Args:
        value: what goes in.
        change: what becomes of a part; may raise `Mixed`.
        shape: of the result.
        why: what is said of a view that becomes unreadable.
    """
    if value.kind == "constant":
        return value
    parts = []
    for part in value.parts:
        try:
            new = change(part) if part.why is None else opaque(part, shape, why)
            if tuple(map(size_of, new.dims)) != tuple(shape):
                raise Mixed
            parts.append(new)
        except Mixed:
            if value.is_data:
                return plain(shape, is_real=value.is_real)
            parts.append(opaque(part, shape, why))
    return dataclasses.replace(value, parts=tuple(dict.fromkeys(parts)), product=())


def untagged(value: Value) -> Value:
    """Data that are no longer linear in the kernel output that they came from."""
    if not value.is_data:
        return value
    (part,) = value.parts
    dims = tuple(
        tuple(p._replace(axis=FEATURE) if (p.axis or 0) >= TAGGED else p for p in dim)
        for dim in part.dims
    )
    return data(dims, is_real=value.is_real)


def combined(values: Sequence[Value], shape: Sequence[int]) -> tuple[tuple[Piece, ...], ...]:
    """Dimensions of an elementwise function of data: a feature where any of them has one."""
    candidates = [dims_of(value, shape) for value in values if value.is_data]
    return tuple(max(dims, key=_rank) for dims in zip(*candidates, strict=True))


def _rank(dim: tuple[Piece, ...]) -> int:
    axes = [piece.axis for piece in dim if piece.axis is not None and piece.size > 1]
    if not axes:
        return 0
    return 3 if max(axes) >= TAGGED else 2 if FEATURE in axes else 1


def is_feature(dim: tuple[Piece, ...]) -> bool:
    """Whether a kernel produced a dimension of data."""
    return any(piece.axis not in (None, OTHER) for piece in dim)


def is_spread(dim: tuple[Piece, ...]) -> bool:
    """Whether a value repeats along a dimension."""
    return not is_held(dim)
