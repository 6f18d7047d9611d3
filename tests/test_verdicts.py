"""Verdicts that agree with the prediction: models whose own initialization is right, and advice."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import advice_models as models
import jaxinit
from helpers import struct
from jaxinit import initializers as init

pytestmark = pytest.mark.unoptimized

WIDTH = 64
LECUN, HE = init.lecun_normal(), init.he_normal()
relu = jax.nn.relu


def kernels(names, width=WIDTH):
    return {name: (width, width) for name in names}


def layer_norm(x):
    return (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-6)


def loud(advice):
    """Codes of the findings that are warnings or errors."""
    return {finding.code for finding in advice.findings if finding.is_at_least("warning")}


def judged(fn, shapes, rules, *inputs):
    """The advice on a model that is drawn by rules, and the findings above info."""
    reading = models.read(fn, shapes, *inputs)
    tree = {p.path: jaxinit.ParamSpec(p.shape, np.dtype(p.dtype)) for p in reading}
    advice = jaxinit.advise(reading, init=jaxinit.plan(tree, list(rules)))
    return advice, loud(advice)


# Multipliers: on the parameter, behind the layer, behind the head, before a tied head.


def multiplied(p, x):
    for name in "abcd":
        x = relu(x @ (p[name] / 16))
    return x @ p["o"]


def multiplied_behind(p, x):
    for name in "abcd":
        x = relu((x @ p[name]) / 16)
    return x @ p["o"]


@pytest.mark.parametrize("fn", [multiplied, multiplied_behind], ids=lambda f: f.__name__)
def test_a_multiplier_belongs_to_the_size_of_a_layer(fn):
    """Equalised rates: std 16 sqrt(2 / n), times 1/16 in the model, is He's law."""
    right = init.normal(16 * math.sqrt(2 / WIDTH))
    advice, found = judged(fn, kernels("abcdo"), [("o", LECUN), ("**", right)], struct(8, WIDTH))
    assert not found
    assert advice["a"].std == pytest.approx(16 * math.sqrt(2 / WIDTH), rel=1e-3)
    assert "multiplied by 16" in advice["a"].reason
    assert advice.predict()["o"][0].forward == pytest.approx((1.0, 1.0), rel=1e-3)


def test_a_head_with_a_multiplier_behind_it_is_no_large_head():
    """The NTK parametrisation: entries of unit size, outputs divided by sqrt(n)."""

    def fn(p, x):
        return relu(x @ p["a"] / 8) * math.sqrt(2) @ p["o"] / 8

    _, found = judged(fn, kernels("ao"), [("**", init.normal(1.0))], struct(8, WIDTH))
    assert not found


def tied(p, ids):
    x = p["table"][ids]
    x = x + relu(layer_norm(x) @ p["up"]) @ p["down"]
    return (layer_norm(x) * WIDTH**-0.5) @ p["table"].T


def test_a_tied_table_of_unit_size_is_right_where_logits_are_divided():
    shapes = {"table": (512, WIDTH), **kernels(["up", "down"])}
    rules = [("table", init.normal(1.0)), ("**", LECUN)]
    advice, found = judged(tied, shapes, rules, struct(4, 8, dtype="int32"))
    assert not found
    assert advice["table"].std == pytest.approx(1.0, rel=0.1)


def test_a_mask_belongs_to_the_fans():
    """A masked autoregressive layer: half of the entries never count, so He's fan is half."""
    mask = np.tril(np.ones((WIDTH, WIDTH), "float32"))

    def fn(p, x):
        return relu(x @ (p["a"] * mask)) @ p["o"]

    advice = jaxinit.advise(models.read(fn, kernels("ao"), struct(8, WIDTH)))
    kept = mask.mean()
    assert advice["a"].std == pytest.approx(math.sqrt(2 / (WIDTH * kept)), rel=1e-3)


def test_scale_free_kernels_leave_the_gain_to_their_scale():
    """Weight norm: the size of v is divided out, and g carries sqrt 2 behind a rectifier."""

    def fn(p, x):
        v = p["v"]
        return relu(x @ (p["g"] * v / jnp.sqrt((v * v).sum(0, keepdims=True)))) @ p["o"]

    advice = jaxinit.advise(models.read(fn, kernels("vo") | {"g": (WIDTH,)}, struct(8, WIDTH)))
    assert advice["g"].initializer.law((WIDTH,)).mean == pytest.approx(math.sqrt(2), rel=1e-5)
    assert advice["g"].row == "weight norm"


