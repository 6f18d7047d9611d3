"""Predicted second moments: exact where theory is exact, beside measurement where it is not.

A network of width n and depth L strays from the mean over draws by a factor of about
exp(sqrt(5 L / n)), since the log of the last second moment has variance 5 L / n (Hanin and Rolnick,
*How to start training*, 2018, theorem 5); so the measured mean of D draws strays by that root over
sqrt(D), and five of these is the tolerance here.
"""

from __future__ import annotations

import itertools
import json
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxinit
from helpers import slow
from jaxinit import initializers as init
from jaxinit import predict
from jaxinit.report.gpt2 import GPT2Config, gpt2, gpt2_rules
from jaxinit.signal import _tables as tables
from zoo.expect import array

pytestmark = pytest.mark.unoptimized


def predicted(function, laws, *xs, **options):
    """Prediction of ``function(parameters, *xs)``, the laws by name as (shape, mean, variance)."""
    shapes = {name: array(*shape) for name, (shape, _, _) in laws.items()}
    reading = jaxinit.read(function, shapes, *xs)
    return predict(reading, {name: law[1:] for name, law in laws.items()}, **options)


def forward(function, *, variance=1.0, width=64, **options):
    """Interval of ``f(x) @ w / width`` second moments: E f**2 of a standard normal input."""
    found = predicted(
        lambda p, x: function(x) @ p["w"],
        {"w": ((width, 8), 0.0, variance / width)},
        array(4, width),
        **options,
    )
    return found.layers[0].forward


def stray(depth, width, draws):
    return math.exp(5 * math.sqrt(5 * depth / width / draws))


def check(prediction, factor):
    assert prediction.layers
    for record in prediction.layers:
        assert record.holds(factor), (factor, str(prediction))


def mlp(depth, width, activation, rules, batch=8):
    shapes = {f"l{i}": {"kernel": array(width, width), "bias": array(width)} for i in range(depth)}

    def apply(p, x):
        for i in range(depth):
            x = (activation(x) if i else x) @ p[f"l{i}"]["kernel"] + p[f"l{i}"]["bias"][None]
        return x

    reading = jaxinit.read(apply, shapes, array(batch, width))
    return reading, jaxinit.plan(shapes, rules)


def kernels(variance, bias=0.0):
    kernel = init.variance_scaling(variance, "fan_in", "normal")
    return [
        ("**/kernel", kernel),
        ("**/bias", init.normal(math.sqrt(bias)) if bias else init.zeros),
    ]


# One layer.


@pytest.mark.parametrize(
    ("function", "second"),
    [
        (lambda x: x, 1.0),
        (jax.nn.relu, 0.5),
        (jnp.tanh, 0.39429449),
        (jax.nn.silu, 0.35577552),
        (lambda x: jax.nn.gelu(x, approximate=False), 0.42522148),
        (jax.nn.gelu, 0.42519371),
        (jax.nn.softplus, 0.92124591),
        (jax.nn.elu, 0.64494542),
        (lambda x: jax.nn.leaky_relu(x, 0.2), 0.52),
        (lambda x: jax.nn.relu(x) ** 2, 1.5),
        (jnp.sin, 0.43233236),
    ],
)
def test_an_activation_is_integrated_whole(function, second):
    """E f(z)**2, by a quadrature apart; a product of independents would give silu 0.293."""
    low, high = forward(function)
    assert low == high
    assert low == pytest.approx(second, rel=1e-4)


def test_a_gate_is_a_product_of_independents():
    laws = {name: ((64, 64), 0.0, 1 / 64) for name in "abc"}
    found = predicted(
        lambda p, x: (jax.nn.silu(x @ p["a"]) * (x @ p["b"])) @ p["c"], laws, array(4, 64)
    )
    assert found["c"][0].forward == pytest.approx((0.35577552,) * 2, rel=1e-4)


def test_slices_of_one_layer_are_independent_and_the_same_slice_is_the_same():
    laws = {"a": ((64, 128), 0.0, 1 / 64), "c": ((64, 64), 0.0, 1 / 64)}

    def gated(p, x):
        h = x @ p["a"]
        return (h[:, :64] * h[:, 64:]) @ p["c"]

    def squared(p, x):
        h = x @ p["a"]
        return (h[:, :64] * h[:, :64]) @ p["c"]

    assert predicted(gated, laws, array(4, 64))["c"][0].forward == pytest.approx((1, 1), rel=1e-4)
    assert predicted(squared, laws, array(4, 64))["c"][0].forward == pytest.approx((3, 3), rel=1e-4)


