"""Holds leaves against what plain ``jax.jit`` makes of the init function."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxinit.engine._assembly import Assembly
from jaxinit.jaxpr._equations import is_key


def verify_bits(
    assembly: Assembly, flat: Sequence[Any], leaves: Sequence[Any], out_tree: Any
) -> None:
    """Compares the first and the last slice of every kind with their own ``jax.jit``.

    Args:
        assembly: how the leaves were made.
        flat: the arguments of the call.
        leaves: the leaves.
        out_tree: structure of the result, for the message.

    Raises:
        RuntimeError: when a byte differs.
    """
    recipe = assembly.recipe
    for line in assembly.lines:
        for positions in {line.members[0], line.members[-1]}:
            function, needed = recipe.whole_function(positions)
            # One result of several, as it is in the init function: see `Kind.has_company`.
            company = len(leaves) > len(positions)
            placed = [leaves[n].sharding if leaves[n].committed else None for n in positions]
            options: dict[str, Any] = {"out_shardings": (placed, None)} if any(placed) else {}
            arrays, _ = jax.jit(
                lambda *a, f=function, c=company: (f(*a), jnp.zeros(0) if c else c), **options
            )(*[flat[position] for position in needed])
            for leaf, array in zip(positions, arrays, strict=True):
                if not _same(leaves[leaf], array, recipe.program.out_avals[leaf]):
                    raise RuntimeError(_message(leaf, leaves[leaf], array, out_tree))


def _same(ours: Any, theirs: Any, aval: Any) -> bool:
    return _bytes(ours, aval) == _bytes(theirs, aval)


def _bytes(array: Any, aval: Any) -> list[bytes]:
    # Shard by shard: other processes look at theirs.
    array = jax.random.key_data(array) if is_key(aval) else array
    return [np.asarray(shard.data).tobytes() for shard in array.addressable_shards]


def _start(array: Any) -> np.ndarray:
    return np.asarray(array.addressable_shards[0].data).ravel()[:4]


def _message(leaf: int, ours: Any, theirs: Any, out_tree: Any) -> str:
    numbered = jax.tree.unflatten(out_tree, range(out_tree.num_leaves))
    path, _ = jax.tree_util.tree_flatten_with_path(numbered)[0][leaf]
    return (
        f"jit_init needs the bits of jax.jit, and {jax.tree_util.keystr(path)} differs: "
        f"{_start(ours)} here, {_start(theirs)} there. "
        "Use jax.jit for this function, and please report it with the versions of jax and jaxlib."
    )
