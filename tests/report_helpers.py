"""What tests ask of a report."""

from __future__ import annotations

from jaxinit.report import Report, ReportedGroup


def group_of(report: Report, pattern: str) -> ReportedGroup:
    """The group that has a pattern."""
    return next(group for group in report.groups if pattern in group.patterns)


def codes(report: Report) -> list[str]:
    """Codes of the findings, in order."""
    return [finding.code for finding in report.findings]
