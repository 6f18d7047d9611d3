"""What a prediction says of parameters that are used again, and of what it cannot follow."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxinit
from test_predict import predicted
from zoo.expect import array

pytestmark = pytest.mark.unoptimized

# Parameters that are used again: the right number, or an interval that holds what draws measure.


def tied(function, shapes, *xs):
    laws = {name: (shape, 0.0, 1 / shape[0]) for name, shape in shapes.items()}
    return predicted(function, laws, *xs)


def test_a_transposed_kernel_gives_back_a_part_of_what_it_got():
    """E (W' f(W x))**2 = E f**2 + (E f')**2 for a square W of variance 1/n."""
    shapes, x = {"w": (64, 64)}, array(8, 64)
    for function, second in ((lambda z: z, 2.0), (jax.nn.relu, 0.75)):
        found = tied(lambda p, x, f=function: f(x @ p["w"]) @ p["w"].T, shapes, x)
        assert found["w"][1].forward == pytest.approx((second, second), rel=1e-4)
    # Through another layer nothing comes back, and in the same direction neither.
    shapes["v"] = (64, 64)
    between = tied(lambda p, x: jax.nn.relu(x @ p["w"]) @ p["v"] @ p["w"].T, shapes, x)
    again = tied(lambda p, x: jax.nn.relu(x @ p["w"]) @ p["w"], {"w": (64, 64)}, x)
    for found in (between, again):
        assert found["w"][1].forward == pytest.approx((0.5, 0.5), rel=1e-4)


def test_a_narrow_code_gives_back_less():
    """The part along x has n / m times the second moment, for codes of n of m entries."""
    found = tied(lambda p, x: (x @ p["w"]) @ p["w"].T, {"w": (128, 32)}, array(8, 128))
    expected = 32 / 128 * (1 + 32 / 128)
    assert found["w"][1].forward == pytest.approx((expected, expected), rel=1e-4)


def test_gradients_through_a_kernel_and_its_transpose():
    laws = {"a": ((64, 64), 0.0, 1 / 64), "w": ((64, 64), 0.0, 1 / 64)}
    found = predicted(lambda p, x: (x @ p["a"] @ p["w"]) @ p["w"].T, laws, array(8, 64))
    # The true one is 2.
    assert found["a"][0].backward == pytest.approx((1.0, 2.0), rel=1e-4)


def test_a_residual_sum_knows_its_parts():
    def function(p, x):
        stream = x @ p["w"]
        return (stream + jax.nn.relu(stream @ p["v"]) @ p["u"]) @ p["w"].T

    shapes = dict.fromkeys("wvu", (64, 64))
    # 1 + 1/2 as new weights have it, and 1 that comes back.
    assert tied(function, shapes, array(8, 64))["w"][1].forward == pytest.approx(
        (2.5, 2.5), rel=1e-3
    )


@pytest.mark.parametrize("rounds", ["loop", "written out"])
def test_a_residual_stream_that_meets_the_same_weights_again_is_an_interval(rounds):
    """W (x + r) is W x + W r: what is added repeats in part what was added before."""

    def step(p, x):
        return x + jnp.tanh(x @ p["w"]) @ p["u"]

    def function(p, x):
        if rounds == "loop":
            return jax.lax.scan(lambda x, _: (step(p, x), None), x, None, length=4)[0]
        for _ in range(4):
            x = step(p, x)
        return x

    reading = jaxinit.read(function, dict.fromkeys("wu", array(64, 64)), array(8, 64))
    plan = jaxinit.plan(dict.fromkeys("wu", array(64, 64)), [("**", "lecun_normal")])
    found = jaxinit.predict(reading, plan, measure=True, draws=8)
    assert found.layers[0].forward == pytest.approx((1.0, 1.0), rel=1e-3)
    for layer in found.layers:
        assert layer.holds(1.3), str(found)
    # As if weights were new the stream would end at 1 + 4 * 0.45.
    assert found.outputs[0][0] < 2.8 < found.outputs[0][1]


def test_a_stream_that_is_added_to_itself_is_looked_at_once():
    """Every sum has the one before it as both terms: written out they are 2**40."""

    def function(p, x):
        stream = x + x @ p["w"]
        for _ in range(40):
            stream = stream + stream
        return stream @ p["w"]

    found = tied(function, {"w": (8, 8)}, array(4, 8))
    assert len(found["w"]) == 2


def test_powers_of_a_matrix_are_intervals():
    """x (W W')**k has second moments 2, 14, 132 at k = 1, 2, 3: the Catalan numbers of 2 k."""

    def power(p, x):
        for _ in range(3):
            x = (x @ p["w"]) @ p["w"].T
        return x

    layers = tied(power, {"w": (64, 64)}, array(8, 64))["w"]
    for layer, second in zip(layers, (1, 2, 5, 14, 42, 132), strict=True):
        low, high = layer.forward
        assert low <= second * 1.001
        assert second <= high * 1.001 <= 4.01 * 2 ** (2 * layer.order)
    for layer, second in zip(layers, (42, 14, 5, 2, 1, 1), strict=True):
        low, high = layer.backward
        assert low <= second * 1.001
        assert second <= high * 1.001


def test_a_kernel_times_its_transpose_has_a_diagonal():
    """E M**2 of an entry of W' W is 2 / n with LeCun's W, and 1 / n of one of W W."""
    x = array(8, 64)
    for product, second in ((lambda w: w.T @ w, 2.0), (lambda w: w @ w, 1.0)):
        found = tied(lambda p, x, f=product: x @ f(p["w"]), {"w": (64, 64)}, x)
        assert found.layers[-1].forward == pytest.approx((second, second), rel=1e-4)


@pytest.mark.parametrize("rows", [32, 50_000])
def test_a_tied_head_knows_the_token_that_it_saw(rows):
    """The logit of the token itself is the sum of d squares, one of as many as there are rows."""
    laws = {"e": ((rows, 64), 0.0, 1.0)}
    found = predicted(lambda p, i: p["e"][i] @ p["e"].T, laws, array(2, 8, dtype=jnp.int32))
    expected = 64 * (1 + 64 / rows)
    assert found["e"][-1].forward == pytest.approx((expected, expected), rel=1e-4)


def test_a_loop_applies_weights_as_if_they_were_new():
    def loop(p, x):
        return jax.lax.fori_loop(0, 4, lambda _, h: jnp.tanh(h @ p["w"].reshape(64, 64)), x)

    laws = {"w": ((8, 8, 64), 0.0, 1 / 64)}
    rounds = [layer.forward for layer in predicted(loop, laws, array(8, 64))["w"]]
    assert rounds[1] == pytest.approx((0.39429449,) * 2, rel=1e-3)
    assert all(low == high for low, high in rounds)


# Nothing is left out without a word.


@pytest.mark.parametrize(
    ("weight", "shapes", "second"),
    [
        (lambda p: p["w"] * np.tril(np.ones((64, 64), "float32")), {"w": (64, 64)}, 65 / 128),
        (lambda p: p["w"] * p["s"][None], {"w": (64, 64), "s": (64,)}, 1 / 64),
        (lambda p: p["w"][np.arange(64) % 16], {"w": (16, 64)}, 4.0),
        (
            lambda p: p["w"][(np.arange(64)[:, None] - np.arange(64)) % 64],
            {"w": (64,)},
            1.0,
        ),
    ],
    ids=["masked", "scaled", "rows by index", "circulant"],
)
def test_kernels_keep_their_names(weight, shapes, second):
    found = tied(lambda p, x: jax.nn.relu(x @ weight(p)), shapes, array(8, 64))
    assert found["w"][0].forward == pytest.approx((second, second), rel=2e-2)


def test_quantised_kernels_are_layers_of_their_integers():
    q = np.random.default_rng(0).integers(-127, 128, (64, 32)).astype(np.int8)
    tree = {"q": q, "s": np.full(32, 0.01, np.float32)}
    x = array(8, 64)
    reading = jaxinit.read(lambda p, x: x @ (p["q"].astype(jnp.float32) * p["s"][None]), tree, x)
    expected = 64 * float((q.astype(float) ** 2).mean()) * 1e-4
    found = jaxinit.predict(reading, tree)
    assert found["q"][0].forward == pytest.approx((expected, expected), rel=1e-3)


def test_complex_layers_are_rows_without_a_number():
    """No warning about complex numbers comes out: here warnings are errors."""
    shapes = {"w": array(16, 16, dtype=jnp.complex64)}
    reading = jaxinit.read(
        lambda p, x: jnp.abs(x.astype(jnp.complex64) @ p["w"]), shapes, array(4, 16)
    )
    rules = [("w", jaxinit.initializers.lecun_normal())]
    (layer,) = jaxinit.predict(reading, jaxinit.plan(shapes, rules), measure=True, draws=2).layers
    assert layer.forward == (0.0, math.inf)
    assert layer.why == "complex numbers are not followed"
    assert 0.5 < layer.measured_forward < 2


def test_a_variance_below_zero_is_no_number():
    laws = {"v": ((64,), -1.0, 0.0), "w": ((64, 8), 0.0, 1 / 64)}
    (layer,) = predicted(
        lambda p, x: (x / jnp.sqrt(p["v"])[None]) @ p["w"], laws, array(4, 64)
    ).layers
    assert layer.forward == (0.0, math.inf)
    assert "root of a negative number" in layer.why


def test_an_empty_slice_is_no_part_of_the_whole():
    def empty(p, x):
        z = x @ p["w"]
        return jnp.concatenate([z[:, :0], z], 1)

    found = predicted(empty, {"w": ((32, 32), 0.0, 1 / 32)}, array(8, 4, 32))
    assert found.outputs[0] == pytest.approx((1.0, 1.0))


def test_a_key_among_constants():
    key = jax.random.key(0)

    def noisy(p, x):
        return (x + jax.random.normal(key, x.shape)) @ p["w"]

    found = predicted(noisy, {"w": ((32, 32), 0.0, 1 / 32)}, array(8, 32))
    assert found["w"][0].forward == pytest.approx((2.0, 2.0), rel=1e-2)


def test_exponentials_of_running_sums_of_negative_numbers_stay_small():
    """E exp(-2 sum softplus) over the first k is p**k, with p = E sigmoid(-z)**2 = 0.2934."""

    def decays(p, x):
        return jnp.exp(jnp.cumsum(-jax.nn.softplus(x @ p["w"]), 1))

    found = predicted(decays, {"w": ((32, 32), 0.0, 1 / 32)}, array(8, 64, 32))
    expected = sum(0.2934**k for k in range(1, 65)) / 64
    assert found.outputs[0] == pytest.approx((expected, expected), rel=0.05)
    # 0.00146 is measured: gradients of the first sums are the largest, and reach few numbers.
    low, high = found["w"][0].backward
    assert low <= 0.00146 <= high


def test_bounded_functions_of_what_is_unknown():
    def rotated(p, x, positions):
        return (x @ p["w"]) * jnp.cos(positions * 0.1)[..., None]

    ids = array(4, 6, dtype=jnp.int32)
    found = predicted(rotated, {"w": ((32, 32), 0.0, 1 / 32)}, array(4, 6, 32), ids)
    assert found.outputs[0] == pytest.approx((0.0, 1.0))


def test_sorted_entries_are_the_same_entries():
    found = predicted(
        lambda p, x: jnp.sort(x @ p["w"], -1), {"w": ((32, 32), 0.0, 1 / 32)}, array(8, 32)
    )
    assert found.outputs[0] == pytest.approx((1.0, 1.0))


@pytest.mark.parametrize(
    "combine, size",
    [
        (lambda x, mask: x * mask + (1 - mask) * x, 1.0),
        (lambda x, mask: 3 * mask * x - x * mask, 2.0),
        (lambda x, mask: mask * (x * (1 - mask)), 0.0),
    ],
    ids=["both sides of a mask", "twice", "nothing is left"],
)
def test_masks_that_are_functions_of_each_other(combine, size):
    mask = np.arange(64, dtype="float32")[None] % 2
    found = tied(lambda p, x: combine(x @ p["w"], mask), {"w": (64, 64)}, array(8, 64))
    assert found.outputs[0] == pytest.approx((size, size), rel=1e-2, abs=1e-9)
