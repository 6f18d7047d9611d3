"""A published model: its own initialization, its forward pass, and data for both."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
from flax import nnx

import jaxinit.flax

Data = Callable[[jax.Array], tuple[jax.Array, ...]]


@dataclasses.dataclass(frozen=True)
class Model:
    """A model as it is published.

    Attributes:
        init: from a key to its variables, as the authors draw them.
        apply: from variables and inputs to outputs.
        data: from a key to inputs.
    """

    init: Callable[[jax.Array], Any]
    apply: Callable[..., Any]
    data: Data


@dataclasses.dataclass(frozen=True)
class Entry:
    """A line of the zoo.

    Attributes:
        name: what the model is called.
        kind: of architecture.
        library: that it is written in, or drawn from.
        make: builds it; an ImportError says which package is missing.
        goal: what the advice is asked for.
    """

    name: str
    kind: str
    library: str
    make: Callable[[], Model]
    goal: Any = "train"


ZOO: list[Entry] = []


def published(
    name: str, kind: str, library: str = "linen", goal: Any = "train"
) -> Callable[[Callable[[], Model]], Callable[[], Model]]:
    """A decorator that enters a function which builds a model into the zoo."""

    def enter(make: Callable[[], Model]) -> Callable[[], Model]:
        ZOO.append(Entry(name, kind, library, make, goal))
        return make

    return enter


def normal(*shapes: tuple[int, ...]) -> Data:
    """Standard normal inputs."""

    def data(key: jax.Array) -> tuple[jax.Array, ...]:
        keys = jax.random.split(key, len(shapes))
        return tuple(map(jax.random.normal, keys, shapes))

    return data


def uniform(*shapes: tuple[int, ...]) -> Data:
    """Inputs between -1 and 1, such as coordinates."""

    def data(key: jax.Array) -> tuple[jax.Array, ...]:
        keys = jax.random.split(key, len(shapes))
        return tuple(jax.random.uniform(k, s, minval=-1) for k, s in zip(keys, shapes, strict=True))

    return data


def tokens(vocabulary: int, *shapes: tuple[int, ...]) -> Data:
    """Whole numbers below ``vocabulary``."""

    def data(key: jax.Array) -> tuple[jax.Array, ...]:
        keys = jax.random.split(key, len(shapes))
        return tuple(
            jax.random.randint(k, s, 0, vocabulary) for k, s in zip(keys, shapes, strict=True)
        )

    return data


def both(*parts: Data) -> Data:
    """Inputs of several kinds, in order."""

    def data(key: jax.Array) -> tuple[jax.Array, ...]:
        keys = jax.random.split(key, len(parts))
        return tuple(x for part, key in zip(parts, keys, strict=True) for x in part(key))

    return data


def linen(module: nn.Module, data: Data, *, mutable: bool = False, **kwargs: Any) -> Model:
    """A Linen module; with ``mutable`` its batch statistics are written in the pass."""
    shapes = jax.eval_shape(data, jax.random.key(0))

    def init(key: jax.Array) -> Any:
        inputs = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        return module.init(key, *inputs, **kwargs)

    def apply(variables: Any, *inputs: Any) -> Any:
        if mutable:
            return module.apply(variables, *inputs, **kwargs, mutable=["batch_stats"])[0]
        return module.apply(variables, *inputs, **kwargs)

    return Model(init, apply, data)


def in_nnx(make: Callable[[nnx.Rngs], Any], data: Data) -> Model:
    """An NNX module as a function of its state."""
    apply, _ = jaxinit.flax.nnx_apply(lambda: make(nnx.Rngs(0)))
    return Model(lambda key: nnx.state(make(nnx.Rngs(key))), apply, data)


def in_equinox(make: Callable[[jax.Array], Any], data: Data, *, batched: bool = False) -> Model:
    """An Equinox module, applied to each row of a batch, or, where ``batched``, to all."""
    shapes = eqx.filter_eval_shape(make, jax.random.key(0))
    arrays, static = eqx.partition(shapes, lambda leaf: isinstance(leaf, jax.ShapeDtypeStruct))
    tree = jax.tree.structure(arrays)

    def init(key: jax.Array) -> Any:
        # Markers of state are objects that every call makes anew.
        return jax.tree.unflatten(tree, jax.tree.leaves(eqx.filter(make(key), eqx.is_array)))

    def apply(arrays: Any, *inputs: Any) -> Any:
        module = eqx.combine(arrays, static)
        return module(*inputs) if batched else jax.vmap(module)(*inputs)

    return Model(init, apply, data)


def in_haiku(function: Callable[..., Any], data: Data) -> Model:
    """A function with Haiku modules."""
    net = hk.without_apply_rng(hk.transform(function))

    def init(key: jax.Array) -> Any:
        return net.init(jax.random.key_data(key), *data(jax.random.key(0)))

    return Model(init, net.apply, data)
