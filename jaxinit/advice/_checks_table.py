"""The table of findings: every check that `advise` and `audit` run."""

from __future__ import annotations

from jaxinit.advice import _of_ends as of_ends
from jaxinit.advice import _of_kernels as of_kernels
from jaxinit.advice import _of_signal as of_signal
from jaxinit.advice._findings import Check

# These look at arrays that are not finite; what such an array spoils is no finding of its own.
FAULTS: tuple[Check, ...] = (of_kernels.nonfinite,)
CHECKS: tuple[Check, ...] = (
    of_kernels.wrong_fans,
    of_kernels.twins,
    of_kernels.zero_product,
    of_signal.gain_mismatch,
    of_signal.unstable_gain,
    of_signal.deep_sigmoid,
    of_signal.residual_growth,
    of_signal.narrow_for_depth,
    of_ends.embedding_scale,
    of_ends.head_scale,
    of_ends.fanless_bias,
    of_ends.forget_gate_bias,
    of_kernels.low_precision,
    of_kernels.no_gradient,
    of_kernels.unused,
    of_kernels.not_understood,
)
