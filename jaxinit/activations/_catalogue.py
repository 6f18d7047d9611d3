"""Activations by name: the callables of ``jax.nn`` and ``jax.numpy`` under the names people use."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class Entry:
    """An activation of the catalogue.

    Attributes:
        name: its name, with its parameter where it was named with one.
        function: the callable.
        formula: what it computes, in one line.
        inputs: how many inputs it takes: 2 for gated units.
    """

    name: str
    function: Callable[..., Any]
    formula: str
    inputs: int = 1


def _identity(z: Any) -> Any:
    return z


def _squared_relu(z: Any) -> Any:
    return jnp.square(jax.nn.relu(z))


def _gelu_exact(z: Any) -> Any:
    return jax.nn.gelu(z, approximate=False)


def _gate(function: Callable[[Any], Any], value: Any, gate: Any) -> Any:
    return value * function(gate)


def _gated(function: Callable[[Any], Any]) -> Callable[..., Any]:
    return functools.partial(_gate, function)


_ENTRIES = (
    Entry("identity", _identity, "z"),
    Entry("relu", jax.nn.relu, "max(z, 0)"),
    Entry("leaky_relu", jax.nn.leaky_relu, "max(z, 0.01 z)"),
    Entry("relu6", jax.nn.relu6, "min(max(z, 0), 6)"),
    Entry("squared_relu", _squared_relu, "max(z, 0)^2"),
    Entry("elu", jax.nn.elu, "z above 0, e^z - 1 below"),
    Entry("celu", jax.nn.celu, "z above 0, e^z - 1 below"),
    Entry("selu", jax.nn.selu, "1.0507 z above 0, 1.7581 (e^z - 1) below"),
    Entry("gelu", jax.nn.gelu, "z Phi(z) by a tanh, JAX's default"),
    Entry("gelu_exact", _gelu_exact, "z Phi(z) by erf, torch's default"),
    Entry("silu", jax.nn.silu, "z sigmoid(z)"),
    Entry("mish", jax.nn.mish, "z tanh(softplus(z))"),
    Entry("hard_swish", jax.nn.hard_swish, "z relu6(z + 3) / 6"),
    Entry("tanh", jnp.tanh, "tanh(z)"),
    Entry("hard_tanh", jax.nn.hard_tanh, "min(max(z, -1), 1)"),
    Entry("soft_sign", jax.nn.soft_sign, "z / (1 + |z|)"),
    Entry("erf", jax.lax.erf, "erf(z)"),
    Entry("arctan", jnp.arctan, "arctan(z)"),
    Entry("sigmoid", jax.nn.sigmoid, "1 / (1 + e^-z)"),
    Entry("hard_sigmoid", jax.nn.hard_sigmoid, "relu6(z + 3) / 6"),
    Entry("log_sigmoid", jax.nn.log_sigmoid, "-log(1 + e^-z)"),
    Entry("softplus", jax.nn.softplus, "log(1 + e^z)"),
    Entry("squareplus", jax.nn.squareplus, "(z + sqrt(z^2 + 4)) / 2"),
    Entry("abs", jnp.abs, "|z|"),
    Entry("square", jnp.square, "z^2"),
    Entry("sin", jnp.sin, "sin(z)"),
    Entry("cos", jnp.cos, "cos(z)"),
    Entry("exp", jnp.exp, "e^z"),
    Entry("sign", jnp.sign, "-1, 0 or 1"),
    Entry("swiglu", _gated(jax.nn.silu), "x silu(g)", 2),
    Entry("geglu", _gated(jax.nn.gelu), "x gelu(g)", 2),
    Entry("reglu", _gated(jax.nn.relu), "x relu(g)", 2),
    Entry("glu", _gated(jax.nn.sigmoid), "x sigmoid(g)", 2),
    Entry("bilinear", _gated(_identity), "x g", 2),
)
_BY_NAME = {entry.name: entry for entry in _ENTRIES}
_ALIASES = {
    "linear": "identity",
    "swish": "silu",
    "hard_silu": "hard_swish",
    "softsign": "soft_sign",
    "relu_squared": "squared_relu",
    "relu2": "squared_relu",
    "gelu_tanh": "gelu",
    "gelu_erf": "gelu_exact",
    "logistic": "sigmoid",
    "hardtanh": "hard_tanh",
    "hardswish": "hard_swish",
    "hardsigmoid": "hard_sigmoid",
    "logsigmoid": "log_sigmoid",
}
# Those that take one number, by the name of the argument.
_PARAMETERS = {"leaky_relu": "negative_slope", "elu": "alpha", "celu": "alpha"}
_FORMULAS = {
    "leaky_relu": "max(z, 0) + {0:g} min(z, 0)",
    "elu": "z above 0, {0:g} (e^z - 1) below",
    "celu": "z above 0, {0:g} (e^(z / {0:g}) - 1) below",
}
_CALL = re.compile(r"(\w+)\(\s*(?:\w+\s*=\s*)?(.*?)\s*\)?")


def names() -> tuple[str, ...]:
    """Names of the catalogue, without second spellings such as ``swish``.

    Example:
        >>> names()[:3]
        ('identity', 'relu', 'leaky_relu')
    """
    return tuple(_BY_NAME)


def named(name: str) -> Entry:
    """The activation that a name stands for.

    Args:
        name: a name of the catalogue or a second spelling of one; ``leaky_relu``, ``elu`` and
            ``celu`` may bear their parameter, as in ``"leaky_relu(0.2)"``.

    Returns:
        Name, callable, formula and number of inputs.

    Raises:
        TypeError: when the name is no string.
        ValueError: when there is no such name; the nearest are listed.

    Example:
        >>> named("swish").formula, named("leaky_relu(0.2)").formula
        ('z sigmoid(z)', 'max(z, 0) + 0.2 min(z, 0)')
    """
    if not isinstance(name, str):
        raise TypeError(
            f"activations.named needs a name as a string, got {name!r}. "
            "A callable needs no name: pass it as it is."
        )
    key = name.strip()
    call = _CALL.fullmatch(key)
    if call and _ALIASES.get(call[1], call[1]) in _BY_NAME:
        return _with_parameter(name, _ALIASES.get(call[1], call[1]), call[2])
    key = key.lower().replace("-", "_").replace(" ", "_")
    key = _ALIASES.get(key, key)
    if key not in _BY_NAME:
        every = [*_BY_NAME, *_ALIASES]
        near = difflib.get_close_matches(key, every, 3)
        hint = f"Did you mean {' or '.join(near)}?" if near else f"It has {', '.join(_BY_NAME)}."
        raise ValueError(
            f"activations.named needs a name of the catalogue, got {name!r}. {hint} "
            "Any other function can be passed as a callable."
        )
    return _BY_NAME[key]


def _with_parameter(text: str, key: str, number: str) -> Entry:
    if key not in _PARAMETERS:
        raise ValueError(
            f"activations.named needs {key} without a parameter, got {text!r}. "
            f"Those with one are {', '.join(_PARAMETERS)}; else pass a callable."
        )
    try:
        value = float(number if text.rstrip().endswith(")") else "")
    except ValueError:
        raise ValueError(
            f"activations.named needs {key} with one number, got {text!r}. "
            f"Write for example {key}(0.2)."
        ) from None
    entry = _BY_NAME[key]
    function = functools.partial(entry.function, **{_PARAMETERS[key]: value})
    return Entry(f"{key}({value:g})", function, _FORMULAS[key].format(value))


def entry_of(function: Any) -> Entry | None:
    """The entry whose callable this very object is."""
    return next((entry for entry in _ENTRIES if entry.function is function), None)
