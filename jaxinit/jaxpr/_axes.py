"""Where the axes of an array go: one account of reshape, transpose, squeeze, broadcast and others.

A reading asks which axes of a parameter a dimension still holds, a normalisation which axes are
features, a prediction which axes are independent units, a gradient which axis of its target one of
its own was. All of them are answered by `factors` (which entries of which axis does each axis of a
reshaped array walk along) and `sources` (which axes of the operand does each axis of the result
hold).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

from jaxinit.jaxpr._graph import Node

Shape: TypeAlias = Sequence[int]


class MixedAxesError(Exception):
    """A reshape after which an axis walks along a fraction of an axis that no split gives."""


class Factor(NamedTuple):
    """A part of an axis that an axis of the result walks along.

    Attributes:
        axis: the axis of the operand.
        size: entries along it.
        stride: distance along the axis between two neighbours.
    """

    axis: int
    size: int
    stride: int = 1


def factors(old: Shape, new: Shape) -> tuple[tuple[Factor, ...], ...]:
    """What each axis of a reshaped array walks along, major to minor.

    An axis of size one is held by an axis of size one at the same place, and by none elsewhere.

    Args:
        old: shape before.
        new: shape after, of as many entries.

    Raises:
        MixedAxesError: when an axis of the result walks along a fraction of an axis.

    Example:
        >>> factors((6, 4), (2, 12))[0]
        (Factor(axis=0, size=2, stride=3),)
    """
    rest = [Factor(axis, size) for axis, size in enumerate(old)][::-1]
    found = []
    for size in new:
        held, need = [], size
        if size == 1 and rest and rest[-1].size == 1:
            held.append(rest.pop())
        while need != 1:
            if not rest:
                raise MixedAxesError
            factor = rest.pop()
            if factor.size == 1:
                continue
            if need % factor.size == 0 and factor.size:
                held.append(factor)
                need //= factor.size
            elif factor.size and need and factor.size % need == 0:
                minor = factor.size // need
                held.append(Factor(factor.axis, need, factor.stride * minor))
                rest.append(Factor(factor.axis, minor, factor.stride))
                need = 1
            else:
                raise MixedAxesError
        found.append(tuple(held))
    if any(factor.size != 1 for factor in rest):
        raise MixedAxesError
    return tuple(found)


def _reshaped(old: Shape, new: Shape) -> list[tuple[int, ...]]:
    """Axes that each axis of a reshaped array holds; all of a run of axes where they are mixed."""
    found: list[tuple[int, ...]] = [()] * len(new)
    i = j = 0
    while i < len(old) and j < len(new):
        first, second = i, j
        left, right = old[i], new[j]
        i, j = i + 1, j + 1
        while left != right and (i < len(old) or j < len(new)):
            if (left < right and i < len(old)) or j >= len(new):
                left, i = left * old[i], i + 1
            else:
                right, j = right * new[j], j + 1
        for axis in range(second, j):
            found[axis] = tuple(range(first, i))
    return found


def sources(node: Node, old: Shape, new: Shape) -> list[tuple[int, ...]]:
    """For each axis of the result, the axes of the operand whose entries it holds.

    Args:
        node: an equation that rearranges, indexes or reduces. Of one whose operand has as many
            axes as the result (a slice, a concatenation, a cast) each axis stays what it is.
        old: shape of the operand.
        new: shape of the result.

    Returns:
        Axes of the operand, several where they were merged, none where an axis is new.
    """
    name, params = node.primitive, node.params
    if name == "transpose":
        return [(axis,) for axis in params["permutation"]]
    if name == "broadcast_in_dim":
        found: list[tuple[int, ...]] = [()] * len(new)
        for axis, place in enumerate(params["broadcast_dimensions"]):
            found[place] = (axis,)
        return found
    if name in ("reshape", "expand_dims"):
        return _reshaped(old, new)
    if name == "stack" and "axis" in params:  # of arrays; the node of `straighten` has no axis
        place = params["axis"]
        return [(axis - (axis > place),) if axis != place else () for axis in range(len(new))]
    gone: set[int] = set()
    if name == "unstack":
        gone = {params["axis"]}
    elif name == "squeeze":
        gone = {axis % len(old) for axis in params["dimensions"]}
    elif "axes" in params and len(new) < len(old):
        gone = set(params["axes"])
    if gone:
        return [(axis,) for axis in range(len(old)) if axis not in gone]
    # Axes that come or go otherwise do so in front: the entries of a scan, and its results.
    shift = len(old) - len(new)
    return [(axis + shift,) if axis + shift >= 0 else () for axis in range(len(new))]


def whole_axes(old: Shape, new: Shape) -> tuple[int | None, ...]:
    """For each axis before a reshape, the axis after it that holds just its entries, or None."""

    def places(shape: Shape) -> list[tuple[int, int]]:
        return [(math.prod(shape[:axis]), size) for axis, size in enumerate(shape)]

    after = places(new)
    return tuple(after.index(place) if place in after else None for place in places(old))
