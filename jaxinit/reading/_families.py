"""The forward pass in pieces: origins, and the family of values that is computed from each.

An origin is a value that is more than a function of the entries of one other value: the output of a
layer, a sum of two of them, a normalised value, what a loop carries. All values that are computed
from one origin entry by entry, moved, or summed over axes are members of its family. What an
activation is, whether something is normalised, and which way a residual stream runs are then short
questions about a small graph.

`Families` visits the nodes in order. A move keeps the family. A function of entries keeps it when
all data it reads are of one family, and makes an origin when they are of two. A parameter that is
added or multiplied makes an origin of kind ``affine``. A sum over axes is a member; where it meets
the values it was taken from, a normalisation or a softmax is recognised.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any, Literal, TypeAlias

import numpy as np

from jaxinit.jaxpr import (
    OVER_AXES,
    POOLING,
    PRODUCTS,
    SUMS,
    Atom,
    Class,
    Graph,
    Neighbours,
    Node,
    Rules,
    is_key,
    is_of,
    on_numpy,
    row_of,
    single_number,
    size_of,
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
        number: its own; behind functions of entries, masks and sums of itself, that of the value
            that went into them.
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
    number: int
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
        detail: kind of a normalisation; what a softmax sums over, as `scope_of` tells it; primitive
            of a sum or join.
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


class Families:
    """A program cut into families.

    Args:
        graph: the program.
        layers: numbers of the values that layers make.
        parameters: numbers of the graph's inputs that are parameters.

    Attributes:
        graph: the program.
        neighbours: those of the program, straightened.
        layers: as given.
        bits: by number, what each value depends on.
        constants: by number, the number that all entries of a value are, where that is known.
        origins: in order of execution.
        members: by number, of every value that data reach.
        roots: by number, what a value that is made of parameters alone has been through.
        carries: carries by the loop and the value that it carries back.
        back: every carry with the number of that value.
        sequences: loops that run over data, by the identity of their parameters.
        slopes: numbers of the products with learned slopes and temperatures of activations.
    """

    def __init__(self, graph: Graph, layers: Collection[int], parameters: Iterable[int]) -> None:
        self.graph, self.layers, self.avals = graph, layers, graph.avals
        self.neighbours = Neighbours(straighten(graph))
        nodes = self.neighbours.nodes
        self.bits = _dependencies(graph, nodes, layers, set(parameters))
        self.constants: dict[int, Any] = dict(_constants_of(graph))
        self.origins: list[Origin] = []
        self.members: dict[int, Member] = {}
        self.roots = [0] * len(graph.avals)
        self.carries: dict[tuple[int, int], Origin] = {}
        self.back: list[tuple[Origin, int]] = []
        self.sequences = _sequences(nodes, self.bits)
        self.slopes: set[int] = set()
        self._slices = 0
        for number in graph.inputs:
            if self.bits[number] & DATA:
                self.origin("input", [], None, number)
        for node in nodes:
            if node.outputs:
                self._visit(node)
        for carry, number in self.back:
            if number in self.members:
                member = self.members[number]
                member.origin.children.append((carry, member))
        for atom in graph.outputs:
            if isinstance(atom, int) and atom in self.members:
                member = self.members[atom]
                member.origin.outputs.append(member)

    def _visit(self, node: Node) -> None:
        """Makes members or origins of the results of a node."""
        reads = self.reads(node)
        if any(number in self.layers for number in node.outputs):
            rule = _layer
        elif not self.bits[node.outputs[0]] & DATA:
            rule = _without_data
        elif node.equation is None:
            rule = _loop
        else:
            rule = (rules.get(node.primitive) if reads else None) or _join
        rule(self, node, reads)

    def reads(self, node: Node) -> list[tuple[int, Member]]:
        """Position and member of every operand that data reach."""
        atoms = enumerate(node.inputs)
        return [(i, self.members[a]) for i, a in atoms if isinstance(a, int) and a in self.members]

    def number(self, atom: Atom) -> Any:
        """The number that all entries of an operand are, None where that is not known."""
        return self.constants.get(atom) if isinstance(atom, int) else single_number(atom.val)

    def bits_of(self, atoms: Iterable[Atom]) -> int:
        """What any of these depends on."""
        return _either(self.bits, atoms)

    def origin(
        self,
        kind: OriginKind,
        parents: Sequence[Member],
        node: Node | None,
        number: int | None = None,
        detail: str | None = None,
    ) -> Origin:
        """Makes a value an origin, and the first member of its family.

        Args:
            kind: of the origin.
            parents: what it is made from.
            node: what makes it; None of an input.
            number: of the value; the first result of the node where none is given.
            detail: kind of a normalisation; the primitive where none is given.
        """
        times, name = (1, "") if node is None else (node.times, node.primitive)
        if number is None:
            number = node.outputs[0] if node is not None else -1
        made = Origin(len(self.origins), kind, number, list(parents), detail or name, times)
        made.has_layer = bool(self.bits[number] & LAYER)
        self.origins.append(made)
        for member in parents:
            member.origin.children.append((made, member))
        # Of ways that are equally long the widest, and of those the one that was made first.
        ways = (member.origin for member in parents)
        made.longest = max(ways, key=lambda at: (at.depth, at.width, -at.index), default=None)
        made.depth = 0 if made.longest is None else made.longest.depth
        features = default_features(self.avals[number].shape)
        if rules.get(name) is _elementwise:
            features = next((each.features for each in parents if not each.level), features)
        elif node is not None and name in ("take", "stack") and parents:
            features = features_after(node, 0, parents[0].features, self.avals)
        self.members[number] = Member(made, number, number)
        self.set_features(made, features)
        if kind == "sum":
            _note_bypass(made)
        return made

    def set_features(self, made: Origin, features: tuple[int, ...]) -> None:
        """Notes which axes of an origin hold features, and how many features there are."""
        self.members[made.value].features = features
        made.width = math.prod(self.avals[made.value].shape[axis] for axis in features)

    def scaled(self, number: int) -> Literal["norm", "layer"] | None:
        """What a product with a parameter scales entry by entry, see `Use.scales`.

        Args:
            number: of the product; what a layer makes scales the layer.
        """
        member = self.members.get(number)
        if member is None or number in self.slopes:
            return None
        if member.level:  # A batch norm multiplies its scale into one over the spread first.
            return "norm" if member.tags & ROOT else None
        size = size_of(self.avals[number])
        while member.origin.kind in ("affine", "take", "exit") and not member.level:
            member = member.origin.parents[0]
        kind = member.origin.kind
        # What is spread over positions is no value of its own there.
        if kind not in ("norm", "layer") or size_of(self.avals[member.origin.value]) < size:
            return None
        return "norm" if kind == "norm" else "layer"

    def member(self, number: int, of: Member, /, **changes: Any) -> None:
        """Makes a value a member of the family of another."""
        new = dataclasses.replace(of, **{"number": number, **changes})
        if not new.linear or new.broken or new.mixed:
            new.number = of.number
        self.members[number] = new

    def new_slice(self) -> int:
        """A number for values whose entries stand beside no others."""
        self._slices += 1
        return self._slices


def _either(flags: Sequence[int], atoms: Iterable[Atom]) -> int:
    """What is true of any of some values."""
    found = 0
    for atom in atoms:
        found |= flags[atom] if isinstance(atom, int) else 0
    return found


def _dependencies(
    graph: Graph, nodes: Sequence[Node], layers: Collection[int], parameters: set[int]
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
            found = _either(bits, node.inputs)
            for number in node.outputs:
                if node.primitive == "random_bits" or is_key(graph.avals[number]):
                    found = NOISE
                bits[number] |= found | DATA | LAYER if number in layers else found
        if bits == before:
            break
    return bits


def _sequences(nodes: Sequence[Node], bits: Sequence[int]) -> set[int]:
    """Loops that run over data, by the identity of their parameters.

    They walk along data, or pick entries of data at places that they count.
    """
    found: set[int] = set()
    counted: dict[int, int] = {}
    for node in nodes:
        loops = [counted[a] for a in node.inputs if isinstance(a, int) and a in counted]
        is_new = node.primitive == "take" or (node.primitive == "enter" and len(node.inputs) > 1)
        reaches_data = _either(bits, node.outputs) & DATA
        if node.primitive == "take" and reaches_data:
            found.add(id(node.params))
        elif loops and reaches_data and is_of(node.primitive, Class.INDEXES):
            found.update(loops)
        elif (loops or is_new) and not reaches_data:
            counted.update(dict.fromkeys(node.outputs, id(node.params) if is_new else loops[0]))
    return found


def _constants_of(graph: Graph) -> Iterator[tuple[int, Any]]:
    """Closed-over arrays all of whose entries are one number, those of bodies too."""
    for number, value in graph.constants.items():
        known = single_number(value)
        if known is not None:
            yield number, known
    for node in graph.nodes:
        for body in node.bodies:
            yield from _constants_of(body)


# What becomes of the results of a node.

_Reads: TypeAlias = Sequence[tuple[int, Member]]
_Rule: TypeAlias = Callable[[Families, Node, _Reads], None]
rules: Rules[_Rule] = Rules("families")


# Functions of entries among these take or give numbers that are not real, complex ones or the bits
# of whole ones: no activation is made of them.
@rules(
    "clz", "complex", "conj", "imag", "mulhi", "population_count", "real", "shift_left",
    "shift_right_arithmetic", "shift_right_logical",
)  # fmt: skip
def _join(found: Families, node: Node, reads: _Reads) -> None:
    """Makes every result an origin of no other kind."""
    _origins(found, node, "join", [member for _, member in reads])


def _origins(found: Families, node: Node, kind: OriginKind, parents: Sequence[Member]) -> None:
    for number in node.outputs:
        made = found.origin(kind, parents, node, number)
        aval = found.avals[number]
        if not is_key(aval) and np.issubdtype(aval.dtype, np.integer):
            # What is picked by an index is no deeper for the layer that picked it.
            made.is_index, made.depth, made.longest = True, 0, None


def _layer(found: Families, node: Node, reads: _Reads) -> None:
    """A layer; or a slice of the output of one, which has its own way and adds no depth."""
    made, parents = None, [member for _, member in reads]
    for number in node.outputs:
        if number in found.layers:
            made = found.origin("layer", parents, node, number)
        else:
            found.member(number, parents[0], slice=found.new_slice())
    if made is not None and is_of(node.primitive, Class.CONTRACTS):
        made.counts = True
        made.depth += 1
        kernels = [i for i, atom in enumerate(node.inputs) if not found.bits_of([atom]) & DATA]
        found.set_features(made, _features_of_contraction(node, kernels, found.graph))


def _without_data(found: Families, node: Node, reads: _Reads) -> None:
    """Computes constants that are one number; of parameters, notes roots and sums."""
    name, number = node.primitive, node.outputs[0]
    if name == "reduce_sum" or is_of(name, Class.CONTRACTS):
        tags = MEAN
    else:
        tags = _either(found.roots, node.inputs) | (ROOT if _is_root(found, node) else 0)
    found.roots[number] = tags
    values = [found.number(atom) for atom in node.inputs]
    if found.bits[number] or len(node.outputs) > 1 or not values or None in values:
        return
    value = None
    if is_of(name, Class.ELEMENTWISE):
        value = single_number(on_numpy(name, node.params, values))
    elif name == "enter" or (rules.get(name) in (_move, _side_by_side) and not row_of(name).cuts):
        # Padding and the like keep a number where they add the same one.
        value = values[0] if len(set(values)) == 1 else None
    if value is not None:
        found.constants[number] = value


def _loop(found: Families, node: Node, reads: _Reads) -> None:
    """A value that goes into or out of the body of a loop or branch."""
    name, number, key = node.primitive, node.outputs[0], id(node.params)
    parents = [member for _, member in reads]
    inside, *backs = node.inputs
    carry = found.carries.get((key, inside)) if isinstance(inside, int) else None
    if name == "enter" and backs:
        made = found.origin("carry", parents, node)
        made.length = node.params.get("length", 1)
        made.is_sequence = key in found.sequences
        if isinstance(backs[0], int):
            found.carries[key, backs[0]] = made
            found.back.append((made, backs[0]))
    elif name == "take":
        made = found.origin("take", parents, node)
        made.times = None if made.times is None else made.times * node.params["length"]
    elif name == "stack" or carry is not None:
        made = found.origin("exit", parents, node)
        if carry is not None and not carry.is_sequence:
            made.entry = carry
            made.depth += max(0, (carry.length - 1) * (made.depth - carry.depth))
    elif len({(member.origin.index, member.value) for member in parents}) == 1:
        found.member(number, parents[0])
    else:
        found.origin("join", parents, node)


@rules(Class.REARRANGES, "gather", "dynamic_slice", *POOLING)
def _move(found: Families, node: Node, reads: _Reads) -> None:
    """A move; a barrier moves each operand to the result of the same number."""
    name, outputs = node.primitive, node.outputs
    if len(outputs) == len(node.inputs) > 1:
        for at, member in reads:
            found.member(outputs[at], member)
        return
    position, member = reads[0]
    if position and is_of(name, Class.INDEXES):
        return _join(found, node, reads[:1])
    before, after = (size_of(found.graph.aval(atom)) for atom in (node.inputs[0], outputs[0]))
    spreads = name in ("broadcast_in_dim", "tile") and after > before and not member.level
    for number in outputs:
        at = found.new_slice() if row_of(name).cuts or spreads else member.slice
        features = features_after(node, 0, member.features, found.avals)
        found.member(number, member, slice=at, features=features)
    return None


@rules("concatenate", "stack")
def _side_by_side(found: Families, node: Node, reads: _Reads) -> None:
    """Slices of one value, or one value and constants, are moved; others are joined."""
    values = {(m.origin.index, m.value, m.level, m.mixed) for _, m in reads}
    first = reads[0][1]
    others = [atom for atom in node.inputs if atom not in found.members]
    if len(values) > 1 or found.bits_of(others):
        return _join(found, node, reads)
    features = features_after(node, 0, first.features, found.avals)
    found.member(node.outputs[0], first, slice=found.new_slice(), features=features)
    return None


@rules(*OVER_AXES, "psum", "pmax", "pmin")
def _over_axes(found: Families, node: Node, reads: _Reads) -> None:
    """A sum, a largest entry and the like over some axes, or over devices; each has its result."""
    is_sum = node.primitive in ("reduce_sum", "psum")
    for position, member in reads:
        number = node.outputs[position]
        axes = [axis for axis in node.params["axes"] if isinstance(axis, int)]
        if not is_sum:
            tag = LARGEST
        elif member.tags & SQUARED:
            tag = SECOND
        else:
            tag = SUM_OF_EXP if member.tags & EXPONENTIAL else MEAN
            tag = 0 if member.level and member.tags & (MEAN | SECOND | SUM_OF_EXP) else tag
        scope = scope_of(axes, found.avals[node.inputs[position]].shape, member.features)
        found.member(
            number,
            member,
            level=member.level + 1,
            mixed=False,
            tags=member.tags & ~FRESH | tag,
            scope=member.scope if member.mixed or not axes else scope,
            features=features_after(node, position, member.features, found.avals),
            broken=member.broken or member.mixed,
        )


@rules(Class.CONTRACTS)
def _contraction(found: Families, node: Node, reads: _Reads) -> None:
    """A contraction that is no layer: of data with constants, or with data."""
    is_fixed = any(isinstance(atom, int) and not found.bits[atom] for atom in node.inputs)
    if len(reads) == 1 and is_fixed:
        found.member(node.outputs[0], reads[0][1], slice=found.new_slice())
    else:
        members = [member for _, member in reads]
        _origins(found, node, "contract" if len(reads) == 2 else "join", members)


@rules(Class.ELEMENTWISE)
def _elementwise(found: Families, node: Node, reads: _Reads) -> None:
    """A function of entries, by the families that it reads."""
    name, number = node.primitive, node.outputs[0]
    if name == "select_n":
        # Without the predicate, unless that is of the same family.
        same = {member.origin.index for i, member in reads if i > 0}
        reads = [(i, m) for i, m in reads if i > 0 or m.origin.index in same or not same]
    members = _with_statistics([member for _, member in reads])
    others = [a for a in node.inputs if not isinstance(a, int) or a not in found.members]
    reached = found.bits_of(others)
    level = min(member.level for member in members)
    values = [member for member in members if member.level == level]
    if len({member.origin.index for member in members}) > 1:
        _between_families(found, node, members)
    elif reached & PARAMETER:
        _with_parameter(found, node, members, others)
    elif reached & NOISE:
        _with_noise(found, node, members[0])
    elif name == "select_n" and reads[0][0] > 0 and len(members) == 1:
        found.member(number, members[0], number=members[0].number)
    elif not level and len({member.slice for member in values}) > 1:
        _between_slices(found, node, members)
    elif len(values) < len(members):
        _with_own_sum(found, node, members, values[0])
    else:
        _within_family(found, node, members, others)


def _with_statistics(members: list[Member]) -> list[Member]:
    """Members of one family, where running statistics are told by those of the batch.

    A mean that is mixed with what was kept of earlier ones is an origin of its own, until it meets
    what it is a mean of.
    """
    if len({member.origin.index for member in members}) == 1:
        return members
    plain = []
    for member in members:
        at = member.origin
        if at.kind == "affine" and at.parents[0].level:
            tags = at.parents[0].tags | member.tags
            member = dataclasses.replace(at.parents[0], tags=tags, broken=True)
        plain.append(member)
    return plain if len({member.origin.index for member in plain}) == 1 else members


def _between_families(found: Families, node: Node, members: Sequence[Member]) -> None:
    name = node.primitive
    origins = [member.origin for member in members]
    oldest = min(origins, key=lambda origin: origin.index)
    is_scaled = all(
        origin is oldest
        or (
            origin.kind == "affine"
            and origin.detail in PRODUCTS
            and origin.parents[0].origin is oldest
        )
        for origin in origins
    )
    if is_scaled and name not in SUMS:
        # A slope or a temperature that is learned: an activation that no constants describe.
        base = members[origins.index(oldest)]
        found.slopes.update(origin.value for origin in origins if origin is not oldest)
        found.member(node.outputs[0], base, linear=False, broken=True)
    else:
        kind = "sum" if name in SUMS else "product" if name in PRODUCTS else "join"
        found.origin(kind, members, node)


def _with_parameter(
    found: Families, node: Node, members: Sequence[Member], others: Sequence[Atom]
) -> None:
    name, first = node.primitive, members[0]
    rooted = _either(found.roots, others)
    is_kept = name == "select_n" and first.level
    if is_kept or (name in PRODUCTS and first.level and first.tags & ROOT):
        found.member(node.outputs[0], first)
    elif name in PRODUCTS and rooted & ROOT and not rooted & MEAN:
        # Running statistics: a parameter under a root that was never summed.
        found.origin("norm", [first], node, detail="batch")
    elif name in SUMS or name in PRODUCTS:
        found.origin("affine", [first], node)
    else:
        found.origin("join", members, node)


def _with_noise(found: Families, node: Node, member: Member) -> None:
    """Dropout: the values go through, without the division by the share that is kept."""
    name, number = node.primitive, node.outputs[0]
    maker = found.neighbours.makers.get(member.value)
    if name == "select_n" and maker is not None and maker.primitive in PRODUCTS:
        before = found.reads(maker)
        if len(before) == 1 and any(found.number(atom) is not None for atom in maker.inputs):
            divided = before[0][1]
            kept = {"value": divided.value, "number": divided.number, "linear": divided.linear}
            found.member(number, member, **kept)
            return
    if name == "select_n" or name in SUMS or name in PRODUCTS:
        found.member(number, member, number=member.number)
    else:
        found.origin("join", [member], node)


def _between_slices(found: Families, node: Node, members: Sequence[Member]) -> None:
    """Slices of one value that meet: a rotation where they are added, a gate where multiplied."""
    name, first = node.primitive, members[0]
    if name in SUMS and all(member.linear for member in members):
        root = first.origin.value
        found.member(node.outputs[0], first, value=root, slice=found.new_slice())
    else:
        kind = "sum" if name in SUMS else "product" if name in PRODUCTS else "join"
        found.origin(kind, members, node)


def _with_own_sum(found: Families, node: Node, members: Sequence[Member], values: Member) -> None:
    """Values that meet sums of themselves."""
    name = node.primitive
    of_sums = [member for member in members if member.level > values.level]
    sums = 0
    for member in of_sums:
        sums |= member.tags
    scope = next((member.scope for member in of_sums if member.scope), None)
    alone = dataclasses.replace(values, mixed=False)
    is_exponential = name in PRODUCTS and values.tags & EXPONENTIAL
    if name in PRODUCTS and sums & ROOT and not sums & SUM_OF_EXP:
        is_centred = (values.tags | sums) & MEAN
        detail = scope or "layer"
        if detail == "layer" and not is_centred:
            detail = "rms"
        found.origin("norm", [alone], node, detail=detail)
    elif sums & SUM_OF_EXP and (is_exponential or (name == "sub" and sums & LOGARITHM)):
        maker = found.neighbours.makers.get(values.value)
        if not values.mixed and maker is not None and maker.primitive in ("exp", "exp2"):
            alone = found.members.get(maker.inputs[0], values)
        found.origin("softmax", [alone], node, detail=scope)
    else:
        tags = values.tags & ~FRESH | sums
        found.member(node.outputs[0], values, mixed=True, tags=tags, scope=scope)


def _within_family(
    found: Families, node: Node, members: Sequence[Member], others: Sequence[Atom]
) -> None:
    """Values of one family, or one value with constants."""
    name, number, first = node.primitive, node.outputs[0], members[0]
    known = [found.number(atom) for atom in others]
    is_shift = name in SUMS
    is_scale = name == "mul" or (name == "div" and node.inputs[0] not in others)
    keeps = is_shift or is_scale or name == "neg"
    tags = _tags_after(found, node, members, keeps)
    if first.level or any(member.mixed for member in members):
        of = next((member for member in members if member.mixed), first)
        broken = of.broken or not ((is_scale and len(members) == 1) or of.mixed)
        found.member(number, of, tags=tags, broken=broken)
    elif None in known and (is_shift or is_scale):
        # Different numbers for different entries, as in a rotation: no part of an activation. Those
        # that are added may be a mask.
        found.member(number, first, number=first.number if is_shift else number)
    else:
        linear = keeps and (len(members) == 1 or is_shift) and all(m.linear for m in members)
        broken = any(member.broken for member in members) or None in known
        found.member(number, first, value=number, linear=linear, tags=tags, broken=broken)


def _tags_after(found: Families, node: Node, members: Sequence[Member], keeps: bool) -> int:
    """What the result of a function of one family has been through."""
    name, first = node.primitive, members[0]
    if (keeps and len(members) == 1) or (name in ("max", "min") and first.level):
        return first.tags
    tags = 0
    for member in members:
        tags |= member.tags & ~FRESH
    is_product = name == "mul" and len({member.value for member in members}) == 1
    if is_product or name == "square" or (name == "integer_pow" and node.params["y"] == 2):
        return tags | SQUARED
    if name in ("exp", "exp2"):
        return tags | EXPONENTIAL
    if _is_root(found, node):
        return tags | ROOT
    return tags | LOGARITHM if name in ("log", "log1p") else tags


def _is_root(found: Families, node: Node) -> bool:
    if node.primitive == "pow":
        return found.number(node.inputs[1]) in (0.5, -0.5)
    return node.primitive in ("sqrt", "rsqrt")


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
    found, held = enumerate(sources(node, before, after)), set(features)
    if node.primitive in ("reshape", "expand_dims"):
        # Axes of size one lie in runs with others, and hold nothing.
        held = {axis for axis in features if before[axis] != 1}
        found = ((i, axes) for i, axes in found if after[i] != 1)
    return tuple(i for i, axes in found if held & set(axes))


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


def _features_of_contraction(node: Node, kernels: Sequence[int], graph: Graph) -> tuple[int, ...]:
    """Axes of a contraction's result that the first of the kernels among its inputs brings."""
    default = default_features(graph.aval(node.outputs[0]).shape)
    if node.primitive == "conv_general_dilated":
        return (node.params["dimension_numbers"].out_spec[1],)
    if node.primitive != "dot_general" or not kernels:
        return default
    contracted, batched = node.params["dimension_numbers"]
    free = [
        len(graph.aval(node.inputs[i]).shape) - len(contracted[i]) - len(batched[i]) for i in (0, 1)
    ]
    start = len(batched[0]) + (free[0] if kernels[0] else 0)
    return tuple(range(start, start + free[kernels[0]])) or default


