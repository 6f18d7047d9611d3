"""What is known about an init function after one trace: its families, and where they start from."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxinit.engine import _host as host
from jaxinit.engine._evaluate import run_steps
from jaxinit.engine._kinds import Family, families
from jaxinit.engine._program import Atom, Program, Step, flatten
from jaxinit.engine._schedule import Schedule
from jaxinit.engine._slices import cut

# A lone slice that repeats more than this many steps of other slices costs more to compile apart
# than together: keys derived in a chain that the host cannot follow.
_MAX_REPEATED = 24
FORWARDED = "returned as it came"


class Recipe:
    """How to fill the leaves of one traced init function.

    Attributes:
        jaxpr: what it was made from; kept, because recipes are found by its identity.
        program: the flat program.
        families: leaves that slices make, by kind.
        leftover: why every other leaf stays with plain ``jax.jit``.
        on_host: numbers of the values that the host computes.
        has_effects: whether only a call of the whole function will do.
        live_inputs: positions of the arguments that the leaves depend on.
        seconds: time it took to make.
    """

    def __init__(self, jaxpr: Any) -> None:
        start = time.perf_counter()
        self.jaxpr = jaxpr
        self.program = program = flatten(jaxpr)
        slicing = cut(program)
        self.on_host = slicing.on_host
        self.leftover = dict(slicing.leftover)
        # Effects happen in the whole function or not at all.
        self.has_effects = bool(jaxpr.effects)
        if self.has_effects:
            slicing.slices.clear()
            self.leftover = dict.fromkeys(range(len(program.outputs)), "side effects")
        self.families: list[Family] = []
        for family in families(program, slicing.slices):
            piece = family.members[0]
            if len(family.members) == 1 and piece.repeated > _MAX_REPEATED:
                reason = f"shares {piece.repeated} steps with other leaves"
                self.leftover.update(dict.fromkeys(piece.leaves, reason))
            else:
                self.families.append(family)
        read = {a for step in program.steps for a in step.inputs if isinstance(a, int)}
        read.update(atom for atom in program.outputs if isinstance(atom, int))
        self.live_inputs = tuple(i for i, n in enumerate(program.inputs) if n in read)
        self._prepare_host()
        self.seconds = time.perf_counter() - start

    def _prepare_host(self) -> None:
        program = self.program
        atoms = {
            source_of(atom): atom
            for family in self.families
            for piece in family.members
            for atom in piece.arguments
        }
        wanted = [a for a in atoms.values() if isinstance(a, int) and a in self.on_host]
        steps, numbers = behind(program, wanted)
        self.schedule = Schedule(steps)
        positions = {number: index for index, number in enumerate(program.inputs)}
        self._fetched = [(positions[n], n) for n in numbers if n in positions]
        self._passed = [
            (positions[n], n)
            for n in atoms.values()
            if isinstance(n, int) and n in positions and n not in self.on_host
        ]
        self._key_constants = [n for n in numbers if n in program.constants]
        # This may happen inside a trace, of which closed-over arrays are no part.
        with jax.ensure_compile_time_eval():
            self._fixed: dict[Any, Any] = {
                n: host.fetch(program.constants[n], program.avals[n]) for n in self._key_constants
            }
        for name, atom in atoms.items():
            if not isinstance(atom, int):
                self._fixed[name] = np.asarray(atom.val, atom.aval.dtype)

    def traced_values(self, flat: Sequence[Any]) -> dict[Any, Any]:
        """The same inside a trace, where arrays are tracers and keys typed keys."""
        values = {n: jnp.asarray(value) for n, value in self._fixed.items()}
        values.update((n, self.program.constants[n]) for n in self._key_constants)
        values.update((number, flat[position]) for position, number in self._fetched)
        values.update((number, flat[position]) for position, number in self._passed)
        self.schedule.trace(values)
        return values

    def values(self, flat: Sequence[Any]) -> dict[Any, Any]:
        """Everything that slices start from, by source, for one call.

        Args:
            flat: the arguments of the call.
        """
        values = dict(self._fixed)
        for position, number in self._fetched:
            values[number] = host.fetch(flat[position], self.program.avals[number])
        for position, number in self._passed:
            values[number] = flat[position]
        self.schedule.run(values)
        return values

    def whole_function(self, leaves: Sequence[int]) -> tuple[Callable[..., list[Any]], list[int]]:
        """Some leaves as the init function itself makes them.

        Args:
            leaves: which ones.

        Returns:
            The function, and the positions of the arguments that it takes.
        """
        program = self.program
        outputs = [program.outputs[leaf] for leaf in leaves]
        steps, numbers = behind(program, outputs)
        positions = [i for i in self.live_inputs if program.inputs[i] in numbers]

        def run(*operands: Any) -> list[Any]:
            values: dict[int, Any] = dict(program.constants)
            values.update(zip((program.inputs[i] for i in positions), operands, strict=True))
            run_steps(steps, values)
            return [values[atom] if isinstance(atom, int) else atom.val for atom in outputs]

        return run, positions


def source_of(atom: Atom) -> Any:
    """Name of an argument among the values of a call; a returned literal goes by its identity."""
    return atom if isinstance(atom, int) else ("literal", id(atom))


def input_name(position: int) -> Any:
    """Name of an argument of the call itself, as it came."""
    return ("input", position)


def behind(program: Program, atoms: Iterable[Atom]) -> tuple[list[Step], set[int]]:
    """Steps that values are made of, in order, and the numbers of everything they touch."""
    numbers = {atom for atom in atoms if isinstance(atom, int)}
    steps = []
    for step in reversed(program.steps):
        if not numbers.isdisjoint(step.outputs):
            steps.append(step)
            numbers.update(atom for atom in step.inputs if isinstance(atom, int))
    return steps[::-1], numbers
