"""Dense layers: joined, gated, modulated, with coordinates or complex numbers for data."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from zoo.expect import BIAS, Leaf, array, head, kernel, packed
from zoo.plain import model


@model(
    {"a": (4, 5), "b": (9, 6), "c": (15, 7), "last": (22, 3)},
    array(2, 4),
    # Every layer reads what all before it made.
    a=kernel(4, 5, activation="relu", last=False, depth=1),
    b=kernel(9, 6, activation="relu", last=False, depth=2),
    c=kernel(15, 7, activation="relu", last=False, depth=3),
    last=head(22, 3, depth=4),
)
def dense_net(p, x):
    for name in "abc":
        x = jnp.concatenate([x, jax.nn.relu(x @ p[name])], axis=-1)
    return x @ p["last"]


@model(
    {"a": (4, 5), "b": (4, 6), "last": (11, 3)},
    array(2, 4),
    a=kernel(4, 5, activation="relu"),
    b=kernel(4, 6, activation="relu"),
    last=head(11, 3),
)
def kernels_side_by_side(p, x):
    return jax.nn.relu(x @ jnp.concatenate([p["a"], p["b"]], axis=1)) @ p["last"]


@model(
    {"a": (4, 5), "b": (6, 5), "last": (5, 3)},
    array(2, 4),
    array(2, 6),
    # One output sums over both: 10 products.
    a=kernel(10, 5, activation="relu"),
    b=kernel(10, 5, activation="relu"),
    last=head(5, 3),
)
def kernels_on_top_of_each_other(p, x, y):
    both = jnp.concatenate([x, y], axis=1)
    return jax.nn.relu(both @ jnp.concatenate([p["a"], p["b"]], axis=0)) @ p["last"]


@model(
    {"w": (5, 18), "down": (9, 5)},
    array(3, 5),
    w=packed(
        kernel(5, 9, activation="silu", gates=True),
        kernel(5, 9, activation="none", gates=True),
    ),
    down=head(9, 5),
)
def packed_gates_cut_before(p, x):
    return (jax.nn.silu(x @ p["w"][:, :9]) * (x @ p["w"][:, 9:])) @ p["down"]


@model(
    {"w": (5, 8), "film": (4, 16), "last": (8, 3)},
    array(2, 5),
    array(2, 4),
    w=kernel(5, 8),
    film=packed(kernel(4, 8, gates=True), kernel(4, 8, activation="relu", gates=False)),
    last=head(8, 3),
)
def film(p, x, condition):
    scale, shift = jnp.split(condition @ p["film"], 2, axis=-1)
    return jax.nn.relu((x @ p["w"]) * (1 + scale) + shift) @ p["last"]


@model(
    {"w": (5, 5), "gate": (5, 5), "b": (5,), "last": (5, 3)},
    array(2, 5),
    w=kernel(5, 5, activation="relu", gates=True),
    gate=kernel(5, 5, activation="sigmoid", gates=True),
    b=BIAS,
    last=head(5, 3),
)
def highway(p, x):
    gate = jax.nn.sigmoid(x @ p["gate"] + p["b"][None])
    return (gate * jax.nn.relu(x @ p["w"]) + (1 - gate) * x) @ p["last"]


@model(
    {"w": (7, 4, 5), "last": (7, 3)},
    array(2, 4),
    array(2, 5),
    # It meets the first input, and what comes of that the second: 4 products, 35 outputs.
    w=kernel(4, 35),
    last=head(7, 3),
)
def bilinear(p, x, y):
    half = jnp.einsum("bi,oij->boj", x, p["w"])
    return jnp.einsum("boj,bj->bo", half, y) @ p["last"]


@model(
    {
        "w": array(4, 5, dtype=jnp.complex64),
        "b": array(5, dtype=jnp.complex64),
        "last": array(5, 3, dtype=jnp.complex64),
    },
    array(2, 4, dtype=jnp.complex64),
    w=kernel(4, 5),
    b=BIAS,
    last=head(5, 3),
)
def complex_layers(p, x):
    x = x @ p["w"] + p["b"][None]
    return (jax.nn.relu(x.real) + 1j * jax.nn.relu(x.imag)) @ p["last"]


@model(
    {"w": (4, 5), "steps": (5,), "last": (5, 3)},
    array(2, 4),
    w=kernel(4, 5, activation="relu"),
    steps=BIAS,
    last=head(5, 3),
)
def ordered_thresholds(p, x):
    return jax.nn.relu(x @ p["w"] - jnp.cumsum(jnp.exp(p["steps"]))[None]) @ p["last"]


@model(
    {"a": (2, 7), "b": (7, 5), "last": (5, 3), "c": (7,), "d": (5,)},
    array(4, 2),
    a=kernel(2, 7),
    b=kernel(7, 5),
    last=head(5, 3),
    c=BIAS,
    d=BIAS,
)
def sines(p, x):
    x = jnp.sin(30.0 * (x @ p["a"] + p["c"][None]))
    return jnp.sin(30.0 * (x @ p["b"]) + p["d"][None]) @ p["last"]


@model(
    {"a": (12, 7), "b": (19, 5), "density": (5, 1), "colour": (9, 3)},
    array(4, 3),
    array(4, 4),
    a=kernel(12, 7, activation="relu"),
    # The input comes back in: 7 features and 12 of the coordinates.
    b=kernel(19, 5, activation="relu"),
    density=head(5, 1, activation="relu"),
    colour=head(9, 3, activation="sigmoid"),
)
def radiance_field(p, x, view):
    angles = (x[..., None] * 2.0 ** jnp.arange(2)[None, None]).reshape(4, 6)
    x = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], -1)
    y = jax.nn.relu(x @ p["a"])
    y = jax.nn.relu(jnp.concatenate([y, x], -1) @ p["b"])
    colour = jax.nn.sigmoid(jnp.concatenate([y, view], -1) @ p["colour"])
    return jax.nn.relu(y @ p["density"]), colour


@model(
    {"w": (4, 5), "policy": (5, 3), "value": (5, 1), "spread": (3,)},
    array(2, 4),
    w=kernel(4, 5, activation="tanh"),
    policy=head(5, 3),
    value=head(5, 1),
    # A result that no input touches, spread over the batch.
    spread=Leaf("bias"),
)
def actor_and_critic(p, x):
    x = jnp.tanh(x @ p["w"])
    mean = x @ p["policy"]
    return mean, jnp.exp(p["spread"])[None] + 0 * mean, x @ p["value"]
