"""Finite width: how far the length of one drawn network may lie from that of the average one."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxinit.activations._function import Activation, Function
from jaxinit.activations._maps import MeanField, one_input, second_at
from jaxinit.activations._moments import quantity_table
from jaxinit.activations._quadrature import DivergenceError, density, edges, integrate, panels

Array = np.ndarray


@dataclasses.dataclass(frozen=True)
class WidthSpread:
    """Law of the log of the last second moment over draws of the weights, about N(-b / 2, b).

    Attributes:
        name: of the activation.
        widths: units of each layer.
        per_layer: variance of the log that a layer of one unit would add.
        variance: b.
        mean: -b / 2: the mean over networks is kept, so the typical one shrinks.
        median: of the last second moment, as a share of its mean.
    """

    name: str
    widths: tuple[int, ...]
    per_layer: float
    variance: float
    mean: float
    median: float

    def __str__(self) -> str:
        low, high = (math.exp(self.mean + sign * math.sqrt(self.variance)) for sign in (-1, 1))
        title = f"last second moment of {self.name} over its mean, {len(self.widths)} layers"
        rows = {
            "variance of the log": self.variance,
            "median": self.median,
            "two in three within": f"{low:.3g} to {high:.3g}",
        }
        return quantity_table(title, rows, digits=5)


def width_spread(
    fn: Activation,
    widths: Sequence[int],
    *,
    weight_variance: float | None = None,
    bias_variance: float = 0.0,
    orthogonal: bool = False,
) -> WidthSpread:
    r"""How much the length of single networks of these widths differs from the average.

    Law: :math:`\log(q_L / E q_L) \sim N(-b/2, b)` with :math:`b = \sum_l \lambda^{2(L-l)} r^2
    (E f^4 / (E f^2)^2 - 1) / n_l`, where :math:`\lambda` is the slope of the length map and r the
    share of the weights, not the biases, in q. ReLU with He's variance: :math:`5 \sum 1 / n_l`.
    Orthogonal kernels keep the length of what they are given: :math:`2 \lambda^2` of each term, the
    part of the squares of f that follows the squares of its argument, goes. ReLU: 3 instead of 5.

    Args:
        fn: a name of the catalogue or a callable of one input.
        widths: units of each hidden layer, in order.
        weight_variance: variance of a weight times its fan_in; None keeps the second moment 1.
        bias_variance: variance of a bias.
        orthogonal: whether kernels are orthogonal instead of independent entries.

    Returns:
        Variance and mean of the log, and the median.

    Raises:
        TypeError, ValueError: as `chi`; when a width is not a positive int, or the fourth moment
            does not exist.

    Example:
        >>> spread = width_spread("relu", [100] * 50)
        >>> round(spread.variance, 9), round(spread.median, 3)
        (2.5, 0.287)

    References:
        Hanin and Rolnick, *How to start training: the effect of initialization and architecture*,
        2018, theorem 5.
    """
    caller = "activations.width_spread"
    sizes = _as_widths(caller, widths)
    function = one_input(caller, fn)
    if weight_variance is None:
        weight_variance = 1 / second_at(function, 1.0)
        keeps_one = bias_variance == 0
    else:
        keeps_one = False
    network = MeanField.of(caller, function, weight_variance, bias_variance)
    q = 1.0 if keeps_one else network.settled(caller)
    if q == 0:
        raise ValueError(
            f"{caller} needs a length above 0, got {function.name} with "
            f"weight_variance={network.weight:g}, under which it shrinks to 0. Raise a variance."
        )
    second = second_at(function, q)
    share = network.weight * second / network.length(q)
    per_layer = share**2 * (_fourth(caller, function, q) / second**2 - 1)
    slope = network.length_slope(q)
    if orthogonal:
        per_layer = max(per_layer - 2 * slope**2, 0.0)
    after = np.arange(len(sizes) - 1, -1, -1)
    variance = float(np.sum(np.float64(slope) ** (2 * after) * per_layer / np.array(sizes)))
    return WidthSpread(
        name=function.name,
        widths=sizes,
        per_layer=per_layer,
        variance=variance,
        mean=-variance / 2,
        median=math.exp(-variance / 2),
    )


def _as_widths(caller: str, widths: Any) -> tuple[int, ...]:
    try:
        sizes = tuple(int(width) for width in widths)
        if any(size != width for size, width in zip(sizes, widths, strict=True)):
            raise TypeError
    except TypeError:
        raise TypeError(
            f"{caller} needs widths as a sequence of ints, got {widths!r}. "
            "Pass one for each hidden layer, such as [512] * 10."
        ) from None
    if not sizes or min(sizes) < 1:
        raise ValueError(f"{caller} needs at least one width, all above 0, got {list(sizes)}.")
    return sizes


def _fourth(caller: str, function: Function, q: float) -> float:
    """E f^4 at variance q."""
    scale = math.sqrt(q)

    def evaluate(z: Array, row: Array) -> Array:
        with np.errstate(over="ignore", invalid="ignore"):
            return (function(scale * z, weighed=z)[0] ** 4 * density(z))[None]

    try:
        over = panels(edges(function, np.array([scale])))
        with np.errstate(over="ignore", invalid="ignore"):
            found = float(integrate(evaluate, over, noise=8 * function.noise).values[0, 0])
    except DivergenceError:
        found = math.nan
    if not math.isfinite(found):
        raise ValueError(
            f"{caller} needs an activation with a finite fourth moment, got {function.name}. "
            "The length of single networks has no finite spread; clip it, or use another."
        )
    return found