def test_weights_with_a_mean_add_the_pairs():
    """E (sum w x)**2 = n E w**2 E x**2 + n (n - 1) (E w E x)**2."""
    found = predicted(
        lambda p, x: x @ p["w"],
        {"w": ((64, 8), 0.5, 0.01)},
        array(4, 64),
        inputs=[(2.0, 5.0)],
    )
    expected = 64 * (0.25 + 0.01) * 5.0 + 64 * 63 * (0.5 * 2.0) ** 2
    assert found.layers[0].forward == pytest.approx((expected, expected), rel=1e-6)


def test_padding_is_not_counted():
    """3 taps of width 4: two of the four positions sum one tap less."""
    kernel = init.variance_scaling(1.0, "fan_in", "normal")
    shapes = {"k": array(3, 16, 8)}

    def apply(p, x):
        return jax.lax.conv_general_dilated(
            x, p["k"], (1,), "SAME", dimension_numbers=("NHC", "HIO", "NHC")
        )

    reading = jaxinit.read(apply, shapes, array(2, 4, 16))
    found = predict(reading, jaxinit.plan(shapes, [("k", kernel)]))
    assert found.layers[0].forward == pytest.approx((10 / 12, 10 / 12), rel=1e-6)


def test_gradient_of_a_chain():
    """Fan_out times variance times E f'**2, from unit variance at the output."""
    laws = {"a": ((32, 64), 0.0, 1 / 32), "b": ((64, 48), 0.0, 2 / 64)}
    found = predicted(lambda p, x: jnp.tanh(x @ p["a"]) @ p["b"], laws, array(4, 32))
    assert found["b"][0].backward == (1.0, 1.0)
    slope = 1 / 1.46741359**2
    assert found["a"][0].backward == pytest.approx((48 * 2 / 64 * slope,) * 2, rel=1e-4)


def test_a_skip_adds_its_slope_with_its_sign():
    """x - x has no gradient, x + x four times that of x: slopes add before they are squared."""
    laws = {"a": ((32, 64), 0.0, 1 / 32)}
    doubled = predicted(lambda p, x: (lambda h: h + h)(x @ p["a"]), laws, array(4, 32))
    assert doubled["a"][0].backward == pytest.approx((4.0, 4.0))
    gone = predicted(lambda p, x: (lambda h: h - h)(x @ p["a"]), laws, array(4, 32))
    assert gone["a"][0].backward == pytest.approx((0.0, 0.0))


# Normalisation, attention, loops.


def over_units(x):
    return x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True))


def over_samples(x):
    return over_units((x - x.mean(0, keepdims=True)).T).T


@pytest.mark.parametrize("layer", [nn.LayerNorm, nn.RMSNorm, lambda: nn.GroupNorm(4)])
@pytest.mark.parametrize("size", [0.1, 30.0])
def test_normalisation_sets_the_second_moment_and_divides_the_gradient(layer, size):
    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.Dense(64, use_bias=False)(x)
            return nn.Dense(64, use_bias=False)(layer()(x))

    found, _ = _predict(Model(), array(4, 64), first=size)
    assert found.layers[1].forward == pytest.approx((1.0, 1.0), rel=1e-3)
    terms = 16 if found.layers[0].backward[0] * size > 1.03 else 64
    expected = (1 + 1 / terms) / size
    # The epsilon beside the smallest spread is 1e-6 of 0.1; the next order is 2 / terms**2.
    assert found.layers[0].backward == pytest.approx((expected,) * 2, rel=3 / terms**2 + 2e-5)


@pytest.mark.parametrize(
    ("function", "lost"),
    [(over_units, 1), (lambda x: over_units(x - x.mean(-1, keepdims=True)), 2), (over_samples, 2)],
)
def test_gradient_through_mean_and_spread(function, lost):
    """Of 16 normal numbers: E 1/s = 16 / (15 - lost), and ``lost`` of 16 directions are gone.

    A relative error of 5 / sqrt(4000 * 16), times 2 for the law of the spread.
    """

    def gradient(key):
        x = jax.random.normal(key, (16, 16))
        back = jax.vjp(function, x)[1](jax.random.normal(jax.random.fold_in(key, 1), x.shape))
        return jnp.mean(back[0] ** 2)

    keys = jax.random.split(jax.random.key(0), 250)
    measured = float(jnp.mean(jax.vmap(gradient)(keys)))
    assert measured == pytest.approx((16 - lost) / (15 - lost), rel=0.04)
    laws = {"w": ((64, 16), 0.0, 1 / 64)}
    found = predicted(lambda p, x: function(x @ p["w"]), laws, array(16, 64))
    assert found.layers[0].backward == pytest.approx((measured,) * 2, rel=0.04)
    assert found.outputs[0] == pytest.approx((1.0, 1.0), rel=1e-3)


