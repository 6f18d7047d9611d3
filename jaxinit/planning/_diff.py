"""What changes from one plan to another, as a table for a review."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

from jax.sharding import NamedSharding, PartitionSpec

from jaxinit._table import render_table
from jaxinit.planning._leaves import PlannedLeaf


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
        rows += [(c.path, c.what, spell(c.before), spell(c.after)) for c in self.changed]
        return render_table(["path", "what", "before", "after"], rows)


def compare(before: Iterable[PlannedLeaf], after: Iterable[PlannedLeaf]) -> PlanDiff:
    """The difference between the leaves of two plans."""
    old = {line.path: line for line in before}
    new = {line.path: line for line in after}
    changed = [
        Change(path, what, getattr(line, what), getattr(new[path], what))
        for path, line in old.items()
        if path in new
        for what in ("shape", "dtype", "initializer", "sharding")
        if not _same(getattr(line, what), getattr(new[path], what))
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


def spell(value: Any) -> str:
    """A property as a table shows it; of a sharding the mesh axes and the partition."""
    if isinstance(value, NamedSharding):
        return f"{value.spec} on {dict(value.mesh.shape)}"
    return str(value)
