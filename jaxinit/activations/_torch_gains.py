"""The numbers of ``torch.nn.init.calculate_gain``, for those who port, and what differs."""

from __future__ import annotations

import dataclasses
import difflib
import math
import re

_PREFIX = "torch:"
_CALL = re.compile(r"(\w+)(?:\(\s*([-+.\deE]+)\s*\))?")
_LINEAR = "the same: a linear map keeps the second moment at gain 1"
_SAME = "the same: 1 / sqrt(E f^2)"

# Name in torch, name here, number (None: from the slope), what differs. Read in the documentation
# of torch.nn.init.calculate_gain.
_TABLE: dict[str, tuple[str, float | None, str]] = {
    "linear": ("identity", 1.0, _LINEAR),
    "conv1d": ("identity", 1.0, _LINEAR),
    "conv2d": ("identity", 1.0, _LINEAR),
    "conv3d": ("identity", 1.0, _LINEAR),
    "conv_transpose1d": ("identity", 1.0, _LINEAR),
    "conv_transpose2d": ("identity", 1.0, _LINEAR),
    "conv_transpose3d": ("identity", 1.0, _LINEAR),
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
    call = _CALL.fullmatch(text)
    key = call[1] if call else text
    if key not in _TABLE or not call or (call[2] and key != "leaky_relu"):
        near = difflib.get_close_matches(key, _TABLE, 3)
        hint = f"Did you mean {' or '.join(near)}?" if near else f"It has {', '.join(_TABLE)}."
        raise ValueError(
            f"activations.torch_gain needs a name that torch has a gain for, got {name!r}. {hint} "
            "activations.gain computes that of any activation."
        )
    ours, number, difference = _TABLE[key]
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
