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
from collections.abc import Callable, Sequence
from typing import Any

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


@dataclasses.dataclass(frozen=True, eq=False)
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
            orthogonal matrix of at least 16 bits.
        quantile: the inverse distribution function where it is known, else None. It takes no
            part in comparisons.
        components: the weighted laws that entries come from, when this is a mixture. They take
            no part in comparisons either.
    """

    mean: complex | float
    variance: float
    kurtosis: float
    support: tuple[float, float]
    parts: tuple[Part, ...] = ()
    fixed_norm: bool = False
    quantile: Quantile | None = dataclasses.field(default=None, compare=False, repr=False)
    components: tuple[tuple[float, Law], ...] = dataclasses.field(
        default=(), compare=False, repr=False
    )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Law) and self._content == other._content

    def __hash__(self) -> int:
        return hash(self._content)

    @property
    def _content(self) -> tuple[Any, ...]:
        # NaN differs from itself, but two constants of one value have one law.
        moments = (self.mean, self.variance, self.kurtosis, *self.support)
        return tuple(None if x != x else x for x in moments), self.parts, self.fixed_norm

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
            variance=factor * factor * self.variance,  # `**` would raise where this gives inf
            kurtosis=self.kurtosis if factor else math.nan,
            support=(low + shift, high + shift),
            parts=tuple(
                dataclasses.replace(part, law=part.law.scaled(factor, shift)) for part in self.parts
            ),
            fixed_norm=self.fixed_norm and shift == 0,
            quantile=quantile and (lambda u: (factor * quantile(u) if factor else 0 * u) + shift),
            components=tuple((w, law.scaled(factor, shift)) for w, law in self.components),
        )

    def rounded(self, dtype: np.dtype) -> Law:
        """The law after one cast to ``dtype``.

        Rounding is monotone, so the support is the rounded support. The moments change
        noticeably below 32 bits only, and are then computed from the quantiles or components.
        """
        if not jnp.issubdtype(dtype, jnp.floating) or dtype.itemsize >= 4:
            return self
        low, high = (_round(end, dtype) for end in self.support)
        # Three bits of mantissa move the norm of a kernel by up to a percent from draw to draw.
        fixed_norm = self.fixed_norm and dtype.itemsize > 1
        parts = tuple(dataclasses.replace(part, law=part.law.rounded(dtype)) for part in self.parts)
        if self.components:
            weights, inner = zip(*self.components, strict=True)
            law = mixture(weights, [law.rounded(dtype) for law in inner])
            return dataclasses.replace(law, parts=parts, fixed_norm=fixed_norm)
        law = dataclasses.replace(
            self, support=(low, high), parts=parts, fixed_norm=fixed_norm, quantile=None
        )
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
    if not math.isfinite(value):
        return value  # float8_e4m3fn has no infinity and would turn it into NaN
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

    Moments are taken about the mean by Gauss-Legendre quadrature: the closed forms subtract raw
    moments, which leaves a narrow interval without a correct digit in its kurtosis.
    """
    below, above = _STANDARD_NORMAL.cdf(lower), _STANDARD_NORMAL.cdf(upper)
    mass = above - below
    # Beyond 12 standard deviations lies less than 1e-32; 80 nodes resolve a width of 24.
    low, high = max(lower, -12.0), min(upper, 12.0)
    nodes, weights = np.polynomial.legendre.leggauss(80)
    x = (low + high) / 2 + (high - low) / 2 * nodes
    density = weights * np.exp(-(x**2) / 2)
    density /= density.sum()
    mean = 0.0 if lower == -upper else float(density @ x)
    variance = float(density @ (x - mean) ** 2)
    fourth = float(density @ (x - mean) ** 4)
    return Law(
        mean,
        variance,
        fourth / variance**2,
        (lower, upper),
        quantile=lambda u: _normal_quantile(below + mass * u),
    )


def empirical(values: np.ndarray) -> Law:
    """The law of an entry picked at random from a fixed array."""
    with np.errstate(all="ignore"):  # an infinity among the values leaves moments of NaN
        mean = values.mean().item()
        squares = np.abs(values - mean) ** 2
        variance = float(squares.mean())
        kurtosis = float(((squares / variance) ** 2).mean()) if variance else math.nan
    is_complex = np.iscomplexobj(values)
    ends = np.abs(values) if is_complex else values
    ordered = None if is_complex else np.sort(values, None)
    return Law(
        mean,
        variance,
        kurtosis,
        (float(ends.min()), float(ends.max())),
        quantile=None if ordered is None else lambda u: ordered[(u * ordered.size).astype(int)],
    )


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
    if is_complex:
        return Law(0.0, 1 / n, kurtosis, (0.0, 1.0), fixed_norm=True)
    quantile = functools.partial(_sphere_quantile, n)
    return Law(0.0, 1 / n, kurtosis, (-1.0, 1.0), fixed_norm=True, quantile=quantile)


def _sphere_quantile(n: int, u: np.ndarray) -> np.ndarray:
    if n == 1:
        return np.where(u < 0.5, -1.0, 1.0)
    # The latitude of a random point has density cos(angle)**(n - 2), the entry is its sine.
    reach = min(math.pi / 2, 10 / math.sqrt(n))
    angle = np.linspace(-reach, reach, 8193)
    middle = (angle[1:] + angle[:-1]) / 2
    below = np.concatenate([[0.0], np.cumsum(np.cos(middle) ** (n - 2))])
    return np.sin(np.interp(u * below[-1], below, angle))


def mixture(weights: Sequence[float], laws: Sequence[Law]) -> Law:
    """The law of an entry chosen at random among groups, each with its weight and law."""
    components = tuple((w, law) for w, law in zip(weights, laws, strict=True) if w)
    if len(components) == 1:
        return components[0][1]
    mean = sum(w * law.mean for w, law in components)
    parts = [(w, law, abs(law.mean - mean)) for w, law in components]
    variance = sum(w * (law.variance + shift * shift) for w, law, shift in parts)
    kurtosis = 0.0 if variance else math.nan
    for w, law, shift in parts if variance else ():
        # In units of the variance, since the square of a small one is 0.
        own, between = law.variance / variance, shift * shift / variance
        inner = 0.0 if math.isnan(law.kurtosis) else law.kurtosis
        # The term with the third central moment is left out: it is 0 for every symmetric law.
        kurtosis += w * (inner * own * own + 6 * own * between + between * between)
    lows, highs = zip(*(law.support for _, law in components), strict=True)
    support = (min(lows), max(highs))
    return Law(mean, variance, kurtosis, support, components=components)
