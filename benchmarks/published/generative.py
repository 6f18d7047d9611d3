"""Generative models: U-Net, GANs, autoencoders, flows."""

from __future__ import annotations

import itertools
import math

import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from published.common import Model, in_haiku, in_nnx, linen, normal, published

ZEROS = nn.initializers.zeros
DCGAN = nn.initializers.normal(0.02)


class UNet(nn.Module):
    """The diffusion U-Net of Ho 2020: group norm, time embedding, zero last convolutions."""

    @nn.compact
    def __call__(self, x, time):
        angles = time[:, None] * jnp.exp(-math.log(10_000) / 31 * jnp.arange(32))
        t = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], -1)
        t = nn.Dense(128)(nn.silu(nn.Dense(128)(t)))

        def block(x, width):
            y = nn.Conv(width, (3, 3))(nn.silu(nn.GroupNorm(8)(x)))
            y = y + nn.Dense(width)(nn.silu(t))[:, None, None]
            y = nn.Conv(width, (3, 3), kernel_init=ZEROS)(nn.silu(nn.GroupNorm(8)(y)))
            return y + (nn.Conv(width, (1, 1))(x) if x.shape[-1] != width else x)

        def attend(x):
            y = nn.GroupNorm(8)(x).reshape(x.shape[0], -1, x.shape[-1])
            y = nn.MultiHeadDotProductAttention(1, out_kernel_init=ZEROS)(y, y)
            return x + y.reshape(x.shape)

        high = block(nn.Conv(32, (3, 3))(x), 32)
        low = attend(block(nn.Conv(32, (3, 3), strides=2)(high), 64))
        x = block(attend(block(nn.Conv(64, (3, 3), strides=2)(low), 64)), 64)
        for side in (low, high):
            shape = (*side.shape[:-1], x.shape[-1])
            x = nn.Conv(x.shape[-1], (3, 3))(jax.image.resize(x, shape, "nearest"))
            x = block(jnp.concatenate([x, side], -1), side.shape[-1])
        return nn.Conv(3, (3, 3), kernel_init=ZEROS)(nn.silu(nn.GroupNorm(8)(x)))


@published("U-Net of DDPM", "diffusion")
def ddpm() -> Model:
    def data(key):
        a, b = jax.random.split(key)
        return jax.random.normal(a, (4, 16, 16, 3)), jax.random.uniform(b, (4,), maxval=1000.0)

    return linen(UNet(), data)


class Segment(nn.Module):
    """Ronneberger 2015: He normal, no normalisation, transposed convolutions."""

    @nn.compact
    def __call__(self, x):
        he, sides = nn.initializers.he_normal(), []

        def two(x, width):
            for _ in range(2):
                x = nn.relu(nn.Conv(width, (3, 3), kernel_init=he)(x))
            return x

        for width in (16, 32):
            x = two(x, width)
            sides.append(x)
            x = nn.max_pool(x, (2, 2), strides=(2, 2))
        x = two(x, 64)
        for side in reversed(sides):
            x = nn.ConvTranspose(side.shape[-1], (2, 2), strides=(2, 2), kernel_init=he)(x)
            x = two(jnp.concatenate([side, x], -1), side.shape[-1])
        return nn.Conv(2, (1, 1), kernel_init=he)(x)


@published("U-Net of 2015", "segmentation")
def unet() -> Model:
    return linen(Segment(), normal((4, 32, 32, 3)))


class Generator(nn.Module):
    """Radford 2015: normal(.02) kernels, batch norm, 4 x 4 transposed convolutions."""

    @nn.compact
    def __call__(self, z):
        x = z[:, None, None]
        for n, width in enumerate((128, 64, 32)):
            how = {"padding": "VALID"} if n == 0 else {"strides": (2, 2), "padding": "SAME"}
            x = nn.ConvTranspose(width, (4, 4), kernel_init=DCGAN, use_bias=False, **how)(x)
            norm = nn.BatchNorm(use_running_average=False, scale_init=lambda *a: 1 + DCGAN(*a))
            x = nn.relu(norm(x))
        x = nn.ConvTranspose(3, (4, 4), strides=(2, 2), kernel_init=DCGAN, use_bias=False)(x)
        return nn.tanh(x)


@published("DCGAN, generator", "GAN")
def generator() -> Model:
    return linen(Generator(), normal((8, 100)), mutable=True)


class Critic(nn.Module):
    """Radford 2015: strided convolutions, leaky ReLU, batch norm but for the first layer."""

    @nn.compact
    def __call__(self, x):
        for n, width in enumerate((32, 64, 128)):
            x = nn.Conv(width, (4, 4), strides=2, kernel_init=DCGAN, use_bias=False)(x)
            x = x if n == 0 else nn.BatchNorm(use_running_average=False)(x)
            x = nn.leaky_relu(x, 0.2)
        return nn.Conv(1, (4, 4), padding="VALID", kernel_init=DCGAN, use_bias=False)(x)


