"""Where leaves go: what ``jax.jit`` would decide for the whole function, said for each slice.

One program lives on one set of devices. Cut into many, each slice must be told about the devices
that another slice, an argument or a constraint brings in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import AbstractMesh, NamedSharding, PartitionSpec, Sharding

from jaxinit.engine._threefry import is_wide
from jaxinit.jaxpr import every_equation, is_key

# A copy of this size takes as long as compiling a program that broadcasts a number: 25 milliseconds
# for every new shape.
_MAX_COPIED = 2**20
# So does copying as many small ones: 40 microseconds each, against 12 for calling a program.
_MAX_COPIES = 512


# From a tree of shapes to a tree of shardings, or a prefix of one.
ShardingFunction = Callable[[Any], Any]


class Placement(NamedTuple):
    """Where the programs of slices run.

    Attributes:
        rows: where values of the host are put before a call; None lets them follow the program.
        fill: where leaves go that nothing else places; None lets ``jax.jit`` decide.
        is_known: False where only the whole program can tell; then nothing is sliced.
    """

    rows: Sharding | None
    fill: Sharding | None
    is_known: bool


_ANYWHERE = Placement(None, None, True)
_UNKNOWN = Placement(None, None, False)


def decide(
    arguments: Sequence[Any], out_shardings: Sequence[Any], constraints: Sequence[Sharding]
) -> Placement:
    """Decides where slices run.

    Args:
        arguments: arrays that the leaves are made of.
        out_shardings: what the caller asks for, leaf by leaf; None where nothing is asked.
        constraints: shardings that appear inside the function.

    Returns:
        The placement.
    """
    committed = [s for s in map(commitment, arguments) if s is not None]
    asked = [s for s in out_shardings if s is not None]
    constraints = [s for s in constraints if not _is_abstract(s)]
    is_told = bool(asked or constraints)
    if not committed and not is_told:
        return _ANYWHERE
    if not is_told and all(len(s.device_set) == 1 for s in committed):
        same = all(s.device_set == committed[0].device_set for s in committed)
        return Placement(committed[0], None, True) if same else _UNKNOWN
    return _on_mesh(committed, asked, constraints)


def _on_mesh(
    committed: Sequence[Sharding], asked: Sequence[Any], constraints: Sequence[Sharding]
) -> Placement:
    # A mesh in the context answers for every program; PartitionSpecs are read on it.
    in_context = not jax.sharding.get_mesh().empty
    placed = [s for s in (*committed, *asked, *constraints) if not isinstance(s, PartitionSpec)]
    if not all(isinstance(s, NamedSharding) for s in placed):
        one_device = all(s.device_set == placed[0].device_set for s in placed)
        known = one_device and len(placed[0].device_set) == 1 and not committed
        return Placement(None, placed[0], True) if known else _UNKNOWN
    meshes = {s.mesh for s in placed if isinstance(s, NamedSharding)}
    if len(meshes) > 1 or (not meshes and not in_context):
        return _UNKNOWN
    everywhere = NamedSharding(meshes.pop(), PartitionSpec()) if meshes else None
    return Placement(everywhere if committed else None, None if in_context else everywhere, True)


def _is_abstract(sharding: Sharding) -> bool:
    # Explicit axes: the mesh is the one in the context.
    return isinstance(sharding, NamedSharding) and isinstance(sharding.mesh, AbstractMesh)


def on_mesh(sharding: Any) -> Any:
    """The sharding on the mesh in the context, where it is a mere spec or names an abstract mesh.

    Anything else comes back as it is, and so does everything where no mesh is in the context.
    """
    mesh = jax.sharding.get_mesh()
    if mesh.empty:
        return sharding
    if isinstance(sharding, PartitionSpec):
        return NamedSharding(mesh, sharding)
    return NamedSharding(mesh, sharding.spec) if _is_abstract(sharding) else sharding


def commitment(argument: Any) -> Sharding | None:
    """Where an argument insists on being, None when it goes wherever it is needed."""
    if isinstance(argument, jax.Array):
        return argument.sharding if argument.committed else None
    return getattr(argument, "sharding", None)


def is_sharding_function(out_shardings: Any) -> bool:
    """Whether ``out_shardings`` is a function of shapes, and not a tree that can be called."""
    return callable(out_shardings) and jax.tree_util.all_leaves([out_shardings])


def shardings_of(caller: str, out_shardings: ShardingFunction, abstract: Any) -> Any:
    """What a function of shapes says about a tree.

    Args:
        caller: public name that an error starts with.
        out_shardings: the function.
        abstract: tree of ``jax.ShapeDtypeStruct``.

    Returns:
        A tree like ``abstract``, or a prefix of it, of shardings and None.

    Raises:
        TypeError: when something else than shardings comes out.
        ValueError: when what comes out is no tree like ``abstract``, nor a prefix of one.
    """
    shardings = out_shardings(abstract)
    for leaf in jax.tree.leaves(shardings):
        if not isinstance(leaf, Sharding | PartitionSpec):
            raise TypeError(
                f"{caller} needs a function in out_shardings to return shardings, got {leaf!r} of "
                f"type {type(leaf).__name__} from {out_shardings!r}. Return NamedSharding("
                "mesh, PartitionSpec(...)) for each leaf, or None for no wish."
            )
    try:
        spread(shardings, abstract)
    except ValueError as error:
        raise ValueError(
            f"{caller} needs a function in out_shardings to return a tree like the one it is "
            f"given, got {jax.tree.structure(shardings)} from {out_shardings!r}. Use "
            f"jax.tree.map over its argument. {error}"
        ) from None
    return shardings


def spread(shardings: Any, tree: Any) -> list[Any]:
    """One sharding, or None, for each leaf of a tree, from a tree of them or a prefix of it."""
    if shardings is None:
        return [None] * len(jax.tree.leaves(tree))
    every = jax.tree.broadcast(shardings, tree, is_leaf=lambda leaf: leaf is None)
    return jax.tree.leaves(every, is_leaf=lambda leaf: leaf is None)


def shards_are_wide(shape: tuple[int, ...], sharding: Any) -> bool:
    """Whether each device draws a leaf in loops that are as long as fast bits need them."""
    sharding = on_mesh(sharding)
    if not isinstance(sharding, Sharding):
        return sharding is None
    return is_wide(sharding.shard_shape(shape))


def may_copy(nbytes: int, sharding: Any, count: int = 1) -> bool:
    """Whether the host may make arrays that are known beforehand, instead of a program.

    A mesh in the context places what ``jax.jit`` makes, not what is copied.

    Args:
        nbytes: bytes of each array.
        sharding: where it goes.
        count: how many there are of its kind.
    """
    return (
        nbytes <= _MAX_COPIED
        and count <= _MAX_COPIES
        and jax.sharding.get_mesh().empty
        and (sharding is None or (isinstance(sharding, Sharding) and not _is_abstract(sharding)))
    )


def put(values: Any, sharding: Sharding | None) -> Any:
    """Copies values to where they belong; each process to its own devices, without asking others.

    Where devices belong to several processes, ``jax.device_put`` compares values between them: a
    collective for each call, which fails where processes make their calls in another order.

    Args:
        values: a tree of arrays of the host, or of such as are committed nowhere; the same in every
            process.
        sharding: where to; None leaves it to JAX.

    Returns:
        The arrays there.
    """
    if sharding is None or sharding.is_fully_addressable:
        return jax.device_put(values, sharding)
    return jax.tree.map(lambda value: _put_shards(value, sharding), values)


def _put_shards(value: Any, sharding: Sharding) -> jax.Array:
    if isinstance(value, jax.Array) and is_key(value):
        words = _put_shards(jax.random.key_data(value), sharding)
        return jax.random.wrap_key_data(words, impl=jax.random.key_impl(value))
    array = np.asarray(value)
    return jax.make_array_from_callback(
        array.shape, sharding, lambda index: array[index], dtype=array.dtype
    )


def constraints_in(equations: Iterable[Any]) -> list[Sharding]:
    """Shardings that equations, or anything inside them, speak of."""
    return [
        value
        for equation in every_equation(equations)
        for value in equation.params.values()
        if isinstance(value, Sharding)
    ]
