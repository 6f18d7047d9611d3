"""Sizes of one, stored tables of numbers, quantised kernels: where shapes say little."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from zoo.expect import (
    BIAS,
    POSITION,
    SCALE,
    STATE,
    Case,
    array,
    embedding,
    head,
    ids,
    kernel,
    linen,
    packed,
)
from zoo.plain import CASES, model


class Ones(nn.Module):
    """One head, one group, one channel, one token, one output."""

    @nn.compact
    def __call__(self, x):
        x = nn.DenseGeneral((1, 4), axis=-1, name="split")(x)
        x = nn.DenseGeneral(3, axis=(-2, -1), name="join")(nn.relu(x))
        x = nn.LayerNorm(name="norm")(x)
        x = x + nn.MultiHeadDotProductAttention(1, qkv_features=4, name="attention")(x)
        x = nn.Conv(1, (1,), name="mix")(x)
        x = nn.Dense(1, name="gain")(jnp.tanh(x))
        x = nn.Dense(5, name="widen")(nn.silu(x))
        return nn.Dense(1, name="last")(nn.relu(x))


def ones(batch: int, length: int) -> Case:
    return linen(
        Ones(),
        array(batch, length, 2),
        table={
            "**/split/kernel": kernel(2, 4, activation="relu"),
            "**/join/kernel": kernel(4, 3, norm="layer"),
            "**/attention/{query,key}/kernel": kernel(3, 4, softmax=True),
            "**/attention/value/kernel": kernel(3, 4),
            "**/attention/out/kernel": kernel(4, 3, last=True),
            "**/mix/kernel": kernel(3, 1, activation="tanh"),
            "**/gain/kernel": kernel(1, 1, activation="silu"),
            "**/widen/kernel": kernel(1, 5, activation="relu"),
            "**/last/kernel": head(5, 1),
            "**/norm/scale": SCALE,
            "**/bias": BIAS,
        },
    )


CASES["sizes of one"] = lambda: ones(1, 1)
CASES["sizes of one, long"] = lambda: ones(1, 6)
CASES["sizes of one, many"] = lambda: ones(7, 1)


@model(
    {"table": (9, 4), "places": ids(6), "mask": array(6, dtype=jnp.bool_), "last": (4, 3)},
    array(2, 6, 4),
    table=POSITION,
    # Numbers that are stored with the parameters, as buffers are.
    places=STATE,
    mask=STATE,
    last=head(4, 3),
)
def stored_numbers(p, x):
    x = x + p["table"][p["places"]][None]
    return jnp.where(p["mask"][None, :, None], x, 0).mean(1) @ p["last"]


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
    {"w": (6, 4, 5), "table": (6, 4), "last": (5, 3)},
    ids(7),
    array(7, 4),
    # Data choose the kernel: one of 6 for each row.
    w=kernel(4, 5, axes=((1,), (2,), (0,)), activation="relu"),
    table=embedding(),
    last=head(5, 3),
)
def chosen_kernels(p, which, x):
    x = x + p["table"][which]
    return jax.nn.relu(jnp.einsum("bi,bio->bo", x, p["w"][which])) @ p["last"]


@model(
    {"w": (4, 6, 5), "b": (4, 5), "last": (5, 3)},
    array(2, 6),
    # A Python loop over stacked layers: each slice is its own layer, used once.
    w=packed(*[kernel(6, 5, axes=((1,), (2,), (0,)), activation="tanh")] * 4),
    b=BIAS,
    last=head(5, 3),
)
def indexed_stack(p, x):
    for n in range(4):
        y = jnp.tanh(x @ p["w"][n] + p["b"][n][None])
        x = jnp.pad(y, ((0, 0), (0, 1)))
    return y @ p["last"]
