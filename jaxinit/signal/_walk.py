"""Propagates fields through a graph, loops round by round."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxinit.jaxpr._graph import Graph, Node
from jaxinit.signal._elementwise import Operand, hull
from jaxinit.signal._fields import Field, Known, World
from jaxinit.signal._moments import apply_rule
from jaxinit.signal._movement import mixture
from jaxinit.signal._slices import taken

CONTRACTIONS = ("dot_general", "conv_general_dilated")

# A value of a program that runs: its number, and the rounds of the loops around it.
Place = tuple[int, tuple[int, ...]]


@dataclasses.dataclass
class Map:
    """A contraction with a parameter, as it was met.

    Attributes:
        label: path of the parameter, or of both where two are multiplied.
        place: the output, its bias added.
        field: what is predicted of it.
    """

    label: str
    place: Place
    field: Field


class Walk:
    """One pass through a graph.

    Attributes:
        world: all fields.
        maps: every map, in order of execution.
    """

    def __init__(self, world: World) -> None:
        self.world = world
        self.maps: list[Map] = []
        self._by_field: dict[int, Map] = {}
        self._round: tuple[int, ...] = ()

    def run(self, graph: Graph, operands: Sequence[Operand]) -> list[Operand]:
        """Outputs of a graph for given inputs."""
        values: dict[int, Operand] = dict(zip(graph.inputs, operands, strict=True))
        for number, array in graph.constants.items():
            values[number] = _constant(array)

        def read(atom: Any) -> Operand:
            return values[atom] if isinstance(atom, int) else _constant(atom.val)

        for node in graph.nodes:
            inputs = [read(atom) for atom in node.inputs]
            avals = [graph.avals[number] for number in node.outputs]
            results = self._step(node, inputs, avals)
            values.update(zip(node.outputs, results, strict=True))
        return [read(atom) for atom in graph.outputs]

    def _step(self, node: Node, inputs: list[Operand], avals: Sequence[Any]) -> list[Operand]:
        if node.primitive == "scan":
            return self._scan(node, inputs)
        if node.primitive == "cond":
            return self._cond(node, inputs, avals)
        if node.bodies:
            return self._while(inputs, avals)
        results = apply_rule(self.world, node, inputs, avals)
        self._note(node, inputs, results)
        return results

    def _note(self, node: Node, inputs: list[Operand], results: list[Operand]) -> None:
        """Keeps a map, or the sum of one and its bias."""
        (result, *_) = results
        fields = [x for x in inputs if isinstance(x, Field)]
        place = (node.outputs[0], self._round)
        if not isinstance(result, Field):
            return
        if node.primitive in CONTRACTIONS:
            labels = self.world.maps.get(result.number)
            if labels:
                self.maps.append(Map(" ".join(labels), place, result))
                self._by_field[result.number] = self.maps[-1]
        elif node.primitive == "add" and len(fields) == 2:
            for output, bias in (fields, fields[::-1]):
                found = self._by_field.pop(output.number, None) if bias.label else None
                if found is not None:
                    found.field, found.place = result, place

    def _scan(self, node: Node, inputs: list[Operand]) -> list[Operand]:
        (body,) = node.bodies
        constants, carries = node.params["constants"], node.params["carries"]
        fixed, carried = inputs[:constants], inputs[constants : constants + carries]
        length = node.params["length"]
        order = range(length)[::-1] if node.params["reverse"] else range(length)
        stacks: list[list[Operand]] = []
        outer = self._round
        for number in order:
            self._round = (*outer, number)
            entries = [self._take(x, number) for x in inputs[constants + carries :]]
            results = self.run(body, [*fixed, *carried, *entries])
            carried = results[:carries]
            stacks.append(results[carries:])
        self._round = outer
        # A reverse loop fills its stack from the end.
        stacks = stacks[::-1] if node.params["reverse"] else stacks
        return [*carried, *(self._stack(list(parts)) for parts in zip(*stacks, strict=True))]

    def _take(self, value: Operand, number: int) -> Operand:
        if isinstance(value, Known):
            array = None if value.array is None else np.asarray(value.array)[number]
            return Known(array, value.shape[1:])
        return taken(self.world, value, number)

    def _stack(self, parts: list[Operand]) -> Operand:
        shape = (len(parts), *parts[0].shape)
        if any(isinstance(x, Known) and x.array is None for x in parts):
            return Known(None, shape)
        fields = [x for x in parts if isinstance(x, Field)]
        if not fields:
            return Known(
                np.stack([np.asarray(x.array) for x in parts if isinstance(x, Known)]), shape
            )
        layers: list[Operand] = []
        for x in parts:
            if isinstance(x, Known):
                layers.append(Known(np.asarray(x.array)[None], (1, *x.shape)))
            else:
                layers.append(self.world.view(x, (1, *x.shape), [False, *x.features]))
        return mixture(self.world, layers, shape, [False, *fields[0].features], 0)

    def _cond(self, node: Node, inputs: list[Operand], avals: Sequence[Any]) -> list[Operand]:
        branches = [self.run(body, inputs[1:]) for body in node.bodies]
        results = []
        for aval, cases in zip(avals, zip(*branches, strict=True), strict=True):
            known = [x for x in cases if isinstance(x, Known)]
            if len(known) == len(cases) or any(x.array is None for x in known):
                results.append(Known(None, aval.shape))
            else:
                results.append(hull(self.world, cases, aval.shape))
        return results

    def _while(self, inputs: list[Operand], avals: Sequence[Any]) -> list[Operand]:
        """A loop that data end: nothing is known of what it makes."""
        fields = [x for x in inputs if isinstance(x, Field)]
        why = "a while loop, whose rounds the data decide"
        return [
            self.world.lost(why, a.shape, fields)
            if jnp.issubdtype(a.dtype, np.floating)
            else Known(None, a.shape)
            for a in avals
        ]


def _constant(value: Any) -> Known:
    if jnp.issubdtype(getattr(value, "dtype", np.float32), np.generic):
        array = np.asarray(value)
        return Known(array, array.shape)
    return Known(None, tuple(value.shape))
