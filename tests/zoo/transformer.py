"""Blocks of transformers: residual branches and how they are scaled, attention, packed gates."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from zoo.expect import BIAS, LAST_SCALE, SCALE, Leaf, array, head, kernel, packed
from zoo.plain import model, normed


@model(
    {"w": (5, 18), "down": (9, 5)},
    array(3, 5),
    w=packed(
        kernel(5, 9, activation="silu", gates=True, last=False),
        kernel(5, 9, activation="none", gates=True, last=False),
    ),
    down=kernel(9, 5, last=True),
)
def packed_gates(p, x):
    gate, up = jnp.split(normed(x) @ p["w"], 2, axis=-1)
    return x + (jax.nn.silu(gate) * up) @ p["down"]


@model(
    {"w": (12, 35), "out": (35, 12), "fc": (12, 48), "down": (48, 12)},
    array(2, 3, 12),
    # Two branches leave the stream at one place and join it at one, as in PaLM.
    w=kernel(12, 35, activation="silu", last=False),
    out=kernel(35, 12, last=True),
    fc=kernel(12, 48, activation="relu", last=False),
    down=kernel(48, 12, last=True),
)
def parallel_branches(p, x):
    y = normed(x)
    x = x + jax.nn.silu(y @ p["w"]) @ p["out"] + jax.nn.relu(y @ p["fc"]) @ p["down"]
    return normed(x)


@model(
    {"w": (5, 8), "out": (8, 5), "gamma": (5,), "last": (5, 3)},
    array(2, 5),
    w=kernel(5, 8, activation="relu"),
    out=kernel(8, 5, last=True),
    gamma=LAST_SCALE,
    last=head(5, 3),
)
def layer_scale(p, x):
    return (x + (jax.nn.relu(normed(x) @ p["w"]) @ p["out"]) * p["gamma"][None]) @ p["last"]


@model(
    {"w": (5, 8), "out": (8, 5), "alpha": (), "last": (5, 3)},
    array(2, 5),
    w=kernel(5, 8, activation="relu"),
    out=kernel(8, 5, last=True),
    alpha=LAST_SCALE,
    last=head(5, 3),
)
def re_zero(p, x):
    return (x + p["alpha"] * (jax.nn.relu(x @ p["w"]) @ p["out"])) @ p["last"]


@model(
    {"c": (4, 5), "ada": (5, 24), "bias": (24,), "up": (8, 11), "down": (11, 8), "last": (8, 3)},
    array(2, 6, 8),
    array(2, 4),
    c=kernel(4, 5, activation="silu"),
    # Shift, scale and gate of one branch; the gate closes it.
    ada=packed(*[kernel(5, 8)] * 3),
    bias=BIAS,
    up=kernel(8, 11, activation="gelu", last=False),
    down=kernel(11, 8, gates=True, last=True),
    last=head(8, 3),
)
def adaptive_norm(p, x, condition):
    c = jax.nn.silu(condition @ p["c"]) @ p["ada"] + p["bias"][None]
    shift, scale, gate = jnp.split(c[:, None, :], 3, axis=-1)
    y = jax.nn.gelu((normed(x) * (1 + scale) + shift) @ p["up"]) @ p["down"]
    return normed(x + gate * y) @ p["last"]


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


@model(
    {"latents": (3, 4), "key": (5, 6), "query": (4, 6), "value": (5, 7), "last": (7, 2)},
    array(2, 8, 5),
    # Learned queries, as in DETR and Perceiver: they play the part of data.
    latents=Leaf("embedding"),
    query=kernel(4, 6, softmax=True),
    key=kernel(5, 6, softmax=True),
    value=kernel(5, 7, softmax=False),
    last=head(7, 2),
)
def learned_queries(p, x):
    latents = jnp.broadcast_to(p["latents"][None], (2, 3, 4))
    logits = jnp.einsum("bqd,bkd->bqk", latents @ p["query"], x @ p["key"]) / 6**0.5
    return (jax.nn.softmax(logits) @ (x @ p["value"])) @ p["last"]


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
