"""The forward pass in pieces: origins, and the family of values that is computed from each.

An origin is a value that is more than a function of the entries of one other value: the output of a
layer, a sum of two of them, a normalised value, what a loop carries. All values that are computed
from one origin entry by entry, moved, or summed over axes are members of its family. What an
activation is, whether something is normalised, and which way a residual stream runs are then short
questions about a small graph.

`divide` visits the nodes in order. A move keeps the family. A function of entries keeps it when all
data it reads are of one family, and makes an origin when they are of two. A parameter that is added
or multiplied makes an origin of kind ``affine``. A sum over axes is a member; where it meets the
values it was taken from, a normalisation or a softmax is recognised.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np

from jaxinit.jaxpr import (
    PRODUCTS,
    SUMS,
    Atom,
    Class,
    Graph,
    Neighbours,
    Node,
    is_key,
    is_of,
    on_numpy,
    row_of,
    single_number,
    sources,
    straighten,
)

# What a value depends on: data that come in, parameters, random bits, the output of a layer.
DATA, PARAMETER, NOISE, LAYER = 1, 2, 4, 8
# What a value has been through since its origin.
(SQUARED, EXPONENTIAL, MEAN, SECOND, SUM_OF_EXP, LARGEST, ROOT, LOGARITHM) = (
    1 << bit for bit in range(8)
)
# What a value is no longer once another function is applied to it.
FRESH = SQUARED | EXPONENTIAL

# Functions of entries that no activation is made of, since they take or give numbers that are not
# real: complex ones, or the bits of whole ones. What they give is an origin.
_OF_OTHER_NUMBERS = frozenset(
    "clz complex conj imag mulhi population_count real shift_left shift_right_arithmetic "
    "shift_right_logical".split()
)

OriginKind = Literal[
    "input", "layer", "affine", "norm", "softmax", "sum", "product", "contract", "join", "carry",
    "exit", "take",
]  # fmt: skip


@dataclasses.dataclass(slots=True, eq=False)
class Member:
    """Where a value stands in the family of its origin.

    Attributes:
        origin: the origin it is computed from.
        value: number of the value that it is entry by entry, before moves that change no entry.
        linear: whether it is a multiple of the origin, entry by entry.
        slice: equal for values whose entries stand beside each other.
        level: how many sums over axes it has been through.
        mixed: whether sums of higher level have met it.
        tags: what it has been through.
        scope: over which axes its sums go, see `scope_of`.
        features: axes that hold features.
        broken: whether it is no function of the origin's entries, so that its value says nothing.
    """

    origin: Origin
    value: int
    linear: bool = True
    slice: int = 0
    level: int = 0
    mixed: bool = False
    tags: int = 0
    scope: str | None = None
    features: tuple[int, ...] = ()
    broken: bool = False

    @property
    def is_elementwise(self) -> bool:
        """Whether it is an elementwise function of the origin, before moves and sums over axes."""
        return not (self.broken or self.mixed)


@dataclasses.dataclass(slots=True, eq=False)
class Origin:
    """A value that is more than a function of the entries of one other.

    Attributes:
        index: place in the order of execution.
        kind: what made it.
        value: its number.
        parents: what it was made from.
        detail: kind of a normalisation; primitive of a sum or join.
        layer: identity of the layer that it is the output of.
        times: how often it is made in one pass; None where data decide.
        length: rounds of the loop, of a carry; 1 elsewhere.
        children: what it goes into, with the member of its family that does; what a loop carries
            back counts too.
        outputs: members of its family that the program returns.
        counts: whether it is the output of a contraction: of a layer that is no embedding.
        is_sequence: of a carry, whether the loop runs over data.
        depth: layers on the longest way from the inputs to it.
        longest: parent on that way.
        entry: of an exit from a scan over layers, the carry it left by.
        is_index: whether it holds whole numbers, as ``argmax`` makes them: no signal goes through.
        has_layer: whether a layer lies before it, or before it in an earlier round.
        width: number of its features.
        beside: of a layer in a low-rank bypass, ``"in"`` or ``"out"``: its first or second factor.
        main: of a sum with a low-rank bypass, the side that is not the bypass.
    """

    index: int
    kind: OriginKind
    value: int
    parents: list[Member] = dataclasses.field(default_factory=list)
    detail: str | None = None
    layer: Hashable = None
    times: int | None = 1
    length: int = 1
    children: list[tuple[Origin, Member]] = dataclasses.field(default_factory=list)
    outputs: list[Member] = dataclasses.field(default_factory=list)
    counts: bool = False
    is_sequence: bool = False
    depth: int = 0
    longest: Origin | None = None
    entry: Origin | None = None
    is_index: bool = False
    has_layer: bool = False
    width: int = 1
    beside: Literal["in", "out"] | None = None
    main: Member | None = None


@dataclasses.dataclass(slots=True, eq=False)
class Families:
    """A program cut into families.

    Attributes:
        graph: the program.
        neighbours: those of the program, straightened.
        bits: by number, what each value depends on.
        constants: by number, the number that all entries of a value are, where that is known.
        origins: in order of execution.
        members: by number, of every value that data reach.
        roots: by number of values made of parameters alone, which of them have been under a root
            or summed.
    """

    graph: Graph
    neighbours: Neighbours
    bits: list[int]
    constants: dict[int, Any]
    origins: list[Origin] = dataclasses.field(default_factory=list)
    members: dict[int, Member] = dataclasses.field(default_factory=dict)
    roots: dict[int, int] = dataclasses.field(default_factory=dict)

    def reads(self, node: Node) -> list[tuple[int, Member]]:
        """Position and member of every operand that data reach."""
        atoms = enumerate(node.inputs)
        return [(i, self.members[a]) for i, a in atoms if isinstance(a, int) and a in self.members]

    def number(self, atom: Atom) -> Any:
        """The number that all entries of an operand are, None where that is not known."""
        return self.constants.get(atom) if isinstance(atom, int) else single_number(atom.val)

    def bits_of(self, atoms: Iterable[Atom]) -> int:
        """What any of these depends on."""
        found = 0
        for atom in atoms:
            found |= self.bits[atom] if isinstance(atom, int) else 0
        return found


def divide(graph: Graph, layers: Mapping[int, Hashable], parameters: Iterable[int]) -> Families:
    """Cuts a program into families.

    Args:
        graph: the program.
        layers: identity of each layer, by the number of the value that it makes.
        parameters: numbers of the graph's inputs that are parameters.
    """
    neighbours = Neighbours(straighten(graph))
    bits = _dependencies(graph, neighbours.nodes, layers, set(parameters))
    found = Families(graph, neighbours, bits, dict(_constants_of(graph)))
    _Divider(found, layers).run()
    return found


def _dependencies(
    graph: Graph, nodes: Sequence[Node], layers: Mapping[int, Hashable], parameters: set[int]
) -> list[int]:
    """What every value depends on: `DATA`, `PARAMETER`, `NOISE` and `LAYER`, by number.

    What loops carry back is followed until nothing changes: a few passes, however long the program.
    """
    bits = [0] * len(graph.avals)
    for number in graph.inputs:
        key = is_key(graph.avals[number])
        bits[number] = PARAMETER if number in parameters else NOISE if key else DATA
    has_carries = any(node.primitive == "enter" and len(node.inputs) > 1 for node in nodes)
    for _ in range(5 if has_carries else 1):
        before = list(bits)
        for node in nodes:
            found = 0
            for atom in node.inputs:
                if isinstance(atom, int):
                    found |= bits[atom]
            for number in node.outputs:
                if node.primitive == "random_bits" or is_key(graph.avals[number]):
                    found = NOISE
                bits[number] |= found | DATA | LAYER if number in layers else found
        if bits == before:
            break
    return bits


def _constants_of(graph: Graph) -> Iterable[tuple[int, Any]]:
    """Closed-over arrays all of whose entries are one number, those of bodies too."""
    for number, value in graph.constants.items():
        known = single_number(value)
        if known is not None:
            yield number, known
    for node in graph.nodes:
        for body in node.bodies:
            yield from _constants_of(body)


class _Divider:
    """The pass over the nodes.

    Attributes:
        slices: number of slices so far.
        carries: carries by the loop and the value that it carries back.
        back: every carry with the number of that value.
        sequences: loops that run over data, by the identity of their parameters.
        bypasses: of sums that add a low-rank product, by index.
    """

    def __init__(self, found: Families, layers: Mapping[int, Hashable]) -> None:
        self.found, self.layers, self.avals = found, layers, found.graph.avals
        self.members, self.bits = found.members, found.bits
        self.slices = 0
        self.bypasses: dict[int, Bypass] = {}
        self.carries: dict[tuple[int, int], Origin] = {}
        self.back: list[tuple[Origin, int]] = []
        self.sequences = {
            id(node.params)
            for node in found.neighbours.nodes
            if node.primitive == "take" and self.bits[node.outputs[0]] & DATA
        }

    def run(self) -> None:
        """Fills the families."""
        for number in self.found.graph.inputs:
            if self.bits[number] & DATA:
                self.origin("input", number, [], None)
        for node in self.found.neighbours.nodes:
            if node.outputs:
                self.visit(node)
        for carry, number in self.back:
            member = self.members.get(number)
            if member is not None:
                member.origin.children.append((carry, member))
        for atom in self.found.graph.outputs:
            member = self.members.get(atom) if isinstance(atom, int) else None
            if member is not None:
                member.origin.outputs.append(member)

    def visit(self, node: Node) -> None:
        """Makes members or origins of the results of a node."""
        name = node.primitive
        reads = self.found.reads(node)
        members = [member for _, member in reads]
        if any(number in self.layers for number in node.outputs):
            self.layer(node, members)
        elif not self.bits[node.outputs[0]] & DATA:
            self.without_data(node)
        elif node.equation is None:
            self.loop(node, members)
        elif reads and name in ("concatenate", "stack"):
            self.side_by_side(node, members)
        elif reads and _is_move(name):
            self.move(node, reads)
        elif reads and _is_elementwise(name):
            self.elementwise(node, reads)
        elif len(reads) == 1 and _is_sum_over_axes(node):
            self.sum_over_axes(node, *reads[0])
        elif reads and is_of(name, Class.CONTRACTS):
            self.contraction(node, members)
        else:
            self.each(node, "join", members)

    # Origins and members.

    def origin(
        self,
        kind: OriginKind,
        number: int,
        parents: Sequence[Member],
        node: Node | None,
        detail: str | None = None,
        layer: Hashable = None,
    ) -> Origin:
        """Makes a value an origin, and the first member of its family."""
        times = 1 if node is None else node.times
        made = Origin(len(self.found.origins), kind, number, list(parents), detail, layer, times)
        made.has_layer = bool(self.bits[number] & LAYER)
        self.found.origins.append(made)
        for member in parents:
            member.origin.children.append((made, member))
            if member.origin.depth > made.depth or made.longest is None:
                made.depth, made.longest = member.origin.depth, member.origin
        features = default_features(self.avals[number].shape)
        if node is not None and _is_elementwise(node.primitive):
            same = [member.features for member in parents if not member.level]
            features = same[0] if same else features
        elif node is not None and node.primitive in ("take", "stack") and parents:
            features = features_after(node, 0, parents[0].features, self.avals)
        self.members[number] = Member(made, number)
        self.set_features(made, features)
        return made

    def set_features(self, made: Origin, features: tuple[int, ...]) -> None:
        """Notes which axes of an origin hold features, and how many features there are."""
        self.members[made.value].features = features
        made.width = math.prod(self.avals[made.value].shape[axis] for axis in features)

    def member(self, number: int, of: Member, **changes: Any) -> None:
        """Makes a value a member of the family of another."""
        self.members[number] = dataclasses.replace(of, **changes)

    def new_slice(self) -> int:
        """A number for values whose entries stand beside no others."""
        self.slices += 1
        return self.slices

    def each(self, node: Node, kind: OriginKind, parents: Sequence[Member]) -> None:
        """Makes every result an origin."""
        for number in node.outputs:
            made = self.origin(kind, number, parents, node, node.primitive)
            aval = self.avals[number]
            if not is_key(aval) and np.issubdtype(aval.dtype, np.integer):
                # What is picked by an index is no deeper for the layer that picked it.
                made.is_index, made.depth, made.longest = True, 0, None

    # Nodes.

    def layer(self, node: Node, parents: Sequence[Member]) -> None:
        """A layer; or a slice of the output of one, which has its own way and adds no depth."""
        made = None
        for number in node.outputs:
            if number in self.layers:
                made = self.origin("layer", number, parents, node, layer=self.layers[number])
            else:
                self.member(number, parents[0], slice=self.new_slice())
        if made is not None and is_of(node.primitive, Class.CONTRACTS):
            made.counts = True
            made.depth += 1
            self.set_features(made, self.features_of_contraction(node))

    def without_data(self, node: Node) -> None:
        """Computes constants that are one number; of parameters, notes roots and sums."""
        number = node.outputs[0]
        tags = ROOT if _is_root(node, self.found) else 0
        for atom in node.inputs:
            tags |= self.found.roots.get(atom, 0) if isinstance(atom, int) else 0
        if node.primitive == "reduce_sum" or is_of(node.primitive, Class.CONTRACTS):
            tags = MEAN
        if tags:
            self.found.roots[number] = tags
        values = [self.found.number(atom) for atom in node.inputs]
        if self.bits[number] or len(node.outputs) > 1 or not values or None in values:
            return
        if is_of(node.primitive, Class.ELEMENTWISE):
            value = single_number(on_numpy(node.primitive, node.params, values))
            if value is not None:
                self.found.constants[number] = value
        elif _keeps_numbers(node) and len(set(values)) == 1:
            self.found.constants[number] = values[0]

    def loop(self, node: Node, parents: Sequence[Member]) -> None:
        """A value that goes into or out of the body of a loop or branch."""
        name, number, key = node.primitive, node.outputs[0], id(node.params)
        inside, *backs = node.inputs
        carry = self.carries.get((key, inside)) if isinstance(inside, int) else None
        if name == "enter" and backs:
            made = self.origin("carry", number, parents, node)
            made.length = node.params.get("length", 1)
            made.is_sequence = key in self.sequences
            if isinstance(backs[0], int):
                self.carries[key, backs[0]] = made
                self.back.append((made, backs[0]))
        elif name == "take":
            made = self.origin("take", number, parents, node)
            made.times = None if made.times is None else made.times * node.params["length"]
        elif name == "stack" or carry is not None:
            made = self.origin("exit", number, parents, node)
            if carry is not None and not carry.is_sequence:
                made.entry = carry
                made.depth += max(0, (carry.length - 1) * (made.depth - carry.depth))
        elif len({(member.origin.index, member.value) for member in parents}) == 1:
            self.member(number, parents[0])
        else:
            self.origin("join", number, parents, node, name)

    def move(self, node: Node, reads: Sequence[tuple[int, Member]]) -> None:
        """A move; a barrier moves each operand to the result of the same number."""
        name, outputs = node.primitive, node.outputs
        if len(outputs) == len(node.inputs) > 1:
            for at, member in reads:
                self.member(outputs[at], member)
            return
        position, member = reads[0]
        if position and is_of(name, Class.INDEXES):
            self.each(node, "join", [member])
            return
        sizes = [math.prod(self.found.graph.aval(a).shape) for a in (node.inputs[0], outputs[0])]
        spreads = name in ("broadcast_in_dim", "tile") and sizes[1] > sizes[0]
        for number in outputs:
            is_new = row_of(name).cuts or (spreads and not member.level)
            features = features_after(node, 0, member.features, self.avals)
            at = self.new_slice() if is_new else member.slice
            self.member(number, member, slice=at, features=features)

    def side_by_side(self, node: Node, members: Sequence[Member]) -> None:
        """Slices of one value, or one value and constants, are moved; others are joined."""
        first = members[0]
        values = {(m.origin.index, m.value, m.level, m.mixed) for m in members}
        others = [atom for atom in node.inputs if atom not in self.members]
        if len(values) > 1 or self.found.bits_of(others):
            self.each(node, "join", members)
            return
        features = features_after(node, 0, first.features, self.avals)
        self.member(node.outputs[0], first, slice=self.new_slice(), features=features)

    def sum_over_axes(self, node: Node, position: int, member: Member) -> None:
        """A sum, a largest entry and the like over some axes."""
        shape = self.found.graph.aval(node.inputs[position]).shape
        if node.primitive != "reduce_sum":
            tag = LARGEST
        elif member.tags & SQUARED:
            tag = SECOND
        else:
            tag = SUM_OF_EXP if member.tags & EXPONENTIAL else MEAN
        scope = scope_of(node.params["axes"], shape, member.features)
        self.member(
            node.outputs[0],
            member,
            level=member.level + 1,
            mixed=False,
            tags=member.tags & ~FRESH | tag,
            scope=member.scope if member.mixed else scope,
            features=features_after(node, position, member.features, self.avals),
            broken=member.broken or member.mixed,
        )

    def contraction(self, node: Node, members: Sequence[Member]) -> None:
        """A contraction that is no layer: of data with constants, or with data."""
        is_fixed = any(isinstance(atom, int) and not self.bits[atom] for atom in node.inputs)
        if len(members) == 1 and is_fixed:
            self.member(node.outputs[0], members[0], slice=self.new_slice())
        else:
            self.each(node, "contract" if len(members) == 2 else "join", members)

    def elementwise(self, node: Node, reads: Sequence[tuple[int, Member]]) -> None:
        """A function of entries: a member or an origin, as `_meet` decides."""
        outcome = _meet(node, reads, self.found)
        number, parents = node.outputs[0], outcome.parents
        if outcome.kind is None:
            changes = dict(outcome.changes)
            if outcome.is_new_slice:
                changes["slice"] = self.new_slice()
            self.member(number, parents[0], **changes)
            return
        made = self.origin(outcome.kind, number, parents, node, outcome.detail)
        bypass = _bypass_of(made, self.bypasses)
        if bypass is not None:
            # A low-rank product that is added to a layer runs beside it, and adds no depth.
            self.bypasses[made.index] = bypass
            made.main, made.longest = bypass.main, bypass.main.origin
            made.depth = made.longest.depth
            bypass.inner.beside, bypass.outer.beside = "in", "out"

    def features_of_contraction(self, node: Node) -> tuple[int, ...]:
        """Axes of a contraction's result that the kernel brings."""
        default = default_features(self.avals[node.outputs[0]].shape)
        if node.primitive == "conv_general_dilated":
            return (node.params["dimension_numbers"].out_spec[1],)
        held = [i for i, atom in enumerate(node.inputs) if isinstance(atom, int)]
        kernel = next((i for i in held if not self.bits[node.inputs[i]] & DATA), None)
        if node.primitive != "dot_general" or kernel is None:
            return default
        contracted, batched = node.params["dimension_numbers"]
        free = [
            len(self.found.graph.aval(node.inputs[i]).shape) - len(contracted[i]) - len(batched[i])
            for i in (0, 1)
        ]
        start = len(batched[0]) + (free[0] if kernel else 0)
        return tuple(range(start, start + free[kernel])) or default


