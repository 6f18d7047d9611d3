"""What the output of every map meets: activations, normalisations, softmax, gates, residual sums.

`follow` takes the graph of a forward pass and the numbers of the values that its maps make. It cuts
the program into families (`forward`), finds the residual streams (`residual`) and walks from every
map to the next maps, sums and outputs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Iterable, Mapping
from typing import Literal, NamedTuple

from jaxinit.jaxpr._graph import Graph
from jaxinit.reading._activation_of import IDENTITY, Activations
from jaxinit.reading._families import Families, Origin, State
from jaxinit.reading._forward import divide
from jaxinit.reading._records import Activation, After, Branch, Chain, Flow
from jaxinit.reading._residual import Streams

_ON = ("affine", "join", "exit", "take", "carry", "input")


class Following(NamedTuple):
    """What was found.

    Attributes:
        flows: by the number of the value that each map makes.
        chain: the longest way through the model, and its residual streams.
        branches: the residual branch of any value that data reach, by number: for scales and
            biases, which are no maps.
    """

    flows: dict[int, Flow]
    chain: Chain
    branches: Mapping[int, Branch]


def follow(graph: Graph, maps: Mapping[int, Hashable], parameters: Iterable[int]) -> Following:
    """Follows the output of every map to what it meets.

    Args:
        graph: a forward pass, from `graph.trace`.
        maps: by the number of the value it makes, any identity of each map. An embedding may be
            among them.
        parameters: numbers of the graph's inputs that are parameters or state; all others are data.

    Returns:
        What was found, by the same numbers. A map that the outputs do not need is left out.

    Example:
        >>> import jax
        >>> from jaxinit.jaxpr._graph import trace
        >>> def model(kernel, x):
        ...     return jax.nn.relu(x @ kernel)
        >>> graph, _ = trace(model, jax.numpy.ones((3, 4)), jax.numpy.ones((2, 3)))
        >>> product = graph.nodes[0].outputs[0]
        >>> flow = follow(graph, {product: "kernel"}, graph.inputs[:1]).flows[product]
        >>> flow.after.activation.name, flow.after.is_output, flow.depth
        ('relu', True, 1)
    """
    found = divide(graph, maps, parameters)
    streams = Streams(found)
    walker = _Walker(found, streams)
    flows = {
        origin.value: Flow(
            walker.after(origin), streams.branches.get(origin.index), origin.depth, _beside(origin)
        )
        for origin in found.origins
        if origin.map is not None or origin.kind == "map"
    }
    of_values = {
        number: streams.branches[state.origin.index]
        for number, state in found.states.items()
        if state.origin.index in streams.branches
    }
    return Following(flows, Chain(_widths(found), streams.counts), of_values)


@dataclasses.dataclass(slots=True)
class _Met:
    """What the walk from one map has met so far."""

    nonlinear: list[State] = dataclasses.field(default_factory=list)
    normalisation: str | None = None
    softmax: bool = False
    gates: bool = False
    residual: bool = False
    index: str | None = None
    maps: int = 0
    others: int = 0


class _Walker:
    def __init__(self, found: Families, streams: Streams) -> None:
        self.streams = streams
        self.activations = Activations(found)
        self.is_final = _final(found.origins)

    def after(self, origin: Origin) -> After:
        met = _Met()
        seen = {origin.index}
        pending = [origin]
        while pending:
            at = pending.pop()
            is_stream = self.streams.has_branch_from(at)
            for child, state in at.children:
                if is_stream and state.linear:
                    met.others += not state.level
                elif self.meets(met, child, state) and child.index not in seen:
                    seen.add(child.index)
                    pending.append(child)
            for state in at.outputs:
                if not state.linear and not state.level:
                    met.nonlinear.append(state)
        branch = self.streams.branches.get(origin.index)
        activation = self.activation(met)
        return After(
            activation,
            met.normalisation,
            met.softmax,
            met.gates,
            met.residual or (branch is not None and branch.is_last),
            self.is_output(origin),
            _is_recurrent(origin),
            met.index,
            bool(met.nonlinear) and activation is None,
        )

    def is_output(self, origin: Origin) -> bool:
        """Whether no map is behind, and an output is reached past no residual sum and no gate."""
        pending, seen = [origin], {origin.index}
        while pending and origin.index in self.is_final:
            at = pending.pop()
            if at.outputs:
                return True
            for child, state in at.children:
                ends = child.index in self.streams.sums or child.kind == "contract"
                if ends or (child.kind == "product" and _is_gated(child, state)):
                    continue
                if child.index not in seen:
                    seen.add(child.index)
                    pending.append(child)
        return False

    def activation(self, met: _Met) -> Activation | None:
        """The activation, where all ways agree on one."""
        if not met.nonlinear:
            return IDENTITY if met.maps and not met.others else None
        return None if met.maps or met.others else self.activations.shared(met.nonlinear)

    def meets(self, met: _Met, child: Origin, state: State) -> bool:
        """Notes what a value goes into; whether to walk on from there."""
        if state.level and child.kind in ("affine", "sum", "product"):
            # Running statistics, losses and the like: off the way to the next map.
            return False
        if child.is_index:
            met.index = met.index or child.detail
            return False
        if child.kind == "softmax" and state.linear:
            met.softmax = True
            return False
        if child.kind == "product":
            met.gates |= _is_gated(child, state)
        if not state.linear or not state.is_elementwise:
            met.nonlinear.append(state)
            return False
        if child.kind == "norm":
            met.normalisation = met.normalisation or child.detail
            return True
        if child.kind == "map":
            met.maps += 1
            return False
        if child.kind == "contract":
            met.others += 1
            met.softmax |= _leads_to_softmax(child)
            return False
        if child.kind == "sum":
            split = self.streams.sums.get(child.index)
            met.others += split is not None
            met.residual |= split is not None and state is split.branch
            return split is None
        if child.kind == "product":
            gated = _is_gated(child, state)
            met.others += gated
            return not gated
        return child.kind in _ON


def _is_gated(product: Origin, state: State) -> bool:
    """Whether the other factor comes from a map, or both are slices of the output of one."""
    others = [each for each in product.parents if each is not state]
    return any(each.origin.has_map for each in others)


def _leads_to_softmax(contraction: Origin) -> bool:
    """Whether scores go into a softmax, scaled, shifted and masked at most."""
    pending, seen = [contraction], set()
    while pending:
        at = pending.pop()
        for child, state in at.children:
            if child.kind == "softmax" and state.linear:
                return True
            on = child.kind in ("affine", "sum", "join") and state.linear
            if on and child.index not in seen:
                seen.add(child.index)
                pending.append(child)
    return False


def _beside(origin: Origin) -> Literal["in", "out"] | None:
    """Which factor of a low-rank bypass a map is, or the map that it is made from."""
    passed = ("map", "affine")
    while not origin.counts and origin.kind in passed and len(origin.parents) == 1:
        origin = origin.parents[0].origin
    return origin.beside


def _is_recurrent(origin: Origin) -> bool:
    """Whether a map reads what a loop over a sequence carries, with no map in between."""
    at = origin
    while not at.counts and len(at.parents) == 1 and at.kind in ("map", "affine"):
        at = at.parents[0].origin
    # A slice of the output of a map reads what the map does.
    origin = at if at.counts else origin
    pending = [state.origin for state in origin.parents]
    seen: set[int] = set()
    while pending:
        at = pending.pop()
        if at.kind == "carry" and at.sequence:
            return True
        if at.kind in ("affine", "norm", "product", "join") and at.index not in seen:
            seen.add(at.index)
            pending += [state.origin for state in at.parents]
    return False


def _final(origins: list[Origin]) -> set[int]:
    """Maps with no other map behind them."""
    mapped: set[int] = set()
    # The second pass sees what loops carry back.
    for _ in range(2):
        for origin in reversed(origins):
            if any(child.counts or child.index in mapped for child, _state in origin.children):
                mapped.add(origin.index)
    return {o.index for o in origins if o.map is not None and o.index not in mapped}


def _widths(found: Families) -> tuple[int, ...]:
    """Features that the maps on the longest way make, those in scans over layers repeated."""
    if not found.origins:
        return ()
    in_line = [origin for origin in found.origins if _beside(origin) is None] or found.origins
    deepest = max(in_line, key=lambda origin: (origin.depth, -origin.index))

    def walk(at: Origin | None, until: Origin | None) -> list[int]:
        widths: list[int] = []
        while at is not None and at is not until:
            if at.entry is not None and at.longest is not None:
                inner = walk(at.longest, at.entry)
                widths = inner * at.entry.length + widths
                at = at.entry.longest
                continue
            if at.counts:
                widths.insert(0, found.features[at.index])
            at = at.longest
        return widths

    return tuple(walk(deepest, None))
