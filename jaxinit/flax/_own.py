"""The initializers that a Linen module brings itself, as jaxinit values with declared laws.

Each parameter is made by a function that the module hands to Flax. An initializer of this package,
a closure of `jax.nn.initializers`, either of them inside a partitioning wrapper, and the wrapper
with which DenseGeneral flattens the shape first are translated. A function that returns the same
number everywhere, whatever the key, is a constant. Any other function stays unknown.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from jaxinit._types import Shape
from jaxinit.flax._layers import dense_general_counts, flat_shape, param_spec
from jaxinit.flax._linen import Later, Made, Source, layer_axes, leaves_of, watch_init
from jaxinit.initializers import (
    Fans,
    Initializer,
    Law,
    VarianceScaling,
    constant,
    from_jax,
    ones,
    reshaped,
    zeros,
)
from jaxinit.jaxpr import Graph, trace
from jaxinit.planning import ParamSpec, over_layers, with_roles

# Above this many entries a function is not called to see whether it is constant.
_MAX_CONSTANT = 2**16

_PARTITIONING = tuple(
    wrap(nn.initializers.zeros, ()).__code__
    for wrap in (nn.with_partitioning, nn.with_logical_partitioning)
)


def own_initializers(
    module: nn.Module, *inputs: Any, rngs: Any = None, **kwargs: Any
) -> dict[str, Initializer | None]:
    """What a Linen module itself would draw, leaf by leaf.

    Each initializer, called with the shape of its leaf or used as a rule of a plan, has the law
    that `module.init` gives that leaf, wrong fans included: where Flax hands its initializer a
    flattened shape, the initializer here draws in that shape too, also when a plan knows the true
    axes.

    Args:
        module: the module, not bound.
        *inputs: what the module is called with, as in `linen_tree`.
        rngs: keys, as in `linen_tree`.
        **kwargs: keyword arguments, as in `linen_tree`.

    Returns:
        A mapping from canonical path to initializer; None where it is unknown: functions that
        are not of `jax.nn.initializers`, and parameters stored in another form than they are
        used in.

    Raises:
        TypeError: when `module` is no Linen module.
        ValueError: when the module cannot be traced with these inputs.

    Example:
        >>> import flax.linen as nn
        >>> own_initializers(nn.Dense(4), jax.ShapeDtypeStruct((1, 8), "float32"))
        {'params/bias': zeros, 'params/kernel': lecun_normal()}
    """
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
    number = values.flat[0].item()
    if number in (0, 1):
        return ones if number else zeros
    # The shortest decimal that rounds to the same value: 0.01, not 0.009999999776482582.
    return constant(float(str(values.flat[0])) if values.dtype.kind == "f" else number)


def _depends_on_inputs(graph: Graph) -> bool:
    read = {atom for node in graph.nodes for atom in node.inputs if isinstance(atom, int)}
    return not read.union(a for a in graph.outputs if isinstance(a, int)).isdisjoint(graph.inputs)
