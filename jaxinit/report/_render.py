"""The catalogue and a single array as a person reads them on a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from jaxinit._table import spell_bytes
from jaxinit.initializers import Description
from jaxinit.report._histogram import draw_histogram
from jaxinit.report._one_array import Shown
from jaxinit.report._quantities import Quantity
from jaxinit.report._terminal import shows_blocks

# Beyond this many standard errors a right draw falls once in two million.
FAR = 5.0


def new_table(columns: Sequence[str], right: Iterable[str] = ()) -> Table:
    """An empty table in the house style.

    Args:
        columns: headings.
        right: those of them whose cells are numbers.
    """
    table = Table(
        box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold"
    )
    numbers = set(right)
    for name in columns:
        table.add_column(
            name,
            justify="right" if name in numbers else "left",
            overflow="fold",
            no_wrap=name in numbers,
        )
    return table


def number(value: Any) -> str:
    """A measured or declared number with four digits; a dash where there is none."""
    if value is None or value != value:
        return "-"
    if isinstance(value, complex):
        return f"{value.real:.4g}{value.imag:+.4g}j" if value.imag else number(value.real)
    return f"{value:.4g}"


def score(z: float | None, *, signed: bool = True) -> Text:
    """A z-score; red where chance does not explain it."""
    if z is None:
        return Text("")
    return Text(f"{z:+.2f}" if signed else f"{z:.2f}", "bold red" if not abs(z) <= FAR else "")


def print_catalogue(console: Console, entries: Sequence[Description]) -> None:
    """Prints the catalogue: name, law, when to use it, source."""
    table = new_table(["name", "law", "when to use it", "source"])
    for entry in entries:
        table.add_row(Text(entry.name, "cyan"), entry.law, entry.use, entry.source)
    console.print(table)
    console.print()
    console.print("jaxinit show NAME SHAPE draws one: jaxinit show he_normal 512 256")


def print_array(console: Console, shown: Shown) -> None:
    """Prints one array: what it is, measured against declared, a histogram."""
    shape = " x ".join(map(str, shown.shape)) or "scalar"
    console.print(Text(shown.initializer, "bold cyan"))
    console.print(
        f"{shape}, {shown.dtype}, {shown.entries:,} entries, {spell_bytes(shown.nbytes)}, "
        f"seed {shown.seed}"
    )
    if shown.fan_in is not None and shown.fan_out is not None:
        console.print(f"fan in {shown.fan_in:g}, fan out {shown.fan_out:g}")
    console.print()
    console.print(_quantities(shown.quantities))
    for place, part in shown.parts.items():
        console.print()
        console.print(f"part: {place}")
        console.print(_quantities(part))
    lines = draw_histogram(shown.histogram, min(console.width, 100), blocks=shows_blocks(console))
    if lines:
        console.print()
        console.print("\n".join(lines))


def _quantities(rows: Sequence[Quantity]) -> Table:
    table = new_table(["", "declared", "measured", "z"], ["declared", "measured", "z"])
    for row in rows:
        table.add_row(row.name, number(row.declared), number(row.measured), score(row.z))
    return table
