"""Where each leaf shall live: shardings for a whole tree, for a part of it, or by rules.

What `sharding_rules` returns is a function from a tree of shapes to a tree of shardings, and a
value: it compares, hashes and prints. `jaxinit.jit_init` and ``plan.init`` take it as
``out_shardings``.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias, cast

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec, Sharding

from jaxinit._arguments import listing, suggestion
from jaxinit._types import ArraySharding, PyTree, Shape, Shardings, TreeDef
from jaxinit.engine import is_sharding_function, shardings_of
from jaxinit.planning._leaves import PlannedLeaf
from jaxinit.planning._paths import flatten, spec_of
from jaxinit.planning._patterns import Matcher, Pattern, as_matcher
from jaxinit.planning._rules import as_pairs, assign

# A leaf that asks for a place.
Placed: TypeAlias = PlannedLeaf | jax.ShapeDtypeStruct
ShardingRule: TypeAlias = tuple[Pattern, PartitionSpec | NamedSharding | None]

_EXAMPLE = "('**/kernel', PartitionSpec(None, 'model'))", "('**', PartitionSpec())"


def _is_sharding(value: Any) -> bool:
    """Whether ``out_shardings`` of ``jax.jit`` would take the value for one array."""
    return isinstance(value, Sharding | PartitionSpec)


def resolve_shardings(
    caller: str,
    leaves: Mapping[str, Placed],
    treedef: TreeDef,
    out_shardings: Shardings,
    current: Mapping[str, Sharding] | None = None,
) -> dict[str, ArraySharding]:
    """The sharding of each leaf: from ``out_shardings``, else where it is now, else its own.

    Args:
        caller: public name that an error starts with.
        leaves: the leaves to place, by path, in the order of their tree.
        treedef: structure of their tree.
        out_shardings: None, one sharding for all, or a tree of shardings matched by canonical path.
            A sharding higher up in that tree holds for all leaves below it; None says nothing. Or
            a function that makes such a tree from the shapes.
        current: where leaves are now, by path.

    Returns:
        One sharding, or None, for each path.

    Raises:
        TypeError: when something else than a sharding is found.
        ValueError: when a sharding is given for no leaf, or does not fit a leaf's shape.
    """
    if is_sharding_function(out_shardings):
        structs = [jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in leaves.values()]
        abstract = jax.tree_util.tree_unflatten(treedef, structs)
        out_shardings = shardings_of(caller, out_shardings, abstract)
    given = _given_shardings(caller, leaves, out_shardings)
    chosen = {}
    for path, leaf in leaves.items():
        sharding = next((given[p] for p in _prefixes(path) if p in given), None) if given else None
        if sharding is None:
            sharding = (current or {}).get(path, leaf.sharding)
        check_fit(caller, path, leaf.shape, sharding)
        chosen[path] = sharding
    return chosen


def _given_shardings(
    caller: str, paths: Iterable[str], out_shardings: Shardings
) -> dict[str, Sharding | PartitionSpec]:
    """What ``out_shardings`` says, by path of a leaf or of a part of the tree."""
    if out_shardings is None:
        return {}
    if _is_sharding(out_shardings):
        return {"": out_shardings}
    given = dict(flatten(f"{caller}, in out_shardings,", out_shardings, _is_sharding).items())
    for path, sharding in given.items():
        if not _is_sharding(sharding):
            raise TypeError(
                f"{caller} needs out_shardings made of shardings, got {sharding!r} at {path!r}. "
                "Use NamedSharding(mesh, PartitionSpec(...)), or None for no wish."
            )
    known = {prefix for path in paths for prefix in _prefixes(path)}
    if unknown := [path for path in given if path not in known]:
        named = [f"{path!r}{suggestion(path, paths)}" for path in unknown[:10]]
        raise ValueError(
            f"{caller} needs out_shardings for leaves of the tree, got them for "
            f"{listing(named, total=len(unknown))}. Remove them or correct the paths."
        )
    return given


def _prefixes(path: str) -> list[str]:
    """The path, what is above it, and at last the root."""
    ends = [len(path)] + [i for i in range(len(path) - 1, -1, -1) if path[i] == "/"]
    return [path[:end] for end in ends] + [""]


def check_fit(caller: str, path: str, shape: Shape, sharding: ArraySharding) -> None:
    """Raises when a sharding has more dimensions than a shape, or does not divide them."""
    spec = sharding if isinstance(sharding, PartitionSpec) else getattr(sharding, "spec", ())
    if len(spec or ()) > len(shape):
        raise ValueError(
            f"{caller} needs a sharding of at most {len(shape)} dimensions for {path!r} of shape "
            f"{shape}, got {sharding}. Leave out what is too much, or use PartitionSpec()."
        )
    if not isinstance(sharding, Sharding):
        return
    try:
        sharding.shard_shape(shape)
    except (ValueError, IndexError):
        raise ValueError(
            f"{caller} needs a sharding that divides {path!r} of shape {shape} evenly, "
            f"got {sharding}. Shard another axis, or leave it whole with PartitionSpec()."
        ) from None


def check_mesh(caller: str, leaf: PlannedLeaf, sharding: ArraySharding) -> None:
    """Raises when a sharding names mesh axes but no mesh says which devices they are."""
    if isinstance(sharding, PartitionSpec):
        spec = sharding
    elif isinstance(sharding, NamedSharding) and isinstance(sharding.mesh, AbstractMesh):
        spec = sharding.spec
    else:
        return
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        raise ValueError(
            f"{caller} needs a mesh to place {leaf.path!r} as {spec}, and none is set. Call it "
            "under `with jax.set_mesh(mesh):`, or pass out_shardings= with "
            "NamedSharding(mesh, spec)."
        )
    sharding = on_mesh(caller, mesh, f"in context to place {leaf.path!r}", spec)
    check_fit(caller, leaf.path, leaf.shape, sharding)


def on_mesh(
    caller: str, mesh: Mesh | AbstractMesh, purpose: str, spec: PartitionSpec
) -> NamedSharding:
    """A spec on a mesh.

    Args:
        caller: public name that an error starts with.
        mesh: the mesh.
        purpose: what the sharding is for, as the error says it.
        spec: the spec.

    Raises:
        ValueError: when the spec names an axis that the mesh has not, or one twice.
    """
    try:
        return NamedSharding(mesh, spec)
    except Exception as error:  # the class for an axis named twice is private to JAX
        raise ValueError(
            f"{caller} needs axes of the mesh {purpose}, got {spec} on {dict(mesh.shape)}. "
            f"Use each of {', '.join(map(repr, mesh.shape))} at most once. {error}"
        ) from None


def check_is_mesh(caller: str, mesh: Any) -> None:
    """Raises when something else is given for a mesh."""
    if not isinstance(mesh, Mesh | AbstractMesh):
        raise TypeError(
            f"{caller} needs a mesh, got {mesh!r} of type {type(mesh).__name__}. "
            "Make one with jax.make_mesh((8,), ('model',))."
        )


@dataclasses.dataclass(frozen=True)
class ShardingRules:
    """What `sharding_rules` returns.

    Attributes:
        mesh: the mesh that specs are laid over.
        rules: pairs of a pattern and a spec, a sharding, or None; the first match wins.
    """

    mesh: Mesh | AbstractMesh
    rules: tuple[ShardingRule, ...]

    def __post_init__(self) -> None:
        check_is_mesh("sharding_rules", self.mesh)
        pairs = as_pairs("sharding_rules", self.rules, "spec", _EXAMPLE)
        object.__setattr__(self, "rules", tuple(pairs))
        _ = self._compiled  # compiled here, so that this line raises what is wrong with the rules

    @functools.cached_property
    def _compiled(self) -> list[tuple[Matcher, NamedSharding | None]]:
        compiled = []
        for number, (pattern, wish) in enumerate(self.rules):
            place = f"sharding_rules, in rule {number},"
            if isinstance(wish, PartitionSpec):
                wish = on_mesh("sharding_rules", self.mesh, f"in rule {number} {pattern!r}", wish)
            if not isinstance(wish, NamedSharding | None):
                raise TypeError(
                    f"{place} needs a PartitionSpec, a NamedSharding or None, got {wish!r} of type "
                    f"{type(wish).__name__}. Write for example {_EXAMPLE[0]}."
                )
            compiled.append((as_matcher(place, pattern), wish))
        return compiled

    def __call__(self, params: PyTree) -> PyTree:
        """Places every leaf of a tree.

        Args:
            params: a tree of arrays, ``jax.ShapeDtypeStruct`` or ``ParamSpec``; boxes stay.

        Returns:
            The same tree with a ``NamedSharding`` for every leaf, or None where a rule says so.

        Raises:
            TypeError: when a leaf has no shape and dtype.
            ValueError: when a rule takes no leaf, a leaf has no rule, or a spec is too long for a
                leaf or does not divide it.
        """
        flat = flatten("sharding_rules", params)
        specs = {path: _described(path, leaf) for path, leaf in flat.items()}
        assigned = assign("sharding_rules", [matcher for matcher, _ in self._compiled], specs)
        shardings = []
        for path, leaf in flat.items():
            number = assigned[path]
            matcher, sharding = self._compiled[number]
            caller = f"sharding_rules, in rule {number} {matcher.text!r},"
            check_fit(caller, path, tuple(leaf.shape), sharding)
            shardings.append(sharding)
        return jax.tree_util.tree_unflatten(flat.treedef, shardings)

    def __getstate__(self) -> dict[str, Any]:
        # Compiled patterns are closures, and are compiled again.
        return {"mesh": self.mesh, "rules": self.rules}


def _described(path: str, leaf: Any) -> Any:
    """What a predicate is told of a leaf."""
    dtype = getattr(leaf, "dtype", None)
    if hasattr(leaf, "shape") and dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key):
        return leaf  # keys of generators are placed too, though no plan would draw them
    return spec_of("sharding_rules", path, leaf)


def sharding_rules(
    mesh: Mesh | AbstractMesh, rules: Iterable[ShardingRule] | Mapping[str, ArraySharding]
) -> ShardingRules:
    """Says where the leaves of a tree live, by their paths.

    Args:
        mesh: the mesh that specs are laid over.
        rules: a list of (pattern, spec); the first match wins. A pattern is a glob over the
            canonical path, a compiled regular expression, or a predicate on (path, leaf), as in
            `jaxinit.plan`. A spec is a ``PartitionSpec`` on ``mesh``, a ``NamedSharding``, or None
            where JAX shall decide.

    Returns:
        A function from a tree of shapes to a tree of shardings, for ``out_shardings`` of
        `jaxinit.jit_init`, ``plan.init`` and `jaxinit.plan`.

    Raises:
        TypeError: when a part is of the wrong kind.
        ValueError: when a glob is malformed, or a spec names an axis that the mesh has not.

    Example:
        >>> from jax.sharding import PartitionSpec
        >>> mesh = jax.make_mesh((1,), ("model",))
        >>> rules = sharding_rules(mesh, [("**/kernel", PartitionSpec(None, "model"))])
        >>> placed = rules({"dense": {"kernel": jax.ShapeDtypeStruct((2, 4), "float32")}})
        >>> placed["dense"]["kernel"].spec == PartitionSpec(None, "model")
        True
    """
    return ShardingRules(mesh, cast(Any, rules))
