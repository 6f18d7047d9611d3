"""`jaxinit report`: what it draws, what it says of it, and what it refuses.

Most reports here are of models with a few hundred parameters, written to a temporary directory; the
specimen of 124 million has one test of its own.
"""

from __future__ import annotations

import functools
import json
import re
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxinit
from helpers import codes, group_of
from jaxinit import initializers as init
from jaxinit._naming import patterns
from jaxinit.report import Request, Unusable, collect

pytestmark = pytest.mark.unoptimized

MODELS = """
print("chatter of the target")
import flax.linen as nn
import jax, jax.numpy as jnp
from flax import nnx
from jaxinit import initializers as init

class MLP(nn.Module):
    kernel_init: object = nn.initializers.lecun_normal()
    dtype: object = jnp.float32

    @nn.compact
    def __call__(self, x):
        for _ in range(3):
            x = nn.relu(nn.Dense(32, kernel_init=self.kernel_init, param_dtype=self.dtype)(x))
        return nn.Dense(8, param_dtype=self.dtype)(x)

    def example_inputs(self):
        return (jax.ShapeDtypeStruct((2, 16), jnp.float32),)

class Normed(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        return nn.BatchNorm(use_running_average=not train)(nn.Dense(16)(x))

def odd(key, shape, dtype=jnp.float32):
    return jax.random.normal(key, shape, dtype) ** 3 / 16

def twins(key, shape, dtype=jnp.float32):
    return jnp.broadcast_to(jax.random.normal(key, shape[:-1] + (1,), dtype) / 4, shape)

def broken(key, shape, dtype=jnp.float32):
    return jax.random.normal(key, shape, dtype) / 0

def liar():
    import dataclasses
    class Liar(type(init.normal(0.02))):
        def sample(self, key, shape, dtype):
            return 2 * super().sample(key, shape, dtype)
    return MLP(kernel_init=Liar(0.02))

mlp = MLP()
half = MLP(dtype=jnp.bfloat16)
odd_mlp = MLP(kernel_init=odd)
twin_mlp = MLP(kernel_init=twins)
broken_mlp = MLP(kernel_init=broken)
constant_mlp = MLP(kernel_init=nn.initializers.constant(0.1))

def net(rngs):
    return nnx.Sequential(nnx.Linear(16, 32, rngs=rngs), nnx.Linear(32, 8, rngs=rngs))

def chatty(x):
    raise ValueError("bad\\nday")

class Raises(nn.Module):
    @nn.compact
    def __call__(self, x):
        return chatty(x)

class Empty(nn.Module):
    def __call__(self, x):
        return x

RULES = [("**/kernel", init.he_normal()), ("**/bias", init.zeros)]
BAD_RULES = [("**/kernel", "he_norml")]
NO_RULES = 3
"""

RULES = '[["**/kernel", "he_normal"], ["**", "zeros"]]'


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

    def call(name: str, **options):
        options.setdefault("compare", False)
        request = Request(target=f"{models}:{name}", **options)
        # Rules may be a file, whose content is another in the next test.
        return (collected if request.rules is None else collected.__wrapped__)(request)

    return call


@pytest.fixture
def run(run, tmp_path, monkeypatch):
    """Runs the command beside the models; returns status, standard output and error."""
    (tmp_path / "models.py").write_text(MODELS)
    monkeypatch.chdir(tmp_path)
    return functools.partial(run, "report")


@pytest.fixture
def refused(run):
    """Runs the command line, which must refuse in one line; returns that line."""

    def call(*arguments: str) -> str:
        status, out, err = run(*arguments)
        assert (status, out) == (2, "")
        lines = [line for line in err.splitlines() if line != "chatter of the target"]
        assert len(lines) == 1, err
        assert lines[0].startswith("jaxinit: error: ")
        return lines[0]

    return call


# The model's own initialization.


