"""Where output goes: colours and progress on a terminal, plain text anywhere else."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Callable, Iterator
from typing import IO, NoReturn

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

# Called with what is being done, and how many bytes of it: (stage, done, total); a total of 0 means
# that nobody knows.
Watch = Callable[[str, int, int], None]


class _Console(Console):
    """Rich's console, except that a closed pipe is for the caller to handle."""

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
    """Text kept back until its lines can be freed of the spaces that fill them."""

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
def progress(wanted: bool = True) -> Iterator[Watch]:
    """A progress display on the standard error, where that is a terminal that a person watches.

    Nothing is shown in pipes, on terminals that cannot redraw a line, and where the environment
    variable ``CI`` is set.

    Args:
        wanted: False shows nothing anywhere.

    Yields:
        A function to call with the stage, what is done of it and how much there is.
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
    """One line of a progress display for the stage that is running."""

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


@contextlib.contextmanager
def stdout_kept_clean() -> Iterator[None]:
    """Sends what other people's code prints to the standard error."""
    with contextlib.redirect_stdout(sys.stderr):
        yield
