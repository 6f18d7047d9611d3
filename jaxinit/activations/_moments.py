"""What an activation does to a Gaussian: its moments, and the gains that undo it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Literal

import numpy as np

from jaxinit._table import render_table
from jaxinit.activations._catalogue import is_torch_name, torch_gain
from jaxinit.activations._function import Activation, Function, as_function, as_positive
from jaxinit.activations._quadrature import SECOND, measure, tidy

Mode = Literal["forward", "backward", "average"]


@dataclasses.dataclass(frozen=True)
class Moments:
    """What comes out of an activation when N(0, variance) goes in.

    Attributes:
        name: of the activation.
        variance: variance q of each input.
        mean: E f.
        second_moment: E f^2, the length that is passed on.
        derivative_second_moment: E f'^2, the factor on the second moment of gradients, summed over
            the inputs of a gated unit; infinite where the function jumps.
        length_slope: d E f^2 / dq.
        jumps: arguments at which the function jumps; its derivative there is not what JAX says.
        error: estimate of the relative error of the numbers.
    """

    name: str
    variance: float
    mean: float
    second_moment: float
    derivative_second_moment: float
    length_slope: float
    jumps: tuple[float, ...] = ()
    error: float = 0.0

    @property
    def forward_gain(self) -> float:
        """Standard deviation of weights, times sqrt(fan_in), that passes the variance on."""
        return math.sqrt(self._growth) if self.second_moment else math.inf

    @property
    def _growth(self) -> float:
        """Square of the forward gain; not a number for a function that is zero."""
        return self.variance / self.second_moment if self.second_moment else math.nan

    @property
    def chi1(self) -> float:
        """Growth of the second moment of gradients per layer at the forward gain."""
        return self._growth * self.derivative_second_moment

    @property
    def slope(self) -> float:
        """Slope of the length map at the forward gain: above 1 the length runs away."""
        return self._growth * self.length_slope

    @property
    def is_unstable(self) -> bool:
        """Whether small deviations of the length grow from layer to layer at the forward gain."""
        return self.slope > 1 + 1e-9

    def __str__(self) -> str:
        rows = {
            "E f": self.mean,
            "E f^2": self.second_moment,
            "E f'^2": self.derivative_second_moment,
            "forward gain": self.forward_gain,
            "chi1 at that gain": self.chi1,
            "Q' at that gain": self.slope,
        }
        lines = [quantity_table(f"{self.name} at variance {self.variance:g}", rows)]
        if note := slope_note(self):
            lines.append(note)
        return "\n".join(lines)


def quantity_table(title: str, rows: Mapping[str, float | str | None], digits: int = 9) -> str:
    """A table of names and numbers; None reads as "none", and text stays what it is."""
    written = [
        (name, value or "none" if isinstance(value, str | None) else f"{value:.{digits}g}")
        for name, value in rows.items()
    ]
    return render_table(["quantity", "value"], written, title=title)


def slope_note(known: Moments) -> str:
    """Why E f'^2 is infinite, in a sentence; empty where it is not."""
    if known.jumps:
        places = ", ".join(f"{place:.4g}" for place in known.jumps[:4])
        more = ", ..." if len(known.jumps) > 4 else ""
        return (
            f"It jumps at {places}{more}: E f'^2 is infinite, while jax.grad passes the jump over "
            "and sees only the slope beside it."
        )
    if math.isinf(known.derivative_second_moment):
        return "Its slope is so steep at some place that E f'^2 is infinite."
    return ""


