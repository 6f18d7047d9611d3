"""`jaxinit gain`: what is printed, in which width, and what is refused."""

from __future__ import annotations

import functools
import json

import pytest

pytestmark = pytest.mark.unoptimized


@pytest.fixture
def run(run):
    """Runs the command; returns status, standard output and standard error."""
    return functools.partial(run, "gain")


@pytest.mark.parametrize("name", ["gelu", "tanh", "sigmoid", "sign", "swiglu", "torch:selu"])
def test_a_row_fits_a_terminal(run, name):
    status, out, err = run(name)
    assert (status, err) == (0, "")
    assert max(map(len, out.splitlines())) <= 80
    assert "forward gain" in out


def test_an_unstable_gain_is_warned_of(run):
    _, gelu, _ = run("gelu")
    for text in ("1.53358052", "1.48116806", "1.1442", "1.98288824", "unstable fixed point"):
        assert text in gelu
    assert "none" in gelu  # torch has no number
    _, tanh, _ = run("tanh")
    assert "warning" not in tanh
    flat = " ".join(tanh.split())
    assert "1.593 keeps inputs of unit size through one layer; through many" in flat
    assert "with a gain of 1, which is what jaxinit advise draws" in flat
    assert "Two gains" not in run("relu")[1]
    assert "1.66666667" in tanh and "tuned by hand" in " ".join(tanh.split())
    _, sigmoid, _ = run("sigmoid")
    assert "No critical pair: where chi is 1" in sigmoid


def test_callables_by_place(run, tmp_path):
    status, out, _ = run("jax.nn:relu6")
    assert status == 0 and out.startswith("relu6")
    file = tmp_path / "mine.py"
    file.write_text(
        "import jax\nprint('hello')\n"
        "def bent(z):\n    return jax.nn.relu(z - 0.5)\n"
        "def gate(x, g):\n    return x * jax.nn.sigmoid(g)\n",
        encoding="utf-8",
    )
    status, out, err = run(f"{file}:bent", "--json")
    document = json.loads(out)
    assert (status, document["format"]) == (0, "jaxinit-gain")
    assert document["moments"]["second_moment"] == pytest.approx(0.20963926, abs=1e-8)
    assert "hello" in err
    status, out, _ = run(f"{file}:gate", "--inputs", "2", "--json")
    assert json.loads(out)["forward_gain"] == pytest.approx(1.84622855, abs=1e-8)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("gelo",), "Did you mean gelu"),
        (("jax.nn:softmax",), "elementwise function, got softmax"),
        (("jax.nn:nothing",), "has no attribute 'nothing'"),
        (("jax.numpy:pi",), "needs an activation as a callable or a name, got 3.14"),
        (("gelu", "--inputs", "3"), "invalid choice: 3"),
        ((), "required: TARGET"),
    ],
)
def test_refusals_are_one_line(run, arguments, message):
    status, out, err = run(*arguments)
    assert (status, out) == (2, "")
    assert err.startswith("jaxinit: error: ") and err.count("\n") == 1
    assert message in err
