"""Length through depth: the map of the second moment, its fixed points, chi and depth scales.

Mean field of a wide plain network whose weights have variance ``weight_variance / fan_in`` and
whose biases have variance ``bias_variance``. Poole et al., 2016; Schoenholz et al., *Deep
Information Propagation*, 2016.
"""

from __future__ import annotations

import dataclasses
import math

from jaxinit._table import render_table
from jaxinit.activations._correlation import correlation_points_of
from jaxinit.activations._function import Activation, as_positive
from jaxinit.activations._lengths import (
    LengthFixedPoints,
    as_variances,
    derivative_at,
    fixed_points_of,
    length_slope_at,
    one_input,
    settled,
    stability_of,
)
from jaxinit.activations._moments import moments_of


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
        rows = [
            (label, f"{value:.7g}")
            for label, value in (
                ("q*", self.variance),
                ("chi1", self.chi1),
                ("c*", self.correlation),
                ("length, layers", self.length_scale),
                ("correlation, layers", self.correlation_scale),
            )
        ]
        return render_table(["quantity", "value"], rows, title=f"depth scales of {self.name}")


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
    weight, bias = as_variances(caller, weight_variance, bias_variance)
    return weight * moments_of(one_input(caller, fn), q).second_moment + bias


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
    weight, _ = as_variances(caller, weight_variance, 0.0)
    return weight * moments_of(one_input(caller, fn), q).length_slope


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
    weight, bias = as_variances(caller, weight_variance, bias_variance)
    return fixed_points_of(one_input(caller, fn), weight, bias)


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
    weight, bias = as_variances(caller, weight_variance, bias_variance)
    function = one_input(caller, fn)
    q = settled(caller, function, weight, bias, variance)
    return weight * derivative_at(function, q)


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
    weight, bias = as_variances(caller, weight_variance, bias_variance)
    function = one_input(caller, fn)
    q = settled(caller, function, weight, bias, None)
    slope = length_slope_at(function, q) * weight
    points = correlation_points_of(function, weight, bias, q)
    end = next((p for p in points if p.stability != "unstable"), points[-1])
    return DepthScales(
        name=function.name,
        variance=q,
        chi1=points[-1].slope,
        correlation=end.value,
        length_scale=_scale(slope),
        correlation_scale=_scale(end.slope),
    )


def _scale(slope: float) -> float:
    if stability_of(slope) != "stable":
        return math.inf
    return -1 / math.log(abs(slope)) if slope else 0.0
