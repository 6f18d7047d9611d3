"""`jaxinit report` reads the model: roles, true fans, what is advised, and findings about it."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import get_args

import pytest

from helpers import codes, group_of
from jaxinit.reading._records import Role
from jaxinit.report import Request, collect
from jaxinit.report._report import _ROLES

pytestmark = pytest.mark.unoptimized

MODELS = """
import flax.linen as nn
import jax, jax.numpy as jnp
from flax import nnx
from jaxinit import initializers as init

def shape(*sizes):
    return (jax.ShapeDtypeStruct(sizes, jnp.float32),)

class Deep(nn.Module):
    kernel_init: object = init.he_normal()
    param_dtype: object = jnp.float32
    depth: int = 8

    @nn.compact
    def __call__(self, x):
        for _ in range(self.depth):
            x = nn.relu(nn.Dense(96, kernel_init=self.kernel_init,
                                 param_dtype=self.param_dtype)(x))
        return nn.Dense(4, kernel_init=init.lecun_normal(), param_dtype=self.param_dtype)(x)

    def example_inputs(self):
        return shape(4, 96)

class Experts(nn.Module):
    kernel_init: object = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, x):
        return nn.DenseGeneral(16, axis=-1, batch_dims=(0,), kernel_init=self.kernel_init)(x)

    def example_inputs(self):
        return shape(16, 4, 64)

class Thrice(Experts):
    @nn.compact
    def __call__(self, x):
        for _ in range(3):
            x = nn.DenseGeneral(64, axis=-1, batch_dims=(0,))(x)
        return x

class Table(nn.Module):
    stddev: float = 1.0

    @nn.compact
    def __call__(self, ids):
        table = nn.Embed(50, 16, embedding_init=init.normal(self.stddev))
        return nn.Dense(4)(nn.LayerNorm()(table(ids)))

    def example_inputs(self):
        return (jax.ShapeDtypeStruct((2, 8), jnp.int32),)

class Untraceable(nn.Module):
    @nn.compact
    def __call__(self, x):
        if not self.is_initializing():
            raise RuntimeError("no forward pass")
        return nn.Dense(3, kernel_init=nn.initializers.constant(0.1))(x)

class Adapted(nnx.Module):
    def __init__(self, *, rngs):
        self.base, self.lora = nnx.Linear(16, 16, rngs=rngs), nnx.LoRA(16, 2, 16, rngs=rngs)
        self.head = nnx.Linear(16, 3, rngs=rngs, kernel_init=nnx.initializers.zeros)

    def __call__(self, x):
        return self.head(jax.nn.relu(self.base(x) + self.lora(x)))

class Turned(Adapted):
    def __init__(self, *, rngs):
        super().__init__(rngs=rngs)
        self.base = nnx.Linear(16, 16, rngs=rngs, kernel_init=nnx.initializers.orthogonal())

class Copied(Adapted):
    def __init__(self, *, rngs):
        super().__init__(rngs=rngs)
        self.lora.lora_a[...] = jnp.tile(self.lora.lora_a[:, :1], (1, 2))

def same_again():
    return Adapted(rngs=nnx.Rngs(0))

class Small(nnx.Module):
    def __init__(self, *, rngs):
        self.a, self.b = nnx.Linear(8, 6, rngs=rngs), nnx.Linear(6, 2, rngs=rngs)

    def __call__(self, x):
        return self.b(jax.nn.relu(self.a(x)))

    def example_inputs(self):
        return shape(3, 8)

def odd(key, shape, dtype=jnp.float32):
    return jax.random.normal(key, shape, dtype) ** 3

deep = Deep()
narrow = Deep(kernel_init=nn.initializers.xavier_normal())
measured = Deep(kernel_init=odd)
constant = Deep(kernel_init=nn.initializers.constant(0.1), depth=1)
half = Deep(kernel_init=lambda k, s, d: jax.random.normal(k, s, d) / 8, param_dtype=jnp.bfloat16)
faint = Table(1e-3)
table = Table()

made = Small(rngs=nnx.Rngs(0))

def small():
    return Small(rngs=nnx.Rngs(0))
