"""Models of images: residual and plain convolutional nets, vision transformers, detection."""

from __future__ import annotations

import functools
import math

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from published.common import Model, in_equinox, in_haiku, in_nnx, linen, normal, published

IMAGES = normal((8, 32, 32, 3))
SMALL = normal((8, 16, 16, 3))
HE_OUT = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
TRUNCATED = nn.initializers.truncated_normal(0.02)
ZEROS = nn.initializers.zeros


class ResNet(nn.Module):
    """As the Flax example: zero last scale of a block, LeCun kernels."""

    stages: tuple[int, ...] = (2, 2, 2)

    @nn.compact
    def __call__(self, x):
        norm = functools.partial(nn.BatchNorm, use_running_average=False)
        conv = functools.partial(nn.Conv, use_bias=False)
        x = nn.relu(norm()(conv(32, (3, 3))(x)))
        for stage, blocks in enumerate(self.stages):
            for block in range(blocks):
                width, strides = 32 * 2**stage, 2 if stage and not block else 1
                y = nn.relu(norm()(conv(width, (3, 3), strides=strides)(x)))
                y = norm(scale_init=ZEROS)(conv(width, (3, 3))(y))
                if x.shape != y.shape:
                    x = norm()(conv(width, (1, 1), strides=strides)(x))
                x = nn.relu(x + y)
        return nn.Dense(10)(x.mean((1, 2)))


@published("ResNet, batch norm", "residual")
def resnet() -> Model:
    return linen(ResNet(), SMALL, mutable=True)


class WideResNet(nn.Module):
    """Pre-activation blocks, He normal by fan_out; Zagoruyko 2016."""

    @nn.compact
    def __call__(self, x):
        norm = functools.partial(nn.BatchNorm, use_running_average=False)
        conv = functools.partial(nn.Conv, use_bias=False, kernel_init=HE_OUT)
        x = conv(16, (3, 3))(x)
        for width in (32, 64):
            for block in range(3):
                strides = 2 if width > 32 and not block else 1
                y = nn.relu(norm()(x))
                short = conv(width, (1, 1), strides=strides)(y) if x.shape[-1] != width else x
                y = nn.relu(norm()(conv(width, (3, 3), strides=strides)(y)))
                x = short + conv(width, (3, 3))(y)
        return nn.Dense(10)(nn.relu(norm()(x)).mean((1, 2)))


@published("Wide ResNet, pre-activation", "residual")
def wide_resnet() -> Model:
    return linen(WideResNet(), IMAGES, mutable=True)


class Fixup(nn.Module):
    """Zhang 2019: no normalisation, zero last layers, scalar biases and multipliers."""

    blocks: int = 8

    @nn.compact
    def __call__(self, x):
        def scalar(name, start=0.0):
            return self.param(name, nn.initializers.constant(start), ())

        first = nn.initializers.variance_scaling(2.0 / self.blocks, "fan_out", "normal")
        x = nn.relu(nn.Conv(32, (3, 3), use_bias=False, kernel_init=HE_OUT)(x) + scalar("bias"))
        for n in range(self.blocks):
            y = nn.Conv(32, (3, 3), use_bias=False, kernel_init=first)(x + scalar(f"a{n}"))
            y = nn.relu(y + scalar(f"b{n}")) + scalar(f"c{n}")
            y = nn.Conv(32, (3, 3), use_bias=False, kernel_init=ZEROS)(y)
            x = nn.relu(x + y * scalar(f"scale{n}", 1.0) + scalar(f"d{n}"))
        return nn.Dense(10, kernel_init=ZEROS)(x.mean((1, 2)) + scalar("last"))


@published("Fixup ResNet", "residual")
def fixup() -> Model:
    return linen(Fixup(), SMALL)


class ScaledConv(nn.Module):
    """Weight standardisation with a learned gain, as in NFNets."""

    features: int
    size: int = 3

    @nn.compact
    def __call__(self, x):
        shape = (self.size, self.size, x.shape[-1], self.features)
        w = self.param("w", HE_OUT, shape)
        gain = self.param("gain", nn.initializers.ones, (self.features,))
        fan = math.prod(shape[:3])
        mean, var = w.mean((0, 1, 2)), w.var((0, 1, 2))
        w = (w - mean) * jax.lax.rsqrt(jnp.maximum(var * fan, 1e-4)) * gain
        return jax.lax.conv_general_dilated(
            x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        ) + self.param("bias", ZEROS, (self.features,))


