"""Gradients: second moments from the outputs back to every field of a tape.

The gradient of an output entry is a draw of its own with unit variance. On the way back through
functions of the same normal numbers its slopes multiply and add, signs included; through a map of
independent weights it becomes a new draw.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence

import numpy as np

from jaxinit.signal import _tables as tables
from jaxinit.signal._fields import Field, World
from jaxinit.signal._links import Link
from jaxinit.signal._polynomials import again_elsewhere, coupled
from jaxinit.signal._slopes import Slope, added, mean_of, times

_UNKNOWN = np.array([0.0, np.inf])
# All positions get the same.
_EVEN = np.ones(1)


def second_moments(world: World, outputs: Iterable[Field]) -> dict[int, np.ndarray]:
    """Second moment of the gradient with respect to an entry of every field.

    Args:
        world: whose tape it is.
        outputs: fields whose entries get independent gradients of unit variance.

    Returns:
        By number of the field, rows x (low, high); fields that no gradient reaches are left out.
    """
    sweep = _Sweep()
    for field in outputs:
        sweep.start(field.number, np.ones((tables.ROWS, 2)), np.zeros((tables.ROWS, 2)), _EVEN)
    for field, links in reversed(world.tape):
        slopes = sweep.waiting.pop(field.number, None)
        if slopes is None:
            continue
        squares = {draw: slope.mean_square for draw, slope in slopes.items()}
        total = sum(squares.values(), np.zeros((2, 2)))
        common, along = sweep.in_common(world, slopes, squares, total)
        sweep.totals[field.number] = total
        profile = _joined([(float(np.max(squares[d])), sweep.profiles[d]) for d in squares])
        entering = (
            sweep.entering(slopes, (common, along), profile)
            if any(link.of is not None for link in links)
            else []
        )
        for link in links:
            if link.of is not None:
                sweep.through(world, field, link, entering)
                continue
            target = world.tape[link.to][0]
            if link.stacked:
                low, high = _ends(profile, field.size / max(target.size, 1))
                gain = np.broadcast_to(np.array([low, high]), (tables.ROWS, 2))
                link = dataclasses.replace(link, gain=gain, shares=False)
            own = _EVEN if link.stacked or link.shares else profile
            if link.profile is not None:
                own = link.profile if own.size == 1 else _joint(own, link.profile)
            sweep.follow(world, field, link, slopes, total, (common, along), own)
    return sweep.totals


class _Sweep:
    def __init__(self) -> None:
        self.waiting: dict[int, dict[int, Slope]] = {}
        self.totals: dict[int, np.ndarray] = {}
        self.draws = 0
        # Of each draw, which share of its second moment all positions have in common.
        self.shared: dict[int, np.ndarray] = {}
        # Of each draw, how its second moment differs between positions, 1 in mean.
        self.profiles: dict[int, np.ndarray] = {}

    def start(
        self,
        number: int,
        second: np.ndarray,
        common: np.ndarray,
        profile: np.ndarray,
        along: frozenset[int] | None = frozenset(),
    ) -> None:
        """A gradient that is a draw of its own."""
        self.add(number, self.draw(common, profile), Slope(np.sqrt(second), (), along))

    def in_common(
        self,
        world: World,
        slopes: dict[int, Slope],
        squares: dict[int, np.ndarray],
        total: np.ndarray,
        kept: bool = False,
    ) -> tuple[np.ndarray, frozenset[int] | None]:
        """Which share of a gradient positions have in common, between which ends, along which axes.

        A gradient that is shared, times slopes that differ between positions, is shared less,
        unless the slopes are kept apart from it.
        """
        ends, axes = np.zeros((tables.ROWS, 2)), set()
        for draw, slope in slopes.items():
            if slope.along == frozenset():
                continue
            axes.add(slope.along)
            shared = self.shared[draw]
            alike = np.ones((tables.ROWS, 2)) if kept else _alike(world, slope)
            low, high = np.minimum(shared, shared * alike), np.maximum(shared, shared * alike)
            with np.errstate(invalid="ignore"):
                part = np.stack([low[:, 0], high[:, 1]], axis=1) * squares[draw]
            ends = ends + np.nan_to_num(part, posinf=0.0)
        if not axes:
            return ends, frozenset()
        finite = np.where((total > 0) & np.isfinite(total), total, 1.0)
        return np.clip(ends / finite, -1.0, 1.0), axes.pop() if len(axes) == 1 else None

    def draw(self, common: np.ndarray, profile: np.ndarray) -> int:
        self.draws += 1
        self.shared[self.draws] = common
        self.profiles[self.draws] = profile
        return self.draws

    def add(self, number: int, draw: int, slope: Slope) -> None:
        slopes = self.waiting.setdefault(number, {})
        slopes[draw] = added(slopes[draw], slope) if draw in slopes else slope

    def entering(
        self,
        slopes: dict[int, Slope],
        shared: tuple[np.ndarray, frozenset[int] | None],
        profile: np.ndarray,
    ) -> list[tuple[int, Slope]]:
        """A gradient as draws of their own: for each set of sources one, its slopes squared."""
        groups: dict[tuple[int, ...], np.ndarray] = {}
        for slope in slopes.values():
            own = groups.get(slope.sources, np.zeros((tables.ROWS, 2)))
            if slope.sources:
                own = own.reshape(*own.shape, *[1] * (slope.table.ndim - own.ndim))
            groups[slope.sources] = own + slope.table**2
        common, along = shared
        return [
            (self.draw(common, profile), Slope(square, sources, along))
            for sources, square in groups.items()
        ]

    def through(
        self, world: World, field: Field, link: Link, entering: list[tuple[int, Slope]]
    ) -> None:
        """Through a polynomial. In rounds of one loop gates may stay open, or shut."""
        assert link.slope is not None and link.of is not None
        target = world.tape[link.to][0]
        for draw, squares in entering:
            moved = _moved(squares.along, link, field, target)
            mean = mean_of(squares.table)
            if field.lost or target.lost:
                self.add(link.to, draw, Slope(np.sqrt(mean * _UNKNOWN), (), moved))
                continue
            if link.of and squares.sources and np.all(np.isfinite(mean)):
                if again_elsewhere(world, squares.sources, link.of):
                    table = coupled(squares.table, link.slope)
                    self.add(link.to, draw, Slope(table, link.of, moved))
                    continue
            scalar = np.sqrt(mean).reshape(*mean.shape, *[1] * len(link.of))
            self.add(link.to, draw, Slope(scalar * _two(link.slope), link.of, moved))

    def follow(
        self,
        world: World,
        field: Field,
        link: Link,
        slopes: dict[int, Slope],
        total: np.ndarray,
        shared: tuple[np.ndarray, frozenset[int] | None],
        profile: np.ndarray,
    ) -> None:
        target, (common, along) = world.tape[link.to][0], shared
        moved = _moved(along, link, field, target)
        if field.lost or target.lost or link.gain is not None:
            gain = _UNKNOWN if field.lost or target.lost or link.gain is None else link.gain
            if link.pooled is not None and np.all(np.isfinite(gain)):
                part = np.maximum(common, 0.0)
                gain = gain * (1 - part) + link.pooled * part
                # Positions that were mixed share between what they did and everything.
                common = np.stack([common[:, 0], np.ones(tables.ROWS)], axis=1)
                moved = None
            if link.shares:
                common, moved = (
                    np.ones((tables.ROWS, 2)),
                    _summed_along(common, moved, link, target),
                )
            if link.removed is not None:
                share, axes = link.removed
                common = np.stack([np.minimum(common[:, 0], -share), common[:, 1]], axis=1)
                moved = frozenset(axes) if axes is not None and moved == frozenset() else None
            # Where nothing comes nothing goes, however large the gain.
            with np.errstate(invalid="ignore"):
                second = np.where((total > 0) & (gain > 0), gain * total, 0.0)
            self.start(link.to, second, common, profile, moved)
        elif link.places is not None:
            expanded = _expanded(slopes, field, target, link.places)
            squares = {draw: slope.mean_square for draw, slope in slopes.items()}
            common, _ = self.in_common(world, slopes, squares, total, kept=True)
            draw = self.draw(common, profile)
            self.add(link.to, draw, dataclasses.replace(expanded, along=moved))
        else:
            assert link.slope is not None
            own = Slope(_two(link.slope), field.sources if link.slope.ndim > 1 else ())
            for draw, slope in slopes.items():
                if link.copied:
                    slope = _added_up(world, slope, self.shared[draw], field, link)
                left = _moved(slope.along, link, field, target)
                self.add(link.to, draw, dataclasses.replace(times(slope, own), along=left))


def _moved(
    along: frozenset[int] | None, link: Link, field: Field, target: Field
) -> frozenset[int] | None:
    """Axes of the target that are these axes of a field; None where not all of them are found."""
    if not along:
        return along
    if link.axes is None:
        return along if field.shape == target.shape else None
    along = along - frozenset(link.copied)
    found = frozenset(i for i, axis in enumerate(link.axes) if axis in along)
    return found if len(found) == len(along) else None


def _summed_along(
    common: np.ndarray, along: frozenset[int] | None, link: Link, target: Field
) -> frozenset[int] | None:
    """Axes that share a gradient behind a sum over positions."""
    assert link.axes is not None
    summed = frozenset(
        i for i, axis in enumerate(link.axes) if axis is None and not target.features[i]
    )
    if along is None or (along and np.any(common < 1.0)):
        return None
    return along | summed


def _added_up(world: World, slope: Slope, shared: np.ndarray, field: Field, link: Link) -> Slope:
    """A slope behind a sum over copies: n times the square where each has a draw of its own.

    Where they share the draw it is ``n + n (n - 1) k``, with k how alike slopes are at two of them.
    """
    count = math.prod(field.shape[axis] for axis in link.copied)
    if slope.along == frozenset():
        return dataclasses.replace(slope, table=slope.table * math.sqrt(count))
    along = set(link.copied) if slope.along is None else slope.along & set(link.copied)
    together = math.prod(field.shape[axis] for axis in along)
    low, high = shared[:, 0], shared[:, 1]
    if slope.along is None:
        low = np.minimum(low, 0.0)
    alike = _alike(world, slope, field.sources)
    factors = []
    for end, part in enumerate((low, high)):
        pairs = (together - 1) * np.maximum(part, 0.0) * alike[:, end]
        factors.append(count * (1 + np.where(part < 0, part, pairs)))
    factor = np.stack(factors, axis=1)
    factor = factor.reshape(*factor.shape, *[1] * (slope.table.ndim - 2))
    return dataclasses.replace(slope, table=slope.table * np.sqrt(np.maximum(factor, 0.0)))


def _alike(world: World, slope: Slope, same: Sequence[int] = ()) -> np.ndarray:
    """Mean product of slopes at two positions over their mean square: rows x (low, high).

    Args:
        world: knows how alike the normal numbers are.
        slope: the slope.
        same: sources that are the same at both positions.
    """
    square, result = slope.mean_square, np.ones((tables.ROWS, 2))
    if not slope.sources:
        return result
    for end in range(2):
        # A source that was copied is the same at copies, and another at other positions.
        known = [
            np.ones(tables.ROWS)
            if s in same or (end and s in world.copied)
            else world.correlations[s]
            for s in slope.sources
        ]
        whole = (tables.ROWS, *[tables.NODES] * len(slope.sources))
        crossed = tables.cross(np.broadcast_to(slope.table[:, end], whole), known)
        result[:, end] = crossed / np.where(square[:, end] > 0, square[:, end], 1.0)
    return np.clip(result, 0.0, 1.0)


def _joined(parts: list[tuple[float, np.ndarray]]) -> np.ndarray:
    """Profile of a sum of gradients with the given second moments and profiles.

    Positions are told apart along one axis; along more of them only the ends are kept.
    """
    parts = [(second, profile) for second, profile in parts if second > 0]
    lengths = {profile.size for _, profile in parts} - {1}
    if not lengths:
        return _EVEN
    seconds = np.minimum([second for second, _ in parts], 1e300)
    shares = seconds / seconds.sum()
    profiles = [profile for _, profile in parts]
    if len(lengths) == 1:
        length = lengths.pop()
        return shares @ np.stack([np.broadcast_to(p, (length,)) for p in profiles])
    return shares @ np.stack([[p.min(), p.max()] for p in profiles])


def _joint(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Profile of a slice of a slice: its ends, since the axes may be different ones."""
    return np.array([0.0, one.max() * other.max()])


def _ends(profile: np.ndarray, parts: float) -> tuple[float, float]:
    """Least and most that one of so many parts gets, over the mean."""
    return float(profile.min()), float(min(profile.max(), parts))


def _two(table: np.ndarray) -> np.ndarray:
    return table[:, None]


def _expanded(slopes: dict[int, Slope], field: Field, target: Field, places: np.ndarray) -> Slope:
    """Gradient of a compressed field, at every entry of the joint table that it came from."""
    squares = [_on(slope, field) ** 2 for slope in slopes.values()]
    profile = np.sqrt(sum(squares, np.zeros((tables.ROWS, 2, 1))))
    if profile.shape[-1] == 1:
        return Slope(profile[..., 0], ())
    rows = np.arange(tables.ROWS).reshape(-1, *[1] * (places.ndim - 1))
    return Slope(np.moveaxis(profile[rows, :, places], -1, 1), target.sources)


def _on(slope: Slope, field: Field) -> np.ndarray:
    """A slope over the one source of a field; any other source is averaged out."""
    if slope.sources == field.sources:
        return slope.table
    return np.sqrt(slope.mean_square)[..., None]