"""


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    """The file of the models, which nobody changes."""
    path = tmp_path_factory.mktemp("models") / "models.py"
    path.write_text(MODELS)
    return path


@pytest.fixture(scope="module")
def report(models):
    """Collects a report on one of the models; tests that ask for the same look at the same one."""

    @functools.cache
    def collected(request: Request):
        return collect(request, lambda *stage: None)

    return lambda name, **options: collected(
        Request(target=f"{models}:{name}", compare=False, **options)
    )


@pytest.fixture
def run(run, models, monkeypatch):
    """Runs the command on one of the models; returns status, standard output and error."""
    monkeypatch.chdir(models.parent)
    return lambda name, *rest: run("report", f"models.py:{name}", "--no-compare", *rest)


# Roles and fans.


def test_roles_and_fans_are_those_of_the_model(report):
    made = report("deep")
    assert made.no_reading is None
    assert made.findings == ()
    roles = {r["path"]: (r["role"], r["fan_in"], r["fan_out"]) for r in made.reading}
    assert roles["params/Dense_0/kernel"] == ("kernel", 96, 96)
    assert roles["params/Dense_8/kernel"] == ("head", 96, 4)
    assert roles["params/Dense_3/bias"] == ("bias", None, None)
    assert group_of(made, "params/Dense_*/kernel").role == "kernel"
    assert len(made.reading) == made.parameters.leaves == len(made.advice["prescriptions"]) == 18


def test_fans_are_read_and_not_taken_from_the_initializer(report):
    made = report("Experts")
    kernel = group_of(made, "params/DenseGeneral_0/kernel")
    # Flax hands its initializer a flattened shape: a fan of 1,024 for 16 batches of 64.
    assert (kernel.role, kernel.fan_in, kernel.fan_out) == ("head", 64, 16)
    assert codes(made) == ["wrong-fans"]
    assert "0.25 of the standard deviation" in made.findings[0].evidence


def test_no_fans_are_wrong_under_rules_that_know_the_axes(report):
    made = report("Experts", rules='[["**/kernel", "lecun_normal"], ["**", "zeros"]]')
    assert made.findings == ()


def test_an_nnx_model_is_read_with_inputs(report):
    made = report("made")
    assert made.inputs == "3x8:float32"
    assert group_of(made, "a/kernel").role == "kernel"
    assert group_of(made, "b/kernel").role == "head"
    assert made.no_reading is None
    made = report("Small", inputs=("5x8",))
    assert made.inputs == "5x8:float32"
    assert group_of(made, "a/kernel").fan_in == 8


def test_every_role_has_a_name():
    assert set(_ROLES) == set(get_args(Role))


# No reading is no error.


def test_without_inputs_an_nnx_model_has_a_report(run, report):
    made = report("small")
    wanted = "an NNX model is read through its forward pass: give --input SHAPE:DTYPE."
    assert made.no_reading == wanted
    assert (made.reading, made.advice) == (None, None)
    assert group_of(made, "a/kernel").role is None
    assert group_of(made, "a/kernel").fan_in == 8  # its layers know
    status, out, _ = run("small")
    assert status == 0
    assert f"No roles and no advice: {wanted}" in " ".join(out.split())


def test_a_class_is_not_asked_for_the_inputs_of_an_instance(report):
    made = report("Small")
    assert made.inputs == ""
    assert "give --input" in made.no_reading


def test_what_cannot_be_traced_still_has_its_checks(report, run):
    made = report("Untraceable", inputs=("2x5",))
    assert made.no_reading.startswith(
        "tracing the forward pass raised RuntimeError: no forward pass (models.py, line "
    )
    assert codes(made) == ["twins"]
    assert run("Untraceable", "--input", "2x5")[0] == 0


def test_advice_that_fails_is_said(report, monkeypatch):
    def fail(*arguments):
        raise KeyError("no such row")

    monkeypatch.setattr("jaxinit.report._findings.advise_with", fail)
    made = report("Deep")  # which no other test asks for: reports are kept
    assert made.no_reading == "advising on the model raised KeyError: 'no such row'"
    assert made.findings == ()


# What is advised.


def test_what_is_advised_is_shown_where_it_differs(run, report):
    kernel = group_of(report("narrow"), "params/Dense_*/kernel")
    assert (kernel.advised, kernel.initializer) == ("he_normal()", "glorot_normal()")
    assert kernel.advised_std == pytest.approx(kernel.expected_std * 2**0.5)
    # Half of the variance is shown, two thirds are not, and what is advised is not.
    assert "\n  advised: he_normal()" in run("narrow")[1]
    near = '[["**/kernel", "scaled(he_normal(), 0.82)"], ["**", "zeros"]]'
    for arguments in (("deep",), ("deep", "--rules", near)):
        assert "advised:" not in run(*arguments)[1]
    status, out, _ = run("deep", "--rules", '[["**/kernel", "normal(0.05)"], ["**", "zeros"]]')
    assert status == 0
    lines = out.splitlines()
    assert max(map(len, lines)) <= 80
    place = lines.index("  normal(0.05), 8 kernels of 96x96, fans 96>96")
    own, advised = lines[place + 1 : place + 3]
    assert own.startswith("  the model itself: he_normal()")
    assert advised.split() == ["advised:", "he_normal()", "0.1443"]
    assert "reasons: jaxinit advise" in out


def test_a_measured_spread_is_compared_where_no_law_is_known(run):
    _, out, _ = run("measured")
    lines = out.splitlines()
    place = lines.index("  law unknown, 8 kernels of 96x96, fans 96>96")
    assert lines[place + 1].split() == ["advised:", "he_normal()", "0.1443"]


# Findings of both.


def test_findings_of_the_advice_join_and_the_worst_comes_first(report):
    made = report("measured")
    assert codes(made) == ["gain-mismatch", "law-unknown"]
    assert [f.severity for f in made.findings] == ["error", "info"]
    assert codes(report("narrow")) == ["gain-mismatch"]
    # A draw in bfloat16 has 128 different values; one in float32 and a cast has hundreds.
    assert codes(report("half")) == ["low-precision", "law-unknown"]
    assert codes(report("half", rules='[["**/kernel", "he_normal"], ["**", "zeros"]]')) == []


def test_zeros_that_a_role_asks_for_are_no_twins(run, report):
    """A zero head and LoRA's zero factor: the advice judges them by their roles."""
    made = report("Adapted", inputs=("4x16",))
    assert made.findings == ()
    assert group_of(made, "lora/lora_b").initializer == "zeros"
    assert run("Adapted", "--input", "4x16", "--strict")[0] == 0