def test_a_model_is_reported_as_it_draws_itself(report):
    made = report("mlp")
    assert (made.model, made.framework, made.inputs) == ("MLP", "Linen", "2x16:float32")
    sizes = [16 * 32 + 32, 32 * 32 + 32, 32 * 32 + 32, 32 * 8 + 8]
    assert (made.parameters.entries, made.parameters.leaves) == (sum(sizes), 8)
    assert made.parameters.nbytes == 4 * sum(sizes)
    assert made.others.leaves == 0
    hidden = group_of(made, "params/Dense_*/kernel")
    assert (hidden.shape, len(hidden.leaves)) == ((32, 32), 2)
    assert hidden.initializer == "lecun_normal()"
    assert (hidden.fan_in, hidden.fan_out) == (32, 32)
    assert hidden.expected_std == pytest.approx(32**-0.5)
    # 2,048 entries: the standard error of a std is 1.3 % at most; 5 of them.
    assert hidden.measured_std == pytest.approx(32**-0.5, rel=0.065)
    assert hidden.own_initializer is None
    assert made.findings == ()


def test_what_is_measured_is_what_the_plan_draws(report, models):
    made = report("mlp", seed=5)
    leaf = group_of(made, "params/Dense_*/kernel").leaves[0]
    assert leaf.path == "params/Dense_1/kernel"
    spec = jax.ShapeDtypeStruct((32, 32), jnp.float32)
    plan = jaxinit.plan({"params": {"Dense_1": {"kernel": spec}}}, [("**", "lecun_normal")])
    values = np.asarray(plan.init(jax.random.key(5))["params"]["Dense_1"]["kernel"], np.float64)
    assert leaf.mean == pytest.approx(values.mean(), abs=1e-9)
    assert leaf.std == pytest.approx(values.std())
    assert (leaf.low, leaf.high) == (values.min(), values.max())
    assert leaf.mean_z == pytest.approx(values.mean() * 32 * 32**0.5)


def test_every_leaf_is_in_one_group(report):
    made = report("mlp")
    paths = [leaf.path for group in made.groups for leaf in group.leaves]
    assert len(paths) == len(set(paths)) == 8
    sizes = [len(group.leaves) * np.prod(group.shape) for group in made.groups]
    assert sizes == sorted(sizes, reverse=True)


def test_an_unknown_law_is_drawn_by_the_model_and_named(report, models):
    made = report("odd_mlp")
    assert codes(made) == ["law-unknown"]
    assert made.findings[0].leaves == tuple(f"params/Dense_{n}/kernel" for n in range(3))
    assert "3 leaves were drawn by the model itself" in made.findings[0].evidence
    unknown = group_of(made, "params/Dense_*/kernel")
    assert (unknown.initializer, unknown.expected_std, unknown.worst_z) == (None, None, None)
    # Var of z**3 is 15: the model's function was used. 2,048 entries of kurtosis 46.2.
    assert unknown.measured_std == pytest.approx(15**0.5 / 16, rel=0.5)


def test_a_batch_norm_has_other_variables(report):
    made = report("Normed", inputs=("4x8", "train=True"))
    assert (made.parameters.leaves, made.others.leaves, made.others.entries) == (4, 2, 32)
    mean, var = (
        group_of(made, "batch_stats/BatchNorm_0/mean"),
        group_of(made, "batch_stats/BatchNorm_0/var"),
    )
    assert (mean.initializer, var.initializer) == ("zeros", "ones")
    assert not mean.parameters
    assert made.inputs == "4x8:float32, train=True"
    assert made.findings == ()


def test_an_nnx_model_draws_itself(report):
    made = report("net", seed=3)
    assert made.framework == "NNX"
    assert made.findings == ()
    kernel = group_of(made, "layers/0/kernel")
    assert (kernel.initializer, kernel.expected_std) == ("lecun_normal()", 0.25)
    assert (kernel.shape, kernel.fan_in, kernel.fan_out) == ((16, 32), 16, 32)
    assert kernel.measured_std == pytest.approx(0.25, rel=0.1)


