"""What is read of one parameter at a time: every operation that a kernel may pass on its way.

Each case is a function of one or two parameters and data in plain JAX, and what a person works out
for it. Sizes differ from axis to axis, so that swapped fans show.
"""

from __future__ import annotations

import dataclasses
import json

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

import jaxinit
from jaxinit.flax import nnx_apply, own_initializers
from jaxinit.reading import Through

pytestmark = pytest.mark.unoptimized

S = jax.ShapeDtypeStruct


@pytest.fixture(autouse=True, scope="module")
def _as_users_write_it():
    """Biases and scales are added as vectors, which the suite forbids elsewhere."""
    with jax.numpy_rank_promotion("allow"):
        yield


def floats(*shape):
    return S(shape, "float32")


def ints(*shape):
    return S(shape, "int32")


def read_one(function, shape, *inputs, dtype="float32"):
    """Record of the parameter of a function ``(p, *inputs)``."""
    return jaxinit.read(lambda p, *a: function(p["p"], *a), {"p": S(shape, dtype)}, *inputs)["p"]


def summary(use):
    """Role, axes and fans of a use."""
    return use.role, use.contracted, use.produced, use.batched, use.fan_in, use.fan_out


def kernel(contracted, produced, fan_in, fan_out, batched=()):
    return "kernel", contracted, produced, batched, fan_in, fan_out


X = floats(2, 4)
MATRIX = kernel((0,), (1,), 4, 6)

# Function, shape of the parameter, data, expected uses.
VIEWS = {
    "plain": (lambda p, x: x @ p, (4, 6), X, [MATRIX]),
    "parameter on the left": (lambda p, x: p @ x.T, (6, 4), X, [kernel((1,), (0,), 4, 6)]),
    "transposed": (lambda p, x: x @ p.T, (6, 4), X, [kernel((1,), (0,), 4, 6)]),
    "merged axes": (
        lambda p, x: x @ p.reshape(4, 6),
        (4, 2, 3),
        X,
        [kernel((0,), (1, 2), 4, 6)],
    ),
    "split axis": (
        lambda p, x: jnp.einsum("bi,ihd->bhd", x, p.reshape(4, 2, 3)),
        (4, 6),
        X,
        [MATRIX],
    ),
    "split and contracted in part": (
        lambda p, x: jnp.einsum("bi,hio->bho", x, p.reshape(3, 4, 6)),
        (12, 6),
        X,
        [kernel((0,), (0, 1), 4, 18)],
    ),
    "squeezed": (lambda p, x: x @ p.squeeze((0, 1)), (1, 1, 4, 6), X, [kernel((2,), (3,), 4, 6)]),
    "vector": (lambda p, x: x @ p, (4,), X, [kernel((0,), (), 4, 1)]),
    "one output": (lambda p, x: x @ p, (4, 1), X, [kernel((0,), (1,), 4, 1)]),
    "cast": (lambda p, x: x.astype("bfloat16") @ p.astype("bfloat16"), (4, 6), X, [MATRIX]),
    "times a number": (lambda p, x: x @ (0.5 * p), (4, 6), X, [MATRIX]),
    "reversed": (lambda p, x: x @ p[::-1], (4, 6), X, [MATRIX]),
    "exponential": (lambda p, x: x @ jnp.exp(p), (4, 6), X, [MATRIX]),
    "stopped gradient": (lambda p, x: x @ lax.stop_gradient(p), (4, 6), X, [MATRIX]),
    "masked": (
        lambda p, x: x @ jnp.where(jnp.arange(4)[:, None] > 1, p, 0.0),
        (4, 6),
        X,
        [("kernel", (0,), (1,), (), 2.0, 3.0)],
    ),
    "dropped weights": (
        lambda p, x: x @ (p * jax.random.bernoulli(jax.random.key(0), 0.5, (4, 6))),
        (4, 6),
        X,
        [MATRIX],
    ),
    "standardised": (lambda p, x: x @ ((p - p.mean(0)) / p.std(0)), (4, 6), X, [MATRIX]),
    "half of the inputs": (lambda p, x: x @ p[:4], (8, 6), X, [MATRIX]),
    "every other output": (lambda p, x: x @ p[:, ::2], (4, 12), X, [MATRIX]),
    "two slices": (
        lambda p, x: (x @ p[:, :2], x @ p[:, 2:]),
        (4, 6),
        X,
        [kernel((0,), (1,), 4, 2), kernel((0,), (1,), 4, 4)],
    ),
    "split in three": (
        lambda p, x: [x @ each for each in jnp.split(p, 3, axis=1)],
        (4, 6),
        X,
        [kernel((0,), (1,), 4, 2)] * 3,
    ),
    "unstacked": (
        lambda p, x: [x @ each for each in jnp.unstack(p)],
        (2, 4, 6),
        X,
        [kernel((1,), (2,), 4, 6, (0,))] * 2,
    ),
    "static index": (lambda p, x: x @ p[1], (3, 4, 6), X, [kernel((1,), (2,), 4, 6, (0,))]),
    "padded inputs": (
        lambda p, x: x @ jnp.pad(p, ((0, 1), (0, 0))),
        (3, 6),
        X,
        [kernel((0,), (1,), 3, 6)],
    ),
    "padded outputs": (lambda p, x: x @ jnp.pad(p, ((0, 0), (1, 2))), (4, 6), X, [MATRIX]),
    "tiled": (
        lambda p, x: jnp.matmul(x[:, None], jnp.tile(p, (2, 1, 1))),
        (1, 4, 6),
        X,
        [kernel((1,), (2,), 4, 6, (0,))],
    ),
    "batched": (
        lambda p, x: jnp.einsum("ebi,eio->ebo", x, p),
        (3, 4, 6),
        floats(3, 2, 4),
        [kernel((1,), (2,), 4, 6, (0,))],
    ),
    "two axes contracted": (
        lambda p, x: jnp.einsum("bhd,hdo->bo", x, p),
        (2, 3, 5),
        floats(7, 2, 3),
        [kernel((0, 1), (2,), 6, 5)],
    ),
    "vmapped": (
        lambda p, x: jax.vmap(jnp.dot)(x, p),
        (3, 4, 6),
        floats(3, 2, 4),
        [kernel((1,), (2,), 4, 6, (0,))],
    ),
    "vmapped over the kernel alone": (
        lambda p, x: jax.vmap(lambda w: x @ w)(p),
        (3, 4, 6),
        X,
        [kernel((1,), (0, 2), 4, 18)],
    ),
    "product and sum": (lambda p, x: (x * p).sum(-1), (4,), X, [kernel((0,), (), 4, 1)]),
    "nested jit": (
        lambda p, x: jax.jit(lambda w: x @ jax.jit(jnp.transpose)(w))(p),
        (6, 4),
        X,
        [kernel((1,), (0,), 4, 6)],
    ),
    "remat": (lambda p, x: jax.checkpoint(jnp.dot)(x, p), (4, 6), X, [MATRIX]),
    "outer product": (lambda p, x: jnp.sin(x[..., None] * p), (6,), X, [kernel((), (0,), 1, 6)]),
    "one input": (lambda p, x: x[:, :1] @ p, (1, 6), X, [kernel((0,), (1,), 1, 6)]),
    "convolution": (
        lambda p, x: lax.conv(x, p, (1, 1), "SAME"),
        (6, 4, 3, 5),
        floats(2, 4, 8, 8),
        [kernel((1,), (0,), 60, 90)],
    ),
    "vmapped convolution": (
        lambda p, x: jax.vmap(lambda x, w: lax.conv(x, w, (1,), "SAME"))(x, p),
        (7, 6, 4, 3),
        floats(7, 2, 4, 8),
        [kernel((2,), (1,), 12, 18, (0,))],
    ),
    "ragged product": (
        lambda p, x: lax.ragged_dot(x, p, jnp.array([1, 1, 0])),
        (3, 4, 6),
        X,
        [kernel((1,), (2,), 4, 6, (0,))],
    ),
    "matrix chosen by data": (
        lambda p, x: jnp.einsum("bi,bio->bo", x, p[jnp.argmax(x, -1)]),
        (3, 4, 6),
        X,
        [kernel((1,), (2,), 4, 6, (0,))],
    ),
}


