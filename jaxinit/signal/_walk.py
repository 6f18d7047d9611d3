"""Two runs of a model, round by round: one on laws, one on drawn arrays.

Both are domains of the interpreter of traced programs. `Walk` predicts; `measure` draws, and tells
the second moments of values and of gradients at the same occurrences.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from jaxinit.jaxpr import Cond, Graph, Interpreter, Node, OnArrays, Scan, While, bind, is_key
from jaxinit.signal import _elementwise as _elementwise
from jaxinit.signal import _sums as _sums
from jaxinit.signal._moves import entry, stack
from jaxinit.signal._rules import Aval, apply, is_float, one_of, unknown
from jaxinit.signal._tape import Constant, Discrete, Signal, Tape, Value

# A result of an equation in one run of it: the number of the value, and the rounds of the loops
# around the equation, outermost first.
Occurrence: TypeAlias = tuple[int, tuple[int, ...]]


@dataclasses.dataclass
class Layer:
    """A contraction with a parameter, as it was met.

    Attributes:
        label: path of the parameter, or of both where two are multiplied.
        occurrence: the output, its bias added.
        signal: what is predicted of it.
    """

    label: str
    occurrence: Occurrence
    signal: Signal


class Walk(Interpreter[Value]):
    """Predicts the values of a graph.

    Attributes:
        tape: all signals.
        layers: every layer, in order of execution.
        signals: what is predicted of every value, by its number, one for each round.
    """

    def __init__(self, tape: Tape) -> None:
        self.tape = tape
        self.layers: list[Layer] = []
        self.signals: dict[int, list[Signal]] = {}
        self._without_bias: dict[int, Layer] = {}

    def run(self, graph: Graph, operands: Sequence[Value]) -> list[Value]:
        """Runs a graph, and keeps what goes in."""
        self._keep(graph.inputs, list(operands))
        return super().run(graph, operands)

    def constant(self, value: Any) -> Value:
        """A closed-over array, or the value of a literal; of keys the shape alone is known."""
        keys = hasattr(value, "dtype") and is_key(value)
        return Discrete(tuple(value.shape)) if keys else Constant(np.asarray(value))

    def equation(self, node: Node, operands: list[Value]) -> list[Value]:
        """Applies the rule of the primitive, and notes layers."""
        results = apply(self.tape, node, operands, _avals_of(node))
        self._keep(node.outputs, results)
        if isinstance(results[0], Signal):
            self._note(node, operands, results[0])
        return results

    def scan(self, loop: Scan[Value]) -> list[Value]:
        """Runs every round."""
        results = self.unroll(loop, partial(entry, self.tape), partial(stack, self.tape))
        return self._keep(loop.node.outputs, results)

    def while_loop(self, loop: While[Value]) -> list[Value]:
        """A loop that data end: nothing is known of what it makes."""
        why = "a while loop, whose rounds the data decide"
        results = [unknown(self.tape, why, aval, loop.operands) for aval in _avals_of(loop.node)]
        return self._keep(loop.node.outputs, results)

    def cond(self, choice: Cond[Value]) -> list[Value]:
        """One of several branches, nobody knows which."""
        pairs = zip(_avals_of(choice.node), zip(*choice.results(), strict=True), strict=True)
        results = [one_of(self.tape, cases, aval) for aval, cases in pairs]
        return self._keep(choice.node.outputs, results)

    def _keep(self, numbers: Sequence[int], values: list[Value]) -> list[Value]:
        for number, value in zip(numbers, values, strict=True):
            if isinstance(value, Signal):
                self.signals.setdefault(number, []).append(value)
        return values

    def _note(self, node: Node, operands: Sequence[Value], result: Signal) -> None:
        """Keeps a layer, or the sum of one and its bias."""
        occurrence = node.outputs[0], self.rounds
        label = self.tape.layers.get(result.number)
        if label:
            layer = Layer(label, occurrence, result)
            self.layers.append(layer)
            self._without_bias[result.number] = layer
        signals = [x for x in operands if isinstance(x, Signal)]
        if node.primitive == "add" and len(signals) == 2:
            for output, bias in (signals, signals[::-1]):
                found = self._without_bias.pop(output.number, None) if bias.label else None
                if found is not None:
                    found.signal, found.occurrence = result, occurrence


def _avals_of(node: Node) -> list[Aval]:
    return [variable.aval for variable in node.equation.outvars]


# A function that gets every result, and returns what is used in its place.
_Tap: TypeAlias = Callable[[Occurrence, jax.Array], jax.Array]
_Moments: TypeAlias = dict[Occurrence, float]


class _Tapped(OnArrays):
    """Runs a graph on arrays; results inside of branches and while loops are not tapped."""

    def __init__(self, tap: _Tap) -> None:
        self.tap = tap

    def equation(self, node: Node, operands: list[Any]) -> list[Any]:
        """Binds the equation again."""
        results = bind(node.equation, operands)
        return [
            self.tap((number, self.rounds), value)
            for number, value in zip(node.outputs, results, strict=True)
        ]

    def scan(self, loop: Scan[Any]) -> list[Any]:
        """Runs every round."""
        return self.unroll(loop, lambda value, number: value[number], jnp.stack)

    def while_loop(self, loop: While[Any]) -> Sequence[Any]:
        """Binds the loop whole."""
        return self.equation(loop.node, loop.operands)

    def cond(self, choice: Cond[Any]) -> Sequence[Any]:
        """Binds the choice whole."""
        return self.equation(choice.node, choice.operands)


def measure(
    graph: Graph, operands: Sequence[jax.Array], wanted: Collection[Occurrence], key: jax.Array
) -> tuple[_Moments, _Moments]:
    """Second moments of some values, and of the gradients with respect to them.

    Args:
        graph: what to run.
        operands: its inputs, drawn.
        wanted: which values.
        key: for the gradients of the outputs, standard normal.

    Returns:
        Second moment per entry of the values, and of the gradients, by occurrence; those inside of
        branches and while loops are left out.
    """
    zeros = {
        (number, rounds): jnp.zeros(graph.avals[number].shape, graph.avals[number].dtype)
        for number, rounds in wanted
    }

    def forward(added: dict[Occurrence, jax.Array]) -> tuple[list[Any], dict[Occurrence, Any]]:
        values: dict[Occurrence, Any] = {}

        def tap(occurrence: Occurrence, value: jax.Array) -> jax.Array:
            if occurrence not in added:
                return value
            values[occurrence] = value
            return value + added[occurrence]

        outputs = _Tapped(tap).run(graph, operands)
        return [x for x in outputs if jnp.issubdtype(jnp.result_type(x), np.inexact)], values

    outputs, back, values = jax.vjp(forward, zeros, has_aux=True)
    pairs = zip(jax.random.split(key, len(outputs)), outputs, strict=True)
    (gradients,) = back([jax.random.normal(k, x.shape, x.dtype) for k, x in pairs])
    return _squares(values), _squares({occurrence: gradients[occurrence] for occurrence in values})


def _squares(arrays: dict[Occurrence, jax.Array]) -> _Moments:
    return {
        occurrence: float(jnp.mean(jnp.square(jnp.abs(value).astype(jnp.float32))))
        for occurrence, value in arrays.items()
    }


def draw_input(
    key: jax.Array, aval: Any, moments: tuple[float, float], largest: int | None
) -> jax.Array:
    """Data of the right shape: normal, or integers below ``largest``.

    Args:
        key: for the draw.
        aval: shape and dtype.
        moments: mean and second moment of real numbers.
        largest: the number of rows of the smallest table; None where there is no table.
    """
    if is_float(aval):
        mean, second = moments
        deviation = math.sqrt(max(second - mean**2, 0.0))
        return mean + deviation * jax.random.normal(key, aval.shape, aval.dtype)
    if aval.dtype == np.bool_:
        return jnp.ones(aval.shape, bool)
    if jnp.issubdtype(aval.dtype, np.integer):
        return jax.random.randint(key, aval.shape, 0, largest or 2).astype(aval.dtype)
    return random_keys(key, aval)


def random_keys(key: jax.Array, aval: Any) -> jax.Array:
    """Keys of the right shape."""
    return jax.random.split(key, aval.shape) if aval.shape else key