# Rules.


def test_rules_replace_and_are_compared(report):
    made = report("mlp", rules=RULES)
    hidden = group_of(made, "params/Dense_*/kernel")
    assert (hidden.initializer, hidden.own_initializer) == ("he_normal()", "lecun_normal()")
    assert hidden.expected_std == pytest.approx(16**-0.5)
    assert hidden.own_std == pytest.approx(32**-0.5)
    assert hidden.own_measured_std is None
    assert made.findings == ()


def test_what_the_model_draws_itself_is_measured_for_comparison(report):
    made = report("net", rules=RULES, compare=True)
    kernel = group_of(made, "layers/0/kernel")
    assert (kernel.own_initializer, kernel.own_std) == ("lecun_normal()", 0.25)
    # 512 entries cut at two standard deviations: the standard error of the std is 2.6 %.
    assert kernel.own_measured_std == pytest.approx(16**-0.5, rel=0.13)
    assert kernel.measured_std == pytest.approx(8**-0.5, rel=0.13)


def test_rules_of_an_unknown_law_leave_none_unknown(report):
    assert report("odd_mlp", rules=RULES).findings == ()
    made = report("net", rules='[["**/kernel", "normal(0.5)"], ["**/bias", "ones"]]')
    assert made.findings == ()
    kernel = group_of(made, "layers/0/kernel")
    assert (kernel.initializer, kernel.own_initializer) == ("normal(0.5)", "lecun_normal()")
    assert kernel.measured_std == pytest.approx(0.5, rel=0.2)


@pytest.mark.parametrize("form", ["file", "mapping", "config", "python", "module"])
def test_rules_come_in_many_forms(report, models, form, tmp_path, monkeypatch):
    monkeypatch.chdir(models.parent)
    file = tmp_path / "rules.json"
    file.write_text(RULES)
    rules = {
        "file": str(file),
        "mapping": '{"**/kernel": "he_normal()", "**/bias": "zeros"}',
        "config": '[["**/kernel", {"name": "he_normal"}], ["**/bias", {"name": "constant", '
        '"value": 0}]]',
        "python": f"{models}:RULES",
        "module": "models:RULES",
    }[form]
    made = report("mlp", rules=rules)
    assert group_of(made, "params/Dense_*/kernel").initializer == "he_normal()"
    monkeypatch.delitem(sys.modules, "models", raising=False)


def test_a_manifest_is_drawn_as_it_was_planned(report, tmp_path):
    shapes = {
        f"params/Dense_{n}/{name}": jax.ShapeDtypeStruct(shape, dtype)
        for n, (rows, columns) in enumerate([(16, 32), (32, 32), (32, 32), (32, 8)])
        for name, shape, dtype in [
            ("kernel", (rows, columns), jnp.bfloat16),
            ("bias", (columns,), jnp.float32),
        ]
    }
    plan = jaxinit.plan(shapes, [("**/kernel", init.normal(0.125)), ("**", "ones")])
    file = tmp_path / "plan.json"
    file.write_text(plan.to_json())
    made = report("mlp", rules=str(file))
    hidden = group_of(made, "params/Dense_*/kernel")
    assert (hidden.initializer, hidden.dtype) == ("normal(0.125)", "bfloat16")
    assert codes(made) == []  # constant biases are deliberate
    del shapes["params/Dense_3/bias"]
    shapes["params/Dense_9/bias"] = jax.ShapeDtypeStruct((3,), "float32")
    shapes["params/Dense_0/bias"] = jax.ShapeDtypeStruct((3,), "float32")
    file.write_text(jaxinit.plan(shapes, [("**", "ones")]).to_json())
    wanted = (
        r"does not fit the model; it has leaves that the model has not \(1\): params/Dense_9/bias; "
        r"it lacks \(1\): params/Dense_3/bias; it has \(1\): params/Dense_0/bias of shape \(3,\)"
    )
    with pytest.raises(Unusable, match=wanted):
        report("mlp", rules=str(file))


