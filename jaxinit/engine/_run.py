"""The one narrow function between plans and arrays: a list of draws and a key for each, drawn.

Equal draws share one compiled program, so compile time follows the number of distinct draws and
not the number of leaves. Outside of a trace the program is called once per leaf; inside one (under
``jax.jit`` or ``jax.vmap``) it becomes the body of a loop over the keys. Either way every leaf has
the bits of its initializer drawn alone under ``jax.jit``. So has a sharded leaf, with one exception
that lies in XLA: on CPUs, since jax 0.12, a shard whose rows hold fewer entries than a vector may
differ by an ulp, because logarithms of single numbers are not those of vectors.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.core import Tracer
from jax.custom_batching import sequential_vmap
from jax.sharding import Sharding

from jaxinit.engine._compile import Call, allowance, carry_out, compiled, setting
from jaxinit.engine._draws import Draw, Lot, prepare, sampler
from jaxinit.engine._estimate import Estimate, estimate_lots
from jaxinit.engine._placement import put

Progress = Callable[[int, int, int, int], None]

# Inside a trace, equal leaves are drawn into one array and sliced. This bounds what that array
# costs beyond the leaves themselves; a leaf of more than half of it is drawn without a loop.
_LOOP_BYTES = 2**28


def draw(
    draws: Sequence[Draw],
    keys: jax.Array,
    *,
    into: Sequence[jax.Array] | None = None,
    max_live_bytes: int | None = None,
    progress: Progress | None = None,
) -> list[jax.Array]:
    """Draws every array of a list.

    Args:
        draws: what to draw.
        keys: a batch of typed keys, one for each draw.
        into: for each draw an array of its shape and dtype to draw over. It is deleted, and where
            it lies in the right place its memory becomes that of the new array. Not in a trace.
        max_live_bytes: bytes that may be in use beside the arrays; by default as many as the
            largest has, and at least 1 MiB. A draw that needs more is made alone. In a trace the
            compiler decides.
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
    place = data[0].sharding if draws and data.committed else None
    lots = prepare(draws, implementation, place, into)
    arrays: list[Any] = [None] * len(draws)
    done_leaves, done_bytes, total_bytes = 0, 0, sum(d.nbytes for d in draws)
    allowed = allowance(max_live_bytes, (d.nbytes for d in draws))
    # Closed at once when anything raises: a generator that waits for the next step keeps threads.
    with contextlib.closing(_drawn(lots, np.asarray(data), into, allowed)) as drawn:
        for index, array in drawn:
            arrays[index] = array
            if progress is not None:
                array.block_until_ready()
                done_leaves, done_bytes = done_leaves + 1, done_bytes + draws[index].nbytes
                progress(done_leaves, len(draws), done_bytes, total_bytes)
    return arrays


def estimate(
    draws: Sequence[Draw],
    implementation: Any = None,
    place: Sharding | None = None,
    *,
    max_live_bytes: int | None = None,
) -> Estimate:
    """Says what memory a list of draws takes; compiles its kinds, but draws nothing.

    Args:
        draws: what would be drawn.
        implementation: of the keys, as ``jax.random.key_impl`` gives it; None is JAX's default.
        place: where the keys are committed to; None when they go anywhere.
        max_live_bytes: as in `draw`.
    """
    if implementation is None:
        implementation = setting("jax_default_prng_impl")
    lots = prepare(draws, implementation, place)
    to_compile = [lot for lot in lots if lot.constant is None]
    executables = dict(compiled([lot.kind for lot in to_compile]))
    scratch = {id(lot): executables[index].scratch for index, lot in enumerate(to_compile)}
    allowed = allowance(max_live_bytes, (d.nbytes for d in draws))
    return estimate_lots(lots, [scratch.get(id(lot)) for lot in lots], allowed)


def _drawn(
    lots: Sequence[Lot], rows: np.ndarray, into: Sequence[jax.Array] | None, max_live_bytes: int
) -> Generator[tuple[int, jax.Array]]:
    """Every array with its position, as soon as it is called for."""
    # Measured on CPU: 12 microseconds per call of a compiled program, against 15 milliseconds of
    # compile time for each slice of a program that draws a whole group and cuts it up.
    to_compile = [lot for lot in lots if lot.constant is None]

    def calls(number: int) -> Iterator[Call]:
        lot = to_compile[number]
        is_here = lot.place is None or lot.place.is_fully_addressable
        for index in lot.members:
            row = rows[index] if is_here else put(rows[index], lot.place)
            if into is None:
                yield Call((index,), (row,))
            elif lot.reuses:
                yield Call((index,), (into[index], row))
                # Somebody else's view of the memory, such as a NumPy array, keeps it from being
                # taken over; the array is given away all the same.
                _delete(into[index])
            else:
                _delete(into[index])
                yield Call((index,), (row,))

    with contextlib.closing(compiled([lot.kind for lot in to_compile])) as ready:
        for (index,), (array,) in carry_out(ready, calls, max_live_bytes):
            yield index, array
    for lot in lots:
        if lot.constant is not None:
            for index in lot.members:
                if into is not None:
                    _delete(into[index])
                array = np.full(lot.draw.shape, lot.constant, lot.draw.dtype)
                yield index, put(array, lot.sharding)


def _delete(array: jax.Array) -> None:
    if not array.is_deleted():
        array.delete()


def _draw_in_trace(draws: Sequence[Draw], data: jax.Array, implementation: Any) -> list[jax.Array]:
    groups: dict[Draw, list[int]] = {}
    for index, d in enumerate(draws):
        groups.setdefault(d, []).append(index)
    arrays: dict[int, jax.Array] = {}
    for d, members in groups.items():
        # Constants are cheaper to write out than to slice.
        largest = max(1, _LOOP_BYTES // max(1, d.nbytes)) if d.initializer.random else 1
        for start in range(0, len(members), largest):
            chunk = members[start : start + largest]
            rows = data[np.array(chunk)]
            made = _loop_program(d, implementation, len(chunk))(rows)
            arrays.update(zip(chunk, made, strict=True))
    return [arrays[index] for index in range(len(draws))]


@functools.lru_cache(maxsize=1024)
def _loop_program(d: Draw, implementation: Any, count: int) -> Callable[[Any], list[jax.Array]]:
    """Key data of ``count`` equal leaves -> their arrays, inside somebody else's trace.

    A loop and not ``vmap``: its body is the program of one leaf, so its bits are those of one leaf
    even where vmap would change them (QR; the rbg implementations, which draw a whole batch from
    the first key), and XLA:CPU compiles and runs it faster.
    """
    sample = sampler(d, implementation, is_outermost=False)
    # Under the user's own vmap (an ensemble) the same holds for the batch of root keys.
    if not (d.initializer.elementwise and implementation == "threefry2x32"):
        sample = sequential_vmap(sample)

    def sample_all(rows: Any) -> list[jax.Array]:
        if count == 1:
            return [sample(rows[0])]
        stack = jax.lax.map(sample, rows)
        return [stack[index] for index in range(count)]

    return jax.jit(sample_all, out_shardings=None if d.is_on_mesh else d.sharding)
