"""A report as a person reads it on a terminal."""

from __future__ import annotations

import dataclasses
import math
import re
import textwrap
from collections.abc import Sequence

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from jaxinit._table import spell_bytes
from jaxinit.report._kinds import patterns_of
from jaxinit.report._records import Kind, Report
from jaxinit.report._render import new_table, number, score

_MOST_PATTERNS = 3
_MOST_PLACES = 6
_STYLES = {"error": "red", "warning": "yellow", "info": "blue"}
# A space at which no line is broken.
_TIED = "\N{NO-BREAK SPACE}"
# What leaves of a role are called, one and several.
_ROLES = {
    "kernel": ("kernel", "kernels"),
    "bias": ("bias", "biases"),
    "scale": ("scale", "scales"),
    "embedding": ("embedding", "embeddings"),
    "position": ("position table", "position tables"),
    "gate": ("gate", "gates"),
    "head": ("head", "heads"),
    "state": ("state array", "state arrays"),
    "unused": ("unused array", "unused arrays"),
    "unknown": ("array of unknown role", "arrays of unknown role"),
}
# An advised standard deviation is shown when it differs from what is drawn by more: by half of the
# variance, as Xavier's before a ReLU.
_FACTOR = 1.4


def print_report(console: Console, report: Report) -> None:
    """Prints a report."""
    _print_head(console, report)
    console.print()
    console.print(_kinds(report, console.width))
    _print_reading(console, report)
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
    cells = [
        (number(k.expected_std), number(k.measured_std), score(k.worst_z, signed=False))
        for k in report.kinds
    ]
    lines = _Lines(_room(report, width), _shared_dtype(report), report.rules is not None)
    for kind, row in zip(report.kinds, cells, strict=True):
        table.add_row(lines.patterns(kind), *row)
        table.add_row(lines.facts(kind))
        if lines.compared and kind.own_initializer != kind.initializer:
            own = (kind.own_std, kind.own_measured_std)
            table.add_row(lines.own(kind), *(Text(number(std), "dim") for std in own))
        if _is_advised_otherwise(kind):
            table.add_row(lines.advised(kind), Text(number(kind.advised_std), "dim"))
    return table


def _room(report: Report, width: int) -> int:
    """What the three columns of numbers, with three characters around each, leave for the first."""
    stds = [n for k in report.kinds for n in (k.expected_std, k.own_std, k.advised_std)]
    measured = [n for k in report.kinds for n in (k.measured_std, k.own_measured_std)]
    columns = [["std", *map(number, stds)], ["measured", *map(number, measured)], ["max z"]]
    return max(width - sum(3 + max(map(len, column)) for column in columns), 20)


def _is_advised_otherwise(kind: Kind) -> bool:
    drawn = kind.measured_std if kind.expected_std is None else kind.expected_std
    advised = kind.advised_std
    if advised is None or drawn is None or not math.isfinite(drawn + advised):
        return False
    return max(drawn, advised) > _FACTOR * min(drawn, advised)


def _print_reading(console: Console, report: Report) -> None:
    """Why there is no reading, or where the reasons of the advice are."""
    if report.no_reading is not None:
        console.print()
        console.print(Text(f"No roles and no advice: {report.no_reading}", "yellow"))
    elif any(map(_is_advised_otherwise, report.kinds)):
        console.print()
        console.print(
            Text(
                "advised: where its std differs by a factor of 1.4; reasons: jaxinit advise", "dim"
            )
        )


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
        """Initializer, number, role, shape and fans of a kind."""
        initializer = _shortened(kind.initializer) if kind.initializer else "law unknown"
        shape = "x".join(map(str, kind.shape)) or "scalar"
        dtype = "" if kind.dtype == self.dtype else f" {kind.dtype}"
        count = len(kind.leaves)
        role = f"{_ROLES[kind.role][count > 1]} " if kind.role else ""
        members = f"{count:,} {role}of {shape}{dtype}".replace(" ", _TIED)
        fans = "" if kind.fan_in is None else f", fans{_TIED}{kind.fan_in:g}>{kind.fan_out:g}"
        text = self._wrapped(f"{initializer}, {members}{fans}")
        text.highlight_words(
            [initializer], "not dim cyan" if kind.initializer else "not dim yellow"
        )
        return text

    def own(self, kind: Kind) -> Text:
        """What the model itself would use."""
        own = _shortened(kind.own_initializer) if kind.own_initializer else "unknown"
        return self._wrapped(f"the model itself: {own}")

    def advised(self, kind: Kind) -> Text:
        """What the advice would use."""
        return self._wrapped(f"advised: {_shortened(kind.advised)}")

    def _wrapped(self, text: str) -> Text:
        lines = textwrap.wrap(text, self.width, initial_indent="  ", subsequent_indent="    ")
        return Text("\n".join(lines).replace(_TIED, " "), "dim")


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
        console.print()
        line = Text(f"{finding.severity} {finding.code}", f"bold {_STYLES[finding.severity]}")
        if finding.leaves:  # none where it is the whole model
            line.append(f"  {_places(finding.leaves)}", "default not bold")
        console.print(line)
        text = Text(f"{finding.evidence}\n{finding.remedy} ")
        text.append(f"({finding.source})", "dim")
        console.print(Padding(text, (0, 0, 0, 2)))


def _places(leaves: Sequence[str]) -> str:
    patterns = patterns_of(leaves)
    surplus = len(patterns) - _MOST_PLACES
    return ", ".join(patterns[:_MOST_PLACES]) + (f" and {surplus} more" if surplus > 0 else "")
