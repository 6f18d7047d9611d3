"""Linen modules as trees of shapes that know their axes.

Each parameter is watched being made, one layer at a time; comparing its shape there with the shape
that is stored tells the stacked axes. Nothing is allocated.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax

from jaxinit.flax._layers import Shape, is_numeric, param_spec, stack_axes_of
from jaxinit.flax._watch import Seen, leaves_of, watch_init
from jaxinit.planning import canonical_path


def linen_tree(module: nn.Module, *inputs: Any, rngs: Any = None, **kwargs: Any) -> Any:
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

    def spec(entries: Any, leaf: Any) -> Any:
        path = canonical_path(entries)
        return _spec(leaf, seen.get(path), names[path])

    return jax.tree_util.tree_map_with_path(spec, variables)


def _spec(leaf: Any, seen: Seen | None, names: tuple[Any, ...]) -> Any:
    if not is_numeric(leaf):
        return leaf  # a random key kept as a variable; a plan will say what to do with it
    stack = layer_axes(leaf.shape, seen, names)
    if seen is None or stack is None:
        return param_spec(leaf, (), None)
    return param_spec(leaf, stack, seen.roles)


def layer_axes(shape: Shape, seen: Seen | None, names: tuple[Any, ...]) -> tuple[int, ...] | None:
    """Stacked axes of a leaf; None when what is stored is not a stack of what was made."""
    if seen is None:
        return None
    return stack_axes_of(tuple(shape), seen.shape, names, seen.names)
