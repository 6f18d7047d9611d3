"""Expectations under a Gaussian of a function made ready, and the places where it jumps."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import numpy as np

from jaxinit.activations._function import Function
from jaxinit.activations._quadrature import (
    MOST_PANELS,
    DivergenceError,
    Integrals,
    integrate,
    largest_row,
    panels,
    weight,
)

Array = np.ndarray

# Standard deviations that are integrated over. Beyond 40 the density is zero in float64, and what
# grows like exp(z^2 / 5) still has moments; with several inputs, 12 serves whatever grows slower.
_RANGE = 40.0
_RANGE_OF_SEVERAL = 12.0
_ROWS_AT_ONCE = 512
_WIDTH = 0.25  # of a panel where the density is
_MOST_BREAKS = 256
_MOST_STEEP = 16
# Of outer panels, each of which is 21 inner integrals of some 20 panels.
_MOST_OUTER = 2**9
# Channels of `measure`.
MEAN, SECOND, DERIVATIVE, SLOPE = range(4)


def tidy(value: float) -> float:
    """Thirteen digits: what is right of them, so that another machine finds the same number."""
    return float(f"{value:.12e}")


def measure(function: Function, q: Array) -> tuple[Integrals, tuple[float, ...]]:
    """E f, E f^2, E f'^2 and dE f^2/dq at several variances, and where the function jumps.

    Args:
        function: made ready.
        q: variances, of shape (n,).

    Returns:
        Integrals of shape (4, n), and the jumps that were met.

    Raises:
        ValueError: when E f, E f^2 or the slope of the latter do not exist. E f'^2 is infinite
            where it does not.
    """
    try:
        if function.inputs > 1:
            return _of_several(function, q), ()
        found = _of_one(function, q)
        jumps, steep = _steps(function, found, np.sqrt(q))
        if steep:
            function.steep += steep
            found = _of_one(function, q)
    except DivergenceError as error:
        raise _no_moment(function, f"{error}") from None
    unclear = found.errors > (1e-8 + function.noise) * np.maximum(np.abs(found.values), 1e-300)
    unclear &= found.errors > 1e-9 * np.maximum(found.values[[SECOND]], 1e-300)
    if unclear[[MEAN, SECOND, SLOPE]].any():
        raise _no_moment(function, "its integral does not settle")
    values = found.values.copy()
    values[DERIVATIVE, unclear[DERIVATIVE]] = math.inf
    return dataclasses.replace(found, values=values), jumps


def _no_moment(function: Function, why: str) -> ValueError:
    return ValueError(
        f"{function.caller} needs an activation with a finite second moment, got {function.name}: "
        f"{why}. Clip it, or use one that grows slower."
    )


def edges(function: Function, scales: Array, *, reach: float = _RANGE) -> Array:
    """Edges of panels over z for f(scale * z), one row for each scale.

    Fine where the density is, finer towards zero where the scale squeezes the function, with an
    edge on every break that is known and a ladder of them on both sides of a steep place.
    """
    tails = np.linspace(8, max(reach, 8), 9)
    squeezed = int(np.ceil(np.log2(max(float(scales.max()), 1.0)))) + 1
    near = _WIDTH * 0.5 ** np.arange(1, squeezed + 1)
    parts = [np.concatenate([-tails, np.linspace(-8, 8, 65), tails, -near, near])[None, :]]
    if function.breaks:
        parts.append(np.array(list(function.breaks))[None, :] / scales[:, None])
    ladder = _WIDTH * 0.5 ** np.arange(1, 56)
    for place in function.steep:
        parts.append(place / scales[:, None] + np.concatenate([-ladder, ladder]))
    rows = len(scales)
    parts = [np.broadcast_to(part, (rows, part.shape[1])) for part in parts]
    return np.clip(np.concatenate(parts, axis=1), -reach, reach)


def _of_one(function: Function, q: Array) -> Integrals:
    scales = np.sqrt(q)

    def evaluate(z: Array, row: Array) -> Array:
        values, slopes = function(scales[row] * z, weighed=z)
        square = values * values
        # By parts, dE f^2 / dq = E (z^2 - 1) f^2 / 2q: no derivative, so a jump does no harm.
        slope = (z * z - 1) * square / (2 * q[row])
        return np.stack([values, square, slopes[0] ** 2, slope]) * weight(z)

    with np.errstate(over="ignore", invalid="ignore"):
        found = integrate(evaluate, panels(edges(function, scales)), noise=4 * function.noise)
    for start, end, row in found.deep:
        _remember(function, (start + end) / 2 * scales[row], (end - start) * scales[row])
    return found


def _remember(function: Function, place: float, width: float) -> None:
    """Keeps a break that was found, so that the next integral has an edge on it."""
    near = 1e-12 * max(1.0, abs(place))
    if len(function.breaks) < _MOST_BREAKS:
        if all(abs(place - known) > near for known in function.breaks):
            function.breaks[place] = width


def _steps(
    function: Function, found: Integrals, scales: Array
) -> tuple[tuple[float, ...], list[float]]:
    """Arguments at which the function jumps, and at which it climbs unseen.

    Looked at are breaks, and the edges of panels: what happens on an edge no panel has seen. A
    function that is flat on both sides of an edge at the distance of the nearest points, and yet
    differs, jumps if it differs next to the edge too, else climbs in between.
    """
    row = np.array([r for _, _, r in found.halved], int)
    split, half = np.array([(place, half) for place, half, _ in found.halved]).reshape(-1, 2).T
    z = np.unique(edges(function, scales[:1], reach=8.0))
    coarse, gaps = z[1:-1] * scales[0], np.diff(z) * scales[0]
    breaks, known = np.array(list(function.breaks.items())).reshape(-1, 2).T
    places = np.concatenate([coarse, split * scales[row], breaks])
    widths = np.concatenate(
        [np.minimum(gaps[1:], gaps[:-1]), half * scales[row], np.zeros(len(breaks))]
    )
    exact = np.concatenate([np.zeros(len(coarse) + len(split)), 2 * known])
    closest = np.where(places == 0, 1e-200, 64 * np.spacing(np.abs(places)))
    next_to = np.maximum(closest, exact)
    size = math.sqrt(max(float(found.values[SECOND].max()), 0.0))
    differs_near = _differs(function, places, next_to, size)
    # Of the points of the rule the first is 0.0022 of a panel away from its edge.
    differs_far = _differs(function, places, np.maximum(0.002 * widths, next_to), size)
    jumps = sorted(set(np.where(places == 0, 0.0, places)[differs_near].tolist()))
    steep = set(places[differs_far & ~differs_near].tolist()) - set(function.steep)
    return tuple(_apart(jumps)), sorted(steep)[:_MOST_STEEP]


def _differs(function: Function, places: Array, step: Array, size: float) -> Array:
    """Whether values on both sides differ by more than the slopes there explain."""
    left, slope_left = function(places - step)
    right, slope_right = function(places + step)
    with np.errstate(invalid="ignore"):
        steep = np.maximum(np.abs(slope_left[0]), np.abs(slope_right[0]))
        return np.abs(right - left) > 8 * step * steep + max(1e-9, 64 * function.noise) * size


def _apart(places: list[float]) -> list[float]:
    """The same places, each once where rounding found them twice."""
    kept: list[float] = []
    for place in places:
        if not kept or place - kept[-1] > 1e-9 * max(1.0, abs(place)):
            kept.append(place)
    return kept


def _of_several(function: Function, q: Array) -> Integrals:
    """The same with independent inputs: an integral within an integral."""
    columns = []
    for variance in q:
        scale = math.sqrt(variance)
        inner = functools.partial(_channels_of_several, function, scale)
        columns.append(_nested(function, inner, np.zeros((0, 1)), function.inputs))
    values = np.concatenate(columns, axis=1)
    return Integrals(values, np.zeros_like(values), (), ())


def _channels_of_several(function: Function, scale: float, z: Array) -> Array:
    values, slopes = function(*(scale * z), weighed=np.abs(z).max(axis=0))
    square = values * values
    slope = ((z * z).sum(axis=0) - len(z)) * square / (2 * scale**2)
    return np.stack([values, square, (slopes**2).sum(axis=0), slope])


def _nested(function: Function, channels: Any, fixed: Array, dims: int) -> Array:
    """Expectation over the inputs that are not fixed yet; ``fixed`` has shape (fixed, rows)."""
    if len(fixed) == dims:
        return channels(fixed)
    rows = fixed.shape[1]
    if rows > _ROWS_AT_ONCE:
        pieces = [
            _nested(function, channels, fixed[:, i : i + _ROWS_AT_ONCE], dims)
            for i in range(0, rows, _ROWS_AT_ONCE)
        ]
        return np.concatenate(pieces, axis=1)
    grid = np.linspace(-_RANGE_OF_SEVERAL, _RANGE_OF_SEVERAL, 17)
    # An outer integral can be no smoother than the error of the inner one.
    tolerance = 1e-11 * 10.0 ** -len(fixed)

    def evaluate(z: Array, row: Array) -> Array:
        inner = np.concatenate([fixed[:, row], z[None]])
        return _nested(function, channels, inner, dims) * weight(z)

    over = panels(np.broadcast_to(grid, (rows, len(grid))))
    return integrate(
        evaluate,
        over,
        tolerance=tolerance,
        noise=4 * function.noise,
        against=_uncancelled,
        most=MOST_PANELS if len(fixed) == dims - 1 else _MOST_OUTER,
    ).values


def _uncancelled(sizes: Array) -> Array:
    """What integrals within may have cancelled to rounding errors is as large as E f^2 lets it be.

    A silu(g) is of mean zero over A for every g; nobody needs digits of that.
    """
    sizes = largest_row(sizes).copy()
    sizes[MEAN] = np.maximum(sizes[MEAN], np.sqrt(sizes[SECOND]))
    sizes[SLOPE] = np.maximum(sizes[SLOPE], sizes[SECOND])
    return sizes
