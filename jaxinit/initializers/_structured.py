"""Kernels whose entries are not independent: orthogonal, identity, one tap, sparse.

Orthogonal matrices are uniform over the orthogonal (unitary) group, computed in at least float32
whatever the dtype asked for. ``method="qr"`` has the bits of JAX: QR of a Gaussian matrix with the
sign fix of Mezzadri, *How to generate random matrices from the classical compact groups*, 2007,
section 5. ``method="reflections"`` draws the Householder reflections that QR would find, and
eliminates nothing: Stewart, *The efficient generation of random orthogonal matrices with an
application to condition estimators*, 1980, section 3. The law is the same, the numbers are others.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from jaxinit._arguments import Shape, as_choice, as_count, as_index, as_number, as_scale
from jaxinit.initializers import _laws as laws
from jaxinit.initializers._base import BaseInitializer, Traits, settle

Method = Literal["qr", "reflections"]


def _check_matrix(caller: str, shape: Shape, why: str) -> None:
    """Raises ``ValueError`` unless the shape has at least two axes."""
    if len(shape) < 2:
        raise ValueError(f"{caller} needs a shape with at least 2 axes, got {shape}. {why}")


def _as_method(caller: str, name: str, value: Any) -> str:
    return as_choice(caller, name, value, ("qr", "reflections"))


@dataclasses.dataclass(frozen=True, repr=False)
class Orthogonal(BaseInitializer):
    """A random matrix with orthonormal columns or rows, times a number."""

    scale: float = 1.0
    column_axis: int = -1
    keeps_second_moment: bool = False
    method: Method = "qr"

    name: ClassVar[str] = "orthogonal"
    own_traits: ClassVar[Traits] = Traits(elementwise=False)

    def __post_init__(self) -> None:
        settle(self, scale=as_scale, column_axis=as_index, method=_as_method)

    def sample(self, key: Any, shape: Shape, dtype: np.dtype) -> jax.Array:
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

    def exact_law(self, shape: Shape, is_complex: bool) -> laws.Law:
        rows, columns = self._matrix(shape)
        if not rows * columns:
            return laws.point(0.0)
        law = laws.sphere_entry(max(rows, columns), is_complex)
        return law.scaled(self._factor(rows, columns))

    def _matrix(self, shape: Shape) -> tuple[int, int]:
        _check_matrix(self.label, shape, "A vector has no orthogonal form: use normal or zeros.")
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
        arguments.pop("keeps_second_moment", None)  # the label says it
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
    of ``column_axis``: a widening layer spreads the same length over more units, and the
    factor makes up for it.

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
class DeltaOrthogonal(BaseInitializer):
    """An orthogonal matrix at one tap of a convolution kernel, zero at the others."""

    scale: float = 1.0
    column_axis: int = -1
    method: Method = "qr"

    name: ClassVar[str] = "delta_orthogonal"
    own_traits: ClassVar[Traits] = Traits(elementwise=False)

    def __post_init__(self) -> None:
        settle(self, scale=as_scale, column_axis=as_index, method=_as_method)
        if self.column_axis not in (-1, -2):
            raise ValueError(
                f"delta_orthogonal needs column_axis -1 or -2, the channel axes, got "
                f"{self.column_axis}."
            )

    def sample(self, key: Any, shape: Shape, dtype: np.dtype) -> jax.Array:
        matrix = self._matrix_law().sample(key, shape[-2:], dtype)
        return jnp.zeros(shape, dtype).at[same_padding_tap(shape[:-2])].set(matrix)

    def exact_law(self, shape: Shape, is_complex: bool) -> laws.Law:
        _check_spatial(self.name, shape, "For a matrix use orthogonal.")
        if 0 in shape:
            return laws.point(0.0)
        inner = self._matrix_law().exact_law(shape[-2:], is_complex)
        share = 1 / math.prod(shape[:-2])
        law = laws.mixture([share, 1 - share], [inner, laws.point(0.0)])
        return dataclasses.replace(law, fixed_norm=True)

    def _matrix_law(self) -> Orthogonal:
        return Orthogonal(self.scale, self.column_axis, method=self.method)


def _check_spatial(caller: str, shape: Shape, otherwise: str) -> None:
    """Raises ``ValueError`` unless the shape is one of a convolution kernel."""
    if len(shape) not in (3, 4, 5):
        raise ValueError(
            f"{caller} needs a kernel of 1 to 3 spatial axes, then inputs and outputs, got shape "
            f"{shape}. {otherwise}"
        )


def same_padding_tap(spatial: Shape) -> Shape:
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


@dataclasses.dataclass(frozen=True, repr=False)
class Identity(BaseInitializer):
    """A number on the diagonal of the last two axes, zero elsewhere."""

    gain: float = 1.0

    name: ClassVar[str] = "identity"
    own_traits: ClassVar[Traits] = Traits(random=False)

    def __post_init__(self) -> None:
        settle(self, gain=as_number)

    def sample(self, key: Any, shape: Shape, dtype: np.dtype) -> jax.Array:
        return jnp.broadcast_to(jnp.eye(*shape[-2:], dtype=dtype) * self.gain, shape)

    def exact_law(self, shape: Shape, is_complex: bool) -> laws.Law:
        _check_matrix(
            self.name, shape, "The last two are the rectangle, all others are batch axes."
        )
        return _placed(self.gain, 1 / max(*shape[-2:], 1), is_complex)


def identity(gain: float = 1.0, dtype: DTypeLike | None = None) -> Identity:
    """Kernel that passes its input through: recurrent nets, residual maps, debugging.

    Law: ``gain`` where the last two indices are equal, 0 elsewhere; any rectangle, repeated over
    the leading axes. A wide rectangle leaves units that are 0 and twins of each other.

    Args:
        gain: value on the diagonal.
        dtype: dtype to draw when the caller names none.

    Returns:
        An initializer that ignores its key.

    Raises:
        TypeError: when ``gain`` is not a real number.
        ValueError: when it is not finite; when drawing, if the shape has fewer than two axes.

    Example:
        >>> identity(2.0)(None, (2, 3)).tolist()
        [[2.0, 0.0, 0.0], [0.0, 2.0, 0.0]]

    References:
        Le, Jaitly and Hinton, *A Simple Way to Initialize Recurrent Networks of Rectified Linear
        Units*, 2015, section 3.
    """
    return Identity(gain, dtype=dtype)  # pyright: ignore[reportArgumentType]


@dataclasses.dataclass(frozen=True, repr=False)
class Dirac(BaseInitializer):
    """An identity matrix at one tap of a convolution kernel, zero at the others."""

    gain: float = 1.0
    groups: int = 1

    name: ClassVar[str] = "dirac"
    own_traits: ClassVar[Traits] = Traits(random=False)

    def __post_init__(self) -> None:
        settle(self, gain=as_number, groups=as_count)

    def sample(self, key: Any, shape: Shape, dtype: np.dtype) -> jax.Array:
        inputs, outputs = shape[-2:]
        of_one_group = jnp.eye(inputs, outputs // self.groups, dtype=dtype) * self.gain
        matrix = jnp.tile(of_one_group, (1, self.groups))
        return jnp.zeros(shape, dtype).at[same_padding_tap(shape[:-2])].set(matrix)

    def exact_law(self, shape: Shape, is_complex: bool) -> laws.Law:
        _check_spatial(self.name, shape, "For a matrix use identity.")
        inputs, outputs = shape[-2:]
        if outputs % self.groups:
            raise ValueError(
                f"dirac needs the {outputs} outputs of shape {shape} to be a multiple of "
                f"groups={self.groups}."
            )
        taps = self.groups * min(inputs, outputs // self.groups)
        share = taps / math.prod(shape) if 0 not in shape else 0.0
        return _placed(self.gain, share, is_complex)


def dirac(gain: float = 1.0, groups: int = 1, dtype: DTypeLike | None = None) -> Dirac:
    """Convolution kernel that passes its input through, channel by channel.

    Law: ``gain`` at the tap that is the identity under SAME padding (index ``(k - 1) // 2``, also
    for even k), from input channel i to output channel i of each group; 0 elsewhere. Kernels are
    laid out as in Flax: 1 to 3 spatial axes, inputs of one group, outputs of all.

    Args:
        gain: value at the tap.
        groups: feature groups of the convolution.
        dtype: dtype to draw when the caller names none.

    Returns:
        An initializer that ignores its key.

    Raises:
        TypeError: when an argument is of the wrong kind.
        ValueError: when ``gain`` is not finite or ``groups`` < 1; when drawing, if the rank is
            not 3 to 5 or the groups do not divide the outputs.

    Example:
        >>> dirac()(None, (3, 1, 1)).ravel().tolist()
        [0.0, 1.0, 0.0]

    References:
        Zagoruyko and Komodakis, *DiracNets: Training Very Deep Neural Networks Without
        Skip-Connections*, 2017, section 3.
    """
    return Dirac(gain, groups, dtype=dtype)  # pyright: ignore[reportArgumentType]


def _placed(value: float, share: float, is_complex: bool) -> laws.Law:
    """The law of an entry that is ``value`` with probability ``share``, else 0."""
    at = laws.point(complex(value) if is_complex else value)
    return laws.mixture([share, 1 - share], [at, laws.point(0.0)])


@dataclasses.dataclass(frozen=True, repr=False)
class Sparse(BaseInitializer):
    """Gaussian entries of which every output unit keeps a fixed number."""

    sparsity: float
    stddev: float = 1e-2

    name: ClassVar[str] = "sparse"
    own_traits: ClassVar[Traits] = Traits(elementwise=False)

    def __post_init__(self) -> None:
        settle(self, sparsity=as_number, stddev=as_scale)
        if not 0 <= self.sparsity <= 1:
            raise ValueError(
                f"sparse needs sparsity between 0 and 1, got {self.sparsity}. It is the share of "
                "an output unit's inputs that are cut."
            )

    def sample(self, key: Any, shape: Shape, dtype: np.dtype) -> jax.Array:
        key_values, key_places = jax.random.split(key)
        inputs, outputs = math.prod(shape[:-1]), shape[-1]
        cut = jnp.broadcast_to(jnp.arange(inputs)[:, None] < self._cuts(inputs), (inputs, outputs))
        cut = jax.random.permutation(key_places, cut, axis=0, independent=True)
        values = jax.random.normal(key_values, shape, dtype) * self.stddev
        return jnp.where(cut.reshape(shape), 0, values)

    def exact_law(self, shape: Shape, is_complex: bool) -> laws.Law:
        _check_matrix(
            self.name, shape, "The last axis holds the output units, all others their inputs."
        )
        inputs = math.prod(shape[:-1])
        share = 1 - self._cuts(inputs) / inputs if inputs else 0.0
        standard = laws.complex_normal() if is_complex else laws.standard_normal()
        return laws.mixture([share, 1 - share], [standard.scaled(self.stddev), laws.point(0.0)])

    def _cuts(self, inputs: int) -> int:
        # Rounded up as in PyTorch; the subtraction keeps 0.14 * 50 = 7.000000000000001 at 7.
        return math.ceil(self.sparsity * inputs - 1e-9)


def sparse(sparsity: float, stddev: float = 1e-2, dtype: DTypeLike | None = None) -> Sparse:
    r"""Kernel in which each unit listens to a few inputs only, so that units differ from the start.

    Law: in each output unit (last axis) exactly ``ceil(sparsity * inputs)`` entries, at places
    drawn for that unit, are 0, and the others are :math:`N(0, \sigma^2)`. The variance per entry
    over all is ``(1 - share of zeros) * stddev**2``.

    Args:
        sparsity: share of each unit's inputs that are 0.
        stddev: standard deviation of the others.
        dtype: dtype to draw when the caller names none.

    Returns:
        An initializer for shapes of at least two axes.

    Raises:
        TypeError: when a parameter is not a real number.
        ValueError: when ``sparsity`` is outside 0 to 1 or ``stddev`` negative; when drawing, if
            the shape has fewer than two axes.

    Example:
        >>> kernel = sparse(0.9, 1.0)(jax.random.key(0), (100, 5))
        >>> (kernel == 0).sum(0).tolist()
        [90, 90, 90, 90, 90]

    References:
        Martens, *Deep learning via Hessian-free optimization*, 2010, section 5.
    """
    return Sparse(sparsity, stddev, dtype=dtype)  # pyright: ignore[reportArgumentType]
