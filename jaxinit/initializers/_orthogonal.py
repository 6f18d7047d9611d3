"""Orthogonal kernels: maps that keep lengths and angles, for deep linear, tanh and recurrent nets.

Matrices are uniform over the orthogonal (unitary) group, computed in at least float32 whatever the
dtype asked for. ``method="qr"`` has the bits of JAX: QR of a Gaussian matrix with the sign fix of
Mezzadri, *How to generate random matrices from the classical compact groups*, 2007, section 5.
``method="reflections"`` draws the Householder reflections that QR would find, and eliminates
nothing: Stewart, *The efficient generation of random orthogonal matrices with an application to
condition estimators*, 1980, section 3. The law is the same, the numbers are others.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, ClassVar, Literal, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from jaxinit.initializers import _laws as laws
from jaxinit.initializers._arguments import as_choice, as_index, as_scale
from jaxinit.initializers._protocol import Initializer, normalise_dtype

Method = Literal["qr", "reflections"]


def _as_method(caller: str, method: Any) -> Method:
    return cast(Method, as_choice(caller, "method", method, ("qr", "reflections")))


@dataclasses.dataclass(frozen=True, repr=False)
class Orthogonal(Initializer):
    """Law of `orthogonal` and `scaled_orthogonal`."""

    scale: float = 1.0
    column_axis: int = -1
    keeps_second_moment: bool = False
    method: Method = "qr"

    name: ClassVar[str] = "orthogonal"
    elementwise: ClassVar[bool] = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "scale", as_scale(self.label, "scale", self.scale))
        object.__setattr__(
            self, "column_axis", as_index(self.label, "column_axis", self.column_axis)
        )
        _as_method(self.label, self.method)
        normalise_dtype(self)

    def sample(self, key: Any, shape: tuple[int, ...], dtype: np.dtype) -> jax.Array:
        rows, columns = self._matrix(shape)
        if self.method == "qr":
            matrix = jax.random.orthogonal(key, rows, (), dtype, columns)
        elif rows < columns:
            matrix = _product_of_reflections(key, columns, rows, dtype).T
        else:
            matrix = _product_of_reflections(key, rows, columns, dtype)
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


def _product_of_reflections(key: Any, rows: int, columns: int, dtype: np.dtype) -> jax.Array:
    """Haar matrix with orthonormal columns, at least as many rows as columns.

    QR of a Gaussian matrix meets a fresh Gaussian vector x at every step, one entry shorter each
    time, so all of them can be drawn at once. Each gives H = I - tau v v* with H e = u, where
    u = x / |x|, v = (u - e) / (u_1 - 1) and tau = 1 - u_1: LAPACK's form. H takes e to u itself and
    not to -u, so no signs need to be fixed afterwards; 1 - u_1 is then computed without cancelling.
    Nothing but the library's call follows what is rounded here. With signs multiplied into its
    result, or with the compact product I - V T V*, a draw on a mesh had other bits.
    """
    # One vector a row, which LAPACK reads as a column: 1.2 to 1.8 times as fast as the other way.
    vectors = jax.random.normal(key, (columns, rows), dtype)
    first = jnp.diagonal(vectors)
    others = jnp.triu(vectors, 1)
    squares = jnp.square(others.real) + jnp.square(others.imag)
    rest = _sum_of_rows(squares) + jnp.square(first.imag)
    length = jnp.sqrt(rest + jnp.square(first.real))
    gap = length - first.real
    gap = jnp.where(first.real > 0, rest / (length + jnp.abs(first.real)), gap)
    turn = jax.lax.complex(gap, -first.imag) if dtype.kind == "c" else gap
    stays = turn == 0  # a single positive number, or a vector of zeros: tau is 0
    factors = turn / jnp.where(stays, 1, length)
    others = -others / jnp.where(stays, 1, turn)[:, None]
    return jax.lax.linalg.householder_product(others.T, factors)


def _sum_of_rows(matrix: jax.Array) -> jax.Array:
    """Sums the last axis half by half, so in an order that no compiler changes.

    With ``jnp.sum`` a 48 x 32 draw had other bits under vmap (jax 0.10), and `jit_init`, which
    trusts no sum to be the same in another program, could not compile equal layers once.
    """
    while (size := matrix.shape[1]) > 1:
        half = size // 2
        halves = matrix[:, :half] + matrix[:, half : 2 * half]
        matrix = jnp.concatenate([halves, matrix[:, 2 * half :]], 1) if size % 2 else halves
    return matrix[:, 0]


def orthogonal(
    scale: float = 1.0,
    column_axis: int = -1,
    dtype: DTypeLike | None = None,
    *,
    method: Method = "qr",
) -> Orthogonal:
    r"""Kernel that keeps the length of what passes through it, at any depth.

    Law: uniform (Haar) over matrices with :math:`Q^T Q = s^2 I`, or :math:`Q Q^T = s^2 I` where
    there are more columns than rows. Rows are all axes but ``column_axis`` together. Entries have
    mean 0 and variance :math:`s^2 / \max(rows, columns)`, and are not independent.

    Rounding: no entry of :math:`Q^T Q / s^2 - I` is larger than :math:`8 \epsilon \sqrt{n}`, with
    :math:`n` the longer side and :math:`\epsilon` of the dtype, by either method.

    On a convolution kernel the flattened matrix is orthogonal but the convolution is not (its
    singular values reach from 0.006 to 1.93 for 3 taps and 16 channels): use `delta_orthogonal`.

    Args:
        scale: factor on the matrix, every singular value.
        column_axis: the axis of the outputs.
        dtype: dtype to draw when the caller names none.
        method: ``"qr"`` for the numbers of ``jax.nn.initializers.orthogonal``, ``"reflections"``
            for other numbers of the same law in about half of the time.

    Returns:
        An initializer for real and complex dtypes of any width.

    Raises:
        TypeError: when an argument is of the wrong kind.
        ValueError: when ``scale`` is negative or not finite, or the method is unknown; when
            drawing, if the shape has fewer than two axes.

    Example:
        >>> q = orthogonal()(jax.random.key(0), (64, 32))
        >>> bool(jnp.allclose(q.T @ q, jnp.eye(32), atol=1e-5))
        True
        >>> orthogonal(method="reflections").law((64, 32)) == orthogonal().law((64, 32))
        True

    References:
        Saxe et al., *Exact solutions to the nonlinear dynamics of learning in deep linear neural
        networks*, 2013, section 3; Mezzadri, 2007, section 5; Stewart, 1980, section 3.
    """
    return Orthogonal(scale, column_axis, False, method, dtype=dtype)  # pyright: ignore[reportArgumentType]


def scaled_orthogonal(
    scale: float = 1.0,
    column_axis: int = -1,
    dtype: DTypeLike | None = None,
    *,
    method: Method = "qr",
) -> Orthogonal:
    r"""Orthogonal kernel that keeps the second moment per unit also where a layer widens.

    Law: `orthogonal` times :math:`\sqrt{\max(1, n_{out} / n_{in})}`, with :math:`n_{out}` the size
    of ``column_axis``: a widening map spreads the same length over more units, and the factor
    makes up for it.

    Args:
        scale: factor on top.
        column_axis: the axis of the outputs.
        dtype: dtype to draw when the caller names none.
        method: as in `orthogonal`.

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
    return Orthogonal(scale, column_axis, True, method, dtype=dtype)  # pyright: ignore[reportArgumentType]