# Questions about single nodes.


def _is_move(name: str) -> bool:
    """Whether entries are moved; pooling moves the largest entry, or a mean, of its window."""
    is_window = is_of(name, Class.REDUCES) and row_of(name).cuts
    return is_of(name, Class.REARRANGES) or is_window or name in ("gather", "dynamic_slice")


def _is_elementwise(name: str) -> bool:
    """Whether a function of entries may be a part of an activation."""
    return is_of(name, Class.ELEMENTWISE) and name not in _OF_OTHER_NUMBERS


def _is_sum_over_axes(node: Node) -> bool:
    """Whether axes are reduced; the places that ``argmax`` finds are no values of the family."""
    is_place = node.primitive in ("argmax", "argmin")
    return is_of(node.primitive, Class.REDUCES) and "axes" in node.params and not is_place


def _keeps_numbers(node: Node) -> bool:
    """Whether entries of a constant are moved and stay the numbers that they are."""
    name = node.primitive
    is_move = is_of(name, Class.REARRANGES) and not row_of(name).cuts
    return name == "enter" or (is_move and name != "bitcast_convert_type")


def _is_root(node: Node, found: Families) -> bool:
    if node.primitive == "pow":
        return found.number(node.inputs[1]) in (0.5, -0.5)
    return node.primitive in ("sqrt", "rsqrt")


