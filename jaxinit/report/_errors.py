"""Errors of the command line: one line each, that a person at a terminal can act on."""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Iterator
from pathlib import Path

_LONGEST = 900


class Unusable(Exception):
    """What was asked for cannot be used; the message is the one line to print."""


def one_line(text: str) -> str:
    """Text on a single line, cut where nobody reads on."""
    line = " ".join(text.split())
    return line if len(line) <= _LONGEST else f"{line[: _LONGEST - 4]} ..."


@contextlib.contextmanager
def as_unusable(prefix: str = "", source: Path | None = None) -> Iterator[None]:
    """Turns the library's errors about values and kinds into `Unusable`.

    Args:
        prefix: put before the message.
        source: file whose line is named when the error was raised in it.
    """
    try:
        yield
    except (ValueError, TypeError) as error:
        raise Unusable(f"{prefix}{error}{place_in(error, source)}") from error


def describe(error: BaseException) -> str:
    """Type and message of an error that somebody else's code raised."""
    if isinstance(error, SyntaxError):
        where = f", line {error.lineno}" if error.lineno else ""
        return f"{type(error).__name__}{where}: {error.msg}"
    text = one_line(str(error))
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def place_in(error: BaseException, source: Path | None) -> str:
    """``" (model.py, line 12)"`` when the error, or what caused it, was raised there."""
    chain: list[BaseException] = []
    step: BaseException | None = error
    while step is not None and step not in chain:
        chain.append(step)
        step = step.__cause__ or step.__context__
    for link in reversed(chain):
        for frame in reversed(traceback.extract_tb(link.__traceback__)):
            if source is not None and Path(frame.filename) == source:
                return f" ({source.name}, line {frame.lineno})"
    return ""
