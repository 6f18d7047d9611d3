"""From what was named on the command line to a model with inputs, ready to be shaped."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from jaxinit.report._errors import Unusable, as_unusable, describe, place_in
from jaxinit.report._inputs import Inputs, offered_inputs, parse_inputs
from jaxinit.report._targets import Loaded, loaded

if TYPE_CHECKING:
    from jaxinit.flax import Model

SPECIMEN = "jaxinit.report._gpt2:gpt2_124m"


class Opened(NamedTuple):
    """A model that can be shaped and drawn.

    Attributes:
        model: the model, with its inputs.
        target: how it was named.
        inputs: what it is traced with, as text.
        source: the file it was looked up in, where there is one.
        given: what an NNX model is read with; empty for a Linen module, which has its own.
    """

    model: Model
    target: str
    inputs: str
    source: Path | None
    given: Inputs = Inputs()


@contextlib.contextmanager
def opened_model(target: str | None, inputs: Sequence[str] = ()) -> Iterator[Opened]:
    """Imports a model and finds its example inputs.

    Args:
        target: ``module:attribute`` or ``file.py:attribute``; None is the model that ships.
        inputs: example inputs as text; none for those that the target offers.

    Yields:
        The model. What was imported for it stays importable while in use.

    Raises:
        Unusable: when Flax is missing, nothing usable is there, or inputs are missing.
    """
    with as_unusable():
        given = parse_inputs(inputs)
    linen_model, as_model, no_model = _flax_room()
    with loaded(target or SPECIMEN) as found:
        try:
            model = as_model(found.value)
        except no_model as error:
            raise Unusable(f"TARGET: {found.text} {error}") from error
        except (Exception, SystemExit) as error:
            raise _raised(found, "making the model", error) from error
        if not isinstance(model, linen_model):
            # Its shapes need none; its forward pass is read with them.
            chosen = given or _offered(found, found.value)
            yield Opened(model, found.text, str(chosen), found.source, chosen)
            return
        chosen = given or _offered(found, model.module)
        if not chosen and _needs_inputs(model.module):
            raise Unusable(
                f"{found.text} is a Linen module, and its shapes depend on its inputs. Give "
                "--input SHAPE:DTYPE, once for each, or the module a method example_inputs()."
            )
        model = dataclasses.replace(model, inputs=chosen.positional, kwargs=chosen.named)
        yield Opened(model, found.text, str(chosen), found.source)


def _flax_room() -> tuple[Any, Any, Any]:
    try:
        from jaxinit.flax import LinenModel, NoModelError, as_model
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "flax":
            raise
        raise Unusable(
            'jaxinit report needs Flax, which is not installed: pip install "jaxinit[flax]"'
        ) from error
    return LinenModel, as_model, NoModelError


def _raised(found: Loaded, what: str, error: BaseException) -> Unusable:
    place = place_in(error, found.source)
    return Unusable(f"TARGET: {found.text}: {what} raised {describe(error)}{place}")


def _offered(found: Loaded, module: Any) -> Inputs:
    """What the module, or the function that made it, says that it can be traced with."""
    for owner in (module, found.value):
        offer = getattr(owner, "example_inputs", None)
        if not callable(offer) or (inspect.isclass(owner) and not _is_bound(offer)):
            continue
        try:
            return offered_inputs(offer())
        except (Exception, SystemExit) as error:
            raise _raised(found, "example_inputs()", error) from error
    return Inputs()


def _is_bound(method: Any) -> bool:
    """Whether something of a class is called without an instance."""
    try:
        inspect.signature(method).bind()
    except (TypeError, ValueError):
        return False
    return True


def _needs_inputs(module: Any) -> bool:
    parameters = list(inspect.signature(type(module).__call__).parameters.values())[1:]
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return any(p.default is p.empty and p.kind not in variadic for p in parameters)
