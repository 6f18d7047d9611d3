"""The table of primitives: one row each, with the facts that several analyses ask for.

What an analysis itself makes of a primitive is a rule: `Rules` collects them, for single primitives
or for a whole class. To teach the house a primitive, write its row here; where its class has a rule
in an analysis, that is all.
"""

from __future__ import annotations

import dataclasses
import enum
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, TypeVar

import numpy as np

R = TypeVar("R")


class Class(enum.StrEnum):
    """What a primitive does to entries."""

    ELEMENTWISE = "elementwise"
    """Computes each entry of its result from the entries at the same place."""
    REARRANGES = "rearranges"
    """Moves, copies, casts or leaves out entries, at places that are known when it is traced."""
    REDUCES = "reduces"
    """Combines the entries along some axes: sums, largest entries, running sums, sorted ones."""
    CONTRACTS = "contracts"
    """Multiplies two operands and sums the products."""
    INDEXES = "indexes"
    """Picks or writes entries at places that an operand tells."""
    DRAWS = "draws"
    """Makes keys, random bits or counters."""
    CALLS = "calls"
    """Runs other equations."""
    OTHER = "other"
    """Factorizations, transforms, communication between devices, tokens."""


class Bits(enum.StrEnum):
    """Whether an operation gives the same bits wherever it is compiled."""

    EXACT = "exact"
    """It moves or compares bits, or computes on integers: the same anywhere."""
    ENTRYWISE = "entrywise"
    """It rounds each entry alone: the same in any program that holds the same neighbours."""
    ORDERED = "ordered"
    """The order of its terms may differ from program to program; integers give one result."""
    INSIDE = "inside"
    """It runs other equations once or more: as safe as the least safe of them."""
    UNKNOWN = "unknown"
    """Nothing is known."""


@dataclasses.dataclass(frozen=True, slots=True)
class Primitive:
    """One row of the table.

    Attributes:
        name: as JAX has it.
        kind: what it does to entries.
        bits: whether its bits depend on the program around it.
        numpy: the same function of NumPy arrays, in float64; None where there is none.
        keeps_zeros: whether zeros alone give zeros: of one operand, or of all of them.
        cuts: whether the results of a move no longer stand entry by entry beside what they came
            from.
        power: of a function of one operand that is not linear: the power of its operand that it is,
            up to sign and a number; None where it is none.
    """

    name: str
    kind: Class
    bits: Bits = Bits.UNKNOWN
    numpy: Callable[..., Any] | None = None
    keeps_zeros: bool = False
    cuts: bool = False
    power: float | None = None


def _erf(x: Any) -> Any:
    return np.vectorize(math.erf, otypes=[float])(x)


def _erfc(x: Any) -> Any:
    return np.vectorize(math.erfc, otypes=[float])(x)


def _select(which: Any, *cases: Any) -> Any:
    return np.choose(np.asarray(which).astype(int), cases)


def _divide(a: Any, b: Any) -> Any:
    a, b = np.asarray(a), np.asarray(b)
    whole = a.dtype.kind in "iu" and b.dtype.kind in "iu"
    return np.floor_divide(a, b) if whole else np.divide(a, b)


def _logistic(x: Any) -> Any:
    return 1 / (1 + np.exp(-np.asarray(x, float)))


def _rsqrt(x: Any) -> Any:
    return 1 / np.sqrt(x)


def _clamp(low: Any, x: Any, high: Any) -> Any:
    return np.clip(x, low, high)


def _integer_pow(x: Any, *, y: int) -> Any:
    return np.asarray(x, float) ** y


def _complex(a: Any, b: Any) -> Any:
    return a + 1j * np.asarray(b)


def _one_minus_square(x: Any) -> Any:
    return 1 - np.square(x)


ELEMENTWISE, REARRANGES, REDUCES, CONTRACTS, INDEXES, DRAWS, CALLS, OTHER = Class
EXACT, ENTRYWISE, ORDERED, INSIDE, UNKNOWN = Bits

