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
import inspect
import time
import types
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from typing import Any, Generic, NamedTuple, ParamSpec, TypeVar

import jax
import numpy as np
from jax.core import Tracer

from jaxinit.engine._assembly import Assembly, Explanation
from jaxinit.engine._compile import check_bound, setting, settings
from jaxinit.engine._placement import commitment, is_sharding_function, shardings_of, spread
from jaxinit.engine._slices import as_struct
from jaxinit.engine._traced_init import TracedInit

P = ParamSpec("P")
R = TypeVar("R")

# Traces that a `JitInit` keeps; arguments of other types, and other settings, make another trace.
_MAX_TRACES = 16
_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


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
            with None where JAX decides. Or a function that makes such a tree from the shapes of
            the result, such as `jaxinit.sharding_rules`; it is called once per trace.
        static_argnums: positions of arguments that are not arrays, as in ``jax.jit``.
        static_argnames: names of arguments that are not arrays, as in ``jax.jit``.
        max_live_bytes: memory in bytes that may be in use beside the finished leaves; by default as
            much as the largest leaf has, and at least 1 MiB. A leaf that needs more is made alone.
        verify: whether the first call also makes the first and the last leaf of every program by
            plain ``jax.jit``, and compares.

    Returns:
        A function with the signature of ``init_fn``. Under a transformation of JAX it is traced
        like any other function, with one loop for each group of leaves.

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
        >>> note, = fast.explain(key).programs
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


class _Static:
    """Tells static arguments from others, by position or by name, as ``jax.jit`` does.

    A parameter that is named in one way only is static however it is passed, where the signature
    tells the other way.

    Args:
        function: whose arguments they are.
        numbers: positions of static arguments; negative ones count from the last parameter.
        names: names of static arguments.
    """

    def __init__(
        self, function: Callable[..., Any], numbers: Sequence[int], names: Sequence[str]
    ) -> None:
        try:
            signature = inspect.signature(function).parameters.values()
        except (TypeError, ValueError):
            signature = ()  # A builtin: its positions have no names.
        parameters = [parameter.name for parameter in signature if parameter.kind in _POSITIONAL]
        count = len(parameters)
        self._numbers = {n + count if n < 0 else n for n in numbers}
        self._names = set(names)
        if numbers and not names:
            self._names = {parameters[n] for n in self._numbers if n < count}
        elif names and not numbers:
            self._numbers = {n for n, name in enumerate(parameters) if name in self._names}

    def flatten(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Any]:
        """Leaves of everything that is not static, in the order of the traced function."""
        dynamic = [value for n, value in enumerate(args) if n not in self._numbers]
        named = {name: value for name, value in kwargs.items() if name not in self._names}
        return jax.tree.leaves((dynamic, named))


