"""The assertion that no two units of a layer, no two layers and no two leaves are twins.

The units of a layer are slices of its kernel. Each gets a checksum, taken on the device, and what
chance may have made equal is told from what was drawn equal by the bits of entropy of its entries.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec
from jax.typing import DTypeLike

from jaxinit._arguments import Axis
from jaxinit._types import AnyArray, PyTree, Shape
from jaxinit.checks._measuring import as_auto, measure
from jaxinit.checks._trees import fail, planned_arrays
from jaxinit.initializers import Initializer, Own, Reshaped, SingleWrapper, Stacked
from jaxinit.planning import (
    LANES,
    ParamSpec,
    Patterns,
    Plan,
    PlannedLeaf,
    matching_paths,
    mix,
    words_of,
)

# Probability, at most, that twins are reported which chance made.
_FAILURE_RATE = 1e-5


class _Twins(NamedTuple):
    """A line of the table."""

    path: str
    what: str
    found: str


@dataclasses.dataclass(frozen=True)
class _Leaf:
    """A leaf that may hold twins.

    Attributes:
        path: canonical path.
        array: its values.
        layout: where its units are.
        planned: its line of the plan, None without a plan.
    """

    path: str
    array: AnyArray
    layout: Layout
    planned: PlannedLeaf | None

    @property
    def is_fixed(self) -> bool:
        """Whether the plan says that no key decides its values."""
        leaf = self.planned
        return leaf is not None and (not leaf.initializer.random or leaf.law.variance == 0)

    @property
    def is_random(self) -> bool:
        """Whether the plan says that its values are random."""
        return self.planned is not None and not self.is_fixed


def assert_symmetry_broken(
    params: PyTree, plan: Plan | None = None, *, allow: Patterns = ()
) -> None:
    """Asserts that no two units of a layer start equal, for then no training tells them apart.

    The units of a kernel are its slices along the output axes: those of the plan's initializer
    where it knows them, else the last axis. Embedding tables count. Two units are twins when all
    their bits are equal, which 64-bit checksums decide, taken on the device. A constant kernel
    consists of twins. With a plan, layers of a stack that are equal are reported too, and equal
    leaves whose law is random; without one, equal leaves of two axes or more that are not constant.

    Not judged are: leaves of one axis (of one layer), integers, constant leaves whose shape
    ends the shape of a larger leaf beside them (its bias), and equal units that chance may have
    made. Chance makes twins of n units with probability ``n**2 / 2 * 2**-b``, where b, the bits of
    their entries other than zero, is taken as 22 for each from 32 bits on, one more than the
    mantissa has below, and less near the smallest number of the dtype. Twins are reported only
    where that is below 1e-5 over the number of leaves: a bfloat16 kernel of shape (1, 512) is not.
    Without a plan, stacked layers count as more weights of the same units, so stacked biases and
    scales look like kernels, and equal layers are not seen: pass the plan.

    Args:
        params: a tree of arrays.
        plan: what they were drawn by.
        allow: patterns, as in the rules of a plan, of leaves that may hold twins: output maps that
            start at zero, tied weights. One that matches no leaf is an error.

    Raises:
        CheckError: an ``AssertionError`` with a table of twins; or when leaves are missing, or of
            another shape or dtype than planned.
        TypeError: when an argument is of the wrong kind, or a leaf is not an array with values.
        ValueError: when a pattern of ``allow`` is malformed or matches no leaf, or two leaves have
            the same canonical path.

    Example:
        >>> assert_symmetry_broken({"kernel": np.eye(3, dtype="float32")})
        >>> assert_symmetry_broken({"out": {"kernel": np.zeros((3, 4), "float32")}}, allow="out/*")
        >>> assert_symmetry_broken({"kernel": np.eye(3, dtype="float32")[:, [0, 1, 1]]})
        Traceback (most recent call last):
        jaxinit.checks.CheckError: assert_symmetry_broken needs units, ... holds twins:
        path    what   found
        ──────────────────────────────────────────────────────
        kernel  units  2 of 3 have a twin, for example 1 and 2
        ...
    """
    caller = "assert_symmetry_broken"
    arrays, specs = planned_arrays(caller, params, plan)
    exempt = matching_paths(caller, "allow=", allow, specs)
    layouts = layouts_of(specs, plan)
    judged = [
        leaf
        for path, array in arrays.items()
        if path not in exempt and jnp.issubdtype(array.dtype, jnp.inexact) and np.size(array)
        for leaf in [_Leaf(path, array, layouts[path], _planned(plan, path))]
        if leaf.layout.layer_rank >= 2 or leaf.is_random
    ]
    judge = _Judge(
        hashes_of({leaf.path: (leaf.array, leaf.layout) for leaf in judged}),
        layouts,
        math.log2(max(len(judged), 1) / _FAILURE_RATE),
    )
    twins = [each for leaf in judged for each in judge.within(leaf)]
    twins += judge.among(judged)
    if twins:
        count = len({each.path for each in twins})
        fail(
            f"{caller} needs units, layers and leaves that differ, {count} of {len(arrays)} leaves "
            f"{'holds' if count == 1 else 'hold'} twins:",
            _Twins._fields,
            twins,
            "Twins get equal gradients and stay twins. Draw them at random, or name those that are "
            "meant to be equal in allow=.",
        )


def _planned(plan: Plan | None, path: str) -> PlannedLeaf | None:
    """The line of a leaf where it says how the leaf is drawn."""
    return None if plan is None or not plan[path].law.known else plan[path]


def twin_units(
    array: AnyArray, out_axis: Axis = -1, batch_axis: Axis = (), *, groups: int = 1
) -> np.ndarray:
    """Which units of a kernel start as copies of another one, so that they stay copies.

    Args:
        array: the kernel.
        out_axis: axes along which its units lie.
        batch_axis: axes along which kernels are stacked; units of different kernels are no rivals.
        groups: feature groups, whose units have inputs of their own and are no rivals.

    Returns:
        A boolean for each kernel of the stack (first axis) and each of its units (second axis):
        whether another unit has the same bits, and chance did not make them, as
        `assert_symmetry_broken` decides. Of a constant array all units are copies.

    Example:
        >>> twin_units(np.eye(3, dtype="float32")[:, [0, 1, 1]]).tolist()
        [[False, True, True]]
    """
    shape = tuple(np.shape(array))
    out, stack = (
        tuple(axis % len(shape) for axis in ((axes,) if isinstance(axes, int) else axes))
        for axes in (out_axis, batch_axis)
    )
    leaf = _Leaf("", array, Layout(shape, tuple(sorted(stack)), tuple(sorted(out)), groups), None)
    hashes = hashes_of({"": (array, leaf.layout)})[""]
    return _drawn_equal(leaf, hashes, math.log2(1 / _FAILURE_RATE)).reshape(hashes.shape)


def _drawn_equal(leaf: _Leaf, hashes: np.ndarray, needed: float) -> np.ndarray:
    """Which units equal a rival that chance did not make equal, by group and unit."""
    rivals = hashes.reshape(len(hashes) * leaf.layout.groups, -1)
    units = _repeated(rivals)
    if units.any():
        entropy = _evidence(leaf)[1].reshape(rivals.shape)
        units &= entropy >= needed + _log2_pairs(*rivals.shape)
    return units


@dataclasses.dataclass(frozen=True)
class _Judge:
    """Tells twins from what chance may have made.

    Attributes:
        hashes: checksums by path, by layer and unit.
        layouts: layouts of all leaves of the tree.
        needed: bits of entropy beyond which chance is out of question for one pair.
    """

    hashes: Mapping[str, np.ndarray]
    layouts: Mapping[str, Layout]
    needed: float

    def within(self, leaf: _Leaf) -> Iterator[_Twins]:
        """Twins among the units and among the layers of a leaf."""
        hashes, layout = self.hashes[leaf.path], leaf.layout
        rivals = hashes.reshape(len(hashes) * layout.groups, -1)
        units = _repeated(rivals) & (layout.layer_rank >= 2)
        layers = _repeated(_digests(hashes)[None])[0] & (not leaf.is_fixed)
        if not units.any() and not layers.any():
            return  # the usual case: nothing more is computed
        constant, entropy = _evidence(leaf)
        if constant and not leaf.is_random and self._is_bias(leaf):
            return
        if constant and units.any():
            if entropy.sum() >= self.needed:
                yield _Twins(leaf.path, "constant", f"all {hashes.size} units are equal")
            return
        if layout.layer_rank >= 2 and (units := _drawn_equal(leaf, hashes, self.needed)).any():
            yield _Twins(leaf.path, "units", _named_units(layout, rivals, units))
        layers &= entropy.sum(axis=1) >= self.needed + _log2_pairs(1, len(layers))
        if layers.any():
            first = int(np.flatnonzero(layers)[0])
            second = _next_equal(_digests(hashes), first)
            yield _Twins(leaf.path, "layers", f"layers {first} and {second} are equal")

    def among(self, leaves: Sequence[_Leaf]) -> Iterator[_Twins]:
        """Leaves of one shape, dtype and layout that are equal and were meant to be random."""
        alike: dict[tuple[Layout, np.dtype], list[_Leaf]] = {}
        for leaf in leaves:
            if not leaf.is_fixed:
                alike.setdefault((leaf.layout, np.dtype(leaf.array.dtype)), []).append(leaf)
        for members in alike.values():
            firsts: dict[bytes, _Leaf] = {}
            for leaf in members:
                first = firsts.setdefault(self.hashes[leaf.path].tobytes(), leaf)
                if first is leaf:
                    continue
                constant, entropy = _evidence(leaf)
                enough = entropy.sum() >= self.needed + _log2_pairs(1, len(members))
                if enough and not (constant and leaf.layout.layer_rank >= 2):
                    yield _Twins(leaf.path, "leaves", f"equal to {first.path}")

    def _is_bias(self, leaf: _Leaf) -> bool:
        """Whether a leaf beside this one has the same shape and more axes in front."""
        parent, shape = leaf.path.rpartition("/")[0], leaf.layout.layer_shape
        beside = (
            layout.layer_shape
            for path, layout in self.layouts.items()
            if path.rpartition("/")[0] == parent
        )
        return any(len(s) > len(shape) and s[-len(shape) :] == shape for s in beside)


def _evidence(leaf: _Leaf) -> tuple[bool, np.ndarray]:
    """Whether all entries are equal, and the bits of entropy of each unit."""
    measured = measure({"": leaf.array})[""]
    constant = measured.variance == 0
    filled = filled_of(leaf.array, leaf.layout)
    if leaf.is_fixed or (constant and leaf.planned is None):
        return constant, np.full(filled.shape, np.inf)  # no chance was involved
    std = measured.std if leaf.planned is None else leaf.planned.law.std
    entries = np.where(filled > 0, filled, measured.n // filled.size)
    return constant, entries * entropy_bits(leaf.array.dtype, std)


def entropy_bits(dtype: DTypeLike, std: float) -> float:
    """Bits of collision entropy of one random entry, at least.

    JAX draws from 2**23 levels in float32 and wider; a narrow dtype keeps its mantissa and the
    sign. Near its smallest number a dtype is a grid of step d, on which two normals meet with
    probability ``d / (2 sqrt(pi) std)``.
    """
    limits = jnp.finfo(dtype)
    precision = 22.0 if limits.bits >= 32 else limits.nmant + 1.0
    if std > 0:
        steps = 2 * math.sqrt(math.pi) * std / float(limits.smallest_subnormal)
        precision = min(precision, max(0.0, math.log2(steps)))
    return precision * (2 if np.dtype(dtype).kind == "c" else 1)


def _log2_pairs(rows: int, members: int) -> float:
    return math.log2(rows * members**2 / 2)


def _digests(hashes: np.ndarray) -> np.ndarray:
    """One integer per row: a number for each distinct row."""
    return np.unique(hashes, axis=0, return_inverse=True)[1].reshape(len(hashes))


def _repeated(rows: np.ndarray) -> np.ndarray:
    """Where a row holds the same value elsewhere as well."""
    order = np.argsort(rows, axis=1, kind="stable")
    ordered = np.take_along_axis(rows, order, axis=1)
    same = ordered[:, 1:] == ordered[:, :-1]
    either = np.pad(same, ((0, 0), (1, 0))) | np.pad(same, ((0, 0), (0, 1)))
    repeated = np.empty_like(either)
    np.put_along_axis(repeated, order, either, axis=1)
    return repeated


def _next_equal(values: np.ndarray, index: int) -> int:
    return int(index + 1 + np.flatnonzero(values[index + 1 :] == values[index])[0])


def _named_units(layout: Layout, rivals: np.ndarray, twins: np.ndarray) -> str:
    row, column = (int(index[0]) for index in np.nonzero(twins))
    layer, group = divmod(row, layout.groups)
    offset = group * rivals.shape[1]
    names = [
        _named_unit(layout, offset + index) for index in (column, _next_equal(rivals[row], column))
    ]
    where = f" in layer {layer}" if layout.stack else ""
    count = int(twins.sum())
    return f"{count} of {twins.size} have a twin, for example {' and '.join(names)}{where}"


def _named_unit(layout: Layout, index: int) -> str:
    sizes = [layout.shape[axis] for axis in layout.out]
    place = tuple(int(i) for i in np.unravel_index(index, sizes))
    return str(place[0] if len(place) == 1 else place)


# Units and their checksums.


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where the units of a kernel are.

    Attributes:
        shape: shape in which the axes count; the array's own, or the one it was drawn in.
        stack: axes along which layers are stacked.
        out: axes along which the units of a layer lie. The other axes hold a unit's weights.
        groups: feature groups, whose units have inputs of their own and are no rivals.
    """

    shape: Shape
    stack: tuple[int, ...] = ()
    out: tuple[int, ...] = ()
    groups: int = 1

    @property
    def kept(self) -> tuple[int, ...]:
        """Axes along which checksums are kept apart, layers first."""
        return self.stack + self.out

    @property
    def layer_shape(self) -> Shape:
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
    shape: Shape, initializer: Initializer | None = None, stack: tuple[int, ...] = ()
) -> Layout:
    """The layout that an initializer knows, with the last axis for the units when it knows none.

    Args:
        shape: shape of the array.
        initializer: what drew it, None when unknown.
        stack: stacked axes that the initializer does not know of.
    """
    while isinstance(initializer, SingleWrapper | Own) and not isinstance(initializer, Stacked):
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


def hashes_of(arrays: Mapping[str, tuple[AnyArray, Layout]]) -> dict[str, np.ndarray]:
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


def filled_of(array: AnyArray, layout: Layout) -> np.ndarray:
    """Number of entries other than zero, by layer and unit."""
    with as_auto(array) as seen:
        filled = _filled(seen, layout.shape, layout.kept, _everywhere(seen))
    return _by_layer(jax.device_get(filled), layout)


def _everywhere(array: AnyArray) -> NamedSharding | None:
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
    array: AnyArray, shape: Shape, kept: tuple[int, ...], place: NamedSharding | None
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
    array: AnyArray, shape: Shape, kept: tuple[int, ...], place: NamedSharding | None
) -> jax.Array:
    array = jnp.asarray(array).reshape(shape)
    summed = tuple(axis for axis in range(array.ndim) if axis not in kept)
    filled = jnp.sum(array != 0, axis=summed, dtype=jnp.uint32)
    return filled if place is None else lax.with_sharding_constraint(filled, place)
