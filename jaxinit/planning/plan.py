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
from jaxinit.engine import Progress, draw
from jaxinit.initializers.arguments import as_key
from jaxinit.planning.diff import PlanDiff, compare
from jaxinit.planning.keys import keys_for_paths
from jaxinit.planning.leaves import Group, PlannedLeaf, number_groups
from jaxinit.planning.manifest import arrange, read_manifest, write_manifest
from jaxinit.planning.messages import suggestion
from jaxinit.planning.paths import flatten, spec_of
from jaxinit.planning.resolve import resolve
from jaxinit.planning.rules import as_rules, assign
from jaxinit.planning.selection import kept_values, selected
from jaxinit.planning.shardings import check_mesh, resolve_shardings

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
        out_shardings: Any = None,
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
            out_shardings: a sharding for all leaves, a tree of them matched by canonical path, or
                a function from the tree of shapes to such a tree, as `jaxinit.sharding_rules` is;
                goes before what the plan says.
            progress: called as ``progress(done_leaves, total_leaves, done_bytes, total_bytes)``
                each time a leaf is ready; never inside a trace.

        Returns:
            A tree with the structure that the plan was made from. A leaf that is neither drawn nor
            kept is a ``jax.ShapeDtypeStruct``.

        Raises:
            TypeError: when an argument is of the wrong kind.
            ValueError: when ``only`` matches no leaf, ``keep`` does not fit the plan, or a sharding
                does not fit a leaf.

        Example:
            >>> tree = {"kernel": jax.ShapeDtypeStruct((4, 2), "float32")}
            >>> params = plan(tree, [("kernel", "he_normal")]).init(jax.random.key(0))
            >>> params["kernel"].shape
            (4, 2)
        """
        root = as_key("plan.init", key)
        kept = kept_values(self._by_path, keep)
        if only is None:
            wanted = [leaf for leaf in self.leaves if leaf.path not in kept]
        else:
            wanted = selected(self.leaves, only)
        resolved = resolve_shardings("plan.init", self.leaves, self.treedef, out_shardings)
        shardings = dict(zip(self.paths, resolved, strict=True))
        drawn = _draw_leaves(root, wanted, shardings, progress)
        values = [
            drawn[leaf.path]
            if leaf.path in drawn
            else kept.get(leaf.path, _abstract(leaf, shardings[leaf.path]))
            for leaf in self.leaves
        ]
        return jax.tree_util.tree_unflatten(self.treedef, values)

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


def _draw_leaves(
    root: jax.Array,
    wanted: Sequence[PlannedLeaf],
    shardings: dict[str, Any],
    progress: Progress | None,
) -> dict[str, jax.Array]:
    for leaf in wanted:
        check_mesh("plan.init", leaf, shardings[leaf.path])
        if jax.dtypes.canonicalize_dtype(leaf.dtype) != leaf.dtype:
            raise ValueError(
                f"plan.init needs 64-bit types to draw {leaf.path!r} as {leaf.dtype}, and they are "
                "off. Set jax.config.update('jax_enable_x64', True), or plan for 32 bits."
            )
    draws = [dataclasses.replace(x.as_draw(), sharding=shardings[x.path]) for x in wanted]
    paths = [leaf.path for leaf in wanted]
    return dict(
        zip(paths, draw(draws, keys_for_paths(root, paths), progress=progress), strict=True)
    )


def _abstract(leaf: PlannedLeaf, sharding: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