_ROWS = (
    Primitive("abs", ELEMENTWISE, ENTRYWISE, np.abs, keeps_zeros=True, power=1.0),
    Primitive("acos", ELEMENTWISE, ENTRYWISE, np.arccos),
    Primitive("acosh", ELEMENTWISE, ENTRYWISE, np.arccosh),
    Primitive("add", ELEMENTWISE, ENTRYWISE, np.add, keeps_zeros=True),
    Primitive("add_any", ELEMENTWISE, numpy=np.add, keeps_zeros=True),
    Primitive("and", ELEMENTWISE, ENTRYWISE, np.bitwise_and),
    Primitive("asin", ELEMENTWISE, ENTRYWISE, np.arcsin, keeps_zeros=True),
    Primitive("asinh", ELEMENTWISE, ENTRYWISE, np.arcsinh, keeps_zeros=True),
    Primitive("atan", ELEMENTWISE, ENTRYWISE, np.arctan, keeps_zeros=True),
    Primitive("atan2", ELEMENTWISE, ENTRYWISE, np.arctan2),
    Primitive("atanh", ELEMENTWISE, ENTRYWISE, np.arctanh, keeps_zeros=True),
    Primitive("bessel_i0e", ELEMENTWISE, ENTRYWISE),
    Primitive("bessel_i1e", ELEMENTWISE, ENTRYWISE),
    Primitive("cbrt", ELEMENTWISE, ENTRYWISE, np.cbrt, keeps_zeros=True, power=1 / 3),
    Primitive("ceil", ELEMENTWISE, ENTRYWISE, np.ceil, keeps_zeros=True),
    Primitive("clamp", ELEMENTWISE, ENTRYWISE, _clamp),
    Primitive("clz", ELEMENTWISE, ENTRYWISE),
    Primitive("complex", ELEMENTWISE, EXACT, _complex),
    Primitive("conj", ELEMENTWISE, ENTRYWISE, np.conj, keeps_zeros=True),
    Primitive("cos", ELEMENTWISE, ENTRYWISE, np.cos),
    Primitive("cosh", ELEMENTWISE, ENTRYWISE, np.cosh),
    Primitive("digamma", ELEMENTWISE, ENTRYWISE),
    Primitive("div", ELEMENTWISE, ENTRYWISE, _divide),
    Primitive("eq", ELEMENTWISE, EXACT, np.equal),
    Primitive("eq_to", ELEMENTWISE, EXACT),
    Primitive("erf", ELEMENTWISE, ENTRYWISE, _erf, keeps_zeros=True),
    Primitive("erf_inv", ELEMENTWISE, ENTRYWISE, keeps_zeros=True),
    Primitive("erfc", ELEMENTWISE, ENTRYWISE, _erfc),
    Primitive("exp", ELEMENTWISE, ENTRYWISE, np.exp),
    Primitive("exp2", ELEMENTWISE, ENTRYWISE, np.exp2),
    Primitive("expm1", ELEMENTWISE, ENTRYWISE, np.expm1, keeps_zeros=True),
    Primitive("floor", ELEMENTWISE, ENTRYWISE, np.floor, keeps_zeros=True),
    Primitive("ge", ELEMENTWISE, EXACT, np.greater_equal),
    Primitive("gt", ELEMENTWISE, EXACT, np.greater),
    Primitive("igamma", ELEMENTWISE, ENTRYWISE),
    Primitive("igamma_grad_a", ELEMENTWISE, ENTRYWISE),
    Primitive("igammac", ELEMENTWISE, ENTRYWISE),
    Primitive("imag", ELEMENTWISE, EXACT, np.imag, keeps_zeros=True),
    Primitive("integer_pow", ELEMENTWISE, ENTRYWISE, _integer_pow, keeps_zeros=True),
    Primitive("is_finite", ELEMENTWISE, EXACT, np.isfinite),
    Primitive("le", ELEMENTWISE, EXACT, np.less_equal),
    Primitive("le_to", ELEMENTWISE, EXACT),
    Primitive("lgamma", ELEMENTWISE, ENTRYWISE),
    Primitive("log", ELEMENTWISE, ENTRYWISE, np.log),
    Primitive("log1p", ELEMENTWISE, ENTRYWISE, np.log1p, keeps_zeros=True),
    Primitive("log2", ELEMENTWISE, ENTRYWISE, np.log2),
    Primitive("logistic", ELEMENTWISE, ENTRYWISE, _logistic),
    Primitive("lt", ELEMENTWISE, EXACT, np.less),
    Primitive("lt_to", ELEMENTWISE, EXACT),
    Primitive("max", ELEMENTWISE, ENTRYWISE, np.maximum, keeps_zeros=True),
    Primitive("min", ELEMENTWISE, ENTRYWISE, np.minimum, keeps_zeros=True),
    Primitive("mul", ELEMENTWISE, ENTRYWISE, np.multiply),
    Primitive("mulhi", ELEMENTWISE),
    Primitive("ne", ELEMENTWISE, EXACT, np.not_equal),
    Primitive("neg", ELEMENTWISE, ENTRYWISE, np.negative, keeps_zeros=True),
    Primitive("nextafter", ELEMENTWISE, ENTRYWISE, np.nextafter),
    Primitive("not", ELEMENTWISE, ENTRYWISE, np.invert),
    Primitive("one_minus_square", ELEMENTWISE, ENTRYWISE, _one_minus_square),
    Primitive("or", ELEMENTWISE, ENTRYWISE, np.bitwise_or),
    Primitive("polygamma", ELEMENTWISE, ENTRYWISE),
    Primitive("polynomial", ELEMENTWISE, ENTRYWISE),
    Primitive("population_count", ELEMENTWISE, ENTRYWISE),
    Primitive("pow", ELEMENTWISE, ENTRYWISE, np.power),
    Primitive("real", ELEMENTWISE, EXACT, np.real, keeps_zeros=True),
    Primitive("regularized_incomplete_beta", ELEMENTWISE, ENTRYWISE),
    Primitive("rem", ELEMENTWISE, ENTRYWISE, np.fmod),
    Primitive("round", ELEMENTWISE, ENTRYWISE, np.round, keeps_zeros=True),
    Primitive("rsqrt", ELEMENTWISE, ENTRYWISE, _rsqrt, power=-0.5),
    Primitive("select_n", ELEMENTWISE, EXACT, _select),
    Primitive("shift_left", ELEMENTWISE, ENTRYWISE),
    Primitive("shift_right_arithmetic", ELEMENTWISE, ENTRYWISE),
    Primitive("shift_right_logical", ELEMENTWISE, ENTRYWISE),
    Primitive("sign", ELEMENTWISE, ENTRYWISE, np.sign, keeps_zeros=True, power=0.0),
    Primitive("sin", ELEMENTWISE, ENTRYWISE, np.sin, keeps_zeros=True),
    Primitive("sinh", ELEMENTWISE, ENTRYWISE, np.sinh, keeps_zeros=True),
    Primitive("sqrt", ELEMENTWISE, ENTRYWISE, np.sqrt, keeps_zeros=True, power=0.5),
    Primitive("square", ELEMENTWISE, ENTRYWISE, np.square, keeps_zeros=True, power=2.0),
    Primitive("sub", ELEMENTWISE, ENTRYWISE, np.subtract, keeps_zeros=True),
    Primitive("tan", ELEMENTWISE, ENTRYWISE, np.tan, keeps_zeros=True),
    Primitive("tanh", ELEMENTWISE, ENTRYWISE, np.tanh, keeps_zeros=True),
    Primitive("xor", ELEMENTWISE, ENTRYWISE, np.bitwise_xor),
    Primitive("zeta", ELEMENTWISE, ENTRYWISE),
    Primitive("bitcast_convert_type", REARRANGES, EXACT),
    Primitive("broadcast_in_dim", REARRANGES, EXACT, keeps_zeros=True),
    Primitive("concatenate", REARRANGES, EXACT, keeps_zeros=True),
    Primitive("convert_element_type", REARRANGES, ENTRYWISE, keeps_zeros=True),
    Primitive("copy", REARRANGES, EXACT, keeps_zeros=True),
    Primitive("copy_p", REARRANGES, EXACT, keeps_zeros=True),
    Primitive("device_put", REARRANGES, keeps_zeros=True),
    Primitive("expand_dims", REARRANGES, EXACT, keeps_zeros=True),
    Primitive("layout_constraint", REARRANGES, keeps_zeros=True),
    Primitive("name", REARRANGES, EXACT, keeps_zeros=True),
    Primitive("optimization_barrier", REARRANGES, ENTRYWISE, keeps_zeros=True),
    Primitive("pad", REARRANGES, EXACT, keeps_zeros=True),
    Primitive("pcast", REARRANGES, keeps_zeros=True),
    Primitive("pvary", REARRANGES, keeps_zeros=True),
    Primitive("reduce_precision", REARRANGES, ENTRYWISE, keeps_zeros=True),
    Primitive("reshape", REARRANGES, EXACT, keeps_zeros=True),
    Primitive("reshard", REARRANGES, EXACT, keeps_zeros=True),
    Primitive("rev", REARRANGES, EXACT, keeps_zeros=True, cuts=True),
    Primitive("sharding_constraint", REARRANGES, EXACT, keeps_zeros=True),
    Primitive("slice", REARRANGES, EXACT, keeps_zeros=True, cuts=True),
    Primitive("split", REARRANGES, EXACT, keeps_zeros=True, cuts=True),
    Primitive("squeeze", REARRANGES, EXACT, keeps_zeros=True),
    Primitive("stack", REARRANGES, EXACT, keeps_zeros=True),
    Primitive("stop_gradient", REARRANGES, EXACT, keeps_zeros=True),
    Primitive("tile", REARRANGES, keeps_zeros=True),
    Primitive("transpose", REARRANGES, EXACT, keeps_zeros=True),
    Primitive("unstack", REARRANGES, EXACT, keeps_zeros=True, cuts=True),
    Primitive("approx_top_k", REDUCES),
    Primitive("argmax", REDUCES, ENTRYWISE),
    Primitive("argmin", REDUCES, ENTRYWISE),
    Primitive("cumlogsumexp", REDUCES),
    Primitive("cummax", REDUCES, ORDERED, keeps_zeros=True),
    Primitive("cummin", REDUCES, ORDERED, keeps_zeros=True),
    Primitive("cumprod", REDUCES, ORDERED, keeps_zeros=True),
    Primitive("cumsum", REDUCES, ORDERED, keeps_zeros=True),
    Primitive("reduce", REDUCES),
    Primitive("reduce_and", REDUCES, ORDERED),
    Primitive("reduce_max", REDUCES, ORDERED, keeps_zeros=True),
    Primitive("reduce_min", REDUCES, ORDERED, keeps_zeros=True),
    Primitive("reduce_or", REDUCES, ORDERED),
    Primitive("reduce_prod", REDUCES, ORDERED, keeps_zeros=True),
    Primitive("reduce_sum", REDUCES, ORDERED, keeps_zeros=True),
    Primitive("reduce_window", REDUCES),
    Primitive("reduce_window_max", REDUCES, keeps_zeros=True, cuts=True),
    Primitive("reduce_window_min", REDUCES, keeps_zeros=True, cuts=True),
    Primitive("reduce_window_sum", REDUCES, keeps_zeros=True, cuts=True),
    Primitive("reduce_xor", REDUCES, ORDERED),
    Primitive("select_and_gather_add", REDUCES),
    Primitive("select_and_scatter", REDUCES),
    Primitive("select_and_scatter_add", REDUCES),
    Primitive("sort", REDUCES, ENTRYWISE),
    Primitive("top_k", REDUCES, ORDERED),
    Primitive("conv_general_dilated", CONTRACTS),
    Primitive("dot_general", CONTRACTS, ORDERED),
    Primitive("ragged_dot", CONTRACTS),
    Primitive("ragged_dot_general", CONTRACTS),
    Primitive("dynamic_slice", INDEXES, EXACT, keeps_zeros=True, cuts=True),
    Primitive("dynamic_update_slice", INDEXES, EXACT),
    Primitive("gather", INDEXES, EXACT, keeps_zeros=True, cuts=True),
    Primitive("scatter", INDEXES, ENTRYWISE),
    Primitive("scatter-add", INDEXES, ORDERED),
    Primitive("scatter-max", INDEXES, ORDERED),
    Primitive("scatter-min", INDEXES, ORDERED),
    Primitive("scatter-mul", INDEXES, ORDERED),
    Primitive("empty2", DRAWS, EXACT),
    Primitive("iota", DRAWS, EXACT),
    Primitive("platform_index", DRAWS, EXACT),
    Primitive("random_bits", DRAWS, EXACT),
    Primitive("random_clone", DRAWS, EXACT),
    Primitive("random_fold_in", DRAWS, EXACT),
    Primitive("random_gamma", DRAWS, ENTRYWISE),
    Primitive("random_seed", DRAWS, EXACT),
    Primitive("random_split", DRAWS, EXACT),
    Primitive("random_unwrap", DRAWS, EXACT),
    Primitive("random_wrap", DRAWS, EXACT),
    Primitive("rng_bit_generator", DRAWS, EXACT),
    Primitive("rng_uniform", DRAWS),
    Primitive("threefry2x32", DRAWS, EXACT),
    Primitive("call", CALLS),
    Primitive("checkpoint", CALLS, INSIDE),
    Primitive("closed_call", CALLS, INSIDE),
    Primitive("cond", CALLS, INSIDE),
    Primitive("custom_jvp_call", CALLS, INSIDE),
    Primitive("custom_lin", CALLS),
    Primitive("custom_linear_solve", CALLS),
    Primitive("custom_vjp_call", CALLS, INSIDE),
    Primitive("debug_callback", CALLS),
    Primitive("eval_jaxpr", CALLS),
    Primitive("io_callback", CALLS),
    Primitive("jit", CALLS, INSIDE),
    Primitive("pure_callback", CALLS),
    Primitive("remat2", CALLS, INSIDE),
    Primitive("scan", CALLS, INSIDE),
    Primitive("shard_map", CALLS),
    Primitive("while", CALLS, INSIDE),
    Primitive("after_all", OTHER),
    Primitive("all_gather", OTHER),
    Primitive("all_to_all", OTHER),
    Primitive("axis_index", OTHER),
    Primitive("cholesky", OTHER),
    Primitive("create_token", OTHER),
    Primitive("eig", OTHER),
    Primitive("eigh", OTHER),
    Primitive("fft", OTHER),
    Primitive("geqrf", OTHER, ENTRYWISE),
    Primitive("get", OTHER),
    Primitive("hessenberg", OTHER),
    Primitive("householder_product", OTHER, ENTRYWISE),
    Primitive("lu", OTHER),
    Primitive("pmax", OTHER),
    Primitive("pmin", OTHER),
    Primitive("ppermute", OTHER),
    Primitive("psum", OTHER),
    Primitive("qr", OTHER, ENTRYWISE),
    Primitive("ragged_all_to_all", OTHER),
    Primitive("schur", OTHER),
    Primitive("svd", OTHER),
    Primitive("swap", OTHER),
    Primitive("triangular_solve", OTHER),
    Primitive("tridiagonal", OTHER),
    Primitive("tridiagonal_solve", OTHER),
)

