"""Advice that its own prediction bears out: what the model multiplies by is divided out.

The guide says how large a weight should be for a layer that stands alone: variance over fan. A
model may multiply beside it, with a constant on the parameter, a mask, a factor behind the layer, a
second layer in the same sum, or a pool in front. The prediction of the advice shows all of these
alike, as a size that is not the one the row meant.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import TypeAlias

from jaxinit.advice import _drawing as drawing
from jaxinit.advice import _guide as guide
from jaxinit.advice._facts import ModelFacts, ParameterFacts
from jaxinit.advice._guide import Choice, Row, decide
from jaxinit.advice._present import PresentByPath, moments_of_present
from jaxinit.advice._signals import UNKNOWN, Signals, is_known, middle, over
from jaxinit.initializers import Initializer, zeros
from jaxinit.signal import Moments

# A layer within these bounds of the size that its row means stays as it is: the edges of a padded
# convolution, and biases, move it a little.
_LEAST, _MOST = 2 / 3, 1.5
# Sizes of what layers read that a gain of its own row still copes with.
_SMALL, _LARGE = 1 / 16, 4.0
# Sizes beyond are no multiple that a weight could make up for in float16: something else is wrong.
_MENDED = 2.0**40
# From this share of the stream on, the logit of a token for itself is half of sqrt(d) or more.
_FILLED = 1 / 4
# Corrections that depend on each other, such as pools in a row, come one after the other.
_ROUNDS = 6


@dataclasses.dataclass(frozen=True)
class Decision:
    """What the guide decided of one parameter, and how it was corrected.

    Attributes:
        facts: of the parameter, with the correction.
        row: the row that decided.
        choice: its choice.
        initializer: what the choice draws, corrected.
        remark: what is said of the size beside the reason of the choice; may be empty.
    """

    facts: ParameterFacts
    row: Row
    choice: Choice
    initializer: Initializer
    remark: str = ""

    def corrected(self, factor: float) -> Decision:
        """The same, with its standard deviation multiplied."""
        facts = self.facts.corrected(factor)
        return dataclasses.replace(self, facts=facts, initializer=self.choice.drawing(facts))

    @functools.cached_property
    def variance(self) -> float:
        """Variance of an entry; NaN where its law is not known."""
        return float(self.initializer.law(self.facts.shape, self.facts.parameter.dtype).variance)

    @property
    def meant(self) -> float:
        """Size that the row means a layer to make of data of unit size."""
        return self.variance / self.facts.correction**2 * self.facts.fan_in


# By how much a size is too large for what the row of the layer means; None where that is not known.
Measure: TypeAlias = Callable[[Signals, Decision], float | None]


def decisions_of(
    goal: str, model: ModelFacts, present: PresentByPath
) -> tuple[list[Decision], Signals]:
    """What the guide decides, corrected until the prediction agrees, and the sizes that follow.

    Args:
        goal: of the advice.
        model: facts of the model.
        present: the present initialization, for leaves that stay as the model draws them.
    """
    found = [Decision(p, row, choice, choice.drawing(p)) for p, row, choice in decide(goal, model)]
    advice = _Correcting(model, present, {each.facts.path: each for each in found})
    advice.correct(_beside, advice.layers())
    advice.correct(_scores, advice.queries())
    advice.add_biases()
    settled: set[str] = set()
    while (path := advice.first_off(settled)) is not None and len(settled) < _ROUNDS:
        settled.add(path)
        advice.correct(_whole, [path])
    advice.fill_branches()
    return [_explained(each, advice.signals) for each in advice.decided.values()], advice.signals


class _Correcting:
    """Decisions, and the sizes that follow from them."""

    def __init__(
        self, model: ModelFacts, present: PresentByPath, decided: dict[str, Decision]
    ) -> None:
        self.model, self.present, self.decided = model, present, decided
        self.is_biased = False
        self.signals = self._signals(decided)

    def _signals(self, decided: Mapping[str, Decision]) -> Signals:
        """Sizes, at first with biases at zero: what they add is no multiple of a weight."""
        laws: dict[str, Initializer | Moments] = {}
        for path, each in decided.items():
            if not each.facts.is_inexact:
                continue
            if each.facts.roles[-1] == "bias" and not self.is_biased:
                laws[path] = (0.0, 0.0)
            elif math.isnan(each.variance):
                laws[path] = moments_of_present(each.facts, self.present)
            else:
                laws[path] = each.initializer
        return Signals(self.model, laws)

    def fill_branches(self) -> None:
        """Branches of full size beside a stream that a table which is the head too fills."""
        is_tied = any("tied_embedding" in each.facts.roles for each in self.decided.values())
        steps = list(self.signals.steps()) if is_tied else []
        share = over(steps[0].stream, steps[-1].total) if steps else UNKNOWN
        if not is_known(share) or middle(share) < _FILLED:
            return
        choice = guide.FULL_BRANCH
        for path, each in self.decided.items():
            if each.choice.drawing is drawing.per_branch:
                drawn = choice.drawing(each.facts)
                self.decided[path] = dataclasses.replace(each, choice=choice, initializer=drawn)
        self.signals = self._signals(self.decided)

    def add_biases(self) -> None:
        """From now on sizes are those with all biases."""
        self.is_biased = True
        biases = [each for each in self.decided.values() if each.facts.roles[-1] == "bias"]
        if any(each.initializer != zeros for each in biases):
            self.signals = self._signals(self.decided)

    def correct(self, measure: Measure, paths: Iterable[str]) -> None:
        """Corrects the layers that are off, where the size follows the weight."""
        measured = {path: measure(self.signals, self.decided[path]) for path in paths}
        off = {path: factor for path, factor in measured.items() if factor and _is_off(factor)}
        if not off:
            return
        changed = {path: self.decided[path].corrected(f**-0.5) for path, f in off.items()}
        signals = self._signals(self.decided | changed)
        for path, each in changed.items():
            left = measure(signals, each)
            if left and abs(math.log(left)) < abs(math.log(off[path])) / 2:
                self.decided[path] = each
        if all(self.decided[path] is each for path, each in changed.items()):
            self.signals = signals
        else:
            self.signals = self._signals(self.decided)

    def layers(self) -> list[str]:
        """Layers that are drawn, and whose size no normalisation sets."""
        return [
            path
            for path, each in self.decided.items()
            if each.facts.is_layer
            and each.variance > 0
            and not each.facts.after.normalisation
            and not each.choice.is_final
        ]

    def queries(self) -> list[str]:
        """The first of all layers that come to one softmax, where its logits are too large."""
        first: dict[int | None, str] = {}
        drawn = [self.decided[path] for path in self.layers()]
        for each in sorted(drawn, key=lambda each: each.facts.use.output or 0):
            p = each.facts
            is_query = "query_key" in p.roles and not p.pieces and p.logits is not None
            if is_query and (_scores(self.signals, each) or 0) > _LARGE:
                first.setdefault(p.logits, p.path)
        return list(first.values())

    def first_off(self, but: Collection[str]) -> str | None:
        """The first layer whose data are so large or small that its row does not cope."""
        keeps_size = (guide.RECTIFIED | guide.NO_ACTIVATION).holds(self.model)
        # The critical pair is a size of its own: only the head is held to 1.
        is_critical = (guide.UNSTABLE & guide.at_least(9)).holds(self.model)
        drawn = [self.decided[path].facts for path in self.layers() if path not in but]
        for p in sorted(drawn, key=lambda p: p.depth):
            read = self.signals.incoming(p)
            is_apart = p.branch or "recurrent" in p.roles
            if is_apart or (is_critical and "head" not in p.roles) or not is_known(read):
                continue
            if middle(read) > _LARGE or (keeps_size and middle(read) < _SMALL):
                return p.path
        return None


def _is_off(factor: float) -> bool:
    """Whether a size is too far from what its row means to stay, and a weight can mend it."""
    return not _LEAST <= factor <= _MOST and 1 / _MENDED <= factor <= _MENDED


def _beside(signals: Signals, each: Decision) -> float | None:
    """What the model multiplies with beside the weight."""
    factor = over(signals.met(each.facts.use), signals.incoming(each.facts))
    return middle(factor) / each.meant if is_known(factor) else None


def _whole(signals: Signals, each: Decision) -> float | None:
    """The size that a layer makes over that which its row means, for data of unit size."""
    size = signals.met(each.facts.use)
    return middle(size) / each.meant if is_known(size) else None


def _scores(signals: Signals, each: Decision) -> float | None:
    """The size of the scores; their row means 1."""
    size = signals.scores(each.facts)
    return middle(size) if size is not None and is_known(size, 16) else None


def _explained(each: Decision, signals: Signals) -> Decision:
    """With a remark on its size, where the row does not say it all."""
    p = each.facts
    if not (p.is_layer and each.variance > 0):
        return each
    remarks = []
    if p.correction != 1:
        is_less = p.correction < 1
        verb, by = ("divided", 1 / p.correction) if is_less else ("multiplied", p.correction)
        remarks.append(f"{verb} by {by:.4g}, for what the model multiplies beside it")
        if p.correction < 1 / 2 and "query_key" not in p.roles:
            # A step of Adam is as large as its rate, whatever the weight, and meets that factor.
            # Scores are to grow: there the full rate trains as well.
            remarks.append("not judged: the rate. Adam's wants dividing too")
    size, why = signals.met(p.use), signals.why(p.use)
    if not is_known(size, 16):
        remarks.append(f"its size is not judged{f', because of {why}' if why else ''}")
    elif not min(1.0, each.meant) / 2 <= middle(size) <= 2 * max(p.gain**2, 1):
        remarks.append(f"what it makes has a second moment of {middle(size):.3g}")
    return dataclasses.replace(each, remark="; ".join(remarks))
