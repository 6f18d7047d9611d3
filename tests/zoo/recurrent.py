"""States over time: a selective state space, a linear recurrence, a learned first state."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from zoo.expect import BIAS, SCALE, STATE, UNUSED, Leaf, array, head, kernel, packed
from zoo.plain import model, normed


@model(
    {
        "into": (5, 16),
        "conv": (4, 1, 8),
        "bias": (8,),
        "split": (8, 9),
        "time": (3, 8),
        "offset": (8,),
        "decay": (8, 3),
        "skip": (8,),
        "out": (8, 5),
    },
    array(2, 7, 5),
    into=packed(kernel(5, 8), kernel(5, 8, activation="silu", gates=True)),
    conv=kernel(4, 4, groups=8, activation="silu"),
    bias=BIAS,
    # The step (rank 3), and what enters and leaves each of 3 states.
    split=packed(*[kernel(8, 3)] * 3),
    time=kernel(3, 8, activation="softplus"),
    offset=BIAS,
    # exp(-exp(decay) * step) multiplies the state.
    decay=SCALE,
    skip=SCALE,
    out=kernel(8, 5, last=True),
)
def selective_state_space(p, x):
    """A Mamba block: a depthwise convolution, then a diagonal recurrence that data steer."""
    y, z = jnp.split(normed(x) @ p["into"], 2, axis=-1)
    numbers = ("NWC", "WIO", "NWC")
    y = jax.lax.conv_general_dilated(
        y, p["conv"], (1,), [(3, 0)], dimension_numbers=numbers, feature_group_count=8
    )
    y = jax.nn.silu(y + p["bias"][None, None])
    step, enters, leaves = jnp.split(y @ p["split"], 3, axis=-1)
    step = jax.nn.softplus(step @ p["time"] + p["offset"][None, None])
    decay = jnp.exp(step[..., None] * -jnp.exp(p["decay"])[None, None])
    drive = (step * y)[..., None] * enters[:, :, None, :]

    def advance(state, now):
        decay, drive, leaves = now
        state = decay * state + drive
        return state, jnp.einsum("bcs,bs->bc", state, leaves)

    over_time = [one.swapaxes(0, 1) for one in (decay, drive, leaves)]
    _, mixed = jax.lax.scan(advance, jnp.zeros((2, 8, 3)), over_time)
    mixed = mixed.swapaxes(0, 1) + y * p["skip"][None, None]
    return x + (mixed * jax.nn.silu(z)) @ p["out"]


@model(
    {"rate": (6,), "angle": (6,), "into": array(4, 6, dtype=jnp.complex64), "out": (6, 3)},
    array(7, 4),
    rate=SCALE,
    angle=SCALE,
    into=kernel(4, 6, axes=((0,), (1,), ())),
    out=head(6, 3),
)
def diagonal_linear_recurrence(p, x):
    """An LRU: complex decays of the state, found by an associative scan."""
    decay = jnp.exp(-jnp.exp(p["rate"]) + 1j * jnp.exp(p["angle"]))
    drive = x.astype(jnp.complex64) @ p["into"]
    decays = jnp.broadcast_to(decay[None], drive.shape)

    def join(left, right):
        return left[0] * right[0], right[0] * left[1] + right[1]

    _, states = jax.lax.associative_scan(join, (decays, drive))
    return states.real @ p["out"]


@model(
    {"start": (5,), "w": (5, 5), "into": (4, 5), "last": (5, 3)},
    array(7, 2, 4),
    # A learned first state.
    start=Leaf("embedding"),
    w=kernel(5, 5, times=7, activation="tanh"),
    into=kernel(4, 5, times=7, activation="tanh"),
    last=head(5, 3),
)
def learned_first_state(p, xs):
    def step(state, x):
        return jnp.tanh(state @ p["w"] + x @ p["into"]), None

    start = jnp.broadcast_to(p["start"][None], (2, 5))
    return jax.lax.scan(step, start, xs)[0] @ p["last"]


@model(
    {"w": (4, 5), "forgotten": (4, 5), "average": (5,), "count": array(dtype=jnp.int32)},
    array(2, 4),
    w=head(4, 5),
    forgotten=UNUSED,
    # Added to data and handed out: in plain JAX nothing tells it from a bias.
    average=BIAS,
    # It meets constants only.
    count=STATE,
)
def running_state(p, x):
    y = x @ p["w"]
    average = 0.9 * p["average"] + 0.1 * y.mean(0)
    return y, {"average": average, "count": p["count"] + 1}
