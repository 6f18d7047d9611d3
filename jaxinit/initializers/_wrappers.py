"""Initializers that draw with others: scaled, masked, reshaped, stacked, fused, a model's own.

`stacked` and `fused` put several kernels in one array and keep the fans of a single kernel. A law
on the whole array would take the extra axis for a receptive field, or the neighbours for more
outputs of the same layer. `own` stands for what a model draws with itself, and `FromFunction` for a
function of the user; neither can say what law its entries follow.
"""

from __future__ import annotations

import abc
import dataclasses
import functools
import inspect
import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar, Self, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike, DTypeLike

from jaxinit._arguments import (
    Axis,
    FrozenArray,
    Shape,
    as_axis,
    as_dtype,
    as_index,
    as_number,
    as_shape,
)
from jaxinit.initializers import _laws as laws
from jaxinit.initializers._base import NUMERIC, BaseInitializer, Traits, settle
from jaxinit.initializers._fans import Axes, Fans
from jaxinit.initializers._protocol import Initializer, OutSharding

T = TypeVar("T")


class Wrapper(BaseInitializer):
    """An initializer that draws with the initializers in ``inner``, and takes after them.

    Whatever a subclass does not define comes from ``inner``: traits, axes, fans and dtypes.
    """

    own_traits: ClassVar[Traits] = Traits(NUMERIC, random=False)

    @property
    @abc.abstractmethod
    def inner(self) -> tuple[BaseInitializer, ...]:
        """The initializers that this one draws with."""

    @abc.abstractmethod
    def with_inner(self, inner: tuple[BaseInitializer, ...]) -> Self:
        """The same around other initializers."""

    def inner_shapes(self, shape: Shape) -> Sequence[Shape]:
        """The shape that each inner initializer draws for an array of ``shape``."""
        return [shape] * len(self.inner)

    @property
    def traits(self) -> Traits:
        return functools.reduce(Traits.joined, (one.traits for one in self.inner), self.own_traits)

    @property
    def axes(self) -> Axes | None:
        return _agreed(one.axes for one in self.inner)

    def with_axes(self, axes: Axes, *, groups: int = 1, transposed_strides: Axis = ()) -> Self:
        return self.with_inner(
            tuple(
                one.with_axes(axes, groups=groups, transposed_strides=transposed_strides)
                for one in self.inner
            )
        )

    def fans(self, shape: Sequence[int]) -> Fans | None:
        shapes = self.inner_shapes(as_shape(self.label, shape))
        return _agreed(one.fans(drawn) for one, drawn in zip(self.inner, shapes, strict=True))

    @property
    def dtype_asked(self) -> str | None:
        return next(filter(None, (one.dtype_asked for one in self.inner)), None)

    def resolve_dtype(self, dtype: DTypeLike | None) -> np.dtype:
        resolved = super().resolve_dtype(dtype)
        for one in self.inner:
            one.resolve_dtype(resolved)  # may refuse it, as a constant does that would not fit
        return resolved

    def arguments(self) -> dict[str, Any]:
        arguments = super().arguments()
        arguments.pop("dtype", None)  # the inner initializers carry theirs
        return arguments


class SingleWrapper(Wrapper):
    """A wrapper of one initializer, its field ``initializer``."""

    initializer: BaseInitializer

    @property
    def inner(self) -> tuple[BaseInitializer, ...]:
        return (self.initializer,)

    def with_inner(self, inner: tuple[BaseInitializer, ...]) -> Self:
        (initializer,) = inner
        return dataclasses.replace(self, initializer=initializer)


def _agreed(values: Iterable[T]) -> T | None:
    """The value that all have, or None where they differ."""
    several = set(values)
    return several.pop() if len(several) == 1 else None


def as_initializer(caller: str, name: str, value: Any) -> BaseInitializer:
    """An initializer that can be drawn with, or a ``TypeError`` that says how to get one."""
    if not isinstance(value, BaseInitializer):
        raise TypeError(
            f"{caller} needs an initializer of jaxinit, got {value!r}. Build one, for example "
            "he_normal(); translate one of JAX's with jaxinit.initializers.from_jax."
        )
    return value


