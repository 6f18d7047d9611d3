"""Running a traced program again with fast bits, and with an inverse error function to match.

`FastBits` is the engine's domain of the interpreter. Two equations are replaced: ``random_bits``
gets a key of another type that draws the same words (:mod:`jaxinit.engine._threefry`), and
``erf_inv`` of large arrays becomes its formula, written out here. All other equations are bound
again as they were traced.

Every normal and truncated normal number goes through ``erf_inv``, which costs more than the random
bits. XLA evaluates one formula everywhere (Giles's two polynomials in -log(1 - x**2)), but its
logarithm is a library function of at most eight lanes: jaxlib 0.10 halves its vectors for it, and
every version spends instructions on arguments that a logarithm of 1 - x**2 never has. The same
operations in the same order, in primitives that XLA fuses like any others, take 1.0 ns of a core
where the library takes 3.3 (0.10) or 1.5 (0.12), and 20 ms longer to trace and compile.

The bits of `erf_inv` are those of ``lax.erf_inv`` for every float32. LLVM turns a product and a sum
into one fused operation, which rounds once, so the result depends on which of two products a sum
absorbs: terms stand here in the order and with the signs that LLVM fuses as in the library. The
tests go through all 2**23 numbers that a normal law can draw; all 2**32 were gone through by hand.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias, TypeVar

import jax
import jax.extend.core as jex
import numpy as np
from jax import Array, lax
from jax.lax import add, mul, sub

from jaxinit.engine._threefry import fast_compiler_options
from jaxinit.jaxpr import (
    Graph,
    Node,
    OnArrays,
    Trimmed,
    called,
    graph_of,
    hold,
)

V = TypeVar("V")

# From a threefry key to a key that draws the same bits.
FastKey: TypeAlias = Callable[[Array], Array]

# Coefficients, highest power first. Giles, *Approximating the erfinv function*, 2010, table 5:
# those of w - 2.5 below w = 5, and those of sqrt(w) - 3 from there on.
_CENTRE_AND_TAIL = (
    (2.81022636e-08, -0.000200214257),
    (3.43273939e-07, 0.000100950558),
    (-3.5233877e-06, 0.00134934322),
    (-4.39150654e-06, -0.00367342844),
    (0.00021858087, 0.00573950773),
    (-0.00125372503, -0.0076224613),
    (-0.00417768164, 0.00943887047),
    (0.246640727, 1.00167406),
    (1.50140941, 2.83297682),
)
# Moshier, *Cephes*, log1p (numerator and denominator) and logf.
_RATIO = (
    (4.5270000862e-5, 1.0),
    (4.9854102823e-1, 1.5062909083e1),
    (6.5787325942, 8.3047565968e1),
    (2.9911919328e1, 2.2176239824e2),
    (6.0949667981e1, 3.0909872225e2),
    (5.7112963591e1, 2.1642788614e2),
    (2.0039553499e1, 6.0118660498e1),
)
_LOG = (
    (7.0376836292e-2, -1.1514610310e-1, 1.1676998740e-1),
    (-1.2420140846e-1, 1.4249322787e-1, -1.6668057665e-1),
    (2.0000714765e-1, -2.4999993993e-1, 3.3333331174e-1),
)
_LOG_OF_2 = (-2.12194440e-4, 0.693359375)  # low and high part
_NEAR_ONE = 0.41421356  # 1 - x**2 down to here has the rational function, sqrt(2) - 1
_SQRT_HALF = np.int32(0x3F3504F3)
_EXPONENT = np.int32(-0x800000)
_float = np.float32
_NAN = np.array(0x7FFFFFFF, np.uint32).view(np.float32)[()]
# The arrays of a loop are slices of one, which lives beside them; this bounds it.
_MAX_LOOP_BYTES = 2**28
# Smaller arrays are left to the library: what is compiled for them costs more than is saved.
_MIN_SIZE = 2**20


class FastBits(OnArrays):
    """Binds equations again under a new trace, with fast bits.

    Calls and loops that draw bits are run as graphs of their own, so that the replacement reaches
    the equations inside. So are trimmed scans, which only `graph_of` understands.

    Args:
        fast_key: applied to every threefry key that bits are drawn from; None draws JAX's own.
    """

    def __init__(self, fast_key: FastKey | None = None) -> None:
        self._fast_key = fast_key

    def equation(self, node: Node, operands: list[Any]) -> Sequence[Any]:
        """Binds an equation, or what takes its place."""
        equation, fast_key = node.equation, self._fast_key
        with equation.ctx.manager:
            if self._looks_inside(equation):
                pairs = zip(equation.invars, operands, strict=True)
                return self.run(
                    _inside(equation), [x for atom, x in pairs if not _is_literal(atom)]
                )
            if fast_key is not None and node.primitive == "random_bits":
                if jax.random.key_impl(operands[0]) == "threefry2x32":
                    operands = [fast_key(operands[0])]
            elif fast_key is not None and node.primitive == "erf_inv" and pays_off(operands[0]):
                return [erf_inv(operands[0])]
        return super().equation(node, operands)

    def _looks_inside(self, equation: Any) -> bool:
        """Whether equations inside an equation are bound one by one."""
        name, params = equation.primitive.name, equation.params
        if isinstance(params.get("jaxpr"), Trimmed):
            return True
        if self._fast_key is None or not hold([equation], "random_bits"):
            return False
        # The compiler chooses between platforms by parameters that `jax.lax.switch` does not have.
        is_choice = name == "cond" and not params.get("branches_platforms")
        return is_choice or name in ("scan", "while") or called(equation) is not None


def function_of(graph: Graph, fast_key: FastKey | None = None) -> Callable[..., list[Any]]:
    """A graph as a function of its arguments."""
    return lambda *operands: FastBits(fast_key).run(graph, operands)


def in_loops(members: Sequence[V], nbytes: int) -> Iterator[Sequence[V]]:
    """Members of a group as they are drawn inside a trace, by one loop for each part.

    Args:
        members: what is drawn.
        nbytes: bytes of what each of them draws.
    """
    size = max(1, _MAX_LOOP_BYTES // max(1, nbytes))
    for start in range(0, len(members), size):
        yield members[start : start + size]


def _is_literal(atom: Any) -> bool:
    return isinstance(atom, jex.Literal)


def _inside(equation: Any) -> Graph:
    """One equation as a graph, in which a call is opened and a loop has bodies."""
    inputs = [atom for atom in equation.invars if not _is_literal(atom)]
    return graph_of(
        Trimmed(inputs, equation.outvars, [equation], [], []),
        opens=lambda inner: called(inner) if inner is equation else None,
        has_bodies=lambda inner: inner is equation,
    )


def pays_off(x: Array) -> bool:
    """Whether `erf_inv` takes the place of ``lax.erf_inv`` for an array."""
    return x.dtype == np.float32 and x.size >= _MIN_SIZE and bool(fast_compiler_options())


def erf_inv(x: Array) -> Array:
    """``lax.erf_inv`` of a float32 array, bit for bit on CPUs that fuse products and sums.

    Args:
        x: any numbers.

    Returns:
        The inverse of ``lax.erf``; infinities at -1 and 1, NaN beyond.
    """
    square = mul(x, x)
    w = _minus_log_of_one_minus(square)
    is_central = lax.lt(w, _float(5))
    z = lax.select(is_central, sub(w, _float(2.5)), sub(lax.sqrt(w), _float(3)))
    coefficients = [
        lax.select(is_central, lax.full_like(x, centre), lax.full_like(x, tail))
        for centre, tail in _CENTRE_AND_TAIL
    ]
    ratio = _horner(coefficients, z)
    at_one = lax.eq(square, _float(1))
    outside = lax.select(at_one, lax.full_like(x, np.inf), lax.full_like(x, _NAN))
    return mul(x, lax.select(lax.lt(square, _float(1)), ratio, outside))


def _minus_log_of_one_minus(s: Array) -> Array:
    numerator, denominator = (_alternating(part, s) for part in zip(*_RATIO, strict=True))
    s2 = mul(s, s)
    rest = mul(mul(s, s2), lax.div(numerator, denominator))
    series = add(s, add(mul(s2, _float(0.5)), rest))
    logarithm = _log(sub(_float(1), s))
    return lax.select(lax.lt(s, _float(_NEAR_ONE)), series, lax.neg(logarithm))


def _log(x: Array) -> Array:
    """Natural logarithm of normal positive numbers; anything for others."""
    bits = lax.bitcast_convert_type(x, np.int32)
    above = sub(bits, _SQRT_HALF)
    exponent = lax.convert_element_type(lax.shift_right_arithmetic(above, np.int32(23)), np.float32)
    # x without its exponent, between sqrt(1/2) and sqrt(2), less one.
    mantissa = sub(bits, lax.bitwise_and(above, _EXPONENT))
    v = sub(lax.bitcast_convert_type(mantissa, np.float32), _float(1))
    v2 = mul(v, v)
    v3 = mul(v2, v)
    first, second, third = (_horner(list(map(_float, part)), v) for part in _LOG)
    low, high = (mul(exponent, _float(part)) for part in _LOG_OF_2)
    rest = add(third, mul(add(second, mul(first, v3)), v3))
    rest = add(mul(rest, v3), low)
    return add(add(sub(v, mul(v2, _float(0.5))), rest), high)


def _horner(coefficients: Sequence[Any], x: Array) -> Array:
    value = coefficients[0]
    for coefficient in coefficients[1:]:
        value = add(mul(value, x), coefficient)
    return value


def _alternating(coefficients: Sequence[float], s: Array) -> Array:
    """A polynomial in -s."""
    value: Any = _float(coefficients[0])
    for coefficient in coefficients[1:]:
        value = sub(_float(coefficient), mul(s, value))
    return value
