"""A report: the records that it consists of, as JSON and as lines on a terminal.

Both faces show the same records.
"""

from __future__ import annotations

import dataclasses
import math
import re
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from jaxinit._json import dumps
from jaxinit._naming import patterns
from jaxinit._table import spell_bytes
from jaxinit.advice import Finding
from jaxinit.report._output import document, new_table, number, score

_MOST_PATTERNS = 3
_MOST_PLACES = 6
_STYLES = {"error": "red", "warning": "yellow", "info": "blue"}
# A space at which no line is wrapped.
_TIED = "\N{NO-BREAK SPACE}"
# Names of one and of several leaves of a role.
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
# An advised standard deviation is shown where it differs from the drawn one by more than this
# factor, which is the one of half the variance: Glorot's before a ReLU.
_FACTOR = 1.4


# Records.


@dataclasses.dataclass(frozen=True)
class Request:
    """Arguments of the command ``jaxinit report``.

    Attributes:
        target: ``module:attribute`` or ``file.py:attribute``; None is the model that ships.
        rules: rules as text, or where to find them; None is the model's own initialization.
        inputs: example inputs as text.
        seed: seed of the key.
        dtype: dtype to draw floating-point leaves in; None leaves it to the model.
        allow: globs of leaves that may hold twins.
        compare: whether to time the model's own init; None decides by size.
    """

    target: str | None = None
    rules: str | None = None
    inputs: tuple[str, ...] = ()
    seed: int = 0
    dtype: str | None = None
    allow: tuple[str, ...] = ()
    compare: bool | None = None


@dataclasses.dataclass(frozen=True)
class ReportedLeaf:
    """One array as it was measured.

    Attributes:
        path: canonical path.
        mean: mean of its entries; None when it has none.
        std: their standard deviation.
        low: smallest entry, or modulus when complex.
        high: largest entry, or modulus.
        nonfinite: entries that are infinite or NaN.
        mean_z: standard errors between the mean and the law's; None without chance or law.
        spread_z: the same for the second moment.
    """

    path: str
    mean: complex | float | None = None
    std: float | None = None
    low: float | None = None
    high: float | None = None
    nonfinite: int = 0
    mean_z: float | None = None
    spread_z: float | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReportedGroup:
    """Leaves that are drawn alike; a report has one entry for them.

    Attributes:
        patterns: paths of its leaves, with ``*`` for the numbers that tell layers apart.
        shape: shape of each leaf.
        dtype: dtype of each leaf.
        initializer: the initializer that drew them; None when the model drew them by an unknown
            law.
        role: what the model does with them; None where it was not read.
        fan_in: inputs that one output sums over, from the reading, or without one from the
            initializer; None where neither has any.
        fan_out: outputs that one input feeds.
        expected_std: standard deviation in the law; None without one.
        measured_std: standard deviation of the entries of all leaves; None without entries.
        worst_z: z-score of largest size among its leaves; None without chance.
        own_initializer: the model's own initializer, where rules replace it and it is known.
        own_std: standard deviation in the law of the model's own initializer.
        own_measured_std: standard deviation of the entries that the model drew for comparison,
            where rules replace its initializers; None where it drew none.
        advised: the advised initializer; None without advice.
        advised_std: standard deviation in the law of the advised initializer.
        parameters: whether they are parameters, and not other variables of the model.
        leaves: its members.
    """

    patterns: tuple[str, ...] = ()
    shape: tuple[int, ...]
    dtype: str
    initializer: str | None
    role: str | None
    fan_in: float | None
    fan_out: float | None
    expected_std: float | None
    measured_std: float | None = None
    worst_z: float | None = None
    own_initializer: str | None
    own_std: float | None
    own_measured_std: float | None = None
    advised: str | None
    advised_std: float | None
    parameters: bool
    leaves: tuple[ReportedLeaf, ...] = ()


@dataclasses.dataclass(frozen=True)
class Timing:
    """Wall time of one stage.

    Attributes:
        stage: name of the stage.
        seconds: its wall time.
    """

    stage: str
    seconds: float


@dataclasses.dataclass(frozen=True)
class Total:
    """Number and size of some of the leaves.

    Attributes:
        leaves: number of arrays.
        entries: number of entries.
        nbytes: bytes.
    """

    leaves: int
    entries: int
    nbytes: int


@dataclasses.dataclass(frozen=True)
class Environment:
    """Versions and device that a report was made with."""

    jaxinit: str
    jax: str
    flax: str
    python: str
    device: str
    cores: int


@dataclasses.dataclass(frozen=True)
class Report:
    """A model as it was drawn, measured and read, and what to look at.

    Attributes:
        model: name of the class of the model.
        framework: ``"Linen"`` or ``"NNX"``.
        target: the name it was given by.
        inputs: example inputs that it was traced with.
        rules: where the rules came from; None for the model's own initialization.
        seed: seed of the key.
        environment: versions and device.
        parameters: number and size of the parameters.
        others: number and size of the other variables, such as running means.
        groups: the leaves, by how they are drawn, largest first.
        timings: wall times, in order.
        no_reading: why the forward pass was not read; None where it was.
        reading: path, role and fans of each leaf; None where the model was not read.
        advice: goal and prescriptions in the form that `jaxinit advise` writes; None without a
            reading.
        findings: what to look at, the most severe first.
    """

    model: str
    framework: str
    target: str
    inputs: str
    rules: str | None
    seed: int
    environment: Environment
    parameters: Total
    others: Total
    groups: tuple[ReportedGroup, ...]
    timings: tuple[Timing, ...]
    no_reading: str | None
    reading: Sequence[Mapping[str, Any]] | None
    advice: Mapping[str, Any] | None
    findings: tuple[Finding, ...]

    def to_dict(self) -> dict[str, Any]:
        """The report as plain dictionaries, lists, strings and numbers."""
        return document("report", self)

    def to_json(self) -> str:
        """The report as JSON text."""
        return dumps(self.to_dict())


