"""A recipe on certain devices: its kinds compiled, its leaves filled one call at a time."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Generator, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxinit.engine._compile import Call, Executable, Kind, allowance, carry_out, compiled
from jaxinit.engine._kinds import Family, argument_types, constant_of, function_of, may_hasten
from jaxinit.engine._placement import (
    commitment,
    constraints_in,
    decide,
    may_copy,
    put,
    shards_are_wide,
)
from jaxinit.engine._recipe import FORWARDED, Recipe, input_name, source_of
from jaxinit.engine._slices import Slice
from jaxinit.engine._threefry import fast_compiler_options, fast_key
from jaxinit.jaxpr._equations import is_key, nbytes_of, transposes

_NOT_PLACED = "lives on devices that only the whole function tells"


class Line(NamedTuple):
    """Leaves that are made alike.

    Attributes:
        members: leaves of each slice.
        sources: names of what each slice starts from.
        kind: index of what is compiled for them; None where the host makes them.
        constant: the number that fills them, where the host does so.
        placed: where the host puts them.
        family: the slices that they are; None for leaves that stay with plain ``jax.jit``.
    """

    members: list[tuple[int, ...]]
    sources: list[tuple[Any, ...]]
    kind: int | None = None
    constant: np.generic | None = None
    placed: Any = None
    family: Family | None = None


class Assembly:
    """A recipe for one placement.

    Attributes:
        recipe: what is assembled.
        lines: all leaves, by how they are made.
        kinds: what is compiled.
        leftover: why leaves stay with plain ``jax.jit``.
        executables: compiled kinds, by index.
        seconds: time spent, by phase.
    """

    def __init__(self, recipe: Recipe, flat: Sequence[Any], asked: Sequence[Any]) -> None:
        self.recipe = recipe
        self.leftover = dict(recipe.leftover)
        self.lines: list[Line] = []
        self.kinds: list[Kind] = []
        self.executables: dict[int, Executable] = {}
        self.seconds: dict[str, float] = {}
        self._asked = asked
        live = [flat[position] for position in recipe.live_inputs]
        constraints = constraints_in(step.equation for step in recipe.program.steps)
        self.placement = decide(live, asked, constraints)
        for family in recipe.families:
            if self.placement.is_known:
                self._add(family, flat)
            else:
                leaves = [leaf for piece in family.members for leaf in piece.leaves]
                self.leftover.update(dict.fromkeys(leaves, _NOT_PLACED))
        self._add_leftover(flat)
        self._add_forwarded()

    def _add(self, family: Family, flat: Sequence[Any]) -> None:
        """Adds a line for each way in which leaves of a family are placed: mostly one."""
        first = family.members[0]
        is_free = not constraints_in(step.equation for step in first.steps)
        # A program without arguments follows none of them: it must be told, unless a mesh in the
        # context tells it, and tells it better: of explicit axes it knows the rank too.
        told = first.arguments or not jax.sharding.get_mesh().empty
        alone = None if told else self.placement.rows
        fill = (self.placement.fill or alone) if is_free else None
        groups: dict[tuple[Any, ...], list[Slice]] = {}
        for piece in family.members:
            asked = [self._asked[leaf] for leaf in piece.leaves]
            groups.setdefault(tuple(fill if s is None else s for s in asked), []).append(piece)
        for placed, members in groups.items():
            line = Line(
                [piece.leaves for piece in members],
                [tuple(map(source_of, piece.arguments)) for piece in members],
                family=family,
            )
            if self._is_for_host(first, placed, len(members)):
                constant = constant_of(self.recipe.program, first)
                line = line._replace(constant=constant, placed=placed[0] or self.placement.rows)
            else:
                line = line._replace(kind=len(self.kinds))
                self.kinds.append(self._kind(family, flat, placed))
            self.lines.append(line)

    def _is_for_host(self, piece: Slice, placed: tuple[Any, ...], count: int) -> bool:
        """Whether the host makes leaves and copies bring them where they belong."""
        recipe = self.recipe
        aval = recipe.program.out_avals[piece.leaves[0]]
        is_value = (
            not piece.steps
            and len(piece.leaves) == 1
            and not is_key(aval)
            and not aval.weak_type
            and (not isinstance(piece.outputs[0], int) or piece.outputs[0] in recipe.on_host)
        )
        return (is_value or constant_of(recipe.program, piece) is not None) and may_copy(
            nbytes_of(aval), placed[0], count
        )

    def _kind(self, family: Family, flat: Sequence[Any], placed: tuple[Any, ...]) -> Kind:
        recipe, first = self.recipe, family.members[0]
        types = []
        structs = argument_types(recipe.program, first, recipe.on_host)
        for atom, struct in zip(first.arguments, structs, strict=True):
            place = self.placement.rows
            if isinstance(atom, int) and atom not in recipe.on_host:
                place = commitment(flat[recipe.program.inputs.index(atom)]) or place
            types.append(struct.update(sharding=place))
        hastens = may_hasten([step.equation for step in first.steps]) and all(
            shards_are_wide(recipe.program.out_avals[leaf].shape, sharding)
            for leaf, sharding in zip(first.leaves, placed, strict=True)
        )
        has_company = self._has_company(first.leaves) and any(
            transposes(step.equation) for step in first.steps
        )
        places = tuple(struct.sharding for struct in types)
        return Kind(
            (family.description, placed, places, hastens, has_company),
            function_of(recipe.program, first, recipe.on_host, fast_key if hastens else None),
            tuple(types),
            _or_none(placed),
            tuple(sorted(fast_compiler_options().items())) if hastens else (),
            has_company=has_company,
        )

    def _has_company(self, leaves: Sequence[int]) -> bool:
        return len(leaves) == 1 and len(self.recipe.program.outputs) > 1

    def _add_leftover(self, flat: Sequence[Any]) -> None:
        leaves = tuple(sorted(leaf for leaf, why in self.leftover.items() if why != FORWARDED))
        if leaves:
            function, positions = self.recipe.whole_function(leaves)
            arguments = tuple(flat[position] for position in positions)
            names = tuple(map(input_name, positions))
            self.lines.append(Line([leaves], [names], len(self.kinds)))
            placed, has_company = self._placed(leaves), self._has_company(leaves)
            self.kinds.append(Kind(None, function, arguments, placed, has_company=has_company))

    def _add_forwarded(self) -> None:
        self._forwarded = [leaf for leaf, why in self.leftover.items() if why == FORWARDED]
        function, self._forwarded_from = self.recipe.whole_function(self._forwarded)
        placed = self._placed(self._forwarded)
        # `jax.jit` itself and not a compiled program of ours: it returns the very same buffers.
        options: dict[str, Any] = {"out_shardings": placed} if placed else {}
        self._forward = jax.jit(function, **options)

    def _placed(self, leaves: Sequence[int]) -> list[Any] | None:
        fill = self.placement.fill if self.placement.rows is None else None
        return _or_none([fill if self._asked[n] is None else self._asked[n] for n in leaves])

    def ready(self) -> Generator[tuple[int, Executable]]:
        """Every kind with its executable, compiled now where it is not yet."""
        yield from list(self.executables.items())
        sizes = {line.kind: self.nbytes_of(line) for line in self.lines}
        # Those with most to fill come first: they fill it while the others compile.
        missing = [i for i in range(len(self.kinds)) if i not in self.executables]
        missing.sort(key=lambda index: -sizes[index])
        start = time.perf_counter()
        with contextlib.closing(compiled([self.kinds[index] for index in missing])) as made:
            for position, executable in made:
                self.executables[missing[position]] = executable
                self.seconds["compile"] = time.perf_counter() - start
                yield missing[position], executable

    def fill(self, flat: Sequence[Any], max_live_bytes: int | None = None) -> list[Any]:
        """Fills every leaf.

        Args:
            flat: the arguments of the call.
            max_live_bytes: bytes that may be alive beyond the finished leaves; None means as many
                as the largest leaf has, and at least 1 MiB.

        Returns:
            The leaves, in order.
        """
        values = self.recipe.values(flat)
        values.update((input_name(position), array) for position, array in enumerate(flat))
        leaves: list[Any] = [None] * len(self.recipe.program.outputs)

        def put(positions: Sequence[int], arrays: Sequence[Any]) -> None:
            for leaf, array in zip(positions, arrays, strict=True):
                leaves[leaf] = array

        lines = {line.kind: line for line in self.lines}
        allowed = self.allowance(max_live_bytes)
        # Closed at once when anything raises: a generator that waits keeps threads.
        with contextlib.closing(self.ready()) as ready:
            for positions, arrays in carry_out(
                ready, lambda index: self._calls(lines[index], values), allowed
            ):
                put(positions, arrays)
        for line in self.lines:
            if line.kind is None:
                put(*self._copies(line, values))
        arrays = self._forward(*[flat[i] for i in self._forwarded_from]) if self._forwarded else []
        put(self._forwarded, arrays)
        return leaves

    def _calls(self, line: Line, values: dict[Any, Any]) -> Iterator[Call]:
        rows = self.placement.rows
        for leaves, sources in zip(line.members, line.sources, strict=True):
            arguments = [values[source] for source in sources]
            if rows is not None:
                # What is committed to its place stays there, and the rest comes along.
                arguments = [
                    put(value, rows) if commitment(value) is None else value for value in arguments
                ]
            yield Call(leaves, arguments)

    def _copies(self, line: Line, values: dict[Any, Any]) -> tuple[list[int], list[jax.Array]]:
        leaves = [leaf for (leaf,) in line.members]
        if line.constant is not None:
            shape = self.recipe.program.out_avals[leaves[0]].shape
            made = [np.full(shape, line.constant) for _ in leaves]
        else:
            # Copies, because a row of a larger array would keep all of it alive.
            made = [np.array(values[source]) for (source,) in line.sources]
        return leaves, put(made, line.placed)

    def nbytes_of(self, line: Line) -> int:
        """Bytes of the leaves of a line."""
        avals = self.recipe.program.out_avals
        return sum(nbytes_of(avals[leaf]) for leaves in line.members for leaf in leaves)

    @property
    def nbytes(self) -> int:
        """Bytes of all leaves."""
        return sum(map(nbytes_of, self.recipe.program.out_avals))

    def allowance(self, max_live_bytes: int | None) -> int:
        """Bytes that may be alive beyond the finished leaves, given what the caller says."""
        return allowance(max_live_bytes, map(nbytes_of, self.recipe.program.out_avals))


def _or_none(placed: Sequence[Any]) -> list[Any] | None:
    return None if all(s is None for s in placed) else list(placed)
