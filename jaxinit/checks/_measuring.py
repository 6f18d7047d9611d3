"""What an array holds: count, mean, variance, ends, in one pass where the array lives.

Only a handful of numbers travel, so arrays may be large, sharded or spread over several hosts.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from jax.sharding import AxisType, Mesh, NamedSharding

from jaxinit._types import AnyArray, PyTree, Shape
from jaxinit.planning import as_numeric_dtype, flatten

# A slice of an array: (axis, start, stop) for each axis that is cut. The empty box is the whole.
Box = tuple[tuple[int, int, int], ...]


@dataclasses.dataclass(frozen=True)
class Measured:
    """What an array holds.

    Attributes:
        n: number of entries.
        mean: their mean; NaN for an empty array, as all that follows.
        variance: mean of ``|x - mean|**2``.
        low: smallest entry, or modulus when entries are complex.
        high: largest entry, or modulus.
        nonfinite: number of entries that are infinite or NaN.
    """

    n: int
    mean: complex | float
    variance: float
    low: float
    high: float
    nonfinite: int = 0

    @property
    def finite(self) -> bool:
        """Whether every entry is a finite number."""
        return self.nonfinite == 0

    @property
    def std(self) -> float:
        """Standard deviation, the square root of ``variance``."""
        return math.sqrt(self.variance)

    def second_moment(self, centre: complex | float) -> float:
        """Mean of ``|x - centre|**2``."""
        return self.variance + abs(self.mean - centre) ** 2


_EMPTY = Measured(0, math.nan, math.nan, math.nan, math.nan)


def concrete_leaves(caller: str, tree: PyTree) -> dict[str, AnyArray]:
    """The arrays of a tree by canonical path.

    Raises:
        TypeError: when a leaf is traced, abstract, or no array of numbers.
        ValueError: when two leaves have the same canonical path.
    """
    flat = flatten(caller, tree)
    for path, leaf in flat.items():
        if isinstance(leaf, Tracer) or not isinstance(leaf, jax.Array | np.ndarray | np.generic):
            kind = "a traced value" if isinstance(leaf, Tracer) else f"{leaf!r}"
            raise TypeError(
                f"{caller} needs arrays with values, got {kind} of type {type(leaf).__name__} at "
                f"{path!r}. Call it on concrete arrays, outside of jit."
            )
    for path, spec in flat.specs(caller).items():
        as_numeric_dtype(f"{caller}, at {path!r},", spec.dtype)
    return dict(flat.items())


def measure(params: PyTree) -> dict[str, Measured]:
    """Measures every array of a tree, where it lives.

    One pass over each array, one small program for each distinct shape, dtype and sharding. Sums
    are in float64 whatever the dtype, so that forty million entries cost no digits that a check
    needs. Arrays may be sharded, on any devices, or in host memory.

    Args:
        params: a tree of arrays.

    Returns:
        What each holds, by canonical path.

    Raises:
        TypeError: when a leaf is not an array with values.
        ValueError: when two leaves have the same canonical path.

    Example:
        >>> measured = measure({"bias": np.array([1.0, 3.0], "float32")})["bias"]
        >>> measured.mean, measured.variance, measured.low, measured.high, measured.finite
        (2.0, 1.0, 1.0, 3.0, True)
    """
    leaves = concrete_leaves("measure", params)
    measured = measure_boxes({path: (leaf, [()]) for path, leaf in leaves.items()})
    return {path: whole for path, (whole,) in measured.items()}


def measure_boxes(
    requests: Mapping[str, tuple[AnyArray, Sequence[Box]]],
) -> dict[str, list[Measured]]:
    """Measures boxes of arrays; everything is dispatched before the first result is awaited."""
    sizes = {
        path: [math.prod(box_shape(array.shape, box)) for box in boxes]
        for path, (array, boxes) in requests.items()
    }
    pending = {}
    for path, (array, boxes) in requests.items():
        filled = tuple(box for box, n in zip(boxes, sizes[path], strict=True) if n)
        with as_auto(array) as seen, jax.enable_x64(True):
            pending[path] = _moments(seen, filled) if filled else []
    raws = jax.device_get(pending)
    return {
        path: [_measured(n, raws[path].pop(0)) if n else _EMPTY for n in sizes[path]]
        for path in requests
    }


def box_shape(shape: Sequence[int], box: Box) -> Shape:
    """Shape of a box within an array."""
    sizes = list(shape)
    for axis, start, stop in box:
        sizes[axis] = stop - start
    return tuple(sizes)


@contextlib.contextmanager
def as_auto(array: Any) -> Iterator[Any]:
    """The same buffers under a mesh whose axes are all automatic.

    Under explicit axes JAX refuses slices that do not fall on shards; nothing here cares.
    """
    sharding = getattr(array, "sharding", None)
    if not isinstance(sharding, NamedSharding) or (
        AxisType.Explicit not in sharding.mesh.axis_types and jax.sharding.get_abstract_mesh().empty
    ):
        yield array
        return
    mesh = Mesh(cast(Mesh, sharding.mesh).devices, sharding.mesh.axis_names)
    shards = [shard.data for shard in array.addressable_shards]
    placed = NamedSharding(mesh, sharding.spec, memory_kind=sharding.memory_kind)
    with jax.set_mesh(mesh):
        yield jax.make_array_from_single_device_arrays(array.shape, placed, shards)


class _Raw(NamedTuple):
    """Sums over a box; deviations are counted from the first entry."""

    first: Sequence[jax.Array]
    deviations: Sequence[jax.Array]
    squares: jax.Array
    low: jax.Array
    high: jax.Array
    finite: jax.Array


# Sums are in float64, also where it is off for the user. Against numpy, the variance of 38.6
# million normals comes out 2e-12 off, and 1e-9 off when they are shifted by 1,000 standard
# deviations; a float32 sum in two stages is 8e-8 off for the former and worthless for the latter.
# XLA:CPU compiles one reduction of several operands in 0.06 s and takes 240 million entries a
# second through it; separate sums, minima and maxima compile in 0.3 s and read it five times.
@functools.partial(jax.jit, static_argnames="boxes")
def _moments(array: jax.Array, boxes: tuple[Box, ...]) -> list[_Raw]:
    return [_moments_of(_cut(array, box)) for box in boxes]


def _cut(array: jax.Array, box: Box) -> jax.Array:
    for axis, start, stop in box:
        array = lax.slice_in_dim(array, start, stop, axis=axis)
    return array


def _moments_of(array: jax.Array) -> _Raw:
    double = functools.partial(lax.convert_element_type, new_dtype=jnp.float64)
    zero, infinity = np.float64(0), np.float64(np.inf)
    is_complex = jnp.issubdtype(array.dtype, jnp.complexfloating)
    parts = [double(p) for p in ((lax.real(array), lax.imag(array)) if is_complex else (array,))]
    first = [part[(0,) * part.ndim] for part in parts]
    deviations = [part - start for part, start in zip(parts, first, strict=True)]
    squares = sum(deviation * deviation for deviation in deviations)
    ends = lax.abs(lax.complex(*parts)) if is_complex else parts[0]
    finite = double(functools.reduce(lax.bitwise_and, map(lax.is_finite, parts)))

    def combine(a: Any, b: Any) -> Any:
        *sums, low, high = range(len(a))
        added = [a[i] + b[i] for i in sums]
        return (*added, lax.min(a[low], b[low]), lax.max(a[high], b[high]))

    *moved, total, count, low, high = lax.reduce(
        (*deviations, squares, finite, ends, ends),
        (*[zero] * len(parts), zero, zero, infinity, -infinity),
        combine,
        tuple(range(array.ndim)),
    )
    return _Raw(first, moved, total, low, high, count)


def _measured(n: int, raw: _Raw) -> Measured:
    first, moved = (np.array([float(x) for x in part]) for part in (raw.first, raw.deviations))
    with np.errstate(invalid="ignore", over="ignore"):
        shift = moved / n
        mean = (first + shift).tolist()
        variance = np.float64(raw.squares) / n - np.sum(shift**2)
    return Measured(
        n,
        complex(*mean) if len(mean) == 2 else mean[0],
        float(np.maximum(variance, 0.0)),
        float(raw.low),
        float(raw.high),
        n - int(raw.finite),
    )
