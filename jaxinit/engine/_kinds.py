"""Slices that are the same program share a kind: compiled once, called once per slice.

Two slices are the same when their steps are, one by one: primitive, parameters (nested jaxprs
compared equation by equation), literals, and which step or argument each operand comes from. Where
a value begins on the host it is an argument, so layers that differ in a path, a counter or an index
of a split are the same already; floating-point literals must be equal, because XLA computes with
them while it compiles (measured: `he_normal() * c` with `c` as an argument rounds otherwise in
jax 0.10).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import jax
import jax.extend.core as jex
import numpy as np

from jaxinit.engine import _host as host
from jaxinit.engine._evaluate import Hasten, run_steps
from jaxinit.engine._program import Program
from jaxinit.engine._slices import Slice
from jaxinit.engine._threefry import is_exact
from jaxinit.jaxpr._equations import (
    Trimmed,
    constants_of,
    draws_bits,
    inner_jaxprs,
    is_jaxpr,
    is_key,
)

# Parameters that say how a function is differentiated or called, not what it computes.
_IGNORED = frozenset(
    """
    name jvp_jaxpr_fun fwd_jaxpr_thunk bwd symbolic_zeros num_consts inline keep_unused
    donated_invars
    """.split()
)


class Same:
    """A description compared by content, hashed once."""

    __slots__ = ("_hash", "content")

    def __init__(self, content: Hashable) -> None:
        self.content = content
        self._hash = hash(content)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        return (
            isinstance(other, Same) and self._hash == other._hash and self.content == other.content
        )


class _Identity:
    """Stands for an object that cannot be compared, and keeps it alive: equal to itself alone."""

    __slots__ = ("held",)

    def __init__(self, held: Any) -> None:
        self.held = held

    def __hash__(self) -> int:
        return id(self.held)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Identity) and self.held is other.held


class Describer:
    """Describes equations and jaxprs by content, remembering nested ones."""

    def __init__(self) -> None:
        self._jaxprs: dict[int, tuple[Any, Same]] = {}

    def slice(self, piece: Slice, program: Program) -> Same:
        """Description that two slices share exactly when one program computes both."""
        places: dict[Any, Hashable] = {}
        arguments = []
        for index, atom in enumerate(piece.arguments):
            literal = isinstance(atom, jex.Literal)
            places[id(atom) if literal else (atom,)] = index
            arguments.append(_describe_aval(atom.aval if literal else program.avals[atom]))

        def place(atom: Any) -> Hashable:
            if isinstance(atom, int) and (atom,) in places:
                return places[(atom,)]
            if isinstance(atom, int):
                return ("constant", _hashable_array(program.constants[atom]))
            return places[id(atom)] if id(atom) in places else _describe_literal(atom)

        steps = []
        for index, step in enumerate(piece.steps):
            steps.append((self.equation(step.equation), tuple(map(place, step.inputs))))
            for position, number in enumerate(step.outputs):
                places[(number,)] = (index, position)
        avals = tuple(_describe_aval(program.out_avals[leaf]) for leaf in piece.leaves)
        return Same((tuple(arguments), tuple(steps), tuple(map(place, piece.outputs)), avals))

    def equation(self, equation: Any) -> Hashable:
        """What an equation computes, apart from its operands."""
        parameters = tuple(
            (name, self._value(value))
            for name, value in sorted(equation.params.items(), key=lambda item: item[0])
            if name not in _IGNORED
        )
        outputs = tuple(_describe_aval(variable.aval) for variable in equation.outvars)
        return (equation.primitive, parameters, outputs, _hashable(equation.ctx))

    def _value(self, value: Any) -> Hashable:
        if is_jaxpr(value):
            return self.jaxpr(value)
        if isinstance(value, tuple | list):
            return tuple(map(self._value, value))
        return _hashable(value)

    def jaxpr(self, jaxpr: Any) -> Same:
        """What a jaxpr computes: its equations, with variables numbered in order."""
        known = self._jaxprs.get(id(jaxpr))
        if known is None:
            known = self._jaxprs[id(jaxpr)] = (jaxpr, self._describe(jaxpr))
        return known[1]

    def _describe(self, jaxpr: Any) -> Same:
        numbers: dict[Any, int] = {}

        def define(variables: Sequence[Any]) -> tuple[Hashable, ...]:
            for variable in variables:
                numbers[variable] = len(numbers)
            return tuple(_describe_aval(variable.aval) for variable in variables)

        def read(atom: Any) -> Hashable:
            return _describe_literal(atom) if isinstance(atom, jex.Literal) else numbers[atom]

        constants = constants_of(jaxpr)
        head = (
            define([variable for variable, _ in constants]),
            tuple(_hashable_array(value) for _, value in constants),
            define(jaxpr.invars),
        )
        body = []
        for equation in jaxpr.eqns:
            body.append((self.equation(equation), tuple(map(read, equation.invars))))
            define(equation.outvars)
        return Same((head, tuple(body), tuple(map(read, jaxpr.outvars))))


def _describe_aval(aval: Any) -> Hashable:
    return (
        getattr(aval, "shape", None),
        getattr(aval, "dtype", None),
        getattr(aval, "weak_type", None),
        _hashable(getattr(aval, "sharding", None)),
    )


def _describe_literal(literal: Any) -> Hashable:
    # By bytes: 0.0 and -0.0 are equal numbers and different programs; NaN is not equal to itself.
    return ("literal", _describe_aval(literal.aval), _hashable_array(literal.val))


def _hashable_array(value: Any) -> Hashable:
    if np.ndim(value) == 0 and not isinstance(value, jax.Array):
        array = np.asarray(value)
        return (array.dtype, array.tobytes())
    return _Identity(value)


def _hashable(value: Any) -> Hashable:
    try:
        hash(value)
    except TypeError:
        return _Identity(value)
    return value


@dataclasses.dataclass(frozen=True, eq=False)
class Family:
    """Slices of one description.

    Attributes:
        description: what they have in common.
        members: the slices.
    """

    description: Same
    members: tuple[Slice, ...]


def families(program: Program, slices: Sequence[Slice]) -> list[Family]:
    """Groups slices into families that one compiled program can serve, in order of appearance."""
    describer = Describer()
    found: dict[Same, list[Slice]] = {}
    for piece in slices:
        found.setdefault(describer.slice(piece, program), []).append(piece)
    return [Family(description, tuple(members)) for description, members in found.items()]


def argument_types(program: Program, piece: Slice, on_host: frozenset[int]) -> list[Any]:
    """Types that the program of a slice is compiled for; keys from the host come as words."""
    types = []
    for atom in piece.arguments:
        aval: Any = atom.aval if isinstance(atom, jex.Literal) else program.avals[atom]
        if atom_is_words(program, atom, on_host):
            words = host.words_of(aval)
            types.append(jax.ShapeDtypeStruct((*aval.shape, *words), np.dtype("uint32")))
        else:
            weak = getattr(aval, "weak_type", False)
            types.append(jax.ShapeDtypeStruct(aval.shape, aval.dtype, weak_type=weak))
    return types


def atom_is_words(program: Program, atom: Any, on_host: frozenset[int]) -> bool:
    """Whether an argument is a key that the host hands over as its words."""
    return isinstance(atom, int) and atom in on_host and is_key(program.avals[atom])


def function_of(
    program: Program, piece: Slice, on_host: frozenset[int], hasten: Hasten | None
) -> Callable[..., list[Any]]:
    """The function of a slice: its arguments, in order, to its leaves."""
    wraps = [
        host.implementation_of(program.avals[atom])
        if atom_is_words(program, atom, on_host)
        else None
        for atom in piece.arguments
    ]

    read = {atom for step in piece.steps for atom in step.inputs if isinstance(atom, int)}
    fixed = {n: value for n, value in program.constants.items() if n in read}

    def run(*operands: Any) -> list[Any]:
        arrays = [
            operand if impl is None else jax.random.wrap_key_data(operand, impl=impl)
            for operand, impl in zip(operands, wraps, strict=True)
        ]
        values: dict[int, Any] = dict(fixed)
        returned: dict[int, Any] = {}
        for atom, array in zip(piece.arguments, arrays, strict=True):
            if isinstance(atom, int):
                values[atom] = array
            else:
                returned[id(atom)] = array
        run_steps(piece.steps, values, hasten)
        return [
            values[atom] if isinstance(atom, int) else returned[id(atom)] for atom in piece.outputs
        ]

    return run


def may_hasten(equations: Sequence[Any]) -> bool:
    """Whether equations draw bits that may be fused into what reads them without changing a bit.

    Slices hold no dead code and keep every operation that rounds together, so with JAX's own bits
    they are safe; faster bits make other loops, and not every operation rounds alike in each.
    """
    return any(map(_draws, equations)) and is_exact(Trimmed([], [], list(equations), [], []))


def _draws(equation: Any) -> bool:
    inside = any(map(draws_bits, inner_jaxprs(equation)))
    return equation.primitive.name == "random_bits" or inside


def constant_of(program: Program, piece: Slice) -> Any:
    """The number that fills a leaf, where that is all there is to it; None otherwise."""
    if len(piece.steps) != 1 or len(piece.leaves) != 1:
        return None
    (step,), (leaf,) = piece.steps, piece.leaves
    aval = program.out_avals[leaf]
    if (
        step.equation.primitive.name != "broadcast_in_dim"
        or len(step.inputs) != 1
        or not isinstance(step.inputs[0], jex.Literal)
        or step.equation.params.get("sharding") is not None
        or aval.weak_type
        or is_key(aval)
    ):
        return None
    return np.asarray(step.inputs[0].val).astype(aval.dtype)[()]
