"""Kernels made from parameters: of low rank, normalised, rounded, mixed, made by a network.

Where the honest answer is "unknown", the table names the equation that has to be named.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from zoo.expect import SCALE, array, embedding, head, ids, kernel, unknown
from zoo.plain import model, unit


@model(
    {"w": (6, 5), "a": (6, 2), "b": (2, 5), "last": (5, 3)},
    array(4, 6),
    w=kernel(6, 5, activation="relu", last=False),
    a=kernel(6, 2, activation="identity", last=False),
    b=kernel(2, 5, activation="relu", last=False),
    last=head(5, 3),
)
def lora(p, x):
    frozen = jax.lax.stop_gradient(p["w"])
    return jax.nn.relu(x @ frozen + (x @ p["a"]) @ p["b"] * 8.0) @ p["last"]


@model(
    {"w": (6, 5), "a": (6, 2), "b": (2, 5), "last": (5, 3)},
    array(4, 6),
    # x (W + A B) is x W + (x A) B, whichever product is taken first.
    w=kernel(6, 5, activation="relu"),
    a=kernel(6, 2, axes=((0,), (1,), ())),
    b=kernel(2, 5, axes=((0,), (1,), ())),
    last=head(5, 3),
)
def lora_merged(p, x):
    return jax.nn.relu(x @ (p["w"] + p["a"] @ p["b"])) @ p["last"]


@model(
    {"table": (11, 6), "down": (6, 4), "last": (4, 3)},
    ids(2, 7),
    table=embedding(),
    down=kernel(6, 4),
    last=head(4, 3),
)
def factored_embedding(p, tokens):
    rows = jax.nn.one_hot(tokens, 11) @ p["table"]
    return jnp.tanh(rows @ p["down"]).mean(1) @ p["last"]


@model(
    {"w": (3, 5), "last": (5, 2)},
    array(2, 4),
    # The features are mixed from 4 to 3 by a constant first, then by the kernel: (x C) w.
    w=kernel(3, 5),
    last=head(5, 2),
)
def kernel_in_a_basis(p, x):
    basis = jnp.cos(jnp.outer(jnp.arange(4.0), jnp.arange(3.0)))
    return jax.nn.relu(x @ (basis @ p["w"])) @ p["last"]


@model(
    {"w": (3, 3, 4, 5), "gain": (5,), "last": (5, 3)},
    array(2, 8, 8, 4),
    w=kernel(36, 45, activation="relu"),
    gain=SCALE,
    last=head(5, 3),
)
def standardised_weights(p, x):
    w = p["w"] - p["w"].mean((0, 1, 2), keepdims=True)
    w = unit(w, (0, 1, 2)) * p["gain"][None, None, None]
    spec = ("NHWC", "HWIO", "NHWC")
    x = jax.lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=spec)
    return jax.nn.relu(x).mean((1, 2)) @ p["last"]


@model(
    {"w": (4, 5), "last": (5, 3)},
    array(2, 4),
    w=kernel(4, 5, activation="relu"),
    last=head(5, 3),
)
def rounded_weights(p, x):
    def rounded(w):
        return w + jax.lax.stop_gradient(jnp.round(w * 8) / 8 - w)

    return jax.nn.relu(x @ rounded(p["w"])) @ p["last"]


@model(
    {"w": (4, 5), "last": (5, 3)},
    array(2, 4),
    # In another order, but each output still sums over an axis of four.
    w=kernel(4, 5, activation="relu"),
    last=head(5, 3),
)
def sorted_weights(p, x):
    return jax.nn.relu(x @ jnp.sort(p["w"], axis=0)) @ p["last"]


@model(
    {"w": (3, 4, 5), "fuse": (3,), "last": (5, 2)},
    array(2, 4),
    # Kernels weighed by a parameter: a soft choice of three.
    w=kernel(4, 5, activation="relu"),
    fuse=SCALE,
    last=head(5, 2),
)
def soft_choice_of_kernels(p, x):
    weights = jax.nn.softmax(p["fuse"])
    w = (p["w"] * weights[:, None, None]).sum(axis=0)
    return jax.nn.relu(x @ w) @ p["last"]


@model(
    {"w": array(4, 5, dtype=jnp.int8), "scale": (5,), "zero": (5,), "last": (5, 3)},
    array(2, 4),
    w=kernel(4, 5, activation="relu"),
    scale=SCALE,
    # x (w - zero) is x w - sum(x) zero: it multiplies data.
    zero=SCALE,
    last=head(5, 3),
)
def quantised_kernel(p, x):
    w = (p["w"].astype(jnp.float32) - p["zero"][None]) * p["scale"][None]
    return jax.nn.relu(x @ w) @ p["last"]


@model(
    {"w": (4, 4), "last": (4, 3)},
    array(2, 4),
    # A rotation made from a skew matrix: nothing is said of fans.
    w=unknown("solve"),
    last=head(4, 3),
)
def cayley(p, x):
    skew = p["w"] - p["w"].T
    eye = jnp.eye(4)
    return jax.nn.relu(x @ jnp.linalg.solve(eye + skew, eye - skew)) @ p["last"]


@model(
    {"hyper": (3, 20), "stem": (2, 4), "last": (5, 6)},
    array(2, 2),
    array(3),
    # A kernel that is data: what makes it is an ordinary map.
    hyper=kernel(3, 20),
    stem=kernel(2, 4),
    last=head(5, 6),
)
def hypernetwork(p, x, code):
    w = (code @ p["hyper"]).reshape(4, 5)
    return jax.nn.relu((x @ p["stem"]) @ w) @ p["last"]
