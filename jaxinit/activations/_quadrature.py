"""Integrals of functions with kinks, steps and sharp bends, many at once, close to rounding.

Every panel is integrated by a Gauss-Kronrod rule of 21 points; where the two rules differ it is
halved. A kink inside a panel is so cut down to the resolution of the numbers, and its place told;
one that lies beside an edge, where no point of the rule is, betrays itself to a panel across.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np

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


def weight(z: Array) -> Array:
    """Density of the standard normal law."""
    return np.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)
