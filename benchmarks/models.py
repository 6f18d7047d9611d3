"""The models that the benchmarks initialize, in Linen, NNX, Equinox and Haiku.

Each function builds one `Model`, at its full size or small enough for a test. A model carries the
rules that give a plan the same laws, and the ways its own library offers to initialize it.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import torch_models
from flax import nnx

import jaxinit
import jaxinit.flax
from jaxinit import initializers as init
from jaxinit.report import gpt2 as specimen

Rules = list[tuple[str, Any]]
DENSE: Rules = [("**/kernel", init.lecun_normal()), ("**/bias", init.zeros)]


@dataclasses.dataclass(frozen=True)
class Model:
    """What is initialized.

    Attributes:
        init: from a key and inputs to a tree of arrays.
        rules: of a plan with the laws that `init` draws.
        inputs: what `init` takes beside the key.
        out_shardings: where the arrays go; None leaves them on one device.
        rivals: other ways of making the model, by name; each takes a key.
    """

    init: Callable[..., Any]
    rules: Rules
    inputs: tuple[Any, ...] = ()
    out_shardings: Any = None
    rivals: dict[str, Callable[[Any], Any]] = dataclasses.field(default_factory=dict)


def linen(module: nn.Module, rules: Rules, x: Any, **rivals: Callable[[Any], Any]) -> Model:
    shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
    return Model(
        module.init,
        rules,
        (x,),
        rivals={"lazy_init": lambda key: module.lazy_init(key, shape), **rivals},
    )


def gpt2(config: specimen.GPT2Config) -> Model:
    return linen(
        specimen.gpt2(config),
        specimen.gpt2_rules(config),
        jnp.zeros((1, min(16, config.positions)), jnp.int32),
        **{
            "torch": lambda key: torch_models.gpt2(config),
            "torch, meta": lambda key: torch_models.gpt2(config, on_meta=True),
        },
    )


TINY = specimen.GPT2Config(layers=1, width=32, heads=2, vocabulary=128, positions=32)
XL = specimen.GPT2Config(layers=48, width=1600, heads=25)


def gpt2_124m(small: bool) -> Model:
    return gpt2(TINY if small else specimen.GPT2Config())


def gpt2_xl(small: bool) -> Model:
    return gpt2(TINY if small else XL)


def gpt2_sharded(small: bool) -> Model:
    """Every array that can be is cut along its last axis, one piece for each device."""
    model = gpt2_124m(small)
    mesh = jax.make_mesh((len(jax.devices()),), ("x",))

    def place(leaf: Any) -> jax.sharding.Sharding:
        axes = [None] * leaf.ndim
        if leaf.shape and leaf.shape[-1] % mesh.size == 0:
            axes[-1] = "x"
        return jax.NamedSharding(mesh, jax.P(*axes))

    shapes = jax.eval_shape(model.init, jax.random.key(0), *model.inputs)
    return dataclasses.replace(model, out_shardings=jax.tree.map(place, shapes), rivals={})


class LinenMLP(nn.Module):
    """Square dense layers with ReLU."""

    layers: int

    @nn.compact
    def __call__(self, x):
        for _ in range(self.layers):
            x = nn.relu(nn.Dense(x.shape[-1])(x))
        return x


def linen_mlp(small: bool) -> Model:
    layers, width = (4, 8) if small else (400, 64)
    rivals = {
        "torch": lambda key: torch_models.mlp(layers, width),
        "torch, meta": lambda key: torch_models.mlp(layers, width, on_meta=True),
    }
    return linen(LinenMLP(layers), DENSE, jnp.zeros((1, width)), **rivals)


class NnxMLP(nnx.Module):
    """Square linear layers; only ever made, never called."""

    def __init__(self, layers: int, width: int, rngs: nnx.Rngs):
        self.layers = nnx.List([nnx.Linear(width, width, rngs=rngs) for _ in range(layers)])


def nnx_mlp(small: bool) -> Model:
    sizes = (4, 8) if small else (100, 64)

    def make(key):
        return NnxMLP(*sizes, nnx.Rngs(key))

    return Model(
        lambda key: nnx.split(make(key)),
        DENSE,
        rivals={
            "nnx_init": lambda key: nnx.state(jaxinit.flax.nnx_init(make)(key)),
            "nnx.jit": lambda key: nnx.state(nnx.jit(make)(key)),
        },
    )


def equinox_mlp(small: bool) -> Model:
    layers, width = (4, 8) if small else (100, 64)

    def make(key):
        return eqx.filter(eqx.nn.MLP(width, width, width, layers - 1, key=key), eqx.is_array)

    # Equinox draws uniform between -1/sqrt(fan_in) and 1/sqrt(fan_in), kernels stored as (out, in).
    law = init.variance_scaling(1 / 3, "fan_in", "uniform", in_axis=-1, out_axis=-2)
    return Model(
        make,
        [("**/weight", law), ("**/bias", jaxinit.like_kernel(law))],
        rivals={"eqx.filter_jit": lambda key: eqx.filter_jit(make)(key)},
    )


def haiku_mlp(small: bool) -> Model:
    layers, width = (4, 8) if small else (100, 64)
    transformed = hk.transform(lambda x: hk.nets.MLP([width] * layers)(x))
    # Haiku does not correct the deviation for the truncation.
    stddev = init.truncated_normal(width**-0.5)
    return Model(
        transformed.init, [("**/w", stddev), ("**/b", init.zeros)], (jnp.zeros((1, width)),)
    )


class Expert(nn.Module):
    """Two kernels, the unit of a mixture."""

    width: int

    @nn.compact
    def __call__(self, x):
        hidden = nn.relu(nn.Dense(2 * self.width, use_bias=False)(x))
        return nn.Dense(self.width, use_bias=False)(hidden)


class Mixture(nn.Module):
    """Gates and experts, each expert a module of its own."""

    layers: int
    experts: int
    width: int

    @nn.compact
    def __call__(self, x):
        for layer in range(self.layers):
            weights = nn.softmax(nn.Dense(self.experts, use_bias=False, name=f"gate_{layer}")(x))
            for expert in range(self.experts):
                out = Expert(self.width, name=f"layer_{layer}_expert_{expert}")(x)
                x = x + weights[..., expert, None] * out
        return x


def mixture(small: bool) -> Model:
    """10 layers of 500 experts: 10,010 kernels."""
    sizes = (2, 4, 8) if small else (10, 500, 16)
    return linen(Mixture(*sizes), DENSE[:1], jnp.zeros((1, sizes[-1])))


class Bottleneck(nn.Module):
    """Three convolutions around which the input is added."""

    features: int
    strides: int

    @nn.compact
    def __call__(self, x):
        conv = functools.partial(nn.Conv, use_bias=False)
        norm = functools.partial(nn.BatchNorm, use_running_average=True)
        out = nn.relu(norm()(conv(self.features, (1, 1))(x)))
        out = nn.relu(norm()(conv(self.features, (3, 3), strides=self.strides)(out)))
        out = norm()(conv(4 * self.features, (1, 1))(out))
        if x.shape != out.shape:
            x = norm()(conv(4 * self.features, (1, 1), strides=self.strides)(x))
        return nn.relu(x + out)


class ResNet(nn.Module):
    """He et al., *Deep Residual Learning*, 2015, table 1."""

    stages: tuple[int, ...]
    width: int = 64
    classes: int = 1000

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(self.width, (7, 7), strides=2, use_bias=False)(x)
        x = nn.relu(nn.BatchNorm(use_running_average=True)(x))
        x = nn.max_pool(x, (3, 3), strides=(2, 2), padding="SAME")
        for stage, blocks in enumerate(self.stages):
            for block in range(blocks):
                strides = 2 if stage and not block else 1
                x = Bottleneck(self.width * 2**stage, strides)(x)
        return nn.Dense(self.classes)(x.mean((1, 2)))


def resnet_50(small: bool) -> Model:
    module = ResNet((1,), 8, 10) if small else ResNet((3, 4, 6, 3))
    rules = [*DENSE, ("**/scale", init.ones), ("**/mean", init.zeros), ("**/var", init.ones)]
    return linen(module, rules, jnp.zeros((1, 32, 32, 3) if small else (1, 224, 224, 3)))


MODELS: dict[str, Callable[[bool], Model]] = {
    "GPT-2 124M": gpt2_124m,
    "GPT-2 XL": gpt2_xl,
    "Linen MLP, 400 layers": linen_mlp,
    "NNX MLP, 100 layers": nnx_mlp,
    "Equinox MLP, 100 layers": equinox_mlp,
    "Haiku MLP, 100 layers": haiku_mlp,
    "mixture, 10,010 leaves": mixture,
    "ResNet-50": resnet_50,
    "GPT-2 124M on 8 devices": gpt2_sharded,
}
