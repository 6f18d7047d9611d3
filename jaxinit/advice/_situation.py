"""What the guide asks about: facts of the whole model, and the part that every parameter plays.

A part is a short name such as ``"hidden"`` or ``"residual_output"``. Every parameter has several,
the most telling first, so that a row of the guide may speak of residual outputs in one model and of
kernels in general in another.
"""

from __future__ import annotations

import dataclasses
import functools
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from jaxinit import activations
from jaxinit.activations import Moments
from jaxinit.advice._wiring import SUMS, VIEWS, Wiring
from jaxinit.reading._reader import Reading
from jaxinit.reading._records import Activation, Branch, Parameter, Use

MAPS = ("kernel", "head", "gate")
RECTIFIERS = ("relu", "leaky_relu", "relu6", "celu", "elu")
SATURATING = ("tanh", "sin", "erf", "arctan", "hard_tanh", "soft_sign")


@dataclasses.dataclass(frozen=True, eq=False)
class Subject:
    """One parameter, and the parts it plays.

    Attributes:
        parameter: its record in the reading.
        parts: names of its parts, the most telling first.
        use: its first use as a map, else its first use; None where it has none.
        pieces: its uses as kernels packed side by side in one array; else empty.
        forget: for a bias of a forget gate, the pieces that belong to it: (start, stop) as shares
            of the last axis; else empty.
    """

    parameter: Parameter
    parts: tuple[str, ...]
    use: Use | None = None
    pieces: tuple[Use, ...] = ()
    forget: tuple[tuple[float, float], ...] = ()

    @property
    def path(self) -> str:
        """Canonical path."""
        return self.parameter.path

    @property
    def part(self) -> str:
        """The most telling part."""
        return self.parts[0]

    @property
    def is_map(self) -> bool:
        """Whether data are contracted with it."""
        return self.use is not None and self.use.role in MAPS and bool(self.use.fan_in)

    @property
    def is_bypass(self) -> bool:
        """Whether it is a factor of a low-rank product beside another map."""
        return self.use is not None and self.use.bypass is not None

    @property
    def activation(self) -> Activation | None:
        """The nonlinearity that its output meets, if any."""
        after = self.use.after if self.use else None
        known = after.activation if after else None
        return None if known is None or known.name == "identity" else known

    @property
    def is_linear(self) -> bool:
        """Whether its output meets no activation before the next map, sum or output."""
        after = self.use.after if self.use else None
        return self.activation is None and not (after and after.several)

    @property
    def branch(self) -> Branch | None:
        """The residual branch it lies in, if any."""
        return self.use.branch if self.use else None


