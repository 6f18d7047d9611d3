"""Cutting a program into families: one pass over its nodes, in order.

The rules are few. A move keeps the family. An elementwise equation keeps it when all data it reads
are of one family, and starts a new origin when they are of two. A parameter that is added or
multiplied starts an origin of kind ``affine``. Sums over axes are members too, and where one meets
the values it was taken from, a normalisation or a softmax is recognised.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxinit.jaxpr import on_numpy as evaluate
from jaxinit.jaxpr import single_number as uniform
from jaxinit.jaxpr._equations import is_key
from jaxinit.jaxpr._graph import Graph, Node, straighten
from jaxinit.reading import _families as f
from jaxinit.reading._axes import (
    default_features,
    features_after,
    features_of_contraction,
    scope_of,
)
from jaxinit.reading._bypass import Bypass, bypass_of
from jaxinit.reading._families import Families, Kind, Origin, State
from jaxinit.reading._meeting import meet
from jaxinit.reading._primitives import CONTRACTIONS, CUTS, ELEMENTWISE, MOVES

_LOOPS = ("enter", "take", "stack", "merge")


def divide(graph: Graph, maps: Mapping[int, Hashable], parameters: Iterable[int]) -> Families:
    """Cuts a program into families.

    Args:
        graph: the program.
        maps: identity of each map, by the number of the value that it makes.
        parameters: numbers of the graph's inputs that are parameters.
    """
    nodes = list(straighten(graph))
    return _Forward(graph, nodes, maps, parameters).run()


class _Forward:
    def __init__(
        self,
        graph: Graph,
        nodes: Sequence[Node],
        maps: Mapping[int, Hashable],
        parameters: Iterable[int],
    ) -> None:
        self.graph, self.nodes, self.maps, self.avals = graph, nodes, maps, graph.avals
        self.found = Families(bits=f.dependencies(graph, nodes, maps, parameters))
        self.states, self.bits = self.found.states, self.found.bits
        self.constants = self.found.constants
        self.roots: dict[int, int] = {}
        self.pieces = 0
        self.bypasses: dict[int, Bypass] = {}
        # Carries by the loop and the value it carries back; loops that run over data.
        self.carries: dict[tuple[int, int], Origin] = {}
        self.back: list[tuple[Origin, int]] = []
        self.sequences = {
            id(node.params)
            for node in nodes
            if node.primitive == "take" and self.bits[node.outputs[0]] & f.DATA
        }

    def run(self) -> Families:
        _collect_constants(self.graph, self.constants)
        for number in self.graph.inputs:
            if self.bits[number] & f.DATA:
                self.origin("input", number, [], None)
        for node in self.nodes:
            for number in node.outputs:
                self.found.producers[number] = node
            self.visit(node)
        for carry, number in self.back:
            state = self.states.get(number)
            if state is not None:
                state.origin.children.append((carry, state))
        for atom in self.graph.outputs:
            state = self.states.get(atom) if isinstance(atom, int) else None
            if state is not None:
                state.origin.outputs.append(state)
        return self.found

    # Origins and members.

    def origin(
        self, kind: Kind, number: int, parents: Sequence[State], node: Node | None, **more: Any
    ) -> Origin:
        made = Origin(len(self.found.origins), kind, number, list(parents), **more)
        made.times = 1 if node is None else node.times
        made.has_map = bool(self.bits[number] & f.MAP)
        self.found.origins.append(made)
        for state in parents:
            state.origin.children.append((made, state))
            if state.origin.depth > made.depth or made.longest is None:
                made.depth, made.longest = state.origin.depth, state.origin
        shape = self.avals[number].shape
        features = default_features(shape)
        if node is not None and node.primitive in ELEMENTWISE:
            same = [s.features for s in parents if not s.level]
            features = same[0] if same else features
        elif node is not None and node.primitive in ("take", "stack") and parents:
            features = features_after(node, 0, parents[0].features, self.avals)
        self.states[number] = State(made, number, features=features)
        self.measure(made, features)
        return made

    def measure(self, made: Origin, features: tuple[int, ...]) -> None:
        """Notes how many features an origin has."""
        size = 1
        for axis in features:
            size *= self.avals[made.value].shape[axis]
        del self.found.features[made.index :]
        self.found.features.append(size)

    def piece(self) -> int:
        self.pieces += 1
        return self.pieces

    def member(self, number: int, of: State, **changes: Any) -> None:
        fields = {name: getattr(of, name) for name in State.__slots__}
        self.states[number] = State(**{**fields, **changes})

    # Nodes.

    def visit(self, node: Node) -> None:
        name, first = node.primitive, node.outputs[0] if node.outputs else None
        if first is None:
            return
        reads = [
            (i, self.states[a])
            for i, a in enumerate(node.inputs)
            if isinstance(a, int) and a in self.states
        ]
        if any(number in self.maps for number in node.outputs):
            self.map(node, [state for _, state in reads])
        elif not self.bits[first] & f.DATA:
            self.without_data(node)
        elif name in _LOOPS:
            self.loop(node, [state for _, state in reads])
        elif not reads:
            self.each(node, "join", [])
        elif name in MOVES:
            self.move(node, reads)
        elif name in ELEMENTWISE:
            self.elementwise(node, reads)
        elif name.startswith("reduce_") and len(reads) == 1:
            self.reduce(node, *reads[0])
        elif name in CONTRACTIONS:
            self.contraction(node, [state for _, state in reads])
        else:
            self.each(node, "join", [state for _, state in reads])

    def each(self, node: Node, kind: Kind, reads: Sequence[State]) -> None:
        for number in node.outputs:
            made = self.origin(kind, number, reads, node, detail=node.primitive)
            if _is_whole(self.avals[number]):
                # What is picked by an index is no deeper for the map that picked it.
                made.is_index, made.depth, made.longest = True, 0, None

    def map(self, node: Node, reads: Sequence[State]) -> None:
        """A map; or a slice of one's output, which is followed by itself and counts no more."""
        made = None
        for number in node.outputs:
            if number in self.maps:
                made = self.origin("map", number, reads, node, map=self.maps[number])
            else:
                self.member(number, reads[0], piece=self.piece())
        number = node.outputs[0]
        if made is None or node.primitive not in CONTRACTIONS:
            return
        made.counts = True
        made.depth += 1
        held = [i for i, a in enumerate(node.inputs) if isinstance(a, int)]
        kernel = next((i for i in held if not self.bits[node.inputs[i]] & f.DATA), None)
        features = features_of_contraction(node, kernel, self.avals)
        self.states[number].features = features
        self.measure(made, features)

    def without_data(self, node: Node) -> None:
        """Constants are computed where they are one number; of parameters, roots are noted."""
        name, number = node.primitive, node.outputs[0]
        rooted = self.root_of(node)
        if rooted:
            self.roots[number] = rooted
        if self.bits[number] or len(node.outputs) > 1:
            return
        values = [self.number(atom) for atom in node.inputs]
        if not values or any(value is None for value in values):
            return
        if (name in MOVES and name not in CUTS) or (name == "enter" and len(values) == 1):
            self.constants[number] = values[0]
        elif name in ELEMENTWISE:
            value = uniform(evaluate(name, node.params, values))
            if value is not None:
                self.constants[number] = value

    def root_of(self, node: Node) -> int:
        """Whether a parameter has been under a root and never summed: running statistics."""
        tags = 0
        for atom in node.inputs:
            tags |= self.roots.get(atom, 0) if isinstance(atom, int) else 0
        if node.primitive.startswith("reduce_sum") or node.primitive in CONTRACTIONS:
            return f.MEAN
        return tags | (f.ROOT if _is_root(node, self.number) else 0)

    def number(self, atom: Any) -> Any:
        """The number that all entries of an operand are, None where that is not known."""
        return self.constants.get(atom) if isinstance(atom, int) else uniform(atom.val)

    def loop(self, node: Node, reads: Sequence[State]) -> None:
        name, number = node.primitive, node.outputs[0]
        key = id(node.params)
        inside, *backs = node.inputs
        if name == "enter" and backs:
            length = node.params.get("length", 1)
            carry = self.origin("carry", number, reads, node, length=length)
            carry.sequence = key in self.sequences
            back = backs[0]
            if isinstance(back, int):
                self.carries[key, back] = carry
                self.back.append((carry, back))
        elif name == "take":
            made = self.origin("take", number, reads, node)
            made.times = None if made.times is None else made.times * node.params["length"]
        elif name == "stack" or (key, inside) in self.carries:
            made = self.origin("exit", number, reads, node)
            carry = self.carries.get((key, inside))
            if carry is not None and not carry.sequence:
                made.entry = carry
                made.depth += max(0, (carry.length - 1) * (made.depth - carry.depth))
        elif len({(state.origin.index, state.value) for state in reads}) == 1:
            self.member(number, reads[0])
        else:
            self.origin("join", number, reads, node, detail=name)

    def move(self, node: Node, reads: Sequence[tuple[int, State]]) -> None:
        position, state = reads[0]
        name = node.primitive
        if position and name in ("gather", "dynamic_slice"):
            self.each(node, "join", [state])
            return
        if name == "optimization_barrier":
            for at, each in reads:
                self.member(node.outputs[at], each)
            return
        before, after = self.avals[node.inputs[0]].shape, self.avals[node.outputs[0]].shape
        spreads = name == "broadcast_in_dim" and _size(after) > _size(before)
        for number in node.outputs:
            fresh = name in CUTS or (spreads and not state.level)
            self.member(
                number,
                state,
                piece=self.piece() if fresh else state.piece,
                features=features_after(node, 0, state.features, self.avals),
            )

    def reduce(self, node: Node, position: int, state: State) -> None:
        if node.primitive == "reduce_precision":
            return self.move(node, [(position, state)])
        shape = self.avals[node.inputs[position]].shape
        axes = node.params.get("axes", ())
        if node.primitive != "reduce_sum":
            tag = f.LARGEST
        elif state.tags & f.SQUARED:
            tag = f.SECOND
        else:
            tag = f.SUM_OF_EXP if state.tags & f.EXPONENTIAL else f.MEAN
        self.member(
            node.outputs[0],
            state,
            level=state.level + 1,
            mixed=False,
            tags=state.tags & ~f.FRESH | tag,
            scope=state.scope if state.mixed else scope_of(axes, shape, state.features),
            features=features_after(node, position, state.features, self.avals),
            broken=state.broken or state.mixed,
        )
        return None

    def contraction(self, node: Node, reads: Sequence[State]) -> None:
        fixed = any(isinstance(a, int) and not self.bits[a] for a in node.inputs)
        if len(reads) == 1 and fixed:
            self.member(node.outputs[0], reads[0], piece=self.piece())
            return
        self.each(node, "contract" if len(reads) == 2 else "join", reads)

    def elementwise(self, node: Node, reads: Sequence[tuple[int, State]]) -> None:
        meeting = meet(node, reads, self.found, self.roots, self.number)
        number = node.outputs[0]
        if meeting.kind is not None:
            made = self.origin(meeting.kind, number, meeting.parents, node, detail=meeting.detail)
            self.beside(made)
            return
        changes = dict(meeting.changes)
        if changes.get("piece") == -1:
            changes["piece"] = self.piece()
        self.member(number, meeting.parents[0], **changes)

    def beside(self, made: Origin) -> None:
        """A low-rank product that is added to a map runs beside it, and is no layer in series."""
        found = bypass_of(made, self.bypasses, self.found)
        if found is not None:
            self.bypasses[made.index] = found
            made.main, made.longest = found.main, found.main.origin
            made.depth = made.longest.depth
            found.inner.beside, found.outer.beside = "in", "out"


def _is_whole(aval: Any) -> bool:
    return not is_key(aval) and np.issubdtype(aval.dtype, np.integer)


def _collect_constants(graph: Graph, constants: dict[int, Any]) -> None:
    for number, value in graph.constants.items():
        known = uniform(value)
        if known is not None:
            constants[number] = known
    for node in graph.nodes:
        for body in node.bodies:
            _collect_constants(body, constants)


def _is_root(node: Node, number: Any) -> bool:
    if node.primitive == "pow":
        return number(node.inputs[1]) in (0.5, -0.5)
    return node.primitive in ("sqrt", "rsqrt")


def _size(shape: Sequence[int]) -> int:
    size = 1
    for n in shape:
        size *= n
    return size
