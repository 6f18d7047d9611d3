"""Objects named on the command line: ``package.module:attribute`` or ``path/file.py:attribute``.

The code is imported as Python would run it: a file sees its own directory, a module the current
one, while it is in use. What it prints goes to the standard error.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib
import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from jaxinit.report._errors import Unusable, describe, place_in

_FORMS = "module:attribute or path/file.py:attribute"


class Loaded(NamedTuple):
    """An object that was named.

    Attributes:
        value: the object.
        text: how it was named.
        source: the file it was looked up in, where there is one.
    """

    value: Any
    text: str
    source: Path | None


@contextlib.contextmanager
def loaded(text: str, what: str = "TARGET") -> Iterator[Loaded]:
    """Imports an object by name, and keeps its directory importable while in use.

    Args:
        text: ``module:attribute`` or ``file.py:attribute``; the attribute may be dotted.
        what: the argument that the text was given for.

    Yields:
        The object, with what is known of it.

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
        spec = sys.modules.get(name)
        file = getattr(spec, "__file__", None) or _file_of(name)
        raise _import_failed(what, name, error, Path(file) if file else None) from error


def _file_of(name: str) -> str | None:
    try:
        found = importlib.util.find_spec(name)
    except (ImportError, ValueError, AttributeError):
        return None
    return found.origin if found else None


def _import_failed(what: str, name: str, error: BaseException, source: Path | None) -> Unusable:
    place = place_in(error, source)
    is_relative = isinstance(error, ImportError) and "relative import" in str(error)
    hint = ". Name it as package.module:attribute" if is_relative else ""
    return Unusable(f"{what}: importing {name} raised {describe(error)}{place}{hint}")


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
            raise Unusable(f"{what}: looking up {attribute} raised {describe(error)}") from error
    return value


def _nearest(name: str, owner: Any) -> str:
    public = [other for other in dir(owner) if not other.startswith("_")]
    close = difflib.get_close_matches(name, public, 3)
    if close:
        return f" Nearest: {', '.join(close)}."
    own = [
        other
        for other in public
        if getattr(getattr(owner, other, None), "__module__", None)
        == getattr(owner, "__name__", "")
    ]
    return f" It has: {', '.join(own[:10])}." if own else ""
