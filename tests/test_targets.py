"""What a person can type after `jaxinit show` and `jaxinit report`: objects, initializers, inputs.

Everything here is text that may be wrong, so most tests are of error messages.
"""

from __future__ import annotations

import math
import sys
import textwrap
from pathlib import Path

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from jaxinit import initializers as init
from jaxinit.flax import LinenModel, NnxModel, NoModelError, as_model
from jaxinit.planning import LikeKernel, like_kernel
from jaxinit.report import Unusable, one_line
from jaxinit.report._parsing import (
    offered_inputs,
    parse_argument,
    parse_dtype,
    parse_initializer,
    parse_inputs,
    parse_literal,
    parse_shape,
)
from jaxinit.report._targets import loaded, opened_model

pytestmark = pytest.mark.unoptimized

MODELS = """
import helper_beside
import flax.linen as nn
import jax, jax.numpy as jnp
from flax import nnx

class MLP(nn.Module):
    features: int = 3

    @nn.compact
    def __call__(self, x, train=True):
        return nn.Dense(self.features)(nn.relu(nn.Dense(5)(x)))

class Wide(nn.Module):
    features: int

class Knows(MLP):
    def example_inputs(self):
        return (jax.ShapeDtypeStruct((2, 4), jnp.float32),)

class Alone(nn.Module):
    @nn.compact
    def __call__(self):
        return self.param("scale", nn.initializers.ones, (3,))

class Forgetful(MLP):
    def example_inputs(self):
        return "two by four"

class Broken(MLP):
    def example_inputs(self):
        raise KeyError("no inputs today")

class Net(nnx.Module):
    def __init__(self, size: int = 4, *, rngs: nnx.Rngs):
        self.layer = nnx.Linear(size, size, rngs=rngs)

def make_net(rngs):
    return Net(rngs=rngs)

def make_seeded_net():
    return Net(rngs=nnx.Rngs(7))

def make_mlp():
    return MLP()

make_mlp.example_inputs = lambda: {"x": jax.ShapeDtypeStruct((2, 4), jnp.float32)}

def make_with(size):
    return MLP(size)

def make_list():
    return [MLP()]

def fails():
    raise ZeroDivisionError("one over nothing")

def leaves():
    raise SystemExit(3)

mlp = MLP()
net = make_seeded_net()
number = 3
"""


@pytest.fixture
def models(tmp_path, monkeypatch) -> Path:
    """A file of models that imports a helper from its own directory."""
    (tmp_path / "helper_beside.py").write_text("VALUE = 1\n")
    path = tmp_path / "models_here.py"
    path.write_text(textwrap.dedent(MODELS))
    monkeypatch.delitem(sys.modules, "helper_beside", raising=False)
    return path


def load(text: str):
    with loaded(text) as found:
        return found.value


# Objects.


def test_a_file_sees_its_own_directory_and_leaves_no_trace(models):
    path, modules = list(sys.path), set(sys.modules)
    with loaded(f"{models}:mlp") as found:
        assert type(found.value).__name__ == "MLP"
        assert found.source == models
        assert sys.modules[type(found.value).__module__].number == 3
    assert sys.path == path
    assert {name for name in set(sys.modules) - modules if "models_here" in name} == set()


def test_a_module_is_found_in_the_current_directory(models, monkeypatch):
    monkeypatch.chdir(models.parent)
    assert load("models_here:number") == 3
    monkeypatch.delitem(sys.modules, "models_here")


def test_an_attribute_may_be_dotted(models):
    assert load(f"{models}:mlp.features") == 3
    assert load("math:inf") == math.inf


def test_a_file_is_named_relative_to_the_current_directory(models, monkeypatch):
    monkeypatch.chdir(models.parent)
    assert load("models_here.py:number") == 3
    assert load("./models_here.py:number") == 3


def test_a_file_named_as_a_package_does_not_become_it(tmp_path):
    path = tmp_path / "jax.py"
    path.write_text("import jax\nversion = jax.__version__\n")
    assert load(f"{path}:version") == jax.__version__
    assert sys.modules["jax"] is jax