def _is_square(node: Node, members: Sequence[Member]) -> bool:
    name = node.primitive
    if name == "mul" and len(members) == 2:
        return members[0].value == members[1].value
    return name == "square" or (name == "integer_pow" and node.params["y"] == 2)


# Features. Layer, group and batch normalisation differ in nothing but the axes that their
# statistics sum over, so telling them apart takes knowing which axes hold features.


def default_features(shape: Sequence[int]) -> tuple[int, ...]:
    """The last axis: where features are when nothing better is known."""
    return (len(shape) - 1,) if len(shape) else ()


def features_after(
    node: Node, position: int, features: tuple[int, ...], avals: Sequence[Any]
) -> tuple[int, ...]:
    """Axes of the result of a move or a sum that hold features.

    Args:
        node: the equation.
        position: which of its inputs the features are of.
        features: axes of that input that hold features.
        avals: shapes by number.

    Returns:
        Axes of the first result, in order; empty when no axis holds features any more.
    """
    atom = node.inputs[position]
    before, after = avals[atom].shape, avals[node.outputs[0]].shape
    if is_of(node.primitive, Class.INDEXES) and len(before) != len(after):
        return default_features(after)
    if node.primitive in ("reshape", "expand_dims"):
        # Axes of size one lie in runs with others, and hold nothing.
        features = tuple(axis for axis in features if before[axis] != 1)
        found = sources(node, before, after)
        return tuple(
            i for i, axes in enumerate(found) if after[i] != 1 and set(axes) & set(features)
        )
    held = sources(node, before, after)
    return tuple(i for i, axes in enumerate(held) if set(axes) & set(features))


