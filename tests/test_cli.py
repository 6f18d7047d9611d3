"""The command line from the outside: what is printed where, and the exit status.

`main` runs in this process but for the few things that only a process of its own can show: a closed
pipe, a full disk. How models are opened and reports are made has its own files.
"""

from __future__ import annotations

import io
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import jaxinit
import jaxinit.cli
from jaxinit import initializers as init
from jaxinit import report
from jaxinit._json import dumps
from jaxinit.cli import main
from jaxinit.report import document, progress
from jaxinit.report._catalogue import Histogram, draw_histogram, histogram, quantities

pytestmark = pytest.mark.unoptimized

ROOT = Path(jaxinit.__file__).parent.parent


@pytest.fixture(autouse=True)
def _eighty_columns(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    for name in ("FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def refused(run):
    """Runs the command line, which must refuse in one line; returns that line."""

    def call(*arguments: str) -> str:
        status, out, err = run(*arguments)
        assert (status, out) == (2, "")
        assert err.startswith("jaxinit: error: ")
        assert err.count("\n") == 1
        return err

    return call


def in_a_process(*arguments: str, **options) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "jaxinit", *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "80"},
        text=True,
        stderr=subprocess.PIPE,
        timeout=120,
        check=False,
        **options,
    )


# The frame.


def test_help_and_version(run):
    status, out, err = run("--help")
    assert (status, err) == (0, "")
    assert "jaxinit show he_normal 512 256" in out
    assert run("--version") == (0, f"jaxinit {jaxinit.__version__}\n", "")


@pytest.mark.parametrize("command", ["list", "show", "gain", "report", "advise", "audit"])
def test_help_of_a_command_fits_a_terminal(run, command):
    status, out, err = run(command, "--help")
    assert (status, err) == (0, "")
    assert "jaxinit" in out
    assert max(map(len, out.splitlines())) <= 80


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), r"name a command: list, show, gain, report, advise or audit"),
        (("frobnicate",), r"invalid choice: 'frobnicate'"),
        (("list", "--frobnicate"), r"unrecognized arguments: --frobnicate"),
        (("show",), r"required: NAME, SHAPE"),
        (("show", "he_normal"), r"required: SHAPE"),
        (("show", "normal", "3", "--seed", "x"), r"--seed: needs a whole number .* got 'x'"),
        (("show", "normal", "3", "--seed", "-1"), r"--seed: needs a whole number .* got '-1'"),
        (("report", "--seed", str(2**32)), r"--seed: needs a whole number"),
    ],
)
def test_malformed_commands(refused, arguments, message):
    line = refused(*arguments)
    assert re.search(message, line), line


def test_an_interruption_is_one_line(run, monkeypatch):
    def interrupt(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(report, "show", interrupt)
    assert run("show", "normal", "3") == (130, "", "jaxinit: interrupted\n")


def test_what_nobody_foresaw_is_one_line_too(run, refused, monkeypatch):
    def fail(*arguments, **options):
        raise RuntimeError("the roof\nis leaking")

    monkeypatch.setattr(report, "show", fail)
    line = refused("show", "normal", "3")
    assert line == "jaxinit: error: RuntimeError: the roof is leaking (--traceback shows where)\n"
    status, out, err = run("show", "normal", "3", "--traceback")
    assert (status, out) == (2, "")
    assert "Traceback" in err and 'raise RuntimeError("the roof' in err
    assert err.endswith(line)


def test_a_closed_pipe_is_no_error():
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as pipe:
        result = in_a_process("list", stdout=pipe)
    assert (result.returncode, result.stderr) == (141, "")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
def test_a_full_disk_is_one_line():
    with open("/dev/full", "w") as full:
        result = in_a_process("list", "--json", stdout=full)
    assert result.returncode == 2
    assert result.stderr.startswith("jaxinit: error: the output cannot be written: OSError: ")
    assert result.stderr.count("\n") == 1


def test_a_closed_output_is_one_line(capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    assert main(["list"]) == 2
    assert capsys.readouterr().err == "jaxinit: error: the standard output is closed\n"


# list


def test_the_catalogue_names_everything_and_fits(run):
    status, out, err = run("list")
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert max(map(len, lines)) <= 80
    assert not any(line.endswith(" ") for line in lines)
    assert {line.split(" ")[0] for line in lines} >= set(init.names())
    assert "\x1b" not in out


def test_the_catalogue_as_json(run):
    status, out, _ = run("list", "--json")
    document = json.loads(out)
    assert status == 0
    assert (document["format"], document["version"]) == ("jaxinit-list", 1)
    entries = {entry["name"]: entry for entry in document["initializers"]}
    assert tuple(entries) == init.names()
    assert entries["he_normal"].keys() == {"name", "law", "use", "source"}


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self):
        return True

    def text(self) -> str:
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self.getvalue())


