"""From the lines of a plan to a list of draws, and from that to arrays or to an estimate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax.core import Tracer

from jaxinit.engine import Estimate, LeafSpec, Progress, draw, estimate
from jaxinit.planning._donation import drawn_over, refuse_trace
from jaxinit.planning._keys import keys_for_paths
from jaxinit.planning._leaves import PlannedLeaf
from jaxinit.planning._shardings import check_mesh


def as_draws(
    caller: str, leaves: Sequence[PlannedLeaf], shardings: Sequence[Any]
) -> list[LeafSpec]:
    """What the engine draws; equal leaves share one object.

    Args:
        caller: public name that an error starts with.
        leaves: the leaves to draw.
        shardings: where each goes, None for no wish.

    Raises:
        ValueError: when a leaf needs a mesh or 64-bit types that are not there.
    """
    # By identity, because the law and the place of a leaf take longer to hash than to draw.
    known: dict[tuple[Any, ...], LeafSpec] = {}
    draws = []
    for leaf, sharding in zip(leaves, shardings, strict=True):
        key = (id(leaf.initializer), leaf.shape, leaf.dtype, id(sharding))
        made = known.get(key)
        if made is None:
            check_mesh(caller, leaf, sharding)
            _check_width(caller, leaf)
            made = known[key] = LeafSpec(leaf.initializer, leaf.shape, leaf.dtype, sharding)
        draws.append(made)
    return draws


def _check_width(caller: str, leaf: PlannedLeaf) -> None:
    if jax.dtypes.canonicalize_dtype(leaf.dtype) != leaf.dtype:
        raise ValueError(
            f"{caller} needs 64-bit types to draw {leaf.path!r} as {leaf.dtype}, and they are "
            "off. Set jax.config.update('jax_enable_x64', True), or plan for 32 bits."
        )


def draw_leaves(
    root: jax.Array,
    leaves: Sequence[PlannedLeaf],
    shardings: Sequence[Any],
    *,
    donated: Mapping[str, jax.Array] | None,
    untouched: Mapping[str, Any],
    max_live_bytes: int | None,
    progress: Progress | None,
) -> dict[str, jax.Array]:
    """Draws leaves of a plan.

    Args:
        root: the root key.
        leaves: the leaves to draw.
        shardings: where each goes, None for no wish.
        donated: arrays to draw over by path; None draws into fresh memory. Where nothing else is
            wished, leaves stay where these are.
        untouched: what the caller will return as it is, by path.
        max_live_bytes: as in ``plan.init``.
        progress: as in ``plan.init``.

    Returns:
        The arrays by path.
    """
    into = None if donated is None else drawn_over(leaves, donated, untouched)
    draws = as_draws("plan.init", leaves, shardings)
    keys = keys_for_paths(root, [leaf.path for leaf in leaves])
    if into is not None and isinstance(keys, Tracer):
        refuse_trace()
    arrays = draw(draws, keys, into=into, max_live_bytes=max_live_bytes, progress=progress)
    return {leaf.path: array for leaf, array in zip(leaves, arrays, strict=True)}


def estimate_leaves(
    root: jax.Array | None, draws: Sequence[LeafSpec], max_live_bytes: int | None
) -> Estimate:
    """Says what memory draws take.

    Args:
        root: the root key; None stands for one of JAX's default implementation.
        draws: what would be drawn.
        max_live_bytes: as in ``plan.init``.
    """
    if root is None:
        return estimate(draws, max_live_bytes=max_live_bytes)
    data = jax.random.key_data(root)
    place = data.sharding if data.committed else None
    return estimate(draws, jax.random.key_impl(root), place, max_live_bytes=max_live_bytes)