@pytest.mark.parametrize("name", VIEWS)
def test_kernels_are_found_behind_views(name):
    function, shape, data, expected = VIEWS[name]
    parameter = read_one(function, shape, data)
    found = [summary(use) for use in parameter.uses]
    # A kernel with the output behind it and nothing else is called a head; that is of no concern.
    assert [("kernel", *use[1:]) if use[0] == "head" else use for use in found] == expected
    assert parameter.why is None


OTHERS = {
    "bias": (lambda p, x: x + p, (4,), X, "bias", "add"),
    "subtracted": (lambda p, x: x - p, (4,), X, "bias", "sub"),
    "bias with two axes, of heads": (
        lambda p, x: (x @ jnp.ones((4, 6))).reshape(2, 2, 3) + p[..., :1],
        (1, 3),
        X,
        "bias",
        "add",
    ),
    "scale": (lambda p, x: x * p, (4,), X, "scale", "mul"),
    "divisor": (lambda p, x: x / jnp.exp(p), (), X, "scale", "div"),
    "scale of a normalisation": (
        lambda p, x: (x - x.mean(-1, keepdims=True)) * (lax.rsqrt(x.var(-1, keepdims=True)) * p),
        (4,),
        X,
        "scale",
        "mul",
    ),
    "scale before a normalisation": (
        lambda p, x: (y := x * p) - y.mean(-1, keepdims=True),
        (4,),
        X,
        "scale",
        "mul",
    ),
    "scale, then an average over rows": (lambda p, x: (x * p).sum(0), (4,), X, "scale", "mul"),
    "lookup": (lambda p, i: p[i], (9, 4), ints(2, 3), "embedding", "gather"),
    "lookup of one": (lambda p, i: p[i], (9, 4), ints(), "embedding", "dynamic_slice"),
    "one-hot lookup": (
        lambda p, i: jax.nn.one_hot(i, 9) @ p,
        (9, 4),
        ints(2, 3),
        "embedding",
        "dot_general",
    ),
    "position, cut to length": (lambda p, x: x + p[:3], (8, 4), floats(2, 3, 4), "position", "add"),
    "position, whole": (lambda p, x: x + p, (1, 3, 4), floats(2, 3, 4), "position", "add"),
    "position, by number": (
        lambda p, x: x + p[jnp.arange(3)],
        (8, 4),
        floats(2, 3, 4),
        "position",
        "add",
    ),
    "token beside data": (
        lambda p, x: jnp.concatenate([jnp.broadcast_to(p, (2, 1, 4)), x], 1),
        (1, 1, 4),
        floats(2, 3, 4),
        "embedding",
        "concatenate",
    ),
    "token in the place of data": (
        lambda p, x: jnp.where(x[..., :1] > 0, x, p),
        (4,),
        X,
        "embedding",
        "select_n",
    ),
    "token written over data": (lambda p, x: x.at[0].set(p), (4,), X, "embedding", "scatter"),
    "output without input": (lambda p, x: (x.sum(), p), (4,), X, "bias", "output"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_no_kernel_has_no_fans(name):
    function, shape, data, role, operation = OTHERS[name]
    parameter = read_one(function, shape, data)
    (use,) = parameter.uses
    assert (parameter.role, use.role, use.operation) == (role, role, operation)
    assert use.fan_in is None and use.fan_out is None


def test_the_table_of_an_embedding_counts_as_contracted_over_its_rows():
    for function in (lambda p, i: p[i], lambda p, i: jax.nn.one_hot(i, 9) @ p):
        (use,) = read_one(function, (9, 4), ints(2, 3)).uses
        assert (use.contracted, use.produced) == ((0,), (1,))


def test_bias_of_heads_is_a_bias_and_rows_of_positions_are_not():
    """Both have two axes; those of the bias are the ones that the kernel before it produces."""

    def model(p, x):
        heads = jnp.einsum("bti,ihd->bthd", x, p["kernel"]) + p["bias"]
        return heads + p["place"]

    tree = {"kernel": floats(4, 2, 3), "bias": floats(2, 3), "place": floats(5, 1, 3)}
    reading = jaxinit.read(model, tree, floats(7, 5, 4))
    assert reading["bias"].role == "bias"
    assert reading["place"].role == "position"


def test_tied_weights_have_several_uses():
    parameter = read_one(lambda p, i: jnp.tanh(p[i]) @ p.T, (9, 4), ints(2, 3))
    assert [use.role for use in parameter.uses] == ["embedding", "head"]
    assert (parameter.role, parameter.fan_in, parameter.fan_out) == ("embedding", 4, 9)


def test_low_rank_factors_read_the_same_before_and_after_they_meet():
    tree = {"a": floats(4, 2), "b": floats(2, 6), "w": floats(4, 6)}
    apart = jaxinit.read(lambda p, x: x @ p["w"] + x @ p["a"] @ p["b"], tree, X)
    merged = jaxinit.read(lambda p, x: x @ (p["w"] + p["a"] @ p["b"]), tree, X)
    for reading in (apart, merged):
        fans = {each.path: (each.fan_in, each.fan_out) for each in reading}
        assert fans == {"a": (4, 2), "b": (2, 6), "w": (4, 6)}
        assert not reading.unknown
    turned = jaxinit.read(lambda p, x: x @ (p["b"].T @ p["a"].T), tree, floats(3, 6))
    assert (turned["b"].fan_in, turned["a"].fan_in) == (6, 2)


def test_a_scale_between_two_factors_is_no_factor():
    tree = {"a": floats(4, 2), "s": floats(2), "b": floats(2, 6)}
    reading = jaxinit.read(lambda p, x: x @ (p["a"] * p["s"] @ p["b"]), tree, X)
    assert [reading[n].fan_in for n in "asb"] == [4, None, 2]
    assert reading["s"].role == "scale"


def test_learned_queries_are_embeddings_where_a_low_rank_kernel_has_factors():
    """Both are products of two parameters; the keys that queries meet are a kernel's output."""

    def attend(p, x):
        return jax.nn.softmax((p["tokens"] @ p["query"]) @ (x @ p["key"]).T)

    tree = {"tokens": floats(5, 8), "query": floats(8, 6), "key": floats(4, 6)}
    reading = jaxinit.read(attend, tree, X)
    assert reading["tokens"].role == "embedding"
    assert (reading["query"].fan_in, reading["query"].fan_out) == (8, 6)


def test_a_network_over_constants_is_read_as_one_over_data():
    def model(p, x):
        points = jnp.linspace(0, 1, 10)[:, None]
        return x + jnp.tanh(points @ p["first"] + p["b"]) @ p["last"]

    tree = {"first": floats(1, 7), "b": floats(7), "last": floats(7, 4)}
    reading = jaxinit.read(model, tree, floats(10, 4))
    assert [reading[n].role for n in ("first", "b")] == ["kernel", "bias"]
    assert (reading["first"].fan_in, reading["last"].fan_in) == (1, 7)


def test_layers_picked_by_a_counter_keep_their_biases():
    def model(p, x):
        return lax.fori_loop(0, 3, lambda i, h: jnp.tanh(h @ p["w"][i] + p["b"][i]), x)

    reading = jaxinit.read(model, {"w": floats(3, 4, 4), "b": floats(3, 4)}, X)
    assert (reading["b"].role, reading["b"].uses[0].batched) == ("bias", (0,))
    assert (reading["w"].fan_in, reading["w"].uses[0].batched) == (4, (0,))


def test_weight_normalisation_has_a_kernel_and_a_scale():
    def model(p, x):
        return x @ (p["g"] * p["v"] / jnp.linalg.norm(p["v"], axis=0))

    reading = jaxinit.read(model, {"g": floats(6), "v": floats(4, 6)}, X)
    assert [summary(use)[1:] for use in reading["v"].uses] == [MATRIX[1:]]
    assert [use.role for use in reading["g"].uses] == ["scale"]


def test_kernels_side_by_side_keep_their_own_fans():
    tree = {"a": floats(4, 2), "b": floats(4, 6)}
    reading = jaxinit.read(lambda p, x: x @ jnp.concatenate([p["a"], p["b"]], 1), tree, X)
    assert [reading[n].fan_out for n in "ab"] == [2, 6]
    # Along the contracted axis one output sums over both.
    tree = {"a": floats(3, 5), "b": floats(1, 5)}
    reading = jaxinit.read(lambda p, x: x @ jnp.concatenate([p["a"], p["b"]], 0), tree, X)
    assert [reading[n].fan_in for n in "ab"] == [4, 4]


def test_a_slice_of_kernels_side_by_side_finds_its_owner():
    tree = {"a": floats(4, 2), "b": floats(4, 6)}
    model = lambda p, x: x @ jnp.concatenate([p["a"], p["b"]], 1)[:, 2:5]  # noqa: E731
    reading = jaxinit.read(model, tree, X)
    assert (reading["a"].role, reading["b"].fan_out) == ("unused", 3)


def packed(combine):
    def model(p, x):
        return combine(*jnp.split(x @ p, 3, axis=-1))

    return read_one(model, (4, 18), X)


def test_an_output_that_is_cut_first_makes_packed_kernels():
    parameter = packed(lambda q, k, v: jax.nn.softmax(q @ k.T) @ v)
    assert [use.fan_out for use in parameter.uses] == [6, 6, 6]
    assert len({use.slice_output for use in parameter.uses}) == 3


def test_halves_that_are_added_again_are_one_kernel():
    """As rotary embeddings and sums of parts do: near twins of packed kernels."""
    for combine in (
        lambda a, b, c: a * 0.5 - b + c,
        lambda a, b, c: jnp.concatenate([-b, a, c], -1),
    ):
        (use,) = packed(combine).uses
        assert (use.fan_out, use.slice_output) == (18, None)


def test_an_output_that_is_cut_after_its_activation_is_of_one_kernel():
    model = lambda p, x: jnp.prod(jnp.stack(jnp.split(jnp.tanh(x @ p), 3, -1)), 0)  # noqa: E731
    (use,) = read_one(model, (4, 18), X).uses
    assert use.fan_out == 18


# Loops and branches.


def test_a_scan_over_layers_batches_the_leading_axis_and_one_over_time_repeats():
    def model(p, x):
        def layer(h, w):
            def step(c, x):
                return jnp.tanh(c @ p["time"]), x

            return lax.scan(step, jnp.tanh(h @ w), None, length=5)[0], None

        return lax.scan(layer, x, p["layers"])[0]

    reading = jaxinit.read(model, {"layers": floats(3, 4, 4), "time": floats(4, 4)}, X)
    (layers,), (time,) = reading["layers"].uses, reading["time"].uses
    assert (layers.contracted, layers.produced, layers.batched) == ((1,), (2,), (0,))
    assert (layers.times, time.times) == (1, 15)
    assert (layers.fan_in, time.batched) == (4, ())


def test_a_parameter_may_be_carried_and_come_out_again():
    def model(p, x):
        def step(carry, x):
            return (carry[0], carry[0].T), None

        return x @ lax.scan(step, (p, p.T), None, length=3)[0][1]

    assert [summary(use)[1:5] for use in read_one(model, (6, 4), X).uses] == [((1,), (0,), (), 4)]


def test_a_parameter_as_the_first_carry_enters_the_data():
    model = lambda p, x: lax.scan(lambda h, x: (jnp.tanh(h + x), None), p, x)[0]  # noqa: E731
    (use,) = read_one(model, (4,), X).uses
    assert (use.role, use.operation) == ("embedding", "scan")


def test_rounds_that_data_decide_are_not_counted():
    def model(p, x):
        return lax.while_loop(lambda h: h.sum() > 1, lambda h: jnp.tanh(h @ p), x)

    (use,) = read_one(model, (4, 4), X).uses
    assert (use.times, use.fan_in) == (None, 4)


def test_branches_are_read_each():
    def model(p, x):
        return lax.cond(x.sum() > 0, lambda: x @ p["a"], lambda: x @ p["b"].T)

    tree = {"a": floats(4, 6), "b": floats(6, 4)}
    reading = jaxinit.read(model, tree, X)
    assert [reading[n].uses[0].contracted for n in "ab"] == [(0,), (1,)]
    chosen = jaxinit.read(
        lambda p, x: x @ lax.cond(x.sum() > 0, lambda: p["a"], lambda: p["b"].T), tree, X
    )
    assert [chosen[n].uses[0].contracted for n in "ab"] == [(0,), (1,)]


def test_custom_derivatives_are_looked_into():
    @jax.custom_vjp
    def multiply(x, w):
        return x @ w

    multiply.defvjp(lambda x, w: (x @ w, (x, w)), lambda saved, g: (g @ saved[1].T, saved[0].T @ g))
    assert [summary(use)[1:] for use in read_one(lambda p, x: multiply(x, p), (4, 6), X).uses] == [
        MATRIX[1:]
    ]


# Convolutions.


def conv(p, x, **options):
    return lax.conv_general_dilated(
        x,
        p,
        options.pop("strides", (1, 1)),
        [(1, 1), (2, 2)],
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        **options,
    )


@pytest.mark.parametrize(
    ("shape", "options", "groups", "strides", "fans"),
    [
        ((3, 5, 4, 6), {}, 1, (), (60, 90)),
        ((3, 5, 2, 6), {"feature_group_count": 2}, 2, (), (30, 45)),
        ((3, 5, 1, 12), {"feature_group_count": 4}, 4, (), (15, 45)),
        ((3, 5, 4, 6), {"strides": (2, 2)}, 1, (), (60, 90)),
        ((3, 5, 4, 6), {"rhs_dilation": (2, 2)}, 1, (), (60, 90)),
        ((3, 5, 4, 6), {"lhs_dilation": (2, 3)}, 1, (2, 3), (10, 90)),
    ],
    ids=["plain", "grouped", "depthwise", "strided", "dilated", "transposed"],
)
def test_convolutions(shape, options, groups, strides, fans):
    (use,) = read_one(lambda p, x: conv(p, x, **options), shape, floats(2, 8, 8, 4)).uses
    assert (use.contracted, use.produced, use.field) == ((2,), (3,), (0, 1))
    assert (use.groups, use.transposed_strides) == (groups, strides)
    assert (use.fan_in, use.fan_out) == fans
    same = jaxinit.initializers.lecun_normal(-2, -1).with_axes(
        jaxinit.initializers.Axes(), groups=groups, transposed_strides=strides or 1
    )
    assert (same.fans(shape).fan_in, same.fans(shape).fan_out) == fans


# What is left alone, and what is unknown.


def test_nothing_is_guessed():
    def model(p, x):
        return x @ jnp.linalg.inv(p["inverted"]) + jnp.maximum(x, p["floor"])

    reading = jaxinit.read(model, {"inverted": floats(4, 4), "floor": floats(4)}, X)
    assert {each.path for each in reading.unknown} == {"inverted", "floor"}
    assert reading["inverted"].why.startswith("custom_linear_solve of [4, 4]")
    assert reading["floor"].why == "max of [2, 4], [1, 4]"
    assert reading["inverted"].fan_in is None
    assert "stopped by max of [2, 4], [1, 4]" in str(reading)


def test_a_reshape_that_mixes_axes_is_named():
    parameter = read_one(lambda p, x: x @ p.T.reshape(4, 6), (2, 12), X)
    assert summary(parameter.uses[0])[1:5] == ((1,), (0, 1), (), 4)
    parameter = read_one(lambda p, x: x @ p.T.reshape(4, 6), (3, 8), X)
    assert summary(parameter.uses[0])[1:5] == ((1,), (0, 1), (), 4)
    parameter = read_one(lambda p, x: x @ p.reshape(4, 6), (3, 8), X)
    assert (parameter.role, parameter.why) == ("unknown", "reshape of [3, 8]")
    # The near twin: the same sizes in the order of the axes.
    assert read_one(lambda p, x: x @ p.reshape(4, 6), (4, 6), X).role == "head"


def test_unused_and_state():
    tree = {
        "params": {"w": floats(4, 6), "idle": floats(3), "shape_only": floats(6)},
        "batch_stats": {"mean": floats(6)},
    }

    def apply(v, x):
        p = v["params"]
        return x @ p["w"] - v["batch_stats"]["mean"] + jnp.zeros_like(p["shape_only"])

    reading = jaxinit.read(apply, tree, X)
    assert {each.path: each.role for each in reading} == {
        "batch_stats/mean": "state",
        "params/idle": "unused",
        "params/shape_only": "unused",
        "params/w": "head",
    }


def test_state_that_meets_a_kernel_makes_no_data_of_the_kernel():
    """Spectral normalisation: the kernel over a number that it and a stored vector make."""

    def apply(v, x):
        w = v["params"]["w"]
        return x @ (w / (v["state"]["u"] @ w).sum())

    tree = {"params": {"w": floats(4, 6)}, "state": {"u": floats(4)}}
    uses = jaxinit.read(apply, tree, X)["params/w"].uses
    assert ("kernel", (0,), (1,)) in [("kernel", use.contracted, use.produced) for use in uses]


def test_integers_are_state_unless_they_are_multiplied():
    tree = {"count": ints(), "q": S((4, 6), "int8"), "scale": floats(6)}

    def apply(p, x):
        return x @ (p["q"].astype("float32") * p["scale"]), p["count"] + 1

    reading = jaxinit.read(apply, tree, X)
    assert reading["count"].role == "state"
    assert reading["q"].fan_in == 4
    assert reading["scale"].role == "scale"


# Frameworks.


def test_linen_with_boxes_keys_and_options():
    class Model(nn.Module):
        @nn.compact
        def __call__(self, x, train):
            init = nn.with_partitioning(nn.initializers.lecun_normal(), (None, "model"))
            x = nn.Dense(6, kernel_init=init)(x)
            x = nn.BatchNorm(use_running_average=not train)(x)
            return nn.Dropout(0.5, deterministic=not train)(nn.relu(x))

    key = jax.random.key(0)
    shapes = jax.eval_shape(lambda: Model().init(key, jnp.zeros((2, 4)), train=False))

    def apply(variables, x, key, train):
        rngs = {"dropout": key}
        return Model().apply(variables, x, train, rngs=rngs, mutable=["batch_stats"])

    for train in (False, True):
        reading = jaxinit.read(apply, shapes, X, key, train=train)
        assert not reading.unknown
        assert reading["params/Dense_0/kernel"].fan_in == 4
        assert reading["batch_stats/BatchNorm_0/mean"].role == "state"


def test_nnx_by_way_of_nnx_apply():
    class Model(nnx.Module):
        def __init__(self, rngs):
            self.inner, self.norm = nnx.Linear(4, 6, rngs=rngs), nnx.BatchNorm(6, rngs=rngs)

        def __call__(self, x):
            return self.norm(self.inner(x))

    for model in (lambda: Model(nnx.Rngs(0)), Model(nnx.Rngs(0))):
        reading = jaxinit.read(*nnx_apply(model), X)
        roles = {each.path: each.role for each in reading}
        assert roles == {
            "inner/bias": "bias",
            "inner/kernel": "head",
            "norm/bias": "bias",
            "norm/mean": "state",
            "norm/scale": "scale",
            "norm/var": "state",
        }
    with pytest.raises(TypeError, match=r"nnx_apply needs an nnx\.Module or a function"):
        nnx_apply(nn.Dense(3))


def test_equinox_modules_are_their_own_variables():
    model = eqx.nn.MLP(4, 3, 5, 1, key=jax.random.key(0))
    reading = jaxinit.read(lambda model, x: jax.vmap(model)(x), model, X)
    assert reading["layers/0/weight"].uses[0].contracted == (1,)
    assert {each.role for each in reading} == {"kernel", "bias", "head"}


def test_nothing_is_executed_or_allocated():
    def model(p, x):
        assert isinstance(x, jax.core.Tracer)
        return x @ p["p"]

    tree = {"p": jnp.ones((4, 6))}
    before = len(jax.live_arrays())
    jaxinit.read(model, tree, S((2**40, 4), "float32"))
    assert len(jax.live_arrays()) == before


# The record of a model.


@pytest.fixture(scope="module")
def deep():
    def model(p, x):
        for layer in p["layers"]:
            x = jax.nn.relu(x @ layer["w"] + layer["b"])
        return x @ p["last"]

    layer = {"w": floats(4, 4), "b": floats(4)}
    return jaxinit.read(model, {"layers": [layer] * 12, "last": floats(4, 3)}, X)


def test_a_reading_is_a_mapping_in_the_order_of_the_tree(deep):
    assert len(deep) == 25 and "layers/3/w" in deep and "layers/12/w" not in deep
    assert deep.paths[0] == "last"
    assert [each.path for each in deep] == list(deep.paths)
    assert deep.graph.avals[deep.inputs["last"]].shape == (4, 3)
    assert [deep.graph.avals[number].shape for number in deep.arguments] == [(2, 4)]
    with pytest.raises(KeyError, match=r"the reading has no leaf 'layers/3/v'.*layers/3/w"):
        deep["layers/3/v"]


def test_the_table_puts_equal_layers_in_one_line(deep):
    lines = str(deep).splitlines()
    assert lines[0] == "25 parameters"
    assert len(lines) == 3 + 3
    row = next(line for line in lines if "layers/*/w" in line)
    assert row.split()[:4] == ["layers/*/w", "(4,", "4)", "12"]
    assert max(map(len, lines)) <= 120
    assert repr(deep) == "<Reading of 25 parameters; print it for the table>"


def test_the_table_puts_a_star_only_where_the_leaves_of_a_line_differ():
    def apply(tree, x):
        x = jax.nn.relu(jax.nn.relu(x @ tree["Dense_0"]) @ tree["Dense_1"])
        return x @ tree["part_2"]["Dense_3"] + x @ tree["part_2"]["Dense_4"]

    part = {"Dense_3": floats(5, 3), "Dense_4": floats(5, 3)}
    reading = jaxinit.read(
        apply, {"Dense_0": floats(4, 5), "Dense_1": floats(5, 5), "part_2": part}, floats(2, 4)
    )
    rows = [line.split() for line in str(reading).splitlines()]
    names = [row[0] for row in rows if row and "Dense" in row[0]]
    assert names == ["Dense_0", "Dense_1", "part_2/Dense_*"]


def test_json_holds_everything_but_the_graph(deep):
    record = json.loads(deep.to_json())
    assert record == deep.to_dict()
    assert record["format"] == "jaxinit-reading/1"
    by_path = {each["path"]: each for each in record["parameters"]}
    assert by_path["layers/0/w"]["uses"][0]["fan_in"] == 4.0
    assert by_path["layers/0/w"]["uses"][0]["after"]["activation"] == "relu"


# Fans against those of an initializer.


def test_flax_layers_whose_initializers_go_by_other_fans():
    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.DenseGeneral(6, batch_dims=(0,), name="experts")(x)
            x = nn.Conv(
                8,
                (3,),
                feature_group_count=2,
                name="grouped",
                kernel_init=nn.initializers.glorot_normal(),
            )(x)
            return nn.Dense(5, name="fine")(x)

    x = floats(3, 7, 4)
    shapes = jax.eval_shape(Model().init, jax.random.key(0), x)
    reading = jaxinit.read(Model().apply, shapes, x)
    found = jaxinit.compare_fans(reading, own_initializers(Model(), x))
    assert [each.path for each in found] == ["params/experts/kernel", "params/grouped/kernel"]
    experts, grouped = found
    assert (experts.implied.fan_in, experts.true.fan_in) == (12, 4)
    assert experts.factor == pytest.approx(1 / 3)
    # Glorot divides by the mean of 9 and 24 where it is 9 and 12.
    assert grouped.factor == pytest.approx((9 + 12) / (9 + 24))
    assert str(grouped) == (
        "params/grouped/kernel: fan_out 24 where the model has 12: 0.636 x the variance"
    )


def test_a_fan_that_the_mode_does_not_ask_for_changes_no_variance():
    tree = {"p": floats(4, 18)}
    model = lambda p, x: jnp.prod(jnp.stack(jnp.split(x @ p["p"], 3, -1)), 0)  # noqa: E731
    model = lambda p, x: [jnp.tanh(each) for each in jnp.split(x @ p["p"], 3, -1)]  # noqa: E731
    reading = jaxinit.read(model, tree, X)
    (found,) = jaxinit.compare_fans(reading, jaxinit.plan(tree, [("p", "glorot_normal")]))
    assert found.factor == pytest.approx((4 + 6) / (4 + 18))
    for name in ("lecun_normal", "zeros"):
        assert not jaxinit.compare_fans(reading, jaxinit.plan(tree, [("p", name)]))


# Errors.


def test_errors_say_what_to_do():
    with pytest.raises(
        TypeError, match=r"read needs a function .* got the Linen module Dense\. Call"
    ):
        jaxinit.read(nn.Dense(3), {}, X)
    model = nnx.Linear(4, 3, rngs=nnx.Rngs(0))
    with pytest.raises(
        TypeError, match=r"got the NNX model Linear\. Call jaxinit\.read\(\*jaxinit"
    ):
        jaxinit.read(model, X)
    with pytest.raises(TypeError, match=r"read needs a function .* got 3 of type int\. Call"):
        jaxinit.read(3, {"p": X})
    with pytest.raises(ValueError, match=r"read needs variables with at least one array, got 1"):
        jaxinit.read(lambda p, x: x, {"p": 1.0}, X)
    reading = jaxinit.read(lambda p, x: x @ p["p"], {"p": floats(4, 3)}, X)
    with pytest.raises(
        TypeError, match=r"compare_fans needs a plan or a mapping .* got list\. Pass"
    ):
        jaxinit.compare_fans(reading, [])
    with pytest.raises(ValueError, match=r"compare_fans needs a plan of the tree .* 'q'.* 'p'"):
        jaxinit.compare_fans(reading, {"q": None})


# What a parameter passes through before it meets data.

MASK = np.tril(np.ones((8, 8), "float32"))
NORMED = {"factor": 8**-0.5, "degree": 0.0}


def _weight_norm(p):
    return p["w"] / jnp.sqrt(jnp.square(p["w"]).sum(0) + 1e-6)


def _standardised(p):
    w = p["w"] - p["w"].mean(0)
    return w * jax.lax.rsqrt(jnp.maximum(w.var(0), 1e-4))


@pytest.mark.parametrize(
    ("effective", "expected"),
    [
        (lambda p: p["w"], {}),
        (lambda p: p["w"] / 16, {"factor": 1 / 16}),
        (lambda p: -(p["w"] * jnp.sqrt(4.0)) * np.float32(0.5), {"factor": -1.0}),
        (lambda p: p["w"].T[::-1].reshape(8, 8) * 3, {"factor": 3.0}),
        (lambda p: p["w"] * MASK, {"kept": 36 / 64}),
        (lambda p: jnp.tril(p["w"]), {"kept": 36 / 64}),
        (lambda p: p["w"] * (2 * MASK), {"kept": 36 / 64, "factor": 2.0}),
        (lambda p: 2 * (1 + p["w"]), {"factor": 2.0, "offset": 2.0}),
        (lambda p: p["w"] * p["v"], {"beside": ("v",)}),
        (lambda p: p["w"] / jnp.exp(p["v"]), {"beside": ("v",)}),
        (lambda p: jnp.exp(p["w"]), {"factor": None, "degree": None, "functions": ("exp",)}),
        (lambda p: jnp.square(p["w"]), {"degree": 2.0, "functions": ("square",)}),
        (lambda p: jnp.abs(3 * p["w"]), {"factor": 3.0, "functions": ("abs",)}),
        (lambda p: jax.nn.relu(p["w"]), {"factor": None, "functions": ("max",)}),
        (lambda p: jnp.sign(p["w"]), {"factor": 1.0, "degree": 0.0, "functions": ("sign",)}),
        (lambda p: jnp.round(p["w"]), {"factor": None, "degree": None, "functions": ("round",)}),
        (
            lambda p: (p["w"] * 127).astype("int8").astype("float32") / 127,
            {"factor": None, "degree": None, "functions": ("convert_element_type",)},
        ),
        (_weight_norm, NORMED),
        (lambda p: _weight_norm(p) * 2, NORMED | {"factor": 2 * 8**-0.5}),
        (lambda p: _weight_norm(p) * p["v"][0], NORMED | {"beside": ("v",)}),
        (lambda p: p["w"] / (jnp.linalg.norm(p["w"]) + 1e-8), NORMED | {"factor": 1 / 8}),
        (_standardised, NORMED | {"factor": 1.0}),
        (lambda p: p["w"] / jnp.abs(p["w"]).max(0), NORMED | {"factor": None}),
        (lambda p: (p["w"] + p["w"].T) / 2, {"factor": 0.5**0.5}),
        (lambda p: p["w"] - p["w"].mean(0), {}),
        (
            lambda p: p["w"][0][(np.arange(8)[:, None] - np.arange(8)) % 8],
            {"is_table": True},
        ),
    ],
)
def test_what_a_parameter_passes_through(effective, expected):
    shapes = {"w": floats(8, 8), "v": floats(8, 8)}
    read = jaxinit.read(lambda p, x: x @ effective(p), shapes, floats(4, 8))
    through = read["w"].uses[0].through
    wanted = dataclasses.replace(Through(), **expected)
    if wanted.factor is not None:
        assert through.factor == pytest.approx(wanted.factor, rel=1e-6)
        through = dataclasses.replace(through, factor=wanted.factor)
    assert through == wanted
    assert through.is_identity == (not expected)


def test_a_loop_that_changes_a_factor_settles():
    def apply(p, x):
        w, _ = lax.scan(lambda w, _: (w * 0.5, None), p["w"], None, length=12)
        return x @ w

    through = jaxinit.read(apply, {"w": floats(8, 6)}, floats(4, 8))["w"].uses[0].through
    assert through == Through(factor=None)


def test_a_mask_that_is_state_stands_beside_its_kernel():
    shapes = {"params": {"w": floats(8, 6)}, "masks": {"w": floats(8, 6)}}
    read = jaxinit.read(lambda v, x: x @ (v["params"]["w"] * v["masks"]["w"]), shapes, floats(4, 8))
    assert read["params/w"].uses[0].through == Through(beside=("masks/w",))
    assert read["masks/w"].role == "state"


@pytest.mark.parametrize("stops", [False, True])
def test_a_spectrally_normalised_kernel_is_scale_free(stops):
    def unit(v):
        return v / (jnp.linalg.norm(v) + 1e-12)

    def apply(v, x):
        w = v["params"]["w"]
        right = unit(w.T @ v["stats"]["u"])
        left = unit(w @ right)
        if stops:
            left, right = lax.stop_gradient((left, right))
        return x @ (w / (left @ w @ right))

    shapes = {"params": {"w": floats(8, 6)}, "stats": {"u": floats(8)}}
    (use,) = jaxinit.read(apply, shapes, floats(4, 8))["params/w"].uses
    assert use.through.is_scale_free
    assert (use.fan_in, use.fan_out) == (8, 6)


# Fans that count what meets data.


def test_transformed_axes_are_a_receptive_field():
    def dense(p, x):
        k, h = jnp.fft.fft(p["k"]), jnp.fft.fft(x)
        return jnp.fft.ifft(jnp.einsum("oin,bin->bon", k, h)).real

    def depthwise(p, x):
        k, h = jnp.fft.rfft(p["k"], 32), jnp.fft.rfft(x, 32)
        return jnp.fft.irfft(k * h, 32)[..., :16]

    (use,) = jaxinit.read(dense, {"k": floats(8, 4, 16)}, floats(2, 4, 16))["k"].uses
    assert (use.contracted, use.produced, use.field, use.batched) == ((1,), (0,), (2,), ())
    assert (use.fan_in, use.fan_out) == (4 * 16, 8 * 16)
    (use,) = jaxinit.read(depthwise, {"k": floats(4, 16)}, floats(2, 4, 16))["k"].uses
    assert (use.field, use.batched, use.fan_in) == ((1,), (0,), 16)


def test_a_kernel_given_in_frequencies_has_no_receptive_field():
    def apply(p, x):
        return jnp.fft.irfft(jnp.einsum("ion,bin->bon", p["k"], jnp.fft.rfft(x)))

    (use,) = jaxinit.read(apply, {"k": floats(4, 8, 9)}, floats(2, 4, 16))["k"].uses
    assert (use.batched, use.fan_in) == ((2,), 4)


def test_queries_rotated_by_given_positions_are_one_kernel():
    def apply(p, x, positions):
        q = (x @ p["q"]).reshape(2, 6, 2, 8)
        angle = positions[..., None] * jnp.arange(1.0, 5.0)
        sin, cos = jnp.sin(angle)[:, :, None], jnp.cos(angle)[:, :, None]
        a, b = jnp.split(q, 2, -1)
        return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], -1)

    (use,) = jaxinit.read(apply, {"q": floats(4, 16)}, floats(2, 6, 4), ints(2, 6))["q"].uses
    assert (use.fan_in, use.fan_out, use.slice_output) == (4, 16, None)


