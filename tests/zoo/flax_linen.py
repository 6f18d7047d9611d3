"""The layers of Flax Linen, each alone and between two maps of a model.

Alone, the last map of a layer is the head. Inside, a map and a ReLU come before and a tanh and a
map of three outputs behind, so the same map is a plain kernel that meets a tanh.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

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
    linen,
)


class Between(nn.Module):
    """A layer inside a model."""

    layer: Callable[[], nn.Module]
    features: int
    kwargs: tuple[tuple[str, Any], ...] = ()

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Dense(self.features, name="stem")(x))
        x = self.layer()(x, **dict(self.kwargs))
        return nn.Dense(3, name="last")(jnp.tanh(x))


@dataclasses.dataclass(frozen=True)
class Layer:
    """A layer, the shape that it takes, what it makes of the last axis, and its table.

    ``last`` names the leaf that is the head when the layer stands alone, ``meets`` what the output
    of that leaf is followed by inside.
    """

    make: Callable[[], nn.Module]
    takes: tuple[int, ...]
    gives: int
    table: Mapping[str, Leaf]
    last: str | None = "kernel"
    meets: str | None = "tanh"
    apply: tuple[tuple[str, Any], ...] = ()
    mutable: Any = False

    def alone(self) -> Case:
        table = {f"**/{name}": leaf for name, leaf in self.table.items()}
        if self.last is not None:
            table[f"**/{self.last}"] = _as(self.table[self.last], "head")
        options = {**dict(self.apply), "mutable": self.mutable}
        return linen(self.make(), array(*self.takes), table=table, **options)

    def inside(self) -> Case:
        features = self.takes[-1]
        table = {
            "**/stem/kernel": kernel(11, features),
            "**/last/kernel": kernel(self.gives, 3, role="head", activation="none"),
            "**/{stem,last}/bias": BIAS,
            **{f"**/{name}": leaf for name, leaf in self.table.items()},
        }
        if self.last is not None and self.meets is not None:
            table[f"**/{self.last}"] = _as(self.table[self.last], "kernel", activation=self.meets)
        module = Between(self.make, features, self.apply)
        return linen(module, array(*self.takes[:-1], 11), table=table, mutable=self.mutable)


def _as(leaf: Leaf, role: str, **rest: Any) -> Leaf:
    joints = tuple(dataclasses.replace(joint, role=role, **rest) for joint in leaf.joints)
    return Leaf(role, joints)


def _conv(fan_in: float, fan_out: float, rank: int, **rest: Any) -> dict[str, Leaf]:
    """Kernels are laid out window, inputs, outputs."""
    rest.setdefault("axes", ((rank,), (rank + 1,), ()))
    return {"kernel": kernel(fan_in, fan_out, **rest), "bias": BIAS}


_NORM = {"scale": SCALE, "bias": BIAS}
_F = functools.partial
# An LSTM sums 4 inputs and 5 of its own outputs into each of its gates.
_LSTM = {
    **{f"i{g}/kernel": kernel(4, 5, times=7, activation="sigmoid", gates=True) for g in "ifo"},
    **{f"h{g}/kernel": kernel(5, 5, times=7, activation="sigmoid", gates=True) for g in "ifo"},
    "ig/kernel": kernel(4, 5, times=7, activation="tanh", gates=True),
    "hg/kernel": kernel(5, 5, times=7, activation="tanh", gates=True),
    "h?/bias": BIAS,
}
_ATTENTION = {
    # 5 features to 2 heads of 3.
    "{query,key}/kernel": kernel(5, 6, axes=((0,), (1, 2), ()), softmax=True, last=False),
    "value/kernel": kernel(5, 6, axes=((0,), (1, 2), ()), softmax=False, last=False),
    "out/kernel": kernel(6, 7, axes=((0, 1), (2,), ()), softmax=False),
    "**/bias": BIAS,
}

LAYERS: dict[str, Layer] = {
    "dense": Layer(
        _F(nn.Dense, 5),
        (2, 4),
        5,
        {"kernel": kernel(4, 5, axes=((0,), (1,), ())), "bias": BIAS},
    ),
    "dense, bfloat16": Layer(
        _F(nn.Dense, 5, dtype=jnp.bfloat16),
        (2, 4),
        5,
        {"kernel": kernel(4, 5), "bias": BIAS},
    ),
    "dense general": Layer(
        _F(nn.DenseGeneral, (5, 6), axis=(-2, -1)),
        (2, 3, 4),
        6,
        {"kernel": kernel(12, 30, axes=((0, 1), (2, 3), ())), "bias": BIAS},
    ),
    "dense general with batch dims": Layer(
        _F(nn.DenseGeneral, 5, batch_dims=(0,)),
        (7, 2, 4),
        5,
        {"kernel": kernel(4, 5, axes=((1,), (2,), (0,))), "bias": BIAS},
    ),
    "einsum": Layer(
        _F(nn.Einsum, (7, 4, 5), "bgi,gio->bgo"),
        (2, 7, 4),
        5,
        {"kernel": kernel(4, 5, axes=((1,), (2,), (0,))), "bias": BIAS},
    ),
    "conv 1-D": Layer(_F(nn.Conv, 5, (4,)), (2, 9, 3), 5, _conv(12, 20, 1)),
    "conv 1-D, causal": Layer(
        _F(nn.Conv, 5, (4,), padding="CAUSAL"), (2, 9, 3), 5, _conv(12, 20, 1)
    ),
    "conv 2-D": Layer(_F(nn.Conv, 5, (3, 2)), (2, 9, 8, 4), 5, _conv(24, 30, 2)),
    "conv 2-D, circular": Layer(
        _F(nn.Conv, 5, (3, 2), padding="CIRCULAR"), (2, 9, 8, 4), 5, _conv(24, 30, 2)
    ),
    "conv 3-D": Layer(_F(nn.Conv, 5, (2, 3, 4)), (2, 6, 7, 8, 3), 5, _conv(72, 120, 3)),
    # A stride drops outputs: how many an input feeds is counted as without it, as everywhere.
    "conv, strided": Layer(
        _F(nn.Conv, 5, (3, 2), strides=(2, 3)), (2, 9, 8, 4), 5, _conv(24, 30, 2)
    ),
    "conv, dilated": Layer(
        _F(nn.Conv, 5, (3, 2), kernel_dilation=(2, 3)), (2, 9, 8, 4), 5, _conv(24, 30, 2)
    ),
    # 3 of 6 inputs to each output, and 5 of 10 outputs from each input, by 9 taps.
    "conv, grouped": Layer(
        _F(nn.Conv, 10, (3, 3), feature_group_count=2), (2, 8, 9, 6), 10, _conv(27, 45, 2, groups=2)
    ),
    "conv, depthwise": Layer(
        _F(nn.Conv, 12, (3, 3), feature_group_count=6), (2, 8, 9, 6), 12, _conv(9, 18, 2, groups=6)
    ),
    # 12 taps of 3 inputs, of which one in 6 falls on a pixel.
    "conv, transposed": Layer(
        _F(nn.ConvTranspose, 5, (4, 3), strides=(2, 3)),
        (2, 8, 9, 3),
        5,
        _conv(6, 60, 2, strides=(2, 3)),
    ),
    "conv, transposed, kernel too": Layer(
        _F(nn.ConvTranspose, 5, (4, 3), strides=(2, 3), transpose_kernel=True),
        (2, 8, 9, 3),
        5,
        _conv(6, 60, 2, strides=(2, 3), axes=((3,), (2,), ())),
    ),
    # A kernel of its own at each of 8 places; 3 taps of 4 inputs.
    "conv, local": Layer(
        _F(nn.ConvLocal, 5, (3,)),
        (2, 8, 4),
        5,
        {"kernel": kernel(12, 5, axes=((1,), (2,), (0,))), "bias": BIAS},
    ),
    "attention": Layer(
        _F(nn.MultiHeadDotProductAttention, 2, qkv_features=6, out_features=7),
        (2, 8, 5),
        7,
        _ATTENTION,
        last="out/kernel",
    ),
    "attention, normed": Layer(
        _F(nn.MultiHeadDotProductAttention, 2, qkv_features=6, out_features=7, normalize_qk=True),
        (2, 8, 5),
        7,
        {**_ATTENTION, "{query,key}_ln/scale": SCALE},
        last="out/kernel",
    ),
    "layer norm": Layer(nn.LayerNorm, (2, 4), 4, _NORM, last=None),
    "rms norm": Layer(nn.RMSNorm, (2, 4), 4, {"scale": SCALE}, last=None),
    "group norm": Layer(_F(nn.GroupNorm, 2), (2, 8, 9, 6), 6, _NORM, last=None),
    "instance norm": Layer(nn.InstanceNorm, (2, 8, 9, 6), 6, _NORM, last=None),
    "batch norm": Layer(
        _F(nn.BatchNorm, use_running_average=False),
        (2, 8, 9, 6),
        6,
        {"mean": STATE, "var": STATE, **_NORM},
        last=None,
        mutable=["batch_stats"],
    ),
    "batch norm, evaluating": Layer(
        _F(nn.BatchNorm, use_running_average=True),
        (2, 8, 9, 6),
        6,
        {"mean": STATE, "var": STATE, **_NORM},
        last=None,
    ),
    "prelu": Layer(nn.PReLU, (2, 4), 4, {"negative_slope": SCALE}, last=None),
    "lstm": Layer(lambda: nn.RNN(nn.LSTMCell(5)), (2, 7, 4), 5, _LSTM, last=None),
    "lstm, one kernel": Layer(
        lambda: nn.RNN(nn.OptimizedLSTMCell(5)), (2, 7, 4), 5, _LSTM, last=None
    ),
    "gru": Layer(
        lambda: nn.RNN(nn.GRUCell(5)),
        (2, 7, 4),
        5,
        {
            "i{r,z}/kernel": kernel(4, 5, times=7, activation="sigmoid", gates=True),
            "h{r,z}/kernel": kernel(5, 5, times=7, activation="sigmoid", gates=True),
            "in/kernel": kernel(4, 5, times=7, activation="tanh", gates=True),
            "hn/kernel": kernel(5, 5, times=7, gates=True),
            "*/bias": BIAS,
        },
        last=None,
    ),
    "simple recurrence, backwards": Layer(
        lambda: nn.RNN(nn.SimpleCell(5), reverse=True),
        (2, 7, 4),
        5,
        {
            "i/kernel": kernel(4, 5, times=7, activation="tanh", gates=False),
            "h/kernel": kernel(5, 5, times=7, activation="tanh", gates=False),
            "*/bias": BIAS,
        },
        last=None,
    ),
    "minimal gated unit": Layer(
        lambda: nn.RNN(nn.MGUCell(5)),
        (2, 7, 4),
        5,
        {
            "if/kernel": kernel(4, 5, times=7, activation="sigmoid", gates=True),
            "hf/kernel": kernel(5, 5, times=7, activation="sigmoid", gates=True),
            "in/kernel": kernel(4, 5, times=7, activation="tanh", gates=True),
            "hn/kernel": kernel(5, 5, times=7, gates=True),
            "*/bias": BIAS,
        },
        last=None,
    ),
}


def _embed() -> Case:
    return linen(nn.Embed(11, 4), ids(2, 7), table={"**/embedding": embedding()})


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


class Ones(nn.Module):
    """One head, one group, one channel, one token, one output."""

    @nn.compact
    def __call__(self, x):
        x = nn.DenseGeneral((1, 4), axis=-1, name="split")(x)
        x = nn.DenseGeneral(3, axis=(-2, -1), name="join")(nn.relu(x))
        x = nn.LayerNorm(name="norm")(x)
        x = x + nn.MultiHeadDotProductAttention(1, qkv_features=4, name="attention")(x)
        x = nn.Conv(1, (1,), name="mix")(x)
        x = nn.Dense(1, name="gain")(jnp.tanh(x))
        x = nn.Dense(5, name="widen")(nn.silu(x))
        return nn.Dense(1, name="last")(nn.relu(x))


def ones(batch: int, length: int) -> Case:
    return linen(
        Ones(),
        array(batch, length, 2),
        table={
            "**/split/kernel": kernel(2, 4, activation="relu"),
            "**/join/kernel": kernel(4, 3, norm="layer"),
            "**/attention/{query,key}/kernel": kernel(3, 4, softmax=True),
            "**/attention/value/kernel": kernel(3, 4),
            "**/attention/out/kernel": kernel(4, 3, last=True),
            "**/mix/kernel": kernel(3, 1, activation="tanh"),
            "**/gain/kernel": kernel(1, 1, activation="silu"),
            "**/widen/kernel": kernel(1, 5, activation="relu"),
            "**/last/kernel": head(5, 1),
            "**/norm/scale": SCALE,
            "**/bias": BIAS,
        },
    )


CASES: dict[str, Callable[[], Case]] = {
    **{f"{name}, alone": layer.alone for name, layer in LAYERS.items()},
    **{f"{name}, inside": layer.inside for name, layer in LAYERS.items()},
    "embed, alone": _embed,
    "sharded": sharded,
    "normalised kernels": normalised,
    "sizes of one": lambda: ones(1, 1),
    "sizes of one, long": lambda: ones(1, 6),
    "sizes of one, many": lambda: ones(7, 1),
}
