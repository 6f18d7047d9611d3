"""The units of a layer within its kernel, and a checksum of each, taken on the device."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

from jaxinit.checks._measuring import as_auto
from jaxinit.initializers import Initializer, Reshaped, SingleWrapper, Stacked
from jaxinit.planning import ParamSpec, Plan, PlannedLeaf
from jaxinit.planning._fingerprint import LANES, mix, words_of


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where the units of a kernel are.

    Attributes:
        shape: shape in which the axes count; the array's own, or the one it was drawn in.
        stack: axes along which layers are stacked.
        out: axes along which the units of a layer lie. The other axes hold a unit's weights.
        groups: feature groups, whose units have inputs of their own and are no rivals.
    """

    shape: tuple[int, ...]
    stack: tuple[int, ...] = ()
    out: tuple[int, ...] = ()
    groups: int = 1

    @property
    def kept(self) -> tuple[int, ...]:
        """Axes along which checksums are kept apart, layers first."""
        return self.stack + self.out

    @property
    def layer_shape(self) -> tuple[int, ...]:
        """Shape of one layer."""
        return tuple(n for axis, n in enumerate(self.shape) if axis not in self.stack)

    @property
    def layer_rank(self) -> int:
        """Number of axes of one layer."""
        return len(self.layer_shape)

    def count(self, axes: tuple[int, ...]) -> int:
        """Number of positions along axes."""
        return math.prod(self.shape[axis] for axis in axes)


def layout_of(
    shape: tuple[int, ...], initializer: Initializer | None = None, stack: tuple[int, ...] = ()
) -> Layout:
    """The layout that an initializer knows, with the last axis for the units when it knows none.

    Args:
        shape: shape of the array.
        initializer: what drew it, None when unknown.
        stack: stacked axes that the initializer does not know of.
    """
    while isinstance(initializer, SingleWrapper) and not isinstance(initializer, Stacked):
        if isinstance(initializer, Reshaped):
            shape, stack = initializer.shape, ()
        initializer = initializer.initializer
    rank = len(shape)
    if isinstance(initializer, Stacked):
        axes = initializer.axis
        stack = tuple(axis % rank for axis in ((axes,) if isinstance(axes, int) else axes))
        initializer = initializer.initializer
    layer = [axis for axis in range(rank) if axis not in stack]
    inner = Layout(tuple(shape[axis] for axis in layer), (), (len(layer) - 1,) if layer else ())
    if isinstance(initializer, SingleWrapper):
        below = layout_of(inner.shape, initializer)
        # A layer that was drawn in another shape says nothing about the axes of this one.
        inner = below if below.shape == inner.shape else inner
    elif initializer is not None and initializer.axes is not None:
        _, out, batch = (
            tuple(axis % len(layer) for axis in axes if -len(layer) <= axis < len(layer))
            for axes in initializer.axes
        )
        inner = Layout(inner.shape, batch, out)
    groups = getattr(initializer, "groups", inner.groups)
    units = inner.count(inner.out)
    return Layout(
        shape,
        (*sorted(stack), *(layer[axis] for axis in inner.stack)),
        tuple(layer[axis] for axis in inner.out),
        groups if groups and units % groups == 0 else 1,
    )


def layouts_of(specs: Mapping[str, ParamSpec], plan: Plan | None) -> dict[str, Layout]:
    """Layouts of the leaves of a tree.

    A plan does not wrap constants in `stacked`, for a stack of them is the same array. So a
    constant takes its stacked axes from the random leaves under its nearest ancestor that has
    some, when their sizes fit.
    """
    if plan is None:
        return {path: layout_of(spec.shape) for path, spec in specs.items()}
    stacks: dict[str, list[dict[int, int]]] = {}
    for leaf in plan:
        stack = layout_of(leaf.shape, leaf.initializer).stack
        if stack and isinstance(leaf.initializer, Stacked):
            for ancestor in _ancestors(leaf.path):
                stacks.setdefault(ancestor, []).append({axis: leaf.shape[axis] for axis in stack})
    return {
        leaf.path: layout_of(
            leaf.shape, leaf.initializer, () if leaf.initializer.random else _borrowed(leaf, stacks)
        )
        for leaf in plan
    }


