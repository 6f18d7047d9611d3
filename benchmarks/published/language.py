"""Models of text and speech: decoders, encoders, two towers, mixtures of experts, adapters."""

from __future__ import annotations

import math

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
from flax import nnx

from jaxinit.report.gpt2 import GPT2Config
from jaxinit.report.gpt2 import gpt2 as make_gpt2
from published.common import (
    Model,
    both,
    in_equinox,
    in_haiku,
    in_nnx,
    linen,
    normal,
    published,
    tokens,
)

TEXT = tokens(200, (8, 16))
WIDTH, HEADS = 64, 4
SMALL = nn.initializers.normal(0.02)


def causal(length: int) -> jax.Array:
    return jnp.tril(jnp.ones((length, length), bool))


def rotate(x: jax.Array) -> jax.Array:
    """Rotary positions, the halves of the features as pairs."""
    half = x.shape[-1] // 2
    angles = jnp.outer(jnp.arange(x.shape[1]), 10_000.0 ** (-jnp.arange(half) / half))
    cos, sin = jnp.cos(angles)[:, None], jnp.sin(angles)[:, None]
    a, b = jnp.split(x, 2, -1)
    return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], -1)


@published("GPT-2", "decoder")
def gpt2() -> Model:
    return linen(make_gpt2(GPT2Config(4, WIDTH, HEADS, 200, 32)), TEXT)


class Llama(nn.Module):
    """RMSNorm, rotary positions, SwiGLU; normal(.02), as the released config has it."""

    gemma: bool = False
    layers: int = 4

    @nn.compact
    def __call__(self, ids):
        def dense(features, name):
            return nn.Dense(features, use_bias=False, kernel_init=SMALL, name=name)

        def norm(x, name):
            x = x * jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + 1e-6)
            if self.gemma:
                return x * (1 + self.param(name, nn.initializers.zeros, (WIDTH,)))
            return x * self.param(name, nn.initializers.ones, (WIDTH,))

        embed = nn.Embed(200, WIDTH, embedding_init=SMALL, name="embed")
        x = embed(ids) * (math.sqrt(WIDTH) if self.gemma else 1.0)
        for n in range(self.layers):
            y = norm(x, f"norm_a{n}")
            q, k, v = (dense(WIDTH, f"{one}{n}")(y) for one in "qkv")
            q, k, v = (one.reshape(*ids.shape, HEADS, -1) for one in (q, k, v))
            s = jnp.einsum("bqhd,bkhd->bhqk", rotate(q), rotate(k)) / math.sqrt(q.shape[-1])
            w = jax.nn.softmax(jnp.where(causal(ids.shape[1]), s, -1e30))
            y = jnp.einsum("bhqk,bkhd->bqhd", w, v).reshape(x.shape)
            x = x + dense(WIDTH, f"o{n}")(y)
            y = norm(x, f"norm_f{n}")
            act = nn.gelu if self.gemma else nn.silu
            y = act(dense(160, f"gate{n}")(y)) * dense(160, f"up{n}")(y)
            x = x + dense(WIDTH, f"down{n}")(y)
        x = norm(x, "norm")
        return embed.attend(x) if self.gemma else dense(200, "head")(x)


@published("LLaMA", "decoder")
def llama() -> Model:
    return linen(Llama(), TEXT)


@published("Gemma, (1 + w) norms, tied", "decoder")
def gemma() -> Model:
    return linen(Llama(gemma=True), TEXT)


