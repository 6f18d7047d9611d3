"""The measurement beside the prediction: draws of the model, and gradients at the same places."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxinit.jaxpr._graph import Graph, Node
from jaxinit.signal._walk import Place

Tap = Callable[[Place, jax.Array], jax.Array]


def run_graph(graph: Graph, operands: Sequence[Any], tap: Tap) -> list[Any]:
    """Runs a graph on arrays, loops round by round, handing every value to a tap.

    Args:
        graph: what to run.
        operands: its inputs.
        tap: called with the place and the value of every result that is not inside a branch or a
            while loop; what it returns is used in its place.
    """
    return _Runner(tap).run(graph, operands)


class _Runner:
    def __init__(self, tap: Tap) -> None:
        self.tap = tap
        self.round: tuple[int, ...] = ()

    def run(self, graph: Graph, operands: Sequence[Any]) -> list[Any]:
        values: dict[int, Any] = dict(graph.constants)
        values.update(zip(graph.inputs, operands, strict=True))

        def read(atom: Any) -> Any:
            return values[atom] if isinstance(atom, int) else atom.val

        for node in graph.nodes:
            inputs = [read(atom) for atom in node.inputs]
            results = self.scan(node, inputs) if node.primitive == "scan" else _bind(node, inputs)
            for number, value in zip(node.outputs, results, strict=True):
                values[number] = self.tap((number, self.round), value)
        return [read(atom) for atom in graph.outputs]

    def scan(self, node: Node, inputs: list[Any]) -> list[Any]:
        (body,) = node.bodies
        constants, carries = node.params["constants"], node.params["carries"]
        carried = inputs[constants : constants + carries]
        length, outer = node.params["length"], self.round
        stacks: dict[int, list[Any]] = {}
        for number in range(length)[::-1] if node.params["reverse"] else range(length):
            self.round = (*outer, number)
            taken = [x[number] for x in inputs[constants + carries :]]
            results = self.run(body, [*inputs[:constants], *carried, *taken])
            carried, stacks[number] = results[:carries], results[carries:]
        self.round = outer
        columns = zip(*(stacks[number] for number in range(length)), strict=True)
        return [*carried, *(jnp.stack(list(column)) for column in columns)]


def _bind(node: Node, operands: Sequence[Any]) -> Sequence[Any]:
    equation = node.equation
    with equation.ctx.manager:
        parameters = equation.primitive.get_bind_params(equation.params)
        results = equation.primitive.bind(*operands, **parameters)
    return results if equation.primitive.multiple_results else [results]


def measure_once(
    graph: Graph, operands: Sequence[Any], places: Sequence[Place], key: jax.Array
) -> tuple[dict[Place, float], dict[Place, float]]:
    """Second moments of the values at some places, and of the gradients with respect to them.

    Args:
        graph: what to run.
        operands: its inputs, drawn.
        places: where to look.
        key: for the gradients of the outputs, standard normal.

    Returns:
        Second moment per entry of the values, and of the gradients, by place.
    """
    wanted = set(places)
    seen: dict[Place, Any] = {}

    def find(place: Place, value: Any) -> Any:
        if place in wanted:
            seen[place] = jax.ShapeDtypeStruct(value.shape, value.dtype)
        return value

    jax.eval_shape(lambda *arrays: run_graph(graph, arrays, find), *operands)
    zeros = {place: jnp.zeros(value.shape, value.dtype) for place, value in seen.items()}

    def forward(added: dict[Place, jax.Array]) -> tuple[list[Any], dict[Place, Any]]:
        values: dict[Place, Any] = {}

        def tap(place: Place, value: Any) -> Any:
            if place not in added:
                return value
            values[place] = value
            return value + added[place]

        outputs = run_graph(graph, operands, tap)
        return [x for x in outputs if jnp.issubdtype(jnp.result_type(x), np.floating)], values

    outputs, back, values = jax.vjp(forward, zeros, has_aux=True)
    keys = jax.random.split(key, max(len(outputs), 1))
    cotangents = [
        jax.random.normal(k, x.shape, x.dtype) for k, x in zip(keys, outputs, strict=False)
    ]
    (gradients,) = back(cotangents)
    return _squares(values), _squares(gradients)


def _squares(arrays: dict[Place, Any]) -> dict[Place, float]:
    return {
        place: float(jnp.mean(jnp.square(value.astype(jnp.float32))))
        for place, value in arrays.items()
    }


def draw_input(key: jax.Array, aval: Any, largest: int | None = None) -> jax.Array:
    """Data of the right shape: standard normal, or integers below ``largest``."""
    if jnp.issubdtype(aval.dtype, np.floating):
        return jax.random.normal(key, aval.shape, aval.dtype)
    if aval.dtype == np.bool_:
        return jnp.ones(aval.shape, bool)
    if jnp.issubdtype(aval.dtype, np.integer):
        return jax.random.randint(key, aval.shape, 0, largest or 2).astype(aval.dtype)
    return jax.random.split(key, aval.shape) if aval.shape else key
