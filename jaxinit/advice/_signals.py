"""How large one initialization makes what layers read, make and meet, and the gradients there.

All sizes are second moments per entry and come from the prediction. An interval is what is certain
of one: where it is wide, or reaches to infinity, a judgement has to wait.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from jaxinit.advice._facts import ModelFacts, ParameterFacts
from jaxinit.advice._reach import is_view
from jaxinit.initializers import Initializer
from jaxinit.jaxpr import SUMS, size_of
from jaxinit.reading import Use
from jaxinit.signal import Interval, Moments, propagate

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


class Signals:
    """The sizes that follow from one initialization.

    Args:
        model: facts of the model.
        drawn: how every leaf of floats is drawn: an initializer, or mean and variance.
    """

    def __init__(self, model: ModelFacts, drawn: Mapping[str, Initializer | Moments]) -> None:
        self.model = model
        self._sizes = propagate(model.reading, drawn)

    @property
    def outputs(self) -> tuple[Interval, ...]:
        """Sizes of the float outputs of the model."""
        return self._sizes.outputs

    def incoming(self, p: ParameterFacts) -> Interval:
        """Size of the data that a layer contracts its parameter with."""
        return self._hull(p.data_operand)

    def output(self, use: Use) -> Interval:
        """Size of what a layer makes."""
        return self._hull(use.output)

    def met(self, use: Use) -> Interval:
        """Size with which the output of a layer meets its activation, sum or softmax."""
        return self._hull(*(use.meets or (use.output,)))

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

    def scores(self, p: ParameterFacts) -> Interval | None:
        """Size of the logits of the softmax that a query or key comes to; None without one."""
        return None if p.logits is None else self._hull(p.logits)

    def _sums_of(self, value: int, count: int, seen: set[int]) -> Iterator[Step]:
        for node in self.model.graph.after(value, is_view):
            (output,) = node.outputs[:1]
            others = [a for a in node.inputs if isinstance(a, int)]
            if node.primitive not in SUMS or len(others) != 2 or output in seen:
                continue
            seen.add(output)
            # The branch is the operand that is a view of what was met, on whichever side it stands.
            is_second = value in self.model.graph.before(others[1:], is_view)
            stream, added = others if is_second else others[::-1]
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

    def _hull(self, *numbers: int | None) -> Interval:
        """The smallest and the largest size of some values in any round; unknown where one is."""
        sizes = [self._sizes.forward(-1 if number is None else number) for number in numbers]
        if not all(sizes):
            return UNKNOWN
        ends = [end for rounds in sizes for interval in rounds for end in interval]
        return min(ends), max(ends)


def chain_of(model: ModelFacts) -> list[ParameterFacts]:
    """One kernel for each depth of a plain model, without the head, repeated as loops do."""
    layers: dict[int, ParameterFacts] = {}
    for p in model.hidden:
        if p.depth:
            layers.setdefault(p.depth, p)
    ordered = [layers[depth] for depth in sorted(layers)]
    return [p for p in ordered for _ in range(p.use.times or 1)]
