"""Assertions on the shape of a tree and on finite values: chex decides, a table explains."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import chex
import numpy as np

from jaxinit._table import render_table
from jaxinit._types import AnyArray, PyTree
from jaxinit.checks._measuring import concrete_leaves, measure
from jaxinit.planning import ParamSpec, Plan, flatten

_ROWS = 20


class CheckError(AssertionError):
    """What every check raises: a line, a table, and what to do.

    Attributes:
        columns: headings of the table.
        rows: its rows as they are, also those that the message only counts.
    """

    __module__ = "jaxinit.checks"  # where it is public, and what a traceback should say

    columns: tuple[str, ...] = ()
    rows: tuple[tuple[Any, ...], ...] = ()


def fail(headline: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], advice: str) -> None:
    """Raises a `CheckError` whose message shows the first rows and counts the rest."""
    surplus = len(rows) - _ROWS
    counted = [f"... and {surplus} more"] if surplus > 0 else []
    table = render_table(columns, rows[:_ROWS])
    error = CheckError("\n".join([headline, table, *counted, advice]))
    error.columns, error.rows = tuple(columns), tuple(map(tuple, rows))
    raise error


def _complaint(assertion: Callable[..., None], *trees: Any) -> AssertionError | None:
    """What chex has to say, kept for a message that says more."""
    try:
        assertion(*trees)
    except AssertionError as error:
        return error
    return None


def assert_shapes(params: PyTree, expected: PyTree | Plan) -> None:
    """Asserts that a tree has the leaves, shapes and dtypes that it should.

    Leaves are compared by canonical path, so containers and boxes may differ.

    Args:
        params: a tree of arrays, or of anything that has a shape and a dtype.
        expected: a plan, or such a tree.

    Raises:
        CheckError: an ``AssertionError`` with a table of leaves that are missing, surplus, or of
            another shape or dtype. ``chex.disable_asserts()`` switches it off.
        TypeError: when a leaf has no shape and dtype.
        ValueError: when two leaves have the same canonical path.

    Example:
        >>> tree = {"bias": np.zeros(3, "float32")}
        >>> assert_shapes(tree, tree)
        >>> assert_shapes(tree, {"bias": np.zeros(4, "float32")})
        Traceback (most recent call last):
        jaxinit.checks.CheckError: assert_shapes needs the 1 leaf expected, 1 of 1 differs:
        path  what   expected  found
        ────────────────────────────
        bias  shape  (4,)      (3,)
        Pass the tree that the shapes were made for, or make them anew.
    """
    found, wanted = _specs("assert_shapes", params), _specs("assert_shapes", expected)
    if complaint := _complaint(chex.assert_trees_all_equal_shapes_and_dtypes, found, wanted):
        _require_same_shapes("assert_shapes", found, wanted)
        raise complaint


def planned_arrays(
    caller: str, params: PyTree, plan: Plan | None
) -> tuple[dict[str, AnyArray], dict[str, ParamSpec]]:
    """The arrays of a tree that has the leaves of a plan, and their shapes and dtypes, by path.

    Args:
        caller: public name that an error starts with.
        params: a tree of arrays.
        plan: what the arrays were drawn by; None when unknown.

    Raises:
        CheckError: when leaves are missing or of another shape or dtype than planned.
        TypeError: when the plan is none, or a leaf is not an array with values.
    """
    if plan is not None:
        require_plan(caller, plan)
    arrays = concrete_leaves(caller, params)
    specs = _specs(caller, arrays)
    if plan is not None:
        _require_same_shapes(caller, specs, _specs(caller, plan))
    return arrays, specs


def require_plan(caller: str, plan: Any) -> None:
    """Raises a ``TypeError`` when something else is given for a plan."""
    if not isinstance(plan, Plan):
        raise TypeError(
            f"{caller} needs a plan, got a value of type {type(plan).__name__}. Make one with "
            "jaxinit.plan(params, rules)."
        )


def _require_same_shapes(
    caller: str, found: Mapping[str, ParamSpec], wanted: Mapping[str, ParamSpec]
) -> None:
    """Raises an ``AssertionError`` when leaves are missing, surplus, or differ."""
    rows = []
    for path in [*wanted, *(path for path in found if path not in wanted)]:
        if path not in found:
            rows.append((path, "missing", _shown(wanted[path]), "nothing"))
        elif path not in wanted:
            rows.append((path, "surplus", "nothing", _shown(found[path])))
        else:
            rows += [
                (path, what, *ends)
                for what in ("shape", "dtype")
                if (ends := [getattr(tree[path], what) for tree in (wanted, found)])
                and ends[0] != ends[1]
            ]
    if not rows:
        return
    leaves = f"{len(wanted)} {'leaf' if len(wanted) == 1 else 'leaves'}"
    wrong = len({row[0] for row in rows})
    total = len({*found, *wanted})
    fail(
        f"{caller} needs the {leaves} expected, {wrong} of {total} "
        f"{'differs' if wrong == 1 else 'differ'}:",
        ("path", "what", "expected", "found"),
        rows,
        "Pass the tree that the shapes were made for, or make them anew.",
    )


def _specs(caller: str, tree: PyTree | Plan) -> dict[str, ParamSpec]:
    if isinstance(tree, Plan):
        return {leaf.path: ParamSpec(leaf.shape, leaf.dtype) for leaf in tree}
    return flatten(caller, tree).specs(caller)


def _shown(spec: ParamSpec) -> str:
    return f"{spec.shape} {spec.dtype}"


def assert_finite(params: PyTree) -> None:
    """Asserts that no entry is infinite or NaN.

    The entries are looked at on their devices; chex, which would copy them to the host, is given
    one number per leaf.

    Args:
        params: a tree of arrays.

    Raises:
        CheckError: an ``AssertionError`` with a table of leaves that hold other entries, and how
            many. ``chex.disable_asserts()`` switches it off.
        TypeError: when a leaf is not an array with values.
        ValueError: when two leaves have the same canonical path.

    Example:
        >>> assert_finite({"bias": np.zeros(3, "float32")})
        >>> assert_finite({"bias": np.array([0, np.nan, np.inf], "float32")})
        Traceback (most recent call last):
        jaxinit.checks.CheckError: assert_finite needs finite numbers only, 1 of 1 leaves ...
        path  infinite or NaN  entries
        ──────────────────────────────
        bias                2        3
        Look at what wrote them; an initializer of jaxinit never does.
    """
    measured = measure(params)
    summary = {path: np.float32(0 if m.finite else np.nan) for path, m in measured.items()}
    if _complaint(chex.assert_tree_all_finite, summary):
        rows = [(path, m.nonfinite, m.n) for path, m in measured.items() if not m.finite]
        fail(
            f"assert_finite needs finite numbers only, {len(rows)} of {len(measured)} leaves "
            f"{'holds' if len(rows) == 1 else 'hold'} others:",
            ("path", "infinite or NaN", "entries"),
            rows,
            "Look at what wrote them; an initializer of jaxinit never does.",
        )
