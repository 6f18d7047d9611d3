"""Objects and models that a command line names, and errors for a person at a terminal.

An object is named ``package.module:attribute`` or ``path/file.py:attribute``. Its code is imported
as Python would run it: while the object is in use, a file can import from its own directory and a
module from the current one. A model is an object that Flax can initialize, with its example inputs.
Everything that cannot be used raises `Unusable`, whose message is the one line to print.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import importlib
import importlib.util
import inspect
import os
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import jax

from jaxinit.reading import Reading, read
from jaxinit.report._parsing import Inputs, offered_inputs, parse_inputs

if TYPE_CHECKING:
    from jaxinit.flax import LinenModel, Model

SPECIMEN = "jaxinit.report.gpt2:gpt2_124m"

_FORMS = "module:attribute or path/file.py:attribute"
_MOST_LETTERS = 900


# Errors.


class Unusable(Exception):
    """Something that was given cannot be used; the message is the one line to print."""


class NotReadError(Unusable):
    """A model has no reading; the message says why."""


@contextlib.contextmanager
def as_unusable(prefix: str = "", source: Path | None = None) -> Iterator[None]:
    """Turns the library's errors about values and types into `Unusable`.

    Args:
        prefix: put before the message.
        source: file whose line is named when the error was raised in it.
    """
    try:
        yield
    except (ValueError, TypeError) as error:
        raise Unusable(f"{prefix}{error}{_place_in(error, source)}") from error


def one_line(text: str) -> str:
    """Text on a single line, cut after 900 characters."""
    line = " ".join(text.split())
    return line if len(line) <= _MOST_LETTERS else f"{line[: _MOST_LETTERS - 4]} ..."


def error_text(error: BaseException) -> str:
    """Type and message of an error that a user's code or the system raised, on one line."""
    if isinstance(error, SyntaxError):
        where = f", line {error.lineno}" if error.lineno else ""
        return f"{type(error).__name__}{where}: {error.msg}"
    text = one_line(str(error))
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _place_in(error: BaseException, source: Path | None) -> str:
    """``" (model.py, line 12)"`` when the error, or one that caused it, was raised in that file."""
    chain: list[BaseException] = []
    step: BaseException | None = error
    while step is not None and step not in chain:
        chain.append(step)
        step = step.__cause__ or step.__context__
    for link in reversed(chain):
        for frame in reversed(traceback.extract_tb(link.__traceback__)):
            if source is not None and Path(frame.filename) == source:
                return f" ({source.name}, line {frame.lineno})"
    return ""


# Objects.


class Loaded(NamedTuple):
    """An object that was named.

    Attributes:
        value: the object.
        text: the name it was given by.
        source: the file of its module, where there is one.
    """

    value: Any
    text: str
    source: Path | None


@contextlib.contextmanager
def loaded(text: str, what: str = "TARGET") -> Iterator[Loaded]:
    """Imports an object by name, and keeps its directory importable while it is in use.

    Args:
        text: ``module:attribute`` or ``file.py:attribute``; the attribute may be dotted.
        what: the argument that the text was given for.

    Yields:
        The object, with its name and its file.

    Raises:
        Unusable: when the text has another form, nothing is there, or importing it fails.
    """
    place, colon, attribute = text.rpartition(":")
    if not colon or not place or not attribute:
        example = f"{text}:model" if text and ":" not in text else "model.py:model"
        raise Unusable(f"{what} needs {_FORMS}, got {text!r}. Write for example {example}.")
    is_file = place.endswith(".py") or os.sep in place
    directory = str(Path(place).resolve().parent) if is_file else os.getcwd()
    modules = set(sys.modules)
    with _importable(directory):
        module = _import_file(what, Path(place)) if is_file else _import_module(what, place)
        file = getattr(module, "__file__", None)
        source = Path(file) if file else None
        try:
            yield Loaded(_attribute(what, module, place, attribute), text, source)
        finally:
            if is_file and module.__name__ not in modules:
                sys.modules.pop(module.__name__, None)


@contextlib.contextmanager
def _importable(directory: str) -> Iterator[None]:
    sys.path.insert(0, directory)
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(directory)


def _import_file(what: str, path: Path) -> ModuleType:
    path = path.resolve()
    if not path.is_file():
        reason = "is a directory" if path.is_dir() else "does not exist"
        raise Unusable(f"{what}: the file {path} {reason}.")
    # A name that no package has: a file called jax.py must not become `jax`.
    name = f"_jaxinit_target_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise Unusable(f"{what}: {path} is not a Python file. Name one that ends in .py.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and Flax look their module up by name
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        sys.modules.pop(name, None)
        raise _import_failed(what, path.name, error, path) from error
    return module


def _import_module(what: str, name: str) -> ModuleType:
    if not all(part.isidentifier() for part in name.split(".")):
        raise Unusable(f"{what} needs {_FORMS}, got the module name {name!r}.")
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing is not None and f"{name}.".startswith(f"{missing}."):
            hint = f" Did you mean {name}.py?" if Path(f"{name}.py").is_file() else ""
            raise Unusable(f"{what}: there is no module named {missing!r}.{hint}") from error
        file = getattr(sys.modules.get(name), "__file__", None) or _file_of(name)
        raise _import_failed(what, name, error, Path(file) if file else None) from error


