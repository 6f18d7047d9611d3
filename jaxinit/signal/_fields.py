"""What is predicted of one value of a graph: its law per entry, and what it came from.

A `Field` is an array whose entries all have one law, tabulated (:mod:`jaxinit.signal._tables`).
A `World` makes fields, knows how their normal numbers are correlated between positions, and keeps
the tape that gradients go back along.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jaxinit.signal import _tables as tables
from jaxinit.signal._links import Link, axes_kept, both

# Between True, independent units, and False, positions.
PARTLY = 2


@dataclasses.dataclass(frozen=True, eq=False)
class Known:
    """A value that does not depend on parameters or data.

    Attributes:
        array: its entries; None where they were too many to compute, or are integers of the data.
        shape: its shape.
    """

    array: np.ndarray | None
    shape: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Tag:
    """What a statistic is of.

    Attributes:
        kind: ``"sum"``, ``"squares"`` (sum of squares), ``"square"``, ``"square of mean"``,
            ``"exp"``, ``"max"``.
        of: `Field.base` of the value it was made from.
        factor: entries summed over times what it was multiplied with since; 1 for a mean.
        count: entries summed over.
        axes: axes summed over.
        units: whether these are all axes of independent units.
        among: how many of the terms of one sum are units of one position.
    """

    kind: str
    of: int
    factor: float = 1.0
    count: int = 1
    axes: tuple[int, ...] = ()
    units: bool = False
    among: int = 1

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
class Field:
    """An array of random entries with one law.

    Attributes:
        number: its place on the tape.
        table: rows x one axis of nodes for each source.
        sources: the standard normal numbers that an entry is a function of, at most two.
        shape: shape of the array.
        features: for each axis, whether entries along it are independent of each other: units of a
            layer, as opposed to positions and samples; `PARTLY` where it is an axis of units whose
            entries may have a part in common.
        base: `number` of the first field with these entries, for views of one array.
        label: path of the parameter that this is a view of, if any.
        tag: what it is a statistic of.
        statistic_of: base of the field that this is a constant of, by the law of large numbers.
        terms: how many entries that one is a mean over, 0 for none.
        centred_of: base of the field that this is, less its mean.
        mask: which logits count, where some do not; broadcasts to ``shape``.
        simplex: for attention weights.
        lost: why nothing is known of it; the table is then a standard normal's.
        chosen: path of the parameter that integers chose these entries of, axis by axis.
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
    lost: str | None = None
    chosen: str | None = None

    @functools.cached_property
    def mean(self) -> np.ndarray:
        """Expectation of an entry, one number per row."""
        return tables.expectation(self.table)

    @functools.cached_property
    def second(self) -> np.ndarray:
        """Second moment of an entry, one number per row."""
        return tables.expectation(self.table**2)

    @property
    def variance(self) -> np.ndarray:
        """Variance of an entry, one number per row."""
        return np.maximum(self.second - self.mean**2, 0.0)

    @property
    def size(self) -> int:
        """Number of entries."""
        return math.prod(self.shape)


@dataclasses.dataclass(frozen=True, eq=False)
class Made:
    """How a field was made, so that a slice of it can be made of a slice of what it was made from.

    Attributes:
        node: the equation.
        operands: what it read, one field among them.
        aval: shape and dtype of the result.
        apply: runs a node: ``(world, node, operands, avals) -> results``.
    """

    node: Any
    operands: tuple[Field | Known, ...]
    aval: Any
    apply: Callable[..., list[Any]]


