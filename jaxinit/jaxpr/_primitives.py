"""Primitives that work entry by entry, and what they compute, in NumPy.

A reading evaluates small programs of them to find out which activation they are and which numbers
a model scales with. NumPy does it in float64, on the host, without compiling anything.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

_erf = np.vectorize(math.erf, otypes=[float])
_erfc = np.vectorize(math.erfc, otypes=[float])


def _select(which: Any, *cases: Any) -> Any:
    return np.choose(np.asarray(which).astype(int), cases)


def _divide(a: Any, b: Any) -> Any:
    a, b = np.asarray(a), np.asarray(b)
    whole = a.dtype.kind in "iu" and b.dtype.kind in "iu"
    return np.floor_divide(a, b) if whole else np.divide(a, b)


def _logistic(x: Any) -> Any:
    return 1 / (1 + np.exp(-np.asarray(x, float)))


_PLAIN: dict[str, Callable[..., Any]] = {
    "abs": np.abs,
    "acos": np.arccos,
    "acosh": np.arccosh,
    "add": np.add,
    "add_any": np.add,
    "and": np.logical_and,
    "asin": np.arcsin,
    "asinh": np.arcsinh,
    "atan": np.arctan,
    "atan2": np.arctan2,
    "atanh": np.arctanh,
    "cbrt": np.cbrt,
    "ceil": np.ceil,
    "clamp": lambda low, x, high: np.clip(x, low, high),
    "cos": np.cos,
    "cosh": np.cosh,
    "div": _divide,
    "eq": np.equal,
    "erf": _erf,
    "erfc": _erfc,
    "exp": np.exp,
    "exp2": np.exp2,
    "expm1": np.expm1,
    "floor": np.floor,
    "ge": np.greater_equal,
    "gt": np.greater,
    "is_finite": np.isfinite,
    "le": np.less_equal,
    "log": np.log,
    "log1p": np.log1p,
    "logistic": _logistic,
    "lt": np.less,
    "max": np.maximum,
    "min": np.minimum,
    "mul": np.multiply,
    "ne": np.not_equal,
    "neg": np.negative,
    "nextafter": np.nextafter,
    "not": np.logical_not,
    "or": np.logical_or,
    "pow": np.power,
    "rem": np.fmod,
    "round": np.round,
    "rsqrt": lambda x: 1 / np.sqrt(x),
    "select_n": _select,
    "sign": np.sign,
    "sin": np.sin,
    "sinh": np.sinh,
    "sqrt": np.sqrt,
    "square": np.square,
    "sub": np.subtract,
    "tan": np.tan,
    "tanh": np.tanh,
    "xor": np.logical_xor,
}
ELEMENTWISE = frozenset({*_PLAIN, "integer_pow"})
# Values move, are copied or cast; of a lookup the first operand is what moves.
MOVES = frozenset(
    {
        "broadcast_in_dim",
        "convert_element_type",
        "copy",
        "copy_p",
        "dynamic_slice",
        "expand_dims",
        "gather",
        "optimization_barrier",
        "pad",
        "reduce_precision",
        "reduce_window_max",
        "reduce_window_min",
        "reduce_window_sum",
        "reshape",
        "rev",
        "sharding_constraint",
        "slice",
        "split",
        "squeeze",
        "stop_gradient",
        "transpose",
    }
)
# Moves whose results no longer stand entry by entry beside what they came from.
CUTS = frozenset(
    {
        "dynamic_slice",
        "gather",
        "reduce_window_max",
        "reduce_window_min",
        "reduce_window_sum",
        "rev",
        "slice",
        "split",
    }
)
CONTRACTIONS = frozenset(
    {"dot_general", "conv_general_dilated", "ragged_dot", "ragged_dot_general"}
)


def evaluate(primitive: str, params: Mapping[str, Any], operands: Sequence[Any]) -> Any | None:
    """What an elementwise equation makes of NumPy values; None where it is not one of them."""
    with np.errstate(all="ignore"):
        if primitive == "integer_pow":
            return np.asarray(operands[0], float) ** params["y"]
        function = _PLAIN.get(primitive)
        return None if function is None else function(*operands)


def uniform(value: Any) -> Any | None:
    """The number that all entries of a small array are; None where they differ or are many."""
    kind = getattr(getattr(value, "dtype", np.dtype(float)), "kind", None)
    size = getattr(value, "size", 1)
    # Python's own numbers have no dtype; keys have one of no NumPy kind, bfloat16 has kind V.
    if not 0 < size <= 4096 or kind not in ("b", "i", "u", "f", "V"):
        return None
    entries = np.asarray(value).reshape(-1)
    if kind == "V":
        entries = entries.astype(float)
    first = entries[0].item()
    return first if size == 1 or bool((entries == entries[0]).all()) else None
