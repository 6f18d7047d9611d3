"""Which leaves a call of ``plan.init`` draws, and which arrays it leaves alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxinit.planning._leaves import PlannedLeaf
from jaxinit.planning._messages import listing, suggestion
from jaxinit.planning._paths import ParamSpec, flatten
from jaxinit.planning._rules import as_matcher


def selected(leaves: Sequence[PlannedLeaf], only: Any) -> list[PlannedLeaf]:
    """The leaves that any of the patterns matches."""
    patterns = list(only) if isinstance(only, list | tuple | set | frozenset) else [only]
    chosen: set[str] = set()
    for pattern in patterns:
        matcher = as_matcher("plan.init, in only=,", pattern)
        hits = {x.path for x in leaves if matcher.matches(x.path, _spec(x))}
        if not hits:
            near = suggestion(matcher.text, (leaf.path for leaf in leaves))
            raise ValueError(
                f"plan.init needs only= to match a leaf, got {matcher.text!r}, which matches "
                f"none{near}. Look at plan.paths."
            )
        chosen |= hits
    return [leaf for leaf in leaves if leaf.path in chosen]


def _spec(leaf: PlannedLeaf) -> ParamSpec:
    return ParamSpec(leaf.shape, leaf.dtype, leaf.sharding)


def planned_values(
    planned: Mapping[str, PlannedLeaf], argument: str, tree: Any
) -> Iterator[tuple[str, Any]]:
    """Path and value of every leaf of a tree that an argument of ``plan.init`` holds.

    Raises:
        ValueError: when a leaf is not in the plan.
    """
    flat = flatten(f"plan.init, in {argument}=,", tree)
    if unknown := [path for path in flat.paths if path not in planned]:
        named = [f"{path!r}{suggestion(path, planned)}" for path in unknown[:10]]
        raise ValueError(
            f"plan.init needs {argument}= to hold leaves of the plan, got also "
            f"{listing(named, total=len(unknown))}. Remove them or correct the paths."
        )
    return zip(flat.paths, flat.leaves, strict=True)


def misfits(planned: Mapping[str, PlannedLeaf], values: Mapping[str, Any]) -> list[str]:
    """Arrays that have another shape or dtype than the plan, as errors list them."""
    return [
        f"{path!r} of shape {value.shape} and {value.dtype} for {planned[path].shape} and "
        f"{planned[path].dtype}"
        for path, value in values.items()
        if (value.shape, value.dtype) != (planned[path].shape, planned[path].dtype)
    ]


def kept_values(planned: Mapping[str, PlannedLeaf], keep: Any) -> dict[str, Any]:
    """The arrays of ``keep`` by path, checked against the plan."""
    if keep is None:
        return {}
    kept: dict[str, Any] = {}
    for path, value in planned_values(planned, "keep", keep):
        if isinstance(value, jax.ShapeDtypeStruct | ParamSpec):
            continue
        if not isinstance(value, jax.Array | np.ndarray):
            raise TypeError(
                f"plan.init needs arrays in keep=, got {value!r} of type {type(value).__name__} at "
                f"{path!r}. Convert it with jnp.asarray, or leave it out."
            )
        kept[path] = value
    if wrong := misfits(planned, kept):
        raise ValueError(
            "plan.init needs arrays in keep= of the planned shape and dtype, got "
            f"{listing(wrong)}. Convert them, or leave them out to have them drawn."
        )
    return kept
