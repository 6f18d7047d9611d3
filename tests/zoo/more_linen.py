"""Flax Linen at work: cross-attention with dropout, both directions of time, sharded kernels."""

from __future__ import annotations

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from zoo.expect import BIAS, SCALE, STATE, Case, array, embedding, head, ids, kernel, linen


class Decoder(nn.Module):
    """A block that reads another sequence, in training: dropout draws from a key."""

    @nn.compact
    def __call__(self, tokens, memory):
        x = nn.Embed(13, 6, name="embed")(tokens)
        for name, source in (("own", None), ("cross", memory)):
            y = nn.LayerNorm(name=f"norm_{name}")(x)
            attention = nn.MultiHeadDotProductAttention(
                2, qkv_features=8, dropout_rate=0.1, deterministic=False, name=name
            )
            mask = nn.make_causal_mask(tokens) if source is None else None
            y = attention(y, y if source is None else source, mask=mask)
            x = x + nn.Dropout(0.1, deterministic=False)(y)
        y = nn.silu(nn.Dense(9, name="up")(nn.LayerNorm(name="norm_mlp")(x)))
        y = nn.Dense(6, name="down")(nn.Dropout(0.1, deterministic=False)(y))
        x = x + nn.Dropout(0.1, deterministic=False)(y)
        return nn.Dense(13, name="head")(nn.LayerNorm(name="norm_last")(x))


def decoder() -> Case:
    stream = {"branches": 3, "pre_norm": True, "last": False}
    # What the branch reads from beside the stream is not of the branch.
    case = linen(
        Decoder(),
        ids(2, 7),
        array(2, 4, 5),
        table={
            "**/embed/embedding": embedding(),
            "**/own/{query,key}/kernel": kernel(6, 8, softmax=True, **stream),
            "**/own/value/kernel": kernel(6, 8, softmax=False, **stream),
            "**/cross/query/kernel": kernel(6, 8, softmax=True, last=False),
            "**/cross/key/kernel": kernel(5, 8, softmax=True, last=False),
            "**/cross/value/kernel": kernel(5, 8, softmax=False, last=False),
            "**/{own,cross}/out/kernel": kernel(8, 6, last=True, branches=3),
            "**/up/kernel": kernel(6, 9, activation="silu", **stream),
            "**/down/kernel": kernel(9, 6, last=True, branches=3, pre_norm=True),
            "**/head/kernel": head(6, 13),
            "**/scale": SCALE,
            "**/bias": BIAS,
        },
        rngs={"dropout": jax.random.key(1)},
    )
    return case


class BothWays(nn.Module):
    @nn.compact
    def __call__(self, x):
        forward, backward = (nn.RNN(nn.SimpleCell(n, name=f"cell_{n}")) for n in (5, 6))
        x = nn.Bidirectional(forward, backward, name="both")(x)
        return nn.Dense(3, name="head")(x)


def both_ways() -> Case:
    time = {"times": 7, "activation": "tanh"}
    return linen(
        BothWays(),
        array(2, 7, 4),
        table={
            "**/cell_5/i/kernel": kernel(4, 5, **time),
            "**/cell_5/h/kernel": kernel(5, 5, **time),
            "**/cell_6/i/kernel": kernel(4, 6, **time),
            "**/cell_6/h/kernel": kernel(6, 6, **time),
            "**/head/kernel": head(11, 3),
            "**/bias": BIAS,
        },
    )


class Sharded(nn.Module):
    """Kernels in boxes that say how they are sharded."""

    @nn.compact
    def __call__(self, x):
        init = nn.with_partitioning(nn.initializers.lecun_normal(), ("data", "model"))
        x = nn.relu(nn.Dense(5, kernel_init=init, name="first")(x))
        x = nn.with_logical_constraint(x, ("batch", "embed"))
        return nn.Dense(3, kernel_init=init, name="head")(x)


def sharded() -> Case:
    return linen(
        Sharded(),
        array(2, 4),
        table={
            "**/first/kernel": kernel(4, 5, activation="relu"),
            "**/head/kernel": head(5, 3),
            "**/bias": BIAS,
        },
    )


class Normalised(nn.Module):
    """Kernels divided by their norm, by its largest singular value, or by nothing."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.WeightNorm(nn.Dense(5, name="weight"), name="norm")(x))
        x = nn.SpectralNorm(nn.Dense(6, name="spectral"), name="bound")(x, update_stats=True)
        return nn.Dense(3, name="head")(jnp.tanh(x))


def normalised() -> Case:
    return linen(
        Normalised(),
        array(2, 4),
        table={
            "**/weight/kernel": kernel(4, 5, activation="relu"),
            "**/spectral/kernel": kernel(5, 6, activation="tanh"),
            "**/head/kernel": head(6, 3),
            "batch_stats/**": STATE,
            "**/scale": SCALE,
            "**/bias": BIAS,
        },
        mutable=["batch_stats"],
    )


CASES: dict[str, Callable[[], Case]] = {
    "decoder in training": decoder,
    "both directions": both_ways,
    "sharded": sharded,
    "normalised kernels": normalised,
}
