"""A GPT-2 written in Flax Linen, the model that `jaxinit report` draws when none is named.

The architecture and the initialization are those of the released 124M model: pre-LN blocks, one
packed kernel for queries, keys and values, tanh-approximated GELU, and an output head tied to the
token embedding. Every parameter takes its initializer from `jaxinit.initializers`.
"""

from __future__ import annotations

import dataclasses
import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxinit import initializers as init

EXAMPLE_INPUTS = (jax.ShapeDtypeStruct((1, 16), jnp.int32),)
STDDEV = 0.02
POSITION_STDDEV = 0.01


@dataclasses.dataclass(frozen=True)
class GPT2Config:
    """Sizes of a GPT-2; the defaults are the 124M model.

    Attributes:
        layers: number of blocks.
        width: features of the residual stream.
        heads: attention heads; divides ``width``.
        vocabulary: number of tokens.
        positions: longest sequence.
        epsilon: added to the variance in every LayerNorm.
    """

    layers: int = 12
    width: int = 768
    heads: int = 12
    vocabulary: int = 50257
    positions: int = 1024
    epsilon: float = 1e-5

    def __post_init__(self) -> None:
        for field in ("layers", "width", "heads", "vocabulary", "positions"):
            if getattr(self, field) < 1:
                raise ValueError(f"GPT2Config needs {field} >= 1, got {getattr(self, field)}.")
        if self.width % self.heads:
            raise ValueError(
                f"GPT2Config needs heads that divide width, got width={self.width} and "
                f"heads={self.heads}. Change one of them."
            )

    @property
    def residual_stddev(self) -> float:
        """Standard deviation of the kernels that write into the residual stream.

        The stream sums two such outputs per block. The factor ``1 / sqrt(2 * layers)`` gives the
        sum the variance of one output.
        """
        return STDDEV / math.sqrt(2 * self.layers)


class Attention(nn.Module):
    """Causal self-attention with one kernel for queries, keys and values."""

    config: GPT2Config

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        config = self.config
        packed = _dense(3 * config.width, STDDEV, "c_attn")(x)
        heads = packed.reshape(*x.shape[:-1], 3, config.heads, config.width // config.heads)
        query, key, value = (heads[..., part, :, :] for part in range(3))
        mixed = jax.nn.dot_product_attention(query, key, value, is_causal=True)
        return _dense(config.width, config.residual_stddev, "c_proj")(mixed.reshape(x.shape))


class MLP(nn.Module):
    """Two dense layers with a GELU between, where the signal is four times as wide."""

    config: GPT2Config

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        config = self.config
        hidden = nn.gelu(_dense(4 * config.width, STDDEV, "c_fc")(x), approximate=True)
        return _dense(config.width, config.residual_stddev, "c_proj")(hidden)


class Block(nn.Module):
    """Attention and MLP, each normalized on its way in and added to the residual stream."""

    config: GPT2Config

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        epsilon = self.config.epsilon
        x = x + Attention(self.config, name="attn")(_layer_norm(epsilon, "ln_1")(x))
        return x + MLP(self.config, name="mlp")(_layer_norm(epsilon, "ln_2")(x))


class GPT2(nn.Module):
    """GPT-2 as a language model: token ids in, logits out.

    Example:
        >>> import jax
        >>> from jaxinit.flax import linen_tree
        >>> model = gpt2_124m()
        >>> tree = linen_tree(model, *model.example_inputs())
        >>> sum(leaf.size for leaf in jax.tree.leaves(tree))
        124439808
    """

    config: GPT2Config = GPT2Config()

    @nn.nowrap
    def example_inputs(self) -> tuple[jax.ShapeDtypeStruct, ...]:
        """Shapes of inputs that the model can be traced with."""
        ids = EXAMPLE_INPUTS[0]
        return (jax.ShapeDtypeStruct((1, min(ids.shape[1], self.config.positions)), ids.dtype),)

    @nn.compact
    def __call__(self, ids: jax.Array) -> jax.Array:
        """Logits of the next token.

        Args:
            ids: token ids, batch x sequence, at most ``config.positions`` long.

        Returns:
            Logits, batch x sequence x vocabulary.
        """
        config = self.config
        if ids.ndim != 2 or ids.shape[1] > config.positions:
            raise ValueError(
                f"GPT2 needs ids of shape (batch, sequence) with at most {config.positions} "
                f"positions, got {ids.shape}. Cut the sequence or raise config.positions."
            )
        tokens = _embed(config.vocabulary, config.width, STDDEV, "wte")
        positions = _embed(config.positions, config.width, POSITION_STDDEV, "wpe")
        x = tokens(ids) + positions(jnp.arange(ids.shape[1])[None])
        for layer in range(config.layers):
            x = Block(config, name=f"h_{layer}")(x)
        return tokens.attend(_layer_norm(config.epsilon, "ln_f")(x))


def _dense(features: int, stddev: float, name: str) -> nn.Dense:
    return nn.Dense(features, kernel_init=init.normal(stddev), bias_init=init.zeros, name=name)


def _embed(rows: int, features: int, stddev: float, name: str) -> nn.Embed:
    return nn.Embed(rows, features, embedding_init=init.normal(stddev), name=name)


def _layer_norm(epsilon: float, name: str) -> nn.LayerNorm:
    return nn.LayerNorm(epsilon, scale_init=init.ones, bias_init=init.zeros, name=name)


def gpt2(config: GPT2Config | None = None) -> GPT2:
    """A GPT-2 of any size; without a config, the 124M model."""
    return GPT2(GPT2Config() if config is None else config)


def gpt2_124m() -> GPT2:
    """The smallest released GPT-2: 124,439,808 parameters in 148 arrays."""
    return gpt2()


def gpt2_rules(config: GPT2Config | None = None) -> list[tuple[str, init.Initializer]]:
    """Rules for `jaxinit.plan` that give every parameter the law it has in the model.

    Args:
        config: sizes of the model; residual kernels shrink with its number of layers.

    Returns:
        Pairs of path pattern and initializer; the first match wins.

    References:
        Radford et al., *Language Models are Unsupervised Multitask Learners*, 2019, section 2.3,
        for the residual scale; the standard deviations are those of the code released with it.
    """
    config = GPT2Config() if config is None else config
    return [
        ("**/wte/embedding", init.normal(STDDEV)),
        ("**/wpe/embedding", init.normal(POSITION_STDDEV)),
        ("**/c_proj/kernel", init.normal(config.residual_stddev)),
        ("**/kernel", init.normal(STDDEV)),
        ("**/scale", init.ones),
        ("**/bias", init.zeros),
    ]


RULES = gpt2_rules()