def scope_of(axes: Sequence[int], shape: Sequence[int], features: tuple[int, ...]) -> str | None:
    """What statistics over some axes normalise: ``layer``, ``batch``, ``group`` or ``instance``.

    Axes of size one count on neither side.
    """
    summed = {axis for axis in axes if shape[axis] != 1}
    held = {axis for axis in features if shape[axis] != 1}
    others = {axis for axis in range(len(shape)) if shape[axis] != 1} - held
    if held and held <= summed:
        return "layer"
    if held & summed:
        return "group"
    if not summed:
        return None
    return "batch" if 0 in summed or others <= summed else "instance"


# Functions of entries.


@dataclasses.dataclass(frozen=True, slots=True)
class _Outcome:
    """What comes of a function of entries.

    Attributes:
        kind: of the origin that it makes; None where the result is a member of a family.
        parents: what the origin is made from; of a member, the one it continues.
        detail: kind of a normalisation, or the primitive.
        changes: fields of the member that differ from the one it continues.
        is_new_slice: whether the entries of the member stand beside no others.
    """

    kind: OriginKind | None
    parents: tuple[Member, ...]
    detail: str | None = None
    changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    is_new_slice: bool = False


_Reads: TypeAlias = Sequence[tuple[int, Member]]


def _meet(node: Node, reads: _Reads, found: Families) -> _Outcome:
    """Decides what a function of entries makes of the families that it reads."""
    name = node.primitive
    if name == "select_n":
        reads = _cases(reads)
    members = tuple(member for _, member in reads)
    others = [a for a in node.inputs if not isinstance(a, int) or a not in found.members]
    reached = found.bits_of(others)
    if len({member.origin.index for member in members}) > 1:
        return _between_families(name, members)
    if reached & PARAMETER:
        return _with_parameter(name, members, others, found)
    if reached & NOISE:
        return _with_noise(name, members[0], found)
    if name == "select_n" and reads[0][0] > 0 and len(members) == 1:
        return _Outcome(None, members)
    level = min(member.level for member in members)
    values = [member for member in members if member.level == level]
    if not level and len({member.slice for member in values}) > 1:
        return _between_slices(name, members)
    if len(values) < len(members):
        return _with_own_sum(name, members, values[0], found)
    return _within(node, members, others, found)


