"""Random numbers as tables: a value is a function of at most two independent standard normals.

A pre-activation of a wide layer is normal, so what lies between it and the next map is a function
of one standard normal number, and a gate is one of two. Tabulated on a grid, any chain of
primitives keeps its dependence on itself: ``x * sigmoid(x)`` is one function, not a product of
independent factors. Every table has two rows, the scenarios: everything that is not known exactly
at its low end, and at its high end. Where all is exact the rows are equal.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

# Even, so that no node lies on the kink that most activations have at zero; 8 standard deviations
# hold what relu(x)**4 needs. E relu(z) is off by 2e-4, E relu(z)**2 by 1e-6.
NODES = 192
_REACH = 8.0
ROWS = 2
# Hermite coefficients used for correlations; what lies beyond is bounded.
_ORDERS = 24
# A slope of one.
ONE = np.ones(ROWS)


@functools.cache
def grid() -> np.ndarray:
    """Nodes of a standard normal number."""
    step = 2 * _REACH / NODES
    return (np.arange(NODES) - (NODES - 1) / 2) * step


@functools.cache
def weights() -> np.ndarray:
    """Probability that each node stands for."""
    density = np.exp(-0.5 * grid() ** 2)
    return density / density.sum()


@functools.cache
def _edges() -> np.ndarray:
    """Cumulative probability between nodes."""
    return np.concatenate([[0.0], np.cumsum(weights())])


@functools.cache
def _hermite() -> np.ndarray:
    """Normalised Hermite polynomials times the weights, orders x nodes."""
    z = grid()
    rows = [np.ones_like(z), z]
    for order in range(1, _ORDERS):
        rows.append((z * rows[-1] - math.sqrt(order) * rows[-2]) / math.sqrt(order + 1))
    return np.stack(rows) * weights()


def expectation(table: np.ndarray, leading: int = 1) -> np.ndarray:
    """Mean over all normal numbers that a table is a function of: its axes after the leading ones.

    An axis of length one belongs to a number that the table does not depend on.
    """
    while table.ndim > leading:
        table = table[..., 0] if table.shape[-1] == 1 else table @ weights()
    return table


def full_weights(sources: int) -> np.ndarray:
    """Probability of each combination of nodes of so many independent numbers."""
    return functools.reduce(np.multiply.outer, [weights()] * sources, np.ones(()))


def rowwise(numbers: np.ndarray, table: np.ndarray) -> np.ndarray:
    """One number per row, in a shape that multiplies a table."""
    return numbers.reshape(*numbers.shape, *[1] * (table.ndim - numbers.ndim))


def ends(gain: Any) -> np.ndarray:
    """A number, or one per row, as rows x (low end, high end)."""
    array = np.asarray(gain, dtype=float)
    return np.broadcast_to(array[:, None] if array.ndim == 1 else array, (ROWS, 2))


def fraction(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Part of a whole, between 0 and 1; the part itself where the whole is 0 or less."""
    return np.clip(part / np.where(whole > 0, whole, 1.0), 0.0, 1.0)


def spread(
    table: np.ndarray, sources: Sequence[int], joint: Sequence[int], leading: int = 1
) -> np.ndarray:
    """A table with one axis for each of the joint sources; of length 1 where it lacks one.

    Both lists of sources are in ascending order.
    """
    lengths = dict(zip(sources, table.shape[leading:], strict=True))
    return table.reshape(*table.shape[:leading], *(lengths.get(source, 1) for source in joint))


def normal(mean: np.ndarray, variance: np.ndarray) -> np.ndarray:
    """Table of a normal number with these moments, one of each per row."""
    deviation = np.sqrt(np.maximum(variance, 0.0))
    return mean[:, None] + deviation[:, None] * grid()


def uniform() -> np.ndarray:
    """Table of a number uniform between 0 and 1."""
    middle = (_edges()[1:] + _edges()[:-1]) / 2
    return np.broadcast_to(middle, (ROWS, NODES))


@dataclasses.dataclass(frozen=True, eq=False)
class Expansion:
    """A table in Hermite polynomials, from which its correlations follow by Mehler's formula.

    Attributes:
        squares: squared coefficients, rows x orders for each normal number that it depends on.
        rest: what of the second moment lies beyond the last order.
    """

    squares: np.ndarray
    rest: np.ndarray

    def cross(self, correlations: Sequence[np.ndarray]) -> np.ndarray:
        """Mean product of two copies whose normal numbers have the given correlations.

        Args:
            correlations: one number per row, for each normal number.

        Returns:
            One number per row.
        """
        orders, known = np.arange(_ORDERS + 1), self.squares
        clipped = [np.clip(c, 0.0, 1.0) for c in correlations]
        for correlation in reversed(clipped):
            powers = correlation[:, None] ** orders[: known.shape[-1]]
            known = (known * powers.reshape(ROWS, *[1] * (known.ndim - 2), -1)).sum(-1)
        if not clipped:
            return known
        # Beyond the last order powers are nearly nothing, unless the correlation is nearly one.
        return known + self.rest * np.max(clipped, axis=0) ** (_ORDERS + 1)


