"""What a reading holds: every parameter, every use of it, and what its output meets.

`Reading` prints as a table, and turns into JSON and into a picture.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from jaxinit._arguments import suggestion
from jaxinit._json import dumps, plain
from jaxinit._naming import common, skeleton
from jaxinit._table import render_table
from jaxinit.jaxpr import Graph

Role = Literal[
    "kernel", "bias", "scale", "embedding", "position", "gate", "head", "state", "unused", "unknown"
]


@dataclasses.dataclass(frozen=True)
class Activation:
    """A function of single entries between two layers.

    Attributes:
        name: of the catalogue of `jaxinit.activations` where it is one of them, such as ``"relu"``;
            ``"identity"`` between two layers with nothing between them; else the name of the
            function that the model calls, or of the primitives that it is made of.
        function: the function itself, from a scalar or array to one like it; constants closed over.
        factor: what the output of the layer is multiplied with before the function: 1/16 in
            ``tanh(x @ w / 16)``.
    """

    name: str
    function: Callable[[Any], Any]
    factor: float = 1.0

    @property
    def label(self) -> str:
        """The name with the factor: ``"tanh(0.0625 x)"``."""
        return self.name if self.factor == 1 else f"{self.name}({self.factor:.4g} x)"


@dataclasses.dataclass(frozen=True)
class Branch:
    """The residual branch that a layer lies in.

    Attributes:
        is_last: whether the output of the layer goes into the residual sum with nothing but biases,
            scales and dropout in between.
        depth: number of layers that follow each other in the branch.
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
    """What the output of a layer meets on its way to the next one.

    Attributes:
        activation: the nonlinearity; None where there is none, or more than one way on.
        normalisation: ``"layer"``, ``"rms"``, ``"batch"``, ``"group"`` or None; before or behind
            the activation. Of a table also that of the branches of the stream that it begins.
        softmax: whether a softmax (attention weights) follows.
        gates: whether it is multiplied with the output of another layer.
        residual: whether it is added to a stream that goes around it.
        is_output: whether it reaches an output of the model with no other layer behind it, and
            without a residual sum or a gate on the way.
        index: primitive that makes a whole number of it, such as ``"argmax"``: the choice of an
            expert, through which no gradient passes. None where there is none.
        several: whether it meets nonlinearities that are not one: more than one way on, or one that
            differs from entry to entry. Without them and an activation it meets none.
        recurrent: whether the layer reads what a loop over a sequence carries from step to step.
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
    """What was found around one layer.

    Attributes:
        after: what its output meets.
        branch: the residual branch it lies in, if any.
        depth: layers on the longest way from the model's inputs to here, this one included, those
            before it counted as a scan repeats them; looking up an embedding counts 0.
        bypass: of a layer in a low-rank bypass of another, as in LoRA, whether it is the first
            factor or the second.
        meets: numbers of the values with which its output meets its end, in order: the argument of
            its activation; or what goes into the next layer, contraction, softmax, residual sum,
            product with another layer, or output. Normalisations, biases, scales and sums that are
            no residual ones lie before.
        routes: whether a softmax over its features follows, whose results multiply what other
            layers make, as a router's do.
    """

    after: After
    branch: Branch | None
    depth: int
    bypass: Literal["in", "out"] | None = None
    meets: tuple[int, ...] = ()
    routes: bool = False


@dataclasses.dataclass(frozen=True)
class Chain:
    """The longest way through a model, and its residual streams.

    Attributes:
        widths: features that each layer on the longest way makes, in order, repeated as a scan over
            layers repeats them. Steps of a recurrent loop count once.
        streams: number of branches on each residual stream, in order of their first sums.
    """

    widths: tuple[int, ...]
    streams: tuple[int, ...]

    @property
    def depth(self) -> int:
        """Layers on the longest way."""
        return len(self.widths)

    @property
    def width(self) -> float | None:
        """Harmonic mean of the widths before the last: what the spread of a network depends on."""
        hidden = self.widths[:-1]
        return len(hidden) / sum(1 / n for n in hidden) if hidden and min(hidden) else None

    @property
    def branches(self) -> int:
        """Branches on the longest stream."""
        return max(self.streams, default=0)


@dataclasses.dataclass(frozen=True)
class Through:
    """What a parameter passes through before it meets data: data meet a function of it.

    That is ``factor * f(parameter) + offset``, times what stands beside it.

    Attributes:
        factor: what it is multiplied with: constants, of an array the root mean square of the
            entries that are not zero. Of a scale-free parameter (``degree`` 0) the root mean square
            of what meets data instead: 1 / sqrt(n) behind the norm of n entries, 1 behind their
            standard deviation. None where it is not known.
        offset: constant that is added: 1 in ``1 + w``; of an array the root mean square. None where
            it is not known.
        degree: power of the parameter that what meets data is proportional to: 1 where scaling the
            one scales the other, 2 of a square, 0 where the scale has no effect, as behind a
            norm of the parameter itself. None where there is none, as behind exp.
        kept: share of its entries that constant masks do not set to zero; counted by the fans.
        functions: primitives that are not linear, in order: ``("exp",)``.
        beside: paths of parameters and state that it, or a function of it, is multiplied with.
        is_table: whether constant numbers pick entries of it, as in a circulant kernel.
    """

    factor: float | None = 1.0
    offset: float | None = 0.0
    degree: float | None = 1.0
    kept: float = 1.0
    functions: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()
    is_table: bool = False

    @property
    def is_identity(self) -> bool:
        """Whether data meet the parameter as it is."""
        return self == AS_IT_IS

    @property
    def is_linear(self) -> bool:
        """Whether what meets data is proportional to the parameter; then zero is zero there too."""
        return self.degree == 1 and self.offset == 0 and not self.functions

    @property
    def is_scale_free(self) -> bool:
        """Whether multiplying the parameter with a number has no effect."""
        return self.degree == 0

    def times(self, factor: float | None, kept: float = 1.0) -> Through:
        """Multiplied with constants of this root mean square, of which a share is not zero."""
        offset = 0.0 if self.offset == 0 else _product(self.offset, factor)
        return dataclasses.replace(
            self, factor=_product(self.factor, factor), offset=offset, kept=self.kept * kept
        )

    def plus(self, offset: float | None) -> Through:
        """With a constant added; one so small that it guards against zero changes nothing."""
        if offset is not None and abs(offset) <= SMALL:
            return self
        whole = None if self.offset is None or offset is None else self.offset + offset
        return dataclasses.replace(self, offset=whole)

    def powered(self, power: float | None, function: str) -> Through:
        """After a function that is a power of its argument, up to sign; None where it is none."""
        degree = factor = None
        if self.degree == 0:
            degree = 0.0
        elif power is not None and self.offset == 0 and self.degree is not None:
            degree = self.degree * power
            # The root of a sum of squares is near that of its mean.
            factor = abs(self.factor) ** power if self.factor else None
        functions = _united(self.functions, (function,))
        return dataclasses.replace(
            self, factor=factor, offset=0.0, degree=degree, functions=functions
        )

    def joined(self, other: Through) -> Through:
        """Where it may be one or the other: what both agree on."""
        return Through(
            self.factor if self.factor == other.factor else None,
            self.offset if self.offset == other.offset else None,
            self.degree if self.degree == other.degree else None,
            max(self.kept, other.kept),
            _united(self.functions, other.functions),
            _united(self.beside, other.beside),
            self.is_table or other.is_table,
        )


AS_IT_IS = Through()
# What is added to keep a root or a quotient away from zero is no larger.
SMALL = 1e-3


def _product(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else one * other


def _united(one: tuple[str, ...], other: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys((*one, *other)))


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
        depth: layers on the longest way from the model's inputs to here, this one included.
        after: what the output meets; None where it was not followed.
        branch: the residual branch it lies in, if any.
        output: number of the value it makes, in the graph of the reading.
        bypass: ``"in"`` or ``"out"``, the first or second factor of a low-rank product that is
            added to another layer of the same input, as in LoRA; else None.
        slice_output: where several kernels are packed side by side in one array, and the output is
            cut before anything else is done to it: number of the slice that belongs to this use;
            ``fan_out`` is that of the slice. None elsewhere.
        slice_axis: axis of the parameter along which those kernels lie; None elsewhere.
        meets: numbers of the values with which its output meets its end, see `Flow`; not in JSON.
        scales: of a scale, whether it multiplies a normalised value or what a layer makes, entry by
            entry, with biases, other scales and an activation in between at most; None where it
            multiplies something else. Not in JSON.
        routes: whether its output is the softmax weights of other layers, see `Flow`. Not in JSON.
        through: what the parameter passes through before it meets the data.
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
    slice_axis: int | None = None
    meets: tuple[int, ...] = ()
    scales: Literal["norm", "layer"] | None = None
    routes: bool = False
    through: Through = AS_IT_IS


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


_FORMAT = "jaxinit-reading/1"


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Reading:
    """What a model does with each of its parameters. Prints as a table.

    Attributes:
        parameters: one record for each leaf of the variables, in the order of the tree.
        graph: the traced forward pass.
        inputs: by path, the number that each leaf has among the values of the graph.
        arguments: numbers of the other arrays that the model was called with.
        chain: the longest way through the model, and its residual streams.
    """

    parameters: tuple[Parameter, ...]
    graph: Graph
    inputs: Mapping[str, int]
    arguments: tuple[int, ...]
    chain: Chain

    def __len__(self) -> int:
        return len(self.parameters)

    def __iter__(self) -> Iterator[Parameter]:
        return iter(self.parameters)

    def __contains__(self, path: object) -> bool:
        return path in self._by_path

    def __getitem__(self, path: str) -> Parameter:
        if path not in self._by_path:
            raise KeyError(f"the reading has no leaf {path!r}{suggestion(str(path), self.paths)}")
        return self._by_path[path]

    @functools.cached_property
    def paths(self) -> tuple[str, ...]:
        """Canonical paths, in the order of the leaves."""
        return tuple(parameter.path for parameter in self.parameters)

    @functools.cached_property
    def _by_path(self) -> dict[str, Parameter]:
        return {parameter.path: parameter for parameter in self.parameters}

    @property
    def unknown(self) -> tuple[Parameter, ...]:
        """Parameters with an unknown use; ``why`` says what stopped the reading."""
        return tuple(each for each in self.parameters if each.why or each.role == "unknown")

    def to_dict(self) -> dict[str, Any]:
        """The reading as plain dicts, lists, strings and numbers, without the graph."""
        return {"format": _FORMAT, "parameters": [_plain(each) for each in self.parameters]}

    def to_json(self) -> str:
        """`to_dict` as JSON text."""
        return dumps(self.to_dict())

    def draw(self, path: str | Path) -> None:
        """Draws the model as a picture: its layers from left to right, branches beside the stream.

        Every layer is a box with its path, its role, and ``fan_in → fan_out``; on the lines stand
        the activations, normalisations, softmaxes and gates that its output meets. Heavy lines are
        residual streams, rings the sums and products on the way. Heads and embeddings are orange,
        what is unknown is red. In a model of more than 30 layers, those that repeat are drawn
        once, with the number of times. Needs matplotlib: ``pip install "jaxinit[plots]"``.

        Args:
            path: where the picture goes; ends in ``.png``, ``.svg`` or ``.pdf``.

        Raises:
            ImportError: when matplotlib is not installed.
            ValueError: when the model has no layer, or more than 60 that differ; when the path ends
                in something else.
        """
        from jaxinit.pictures import draw

        draw(self, path)

    def __repr__(self) -> str:
        return f"<Reading of {len(self.parameters)} parameters; print it for the table>"

    def __str__(self) -> str:
        return _table(self)


def _plain(parameter: Parameter) -> dict[str, Any]:
    """A record as plain values; an activation is its name."""
    uses = []
    for use in parameter.uses:
        activation = None if use.after is None else use.after.activation
        name = activation and activation.label
        after = use.after and vars(use.after) | {"activation": name}
        uses.append(vars(use) | {"after": after})
        del uses[-1]["meets"], uses[-1]["scales"], uses[-1]["routes"]
    return plain(vars(parameter) | {"uses": uses})


_COLUMNS = (
    "parameter", "shape", "leaves", "role", "contracted", "produced", "batched", "fan_in",
    "fan_out", "times", "meets", "remarks",
)  # fmt: skip


def _table(reading: Reading) -> str:
    """One line for each use; layers that differ in a number of their path alone share one."""
    groups: dict[tuple[Any, ...], list[str]] = {}
    for parameter in reading.parameters:
        uses = parameter.uses or (Use("none", parameter.role),)
        lines = tuple(_cells(parameter, use) for use in uses)
        key = (skeleton(parameter.path), parameter.shape, lines)
        groups.setdefault(key, []).append(parameter.path)
    rows = []
    for (_, shape, lines), paths in groups.items():
        for number, cells in enumerate(lines):
            head = (common(paths), str(shape), len(paths)) if number == 0 else ("", "", "")
            rows.append((*head, *cells))
    title = f"{len(reading)} parameters"
    if reading.unknown:
        title += f", {len(reading.unknown)} of them unknown"
    kept = [
        number
        for number in range(len(_COLUMNS))
        if number < 4 or any(row[number] not in ("", None) for row in rows)
    ]
    columns = [_COLUMNS[number] for number in kept]
    return render_table(columns, [[row[n] for n in kept] for row in rows], title=title)


def _cells(parameter: Parameter, use: Use) -> tuple[Any, ...]:
    is_first = bool(parameter.uses) and parameter.uses[0] is use
    role = parameter.role if is_first else use.role
    return (
        role,
        _axes(use.contracted + use.field),
        _axes(use.produced),
        _axes(use.batched),
        _count(use.fan_in),
        _count(use.fan_out),
        "by data" if use.times is None else use.times if use.times != 1 else "",
        _meets(use),
        _remarks(parameter, use),
    )


def _count(fan: float | None) -> int | float | None:
    return int(fan) if fan is not None and fan.is_integer() else fan


def _meets(use: Use) -> str:
    """What comes after a layer, in the order in which a reader looks for it."""
    if use.after is None:
        return ""
    after, met = use.after, []
    if after.normalisation:
        met.append(f"{after.normalisation} norm")
    if after.activation is not None and after.activation.name != "identity":
        met.append(after.activation.label)
    met += [word for word in ("softmax", "gates") if getattr(after, word)]
    met += [after.index] if after.index else []
    if use.branch is not None and use.branch.is_last:
        count = use.branch.count
        met.append(f"sum of {count} branch{'' if count == 1 else 'es'}")
    return ", ".join(met)


def _remarks(parameter: Parameter, use: Use) -> str:
    remarks = []
    if use.groups > 1:
        remarks.append(f"{use.groups} groups")
    if use.transposed_strides:
        remarks.append(f"transposed by {use.transposed_strides}")
    if use.slice_output is not None:
        remarks.append("packed")
    remarks += _passed(use.through)
    if use.bypass is not None:
        remarks.append("low-rank bypass")
    if use.role == "unknown" and parameter.why:
        remarks.append(f"stopped by {parameter.why}")
    return ", ".join(remarks)


def _passed(through: Through) -> list[str]:
    """What a parameter passes through, in words."""
    words = [f"of {' of '.join(reversed(through.functions))}"] if through.functions else []
    if through.is_scale_free:
        words = ["scale-free"]
    elif through.factor not in (None, 1.0):
        words.append(f"times {through.factor:.3g}")
    if through.offset:
        words.append(f"plus {through.offset:.3g}")
    if through.kept < 1:
        words.append(f"{through.kept:.3g} of it kept")
    if through.beside:
        words.append(f"times {', '.join(through.beside)}")
    return [*words, "by a table"] if through.is_table else words


def _axes(axes: Sequence[int]) -> str:
    return ", ".join(map(str, axes))
