"""How a role is drawn: functions from the facts of a parameter to an initializer.

Each initializer has the axes that the model really contracts, so that its fans are those of the
model. Numbers that depend on the model (branches, widths, activations) are computed here; which
function belongs to which role is data in the guide.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable
from typing import Literal, TypeAlias

from jaxinit import activations
from jaxinit import initializers as init
from jaxinit.activations import Critical
from jaxinit.advice._facts import ParameterFacts, known_of
from jaxinit.initializers import Fans, Initializer

Mode = Literal["fan_in", "fan_out", "fan_avg"]
Distribution = Literal["truncated_normal", "normal", "uniform"]
Drawing: TypeAlias = Callable[[ParameterFacts], Initializer]
Number: TypeAlias = float | Callable[[ParameterFacts], float]


def _value(number: Number, p: ParameterFacts) -> float:
    return number(p) if callable(number) else number


def _squared(gain: float) -> float:
    # Rounded, since sqrt(2)**2 is not 2, and equal laws should be equal values.
    return float(f"{gain**2:.6g}")


# Laws.


def zeros(p: ParameterFacts) -> Initializer:
    """Zeros."""
    return init.zeros


def ones(p: ParameterFacts) -> Initializer:
    """Ones."""
    return init.ones


def own(p: ParameterFacts) -> Initializer:
    """As the model draws it."""
    return init.own


def gaussian(stddev: Number) -> Drawing:
    """Normal entries of a standard deviation, whatever the fans."""

    def draw(p: ParameterFacts) -> Initializer:
        std = _value(stddev, p) * p.correction
        return init.normal(float(f"{std:.6g}")) if std else init.zeros

    return draw


def scaled(
    gain: Number = 1.0, mode: Mode = "fan_in", distribution: Distribution = "truncated_normal"
) -> Drawing:
    """Variance ``gain**2`` over the true fan."""

    def draw(p: ParameterFacts) -> Initializer:
        variance = _squared(_value(gain, p) * p.correction)
        if variance == 0:
            return init.zeros
        wanted = init.variance_scaling(variance, mode, "normal").variance_at(
            Fans(p.fan_in, p.fan_out)
        )
        return _at_true_fans(p, _by_fans(p, variance, mode, distribution), wanted * p.fan_in)

    return draw


def orthogonal(gain: Number = 1.0) -> Drawing:
    """An orthogonal matrix times a gain."""

    def draw(p: ParameterFacts) -> Initializer:
        factor = _value(gain, p) * p.correction
        variance = _squared(factor)
        return _at_true_fans(p, _isometric(p, factor, variance), variance)

    return draw


# The axes that were read.


def _by_fans(
    p: ParameterFacts, variance: float, mode: Mode, distribution: Distribution
) -> Initializer:
    """A kernel whose variance is a number over its true fan."""

    def draw(inside: tuple[int, ...], outside: tuple[int, ...], rank: int) -> Initializer:
        # Axes count from the end, but inside of `stacked`: there a plan would take them for axes of
        # the whole array.
        shift = 0 if p.use.batched else rank
        return init.variance_scaling(
            variance,
            mode,
            distribution,
            tuple(axis - shift for axis in inside),
            tuple(axis - shift for axis in outside),
            groups=p.use.groups,
            transposed_strides=p.use.transposed_strides,
        )

    return _assembled(p, draw)


def _isometric(p: ParameterFacts, gain: float, variance: float) -> Initializer:
    """An orthogonal kernel that multiplies the second moment by ``variance``, ``gain**2``.

    A kernel with a receptive field is delta-orthogonal where its axes allow it; where no matrix
    can be orthogonal the entries are Gaussian with the same variance.
    """
    use = p.use
    rank = len(p.shape) - len(use.batched)
    if use.field:
        plain = use.contracted == (rank - 2,) and use.produced == (rank - 1,)
        if plain and use.groups == 1 and not use.batched and not use.transposed_strides:
            # delta_orthogonal keeps lengths; a widening kernel spreads them over more units.
            widening = math.sqrt(max(1.0, p.shape[-1] / p.shape[-2]))
            return init.delta_orthogonal(gain * widening)
    elif len(use.contracted) + len(use.produced) == rank and len(use.produced) == 1:
        return _assembled(p, functools.partial(_orthogonal_rows, p, gain))
    return _by_fans(p, variance, "fan_in", "normal")


def _orthogonal_rows(
    p: ParameterFacts, gain: float, inside: tuple[int, ...], outside: tuple[int, ...], rank: int
) -> Initializer:
    """An orthogonal matrix; of a kernel for a state and other data, the rows of the state alone."""
    whole = init.scaled_orthogonal(gain, outside[0] - rank if outside[0] else 0)
    if not p.state_rows:
        return whole
    axis = inside[0] - rank
    other = init.variance_scaling(
        _squared(gain), "fan_in", "truncated_normal", axis, outside[0] - rank
    )
    parts = [whole if is_state else other for _, is_state in p.state_rows]
    return init.fused(parts, [size for size, _ in p.state_rows], axis)


def _assembled(
    p: ParameterFacts, draw: Callable[[tuple[int, ...], tuple[int, ...], int], Initializer]
) -> Initializer:
    """One kernel, several stacked along an axis, or several packed side by side.

    Args:
        p: the parameter.
        draw: from contracted axes, produced axes and rank of one kernel to its initializer.
    """
    use = p.use
    kept = [axis for axis in range(len(p.shape)) if axis not in use.batched]
    inside = tuple(kept.index(axis) for axis in use.contracted if axis in kept)
    # An axis of a table may be both, as in a circulant kernel.
    apart = set(use.produced) - set(use.contracted)
    outside = tuple(kept.index(axis) for axis in use.produced if axis in kept and axis in apart)
    one = draw(inside, outside, len(kept))
    packed = _packing(p)
    if packed is not None:
        axis, sizes = packed
        one = init.fused(one, sizes, kept.index(axis) - len(kept))
    return init.stacked(one, use.batched) if use.batched else one


def _packing(p: ParameterFacts) -> tuple[int, tuple[int, ...]] | None:
    """Axis along which kernels lie side by side, and the size of each; None for a single one."""
    use, fans = p.use, [piece.fan_out or 0.0 for piece in p.pieces]
    if len(fans) < 2 or not all(fans):
        return None
    if any(piece.produced != use.produced for piece in p.pieces):
        return None
    axis = use.slice_axis
    if axis is not None:
        sizes = [fan / sum(fans) * p.shape[axis] for fan in fans]
        whole = tuple(round(size) for size in sizes)
        if all(abs(a - b) < 1e-6 for a, b in zip(sizes, whole, strict=True)):
            return axis, whole
    return None


def _at_true_fans(p: ParameterFacts, initializer: Initializer, variance: float) -> Initializer:
    """An initializer, or the law written out where no axes give it the fans that were read.

    The axes of an array do not give the true fans where a share of an axis is contracted, or where
    several uses cut the array differently.

    Args:
        p: the parameter.
        initializer: with the axes that were read.
        variance: what an entry should have, times the true fan_in.
    """
    fans = initializer.fans(p.shape)
    if fans is None or not p.fan_in or p.use.fan_out is None:
        return initializer
    if math.isclose(fans.fan_in, p.fan_in) and math.isclose(fans.fan_out, p.fan_out):
        return initializer
    return init.truncated_normal(math.sqrt(variance / p.fan_in), exact=True)


# Gains and standard deviations.


def own_gain(p: ParameterFacts) -> float:
    """The gain of the activation that the layer's output meets."""
    return p.gain