def test_rules_need_not_name_running_means(report):
    made = report("Normed", inputs=("4x8", "train=True"), rules='[["params/**", "ones"]]')
    assert group_of(made, "batch_stats/BatchNorm_0/mean").initializer == "zeros"
    made = report("Normed", inputs=("4x8", "train=True"), rules='[["**", "ones"]]')
    assert "ones" in {g.initializer for g in made.groups if not g.parameters}


# Options.


def test_another_dtype(report):
    made = report("mlp", dtype="bfloat16")
    assert {group.dtype for group in made.groups} == {"bfloat16"}
    assert made.parameters.nbytes == 2 * made.parameters.entries
    assert made.findings == ()
    assert {g.dtype for g in report("mlp", dtype="float64").groups} == {"float64"}
    assert group_of(report("half"), "params/Dense_*/kernel").dtype == "bfloat16"


def test_timings(report):
    stages = [timing.stage for timing in report("mlp", compare=True).timings]
    assert stages == [
        "shape",
        "read own initializers",
        "plan",
        "draw, first time (compiles)",
        "measure",
        "read and advise",
        "check",
        "draw, second time",
        "the model's own jitted init, first time",
    ]
    assert stages[:-1] == [timing.stage for timing in report("mlp", compare=False).timings]
    assert all(timing.seconds >= 0 for timing in report("mlp").timings)


def test_progress_is_told(models):
    told = []
    request = Request(target=f"{models}:mlp", compare=False)
    made = collect(request, lambda *stage: told.append(stage))
    assert ("draw", made.parameters.nbytes, made.parameters.nbytes) in told
    assert all(0 <= done <= total or total == 0 for _, done, total in told)


# Findings.


def test_a_law_that_is_not_kept_is_found(report):
    made = report("liar")
    assert codes(made) == ["law"] * 3
    finding = made.findings[0]
    assert (finding.severity, finding.leaves) == ("error", ("params/Dense_0/kernel",))
    assert re.fullmatch(
        r"The std should be 0\.02 and is 0\.0[34]\d*, [\d.]+ standard errors off\.",
        finding.evidence,
    )


def test_twins_are_found(report):
    made = report("constant_mlp")
    assert codes(made) == ["twins"]
    assert made.findings[0].leaves == tuple(f"params/Dense_{n}/kernel" for n in range(3))
    assert made.findings[0].evidence.startswith("Every entry is 0.1: the 32 units of a layer")
    assert codes(report("twin_mlp")) == ["twins"] * 3 + ["law-unknown"]


def test_twins_may_be_allowed(report):
    made = report("constant_mlp", allow=("params/Dense_[01]/kernel",))
    assert [f.leaves for f in made.findings] == [("params/Dense_2/kernel",)]
    assert codes(report("twin_mlp", allow=("**/kernel",))) == ["law-unknown"]
    with pytest.raises(Unusable, match=r"in --allow to match a leaf, got '\*\*/kernal'"):
        report("mlp", allow=("**/kernal",))
    with pytest.raises(Unusable, match=r"in --allow, needs a glob whose brackets are closed"):
        report("mlp", allow=("[",))


def test_what_is_not_finite_is_found(report):
    made = report("broken_mlp")
    assert {"nonfinite", "law-unknown"} <= set(codes(made))
    finding = next(f for f in made.findings if f.code == "nonfinite")
    assert finding.evidence == "512 of 512 entries are infinite or NaN."


# The command line.