@pytest.mark.parametrize("text", ["", "model", "model.py", ":x", "model.py:", "a b:c", "../x:y"])
def test_other_forms_are_refused(text):
    with pytest.raises(Unusable, match=r"TARGET"):
        load(text)


def test_form_is_shown_with_what_came():
    with pytest.raises(Unusable, match=r"got 'model\.py'\. Write for example model\.py:model"):
        load("model.py")


def test_missing_file(tmp_path):
    with pytest.raises(Unusable, match=r"the file .*none\.py does not exist"):
        load(f"{tmp_path}/none.py:x")
    (tmp_path / "folder.py").mkdir()
    with pytest.raises(Unusable, match=r"folder\.py is a directory"):
        load(f"{tmp_path}/folder.py:x")


def test_missing_module(models, monkeypatch):
    with pytest.raises(Unusable, match=r"no module named 'nowhere_at_all'\.$"):
        load("nowhere_at_all.models:x")
    monkeypatch.chdir(models.parent)
    (models.parent / "hyphen.d").mkdir()
    with pytest.raises(Unusable, match=r"needs module:attribute .* got the module name 'a-b'"):
        load("a-b:x")


def test_module_that_imports_what_is_not_there(tmp_path):
    path = tmp_path / "wants.py"
    path.write_text("x = 1\nimport not_installed_here\n")
    with pytest.raises(Unusable, match=r"'not_installed_here' \(wants\.py, line 2"):
        load(f"{path}:x")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("def f(:\n    pass\n", r"raised SyntaxError, line 1: "),
        ("x = 1\n\nx = 1 / 0\n", r"raised ZeroDivisionError: division by zero \(bad\.py, line 3\)"),
        ("import sys\nsys.exit(4)\n", r"raised SystemExit: 4 \(bad\.py, line 2\)"),
        ("raise ValueError('a\\nb')\n", r"raised ValueError: a b \(bad\.py, line 1\)"),
        ("raise ValueError\n", r"raised ValueError \(bad\.py, line 1\)"),
        ("\x00", r"importing bad\.py raised"),
    ],
)
def test_code_that_fails_is_named_with_its_line(tmp_path, source, message):
    path = tmp_path / "bad.py"
    path.write_text(source)
    before = set(sys.modules)
    with pytest.raises(Unusable, match=message):
        load(f"{path}:x")
    assert not {name for name in set(sys.modules) - before if "bad" in name}


def test_a_file_of_a_package_is_to_be_named_as_a_module(tmp_path):
    path = tmp_path / "inner.py"
    path.write_text("from . import other\n")
    with pytest.raises(Unusable, match=r"\(inner\.py, line 1\)\. Name it as package\.module"):
        load(f"{path}:x")


def test_missing_attribute_offers_the_nearest(models):
    with pytest.raises(Unusable, match=r"has no attribute 'mpl'\. Nearest: mlp"):
        load(f"{models}:mpl")
    with pytest.raises(Unusable, match=r"has no attribute 'zzzz'\. It has: .*MLP"):
        load(f"{models}:zzzz")
    with pytest.raises(Unusable, match=r"models_here\.py\.mlp has no attribute 'feature'"):
        load(f"{models}:mlp.feature")


# Models.


@pytest.mark.parametrize(
    ("name", "kind", "model"),
    [
        ("mlp", LinenModel, "MLP"),
        ("MLP", LinenModel, "MLP"),
        ("make_mlp", LinenModel, "MLP"),
        ("Net", NnxModel, "Net"),
        ("net", NnxModel, "Net"),
        ("make_net", NnxModel, "Net"),
        ("make_seeded_net", NnxModel, "Net"),
    ],
)
def test_a_module_a_class_and_a_function_are_models(models, name, kind, model):
    found = as_model(load(f"{models}:{name}"))
    assert type(found) is kind
    assert found.name == model


