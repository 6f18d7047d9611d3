"""The command ``jaxinit report``."""

from __future__ import annotations

import argparse
from typing import Any

from jaxinit import report
from jaxinit.cli._options import (
    EXIT_STATUS,
    add_command,
    add_model,
    add_seed,
    exit_status,
)

_EPILOG = f"""\
TARGET is an instance or a class of a Linen or NNX module, or a function that
returns one; NNX classes and functions may have a parameter rngs. A Linen module
needs example inputs, from --input or from a method example_inputs() of its own;
an NNX model may have some, to be read for roles, true fans and advice.

  jaxinit report
  jaxinit report model.py:MLP --input 8x784:float32
  jaxinit report models:resnet --input 1x224x224x3:float32 --input train=False
  jaxinit report model.py:make_nnx_model --strict --json report.json
  jaxinit report model.py:MLP --input 8x784:float32 --rules train.py:RULES
  jaxinit report model.py:MLP --input 8x784:float32 \\
      --rules '[["**/kernel", "he_normal"], ["**/bias", "zeros"]]'

--rules takes a JSON list of [pattern, initializer], a file that holds one, a
manifest written by plan.to_json(), or module:attribute naming a Python list of
rules. An initializer is a name, a call such as "normal(0.02)", or a config such
as {{"name": "normal", "stddev": 0.02}}.

{EXIT_STATUS}"""


def add_commands(commands: Any) -> None:
    """Adds the command to the value of ``add_subparsers``."""
    what = "initialize a model and check every parameter"
    parser = add_command(commands, "report", what, _EPILOG, _report)
    add_model(parser)
    parser.add_argument("--rules", help="rules or a plan to draw with, instead of the model's own")
    add_seed(parser)
    parser.add_argument("--dtype", help="draw floating-point parameters in this dtype")
    parser.add_argument(
        "--allow",
        metavar="PATTERN",
        action="append",
        default=[],
        help="leaves that may hold twins, such as output kernels that start at zero",
    )
    parser.add_argument(
        "--strict",
        dest="fail_on",
        action="store_const",
        const="warning",
        help="short for --fail-on warning",
    )
    parser.add_argument(
        "--compare",
        action=argparse.BooleanOptionalAction,
        help="time jax.jit(model.init) too (default: if that is quick)",
    )


def _report(options: argparse.Namespace) -> int:
    request = report.Request(
        target=options.target,
        rules=options.rules,
        inputs=tuple(options.input),
        seed=options.seed,
        dtype=options.dtype,
        allow=tuple(options.allow),
        compare=options.compare,
    )
    with report.json_file(options.json) as write:
        with report.stdout_kept_clean(), report.progress(options.json != "-") as watch:
            made = report.collect(request, watch)
        write(made.to_json())
    if options.json != "-":
        with report.output() as console:
            report.print_report(console, made)
    return exit_status(options, made.findings)