@published("DCGAN, discriminator", "GAN")
def critic() -> Model:
    return linen(Critic(), normal((8, 32, 32, 3)), mutable=True)


class Spectral(nn.Module):
    """Miyato 2018: spectral norm in every layer of the discriminator."""

    @nn.compact
    def __call__(self, x):
        for width in (32, 64, 128):
            conv = nn.Conv(width, (4, 4), strides=2, kernel_init=nn.initializers.xavier_uniform())
            x = nn.leaky_relu(nn.SpectralNorm(conv)(x, update_stats=False), 0.1)
        return nn.SpectralNorm(nn.Dense(1))(x.reshape(len(x), -1), update_stats=False)


@published("SN-GAN, discriminator", "GAN")
def spectral() -> Model:
    return linen(Spectral(), normal((8, 32, 32, 3)))


class StyleGAN(nn.Module):
    """Karras 2019: equalised rates, a learned constant, modulated convolutions, noise."""

    @nn.compact
    def __call__(self, z, noise):
        unit = nn.initializers.normal(1.0)

        def kernel(name, shape, rate=1.0):
            scale = math.prod(shape[:-1]) ** -0.5
            return self.param(name, nn.initializers.normal(1 / rate), shape) * (scale * rate)

        def leaky(x):
            return nn.leaky_relu(x, 0.2) * math.sqrt(2)

        w = z * jax.lax.rsqrt((z * z).mean(-1, keepdims=True) + 1e-8)
        for n in range(8):
            bias = self.param(f"map_bias{n}", ZEROS, (64,))
            w = leaky(w @ kernel(f"map{n}", (64, 64), 0.01) + bias * 0.01)
        x = jnp.tile(self.param("const", unit, (1, 4, 4, 64)), (len(z), 1, 1, 1))
        for n in range(3):
            style = w @ kernel(f"style{n}", (64, 64))
            style = style + self.param(f"style_bias{n}", nn.initializers.ones, (64,))
            k = kernel(f"conv{n}", (3, 3, 64, 64))[None] * style[:, None, None, :, None]
            k = k * jax.lax.rsqrt((k * k).sum((1, 2, 3), keepdims=True) + 1e-8)
            x = jax.vmap(
                lambda x, k: jax.lax.conv_general_dilated(
                    x[None], k, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
                )[0]
            )(x, k)
            x = x + self.param(f"strength{n}", ZEROS, ()) * noise
            x = leaky(x + self.param(f"bias{n}", ZEROS, (64,)))
        return jnp.einsum("bhwc,cd->bhwd", x, kernel("rgb", (64, 3)))


@published("StyleGAN2, equalised rates", "GAN")
def stylegan() -> Model:
    return linen(StyleGAN(), normal((8, 64), (8, 4, 4, 1)))


class VAE(nn.Module):
    """The VAE of Flax's example: dense layers of Flax's defaults."""

    @nn.compact
    def __call__(self, x, noise):
        h = nn.relu(nn.Dense(256)(x))
        mean, log = nn.Dense(20)(h), nn.Dense(20)(h)
        z = mean + noise * jnp.exp(0.5 * log)
        return nn.Dense(784)(nn.relu(nn.Dense(256)(z))), mean, log


@published("VAE of Flax", "autoencoder")
def vae() -> Model:
    return linen(VAE(), normal((16, 784), (16, 20)))


@published("VQ-VAE of Haiku", "autoencoder", "haiku")
def vqvae() -> Model:
    """Van den Oord 2017 as in Haiku: residual stacks, a codebook drawn as Haiku draws it."""

    def net(x):
        def stack(x):
            for _ in range(2):
                y = hk.Conv2D(32, 3)(jax.nn.relu(x))
                x = x + hk.Conv2D(64, 1)(jax.nn.relu(y))
            return jax.nn.relu(x)

        x = jax.nn.relu(hk.Conv2D(32, 4, stride=2)(x))
        z = hk.Conv2D(16, 1)(stack(hk.Conv2D(64, 3)(x)))
        codes = hk.get_parameter("codes", [16, 32], init=hk.initializers.VarianceScaling())
        flat = z.reshape(-1, 16)
        distance = (flat**2).sum(1, keepdims=True) - 2 * flat @ codes + (codes**2).sum(0)
        chosen = jax.nn.one_hot(distance.argmin(1), 32) @ codes.T
        q = z + jax.lax.stop_gradient(chosen.reshape(z.shape) - z)
        loss = ((jax.lax.stop_gradient(z) - chosen.reshape(z.shape)) ** 2).mean()
        y = hk.Conv2DTranspose(32, 4, stride=2)(stack(hk.Conv2D(64, 3)(q)))
        return hk.Conv2D(3, 3)(jax.nn.relu(y)), loss

    return in_haiku(net, normal((8, 16, 16, 3)))


