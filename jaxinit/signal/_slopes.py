"""Gradients as tables: functions of the normal numbers that a draw was made of."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np

from jaxinit.signal import _tables as tables


@dataclasses.dataclass(frozen=True, eq=False)
class Slope:
    """Gradient over its draw: a table with two leading axes, the rows and (low, high).

    ``along`` are the axes of positions that share the draw; None where that is not known.
    """

    table: np.ndarray
    sources: tuple[int, ...]
    along: frozenset[int] | None = frozenset()

    @functools.cached_property
    def mean_square(self) -> np.ndarray:
        """Second moment over everything that it is a function of."""
        if self.table.ndim == 2 or self.table.shape[-1] == 1:
            return mean_of(self.table**2)
        # One pass: a table of three sources has 28 million entries.
        table, weights = self.table, tables.weights()
        return mean_of(np.einsum("...i,...i,i->...", table, table, weights))


def times(a: Slope, b: Slope) -> Slope:
    """The product of two slopes, one behind the other."""
    one, other, sources = _aligned(a, b)
    # No slope is no gradient, even of one that is not known.
    with np.errstate(invalid="ignore"):
        product = one * other
    np.copyto(product, 0.0, where=np.isnan(product))
    return Slope(product, sources, a.along)


def added(a: Slope, b: Slope) -> Slope:
    """The sum of two slopes of one draw."""
    one, other, sources = _aligned(a, b)
    return Slope(one + other, sources, a.along if a.along == b.along else None)


def mean_of(square: np.ndarray) -> np.ndarray:
    """Mean of a table over everything that it is a function of."""
    while square.ndim > 2:
        # A table without some source has one node along it.
        square = square[..., 0] if square.shape[-1] == 1 else square @ tables.weights()
    return square


def _aligned(a: Slope, b: Slope) -> tuple[np.ndarray, np.ndarray, tuple[int, ...]]:
    if a.sources == b.sources:
        return a.table, b.table, a.sources
    joint = tuple(sorted({*a.sources, *b.sources}))
    return _spread(a, joint), _spread(b, joint), joint


def _spread(slope: Slope, joint: tuple[int, ...]) -> np.ndarray:
    rows, ends = slope.table.shape[:2]
    flat = slope.table.reshape(rows * ends, *slope.table.shape[2:])
    order = [joint.index(s) for s in slope.sources]
    flat = np.transpose(flat, [0, *(1 + int(i) for i in np.argsort(order))])
    places = sorted(order)
    lengths = iter(flat.shape[1:])
    shape = [next(lengths) if i in places else 1 for i in range(len(joint))]
    return flat.reshape(rows, ends, *shape)
