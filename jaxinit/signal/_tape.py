"""What is predicted of the values of a model, and the tape on which they are recorded.

A `Signal` is an array whose entries all have one law, tabulated (:mod:`jaxinit.signal._tables`). A
`Tape` makes signals, knows how their normal numbers are correlated between positions, and keeps for
every signal the edges that lead back to what the signal was made of. Gradients go back along them.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Hashable, Iterable, Sequence
from typing import Any, TypeAlias

import jax
import numpy as np

from jaxinit.jaxpr import SUMS, Node, whole_axes
from jaxinit.signal import _tables as tables

Shape: TypeAlias = Sequence[int]
# For each axis 1 where its entries are independent units, 0 where they are positions or samples,
# PARTLY where they are units that may have a part in common.
Features: TypeAlias = Sequence[int]
PARTLY = 2


@dataclasses.dataclass(frozen=True, eq=False)
class Constant:
    """An array that depends neither on parameters nor on data."""

    array: np.ndarray

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the array."""
        return self.array.shape


@dataclasses.dataclass(frozen=True, eq=False)
class Discrete:
    """Integers, booleans or keys of which only the shape is known: those of the data are.

    Attributes:
        shape: shape of the array.
        label: path of the parameter that holds them, if any.
        moments: mean and variance of an entry, where it is drawn.
    """

    shape: tuple[int, ...]
    label: str | None = None
    moments: tuple[float, float] | None = None


@dataclasses.dataclass(frozen=True)
class Tag:
    """What a signal is of another one.

    Attributes:
        kind: ``"sum"``, ``"squares"`` (sum of squares), ``"square"``, ``"square of mean"``,
            ``"exp"``, ``"max"``.
        of: `Signal.base` of the other one.
        factor: entries summed over times what the sum was multiplied with since; 1 for a mean.
        count: entries summed over.
        axes: axes summed over.
        among: how many of the terms of one sum are units of one position.
    """

    kind: str
    of: int
    factor: float = 1.0
    count: int = 1
    axes: tuple[int, ...] = ()
    among: int = 1

    @property
    def over_units(self) -> bool:
        """Whether all terms of one sum are units of one position."""
        return self.among == self.count

    @property
    def is_mean(self) -> bool:
        """Whether the sum was divided by the number of its terms."""
        return math.isclose(self.factor, 1.0, rel_tol=1e-3)


@dataclasses.dataclass(frozen=True, eq=False)
class Simplex:
    """Attention weights: positive, and one in sum.

    Attributes:
        count: keys that each query may look at, one number per query.
        keys: keys there are.
        deviation: standard deviation of the logits, one number per row.
        unevenness: mean square over keys of the weight that a key gets from all queries, over the
            square of the mean, when each query weighs the keys it sees equally.
    """

    count: np.ndarray
    keys: int
    deviation: np.ndarray
    unevenness: float = 1.0