# Low-rank bypasses: ``x W + (x A) B`` is one linear layer with the kernel ``W + A B``, as in LoRA.


def _note_bypass(added: Origin) -> None:
    """Notes the low-rank product that a sum adds to a layer of the same input, if it adds one.

    The product runs beside the layer, and adds no depth.
    """
    if len(added.parents) != 2:
        return
    first, second = added.parents
    for main, low in ((first, second), (second, first)):
        # Several products may add up, so earlier sums are passed on the way to the layer.
        kernel, outer = _layer_of(main, passes_bypasses=True), _layer_of(low)
        inner = None if outer is None else _layer_of(outer.parents[0])
        if kernel is None or outer is None or inner is None or kernel is outer:
            continue
        source, wanted = inner.parents[0], kernel.parents[0]
        if (source.origin.index, source.value) != (wanted.origin.index, wanted.value):
            continue
        # Where the inner width is no bottleneck, the product is two layers.
        if inner.width < min(source.origin.width, outer.width):
            inner.beside, outer.beside = "in", "out"
            added.main, added.longest, added.depth = main, main.origin, main.origin.depth
            return


def _layer_of(member: Member, *, passes_bypasses: bool = False) -> Origin | None:
    """The layer that a value is the output of, scaled and shifted at most.

    Args:
        member: the value.
        passes_bypasses: whether sums that add a low-rank product may lie in between.
    """
    while member.linear and member.is_elementwise and not member.level:
        at = member.origin
        if at.counts:
            return at if len(at.parents) == 1 else None
        if passes_bypasses and at.main is not None:
            member = at.main
        elif at.kind in ("affine", "exit", "layer") and len(at.parents) == 1:
            member = at.parents[0]
        else:
            return None
    return None
