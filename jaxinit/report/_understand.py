"""The part of a report that says what the model does with its parameters, and what would fit.

The model is read and advised on; the findings are about what is drawn, by its laws where they are
known and by its measurements elsewhere. A model that cannot be read still has a report, which says
why.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from jaxinit.advice import SEVERITIES, Advice, Finding
from jaxinit.advice._advise import advise_with
from jaxinit.advice._present import present_of_arrays, present_of_initializers
from jaxinit.checks import Measured
from jaxinit.reading import Reading
from jaxinit.report._assemble import Assembled, Specs
from jaxinit.report._errors import describe
from jaxinit.report._open_model import Opened
from jaxinit.report._read_model import NotReadError, read_model

# The report's own checks look at every array drawn and say these of it, leaf by leaf.
_SAID_BY_CHECKS = ("twins", "nonfinite")
# Roles whose entries start alike: the kernels beside them tell the units apart.
_ALIKE = ("bias", "scale", "state")


@dataclasses.dataclass(frozen=True, eq=False)
class Understood:
    """What was read of a model, and what follows.

    Attributes:
        reading: what it does with its parameters; None where it was not read.
        advice: which initializer fits, with findings about what is drawn; None with the reading.
        why_not: why there is no reading; None where there is one.
    """

    reading: Reading | None = None
    advice: Advice | None = None
    why_not: str | None = None


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
        assembled: what was drawn, and by whom.
        values: the arrays, by path; looked at where no law is known.
        measured: what was measured of them.
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
        return Understood(why_not=f"advising on the model raised {describe(error)}")


def joined(findings: Collection[Finding], understood: Understood) -> tuple[Finding, ...]:
    """The findings of the checks and those of the advice, the most severe first.

    Args:
        findings: what the checks found. Twins are let go of in biases and scales of several axes,
            which only a reading tells from kernels.
        understood: what was read.
    """
    advice, reading = understood.advice, understood.reading or {}
    roles = {path: reading[path].role for f in findings for path in f.leaves if path in reading}
    kept = [
        finding
        for finding in findings
        if finding.code != "symmetry" or roles.get(finding.leaves[0]) not in _ALIKE
    ]
    more = [] if advice is None else [f for f in advice.findings if f.code not in _SAID_BY_CHECKS]
    both = [*kept, *_merged(more)]
    return tuple(sorted(both, key=lambda each: -SEVERITIES.index(each.severity)))


def _merged(findings: Collection[Finding]) -> Iterator[Finding]:
    """Findings that say the same of several leaves, as one."""
    alike: dict[Finding, list[str]] = {}
    for finding in findings:
        alike.setdefault(dataclasses.replace(finding, leaves=()), []).extend(finding.leaves)
    for finding, leaves in alike.items():
        yield dataclasses.replace(finding, leaves=tuple(leaves))
