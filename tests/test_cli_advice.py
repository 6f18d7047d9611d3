"""`jaxinit advise` and `jaxinit audit` from the outside: what is printed, written and returned."""

import json
import textwrap

import pytest

from jaxinit.cli import main

MODELS = """
import flax.linen as nn
from flax import nnx
import jax

class Deep(nn.Module):
    @nn.compact
    def __call__(self, x):
        for _ in range(8):
            x = nn.relu(nn.Dense(64)(x))
        return nn.Dense(3)(x)

class Normalised(nn.Module):
    @nn.compact
    def __call__(self, x, train=True):
        x = nn.Dense(6)(x)
        return nn.Dense(3)(nn.relu(nn.BatchNorm(use_running_average=not train)(x)))

class Small(nnx.Module):
    def __init__(self, *, rngs):
        self.a, self.b = nnx.Linear(8, 6, rngs=rngs), nnx.Linear(6, 2, rngs=rngs)

    def __call__(self, x):
        return self.b(jax.nn.relu(self.a(x)))

class Fails(nn.Module):
    @nn.compact
    def __call__(self, x):
        if not self.is_initializing():
            raise RuntimeError("no forward pass")
        return nn.Dense(3)(x)
"""


@pytest.fixture
def models(tmp_path):
    path = tmp_path / "models.py"
    path.write_text(textwrap.dedent(MODELS))
    return str(path)


@pytest.fixture
def run(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")

    def call(*arguments):
        status = main(arguments)
        return status, *capsys.readouterr()

    return call


def test_advise_says_what_and_why(run, models):
    status, out, err = run("advise", f"{models}:Deep", "--input", "4x64")
    assert (status, err) == (0, "")
    assert "he_normal()" in out
    assert "He 2015" in out
    assert "warning gain-mismatch" in out
    assert max(map(len, out.splitlines())) <= 100


@pytest.mark.parametrize("command", ["advise", "audit"])
def test_fail_on_sets_the_status(run, models, command):
    target = (command, f"{models}:Deep", "--input", "4x64")
    assert run(*target, "--fail-on", "error")[0] == 0
    assert run(*target, "--fail-on", "warning")[0] == 1
    normal = (command, f"{models}:Normalised", "--input", "4x8")
    assert run(*normal, "--fail-on", "info")[0] == 0


def test_json_goes_where_it_is_sent(run, models, tmp_path):
    _, out, _ = run("advise", f"{models}:Deep", "--input", "4x64", "--json", "-")
    assert json.loads(out)["format"] == "jaxinit-advice/1"
    file = tmp_path / "audit.json"
    _, out, _ = run("audit", f"{models}:Deep", "--input", "4x64", "--json", str(file))
    assert out.startswith("Audit: ")
    assert json.loads(file.read_text())["verdict"] in out


@pytest.mark.parametrize("command", ["advise", "audit"])
def test_an_nnx_model_is_read_with_the_inputs_given(run, models, command):
    status, out, _ = run(command, f"{models}:Small", "--input", "4x8")
    assert status == 0
    assert "a/kernel" in out
    status, out, err = run(command, f"{models}:Small")
    assert (status, out) == (2, "")
    assert "read through its forward pass: give --input" in err


def test_running_statistics_are_read_in_training_and_not(run, models):
    for train in ("train=True", "train=False"):
        target = ("advise", f"{models}:Normalised", "--input", "4x8", "--input", train)
        status, out, _ = run(*target)
        assert status == 0
        assert "batch_stats/BatchNorm_0/var" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--goal", "win"), "--goal needs one of train, classical, mup, policy, got 'win'"),
        (("--fail-on", "never"), "invalid choice: 'never'"),
        (("models.py:Fails", "--input", "4x8"), "raised RuntimeError: no forward pass"),
    ],
)
def test_refusals_are_one_line(run, models, arguments, message):
    arguments = [a.replace("models.py", models) for a in arguments]
    status, out, err = run("advise", *arguments)
    assert (status, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1
