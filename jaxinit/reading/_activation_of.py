"""Cutting an activation out of a program, and finding its name.

The equations between a pre-activation and the value that goes on are a small elementwise program.
Bound again on a new input it is a function like any other; its values on a few dozen points, in
float64, tell which of the known activations it is.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxinit.jaxpr import on_numpy, single_number
from jaxinit.jaxpr._graph import Node
from jaxinit.reading import _primitives as primitives
from jaxinit.reading._families import Families, State
from jaxinit.reading._records import Activation

IDENTITY = Activation("identity", lambda x: x)
_POINTS = np.concatenate([np.linspace(-8, 8, 33), [-0.77, -0.31, 0.123, 0.45, 2.2, 5.3]])
_AFFINE = ("add", "sub", "mul", "div", "neg")
# Constants of a traced program are float32, so values agree to about 1e-7 of the largest.
_TOLERANCE = 2e-6


@dataclasses.dataclass(frozen=True)
class Program:
    """An elementwise program of one input, cut out of a traced model.

    Attributes:
        steps: equations, with operands: ``("input",)``, ``("step", i)`` or ``("number", value)``.
    """

    steps: tuple[tuple[Node, tuple[tuple[Any, ...], ...]], ...]

    def __call__(self, x: Any) -> Any:
        """Values of the function at `x`, with JAX; in the dtype of `x` where that is a float."""
        x = jnp.asarray(x)
        x = x if jnp.issubdtype(x.dtype, jnp.inexact) else x.astype(jnp.result_type(float))

        def bind(node: Node, operands: list[Any]) -> Any:
            if node.primitive == "select_n":
                which, *cases = operands
                full = [_spread(which, x.shape), *_alike(cases, x)]
            else:
                full = _alike(operands, x)
            return node.equation.primitive.bind(*full, **node.equation.params)

        return self._run(x, bind)

    def on_host(self, x: np.ndarray) -> np.ndarray | None:
        """Values at `x` in float64, with NumPy; None where a primitive has no counterpart."""

        def bind(node: Node, operands: list[Any]) -> Any:
            return on_numpy(node.primitive, node.params, operands)

        return self._run(x, bind)

    def _run(self, x: Any, bind: Callable[[Node, list[Any]], Any]) -> Any:
        made: list[Any] = []
        for node, operands in self.steps:
            values = [
                x if kind == "input" else made[rest[0]] if kind == "step" else rest[0]
                for kind, *rest in operands
            ]
            result = bind(node, values)
            if result is None:
                return None
            made.append(result)
        return made[-1]

    def key(self) -> Hashable:
        """Equal for programs that compute the same in the same way."""
        return tuple(
            (node.primitive, node.params.get("y"), operands) for node, operands in self.steps
        )

    def calls(self) -> tuple[str, ...]:
        """Names of the functions that all steps were called through."""
        shared = [node.calls for node, _ in self.steps]
        return tuple(a[0] for a in zip(*shared, strict=False) if len(set(a)) == 1)


def _spread(value: Any, shape: tuple[int, ...]) -> Any:
    return jnp.broadcast_to(jnp.asarray(value), shape)


def _alike(operands: list[Any], x: Any) -> list[Any]:
    """Operands in one dtype and the shape of `x`: truth values where all are, else that of `x`."""
    arrays = [jnp.asarray(value) for value in operands]
    logical = all(array.dtype == bool for array in arrays)
    return [_spread(a if logical else a.astype(x.dtype), x.shape) for a in arrays]


class Activations:
    """Activations of a program, each made and named once.

    Args:
        found: the families of the program.
    """

    def __init__(self, found: Families) -> None:
        self.found = found
        self._made: dict[int, Activation | None] = {}
        self._named: dict[Hashable, str] = {}

    def of(self, state: State) -> Activation | None:
        """The function from an origin to a member of its family; None where it is no such thing."""
        if not state.is_elementwise:
            return None
        if state.linear:
            return IDENTITY
        if state.value not in self._made:
            self._made[state.value] = self._make(state)
        return self._made[state.value]

    def shared(self, states: Sequence[State]) -> Activation | None:
        """The one activation that several values come from, constants that scale or shift it aside.

        A gate ``z`` that is used as ``z`` and as ``1 - z`` is one activation.
        """
        for each in (states, [self._core(state) for state in states]):
            found = [self.of(state) for state in each]
            names = {activation.name for activation in found if activation is not None}
            if len(names) == 1 and None not in found:
                return found[0]
        return None

    def _core(self, state: State) -> State:
        """What is left of a value without the last scales and shifts by constants."""
        while not state.linear and state.is_elementwise:
            node = self.found.producers[state.value]
            held = [a for a in node.inputs if isinstance(a, int) and a in self.found.states]
            if node.primitive not in _AFFINE or len(held) != 1:
                return state
            before = self.found.states[held[0]]
            if before.linear or before.origin is not state.origin:
                return state
            state = before
        return state

    def _make(self, state: State) -> Activation | None:
        program = cut(state, self.found)
        if program is None:
            return None
        key = program.key()
        if key not in self._named:
            self._named[key] = name_of(program)
        return Activation(self._named[key], program)


def cut(state: State, found: Families) -> Program | None:
    """The program from the origin of a value to the value itself.

    Returns:
        The program; None where a constant in it differs from entry to entry.
    """
    origin = state.origin.value
    places: dict[int, int] = {}
    steps: list[tuple[Node, tuple[tuple[Any, ...], ...]]] = []
    pending = [state.value]
    while pending:
        value = pending[-1]
        if value in places:
            pending.pop()
            continue
        node = found.producers[value]
        operands: list[tuple[Any, ...]] = []
        missing: list[int] = []
        for atom in node.inputs:
            known = found.states.get(atom) if isinstance(atom, int) else None
            if known is None:
                number = (
                    found.constants.get(atom) if isinstance(atom, int) else single_number(atom.val)
                )
                if number is None:
                    return None
                operands.append(("number", number))
            elif known.value == origin:
                operands.append(("input",))
            elif known.value in places:
                operands.append(("step", places[known.value]))
            else:
                missing.append(known.value)
        if missing:
            pending += missing
            continue
        if node.primitive not in primitives.ELEMENTWISE:
            return None
        places[value] = len(steps)
        steps.append((node, tuple(operands)))
        pending.pop()
    return Program(tuple(steps)) if steps else None


def name_of(program: Program) -> str:
    """The name that values give, else that of the call, else the primitives it is made of."""
    values = program.on_host(_POINTS)
    name = None if values is None else name_of_values(np.asarray(values, float), program.on_host)
    if name is not None:
        return name
    calls = program.calls()
    return calls[-1] if calls else "+".join(node.primitive for node, _ in program.steps)


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def _relu6(x: np.ndarray) -> np.ndarray:
    return np.clip(x, 0, 6)


def _softplus(x: np.ndarray) -> np.ndarray:
    return np.logaddexp(x, 0)


def _erf(x: np.ndarray) -> np.ndarray:
    return np.vectorize(math.erf, otypes=[float])(x)


def _elu(x: np.ndarray, alpha: float = 1.0) -> np.ndarray:
    return np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0)))


_SELU_ALPHA, _SELU_SCALE = 1.6732632423543772, 1.0507009873554805
_KNOWN: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "identity": lambda x: x,
    "relu": lambda x: np.maximum(x, 0),
    "relu6": _relu6,
    "squared_relu": lambda x: np.maximum(x, 0) ** 2,
    "selu": lambda x: _SELU_SCALE * _elu(x, _SELU_ALPHA),
    "gelu": lambda x: x / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "gelu_exact": lambda x: x / 2 * (1 + _erf(x / math.sqrt(2))),
    "silu": lambda x: x * _sigmoid(x),
    "mish": lambda x: x * np.tanh(_softplus(x)),
    "hard_swish": lambda x: x * _relu6(x + 3) / 6,
    "tanh": np.tanh,
    "hard_tanh": lambda x: np.clip(x, -1, 1),
    "soft_sign": lambda x: x / (1 + np.abs(x)),
    "erf": _erf,
    "arctan": np.arctan,
    "sigmoid": _sigmoid,
    "hard_sigmoid": lambda x: _relu6(x + 3) / 6,
    "log_sigmoid": lambda x: -_softplus(-x),
    "softplus": _softplus,
    "squareplus": lambda x: (x + np.sqrt(x**2 + 4)) / 2,
    "abs": np.abs,
    "square": np.square,
    "cos": np.cos,
    "exp": np.exp,
    "sign": np.sign,
}


def name_of_values(
    values: np.ndarray, function: Callable[[np.ndarray], np.ndarray | None]
) -> str | None:
    """The known activation with these values at the points of this module, None where none fits."""
    for name, known in _KNOWN.items():
        if _agree(values, known(_POINTS)):
            return name
    return _with_slope(values) or _with_frequency(function)


def _agree(values: np.ndarray, known: np.ndarray) -> bool:
    if values.shape != known.shape or not np.isfinite(values).all():
        return False
    return bool(np.max(np.abs(values - known) / (1 + np.abs(known))) < _TOLERANCE)


def _with_slope(values: np.ndarray) -> str | None:
    """A leaky ReLU, an ELU or a CELU, by what its values below zero say."""
    below = values[0]
    slope = -below / 8
    if _agree(values, np.where(_POINTS > 0, _POINTS, slope * _POINTS)):
        return (
            "leaky_relu" if math.isclose(slope, 0.01, rel_tol=1e-5) else _call("leaky_relu", slope)
        )
    alpha = below / math.expm1(-8)
    if alpha > 0 and _agree(values, _elu(_POINTS, alpha)):
        return "elu" if math.isclose(alpha, 1, rel_tol=1e-5) else _call("elu", alpha)
    if below >= 0:
        return None
    alpha = -below
    for _ in range(50):
        # -below = alpha (1 - exp(-8 / alpha)), solved by its fixed point.
        alpha = below / math.expm1(-8 / alpha)
    return _call("celu", alpha) if _agree(values, _celu(_POINTS, alpha)) else None


def _celu(x: np.ndarray, alpha: float) -> np.ndarray:
    return np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0) / alpha))


def _with_frequency(function: Callable[[np.ndarray], np.ndarray | None]) -> str | None:
    """A sine, by its slope at zero."""
    step = 1e-5
    at = function(np.array([step, 2 * step]))
    if at is None or not np.isfinite(at).all():
        return None
    frequency = float(np.asarray(at, float)[0] / step)
    points = _POINTS / 8
    values = function(points)
    if values is None or not frequency:
        return None
    # The slope is known to (w0 step)^2 / 6, so for w0 up to 300 to 2e-6; rounded to four digits.
    frequency = float(f"{frequency:.4g}")
    if np.max(np.abs(values - np.sin(frequency * points))) > 1e-4:
        return None
    return "sin" if frequency == 1 else _call("sin", frequency)


def _call(name: str, number: float) -> str:
    return f"{name}({float(f'{number:.5g}'):g})"
