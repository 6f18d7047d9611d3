"""How far chance may carry what is measured, for any number of entries.

The bounds are tail inequalities and no limits: they hold for one entry as for a billion, so a right
array leaves them with a probability that is known before it is drawn. Throughout, y stands for
``|x - mean|**2 / variance``, k for the kurtosis (the mean of ``y**2``), and each bound is left with
probability at most ``exp(-t)``.

Entries are independent, or fixed in number by kind, as the zeros of `sparse` and `masked` are: then
the logarithm of the moment generating function of a sum is smaller still, the logarithm being
concave. Entries of an orthogonal matrix are neither; their sum is one coordinate of a uniform
point on a sphere times ``sqrt(rows * columns)``, which is sub-Gaussian with its own variance, and
their sum of squares does not vary at all.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxinit.initializers import Law

# Draws are made in float32 at least: JAX's uniform has 2**23 levels and a mean half a level low,
# and its inverse error function is good to a few units in the last place. Nothing is held to more.
_SAMPLING = 2.0**-20


@dataclasses.dataclass(frozen=True)
class Allowance:
    """What a right array of ``n`` entries keeps to.

    Attributes:
        mean: largest distance of the mean from the law's.
        second_moment: smallest and largest mean of ``|x - law.mean|**2``.
        support: smallest and largest entry (modulus when complex).
    """

    mean: float
    second_moment: tuple[float, float]
    support: tuple[float, float]


def _limits(dtype: np.dtype) -> Any:
    # A law on integers is a user's own; it is held to what float32 resolves.
    return jnp.finfo(dtype if jnp.issubdtype(dtype, jnp.inexact) else jnp.float32)


def allowance(law: Law, n: int, dtype: np.dtype, size: int, t: float) -> Allowance:
    """Bounds that chance leaves with probability at most ``exp(-t)`` each.

    Args:
        law: law of the entries.
        n: number of entries.
        dtype: dtype of the array.
        size: longest axis of the array, for the rounding of an orthogonal one.
        t: logarithm of the inverse probability.
    """
    if law.variance == 0:
        return Allowance(0.0, (0.0, 0.0), _support(law, dtype, 0.0))
    noise = _rounding_noise(law, dtype)
    low, high = _fixed_norm(dtype, size) if law.fixed_norm else _second_moment(law, n, dtype, t)
    # One entry out of n: the bound for a single entry, at a probability n times smaller.
    reach = (_mean(law.kurtosis, 1, t + math.log(n)) + noise) * law.std
    return Allowance(
        (_mean(law.kurtosis, n, t) + noise) * law.std,
        (low * max(0.0, 1 - noise) * law.variance, high * (1 + noise) * law.variance),
        _support(law, dtype, reach),
    )


def _mean(kurtosis: float, n: int, t: float) -> float:
    """Distance of a mean of n entries, in standard deviations.

    Bernstein's inequality (Boucheron, Lugosi and Massart, *Concentration Inequalities*, 2013,
    corollary 2.11) for entries with ``E|x - mean|**q <= q!/2 std**2 c**(q - 2)``, q > 2, where
    ``c = std sqrt(kurtosis) / 3``. That holds for every law of the catalogue (the tests compute
    both sides); equality of the third moment bound with Cauchy-Schwarz gives the 3.
    """
    return math.sqrt(2 * t / n) + math.sqrt(kurtosis) / 3 * t / n


def _second_moment(law: Law, n: int, dtype: np.dtype, t: float) -> tuple[float, float]:
    """Ends of the mean of y.

    Above, Bernstein's inequality with variance ``k - 1`` and the scale of `_tail_scale`: for a
    normal law exactly lemma 1 of Laurent and Massart (*Adaptive estimation of a quadratic
    functional by model selection*, 2000). Below, Bernstein's inequality for ``1 - y <= 1``, which
    needs no assumption. For few entries that one is empty, and the Chernoff bound of
    ``E exp(-s y) <= (1 + 2 k s)**(-1 / (2 k))`` takes over, so that zeros where a law has none are
    seen from four entries on. The tests compute both sides of this one as well.
    """
    k = law.kurtosis
    spread = math.sqrt(2 * max(k - 1, 0) * t / n)
    chernoff = math.sqrt(_solve_log_gap(2 * k * t / n))
    # Rounding moves an entry by half a step, which may be all of what is left of its distance.
    limits = _limits(dtype)
    step = float(limits.smallest_subnormal) + float(limits.eps) * abs(law.mean)
    lost = step / 2 / law.std + 4 * float(jnp.finfo(jnp.float32).eps)
    chernoff = max(0.0, chernoff * (1 - float(limits.eps) / 2) - lost) ** 2
    scale = _tail_scale(law, dtype.kind == "c")
    return max(1 - spread - t / (3 * n), chernoff), 1 + spread + scale * t / n


def _tail_scale(law: Law, is_complex: bool) -> float:
    """The c with ``E max(y - 1, 0)**q <= q!/2 (k - 1) c**(q - 2)`` for q > 2.

    For a law that is symmetric around its mean ``2 k / 3``: 2 for a normal law, more where a normal
    law meets zeros, less where tails are cut. A law that is not is bounded, and Bernstein's third
    of the bound holds; or it is a normal law cut on one side, whose tail belongs to the variance
    before the cut, up to 15 times what is left (all of the normal's mass but 0.001 being cut).
    """
    low, high = (abs(end - law.mean) for end in law.support)
    symmetric = 2 * law.kurtosis / 3
    if is_complex or math.isclose(low, high, rel_tol=1e-3):
        return symmetric
    if math.isinf(max(low, high)):
        return 7 * symmetric
    return max(symmetric, (max(low, high) ** 2 / law.variance - 1) / 3)


def _solve_log_gap(target: float) -> float:
    """The x in (0, 1] with ``x - 1 - log(x) = target``."""
    low, high = -target - 1.0, 0.0  # of log(x); the left side falls as x grows
    for _ in range(100):
        middle = (low + high) / 2
        if math.expm1(middle) - middle > target:
            low = middle
        else:
            high = middle
    return math.exp(low)


def _fixed_norm(dtype: np.dtype, size: int) -> tuple[float, float]:
    """Ends of the mean of y where only rounding moves it.

    Q^T Q of a QR decomposition is within ``8 eps sqrt(size)`` of the identity; a cast to a narrow
    dtype changes each square by at most twice its unit roundoff, and the square of that.
    """
    limits = _limits(dtype)
    eps = float(limits.eps)
    if limits.bits >= 32:
        error = 8 * eps * math.sqrt(size)
    else:
        error = 8 * float(jnp.finfo(jnp.float32).eps) * math.sqrt(size) + eps + eps**2 / 4
    return 1 - error, 1 + error


def _rounding_noise(law: Law, dtype: np.dtype) -> float:
    """What finite precision may add to a mean, in std, and to a second moment, relative.

    A law of a narrow dtype states the moments after rounding, read from a grid of quantiles. With
    r the step of the dtype over the std it was found at most ``(r + r**2) / 70`` off (normal,
    uniform and truncated laws in four dtypes, 33 million entries each).
    """
    limits = _limits(dtype)
    if limits.bits >= 32:
        return _SAMPLING
    at = math.sqrt(law.variance + abs(law.mean) ** 2)
    step = (float(limits.eps) * at + float(limits.smallest_subnormal)) / law.std
    return _SAMPLING + (step + step**2) / 32


def _support(law: Law, dtype: np.dtype, reach: float) -> tuple[float, float]:
    """Ends of the support, widened by the rounding of the draw and of its cast.

    An infinite end is replaced by what a single entry may reach.
    """
    centre = abs(law.mean) if dtype.kind == "c" else law.mean.real
    low, high = law.support
    low = low if math.isfinite(low) else centre - reach
    high = high if math.isfinite(high) else centre + reach
    limits = _limits(dtype)
    # A product, a sum and the bound itself are rounded in at least float32, a modulus takes two
    # more products; a narrow cast can then end on the number next to the rounded bound.
    slack = 4 * float(limits.eps if limits.bits >= 32 else jnp.finfo(jnp.float32).eps)
    if limits.bits < 32 and law.variance:
        slack = float(limits.eps)
    width = slack * max(abs(low), abs(high))
    return low - width, high + width
