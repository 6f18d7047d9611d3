"""Signals through depth: maps of length and of correlation, their fixed points, depth scales.

Mean field of a wide plain network whose weights have variance ``weight_variance / fan_in`` and
whose biases have variance ``bias_variance``. Poole et al., 2016; Schoenholz et al., *Deep
Information Propagation*, 2016.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Literal

import numpy as np

from jaxinit._arguments import as_number
from jaxinit._table import render_table
from jaxinit.activations._function import Activation, Function, as_function, as_positive
from jaxinit.activations._moments import moments_of, quantity_table
from jaxinit.activations._quadrature import (
    DERIVATIVE,
    SECOND,
    SLOPE,
    density,
    integrate,
    largest_row,
    measure,
    panels,
)

Array = np.ndarray
Stability = Literal["stable", "unstable", "marginal"]
# Eight variances per factor of ten: the length map of an activation bends slower than that.
GRID = np.logspace(-8, 6, 113)
# What is closer than this to the diagonal lies on it.
_ON = 1e-11
# Half of the mean squared difference of two outputs, and E f'(u) f'(v).
_APART, _SLOPES = range(2)
_REACH = 12.0
_ROUNDS = 60


@dataclasses.dataclass(frozen=True)
class FixedPoint:
    """A value that a map leaves where it is.

    Attributes:
        value: the variance q* of the length map, or the correlation c* of the correlation map.
        slope: slope of the map there; deviations are multiplied by it in every layer.
        stability: ``"stable"`` for a slope below 1, ``"unstable"`` above, ``"marginal"`` at 1.
    """

    value: float
    slope: float
    stability: Stability


@dataclasses.dataclass(frozen=True)
class LengthFixedPoints:
    """All fixed points of a length map.

    Attributes:
        name: of the activation.
        weight_variance: variance of a weight times its fan_in.
        bias_variance: variance of a bias.
        points: in rising order; the length 0 is among them where the map leaves it there.
        is_everywhere: whether the map leaves every length as it is, as with ReLU and He's variance.
    """

    name: str
    weight_variance: float
    bias_variance: float
    points: tuple[FixedPoint, ...]
    is_everywhere: bool = False

    def __str__(self) -> str:
        title = (
            f"length map of {self.name}, weight variance {self.weight_variance:g}, "
            f"bias variance {self.bias_variance:g}"
        )
        if self.is_everywhere:
            return f"{title}: every length is a fixed point"
        if not self.points:
            return f"{title}: no fixed point"
        rows = [(f"{p.value:.9g}", f"{p.slope:.9g}", p.stability) for p in self.points]
        return render_table(["q*", "slope", ""], rows, title=title)


def stability_of(slope: float) -> Stability:
    """What a slope says; within 1e-9 of 1 the quadrature cannot tell."""
    if abs(abs(slope) - 1) <= 1e-9:
        return "marginal"
    return "stable" if abs(slope) < 1 else "unstable"


@dataclasses.dataclass(frozen=True)
class DepthScales:
    """How many layers deviations survive; each layer multiplies them by exp(-1 / scale).

    Attributes:
        name: of the activation.
        variance: length q* that the signal settles at.
        chi1: slope of the correlation map at 1; above 1 equal inputs drift apart (chaos).
        correlation: correlation c* that any two inputs tend to.
        length_scale: layers in which a deviation of the length falls to 1/e.
        correlation_scale: layers in which a deviation of the correlation falls to 1/e; infinite
            on the edge of chaos.
    """

    name: str
    variance: float
    chi1: float
    correlation: float
    length_scale: float
    correlation_scale: float

    def __str__(self) -> str:
        rows = {
            "q*": self.variance,
            "chi1": self.chi1,
            "c*": self.correlation,
            "length, layers": self.length_scale,
            "correlation, layers": self.correlation_scale,
        }
        return quantity_table(f"depth scales of {self.name}", rows, digits=7)


# At one variance.


def one_input(caller: str, fn: Activation) -> Function:
    """A function made ready; gated units have no chain of lengths to follow."""
    function = as_function(caller, fn)
    if function.inputs != 1:
        raise ValueError(
            f"{caller} needs an activation of one input, got {function.name} with "
            f"{function.inputs}. activations.moments and activations.gain take gated units."
        )
    return function


def second_at(function: Function, q: float) -> float:
    """E f^2 at variance q, to the last digit; at 0 the square of f(0)."""
    if q == 0:
        return float(function(np.zeros(1))[0][0]) ** 2
    return float(measure(function, np.array([q]))[0].values[SECOND, 0])


def derivative_at(function: Function, q: float) -> float:
    """E f'^2 at variance q; at 0 the mean of both sides."""
    if q == 0:
        return float(np.mean(function(np.array([-1e-30, 1e-30]))[1] ** 2))
    found, jumps = measure(function, np.array([q]))
    return math.inf if jumps else float(found.values[DERIVATIVE, 0])


