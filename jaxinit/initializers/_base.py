"""What all initializers share: a frozen value that checks its arguments, draws and casts.

A subclass says how to sample in full precision and which law that is. `BaseInitializer` draws in
float32 where the target dtype is narrower and casts once; `_placement` says where the array goes.
"""

from __future__ import annotations

import abc
import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike, DTypeLike

from jaxinit._arguments import Kind, Shape, as_dtype, as_key, as_shape, source_of
from jaxinit.initializers._laws import Law, check_fits, widened
from jaxinit.initializers._placement import draw_onto
from jaxinit.initializers._protocol import Initializer, OutSharding

REAL: frozenset[Kind] = frozenset({"float"})
INEXACT: frozenset[Kind] = frozenset({"float", "complex"})
NUMERIC: frozenset[Kind] = frozenset({"float", "complex", "integer", "bool"})


class Traits(NamedTuple):
    """What holds for every draw of an initializer, whatever its shape.

    Attributes:
        kinds: kinds of dtype that it can draw.
        elementwise: whether each entry is arithmetic on random numbers of its own, with no sort
            and no factorisation of a matrix. Such a draw has the same bits under ``jax.vmap``.
        random: whether draws depend on the key.
    """

    kinds: frozenset[Kind] = INEXACT
    elementwise: bool = True
    random: bool = True

    def joined(self, other: Traits) -> Traits:
        """Traits of an array that two initializers make together."""
        return Traits(
            self.kinds & other.kinds,
            self.elementwise and other.elementwise,
            self.random or other.random,
        )


@dataclasses.dataclass(frozen=True)
class BaseInitializer(Initializer):
    """A pure function ``(key, shape, dtype, out_sharding) -> jax.Array`` that is also a value.

    Initializers compare and hash by their fields, pickle, print as the call that makes them,
    and declare the law of what they draw. To write your own, derive a frozen dataclass and
    define ``sample`` and ``exact_law``; set ``own_traits`` where the defaults do not hold.

    Attributes:
        dtype: dtype to draw when the caller names none; None is JAX's default float.
    """

    name: ClassVar[str] = ""
    own_traits: ClassVar[Traits] = Traits()

    def __call__(
        self,
        key: ArrayLike | None,
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
        typed = as_key(self.label, key) if self.random else None
        return draw_onto(self, typed, shape, target, out_sharding)

    @abc.abstractmethod
    def sample(self, key: Any, shape: Shape, dtype: np.dtype) -> jax.Array:
        """Draws in ``dtype``, which has at least 32 bits per real number, from a typed key."""

    @abc.abstractmethod
    def exact_law(self, shape: Shape, is_complex: bool) -> Law:
        """The law before rounding; raises ``ValueError`` where the shape has none."""

    def draw(self, key: Any, shape: Shape, dtype: np.dtype) -> jax.Array:
        """Samples in a dtype of at least 32 bits per real number and casts once."""
        if 0 in shape:
            return jnp.zeros(shape, dtype)
        return self.sample(key, shape, widened(dtype)).astype(dtype)

    def law(self, shape: Sequence[int], dtype: DTypeLike | None = None) -> Law:
        """The law of an array of this shape and dtype, per entry, after rounding to the dtype.

        Raises:
            TypeError, ValueError: where drawing would, for the same shape and dtype.
        """
        return _law(self, as_shape(self.label, shape), self.resolve_dtype(dtype))

    @property
    def label(self) -> str:
        """The public name that errors start with."""
        return self.name or type(self).__name__

    @property
    def traits(self) -> Traits:
        """What holds for every draw: kinds of dtype, elementwise, random."""
        return self.own_traits

    @property
    def random(self) -> bool:
        """Whether draws depend on the key."""
        return self.traits.random

    @property
    def elementwise(self) -> bool:
        """Whether each entry is arithmetic on random numbers of its own."""
        return self.traits.elementwise

    @property
    def dtype_asked(self) -> str | None:
        """The dtype that the factory was given, of the wrapped initializer where there is one."""
        return self.dtype

    def resolve_dtype(self, dtype: DTypeLike | None) -> np.dtype:
        """The dtype to draw: the caller's, else the initializer's, else JAX's default float."""
        wanted = self.dtype_asked if dtype is None else dtype
        return as_dtype(self.label, wanted, self.traits.kinds)

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
        return call_of(self.label, self.arguments(), positional=required)


def call_of(name: str, arguments: dict[str, Any], positional: Sequence[str]) -> str:
    """Source text of a call, with some of its arguments written without their names."""
    written = [
        source_of(value) if argument in positional else f"{argument}={source_of(value)}"
        for argument, value in arguments.items()
    ]
    return f"{name}({', '.join(written)})"


@functools.lru_cache(maxsize=4096)
def _law(initializer: BaseInitializer, shape: Shape, dtype: np.dtype) -> Law:
    law = initializer.exact_law(shape, dtype.kind == "c")
    check_fits(initializer.label, law, dtype, random=initializer.random)
    return law.rounded(dtype)


def settle(owner: BaseInitializer, /, **checks: Callable[[str, str, Any], Any]) -> None:
    """Puts fields of a frozen initializer into their canonical form, and ``dtype`` too.

    Args:
        owner: the initializer.
        **checks: for each field a function of caller, name and value, such as `as_number`.
    """
    for field, check in checks.items():
        value = check(owner.label, field, getattr(owner, field))
        object.__setattr__(owner, field, value)
    if owner.dtype is not None:
        owner.resolve_dtype(None)
        object.__setattr__(owner, "dtype", jnp.dtype(owner.dtype).name)