def _cases(reads: _Reads) -> _Reads:
    """Operands of a choice without its predicate, unless that is of the same family."""
    same = {member.origin.index for i, member in reads if i > 0}
    return [(i, m) for i, m in reads if i > 0 or m.origin.index in same or not same]


def _between_families(name: str, members: tuple[Member, ...]) -> _Outcome:
    oldest = min((member.origin for member in members), key=lambda origin: origin.index)
    is_scaled = all(
        origin is oldest
        or (
            origin.kind == "affine"
            and origin.detail in PRODUCTS
            and origin.parents[0].origin is oldest
        )
        for origin in (member.origin for member in members)
    )
    if is_scaled and name not in SUMS:
        # A slope or a temperature that is learned: an activation that no constants describe.
        base = next(member for member in members if member.origin is oldest)
        return _Outcome(None, (base,), changes={"linear": False, "broken": True})
    if name in SUMS:
        return _Outcome("sum", members, name)
    return _Outcome("product" if name in PRODUCTS else "join", members, name)


def _with_parameter(
    name: str, members: tuple[Member, ...], others: Sequence[Atom], found: Families
) -> _Outcome:
    rooted = 0
    for atom in others:
        rooted |= found.roots.get(atom, 0) if isinstance(atom, int) else 0
    if name in PRODUCTS:
        if members[0].level and members[0].tags & ROOT:
            return _Outcome(None, members[:1])
        if rooted & ROOT and not rooted & MEAN:
            # Running statistics: a parameter under a root that was never summed.
            return _Outcome("norm", members[:1], "batch")
    if name in SUMS or name in PRODUCTS:
        return _Outcome("affine", members[:1], name)
    return _Outcome("join", members, name)


