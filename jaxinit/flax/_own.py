"""Linen modules as trees of shapes, and the initializers that they bring themselves.

Each parameter is made by a function that the module hands to Flax. An initializer of this package,
a closure of `jax.nn.initializers`, either of them inside a partitioning wrapper, and the wrapper
with which DenseGeneral flattens the shape first are translated. A function that returns the same
number everywhere, whatever the key, is a constant. Any other function stays unknown; a plan that
leaves such a parameter to the module runs the module's init and keeps that parameter alone.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxinit._types import PyTree, Shape
from jaxinit.flax._drawn import OneLeaf, as_constant
from jaxinit.flax._layers import dense_general_counts, flat_shape, is_numeric, param_spec
from jaxinit.flax._linen import Later, Made, Source, layer_axes, leaves_of, watch_init
from jaxinit.flax._nnx import nnx_own_initializers
from jaxinit.initializers import (
    Fans,
    FromFunction,
    Initializer,
    Law,
    VarianceScaling,
    from_jax,
    reshaped,
)
from jaxinit.jaxpr import Graph, trace
from jaxinit.planning import OwnLeaf, ParamSpec, canonical_path, over_layers, with_roles

# Above this many entries a function is not called to see whether it is constant.
_MAX_CONSTANT = 2**16

_PARTITIONING = tuple(
    wrap(nn.initializers.zeros, ()).__code__
    for wrap in (nn.with_partitioning, nn.with_logical_partitioning)
)


def linen_tree(module: nn.Module, *inputs: Any, rngs: Any = None, **kwargs: Any) -> PyTree:
    """Shapes of a Linen module's variables, with the axes of every kernel that is known.

    Kernels of Flax's own layers (and of their subclasses) get the axes that the layer contracts,
    the groups and the strides; parameters under `nn.scan` and `nn.vmap` get their stacked axes.

    Args:
        module: the module, not bound.
        *inputs: what the module is called with: arrays or `jax.ShapeDtypeStruct`, of which only
            shape and dtype count. Anything else is passed on as it is.
        rngs: key or mapping from names to keys, as `module.init` takes; rarely needed, since
            only shapes are asked for.
        **kwargs: keyword arguments of the call, or of `module.init` such as `method`.

    Returns:
        The variables as `module.init` would return them, metadata boxes included, with a
        `ParamSpec` in place of every array. Paths start with the collection: `params/...`.

    Raises:
        TypeError: when `module` is no Linen module.
        ValueError: when the module cannot be traced with these inputs.

    Example:
        >>> import flax.linen as nn
        >>> tree = linen_tree(nn.DenseGeneral((2, 4)), jax.ShapeDtypeStruct((1, 8), "float32"))
        >>> tree["params"]["kernel"].shape, tree["params"]["kernel"].axes
        ((8, 2, 4), Axes(in_axis=(-3,), out_axis=(-2, -1), batch_axis=()))
    """
    variables, seen = watch_init("linen_tree", module, inputs, rngs, kwargs)
    names = {path: axis_names for path, _, axis_names in leaves_of(variables)}
    model = _OwnModule(module, inputs, rngs, kwargs, tuple(names))

    def spec(entries: Any, leaf: Any) -> Any:
        path = canonical_path(entries)
        if not is_numeric(leaf):
            return leaf  # a random key kept as a variable; a plan will say what to do with it
        made = seen.get(path)
        stack = layer_axes(leaf.shape, made, names[path])
        known = param_spec(leaf, stack, made and made.roles)
        return dataclasses.replace(known, own=OwnLeaf(model, path))

    return jax.tree_util.tree_map_with_path(spec, variables)


@dataclasses.dataclass(frozen=True, eq=False)
class _OwnModule:
    """A module, for plans that leave parameters to it."""

    module: nn.Module
    inputs: tuple[Any, ...]
    rngs: Any
    kwargs: dict[str, Any]
    leaves: tuple[str, ...]

    @functools.cached_property
    def _read(self) -> dict[str, Initializer | None]:
        return own_initializers(self.module, *self.inputs, rngs=self.rngs, **self.kwargs)

    def initializer(self, path: str) -> Initializer:
        """What the module hands to Flax, or else its whole init, of which one leaf is kept."""
        name = f"{type(self.module).__name__}.init"
        return self._read[path] or FromFunction(OneLeaf(name, self.draw, path))

    def draw(self, key: jax.Array) -> dict[str, Any]:
        """The variables as the module draws them, by path."""
        inputs, kwargs = jax.tree.map(filled, (self.inputs, self.kwargs))
        rngs = self.rngs
        if isinstance(rngs, Mapping):
            rngs = {name: jax.random.fold_in(key, n) for n, name in enumerate(rngs)}
        variables = self.module.init(key if rngs is None else rngs, *inputs, **kwargs)
        return {path: leaf for path, leaf, _ in leaves_of(variables)}


def filled(leaf: Any) -> Any:
    """An array of zeros for a shape; a model's own init does not look at its inputs."""
    if isinstance(leaf, jax.ShapeDtypeStruct):
        return jnp.zeros(leaf.shape, leaf.dtype)
    return leaf