class T5(nn.Module):
    """Raffel 2019: no division of the scores, the factor in the kernels; tied table."""

    layers: int = 2

    @nn.compact
    def __call__(self, source, target):
        d_kv, d_ff = WIDTH // HEADS, 128
        n = nn.initializers.normal

        def dense(features, std, name):
            return nn.Dense(features, use_bias=False, kernel_init=n(std), name=name)

        def norm(x, name):
            x = x * jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + 1e-6)
            return x * self.param(name, nn.initializers.ones, (WIDTH,))

        def attend(name, x, y, bias=None):
            inner = HEADS * d_kv
            q = dense(inner, (WIDTH * d_kv) ** -0.5, f"{name}_q")(x)
            k, v = (dense(inner, WIDTH**-0.5, f"{name}_{one}")(y) for one in "kv")
            q, k, v = (one.reshape(*one.shape[:2], HEADS, d_kv) for one in (q, k, v))
            s = jnp.einsum("bqhd,bkhd->bhqk", q, k)
            s = s if bias is None else s + bias
            y = jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(s), v).reshape(*x.shape[:2], inner)
            return dense(WIDTH, inner**-0.5, f"{name}_o")(y)

        def feed(name, x):
            y = nn.relu(dense(d_ff, WIDTH**-0.5, f"{name}_wi")(x))
            return dense(WIDTH, d_ff**-0.5, f"{name}_wo")(y)

        def distances(name, length):
            place = jnp.arange(length)
            buckets = jnp.clip(place[None] - place[:, None], -7, 8) + 7
            table = nn.Embed(16, HEADS, embedding_init=n(WIDTH**-0.5), name=name)
            return table(buckets).transpose(2, 0, 1)[None]

        embed = nn.Embed(200, WIDTH, embedding_init=n(1.0), name="embed")
        e = embed(source)
        bias = distances("relative_e", source.shape[1])
        for i in range(self.layers):
            y = norm(e, f"e{i}_norm_a")
            e = e + attend(f"e{i}_self", y, y, bias)
            e = e + feed(f"e{i}", norm(e, f"e{i}_norm_f"))
        e, d = norm(e, "e_norm"), embed(target)
        bias = jnp.where(causal(target.shape[1]), distances("relative_d", target.shape[1]), -1e9)
        for i in range(self.layers):
            y = norm(d, f"d{i}_norm_a")
            d = d + attend(f"d{i}_self", y, y, bias)
            d = d + attend(f"d{i}_cross", norm(d, f"d{i}_norm_c"), e)
            d = d + feed(f"d{i}", norm(d, f"d{i}_norm_f"))
        return embed.attend(norm(d, "d_norm") * WIDTH**-0.5)


@published("T5", "encoder and decoder")
def t5() -> Model:
    return linen(T5(), tokens(200, (8, 16), (8, 12)))


class Bert(nn.Module):
    """Devlin 2018: post-LN, everything normal(.02), a tied head with a bias."""

    layers: int = 4

    @nn.compact
    def __call__(self, ids, segments):
        def dense(features):
            return nn.Dense(features, kernel_init=SMALL)

        embed = nn.Embed(200, WIDTH, embedding_init=SMALL)
        x = embed(ids) + nn.Embed(2, WIDTH, embedding_init=SMALL)(segments)
        x = nn.LayerNorm()(x + self.param("position", SMALL, (ids.shape[1], WIDTH)))
        for _ in range(self.layers):
            y = nn.MultiHeadDotProductAttention(HEADS, kernel_init=SMALL)(x, x)
            x = nn.LayerNorm()(x + y)
            x = nn.LayerNorm()(x + dense(WIDTH)(nn.gelu(dense(256)(x))))
        x = nn.LayerNorm()(nn.gelu(dense(WIDTH)(x)))
        return embed.attend(x) + self.param("bias", nn.initializers.zeros, (200,))


@published("BERT", "encoder")
def bert() -> Model:
    return linen(Bert(), both(TEXT, tokens(2, (8, 16))))


class Vaswani(nn.Module):
    """The Transformer of 2017: post-LN, Xavier, table d^-1/2 times sqrt d, tied."""

    @nn.compact
    def __call__(self, source, target):
        xavier = nn.initializers.xavier_uniform()
        embed = nn.Embed(200, WIDTH, embedding_init=nn.initializers.normal(WIDTH**-0.5))

        def attend(x, y, mask=None):
            layer = nn.MultiHeadDotProductAttention(HEADS, kernel_init=xavier, use_bias=False)
            return nn.LayerNorm()(x + layer(x, y, mask=mask))

        def feed(x):
            y = nn.relu(nn.Dense(128, kernel_init=xavier)(x))
            return nn.LayerNorm()(x + nn.Dense(WIDTH, kernel_init=xavier)(y))

        def enter(ids):
            angles = jnp.outer(jnp.arange(ids.shape[1]), 10_000.0 ** (-jnp.arange(32) / 32))
            place = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], -1)
            return embed(ids) * math.sqrt(WIDTH) + place

        e, d = enter(source), enter(target)
        for _ in range(2):
            e = feed(attend(e, e))
        for _ in range(2):
            d = attend(d, d, causal(target.shape[1]))
            d = feed(attend(d, e))
        return embed.attend(d)


