"""Models of sequences, written in Flax Linen at toy sizes: GPT-2, LLaMA, mixtures of experts."""

from __future__ import annotations

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxinit.report.gpt2 import GPT2Config, gpt2
from zoo.expect import (
    BIAS,
    POSITION,
    SCALE,
    STATE,
    Case,
    array,
    embedding,
    head,
    ids,
    kernel,
    linen,
    packed,
)


def gpt_2(config: GPT2Config, length: int) -> Case:
    """Pre-LN blocks, packed queries, keys and values, and a head tied to the embedding."""
    d, rows = config.width, config.vocabulary
    stream = {"branches": 2 * config.layers, "pre_norm": True}
    part = {"last": False, "axes": ((0,), (1,), ()), **stream}
    return linen(
        gpt2(config),
        ids(2, length),
        table={
            "**/wte/embedding": packed(
                embedding(),
                # Four maps in each block follow each other; the head comes after them.
                head(
                    d, rows, axes=((1,), (0,), ()), activation="none", depth=4 * config.layers + 1
                ),
            ),
            "**/wpe/embedding": POSITION,
            "**/c_attn/kernel": packed(
                kernel(d, d, softmax=True, **part),
                kernel(d, d, softmax=True, **part),
                kernel(d, d, softmax=False, **part),
            ),
            "**/attn/c_proj/kernel": kernel(d, d, last=True, **stream),
            "**/c_fc/kernel": kernel(d, 4 * d, activation="gelu", last=False, **stream),
            "**/mlp/c_proj/kernel": kernel(4 * d, d, last=True, **stream),
            "**/scale": SCALE,
            "**/bias": BIAS,
        },
    )


def rotate(x):
    """Rotary positions: pairs of features turn with the place in the sequence."""
    length, size = x.shape[1], x.shape[-1]
    angle = jnp.outer(jnp.arange(length), 10_000 ** (-jnp.arange(0, size, 2) / size))
    cos, sin = jnp.cos(angle)[None, :, None, :], jnp.sin(angle)[None, :, None, :]
    even, odd = x[..., ::2], x[..., 1::2]
    return jnp.stack([even * cos - odd * sin, even * sin + odd * cos], -1).reshape(x.shape)


class Llama(nn.Module):
    """RMSNorm, grouped queries with rotary positions, SwiGLU, a head of its own."""

    blocks: int = 2
    dtype: jnp.dtype = jnp.bfloat16

    @nn.compact
    def __call__(self, tokens):
        def dense(features, name):
            return nn.Dense(features, use_bias=False, dtype=self.dtype, name=name)

        def norm(name):
            return nn.RMSNorm(dtype=self.dtype, name=name)

        x = nn.Embed(23, 10, dtype=self.dtype, name="embed")(tokens)
        for n in range(self.blocks):
            y = norm(f"norm_attention_{n}")(x)
            query = rotate(dense(24, f"query_{n}")(y).reshape(*y.shape[:2], 6, 4))
            key = rotate(dense(12, f"key_{n}")(y).reshape(*y.shape[:2], 3, 4))
            value = dense(12, f"value_{n}")(y).reshape(*y.shape[:2], 3, 4)
            query, key = (one.astype(self.dtype) for one in (query, key))
            y = jax.nn.dot_product_attention(query, key, value, is_causal=True)
            x = x + dense(10, f"out_{n}")(y.reshape(*y.shape[:2], 24))
            y = norm(f"norm_mlp_{n}")(x)
            y = nn.silu(dense(17, f"gate_{n}")(y)) * dense(17, f"up_{n}")(y)
            x = x + dense(10, f"down_{n}")(y)
        return dense(23, "head")(norm("norm_last")(x)).astype(jnp.float32)


def llama() -> Case:
    return linen(
        Llama(),
        ids(2, 7),
        table={
            "**/embed/embedding": embedding(),
            "**/query_?/kernel": kernel(10, 24, softmax=True, last=False),
            "**/key_?/kernel": kernel(10, 12, softmax=True, last=False),
            "**/value_?/kernel": kernel(10, 12, softmax=False, last=False),
            "**/out_?/kernel": kernel(24, 10, last=True),
            "**/gate_?/kernel": kernel(10, 17, activation="silu", gates=True, last=False),
            "**/up_?/kernel": kernel(10, 17, activation="none", gates=True, last=False),
            "**/down_?/kernel": kernel(17, 10, gates=False, last=True),
            "**/head/kernel": head(10, 23, activation="none"),
            "**/scale": SCALE,
        },
    )