@pytest.mark.parametrize(("axis", "shape"), [(0, (3, 4, 6)), (1, (4, 3, 6)), (2, (4, 6, 3))])
def test_packed_kernels_lie_along_the_axis_that_is_cut(axis, shape):
    def apply(p, x):
        made = jnp.tensordot(x, p["w"], (1, 0 if axis else 1))
        q, k, v = jnp.unstack(made, axis=1 if axis < 2 else 2)
        return jnp.tanh(q) * k + v

    uses = jaxinit.read(apply, {"w": floats(*shape)}, floats(2, 4))["w"].uses
    assert [(use.slice_axis, use.fan_out) for use in uses] == [(axis, 6)] * 3


@pytest.mark.parametrize(
    ("image", "strides", "padding", "fan_in"),
    [
        (1, 1, "VALID", 5),  # Of 16 taps one meets data at each place.
        (2, 1, "VALID", 5 * 4),
        (8, 2, "SAME", 5 * 4),
        (1, 1, "SAME", 5 * 16),  # What a layer of a larger image has when a small one is given.
    ],
)
def test_taps_that_never_meet_data_count_for_no_fan(image, strides, padding, fan_in):
    def apply(p, x):
        return lax.conv_transpose(x, p["w"], (strides, strides), padding)

    x = floats(2, image, image, 5)
    assert jaxinit.read(apply, {"w": floats(4, 4, 5, 3)}, x)["w"].fan_in == fan_in


