"""Facts about jaxprs and their equations that the graph and the engine ask for.

Everything here goes through ``jax``, ``jax.core`` and ``jax.extend``; where JAX versions store the
same fact in different places, this is the file that knows.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.extend.core as jex
import jax.numpy as jnp
import numpy as np

# Equations that run the one jaxpr among their parameters exactly once, on exactly their operands.
# `remat2` does so only where nothing was differentiated, see `called`.
_CALLS = {
    "jit": "jaxpr",
    "closed_call": "call_jaxpr",
    "remat2": "jaxpr",
    "checkpoint": "jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
}
_PLACEMENT_OF_JIT = ("in_shardings", "out_shardings", "in_layouts", "out_layouts")


class Trimmed(NamedTuple):
    """A jaxpr with less to do: what is left of a loop body when some of its results are unused."""

    invars: list[Any]
    outvars: list[Any]
    eqns: list[Any]
    constvars: list[Any]
    consts: list[Any]


_JAXPRS = (jex.Jaxpr, jex.ClosedJaxpr, Trimmed)


def constants_of(jaxpr: Any) -> list[tuple[Any, Any]]:
    """Variables of a jaxpr that stand for closed-over arrays, with those arrays."""
    values = getattr(jaxpr, "consts", ())
    return list(zip(jaxpr.constvars, values, strict=True)) if jaxpr.constvars else []


def is_jaxpr(value: Any) -> bool:
    """Whether a parameter of an equation is a jaxpr, open or closed."""
    return isinstance(value, _JAXPRS)


def inner_jaxprs(equation: Any) -> Iterator[Any]:
    """Jaxprs among the parameters of an equation that may run on this machine.

    ``jnp.diagonal`` and others carry one branch for each platform; those of Mosaic, which is what
    TPU kernels are written in, say nothing about the program at hand.
    """
    platforms = equation.params.get("branches_platforms")
    for name, value in equation.params.items():
        if is_jaxpr(value):
            yield value
        elif isinstance(value, tuple | list) and value and is_jaxpr(value[0]):
            for index, branch in enumerate(value):
                named = platforms[index] if name == "branches" and platforms else None
                if named is None or tuple(named) != ("mosaic",):
                    yield branch


def every_equation(equations: Iterable[Any]) -> Iterator[Any]:
    """Equations and those inside them.

    Each jaxpr is gone through once: thousands of layers call the same few functions.
    """
    pending = list(equations)
    seen: set[int] = set()
    for equation in pending:
        yield equation
        fresh = [jaxpr for jaxpr in inner_jaxprs(equation) if id(jaxpr) not in seen]
        for jaxpr in fresh:
            seen.add(id(jaxpr))
            pending.extend(jaxpr.eqns)


def hold(equations: Iterable[Any], *names: str) -> bool:
    """Whether a primitive of one of these names appears among equations or inside them."""
    return any(equation.primitive.name in names for equation in every_equation(equations))


@functools.cache
def _plain_jit() -> dict[str, Any]:
    traced = jax.make_jaxpr(jax.jit(lambda x: x + 1))(0.0)
    parameters = traced.eqns[0].params
    return {name: parameters[name][0] for name in _PLACEMENT_OF_JIT}


def called(equation: Any) -> Any | None:
    """Jaxpr that an equation merely calls, so that its equations could stand in its place.

    Returns:
        The jaxpr; None when the equation is no call, or one with wishes of its own: a ``jit`` with
        shardings, layouts or compiler options.
    """
    jaxpr, parameters = opened(equation), equation.params
    if jaxpr is None:
        return None
    name = equation.primitive.name
    if name == "jit":
        plain = _plain_jit()
        if parameters["compiler_options_kvs"] or any(
            placed != plain[field] for field in _PLACEMENT_OF_JIT for placed in parameters[field]
        ):
            return None
    if name in ("remat2", "checkpoint") and parameters["differentiated"]:
        return None
    return jaxpr


def opened(equation: Any) -> Any | None:
    """Jaxpr that an equation runs once on its operands, whatever else it wishes; None elsewhere."""
    jaxpr = equation.params.get(_CALLS.get(equation.primitive.name))
    return jaxpr if jaxpr is not None and len(jaxpr.invars) == len(equation.invars) else None


def counts_of_scan(equation: Any) -> tuple[int, int]:
    """How many constants and carries a ``scan`` equation reads.

    Counted by ranks, because JAX versions keep the counts in different places: what is scanned
    over, and what is stacked, has one axis less inside the loop.
    """
    jaxpr = equation.params["jaxpr"]
    stacked = _longer(equation.outvars, jaxpr.outvars)
    scanned = _longer(equation.invars, jaxpr.invars)
    carries = len(equation.outvars) - stacked
    return len(equation.invars) - scanned - carries, carries


def live_equations(
    jaxpr: Any, wanted: Sequence[bool]
) -> tuple[list[tuple[Any, list[bool]]], set[Any]]:
    """Equations that the wanted results of a jaxpr need, in order.

    Returns:
        Pairs of an equation and which of its own results are used, and all variables that are
        needed. A scan comes without the carries and stacks that nobody reads.
    """
    needed = {
        atom
        for atom, want in zip(jaxpr.outvars, wanted, strict=True)
        if want and not isinstance(atom, jex.Literal)
    }
    kept = []
    for equation in reversed(jaxpr.eqns):
        used = [variable in needed for variable in equation.outvars]
        if not any(used):
            continue
        if equation.primitive.name == "scan" and not all(used) and not equation.effects:
            equation = _trimmed(equation, used)
            used = [variable in needed for variable in equation.outvars]
        kept.append((equation, used))
        needed.update(a for a in equation.invars if not isinstance(a, jex.Literal))
    return kept[::-1], needed


def _trimmed(equation: Any, used: Sequence[bool]) -> Any:
    """The scan that makes only what is used, and the carries that this takes."""
    body = equation.params["jaxpr"]
    constants, carries = counts_of_scan(equation)
    wanted = list(used)
    while True:
        live, needed = live_equations(body, wanted)
        read = [variable in needed for variable in body.invars]
        also = [a or b for a, b in zip(wanted, read[constants:][:carries], strict=False)]
        if also == wanted[:carries]:
            break
        wanted[:carries] = also
    # A carry that is kept must be fed, whether the body reads it or not.
    read[constants : constants + carries] = wanted[:carries]
    kept = Trimmed(
        invars=[v for v, keep in zip(body.invars, read, strict=True) if keep],
        outvars=[v for v, keep in zip(body.outvars, wanted, strict=True) if keep],
        eqns=[inner for inner, _ in live],
        constvars=list(body.constvars),
        consts=[value for _, value in constants_of(body)],
    )
    options = {name: equation.params[name] for name in ("length", "reverse", "unroll")}
    return equation.replace(
        params={**options, "jaxpr": kept},
        invars=[v for v, keep in zip(equation.invars, read, strict=True) if keep],
        outvars=[v for v, keep in zip(equation.outvars, wanted, strict=True) if keep],
    )


def _longer(outside: Sequence[Any], inside: Sequence[Any]) -> int:
    pairs = zip(outside, inside, strict=True)
    return sum(len(out.aval.shape) != len(inner.aval.shape) for out, inner in pairs)


def is_key(aval: Any) -> bool:
    """Whether an abstract value holds typed PRNG keys."""
    return _is_any(aval.dtype, (jax.dtypes.prng_key,))


def is_integral(aval: Any) -> bool:
    """Whether an abstract value holds integers, booleans or keys: no rounding anywhere."""
    dtype = getattr(aval, "dtype", None)
    return dtype is not None and _is_any(dtype, (jax.dtypes.prng_key, np.integer, np.bool_))


@functools.cache
def _is_any(dtype: Any, families: tuple[Any, ...]) -> bool:
    return any(jnp.issubdtype(dtype, family) for family in families)


def size_of(aval: Any) -> int:
    """Entries of an abstract value."""
    return math.prod(aval.shape)


def nbytes_of(aval: Any) -> int:
    """Bytes of an abstract value; a key counts 8 words, the most that JAX's own need."""
    return size_of(aval) * (32 if is_key(aval) else np.dtype(aval.dtype).itemsize)
