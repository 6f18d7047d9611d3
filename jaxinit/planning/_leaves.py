"""The lines of a plan, and the groups of them that differ in their keys alone."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from jaxinit.engine import LeafSpec
from jaxinit.initializers import Fans, Initializer, Law


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
    shape: tuple[int, ...]
    dtype: np.dtype
    initializer: Initializer
    sharding: Any
    # The rest follows from the above, or says where it came from: equal draws are equal leaves.
    rule: str = dataclasses.field(compare=False)
    rule_index: int | None = dataclasses.field(compare=False)
    fans: Fans | None = dataclasses.field(compare=False)
    law: Law = dataclasses.field(compare=False)
    group: int = dataclasses.field(compare=False)

    def as_draw(self) -> LeafSpec:
        """What the engine needs to know."""
        return LeafSpec(self.initializer, self.shape, self.dtype, self.sharding)

    def as_struct(self, sharding: Any) -> jax.ShapeDtypeStruct:
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