def test_what_is_no_multiple_of_the_parameter_is_not_judged():
    def fn(p, x):
        return relu(relu(x @ p["a"]) @ jax.nn.softplus(p["k"]) + x @ p["b"]) @ p["o"]

    advice = jaxinit.advise(models.read(fn, kernels("akbo"), struct(8, WIDTH)))
    assert advice["k"].initializer == init.own and "not judged" in advice["k"].reason


# Addends, sums over positions, normalisations.


def added(p, x):
    for number in range(10):
        x = relu(x @ p[f"a{number}"] + x @ p[f"b{number}"])
    return x @ p["o"]


def test_layers_of_one_sum_share_its_variance():
    names = [f"{side}{number}" for side in "ab" for number in range(10)]
    rules = [("o", LECUN), ("**", init.normal(WIDTH**-0.5))]
    advice, found = judged(added, kernels([*names, "o"]), rules, struct(8, WIDTH))
    assert not found & {"gain-mismatch"}
    assert {round(advice[name].std, 4) for name in names} == {round(WIDTH**-0.5, 4)}
    twice = judged(added, kernels([*names, "o"]), [("o", LECUN), ("**", HE)], struct(8, WIDTH))
    assert "gain-mismatch" in twice[1]  # 2^9: both of He's size in one sum


def test_a_sum_over_positions_grows_and_is_divided_out():
    def fn(p, x):
        return relu(relu(x @ p["a"]).sum(1) @ p["b"]) @ p["o"]

    advice = jaxinit.advise(models.read(fn, kernels("abo"), struct(4, 44, WIDTH)))
    for layer in advice.predict().layers:
        assert 0.5 <= layer.forward[0] and layer.forward[1] <= 2.5, layer


def test_a_normalisation_behind_the_activation_is_one():
    def fn(p, x):
        for number in range(30):
            x = layer_norm(relu(x @ p[f"a{number}"]))
        return x @ p["o"]

    names = [f"a{number}" for number in range(30)]
    assert not judged(fn, kernels([*names, "o"]), [("**", LECUN)], struct(8, WIDTH))[1]


# Attention.


@pytest.mark.parametrize(
    "factor, wanted",
    [(1.0, 1 / WIDTH), (WIDTH**-0.5, WIDTH**-0.5), (1 / WIDTH, WIDTH**-0.5)],
    ids=["not divided", "by sqrt d", "by d"],
)
def test_the_query_is_as_large_as_the_factor_of_the_scores_asks(factor, wanted):
    """T5 does not divide its scores, and draws the query with (d d_k)^-1/2.

    Scores that muP divides by d start small, which is what it is for.
    """

    def fn(p, x):
        h = layer_norm(x)
        scores = jnp.einsum("bqd,bkd->bqk", h @ p["q"], h @ p["k"]) * factor
        return x + jax.nn.softmax(scores) @ (h @ p["v"]) @ p["o"]

    advice = jaxinit.advise(models.read(fn, kernels("qkvo"), struct(2, 16, WIDTH)))
    assert advice["q"].std == pytest.approx(wanted, rel=0.02)
    assert advice["k"].std == pytest.approx(WIDTH**-0.5, rel=1e-3)


@pytest.mark.parametrize(
    "hide",
    [lambda z, mask: jnp.where(mask, z, -1e9), lambda z, mask: z + jnp.where(mask, 0.0, -3.4e38)],
    ids=["selected", "added"],
)
def test_scores_are_as_large_as_those_that_a_mask_leaves(hide):
    def fn(p, x):
        h = layer_norm(x)
        scores = jnp.einsum("bqd,bkd->bqk", h @ p["q"], h @ p["k"]) * WIDTH**-0.5
        scores = hide(scores, jnp.tril(jnp.ones((16, 16), bool)))
        return x + jax.nn.softmax(scores) @ (h @ p["v"]) @ p["o"]

    advice, alarms = judged(fn, kernels("qkvo"), [("**", LECUN)], struct(2, 16, WIDTH))
    assert advice["q"].std == pytest.approx(WIDTH**-0.5, rel=1e-3)
    assert "score-scale" not in alarms


# Tables, tokens, state, scales.


def test_a_small_table_is_no_finding_where_nothing_normalises():
    def fn(p, ids):
        return relu(p["table"][ids] @ p["a"]) @ p["o"]

    shapes = {"table": (50, WIDTH), **kernels("ao")}
    rules = [("table", init.normal(WIDTH**-0.5)), ("**", HE)]
    advice, _ = judged(fn, shapes, rules, struct(4, 8, dtype="int32"))
    assert "embedding-scale" not in {finding.code for finding in advice.findings}