@dataclasses.dataclass(frozen=True, repr=False)
class Scaled(SingleWrapper):
    """The draws of another initializer, times a number."""

    initializer: BaseInitializer
    factor: float

    name: ClassVar[str] = "scaled"
    # Products of whole numbers would be cut off.
    own_traits: ClassVar[Traits] = Traits(random=False)

    def __post_init__(self) -> None:
        settle(self, initializer=as_initializer, factor=as_number)

    def resolve_dtype(self, dtype: DTypeLike | None) -> np.dtype:
        resolved = super().resolve_dtype(dtype)
        working = jnp.finfo(jnp.float32 if resolved.itemsize < 4 else resolved)
        if abs(self.factor) > float(working.max):  # it would be infinite, and NaN times 0
            raise ValueError(
                f"scaled needs a factor within the range of {working.dtype}, which {resolved} is "
                f"drawn in, got {self.factor}. Scale the inner initializer itself."
            )
        return resolved

    def sample(self, key: Any, shape: Shape, dtype: np.dtype) -> jax.Array:
        # The inner draw takes place in this dtype: what it cannot hold, no factor brings back.
        inner = self.initializer.exact_law(shape, dtype.kind == "c")
        laws.check_fits(self.name, inner, dtype, random=self.random)
        return self.initializer.sample(key, shape, dtype) * self.factor

    def exact_law(self, shape: Shape, is_complex: bool) -> laws.Law:
        inner = self.initializer.exact_law(shape, is_complex)
        if not is_complex:
            return inner.scaled(self.factor)
        return _scaled_complex(inner, self.factor)


def _scaled_complex(law: laws.Law, factor: float) -> laws.Law:
    """`Law.scaled`, but with the support of moduli, which a sign leaves alone."""
    slabs = law.map_slabs(lambda inside: _scaled_complex(inside, factor))
    return dataclasses.replace(law.scaled(abs(factor)), mean=law.mean * factor, slabs=slabs)


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
    return Scaled(initializer, factor)  # pyright: ignore[reportArgumentType]


@dataclasses.dataclass(frozen=True, repr=False)
class Masked(SingleWrapper):
    """The draws of another initializer, with zeros where the mask is 0."""

    initializer: BaseInitializer
    mask: FrozenArray

    name: ClassVar[str] = "masked"

    def __post_init__(self) -> None:
        settle(self, initializer=as_initializer, mask=FrozenArray.of)
        if not np.isin(self.mask.array, (0, 1)).all():
            raise ValueError(f"masked needs a mask of booleans, or 0 and 1, got {self.mask!r}.")

    def sample(self, key: Any, shape: Shape, dtype: np.dtype) -> jax.Array:
        values = self.initializer.sample(key, shape, dtype)
        return jnp.where(jnp.broadcast_to(self.mask.array != 0, shape), values, 0)

    def exact_law(self, shape: Shape, is_complex: bool) -> laws.Law:
        inner, kept = self._flat(shape)
        law = inner.exact_law(shape, is_complex)
        if inner.random or 0 in shape:
            return _thinned(law, kept, shape)
        # A pattern such as an identity may meet the mask anywhere: count what is left of it.
        dtype = as_dtype(self.label, complex if is_complex else float, self.traits.kinds)
        # One program: a dirac, drawn step by step, is twenty to compile.
        pattern = jax.jit(lambda: self.sample(None, shape, dtype))
        with jax.ensure_compile_time_eval(), np.errstate(over="ignore"):
            return laws.empirical(np.asarray(pattern()))

    def _flat(self, shape: Shape) -> tuple[BaseInitializer, np.ndarray]:
        """What is masked, below masks of masks, and which of its entries all of them keep."""
        self.mask.check_broadcasts(self.name, "mask", shape)
        kept = self.mask.array != 0
        if not isinstance(self.initializer, Masked):
            return self.initializer, kept
        inner, too = self.initializer._flat(shape)
        return inner, kept & too


