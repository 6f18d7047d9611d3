"""The one narrow function between plans and arrays: a list of draws and a key for each, drawn.

Equal draws share one compiled program, so compile time follows the number of distinct draws and
not the number of leaves. Outside of a trace the program is called once per leaf; inside one (under
``jax.jit`` or ``jax.vmap``) it becomes the body of a loop over the keys. Either way every leaf has
the bits of its initializer drawn alone under ``jax.jit``. So has a sharded leaf, with one exception
that lies in XLA: on CPUs, since jax 0.12, a shard whose rows hold fewer entries than a vector may
differ by an ulp, because logarithms of single numbers are not those of vectors.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import functools
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.core import Tracer
from jax.custom_batching import sequential_vmap
from jax.sharding import NamedSharding, PartitionSpec

from jaxinit.initializers import Initializer

Progress = Callable[[int, int, int, int], None]

# Inside a trace, equal leaves are drawn into one array and sliced. This bounds what that array
# costs beyond the leaves themselves; a leaf of more than half of it is drawn without a loop.
_LOOP_BYTES = 2**28


@dataclasses.dataclass(frozen=True)
class Draw:
    """What to draw for one leaf; equal draws differ in their key alone.

    Attributes:
        initializer: how to draw.
        shape: shape of the array.
        dtype: dtype of the array.
        sharding: where it lives, anything that ``out_shardings`` of ``jax.jit`` takes; None
            follows the key.
    """

    initializer: Initializer
    shape: tuple[int, ...]
    dtype: np.dtype
    sharding: Any = None

    @property
    def nbytes(self) -> int:
        """Bytes of the array."""
        return math.prod(self.shape) * self.dtype.itemsize


def draw(
    draws: Sequence[Draw], keys: jax.Array, *, progress: Progress | None = None
) -> list[jax.Array]:
    """Draws every array of a list.

    Args:
        draws: what to draw.
        keys: a batch of typed keys, one for each draw.
        progress: called as ``progress(done_leaves, total_leaves, done_bytes, total_bytes)`` each
            time an array is ready; never inside a trace, where nothing is drawn yet.

    Returns:
        The arrays, in the order of ``draws``.

    Raises:
        ValueError: when there are more or fewer keys than draws.

    Example:
        >>> from jaxinit.initializers import normal
        >>> twice = [Draw(normal(), (2, 3), np.dtype("float32"))] * 2
        >>> first, second = draw(twice, jax.random.split(jax.random.key(0)))
        >>> first.shape, bool((first == second).any())
        ((2, 3), False)
    """
    if keys.shape != (len(draws),):
        raise ValueError(
            f"draw needs one key for each of its {len(draws)} draws, got keys of shape "
            f"{keys.shape}. Derive them with keys_for_paths."
        )
    implementation = jax.random.key_impl(keys)
    data = jax.random.key_data(keys)
    if isinstance(data, Tracer):
        return _draw_in_trace(draws, data, implementation)
    return _draw_now(draws, data, implementation, progress)


def _draw_now(
    draws: Sequence[Draw], data: jax.Array, implementation: Any, progress: Progress | None
) -> list[jax.Array]:
    # Measured on CPU: 15 microseconds per call of a compiled program, against 15 milliseconds of
    # compile time for each slice of a program that draws a whole group and cuts it up.
    host = np.asarray(data) if draws else np.empty(0)
    # A committed key says where to draw. A sharding says so too, and wins: a row in host memory
    # goes wherever it is needed.
    rows = [
        data[index] if d.sharding is None and data.committed else host[index]
        for index, d in enumerate(draws)
    ]
    programs = {d: _program(d, implementation) for d in draws}
    _compile({programs[d]: row for d, row in zip(draws, rows, strict=True)})
    total_bytes = sum(d.nbytes for d in draws)
    done_bytes = 0
    arrays = []
    for d, row in zip(draws, rows, strict=True):
        arrays.append(programs[d].call(row))
        if progress is not None:
            arrays[-1].block_until_ready()
            done_bytes += d.nbytes
            progress(len(arrays), len(draws), done_bytes, total_bytes)
    return arrays


def _compile(examples: Mapping[_Program, Any]) -> None:
    """Compiles programs side by side; each is then found compiled by its first call.

    Tracing stays on this thread, because contexts such as ``jax.set_mesh`` belong to it.
    """
    fresh = {program: row for program, row in examples.items() if not program.is_compiled}
    lowered = [program.call.lower(row) for program, row in fresh.items()]
    if len(lowered) > 1:
        with concurrent.futures.ThreadPoolExecutor(min(len(lowered), os.cpu_count() or 1)) as pool:
            for done in [pool.submit(one.compile) for one in lowered]:
                done.result()
    for program in fresh:
        program.is_compiled = True


def _draw_in_trace(draws: Sequence[Draw], data: jax.Array, implementation: Any) -> list[jax.Array]:
    groups: dict[Draw, list[int]] = {}
    for index, d in enumerate(draws):
        groups.setdefault(d, []).append(index)
    arrays: dict[int, jax.Array] = {}
    for d, members in groups.items():
        # Constants are cheaper to write out than to slice.
        largest = max(1, _LOOP_BYTES // max(1, d.nbytes)) if d.initializer.random else 1
        for chunk in _chunks(members, largest):
            rows = data[np.array(chunk)]
            arrays.update(
                zip(chunk, _loop_program(d, implementation, len(chunk))(rows), strict=True)
            )
    return [arrays[index] for index in range(len(draws))]


def _chunks(members: list[int], size: int) -> Iterator[list[int]]:
    for start in range(0, len(members), size):
        yield members[start : start + size]


@dataclasses.dataclass(eq=False)
class _Program:
    """A jitted function from the key data of one leaf to its array."""

    call: Any
    is_compiled: bool = False


def _sampler(d: Draw, implementation: Any) -> Callable[[Any], jax.Array]:
    """Key data of one leaf -> its array."""
    # With explicit axes the initializer itself must say where its result lives: there an outer jit
    # overrules the out_shardings of an inner one, and (jax 0.10) an annotation in the middle of the
    # arithmetic keeps XLA from merging two factors, which changes a quarter of all entries by an
    # ulp. It can say so wherever there is a mesh.
    placement = d.sharding if _is_on_mesh(d) else None

    def sample(row: Any) -> jax.Array:
        key = jax.random.wrap_key_data(row, impl=implementation)
        return d.initializer(key, d.shape, d.dtype, placement)

    return sample


def _is_on_mesh(d: Draw) -> bool:
    return isinstance(d.sharding, NamedSharding | PartitionSpec)


# Programs are kept, so that a second init neither traces nor compiles. Bounded, because each holds
# an executable; a plan with more distinct draws compiles the surplus again.
@functools.lru_cache(maxsize=1024)
def _program(d: Draw, implementation: Any) -> _Program:
    return _Program(jax.jit(_sampler(d, implementation), out_shardings=d.sharding))


@functools.lru_cache(maxsize=1024)
def _loop_program(d: Draw, implementation: Any, count: int) -> Callable[[Any], list[jax.Array]]:
    """Key data of ``count`` equal leaves -> their arrays, inside somebody else's trace.

    A loop and not ``vmap``: its body is the program of one leaf, so its bits are those of one leaf
    even where vmap would change them (QR; the rbg implementations, which draw a whole batch from
    the first key), and XLA:CPU compiles and runs it faster.
    """
    sample = _sampler(d, implementation)
    # Under the user's own vmap (an ensemble) the same holds for the batch of root keys.
    if not (d.initializer.elementwise and implementation == "threefry2x32"):
        sample = sequential_vmap(sample)

    def sample_all(rows: Any) -> list[jax.Array]:
        if count == 1:
            return [sample(rows[0])]
        stack = jax.lax.map(sample, rows)
        return [stack[index] for index in range(count)]

    return jax.jit(sample_all, out_shardings=None if _is_on_mesh(d) else d.sharding)
