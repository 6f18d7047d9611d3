"""What every initializer is: a frozen value, called as ``(key, shape, dtype, out_sharding)``.

A subclass says how to sample in full precision and which law that is; the base checks the
arguments, draws in float32 where the target dtype is narrower, casts once, and places the result.
"""

from __future__ import annotations

import abc
import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any, ClassVar, Self, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jax.typing import DTypeLike

from jaxinit.initializers._arguments import Kind, as_dtype, as_key, as_shape, spell
from jaxinit.initializers._fans import Axes, Fans
from jaxinit.initializers._laws import Law

OutSharding = NamedSharding | PartitionSpec | None


@dataclasses.dataclass(frozen=True)
class Initializer(abc.ABC):
    """A pure function ``(key, shape, dtype, out_sharding) -> jax.Array`` that is also a value.

    Initializers compare and hash by their fields, pickle, print as the call that makes them,
    and declare the law of what they draw. To write your own, derive a frozen dataclass and
    define ``sample`` and ``exact_law``.

    Attributes:
        dtype: dtype to draw when the caller names none; None is JAX's default float.
    """

    name: ClassVar[str] = ""
    kinds: ClassVar[frozenset[Kind]] = frozenset({"float", "complex"})
    elementwise: ClassVar[bool] = True
    random: ClassVar[bool] = True

    def __call__(
        self,
        key: Any,
        shape: Sequence[int],
        dtype: DTypeLike | None = None,
        out_sharding: OutSharding = None,
    ) -> jax.Array:
        """Draws an array.

        Args:
            key: a typed key, or raw ``uint32`` key data of the default implementation. Laws that
                are not random ignore it.
            shape: shape of the array; a zero-size dimension gives an empty array.
            dtype: dtype of the array. Below 32 bits the draw happens in float32 and is cast once.
            out_sharding: a ``NamedSharding``, or a ``PartitionSpec`` under ``jax.set_mesh``.

        Returns:
            The array; the same bits for the same arguments, eager or jitted, on any mesh.

        Raises:
            TypeError: when key, shape, dtype or sharding are of the wrong kind.
            ValueError: when the law makes no sense for the shape or does not fit the dtype.
        """
        shape = as_shape(self.label, shape)
        target = self.resolve_dtype(dtype)
        _law(self, shape, target)
        return _place(self, _as_key(self, key), shape, target, out_sharding)

    @abc.abstractmethod
    def sample(self, key: Any, shape: tuple[int, ...], dtype: np.dtype) -> jax.Array:
        """Draws in ``dtype``, which has at least 32 bits per real number, from a typed key."""

    @abc.abstractmethod
    def exact_law(self, shape: tuple[int, ...], is_complex: bool) -> Law:
        """The law before rounding; raises ``ValueError`` where the shape has none."""

    def law(self, shape: Sequence[int], dtype: DTypeLike | None = None) -> Law:
        """The law of an array of this shape and dtype, per entry, after rounding to the dtype.

        Raises:
            TypeError, ValueError: where drawing would, for the same shape and dtype.
        """
        return _law(self, as_shape(self.label, shape), self.resolve_dtype(dtype))

    def fans(self, shape: Sequence[int]) -> Fans | None:
        """Fans of a kernel of this shape, or None where the law knows no fans."""
        del shape

    @property
    def axes(self) -> Axes | None:
        """Roles of the kernel's axes, or None where the law knows no axes."""
        return None

    def with_axes(
        self, axes: Axes, *, groups: int = 1, transposed_strides: int | Sequence[int] = ()
    ) -> Self:
        """The same law with the true axes of a kernel, unless axes were chosen by hand."""
        del axes, groups, transposed_strides
        return self

    @property
    def label(self) -> str:
        """The public name that errors start with."""
        return self.name or type(self).__name__

    @property
    def dtype_asked(self) -> str | None:
        """The dtype that the factory was given, of the wrapped initializer where there is one."""
        return self.dtype

    def resolve_dtype(self, dtype: DTypeLike | None) -> np.dtype:
        """The dtype to draw: the caller's, else the initializer's, else JAX's default float."""
        return as_dtype(self.label, self.dtype if dtype is None else dtype, self.kinds)

    # A name, since numpy holds that `np.dtype("float64") == None`.
    dtype: str | None = dataclasses.field(default=None, kw_only=True)

    def arguments(self) -> dict[str, Any]:
        """Arguments of the factory named `label` that recreate the value."""
        by_name = {field.name: field for field in dataclasses.fields(self)}
        by_name["dtype"] = by_name.pop("dtype")  # inherited, so listed first, but keyword-only
        values = {name: getattr(self, name) for name in by_name}
        return {name: v for name, v in values.items() if v != by_name[name].default}

    def __repr__(self) -> str:
        required = [f.name for f in dataclasses.fields(self) if f.default is dataclasses.MISSING]
        spelled = [
            spell(value) if name in required else f"{name}={spell(value)}"
            for name, value in self.arguments().items()
        ]
        return f"{self.label}({', '.join(spelled)})"


@functools.lru_cache(maxsize=4096)
def _law(initializer: Initializer, shape: tuple[int, ...], dtype: np.dtype) -> Law:
    law = initializer.exact_law(shape, dtype.kind == "c")
    check_fits(initializer.label, law, dtype, random=initializer.random)
    return law.rounded(dtype)


def normalise_dtype(initializer: Initializer) -> None:
    """Turns the ``dtype`` field, given in any of numpy's spellings, into the dtype's name."""
    if initializer.dtype is not None:
        initializer.resolve_dtype(None)
        object.__setattr__(initializer, "dtype", jnp.dtype(initializer.dtype).name)