def length_slope_at(function: Function, q: float) -> float:
    """Slope dE f^2 / dq at variance q; at 0 that of the smallest length of the grid."""
    return float(measure(function, np.array([max(q, GRID[0])]))[0].values[SLOPE, 0])


def spectrum(function: Function) -> tuple[Array, Array, Array, Array]:
    """Variances of the grid that the function can take, with E f^2, E f'^2 and dE f^2/dq."""
    grid = GRID[np.sqrt(GRID) * 12 <= function.reach()]
    if not len(grid):
        grid = GRID[:1]
    while True:
        try:
            found, jumps = measure(function, grid)
            break
        except ValueError:  # moments that cease to exist beyond some variance, as those of e^(z^2)
            if len(grid) < 2:
                raise
            grid = grid[: len(grid) // 2]
    second, derivative, slope = found.values[[SECOND, DERIVATIVE, SLOPE]]
    if jumps:
        derivative = np.full_like(derivative, math.inf)
    return grid, second, derivative, slope


def find_root(function: Callable[[float], float], low: float, high: float) -> float:
    """The zero between two points of different sign, by the Illinois secant."""
    a, b = float(low), float(high)
    f_a, f_b = function(a), function(b)
    for _ in range(100):
        if f_b == 0 or f_a == f_b:
            break
        c = b - f_b * (b - a) / (f_b - f_a)
        if not min(a, b) < c < max(a, b):
            c = (a + b) / 2
        f_c = function(c)
        is_close = abs(c - b) <= 4e-15 * abs(c)
        if f_c * f_b < 0:
            a, f_a = b, f_b
        else:  # the end that stays loses half of its weight, so that both close in
            f_a /= 2
        b, f_b = c, f_c
        if is_close:
            break
    return b


@dataclasses.dataclass(frozen=True)
class MeanField:
    """A wide plain network, every layer of which has one activation and the same variances.

    Attributes:
        function: the activation made ready; it has one input.
        weight: variance of a weight times its fan_in.
        bias: variance of a bias.
    """

    function: Function
    weight: float
    bias: float = 0.0

    @classmethod
    def of(
        cls, caller: str, fn: Activation, weight_variance: float, bias_variance: float = 0.0
    ) -> MeanField:
        """The network of checked arguments."""
        weight = as_positive(caller, "weight_variance", weight_variance)
        bias = as_positive(caller, "bias_variance", bias_variance, zero=True)
        return cls(one_input(caller, fn), weight, bias)

    def length(self, q: float) -> float:
        """Variance of the pre-activations after those of variance q."""
        return self.weight * second_at(self.function, q) + self.bias

    def length_slope(self, q: float) -> float:
        """Slope of the length map at q."""
        return self.weight * length_slope_at(self.function, q)

    def chi(self, q: float) -> float:
        """Growth of the second moment of gradients in a layer of length q."""
        return self.weight * derivative_at(self.function, q)

    def fixed_points(self) -> LengthFixedPoints:
        """The lengths that a layer leaves as they are."""
        grid, second, _, slopes = spectrum(self.function)
        gap = self.weight * second + self.bias - grid
        on = np.abs(gap) <= _ON * grid
        named = (self.function.name, self.weight, self.bias)
        if on.all():
            return LengthFixedPoints(*named, (), is_everywhere=True)
        points = []
        if self.bias == 0 and abs(self.length(0.0)) <= 1e-30:
            points.append(_fixed_point(0.0, self.weight * float(second[0] / grid[0])))
        for i in range(len(grid)):
            if on[i] and (i + 1 == len(grid) or not on[i + 1]):
                points.append(_fixed_point(float(grid[i]), self.weight * float(slopes[i])))
            if i and not on[i] and not on[i - 1] and gap[i - 1] * gap[i] < 0:
                q = find_root(lambda q: self.length(q) - q, grid[i - 1], grid[i])
                points.append(_fixed_point(q, self.length_slope(q)))
        return LengthFixedPoints(*named, tuple(points))

    def settled(self, caller: str, variance: float | None = None) -> float:
        """The given variance, or that which a signal of length 1 comes to."""
        if variance is not None:
            return as_positive(caller, "variance", variance)
        found = self.fixed_points()
        gap = self.length(1.0) - 1.0
        if found.is_everywhere or abs(gap) <= _ON:
            return 1.0
        values = [p.value for p in found.points]
        ahead = [v for v in values if v > 1] if gap > 0 else [v for v in values if v < 1]
        if not ahead:
            fate = "grows without bound" if gap > 0 else "shrinks without end"
            raise ValueError(
                f"{caller} needs a length that the signal settles at, got {self.function.name} "
                f"with weight_variance={self.weight:g} and bias_variance={self.bias:g}, under "
                f"which the length {fate}. Pass variance= for the length of your layer, or other "
                "variances."
            )
        return min(ahead) if gap > 0 else max(ahead)

    def correlation_points(self, q: float) -> tuple[FixedPoint, ...]:
        """The correlations from 0 to 1 that a layer leaves as they are, at variance q."""
        if q == 0:
            return (_fixed_point(1.0, self.chi(0.0)),)
        end = _fixed_point(1.0, self.chi(q) * q / self.length(q))
        if end.slope <= 1 + 1e-9:
            return (end,)
        # From 0 Newton's steps climb to the lower crossing of a convex map and never pass it.
        c = 0.0
        slope = 0.0
        for _ in range(_ROUNDS):
            decorrelated, slope = self.decorrelation(q, 1 - c)
            gap = (1 - decorrelated) - c
            if abs(gap) <= 1e-14 or slope >= 1:
                break
            step = gap / (1 - slope)
            c = min(max(c + step, 0.0), 1.0)
            if abs(step) <= 1e-14:
                break
        return (_fixed_point(c, slope), end)

    def decorrelation(self, q: float, apart: float) -> tuple[float, float]:
        """1 - C(1 - apart) of the correlation map C at variance q, and the slope of C there."""
        total = self.length(q)
        if apart == 0:
            return 0.0, self.chi(q) * q / total
        found = _two_inputs(self.function, q, apart)
        slope = self.weight * q * float(found[_SLOPES]) / total
        return self.weight * float(found[_APART]) / total, slope


def _fixed_point(value: float, slope: float) -> FixedPoint:
    return FixedPoint(value, slope, stability_of(slope))


def _two_inputs(function: Function, q: float, apart: float) -> Array:
    """E (f(u) - f(v))^2 / 2 and E f'(u) f'(v) for u, v = alpha a +- beta b.

    The outer integral is over b, the half that differs, the inner over a, the half in common: for
    each b the breaks of the function lie at known a.
    """
    scale = math.sqrt(q)
    alpha, beta = scale * math.sqrt(1 - apart / 2), scale * math.sqrt(apart / 2)

    def at(b: Array, row: Array) -> Array:
        return _common(function, alpha, beta * b) * (2 * density(b))

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
        return np.stack([(f_u - f_v) ** 2 / 2, slope_u[0] * slope_v[0]]) * density(a)

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


# The public functions.


def length_map(
    fn: Activation,
    variance: float,
    *,
    weight_variance: float = 1.0,
    bias_variance: float = 0.0,
) -> float:
    r"""Variance of the next pre-activations.

    Law: :math:`Q(q) = \sigma_w^2\, E f(\sqrt q\, z)^2 + \sigma_b^2`.

    Args:
        fn: a name of the catalogue or a callable of one input.
        variance: variance q of the pre-activations.
        weight_variance: variance of a weight times its fan_in.
        bias_variance: variance of a bias.

    Returns:
        Q(q).

    Raises:
        TypeError, ValueError: as `moments`, or when a variance is negative.

    Example:
        >>> length_map("relu", 3.0, weight_variance=2.0, bias_variance=0.5)
        3.5
    """
    caller = "activations.length_map"
    q = as_positive(caller, "variance", variance)
    network = MeanField.of(caller, fn, weight_variance, bias_variance)
    return network.weight * moments_of(network.function, q).second_moment + network.bias


def length_slope(fn: Activation, variance: float, *, weight_variance: float = 1.0) -> float:
    r"""Factor by which one layer multiplies a small deviation of the length.

    Law: :math:`Q'(q) = \sigma_w^2\, \frac{d}{dq} E f(\sqrt q\, z)^2`.

    Args:
        fn: a name of the catalogue or a callable of one input.
        variance: variance q of the pre-activations.
        weight_variance: variance of a weight times its fan_in.

    Returns:
        The slope.

    Raises:
        TypeError, ValueError: as `moments`, or when a variance is negative.

    Example:
        >>> length_slope("relu", 3.0, weight_variance=2.0)
        1.0
    """
    caller = "activations.length_slope"
    q = as_positive(caller, "variance", variance)
    network = MeanField.of(caller, fn, weight_variance)
    return network.weight * moments_of(network.function, q).length_slope


def fixed_points(
    fn: Activation, *, weight_variance: float, bias_variance: float = 0.0
) -> LengthFixedPoints:
    """The lengths that a layer leaves as they are, and whether deviations from them die out.

    Args:
        fn: a name of the catalogue or a callable of one input.
        weight_variance: variance of a weight times its fan_in.
        bias_variance: variance of a bias.

    Returns:
        The fixed points between 1e-8 and 1e6, and 0 where it is one.

    Raises:
        TypeError, ValueError: as `moments`, or when a variance is negative.

    Example:
        >>> [round(p.value, 6) for p in fixed_points(
        ...     "tanh", weight_variance=1.3, bias_variance=0.05).points]
        [0.315316]
    """
    caller = "activations.fixed_points"
    return MeanField.of(caller, fn, weight_variance, bias_variance).fixed_points()


def chi(
    fn: Activation,
    *,
    weight_variance: float,
    bias_variance: float = 0.0,
    variance: float | None = None,
) -> float:
    r"""Growth of the second moment of gradients per layer; 1 is the edge of chaos.

    Law: :math:`\chi_1 = \sigma_w^2\, E f'(\sqrt{q^*}\, z)^2`, also the slope of the correlation map
    at correlation 1. Infinite for a function that jumps.

    Args:
        fn: a name of the catalogue or a callable of one input.
        weight_variance: variance of a weight times its fan_in.
        bias_variance: variance of a bias.
        variance: length of the pre-activations; None is the fixed point that a signal of length 1
            comes to.

    Returns:
        chi1.

    Raises:
        TypeError, ValueError: as `moments`; when a variance is negative, or no variance is given
            and the length grows without bound.

    Example:
        >>> round(chi("tanh", weight_variance=1.3, bias_variance=0.05), 6)
        0.880164
    """
    caller = "activations.chi"
    network = MeanField.of(caller, fn, weight_variance, bias_variance)
    return network.chi(network.settled(caller, variance))


def depth_scales(
    fn: Activation, *, weight_variance: float, bias_variance: float = 0.0
) -> DepthScales:
    r"""How deep a signal reaches before its length and its correlations are those of any other.

    Law: :math:`\xi = -1 / \log |\lambda|` with the slope of the length map at q* and that of the
    correlation map at c*.

    Args:
        fn: a name of the catalogue or a callable of one input.
        weight_variance: variance of a weight times its fan_in.
        bias_variance: variance of a bias.

    Returns:
        Fixed points and scales, in layers.

    Raises:
        TypeError, ValueError: as `chi`.

    Example:
        >>> scales = depth_scales("tanh", weight_variance=1.3, bias_variance=0.05)
        >>> round(scales.correlation_scale, 3)
        7.834

    References:
        Schoenholz et al., *Deep Information Propagation*, 2016, equations 7 and 9.
    """
    caller = "activations.depth_scales"
    network = MeanField.of(caller, fn, weight_variance, bias_variance)
    q = network.settled(caller)
    points = network.correlation_points(q)
    end = next((p for p in points if p.stability != "unstable"), points[-1])
    return DepthScales(
        name=network.function.name,
        variance=q,
        chi1=points[-1].slope,
        correlation=end.value,
        length_scale=_scale(network.length_slope(q)),
        correlation_scale=_scale(end.slope),
    )


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
    so that the distance to 1 has all of its digits however small it is.

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
    network = MeanField.of(caller, fn, weight_variance, bias_variance)
    c = as_number(caller, "correlation", correlation)
    if not -1 <= c <= 1:
        raise ValueError(f"{caller} needs a correlation from -1 to 1, got {c}.")
    return 1 - network.decorrelation(network.settled(caller, variance), 1 - c)[0]


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
    network = MeanField.of(caller, fn, weight_variance, bias_variance)
    return network.correlation_points(network.settled(caller, variance))


def _scale(slope: float) -> float:
    if stability_of(slope) != "stable":
        return math.inf
    return -1 / math.log(abs(slope)) if slope else 0.0