@dataclasses.dataclass(frozen=True, repr=False)
class DeltaOrthogonal(Initializer):
    """Law of `delta_orthogonal`."""

    scale: float = 1.0
    column_axis: int = -1
    method: Method = "qr"

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
        _as_method(self.name, self.method)
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
        return Orthogonal(self.scale, self.column_axis, method=self.method)


def same_padding_tap(spatial: tuple[int, ...]) -> tuple[int, ...]:
    """Index of the kernel tap that meets the output's own position under SAME padding.

    SAME pads ``(k - 1) // 2`` in front, so this tap is the identity for even sizes too, where
    the centre ``k // 2`` would shift by one.
    """
    return tuple((size - 1) // 2 for size in spatial)


def delta_orthogonal(
    scale: float = 1.0,
    column_axis: int = -1,
    dtype: DTypeLike | None = None,
    *,
    method: Method = "qr",
) -> DeltaOrthogonal:
    r"""Convolution kernel that is an orthogonal map of the channels, so that depth costs nothing.

    Law: zero except for one spatial tap, the one that is the identity under SAME padding, which
    holds an `orthogonal` matrix of inputs by outputs. Both directions are legal: with more inputs
    than outputs the columns are orthonormal (JAX refuses this case).

    Args:
        scale: factor on the matrix.
        column_axis: -1 when the last axis holds the outputs, -2 when the one before does.
        dtype: dtype to draw when the caller names none.
        method: as in `orthogonal`.

    Returns:
        An initializer for kernels of 1 to 3 spatial axes.

    Raises:
        TypeError: when an argument is of the wrong kind.
        ValueError: when ``scale`` is negative or not finite, or the method is unknown; when
            drawing, if the shape has fewer than 3 or more than 5 axes.

    Example:
        >>> kernel = delta_orthogonal()(jax.random.key(0), (3, 3, 16, 16))
        >>> int((jnp.abs(kernel).sum((2, 3)) > 0).sum())
        1

    References:
        Xiao et al., *Dynamical Isometry and a Mean Field Theory of CNNs*, 2018, section 2.3 and
        algorithm 1.
    """
    return DeltaOrthogonal(scale, column_axis, method, dtype=dtype)  # pyright: ignore