def check_fits(caller: str, law: Law, dtype: np.dtype, *, random: bool = True) -> None:
    """Raises when draws of ``law`` would overflow, or underflow or collapse where random."""
    for part in law.parts:
        check_fits(caller, part.law, dtype, random=random)
    centre = abs(law.mean)
    by_wish = not math.isfinite(centre) and not (random and _overflows(law))
    if not jnp.issubdtype(dtype, jnp.inexact) or by_wish:
        return  # a constant may be infinite or NaN
    limits = jnp.finfo(dtype)
    narrow = dtype.itemsize < 4
    steps = jnp.finfo(jnp.float32) if narrow else limits
    std = law.std
    # The largest normal that float32 sampling yields is 5.42 standard deviations out.
    reach = 6 * std + centre
    low, high = (end if math.isfinite(end) else math.copysign(reach, end) for end in law.support)
    largest = max(abs(low), abs(high))
    # A bounded law is drawn as a number below 1 times its width.
    if not (largest <= float(limits.max) and high - low <= float(steps.max)):
        raise ValueError(
            f"{caller} needs values within the range of {dtype}, got values up to {largest:.3g} "
            f"where {dtype} ends at {float(limits.max):.3g}. Use a smaller scale or a wider dtype."
        )
    if not random or law.support[0] == law.support[1]:
        return
    collapses = std < 8 * float(steps.eps) * centre or std < 8 * float(steps.tiny)
    if collapses or (narrow and law.rounded(dtype).variance == 0):
        raise ValueError(
            f"{caller} needs a standard deviation that {dtype} can resolve, got {std:.3g} around "
            f"a mean of {centre:.3g}. Use a larger scale or a wider dtype."
        )


def _overflows(law: Law) -> bool:
    """Whether the moments of a random law leave the range of Python's floats."""
    if law.components:
        return any(_overflows(inner) for _, inner in law.components)
    drawn = law.variance > 0 or (law.variance == 0 and law.quantile is not None)
    return drawn and not math.isfinite(abs(law.mean))


def _as_key(initializer: Initializer, key: Any) -> Any:
    if not initializer.random:
        return None
    return as_key(initializer.label, key)


def _draw(
    initializer: Initializer,
    key: Any,
    shape: tuple[int, ...],
    dtype: np.dtype,
    spec: PartitionSpec | None = None,
) -> jax.Array:
    """Draws and casts; ``spec`` places the result on the axes of the mesh in context."""

    def draw(key: Any) -> jax.Array:
        if 0 in shape:
            return jnp.zeros(shape, dtype)
        narrow = jnp.issubdtype(dtype, jnp.floating) and dtype.itemsize < 4
        wide = np.dtype(np.float32) if narrow else dtype
        return initializer.sample(key, shape, wide).astype(dtype)

    if spec is None:
        return draw(key)
    if _is_explicit(spec):
        # Sampling under auto axes lets the compiler push the sharding back into the draw, so
        # each device fills its own shard; resharding afterwards would draw the whole array.
        return cast(jax.Array, jax.sharding.auto_axes(draw, out_sharding=spec)(key))
    return jax.lax.with_sharding_constraint(draw(key), spec)


def _is_explicit(spec: PartitionSpec) -> bool:
    mesh = jax.sharding.get_abstract_mesh()
    kinds = dict(zip(mesh.axis_names, mesh.axis_types, strict=True))
    named = [
        name for entry in spec if entry for name in ([entry] if isinstance(entry, str) else entry)
    ]
    if not named:
        return AxisType.Explicit in kinds.values()
    return any(kinds.get(name) == AxisType.Explicit for name in named)


# Jitted with the initializer as a static value: equal initializers share a trace, and an eager
# draw has the bits of a jitted one.
_draw_jitted = jax.jit(_draw, static_argnums=(0, 2, 3, 4))


@functools.lru_cache(maxsize=256)
def _draw_onto(sharding: NamedSharding) -> Any:
    return jax.jit(_draw, static_argnums=(0, 2, 3), out_shardings=sharding)


def _place(
    initializer: Initializer,
    key: Any,
    shape: tuple[int, ...],
    dtype: np.dtype,
    out_sharding: OutSharding,
) -> jax.Array:
    if out_sharding is None and _is_explicit(PartitionSpec()):
        # Replicated, as JAX would have it; but shardings within the draw cost it its bits.
        out_sharding = PartitionSpec()
    if out_sharding is None:
        return _draw_jitted(initializer, key, shape, dtype)
    mesh = jax.sharding.get_abstract_mesh()
    if isinstance(out_sharding, PartitionSpec):
        if mesh.empty:
            raise ValueError(
                f"{initializer.label} needs a mesh to place {out_sharding} on, and none is set. "
                "Draw under `with jax.set_mesh(mesh):`, or pass NamedSharding(mesh, spec)."
            )
        return _draw_jitted(initializer, key, shape, dtype, out_sharding)
    if not isinstance(out_sharding, NamedSharding):
        raise TypeError(
            f"{initializer.label} needs out_sharding as a NamedSharding, a PartitionSpec or None, "
            f"got {out_sharding!r}."
        )
    if not mesh.empty and _is_explicit(out_sharding.spec):
        return _draw_jitted(initializer, key, shape, dtype, out_sharding.spec)
    return _draw_onto(out_sharding)(initializer, key, shape, dtype)
