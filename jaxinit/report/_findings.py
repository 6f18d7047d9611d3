"""What a person should look at in a tree that was drawn."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

from jaxinit import checks
from jaxinit.advice import Finding
from jaxinit.checks import Measured
from jaxinit.planning import ParamSpec, as_matcher
from jaxinit.report._assemble import Assembled


def find(
    assembled: Assembled,
    values: Mapping[str, Any],
    measured: Mapping[str, Measured],
    allowed: Collection[str] = (),
) -> tuple[Finding, ...]:
    """Looks for laws that are unknown or broken, twins, and numbers that are not finite.

    Args:
        assembled: what was drawn, and by whom.
        values: the arrays, by path.
        measured: what was measured of them.
        allowed: paths of leaves that may hold twins.
    """
    planned = {path: values[path] for path in assembled.plan.paths}
    rest = {path: values[path] for path in assembled.unknown}

    def twins(leaves: Mapping[str, Any], **options: Any) -> Callable[[], None]:
        # No pattern when it would match nothing, for that is an error.
        allow = [lambda path, leaf: path in allowed] if not set(allowed).isdisjoint(leaves) else []
        return lambda: checks.assert_symmetry_broken(leaves, allow=allow, **options)

    return (
        *_unknown(assembled.unknown),
        *_nonfinite(measured),
        *_laws(lambda: checks.assert_laws(planned, assembled.plan)),
        *_twins(twins(planned, plan=assembled.plan)),
        *_twins(twins(rest)),
    )


def matched_paths(patterns: Sequence[str], specs: Mapping[str, ParamSpec]) -> set[str]:
    """Paths that any of several globs matches.

    Raises:
        ValueError: when a glob is malformed or matches no leaf.
    """
    paths: set[str] = set()
    for pattern in patterns:
        matcher = as_matcher("--allow", pattern)
        hits = {path for path, spec in specs.items() if matcher.matches(path, spec)}
        if not hits:
            raise ValueError(
                f"--allow needs a pattern that matches a leaf, got {pattern!r}. "
                f"The model has for example {next(iter(specs))}."
            )
        paths |= hits
    return paths


def _unknown(paths: Sequence[str]) -> Iterator[Finding]:
    if not paths:
        return
    count = f"{len(paths):,} leaves were" if len(paths) > 1 else "1 leaf was"
    yield Finding(
        code="law-unknown",
        severity="warning",
        leaves=tuple(paths),
        evidence=f"{count} drawn by the model itself, in its own dtype, by a law that it does not "
        "declare.",
        remedy="Give --rules, or initialize the model with jaxinit or jax.nn.initializers.",
        source="the model",
    )


def _nonfinite(measured: Mapping[str, Measured]) -> Iterator[Finding]:
    for path, found in measured.items():
        if not found.finite:
            yield Finding(
                code="nonfinite",
                severity="error",
                leaves=(path,),
                evidence=f"{found.nonfinite:,} of {found.n:,} entries are infinite or NaN.",
                remedy="Look at the function that draws it, and at the range of its dtype.",
                source="the measurement",
            )


def _laws(check: Callable[[], None]) -> Iterator[Finding]:
    for path, what, expected, measured, z, _ in _rows(check):
        score = "" if z is None else f", {z:.1f} standard errors off"
        yield Finding(
            code="law",
            severity="error",
            leaves=(path,),
            evidence=f"The {what} should be {expected} and is {measured}{score}.",
            remedy="Correct the law that the initializer declares, or what it draws.",
            source="the measurement",
        )


def _twins(check: Callable[[], None]) -> Iterator[Finding]:
    for path, what, found in _rows(check):
        yield Finding(
            code="twins",
            severity="error",
            leaves=(path,),
            evidence=f"Twins ({what}): {found}. Equal units get equal gradients and stay equal.",
            remedy="Draw it at random; or, where it is meant to start so, --allow its path.",
            source="Goodfellow 2016, section 8.4",
        )


def _rows(check: Callable[[], None]) -> tuple[tuple[Any, ...], ...]:
    """Rows of the table with which an assertion fails."""
    try:
        check()
    except checks.CheckError as error:
        return error.rows
    return ()