def relu_gain(p: ParameterFacts) -> float:
    """sqrt(2 / (1 + a^2)) for the slope a, 1 for a layer that meets no activation.

    It is the sqrt 2 of a rectifier where several activations meet, and for a layer whose output is
    normalised at once, where the gain sets the gradient alone.
    """
    if p.activation is not None:
        return p.gain
    return 1.0 if p.is_linear and not p.after.normalisation else math.sqrt(2)


def behind_norm(p: ParameterFacts) -> float:
    """1 for a layer whose branch begins with a normalisation, else the gain of its activation.

    A normalised input has unit size already, and the next layer has the gain of the activation.
    """
    return 1.0 if p.branch is not None and p.branch.has_norm else p.gain


def linear_gain(p: ParameterFacts) -> float:
    """1 / |f'(0)|: the gain that makes the activation isometric for small signals."""
    known = p.activation or p.model.activation
    if known is None:
        return 1.0
    # In float32 a difference over 2e-4 is right to five digits.
    slope = (float(known.function(1e-4)) - float(known.function(-1e-4))) / 2e-4
    return float(f"{1 / abs(slope):.5g}") if abs(slope) > 1e-3 else 1.0


def branch_gain(p: ParameterFacts) -> float:
    """1 / sqrt of the number of branches that are added to the stream."""
    return 1 / math.sqrt(max(_branches(p), 1))


def fixup_gain(p: ParameterFacts) -> float:
    """Gain of the activation times L^(-1/(2m - 2)), for L branches of m layers."""
    branch = p.branch
    if branch is None or branch.depth < 2:
        return p.gain
    return p.gain * branch.count ** (-1 / (2 * branch.depth - 2))


