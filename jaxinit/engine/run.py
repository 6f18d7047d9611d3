"""The one narrow function between plans and arrays: a list of draws and a key for each, drawn.

Equal draws share one compiled program, so compile time follows the number of distinct draws and
not the number of leaves. Outside of a trace the program is called once per leaf; inside one (under
``jax.jit`` or ``jax.vmap``) it becomes the body of a loop over the keys. Either way every leaf has
the bits of its initializer drawn alone under ``jax.jit``. So has a sharded leaf, with one exception
that lies in XLA: on CPUs, since jax 0.12, a shard whose rows hold fewer entries than a vector may
differ by an ulp, because logarithms of single numbers are not those of vectors.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.core import Tracer
from jax.custom_batching import sequential_vmap
from jax.sharding import NamedSharding, PartitionSpec, Sharding

from jaxinit.engine.compile import Call, Kind, carry_out, compiled, settings
from jaxinit.engine.evaluate import run_jaxpr
from jaxinit.engine.kinds import constant_of, may_hasten
from jaxinit.engine.placement import may_copy, put, shards_are_wide
from jaxinit.engine.program import flatten
from jaxinit.engine.slices import cut
from jaxinit.engine.threefry import fast_compiler_options, fast_key
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
    context = settings()
    numbers: dict[tuple[Draw, bool], int] = {}
    members: list[list[int]] = []
    for index, d in enumerate(draws):
        # A committed key says where to draw. A sharding says so too, and wins: a row in host memory
        # goes wherever it is needed.
        key = (d, d.sharding is None and data.committed)
        if key not in numbers:
            numbers[key] = len(members)
            members.append([])
        members[numbers[key]].append(index)
    place = data[0].sharding if any(follows for _, follows in numbers) else None
    recipes = [
        _recipe(d, implementation, place if follows else None, context) for d, follows in numbers
    ]

    def calls(kind: int) -> Iterator[Call]:
        rows = host if recipes[kind].place is None else data
        return (Call((index,), [rows[index]]) for index in members[kind])

    compiles = [n for n, recipe in enumerate(recipes) if recipe.constant is None]
    ready = compiled([recipes[n].kind for n in compiles])
    ready = ((compiles[n], executable) for n, executable in ready)
    largest = max((d.nbytes for d in draws), default=0)
    copied = (
        ((index,), [_filled(draws[index], recipe)])
        for recipe, group in zip(recipes, members, strict=True)
        for index in group
        if recipe.constant is not None
    )
    arrays: dict[int, jax.Array] = {}
    done_bytes, total_bytes = 0, sum(d.nbytes for d in draws)
    for (index,), (array,) in itertools.chain(carry_out(ready, calls, largest), copied):
        arrays[index] = array
        if progress is not None:
            array.block_until_ready()
            done_bytes += draws[index].nbytes
            progress(len(arrays), len(draws), done_bytes, total_bytes)
    return [arrays[index] for index in range(len(draws))]


def _filled(d: Draw, recipe: _Recipe) -> jax.Array:
    array = np.full(d.shape, recipe.constant, d.dtype)
    return put(array, recipe.place if d.sharding is None else d.sharding)


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


class _Recipe(NamedTuple):
    """How to draw: what to compile, the number that is all there is to it, where keys are put."""

    kind: Kind
    constant: np.generic | None
    place: Sharding | None


# Kept, so that a second init does not trace; what kinds compile to is kept with all others.
@functools.lru_cache(maxsize=1024)
def _recipe(d: Draw, implementation: Any, place: Sharding | None, context: Hashable) -> _Recipe:
    words = jax.eval_shape(lambda: jax.random.key_data(jax.random.key(0, impl=implementation)))
    row = jax.ShapeDtypeStruct(words.shape, words.dtype, sharding=place)
    jaxpr = jax.jit(_sampler(d, implementation)).trace(row).jaxpr
    is_fast = may_hasten(jaxpr.eqns) and shards_are_wide(d.shape, d.sharding)
    kind = Kind(
        (d, implementation, place),
        lambda row: run_jaxpr(jaxpr, [row], fast_key if is_fast else None),
        (row,),
        None if d.sharding is None else [d.sharding],
        tuple(sorted(fast_compiler_options().items())) if is_fast else (),
    )
    constant = None
    if not d.initializer.random and may_copy(d.nbytes, d.sharding):
        program = flatten(jaxpr)
        slices = cut(program).slices
        constant = constant_of(program, slices[0]) if slices else None
    return _Recipe(kind, constant, place)


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