def _thinned(law: laws.Law, kept: np.ndarray, shape: Shape) -> laws.Law:
    """The law of the entries of an array where those that are not kept are 0."""
    if not law.slabs:
        share = float(kept.mean())
        return laws.mixture([share, 1 - share], [law, laws.point(0.0)])
    kept = np.broadcast_to(kept, shape)
    slabs = []
    for slab in law.slabs:
        inside = [slice(None)] * kept.ndim
        inside[slab.axis] = slice(slab.start, slab.stop)
        here = kept[tuple(inside)]
        slabs.append(dataclasses.replace(slab, law=_thinned(slab.law, here, here.shape)))
    return _of_slabs(slabs)


def _of_slabs(slabs: Sequence[laws.Slab]) -> laws.Law:
    """The law of an array that is cut into slabs."""
    size = sum(slab.stop - slab.start for slab in slabs)
    shares = [(slab.stop - slab.start) / size for slab in slabs]
    whole = laws.mixture(shares, [slab.law for slab in slabs])
    return dataclasses.replace(whole, slabs=tuple(slabs))


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
class Reshaped(SingleWrapper):
    """The draws of another initializer in one shape, reshaped to the shape asked for."""

    initializer: BaseInitializer
    shape: Shape

    name: ClassVar[str] = "reshaped"

    def __post_init__(self) -> None:
        settle(self, initializer=as_initializer)
        object.__setattr__(self, "shape", as_shape(self.name, self.shape))

    def sample(self, key: Any, shape: Shape, dtype: np.dtype) -> jax.Array:
        return self.initializer.sample(key, self.shape, dtype).reshape(shape)

    def exact_law(self, shape: Shape, is_complex: bool) -> laws.Law:
        if math.prod(shape) != math.prod(self.shape):
            raise ValueError(
                f"reshaped needs a shape of {math.prod(self.shape)} entries, as {self.shape} has, "
                f"got {shape}."
            )
        law = self.initializer.exact_law(self.shape, is_complex)
        return dataclasses.replace(law, slabs=())

    def inner_shapes(self, shape: Shape) -> Sequence[Shape]:
        return [self.shape]

    @property
    def axes(self) -> Axes | None:
        return None

    def with_axes(self, axes: Axes, *, groups: int = 1, transposed_strides: Axis = ()) -> Self:
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


@dataclasses.dataclass(frozen=True, repr=False)
class Stacked(SingleWrapper):
    """Independent draws of another initializer, stacked along one or several axes."""

    initializer: BaseInitializer
    axis: Axis = 0

    name: ClassVar[str] = "stacked"

    def __post_init__(self) -> None:
        settle(self, initializer=as_initializer, axis=_as_stack_axis)

    def sample(self, key: Any, shape: Shape, dtype: np.dtype) -> jax.Array:
        stack, _ = self._split(shape)
        sizes = [shape[axis] for axis in stack]
        (inner,) = self.inner_shapes(shape)
        if self.random:
            keys = jax.random.split(key, math.prod(sizes))
            drawn = jax.vmap(lambda key: self.initializer.sample(key, inner, dtype))(keys)
            drawn = drawn.reshape(*sizes, *inner)
        else:
            drawn = jnp.broadcast_to(self.initializer.sample(None, inner, dtype), (*sizes, *inner))
        return jnp.moveaxis(drawn, range(len(stack)), stack)

    def exact_law(self, shape: Shape, is_complex: bool) -> laws.Law:
        _, layer = self._split(shape)
        (drawn,) = self.inner_shapes(shape)
        law = self.initializer.exact_law(drawn, is_complex)
        return _with_slab_axes(law, [axis - len(shape) for axis in layer])

    def inner_shapes(self, shape: Shape) -> Sequence[Shape]:
        return [tuple(shape[axis] for axis in self._split(shape)[1])]

    def _split(self, shape: Shape) -> tuple[list[int], list[int]]:
        """Positions of the stacked axes, and of the axes of one layer."""
        rank = len(shape)
        axes = (self.axis,) if isinstance(self.axis, int) else self.axis
        stack = [axis % rank for axis in axes if -rank <= axis < rank]
        if len(set(stack)) != len(axes):
            raise ValueError(
                f"stacked needs its axes inside shape {shape}, each once, got axis={self.axis}."
            )
        return stack, [axis for axis in range(rank) if axis not in stack]


