"""Ways back on the tape: what becomes of a gradient between a value and what it was made from."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxinit.signal import _tables as tables


@dataclasses.dataclass(frozen=True, eq=False)
class Link:
    """One way back on the tape.

    Attributes:
        to: number of the field that the gradient goes to.
        slope: derivative, a table that broadcasts to that of the field it comes from, or of the
            joint field where ``places`` says how; None where the way is ``gain``.
        places: for a field that was compressed from two sources to one, the node of each entry of
            the joint table.
        gain: second moment of the gradient there over that here, a pair (low, high) for each row;
            the gradient there is independent of the gradient here.
        pooled: as ``gain``, for what the gradients of different positions have in common, where
            positions are mixed.
        shares: whether all positions get the same gradient, as those of a mean over them do.
        profile: of a slice along positions, how much of the gradient each position gets, 1 in mean.
        stacked: whether it leads to one of several values that lie side by side along positions.
        axes: for each axis of the field that it leads to, the axis here, None where there is none;
            all are the same by default, if the shapes are.
        copied: axes here along which one entry there was copied: its gradients add up.
        removed: where a mean over positions is subtracted, which share of the sum of independent
            gradients over these positions goes with it, and their axes, None where unknown.
        of: the sources that ``slope`` is a table of, where these are not those of the field.
    """

    to: int
    slope: np.ndarray | None = None
    places: np.ndarray | None = None
    gain: np.ndarray | None = None
    pooled: np.ndarray | None = None
    shares: bool = False
    profile: np.ndarray | None = None
    stacked: bool = False
    axes: tuple[int | None, ...] | None = None
    copied: tuple[int, ...] = ()
    removed: tuple[float, tuple[int, ...] | None] | None = None
    of: tuple[int, ...] | None = None


def axes_kept(old: Sequence[int], new: Sequence[int]) -> tuple[int | None, ...]:
    """For each axis of an old shape the axis of the new one that holds the same entries, or None.

    Args:
        old: shape before a reshape.
        new: shape after it.
    """
    found: list[int | None] = []
    for axis, length in enumerate(old):
        before = math.prod(old[:axis])
        same = (j for j, n in enumerate(new) if n == length and math.prod(new[:j]) == before)
        found.append(next(same, None))
    return tuple(found)


def both(gain: Any) -> np.ndarray:
    """A gain of a link: rows x (low, high)."""
    array = np.asarray(gain, dtype=float)
    if array.ndim == 1:
        array = array[:, None]
    return np.broadcast_to(array, (tables.ROWS, 2))
