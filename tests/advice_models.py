"""Small models in plain JAX that the tests of the advice share, and how to read them."""

import functools

import jax
import jax.numpy as jnp

import jaxinit
from helpers import struct


def read(fn, shapes, *args):
    """The reading of a function of parameters, whose shapes are given.

    The models are written as people write them, so ranks are promoted here.
    """
    tree = jax.tree.map(lambda s: struct(*s), shapes, is_leaf=lambda s: isinstance(s, tuple))
    with jax.numpy_rank_promotion("allow"):
        return jaxinit.read(fn, tree, *args)


@functools.cache
def plain(activation, depth, width=16, bias=True):
    """Reading of a plain network of equal layers and a head."""

    def fn(params, x):
        for layer in params["hidden"]:
            x = x @ layer["kernel"]
            x = activation(x + layer["bias"] if bias else x)
        return x @ params["out"]["kernel"]

    layer = {"kernel": (width, width)} | ({"bias": (width,)} if bias else {})
    shapes = {"hidden": [layer] * (depth - 1), "out": {"kernel": (width, 3)}}
    return read(fn, shapes, struct(4, width))


@functools.cache
def residual(norm, blocks, width=16, activation=jax.nn.relu):
    """Reading of residual blocks of two maps; `norm` is "before", "after" or None."""

    def normalise(x):
        return (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-6)

    def fn(params, x):
        x = x @ params["stem"]
        for block in params["blocks"]:
            y = normalise(x) if norm == "before" else x
            x = x + activation(y @ block["up"]) @ block["down"]
            x = normalise(x) if norm == "after" else x
        return (normalise(x) if norm == "before" else x) @ params["head"]

    block = {"up": (width, 2 * width), "down": (2 * width, width)}
    shapes = {"stem": (8, width), "blocks": [block] * blocks, "head": (width, 3)}
    return read(fn, shapes, struct(4, 8))


@functools.cache
def transformer(
    norm="before", layers=1, width=8, tied=True, patches=False, gated=False, scaled=None
):
    """Reading of a small transformer; `norm` is "before", "after" or None.

    `scaled` puts a scale at the end of each branch or, with "norm", a normalisation and its scale.
    """

    def normalise(x):
        return (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-6)

    def attend(block, x):
        q, k, v = (x @ block[name] for name in ("q", "k", "v"))
        scores = jax.nn.softmax(q @ jnp.swapaxes(k, -1, -2) / width**0.5)
        return (scores @ v) @ block["o"]

    def feed(block, x):
        up = x @ block["up"]
        return (jax.nn.silu(x @ block["gate"]) * up if gated else jax.nn.gelu(up)) @ block["down"]

    def fn(params, inputs):
        if patches:
            x = jax.lax.conv_general_dilated(
                inputs, params["patch"], (2, 2), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
            ).reshape(inputs.shape[0], -1, width)
        else:
            x = params["table"][inputs]
        for block in params["blocks"]:
            for part in (attend, feed):
                y = part(block, normalise(x) if norm == "before" else x)
                y = normalise(y) if scaled == "norm" else y
                y = y * block["scale"] if scaled else y
                x = normalise(x + y) if norm == "after" else x + y
        x = normalise(x) if norm == "before" else x
        return x @ (params["table"].T if tied and not patches else params["head"])

    block = {name: (width, width) for name in "qkvo"}
    block |= {"up": (width, 2 * width), "down": (2 * width, width)}
    block |= {"gate": (width, 2 * width)} if gated else {}
    block |= {"scale": (width,)} if scaled else {}
    shapes = {"blocks": [block] * layers}
    shapes |= {"patch": (2, 2, 3, width)} if patches else {"table": (11, width)}
    shapes |= {} if tied and not patches else {"head": (width, 11)}
    data = struct(2, 4, 4, 3) if patches else struct(2, 5, dtype="int32")
    return read(fn, shapes, data)


@functools.cache
def lstm(packed=True, offset=0.0, size=6):
    """Reading of an LSTM over a sequence, its gates packed in one array or each its own."""

    def step(params, state, x):
        c, h = state
        if packed:
            gates = x @ params["wx"] + h @ params["wh"] + params["b"]
            i, f, g, o = jnp.split(gates, 4, -1)
        else:
            i, f, g, o = (
                x @ params["wx"][n] + h @ params["wh"][n] + params["b"][n] for n in "ifgo"
            )
        c = jax.nn.sigmoid(f + offset) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        h = jax.nn.sigmoid(o) * jnp.tanh(c)
        return (c, h), h

    def fn(params, x):
        start = (jnp.zeros((x.shape[1], size)), jnp.zeros((x.shape[1], size)))
        (_, h), _ = jax.lax.scan(lambda s, x: step(params, s, x), start, x)
        return h @ params["head"]

    if packed:
        shapes = {"wx": (4, 4 * size), "wh": (size, 4 * size), "b": (4 * size,)}
    else:
        each = dict.fromkeys("ifgo", None)
        shapes = {
            "wx": {n: (4, size) for n in each},
            "wh": {n: (size, size) for n in each},
            "b": {n: (size,) for n in each},
        }
    return read(fn, shapes | {"head": (size, 3)}, struct(7, 2, 4))


@functools.cache
def convolutional(norm, depth, activation=jax.nn.relu, width=4):
    """Reading of plain convolutions over images, with batch norm or without."""

    def fn(params, x):
        for layer in params["layers"]:
            x = jax.lax.conv_general_dilated(
                x, layer["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
            if norm:
                x = (x - x.mean((0, 1, 2))) / jnp.sqrt(x.var((0, 1, 2)) + 1e-5) * layer["scale"]
            x = activation(x)
        return x.mean((1, 2)) @ params["head"]

    layer = {"kernel": (3, 3, width, width)} | ({"scale": (width,)} if norm else {})
    return read(fn, {"layers": [layer] * depth, "head": (width, 3)}, struct(2, 6, 6, width))


@functools.cache
def adapted(layers=2, width=32, rank=4):
    """Reading of a plain network with low-rank adapters, as in LoRA, and a head."""

    def fn(params, x):
        for layer in params["layers"]:
            x = jax.nn.relu(x @ layer["w"] + 2.0 * ((x @ layer["a"]) @ layer["b"]))
        return x @ params["head"]

    layer = {"w": (width, width), "a": (width, rank), "b": (rank, width)}
    return read(fn, {"layers": [layer] * layers, "head": (width, 3)}, struct(4, width))
