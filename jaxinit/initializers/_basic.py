"""Initializers that know no fans: zeros, ones, constants, uniform, normal and truncated normal.

They are the classical starting points. A constant kernel leaves all units of a layer twins, and
a fixed standard deviation fits one width only: use them for biases, scales, embeddings and
output layers, and `variance_scaling` or one of its recipes for kernels.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike, DTypeLike

from jaxinit._arguments import FrozenArray, Shape, as_flag, as_number, as_scale
from jaxinit.initializers import _laws as laws
from jaxinit.initializers._base import NUMERIC, REAL, BaseInitializer, Traits, call_of, settle
from jaxinit.initializers._protocol import OutSharding

# Below this share of the normal's mass between the bounds, float32 inversion of the distribution
# function leaves fewer than about ten thousand distinct values.
_SMALLEST_MASS = 1e-3

# Bytes of the dtype -> standard deviations beyond which its distribution function rounds to 1. JAX
# returns the bound there, which is the largest float when the bound is infinite (one draw in 1e5
# with lower=3). A bound here makes these draws the tail that they stand for.
_REACH = {4: 5.6, 8: 8.4}


@dataclasses.dataclass(frozen=True, repr=False)
class Constant(BaseInitializer):
    """A number, or an array that broadcasts, in every draw."""

    value: FrozenArray

    name: ClassVar[str] = "constant"
    own_traits: ClassVar[Traits] = Traits(NUMERIC, random=False)

    def __post_init__(self) -> None:
        settle(self, value=FrozenArray.of)

    def __call__(
        self,
        key: ArrayLike | None = None,
        shape: Sequence[int] | None = None,
        dtype: DTypeLike | None = None,
        out_sharding: OutSharding = None,
    ) -> Any:
        """Draws as every initializer; without arguments returns itself, so ``zeros()`` works."""
        if key is None and shape is None and dtype is None and out_sharding is None:
            return self
        if shape is None:
            raise TypeError(f"{self.label} needs a shape, as in {self!r}(key, (512, 256)).")
        return super().__call__(key, shape, dtype, out_sharding)

    def sample(self, key: Any, shape: Shape, dtype: np.dtype) -> jax.Array:
        return jnp.broadcast_to(jnp.asarray(self.value.array.astype(dtype)), shape)

    def exact_law(self, shape: Shape, is_complex: bool) -> laws.Law:
        values = self.value.array
        self.value.check_broadcasts(self.name, "value", shape)
        if is_complex:
            values = values.astype(np.complex128)
        if values.ndim == 0:
            return laws.point(values.item())
        return laws.empirical(values)

    def resolve_dtype(self, dtype: Any) -> np.dtype:
        resolved = super().resolve_dtype(dtype)
        values = self.value.array
        if np.iscomplexobj(values) and resolved.kind != "c":
            raise TypeError(
                f"constant needs a complex dtype for a complex value, got {resolved}. "
                "Pass dtype='complex64', or the real part."
            )
        if not jnp.issubdtype(resolved, jnp.inexact):
            low, high = (0, 1) if resolved.kind == "b" else _integer_range(resolved)
            whole = np.isfinite(values).all() and (values == np.trunc(values)).all()
            if not whole or values.min().item() < low or values.max().item() > high:
                raise ValueError(
                    f"constant needs values that {resolved} can hold, got {self.value!r}. "
                    "Use whole numbers within its range, or a float dtype."
                )
        return resolved

    def __repr__(self) -> str:
        if self.dtype is None and self.value.array.shape == ():
            for name, number in (("zeros", 0), ("ones", 1)):
                if self.value.array.item() == number:
                    return name
        return super().__repr__()


def _integer_range(dtype: np.dtype) -> tuple[int, int]:
    limits = jnp.iinfo(dtype)
    return int(limits.min), int(limits.max)


def constant(value: ArrayLike | Sequence[Any], dtype: DTypeLike | None = None) -> Constant:
    r"""The same number in every entry, or a given array: every unit of the layer is a twin.

    Law: :math:`x = c`, variance 0. Legal for biases and scales; on a hidden kernel, no training
    tells two units apart.

    Args:
        value: a number, or an array that broadcasts to the shape asked for.
        dtype: dtype to draw when the caller names none.

    Returns:
        An initializer that ignores its key.

    Raises:
        TypeError: when the value is not numeric.
        ValueError: when drawing, if the value does not broadcast to the shape or does not fit
            the dtype.

    Example:
        >>> constant(0.1)(None, (3,)).tolist() == [np.float32(0.1)] * 3
        True
        >>> constant([1, 2])(None, (2, 2), "int32").tolist()
        [[1, 2], [1, 2]]
    """
    return Constant(value, dtype=dtype)  # pyright: ignore[reportArgumentType]


zeros = constant(0)
ones = constant(1)


def zeros_init() -> Constant:
    """The initializer `zeros`: what a bias, or the last layer of a residual branch, starts from.

    Example:
        >>> zeros_init() == zeros
        True
    """
    return zeros


def ones_init() -> Constant:
    """The initializer `ones`: what the scale of a normalisation starts from.

    Example:
        >>> ones_init()(None, (2,)).tolist()
        [1.0, 1.0]
    """
    return ones


@dataclasses.dataclass(frozen=True, repr=False)
class Uniform(BaseInitializer):
    """Independent entries, uniform between two bounds."""

    minval: float
    maxval: float

    name: ClassVar[str] = "uniform"
    own_traits: ClassVar[Traits] = Traits(REAL)

    def __post_init__(self) -> None:
        settle(self, minval=as_number, maxval=as_number)
        if self.minval > self.maxval:
            raise ValueError(
                f"uniform needs minval <= maxval, got minval={self.minval}, maxval={self.maxval}. "
                "Swap the bounds; uniform(scale) is U(0, scale), so a negative scale has no law."
            )

    def sample(self, key: Any, shape: Shape, dtype: np.dtype) -> jax.Array:
        unit = jax.random.uniform(key, shape, dtype)
        if self.minval == 0:
            return unit * self.maxval
        # Multiplying first keeps the spread exact; JAX's own minval and maxval round it to the
        # dtype before it is used. The clip stops the sum from rounding past the bound.
        drawn = unit * (self.maxval - self.minval) + self.minval
        return jnp.clip(drawn, self.minval, self.maxval)

    def exact_law(self, shape: Shape, is_complex: bool) -> laws.Law:
        half = self.maxval / 2 - self.minval / 2  # the difference itself may overflow
        law = laws.standard_uniform().scaled(half, self.minval + half)
        return dataclasses.replace(law, support=(self.minval, self.maxval))

    def arguments(self) -> dict[str, Any]:
        arguments = super().arguments()
        if self.minval == 0:
            return {"scale": self.maxval} | {k: v for k, v in arguments.items() if k == "dtype"}
        return arguments

    def __repr__(self) -> str:
        # JAX users write the scale by position; the bounds are keyword-only.
        return call_of(self.label, self.arguments(), positional=["scale"])


def uniform(
    scale: float = 1e-2,
    dtype: DTypeLike | None = None,
    *,
    minval: float | None = None,
    maxval: float | None = None,
) -> Uniform:
    r"""Plain uniform entries: breaks symmetry, but fits one width only.

    Law: :math:`x \sim U(a, b)`, mean :math:`(a + b) / 2`, variance :math:`(b - a)^2 / 12` per
    entry. As in JAX, ``uniform(scale)`` is :math:`U(0, scale)`, whose mean is not 0: for the
    classical symmetric law write ``uniform(minval=-a, maxval=a)``.

    Args:
        scale: upper bound when ``maxval`` is not given.
        dtype: dtype to draw when the caller names none.
        minval: lower bound, 0 when not given.
        maxval: upper bound; excludes ``scale``.

    Returns:
        An initializer for real dtypes.

    Raises:
        TypeError: when a bound is not a real number.
        ValueError: when a bound is not finite, the bounds are reversed, or both ``scale`` and
            ``maxval`` are given.

    Example:
        >>> law = uniform(minval=-0.3, maxval=0.3).law((64, 64))
        >>> law.mean, round(law.variance, 3)
        (0.0, 0.03)
    """
    if maxval is not None and as_number("uniform", "scale", scale) != 1e-2:
        raise ValueError(
            f"uniform needs one upper bound, got scale={scale} and maxval={maxval}. "
            "Write uniform(scale) for U(0, scale), or uniform(minval=a, maxval=b)."
        )
    upper = scale if maxval is None else maxval
    return Uniform(0.0 if minval is None else minval, upper, dtype=dtype)  # pyright: ignore


@dataclasses.dataclass(frozen=True, repr=False)
class Normal(BaseInitializer):
    """Independent Gaussian entries."""

    stddev: float
    mean: float = 0.0

    name: ClassVar[str] = "normal"

    def __post_init__(self) -> None:
        settle(self, stddev=as_scale, mean=as_number)

    def sample(self, key: Any, shape: Shape, dtype: np.dtype) -> jax.Array:
        drawn = jax.random.normal(key, shape, dtype) * self.stddev
        return drawn + self.mean if self.mean else drawn

    def exact_law(self, shape: Shape, is_complex: bool) -> laws.Law:
        if not is_complex:
            return laws.standard_normal().scaled(self.stddev, self.mean)
        law = laws.complex_normal().scaled(self.stddev)
        if self.mean:
            law = dataclasses.replace(law, mean=complex(self.mean), support=(0.0, math.inf))
        return law


def normal(stddev: float = 1e-2, dtype: DTypeLike | None = None, *, mean: float = 0.0) -> Normal:
    r"""Plain Gaussian entries: breaks symmetry, but fits one width only.

    Law: :math:`x \sim N(\mu, \sigma^2)` with :math:`\sigma` = ``stddev``; for complex dtypes
    circular, with :math:`E|x - \mu|^2 = \sigma^2`.

    Args:
        stddev: standard deviation per entry.
        dtype: dtype to draw when the caller names none.
        mean: mean per entry.

    Returns:
        An initializer for real and complex dtypes.

    Raises:
        TypeError: when a parameter is not a real number.
        ValueError: when ``stddev`` is negative, or a parameter is not finite.

    Example:
        >>> law = normal(0.02).law((768, 3072))
        >>> law.mean, law.std, law.kurtosis
        (0.0, 0.02, 3.0)

    References:
        Radford et al., *Language Models are Unsupervised Multitask Learners*, 2019, section 2.3,
        and its released code, for 0.02 in transformers.
    """
    return Normal(stddev, mean, dtype=dtype)  # pyright: ignore[reportArgumentType]


@dataclasses.dataclass(frozen=True, repr=False)
class TruncatedNormal(BaseInitializer):
    """Independent Gaussian entries, cut at two bounds."""

    stddev: float
    lower: float = -2.0
    upper: float = 2.0
    mean: float = 0.0
    exact: bool = False

    name: ClassVar[str] = "truncated_normal"
    own_traits: ClassVar[Traits] = Traits(REAL)

    def __post_init__(self) -> None:
        settle(
            self, stddev=as_scale, lower=_as_bound, upper=_as_bound, mean=as_number, exact=as_flag
        )
        cdf = statistics.NormalDist().cdf
        if not cdf(self.upper) - cdf(self.lower) >= _SMALLEST_MASS:
            raise ValueError(
                f"{self.name} needs lower < upper with at least {_SMALLEST_MASS} of the normal's "
                f"mass between them, got lower={self.lower}, upper={self.upper}. The bounds count "
                "standard deviations from the mean, not units of the array."
            )

    def sample(self, key: Any, shape: Shape, dtype: np.dtype) -> jax.Array:
        factor, shift = self._affine()
        reach = _REACH[dtype.itemsize]
        lower, upper = max(self.lower, -reach), min(self.upper, reach)
        drawn = jax.random.truncated_normal(key, lower, upper, shape, dtype) * factor
        return drawn + shift if shift else drawn

    def exact_law(self, shape: Shape, is_complex: bool) -> laws.Law:
        return laws.standard_truncated(self.lower, self.upper).scaled(*self._affine())

    def _affine(self) -> tuple[float, float]:
        """Factor and shift from the standard truncated normal to the law."""
        if not self.exact:
            return self.stddev, self.mean
        standard = laws.standard_truncated(self.lower, self.upper)
        factor = self.stddev / standard.std
        return factor, self.mean - factor * float(standard.mean.real)


def _as_bound(caller: str, name: str, value: Any) -> float:
    """A real number, or an infinity."""
    infinite = isinstance(value, float | np.floating) and math.isinf(value)
    return float(value) if infinite else as_number(caller, name, value)


def truncated_normal(
    stddev: float = 1e-2,
    dtype: DTypeLike | None = None,
    lower: float = -2.0,
    upper: float = 2.0,
    *,
    mean: float = 0.0,
    exact: bool = False,
) -> TruncatedNormal:
    r"""Gaussian entries without the tails, so that no weight starts as an outlier.

    Law: :math:`x = \mu + \sigma t`, with t a standard normal conditioned on
    :math:`lower < t < upper`. As in JAX the result then has a smaller standard deviation than
    ``stddev`` (0.8796 of it at two standard deviations); with ``exact`` the result has the mean
    and the standard deviation asked for. Bounds count standard deviations, where PyTorch and
    timm count units of the array.

    Args:
        stddev: standard deviation of the normal before truncation; after it with ``exact``.
        dtype: dtype to draw when the caller names none.
        lower: lower bound in standard deviations, may be ``-inf``.
        upper: upper bound in standard deviations, may be ``inf``.
        mean: mean of the normal before truncation; after it with ``exact``.
        exact: whether ``mean`` and ``stddev`` are those of the result.

    Returns:
        An initializer for real dtypes.

    Raises:
        TypeError: when a parameter is not a real number.
        ValueError: when ``stddev`` is negative, or the bounds leave less than 0.001 of the mass.

    Example:
        >>> round(truncated_normal(0.02).law((64, 64)).std, 6)
        0.017593
        >>> round(truncated_normal(0.02, exact=True).law((64, 64)).std, 6)
        0.02
    """
    return TruncatedNormal(stddev, lower, upper, mean, exact, dtype=dtype)  # pyright: ignore
