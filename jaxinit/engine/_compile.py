"""Compiles each program once, on a few threads, and calls it for every leaf within a memory bound.

Plans and traced functions both end here, as groups: leaves that one program fills. XLA compiles
without Python's lock, so programs compile side by side, and the first of them fill their leaves
while others compile.
"""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import dataclasses
import os
import threading
import time
from collections.abc import Callable, Generator, Hashable, Iterable, Iterator, Sequence
from typing import Any, Generic, NamedTuple, TypeAlias, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxinit.engine._placement import put
from jaxinit.engine._threefry import fast_compiler_options

V = TypeVar("V")

# Executables are kept across init functions and plans: the same layer in another model has the same
# program. An executable takes 0.7 MiB (in a list of 1,500, measured on CPU), so their number is
# bounded: by the lower number, or by the largest number of programs that one init has had, so that
# its second call does not compile, up to the upper number.
_MIN_KEPT = 1024
_MAX_KEPT = 4096
_MAX_THREADS = 16
_MIN_ALLOWED = 2**20
_SETTINGS = ("jax_enable_x64", "jax_threefry_partitionable", "jax_default_device")


@dataclasses.dataclass(frozen=True, eq=False)
class Program:
    """A pure function that XLA compiles once, and that fills a leaf or a few that belong together.

    Attributes:
        identity: equal for programs that compute the same; executables are kept by it. The
            executable of a program without identity is not kept.
        function: the function, ``(*arguments) -> list of arrays``.
        arguments: types of its arguments.
        out_shardings: where the arrays go, as ``jax.jit`` takes it; None leaves it to the compiler.
        is_fast: whether it is compiled with `fast_compiler_options`.
        donates: positions of arguments whose memory the results take over.
        is_one_of_several: whether its single array is compiled as one result of several, beside an
            empty array. XLA lays out transposed arrays in another way for a program with a single
            result, and since jaxlib 0.12 the entries may then differ by an ulp.
    """

    identity: Hashable | None
    function: Callable[..., Any]
    arguments: tuple[jax.ShapeDtypeStruct, ...]
    out_shardings: Any = None
    is_fast: bool = False
    donates: tuple[int, ...] = ()
    is_one_of_several: bool = False


class Executable(NamedTuple):
    """A compiled program.

    Attributes:
        call: takes arrays of the types it was compiled for; returns a list of arrays, and an empty
            array where the program is one of several, None elsewhere.
        scratch: bytes it needs beside arguments and results while it runs.
    """

    call: Callable[..., Any]
    scratch: int


class Call(NamedTuple):
    """One call of a program.

    Attributes:
        leaves: positions of the leaves that its results fill.
        arguments: arrays; in a group that is not carried out yet, names of them.
    """

    leaves: tuple[int, ...]
    arguments: Sequence[Any]


class Group(NamedTuple):
    """Leaves that one program fills, or the host without a program.

    Attributes:
        calls: a call for each leaf, or for each few that belong together.
        program: what is compiled for them; None where the host makes them.
        constant: the number that fills them, where the host does so.
        place: where they go, as far as the one who makes the group needs to know.
    """

    calls: Sequence[Call]
    program: Program | None
    constant: np.generic | None = None
    place: Any = None


# Positions of leaves, and their arrays.
Filled: TypeAlias = tuple[tuple[int, ...], Sequence[jax.Array]]


class Kept(Generic[V]):
    """The most recently used values, by key.

    Args:
        size: how many there is room for at first.
    """

    def __init__(self, size: int = _MIN_KEPT) -> None:
        self._first_size = self._size = size
        self._lock = threading.Lock()
        self._entries: collections.OrderedDict[Hashable, V] = collections.OrderedDict()

    def get(self, key: Hashable) -> V | None:
        """The value of a key, None when it is not kept."""
        with self._lock:
            if key in self._entries:
                self._entries.move_to_end(key)
            return self._entries.get(key)

    def put(self, key: Hashable, value: V) -> None:
        """Keeps a value; drops what was not used for longest where there is no room."""
        with self._lock:
            self._entries[key] = value
            while len(self._entries) > self._size:
                self._entries.popitem(last=False)

    def make_room(self, count: int) -> None:
        """Keeps as many values from now on as one user needs at a time, within reason."""
        with self._lock:
            self._size = max(self._size, min(count, _MAX_KEPT))

    def clear(self) -> None:
        """Drops everything."""
        with self._lock:
            self._size = self._first_size
            self._entries.clear()


