"""Axes of a kernel that an initializer is told, and the fans that follow from them and a shape.

``fan_in`` is the number of products that one output sums over, ``fan_out`` the number of outputs
that one input feeds. Axes that are named by neither argument are the receptive field of a
convolution and count for both, as in JAX. Beyond JAX: groups, the stride of a transposed
convolution, and axes taken from an einsum equation.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from jaxinit._arguments import Shape, as_axis, as_index, as_shape


class Axes(NamedTuple):
    """The roles of a kernel's axes, in the order in which every factory takes them.

    Attributes:
        in_axis: axes that the layer contracts over.
        out_axis: axes that the layer produces.
        batch_axis: axes along which the layer repeats independently (heads, experts, layers).

    Example:
        >>> from jaxinit.initializers import Axes, lecun_normal
        >>> lecun_normal(*Axes(in_axis=(1,), out_axis=(2,), batch_axis=(0,))).fans((8, 32, 64))
        Fans(fan_in=32.0, fan_out=64.0)
    """

    in_axis: tuple[int, ...] = (-2,)
    out_axis: tuple[int, ...] = (-1,)
    batch_axis: tuple[int, ...] = ()


DEFAULT_AXES = Axes()


@dataclasses.dataclass(frozen=True)
class Fans:
    """Connections per output (``fan_in``) and per input (``fan_out``)."""

    fan_in: float
    fan_out: float


def as_axes(caller: str, in_axis: Any, out_axis: Any, batch_axis: Any) -> Axes:
    """Normalises axis arguments to tuples of Python ints.

    Raises:
        TypeError: when an axis is neither an int nor a sequence of ints.
        ValueError: when the same axis is written twice.
    """
    named = {"in_axis": in_axis, "out_axis": out_axis, "batch_axis": batch_axis}
    axes = Axes(*(as_axis(caller, name, value) for name, value in named.items()))
    _check_roles(caller, axes, axes)
    return axes


def _check_roles(caller: str, axes: Axes, written: Axes, of_shape: str = "") -> None:
    """Raises ``ValueError`` where an axis has two roles; the error shows the axes as written."""
    every = [axis for role in axes for axis in role]
    if len(set(every)) != len(every):
        roles = ", ".join(f"{name}={value}" for name, value in written._asdict().items())
        raise ValueError(
            f"{caller} needs every axis{of_shape} to have one role, got {roles}, which names an "
            "axis twice. Name each axis once, in in_axis, out_axis or batch_axis."
        )


def compute_fans(
    caller: str,
    shape: Sequence[int],
    axes: Axes = DEFAULT_AXES,
    groups: int = 1,
    transposed_strides: tuple[int, ...] = (),
) -> Fans:
    """Fans of a kernel.

    Args:
        caller: public name that errors start with.
        shape: shape of the kernel.
        axes: roles of its axes.
        groups: feature groups of a convolution, whose kernel holds the inputs of one group and
            the outputs of all: each input feeds ``out / groups`` outputs.
        transposed_strides: strides of a transposed convolution. An output sums over one tap in
            ``prod(strides)`` on average, so fan_in is divided by it.

    Returns:
        The fans, 0 when an axis that counts is empty.

    Raises:
        ValueError: when the rank leaves a fan undefined, an axis is out of range or has two
            roles, or the groups do not divide the outputs.
    """
    shape = as_shape(caller, shape)
    roles = _resolve_axes(caller, shape, axes)
    in_size, out_size = (math.prod(shape[axis] for axis in role) for role in roles[:2])
    if groups > 1 and out_size % groups:
        raise ValueError(
            f"{caller} needs the {out_size} outputs of shape {shape} to be a multiple of "
            f"groups={groups}. Pass the groups of the convolution, its feature_group_count."
        )
    named = {axis for role in roles for axis in role}
    spatial = [size for axis, size in enumerate(shape) if axis not in named]
    if len(transposed_strides) > 1 and len(transposed_strides) != len(spatial):
        raise ValueError(
            f"{caller} needs one stride per spatial axis, got transposed_strides="
            f"{transposed_strides} for shape {shape} with {len(spatial)} spatial axes."
        )
    strides = transposed_strides or (1,)
    if len(strides) == 1:
        strides = strides * len(spatial)
    field = math.prod(spatial)
    return Fans(in_size * field / math.prod(strides), out_size * field / groups)


def _resolve_axes(caller: str, shape: Shape, axes: Axes) -> Axes:
    """The axes counted from 0, each of them inside the shape."""
    rank = len(shape)
    if axes == DEFAULT_AXES and rank < 2:
        raise ValueError(
            f"{caller} needs a shape with at least 2 axes, got {shape}. A bias has no fan "
            "of its own: use zeros, name its kernel with like_kernel(...), or pass in_axis and "
            "out_axis."
        )
    for name, role in axes._asdict().items():
        for axis in role:
            if not -rank <= axis < rank:
                raise ValueError(
                    f"{caller} needs {name} inside the {rank} axes of shape {shape}, got "
                    f"{axis}. Use a position from {-rank} to {rank - 1}."
                )
    resolved = Axes(*(tuple(axis % rank for axis in role) for role in axes))
    _check_roles(caller, resolved, axes, f" of shape {shape}")
    return resolved


def einsum_axes(equation: str, operand: int = 1) -> Axes:
    """Roles of a kernel's axes, read from the einsum equation that applies it.

    A label of the kernel that the output lacks is contracted; one that the output and another
    operand share is a batch axis; one that only the output shares is produced.

    Args:
        equation: an explicit equation such as ``"btd,dhk->bthk"``; ``...`` is allowed in the
            other operands and the output.
        operand: which operand the kernel is, counted from 0.

    Returns:
        Axes to unpack into a factory: ``he_normal(*einsum_axes("btd,dhk->bthk"))``.

    Raises:
        TypeError: when the equation is no string or the operand no int.
        ValueError: when the equation is implicit or malformed, or the kernel repeats a label or
            holds an ellipsis.

    Example:
        >>> einsum_axes("btd,dhk->bthk")
        Axes(in_axis=(0,), out_axis=(1, 2), batch_axis=())
        >>> einsum_axes("ebd,edf->ebf")
        Axes(in_axis=(1,), out_axis=(2,), batch_axis=(0,))
    """
    if not isinstance(equation, str):
        raise TypeError(f"einsum_axes needs the equation as a string, got {equation!r}.")
    left, arrow, output = equation.replace(" ", "").partition("->")
    operands = left.split(",")
    if not arrow:
        raise ValueError(
            f"einsum_axes needs an explicit equation with '->', got {equation!r}. "
            "Write the output, for example 'btd,dhk->bthk'."
        )
    operand = as_index("einsum_axes", "operand", operand)
    if not 0 <= operand < len(operands):
        raise ValueError(
            f"einsum_axes needs operand from 0 to {len(operands) - 1} for {equation!r}, "
            f"got {operand}."
        )
    kernel = operands[operand]
    if not kernel.isalpha() or len(set(kernel)) != len(kernel):
        raise ValueError(
            f"einsum_axes needs a kernel whose labels are letters, each once, got {kernel!r} "
            f"in {equation!r}. Write every axis of the kernel with a letter of its own."
        )
    others = set("".join(operands[:operand] + operands[operand + 1 :]))
    stray = {label for label in output.replace("...", "") if label not in others | set(kernel)}
    if stray:
        raise ValueError(
            f"einsum_axes needs every output label to come from an operand, got "
            f"{sorted(stray)} in {equation!r} from nowhere."
        )
    in_axis, out_axis, batch_axis = [], [], []
    for axis, label in enumerate(kernel):
        role = in_axis if label not in output else batch_axis if label in others else out_axis
        role.append(axis)
    return Axes(tuple(in_axis), tuple(out_axis), tuple(batch_axis))