def deepnorm_gain(p: ParameterFacts) -> float:
    """(8 N)^(-1/4), N the number of blocks of two branches each."""
    return (8 * max(p.model.branches / 2, 1)) ** -0.25


def tfixup_gain(p: ParameterFacts) -> float:
    """0.67 N^(-1/4), N the number of blocks of two branches each."""
    return 0.67 * max(p.model.branches / 2, 1) ** -0.25


def inverse_sqrt_width(p: ParameterFacts) -> float:
    """d^(-1/2), d the features of an embedding."""
    uses = p.parameter.uses
    produced = uses[0].produced if uses and p.parameter.role == "embedding" else ()
    width = math.prod(p.shape[axis] for axis in produced) if produced else p.shape[-1]
    return 1 / math.sqrt(max(width, 1))


def half_of_embedding(p: ParameterFacts) -> float:
    """Half of the standard deviation of the token embedding, as in the code of GPT-2."""
    tied = any("tied_embedding" in other.roles for other in p.model.parameters)
    return 0.5 * (inverse_sqrt_width(p) if tied else 1.0)


def _branches(p: ParameterFacts) -> int:
    return p.branch.count if p.branch else p.model.branches


lecun = scaled()
xavier = scaled(1.0, "fan_avg")
by_activation = scaled(own_gain)
per_branch = scaled(branch_gain)
deepnorm = scaled(deepnorm_gain, "fan_avg")
tfixup = scaled(tfixup_gain, "fan_avg")


# Initializers of single roles.


def layer_scale(p: ParameterFacts) -> Initializer:
    """0.1 up to 18 blocks, 1e-5 up to 24, 1e-6 beyond; a transformer's block is two branches."""
    blocks = _branches(p) / 2 if p.model.has_attention else _branches(p)
    return init.constant(0.1 if blocks <= 18 else 1e-5 if blocks <= 24 else 1e-6)


def weight_scale(p: ParameterFacts) -> Initializer:
    """The gain of the layer over what the kernel that it scales makes of unit inputs."""
    use = p.direction.uses[0] if p.direction is not None else p.use
    size = (use.through.factor or 1.0) * math.sqrt(use.fan_in or 1.0)
    return init.constant(float(f"{p.gain / size:.6g}"))


def _critical_pair(p: ParameterFacts) -> Critical | None:
    """The pair of variances that keeps length and correlation; None where there is none."""
    known = p.model.activation
    return None if known is None else known_of(activations.critical, known)


def critical_kernel(p: ParameterFacts) -> Initializer:
    """C_W over fan_in; in the first layer what brings inputs of second moment 1 to q*."""
    pair = _critical_pair(p)
    if pair is None:
        return by_activation(p)
    variance = pair.weight_variance
    if "first" in p.roles and pair.variance > pair.bias_variance:
        variance = pair.variance - pair.bias_variance
    return scaled(math.sqrt(variance))(p)


def critical_bias(p: ParameterFacts) -> Initializer:
    """N(0, C_b) where a critical pair is known."""
    pair = _critical_pair(p)
    return gaussian(math.sqrt(pair.bias_variance) if pair else 0.0)(p)


def siren_first(p: ParameterFacts) -> Initializer:
    """U(+-1/n)."""
    bound = float(f"{1 / (p.fan_in or 1.0):.9g}")
    return init.uniform(minval=-bound, maxval=bound)


def siren(p: ParameterFacts) -> Initializer:
    """U(+-sqrt(6/n)): sines of arguments of unit size."""
    return scaled(math.sqrt(2), "fan_in", "uniform")(p)


def zero_head(p: ParameterFacts) -> Initializer:
    """Zeros, but where a normalisation divides by the size of what the head makes."""
    return lecun(p) if p.after.normalisation else init.zeros


def forget_one(p: ParameterFacts) -> Initializer:
    """1 where a forget gate reads the bias, 0 elsewhere, and where the model itself adds 1."""
    if p.has_forget_offset:
        return init.zeros
    axis, start, stop = p.forget_range or (0, 0.0, 1.0)
    if (start, stop) == (0.0, 1.0):
        return init.ones
    cuts = [round(share * p.shape[axis]) for share in (0.0, start, stop, 1.0)]
    sizes = [after - before for before, after in itertools.pairwise(cuts)]
    pieces = zip((init.zeros, init.ones, init.zeros), sizes, strict=True)
    kept = [(piece, size) for piece, size in pieces if size]
    return init.fused([piece for piece, _ in kept], [size for _, size in kept], axis - len(p.shape))


def policy_head(p: ParameterFacts) -> Initializer:
    """Orthogonal with gain 1 for a value of one output, 0.01 for a policy of several."""
    return orthogonal(1.0 if p.fan_out == 1 else 0.01)(p)
