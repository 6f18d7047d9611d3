"""The law of an initializer: what is promised of each entry before anything is drawn.

A law gives mean, variance, kurtosis and support per entry. It is declared once and used three
times: tests hold drawn arrays to it, `jaxinit.checks` holds a user's tree to it, and advice
reasons from it. Moments of a dtype with few bits are those of the rounded law, since rounding
to eight bits moves a variance by more than a check can overlook. `check_fits` refuses a dtype that
cannot hold a law at all.
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
class Slab:
    """A range of indices along one axis whose entries have a law of their own.

    Attributes:
        axis: the axis that is cut, counted from the end of the shape (negative).
        start: first index of the range.
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
        slabs: ranges with laws of their own, for example the three kernels of a packed QKV.
            The moments above are then those of the whole.
        fixed_norm: whether the sum of squares is the same in every draw, as for an
            orthogonal matrix of at least 16 bits.
        quantile: the inverse distribution function where it is known, else None. Comparisons
            ignore it.
        components: the weighted laws that entries come from, when this is a mixture. Comparisons
            ignore them.
        known: whether anything is promised; where nothing is, the moments are NaN.
    """

    mean: complex | float
    variance: float
    kurtosis: float
    support: tuple[float, float]
    slabs: tuple[Slab, ...] = ()
    fixed_norm: bool = False
    quantile: Quantile | None = dataclasses.field(default=None, compare=False, repr=False)
    components: tuple[tuple[float, Law], ...] = dataclasses.field(
        default=(), compare=False, repr=False
    )
    known: bool = True

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Law) and self._content == other._content

    def __hash__(self) -> int:
        return hash(self._content)

    @property
    def _content(self) -> tuple[Any, ...]:
        # NaN differs from itself, but two constants of one value have one law.
        moments = (self.mean, self.variance, self.kurtosis, *self.support)
        known = self.known
        return tuple(None if x != x else x for x in moments), self.slabs, self.fixed_norm, known

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
            slabs=self.map_slabs(lambda law: law.scaled(factor, shift)),
            fixed_norm=self.fixed_norm and shift == 0,
            quantile=quantile and (lambda u: (factor * quantile(u) if factor else 0 * u) + shift),
            components=tuple((w, law.scaled(factor, shift)) for w, law in self.components),
            known=self.known,
        )

    def map_slabs(self, change: Callable[[Law], Law]) -> tuple[Slab, ...]:
        """The slabs with every law changed by a function."""
        return tuple(dataclasses.replace(slab, law=change(slab.law)) for slab in self.slabs)

    def rounded(self, dtype: np.dtype) -> Law:
        """The law after one cast to ``dtype``.

        Rounding is monotone, so the support is the rounded support. The moments change
        noticeably below 32 bits only, and are then computed from the quantiles or components.
        """
        if not jnp.issubdtype(dtype, jnp.floating) or dtype.itemsize >= 4:
            return self
        # Three bits of mantissa move the norm of a kernel by up to a percent from draw to draw.
        fixed_norm = self.fixed_norm and dtype.itemsize > 1
        slabs = self.map_slabs(lambda law: law.rounded(dtype))
        if self.components:
            weights, inner = zip(*self.components, strict=True)
            law = mixture(weights, [law.rounded(dtype) for law in inner])
            return dataclasses.replace(law, slabs=slabs, fixed_norm=fixed_norm)
        low, high = (_round(end, dtype) for end in self.support)
        law = dataclasses.replace(
            self, support=(low, high), slabs=slabs, fixed_norm=fixed_norm, quantile=None
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


def check_fits(caller: str, law: Law, dtype: np.dtype, *, random: bool = True) -> None:
    """Raises ``ValueError`` when draws of ``law`` would leave the range of ``dtype``.

    Where draws are random, a spread that the dtype rounds to nothing is refused too.
    """
    for slab in law.slabs:
        check_fits(caller, slab.law, dtype, random=random)
    if not law.known:
        return
    centre = abs(law.mean)
    infinite_on_purpose = not math.isfinite(centre) and not (random and _overflows(law))
    if not jnp.issubdtype(dtype, jnp.inexact) or infinite_on_purpose:
        return  # a constant may be infinite or NaN
    limits = jnp.finfo(dtype)
    drawn_in = jnp.finfo(widened(dtype))
    std = law.std
    # The largest normal that float32 sampling yields is 5.42 standard deviations out.
    reach = 6 * std + centre
    low, high = (end if math.isfinite(end) else math.copysign(reach, end) for end in law.support)
    largest = max(abs(low), abs(high))
    # A bounded law is drawn as a number below 1 times its width.
    if not (largest <= float(limits.max) and high - low <= float(drawn_in.max)):
        raise ValueError(
            f"{caller} needs values within the range of {dtype}, got values up to {largest:.3g} "
            f"where {dtype} ends at {float(limits.max):.3g}. Use a smaller scale or a wider dtype."
        )
    if not random or law.support[0] == law.support[1]:
        return
    collapses = std < 8 * float(drawn_in.eps) * centre or std < 8 * float(drawn_in.tiny)
    if collapses or law.rounded(dtype).variance == 0:
        raise ValueError(
            f"{caller} needs a standard deviation that {dtype} can resolve, got {std:.3g} around "
            f"a mean of {centre:.3g}. Use a larger scale or a wider dtype."
        )


def widened(dtype: np.dtype) -> np.dtype:
    """The dtype to draw in: float32 for narrower floats, which are cast once at the end."""
    narrow = jnp.issubdtype(dtype, jnp.floating) and dtype.itemsize < 4
    return np.dtype(np.float32) if narrow else dtype


def _overflows(law: Law) -> bool:
    """Whether the moments of a random law leave the range of Python's floats."""
    if law.components:
        return any(_overflows(inner) for _, inner in law.components)
    drawn = law.variance > 0 or (law.variance == 0 and law.quantile is not None)
    return drawn and not math.isfinite(abs(law.mean))


def _kurtosis(values: np.ndarray) -> float:
    centred = values - values.mean()
    return float((centred**4).mean() / (centred**2).mean() ** 2)


def _round(value: float, dtype: np.dtype) -> float:
    if not math.isfinite(value):
        return value  # float8_e4m3fn has no infinity and would turn it into NaN
    with np.errstate(over="ignore"):
        return float(np.asarray(value, np.float64).astype(dtype).astype(np.float64))


def unknown() -> Law:
    """Nothing is promised of an entry."""
    return Law(math.nan, math.nan, math.nan, (-math.inf, math.inf), known=False)


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
    if not all(law.known for _, law in components):
        return unknown()
    mean = sum(w * law.mean for w, law in components)
    shifted = [(w, law, abs(law.mean - mean)) for w, law in components]
    variance = sum(w * (law.variance + shift * shift) for w, law, shift in shifted)
    kurtosis = 0.0 if variance else math.nan
    for w, law, shift in shifted if variance else ():
        # In units of the variance, since the square of a small one is 0.
        own, between = law.variance / variance, shift * shift / variance
        inner = 0.0 if math.isnan(law.kurtosis) else law.kurtosis
        # The term with the third central moment is left out: it is 0 for every symmetric law.
        kurtosis += w * (inner * own * own + 6 * own * between + between * between)
    lows, highs = zip(*(law.support for _, law in components), strict=True)
    support = (min(lows), max(highs))
    return Law(mean, variance, kurtosis, support, components=components)
