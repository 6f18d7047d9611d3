"""Which initializer for which leaf: an ordered list of patterns, the first match wins.

A pattern is a glob over the canonical path, a compiled regular expression that is searched in it,
or a predicate on (path, leaf). Rules are strict: one that matches nothing, or nothing that an
earlier one left over, is an error, and so is a leaf that no rule covers.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

from jaxinit.initializers import Initializer, get, names
from jaxinit.planning._globs import compile_glob
from jaxinit.planning._messages import listing, nearest_globs, suggestion
from jaxinit.planning._paths import ParamSpec

Predicate = Callable[[str, ParamSpec], bool]
Pattern = str | re.Pattern[str] | Predicate


@dataclasses.dataclass(frozen=True)
class LikeKernel:
    """What `like_kernel` returns; resolved when the plan is made."""

    initializer: Initializer
    sibling: str | None = None

    def __repr__(self) -> str:
        sibling = "" if self.sibling is None else f", sibling={self.sibling!r}"
        return f"like_kernel({self.initializer!r}{sibling})"


def like_kernel(initializer: Any, sibling: str | None = None) -> LikeKernel:
    """Gives a bias the fans of the kernel beside it, which its own shape does not show.

    The law is that of ``initializer`` with the fans of the sibling: torch's default bias,
    U(-1/sqrt(fan_in), 1/sqrt(fan_in)), is ``like_kernel(variance_scaling(1/3, "fan_in",
    "uniform"))``.

    Args:
        initializer: an initializer of the variance scaling family, or its name or config.
        sibling: name of the leaf beside the bias whose fans count; None takes the first of
            ``kernel``, ``weight``, ``w`` and ``embedding`` that is there.

    Returns:
        Something to write in a rule, in place of an initializer.

    Raises:
        TypeError: when ``initializer`` has no law that depends on fans, or ``sibling`` is no
            string.

    Example:
        >>> like_kernel("lecun_uniform")
        like_kernel(lecun_uniform())
    """
    resolved = as_initializer("like_kernel", initializer)
    if not hasattr(resolved, "at_fans"):
        raise TypeError(
            f"like_kernel needs an initializer whose variance depends on fans, got {resolved!r}. "
            "Use variance_scaling or one of its recipes, such as lecun_uniform(); any other "
            "initializer needs no kernel and can be used as it is."
        )
    if sibling is not None and not isinstance(sibling, str):
        raise TypeError(
            f"like_kernel needs sibling as the name of a leaf, got {sibling!r}. "
            "Pass for example 'kernel', or None."
        )
    return LikeKernel(resolved, sibling)


def as_initializer(caller: str, value: Any) -> Initializer:
    """An initializer from itself, a name, a config, or a closure of JAX."""
    try:
        return get(value)
    except (TypeError, ValueError) as error:
        name = getattr(value, "__name__", None)
        if callable(value) and name in names():
            raise type(error)(
                f"{caller} needs an initializer, got the function {name}. Call it: {name}(...)."
            ) from None
        raise type(error)(f"{caller} needs an initializer, got {value!r}. {error}") from None


@dataclasses.dataclass(frozen=True)
class Matcher:
    """A pattern made ready.

    Attributes:
        text: how tables and manifests show it.
        matches: predicate on (path, leaf).
    """

    text: str
    matches: Predicate


def as_matcher(caller: str, pattern: Any) -> Matcher:
    """Compiles a glob, regular expression or predicate.

    Raises:
        TypeError: when the pattern is none of these.
        ValueError: when a glob is malformed.
    """
    if isinstance(pattern, str):
        full = compile_glob(caller, pattern).fullmatch
        return Matcher(pattern, lambda path, leaf: full(path) is not None)
    if isinstance(pattern, re.Pattern):
        if isinstance(pattern.pattern, bytes):
            raise TypeError(f"{caller} needs a regular expression of str, got {pattern!r}.")
        search = pattern.search
        return Matcher(f"re:{pattern.pattern}", lambda path, leaf: search(path) is not None)
    if callable(pattern):
        name = getattr(pattern, "__name__", type(pattern).__name__)
        return Matcher(f"predicate:{name}", lambda path, leaf: bool(pattern(path, leaf)))
    raise TypeError(
        f"{caller} needs a pattern that is a glob, a compiled regular expression or a predicate on "
        f"(path, leaf), got {pattern!r}. Write for example '**/kernel'."
    )


@dataclasses.dataclass(frozen=True)
class Rule:
    """One line of the list: which leaves, and how to draw them."""

    matcher: Matcher
    initializer: Initializer | LikeKernel

    @property
    def text(self) -> str:
        """The pattern as tables and manifests show it."""
        return self.matcher.text


def as_rules(caller: str, rules: Any) -> tuple[Rule, ...]:
    """Checks and compiles a list of (pattern, initializer).

    Raises:
        TypeError: when the rules are not a sequence of pairs, or a part is of the wrong kind.
        ValueError: when a glob is malformed or a name unknown.
    """
    compiled = []
    example = "('**/kernel', he_normal())", "('**', zeros)"
    for number, (pattern, initializer) in enumerate(
        as_pairs(caller, rules, "initializer", example)
    ):
        place = f"{caller}, in rule {number},"
        if not isinstance(initializer, LikeKernel):
            initializer = as_initializer(place, initializer)
        compiled.append(Rule(as_matcher(place, pattern), initializer))
    return tuple(compiled)


def as_pairs(caller: str, rules: Any, noun: str, example: tuple[str, str]) -> list[tuple[Any, Any]]:
    """Checks that rules are pairs.

    Args:
        caller: public name that an error starts with.
        rules: what should be a list of pairs, or a mapping.
        noun: what the second of a pair is called.
        example: two rules that an error shows.

    Raises:
        TypeError: when the rules are not a sequence of pairs.
    """
    if isinstance(rules, Mapping):
        rules = rules.items()
    if isinstance(rules, str) or not isinstance(rules, Iterable):
        raise TypeError(
            f"{caller} needs rules as a list of (pattern, {noun}), got {rules!r}. "
            f"Write for example [{', '.join(example)}]."
        )
    pairs = []
    for number, rule in enumerate(rules):
        if isinstance(rule, str) or not isinstance(rule, Sequence) or len(rule) != 2:
            raise TypeError(
                f"{caller} needs every rule to be a pair (pattern, {noun}), got {rule!r} as "
                f"rule {number}. Write for example {example[0]}."
            )
        pairs.append((rule[0], rule[1]))
    return pairs


class Matching(Protocol):
    """Anything that takes leaves by a pattern."""

    @property
    def matcher(self) -> Matcher:
        """The pattern."""
        ...


def assign(
    caller: str, rules: Sequence[Matching], paths: Sequence[str], specs: Sequence[ParamSpec]
) -> list[int]:
    """Number of the rule that each leaf gets.

    Args:
        caller: public name that an error starts with.
        rules: the rules; the first match wins.
        paths: canonical paths of the leaves.
        specs: what a predicate is told of each leaf.

    Raises:
        ValueError: when a rule matches nothing, or nothing that is left, or a leaf has no rule.
            All offenders are named.
    """
    chosen: dict[int, int] = {}
    complaints = []
    remaining = list(range(len(paths)))
    for number, rule in enumerate(rules):
        taken = {i for i in remaining if rule.matcher.matches(paths[i], specs[i])}
        chosen.update(dict.fromkeys(taken, number))
        remaining = [i for i in remaining if i not in taken]
        if not taken:
            complaints.append(_idle(number, rules, chosen, paths, specs))
    if remaining:
        globs = [rule.matcher.text for rule in rules]
        bare = [f"{paths[i]!r}{nearest_globs(paths[i], globs)}" for i in remaining[:10]]
        noun = "leaf has" if len(remaining) == 1 else "leaves have"
        complaints.append(f"{len(remaining)} {noun} no rule: {listing(bare, total=len(remaining))}")
    if complaints:
        raise ValueError(
            f"{caller} needs every rule to take a leaf and every leaf to have a rule. "
            f"{'; '.join(complaints)}. Correct the patterns, or end with ('**', ...) for the rest."
        )
    return [chosen[i] for i in range(len(paths))]


def _idle(
    number: int,
    rules: Sequence[Matching],
    chosen: Mapping[int, int],
    paths: Sequence[str],
    specs: Sequence[ParamSpec],
) -> str:
    """Why a rule took no leaf."""
    rule = rules[number]
    takers = sorted(
        {taker for i, taker in chosen.items() if rule.matcher.matches(paths[i], specs[i])}
    )
    text = rule.matcher.text
    if not takers:
        return f"rule {number} {text!r} matches no leaf{suggestion(text, paths)}"
    earlier = listing([f"rule {taker} {rules[taker].matcher.text!r}" for taker in takers])
    return f"rule {number} {text!r} is shadowed: all that it matches is taken by {earlier}"