def own_initializers(
    module: nn.Module | nnx.Module | Callable[[], nnx.Module],
    *inputs: Any,
    rngs: Any = None,
    **kwargs: Any,
) -> dict[str, Initializer | None]:
    """What a model itself would draw, leaf by leaf.

    Each initializer, called with the shape of its leaf or used as a rule of a plan, has the law
    that `module.init` gives that leaf, wrong fans included: where Flax hands its initializer a
    flattened shape, the initializer here draws in that shape too, also when a plan knows the true
    axes. Of NNX models the laws are read from the jaxpr of the constructor; where several recipes
    draw the same, the initializer is the plain law.

    Args:
        module: a Linen module, not bound; or a function without arguments that makes an NNX model,
            which takes no inputs.
        *inputs: what the module is called with, as in `linen_tree`.
        rngs: keys, as in `linen_tree`.
        **kwargs: keyword arguments, as in `linen_tree`.

    Returns:
        A mapping from canonical path to initializer; None where it is unknown: functions that
        are not of `jax.nn.initializers`, parameters stored in another form than they are used in,
        and all leaves of an NNX model that is made already.

    Raises:
        TypeError: when `module` is no Linen module, and makes no NNX model.
        ValueError: when the module cannot be traced with these inputs.

    Example:
        >>> import flax.linen as nn
        >>> own_initializers(nn.Dense(4), jax.ShapeDtypeStruct((1, 8), "float32"))
        {'params/bias': zeros, 'params/kernel': lecun_normal()}
    """
    makes_nnx = callable(module) and not isinstance(module, nn.Module | type)
    if not inputs and (isinstance(module, nnx.Module) or makes_nnx):
        return nnx_own_initializers("own_initializers", module)
    variables, seen = watch_init("own_initializers", module, inputs, rngs, kwargs, _read)
    own: dict[str, Initializer | None] = {}
    for path, leaf, names in leaves_of(variables):
        stack = layer_axes(leaf.shape, seen.get(path), names)
        read = None if stack is None else seen[path].read
        own[path] = read and over_layers(read, param_spec(leaf, stack, None))
    return own


def _read(made: Made) -> Initializer | Later | None:
    """The initializer of one layer."""
    if made.source.function is None or not made.name:
        return None
    drawn, function = made.shape, made.source.function
    if _flattens(made):
        drawn = _flat_shape(made)
        function = getattr(made.module, f"{made.name}_init")
    initializer = _translated(function)
    if initializer is None:
        return Later(functools.partial(_as_constant, made.source, made.shape))
    try:
        return _lasting(_as_jax_reads(initializer, drawn), drawn, made)
    except (TypeError, ValueError):
        return None  # no law for this shape or dtype: the model would fail or do otherwise


