"""Autoencoders and pairs of encoders: codes that are sampled, looked up or compared."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from zoo.expect import BIAS, SCALE, array, embedding, head, kernel, packed
from zoo.plain import model, unit


@model(
    {"w": (6, 4), "b": (4,), "c": (6,)},
    array(3, 6),
    w=packed(kernel(6, 4, axes=((0,), (1,), ()), activation="tanh"), head(4, 6)),
    b=BIAS,
    c=BIAS,
)
def tied_autoencoder(p, x):
    return jnp.tanh(x @ p["w"] + p["b"][None]) @ p["w"].T + p["c"][None]


@model(
    {"one": (6, 5), "two": (5, 4), "last": (8, 2)},
    array(3, 6),
    array(3, 6),
    one=packed(*[kernel(6, 5, activation="relu")] * 2),
    two=packed(*[kernel(5, 4)] * 2),
    last=head(8, 2),
)
def siamese(p, x, y):
    left, right = (jax.nn.relu(z @ p["one"]) @ p["two"] for z in (x, y))
    return jnp.concatenate([left, right], axis=-1) @ p["last"]


@model(
    {"image": (6, 5), "text": (7, 5), "temperature": ()},
    array(3, 6),
    array(3, 7),
    # They meet as query and key do: neither makes an output alone.
    image=kernel(6, 5),
    text=kernel(7, 5),
    temperature=SCALE,
)
def contrastive(p, x, y):
    left, right = unit(x @ p["image"], -1), unit(y @ p["text"], -1)
    return jnp.exp(p["temperature"]) * left @ right.T


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
