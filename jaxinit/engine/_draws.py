"""A list of leaves and a key for each, in; arrays, out. What a plan draws with.

Equal leaves share one compiled program, so compile time follows the number of distinct leaves and
not the number of leaves. Outside of a trace the program is called once per leaf; inside one (under
``jax.jit`` or ``jax.vmap``) it becomes the body of a loop over the keys. Either way every leaf has
the bits of its initializer drawn alone under ``jax.jit``. So has a sharded leaf, with one exception
that lies in XLA: on CPUs, since jax 0.12, a shard whose rows hold fewer entries than a vector may
differ by an ulp, because logarithms of single numbers are not those of vectors.

`draw` draws, `estimate` compiles the same programs and tells what memory drawing takes.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import math
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any

import jax
import jax.extend.core as jex
import numpy as np
from jax.core import Tracer
from jax.custom_batching import sequential_vmap
from jax.sharding import AxisType, NamedSharding, PartitionSpec, Sharding

from jaxinit._table import render_table, spell_bytes
from jaxinit.engine._compile import Call, Filled, Group, Kept, Program, Work, setting, settings
from jaxinit.engine._fast_bits import function_of, in_loops
from jaxinit.engine._placement import may_copy, on_mesh, put, shards_are_wide
from jaxinit.engine._slices import cut, graph_of_init, may_use_fast_bits
from jaxinit.engine._threefry import fast_key
from jaxinit.initializers import Initializer
from jaxinit.jaxpr import graph_of

Progress = Callable[[int, int, int, int], None]


@dataclasses.dataclass(frozen=True)
class LeafSpec:
    """What to draw for one leaf; leaves of equal specifications differ in their key alone.

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

    @property
    def is_on_mesh(self) -> bool:
        """Whether it is to be laid over a mesh."""
        return isinstance(self.sharding, NamedSharding | PartitionSpec)


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Memory that drawing a tree takes.

    Attributes:
        leaves: number of leaves.
        programs: number of groups of leaves that differ in their key alone.
        compiled: how many of these programs XLA compiles; the others are constants that the host
            copies.
        nbytes: bytes of the finished tree.
        device_nbytes: bytes of it on the device that holds most, from the shapes of the shards.
        scratch: scratch memory of the largest program on each device, beside what it returns.
        peak: bytes in use at most on that device: its part of the tree, and scratch memory of
            programs that run at the same time.
    """

    leaves: int
    programs: int
    compiled: int
    nbytes: int
    device_nbytes: int
    scratch: int
    peak: int

    def __str__(self) -> str:
        sizes = {
            "finished tree": self.nbytes,
            "its largest part on one device": self.device_nbytes,
            "scratch memory of the largest program": self.scratch,
            "peak on one device": self.peak,
        }
        title = f"{self.leaves:,} leaves, {self.programs:,} programs, {self.compiled:,} compiled"
        rows = [(name, spell_bytes(count), f"{count:,}") for name, count in sizes.items()]
        return render_table(["memory", "size", "bytes"], rows, title=title)


def draw(
    specs: Sequence[LeafSpec],
    keys: jax.Array,
    *,
    into: Sequence[jax.Array] | None = None,
    max_live_bytes: int | None = None,
    progress: Progress | None = None,
) -> list[jax.Array]:
    """Draws every array of a list.

    Args:
        specs: what to draw.
        keys: a batch of typed keys, one for each leaf.
        into: for each leaf an array of its shape and dtype to draw over. It is deleted, and where
            it lies in the right place its memory becomes that of the new array. Not in a trace.
        max_live_bytes: bytes that may be in use beside the arrays; by default as many as the
            largest has, and at least 1 MiB. A leaf that needs more is drawn alone. In a trace the
            compiler decides.
        progress: called as ``progress(done_leaves, total_leaves, done_bytes, total_bytes)`` each
            time an array is ready; never inside a trace, where nothing is drawn yet.

    Returns:
        The arrays, in the order of ``specs``.

    Raises:
        ValueError: when there are more or fewer keys than leaves.

    Example:
        >>> from jaxinit.initializers import normal
        >>> twice = [LeafSpec(normal(), (2, 3), np.dtype("float32"))] * 2
        >>> first, second = draw(twice, jax.random.split(jax.random.key(0)))
        >>> first.shape, bool((first == second).any())
        ((2, 3), False)
    """
    if keys.shape != (len(specs),):
        raise ValueError(
            f"draw needs one key for each of its {len(specs)} leaves, got keys of shape "
            f"{keys.shape}. Derive them with keys_for_paths."
        )
    implementation = jax.random.key_impl(keys)
    data = jax.random.key_data(keys)
    if isinstance(data, Tracer):
        return _draw_in_trace(specs, data, implementation)
    place = data[0].sharding if specs and data.committed else None
    arrays: list[Any] = [None] * len(specs)
    done_leaves, done_bytes, total_bytes = 0, 0, sum(spec.nbytes for spec in specs)
    drawing = _Drawing(specs, implementation, place, into)
    # Closed at once when anything raises: a generator that waits for the next step keeps threads.
    with contextlib.closing(drawing.arrays(np.asarray(data), max_live_bytes)) as drawn:
        for (index,), (array,) in drawn:
            arrays[index] = array
            if progress is not None:
                array.block_until_ready()
                done_leaves, done_bytes = done_leaves + 1, done_bytes + specs[index].nbytes
                progress(done_leaves, len(specs), done_bytes, total_bytes)
    return arrays


def estimate(
    specs: Sequence[LeafSpec],
    implementation: Any = None,
    place: Sharding | None = None,
    *,
    max_live_bytes: int | None = None,
) -> Estimate:
    """Says what memory a list of leaves takes; compiles the programs, but draws nothing.

    Args:
        specs: what would be drawn.
        implementation: of the keys, as ``jax.random.key_impl`` gives it; None is JAX's default.
        place: where the keys are committed to; None when they go anywhere.
        max_live_bytes: as in `draw`.
    """
    if implementation is None:
        implementation = setting("jax_default_prng_impl")
    drawing = _Drawing(specs, implementation, place)
    executables = dict(drawing.work.ready())
    load: collections.Counter[Any] = collections.Counter()
    for group in drawing.work.groups:
        spec = specs[group.calls[0].leaves[0]]
        devices, shard = _spread(spec, group.place)
        nbytes = math.prod(shard) * spec.dtype.itemsize * len(group.calls)
        load.update(dict.fromkeys(devices, nbytes))
    device_nbytes = max(load.values(), default=0)
    return Estimate(
        leaves=len(specs),
        programs=len(drawing.work.groups),
        compiled=len(executables),
        nbytes=sum(drawing.work.sizes),
        device_nbytes=device_nbytes,
        scratch=max((found.scratch for found in executables.values()), default=0),
        peak=device_nbytes + drawing.work.most_beside(max_live_bytes),
    )


def _spread(spec: LeafSpec, place: Any) -> tuple[Any, tuple[int, ...]]:
    """Devices that hold a leaf, and the shape of what each of them holds."""
    sharding, mesh = on_mesh(place), jax.sharding.get_mesh()
    if isinstance(sharding, Sharding):
        return sharding.device_set, sharding.shard_shape(spec.shape)
    if not mesh.empty:
        return mesh.devices.flat, spec.shape
    default = setting("jax_default_device")
    return [default if isinstance(default, jax.Device) else jax.local_devices()[0]], spec.shape


class _Drawing:
    """A list of leaves in groups that differ in their key alone, in order of their first members.

    Args:
        specs: what to draw.
        implementation: of the keys, as ``jax.random.key_impl`` gives it.
        place: where the keys are committed to; None when they go anywhere.
        into: for each leaf an array of its shape and dtype whose memory it takes over.
    """

    def __init__(
        self,
        specs: Sequence[LeafSpec],
        implementation: Any,
        place: Sharding | None,
        into: Sequence[jax.Array] | None = None,
    ) -> None:
        self._specs, self._place, self._into = specs, place, into
        members: dict[tuple[LeafSpec, bool], list[Call]] = {}
        # A plan hands over the same object for equal leaves: hashing it once saves a third of the
        # time that a small leaf takes.
        known: dict[tuple[int, bool], list[Call]] = {}
        for index, spec in enumerate(specs):
            reuses = into is not None and _fits(into[index], spec.sharding, place)
            calls = known.get((id(spec), reuses))
            if calls is None:
                calls = known[id(spec), reuses] = members.setdefault((spec, reuses), [])
            calls.append(Call((index,), ()))
        _programs.make_room(len(members))
        groups = [
            _group(spec, implementation, place if spec.sharding is None else None, reuses, calls)
            for (spec, reuses), calls in members.items()
        ]
        self.work = Work(groups, [spec.nbytes for spec in specs])

    def arrays(self, rows: np.ndarray, max_live_bytes: int | None) -> Generator[Filled]:
        """Every array with its position, as soon as its program is called.

        Args:
            rows: key data, a row for each leaf.
            max_live_bytes: as in `draw`.
        """
        # Measured on CPU: 12 microseconds per call of a compiled program, against 15 milliseconds
        # of compile time for each slice of a program that draws a whole group and cuts it up.
        return self.work.fill(functools.partial(self._calls, rows), max_live_bytes)

    def _calls(self, rows: np.ndarray, group: Group) -> Iterator[Call]:
        place = self._place if self._specs[group.calls[0].leaves[0]].sharding is None else None
        is_here = place is None or place.is_fully_addressable
        for leaves, _ in group.calls:
            (index,) = leaves
            if group.program is None:
                spec = self._specs[index]
                self._delete(index)
                yield Call(leaves, (np.full(spec.shape, group.constant, spec.dtype),))
                continue
            row = rows[index] if is_here else put(rows[index], place)
            if self._into is not None and group.program.donates:
                yield Call(leaves, (self._into[index], row))
                # Another view of the memory, such as a NumPy array, keeps the program from taking
                # it over; the array is given away all the same.
                self._delete(index)
            else:
                self._delete(index)
                yield Call(leaves, (row,))

    def _delete(self, index: int) -> None:
        if self._into is not None and not self._into[index].is_deleted():
            self._into[index].delete()


def _fits(old: jax.Array, sharding: Any, place: Sharding | None) -> bool:
    """Whether an array lies where its successor will."""
    wanted = place if sharding is None else on_mesh(sharding)
    if wanted is None:
        return not old.committed
    # An array that is committed to another place is an error as an argument, and one that is not
    # committed is moved.
    return old.committed and old.sharding.is_equivalent_to(wanted, old.ndim)


# Programs by what they draw, with the number that fills their leaves where there is one. Kept, so
# that a second init does not trace.
_programs: Kept[tuple[Program, np.generic | None]] = Kept()


def _group(
    spec: LeafSpec,
    implementation: Any,
    place: Sharding | None,
    reuses: bool,
    calls: Sequence[Call],
) -> Group:
    key = (spec, implementation, place, settings())
    kept = _programs.get(key)
    if kept is None:
        kept = _program(spec, implementation, place)
        _programs.put(key, kept)
    program, constant = kept
    sharding = place if spec.sharding is None else spec.sharding
    if constant is not None and may_copy(spec.nbytes, spec.sharding, len(calls)):
        return Group(calls, None, constant, sharding)
    if reuses:
        old = jax.ShapeDtypeStruct(spec.shape, spec.dtype, sharding=sharding)
        program = _drawing_over(program, old)
    return Group(calls, program, None, sharding)


def _program(
    spec: LeafSpec, implementation: Any, place: Sharding | None
) -> tuple[Program, np.generic | None]:
    """The program of a leaf, from a row of key data; and the number that is all there is to it."""
    words = jax.eval_shape(lambda: jax.random.key_data(jax.random.key(0, impl=implementation)))
    row = jax.ShapeDtypeStruct(words.shape, words.dtype, sharding=place)
    jaxpr = jax.jit(_sampler(spec, implementation, is_outermost=True)).trace(row).jaxpr
    # A graph drops what no result needs, and so the effects of a custom initializer.
    is_fast = (
        not jaxpr.effects
        and may_use_fast_bits(jaxpr.eqns)
        and shards_are_wide(spec.shape, spec.sharding)
    )
    function = jex.jaxpr_as_fun(jaxpr)
    if is_fast:
        graph = graph_of(jaxpr, opens=lambda equation: None, has_bodies=lambda equation: False)
        function = function_of(graph, fast_key)
    program = Program(
        (spec, implementation, place),
        function,
        (row,),
        None if spec.sharding is None else [spec.sharding],
        is_fast,
    )
    constant = None
    if not spec.initializer.random:
        slicing = cut(graph_of_init(jaxpr))
        constant = slicing.constant(slicing.slices[0]) if slicing.slices else None
    return program, constant


def _drawing_over(program: Program, old: jax.ShapeDtypeStruct) -> Program:
    """The program with an array before its arguments whose memory its result takes over."""
    return dataclasses.replace(
        program,
        identity=(program.identity, "drawn over"),
        function=lambda old, *arguments: program.function(*arguments),
        arguments=(old, *program.arguments),
        donates=(0,),
    )


def _sampler(
    spec: LeafSpec, implementation: Any, *, is_outermost: bool
) -> Callable[[Any], jax.Array]:
    """Key data of one leaf -> its array.

    Args:
        spec: what to draw.
        implementation: of the key.
        is_outermost: whether the caller compiles it with ``out_shardings`` of its own.
    """
    # With explicit axes the initializer itself must say where its result lives: there an outer jit
    # overrules the out_shardings of an inner one, and (jax 0.10) an annotation in the middle of the
    # arithmetic keeps XLA from merging two factors, which changes a quarter of all entries by an
    # ulp. Elsewhere it must not: a call with shardings of its own hides its bits from `FastBits`.
    explicit = AxisType.Explicit in jax.sharding.get_abstract_mesh().axis_types
    placement = spec.sharding if spec.is_on_mesh and (explicit or not is_outermost) else None

    def sample(row: Any) -> jax.Array:
        key = jax.random.wrap_key_data(row, impl=implementation)
        return spec.initializer(key, spec.shape, spec.dtype, placement)

    return sample


def _draw_in_trace(
    specs: Sequence[LeafSpec], data: jax.Array, implementation: Any
) -> list[jax.Array]:
    groups: dict[LeafSpec, list[int]] = {}
    for index, spec in enumerate(specs):
        groups.setdefault(spec, []).append(index)
    arrays: dict[int, jax.Array] = {}
    for spec, members in groups.items():
        # Constants are cheaper to write out than to slice.
        is_random = spec.initializer.random
        chunks = in_loops(members, spec.nbytes) if is_random else [[n] for n in members]
        for chunk in chunks:
            rows = data[np.array(chunk)]
            made = _loop_program(spec, implementation, len(chunk))(rows)
            arrays.update(zip(chunk, made, strict=True))
    return [arrays[index] for index in range(len(specs))]


@functools.lru_cache(maxsize=1024)
def _loop_program(
    spec: LeafSpec, implementation: Any, count: int
) -> Callable[[Any], list[jax.Array]]:
    """Key data of ``count`` equal leaves -> their arrays, inside another trace.

    A loop and not ``vmap``: its body is the program of one leaf, so its bits are those of one leaf
    even where vmap would change them (QR; the rbg implementations, which draw a whole batch from
    the first key), and XLA:CPU compiles and runs it faster.
    """
    sample = _sampler(spec, implementation, is_outermost=False)
    # Under the user's own vmap (an ensemble) the same holds for the batch of root keys.
    if not (spec.initializer.elementwise and implementation == "threefry2x32"):
        sample = sequential_vmap(sample)

    def sample_all(rows: Any) -> list[jax.Array]:
        if count == 1:
            return [sample(rows[0])]
        stack = jax.lax.map(sample, rows)
        return [stack[index] for index in range(count)]

    return jax.jit(sample_all, out_shardings=None if spec.is_on_mesh else spec.sharding)
