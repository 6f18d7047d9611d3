"""Arrays that ``plan.init`` is given: those that it keeps, and those that it draws over."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.core import Tracer

from jaxinit._arguments import listing, suggestion
from jaxinit._types import AnyArray, PyTree
from jaxinit.initializers import Own, own
from jaxinit.planning._leaves import PlannedLeaf
from jaxinit.planning._paths import ParamSpec, flatten


def kept_values(planned: Mapping[str, PlannedLeaf], keep: PyTree) -> dict[str, AnyArray]:
    """The arrays of ``keep`` by path, checked against the plan.

    Args:
        planned: the leaves of the plan by path.
        keep: a tree of arrays, matched by canonical path; None gives none.

    Raises:
        TypeError: when a leaf is no array.
        ValueError: when a leaf is not in the plan, or has another shape or dtype.
    """
    kept = _planned_values("keep", planned, keep)
    for path, value in kept.items():
        if not isinstance(value, jax.Array | np.ndarray):
            raise TypeError(
                f"plan.init needs arrays in keep=, got {value!r} of type {type(value).__name__} at "
                f"{path!r}. Convert it with jnp.asarray, or leave it out."
            )
    if wrong := _misfits(planned, kept):
        raise ValueError(
            "plan.init needs arrays in keep= of the planned shape and dtype, got "
            f"{listing(wrong)}. Convert them, or leave them out to have them drawn."
        )
    return kept


def donated_values(planned: Mapping[str, PlannedLeaf], donate: PyTree) -> dict[str, jax.Array]:
    """The arrays of ``donate`` by path, checked against the plan.

    Args:
        planned: the leaves of the plan by path.
        donate: a tree of arrays, matched by canonical path; None gives none.

    Raises:
        TypeError: when a leaf is something else than an array of JAX.
        ValueError: when a leaf is not in the plan, is deleted, or has another shape or dtype.
    """
    donated = _planned_values("donate", planned, donate)
    for path, value in donated.items():
        if isinstance(value, Tracer):
            refuse_trace()
        if not isinstance(value, jax.Array):
            raise TypeError(
                f"plan.init needs arrays of JAX in donate=, got {type(value).__name__} at "
                f"{path!r}, whose memory is not JAX's to reuse. Convert it with jnp.asarray, or "
                "leave donate= out."
            )
    if deleted := [repr(path) for path, value in donated.items() if value.is_deleted()]:
        raise ValueError(
            f"plan.init needs arrays in donate= that are still there, got deleted ones at "
            f"{listing(deleted)}. They were donated before, perhaps to a training step: pass what "
            "it returned."
        )
    if wrong := _misfits(planned, donated):
        raise ValueError(
            f"plan.init needs arrays in donate= of the planned shape and dtype, got "
            f"{listing(wrong)}. Only equal ones can be drawn over: leave donate= out, and delete "
            "the old tree first."
        )
    return donated


def kept_own(
    wanted: Sequence[PlannedLeaf], given: Collection[str], named: bool
) -> list[PlannedLeaf]:
    """The leaves to draw without those that the model draws itself and that are given.

    Args:
        wanted: the leaves to draw.
        given: paths of arrays that are there.
        named: whether the leaves to draw were named in ``only=``, so that what is known of the
            model's own draw replaces an array.

    Raises:
        ValueError: when a leaf is neither given, nor is it known how the model draws it.
    """
    unknown = {leaf.path for leaf in wanted if leaf.initializer == own}
    if missing := [f"{path!r}" for path in unknown.difference(given)]:
        raise ValueError(
            f"plan.init needs an array, or the model, for every leaf that the model draws itself "
            f"(rule own), got neither for {listing(sorted(missing))}. Pass what the model draws, "
            "as in plan.init(key, donate=model.init(key, x)), or donate=nnx.state(make()): these "
            "leaves are kept, the others drawn over. In a trace, pass these alone in keep=. Or "
            "make the plan from jaxinit.flax.linen_tree or nnx_tree."
        )
    kept = unknown if named else {leaf.path for leaf in wanted if isinstance(leaf.initializer, Own)}
    return [leaf for leaf in wanted if leaf.path not in kept.intersection(given)]


def _planned_values(
    argument: str, planned: Mapping[str, PlannedLeaf], tree: PyTree
) -> dict[str, Any]:
    """What a tree holds for leaves of the plan, by path; shapes stand for nothing."""
    flat = flatten(f"plan.init, in {argument}=,", tree)
    if unknown := [path for path in flat.paths if path not in planned]:
        named = [f"{path!r}{suggestion(path, planned)}" for path in unknown[:10]]
        raise ValueError(
            f"plan.init needs {argument}= to hold leaves of the plan, got also "
            f"{listing(named, total=len(unknown))}. Remove them or correct the paths."
        )
    shapes = jax.ShapeDtypeStruct | ParamSpec
    return {path: value for path, value in flat.items() if not isinstance(value, shapes)}


def _misfits(planned: Mapping[str, PlannedLeaf], values: Mapping[str, AnyArray]) -> list[str]:
    """Arrays that have another shape or dtype than the plan, as errors list them."""
    return [
        f"{path!r} of shape {value.shape} and {value.dtype} for {planned[path].shape} and "
        f"{planned[path].dtype}"
        for path, value in values.items()
        if (value.shape, value.dtype) != (planned[path].shape, planned[path].dtype)
    ]


def refuse_trace() -> None:
    """Raises: inside a trace nothing is there to be drawn over."""
    raise ValueError(
        "plan.init needs arrays that are there to draw over, got donate= inside a trace of JAX "
        "(jax.jit, jax.vmap, jax.eval_shape). Leave it out there, and let the outer function "
        "donate: jax.jit(function, donate_argnums=..., keep_unused=True)."
    )


def drawn_over(
    wanted: Sequence[PlannedLeaf],
    donated: Mapping[str, jax.Array],
    untouched: Mapping[str, AnyArray],
) -> list[jax.Array]:
    """The array that each drawn leaf takes the place of.

    Args:
        wanted: the leaves that are drawn.
        donated: arrays by path, as `donated_values` returns them.
        untouched: what is returned as it is, by path.

    Raises:
        ValueError: when a drawn leaf has no array, or shares one with another leaf.
    """
    if missing := [repr(leaf.path) for leaf in wanted if leaf.path not in donated]:
        raise ValueError(
            f"plan.init needs an array in donate= for every leaf that it draws, got none for "
            f"{listing(missing)}. Add them, name the others in only=, or leave donate= out."
        )
    owners: dict[Any, str] = {}
    for path, value in untouched.items():
        if isinstance(value, jax.Array) and not isinstance(value, Tracer):
            owners.update(dict.fromkeys(_memory(value), path))
    for leaf in wanted:
        for place in _memory(donated[leaf.path]):
            if place in owners:
                _refuse_shared(leaf.path, owners[place], owners[place] in untouched)
            owners[place] = leaf.path
    return [donated[leaf.path] for leaf in wanted]


def _refuse_shared(path: str, other: str, is_untouched: bool) -> None:
    if is_untouched:
        raise ValueError(
            f"plan.init needs arrays in donate= that nothing else holds, got one for {path!r} that "
            f"is to be returned untouched as {other!r}. Copy one of them with jnp.copy, or draw "
            "both."
        )
    raise ValueError(
        f"plan.init needs an array of its own in donate= for every leaf that it draws, got one for "
        f"{other!r} and {path!r}. Copy one of them with jnp.copy, or leave donate= out."
    )


def _memory(array: jax.Array) -> Iterable[Any]:
    """What tells the memory of an array from that of others: device and address of each shard."""
    if array.nbytes == 0:
        return []
    shards = [array]
    if len(array.sharding.device_set) > 1:
        shards = [shard.data for shard in array.addressable_shards]
    try:
        return [(shard.device, shard.unsafe_buffer_pointer()) for shard in shards]
    except (jax.errors.JaxRuntimeError, NotImplementedError):
        # Some backends tell no addresses. There, only the same object is known to be the same.
        return [id(array)]
