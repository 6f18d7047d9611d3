"""Correlation of two inputs through depth: one layer of it, and where it ends."""

from __future__ import annotations

import math

import numpy as np

from jaxinit.activations._function import Activation, Function
from jaxinit.activations._lengths import (
    FixedPoint,
    as_variances,
    derivative_at,
    one_input,
    second_at,
    settled,
    stability_of,
)
from jaxinit.activations._quadrature import integrate, largest_row, panels, weight

Array = np.ndarray
# Half of the mean squared difference of the outputs, and E f'(u) f'(v).
_APART, _SLOPES = range(2)
_REACH = 12.0
_ROUNDS = 60


def correlation_map(
    fn: Activation,
    correlation: float,
    *,
    weight_variance: float,
    bias_variance: float = 0.0,
    variance: float | None = None,
) -> float:
    r"""Correlation of two inputs after one more layer.

    Law: :math:`C(c) = (\sigma_w^2\, E f(u) f(v) + \sigma_b^2) / Q(q)` with u and v Gaussian of
    variance q and correlation c. Computed as :math:`1 - \sigma_w^2\, E (f(u) - f(v))^2 / 2 Q(q)`,
    so that what is missing to 1 is right however little it is.

    Args:
        fn: a name of the catalogue or a callable of one input.
        correlation: correlation c of the pre-activations, from -1 to 1.
        weight_variance: variance of a weight times its fan_in.
        bias_variance: variance of a bias.
        variance: variance q of both; None is what a signal of length 1 settles at.

    Returns:
        C(c).

    Raises:
        TypeError, ValueError: as `chi`, or when the correlation is not from -1 to 1.

    Example:
        >>> round(correlation_map("relu", 0.0, weight_variance=2.0), 9)  # 1 / pi
        0.318309886

    References:
        Poole et al., *Exponential expressivity in deep neural networks through transient chaos*,
        2016, equation 5.
    """
    caller = "activations.correlation_map"
    weight_, bias = as_variances(caller, weight_variance, bias_variance)
    try:
        c = float(correlation)
    except Exception:
        raise TypeError(
            f"{caller} needs correlation as a concrete number, got {correlation!r}."
        ) from None
    if not -1 <= c <= 1:
        raise ValueError(f"{caller} needs a correlation from -1 to 1, got {c}.")
    function = one_input(caller, fn)
    q = settled(caller, function, weight_, bias, variance)
    return 1 - _lost(function, weight_, bias, q, 1 - c)[0]


def correlation_fixed_points(
    fn: Activation,
    *,
    weight_variance: float,
    bias_variance: float = 0.0,
    variance: float | None = None,
) -> tuple[FixedPoint, ...]:
    """The correlations from 0 to 1 that a layer leaves as they are.

    The map is convex there, so there are one or two (or all, for a linear map): 1, stable where chi
    is below 1 (order); and in the chaotic phase a stable one below, at which any two inputs end.

    Args:
        fn: a name of the catalogue or a callable of one input.
        weight_variance: variance of a weight times its fan_in.
        bias_variance: variance of a bias.
        variance: variance of the pre-activations; None is what a signal of length 1 settles at.

    Returns:
        The fixed points in rising order, 1 the last.

    Raises:
        TypeError, ValueError: as `chi`.

    Example:
        >>> points = correlation_fixed_points("tanh", weight_variance=2.5, bias_variance=0.05)
        >>> [(round(p.value, 6), p.stability) for p in points]
        [(0.446804, 'stable'), (1.0, 'unstable')]
    """
    caller = "activations.correlation_fixed_points"
    weight_, bias = as_variances(caller, weight_variance, bias_variance)
    function = one_input(caller, fn)
    q = settled(caller, function, weight_, bias, variance)
    return correlation_points_of(function, weight_, bias, q)


def correlation_points_of(
    function: Function, weight_: float, bias: float, q: float
) -> tuple[FixedPoint, ...]:
    """`correlation_fixed_points` of a function made ready, at variance q."""
    if q == 0:
        slope = weight_ * derivative_at(function, 0.0)
        return (FixedPoint(1.0, slope, stability_of(slope)),)
    total = weight_ * second_at(function, q) + bias
    slope = weight_ * derivative_at(function, q) * q / total
    end = FixedPoint(1.0, slope, stability_of(slope))
    if slope <= 1 + 1e-9:
        return (end,)
    # From 0 Newton's steps climb to the lower crossing of a convex map and never pass it.
    c = 0.0
    inner = 0.0
    for _ in range(_ROUNDS):
        lost, inner = _lost(function, weight_, bias, q, 1 - c)
        gap = (1 - lost) - c
        if abs(gap) <= 1e-14 or inner >= 1:
            break
        step = gap / (1 - inner)
        c = min(max(c + step, 0.0), 1.0)
        if abs(step) <= 1e-14:
            break
    return (FixedPoint(c, inner, stability_of(inner)), end)


def _lost(
    function: Function, weight_: float, bias: float, q: float, apart: float
) -> tuple[float, float]:
    """1 - C(1 - apart), and the slope of C there."""
    total = weight_ * second_at(function, q) + bias
    if apart == 0:
        return 0.0, weight_ * derivative_at(function, q) * q / total
    found = _two_inputs(function, q, apart)
    return weight_ * float(found[_APART]) / total, weight_ * q * float(found[_SLOPES]) / total


def _two_inputs(function: Function, q: float, apart: float) -> Array:
    """E (f(u) - f(v))^2 / 2 and E f'(u) f'(v) for u, v = alpha a +- beta b.

    The outer integral is over b, the half that differs, the inner over a, the half in common: for
    each b the breaks of the function lie at known a.
    """
    scale = math.sqrt(q)
    alpha, beta = scale * math.sqrt(1 - apart / 2), scale * math.sqrt(apart / 2)

    def at(b: Array, row: Array) -> Array:
        del row
        return _common(function, alpha, beta * b) * (2 * weight(b))

    near = 0.5 ** np.arange(1, 8)
    grid = np.concatenate([[0.0, 1, 2, 3, 4.5, 6, 9, _REACH], near])[None, :]
    over = panels(grid, checked=(False, True))
    return integrate(at, over, tolerance=1e-11, noise=4 * function.noise).values[:, 0]


def _common(function: Function, alpha: float, shift: Array) -> Array:
    """The inner integrals for u, v = alpha a +- shift, one for each shift."""

    def at(a: Array, row: Array) -> Array:
        u, v = alpha * a + shift[row], alpha * a - shift[row]
        f_u, slope_u = function(u, weighed=a)
        f_v, slope_v = function(v, weighed=a)
        return np.stack([(f_u - f_v) ** 2 / 2, slope_u[0] * slope_v[0]]) * weight(a)

    base = np.linspace(-_REACH, _REACH, 33)
    rows = len(shift)
    parts = [np.broadcast_to(base, (rows, len(base)))]
    # Breaks, and two fine panels towards each: sharp bends are breaks that nobody has to find.
    for place in [0.0, *function.breaks]:
        for moved in (shift, -shift):
            edge = (place - moved) / max(alpha, 1e-150)
            parts.append(np.clip(edge, -_REACH, _REACH)[:, None])
    over = panels(np.concatenate(parts, axis=1))
    return integrate(
        at, over, tolerance=1e-13, noise=4 * function.noise, against=largest_row
    ).values
