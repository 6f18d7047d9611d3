"""Rules for a report: from JSON, from a plan's manifest, or from Python."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxinit.planning import Plan, as_rules
from jaxinit.report._errors import Unusable, as_unusable
from jaxinit.report._expressions import parse_initializer
from jaxinit.report._targets import loaded

# (pattern, initializer), as `jaxinit.plan` takes them.
Pairs = list[tuple[Any, Any]]

_FORMS = (
    "Give a JSON list of [pattern, initializer], a file that holds one or a plan's manifest, or "
    "module:attribute."
)


@contextlib.contextmanager
def opened_rules(text: str) -> Iterator[Pairs | Plan]:
    """Rules, or a whole plan, from what was given to ``--rules``.

    Args:
        text: JSON, the path of a JSON file, or ``module:attribute`` naming a list or a plan.

    Yields:
        Rules, or the plan. What was imported for them stays importable while in use.

    Raises:
        Unusable: when nothing usable is there.
    """
    text = text.strip()
    if text.startswith(("[", "{")):
        yield _from_json(text, "--rules: ")
    elif _names_python(text):
        with loaded(text, "--rules") as found:
            with as_unusable(f"--rules: {text}: "):
                value = found.value if isinstance(found.value, Plan) else _checked(found.value)
            yield value
    else:
        yield _from_json(_read(text), f"--rules: {text}: ")


def _names_python(text: str) -> bool:
    place, colon, attribute = text.rpartition(":")
    named = bool(colon and place) and attribute.replace(".", "").isidentifier()
    return named and not Path(text).is_file()


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise Unusable(f"--rules: the file {path!r} does not exist. {_FORMS}") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise Unusable(f"--rules: {path!r} cannot be read: {reason}. {_FORMS}") from error


def _from_json(text: str, prefix: str) -> Pairs | Plan:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Unusable(f"{prefix}this is no well-formed JSON: {error}. {_FORMS}") from error
    with as_unusable(prefix):
        if isinstance(content, Mapping) and "format" in content:
            return Plan.from_json(text)
        pairs = list(content.items()) if isinstance(content, Mapping) else content
        return _checked([_read_pair(number, pair) for number, pair in enumerate(pairs)])


def _read_pair(number: int, pair: Any) -> Any:
    """A pair whose initializer, where it is a string, may be a call as well as a name."""
    is_pair = isinstance(pair, Sequence) and not isinstance(pair, str) and len(pair) == 2
    if not is_pair or not isinstance(pair[1], str):
        return pair
    try:
        return pair[0], parse_initializer(pair[1])
    except (ValueError, TypeError) as error:
        raise type(error)(f"rule {number} has no usable initializer. {error}") from None


def _checked(rules: Any) -> Pairs:
    as_rules("jaxinit report", rules)
    return list(rules.items() if isinstance(rules, Mapping) else rules)
