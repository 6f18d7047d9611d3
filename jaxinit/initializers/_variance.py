"""Variance scaling: entries whose variance is set by the fans, so that signals keep their size.

One general factory, `variance_scaling`, and its named recipes: LeCun for layers without a
rectifier, Glorot (Xavier) for a compromise between forward and backward, He (Kaiming) for ReLU.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal, ParamSpec, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from jaxinit import activations
from jaxinit._arguments import (
    Axis,
    Shape,
    as_choice,
    as_count,
    as_number,
    as_scale,
    source_of,
)
from jaxinit.initializers import _laws as laws
from jaxinit.initializers._base import BaseInitializer, settle
from jaxinit.initializers._basic import Normal, TruncatedNormal, Uniform
from jaxinit.initializers._fans import DEFAULT_AXES, Axes, Fans, as_axes, compute_fans

Mode = Literal["fan_in", "fan_out", "fan_avg", "fan_geo_avg"]
Distribution = Literal["truncated_normal", "normal", "uniform"]
Gain = float | str | Callable[..., Any]
_MODES = ("fan_in", "fan_out", "fan_avg", "fan_geo_avg")
_DISTRIBUTIONS = ("truncated_normal", "normal", "uniform")
_BOUND = 2.0  # standard deviations at which "truncated_normal" cuts, as in JAX and TensorFlow

# Scale, mode and distribution of every recipe.
_RECIPES: dict[str, tuple[float, Mode, Distribution]] = {
    "glorot_uniform": (1.0, "fan_avg", "uniform"),
    "glorot_normal": (1.0, "fan_avg", "truncated_normal"),
    "lecun_uniform": (1.0, "fan_in", "uniform"),
    "lecun_normal": (1.0, "fan_in", "truncated_normal"),
    "he_uniform": (2.0, "fan_in", "uniform"),
    "he_normal": (2.0, "fan_in", "truncated_normal"),
}
_RECIPE_NAMES = {law: name for name, law in _RECIPES.items()}


@dataclasses.dataclass(frozen=True, repr=False)
class VarianceScaling(BaseInitializer):
    """Independent entries whose variance is ``scale`` over a fan."""

    scale: float
    mode: Mode
    distribution: Distribution
    in_axis: Axis = DEFAULT_AXES.in_axis
    out_axis: Axis = DEFAULT_AXES.out_axis
    batch_axis: Axis = DEFAULT_AXES.batch_axis
    groups: int = 1
    transposed_strides: Axis = ()
    # Name of a recipe and the arguments that its scale does not show. They are for `repr` and
    # configs: two initializers of one law are equal however they were written.
    spelling: tuple[str, tuple[tuple[str, float], ...]] | None = dataclasses.field(
        default=None, compare=False
    )

    name: ClassVar[str] = "variance_scaling"

    def __post_init__(self) -> None:
        # The label depends on these three, so their errors start with the name of the factory.
        object.__setattr__(self, "scale", as_scale(self.name, "scale", self.scale))
        as_choice(self.name, "mode", self.mode, _MODES)
        as_choice(self.name, "distribution", self.distribution, _DISTRIBUTIONS)
        axes = as_axes(self.label, self.in_axis, self.out_axis, self.batch_axis)
        for field, value in axes._asdict().items():
            object.__setattr__(self, field, value)
        settle(self, groups=as_count, transposed_strides=_as_strides)

    @property
    def axes(self) -> Axes:
        return Axes(self.in_axis, self.out_axis, self.batch_axis)  # pyright: ignore

    def with_axes(self, axes: Axes, *, groups: int = 1, transposed_strides: Axis = ()) -> Self:
        if self.axes != DEFAULT_AXES or self.groups != 1 or self.transposed_strides:
            return self
        return dataclasses.replace(
            self, **axes._asdict(), groups=groups, transposed_strides=transposed_strides
        )

    def fans(self, shape: Sequence[int]) -> Fans:
        strides: Any = self.transposed_strides
        return compute_fans(self.label, shape, self.axes, self.groups, strides)

    def variance_at(self, fans: Fans) -> float:
        """Variance per entry of a kernel with these fans; 0 when the fan that counts is 0."""
        n = {
            "fan_in": fans.fan_in,
            "fan_out": fans.fan_out,
            "fan_avg": (fans.fan_in + fans.fan_out) / 2,
            "fan_geo_avg": math.sqrt(fans.fan_in * fans.fan_out),
        }[self.mode]
        return self.scale / n if n else 0.0

    def at_fans(self, fans: Fans) -> BaseInitializer:
        """The same law with the fans given, for an array that has none, such as a bias."""
        std = math.sqrt(self.variance_at(fans))
        if self.distribution == "normal":
            return Normal(std, dtype=self.dtype)
        if self.distribution == "uniform":
            bound = math.sqrt(3) * std
            return Uniform(-bound, bound, dtype=self.dtype)
        return TruncatedNormal(std, -_BOUND, _BOUND, exact=True, dtype=self.dtype)

    def sample(self, key: Any, shape: Shape, dtype: np.dtype) -> jax.Array:
        std = math.sqrt(self.variance_at(self.fans(shape)))
        if self.distribution == "normal":
            return jax.random.normal(key, shape, dtype) * std
        if dtype.kind == "c":
            return _sample_complex(key, shape, dtype, self.distribution, std)
        if self.distribution == "uniform":
            return jax.random.uniform(key, shape, dtype, -1) * (math.sqrt(3) * std)
        factor = std / laws.standard_truncated(-_BOUND, _BOUND).std
        return jax.random.truncated_normal(key, -_BOUND, _BOUND, shape, dtype) * factor

    def exact_law(self, shape: Shape, is_complex: bool) -> laws.Law:
        variance = self.variance_at(self.fans(shape))
        standard = _STANDARD_LAWS[self.distribution, is_complex]()
        law = standard.scaled(math.sqrt(variance) / standard.std)
        return dataclasses.replace(law, variance=variance)

    @property
    def label(self) -> str:
        if self.spelling:
            return self.spelling[0]
        return _RECIPE_NAMES.get((self.scale, self.mode, self.distribution), self.name)

    def arguments(self) -> dict[str, Any]:
        arguments = super().arguments()
        arguments.pop("spelling", None)
        arguments |= self.spelling[1] if self.spelling else ()
        for axis in DEFAULT_AXES._fields:
            if len(arguments.get(axis, ())) == 1:  # JAX users write a single axis as an int
                arguments[axis] = arguments[axis][0]
        if self.label != self.name:
            for name in ("scale", "mode", "distribution"):
                del arguments[name]
        return arguments


def _as_strides(caller: str, name: str, value: Any) -> tuple[int, ...]:
    several = value if isinstance(value, Sequence) else (value,)
    strides = tuple(as_count(caller, name, stride) for stride in several)
    return strides if any(stride > 1 for stride in strides) else ()


# By distribution, and whether entries are complex.
_STANDARD_LAWS: dict[tuple[Distribution, bool], Callable[[], laws.Law]] = {
    ("normal", False): laws.standard_normal,
    ("normal", True): laws.complex_normal,
    ("uniform", False): laws.standard_uniform,
    ("uniform", True): laws.complex_disk,
    ("truncated_normal", False): lambda: laws.standard_truncated(-_BOUND, _BOUND),
    ("truncated_normal", True): lambda: laws.complex_truncated(_BOUND),
}


def _sample_complex(
    key: Any, shape: Shape, dtype: np.dtype, distribution: Distribution, std: float
) -> jax.Array:
    """Circular draws with ``E|x|**2 = std**2``, on a disk or cut, from JAX's split of the key.

    JAX divides the truncated law by 0.95311164, which is not its standard deviation; the law
    here is right, so its numbers are 0.99 times JAX's.
    """
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
    in_axis: Axis = -2,
    out_axis: Axis = -1,
    batch_axis: Axis = (),
    dtype: DTypeLike | None = None,
    *,
    gain: Gain = 1.0,
    groups: int = 1,
    transposed_strides: Axis = (),
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
        gain * gain * scale, mode, distribution, in_axis, out_axis, batch_axis, groups,
        transposed_strides, dtype=dtype,  # pyright: ignore[reportArgumentType]
    )  # fmt: skip


def _recipe(
    name: str,
    in_axis: Axis,
    out_axis: Axis,
    batch_axis: Axis,
    dtype: DTypeLike | None,
    groups: int,
    transposed_strides: Axis,
    gain: Gain = 1.0,
    negative_slope: float = 0.0,
) -> VarianceScaling:
    """The recipe of a name, which remembers the gain or the slope that it was called with."""
    scale, mode, distribution = _RECIPES[name]
    gain = as_gain(name, "gain", gain)
    slope = as_number(name, "negative_slope", negative_slope)
    if not (scale := scale / (1.0 + slope * slope)):
        raise ValueError(
            f"{name} needs a negative_slope whose square is finite, got {slope}. "
            "It is the slope of a leaky ReLU below zero, for example 0.01."
        )
    scaling = variance_scaling(
        scale, mode, distribution, in_axis, out_axis, batch_axis, dtype,
        gain=gain, groups=groups, transposed_strides=transposed_strides,
    )  # fmt: skip
    arguments = (("gain", gain, 1.0), ("negative_slope", slope, 0.0))
    written = tuple((argument, value) for argument, value, default in arguments if value != default)
    return dataclasses.replace(scaling, spelling=(name, written)) if written else scaling


def glorot_uniform(
    in_axis: Axis = -2,
    out_axis: Axis = -1,
    batch_axis: Axis = (),
    dtype: DTypeLike | None = None,
    *,
    gain: Gain = 1.0,
    groups: int = 1,
    transposed_strides: Axis = (),
) -> VarianceScaling:
    r"""Kernel for tanh-like layers: a compromise that keeps signal and gradient near their size.

    Law: :math:`W \sim U(-a, a)` with :math:`a = g \sqrt{6 / (n_{in} + n_{out})}`, so
    :math:`\operatorname{Var} W = 2 g^2 / (n_{in} + n_{out})`. Also known as Xavier uniform.

    Args:
        in_axis: axes of the shape that the layer contracts over.
        out_axis: axes that it produces.
        batch_axis: axes along which it repeats independently.
        dtype: dtype to draw when the caller names none.
        gain: factor on the standard deviation, for the activation that follows; or that
            activation, by name or as a callable, for its forward gain; or ``"torch:NAME"``.
        groups: feature groups of a convolution.
        transposed_strides: strides of a transposed convolution.

    Returns:
        An initializer; each entry has mean 0 and variance ``2 * gain**2 / (fan_in + fan_out)``.

    Raises:
        TypeError, ValueError: as `variance_scaling`.

    Example:
        >>> low, high = glorot_uniform().law((300, 300)).support
        >>> round(low, 9), round(high, 9)
        (-0.1, 0.1)

    References:
        Glorot and Bengio, *Understanding the difficulty of training deep feedforward neural
        networks*, 2010, equation 16.
    """
    return _recipe(
        "glorot_uniform", in_axis, out_axis, batch_axis, dtype, groups, transposed_strides, gain
    )


def glorot_normal(
    in_axis: Axis = -2,
    out_axis: Axis = -1,
    batch_axis: Axis = (),
    dtype: DTypeLike | None = None,
    *,
    gain: Gain = 1.0,
    groups: int = 1,
    transposed_strides: Axis = (),
) -> VarianceScaling:
    r"""Kernel for tanh-like layers, Gaussian without tails; `glorot_uniform` with other entries.

    Law: normal truncated at two standard deviations with
    :math:`\operatorname{Var} W = 2 g^2 / (n_{in} + n_{out})`. Also known as Xavier normal.

    Args:
        in_axis: axes of the shape that the layer contracts over.
        out_axis: axes that it produces.
        batch_axis: axes along which it repeats independently.
        dtype: dtype to draw when the caller names none.
        gain: factor on the standard deviation, for the activation that follows; or that
            activation, by name or as a callable, for its forward gain; or ``"torch:NAME"``.
        groups: feature groups of a convolution.
        transposed_strides: strides of a transposed convolution.

    Returns:
        An initializer; each entry has mean 0 and variance ``2 * gain**2 / (fan_in + fan_out)``.

    Raises:
        TypeError, ValueError: as `variance_scaling`.

    Example:
        >>> glorot_normal().law((100, 300)).variance
        0.005

    References:
        Glorot and Bengio, *Understanding the difficulty of training deep feedforward neural
        networks*, 2010, equation 12.
    """
    return _recipe(
        "glorot_normal", in_axis, out_axis, batch_axis, dtype, groups, transposed_strides, gain
    )


def lecun_uniform(
    in_axis: Axis = -2,
    out_axis: Axis = -1,
    batch_axis: Axis = (),
    dtype: DTypeLike | None = None,
    *,
    gain: Gain = 1.0,
    groups: int = 1,
    transposed_strides: Axis = (),
) -> VarianceScaling:
    r"""Kernel that keeps the second moment of its input: for linear outputs, SELU, gates.

    Law: :math:`W \sim U(-a, a)` with :math:`a = g \sqrt{3 / n_{in}}`, so
    :math:`\operatorname{Var} W = g^2 / n_{in}`.

    Args:
        in_axis: axes of the shape that the layer contracts over.
        out_axis: axes that it produces.
        batch_axis: axes along which it repeats independently.
        dtype: dtype to draw when the caller names none.
        gain: factor on the standard deviation; or the activation before this layer's inputs, by
            name or as a callable, for its forward gain; or ``"torch:NAME"``.
        groups: feature groups of a convolution.
        transposed_strides: strides of a transposed convolution.

    Returns:
        An initializer; each entry has mean 0 and variance ``gain**2 / fan_in``.

    Raises:
        TypeError, ValueError: as `variance_scaling`.

    Example:
        >>> round(lecun_uniform().law((300, 10)).support[1], 9)
        0.1

    References:
        LeCun et al., *Efficient BackProp*, 1998, section 4.6, equation 16.
    """
    return _recipe(
        "lecun_uniform", in_axis, out_axis, batch_axis, dtype, groups, transposed_strides, gain
    )


def lecun_normal(
    in_axis: Axis = -2,
    out_axis: Axis = -1,
    batch_axis: Axis = (),
    dtype: DTypeLike | None = None,
    *,
    gain: Gain = 1.0,
    groups: int = 1,
    transposed_strides: Axis = (),
) -> VarianceScaling:
    r"""Kernel that keeps the second moment of its input; the default of Flax's layers.

    Law: normal truncated at two standard deviations with
    :math:`\operatorname{Var} W = g^2 / n_{in}`.

    Args:
        in_axis: axes of the shape that the layer contracts over.
        out_axis: axes that it produces.
        batch_axis: axes along which it repeats independently.
        dtype: dtype to draw when the caller names none.
        gain: factor on the standard deviation; or the activation before this layer's inputs, by
            name or as a callable, for its forward gain; or ``"torch:NAME"``.
        groups: feature groups of a convolution.
        transposed_strides: strides of a transposed convolution.

    Returns:
        An initializer; each entry has mean 0 and variance ``gain**2 / fan_in``.

    Raises:
        TypeError, ValueError: as `variance_scaling`.

    Example:
        >>> lecun_normal().law((200, 10)).variance
        0.005

    References:
        LeCun et al., *Efficient BackProp*, 1998, section 4.6, equation 16; Klambauer et al.,
        *Self-Normalizing Neural Networks*, 2017, section "Initialization".
    """
    return _recipe(
        "lecun_normal", in_axis, out_axis, batch_axis, dtype, groups, transposed_strides, gain
    )


Parameters = ParamSpec("Parameters")


def _with_slope_alone(
    recipe: Callable[Parameters, VarianceScaling],
) -> Callable[Parameters, VarianceScaling]:
    """Answers ``nonlinearity=`` and ``gain=`` with the line to write instead."""

    @functools.wraps(recipe)
    def checked(*args: Parameters.args, **kwargs: Parameters.kwargs) -> VarianceScaling:
        for argument in {"nonlinearity", "gain"} & kwargs.keys():
            he, value = recipe.__name__, kwargs[argument]
            value = getattr(value, "__name__", None) or source_of(value)
            raise TypeError(
                f"{he} takes no {argument}={value}: it is the recipe of ReLU, {he}(), and of leaky "
                f"ReLU, {he}(negative_slope=0.01). For any other activation or gain write "
                f"{he.replace('he', 'lecun')}(gain={value}), which goes by the same fan."
            )
        return recipe(*args, **kwargs)

    return checked


@_with_slope_alone
def he_uniform(
    in_axis: Axis = -2,
    out_axis: Axis = -1,
    batch_axis: Axis = (),
    dtype: DTypeLike | None = None,
    *,
    negative_slope: float = 0.0,
    groups: int = 1,
    transposed_strides: Axis = (),
) -> VarianceScaling:
    r"""Kernel that keeps the second moment of a ReLU layer, with uniform entries.

    Law: :math:`W \sim U(-b, b)` with :math:`b = \sqrt{6 / ((1 + a^2)\, n_{in})}`, so
    :math:`\operatorname{Var} W = 2 / ((1 + a^2)\, n_{in})`, a the negative slope. Also known as
    Kaiming uniform. For any other activation, ``lecun_uniform(gain="gelu")`` goes by the same fan
    and computes the gain.

    Args:
        in_axis: axes of the shape that the layer contracts over.
        out_axis: axes that it produces.
        batch_axis: axes along which it repeats independently.
        dtype: dtype to draw when the caller names none.
        negative_slope: slope of a leaky ReLU below zero; 0 is plain ReLU.
        groups: feature groups of a convolution.
        transposed_strides: strides of a transposed convolution.

    Returns:
        An initializer; each entry has mean 0 and variance
        ``2 / ((1 + negative_slope**2) * fan_in)``.

    Raises:
        TypeError, ValueError: as `variance_scaling`.

    Example:
        >>> round(he_uniform().law((600, 10)).support[1], 9)
        0.1

    References:
        He et al., *Delving Deep into Rectifiers*, 2015, equations 10 and 15.
    """
    return _recipe(
        "he_uniform", in_axis, out_axis, batch_axis, dtype, groups, transposed_strides,
        negative_slope=negative_slope,
    )  # fmt: skip


@_with_slope_alone
def he_normal(
    in_axis: Axis = -2,
    out_axis: Axis = -1,
    batch_axis: Axis = (),
    dtype: DTypeLike | None = None,
    *,
    negative_slope: float = 0.0,
    groups: int = 1,
    transposed_strides: Axis = (),
) -> VarianceScaling:
    r"""Kernel that keeps the second moment of a ReLU layer.

    Law: normal truncated at two standard deviations with
    :math:`\operatorname{Var} W = 2 / ((1 + a^2)\, n_{in})`, :math:`n_{in}` the number of inputs
    that one output sums over and a the negative slope. Also known as Kaiming normal. For any other
    activation, ``lecun_normal(gain="gelu")`` goes by the same fan and computes the gain.

    Args:
        in_axis: axes of the shape that the layer contracts over.
        out_axis: axes that it produces.
        batch_axis: axes along which it repeats independently.
        dtype: dtype to draw when the caller names none.
        negative_slope: slope of a leaky ReLU below zero; 0 is plain ReLU.
        groups: feature groups of a convolution.
        transposed_strides: strides of a transposed convolution.

    Returns:
        An initializer; each entry has mean 0 and variance
        ``2 / ((1 + negative_slope**2) * fan_in)``.

    Raises:
        TypeError, ValueError: as `variance_scaling`.

    Example:
        >>> import jax
        >>> kernel = he_normal()(jax.random.key(0), (512, 256))
        >>> kernel.shape, round(float(kernel.var()) * 512, 1)
        ((512, 256), 2.0)

    References:
        He et al., *Delving Deep into Rectifiers*, 2015, equations 10 and 15.
    """
    return _recipe(
        "he_normal", in_axis, out_axis, batch_axis, dtype, groups, transposed_strides,
        negative_slope=negative_slope,
    )  # fmt: skip


xavier_uniform = glorot_uniform
xavier_normal = glorot_normal
kaiming_uniform = he_uniform
kaiming_normal = he_normal
