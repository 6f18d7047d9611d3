"""How large one initialization makes what layers read, make and meet, and the gradients there.

All sizes are second moments per entry and come from the prediction. An interval is what is certain
of one: where it is wide, or reaches to infinity, a judgement has to wait.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple, TypeAlias

from jaxinit.advice._facts import ModelFacts, ParameterFacts
from jaxinit.advice._reach import is_view
from jaxinit.initializers import Initializer
from jaxinit.jaxpr import SUMS, Class, Node, is_of, size_of
from jaxinit.reading import Use
from jaxinit.signal import propagate

Interval: TypeAlias = tuple[float, float]
UNKNOWN: Interval = (0.0, math.inf)


class Growth(NamedTuple):
    """What becomes of a signal between the first and the last layer of a chain.

    Attributes:
        forward: size of the last pre-activation over that of the first.
        backward: squared length of the gradient at the first over that at the last.
    """

    forward: Interval
    backward: Interval


class Step(NamedTuple):
    """One residual sum: sizes of the stream before it, of what is added, and of the sum."""

    count: int
    stream: Interval
    added: Interval
    total: Interval


def over(one: Interval, other: Interval) -> Interval:
    """One size over another of the same initialization; unknown where the other may be 0.

    An interval comes from two runs, one with all that is uncertain at its low end and one with all
    of it at its high end, so the ends of two sizes belong together.
    """
    if other[0] <= 0 or not math.isfinite(other[1]):
        return UNKNOWN
    low, high = sorted((one[0] / other[0], one[1] / other[1]))
    return low, high


def is_known(size: Interval, factor: float = 4.0) -> bool:
    """Whether the ends of an interval lie within a factor of each other."""
    return 0 < size[1] < math.inf and size[1] <= factor * size[0]


def middle(size: Interval) -> float:
    """The geometric mean of the ends; NaN where nothing is known."""
    return math.sqrt(size[0] * size[1]) if size != UNKNOWN else math.nan


def spelled(size: Interval) -> str:
    """An interval as text, one number where its ends are close."""
    low, high = size
    return f"{high:.3g}" if high <= 1.05 * low else f"{low:.3g} to {high:.3g}"


class Signals:
    """The sizes that follow from one initialization.

    Args:
        model: facts of the model.
        drawn: how every leaf of floats is drawn: an initializer, or mean and variance.
    """

    def __init__(
        self, model: ModelFacts, drawn: Mapping[str, Initializer | tuple[float, float]]
    ) -> None:
        self.model = model
        self._sizes = propagate(model.reading, drawn)

    def incoming(self, p: ParameterFacts) -> Interval:
        """Size of the data that a layer contracts its parameter with."""
        operand = _data_of(self.model, p.path, p.use)
        return UNKNOWN if operand is None else self._hull(operand)

    def output(self, use: Use) -> Interval:
        """Size of what a layer makes."""
        return UNKNOWN if use.output is None else self._hull(use.output)

    def met(self, use: Use) -> Interval:
        """Size with which the output of a layer meets its activation, sum or softmax."""
        sizes = [self._hull(number) for number in use.meets or (use.output or -1,)]
        return min(low for low, _ in sizes), max(high for _, high in sizes)

    def weight(self, p: ParameterFacts) -> Interval:
        """What a layer multiplies the size of its data with: variance times fan, as it counts."""
        return over(self.output(p.use), self.incoming(p))

    def why(self, use: Use) -> str | None:
        """What stands between a layer and its size; None where that is known."""
        return None if use.output is None else self._sizes.why(use.output)

    def growth(self, chain: Sequence[ParameterFacts]) -> Growth | None:
        """From the first layer of a chain to the last; None for fewer than two layers."""
        if len(chain) < 2:
            return None
        (first, *_), (*_, last) = (self._rounds(p) for p in (chain[0], chain[-1]))
        return Growth(over(last[0], first[0]), over(first[1], last[1]))

    def steps(self) -> Iterator[Step]:
        """Every residual sum of the model, in order, each round of a loop on its own."""
        seen: set[int] = set()
        uses = [use for p in self.model.layers for use in p.parameter.uses]
        lasts = [(use, use.branch) for use in uses if use.branch and use.branch.is_last]
        for use, branch in sorted(lasts, key=lambda each: each[0].meets):
            for value in use.meets:
                yield from self._sums_of(value, branch.count, seen)

    def logits(self, p: ParameterFacts) -> int | None:
        """Number of the logits of the softmax that a query or key comes to; None without one."""
        return _logits_of(self.model, p.use)

    def scores(self, p: ParameterFacts) -> Interval | None:
        """Size of these logits."""
        logits = self.logits(p)
        return None if logits is None else self._hull(logits)

    def _sums_of(self, value: int, count: int, seen: set[int]) -> Iterator[Step]:
        for node in self.model.graph.after(value, is_view):
            (output,) = node.outputs[:1]
            others = [a for a in node.inputs if isinstance(a, int)]
            if node.primitive not in SUMS or len(others) != 2 or output in seen:
                continue
            seen.add(output)
            added = value if value in others else others[1]
            stream = others[0] if others[1] == added else others[1]
            parts = [self._sizes.forward(number) for number in (stream, added, output)]
            for sizes in itertools.zip_longest(*parts, fillvalue=UNKNOWN):
                yield Step(count, *sizes)

    def _rounds(self, p: ParameterFacts) -> list[tuple[Interval, Interval]]:
        """Size of what a layer meets, and squared length of the gradient there, in each round."""
        number = next(iter(p.use.meets), p.use.output)
        if number is None or not self._sizes.forward(number):
            return [(UNKNOWN, UNKNOWN)]
        entries = size_of(self.model.reading.graph.avals[number])
        backward = [(entries * a, entries * b) for a, b in self._sizes.backward(number)]
        return list(zip(self._sizes.forward(number), backward, strict=True))

    def _hull(self, number: int) -> Interval:
        sizes = self._sizes.forward(number)
        if not sizes:
            return UNKNOWN
        return min(low for low, _ in sizes), max(high for _, high in sizes)


def chain_of(model: ModelFacts) -> list[ParameterFacts]:
    """One kernel for each depth of a plain model, without the head, repeated as loops do."""
    layers: dict[int, ParameterFacts] = {}
    for p in model.hidden:
        if p.depth:
            layers.setdefault(p.depth, p)
    ordered = [layers[depth] for depth in sorted(layers)]
    return [p for p in ordered for _ in range(p.use.times or 1)]


def _data_of(model: ModelFacts, path: str, use: Use) -> int | None:
    """Number of the operand that a layer contracts its parameter with."""
    node = model.graph.makers.get(-1 if use.output is None else use.output)
    if node is None:
        return None
    # The parameter may be scaled, masked or cut before; data are contracted or looked up.
    operands = [atom for atom in node.inputs[:2] if isinstance(atom, int)]
    made = {number: model.graph.before([number], _is_of_one_array) for number in operands}
    source = model.reading.inputs[path]
    own = [n for n in operands if source in made[n]]
    others = [n for n in operands if n not in own] or own[1:]
    return others[0] if others else None


def _is_of_one_array(node: Node) -> bool:
    return not is_of(node.primitive, Class.CONTRACTS) and not is_of(node.primitive, Class.INDEXES)


def _logits_of(model: ModelFacts, use: Use) -> int | None:
    """Number of the logits that a query or key is contracted to; None where no softmax follows."""
    graph = model.graph
    for value in use.meets:
        for scores in graph.after(value, _is_of_one_array):
            if is_of(scores.primitive, Class.CONTRACTS):
                for node in graph.after(scores.outputs[0], _is_of_one_array):
                    if node.primitive == "reduce_max" and isinstance(node.inputs[0], int):
                        return node.inputs[0]
    return None
