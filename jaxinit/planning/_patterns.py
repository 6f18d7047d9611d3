"""Patterns that take leaves: globs over canonical paths, regular expressions and predicates.

In a glob, ``*`` stands for any characters within a segment, ``?`` for one, ``[abc]`` and ``[!abc]``
for one of a set or none of it, ``{a,b}`` for alternatives, which may nest and may hold slashes, and
``**`` as a whole segment for any number of segments, none included: ``**/kernel`` matches
``kernel`` too.
"""

from __future__ import annotations

import dataclasses
import inspect
import itertools
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any, TypeAlias, cast

import jax
import numpy as np

from jaxinit._arguments import suggestion
from jaxinit._types import PyTree
from jaxinit.planning._paths import ParamSpec, canonical_path, flatten

Predicate: TypeAlias = Callable[[str, ParamSpec], bool]
Pattern: TypeAlias = str | re.Pattern[str] | Predicate
Patterns: TypeAlias = Pattern | Collection[Pattern]

_MAX_ALTERNATIVES = 1_000
# A set, with at least one character in it, or any other character.
_TOKEN = re.compile(r"\[(?:![^/]|[^!/])[^]/]*\]|.", re.DOTALL)


@dataclasses.dataclass(frozen=True)
class Matcher:
    """A pattern made ready.

    Attributes:
        text: how tables and manifests show it.
        matches: predicate on (path, leaf).
        matches_path: the same where the path says it all; false where it does not.
    """

    text: str
    matches: Predicate
    matches_path: Callable[[str], bool] = lambda path: False


def as_matcher(caller: str, pattern: Pattern) -> Matcher:
    """Compiles a glob, regular expression or predicate.

    Raises:
        TypeError: when the pattern is none of these.
        ValueError: when a glob is malformed.
    """
    if isinstance(pattern, str):
        full = compile_glob(caller, pattern).fullmatch
        return _of_paths(pattern, lambda path: full(path) is not None)
    if isinstance(pattern, re.Pattern):
        if isinstance(pattern.pattern, bytes):
            raise TypeError(f"{caller} needs a regular expression of str, got {pattern!r}.")
        search = pattern.search
        return _of_paths(f"re:{pattern.pattern}", lambda path: search(path) is not None)
    if callable(pattern):
        name = getattr(pattern, "__name__", type(pattern).__name__)
        return Matcher(f"predicate:{name}", lambda path, leaf: bool(pattern(path, leaf)))
    raise TypeError(
        f"{caller} needs a pattern that is a glob, a compiled regular expression or a predicate on "
        f"(path, leaf), got {pattern!r}. Write for example '**/kernel'."
    )


def _of_paths(text: str, matches: Callable[[str], bool]) -> Matcher:
    return Matcher(text, lambda path, leaf: matches(path), matches)


def matching_paths(
    caller: str, argument: str, patterns: Patterns, specs: Mapping[str, ParamSpec]
) -> set[str]:
    """The paths that any of the patterns matches.

    Args:
        caller: public name that an error starts with.
        argument: the argument that holds the patterns, as the error writes it.
        patterns: one pattern, or several.
        specs: what a predicate is told of each leaf, by path.

    Raises:
        TypeError: when something is no pattern.
        ValueError: when a pattern is malformed or matches no leaf.
    """
    if not isinstance(patterns, list | tuple | set | frozenset):
        patterns = [cast(Pattern, patterns)]
    chosen: set[str] = set()
    for pattern in patterns:
        matcher = as_matcher(f"{caller}, in {argument},", pattern)
        hits = {path for path, spec in specs.items() if matcher.matches(path, spec)}
        if not hits:
            raise ValueError(
                f"{caller} needs every pattern in {argument} to match a leaf, got "
                f"{matcher.text!r}, which matches none{suggestion(matcher.text, specs)}. "
                "Remove or correct it."
            )
        chosen |= hits
    return chosen


def frozen_paths(
    caller: str, frozen: Any, tree: PyTree, specs: Mapping[str, ParamSpec]
) -> set[str]:
    """The paths of leaves that are named as frozen.

    Args:
        caller: public name that an error starts with.
        frozen: one pattern, or several; a filter of NNX, where the tree holds its variables; a mask
            as optax takes it, a tree of booleans or a function from ``tree`` to such a tree.
        tree: the tree of the plan.
        specs: what a predicate is told of each leaf, by path.

    Raises:
        TypeError: when something is no pattern, or a mask holds something else than booleans.
        ValueError: when a pattern is malformed or matches no leaf, or a mask is of no leaf.
    """
    if frozen is None or (isinstance(frozen, list | tuple) and not frozen):
        return set()
    if isinstance(frozen, type) or type(frozen).__module__.startswith("flax.nnx"):
        return _in_variables(caller, frozen, tree)
    if callable(frozen) and not _takes(frozen, 2):
        frozen = frozen(tree)
    if isinstance(frozen, str | re.Pattern | list | tuple | set | frozenset) or callable(frozen):
        patterns: Any = frozen
        return matching_paths(caller, "frozen=", patterns, specs)
    mask = dict(flatten(f"{caller}, in frozen=,", frozen).items())
    for path, value in mask.items():
        if not isinstance(value, bool | np.bool_) or path not in specs:
            raise (ValueError if path not in specs else TypeError)(
                f"{caller} needs frozen= as a tree of booleans for leaves of the tree, got "
                f"{value!r} at {path!r}{suggestion(path, specs)}. True keeps a leaf."
            )
    return {path for path, value in mask.items() if value}


