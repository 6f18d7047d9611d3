"""What an elementwise equation is, from the families of the values that meet in it.

Values of one family stay in it. Where a sum over axes meets the values it was taken from, this
decides between normalisation, softmax and neither; where two families meet, between a sum, a
product and anything else; where a parameter is added or multiplied, it is affine.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from jaxinit.jaxpr._graph import Node
from jaxinit.reading import _families as f
from jaxinit.reading._families import Families, Kind, State

_SUMS = ("add", "add_any", "sub")
_PRODUCTS = ("mul", "div")


@dataclasses.dataclass(frozen=True, slots=True)
class Meeting:
    """What comes of an elementwise equation.

    Attributes:
        kind: of the origin that it makes; None where the result is a member of a family.
        parents: what the origin is made from; of a member, the one it continues.
        detail: kind of a normalisation, or the primitive.
        changes: fields of the member that differ from the one it continues.
    """

    kind: Kind | None
    parents: tuple[State, ...]
    detail: str | None = None
    changes: dict[str, Any] = dataclasses.field(default_factory=dict)


def meet(
    node: Node,
    reads: Sequence[tuple[int, State]],
    found: Families,
    roots: dict[int, int],
    number: Callable[[Any], Any],
) -> Meeting:
    """Decides what an elementwise equation makes of the families it reads.

    Args:
        node: the equation.
        reads: position and state of every operand that data reach.
        found: the families so far.
        roots: of values made from parameters alone, what they have been through.
        number: the number that all entries of an operand are, None where that is not known.
    """
    name = node.primitive
    if name == "select_n":
        reads = _cases(reads)
    states = tuple(state for _, state in reads)
    others = [a for a in node.inputs if not isinstance(a, int) or a not in found.states]
    reached = 0
    for atom in others:
        reached |= found.bits[atom] if isinstance(atom, int) else 0
    if len({state.origin.index for state in states}) > 1:
        return _between(name, states, found)
    if reached & f.PARAMETER:
        return _with_parameter(name, states, others, roots)
    if reached & f.NOISE:
        return _with_noise(name, states[0], found, number)
    if name == "select_n" and reads[0][0] > 0 and len(states) == 1:
        return Meeting(None, states)
    level = min(state.level for state in states)
    values = [state for state in states if state.level == level]
    if not level and len({state.piece for state in values}) > 1:
        return _between_pieces(name, states)
    if len(values) < len(states):
        return _with_own_sum(node, states, values[0], found)
    return _within(node, states, others, number)


def _cases(reads: Sequence[tuple[int, State]]) -> Sequence[tuple[int, State]]:
    """Operands of a choice without its predicate, unless that is of the same family."""
    cases = [(i, state) for i, state in reads if i > 0]
    same = {state.origin.index for _, state in cases}
    kept = [(i, state) for i, state in reads if i > 0 or state.origin.index in same or not cases]
    return kept


def _between(name: str, states: tuple[State, ...], found: Families) -> Meeting:
    indices = {state.origin.index: state for state in states}
    oldest = indices[min(indices)]
    scaled = all(
        state.origin is oldest.origin
        or (
            state.origin.kind == "affine"
            and state.origin.detail in _PRODUCTS
            and state.origin.parents[0].origin is oldest.origin
        )
        for state in states
    )
    if scaled and name not in _SUMS:
        # A slope or a temperature that is learned: an activation that no constants describe.
        base = next(state for state in states if state.origin is oldest.origin)
        return Meeting(None, (base,), changes={"linear": False, "broken": True})
    if name in _SUMS:
        return Meeting("sum", states, name)
    return Meeting("product" if name in _PRODUCTS else "join", states, name)


def _with_parameter(
    name: str, states: tuple[State, ...], others: Sequence[Any], roots: dict[int, int]
) -> Meeting:
    rooted = 0
    for atom in others:
        rooted |= roots.get(atom, 0) if isinstance(atom, int) else 0
    if name in _PRODUCTS:
        if states[0].level and states[0].tags & f.ROOT:
            return Meeting(None, states[:1])
        if rooted & f.ROOT and not rooted & f.MEAN:
            return Meeting("norm", states[:1], "batch")
    if name in (*_SUMS, *_PRODUCTS):
        return Meeting("affine", states[:1], name)
    return Meeting("join", states, name)


def _with_noise(name: str, state: State, found: Families, number: Callable[[Any], Any]) -> Meeting:
    """Dropout: the values go through, without the division by the part that is kept."""
    if name not in ("select_n", *_SUMS, *_PRODUCTS):
        return Meeting("join", (state,), name)
    changes: dict[str, Any] = {}
    maker = found.producers.get(state.value)
    if name == "select_n" and maker is not None and maker.primitive in _PRODUCTS:
        before = [found.states[a] for a in maker.inputs if isinstance(a, int) and a in found.states]
        if len(before) == 1 and any(number(atom) is not None for atom in maker.inputs):
            changes = {"value": before[0].value, "linear": before[0].linear}
    return Meeting(None, (state,), changes=changes)


def _between_pieces(name: str, states: tuple[State, ...]) -> Meeting:
    """Slices of one value that meet: a rotation where they are added, a gate where multiplied."""
    if name in _SUMS and all(state.linear for state in states):
        root = states[0].origin.value
        return Meeting(None, states[:1], changes={"value": root, "piece": -1})
    if name in _PRODUCTS:
        return Meeting("product", states, name)
    return Meeting("sum" if name in _SUMS else "join", states, name)


def _with_own_sum(node: Node, states: tuple[State, ...], values: State, found: Families) -> Meeting:
    """Values that meet sums of themselves."""
    name = node.primitive
    tags = values.tags
    sums = 0
    scope = None
    for state in states:
        if state.level > values.level:
            sums |= state.tags
            scope = scope or state.scope
    if name in _PRODUCTS and sums & f.ROOT and not sums & f.SUM_OF_EXP:
        centred = (tags | sums) & f.MEAN
        detail = scope or "layer"
        if detail == "layer" and not centred:
            detail = "rms"
        return Meeting("norm", (dataclasses.replace(values, mixed=False),), detail)
    exponential = name in _PRODUCTS and tags & f.EXPONENTIAL
    if sums & f.SUM_OF_EXP and (exponential or (name == "sub" and sums & f.LOGARITHM)):
        return Meeting("softmax", (_before_exponential(values, found),), name)
    changes = {"mixed": True, "tags": tags & ~f.FRESH | sums, "scope": scope}
    return Meeting(None, (values,), changes=changes)


def _before_exponential(values: State, found: Families) -> State:
    """The state of what was put into the exponential."""
    maker = found.producers.get(values.value)
    if not values.mixed and maker is not None and maker.primitive in ("exp", "exp2"):
        return found.states.get(maker.inputs[0], values)
    return dataclasses.replace(values, mixed=False)


def _within(
    node: Node, states: tuple[State, ...], others: Sequence[Any], number: Callable[[Any], Any]
) -> Meeting:
    name, first = node.primitive, states[0]
    known = [number(atom) for atom in others]
    scales = name == "mul" or (name == "div" and node.inputs[0] not in others)
    shifts = name in _SUMS
    tags = 0
    for state in states:
        tags |= state.tags & ~f.FRESH
    if (scales or shifts or name == "neg") and len(states) == 1:
        tags = first.tags
    elif _squares(node, states):
        tags |= f.SQUARED
    elif name in ("exp", "exp2"):
        tags |= f.EXPONENTIAL
    elif name in ("sqrt", "rsqrt") or (name == "pow" and number(node.inputs[1]) in (0.5, -0.5)):
        tags |= f.ROOT
    elif name in ("log", "log1p"):
        tags |= f.LOGARITHM
    if name in ("max", "min") and first.level:
        tags = first.tags
    if first.level or any(state.mixed for state in states):
        return _of_sums(states, tags, scales and len(states) == 1)
    if others and None in known and (scales or shifts):
        # Different numbers for different entries, as in a rotation: no part of an activation.
        return Meeting(None, (first,))
    keeps = (scales or shifts or name == "neg") and (len(states) == 1 or shifts)
    linear = keeps and all(state.linear for state in states)
    broken = any(state.broken for state in states) or (None in known and bool(others))
    changes = {"value": node.outputs[0], "linear": linear, "tags": tags, "broken": broken}
    return Meeting(None, (first,), changes=changes)


def _of_sums(states: tuple[State, ...], tags: int, scales: bool) -> Meeting:
    of = next((state for state in states if state.mixed), states[0])
    broken = of.broken or not (scales or of.mixed)
    return Meeting(None, (of,), changes={"tags": tags, "broken": broken})


def _squares(node: Node, states: tuple[State, ...]) -> bool:
    name = node.primitive
    if name == "mul" and len(states) == 2:
        return states[0].value == states[1].value
    return name == "square" or (name == "integer_pow" and node.params["y"] == 2)