class Situation:
    """The facts of a model that the guide decides by.

    Args:
        reading: what `jaxinit.read` says of the model.

    Attributes:
        reading: the same.
        subjects: its parameters with their parts, in the order of the tree.
    """

    def __init__(self, reading: Reading) -> None:
        self.reading = reading
        self.wiring = Wiring(reading.graph)
        self._last_scales = _last_scales(reading)
        self.subjects = tuple(self._subject(parameter) for parameter in reading)

    @functools.cached_property
    def by_path(self) -> dict[str, Subject]:
        """The subjects by canonical path."""
        return {subject.path: subject for subject in self.subjects}

    @functools.cached_property
    def maps(self) -> tuple[Subject, ...]:
        """The subjects that data are contracted with."""
        return tuple(subject for subject in self.subjects if subject.is_map)

    @functools.cached_property
    def hidden(self) -> tuple[Subject, ...]:
        """The maps that are neither heads nor run beside another as a low-rank bypass."""
        return tuple(s for s in self.maps if "head" not in s.parts and not s.is_bypass)

    @functools.cached_property
    def depth(self) -> int:
        """Maps on the longest way through the model."""
        return self.reading.chain.depth

    @functools.cached_property
    def width(self) -> float | None:
        """Harmonic mean of the widths of the hidden layers on the longest way."""
        widths = self.reading.chain.widths[:-1]
        return len(widths) / sum(1 / n for n in widths) if widths and min(widths) > 0 else None

    @functools.cached_property
    def branches(self) -> int:
        """Branches on the longest residual stream; 0 where there is none."""
        return self.reading.chain.branches

    @functools.cached_property
    def norms(self) -> frozenset[str]:
        """Kinds of normalisation that maps meet, or branches begin with."""
        found = {use.after.normalisation for use in self._uses if use.after} - {None}
        branched = any(
            use.branch and (use.branch.has_norm or use.branch.has_norm_after) for use in self._uses
        )
        return frozenset(kind for kind in found if kind) | ({"branch"} if branched else set())

    @functools.cached_property
    def _uses(self) -> tuple[Use, ...]:
        return tuple(use for parameter in self.reading for use in parameter.uses)

    @functools.cached_property
    def norm_first(self) -> bool:
        """Whether most residual branches begin with a normalisation."""
        branches = [use.branch for use in self._uses if use.branch and use.branch.is_last]
        return bool(branches) and sum(b.has_norm for b in branches) * 2 > len(branches)

    @functools.cached_property
    def norm_after(self) -> bool:
        """Whether most residual sums are normalised (post-norm)."""
        branches = [use.branch for use in self._uses if use.branch and use.branch.is_last]
        return bool(branches) and sum(b.has_norm_after for b in branches) * 2 > len(branches)

    @functools.cached_property
    def has_attention(self) -> bool:
        """Whether queries meet keys in a softmax."""
        return any("query_key" in subject.parts for subject in self.subjects)

    @functools.cached_property
    def has_convolutions(self) -> bool:
        """Whether most maps with a receptive field are convolutions that are not patches."""
        return sum(bool(s.use and s.use.field) for s in self.maps) * 2 > len(self.maps)

    @functools.cached_property
    def begins_with_convolution(self) -> bool:
        """Whether the first map is a convolution, as patch embeddings are."""
        uses = [subject.use for subject in self.maps if subject.use is not None]
        first = min(uses, key=lambda use: (use.depth or 0, use.output or 0), default=None)
        return first is not None and bool(first.field)

    @functools.cached_property
    def is_recurrent(self) -> bool:
        """Whether a map reads what a loop over a sequence carries."""
        return any(use.after and use.after.recurrent for use in self._uses)

    @functools.cached_property
    def activation(self) -> Activation | None:
        """The nonlinearity that most maps meet; None where none does."""
        met = [s.activation for s in self.maps if s.activation is not None]
        names = Counter(activation.name for activation in met)
        if not names:
            return None
        commonest = names.most_common(1)[0][0]
        return next(activation for activation in met if activation.name == commonest)

    @functools.cached_property
    def moments(self) -> Moments | None:
        """What the commonest activation does to a standard normal; None without one."""
        return None if self.activation is None else moments_of(self.activation)

    def gain(self, subject: Subject) -> float:
        """Gain that passes a second moment of 1 through the activation behind a map; else 1.

        A map that gates another has 1: the activation's factor is one of a product.
        """
        if subject.use is not None and subject.use.after and subject.use.after.gates:
            return 1.0
        known = None if subject.activation is None else moments_of(subject.activation)
        return known.forward_gain if known and known.second_moment else 1.0

    def _subject(self, parameter: Parameter) -> Subject:
        uses = parameter.uses
        maps = [use for use in uses if use.role in MAPS and use.fan_in]
        use = maps[0] if maps else uses[0] if uses else None
        pieces = tuple(use for use in maps if use.slice_output is not None)
        if parameter.role in ("state", "unused", "unknown") or use is None:
            return Subject(parameter, (parameter.role,), use)
        if parameter.role in ("embedding", "position"):
            is_tied = parameter.role == "embedding" and bool(maps)
            parts = ("tied_embedding", "embedding") if is_tied else (parameter.role, "embedding")
            return Subject(parameter, tuple(dict.fromkeys(parts)), use)
        if maps:
            made = Subject(parameter, self._parts(parameter, maps), use, pieces)
            gates = any(each.after and each.after.gates for each in maps)
            if not (made.is_linear or gates):
                return made
            # Before "kernel", for rows whose gain is an activation's.
            return dataclasses.replace(made, parts=(*made.parts[:-1], "linear", "kernel"))
        if parameter.role == "scale":
            is_last = parameter.path in self._last_scales
            parts = ("last_scale", "scale") if is_last else ("scale",)
            return Subject(parameter, ("branch_scale", *parts) if self._ends(use) else parts, use)
        forget = self._forget(parameter)
        parts = (parameter.role,)
        if forget:
            parts = ("forget_bias", *parts)
        elif parameter.role == "bias" and self._is_behind_head(use):
            parts = ("head_bias", *parts)
        return Subject(parameter, parts, use, (), forget)

    @functools.cached_property
    def _mapped(self) -> frozenset[int]:
        """Values that maps make."""
        return frozenset(_made(use) for use in self._uses if use.role in MAPS)

    def _ends(self, scale: Use) -> bool:
        """Whether a scale ends a branch and multiplies what a map makes: no normalisation's."""
        node = None if scale.output is None else self.wiring.makers.get(scale.output)
        if not (scale.branch and scale.branch.is_last) or node is None or node.primitive != "mul":
            return False
        through = VIEWS | SUMS | {"select_n"}
        factors = [atom for atom in node.inputs if isinstance(atom, int)]
        return any(self._mapped & self.wiring.before(factor, through) for factor in factors)

    @functools.cached_property
    def _heads(self) -> frozenset[int]:
        """Values that heads make."""
        return frozenset(_made(use) for use in self._uses if use.role == "head")

    def _is_behind_head(self, use: Use) -> bool:
        """Whether a bias is added to what a head makes."""
        if use.output is None:
            return False
        return bool(self._heads & self.wiring.before(use.output, VIEWS | SUMS))

    def _parts(self, parameter: Parameter, uses: Sequence[Use]) -> tuple[str, ...]:
        use = uses[0]
        if use.bypass is not None:
            return (f"bypass_{use.bypass}", "kernel")
        after, branch = use.after, use.branch
        parts = []
        if after and after.index and not (after.softmax or after.activation or after.several):
            parts.append("index")
        if after and after.softmax:
            routes = self.wiring.comes_to_softmax(_made(use))
            parts.append("router" if routes and not after.is_output else "query_key")
        if parameter.role == "head" or (after and after.is_output and not branch):
            parts = ["head"]
        elif branch and branch.is_last:
            parts.append("residual_output")
        elif branch:
            parts.append("branch_inner")
        if after and after.recurrent:
            parts.append("recurrent")
        elif not branch and "head" not in parts and (use.depth or 0) <= 1:
            parts.append("first")
        if not branch and "head" not in parts:
            parts.append("hidden")
        return (*parts, "kernel")

    def _forget(self, parameter: Parameter) -> tuple[tuple[float, float], ...]:
        """Shares of a bias that go into forget gates, as (start, stop) of its last axis."""
        outputs = [use.output for use in parameter.uses if use.output is not None]
        through = VIEWS | SUMS
        for gate in self.wiring.forget_gates:
            reached = self.wiring.before(gate, through)
            if not any(output in reached for output in outputs):
                continue
            size = parameter.shape[-1] if parameter.shape else 1
            cut = self._cut(reached, size)
            return (cut,) if cut else ((0.0, 1.0),)
        return ()

    def forget_offset(self, subject: Subject) -> bool:
        """Whether the model itself adds a number to the forget gates that read a bias."""
        outputs = {use.output for use in subject.parameter.uses}
        for gate in self.wiring.forget_gates:
            reached = self.wiring.before(gate, VIEWS | SUMS)
            if not outputs & reached:
                continue
            for number in reached:
                node = self.wiring.makers.get(number)
                if node is not None and node.primitive == "add":
                    if any(_is_offset(atom) for atom in node.inputs):
                        return True
        return False

    def _cut(self, reached: set[int], size: int) -> tuple[float, float] | None:
        """The piece that a gate is of a packed output of this size, as shares."""
        for number in reached:
            node = self.wiring.makers.get(number)
            if node is None or node.primitive not in ("slice", "split"):
                continue
            whole = self.reading.graph.avals[node.inputs[0]].shape
            if not whole or whole[-1] != size:
                continue
            if node.primitive == "slice":
                start, stop = node.params["start_indices"][-1], node.params["limit_indices"][-1]
            else:
                place = node.outputs.index(number)
                sizes = node.params["sizes"]
                start = sum(sizes[:place])
                stop = start + sizes[place]
            if stop - start < size:
                return start / size, stop / size
        return None