def _with_noise(name: str, member: Member, found: Families) -> _Outcome:
    """Dropout: the values go through, without the division by the share that is kept."""
    if name != "select_n" and name not in SUMS and name not in PRODUCTS:
        return _Outcome("join", (member,), name)
    maker = found.neighbours.makers.get(member.value)
    if name == "select_n" and maker is not None and maker.primitive in PRODUCTS:
        before = found.reads(maker)
        if len(before) == 1 and any(found.number(atom) is not None for atom in maker.inputs):
            divided = before[0][1]
            changes = {"value": divided.value, "linear": divided.linear}
            return _Outcome(None, (member,), changes=changes)
    return _Outcome(None, (member,))


def _between_slices(name: str, members: tuple[Member, ...]) -> _Outcome:
    """Slices of one value that meet: a rotation where they are added, a gate where multiplied."""
    if name in SUMS and all(member.linear for member in members):
        root = members[0].origin.value
        return _Outcome(None, members[:1], changes={"value": root}, is_new_slice=True)
    if name in PRODUCTS:
        return _Outcome("product", members, name)
    return _Outcome("sum" if name in SUMS else "join", members, name)


def _with_own_sum(
    name: str, members: tuple[Member, ...], values: Member, found: Families
) -> _Outcome:
    """Values that meet sums of themselves."""
    sums, scope = 0, None
    for member in members:
        if member.level > values.level:
            sums |= member.tags
            scope = scope or member.scope
    if name in PRODUCTS and sums & ROOT and not sums & SUM_OF_EXP:
        is_centred = (values.tags | sums) & MEAN
        detail = scope or "layer"
        if detail == "layer" and not is_centred:
            detail = "rms"
        return _Outcome("norm", (dataclasses.replace(values, mixed=False),), detail)
    is_exponential = name in PRODUCTS and values.tags & EXPONENTIAL
    if sums & SUM_OF_EXP and (is_exponential or (name == "sub" and sums & LOGARITHM)):
        maker = found.neighbours.makers.get(values.value)
        before = dataclasses.replace(values, mixed=False)
        if not values.mixed and maker is not None and maker.primitive in ("exp", "exp2"):
            before = found.members.get(maker.inputs[0], values)
        return _Outcome("softmax", (before,), name)
    changes = {"mixed": True, "tags": values.tags & ~FRESH | sums, "scope": scope}
    return _Outcome(None, (values,), changes=changes)


