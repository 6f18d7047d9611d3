"""Any init function as a flat list of steps: traced once, dead code dropped, calls opened.

A model's init computes its whole forward pass on the way; walking from the outputs to what they
are made of leaves that out. Calls of nested functions are opened where they hide more than one
leaf, or the derivation of a key, so that each leaf can be told from the next.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, TypeAlias

import jax
import jax.extend.core as jex

from jaxinit.jaxpr._equations import called, constants_of, inner_jaxprs, live_equations

# A value by its number, or a `jax.extend.core.Literal`.
Atom: TypeAlias = Any

_DERIVES_KEYS = ("random_split", "random_fold_in", "random_seed", "random_wrap")


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Step:
    """One equation, with the numbers of the values that it reads and makes.

    Attributes:
        equation: the equation of the jaxpr it came from.
        inputs: what stands for ``equation.invars``.
        outputs: numbers of the values it makes.
    """

    equation: Any
    inputs: tuple[Atom, ...]
    outputs: tuple[int, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Program:
    """A traced init function.

    Attributes:
        avals: shape, dtype and weak type of every value, by number.
        inputs: numbers of the flat arguments, in order.
        constants: closed-over arrays by number.
        steps: what the outputs need, in an order that can be run.
        outputs: the leaves of the result, in order.
        out_avals: their types.
        producers: index of the step that makes a value.
    """

    avals: list[Any]
    inputs: tuple[int, ...]
    constants: dict[int, Any]
    steps: list[Step]
    outputs: tuple[Atom, ...]
    out_avals: tuple[Any, ...]
    producers: dict[int, int]


def flatten(jaxpr: Any) -> Program:
    """Turns a closed jaxpr into a flat list of live steps.

    Args:
        jaxpr: what ``jax.jit(init_fn).trace(...).jaxpr`` gives.

    Returns:
        The program. Its arguments and results are those of the jaxpr.
    """
    builder = _Builder()
    inputs = tuple(builder.new(variable) for variable in jaxpr.invars)
    outputs = builder.add(jaxpr, inputs, [True] * len(jaxpr.outvars))
    return Program(
        avals=builder.avals,
        inputs=inputs,
        constants=builder.constants,
        steps=builder.steps,
        outputs=tuple(outputs),
        out_avals=tuple(variable.aval for variable in jaxpr.outvars),
        producers={
            number: index for index, step in enumerate(builder.steps) for number in step.outputs
        },
    )


class _Builder:
    def __init__(self) -> None:
        self.avals: list[Any] = []
        self.constants: dict[int, Any] = {}
        self.steps: list[Step] = []
        self._opens: dict[int, tuple[Any, bool]] = {}

    def new(self, variable: Any) -> int:
        self.avals.append(variable.aval)
        return len(self.avals) - 1

    def add(self, jaxpr: Any, operands: Sequence[Atom], wanted: Sequence[bool]) -> list[Any]:
        """Appends the live steps of a jaxpr; returns what stands for its wanted results."""
        numbers: dict[Any, Atom] = dict(zip(jaxpr.invars, operands, strict=True))
        for variable, value in constants_of(jaxpr):
            numbers[variable] = number = self.new(variable)
            self.constants[number] = value

        def read(atom: Any) -> Atom:
            return atom if isinstance(atom, jex.Literal) else numbers[atom]

        for equation, used in live_equations(jaxpr, wanted):
            inputs = [read(atom) for atom in equation.invars]
            inner = self._opened(equation)
            if inner is not None:
                results = self.add(inner, inputs, used)
                pairs = zip(equation.outvars, results, strict=True)
                numbers.update((variable, atom) for variable, atom in pairs if atom is not None)
                continue
            outputs = [self.new(variable) for variable in equation.outvars]
            numbers.update(zip(equation.outvars, outputs, strict=True))
            self.steps.append(Step(equation, tuple(inputs), tuple(outputs)))
        return [
            read(atom) if want else None for atom, want in zip(jaxpr.outvars, wanted, strict=True)
        ]

    def _opened(self, equation: Any) -> Any | None:
        jaxpr = called(equation)
        if jaxpr is None:
            return None
        known = self._opens.get(id(jaxpr))
        if known is None:
            # A call around a single equation, as zeros may come, hides what a leaf is.
            short = len(jaxpr.eqns) <= 1
            opens = short or len(jaxpr.outvars) > 1 or _derives_keys(jaxpr)
            known = self._opens[id(jaxpr)] = (jaxpr, opens)
        return jaxpr if known[1] else None


def _derives_keys(jaxpr: Any) -> bool:
    return any(
        equation.primitive.name in _DERIVES_KEYS or any(map(_derives_keys, inner_jaxprs(equation)))
        for equation in jaxpr.eqns
    )


def as_struct(aval: Any, sharding: Any = None) -> jax.ShapeDtypeStruct:
    """What ``jax.jit(...).lower`` takes in the place of an array of this type."""
    return jax.ShapeDtypeStruct(
        aval.shape, aval.dtype, weak_type=getattr(aval, "weak_type", False), sharding=sharding
    )