def _is_offset(atom: object) -> bool:
    value = getattr(atom, "val", None)
    try:
        return value is not None and float(value) >= 0.5
    except (TypeError, ValueError):
        return False


def _made(use: Use) -> int:
    number = use.output if use.slice_output is None else use.slice_output
    return -1 if number is None else number


def _last_scales(reading: Reading) -> frozenset[str]:
    """Scales of normalisations that end a residual branch."""
    scales = [
        (use.output, parameter.path, use.branch)
        for parameter in reading
        for use in parameter.uses
        if use.role == "scale" and use.output is not None
    ]
    found = set()
    for parameter in reading:
        for use in parameter.uses:
            after = use.after
            if not (after and after.residual and after.normalisation and use.branch):
                continue
            behind = [
                (output, path)
                for output, path, branch in scales
                if output > (use.output or 0) and branch and branch.index == use.branch.index
            ]
            found |= {min(behind)[1]} if behind else set()
    return frozenset(found)


def moments_of(activation: Activation, variance: float = 1.0) -> Moments | None:
    """Moments of an activation by its name where it has one; None where it has none."""
    return _moments(activation.name, activation.function, variance)


@functools.lru_cache(maxsize=256)
def _moments(name: str, function: Callable[[Any], Any], variance: float) -> Moments | None:
    for known in (name, function):
        try:
            return activations.moments(known, variance=variance)
        except (ValueError, TypeError):
            continue
    return None
