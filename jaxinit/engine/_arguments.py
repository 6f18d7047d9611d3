"""Which arguments of a call are arrays: what ``jax.jit`` does with static arguments, said again."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


class Static:
    """Tells static arguments from others, by position or by name.

    As in ``jax.jit``, a parameter named in one way is static however it is passed, where the
    signature tells the other way.

    Args:
        function: whose arguments they are.
        numbers: positions of static arguments; negative ones count from the last parameter.
        names: names of static arguments.
    """

    def __init__(
        self, function: Callable[..., Any], numbers: Sequence[int], names: Sequence[str]
    ) -> None:
        parameters = _positional_parameters(function)
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


def _positional_parameters(function: Callable[..., Any]) -> list[str]:
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        # Builtins and the like: then positions mean positions and names mean names.
        return []
    return [parameter.name for parameter in parameters if parameter.kind in _POSITIONAL]
