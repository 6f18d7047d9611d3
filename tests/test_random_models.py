"""Advice on random models agrees with its own prediction, and with a draw.

A model is a few blocks of the kinds that people write: how a kernel meets the data, what is packed
into one array, what bends, whether there is a residual stream and where it is normalised, and on
which side of a sum or a product each operand stands.
"""

from __future__ import annotations

import dataclasses
import math

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import advice_models as models
import jaxinit
from helpers import struct
from jaxinit import initializers as init

pytestmark = pytest.mark.unoptimized

# A model takes half a second to read, to advise and to audit.
SOME = hypothesis.settings(max_examples=max(hypothesis.settings().max_examples // 10, 12))
ACTIVATIONS = {
    "relu": jax.nn.relu,
    "tanh": jnp.tanh,
    "gelu": jax.nn.gelu,
    "silu": jax.nn.silu,
    "elu": jax.nn.elu,
}


@dataclasses.dataclass(frozen=True)
class Block:
    """One block.

    Attributes:
        kernel: how the kernel meets the data: as it is, times a constant ("constant"), times a
            constant mask ("masked"), with a factor behind it ("behind"), or added to another.
        packing: what else lies in the array: nothing, a gate ("gated"), or queries, keys and
            values ("attention").
        is_swapped: whether sums and products have their operands in the other order.
    """

    kernel: str
    packing: str | None
    is_swapped: bool


@dataclasses.dataclass(frozen=True)
class Model:
    """A model of a stem, blocks and a head."""

    width: int
    activation: str
    is_residual: bool
    norm: str | None
    has_bias: bool
    blocks: tuple[Block, ...]


BLOCKS = st.builds(
    Block,
    kernel=st.sampled_from(["plain", "constant", "masked", "behind", "added"]),
    packing=st.sampled_from([None, None, "gated", "attention"]),
    is_swapped=st.booleans(),
)
MODELS = st.builds(
    Model,
    width=st.sampled_from([64, 96, 160]),
    activation=st.sampled_from(sorted(ACTIVATIONS)),
    is_residual=st.booleans(),
    norm=st.sampled_from([None, "before", "behind"]),
    has_bias=st.booleans(),
    blocks=st.lists(BLOCKS, min_size=1, max_size=5).map(tuple),
)


def normalise(x):
    return (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-6)


def plus(one, other, block):
    return other + one if block.is_swapped else one + other


def layer(block, p, x):
    """What a block's kernel makes."""
    if block.kernel == "constant":
        return x @ (p["a"] / 16)
    if block.kernel == "behind":
        return 3.0 * (x @ p["a"]) if block.is_swapped else (x @ p["a"]) * 3.0
    if block.kernel == "masked":
        mask = np.float32(np.arange(len(p["a"]))[:, None] % 4 == 0) * np.ones((1, p["a"].shape[1]))
        return x @ (mask * p["a"] if block.is_swapped else p["a"] * mask)
    return plus(x @ p["a"], x @ p["b"], block) if block.kernel == "added" else x @ p["a"]


def apply_block(block, p, x, activation):
    """What a block makes of its input: of the same width."""
    z = layer(block, p, x)
    z = plus(z, p["bias"], block) if "bias" in p else z
    if block.packing == "gated":
        gate, value = jnp.split(z, 2, -1)
        return value * activation(gate) if block.is_swapped else activation(gate) * value
    if block.packing == "attention":
        q, k, v = jnp.split(z, 3, -1)
        scores = jnp.einsum("qd,kd->qk", q, k) / math.sqrt(q.shape[-1])
        return jax.nn.softmax(scores) @ v
    return activation(z)


def shapes_of(model):
    """Shapes of all parameters."""
    width, blocks = model.width, []
    for block in model.blocks:
        columns = width * {None: 1, "gated": 2, "attention": 3}[block.packing]
        shapes = {name: (width, columns) for name in ("ab" if block.kernel == "added" else "a")}
        shapes |= {"bias": (columns,)} if model.has_bias else {}
        shapes |= {"down": (width, width)} if model.is_residual else {}
        blocks.append(shapes)
    return {"stem": (width, width), "blocks": blocks, "head": (width, 8)}


def read(model):
    """The reading of a model."""

    def fn(p, x):
        x = x @ p["stem"]
        for block, own in zip(model.blocks, p["blocks"], strict=True):
            y = normalise(x) if model.norm == "before" else x
            y = apply_block(block, own, y, ACTIVATIONS[model.activation])
            x = plus(x, y @ own["down"], block) if model.is_residual else y
            x = normalise(x) if model.norm == "behind" else x
        return x @ p["head"]

    return models.read(fn, shapes_of(model), struct(16, model.width))


def swapped(model):
    """The model with all operands in the other order."""
    blocks = [dataclasses.replace(b, is_swapped=not b.is_swapped) for b in model.blocks]
    return dataclasses.replace(model, blocks=tuple(blocks))


def is_unit(record, said, activation):
    """Whether a layer has the size of one that passes a second moment of 1 on, within 2."""
    gain = jaxinit.activations.gain(activation)
    return 1 / 2 <= record.forward[0] and record.forward[1] <= 2 * max(gain**2, 1)


@SOME
@hypothesis.given(MODELS)
def test_every_layer_has_unit_size_or_says_why_not(model):
    advice = jaxinit.advise(read(model))
    for record in advice.predict().layers:
        said = advice[record.path]
        is_zero = said.initializer == init.zeros
        words = ("branch", "bounds", "second moment", "size is not judged", "multiplies")
        says_why = is_zero or any(word in said.reason for word in words)
        assert is_unit(record, said, model.activation) or says_why, (record, said)


@SOME
@hypothesis.given(MODELS)
def test_what_the_advice_draws_has_no_finding(model):
    reading = read(model)
    tree = {p.path: struct(*p.shape) for p in reading}
    params = jaxinit.plan(tree, jaxinit.advise(reading).rules()).init(jax.random.key(1))
    found = jaxinit.audit(reading, params).findings
    assert not [str(finding) for finding in found if finding.is_at_least("warning")]


@SOME
@hypothesis.given(MODELS)
def test_operands_have_no_order(model):
    one, other = (jaxinit.advise(read(each)) for each in (model, swapped(model)))
    assert one.to_dict() == other.to_dict()
