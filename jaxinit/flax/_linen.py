"""What Linen modules make, watched while their init runs abstractly.

`watch_init` runs the module's own init abstractly under a method interceptor. Inside `nn.scan`,
`nn.vmap`, `nn.remat` and `nn.jit` the interceptor sees the module of one layer under the path of
the stored variable. So it knows the shape that the layer has alone and the function that draws it;
comparing the former with the shape that is stored tells the stacked axes.
"""

from __future__ import annotations

import dataclasses
import functools
import uuid
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
from flax import nnx
from flax.core import DenyList, freeze

from jaxinit._types import Shape
from jaxinit.flax._layers import Call, Roles, linen_roles, stack_axes_of
from jaxinit.planning import canonical_path


def layer_axes(shape: Shape, seen: Seen | None, names: tuple[Any, ...]) -> tuple[int, ...] | None:
    """Stacked axes of a leaf; None when what is stored is not a stack of what was made."""
    if seen is None:
        return None
    return stack_axes_of(tuple(shape), seen.shape, names, seen.names)


# Watching.


class Source(NamedTuple):
    """The function that makes a parameter or variable, as the module hands it to Flax.

    Attributes:
        function: the function, None where an existing variable was only read.
        args: its arguments, without the key.
        kwargs: its keyword arguments.
        keyed: whether it takes a key.
    """

    function: Callable[..., Any] | None
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    keyed: bool


class Made(NamedTuple):
    """A leaf at the moment it is made. It may hold tracers and is not kept.

    Attributes:
        module: the module that made it.
        name: name of the parameter, or "" for a leaf inside a parameter that is a tree.
        shape: its shape in one layer.
        dtype: its dtype.
        roles: roles of its axes, where the layer is known.
        source: the function that makes it.
    """

    module: nn.Module
    name: str
    shape: Shape
    dtype: Any
    roles: Roles | None
    source: Source


class Later(NamedTuple):
    """What a reader cannot tell yet: `ask` is called once init is over."""

    ask: Callable[[], Any]


Reader = Callable[[Made], Any]


@dataclasses.dataclass(frozen=True)
class Seen:
    """What is known of a leaf after init: its shape and roles in one layer, what the reader said.

    Attributes:
        shape: shape in one layer.
        roles: roles of the axes, where the layer is known.
        names: names of the axes from partitioning metadata.
        read: what the reader returned.
    """

    shape: Shape
    roles: Roles | None
    names: tuple[Any, ...]
    read: Any


class _NeverTheSame:
    """A value with another hash each time.

    `nn.jit` keeps traces by a hash of the module and of the flags and the mutability of its scope.
    A module that reuses a trace makes no parameters, so `Watch` would not see any. With this value
    among the flags, two layers of equal form, or two calls of `watch_init`, never share a trace.
    """

    def __hash__(self) -> int:
        return uuid.uuid4().int


class Watch:
    """Method interceptor that notes parameters and variables as modules make them."""

    def __init__(self, reader: Reader) -> None:
        self.reader = reader
        self.seen: dict[str, Seen] = {}

    def __call__(
        self,
        next_function: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        context: nn.module.InterceptorContext,
    ) -> Any:
        # Flax intercepts the methods of subclasses, not `param` itself. An attribute of the bound
        # module, which lives for this call only, takes precedence over the method of the class.
        module, call = context.module, Call(args, kwargs)
        if module.scope is not None and "jaxinit" not in module.scope.flags:
            # Scopes below inherit the flags.
            module.scope.flags = freeze({**module.scope.flags, "jaxinit": _NeverTheSame()})
        watched = {
            "param": functools.partial(self._param, module, call),
            "variable": functools.partial(self._variable, module, call),
        }
        before = {name: vars(module).get(name) for name in watched}
        for name, function in watched.items():
            object.__setattr__(module, name, function)
        try:
            return next_function(*args, **kwargs)
        finally:
            for name, function in before.items():
                if function is None:
                    object.__delattr__(module, name)
                else:
                    object.__setattr__(module, name, function)

    def _param(
        self, module: nn.Module, call: Call, name: str, init_fn: Any, *args: Any, **kwargs: Any
    ) -> Any:
        value = type(module).param(module, name, init_fn, *args, **kwargs)
        kwargs.pop("unbox", None)
        self._note(module, call, "params", name, Source(init_fn, args, kwargs, True))
        return value

    def _variable(
        self,
        module: nn.Module,
        call: Call,
        collection: str,
        name: str,
        init_fn: Any = None,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        variable = type(module).variable(module, collection, name, init_fn, *args, **kwargs)
        kwargs.pop("unbox", None)
        self._note(module, call, collection, name, Source(init_fn, args, kwargs, False))
        return variable

    def _note(
        self, module: nn.Module, call: Call, collection: str, name: str, source: Source
    ) -> None:
        scope = module.scope
        if scope is None or not scope.has_variable(collection, name):
            return
        prefix = "/".join((collection, *scope.path, name))
        for inside, leaf, names in leaves_of(scope.get_variable(collection, name)):
            path = f"{prefix}/{inside}" if inside else prefix
            if path in self.seen or not hasattr(leaf, "shape"):
                continue
            shape = tuple(leaf.shape)
            roles = None if inside else linen_roles(module, name, shape, call)
            made = Made(module, "" if inside else name, shape, leaf.dtype, roles, source)
            self.seen[path] = Seen(shape, roles, names, self.reader(made))

    def settle(self) -> None:
        """Replaces every `Later` by its answer."""
        for path, seen in self.seen.items():
            if isinstance(seen.read, Later):
                self.seen[path] = dataclasses.replace(seen, read=seen.read.ask())


def leaves_of(tree: Any) -> list[tuple[str, Any, tuple[Any, ...]]]:
    """Path, value and axis names of every leaf, without its metadata box."""
    flat, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=nn.meta.is_axis_metadata)
    return [(canonical_path(path), *_unboxed(leaf)) for path, leaf in flat]