class Work:
    """Groups of leaves to be filled.

    Attributes:
        groups: the groups.
        sizes: bytes of every leaf.
        executables: compiled programs, by the index of their group.
        compile_seconds: time from the first compilation to the last.
    """

    def __init__(self, groups: Sequence[Group], sizes: Sequence[int]) -> None:
        self.groups, self.sizes = groups, sizes
        self.executables: dict[int, Executable] = {}
        self.compile_seconds = 0.0

    def nbytes_of(self, group: Group) -> int:
        """Bytes of the leaves of a group."""
        return sum(self.sizes[leaf] for call in group.calls for leaf in call.leaves)

    def ready(self) -> Generator[tuple[int, Executable]]:
        """Every group that has a program, by index, with its executable."""
        yield from list(self.executables.items())
        programs = {i: group.program for i, group in enumerate(self.groups) if group.program}
        missing = sorted(programs.keys() - self.executables.keys())
        # Those with most to fill come first: they fill it while the others compile.
        missing.sort(key=lambda index: -self.nbytes_of(self.groups[index]))
        start = time.perf_counter()
        with contextlib.closing(compiled([programs[index] for index in missing])) as made:
            for position, executable in made:
                self.executables[missing[position]] = executable
                self.compile_seconds = time.perf_counter() - start
                yield missing[position], executable

    def fill(
        self,
        calls: Callable[[Group], Iterable[Call]],
        max_live_bytes: int | None,
    ) -> Generator[Filled]:
        """Fills every leaf.

        Args:
            calls: the calls of a group, with arrays as arguments: those of its program, or, in a
                group that the host fills, the leaves themselves.
            max_live_bytes: bytes that may be in use beside the leaves, as in `allowance`.

        Yields:
            Positions of leaves, and their arrays.
        """
        allowed = allowance(max_live_bytes, self.sizes)
        # Closed at once when anything raises: a generator that waits keeps threads.
        with contextlib.closing(self.ready()) as ready:
            yield from carry_out(ready, lambda index: calls(self.groups[index]), allowed)
        for group in self.groups:
            if group.program is None:
                for call in calls(group):
                    yield call.leaves, [put(array, group.place) for array in call.arguments]

    def most_beside(self, max_live_bytes: int | None) -> int:
        """Bytes that `fill` has in use at most beside the leaves, when all is compiled."""
        made = self.executables.items()
        needs = [(found.scratch, len(self.groups[index].calls)) for index, found in made]
        return in_use_beside(needs, allowance(max_live_bytes, self.sizes))


_kept: Kept[Executable] = Kept()


def forget_executables() -> None:
    """Drops every executable; like ``jax.clear_caches``, for benchmarks of first calls."""
    _kept.clear()


def settings() -> Hashable:
    """Settings of JAX that decide what a program compiles to, and where it runs."""
    return (*map(setting, _SETTINGS), jax.sharding.get_mesh())


def setting(name: str) -> Any:
    """A setting of JAX as this thread sees it."""
    return getattr(jax.config, name)


def compiled(programs: Sequence[Program]) -> Generator[tuple[int, Executable]]:
    """Compiles programs whose executables are not kept already.

    Programs are lowered on this thread, because the settings of JAX belong to threads, and compiled
    on several threads.

    Args:
        programs: what to compile.

    Yields:
        Index and executable of each program, in the order in which they are ready. Where several
        processes take part, in the order of ``programs``: a program that spans processes waits
        until all of them call it, and processes that call two programs in different orders wait
        for each other for ever. A caller that stops early closes the generator, which ends its
        threads.
    """
    if setting("jax_disable_jit"):
        for index, program in enumerate(programs):
            yield index, Executable(lambda *arguments, f=program.function: (f(*arguments), None), 0)
        return
    context = settings()
    _kept.make_room(len(programs))
    found = [_kept.get((program.identity, context)) for program in programs]
    known = {index: kept for index, kept in enumerate(found) if kept is not None}
    missing = [index for index in range(len(programs)) if index not in known]
    in_order = jax.process_count() > 1
    with contextlib.closing(_compile_all(programs, missing, context, in_order)) as made:
        if in_order:
            # One process may have kept an executable that another has dropped.
            for index in range(len(programs)):
                yield (index, known[index]) if index in known else next(made)
        else:
            yield from known.items()
            yield from made