class NnxAutoencoder(nnx.Module):
    """A plain autoencoder of the NNX guides."""

    def __init__(self, rngs: nnx.Rngs):
        sizes = (256, 128, 32, 128, 256)
        self.layers = nnx.List(nnx.Linear(a, b, rngs=rngs) for a, b in itertools.pairwise(sizes))

    def __call__(self, x):
        for layer in self.layers[:-1]:
            x = nnx.relu(layer(x))
        return self.layers[-1](x)


@published("autoencoder of NNX", "autoencoder", "nnx")
def nnx_autoencoder() -> Model:
    return in_nnx(NnxAutoencoder, normal((16, 256)))


class MaskedAutoencoder(nn.Module):
    """He 2021: mask tokens of .02, a decoder of its own, Xavier."""

    @nn.compact
    def __call__(self, patches, keep):
        xavier, small = nn.initializers.xavier_uniform(), nn.initializers.normal(0.02)

        def block(x):
            y = nn.LayerNorm()(x)
            x = x + nn.MultiHeadDotProductAttention(4, kernel_init=xavier)(y, y)
            y = nn.gelu(nn.Dense(128, kernel_init=xavier)(nn.LayerNorm()(x)))
            return x + nn.Dense(64, kernel_init=xavier)(y)

        x = nn.Dense(64, kernel_init=xavier)(patches)
        x = block(block(x))
        x = nn.Dense(64, kernel_init=xavier)(nn.LayerNorm()(x))
        token = self.param("mask_token", small, (1, 1, 64))
        x = jnp.where(keep[..., None] > 0, x, token)
        x = block(x + jnp.asarray(np.sin(np.arange(16)[:, None] / 1.7 ** np.arange(64)), "float32"))
        return nn.Dense(48, kernel_init=xavier)(nn.LayerNorm()(x))


@published("MAE", "autoencoder")
def mae() -> Model:
    def data(key):
        a, b = jax.random.split(key)
        return jax.random.normal(a, (8, 16, 48)), jax.random.normal(b, (8, 16))

    return linen(MaskedAutoencoder(), data)


class RealNVP(nn.Module):
    """Dinh 2016: affine couplings whose last layers start at zero."""

    layers: int = 6

    @nn.compact
    def __call__(self, x):
        half, total = x.shape[-1] // 2, 0.0
        for n in range(self.layers):
            a, b = jnp.split(x, 2, -1)
            a, b = (a, b) if n % 2 else (b, a)
            h = nn.relu(nn.Dense(64)(nn.relu(nn.Dense(64)(a))))
            shift, log = jnp.split(nn.Dense(2 * half, kernel_init=ZEROS)(h), 2, -1)
            log = jnp.tanh(log)
            b = b * jnp.exp(log) + shift
            x = jnp.concatenate([a, b] if n % 2 else [b, a], -1)
            total = total + log.sum(-1)
        return x, total


@published("RealNVP", "flow")
def realnvp() -> Model:
    return linen(RealNVP(), normal((16, 16)))


class Glow(nn.Module):
    """Kingma 2018: act norm, an orthogonal 1 x 1, zero last convolutions with a scale."""

    @nn.compact
    def __call__(self, x):
        for n in range(3):
            scale = self.param(f"scale{n}", nn.initializers.zeros, (8,))
            x = (x + self.param(f"shift{n}", ZEROS, (8,))) * jnp.exp(scale)
            x = x @ self.param(f"mix{n}", nn.initializers.orthogonal(), (8, 8))
            a, b = jnp.split(x, 2, -1)
            h = nn.relu(nn.Conv(64, (3, 3), kernel_init=nn.initializers.normal(0.05))(a))
            h = nn.relu(nn.Conv(64, (1, 1), kernel_init=nn.initializers.normal(0.05))(h))
            h = nn.Conv(8, (3, 3), kernel_init=ZEROS)(h)
            h = h * jnp.exp(3 * self.param(f"last{n}", ZEROS, (8,)))
            shift, log = jnp.split(h, 2, -1)
            x = jnp.concatenate([a, (b + shift) * nn.sigmoid(log + 2)], -1)
        return x


@published("Glow", "flow")
def glow() -> Model:
    return linen(Glow(), normal((4, 8, 8, 8)))


class MADE(nn.Module):
    """Germain 2015: masks on the kernels make the outputs autoregressive."""

    @nn.compact
    def __call__(self, x):
        size, hidden = x.shape[-1], 128
        places, degrees = np.arange(size), np.arange(hidden) % (size - 1)
        masks = [
            degrees[None] >= places[:, None],
            degrees[None] >= degrees[:, None],
            places[None] > degrees[:, None],
        ]
        for n, mask in enumerate(masks):
            w = self.param(f"w{n}", nn.initializers.lecun_normal(), mask.shape)
            x = x @ (w * mask.astype("float32")) + self.param(f"b{n}", ZEROS, mask.shape[1:])
            x = nn.relu(x) if n < 2 else x
        return x


@published("MADE, masked kernels", "flow")
def made() -> Model:
    return linen(MADE(), normal((16, 32)))