class NFNet(nn.Module):
    """Brock 2021: scaled ReLU, standardised kernels, beta from the predicted variance."""

    @nn.compact
    def __call__(self, x):
        def relu(x):
            return nn.relu(x) * 1.7139588594436646

        x, variance = ScaledConv(32)(x), 1.0
        for n in range(6):
            y = ScaledConv(32)(relu(x) / variance**0.5)
            y = ScaledConv(32)(relu(y))
            skip = self.param(f"skip_gain{n}", ZEROS, ())
            x, variance = x + 0.2 * skip * y, variance + 0.04
        return nn.Dense(10, kernel_init=nn.initializers.normal(0.01))(relu(x).mean((1, 2)))


@published("NFNet, standardised kernels", "residual")
def nfnet() -> Model:
    return linen(NFNet(), IMAGES)


class ConvNeXt(nn.Module):
    """Liu 2022: truncated normal .02, layer scale 1e-6."""

    @nn.compact
    def __call__(self, x):
        x = nn.LayerNorm()(nn.Conv(48, (4, 4), strides=4, kernel_init=TRUNCATED)(x))
        for n in range(4):
            y = nn.Conv(48, (7, 7), feature_group_count=48, kernel_init=TRUNCATED)(x)
            y = nn.gelu(nn.Dense(192, kernel_init=TRUNCATED)(nn.LayerNorm()(y)))
            y = nn.Dense(48, kernel_init=TRUNCATED)(y)
            x = x + y * self.param(f"gamma{n}", nn.initializers.constant(1e-6), (48,))
        return nn.Dense(10, kernel_init=TRUNCATED)(nn.LayerNorm()(x.mean((1, 2))))


@published("ConvNeXt", "convolutional")
def convnext() -> Model:
    return linen(ConvNeXt(), IMAGES)


