"""Convolutions, between pixels, along time and in frequency."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from zoo.expect import LAST_SCALE, array, head, kernel
from zoo.plain import model, normed

NHWC = ("NHWC", "HWIO", "NHWC")


@model(
    {"w": (3, 3, 2, 5), "v": (3, 3, 10, 4), "last": (16, 3)},
    array(2, 8, 8, 2),
    w=kernel(18, 45),
    v=kernel(90, 36, activation="relu"),
    # Four pixels of four channels are left.
    last=head(16, 3),
)
def convolution_and_pooling(p, x):
    def conv(x, w):
        spec = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=spec)

    def pool(x, start, step):
        return jax.lax.reduce_window(x, start, step, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")

    x = conv(x, p["w"])
    x = jnp.concatenate([pool(x, -jnp.inf, jax.lax.max), pool(x, 0.0, jax.lax.add) / 4], -1)
    x = pool(jax.nn.relu(conv(x, p["v"])), -jnp.inf, jax.lax.max)
    return x.reshape(2, -1) @ p["last"]


@model(
    {"w": (3, 3, 5, 8), "squeeze": (8, 2), "excite": (2, 8), "last": (8, 3)},
    array(2, 9, 7, 5),
    w=kernel(45, 72),
    squeeze=kernel(8, 2, activation="relu"),
    excite=kernel(2, 8, activation="sigmoid", gates=True),
    last=head(8, 3),
)
def squeeze_and_excitation(p, x):
    spec = ("NHWC", "HWIO", "NHWC")
    x = jax.lax.conv_general_dilated(x, p["w"], (1, 1), "SAME", dimension_numbers=spec)
    gate = jax.nn.sigmoid(jax.nn.relu(x.mean((1, 2)) @ p["squeeze"]) @ p["excite"])
    return (x * gate[:, None, None, :]).mean((1, 2)) @ p["last"]


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
    {"spectral": array(5, 6, 3, dtype=jnp.complex64), "local": (5, 6), "last": (6, 2)},
    array(2, 8, 5),
    # A map of its own for each of the lowest 3 frequencies.
    spectral=kernel(5, 6, axes=((0,), (1,), (2,))),
    local=kernel(5, 6, activation="gelu"),
    last=head(6, 2),
)
def fourier_operator(p, x):
    modes = jnp.fft.rfft(x, axis=1)[:, :3]
    modes = jnp.einsum("bmi,iom->bmo", modes, p["spectral"])
    y = jnp.fft.irfft(modes, n=8, axis=1)
    return jax.nn.gelu(y + x @ p["local"]) @ p["last"]
