"""The commands ``jaxinit report``, ``advise`` and ``audit``: a model is read and judged."""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable
from typing import Any

from jaxinit import report
from jaxinit.cli._options import (
    EXIT_STATUS,
    add_command,
    add_model,
    add_seed,
    exit_status,
)

_REPORT_EPILOG = f"""\
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

_TARGET = """\
TARGET and --input are those of jaxinit report; an NNX model needs --input as
well"""

_ADVISE_EPILOG = f"""\
Which initializer every parameter should have, with the fans that the model
really has, why, and what is wrong with the model's own.

{_TARGET}.

  jaxinit advise
  jaxinit advise model.py:MLP --input 8x784:float32
  jaxinit advise model.py:MLP --input 8x784:float32 --fail-on error
  jaxinit advise model.py:MLP --input 8x784:float32 --measure 10

--predict is of a model that takes the advice: a second moment for each entry
after every layer, and of the gradient there, for inputs of variance 1.

{EXIT_STATUS}"""

_AUDIT_EPILOG = f"""\
Lets the model draw its parameters, measures them, and says which gain each has
with its true fan_in.

{_TARGET}, and one that exists keeps its values.

  jaxinit audit model.py:MLP --input 8x784:float32
  jaxinit audit model.py:MLP --input 8x784:float32 --fail-on warning --json -

--predict and --measure are of the arrays that the model drew.

{EXIT_STATUS}"""


def add_commands(commands: Any) -> None:
    """Adds the commands to the value of ``add_subparsers``."""
    _add_report(commands)
    what = "say which initializer every parameter should have, and why"
    run = functools.partial(_run, report.advice_for)
    parser = add_command(commands, "advise", what, _ADVISE_EPILOG, run)
    _add_shared(parser)
    parser.set_defaults(seed=0)
    what = "judge the parameters that a model draws"
    run = functools.partial(_run, report.audit_of)
    parser = add_command(commands, "audit", what, _AUDIT_EPILOG, run)
    _add_shared(parser)
    add_seed(parser)


def _add_report(commands: Any) -> None:
    what = "initialize a model and check every parameter"
    parser = add_command(commands, "report", what, _REPORT_EPILOG, _report)
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


def _add_shared(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    parser.add_argument(
        "--goal", default="train", help="train, classical, mup or policy (default: train)"
    )
    parser.add_argument(
        "--predict",
        action="store_true",
        help="show how large every signal and gradient will be",
    )
    parser.add_argument(
        "--measure",
        metavar="DRAWS",
        type=_draws,
        default=0,
        help="predict, and measure over so many draws beside it",
    )


def _draws(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"needs a whole number of draws from 1, got {text!r}")
    return int(text)


def _run(
    judge: Callable[[report.AdviceRequest], report.Judged], options: argparse.Namespace
) -> int:
    request = report.AdviceRequest(
        target=options.target,
        inputs=tuple(options.input),
        goal=options.goal,
        seed=options.seed,
        predict=options.predict or options.measure > 0,
        draws=options.measure,
    )
    with report.json_file(options.json) as write:
        with report.stdout_kept_clean():
            judged = judge(request)
        write(judged.to_json())
    if options.json != "-":
        with report.output() as console:
            console.print(judged.to_text(console.width))
    return exit_status(options, judged.result.findings)


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