class Block(nn.Module):
    """A pre-norm residual MLP, in the form that `nn.scan` wants."""

    hidden: int = 9

    @nn.compact
    def __call__(self, x, _=None):
        y = nn.Dense(self.hidden, name="up")(nn.LayerNorm()(x))
        return x + nn.Dense(x.shape[-1], name="down")(nn.relu(y)), None


class Stack(nn.Module):
    """Blocks under `nn.scan`, each checkpointed where asked."""

    layers: int
    remat: bool
    axis: int = 0

    @nn.compact
    def __call__(self, x):
        block = nn.remat(Block, prevent_cse=False) if self.remat else Block
        scan = nn.scan(
            block,
            variable_axes={"params": self.axis},
            split_rngs={"params": True},
            length=self.layers,
        )
        x, _ = scan(name="blocks")(nn.Dense(5, name="stem")(x))
        return nn.Dense(2, name="head")(x)


def stack(remat: bool, axis: int = 0) -> Case:
    # Every layer has its own slice and applies it once.
    axes = ((1,), (2,), (0,)) if axis == 0 else ((0,), (2,), (1,))
    return linen(
        Stack(4, remat, axis),
        array(3, 6),
        table={
            "**/stem/kernel": kernel(6, 5, last=False, depth=1),
            "**/up/kernel": kernel(5, 9, axes=axes, activation="relu", last=False),
            "**/down/kernel": kernel(9, 5, axes=axes, last=True, branches=4, pre_norm=True),
            # One map before, and two in each of four blocks.
            "**/head/kernel": head(5, 2, axes=((0,), (1,), ()), depth=10),
            "**/scale": SCALE,
            "**/bias": BIAS,
        },
    )


class Plain(nn.Module):
    """Blocks one after the other, each checkpointed."""

    @nn.compact
    def __call__(self, x):
        for number in range(2):
            x, _ = nn.remat(Block)(name=f"block_{number}")(x)
        return nn.Dense(2, name="head")(x)


def checkpointed() -> Case:
    return linen(
        Plain(),
        array(3, 5),
        table={
            "**/up/kernel": kernel(5, 9, activation="relu", last=False),
            "**/down/kernel": kernel(9, 5, last=True),
            "**/head/kernel": head(5, 2),
            "**/scale": SCALE,
            "**/bias": BIAS,
        },
    )


class Ensemble(nn.Module):
    """Independent networks of one kind under `nn.vmap`, averaged."""

    @nn.compact
    def __call__(self, x):
        def members(features, axis, name):
            many = nn.vmap(
                nn.Dense,
                variable_axes={"params": 0},
                split_rngs={"params": True},
                in_axes=axis,
                axis_size=7,
            )
            return many(features, name=name)

        x = nn.relu(members(5, None, "first")(x))
        x = nn.tanh(members(6, 0, "second")(x))
        return nn.Dense(2, name="head")(x.mean(axis=0))


def ensemble() -> Case:
    return linen(
        Ensemble(),
        array(3, 4),
        table={
            # All members read the same input: each of its features feeds 7 * 5 outputs.
            "**/first/kernel": kernel(4, 35, axes=((1,), (0, 2), ()), activation="relu"),
            "**/second/kernel": kernel(5, 6, axes=((1,), (2,), (0,)), activation="tanh"),
            "**/head/kernel": head(6, 2),
            "**/bias": BIAS,
        },
    )


class Experts(nn.Module):
    """Each token goes to its two best experts of four, by one-hot einsums or by sorting."""

    ragged: bool
    experts: int = 4
    hidden: int = 9

    @nn.compact
    def __call__(self, x):
        tokens, d = x.shape
        scale = nn.initializers.lecun_normal()
        gates = jax.nn.softmax(nn.Dense(self.experts, use_bias=False, name="router")(x))
        weights, chosen = jax.lax.top_k(gates, 2)
        up = self.param("up", scale, (self.experts, d, self.hidden))
        down = self.param("down", scale, (self.experts, self.hidden, d))
        if self.ragged:
            flat = chosen.reshape(-1)
            order = jnp.argsort(flat)
            rows = jnp.repeat(x, 2, axis=0)[order]
            sizes = jnp.bincount(flat, length=self.experts)
            y = nn.silu(jax.lax.ragged_dot(rows, up, sizes))
            y = jax.lax.ragged_dot(y, down, sizes)[jnp.argsort(order)]
            y = (y.reshape(tokens, 2, d) * weights[..., None]).sum(axis=1)
        else:
            route = jax.nn.one_hot(chosen, self.experts)
            y = jnp.einsum("td,tke->ekd", x, route)
            y = jnp.einsum("ekf,efd->ekd", nn.silu(jnp.einsum("ekd,edf->ekf", y, up)), down)
            y = jnp.einsum("ekd,tke,tk->td", y, route, weights)
        return nn.Dense(3, name="head")(nn.LayerNorm()(x + y))


