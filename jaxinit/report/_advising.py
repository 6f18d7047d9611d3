"""The work of `jaxinit advise` and `jaxinit audit`: a model is opened, read and judged."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any, cast

import jax

from jaxinit._json import dumps
from jaxinit.advice import GUIDES, Advice, Audit, Goal, advise, audit
from jaxinit.jaxpr import is_key
from jaxinit.reading import Reading
from jaxinit.report._findings import fixed
from jaxinit.report._targets import (
    NotReadError,
    Opened,
    Unusable,
    as_unusable,
    opened_model,
    read_model,
)
from jaxinit.signal import Prediction, predict


@dataclasses.dataclass(frozen=True)
class AdviceRequest:
    """Arguments of the commands ``jaxinit advise`` and ``jaxinit audit``.

    Attributes:
        target: ``module:attribute`` or ``file.py:attribute``; None is the model that ships.
        inputs: example inputs as text.
        goal: of the advice.
        seed: seed of the key that an audit draws with.
        predict: whether to predict the size of signals and gradients.
        draws: number of draws to measure beside the prediction; 0 measures none.
    """

    target: str | None = None
    inputs: tuple[str, ...] = ()
    goal: str = "train"
    seed: int = 0
    predict: bool = False
    draws: int = 0

    @property
    def options(self) -> dict[str, Any]:
        """Options of `jaxinit.predict`."""
        measured = {"measure": True, "draws": self.draws} if self.draws else {}
        return {**measured, "key": jax.random.key(self.seed)}


@dataclasses.dataclass(frozen=True)
class Judged:
    """A model that was judged.

    Attributes:
        result: the advice or the audit.
        prediction: sizes of signals and gradients; None where the request leaves them out.
    """

    result: Advice | Audit
    prediction: Prediction | None = None

    def to_dict(self) -> dict[str, Any]:
        """Both as a dictionary of plain values."""
        prediction = None if self.prediction is None else self.prediction.to_dict()
        return self.result.to_dict() | {"prediction": prediction}

    def to_json(self) -> str:
        """Both as JSON text."""
        return dumps(self.to_dict())

    def to_text(self, width: int) -> str:
        """Both as they print, in lines of at most ``width`` characters."""
        below = "" if self.prediction is None else f"\n\n{self.prediction.to_text(width)}"
        return self.result.to_text(width) + below


def advice_for(request: AdviceRequest) -> Judged:
    """Reads a model and advises; findings are about the model's own initializers.

    The prediction is for a model that takes the advice.

    Raises:
        Unusable: when something that was given cannot be used.
    """
    goal = _goal(request)
    with _read(request) as (opened, reading):
        own = opened.model.own_initializers()
        unknown = [path for path, value in own.items() if value is None and path in reading]
        # What no law is known of is drawn once by the model, and measured.
        drawn = opened.model.draw(jax.random.key(request.seed), unknown) if unknown else {}
        with as_unusable("TARGET: "):
            advice = advise(reading, goal, init=own | drawn)
            return Judged(advice, advice.predict(**request.options) if request.predict else None)


def audit_of(request: AdviceRequest) -> Judged:
    """Reads a model, lets it draw its parameters, and judges these arrays.

    The prediction and the measurement are for these arrays.

    Raises:
        Unusable: when something that was given cannot be used.
    """
    goal = _goal(request)
    with _read(request) as (opened, reading):
        values = opened.model.draw(jax.random.key(request.seed))
        with as_unusable("TARGET: "):
            found = audit(reading, values, goal=goal)
            said = fixed(opened.model.without_key())
            found = dataclasses.replace(found, findings=(*found.findings, *said))
            if not request.predict:
                return Judged(found)
            # Leaves of an NNX model that are no parameters, such as running means, but for keys.
            rest = [path for path in reading.paths if path not in values]
            state = opened.model.draw(jax.random.key(request.seed), rest) if rest else {}
            whole = values | {path: leaf for path, leaf in state.items() if not is_key(leaf)}
            return Judged(found, predict(reading, whole, **request.options))


@contextlib.contextmanager
def _read(request: AdviceRequest) -> Iterator[tuple[Opened, Reading]]:
    with opened_model(request.target, request.inputs) as opened:
        try:
            reading = read_model(opened)
        except NotReadError as error:
            raise Unusable(f"TARGET: {opened.target}: {error}") from error
        yield opened, reading


def _goal(request: AdviceRequest) -> Goal:
    if request.goal not in GUIDES:
        raise Unusable(f"--goal needs one of {', '.join(GUIDES)}, got {request.goal!r}.")
    return cast(Goal, request.goal)
