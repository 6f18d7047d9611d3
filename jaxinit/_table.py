"""Plain-text tables for everything that the library prints: plans, differences, failed checks.

Rich lays a table out; the result is a string without colours or control characters, so it reads the
same in a terminal, a log file, an error message and a doctest.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

_NUMBER = re.compile(
    r"[-+]?(\d[\d,_]*\.?\d*(e[-+]?\d+)?|nan|inf)( ?[%x]| [KMGT]?i?B)?", re.IGNORECASE
)
# Wider than any table: Rich wraps and cuts nothing at this width.
_UNLIMITED = 100_000


def render_table(
    columns: Sequence[str],
    rows: Iterable[Sequence[Any]],
    *,
    title: str | None = None,
    max_width: int | None = None,
) -> str:
    """Lays out rows under headings, numbers to the right.

    Args:
        columns: headings, one per column.
        rows: cells; None is left empty, a float is shown with four significant digits, anything
            else as ``str`` gives it.
        title: a line above the table.
        max_width: characters per line, beyond which cells are wrapped; None never wraps.

    Returns:
        The table without a trailing newline.

    Raises:
        ValueError: when a row has more or fewer cells than there are columns.

    Example:
        >>> print(render_table(["leaf", "entries"], [("kernel", 1024), ("bias", 32)]))
        leaf    entries
        ───────────────
        kernel     1024
        bias         32
    """
    cells = [[_cell_text(cell) for cell in row] for row in rows]
    for number, row in enumerate(cells):
        if len(row) != len(columns):
            raise ValueError(
                f"render_table needs {len(columns)} cells in every row, one for each of "
                f"{list(columns)}, got {len(row)} in row {number}: {row}."
            )
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for index, heading in enumerate(columns):
        column = [row[index] for row in cells if row[index]]
        is_number = bool(column) and all(map(_NUMBER.fullmatch, column))
        table.add_column(Text(heading), justify="right" if is_number else "left", overflow="fold")
    for row in cells:
        table.add_row(*map(Text, row))
    console = Console(
        file=io.StringIO(), width=max_width or _UNLIMITED, color_system=None, legacy_windows=False
    )
    with console.capture() as captured:
        console.print(table)
    lines = [line.rstrip() for line in captured.get().rstrip("\n").split("\n")]
    return "\n".join(([] if title is None else [title]) + lines)


def spell_bytes(count: int) -> str:
    """A number of bytes in the unit that leaves at most three digits before the point.

    Example:
        >>> spell_bytes(640), spell_bytes(3 * 2**19), spell_bytes(1020 * 2**10)
        ('640 B', '1.5 MiB', '0.996 MiB')
    """
    size, units = float(count), ["B", "KiB", "MiB", "GiB", "TiB"]
    while size >= 999.5 and len(units) > 1:
        size /= 1024
        units.pop(0)
    return f"{size:.3g} {units[0]}"


def _cell_text(cell: Any) -> str:
    if cell is None:
        return ""
    return f"{cell:.4g}" if isinstance(cell, float) else str(cell)