# Tables, images and queries that are learned.


def _codebook(p, x):
    chosen = jax.nn.one_hot((x @ p["w"]).argmax(-1), 12)
    return (chosen[:, :, None] * p["codes"]).sum(1)


def _grouped_codebook(p, x):
    chosen = jax.nn.one_hot((x @ p["w"]).reshape(-1, 6).argmax(-1), 6).reshape(x.shape[0], -1)
    picked = chosen[:, :, None] * p["codes"]
    return picked.reshape(x.shape[0], 2, 6, 8).sum(-2)


@pytest.mark.parametrize("apply", [_codebook, _grouped_codebook])
def test_a_product_with_one_hot_vectors_is_a_lookup(apply):
    read = jaxinit.read(apply, {"w": floats(4, 12), "codes": floats(12, 8)}, floats(3, 4))
    (use,) = read["codes"].uses
    assert (use.role, use.contracted, use.produced) == ("embedding", (0,), (1,))


def test_a_learned_image_that_data_scale_enters_like_an_input():
    def apply(p, z):
        return (p["image"] * (z @ p["style"] + 1)[:, None, None]) @ p["out"]

    shapes = {"image": floats(1, 4, 4, 6), "style": floats(3, 6), "out": floats(6, 2)}
    assert jaxinit.read(apply, shapes, floats(2, 3))["image"].role == "embedding"


