"""An activation at a glance: moments, gains, stability, torch's number, critical pair."""

from __future__ import annotations

import dataclasses
import math

from jaxinit._table import render_table
from jaxinit.activations._critical import Critical, NotCriticalError, critical
from jaxinit.activations._function import Activation, as_function
from jaxinit.activations._moments import Moments, moments_of, slope_note
from jaxinit.activations._torch_gains import TorchGain, torch_gain_of


@dataclasses.dataclass(frozen=True)
class Summary:
    """What there is to know of an activation before a network is built on it.

    Attributes:
        name: of the activation.
        moments: at variance 1.
        forward_gain: factor on the standard deviation of kernels that keeps the second moment.
        backward_gain: the one that keeps that of gradients; None where there is none.
        chi1: growth of the second moment of gradients per layer at the forward gain.
        slope: slope of the length map there.
        torch: torch's number, with what differs; None where torch raises an error.
        critical: the pair of variances on the edge of chaos; None where there is none.
        no_critical: why there is none.
        warnings: what to beware of, a sentence each.
    """

    name: str
    moments: Moments
    forward_gain: float
    backward_gain: float | None
    chi1: float
    slope: float
    torch: TorchGain | None
    critical: Critical | None
    no_critical: str | None
    warnings: tuple[str, ...]

    def __str__(self) -> str:
        known, none = self.moments, "none"
        pair = self.critical
        rows = [
            ("E f", _number(known.mean)),
            ("E f^2", _number(known.second_moment)),
            ("E f'^2", _number(known.derivative_second_moment)),
            ("forward gain", _number(self.forward_gain)),
            ("backward gain", none if self.backward_gain is None else _number(self.backward_gain)),
            ("chi1", _number(self.chi1)),
            ("Q'(1)", _number(self.slope)),
            ("torch gain", _number(self.torch.gain) if self.torch else none),
            ("critical C_W", _number(pair.weight_variance) if pair else none),
            ("critical C_b", _number(pair.bias_variance) if pair else none),
            ("critical q*", _number(pair.variance) if pair else none),
        ]
        lines = [render_table(["quantity", "value"], rows, title=self.name)]
        if self.torch:
            lines.append(str(self.torch))
        lines += [f"warning: {warning}" for warning in self.warnings]
        return "\n".join(lines)


def _number(value: float) -> str:
    return f"{value:.9g}"


def summary(fn: Activation, *, inputs: int | None = None) -> Summary:
    """The row of an activation: what `jaxinit gain` prints.

    Args:
        fn: a name of the catalogue, or any elementwise callable that JAX can trace.
        inputs: how many inputs the callable takes.

    Returns:
        Moments, gains, stability, torch's number and the critical pair.

    Raises:
        TypeError, ValueError: as `moments`.

    Example:
        >>> row = summary("relu")
        >>> row.slope, row.critical.weight_variance, row.warnings
        (1.0, 2.0, ())
    """
    function = as_function("activations.summary", fn, inputs)
    known = moments_of(function, 1.0)
    derivative = known.derivative_second_moment
    pair, why = None, None
    if function.inputs > 1:
        why = "a gated unit has no chain of lengths to follow"
    else:
        try:
            pair = critical(function)
        except NotCriticalError as error:
            why = error.why
    has_backward = 0 < derivative < math.inf
    return Summary(
        name=function.name,
        moments=known,
        forward_gain=known.forward_gain,
        backward_gain=1 / math.sqrt(derivative) if has_backward else None,
        chi1=known.chi1,
        slope=known.slope,
        torch=torch_gain_of(function.name),
        critical=pair,
        no_critical=why,
        warnings=tuple(_warnings(known, pair)),
    )


def _warnings(known: Moments, pair: Critical | None) -> list[str]:
    found = []
    if not known.second_moment:
        found.append("It is zero wherever a Gaussian goes: no gain keeps a signal.")
    elif known.is_unstable:
        remedy = (
            f"the critical pair ({pair.weight_variance:.4g}, {pair.bias_variance:.4g})"
            if pair and pair.bias_variance
            else "a transformed activation"
        )
        found.append(
            f"The forward gain is an unstable fixed point: every layer multiplies a small "
            f"deviation of the second moment by {known.slope:.4g}, so a deep network without "
            f"normalisation shrinks or blows up. Use normalisation layers or {remedy}."
        )
    if note := slope_note(known):
        found.append(note)
    return found
