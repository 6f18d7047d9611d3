"""Questions about a traced graph that the records of a reading do not answer.

Who reads a value, whether a map's output comes to a softmax before any other map, which gate lets a
memory pass, and which kernel a bias is added to.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence

from jaxinit.jaxpr._graph import Graph, Node, straighten

_CONTRACTIONS = ("dot_general", "conv_general_dilated", "ragged_dot", "ragged_dot_general")
# What moves or copies values and changes none of them.
VIEWS = frozenset(
    {
        "reshape", "transpose", "squeeze", "broadcast_in_dim", "expand_dims", "slice",
        "dynamic_slice", "convert_element_type", "copy", "copy_p", "rev", "split", "enter", "take",
        "stack", "merge", "reduce_precision", "optimization_barrier", "stop_gradient",
        "sharding_constraint", "concatenate",
    }
)  # fmt: skip
SUMS = frozenset({"add", "add_any"})


class Wiring:
    """Readers and makers of every value, bodies of loops laid out in line.

    Args:
        graph: a traced forward pass.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.nodes: tuple[Node, ...] = tuple(straighten(graph))
        self.makers: dict[int, Node] = {}
        self.readers: dict[int, list[Node]] = {}
        for node in self.nodes:
            self.makers.update(dict.fromkeys(node.outputs, node))
            for atom in node.inputs:
                if isinstance(atom, int):
                    self.readers.setdefault(atom, []).append(node)

    def comes_to_softmax(self, value: int) -> bool:
        """Whether the entries of a value are exponentiated before another map reads them."""
        return self._forward(value, lambda node: node.primitive == "exp")

    def _forward(self, value: int, found: Callable[[Node], bool]) -> bool:
        pending, seen = [value], {value}
        while pending:
            for node in self.readers.get(pending.pop(), ()):
                if found(node):
                    return True
                if node.primitive in _CONTRACTIONS:
                    continue
                fresh = [number for number in node.outputs if number not in seen]
                seen.update(fresh)
                pending.extend(fresh)
        return False

    def before(self, value: int, through: Iterable[str]) -> set[int]:
        """Values that one is made of by the named primitives alone, itself included."""
        allowed = set(through)
        return self.made_of([value], lambda node: node.primitive in allowed)

    def made_of(self, values: Iterable[int], passes: Callable[[Node], bool]) -> set[int]:
        """Values that some are made of by nodes that pass, themselves included."""
        pending = list(values)
        seen = set(pending)
        while pending:
            node = self.makers.get(pending.pop())
            if node is None or not passes(node):
                continue
            fresh = [atom for atom in node.inputs if isinstance(atom, int) and atom not in seen]
            seen.update(fresh)
            pending.extend(fresh)
        return seen

    @functools.cached_property
    def forget_gates(self) -> tuple[int, ...]:
        """Pre-activations of sigmoids that a memory is multiplied with, before it is added to.

        A memory is what a loop carries, or what the model was called with; the sum must go back
        into it or out of the model, as in ``c = sigmoid(f) * c + sigmoid(i) * tanh(g)``.
        """
        gates = []
        for node in self.nodes:
            if node.primitive != "mul" or len(node.inputs) != 2 or not self._is_summed(node):
                continue
            first, second = node.inputs
            for gate, memory in ((first, second), (second, first)):
                made = self._sigmoid_of(gate)
                if made is not None and self._is_memory(memory):
                    gates.append(made)
        return tuple(dict.fromkeys(gates))

    def _is_summed(self, node: Node) -> bool:
        """Whether a product goes into a sum with another product."""
        for reader in self.readers.get(node.outputs[0], ()):
            if reader.primitive in SUMS:
                others = [a for a in reader.inputs if isinstance(a, int) and a != node.outputs[0]]
                made = [self.makers.get(other) for other in others]
                if any(maker is not None and maker.primitive == "mul" for maker in made):
                    return True
        return False

    def _sigmoid_of(self, atom: object) -> int | None:
        for value in self.before(atom, VIEWS) if isinstance(atom, int) else ():
            node = self.makers.get(value)
            if node is not None and node.primitive == "logistic":
                return node.inputs[0] if isinstance(node.inputs[0], int) else None
        return None

    def _is_memory(self, atom: object) -> bool:
        if not isinstance(atom, int):
            return False
        node, steps = self.makers.get(atom), 0
        while node is not None and node.primitive in VIEWS - {"enter"} and steps < 100:
            inner = [a for a in node.inputs if isinstance(a, int)]
            if not inner:
                return False
            atom, steps = inner[0], steps + 1
            node = self.makers.get(atom)
        if node is None:
            return atom in self.graph.inputs
        return node.primitive == "enter" and len(node.inputs) == 2

    def source_of_sum(self, value: int, made: Sequence[int]) -> int | None:
        """Of the values given, the nearest that another is made of by sums and views."""
        reached = self.before(value, VIEWS | SUMS)
        near = [number for number in made if number in reached]
        return max(near, default=None)
