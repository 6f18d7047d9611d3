"""A report as a person reads it on a terminal."""

from __future__ import annotations

import re

from rich.console import Console
from rich.table import Table
from rich.text import Text

from jaxinit.report.records import Kind, Report
from jaxinit.report.render import byte_count, new_table, number, score

_MOST_PATTERNS = 3


def print_report(console: Console, report: Report) -> None:
    """Prints a report."""
    _print_head(console, report)
    console.print()
    console.print(_kinds(report))
    console.print()
    console.print(_timings(report))
    console.print()
    _print_findings(console, report)


def _print_head(console: Console, report: Report) -> None:
    title = Text(report.model, "bold cyan")
    title.append(f"  {report.framework}, {report.target}", "default not bold")
    console.print(title)
    parameters, others = report.parameters, report.others
    console.print(
        f"{parameters.entries:,} parameters in {parameters.leaves:,} arrays, "
        f"{byte_count(parameters.nbytes)}"
    )
    if others.leaves:
        console.print(
            f"{others.entries:,} other entries in {others.leaves:,} arrays, "
            f"{byte_count(others.nbytes)}"
        )
    console.print(f"drawn by {_origin(report.rules)}, seed {report.seed}")
    if report.inputs:
        console.print(f"traced with {report.inputs}")
    where = report.environment
    console.print(
        f"jaxinit {where.jaxinit}, jax {where.jax}, flax {where.flax}, Python {where.python}, "
        f"{where.device}, {where.cores} cores",
        style="dim",
    )


def _origin(rules: str | None) -> str:
    if rules is None:
        return "the model's own initializers"
    return "the rules given" if rules.lstrip().startswith(("[", "{")) else f"the rules of {rules}"


def _kinds(report: Report) -> Table:
    numbers = ["std", "measured", "max |z|"]
    table = new_table(["leaves", *numbers], numbers)
    for kind in report.kinds:
        _add_kind(table, kind, compared=report.rules is not None)
    return table


def _add_kind(table: Table, kind: Kind, *, compared: bool) -> None:
    first, *more = kind.patterns
    std, measured = number(kind.expected_std), number(kind.measured_std)
    table.add_row(first, std, measured, score(kind.worst_z, signed=False))
    for pattern in more[: _MOST_PATTERNS - 1]:
        table.add_row(pattern)
    if len(more) >= _MOST_PATTERNS:
        surplus = len(more) - _MOST_PATTERNS + 1
        table.add_row(Text(f"and {surplus} more pattern{'s' if surplus > 1 else ''}", "dim"))
    known = kind.initializer is not None
    facts = Text("  ").append(
        _shortened(kind.initializer) if known else "law unknown", "cyan" if known else "yellow"
    )
    table.add_row(facts.append(_facts(kind), "dim"))
    if compared and kind.own_initializer != kind.initializer:
        own = _shortened(kind.own_initializer) if kind.own_initializer else "unknown"
        table.add_row(Text(f"  the model itself: {own}", "dim"), Text(number(kind.own_std), "dim"))


def _facts(kind: Kind) -> str:
    shape = "x".join(map(str, kind.shape)) or "scalar"
    fans = "" if kind.fan_in is None else f", fans {kind.fan_in:g}>{kind.fan_out:g}"
    return f", {len(kind.leaves):,} of {shape} {kind.dtype}{fans}"


def _shortened(call: str | None) -> str:
    """A call with four digits of every number."""
    return re.sub(r"\d+\.\d{4,}(e[-+]?\d+)?", lambda m: f"{float(m[0]):.4g}", call or "")


def _timings(report: Report) -> Table:
    table = new_table(["time", "seconds"], ["seconds"])
    for timing in report.timings:
        table.add_row(timing.stage, f"{timing.seconds:.2f}")
    return table


def _print_findings(console: Console, report: Report) -> None:
    if not report.findings:
        console.print(
            Text("No findings: every law holds, no two units are twins, all is finite.", "green")
        )
        return
    count = len(report.findings)
    console.print(f"{count} finding{'s' if count > 1 else ''}", style="bold")
    for finding in report.findings:
        style = "red" if finding.severity == "error" else "yellow"
        console.print()
        line = Text(f"{finding.severity} {finding.code}", f"bold {style}")
        line.append(f"  {finding.leaf}", "default not bold")
        console.print(line)
        console.print(Text(f"  {finding.what}"))
        console.print(Text(f"  {finding.remedy}"))
