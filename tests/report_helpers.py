"""What tests ask of a report."""

from __future__ import annotations

from jaxinit.report._records import Kind, Report


def kind_of(report: Report, pattern: str) -> Kind:
    """The kind that has a pattern."""
    return next(kind for kind in report.kinds if pattern in kind.patterns)


def codes(report: Report) -> list[str]:
    """Codes of the findings, in order."""
    return [finding.code for finding in report.findings]
