"""What people build beyond maps: joins and pools, states over time, spectra, made kernels.

Where the honest answer is "unknown", the table names the equation that has to be named.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from zoo.expect import (
    BIAS,
    POSITION,
    SCALE,
    STATE,
    UNUSED,
    Leaf,
    array,
    embedding,
    head,
    ids,
    kernel,
    packed,
    unknown,
)
from zoo.plain import model, normed, unit

# Sums, joins and pools.


@model(
    {"a": (4, 5), "b": (9, 6), "c": (15, 7), "last": (22, 3)},
    array(2, 4),
    # Every layer reads what all before it made.
    a=kernel(4, 5, activation="relu", last=False, depth=1),
    b=kernel(9, 6, activation="relu", last=False, depth=2),
    c=kernel(15, 7, activation="relu", last=False, depth=3),
    last=head(22, 3, depth=4),
)
def dense_net(p, x):
    for name in "abc":
        x = jnp.concatenate([x, jax.nn.relu(x @ p[name])], axis=-1)
    return x @ p["last"]


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


# States over time.


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


# Complex numbers, spectra and products of more than two.


@model(
    {
        "w": array(4, 5, dtype=jnp.complex64),
        "b": array(5, dtype=jnp.complex64),
        "last": array(5, 3, dtype=jnp.complex64),
    },
    array(2, 4, dtype=jnp.complex64),
    w=kernel(4, 5),
    b=BIAS,
    last=head(5, 3),
)
def complex_layers(p, x):
    x = x @ p["w"] + p["b"][None]
    return (jax.nn.relu(x.real) + 1j * jax.nn.relu(x.imag)) @ p["last"]


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


@model(
    {"w": (7, 4, 5), "last": (7, 3)},
    array(2, 4),
    array(2, 5),
    # It meets the first input, and what comes of that the second: 4 products, 35 outputs.
    w=kernel(4, 35),
    last=head(7, 3),
)
def bilinear(p, x, y):
    half = jnp.einsum("bi,oij->boj", x, p["w"])
    return jnp.einsum("boj,bj->bo", half, y) @ p["last"]


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


# Kernels that are made from parameters.


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
    {"w": (4, 5), "last": (5, 3)},
    array(2, 4),
    # In another order, but each output still sums over an axis of four.
    w=kernel(4, 5, activation="relu"),
    last=head(5, 3),
)
def sorted_weights(p, x):
    return jax.nn.relu(x @ jnp.sort(p["w"], axis=0)) @ p["last"]


@model(
    {"w": (4, 5), "steps": (5,), "last": (5, 3)},
    array(2, 4),
    w=kernel(4, 5, activation="relu"),
    steps=BIAS,
    last=head(5, 3),
)
def ordered_thresholds(p, x):
    return jax.nn.relu(x @ p["w"] - jnp.cumsum(jnp.exp(p["steps"]))[None]) @ p["last"]


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
