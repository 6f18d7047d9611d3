"""A recipe inside somebody else's trace: equal leaves become one loop, and the program stays small.

Under an outer ``jax.jit``, ``jax.vmap`` or ``jax.eval_shape`` nothing can be compiled apart. What
can be shared is the program text: leaves of a family are drawn in one loop over their keys, whose
body is the program of one leaf.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxinit.engine import _host as host
from jaxinit.engine._kinds import Family, atom_is_words, function_of, may_hasten
from jaxinit.engine._placement import constraints_in
from jaxinit.engine._recipe import Recipe, source_of
from jaxinit.jaxpr._equations import is_key, nbytes_of

# Fewer than this are written out: the slices of the loop's result cost as much as they save.
_MIN_MEMBERS = 4
# Leaves of a loop are slices of one array, which lives beside them; this bounds it.
_MAX_LOOP_BYTES = 2**28


def can_inline(recipe: Recipe) -> bool:
    """Whether loops give the bits of the whole function, whatever batches over them.

    Not for keys other than threefry: under ``vmap`` they draw a batch from its first key.
    """
    return not any(
        is_key(aval) and host.implementation_of(aval) != "threefry2x32"
        for aval in recipe.program.avals
    )


def inline(recipe: Recipe, flat: Sequence[Any]) -> list[Any]:
    """Traces every leaf.

    Args:
        recipe: what to trace.
        flat: the arguments, arrays or tracers.

    Returns:
        The leaves, in order.
    """
    values = recipe.traced_values(flat)
    leaves: list[Any] = [None] * len(recipe.program.outputs)
    alone = list(recipe.leftover)
    for family in recipe.families:
        if _loops(family):
            for positions, arrays in _loop(recipe, family, values):
                for leaf, array in zip(positions, arrays, strict=True):
                    leaves[leaf] = array
        else:
            alone.extend(leaf for piece in family.members for leaf in piece.leaves)
    function, positions = recipe.whole_function(alone)
    for leaf, array in zip(alone, function(*[flat[i] for i in positions]), strict=True):
        leaves[leaf] = array
    return leaves


def _loops(family: Family) -> bool:
    first = family.members[0]
    return (
        len(family.members) >= _MIN_MEMBERS
        # In the body of a loop operations are fused anew, as they are with faster bits.
        and may_hasten([step.equation for step in first.steps])
        and not constraints_in(step.equation for step in first.steps)
    )


def _loop(
    recipe: Recipe, family: Family, values: dict[Any, Any]
) -> Iterator[tuple[tuple[int, ...], list[Any]]]:
    program, first = recipe.program, family.members[0]
    function = function_of(program, first, recipe.on_host, None)
    need = sum(nbytes_of(program.out_avals[leaf]) for leaf in first.leaves)
    size = max(1, _MAX_LOOP_BYTES // max(1, need))
    for start in range(0, len(family.members), size):
        chunk = family.members[start : start + size]
        rows = [_row(recipe, piece, values) for piece in chunk]
        columns = [jnp.stack(column) for column in zip(*rows, strict=True)]
        stacks = jax.lax.map(lambda row: function(*row), columns)
        for index, piece in enumerate(chunk):
            yield piece.leaves, [stack[index] for stack in stacks]


def _row(recipe: Recipe, piece: Any, values: dict[Any, Any]) -> list[Any]:
    row = []
    for atom in piece.arguments:
        value = values[source_of(atom)]
        is_words = atom_is_words(recipe.program, atom, recipe.on_host)
        row.append(jax.random.key_data(value) if is_words else value)
    return row
