"""Which initializer for which leaf: an ordered list of patterns, the first match wins.

Rules are strict: one that matches nothing, or nothing that an earlier one left over, is an error,
and so is a leaf that no rule covers. The initializer of a rule is then fitted to each of its
leaves: true axes where the model is known, stacked layers, the fans of a sibling for `like_kernel`.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias, cast

from jaxinit._arguments import listing, nearest_globs, suggestion
from jaxinit.initializers import Fans, Initializer, Own, fused, get, names, own, stacked
from jaxinit.planning._leaves import PlannedLeaf
from jaxinit.planning._paths import ParamSpec
from jaxinit.planning._patterns import Matcher, Pattern, as_matcher

_SIBLINGS = ("kernel", "weight", "w", "embedding")


@dataclasses.dataclass(frozen=True)
class LikeKernel:
    """What `like_kernel` returns; resolved when the plan is made."""

    initializer: Initializer
    sibling: str | None = None

    def __repr__(self) -> str:
        sibling = "" if self.sibling is None else f", sibling={self.sibling!r}"
        return f"like_kernel({self.initializer!r}{sibling})"


@dataclasses.dataclass(frozen=True)
class PerLayer:
    """Initializers for the layers of a stack, one for each; resolved when the plan is made."""

    initializers: tuple[Initializer, ...]

    def __repr__(self) -> str:
        return repr(list(self.initializers))


# An initializer, its name, its config, or a function such as a closure of `jax.nn.initializers`.
InitializerLike: TypeAlias = Initializer | str | Mapping[str, Any] | Callable[..., Any]
# What a rule may hold: for stacked layers also one initializer for each.
Filled: TypeAlias = InitializerLike | LikeKernel | Sequence[InitializerLike]
Rules: TypeAlias = Iterable[tuple[Pattern, Filled]] | Mapping[str, Filled]
# What a rule holds once it was checked.
Wanted: TypeAlias = Initializer | LikeKernel | PerLayer


def like_kernel(initializer: InitializerLike, sibling: str | None = None) -> LikeKernel:
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
    resolved = _as_initializer("like_kernel", initializer)
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


def _as_initializer(caller: str, value: InitializerLike) -> Initializer:
    try:
        return get(value)
    except (TypeError, ValueError) as error:
        name = getattr(value, "__name__", None)
        if callable(value) and name in names():
            raise type(error)(
                f"{caller} needs an initializer, got the function {name}. Call it: {name}(...)."
            ) from None
        raise type(error)(f"{caller} needs an initializer, got {value!r}. {error}") from None


class Rule(NamedTuple):
    """One line of the list: which leaves, and how to draw them."""

    matcher: Matcher
    initializer: Wanted


def as_rules(caller: str, rules: Rules) -> tuple[Rule, ...]:
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
        if isinstance(initializer, list | tuple):
            initializer = PerLayer(tuple(_as_initializer(place, one) for one in initializer))
        elif not isinstance(initializer, LikeKernel):
            initializer = _as_initializer(place, initializer)
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


def assign(
    caller: str,
    matchers: Sequence[Matcher],
    specs: Mapping[str, Any],
    elsewhere: Collection[str] = (),
) -> dict[str, int]:
    """Number of the rule that each leaf gets, by path.

    Args:
        caller: public name that an error starts with.
        matchers: the patterns of the rules; the first match wins.
        specs: what a predicate is told of each leaf, by path.
        elsewhere: paths of leaves that the model has and the tree leaves out. A glob that matches
            one of these may take no leaf of the tree.

    Raises:
        ValueError: when a rule matches nothing, or nothing that is left, or a leaf has no rule.
            All offenders are named.
    """
    chosen: dict[str, int] = {}
    complaints = []
    for number, matcher in enumerate(matchers):
        taken = [p for p, spec in specs.items() if p not in chosen and matcher.matches(p, spec)]
        if not taken and not any(map(matcher.matches_path, elsewhere)):
            complaints.append(_idle(number, matchers, chosen, specs))
        chosen.update(dict.fromkeys(taken, number))
    if remaining := [path for path in specs if path not in chosen]:
        globs = [matcher.text for matcher in matchers]
        bare = [f"{path!r}{nearest_globs(path, globs)}" for path in remaining[:10]]
        noun = "leaf has" if len(remaining) == 1 else "leaves have"
        complaints.append(f"{len(remaining)} {noun} no rule: {listing(bare, total=len(remaining))}")
    if complaints:
        raise ValueError(
            f"{caller} needs every rule to take a leaf and every leaf to have a rule. "
            f"{'; '.join(complaints)}. Correct the patterns, or end with ('**', ...) for the rest."
        )
    return chosen


def _idle(
    number: int, matchers: Sequence[Matcher], chosen: Mapping[str, int], specs: Mapping[str, Any]
) -> str:
    """Why a rule took no leaf."""
    text, matches = matchers[number].text, matchers[number].matches
    takers = sorted({taker for path, taker in chosen.items() if matches(path, specs[path])})
    if not takers:
        return f"rule {number} {text!r} matches no leaf{suggestion(text, specs)}"
    earlier = listing([f"rule {taker} {matchers[taker].text!r}" for taker in takers])
    return f"rule {number} {text!r} is shadowed: all that it matches is taken by {earlier}"


def planned_leaves(
    caller: str,
    specs: Mapping[str, ParamSpec],
    rules: Sequence[Rule],
    frozen: Collection[str] = (),
) -> list[PlannedLeaf]:
    """The leaves of a tree with the initializers that their rules give them, not yet grouped.

    Args:
        caller: public name that an error starts with.
        specs: the leaves.
        rules: the rules; those whose leaves are all frozen take none.
        frozen: leaves that the rule `own` takes before all others, as it takes random keys.

    Raises:
        ValueError: when `assign` does, or an initializer makes no sense for a leaf; all offenders
            are named with path, shape and rule.
        TypeError: the same, when only dtypes are wrong.
    """
    keys = {path for path, spec in specs.items() if spec.is_key}
    models = {id(s.own.model): s.own.model for s in specs.values() if s.own is not None}
    elsewhere = {path for model in models.values() for path in model.leaves}.difference(specs)
    kept = keys.union(frozen)
    open_specs = {path: spec for path, spec in specs.items() if path not in kept}
    matchers = [rule.matcher for rule in rules]
    assigned = assign(caller, matchers, open_specs, elsewhere | kept)
    rules = [
        *rules,
        *(Rule(Matcher(why, lambda *_: True), own) for why in ("frozen", "random key")),
    ]
    assigned |= dict.fromkeys(frozen, len(rules) - 2) | dict.fromkeys(keys, len(rules) - 1)
    fitted: dict[Any, PlannedLeaf | Exception] = {}
    leaves, offenders = [], []
    for path, spec in specs.items():
        number = assigned[path]
        rule, sibling, kernel = rules[number], None, None
        wanted = rule.initializer
        if isinstance(wanted, LikeKernel):
            sibling = _sibling(path, wanted, specs)
        if sibling is not None:
            kernel = specs[sibling], rules[assigned[sibling]].initializer
        if wanted == own:
            wanted = own_of(spec)
        case = (number, spec, wanted, kernel)
        if case not in fitted:
            try:
                initializer = _fit(wanted, spec, kernel)
                fitted[case] = PlannedLeaf.of(path, spec, initializer, rule.matcher.text, number)
            except (TypeError, ValueError) as error:
                fitted[case] = error
        result = fitted[case]
        if isinstance(result, Exception):
            offenders.append((path, spec, f"rule {number} {rule.matcher.text!r}", result))
        else:
            leaves.append(dataclasses.replace(result, path=path))
    if offenders:
        _refuse(caller, offenders)
    return leaves


def _sibling(path: str, like: LikeKernel, specs: Mapping[str, ParamSpec]) -> str | None:
    parent, slash, _ = path.rpartition("/")
    beside = (f"{parent}{slash}{name}" for name in _sibling_names(like))
    return next((sibling for sibling in beside if sibling in specs), None)


def _sibling_names(like: LikeKernel) -> Sequence[str]:
    return _SIBLINGS if like.sibling is None else (like.sibling,)


def own_of(spec: ParamSpec) -> Own:
    """What the model draws a leaf with, as far as it is known."""
    known = None if spec.own is None else spec.own.model.initializer(spec.own.path)
    return own if known is None else own(known)


def _fit(
    initializer: Wanted, spec: ParamSpec, kernel: tuple[ParamSpec, Wanted] | None
) -> Initializer:
    """The initializer for one leaf; `kernel` is the sibling of a `like_kernel` and its rule's."""
    if isinstance(initializer, Own):
        return initializer  # it draws the leaf as it is stored
    if isinstance(initializer, PerLayer):
        return _fit_layers(initializer.initializers, spec)
    if not isinstance(initializer, LikeKernel):
        fitted = with_roles(initializer, spec)
        # A rule may stack the layers itself.
        return fitted if fitted.label == "stacked" else over_layers(fitted, spec)
    if kernel is None:
        raise ValueError(
            f"{initializer!r} needs a sibling named {' or '.join(_sibling_names(initializer))} "
            "beside the leaf, found none. Name it with sibling=, or give the leaf a rule of its "
            "own."
        )
    fans = _fans_of_kernel(initializer, *kernel)
    return over_layers(cast(Any, initializer.initializer).at_fans(fans), spec)