class _Signature(NamedTuple):
    """What is known of calls whose arguments have the same types, under the same settings.

    Attributes:
        traced: the traced function.
        whole: the function under plain ``jax.jit``.
        out_tree: structure of the result.
        asked: sharding that the caller asks for, leaf by leaf.
        assemblies: by settings and by the devices of the arguments.
        seconds: time by phase.
    """

    traced: TracedInit
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
        # Without the attributes of `init_fn`: those of a class would hide ours.
        functools.update_wrapper(self, init_fn, updated=())
        numbers = (static_argnums,) if isinstance(static_argnums, int) else tuple(static_argnums)
        names = (static_argnames,) if isinstance(static_argnames, str) else tuple(static_argnames)
        self._init_fn = init_fn
        # None, and not an empty tuple, where only the other is given: JAX infers a None.
        self._options: dict[str, Any] = {
            "static_argnums": numbers or None,
            "static_argnames": names or None,
        }
        self._static = _Static(init_fn, numbers, names)
        self._asks_function = is_sharding_function(out_shardings)
        # A function of shapes gives shardings after the first trace.
        self._whole = self._jitted(None if self._asks_function else out_shardings)
        self._grouped = jax.jit(self._inline, **self._options)
        self._out_shardings = out_shardings
        self._max_live_bytes = max_live_bytes
        self._verify = verify
        self._known: collections.OrderedDict[int, _Signature] = collections.OrderedDict()

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Returns what ``jax.jit(init_fn)`` returns for these arguments."""
        flat = self._static.flatten(args, kwargs)
        if _is_traced(flat):
            # An inner jit cannot express `out_shardings`, so this case runs the whole function.
            grouped = self._out_shardings is None and setting("jax_threefry_partitionable")
            return (self._grouped if grouped else self._whole_for(args, kwargs))(*args, **kwargs)
        # Without partitionable counters the bits of an array depend on what shards it.
        if not setting("jax_threefry_partitionable") or setting("jax_disable_jit"):
            return self._whole_for(args, kwargs)(*args, **kwargs)
        # The collector stays off until the call returns; it then runs once.
        with _no_collection():
            return self._carry_out(args, kwargs, flat)

    def _carry_out(self, args: Any, kwargs: Any, flat: list[Any]) -> Any:
        signature = self._trace(args, kwargs)
        if signature.traced.has_effects:
            return signature.whole(*args, **kwargs)
        assembly = self._assembly(signature, flat)
        is_first_call = assembly.run_seconds is None
        leaves = assembly.fill(flat, self._max_live_bytes)
        if self._verify and is_first_call:
            assembly.verify(flat, leaves, signature.out_tree)
        return jax.tree.unflatten(signature.out_tree, leaves)

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        return self if instance is None else types.MethodType(self, instance)

    def explain(self, *args: P.args, **kwargs: P.kwargs) -> Explanation:
        """Says how a call with these arguments is carried out; compiles, but draws nothing.

        Args:
            *args: arguments of the init function, or ``jax.ShapeDtypeStruct`` in their place.
            **kwargs: likewise.

        Returns:
            A record of programs, of leaves that fall back and why, of bytes and seconds, which
            prints as a table.
        """
        signature = self._trace(args, kwargs)
        assembly = self._assembly(signature, self._static.flatten(args, kwargs))
        return assembly.explain(signature.out_tree, self._max_live_bytes, signature.seconds)

    def _jitted(self, out_shardings: Any) -> Any:
        return jax.jit(self._init_fn, out_shardings=out_shardings, **self._options)

    def _whole_for(self, args: Any, kwargs: Any) -> Any:
        """The function under plain ``jax.jit``, with the shardings of these arguments' result."""
        # Without jit there are no shardings to ask for.
        if not self._asks_function or setting("jax_disable_jit"):
            return self._whole
        return self._trace(args, kwargs).whole

    def _trace(self, args: Any, kwargs: Any) -> _Signature:
        start = time.perf_counter()
        with _no_collection():
            # JAX keeps traces, by function, argument types and settings, and hands out the same
            # jaxpr again: so a second call traces exactly when `jax.jit` would.
            whole = self._whole.trace(*args, **kwargs)
            known = self._known.get(id(whole.jaxpr))
            if known is None:
                seconds = {"trace": time.perf_counter() - start}
                start = time.perf_counter()
                traced = TracedInit(whole.jaxpr)
                seconds["slice"] = time.perf_counter() - start
                shardings, jitted = self._out_shardings, self._whole
                if self._asks_function:
                    abstract = jax.tree.map(as_struct, whole.out_info)
                    shardings = shardings_of("jit_init", shardings, abstract)
                    jitted = self._jitted(shardings)
                asked = spread(shardings, whole.out_info)
                out_tree = jax.tree.structure(whole.out_info)
                known = _Signature(traced, jitted, out_tree, asked, {}, seconds)
                self._known[id(whole.jaxpr)] = known
                if len(self._known) > _MAX_TRACES:
                    self._known.popitem(last=False)
        return known

    def _assembly(self, signature: _Signature, flat: list[Any]) -> Assembly:
        traced = signature.traced
        places = tuple(commitment(flat[position]) for position in traced.live_inputs)
        key = (settings(), places)
        if key not in signature.assemblies:
            signature.assemblies[key] = Assembly(traced, flat, signature.asked)
        return signature.assemblies[key]

    def _inline(self, *args: Any, **kwargs: Any) -> Any:
        """The function as it appears in the trace of another."""
        signature = self._trace(args, kwargs)
        traced = signature.traced
        if traced.has_effects or not traced.can_inline():
            return self._whole(*args, **kwargs)
        leaves = traced.inline(self._static.flatten(args, kwargs))
        return jax.tree.unflatten(signature.out_tree, leaves)


@contextlib.contextmanager
def _no_collection() -> Generator[None]:
    """Turns Python's collector of cyclic garbage off.

    A trace makes millions of objects that all live on. The collector, going through them again and
    again, took 30 % of the time that 10,000 layers take to trace and to slice.
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
