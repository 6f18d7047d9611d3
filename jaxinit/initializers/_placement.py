"""Where a draw puts its array: on one device, on a mesh, or wherever a jitted program wants it."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, cast

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxinit._arguments import Shape
from jaxinit.initializers._protocol import OutSharding

if TYPE_CHECKING:
    from jaxinit.initializers._base import BaseInitializer


def draw_onto(
    initializer: BaseInitializer, key: Any, shape: Shape, dtype: np.dtype, out_sharding: OutSharding
) -> jax.Array:
    """Draws an array where ``out_sharding`` says.

    Raises:
        TypeError: when ``out_sharding`` is of another kind.
        ValueError: when it is a ``PartitionSpec`` and no mesh is set.
    """
    if out_sharding is None and _is_explicit(PartitionSpec()):
        # Replicated, as in JAX: a sharding that the compiler chooses within the draw changes bits.
        out_sharding = PartitionSpec()
    if out_sharding is None:
        return _drawn(initializer, key, shape, dtype)
    mesh = jax.sharding.get_abstract_mesh()
    if isinstance(out_sharding, PartitionSpec):
        if mesh.empty:
            raise ValueError(
                f"{initializer.label} needs a mesh to place {out_sharding} on, and none is set. "
                "Draw under `with jax.set_mesh(mesh):`, or pass NamedSharding(mesh, spec)."
            )
        return _drawn(initializer, key, shape, dtype, out_sharding)
    if not isinstance(out_sharding, NamedSharding):
        raise TypeError(
            f"{initializer.label} needs out_sharding as a NamedSharding, a PartitionSpec or None, "
            f"got {out_sharding!r}."
        )
    if not mesh.empty and _is_explicit(out_sharding.spec):
        return _drawn(initializer, key, shape, dtype, out_sharding.spec)
    return _drawn_onto(out_sharding)(initializer, key, shape, dtype)


def _is_explicit(spec: PartitionSpec) -> bool:
    """Whether a spec names explicit axes of the mesh in context; if it names none, any will do."""
    mesh = jax.sharding.get_abstract_mesh()
    types = dict(zip(mesh.axis_names, mesh.axis_types, strict=True))
    named = [
        name for entry in spec if entry for name in ([entry] if isinstance(entry, str) else entry)
    ]
    return any(types.get(name) == AxisType.Explicit for name in named or types)


def _draw(
    initializer: BaseInitializer,
    key: Any,
    shape: Shape,
    dtype: np.dtype,
    spec: PartitionSpec | None = None,
) -> jax.Array:
    """Draws; ``spec`` places the array on the axes of the mesh in context."""

    def draw(key: Any) -> jax.Array:
        return initializer.draw(key, shape, dtype)

    if spec is None:
        return draw(key)
    if _is_explicit(spec):
        # Sampling under auto axes lets the compiler push the sharding back into the draw, so
        # each device fills its own shard; resharding afterwards would draw the whole array.
        return cast(jax.Array, jax.sharding.auto_axes(draw, out_sharding=spec)(key))
    return jax.lax.with_sharding_constraint(draw(key), spec)


# Jitted with the initializer as a static value: equal initializers share a trace, and an eager
# draw has the bits of a jitted one.
_drawn = jax.jit(_draw, static_argnums=(0, 2, 3, 4))


@functools.lru_cache(maxsize=256)
def _drawn_onto(sharding: NamedSharding) -> Any:
    return jax.jit(_draw, static_argnums=(0, 2, 3), out_shardings=sharding)