class World:
    """All fields of one prediction."""

    def __init__(self) -> None:
        self.tape: list[tuple[Field, tuple[Link, ...]]] = []
        # For each source: its correlation between positions, one number per row, and the
        # independent draws it was made from.
        self.correlations: list[np.ndarray] = []
        self.roots: list[frozenset[int]] = []
        # Known arrays that met random ones: their law, and the source that stands for them.
        self.of_known: dict[Known, tuple[np.ndarray, int]] = {}
        # Slices, so that the same slice twice is the same draws.
        self.parts: dict[Any, Any] = {}
        # Of values laid side by side: the axis and the values; and what was made of these.
        self.stacks: dict[int, tuple[int, tuple[Field | Known, ...]]] = {}
        self.made: dict[int, Made] = {}
        self._compressed: dict[int, Field] = {}
        # Sources of values that were copied along positions.
        self.copied: set[int] = set()
        # What sums and products were made of, and the maps that roots are of.
        self.combined: dict[int, tuple[str, tuple[Field, Field]]] = {}
        self.calls: dict[int, frozenset[tuple[str, int]]] = {}
        # Outputs of maps, and the parameters that they multiply with.
        self.maps: dict[int, list[str]] = {}

    def source(self, correlation: Any = 0.0, roots: frozenset[int] | None = None) -> int:
        """A standard normal number, independent of all others unless it has roots."""
        number = len(self.correlations)
        self.correlations.append(np.broadcast_to(np.asarray(correlation, float), (tables.ROWS,)))
        self.roots.append(frozenset([number]) if roots is None else roots)
        return number

    def field(
        self,
        table: np.ndarray,
        sources: Sequence[int],
        shape: Sequence[int],
        features: Sequence[int],
        links: Sequence[Link] = (),
        **facts: Any,
    ) -> Field:
        """A new field at the end of the tape."""
        number = len(self.tape)
        facts.setdefault("base", number)
        new = Field(number, table, tuple(sources), tuple(shape), tuple(features), **facts)
        self.tape.append((new, tuple(links)))
        return new

    def normal(
        self,
        mean: Any,
        variance: Any,
        shape: Sequence[int],
        features: Sequence[int],
        links: Sequence[Link] = (),
        correlation: Any = 0.0,
        roots: frozenset[int] | None = None,
        **facts: Any,
    ) -> Field:
        """A field of normal entries; a constant one where the variance is 0."""
        mean, variance = (
            np.broadcast_to(np.asarray(m, float), (tables.ROWS,)) for m in (mean, variance)
        )
        if not np.any(variance > 0):
            return self.field(np.array(mean), (), shape, features, links, **facts)
        source = self.source(correlation, roots)
        table = tables.normal(mean, variance)
        return self.field(table, (source,), shape, features, links, **facts)

    def lost(
        self, why: str, shape: Sequence[int], inputs: Sequence[Any] = (), **facts: Any
    ) -> Field:
        """A field of which nothing is known, nor of the gradients that go through it."""
        unknown = np.array([0.0, np.inf])
        gain = np.broadcast_to(unknown, (tables.ROWS, 2))
        links = [Link(field.number, gain=gain) for field in inputs if isinstance(field, Field)]
        features = [True] * len(shape)
        return self.normal(0.0, 1.0, shape, features, links, lost=why, **facts)

    def view(
        self,
        field: Field,
        shape: Sequence[int],
        features: Sequence[int],
        axes: Sequence[int | None] | None = None,
        copied: Sequence[int] = (),
    ) -> Field:
        """The same entries in another shape; ``axes`` and ``copied`` as in `Link`."""
        axes = axes_kept(field.shape, shape) if axes is None else axes
        link = Link(
            field.number, slope=np.ones(tables.ROWS), axes=tuple(axes), copied=tuple(copied)
        )
        kept = {
            name: getattr(field, name)
            for name in (
                "base",
                "label",
                "tag",
                "statistic_of",
                "terms",
                "centred_of",
                "simplex",
                "lost",
                "chosen",
            )
        }
        return self.field(field.table, field.sources, shape, features, [link], **kept)

    def copies(self, field: Field, shape: Sequence[int], places: Sequence[int]) -> Field:
        """A field whose entries are copied along the axes of a shape that it lacks.

        Args:
            field: what is copied.
            shape: shape of the result.
            places: for each axis of the field its axis in the result.
        """
        features = [0] * len(shape)
        for axis, place in enumerate(places):
            features[place] = field.features[axis]
        same = {place for axis, place in enumerate(places) if field.shape[axis] == shape[place]}
        copied = [axis for axis, n in enumerate(shape) if n > 1 and axis not in same]
        if copied:
            self.copied.update(field.sources)
            for source in field.sources:
                # Copies are the same number, entries of other samples are not.
                self.correlations[source] = np.array([self.correlations[source][0], 1.0])
        return self.view(field, shape, features, tuple(places), copied)

    def again(self, field: Field, table: np.ndarray, links: Sequence[Link], **facts: Any) -> Field:
        """The same entries, with another table or other facts."""
        new = dataclasses.replace(field, number=len(self.tape), table=table, **facts)
        self.tape.append((new, tuple(links)))
        return new

    def other_entries(
        self,
        field: Field,
        shape: Sequence[int],
        features: Sequence[int],
        gain: Any,
        *,
        independent: bool,
        profile: np.ndarray | None = None,
        **facts: Any,
    ) -> Field:
        """A field of the same law whose entries are others than those at the same place."""
        sources = [
            self.source(self.correlations[s], None if independent else self.roots[s])
            for s in field.sources
        ]
        for new, old in zip(sources, field.sources, strict=True):
            made_of = (self.calls.get(root, frozenset()) for root in self.roots[old])
            self.calls.setdefault(new, frozenset().union(*made_of))
        links = [Link(field.number, gain=both(gain), profile=profile)]
        facts = {"label": field.label, "lost": field.lost, **facts}
        return self.field(field.table, sources, shape, features, links, **facts)

    def cross(self, field: Field) -> np.ndarray:
        """Mean product of entries of one unit at two positions, one number per row."""
        return tables.cross(field.table, [self.correlations[s] for s in field.sources])

    def all_roots(self, field: Field) -> frozenset[int]:
        """Independent draws that a field depends on."""
        return frozenset().union(*(self.roots[s] for s in field.sources))

    def compressed(self, field: Field) -> Field:
        """A field of two sources as one of a new source of the same law."""
        if len(field.sources) < 2:
            return field
        if field.number not in self._compressed:
            mass = np.multiply.outer(tables.weights(), tables.weights())
            table, places = tables.compress(field.table, mass)
            spread = np.where(field.variance > 0, field.variance, 1.0)
            correlation = np.clip((self.cross(field) - field.mean**2) / spread, 0.0, 1.0)
            source = self.source(correlation, self.all_roots(field))
            link = Link(field.number, places=places)
            kept = {"base": field.base, "tag": field.tag, "lost": field.lost, "mask": field.mask}
            self._compressed[field.number] = self.field(
                table, (source,), field.shape, field.features, [link], **kept
            )
        return self._compressed[field.number]


def spread_over(table: np.ndarray, sources: Sequence[int], joint: Sequence[int]) -> np.ndarray:
    """A table with one axis for each of the joint sources; of length 1 where it lacks one."""
    order = [joint.index(s) for s in sources]
    table = np.transpose(table, [0, *(1 + i for i in np.argsort(order))])
    present = sorted(order)
    shape = [tables.NODES if i in present else 1 for i in range(len(joint))]
    return table.reshape(table.shape[0], *shape)
