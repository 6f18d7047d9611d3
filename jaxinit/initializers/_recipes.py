"""The named recipes of variance scaling, each one expression over `variance_scaling`.

LeCun for layers without a rectifier, Glorot (Xavier) for a compromise between forward and
backward, He (Kaiming) for ReLU.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.typing import DTypeLike

from jaxinit.initializers._arguments import as_number
from jaxinit.initializers._variance import Gain, VarianceScaling, as_gain, variance_scaling


def _named(
    scaling: VarianceScaling, name: str, **arguments: tuple[float, float]
) -> VarianceScaling:
    """Remembers how a recipe was called: its arguments, each with the default it has."""
    written = tuple(
        (key, float(value)) for key, (value, default) in arguments.items() if value != default
    )
    return dataclasses.replace(scaling, recipe=(name, written)) if written else scaling


def glorot_uniform(
    in_axis: int | Sequence[int] = -2,
    out_axis: int | Sequence[int] = -1,
    batch_axis: int | Sequence[int] = (),
    dtype: DTypeLike | None = None,
    *,
    gain: Gain = 1.0,
    groups: int = 1,
    transposed_strides: int | Sequence[int] = (),
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
    gain = as_gain("glorot_uniform", "gain", gain)
    scaling = variance_scaling(
        1.0, "fan_avg", "uniform", in_axis, out_axis, batch_axis, dtype,
        gain=gain, groups=groups, transposed_strides=transposed_strides,
    )  # fmt: skip
    return _named(scaling, "glorot_uniform", gain=(gain, 1.0))


def glorot_normal(
    in_axis: int | Sequence[int] = -2,
    out_axis: int | Sequence[int] = -1,
    batch_axis: int | Sequence[int] = (),
    dtype: DTypeLike | None = None,
    *,
    gain: Gain = 1.0,
    groups: int = 1,
    transposed_strides: int | Sequence[int] = (),
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
    gain = as_gain("glorot_normal", "gain", gain)
    scaling = variance_scaling(
        1.0, "fan_avg", "truncated_normal", in_axis, out_axis, batch_axis, dtype,
        gain=gain, groups=groups, transposed_strides=transposed_strides,
    )  # fmt: skip
    return _named(scaling, "glorot_normal", gain=(gain, 1.0))


def lecun_uniform(
    in_axis: int | Sequence[int] = -2,
    out_axis: int | Sequence[int] = -1,
    batch_axis: int | Sequence[int] = (),
    dtype: DTypeLike | None = None,
    *,
    gain: Gain = 1.0,
    groups: int = 1,
    transposed_strides: int | Sequence[int] = (),
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
    gain = as_gain("lecun_uniform", "gain", gain)
    scaling = variance_scaling(
        1.0, "fan_in", "uniform", in_axis, out_axis, batch_axis, dtype,
        gain=gain, groups=groups, transposed_strides=transposed_strides,
    )  # fmt: skip
    return _named(scaling, "lecun_uniform", gain=(gain, 1.0))


def lecun_normal(
    in_axis: int | Sequence[int] = -2,
    out_axis: int | Sequence[int] = -1,
    batch_axis: int | Sequence[int] = (),
    dtype: DTypeLike | None = None,
    *,
    gain: Gain = 1.0,
    groups: int = 1,
    transposed_strides: int | Sequence[int] = (),
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
    gain = as_gain("lecun_normal", "gain", gain)
    scaling = variance_scaling(
        1.0, "fan_in", "truncated_normal", in_axis, out_axis, batch_axis, dtype,
        gain=gain, groups=groups, transposed_strides=transposed_strides,
    )  # fmt: skip
    return _named(scaling, "lecun_normal", gain=(gain, 1.0))


def _he(
    caller: str,
    negative_slope: float,
    nonlinearity: str | Callable[..., Any] | None,
    gain: Gain | None,
) -> tuple[float, dict[str, tuple[float, float]]]:
    """Scale of a He recipe, and what it was called with."""
    slope = as_number(caller, "negative_slope", negative_slope)
    if not (scale := 2.0 / (1.0 + slope * slope)):
        raise ValueError(
            f"{caller} needs a negative_slope whose square is finite, got {slope}. "
            "It is the slope of a leaky ReLU below zero, for example 0.01."
        )
    if nonlinearity is None and gain is None:
        return scale, {"negative_slope": (negative_slope, 0.0)}
    leaky = nonlinearity == "leaky_relu"
    if (gain is not None) + (nonlinearity is not None) + (slope != 0 and not leaky) > 1:
        raise ValueError(
            f"{caller} needs one of negative_slope, nonlinearity and gain, got "
            f"negative_slope={slope:g}, nonlinearity={nonlinearity!r}, gain={gain!r}. "
            "negative_slope goes with nonlinearity='leaky_relu' alone."
        )
    if leaky:
        slope = slope or 0.01  # JAX's default
        return 2.0 / (1.0 + slope * slope), {"negative_slope": (slope, 0.0)}
    if nonlinearity is not None and nonlinearity in ("relu", jax.nn.relu):
        return 2.0, {}
    if (
        nonlinearity is not None
        and not isinstance(nonlinearity, str)
        and not callable(nonlinearity)
    ):
        raise TypeError(
            f"{caller} needs nonlinearity as a name or a callable, got {nonlinearity!r}. "
            "A number is given as gain=."
        )
    argument = "gain" if nonlinearity is None else "nonlinearity"
    number = as_gain(caller, argument, gain if nonlinearity is None else nonlinearity)
    return number * number, {"gain": (number, -1.0)}


def he_uniform(
    in_axis: int | Sequence[int] = -2,
    out_axis: int | Sequence[int] = -1,
    batch_axis: int | Sequence[int] = (),
    dtype: DTypeLike | None = None,
    *,
    negative_slope: float = 0.0,
    nonlinearity: str | Callable[..., Any] | None = None,
    gain: Gain | None = None,
    groups: int = 1,
    transposed_strides: int | Sequence[int] = (),
) -> VarianceScaling:
    r"""Kernel that keeps the second moment of a ReLU layer, with uniform entries.

    Law: :math:`W \sim U(-b, b)` with :math:`b = \sqrt{6 / ((1 + a^2)\, n_{in})}`, so
    :math:`\operatorname{Var} W = 2 / ((1 + a^2)\, n_{in})`, a the negative slope. Also known as
    Kaiming uniform.

    Args:
        in_axis: axes of the shape that the layer contracts over.
        out_axis: axes that it produces.
        batch_axis: axes along which it repeats independently.
        dtype: dtype to draw when the caller names none.
        negative_slope: slope of a leaky ReLU below zero; 0 is plain ReLU.
        nonlinearity: the activation instead, by name or as a callable, for its forward gain; with
            ``"leaky_relu"`` the slope is ``negative_slope``, 0.01 when that is 0.
        gain: the gain itself instead, as for `variance_scaling`; an activation given as
            ``nonlinearity`` is kept as this number.
        groups: feature groups of a convolution.
        transposed_strides: strides of a transposed convolution.

    Returns:
        An initializer; each entry has mean 0 and variance
        ``2 / ((1 + negative_slope**2) * fan_in)``, or ``gain**2 / fan_in``.

    Raises:
        TypeError, ValueError: as `variance_scaling`.

    Example:
        >>> round(he_uniform().law((600, 10)).support[1], 9)
        0.1

    References:
        He et al., *Delving Deep into Rectifiers*, 2015, equations 10 and 15.
    """
    scale, called = _he("he_uniform", negative_slope, nonlinearity, gain)
    scaling = variance_scaling(
        scale, "fan_in", "uniform", in_axis, out_axis, batch_axis, dtype,
        groups=groups, transposed_strides=transposed_strides,
    )  # fmt: skip
    return _named(scaling, "he_uniform", **called)


def he_normal(
    in_axis: int | Sequence[int] = -2,
    out_axis: int | Sequence[int] = -1,
    batch_axis: int | Sequence[int] = (),
    dtype: DTypeLike | None = None,
    *,
    negative_slope: float = 0.0,
    nonlinearity: str | Callable[..., Any] | None = None,
    gain: Gain | None = None,
    groups: int = 1,
    transposed_strides: int | Sequence[int] = (),
) -> VarianceScaling:
    r"""Kernel that keeps the second moment of a ReLU layer.

    Law: normal truncated at two standard deviations with
    :math:`\operatorname{Var} W = 2 / ((1 + a^2)\, n_{in})`, :math:`n_{in}` the number of inputs
    that one output sums over and a the negative slope. Also known as Kaiming normal.

    Args:
        in_axis: axes of the shape that the layer contracts over.
        out_axis: axes that it produces.
        batch_axis: axes along which it repeats independently.
        dtype: dtype to draw when the caller names none.
        negative_slope: slope of a leaky ReLU below zero; 0 is plain ReLU.
        nonlinearity: the activation instead, by name or as a callable, for its forward gain; with
            ``"leaky_relu"`` the slope is ``negative_slope``, 0.01 when that is 0.
        gain: the gain itself instead, as for `variance_scaling`; an activation given as
            ``nonlinearity`` is kept as this number.
        groups: feature groups of a convolution.
        transposed_strides: strides of a transposed convolution.

    Returns:
        An initializer; each entry has mean 0 and variance
        ``2 / ((1 + negative_slope**2) * fan_in)``, or ``gain**2 / fan_in``.

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
    scale, called = _he("he_normal", negative_slope, nonlinearity, gain)
    scaling = variance_scaling(
        scale, "fan_in", "truncated_normal", in_axis, out_axis, batch_axis, dtype,
        groups=groups, transposed_strides=transposed_strides,
    )  # fmt: skip
    return _named(scaling, "he_normal", **called)


xavier_uniform = glorot_uniform
xavier_normal = glorot_normal
kaiming_uniform = he_uniform
kaiming_normal = he_normal
