"""What one trace teaches about an init function: its groups of leaves, and where they start from.

`TracedInit` is independent of devices; :mod:`jaxinit.engine._assembly` places it. Under an outer
``jax.jit``, ``jax.vmap`` or ``jax.eval_shape`` nothing can be compiled apart. There, `inline` draws
the leaves of a group in one loop over their keys, whose body is the program of one leaf, so that
the outer program stays small.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxinit.engine import _host as host
from jaxinit.engine._fast_bits import function_of, in_loops
from jaxinit.engine._placement import constraints_in
from jaxinit.engine._slices import (
    Same,
    Slice,
    behind,
    cut,
    graph_of_init,
    may_use_fast_bits,
    name_of,
)
from jaxinit.jaxpr import is_key, nbytes_of

# A lone slice that repeats more than this many nodes of other slices costs more to compile apart
# than together: keys derived in a chain that the host cannot follow.
_MAX_REPEATED = 24
# Fewer leaves than this are written out: slicing the loop's result costs as much as a loop saves.
_MIN_LOOPED = 4


class TracedInit:
    """How to fill the leaves of one traced init function.

    Attributes:
        jaxpr: what it was made from; kept, because a `TracedInit` is found by its identity.
        graph: the same as a graph, without dead code.
        slicing: the graph in slices.
        groups: slices that one program can compute, by what they compute.
        forwarded: leaves that are an argument or a closed-over array themselves.
        leftover: why every other leaf stays with plain ``jax.jit``.
        has_effects: whether only a call of the whole function will do.
        live_inputs: positions of the arguments that the leaves depend on.
        schedule: what the host computes for a call.
    """

    def __init__(self, jaxpr: Any) -> None:
        self.jaxpr = jaxpr
        self.graph = graph = graph_of_init(jaxpr)
        self.slicing = cut(graph)
        self.groups: dict[Same, list[Slice]] = {}
        # Effects happen in the whole function or not at all.
        self.has_effects = bool(jaxpr.effects)
        if self.has_effects:
            self.forwarded: tuple[int, ...] = ()
            self.leftover = dict.fromkeys(range(len(graph.outputs)), "side effects")
        else:
            self.forwarded = self.slicing.forwarded
            self.leftover = dict(self.slicing.leftover)
            self._take_groups()
        _, read = behind(graph.nodes, graph.outputs)
        self.live_inputs = tuple(i for i, n in enumerate(graph.inputs) if n in read)
        self._prepare_host()

    def _take_groups(self) -> None:
        for content, members in self.slicing.groups().items():
            first = members[0]
            if len(members) == 1 and first.repeated > _MAX_REPEATED:
                reason = f"shares {first.repeated} equations with other leaves"
                self.leftover.update(dict.fromkeys(first.leaves, reason))
            else:
                self.groups[content] = members

    def _prepare_host(self) -> None:
        graph, on_host = self.graph, self.slicing.on_host
        atoms = {
            name_of(atom): atom
            for members in self.groups.values()
            for piece in members
            for atom in piece.arguments
        }
        wanted = [n for n in atoms.values() if isinstance(n, int) and n in on_host]
        nodes, numbers = behind(graph.nodes, wanted)
        self.schedule = host.Schedule(nodes)
        positions = {number: index for index, number in enumerate(graph.inputs)}
        self._fetched = [(positions[n], n) for n in numbers if n in positions]
        self._passed = [
            (positions[n], n)
            for n in atoms.values()
            if isinstance(n, int) and n in positions and n not in on_host
        ]
        self._constants = {n: graph.constants[n] for n in numbers if n in graph.constants}
        # This may happen inside a trace, of which closed-over arrays are no part.
        with jax.ensure_compile_time_eval():
            self._fixed: dict[Any, Any] = {
                n: host.fetch(array, graph.avals[n]) for n, array in self._constants.items()
            }
        for name, atom in atoms.items():
            if not isinstance(atom, int):
                self._fixed[name] = np.asarray(atom.val, atom.aval.dtype)

    def values(self, flat: Sequence[Any]) -> dict[Any, Any]:
        """What slices start from in one call, by the names of their arguments.

        Args:
            flat: the arguments of the call.
        """
        values = dict(self._fixed)
        for position, number in self._fetched:
            values[number] = host.fetch(flat[position], self.graph.avals[number])
        values.update((number, flat[position]) for position, number in self._passed)
        self.schedule.run(values, host.OnHost())
        return values

    def traced_values(self, flat: Sequence[Any]) -> dict[Any, Any]:
        """The same inside a trace, where arrays are tracers and keys typed keys."""
        values = {name: jnp.asarray(value) for name, value in self._fixed.items()}
        values.update(self._constants)
        values.update((n, flat[position]) for position, n in (*self._fetched, *self._passed))
        self.schedule.run(values, host.InTrace())
        return values

    def whole_function(self, leaves: Sequence[int]) -> tuple[Callable[..., list[Any]], list[int]]:
        """Some leaves as the init function itself makes them.

        Args:
            leaves: which ones.

        Returns:
            The function, and the positions of the arguments that it takes.
        """
        graph = self.graph
        outputs = tuple(graph.outputs[leaf] for leaf in leaves)
        nodes, numbers = behind(graph.nodes, outputs)
        positions = [i for i in self.live_inputs if graph.inputs[i] in numbers]
        inputs = tuple(graph.inputs[i] for i in positions)
        part = dataclasses.replace(graph, inputs=inputs, nodes=nodes, outputs=outputs)
        return function_of(part), positions

    def can_inline(self) -> bool:
        """Whether loops give the bits of the whole function, whatever batches over them.

        Not for keys other than threefry: under ``vmap`` they draw a batch from its first key.
        """
        return not any(
            is_key(aval) and host.implementation_of(aval) != "threefry2x32"
            for aval in self.graph.avals
        )

    def inline(self, flat: Sequence[Any]) -> list[Any]:
        """Traces every leaf inside the trace of another function.

        Args:
            flat: the arguments, arrays or tracers.

        Returns:
            The leaves, in order.
        """
        values = self.traced_values(flat)
        leaves: list[Any] = [None] * len(self.graph.outputs)
        alone = [*self.forwarded, *self.leftover]
        for members in self.groups.values():
            if _may_loop(members):
                for positions, arrays in self._loop(members, values):
                    for leaf, array in zip(positions, arrays, strict=True):
                        leaves[leaf] = array
            else:
                alone.extend(leaf for piece in members for leaf in piece.leaves)
        function, positions = self.whole_function(alone)
        for leaf, array in zip(alone, function(*[flat[i] for i in positions]), strict=True):
            leaves[leaf] = array
        return leaves

    def _loop(
        self, members: Sequence[Slice], values: dict[Any, Any]
    ) -> Iterator[tuple[tuple[int, ...], list[Any]]]:
        function = self.slicing.function(members[0])
        outputs = members[0].outputs
        need = sum(nbytes_of(self.graph.aval(atom)) for atom in outputs)
        for chunk in in_loops(members, need):
            rows = [self._row(piece, values) for piece in chunk]
            columns = [jnp.stack(column) for column in zip(*rows, strict=True)]
            stacks = jax.lax.map(lambda row: function(*row), columns)
            for index, piece in enumerate(chunk):
                yield piece.leaves, [stack[index] for stack in stacks]

    def _row(self, piece: Slice, values: dict[Any, Any]) -> list[Any]:
        row = []
        for atom in piece.arguments:
            value = values[name_of(atom)]
            row.append(jax.random.key_data(value) if self.slicing.is_words(atom) else value)
        return row


def _may_loop(members: Sequence[Slice]) -> bool:
    equations = [node.equation for node in members[0].nodes]
    return (
        len(members) >= _MIN_LOOPED
        # In the body of a loop operations are fused anew, as they are with fast bits.
        and may_use_fast_bits(equations)
        and not constraints_in(equations)
    )
