"""Cutting an activation out of a program, and finding its name.

The equations between the output of a layer and the value that goes on are a small graph of one
input. Run on a new input it is a function like any other; its values on a few dozen points, in
float64, tell which of the known activations it is.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxinit import activations
from jaxinit.jaxpr import (
    PRODUCTS,
    SUMS,
    Atom,
    Class,
    Graph,
    Node,
    OnArrays,
    bind,
    is_of,
    on_numpy,
    trace,
)
from jaxinit.reading._families import Families, Member
from jaxinit.reading._records import Activation

IDENTITY = Activation("identity", lambda x: x)
_POINTS = np.concatenate([np.linspace(-8, 8, 33), [-0.77, -0.31, 0.123, 0.45, 2.2, 5.3]])
# Constants of a traced program are float32, so values agree to about 1e-7 of the largest.
_TOLERANCE = 2e-6


class _NoTwinError(Exception):
    """A primitive that has no twin in NumPy."""


class _OnHost(OnArrays):
    """Runs a function of entries with NumPy, in float64."""

    def equation(self, node: Node, operands: list[Any]) -> Sequence[Any]:
        """The NumPy twin; a move of a single number leaves it what it is."""
        if is_of(node.primitive, Class.REARRANGES):
            return operands
        result = on_numpy(node.primitive, node.params, operands)
        if result is None:
            raise _NoTwinError
        return [result]


class _LikeInput(OnArrays):
    """Runs a function of entries with JAX, in the dtype and the shape of its input."""

    def __init__(self, x: Any) -> None:
        self.x = x

    def equation(self, node: Node, operands: list[Any]) -> Sequence[Any]:
        """Binds the equation to operands that are alike."""
        arrays = [jnp.asarray(value) for value in operands]
        numbers = arrays[1:] if node.primitive == "select_n" else arrays
        if not all(array.dtype == bool for array in numbers):
            numbers = [array.astype(self.x.dtype) for array in numbers]
        which = arrays[: len(arrays) - len(numbers)]
        alike = [jnp.broadcast_to(array, self.x.shape) for array in (*which, *numbers)]
        return bind(node.equation, alike)


@dataclasses.dataclass(frozen=True)
class Function:
    """A function of entries that was cut out of a traced model.

    Attributes:
        graph: the equations, with one input and one output.
    """

    graph: Graph

    def __call__(self, x: Any) -> Any:
        """Values of the function at `x`, with JAX; in the dtype of `x` where that is a float."""
        x = jnp.asarray(x)
        x = x if jnp.issubdtype(x.dtype, jnp.inexact) else x.astype(jnp.result_type(float))
        return _LikeInput(x).run(self.graph, [x])[0]

    def on_host(self, x: np.ndarray) -> np.ndarray | None:
        """Values at `x` in float64, with NumPy; None where a primitive has no twin there."""
        try:
            return np.asarray(_OnHost().run(self.graph, [x])[0], float)
        except _NoTwinError:
            return None

    def key(self) -> Hashable:
        """Equal for functions that compute the same in the same way."""
        graph = self.graph
        numbers = [*graph.inputs, *(node.outputs[0] for node in graph.nodes)]
        names: dict[Atom, Hashable] = {number: f"value {i}" for i, number in enumerate(numbers)}
        names.update(graph.constants)
        return tuple(
            (node.primitive, node.params.get("y"), tuple(names[atom] for atom in node.inputs))
            for node in graph.nodes
        )

    def called(self, is_free: Callable[[str], bool]) -> str:
        """The function that it was called through, else the primitives that it is made of.

        Args:
            is_free: whether a name does not stand for another function.
        """
        calls = zip(*(node.calls for node in self.graph.nodes), strict=False)
        shared = [names[0] for names in calls if len(set(names)) == 1]
        if self.on_host(_POINTS) is not None:  # else its values cannot tell it from the known ones
            shared = list(filter(is_free, shared))
        return shared[-1] if shared else "+".join(node.primitive for node in self.graph.nodes)


class Activations:
    """Activations of a program, each made and named once.

    Args:
        found: the families of the program.
    """

    def __init__(self, found: Families) -> None:
        self.found = found
        self._names: dict[Hashable, str] = {}

    def of(self, member: Member) -> Activation | None:
        """The function from an origin to a member of its family; None where it is no such thing."""
        if not member.is_elementwise:
            return None
        if member.linear:
            return IDENTITY
        graph = _cut(member, self.found)
        if graph is None:
            return None
        function, factor = self._of_argument(graph)
        key = function.key()
        if key not in self._names:
            named = _name_of(function) or self._multiplied(member, function)
            self._names[key] = named or function.called(_is_free)
        return Activation(self._names[key], function, factor)

    def _of_argument(self, graph: Graph) -> tuple[Function, float]:
        """The function of what the origin is multiplied to before it bends, and the factor."""
        place = self._linear_nodes(graph)
        value = graph.nodes[place - 1].outputs if place else graph.inputs
        before = Function(dataclasses.replace(graph, nodes=graph.nodes[:place], outputs=value))
        factor = before.on_host(np.ones(1))
        behind = Function(dataclasses.replace(graph, nodes=graph.nodes[place:], inputs=value))
        return behind, 1.0 if factor is None else float(factor[0])

    def _multiplied(self, member: Member, function: Function) -> str | None:
        """The name of ``a f``: that of ``f``, with the number; None where it is none."""
        graph = _cut(self._core(member), self.found)
        inner = None if graph is None else self._of_argument(graph)[0]
        name = None if inner is None else _name_of(inner)
        if inner is None or name is None:
            return None
        part, whole = inner.on_host(_POINTS), function.on_host(_POINTS)
        if part is None or whole is None:
            return None
        if not np.isfinite(part).all() or not np.isfinite(whole).all():
            return None
        factor = np.vdot(part, whole) / np.vdot(part, part)
        return f"{name}(x) * {factor:.4g}" if _agree(whole, factor * part) else None

    def shared(self, members: Sequence[Member]) -> Activation | None:
        """The one activation that several values are, apart from constants that scale or shift it.

        A gate ``z`` that is used as ``z`` and as ``1 - z`` is one activation.
        """
        for each in (members, [self._core(member) for member in members]):
            found = [self.of(member) for member in each]
            names = {activation.name for activation in found if activation is not None}
            if len(names) == 1 and None not in found:
                return found[0]
        return None

    def argument(self, member: Member) -> int:
        """Number of the last value of a family on all ways to a member that is a multiple of it.

        It is what a nonlinear function is applied to: of ``gelu(x @ a / 16)`` the quotient.
        """
        graph = _cut(member, self.found) if member.is_elementwise else None
        if graph is None:
            return member.number
        place = self._linear_nodes(graph)
        (last,) = graph.nodes[place - 1].outputs if place else graph.inputs
        makers = [self.found.neighbours.makers[node.outputs[0]] for node in graph.nodes]
        # The value itself may have been moved or pooled before it was read.
        reads = [at for node in makers for _, at in self.found.reads(node) if at.value == last]
        return reads[0].number if reads else last

    def _linear_nodes(self, graph: Graph) -> int:
        """How many of its first nodes make the last value on all ways that is a multiple."""
        if _name_of(Function(graph)):
            return 0  # the whole has a name: log_sigmoid(x) is -softplus(-x)
        made, count = set(graph.inputs), 0
        for place, node in enumerate(graph.nodes, 1):
            if node.primitive in SUMS:
                break
            made.update(node.outputs)
            read = {atom for later in graph.nodes[place:] for atom in later.inputs} & made
            if read == {*node.outputs} and self.found.members[node.outputs[0]].linear:
                count = place
        return count

    def _core(self, member: Member) -> Member:
        """What is left of a value without the last scales and shifts by constants."""
        while not member.linear and member.is_elementwise:
            node = self.found.neighbours.makers[member.value]
            held = self.found.reads(node)
            is_affine = node.primitive in SUMS or node.primitive in PRODUCTS
            if not (is_affine or node.primitive == "neg") or len(held) != 1:
                return member
            before = held[0][1]
            if before.linear or before.origin is not member.origin:
                return member
            member = before
        return member


def _cut(member: Member, found: Families) -> Graph | None:
    """The graph from the origin of a value to the value itself.

    Returns:
        The graph; None where a constant in it differs from entry to entry.
    """
    nodes: dict[int, Node] = {}
    constants: dict[int, Any] = {}
    numbers = -1
    pending = [member.value]
    while pending:
        value = pending[-1]
        if value in nodes:
            pending.pop()
            continue
        node = found.neighbours.makers[value]
        if not is_of(node.primitive, Class.ELEMENTWISE):
            return None
        inputs, missing = [], []
        for atom in node.inputs:
            known = found.members.get(atom) if isinstance(atom, int) else None
            if known is not None:
                inputs.append(known.value)
                if known.value not in nodes and known.value != member.origin.value:
                    missing.append(known.value)
                continue
            number = found.number(atom)
            if number is None:
                return None
            # Numbers of the program begin at 0, so constants of the graph have those below.
            constants[numbers] = number
            inputs.append(numbers)
            numbers -= 1
        if missing:
            pending += missing
            continue
        nodes[value] = dataclasses.replace(node, inputs=tuple(inputs))
        pending.pop()
    origin = member.origin.value
    if not nodes:
        return None
    return Graph((origin,), constants, list(nodes.values()), (member.value,), found.graph.avals)


@functools.cache
def _known() -> dict[str, np.ndarray]:
    """Values of the activations of the catalogue at the points of this module."""
    values = {}
    for name in activations.names():
        entry = activations.named(name)
        if entry.inputs == 1:
            graph, _ = trace(entry.function, jax.ShapeDtypeStruct((), np.float32))
            values[name] = Function(graph).on_host(_POINTS)
    return values


def _is_free(name: str) -> bool:
    """Whether no known activation has a name."""
    try:
        activations.named(name)
    except ValueError:
        return True
    return False


def _name_of(function: Function) -> str | None:
    """The known activation with the values of a function, None where none fits."""
    values = function.on_host(_POINTS)
    return None if values is None else name_of_values(values)


def name_of_values(values: np.ndarray) -> str | None:
    """The known activation with these values at the points of this module, None where none fits."""
    for name, known in _known().items():
        if _agree(values, known):
            return name
    return _with_slope(values)


def _agree(values: np.ndarray, known: np.ndarray) -> bool:
    if values.shape != known.shape or not np.isfinite(values).all():
        return False
    return bool(np.max(np.abs(values - known) / (1 + np.abs(known))) < _TOLERANCE)


def _with_slope(values: np.ndarray) -> str | None:
    """A leaky ReLU, an ELU or a CELU, by what its values below zero say."""
    x, below = _POINTS, np.minimum(_POINTS, 0)
    lowest = values[0]
    if _agree(values, np.where(x > 0, x, -lowest / 8 * x)):
        return _call("leaky_relu", -lowest / 8)
    if lowest >= 0:
        return None
    alpha = lowest / math.expm1(-8)
    if _agree(values, np.where(x > 0, x, alpha * np.expm1(below))):
        return _call("elu", alpha)
    alpha = -lowest
    for _ in range(50):
        # -lowest = alpha (1 - exp(-8 / alpha)), solved by its fixed point.
        alpha = lowest / math.expm1(-8 / alpha)
    is_celu = _agree(values, np.where(x > 0, x, alpha * np.expm1(below / alpha)))
    return _call("celu", alpha) if is_celu else None


def _call(name: str, number: float) -> str:
    return f"{name}({float(f'{number:.5g}'):g})"
