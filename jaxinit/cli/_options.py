"""The layout of a parser, and the options that several commands take."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from typing import Any, NoReturn

from jaxinit.advice import SEVERITIES, Finding
from jaxinit.report import Unusable

# The end of the help of every command that judges a model.
EXIT_STATUS = """\
Exit status: 0; 1 with findings at or above --fail-on; 2 when something that was
given cannot be used.
"""


class Parser(argparse.ArgumentParser):
    """A parser that keeps the lines of its help, and whose errors are one line."""

    def __init__(self, **options: Any) -> None:
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, **options)

    def error(self, message: str) -> NoReturn:
        raise Unusable(f"{message} (try {self.prog} --help)")


def add_command(
    commands: Any, name: str, what: str, epilog: str, run: Callable[[argparse.Namespace], int]
) -> argparse.ArgumentParser:
    """Adds a command to the parser.

    Args:
        commands: what ``add_subparsers`` returned.
        name: of the command.
        what: one line that says what the command does.
        epilog: the text under its options.
        run: from its options to the exit status.

    Returns:
        The parser of the command, with the option ``--traceback``.
    """
    parser = commands.add_parser(name, help=what, description=what, epilog=epilog)
    parser.add_argument(
        "--traceback", action="store_true", help="show where an error comes from, not just what"
    )
    parser.set_defaults(run=run)
    return parser


def add_model(parser: argparse.ArgumentParser) -> None:
    """Adds what every command that judges a model takes.

    The model and its example inputs, ``--json FILE`` and ``--fail-on``.
    """
    parser.add_argument(
        "target",
        metavar="TARGET",
        nargs="?",
        help="module:attribute or file.py:attribute (default: GPT-2 124M)",
    )
    parser.add_argument(
        "--input",
        metavar="SHAPE:DTYPE",
        action="append",
        default=[],
        help="example input such as 1x16:int32, or NAME=VALUE; repeat it for more",
    )
    parser.add_argument("--json", metavar="FILE", help="write the result as JSON; - for stdout")
    parser.add_argument(
        "--fail-on",
        choices=SEVERITIES,
        help="exit with status 1 on findings of this severity or above",
    )


def add_seed(parser: argparse.ArgumentParser) -> None:
    """Adds ``--seed``."""
    parser.add_argument("--seed", type=_seed, default=0, help="seed of the key (default: 0)")


def add_json(parser: argparse.ArgumentParser) -> None:
    """Adds ``--json``, for the standard output alone."""
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")


def exit_status(options: argparse.Namespace, findings: Iterable[Finding]) -> int:
    """1 with findings at or above ``--fail-on``, else 0."""
    severity = options.fail_on
    return int(severity is not None and any(each.is_at_least(severity) for each in findings))


def _seed(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) < 2**32):
        raise argparse.ArgumentTypeError(f"needs a whole number from 0 to 2**32 - 1, got {text!r}")
    return int(text)
