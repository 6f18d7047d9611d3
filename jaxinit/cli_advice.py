"""The commands ``jaxinit advise`` and ``jaxinit audit``: parsing, calling and printing."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxinit.advice import Finding

_ADVISE_EPILOG = """\
Which initializer every parameter should have, with the fans that the model
really has, why, and what is wrong with the model's own. TARGET and --input are
those of jaxinit report; an NNX model needs --input as well.

  jaxinit advise
  jaxinit advise model.py:MLP --input 8x784:float32
  jaxinit advise model.py:MLP --input 8x784:float32 --fail-on error

Exit status: 0; 1 with findings at or above --fail-on; 2 when something that was
given cannot be used.
"""

_AUDIT_EPILOG = """\
Lets the model draw its parameters, measures them, and says which gain each has
with its true fan_in. TARGET and --input are those of jaxinit report; an NNX
model needs --input as well, and one that exists keeps its values.

  jaxinit audit model.py:MLP --input 8x784:float32
  jaxinit audit model.py:MLP --input 8x784:float32 --fail-on warning --json -

Exit status: 0; 1 with findings at or above --fail-on; 2 when something that was
given cannot be used.
"""


def add_commands(commands: Any, layout: dict[str, Any], seed: Callable[[str], int]) -> None:
    """Adds the two commands to the parser.

    Args:
        commands: what ``add_subparsers`` returned.
        layout: keyword arguments of every parser.
        seed: type of a seed.
    """
    what = "say which initializer every parameter should have, and why"
    parser = commands.add_parser(
        "advise", help=what, description=what, epilog=_ADVISE_EPILOG, **layout
    )
    _add_shared(parser)
    parser.set_defaults(run=_advise, seed=0)
    what = "judge the parameters that a model draws"
    parser = commands.add_parser(
        "audit", help=what, description=what, epilog=_AUDIT_EPILOG, **layout
    )
    _add_shared(parser)
    parser.add_argument("--seed", type=seed, default=0, help="seed of the key (default: 0)")
    parser.set_defaults(run=_audit)


def _add_shared(parser: argparse.ArgumentParser) -> None:
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
    parser.add_argument(
        "--goal", default="train", help="train, classical, mup or policy (default: train)"
    )
    parser.add_argument(
        "--fail-on",
        choices=("info", "warning", "error"),
        help="exit with status 1 on findings of this severity or above",
    )
    parser.add_argument("--json", metavar="FILE", help="write the result as JSON; - for stdout")


def _advise(options: argparse.Namespace) -> int:
    from jaxinit.report.advising import advice_for

    return _print(options, advice_for)


def _audit(options: argparse.Namespace) -> int:
    from jaxinit.report.advising import audit_of

    return _print(options, audit_of)


def _print(options: argparse.Namespace, work: Callable[[Any], Any]) -> int:
    from jaxinit.report.advising import AdviceRequest
    from jaxinit.report.as_json import json_file
    from jaxinit.report.terminal import stdout_kept_clean

    request = AdviceRequest(options.target, tuple(options.input), options.goal, options.seed)
    with json_file(options.json) as write:
        with stdout_kept_clean():
            result = work(request)
        write(json.dumps(result.to_json(), indent=2, allow_nan=False) + "\n")
    if options.json != "-":
        sys.stdout.write(f"{result}\n")
    return _status(result.findings, options.fail_on)


def _status(findings: Sequence[Finding], fail_on: Any) -> int:
    return int(fail_on is not None and any(each.is_at_least(fail_on) for each in findings))