def test_equal_columns_are_twins_in_every_role(report):
    made = report("Copied", inputs=("4x16",))
    assert codes(made)[0] == "twins" and made.findings[0].leaves == ("lora/lora_a",)
    assert "2 of 2 have a twin" in made.findings[0].evidence


def test_a_law_that_cannot_be_read_is_not_judged(run, report):
    made = report("Turned", inputs=("4x16",))
    assert codes(made) == ["law-unknown"]
    assert made.findings[0].leaves == ("base/kernel",)
    assert run("Turned", "--input", "4x16", "--strict")[0] == 0


def test_leaves_without_the_key_are_said(report):
    made = report("same_again", inputs=("4x16",))
    assert [(f.severity, f.code) for f in made.findings] == [("info", "fixed-draw")]
    assert made.findings[0].leaves == ("base/kernel", "lora/lora_a")


def test_twins_are_said_once(report):
    made = report("constant")
    assert codes(made) == ["twins"]
    assert report("constant", allow=("**/Dense_0/kernel",)).findings == ()


def test_findings_that_say_the_same_are_one(report):
    made = report("Thrice")
    assert "wrong-fans" in codes(made)
    leaves = [f.leaves for f in made.findings if f.code == "wrong-fans"]
    assert leaves == [tuple(f"params/DenseGeneral_{n}/kernel" for n in range(3))]


@pytest.mark.parametrize(
    ("name", "statuses"),
    [
        ("deep", (0, 0, 0, 0)),
        ("faint", (1, 0, 0, 0)),  # an info alone
        ("narrow", (1, 1, 1, 0)),  # a warning
        ("Experts", (1, 1, 1, 1)),  # an error
    ],
)
def test_the_status_goes_by_severity(run, name, statuses):
    limits = (
        ("--fail-on", "info"),
        ("--strict",),
        ("--fail-on", "warning"),
        ("--fail-on", "error"),
    )
    assert tuple(run(name, *limit)[0] for limit in limits) == statuses
    assert run(name)[0] == 0


def test_an_info_is_shown(run):
    _, out, _ = run("faint")
    assert "1 finding\n\ninfo embedding-scale  params/Embed_0/embedding\n" in out
    _, out, _ = run("table")
    assert "No findings" in out


def test_a_severity_that_is_none(run):
    status, out, err = run("deep", "--fail-on", "never")
    assert (status, out) == (2, "")
    assert "--fail-on: invalid choice: 'never'" in err


# JSON.


def test_json_has_the_reading_and_the_advice(run):
    _, out, _ = run("narrow", "--json", "-")
    document = json.loads(out, parse_constant=pytest.fail)
    read = {entry.pop("path"): entry for entry in document["reading"]}
    assert read["params/Dense_8/kernel"] == {"role": "head", "fan_in": 96, "fan_out": 4}
    assert document["advice"]["goal"] == "train"
    advised = {entry["path"]: entry for entry in document["advice"]["prescriptions"]}
    assert advised["params/Dense_0/kernel"]["initializer"]["name"] == "he_normal"
    assert advised["params/Dense_0/kernel"]["reason"]
    assert document["no_reading"] is None
    finding = document["findings"][0]
    assert finding.keys() == {"code", "severity", "leaves", "evidence", "remedy", "source"}
    assert finding["leaves"]


def test_json_without_a_reading_says_why(run):
    _, out, _ = run("Untraceable", "--input", "2x5", "--json", "-")
    document = json.loads(out)
    assert (document["reading"], document["advice"]) == (None, None)
    assert "no forward pass" in document["no_reading"]
