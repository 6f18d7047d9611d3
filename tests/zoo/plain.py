"""Models in plain JAX: a decorator enters a function of a dict of parameters into the zoo."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from zoo.expect import Case, Leaf, array

CASES: dict[str, Callable[[], Case]] = {}


def model(
    parameters: Mapping[str, tuple[int, ...] | jax.ShapeDtypeStruct],
    *inputs: jax.ShapeDtypeStruct,
    **table: Leaf,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Enters a function of a dict of parameters; the name in the table is its name in words."""

    def enter(apply: Callable[..., Any]) -> Callable[..., Any]:
        variables = {
            name: array(*one) if isinstance(one, tuple) else one for name, one in parameters.items()
        }
        name = apply.__name__.strip("_").replace("_", " ")
        CASES[name] = lambda: Case(apply, variables, inputs, table)
        return apply

    return enter


def normed(x):
    return (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-6)


def unit(w, axis):
    return w / jnp.sqrt((w * w).sum(axis, keepdims=True) + 1e-6)