def test_the_scale_of_a_weight_norm_along_taps_is_a_scale():
    def apply(p, x):
        v = p["v"]
        w = p["g"] * v / jnp.sqrt((v * v).sum((0, 1), keepdims=True))
        return lax.conv_general_dilated(x, w, (1,), "SAME", dimension_numbers=("NCH", "OIH", "NCH"))

    shapes = {"v": floats(8, 4, 5), "g": floats(1, 1, 5)}
    read = jaxinit.read(apply, shapes, floats(2, 4, 16))
    assert read["g"].role == "scale"
    assert read["g"].uses[0].through == Through(beside=("v",))
    assert read["v"].uses[0].through.is_scale_free
    assert read["v"].uses[0].through.factor == pytest.approx(32**-0.5)


def _attend(p, x, context):
    q, k, v = x @ p["q"], context @ p["k"], context @ p["v"]
    return jax.nn.softmax(q @ k.swapaxes(-1, -2) / 4) @ v @ p["o"]


def _unit(x):
    return x / jnp.sqrt((x * x).mean(-1, keepdims=True) + 1e-6)


def test_learned_queries_that_attend_among_themselves_enter_like_an_input():
    def apply(p, x):
        queries = p["queries"] + _attend(p["self"], _unit(p["queries"]), _unit(p["queries"]))
        queries = queries + _attend(p["cross"], _unit(queries), x)
        return _unit(queries) @ p["head"]

    kernels = {name: floats(16, 16) for name in "qkvo"}
    shapes = {"queries": floats(6, 16), "self": kernels, "cross": kernels, "head": floats(16, 3)}
    read = jaxinit.read(apply, shapes, floats(2, 5, 16))
    assert {use.role for use in read["queries"].uses} == {"embedding"}
    for layer in ("self", "cross"):
        for name in "qkvo":
            (use,) = read[f"{layer}/{name}"].uses
            assert (use.role, use.fan_in, use.fan_out) == ("kernel", 16, 16)
    assert read["self/q"].uses[0].after.softmax
    assert read["cross/o"].uses[0].branch.is_last


