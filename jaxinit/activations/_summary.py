"""An activation at a glance: moments, gains, stability, torch's number, critical pair."""

from __future__ import annotations

import dataclasses
import math

from jaxinit.activations._catalogue import TorchGain, torch_gain_of
from jaxinit.activations._critical import Critical, NotCriticalError, critical
from jaxinit.activations._function import Activation, as_function
from jaxinit.activations._moments import Moments, moments_of, quantity_table, slope_note


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

    @property
    def quantities(self) -> tuple[tuple[str, float | None, str], ...]:
        """Label, value and meaning of each number; a value is None where there is none."""
        known, pair = self.moments, self.critical
        return (
            ("E f", known.mean, "mean of the output, for N(0, 1) in"),
            ("E f^2", known.second_moment, "its second moment"),
            ("E f'^2", known.derivative_second_moment, "second moment of the slope"),
            ("forward gain", self.forward_gain, "keeps the second moment of signals"),
            ("backward gain", self.backward_gain, "keeps the second moment of gradients"),
            ("chi1", self.chi1, "growth of gradients at the forward gain"),
            ("Q'(1)", self.slope, "slope of the length map; above 1 unstable"),
            ("torch gain", self.torch and self.torch.gain, "torch.nn.init.calculate_gain"),
            ("C_W", pair and pair.weight_variance, "critical weight variance, times fan_in"),
            ("C_b", pair and pair.bias_variance, "critical bias variance"),
            ("q*", pair and pair.variance, "variance of the signal there"),
        )

    def __str__(self) -> str:
        rows = {label: value for label, value, _ in self.quantities}
        lines = [quantity_table(self.name, rows)]
        if self.torch:
            lines.append(str(self.torch))
        lines += [f"warning: {warning}" for warning in self.warnings]
        return "\n".join(lines)


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
