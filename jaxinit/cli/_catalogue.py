"""The commands ``jaxinit list``, ``show`` and ``gain``: one name of the library at a time."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping
from typing import Any

from jaxinit import report
from jaxinit._json import dumps
from jaxinit.cli._options import add_command, add_json, add_seed
from jaxinit.initializers import describe, names

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


def add_commands(commands: Any) -> None:
    """Adds the three commands to the value of ``add_subparsers``."""
    what = "show the catalogue of initializers"
    add_json(add_command(commands, "list", what, _LIST_EPILOG, _list))

    what = "draw one array and hold it to its declared law"
    parser = add_command(commands, "show", what, _SHOW_EPILOG, _show)
    parser.add_argument("name", metavar="NAME", help="name, call or JSON config")
    parser.add_argument("shape", metavar="SHAPE", nargs="+", help="sizes: 512 256, or 512x256")
    parser.add_argument(
        "--arg", metavar="NAME=VALUE", action="append", default=[], help="argument beside a name"
    )
    parser.add_argument("--dtype", help="dtype of the array (default: float32)")
    add_seed(parser)
    add_json(parser)

    what = "show what an activation does to a signal, and the gains that undo it"
    parser = add_command(commands, "gain", what, _GAIN_EPILOG, _gain)
    parser.add_argument("target", metavar="TARGET", help="name, module:attribute or file.py:...")
    parser.add_argument(
        "--inputs", type=int, choices=(1, 2), help="inputs of a callable: 2 for a gated unit"
    )
    add_json(parser)


def _list(options: argparse.Namespace) -> int:
    entries = [describe(name) for name in names()]
    lines = [{"name": e.name, "law": e.law, "use": e.use, "source": e.source} for e in entries]
    found = report.document("list", {"initializers": lines})
    return _print(options, found, lambda console: report.print_catalogue(console, entries))


def _show(options: argparse.Namespace) -> int:
    shown = report.show(
        options.name, options.shape, arguments=options.arg, dtype=options.dtype, seed=options.seed
    )
    return _print(options, shown.to_dict(), lambda console: report.print_array(console, shown))


def _gain(options: argparse.Namespace) -> int:
    with report.stdout_kept_clean():
        row = report.gain_row(options.target, options.inputs)
    found = report.document("gain", row)
    return _print(options, found, lambda console: report.print_gain(console, row))


def _print(
    options: argparse.Namespace, found: Mapping[str, Any], show: Callable[[Any], None]
) -> int:
    """Prints a document as JSON, or has it shown on a console."""
    if options.json:
        sys.stdout.write(f"{dumps(found)}\n")
        return 0
    with report.output() as console:
        show(console)
    return 0
