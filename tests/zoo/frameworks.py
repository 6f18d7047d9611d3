"""Layers and small models of Equinox and Haiku."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import haiku as hk
import jax
import jax.numpy as jnp

from zoo.expect import (
    BIAS,
    SCALE,
    Case,
    Leaf,
    array,
    embedding,
    head,
    ids,
    kernel,
    packed,
)


def in_equinox(make: Callable[[Any], Any], *inputs: Any, table: Mapping[str, Leaf]) -> Case:
    """An Equinox module without its functions, applied to every row of a batch."""
    module = eqx.filter_eval_shape(make, jax.random.key(0))
    is_shape = [isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(module)]
    spec = jax.tree.unflatten(jax.tree.structure(module), is_shape)
    parameters, static = eqx.partition(module, spec)

    def apply(parameters, *args):
        return jax.vmap(eqx.combine(parameters, static))(*args)

    return Case(apply, parameters, inputs, table)


def eqx_mlp() -> Case:
    # Weights are laid out outputs, inputs.
    return in_equinox(
        lambda key: eqx.nn.MLP(4, 3, 7, depth=2, activation=jax.nn.silu, key=key),
        array(2, 4),
        table={
            "layers/0/weight": kernel(4, 7, axes=((1,), (0,), ()), activation="silu", depth=1),
            "layers/1/weight": kernel(7, 7, axes=((1,), (0,), ()), activation="silu", depth=2),
            "layers/2/weight": head(7, 3, axes=((1,), (0,), ()), activation="none", depth=3),
            "**/bias": BIAS,
        },
    )


def eqx_convolutions() -> Case:
    def make(key):
        # Kernels are laid out outputs, inputs of a group, window.
        layers = [
            eqx.nn.Conv2d(4, 6, (3, 2), groups=2, key=key),
            eqx.nn.Lambda(jax.nn.relu),
            eqx.nn.GroupNorm(2, 6),
            eqx.nn.MaxPool2d(2),
            eqx.nn.ConvTranspose2d(6, 5, (4, 3), (2, 3), key=key),
            eqx.nn.Lambda(jnp.tanh),
            eqx.nn.Conv2d(5, 7, (1, 1), key=key),
        ]
        return eqx.nn.Sequential(layers)

    return in_equinox(
        make,
        array(2, 4, 9, 10),
        table={
            "layers/0/weight": kernel(12, 18, axes=((1,), (0,), ()), groups=2, activation="relu"),
            "layers/2/weight": SCALE,
            "layers/4/weight": kernel(
                12, 60, axes=((1,), (0,), ()), strides=(2, 3), activation="tanh"
            ),
            "layers/6/weight": head(5, 7, axes=((1,), (0,), ())),
            "**/bias": BIAS,
        },
    )


def eqx_recurrence() -> Case:
    """A GRU: three gates packed into each of its two kernels."""

    class Net(eqx.Module):
        cell: eqx.nn.GRUCell
        last: eqx.nn.Linear

        def __call__(self, xs):
            start = jnp.zeros(5)
            state, _ = jax.lax.scan(lambda h, x: (self.cell(x, h), None), start, xs)
            return self.last(state)

    def three(fan_in: int) -> Leaf:
        each = {"axes": ((1,), (0,), ()), "times": 7}
        gate = kernel(fan_in, 5, activation="sigmoid", gates=True, **each)
        new = kernel(fan_in, 5, **each)
        return packed(gate, gate, new)

    return in_equinox(
        lambda key: Net(eqx.nn.GRUCell(4, 5, key=key), eqx.nn.Linear(5, 3, key=key)),
        array(2, 7, 4),
        table={
            "cell/weight_ih": three(4),
            "cell/weight_hh": three(5),
            "last/weight": head(5, 3),
            "**/{bias,bias_n}": BIAS,
        },
    )


def eqx_attention() -> Case:
    class Net(eqx.Module):
        embed: eqx.nn.Embedding
        norm: eqx.nn.LayerNorm
        attention: eqx.nn.MultiheadAttention

        def __call__(self, tokens):
            x = jax.vmap(self.embed)(tokens)
            y = jax.vmap(self.norm)(x)
            return x + self.attention(y, y, y)

    return in_equinox(
        lambda key: Net(
            eqx.nn.Embedding(11, 6, key=key),
            eqx.nn.LayerNorm(6),
            eqx.nn.MultiheadAttention(2, 6, qk_size=4, vo_size=5, key=key),
        ),
        ids(2, 7),
        table={
            "embed/weight": embedding(),
            "norm/weight": SCALE,
            "norm/bias": BIAS,
            "attention/{query,key}_proj/weight": kernel(6, 8, softmax=True),
            "attention/value_proj/weight": kernel(6, 10, softmax=False),
            "attention/output_proj/weight": kernel(10, 6, last=True),
        },
    )


def in_haiku(function: Callable[..., Any], *inputs: Any, table: Mapping[str, Leaf]) -> Case:
    net = hk.without_apply_rng(hk.transform(function))
    variables = jax.eval_shape(lambda *args: net.init(jax.random.PRNGKey(0), *args), *inputs)
    return Case(net.apply, variables, inputs, table)


def hk_mlp() -> Case:
    return in_haiku(
        lambda x: hk.nets.MLP([7, 5, 3], activation=jnp.tanh)(x),
        array(2, 4),
        table={
            "**/linear_0/w": kernel(4, 7, activation="tanh"),
            "**/linear_1/w": kernel(7, 5, activation="tanh"),
            "**/linear_2/w": head(5, 3),
            "**/b": BIAS,
        },
    )


def hk_convolutions() -> Case:
    def net(x):
        x = jax.nn.relu(hk.Conv2D(6, (3, 2), feature_group_count=2)(x))
        x = hk.DepthwiseConv2D(2, (3, 3))(x)
        x = hk.LayerNorm(-1, True, True)(x)
        x = jnp.tanh(hk.Conv2DTranspose(5, (4, 3), (2, 3))(x))
        return hk.Linear(3)(x.mean(axis=(1, 2)))

    return in_haiku(
        net,
        array(2, 8, 9, 4),
        table={
            "conv2_d/w": kernel(12, 18, groups=2, activation="relu"),
            "depthwise_conv2_d/w": kernel(9, 18, groups=6),
            "layer_norm/scale": SCALE,
            "layer_norm/offset": BIAS,
            # 12 taps of 12 inputs, of which one in 6 falls on a pixel.
            "conv2_d_transpose/w": kernel(
                24, 60, axes=((3,), (2,), ()), strides=(2, 3), activation="tanh"
            ),
            "linear/w": head(5, 3),
            "**/b": BIAS,
        },
    )


def hk_lstm() -> Case:
    """Four gates packed into one kernel, which takes the input and the state side by side."""

    def net(x):
        core = hk.LSTM(5)
        outputs, _ = hk.dynamic_unroll(core, x, core.initial_state(x.shape[1]))
        return hk.Linear(3)(outputs)

    gate = kernel(9, 5, activation="sigmoid", times=7, gates=True)
    # Haiku adds one to the forget gate before the sigmoid.
    forget = kernel(9, 5, activation="add+logistic", times=7, gates=True)
    new = kernel(9, 5, activation="tanh", times=7, gates=True)
    return in_haiku(
        net,
        array(7, 2, 4),
        table={
            "lstm/linear/w": packed(gate, new, forget, gate),
            "linear/w": head(5, 3),
            "**/b": BIAS,
        },
    )


CASES: dict[str, Callable[[], Case]] = {
    "equinox mlp": eqx_mlp,
    "equinox convolutions": eqx_convolutions,
    "equinox gru": eqx_recurrence,
    "equinox attention": eqx_attention,
    "haiku mlp": hk_mlp,
    "haiku convolutions": hk_convolutions,
    "haiku lstm": hk_lstm,
}
