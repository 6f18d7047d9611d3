"""The command line: ``jaxinit list``, ``show``, ``gain``, ``report``, ``advise`` and ``audit``.

Each group of commands has a file that parses, calls and prints; `jaxinit.report` does the work.
Exit status: 0; 1 with findings at or above ``--fail-on``; 2 for input that cannot be used, with one
line on the standard error.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Sequence
from typing import Any

from jaxinit.cli import _advise, _catalogue
from jaxinit.cli._options import Parser
from jaxinit.report import Unusable, error_text, one_line

_PIPE_CLOSED = 128 + 13  # as a shell reports a process that SIGPIPE ended
_INTERRUPTED = 128 + 2

_EPILOG = """\
examples:
  jaxinit list                          the catalogue
  jaxinit show he_normal 512 256        one array: measured against declared law
  jaxinit gain gelu                     what an activation does to a signal
  jaxinit report                        the GPT-2 124M model that ships with jaxinit
  jaxinit report model.py:MLP --input 8x784:float32
  jaxinit advise model.py:MLP --input 8x784:float32
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
        argv: arguments without the name of the program; those of the process when not given.

    Returns:
        The exit status.

    Example:
        >>> main(["show", "he_normal"])
        2
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if sys.stdout is None:  # closed by the shell: jaxinit list >&-
        return _fail("the standard output is closed")
    _accept_any_text(sys.stdout, sys.stderr)
    try:
        status = _run(arguments)
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        _drop_what_cannot_be_written()
        return _PIPE_CLOSED
    except KeyboardInterrupt:
        return _fail("interrupted", _INTERRUPTED, prefix="jaxinit")
    except (Exception, SystemExit) as error:
        if "--traceback" in arguments:
            import traceback

            traceback.print_exc()
        _drop_what_cannot_be_written()
        return _fail(_explain(error))


def _run(arguments: Sequence[str]) -> int:
    parser = _parser()
    try:
        options = parser.parse_args(arguments)
    except SystemExit as stop:  # after --help and --version
        return stop.code if isinstance(stop.code, int) else 0
    if options.command is None:
        parser.error("name a command: list, show, gain, report, advise or audit")
    return options.run(options)


def _parser() -> Parser:
    from jaxinit import __version__

    parser = Parser(
        prog="jaxinit",
        description="Initializers that declare their law, and a report that holds a model to it.",
        epilog=_EPILOG,
    )
    parser.add_argument("--version", action="version", version=f"jaxinit {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", dest="command")
    for group in (_catalogue, _advise):
        group.add_commands(commands)
    return parser


def _explain(error: BaseException) -> str:
    if isinstance(error, Unusable):
        return str(error)
    if isinstance(error, OSError):
        return f"the output cannot be written: {error_text(error)}"
    return f"{error_text(error)} (--traceback shows where)"


def _fail(message: str, status: int = 2, prefix: str = "jaxinit: error") -> int:
    with contextlib.suppress(OSError):
        print(f"{prefix}: {one_line(message)}", file=sys.stderr, flush=True)
    return status


def _accept_any_text(*streams: Any) -> None:
    """Prints a question mark for a character that the encoding lacks, such as an accent."""
    for stream in streams:
        if hasattr(stream, "reconfigure") and stream.errors == "strict":
            stream.reconfigure(errors="replace")


def _drop_what_cannot_be_written() -> None:
    """Drops the rest of the buffer if the output is gone, so that the interpreter ends quietly."""
    try:
        sys.stdout.flush()
    except OSError:
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
