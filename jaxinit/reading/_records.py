"""What a reading holds: every parameter, every use of it, and what its output meets."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

Role = Literal[
    "kernel", "bias", "scale", "embedding", "position", "gate", "head", "state", "unused", "unknown"
]


@dataclasses.dataclass(frozen=True)
class Activation:
    """An elementwise function between two maps.

    Attributes:
        name: of the catalogue of `jaxinit.activations` where it is one of them, such as ``"relu"``;
            ``"identity"`` between two maps with nothing between them; else the primitives it is
            made of.
        function: the function itself, from a scalar or array to one like it; constants closed over.
    """

    name: str
    function: Callable[[Any], Any]


@dataclasses.dataclass(frozen=True)
class Branch:
    """The residual branch that a map lies in.

    Attributes:
        is_last: whether the output of the map goes into the residual sum with nothing but biases,
            scales and dropout in between.
        depth: number of maps that follow each other in the branch.
        index: which branch of the stream it is, from 0, counted as a scan repeats them.
        count: number of branches that are added to the stream.
        has_norm: whether the branch begins with a normalisation (pre-norm).
        has_norm_after: whether the sum goes nowhere but into a normalisation (post-norm).
    """

    is_last: bool
    depth: int
    index: int
    count: int
    has_norm: bool
    has_norm_after: bool = False


@dataclasses.dataclass(frozen=True)
class After:
    """What the output of a map meets on its way to the next one.

    Attributes:
        activation: the nonlinearity; None where there is none, or more than one way on.
        normalisation: ``"layer"``, ``"rms"``, ``"batch"``, ``"group"`` or None.
        softmax: whether a softmax (attention weights) follows.
        gates: whether it is multiplied with the output of another map.
        residual: whether it is added to a stream that goes around it.
        is_output: whether it reaches an output of the model with no other map behind it, and not by
            way of a residual sum or a gate.
        index: primitive that makes a whole number of it, such as ``"argmax"``: the choice of an
            expert, through which no gradient passes. None where there is none.
        several: whether it meets nonlinearities that are not one: more than one way on, or one that
            differs from entry to entry. Without them and an activation it meets none.
        recurrent: whether the map reads what a loop over a sequence carries from step to step.
    """

    activation: Activation | None = None
    normalisation: str | None = None
    softmax: bool = False
    gates: bool = False
    residual: bool = False
    is_output: bool = False
    recurrent: bool = False
    index: str | None = None
    several: bool = False


@dataclasses.dataclass(frozen=True)
class Flow:
    """What was found around one map.

    Attributes:
        after: what its output meets.
        branch: the residual branch it lies in, if any.
        depth: maps on the longest way from the model's inputs to here, this one included, layers
            before it counted as a scan repeats them; looking up an embedding counts 0.
        bypass: of a map in a low-rank bypass of another, as in LoRA, whether it is the first factor
            or the second.
    """

    after: After
    branch: Branch | None
    depth: int
    bypass: Literal["in", "out"] | None = None


@dataclasses.dataclass(frozen=True)
class Chain:
    """The longest way through a model, and its residual streams.

    Attributes:
        widths: features that each map on the longest way makes, in order, repeated as a scan over
            layers repeats them. Steps of a recurrent loop count once.
        streams: number of branches on each residual stream, in order of their first sums.
    """

    widths: tuple[int, ...]
    streams: tuple[int, ...]

    @property
    def depth(self) -> int:
        """Maps on the longest way."""
        return len(self.widths)

    @property
    def width(self) -> float | None:
        """Harmonic mean of the widths: what the spread of a finite network depends on."""
        return self.depth / sum(1 / n for n in self.widths) if self.widths else None

    @property
    def branches(self) -> int:
        """Branches on the longest stream."""
        return max(self.streams, default=0)


@dataclasses.dataclass(frozen=True)
class Use:
    """One place where a parameter meets data.

    Attributes:
        operation: primitive that joins them: ``dot_general``, ``conv_general_dilated``, ``gather``,
            ``add``, ``mul``, ...
        role: what the parameter is there.
        contracted: axes of the parameter that are summed over.
        produced: axes of it that the output has.
        batched: axes along which the layer repeats independently (heads, experts, scanned layers).
        field: axes of the receptive field of a convolution.
        groups: feature groups of a convolution.
        transposed_strides: strides of a transposed convolution, else empty.
        fan_in: products that one output sums over; None where the role has none.
        fan_out: outputs that one input feeds; None where the role has none.
        times: how often it is applied in one pass; None where data decide.
        depth: maps on the longest way from the model's inputs to here, this one included.
        after: what the output meets; None where it was not followed.
        branch: the residual branch it lies in, if any.
        output: number of the value it makes, in the graph of the reading.
        bypass: ``"in"`` or ``"out"``, the first or second factor of a low-rank product that is
            added to another map of the same input, as in LoRA; else None.
        slice_output: where several kernels are packed side by side in one array, and the output is
            cut before anything else is done to it: number of the slice that belongs to this use;
            ``fan_out`` is that of the slice. None elsewhere.
    """

    operation: str
    role: Role
    contracted: tuple[int, ...] = ()
    produced: tuple[int, ...] = ()
    batched: tuple[int, ...] = ()
    field: tuple[int, ...] = ()
    groups: int = 1
    transposed_strides: tuple[int, ...] = ()
    fan_in: float | None = None
    fan_out: float | None = None
    times: int | None = 1
    depth: int | None = None
    after: After | None = None
    branch: Branch | None = None
    output: int | None = None
    bypass: Literal["in", "out"] | None = None
    slice_output: int | None = None


@dataclasses.dataclass(frozen=True)
class Parameter:
    """One leaf of the variables, and all that the model does with it.

    Attributes:
        path: canonical path.
        shape: its shape.
        dtype: its dtype, by name.
        role: of its first use, or ``"head"`` / ``"unused"`` / ``"state"`` / ``"unknown"``.
        uses: places where it meets data, in order of execution; several where weights are tied or
            several kernels are packed into one array.
        why: for an unknown one, the equation that stopped the reading and what it did.
    """

    path: str
    shape: tuple[int, ...]
    dtype: str
    role: Role
    uses: tuple[Use, ...] = ()
    why: str | None = None

    @property
    def fan_in(self) -> float | None:
        """True fan_in, of the first use that has one."""
        return next((use.fan_in for use in self.uses if use.fan_in is not None), None)

    @property
    def fan_out(self) -> float | None:
        """True fan_out, of the first use that has one."""
        return next((use.fan_out for use in self.uses if use.fan_out is not None), None)