def _file_of(name: str) -> str | None:
    try:
        found = importlib.util.find_spec(name)
    except (ImportError, ValueError, AttributeError):
        return None
    return found.origin if found else None


def _import_failed(what: str, name: str, error: BaseException, source: Path | None) -> Unusable:
    is_relative = isinstance(error, ImportError) and "relative import" in str(error)
    hint = ". Name it as package.module:attribute" if is_relative else ""
    place = _place_in(error, source)
    return Unusable(f"{what}: importing {name} raised {error_text(error)}{place}{hint}")


def _attribute(what: str, module: ModuleType, place: str, attribute: str) -> Any:
    value: Any = module
    for number, name in enumerate(attribute.split(".")):
        try:
            value = getattr(value, name)
        except AttributeError as error:
            owner = ".".join([place, *attribute.split(".")[:number]]) if number else place
            raise Unusable(
                f"{what}: {owner} has no attribute {name!r}.{_nearest(name, value)}"
            ) from error
        except Exception as error:
            raise Unusable(f"{what}: looking up {attribute} raised {error_text(error)}") from error
    return value


def _nearest(name: str, owner: Any) -> str:
    public = [other for other in dir(owner) if not other.startswith("_")]
    close = difflib.get_close_matches(name, public, 3)
    if close:
        return f" Nearest: {', '.join(close)}."
    module = getattr(owner, "__name__", "")
    own = [n for n in public if getattr(getattr(owner, n, None), "__module__", None) == module]
    return f" It has: {', '.join(own[:10])}." if own else ""


# Models.


class Opened(NamedTuple):
    """A model that can be shaped and drawn.

    Attributes:
        model: the model; that of Linen has its inputs.
        target: the name it was given by.
        source: the file of its module, where there is one.
        inputs: what its forward pass is traced with; an NNX model may have none.
    """

    model: Model
    target: str
    source: Path | None
    inputs: Inputs


@contextlib.contextmanager
def opened_model(target: str | None, inputs: Sequence[str] = ()) -> Iterator[Opened]:
    """Imports a model and finds its example inputs.

    Args:
        target: ``module:attribute`` or ``file.py:attribute``; None is the model that ships.
        inputs: example inputs as text; without any, those that the target offers.

    Yields:
        The model. Its directory stays importable while the model is in use.

    Raises:
        Unusable: when Flax is missing, nothing usable is there, or inputs are missing.
    """
    with as_unusable():
        given = parse_inputs(inputs)
    with _flax_needed():
        from jaxinit.flax import LinenModel, NoModelError, as_model
    with loaded(target or SPECIMEN) as found:
        try:
            model = as_model(found.value)
        except NoModelError as error:
            raise Unusable(f"TARGET: {found.text} {error}") from error
        except (Exception, SystemExit) as error:
            raise _raised(found, "making the model", error) from error
        given = given or _offered(found, getattr(model, "module", found.value))
        if isinstance(model, LinenModel):
            if not given and _needs_inputs(model.module):
                raise Unusable(
                    f"{found.text} is a Linen module, and its shapes depend on its inputs. Give "
                    "--input SHAPE:DTYPE, once for each, or the module a method example_inputs()."
                )
            model = dataclasses.replace(model, inputs=given.positional, kwargs=given.named)
        yield Opened(model, found.text, found.source, given)


@contextlib.contextmanager
def _flax_needed() -> Iterator[None]:
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "flax":
            raise
        raise Unusable(
            'jaxinit report needs Flax, which is not installed: pip install "jaxinit[flax]"'
        ) from error


def _raised(found: Loaded, what: str, error: BaseException) -> Unusable:
    place = _place_in(error, found.source)
    return Unusable(f"TARGET: {found.text}: {what} raised {error_text(error)}{place}")


def _offered(found: Loaded, module: Any) -> Inputs:
    """The example inputs of the module, or of the function that made it; none without either."""
    for owner in (module, found.value):
        offer = getattr(owner, "example_inputs", None)
        if not callable(offer) or (inspect.isclass(owner) and not _needs_no_argument(offer)):
            continue
        try:
            return offered_inputs(offer())
        except (Exception, SystemExit) as error:
            raise _raised(found, "example_inputs()", error) from error
    return Inputs()


def _needs_no_argument(method: Any) -> bool:
    """Whether an attribute of a class can be called without an instance."""
    try:
        inspect.signature(method).bind()
    except (TypeError, ValueError):
        return False
    return True


def _needs_inputs(module: Any) -> bool:
    parameters = list(inspect.signature(type(module).__call__).parameters.values())[1:]
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return any(p.default is p.empty and p.kind not in variadic for p in parameters)


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
        return _read_nnx(opened.model, opened.inputs)
    except NotReadError:
        raise
    except (Exception, SystemExit) as error:
        place = _place_in(error, opened.source)
        raise NotReadError(f"tracing the forward pass raised {error_text(error)}{place}") from error


def _read_linen(model: LinenModel, specs: Mapping[str, Any]) -> Reading:
    def forward(variables: Any, *inputs: Any, **kwargs: Any) -> Any:
        # Variables that a layer writes, as BatchNorm does, are dropped; dropout needs a key.
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
    """Nested dictionaries from canonical paths, the form of the variables of a Linen module."""
    tree: dict[str, Any] = {}
    for path, leaf in leaves.items():
        *above, name = path.split("/")
        at = tree
        for segment in above:
            at = at.setdefault(segment, {})
        at[name] = jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
    return tree
