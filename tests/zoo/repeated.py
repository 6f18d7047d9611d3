"""Layers that run more than once, or not at all: loops, settled states, branches, derivatives."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from zoo.expect import BIAS, array, head, kernel, packed
from zoo.plain import model


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
