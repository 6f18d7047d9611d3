"""Models of images, written in Flax Linen at toy sizes: MLP-Mixer, U-Net, ViT, ResNet."""

from __future__ import annotations

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from zoo.expect import (
    BIAS,
    LAST_SCALE,
    POSITION,
    SCALE,
    STATE,
    Case,
    Joint,
    Leaf,
    array,
    head,
    kernel,
    linen,
)


class MLP(nn.Module):
    hidden: int
    out: int

    @nn.compact
    def __call__(self, x):
        x = nn.gelu(nn.Dense(self.hidden, name="up")(x))
        return nn.Dense(self.out, name="down")(x)


class Mixer(nn.Module):
    blocks: int = 2

    @nn.compact
    def __call__(self, image):
        x = nn.Conv(7, (4, 4), strides=(4, 4), name="stem")(image)
        x = x.reshape(x.shape[0], -1, x.shape[-1])
        for number in range(self.blocks):
            y = nn.LayerNorm(name=f"ln_tokens_{number}")(x).swapaxes(1, 2)
            y = MLP(5, x.shape[1], name=f"tokens_{number}")(y)
            x = x + y.swapaxes(1, 2)
            y = nn.LayerNorm(name=f"ln_channels_{number}")(x)
            x = x + MLP(9, x.shape[-1], name=f"channels_{number}")(y)
        x = nn.LayerNorm(name="ln_last")(x).mean(axis=1)
        return nn.Dense(3, name="head")(x)


def mixer() -> Case:
    # 8 x 12 pixels of 3 colours in patches of 4 x 4: 6 tokens of 7 channels.
    return linen(
        Mixer(),
        array(2, 8, 12, 3),
        table={
            "**/stem/kernel": kernel(48, 112, axes=((2,), (3,), ()), last=False),
            "**/tokens_?/up/kernel": kernel(6, 5, activation="gelu", last=False),
            "**/tokens_?/down/kernel": kernel(5, 6, last=True),
            "**/channels_?/up/kernel": kernel(7, 9, activation="gelu", last=False),
            "**/channels_?/down/kernel": kernel(9, 7, last=True),
            "**/head/kernel": head(7, 3, activation="none", last=False),
            "**/ln_*/scale": SCALE,
            "**/bias": BIAS,
        },
    )


class UNet(nn.Module):
    @nn.compact
    def __call__(self, x):
        high = nn.relu(nn.Conv(5, (3, 3), name="down_0")(x))
        x = nn.max_pool(high, (2, 2), strides=(2, 2))
        low = nn.relu(nn.Conv(7, (3, 3), name="down_1")(x))
        x = nn.avg_pool(low, (2, 2), strides=(2, 2))
        x = nn.relu(nn.Conv(11, (3, 3), name="bottom")(x))
        x = nn.ConvTranspose(6, (2, 2), strides=(2, 2), name="up_1")(x)
        x = nn.silu(nn.Conv(8, (3, 3), name="join_1")(jnp.concatenate([x, low], axis=-1)))
        x = jax.image.resize(x, (*high.shape[:-1], x.shape[-1]), "nearest")
        x = nn.silu(nn.Conv(4, (3, 3), name="join_0")(jnp.concatenate([x, high], axis=-1)))
        return nn.Conv(2, (1, 1), name="last")(x)


def u_net() -> Case:
    return linen(
        UNet(),
        array(2, 8, 12, 3),
        table={
            "**/down_0/kernel": kernel(27, 45, activation="relu"),
            "**/down_1/kernel": kernel(45, 63, activation="relu"),
            "**/bottom/kernel": kernel(63, 99, activation="relu"),
            # Each pixel sees one of the four taps: 4 * 11 / 4 inputs.
            "**/up_1/kernel": kernel(11, 24, strides=(2, 2)),
            # 6 from below and 7 from the side; 8 from below and 5 from the side.
            "**/join_1/kernel": kernel(9 * 13, 9 * 8, activation="silu"),
            "**/join_0/kernel": kernel(9 * 13, 9 * 4, activation="silu"),
            "**/last/kernel": head(4, 2),
            "**/bias": BIAS,
        },
    )


class ViT(nn.Module):
    blocks: int = 2

    @nn.compact
    def __call__(self, image):
        x = nn.Conv(6, (4, 4), strides=(4, 4), padding="VALID", name="patches")(image)
        x = x.reshape(x.shape[0], -1, x.shape[-1])
        token = self.param("cls", nn.initializers.zeros, (1, 1, x.shape[-1]))
        x = jnp.concatenate([jnp.tile(token, (x.shape[0], 1, 1)), x], axis=1)
        shape = (1, *x.shape[1:])
        x = x + self.param("positions", nn.initializers.normal(0.02), shape)
        for number in range(self.blocks):
            y = nn.LayerNorm(name=f"ln_attention_{number}")(x)
            y = nn.MultiHeadDotProductAttention(
                2, qkv_features=8, dropout_rate=0.1, deterministic=True, name=f"attention_{number}"
            )(y)
            x = x + nn.Dropout(0.1, deterministic=True)(y)
            y = nn.LayerNorm(name=f"ln_mlp_{number}")(x)
            x = x + MLP(13, x.shape[-1], name=f"mlp_{number}")(y)
        x = nn.LayerNorm(name="ln_last")(x)
        return nn.Dense(3, name="head")(x[:, 0])


