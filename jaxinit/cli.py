"""The command line: ``jaxinit list``, ``show``, ``gain``, ``report``, ``advise`` and ``audit``.

This file parses, calls and prints; the work is done in `jaxinit.report`. Exit status: 0; 1 with
findings under ``--strict``; 2 for input that cannot be used, with one line on the standard error.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from jaxinit.cli_advice import add_commands
from jaxinit.report.errors import Unusable, describe, one_line

_PIPE_CLOSED = 128 + 13  # as a shell reports a process that SIGPIPE ended
_INTERRUPTED = 128 + 2

_MAIN_EPILOG = """\
examples:
  jaxinit list                          the catalogue
  jaxinit show he_normal 512 256        one array: measured against declared law
  jaxinit gain gelu                     what an activation does to a signal
  jaxinit report                        the GPT-2 124M model that ships with jaxinit
  jaxinit report model.py:MLP --input 8x784:float32
  jaxinit advise model.py:MLP --input 8x784:float32
"""

_LIST_EPILOG = """\
examples:
  jaxinit list
  jaxinit list --json | jq '.initializers[].name'
"""

_SHOW_EPILOG = """\
NAME is a name of the catalogue (jaxinit list), a call as repr() prints it, or
a JSON config:

  jaxinit show he_normal 512 256
  jaxinit show normal 64 64 --arg stddev=0.02 --arg mean=1
  jaxinit show 'scaled(he_normal(), 0.5)' 3 3 64 128 --dtype bfloat16
  jaxinit show '{"name": "normal", "stddev": 0.02}' 64 64 --json

z counts standard errors: beyond 5 in size, chance does not explain it.
"""

_GAIN_EPILOG = """\
TARGET is a name of the catalogue of activations, or module:attribute naming an
elementwise function that JAX can trace:

  jaxinit gain gelu
  jaxinit gain 'leaky_relu(0.2)'
  jaxinit gain jax.nn:celu --json
  jaxinit gain model.py:gated_unit --inputs 2

Everything is computed for a Gaussian of variance 1, in float64.
"""

_REPORT_EPILOG = """\
TARGET is an instance or a class of a Linen or NNX module, or a function that
returns one; NNX classes and functions may have a parameter rngs. A Linen module
needs example inputs, from --input or from a method example_inputs() of its own.

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
as {"name": "normal", "stddev": 0.02}.

Exit status: 0; 1 with findings under --strict; 2 when something that was given
cannot be used.
"""


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, like all others."""

    def error(self, message: str) -> NoReturn:
        raise Unusable(f"{message} (try {self.prog} --help)")


def _parser() -> argparse.ArgumentParser:
    from jaxinit import __version__

    layout: dict[str, Any] = {"formatter_class": argparse.RawDescriptionHelpFormatter}
    parser = _Parser(
        prog="jaxinit",
        description="Initializers that declare their law, and a report that holds a model to it.",
        epilog=_MAIN_EPILOG,
        **layout,
    )
    parser.add_argument("--version", action="version", version=f"jaxinit {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", dest="command")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--traceback", action="store_true", help="show where an error comes from, not just what"
    )
    layout["parents"] = [common]
    _add_list(commands, layout)
    _add_show(commands, layout)
    _add_gain(commands, layout)
    _add_report(commands, layout)
    add_commands(commands, layout, _seed)
    return parser


def _add_list(commands: Any, layout: dict[str, Any]) -> None:
    what = "show the catalogue of initializers"
    parser = commands.add_parser("list", help=what, description=what, epilog=_LIST_EPILOG, **layout)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.set_defaults(run=_list)