# Lines on a terminal.


def print_report(console: Console, report: Report) -> None:
    """Prints a report."""
    _print_head(console, report)
    console.print()
    console.print(_groups(report, console.width))
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
    dtypes = {group.dtype for group in report.groups}
    return dtypes.pop() if len(dtypes) == 1 else ""


def _origin(rules: str | None) -> str:
    if rules is None:
        return "the model's own initializers"
    return "the rules given" if rules.lstrip().startswith(("[", "{")) else f"the rules of {rules}"


def _groups(report: Report, width: int) -> Table:
    numbers = ["std", "measured", "max z"]
    table = new_table(["leaves", *numbers], numbers)
    cells = [
        (number(g.expected_std), number(g.measured_std), score(g.worst_z, signed=False))
        for g in report.groups
    ]
    lines = _Lines(_room(report, width), _shared_dtype(report), report.rules is not None)
    for group, row in zip(report.groups, cells, strict=True):
        table.add_row(lines.patterns(group), *row)
        table.add_row(lines.facts(group))
        if lines.compared and group.own_initializer != group.initializer:
            own = (group.own_std, group.own_measured_std)
            table.add_row(lines.own(group), *(Text(number(std), "dim") for std in own))
        if _is_advised_otherwise(group):
            table.add_row(lines.advised(group), Text(number(group.advised_std), "dim"))
    return table


def _room(report: Report, width: int) -> int:
    """Width of the first column; each column of numbers takes three characters beside its cells."""
    stds = [n for g in report.groups for n in (g.expected_std, g.own_std, g.advised_std)]
    measured = [n for g in report.groups for n in (g.measured_std, g.own_measured_std)]
    columns = [["std", *map(number, stds)], ["measured", *map(number, measured)], ["max z"]]
    return max(width - sum(3 + max(map(len, column)) for column in columns), 20)


def _is_advised_otherwise(group: ReportedGroup) -> bool:
    drawn = group.measured_std if group.expected_std is None else group.expected_std
    advised = group.advised_std
    if advised is None or drawn is None or not math.isfinite(drawn + advised):
        return False
    return max(drawn, advised) > _FACTOR * min(drawn, advised)


def _print_reading(console: Console, report: Report) -> None:
    """Says why there is no reading, or where the reasons of the advice are."""
    if report.no_reading is not None:
        console.print()
        console.print(Text(f"No roles and no advice: {report.no_reading}", "yellow"))
    elif any(map(_is_advised_otherwise, report.groups)):
        console.print()
        console.print(
            Text(
                "advised: where its std differs by a factor of 1.4; reasons: jaxinit advise", "dim"
            )
        )


@dataclasses.dataclass(frozen=True)
class _Lines:
    """Text of the first column.

    Attributes:
        width: characters per line.
        dtype: dtype of all leaves, which is then not repeated; empty when there are several.
        compared: whether rules replace the model's own initializers.
    """

    width: int
    dtype: str
    compared: bool

    def patterns(self, group: ReportedGroup) -> Text:
        """The first paths of a group, and how many more there are."""
        surplus = len(group.patterns) - _MOST_PATTERNS
        shown = group.patterns[: _MOST_PATTERNS - 1] if surplus > 0 else group.patterns
        text = Text("\n".join(_broken_at_slashes(pattern, self.width) for pattern in shown))
        if surplus > 0:
            text.append(f"\nand {surplus + 1} more patterns", "dim")
        return text

    def facts(self, group: ReportedGroup) -> Text:
        """Initializer, number, role, shape and fans of a group."""
        initializer = _shortened(group.initializer) if group.initializer else "law unknown"
        shape = "x".join(map(str, group.shape)) or "scalar"
        dtype = "" if group.dtype == self.dtype else f" {group.dtype}"
        count = len(group.leaves)
        role = f"{_ROLES[group.role][count > 1]} " if group.role else ""
        members = f"{count:,} {role}of {shape}{dtype}".replace(" ", _TIED)
        fans = "" if group.fan_in is None else f", fans{_TIED}{group.fan_in:g}>{group.fan_out:g}"
        text = self._wrapped(f"{initializer}, {members}{fans}")
        text.highlight_words(
            [initializer], "not dim cyan" if group.initializer else "not dim yellow"
        )
        return text

    def own(self, group: ReportedGroup) -> Text:
        """The model's own initializer."""
        own = _shortened(group.own_initializer) if group.own_initializer else "unknown"
        return self._wrapped(f"the model itself: {own}")

    def advised(self, group: ReportedGroup) -> Text:
        """The advised initializer."""
        return self._wrapped(f"advised: {_shortened(group.advised)}")

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
    places = patterns(leaves)
    surplus = len(places) - _MOST_PLACES
    return ", ".join(places[:_MOST_PLACES]) + (f" and {surplus} more" if surplus > 0 else "")