def _as_stack_axis(caller: str, name: str, value: Any) -> Axis:
    axes = as_axis(caller, name, value)
    if len(set(axes)) != len(axes):
        raise ValueError(f"{caller} needs every axis once, got {name}={axes}.")
    return axes[0] if len(axes) == 1 else axes


def _with_slab_axes(law: laws.Law, axes: Sequence[int]) -> laws.Law:
    """The law with axis i of its slabs, and of theirs, renamed to ``axes[i]``."""
    slabs = law.map_slabs(lambda inside: _with_slab_axes(inside, axes))
    renamed = (dataclasses.replace(slab, axis=axes[slab.axis]) for slab in slabs)
    return dataclasses.replace(law, slabs=tuple(renamed))


def stacked(initializer: Initializer, axis: Axis = 0) -> Stacked:
    """Independent layers or experts in one array, each with the fans of a single layer.

    Law: along ``axis`` the slices are independent draws of ``initializer`` in the shape of one
    layer. Without it, the layer axis would count as the receptive field of a convolution: the
    standard deviation of 12 stacked layers comes out 0.289 of what it should be.

    Args:
        initializer: law of one layer.
        axis: the layer axis, or several for nested stacks.

    Returns:
        An initializer for the stacked shape.

    Raises:
        TypeError: when an argument is of the wrong kind.
        ValueError: when an axis is named twice; when drawing, if an axis is not in the shape.

    Example:
        >>> from jaxinit.initializers import lecun_normal
        >>> stacked(lecun_normal()).law((12, 64, 64)).variance == 1 / 64
        True
    """
    return Stacked(initializer, axis)  # pyright: ignore[reportArgumentType]


@dataclasses.dataclass(frozen=True, repr=False)
class Fused(Wrapper):
    """Draws of several initializers, side by side along one axis."""

    initializers: tuple[BaseInitializer, ...]
    sizes: tuple[int, ...]
    axis: int = -1

    name: ClassVar[str] = "fused"

    def __post_init__(self) -> None:
        object.__setattr__(self, "sizes", as_shape("fused (sizes)", self.sizes))
        given = self.initializers
        if not isinstance(given, Sequence) or isinstance(given, str):
            given = (given,) * len(self.sizes)
        initializers = tuple(as_initializer(self.name, "initializers", one) for one in given)
        object.__setattr__(self, "initializers", initializers)
        settle(self, axis=as_index)
        if not self.sizes or len(initializers) != len(self.sizes):
            raise ValueError(
                f"fused needs one initializer for each size, got {len(initializers)} "
                f"initializers and sizes={self.sizes}. Pass one initializer to use it for all."
            )
        if not self.traits.kinds:
            raise TypeError(f"fused needs parts that share a kind of dtype, got {self!r}.")

    @property
    def inner(self) -> tuple[BaseInitializer, ...]:
        return self.initializers

    def with_inner(self, inner: tuple[BaseInitializer, ...]) -> Self:
        return dataclasses.replace(self, initializers=inner)

    def inner_shapes(self, shape: Shape) -> Sequence[Shape]:
        inside = -len(shape) <= self.axis < len(shape)
        if not inside or shape[self.axis] != sum(self.sizes):
            raise ValueError(
                f"fused needs sizes that add up to axis {self.axis} of the shape, got "
                f"sizes={self.sizes}, in all {sum(self.sizes)}, for shape {shape}."
            )
        axis = self.axis % len(shape)
        return [(*shape[:axis], size, *shape[axis + 1 :]) for size in self.sizes]

    def sample(self, key: Any, shape: Shape, dtype: np.dtype) -> jax.Array:
        count = len(self.sizes)
        keys = jax.random.split(key, count) if self.random else [None] * count
        drawn = [
            one.sample(key, piece, dtype).astype(dtype)
            for one, key, piece in zip(self.inner, keys, self.inner_shapes(shape), strict=True)
            if 0 not in piece
        ]
        return jnp.concatenate(drawn, self.axis)

    def exact_law(self, shape: Shape, is_complex: bool) -> laws.Law:
        inner = [
            one.exact_law(piece, is_complex)
            for one, piece in zip(self.inner, self.inner_shapes(shape), strict=True)
        ]
        if 0 in shape:
            return laws.point(0.0)
        stops = itertools.accumulate(self.sizes)
        axis = self.axis % len(shape) - len(shape)
        slabs = [
            laws.Slab(axis, stop - size, stop, law)
            for size, stop, law in zip(self.sizes, stops, inner, strict=True)
            if size
        ]
        return _of_slabs(slabs)