def _predict(model, x, first=1.0, **options):
    shapes = jax.eval_shape(model.init, jax.random.key(0), x)
    reading = jaxinit.read(lambda v, x: model.apply(v, x), shapes, x)
    rules = [
        ("**/Dense_0/kernel", init.variance_scaling(first, "fan_in", "normal")),
        ("**/kernel", init.lecun_normal()),
        ("**/scale", init.ones),
        ("**/bias", init.zeros),
    ]
    paths = jaxinit.plan(shapes, [("**", init.zeros)]).paths
    used = [r for r in rules if any(p.endswith(r[0].rpartition("**/")[2]) for p in paths)]
    return predict(reading, jaxinit.plan(shapes, used), **options), reading


def test_what_cannot_be_followed_is_an_interval_until_the_next_normalisation():
    laws = {name: ((64, 64), 0.0, 1 / 64) for name in "abc"}

    def apply(p, x):
        h = jnp.cumprod(x @ p["a"], axis=1) @ p["b"]
        h = h * jax.lax.rsqrt(jnp.mean(h * h, -1, keepdims=True))
        return h @ p["c"]

    found = predicted(apply, laws, array(4, 64))
    a, b, c = found.layers
    assert a.forward == pytest.approx((1.0, 1.0)) and a.backward == (0.0, math.inf)
    assert b.forward == (0.0, math.inf) and "cumprod" in str(b.why)
    assert c.forward == pytest.approx((1.0, 1.0)) and c.backward == (1.0, 1.0)
    # A near twin that can be followed.
    followed = predicted(lambda p, x: (x @ p["a"]) @ p["b"] @ p["c"], laws, array(4, 64))
    assert all(m.why is None and math.isfinite(m.backward[1]) for m in followed.layers)


def test_attention_is_between_equal_weights_and_one_key():
    laws = {name: ((64, 64), 0.0, 1 / 64) for name in "kqvo"}

    def apply(p, x, scale):
        q, k, v = (x @ p[name] for name in "qkv")
        logits = scale * jnp.einsum("bqd,bkd->bqk", q, k)
        return jnp.einsum("bqk,bkd->bqd", jax.nn.softmax(logits), v) @ p["o"]

    def interval(scale):
        return predicted(lambda p, x: apply(p, x, scale), laws, array(2, 16, 64))["o"][0].forward

    # Independent positions: equal weights average 16 values.
    assert interval(1e-4) == pytest.approx((1 / 16, 1 / 16), rel=1e-2)
    low, high = interval(1 / 8)
    assert low == pytest.approx(1 / 16, rel=1e-2) and 1.5 / 16 < high < 1
    assert interval(10.0)[1] > 0.9


@pytest.mark.parametrize("pooled", [True, False])
def test_gradients_that_queries_share_add_up_in_keys(pooled):
    """A mean over positions gives all queries one gradient; without it the two sides are equal."""

    def apply(p, x):
        q, k, v = (x @ p[name] for name in "qkv")
        weights = jax.nn.softmax(jnp.einsum("bqd,bkd->bqk", q, k) / 8)
        h = jnp.einsum("bqk,bkd->bqd", weights, v) @ p["o"]
        return h.mean(1) if pooled else h

    shapes = {name: array(64, 64) for name in "kqvo"}
    reading = jaxinit.read(apply, shapes, array(8, 16, 64))
    plan = jaxinit.plan(shapes, [("*", init.lecun_normal())])
    # Second moment over square of the mean, 4: positions whose correlation is 3/4.
    found = predict(reading, plan, inputs=[(1.0, 4 / 3)], measure=True, draws=3)
    query, key = (found[name][0] for name in "qk")
    assert (key.backward[1] > 2 * query.backward[0]) == pooled
    if pooled:
        assert key.measured_backward > 2 * query.measured_backward
        assert key.backward[0] / 1.5 < key.measured_backward < 1.5 * key.backward[1]


