"""Histograms made of characters: blocks, or plain ASCII where the output has nothing else."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

_EIGHTHS = " ▏▎▍▌▋▊▉"
_FULL = "█"


@dataclasses.dataclass(frozen=True)
class Histogram:
    """How often values fall between edges.

    Attributes:
        edges: one more than there are bins; equal when all values are.
        counts: entries per bin.
    """

    edges: tuple[float, ...]
    counts: tuple[int, ...]


def histogram(values: np.ndarray, bins: int | None = None) -> Histogram:
    """Counts real finite values in bins of equal width.

    Args:
        values: the values.
        bins: how many bins; None takes what Sturges' rule says, at most 15.

    Example:
        >>> histogram(np.array([0.0, 0.0, 1.0]), bins=2)
        Histogram(edges=(0.0, 0.5, 1.0), counts=(2, 1))
    """
    values = values.astype(np.float64).ravel()
    if not values.size:
        return Histogram((), ())
    low, high = values.min(), values.max()
    if low == high:
        return Histogram((float(low), float(high)), (values.size,))
    bins = bins or min(15, math.ceil(math.log2(values.size)) + 1)
    counts, edges = np.histogram(values, bins=bins, range=(low, high))
    return Histogram(tuple(edges.tolist()), tuple(counts.tolist()))


def draw_histogram(shown: Histogram, width: int, *, blocks: bool) -> list[str]:
    """Lines of a histogram: the middle of the bin, a bar, the share of the entries.

    Args:
        shown: the histogram.
        width: characters per line.
        blocks: whether the output can show block characters.

    Example:
        >>> for line in draw_histogram(Histogram((0.0, 0.5, 1.0), (2, 1)), 24, blocks=False):
        ...     print(line)
         0.25 ########## 66.67 %
         0.75 #####      33.33 %
    """
    if not shown.counts:
        return []
    pairs = zip(shown.edges[:-1], shown.edges[1:], strict=True)
    spread = shown.edges[-1] - shown.edges[0]
    middles = [_spell((low + high) / 2, spread) for low, high in pairs]
    shares = [f"{100 * count / sum(shown.counts):.2f} %" for count in shown.counts]
    label, share = max(map(len, middles)), max(map(len, shares))
    room = max(4, width - label - share - 3)
    largest = max(shown.counts)
    return [
        f" {middle:>{label}} {_bar(count / largest, room, blocks):<{room}} {text:>{share}}"
        for middle, count, text in zip(middles, shown.counts, shares, strict=True)
    ]


def _bar(share: float, room: int, blocks: bool) -> str:
    if not blocks:
        return "#" * max(round(share * room), int(share > 0))
    eighths = max(round(share * room * 8), int(share > 0))
    return _FULL * (eighths // 8) + _EIGHTHS[eighths % 8].strip()


def _spell(value: float, spread: float) -> str:
    """A number with the digits that tell it from its neighbours; 0 where it is rounding dust."""
    if spread and abs(value) < 1e-3 * spread:
        value = 0.0
    return f"{value:.3g}"