def _ancestors(path: str) -> Iterator[str]:
    """The parent of a path, its parent, and so on; last the root, which is empty."""
    while path:
        path = path.rpartition("/")[0]
        yield path


def _borrowed(leaf: PlannedLeaf, stacks: Mapping[str, list[dict[int, int]]]) -> tuple[int, ...]:
    nearest = next((a for a in _ancestors(leaf.path) if a in stacks), None)
    if nearest is None:
        return ()
    sizes = dict(enumerate(leaf.shape))
    fitting = (stack for stack in stacks[nearest] if stack.items() <= sizes.items())
    return tuple(next(fitting, ()))


def hashes_of(arrays: Mapping[str, tuple[Any, Layout]]) -> dict[str, np.ndarray]:
    """64-bit checksums by layer (first axis) and unit (second axis) of each array.

    All are dispatched before the first is awaited; what travels is eight bytes per unit.
    """
    pending = {}
    for path, (array, layout) in arrays.items():
        with as_auto(array) as seen:
            pending[path] = _lanes(seen, layout.shape, layout.kept, _everywhere(seen))
    hashes = {}
    for path, lanes in jax.device_get(pending).items():
        high, low = (_by_layer(lane, arrays[path][1]).astype(np.uint64) for lane in lanes)
        hashes[path] = high << np.uint64(32) | low
    return hashes


def filled_of(array: Any, layout: Layout) -> np.ndarray:
    """Number of entries other than zero, by layer and unit."""
    with as_auto(array) as seen:
        filled = _filled(seen, layout.shape, layout.kept, _everywhere(seen))
    return _by_layer(jax.device_get(filled), layout)


def _everywhere(array: Any) -> NamedSharding | None:
    """Where a small result must be for every process to read it."""
    sharding = getattr(array, "sharding", None)
    if not isinstance(sharding, NamedSharding):
        return None
    return NamedSharding(sharding.mesh, PartitionSpec())


def _by_layer(kept: np.ndarray, layout: Layout) -> np.ndarray:
    """From the order of the array's axes to layers first."""
    order = np.argsort(np.argsort(layout.kept))
    ordered = np.transpose(kept, order.tolist())
    return ordered.reshape(layout.count(layout.stack), layout.count(layout.out))


# As `jaxinit.fingerprint`, but summed per unit, with positions inside the unit: equal units have
# equal checksums. Positions are mixed once per unit's entry and not for every unit again.
@functools.partial(jax.jit, static_argnames=("shape", "kept", "place"))
def _lanes(
    array: Any, shape: tuple[int, ...], kept: tuple[int, ...], place: NamedSharding | None
) -> list[jax.Array]:
    bits = words_of(jnp.asarray(array).reshape(shape))
    summed = tuple(axis for axis in range(bits.ndim) if axis not in kept)
    inner = tuple(bits.shape[axis] for axis in summed)
    sums = []
    for lane in LANES:
        position = jnp.full(inner, lane, jnp.uint32)
        for axis in range(len(inner)):
            position = mix(position + lax.broadcasted_iota(jnp.uint32, inner, axis))
        position = lax.optimization_barrier(position)  # else it is computed for every entry
        mixed = mix(bits ^ lax.broadcast_in_dim(position, bits.shape, summed))
        sums.append(jnp.sum(mixed, axis=summed, dtype=jnp.uint32))
    return sums if place is None else lax.with_sharding_constraint(sums, place)


@functools.partial(jax.jit, static_argnames=("shape", "kept", "place"))
def _filled(
    array: Any, shape: tuple[int, ...], kept: tuple[int, ...], place: NamedSharding | None
) -> jax.Array:
    array = jnp.asarray(array).reshape(shape)
    summed = tuple(axis for axis in range(array.ndim) if axis not in kept)
    filled = jnp.sum(array != 0, axis=summed, dtype=jnp.uint32)
    return filled if place is None else lax.with_sharding_constraint(filled, place)