@pytest.mark.slow
def test_units_that_a_layer_gave_a_part_in_common():
    """Tokens are units of one layer of a mixer and positions of the next: their mean is between."""

    class Mixer(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.Dense(64)(x)
            y = nn.LayerNorm()(x).swapaxes(1, 2)
            y = nn.Dense(16)(nn.gelu(nn.Dense(64)(y)))
            x = x + y.swapaxes(1, 2)
            x = x + nn.Dense(64)(nn.gelu(nn.Dense(128)(nn.LayerNorm()(x))))
            return nn.Dense(8)(nn.LayerNorm()(x).mean(1))

    found, _ = _predict(Mixer(), array(8, 16, 48), measure=True, draws=4)
    head = found["params/Dense_5/kernel"][0]
    assert head.holds(1.2) and head.forward[1] > 1.5 * head.forward[0]
    # A near twin: units of one layer alone.
    laws = {"a": ((64, 64), 0.0, 1 / 64), "head": ((64, 8), 0.0, 1 / 64)}
    twin = predicted(lambda p, x: (x @ p["a"]).mean(1) @ p["head"], laws, array(8, 16, 64))
    assert twin["head"][0].forward == pytest.approx((1 / 16, 1 / 16), rel=1e-3)


def test_a_scan_is_walked_round_by_round():
    def looped(p, x):
        return jax.lax.scan(lambda h, w: (jax.nn.relu(h @ w), None), x, p["w"])[0]

    def unrolled(p, x):
        for layer in range(3):
            x = jax.nn.relu(x @ p["w"][layer])
        return x

    laws = {"w": ((3, 64, 64), 0.0, 1 / 64)}
    loop, chain = (predicted(f, laws, array(4, 64)) for f in (looped, unrolled))
    assert [m.rounds for m in loop.layers] == [(0,), (1,), (2,)]
    assert [m.forward[0] for m in loop.layers] == pytest.approx([1, 0.5, 0.25], rel=1e-4)
    for one, other in zip(loop.layers, chain.layers, strict=True):
        assert one.forward == pytest.approx(other.forward)
        assert one.backward == pytest.approx(other.backward)


class Recurrent(nn.Module):
    """A loop over time, of which all rounds are used or only the last."""

    cell: type[nn.RNNCellBase]
    only_last: bool
    normalised: bool = False

    @nn.compact
    def __call__(self, x):
        h = nn.RNN(self.cell(64))(x)
        h = nn.LayerNorm()(h) if self.normalised else h
        return nn.Dense(48)(h[:, -1] if self.only_last else h)


@pytest.mark.parametrize("cell", [nn.SimpleCell, *slow(nn.GRUCell, nn.LSTMCell)])
def test_gradients_of_the_last_round_go_there_and_back_through_time(cell):
    found, _ = _predict(Recurrent(cell, True), array(8, 4, 64), measure=True, draws=4)
    # Where all rounds are used, all get about the same.
    twin, _ = _predict(Recurrent(cell, False), array(8, 4, 64), measure=True, draws=4)
    check(found, 1.5)
    check(twin, 1.5)
    path = found.layers[0].path
    last, even = (max(m.backward[1] for m in p[path]) for p in (found, twin))
    first, near = (p[path][1].backward[0] for p in (found, twin))
    assert last / first > 2 * even / near


def gru(p, h, x):
    """A gated cell written by hand; Equinox writes the last line like this, Flax multiplied out."""
    a, b = jnp.split(x @ p["w"], 3, -1), jnp.split(h @ p["u"], 3, -1)
    r, z = jax.nn.sigmoid(a[0] + b[0]), jax.nn.sigmoid(a[1] + b[1])
    n = jnp.tanh(a[2] + r * b[2])
    return n + z * (h - n)


def gru_multiplied_out(p, h, x):
    a, b = jnp.split(x @ p["w"], 3, -1), jnp.split(h @ p["u"], 3, -1)
    r, z = jax.nn.sigmoid(a[0] + b[0]), jax.nn.sigmoid(a[1] + b[1])
    return (1 - z) * jnp.tanh(a[2] + r * b[2]) + z * h


def rounds(cell, length, apart=False, **options):
    """Prediction of so many rounds of a cell, with the same weights or weights apart."""
    names = [f"{k}{i}" for i in range(length) for k in "wu"] if apart else ["w", "u"]
    shapes = {name: array(64, 192) for name in names} | {"o": array(64, 8)}

    def apply(p, x):
        h = jnp.zeros((x.shape[0], 64))
        for i in range(length):
            own = {k: p[f"{k}{i}"] for k in "wu"} if apart else p
            h = cell(own, h, x[:, i])
        return h @ p["o"]

    reading = jaxinit.read(apply, shapes, array(8, length, 64))
    return predict(reading, jaxinit.plan(shapes, [("*", init.lecun_normal())]), **options)


def test_a_gate_between_a_state_and_what_is_new_is_exact():
    """n + z (h - n) and (1 - z) n + z h are the same, and so are their predictions."""
    one, other = (rounds(cell, 3, apart=True) for cell in (gru, gru_multiplied_out))
    for a, b in zip(one.layers, other.layers, strict=True):
        assert a.forward == pytest.approx(b.forward, rel=1e-6) and a.forward[0] == a.forward[1]
        assert a.backward == pytest.approx(b.backward, rel=1e-6)
        assert a.backward[1] == pytest.approx(a.backward[0], rel=1e-6)
    measured = rounds(gru, 3, apart=True, measure=True, draws=4)
    check(measured, stray(3, 64, 4))


@pytest.mark.slow
@pytest.mark.parametrize("cell", [gru, gru_multiplied_out])
def test_gates_of_the_same_weights_may_stay_open(cell):
    """Between independent rounds and one gate in all: both sides of what is measured."""
    found = rounds(cell, 8, measure=True, draws=4)
    check(found, 1.4)
    last, first = found["w"][-1].backward, found["w"][0].backward
    assert last[0] == pytest.approx(last[1]) and 10 < first[1] / first[0] < 1000


def test_a_round_that_cannot_be_told_apart_is_an_interval():
    """A normalisation lies between the rounds and the slice of one: each may get all, or none."""
    x = array(8, 4, 64)
    found, _ = _predict(Recurrent(nn.SimpleCell, True, True), x, measure=True, draws=4)
    twin, _ = _predict(Recurrent(nn.SimpleCell, False, True), x, measure=True, draws=4)
    check(found, 1.5)
    check(twin, 1.5)
    assert found.layers[0].backward[0] == 0.0 < found.layers[0].backward[1]
    assert all(m.backward[0] == pytest.approx(m.backward[1]) for m in twin.layers)


@pytest.mark.parametrize(
    "pick",
    [
        lambda h: h[2],
        lambda h: h[::-1][0],
        lambda h: jnp.moveaxis(h, 0, 1)[:, 2],
        lambda h: h.reshape(3, 4, 8, 8)[2].reshape(4, 64),
        lambda h: jnp.split(2 * h, 3)[2][0] / 2,
        lambda h: jax.lax.dynamic_index_in_dim(h, 2, 0, keepdims=False),
        lambda h: jax.lax.fori_loop(
            0,
            3,
            lambda i, out: jax.lax.dynamic_update_index_in_dim(out, h[i], i, 0),
            jnp.zeros((3, 4, 64)),
        )[2],
    ],
)
def test_a_slice_of_a_stack_is_one_round(pick):
    laws = {"w": ((64, 64), 0.0, 0.5 / 64)}

    def apply(p, x):
        def step(h, _):
            h = h @ p["w"]
            return h, h

        return pick(jax.lax.scan(step, x, None, length=3)[1])

    found = predicted(apply, laws, array(4, 64))
    assert found.outputs[0] == pytest.approx((1 / 8, 1 / 8), rel=1e-4)
    assert [m.backward[1] for m in found.layers] == pytest.approx([1 / 4, 1 / 2, 1], rel=1e-4)


# Copies along positions.


def conditioned(combine, then=lambda h: h):
    """Backward of a layer whose output is copied to 16 positions, predicted and measured."""
    shapes = {name: array(64, 64) for name in "atb"}

    def apply(p, x, t):
        return then(combine(x @ p["a"], (t @ p["t"])[:, None])) @ p["b"]

    reading = jaxinit.read(apply, shapes, array(4, 16, 64), array(4, 64))
    plan = jaxinit.plan(shapes, [("*", init.lecun_normal())])
    return predict(reading, plan, measure=True, draws=4)


@pytest.mark.parametrize(
    ("combine", "then", "low", "high"),
    [
        (lambda h, t: h + t, lambda h: h, 16, 16),
        (lambda h, t: h + jnp.broadcast_to(t, h.shape), lambda h: h, 16, 16),
        (lambda h, t: h * (1 + t), lambda h: h, 16, 16),
        # A mean gives all positions one gradient, of (1 / 16)**2.
        (lambda h, t: h + t, lambda h: h.mean(1), 1, 1),
        # The factor h is another at every position.
        (lambda h, t: h * (1 + t), lambda h: h.mean(1), 1 / 16, 1 / 16),
        # relu' of positions that are correlated by 1/2 are both 1 one time in three.
        (lambda h, t: jax.nn.relu(h + t), lambda h: h.mean(1), 11 / 32, 11 / 32),
    ],
    ids=["sum", "broadcast", "film", "mean", "film-mean", "relu-mean"],
)
def test_gradients_of_copies_add_up(combine, then, low, high):
    """n for independent gradients, n**2 for one that all copies share."""
    found = conditioned(combine, then)
    # What a step has beyond the 24th order counts as alike: 4 %.
    assert found["t"][0].backward == pytest.approx((low, high), rel=5e-2)
    check(found, 1.3)


def test_what_copies_share_is_not_averaged_away():
    """Of the mean over 16 positions of h + t, t is the larger part: between 2/16 and 17/16."""
    found = conditioned(lambda h, t: h + t, lambda h: h.mean(1))["b"][0]
    assert found.forward == pytest.approx((2 / 16, 17 / 16), rel=1e-3)
    assert found.measured_forward == pytest.approx(17 / 16, rel=0.2)
    # A near twin: another number at every position.
    laws = {"a": ((64, 64), 0.0, 1 / 64), "b": ((64, 64), 0.0, 1 / 64)}
    twin = predicted(lambda p, x: (x @ p["a"]).mean(1) @ p["b"], laws, array(4, 16, 64))
    assert twin["b"][0].forward == pytest.approx((1 / 16, 1 / 16), rel=1e-3)


def test_a_mean_over_positions_takes_what_copies_add_up():
    """Normalised over positions alone nothing of it is left, with 4 units beside about 3/4."""

    def normalised(axes):
        def norm(h):
            h = h.reshape(4, 16, 16, 4)
            h = h - h.mean(axes, keepdims=True)
            h = h * jax.lax.rsqrt(jnp.mean(h * h, axes, keepdims=True))
            return h.reshape(4, 16, 64)

        return conditioned(lambda h, t: h + t, norm)["t"][0]

    alone, group = normalised(1), normalised((1, 3))
    assert alone.backward[0] == pytest.approx(0.0, abs=1e-9) and alone.measured_backward < 1e-6
    assert 0.2 * group.backward[1] < group.backward[0] < group.measured_backward * 1.2
    assert group.measured_backward < 1.2 * group.backward[1]


def test_a_table_of_positions_behind_a_layer_is_read_by_all_samples():
    shapes = {
        "a": array(64, 64),
        "p": array(64, 64),
        "positions": array(16, 64),
        "b": array(64, 64),
    }

    def apply(p, x):
        return (x @ p["a"] + (p["positions"] @ p["p"])[None]) @ p["b"]

    reading = jaxinit.read(apply, shapes, array(4, 16, 64))
    rules = [("positions", init.normal(1.0)), ("*", init.lecun_normal())]
    found = predict(reading, jaxinit.plan(shapes, rules), measure=True, draws=2)
    table = next(m for m in found.layers if "positions" in m.path)
    assert table.backward == pytest.approx((4.0, 4.0), rel=1e-3)
    check(found, 1.3)


# Integers of the data.


def test_kernels_that_an_index_chooses_are_layers():
    laws = {
        "router": ((64, 4), 0.0, 1 / 64),
        "wi": ((4, 64, 96), 0.0, 2 / 64),
        "wo": ((4, 96, 64), 0.0, 1 / 96),
    }

    def apply(p, x):
        index = jnp.argmax(x @ p["router"], -1)
        h = jax.nn.relu(jnp.einsum("btd,btdf->btf", x, p["wi"][index]))
        return jnp.einsum("btf,btfd->btd", h, p["wo"][index])

    found = predicted(apply, laws, array(2, 8, 64))
    assert [m.path for m in found.layers] == ["router", "wi", "wo"]
    assert [m.forward[0] for m in found.layers] == pytest.approx([1, 2, 1], rel=1e-3)
    assert found["wi"][0].backward == pytest.approx((64 / 96 / 2,) * 2, rel=1e-3)
    assert found["router"][0].backward == (0.0, 0.0)


def test_rows_that_an_index_chooses_are_data():
    """A near twin: nothing is left of a row but positions, or the other side is a row as well."""
    laws = {"table": ((100, 64), 0.0, 1.0), "a": ((64, 64), 0.0, 1 / 64)}

    def apply(p, i, j):
        rows, query = p["table"][i] @ p["a"], p["table"][j]
        return jnp.einsum("btd,bd->bt", rows, query) + jnp.einsum(
            "bd,btd->bt", query, p["table"][i]
        )

    ids = array(4, 16, dtype=jnp.int32), array(4, dtype=jnp.int32)
    assert [m.path for m in predicted(apply, laws, *ids).layers] == ["a"]


@pytest.mark.parametrize("joined", [jnp.logical_or, jnp.logical_and])
def test_a_claim_that_nobody_knows_is_between_0_and_1(joined):
    laws = {name: ((64, 64), 0.0, 1 / 64) for name in "ab"}

    def apply(p, x, ids):
        bits = jax.random.bernoulli(jax.random.key(0), 0.5, ids.shape)
        return (x @ p["a"]) * joined(bits, ids > 0)[..., None] @ p["b"]

    found = predicted(apply, laws, array(4, 16, 64), array(4, 16, dtype=jnp.int32))
    assert found["b"][0].forward == (0.0, pytest.approx(1.0))
    assert found["a"][0].backward == (0.0, pytest.approx(1.0))
    assert found["b"][0].why is None


# Measured beside predicted.


@pytest.mark.parametrize(
    ("activation", "weight", "bias"),
    [(jax.nn.relu, 2.0, 0.0), (jnp.tanh, 1.05, 2.01052e-5), (jax.nn.silu, 1.988, 0.17)],
    ids=["relu", "tanh", "silu"],
)
def test_plain_networks(activation, weight, bias):
    depth, width, draws = 6, 128, 4
    reading, plan = mlp(depth, width, activation, kernels(weight, bias))
    check(predict(reading, plan, measure=True, draws=draws), stray(depth, width, draws))


def test_a_residual_network_without_normalisation():
    blocks, width, draws = 6, 128, 4
    names = [f"{k}{i}" for i in range(blocks) for k in "ab"]
    shapes = {name: array(width, width) for name in names}

    def apply(p, x):
        for i in range(blocks):
            x = x + jax.nn.relu(x @ p[f"a{i}"]) @ p[f"b{i}"]
        return x

    reading = jaxinit.read(apply, shapes, array(8, width))
    last = init.variance_scaling(1 / blocks, "fan_in", "normal")
    plan = jaxinit.plan(shapes, [("a*", init.he_normal()), ("b*", last)])
    found = predict(reading, plan, measure=True, draws=draws)
    growth = [m.forward[0] for m in found.layers if m.path.startswith("a")]
    assert growth == pytest.approx([2 * (1 + 1 / blocks) ** i for i in range(blocks)], rel=1e-3)
    check(found, stray(blocks, width, draws))


@pytest.mark.slow
def test_gpt2():
    config = GPT2Config(layers=2, width=128, heads=4, vocabulary=97, positions=32)
    model, ids = gpt2(config), array(2, 16, dtype=jnp.int32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), ids)
    reading = jaxinit.read(model.apply, shapes, ids)
    found = predict(reading, jaxinit.plan(shapes, gpt2_rules(config)), measure=True, draws=2)
    assert len(found.layers) == 4 * 2 + 1
    check(found, stray(4, 128, 2))


