"""`read`: what a model does with each of its parameters, from a trace of its forward pass."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import jax

from jaxinit.jaxpr._equations import is_integral
from jaxinit.jaxpr._graph import Graph, trace
from jaxinit.planning import FlatTree, canonical_path, flatten
from jaxinit.reading._apply import apply
from jaxinit.reading._combine import uses_of
from jaxinit.reading._records import Parameter, Role, Use
from jaxinit.reading._result import Reading
from jaxinit.reading._walk import Met, Walk, incoming

# What quantised parameters do; counters and flags do none of it.
_OF_INTEGERS = ("kernel", "head", "embedding", "scale")


def read(apply_fn: Callable[..., Any], variables: Any, /, *args: Any, **kwargs: Any) -> Reading:
    """Reads what a model does with each of its parameters.

    The forward pass is traced, never run, and nothing is allocated. Each parameter is followed
    through reshapes, transposes, casts, slices, concatenations, products with other parameters,
    loops, branches and nested calls until it meets data; which of its axes are contracted,
    produced and batched there follows from the equation alone, and not from its name.

    Args:
        apply_fn: the forward pass, ``apply_fn(variables, *args, **kwargs)``: ``model.apply`` of
            Linen and Haiku, a function that calls an Equinox module, any function of JAX. Of an NNX
            model `jaxinit.flax.nnx_apply` makes both of the first arguments.
        variables: any pytree of arrays, ``jax.ShapeDtypeStruct`` or `jaxinit.ParamSpec`. Leaves of
            another kind (functions, None, Python numbers) are passed on as they are. In a mapping
            with an entry ``"params"``, as Linen has it, all other entries are state; in an NNX
            state all variables but ``nnx.Param``.
        *args: what the model is called with besides; of arrays only shape and dtype count. PRNG
            keys are not data.
        **kwargs: the same, by name, such as ``train=False``.

    Returns:
        The reading: a record of every leaf, in the order of the tree.

    Raises:
        TypeError: when ``apply_fn`` is no function, or a model instead of its forward pass.
        ValueError: when ``variables`` holds no array, or two leaves have one path.
        Exception: whatever the forward pass raises.

    Example:
        >>> import jax.numpy as jnp
        >>> def mlp(params, x):
        ...     return jnp.tanh(x @ params["hidden"].T) @ params["out"]
        >>> shapes = {"hidden": (32, 8), "out": (32, 1)}
        >>> shapes = {name: jax.ShapeDtypeStruct(s, "float32") for name, s in shapes.items()}
        >>> reading = read(mlp, shapes, jax.ShapeDtypeStruct((4, 8), "float32"))
        >>> use = reading["hidden"].uses[0]
        >>> use.contracted, use.produced, use.fan_in
        ((1,), (0,), 8.0)
    """
    _check_function(apply_fn)
    flat = flatten("read", variables)
    return read_flat(apply_fn, flat, _state_paths(variables, flat.paths), args, kwargs)


def read_flat(
    apply_fn: Callable[..., Any],
    flat: FlatTree,
    state: Collection[str],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
) -> Reading:
    """As `read`, of variables already taken apart.

    Args:
        apply_fn: the forward pass.
        flat: its first argument, by canonical path.
        state: paths of leaves that are no parameters.
        args: its other arguments.
        kwargs: its arguments by name.
    """
    places = [number for number, leaf in enumerate(flat.leaves) if _is_array(leaf)]
    if not places:
        raise ValueError(
            f"read needs variables with at least one array, got {len(flat.leaves)} leaves and "
            "none. Pass what the model's init returns, or its jax.eval_shape."
        )
    shapes = [_abstract(flat.leaves[place]) for place in places]
    paths = [flat.paths[place] for place in places]
    others, treedef = jax.tree.flatten((tuple(args), dict(kwargs)))
    moving = [number for number, leaf in enumerate(others) if _is_array(leaf)]

    def forward(arrays: list[Any], data: list[Any]) -> Any:
        leaves, rest = list(flat.leaves), list(others)
        for place, array in zip(places, arrays, strict=True):
            leaves[place] = array
        for place, array in zip(moving, data, strict=True):
            rest[place] = array
        rest_args, rest_kwargs = jax.tree.unflatten(treedef, rest)
        return apply_fn(jax.tree.unflatten(flat.treedef, leaves), *rest_args, **rest_kwargs)

    graph, _ = trace(forward, shapes, [_abstract(others[place]) for place in moving])
    walk = _walk(graph, shapes, [path in state for path in paths])
    uses, found = uses_of(walk, graph, graph.inputs[: len(paths)])
    atoms = _read_atoms(graph)
    parameters = [
        _parameter(path, shape, uses.get(number, ()), path in state, graph.inputs[number] in atoms)
        for number, (path, shape) in enumerate(zip(paths, shapes, strict=True))
    ]
    inputs = dict(zip(paths, graph.inputs, strict=False))
    return Reading(tuple(parameters), graph, inputs, graph.inputs[len(paths) :], found.chain)


def _walk(graph: Graph, shapes: Sequence[Any], is_state: Sequence[bool]) -> Walk:
    walk = Walk(shapes, graph)
    values = [
        incoming(
            graph.avals[number],
            leaf if leaf < len(shapes) else None,
            is_state=leaf < len(shapes) and is_state[leaf],
        )
        for leaf, number in enumerate(graph.inputs)
    ]
    for result in walk.run(graph, values, apply):
        for part in result.parts if result.is_view else ():
            # An output that depends on no input, such as a policy's log of standard deviations.
            axes = tuple(range(len(walk.shapes[part.leaf])))
            walk.note(part, Use("output", "bias", produced=axes))
    return walk


def _parameter(
    path: str, shape: Any, met: Sequence[Met], is_state: bool, is_read: bool
) -> Parameter:
    if is_integral(shape):
        # A counter that is handed out or compared; integers that are multiplied are quantised.
        met = [each for each in met if each.use.role in _OF_INTEGERS]
        is_state = is_state or (is_read and not met)
    uses = () if is_state else tuple(each.use for each in met)
    role: Role = "unused"
    if is_state:
        role = "state"
    elif uses:
        role = next((use for use in uses if use.role != "unknown"), uses[0]).role
    why = None if is_state else next((each.why for each in met if each.why), None)
    return Parameter(path, tuple(shape.shape), str(shape.dtype), role, uses, why)


def _read_atoms(graph: Graph) -> set[Any]:
    """Numbers of the values that equations or results read."""
    atoms = [*graph.outputs, *(atom for node in graph.nodes for atom in node.inputs)]
    return {atom for atom in atoms if isinstance(atom, int)}


def _is_array(leaf: Any) -> bool:
    return hasattr(leaf, "shape") and hasattr(leaf, "dtype") and not isinstance(leaf, type)


def _abstract(leaf: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(tuple(leaf.shape), jax.dtypes.canonicalize_dtype(leaf.dtype, True))


def _state_paths(variables: Any, paths: Sequence[str]) -> set[str]:
    """Leaves that are no parameters, by the collections of Linen or the variables of NNX."""
    boxes, _ = jax.tree_util.tree_flatten_with_path(variables, is_leaf=_is_nnx_variable)
    if any(_is_nnx_variable(box) for _, box in boxes):
        return {
            canonical_path((*place, *inside))
            for place, box in boxes
            if _is_nnx_variable(box) and not _has_base(box, "flax.nnx", "Param")
            for inside, _ in jax.tree_util.tree_flatten_with_path(box)[0]
        }
    if isinstance(variables, Mapping) and "params" in variables:
        return {path for path in paths if path.partition("/")[0] != "params"}
    return set()


def _is_nnx_variable(value: Any) -> bool:
    return _has_base(value, "flax.nnx", "Variable")


def _has_base(value: Any, package: str, name: str) -> bool:
    """Whether a value is an instance of a class that cannot be imported here."""
    return any(
        base.__name__ == name and base.__module__.startswith(package)
        for base in type(value).__mro__
    )


def _check_function(apply_fn: Any) -> None:
    name = type(apply_fn).__name__
    if _has_base(apply_fn, "flax.nnx", "Module"):
        raise TypeError(
            f"read needs a function of variables and inputs, got the NNX model {name}. "
            "Call jaxinit.read(*jaxinit.flax.nnx_apply(model), *inputs)."
        )
    if _has_base(apply_fn, "flax.linen", "Module"):
        raise TypeError(
            f"read needs a function of variables and inputs, got the Linen module {name}. "
            "Call jaxinit.read(module.apply, variables, *inputs)."
        )
    if not callable(apply_fn):
        raise TypeError(
            f"read needs a function of variables and inputs, got {apply_fn!r} of type {name}. "
            "Call for example jaxinit.read(model.apply, variables, x)."
        )
