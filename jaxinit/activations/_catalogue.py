"""Activations by name: their callables, and the gains that torch gives them.

The callables are those of ``jax.nn`` and ``jax.numpy`` under the names people use. The numbers of
``torch.nn.init.calculate_gain`` are here for those who port, with what differs.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import math
import re
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class NamedActivation:
    """A name of the catalogue and what it stands for.

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


_CATALOGUE = (
    NamedActivation("identity", _identity, "z"),
    NamedActivation("relu", jax.nn.relu, "max(z, 0)"),
    NamedActivation("leaky_relu", jax.nn.leaky_relu, "max(z, 0.01 z)"),
    NamedActivation("relu6", jax.nn.relu6, "min(max(z, 0), 6)"),
    NamedActivation("squared_relu", _squared_relu, "max(z, 0)^2"),
    NamedActivation("elu", jax.nn.elu, "z above 0, e^z - 1 below"),
    NamedActivation("celu", jax.nn.celu, "z above 0, e^z - 1 below"),
    NamedActivation("selu", jax.nn.selu, "1.0507 z above 0, 1.7581 (e^z - 1) below"),
    NamedActivation("gelu", jax.nn.gelu, "z Phi(z) by a tanh, JAX's default"),
    NamedActivation("gelu_exact", _gelu_exact, "z Phi(z) by erf, torch's default"),
    NamedActivation("silu", jax.nn.silu, "z sigmoid(z)"),
    NamedActivation("mish", jax.nn.mish, "z tanh(softplus(z))"),
    NamedActivation("hard_swish", jax.nn.hard_swish, "z relu6(z + 3) / 6"),
    NamedActivation("tanh", jnp.tanh, "tanh(z)"),
    NamedActivation("hard_tanh", jax.nn.hard_tanh, "min(max(z, -1), 1)"),
    NamedActivation("soft_sign", jax.nn.soft_sign, "z / (1 + |z|)"),
    NamedActivation("erf", jax.lax.erf, "erf(z)"),
    NamedActivation("arctan", jnp.arctan, "arctan(z)"),
    NamedActivation("sigmoid", jax.nn.sigmoid, "1 / (1 + e^-z)"),
    NamedActivation("hard_sigmoid", jax.nn.hard_sigmoid, "relu6(z + 3) / 6"),
    NamedActivation("log_sigmoid", jax.nn.log_sigmoid, "-log(1 + e^-z)"),
    NamedActivation("softplus", jax.nn.softplus, "log(1 + e^z)"),
    NamedActivation("squareplus", jax.nn.squareplus, "(z + sqrt(z^2 + 4)) / 2"),
    NamedActivation("abs", jnp.abs, "|z|"),
    NamedActivation("square", jnp.square, "z^2"),
    NamedActivation("sin", jnp.sin, "sin(z)"),
    NamedActivation("cos", jnp.cos, "cos(z)"),
    NamedActivation("exp", jnp.exp, "e^z"),
    NamedActivation("sign", jnp.sign, "-1, 0 or 1"),
    NamedActivation("swiglu", functools.partial(_gate, jax.nn.silu), "x silu(g)", 2),
    NamedActivation("geglu", functools.partial(_gate, jax.nn.gelu), "x gelu(g)", 2),
    NamedActivation("reglu", functools.partial(_gate, jax.nn.relu), "x relu(g)", 2),
    NamedActivation("glu", functools.partial(_gate, jax.nn.sigmoid), "x sigmoid(g)", 2),
    NamedActivation("bilinear", functools.partial(_gate, _identity), "x g", 2),
)
_BY_NAME = {known.name: known for known in _CATALOGUE}
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


def named(name: str) -> NamedActivation:
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
        near = difflib.get_close_matches(key, [*_BY_NAME, *_ALIASES], 3)
        raise ValueError(
            f"activations.named needs a name of the catalogue, got {name!r}. "
            f"{_hint(near, _BY_NAME)} Any other function can be passed as a callable."
        )
    return _BY_NAME[key]


def _with_parameter(text: str, key: str, number: str) -> NamedActivation:
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
    function = functools.partial(_BY_NAME[key].function, **{_PARAMETERS[key]: value})
    return NamedActivation(f"{key}({value:g})", function, _FORMULAS[key].format(value))


