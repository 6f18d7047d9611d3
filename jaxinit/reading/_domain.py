"""The domain of parameters: an interpreter that follows every parameter until it meets data.

What an equation makes of its operands is a rule, attached with `rules` in the modules that know
shapes and meetings. The body of a loop is run until what it carries changes no more; notes of the
rounds before that are taken back.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

from jaxinit.jaxpr import (
    SUMS,
    Atom,
    Class,
    Cond,
    Graph,
    Interpreter,
    MixedAxesError,
    Neighbours,
    Node,
    Rules,
    Scan,
    While,
    is_integral,
    is_of,
)
from jaxinit.reading._records import Role, Use
from jaxinit.reading._values import (
    CONSTANT,
    OTHER,
    OutputAxis,
    Piece,
    Value,
    View,
    axes_of,
    combined,
    data,
    parameters,
    plain,
    size_of,
    untagged,
)

# A loop that carries something else each time for longer than this carries data.
_MOST_ROUNDS = 8


@dataclasses.dataclass(frozen=True, slots=True)
class Meeting:
    """One meeting of a parameter with data.

    Attributes:
        leaf: number of the parameter.
        use: what it does there.
        why: of an unknown use, the equation and what it does.
    """

    leaf: int
    use: Use
    why: str | None = None


@dataclasses.dataclass(slots=True)
class Notes:
    """What was noted so far.

    Attributes:
        meetings: in order of execution.
        cuts: slices that kernel outputs were cut into: by axis, where each starts and ends, with
            the number of the value that holds it.
        rejoined: axes of kernel outputs whose slices were added or concatenated again.
        regions: of a product with concatenated kernels, by the number of its first meeting: start
            and end of the stretch of the output that each meeting makes, with its number.
        asides: numbers of meetings with nothing that depends on the model's inputs, as in the
            power iteration that finds the norm of a kernel.
        products: number of products of parameters.
    """

    meetings: list[Meeting] = dataclasses.field(default_factory=list)
    cuts: dict[OutputAxis, dict[tuple[int, int], int]] = dataclasses.field(default_factory=dict)
    rejoined: set[OutputAxis] = dataclasses.field(default_factory=set)
    regions: dict[int, tuple[tuple[int, int, int], ...]] = dataclasses.field(default_factory=dict)
    asides: set[int] = dataclasses.field(default_factory=set)
    products: int = 0

    def copy(self) -> Notes:
        """The notes as they stand."""
        parts = (self.meetings, self.cuts, self.rejoined, self.regions, self.asides)
        return Notes(*map(copy.copy, parts), self.products)

    def amend(self, number: int, **changes: Any) -> None:
        """Changes the use in a meeting."""
        met = self.meetings[number]
        self.meetings[number] = dataclasses.replace(
            met, use=dataclasses.replace(met.use, **changes)
        )

    def cut(self, axis: OutputAxis, start: int, limit: int, output: int) -> None:
        """Notes a slice of a kernel's output."""
        self.cuts[axis] = {**self.cuts.get(axis, {}), (start, limit): output}

    def rejoin(self, values: Sequence[Value]) -> None:
        """Notes slices of one kernel output that meet again: halves of a rotary embedding."""
        starts: dict[OutputAxis, set[int]] = {}
        for axis, start in (cut for value in values for cut in value.cuts):
            starts.setdefault(axis, set()).add(start)
        self.rejoined.update(axis for axis, found in starts.items() if len(found) > 1)