def _compile_all(
    programs: Sequence[Program], missing: Sequence[int], context: Hashable, in_order: bool
) -> Generator[tuple[int, Executable]]:
    if not missing:
        return
    threads = min(_processors(), len(missing), _MAX_THREADS)
    pool = concurrent.futures.ThreadPoolExecutor(threads, thread_name_prefix="jaxinit-compile")
    tasks: dict[concurrent.futures.Future[Executable], int] = {}

    def finished() -> Iterator[tuple[int, Executable]]:
        if in_order:
            done = {next(iter(tasks))}
        else:
            done, _ = concurrent.futures.wait(tasks, return_when=concurrent.futures.FIRST_COMPLETED)
        for task in done:
            index = tasks.pop(task)
            executable = task.result()
            if programs[index].identity is not None:
                _kept.put((programs[index].identity, context), executable)
            yield index, executable

    try:
        for index in missing:
            options = fast_compiler_options() if programs[index].is_fast else {}
            tasks[pool.submit(_compile, _lower(programs[index]), options)] = index
            # A lowered program is text of some size: no more of them wait than keep threads busy.
            if len(tasks) > 2 * threads:
                yield from finished()
        while tasks:
            yield from finished()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _processors() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _lower(program: Program) -> Any:
    def run(*arguments: Any) -> tuple[Any, Any]:
        beside = jnp.zeros((0,)) if program.is_one_of_several else None
        return program.function(*arguments), beside

    placed = (program.out_shardings, None)
    jitted = jax.jit(run, keep_unused=True, out_shardings=placed, donate_argnums=program.donates)
    return jitted.lower(*program.arguments)


def _compile(lowered: Any, options: dict[str, Any]) -> Executable:
    executable = lowered.compile(compiler_options=options or None)
    analysis = executable.memory_analysis()
    # Not every backend reports it; 0 then means that no call waits for another.
    return Executable(executable, getattr(analysis, "temp_size_in_bytes", 0) or 0)


def check_bound(caller: str, max_live_bytes: int | None) -> None:
    """Raises when a bound on memory is negative."""
    if max_live_bytes is not None and max_live_bytes < 0:
        raise ValueError(
            f"{caller} needs max_live_bytes >= 0, got {max_live_bytes}. "
            "Leave it out to allow what the largest leaf needs."
        )


def allowance(max_live_bytes: int | None, sizes: Iterable[int]) -> int:
    """Bytes that may be in use beside the finished leaves.

    Args:
        max_live_bytes: what the caller allows; None allows as much as the largest leaf has, and a
            mebibyte where all are small, since waiting for each takes longer than filling it.
        sizes: bytes of the leaves.
    """
    return max((_MIN_ALLOWED, *sizes)) if max_live_bytes is None else max_live_bytes


def in_use_beside(needs: Iterable[tuple[int, int]], max_scratch: int) -> int:
    """The largest number of bytes that `carry_out` has in use beside the arrays that it makes.

    Args:
        needs: for each program the bytes that a call takes, and how often it is called.
        max_scratch: as in `carry_out`.
    """
    needs = list(needs)
    together = sum(scratch * calls for scratch, calls in needs)
    # A program runs even where it needs more than is allowed, alone.
    return max(min(together, max_scratch), max((scratch for scratch, _ in needs), default=0))


def carry_out(
    ready: Iterable[tuple[int, Executable]],
    calls: Callable[[int], Iterable[Call]],
    max_scratch: int,
) -> Iterator[Filled]:
    """Calls programs as they become ready, and waits where too much would be alive at once.

    Calls return before their arrays are filled. Without a bound a thousand calls would hold the
    scratch memory of a thousand leaves; with a bound the oldest finishes before the next begins.

    Args:
        ready: indices of programs with their executables, as `compiled` yields them.
        calls: from the index of a program to its calls; asked for when the program is ready.
        max_scratch: bytes that may be in use beside the arrays that the calls return. A program
            that needs more runs alone.

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
