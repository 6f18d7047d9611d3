"""A reading as a small graph: maps, what joins their outputs, and what lies on the way between.

Everything that is no map and joins nothing (biases, scales, reshapes, normalisations, activations)
is a label on an edge at most, so that a person sees the architecture and not the equations.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Literal

from jaxinit._naming import common, skeleton
from jaxinit.reading import Parameter, Use
from jaxinit.reading._activations import Activations
from jaxinit.reading._families import Families, Member, Origin
from jaxinit.reading._flow import Streams, Sum

if TYPE_CHECKING:
    from jaxinit.reading import Reading

Kind = Literal["input", "map", "residual", "junction", "state", "output", "note"]
# What a value has met on the way from a node, in order.
Labels = tuple[str, ...]
# A repeated layer is drawn once in models with more maps than this.
FOLDS_ABOVE = 30

_MAPS = ("kernel", "embedding", "gate", "head", "unknown")
_JOIN = "\N{UNION}"
_SIGNS = {"product": "\N{MULTIPLICATION SIGN}", "contract": "·", "sum": "+", "join": _JOIN}


@dataclasses.dataclass(slots=True, eq=False)
class Node:
    """One thing that is drawn.

    Attributes:
        index: place in the order of execution.
        kind: what it is; a ``"residual"`` is a sum on a residual stream, a ``"note"`` a label that
            `layout` puts on one of several lines into a junction.
        role: of a map.
        paths: of a map, those of the parameters that it applies; a fold of several has them all.
        lines: text, one string for each line, the path of a map not among it.
        times: how often a map is applied, folded copies counted.
        activation: of a map, the one that its output meets.
        key: equal for copies of one layer.
    """

    index: int
    kind: Kind
    role: str = ""
    paths: list[str] = dataclasses.field(default_factory=list)
    lines: tuple[str, ...] = ()
    times: int | None = 1
    activation: str = ""
    key: object = None

    @property
    def name(self) -> str:
        """Path of a map, with stars where folded copies differ."""
        return common(self.paths) if len(set(map(skeleton, self.paths))) == 1 else self.paths[0]


@dataclasses.dataclass(slots=True, eq=False)
class Diagram:
    """What is drawn.

    Attributes:
        nodes: in order of execution.
        edges: labels of each, by the indices of its ends; the first comes before the second.
        streams: by the index of a residual sum, where the stream comes from.
        maps: number of maps before copies were folded.
    """

    nodes: list[Node]
    edges: dict[tuple[int, int], Labels]
    streams: dict[int, int]
    maps: int

    @property
    def boxes(self) -> list[Node]:
        """The maps."""
        return [node for node in self.nodes if node.kind == "map"]


def diagram_of(reading: Reading) -> Diagram:
    """The diagram of a reading, copies of a layer folded into one where there are many maps."""
    found = _Builder(reading).run()
    if found.maps > FOLDS_ABOVE:
        found = _folded(found)
    return _pruned(found)


class _Builder:
    def __init__(self, reading: Reading) -> None:
        self.made: dict[int, list[tuple[Parameter, Use]]] = {}
        self.lost: list[Parameter] = []
        maps: dict[int, str] = {}
        for parameter in reading:
            for use in parameter.uses:
                self.enter(parameter, use, maps)
            if parameter.role == "unknown" and not parameter.uses:
                self.lost.append(parameter)
        self.found = Families(reading.graph, maps, reading.inputs.values())
        self.sums: dict[int, Sum] = Streams(self.found).sums
        self.activations = Activations(self.found)
        self.shapes = reading.graph.avals
        self.diagram = Diagram([], {}, {}, 0)
        # By the index of an origin, the nodes that it comes from.
        self.ways: dict[int, dict[int, Labels]] = {}

    def enter(self, parameter: Parameter, use: Use, maps: dict[int, str]) -> None:
        """Notes the value that a map makes."""
        if use.role not in _MAPS:
            return
        number = use.output if use.slice_output is None else use.slice_output
        if number is None:
            self.lost.append(parameter)
            return
        self.made.setdefault(number, []).append((parameter, use))
        maps[number] = parameter.path
        if use.output is not None:
            maps[use.output] = parameter.path

    def run(self) -> Diagram:
        for origin in self.found.origins:
            self.ways[origin.index] = self.visit(origin)
        met = {node.index for node in self.diagram.nodes}
        for parameter in self.lost:
            self.add(_box([(parameter, None)]), [])
        boxed = {path for node in self.diagram.nodes for path in node.paths}
        for pairs in self.made.values():
            # A map that no data reach.
            if not any(parameter.path in boxed for parameter, _ in pairs):
                self.add(_box(pairs), [])
        self.diagram.maps = len(self.diagram.boxes)
        self.end(met)
        return self.diagram

    def add(self, node: Node, ways: Iterable[dict[int, Labels]]) -> dict[int, Labels]:
        node.index = len(self.diagram.nodes)
        self.diagram.nodes.append(node)
        for each in ways:
            for source, labels in each.items():
                self.diagram.edges.setdefault((source, node.index), labels)
        return {node.index: ()}

    def visit(self, origin: Origin) -> dict[int, Labels]:
        """The nodes that an origin comes from, itself where it is drawn."""
        if origin.value in self.made:
            node = _box(self.made[origin.value])
            # Layers under a scan have one parameter, a slice of it for every round.
            node.times = origin.times
            return self.add(node, [self.way(member, pooled=True) for member in origin.parents])
        ways = [self.way(member) for member in origin.parents]
        if origin.kind == "input":
            shape = ", ".join(map(str, self.shapes[origin.value].shape))
            return self.add(Node(0, "input", lines=("input", f"({shape})")), [])
        if origin.index in self.sums:
            return self.residual(self.sums[origin.index])
        if origin.kind == "carry" and origin.is_sequence:
            return self.add(Node(0, "state", lines=("state",), key="state"), ways)
        return self.joined(origin, ways)

    def residual(self, each: Sum) -> dict[int, Labels]:
        stream, branch = self.way(each.stream), self.way(each.branch)
        node = Node(0, "residual", lines=("+",), key=("residual", self.keys(branch)))
        found = self.add(node, [stream, branch])
        if len(stream) == 1:
            self.diagram.streams[node.index] = next(iter(stream))
        return found

    def joined(self, origin: Origin, ways: Sequence[dict[int, Labels]]) -> dict[int, Labels]:
        """A junction where several nodes meet; else what the one becomes on its way."""
        every: dict[int, Labels] = {}
        for each in ways:
            for source, labels in each.items():
                every[source] = max(labels, every.get(source, ()), key=len)
        given = [s for s in every if self.diagram.nodes[s].kind != "input"]
        if origin.kind in ("join", "norm", "softmax") and given:
            # Positions, masks and the like choose among values and are none.
            every = {source: every[source] for source in given}
        if len(every) > 1 and origin.kind not in ("norm", "softmax"):
            sign = _SIGNS.get(origin.kind, _JOIN)
            return self.add(Node(0, "junction", lines=(sign,), key=(sign, self.keys(every))), ways)
        label = {"norm": f"{origin.detail} norm", "softmax": "softmax"}.get(origin.kind)
        if origin.kind == "product" and len(origin.parents) > 1 and given:
            label = "gate"
        return {s: labels if label is None else (*labels, label) for s, labels in every.items()}

    def way(self, member: Member, pooled: bool = False) -> dict[int, Labels]:
        """From which nodes a value comes, and what it has met since; of statistics, nothing."""
        ways = self.ways[member.origin.index]
        if member.linear or (member.level and not pooled) or member.origin.kind == "input":
            return ways
        activation = self.activations.shared([member])
        name = "" if activation is None else activation.name
        found: dict[int, Labels] = {}
        for source, labels in ways.items():
            # A map's own record knows an activation from a scale that pooling puts behind it.
            label = self.diagram.nodes[source].activation or name
            keeps = label in ("", "identity") or labels[-1:] == (label,)
            found[source] = labels if keeps else (*labels, label)
        return found

    def keys(self, ways: Iterable[int]) -> frozenset[object]:
        return frozenset(self.diagram.nodes[source].key for source in ways)

    def end(self, met: set[int]) -> None:
        """One output, behind the nodes that lead nowhere else."""
        leads = {source for source, _ in self.diagram.edges}
        last: dict[int, Labels] = {}
        for origin in self.found.origins:
            for member in origin.outputs:
                for source, labels in self.way(member).items():
                    node = self.diagram.nodes[source]
                    if source in met and source not in leads and node.kind != "input":
                        last.setdefault(source, labels)
        if last:
            self.add(Node(0, "output", lines=("output",)), [last])


def _box(pairs: Sequence[tuple[Parameter, Use | None]]) -> Node:
    """The box of the parameters that are applied in one map together."""
    parameter, use = pairs[0]
    role = parameter.role if use is None else use.role
    if role == "kernel" and parameter.role in ("head", "gate", "unknown"):
        role = parameter.role
    if use is None or use.fan_in is None or use.fan_out is None:
        size = " x ".join(map(str, parameter.shape))
    else:
        size = f"{_number(use.fan_in)} → {_number(use.fan_out)}"
    lines = [role, size]
    if use is not None and use.after is not None and use.after.recurrent:
        lines.append("recurrent")
    if use is not None and use.slice_output is not None:
        slices = [each.slice_output for each in parameter.uses if each.slice_output is not None]
        if len(slices) > 1:
            lines.append(f"part {slices.index(use.slice_output) + 1} of {len(slices)}")
    paths = [each.path for each, _ in pairs]
    times = 1 if use is None else use.times
    after = use.after if use is not None else None
    name = after.activation.name if after is not None and after.activation is not None else ""
    meets = after and (name, after.normalisation, after.softmax, after.gates, after.residual)
    key = (tuple(map(skeleton, paths)), parameter.shape, tuple(lines), times, meets)
    return Node(0, "map", role, paths, tuple(lines), times, name, key)


def _number(fan: float) -> str:
    return f"{fan:.6g}" if fan < 1e6 else f"{fan:.3g}"


def _folded(diagram: Diagram) -> Diagram:
    """Copies of one layer as one node; what leads from a copy back to itself is left out."""
    first: dict[object, Node] = {}
    stands: dict[int, int] = {}
    for node in diagram.nodes:
        kept = node if node.key is None else first.setdefault(node.key, node)
        stands[node.index] = kept.index
        if kept is not node:
            kept.paths = [*kept.paths, *node.paths]
            if kept.times is not None and node.times is not None:
                kept.times += node.times
    edges: dict[tuple[int, int], Labels] = {}
    for (source, target), labels in diagram.edges.items():
        ends = stands[source], stands[target]
        if ends[0] < ends[1]:
            edges.setdefault(ends, labels)
    kept_nodes = [node for node in diagram.nodes if stands[node.index] == node.index]
    _send_back(diagram, edges, stands)
    streams = {
        ring: stands[source]
        for ring, source in diagram.streams.items()
        if stands[ring] == ring and stands[source] < ring
    }
    return Diagram(kept_nodes, edges, streams, diagram.maps)


def _send_back(diagram: Diagram, edges: Iterable[tuple[int, int]], stands: dict[int, int]) -> None:
    """Says of maps that lead to folded layers alone, further back, which those are."""
    leads = {source for source, _ in edges}
    for source, target in diagram.edges:
        node, back = diagram.nodes[stands[source]], diagram.nodes[stands[target]]
        if node.kind == "map" and node.index not in leads and back.index < node.index:
            leads.add(node.index)
            where = "the sum" if back.kind != "map" else ("/" + back.name).split("/")[-2:][0]
            node.lines = (*node.lines, f"on to {where or back.name}")


def _pruned(diagram: Diagram) -> Diagram:
    """Without inputs and junctions that lead to no map and no output."""
    kept: set[int] = set()
    leads: dict[int, list[int]] = {}
    for source, target in diagram.edges:
        leads.setdefault(source, []).append(target)
    for node in reversed(diagram.nodes):
        behind = any(target in kept for target in leads.get(node.index, ()))
        if node.kind in ("map", "output") or behind:
            kept.add(node.index)
    return Diagram(
        [node for node in diagram.nodes if node.index in kept],
        {ends: labels for ends, labels in diagram.edges.items() if kept.issuperset(ends)},
        {ring: at for ring, at in diagram.streams.items() if kept.issuperset((ring, at))},
        diagram.maps,
    )
