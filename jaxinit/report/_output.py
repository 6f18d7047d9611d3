"""Where output goes and how it looks: a console, a progress display, a JSON file, tables.

A terminal gets colours and progress, everything else plain text. A document in JSON starts with
``format`` and ``version``.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NoReturn

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from jaxinit._json import plain
from jaxinit.report._targets import Unusable

# Called with the stage that runs, the bytes of it that are done, and all its bytes; 0 of all means
# that their number is unknown.
Watch = Callable[[str, int, int], None]

VERSIONS = {"list": 1, "show": 1, "gain": 1, "report": 3}
# A right draw is further off than this many standard errors once in two million times.
FAR = 5.0


# Streams.


class _Console(Console):
    """Rich's console, but a closed pipe raises, so that the caller handles it."""

    def on_broken_pipe(self) -> NoReturn:
        raise BrokenPipeError


def _open_console(stream: IO[str], width: int | None = None) -> Console:
    # Text is taken literally: a shape in brackets is no markup.
    return _Console(file=stream, width=width, markup=False, highlight=False, emoji=False)


@contextlib.contextmanager
def output() -> Iterator[Console]:
    """A console for the standard output: colours on a terminal, plain lines anywhere else.

    The width is that of the terminal, or the environment variable ``COLUMNS``, or 80.
    """
    stdout = sys.stdout
    console = _open_console(stdout)
    if console.is_terminal:
        yield console
        return
    page = _Page(console.encoding)
    yield _open_console(page, console.width)
    stdout.write("".join(f"{line.rstrip()}\n" for line in page.getvalue().splitlines()))


class _Page(io.StringIO):
    """Text that is kept until the end, when the spaces that fill its lines are removed."""

    def __init__(self, encoding: str) -> None:
        super().__init__()
        self._encoding = encoding

    @property
    def encoding(self) -> str:  # pyright: ignore[reportIncompatibleMethodOverride]
        return self._encoding


def shows_blocks(console: Console) -> bool:
    """Whether the encoding of the output has block characters."""
    try:
        "█▏─".encode(console.encoding)
    except (UnicodeEncodeError, LookupError):
        return False
    return True


@contextlib.contextmanager
def stdout_kept_clean() -> Iterator[None]:
    """Sends everything that a user's code prints to the standard error."""
    with contextlib.redirect_stdout(sys.stderr):
        yield


# Progress.


@contextlib.contextmanager
def progress(wanted: bool = True) -> Iterator[Watch]:
    """A progress display on the standard error, where that is a terminal that a person watches.

    Pipes, terminals that cannot redraw a line, and environments where the variable ``CI`` is set
    get no display.

    Args:
        wanted: False shows no display anywhere.

    Yields:
        A function to call with the stage, the bytes of it that are done, and all its bytes.
    """
    console = _open_console(sys.stderr)
    is_watched = console.is_terminal and not console.is_dumb_terminal
    if not wanted or not is_watched or os.environ.get("CI"):
        yield lambda stage, done, total: None
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=20),
        TextColumn("{task.fields[amount]}", markup=False),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True) as display:
        yield _Stages(display).watch


class _Stages:
    """A progress display of one line, for the stage that runs."""

    def __init__(self, display: Progress) -> None:
        self.display = display
        self.stage: str | None = None
        self.task: TaskID | None = None

    def watch(self, stage: str, done: int, total: int) -> None:
        amount = f"{done >> 20:,} of {total >> 20:,} MiB" if total else ""
        if stage != self.stage or self.task is None:
            if self.task is not None:
                self.display.remove_task(self.task)
            self.stage, self.task = stage, self.display.add_task(stage, total=None, amount=amount)
        self.display.update(self.task, completed=done, total=total or None, amount=amount)


# JSON.


def document(kind: str, record: Any) -> dict[str, Any]:
    """A record as a dictionary of plain values that says what it is.

    Args:
        kind: name of the document, as in ``VERSIONS``; the format becomes ``jaxinit-<kind>``.
        record: a dataclass or mapping.

    Example:
        >>> document("list", {"ends": (0.0, float("inf"))})
        {'format': 'jaxinit-list', 'version': 1, 'ends': [0.0, None]}
    """
    return {"format": f"jaxinit-{kind}", "version": VERSIONS[kind], **plain(record)}


@contextlib.contextmanager
def json_file(path: str | None) -> Iterator[Callable[[str], object]]:
    """Opens a place for a document before the work that makes the document.

    Args:
        path: the file, ``-`` for the standard output, None for nowhere.

    Yields:
        A function that writes the document and ends its last line.

    Raises:
        Unusable: when nothing can be written there. A new file that the document was not written
            to is removed again.
    """
    if path is None:
        yield lambda text: None
        return
    if path == "-":
        yield lambda text: sys.stdout.write(f"{text}\n")
        return
    place = Path(path)
    is_new = not place.exists()
    _try(place, lambda: place.open("a", encoding="utf-8").close())
    written = []

    def write(text: str) -> None:
        _try(place, lambda: place.write_text(f"{text}\n", encoding="utf-8"))
        written.append(place)

    try:
        yield write
    finally:
        if is_new and not written:
            with contextlib.suppress(OSError):
                place.unlink()


def _try(place: Path, action: Callable[[], Any]) -> None:
    try:
        action()
    except (OSError, ValueError) as error:
        reason = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else error
        raise Unusable(f"--json cannot write {str(place)!r}: {reason}.") from error


# Tables and their cells.


def new_table(columns: Sequence[str], right: Iterable[str] = ()) -> Table:
    """An empty table in the style of all commands.

    Args:
        columns: headings.
        right: those of them whose cells are numbers.
    """
    table = Table(
        box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold"
    )
    numbers = set(right)
    for name in columns:
        is_number = name in numbers
        justify = "right" if is_number else "left"
        table.add_column(name, justify=justify, overflow="fold", no_wrap=is_number)
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
