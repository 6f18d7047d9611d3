"""`read`: what a model does with each of its parameters, from a trace of its forward pass."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import jax

from jaxinit.jaxpr import (
    Class,
    Graph,
    Neighbours,
    is_integral,
    is_key,
    is_of,
    row_of,
    trace,
)
from jaxinit.planning import canonical_path, flatten
from jaxinit.reading import _meetings as _meetings  # The rules of the domain.
from jaxinit.reading._domain import (
    CONSTANT,
    TAGGED,
    Meeting,
    Notes,
    ParameterDomain,
    data_of,
    parameters,
    whole,
)
from jaxinit.reading._flow import Following, follow
from jaxinit.reading._records import AS_IT_IS, Parameter, Reading, Role, Use

# What quantised parameters do; counters and flags do none of it.
_OF_INTEGERS = ("kernel", "head", "embedding", "scale")
# Roles of a parameter whose output is followed.
_FOLLOWED = ("kernel", "embedding")


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
    state = _state_paths(variables, flat.paths)
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
    uses, found = _uses(graph, shapes, paths, state)
    inputs = dict(zip(paths, graph.inputs, strict=False))
    is_read = {*found.neighbours.readers, *(n for n in graph.outputs if isinstance(n, int))}
    records = [
        _parameter(path, shape, uses.get(number, ()), path in state, inputs[path] in is_read)
        for number, (path, shape) in enumerate(zip(paths, shapes, strict=True))
    ]
    return Reading(tuple(records), graph, inputs, graph.inputs[len(paths) :], found.chain)


def _parameter(
    path: str, shape: Any, met: Sequence[Meeting], is_state: bool, is_read: bool
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


# From meetings to uses.


def _uses(
    graph: Graph, leaves: Sequence[Any], paths: Sequence[str], state: Collection[str]
) -> tuple[dict[int, list[Meeting]], Following]:
    """Meetings of every parameter, each with what follows it, in order of execution.

    Args:
        graph: the forward pass; its first inputs are the leaves.
        leaves: their shapes and dtypes.
        paths: their paths.
        state: paths of those that are no parameters.

    Returns:
        By the number of each parameter its meetings, and the whole of what was found on the way
        from layer to layer.
    """
    domain = ParameterDomain(leaves, graph, paths)
    arguments = [graph.avals[number] for number in graph.inputs[len(leaves) :]]
    values = [
        dataclasses.replace(data_of(leaf.shape, is_real=False), made_of=((number, AS_IT_IS),))
        if paths[number] in state
        else parameters([whole(number, leaf.shape)])
        for number, leaf in enumerate(leaves)
    ]
    values += [data_of(aval.shape, is_real=True) for aval in arguments]
    # Keys are no data.
    keys = [is_key(graph.avals[number]) for number in graph.inputs]
    values = [CONSTANT if key else value for key, value in zip(keys, values, strict=True)]
    for result in domain.run(graph, values):
        for view in result.views if result.is_view else ():
            # An output that depends on no input, such as a policy's log of standard deviations.
            axes = tuple(range(len(leaves[view.leaf].shape)))
            domain.note(view, Use("output", "bias", produced=axes))
    uses: dict[int, list[Meeting]] = {}
    for met in _split(domain.notes):
        uses.setdefault(met.leaf, []).append(met)
    layers = {
        number
        for several in uses.values()
        for met in several
        if met.use.role in _FOLLOWED
        for number in (met.use.output, met.use.slice_output)
        if number is not None
    }
    found = follow(graph, layers, graph.inputs[: len(leaves)])
    for several in uses.values():
        several[:] = [dataclasses.replace(met, use=_followed(met.use, found)) for met in several]
    return uses, found


def _followed(use: Use, found: Following) -> Use:
    """A use with what its output meets."""
    number = use.output if use.slice_output is None else use.slice_output
    if number is None:
        return use
    flow = found.flows.get(number) if use.role in _FOLLOWED else None
    if flow is None:
        branch = found.branches.get(number)
        if use.role == "scale" and not (branch and branch.is_last):
            branch = found.branches.get(_scaled(number, found.neighbours), branch)
        scales = found.scaled(number) if use.role == "scale" else None
        return dataclasses.replace(use, branch=branch, scales=scales)
    is_head = use.role == "kernel" and flow.after.is_output
    fields = vars(flow)
    if use.slice_output is not None and use.output in found.flows:
        # A slice of a sum says what follows, and not what the layer itself reads.
        recurrent = found.flows[use.output].after.recurrent
        fields = fields | {"after": dataclasses.replace(flow.after, recurrent=recurrent)}
    return dataclasses.replace(use, role="head" if is_head else use.role, **fields)


def _scaled(number: int, neighbours: Neighbours) -> int:
    """What a scale ends up on: a batch norm multiplies it into one over the spread first."""
    while True:
        nodes = neighbours.readers.get(number, [])
        node = nodes[0] if len(nodes) == 1 and len(nodes[0].outputs) == 1 else None
        if node is not None and node.primitive == "mul":
            return node.outputs[0]
        # How one number for each feature is laid over data.
        is_move = node is not None and is_of(node.primitive, Class.REARRANGES)
        if node is None or not is_move or row_of(node.primitive).cuts:
            return number
        (number,) = node.outputs


def _split(notes: Notes) -> list[Meeting]:
    """Meetings in order; kernels packed into one array each have their own."""
    packed = _packed(notes)
    # Power iterations and other sums of a kernel that inputs reach elsewhere are no use of it.
    meetings = list(enumerate(notes.meetings))
    reached = {
        met.leaf
        for number, met in meetings
        if met.use.role == "kernel" and number not in notes.asides
    }
    split = []
    for number, met in meetings:
        if number in notes.asides and met.leaf in reached:
            continue
        for share, output in packed.get(number) or [(1.0, None)]:
            fan_out = met.use.fan_out and met.use.fan_out * share
            use = dataclasses.replace(met.use, fan_out=fan_out, slice_output=output)
            split.append(dataclasses.replace(met, use=use))
    return split


def _packed(notes: Notes) -> dict[int, list[tuple[float, int]]]:
    """Slices that each meeting's output is cut into: share of the output, number of the value."""
    packed: dict[int, list[tuple[float, int]]] = {}
    axes = [(axis, cuts) for whole, cuts in notes.cuts.items() for axis in notes.outputs_of(whole)]
    for axis, cuts in axes:
        number, slices = axis.tag - TAGGED, sorted(cuts)
        if axis in notes.rejoined or not _covers(slices, axis.size):
            continue
        for start, limit, owner in notes.regions.get(number, [(0, axis.size, number)]):
            shares = [
                ((last - first) / (limit - start), cuts[first, last])
                for first, last in slices
                if start <= first and last <= limit
            ]
            packed.setdefault(owner, shares)
    return packed


def _covers(slices: Sequence[tuple[int, int]], size: int) -> bool:
    """Whether several slices lie side by side and cover everything."""
    ends = [0, *(last for _, last in slices)]
    starts = [*(first for first, _ in slices), size]
    return len(slices) > 1 and starts == ends


# Variables.


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
    for package, kind, call in (
        ("flax.nnx", "NNX model", "jaxinit.read(*jaxinit.flax.nnx_apply(model), *inputs)"),
        ("flax.linen", "Linen module", "jaxinit.read(module.apply, variables, *inputs)"),
    ):
        if _has_base(apply_fn, package, "Module"):
            raise TypeError(
                f"read needs a function of variables and inputs, got the {kind} {name}. "
                f"Call {call}."
            )
    if not callable(apply_fn):
        raise TypeError(
            f"read needs a function of variables and inputs, got {apply_fn!r} of type {name}. "
            "Call for example jaxinit.read(model.apply, variables, x)."
        )