class ParameterDomain(Interpreter[Value]):
    """Follows the parameters of a program.

    Args:
        leaves: shape and dtype of the parameters.
        graph: the program.
        neighbours: those of the program, straightened.

    Attributes:
        notes: what was found so far.
    """

    def __init__(self, leaves: Sequence[Any], graph: Graph, neighbours: Neighbours) -> None:
        self.leaves, self.graph, self.neighbours = leaves, graph, neighbours
        self.notes = Notes()

    def constant(self, value: Any) -> Value:
        """Closed-over arrays and literals are constants."""
        return CONSTANT

    def equation(self, node: Node, operands: list[Value]) -> Sequence[Value]:
        """The results of the rule for the primitive.

        An equation without a rule makes unknown uses of the parameters that it gets together with
        data, and unknown views of those that it gets alone.
        """
        if all(value.kind == "constant" for value in operands):
            return _constants(node, operands)
        return (rules.get(node.primitive) or _unknown)(self, node, operands)

    def scan(self, loop: Scan[Value]) -> list[Value]:
        """Runs the body until its carries settle."""
        number = loop.node.outputs[0] if loop.node.outputs else -1
        entries = [_taken(value, number) for value in loop.scanned]
        results: list[Value] = []

        def body(carries: list[Value]) -> list[Value]:
            after, results[:] = loop.body(carries, entries)
            return after

        carries = self._settled(loop.node, loop.carries, body)
        return [*carries, *(_stacked(value, number, loop.length) for value in results)]

    def while_loop(self, loop: While[Value]) -> list[Value]:
        """Runs condition and body until the carries settle."""

        def body(carries: list[Value]) -> list[Value]:
            loop.condition(carries)
            return loop.body(carries)

        return self._settled(loop.node, loop.carries, body)

    def cond(self, choice: Cond[Value]) -> list[Value]:
        """Runs all branches; each result may be that of any."""
        for view in choice.operands[0].views if choice.operands[0].is_view else ():
            self.note_unknown(view, choice.node, None)
        pairs = zip(zip(*choice.results(), strict=True), choice.node.outputs, strict=True)
        return [self._any_of(results, choice.node, output) for results, output in pairs]

    def _settled(
        self, node: Node, carries: list[Value], body: Callable[[list[Value]], list[Value]]
    ) -> list[Value]:
        """Runs the body of a loop until what it carries stays what it is."""
        for _ in range(_MOST_ROUNDS):
            before = self.notes.copy()
            after = body(carries)
            settled = self.notes.copy()
            joined = [
                value if value == back else self._any_of([value, back], node, None)
                for value, back in zip(carries, after, strict=True)
            ]
            if joined == carries:
                self.notes = settled
                return carries
            self.notes = before
            for old, new in zip(carries, joined, strict=True):
                if old.is_view and new.is_data:
                    self.enters(old, node, None)
            carries = joined
        raise RecursionError(
            f"jaxinit.read needs loops whose carries settle within {_MOST_ROUNDS} rounds, got "
            f"{self.describe(node)}. Please report this model."
        )

    def _any_of(self, values: Sequence[Value], node: Node, output: int | None) -> Value:
        """What may be any of these: of branches, or of the rounds of a loop."""
        held = [value for value in values if value.kind != "constant"]
        known = [untagged(value) for value in held if value.is_data]
        if not known:
            return parameters(view for value in held for view in value.views)
        for value in held:
            self.enters(value, node, output)
        dims = combined(known, tuple(map(size_of, known[0].dims)))
        return data(dims, is_real=any(value.is_real for value in known))

    # What rules ask.

    def shape(self, atom: Atom) -> tuple[int, ...]:
        """Shape of a value or a literal."""
        return tuple(self.graph.aval(atom).shape)

    def describe(self, node: Node) -> str:
        """An equation in one line: its primitive and the shapes of its operands."""
        shapes = ", ".join(str(list(self.shape(atom))) for atom in node.inputs)
        return f"{node.primitive} of {shapes}"

    def is_read_once(self, atom: Atom) -> bool:
        """Whether one equation reads a value, and nothing else does."""
        readers = self.neighbours.readers.get(atom, ())
        return len(readers) == 1 and atom not in self.graph.outputs

    def changed(
        self,
        node: Node,
        value: Value,
        change: Callable[[View], View],
        output: int | None = None,
    ) -> Value:
        """A value after an operation on shapes.

        Args:
            node: the operation.
            value: what goes in.
            change: what becomes of a view; may raise `MixedAxesError`.
            output: which result it is; the first where none is given.
        """
        shape = self.shape(node.outputs[0] if output is None else output)
        views = []
        for view in value.views:
            try:
                new = view if view.why else change(view)
                if view.why or tuple(map(size_of, new.dims)) != shape:
                    raise MixedAxesError
            except MixedAxesError:
                if value.is_data:
                    return plain(shape, is_real=value.is_real)
                new = view.unknown(shape, self.describe(node))
            views.append(new)
        return dataclasses.replace(value, views=tuple(dict.fromkeys(views)), product=())

    # What rules note.

    def note(self, view: View, use: Use, why: str | None = None) -> int:
        """Notes a meeting, and returns its number."""
        rounds = math.prod(entry.length for entry in view.taken)
        if use.times is not None and rounds and use.times % rounds == 0:
            use = dataclasses.replace(use, times=use.times // rounds)
        self.notes.meetings.append(Meeting(view.leaf, use, why))
        return len(self.notes.meetings) - 1

    def meets(
        self,
        node: Node,
        view: View,
        role: Role,
        contracted: Sequence[Piece] = (),
        produced: Sequence[Piece] = (),
        batched: Sequence[Piece] = (),
        **changes: Any,
    ) -> int:
        """Notes that a parameter meets data, and returns the number of the meeting.

        Args:
            node: the equation.
            view: the parameter.
            role: what it is there; a kernel has fans.
            contracted: pieces of it that are summed over.
            produced: pieces of it that the output has.
            batched: pieces along which the layer repeats; so it does along axes that an index
                dropped or a scan took.
            **changes: other fields of the use.
        """
        shape = self.leaves[view.leaf].shape
        dropped = {axis for axis in view.dropped if shape[axis] > 1}
        scanned = [piece for entry in view.taken for piece in entry.pieces]
        fields: dict[str, Any] = {
            "contracted": axes_of(contracted),
            "produced": axes_of(produced),
            "batched": tuple(sorted(dropped.union(axes_of(batched), axes_of(scanned)))),
            "output": node.outputs[0] if node.outputs else None,
        }
        if role == "kernel":
            fields |= fans(contracted, produced)
        return self.note(view, Use(node.primitive, role, times=node.times, **fields | changes))

    def readable(self, value: Value, node: Node) -> Iterator[View]:
        """The views of a value whose dimensions are known; the others are noted as unknown."""
        for view in value.views if value.is_view else ():
            if view.why is None:
                yield view
            else:
                self.note_unknown(view, node, node.outputs[0])

    def enters(self, value: Value, node: Node, output: int | None) -> None:
        """Notes that parameters become data as they are: tokens, initial states."""
        for view in value.views if value.is_view else ():
            if view.why is not None:
                self.note_unknown(view, node, output)
                continue
            self.meets(node, view, "embedding", produced=view.pieces(), output=output)

    def picks(self, value: Value, node: Node) -> None:
        """Notes parameters that serve as indices; integers, such as counters, are state."""
        for view in value.views if value.is_view else ():
            if not is_integral(self.leaves[view.leaf]):
                self.note_unknown(view, node, node.outputs[0])

    def note_unknown(self, view: View, node: Node, output: int | None) -> None:
        """Notes a meeting that no rule knows."""
        use = Use(node.primitive, "unknown", times=node.times, output=output)
        self.note(view, use, view.why or self.describe(node))


Rule: TypeAlias = Callable[[ParameterDomain, Node, list[Value]], Sequence[Value]]
rules: Rules[Rule] = Rules("reading")


def fans(contracted: Sequence[Piece], produced: Sequence[Piece]) -> dict[str, float]:
    """``fan_in`` and ``fan_out`` of a kernel: terms that are summed, outputs that one input has."""
    return {
        "fan_in": float(math.prod(piece.terms for piece in contracted)),
        "fan_out": float(math.prod(piece.entries for piece in produced)),
    }


def _constants(node: Node, operands: list[Value]) -> list[Value]:
    """Results of an equation on constants; of counters, what makes vectors that are one-hot."""
    name, count = node.primitive, len(node.outputs)
    if is_of(name, Class.REARRANGES) and name not in ("concatenate", "stack"):
        return operands if len(operands) == count else operands[:1] * count
    counts = any(value.is_iota for value in operands)
    is_iota = name == "iota" or (counts and name in SUMS)
    is_one_hot = counts and name == "eq"
    return [dataclasses.replace(CONSTANT, is_iota=is_iota, is_one_hot=is_one_hot)] * count


# A cast of bits may put entries together.
@rules("bitcast_convert_type")
def _unknown(domain: ParameterDomain, node: Node, operands: list[Value]) -> list[Value]:
    known = [value for value in operands if value.is_data]
    views = [view for value in operands if value.is_view for view in value.views]
    shapes = [domain.shape(output) for output in node.outputs]
    if not known:
        why = domain.describe(node)
        return [parameters(view.unknown(shape, why) for view in views) for shape in shapes]
    for view in views:
        domain.note_unknown(view, node, node.outputs[0])
    is_real = any(value.is_real for value in known)
    return [plain(shape, is_real=is_real) for shape in shapes]


def _taken(value: Value, loop: int) -> Value:
    """One round's entry of what a scan walks along."""
    if value.is_data:
        return dataclasses.replace(value, views=(value.views[0].with_dims(value.dims[1:]),))
    return parameters(view.one_round(loop) for view in value.views)


def _stacked(value: Value, loop: int, length: int) -> Value:
    """What all rounds of a scan give, along a new leading axis."""
    if value.is_data:
        dims = ((Piece(OTHER, length),), *value.dims)
        return dataclasses.replace(value, views=(View(-1, dims),), product=())
    return parameters(view.all_rounds(loop, length) for view in value.views)