def test_a_wrong_law_does_not_hold():
    """Power: the same network, drawn with Xavier's variance, is outside of what He predicts."""
    reading, plan = mlp(6, 128, jax.nn.relu, kernels(1.0))
    _, he = mlp(6, 128, jax.nn.relu, kernels(2.0))
    laws = {leaf.path: leaf.law for leaf in he}
    expected = predict(reading, laws).layers
    drawn = predict(reading, plan, measure=True, draws=4).layers
    assert drawn[-1].measured_forward is not None
    assert drawn[-1].measured_forward * stray(6, 128, 4) < expected[-1].forward[0]


def test_a_tree_that_exists_is_measured_itself():
    tree = {"w": 3 * jax.random.normal(jax.random.key(0), (64, 32))}
    reading = jaxinit.read(lambda p, x: x @ p["w"], tree, array(256, 64))
    found = predict(reading, tree, measure=True, draws=2)
    (layer,) = found.layers
    assert layer.forward[0] == pytest.approx(64 * float(jnp.mean(tree["w"] ** 2)), rel=1e-4)
    assert layer.holds(1.1)


def test_a_mean_that_chance_explains_is_none():
    """Behind rectifiers, whose outputs have one sign, it would add up: here to a factor of 0.51.

    The second moment of 64 x 64 normals strays by sqrt(2 / 4096) = 2.2 %; 5 sigma over 8: 32 %.
    """
    reading, plan = mlp(8, 64, jax.nn.relu, kernels(1.0))
    drawn = predict(reading, plan.init(jax.random.key(8))).layers[-1].forward
    assert drawn == pytest.approx(predict(reading, plan).layers[-1].forward, rel=0.32)


