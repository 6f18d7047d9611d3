"""`jaxinit advise` and `jaxinit audit` from the outside: what is printed, written and returned."""

import json
import textwrap

import pytest

pytestmark = pytest.mark.unoptimized

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

class Faint(nnx.Module):
    def __init__(self, *, rngs):
        normal = nnx.initializers.normal(0.05)
        layers = [nnx.Linear(32, 32, rngs=rngs, kernel_init=normal) for _ in range(20)]
        self.layers = nnx.List(layers)

    def __call__(self, x):
        for layer in self.layers:
            x = jax.numpy.tanh(layer(x))
        return x

class Still(nnx.Module):
    def __init__(self, *, rngs):
        self.base = nnx.Linear(8, 8, rngs=rngs)
        self.lora = nnx.LoRA(8, 2, 8, rngs=rngs, a_initializer=nnx.initializers.zeros)

    def __call__(self, x):
        return self.base(x) + self.lora(x)

class Large(Small):
    def __init__(self, *, rngs):
        super().__init__(rngs=rngs)
        turned = nnx.initializers.orthogonal(9.0)
        self.a = nnx.Linear(8, 8, rngs=rngs, kernel_init=turned)
        self.b = nnx.Linear(8, 8, rngs=rngs, kernel_init=turned)

class Running(Small):
    def __init__(self, *, rngs):
        super().__init__(rngs=rngs)
        self.norm = nnx.BatchNorm(6, rngs=rngs)

    def __call__(self, x):
        return self.b(jax.nn.relu(self.norm(self.a(x))))

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


def test_advise_says_what_and_why(run, models):
    status, out, err = run("advise", f"{models}:Deep", "--input", "4x64")
    assert (status, err) == (0, "")
    assert "he_normal()" in out
    assert "He 2015" in out
    assert "warning gain-mismatch" in out
    assert max(map(len, out.splitlines())) <= 80


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


@pytest.mark.parametrize(
    ("model", "shape", "code"),
    [
        ("Faint", "4x32", "gain-mismatch"),
        ("Still", "4x8", "zero-product"),
        ("Large", "4x8", "head-scale"),
    ],
)
def test_what_an_nnx_constructor_draws_is_judged(run, models, model, shape, code):
    """By the law in its jaxpr, or by a draw where that has none, as of an orthogonal kernel."""
    target = ("advise", f"{models}:{model}", "--input", shape)
    status, out, _ = run(*target, "--fail-on", "warning")
    assert status == 1
    assert code in out and "judged as drawn now" not in out


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


# Predictions.


@pytest.mark.parametrize("command", ["advise", "audit"])
def test_a_prediction_is_printed_under_the_rest(run, models, command):
    target = (command, f"{models}:Deep", "--input", "4x64")
    _, plain, _ = run(*target)
    assert "second moments" not in plain
    status, out, _ = run(*target, "--predict")
    assert status == 0
    assert out.startswith(plain)
    title, heading, _, *rows = out[len(plain) :].strip().splitlines()
    assert title == "second moments per entry, predicted"
    assert heading.split() == ["layer", "forward", "backward"]
    assert [row.split()[0] for row in rows] == [f"params/Dense_{n}/kernel" for n in range(9)]


def test_the_advice_is_predicted_as_taken_and_an_audit_as_drawn(run, models):
    def forward(command: str) -> list[float]:
        target = (command, f"{models}:Deep", "--input", "4x64", "--predict", "--json", "-")
        maps = json.loads(run(*target)[1])["prediction"]["layers"]
        return [each["forward"][1] for each in maps if "Dense_8" not in each["path"]]

    # Kaiming keeps 2 in front of every ReLU. Flax draws with half of that variance: 2^-7 after
    # seven more layers, within a factor of 2 for one draw of this width.
    assert forward("advise") == pytest.approx([2.0] * 8, rel=1e-6)
    drawn = forward("audit")
    assert drawn[0] == pytest.approx(1.0, rel=0.1)
    assert 2.0**-8 < drawn[-1] < 2.0**-6


@pytest.mark.parametrize("command", ["advise", "audit"])
def test_measure_implies_predict(run, models, command):
    target = (command, f"{models}:Small", "--input", "4x8", "--measure", "2")
    status, out, _ = run(*target)
    assert status == 0
    assert out.count(" measured ") == 1 and "backward  measured" in out
    prediction = json.loads(run(*target, "--json", "-")[1])["prediction"]
    assert (prediction["format"], prediction["draws"]) == ("jaxinit-prediction/1", 2)
    assert all(each["measured_forward"] > 0 for each in prediction["layers"])
    _, out, _ = run(command, f"{models}:Small", "--input", "4x8", "--json", "-")
    assert json.loads(out)["prediction"] is None


def test_what_is_no_parameter_has_a_law_too(run, models):
    status, out, _ = run("audit", f"{models}:Running", "--input", "4x8", "--predict")
    assert status == 0
    assert "a/kernel" in out.partition("second moments")[2]


@pytest.mark.parametrize("draws", ["0", "-1", "2.5", "many", "\N{ARABIC-INDIC DIGIT TWO}"])
@pytest.mark.parametrize("command", ["advise", "audit"])
def test_draws_are_counted_from_one(run, command, draws):
    status, out, err = run(command, f"--measure={draws}")
    assert (status, out) == (2, "")
    assert f"--measure: needs a whole number of draws from 1, got '{draws}'" in err
    assert err.count("\n") == 1
