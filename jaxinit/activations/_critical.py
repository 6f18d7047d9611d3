"""The edge of chaos: variances at which a signal and its gradients reach any depth."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np

from jaxinit.activations._function import Activation, Function, as_positive
from jaxinit.activations._maps import (
    derivative_at,
    find_root,
    length_slope_at,
    one_input,
    second_at,
    spectrum,
)
from jaxinit.activations._moments import quantity_table
from jaxinit.activations._quadrature import tidy

Array = np.ndarray
_SAME = 1e-10


class NotCriticalError(ValueError):
    """An activation has no critical point, or none with the variance that was given.

    Attributes:
        why: the reason, without what to do instead.
    """

    def __init__(self, message: str, why: str = "") -> None:
        super().__init__(message, why)
        self.why = why

    def __str__(self) -> str:
        return self.args[0]


@dataclasses.dataclass(frozen=True)
class Critical:
    """A point on the edge of chaos: chi is 1 at a fixed point of the length.

    Attributes:
        name: of the activation.
        weight_variance: variance C_W of a weight times its fan_in.
        bias_variance: variance C_b of a bias.
        variance: length q* that the signal has there; 0 where it shrinks to nothing, slower than
            any exponential; 1 where any length is as good.
        slope: slope of the length map at q*; at 1 the length neither settles nor runs away
            exponentially.
    """

    name: str
    weight_variance: float
    bias_variance: float
    variance: float
    slope: float

    def __str__(self) -> str:
        rows = {
            "weight variance x fan_in": self.weight_variance,
            "bias variance": self.bias_variance,
            "q*": self.variance,
            "slope of the length map": self.slope,
        }
        return quantity_table(f"critical point of {self.name}", rows)


def critical(
    fn: Activation,
    *,
    weight_variance: float | None = None,
    bias_variance: float | None = None,
) -> Critical:
    r"""Variances on the edge of chaos, where gradients neither vanish nor explode.

    Law: :math:`\chi_1 = \sigma_w^2\, E f'(\sqrt{q^*} z)^2 = 1` at :math:`q^* = Q(q^*)`. One of the
    two variances may be given, and the other is solved for; of several solutions the one whose
    length is stable, then the shortest. With neither given, the slope of the length map is asked to
    be 1 too, which leaves one pair: the criticality of Roberts and Yaida.

    Args:
        fn: a name of the catalogue or a callable of one input.
        weight_variance: variance of a weight times its fan_in, to solve for the bias.
        bias_variance: variance of a bias, to solve for the weights.

    Returns:
        The critical point.

    Raises:
        NotCriticalError: when there is none. It is a ``ValueError``.
        TypeError, ValueError: as `moments`; when both variances are given or one is negative.

    Example:
        >>> round(critical("tanh", bias_variance=0.05).weight_variance, 6)
        1.760955
        >>> point = critical("gelu")
        >>> round(point.weight_variance, 3), round(point.bias_variance, 3)
        (1.983, 0.173)

    References:
        Schoenholz et al., *Deep Information Propagation*, 2016, section 3; Roberts, Yaida and
        Hanin, *The Principles of Deep Learning Theory*, 2021, section 5.3.
    """
    caller = "activations.critical"
    if weight_variance is not None and bias_variance is not None:
        raise ValueError(
            f"{caller} needs at most one of weight_variance and bias_variance, got "
            f"{weight_variance!r} and {bias_variance!r}. The other is what it solves for; "
            "activations.chi says how far a pair is from critical."
        )
    function = one_input(caller, fn)
    if weight_variance is not None:
        weight = as_positive(caller, "weight_variance", weight_variance)
        found = _given(caller, function, f"weight_variance={weight:g}", weight=weight)
        return dataclasses.replace(_tidied(found), weight_variance=weight)
    if bias_variance is not None:
        bias = as_positive(caller, "bias_variance", bias_variance, zero=True)
        found = _given(caller, function, f"bias_variance={bias:g}", bias=bias)
        return dataclasses.replace(_tidied(found), bias_variance=bias)
    return _tidied(_pair(caller, function))


def _tidied(point: Critical) -> Critical:
    """The same without the digits that only rounding made."""
    numbers = dataclasses.asdict(point)
    del numbers["name"]
    return Critical(point.name, **{key: tidy(value) for key, value in numbers.items()})


def _pair(caller: str, function: Function) -> Critical:
    """Where chi and the slope of the length map are both 1."""
    grid, second, derivative, slope = spectrum(function)
    _refuse_jumps(caller, function, derivative)
    apart = slope / derivative - 1  # slope of the length map where chi is 1, less 1
    if (np.abs(apart) <= _SAME).all() and _is_through_origin(grid, second, derivative):
        return Critical(function.name, 1 / float(derivative[0]), 0.0, 1.0, 1.0)

    def gap(q: float) -> float:
        return length_slope_at(function, q) / derivative_at(function, q) - 1

    for q in _crossings(grid, apart, gap):
        point = _at(function, q)
        if point.bias_variance >= 0:
            return dataclasses.replace(point, slope=1.0)
    at_zero = derivative_at(function, 0.0)
    if second_at(function, 0.0) <= 1e-30 and at_zero > 0 and _is_smooth_at_zero(function):
        return Critical(function.name, 1 / at_zero, 0.0, 0.0, 1.0)
    why = (
        "where chi is 1, the length has no fixed point of slope 1 with a bias variance of 0 or more"
    )
    raise NotCriticalError(
        f"{caller} needs an activation that has a critical pair, got {function.name}: {why}. "
        "Name one of the two variances for a point where chi alone is 1, or use another "
        "activation.",
        why,
    )


def _given(
    caller: str,
    function: Function,
    what: str,
    *,
    weight: float | None = None,
    bias: float | None = None,
) -> Critical:
    """Where chi is 1 with one variance given."""
    grid, second, derivative, _ = spectrum(function)
    _refuse_jumps(caller, function, derivative)
    # Along chi = 1, the variances that make the length q a fixed point.
    weights = 1 / derivative
    biases = grid - weights * second
    if _is_through_origin(grid, second, derivative):
        only = float(weights[0])
        near = weight is None or abs(weight / only - 1) <= _SAME
        if near and not bias:
            return Critical(function.name, only, 0.0, 1.0, 1.0)
        raise _none(caller, function, what, f"its only one is ({only:.9g}, 0)")
    at_zero = derivative_at(function, 0.0)
    through_zero = second_at(function, 0.0) <= 1e-30 and at_zero > 0
    if through_zero and _is_smooth_at_zero(function):
        is_there = bias == 0 if weight is None else abs(weight * at_zero - 1) <= _SAME
        if is_there:
            return Critical(function.name, 1 / at_zero, 0.0, 0.0, 1.0)

    def gap(q: float) -> float:
        if weight is not None:
            return weight * derivative_at(function, q) - 1
        return q - second_at(function, q) / derivative_at(function, q) - (bias or 0.0)

    gaps = weight * derivative - 1 if weight is not None else biases - (bias or 0.0)
    points = [_at(function, q, weight) for q in _crossings(grid, gaps, gap)]
    points = [p for p in points if p.bias_variance >= -1e-12]
    if not points:
        kind, ends = ("bias", biases) if weight is None else ("weight", weights)
        range_ = f"chi is 1 for {kind} variances from {ends.min():.4g} to {ends.max():.4g}"
        raise _none(caller, function, what, range_)
    best = min(points, key=lambda p: (p.slope > 1 + 1e-9, p.variance))
    return dataclasses.replace(best, bias_variance=max(best.bias_variance, 0.0))


def _at(function: Function, q: float, weight: float | None = None) -> Critical:
    """The point on the edge of chaos whose length is q."""
    weight = 1 / derivative_at(function, q) if weight is None else weight
    bias = q - weight * second_at(function, q)
    return Critical(function.name, weight, bias, q, weight * length_slope_at(function, q))


def _none(caller: str, function: Function, what: str, why: str) -> NotCriticalError:
    return NotCriticalError(
        f"{caller} needs variances at which {function.name} is critical, got {what}: {why}. "
        "Choose one there, or none for the pair at which the length map has slope 1 too.",
        why,
    )


def _refuse_jumps(caller: str, function: Function, derivative: Array) -> None:
    if not np.isfinite(derivative).all():
        raise NotCriticalError(
            f"{caller} needs an activation without jumps, got {function.name}: chi is infinite at "
            "every variance. Use a smooth stand-in such as tanh.",
            "chi is infinite at every variance",
        )
    if not (derivative > 0).all():
        raise NotCriticalError(
            f"{caller} needs an activation whose slope is not zero everywhere, got "
            f"{function.name}: chi is 0 at every variance. Use one that passes gradients on.",
            "chi is 0 at every variance",
        )


def _is_through_origin(grid: Array, second: Array, derivative: Array) -> bool:
    """Whether one weight variance makes every length a fixed point, as for ReLU."""
    return bool((np.abs(second / (grid * derivative) - 1) <= _SAME).all()) and bool(
        (np.abs(derivative / derivative[0] - 1) <= _SAME).all()
    )


def _is_smooth_at_zero(function: Function) -> bool:
    """Whether both sides of 0 have the same slope: a kink there does not become linear."""
    left, right = function(np.array([-1e-12, 1e-12]))[1][0]
    return math.isclose(left, right, rel_tol=1e-9)


def _crossings(grid: Array, gaps: Array, gap: Callable[[float], float]) -> list[float]:
    """Roots between neighbours of the grid; what only rounding makes cross is left out."""
    found = []
    for i in range(1, len(grid)):
        before, after = float(gaps[i - 1]), float(gaps[i])
        is_noise = max(abs(before), abs(after)) <= _SAME * max(1.0, float(grid[i]))
        if before * after < 0 and not is_noise:
            found.append(find_root(gap, grid[i - 1], grid[i]))
    return found
