"""The reading knows primitives from the table of `jaxinit.jaxpr` alone: small models for each case.

Most of these were misread while the reading had tables of its own; the others stand beside them.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.ad_checkpoint import checkpoint_name

import jaxinit

pytestmark = pytest.mark.unoptimized

X = jax.ShapeDtypeStruct((2, 4), "float32")


def read(model, *inputs, **shapes):
    """Reading of a model whose parameters have these shapes."""
    tree = {name: jax.ShapeDtypeStruct(shape, "float32") for name, shape in shapes.items()}
    with jax.numpy_rank_promotion("allow"):
        return jaxinit.read(model, tree, *(inputs or (X,)))


def only_use(reading, name):
    (use,) = reading[name].uses
    return use


def summary(reading, name):
    """Role, axes and fans of the only use of a parameter."""
    use = only_use(reading, name)
    return use.role, use.contracted, use.produced, use.batched, use.fan_in, use.fan_out


# Activations.

ACTIVATIONS = {
    "digamma": jax.scipy.special.digamma,
    "lgamma": jax.scipy.special.gammaln,
    "erf_inv": lax.erf_inv,
    "bessel_i0e": jax.scipy.special.i0e,
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_a_special_function_is_an_activation(name):
    function = ACTIVATIONS[name]
    reading = read(lambda p, x: function(x @ p["a"]) @ p["b"], a=(4, 5), b=(5, 3))
    activation = only_use(reading, "a").after.activation
    # NumPy has none of these, so the name is that of the call.
    assert activation is not None and activation.name in (name, "gammaln", "i0e")
    points = jnp.linspace(0.1, 0.9, 5)
    np.testing.assert_allclose(activation.function(points), function(points), rtol=1e-6)


# Moves on the way of data.

MOVES = {
    "name": lambda x: checkpoint_name(x, "kept"),
    "device_put": lambda x: jax.device_put(x),
    "copy": jnp.copy,
    "stop_gradient": lax.stop_gradient,
    "reduce_precision": lambda x: lax.reduce_precision(x, 8, 7),
    "optimization_barrier": lax.optimization_barrier,
    "roll": lambda x: jnp.roll(x, 1, 0),
    "unstacked and stacked": lambda x: jnp.stack(jnp.unstack(x)),
    "padded by concatenation": lambda x: jnp.concatenate([jnp.zeros_like(x), x])[2:],
}


@pytest.mark.parametrize("name", MOVES)
def test_a_move_at_the_end_of_a_branch_keeps_it_the_end(name):
    move = MOVES[name]

    def model(p, x):
        return x + move(jnp.tanh(x @ p["a"]) @ p["b"])

    use = only_use(read(model, a=(4, 5), b=(5, 4)), "b")
    assert use.branch is not None and use.branch.is_last and use.branch.depth == 2


@pytest.mark.parametrize("name", MOVES)
def test_a_move_on_the_stream_keeps_the_stream(name):
    move = MOVES[name]

    def model(p, x):
        for n in range(2):
            x = move(x + jnp.tanh(x @ p[f"a{n}"]) @ p[f"b{n}"])
        return x

    reading = read(model, a0=(4, 5), b0=(5, 4), a1=(4, 5), b1=(5, 4))
    assert reading.chain.streams == (2,)
    assert [only_use(reading, f"b{n}").branch.index for n in (0, 1)] == [0, 1]


def test_tiled_data_keep_their_stream():
    def model(p, x):
        x = jnp.tile(x + jnp.tanh(x @ p["a"]) @ p["b"], (3, 1))
        return x + jnp.tanh(x @ p["c"]) @ p["d"]

    reading = read(model, a=(4, 5), b=(5, 4), c=(4, 5), d=(5, 4))
    assert reading.chain.streams == (2,)


def test_unstacked_heads_are_slices_of_one_output():
    def model(p, x):
        gate, value = jnp.unstack((x @ p["a"]).reshape(2, 2, 5), axis=1)
        return (jax.nn.sigmoid(gate) * value) @ p["b"]

    reading = read(model, a=(4, 10), b=(5, 3))
    assert all(use.after.gates for use in reading["a"].uses)


# Parameters on their way to data.


def test_stacked_kernels_are_kernels():
    def model(p, x):
        made = jnp.einsum("bi,kio->bko", x, jnp.stack([p["a"], p["b"]]))
        return jnp.tanh(made) @ p["end"]

    reading = read(model, a=(4, 6), b=(4, 6), end=(6, 3))
    assert not reading.unknown
    for name in "ab":
        assert summary(reading, name) == ("kernel", (0,), (1,), (), 4, 6)


def test_stacking_rows_is_concatenating_them_with_a_new_axis():
    def stacked(p, x):
        return jnp.tanh(x @ jnp.stack([p[name] for name in "abcd"]))

    def concatenated(p, x):
        return jnp.tanh(x @ jnp.concatenate([p[name][None] for name in "abcd"]))

    one, other = (read(model, **dict.fromkeys("abcd", (6,))) for model in (stacked, concatenated))
    assert not one.unknown
    assert summary(one, "a") == summary(other, "a")


def test_stacked_data_keep_the_features_that_a_kernel_made():
    def model(p, x):
        return jnp.stack([x @ p["a"], x @ p["a"]]) + p["bias"]

    assert read(model, a=(4, 6), bias=(6,))["bias"].role == "bias"


@pytest.mark.parametrize("method", ["max", "min", "multiply", "add", "set"])
def test_a_parameter_that_is_written_into_data_enters_them(method):
    def model(p, x, rows):
        return getattr(x.at[rows], method)(p["w"])

    rows = jax.ShapeDtypeStruct((2,), "int32")
    reading = read(model, X, rows, w=(4,))
    assert reading["w"].role == "embedding" and not reading.unknown


@pytest.mark.parametrize("name", ["name", "copy", "reduce_precision", "stop_gradient"])
def test_a_product_that_is_summed_at_once_is_a_contraction_through_a_move(name):
    move = MOVES[name]
    model = lambda p, x: jnp.tanh(move(x * p["w"]).sum(-1, keepdims=True)) @ p["end"]  # noqa: E731
    assert summary(read(model, w=(4,), end=(1, 3)), "w") == ("kernel", (0,), (), (), 4, 1)


@pytest.mark.parametrize(
    "function",
    [
        jax.scipy.special.digamma,
        lambda p: lax.population_count(p.astype(jnp.int32)).astype(jnp.float32),
        lambda p: lax.igamma_grad_a(p, p),
        # Newer JAX makes one_minus_square of the gradient and polynomial of the polynomial.
        jax.vmap(jax.vmap(jax.grad(jnp.tanh))),
        lambda p: jnp.polyval(jnp.ones(3), p),
    ],
    ids=["digamma", "population_count", "igamma_grad_a", "one_minus_square", "polynomial"],
)
def test_a_kernel_may_pass_any_function_of_single_entries(function):
    reading = read(lambda p, x: x @ function(p["w"]), w=(4, 6))
    assert not reading.unknown and reading["w"].fan_in == 4


def test_groups_of_rows_have_a_kernel_each():
    def model(p, x, sizes):
        return jnp.tanh(lax.ragged_dot(x, p["w"], sizes)) @ p["end"]

    reading = read(model, X, jax.ShapeDtypeStruct((3,), "int32"), w=(3, 4, 6), end=(6, 2))
    assert summary(reading, "w") == ("kernel", (1,), (2,), (0,), 4, 6)


def test_pooled_parameters_keep_their_axes():
    def model(p, x):
        pooled = lax.reduce_window(p["w"], 0.0, lax.add, (1, 2), (1, 2), "VALID")
        return jnp.tanh(x @ pooled) @ p["end"]

    reading = read(model, w=(4, 6), end=(3, 2))
    assert summary(reading, "w") == ("kernel", (0,), (1,), (), 4, 3)
