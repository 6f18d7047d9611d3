"""Where each leaf shall live: shardings for a whole tree, a part of it, or leaf by leaf."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec, Sharding

from jaxinit.engine import is_sharding_function, shardings_of
from jaxinit.planning._leaves import PlannedLeaf
from jaxinit.planning._messages import listing, suggestion
from jaxinit.planning._paths import flatten


class Place(NamedTuple):
    """An array that is to live somewhere.

    Attributes:
        path: canonical path, named in errors.
        shape: shape of the array.
        dtype: dtype of the array.
        sharding: where it lives if nobody else says so; None says nothing.
    """

    path: str
    shape: tuple[int, ...]
    dtype: Any
    sharding: Any = None


def is_sharding(value: Any) -> bool:
    """Whether ``out_shardings`` of ``jax.jit`` would take the value for one array."""
    return isinstance(value, Sharding | PartitionSpec)


def resolve_shardings(
    caller: str,
    places: Sequence[Place | PlannedLeaf],
    treedef: Any,
    out_shardings: Any,
    current: Mapping[str, Sharding] | None = None,
) -> list[Any]:
    """The sharding of each leaf: from ``out_shardings``, else where it is now, else its own.

    Args:
        caller: public name that an error starts with.
        places: the leaves to place.
        treedef: structure of their tree.
        out_shardings: None, one sharding for all, or a tree of shardings matched by canonical path.
            A sharding higher up in that tree holds for all leaves below it; None says nothing. Or
            a function that makes such a tree from the shapes.
        current: where leaves are now, by path.

    Returns:
        One sharding, or None, for each leaf.

    Raises:
        TypeError: when something else than a sharding is found.
        ValueError: when a sharding is given for no leaf, or does not fit a leaf's shape.
    """
    if is_sharding_function(out_shardings):
        structs = [jax.ShapeDtypeStruct(place.shape, place.dtype) for place in places]
        abstract = jax.tree_util.tree_unflatten(treedef, structs)
        out_shardings = shardings_of(caller, out_shardings, abstract)
    given = _by_path(caller, [place.path for place in places], out_shardings)
    chosen = []
    for place in places:
        sharding = _longest_prefix(given, place.path) if given else None
        if sharding is None:
            sharding = (current or {}).get(place.path, place.sharding)
        check_fit(caller, place.path, place.shape, sharding)
        chosen.append(sharding)
    return chosen


def check_mesh(caller: str, leaf: PlannedLeaf, sharding: Any) -> None:
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


def on_mesh(caller: str, mesh: Mesh | AbstractMesh, purpose: str, spec: Any) -> NamedSharding:
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


def _by_path(caller: str, paths: Sequence[str], out_shardings: Any) -> dict[str, Any]:
    if out_shardings is None:
        return {}
    if is_sharding(out_shardings):
        return {"": out_shardings}
    flat = flatten(f"{caller}, in out_shardings,", out_shardings, is_sharding)
    given = dict(zip(flat.paths, flat.leaves, strict=True))
    for path, sharding in given.items():
        if not is_sharding(sharding):
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


def _longest_prefix(given: dict[str, Any], path: str) -> Any:
    return next((given[prefix] for prefix in _prefixes(path) if prefix in given), None)


def check_fit(caller: str, path: str, shape: tuple[int, ...], sharding: Any) -> None:
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
