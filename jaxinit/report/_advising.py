"""What `jaxinit advise` and `jaxinit audit` do: open a model, read it, and judge it."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, cast

import jax

from jaxinit.advice import GOALS, Advice, Audit, advise, audit_reading
from jaxinit.advice._guide import Goal
from jaxinit.reading import Reading
from jaxinit.report._errors import Unusable, as_unusable
from jaxinit.report._open_model import Opened, opened_model
from jaxinit.report._read_model import NotReadError, read_model
from jaxinit.signal import Prediction, predict


@dataclasses.dataclass(frozen=True)
class AdviceRequest:
    """What was asked for on the command line.

    Attributes:
        target: ``module:attribute`` or ``file.py:attribute``; None is the model that ships.
        inputs: example inputs as text.
        goal: of the advice.
        seed: seed of the key that an audit draws with.
        predict: whether to say how large signals and gradients will be.
        draws: how many draws to measure beside the prediction; 0 for none.
    """

    target: str | None = None
    inputs: tuple[str, ...] = ()
    goal: str = "train"
    seed: int = 0
    predict: bool = False
    draws: int = 0

    @property
    def options(self) -> dict[str, Any]:
        """What `jaxinit.predict` is to do."""
        measured = {"measure": True, "draws": self.draws} if self.draws else {}
        return {**measured, "key": jax.random.key(self.seed)}


@dataclasses.dataclass(frozen=True)
class Judged:
    """What is printed of a model that was judged.

    Attributes:
        result: the advice or the audit.
        prediction: how large signals and gradients will be; None where nobody asked.
    """

    result: Advice | Audit
    prediction: Prediction | None = None

    def to_json(self) -> dict[str, Any]:
        """Both as plain dicts, lists, strings and numbers."""
        prediction = None if self.prediction is None else self.prediction.to_dict()
        return self.result.to_json() | {"prediction": prediction}

    def to_text(self, width: int) -> str:
        """Both as they print, in lines of at most so many characters."""
        below = "" if self.prediction is None else f"\n\n{self.prediction.to_text(width)}"
        return self.result.to_text(width) + below


def advice_for(request: AdviceRequest) -> Judged:
    """Reads a model and advises; findings are about the model's own initializers, where known.

    What is predicted is the signal of a model that takes the advice.

    Raises:
        Unusable: when something that was given cannot be used.
    """
    goal = _goal(request)
    with _read(request) as (opened, reading):
        known = {p: own for p, own in opened.model.own_initializers().items() if own is not None}
        with as_unusable("TARGET: "):
            advice = advise(reading, goal, current=known or None)
            return Judged(advice, advice.predict(**request.options) if request.predict else None)


def audit_of(request: AdviceRequest) -> Judged:
    """Reads a model, lets it draw itself, and judges what it drew.

    What is predicted, and measured, is the signal under the arrays that it drew.

    Raises:
        Unusable: when something that was given cannot be used.
    """
    goal = _goal(request)
    with _read(request) as (opened, reading):
        values = opened.model.draw(jax.random.key(request.seed))
        with as_unusable("TARGET: "):
            found = audit_reading(reading, values, goal=goal)
            if not request.predict:
                return Judged(found)
            whole = {**_not_drawn(reading, values), **values}
            return Judged(found, predict(reading, whole, **request.options))


def _not_drawn(reading: Reading, values: Mapping[str, Any]) -> dict[str, Any]:
    """What an NNX model keeps beside its parameters, such as running means, as it is advised."""
    key = jax.random.key(0)
    return {
        p.path: p.initializer(key, p.shape, p.dtype)
        for p in (advise(reading) if any(path not in values for path in reading.paths) else ())
        if p.path not in values
    }


@contextlib.contextmanager
def _read(request: AdviceRequest) -> Iterator[tuple[Opened, Reading]]:
    with opened_model(request.target, request.inputs) as opened:
        try:
            reading = read_model(opened)
        except NotReadError as error:
            raise Unusable(f"TARGET: {opened.target}: {error}") from error
        yield opened, reading


def _goal(request: AdviceRequest) -> Goal:
    if request.goal not in GOALS:
        raise Unusable(f"--goal needs one of {', '.join(GOALS)}, got {request.goal!r}.")
    return cast(Goal, request.goal)
