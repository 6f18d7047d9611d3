"""NNX constructors as `jaxinit.jit_init` runs them: a model comes out, with the bits of `nnx.jit`.

A function that makes a model is run on the state of its arguments and returns the state of its
results, as `nnx.jit` does it, with `jaxinit.jit_init` in place of ``jax.jit``. So generators that
are passed in advance, and what a model shares with its arguments stays shared.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Iterable
from typing import Any, Generic, ParamSpec, TypeVar

import flax.linen as nn
import jax
from flax import nnx

from jaxinit._types import Shardings
from jaxinit.engine import Explanation, jit_init
from jaxinit.planning import flatten, resolve_shardings

P = ParamSpec("P")
R = TypeVar("R")


def nnx_init(
    make: Callable[P, R],
    *,
    out_shardings: Shardings = None,
    static_argnums: int | Iterable[int] = (),
    static_argnames: str | Iterable[str] = (),
    max_live_bytes: int | None = None,
    verify: bool = False,
) -> NnxInit[P, R]:
    """Makes a function that builds an NNX model fast, without changing a bit of the model.

    The result equals that of ``nnx.jit(make)``: same graph, same state, same counters of its
    generators, and an `nnx.Rngs` that is passed in is advanced as far. Sharding metadata hold
    under a mesh, as in Flax.

    Args:
        make: a function that returns a model, or several: a class, or
            ``lambda key: Model(rngs=nnx.Rngs(key))``. It may take keys, numbers, an `nnx.Rngs`,
            models, and static arguments.
        out_shardings: where the leaves of `nnx.state` of the result live: a sharding for all, a
            tree of them matched by canonical path, in which one higher up holds for all below it,
            or a function from the state of shapes to such a tree, as `jaxinit.sharding_rules` and
            `shardings_from_metadata` are.
        static_argnums: positions of arguments that are not arrays, as in ``jax.jit``.
        static_argnames: names of arguments that are not arrays, as in ``jax.jit``.
        max_live_bytes: as in `jaxinit.jit_init`.
        verify: as in `jaxinit.jit_init`.

    Returns:
        A function with the signature of ``make`` that returns a new model.

    Raises:
        TypeError: when ``make`` is no function; from a call, when ``out_shardings`` holds
            something else than shardings.
        ValueError: when ``max_live_bytes`` is negative; from a call, when ``out_shardings`` names a
            path that the state has not, or does not fit a shape.

    Example:
        >>> from flax import nnx
        >>> model = nnx_init(lambda rngs: nnx.Linear(8, 4, rngs=rngs))(nnx.Rngs(0))
        >>> same = nnx.Linear(8, 4, rngs=nnx.Rngs(0))
        >>> bool((model.kernel == same.kernel).all())
        True
    """
    if not callable(make) or isinstance(make, nnx.Module | nn.Module):
        advice = (
            "Use jaxinit.jit_init(module.init) for Linen modules."
            if isinstance(make, nn.Module)
            else "Pass the class, or lambda rngs: Model(..., rngs=rngs)."
        )
        raise TypeError(
            f"nnx_init needs a function that makes an nnx.Module, got {type(make).__name__}. "
            f"{advice}"
        )
    options: dict[str, Any] = {
        "static_argnums": static_argnums,
        "static_argnames": static_argnames,
        "max_live_bytes": max_live_bytes,
        "verify": verify,
    }
    return NnxInit(make, out_shardings, options)


class NnxInit(Generic[P, R]):
    """A fast constructor of NNX models; see `nnx_init`, which makes it."""

    def __init__(
        self, make: Callable[P, R], out_shardings: Shardings, options: dict[str, Any]
    ) -> None:
        functools.update_wrapper(self, make, updated=())
        self._make: Callable[..., R] = make
        self._out_shardings = out_shardings

        # The signature tells which arguments are static.
        @functools.wraps(make, updated=())
        def run(*args: Any, **kwargs: Any) -> Any:
            return self._run(args, kwargs)

        place = None if out_shardings is None else self._place
        self._fast = jit_init(run, out_shardings=place, **options)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Returns what ``nnx.jit(make)`` returns for these arguments; changes what it changes."""
        # By this tag Flax follows an object through four steps: from the caller, into the function,
        # out of it, and back to the caller, whose own objects are then updated.
        with nnx.update_context(self):
            pure_args, pure_kwargs = nnx.to_tree((args, kwargs), ctxtag=self)
            pure = self._fast(*pure_args, **pure_kwargs)
            *_, made = nnx.from_tree(pure, ctxtag=self, is_inner=False)
        return made

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        return self if instance is None else types.MethodType(self, instance)

    def explain(self, *args: P.args, **kwargs: P.kwargs) -> Explanation:
        """Says how a call with these arguments is carried out; see `jaxinit.JitInit.explain`."""
        with nnx.update_context(self):
            pure_args, pure_kwargs = nnx.to_tree((args, kwargs), ctxtag=self)
            return self._fast.explain(*pure_args, **pure_kwargs)

    def _run(self, pure_args: Any, pure_kwargs: Any) -> Any:
        """State of the arguments -> state of the arguments afterwards, and of the results."""
        args, kwargs = nnx.from_tree((pure_args, pure_kwargs), ctxtag=self, is_inner=True)
        made = self._make(*args, **kwargs)
        args, kwargs = jax.tree.map(_if_object, (args, kwargs), is_leaf=_is_object)
        return nnx.to_tree((args, kwargs, made), ctxtag=self)

    def _place(self, pure: Any) -> Any:
        """Shardings of everything that `_run` returns, from those of the model's state."""
        structs, treedef = jax.tree.flatten(pure)
        numbers = jax.tree.unflatten(treedef, list(range(len(structs))))
        # Numbers stand for the arrays: a number found in the model says which array lies there.
        *_, made = nnx.from_tree(numbers)
        flat = flatten("nnx_init", nnx.state(made))
        leaves = {
            path: jax.ShapeDtypeStruct(structs[number].shape, structs[number].dtype)
            for path, number in flat.items()
        }
        wishes = resolve_shardings("nnx_init", leaves, flat.treedef, self._out_shardings)
        chosen = {number: wishes[path] for path, number in flat.items()}
        return jax.tree.unflatten(treedef, [chosen.get(n) for n in range(len(structs))])


def _is_object(value: Any) -> bool:
    return isinstance(value, nnx.Variable) or nnx.graphlib.is_graph_node(value)


def _if_object(value: Any) -> Any:
    """What can have changed; plain values among the arguments are not returned."""
    return value if _is_object(value) else None
