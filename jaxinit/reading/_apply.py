"""What one equation makes of its inputs: the table from primitives to the rules of this room."""

from __future__ import annotations

from collections.abc import Callable

from jaxinit.jaxpr._graph import Node
from jaxinit.reading import _contractions as contractions
from jaxinit.reading import _elementwise as elementwise
from jaxinit.reading import _lookups as lookups
from jaxinit.reading import _shapes as shapes
from jaxinit.reading._values import CONSTANT, Value, opaque, plain, view
from jaxinit.reading._walk import Walk

_RULES: dict[str, Callable[[Walk, Node, list[Value]], list[Value]]] = {
    "dot_general": contractions.dot_general,
    "ragged_dot_general": contractions.ragged_dot,
    "conv_general_dilated": contractions.conv,
    "gather": lookups.gather,
    "dynamic_slice": lookups.dynamic_slice,
    "dynamic_update_slice": lookups.written,
    "concatenate": shapes.concatenated,
    **dict.fromkeys(elementwise.NAMES, elementwise.elementwise),
    **dict.fromkeys(
        ("scatter", "scatter_add", "scatter-add", "scatter_mul", "scatter_min", "scatter_max"),
        lookups.written,
    ),
}


def apply(walk: Walk, node: Node, values: list[Value]) -> list[Value]:
    """What the results of an equation are.

    Args:
        walk: the walk, which notes what parameters meet.
        node: the equation, one without a body.
        values: what its inputs are.

    Returns:
        One value for each result. An equation that no rule knows makes unknown uses of the
        parameters that it gets together with data, and unreadable views of those it gets alone.
    """
    if node.primitive == "iota":
        return [Value("constant", is_iota=True)]
    if node.primitive == "reduce_sum":
        elementwise.summed(walk, node, values[0])
    moved = shapes.apply_shape_rule(walk, node, values)
    if moved is not None:
        return moved
    rule = _RULES.get(node.primitive)
    is_elementwise = rule is elementwise.elementwise
    if not is_elementwise and all(value.kind == "constant" for value in values):
        return [CONSTANT] * len(node.outputs)
    if rule is not None and (not is_elementwise or len(node.outputs) == 1):
        return rule(walk, node, values)
    return _unknown(walk, node, values)


def _unknown(walk: Walk, node: Node, values: list[Value]) -> list[Value]:
    parts = [part for value in values if value.is_view for part in value.parts]
    known = [value for value in values if value.is_data]
    if not parts and not known:
        return [CONSTANT] * len(node.outputs)
    shapes_out = [walk.shape(output) for output in node.outputs]
    if not known:
        why = walk.spell(node)
        return [view([opaque(part, shape, why) for part in parts]) for shape in shapes_out]
    for part in parts:
        walk.unknown(part, node.primitive, node, node.outputs[0])
    is_real = any(value.is_real for value in known)
    return [plain(shape, is_real=is_real) for shape in shapes_out]
