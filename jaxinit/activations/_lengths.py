"""The length map at work: its fixed points, and where a signal of length 1 settles."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Literal

import numpy as np

from jaxinit._table import render_table
from jaxinit.activations._function import Activation, Function, as_function, as_positive
from jaxinit.activations._integrals import DERIVATIVE, SECOND, SLOPE, measure

Array = np.ndarray
Stability = Literal["stable", "unstable", "marginal"]
# Eight variances per factor of ten: the length map of an activation bends slower than that.
GRID = np.logspace(-8, 6, 113)
# What is closer than this to the diagonal lies on it.
_ON = 1e-11


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


def one_input(caller: str, fn: Activation) -> Function:
    """A function made ready; gated units have no chain of lengths to follow."""
    function = as_function(caller, fn)
    if function.inputs != 1:
        raise ValueError(
            f"{caller} needs an activation of one input, got {function.name} with "
            f"{function.inputs}. activations.moments and activations.gain take gated units."
        )
    return function


def as_variances(caller: str, weight: float, bias: float) -> tuple[float, float]:
    """Weight and bias variance as checked floats."""
    return (
        as_positive(caller, "weight_variance", weight),
        as_positive(caller, "bias_variance", bias, zero=True),
    )


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


def fixed_points_of(function: Function, weight: float, bias: float) -> LengthFixedPoints:
    """`fixed_points` of a function made ready."""
    grid, second, _, slopes = spectrum(function)
    gap = weight * second + bias - grid
    on = np.abs(gap) <= _ON * grid
    named = (function.name, weight, bias)
    if on.all():
        return LengthFixedPoints(*named, (), is_everywhere=True)
    points = []
    if bias == 0 and abs(second_at(function, 0.0)) * weight <= 1e-30:
        slope = weight * float(second[0] / grid[0])
        points.append(FixedPoint(0.0, slope, stability_of(slope)))
    for i in range(len(grid)):
        if on[i] and (i + 1 == len(grid) or not on[i + 1]):
            slope = weight * float(slopes[i])
            points.append(FixedPoint(float(grid[i]), slope, stability_of(slope)))
        if i and not on[i] and not on[i - 1] and gap[i - 1] * gap[i] < 0:
            q = find_root(
                lambda q: weight * second_at(function, q) + bias - q, grid[i - 1], grid[i]
            )
            slope = weight * length_slope_at(function, q)
            points.append(FixedPoint(q, slope, stability_of(slope)))
    return LengthFixedPoints(*named, tuple(points))


def settled(
    caller: str, function: Function, weight: float, bias: float, variance: float | None
) -> float:
    """The given variance, or that which a signal of length 1 comes to."""
    if variance is not None:
        return as_positive(caller, "variance", variance)
    found = fixed_points_of(function, weight, bias)
    gap = weight * second_at(function, 1.0) + bias - 1.0
    if found.is_everywhere or abs(gap) <= _ON:
        return 1.0
    values = [p.value for p in found.points]
    ahead = [v for v in values if v > 1] if gap > 0 else [v for v in values if v < 1]
    if not ahead:
        fate = "grows without bound" if gap > 0 else "shrinks without end"
        raise ValueError(
            f"{caller} needs a length that the signal settles at, got {function.name} with "
            f"weight_variance={weight:g} and bias_variance={bias:g}, under which the length {fate}."
            " Pass variance= for the length of your layer, or other variances."
        )
    return min(ahead) if gap > 0 else max(ahead)


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
