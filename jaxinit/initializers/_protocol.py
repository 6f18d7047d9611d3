"""What the library asks of an initializer, for type annotations and for ``isinstance``."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import Protocol, Self, runtime_checkable

import jax
from jax.sharding import NamedSharding, PartitionSpec
from jax.typing import ArrayLike, DTypeLike

from jaxinit._arguments import Axis
from jaxinit.initializers._fans import Axes, Fans
from jaxinit.initializers._laws import Law

OutSharding = NamedSharding | PartitionSpec | None


@runtime_checkable
class Initializer(Protocol):
    """A hashable value, called as ``(key, shape, dtype, out_sharding)``, that declares its law.

    Plans, checks and advice take anything with these members; `BaseInitializer` has all of them
    but the law. A law that knows no kernel keeps the fans and axes that are defined here.
    A function of ``jax.nn.initializers`` has none of them: translate it with `from_jax`.
    """

    @abc.abstractmethod
    def __call__(
        self,
        key: ArrayLike | None,
        shape: Sequence[int],
        dtype: DTypeLike | None = None,
        out_sharding: OutSharding = None,
    ) -> jax.Array:
        """Draws an array."""
        ...

    @abc.abstractmethod
    def law(self, shape: Sequence[int], dtype: DTypeLike | None = None) -> Law:
        """The law of an entry of an array of this shape and dtype."""
        ...

    def fans(self, shape: Sequence[int]) -> Fans | None:
        """Fans of a kernel of this shape, or None where the law knows no fans."""
        return None

    def with_axes(self, axes: Axes, *, groups: int = 1, transposed_strides: Axis = ()) -> Self:
        """The same law with the true axes of a kernel, unless axes were chosen by hand."""
        return self

    @property
    def axes(self) -> Axes | None:
        """Roles of the kernel's axes, or None where the law knows no axes."""
        return None

    @property
    @abc.abstractmethod
    def random(self) -> bool:
        """Whether draws depend on the key."""
        ...

    @property
    @abc.abstractmethod
    def elementwise(self) -> bool:
        """Whether each entry is arithmetic on random numbers of its own."""
        ...

    @property
    @abc.abstractmethod
    def label(self) -> str:
        """The public name that errors start with."""
        ...
