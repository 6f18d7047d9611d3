"""A reading as a small graph: a box for each layer and for each place where outputs are joined.

Everything else (biases, scales, reshapes, normalisations, activations) is a label on an edge or is
left out, so that a person sees the architecture and not the equations.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Literal

from jaxinit._naming import common, skeleton
from jaxinit.reading import Activations, Families, Member, Origin, Parameter, Streams, Sum, Use

if TYPE_CHECKING:
    from jaxinit.reading import Reading

BoxKind = Literal["input", "layer", "residual", "junction", "state", "output", "note"]
# Names of the activations, normalisations, ... that a value has met since a box, in order.
EdgeLabels = tuple[str, ...]
# By the index of a box that a value comes from, the labels of the edge from there.
Ways = dict[int, EdgeLabels]
# A repeated layer is drawn once in models with more layers than this.
FOLDS_ABOVE = 30

_LAYER_ROLES = ("kernel", "embedding", "gate", "head", "unknown")
_JOIN = "\N{UNION}"
_SIGNS = {"product": "\N{MULTIPLICATION SIGN}", "contract": "·", "sum": "+", "join": _JOIN}


@dataclasses.dataclass(slots=True, eq=False)
class Box:
    """One box of the picture: a layer, an input, a place where outputs are joined, ...

    Attributes:
        index: place in the order of execution.
        kind: what it is; a ``"residual"`` is a sum on a residual stream, a ``"note"`` a label that
            `layout` puts on one of several lines into a junction.
        role: of a layer.
        paths: of a layer, those of its parameters; copies that are drawn once have all their paths.
        lines: text, one string for each line; the path of a layer is not among them.
        times: how often a layer is applied, copies that are drawn once counted together.
        activation: of a layer, the activation that its output meets.
        key: equal for copies of one layer.
    """

    index: int
    kind: BoxKind
    role: str = ""
    paths: list[str] = dataclasses.field(default_factory=list)
    lines: tuple[str, ...] = ()
    times: int | None = 1
    activation: str = ""
    key: object = None

    @property
    def name(self) -> str:
        """Path of a layer, with stars where the paths of its copies differ."""
        return common(self.paths) if len(set(map(skeleton, self.paths))) == 1 else self.paths[0]


@dataclasses.dataclass(slots=True, eq=False)
class Diagram:
    """The boxes of a picture, and the edges between them.

    Attributes:
        boxes: in order of execution.
        edges: labels of each edge, by the indices of its two boxes in order of execution.
        streams: by the index of a residual sum, the box that its stream comes from.
        layer_count: number of layers; copies that are drawn once count one by one.
    """

    boxes: list[Box]
    edges: dict[tuple[int, int], EdgeLabels]
    streams: dict[int, int]
    layer_count: int

    @property
    def layers(self) -> list[Box]:
        """The boxes of layers."""
        return [box for box in self.boxes if box.kind == "layer"]


def diagram_of(reading: Reading) -> Diagram:
    """The diagram of a reading, copies of a layer drawn once where there are many layers."""
    found = _Builder(reading).run()
    if found.layer_count > FOLDS_ABOVE:
        found = _folded(found)
    return _pruned(found)


class _Builder:
    def __init__(self, reading: Reading) -> None:
        self.made: dict[int, list[tuple[Parameter, Use]]] = {}
        self.unknown: list[Parameter] = []
        layers: dict[int, str] = {}
        for parameter in reading:
            for use in parameter.uses:
                self.enter(parameter, use, layers)
            if parameter.role == "unknown" and not parameter.uses:
                self.unknown.append(parameter)
        self.found = Families(reading.graph, layers, reading.inputs.values())
        self.sums: dict[int, Sum] = Streams(self.found).sums
        self.activations = Activations(self.found)
        self.shapes = reading.graph.avals
        self.diagram = Diagram([], {}, {}, 0)
        # By the index of an origin, the boxes that its value comes from.
        self.ways: dict[int, Ways] = {}

    def enter(self, parameter: Parameter, use: Use, layers: dict[int, str]) -> None:
        """Notes the value that a layer makes."""
        if use.role not in _LAYER_ROLES:
            return
        number = use.output if use.slice_output is None else use.slice_output
        if number is None:
            self.unknown.append(parameter)
            return
        self.made.setdefault(number, []).append((parameter, use))
        layers[number] = parameter.path
        if use.output is not None:
            layers[use.output] = parameter.path

    def run(self) -> Diagram:
        for origin in self.found.origins:
            self.ways[origin.index] = self.visit(origin)
        met = {box.index for box in self.diagram.boxes}
        for parameter in self.unknown:
            self.add(_layer([(parameter, None)]), [])
        boxed = {path for box in self.diagram.boxes for path in box.paths}
        for pairs in self.made.values():
            # A layer that no data reach.
            if not any(parameter.path in boxed for parameter, _ in pairs):
                self.add(_layer(pairs), [])
        self.diagram.layer_count = len(self.diagram.layers)
        self.end(met)
        return self.diagram

    def add(self, box: Box, ways: Iterable[Ways]) -> Ways:
        box.index = len(self.diagram.boxes)
        self.diagram.boxes.append(box)
        for each in ways:
            for source, labels in each.items():
                self.diagram.edges.setdefault((source, box.index), labels)
        return {box.index: ()}

    def visit(self, origin: Origin) -> Ways:
        """The boxes that the value of an origin comes from; its own box where it has one."""
        if origin.value in self.made:
            box = _layer(self.made[origin.value])
            # Layers under a scan have one parameter, a slice of it for every round.
            box.times = origin.times
            return self.add(box, [self.way(member, pooled=True) for member in origin.parents])
        ways = [self.way(member) for member in origin.parents]
        if origin.kind == "input":
            shape = ", ".join(map(str, self.shapes[origin.value].shape))
            return self.add(Box(0, "input", lines=("input", f"({shape})")), [])
        if origin.index in self.sums:
            return self.residual(self.sums[origin.index])
        if origin.kind == "carry" and origin.is_sequence:
            return self.add(Box(0, "state", lines=("state",), key="state"), ways)
        return self.joined(origin, ways)

    def residual(self, each: Sum) -> Ways:
        stream, branch = self.way(each.stream), self.way(each.branch)
        box = Box(0, "residual", lines=("+",), key=("residual", self.keys(branch)))
        found = self.add(box, [stream, branch])
        if len(stream) == 1:
            self.diagram.streams[box.index] = next(iter(stream))
        return found

    def joined(self, origin: Origin, ways: Sequence[Ways]) -> Ways:
        """A junction where several boxes meet; for one box its way and the label of the origin."""
        every: Ways = {}
        for each in ways:
            for source, labels in each.items():
                every[source] = max(labels, every.get(source, ()), key=len)
        given = [s for s in every if self.diagram.boxes[s].kind != "input"]
        if origin.kind in ("join", "norm", "softmax") and given:
            # Positions, masks and the like select values; the values come from the other boxes.
            every = {source: every[source] for source in given}
        if len(every) > 1 and origin.kind not in ("norm", "softmax"):
            sign = _SIGNS.get(origin.kind, _JOIN)
            return self.add(Box(0, "junction", lines=(sign,), key=(sign, self.keys(every))), ways)
        label = {"norm": f"{origin.detail} norm", "softmax": "softmax"}.get(origin.kind)
        if origin.kind == "product" and len(origin.parents) > 1 and given:
            label = "gate"
        return {s: labels if label is None else (*labels, label) for s, labels in every.items()}

    def way(self, member: Member, pooled: bool = False) -> Ways:
        """The boxes that a value comes from, with what it has met since.

        Statistics of a value, such as its mean, meet nothing.
        """
        ways = self.ways[member.origin.index]
        if member.linear or (member.level and not pooled) or member.origin.kind == "input":
            return ways
        activation = self.activations.shared([member])
        name = "" if activation is None else activation.label
        found: Ways = {}
        for source, labels in ways.items():
            # The record of a layer tells its activation from a scale that pooling puts behind it.
            label = self.diagram.boxes[source].activation or name
            keeps = label in ("", "identity") or labels[-1:] == (label,)
            found[source] = labels if keeps else (*labels, label)
        return found

    def keys(self, ways: Iterable[int]) -> frozenset[object]:
        return frozenset(self.diagram.boxes[source].key for source in ways)

    def end(self, met: set[int]) -> None:
        """Adds one output, after the boxes that lead to no other box."""
        leads = {source for source, _ in self.diagram.edges}
        last: Ways = {}
        for origin in self.found.origins:
            for member in origin.outputs:
                for source, labels in self.way(member).items():
                    box = self.diagram.boxes[source]
                    if source in met and source not in leads and box.kind != "input":
                        last.setdefault(source, labels)
        if last:
            self.add(Box(0, "output", lines=("output",)), [last])


def _layer(pairs: Sequence[tuple[Parameter, Use | None]]) -> Box:
    """The box of parameters that one layer applies together."""
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
    name = after.activation.label if after is not None and after.activation is not None else ""
    meets = after and (name, after.normalisation, after.softmax, after.gates, after.residual)
    key = (tuple(map(skeleton, paths)), parameter.shape, tuple(lines), times, meets)
    return Box(0, "layer", role, paths, tuple(lines), times, name, key)


def _number(fan: float) -> str:
    return f"{fan:.6g}" if fan < 1e6 else f"{fan:.3g}"


def _folded(diagram: Diagram) -> Diagram:
    """Copies of one layer as one box; edges from a copy back to an earlier box are left out."""
    first: dict[object, Box] = {}
    stands: dict[int, int] = {}
    for box in diagram.boxes:
        kept = box if box.key is None else first.setdefault(box.key, box)
        stands[box.index] = kept.index
        if kept is not box:
            kept.paths = [*kept.paths, *box.paths]
            if kept.times is not None and box.times is not None:
                kept.times += box.times
    edges: dict[tuple[int, int], EdgeLabels] = {}
    for (source, target), labels in diagram.edges.items():
        ends = stands[source], stands[target]
        if ends[0] < ends[1]:
            edges.setdefault(ends, labels)
    kept_boxes = [box for box in diagram.boxes if stands[box.index] == box.index]
    _send_back(diagram, edges, stands)
    streams = {
        ring: stands[source]
        for ring, source in diagram.streams.items()
        if stands[ring] == ring and stands[source] < ring
    }
    return Diagram(kept_boxes, edges, streams, diagram.layer_count)


def _send_back(diagram: Diagram, edges: Iterable[tuple[int, int]], stands: dict[int, int]) -> None:
    """Adds a line of text to layers whose edges all lead back: it names where they lead."""
    leads = {source for source, _ in edges}
    for source, target in diagram.edges:
        box, back = diagram.boxes[stands[source]], diagram.boxes[stands[target]]
        if box.kind == "layer" and box.index not in leads and back.index < box.index:
            leads.add(box.index)
            where = "the sum" if back.kind != "layer" else ("/" + back.name).split("/")[-2:][0]
            box.lines = (*box.lines, f"on to {where or back.name}")


def _pruned(diagram: Diagram) -> Diagram:
    """The diagram without inputs and junctions that lead to no layer and no output."""
    kept: set[int] = set()
    leads: dict[int, list[int]] = {}
    for source, target in diagram.edges:
        leads.setdefault(source, []).append(target)
    for box in reversed(diagram.boxes):
        behind = any(target in kept for target in leads.get(box.index, ()))
        if box.kind in ("layer", "output") or behind:
            kept.add(box.index)
    return Diagram(
        [box for box in diagram.boxes if box.index in kept],
        {ends: labels for ends, labels in diagram.edges.items() if kept.issuperset(ends)},
        {ring: at for ring, at in diagram.streams.items() if kept.issuperset((ring, at))},
        diagram.layer_count,
    )