@dataclasses.dataclass(frozen=True, eq=False)
class Signal:
    """An array of random entries with one law.

    Attributes:
        number: its place on the tape.
        table: rows x one axis of nodes for each source.
        sources: the standard normal numbers that an entry is a function of, at most two.
        shape: shape of the array.
        features: for each axis whether it holds units or positions, see `Features`.
        base: `number` of the first signal with these entries, for views of one array.
        label: path of the parameter that this is a view of, if any.
        tag: what it is of another signal.
        statistic_of: base of the signal that this is a constant of, by the law of large numbers.
        terms: how many entries that one is a mean over, 0 for none.
        centred_of: base of the signal that this is, less its mean.
        mask: which logits count, where some do not; broadcasts to ``shape``.
        simplex: for attention weights.
        unknown: why nothing is known of it; the table is then that of a standard normal number.
        chosen: path of the parameter that integers chose these entries of, axis by axis.
        laid_out: whether constants chose them, as those of a circulant matrix, and not the data.
    """

    number: int
    table: np.ndarray
    sources: tuple[int, ...]
    shape: tuple[int, ...]
    features: tuple[int, ...]
    base: int
    label: str | None = None
    tag: Tag | None = None
    statistic_of: int | None = None
    terms: int = 0
    centred_of: int | None = None
    mask: np.ndarray | None = None
    simplex: Simplex | None = None
    unknown: str | None = None
    chosen: str | None = None
    laid_out: bool = False

    @functools.cached_property
    def mean(self) -> np.ndarray:
        """Expectation of an entry, one number per row."""
        return tables.expectation(self.table)

    @functools.cached_property
    def second(self) -> np.ndarray:
        """Second moment of an entry, one number per row."""
        return tables.expectation(self.table**2)

    @functools.cached_property
    def expansion(self) -> tables.Expansion:
        """The table in Hermite polynomials."""
        return tables.expansion(self.table)

    @property
    def variance(self) -> np.ndarray:
        """Variance of an entry, one number per row."""
        return np.maximum(self.second - self.mean**2, 0.0)

    @property
    def size(self) -> int:
        """Number of entries."""
        return math.prod(self.shape)

    @property
    def is_table(self) -> bool:
        """Whether it is a parameter with two or more axes."""
        return self.label is not None and sum(length > 1 for length in self.shape) > 1


Value: TypeAlias = Signal | Constant | Discrete


@dataclasses.dataclass(frozen=True, eq=False)
class Edge:
    """What becomes of a gradient on the way from a signal to one that it was made from.

    Attributes:
        to: number of the signal that the gradient goes to.
        slope: derivative, a table that broadcasts to that of the signal it comes from.
        places: instead of a slope, for a signal that was compressed from two sources to one: the
            node of each entry of the joint table.
        gain: instead of a slope, second moment of the gradient there over that here, a pair (low,
            high) for each row; the gradient there is independent of the gradient here.
        pooled: as ``gain``, for what the gradients of different positions have in common, where
            positions are mixed.
        shares: whether all positions get the same gradient, as those of a mean over them do.
        profile: of a slice along positions, how much of the gradient each position gets, 1 in mean.
        running: whether the sum that ``gain`` stands for is long for some positions and short for
            others, so that slopes that differ between positions may lose all but one.
        stacked: whether it leads to one of several values that lie side by side along positions.
        axes: for each axis of the signal that it leads to, the axis here, None where there is none;
            all are the same by default, if the shapes are.
        copied: axes here along which one entry there was copied: its gradients add up.
        removed: where a mean over positions is subtracted, which share of the sum of independent
            gradients over these positions goes with it, and their axes, None where unknown.
        of: the sources that ``slope`` is a table of, where these are not those of the signal.
    """

    to: int
    slope: np.ndarray | None = None
    places: np.ndarray | None = None
    gain: np.ndarray | None = None
    pooled: np.ndarray | None = None
    shares: bool = False
    profile: np.ndarray | None = None
    running: bool = False
    stacked: bool = False
    axes: tuple[int | None, ...] | None = None
    copied: tuple[int, ...] = ()
    removed: tuple[float, tuple[int, ...] | None] | None = None
    of: tuple[int, ...] | None = None


@dataclasses.dataclass(slots=True, eq=False)
class Source:
    """A standard normal number.

    Attributes:
        correlation: between two positions, one number per row.
        roots: the independent sources that it was made from.
        copied: whether a value that was made of it was copied along positions.
        uses: the parameter, and the contraction with it, whose output it is.
    """

    correlation: np.ndarray
    roots: frozenset[int]
    copied: bool = False
    uses: frozenset[tuple[str, int]] = frozenset()