def _within(
    node: Node, members: tuple[Member, ...], others: Sequence[Atom], found: Families
) -> _Outcome:
    """Values of one family, or one value with constants."""
    first = members[0]
    known = [found.number(atom) for atom in others]
    is_shift = node.primitive in SUMS
    is_scale = node.primitive == "mul" or (node.primitive == "div" and node.inputs[0] not in others)
    is_affine = is_shift or is_scale
    keeps = is_affine or node.primitive == "neg"
    tags = _tags_after(node, members, keeps, found)
    if first.level or any(member.mixed for member in members):
        of = next((member for member in members if member.mixed), first)
        broken = of.broken or not ((is_scale and len(members) == 1) or of.mixed)
        return _Outcome(None, (of,), changes={"tags": tags, "broken": broken})
    if None in known and is_affine:
        # Different numbers for different entries, as in a rotation: no part of an activation.
        return _Outcome(None, (first,))
    linear = keeps and (len(members) == 1 or is_shift) and all(m.linear for m in members)
    broken = any(member.broken for member in members) or None in known
    changes = {"value": node.outputs[0], "linear": linear, "tags": tags, "broken": broken}
    return _Outcome(None, (first,), changes=changes)


def _tags_after(node: Node, members: tuple[Member, ...], keeps: bool, found: Families) -> int:
    """What the result of a function of one family has been through."""
    name, first = node.primitive, members[0]
    if (keeps and len(members) == 1) or (name in ("max", "min") and first.level):
        return first.tags
    tags = 0
    for member in members:
        tags |= member.tags & ~FRESH
    if _is_square(node, members):
        return tags | SQUARED
    if name in ("exp", "exp2"):
        return tags | EXPONENTIAL
    if _is_root(node, found):
        return tags | ROOT
    return tags | LOGARITHM if name in ("log", "log1p") else tags


