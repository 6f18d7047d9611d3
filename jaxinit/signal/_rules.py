"""What applies a rule: constants are computed, signals follow the rule of their primitive.

A rule is a function ``(tape, node, operands, aval) -> result`` that is attached to a primitive, or
to a class of primitives, by the decorator `rules`. It returns one value, or a list of values where
the equation has several results; ``aval`` is shape and dtype of the first. It is asked where an
operand is a signal, or where integers of the data make real numbers. Where a rule returns
None, and where there is no rule, the result is unknown: the interval from 0 to infinity, until a
normalisation makes it known again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from jaxinit.jaxpr import Class, Node, Rules, bind, is_key, is_of
from jaxinit.signal._tape import Constant, Discrete, Made, Signal, Tape, Value, either, reason

Aval: TypeAlias = jax.ShapeDtypeStruct
Result: TypeAlias = Value | list[Value] | None
Rule: TypeAlias = Callable[[Tape, Node, Sequence[Value], Aval], Result]
_OfSignal: TypeAlias = Callable[[Tape, Node, Signal, Aval], Result]

rules: Rules[Rule] = Rules("signal")


def of_signal(*names: str) -> Callable[[_OfSignal], _OfSignal]:
    """A decorator that makes ``(tape, node, signal, aval) -> result`` the rule of primitives.

    The signal is the first operand; where that is none, the result is unknown.
    """

    def add(rule: _OfSignal) -> _OfSignal:
        def of_first(tape: Tape, node: Node, operands: Sequence[Value], aval: Aval) -> Result:
            first = operands[0]
            return rule(tape, node, first, aval) if isinstance(first, Signal) else None

        rules(*names)(of_first)
        return rule

    return add


COMPLEX = "complex numbers are not followed"
# Entries of a constant array that is worth computing, such as a mask of 4,096 positions.
_MOST_CONSTANT = 2**24


def apply(tape: Tape, node: Node, operands: Sequence[Value], avals: Sequence[Aval]) -> list[Value]:
    """Results of a node without bodies.

    Args:
        tape: where signals are made.
        node: the equation.
        operands: what it reads.
        avals: shape and dtype of its results.
    """
    found: Result = None
    if all(isinstance(x, Constant) for x in operands):
        found = _computed(node, operands, avals)
    elif any(isinstance(x, Signal) for x in operands) or is_float(avals[0]):
        rule = None if _is_complex(node) else rules.get(node.primitive)
        found = None if rule is None else rule(tape, node, operands, avals[0])
    if found is None:
        why = reason(operands) or _why_not(node, operands)
        missing = [unknown(tape, why, aval, operands) for aval in avals]
        if is_of(node.primitive, Class.CONTRACTS) and isinstance(missing[0], Signal):
            tape.layer(missing[0], operands[:2])
        return missing
    results = found if isinstance(found, list) else [found]
    _remember(tape, node, operands, avals[0], results)
    return results


def unknown(tape: Tape, why: str, aval: Aval, operands: Iterable[Value] = ()) -> Value:
    """A result of which nothing is known."""
    if is_key(aval) or not jnp.issubdtype(aval.dtype, np.inexact):
        return Discrete(tuple(aval.shape))
    return tape.unknown(why, aval.shape, operands)


def one_of(tape: Tape, cases: Sequence[Value], aval: Aval) -> Value:
    """One of several values, nobody knows which."""
    followed = is_float(aval) or any(isinstance(x, Signal) for x in cases)
    if not followed or any(isinstance(x, Discrete) for x in cases):
        return Discrete(tuple(aval.shape))
    return either(tape, cases, aval.shape)


def is_float(aval: Any) -> bool:
    """Whether an array holds real numbers."""
    return jnp.issubdtype(aval.dtype, np.floating)


def _is_complex(node: Node) -> bool:
    avals = [*node.operand_avals, *(made.aval for made in node.equation.outvars)]
    return any(not is_key(a) and jnp.issubdtype(a.dtype, np.complexfloating) for a in avals)


def _why_not(node: Node, operands: Sequence[Value]) -> str:
    if all(isinstance(x, Constant) for x in operands):
        return f"{node.primitive} of constants, which are too many to compute"
    if _is_complex(node):
        return COMPLEX
    known = node.primitive in rules
    return f"{node.primitive} of integers of the data" if known else f"no rule for {node.primitive}"


def _computed(node: Node, operands: Sequence[Value], avals: Sequence[Aval]) -> list[Value] | None:
    """Results that depend neither on parameters nor on data; None where that is not worth it."""
    if any(math.prod(a.shape) > _MOST_CONSTANT or is_key(a) for a in avals):
        return None
    arrays = [x.array for x in operands if isinstance(x, Constant)]
    if node.primitive == "broadcast_in_dim":
        return [Constant(broadcast(arrays[0], node))]
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        return [
            Constant(np.asarray(x)) for x in bind(node.equation, [jnp.asarray(a) for a in arrays])
        ]


def broadcast(array: np.ndarray, node: Node) -> np.ndarray:
    """What ``broadcast_in_dim`` makes of an array: a view, so that a mask of all heads is small."""
    shape = [1] * len(node.params["shape"])
    for axis, place in enumerate(node.params["broadcast_dimensions"]):
        shape[place] = array.shape[axis]
    return np.broadcast_to(array.reshape(shape), node.params["shape"])


def _keeps_places(node: Node, signal: Signal, aval: Aval) -> bool:
    """Whether a slice of the result is made of a slice of the operand.

    It is where no entry is left out and none is put beside the others.
    """
    if is_of(node.primitive, Class.ELEMENTWISE) or node.primitive == "broadcast_in_dim":
        return True
    return is_of(node.primitive, Class.REARRANGES) and signal.size == math.prod(aval.shape)


def _remember(
    tape: Tape, node: Node, operands: Sequence[Value], aval: Aval, results: Sequence[Value]
) -> None:
    """Notes how a signal was made of a stacked one, so that slices of it find the stack."""
    signals = [x for x in operands if isinstance(x, Signal)]
    if len(signals) != 1 or not _keeps_places(node, signals[0], aval):
        return
    if signals[0].number in tape.origins and len(results) == 1 and isinstance(results[0], Signal):
        tape.origins.setdefault(results[0].number, Made(node, tuple(operands), aval))