def vit() -> Case:
    return linen(
        ViT(),
        array(2, 8, 12, 3),
        table={
            "**/patches/kernel": kernel(48, 96),
            # A learned token: it enters the stream as an embedding does, chosen by nothing.
            "**/cls": Leaf("embedding"),
            "**/positions": POSITION,
            "**/attention_?/{query,key}/kernel": kernel(6, 8, softmax=True, last=False),
            "**/attention_?/value/kernel": kernel(6, 8, softmax=False, last=False),
            "**/attention_?/out/kernel": kernel(8, 6, last=True),
            "**/mlp_?/up/kernel": kernel(6, 13, activation="gelu", last=False),
            "**/mlp_?/down/kernel": kernel(13, 6, last=True),
            "**/head/kernel": head(6, 3),
            "**/ln_*/scale": SCALE,
            "**/bias": BIAS,
        },
    )


class Bottleneck(nn.Module):
    features: int
    strides: int

    @nn.compact
    def __call__(self, x):
        conv = functools.partial(nn.Conv, use_bias=False)
        norm = functools.partial(nn.BatchNorm, use_running_average=False)
        y = nn.relu(norm(name="bn_1")(conv(self.features, (1, 1), name="conv_1")(x)))
        y = conv(self.features, (3, 3), (self.strides, self.strides), name="conv_2")(y)
        y = nn.relu(norm(name="bn_2")(y))
        y = norm(name="bn_3")(conv(4 * self.features, (1, 1), name="conv_3")(y))
        if x.shape != y.shape:
            x = conv(y.shape[-1], (1, 1), (self.strides, self.strides), name="conv_0")(x)
            x = norm(name="bn_0")(x)
        return nn.relu(x + y)


class ResNet(nn.Module):
    stages: tuple[int, ...]
    width: int
    classes: int

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(self.width, (7, 7), (2, 2), use_bias=False, name="stem")(x)
        x = nn.relu(nn.BatchNorm(use_running_average=False, name="bn")(x))
        x = nn.max_pool(x, (3, 3), strides=(2, 2), padding="SAME")
        for stage, blocks in enumerate(self.stages):
            for number in range(blocks):
                strides = 2 if stage and not number else 1
                name = f"block_{stage}_{number}"
                x = Bottleneck(self.width * 2**stage, strides, name=name)(x)
        return nn.Dense(self.classes, name="head")(x.mean(axis=(1, 2)))


def resnet(stages: tuple[int, ...], width: int, classes: int, pixels: int) -> Case:
    """A bottleneck ResNet; each stage is twice as wide inside and half as large."""
    table = {
        "batch_stats/**": STATE,
        "**/stem/kernel": kernel(49 * 3, 49 * width, activation="relu", norm="batch"),
        "**/bn_3/scale": LAST_SCALE,
        "**/bn_1/scale": Leaf("scale", (Joint("scale", last=False),)),
        "**/scale": SCALE,
        "**/bias": BIAS,
    }
    wide = width
    for stage in range(len(stages)):
        inner = width * 2**stage
        first, later = f"**/block_{stage}_0", f"**/block_{stage}_*"
        relu = {"activation": "relu", "norm": "batch", "last": False}
        table |= {
            f"{first}/conv_0/kernel": kernel(wide, 4 * inner, norm="batch"),
            f"{first}/conv_1/kernel": kernel(wide, inner, **relu),
            f"{later}/conv_2/kernel": kernel(9 * inner, 9 * inner, **relu),
            f"{later}/conv_3/kernel": kernel(inner, 4 * inner, norm="batch"),
        }
        wide = 4 * inner
        if stages[stage] > 1:
            table[f"{later}/conv_1/kernel"] = kernel(wide, inner, **relu)
    table["**/head/kernel"] = head(wide, classes)
    return linen(
        ResNet(stages, width, classes),
        array(2, pixels, pixels, 3),
        table=table,
        mutable=["batch_stats"],
    )


def resnet_50() -> Case:
    """At its real size: 25,557,032 parameters, from shapes alone."""
    return resnet((3, 4, 6, 3), 64, 1000, 224)


CASES: dict[str, Callable[[], Case]] = {
    "mixer": mixer,
    "u-net": u_net,
    "vit": vit,
    "resnet": lambda: resnet((2, 1), 5, 3, 32),
    "resnet-50": resnet_50,
}