def _fit_layers(initializers: Sequence[Initializer], spec: ParamSpec) -> Initializer:
    """One initializer for each layer along the first stacked axis, or along the leading axis."""
    stack = spec.stack_axes or (0,)
    count = spec.shape[stack[0]] if spec.shape else 0
    if len(initializers) != count or not count:
        raise ValueError(
            f"a list needs one initializer for each layer along axis {stack[0]} of {spec.shape}, "
            f"got {len(initializers)}. Write one initializer alone to use it for all."
        )
    runs = [(one, len(list(same))) for one, same in itertools.groupby(initializers)]
    layers = [stacked(with_roles(one, spec), stack) for one, _ in runs]
    return fused(layers, [length for _, length in runs], stack[0])


def with_roles(initializer: Initializer, spec: ParamSpec) -> Initializer:
    """The initializer with the axes that the model really contracts, where they are known."""
    if spec.axes is None:
        return initializer
    return initializer.with_axes(
        spec.axes, groups=spec.groups, transposed_strides=spec.transposed_strides
    )


def over_layers(initializer: Initializer, spec: ParamSpec) -> Initializer:
    """The initializer of one layer, for all layers along the stacked axes."""
    if not spec.stack_axes:
        return initializer
    law = initializer.law(spec.layer_shape, spec.dtype)
    if not initializer.random and law.variance == 0:
        return initializer  # one constant: a stack of it is the same array
    return stacked(initializer, spec.stack_axes)


def _fans_of_kernel(like: LikeKernel, kernel: ParamSpec, kernel_initializer: Wanted) -> Fans:
    # Axes that were read from the model are the best; then those that the kernel's own rule names;
    # then the defaults of the initializer.
    if kernel.axes is None and isinstance(kernel_initializer, Initializer):
        if kernel_initializer.axes is not None and (fans := kernel_initializer.fans(kernel.shape)):
            return fans
    return cast(Fans, with_roles(like.initializer, kernel).fans(kernel.layer_shape))


def _refuse(caller: str, offenders: Sequence[tuple[str, ParamSpec, str, Exception]]) -> None:
    reasons: dict[tuple[str, str], list[str]] = {}
    for path, spec, rule, error in offenders:
        leaf = f"{path!r} of shape {spec.shape} and {spec.dtype}"
        reasons.setdefault((rule, str(error)), []).append(leaf)
    parts = [f"{listing(who)} by {rule}: {error}" for (rule, error), who in reasons.items()]
    only_types = all(isinstance(error, TypeError) for *_, error in offenders)
    raise (TypeError if only_types else ValueError)(
        f"{caller} cannot draw {listing(parts, separator=' Nor ')}"
    )
