"""Which parameters no gradient reaches, though an output depends on them.

A gradient stops at whole numbers and truth values, such as the index that ``argmax`` makes, and at
steps such as ``floor``. What `jax.custom_vjp` or `jax.custom_jvp` encloses is taken to pass one.
"""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp

from jaxinit.advice._wiring import Wiring
from jaxinit.jaxpr._graph import Node
from jaxinit.reading._reader import Reading

_STEPS = frozenset({"floor", "ceil", "round", "sign"})


def without_gradient(reading: Reading, wiring: Wiring) -> dict[str, str]:
    """Parameters that reach an output of floats, and none by a way that has a derivative.

    Args:
        reading: a traced model.
        wiring: makers and readers of its values.

    Returns:
        By path, the primitive at which the gradient of each stops. A parameter that an output of
        whole numbers needs is left out: what a model chooses may be trained by other means.
    """
    avals = reading.graph.avals

    def passes(node: Node) -> bool:
        if node.custom:
            return True
        floats = any(jnp.issubdtype(avals[number].dtype, jnp.inexact) for number in node.outputs)
        return floats and node.primitive not in _STEPS

    outputs = {atom for atom in reading.graph.outputs if isinstance(atom, int)}
    floats = {number for number in outputs if jnp.issubdtype(avals[number].dtype, jnp.inexact)}
    live = wiring.made_of(floats, passes) | wiring.made_of(outputs - floats, lambda node: True)
    found = {}
    for parameter in reading:
        number = reading.inputs[parameter.path]
        is_float = jnp.issubdtype(avals[number].dtype, jnp.inexact)
        if not (floats and is_float and parameter.uses) or number in live:
            continue
        stop = _stop(wiring, number, passes)
        if stop is not None:
            found[parameter.path] = stop
    return found


def _stop(wiring: Wiring, value: int, passes: Callable[[Node], bool]) -> str | None:
    """The first node on the way from a value that passes no gradient, where there is one."""
    pending, seen = [value], {value}
    while pending:
        for node in wiring.readers.get(pending.pop(0), ()):
            if not passes(node):
                return node.primitive
            fresh = [number for number in node.outputs if number not in seen]
            seen.update(fresh)
            pending.extend(fresh)
    return None
