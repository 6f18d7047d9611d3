"""How large a residual stream is where it starts, from the tables that it is looked up in."""

from __future__ import annotations

from jaxinit.advice._current import Currents
from jaxinit.advice._situation import Situation
from jaxinit.advice._wiring import SUMS, VIEWS
from jaxinit.jaxpr._graph import Node


def stream_start(situation: Situation, currents: Currents) -> float | None:
    """Second moment of what the first branch is added to.

    Args:
        situation: facts of a model whose stream starts at embeddings.
        currents: what the tables are drawn with, or hold.

    Returns:
        The sum over the tables that are added up, times constants that the model multiplies with;
        None where the stream starts otherwise, or behind a normalisation or a map.
    """
    known: dict[int, float] = {}
    added: dict[int, float] = {}
    for subject in situation.subjects:
        current = currents.get(subject.path)
        for use in subject.parameter.uses:
            if current is None or use.role not in ("embedding", "position"):
                continue
            if use.output is not None:
                (added if use.operation in SUMS else known)[use.output] = current.second_moment
    for node in situation.wiring.nodes:
        held = [a for a in node.inputs if isinstance(a, int) and a in known]
        if not held or node.outputs[0] in known:
            continue
        if node.primitive in VIEWS:
            known[node.outputs[0]] = known[held[0]]
        elif node.primitive in ("mul", "div"):
            factor = _factor(node)
            if factor is not None:
                known[node.outputs[0]] = known[held[0]] * factor**2
        elif node.primitive in SUMS:
            whole = sum(known[atom] for atom in held)
            if node.outputs[0] in added:
                known[node.outputs[0]] = whole + added[node.outputs[0]]
            elif len(held) == len(node.inputs):
                known[node.outputs[0]] = whole
            else:
                return whole
    return None


def _factor(node: Node) -> float | None:
    """The number that an equation multiplies its first operand with, where it is one number."""
    value = getattr(node.inputs[1], "val", None)
    if value is None or getattr(value, "size", 1) != 1:
        return None
    return float(value) if node.primitive == "mul" else 1 / float(value)
