"""Rows that numbers choose: embeddings, graphs, experts, tables of numbers that are stored."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from zoo.expect import POSITION, STATE, array, embedding, head, ids, kernel
from zoo.plain import model


@model(
    {"w": (4, 5), "v": (4, 5), "last": (5, 3)},
    array(6, 4),
    ids(9),
    ids(9),
    # Messages along the edges of a graph, summed where they arrive.
    w=kernel(4, 5, activation="relu"),
    v=kernel(4, 5, activation="relu"),
    last=head(5, 3),
)
def message_passing(p, x, senders, receivers):
    messages = (x @ p["w"])[senders]
    gathered = jax.ops.segment_sum(messages, receivers, num_segments=6)
    return jax.nn.relu(x @ p["v"] + gathered) @ p["last"]


@model(
    {"table": (11, 4), "position": (16, 4), "last": (4, 3)},
    ids(2, 7),
    table=embedding(),
    position=POSITION,
    last=head(4, 3),
)
def bag_of_words(p, tokens):
    x = p["table"].at[0].set(0.0)[tokens] + p["position"][None, :7]
    return x.mean(axis=1) @ p["last"]


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