@pytest.mark.parametrize("rows", [1, 6])
def test_learned_queries_of_attention_pooling(rows):
    def apply(p, x):
        scores = jnp.einsum("qd,bkd->bqk", p["queries"] @ p["q"], x @ p["k"])
        return jnp.einsum("bqk,bkd->bqd", jax.nn.softmax(scores), x @ p["v"])

    shapes = {"queries": floats(rows, 8)} | {name: floats(8, 8) for name in "qkv"}
    read = jaxinit.read(apply, shapes, floats(2, 5, 8))
    assert read["queries"].role == "embedding"
    assert (read["q"].role, read["q"].fan_in) == ("kernel", 8)


def test_a_network_over_learned_inputs_has_layers():
    def apply(p, x):
        return x @ (jnp.tanh(p["code"] @ p["a"]) @ p["b"])

    shapes = {"code": floats(8, 3), "a": floats(3, 5), "b": floats(5, 7)}
    read = jaxinit.read(apply, shapes, floats(2, 8))
    assert [read[name].role for name in ("code", "a")] == ["embedding", "kernel"]
    assert (read["a"].fan_in, read["b"].fan_in) == (3, 5)
    assert read["a"].uses[0].after.activation.name == "tanh"


def test_what_is_unknown_first_stays_unknown():
    def apply(p, x):
        odd = jnp.linalg.inv(p["w"])
        return x @ odd + p["w"][0]

    assert jaxinit.read(apply, {"w": floats(8, 8)}, floats(2, 8))["w"].role == "unknown"