@pytest.mark.parametrize("name", ["Net", "net", "make_net", "make_seeded_net"])
def test_nnx_shapes_and_draw_have_the_same_paths(models, name):
    model = as_model(load(f"{models}:{name}"))
    shapes = model.shapes()
    assert {path: spec.shape for path, spec in shapes.items()} == {
        "layer/kernel": (4, 4),
        "layer/bias": (4,),
    }
    values = model.draw(jax.random.key(0))
    assert values.keys() == shapes.keys() == model.own_initializers().keys()
    assert values["layer/kernel"].shape == (4, 4)
    assert model.draw(jax.random.key(0), ["layer/bias"]).keys() == {"layer/bias"}


def test_the_seed_reaches_a_function_that_asks_for_rngs(models):
    model = as_model(load(f"{models}:make_net"))
    one, same, other = (model.draw(jax.random.key(seed))["layer/kernel"] for seed in (1, 1, 2))
    assert jnp.array_equal(one, same)
    assert not jnp.array_equal(one, other)
    from flax import nnx

    by_hand = load(f"{models}:Net")(rngs=nnx.Rngs(1)).layer.kernel[...]
    np.testing.assert_allclose(one, by_hand, rtol=1e-6)


def test_an_nnx_function_is_not_allocated_to_see_what_it_is():
    from flax import nnx

    def make(rngs):
        return nnx.Linear(2**20, 2**20, rngs=rngs)  # 4 TiB

    model = as_model(make)
    assert model.shapes()["kernel"].nbytes == 2**42


def test_linen_draw_is_the_models_own(models):
    module = load(f"{models}:mlp")
    shape = jax.ShapeDtypeStruct((2, 4), jnp.float32)
    model = LinenModel(module, (shape,), {"train": False})
    own = jax.jit(module.init)(jax.random.key(3), jnp.zeros((2, 4)))
    drawn = model.draw(jax.random.key(3))
    assert jnp.array_equal(drawn["params/Dense_0/kernel"], own["params"]["Dense_0"]["kernel"])
    assert drawn.keys() == model.shapes().keys()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("number", r"needs to be a Flax module .* is of type int"),
        ("Wide", r"needs arguments \(features\), .* return Wide\(\.\.\.\)"),
        ("make_with", r"needs arguments \(size\)"),
        ("make_list", r"needs to return a Flax module .*, and returns list"),
    ],
)
def test_what_is_no_model(models, name, message):
    with pytest.raises(NoModelError, match=message):
        as_model(load(f"{models}:{name}"))
    with (
        pytest.raises(Unusable, match=rf"TARGET: .*:{name} {message}"),
        opened_model(f"{models}:{name}"),
    ):
        pass


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("fails", r"making the model raised ZeroDivisionError: one over nothing \(models_here"),
        ("leaves", r"making the model raised SystemExit: 3"),
        ("Broken", r"example_inputs\(\) raised KeyError: 'no inputs today' \(models_here"),
        ("Forgetful", r"example_inputs\(\) needs to return a tuple of arrays .*, got str"),
        ("MLP", r"is a Linen module, and its shapes depend on its inputs\. Give --input"),
    ],
)
def test_models_that_cannot_be_shaped(models, name, message):
    with pytest.raises(Unusable, match=message), opened_model(f"{models}:{name}"):
        pass


def test_where_inputs_come_from(models):
    def inputs(name, *given):
        with opened_model(f"{models}:{name}", given) as opened:
            assert opened.model.shapes()
            return str(opened.inputs)

    assert inputs("Knows") == "2x4:float32"
    assert inputs("Knows", "1x9:float32", "train=False") == "1x9:float32, train=False"
    assert inputs("make_mlp") == "x=2x4:float32"
    assert inputs("Alone") == ""
    assert inputs("net") == ""
    assert inputs("net", "1x4") == "1x4:float32"  # for its forward pass


def test_without_a_target_the_specimen_is_opened():
    with opened_model(None) as opened:
        assert (opened.model.name, str(opened.inputs)) == ("GPT2", "1x16:int32")


# Initializers.