def test_laws_are_matched_by_path():
    """A flat plan sorts hidden/10 before hidden/2, a list does not."""
    # Three shapes to compile for; hidden/2 and hidden/10 differ in theirs.
    widths = [64, 65, 66] * 4
    shapes = {"hidden": [array(n, m) for n, m in itertools.pairwise(widths)]}

    def apply(p, x):
        for kernel in p["hidden"]:
            x = x @ kernel
        return x

    reading = jaxinit.read(apply, shapes, array(4, 64))
    laws = {f"hidden/{i}": (0.0, (i + 1) / n) for i, n in enumerate(widths[:-1])}
    expected = [math.factorial(i + 1) for i in range(11)]
    for order in (laws, dict(sorted(laws.items()))):
        layers = predict(reading, order).layers
        assert [m.forward[0] for m in layers] == pytest.approx(expected, rel=1e-6)
    flat = jaxinit.advise(reading)
    nested = predict(reading, flat.plan(shapes), measure=True, draws=1)
    assert str(flat.predict(measure=True, draws=1)) == str(nested)


def test_initializers_laws_and_arrays_stand_in_one_tree():
    shapes = {"a": {"w": array(64, 64)}, "b": [array(64, 32), array(32, 8)]}
    reading = jaxinit.read(
        lambda p, x: x @ p["a"]["w"] @ p["b"][0] @ p["b"][1], shapes, array(4, 64)
    )
    law, held = init.lecun_normal(), jax.random.normal(jax.random.key(0), (64, 32)) / 8
    flat = {"a/w": law, "b/0": held, "b/1": law}
    nested = {"a": {"w": law}, "b": [held, law]}
    found = [predict(reading, drawn, measure=True, draws=8) for drawn in (flat, nested)]
    assert str(found[0]) == str(found[1])
    # Three layers at width 8 and more: 5 sigma of 8 draws.
    check(found[0], math.exp(5 * math.sqrt(5 * (1 / 64 + 1 / 32 + 1 / 8) / 8)))
    moments = predict(reading, {"a/w": (0.0, 1 / 64), "b/0": held, "b/1": (np.float32(0), 1 / 32)})
    for layer, same in zip(moments.layers, found[0].layers, strict=True):
        assert layer.forward == pytest.approx(same.forward, rel=1e-5)