# Low-rank bypasses: ``x W + (x A) B`` is one linear layer with the kernel ``W + A B``, as in LoRA.


class Bypass(NamedTuple):
    """A sum of a layer and a low-rank product of the same input.

    Attributes:
        main: the side of the sum that adds depth.
        kernel: output of the layer on that side.
        inner: output of the first factor.
        outer: output of the second factor.
    """

    main: Member
    kernel: Origin
    inner: Origin
    outer: Origin


def _bypass_of(added: Origin, known: Mapping[int, Bypass]) -> Bypass | None:
    """The low-rank product that a sum adds to a layer of the same input, if it adds one.

    Args:
        added: the sum.
        known: the bypasses of earlier sums, by the index of the sum: several may add up.
    """
    if added.kind != "sum" or len(added.parents) != 2:
        return None
    first, second = added.parents
    for main, low in ((first, second), (second, first)):
        kernel, outer = _layer_of(main, known), _layer_of(low, {})
        inner = None if outer is None else _layer_of(outer.parents[0], {})
        if kernel is None or outer is None or inner is None or kernel is outer:
            continue
        source, wanted = inner.parents[0], kernel.parents[0]
        if (source.origin.index, source.value) != (wanted.origin.index, wanted.value):
            continue
        # Where the inner width is no bottleneck, the product is two layers.
        if inner.width < min(source.origin.width, outer.width):
            return Bypass(main, kernel, inner, outer)
    return None


def _layer_of(member: Member, known: Mapping[int, Bypass]) -> Origin | None:
    """The layer that a value is the output of, scaled and shifted at most."""
    while member.linear and member.is_elementwise and not member.level:
        at = member.origin
        if at.counts:
            return at if len(at.parents) == 1 else None
        if at.index in known:
            return known[at.index].kernel
        if at.kind not in ("affine", "exit", "layer") or len(at.parents) != 1:
            return None
        member = at.parents[0]
    return None