def _add_show(commands: Any, layout: dict[str, Any]) -> None:
    what = "draw one array and hold it to its declared law"
    parser = commands.add_parser("show", help=what, description=what, epilog=_SHOW_EPILOG, **layout)
    parser.add_argument("name", metavar="NAME", help="name, call or JSON config")
    parser.add_argument("shape", metavar="SHAPE", nargs="+", help="sizes: 512 256, or 512x256")
    parser.add_argument(
        "--arg", metavar="NAME=VALUE", action="append", default=[], help="argument beside a name"
    )
    parser.add_argument("--dtype", help="dtype of the array (default: float32)")
    parser.add_argument("--seed", type=_seed, default=0, help="seed of the key (default: 0)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    parser.set_defaults(run=_show)


def _add_gain(commands: Any, layout: dict[str, Any]) -> None:
    what = "show what an activation does to a signal, and the gains that undo it"
    parser = commands.add_parser("gain", help=what, description=what, epilog=_GAIN_EPILOG, **layout)
    parser.add_argument("target", metavar="TARGET", help="name, module:attribute or file.py:...")
    parser.add_argument(
        "--inputs", type=int, choices=(1, 2), help="inputs of a callable: 2 for a gated unit"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.set_defaults(run=_gain)


def _add_report(commands: Any, layout: dict[str, Any]) -> None:
    what = "initialize a model and check every parameter"
    parser = commands.add_parser(
        "report", help=what, description=what, epilog=_REPORT_EPILOG, **layout
    )
    parser.add_argument(
        "target",
        metavar="TARGET",
        nargs="?",
        help="module:attribute or file.py:attribute (default: GPT-2 124M)",
    )
    parser.add_argument("--rules", help="rules or a plan to draw with, instead of the model's own")
    parser.add_argument(
        "--input",
        metavar="SHAPE:DTYPE",
        action="append",
        default=[],
        help="example input such as 1x16:int32, or NAME=VALUE; repeat it for more",
    )
    parser.add_argument("--seed", type=_seed, default=0, help="seed of the key (default: 0)")
    parser.add_argument("--dtype", help="draw floating-point parameters in this dtype")
    parser.add_argument(
        "--allow",
        metavar="PATTERN",
        action="append",
        default=[],
        help="leaves that may hold twins, such as output kernels that start at zero",
    )
    parser.add_argument("--json", metavar="FILE", help="write the report as JSON; - for stdout")
    parser.add_argument(
        "--strict", action="store_true", help="exit with status 1 when there are findings"
    )
    parser.add_argument(
        "--compare",
        action=argparse.BooleanOptionalAction,
        help="time jax.jit(model.init) too (default: if that is quick)",
    )
    parser.set_defaults(run=_report)


def _seed(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) < 2**32):
        raise argparse.ArgumentTypeError(f"needs a whole number from 0 to 2**32 - 1, got {text!r}")
    return int(text)


def _list(options: argparse.Namespace) -> int:
    from jaxinit.initializers import describe, names

    entries = [describe(name) for name in names()]
    if options.json:
        from jaxinit.report.as_json import to_json

        lines = [{"name": e.name, "law": e.law, "use": e.use, "source": e.source} for e in entries]
        sys.stdout.write(to_json("list", {"initializers": lines}))
        return 0
    from jaxinit.report.render import print_catalogue
    from jaxinit.report.terminal import output

    with output() as console:
        print_catalogue(console, entries)
    return 0


def _show(options: argparse.Namespace) -> int:
    from jaxinit.report.one_array import show

    shown = show(
        options.name, options.shape, arguments=options.arg, dtype=options.dtype, seed=options.seed
    )
    if options.json:
        from jaxinit.report.as_json import to_json

        sys.stdout.write(to_json("show", shown))
        return 0
    from jaxinit.report.render import print_array
    from jaxinit.report.terminal import output

    with output() as console:
        print_array(console, shown)
    return 0


def _gain(options: argparse.Namespace) -> int:
    from jaxinit.report.gains import gain_row, print_gain
    from jaxinit.report.terminal import output, stdout_kept_clean

    with stdout_kept_clean():
        row = gain_row(options.target, options.inputs)
    if options.json:
        from jaxinit.report.as_json import to_json

        sys.stdout.write(to_json("gain", row))
        return 0
    with output() as console:
        print_gain(console, row)
    return 0


def _report(options: argparse.Namespace) -> int:
    from jaxinit.report.as_json import json_file, to_json
    from jaxinit.report.collect import Request, collect
    from jaxinit.report.render_report import print_report
    from jaxinit.report.terminal import output, progress, stdout_kept_clean

    request = Request(
        target=options.target,
        rules=options.rules,
        inputs=tuple(options.input),
        seed=options.seed,
        dtype=options.dtype,
        allow=tuple(options.allow),
        compare=options.compare,
    )
    with json_file(options.json) as write:
        with stdout_kept_clean(), progress(options.json != "-") as watch:
            report = collect(request, watch)
        write(to_json("report", report))
    if options.json != "-":
        with output() as console:
            print_report(console, report)
    return 1 if options.strict and report.findings else 0


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


def _explain(error: BaseException) -> str:
    if isinstance(error, Unusable):
        return str(error)
    if isinstance(error, OSError):
        return f"the output cannot be written: {describe(error)}"
    return f"{describe(error)} (--traceback shows where)"


def _fail(message: str, status: int = 2, prefix: str = "jaxinit: error") -> int:
    with contextlib.suppress(OSError):
        print(f"{prefix}: {one_line(message)}", file=sys.stderr, flush=True)
    return status


def _accept_any_text(*streams: Any) -> None:
    """Replaces what an encoding cannot show, such as an accent in a path, by a question mark."""
    for stream in streams:
        if hasattr(stream, "reconfigure") and stream.errors == "strict":
            stream.reconfigure(errors="replace")


def _drop_what_cannot_be_written() -> None:
    """Lets the interpreter end quietly when what is left in the buffer has nowhere to go."""
    try:
        sys.stdout.flush()
    except OSError:
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    sys.exit(main())