def test_counters_and_random_keys_need_no_law():
    """What a Flax NNX model with dropout holds besides its parameters."""
    shapes = {
        "w": array(64, 64),
        "count": array(dtype=jnp.int32),
        "key": jax.eval_shape(jax.random.key, 0),
    }

    def apply(p, x):
        return jnp.where(jax.random.bernoulli(p["key"], 0.5, (4, 64)), x, 0.0) @ p["w"]

    reading = jaxinit.read(apply, shapes, array(4, 64))
    found = predict(reading, jaxinit.plan({"w": shapes["w"]}, [("w", init.lecun_normal())]))
    assert found["w"][0].forward == pytest.approx((0.5, 0.5), rel=1e-2)
    drawn = jaxinit.advise(reading).predict(measure=True, draws=2)["w"][0]
    assert drawn.measured_forward == pytest.approx(0.5, rel=0.5)


def test_it_prints_and_travels():
    laws = {"a": ((8, 8), 0.0, 1 / 8), "b": ((8, 8), 0.0, 1 / 8)}
    found = predicted(lambda p, x: jnp.cumprod(x @ p["a"]) @ p["b"], laws, array(8))
    assert "0 to inf" in str(found) and "measured" not in str(found)
    record = found.to_dict()
    assert json.loads(found.to_json()) == record
    assert record["layers"][1]["forward"] == [0.0, None]
    assert record["layers"][1]["path"] == "b"


