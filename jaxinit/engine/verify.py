"""Holds leaves against what plain ``jax.jit`` makes of the init function."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxinit.engine.assembly import Assembly
from jaxinit.engine.jaxprs import is_key


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
            arrays, _ = jax.jit(
                lambda *a, f=function, c=company: (f(*a), jnp.zeros(0) if c else c)
            )(*[flat[position] for position in needed])
            for leaf, array in zip(positions, arrays, strict=True):
                if not _same(leaves[leaf], array, recipe.program.out_avals[leaf]):
                    raise RuntimeError(_message(leaf, leaves[leaf], array, out_tree))


def _same(ours: Any, theirs: Any, aval: Any) -> bool:
    return _bytes(ours, aval) == _bytes(theirs, aval)


def _bytes(array: Any, aval: Any) -> bytes:
    return np.asarray(jax.random.key_data(array) if is_key(aval) else array).tobytes()


def _message(leaf: int, ours: Any, theirs: Any, out_tree: Any) -> str:
    numbered = jax.tree.unflatten(out_tree, range(out_tree.num_leaves))
    path, _ = jax.tree_util.tree_flatten_with_path(numbered)[0][leaf]
    return (
        f"jit_init needs the bits of jax.jit, and {jax.tree_util.keystr(path)} differs: "
        f"{np.asarray(ours).ravel()[:4]} here, {np.asarray(theirs).ravel()[:4]} there. "
        "Use jax.jit for this function, and please report it with the versions of jax and jaxlib."
    )
