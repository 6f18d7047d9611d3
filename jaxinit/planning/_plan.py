"""A plan: for every leaf of a tree its initializer, as a table to read and a function to call.

A plan is made from shapes alone; nothing is allocated before ``plan.init(key)``. It is a value: it
compares, prints, and travels as a JSON manifest.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.core import Tracer

from jaxinit._arguments import as_key, suggestion
from jaxinit._table import render_table
from jaxinit._types import ArraySharding, Key, PyTree, Shardings, TreeDef
from jaxinit.engine import Estimate, LeafSpec, Progress, check_bound, draw, estimate
from jaxinit.initializers import own
from jaxinit.planning._given import (
    donated_values,
    drawn_over,
    kept_own,
    kept_values,
    refuse_trace,
)
from jaxinit.planning._keys import keys_for_paths
from jaxinit.planning._leaves import Group, PlanDiff, PlannedLeaf, compare, number_groups
from jaxinit.planning._manifest import arrange, read_manifest, write_manifest
from jaxinit.planning._paths import flatten
from jaxinit.planning._patterns import Patterns, frozen_paths, matching_paths
from jaxinit.planning._rules import Rules, as_rules, planned_leaves
from jaxinit.planning._shardings import check_mesh, resolve_shardings

_REPR_LEAVES = 60


@dataclasses.dataclass(frozen=True, repr=False)
class Plan:
    """What `plan` returns.

    Attributes:
        leaves: the lines of the plan, in the order of the tree.
        treedef: structure of the tree, boxes and metadata included.
    """

    leaves: tuple[PlannedLeaf, ...]
    treedef: TreeDef

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
        key: Key,
        *,
        only: Patterns | None = None,
        keep: PyTree = None,
        donate: PyTree = None,
        out_shardings: Shardings = None,
        max_live_bytes: int | None = None,
        progress: Progress | None = None,
    ) -> PyTree:
        """Draws the tree.

        Every leaf has exactly the bits of ``leaf.initializer`` called alone under ``jax.jit`` with
        ``jaxinit.key_for_path(key, leaf.path)``. Works under ``jax.jit``, ``jax.vmap`` over keys
        (an ensemble) and ``jax.eval_shape``. It is fastest outside of ``jax.jit``, where it
        compiles one small program for each group.

        Args:
            key: the root key, typed or raw ``uint32``.
            only: a pattern as in a rule, or a list of them: draw these leaves only.
            keep: a tree of arrays that are there already, such as loaded weights, matched by
                canonical path. It may hold some of the leaves. They are returned untouched,
                unless ``only`` names them. Leaves whose rule is `own` are kept from here or from
                ``donate``, and else drawn as the model draws them where that is known.
            donate: a tree of arrays to draw over, matched by canonical path, such as parameters
                that are needed no longer. Each leaf that is drawn takes over the memory of its
                array; where the leaf goes to another place, the array is deleted first. Either
                way the old array is gone. Leaves that are not drawn are returned as they are.
                Arrays that are committed to a place stay there. Not in a trace.
            out_shardings: a sharding for all leaves, a tree of them matched by canonical path, or
                a function from the tree of shapes to such a tree, as `jaxinit.sharding_rules` is.
                It takes precedence over the plan's shardings and over ``donate``.
            max_live_bytes: memory in bytes that may be in use beside the finished leaves; by
                default the size of the largest leaf, and at least 1 MiB. A leaf that needs more
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
        kept = {} if keep is None else kept_values(self._by_path, keep)
        donated = {} if donate is None else donated_values(self._by_path, donate)
        if only is None:
            wanted = [leaf for leaf in self.leaves if leaf.path not in kept]
        else:
            specs = {leaf.path: leaf.spec for leaf in self.leaves}
            chosen = matching_paths("plan.init", "only=", only, specs)
            wanted = [leaf for leaf in self.leaves if leaf.path in chosen]
        wanted = kept_own(wanted, donated | kept, named=only is not None)
        names = {leaf.path for leaf in wanted}
        untouched = {path: x for path, x in (donated | kept).items() if path not in names}
        committed = {path: array.sharding for path, array in donated.items() if array.committed}
        shardings = resolve_shardings(
            "plan.init", self._by_path, self.treedef, out_shardings, committed
        )
        into = None if donate is None else drawn_over(wanted, donated, untouched)
        draws = _as_draws("plan.init", wanted, shardings)
        keys = keys_for_paths(root, [leaf.path for leaf in wanted])
        if into is not None and isinstance(keys, Tracer):
            refuse_trace()
        arrays = draw(draws, keys, into=into, max_live_bytes=max_live_bytes, progress=progress)
        values: dict[str, object] = dict(untouched)
        values.update(zip((leaf.path for leaf in wanted), arrays, strict=True))
        for leaf in self.leaves:
            if leaf.path not in values:
                values[leaf.path] = leaf.as_struct(shardings[leaf.path])
        return jax.tree_util.tree_unflatten(self.treedef, [values[path] for path in self.paths])

    def estimate(
        self,
        key: Key | None = None,
        *,
        out_shardings: Shardings = None,
        max_live_bytes: int | None = None,
    ) -> Estimate:
        """Says what memory ``init`` takes, before any of it is allocated.

        This compiles the programs that ``init`` runs, and a later ``init`` finds them compiled.

        Args:
            key: a key such as ``init`` will get; by default one of JAX's default implementation.
            out_shardings: as in ``init``.
            max_live_bytes: as in ``init``.

        Returns:
            A record of leaves, groups and bytes, which prints as a table.

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
        implementation = place = None
        if key is not None:
            root = as_key("plan.estimate", key)
            words = jax.random.key_data(root)
            implementation = jax.random.key_impl(root)
            place = words.sharding if words.committed else None
        shardings = resolve_shardings("plan.estimate", self._by_path, self.treedef, out_shardings)
        drawn = [leaf for leaf in self.leaves if leaf.initializer != own]
        draws = _as_draws("plan.estimate", drawn, shardings)
        return estimate(draws, implementation, place, max_live_bytes=max_live_bytes)

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
    def from_json(cls, text: str | bytes, like: PyTree = None) -> Plan:
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
            f"{leaf.law.std:.4g}" if leaf.law.known else "law unknown",
            leaf.group,
        )
        for leaf in leaves
    ]
    return render_table(columns, rows, title=title)


def _as_draws(
    caller: str, leaves: Sequence[PlannedLeaf], shardings: Mapping[str, ArraySharding]
) -> list[LeafSpec]:
    """What the engine draws; leaves that differ in their keys alone share one object.

    Args:
        caller: public name that an error starts with.
        leaves: the leaves to draw.
        shardings: where each goes, by path.

    Raises:
        ValueError: when a leaf needs a mesh or 64-bit types that are not there.
    """
    # By identity, because hashing the initializer and the sharding of a leaf takes longer than
    # drawing it.
    known: dict[tuple[object, ...], LeafSpec] = {}
    draws = []
    for leaf in leaves:
        sharding = shardings[leaf.path]
        identity = (id(leaf.initializer), leaf.shape, leaf.dtype, id(sharding))
        if identity not in known:
            check_mesh(caller, leaf, sharding)
            if jax.dtypes.canonicalize_dtype(leaf.dtype) != leaf.dtype:
                raise ValueError(
                    f"{caller} needs 64-bit types to draw {leaf.path!r} as {leaf.dtype}, and they "
                    "are off. Set jax.config.update('jax_enable_x64', True), or plan for 32 bits."
                )
            known[identity] = LeafSpec(leaf.initializer, leaf.shape, leaf.dtype, sharding)
        draws.append(known[identity])
    return draws


def plan(
    params: PyTree, rules: Rules, *, frozen: Any = (), out_shardings: Shardings = None
) -> Plan:
    """Decides for every leaf of a tree how it will be drawn, before anything is.

    Args:
        params: any pytree whose leaves have a shape and a dtype: what ``jax.eval_shape`` returns, a
            Linen variables dictionary (boxes stay), an NNX state, the arrays of an Equinox module,
            or what `jaxinit.flax` reads from a model. Arrays serve as shapes. Random keys have the
            rule `own`, whatever the rules say.
        rules: a list of (pattern, initializer); the first match wins. A pattern is a glob over the
            canonical path such as ``"**/kernel"``, a compiled regular expression, or a predicate on
            (path, leaf). An initializer is one of `jaxinit.initializers`, its name or config, a
            closure of ``jax.nn.initializers``, `like_kernel`, or any function ``(key, shape,
            dtype)``, of which no law is known. `own` leaves it to the model. A list holds one
            initializer for each layer of a stack.
        frozen: leaves that are kept, whatever the rules say, by the rule `own`: patterns as in
            rules, a filter of NNX where ``params`` holds its variables, or a mask as optax takes
            it, a tree of booleans or a function that makes one from ``params``.
        out_shardings: a sharding for all leaves, a tree of them matched by canonical path, or a
            function from the tree of shapes to such a tree, as `jaxinit.sharding_rules` is. It
            takes precedence over the shardings in ``params``.

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
    flat = flatten("plan", params)
    specs = flat.specs("plan")
    kept = frozen_paths("plan", frozen, params, specs)
    leaves = planned_leaves("plan", specs, as_rules("plan", rules), kept)
    by_path = {leaf.path: leaf for leaf in leaves}
    shardings = resolve_shardings("plan", by_path, flat.treedef, out_shardings)
    placed = [dataclasses.replace(leaf, sharding=shardings[leaf.path]) for leaf in leaves]
    return Plan(number_groups(placed), flat.treedef)


def init_by_path(caller: str, init: PyTree) -> dict[str, Any]:
    """The present initialization of every leaf: what draws it, its array, or what is said of it.

    Args:
        caller: public name that an error starts with.
        init: a plan; or a tree, such as a mapping from path, of initializers, laws, arrays, pairs
            of numbers, or None.

    Returns:
        By canonical path: of a plan the initializers, of a tree its leaves, None and pairs of
        numbers among them.

    Raises:
        ValueError: when two leaves have the same canonical path.
    """
    if isinstance(init, Plan):
        return {leaf.path: leaf.initializer for leaf in init}
    tree = dict(init) if isinstance(init, Mapping) else init
    return dict(flatten(caller, tree, _says_of_leaf).items())


def _says_of_leaf(value: Any) -> bool:
    """Whether something that JAX takes for a part of a tree stands for one leaf."""
    if isinstance(value, tuple):
        return bool(value) and all(isinstance(x, int | float | np.number) for x in value)
    return value is None
