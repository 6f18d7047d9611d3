"""A traced function as a graph of equations: calls opened, dead code dropped, loops with bodies.

Every value of the whole program, inside loops and branches too, has one number. `trace` makes the
graph; `straighten` lays the bodies of loops and branches out in line, each once, for analyses that
ask what meets what and not how often.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import jax
import jax.extend.core as jex

from jaxinit.jaxpr._equations import constants_of, live_equations, opened, scan_of

# A value by its number, or a `jax.extend.core.Literal`.
Atom: TypeAlias = Any
_CUSTOM = ("custom_jvp_call", "custom_vjp_call")


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
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
    nodes: tuple[Node, ...]
    outputs: tuple[Atom, ...]
    avals: Sequence[Any]


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Node:
    """One equation.

    Attributes:
        primitive: its name. `straighten` adds names of its own: ``enter`` (a value goes into or out
            of a body; several inputs where it is one of them each time around), ``take`` (one entry
            of the leading axis that a scan walks along), ``stack`` (results of all rounds along a
            new leading axis), ``merge`` (results of alternative branches, or of a loop that may not
            run).
        params: its parameters; of a scan ``length``, ``constants`` and ``carries``, of a while loop
            ``condition_constants`` and ``body_constants``.
        inputs: what it reads.
        outputs: numbers of the values it makes.
        bodies: of a ``scan`` one; of a ``while`` its condition and its body; of a ``cond`` its
            branches. Inputs and outputs of a scan's body are aligned with those of the node, those
            of a branch with all inputs but the first.
        calls: names of the functions it was called through, outermost first, such as
            ``("silu", "logistic")``.
        custom: whether one of them has a gradient of its own, as `jax.custom_vjp` gives it.
        times: how often it runs in one pass; None where data decide.
        equation: the equation it was made from; None for the nodes that `straighten` adds.
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
    return _Builder().graph(jaxpr, (), 1), shapes


class _Builder:
    def __init__(self) -> None:
        self.avals: list[Any] = []

    def new(self, aval: Any) -> int:
        self.avals.append(aval)
        return len(self.avals) - 1

    def graph(self, jaxpr: Any, calls: tuple[str, ...], times: int | None) -> Graph:
        inputs = tuple(self.new(variable.aval) for variable in jaxpr.invars)
        constants: dict[int, Any] = {}
        nodes: list[Node] = []
        wanted = [True] * len(jaxpr.outvars)
        outputs = self._add(jaxpr, inputs, wanted, calls, times, constants, nodes)
        return Graph(inputs, constants, tuple(nodes), tuple(outputs), self.avals)

    def _add(
        self,
        jaxpr: Any,
        operands: Sequence[Atom],
        wanted: Sequence[bool],
        calls: tuple[str, ...],
        times: int | None,
        constants: dict[int, Any],
        nodes: list[Node],
    ) -> list[Atom]:
        numbers: dict[Any, Atom] = dict(zip(jaxpr.invars, operands, strict=True))
        for variable, value in constants_of(jaxpr):
            numbers[variable] = number = self.new(variable.aval)
            constants[number] = value

        def read(atom: Any) -> Atom:
            return atom if isinstance(atom, jex.Literal) else numbers[atom]

        for equation, used in live_equations(jaxpr, wanted):
            inputs = tuple(read(atom) for atom in equation.invars)
            inner = opened(equation)
            if inner is not None:
                within = (*calls, name) if (name := _name_of(equation)) else calls
                start = len(nodes)
                results = self._add(inner, inputs, used, within, times, constants, nodes)
                if equation.primitive.name in _CUSTOM:
                    nodes[start:] = [dataclasses.replace(n, custom=True) for n in nodes[start:]]
                pairs = zip(equation.outvars, results, strict=True)
                numbers.update((variable, atom) for variable, atom in pairs if atom is not None)
                continue
            outputs = tuple(self.new(variable.aval) for variable in equation.outvars)
            numbers.update(zip(equation.outvars, outputs, strict=True))
            nodes.append(self._node(equation, inputs, outputs, calls, times))
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
        if name == "scan":
            length = params["length"]
            division = scan_of(equation)
            params = {"length": length, **division._asdict(), "reverse": params["reverse"]}
            rounds = None if times is None else times * length
            bodies = (self.graph(equation.params["jaxpr"], calls, rounds),)
        elif name == "cond":
            bodies = tuple(self.graph(branch, calls, None) for branch in params["branches"])
        elif name == "while":
            both = (params["cond_jaxpr"], params["body_jaxpr"])
            bodies = tuple(self.graph(jaxpr, calls, None) for jaxpr in both)
            params = {
                "condition_constants": params["cond_nconsts"],
                "body_constants": params["body_nconsts"],
            }
        return Node(name, params, inputs, outputs, bodies, calls, times, equation)


def _name_of(equation: Any) -> str:
    """What a call is a call of; empty where that is not said."""
    params = equation.params
    return str(params.get("name") or "")


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


def _move(name: str, inputs: Sequence[Atom], output: int, node: Node) -> Node:
    return Node(name, node.params, tuple(inputs), (output,), (), node.calls, node.times)


def _straighten_scan(node: Node) -> Iterator[Node]:
    (body,) = node.bodies
    constants, carries = node.params["constants"], node.params["carries"]
    for index, (outside, inside) in enumerate(zip(node.inputs, body.inputs, strict=True)):
        if index < constants:
            yield _move("enter", [outside], inside, node)
        elif index < constants + carries:
            yield _move("enter", [outside, body.outputs[index - constants]], inside, node)
        else:
            yield _move("take", [outside], inside, node)
    yield from straighten(body)
    for index, (inside, outside) in enumerate(zip(body.outputs, node.outputs, strict=True)):
        yield _move("enter" if index < carries else "stack", [inside], outside, node)


def _straighten_cond(node: Node) -> Iterator[Node]:
    for branch in node.bodies:
        for outside, inside in zip(node.inputs[1:], branch.inputs, strict=True):
            yield _move("enter", [outside], inside, node)
        yield from straighten(branch)
    for index, outside in enumerate(node.outputs):
        yield _move("merge", [branch.outputs[index] for branch in node.bodies], outside, node)


def _straighten_while(node: Node) -> Iterator[Node]:
    condition, body = node.bodies
    first = node.params["condition_constants"]
    second = first + node.params["body_constants"]
    carried = node.inputs[second:]
    for graph, constants in ((condition, node.inputs[:first]), (body, node.inputs[first:second])):
        count = len(constants)
        for outside, inside in zip(constants, graph.inputs[:count], strict=True):
            yield _move("enter", [outside], inside, node)
        for outside, back, inside in zip(carried, body.outputs, graph.inputs[count:], strict=True):
            yield _move("enter", [outside, back], inside, node)
        yield from straighten(graph)
    for outside, inside, result in zip(carried, body.outputs, node.outputs, strict=True):
        yield _move("merge", [outside, inside], result, node)