@pytest.fixture
def terminals(monkeypatch):
    """Puts terminals that a person watches behind both streams, and returns them."""
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("CI", raising=False)

    # Not here: pytest puts streams of its own in place before the test begins.
    def opened() -> tuple[Terminal, Terminal]:
        out, err = Terminal(), Terminal()
        monkeypatch.setattr(sys, "stdout", out)
        monkeypatch.setattr(sys, "stderr", err)
        return out, err

    return opened


def test_a_terminal_gets_colours_and_progress(terminals):
    out, err = terminals()
    assert main(["list"]) == 0
    assert "\x1b[" in out.getvalue()
    with progress() as watch:
        watch("shape", 0, 0)
        watch("draw", 5 << 20, 10 << 20)
        watch("the model's own jitted init, first time", 0, 0)
    shown = err.text()
    assert re.search(r"draw .* 5 of 10 MiB +\d:\d\d:\d\d", shown)
    assert max(map(len, re.split(r"[\r\n]+", shown))) <= 80


@pytest.mark.parametrize("name, value", [("CI", "true"), ("TERM", "dumb")])
def test_nobody_watches_a_log(terminals, monkeypatch, name, value):
    _, err = terminals()
    monkeypatch.setenv(name, value)
    with progress() as watch:
        watch("draw", 5 << 20, 10 << 20)
    assert err.getvalue() == ""


def test_json_comes_without_progress(terminals, tmp_path):
    _, err = terminals()
    model = tmp_path / "model.py"
    model.write_text("import flax.linen as nn\nmodel = nn.Dense(3)\n")
    arguments = ["report", f"{model}:model", "--input", "1x4:float32", "--no-compare"]
    assert main([*arguments, "--json", "-"]) == 0
    assert err.getvalue() == ""
    assert main(arguments) == 0
    assert "draw" in err.text()


# show


def test_show_compares_measured_with_declared(run):
    status, out, err = run("show", "he_normal", "512", "256")
    assert (status, err) == (0, "")
    assert "he_normal()" in out
    assert "512 x 256, float32, 131,072 entries, 512 KiB, seed 0" in out
    assert "fan in 512, fan out 256" in out
    assert max(map(len, out.splitlines())) <= 80
    std = next(line.split() for line in out.splitlines() if line.startswith("std"))
    assert std[1] == "0.0625"
    assert float(std[2]) == pytest.approx(0.0625, rel=0.02)
    assert "█" in out