def known_as(function: Any) -> NamedActivation | None:
    """What the catalogue says of this very callable, None where it lacks it."""
    return next((known for known in _CATALOGUE if known.function is function), None)


def _hint(near: list[str], every: Iterable[str]) -> str:
    """The names that were probably meant, else all of them."""
    return f"Did you mean {' or '.join(near)}?" if near else f"It has {', '.join(every)}."


_PREFIX = "torch:"
_TORCH_CALL = re.compile(r"(\w+)(?:\(\s*([-+.\deE]+)\s*\))?")
_LINEAR = "the same: a linear layer keeps the second moment at gain 1"
_SAME = "the same: 1 / sqrt(E f^2)"
_TORCH_LAYERS = (
    "linear", "conv1d", "conv2d", "conv3d",
    "conv_transpose1d", "conv_transpose2d", "conv_transpose3d",
)  # fmt: skip

# Name in torch, name here, number (None: from the slope), what differs. Read in the documentation
# of torch.nn.init.calculate_gain.
_TORCH_GAINS: dict[str, tuple[str, float | None, str]] = {
    **dict.fromkeys(_TORCH_LAYERS, ("identity", 1.0, _LINEAR)),
    "sigmoid": (
        "sigmoid",
        1.0,
        "assigned, not derived: 1.84622855 keeps the second moment, and no gain keeps gradients",
    ),
    "tanh": (
        "tanh",
        5 / 3,
        "tuned by hand: 1.59253742 keeps the second moment; at 5/3 it settles at variance 1.1785 "
        "and gradients grow by 1.21 per layer (chaotic phase)",
    ),
    "relu": ("relu", math.sqrt(2), _SAME),
    "leaky_relu": ("leaky_relu", None, _SAME),
    "selu": (
        "selu",
        0.75,
        "tuned by hand near the edge of chaos: 1 is the gain at which SELU normalises itself",
    ),
}


@dataclasses.dataclass(frozen=True)
class TorchGain:
    """A number of torch.

    Attributes:
        name: the nonlinearity as torch names it.
        gain: what ``torch.nn.init.calculate_gain`` gives.
        ours: the same activation in our catalogue.
        difference: how it compares with `gain`.
    """

    name: str
    gain: float
    ours: str
    difference: str

    def __str__(self) -> str:
        return f"torch {self.name}: {self.gain:.9g}; {self.difference}."


def is_torch_name(name: str) -> bool:
    """Whether a name asks for the number of torch, as ``"torch:tanh"`` does."""
    return name.strip().startswith(_PREFIX)


def torch_gain(name: str) -> TorchGain:
    """The gain that torch gives a nonlinearity, and how it differs from ours.

    Args:
        name: a name of ``torch.nn.init.calculate_gain``, with or without ``torch:`` before it;
            ``leaky_relu`` may bear its slope, as in ``"leaky_relu(0.2)"``.

    Returns:
        The number, our name for the activation, and what differs.

    Raises:
        TypeError: when the name is no string.
        ValueError: when torch has no gain for it.

    Example:
        >>> torch_gain("selu").gain
        0.75
    """
    if not isinstance(name, str):
        raise TypeError(
            f"activations.torch_gain needs a name as a string, got {name!r}. "
            "torch has numbers for names only; activations.gain takes callables."
        )
    text = name.strip().removeprefix(_PREFIX).strip()
    call = _TORCH_CALL.fullmatch(text)
    key = call[1] if call else text
    if key not in _TORCH_GAINS or not call or (call[2] and key != "leaky_relu"):
        near = difflib.get_close_matches(key, _TORCH_GAINS, 3)
        raise ValueError(
            f"activations.torch_gain needs a name that torch has a gain for, got {name!r}. "
            f"{_hint(near, _TORCH_GAINS)} activations.gain computes that of any activation."
        )
    ours, number, difference = _TORCH_GAINS[key]
    if number is None:
        slope = float(call[2]) if call[2] else 0.01
        return TorchGain(text, math.sqrt(2 / (1 + slope**2)), f"{ours}({slope:g})", difference)
    return TorchGain(text, number, ours, difference)


def torch_gain_of(ours: str) -> TorchGain | None:
    """The number of torch for an activation of our catalogue; None where torch raises an error."""
    if ours == "identity":
        return torch_gain("linear")
    try:
        return torch_gain(ours)
    except ValueError:
        return None