def test_state_and_learned_constants_stay_as_the_model_draws_them():
    def fn(v, x):
        x = (x / v["stats"]["std"]) @ v["params"]["w"]
        return x * jnp.exp(v["params"]["logit_scale"])

    variables = {
        "params": {"w": struct(8, 4), "logit_scale": struct()},
        "stats": {"std": struct(8)},
    }
    with jax.numpy_rank_promotion("allow"):
        advice = jaxinit.advise(jaxinit.read(fn, variables, struct(4, 8)))
    for path in ("stats/std", "params/logit_scale"):
        assert advice[path].initializer == init.own


def test_a_scale_beside_one_starts_at_zero():
    def fn(p, x):
        return layer_norm(x @ p["w"]) * (1 + p["s"]) @ p["o"]

    advice = jaxinit.advise(models.read(fn, kernels("wo") | {"s": (WIDTH,)}, struct(4, WIDTH)))
    assert advice["s"].initializer == init.zeros


def test_equal_columns_of_a_low_rank_factor_are_twins():
    reading = models.adapted(2, 32)
    tree = {p.path: jaxinit.ParamSpec(p.shape, np.dtype(p.dtype)) for p in reading}
    params = jaxinit.plan(tree, [("**/b", init.zeros), ("**", LECUN)]).init(jax.random.key(0))
    assert "twins" not in loud(jaxinit.audit(reading, params))
    first = np.asarray(params["layers/0/a"])
    params = params | {"layers/0/a": np.repeat(first[:, :1], first.shape[1], 1)}
    found = {f.code: f for f in jaxinit.audit(reading, params).findings}
    assert found["twins"].leaves == ("layers/0/a",)


@pytest.mark.parametrize("entries", [1, 16])
def test_few_entries_that_do_not_scatter_are_no_draw(entries):
    """Ones were taken for a draw of N(0, 1), since their mean is within 5 of its errors."""

    def fn(p, x):
        return (x @ p["w"]) * jnp.exp(p["s"]) * lax.rsqrt(p["var"] + 1e-5)

    shapes = {"w": (64, 16), "s": (entries,), "var": (entries,)}
    reading = models.read(fn, shapes, struct(8, 64))
    tree = {path: jnp.ones(shape) for path, shape in shapes.items()}
    tree["w"] = LECUN(jax.random.key(0), shapes["w"])
    outputs = jaxinit.predict(reading, tree).outputs
    assert outputs[0] == pytest.approx((math.exp(2),) * 2, rel=0.2)  # 5 sigma of w's variance


# Sizes far off in models that are no chain.


def branching(p, x):
    for inner, last in ("ab", "cd"):
        x = x + relu(layer_norm(x) @ p[inner]) @ p[last]
    return layer_norm(x) @ p["o"]


def mapped(p, x):
    for name in "abcdefgh":
        x = relu(x @ p[name])
    return layer_norm(x) @ p["o"]


def pooled(p, x):
    return relu(layer_norm(x @ p["a"])).sum(1) @ p["b"] @ p["o"]


def waves(p, x):
    z = x @ p["a"]
    return jnp.concatenate([jnp.sin(z), jnp.cos(z)], -1)[..., ::2] @ p["o"]


@pytest.mark.parametrize(
    "fn, x, names, factor, is_found",
    [
        (branching, (8, WIDTH), "abcd", 1, False),
        (branching, (8, WIDTH), "abcd", 4, True),  # adds 256, and 1 as advised
        (branching, (8, WIDTH), "abcd", 1 / 4, False),  # branches may start small
        (branching, (8, WIDTH), "a", 1.5, False),
        (branching, (8, WIDTH), "a", 2.4, True),  # variance times fan of 11.5
        (waves, (8, WIDTH), "a", 2.4, False),  # Fourier features
        (mapped, (8, WIDTH), "abcdefgh", 1, False),
        (mapped, (8, WIDTH), "abcdefgh", 1 / 4, True),  # 2**-28 before the norm
        (pooled, (8, 256, WIDTH), "b", 1, False),  # large, but of right kernels
        (pooled, (8, 256, WIDTH), "b", 4, True),
    ],
)
def test_kernels_that_no_law_draws_are_found_by_their_sizes(fn, x, names, factor, is_found):
    broken = (f"{{{','.join(names)}}}", init.normal(factor * math.sqrt(2 / WIDTH)))
    advice, _ = judged(fn, kernels("abcdefgho"), [broken, ("**", LECUN)], struct(*x))
    found = [f for f in advice.findings if f.code == "gain-mismatch"]
    assert [f.is_at_least("warning") for f in found] == [True] * is_found


