"""A list of draws as the few kinds that it is made of, with the draws that each of them serves."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec, Sharding

from jaxinit.engine._compile import Kept, Kind, settings
from jaxinit.engine._evaluate import run_jaxpr
from jaxinit.engine._kinds import constant_of, may_hasten
from jaxinit.engine._placement import may_copy, on_mesh, shards_are_wide
from jaxinit.engine._program import flatten
from jaxinit.engine._slices import cut
from jaxinit.engine._threefry import fast_compiler_options, fast_key
from jaxinit.initializers import Initializer


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

    @property
    def is_on_mesh(self) -> bool:
        """Whether it is to be laid over a mesh."""
        return isinstance(self.sharding, NamedSharding | PartitionSpec)


class Lot(NamedTuple):
    """Draws that differ in their key alone.

    Attributes:
        draw: what they have in common.
        kind: what is compiled for them.
        constant: the number that fills them, where the host does so and nothing is compiled.
        place: where a committed key puts them; None where a sharding, or nothing, does.
        reuses: whether they are drawn into arrays that are there already.
        members: their positions in the list.
    """

    draw: Draw
    kind: Kind
    constant: np.generic | None
    place: Sharding | None
    reuses: bool
    members: list[int]

    @property
    def sharding(self) -> Any:
        """Where the arrays go, None where nothing says so."""
        return self.place if self.draw.sharding is None else self.draw.sharding


def prepare(
    draws: Sequence[Draw],
    implementation: Any,
    place: Sharding | None = None,
    into: Sequence[jax.Array] | None = None,
) -> list[Lot]:
    """Finds the kinds of a list of draws; compiles nothing.

    Args:
        draws: what to draw.
        implementation: of the keys, as ``jax.random.key_impl`` gives it.
        place: where the keys are committed to; None when they go anywhere.
        into: for each draw an array of its shape and dtype whose memory it takes over.

    Returns:
        The lots, in the order of their first members.
    """
    context = settings()
    lots: dict[tuple[Draw, Sharding | None, bool], list[int]] = {}
    # A plan hands over the same object for equal leaves: hashing it once saves a third of the time
    # that a small leaf takes.
    known: dict[tuple[int, bool], list[int]] = {}
    for index, d in enumerate(draws):
        follows = place if d.sharding is None else None
        reuses = into is not None and _fits(into[index], d.sharding, follows)
        members = known.get((id(d), reuses))
        if members is None:
            members = known[id(d), reuses] = lots.setdefault((d, follows, reuses), [])
        members.append(index)
    _recipes.make_room(len(lots))
    return [
        _lot(d, implementation, follows, reuses, members, context)
        for (d, follows, reuses), members in lots.items()
    ]


def _fits(old: jax.Array, sharding: Any, place: Sharding | None) -> bool:
    """Whether an array lies where its successor will."""
    wanted = place if sharding is None else on_mesh(sharding)
    if wanted is None:
        return not old.committed
    # What is committed to one place is an error anywhere else, and what is not is moved.
    return old.committed and old.sharding.is_equivalent_to(wanted, old.ndim)


def sampler(d: Draw, implementation: Any, *, is_outermost: bool) -> Callable[[Any], jax.Array]:
    """Key data of one leaf -> its array.

    Args:
        d: what to draw.
        implementation: of the key.
        is_outermost: whether the caller compiles it with ``out_shardings`` of its own.
    """
    # With explicit axes the initializer itself must say where its result lives: there an outer jit
    # overrules the out_shardings of an inner one, and (jax 0.10) an annotation in the middle of the
    # arithmetic keeps XLA from merging two factors, which changes a quarter of all entries by an
    # ulp. Elsewhere it must not: a call with shardings of its own hides its bits from `run_jaxpr`.
    explicit = AxisType.Explicit in jax.sharding.get_abstract_mesh().axis_types
    placement = d.sharding if d.is_on_mesh and (explicit or not is_outermost) else None

    def sample(row: Any) -> jax.Array:
        key = jax.random.wrap_key_data(row, impl=implementation)
        return d.initializer(key, d.shape, d.dtype, placement)

    return sample


class _Recipe(NamedTuple):
    """A kind that takes a row of key data, and the number that is all there is to it."""

    kind: Kind
    constant: np.generic | None


# Kept, so that a second init does not trace; what kinds compile to is kept with all others.
_recipes: Kept[_Recipe] = Kept()


def _lot(
    d: Draw,
    implementation: Any,
    place: Sharding | None,
    reuses: bool,
    members: list[int],
    context: Hashable,
) -> Lot:
    key = (d, implementation, place, context)
    recipe = _recipes.get(key)
    if recipe is None:
        recipe = _recipe(d, implementation, place)
        _recipes.put(key, recipe)
    kind, constant = recipe
    if not may_copy(d.nbytes, d.sharding, len(members)):
        constant = None
    if constant is not None:
        reuses = False
    lot = Lot(d, kind, constant, place, reuses, members)
    if not reuses:
        return lot
    old = jax.ShapeDtypeStruct(d.shape, d.dtype, sharding=lot.sharding)
    return lot._replace(kind=_drawing_over(kind, old))


def _recipe(d: Draw, implementation: Any, place: Sharding | None) -> _Recipe:
    words = jax.eval_shape(lambda: jax.random.key_data(jax.random.key(0, impl=implementation)))
    row = jax.ShapeDtypeStruct(words.shape, words.dtype, sharding=place)
    jaxpr = jax.jit(sampler(d, implementation, is_outermost=True)).trace(row).jaxpr
    is_fast = may_hasten(jaxpr.eqns) and shards_are_wide(d.shape, d.sharding)
    kind = Kind(
        (d, implementation, place),
        lambda row: run_jaxpr(jaxpr, [row], fast_key if is_fast else None),
        (row,),
        None if d.sharding is None else [d.sharding],
        tuple(sorted(fast_compiler_options().items())) if is_fast else (),
    )
    constant = None
    if not d.initializer.random:
        program = flatten(jaxpr)
        slices = cut(program).slices
        constant = constant_of(program, slices[0]) if slices else None
    return _Recipe(kind, constant)


def _drawing_over(kind: Kind, old: jax.ShapeDtypeStruct) -> Kind:
    """The kind with an array before its arguments whose memory its result takes over."""
    return dataclasses.replace(
        kind,
        identity=(kind.identity, "drawn over"),
        function=lambda old, *arguments: kind.function(*arguments),
        arguments=(old, *kind.arguments),
        donates=(0,),
    )
