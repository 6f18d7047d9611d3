"""Entries that are moved, copied, laid side by side, sliced and chosen.

A loop stacks what its rounds make, and a slice of the stack is the result of one round; only there
do gradients go. So a slice is pushed back through whatever moved the entries since, to the stack.
Where it cannot be (a layer or a normalisation lies between), the entries are taken to be like all
others, and the gradient remembers which positions it came from (`Edge.profile`).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Hashable, Sequence

import jax
import numpy as np

from jaxinit.jaxpr import Node, sources, whole_axes
from jaxinit.signal import _tables as tables
from jaxinit.signal._rules import Aval, apply, broadcast, of_signal, rules
from jaxinit.signal._tape import (
    Application,
    Constant,
    Discrete,
    Edge,
    Features,
    Made,
    Shape,
    Signal,
    Stack,
    Tape,
    Value,
    features_of,
    over_nodes,
)

# The same entries in the same order.


@of_signal("reshape", "expand_dims", "squeeze", "transpose")
def moved(tape: Tape, node: Node, signal: Signal, aval: Aval) -> Value:
    """The same entries in another shape, or with axes in another order."""
    order, old, new = node.params.get("permutation"), signal.shape, tuple(aval.shape)
    # Axes that were merged share the flag of any of them.
    features = [
        max((signal.features[k] for k in axes if old[k] > 1), default=0) if new[axis] > 1 else 0
        for axis, axes in enumerate(sources(node, old, new))
    ]
    places = whole_axes(old, new) if order is None else np.argsort(order).tolist()
    found = tape.view(signal, new, features, places)
    if signal.mask is None:
        return found
    mask = np.broadcast_to(signal.mask, old)
    return tape.same(found, mask=mask.reshape(new) if order is None else mask.transpose(order))


@of_signal("broadcast_in_dim")
def _copied(tape: Tape, node: Node, signal: Signal, aval: Aval) -> Value:
    found = tape.copies(signal, aval.shape, tuple(node.params["broadcast_dimensions"]))
    if signal.mask is None:
        return found
    return tape.same(found, mask=broadcast(np.broadcast_to(signal.mask, signal.shape), node))


@of_signal("rev", "sort")
def _reordered(tape: Tape, node: Node, signal: Signal, aval: Aval) -> Value | None:
    if node.params.get("num_keys", 1) != 1 or len(node.outputs) > 1:
        return None
    return tape.other_entries(signal, signal.shape, signal.features, 1.0, independent=False)


# Values side by side.


def mixture(
    tape: Tape,
    parts: Sequence[Value],
    shape: Shape,
    features: Features,
    axis: int | None = None,
    sizes: Sequence[float] | None = None,
) -> Signal:
    """Entries of which so many come from each part.

    Args:
        tape: where it is made.
        parts: the values.
        shape: shape of the result.
        features: which of its axes hold independent units.
        axis: along which axis the values lie side by side, one after the other, if they do.
        sizes: how many entries come from each; the sizes of the parts by default.
    """
    signals = [tape.compressed(tape.as_signal(x)) for x in parts]
    sizes = [math.prod(x.shape) for x in parts] if sizes is None else sizes
    shares = np.asarray(sizes, dtype=float) / max(sum(sizes), 1e-300)
    mass = np.concatenate([share * tables.weights() for share in shares])
    table, _ = tables.compress(np.concatenate([over_nodes(x) for x in signals], axis=1), mass)
    crossed = shares @ np.stack([np.maximum(tape.cross(x) - x.mean**2, 0) for x in signals])
    variance = tables.expectation(table**2) - tables.expectation(table) ** 2
    source = tape.source(tables.fraction(crossed, variance), tape.roots(*signals))
    stacked = axis is not None and not features[axis]
    edges = [Edge(x.number, gain=tables.ends(1.0), stacked=stacked) for x in signals]
    label = signals[0].label if all(x.label for x in signals) else None
    found = tape.signal(table, (source,), shape, features, edges, label=label)
    if axis is not None:
        tape.origins[found.number] = Stack(axis, tuple(parts))
    return found


@rules("concatenate")
def _concatenated(tape: Tape, node: Node, operands: Sequence[Value], aval: Aval) -> Value | None:
    if any(isinstance(x, Discrete) for x in operands):
        return None
    operands = [x for x in operands if math.prod(x.shape)] or operands
    signals = [x for x in operands if isinstance(x, Signal)]
    features = [
        any(x.features[axis] and x.shape[axis] > 1 for x in signals)
        for axis in range(len(aval.shape))
    ]
    return mixture(tape, operands, aval.shape, features, node.params["dimension"])


@rules("stack")
def _stacked(tape: Tape, node: Node, operands: Sequence[Value], aval: Aval) -> Value:
    return stack(tape, operands, node.params["axis"])


def stack(tape: Tape, parts: Sequence[Value], axis: int = 0) -> Value:
    """Values along a new axis, such as the results of the rounds of a loop."""
    arrays = [x.array for x in parts if isinstance(x, Constant)]
    if len(arrays) == len(parts):
        return Constant(np.stack(arrays, axis))

    def longer(axes: Sequence[int], new: int) -> tuple[int, ...]:
        return (*axes[:axis], new, *axes[axis:])

    shape = longer(parts[0].shape, len(parts))
    if any(isinstance(x, Discrete) for x in parts):
        return Discrete(shape)
    features = next(x.features for x in parts if isinstance(x, Signal))
    layers = [_with_axes(tape, x, longer) for x in parts]
    return mixture(tape, layers, shape, longer(features, 0), axis)


def _with_axes(
    tape: Tape, value: Value, edit: Callable[[Sequence[int], int], tuple[int, ...]]
) -> Value:
    """The same entries with an axis of length 1 more or less: ``edit`` says which."""
    shape = edit(value.shape, 1)
    match value:
        case Constant():
            return Constant(value.array.reshape(shape))
        case Discrete():
            return Discrete(shape)
        case Signal():
            return tape.view(value, shape, edit(value.features, 0))


@of_signal("tile")
def _tiled(tape: Tape, node: Node, signal: Signal, aval: Aval) -> Value:
    """Copies that follow each other: each axis of copies is a new one in front of what it copies.

    Behind it the copies are one axis with what they copy.
    """
    repeats = node.params["reps"]
    apart = [n for pair in zip(repeats, signal.shape, strict=True) for n in pair]
    copies = tape.copies(signal, apart, range(1, len(apart), 2))
    pairs = zip(signal.features, repeats, strict=True)
    features = [flag if count == 1 else 0 for flag, count in pairs]
    return tape.view(copies, aval.shape, features, whole_axes(apart, aval.shape))


@rules("pad")
def _padded(tape: Tape, node: Node, operands: Sequence[Value], aval: Aval) -> Value | None:
    signal = operands[0]
    if not isinstance(signal, Signal):
        return None
    total = math.prod(aval.shape)
    inside = min(signal.size, total)
    sizes = [inside, total - inside]
    return mixture(tape, operands, aval.shape, signal.features, sizes=sizes)


@rules("dynamic_update_slice")
def _updated(tape: Tape, node: Node, operands: Sequence[Value], aval: Aval) -> Value | None:
    whole, part = operands[:2]
    if isinstance(whole, Discrete) or isinstance(part, Discrete):
        return None
    signals = [x for x in (whole, part) if isinstance(x, Signal)]
    features = features_of(signals, whole.shape)
    place = _place_of(operands[2:], whole.shape, part.shape)
    shorter = [axis for axis, n in enumerate(part.shape) if n != whole.shape[axis]]
    if len(shorter) == 1 and (start := place[shorter[0]]) is not None:
        # Rounds of a loop write their results one after the other.
        (axis,) = shorter
        ends = [(0, start), (start + part.shape[axis], whole.shape[axis])]
        around = [cut(tape, whole, axis, *end) for end in ends if end[0] < end[1]]
        pieces = [x for x in (*around[: bool(start)], part, *around[bool(start) :]) if x]
        if len(pieces) > len(around):
            return mixture(tape, pieces, whole.shape, features, axis)
    inside, total = math.prod(part.shape), math.prod(whole.shape)
    return mixture(tape, [whole, part], whole.shape, features, sizes=[total - inside, inside])


# Slices.


def cut(tape: Tape, value: Value, axis: int, start: int, stop: int) -> Value | None:
    """Entries from ``start`` to ``stop`` along an axis, if it is known what they were made of.

    Args:
        tape: all signals.
        value: what to slice.
        axis: along which axis.
        start: first entry.
        stop: the entry after the last.
    """
    if not isinstance(value, Signal):
        return _cut_plain(value, axis, start, stop)
    if (start, stop) == (0, value.shape[axis]):
        return value
    key, found = ("cut", value.number, axis, start, stop), None
    if key in tape.slices:
        return tape.slices[key]
    match tape.origins.get(value.number):
        case Stack() as origin if origin.axis == axis:
            found = _cut_stack(tape, value, origin, start, stop)
        case Made() as origin:
            found = _cut_made(tape, origin, axis, start, stop)
    if found is not None:
        tape.slices[key] = found
    return found


def _cut_plain(value: Constant | Discrete, axis: int, start: int, stop: int) -> Value:
    if isinstance(value, Discrete):
        return Discrete(_resized(value.shape, axis, stop - start))
    return Constant(value.array[(*[slice(None)] * axis, slice(start, stop))])


def _cut_stack(tape: Tape, signal: Signal, origin: Stack, start: int, stop: int) -> Value:
    axis, reached = origin.axis, 0
    pieces: list[Value] = []
    for part in origin.parts:
        first, last = max(start - reached, 0), min(stop - reached, part.shape[axis])
        reached += part.shape[axis]
        if first < last:
            shape = _resized(part.shape, axis, last - first)
            own = cut(tape, part, axis, first, last)
            pieces.append(own or _others(tape, tape.as_signal(part), shape))
    if len(pieces) == 1:
        return pieces[0]
    shape = _resized(signal.shape, axis, stop - start)
    return mixture(tape, pieces, shape, signal.features, axis)


def _cut_made(tape: Tape, made: Made, axis: int, start: int, stop: int) -> Value | None:
    """Slices the operands instead, and makes the result of that."""
    signal = next(x for x in made.operands if isinstance(x, Signal))
    node, new = made.node, made.aval.shape
    held = [i for i in sources(node, signal.shape, new)[axis] if signal.shape[i] > 1]
    if len(held) != 1 or signal.shape[held[0]] != new[axis]:
        return None
    (before,) = held
    if node.primitive == "rev" and axis in node.params["dimensions"]:
        start, stop = signal.shape[axis] - stop, signal.shape[axis] - start
    operands: list[Value] = []
    for x in made.operands:
        if x is signal or (len(x.shape) == len(signal.shape) and x.shape[before] > 1):
            piece = cut(tape, x, before, start, stop)
            if piece is None:
                return None
            x = piece
        operands.append(x)
    shape = _resized(new, axis, stop - start)
    if node.primitive == "broadcast_in_dim":
        node = dataclasses.replace(node, params={**node.params, "shape": shape})
    return apply(tape, node, operands, [jax.ShapeDtypeStruct(shape, made.aval.dtype)])[0]


@rules("slice", "dynamic_slice")
def _sliced(tape: Tape, node: Node, operands: Sequence[Value], aval: Aval) -> Value | None:
    """A slice, at a place that is known or not."""
    whole = operands[0]
    if isinstance(whole, Discrete):
        return None
    starts: Sequence[int | None] = [None] * len(aval.shape)
    signal = tape.as_signal(whole)
    if node.primitive == "dynamic_slice":
        starts = _place_of(operands[1:], signal.shape, aval.shape)
    elif set(node.params["strides"] or [1]) == {1}:
        starts = node.params["start_indices"]
    # Places that are not known are told apart by the values that tell them.
    told = [atom for atom in node.inputs[1:] if isinstance(atom, int)]
    return _part(tape, signal, starts, aval.shape, node.primitive, str(node.params), *told)


@of_signal("split")
def _split(tape: Tape, node: Node, signal: Signal, aval: Aval) -> list[Value]:
    axis, start, found = node.params["axis"], 0, []
    for length in node.params["sizes"]:
        found.append(_along(tape, signal, axis, start, length))
        start += length
    return found


@of_signal("unstack")
def _unstacked(tape: Tape, node: Node, signal: Signal, aval: Aval) -> list[Value]:
    axis = node.params["axis"]
    return [entry(tape, signal, number, axis) for number in range(signal.shape[axis])]


def entry(tape: Tape, value: Value, number: int, axis: int = 0) -> Value:
    """One entry of an axis: of a stack a round, of a parameter the draws of one layer."""
    found = _along(tape, value, axis, number, 1)
    return _with_axes(tape, found, lambda axes, _: (*axes[:axis], *axes[axis + 1 :]))


def _along(tape: Tape, value: Value, axis: int, start: int, length: int) -> Value:
    if not isinstance(value, Signal):
        return _cut_plain(value, axis, start, start + length)
    starts = [start if i == axis else 0 for i in range(len(value.shape))]
    return _part(tape, value, starts, _resized(value.shape, axis, length))


def _part(
    tape: Tape, signal: Signal, starts: Sequence[int | None], shape: Shape, *told: Hashable
) -> Value:
    """A slice along several axes: pushed back along those where that can be done.

    Args:
        tape: all signals.
        signal: what to slice.
        starts: first entry along each axis; None where it is not known.
        shape: shape of the slice.
        *told: what tells slices of the same shape apart whose places are not known.
    """
    value: Value = signal
    for axis, (start, length) in enumerate(zip(starts, shape, strict=True)):
        if start is not None and length != signal.shape[axis]:
            value = cut(tape, value, axis, start, start + length) or value
    if value.shape == tuple(shape) or not isinstance(value, Signal):
        return value
    key = (signal.number, tuple(starts), tuple(shape), told)
    if key not in tape.slices:
        tape.slices[key] = _others(tape, value, shape, starts)
    return tape.slices[key]


def _others(
    tape: Tape, signal: Signal, shape: Shape, starts: Sequence[int | None] | None = None
) -> Signal:
    """Some of the entries. Other units are other draws; other positions share what is shared."""
    missing = [axis for axis, n in enumerate(shape) if n != signal.shape[axis]]
    positions = [axis for axis in missing if not signal.features[axis]]
    profile = None
    if len(positions) == 1 and math.prod(shape) and not signal.label:
        (axis,) = positions
        start = (starts[axis] if starts is not None else 0) or 0
        profile = np.zeros(signal.shape[axis])
        profile[start : start + shape[axis]] = signal.shape[axis] / shape[axis]
    share = math.prod(shape) / max(signal.size, 1)
    independent = any(signal.features[axis] for axis in missing)
    return tape.other_entries(
        signal, shape, signal.features, share, independent=independent, profile=profile
    )


@rules("gather")
def _gathered(tape: Tape, node: Node, operands: Sequence[Value], aval: Aval) -> Value | None:
    """Entries that integers choose: rows of an embedding, or one position of many."""
    whole, index = operands[:2]
    if isinstance(whole, Discrete):
        return None
    signal = tape.as_signal(whole)
    numbers, shape = node.params["dimension_numbers"], aval.shape
    gone = (*numbers.collapsed_slice_dims, *numbers.operand_batching_dims)
    left = [flag for axis, flag in enumerate(signal.features) if axis not in gone]
    features = [0] * len(shape)
    for place, flag in zip(numbers.offset_dims, left, strict=True):
        features[place] = flag
    profile = None
    chosen = [axis for axis in numbers.start_index_map if not signal.features[axis]]
    if not signal.label and len(chosen) == 1:
        # All that come may come from one position.
        profile = np.zeros(signal.shape[chosen[0]])
        profile[:1] = len(profile)
    known = isinstance(index, Constant)
    facts = {"label": None, "chosen": signal.label, "laid_out": known, "profile": profile}
    share = math.prod(shape) / max(signal.size, 1)
    found = tape.other_entries(signal, shape, features, share, independent=True, **facts)
    if signal.label:
        # Two tokens are the same one time in as many as there are.
        rows = max(math.prod(signal.shape[axis] for axis in numbers.start_index_map), 1)
        for source in found.sources:
            same = np.array([0.0, 1.0]) if known else np.full(2, 1 / rows)
            tape.sources[source].correlation = same
            # As a layer of data that are 1 in one of the rows.
            whole, chosen = tape.first(signal, numbers.start_index_map)
            _, left = tape.first(signal, [a for a in range(len(signal.shape)) if a not in gone])
            application = Application(found.number, source, frozenset(), rows, chosen, left)
            tape.applications.setdefault(whole.number, []).append(application)
    return found


def _place_of(starts: Sequence[Value], whole: Shape, shape: Shape) -> list[int | None]:
    """Where a dynamic slice begins along each axis; None where data decide."""
    return [
        int(np.clip(int(x.array), 0, n - m)) if isinstance(x, Constant) else None
        for x, n, m in zip(starts, whole, shape, strict=True)
    ]


def _resized(shape: Shape, axis: int, length: int) -> tuple[int, ...]:
    """A shape with another length of one axis."""
    return (*shape[:axis], length, *shape[axis + 1 :])
