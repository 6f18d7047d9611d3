"""Whatever a person calls "my model", under one face: a module, a class, or a function.

`as_model` takes a Linen module, an NNX model, a class of either, or a function that makes one, and
returns something that tells its shapes, its own initializers and its own draw. Nothing is allocated
until it is asked to draw.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Collection, Mapping
from typing import Any, TypeAlias

import flax.linen as nn
import jax
from flax import nnx

from jaxinit.flax._drawn import Known, without_key
from jaxinit.flax._layers import is_numeric, name_of
from jaxinit.flax._nnx import constructed, nnx_tree
from jaxinit.flax._own import filled, linen_tree, own_initializers
from jaxinit.initializers import Initializer
from jaxinit.planning import ParamSpec, flatten


class NoModelError(TypeError):
    """What was given is no model, and makes none."""


@dataclasses.dataclass(frozen=True)
class LinenModel:
    """A Linen module and what it is called with.

    Attributes:
        module: the module, not bound.
        inputs: positional arguments; of arrays only shape and dtype count.
        kwargs: keyword arguments.
    """

    module: nn.Module
    inputs: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    kind = "Linen"

    @property
    def name(self) -> str:
        """Name of the class of the model."""
        return type(self.module).__name__

    def shapes(self) -> dict[str, ParamSpec]:
        """Shape of every variable, by canonical path."""
        return _by_path(linen_tree(self.module, *self.inputs, **self.kwargs))

    def own_initializers(self) -> dict[str, Initializer | None]:
        """What the module itself would draw each leaf with; None where unknown."""
        return own_initializers(self.module, *self.inputs, **self.kwargs)

    def is_parameter(self, path: str) -> bool:
        """Whether the leaf is a parameter, and not for example a running mean."""
        return path.startswith("params/")

    def draw(self, key: jax.Array, paths: Collection[str] | None = None) -> dict[str, jax.Array]:
        """The model's own initialization, jitted; only some of the leaves where paths are given."""
        return jax.jit(lambda key: _only(paths, self._init(key)))(key)

    def without_key(self) -> tuple[str, ...]:
        """Leaves that the model makes of other numbers than one, the same for every key."""
        return without_key(lambda key: {p: x for p, x in self._init(key).items() if is_numeric(x)})

    def _init(self, key: jax.Array) -> dict[str, jax.Array]:
        inputs, kwargs = jax.tree.map(filled, (self.inputs, dict(self.kwargs)))
        return _by_path(self.module.init(key, *inputs, **kwargs))


@dataclasses.dataclass(frozen=True)
class NnxModel:
    """An NNX model, or a function that makes one from a key.

    Attributes:
        name: name of the class of the model.
        make: from a key to the model.
        made: whether it exists already, and ignores the key.
    """

    name: str
    make: Callable[[jax.Array], nnx.Module]
    made: bool = False

    kind = "NNX"

    def shapes(self) -> dict[str, ParamSpec]:
        """Shape of every parameter, by canonical path."""
        key = jax.random.key(0)
        return _by_path(nnx_tree(self.make(key) if self.made else lambda: self.make(key)))

    @functools.cached_property
    def _drawn(self) -> dict[str, Known]:
        return {} if self.made else constructed(self.make)

    def own_initializers(self) -> dict[str, Initializer | None]:
        """What the constructor draws each leaf with; None where unknown, or made already."""
        known, shapes = self._drawn, self.shapes()
        return {p: known[p].initializer(spec) if known else None for p, spec in shapes.items()}

    def is_parameter(self, path: str) -> bool:
        """Whether the leaf is a parameter: every leaf is, since `shapes` has no others."""
        return True

    def draw(self, key: jax.Array, paths: Collection[str] | None = None) -> dict[str, jax.Array]:
        """The model's own initialization, jitted: its parameters, or the leaves at these paths."""

        def init(key: jax.Array) -> dict[str, jax.Array]:
            if paths is None:
                return self._init(key)
            return _only(paths, _by_path(nnx.state(self.make(key))))

        return init(key) if self.made else jax.jit(init)(key)

    def without_key(self) -> tuple[str, ...]:
        """Leaves that the model makes of other numbers than one, the same for every key."""
        return () if self.made else without_key(self._init)

    def _init(self, key: jax.Array) -> dict[str, jax.Array]:
        return _by_path(nnx.state(self.make(key), nnx.Param))


Model: TypeAlias = LinenModel | NnxModel


def as_model(value: Any) -> Model:
    """Brings a module, a model, a class or a function under one face.

    A class or function is called without arguments, or with ``rngs=nnx.Rngs(key)`` when it has a
    parameter of that name. A function is run abstractly first, so that an NNX model is not
    allocated.

    Args:
        value: what the user named.

    Returns:
        The model; a Linen module has no inputs yet.

    Raises:
        NoModelError: when the value is none of these, or needs other arguments.
        Exception: whatever the class or function raises.

    Example:
        >>> as_model(lambda: nn.Dense(4)).name
        'Dense'
    """
    if isinstance(value, nn.Module):
        return LinenModel(value)
    if isinstance(value, nnx.Module):
        return NnxModel(type(value).__name__, lambda key: value, made=True)
    if not callable(value):
        raise NoModelError(
            f"needs to be a Flax module (Linen or NNX), its class, or a function that returns one, "
            f"and is of type {type(value).__name__}."
        )
    return _from_factory(value)


def _from_factory(factory: Callable[..., Any]) -> Model:
    asks_rngs = _asks_rngs(factory)

    def make(key: jax.Array) -> Any:
        return factory(rngs=nnx.Rngs(key)) if asks_rngs else factory()

    made = []

    def probe() -> None:
        made.append(make(jax.random.key(0)))

    nnx.eval_shape(probe)
    if isinstance(made[0], nnx.Module):
        return NnxModel(type(made[0]).__name__, make)
    if isinstance(made[0], nn.Module):
        # Made again outside of the trace, because it may hold an array.
        return LinenModel(make(jax.random.key(0)))
    raise NoModelError(
        f"needs to return a Flax module (Linen or NNX), and returns {type(made[0]).__name__}."
    )


def _asks_rngs(function: Any) -> bool:
    """Whether a class or function takes ``rngs``; everything else must have a default."""
    is_class = isinstance(function, type)
    try:
        # The metaclass of NNX hides the signature of the constructor.
        signature = inspect.signature(function.__init__ if is_class else function)
    except (TypeError, ValueError):
        return False
    parameters = list(signature.parameters.values())[1 if is_class else 0 :]
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    missing = [
        parameter.name
        for parameter in parameters
        if parameter.default is inspect.Parameter.empty
        and parameter.kind not in variadic
        and parameter.name != "rngs"
    ]
    if missing:
        name = name_of(function) or type(function).__name__
        raise NoModelError(
            f"needs arguments ({', '.join(missing)}), and is called without any. "
            f"Name a function that makes the model, such as def model(): return {name}(...)."
        )
    return any(parameter.name == "rngs" for parameter in parameters)


def _by_path(tree: Any) -> dict[str, Any]:
    return dict(flatten("jaxinit.flax", tree).items())


def _only(paths: Collection[str] | None, leaves: dict[str, Any]) -> dict[str, Any]:
    return leaves if paths is None else {path: leaves[path] for path in paths}
