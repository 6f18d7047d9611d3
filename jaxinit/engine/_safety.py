"""Which operations give the same bits wherever they are compiled.

Integers never round, so their bits are the same in every program. Elementwise floating-point
operations are compiled the same way whenever the operations around them are the same, which holds
for the slice of a program that keeps every floating-point operation of a leaf together. Sums,
products of matrices and the like may be split and ordered differently from program to program.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from typing import Any, NamedTuple

from jaxinit.jaxpr._equations import called, inner_jaxprs, is_integral


class Nature(enum.IntEnum):
    """How freely an operation may be moved to another program; the greater, the less."""

    EXACT = 0
    """Moves or compares bits, or computes on integers: the same anywhere, in any company."""
    ELEMENTWISE = 1
    """Rounds entry by entry: the same in any program that holds the same neighbours."""
    BOUND = 2
    """Bits may depend on the whole program, or nothing is known: stays where ``jax.jit`` has it."""


class Verdict(NamedTuple):
    """Nature of an operation, and the name of what decided it when it is bound."""

    nature: Nature
    culprit: str


_MOVES = frozenset(
    """
    bitcast_convert_type broadcast_in_dim complex concatenate copy copy_p dynamic_slice
    dynamic_update_slice empty2 eq eq_to expand_dims gather ge gt imag iota is_finite le le_to lt
    lt_to name ne pad platform_index random_clone random_seed random_split random_fold_in
    random_bits random_wrap random_unwrap real reshape reshard rev rng_bit_generator select_n
    sharding_constraint slice split squeeze stack stop_gradient threefry2x32 transpose unstack
    """.split()
)
# `sort` and `argmax` only compare, `scatter` without a combination only moves. They are not called
# exact, so that leaves that share a result of theirs stay together.
_ROUNDS = frozenset(
    """
    abs acos acosh add and argmax argmin asin asinh atan atan2 atanh bessel_i0e bessel_i1e cbrt
    ceil clamp clz conj convert_element_type cos cosh digamma div erf erf_inv erfc exp exp2
    expm1 floor igamma igamma_grad_a igammac integer_pow lgamma log log1p log2 logistic max min
    mul neg nextafter not one_minus_square optimization_barrier or polygamma polynomial
    population_count pow random_gamma reduce_precision regularized_incomplete_beta rem round
    rsqrt scatter shift_left shift_right_arithmetic shift_right_logical sign sin sinh sort sqrt
    square sub tan tanh xor zeta
    """.split()
)
# Whatever the order of the operands, integers give one result.
_EXACT_ON_INTEGERS = frozenset(
    """
    argmax argmin cummax cummin cumprod cumsum dot_general reduce_and reduce_max reduce_min
    reduce_or reduce_prod reduce_sum reduce_xor scatter_add scatter_max scatter_min scatter_mul
    scatter-add top_k
    """.split()
)
# Calls of a library on operands that lie in memory: nothing around them can reach inside.
# Checked against whole programs in tests/test_jit_init.py.
_CALLS_A_LIBRARY = frozenset({"qr", "geqrf", "householder_product"})
_HOLDS_JAXPRS = frozenset(
    """
    checkpoint closed_call cond custom_jvp_call custom_vjp_call jit remat2 scan while
    """.split()
)


class Judge:
    """Judges equations, remembering nested jaxprs, which JAX shares between equations."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[Any, Verdict]] = {}

    def equation(self, equation: Any) -> Verdict:
        """Nature of one equation, with everything inside it."""
        name = equation.primitive.name
        if equation.effects:
            return Verdict(Nature.BOUND, f"{name} (side effect)")
        if name == "jit" and called(equation) is None:
            return Verdict(Nature.BOUND, "jit with placement or compiler options of its own")
        if name in _HOLDS_JAXPRS:
            return self._worst(self.jaxpr(inner) for inner in inner_jaxprs(equation))
        integral = all(is_integral(atom.aval) for atom in _operands(equation))
        if name in _MOVES or (integral and (name in _ROUNDS or name in _EXACT_ON_INTEGERS)):
            return Verdict(Nature.EXACT, name)
        if name in _ROUNDS or name in _CALLS_A_LIBRARY:
            return Verdict(Nature.ELEMENTWISE, name)
        return Verdict(Nature.BOUND, name)

    def jaxpr(self, jaxpr: Any) -> Verdict:
        """Nature of a jaxpr: that of its least movable equation."""
        known = self._known.get(id(jaxpr))
        if known is None:
            verdict = self._worst(self.equation(equation) for equation in jaxpr.eqns)
            known = self._known[id(jaxpr)] = (jaxpr, verdict)
        return known[1]

    @staticmethod
    def _worst(verdicts: Iterator[Verdict]) -> Verdict:
        return max(verdicts, key=lambda v: v.nature, default=Verdict(Nature.EXACT, ""))


def _operands(equation: Any) -> Iterator[Any]:
    yield from equation.invars
    yield from equation.outvars