def show(run, *arguments):
    status, out, err = run("show", *arguments, "--json")
    assert (status, err) == (0, "")
    document = json.loads(out, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    quantities = {quantity["name"]: quantity for quantity in document["quantities"]}
    return document, quantities


def test_show_as_json_says_the_same(run):
    document, found = show(run, "normal", "64", "64", "--arg", "stddev=0.02", "--arg", "mean=1")
    assert (document["format"], document["version"]) == ("jaxinit-show", 1)
    assert document["initializer"] == "normal(0.02, mean=1.0)"
    assert init.from_config(document["config"]) == init.normal(0.02, mean=1)
    assert (document["shape"], document["entries"], document["nbytes"]) == ([64, 64], 4096, 16384)
    assert found["mean"]["declared"] == 1
    # 5 sigma of a right draw, and 6 sigma between mean 1 and the default mean 0.
    assert abs(found["mean"]["z"]) < 5 and abs(found["std"]["z"]) < 5
    assert found["largest x"]["declared"] is None  # no end
    assert sum(document["histogram"]["counts"]) == 4096
    assert len(document["histogram"]["edges"]) == len(document["histogram"]["counts"]) + 1


def test_a_record_is_a_dictionary_and_text():
    shown = report.show("normal", ["3", "4"])
    assert shown.to_dict()["shape"] == [3, 4]
    assert json.loads(shown.to_json(), parse_constant=pytest.fail) == shown.to_dict()


def test_a_seed_decides_the_draw(run):
    means = [show(run, "normal", "9", "--seed", s)[1]["mean"]["measured"] for s in ("1", "1", "2")]
    assert means[0] == means[1] != means[2]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64", "complex64"])
def test_show_in_another_dtype(run, dtype):
    document, found = show(run, "orthogonal", "100x20", "--dtype", dtype)
    assert document["dtype"] == dtype
    assert found["std"]["measured"] == pytest.approx(0.1, rel=0.01)
    assert found["std"]["z"] is None  # its sum of squares does not vary


def test_show_an_empty_array_and_a_constant(run):
    document, found = show(run, "he_normal", "0", "4")
    assert document["histogram"] == {"edges": [], "counts": []}
    assert found["mean"]["measured"] is None
    assert run("show", "he_normal", "0", "4")[0] == 0
    _, out, _ = run("show", "ones", "3")
    assert "100.00 %" in out
    _, found = show(run, "identity", "4", "6")
    assert found["std"]["declared"] == pytest.approx(found["std"]["measured"])
    assert found["std"]["z"] is None  # no chance, no score


def test_show_the_parts_of_a_fused_kernel(run):
    document, _ = show(run, "fused([normal(1.0), normal(2.0)], (300, 500))", "64", "800")
    parts = document["parts"]
    assert list(parts) == ["axis -1, 0 to 300", "axis -1, 300 to 800"]
    assert [part[1]["declared"] for part in parts.values()] == [1, 2]
    _, out, _ = run("show", "fused([normal(1.0), normal(2.0)], (300, 500))", "64", "800")
    assert "part: axis -1, 300 to 800" in out


def test_an_array_that_is_off_scores_high():
    law = init.normal(0.02, mean=1).law((4_096,))
    rows = {row.name: row.z for row in quantities(1 + 0.022 * np.tile([1.0, -1.0], 2_048), law)}
    # (1.21 - 1) / sqrt(2 / 4096) standard errors
    assert rows["mean"] == pytest.approx(0, abs=1e-9)
    assert rows["std"] == pytest.approx(9.5, abs=0.01)
    assert rows["kurtosis"] is None
    rows = {row.name: row.z for row in quantities(np.full(64, 1.02j + 1), law)}
    assert rows["mean"] == pytest.approx(1.02 / 0.02 * 8)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("he_norml", "3", "4"), "no 'he_norml'. Did you mean he_normal"),
        (("he_normal", "3"), "he_normal needs a shape with at least 2 axes, got (3,)"),
        (("normal", "3", "--arg", "stdev=1"), "'stdev'"),
        (("normal", "3", "--arg", "stddev"), "--arg needs NAME=VALUE, got 'stddev'"),
        (("normal", "3", "--arg", "mean=1", "--arg", "mean=2"), "every name once, got 'mean'"),
        (("normal", "3", "--arg", "stddev=nan"), "needs a finite stddev, got nan"),
        (("normal", "-3"), "SHAPE needs whole numbers that are not negative, got '-3'"),
        (("normal", "3", "--dtype", "float31"), "--dtype needs a numeric dtype"),
        (("normal", "3", "--dtype", "int32"), "normal needs a complex or float dtype, got int32"),
        (("normal", "99999", "99999"), "SHAPE needs at most 67,108,864 entries"),
        (("like_kernel(he_normal())", "3"), "show needs an initializer, got like_kernel"),
        (('{"name": "normal"', "3"), "no well-formed JSON config"),
    ],
)
def test_show_refuses(refused, arguments, message):
    assert message in refused("show", *arguments)


def test_output_that_has_no_block_characters(monkeypatch):
    plain = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", plain)
    assert main(["show", "he_normal", "50", "60"]) == 0
    text = plain.buffer.getvalue().decode("ascii")
    assert "####" in text and "?" not in text


# Parts.


def test_a_histogram_counts_everything_once():
    shown = histogram(np.linspace(0, 1, 100))
    assert sum(shown.counts) == 100
    assert (shown.edges[0], shown.edges[-1]) == (0, 1)
    assert len(shown.counts) == 8


@pytest.mark.parametrize("blocks", [True, False])
@pytest.mark.parametrize("width", [20, 80, 200])
def test_a_histogram_keeps_its_width(width, blocks):
    shown = Histogram((-1.0, 0.0, 1.0, 2.0), (1, 100_000, 0))
    lines = draw_histogram(shown, width, blocks=blocks)
    assert {len(line) for line in lines} == {max(width, 20)}
    bars = [line.split()[1] for line in lines]
    assert bars[0] in ("▏", "#")  # few is not none
    assert bars[2] == "0.00"  # none is none


def test_json_has_no_infinity_and_no_nan():
    record = {"a": [math.inf, -math.inf, math.nan, 1.5], "b": 1 + 2j, "c": "é"}
    text = dumps(document("list", record))
    found = json.loads(text, parse_constant=pytest.fail)
    assert (found["format"], found["version"]) == ("jaxinit-list", 1)
    assert found["a"] == [None, None, None, 1.5]
    assert found["b"] == {"re": 1, "im": 2}
    assert found["c"] == "é" and text.isascii()
