"""`jit_init`: what ``jax.jit`` makes of an init function, in a fraction of the time.

``jax.jit(model.init)`` compiles one program that holds the initializer of every layer again and
again. Here the function is traced once and cut into one small program per leaf; leaves that differ
in their key alone share a program, which is compiled once and called for each of them.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import gc
import time
import types
from collections.abc import Callable, Generator, Iterable
from typing import Any, Generic, NamedTuple, ParamSpec, TypeVar

import jax
import numpy as np
from jax.core import Tracer

from jaxinit.engine._arguments import Static
from jaxinit.engine._assembly import Assembly
from jaxinit.engine._compile import check_bound, setting, settings
from jaxinit.engine._explain import Explanation, explain
from jaxinit.engine._inline import can_inline, inline
from jaxinit.engine._placement import (
    commitment,
    is_sharding_function,
    shardings_of,
    spread,
)
from jaxinit.engine._program import as_struct
from jaxinit.engine._recipe import Recipe
from jaxinit.engine._verify import verify_bits

P = ParamSpec("P")
R = TypeVar("R")

# Recipes of this many traces are kept; each is a trace of its own of the same function.
_MAX_RECIPES = 16


def jit_init(
    init_fn: Callable[P, R],
    *,
    out_shardings: Any = None,
    static_argnums: int | Iterable[int] = (),
    static_argnames: str | Iterable[str] = (),
    max_live_bytes: int | None = None,
    verify: bool = False,
) -> JitInit[P, R]:
    """Makes an init function fast without changing a bit of what it returns.

    The result equals that of ``jax.jit(init_fn)``: same tree, shapes, dtypes, weak types, shardings
    and bits. Leaves that cannot be made apart without risking a bit (sums, products of matrices,
    callbacks, whatever is not known to be safe) are made together by ``jax.jit``; `JitInit.explain`
    says which and why.

    Args:
        init_fn: any function that JAX can trace, from keys and other arguments to a tree of arrays:
            ``model.init`` of Flax or Haiku, a constructor, ``lambda key: opt.init(init(key))``.
        out_shardings: where leaves go, as in ``jax.jit``: a sharding, or a tree or prefix of them,
            with None where JAX shall decide. Or a function that makes such a tree from the shapes
            of the result, such as `jaxinit.sharding_rules`; it is called once per trace.
        static_argnums: positions of arguments that are not arrays, as in ``jax.jit``.
        static_argnames: names of arguments that are not arrays, as in ``jax.jit``.
        max_live_bytes: memory in bytes that may be in use beside the finished leaves; by default as
            much as the largest leaf has, and at least 1 MiB. A leaf that needs more is made alone.
        verify: whether to make the first and the last leaf of every kind by plain ``jax.jit`` as
            well, on the first call, and compare.

    Returns:
        A function with the signature of ``init_fn``. Under a transformation of JAX it is traced
        like any other function, with one loop for the leaves of a kind.

    Raises:
        TypeError: when ``init_fn`` cannot be called; from a call, when a function in
            ``out_shardings`` returns something else than shardings.
        ValueError: when ``max_live_bytes`` is negative; from a call, when a function in
            ``out_shardings`` returns another tree.

    Example:
        >>> def init(key):
        ...     keys = jax.random.split(key, 12)
        ...     return [jax.random.normal(k, (64, 64)) * 0.02 for k in keys]
        >>> fast = jit_init(init)
        >>> key = jax.random.key(0)
        >>> pairs = zip(fast(key), jax.jit(init)(key), strict=True)
        >>> all((ours == theirs).all() for ours, theirs in pairs)
        True
        >>> note, = fast.explain(key).kinds
        >>> note.leaves, note.types
        (12, 'float32[64,64]')
    """
    if not callable(init_fn):
        raise TypeError(
            f"jit_init needs a function, got {type(init_fn).__name__}: {init_fn!r}. "
            "Pass model.init, not model.init(key)."
        )
    check_bound("jit_init", max_live_bytes)
    return JitInit(init_fn, out_shardings, static_argnums, static_argnames, max_live_bytes, verify)


class _Traced(NamedTuple):
    recipe: Recipe
    whole: Any
    out_tree: Any
    asked: list[Any]
    assemblies: dict[Any, Assembly]
    seconds: dict[str, float]


class JitInit(Generic[P, R]):
    """A fast init function; see `jit_init`, which makes it."""

    def __init__(
        self,
        init_fn: Callable[P, R],
        out_shardings: Any,
        static_argnums: int | Iterable[int],
        static_argnames: str | Iterable[str],
        max_live_bytes: int | None,
        verify: bool,
    ) -> None:
        # Not its attributes: those of a class would hide ours.
        functools.update_wrapper(self, init_fn, updated=())
        numbers = (static_argnums,) if isinstance(static_argnums, int) else tuple(static_argnums)
        names = (static_argnames,) if isinstance(static_argnames, str) else tuple(static_argnames)
        self._init_fn = init_fn
        # None, and not an empty tuple, where only the other is given: then JAX infers it.
        self._options: dict[str, Any] = {
            "static_argnums": numbers or None,
            "static_argnames": names or None,
        }
        self._static = Static(init_fn, numbers, names)
        self._asks_function = is_sharding_function(out_shardings)
        # Of a function of shapes nothing is known before the first trace.
        self._whole = self._jitted(None if self._asks_function else out_shardings)
        self._grouped = jax.jit(self._inline, **self._options)
        self._out_shardings = out_shardings
        self._max_live_bytes = max_live_bytes
        self._verify = verify
        self._known: collections.OrderedDict[int, _Traced] = collections.OrderedDict()

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Returns what ``jax.jit(init_fn)`` returns for these arguments."""
        flat = self._static.flatten(args, kwargs)
        if _is_traced(flat):
            # Where an inner jit shall put its result is a wish that only the whole can express.
            grouped = self._out_shardings is None and setting("jax_threefry_partitionable")
            return (self._grouped if grouped else self._whole_for(args, kwargs))(*args, **kwargs)
        # Without partitionable counters the bits of an array depend on what shards it.
        if not setting("jax_threefry_partitionable") or setting("jax_disable_jit"):
            return self._whole_for(args, kwargs)(*args, **kwargs)
        # Up to the end: what was held back is made up for at once.
        with _no_collection():
            return self._carry_out(args, kwargs, flat)

    def _carry_out(self, args: Any, kwargs: Any, flat: list[Any]) -> Any:
        traced = self._trace(args, kwargs)
        if traced.recipe.has_effects:
            return traced.whole(*args, **kwargs)
        assembly = self._assembly(traced, flat)
        start = time.perf_counter()
        first_call = "run" not in assembly.seconds
        leaves = assembly.fill(flat, self._max_live_bytes)
        assembly.seconds["run"] = time.perf_counter() - start
        if self._verify and first_call:
            verify_bits(assembly, flat, leaves, traced.out_tree)
        return jax.tree.unflatten(traced.out_tree, leaves)

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        return self if instance is None else types.MethodType(self, instance)

    def explain(self, *args: P.args, **kwargs: P.kwargs) -> Explanation:
        """Says how a call with these arguments is carried out; compiles, but draws nothing.

        Args:
            *args: arguments of the init function, or ``jax.ShapeDtypeStruct`` in their place.
            **kwargs: likewise.

        Returns:
            A record of kinds, of leaves that fall back and why, of bytes and seconds, which prints
            as a table.
        """
        traced = self._trace(args, kwargs)
        assembly = self._assembly(traced, self._static.flatten(args, kwargs))
        for _ in assembly.ready():
            pass
        seconds = {**traced.seconds, **assembly.seconds}
        return explain(assembly, traced.out_tree, self._max_live_bytes, seconds)

    def _jitted(self, out_shardings: Any) -> Any:
        if out_shardings is None:
            return jax.jit(self._init_fn, **self._options)
        return jax.jit(self._init_fn, out_shardings=out_shardings, **self._options)

    def _whole_for(self, args: Any, kwargs: Any) -> Any:
        """The function under plain ``jax.jit``, with the shardings of these arguments' result."""
        # Without jit there is nothing that would heed them.
        if not self._asks_function or setting("jax_disable_jit"):
            return self._whole
        return self._trace(args, kwargs).whole

    def _trace(self, args: Any, kwargs: Any) -> _Traced:
        start = time.perf_counter()
        with _no_collection():
            # JAX keeps traces, by function, argument types and settings, and hands out the same
            # jaxpr again: so a second call traces exactly when `jax.jit` would.
            whole = self._whole.trace(*args, **kwargs)
            known = self._known.get(id(whole.jaxpr))
            if known is None:
                seconds = {"trace": time.perf_counter() - start}
                recipe = Recipe(whole.jaxpr)
                seconds["slice"] = recipe.seconds
                known = self._with_shardings(recipe, whole.out_info, seconds)
                self._known[id(whole.jaxpr)] = known
                if len(self._known) > _MAX_RECIPES:
                    self._known.popitem(last=False)
        return known

    def _with_shardings(self, recipe: Recipe, out_info: Any, seconds: Any) -> _Traced:
        shardings, whole = self._out_shardings, self._whole
        if self._asks_function:
            abstract = jax.tree.map(as_struct, out_info)
            shardings = shardings_of("jit_init", self._out_shardings, abstract)
            whole = self._jitted(shardings)
        asked = spread(shardings, out_info)
        return _Traced(recipe, whole, jax.tree.structure(out_info), asked, {}, seconds)

    def _assembly(self, traced: _Traced, flat: list[Any]) -> Assembly:
        recipe = traced.recipe
        places = tuple(commitment(flat[position]) for position in recipe.live_inputs)
        key = (settings(), places)
        assembly = traced.assemblies.get(key)
        if assembly is None:
            assembly = traced.assemblies[key] = Assembly(recipe, flat, traced.asked)
        return assembly

    def _inline(self, *args: Any, **kwargs: Any) -> Any:
        """The function as it appears in the trace of another."""
        traced = self._trace(args, kwargs)
        flat = self._static.flatten(args, kwargs)
        if traced.recipe.has_effects or not can_inline(traced.recipe):
            return self._whole(*args, **kwargs)
        return jax.tree.unflatten(traced.out_tree, inline(traced.recipe, flat))


@contextlib.contextmanager
def _no_collection() -> Generator[None]:
    """Holds the collector of Python's cyclic garbage back.

    A trace makes millions of objects that all live on, and going through them again and again took
    30 % of the time that 10,000 layers take to trace and to slice.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _is_traced(flat: list[Any]) -> bool:
    """Whether a call happens inside a trace of JAX."""
    if any(isinstance(leaf, Tracer) for leaf in flat):
        return True
    arrays = any(isinstance(leaf, jax.Array | np.ndarray) for leaf in flat)
    # Without arrays among the arguments only JAX itself can tell.
    return not arrays and isinstance(jax.lax.full((), 0), Tracer)