@dataclasses.dataclass(frozen=True, eq=False)
class Stack:
    """Values that lie side by side along an axis of a signal."""

    axis: int
    parts: tuple[Value, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Made:
    """The equation that made a signal of a stacked one, its operands, and its shape and dtype."""

    node: Node
    operands: tuple[Value, ...]
    aval: jax.ShapeDtypeStruct


@dataclasses.dataclass(eq=False)
class Application:
    """A use of a parameter, which later uses of the same entries depend on.

    Attributes:
        found: number of the output.
        source: the standard normal number of the output.
        inputs: what the data depend on that the parameter met.
        fan: products that one entry of the output sums; rows of a table that integers choose from.
        summed: axes of the parameter that it summed over; None where they are not known.
        left: axes of the parameter that became units of the output; None where they are not known.
        before: the use whose output was undone by this one, if there is one.
        data: number of the data, without casts; None where integers choose.
    """

    found: int
    source: int
    inputs: frozenset[int]
    fan: float
    summed: frozenset[int] | None
    left: frozenset[int] | None
    before: Application | None = None
    data: int | None = None


class Tape:
    """All signals of one prediction.

    Attributes:
        steps: every signal, with the edges that lead back from it.
        sources: every standard normal number.
        layers: outputs of contractions, and the parameter that they multiply with, or both where
            two are multiplied.
        origins: of signals that are stacked, or made of stacked ones: how, so that a slice of one
            can be made of slices of the parts.
        combined: the two operands of sums and products, and the primitive.
        slices: so that the same slice twice is the same draws.
        applications: uses of each parameter, or of each slice of one, by its number.
        repeated: sources of outputs that repeat in part what the same weights made before.
        of_constant: laws of constant arrays that met signals, and the source that stands for them.
    """

    def __init__(self) -> None:
        self.steps: list[tuple[Signal, tuple[Edge, ...]]] = []
        self.sources: list[Source] = []
        self.layers: dict[int, str] = {}
        self.origins: dict[int, Stack | Made] = {}
        self.combined: dict[int, tuple[str, Sequence[Signal]]] = {}
        self.slices: dict[Hashable, Value] = {}
        self.of_constant: dict[Constant, tuple[np.ndarray, int]] = {}
        # The same by content, between 0 and 1.
        self._of_units: dict[Hashable, tuple[np.ndarray, int]] = {}
        self.applications: dict[int, list[Application]] = {}
        self.repeated: set[int] = set()
        self._compressed: dict[int, Signal] = {}
        # What a source is the compressed law of.
        self._law_of: dict[int, Signal] = {}

    def source(self, correlation: Any = 0.0, roots: frozenset[int] | None = None) -> int:
        """A standard normal number, independent of all others unless it has roots."""
        number = len(self.sources)
        rows = np.broadcast_to(np.asarray(correlation, float), (tables.ROWS,))
        self.sources.append(Source(rows, frozenset([number]) if roots is None else roots))
        return number

    def signal(
        self,
        table: np.ndarray,
        sources: Sequence[int],
        shape: Shape,
        features: Features,
        edges: Sequence[Edge] = (),
        **facts: Any,
    ) -> Signal:
        """A new signal at the end of the tape; unknown where one that it is made from is."""
        number = len(self.steps)
        facts.setdefault("base", number)
        facts.setdefault("unknown", reason(self.steps[edge.to][0] for edge in edges))
        new = Signal(number, table, tuple(sources), tuple(shape), tuple(features), **facts)
        self.steps.append((new, tuple(edges)))
        return new

    def normal(
        self,
        mean: Any,
        variance: Any,
        shape: Shape,
        features: Features,
        edges: Sequence[Edge] = (),
        correlation: Any = 0.0,
        roots: frozenset[int] | None = None,
        **facts: Any,
    ) -> Signal:
        """A signal of normal entries; a constant one where the variance is 0 or less."""
        mean, variance = (
            np.broadcast_to(np.asarray(m, float), (tables.ROWS,)) for m in (mean, variance)
        )
        if not np.any(variance > 0):
            return self.signal(np.array(mean), (), shape, features, edges, **facts)
        source = self.source(correlation, roots)
        table = tables.normal(mean, variance)
        return self.signal(table, (source,), shape, features, edges, **facts)

    def parameter(
        self, label: str, moments: tuple[float, float], shape: Shape, unknown: str | None = None
    ) -> Signal:
        """A leaf with the mean and variance of its entries, the same ones at every position."""
        features = [length > 1 for length in shape]
        facts = {"label": label, "unknown": unknown}
        return self.normal(*moments, shape, features, correlation=1.0, **facts)

    def layer(self, found: Signal, operands: Iterable[Value]) -> Signal:
        """Notes a contraction with a parameter: it is a layer."""
        labels = [None if isinstance(x, Constant) else x.label for x in operands]
        if any(labels):
            self.layers[found.number] = " ".join(label for label in labels if label)
        return found

    def unknown(self, why: str, shape: Shape, operands: Iterable[Value] = ()) -> Signal:
        """A signal of which nothing is known, nor of the gradients that go through it.

        What is made of parameters alone is still one.
        """
        operands = list(operands)
        labels = [x.label for x in operands if not isinstance(x, Constant)]
        label = labels[0] if labels and all(labels) else None
        gain = np.broadcast_to(np.array([0.0, np.inf]), (tables.ROWS, 2))
        edges = [Edge(x.number, gain=gain) for x in operands if isinstance(x, Signal)]
        return self.normal(0.0, 1.0, shape, [1] * len(shape), edges, unknown=why, label=label)

    def again(self, signal: Signal, edges: Sequence[Edge], **changes: Any) -> Signal:
        """The same entries with other facts, or another table."""
        new = dataclasses.replace(signal, number=len(self.steps), **changes)
        self.steps.append((new, tuple(edges)))
        return new

    def same(self, signal: Signal, **changes: Any) -> Signal:
        """The same entries with other facts; gradients go back as they are."""
        return self.again(signal, [Edge(signal.number, slope=tables.ONE)], **changes)

    def view(
        self,
        signal: Signal,
        shape: Shape,
        features: Features,
        axes: Sequence[int | None] | None = None,
        copied: Sequence[int] = (),
    ) -> Signal:
        """The same entries in another shape; ``axes`` and ``copied`` as in `Edge`."""
        axes = whole_axes(signal.shape, shape) if axes is None else tuple(axes)
        edge = Edge(signal.number, slope=tables.ONE, axes=axes, copied=tuple(copied))
        changes = {"shape": tuple(shape), "features": tuple(features), "mask": None}
        return self.again(signal, [edge], **changes)

    def copies(self, signal: Signal, shape: Shape, places: Sequence[int]) -> Signal:
        """A signal whose entries are copied along the axes of a shape that it lacks.

        Args:
            signal: what is copied.
            shape: shape of the result.
            places: for each axis of the signal its axis in the result.
        """
        features = [0] * len(shape)
        for axis, place in enumerate(places):
            features[place] = signal.features[axis]
        same = {place for axis, place in enumerate(places) if signal.shape[axis] == shape[place]}
        copied = [axis for axis, n in enumerate(shape) if n > 1 and axis not in same]
        for number in signal.sources if copied else ():
            source = self.sources[number]
            source.copied = True
            # Copies are the same number, entries of other samples are not.
            source.correlation = np.array([source.correlation[0], 1.0])
        return self.view(signal, shape, features, tuple(places), copied)

    def other_entries(
        self,
        signal: Signal,
        shape: Shape,
        features: Features,
        gain: Any,
        *,
        independent: bool,
        profile: np.ndarray | None = None,
        **facts: Any,
    ) -> Signal:
        """A signal of the same law whose entries are others than those at the same place."""
        sources = []
        for number in signal.sources:
            old = self.sources[number]
            sources.append(self.source(old.correlation, None if independent else old.roots))
            uses = (self.sources[root].uses for root in old.roots)
            self.sources[sources[-1]].uses = frozenset().union(*uses)
        edges = [Edge(signal.number, gain=tables.ends(gain), profile=profile)]
        facts = {"label": signal.label, **facts}
        return self.signal(signal.table, sources, shape, features, edges, **facts)

    def cross(self, signal: Signal) -> np.ndarray:
        """Mean product of entries of one unit at two positions, one number per row."""
        return signal.expansion.cross([self.sources[s].correlation for s in signal.sources])

    def roots(self, *signals: Signal) -> frozenset[int]:
        """Independent sources that signals depend on."""
        return frozenset().union(*(self.sources[s].roots for x in signals for s in x.sources))

    def compressed(self, signal: Signal) -> Signal:
        """A signal of two sources as one of a new source of the same law.

        What depends on one of them alone, as ``x * mask + x * (1 - mask)``, keeps that one.
        """
        if len(signal.sources) < 2:
            return signal
        if signal.number not in self._compressed:
            kept = {"base": signal.base, "tag": signal.tag, "mask": signal.mask}
            kept |= {"label": signal.label}
            left = tables.single(signal.table)
            if left is not None:
                axis, table = left
                source = signal.sources[axis]
                edge = Edge(signal.number, slope=tables.ONE)
            else:
                table, places = tables.compress(signal.table, tables.full_weights(2))
                crossed = self.cross(signal) - signal.mean**2
                source = self.source(tables.fraction(crossed, signal.variance), self.roots(signal))
                self._law_of[source] = signal
                edge = Edge(signal.number, places=places)
            self._compressed[signal.number] = self.signal(
                table, (source,), signal.shape, signal.features, [edge], **kept
            )
        return self._compressed[signal.number]

    def first(self, signal: Signal, axes: Iterable[int]) -> tuple[Signal, frozenset[int] | None]:
        """The parameter, or the slice of one, that a signal is a view of.

        Args:
            signal: the view.
            axes: some of its axes.

        Returns:
            The parameter, and its axes that these are; None where that is not known.
        """
        found: frozenset[int] | None = frozenset(a for a in axes if signal.shape[a] > 1)
        while True:
            edges = [e for e in self.steps[signal.number][1] if self.steps[e.to][0].label]
            if len(edges) != 1 or (edges[0].slope is None and edges[0].places is None):
                return signal, found
            (edge,), before = edges, self.steps[edges[0].to][0]
            if found is not None and edge.axes is not None:
                moved = frozenset(i for i, axis in enumerate(edge.axes) if axis in found)
                same = len(moved) == len(found)
                found = moved if same else _split_axes(found, signal.shape, before.shape)
            elif signal.shape != before.shape:
                found = None
            signal = before

    def along(self, signal: Signal, source: int) -> np.ndarray | None:
        """Mean product of a signal and a standard normal number; None where it is not known."""
        if source in signal.sources:
            axis = signal.sources.index(source)
            table = np.moveaxis(signal.table, axis + 1, 1)
            return tables.expectation(table, 2) @ (tables.weights() * tables.grid())
        if not self.roots(signal) & self.sources[source].roots:
            return np.zeros(tables.ROWS)
        name, parts = self.combined.get(signal.number, ("", ()))
        if name in SUMS:
            one, two = (self.along(x, source) for x in parts)
            sign = -1.0 if name == "sub" else 1.0
            return None if one is None or two is None else one + sign * two
        if name == "mul" and not self.roots(parts[0]) & self.roots(parts[1]):
            apart = [x for x in parts if not self.roots(x) & self.sources[source].roots]
            other = [x for x in parts if x not in apart]
            inner = self.along(other[0], source) if apart else None
            return None if inner is None else inner * apart[0].mean
        law = [self._law_of[s] for s in signal.sources if s in self._law_of]
        if len(signal.sources) == 1 and law and law[0] is not signal:
            own, inner = self.along(signal, signal.sources[0]), self.along(law[0], source)
            if own is not None and inner is not None:
                return own * inner / np.sqrt(np.maximum(law[0].variance, 1e-300))
        return None

    def as_signal(self, value: Value) -> Signal:
        """A signal; the entries of a constant array count as draws, the same ones each time.

        Arrays that differ by a factor and a shift alone are one draw, as a mask and ``1 - mask``.
        """
        if isinstance(value, Signal):
            return value
        assert isinstance(value, Constant), "integers of the data have no law"
        array, features = np.asarray(value.array, dtype=float), [0] * len(value.shape)
        low, high = (float(array.min()), float(array.max())) if array.size else (0.0, 0.0)
        if low == high:
            return self.signal(np.full(tables.ROWS, low), (), value.shape, features)
        if value not in self.of_constant:
            unit, source = self._of_unit(np.round((array - low) / (high - low), 6))
            self.of_constant[value] = low + (high - low) * unit, source
        table, source = self.of_constant[value]
        return self.signal(table, (source,), value.shape, features)

    def _of_unit(self, array: np.ndarray) -> tuple[np.ndarray, int]:
        """Law and source of an array between 0 and 1; of its mirror image, where that is known."""
        key, mirrored = ((array.shape, x.tobytes()) for x in (array, np.round(1 - array, 6)))
        if mirrored in self._of_units:
            table, source = self._of_units[mirrored]
            return 1 - table, source
        if key not in self._of_units:
            # From one position to the next it varies, from one sample to the next it does not.
            self._of_units[key] = tables.of_array(array), self.source([0.0, 1.0])
        return self._of_units[key]


def _split_axes(axes: frozenset[int], new: Shape, old: Shape) -> frozenset[int] | None:
    """Axes that were merged into some axes of a reshaped array; None where others were too."""
    ends = [[math.prod(shape[:i]) for i in range(len(shape) + 1)] for shape in (old, new)]
    found = frozenset(
        i
        for i, length in enumerate(old)
        if length > 1
        and any(ends[1][a] <= ends[0][i] and ends[0][i + 1] <= ends[1][a + 1] for a in axes)
    )
    whole = math.prod(old[i] for i in found) == math.prod(new[a] for a in axes)
    return found if whole else None


def reason(signals: Iterable[Value]) -> str | None:
    """Why the first one that is unknown is unknown; None where none is."""
    reasons = (x.unknown for x in signals if isinstance(x, Signal))
    return next((why for why in reasons if why), None)


def features_of(operands: Sequence[Signal], shape: Shape) -> list[int]:
    """Which axes of a result hold independent units: those that any operand has units along.

    A parameter that is added or multiplied entry by entry says nothing of its own: a table of
    positions has independent entries along them, what it is added to has not.
    """
    aligned = [x for x in operands if len(x.shape) == len(shape)]
    # A constant array, such as a mask, has no units of its own either.
    own = [x for x in aligned if not x.is_table and any(x.features)] or aligned
    return [
        max((x.features[axis] for x in own if x.shape[axis] > 1), default=0)
        for axis in range(len(shape))
    ]


def either(tape: Tape, values: Sequence[Value], shape: Shape) -> Signal:
    """One of several values, nobody knows which: the smallest and the largest of them."""
    signals = [tape.compressed(tape.as_signal(x)) for x in values]
    if len(signals) == 1:
        return signals[0]
    seconds = np.stack([x.second for x in signals])
    choices = [int(seconds[:, 0].argmin()), int(seconds[:, 1].argmax())]
    table = np.stack([over_nodes(signals[choice])[row] for row, choice in enumerate(choices)])
    edges = [Edge(x.number, gain=np.array([[0.0, 1.0]] * 2)) for x in signals]
    source = tape.source([0.0, 1.0], tape.roots(*signals))
    return tape.signal(table, (source,), shape, features_of(signals, shape), edges)


def over_nodes(signal: Signal) -> np.ndarray:
    """The table of a signal of at most one source, rows x nodes."""
    table = signal.table if signal.sources else signal.table[:, None]
    return np.broadcast_to(table, (tables.ROWS, tables.NODES))