class MobileNet(nn.Module):
    """Sandler 2018: inverted residuals, depthwise convolutions, squeeze and excitation."""

    @nn.compact
    def __call__(self, x):
        norm = functools.partial(nn.BatchNorm, use_running_average=False)
        conv = functools.partial(nn.Conv, use_bias=False, kernel_init=HE_OUT)
        x = nn.relu6(norm()(conv(16, (3, 3), strides=2)(x)))
        for width, strides in ((24, 2), (24, 1), (32, 1), (32, 1)):
            inner = 4 * x.shape[-1]
            y = nn.relu6(norm()(conv(inner, (1, 1))(x)))
            y = conv(inner, (3, 3), strides=strides, feature_group_count=inner)(y)
            y = nn.relu6(norm()(y))
            gate = nn.relu(nn.Dense(inner // 4)(y.mean((1, 2))))
            y = y * nn.sigmoid(nn.Dense(inner)(gate))[:, None, None]
            y = norm()(conv(width, (1, 1))(y))
            x = x + y if x.shape == y.shape else y
        return nn.Dense(10)(x.mean((1, 2)))


@published("MobileNet, depthwise, SE", "convolutional")
def mobilenet() -> Model:
    return linen(MobileNet(), IMAGES, mutable=True)


class VGG(nn.Module):
    """No normalisation; He normal as torchvision draws it."""

    @nn.compact
    def __call__(self, x):
        for width in (32, 32, 64, 64, 128, 128):
            x = nn.relu(nn.Conv(width, (3, 3), kernel_init=HE_OUT)(x))
            if width == x.shape[-1] and x.shape[1] > 8:
                x = nn.max_pool(x, (2, 2), strides=(2, 2))
        x = x.reshape(x.shape[0], -1)
        small = nn.initializers.normal(0.01)
        x = nn.relu(nn.Dense(256, kernel_init=small)(x))
        return nn.Dense(10, kernel_init=small)(x)


@published("VGG", "convolutional")
def vgg() -> Model:
    return linen(VGG(), IMAGES)


@published("CNN of the Equinox tutorial", "convolutional", "equinox")
def equinox_cnn() -> Model:
    def make(key):
        a, b, c, d = jax.random.split(key, 4)
        return eqx.nn.Sequential(
            [
                eqx.nn.Conv2d(3, 16, 3, padding=1, key=a),
                eqx.nn.MaxPool2d(2, 2),
                eqx.nn.Lambda(jax.nn.relu),
                eqx.nn.Conv2d(16, 16, 3, padding=1, key=b),
                eqx.nn.Lambda(jax.nn.relu),
                eqx.nn.Lambda(jnp.ravel),
                eqx.nn.Linear(16 * 16 * 16, 128, key=c),
                eqx.nn.Lambda(jax.nn.sigmoid),
                eqx.nn.Linear(128, 10, key=d),
            ]
        )

    return in_equinox(make, normal((8, 3, 32, 32)))


class NnxCNN(nnx.Module):
    """The CNN of Flax's MNIST example: batch norm and dropout."""

    def __init__(self, rngs: nnx.Rngs):
        self.conv1 = nnx.Conv(1, 32, kernel_size=(3, 3), rngs=rngs)
        self.norm1 = nnx.BatchNorm(32, rngs=rngs)
        self.drop1 = nnx.Dropout(rate=0.025, rngs=rngs)
        self.conv2 = nnx.Conv(32, 64, kernel_size=(3, 3), rngs=rngs)
        self.norm2 = nnx.BatchNorm(64, rngs=rngs)
        self.linear1 = nnx.Linear(7 * 7 * 64, 256, rngs=rngs)
        self.drop2 = nnx.Dropout(rate=0.025, rngs=rngs)
        self.linear2 = nnx.Linear(256, 10, rngs=rngs)

    def __call__(self, x):
        pool = functools.partial(nnx.avg_pool, window_shape=(2, 2), strides=(2, 2))
        x = pool(nnx.relu(self.norm1(self.drop1(self.conv1(x)))))
        x = pool(nnx.relu(self.norm2(self.conv2(x))))
        x = nnx.relu(self.drop2(self.linear1(x.reshape(x.shape[0], -1))))
        return self.linear2(x)


@published("MNIST CNN of Flax", "convolutional", "nnx")
def nnx_cnn() -> Model:
    return in_nnx(NnxCNN, normal((8, 28, 28, 1)))


class ViT(nn.Module):
    """Dosovitskiy 2020, as the authors' code: Xavier, zero class token and head."""

    depth: int = 4

    @nn.compact
    def __call__(self, x):
        xavier = nn.initializers.xavier_uniform()
        tiny = nn.initializers.normal(1e-6)
        x = nn.Conv(64, (8, 8), strides=8, padding="VALID")(x)
        x = x.reshape(x.shape[0], -1, 64)
        token = self.param("cls", ZEROS, (1, 1, 64))
        x = jnp.concatenate([jnp.tile(token, (x.shape[0], 1, 1)), x], 1)
        x = x + self.param("pos", nn.initializers.normal(0.02), (1, x.shape[1], 64))
        for _ in range(self.depth):
            y = nn.LayerNorm()(x)
            x = x + nn.MultiHeadDotProductAttention(4, kernel_init=xavier)(y, y)
            y = nn.Dense(256, kernel_init=xavier, bias_init=tiny)(nn.LayerNorm()(x))
            x = x + nn.Dense(64, kernel_init=xavier, bias_init=tiny)(nn.gelu(y))
        return nn.Dense(10, kernel_init=ZEROS)(nn.LayerNorm()(x)[:, 0])


@published("ViT", "vision transformer")
def vit() -> Model:
    return linen(ViT(), IMAGES)


class Mixer(nn.Module):
    """Tolstikhin 2021: mixing of tokens and of channels, Flax's defaults, zero head."""

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(64, (8, 8), strides=8)(x).reshape(x.shape[0], 16, 64)
        for _ in range(4):
            y = nn.LayerNorm()(x).swapaxes(1, 2)
            x = x + nn.Dense(16)(nn.gelu(nn.Dense(32)(y))).swapaxes(1, 2)
            y = nn.LayerNorm()(x)
            x = x + nn.Dense(64)(nn.gelu(nn.Dense(256)(y)))
        return nn.Dense(10, kernel_init=ZEROS)(nn.LayerNorm()(x).mean(1))


@published("MLP-Mixer", "vision transformer")
def mixer() -> Model:
    return linen(Mixer(), IMAGES)


class DiT(nn.Module):
    """Peebles 2022: adaptive norms that start at zero."""

    @nn.compact
    def __call__(self, x, time):
        xavier = nn.initializers.xavier_uniform()
        small = nn.initializers.normal(0.02)
        angles = time[:, None] * 10_000 ** (-jnp.arange(32) / 32)
        c = jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], -1)
        c = nn.Dense(64, kernel_init=small)(nn.silu(nn.Dense(64, kernel_init=small)(c)))
        x = nn.Conv(64, (4, 4), strides=4, kernel_init=xavier)(x).reshape(x.shape[0], -1, 64)
        x = x + jnp.asarray(_sines(x.shape[1], 64))
        bare = functools.partial(nn.LayerNorm, use_bias=False, use_scale=False)
        for _ in range(3):
            parts = jnp.split(nn.Dense(384, kernel_init=ZEROS)(nn.silu(c))[:, None], 6, -1)
            y = bare()(x) * (1 + parts[1]) + parts[0]
            y = nn.MultiHeadDotProductAttention(4, kernel_init=xavier)(y, y)
            x = x + parts[2] * y
            y = bare()(x) * (1 + parts[4]) + parts[3]
            y = nn.Dense(64, kernel_init=xavier)(nn.gelu(nn.Dense(256, kernel_init=xavier)(y)))
            x = x + parts[5] * y
        shift, scale = jnp.split(nn.Dense(128, kernel_init=ZEROS)(nn.silu(c))[:, None], 2, -1)
        return nn.Dense(48, kernel_init=ZEROS)(bare()(x) * (1 + scale) + shift)


