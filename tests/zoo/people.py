"""What people build from dense maps: shared, packed and low-rank kernels, modulation, gates."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from zoo.expect import (
    BIAS,
    LAST_SCALE,
    SCALE,
    array,
    head,
    kernel,
    packed,
)
from zoo.plain import model, normed, unit

# Weights used more than once.


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


@model({"w": (5, 5), "b": (5,)}, array(3, 5), w=kernel(5, 5, times="unknown"), b=BIAS)
def fixed_point(p, x):
    def unsettled(state):
        return jnp.abs(state[0] - state[1]).max() > 1e-3

    def step(state):
        return jnp.tanh(state[0] @ p["w"] + p["b"][None] + x), state[0]

    return jax.lax.while_loop(unsettled, step, (x, x + 1))[0]


@model(
    {"w": (5, 5), "last": (5, 2)},
    array(3, 5),
    w=kernel(5, 5, times=6, activation="relu"),
    last=head(5, 2),
)
def the_same_layer_six_times(p, x):
    return jax.lax.fori_loop(0, 6, lambda _, x: jax.nn.relu(x @ p["w"]), x) @ p["last"]


@model(
    {"a": (4, 6), "b": (4, 7), "c": (6, 7), "last": (7, 3)},
    array(5, 4),
    array(dtype=jnp.bool_),
    a=kernel(4, 6, activation="relu", times="unknown"),
    c=kernel(6, 7, times="unknown"),
    b=kernel(4, 7, times="unknown"),
    last=head(7, 3),
)
def early_exit(p, x, quick):
    def slow(x):
        return jax.nn.relu(x @ p["a"]) @ p["c"]

    return jax.lax.cond(quick, lambda x: x @ p["b"], slow, x) @ p["last"]


# Several kernels in one array, several arrays in one kernel.


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


# Modulation and gates.


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
    {"w": (3, 5), "last": (5, 2)},
    array(2, 4),
    # The features are mixed from 4 to 3 by a constant first, then by the kernel: (x C) w.
    w=kernel(3, 5),
    last=head(5, 2),
)
def kernel_in_a_basis(p, x):
    basis = jnp.cos(jnp.outer(jnp.arange(4.0), jnp.arange(3.0)))
    return jax.nn.relu(x @ (basis @ p["w"])) @ p["last"]