def experts(ragged: bool) -> Case:
    return linen(
        Experts(ragged),
        array(8, 5),
        table={
            "**/router/kernel": kernel(5, 4, softmax=True, last=False),
            "**/up": kernel(5, 9, axes=((1,), (2,), (0,)), activation="silu", last=False),
            "**/down": kernel(9, 5, axes=((1,), (2,), (0,))),
            "**/head/kernel": head(5, 3),
            "**/scale": SCALE,
            "**/bias": BIAS,
        },
    )


class T5(nn.Module):
    """One attention layer whose logits get a learned bias by distance."""

    @nn.compact
    def __call__(self, x):
        query, key, value = (nn.DenseGeneral((2, 3), name=one)(x) for one in "qkv")
        place = jnp.arange(x.shape[1])
        distance = jnp.clip(place[None, :] - place[:, None], -3, 3) + 3
        bias = nn.Embed(7, 2, name="relative")(distance).transpose(2, 0, 1)[None]
        y = jax.nn.dot_product_attention(query, key, value, bias=bias)
        return nn.DenseGeneral(5, axis=(-2, -1), name="out")(y)


def t5() -> Case:
    return linen(
        T5(),
        array(2, 8, 4),
        table={
            "**/relative/embedding": POSITION,
            "**/{q,k}/kernel": kernel(4, 6, softmax=True),
            "**/v/kernel": kernel(4, 6, softmax=False),
            "**/out/kernel": head(6, 5, axes=((0, 1), (2,), ())),
            "**/bias": BIAS,
        },
    )


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


class PostNorm(nn.Module):
    """The block of the first transformers: the sum is normalised, not the branch."""

    @nn.compact
    def __call__(self, x):
        for number in range(2):
            y = nn.relu(nn.Dense(9, name=f"up_{number}")(x))
            x = nn.LayerNorm()(x + nn.Dense(x.shape[-1], name=f"down_{number}")(y))
        return nn.Dense(2, name="head")(x)


def post_norm() -> Case:
    return linen(
        PostNorm(),
        array(3, 5),
        table={
            "**/up_?/kernel": kernel(5, 9, activation="relu", last=False),
            "**/down_?/kernel": kernel(9, 5, last=True, pre_norm=False, post_norm=True),
            "**/head/kernel": head(5, 2),
            "**/scale": SCALE,
            "**/bias": BIAS,
        },
    )


class Normed(nn.Module):
    """A normalisation between a map and its activation."""

    kind: str

    @nn.compact
    def __call__(self, x):
        layers = {
            "layer": nn.LayerNorm,
            "rms": nn.RMSNorm,
            "group": functools.partial(nn.GroupNorm, 2),
            "batch": functools.partial(nn.BatchNorm, use_running_average=False),
        }
        x = layers[self.kind](name="norm")(nn.Dense(6, name="before")(x))
        return nn.Dense(2, name="head")(nn.relu(x))


def normed(kind: str) -> Case:
    table = {
        "**/before/kernel": kernel(4, 6, norm=kind, activation="relu", depth=1),
        "**/head/kernel": head(6, 2, depth=2),
        "**/scale": SCALE,
        "**/bias": BIAS,
    }
    table |= {"batch_stats/**": STATE} if kind == "batch" else {}
    return linen(Normed(kind), array(3, 5, 4), table=table, mutable=["batch_stats"])


SMALL = GPT2Config(layers=2, width=12, heads=3, vocabulary=40, positions=16)

NORMS = ("layer", "rms", "group", "batch")

CASES: dict[str, Callable[[], Case]] = {
    "gpt-2": lambda: gpt_2(SMALL, 8),
    "gpt-2, 124M": lambda: gpt_2(GPT2Config(), 1024),
    "llama": llama,
    "scan": lambda: stack(False),
    "scan with remat": lambda: stack(True),
    # Layers along the second axis, as MaxText has them.
    "scan along another axis": lambda: stack(True, 1),
    "remat": checkpointed,
    "vmap": ensemble,
    "experts by einsum": lambda: experts(False),
    "experts by ragged_dot": lambda: experts(True),
    "relative positions": t5,
    "post-norm": post_norm,
    "decoder in training": decoder,
    "both directions": both_ways,
    **{f"{kind} norm": functools.partial(normed, kind) for kind in NORMS},
}