def test_the_parts_of_linen_normalisations_of_weights():
    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.relu(nn.WeightNorm(nn.Dense(16))(x))
            return nn.SpectralNorm(nn.Dense(5))(x, update_stats=True)

    model, x = Model(), floats(4, 8)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((4, 8))))
    read = jaxinit.read(lambda v, x: model.apply(v, x, mutable=["batch_stats"]), shapes, x)
    scale = read["params/WeightNorm_0/Dense_0/kernel/scale"]
    assert scale.role == "scale"
    assert scale.uses[0].through == Through(beside=("params/Dense_0/kernel",))
    assert scale.uses[0].after.activation.name == "relu"
    direction = read["params/Dense_0/kernel"].uses[0].through
    assert direction.is_scale_free
    assert direction.factor == pytest.approx(8**-0.5)
    spectral = read["params/Dense_1/kernel"].uses[0].through
    assert spectral == Through(factor=None, degree=0.0)
    state = [parameter.path for parameter in read if parameter.role == "state"]
    assert [path.rpartition("/")[2] for path in state] == ["sigma", "u"]


@pytest.mark.parametrize("use", [lambda w, m: w * m, lambda w, m: jnp.where(m, w, 0.0)])
def test_a_mask_of_booleans_is_state(use):
    shapes = {"w": floats(4, 6), "m": S((4, 6), "bool")}
    read = jaxinit.read(lambda p, x: x @ use(p["w"], p["m"]), shapes, floats(2, 4))
    assert read["m"].role == "state"
    assert read["w"].uses[0].through == Through(beside=("m",))


def test_shifted_products_make_a_depthwise_convolution():
    def apply(p, x):
        taps = [jnp.pad(x, ((0, 0), (i, 0), (0, 0)))[:, :6] * p["w"][i] for i in range(3)]
        return jnp.tanh(taps[0] + (taps[1] + taps[2])) @ p["out"]

    (use,) = jaxinit.read(apply, {"w": floats(3, 8), "out": floats(8, 2)}, floats(2, 6, 8))[
        "w"
    ].uses
    assert (use.role, use.field, use.batched, use.fan_in) == ("kernel", (0,), (1,), 3)
    assert use.after.activation.name == "tanh"


def test_stacked_scales_of_branches_are_no_convolution():
    def apply(p, x):
        x = x + p["scale"][0] * jnp.tanh(x)
        return x + p["scale"][1] * jnp.tanh(x)

    uses = jaxinit.read(apply, {"scale": floats(2, 8)}, floats(4, 8))["scale"].uses
    assert [use.role for use in uses] == ["scale", "scale"]
