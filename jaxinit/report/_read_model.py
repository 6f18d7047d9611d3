"""The reading of a model that was named on the command line, by the paths of a report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

import jax

from jaxinit.reading import Reading, read
from jaxinit.report._errors import Unusable, describe, place_in
from jaxinit.report._inputs import Inputs
from jaxinit.report._open_model import Opened

if TYPE_CHECKING:
    from jaxinit.flax import LinenModel


class NotReadError(Unusable):
    """There is no reading; the message says why."""


def read_model(opened: Opened, specs: Mapping[str, Any] | None = None) -> Reading:
    """Reads a model that was opened.

    Args:
        opened: the model, with its inputs.
        specs: its shapes by path, where they are known already.

    Raises:
        NotReadError: when it is an NNX model without inputs, or its forward pass cannot be traced.
    """
    try:
        if opened.model.kind == "Linen":
            shapes = opened.model.shapes() if specs is None else specs
            return _read_linen(cast("LinenModel", opened.model), shapes)
        return _read_nnx(opened.model, opened.given)
    except NotReadError:
        raise
    except (Exception, SystemExit) as error:
        raise NotReadError(
            f"tracing the forward pass raised {describe(error)}{place_in(error, opened.source)}"
        ) from error


def _read_linen(model: LinenModel, specs: Mapping[str, Any]) -> Reading:
    def forward(variables: Any, *inputs: Any, **kwargs: Any) -> Any:
        # What a layer writes, as BatchNorm does, is let go of; keys are there for dropout.
        keys = {name: jax.random.key(0) for name in ("params", "dropout")}
        result, _ = model.module.apply(variables, *inputs, rngs=keys, mutable=True, **kwargs)
        return result

    return read(forward, _nested(specs), *model.inputs, **model.kwargs)


def _read_nnx(model: Any, inputs: Inputs) -> Reading:
    from jaxinit.flax import nnx_apply

    if not inputs:
        raise NotReadError(
            "an NNX model is read through its forward pass: give --input SHAPE:DTYPE."
        )
    apply, state = nnx_apply(lambda: model.make(jax.random.key(0)))
    return read(apply, state, *inputs.positional, **inputs.named)


def _nested(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """Nested dictionaries from canonical paths, as Linen has its variables."""
    tree: dict[str, Any] = {}
    for path, leaf in leaves.items():
        *above, name = path.split("/")
        at = tree
        for segment in above:
            at = at.setdefault(segment, {})
        at[name] = jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
    return tree