@published("Transformer, post-LN", "encoder and decoder")
def vaswani() -> Model:
    return linen(Vaswani(), tokens(200, (8, 16), (8, 12)))


class Clip(nn.Module):
    """Radford 2021: two towers, unit vectors, a logit scale under exp."""

    @nn.compact
    def __call__(self, images, ids):
        n = nn.initializers.normal
        deep, wide = (2 * WIDTH) ** -0.5, (2 * 2) ** -0.5

        def block(x, mask=None):
            y = nn.LayerNorm()(x)
            layer = nn.MultiHeadDotProductAttention(
                HEADS, kernel_init=n(WIDTH**-0.5), out_kernel_init=n(WIDTH**-0.5 * wide)
            )
            x = x + layer(y, y, mask=mask)
            y = nn.gelu(nn.Dense(4 * WIDTH, kernel_init=n(deep))(nn.LayerNorm()(x)))
            return x + nn.Dense(WIDTH, kernel_init=n(WIDTH**-0.5 * wide))(y)

        e = nn.Conv(WIDTH, (8, 8), strides=8, use_bias=False, kernel_init=SMALL)(images)
        e = e.reshape(len(images), -1, WIDTH)
        token = self.param("cls", n(WIDTH**-0.5), (1, 1, WIDTH))
        e = jnp.concatenate([jnp.tile(token, (len(e), 1, 1)), e], 1)
        e = nn.LayerNorm()(e + self.param("place", n(WIDTH**-0.5), (1, e.shape[1], WIDTH)))
        t = nn.Embed(200, WIDTH, embedding_init=SMALL)(ids)
        t = t + self.param("position", n(0.01), (1, ids.shape[1], WIDTH))
        for _ in range(2):
            e, t = block(e), block(t, causal(ids.shape[1]))
        project = [nn.Dense(32, use_bias=False, kernel_init=n(WIDTH**-0.5)) for _ in range(2)]
        i = project[0](nn.LayerNorm()(e)[:, 0])
        s = project[1](nn.LayerNorm()(t)[:, -1])
        i, s = (one / jnp.linalg.norm(one, axis=-1, keepdims=True) for one in (i, s))
        scale = self.param("logit_scale", nn.initializers.constant(math.log(1 / 0.07)), ())
        return jnp.exp(scale) * i @ s.T


@published("CLIP", "two towers")
def clip() -> Model:
    return linen(Clip(), both(normal((8, 32, 32, 3)), TEXT))


class Whisper(nn.Module):
    """Radford 2022: convolutions on a spectrogram, an encoder, a decoder with a tied table."""

    @nn.compact
    def __call__(self, mel, ids):
        def attend(x, y, mask=None):
            return nn.MultiHeadDotProductAttention(HEADS)(x, y, mask=mask)

        def feed(x):
            return nn.Dense(WIDTH)(nn.gelu(nn.Dense(4 * WIDTH)(nn.LayerNorm()(x))))

        e = nn.gelu(nn.Conv(WIDTH, (3,))(mel))
        e = nn.gelu(nn.Conv(WIDTH, (3,), strides=2)(e))
        angles = jnp.outer(jnp.arange(e.shape[1]), 10_000.0 ** (-jnp.arange(32) / 31))
        e = e + jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], -1)
        for _ in range(2):
            y = nn.LayerNorm()(e)
            e = e + attend(y, y)
            e = e + feed(e)
        e = nn.LayerNorm()(e)
        embed = nn.Embed(200, WIDTH, embedding_init=SMALL)
        d = embed(ids) + self.param("position", SMALL, (ids.shape[1], WIDTH))
        for _ in range(2):
            y = nn.LayerNorm()(d)
            d = d + attend(y, y, causal(ids.shape[1]))
            d = d + attend(nn.LayerNorm()(d), e)
            d = d + feed(d)
        return embed.attend(nn.LayerNorm()(d))


