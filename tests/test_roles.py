"""Which role a parameter has: by what it meets, and by the functions that it goes through."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import advice_models as models
import jaxinit
from helpers import struct
from jaxinit import initializers as init
from jaxinit.advice._facts import ModelFacts

pytestmark = pytest.mark.unoptimized


def facts(function, shapes, *args):
    return ModelFacts(models.read(function, shapes, *args))


def roles(function, shapes, *args):
    return {p.path: p.roles for p in facts(function, shapes, *args).parameters}


def rms(x):
    return x / jnp.sqrt((x * x).mean(-1, keepdims=True) + 1e-6)


def norm(x):
    return (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-6)


def attend(q, k, v):
    return jax.nn.softmax(q @ jnp.swapaxes(k, -1, -2) / q.shape[-1] ** 0.5) @ v


# Scales, and what only looks like one.


def codebook(p, x):
    code = jax.nn.one_hot((x @ p["w"]).argmax(-1), 5)
    return (code[:, :, None] * p["it"]).sum(1) @ p["out"]


def shifted(p, x):
    h, y = x @ p["w"], 0
    for i in range(4):
        y = y + jnp.pad(h, ((0, 0), (i, 0), (0, 0)))[:, : h.shape[1]] * p["it"][i]
    return jax.nn.silu(y) @ p["out"]


def constant(p, z):
    x = p["it"] * (z @ p["w"] + 1)[:, None, None]
    return jnp.einsum("bhwc,co->bhwo", x, p["out"])


KERNELS = {"w": (8, 6), "out": (6, 3)}
X = struct(4, 8)
SCALES = {
    "norm": (lambda p, x: (rms(x @ p["w"]) * p["it"]) @ p["out"], (6,), ("scale",)),
    "norm, 1 + w": (
        lambda p, x: (rms(x @ p["w"]) * (1 + p["it"])) @ p["out"], (6,), ("offset_scale", "scale"),
    ),
    "layer": (lambda p, x: jnp.tanh((x @ p["w"]) * p["it"]) @ p["out"], (6,), ("scale",)),
    "branch": (
        lambda p, x: x + p["it"] * (x @ p["w"] @ p["out"][:, :1]), (), ("branch_scale", "scale"),
    ),
    "temperature": (lambda p, x: jnp.exp(p["it"]) * (x @ p["w"]), (), ("special", "scale")),
    "divisor": (lambda p, x: (x @ p["w"]) / p["it"], (), ("special", "scale")),
    "slope": (
        lambda p, x: jnp.where((h := x @ p["w"]) > 0, h, p["it"] * h) @ p["out"],
        (6,),
        ("special", "scale"),
    ),
    "inputs": (
        lambda p, x: jnp.tanh((x * p["it"]) @ p["w"]) @ p["out"], (8,), ("special", "scale"),
    ),
    "noise": (
        lambda p, x: ((x @ p["w"]) + p["it"] * x[:, :6]) @ p["out"], (6,), ("special", "scale"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SCALES)
def test_a_scale_is_one_of_a_norm_a_layer_or_a_branch(name):
    function, shape, expected = SCALES[name]
    found = roles(function, {**KERNELS, "it": shape}, X)["it"]
    assert found == expected


def test_a_codebook_is_a_table_that_is_looked_up_by_a_product():
    assert roles(codebook, {"w": (8, 5), "it": (5, 6), "out": (6, 3)}, X)["it"][0] == "table"


def test_a_learned_constant_enters_like_an_input_and_taps_are_a_convolution():
    shapes = {"w": (8, 6), "it": (1, 4, 5, 6), "out": (6, 3)}
    assert roles(constant, shapes, X)["it"][0] == "token"
    shapes = {"w": (8, 6), "it": (4, 6), "out": (6, 3)}
    assert roles(shifted, shapes, struct(2, 7, 8))["it"][-1] == "kernel"


# Decays.


@pytest.mark.parametrize("at_once", [False, True], ids=["step by step", "all at once"])
def test_what_decays_are_made_of(at_once):
    def model(p, x):
        u = x @ p["w"]
        dt = jax.nn.softplus(u[..., :1] + p["dt_bias"])
        log = -dt * jnp.exp(p["a_log"])
        if at_once:
            total = jnp.cumsum(log, 1)
            h = jnp.exp(total) * jnp.cumsum(u * jnp.exp(-total), 1)
        else:
            a = jnp.exp(log)

            def step(h, t):
                h = t[0] * h + t[1]
                return h, h

            pair = (a.swapaxes(0, 1), u.swapaxes(0, 1))
            h = jax.lax.scan(step, jnp.zeros_like(u[:, 0]), pair)[1].swapaxes(0, 1)
        return (h + p["skip"] * u + p["bias"]) @ p["out"]

    shapes = {name: (6,) for name in ("dt_bias", "a_log", "skip", "bias")}
    found = roles(model, {**KERNELS, **shapes}, struct(2, 5, 8))
    assert found["a_log"] == ("decay", "special", "scale")
    assert found["dt_bias"] == ("decay", "special", "bias")
    assert found["skip"] == ("scale",) and found["bias"] == ("bias",)


def test_gates_are_no_decays():
    found = {p.path: p.roles for p in ModelFacts(models.lstm()).parameters}
    assert not any("decay" in each for each in found.values())


# Cells.


@pytest.mark.parametrize("state_first", [False, True])
def test_of_one_kernel_for_input_and_state_the_rows_of_the_state_are_orthogonal(state_first):
    def model(p, xs):
        def step(state, x):
            h, c = state
            parts = [h, x] if state_first else [x, h]
            i, g, f, o = jnp.split(jnp.concatenate(parts, -1) @ p["w"] + p["b"], 4, -1)
            c = jax.nn.sigmoid(f + 1) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
            h = jax.nn.sigmoid(o) * jnp.tanh(c)
            return (h, c), h

        start = (jnp.zeros((2, 4)),) * 2
        return jax.lax.scan(step, start, xs)[1] @ p["out"]

    shapes = {"w": (7, 16), "b": (16,), "out": (4, 3)}
    reading = models.read(model, shapes, struct(5, 2, 3))
    drawn = {p.path: p.initializer for p in jaxinit.advise(reading)}
    rows = [(4, init.scaled_orthogonal()), (3, init.lecun_normal())]
    sizes, laws = zip(*(rows if state_first else rows[::-1]), strict=True)
    assert drawn["w"] == init.fused(init.fused(laws, sizes, -2), (4,) * 4)
    # The model adds 1 to its forget gate.
    assert drawn["b"] == init.zeros
    kernel = drawn["w"](jax.random.key(0), (7, 16))
    state = kernel[:4] if state_first else kernel[3:]
    for gate in jnp.split(state, 4, 1):
        np.testing.assert_allclose(gate @ gate.T, np.eye(4), atol=1e-6)


# Forget gates.


def gru(p, h, x):
    r, z = jnp.split(jax.nn.sigmoid(x @ p["x"] + h @ p["h"] + p["b"]), 2, -1)
    n = jnp.tanh(x @ p["n"] + r * (h @ p["m"]) + p["c"])
    return z * h + (1 - z) * n


def gru_of_two_sigmoids(p, h, x):
    r, z = jnp.split(x @ p["x"] + h @ p["h"] + p["b"], 2, -1)
    n = jnp.tanh(x @ p["n"] + jax.nn.sigmoid(r) * (h @ p["m"]) + p["c"])
    return jax.nn.sigmoid(-z) * n + jax.nn.sigmoid(z) * h


@pytest.mark.parametrize("cell", [gru, gru_of_two_sigmoids])
def test_the_update_gate_of_a_gru_is_no_forget_gate(cell):
    shapes = {"x": (3, 8), "h": (4, 8), "b": (8,), "n": (3, 4), "m": (4, 4), "c": (4,)}
    reading = models.read(
        lambda p, xs: jax.lax.scan(lambda h, x: (cell(p, h, x),) * 2, jnp.zeros((2, 4)), xs)[1],
        shapes, struct(5, 2, 3),
    )  # fmt: skip
    assert {p.path: p.roles for p in ModelFacts(reading).parameters}["b"] == ("bias",)
    assert jaxinit.advise(reading)["b"].initializer == init.zeros
    drawn = jaxinit.advise(reading).plan().init(jax.random.key(0))
    assert "forget-gate-bias" not in {f.code for f in jaxinit.audit(reading, drawn).findings}


def joined(p, c, h, x):
    """Each gate has arrays of its own, which the model lays side by side."""
    side = {k: jnp.concatenate([p[k][n] for n in "ifgo"], -1) for k in ("x", "h", "b")}
    i, f, g, o = jnp.split(x @ side["x"] + h @ side["h"] + side["b"], 4, -1)
    c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
    return c, jax.nn.sigmoid(o) * jnp.tanh(c)


def one_sigmoid(p, c, h, x):
    """The sigmoids of all gates at once, cut behind."""
    made = x @ p["x"] + h @ p["h"] + p["b"]
    i, f, o = jnp.split(jax.nn.sigmoid(made[:, :12]), 3, -1)
    c = f * c + i * jnp.tanh(made[:, 12:])
    return c, o * jnp.tanh(c)


@pytest.mark.parametrize("cell", [joined, one_sigmoid])
def test_only_the_forget_gate_of_a_cell_starts_open(cell):
    def model(p, xs):
        def step(state, x):
            state = cell(p, *state, x)
            return state, state[1]

        return jax.lax.scan(step, (jnp.zeros((2, 4)),) * 2, xs)[1] @ p["out"]

    whole = {"x": (3, 16), "h": (4, 16), "b": (16,)}
    each = {k: {n: (*s[:-1], 4) for n in "ifgo"} for k, s in whole.items()}
    shapes = (each if cell is joined else whole) | {"out": (4, 3)}
    reading = models.read(model, shapes, struct(5, 2, 3))
    drawn = jaxinit.advise(reading).plan().init(jax.random.key(0))
    found = np.concatenate([drawn[f"b/{n}"] for n in "ifgo"]) if cell is joined else drawn["b"]
    assert found.reshape(4, 4).tolist() == [[0] * 4, [1] * 4, [0] * 4, [0] * 4]
    zero = {path: x if path[0] != "b" else 0 * x for path, x in drawn.items()}
    (finding,) = [f for f in jaxinit.audit(reading, zero).findings if f.code == "forget-gate-bias"]
    assert finding.leaves == (("b/f",) if cell is joined else ("b",))


# Routers.


def mixture(p, x):
    share = jax.nn.softmax(x @ p["it"])
    hidden = jax.nn.relu(jnp.einsum("bd,edf->bef", x, p["up"]))
    return jnp.einsum("be,bef,efk->bk", share, hidden, p["down"])


def listed(p, x):
    share = jax.nn.softmax(x @ p["it"])
    return sum(share[:, i : i + 1] * (x @ p["up"][i]) for i in range(4)) @ p["out"]


def latents(p, x):
    q = norm(p["latents"]) @ p["it"]
    return attend(q, x @ p["k"], x @ p["v"]) @ p["out"]


def spline(p, x):
    h = jax.nn.relu(x[:, :4] @ p["w"]) @ p["it"]
    widths = jax.nn.softmax(h.reshape(4, 4, 5))
    left = jnp.cumsum(widths, -1) - widths
    place = jnp.argmax((x[:, 4:, None] >= left) * jnp.arange(5), -1)[..., None]
    at = jnp.take_along_axis(left, place, -1)[..., 0]
    width = jnp.take_along_axis(widths, place, -1)[..., 0]
    y = (x[:, 4:] - at) / width
    return jnp.concatenate([x[:, :4], y * y * width], -1)


ROUTERS = {
    "router": (mixture, {"it": (8, 4), "up": (4, 8, 6), "down": (4, 6, 3)}, True),
    "router of a list": (listed, {"it": (8, 4), "up": (4, 8, 6), "out": (6, 3)}, True),
    "queries of latents": (
        latents, {"latents": (5, 8), "it": (8, 6), "k": (8, 6), "v": (8, 6), "out": (6, 3)}, False,
    ),
    "head of a spline flow": (spline, {"w": (4, 6), "it": (6, 20)}, False),
}  # fmt: skip


@pytest.mark.parametrize("name", ROUTERS)
def test_a_router_weighs_what_other_layers_make(name):
    function, shapes, is_router = ROUTERS[name]
    args = [struct(2, 7, 8)] if "latents" in shapes else [X]
    found = roles(function, shapes, *args)
    assert (found["it"][0] == "router") == is_router
    assert not any("router" in each for path, each in found.items() if path != "it")


def test_a_sign_bit_chooses_nothing():
    def model(p, x):
        h = x @ p["w"] + p["b"]
        s = 1 - 2 * jnp.signbit(h)
        return ((s * h) + jnp.log1p(jnp.exp(-2 * s * h))).sum(-1)

    assert "index" not in roles(model, {"w": (8, 6), "b": (6,)}, X)["w"]


# Couplings of flows.


def real_nvp(p, x):
    """Halves that lie side by side take turns."""
    a, b = jnp.split(x, 2, -1)
    for layer in p:
        h = jax.nn.relu(a @ layer["in"]) @ layer["out"]
        scale, shift = jnp.split(h, 2, -1)
        a, b = b * jnp.exp(jnp.tanh(scale)) + shift, a
    return jnp.concatenate([a, b], -1)


def masked_flow(p, x):
    """Entries that a mask leaves out are moved; scale and shift have layers of their own."""
    mask = jnp.arange(8)[None] % 2
    for layer in p:
        h = jax.nn.tanh((x * mask) @ layer["in"])
        x = x * mask + (1 - mask) * (h @ layer["shift"] + jnp.exp(h @ layer["out"]) * x)
        mask = 1 - mask
    return x


def inverse_flow(p, x):
    """From data to noise: the shift is taken away first."""
    a, b = jnp.split(x, 2, -1)
    for layer in p:
        h = jax.nn.relu(a @ layer["in"]) @ layer["out"]
        scale, shift = jnp.split(h, 2, -1)
        a, b = (b - shift) * jnp.exp(-scale), a
    return jnp.concatenate([a, b], -1)


@pytest.mark.parametrize(
    "flow, ends, shapes",
    [
        (real_nvp, ["out"], {"in": (4, 16), "out": (16, 8)}),
        (inverse_flow, ["out"], {"in": (4, 16), "out": (16, 8)}),
        (masked_flow, ["out", "shift"], {"in": (8, 16), "out": (16, 8), "shift": (16, 8)}),
    ],
)
def test_a_flow_starts_as_the_identity(flow, ends, shapes):
    reading = models.read(flow, [shapes] * 6, X)
    advice = jaxinit.advise(reading)
    zero = {p.path for p in advice if p.initializer == jaxinit.initializers.zeros}
    assert zero == {f"{block}/{end}" for block in range(6) for end in ends}
    assert advice.predict().outputs[0] == pytest.approx((1.0, 1.0), rel=1e-6)
    tree = {p.path: struct(*p.shape) for p in reading}
    params = jaxinit.plan(tree, advice.rules()).init(jax.random.key(0))
    assert not [f for f in jaxinit.audit(reading, params).findings if f.is_at_least("warning")]


def test_a_sample_of_a_normal_law_is_no_coupling():
    def autoencoder(p, x, noise):
        h = jax.nn.relu(x @ p["in"])
        code = h @ p["mean"] + jnp.exp(0.5 * (h @ p["log_variance"])) * noise
        return code @ p["out"]

    shapes = {"in": (8, 16), "mean": (16, 4), "log_variance": (16, 4), "out": (4, 8)}
    found = roles(autoencoder, shapes, X, struct(4, 4))
    assert not any("coupling" in each for each in found.values())


# Tables, tokens and positions.


def test_tables_tokens_and_biases_of_scores():
    buckets = np.abs(np.subtract.outer(np.arange(5), np.arange(5)))

    def model(p, t):
        x = p["table"][t] + p["position"][:5]
        x = jnp.concatenate([jnp.broadcast_to(p["token"], (2, 1, 6)), x], 1)[:, :5]
        h = norm(x)
        scores = (h @ p["q"]) @ jnp.swapaxes(h @ p["k"], -1, -2) + p["relative"][buckets]
        return norm(x + jax.nn.softmax(scores) @ (h @ p["v"])) @ p["out"]

    square = {name: (6, 6) for name in "qkv"}
    shapes = {
        "table": (11, 6), "position": (9, 6), "token": (1, 1, 6), "relative": (5,), **square,
        "out": (6, 3),
    }  # fmt: skip
    found = roles(model, shapes, struct(2, 5, dtype="int32"))
    assert found["table"][0] == "table" and found["token"][0] == "token"
    assert found["position"][0] == "position"
    assert found["relative"] == ("score_bias", "bias")


@pytest.mark.parametrize("kind", ["pre", "post", "none"])
def test_whether_a_norm_lies_behind_a_table(kind):
    def model(p, t):
        x = p["table"][t]
        h = norm(x) if kind == "pre" else x
        x = x + jax.nn.relu(h @ p["up"]) @ p["down"]
        return (norm(x) if kind == "post" else x) @ p["out"]

    shapes = {"table": (11, 6), "up": (6, 7), "down": (7, 6), "out": (6, 3)}
    model = facts(model, shapes, struct(2, 5, dtype="int32"))
    (table,) = [p for p in model.parameters if p.path == "table"]
    is_met = table.after.normalisation is not None
    assert (is_met, model.norm_after) == (kind == "pre", kind == "post")


@pytest.mark.parametrize(("stride", "bent"), [(4, False), (2, False), (4, True)])
def test_patches_lie_side_by_side_and_meet_no_activation(stride, bent):
    def model(p, x):
        dims = ("NHWC", "HWIO", "NHWC")
        x = jax.lax.conv_general_dilated(x, p["w"], (stride,) * 2, "VALID", dimension_numbers=dims)
        return (jax.nn.relu(x) if bent else x).mean((1, 2)) @ p["out"]

    model = facts(model, {"w": (4, 4, 3, 6), "out": (6, 2)}, struct(2, 8, 8, 3))
    assert model.begins_with_patches == (stride == 4 and not bent)


@pytest.mark.parametrize("place", ["none", "table", "head"])
def test_branches_are_full_where_a_tied_table_fills_the_stream(place):
    """Its logit for the token itself is sqrt(d) times its share of the stream: 8 / sqrt 2 of 8.

    GPT-2's table of d^-1/2 is a small share; Gemma multiplies it by sqrt(d), T5 the logits by less.
    """

    def model(p, t):
        x = p["table"][t] * (8 if place == "table" else 1)
        for block in p["blocks"]:
            h = norm(x)
            x = x + attend(h @ block["q"], h @ block["k"], h @ block["v"]) @ block["o"]
            x = x + jax.nn.relu(norm(x) @ block["up"]) @ block["down"]
        return norm(x) * (1 / 8 if place == "head" else 1) @ p["table"].T

    block = {name: (64, 64) for name in ("q", "k", "v", "o", "up", "down")}
    shapes = {"table": (99, 64), "blocks": [block] * 2}
    reading = models.read(model, shapes, struct(2, 5, dtype="int32"))
    advice = jaxinit.advise(reading)
    small = init.variance_scaling(0.25, "fan_in", "truncated_normal")
    ends = {advice[f"blocks/{n}/{out}"].initializer for n in (0, 1) for out in ("o", "down")}
    assert ends == {small if place == "none" else init.lecun_normal()}
    assert ("token itself" in advice["blocks/0/o"].reason) == (place != "none")
    drawn = advice.plan().init(jax.random.key(0))
    assert jaxinit.audit(reading, drawn).severity in (None, "info")


def test_a_head_says_that_the_loss_is_not_judged():
    reading = models.read(lambda p, x: jax.nn.relu(x @ p["w"]) @ p["out"], KERNELS, X)
    assert "not judged: the loss. For a squared error draw zeros" in (
        jaxinit.advise(reading)["out"].reason
    )


def test_where_a_weight_is_divided_the_rate_is_not_judged():
    def pooled(p, x):
        return jax.nn.relu((x @ p["w"]).sum(1)) @ p["out"]

    def unscaled(p, x):
        scores = (x @ p["q"]) @ jnp.swapaxes(x @ p["k"], -1, -2)
        return jax.nn.softmax(scores) @ (x @ p["v"]) @ p["out"]

    advice = jaxinit.advise(models.read(pooled, KERNELS, struct(4, 9, 8)))
    assert "divided by 3, for what the model multiplies beside it; not judged: the rate" in (
        advice["w"].reason
    )
    assert "rate" not in advice["out"].reason
    shapes = {**{name: (64, 64) for name in "qkv"}, "out": (64, 3)}
    advice = jaxinit.advise(models.read(unscaled, shapes, struct(2, 5, 64)))
    assert "divided by" in advice["q"].reason and "rate" not in advice["q"].reason