def moments(fn: Activation, *, variance: float = 1.0, inputs: int | None = None) -> Moments:
    r"""Mean, second moment and slopes of an activation fed with a Gaussian.

    Law: with :math:`z \sim N(0, q)`, the mean :math:`E f(z)`, the second moment
    :math:`E f(z)^2`, its slope in q, and :math:`E f'(z)^2`; a gated unit gets independent inputs
    of variance q each. Computed in float64 on the host by adaptive quadrature, whatever the
    precision that JAX is set to; kinks and steps are found and cut out.

    Args:
        fn: a name of the catalogue, or any elementwise callable that JAX can trace. It must be
            pure, as for ``jax.jit``.
        variance: variance q of the input.
        inputs: how many inputs the callable takes, 1 or 2; needed for gated units that are not
            in the catalogue.

    Returns:
        The moments, right to 1e-8 or better.

    Raises:
        TypeError: when ``fn`` is no activation, cannot be traced or gives no real numbers.
        ValueError: when a name is unknown, the function is not elementwise or not finite, a
            moment does not exist, or the variance is not positive.

    Example:
        >>> moments("relu").second_moment, moments("relu", variance=9.0).second_moment
        (0.5, 4.5)
    """
    caller = "activations.moments"
    q = as_positive(caller, "variance", variance)
    if isinstance(fn, str) and is_torch_name(fn):
        raise ValueError(
            f"{caller} needs an activation, got {fn!r}, a number of torch without moments. "
            f"Use {fn.partition(':')[2]!r}."
        )
    return moments_of(as_function(caller, fn, inputs), q)


def moments_of(function: Function, q: float) -> Moments:
    """The moments of a function made ready, at variance q."""
    found, jumps = measure(function, np.array([q]))
    mean, second, derivative, slope = (tidy(value) for value in found.values[:, 0])
    size = max(second, 1e-300)
    return Moments(
        name=function.name,
        variance=q,
        mean=0.0 if abs(mean) < 1e-14 * math.sqrt(size) else mean,
        second_moment=second,
        derivative_second_moment=math.inf if jumps else derivative,
        length_slope=0.0 if abs(slope) * q < 1e-14 * size else slope,
        jumps=jumps,
        error=max(function.noise, float(found.errors[SECOND, 0]) / size, 1e-13),
    )


def gain(
    fn: Activation,
    mode: Mode = "forward",
    *,
    variance: float = 1.0,
    inputs: int | None = None,
) -> float:
    r"""Factor on the standard deviation of a kernel that makes up for an activation.

    Law: forward :math:`\sqrt{q / E f^2}`, which keeps the second moment q of pre-activations;
    backward :math:`1 / \sqrt{E f'^2}`, which keeps that of gradients; average
    :math:`\sqrt{2 / (E f^2 / q + E f'^2)}`, Glorot's compromise between the two.

    Args:
        fn: a name of the catalogue, a callable, or ``"torch:NAME"`` for the number that
            ``torch.nn.init.calculate_gain`` gives (see `torch_gain` for what differs).
        mode: what is to be kept.
        variance: second moment q of the pre-activations.
        inputs: how many inputs the callable takes.

    Returns:
        The gain.

    Raises:
        TypeError, ValueError: as `moments`; when the mode is unknown, or the function jumps (its
            gradients have no second moment) or is zero.

    Example:
        >>> round(gain("tanh"), 8), round(gain("tanh", "backward"), 8), round(gain("torch:tanh"), 8)
        (1.59253742, 1.46741359, 1.66666667)
    """
    caller = "activations.gain"
    if mode not in ("forward", "backward", "average"):
        raise ValueError(
            f"{caller} needs mode to be 'forward', 'backward' or 'average', got {mode!r}."
        )
    if isinstance(fn, str) and is_torch_name(fn):
        return torch_gain(fn).gain
    q = as_positive(caller, "variance", variance)
    known = moments_of(as_function(caller, fn, inputs), q)
    if mode != "forward" and math.isinf(known.derivative_second_moment):
        raise ValueError(
            f"{caller} needs a slope with a second moment for mode={mode!r}, got {known.name}. "
            f"{slope_note(known)} Use mode='forward', or a smooth stand-in such as tanh."
        )
    passed = {
        "forward": known.second_moment / q,
        "backward": known.derivative_second_moment,
        "average": (known.second_moment / q + known.derivative_second_moment) / 2,
    }[mode]
    if not passed > 0:
        raise ValueError(
            f"{caller} needs a function that passes something on, got {known.name}, for which "
            f"mode={mode!r} finds {passed}. No gain makes up for that."
        )
    return math.sqrt(1 / passed)
