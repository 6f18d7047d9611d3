"""The plan that a report draws: from the model's own initializers, from rules, or from a plan.

Without rules every leaf gets the model's own initializer, where it is known. Rules, when given,
decide every parameter; other variables of a Linen module (running means) that no rule names keep
the model's own initializer. Rules come as JSON, as a plan's manifest, or from Python.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxinit.initializers import Initializer
from jaxinit.planning import ParamSpec, Plan, as_matcher, as_rules, plan
from jaxinit.report._parsing import parse_initializer
from jaxinit.report._targets import Unusable, as_unusable, loaded

# By path: the initializers of a model, None where unknown, and the shapes of its leaves.
Own = Mapping[str, Initializer | None]
Specs = Mapping[str, ParamSpec]
# (pattern, initializer), as `jaxinit.plan` takes them.
Pairs = list[tuple[Any, Any]]

_FORMS = (
    "Give a JSON list of [pattern, initializer], a file that holds one or a plan's manifest, or "
    "module:attribute."
)


# Rules as they were given.


@contextlib.contextmanager
def opened_rules(text: str) -> Iterator[Pairs | Plan]:
    """Rules, or a whole plan, from the text of ``--rules``.

    Args:
        text: JSON, the path of a JSON file, or ``module:attribute`` naming a list or a plan.

    Yields:
        Rules, or the plan. A module that was imported for them stays importable while in use.

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


# The plan.


@dataclasses.dataclass(frozen=True)
class Assembled:
    """The leaves that will be drawn, and what draws them.

    Attributes:
        plan: the leaves that are drawn with known laws, by canonical path.
        own: the plan of the model's own initializers, where they are known.
        unknown: paths of the leaves that the model must draw itself.
    """

    plan: Plan
    own: Plan
    unknown: tuple[str, ...]


def assemble(
    specs: Specs,
    own: Own,
    rules: Pairs | Plan | None,
    is_parameter: Callable[[str], bool],
    dtype: np.dtype | None = None,
) -> Assembled:
    """Decides what draws each leaf.

    Args:
        specs: shapes of all leaves, by path.
        own: the model's own initializers.
        rules: rules, a plan, or None for the model's own initialization.
        is_parameter: whether a leaf is a parameter, which rules must cover.
        dtype: dtype for the floating-point leaves that are planned; None leaves theirs.

    Raises:
        Unusable: when a plan does not fit the model.
        ValueError: when rules do not fit, as `jaxinit.plan` says.
        TypeError: in the same case.
    """
    known = {path: spec for path, spec in specs.items() if own[path] is not None}
    own_plan = plan(_cast(known, dtype), _rules_by_path(own, known))
    if rules is None:
        return Assembled(own_plan, own_plan, tuple(path for path in specs if path not in known))
    if isinstance(rules, Plan):
        _check_fits(rules, specs, is_parameter)
        # The initializers of a plan are fitted already, so the shapes leave out axes and stacking.
        shapes = {leaf.path: ParamSpec(leaf.shape, leaf.dtype) for leaf in rules}
        pairs = _rules_by_path({leaf.path: leaf.initializer for leaf in rules}, shapes)
    else:
        named = {path for path in specs if is_parameter(path)} | _matched(specs, rules)
        shapes, pairs = {path: specs[path] for path in specs if path in named}, rules
    rest = {path: spec for path, spec in known.items() if path not in shapes}
    made = plan(_cast(shapes | rest, dtype), [*pairs, *_rules_by_path(own, rest)])
    return Assembled(made, own_plan, tuple(path for path in specs if path not in made))


def _cast(specs: Specs, dtype: np.dtype | None) -> dict[str, ParamSpec]:
    return {
        path: dataclasses.replace(spec, dtype=dtype)
        if dtype is not None and jnp.issubdtype(spec.dtype, jnp.floating)
        else spec
        for path, spec in specs.items()
    }


def _rules_by_path(initializers: Own, paths: Collection[str]) -> Pairs:
    """One rule for each initializer.

    The patterns are predicates, since a path may hold characters that have a meaning in a glob.
    """
    members: dict[Initializer, list[str]] = {}
    for path in paths:
        initializer = initializers[path]
        assert initializer is not None
        members.setdefault(initializer, []).append(path)
    return [(_exactly(paths), initializer) for initializer, paths in members.items()]


def _exactly(paths: Sequence[str]) -> Callable[[str, Any], bool]:
    wanted = frozenset(paths)
    return lambda path, leaf: path in wanted


def _matched(specs: Specs, rules: Pairs) -> set[str]:
    matchers = [as_matcher("jaxinit report", pattern) for pattern, _ in rules]
    return {p for p, spec in specs.items() if any(m.matches(p, spec) for m in matchers)}


def _check_fits(given: Plan, specs: Specs, is_parameter: Callable[[str], bool]) -> None:
    surplus = [leaf.path for leaf in given if leaf.path not in specs]
    missing = [path for path in specs if is_parameter(path) and path not in given]
    other = [
        f"{leaf.path} of shape {leaf.shape} for {specs[leaf.path].shape}"
        for leaf in given
        if leaf.path in specs and leaf.shape != specs[leaf.path].shape
    ]
    wrong = {"it has leaves that the model has not": surplus, "it lacks": missing, "it has": other}
    complaints = [
        f"{what} ({len(paths)}): {', '.join(paths[:3])}" for what, paths in wrong.items() if paths
    ]
    if complaints:
        raise Unusable(f"--rules: the plan does not fit the model; {'; '.join(complaints)}.")
