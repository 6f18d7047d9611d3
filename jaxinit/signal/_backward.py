"""Gradients: second moments from the outputs back to every signal of a tape.

The gradient of an output entry is a draw of its own with unit variance. On the way back through
functions of the same normal numbers its slopes multiply and add, signs included; through a layer of
independent weights it becomes a new draw.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeAlias

import numpy as np

from jaxinit.signal import _tables as tables
from jaxinit.signal._tape import Edge, Signal, Tape

_UNKNOWN = np.array([0.0, np.inf])
# The profile of a gradient that is the same at all positions.
_EVEN = np.ones(1)

# Axes of positions that share a gradient; None where that is not known.
_Along: TypeAlias = frozenset[int] | None
_NONE: frozenset[int] = frozenset()
_Sources: TypeAlias = tuple[int, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Draw:
    """A random number that gradients are multiples of.

    Attributes:
        common: which share of its second moment all positions have in common, rows x (low, high).
        profile: how its second moment differs between positions, 1 in mean.
    """

    common: np.ndarray
    profile: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Slope:
    """Gradient over its draw: a product of tables, each of sources that no other one depends on.

    Attributes:
        factors: tables with two leading axes, the rows and (low, high), by their sources.
        along: axes of positions that share the draw.
    """

    factors: Mapping[_Sources, np.ndarray]
    along: _Along = _NONE

    @property
    def sources(self) -> _Sources:
        """All sources that it is a function of."""
        return tuple(sorted(source for own in self.factors for source in own))

    @functools.cached_property
    def table(self) -> np.ndarray:
        """The product, with an axis for each source."""
        return _table(self.factors, self.sources)

    @functools.cached_property
    def mean(self) -> np.ndarray:
        """Mean over everything that it is a function of."""
        return _all(tables.expectation(table, 2) for table in self.factors.values())

    @functools.cached_property
    def mean_square(self) -> np.ndarray:
        """Second moment over everything that it is a function of."""
        return _all(tables.expectation(table**2, 2) for table in self.factors.values())

    def cross(self, end: int, correlations: Mapping[int, np.ndarray]) -> np.ndarray:
        """Mean product of slopes at two positions, one number per row.

        Args:
            end: 0 for the low end, 1 for the high end.
            correlations: between the positions, by source.
        """
        return _all(
            expansion[end].cross([correlations[source] for source in sources])
            for sources, expansion in self._expansions.items()
        )

    @functools.cached_property
    def _expansions(self) -> dict[_Sources, list[tables.Expansion]]:
        return {
            sources: [tables.expansion(table[:, end]) for end in range(2)]
            for sources, table in self.factors.items()
        }

    def times(self, table: np.ndarray, sources: _Sources) -> Slope:
        """The slope, times one more table of some sources."""
        used = [i for i, length in enumerate(table.shape[2:]) if length > 1]
        table = table.reshape(*table.shape[:2], *(table.shape[2 + i] for i in used))
        own = {tuple(sources[i] for i in used): table}
        (key,) = own
        met = {k: t for k, t in self.factors.items() if k == key or set(k) & set(key)}
        joint = tuple(sorted({*key, *(source for k in met for source in k)}))
        left = {k: t for k, t in self.factors.items() if k not in met}
        product = _all([_table(met, joint), _table(own, joint)])
        return Slope({**left, joint: product}, self.along)

    def plus(self, other: Slope) -> Slope:
        """The sum of two slopes of one draw."""
        along = self.along if self.along == other.along else None
        both = {k: t for k, t in self.factors.items() if other.factors.get(k) is t}
        one, two = ({k: t for k, t in x.factors.items() if k not in both} for x in (self, other))
        joint = tuple(sorted({source for k in (*one, *two) for source in k}))
        total = _table(one, joint) + _table(two, joint)
        return Slope({k: t for k, t in both.items() if k != joint} | {joint: total}, along)


def _table(factors: Mapping[_Sources, np.ndarray], joint: _Sources) -> np.ndarray:
    """Product of tables, with an axis for each of the sources."""
    whole = [tables.spread(table, sources, joint, 2) for sources, table in factors.items()]
    return _all(whole) if whole else np.ones((tables.ROWS, 2, *[1] * len(joint)))


def _all(factors: Iterable[np.ndarray]) -> np.ndarray:
    """A product. No slope is no gradient, even of one that is not known."""
    with np.errstate(invalid="ignore"):
        product = functools.reduce(np.multiply, factors)
    nowhere = np.isnan(product)
    return np.where(nowhere, 0.0, product) if nowhere.any() else product


class Gradient:
    """Everything that arrives at a signal.

    Attributes:
        signal: the signal.
        slopes: the gradient, as multiples of draws.
        total: its second moment, rows x (low, high).
        common: which share of that positions have in common.
        along: along which axes.
        profile: how the second moment differs between positions.
    """

    def __init__(self, tape: Tape, signal: Signal, slopes: Mapping[Draw, Slope]) -> None:
        self.signal, self.slopes = signal, slopes
        squares = {draw: slope.mean_square for draw, slope in slopes.items()}
        self.total = sum(squares.values(), np.zeros((tables.ROWS, 2)))
        self.common, self.along = self.in_common(
            {draw: _alike(tape, slope) for draw, slope in slopes.items() if slope.along != _NONE}
        )
        self.profile = _merged([(float(np.max(s)), draw.profile) for draw, s in squares.items()])

    def in_common(self, alike: Mapping[Draw, np.ndarray]) -> tuple[np.ndarray, _Along]:
        """Which share of the second moment positions have in common, and along which axes.

        Args:
            alike: for draws that positions share, how alike their slopes are at two positions: a
                gradient that is shared, times slopes that differ, is shared less.
        """
        sums, axes = np.zeros((tables.ROWS, 2)), {self.slopes[draw].along for draw in alike}
        for draw, factor in alike.items():
            low = np.minimum(draw.common, draw.common * factor)
            high = np.maximum(draw.common, draw.common * factor)
            both = np.stack([low[:, 0], high[:, 1]], axis=1)
            with np.errstate(invalid="ignore"):
                sums = sums + np.nan_to_num(both * self.slopes[draw].mean_square, posinf=0.0)
        if not axes:
            return sums, _NONE
        whole = np.where((self.total > 0) & np.isfinite(self.total), self.total, 1.0)
        return np.clip(sums / whole, -1.0, 1.0), axes.pop() if len(axes) == 1 else None

    @functools.cached_property
    def by_sources(self) -> list[tuple[Draw, Slope]]:
        """The gradient as draws of their own: for each set of sources one, its slopes squared."""
        groups: dict[_Sources, Slope] = {}
        for slope in self.slopes.values():
            square = Slope({k: t**2 for k, t in slope.factors.items()}, self.along)
            own = groups.get(slope.sources)
            groups[slope.sources] = square if own is None else own.plus(square)
        return [(Draw(self.common, self.profile), square) for square in groups.values()]


def second_moments(tape: Tape, outputs: Iterable[Signal]) -> dict[int, np.ndarray]:
    """Second moment of the gradient with respect to an entry of every signal.

    Args:
        tape: what was recorded.
        outputs: signals whose entries get independent gradients of unit variance.

    Returns:
        By number of the signal, rows x (low, high); signals that no gradient reaches are left out.
    """
    sweep, totals = _Sweep(tape), {}
    for signal in outputs:
        draw = Draw(np.zeros((tables.ROWS, 2)), _EVEN)
        sweep.add(signal.number, draw, Slope({(): np.ones((tables.ROWS, 2))}))
    for signal, edges in reversed(tape.steps):
        slopes = sweep.waiting.pop(signal.number, None)
        if slopes is not None:
            gradient = Gradient(tape, signal, slopes)
            totals[signal.number] = gradient.total
            for edge in edges:
                sweep.follow(gradient, edge)
    return totals


class _Sweep:
    """One pass back along a tape: the gradients that have come so far, by number of the signal."""

    def __init__(self, tape: Tape) -> None:
        self.tape = tape
        self.waiting: dict[int, dict[Draw, Slope]] = {}

    def add(self, number: int, draw: Draw, slope: Slope) -> None:
        """A gradient arrives at a signal."""
        slopes = self.waiting.setdefault(number, {})
        slopes[draw] = slopes[draw].plus(slope) if draw in slopes else slope

    def follow(self, gradient: Gradient, edge: Edge) -> None:
        """Follows one edge."""
        target = self.tape.steps[edge.to][0]
        unknown = bool(gradient.signal.unknown or target.unknown)
        if unknown or edge.gain is not None:
            self._to_independent(gradient, edge, target, unknown)
        elif edge.of is not None:
            self._through_polynomial(gradient, edge, target)
        elif edge.places is not None:
            self._through_compression(gradient, edge, target)
        else:
            self._through_function(gradient, edge, target)

    def _through_polynomial(self, gradient: Gradient, edge: Edge, target: Signal) -> None:
        """Through a polynomial. In rounds of one loop gates may stay open, or shut."""
        assert edge.slope is not None and edge.of is not None
        for draw, squares in gradient.by_sources:
            moved = _moved(squares.along, edge, gradient.signal, target)
            mean = squares.mean
            repeated = _again_elsewhere(self.tape, squares.sources, edge.of)
            if repeated and np.all(np.isfinite(mean)):
                table = coupled(squares.table, edge.slope)
            else:
                slope = edge.slope[:, None]
                table = tables.rowwise(np.sqrt(mean), slope) * slope
            self.add(edge.to, draw, Slope({edge.of: table}, moved))

    def _through_function(self, gradient: Gradient, edge: Edge, target: Signal) -> None:
        """Through a function of the sources of a signal: slopes multiply."""
        signal, slope = gradient.signal, edge.slope
        assert slope is not None
        sources = signal.sources if slope.ndim > 1 else ()
        for draw, arriving in gradient.slopes.items():
            if edge.copied:
                arriving = _added_up(self.tape, arriving, draw.common, signal, edge)
            left = _moved(arriving.along, edge, signal, target)
            sent = dataclasses.replace(arriving.times(slope[:, None], sources), along=left)
            self.add(edge.to, draw, sent)

    def _through_compression(self, gradient: Gradient, edge: Edge, target: Signal) -> None:
        """To the two sources that a signal of one source was compressed from."""
        assert edge.places is not None
        shared = [draw for draw, slope in gradient.slopes.items() if slope.along != _NONE]
        common, _ = gradient.in_common(dict.fromkeys(shared, np.ones((tables.ROWS, 2))))
        moved = _moved(gradient.along, edge, gradient.signal, target)
        slope = dataclasses.replace(_expanded(gradient, target, edge.places), along=moved)
        self.add(edge.to, Draw(common, _profile_behind(gradient, edge)), slope)

    def _to_independent(
        self, gradient: Gradient, edge: Edge, target: Signal, unknown: bool
    ) -> None:
        """To entries whose gradient is a draw of its own."""
        signal, common, profile = gradient.signal, gradient.common, _profile_behind(gradient, edge)
        moved = _moved(gradient.along, edge, signal, target)
        gain = edge.gain
        if edge.stacked:
            # One of several parts gets between what the least and what the most of them gets.
            parts = signal.size / max(target.size, 1)
            most = float(min(gradient.profile.max(), parts))
            gain = tables.ends([[float(gradient.profile.min()), most]])
        if unknown or gain is None:
            gain = _UNKNOWN
        elif edge.running and any(slope.sources for slope in gradient.slopes.values()):
            gain = np.stack([np.minimum(gain[:, 0], 0.0), gain[:, 1]], axis=1)
        if edge.pooled is not None and np.all(np.isfinite(gain)):
            part = np.maximum(common, 0.0)
            gain = gain * (1 - part) + edge.pooled * part
            # Positions that were mixed share between what they did and everything.
            common, moved = np.stack([common[:, 0], tables.ONE], axis=1), None
        if edge.shares:
            moved = _summed_along(common, moved, edge, target)
            common = np.ones((tables.ROWS, 2))
        if edge.removed is not None:
            share, axes = edge.removed
            common = np.stack([np.minimum(common[:, 0], -share), common[:, 1]], axis=1)
            moved = frozenset(axes) if axes is not None and moved == _NONE else None
        # Where nothing comes nothing goes, however large the gain.
        with np.errstate(invalid="ignore"):
            second = np.where((gradient.total > 0) & (gain > 0), gain * gradient.total, 0.0)
        self.add(edge.to, Draw(common, profile), Slope({(): np.sqrt(second)}, moved))


def _profile_behind(gradient: Gradient, edge: Edge) -> np.ndarray:
    """How a gradient differs between positions behind an edge."""
    own = _EVEN if edge.stacked or edge.shares else gradient.profile
    if edge.profile is None:
        return own
    if own.size == 1:
        return edge.profile
    # Of a slice of a slice the ends, since the axes may be different ones.
    return np.array([0.0, own.max() * edge.profile.max()])


def _moved(along: _Along, edge: Edge, signal: Signal, target: Signal) -> _Along:
    """Axes of the target that are these axes of a signal; None where not all of them are found."""
    if not along:
        return along
    if edge.axes is None:
        return along if signal.shape == target.shape else None
    along = along - frozenset(edge.copied)
    found = frozenset(i for i, axis in enumerate(edge.axes) if axis in along)
    return found if len(found) == len(along) else None


def _summed_along(common: np.ndarray, along: _Along, edge: Edge, target: Signal) -> _Along:
    """Axes that share a gradient behind a sum over positions."""
    assert edge.axes is not None
    if along is None or (along and np.any(common < 1.0)):
        return None
    summed = [i for i, axis in enumerate(edge.axes) if axis is None and not target.features[i]]
    return along | frozenset(summed)


def _added_up(tape: Tape, slope: Slope, common: np.ndarray, signal: Signal, edge: Edge) -> Slope:
    """A slope behind a sum over copies: n times the square where each has a draw of its own.

    Where they share the draw it is ``n + n (n - 1) k``, with k how alike slopes are at two of them.
    """
    count = math.prod(signal.shape[axis] for axis in edge.copied)
    if slope.along == _NONE:
        return slope.times(np.full((tables.ROWS, 2), math.sqrt(count)), ())
    along = set(edge.copied) if slope.along is None else slope.along & set(edge.copied)
    together = math.prod(signal.shape[axis] for axis in along)
    if slope.along is None:
        common = np.stack([np.minimum(common[:, 0], 0.0), common[:, 1]], axis=1)
    pairs = (together - 1) * np.maximum(common, 0.0) * _alike(tape, slope, signal.sources)
    factor = count * (1 + np.where(common < 0, common, pairs))
    return slope.times(np.sqrt(np.maximum(factor, 0.0)), ())


def _alike(tape: Tape, slope: Slope, same: Sequence[int] = ()) -> np.ndarray:
    """Mean product of slopes at two positions over their mean square: rows x (low, high).

    Args:
        tape: knows how alike the normal numbers are.
        slope: the slope.
        same: sources that are the same at both positions.
    """
    square, result = slope.mean_square, np.ones((tables.ROWS, 2))
    for end in range(2) if slope.sources else ():
        # A source that was copied is the same at copies, and another at other positions.
        known = {
            s: tables.ONE
            if s in same or (end and tape.sources[s].copied)
            else tape.sources[s].correlation
            for s in slope.sources
        }
        crossed = slope.cross(end, known)
        result[:, end] = tables.fraction(crossed, square[:, end])
    return result


def _merged(parts: Sequence[tuple[float, np.ndarray]]) -> np.ndarray:
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


def _expanded(gradient: Gradient, target: Signal, places: np.ndarray) -> Slope:
    """Gradient of a compressed signal, at every entry of the joint table that it came from."""
    total = np.zeros((tables.ROWS, 2, 1))
    for slope in gradient.slopes.values():
        # Over the one source of the signal; any other source is averaged out.
        own = slope.sources == gradient.signal.sources
        total = total + (slope.table**2 if own else slope.mean_square[..., None])
    root = np.sqrt(total)
    if root.shape[-1] == 1:
        return Slope({(): root[..., 0]})
    rows = np.arange(tables.ROWS).reshape(-1, *[1] * (places.ndim - 1))
    return Slope({target.sources: np.moveaxis(root[rows, :, places], -1, 1)})


def _again_elsewhere(tape: Tape, one: Sequence[int], other: Sequence[int]) -> bool:
    """Whether two sets of sources come from two uses of one parameter, as rounds of a loop do."""
    first, second = (
        {use for s in sources for root in tape.sources[s].roots for use in tape.sources[root].uses}
        for sources in (one, other)
    )
    return any(a[0] == b[0] and a[1] != b[1] for a in first for b in second)


def coupled(squares: np.ndarray, slope: np.ndarray) -> np.ndarray:
    """Slopes times slopes that they may be correlated with: rows x 2 x nodes for each source.

    Two functions of one number each are between independent and of the same number, as a gate is
    that stays open. Of others nobody knows: where the largest meet the smallest their mean square
    is least, where they meet the largest most.

    Args:
        squares: squared slopes that come: rows x (low, high) x nodes for each source.
        slope: what they are multiplied with, rows x nodes for each source.
    """
    squares = np.broadcast_to(squares, (*squares.shape[:2], *[tables.NODES] * (squares.ndim - 2)))
    if squares.ndim == 3 and slope.ndim == 2:
        weights = tables.weights()
        apart = np.broadcast_to((squares @ weights)[..., None], squares.shape)
        together = (squares * slope[:, None] ** 2) @ weights
        larger = together > (apart * slope[:, None] ** 2) @ weights
        low = np.where(larger[:, :1], apart[:, 0], squares[:, 0])
        high = np.where(larger[:, 1:], squares[:, 1], apart[:, 1])
    else:
        mass = tables.full_weights(squares.ndim - 2)
        first, last = (np.maximum(tables.compress(squares[:, end], mass)[0], 0.0) for end in (0, 1))
        _, places = tables.compress(slope**2, tables.full_weights(slope.ndim - 1))
        rows = np.arange(tables.ROWS).reshape(-1, *[1] * (slope.ndim - 1))
        low = first[rows, tables.NODES - 1 - places]
        high = last[rows, places]
    return np.sqrt(np.stack([low, high], axis=1)) * slope[:, None]
