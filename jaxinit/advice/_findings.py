"""What a person should look at before training: one record per finding, one table of checks.

A check is a function of the situation and the current initialization that yields findings. To add
one, write it and name it in `CHECKS`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Literal, TypeAlias, get_args

from jaxinit.advice._current import Currents
from jaxinit.advice._situation import Situation

Severity = Literal["info", "warning", "error"]
SEVERITIES: tuple[Severity, ...] = get_args(Severity)


@dataclasses.dataclass(frozen=True)
class Finding:
    """Something that a person should look at.

    Attributes:
        code: short name of the kind of finding.
        severity: ``"info"``, ``"warning"`` or ``"error"``: it is worth knowing, it costs training,
            or it cannot train.
        leaves: paths of the parameters concerned; empty where it is the whole model.
        evidence: what was found, with numbers.
        remedy: what to do about it.
        source: authors, year, section.
    """

    code: str
    severity: Severity
    leaves: tuple[str, ...]
    evidence: str
    remedy: str
    source: str

    def is_at_least(self, severity: Severity) -> bool:
        """Whether it is as severe as that, or more."""
        return SEVERITIES.index(self.severity) >= SEVERITIES.index(severity)

    def __str__(self) -> str:
        where = f" [{shortened(self.leaves)}]" if self.leaves else ""
        return f"{self.severity} {self.code}{where}: {self.evidence} {self.remedy}"


Check: TypeAlias = Callable[[Situation, Currents], Iterable[Finding]]


def run_checks(
    faults: Sequence[Check], checks: Sequence[Check], situation: Situation, currents: Currents
) -> tuple[Finding, ...]:
    """All findings, the most severe first.

    Args:
        faults: checks for arrays that hold infinities or NaN.
        checks: all others, which are shown only sound arrays: one fault is one finding.
        situation: facts of the model.
        currents: the current initialization.
    """
    sound = {path: current for path, current in currents.items() if not current.nonfinite}

    def found() -> Iterator[Finding]:
        for check in faults:
            yield from check(situation, currents)
        for check in checks:
            yield from check(situation, sound)

    return tuple(sorted(found(), key=lambda each: -SEVERITIES.index(each.severity)))


def shortened(leaves: Sequence[str], most: int = 3) -> str:
    """The first paths, and how many there are beyond."""
    surplus = len(leaves) - most
    shown = ", ".join(leaves[:most])
    return f"{shown} and {surplus} more" if surplus > 0 else shown