def _takes(function: Callable[..., Any], count: int) -> bool:
    """Whether a function can be called with so many arguments."""
    try:
        inspect.signature(function).bind(*[None] * count)
    except (TypeError, ValueError):
        return False
    return True


def _in_variables(caller: str, chosen: Any, tree: PyTree) -> set[str]:
    """Paths of the leaves below variables of a class, or that a filter of NNX chooses."""

    def is_variable(value: Any) -> bool:
        return any(kind.__module__.startswith("flax.nnx.variable") for kind in type(value).__mro__)

    found = set()
    for entries, variable in jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_variable)[0]:
        path = canonical_path(entries)
        is_class = isinstance(chosen, type)
        taken = isinstance(variable, chosen) if is_class else chosen(path.split("/"), variable)
        if taken:
            found.add(path)
    if not found:
        raise ValueError(
            f"{caller} needs frozen= to name a leaf, got {chosen!r}, which is of no variable of "
            "the tree. Make the tree with jaxinit.flax.nnx_tree, or write patterns over paths."
        )
    return found


def compile_glob(caller: str, glob: str) -> re.Pattern[str]:
    """The regular expression that a glob stands for, to be matched in full."""
    alternatives = [_translate(caller, glob, plain) for plain in _expand(caller, glob)]
    try:
        return re.compile("|".join(f"(?:{one})" for one in alternatives), re.DOTALL)
    except re.error as error:
        raise ValueError(
            f"{caller} needs a well-formed glob, got {glob!r}: {error}. "
            "A range in brackets runs upwards, as in [a-z]."
        ) from None


def _expand(caller: str, glob: str) -> list[str]:
    """All globs without braces that one with braces stands for."""
    done, waiting = [], [_TOKEN.findall(glob)]
    while waiting:
        tokens = waiting.pop()
        if "{" not in tokens:
            done.append("".join(tokens))
            continue
        brace = tokens.index("{")
        alternatives, rest = _split_alternatives(tokens[brace + 1 :])
        if rest is None:
            raise ValueError(
                f"{caller} needs a glob whose braces are closed, got {glob!r}. "
                "Write {a,b} for alternatives, [{] for the character itself."
            )
        waiting.extend([*tokens[:brace], *one, *rest] for one in reversed(alternatives))
        if len(done) + len(waiting) > _MAX_ALTERNATIVES:
            raise ValueError(
                f"{caller} needs a glob of at most {_MAX_ALTERNATIVES} alternatives, got {glob!r}. "
                "Use a compiled regular expression."
            )
    return done


def _split_alternatives(tokens: list[str]) -> tuple[list[list[str]], list[str] | None]:
    """The alternatives after an opening brace, and what follows the closing one, if any."""
    alternatives, depth, start = [], 0, 0
    for position, token in enumerate(tokens):
        if depth == 0 and token in (",", "}"):
            alternatives.append(tokens[start:position])
            start = position + 1
            if token == "}":
                return alternatives, tokens[start:]
        depth += (token == "{") - (token == "}")
    return alternatives, None


def _translate(caller: str, glob: str, plain: str) -> str:
    """Regular expression for a glob without braces."""
    expression, pending_slash = "", False
    # Neighbouring ** say no more than one, and would backtrack.
    segments = [
        segment
        for segment, after in itertools.pairwise([*plain.split("/"), ""])
        if (segment, after) != ("**", "**")
    ]
    for number, segment in enumerate(segments):
        is_last = number == len(segments) - 1
        if segment == "**":
            if is_last:
                expression += "(?:/.*)?" if pending_slash else ".*"
            else:
                expression += ("/" if pending_slash else "") + "(?:[^/]*/)*"
            pending_slash = False
            continue
        if "**" in segment:
            raise ValueError(
                f"{caller} needs ** to be a whole segment of a glob, got {glob!r}. "
                "Write * for any characters within a segment, **/ for any number of segments."
            )
        tokens = _TOKEN.findall(segment)
        if "[" in tokens:
            raise ValueError(
                f"{caller} needs a glob whose brackets are closed, got {glob!r}. "
                "Write [abc] for one character of a set, [[] for the bracket itself."
            )
        expression += ("/" if pending_slash else "") + "".join(map(_translate_token, tokens))
        pending_slash = True
    return expression


def _translate_token(token: str) -> str:
    if token == "*":
        return "[^/]*"
    if token == "?":
        return "[^/]"
    if len(token) == 1:
        return re.escape(token)
    negated = token[1] == "!"
    members = re.sub(r"([\\\]\[^&~|])", r"\\\1", token[2 if negated else 1 : -1])
    return f"[^/{members}]" if negated else f"[{members}]"
