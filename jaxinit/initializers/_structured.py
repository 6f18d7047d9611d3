"""Kernels with a fixed pattern: identity maps, identity convolutions, sparse connections."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from jaxinit.initializers import _laws as laws
from jaxinit.initializers._arguments import as_groups, as_number, as_scale
from jaxinit.initializers._orthogonal import same_padding_tap
from jaxinit.initializers._protocol import Initializer, normalise_dtype


@dataclasses.dataclass(frozen=True, repr=False)
class Identity(Initializer):
    """Law of `identity`."""

    gain: float = 1.0

    name: ClassVar[str] = "identity"
    random: ClassVar[bool] = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "gain", as_number(self.name, "gain", self.gain))
        normalise_dtype(self)

    def sample(self, key: Any, shape: tuple[int, ...], dtype: np.dtype) -> jax.Array:
        return jnp.broadcast_to(jnp.eye(*shape[-2:], dtype=dtype) * self.gain, shape)

    def exact_law(self, shape: tuple[int, ...], is_complex: bool) -> laws.Law:
        if len(shape) < 2:
            raise ValueError(
                f"identity needs a shape with at least 2 axes, got {shape}. "
                "The last two are the rectangle, all others are batch axes."
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
class Dirac(Initializer):
    """Law of `dirac`."""

    gain: float = 1.0
    groups: int = 1

    name: ClassVar[str] = "dirac"
    random: ClassVar[bool] = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "gain", as_number(self.name, "gain", self.gain))
        object.__setattr__(self, "groups", as_groups(self.name, self.groups))
        normalise_dtype(self)

    def sample(self, key: Any, shape: tuple[int, ...], dtype: np.dtype) -> jax.Array:
        inputs, outputs = shape[-2:]
        of_one_group = jnp.eye(inputs, outputs // self.groups, dtype=dtype) * self.gain
        matrix = jnp.tile(of_one_group, (1, self.groups))
        return jnp.zeros(shape, dtype).at[same_padding_tap(shape[:-2])].set(matrix)

    def exact_law(self, shape: tuple[int, ...], is_complex: bool) -> laws.Law:
        if len(shape) not in (3, 4, 5):
            raise ValueError(
                f"dirac needs a kernel of 1 to 3 spatial axes, then inputs and outputs, got shape "
                f"{shape}. For a matrix use identity."
            )
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
class Sparse(Initializer):
    """Law of `sparse`."""

    sparsity: float
    stddev: float = 1e-2

    name: ClassVar[str] = "sparse"
    elementwise: ClassVar[bool] = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "sparsity", as_number(self.name, "sparsity", self.sparsity))
        if not 0 <= self.sparsity <= 1:
            raise ValueError(
                f"sparse needs sparsity between 0 and 1, got {self.sparsity}. It is the share of "
                "an output unit's inputs that are cut."
            )
        object.__setattr__(self, "stddev", as_scale(self.name, "stddev", self.stddev))
        normalise_dtype(self)

    def sample(self, key: Any, shape: tuple[int, ...], dtype: np.dtype) -> jax.Array:
        key_values, key_places = jax.random.split(key)
        inputs, outputs = math.prod(shape[:-1]), shape[-1]
        cut = jnp.broadcast_to(jnp.arange(inputs)[:, None] < self._cuts(inputs), (inputs, outputs))
        cut = jax.random.permutation(key_places, cut, axis=0, independent=True)
        values = jax.random.normal(key_values, shape, dtype) * self.stddev
        return jnp.where(cut.reshape(shape), 0, values)

    def exact_law(self, shape: tuple[int, ...], is_complex: bool) -> laws.Law:
        if len(shape) < 2:
            raise ValueError(
                f"sparse needs a shape with at least 2 axes, got {shape}. "
                "The last axis holds the output units, all others their inputs."
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
