"""A report as a person reads it on a terminal."""

from __future__ import annotations

import dataclasses
import re
import textwrap

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from jaxinit._table import spell_bytes
from jaxinit.report.records import Kind, Report
from jaxinit.report.render import new_table, number, score

_MOST_PATTERNS = 3
# What the three columns of numbers take up, with the space around them.
_NUMBERS_WIDTH = 30


def print_report(console: Console, report: Report) -> None:
    """Prints a report."""
    _print_head(console, report)
    console.print()
    console.print(_kinds(report, console.width))
    console.print()
    console.print(_timings(report))
    console.print()
    _print_findings(console, report)


def _print_head(console: Console, report: Report) -> None:
    title = Text(report.model, "bold cyan")
    title.append(f"  {report.framework}, {report.target}", "default not bold")
    console.print(title)
    for what, total in (
        ("parameters", report.parameters),
        ("entries of other variables", report.others),
    ):
        if total.leaves:
            arrays = f"{_shared_dtype(report)} arrays".lstrip()
            console.print(
                f"{total.entries:,} {what} in {total.leaves:,} {arrays}, "
                f"{spell_bytes(total.nbytes)}"
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


def _shared_dtype(report: Report) -> str:
    """The dtype of all leaves; empty when there are several."""
    dtypes = {kind.dtype for kind in report.kinds}
    return dtypes.pop() if len(dtypes) == 1 else ""


def _origin(rules: str | None) -> str:
    if rules is None:
        return "the model's own initializers"
    return "the rules given" if rules.lstrip().startswith(("[", "{")) else f"the rules of {rules}"


def _kinds(report: Report, width: int) -> Table:
    numbers = ["std", "measured", "max z"]
    table = new_table(["leaves", *numbers], numbers)
    lines = _Lines(max(width - _NUMBERS_WIDTH, 20), _shared_dtype(report), report.rules is not None)
    for kind in report.kinds:
        std, measured = number(kind.expected_std), number(kind.measured_std)
        patterns = lines.patterns(kind)
        table.add_row(patterns, std, measured, score(kind.worst_z, signed=False))
        table.add_row(lines.facts(kind))
        if lines.compared and kind.own_initializer != kind.initializer:
            own = (kind.own_std, kind.own_measured_std)
            table.add_row(lines.own(kind), *(Text(number(std), "dim") for std in own))
    return table


@dataclasses.dataclass(frozen=True)
class _Lines:
    """What stands in the first column.

    Attributes:
        width: characters per line.
        dtype: dtype of all leaves, which then needs no repeating; empty when there are several.
        compared: whether rules replace the model's own initializers.
    """

    width: int
    dtype: str
    compared: bool

    def patterns(self, kind: Kind) -> Text:
        """The first paths of a kind, and how many more there are."""
        surplus = len(kind.patterns) - _MOST_PATTERNS
        shown = kind.patterns[: _MOST_PATTERNS - 1] if surplus > 0 else kind.patterns
        text = Text("\n".join(_broken_at_slashes(pattern, self.width) for pattern in shown))
        if surplus > 0:
            text.append(f"\nand {surplus + 1} more patterns", "dim")
        return text

    def facts(self, kind: Kind) -> Text:
        """Initializer, number, shape and fans of a kind."""
        initializer = _shortened(kind.initializer) if kind.initializer else "law unknown"
        shape = "x".join(map(str, kind.shape)) or "scalar"
        dtype = "" if kind.dtype == self.dtype else f" {kind.dtype}"
        fans = "" if kind.fan_in is None else f", fans {kind.fan_in:g}>{kind.fan_out:g}"
        text = self._wrapped(f"{initializer}, {len(kind.leaves):,} of {shape}{dtype}{fans}")
        text.highlight_words(
            [initializer], "not dim cyan" if kind.initializer else "not dim yellow"
        )
        return text

    def own(self, kind: Kind) -> Text:
        """What the model itself would use."""
        own = _shortened(kind.own_initializer) if kind.own_initializer else "unknown"
        return self._wrapped(f"the model itself: {own}")

    def _wrapped(self, text: str) -> Text:
        lines = textwrap.wrap(text, self.width, initial_indent="  ", subsequent_indent="    ")
        return Text("\n".join(lines), "dim")


def _broken_at_slashes(path: str, width: int) -> str:
    """A path on lines of a width, broken between its segments where there is room for one."""
    lines = [""]
    for segment in re.findall(r"[^/]*/|[^/]+", path):
        if lines[-1].strip() and len(lines[-1]) + len(segment) > width:
            lines.append("    ")
        lines[-1] += segment
    return "\n".join(lines)


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
        console.print(Padding(Text(f"{finding.what}\n{finding.remedy}"), (0, 0, 0, 2)))