@published("Whisper", "speech")
def whisper() -> Model:
    return linen(Whisper(), both(normal((4, 32, 20)), tokens(200, (4, 12))))


class Switch(nn.Module):
    """Fedus 2021: the best expert of four, kernels of scale 0.1, truncated."""

    @nn.compact
    def __call__(self, ids):
        init = nn.initializers.variance_scaling(0.1, "fan_in", "truncated_normal")
        many = nn.initializers.variance_scaling(
            0.1, "fan_in", "truncated_normal", in_axis=1, out_axis=2, batch_axis=(0,)
        )
        x = nn.Embed(200, WIDTH, embedding_init=nn.initializers.normal(1.0))(ids)
        for n in range(2):
            y = nn.RMSNorm()(x)
            layer = nn.MultiHeadDotProductAttention(HEADS, kernel_init=init, use_bias=False)
            x = x + layer(y, y, mask=causal(ids.shape[1]))
            y = nn.RMSNorm()(x)
            gates = jax.nn.softmax(nn.Dense(4, use_bias=False, kernel_init=init)(y))
            best = jax.nn.one_hot(gates.argmax(-1), 4) * gates
            up = self.param(f"up{n}", many, (4, WIDTH, 128))
            down = self.param(f"down{n}", many, (4, 128, WIDTH))
            hidden = nn.relu(jnp.einsum("btd,edf->btef", y, up))
            x = x + jnp.einsum("btef,efd,bte->btd", hidden, down, best)
        return nn.Dense(200, use_bias=False, kernel_init=init)(nn.RMSNorm()(x))


@published("Switch Transformer", "mixture of experts")
def switch() -> Model:
    return linen(Switch(), TEXT)


class NnxDecoder(nnx.Module):
    """The small GPT of Flax's tutorial: NNX attention, Xavier, learned positions."""

    def __init__(self, rngs: nnx.Rngs):
        def init(initializer):
            return nnx.with_partitioning(initializer, (None, None))

        xavier, zeros = nnx.initializers.xavier_uniform(), nnx.initializers.zeros_init()
        linear = {"kernel_init": xavier, "bias_init": zeros, "rngs": rngs}
        self.tokens = nnx.Embed(200, WIDTH, rngs=rngs)
        self.places = nnx.Embed(16, WIDTH, rngs=rngs)
        self.attention = nnx.List(
            nnx.MultiHeadAttention(HEADS, WIDTH, decode=False, **linear) for _ in range(3)
        )
        self.norms = nnx.List(nnx.LayerNorm(WIDTH, rngs=rngs) for _ in range(6))
        self.up = nnx.List(nnx.Linear(WIDTH, WIDTH, **linear) for _ in range(3))
        self.down = nnx.List(nnx.Linear(WIDTH, WIDTH, **linear) for _ in range(3))
        self.drop = nnx.Dropout(0.1, rngs=rngs)
        self.head = nnx.Linear(WIDTH, 200, **linear)

    def __call__(self, ids):
        x = self.tokens(ids) + self.places(jnp.arange(ids.shape[1]))[None]
        for n in range(3):
            y = self.attention[n](x, mask=causal(ids.shape[1]))
            x = self.norms[2 * n](x + self.drop(y))
            y = self.down[n](nnx.relu(self.up[n](x)))
            x = self.norms[2 * n + 1](x + self.drop(y))
        return self.head(x)


@published("miniGPT of Flax", "decoder", "nnx")
def nnx_decoder() -> Model:
    return in_nnx(NnxDecoder, TEXT)


class LoraNet(nnx.Module):
    """A pre-LN MLP with adapters: the first factor at random, the second zero."""

    def __init__(self, rngs: nnx.Rngs):
        linear = {"lora_rank": 4, "rngs": rngs}
        self.stem = nnx.Linear(16, WIDTH, rngs=rngs)
        self.up = nnx.List(nnx.LoRALinear(WIDTH, 128, **linear) for _ in range(3))
        self.down = nnx.List(nnx.LoRALinear(128, WIDTH, **linear) for _ in range(3))
        self.norms = nnx.List(nnx.LayerNorm(WIDTH, rngs=rngs) for _ in range(4))
        self.head = nnx.Linear(WIDTH, 10, rngs=rngs)

    def __call__(self, x):
        x = self.stem(x)
        for norm, up, down in zip(self.norms, self.up, self.down, strict=False):
            x = x + down(nnx.gelu(up(norm(x))))
        return self.head(self.norms[3](x))


