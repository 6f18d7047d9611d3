"""Layers of Flax NNX between two maps, and small NNX models."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
from flax import nnx

from jaxinit.flax import nnx_apply
from zoo.expect import (
    BIAS,
    SCALE,
    STATE,
    Case,
    Leaf,
    array,
    embedding,
    head,
    ids,
    kernel,
    packed,
)


def in_nnx(make: Callable[[nnx.Rngs], Any], *inputs: Any, table: Mapping[str, Leaf]) -> Case:
    """An NNX module as a function of its state."""
    apply, state = nnx_apply(lambda: make(nnx.Rngs(0)))
    return Case(apply, state, inputs, table)


class Chain(nnx.Module):
    """A linear map and a ReLU, the layer, a tanh and a linear map."""

    def __init__(self, layer: Any, stem: tuple[int, int], last: tuple[int, int], rngs: nnx.Rngs):
        self.stem = nnx.Linear(*stem, rngs=rngs)
        self.layer = layer
        self.last = nnx.Linear(*last, rngs=rngs)

    def __call__(self, x):
        return self.last(jnp.tanh(self.layer(nnx.relu(self.stem(x)))))


def nnx_inside(
    make: Callable[[nnx.Rngs], Any], shape: tuple[int, ...], gives: int, table: Mapping[str, Leaf]
) -> Callable[[], Case]:
    """The layer between two others; it takes the last axis of ``shape``."""
    stem, last = (11, shape[-1]), (gives, 3)
    return lambda: in_nnx(
        lambda rngs: Chain(make(rngs), stem, last, rngs),
        array(*shape[:-1], 11),
        table={
            "stem/kernel": kernel(*stem, activation=None),
            "last/kernel": head(*last),
            "{stem,last}/bias": BIAS,
            **{f"layer/{glob}": leaf for glob, leaf in table.items()},
        },
    )


def _nnx_attention(rngs: nnx.Rngs) -> nnx.Module:
    return nnx.MultiHeadAttention(2, 5, qkv_features=6, out_features=7, decode=False, rngs=rngs)


NNX_ATTENTION = {
    "{query,key}/kernel": kernel(5, 6, axes=((0,), (1, 2), ()), softmax=True),
    "value/kernel": kernel(5, 6, axes=((0,), (1, 2), ()), softmax=False),
    "out/kernel": kernel(6, 7, axes=((0, 1), (2,), ()), activation="tanh"),
    "*/bias": BIAS,
}
# Between a stem and a tanh.
NNX_LAYERS: dict[str, tuple[Any, tuple[int, ...], int, dict[str, Leaf]]] = {
    "linear": (
        lambda rngs: nnx.Linear(4, 5, rngs=rngs),
        (2, 4),
        5,
        {"kernel": kernel(4, 5, axes=((0,), (1,), ()), activation="tanh"), "bias": BIAS},
    ),
    "linear general": (
        lambda rngs: nnx.LinearGeneral((3, 4), (5, 6), axis=(-2, -1), rngs=rngs),
        (2, 3, 4),
        6,
        {"kernel": kernel(12, 30, axes=((0, 1), (2, 3), ()), activation="tanh"), "bias": BIAS},
    ),
    "linear general with batch axis": (
        lambda rngs: nnx.LinearGeneral(4, 5, batch_axis={0: 7}, rngs=rngs),
        (7, 2, 4),
        5,
        {"kernel": kernel(4, 5, axes=((1,), (2,), (0,)), activation="tanh"), "bias": BIAS},
    ),
    "einsum": (
        lambda rngs: nnx.Einsum("bti,hik->bthk", (3, 4, 5), (3, 5), rngs=rngs),
        (2, 6, 4),
        5,
        {"kernel": kernel(4, 15, axes=((1,), (0, 2), ()), activation="tanh"), "bias": BIAS},
    ),
    "conv": (
        lambda rngs: nnx.Conv(6, 10, (3, 2), feature_group_count=2, rngs=rngs),
        (2, 8, 9, 6),
        10,
        {"kernel": kernel(18, 30, groups=2, activation="tanh"), "bias": BIAS},
    ),
    "conv transposed": (
        lambda rngs: nnx.ConvTranspose(3, 5, (4, 3), strides=(2, 3), rngs=rngs),
        (2, 8, 9, 3),
        5,
        {"kernel": kernel(6, 60, strides=(2, 3), activation="tanh"), "bias": BIAS},
    ),
    "attention": (_nnx_attention, (2, 8, 5), 7, NNX_ATTENTION),
    "layer norm": (
        lambda rngs: nnx.LayerNorm(4, rngs=rngs),
        (2, 4),
        4,
        {"scale": SCALE, "bias": BIAS},
    ),
    "rms norm": (lambda rngs: nnx.RMSNorm(4, rngs=rngs), (2, 4), 4, {"scale": SCALE}),
    "group norm": (
        lambda rngs: nnx.GroupNorm(6, 2, rngs=rngs),
        (2, 4, 6),
        6,
        {"scale": SCALE, "bias": BIAS},
    ),
    "batch norm": (
        lambda rngs: nnx.BatchNorm(4, use_running_average=True, rngs=rngs),
        (2, 4),
        4,
        {"scale": SCALE, "bias": BIAS, "{mean,var}": STATE},
    ),
    "lora": (
        # A frozen map has a low-rank one beside it: their sum is no residual stream.
        lambda rngs: nnx.LoRALinear(4, 5, lora_rank=2, rngs=rngs),
        (3, 4),
        5,
        {
            "kernel": kernel(4, 5, activation="tanh", last=False),
            "lora/lora_a": kernel(4, 2, activation="identity", last=False),
            "lora/lora_b": kernel(2, 5, activation="tanh", last=False),
            "bias": BIAS,
        },
    ),
}


def nnx_lstm() -> Case:
    gate = {"times": 7, "gates": True}
    return in_nnx(
        lambda rngs: nnx.RNN(nnx.LSTMCell(4, 5, rngs=rngs)),
        array(2, 7, 4),
        table={
            "cell/ig/kernel": kernel(4, 5, activation="tanh", **gate),
            "cell/hg/kernel": kernel(5, 5, activation="tanh", **gate),
            "cell/i*/kernel": kernel(4, 5, activation="sigmoid", **gate),
            "cell/h?/kernel": kernel(5, 5, activation="sigmoid", **gate),
            "cell/*/bias": BIAS,
            "**/rngs/**": STATE,
        },
    )


class NnxStack(nnx.Module):
    """Four residual blocks whose parameters lie behind one another, run by `nnx.scan`."""

    def __init__(self, rngs: nnx.Rngs):
        @nnx.split_rngs(splits=4)
        @nnx.vmap(in_axes=(0,), out_axes=0)
        def block(rngs: nnx.Rngs):
            return nnx.List([nnx.Linear(5, 9, rngs=rngs), nnx.Linear(9, 5, rngs=rngs)])

        self.blocks = block(rngs)

    def __call__(self, x):
        @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
        def run(x, block):
            return x + block[1](nnx.gelu(block[0](x)))

        return run(x, self.blocks)


def nnx_stack() -> Case:
    return in_nnx(
        NnxStack,
        array(3, 5),
        table={
            "blocks/0/kernel": kernel(5, 9, axes=((1,), (2,), (0,)), activation="gelu"),
            "blocks/1/kernel": kernel(9, 5, role="kernel", axes=((1,), (2,), (0,)), last=True),
            "blocks/*/bias": BIAS,
        },
    )


def nnx_tied() -> Case:
    class Tied(nnx.Module):
        def __init__(self, rngs: nnx.Rngs):
            self.embed = nnx.Embed(11, 4, rngs=rngs)
            self.map = nnx.Linear(4, 4, rngs=rngs)

        def __call__(self, tokens):
            return self.embed.attend(nnx.relu(self.map(self.embed(tokens))))

    return in_nnx(
        Tied,
        ids(2, 7),
        table={
            "embed/embedding": packed(embedding(), head(4, 11, axes=((1,), (0,), ()))),
            "map/kernel": kernel(4, 4, activation="relu"),
            "map/bias": BIAS,
        },
    )


CASES: dict[str, Callable[[], Case]] = {
    **{name: nnx_inside(*layer) for name, layer in NNX_LAYERS.items()},
    "lstm": nnx_lstm,
    "scan": nnx_stack,
    "tied": nnx_tied,
}
