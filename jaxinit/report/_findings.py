"""Findings of a report: from checks of the arrays that were drawn, and from the advice.

The checks look at every array, whether the model was read or not. The advice needs a reading of the
model; its findings are about laws where the laws are known and about measurements elsewhere. A
model that cannot be read still has a report, which says why.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

from jaxinit import checks
from jaxinit.advice import (
    SEVERITIES,
    Advice,
    Finding,
    Prescription,
    advise_with,
    present_of_arrays,
    present_of_initializers,
)
from jaxinit.checks import Measured
from jaxinit.reading import Reading
from jaxinit.report._assemble import Assembled, Specs
from jaxinit.report._targets import NotReadError, Opened, error_text, read_model

# Roles whose entries may start equal: the kernels beside them tell the units apart.
_EQUAL_AT_START = ("bias", "scale", "state")


# Checks.


def find(
    assembled: Assembled,
    values: Mapping[str, Any],
    measured: Mapping[str, Measured],
    allowed: Collection[str] = (),
    judged: Collection[str] = (),
) -> tuple[Finding, ...]:
    """Findings about the arrays: laws that are unknown or broken, twins, infinities and NaN.

    Args:
        assembled: the leaves, and what drew them.
        values: the arrays, by path.
        measured: their moments and ends.
        allowed: paths of leaves that may hold twins.
        judged: paths of leaves whose role was read. Where such a leaf is constant, the advice says
            whether that harms: a head or the last layer of a branch may be zero.
    """
    planned = {path: values[path] for path in assembled.plan.paths}
    rest = {path: values[path] for path in assembled.unknown}

    def twins(leaves: Mapping[str, Any], **options: Any) -> Callable[[], None]:
        # A pattern that matches nothing is an error, so it is left out.
        allow = [lambda path, leaf: path in allowed] if not set(allowed).isdisjoint(leaves) else []
        return lambda: checks.assert_symmetry_broken(leaves, allow=allow, **options)

    return (
        *_unknown(assembled.unknown),
        *_nonfinite(measured),
        *_laws(lambda: checks.assert_laws(planned, assembled.plan)),
        *_twins(twins(planned, plan=assembled.plan), judged),
        *_twins(twins(rest), judged),
    )


def _unknown(paths: Sequence[str]) -> Iterator[Finding]:
    if not paths:
        return
    count = f"{len(paths):,} leaves were" if len(paths) > 1 else "1 leaf was"
    yield Finding(
        code="law-unknown",
        severity="info",
        leaves=tuple(paths),
        evidence=f"{count} drawn by the model itself, in its own dtype, by a law that is not "
        "known: what they hold is measured, and their law is not judged.",
        remedy="Give --rules to hold them to a law.",
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


def _twins(check: Callable[[], None], judged: Collection[str]) -> Iterator[Finding]:
    for path, what, found in _rows(check):
        if what == "constant" and path in judged:
            continue
        yield Finding(
            code="twins",
            severity="error",
            leaves=(path,),
            evidence=f"Twins ({what}): {found}. Equal units get equal gradients and stay equal.",
            remedy="Draw it at random; or, where it is meant to start so, --allow its path.",
            source="Goodfellow 2016, section 8.4",
        )


def fixed(paths: Sequence[str]) -> Iterator[Finding]:
    """What is said of leaves that are the same for every key."""
    if paths:
        yield Finding(
            code="fixed-draw",
            severity="info",
            leaves=tuple(paths),
            evidence=f"The model makes {'these leaves' if len(paths) > 1 else 'this leaf'} without "
            "the key of its init: every seed gives the same numbers.",
            remedy="Pass the key on, unless that is meant, as for a table or fixed filters.",
            source="the jaxpr of the init",
        )


def _rows(check: Callable[[], None]) -> tuple[tuple[Any, ...], ...]:
    """Rows of the table with which an assertion fails."""
    try:
        check()
    except checks.CheckError as error:
        return error.rows
    return ()


# The reading, and all findings together.


@dataclasses.dataclass(frozen=True, eq=False)
class Understood:
    """What was read of a model, and what follows.

    Attributes:
        reading: what it does with its parameters; None where it was not read.
        advice: which initializer fits, with findings about the arrays; None without a reading.
        why_not: why there is no reading; None where there is one.
    """

    reading: Reading | None = None
    advice: Advice | None = None
    why_not: str | None = None

    def roles(self) -> list[dict[str, Any]] | None:
        """Role and fans of each leaf, as plain values; None without a reading."""
        if self.reading is None:
            return None
        names = ("path", "role", "fan_in", "fan_out")
        return [{name: getattr(each, name) for name in names} for each in self.reading]

    def said(self) -> dict[str, Any] | None:
        """Goal and prescriptions, as `jaxinit advise` writes them; None without advice."""
        if self.advice is None:
            return None
        written = self.advice.to_dict()
        return {name: written[name] for name in ("goal", "prescriptions")}

    @property
    def judged(self) -> tuple[str, ...]:
        """Paths of the leaves whose role was read; none without advice."""
        read = self.reading if self.advice is not None else None
        return tuple(each.path for each in read or () if each.role != "unknown")

    @functools.cached_property
    def prescriptions(self) -> dict[str, Prescription]:
        """What is advised, by path; empty without advice."""
        return {each.path: each for each in self.advice or ()}


def understand(
    opened: Opened,
    specs: Specs,
    assembled: Assembled,
    values: Mapping[str, Any],
    measured: Mapping[str, Measured],
) -> Understood:
    """Reads a model and advises on it.

    Args:
        opened: the model, with its inputs.
        specs: its shapes, by path.
        assembled: the leaves, and what drew them.
        values: the arrays, by path; looked at where no law is known.
        measured: their moments and ends.
    """
    try:
        reading = read_model(opened, specs)
    except NotReadError as error:
        return Understood(why_not=str(error))
    laws = {leaf.path: leaf.initializer for leaf in assembled.plan}
    unknown = {path: values[path] for path in assembled.unknown if path in reading}
    present = {
        **present_of_initializers(reading, laws),
        **present_of_arrays(unknown, measured),
    }
    try:
        return Understood(reading, advise_with("jaxinit report", reading, "train", present))
    except Exception as error:  # a report that was asked for laws and twins is worth having
        return Understood(why_not=f"advising on the model raised {error_text(error)}")


def joined(
    findings: Collection[Finding], understood: Understood, allowed: Collection[str] = ()
) -> tuple[Finding, ...]:
    """The findings of the checks and those of the advice, the most severe first.

    Args:
        findings: of the checks. Twins in biases and scales of several axes are dropped, since only
            a reading tells these from kernels.
        understood: what was read.
        allowed: paths of leaves that may hold twins.
    """
    advice, reading = understood.advice, understood.reading or {}
    roles = {path: reading[path].role for f in findings for path in f.leaves if path in reading}
    kept = [
        finding
        for finding in findings
        if finding.code != "twins" or roles.get(finding.leaves[0]) not in _EQUAL_AT_START
    ]
    told = {path for finding in kept if finding.code == "twins" for path in finding.leaves}
    more = [f for f in (() if advice is None else advice.findings) if f.code != "nonfinite"]
    for number, finding in enumerate(more):
        if finding.code == "twins":
            left = [path for path in finding.leaves if path not in told and path not in allowed]
            more[number] = dataclasses.replace(finding, leaves=tuple(left))
    more = [finding for finding in more if finding.leaves or finding.code != "twins"]
    both = [*kept, *_merged(more)]
    return tuple(sorted(both, key=lambda each: -SEVERITIES.index(each.severity)))


def _merged(findings: Collection[Finding]) -> Iterator[Finding]:
    """Findings that differ in their leaves alone, joined into one."""
    alike: dict[Finding, list[str]] = {}
    for finding in findings:
        alike.setdefault(dataclasses.replace(finding, leaves=()), []).extend(finding.leaves)
    for finding, leaves in alike.items():
        yield dataclasses.replace(finding, leaves=tuple(leaves))
