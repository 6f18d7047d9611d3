"""Running steps again under a new trace, with faster bits where the keys allow it.

Two equations are replaced: ``random_bits``, by the same equation on a key of another type that
draws the same words (:mod:`jaxinit.engine._threefry`), and ``erf_inv`` of large arrays, by its
formula written out (:mod:`jaxinit.engine._erf_inv`). Everything else is bound again as it was
traced. Calls and loops that draw bits inside are opened or rebuilt, so that the replacement reaches
them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.extend.core as jex

from jaxinit.engine._erf_inv import erf_inv, pays_off
from jaxinit.engine._program import Step
from jaxinit.jaxpr._equations import (
    Trimmed,
    called,
    constants_of,
    draws_bits,
    inner_jaxprs,
    scan_of,
)

# Takes a key array, gives one that draws the same bits.
Hasten = Callable[[jax.Array], jax.Array]


def run_steps(steps: Sequence[Step], values: dict[int, Any], hasten: Hasten | None = None) -> None:
    """Runs steps in order, from the values of their inputs into those of their outputs.

    Args:
        steps: what to run.
        values: arrays by number; what the steps make is added.
        hasten: applied to every threefry key that bits are drawn from; None leaves everything as
            it was traced.
    """
    for step in steps:
        operands = [
            values[atom] if isinstance(atom, int) else _constant(atom) for atom in step.inputs
        ]
        values.update(zip(step.outputs, _bind(step.equation, operands, hasten), strict=True))


def run_jaxpr(jaxpr: Any, operands: Sequence[Any], hasten: Hasten | None = None) -> list[Any]:
    """Runs a jaxpr on arrays, like ``jax.core.eval_jaxpr``."""
    values: dict[Any, Any] = dict(constants_of(jaxpr))
    values.update(zip(jaxpr.invars, operands, strict=True))

    def read(atom: Any) -> Any:
        return _constant(atom) if isinstance(atom, jex.Literal) else values[atom]

    for equation in jaxpr.eqns:
        results = _bind(equation, [read(atom) for atom in equation.invars], hasten)
        values.update(zip(equation.outvars, results, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _constant(literal: jex.Literal) -> Any:
    return literal.val


def _bind(equation: Any, operands: Sequence[Any], hasten: Hasten | None) -> Sequence[Any]:
    with equation.ctx.manager:
        if hasten is not None or isinstance(equation.params.get("jaxpr"), Trimmed):
            results = _bind_faster(equation, operands, hasten)
            if results is not None:
                return results
        parameters = equation.primitive.get_bind_params(equation.params)
        results = equation.primitive.bind(*operands, **parameters)
    return results if equation.primitive.multiple_results else [results]


def _bind_faster(
    equation: Any, operands: Sequence[Any], hasten: Hasten | None
) -> Sequence[Any] | None:
    """Results computed faster; None where the equation is to be bound as it is."""
    name, parameters = equation.primitive.name, equation.params
    if name == "random_bits":
        if hasten is None or jax.random.key_impl(operands[0]) != "threefry2x32":
            return None
        return [equation.primitive.bind(hasten(operands[0]), **parameters)]
    if name == "erf_inv":
        return [erf_inv(operands[0])] if hasten is not None and pays_off(operands[0]) else None
    trimmed = name == "scan" and isinstance(parameters["jaxpr"], Trimmed)
    if not trimmed and not any(map(draws_bits, inner_jaxprs(equation))):
        return None
    inner = called(equation)
    if inner is not None:
        return run_jaxpr(inner, operands, hasten)
    rebuild = {"scan": _scan, "while": _while, "cond": _cond}.get(name)
    return rebuild(equation, operands, hasten) if rebuild else None


def _scan(equation: Any, operands: Sequence[Any], hasten: Hasten | None) -> Sequence[Any]:
    constants, carries = scan_of(equation)
    parameters = equation.params
    fixed = list(operands[:constants])

    def body(carry: list[Any], scanned: list[Any]) -> tuple[list[Any], list[Any]]:
        results = run_jaxpr(parameters["jaxpr"], [*fixed, *carry, *scanned], hasten)
        return results[:carries], results[carries:]

    carry, stacked = jax.lax.scan(
        body,
        list(operands[constants : constants + carries]),
        list(operands[constants + carries :]),
        length=parameters["length"],
        reverse=parameters["reverse"],
        unroll=parameters["unroll"],
    )
    return [*carry, *stacked]


def _while(equation: Any, operands: Sequence[Any], hasten: Hasten | None) -> Sequence[Any]:
    parameters = equation.params
    of_test, of_body = parameters["cond_nconsts"], parameters["body_nconsts"]
    test_constants = list(operands[:of_test])
    body_constants = list(operands[of_test : of_test + of_body])
    return jax.lax.while_loop(
        lambda carry: run_jaxpr(parameters["cond_jaxpr"], [*test_constants, *carry], hasten)[0],
        lambda carry: run_jaxpr(parameters["body_jaxpr"], [*body_constants, *carry], hasten),
        list(operands[of_test + of_body :]),
    )


def _cond(equation: Any, operands: Sequence[Any], hasten: Hasten | None) -> Sequence[Any] | None:
    branches = equation.params["branches"]
    # A choice between platforms is made by the compiler, from parameters that `switch` has not.
    if equation.params.get("branches_platforms"):
        return None
    index, *others = operands
    return jax.lax.switch(
        index, [lambda *a, b=branch: run_jaxpr(b, a, hasten) for branch in branches], *others
    )
