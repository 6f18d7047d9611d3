"""From a rule and what is known of a leaf to the initializer that will draw it, and its law."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, cast

from jaxinit.initializers import Fans, Initializer, Law, stacked
from jaxinit.planning._messages import listing
from jaxinit.planning._paths import ParamSpec
from jaxinit.planning._rules import LikeKernel, Rule

_SIBLINGS = ("kernel", "weight", "w", "embedding")


class Resolved(NamedTuple):
    """How a leaf is drawn and which law that is."""

    initializer: Initializer
    fans: Fans | None
    law: Law


def resolve(
    caller: str,
    paths: Sequence[str],
    specs: Sequence[ParamSpec],
    rules: Sequence[Rule],
    assigned: Sequence[int],
) -> list[Resolved]:
    """Fits the initializer of each leaf's rule to the leaf.

    Raises:
        ValueError: when an initializer makes no sense for a leaf; all offenders are named with
            path, shape and rule.
        TypeError: the same, when only dtypes are wrong.
    """
    by_path = {path: index for index, path in enumerate(paths)}
    results: dict[Any, Resolved | Exception] = {}
    resolved, offenders = [], []
    for path, spec, number in zip(paths, specs, assigned, strict=True):
        recipe = rules[number].initializer
        kernel = None
        if isinstance(recipe, LikeKernel):
            kernel = _sibling(path, recipe, by_path)
        case = (number, spec, kernel and (specs[kernel], assigned[kernel]))
        if case not in results:
            try:
                fitted = _fit(recipe, spec, kernel, specs, rules, assigned)
                law = fitted.law(spec.shape, spec.dtype)
                results[case] = Resolved(fitted, fitted.fans(spec.shape), law)
            except (TypeError, ValueError) as error:
                results[case] = error
        result = results[case]
        if isinstance(result, Exception):
            offenders.append((path, spec, number, result))
        else:
            resolved.append(result)
    if offenders:
        _complain(caller, rules, offenders)
    return resolved


def _fit(
    recipe: Initializer | LikeKernel,
    spec: ParamSpec,
    kernel: int | None,
    specs: Sequence[ParamSpec],
    rules: Sequence[Rule],
    assigned: Sequence[int],
) -> Initializer:
    if isinstance(recipe, LikeKernel):
        if kernel is None:
            wanted = [recipe.sibling] if recipe.sibling else _SIBLINGS
            raise ValueError(
                f"{recipe!r} needs a sibling named {' or '.join(wanted)} beside the leaf, found "
                "none. Name it with sibling=, or give the leaf a rule of its own."
            )
        fans = _fans_of_sibling(recipe, specs[kernel], rules[assigned[kernel]].initializer)
        base = cast(Any, recipe.initializer).at_fans(fans)
    else:
        base = with_roles(recipe, spec)
    return _stack(base, spec)


def with_roles(initializer: Initializer, spec: ParamSpec) -> Initializer:
    """The initializer with the axes that the model really contracts, where they are known."""
    if spec.axes is None:
        return initializer
    return initializer.with_axes(
        spec.axes, groups=spec.groups, transposed_strides=spec.transposed_strides
    )


def _stack(initializer: Initializer, spec: ParamSpec) -> Initializer:
    """Layers of their own along the stacked axes, unless the rule says so itself."""
    if not spec.stack_axes or initializer.label == "stacked":
        return initializer
    law = initializer.law(spec.layer_shape, spec.dtype)
    if not initializer.random and law.variance == 0:
        return initializer  # one constant: a stack of it is the same array
    return stacked(initializer, spec.stack_axes)


def _sibling(path: str, recipe: LikeKernel, by_path: Mapping[str, int]) -> int | None:
    parent, slash, _ = path.rpartition("/")
    names = _SIBLINGS if recipe.sibling is None else (recipe.sibling,)
    beside = (by_path.get(f"{parent}{slash}{name}") for name in names)
    return next((index for index in beside if index is not None), None)


def _fans_of_sibling(
    recipe: LikeKernel, kernel: ParamSpec, kernel_recipe: Initializer | LikeKernel
) -> Fans:
    # Axes that the kernel's own rule names are better than defaults, worse than axes that were
    # read from the model.
    initializer = with_roles(recipe.initializer, kernel)
    own_axes = None if isinstance(kernel_recipe, LikeKernel) else kernel_recipe.axes
    if kernel.axes is None and own_axes is not None:
        fans = cast(Initializer, kernel_recipe).fans(kernel.shape)
        if fans is not None:
            return fans
    return cast(Fans, initializer.fans(kernel.layer_shape))


@dataclasses.dataclass(frozen=True)
class _Offence:
    """Leaves that fail for the same reason."""

    rule: str
    message: str


def _complain(
    caller: str,
    rules: Sequence[Rule],
    offenders: Sequence[tuple[str, ParamSpec, int, Exception]],
) -> None:
    reasons: dict[_Offence, list[str]] = {}
    for path, spec, number, error in offenders:
        offence = _Offence(f"rule {number} {rules[number].text!r}", str(error))
        reasons.setdefault(offence, []).append(f"{path!r} of shape {spec.shape} and {spec.dtype}")
    parts = [f"{listing(who)} by {why.rule}: {why.message}" for why, who in reasons.items()]
    only_types = all(isinstance(error, TypeError) for *_, error in offenders)
    raise (TypeError if only_types else ValueError)(
        f"{caller} cannot draw {listing(parts, separator=' Nor ')}"
    )
