"""Published designs that a reader trips over: coordinate nets, codebooks, caches, gradients."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from zoo.expect import (
    BIAS,
    LAST_SCALE,
    SCALE,
    Leaf,
    array,
    embedding,
    head,
    ids,
    kernel,
    packed,
)
from zoo.plain import model, normed, unit

NHWC = ("NHWC", "HWIO", "NHWC")


@model(
    {"depth": (7, 7, 1, 6), "up": (6, 11), "down": (11, 6), "gamma": (6,), "last": (6, 3)},
    array(2, 9, 8, 6),
    depth=kernel(49, 49, groups=6, norm="layer", last=False),
    up=kernel(6, 11, activation="gelu", last=False),
    down=kernel(11, 6, last=True),
    gamma=LAST_SCALE,
    last=head(6, 3),
)
def conv_next(p, x):
    y = jax.lax.conv_general_dilated(
        x, p["depth"], (1, 1), "SAME", dimension_numbers=NHWC, feature_group_count=6
    )
    y = jax.nn.gelu(normed(y) @ p["up"]) @ p["down"]
    return normed((x + y * p["gamma"][None, None, None]).mean((1, 2))) @ p["last"]


@model(
    {"filter": (2, 4, 5), "gate": (2, 4, 5), "out": (5, 4), "skip": (5, 6), "last": (6, 3)},
    array(2, 9, 4),
    filter=kernel(8, 10, activation="tanh", gates=True),
    gate=kernel(8, 10, activation="sigmoid", gates=True),
    out=kernel(5, 4, last=True),
    skip=kernel(5, 6),
    last=head(6, 3),
)
def wave_net(p, x):
    def conv(w):
        return jax.lax.conv_general_dilated(
            x, w, (1,), [(2, 0)], rhs_dilation=(2,), dimension_numbers=("NWC", "WIO", "NWC")
        )

    y = jnp.tanh(conv(p["filter"])) * jax.nn.sigmoid(conv(p["gate"]))
    x = x + y @ p["out"]
    return jax.nn.relu(y @ p["skip"] + x.sum(-1, keepdims=True)) @ p["last"]


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


@model(
    {"into": (6, 8), "out": (4, 5), "last": (5, 6)},
    array(2, 6),
    array(2, 4),
    into=packed(kernel(6, 4), kernel(6, 4, gates=False)),
    out=kernel(4, 5, activation="relu"),
    last=head(5, 6),
)
def variational_autoencoder(p, x, noise):
    mean, log_variance = jnp.split(x @ p["into"], 2, axis=-1)
    code = mean + jnp.exp(log_variance / 2) * noise
    return jax.nn.relu(code @ p["out"]) @ p["last"]


@model(
    {"into": (6, 4), "book": (9, 4), "last": (4, 6)},
    array(2, 6),
    into=kernel(6, 4),
    # Compared with every row, then the nearest is looked up.
    book=packed(kernel(4, 9), embedding()),
    last=head(4, 6),
)
def codebook(p, x):
    x = x @ p["into"]
    nearest = jnp.argmax(x @ unit(p["book"], -1).T, axis=-1)
    chosen = p["book"][nearest]
    return (x + jax.lax.stop_gradient(chosen - x)) @ p["last"]


@model(
    {"w": (4, 5), "v": (5, 1)},
    array(2, 4),
    # The slope of an energy: forward to the hidden units, and back through the same kernel.
    w=packed(kernel(4, 5, axes=((0,), (1,), ())), head(5, 4, axes=((1,), (0,), ()))),
    v=kernel(1, 5),
)
def force(p, x):
    def energy(x):
        return (jnp.tanh(x @ p["w"]) @ p["v"]).sum()

    return -jax.grad(energy)(x)


@model(
    {"w": (1, 5), "v": (5, 1), "b": (5,)},
    array(7, 1),
    # Value and slope in one pass: a kernel meets the value and its tangent, which at first is 1.
    w=kernel(1, 5),
    v=packed(head(5, 1), head(5, 1)),
    b=BIAS,
)
def residual_of_an_equation(p, x):
    def net(x):
        return jnp.tanh(x @ p["w"] + p["b"][None]) @ p["v"]

    value, slope = jax.jvp(net, (x,), (jnp.ones_like(x),))
    return slope + value


@model(
    {"attention": (36, 12), "out": (12, 12), "last": (40, 12)},
    array(2, 7, 12),
    # Kernels stored outputs first, as GPT-2 in Hugging Face's Flax has them.
    attention=packed(
        kernel(12, 12, axes=((1,), (0,), ()), softmax=True),
        kernel(12, 12, axes=((1,), (0,), ()), softmax=True),
        kernel(12, 12, axes=((1,), (0,), ()), softmax=False),
    ),
    out=kernel(12, 12, axes=((1,), (0,), ()), last=True),
    last=head(12, 40, axes=((1,), (0,), ())),
)
def transposed_storage(p, x):
    y = jax.lax.dot_general(normed(x), p["attention"].T, (((2,), (0,)), ((), ())))
    parts = jnp.split(y, 3, axis=2)
    query, key, value = (part.reshape(2, 7, 3, 4) for part in parts)
    weights = jax.nn.softmax(jnp.einsum("bqhd,bkhd->bhqk", query, key) / 2)
    mixed = jnp.einsum("bhqk,bkhd->bqhd", weights, value).reshape(2, 7, 12)
    return normed(x + mixed @ p["out"].T) @ p["last"].T


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
    {"w": (5, 6), "v": (6, 5), "last": (5, 3), "scale": (5,)},
    array(2, 7, 5),
    w=kernel(5, 6, activation="relu", last=False),
    v=kernel(6, 5, last=True),
    last=head(5, 3),
    scale=SCALE,
)
def stochastic_depth(p, x):
    y = jax.nn.relu((normed(x) * p["scale"][None, None]) @ p["w"]) @ p["v"]
    keep = jax.random.bernoulli(jax.random.key(0), 0.9, (2, 1, 1))
    return normed(x + jnp.where(keep, y / 0.9, 0.0)) @ p["last"]
