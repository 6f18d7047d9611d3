"""Variance scaling: entries whose variance is set by the fans, so that signals keep their size.

One general factory, `variance_scaling`; its named recipes are in `recipes`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from jaxinit import activations
from jaxinit.initializers import _laws as laws
from jaxinit.initializers._arguments import as_choice, as_groups, as_index, as_scale
from jaxinit.initializers._basic import Normal, TruncatedNormal, Uniform
from jaxinit.initializers._fans import DEFAULT_AXES, Axes, Fans, as_axes, compute_fans
from jaxinit.initializers._protocol import Initializer, normalise_dtype

Mode = Literal["fan_in", "fan_out", "fan_avg", "fan_geo_avg"]
Distribution = Literal["truncated_normal", "normal", "uniform"]
Gain = float | str | Callable[..., Any]
_MODES = ("fan_in", "fan_out", "fan_avg", "fan_geo_avg")
_DISTRIBUTIONS = ("truncated_normal", "normal", "uniform")
_BOUND = 2.0  # standard deviations at which "truncated_normal" cuts, as in JAX and TensorFlow

_RECIPES = {
    (1.0, "fan_avg", "uniform"): "glorot_uniform",
    (1.0, "fan_avg", "truncated_normal"): "glorot_normal",
    (1.0, "fan_in", "uniform"): "lecun_uniform",
    (1.0, "fan_in", "truncated_normal"): "lecun_normal",
    (2.0, "fan_in", "uniform"): "he_uniform",
    (2.0, "fan_in", "truncated_normal"): "he_normal",
}


@dataclasses.dataclass(frozen=True, repr=False)
class VarianceScaling(Initializer):
    """Law of `variance_scaling` and of every named recipe."""

    scale: float
    mode: Mode
    distribution: Distribution
    in_axis: int | Sequence[int] = DEFAULT_AXES.in_axis
    out_axis: int | Sequence[int] = DEFAULT_AXES.out_axis
    batch_axis: int | Sequence[int] = DEFAULT_AXES.batch_axis
    groups: int = 1
    transposed_strides: int | Sequence[int] = ()
    # How a recipe was called, as (name, ((argument, value), ...)): for reading, not for comparing.
    recipe: tuple[str, tuple[tuple[str, float], ...]] | None = dataclasses.field(
        default=None, compare=False
    )

    name: ClassVar[str] = "variance_scaling"

    def __post_init__(self) -> None:
        caller = self.name
        object.__setattr__(self, "scale", as_scale(caller, "scale", self.scale))
        as_choice(caller, "mode", self.mode, _MODES)
        as_choice(caller, "distribution", self.distribution, _DISTRIBUTIONS)
        caller = self.label
        axes = as_axes(caller, self.in_axis, self.out_axis, self.batch_axis)
        for field, value in axes._asdict().items():
            object.__setattr__(self, field, value)
        object.__setattr__(self, "groups", as_groups(caller, self.groups))
        object.__setattr__(self, "transposed_strides", _strides(caller, self.transposed_strides))
        normalise_dtype(self)

    @property
    def axes(self) -> Axes:
        return Axes(self.in_axis, self.out_axis, self.batch_axis)  # pyright: ignore

    def with_axes(
        self, axes: Axes, *, groups: int = 1, transposed_strides: int | Sequence[int] = ()
    ) -> Self:
        by_hand = self.axes != DEFAULT_AXES or self.groups != 1 or self.transposed_strides
        if by_hand:
            return self
        return dataclasses.replace(
            self, **axes._asdict(), groups=groups, transposed_strides=transposed_strides
        )

    def fans(self, shape: Sequence[int]) -> Fans:
        return compute_fans(
            self.label,
            shape,
            self.axes,
            self.groups,
            self.transposed_strides,  # pyright: ignore[reportArgumentType]
        )

    def variance_at(self, fans: Fans) -> float:
        """Variance per entry of a kernel with these fans; 0 when the fan that counts is 0."""
        n = {
            "fan_in": fans.fan_in,
            "fan_out": fans.fan_out,
            "fan_avg": (fans.fan_in + fans.fan_out) / 2,
            "fan_geo_avg": math.sqrt(fans.fan_in * fans.fan_out),
        }[self.mode]
        return self.scale / n if n else 0.0

    def at_fans(self, fans: Fans) -> Initializer:
        """The same law with the fans given, for an array that has none, such as a bias."""
        std = math.sqrt(self.variance_at(fans))
        if self.distribution == "normal":
            return Normal(std, dtype=self.dtype)
        if self.distribution == "uniform":
            bound = math.sqrt(3) * std
            return Uniform(-bound, bound, dtype=self.dtype)
        return TruncatedNormal(std, -_BOUND, _BOUND, exact=True, dtype=self.dtype)

    def sample(self, key: Any, shape: tuple[int, ...], dtype: np.dtype) -> jax.Array:
        std = math.sqrt(self.variance_at(self.fans(shape)))
        if dtype.kind == "c":
            return _sample_complex(key, shape, dtype, self.distribution, std)
        if self.distribution == "normal":
            return jax.random.normal(key, shape, dtype) * std
        if self.distribution == "uniform":
            return jax.random.uniform(key, shape, dtype, -1) * (math.sqrt(3) * std)
        factor = std / laws.standard_truncated(-_BOUND, _BOUND).std
        return jax.random.truncated_normal(key, -_BOUND, _BOUND, shape, dtype) * factor

    def exact_law(self, shape: tuple[int, ...], is_complex: bool) -> laws.Law:
        variance = self.variance_at(self.fans(shape))
        if is_complex:
            standard = _COMPLEX_LAWS[self.distribution]()
        elif self.distribution == "normal":
            standard = laws.standard_normal()
        elif self.distribution == "uniform":
            standard = laws.standard_uniform()
        else:
            standard = laws.standard_truncated(-_BOUND, _BOUND)
        law = standard.scaled(math.sqrt(variance) / standard.std)
        return dataclasses.replace(law, variance=variance)

    @property
    def label(self) -> str:
        if self.recipe:
            return self.recipe[0]
        return _RECIPES.get((self.scale, self.mode, self.distribution), self.name)

    def arguments(self) -> dict[str, Any]:
        arguments = super().arguments()
        recipe = arguments.pop("recipe", None)
        arguments |= recipe[1] if recipe else ()
        for axis in DEFAULT_AXES._fields:
            if len(arguments.get(axis, ())) == 1:  # a single axis reads as JAX users write it
                arguments[axis] = arguments[axis][0]
        if self.label != self.name:
            for name in ("scale", "mode", "distribution"):
                del arguments[name]
        return arguments


def _strides(caller: str, strides: Any) -> tuple[int, ...]:
    several = strides if isinstance(strides, Sequence) else (strides,)
    checked = tuple(as_index(caller, "transposed_strides", stride) for stride in several)
    if any(stride < 1 for stride in checked):
        raise ValueError(f"{caller} needs transposed_strides >= 1, got {checked}.")
    return checked if any(stride > 1 for stride in checked) else ()


_COMPLEX_LAWS = {
    "truncated_normal": lambda: laws.complex_truncated(_BOUND),
    "normal": laws.complex_normal,
    "uniform": laws.complex_disk,
}


def _sample_complex(
    key: Any, shape: tuple[int, ...], dtype: np.dtype, distribution: str, std: float
) -> jax.Array:
    """Circular draws with ``E|x|**2 = std**2``, from JAX's split of the key.

    JAX divides the truncated law by 0.95311164, which is not its standard deviation; the law
    here is right, so its numbers are 0.99 times JAX's.
    """
    if distribution == "normal":
        return jax.random.normal(key, shape, dtype) * std
    key_modulus, key_angle = jax.random.split(key)
    real = jnp.finfo(dtype).dtype
    share = jax.random.uniform(key_modulus, shape, real)
    if distribution == "uniform":
        modulus = jnp.sqrt(2 * share) * std
    else:
        # Inverse of the distribution function of |x|: P(|x| < r) = (1 - e^(-r^2)) / (1 - e^(-4)).
        modulus = jnp.sqrt(-jnp.log(1 - share * -math.expm1(-(_BOUND**2))))
        modulus = modulus * (std / laws.complex_truncated(_BOUND).std)
    angle = 2 * math.pi * jax.random.uniform(key_angle, shape, real)
    return jax.lax.complex(modulus * jnp.cos(angle), modulus * jnp.sin(angle))


def as_gain(caller: str, name: str, value: Any) -> float:
    """A gain as a number: given as one, or that of an activation by name or as a callable.

    What is stored is the number, so that configs and manifests mean the same everywhere.
    """
    if not isinstance(value, str) and not callable(value):
        return as_scale(caller, name, value)
    try:
        return activations.gain(value)
    except (TypeError, ValueError) as error:
        raise type(error)(
            f"{caller} needs {name} as a number, or as an activation with a gain. {error}"
        ) from error


def variance_scaling(
    scale: float,
    mode: Mode,
    distribution: Distribution,
    in_axis: int | Sequence[int] = -2,
    out_axis: int | Sequence[int] = -1,
    batch_axis: int | Sequence[int] = (),
    dtype: DTypeLike | None = None,
    *,
    gain: Gain = 1.0,
    groups: int = 1,
    transposed_strides: int | Sequence[int] = (),
) -> VarianceScaling:
    r"""Kernel whose variance follows its fans, so that a layer neither shrinks nor grows a signal.

    Law: independent entries of mean 0 with :math:`\operatorname{Var} W = g^2 s / n`, where s is
    ``scale``, g the ``gain`` and n the fan of the mode: ``fan_in``, ``fan_out``, their arithmetic
    mean ``fan_avg`` or their geometric mean ``fan_geo_avg``. Axes in none of the three axis
    arguments are the receptive field of a convolution and count for both fans.

    Args:
        scale: factor on the variance.
        mode: which fan divides the variance.
        distribution: ``"normal"``; ``"truncated_normal"``, cut at two standard deviations and
            rescaled so that the result has the variance above; ``"uniform"``. For complex dtypes
            circular, ``"uniform"`` being a disk.
        in_axis: axes of the shape that the layer contracts over.
        out_axis: axes that it produces.
        batch_axis: axes along which it repeats independently.
        dtype: dtype to draw when the caller names none.
        gain: factor on the standard deviation; or an activation, by name or as a callable, whose
            forward gain `jaxinit.activations.gain` computes once; or ``"torch:NAME"``.
        groups: feature groups of a convolution.
        transposed_strides: strides of a transposed convolution, one for all spatial axes or one
            for each.

    Returns:
        An initializer; each entry has mean 0 and variance ``gain**2 * scale / n``.

    Raises:
        TypeError: when an argument is of the wrong kind.
        ValueError: when ``scale`` or ``gain`` is negative or not finite, a choice is unknown or an
            axis is named twice; when drawing, if the shape leaves a fan undefined.

    Example:
        >>> variance_scaling(1.0, "fan_geo_avg", "normal").law((100, 400)).variance
        0.005

    References:
        LeCun et al., *Efficient BackProp*, 1998, section 4.6; Glorot and Bengio, 2010,
        equation 12; He et al., 2015, equation 10.
    """
    gain = as_gain("variance_scaling", "gain", gain)
    scale = as_scale("variance_scaling", "scale", scale)
    if not math.isfinite(gain * gain * scale):
        raise ValueError(
            f"variance_scaling needs gain**2 * scale within the range of a float, got gain={gain} "
            f"and scale={scale}."
        )
    return VarianceScaling(
        gain * gain * scale,
        mode,
        distribution,
        in_axis,
        out_axis,
        batch_axis,
        groups,
        transposed_strides,
        dtype=dtype,  # pyright: ignore[reportArgumentType]
    )
