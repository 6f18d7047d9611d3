"""One interpreter for graphs: what runs them knows arrays, shapes, laws or zeros, and no loops.

An analysis is a domain of values: a subclass of `Interpreter` that says what a closed-over array is
and what an equation makes of its operands. How operands divide between the condition, the body and
the rounds of a loop is written here, once. A domain chooses what a loop means to it: `unroll` runs
a scan round by round, `stage` hands loops to ``jax.lax`` again, and a domain of its own may repeat
a body until what it carries changes no more.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

import jax

from jaxinit.jaxpr._graph import Atom, Graph, Node, divided

V = TypeVar("V")


@dataclasses.dataclass(frozen=True, slots=True)
class Scan(Generic[V]):
    """A scan, ready to run.

    Attributes:
        node: the equation.
        carries: what the first round gets.
        scanned: what all rounds walk along, one leading axis more than a round sees.
        body: one round, from carries and entries of what is scanned to carries and results.
    """

    node: Node
    carries: list[V]
    scanned: list[V]
    body: Callable[[Sequence[V], Sequence[V]], tuple[list[V], list[V]]]

    @property
    def length(self) -> int:
        """Number of rounds."""
        return self.node.params["length"]


@dataclasses.dataclass(frozen=True, slots=True)
class While(Generic[V]):
    """A while loop, ready to run.

    Attributes:
        node: the equation.
        operands: all that it reads.
        carries: what the first round gets.
        condition: from carries to whether there is one more round.
        body: one round, from carries to carries.
    """

    node: Node
    operands: list[V]
    carries: list[V]
    condition: Callable[[Sequence[V]], V]
    body: Callable[[Sequence[V]], list[V]]


@dataclasses.dataclass(frozen=True, slots=True)
class Cond(Generic[V]):
    """A choice between branches, ready to run.

    Attributes:
        node: the equation.
        operands: all that it reads: which branch is taken, and what each branch gets.
        branches: from what each branch gets to results.
    """

    node: Node
    operands: list[V]
    branches: tuple[Callable[[Sequence[V]], list[V]], ...]

    def results(self) -> list[list[V]]:
        """Results of every branch."""
        return [branch(self.operands[1:]) for branch in self.branches]


class Interpreter(Generic[V]):
    """Runs graphs on values of one domain.

    Attributes:
        rounds: which round of the loops around the equation at hand, outermost first; kept by
            `unroll`.
    """

    rounds: tuple[int, ...] = ()

    def constant(self, value: Any) -> V:
        """What a closed-over array or the value of a literal is in this domain."""
        raise NotImplementedError

    def equation(self, node: Node, operands: list[V]) -> Sequence[V]:
        """The results of a node without bodies."""
        raise NotImplementedError

    def scan(self, loop: Scan[V]) -> Sequence[V]:
        """The results of a scan: carries, then stacked results."""
        raise NotImplementedError

    def while_loop(self, loop: While[V]) -> Sequence[V]:
        """The results of a while loop: its carries."""
        raise NotImplementedError

    def cond(self, choice: Cond[V]) -> Sequence[V]:
        """The results of a choice between branches."""
        raise NotImplementedError

    def run(self, graph: Graph, operands: Sequence[V]) -> list[V]:
        """Runs a graph.

        Args:
            graph: the program, or the body of a loop or branch.
            operands: what its arguments are.

        Returns:
            What its results are.
        """
        values = {number: self.constant(array) for number, array in graph.constants.items()}
        values.update(zip(graph.inputs, operands, strict=True))
        self.run_nodes(graph.nodes, values)
        return [self.read(atom, values) for atom in graph.outputs]

    def run_nodes(self, nodes: Sequence[Node], values: dict[int, V]) -> None:
        """Runs nodes in order, from the values of their inputs into those of their outputs."""
        for node in nodes:
            operands = [self.read(atom, values) for atom in node.inputs]
            results = self._step(node, operands) if node.bodies else self.equation(node, operands)
            values.update(zip(node.outputs, results, strict=True))

    def read(self, atom: Atom, values: dict[int, V]) -> V:
        """What a value or a literal is."""
        return values[atom] if isinstance(atom, int) else self.constant(atom.val)

    def _step(self, node: Node, operands: list[V]) -> Sequence[V]:
        if node.primitive == "scan":
            return self.scan(self._scan_of(node, operands))
        if node.primitive == "while":
            return self.while_loop(self._while_of(node, operands))
        branches = tuple(
            lambda operands, body=body: self.run(body, operands) for body in node.bodies
        )
        return self.cond(Cond(node, operands, branches))

    def _scan_of(self, node: Node, operands: list[V]) -> Scan[V]:
        (graph,) = node.bodies
        constants, carries, scanned = divided(node, operands)

        def body(carries: Sequence[V], entries: Sequence[V]) -> tuple[list[V], list[V]]:
            results = self.run(graph, [*constants, *carries, *entries])
            return results[: len(carries)], results[len(carries) :]

        return Scan(node, list(carries), list(scanned), body)

    def _while_of(self, node: Node, operands: list[V]) -> While[V]:
        condition, body = node.bodies
        of_condition, of_body, carries = divided(node, operands)
        return While(
            node,
            operands,
            list(carries),
            lambda carries: self.run(condition, [*of_condition, *carries])[0],
            lambda carries: self.run(body, [*of_body, *carries]),
        )

    def unroll(
        self, loop: Scan[V], take: Callable[[V, int], V], stack: Callable[[list[V]], V]
    ) -> list[V]:
        """Runs a scan round by round.

        Args:
            loop: the scan.
            take: one entry of the leading axis of what is scanned, by its number.
            stack: results of all rounds along a new leading axis.
        """
        carries, outer = list(loop.carries), self.rounds
        results: dict[int, list[V]] = {}
        order = range(loop.length)
        for number in reversed(order) if loop.node.params["reverse"] else order:
            self.rounds = (*outer, number)
            entries = [take(value, number) for value in loop.scanned]
            carries, results[number] = loop.body(carries, entries)
        self.rounds = outer
        columns = zip(*(results[number] for number in order), strict=True)
        return [*carries, *(stack(list(column)) for column in columns)]


class OnArrays(Interpreter[Any]):
    """Runs graphs on arrays or tracers: equations are bound again, loops staged by ``jax.lax``."""

    def constant(self, value: Any) -> Any:
        """The array itself."""
        return value

    def equation(self, node: Node, operands: list[Any]) -> Sequence[Any]:
        """Binds the equation again."""
        return bind(node.equation, operands)

    def scan(self, loop: Scan[Any]) -> Sequence[Any]:
        """Stages the loop."""
        params = loop.node.params
        options = {name: params[name] for name in ("length", "reverse", "unroll")}
        carries, stacked = jax.lax.scan(loop.body, loop.carries, loop.scanned, **options)
        return [*carries, *stacked]

    def while_loop(self, loop: While[Any]) -> Sequence[Any]:
        """Stages the loop."""
        return jax.lax.while_loop(loop.condition, loop.body, loop.carries)

    def cond(self, choice: Cond[Any]) -> Sequence[Any]:
        """Stages the choice."""
        branches = [lambda *operands, run=run: run(operands) for run in choice.branches]
        return jax.lax.switch(choice.operands[0], branches, *choice.operands[1:])


def bind(equation: Any, operands: Sequence[Any]) -> Sequence[Any]:
    """Results of an equation on arrays or tracers, in the context that it was traced in."""
    primitive = equation.primitive
    with equation.ctx.manager:
        results = primitive.bind(*operands, **primitive.get_bind_params(equation.params))
    return results if primitive.multiple_results else [results]
