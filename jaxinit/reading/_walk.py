"""The walk through a graph that follows every parameter until it meets data.

Loops are walked until what they carry changes no more; what was noted on the way to that is
forgotten.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.extend.core as jex

from jaxinit.jaxpr._equations import is_integral, is_key
from jaxinit.jaxpr._graph import Graph, Node
from jaxinit.reading import _views as views
from jaxinit.reading._records import Use
from jaxinit.reading._values import (
    CONSTANT,
    OTHER,
    Value,
    combined,
    data,
    plain,
    untagged,
    view,
)
from jaxinit.reading._views import Part, Piece

# A loop that carries something else each time for longer than this carries data.
_MOST_ROUNDS = 8


class Place(NamedTuple):
    """A piece of a kernel's output: the tag of the use, its stride there, and its size."""

    axis: int
    stride: int
    size: int


@dataclasses.dataclass(frozen=True, slots=True)
class Met:
    """One meeting of a parameter with data.

    Attributes:
        leaf: number of the parameter.
        use: what it does there.
        why: of an unknown use, the equation and what it does.
        is_aside: whether a kernel met nothing that depends on the model's inputs, as in the power
            iteration that finds its norm.
    """

    leaf: int
    use: Use
    why: str | None = None
    is_aside: bool = False


class Walk:
    """State of a walk.

    Attributes:
        shapes: shapes of the parameters.
        are_integers: whether they are of integers, booleans or keys.
        avals: shape and dtype of every value, by number.
        values: what every value is, by number.
        met: meetings so far, in order of execution.
        cuts: slices that kernel outputs were cut into: by piece, where each starts and ends, with
            the number of the value that holds it.
        rejoined: pieces whose slices were added or concatenated again.
        links: number of products of parameters so far.
        regions: of a product with concatenated kernels, by the number of its first meeting: which
            stretch of the output each meeting makes.
    """

    def __init__(self, leaves: Sequence[Any], graph: Graph) -> None:
        self.shapes = [tuple(leaf.shape) for leaf in leaves]
        self.are_integers = [is_integral(leaf) for leaf in leaves]
        self.avals = graph.avals
        self.values: dict[int, Value] = dict.fromkeys(graph.constants, CONSTANT)
        self.met: list[Met] = []
        self.cuts: dict[Place, dict[tuple[int, int], int]] = {}
        self.rejoined: set[Place] = set()
        self.links = 0
        self.regions: dict[int, list[tuple[int, int, int]]] = {}
        self.readers = _count_readers(graph)

    def read(self, atom: Any) -> Value:
        """What an atom is."""
        return CONSTANT if isinstance(atom, jex.Literal) else self.values[atom]

    def shape(self, atom: Any) -> tuple[int, ...]:
        """Shape of an atom."""
        aval: Any = atom.aval if isinstance(atom, jex.Literal) else self.avals[atom]
        return tuple(aval.shape)

    def note(self, part: Part, use: Use, why: str | None = None, *, is_aside: bool = False) -> int:
        """Writes a meeting down, and returns its number."""
        rounds = math.prod(entry.length for entry in part.taken)
        times = use.times
        if times is not None and rounds and times % rounds == 0:
            use = dataclasses.replace(use, times=times // rounds)
        self.met.append(Met(part.leaf, use, why, is_aside))
        return len(self.met) - 1

    def enters(self, value: Value, operation: str, node: Node, output: int | None) -> None:
        """Notes that parameters become data as they are: tokens, initial states."""
        for part in value.parts if value.is_view else ():
            if part.why is not None:
                self.unknown(part, operation, node, output)
                continue
            axes = views.axes_of(piece for dim in part.dims for piece in dim)
            use = Use(operation, "embedding", produced=axes, batched=self.batched(part))
            self.note(part, dataclasses.replace(use, times=node.times, output=output))

    def picks(self, value: Value, node: Node) -> None:
        """Notes parameters that serve as indices; integers, such as counters, are state."""
        for part in value.parts if value.is_view else ():
            if not self.are_integers[part.leaf]:
                self.unknown(part, node.primitive, node, node.outputs[0])

    def unknown(self, part: Part, operation: str, node: Node, output: int | None) -> None:
        """Notes a meeting that is not understood."""
        use = Use(operation, "unknown", times=node.times, output=output)
        self.note(part, use, part.why or self.spell(node))

    def batched(self, part: Part, pieces: Sequence[Piece] = ()) -> tuple[int, ...]:
        """Axes along which the layer repeats: these pieces', indexed ones and scanned ones."""
        shape = self.shapes[part.leaf]
        axes = {axis for axis in part.dropped if shape[axis] > 1}
        scanned = [piece for entry in part.taken for piece in entry.pieces]
        return tuple(sorted({*axes, *views.axes_of(pieces), *views.axes_of(scanned)}))

    def spell(self, node: Node) -> str:
        """An equation in one line: its primitive and the shapes of its operands."""
        shapes = ", ".join(str(list(self.shape(atom))) for atom in node.inputs)
        return f"{node.primitive} of {shapes}"

    def run(self, graph: Graph, inputs: Sequence[Value], apply: Apply) -> list[Value]:
        """Walks through a graph.

        Args:
            graph: the program, or the body of a loop or branch.
            inputs: what its arguments are.
            apply: what a plain equation makes of its inputs.

        Returns:
            What its results are.
        """
        self.values.update(dict.fromkeys(graph.constants, CONSTANT))
        self.values.update(zip(graph.inputs, inputs, strict=True))
        for node in graph.nodes:
            values = [self.read(atom) for atom in node.inputs]
            step = _LOOPS.get(node.primitive) if node.bodies else None
            results = step(self, node, values, apply) if step else apply(self, node, values)
            self.values.update(zip(node.outputs, results, strict=True))
        return [self.read(atom) for atom in graph.outputs]

    def joined(self, values: Sequence[Value], node: Node, output: int | None) -> Value:
        """What may be any of these: of branches, or of the rounds of a loop."""
        held = [value for value in values if value.kind != "constant"]
        if not held:
            return CONSTANT
        if all(value.is_view for value in held):
            return view([part for value in held for part in value.parts])
        for value in held:
            self.enters(value, node.primitive, node, output)
        known = [untagged(value) for value in held if value.is_data]
        shape = tuple(map(views.size_of, known[0].parts[0].dims))
        dims = combined(known, shape)
        return data(dims, is_real=any(value.is_real for value in known))

    def settle(
        self, node: Node, carried: Sequence[Value], body: Callable[[list[Value]], list[Value]]
    ) -> list[Value]:
        """Runs the body of a loop until what it carries stays what it is."""
        current = list(carried)
        for _ in range(_MOST_ROUNDS):
            before = len(self.met), dict(self.cuts), set(self.rejoined), self.links
            after = body(current)
            count = len(self.met)
            merged = [
                value if value == back else self.joined([value, back], node, None)
                for value, back in zip(current, after, strict=True)
            ]
            if merged == current:
                del self.met[count:]
                return current
            del self.met[before[0] :]
            self.cuts, self.rejoined, self.links = before[1:]
            for old, new in zip(current, merged, strict=True):
                if old.is_view and new.is_data:
                    self.enters(old, node.primitive, node, None)
            current = merged
        raise RecursionError(
            f"jaxinit.read needs loops whose carries settle within {_MOST_ROUNDS} rounds, got "
            f"{self.spell(node)}. Please report this model."
        )


Apply = Callable[[Walk, Node, list[Value]], list[Value]]


def _scan(walk: Walk, node: Node, values: list[Value], apply: Apply) -> list[Value]:
    (body,) = node.bodies
    first = node.params["constants"]
    second = first + node.params["carries"]
    loop, length = node.outputs[0] if node.outputs else -1, node.params["length"]
    scanned = [_take(value, loop) for value in values[second:]]
    results: list[Value] = []

    def run(carried: list[Value]) -> list[Value]:
        results[:] = walk.run(body, [*values[:first], *carried, *scanned], apply)
        return results[: second - first]

    carried = walk.settle(node, values[first:second], run)
    stacks = [_stack(value, loop, length) for value in results[second - first :]]
    return carried + stacks


def _take(value: Value, loop: int) -> Value:
    if value.kind == "constant":
        return CONSTANT
    if value.is_data:
        (part,) = value.parts
        return dataclasses.replace(value, parts=(part.with_dims(part.dims[1:]),))
    return view([views.taken(part, loop) for part in value.parts])


def _stack(value: Value, loop: int, length: int) -> Value:
    if value.kind == "constant":
        return CONSTANT
    if value.is_data:
        (part,) = value.parts
        dims = ((Piece(OTHER, length),), *part.dims)
        return dataclasses.replace(value, parts=(part.with_dims(dims),), product=())
    return view([views.stacked(part, loop, length) for part in value.parts])


def _cond(walk: Walk, node: Node, values: list[Value], apply: Apply) -> list[Value]:
    for part in values[0].parts if values[0].is_view else ():
        walk.unknown(part, "cond", node, None)
    branches = [walk.run(branch, values[1:], apply) for branch in node.bodies]
    pairs = zip(zip(*branches, strict=True), node.outputs, strict=True)
    return [walk.joined(results, node, output) for results, output in pairs]


def _while(walk: Walk, node: Node, values: list[Value], apply: Apply) -> list[Value]:
    condition, body = node.bodies
    first = node.params["condition_constants"]
    second = first + node.params["body_constants"]

    def run(carried: list[Value]) -> list[Value]:
        walk.run(condition, [*values[:first], *carried], apply)
        return walk.run(body, [*values[first:second], *carried], apply)

    return walk.settle(node, values[second:], run)


_LOOPS: dict[str, Callable[[Walk, Node, list[Value], Apply], list[Value]]] = {
    "scan": _scan,
    "cond": _cond,
    "while": _while,
}


def _count_readers(graph: Graph) -> dict[int, int]:
    """How many equations and results read each value."""
    counts: dict[int, int] = {}
    for atom in [*graph.outputs, *(atom for node in graph.nodes for atom in node.inputs)]:
        if not isinstance(atom, jex.Literal) and atom is not None:
            counts[atom] = counts.get(atom, 0) + 1
    for node in graph.nodes:
        for body in node.bodies:
            counts.update(_count_readers(body))
    return counts


def incoming(aval: Any, leaf: int | None, *, is_state: bool) -> Value:
    """What an input of the whole program is.

    Args:
        aval: its shape and dtype.
        leaf: number of the parameter, None for an argument.
        is_state: whether it is a variable that is no parameter.
    """
    if is_key(aval):
        return CONSTANT
    if leaf is None or is_state:
        return plain(aval.shape, is_real=not is_state)
    return view([views.whole(leaf, aval.shape)])