def fused(
    initializers: Initializer | Sequence[Initializer], sizes: Sequence[int], axis: int = -1
) -> Fused:
    """Several kernels side by side in one array, each with its own fans: packed QKV, gate and up.

    Law: along ``axis`` the array is cut into pieces of ``sizes``, and each piece is an independent
    draw of its initializer in the shape of the piece. A fan-averaging law on the whole array would
    count all pieces as the outputs of one layer: a packed QKV then has half the variance.

    Args:
        initializers: one for each piece, or one for all.
        sizes: sizes of the pieces along ``axis``; their sum is the size of the axis.
        axis: the axis along which the kernels lie side by side.

    Returns:
        An initializer for the whole array, whose law has one slab for each piece.

    Raises:
        TypeError: when an argument is of the wrong kind.
        ValueError: when counts differ; when drawing, if the sizes do not add up to the axis.

    Example:
        >>> from jaxinit.initializers import glorot_normal
        >>> glorot_normal().law((768, 2304)).variance * 768
        0.5
        >>> fused(glorot_normal(), (768, 768, 768)).law((768, 2304)).variance * 768
        1.0
    """
    return Fused(initializers, sizes, axis)  # pyright: ignore[reportArgumentType]


@dataclasses.dataclass(frozen=True, repr=False)
class FromFunction(BaseInitializer):
    """A function ``(key, shape, dtype)`` of the user; nothing is known of its law.

    It is called with the dtype that is asked for, also where that has few bits.
    """

    function: Callable[..., Any]

    name: ClassVar[str] = "function"
    own_traits: ClassVar[Traits] = Traits(NUMERIC, elementwise=False)

    def __post_init__(self) -> None:
        try:
            hash(self.function)
            inspect.signature(self.function).bind(None, (), None)
            fits = not isinstance(self.function, type)
        except (TypeError, ValueError):
            fits = False
        if not fits:
            raise TypeError(
                f"FromFunction needs a hashable function (key, shape, dtype), got "
                f"{self.function!r}. Write for example def init(key, shape, dtype): ..."
            )

    @property
    def label(self) -> str:
        return getattr(self.function, "__name__", None) or type(self.function).__name__

    def law(self, shape: Sequence[int], dtype: DTypeLike | None = None) -> laws.Law:
        target, key = self.resolve_dtype(dtype), jax.random.key(0)
        jax.eval_shape(lambda key: self.sample(key, as_shape(self.label, shape), target), key)
        return super().law(shape, dtype)

    def draw(self, key: Any, shape: Shape, dtype: np.dtype) -> jax.Array:
        return self.sample(key, shape, dtype)

    def sample(self, key: Any, shape: Shape, dtype: np.dtype) -> jax.Array:
        try:
            drawn = self.function(key, shape, dtype)
        except Exception as error:
            raise ValueError(
                f"FromFunction needs {self.label} to draw shape {shape} and {dtype} under "
                f"jax.jit, as function(key, shape, dtype), and it raises "
                f"{type(error).__name__}: {error}"
            ) from error
        is_array = isinstance(drawn, jax.Array | np.ndarray | np.generic)
        if not is_array or drawn.shape != shape or not _holds(dtype, drawn.dtype):
            came = f"{drawn.shape} and {drawn.dtype}" if is_array else repr(drawn)
            raise ValueError(
                f"FromFunction needs {self.label} to return an array of shape {shape} and {dtype}, "
                f"got {came}. "
                "Return an array of the shape and dtype that the function is called with."
            )
        return jnp.asarray(drawn).astype(dtype)

    def exact_law(self, shape: Shape, is_complex: bool) -> laws.Law:
        return laws.unknown()

    def __repr__(self) -> str:
        return self.label


