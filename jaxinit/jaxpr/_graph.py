"""A traced function as a graph of equations: calls opened, dead code dropped, loops with bodies.

Every value of the whole program, inside loops and branches too, has one number. `trace` makes the
graph of a function, `graph_of` that of a jaxpr. `straighten` lays the bodies of loops and branches
out in line, each once, for analyses that ask what meets what and not how often. `Neighbours` knows
who makes and who reads every value.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias, TypeVar

import jax
import jax.extend.core as jex

from jaxinit.jaxpr._equations import constants_of, counts_of_scan, live_equations, opened

V = TypeVar("V")

# A value by its number, or a `jax.extend.core.Literal`.
Atom: TypeAlias = Any
_CUSTOM = ("custom_jvp_call", "custom_vjp_call")
_WITH_BODIES = ("scan", "cond", "while")


@dataclasses.dataclass(slots=True, eq=False)
class Graph:
    """A program, or the body of a loop or branch.

    Attributes:
        inputs: numbers of its arguments.
        constants: closed-over arrays by number.
        nodes: its equations, in an order that can be run.
        outputs: its results.
        avals: shape and dtype of every value of the whole program, by number.
    """

    inputs: tuple[int, ...]
    constants: Mapping[int, Any]
    nodes: Sequence[Node]
    outputs: tuple[Atom, ...]
    avals: Sequence[Any]

    def aval(self, atom: Atom) -> Any:
        """Shape and dtype of a value or a literal."""
        return self.avals[atom] if isinstance(atom, int) else atom.aval


# Not frozen: an init function of ten thousand layers has a hundred thousand nodes, and a frozen
# dataclass takes three times as long to make.
@dataclasses.dataclass(slots=True, eq=False)
class Node:
    """One equation.

    Attributes:
        primitive: its name. `straighten` adds names of its own: ``enter`` (a value goes into or out
            of a body; several inputs where it is one of them each time around), ``take`` (one entry
            of the leading axis that a scan walks along), ``stack`` (results of all rounds along a
            new leading axis), ``merge`` (results of alternative branches, or of a loop that may not
            run).
        params: its parameters; of a loop with bodies also ``first`` and ``second``, how many
            operands belong to the first two parts that `divided` tells apart.
        inputs: what it reads.
        outputs: numbers of the values it makes.
        bodies: of a ``scan`` one; of a ``while`` its condition and its body; of a ``cond`` its
            branches. Inputs and outputs of a scan's body are aligned with those of the node, those
            of a branch with all inputs but the first. Empty where the graph keeps the loop whole.
        calls: names of the functions it was called through, outermost first, such as
            ``("silu", "logistic")``.
        times: how often it runs in one pass; None where data decide.
        equation: the equation it was made from; None for the nodes that `straighten` adds.
        custom: whether one of the calls has a gradient of its own, as `jax.custom_vjp` gives it.
    """

    primitive: str
    params: Mapping[str, Any]
    inputs: tuple[Atom, ...]
    outputs: tuple[int, ...]
    bodies: tuple[Graph, ...] = ()
    calls: tuple[str, ...] = ()
    times: int | None = 1
    equation: Any = None
    custom: bool = False

    @property
    def operand_avals(self) -> list[Any]:
        """Shape and dtype of everything that the equation reads."""
        return [atom.aval for atom in self.equation.invars]


def trace(function: Callable[..., Any], *args: Any, **kwargs: Any) -> tuple[Graph, Any]:
    """Traces a function; nothing is executed and nothing is allocated.

    Args:
        function: what to trace.
        *args: arguments, arrays or ``jax.ShapeDtypeStruct`` of them.
        **kwargs: the same, by name.

    Returns:
        The graph, whose inputs are the flattened arguments, and the tree of shapes that comes out.
    """
    jaxpr, shapes = jax.make_jaxpr(function, return_shape=True)(*args, **kwargs)
    return graph_of(jaxpr), shapes


def graph_of(
    jaxpr: Any,
    *,
    opens: Callable[[Any], Any | None] = opened,
    has_bodies: Callable[[Any], bool] = lambda equation: True,
) -> Graph:
    """The graph of a jaxpr: what its results need, calls opened.

    Args:
        jaxpr: open or closed.
        opens: from an equation to the jaxpr that it calls, whose equations then stand in its place;
            None keeps the equation.
        has_bodies: whether a scan, a while loop or a cond becomes a node with bodies; elsewhere it
            stays an equation like any other.

    Returns:
        The graph. Its arguments and results are those of the jaxpr.
    """
    return _Builder(opens, has_bodies).graph(jaxpr, (), 1)


class _Builder:
    def __init__(
        self, opens: Callable[[Any], Any | None], has_bodies: Callable[[Any], bool]
    ) -> None:
        self.opens, self.has_bodies = opens, has_bodies
        self.avals: list[Any] = []

    def new(self, aval: Any) -> int:
        self.avals.append(aval)
        return len(self.avals) - 1

    def graph(self, jaxpr: Any, calls: tuple[str, ...], times: int | None) -> Graph:
        inputs = tuple(self.new(variable.aval) for variable in jaxpr.invars)
        made = Graph(inputs, {}, [], (), self.avals)
        made.outputs = tuple(
            self._add(made, jaxpr, inputs, [True] * len(jaxpr.outvars), calls, times)
        )
        return made

    def _add(
        self,
        graph: Any,
        jaxpr: Any,
        operands: Sequence[Atom],
        wanted: Sequence[bool],
        calls: tuple[str, ...],
        times: int | None,
    ) -> list[Atom]:
        """Appends the live equations of a jaxpr; returns what stands for its wanted results."""
        numbers: dict[Any, Atom] = dict(zip(jaxpr.invars, operands, strict=True))
        for variable, value in constants_of(jaxpr):
            numbers[variable] = number = self.new(variable.aval)
            graph.constants[number] = value

        def read(atom: Any) -> Atom:
            return atom if isinstance(atom, jex.Literal) else numbers[atom]

        for equation, used in live_equations(jaxpr, wanted)[0]:
            inputs = tuple([read(atom) for atom in equation.invars])
            inner = self.opens(equation)
            if inner is not None:
                name = equation.params.get("name")
                within = (*calls, str(name)) if name else calls
                start = len(graph.nodes)
                results = self._add(graph, inner, inputs, used, within, times)
                if equation.primitive.name in _CUSTOM:
                    for node in graph.nodes[start:]:
                        node.custom = True
                pairs = zip(equation.outvars, results, strict=True)
                numbers.update((variable, atom) for variable, atom in pairs if atom is not None)
                continue
            outputs = tuple([self.new(variable.aval) for variable in equation.outvars])
            numbers.update(zip(equation.outvars, outputs, strict=True))
            graph.nodes.append(self._node(equation, inputs, outputs, calls, times))
        return [
            read(atom) if want else None for atom, want in zip(jaxpr.outvars, wanted, strict=True)
        ]

    def _node(
        self,
        equation: Any,
        inputs: tuple[Atom, ...],
        outputs: tuple[int, ...],
        calls: tuple[str, ...],
        times: int | None,
    ) -> Node:
        name, params = equation.primitive.name, equation.params
        bodies: tuple[Graph, ...] = ()
        if name in _WITH_BODIES and self.has_bodies(equation):
            if name == "scan":
                rounds = None if times is None else times * params["length"]
                bodies = (self.graph(params["jaxpr"], calls, rounds),)
                first, second = counts_of_scan(equation)
                params = {**params, "first": first, "second": second}
            elif name == "cond":
                bodies = tuple(self.graph(branch, calls, None) for branch in params["branches"])
            else:
                both = (params["cond_jaxpr"], params["body_jaxpr"])
                bodies = tuple(self.graph(jaxpr, calls, None) for jaxpr in both)
                first, second = params["cond_nconsts"], params["body_nconsts"]
                params = {**params, "first": first, "second": second}
        return Node(name, params, inputs, outputs, bodies, calls, times, equation)


def divided(node: Node, operands: Sequence[V]) -> tuple[Sequence[V], Sequence[V], Sequence[V]]:
    """Divides what belongs to the inputs of a loop with bodies.

    Returns:
        Three parts. Of a scan: what is the same in every round, what is carried from round to
        round, what is walked along. Of a while loop: constants of its condition, constants of its
        body, what it carries.
    """
    start = node.params["first"]
    stop = start + node.params["second"]
    return operands[:start], operands[start:stop], operands[stop:]


def straighten(graph: Graph) -> Iterator[Node]:
    """All nodes of a graph in one line, those of bodies among them, each once.

    Yields:
        Nodes without bodies. Values move into bodies and out of them by the nodes that `Node`
        names. What a loop carries enters from outside and, by number, from further down: the one
        place where a node reads a value that comes after it.
    """
    for node in graph.nodes:
        if not node.bodies:
            yield node
        elif node.primitive == "scan":
            yield from _straighten_scan(node)
        elif node.primitive == "cond":
            yield from _straighten_cond(node)
        else:
            yield from _straighten_while(node)


def _moves(
    name: str, node: Node, targets: Sequence[int], *sources: Sequence[Atom]
) -> Iterator[Node]:
    """A node for each target, which reads the atoms at the same place of every source."""
    for target, *inputs in zip(targets, *sources, strict=True):
        yield Node(name, node.params, tuple(inputs), (target,), (), node.calls, node.times)


def _straighten_scan(node: Node) -> Iterator[Node]:
    (body,) = node.bodies
    constants, carries, scanned = divided(node, node.inputs)
    inner_constants, inner_carries, entries = divided(node, body.inputs)
    count = len(carries)
    yield from _moves("enter", node, inner_constants, constants)
    yield from _moves("enter", node, inner_carries, carries, body.outputs[:count])
    yield from _moves("take", node, entries, scanned)
    yield from straighten(body)
    yield from _moves("enter", node, node.outputs[:count], body.outputs[:count])
    yield from _moves("stack", node, node.outputs[count:], body.outputs[count:])


def _straighten_cond(node: Node) -> Iterator[Node]:
    for branch in node.bodies:
        yield from _moves("enter", node, branch.inputs, node.inputs[1:])
        yield from straighten(branch)
    yield from _moves("merge", node, node.outputs, *(branch.outputs for branch in node.bodies))


def _straighten_while(node: Node) -> Iterator[Node]:
    condition, body = node.bodies
    of_condition, of_body, carries = divided(node, node.inputs)
    for graph, constants in ((condition, of_condition), (body, of_body)):
        count = len(constants)
        yield from _moves("enter", node, graph.inputs[:count], constants)
        yield from _moves("enter", node, graph.inputs[count:], carries, body.outputs)
        yield from straighten(graph)
    yield from _moves("merge", node, node.outputs, carries, body.outputs)


class Neighbours:
    """Who makes and who reads every value of some nodes.

    Args:
        nodes: those of a graph, or of a graph that was straightened.

    Attributes:
        nodes: the same.
        makers: the node that makes each value, by number.
        readers: the nodes that read each value, in order, by number.
    """

    def __init__(self, nodes: Iterable[Node]) -> None:
        self.nodes = tuple(nodes)
        self.makers: dict[int, Node] = {}
        self.readers: dict[int, list[Node]] = {}
        for node in self.nodes:
            self.makers.update(dict.fromkeys(node.outputs, node))
            for atom in node.inputs:
                if isinstance(atom, int):
                    self.readers.setdefault(atom, []).append(node)

    def before(self, values: Iterable[int], passes: Callable[[Node], bool]) -> set[int]:
        """Values that some are made of by nodes that pass, themselves included."""
        pending = list(values)
        seen = set(pending)
        while pending:
            node = self.makers.get(pending.pop())
            if node is not None and passes(node):
                fresh = [atom for atom in node.inputs if isinstance(atom, int) and atom not in seen]
                seen.update(fresh)
                pending.extend(fresh)
        return seen

    def after(self, value: int, passes: Callable[[Node], bool]) -> Iterator[Node]:
        """Nodes that are reached from a value, nearest first, through nodes that pass.

        A node that reads several values on the way comes once for each.
        """
        pending, seen = [value], {value}
        for number in pending:
            for node in self.readers.get(number, ()):
                yield node
                if passes(node):
                    fresh = [made for made in node.outputs if made not in seen]
                    seen.update(fresh)
                    pending.extend(fresh)
