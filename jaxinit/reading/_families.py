"""The forward pass in pieces: origins, and the families of values computed from each.

An origin is a value that is more than an elementwise function of one other: the output of a map, a
sum of two of them, a normalised value, what a loop carries. All values computed from one origin
entry by entry, moved, or summed over axes are its family. What an activation is, whether something
is normalised, and which way a residual stream runs are then short questions about a small graph.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any, Literal

from jaxinit.jaxpr._equations import is_key
from jaxinit.jaxpr._graph import Graph, Node

# What a value depends on: data that come in, parameters, random bits, the output of a map.
DATA, PARAMETER, NOISE, MAP = 1, 2, 4, 8
# What a value has been through since its origin.
(SQUARED, EXPONENTIAL, MEAN, SECOND, SUM_OF_EXP, LARGEST, ROOT, LOGARITHM) = (
    1 << bit for bit in range(8)
)
FRESH = SQUARED | EXPONENTIAL

Kind = Literal[
    "input", "map", "affine", "norm", "softmax", "sum", "product", "contract", "join", "carry",
    "exit", "take",
]  # fmt: skip


@dataclasses.dataclass(slots=True, eq=False)
class State:
    """Where a value stands in the family of its origin.

    Attributes:
        origin: the origin it is computed from.
        value: number of the value that it is entry by entry, before moves that change no entry.
        linear: whether it is a multiple of the origin, entry by entry.
        piece: equal for values whose entries stand beside each other.
        level: how many sums over axes it has been through.
        mixed: whether sums of higher level have met it.
        tags: what it has been through.
        scope: over which axes its sums go, see `axes.scope_of`.
        features: axes that hold features.
        broken: whether it is no elementwise function, so that its value says nothing.
    """

    origin: Origin
    value: int
    linear: bool = True
    piece: int = 0
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
    """A value that is more than a function of one other.

    Attributes:
        index: place in the order of execution.
        kind: what made it.
        value: its number.
        parents: what it was made from.
        children: what it goes into, with the member of its family that does; what a loop carries
            back counts too.
        outputs: members of its family that the program returns.
        times: how often it is made in one pass; None where data decide.
        length: rounds of the loop, of a carry; 1 elsewhere.
        detail: kind of a normalisation; primitive of a sum or join.
        map: identity of the map it is the output of.
        counts: whether it is the output of a map that multiplies: an embedding does not.
        sequence: of a carry, whether the loop runs over data.
        depth: maps on the longest way from the inputs to it.
        longest: parent on that way.
        entry: of an exit from a scan over layers, the carry it left by.
        is_index: whether it holds whole numbers, as ``argmax`` makes them: no signal goes through.
        has_map: whether a map lies before it, or before it in an earlier round.
        beside: of a map in a low-rank bypass, ``"in"`` or ``"out"``: its first or second factor.
        main: of a sum with a low-rank bypass, the side that is not the bypass.
    """

    index: int
    kind: Kind
    value: int
    parents: list[State] = dataclasses.field(default_factory=list)
    children: list[tuple[Origin, State]] = dataclasses.field(default_factory=list)
    outputs: list[State] = dataclasses.field(default_factory=list)
    times: int | None = 1
    length: int = 1
    detail: str | None = None
    map: Hashable = None
    counts: bool = False
    sequence: bool = False
    depth: int = 0
    longest: Origin | None = None
    entry: Origin | None = None
    has_map: bool = False
    is_index: bool = False
    beside: Literal["in", "out"] | None = None
    main: State | None = None


@dataclasses.dataclass(slots=True, eq=False)
class Families:
    """A program cut into families.

    Attributes:
        origins: in order of execution.
        states: by number, of every value that data reach.
        bits: by number, what each value depends on.
        constants: by number, the number that all entries of a value are, where that is known.
        producers: the node that makes each value.
        features: number of features of each origin, by index.
    """

    origins: list[Origin] = dataclasses.field(default_factory=list)
    states: dict[int, State] = dataclasses.field(default_factory=dict)
    bits: list[int] = dataclasses.field(default_factory=list)
    constants: dict[int, Any] = dataclasses.field(default_factory=dict)
    producers: dict[int, Node] = dataclasses.field(default_factory=dict)
    features: list[int] = dataclasses.field(default_factory=list)


def dependencies(
    graph: Graph, nodes: Sequence[Node], maps: Mapping[int, Hashable], parameters: Iterable[int]
) -> list[int]:
    """What every value of a program depends on: `DATA`, `PARAMETER`, `NOISE` and `MAP`, by number.

    What loops carry back is followed until nothing changes: a few passes, however long the program.
    """
    bits = [0] * len(graph.avals)
    owned = set(parameters)
    for number in graph.inputs:
        key = is_key(graph.avals[number])
        bits[number] = PARAMETER if number in owned else NOISE if key else DATA
    for _ in range(5):
        again = False
        for node in nodes:
            found = 0
            for atom in node.inputs:
                if isinstance(atom, int):
                    found |= bits[atom]
            for number in node.outputs:
                if node.primitive == "random_bits" or is_key(graph.avals[number]):
                    found = NOISE
                mine = found | DATA | MAP if number in maps else found
                if mine & ~bits[number]:
                    bits[number] |= mine
                    again = True
        carried = any(n.primitive == "enter" and len(n.inputs) > 1 for n in nodes)
        if not (again and carried):
            break
    return bits
