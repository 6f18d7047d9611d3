"""Initializers made of one other: scaled by a number, masked, drawn in another shape."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxinit.initializers import _laws as laws
from jaxinit.initializers._arguments import Kind, as_dtype, as_number, as_shape
from jaxinit.initializers._fans import Axes, Fans
from jaxinit.initializers._frozen import FrozenArray
from jaxinit.initializers._protocol import Initializer, check_fits


def as_initializer(caller: str, value: Any) -> Initializer:
    """An initializer of jaxinit, or a ``TypeError`` that says how to get one."""
    if not isinstance(value, Initializer):
        raise TypeError(
            f"{caller} needs an initializer of jaxinit, got {value!r}. Build one, for example "
            "he_normal(); translate one of JAX's with jaxinit.initializers.from_jax."
        )
    return value


class Wrapper(Initializer):
    """What all wrappers share: kinds, randomness and axes are those of what they wrap."""

    initializer: Initializer

    @property
    def kinds(self) -> frozenset[Kind]:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.initializer.kinds

    @property
    def elementwise(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.initializer.elementwise

    @property
    def random(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.initializer.random

    @property
    def axes(self) -> Axes | None:
        return self.initializer.axes

    def with_axes(
        self, axes: Axes, *, groups: int = 1, transposed_strides: int | Sequence[int] = ()
    ) -> Self:
        inner = self.initializer.with_axes(
            axes, groups=groups, transposed_strides=transposed_strides
        )
        return dataclasses.replace(self, initializer=inner)

    def fans(self, shape: Sequence[int]) -> Fans | None:
        return self.initializer.fans(shape)

    def resolve_dtype(self, dtype: Any) -> np.dtype:
        resolved = self.initializer.resolve_dtype(dtype)
        return as_dtype(self.label, resolved, self.kinds)

    @property
    def dtype_asked(self) -> str | None:
        return self.initializer.dtype_asked

    def arguments(self) -> dict[str, Any]:
        arguments = super().arguments()
        arguments.pop("dtype", None)  # the inner initializers carry theirs
        return arguments


@dataclasses.dataclass(frozen=True, repr=False)
class Scaled(Wrapper):
    """Law of `scaled`."""

    initializer: Initializer
    factor: float

    name: ClassVar[str] = "scaled"

    def __post_init__(self) -> None:
        as_initializer(self.name, self.initializer)
        object.__setattr__(self, "factor", as_number(self.name, "factor", self.factor))

    @property
    def kinds(self) -> frozenset[Kind]:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.initializer.kinds & {"float", "complex"}  # whole numbers would be cut off

    def resolve_dtype(self, dtype: Any) -> np.dtype:
        resolved = super().resolve_dtype(dtype)
        working = jnp.finfo(jnp.float32 if resolved.itemsize < 4 else resolved)
        if abs(self.factor) > float(working.max):  # it would be infinite, and NaN times 0
            raise ValueError(
                f"scaled needs a factor within the range of {working.dtype}, which {resolved} is "
                f"drawn in, got {self.factor}. Scale the inner initializer itself."
            )
        return resolved

    def sample(self, key: Any, shape: tuple[int, ...], dtype: np.dtype) -> jax.Array:
        # The inner draw takes place in this dtype: what it cannot hold, no factor brings back.
        inner = self.initializer.exact_law(shape, dtype.kind == "c")
        check_fits(self.name, inner, dtype, random=self.random)
        return self.initializer.sample(key, shape, dtype) * self.factor

    def exact_law(self, shape: tuple[int, ...], is_complex: bool) -> laws.Law:
        inner = self.initializer.exact_law(shape, is_complex)
        if not is_complex:
            return inner.scaled(self.factor)
        return _scaled_complex(inner, self.factor)


def _scaled_complex(law: laws.Law, factor: float) -> laws.Law:
    """`Law.scaled`, but with the support of moduli, which a sign leaves alone."""
    parts = tuple(
        dataclasses.replace(part, law=_scaled_complex(part.law, factor)) for part in law.parts
    )
    return dataclasses.replace(law.scaled(abs(factor)), mean=law.mean * factor, parts=parts)


def scaled(initializer: Initializer, factor: float) -> Scaled:
    r"""Another initializer times a number: residual outputs, temperature, a damped last layer.

    Law: :math:`x = c\,y` with y from ``initializer``: mean times c, variance times :math:`c^2`.
    In narrow dtypes the product is taken in float32, before the one cast.

    Args:
        initializer: what to scale.
        factor: the number; multiplies the standard deviation.

    Returns:
        An initializer for the same shapes and dtypes.

    Raises:
        TypeError: when an argument is of the wrong kind.
        ValueError: when ``factor`` is not finite.

    Example:
        >>> from jaxinit.initializers import normal
        >>> scaled(normal(0.02), (2 * 12) ** -0.5).law((768, 768)).std
        0.004082482904638631

    References:
        Radford et al., 2019, section 2.3, for residual outputs over the square root of their
        number.
    """
    return Scaled(initializer, factor)


@dataclasses.dataclass(frozen=True, repr=False)
class Masked(Wrapper):
    """Law of `masked`."""

    initializer: Initializer
    mask: FrozenArray

    name: ClassVar[str] = "masked"

    def __post_init__(self) -> None:
        as_initializer(self.name, self.initializer)
        mask = FrozenArray.of(self.name, "mask", self.mask)
        if not np.isin(mask.array, (0, 1)).all():
            raise ValueError(f"masked needs a mask of booleans, or 0 and 1, got {mask!r}.")
        object.__setattr__(self, "mask", mask)

    def sample(self, key: Any, shape: tuple[int, ...], dtype: np.dtype) -> jax.Array:
        values = self.initializer.sample(key, shape, dtype)
        return jnp.where(jnp.broadcast_to(self.mask.array != 0, shape), values, 0)

    def exact_law(self, shape: tuple[int, ...], is_complex: bool) -> laws.Law:
        inner, kept = self._flat(shape)
        law = inner.exact_law(shape, is_complex)
        if inner.random or 0 in shape:
            return _thinned(law, kept, shape)
        # A pattern such as an identity may meet the mask anywhere: count what is left of it.
        dtype = as_dtype(self.label, complex if is_complex else float, self.kinds)
        # One program: a dirac, drawn step by step, is twenty to compile.
        pattern = jax.jit(lambda: self.sample(None, shape, dtype))
        with jax.ensure_compile_time_eval(), np.errstate(over="ignore"):
            return laws.empirical(np.asarray(pattern()))

    def _flat(self, shape: tuple[int, ...]) -> tuple[Initializer, np.ndarray]:
        """What is masked, below masks of masks, and which of its entries all of them keep."""
        self.mask.check_broadcasts(self.name, "mask", shape)
        kept = self.mask.array != 0
        if not isinstance(self.initializer, Masked):
            return self.initializer, kept
        inner, too = self.initializer._flat(shape)
        return inner, kept & too


def _thinned(law: laws.Law, kept: np.ndarray, shape: tuple[int, ...]) -> laws.Law:
    """The law of the entries of an array where those that are not kept are 0."""
    if not law.parts:
        share = float(kept.mean())
        return laws.mixture([share, 1 - share], [law, laws.point(0.0)])
    kept = np.broadcast_to(kept, shape)
    parts = []
    for part in law.parts:
        inside = [slice(None)] * kept.ndim
        inside[part.axis] = slice(part.start, part.stop)
        here = kept[tuple(inside)]
        parts.append(dataclasses.replace(part, law=_thinned(part.law, here, here.shape)))
    sizes = [part.stop - part.start for part in parts]
    whole = laws.mixture([size / sum(sizes) for size in sizes], [part.law for part in parts])
    return dataclasses.replace(whole, parts=tuple(parts))


def masked(initializer: Initializer, mask: ArrayLike | Sequence[Any]) -> Masked:
    """Another initializer with some entries held at 0: causal or block structure, pruning.

    Law: where the mask is 1 the law of ``initializer``, elsewhere 0. The fans stay those of the
    full kernel; scale up yourself when fewer inputs count.

    Args:
        initializer: law of the entries that stay.
        mask: booleans, or 0 and 1, that broadcast to the shape.

    Returns:
        An initializer for shapes to which the mask broadcasts.

    Raises:
        TypeError: when an argument is of the wrong kind.
        ValueError: when the mask holds other numbers; when drawing, if it does not broadcast.

    Example:
        >>> from jaxinit.initializers import ones
        >>> masked(ones, np.tri(3))(None, (3, 3)).tolist()
        [[1.0, 0.0, 0.0], [1.0, 1.0, 0.0], [1.0, 1.0, 1.0]]
    """
    return Masked(initializer, mask)  # pyright: ignore[reportArgumentType]


@dataclasses.dataclass(frozen=True, repr=False)
class Reshaped(Wrapper):
    """Law of `reshaped`."""

    initializer: Initializer
    shape: tuple[int, ...]

    name: ClassVar[str] = "reshaped"

    def __post_init__(self) -> None:
        as_initializer(self.name, self.initializer)
        object.__setattr__(self, "shape", as_shape(self.name, self.shape))

    def sample(self, key: Any, shape: tuple[int, ...], dtype: np.dtype) -> jax.Array:
        return self.initializer.sample(key, self.shape, dtype).reshape(shape)

    def exact_law(self, shape: tuple[int, ...], is_complex: bool) -> laws.Law:
        if math.prod(shape) != math.prod(self.shape):
            raise ValueError(
                f"reshaped needs a shape of {math.prod(self.shape)} entries, as {self.shape} has, "
                f"got {shape}."
            )
        law = self.initializer.exact_law(self.shape, is_complex)
        return dataclasses.replace(law, parts=())

    def fans(self, shape: Sequence[int]) -> Fans | None:
        return self.initializer.fans(self.shape)

    @property
    def axes(self) -> Axes | None:
        return None

    def with_axes(
        self, axes: Axes, *, groups: int = 1, transposed_strides: int | Sequence[int] = ()
    ) -> Self:
        return self


def reshaped(initializer: Initializer, shape: Sequence[int]) -> Reshaped:
    """A kernel drawn in one shape and used in another, as Flax draws its DenseGeneral layers.

    Law: that of ``initializer`` in ``shape``, with its fans.

    Args:
        initializer: law of the array before reshaping.
        shape: the shape to draw in.

    Returns:
        An initializer for shapes of as many entries.

    Raises:
        TypeError: when an argument is of the wrong kind.
        ValueError: when drawing, if the shape asked for has another number of entries.

    Example:
        >>> from jaxinit.initializers import lecun_normal
        >>> reshaped(lecun_normal(), (64, 128)).law((64, 8, 16)).variance * 64
        1.0
    """
    return Reshaped(initializer, shape)  # pyright: ignore[reportArgumentType]