def test_the_report_is_printed(run):
    status, out, err = run("models.py:mlp", "--rules", RULES, "--no-compare")
    assert status == 0
    assert err == "chatter of the target\n"
    lines = out.splitlines()
    assert max(map(len, lines)) <= 80
    assert "2,920 parameters in 8 float32 arrays, 11.4 KiB" in lines
    assert "  he_normal(), 2 kernels of 32x32, fans 32>32" in lines
    assert any(line.startswith("  the model itself: lecun_normal()") for line in lines)
    assert "draw, second time" in out
    assert lines[-1].startswith("No findings")


def test_long_names_are_folded(run, tmp_path):
    deep = tmp_path / ("directory_with_a_long_name_" * 6)
    deep.mkdir()
    (deep / "models.py").write_text(MODELS)
    status, out, _ = run(f"{deep}/models.py:odd_mlp", "--no-compare")
    assert status == 0
    assert max(map(len, out.splitlines())) <= 80


def test_strict_counts_findings(run):
    assert run("models.py:mlp", "--strict", "--no-compare")[0] == 0
    status, out, _ = run("models.py:constant_mlp", "--strict", "--no-compare")
    assert status == 1
    assert "error twins" in out
    assert "1 finding" in out
    assert run("models.py:constant_mlp", "--no-compare")[0] == 0
    # What is not judged is said, and is no fault.
    status, out, _ = run("models.py:odd_mlp", "--strict", "--no-compare")
    assert status == 0
    assert "info law-unknown" in out and "their law is not judged" in " ".join(out.split())


def test_json_says_all_that_is_printed(run, tmp_path):
    status, out, _ = run("models.py:odd_mlp", "--json", "out.json", "--no-compare", "--seed", "4")
    assert status == 0 and "parameters in 8 float32 arrays" in out
    text = (tmp_path / "out.json").read_text()
    document = json.loads(text, parse_constant=pytest.fail)
    assert (document["format"], document["version"]) == ("jaxinit-report", 3)
    assert (document["model"], document["seed"], document["rules"]) == ("MLP", 4, None)
    assert document["parameters"]["entries"] == 2_920
    assert document["findings"][0]["code"] == "law-unknown"
    assert document["environment"]["jax"] == jax.__version__
    assert {"stage", "seconds"} == set(document["timings"][0])
    groups = document["groups"]
    shapes = {leaf["path"]: group["shape"] for group in groups for leaf in group["leaves"]}
    assert shapes["params/Dense_0/kernel"] == [16, 32] and len(shapes) == 8


def test_a_report_is_a_dictionary_and_text(report):
    made = report("odd_mlp")
    assert made.to_dict()["findings"][0]["code"] == "law-unknown"
    assert json.loads(made.to_json(), parse_constant=pytest.fail) == made.to_dict()


def test_json_on_stdout_is_alone_there(run):
    status, out, err = run("models.py:constant_mlp", "--json", "-", "--strict", "--no-compare")
    assert status == 1
    assert json.loads(out)["model"] == "MLP"
    assert "chatter" in err


def test_a_json_path_is_tried_before_the_work(refused, tmp_path, monkeypatch):
    monkeypatch.setattr("jaxinit.report.collect", pytest.fail)
    for path, reason in [("no/such/place.json", "No such file"), (".", "Is a directory")]:
        line = refused("models.py:mlp", "--json", path)
        assert f"--json cannot write '{path}': {reason}" in line