def _holds(dtype: np.dtype, other: np.dtype) -> bool:
    """Whether a dtype is of the kind of another, or of one with more numbers."""
    kinds = (jnp.bool_, jnp.integer, jnp.floating, jnp.complexfloating)
    mine, theirs = ([jnp.issubdtype(each, kind) for kind in kinds] for each in (dtype, other))
    return True in theirs and mine.index(True) >= theirs.index(True)


@dataclasses.dataclass(frozen=True, repr=False)
class Own(BaseInitializer):
    """What the model draws a leaf with itself, where that is known."""

    initializer: BaseInitializer | None = None

    name: ClassVar[str] = "own"
    own_traits: ClassVar[Traits] = Traits(NUMERIC, elementwise=False)

    def __post_init__(self) -> None:
        if self.initializer is not None:
            settle(self, initializer=as_initializer)

    def __call__(
        self,
        key: Any = None,
        shape: Sequence[int] | None = None,
        dtype: DTypeLike | None = None,
        out_sharding: OutSharding = None,
    ) -> Any:
        """Draws with what is known of the model; called with an initializer, knows that one."""
        if isinstance(key, Initializer):
            return Own(as_initializer(self.name, "initializer", key))
        if shape is None:
            raise TypeError(f"own needs a shape, as in {self!r}(key, (512, 256)).")
        return super().__call__(key, shape, dtype, out_sharding)

    @property
    def traits(self) -> Traits:
        return self.own_traits if self.initializer is None else self.initializer.traits

    @property
    def axes(self) -> Axes | None:
        return None if self.initializer is None else self.initializer.axes

    def fans(self, shape: Sequence[int]) -> Fans | None:
        return None if self.initializer is None else self.initializer.fans(shape)

    @property
    def dtype_asked(self) -> str | None:
        return None if self.initializer is None else self.initializer.dtype_asked

    def law(self, shape: Sequence[int], dtype: DTypeLike | None = None) -> laws.Law:
        # A model may draw what no other initializer can, such as random keys.
        return laws.unknown() if self.initializer is None else super().law(shape, dtype)

    def draw(self, key: Any, shape: Shape, dtype: np.dtype) -> jax.Array:
        return self._known(shape).draw(key, shape, dtype)

    def sample(self, key: Any, shape: Shape, dtype: np.dtype) -> jax.Array:
        return self._known(shape).sample(key, shape, dtype)

    def exact_law(self, shape: Shape, is_complex: bool) -> laws.Law:
        return self._known(shape).exact_law(shape, is_complex)

    def _known(self, shape: Shape) -> BaseInitializer:
        if self.initializer is None:
            raise ValueError(
                f"own needs the model whose own draw it stands for, got only the shape {shape}. "
                "Use it as a rule of a plan made from jaxinit.flax.linen_tree or nnx_tree, or pass "
                "what the model draws as plan.init(key, donate=...)."
            )
        return self.initializer

    def __repr__(self) -> str:
        return self.name if self.initializer is None else f"{self.name}({self.initializer!r})"


own = Own()