# Guesses, fans, depth.


def test_the_usual_law_of_torch_is_no_wrong_fan():
    """U(+-1/sqrt(fan_in)) has variance 1/3 over the true fan; the guess said wrong fans."""

    def fn(p, x):
        dims = ("NCHW", "OIHW", "NCHW")
        x = relu(lax.conv_general_dilated(x, p["a"], (1, 1), "SAME", dimension_numbers=dims))
        return lax.conv_general_dilated(x, p["b"], (1, 1), "SAME", dimension_numbers=dims)

    reading = models.read(fn, dict.fromkeys("ab", (16, 16, 3, 3)), struct(2, 16, 8, 8))
    for seed in range(5):
        keys = jax.random.split(jax.random.key(seed))
        bound = 144**-0.5
        draw = [jax.random.uniform(k, (16, 16, 3, 3), minval=-bound, maxval=bound) for k in keys]
        found = jaxinit.audit(reading, dict(zip("ab", draw, strict=True))).findings
        assert "wrong-fans" not in {finding.code for finding in found}


def upsampled(size, features):
    """A transposed convolution whose windows lie side by side: each output sees one tap."""

    def fn(p, x):
        return lax.conv_transpose(x, p["w"], (size, size), "SAME")

    shape = (size, size, 64, features)
    return models.read(fn, {"w": shape}, struct(2, 4, 4, 64)), shape


def masked(kept):
    mask = np.arange(64)[:, None] % kept == np.arange(64) % kept
    return models.read(lambda p, x: x @ (p["w"] * mask), kernels("w"), struct(8, 64)), (64, 64)


def three_gates(hidden):
    def fn(p, x):
        r, z, n = jnp.split(p["w"] @ x, 3)
        return jax.nn.sigmoid(r) * jnp.tanh(n) + jax.nn.sigmoid(z)

    return models.read(fn, {"w": (3 * hidden, 32)}, struct(32)), (3 * hidden, 32)


@pytest.mark.parametrize(
    "made, law, is_wrong",
    [
        (upsampled(2, 32), HE, False),  # 2 / 256 = 1 / fan_out
        (upsampled(4, 48), HE, True),  # 2 / 1024, of true fans 64 and 768
        (masked(2), LECUN, False),  # half of the variance
        (masked(8), LECUN, True),  # an eighth
        (three_gates(64), init.uniform(minval=-1 / 8, maxval=1 / 8), False),  # U(+-1/sqrt(hidden))
        (three_gates(128), HE, True),  # 2 / 384, of true fans 32 and 128
    ],
)
def test_a_guess_comes_after_every_common_law_of_the_true_fans(made, law, is_wrong):
    reading, shape = made
    findings = jaxinit.audit(reading, {"w": law(jax.random.key(0), shape)}).findings
    assert ("wrong-fans" in {f.code for f in findings if f.severity != "info"}) == is_wrong


@pytest.mark.parametrize(
    "activation, kernel, is_narrow",
    [
        (jnp.tanh, init.orthogonal(), False),
        (jnp.tanh, LECUN, False),
        (relu, HE, True),
        (relu, init.orthogonal(math.sqrt(2)), True),
    ],
    ids=["tanh orthogonal", "tanh normal", "relu normal", "relu orthogonal"],
)
def test_narrow_for_depth_knows_the_activation_and_what_is_drawn(activation, kernel, is_narrow):
    """Log-variances measured over draws, 50 layers of 128: 4e-5, .083, 1.65 and 1.24."""
    reading = models.plain(activation, 50, 128, bias=False)
    tree = {p.path: jaxinit.ParamSpec(p.shape, np.dtype(p.dtype)) for p in reading}
    plan = jaxinit.plan(tree, [("out/*", LECUN), ("**", kernel)])
    found = {finding.code: finding for finding in jaxinit.advise(reading, init=plan).findings}
    assert ("narrow-for-depth" in found) == is_narrow
    if kernel == HE:
        assert "orthogonal kernels" in found["narrow-for-depth"].remedy


def test_the_goal_of_an_audit_is_what_it_is_held_against():
    reading = models.plain(jnp.tanh, 8, 64, bias=False)
    tree = {p.path: jaxinit.ParamSpec(p.shape, np.dtype(p.dtype)) for p in reading}
    advice = jaxinit.advise(reading, "policy")
    params = jaxinit.plan(tree, advice.rules()).init(jax.random.key(0))
    assert not loud(jaxinit.audit(reading, params, goal="policy"))