def expansion(table: np.ndarray) -> Expansion:
    """A table, rows x one axis for each normal number, in Hermite polynomials."""
    coefficients, second = table, expectation(table**2)
    for axis in range(1, table.ndim):
        if table.shape[axis] > 1:
            moved = np.moveaxis(coefficients, axis, -1) @ _hermite().T
            coefficients = np.moveaxis(moved, -1, axis)
    squares = coefficients**2
    rest = second - squares.reshape(ROWS, -1).sum(-1)
    return Expansion(squares, np.maximum(rest, 0.0))


def single(table: np.ndarray) -> tuple[int, np.ndarray] | None:
    """Which of two numbers a table depends on, and the table of it; None where on both.

    Args:
        table: rows x nodes x nodes.
    """
    for axis, other in ((0, 2), (1, 1)):
        first, last = (np.take(table, [node], other) for node in (0, -1))
        # The last nodes tell most tables apart, and the rest need not be looked at.
        parts = (last, table)
        if all(np.all(np.abs(part - first) <= 1e-12 * np.abs(first)) for part in parts):
            return axis, np.squeeze(first, other)
    return None


def compress(values: np.ndarray, mass: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The law of weighted values as a function of one standard normal number.

    Args:
        values: rows x anything.
        mass: probability of each value, of the shape of one row.

    Returns:
        The table, rows x nodes, with the mean and the variance of the values; and for every value
        the node that it went to, in the shape of the values.
    """
    if len(values) > 1 and np.array_equal(values[0], values[1]):
        # All is exact.
        table, places = compress(values[:1], mass)
        return np.repeat(table, len(values), 0), np.repeat(places, len(values), 0)
    flat, mass = values.reshape(len(values), -1), mass.reshape(-1)
    order = np.argsort(flat, axis=1, kind="stable")
    rows, places = [], np.empty(flat.shape, dtype=np.int32)
    for row, (numbers, sorting) in enumerate(zip(flat, order, strict=True)):
        ordered, share = numbers[sorting], mass[sorting]
        reached = np.concatenate([[0.0], np.cumsum(share)])
        sums = np.concatenate([[0.0], np.cumsum(share * ordered)])
        table = np.diff(np.interp(_edges(), reached, sums)) / weights()
        rows.append(_with_moments(table, numbers, mass))
        middle = (reached[1:] + reached[:-1]) / 2
        # Values are in order, so nodes begin where a few edges lie among them.
        begins = np.searchsorted(middle, _edges()[1:-1], side="right")
        lengths = np.diff(begins, prepend=0, append=middle.size)
        places[row, sorting] = np.repeat(np.arange(NODES, dtype=np.int32), lengths)
    return np.stack(rows), places.reshape(values.shape)


def _with_moments(table: np.ndarray, values: np.ndarray, mass: np.ndarray) -> np.ndarray:
    """The table, shifted and stretched to the mean and variance of the values."""
    # Not by BLAS, whose threads wait for each other longer than this takes.
    mean = float(np.einsum("i,i", values, mass))
    variance = float(np.einsum("i,i,i", values - mean, values - mean, mass))
    shifted = table - table @ weights()
    own = float(shifted**2 @ weights())
    return mean + shifted * (math.sqrt(variance / own) if own > 0 else 0.0)


def of_array(array: np.ndarray) -> np.ndarray:
    """The law of the entries of an array, as a table."""
    flat = np.asarray(array, dtype=np.float64).reshape(-1)
    # An even choice of entries says as much as all of them.
    flat = flat[:: max(1, flat.size // 2**16)]
    table, _ = compress(flat[None], np.full(flat.size, 1 / flat.size))
    return np.broadcast_to(table, (ROWS, NODES))


def largest_of(table: np.ndarray, count: int) -> np.ndarray:
    """Law of the largest of independent copies of a number, as a table of one normal number."""
    ordered, _ = compress(table, full_weights(table.ndim - 1))
    middle = uniform()[0]
    return np.stack([np.interp(middle ** (1 / count), middle, row) for row in ordered])
