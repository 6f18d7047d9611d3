"""The rules: what each primitive makes of fields, one line per primitive.

To teach the prediction a primitive, write a function ``(world, node, operands, avals) -> results``
and name it in `RULES`. What no rule is for is lost: the interval from 0 to infinity, until a
normalisation makes it known again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxinit.jaxpr._graph import Node
from jaxinit.signal import _tables as tables
from jaxinit.signal._contractions import contract
from jaxinit.signal._elementwise import (
    PRIMITIVES,
    Operand,
    elementwise,
    features_of,
)
from jaxinit.signal._fields import Field, Known, World
from jaxinit.signal._links import Link, both
from jaxinit.signal._movement import (
    broadcast,
    broadcast_in_dim,
    mixture,
    permuted,
    reshape,
    squeeze,
    transpose,
)
from jaxinit.signal._slices import cut, gather, part, place_of, remember, split
from jaxinit.signal._statistics import cumulative_sum, largest, reduce_sum

Rule = Callable[[World, Node, Sequence[Any], Sequence[Any]], list[Operand]]

# Entries of a known array that is worth computing, such as a mask of 4,096 positions.
_MOST_KNOWN = 2**24


def apply_rule(
    world: World, node: Node, operands: Sequence[Operand], avals: Sequence[Any]
) -> list[Operand]:
    """Results of a node without bodies.

    Args:
        world: where fields are made.
        node: the equation.
        operands: what it reads.
        avals: shape and dtype of its results.
    """
    if not any(isinstance(x, Field) for x in operands):
        return _known(world, node, operands, avals)
    rule = _elementwise if node.primitive in PRIMITIVES else RULES.get(node.primitive)
    if rule is None or (rule in OF_FIRST and not isinstance(operands[0], Field)):
        return _unknown(world, node, operands, avals)
    results = rule(world, node, operands, avals)
    remember(world, node, operands, avals, results, apply_rule)
    return results


def _elementwise(world: World, node: Node, operands: Any, avals: Any) -> list[Operand]:
    return [elementwise(world, node, operands, avals[0])]


def _known(
    world: World, node: Node, operands: Sequence[Operand], avals: Sequence[Any]
) -> list[Operand]:
    """Results that depend on no parameter and no real number of the data."""
    known = [x for x in operands if isinstance(x, Known)]
    if node.primitive == "bitcast_convert_type" and jnp.issubdtype(avals[0].dtype, np.floating):
        # Random bits as a float between 1 and 2, which is how JAX draws uniform numbers.
        table, source = tables.uniform() + 1.0, world.source(0.0)
        shape = avals[0].shape
        # What they decide keeps the axes of what it is decided for.
        return [world.field(table, (source,), shape, [False] * len(shape))]
    computable = all(x.array is not None for x in known) and all(
        math.prod(a.shape) <= _MOST_KNOWN and not _is_key(a) for a in avals
    )
    if (
        not computable
        or node.equation is None
        or node.bodies
        or node.primitive.startswith("random")
    ):
        return _unknown(world, node, operands, avals)
    arrays = [np.asarray(x.array) for x in known]
    if node.primitive == "broadcast_in_dim":
        return [Known(broadcast(arrays[0], node.params), avals[0].shape)]
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        primitive = node.equation.primitive
        found = primitive.bind(*map(jnp.asarray, arrays), **node.equation.params)
    found = found if primitive.multiple_results else [found]
    return [Known(np.asarray(x), tuple(x.shape)) for x in found]


def _is_claim(node: Node) -> bool:
    """Whether booleans become floats."""
    if node.equation is None:
        return False
    old, new = node.equation.invars[0].aval, node.equation.outvars[0].aval
    return old.dtype == np.bool_ and jnp.issubdtype(new.dtype, np.floating)


def _is_key(aval: Any) -> bool:
    return jnp.issubdtype(aval.dtype, jax.dtypes.prng_key)


def _unknown(
    world: World, node: Node, operands: Sequence[Operand], avals: Sequence[Any]
) -> list[Operand]:
    if node.primitive == "convert_element_type" and _is_claim(node):
        # A claim that data decide is 0 or 1, nobody knows how often.
        shape = avals[0].shape
        return [world.field(np.array([0.0, 1.0]), (), shape, [False] * len(shape))]
    fields = [x for x in operands if isinstance(x, Field)]
    why = f"no rule for {node.primitive}"
    return [
        world.lost(why, a.shape, fields)
        if not _is_key(a) and jnp.issubdtype(a.dtype, np.inexact)
        else Known(None, a.shape)
        for a in avals
    ]


def _concatenate(world: World, node: Node, operands: Any, avals: Any) -> list[Operand]:
    if any(isinstance(x, Known) and x.array is None for x in operands):
        return _unknown(world, node, operands, avals)
    fields = [x for x in operands if isinstance(x, Field)]
    along = range(len(avals[0].shape))
    features = [any(x.features[i] and x.shape[i] > 1 for x in fields) for i in along]
    axis = node.params["dimension"]
    return [mixture(world, operands, avals[0].shape, features, axis)]


def _pad(world: World, node: Node, operands: Any, avals: Any) -> list[Operand]:
    field = operands[0]
    total = math.prod(avals[0].shape)
    inside = min(field.size, total)
    sizes = [inside, total - inside]
    return [mixture(world, operands, avals[0].shape, field.features, sizes=sizes)]


def _update(world: World, node: Node, operands: Any, avals: Any) -> list[Operand]:
    whole, part = operands[:2]
    if any(isinstance(x, Known) and x.array is None for x in (whole, part)):
        return _unknown(world, node, operands, avals)
    inside, total = math.prod(part.shape), math.prod(whole.shape)
    fields = [x for x in (whole, part) if isinstance(x, Field)]
    sizes = [total - inside, inside]
    features = features_of(fields, whole.shape)
    found = mixture(world, [whole, part], whole.shape, features, sizes=sizes)
    place = place_of(operands[2:], whole.shape, part.shape)
    cut_along = [i for i, n in enumerate(part.shape) if n != whole.shape[i]]
    if len(cut_along) == 1 and place[cut_along[0]] is not None:
        # Rounds of a loop write their results one after the other.
        axis = cut_along[0]
        start, length = place[axis], part.shape[axis]
        ends = [(0, start), (start + length, whole.shape[axis])]
        around = [cut(world, whole, axis, *end) for end in ends if end[0] < end[1]]
        if all(x is not None for x in around):
            pieces = [*around[: bool(start)], part, *around[bool(start) :]]
            found = mixture(world, pieces, whole.shape, features, axis)
    return [found]


def _reduce_sum(world: World, node: Node, operands: Any, avals: Any) -> list[Operand]:
    return [reduce_sum(world, operands[0], node.params["axes"], avals[0].shape)]


def _reduce_max(world: World, node: Node, operands: Any, avals: Any) -> list[Operand]:
    field, shape, axes = world.compressed(operands[0]), avals[0].shape, node.params["axes"]
    features = [flag for i, flag in enumerate(field.features) if i not in axes]
    if not field.sources:
        return [world.view(field, shape, features)]
    count = max(field.size // max(math.prod(shape), 1), 1)
    table_of = (
        field
        if node.primitive == "reduce_max"
        else world.again(
            field, -field.table[:, ::-1], [Link(field.number, slope=-np.ones(tables.ROWS))]
        )
    )
    found = largest(world, table_of, count, shape, features)
    if node.primitive == "reduce_min":
        found = world.again(found, -found.table[:, ::-1], [Link(found.number, slope=-np.ones(2))])
    return [found]


def _window(world: World, node: Node, operands: Any, avals: Any) -> list[Operand]:
    """Pooling: the largest of a window, or its sum."""
    field, shape = world.compressed(operands[0]), avals[0].shape
    count = math.prod(node.params["window_dimensions"])
    if node.primitive == "reduce_window_max":
        return [largest(world, field, count, shape, field.features)] if field.sources else [field]
    crossed = world.cross(field)
    second = count * field.second + count * (count - 1) * crossed
    mean = count * field.mean
    gain = count * math.prod(shape) / max(field.size, 1)
    variance = np.maximum(second - mean**2, 0.0)
    above = count**2 * (crossed - field.mean**2) / np.where(variance > 0, variance, 1.0)
    return [
        world.normal(
            mean,
            variance,
            shape,
            field.features,
            [Link(field.number, gain=both(gain))],
            np.clip(above, 0.0, 1.0),
            world.all_roots(field),
            lost=field.lost,
        )
    ]


def _cumsum(world: World, node: Node, operands: Any, avals: Any) -> list[Operand]:
    return [cumulative_sum(world, world.compressed(operands[0]), node.params["axis"])]


def _contract(world: World, node: Node, operands: Any, avals: Any) -> list[Operand]:
    return [contract(world, node, operands, avals[0])]


RULES: dict[str, Rule] = {
    "broadcast_in_dim": broadcast_in_dim,
    "concatenate": _concatenate,
    "conv_general_dilated": _contract,
    "cumsum": _cumsum,
    "dot_general": _contract,
    "dynamic_slice": part,
    "dynamic_update_slice": _update,
    "expand_dims": reshape,
    "gather": gather,
    "pad": _pad,
    "reduce_max": _reduce_max,
    "reduce_min": _reduce_max,
    "reduce_sum": _reduce_sum,
    "reduce_window_max": _window,
    "reduce_window_sum": _window,
    "reshape": reshape,
    "rev": permuted,
    "slice": part,
    "split": split,
    "squeeze": squeeze,
    "transpose": transpose,
}

# Rules that need a field as their first operand.
OF_FIRST = frozenset([gather, part, permuted, split, _pad])
