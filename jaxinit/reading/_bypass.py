"""Low-rank bypasses: a product of two maps beside one map of the same input, as in LoRA.

``x W + (x A) B`` is one linear map of ``x`` whose kernel is ``W + A B``. Where the inner width is
smaller than both ends the product runs beside ``W`` and makes the model no deeper.
"""

from __future__ import annotations

from typing import NamedTuple

from jaxinit.reading._families import Families, Origin, State

_THROUGH = ("affine", "exit", "map")


class Bypass(NamedTuple):
    """A sum of a map and a low-rank product.

    Attributes:
        main: the side of the sum that makes the model deeper.
        kernel: output of the map on that side.
        inner: output of the first factor.
        outer: output of the second factor.
    """

    main: State
    kernel: Origin
    inner: Origin
    outer: Origin


def bypass_of(added: Origin, known: dict[int, Bypass], found: Families) -> Bypass | None:
    """Whether a sum adds a low-rank product to a map of the same input.

    Args:
        added: the sum.
        known: the bypasses of earlier sums, by the index of the sum: several may add up.
        found: the families so far.
    """
    if added.kind != "sum" or len(added.parents) != 2:
        return None
    first, second = added.parents
    for main, low in ((first, second), (second, first)):
        kernel, outer = _map_of(main, known), _map_of(low, {})
        inner = None if outer is None else _map_of(outer.parents[0], {})
        if kernel is None or outer is None or inner is None or kernel is outer:
            continue
        source, wanted = inner.parents[0], kernel.parents[0]
        if (source.origin.index, source.value) != (wanted.origin.index, wanted.value):
            continue
        rank, ends = found.features[inner.index], (source.origin.index, outer.index)
        if rank < min(found.features[end] for end in ends):
            return Bypass(main, kernel, inner, outer)
    return None


def _map_of(state: State, known: dict[int, Bypass]) -> Origin | None:
    """The map that a value is the output of, scaled and shifted at most."""
    while state.linear and state.is_elementwise and not state.level:
        at = state.origin
        if at.counts:
            return at if len(at.parents) == 1 else None
        if at.index in known:
            return known[at.index].kernel
        if at.kind not in _THROUGH or len(at.parents) != 1:
            return None
        state = at.parents[0]
    return None
