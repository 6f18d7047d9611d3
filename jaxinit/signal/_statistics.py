"""Sums, largest entries, normalisation and softmax of fields.

A mean of squares over the many units of a layer is a constant: the law of large numbers, and the
one place where width is assumed. So layer and rms normalisation need no rule of their own. Means
over positions and samples vary as far as positions are correlated, which is tracked; batch
normalisation subtracts that part and divides by what is left.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxinit.signal import _tables as tables
from jaxinit.signal._fields import PARTLY, Field, Simplex, Tag, World
from jaxinit.signal._links import Link, both

# A positive mean whose relative variance is below this is taken for a constant.
_CONSTANT = 0.02
# Draws of logits that the concentration of attention weights is averaged over: 2 % of error.
_DRAWS = 128
_QUERIES = 8


def reduce_sum(world: World, field: Field, axes: Sequence[int], shape: Sequence[int]) -> Field:
    """A sum over some axes."""
    count = math.prod(field.shape[a] for a in axes)
    mean = field.mean
    variance = variance_of_mean(world, field, axes)
    kept = [flag for i, flag in enumerate(field.features) if i not in axes]
    tag = _tag_of_sum(field, axes, count)
    squares = tag.kind == "squares"
    shares = any(not field.features[a] and field.shape[a] > 1 for a in axes)
    left = [i for i in range(len(field.shape)) if i not in axes]
    places = tuple(left.index(i) if i in left else None for i in range(len(field.shape)))
    links = [Link(field.number, gain=both(1.0), shares=shares, axes=places)]
    facts: dict[str, Any] = {"tag": tag, "lost": field.lost, "label": field.label}
    if squares or np.all(variance <= _CONSTANT * mean**2):
        of = tag.of if tag.kind == "squares" else None
        facts["statistic_of"], facts["terms"] = of, count
        return world.field(count * mean, (), shape, kept, links, **facts)
    crossed = np.maximum(world.cross(field) - mean**2, 0.0)
    units = math.prod(field.shape[a] for a in axes if field.features[a])
    share = np.clip(crossed / units / np.where(variance > 0, variance, 1.0), 0.0, 1.0)
    return world.normal(
        count * mean,
        count**2 * variance,
        shape,
        kept,
        links,
        share,
        world.all_roots(field),
        **facts,
    )


def variance_of_mean(world: World, field: Field, axes: Sequence[int]) -> np.ndarray:
    """Variance of the mean over some axes: units are independent, positions correlated.

    Units that may have a part in common are independent at the low end, positions at the high end.
    """
    if any(field.features[a] == PARTLY for a in axes):
        ends = []
        for flag in (1, 0):
            flags = tuple(flag if f == PARTLY else f for f in field.features)
            ends.append(variance_of_mean(world, dataclasses.replace(field, features=flags), axes))
        return np.array([min(e[0] for e in ends), max(e[1] for e in ends)])
    units = math.prod(field.shape[a] for a in axes if field.features[a])
    positions = math.prod(field.shape[a] for a in axes if not field.features[a])
    crossed = np.maximum(world.cross(field) - field.mean**2, 0.0)
    return (field.variance + (positions - 1) * crossed) / (units * positions)


def _tag_of_sum(field: Field, axes: Sequence[int], count: int) -> Tag:
    tag = field.tag
    units = all(field.features[a] for a in axes if field.shape[a] > 1)
    among = math.prod(field.shape[a] for a in axes if field.features[a])
    if tag is not None and tag.kind == "square":
        return Tag("squares", tag.of, count, count, tuple(axes), units, among)
    return Tag("sum", field.base, count, count, tuple(axes), units, among)


def centred(world: World, field: Field, mean: Field) -> Field:
    """A field less its mean over some axes."""
    assert mean.tag is not None
    removed = np.minimum(mean.variance, field.variance)
    spread = np.where(field.variance > 0, field.variance, 1.0)
    scale = np.sqrt(np.maximum(field.variance - removed, 0.0) / spread)
    rows = (slice(None), *[None] * len(field.sources))
    table = (field.table - field.mean[rows]) * scale[rows]
    links = [Link(field.number, slope=np.ones(tables.ROWS))]
    sources = field.sources
    if not mean.tag.units:
        # What all positions share is gone.
        sources = [world.source(0.0, world.roots[s]) for s in sources]
    facts: dict[str, Any] = {"label": field.label, "lost": field.lost, "centred_of": field.base}
    if sources != field.sources:
        removed = 1 / mean.tag.among, _positions(field, mean.tag)
        links = [Link(field.number, gain=both(1.0), removed=removed)]
    return world.field(table, sources, field.shape, field.features, links, **facts)


def _positions(field: Field, tag: Tag) -> tuple[int, ...] | None:
    """Axes of positions that a mean was taken over, if they are still those of the field."""
    lengths = [field.shape[a] for a in tag.axes if a < len(field.shape)]
    if len(lengths) != len(tag.axes) or math.prod(lengths) != tag.count:
        return None
    return tuple(a for a in tag.axes if not field.features[a])


def spread_left(world: World, squares: Field, mean: Field) -> Field:
    """Mean of squares less the square of the mean: a constant."""
    value = np.maximum(squares.mean - mean.mean, 0.0)
    of = squares.tag.of if squares.tag else None
    facts: dict[str, Any] = {"statistic_of": of, "terms": squares.terms, "lost": squares.lost}
    return world.field(value, (), squares.shape, squares.features, (), **facts)


def largest(world: World, field: Field, count: int, shape: Sequence[int], features: Any) -> Field:
    """Largest of so many entries: between all equal and all independent."""
    candidates = np.stack([tables.largest_of(field.table, n) for n in (1, count)])
    seconds = tables.expectation(candidates.reshape(-1, tables.NODES) ** 2).reshape(2, -1)
    low, high = int(seconds[:, 0].argmin()), int(seconds[:, 1].argmax())
    table = np.stack([candidates[low, 0], candidates[high, 1]])
    source = world.source([0.0, 1.0], world.all_roots(field))
    share = math.prod(shape) / max(field.size, 1)
    links = [Link(field.number, gain=both(share))]
    tag = Tag("max", field.base)
    return world.field(table, (source,), shape, features, links, lost=field.lost, tag=tag)


def softmax(world: World, exponentials: Field, tag: Tag, shape: Sequence[int]) -> Field:
    """Attention weights, from the exponentials of logits that are divided by their sum."""
    assert exponentials.tag is not None
    logits = world.tape[exponentials.tag.of][0]
    count, unevenness = np.asarray([float(tag.count)]), 1.0
    if exponentials.mask is not None and len(tag.axes) == 1:
        count, unevenness = _visible(exponentials.mask, tag.axes[0])
    simplex = Simplex(count, tag.count, np.sqrt(logits.variance), unevenness)
    if logits.lost:
        why = f"softmax of values that were lost: {logits.lost}"
        return world.lost(why, shape, [logits])
    together, slope = concentration(simplex)
    mean = np.full(tables.ROWS, 1 / tag.count)
    variance = np.maximum(together / tag.count - mean**2, 0.0)
    links = [Link(logits.number, gain=np.broadcast_to(np.sort(slope) / tag.count, (2, 2)))]
    roots = world.all_roots(logits)
    return world.normal(
        mean, variance, shape, exponentials.features, links, [0.0, 1.0], roots, simplex=simplex
    )


def _visible(mask: np.ndarray, axis: int) -> tuple[np.ndarray, float]:
    """Keys that each query sees, and how unevenly keys are seen."""
    # Axes that a mask was broadcast along say the same over and over.
    repeated = [i for i, step in enumerate(mask.strides) if step == 0 and i != axis]
    mask = mask[tuple(slice(1) if i in repeated else slice(None) for i in range(mask.ndim))]
    counts = mask.sum(axis, keepdims=True)
    equal = mask / np.maximum(counts, 1)
    received = equal.mean(tuple(i for i in range(mask.ndim) if i != axis))
    unevenness = float((received**2).mean() / max(received.mean() ** 2, 1e-300))
    return counts[counts > 0].reshape(-1).astype(float), unevenness


def concentration(simplex: Simplex) -> tuple[np.ndarray, np.ndarray]:
    """How much attention weights are of one key.

    Args:
        simplex: the weights. Logits are taken to be normal; where keys share a part of theirs, the
            weights are more equal, so equal weights are the low end.

    Returns:
        For equal weights, and for independent logits: the expected sum over keys of the squared
        weights; and of the second moment of a logit's gradient over that of a weight's,
        ``sum_j p_j**2 (1 - 2 p_j + sum_k p_k**2)``.
    """
    counts = np.sort(simplex.count)
    chosen = counts[np.linspace(0, counts.size - 1, min(_QUERIES, counts.size)).astype(int)]
    equal, slope = np.mean(1 / counts), np.mean(1 / counts * (1 - 1 / counts))
    deviation = float(simplex.deviation[1])
    drawn = np.array([_drawn(int(n), round(deviation, 3)) for n in chosen])
    if chosen.size < counts.size:
        # Between the chosen counts the ratio to equal weights changes slowly.
        ratio = np.interp(counts, chosen, drawn[:, 0] * chosen)
        together = float(np.mean(ratio / counts))
        pulled = float(np.mean(np.interp(counts, chosen, drawn[:, 1] * chosen) / counts))
    else:
        together, pulled = (float(v) for v in drawn.mean(0))
    return np.array([equal, max(together, equal)]), np.array([slope, pulled])


@functools.lru_cache(maxsize=512)
def _drawn(count: int, deviation: float) -> tuple[float, float]:
    if count < 2 or deviation == 0:
        return 1 / count, (1 - 1 / count) / count
    logits = deviation * np.random.default_rng(0).standard_normal((_DRAWS, min(count, 4096)))
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    squares = (p**2).sum(1, keepdims=True)
    pulled = (p**2 * (1 - 2 * p + squares)).sum(1)
    shrink = min(count, 4096) / count
    return float(squares.mean()) * shrink, float(pulled.mean()) * shrink


def cumulative_sum(world: World, field: Field, axis: int) -> Field:
    """A running sum: the law of an entry is averaged over how many were summed."""
    count = field.shape[axis]
    crossed = field.mean**2 if field.features[axis] else world.cross(field)
    mean = field.mean * (count + 1) / 2
    second = field.second * (count + 1) / 2 + crossed * (count**2 - 1) / 3
    links = [Link(field.number, gain=both((count + 1) / 2))]
    features = [flag and i != axis for i, flag in enumerate(field.features)]
    roots = world.all_roots(field)
    variance = np.maximum(second - mean**2, 0.0)
    return world.normal(
        mean, variance, field.shape, features, links, [0.0, 1.0], roots, lost=field.lost
    )