@pytest.mark.parametrize(
    "value",
    [
        init.he_normal(),
        init.normal(0.02, mean=1),
        init.zeros,
        init.constant(0.5),
        init.scaled(init.he_normal(negative_slope=0.2), 0.5),
        init.stacked(init.lecun_normal(batch_axis=0), axis=(0, 1)),
        init.fused([init.glorot_uniform(), init.normal(0.1)], (3, 4)),
        init.truncated_normal(0.02, lower=-math.inf),
        init.variance_scaling(1 / 3, "fan_out", "uniform"),
        init.normal(dtype="bfloat16"),
    ],
    ids=repr,
)
def test_what_repr_and_to_config_give_can_be_typed_back(value):
    import json

    assert parse_initializer(repr(value)) == value
    assert parse_initializer(json.dumps(init.to_config(value))) == value


def test_every_name_of_the_catalogue_that_needs_no_argument():
    for name in ("zeros", "ones", "he_normal", "orthogonal", "identity"):
        assert parse_initializer(name) == init.get(name)


def test_a_bias_rule_can_be_written():
    assert parse_initializer("like_kernel(lecun_uniform())") == like_kernel("lecun_uniform")
    assert isinstance(parse_initializer("like_kernel(lecun_uniform, sibling='w')"), LikeKernel)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"cannot use ''"),
        ("he_norml", r"no 'he_norml'\. Did you mean he_normal"),
        ("he_norml()", r"no 'he_norml'\. Did you mean he_normal"),
        ("normal(0.02", r"cannot use 'normal\(0\.02': it cannot be read"),
        ("normal(stdev=1)", r"'stdev'.* signature is normal\(stddev, dtype, mean\)"),
        ("normal(-1)", r"needs stddev >= 0, got -1"),
        ("zeros(1)", r"zeros takes no arguments but dtype"),
        ("normal(**{})", r"\*\* has no meaning"),
        ("normal(1/0)", r"division by zero"),
        ("normal(9**9**9)", r"is neither a call of the catalogue nor a value"),
        ("normal('a' * 9)", r"'a'\\?\"? is no number|is no number"),
        ("__import__('os').getcwd()", r"is neither a call"),
        ("__import__('os')", r"no '__import__'"),
        ("open('x')", r"no 'open'"),
        ("normal.__class__", r"is neither a call"),
        ("[he_normal() for x in y]", r"is neither a call"),
        ("lambda: 0", r"is neither a call"),
        ("3", r"get needs a name|needs"),
        ("'he_normal'", r"needs an initializer, got the string"),
        ("(" * 500, r"it cannot be read"),
        ('{"name": "normal"', r"well-formed JSON config"),
        ('{"nam": "normal"}', r"needs a 'name'"),
        ("{" * 100_000, r"well-formed JSON config"),
    ],
)
def test_what_is_no_initializer(text, message):
    with pytest.raises((ValueError, TypeError), match=message):
        parse_initializer(text)


@hypothesis.given(st.text(max_size=30) | st.text("hen_ormal()0.1-=,'\"[]{}: ", max_size=30))
def test_any_text_is_an_initializer_or_a_clear_error(text):
    try:
        value = parse_initializer(text)
    except (ValueError, TypeError) as error:
        assert str(error)
    else:
        assert isinstance(value, init.Initializer | LikeKernel)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("stddev=0.02", ("stddev", 0.02)),
        ("mean=-1", ("mean", -1)),
        ("lower=-inf", ("lower", -math.inf)),
        ("mode=fan_out", ("mode", "fan_out")),
        ("dtype=bfloat16", ("dtype", "bfloat16")),
        ("in_axis=(0, 1)", ("in_axis", (0, 1))),
        ("in_axis=[0, 1]", ("in_axis", [0, 1])),
        ("exact=True", ("exact", True)),
        ("exact=true", ("exact", True)),
        ("initializer=he_normal", ("initializer", init.he_normal())),
        ("scale=1/3", ("scale", 1 / 3)),
    ],
)
def test_arguments(text, value):
    assert parse_argument(text) == value


