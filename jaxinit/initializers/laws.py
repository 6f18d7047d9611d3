"""The law of an initializer: what is promised of each entry before anything is drawn.

A law gives mean, variance, kurtosis and support per entry. It is declared once and used three
times: tests hold drawn arrays to it, `jaxinit.checks` holds a user's tree to it, and advice
reasons from it. Moments of a dtype with few bits are those of the rounded law, since rounding
to eight bits moves a variance by more than a check can overlook.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import statistics
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np

_STANDARD_NORMAL = statistics.NormalDist()
# Midpoints of equal probability on which quantiles are read when a law is rounded. Only the
# difference between rounded and unrounded moments is taken from this grid, so its own error
# (1e-4 relative in the tails) enters multiplied by the relative rounding step.
_GRID = (np.arange(4096) + 0.5) / 4096

Quantile = Callable[[np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Part:
    """A slice of an array that has a law of its own.

    Attributes:
        axis: the axis that is sliced, counted from the end of the shape (negative).
        start: first index of the slice.
        stop: index after the last.
        law: the law of the entries inside.
    """

    axis: int
    start: int
    stop: int
    law: Law


@dataclasses.dataclass(frozen=True)
class Law:
    """What an initializer promises of each entry.

    Attributes:
        mean: expectation of an entry.
        variance: expectation of ``|x - mean|**2``.
        kurtosis: expectation of ``|x - mean|**4`` over ``variance**2``; NaN when the
            variance is 0.
        support: lower and upper end of the values; of the moduli when entries are complex.
        parts: slices with laws of their own, for example the three kernels of a packed QKV.
            The moments above are then those of the whole.
        fixed_norm: whether the sum of squares is the same in every draw, as for an
            orthogonal matrix.
        quantile: the inverse distribution function where it is known, else None. It takes no
            part in comparisons.
    """

    mean: complex | float
    variance: float
    kurtosis: float
    support: tuple[float, float]
    parts: tuple[Part, ...] = ()
    fixed_norm: bool = False
    quantile: Quantile | None = dataclasses.field(default=None, compare=False, repr=False)

    @property
    def std(self) -> float:
        """Standard deviation of an entry, the square root of ``variance``."""
        return math.sqrt(self.variance)

    def scaled(self, factor: float, shift: float = 0.0) -> Law:
        """The law of ``factor * x + shift``."""
        low, high = sorted(factor * end if factor else 0.0 for end in self.support)
        quantile = self.quantile
        return Law(
            mean=factor * self.mean + shift,
            variance=factor**2 * self.variance,
            kurtosis=self.kurtosis if factor else math.nan,
            support=(low + shift, high + shift),
            parts=tuple(
                dataclasses.replace(part, law=part.law.scaled(factor, shift)) for part in self.parts
            ),
            fixed_norm=self.fixed_norm and shift == 0,
            quantile=quantile and (lambda u: factor * quantile(u) + shift),
        )

    def rounded(self, dtype: np.dtype) -> Law:
        """The law after one cast to ``dtype``.

        Rounding is monotone, so the support is the rounded support. The moments change
        noticeably below 32 bits only, and are then computed from the quantiles.
        """
        if not jnp.issubdtype(dtype, jnp.floating) or dtype.itemsize >= 4:
            return self
        low, high = (_round(end, dtype) for end in self.support)
        parts = tuple(dataclasses.replace(part, law=part.law.rounded(dtype)) for part in self.parts)
        law = dataclasses.replace(self, support=(low, high), parts=parts, quantile=None)
        if self.quantile is None:
            if self.variance == 0:
                law = dataclasses.replace(law, mean=_round(float(self.mean.real), dtype))
            return law
        exact = self.quantile(_GRID)
        with np.errstate(over="ignore"):
            cast = exact.astype(dtype).astype(np.float64)
        mean = self.mean + (cast.mean() - exact.mean())
        variance = self.variance + (cast.var() - exact.var())
        if cast.var() == 0 or variance <= 0:
            return dataclasses.replace(law, mean=mean, variance=0.0, kurtosis=math.nan)
        kurtosis = self.kurtosis * _kurtosis(cast) / _kurtosis(exact)
        return dataclasses.replace(
            law, mean=float(mean.real), variance=float(variance), kurtosis=float(kurtosis)
        )


def _kurtosis(values: np.ndarray) -> float:
    centred = values - values.mean()
    return float((centred**4).mean() / (centred**2).mean() ** 2)


def _round(value: float, dtype: np.dtype) -> float:
    with np.errstate(over="ignore"):
        return float(np.asarray(value, np.float64).astype(dtype).astype(np.float64))


def point(value: complex | float) -> Law:
    """Every entry equals ``value``."""
    at = abs(value) if isinstance(value, complex) else value
    return Law(value, 0.0, math.nan, (at, at))


@functools.cache
def standard_normal() -> Law:
    """N(0, 1)."""
    return Law(0.0, 1.0, 3.0, (-math.inf, math.inf), quantile=_normal_quantile)


def _normal_quantile(u: np.ndarray) -> np.ndarray:
    return np.array([_STANDARD_NORMAL.inv_cdf(p) for p in u.tolist()])


@functools.cache
def standard_uniform() -> Law:
    """U(-1, 1), variance 1/3."""
    return Law(0.0, 1 / 3, 1.8, (-1.0, 1.0), quantile=lambda u: 2 * u - 1)


@functools.cache
def standard_truncated(lower: float, upper: float) -> Law:
    """N(0, 1) conditioned on ``lower < x < upper``.

    With ``Z = Phi(upper) - Phi(lower)`` the raw moments follow
    ``m_k = (k - 1) m_{k-2} - (upper**(k-1) phi(upper) - lower**(k-1) phi(lower)) / Z``
    (integration by parts; Johnson, Kotz and Balakrishnan, *Continuous Univariate
    Distributions*, volume 1, 1994, section 13.10.1).
    """
    below, above = _STANDARD_NORMAL.cdf(lower), _STANDARD_NORMAL.cdf(upper)
    mass = above - below

    def boundary(k: int) -> float:
        terms = [
            x**k * _STANDARD_NORMAL.pdf(x) if math.isfinite(x) else 0.0 for x in (upper, lower)
        ]
        return (terms[0] - terms[1]) / mass

    m1 = -boundary(0)
    m2 = 1 - boundary(1)
    m3 = 2 * m1 - boundary(2)
    m4 = 3 * m2 - boundary(3)
    variance = m2 - m1**2
    fourth = m4 - 4 * m1 * m3 + 6 * m1**2 * m2 - 3 * m1**4
    return Law(
        m1,
        variance,
        fourth / variance**2,
        (lower, upper),
        quantile=lambda u: _normal_quantile(below + mass * u),
    )


def empirical(values: np.ndarray) -> Law:
    """The law of an entry picked at random from a fixed array."""
    mean = values.mean().item()
    squares = np.abs(values - mean) ** 2
    variance = float(squares.mean())
    ends = np.abs(values) if np.iscomplexobj(values) else values
    kurtosis = float((squares**2).mean() / variance**2) if variance else math.nan
    return Law(mean, variance, kurtosis, (float(ends.min()), float(ends.max())))


def complex_normal() -> Law:
    """Circular complex normal of variance 1; ``E|x|^4 = 2``."""
    return Law(0.0, 1.0, 2.0, (0.0, math.inf))


def complex_disk() -> Law:
    """Uniform on the disk of variance 1, whose radius is sqrt 2; ``E|x|^4 = 4/3``."""
    return Law(0.0, 1.0, 4 / 3, (0.0, math.sqrt(2)))


@functools.cache
def complex_truncated(radius: float) -> Law:
    """Circular complex normal of variance 1, conditioned on ``|x| < radius``.

    With ``t = |x|**2`` exponential, cut at ``c = radius**2`` and ``q = exp(-c) / (1 - exp(-c))``:
    ``E t = 1 - c q`` and ``E t**2 = 2 - (c**2 + 2 c) q``.
    """
    c = radius**2
    q = math.exp(-c) / -math.expm1(-c)
    variance = 1 - c * q
    return Law(0.0, variance, (2 - (c**2 + 2 * c) * q) / variance**2, (0.0, radius))


def sphere_entry(dimension: int, is_complex: bool) -> Law:
    """One entry of a uniformly random unit vector, as found in a Haar orthogonal matrix.

    Real: variance ``1/n`` and ``E x**4 = 3 / (n (n + 2))``; complex: ``E|x|**4 = 2 / (n (n + 1))``.
    """
    n = dimension
    kurtosis = 2 * n / (n + 1) if is_complex else 3 * n / (n + 2)
    support = (0.0, 1.0) if is_complex else (-1.0, 1.0)
    return Law(0.0, 1 / n, kurtosis, support, fixed_norm=True)


def mixture(weights: list[float], laws: list[Law]) -> Law:
    """The law of an entry chosen at random among groups, each with its weight and law."""
    mean = sum(w * law.mean for w, law in zip(weights, laws, strict=True))
    variance = fourth = 0.0
    for w, law in zip(weights, laws, strict=True):
        shift = abs(law.mean - mean)
        own = law.variance
        kurtosis = 0.0 if math.isnan(law.kurtosis) else law.kurtosis
        variance += w * (own + shift**2)
        # The term with the third central moment is left out: it is 0 for every symmetric law.
        fourth += w * (kurtosis * own**2 + 6 * own * shift**2 + shift**4)
    support = (min(law.support[0] for law in laws), max(law.support[1] for law in laws))
    return Law(mean, variance, fourth / variance**2 if variance else math.nan, support)
