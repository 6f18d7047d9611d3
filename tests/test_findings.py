"""Findings: for each a model that must trigger it, and a near twin that must not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.ad_checkpoint import checkpoint_name

import advice_models as models
import jaxinit
from helpers import slow
from jaxinit import initializers as init
from jaxinit.advice import SEVERITIES
from jaxinit.advice._findings import CHECKS

pytestmark = pytest.mark.unoptimized


def planned(reading, *rules):
    """A plan of the parameters of a reading."""
    tree = {p.path: jaxinit.ParamSpec(p.shape, np.dtype(p.dtype)) for p in reading}
    return jaxinit.plan(tree, list(rules))


def found(reading, *rules, init=None):
    """Findings by code, with the parameters drawn by rules or given."""
    plan = planned(reading, *rules) if rules else init
    return {finding.code: finding for finding in jaxinit.advise(reading, init=plan).findings}


HE, LECUN = init.he_normal(), init.lecun_normal()
REST = ("**", init.zeros)
X8 = models.struct(4, 8)


def wrong_fans(right):
    def fn(params, x):
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, params["stack"])[0]

    reading = models.read(fn, {"stack": (12, 8, 8)}, models.struct(2, 8))
    return found(reading, ("stack", init.stacked(LECUN) if right else LECUN))


def gain_mismatch(right):
    reading = models.plain(jax.nn.relu, 30, 512)
    return found(reading, ("**/kernel", HE if right else init.xavier_normal()), REST)


def unstable_gain(right):
    reading = models.plain(jax.nn.gelu, 20, 512)
    if right:
        return found(reading, init=jaxinit.advise(reading).plan())
    gain = jaxinit.activations.gain("gelu")
    kernel = init.variance_scaling(1.0, "fan_in", "normal", gain=gain)
    return found(reading, ("**/kernel", kernel), REST)


def deep_sigmoid(right):
    reading = models.plain(jnp.tanh if right else jax.nn.sigmoid, 12, 256)
    return found(reading, ("**/kernel", init.xavier_normal()), REST)


def twins(right):
    value = init.normal(0.1) if right else init.constant(0.1)
    return found(models.plain(jnp.tanh, 3), ("out/kernel", LECUN), ("**/kernel", value), REST)


def residual_growth(right):
    reading = models.residual(None, 24)
    last = init.zeros if right else HE
    return found(reading, ("**/down", last), ("**", HE))


def zero_product(right):
    def fn(params, x):
        return jnp.tanh(x @ params["w"] + (x @ params["a"]) @ params["b"]) @ params["out"]

    shapes = {"w": (6, 5), "a": (6, 2), "b": (2, 5), "out": (5, 3)}
    reading = models.read(fn, shapes, models.struct(4, 6))
    return found(reading, ("a", LECUN if right else init.zeros), ("b", init.zeros), ("**", LECUN))


def embedding_scale(right):
    table = init.normal(8**-0.5 if right else 1.0)
    return found(models.transformer(), ("table", table), ("**", LECUN))


def head_scale(right):
    head = LECUN if right else init.normal(1.0)
    return found(models.plain(jax.nn.relu, 3), ("out/*", head), ("**/kernel", HE), REST)


def fanless_bias(right):
    bias = init.zeros if right else init.normal(1.0)
    return found(models.plain(jnp.tanh, 3), ("**/kernel", LECUN), ("**", bias))


def forget_gate_bias(right):
    # Haiku adds 1 itself: the same zeros are right there.
    reading = models.lstm(packed=False, offset=1.0 if right else 0.0)
    return found(reading, ("b/*", init.zeros), ("**", LECUN))


def narrow_for_depth(right):
    return found(models.plain(jax.nn.relu, 20, 256 if right else 64), ("**/kernel", HE), REST)


def score_scale(right):
    def fn(params, x):
        scores = jnp.einsum("bqd,bkd->bqk", x @ params["q"], x @ params["k"])
        return jax.nn.softmax(scores / (8 if right else 1)) @ x @ params["v"]

    reading = models.read(fn, {name: (64, 64) for name in "qkv"}, models.struct(2, 16, 64))
    return found(reading, ("**", LECUN))


def bypass_start(right):
    rules = ("**/b", init.zeros if right else LECUN), ("**/{w,a}", HE), ("**", LECUN)
    return found(models.adapted(2, 32), *rules)


def not_judged(right):
    reading = models.read(lambda p, x: x @ p["a"] @ p["b"], {n: (8, 8) for n in "ab"}, X8)
    return found(reading, init={"a": LECUN, "b": LECUN if right else None})


def unused(right):
    def fn(params, x):
        return x @ params["w"] + (params["spare"] if right else 0.0)

    return found(models.read(fn, {"w": (3, 2), "spare": (2,)}, models.struct(4, 3)))


def not_understood(right):
    def fn(params, x):
        return x @ (params["w"] if right else jnp.linalg.inv(params["w"]))

    return found(models.read(fn, {"w": (3, 3)}, models.struct(4, 3)))


def routed(weigh, straight_through=False):
    """Experts picked by the largest logit; `weigh` multiplies what they make by its softmax."""

    def fn(params, x):
        logits = x @ params["router"]
        pick = jnp.argmax(logits, -1)
        y = jax.nn.relu(jnp.einsum("bd,bdf->bf", x, params["experts"][pick]))
        if straight_through:
            gate = jax.nn.one_hot(pick, 4) - jax.lax.stop_gradient(logits) + logits
            y = y * gate.sum(-1, keepdims=True)
        if weigh:
            y = y * jnp.take_along_axis(jax.nn.softmax(logits), pick[:, None], -1)
        return y @ params["out"]

    shapes = {"router": (6, 4), "experts": (4, 6, 10), "out": (10, 3)}
    return models.read(fn, shapes, models.struct(5, 6))


def no_gradient(right):
    return found(routed(weigh=right))


def low_precision(right):
    tree = {"w": models.struct(64, 64, dtype="bfloat16")}
    reading = jaxinit.read(lambda p, x: x @ p["w"], tree, models.struct(2, 64, dtype="bfloat16"))
    law = LECUN if right else jax.nn.initializers.lecun_normal()
    return found(reading, init={"w": law(jax.random.key(0), (64, 64), jnp.bfloat16)})


def nonfinite(right):
    reading = models.read(lambda p, x: x @ p["w"], {"w": (3, 2)}, models.struct(4, 3))
    array = np.ones((3, 2), "float32")
    array[1, 1] = 1.0 if right else np.nan
    return found(reading, init={"w": array})


CASES = {
    "wrong-fans": (wrong_fans, "error", "fans 96 and 96, while the model contracts 8"),
    "gain-mismatch": (gain_mismatch, "error", r"halves per layer, 2^-28 after 29 layers of relu"),
    "unstable-gain": (unstable_gain, "warning", "deviation of the length grows by 1.144 per layer"),
    "deep-sigmoid": (deep_sigmoid, "error", "multiplied by about 0.054 per layer"),
    "twins": (twins, "error", "Every entry is 0.1"),
    "residual-growth": (
        residual_growth,
        "error",
        "24 branches, each of which multiplies the stream's second moment by about 3",
    ),
    "zero-product": (zero_product, "error", "2 kernels are zero that are multiplied"),
    "embedding-scale": (embedding_scale, "warning", "gives logits of 3.35"),
    "head-scale": (head_scale, "warning", "Outputs have a second moment of 16"),
    "fanless-bias": (fanless_bias, "warning", "1 times the second moment"),
    "forget-gate-bias": (forget_gate_bias, "warning", "keeps 0.5 per step"),
    "narrow-for-depth": (narrow_for_depth, "warning", "20 layers of width 64"),
    "score-scale": (score_scale, "warning", "The scores have a second moment of 64"),
    "bypass-start": (bypass_start, "info", "Both factors of the bypass are random"),
    "not-judged": (not_judged, "info", "not known how these leaves are drawn"),
    "unused": (unused, "warning", "1 parameter has no way"),
    "not-understood": (not_understood, "warning", "stopped at"),
    "no-gradient": (no_gradient, "warning", "depend on it through argmax alone"),
    "low-precision": (low_precision, "warning", "127 different values besides 0 in 4,059 entries"),
    "nonfinite": (nonfinite, "error", "1 entry is infinite or NaN"),
}


@pytest.mark.parametrize("code", CASES)
def test_a_model_triggers_it_and_its_near_twin_does_not(code):
    make, severity, evidence = CASES[code]
    findings = make(right=False)
    assert code in findings
    finding = findings[code]
    assert (finding.severity, evidence in finding.evidence) == (severity, True), finding.evidence
    assert finding.remedy and finding.source
    assert code not in make(right=True)


def test_every_check_has_a_case():
    assert {check.code for check in CHECKS} == set(CASES)


def test_a_low_rank_adapter_is_no_layer_in_series():
    """Six adapted layers and a head are seven deep and as wide as their kernels."""
    reading = models.adapted(6, 128)
    good = (("**/b", init.zeros), ("**/{w,a}", HE), ("**", LECUN))
    assert not found(reading, *good)
    both = found(reading, ("**/{a,b}", init.zeros), ("**/w", HE), ("**", LECUN))
    assert set(both) == {"zero-product"} and len(both["zero-product"].leaves) == 12
    # Factors as wide as the kernel are no bottleneck: their way is the longest one.
    series = found(models.adapted(8, 128, rank=128), *good)
    assert "17 layers" in series["narrow-for-depth"].evidence


def sampled(shape=(128, 128), law="normal", dtype="bfloat16", key=0):
    values = getattr(jax.random, law)(jax.random.key(key), shape, dtype)
    return np.asarray(values).astype("float32") * np.float32(0.1)


@pytest.mark.parametrize("dtype, count", [("bfloat16", 128), ("float16", 1024)])
def test_draws_in_16_bits_show_after_the_cast(dtype, count):
    """Master weights in float32 that were sampled narrow: the tails stay cut."""
    reading = models.read(lambda p, x: x @ p["w"], {"w": (128, 128)}, models.struct(2, 128))
    narrow = found(reading, init={"w": sampled(dtype=dtype)})["low-precision"]
    assert f"{count} different values besides 0 in 16,384 entries" in narrow.evidence
    assert f"sampled in {dtype}" in narrow.evidence


def few_values():
    rng = np.random.default_rng(0)
    normal = rng.standard_normal((128, 128)).astype("float32")
    masked = normal * (rng.random((128, 128)) < 0.01)
    return {
        "float32": sampled(dtype="float32"),
        "uniform float32": sampled(law="uniform", dtype="float32"),
        "signs": np.sign(normal),
        "masked": masked,
        "identity": np.eye(128, dtype="float32"),
        "a range, repeated": np.tile(np.arange(1, 129, dtype="float32"), (128, 1)),
        "quantised": np.round(normal * 20) / 20,
        "few draws": np.pad(sampled((8, 128)), ((0, 120), (0, 0))),
    }


@pytest.mark.parametrize("name", few_values())
def test_laws_of_few_values_are_no_draws_in_16_bits(name):
    reading = models.read(lambda p, x: x @ p["w"], {"w": (128, 128)}, models.struct(2, 128))
    assert "low-precision" not in found(reading, init={"w": few_values()[name]})


def test_what_is_not_finite_is_one_finding():
    reading = models.plain(jax.nn.relu, 4, bias=False)
    values = planned(reading, ("**", HE)).init(jax.random.key(0))
    for fault in (np.nan, np.inf):
        spoilt = values | {"hidden/1/kernel": values["hidden/1/kernel"] * fault}
        findings = jaxinit.advise(reading, init=spoilt).findings
        assert [finding.code for finding in findings] == ["nonfinite"]


def test_a_hard_router_goes_to_an_index_and_gets_no_made_up_gain():
    reading = routed(weigh=False)
    after = reading["router"].uses[0].after
    assert (after.index, after.activation, after.softmax) == ("argmax", None, False)
    assert reading.chain.widths == (10, 3)
    assert "argmax" in str(reading) and "select_n" not in str(reading)
    assert jaxinit.advise(reading)["router"].initializer == LECUN
    weighed = routed(weigh=True)
    assert weighed["router"].uses[0].after.softmax
    assert jaxinit.advise(weighed)["router"].row == "mixture of experts: router"


def test_gradients_by_another_way_or_of_ones_own_are_gradients():
    assert "no-gradient" not in found(routed(weigh=False, straight_through=True))

    @jax.custom_vjp
    def hard(x):
        return jnp.sign(x)

    hard.defvjp(lambda x: (hard(x), None), lambda _, g: (g,))

    def reading(step):
        shapes = {"w": (6, 6), "out": (6, 3)}
        return models.read(lambda p, x: step(x @ p["w"]) @ p["out"], shapes, models.struct(4, 6))

    assert "no-gradient" not in found(reading(hard))
    assert found(reading(jnp.sign))["no-gradient"].leaves == ("w",)
    # A policy that returns what it picks is trained by other means.
    shapes = {"w": (6, 3)}
    policy = models.read(lambda p, x: jnp.argmax(x @ p["w"], -1), shapes, models.struct(4, 6))
    assert "no-gradient" not in found(policy)


@pytest.mark.parametrize(
    "std, start",
    [pytest.param(0.125, "0.0156", marks=pytest.mark.slow), (1.0, "1")],
    ids=["small table", "unit table"],
)
def test_growth_behind_norms_counts_from_the_table(std, start):
    """Branches behind a normalisation add the same whatever the stream is."""
    reading = models.transformer(layers=12, tied=False)
    rules = ("table", init.normal(std)), ("head", LECUN), ("**", HE)
    evidence = found(reading, *rules)["residual-growth"].evidence
    assert f"24 branches add to a stream that starts at {start} and grows to " in evidence
    # A table that is far larger than all that is added does not grow.
    rules = ("table", init.normal(30.0)), ("head", LECUN), ("**", HE)
    assert "residual-growth" not in found(reading, *rules)


def test_a_layer_scale_keeps_the_stream():
    reading = models.transformer(layers=8, tied=False, scaled="branch")
    ends = ("**/scale", init.constant(1.0)), ("**/scale", init.constant(0.1))
    for end, is_found in zip(ends, (True, False), strict=True):
        assert ("residual-growth" in found(reading, end, ("table", LECUN), ("**", HE))) == is_found


def test_queries_and_keys_that_are_both_zero_never_move():
    reading = models.transformer(tied=False)
    zero, normal = init.zeros, LECUN
    both = found(reading, ("**/{q,k}", zero), ("**", normal))
    assert set(both["zero-product"].leaves) == {"blocks/0/q", "blocks/0/k"}
    assert "zero-product" not in found(reading, ("**/q", zero), ("**", normal))


def test_zeros_that_come_alive_one_after_the_other_are_no_finding():
    """Fixup: the head moves first, then the ends of the branches, then all."""
    reading = models.residual(None, 4)
    assert "zero-product" not in found(reading, init=jaxinit.advise(reading).plan())


def test_all_zero_layers_are_stuck_but_for_the_last_bias():
    dead = found(models.plain(jax.nn.relu, 4), ("**", init.zeros))
    assert len(dead["zero-product"].leaves) == 4


def test_a_shallow_network_takes_most_random_weights():
    """The guide says plain random; but not a factor of 512 in every layer."""
    reading = models.plain(jax.nn.relu, 3, 64)
    for stddev in (0.02, 0.1, 0.3):
        assert "gain-mismatch" not in found(reading, ("**/kernel", init.normal(stddev)), REST)
    huge = found(reading, ("**/kernel", init.normal(4.0)), REST)["gain-mismatch"]
    assert "multiplied by 512 per layer" in huge.evidence


SHALLOW = {
    "relu": lambda: models.plain(jax.nn.relu, 30, 512),
    "residual": lambda: models.residual("before", 4, 64),
    "transformer": lambda: models.transformer(layers=2),
    "head": lambda: models.transformer(tied=False),
    "lstm": models.lstm,
    "convolutions": lambda: models.convolutional(True, 4),
    "adapted": lambda: models.adapted(4, 512),
}
DEEP = {
    "tanh": lambda: models.plain(jnp.tanh, 50, 512),
    "silu": lambda: models.plain(jax.nn.silu, 20, 512),
    "residual, deep": lambda: models.residual(None, 48, 64),
    "residual, normalised": lambda: models.residual("before", 12, 64),
    "lstm in parts": lambda: models.lstm(packed=False),
    "adapted, deep": lambda: models.adapted(8, 512),
}


@pytest.mark.parametrize("name", [*SHALLOW, *slow(*DEEP)])
def test_the_advice_on_every_model_is_free_of_errors_about_its_own_plan(name):
    reading = (SHALLOW | DEEP)[name]()
    advice = jaxinit.advise(reading, init=jaxinit.advise(reading).plan())
    loud = [finding for finding in advice.findings if finding.is_at_least("warning")]
    assert not loud, loud


def test_arrays_betray_fans_that_are_not_theirs():
    """A tree drawn by shape: the measured size fits the wrong fan and not the true one."""

    def fn(params, x):
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, params["stack"])[0]

    reading = models.read(fn, {"stack": (12, 32, 32)}, models.struct(2, 32))
    key, shape = jax.random.key(0), (12, 32, 32)
    assert "wrong-fans" in found(reading, init={"stack": LECUN(key, shape)})
    assert "wrong-fans" not in found(reading, init={"stack": init.stacked(LECUN)(key, shape)})


def test_severities_are_ordered_and_the_worst_comes_first():
    findings = jaxinit.advise(
        models.plain(jax.nn.relu, 30, 64), init=planned(models.plain(jax.nn.relu, 30, 64),
        ("**/kernel", init.xavier_normal()), REST)
    ).findings  # fmt: skip
    levels = [SEVERITIES.index(finding.severity) for finding in findings]
    assert levels == sorted(levels, reverse=True)
    assert findings[0].is_at_least("warning") and not findings[-1].is_at_least("error")
    assert str(findings[0]).startswith("error gain-mismatch [")


# Zeros and gradients through primitives that a list of names had forgotten.


def test_zero_experts_of_a_ragged_product_are_stuck():
    """`jax.lax.ragged_dot` has three operands, and the third has no part in the product."""

    def fn(params, x):
        sizes = jnp.array([2, 3], "int32")
        hidden = jax.lax.ragged_dot(x, params["up"], sizes)
        return jax.lax.ragged_dot(hidden, params["down"], sizes)

    shapes = {"up": (2, 6, 4), "down": (2, 4, 3)}
    reading = models.read(fn, shapes, models.struct(5, 6))
    dead = found(reading, ("**", init.zeros))["zero-product"]
    assert set(dead.leaves) == {"up", "down"}
    assert "zero-product" not in found(reading, ("down", init.zeros), ("**", LECUN))


def copied(a):
    return jnp.array(a, copy=True)


def unstacked(a):
    return jnp.concatenate(jnp.unstack(a.reshape(2, 3, 2)), 0)


def running_maximum(a):
    return jax.lax.cummax(a, axis=1)


def named(a):
    return checkpoint_name(a, "a")


def written(a):
    return jax.lax.dynamic_update_slice(jnp.zeros((6, 2)), a, (0, 0))


def added_at(a):
    return jnp.zeros((6, 2)).at[jnp.arange(6)].add(a)


@pytest.mark.parametrize(
    "move", [copied, unstacked, running_maximum, named, written, added_at], ids=lambda f: f.__name__
)
def test_zeros_stay_zeros_however_they_are_moved(move):
    def fn(params, x):
        return x @ params["w"] + (x @ move(params["a"])) @ params["b"]

    shapes = {"w": (6, 5), "a": (6, 2), "b": (2, 5)}
    reading = models.read(fn, shapes, models.struct(4, 6))
    both = found(reading, ("{a,b}", init.zeros), ("w", LECUN))
    assert "b" in both["zero-product"].leaves


@pytest.mark.parametrize(
    "change",
    [lambda a: jnp.pad(a, ((0, 0), (0, 1)), constant_values=1.0)[:, 1:], lambda a: 1 / (a + 1)],
    ids=["padded with ones", "reciprocal"],
)
def test_zeros_that_something_else_is_made_of_are_no_finding(change):
    def fn(params, x):
        return x @ params["w"] + (x @ change(params["a"])) @ params["b"]

    shapes = {"w": (6, 5), "a": (6, 2), "b": (2, 5)}
    reading = models.read(fn, shapes, models.struct(4, 6))
    assert "zero-product" not in found(reading, ("{a,b}", init.zeros), ("w", LECUN))


def test_a_factor_before_a_table_counts_on_either_side():
    """`2 * x` and `x * 2` are one stream: JAX keeps the order of the operands."""
    for scaled in (lambda x: 2.0 * x, lambda x: x * 2.0, lambda x: x / 0.5):

        def fn(params, ids, scaled=scaled):
            x = scaled(params["table"][ids])
            for block in params["blocks"]:
                y = (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-6)
                x = x + jax.nn.relu(y @ block["up"]) @ block["down"]
            return x @ params["head"]

        block = {"up": (8, 16), "down": (16, 8)}
        shapes = {"table": (11, 8), "blocks": [block] * 24, "head": (8, 3)}
        reading = models.read(fn, shapes, models.struct(2, 5, dtype="int32"))
        rules = ("table", init.normal(1.0)), ("head", LECUN), ("**", init.he_normal())
        evidence = found(reading, *rules)["residual-growth"].evidence
        assert "a stream that starts at 4 and grows to 52" in evidence, evidence


def test_a_bias_that_is_subtracted_belongs_to_its_kernel():
    def fn(params, x):
        return jnp.tanh(x @ params["w"] - params["b"]) @ params["out"]

    reading = models.read(fn, {"w": (8, 8), "b": (8,), "out": (8, 2)}, models.struct(4, 8))
    assert "fanless-bias" in found(reading, ("b", init.normal(1.0)), ("**", LECUN))
    assert "fanless-bias" not in found(reading, ("b", init.zeros), ("**", LECUN))


@pytest.mark.parametrize("is_second", [False, True])
def test_a_branch_that_is_moved_before_its_sum_is_found_on_either_side(is_second):
    def fn(params, x):
        for block in params["blocks"]:
            y = (jax.nn.relu(x @ block["up"]) @ block["down"]).reshape(2, 2, 8).reshape(4, 8)
            x = x + y if is_second else y + x
        return x @ params["head"]

    shapes = {"blocks": [{"up": (8, 16), "down": (16, 8)}] * 24, "head": (8, 3)}
    growth = found(models.read(fn, shapes, X8), ("**", HE))["residual-growth"]
    assert "multiplies the stream's second moment by about 3, 2^38 in all" in growth.evidence


def test_an_empty_array_has_no_law_to_judge():
    reading = models.read(
        lambda p, x: x @ p["w"] + p["none"].sum(), {"w": (8, 8), "none": (0,)}, X8
    )
    arrays = {"w": LECUN(jax.random.key(0), (8, 8)), "none": jnp.zeros((0,))}
    assert "nonfinite" not in found(reading, init=arrays)
