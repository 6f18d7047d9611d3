"""From a model and rules to the plan that a report draws.

Without rules every leaf gets the model's own initializer, where it is known. Rules, when given,
decide every parameter; other variables of a Linen module (running means) that no rule names keep
the model's own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxinit.initializers import Initializer
from jaxinit.planning import ParamSpec, Plan, as_matcher, plan
from jaxinit.report._errors import Unusable
from jaxinit.report._rules import Pairs

Own = Mapping[str, Initializer | None]
Specs = Mapping[str, ParamSpec]


@dataclasses.dataclass(frozen=True)
class Assembled:
    """What will be drawn, and by whom.

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
    """Decides who draws each leaf.

    Args:
        specs: shapes of all leaves, by path.
        own: the model's own initializers.
        rules: rules, a plan, or None for the model's own initialization.
        is_parameter: whether a leaf is a parameter, which rules must cover.
        dtype: dtype for the floating-point leaves that are planned; None leaves theirs.

    Raises:
        Unusable: when a plan does not fit the model.
        ValueError: when rules do not fit, as `jaxinit.plan` says.
        TypeError: the same.
    """
    known = {path: spec for path, spec in specs.items() if own[path] is not None}
    own_plan = plan(_cast(known, dtype), _rules_by_path(own, known))
    if rules is None:
        return Assembled(own_plan, own_plan, tuple(path for path in specs if path not in known))
    if isinstance(rules, Plan):
        _check_fits(rules, specs, is_parameter)
        # Its initializers are fitted already: no axes, no stacking again.
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
    """One rule for each initializer; predicates, since a path may hold what a glob means."""
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
