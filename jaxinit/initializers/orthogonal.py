"""Orthogonal kernels: maps that keep lengths and angles, for deep linear, tanh and recurrent nets.

Matrices are uniform over the orthogonal (unitary) group by QR with the sign fix of Mezzadri,
*How to generate random matrices from the classical compact groups*, 2007, section 5, computed in
at least float32 whatever the dtype asked for.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from jaxinit.initializers import laws
from jaxinit.initializers.arguments import as_index, as_scale
from jaxinit.initializers.protocol import Initializer, normalise_dtype


@dataclasses.dataclass(frozen=True, repr=False)
class Orthogonal(Initializer):
    """Law of `orthogonal` and `scaled_orthogonal`."""

    scale: float = 1.0
    column_axis: int = -1
    keeps_second_moment: bool = False

    name: ClassVar[str] = "orthogonal"
    elementwise: ClassVar[bool] = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "scale", as_scale(self.label, "scale", self.scale))
        object.__setattr__(
            self, "column_axis", as_index(self.label, "column_axis", self.column_axis)
        )
        normalise_dtype(self)

    def sample(self, key: Any, shape: tuple[int, ...], dtype: np.dtype) -> jax.Array:
        rows, columns = self._matrix(shape)
        matrix = jax.random.orthogonal(key, rows, (), dtype, columns)
        others = list(shape)
        others.pop(self.column_axis)
        kernel = jnp.moveaxis(matrix.reshape(*others, columns), -1, self.column_axis)
        return kernel * self._factor(rows, columns)

    def exact_law(self, shape: tuple[int, ...], is_complex: bool) -> laws.Law:
        rows, columns = self._matrix(shape)
        if not rows * columns:
            return laws.point(0.0)
        law = laws.sphere_entry(max(rows, columns), is_complex)
        return law.scaled(self._factor(rows, columns))

    def _matrix(self, shape: tuple[int, ...]) -> tuple[int, int]:
        if len(shape) < 2:
            raise ValueError(
                f"{self.label} needs a shape with at least 2 axes, got {shape}. "
                "A vector has no orthogonal form: use normal or zeros."
            )
        if not -len(shape) <= self.column_axis < len(shape):
            raise ValueError(
                f"{self.label} needs column_axis inside the {len(shape)} axes of shape {shape}, "
                f"got {self.column_axis}."
            )
        columns = shape[self.column_axis]
        return (math.prod(shape) // columns if columns else 0), columns

    def _factor(self, rows: int, columns: int) -> float:
        return self.scale * math.sqrt(max(1.0, columns / rows) if self.keeps_second_moment else 1.0)

    @property
    def label(self) -> str:
        return "scaled_orthogonal" if self.keeps_second_moment else self.name

    def arguments(self) -> dict[str, Any]:
        arguments = super().arguments()
        arguments.pop("keeps_second_moment", None)  # said by the label
        return arguments


def orthogonal(
    scale: float = 1.0, column_axis: int = -1, dtype: DTypeLike | None = None
) -> Orthogonal:
    r"""Kernel that keeps the length of what passes through it, at any depth.

    Law: uniform (Haar) over matrices with :math:`Q^T Q = s^2 I`, or :math:`Q Q^T = s^2 I` where
    there are more columns than rows. Rows are all axes but ``column_axis`` together. Entries have
    mean 0 and variance :math:`s^2 / \max(rows, columns)`, and are not independent.

    On a convolution kernel the flattened matrix is orthogonal but the convolution is not (its
    singular values reach from 0.006 to 1.93 for 3 taps and 16 channels): use `delta_orthogonal`.

    Args:
        scale: factor on the matrix, every singular value.
        column_axis: the axis of the outputs.
        dtype: dtype to draw when the caller names none.

    Returns:
        An initializer for real and complex dtypes of any width.

    Raises:
        TypeError: when an argument is of the wrong kind.
        ValueError: when ``scale`` is negative or not finite; when drawing, if the shape has fewer
            than two axes.

    Example:
        >>> q = orthogonal()(jax.random.key(0), (64, 32))
        >>> bool(jnp.allclose(q.T @ q, jnp.eye(32), atol=1e-5))
        True

    References:
        Saxe et al., *Exact solutions to the nonlinear dynamics of learning in deep linear neural
        networks*, 2013, section 3; Mezzadri, 2007, section 5.
    """
    return Orthogonal(scale, column_axis, dtype=dtype)  # pyright: ignore[reportArgumentType]


def scaled_orthogonal(
    scale: float = 1.0, column_axis: int = -1, dtype: DTypeLike | None = None
) -> Orthogonal:
    r"""Orthogonal kernel that keeps the second moment per unit also where a layer widens.

    Law: `orthogonal` times :math:`\sqrt{\max(1, n_{out} / n_{in})}`, with :math:`n_{out}` the size
    of ``column_axis``: a widening map spreads the same length over more units, and the factor
    makes up for it.

    Args:
        scale: factor on top.
        column_axis: the axis of the outputs.
        dtype: dtype to draw when the caller names none.

    Returns:
        An initializer; each entry has mean 0 and variance ``scale**2 / n_in``.

    Raises:
        TypeError, ValueError: as `orthogonal`.

    Example:
        >>> scaled_orthogonal().law((100, 400)).variance
        0.01

    References:
        Martens et al., *Rapid training of deep neural networks without skip connections or
        normalization layers using Deep Kernel Shaping*, 2021, section on scale-corrected uniform
        orthogonal initialization.
    """
    return Orthogonal(scale, column_axis, True, dtype=dtype)  # pyright: ignore[reportArgumentType]


@dataclasses.dataclass(frozen=True, repr=False)
class DeltaOrthogonal(Initializer):
    """Law of `delta_orthogonal`."""

    scale: float = 1.0
    column_axis: int = -1

    name: ClassVar[str] = "delta_orthogonal"
    elementwise: ClassVar[bool] = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "scale", as_scale(self.name, "scale", self.scale))
        as_index(self.name, "column_axis", self.column_axis)
        if self.column_axis not in (-1, -2):
            raise ValueError(
                f"delta_orthogonal needs column_axis -1 or -2, the channel axes, got "
                f"{self.column_axis}."
            )
        normalise_dtype(self)

    def sample(self, key: Any, shape: tuple[int, ...], dtype: np.dtype) -> jax.Array:
        matrix = self._matrix_law().sample(key, shape[-2:], dtype)
        return jnp.zeros(shape, dtype).at[same_padding_tap(shape[:-2])].set(matrix)

    def exact_law(self, shape: tuple[int, ...], is_complex: bool) -> laws.Law:
        if len(shape) not in (3, 4, 5):
            raise ValueError(
                f"delta_orthogonal needs a kernel of 1 to 3 spatial axes, then inputs and outputs, "
                f"got shape {shape}. For a matrix use orthogonal."
            )
        if 0 in shape:
            return laws.point(0.0)
        inner = self._matrix_law().exact_law(shape[-2:], is_complex)
        share = 1 / math.prod(shape[:-2])
        law = laws.mixture([share, 1 - share], [inner, laws.point(0.0)])
        return dataclasses.replace(law, fixed_norm=True)

    def _matrix_law(self) -> Orthogonal:
        return Orthogonal(self.scale, self.column_axis)


def same_padding_tap(spatial: tuple[int, ...]) -> tuple[int, ...]:
    """Index of the kernel tap that meets the output's own position under SAME padding.

    SAME pads ``(k - 1) // 2`` in front, so this tap is the identity for even sizes too, where
    the centre ``k // 2`` would shift by one.
    """
    return tuple((size - 1) // 2 for size in spatial)


def delta_orthogonal(
    scale: float = 1.0, column_axis: int = -1, dtype: DTypeLike | None = None
) -> DeltaOrthogonal:
    r"""Convolution kernel that is an orthogonal map of the channels, so that depth costs nothing.

    Law: zero except for one spatial tap, the one that is the identity under SAME padding, which
    holds an `orthogonal` matrix of inputs by outputs. Both directions are legal: with more inputs
    than outputs the columns are orthonormal (JAX refuses this case).

    Args:
        scale: factor on the matrix.
        column_axis: -1 when the last axis holds the outputs, -2 when the one before does.
        dtype: dtype to draw when the caller names none.

    Returns:
        An initializer for kernels of 1 to 3 spatial axes.

    Raises:
        TypeError: when an argument is of the wrong kind.
        ValueError: when ``scale`` is negative or not finite; when drawing, if the shape has fewer
            than 3 or more than 5 axes.

    Example:
        >>> kernel = delta_orthogonal()(jax.random.key(0), (3, 3, 16, 16))
        >>> int((jnp.abs(kernel).sum((2, 3)) > 0).sum())
        1

    References:
        Xiao et al., *Dynamical Isometry and a Mean Field Theory of CNNs*, 2018, section 2.3 and
        algorithm 1.
    """
    return DeltaOrthogonal(scale, column_axis, dtype=dtype)  # pyright: ignore
