"""Initializers with the axes that a model really contracts, so that their fans are its fans."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

from jaxinit.advice._situation import Subject
from jaxinit.initializers import (
    Fans,
    Initializer,
    delta_orthogonal,
    fused,
    scaled_orthogonal,
    stacked,
    truncated_normal,
    variance_scaling,
    zeros,
)
from jaxinit.reading._records import Use

Mode = Literal["fan_in", "fan_out", "fan_avg"]
Distribution = Literal["truncated_normal", "normal", "uniform"]


def by_fans(
    subject: Subject,
    variance: float,
    mode: Mode = "fan_in",
    distribution: Distribution = "truncated_normal",
) -> Initializer:
    """A kernel whose variance is a number over its true fan.

    Args:
        subject: the kernel.
        variance: variance of an entry times the fan; 0 gives zeros.
        mode: which fan.
        distribution: of the entries.

    Returns:
        Variance scaling with the axes of the reading; `stacked` where layers, heads or experts
        repeat along an axis, `fused` where kernels are packed side by side.
    """
    if variance == 0:
        return zeros

    def draw(inside: tuple[int, ...], outside: tuple[int, ...], use: Use, rank: int) -> Initializer:
        in_axis, out_axis = (_from_the_end(axes, rank) for axes in (inside, outside))
        if subject_stacks(subject):  # a plan must not take the axes for those of the whole array
            in_axis, out_axis = inside, outside
        return variance_scaling(
            variance,
            mode,
            distribution,
            in_axis,
            out_axis,
            groups=use.groups,
            transposed_strides=use.transposed_strides,
        )

    return _assembled(subject, draw)


def isometric(subject: Subject, gain: float, variance: float) -> Initializer:
    """An orthogonal map that multiplies the second moment by ``variance``, ``gain**2``.

    A kernel with a receptive field is delta-orthogonal where its axes allow it; where no matrix
    can be orthogonal the entries are Gaussian with the same variance.
    """
    use = subject.use
    assert use is not None
    rank = len(subject.parameter.shape) - len(use.batched)
    if use.field:
        plain = use.contracted == (rank - 2,) and use.produced == (rank - 1,)
        shape = subject.parameter.shape
        if plain and use.groups == 1 and not use.batched and not use.transposed_strides:
            # delta_orthogonal keeps lengths; a widening map spreads them over more units.
            widening = math.sqrt(max(1.0, shape[-1] / shape[-2]))
            return delta_orthogonal(gain * widening)
        return by_fans(subject, variance, distribution="normal")
    if len(use.contracted) + len(use.produced) != rank or len(use.produced) != 1:
        return by_fans(subject, variance, distribution="normal")
    return _assembled(
        subject,
        lambda inside, outside, use, rank: scaled_orthogonal(
            gain, _from_the_end(outside, rank)[0] if outside[0] else 0
        ),
    )


def subject_stacks(subject: Subject) -> bool:
    """Whether the array holds layers, heads or experts along an axis."""
    return bool(subject.use and subject.use.batched)


def _from_the_end(axes: Sequence[int], rank: int) -> tuple[int, ...]:
    return tuple(axis - rank for axis in axes)


def _assembled(
    subject: Subject,
    draw: Callable[[tuple[int, ...], tuple[int, ...], Use, int], Initializer],
) -> Initializer:
    """One kernel, or several stacked or packed, from what draws one of them."""
    use = subject.use
    assert use is not None
    shape = subject.parameter.shape
    kept = [axis for axis in range(len(shape)) if axis not in use.batched]
    places = {axis: place for place, axis in enumerate(kept)}
    inside = tuple(places[axis] for axis in use.contracted if axis in places)
    outside = tuple(places[axis] for axis in use.produced if axis in places)
    one = draw(inside, outside, use, len(kept))
    cut = packing(subject)
    if cut is not None:
        axis, sizes = cut
        layer = len(kept)
        one = fused(one, sizes, places[axis] - layer)
    return stacked(one, use.batched) if use.batched else one


def packing(subject: Subject) -> tuple[int, tuple[int, ...]] | None:
    """Axis along which kernels lie side by side, and the size of each; None for a single one."""
    use = subject.use
    if use is None or len(subject.pieces) < 2:
        return None
    fans = [piece.fan_out or 0.0 for piece in subject.pieces]
    if any(piece.produced != use.produced for piece in subject.pieces) or not all(fans):
        return None
    shape = subject.parameter.shape
    for axis in reversed(use.produced):
        sizes = [fan / sum(fans) * shape[axis] for fan in fans]
        whole = tuple(round(size) for size in sizes)
        if all(abs(a - b) < 1e-6 for a, b in zip(sizes, whole, strict=True)):
            return axis, whole
    return None


def fans_fit(subject: Subject, initializer: Initializer) -> bool:
    """Whether the fans of an initializer are those of the reading."""
    fans = initializer.fans(subject.parameter.shape)
    use = subject.use
    if fans is None or use is None or use.fan_in is None or use.fan_out is None:
        return True
    return math.isclose(fans.fan_in, use.fan_in) and math.isclose(fans.fan_out, use.fan_out)


def at_true_fans(subject: Subject, initializer: Initializer, variance: float) -> Initializer:
    """The same variance written out, where no axes give the fans that were read.

    So it is with kernels whose axes an array cannot tell apart: a share of an axis is contracted,
    or several uses cut it differently.
    """
    use = subject.use
    if use is None or not use.fan_in or fans_fit(subject, initializer):
        return initializer
    return truncated_normal(math.sqrt(variance / use.fan_in), exact=True)


def at_fans(variance: float, mode: Mode, use: Use) -> float:
    """Variance of an entry, from a variance times the fan of a mode."""
    fans = Fans(use.fan_in or 0.0, use.fan_out or 0.0)
    return variance_scaling(variance, mode, "normal").variance_at(fans)
