"""What `jaxinit advise` and `jaxinit audit` do: open a model, read it, and judge it."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, cast

import jax

from jaxinit.advice import GOALS, Advice, Audit, advise, audit_reading
from jaxinit.advice.guide import Goal
from jaxinit.reading import Reading, read
from jaxinit.report.errors import Unusable, as_unusable, describe, place_in
from jaxinit.report.inputs import Inputs
from jaxinit.report.open_model import Opened, opened_model

if TYPE_CHECKING:
    from jaxinit.flax.models import LinenModel


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
    with opened_model(request.target, request.inputs, reads=True) as opened:
        reading = read_model(opened)
        known = {p: own for p, own in opened.model.own_initializers().items() if own is not None}
        with as_unusable("TARGET: "):
            return advise(reading, goal, current=known or None)


def audit_of(request: AdviceRequest) -> Audit:
    """Reads a model, lets it draw itself, and judges what it drew.

    Raises:
        Unusable: when something that was given cannot be used.
    """
    goal = _goal(request)
    with opened_model(request.target, request.inputs, reads=True) as opened:
        reading = read_model(opened)
        values = opened.model.draw(jax.random.key(request.seed))
        with as_unusable("TARGET: "):
            return audit_reading(reading, values, goal=goal)


def _goal(request: AdviceRequest) -> Goal:
    if request.goal not in GOALS:
        raise Unusable(f"--goal needs one of {', '.join(GOALS)}, got {request.goal!r}.")
    return cast(Goal, request.goal)


def read_model(opened: Opened) -> Reading:
    """The reading of a model that was opened, its parameters by the paths of a report.

    Raises:
        Unusable: when the forward pass cannot be traced.
    """
    try:
        if opened.model.kind == "Linen":
            return _read_linen(cast("LinenModel", opened.model))
        return _read_nnx(opened.model, opened.given)
    except Unusable:
        raise
    except (Exception, SystemExit) as error:
        place = place_in(error, opened.source)
        raise Unusable(
            f"TARGET: {opened.target}: tracing the forward pass raised {describe(error)}{place}"
        ) from error


def _read_linen(model: LinenModel) -> Reading:
    def forward(variables: Any, *inputs: Any, **kwargs: Any) -> Any:
        # What a layer writes, as BatchNorm does, is let go of; keys are there for dropout.
        keys = {name: jax.random.key(0) for name in ("params", "dropout")}
        result, _ = model.module.apply(variables, *inputs, rngs=keys, mutable=True, **kwargs)
        return result

    variables = _nested({path: spec for path, spec in model.shapes().items()})
    return read(forward, variables, *model.inputs, **model.kwargs)


def _read_nnx(model: Any, inputs: Inputs) -> Reading:
    from jaxinit.flax import nnx_apply

    if not inputs:
        raise Unusable("an NNX model is read through its forward pass: give --input SHAPE:DTYPE.")
    apply, state = nnx_apply(lambda: model.make(jax.random.key(0)))
    return read(apply, state, *inputs.positional, **inputs.named)


def _nested(leaves: dict[str, Any]) -> dict[str, Any]:
    """Nested dictionaries from canonical paths, as Linen has its variables."""
    tree: dict[str, Any] = {}
    for path, leaf in leaves.items():
        *above, name = path.split("/")
        at = tree
        for segment in above:
            at = at.setdefault(segment, {})
        at[name] = jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
    return tree
