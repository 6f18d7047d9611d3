"""A traced init function on certain devices: its programs compiled, its leaves filled, and told.

`Assembly` turns the groups of a `TracedInit` into programs for one placement and calls them.
`Assembly.explain` describes it in a record that prints itself; `Assembly.verify` compares leaves
with those of plain ``jax.jit``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxinit._table import render_table, spell_bytes
from jaxinit.engine._compile import Call, Group, Program, Work
from jaxinit.engine._placement import (
    commitment,
    constraints_in,
    decide,
    may_copy,
    put,
    shards_are_wide,
)
from jaxinit.engine._slices import Same, Slice, may_use_fast_bits, name_of
from jaxinit.engine._threefry import fast_key
from jaxinit.engine._traced_init import TracedInit
from jaxinit.jaxpr import hold, is_key, nbytes_of

_NOT_PLACED = "lives on devices that only the whole function tells"
_FORWARDED = "returned as it came"
_MAX_ROWS = 40


@dataclasses.dataclass(frozen=True)
class ProgramNote:
    """A program and the leaves that it fills.

    Attributes:
        leaves: how many leaves there are.
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
        programs: what makes the leaves.
        fallback: path of every leaf that stays with plain ``jax.jit``, and why.
        leaves: number of leaves.
        nbytes: bytes of the finished tree.
        peak: bytes that are alive at most: the tree, and memory that programs use beside it.
        seconds: time by phase: ``trace``, ``slice``, ``compile``, and, when there was a call,
            ``run``: the last call from its first program to its return. JAX fills arrays after a
            call returns.
    """

    programs: tuple[ProgramNote, ...]
    fallback: Mapping[str, str]
    leaves: int
    nbytes: int
    peak: int
    seconds: Mapping[str, float]

    def __str__(self) -> str:
        shown = sorted(self.programs, key=lambda note: -note.nbytes)
        rows = [
            (n.leaves, n.types, spell_bytes(n.nbytes), n.made_by, n.operations, n.first)
            for n in shown
        ]
        columns = ("leaves", "each", "bytes", "made by", "operations", "first leaf")
        count = sum(note.made_by == "compiled" for note in self.programs)
        parts = [
            f"{self.leaves} leaves, {len(self.programs)} programs, {count} compiled; "
            f"{spell_bytes(self.nbytes)}, predicted peak {spell_bytes(self.peak)}",
            *_first_rows(columns, rows, "programs"),
        ]
        if self.fallback:
            rows = list(self.fallback.items())
            parts += _first_rows(("left to jax.jit", "because of"), rows, "leaves")
        phases = ", ".join(f"{phase} {time:.3f}" for phase, time in self.seconds.items())
        return "\n\n".join([*parts, f"seconds: {phases}"])


def _first_rows(columns: Sequence[str], rows: Sequence[Any], noun: str) -> list[str]:
    parts = [render_table(columns, rows[:_MAX_ROWS])]
    if len(rows) > _MAX_ROWS:
        parts.append(f"... and {len(rows) - _MAX_ROWS} {noun} more")
    return parts


class Assembly:
    """A traced init function for one placement.

    Attributes:
        traced: the traced function.
        groups: all leaves but those that are returned as they came.
        work: the same groups, compiled and called.
        leftover: why leaves stay with plain ``jax.jit``.
        run_seconds: time of the last call; None before the first.

    Args:
        traced: the traced function.
        flat: arguments of a call, arrays or their types.
        asked: sharding that the caller asks for, leaf by leaf; None where nothing is asked.
    """

    def __init__(self, traced: TracedInit, flat: Sequence[Any], asked: Sequence[Any]) -> None:
        self.traced = traced
        self.groups: list[Group] = []
        self.leftover = dict(traced.leftover)
        self.run_seconds: float | None = None
        self._avals = [traced.graph.aval(atom) for atom in traced.graph.outputs]
        self.work = Work(self.groups, [nbytes_of(aval) for aval in self._avals])
        self._firsts: dict[int, Slice] = {}
        self._asked = asked
        live = [flat[position] for position in traced.live_inputs]
        constraints = constraints_in(node.equation for node in traced.graph.nodes)
        self.placement = decide(live, asked, constraints)
        for content, members in traced.groups.items():
            if self.placement.is_known:
                self._add(content, members, flat)
            else:
                leaves = [leaf for piece in members for leaf in piece.leaves]
                self.leftover.update(dict.fromkeys(leaves, _NOT_PLACED))
        self._add_leftover(flat)
        function, self._forwarded_from = traced.whole_function(traced.forwarded)
        # `jax.jit` itself and not a compiled program of ours: it returns the very same buffers.
        self._forward = jax.jit(function, out_shardings=self._placed(traced.forwarded))

    def _add(self, content: Same, members: Sequence[Slice], flat: Sequence[Any]) -> None:
        """Adds a group for each way in which slices of one content are placed: mostly one."""
        first = members[0]
        is_free = not constraints_in(node.equation for node in first.nodes)
        # A program without arguments follows none of them: it must be told its devices. A mesh in
        # the context tells them better, since it knows the rank of explicit axes.
        told = first.arguments or not jax.sharding.get_mesh().empty
        alone = None if told else self.placement.rows
        fill = (self.placement.fill or alone) if is_free else None
        constant = self.traced.slicing.constant(first)
        by_place: dict[tuple[Any, ...], list[Slice]] = {}
        for piece in members:
            asked = [self._asked[leaf] for leaf in piece.leaves]
            by_place.setdefault(tuple(fill if s is None else s for s in asked), []).append(piece)
        for placed, pieces in by_place.items():
            calls = [Call(p.leaves, tuple(map(name_of, p.arguments))) for p in pieces]
            self._firsts[len(self.groups)] = first
            is_known = constant is not None or self._is_value(first)
            nbytes = nbytes_of(self._avals[first.leaves[0]])
            if is_known and may_copy(nbytes, placed[0], len(pieces)):
                place = placed[0] or self.placement.rows
                self.groups.append(Group(calls, None, constant, place))
            else:
                self.groups.append(Group(calls, self._program(content, first, flat, placed)))

    def _is_value(self, piece: Slice) -> bool:
        """Whether a leaf is a value of the host, and nothing else."""
        aval, atom = self._avals[piece.leaves[0]], piece.outputs[0]
        return (
            not piece.nodes
            and len(piece.leaves) == 1
            and not is_key(aval)
            and not aval.weak_type
            and (not isinstance(atom, int) or atom in self.traced.slicing.on_host)
        )

    def _program(
        self, content: Same, piece: Slice, flat: Sequence[Any], placed: tuple[Any, ...]
    ) -> Program:
        slicing, inputs = self.traced.slicing, self.traced.graph.inputs
        types = []
        for atom, struct in zip(piece.arguments, slicing.argument_types(piece), strict=True):
            place = self.placement.rows
            if isinstance(atom, int) and atom not in slicing.on_host:
                place = commitment(flat[inputs.index(atom)]) or place
            types.append(struct.update(sharding=place))
        equations = [node.equation for node in piece.nodes]
        is_fast = may_use_fast_bits(equations) and all(
            shards_are_wide(self._avals[leaf].shape, sharding)
            for leaf, sharding in zip(piece.leaves, placed, strict=True)
        )
        is_one_of_several = self._is_one_of_several(piece.leaves) and hold(equations, "transpose")
        places = tuple(struct.sharding for struct in types)
        return Program(
            (content, placed, places, is_fast, is_one_of_several),
            slicing.function(piece, fast_key if is_fast else None),
            tuple(types),
            list(placed),
            is_fast,
            is_one_of_several=is_one_of_several,
        )

    def _is_one_of_several(self, leaves: Sequence[int]) -> bool:
        return len(leaves) == 1 and len(self._avals) > 1

    def _add_leftover(self, flat: Sequence[Any]) -> None:
        """Adds one group for all leaves that stay together."""
        leaves = tuple(sorted(self.leftover))
        if leaves:
            function, positions = self.traced.whole_function(leaves)
            program = Program(
                None,
                function,
                tuple(flat[position] for position in positions),
                self._placed(leaves),
                is_one_of_several=self._is_one_of_several(leaves),
            )
            call = Call(leaves, tuple(map(_input_name, positions)))
            self.groups.append(Group([call], program))

    def _placed(self, leaves: Sequence[int]) -> list[Any]:
        fill = self.placement.fill if self.placement.rows is None else None
        return [fill if self._asked[n] is None else self._asked[n] for n in leaves]

    def fill(self, flat: Sequence[Any], max_live_bytes: int | None = None) -> list[Any]:
        """Fills every leaf.

        Args:
            flat: the arguments of the call.
            max_live_bytes: bytes that may be alive beyond the finished leaves; None means as many
                as the largest leaf has, and at least 1 MiB.

        Returns:
            The leaves, in order.
        """
        start = time.perf_counter()
        values = self.traced.values(flat)
        values.update((_input_name(position), array) for position, array in enumerate(flat))
        leaves: list[Any] = [None] * len(self._avals)
        calls = functools.partial(self._calls, values)
        with contextlib.closing(self.work.fill(calls, max_live_bytes)) as filled:
            for positions, arrays in filled:
                for leaf, array in zip(positions, arrays, strict=True):
                    leaves[leaf] = array
        if self.traced.forwarded:
            arrays = self._forward(*[flat[position] for position in self._forwarded_from])
            for leaf, array in zip(self.traced.forwarded, arrays, strict=True):
                leaves[leaf] = array
        self.run_seconds = time.perf_counter() - start
        return leaves

    def _calls(self, values: Mapping[Any, Any], group: Group) -> Iterator[Call]:
        rows = self.placement.rows
        for call in group.calls:
            arguments = [values[name] for name in call.arguments]
            if group.constant is not None:
                arguments = [np.full(self._avals[call.leaves[0]].shape, group.constant)]
            elif group.program is None:
                # Copies, because a row of a larger array would keep all of it alive.
                arguments = list(map(np.array, arguments))
            elif rows is not None:
                # A committed argument stays where it is; all others are put beside it.
                arguments = [
                    put(value, rows) if commitment(value) is None else value for value in arguments
                ]
            yield Call(call.leaves, arguments)

    def explain(
        self, out_tree: Any, max_live_bytes: int | None, seconds: Mapping[str, float]
    ) -> Explanation:
        """Compiles every program and describes what was found.

        Args:
            out_tree: structure of the result.
            max_live_bytes: as in `fill`.
            seconds: time of phases before this one.
        """
        for _ in self.work.ready():
            pass
        paths = [
            jax.tree_util.keystr(path, simple=True, separator="/") or "(the result)"
            for path in _paths(out_tree)
        ]
        nbytes = sum(self.work.sizes)
        seconds = {**seconds, "compile": self.work.compile_seconds}
        if self.run_seconds is not None:
            seconds["run"] = self.run_seconds
        why = {**self.leftover, **dict.fromkeys(self.traced.forwarded, _FORWARDED)}
        return Explanation(
            programs=tuple(self._note(index, paths) for index in self._firsts),
            fallback={paths[leaf]: reason for leaf, reason in sorted(why.items())},
            leaves=len(self._avals),
            nbytes=nbytes,
            peak=nbytes + self.work.most_beside(max_live_bytes),
            seconds=seconds,
        )

    def _note(self, index: int, paths: Sequence[str]) -> ProgramNote:
        group, nodes = self.groups[index], self._firsts[index].nodes
        names = [str(node.params.get("name", node.primitive)).lstrip("_") for node in nodes]
        leaves = group.calls[0].leaves
        return ProgramNote(
            leaves=sum(len(call.leaves) for call in group.calls),
            types=", ".join(self._avals[leaf].str_short() for leaf in leaves),
            nbytes=self.work.nbytes_of(group),
            made_by="host" if group.program is None else "compiled",
            operations=", ".join(dict.fromkeys(names)) or "as the host computes it",
            first=paths[leaves[0]],
        )

    def verify(self, flat: Sequence[Any], leaves: Sequence[Any], out_tree: Any) -> None:
        """Compares leaves of the first and the last call of every program with plain ``jax.jit``.

        Args:
            flat: the arguments of the call.
            leaves: the leaves that it filled.
            out_tree: structure of the result, for the message.

        Raises:
            RuntimeError: when a byte differs.
        """
        for group in self.groups:
            for positions in {group.calls[0].leaves, group.calls[-1].leaves}:
                arrays = self._alone(positions, flat, leaves)
                for leaf, array in zip(positions, arrays, strict=True):
                    aval = self._avals[leaf]
                    if _bytes(leaves[leaf], aval) != _bytes(array, aval):
                        path = jax.tree_util.keystr(_paths(out_tree)[leaf])
                        raise RuntimeError(
                            f"jit_init needs the bits of jax.jit, and {path} differs: "
                            f"{_start(leaves[leaf])} here, {_start(array)} there. Use jax.jit for "
                            "this function, and please report it with the versions of jax and "
                            "jaxlib."
                        )

    def _alone(
        self, positions: Sequence[int], flat: Sequence[Any], leaves: Sequence[Any]
    ) -> Sequence[jax.Array]:
        """Leaves as the init function itself makes them, on the devices where they are."""
        function, needed = self.traced.whole_function(positions)
        # One result of several, as it is in the init function: see `Program.is_one_of_several`.
        are_some = len(leaves) > len(positions)
        placed = [leaves[n].sharding if leaves[n].committed else None for n in positions]
        arrays, _ = jax.jit(
            lambda *a: (function(*a), jnp.zeros(0) if are_some else None),
            out_shardings=(placed, None),
        )(*[flat[position] for position in needed])
        return arrays


def _input_name(position: int) -> tuple[str, int]:
    """Name of an argument of the call itself, as it came."""
    return ("input", position)


def _paths(out_tree: Any) -> list[Any]:
    tree = jax.tree.unflatten(out_tree, range(out_tree.num_leaves))
    return [path for path, _ in jax.tree_util.tree_flatten_with_path(tree)[0]]


def _bytes(array: Any, aval: Any) -> list[bytes]:
    # Shard by shard: other processes look at theirs.
    array = jax.random.key_data(array) if is_key(aval) else array
    return [np.asarray(shard.data).tobytes() for shard in array.addressable_shards]


def _start(array: Any) -> np.ndarray:
    return np.asarray(array.addressable_shards[0].data).ravel()[:4]