def test_a_json_file_is_left_as_it_was_when_the_work_fails(refused, tmp_path):
    refused("models.py:nothing", "--json", "out.json")
    assert not (tmp_path / "out.json").exists()
    (tmp_path / "out.json").write_text("precious")
    refused("models.py:nothing", "--json", "out.json")
    assert (tmp_path / "out.json").read_text() == "precious"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("models.py",), "TARGET needs module:attribute or path/file.py:attribute"),
        (("none.py:x",), "none.py does not exist"),
        (("models.py:mpl",), "has no attribute 'mpl'. Nearest: mlp"),
        (("models.py:NO_RULES",), "models.py:NO_RULES needs to be a Flax module"),
        (("models.py:Normed",), "shapes depend on its inputs. Give --input SHAPE:DTYPE"),
        (("models.py:Normed", "--input", "4by8"), "--input cannot be read: '4by8'"),
        (("models.py:Normed", "--input", "4x8"), "missing 1 required positional argument: 'train'"),
        (("models.py:mlp", "--input", "2x16x:f"), "--input cannot be read"),
        (("models.py:Raises", "--input", "2"), "ValueError: bad. "),
        (("models.py:Raises", "--input", "2"), "(models.py, line "),
        (("models.py:Empty", "--input", "2"), "models.py:Empty has no parameters to initialize"),
        (("models.py:mlp", "--dtype", "int8"), "--dtype needs a floating-point dtype, got int8"),
        (("models.py:mlp", "--dtype", "what"), "--dtype needs a numeric dtype"),
        (("models.py:mlp", "--rules", "none.json"), "--rules: the file 'none.json' does not exist"),
        (("models.py:mlp", "--rules", "."), "--rules: '.' cannot be read: Is a directory"),
        (("models.py:mlp", "--rules", "models.py"), "--rules: models.py: this is no well-formed"),
        (("models.py:mlp", "--rules", "[1,"), "--rules: this is no well-formed JSON"),
        (("models.py:mlp", "--rules", "[1]"), "to be a pair (pattern, initializer), got 1"),
        (("models.py:mlp", "--rules", '[["**", 3]]'), "needs an initializer, got 3"),
        (("models.py:mlp", "--rules", '[["**", "he"]]'), "rule 0 has no usable initializer."),
        (("models.py:mlp", "--rules", '[["[", "ones"]]'), "whose brackets are closed, got '['"),
        (("models.py:mlp", "--rules", '[["**/x", "ones"]]'), "'**/x' matches no leaf"),
        (("models.py:mlp", "--rules", '[["**/kernel", "ones"]]'), "4 leaves have no rule"),
        (("models.py:mlp", "--rules", '[["**", "he_normal"]]'), "at least 2 axes, got (32,)"),
        (("models.py:mlp", "--rules", '{"format": "x"}'), "--rules: "),
        (("models.py:mlp", "--rules", "models.py:BAD_RULES"), "no 'he_norml'. Did you mean"),
        (("models.py:mlp", "--rules", "models.py:NO_RULES"), "needs rules as a list"),
        (("models.py:mlp", "--rules", "models.py:RULEZ"), "no attribute 'RULEZ'. Nearest: RULES"),
    ],
)
def test_input_that_cannot_be_used(refused, arguments, message):
    assert message in refused(*arguments, "--no-compare")


def test_without_flax_the_report_says_what_to_install(refused, monkeypatch):
    for name in [name for name in sys.modules if name.startswith("jaxinit.flax")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "flax", None)
    line = refused()
    assert line.endswith('needs Flax, which is not installed: pip install "jaxinit[flax]"')


@pytest.mark.slow
def test_the_specimen_keeps_its_laws(run):
    status, out, err = run("--no-compare", "--json", "report.json", "--strict")
    assert (status, err) == (0, "")
    assert "124,439,808 parameters in 148 float32 arrays, 475 MiB" in out
    assert max(map(len, out.splitlines())) <= 80
    document = json.loads(Path("report.json").read_text())
    assert len(document["groups"]) == 10
    assert document["findings"] == []
    assert sum(len(group["leaves"]) for group in document["groups"]) == 148


# Parts.


def test_patterns():
    paths = ["h_0/ln_1/bias", "h_1/ln_2/bias", "h_1/ln_1/bias", "ln_f/bias", "conv2d/bias"]
    assert patterns(paths) == ["h_*/ln_*/bias", "ln_f/bias", "conv2d/bias"]
    assert patterns(["layers/10/kernel", "layers/9/kernel"]) == ["layers/*/kernel"]
