"""What the guide decides by: facts of a whole model, and the roles of each of its parameters.

A role is a short name such as ``"hidden"`` or ``"residual_output"``. Every parameter has several,
the most specific first, so that a row of the guide may speak of residual outputs in one model and
of kernels in general in another. The last role is as a rule the coarse one that the reading gives:
a reading says ``"kernel"``, and the advice refines it by what lies around the kernel.
"""

from __future__ import annotations

import dataclasses
import functools
from collections import Counter
from collections.abc import Iterator, Sequence

from jaxinit import activations
from jaxinit.activations import Moments
from jaxinit.advice._reach import comes_to_softmax, forget_gates, is_view_or_sum
from jaxinit.jaxpr import Neighbours, single_number, straighten
from jaxinit.reading import Activation, After, Branch, Parameter, Reading, Use

# Roles in a reading of the parameters that a layer contracts data with.
_OF_LAYERS = ("kernel", "head", "gate")
_NOTHING = After()


@dataclasses.dataclass(frozen=True, eq=False)
class ParameterFacts:
    """What the guide asks about one parameter.

    Attributes:
        model: facts of the model that it belongs to.
        parameter: its record in the reading.
        roles: what it is for in the model, the most specific first.
        use: its first use in a layer, else its first use; None where it has none.
        pieces: its uses as kernels packed side by side in one array; else empty.
    """

    model: ModelFacts
    parameter: Parameter
    roles: tuple[str, ...]
    use: Use | None = None
    pieces: tuple[Use, ...] = ()

    @property
    def path(self) -> str:
        """Canonical path."""
        return self.parameter.path

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the array."""
        return self.parameter.shape

    @property
    def role(self) -> str:
        """The most specific role."""
        return self.roles[0]

    @property
    def fan_in(self) -> float:
        """True fan_in of its first use; 0 where that has none."""
        return (self.use.fan_in if self.use else None) or 0.0

    @property
    def fan_out(self) -> float:
        """True fan_out of its first use; 0 where that has none."""
        return (self.use.fan_out if self.use else None) or 0.0

    @property
    def depth(self) -> int:
        """Layers on the longest way from the model's inputs to its first use, that one included."""
        return (self.use.depth if self.use else None) or 0

    @property
    def is_layer(self) -> bool:
        """Whether data are contracted with it."""
        return self.use is not None and self.use.role in _OF_LAYERS and self.fan_in > 0

    @property
    def is_bypass(self) -> bool:
        """Whether it is a factor of a low-rank product beside another layer."""
        return self.use is not None and self.use.bypass is not None

    @property
    def after(self) -> After:
        """What its output meets; nothing where that was not followed."""
        return (self.use.after if self.use else None) or _NOTHING

    @property
    def activation(self) -> Activation | None:
        """The nonlinearity that its output meets, if any."""
        known = self.after.activation
        return None if known is None or known.name == "identity" else known

    @property
    def is_linear(self) -> bool:
        """Whether its output meets no activation before the next layer, sum or output."""
        return self.activation is None and not self.after.several

    @property
    def branch(self) -> Branch | None:
        """The residual branch that it lies in, if any."""
        return self.use.branch if self.use else None

    @property
    def gain(self) -> float:
        """Gain that passes a second moment of 1 through the activation behind it; else 1.

        A layer that gates another has gain 1: its activation is one factor of a product.
        """
        known = None if self.activation is None else moments_of(self.activation)
        if self.after.gates or not known or not known.second_moment:
            return 1.0
        return known.forward_gain

    @functools.cached_property
    def forget_share(self) -> tuple[float, float] | None:
        """Start and stop of what a forget gate reads of it, as shares of its last axis."""
        size = self.shape[-1] if self.shape else 1
        reached = next(self._before_forget_gates(), None)
        return None if reached is None else self.model.share_of_cut(reached, size)

    @property
    def has_forget_offset(self) -> bool:
        """Whether the model itself adds a number to the forget gates that read it."""
        makers = self.model.graph.makers
        sums = [
            makers[number]
            for reached in self._before_forget_gates()
            for number in reached
            if number in makers and makers[number].primitive == "add"
        ]
        numbers = [
            single_number(atom.val)
            for node in sums
            for atom in node.inputs
            if not isinstance(atom, int)
        ]
        return any(number is not None and number >= 0.5 for number in numbers)

    def _before_forget_gates(self) -> Iterator[set[int]]:
        """What each forget gate that reads it is made of, by sums and views."""
        outputs = {use.output for use in self.parameter.uses}
        return (reached for reached in self.model.before_forget_gates if outputs & reached)