def _unboxed(leaf: Any) -> tuple[Any, tuple[Any, ...]]:
    if nn.meta.is_axis_metadata(leaf):
        return jax.tree.leaves(leaf)[0], tuple(getattr(leaf, "names", None) or ())
    return leaf, ()


def watch_init(
    caller: str,
    module: Any,
    inputs: tuple[Any, ...],
    rngs: Any,
    kwargs: dict[str, Any],
    reader: Reader = lambda made: None,
) -> tuple[Any, dict[str, Seen]]:
    """Runs `module.init` abstractly.

    Args:
        caller: public name that errors start with.
        module: the module, not bound.
        inputs: what it is called with.
        rngs: keys for `module.init`, None for one of our own.
        kwargs: keyword arguments of the call and of `module.init`.
        reader: called with every leaf at the moment it is made.

    Returns:
        The variables, abstract, and what was seen of each leaf by canonical path.

    Raises:
        TypeError: when `module` is no Linen module.
        ValueError: when it cannot be traced with these inputs.
    """
    _check_module(caller, module)
    # The outermost module may be under `nn.jit` itself, where `Watch` cannot set flags yet. A name
    # that no other call uses, among the immutable collections, keeps its trace apart.
    unique = DenyList(("intermediates", f"jaxinit-{uuid.uuid4().hex}"))
    leaves, structure = jax.tree.flatten((inputs, {"mutable": unique, **kwargs}, rngs))
    is_array = [hasattr(leaf, "shape") and hasattr(leaf, "dtype") for leaf in leaves]
    arrays = [leaf for leaf, traced in zip(leaves, is_array, strict=True) if traced]
    watch = Watch(reader)

    def init(arrays: list[Any]) -> Any:
        rest = iter(arrays)
        filled = [
            next(rest) if traced else leaf for leaf, traced in zip(leaves, is_array, strict=True)
        ]
        inputs, kwargs, rngs = jax.tree.unflatten(structure, filled)
        with nn.intercept_methods(watch):
            rngs = jax.random.key(0) if rngs is None else rngs
            variables = module.init(rngs, *inputs, **kwargs)
        watch.settle()
        return variables

    try:
        return jax.eval_shape(init, arrays), watch.seen
    except Exception as error:
        raise ValueError(_explain(caller, module, inputs, kwargs, error)) from error


def _check_module(caller: str, module: Any) -> None:
    if isinstance(module, nn.Module):
        return
    if isinstance(module, type) and issubclass(module, nn.Module):
        advice = f"Call the class: {module.__name__}(...)."
        came = f"the class {module.__name__}"
    elif isinstance(module, nnx.Module):
        advice = "Use nnx_tree for NNX models."
        came = f"an NNX model of type {type(module).__name__}"
    else:
        advice, came = "Pass the module itself, not its apply or init.", describe(module)
    raise TypeError(f"{caller} needs a flax.linen.Module, got {came}. {advice}")


def _explain(
    caller: str,
    module: nn.Module,
    inputs: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    error: Exception,
) -> str:
    shown = [describe(value) for value in inputs]
    shown += [f"{name}={describe(value)}" for name, value in kwargs.items()]
    return (
        f"{caller} needs inputs that {type(module).__name__} can be traced with, got "
        f"({', '.join(shown)}): {first_line(error)} Pass what the module is called with, arrays or "
        "jax.ShapeDtypeStruct, flags such as train=False as keywords and Python values, and keys "
        "beside 'params' as rngs={...}."
    )


def first_line(error: Exception) -> str:
    """Type and first line of the message of an error, ending in a full stop."""
    lines = str(error).strip().splitlines()
    text = f"{type(error).__name__}: {lines[0].strip()}" if lines else type(error).__name__
    return text if text.endswith((".", "!", "?")) else f"{text}."


def describe(value: Any) -> str:
    """An input in a few characters: dtype and shape of arrays, the value of anything else."""

    def leaf(value: Any) -> Any:
        if hasattr(value, "shape") and hasattr(value, "dtype"):
            return _Text(f"{value.dtype}[{','.join(map(str, value.shape))}]")
        return value

    text = " ".join(repr(jax.tree.map(leaf, value)).split())
    return text if len(text) <= 80 else f"{text[:77]}..."


class _Text(str):
    """A string that prints without quotes."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)
