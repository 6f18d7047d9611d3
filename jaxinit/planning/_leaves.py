"""The lines of a plan, the groups that they form, and how the lines of two plans differ."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from jaxinit._table import render_table
from jaxinit._types import ArraySharding, Shape
from jaxinit.engine import LeafSpec
from jaxinit.initializers import Fans, Initializer, Law
from jaxinit.planning._paths import ParamSpec


@dataclasses.dataclass(frozen=True)
class PlannedLeaf:
    """One line of a plan.

    Attributes:
        path: canonical path.
        shape: shape of the array.
        dtype: dtype of the array.
        initializer: what draws it, fitted to the leaf (true axes, stacked layers).
        sharding: where it will live, None where nothing is said.
        rule: the pattern that chose the initializer.
        rule_index: its position in the list of rules; None when read from a manifest.
        fans: fans of the kernel, None where the law knows none.
        law: what is promised of each entry.
        group: number of the group of leaves that differ in their keys alone.
    """

    path: str
    shape: Shape
    dtype: np.dtype
    initializer: Initializer
    sharding: ArraySharding
    # The fields below follow from those above, or say where those came from: leaves that are drawn
    # alike compare equal.
    rule: str = dataclasses.field(compare=False)
    rule_index: int | None = dataclasses.field(compare=False)
    fans: Fans | None = dataclasses.field(compare=False)
    law: Law = dataclasses.field(compare=False)
    group: int = dataclasses.field(compare=False, default=0)

    @classmethod
    def of(
        cls, path: str, spec: ParamSpec, initializer: Initializer, rule: str, index: int | None
    ) -> PlannedLeaf:
        """The line of a leaf that this initializer draws, not yet in a group.

        Raises:
            TypeError: when the initializer has no law for the dtype.
            ValueError: when it has none for the shape.
        """
        law = initializer.law(spec.shape, spec.dtype)
        fans = initializer.fans(spec.shape)
        return cls(path, spec.shape, spec.dtype, initializer, spec.sharding, rule, index, fans, law)

    @property
    def spec(self) -> ParamSpec:
        """What a predicate is told of the leaf."""
        return ParamSpec(self.shape, self.dtype, self.sharding)

    def as_draw(self) -> LeafSpec:
        """What the engine needs to know."""
        return LeafSpec(self.initializer, self.shape, self.dtype, self.sharding)

    def as_struct(self, sharding: ArraySharding) -> jax.ShapeDtypeStruct:
        """The leaf as an array that is not there."""
        return jax.ShapeDtypeStruct(self.shape, self.dtype, sharding=sharding)

    @property
    def size(self) -> int:
        """Number of entries."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the array."""
        return self.size * self.dtype.itemsize


@dataclasses.dataclass(frozen=True)
class Group:
    """Leaves with the same initializer, shape, dtype and sharding: one compiled program.

    Attributes:
        index: number of the group.
        leaves: its members.
    """

    index: int
    leaves: tuple[PlannedLeaf, ...]

    @property
    def size(self) -> int:
        """Number of entries of all members."""
        return sum(leaf.size for leaf in self.leaves)

    @property
    def nbytes(self) -> int:
        """Bytes of all members."""
        return sum(leaf.nbytes for leaf in self.leaves)


def number_groups(leaves: Sequence[PlannedLeaf]) -> tuple[PlannedLeaf, ...]:
    """The leaves with their groups numbered in the order of first appearance."""
    numbers: dict[LeafSpec, int] = {}
    return tuple(
        dataclasses.replace(leaf, group=numbers.setdefault(leaf.as_draw(), len(numbers)))
        for leaf in leaves
    )


@dataclasses.dataclass(frozen=True)
class Change:
    """One property of one leaf that differs.

    Attributes:
        path: canonical path of the leaf.
        what: ``"shape"``, ``"dtype"``, ``"initializer"`` or ``"sharding"``.
        before: its value in the first plan.
        after: its value in the second.
    """

    path: str
    what: str
    before: Any
    after: Any


@dataclasses.dataclass(frozen=True)
class PlanDiff:
    """What changes from one plan to another; false when nothing does.

    Attributes:
        added: paths that only the second plan has.
        removed: paths that only the first plan has.
        changed: properties that differ, of leaves that both have.
    """

    added: tuple[str, ...]
    removed: tuple[str, ...]
    changed: tuple[Change, ...]

    def __bool__(self) -> bool:
        return bool(self.added or self.removed or self.changed)

    def __str__(self) -> str:
        if not self:
            return "The plans draw the same."
        rows = [(path, "removed", "", "") for path in self.removed]
        rows += [(path, "added", "", "") for path in self.added]
        rows += [(c.path, c.what, _shown(c.before), _shown(c.after)) for c in self.changed]
        return render_table(["path", "what", "before", "after"], rows)


def _shown(value: Any) -> str:
    """A property as the table shows it; of a sharding the partition and the mesh axes."""
    if isinstance(value, NamedSharding):
        return f"{value.spec} on {dict(value.mesh.shape)}"
    return str(value)


def compare(before: Iterable[PlannedLeaf], after: Iterable[PlannedLeaf]) -> PlanDiff:
    """The difference between the leaves of two plans."""
    old = {leaf.path: leaf for leaf in before}
    new = {leaf.path: leaf for leaf in after}
    changed = [
        Change(path, what, getattr(leaf, what), getattr(new[path], what))
        for path, leaf in old.items()
        if path in new
        for what in ("shape", "dtype", "initializer", "sharding")
        if not _same(getattr(leaf, what), getattr(new[path], what))
    ]
    return PlanDiff(
        added=tuple(path for path in new if path not in old),
        removed=tuple(path for path in old if path not in new),
        changed=tuple(changed),
    )


def _same(before: Any, after: Any) -> bool:
    """Equality; a sharding without devices, as manifests keep it, equals any with its partition."""
    if before == after:
        return True
    partitions = [partition_of(value) for value in (before, after)]
    bare = any(isinstance(value, PartitionSpec) for value in (before, after))
    return bare and None not in partitions and partitions[0] == partitions[1]


def partition_of(sharding: Any) -> tuple[Any, ...] | None:
    """The mesh axes of each dimension, None for a sharding that is not made of mesh axes."""
    spec = sharding if isinstance(sharding, PartitionSpec) else getattr(sharding, "spec", None)
    if spec is None:
        return None
    entries = list(spec)
    while entries and entries[-1] is None:
        entries.pop()
    return tuple(entries)