def _translated(function: Any) -> Initializer | None:
    while getattr(function, "__code__", None) in _PARTITIONING:
        function = function.__wrapped__
    try:
        return from_jax(function)
    except (TypeError, ValueError):
        return None


def _flattens(made: Made) -> bool:
    """Whether the function is the wrapper inside DenseGeneral, which draws a flattened shape."""
    layer = nn.DenseGeneral
    wrapper = f"{layer.__qualname__}.__call__.<locals>.{made.name}_init_wrap"
    function = made.source.function
    place = (getattr(function, "__module__", None), getattr(function, "__qualname__", None))
    return isinstance(made.module, layer) and place == (layer.__module__, wrapper)


def _flat_shape(made: Made) -> Shape:
    if made.name == "bias":
        return (math.prod(made.shape),)
    assert isinstance(made.module, nn.DenseGeneral)
    return flat_shape(dense_general_counts(made.module, made.shape), made.shape)


def _as_jax_reads(initializer: Initializer, shape: Shape) -> Initializer:
    """Resolves an axis that is named twice, an error here, to the fans that JAX gives it.

    Flax's default for embeddings is such a case: ``in_axis=-2`` and ``out_axis=0`` are the same
    axis of a table, and either fan is then the size of the other one.
    """
    if not isinstance(initializer, VarianceScaling) or len(shape) != 2:
        return initializer
    axes = initializer.axes
    doubled = {axis % 2 for axis in axes.in_axis} & {axis % 2 for axis in axes.out_axis}
    if len(doubled) != 1 or axes.batch_axis:
        return initializer
    (twice,) = doubled
    if initializer.mode == "fan_in":
        return dataclasses.replace(initializer, in_axis=(-1 - twice,), out_axis=(twice - 2,))
    other = float(shape[1 - twice])
    return initializer.at_fans(Fans(other, other))


def _lasting(initializer: Initializer, drawn: Shape, made: Made) -> Initializer:
    """An initializer that has, in the shape of the parameter, the law of this one as drawn.

    It keeps that law after a plan has told it the true axes of the kernel. The candidates are tried
    from plain to explicit.
    """
    target = initializer.law(drawn, made.dtype)
    for candidate in (initializer, _planned(initializer, made)):
        if drawn != made.shape and (target.slabs or not candidate.elementwise):
            break
        if _keeps(candidate, target, made):
            return candidate
    return reshaped(initializer, drawn)


def _keeps(initializer: Initializer, target: Law, made: Made) -> bool:
    planned = _planned(initializer, made)
    if not initializer.elementwise and planned != initializer:
        return False
    try:
        return all(value.law(made.shape, made.dtype) == target for value in (initializer, planned))
    except ValueError:
        return False


def _planned(initializer: Initializer, made: Made) -> Initializer:
    """What a plan makes of the initializer of a leaf."""
    roles = {} if made.roles is None else vars(made.roles)
    return with_roles(initializer, ParamSpec(made.shape, made.dtype, **roles))


def _as_constant(source: Source, shape: Shape) -> Initializer | None:
    """The constant that a function returns for every key, None when it returns no constant."""
    function = source.function
    if function is None or math.prod(shape) > _MAX_CONSTANT:
        return None

    def draw(*keys: Any) -> Any:
        return nn.meta.unbox(function(*keys, *source.args, **source.kwargs))

    try:
        with jax.ensure_compile_time_eval():
            keys = [jax.random.key(0)] if source.keyed else []
            if _depends_on_inputs(trace(draw, *keys)[0]):
                return None
            values = np.asarray(draw(*keys))
    except Exception:  # a user's function may raise anything outside of its module
        return None
    if not values.size or (values != values.flat[0]).any():
        return None
    return as_constant(values.reshape(-1)[0])


def _depends_on_inputs(graph: Graph) -> bool:
    read = {atom for node in graph.nodes for atom in node.inputs if isinstance(atom, int)}
    return not read.union(a for a in graph.outputs if isinstance(a, int)).isdisjoint(graph.inputs)
