"""Sets of primitives that the forward pass still goes by; to be replaced by the table."""

from __future__ import annotations

ELEMENTWISE = frozenset(
    "abs acos acosh add add_any and asin asinh atan atan2 atanh cbrt ceil clamp cos cosh div eq erf erfc exp exp2 expm1 floor ge gt is_finite le log log1p logistic lt max min mul ne neg nextafter not or pow rem round rsqrt select_n sign sin sinh sqrt square sub tan tanh xor integer_pow".split()
)
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
