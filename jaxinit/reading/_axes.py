"""Which axes of a value hold its features, followed through the equations that move axes.

Layer, group and batch normalisation differ in nothing but the axes that their statistics sum over,
so telling them apart takes knowing where the features are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jaxinit.jaxpr._graph import Node


def features_after(
    node: Node, position: int, features: tuple[int, ...], avals: Sequence[Any]
) -> tuple[int, ...]:
    """Axes of the result of a move or reduction that hold features.

    Args:
        node: the equation.
        position: which of its inputs the features are of.
        features: axes of that input that hold features.
        avals: shapes by number.

    Returns:
        Axes of the first result, in order; empty when no axis holds features any more.
    """
    name, params = node.primitive, node.params
    before = avals[node.inputs[position]].shape
    after = avals[node.outputs[0]].shape
    if name == "transpose":
        return tuple(i for i, axis in enumerate(params["permutation"]) if axis in features)
    if name == "broadcast_in_dim":
        kept = params["broadcast_dimensions"]
        return tuple(axis for i, axis in enumerate(kept) if i in features)
    if name == "reshape":
        return _reshaped(before, after, features)
    gone = set(params.get("axes", params.get("dimensions", ())) or ())
    if name == "squeeze" or (name.startswith(("reduce_", "arg")) and len(after) < len(before)):
        kept = [axis for axis in range(len(before)) if axis not in gone]
        return tuple(i for i, axis in enumerate(kept) if axis in features)
    shift = len(after) - len(before)
    if name in ("take", "stack"):
        return tuple(i + shift for i in features if i + shift >= 0)
    return features if not shift else default_features(after)


def default_features(shape: Sequence[int]) -> tuple[int, ...]:
    """The last axis: where features are when nothing better is known."""
    return (len(shape) - 1,) if len(shape) else ()


def _reshaped(
    before: Sequence[int], after: Sequence[int], features: tuple[int, ...]
) -> tuple[int, ...]:
    """Axes of the runs of equal size that hold a feature axis."""
    found: list[int] = []
    i = j = 0
    while i < len(before) or j < len(after):
        first, second = i, j
        left = right = 1
        while True:
            if left == right and (i > first or j > second) and left * right > 1:
                break
            if left <= right and i < len(before):
                left, i = left * before[i], i + 1
            elif j < len(after):
                right, j = right * after[j], j + 1
            elif i < len(before):
                left, i = left * before[i], i + 1
            else:
                break
        if any(first <= axis < i and before[axis] != 1 for axis in features):
            found += [axis for axis in range(second, j) if after[axis] != 1]
    return tuple(found)


def features_of_contraction(node: Node, position: int | None, avals: Sequence[Any]) -> tuple:
    """Axes of a contraction's result that the operand at `position` brings, as features.

    Args:
        node: a ``dot_general`` or a convolution.
        position: of the kernel among its inputs; None where no operand is one.
        avals: shapes by number.
    """
    shape = avals[node.outputs[0]].shape
    if node.primitive == "conv_general_dilated":
        return (node.params["dimension_numbers"].out_spec[1],)
    if node.primitive != "dot_general" or position is None:
        return default_features(shape)
    (contracted, batched) = node.params["dimension_numbers"]
    ranks = [len(_shape(atom, avals)) for atom in node.inputs]
    free = [ranks[i] - len(contracted[i]) - len(batched[i]) for i in (0, 1)]
    start = len(batched[0]) + (free[0] if position else 0)
    return tuple(range(start, start + free[position])) or default_features(shape)


def _shape(atom: Any, avals: Sequence[Any]) -> tuple[int, ...]:
    return avals[atom].shape if isinstance(atom, int) else atom.aval.shape


def scope_of(axes: Sequence[int], shape: Sequence[int], features: tuple[int, ...]) -> str | None:
    """What statistics over some axes normalise: ``layer``, ``batch``, ``group`` or ``instance``.

    Axes of size one count on neither side.
    """
    summed = {axis for axis in axes if shape[axis] != 1}
    held = {axis for axis in features if shape[axis] != 1}
    others = {axis for axis in range(len(shape)) if shape[axis] != 1} - held
    if held and held <= summed:
        return "layer"
    if held & summed:
        return "group"
    if not summed:
        return None
    return "batch" if 0 in summed or others <= summed else "instance"
