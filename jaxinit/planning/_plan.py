"""A plan: for every leaf of a tree its initializer, as a table to read and a function to call.

A plan is made from shapes alone; nothing is allocated before ``plan.init(key)``. It is a value: it
compares, prints, and travels as a JSON manifest.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import jax

from jaxinit._table import render_table
from jaxinit.engine import Estimate, Progress, check_bound
from jaxinit.initializers._arguments import as_key
from jaxinit.planning._diff import PlanDiff, compare
from jaxinit.planning._donation import committed_places, donated_values
from jaxinit.planning._drawing import as_draws, draw_leaves, estimate_leaves
from jaxinit.planning._leaves import Group, PlannedLeaf, number_groups
from jaxinit.planning._manifest import arrange, read_manifest, write_manifest
from jaxinit.planning._messages import suggestion
from jaxinit.planning._paths import flatten, spec_of
from jaxinit.planning._resolve import resolve
from jaxinit.planning._rules import as_rules, assign
from jaxinit.planning._selection import kept_values, selected
from jaxinit.planning._shardings import resolve_shardings

_REPR_LEAVES = 60


@dataclasses.dataclass(frozen=True, repr=False)
class Plan:
    """What `plan` returns.

    Attributes:
        leaves: the lines of the plan, in the order of the tree.
        treedef: structure of the tree, boxes and metadata included.
    """

    leaves: tuple[PlannedLeaf, ...]
    treedef: Any

    def __hash__(self) -> int:
        return hash(self.paths)

    def __len__(self) -> int:
        return len(self.leaves)

    def __iter__(self) -> Iterator[PlannedLeaf]:
        return iter(self.leaves)

    def __getitem__(self, path: str) -> PlannedLeaf:
        if path not in self._by_path:
            raise KeyError(f"the plan has no leaf {path!r}{suggestion(str(path), self.paths)}")
        return self._by_path[path]

    def __contains__(self, path: object) -> bool:
        return path in self._by_path

    @functools.cached_property
    def paths(self) -> tuple[str, ...]:
        """Canonical paths, in the order of the leaves."""
        return tuple(leaf.path for leaf in self.leaves)

    @functools.cached_property
    def _by_path(self) -> dict[str, PlannedLeaf]:
        return {leaf.path: leaf for leaf in self.leaves}

    @functools.cached_property
    def groups(self) -> tuple[Group, ...]:
        """The leaves by what they share, in the order of first appearance."""
        members: dict[int, list[PlannedLeaf]] = {}
        for leaf in self.leaves:
            members.setdefault(leaf.group, []).append(leaf)
        return tuple(Group(index, tuple(leaves)) for index, leaves in members.items())

    @property
    def size(self) -> int:
        """Number of entries of all leaves."""
        return sum(leaf.size for leaf in self.leaves)

    @property
    def nbytes(self) -> int:
        """Bytes of all leaves."""
        return sum(leaf.nbytes for leaf in self.leaves)

    def init(
        self,
        key: Any,
        *,
        only: Any = None,
        keep: Any = None,
        donate: Any = None,
        out_shardings: Any = None,
        max_live_bytes: int | None = None,
        progress: Progress | None = None,
    ) -> Any:
        """Draws the tree.

        Every leaf has exactly the bits of ``leaf.initializer`` called alone under ``jax.jit`` with
        ``key_for_path(key, leaf.path)``. Works under ``jax.jit``, ``jax.vmap`` over keys (an
        ensemble) and ``jax.eval_shape``. Outside of ``jax.jit`` each group compiles once, in
        small programs; that is the fastest way to call it.

        Args:
            key: the root key, typed or raw ``uint32``.
            only: a pattern as in a rule, or a list of them: draw these leaves only.
            keep: a tree of arrays that are there already, such as loaded weights, matched by
                canonical path. It may hold some of the leaves. They are returned untouched,
                unless ``only`` names them.
            donate: a tree of arrays to draw over, matched by canonical path, such as parameters
                that are needed no longer. Each leaf that is drawn takes over the memory of its
                array there, or where it goes to another place the array is deleted first; either
                way the old array is gone. Leaves that are not drawn are returned as they are.
                Arrays that are committed to a place stay there. Not in a trace.
            out_shardings: a sharding for all leaves, a tree of them matched by canonical path, or
                a function from the tree of shapes to such a tree, as `jaxinit.sharding_rules` is;
                goes before what the plan and ``donate`` say.
            max_live_bytes: memory in bytes that may be in use beside the finished leaves; by
                default as much as the largest leaf has, and at least 1 MiB. A leaf that needs more
                is drawn alone. In a trace the compiler decides.
            progress: called as ``progress(done_leaves, total_leaves, done_bytes, total_bytes)``
                each time a leaf is ready; never inside a trace. What it raises ends the draw.

        Returns:
            A tree with the structure that the plan was made from. A leaf that is not drawn, and is
            neither in ``keep`` nor in ``donate``, is a ``jax.ShapeDtypeStruct``.

        Raises:
            TypeError: when an argument is of the wrong kind.
            ValueError: when ``only`` matches no leaf, ``keep`` or ``donate`` does not fit the plan,
                a leaf to draw over is missing, deleted or in use twice, ``max_live_bytes`` is
                negative, or a sharding does not fit a leaf.

        Example:
            >>> tree = {"kernel": jax.ShapeDtypeStruct((4, 2), "float32")}
            >>> params = plan(tree, [("kernel", "he_normal")]).init(jax.random.key(0))
            >>> params["kernel"].shape
            (4, 2)
        """
        root = as_key("plan.init", key)
        check_bound("plan.init", max_live_bytes)
        kept = kept_values(self._by_path, keep)
        donated = donated_values(self._by_path, donate)
        if only is None:
            wanted = [leaf for leaf in self.leaves if leaf.path not in kept]
        else:
            wanted = selected(self.leaves, only)
        names = {leaf.path for leaf in wanted}
        untouched = {path: x for path, x in (donated | kept).items() if path not in names}
        shardings = resolve_shardings(
            "plan.init", self.leaves, self.treedef, out_shardings, committed_places(donated)
        )
        places = dict(zip(self.paths, shardings, strict=True))
        drawn = draw_leaves(
            root,
            wanted,
            [places[leaf.path] for leaf in wanted],
            donated=None if donate is None else donated,
            untouched=untouched,
            max_live_bytes=max_live_bytes,
            progress=progress,
        )
        values = drawn | untouched
        for leaf in self.leaves if len(values) < len(self.leaves) else ():
            if leaf.path not in values:
                values[leaf.path] = leaf.as_struct(places[leaf.path])
        return jax.tree_util.tree_unflatten(self.treedef, [values[path] for path in self.paths])

    def estimate(
        self, key: Any = None, *, out_shardings: Any = None, max_live_bytes: int | None = None
    ) -> Estimate:
        """Says what memory ``init`` takes, before any of it is allocated.

        Compiles the programs that ``init`` runs, which finds them compiled.

        Args:
            key: a key such as ``init`` will get; by default one of JAX's default implementation.
            out_shardings: as in ``init``.
            max_live_bytes: as in ``init``.

        Returns:
            A record of leaves, kinds and bytes, which prints as a table.

        Raises:
            TypeError: when an argument is of the wrong kind.
            ValueError: when ``max_live_bytes`` is negative or a sharding does not fit a leaf.

        Example:
            >>> tree = {"kernel": jax.ShapeDtypeStruct((512, 256), "float32")}
            >>> estimate = plan(tree, [("kernel", "he_normal")]).estimate()
            >>> estimate.nbytes, estimate.peak - estimate.nbytes <= estimate.scratch
            (524288, True)
        """
        check_bound("plan.estimate", max_live_bytes)
        root = None if key is None else as_key("plan.estimate", key)
        shardings = resolve_shardings("plan.estimate", self.leaves, self.treedef, out_shardings)
        draws = as_draws("plan.estimate", self.leaves, shardings)
        return estimate_leaves(root, draws, max_live_bytes)

    def diff(self, other: Plan) -> PlanDiff:
        """What changes from this plan to another: leaves added, removed, drawn differently."""
        if not isinstance(other, Plan):
            raise TypeError(
                f"plan.diff needs another plan, got {other!r}. Make one with plan(...)."
            )
        return compare(self.leaves, other.leaves)

    def to_json(self, indent: int | None = 2) -> str:
        """The plan as a manifest: plain JSON that can be reviewed, diffed and read back.

        Args:
            indent: spaces per level; None writes one line.

        Raises:
            TypeError: when an initializer is not one of the catalogue and has no config.
        """
        return write_manifest(self.leaves, indent)

    @classmethod
    def from_json(cls, text: str | bytes, like: Any = None) -> Plan:
        """Reads a manifest back.

        Args:
            text: what `to_json` wrote.
            like: a tree with the same leaves, whose structure the plan shall have; None gives a
                flat dictionary from path to array. Its shardings are taken where it has some.

        Raises:
            ValueError: when the text is no manifest of a plan, naming the place, or ``like`` has
                other leaves.
        """
        leaves = read_manifest(text)
        if like is None:
            return cls(leaves, jax.tree.structure({leaf.path: 0 for leaf in leaves}))
        flat = flatten("Plan.from_json, in like=,", like)
        return cls(arrange(leaves, flat), flat.treedef)

    def __str__(self) -> str:
        return _table(self.leaves, self._summary())

    def __repr__(self) -> str:
        surplus = len(self.leaves) - _REPR_LEAVES
        if surplus <= 0:
            return str(self)
        table = _table(self.leaves[:_REPR_LEAVES], self._summary())
        return f"{table}\n... and {surplus:,} more leaves; print(plan) shows them all"

    def _summary(self) -> str:
        return (
            f"Plan: {len(self.leaves):,} leaves in {len(self.groups):,} groups, "
            f"{self.size:,} entries, {self.nbytes:,} bytes"
        )


def _table(leaves: Sequence[PlannedLeaf], title: str) -> str:
    columns = ["path", "shape", "dtype", "initializer", "fan_in", "fan_out", "std", "group"]
    rows = [
        (
            leaf.path,
            leaf.shape,
            leaf.dtype,
            leaf.initializer,
            leaf.fans and f"{leaf.fans.fan_in:g}",
            leaf.fans and f"{leaf.fans.fan_out:g}",
            f"{leaf.law.std:.4g}",
            leaf.group,
        )
        for leaf in leaves
    ]
    return render_table(columns, rows, title=title)


def plan(tree: Any, rules: Any, *, out_shardings: Any = None) -> Plan:
    """Decides for every leaf of a tree how it will be drawn, before anything is.

    Args:
        tree: any pytree whose leaves have a shape and a dtype: what ``jax.eval_shape`` returns, a
            Linen variables dictionary (boxes stay), an NNX state, the arrays of an Equinox module,
            or what `jaxinit.flax` reads from a model. Arrays serve as shapes.
        rules: a list of (pattern, initializer); the first match wins. A pattern is a glob over the
            canonical path such as ``"**/kernel"``, a compiled regular expression, or a predicate on
            (path, leaf). An initializer is one of `jaxinit.initializers`, its name or config, a
            closure of ``jax.nn.initializers``, or `like_kernel`.
        out_shardings: a sharding for all leaves, a tree of them matched by canonical path, or a
            function from the tree of shapes to such a tree, as `jaxinit.sharding_rules` is; goes
            before the shardings in ``tree``.

    Returns:
        The plan.

    Raises:
        TypeError: when a leaf is no array, a rule is malformed, or a law does not fit a dtype.
        ValueError: when a rule takes no leaf, a leaf has no rule, two leaves have the same
            canonical path, or a law makes no sense for a shape.

    Example:
        >>> tree = {"dense": {"kernel": jax.ShapeDtypeStruct((64, 32), "float32"),
        ...                   "bias": jax.ShapeDtypeStruct((32,), "float32")}}
        >>> p = plan(tree, [("**/kernel", "he_normal"), ("**/bias", "zeros")])
        >>> p["dense/kernel"].fans.fan_in, p["dense/bias"].initializer
        (64.0, zeros)
    """
    flat = flatten("plan", tree)
    specs = [
        spec_of("plan", path, leaf) for path, leaf in zip(flat.paths, flat.leaves, strict=True)
    ]
    compiled = as_rules("plan", rules)
    assigned = assign("plan", compiled, flat.paths, specs)
    resolved = resolve("plan", flat.paths, specs, compiled, assigned)
    leaves = [
        PlannedLeaf(
            path,
            spec.shape,
            spec.dtype,
            fitted.initializer,
            spec.sharding,
            rule=compiled[number].text,
            rule_index=number,
            fans=fitted.fans,
            law=fitted.law,
            group=0,
        )
        for path, spec, number, fitted in zip(flat.paths, specs, assigned, resolved, strict=True)
    ]
    shardings = resolve_shardings("plan", leaves, flat.treedef, out_shardings)
    leaves = [
        dataclasses.replace(leaf, sharding=sharding)
        for leaf, sharding in zip(leaves, shardings, strict=True)
    ]
    return Plan(number_groups(leaves), flat.treedef)