def _sines(length: int, width: int) -> np.ndarray:
    angles = np.arange(length)[:, None] * 10_000.0 ** (-np.arange(width // 2) / (width // 2))
    return np.concatenate([np.sin(angles), np.cos(angles)], -1).astype("float32")


@published("DiT", "vision transformer")
def dit() -> Model:
    def data(key):
        a, b = jax.random.split(key)
        return jax.random.normal(a, (8, 32, 32, 3)), jax.random.uniform(b, (8,), maxval=1000.0)

    return linen(DiT(), data)


class DETR(nn.Module):
    """Carion 2020: learned queries that attend among themselves and to an image."""

    @nn.compact
    def __call__(self, x):
        xavier = nn.initializers.xavier_uniform()

        def attend(q, k, v):
            return nn.MultiHeadDotProductAttention(4, kernel_init=xavier)(q, k, v)

        def feed(x):
            y = nn.Dense(64, kernel_init=xavier)(nn.relu(nn.Dense(128, kernel_init=xavier)(x)))
            return nn.LayerNorm()(x + y)

        for width in (32, 64):
            x = nn.Conv(width, (3, 3), strides=2, use_bias=False)(x)
            x = nn.relu(nn.BatchNorm(use_running_average=False)(x))
        x = nn.Conv(64, (1, 1))(x).reshape(x.shape[0], -1, 64)
        place = jnp.asarray(_sines(x.shape[1], 64))
        for _ in range(2):
            x = feed(nn.LayerNorm()(x + attend(x + place, x + place, x)))
        queries = self.param("queries", nn.initializers.normal(1.0), (10, 64))
        d = jnp.zeros((x.shape[0], 10, 64))
        for _ in range(2):
            d = nn.LayerNorm()(d + attend(d + queries, d + queries, d))
            d = feed(nn.LayerNorm()(d + attend(d + queries, x + place, x)))
        box = nn.relu(nn.Dense(64)(nn.relu(nn.Dense(64)(d))))
        return nn.Dense(12)(d), nn.sigmoid(nn.Dense(4)(box))


@published("DETR", "detection")
def detr() -> Model:
    return linen(DETR(), IMAGES, mutable=True)


class Detector(nn.Module):
    """RetinaNet: a pyramid, heads of normal(.01), and a prior probability in the last bias."""

    @nn.compact
    def __call__(self, x):
        levels = []
        for width in (32, 64, 64):
            x = nn.Conv(width, (3, 3), strides=2, use_bias=False)(x)
            x = nn.relu(nn.GroupNorm(8)(x))
            levels.append(nn.Conv(64, (1, 1))(x))
        small = nn.initializers.normal(0.01)
        for n in (1, 0):
            up = jax.image.resize(levels[n + 1], levels[n].shape, "nearest")
            levels[n] = levels[n] + up
        tower = [nn.Conv(64, (3, 3), kernel_init=small) for _ in range(2)]
        prior = nn.initializers.constant(-math.log(99.0))
        last = nn.Conv(10, (3, 3), kernel_init=small, bias_init=prior)
        found = []
        for level in levels:
            for conv in tower:
                level = nn.relu(conv(level))
            found.append(last(level))
        return found


@published("RetinaNet", "detection")
def retinanet() -> Model:
    return linen(Detector(), IMAGES)


@published("ResNet of Haiku", "residual", "haiku")
def haiku_resnet() -> Model:
    def net(x):
        def norm(x):
            return hk.LayerNorm(-1, True, True)(x)

        x = jax.nn.relu(norm(hk.Conv2D(32, 3, with_bias=False)(x)))
        for _ in range(3):
            y = jax.nn.relu(norm(hk.Conv2D(32, 3, with_bias=False)(x)))
            y = hk.LayerNorm(-1, create_scale=True, create_offset=True, scale_init=jnp.zeros)(
                hk.Conv2D(32, 3, with_bias=False)(y)
            )
            x = jax.nn.relu(x + y)
        return hk.Linear(10, w_init=jnp.zeros)(x.mean((1, 2)))

    return in_haiku(net, IMAGES)
