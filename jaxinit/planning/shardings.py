"""Where each leaf shall live: shardings given for a whole tree, a part of it, or leaf by leaf."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax.sharding import AbstractMesh, NamedSharding, PartitionSpec, Sharding

from jaxinit.planning.leaves import PlannedLeaf
from jaxinit.planning.messages import listing, suggestion
from jaxinit.planning.paths import flatten


def is_sharding(value: Any) -> bool:
    """Whether ``out_shardings`` of ``jax.jit`` would take the value for one array."""
    return isinstance(value, Sharding | PartitionSpec)


def resolve_shardings(
    caller: str,
    leaves: Sequence[PlannedLeaf],
    out_shardings: Any,
    places: Mapping[str, Sharding] | None = None,
) -> list[Any]:
    """The sharding of each leaf: from ``out_shardings``, else where it is now, else its own.

    Args:
        caller: public name that an error starts with.
        leaves: the leaves to place.
        out_shardings: None, one sharding for all, or a tree of shardings matched by canonical path.
            A sharding higher up in that tree holds for all leaves below it; None says nothing.
        places: where leaves are now, by path.

    Returns:
        One sharding, or None, for each leaf.

    Raises:
        TypeError: when something else than a sharding is found.
        ValueError: when a sharding is given for no leaf, or does not fit a leaf's shape.
    """
    given = _by_path(caller, leaves, out_shardings)
    places = places or {}
    chosen = []
    for leaf in leaves:
        sharding = _longest_prefix(given, leaf.path) if given else None
        if sharding is None:
            sharding = places.get(leaf.path, leaf.sharding)
        if sharding is not None:
            _check_fit(caller, leaf, sharding)
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
    try:
        sharding = NamedSharding(mesh, spec)
    except ValueError as error:
        raise ValueError(
            f"{caller} needs axes of the mesh in context to place {leaf.path!r}, got {spec} on "
            f"{mesh.shape}. {error}"
        ) from None
    _check_fit(caller, leaf, sharding)


def _by_path(caller: str, leaves: Sequence[PlannedLeaf], out_shardings: Any) -> dict[str, Any]:
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
    known = {prefix for leaf in leaves for prefix in _prefixes(leaf.path)}
    if unknown := [path for path in given if path not in known]:
        named = [f"{p!r}{suggestion(p, (leaf.path for leaf in leaves))}" for p in unknown[:10]]
        raise ValueError(
            f"{caller} needs out_shardings for leaves of the plan, got them for "
            f"{listing(named, total=len(unknown))}. Remove them or correct the paths."
        )
    return given


def _prefixes(path: str) -> list[str]:
    """The path, what is above it, and at last the root."""
    ends = [len(path)] + [i for i in range(len(path) - 1, -1, -1) if path[i] == "/"]
    return [path[:end] for end in ends] + [""]


def _longest_prefix(given: dict[str, Any], path: str) -> Any:
    return next((given[prefix] for prefix in _prefixes(path) if prefix in given), None)


def _check_fit(caller: str, leaf: PlannedLeaf, sharding: Any) -> None:
    spec = sharding if isinstance(sharding, PartitionSpec) else getattr(sharding, "spec", ())
    fits = len(spec or ()) <= len(leaf.shape)
    if fits and isinstance(sharding, Sharding):
        try:
            sharding.shard_shape(leaf.shape)
        except (ValueError, IndexError):
            fits = False
    if not fits:
        raise ValueError(
            f"{caller} needs a sharding that divides {leaf.path!r} of shape {leaf.shape} evenly, "
            f"got {sharding}. Shard another axis, or leave it whole with PartitionSpec()."
        )
