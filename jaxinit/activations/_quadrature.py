"""Expectations under a Gaussian of functions with kinks, steps and bends, close to rounding.

`integrate` is the quadrature, many integrals at once; `measure` applies it to an activation.
A Gauss-Kronrod rule of 21 points integrates every panel; where its two rules differ, the panel is
halved. Halving narrows a kink inside a panel down to the resolution of the numbers, and its place
is kept. A kink beside an edge, where the rule has no point, shows in a panel across the edge.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from jaxinit.activations._function import Function

Array = np.ndarray

# Nodes and weights of Gauss (10) and Kronrod (21) on [0, 1); mirrored below. Piessens et al.,
# QUADPACK, 1983, rule QK21.
_NODES = (
    0.995657163025808080735527280689003, 0.973906528517171720077964012084452,
    0.930157491355708226001207180059508, 0.865063366688984510732096688423493,
    0.780817726586416897063717578345042, 0.679409568299024406234327365114874,
    0.562757134668604683339000099272694, 0.433395394129247190799265943165784,
    0.294392862701460198131126603103866, 0.148874338981631210884826001129720, 0.0,
)  # fmt: skip
_KRONROD = (
    0.011694638867371874278064396062192, 0.032558162307964727478818972459390,
    0.054755896574351996031381300244580, 0.075039674810919952767043140916190,
    0.093125454583697605535065465083366, 0.109387158802297641899210590325805,
    0.123491976262065851077958109585166, 0.134709217311473325928054001771707,
    0.142775938577060080797094273138717, 0.147739104901338491374841515972068,
    0.149445554002916905664936468389821,
)  # fmt: skip
_GAUSS = (
    0.066671344308688137593568809893332, 0.149451349150580593145863396957658,
    0.219086362515982043995534934228163, 0.269266719309996355091226921569469,
    0.295524224714752870173815619188769,
)  # fmt: skip
POINTS = 21
_X = np.array([-node for node in _NODES] + list(_NODES[-2::-1]))
_W = np.array([*_KRONROD, *_KRONROD[-2::-1]])
_DIFFERENCE = _W.copy()
_DIFFERENCE[1::2] -= [*_GAUSS, *_GAUSS[::-1]]

# Halvings of a panel: 2**-100 leaves a billionth even of 1 / |z|**0.9.
_LEVELS = 100
# Panels at one level; what needs more is noise or waves that no network could train through.
MOST_PANELS = 2**17
_LARGEST_CALL = 2**19
_DEEP = 1e-9
# No point of the rule lies within 0.0022 of a panel from its edge: a kink there is not seen. Where
# two panels see nothing, and one over both differs by more than this share, their edge is looked
# at in panels of a 64th. What is missed below is smaller than a tenth of it.
_LOUD = 1e-10
_NEAR = 64.0
# Places that a caller may want to look at again.
_MOST_HALVED = 4096
OUTGROWS = "it outgrows the Gaussian that weighs it"


class DivergenceError(ArithmeticError):
    """An integral whose ends still count: it has no finite value, or none that can be trusted."""


@dataclasses.dataclass(frozen=True)
class Integrals:
    """Several integrals over several rows.

    Attributes:
        values: the integrals, of shape (channels, rows).
        errors: what the two rules still differed by where panels could be halved no further.
        deep: smallest panels around each place where a function is not smooth: (start, end, row).
        halved: where panels were halved, and what was left on each side: (place, half, row).
    """

    values: Array
    errors: Array
    deep: tuple[tuple[float, float, int], ...]
    halved: tuple[tuple[float, float, int], ...]


@dataclasses.dataclass(frozen=True)
class Panels:
    """Intervals to integrate over, each belonging to a row.

    Attributes:
        start: left ends.
        end: right ends.
        row: row of each.
        rows: number of rows.
        is_end: whether it is the outermost of its row, where the integrand must have died out.
    """

    start: Array
    end: Array
    row: Array
    rows: int
    is_end: Array


def panels(edges: Array, *, checked: tuple[bool, bool] = (True, True)) -> Panels:
    """Panels between the edges of each row.

    Args:
        edges: edges of shape (rows, edges), in any order; equal ones make no panel.
        checked: whether the first and the last panel of a row are ends of an infinite range.
    """
    edges = np.sort(edges, axis=1)
    rows = len(edges)
    start, end = edges[:, :-1], edges[:, 1:]
    is_end = np.zeros(start.shape, bool)
    is_end[:, 0], is_end[:, -1] = checked
    row = np.broadcast_to(np.arange(rows)[:, None], start.shape)
    kept = end > start
    return Panels(start[kept], end[kept], row[kept], rows, is_end[kept])


def integrate(
    evaluate: Callable[[Array, Array], Array],
    over: Panels,
    *,
    tolerance: float = 1e-14,
    noise: float = 0.0,
    against: Callable[[Array], Array] = lambda sizes: sizes,
    most: int = MOST_PANELS,
) -> Integrals:
    """Integrates several functions over each row.

    Args:
        evaluate: from points and their rows, both of shape (n,), to values (channels, n).
        over: where.
        tolerance: error allowed in a panel, as a share of the size that ``against`` gives.
        noise: relative error of the values themselves, below which no panel is halved.
        against: from the integrals of the absolute values, (channels, rows), to the sizes that
            errors are measured against.
        most: panels at one level; a function that needs more is refused.

    Raises:
        DivergenceError: when the outermost panels still count, or there is no end to halving.
    """
    start, end, row = over.start, over.end, over.row
    kronrod, error, size = _apply(evaluate, start, end, row)
    scale = against(_by_row(size, row, over.rows))
    _check_ends(size, scale, over)
    values, errors = np.zeros_like(scale), np.zeros_like(scale)
    at_start, at_end = _hidden_at_edges(evaluate, over, scale, noise)
    hidden, of_rough = np.zeros(0, bool), np.zeros(len(row), bool)
    deep: list[tuple[float, float, int]] = []
    halved: list[tuple[float, float, int]] = []
    for level in range(_LEVELS + 1):
        middle, half = (start + end) / 2, (end - start) / 2
        rough = _exceeds(error, size, scale[:, row], tolerance, noise)
        parts = len(hidden)
        hidden &= ~rough[:parts] & ~rough[parts : 2 * parts]
        at_end[:parts] |= hidden
        at_start[parts : 2 * parts] |= hidden
        tiny = half < _DEEP * np.maximum(1, np.abs(middle))
        at_start, at_end = at_start & ~rough, at_end & ~rough
        stuck = rough & ((half <= 4 * np.spacing(np.abs(middle))) | (level == _LEVELS))
        done = stuck | ~(rough | ((at_start | at_end) & ~tiny))
        values += _by_row(kronrod[:, done], row[done], over.rows)
        errors += _by_row(error[:, stuck], row[stuck], over.rows)
        last = done & tiny & of_rough
        deep += zip(start[last].tolist(), end[last].tolist(), row[last].tolist(), strict=True)
        if done.all():
            break
        if np.count_nonzero(~done) > most:
            raise DivergenceError("it has too many kinks or waves to be resolved")
        cut = rough & ~done
        if len(halved) < _MOST_HALVED:
            halved += zip(middle[cut].tolist(), half[cut].tolist(), row[cut].tolist(), strict=True)
        of_rough = np.tile(cut[~done], 2)
        hidden = (cut & _exceeds(error, size, scale[:, row], _LOUD, noise))[~done]
        start, end, row, at_start, at_end = (a[~done] for a in (start, end, row, at_start, at_end))
        start, end, row, at_start, at_end = _cut(start, end, row, at_start, at_end)
        kronrod, error, size = _apply(evaluate, start, end, row)
        scale = np.maximum(scale, _largest(size, row, over.rows))  # a spike that was not seen
    return Integrals(values, errors, _smallest(deep), tuple(halved[:_MOST_HALVED]))


def _cut(
    start: Array, end: Array, row: Array, at_start: Array, at_end: Array
) -> tuple[Array, Array, Array, Array, Array]:
    """Every panel in two, first all left parts: in the middle, or beside an edge that may hide."""
    place = np.where(at_end, end - (end - start) / _NEAR, (start + end) / 2)
    place = np.where(at_start, start + (end - start) / _NEAR, place)
    none = np.zeros_like(at_start)
    return (
        np.concatenate([start, place]),
        np.concatenate([place, end]),
        np.concatenate([row, row]),
        np.concatenate([at_start, none]),
        np.concatenate([none, at_end]),
    )


def _exceeds(error: Array, size: Array, scale: Array, tolerance: float, noise: float) -> Array:
    """Panels in which the two rules differ by more than is allowed."""
    return np.any(error > np.maximum(tolerance * scale, noise * size), axis=0)


def _hidden_at_edges(
    evaluate: Callable[[Array, Array], Array], over: Panels, scale: Array, noise: float
) -> tuple[Array, Array]:
    """Panels that may hide a kink at their start, and at their end.

    Two neighbours are integrated as one: a kink beside the edge that they share lies in the midst.
    Not all of the second, so that no point falls on the edge, where a function may have no value.
    """
    at_start, at_end = np.zeros(len(over.start), bool), np.zeros(len(over.start), bool)
    joined = (over.row[1:] == over.row[:-1]) & (over.start[1:] == over.end[:-1])
    left = np.flatnonzero(joined)
    if left.size:
        row = over.row[left]
        end = over.end[left] + 0.7 * (over.end[left + 1] - over.end[left])
        _, error, size = _apply(evaluate, over.start[left], end, row)
        loud = left[_exceeds(error, size, scale[:, row], _LOUD, noise)]
        at_end[loud], at_start[loud + 1] = True, True
    return at_start, at_end


def _apply(
    evaluate: Callable[[Array, Array], Array], start: Array, end: Array, row: Array
) -> tuple[Array, Array, Array]:
    """Integral, difference of the two rules and integral of the absolute value, per panel."""
    middle, half = (start + end) / 2, (end - start) / 2
    parts = []
    step = _LARGEST_CALL // POINTS
    for first in range(0, len(middle), step):
        chunk = slice(first, first + step)
        h = half[chunk]
        points = middle[chunk, None] + h[:, None] * _X
        found = evaluate(points.ravel(), np.repeat(row[chunk], POINTS))
        found = found.reshape(len(found), *points.shape)
        parts.append((found @ _W * h, np.abs(found @ _DIFFERENCE) * h, np.abs(found) @ _W * h))
    kronrod, error, size = (np.concatenate(part, axis=1) for part in zip(*parts, strict=True))
    if not np.isfinite(size).all():
        raise DivergenceError(OUTGROWS)
    return kronrod, error, size


def _by_row(values: Array, row: Array, rows: int) -> Array:
    return np.stack([np.bincount(row, weights=channel, minlength=rows) for channel in values])


def _largest(sizes: Array, row: Array, rows: int) -> Array:
    found = np.zeros((len(sizes), rows))
    for channel, values in zip(found, sizes, strict=True):
        np.maximum.at(channel, row, values)  # pyright: ignore[reportArgumentType]
    return found


def _check_ends(size: Array, scale: Array, over: Panels) -> None:
    reaching = size[:, over.is_end] > 1e-9 * scale[:, over.row[over.is_end]]
    if reaching.any():
        raise DivergenceError(OUTGROWS)


def _smallest(deep: list[tuple[float, float, int]]) -> tuple[tuple[float, float, int], ...]:
    """One panel for each place where panels had to become tiny."""
    found: list[tuple[float, float, int]] = []
    reached = 0.0  # the end of the panels around the last place
    for start, end, row in sorted(deep, key=lambda panel: (panel[2], panel[0])):
        near = 2 * _DEEP * max(1.0, abs(start))
        beside = bool(found) and found[-1][2] == row and start - reached <= near
        reached = end
        if beside:
            if end - start < found[-1][1] - found[-1][0]:
                found[-1] = (start, end, row)
        else:
            found.append((start, end, row))
    return tuple(found)


def largest_row(sizes: Array) -> Array:
    """The largest row sets the size of all."""
    return np.broadcast_to(sizes.max(axis=1, keepdims=True), sizes.shape)


def density(z: Array) -> Array:
    """Density of the standard normal law."""
    return np.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)


# Expectations of an activation.

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
        return np.stack([values, square, slopes[0] ** 2, slope]) * density(z)

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
        return _nested(function, channels, inner, dims) * density(z)

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
