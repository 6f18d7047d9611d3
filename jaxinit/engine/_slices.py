"""Cuts a program into slices: for each leaf what it alone needs, from finished keys onwards.

Leaves that share a floating-point operation stay in one slice, because where such an operation is
compiled into two programs it may round in two ways, and because it may be expensive (one
factorization that fills two leaves). Sharing integers is free: they never round.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Iterable, Iterator

from jaxinit.engine import _host as host
from jaxinit.engine._program import Atom, Program, Step
from jaxinit.engine._safety import Judge, Nature
from jaxinit.jaxpr._equations import is_key, size_of


@dataclasses.dataclass(frozen=True, eq=False)
class Slice:
    """What one leaf, or several that belong together, are made of.

    Attributes:
        leaves: positions in the flat result.
        steps: what to run; the order depends on the slice alone, not on the program around it.
        outputs: what stands for the leaves after it.
        arguments: what it starts from: values of the host, inputs, literals that are returned.
        repeated: how many of its steps other slices run as well.
    """

    leaves: tuple[int, ...]
    steps: tuple[Step, ...]
    outputs: tuple[Atom, ...]
    arguments: tuple[Atom, ...]
    repeated: int


@dataclasses.dataclass(frozen=True, eq=False)
class Slicing:
    """A program in slices.

    Attributes:
        slices: what can be compiled apart.
        leftover: for every other leaf, why it stays with plain ``jax.jit``.
        on_host: numbers of the values that the host computes.
    """

    slices: list[Slice]
    leftover: dict[int, str]
    on_host: frozenset[int]


def cut(program: Program) -> Slicing:
    """Cuts a program into slices.

    Args:
        program: a traced init function.

    Returns:
        Its slices, and the leaves that none of them makes.
    """
    cutter = _Cutter(program)
    leftover = {
        leaf: "returned as it came"
        for leaf, atom in enumerate(program.outputs)
        if isinstance(atom, int) and (atom in cutter.inputs or atom in program.constants)
    }
    rest = [leaf for leaf in range(len(program.outputs)) if leaf not in leftover]
    reach = cutter.reach(rest)
    if reach is None:
        leftover.update(dict.fromkeys(rest, "shares most of its steps with other leaves"))
        return Slicing([], leftover, frozenset())
    uses = collections.Counter(index for steps in reach.values() for index in steps)
    slices = []
    for leaves in _groups(reach, cutter.ties):
        steps = list(dict.fromkeys(index for leaf in leaves for index in reach[leaf]))
        culprits = {cutter.verdicts[i].culprit for i in steps if cutter.is_bound(i)}
        if culprits:
            leftover.update(dict.fromkeys(leaves, ", ".join(sorted(culprits))))
        else:
            inside = collections.Counter(index for leaf in leaves for index in reach[leaf])
            repeated = sum(uses[index] > inside[index] for index in steps)
            slices.append(cutter.slice(leaves, steps, repeated))
    return Slicing(slices, leftover, frozenset(cutter.on_host))


class _Cutter:
    def __init__(self, program: Program) -> None:
        self.program = program
        self.inputs = frozenset(program.inputs)
        judge = Judge()
        self.verdicts = [judge.equation(step.equation) for step in program.steps]
        self.on_host: set[int] = set()
        self.varies: set[int] = set(program.inputs)
        self._find_host_values()
        # Where slices begin: what the host computes anew for every call. A constant integer is not
        # among it, since XLA may fold what it feeds; a constant key is, since bits are not folded.
        self.begins = self.on_host & self.varies

    def _find_host_values(self) -> None:
        program = self.program
        keys = [number for number in program.constants if is_key(program.avals[number])]
        self.varies.update(keys)
        starts = (*program.inputs, *program.constants)
        self.on_host.update(n for n in starts if host.fits(program.avals[n]))
        for step in program.steps:
            numbers = [atom for atom in step.inputs if isinstance(atom, int)]
            makes_keys = any(is_key(program.avals[number]) for number in step.outputs)
            if makes_keys or not self.varies.isdisjoint(numbers):
                self.varies.update(step.outputs)
            if self.on_host.issuperset(numbers) and host.can_compute(step.equation):
                self.on_host.update(step.outputs)

    def reach(self, leaves: Iterable[int]) -> dict[int, list[int]] | None:
        """Steps behind each leaf; None when they are the same ones over and over."""
        budget = 8 * len(self.program.steps) + 10_000
        found = {}
        for leaf in leaves:
            atom = self.program.outputs[leaf]
            known = isinstance(atom, int) and atom in self.on_host
            found[leaf] = [] if known else list(self._behind(atom))
            budget -= len(found[leaf])
            if budget < 0:
                return None
        return found

    def _behind(self, atom: Atom) -> Iterator[int]:
        """Indices of the steps that make a value, each after those that it reads from."""
        producers, steps = self.program.producers, self.program.steps
        seen: set[int] = set()
        stack: list[tuple[Atom, bool]] = [(atom, False)]
        while stack:
            atom, ready = stack.pop()
            if not isinstance(atom, int) or atom in self.begins or atom not in producers:
                continue
            index = producers[atom]
            if ready:
                yield index
            elif index not in seen:
                seen.add(index)
                stack.append((atom, True))
                stack.extend((source, False) for source in reversed(steps[index].inputs))

    def is_bound(self, index: int) -> bool:
        return self.verdicts[index].nature == Nature.BOUND

    def ties(self, index: int) -> bool:
        """Whether leaves that share a step must stay together."""
        if self.verdicts[index].nature == Nature.EXACT:
            return False
        # A scalar that depends on nothing, like a standard deviation used by every layer, is
        # folded into a constant wherever it appears.
        outputs = self.program.steps[index].outputs
        scalar = all(size_of(self.program.avals[number]) == 1 for number in outputs)
        return not (scalar and self.varies.isdisjoint(outputs))

    def slice(self, leaves: tuple[int, ...], indices: list[int], repeated: int) -> Slice:
        steps = tuple(self.program.steps[index] for index in indices)
        outputs = tuple(self.program.outputs[leaf] for leaf in leaves)
        made = {number for step in steps for number in step.outputs}
        # Literals stay inside, where XLA folds them as it does in the whole program; only those
        # returned as they are become arguments, since layers differ in nothing else.
        read = [atom for step in steps for atom in step.inputs if isinstance(atom, int)]
        starts = {
            _name(atom): atom
            for atom in (*read, *outputs)
            if _name(atom) not in made and not self._is_fixed(atom)
        }
        return Slice(leaves, steps, outputs, tuple(starts.values()), repeated)

    def _is_fixed(self, atom: Atom) -> bool:
        """Whether a value is a closed-over array: it stays inside, as XLA may compute with it."""
        is_constant = isinstance(atom, int) and atom in self.program.constants
        return is_constant and atom not in self.begins


def _name(atom: Atom) -> int | tuple[int]:
    # Literals are not hashable whatever they hold, and two equal ones are two arguments.
    return atom if isinstance(atom, int) else (id(atom),)


def _groups(reach: dict[int, list[int]], ties: Callable[[int], bool]) -> list[tuple[int, ...]]:
    """Leaves in groups that share a step which ties them, in order of their first leaf."""
    parents = {leaf: leaf for leaf in reach}

    def root(leaf: int) -> int:
        while parents[leaf] != leaf:
            parents[leaf] = leaf = parents[parents[leaf]]
        return leaf

    owners: dict[int, int] = {}
    for leaf, steps in reach.items():
        for index in steps:
            if index in owners or ties(index):
                one, other = root(owners.setdefault(index, leaf)), root(leaf)
                parents[max(one, other)] = min(one, other)
    groups: dict[int, list[int]] = {}
    for leaf in reach:
        groups.setdefault(root(leaf), []).append(leaf)
    return [tuple(leaves) for leaves in groups.values()]
