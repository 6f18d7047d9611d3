"""Which zero parameters can never move: the gradient of each is a product with another zero.

Values are followed through the traced model knowing only whether they are exactly zero. A gradient
reaches a parameter when some way to an output multiplies it with nothing that is zero. What gets
one is no longer zero after the first step; what is left when nothing changes any more is stuck.
"""

from __future__ import annotations

from collections.abc import Collection

from jaxinit.advice._wiring import Wiring
from jaxinit.jaxpr._graph import Node
from jaxinit.reading._reader import Reading

_PRODUCTS = frozenset({"mul", "dot_general", "conv_general_dilated", "ragged_dot_general"})
_SUMS = frozenset({"add", "add_any", "sub", "concatenate", "stack", "enter", "merge", "max", "min"})
# Unary functions that are 0 at 0; all others are taken to be something else there.
_THROUGH_ZERO = frozenset(
    {
        "neg", "tanh", "sin", "tan", "sinh", "asin", "atan", "asinh", "erf", "sign", "abs", "sqrt",
        "square", "integer_pow", "expm1", "log1p", "convert_element_type", "reshape", "transpose",
        "squeeze", "broadcast_in_dim", "slice", "dynamic_slice", "reduce_sum", "reduce_max",
        "reduce_min", "cumsum", "rev", "copy", "take", "gather", "split", "reduce_precision",
        "stop_gradient", "optimization_barrier", "sharding_constraint", "reduce_window_sum",
        "real", "imag", "pad",
    }
)  # fmt: skip


def stuck(reading: Reading, zero: Collection[str]) -> tuple[str, ...]:
    """Zero parameters that no amount of training moves.

    Args:
        reading: a traced model.
        zero: paths of the parameters that are exactly zero.

    Returns:
        Those that stay so, in the order of the tree.
    """
    left = set(zero)
    wiring = Wiring(reading.graph)
    while left:
        live = _live(wiring, reading, left)
        moving = {path for path in left if reading.inputs[path] in live}
        if not moving:
            break
        left -= moving
    return tuple(path for path in reading.paths if path in left)


def _live(wiring: Wiring, reading: Reading, zero: Collection[str]) -> set[int]:
    """Values that a gradient reaches while these parameters are zero."""
    nothing = {reading.inputs[path] for path in zero}
    for node in wiring.nodes:
        if _is_nothing(node, nothing):
            nothing.update(node.outputs)
    live = {atom for atom in reading.graph.outputs if isinstance(atom, int)}
    while True:  # again until what loops carry back has been seen
        before = len(live)
        for node in reversed(wiring.nodes):
            if live.intersection(node.outputs):
                live.update(_reached(node, nothing))
        if len(live) == before:
            return live


def _is_nothing(node: Node, nothing: Collection[int]) -> bool:
    """Whether all that a node makes is exactly zero."""
    inputs = [_is_zero(atom, nothing) for atom in node.inputs]
    name = node.primitive
    if not inputs:
        return False
    if name in _PRODUCTS:
        return any(inputs)
    if name == "div":
        return inputs[0]
    if name == "select_n":
        return all(inputs[1:])
    if name == "enter":
        # What a loop carries back comes later in the line, and is zero if all else is.
        return inputs[0] and len(inputs) == 1
    if name in _SUMS:
        return all(inputs)
    return name in _THROUGH_ZERO and inputs[0]


def _is_zero(atom: object, nothing: Collection[int]) -> bool:
    if isinstance(atom, int):
        return atom in nothing
    value = getattr(atom, "val", None)
    try:
        return bool(value == 0)
    except (TypeError, ValueError):
        return False


def _meets_zero(node: Node, nothing: Collection[int]) -> bool:
    return any(atom in nothing for atom in node.inputs if isinstance(atom, int))


def _reached(node: Node, nothing: Collection[int]) -> list[int]:
    """Inputs that a gradient at the outputs of a node goes on to."""
    if node.primitive == "max" and "relu" in node.calls and _meets_zero(node, nothing):
        return []  # jax.nn.relu has slope 0 at 0
    if node.primitive not in _PRODUCTS or len(node.inputs) != 2:
        return [atom for atom in node.inputs if isinstance(atom, int)]
    first, second = node.inputs
    reached = []
    if isinstance(first, int) and not _is_zero(second, nothing):
        reached.append(first)
    if isinstance(second, int) and not _is_zero(first, nothing):
        reached.append(second)
    return reached
