"""Compile each kind once, on a few threads; call it for every leaf; keep within a memory bound.

What plans and traced functions have in common: both end as a list of calls of a few kinds. XLA
compiles without Python's lock, so kinds compile side by side while the first of them already fill
their leaves.
"""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import os
import threading
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

# Programs are kept across init functions and plans: the same layer in another model is the same
# kind. Bounded, because each holds an executable.
_MAX_KEPT = 1024
_MAX_THREADS = 16
_SETTINGS = ("jax_enable_x64", "jax_threefry_partitionable", "jax_default_device")


@dataclasses.dataclass(frozen=True, eq=False)
class Kind:
    """A pure function that fills one leaf, or the few that belong together.

    Attributes:
        identity: equal for kinds that compute the same; what compiled programs are kept by; None
            is kept by nobody.
        function: the function, ``(*arguments) -> list of arrays``.
        arguments: types of its arguments.
        out_shardings: where the arrays go, as ``jax.jit`` takes it; None leaves it to the compiler.
        options: compiler options.
        has_company: whether its single array is to be compiled as one result of several. XLA
            arranges what is transposed in another way for a program with one result, and since
            jaxlib 0.12 it may come out an ulp apart.
    """

    identity: Hashable | None
    function: Callable[..., Any]
    arguments: tuple[jax.ShapeDtypeStruct, ...]
    out_shardings: Any = None
    options: tuple[tuple[str, Any], ...] = ()
    has_company: bool = False


class Executable(NamedTuple):
    """A compiled kind.

    Attributes:
        call: takes arrays of the types it was compiled for, returns a list of arrays and company.
        scratch: bytes it needs beside arguments and results while it runs.
    """

    call: Callable[..., Any]
    scratch: int


class Call(NamedTuple):
    """One call of a kind.

    Attributes:
        leaves: positions that its results fill.
        arguments: what it takes.
    """

    leaves: tuple[int, ...]
    arguments: Sequence[Any]


class _Kept:
    """The most recently used executables, by identity and by the settings they were made under."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._lock = threading.Lock()
        self._entries: collections.OrderedDict[Hashable, Executable] = collections.OrderedDict()

    def get(self, key: Hashable) -> Executable | None:
        with self._lock:
            if key in self._entries:
                self._entries.move_to_end(key)
            return self._entries.get(key)

    def put(self, key: Hashable, executable: Executable) -> None:
        with self._lock:
            self._entries[key] = executable
            while len(self._entries) > self._size:
                self._entries.popitem(last=False)

    def clear(self) -> None:
        with self._lock:
            self._entries.clear()


_kept = _Kept(_MAX_KEPT)


def forget_executables() -> None:
    """Drops every compiled kind; like ``jax.clear_caches``, for benchmarks of first calls."""
    _kept.clear()


def settings() -> Hashable:
    """Settings of JAX that decide what a program compiles to, and where it runs."""
    return (*map(setting, _SETTINGS), jax.sharding.get_mesh())


def setting(name: str) -> Any:
    """A setting of JAX as this thread sees it."""
    return getattr(jax.config, name)


def compiled(kinds: Sequence[Kind]) -> Iterator[tuple[int, Executable]]:
    """Compiles kinds that are not kept already.

    Lowering happens on this thread, because the settings of JAX belong to threads; compiling on
    several.

    Args:
        kinds: what to compile.

    Yields:
        Index and executable of each kind as soon as it is ready. Where several processes take part,
        in the order of ``kinds``: which compiles first is chance, and a program that waits for its
        like in other processes would wait for ever behind another that they have yet to reach.
    """
    if setting("jax_disable_jit"):
        for index, kind in enumerate(kinds):
            yield index, Executable(lambda *arguments, f=kind.function: (f(*arguments), None), 0)
        return
    context = settings()
    known = {index: _kept.get((kind.identity, context)) for index, kind in enumerate(kinds)}
    known = {index: executable for index, executable in known.items() if executable is not None}
    missing = [index for index in range(len(kinds)) if index not in known]
    if jax.process_count() == 1:
        yield from known.items()
        yield from _compile_all(kinds, missing, context, in_order=False)
    else:
        # What one process still has, another may have lost.
        made = _compile_all(kinds, missing, context, in_order=True)
        for index in range(len(kinds)):
            yield (index, known[index]) if index in known else next(made)


def _compile_all(
    kinds: Sequence[Kind], missing: Sequence[int], context: Hashable, in_order: bool
) -> Iterator[tuple[int, Executable]]:
    if not missing:
        return
    threads = min(_processors(), len(missing), _MAX_THREADS)
    pool = concurrent.futures.ThreadPoolExecutor(threads, thread_name_prefix="jaxinit-compile")
    try:
        tasks = {pool.submit(_compile, _lower(kinds[i]), kinds[i].options): i for i in missing}
        for task in tasks if in_order else concurrent.futures.as_completed(tasks):
            index = tasks[task]
            if kinds[index].identity is not None:
                _kept.put((kinds[index].identity, context), task.result())
            yield index, task.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _processors() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _lower(kind: Kind) -> Any:
    def run(*arguments: Any) -> tuple[Any, Any]:
        return kind.function(*arguments), jnp.zeros((0,)) if kind.has_company else None

    placement: dict[str, Any] = {}
    if kind.out_shardings is not None:
        placement["out_shardings"] = (kind.out_shardings, None)
    return jax.jit(run, keep_unused=True, **placement).lower(*kind.arguments)


def _compile(lowered: Any, options: tuple[tuple[str, Any], ...]) -> Executable:
    executable = lowered.compile(compiler_options=dict(options) or None)
    analysis = executable.memory_analysis()
    # Not every backend tells; 0 then means that nothing is held back.
    return Executable(executable, getattr(analysis, "temp_size_in_bytes", 0) or 0)


def carry_out(
    ready: Iterable[tuple[int, Executable]],
    calls: Callable[[int], Iterable[Call]],
    max_scratch: int,
) -> Iterator[tuple[tuple[int, ...], Sequence[jax.Array]]]:
    """Calls kinds as they become ready, and waits where too much would be alive at once.

    Calls return before their arrays are filled. Without a bound a thousand of them would hold the
    scratch memory of a thousand leaves; with it, the oldest finishes before the next begins.

    Args:
        ready: indices of kinds with their executables, as `compiled` yields them.
        calls: for the index of a kind, the calls of it; made when it is ready.
        max_scratch: bytes that may be in use beside what the calls return. A kind that needs more
            runs alone.

    Yields:
        The positions that a call fills, and their arrays.
    """
    in_flight: collections.deque[tuple[jax.Array, int]] = collections.deque()
    scratch = 0
    for index, executable in ready:
        for call in calls(index):
            while in_flight and scratch + executable.scratch > max_scratch:
                array, held = in_flight.popleft()
                array.block_until_ready()
                scratch -= held
            arrays, _ = executable.call(*call.arguments)
            if executable.scratch and arrays:
                in_flight.append((arrays[0], executable.scratch))
                scratch += executable.scratch
            yield call.leaves, arrays
