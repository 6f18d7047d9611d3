"""What `jaxinit advise` and `jaxinit audit` do: open a model, read it, and judge it."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import cast

import jax

from jaxinit.advice import GOALS, Advice, Audit, advise, audit_reading
from jaxinit.advice.guide import Goal
from jaxinit.reading import Reading
from jaxinit.report.errors import Unusable, as_unusable
from jaxinit.report.open_model import Opened, opened_model
from jaxinit.report.read_model import NotReadError, read_model


@dataclasses.dataclass(frozen=True)
class AdviceRequest:
    """What was asked for on the command line.

    Attributes:
        target: ``module:attribute`` or ``file.py:attribute``; None is the model that ships.
        inputs: example inputs as text.
        goal: of the advice.
        seed: seed of the key that an audit draws with.
    """

    target: str | None = None
    inputs: tuple[str, ...] = ()
    goal: str = "train"
    seed: int = 0


def advice_for(request: AdviceRequest) -> Advice:
    """Reads a model and advises; findings are about the model's own initializers, where known.

    Raises:
        Unusable: when something that was given cannot be used.
    """
    goal = _goal(request)
    with _read(request) as (opened, reading):
        known = {p: own for p, own in opened.model.own_initializers().items() if own is not None}
        with as_unusable("TARGET: "):
            return advise(reading, goal, current=known or None)


def audit_of(request: AdviceRequest) -> Audit:
    """Reads a model, lets it draw itself, and judges what it drew.

    Raises:
        Unusable: when something that was given cannot be used.
    """
    goal = _goal(request)
    with _read(request) as (opened, reading):
        values = opened.model.draw(jax.random.key(request.seed))
        with as_unusable("TARGET: "):
            return audit_reading(reading, values, goal=goal)


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
