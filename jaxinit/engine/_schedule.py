"""Host steps in the order of their depth, with equal derivations of one depth hashed at once.

A Linen model folds every path into one root: one call of NumPy for all layers. The same order
serves inside somebody else's trace, where a thousand hashes one by one would be a thousand loops to
compile.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxinit.engine import _host as host
from jaxinit.engine._evaluate import run_steps
from jaxinit.engine._program import Step

Values = dict[Any, Any]


class Schedule:
    """What the host computes for one call.

    Args:
        steps: host steps, in an order that can be run.
    """

    def __init__(self, steps: Sequence[Step]) -> None:
        depths: dict[int, int] = {}
        groups: dict[tuple[Any, ...], list[Step]] = {}
        for index, step in enumerate(steps):
            sources = [depths.get(atom, 0) for atom in step.inputs if isinstance(atom, int)]
            depth = 1 + max(sources, default=0)
            depths.update(dict.fromkeys(step.outputs, depth))
            groups.setdefault((depth, *_likeness(step.equation, index)), []).append(step)
        self._groups = [group for _, group in sorted(groups.items(), key=lambda item: item[0][0])]
        self._tasks = [_batch(g) if len(g) > 1 else _single(g[0]) for g in self._groups]

    def run(self, values: Values) -> None:
        """Computes every step in NumPy, from the values of its inputs into those of its outputs."""
        for task in self._tasks:
            task(values)

    def trace(self, values: Values) -> None:
        """Computes every step in JAX, where values are arrays and keys typed keys."""
        for group in self._groups:
            if len(group) > 1:
                _trace_batch(group, values)
            else:
                run_steps(group, values)


def _likeness(equation: Any, index: int) -> tuple[Any, ...]:
    """What steps share that one hash can serve; a number that stands alone for all others."""
    name = equation.primitive.name
    if name in ("random_fold_in", "random_split"):
        aval = equation.invars[0].aval
        if not aval.shape and host.implementation_of(aval) == "threefry2x32":
            return (name, equation.params.get("shape"), hash(equation.ctx))
    return (index,)


def _reader(atom: Any) -> Callable[[Values], Any]:
    if isinstance(atom, int):
        return lambda values: values[atom]
    constant = np.asarray(atom.val, atom.aval.dtype)
    return lambda values: constant


def _single(step: Step) -> Callable[[Values], None]:
    rule, outputs = host.rule_for(step.equation), step.outputs
    readers = [_reader(atom) for atom in step.inputs]
    if not host.has_one_result(step.equation):
        return lambda values: values.update(
            zip(outputs, rule(*[read(values) for read in readers]), strict=True)
        )
    (output,) = outputs

    def run(values: Values) -> None:
        values[output] = rule(*[read(values) for read in readers])

    return run


def _batch(steps: Sequence[Step]) -> Callable[[Values], None]:
    outputs = [step.outputs[0] for step in steps]
    shape = steps[0].equation.params.get("shape")
    keys = [_reader(step.inputs[0]) for step in steps]
    numbers = [_reader(step.inputs[1]) for step in steps if len(step.inputs) > 1]

    def run(values: Values) -> None:
        words = np.stack([read(values) for read in keys])
        if numbers:
            made = host.fold_in(words, np.stack([read(values) for read in numbers]))
        else:
            made = host.split(words, shape)
        values.update(zip(outputs, made, strict=True))

    return run


def _trace_batch(steps: Sequence[Step], values: Values) -> None:
    equation = steps[0].equation
    columns = zip(*[[_reader(atom)(values) for atom in step.inputs] for step in steps], strict=True)
    operands = [jnp.stack(column) for column in columns]
    with equation.ctx.manager:
        made = jax.vmap(lambda *row: equation.primitive.bind(*row, **equation.params))(*operands)
    values.update((step.outputs[0], made[index]) for index, step in enumerate(steps))