TABLE: dict[str, Primitive] = {row.name: row for row in _ROWS}
# Names that several analyses ask for together.
SUMS = frozenset({"add", "add_any", "sub"})
PRODUCTS = frozenset({"mul", "div"})
# What combines the entries of a window that moves along the axes, and what takes whole axes away:
# those that its parameter ``axes`` names.
POOLING = frozenset({"reduce_window_max", "reduce_window_min", "reduce_window_sum"})
OVER_AXES = frozenset(
    {
        "reduce_and",
        "reduce_max",
        "reduce_min",
        "reduce_or",
        "reduce_prod",
        "reduce_sum",
        "reduce_xor",
    }
)


def register(row: Primitive) -> None:
    """Adds a row to the table, or replaces the row of the same name."""
    TABLE[row.name] = row


def row_of(name: str) -> Primitive:
    """The row of a primitive; of one that is not in the table a row that claims nothing."""
    return TABLE.get(name) or Primitive(name, OTHER)


def is_of(name: str, *kinds: Class) -> bool:
    """Whether a primitive is of one of these classes."""
    row = TABLE.get(name)
    return row is not None and row.kind in kinds


class Rules(Generic[R]):
    """The rules of one analysis: what it makes of each primitive.

    Used as a decorator, with names of primitives or classes of them; a rule for a name takes
    precedence over the rule of its class.

    Args:
        analysis: what the analysis is called.

    Example:
        >>> rules = Rules("example")
        >>> @rules("tanh", Class.REDUCES)
        ... def rule(values):
        ...     return values
        >>> rules.get("tanh") is rules.get("reduce_sum") is rule, rules.get("exp")
        (True, None)
    """

    def __init__(self, analysis: str) -> None:
        self.analysis = analysis
        self._rules: dict[str, R] = {}

    def __call__(self, *names: str) -> Callable[[R], R]:
        """A decorator that makes a function the rule of primitives, or of classes of them."""

        def add(rule: R) -> R:
            self._rules.update(dict.fromkeys(names, rule))
            return rule

        return add

    def get(self, name: str) -> R | None:
        """The rule for a primitive; None where the analysis has none."""
        found = self._rules.get(name)
        if found is None and name in TABLE:
            found = self._rules.get(TABLE[name].kind)
        return found

    def __contains__(self, name: str) -> bool:
        return self.get(name) is not None


def on_numpy(name: str, params: Mapping[str, Any], operands: Sequence[Any]) -> Any | None:
    """What an equation makes of NumPy values; None where its primitive has no twin in NumPy."""
    function = row_of(name).numpy
    if function is None:
        return None
    options = {"y": params["y"]} if name == "integer_pow" else {}
    with np.errstate(all="ignore"):
        return function(*operands, **options)


def single_number(value: Any) -> Any | None:
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