@published("LoRA", "adapter", "nnx")
def lora() -> Model:
    return in_nnx(LoraNet, normal((16, 16)))


class EqxTransformer(eqx.Module):
    """Equinox's attention and layers with their defaults, U(+-1/sqrt(fan_in))."""

    embed: eqx.nn.Embedding
    place: jax.Array
    attention: list
    norms: list
    feed: list
    head: eqx.nn.Linear

    def __init__(self, key):
        keys = iter(jax.random.split(key, 16))
        self.embed = eqx.nn.Embedding(200, WIDTH, key=next(keys))
        self.place = jax.random.normal(next(keys), (16, WIDTH))
        self.attention = [eqx.nn.MultiheadAttention(HEADS, WIDTH, key=next(keys)) for _ in range(3)]
        self.norms = [eqx.nn.LayerNorm(WIDTH) for _ in range(6)]
        self.feed = [
            eqx.nn.MLP(WIDTH, WIDTH, 128, 1, jax.nn.gelu, key=next(keys)) for _ in range(3)
        ]
        self.head = eqx.nn.Linear(WIDTH, 10, key=next(keys))

    def __call__(self, ids):
        x = jax.vmap(self.embed)(ids) + self.place
        for n in range(3):
            x = jax.vmap(self.norms[2 * n])(x + self.attention[n](x, x, x))
            x = jax.vmap(self.norms[2 * n + 1])(x + jax.vmap(self.feed[n])(x))
        return self.head(x.mean(0))


@published("BERT of the Equinox tutorial", "encoder", "equinox")
def equinox_transformer() -> Model:
    return in_equinox(EqxTransformer, TEXT)


@published("Transformer of Haiku", "decoder", "haiku")
def haiku_transformer() -> Model:
    """The language model of Haiku's examples: scale 2 / layers, pre-LN."""
    layers = 3
    init = hk.initializers.VarianceScaling(2 / layers)
    small = hk.initializers.TruncatedNormal(stddev=0.02)

    def net(ids):
        x = hk.Embed(200, WIDTH, w_init=small)(ids)
        x = x + hk.get_parameter("position", [ids.shape[1], WIDTH], init=small)
        for _ in range(layers):
            y = hk.LayerNorm(-1, True, True)(x)
            x = x + hk.MultiHeadAttention(HEADS, 16, model_size=WIDTH, w_init=init)(
                y, y, y, mask=causal(ids.shape[1])[None, None]
            )
            y = hk.LayerNorm(-1, True, True)(x)
            y = jax.nn.gelu(hk.Linear(4 * WIDTH, w_init=init)(y))
            x = x + hk.Linear(WIDTH, w_init=init)(y)
        return hk.Linear(200)(hk.LayerNorm(-1, True, True)(x))

    return in_haiku(net, TEXT)


@published("Perceiver", "encoder", "haiku")
def perceiver() -> Model:
    """Learned latents that read an array; Jaegle 2021, latents of .02."""

    def net(x):
        init = hk.initializers.VarianceScaling(1.0)
        small = hk.initializers.TruncatedNormal(stddev=0.02)

        def norm(x):
            return hk.LayerNorm(-1, True, True)(x)

        def attend(x, y):
            return hk.MultiHeadAttention(HEADS, 16, model_size=WIDTH, w_init=init)(x, y, y)

        def feed(x):
            return hk.Linear(WIDTH, w_init=init)(jax.nn.gelu(hk.Linear(128, w_init=init)(norm(x))))

        z = hk.get_parameter("latents", [8, WIDTH], init=small)
        z = jnp.broadcast_to(z, (x.shape[0], 8, WIDTH))
        z = z + attend(norm(z), norm(x))
        z = z + feed(z)
        for _ in range(2):
            y = norm(z)
            z = z + attend(y, y)
            z = z + feed(z)
        return hk.Linear(10, w_init=init)(z.mean(1))

    return in_haiku(net, normal((8, 32, 24)))