@pytest.mark.parametrize("text", ["", "stddev", "=1", "stddev=", "a b=1", "stddev=foo("])
def test_malformed_arguments(text):
    with pytest.raises(ValueError, match=r"needs NAME=VALUE|cannot use"):
        parse_argument(text)


def test_arguments_belong_to_a_plain_name():
    assert parse_initializer("normal", {"stddev": 0.5}) == init.normal(0.5)
    with pytest.raises(ValueError, match=r"plain name beside --arg, got 'normal\(1\)'"):
        parse_initializer("normal(1)", {"stddev": 0.5})


def test_a_literal_is_no_initializer():
    with pytest.raises(ValueError, match="is an initializer"):
        parse_literal("he_normal")


# Shapes and inputs.


def test_shapes():
    assert parse_shape(["512", "256"]) == parse_shape(["512x256"]) == (512, 256)
    assert parse_shape(["3x3", "0"]) == (3, 3, 0)


@pytest.mark.parametrize("sizes", [["-1"], ["1.5"], ["x"], ["1x"], ["a"], ["1,2"], ["٣"], [""]])
def test_malformed_shapes(sizes):
    with pytest.raises(ValueError, match=r"SHAPE needs whole numbers"):
        parse_shape(sizes)


@pytest.mark.parametrize("sizes", [["99999", "99999"], ["0", "9" * 30]])
def test_shapes_that_are_too_large_to_show(sizes):
    with pytest.raises(ValueError, match=r"SHAPE needs at most 67,108,864 entries"):
        parse_shape(sizes)


def test_inputs():
    inputs = parse_inputs(["1x16:int32", "8", ":float32", "mask=1x16:bool", "train=False", "n=3"])
    first, second, scalar = inputs.positional
    assert (first.shape, first.dtype) == ((1, 16), jnp.int32)
    assert (second.shape, second.dtype) == ((8,), jnp.float32)
    assert scalar.shape == ()
    assert inputs.named["mask"].shape == (1, 16)
    assert (inputs.named["train"], inputs.named["n"]) == (False, 3)
    assert str(inputs).startswith("1x16:int32, 8:float32, :float32, mask=1x16:bool, train=False")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"cannot be read: ''"),
        ("1x", r"cannot be read: '1x'"),
        ("1x16:", r"cannot be read"),
        ("1x16:integer", r"--input needs a numeric dtype that JAX knows, got 'integer'"),
        ("1x16:str", r"--input needs a numeric dtype"),
        ("1x-3:int32", r"cannot be read"),
        ("(1, 2)", r"cannot be read"),
        ("x=", r"cannot be read"),
        ("x=he_normal", r"cannot be read"),
        ("x=1x2:what", r"numeric dtype"),
        ("x=foo(", r"cannot be read"),
        ("99999999999", r"sizes below 2\*\*31"),
    ],
)
def test_malformed_inputs(text, message):
    with pytest.raises(ValueError, match=message):
        parse_inputs([text])


def test_an_input_is_named_once():
    with pytest.raises(ValueError, match=r"every name once, got 'x' twice"):
        parse_inputs(["x=1:int32", "x=2:int32"])


def test_offered_inputs():
    array = jnp.zeros((2, 3))
    assert str(offered_inputs((array, 1))) == "2x3:float32, 1"
    assert str(offered_inputs(array)) == "2x3:float32"
    assert str(offered_inputs({"x": array})) == "x=2x3:float32"
    with pytest.raises(TypeError, match=r"needs to return a tuple .* got int"):
        offered_inputs(3)


def test_dtypes():
    assert parse_dtype("bfloat16") == jnp.bfloat16
    for text in ("floaty", "object", "S3", "datetime64"):
        with pytest.raises(ValueError, match=rf"--dtype needs a numeric dtype .* got '{text}'"):
            parse_dtype(text)


def test_errors_fit_on_a_line():
    assert one_line("a\n  b\tc ") == "a b c"
    assert len(one_line("word " * 1_000)) <= 900