class ModelFacts:
    """The facts of a model that the guide decides by.

    Args:
        reading: what `jaxinit.read` says of the model.

    Attributes:
        reading: the same.
        graph: makers and readers of its values, with bodies of loops in line.
        parameters: facts of each of its parameters, in the order of the tree.
    """

    def __init__(self, reading: Reading) -> None:
        self.reading = reading
        self.graph = Neighbours(straighten(reading.graph))
        self._uses = tuple(use for parameter in reading for use in parameter.uses)
        self._last_branches = [
            use.branch for use in self._uses if use.branch and use.branch.is_last
        ]
        self.parameters = tuple(self._facts_of(parameter) for parameter in reading)

    @functools.cached_property
    def layers(self) -> tuple[ParameterFacts, ...]:
        """The parameters that data are contracted with."""
        return tuple(p for p in self.parameters if p.is_layer)

    @functools.cached_property
    def hidden(self) -> tuple[ParameterFacts, ...]:
        """The layers that are neither heads nor run beside another as a low-rank bypass."""
        return tuple(p for p in self.layers if "head" not in p.roles and not p.is_bypass)

    @property
    def depth(self) -> int:
        """Layers on the longest way through the model."""
        return self.reading.chain.depth

    @property
    def width(self) -> float | None:
        """Harmonic mean of the widths of the hidden layers on the longest way."""
        widths = self.reading.chain.widths[:-1]
        return len(widths) / sum(1 / n for n in widths) if widths and min(widths) > 0 else None

    @property
    def branches(self) -> int:
        """Branches on the longest residual stream; 0 where there is none."""
        return self.reading.chain.branches

    @functools.cached_property
    def norms(self) -> frozenset[str]:
        """Names of the normalisations that layers meet, or ``"branch"`` where branches have one."""
        met = {use.after.normalisation for use in self._uses if use.after}
        branches = [use.branch for use in self._uses if use.branch]
        branched = any(branch.has_norm or branch.has_norm_after for branch in branches)
        return frozenset(name for name in met if name) | ({"branch"} if branched else set())

    @property
    def norm_first(self) -> bool:
        """Whether most residual branches begin with a normalisation."""
        return _are_most([branch.has_norm for branch in self._last_branches])

    @property
    def norm_after(self) -> bool:
        """Whether most residual sums are normalised (post-norm)."""
        return _are_most([branch.has_norm_after for branch in self._last_branches])

    @property
    def has_attention(self) -> bool:
        """Whether queries meet keys in a softmax."""
        return any("query_key" in p.roles for p in self.parameters)

    @property
    def has_convolutions(self) -> bool:
        """Whether most layers have a receptive field."""
        return _are_most([bool(p.use and p.use.field) for p in self.layers])

    @property
    def begins_with_convolution(self) -> bool:
        """Whether the first layer is a convolution, as patch embeddings are."""
        uses = [p.use for p in self.layers if p.use]
        first = min(uses, key=lambda use: (use.depth or 0, use.output or 0), default=None)
        return first is not None and bool(first.field)

    @property
    def is_recurrent(self) -> bool:
        """Whether a layer reads what a loop over a sequence carries."""
        return any(use.after and use.after.recurrent for use in self._uses)

    @functools.cached_property
    def activation(self) -> Activation | None:
        """The nonlinearity that most layers meet; None where none does."""
        met = [p.activation for p in self.layers if p.activation]
        if not met:
            return None
        commonest, _ = Counter(activation.name for activation in met).most_common(1)[0]
        return next(activation for activation in met if activation.name == commonest)

    @property
    def moments(self) -> Moments | None:
        """What the commonest activation does to a standard normal; None without one."""
        return None if self.activation is None else moments_of(self.activation)

    @functools.cached_property
    def before_forget_gates(self) -> tuple[set[int], ...]:
        """What each forget gate of the model is made of, by sums and views."""
        gates = forget_gates(self.graph, self.reading.graph.inputs)
        return tuple(self.graph.before([gate], is_view_or_sum) for gate in gates)

    def share_of_cut(self, reached: set[int], size: int) -> tuple[float, float]:
        """Which part one of these values is of a packed one of this size: start, stop as shares."""
        for number in reached:
            node = self.graph.makers.get(number)
            if node is None or node.primitive not in ("slice", "split"):
                continue
            whole = self.reading.graph.avals[node.inputs[0]].shape
            if not whole or whole[-1] != size:
                continue
            if node.primitive == "slice":
                start, stop = node.params["start_indices"][-1], node.params["limit_indices"][-1]
            else:
                place, sizes = node.outputs.index(number), node.params["sizes"]
                start, stop = sum(sizes[:place]), sum(sizes[: place + 1])
            if stop - start < size:
                return start / size, stop / size
        return 0.0, 1.0

    def _facts_of(self, parameter: Parameter) -> ParameterFacts:
        layers = [use for use in parameter.uses if use.role in _OF_LAYERS and use.fan_in]
        use = next(iter((*layers, *parameter.uses)), None)
        facts = ParameterFacts(self, parameter, (parameter.role,), use)
        roles = tuple(self._roles(facts, layers))
        packed = [each for each in layers if each.slice_output is not None]
        pieces = tuple(packed) if roles[-1] == "kernel" else ()
        return dataclasses.replace(facts, roles=roles, pieces=pieces)

    def _roles(self, facts: ParameterFacts, layers: Sequence[Use]) -> Iterator[str]:
        """Roles of a parameter that has the given uses in layers, the most specific first."""
        role, use = facts.parameter.role, facts.use
        if role in ("state", "unused", "unknown") or use is None:
            yield role
        elif role in ("embedding", "position"):
            if role == "embedding" and layers:
                yield "tied_embedding"
            yield from dict.fromkeys((role, "embedding"))
        elif layers:
            yield from self._roles_of_layer(facts)
            if facts.is_linear or any(each.after and each.after.gates for each in layers):
                yield "linear"  # before "kernel", for rows whose gain is an activation's
            yield "kernel"
        else:
            if role == "scale":
                yield from self._roles_of_scale(facts.path, use)
            elif facts.forget_share:
                yield "forget_bias"
            elif role == "bias" and self._is_made_of(use.output, self._made_by_heads):
                yield "head_bias"
            yield role

    def _roles_of_layer(self, facts: ParameterFacts) -> Iterator[str]:
        use, after, branch = facts.use, facts.after, facts.branch
        assert use is not None
        if use.bypass is not None:
            yield f"bypass_{use.bypass}"
            return
        is_head = facts.parameter.role == "head" or (after.is_output and not branch)
        if is_head:
            yield "head"
        else:
            if after.index and not (after.softmax or after.activation or after.several):
                yield "index"
            if after.softmax:
                routes = comes_to_softmax(self.graph, _made_by(use)) and not after.is_output
                yield "router" if routes else "query_key"
            if branch:
                yield "residual_output" if branch.is_last else "branch_inner"
        if after.recurrent:
            yield "recurrent"
        elif not branch and not is_head and facts.depth <= 1:
            yield "first"
        if not branch and not is_head:
            yield "hidden"

    def _roles_of_scale(self, path: str, use: Use) -> Iterator[str]:
        node = None if use.output is None else self.graph.makers.get(use.output)
        if use.branch and use.branch.is_last and node is not None and node.primitive == "mul":
            # It multiplies what a layer makes, so it is no scale of a normalisation.
            if any(self._is_made_of(factor, self._made_by_layers) for factor in node.inputs):
                yield "branch_scale"
        if path in self._last_scales:
            yield "last_scale"

    @functools.cached_property
    def _made_by_layers(self) -> frozenset[int]:
        return frozenset(_made_by(use) for use in self._uses if use.role in _OF_LAYERS)

    @functools.cached_property
    def _made_by_heads(self) -> frozenset[int]:
        return frozenset(_made_by(use) for use in self._uses if use.role == "head")

    def _is_made_of(self, value: object, sources: frozenset[int]) -> bool:
        """Whether a value is made of one of these by views, sums and choices alone."""
        if not isinstance(value, int):
            return False
        reached = self.graph.before(
            [value], lambda node: is_view_or_sum(node) or node.primitive == "select_n"
        )
        return bool(sources & reached)

    @functools.cached_property
    def _last_scales(self) -> frozenset[str]:
        """Paths of the scales of normalisations that end a residual branch."""
        scales = [
            (use.output, parameter.path, use.branch.index)
            for parameter in self.reading
            for use in parameter.uses
            if use.role == "scale" and use.output is not None and use.branch
        ]
        found = set()
        for use in self._uses:
            if use.after and use.after.residual and use.after.normalisation and use.branch:
                behind = [
                    (output, path)
                    for output, path, index in scales
                    if output > (use.output or 0) and index == use.branch.index
                ]
                found |= {min(behind)[1]} if behind else set()
        return frozenset(found)


def _made_by(use: Use) -> int:
    """Number of what a use makes; of a packed kernel, of its own slice."""
    number = use.output if use.slice_output is None else use.slice_output
    return -1 if number is None else number


def _are_most(claims: Sequence[bool]) -> bool:
    return sum(claims) * 2 > len(claims)


@functools.lru_cache(maxsize=256)
def moments_of(activation: Activation, variance: float = 1.0) -> Moments | None:
    """Moments of an activation, by its name where the catalogue has it; None where it has none."""
    for known in (activation.name, activation.function):
        try:
            return activations.moments(known, variance=variance)
        except (ValueError, TypeError):
            continue
    return None
