"""NNX models as trees of shapes that know their axes, and back into models.

NNX layers are made before anything is called, so nothing can be watched; but every layer keeps its
sizes, from which the shape of a single one follows, and the jaxpr of the constructor tells laws.
Axes that a parameter has beyond a single one were added by `nnx.vmap` around the constructor.
Nothing is allocated until `nnx_model` is given values.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx

from jaxinit._arguments import listing, suggestion
from jaxinit._types import PyTree
from jaxinit.flax._drawn import Known, OneLeaf, drawn
from jaxinit.flax._layers import (
    Single,
    is_numeric,
    name_of,
    nnx_parameters,
    param_spec,
    stack_axes_of,
)
from jaxinit.flax._linen import first_line
from jaxinit.initializers import FromFunction, Initializer
from jaxinit.jaxpr import trace
from jaxinit.planning import OwnLeaf, ParamSpec, canonical_path, flatten


def nnx_tree(model_or_factory: nnx.Module | Callable[[], nnx.Module], *filters: Any) -> nnx.State:
    """Shapes of an NNX model's parameters, with the axes of every kernel that is known.

    Kernels of Flax's own layers (and of their subclasses) get the axes that the layer contracts,
    the groups and the strides. Parameters of layers made under `nnx.vmap` get their stacked axes;
    a parameter of a module of your own does where all known layers below that module are stacked
    and its leading axes have their sizes.

    Args:
        model_or_factory: a model, abstract or not, or a function without arguments that makes
            one; it is run abstractly and nothing is allocated.
        *filters: which variables to take, as in `nnx.state`; `nnx.Param` when none is given.

    Returns:
        An `nnx.State` whose variables hold a `ParamSpec` each.

    Raises:
        TypeError: when the argument is neither a model nor a function.
        ValueError: when the function fails under abstract evaluation.

    Example:
        >>> from flax import nnx
        >>> tree = nnx_tree(lambda: nnx.Linear(8, 4, rngs=nnx.Rngs(0)))
        >>> tree["kernel"].get_value().shape
        (8, 4)
    """
    model = _abstract("nnx_tree", model_or_factory)
    specs = _specs(model)
    whole = _OwnModel(model_or_factory, specs, flatten("nnx_tree", nnx.state(model)).paths)

    def spec(entries: Any, leaf: Any) -> Any:
        path = canonical_path(entries)
        if path not in specs:
            return leaf
        return dataclasses.replace(specs[path], own=OwnLeaf(whole, path))

    state = nnx.state(model, filters or (nnx.Param,))
    return jax.tree_util.tree_map_with_path(spec, state)


@dataclasses.dataclass(frozen=True, eq=False)
class _OwnModel:
    """A model or what makes it, for plans that leave parameters to it."""

    model_or_factory: nnx.Module | Callable[[], nnx.Module]
    specs: dict[str, ParamSpec]
    leaves: tuple[str, ...]

    @functools.cached_property
    def _read(self) -> dict[str, Initializer | None]:
        return nnx_own_initializers("nnx_tree", self.model_or_factory)

    @property
    def is_made(self) -> bool:
        """Whether it is a model, and not what makes one."""
        return isinstance(self.model_or_factory, nnx.Module)

    def initializer(self, path: str) -> Initializer | None:
        """What the constructor draws a leaf with, or else the constructor, or the array itself."""
        one = FromFunction(OneLeaf(f"as {'held' if self.is_made else 'made'}", self.draw, path))
        if not self.is_made:
            return self._read[path] or one
        return None if isinstance(self.draw(None)[path], jax.ShapeDtypeStruct) else one

    def draw(self, key: Any) -> dict[str, Any]:
        """All leaves by path, as the constructor makes them: a key has no part in it."""
        source = self.model_or_factory
        made = source if isinstance(source, nnx.Module) else source()
        return dict(flatten("nnx_tree", nnx.state(made)).items())


def nnx_own_initializers(
    caller: str, model_or_factory: nnx.Module | Callable[[], nnx.Module]
) -> dict[str, Initializer | None]:
    """What the constructor of a model draws each variable with; None where that is not known."""
    specs = _specs(_abstract(caller, model_or_factory))
    if isinstance(model_or_factory, nnx.Module):
        return dict.fromkeys(specs)
    found = constructed(lambda key: model_or_factory())
    return {path: found[path].initializer(spec) for path, spec in specs.items()}


def constructed(make: Callable[[Any], nnx.Module]) -> dict[str, Known]:
    """What is known of every variable that a function makes from a key, by canonical path."""

    def init(key: Any) -> Any:
        return dict(flatten("nnx_tree", nnx.state(make(key))).items())

    graph, shapes = trace(init, jax.random.key(0))
    return dict(zip(flatten("nnx_tree", shapes).paths, drawn(graph), strict=True))


def nnx_model(
    model_or_factory: nnx.Module | Callable[[], nnx.Module], values: PyTree
) -> nnx.Module:
    """A working model with these values; what they leave out is made by the factory.

    Only what is missing is computed: parameters that `values` holds are never drawn by the
    model's own constructor.

    Args:
        model_or_factory: as in `nnx_tree`. Variables that `values` does not hold (random state,
            BatchNorm statistics, parameters left out by a filter) come from here.
        values: arrays by path: what `plan.init` returns for an `nnx_tree`, nested dicts, or a flat
            mapping from canonical paths. Abstract leaves and None count as left out.

    Returns:
        A new model; one that was passed in is left as it is.

    Raises:
        TypeError: when the first argument is neither a model nor a function.
        ValueError: when a path is not in the model, a shape or dtype is not the model's, or an
            abstract model leaves values open.

    Example:
        >>> from flax import nnx
        >>> import jax.numpy as jnp
        >>> def factory():
        ...     return nnx.Linear(2, 3, rngs=nnx.Rngs(0))
        >>> model = nnx_model(factory, {"kernel": jnp.ones((2, 3))})
        >>> model(jnp.ones((1, 2))).tolist()
        [[2.0, 2.0, 2.0]]
    """
    model = _abstract("nnx_model", model_or_factory)
    graph, state = nnx.split(model)
    flat = flatten("nnx_model", state)
    wanted = dict(flat.items())
    given = _given(values, wanted)
    missing = [path for path in wanted if path not in given]
    if isinstance(model_or_factory, nnx.Module):
        rest = {path: wanted[path] for path in missing}
    else:
        rest = _made(model_or_factory, missing)
    open_ = [repr(path) for path, leaf in rest.items() if isinstance(leaf, jax.ShapeDtypeStruct)]
    if open_:
        raise ValueError(
            "nnx_model needs a value for every variable of an abstract model, got none for "
            f"{listing(open_)}. Pass the factory instead of the abstract model, or give them all."
        )
    found = given | rest
    leaves = [found[path] for path in flat.paths]
    return nnx.merge(graph, jax.tree.unflatten(flat.treedef, leaves))


def nnx_apply(
    model_or_factory: nnx.Module | Callable[[], nnx.Module],
) -> tuple[Callable[..., Any], nnx.State]:
    """An NNX model as a function of its variables, as `jaxinit.read` takes it.

    Args:
        model_or_factory: as in `nnx_tree`; an abstract model from ``nnx.eval_shape`` will do. What
            was said to it, such as ``model.eval()``, holds.

    Returns:
        The function ``apply(state, *args, **kwargs)``, which calls a model with these variables
        and returns what the model returns, and the state of the model.

    Raises:
        TypeError: when the argument is neither a model nor a function that makes one.
        ValueError: when the function cannot be evaluated abstractly.

    Example:
        >>> import jax, jaxinit
        >>> from flax import nnx
        >>> apply, state = nnx_apply(lambda: nnx.Linear(8, 4, rngs=nnx.Rngs(0)))
        >>> reading = jaxinit.read(apply, state, jax.ShapeDtypeStruct((1, 8), "float32"))
        >>> reading["kernel"].fan_in
        8.0
    """
    graph, state = nnx.split(_abstract("nnx_apply", model_or_factory))

    def apply(state: nnx.State, *args: Any, **kwargs: Any) -> Any:
        model: Any = nnx.merge(graph, state)
        return model(*args, **kwargs)

    return apply, state


def _abstract(caller: str, model_or_factory: Any) -> nnx.Module:
    if isinstance(model_or_factory, nnx.Module):
        return model_or_factory
    if isinstance(model_or_factory, nn.Module) or not callable(model_or_factory):
        advice = (
            "Use linen_tree for Linen modules."
            if isinstance(model_or_factory, nn.Module)
            else "Pass lambda: Model(..., rngs=nnx.Rngs(0))."
        )
        raise TypeError(
            f"{caller} needs an nnx.Module or a function that makes one, got "
            f"{type(model_or_factory).__name__}. {advice}"
        )
    name = name_of(model_or_factory) or repr(model_or_factory)
    try:
        # A new function, because JAX would reuse the trace of an earlier call of the same one.
        model = nnx.eval_shape(lambda: model_or_factory())
    except Exception as error:
        raise ValueError(
            f"{caller} needs a function without arguments that makes an nnx.Module under "
            f"abstract evaluation, got {name}: {first_line(error)} Write "
            "lambda: Model(..., rngs=nnx.Rngs(0)), with the nnx.Rngs made inside."
        ) from error
    if not isinstance(model, nnx.Module):
        raise TypeError(
            f"{caller} needs a function that makes an nnx.Module, got {type(model).__name__} from "
            f"{name}. Return the model."
        )
    return model


def _object_at(model: nnx.Module, path: tuple[Any, ...]) -> Any:
    """The object that a path of the state leads to, None where it cannot be followed."""
    found: Any = model
    for key in path:
        try:
            found = vars(found)[key] if key in getattr(found, "__dict__", ()) else found[key]
        except (LookupError, TypeError):
            return None
    return found


def _specs(model: nnx.Module) -> dict[str, ParamSpec]:
    """What is known of each variable that holds one array, by canonical path."""
    shapes: dict[tuple[Any, ...], Any] = {}
    singles: dict[tuple[Any, ...], Single] = {}
    for path, variable in nnx.to_flat_state(nnx.state(model)):
        leaves = jax.tree.leaves(variable)
        if len(leaves) != 1 or not is_numeric(leaves[0]):
            continue
        shapes[path] = leaves[0]
        owner = _object_at(model, path[:-1])
        known = nnx_parameters(owner) if isinstance(owner, nnx.Module) else {}
        if (single := known.get(str(path[-1]))) is not None:
            singles[path] = single
    stacks = {
        path: stack_axes_of(tuple(shapes[path].shape), single.shape)
        for path, single in singles.items()
    }
    return {
        "/".join(map(str, path)): param_spec(leaf, stacks[path], singles[path].roles)
        if path in singles
        else param_spec(leaf, _stack_around(path, shapes, stacks), None)
        for path, leaf in shapes.items()
    }


def _stack_around(
    path: tuple[Any, ...],
    shapes: dict[tuple[Any, ...], Any],
    stacks: dict[tuple[Any, ...], tuple[int, ...] | None],
) -> tuple[int, ...] | None:
    """Stacked axes of a parameter whose module is no known layer: those of all layers below it."""
    owner, shape = path[:-1], shapes[path].shape
    below = {
        (stack, tuple(shapes[other].shape[axis] for axis in stack or ()))
        for other, stack in stacks.items()
        if other[: len(owner)] == owner
    }
    if len(below) != 1:
        return None
    stack, sizes = below.pop()
    fits = stack and stack[-1] < len(shape) and tuple(shape[axis] for axis in stack) == sizes
    return stack if fits else None


def _given(values: Any, wanted: dict[str, Any]) -> dict[str, Any]:
    """Arrays by canonical path, checked against the model."""
    flat = flatten("nnx_model", values)
    given = {
        path: leaf
        for path, leaf in flat.items()
        if not isinstance(leaf, jax.ShapeDtypeStruct | ParamSpec)
    }
    unknown = [f"{path!r}{suggestion(path, wanted)}" for path in given if path not in wanted]
    if unknown:
        raise ValueError(
            f"nnx_model needs values whose paths are in the model, got {listing(unknown)}. Plan "
            "them from nnx_tree of the same model, or leave them out."
        )
    for path, value in given.items():
        model, came = (jnp.shape(leaf) for leaf in (wanted[path], value))
        types = wanted[path].dtype, getattr(value, "dtype", type(value).__name__)
        if model != came or types[0] != types[1]:
            raise ValueError(
                f"nnx_model needs {types[0]} of shape {model} for {path!r}, got {types[1]} of "
                f"shape {came}. Plan the values from nnx_tree of the same model."
            )
    return given


def _made(factory: Callable[[], nnx.Module], paths: list[str]) -> dict[str, Any]:
    """Variables that the factory makes at these paths, and nothing else of it computed."""

    def make() -> dict[str, Any]:
        made = dict(flatten("nnx_model", nnx.state(factory())).items())
        return {path: made[path] for path in paths}

    # Under jit whatever does not lead to a result is dropped: the parameters' own draws.
    return jax.jit(make)() if paths else {}
