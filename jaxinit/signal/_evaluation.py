"""Values and slopes of elementwise primitives at the nodes of tables: those of JAX in float64."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxinit.jaxpr._graph import Node
from jaxinit.signal import _tables as tables


def evaluate(
    node: Node, arrays: Sequence[np.ndarray]
) -> tuple[np.ndarray, Sequence[np.ndarray | None]]:
    """Values of a primitive, and its slope in each operand; None where it has none."""
    simple = _SIMPLE.get(node.primitive)
    if simple is not None:
        return simple(*arrays)
    shape = np.broadcast_shapes(*(x.shape for x in arrays))
    full = [np.broadcast_to(x, shape) for x in arrays]
    if node.primitive == "select_n":
        which = np.asarray(full[0], dtype=int)
        table = np.choose(which, full[1:])
        return table, [None, *((which == i).astype(float) for i in range(len(full) - 1))]
    with jax.enable_x64(True), jax.default_device(jax.local_devices(backend="cpu")[0]):
        return _bind(node, full)


def _bind(node: Node, arrays: Sequence[np.ndarray]) -> tuple[np.ndarray, list[np.ndarray | None]]:
    primitive, params = node.equation.primitive, node.equation.params
    logical = node.primitive in ("and", "or", "not", "xor")
    arrays = [x.astype(bool) if logical else x.astype(float) for x in arrays]
    values = [jnp.asarray(x) for x in arrays]

    def run(*operands: Any) -> Any:
        return primitive.bind(*operands, **params)

    first = run(*values)
    if not jnp.issubdtype(first.dtype, np.floating):
        return np.asarray(first, dtype=float), [None] * len(arrays)
    slopes: list[np.ndarray | None] = []
    for index, value in enumerate(values):

        def only(x: Any, index: int = index) -> Any:
            return run(*values[:index], x, *values[index + 1 :])

        slopes.append(np.asarray(jax.jvp(only, (value,), (jnp.ones_like(value),))[1]))
    return np.asarray(first), slopes


def _product(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, list[np.ndarray | None]]:
    return a * b, [b, a]


# The commonest, without a compilation.
_SIMPLE: dict[str, Callable[..., tuple[np.ndarray, list[np.ndarray | None]]]] = {
    "add": lambda a, b: (a + b, [np.ones(tables.ROWS), np.ones(tables.ROWS)]),
    "add_any": lambda a, b: (a + b, [np.ones(tables.ROWS), np.ones(tables.ROWS)]),
    "sub": lambda a, b: (a - b, [np.ones(tables.ROWS), -np.ones(tables.ROWS)]),
    "mul": _product,
    "neg": lambda a: (-a, [-np.ones(tables.ROWS)]),
    "square": lambda a: (a * a, [2 * a]),
    "ge": lambda a, b: ((a >= b).astype(float), [None, None]),
    "gt": lambda a, b: ((a > b).astype(float), [None, None]),
    "le": lambda a, b: ((a <= b).astype(float), [None, None]),
    "lt": lambda a, b: ((a < b).astype(float), [None, None]),
}
