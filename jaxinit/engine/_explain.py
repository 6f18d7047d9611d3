"""What `jit_init` found in an init function, as a record that prints itself."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from jaxinit._table import render_table, spell_bytes
from jaxinit.engine._assembly import Assembly, Line
from jaxinit.engine._compile import in_use_beside
from jaxinit.engine._kinds import Family

_MAX_LINES = 40


@dataclasses.dataclass(frozen=True)
class KindNote:
    """Leaves that share a program.

    Attributes:
        leaves: how many there are.
        types: dtype and shape of what one call makes.
        nbytes: bytes of all of them.
        made_by: ``compiled``, or ``host`` for constants that are copied.
        operations: what the program does.
        first: path of the first leaf.
    """

    leaves: int
    types: str
    nbytes: int
    made_by: str
    operations: str
    first: str


@dataclasses.dataclass(frozen=True)
class Explanation:
    """How an init function is carried out.

    Attributes:
        kinds: leaves by the program that makes them.
        fallback: path of every leaf that stays with plain ``jax.jit``, and why.
        leaves: number of leaves.
        nbytes: bytes of the finished tree.
        peak: bytes that are alive at most: the tree and what may be in use beside it.
        seconds: time by phase: ``trace``, ``slice``, ``compile``, and ``run``, the last call from
            its first program to its return, when there was one. JAX fills arrays after it returns.
    """

    kinds: tuple[KindNote, ...]
    fallback: Mapping[str, str]
    leaves: int
    nbytes: int
    peak: int
    seconds: Mapping[str, float]

    def __str__(self) -> str:
        shown = sorted(self.kinds, key=lambda kind: -kind.nbytes)
        rows = [
            (k.leaves, k.types, spell_bytes(k.nbytes), k.made_by, k.operations, k.first)
            for k in shown[:_MAX_LINES]
        ]
        columns = ("leaves", "each", "bytes", "made by", "operations", "first leaf")
        compiled = sum(kind.made_by == "compiled" for kind in self.kinds)
        parts = [
            f"{self.leaves} leaves, {len(self.kinds)} kinds, {compiled} compiled; "
            f"{spell_bytes(self.nbytes)}, predicted peak {spell_bytes(self.peak)}",
            render_table(columns, rows),
        ]
        if len(shown) > _MAX_LINES:
            parts.append(f"... and {len(shown) - _MAX_LINES} kinds more")
        if self.fallback:
            rows = list(self.fallback.items())
            parts.append(render_table(("left to jax.jit", "because of"), rows[:_MAX_LINES]))
            if len(rows) > _MAX_LINES:
                parts.append(f"... and {len(rows) - _MAX_LINES} leaves more")
        phases = ", ".join(f"{phase} {time:.3f}" for phase, time in self.seconds.items())
        return "\n\n".join([*parts, f"seconds: {phases}"])


def explain(
    assembly: Assembly, out_tree: Any, max_live_bytes: int | None, seconds: Mapping[str, float]
) -> Explanation:
    """Describes an assembly whose kinds are compiled.

    Args:
        assembly: what to describe.
        out_tree: structure of the result.
        max_live_bytes: bytes allowed beyond the finished leaves.
        seconds: time by phase.
    """
    avals = assembly.recipe.program.out_avals
    paths = _paths(out_tree, len(avals))
    notes = [
        _note(assembly, line, line.family, paths)
        for line in assembly.lines
        if line.family is not None
    ]
    allowed = assembly.allowance(max_live_bytes)
    needs = [
        (assembly.executables[line.kind].scratch, len(line.members))
        for line in assembly.lines
        if line.kind is not None
    ]
    return Explanation(
        kinds=tuple(notes),
        fallback={paths[leaf]: why for leaf, why in sorted(assembly.leftover.items())},
        leaves=len(avals),
        nbytes=assembly.nbytes,
        peak=assembly.nbytes + in_use_beside(needs, allowed),
        seconds=dict(seconds),
    )


def _paths(out_tree: Any, count: int) -> list[str]:
    tree = jax.tree.unflatten(out_tree, range(count))
    found, _ = jax.tree_util.tree_flatten_with_path(tree)
    paths = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in found]
    return [path or "(the result)" for path in paths]


def _note(assembly: Assembly, line: Line, family: Family, paths: Sequence[str]) -> KindNote:
    program = assembly.recipe.program
    names = [
        step.equation.params.get("name", step.equation.primitive.name).lstrip("_")
        for step in family.members[0].steps
    ]
    types = [program.out_avals[leaf].str_short() for leaf in line.members[0]]
    return KindNote(
        leaves=sum(map(len, line.members)),
        types=", ".join(types),
        nbytes=assembly.nbytes_of(line),
        made_by="host" if line.kind is None else "compiled",
        operations=", ".join(dict.fromkeys(names)) or "as the host computes it",
        first=paths[line.members[0][0]],
    )