# Tables.


def test_a_compressed_sum_of_normals_is_normal():
    a = tables.normal(np.zeros(2), np.array([1.0, 4.0]))
    joint = a[:, :, None] + 2 * a[:, None, :]
    table, places = tables.compress(joint, np.multiply.outer(tables.weights(), tables.weights()))
    assert tables.expectation(table**2) == pytest.approx([5.0, 20.0])
    assert tables.expectation(np.maximum(table, 0)) ** 2 == pytest.approx(
        [5 / (2 * np.pi), 20 / (2 * np.pi)], rel=1e-3
    )
    assert places.shape == joint.shape


def test_correlation_of_relus():
    """The arc-cosine kernel of degree 1 at correlation 1/2 (Cho and Saul, 2009)."""
    z = np.maximum(tables.normal(np.zeros(2), np.ones(2)), 0)
    c = 0.5
    exact = (math.sqrt(1 - c * c) + (math.pi - math.acos(c)) * c) / (2 * math.pi)
    crossed = tables.expansion(z).cross([np.array([0.0, c])])
    assert crossed == pytest.approx([1 / (2 * math.pi), exact], rel=2e-3)


# Errors.


def simple():
    shapes = {"w": array(4, 4)}
    return jaxinit.read(lambda p, x: x @ p["w"], shapes, array(2, 4))


def test_errors_say_what_to_do():
    reading, laws = simple(), {"w": (0.0, 1.0)}
    with pytest.raises(TypeError, match=r"predict needs a reading, got int.*jaxinit.read"):
        predict(3, laws)
    with pytest.raises(TypeError, match=r"predict needs a law for 'w'.*mapping from path"):
        predict(reading, {"w": array(4, 4)})
    with pytest.raises(ValueError, match=r"predict needs draws of at least 1, got 0"):
        predict(reading, laws, draws=0)
    with pytest.raises(ValueError, match=r"of the 1 leaves that were read, got one for 'v'.*Pass"):
        predict(reading, laws | {"v": (0.0, 1.0)})
    with pytest.raises(ValueError, match=r"every leaf that was read, got none for 'w' \(1 of 1"):
        predict(reading, {})
    with pytest.raises(ValueError, match=r"one entry of inputs for each of the 1.*got 2"):
        predict(reading, laws, inputs=[None, None])
    with pytest.raises(ValueError, match=r"something to draw from where measure=True"):
        predict(reading, laws, measure=True)
    with pytest.raises(ValueError, match=r"LayerMoments.holds needs a measurement, got none for"):
        predict(reading, laws).layers[0].holds()
    with pytest.raises(KeyError, match=r"no layer with the parameter 'v'"):
        predict(reading, laws)["v"]


def test_a_key_that_a_model_closes_over_is_no_number():
    key = jax.random.key(0)

    def model(p, x):
        keep = jax.random.bernoulli(key, 0.5, x.shape)
        return jnp.where(keep, x / 0.5, 0) @ p["w"]

    reading = jaxinit.read(model, {"w": array(16, 8)}, array(4, 16))
    (layer,) = jaxinit.predict(reading, {"w": init.lecun_normal()}).layers
    # Half of the inputs are doubled: mean square 2, and LeCun keeps it.
    assert layer.forward == pytest.approx((2.0, 2.0), rel=1e-3)
