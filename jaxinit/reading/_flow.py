"""What the output of every layer meets: activations, normalisations, gates, residual sums.

`follow` takes the graph of a forward pass and the numbers of the values that its layers make. It
cuts the program into families, finds the residual streams, and walks from every layer to the next
layers, sums and outputs.

A sum is residual when one of its two sides comes from an ancestor of the other and all layers lie
on the other side, the branch; or when one side is a single linear layer of the common ancestor and
the other more than that, as the projection shortcut of a ResNet. The state that a recurrent network
carries from step to step is no residual stream.
"""

from __future__ import annotations

import dataclasses
import functools
import heapq
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Literal, NamedTuple

import jax.numpy as jnp

from jaxinit.jaxpr import Class, Graph, Neighbours, Node, is_of, size_of
from jaxinit.reading._activations import IDENTITY, Activations
from jaxinit.reading._families import Families, Member, Origin
from jaxinit.reading._records import Activation, After, Branch, Chain, Flow


class Following(NamedTuple):
    """What was found.

    Attributes:
        flows: by the number of the value that each layer makes.
        chain: the longest way through the model, and its residual streams.
        branches: the residual branch of any value that data reach, by number: for scales and
            biases, which are no layers.
        neighbours: those of the graph, straightened.
        scaled: from the number of a product with a parameter to what it scales.
    """

    flows: dict[int, Flow]
    chain: Chain
    branches: Mapping[int, Branch]
    neighbours: Neighbours
    scaled: Callable[[int], Literal["norm", "layer"] | None]


def follow(graph: Graph, layers: Collection[int], parameters: Iterable[int]) -> Following:
    """Follows the output of every layer to what it meets.

    Args:
        graph: a forward pass, from `jaxinit.jaxpr.trace`.
        layers: numbers of the values that layers make. An embedding may be among them.
        parameters: numbers of the graph's inputs that are parameters or state; all others are data.

    Returns:
        What was found, by the same numbers. A layer that the outputs do not need is left out.

    Example:
        >>> import jax
        >>> from jaxinit.jaxpr import trace
        >>> def model(kernel, x):
        ...     return jax.nn.relu(x @ kernel)
        >>> graph, _ = trace(model, jax.numpy.ones((3, 4)), jax.numpy.ones((2, 3)))
        >>> product = graph.nodes[0].outputs[0]
        >>> flow = follow(graph, {product}, graph.inputs[:1]).flows[product]
        >>> flow.after.activation.name, flow.after.is_output, flow.depth
        ('relu', True, 1)
    """
    found = Families(graph, layers, parameters)
    streams = Streams(found)
    onward = _Onward(found, streams)
    flows = {}
    for origin in found.origins:
        if origin.kind == "layer":
            after, seen = onward.after(origin)
            branch, bypass = streams.branches.get(origin.index), _layer_of(origin).beside
            meets = tuple(sorted(seen.ends))
            flows[origin.value] = Flow(after, branch, origin.depth, bypass, meets, seen.routes)
    of_values = {
        number: streams.branches[member.origin.index]
        for number, member in found.members.items()
        if member.origin.index in streams.branches
    }
    chain = Chain(_widths(found), streams.counts)
    return Following(flows, chain, of_values, found.neighbours, found.scaled)


def _reached(origin: Origin, passes: Callable[[Origin, Origin, Member], bool]) -> Iterator[Origin]:
    """An origin and those that are reached from it, each once.

    Args:
        origin: where the walk begins.
        passes: whether to walk from one origin to another that a member of its family goes into;
            asked for every such step.
    """
    pending, seen = [origin], {origin.index}
    while pending:
        at = pending.pop()
        for child, member in at.children:
            if passes(at, child, member) and child.index not in seen:
                seen.add(child.index)
                pending.append(child)
        yield at


@dataclasses.dataclass(slots=True)
class _Seen:
    """What the walk from one layer has met so far."""

    is_table: bool = False
    routes: bool = False
    nonlinear: list[Member] = dataclasses.field(default_factory=list)
    normalisation: str | None = None
    softmax: bool = False
    gates: bool = False
    residual: bool = False
    index: str | None = None
    layers: int = 0
    others: int = 0
    ends: set[int] = dataclasses.field(default_factory=set)


class _Onward:
    """Walks from layers to what their outputs meet."""

    def __init__(self, found: Families, streams: Streams) -> None:
        self.found, self.streams = found, streams
        self.activations = Activations(found)
        self.last = _without_layers_behind(found.origins)

    def after(self, origin: Origin) -> tuple[After, _Seen]:
        """What the output of a layer meets, and the rest of what was seen on the way."""
        seen = _Seen(is_table=not _layer_of(origin).counts)
        for at in _reached(origin, functools.partial(self.meets, seen)):
            seen.nonlinear += [m for m in at.outputs if not m.linear and not m.level]
            seen.ends |= {m.number for m in at.outputs if m.linear}
        seen.ends |= {self.activations.argument(member) for member in seen.nonlinear}
        branch = self.streams.branches.get(origin.index)
        activation = self.activation(seen)
        after = After(
            activation,
            seen.normalisation,
            seen.softmax,
            seen.gates,
            seen.residual or (branch is not None and branch.is_last),
            self.is_output(origin),
            self.streams.reads_state(_layer_of(origin)),
            seen.index,
            bool(seen.nonlinear) and activation is None,
        )
        return after, seen

    def is_output(self, origin: Origin) -> bool:
        """Whether no layer is behind, and an output is reached past no residual sum and no gate."""

        def passes(at: Origin, child: Origin, member: Member) -> bool:
            is_end = child.index in self.streams.sums or child.kind == "contract"
            return not is_end and not _is_gated(child, member)

        reached = _reached(origin, passes)
        return origin.index in self.last and any(at.outputs for at in reached)

    def chooses(self, origin: Origin) -> bool:
        """Whether whole numbers pick or order something, are compared or put out: no sign bits."""
        avals, outputs = self.found.avals, self.found.graph.outputs

        def is_whole(node: Node) -> bool:
            return not jnp.issubdtype(avals[node.outputs[0]].dtype, jnp.inexact)

        reached = [*self.found.neighbours.after(origin.value, is_whole)]
        made = {number for node in reached if is_whole(node) for number in node.outputs}
        return bool({origin.value, *made}.intersection(outputs)) or any(
            node.primitive in ("eq", "sort", "ragged_dot_general")
            or is_of(node.primitive, Class.INDEXES)
            for node in reached
        )

    def activation(self, seen: _Seen) -> Activation | None:
        """The activation, where all ways agree on one."""
        if not seen.nonlinear:
            return IDENTITY if seen.layers and not seen.others else None
        return None if seen.layers or seen.others else self.activations.shared(seen.nonlinear)

    def meets(self, seen: _Seen, at: Origin, child: Origin, member: Member) -> bool:
        """Notes what a value goes into; whether to walk on from there."""
        kind = child.kind
        if member.linear and at.index in self.streams.bases:
            seen.others += not member.level
            seen.ends.add(member.number)
            # What a stream begins with is not normalised for a layer, but all of a table's gradient
            # comes through what reads the stream.
            if kind == "norm" and seen.is_table:
                seen.normalisation = seen.normalisation or child.detail
            return False
        if member.level and kind in ("affine", "sum", "product"):
            # Running statistics, losses and the like: off the way to the next layer.
            return False
        if child.is_index:
            if self.chooses(child):
                seen.index = seen.index or child.detail
            return False
        if kind == "softmax" and member.linear:
            seen.softmax = True
            seen.routes |= child.detail == "layer" and _weighs_layers(child)
            seen.ends.add(member.number)
            return False
        is_gated = _is_gated(child, member)
        seen.gates |= is_gated
        if kind == "norm":
            seen.normalisation = seen.normalisation or child.detail
        if not member.linear or not member.is_elementwise:
            seen.nonlinear.append(member)
            return False
        residual = self.streams.sums.get(child.index)
        if residual is not None:
            seen.residual |= member is residual.branch
        seen.layers += kind == "layer"
        seen.others += is_gated or kind == "contract" or residual is not None
        if kind == "contract":
            seen.softmax |= _leads_to_softmax(child)
        is_end = is_gated or residual is not None or kind in ("layer", "contract", "softmax")
        seen.ends |= {member.number} if is_end else set()
        return not is_end


def _is_gated(child: Origin, member: Member) -> bool:
    """Whether a value is multiplied by the output of a layer, or two slices of one output meet."""
    others = [each for each in child.parents if each is not member]
    return child.kind == "product" and any(each.origin.has_layer for each in others)


def _weighs_layers(softmax: Origin) -> bool:
    """Whether the results of a softmax, or some of them, multiply what layers make: experts."""

    def passes(at: Origin, child: Origin, member: Member) -> bool:
        # A contraction with whole numbers, as one-hot vectors are, picks or spreads.
        picks = any(each.origin.is_index for each in child.parents)
        return child.kind in ("affine", "sum", "join", "norm", "product", "take") or picks

    return any(
        _source(other).kind == "layer"
        for at in _reached(softmax, passes)
        for child, member in at.children
        for other in child.parents
        if child.kind in ("product", "contract") and other is not member
    )


def _source(member: Member) -> Origin:
    """The origin of a value without scales, biases and loops."""
    at = member.origin
    while at.kind in ("affine", "exit", "take") and at.parents:
        at = at.parents[0].origin
    return at


def _leads_to_softmax(contraction: Origin) -> bool:
    """Whether scores go into a softmax, scaled, shifted and masked at most."""

    def passes(at: Origin, child: Origin, member: Member) -> bool:
        return child.kind in ("affine", "sum", "join") and member.linear

    return any(
        child.kind == "softmax" and member.linear
        for at in _reached(contraction, passes)
        for child, member in at.children
    )


def _layer_of(origin: Origin) -> Origin:
    """The layer that an origin is a slice of, with scales and biases at most; else itself."""
    at = origin
    while not at.counts and at.kind in ("layer", "affine") and len(at.parents) == 1:
        at = at.parents[0].origin
    return at if at.counts else origin


def _without_layers_behind(origins: Sequence[Origin]) -> set[int]:
    """Layers with no other layer behind them."""
    passed: set[int] = set()
    # The second pass sees what loops carry back.
    for _ in range(2):
        for origin in reversed(origins):
            if any(child.counts or child.index in passed for child, _member in origin.children):
                passed.add(origin.index)
    return {o.index for o in origins if o.kind == "layer" and o.index not in passed}


def _widths(found: Families) -> tuple[int, ...]:
    """Features that the layers on the longest way make, those in scans over layers repeated."""
    if not found.origins:
        return ()
    in_line = [origin for origin in found.origins if not _layer_of(origin).beside] or found.origins
    deepest = max(in_line, key=lambda origin: (origin.depth, -origin.index))

    def widths(at: Origin | None, until: Origin | None) -> list[int]:
        made: list[int] = []
        while at is not None and at is not until:
            if at.entry is not None and at.longest is not None:
                made = widths(at.longest, at.entry) * at.entry.length + made
                at = at.entry.longest
                continue
            if at.counts:
                made.insert(0, at.width)
            at = at.longest
        return made

    return tuple(widths(deepest, None))


# Residual streams.

# What lies on a stream between two sums.
_ON_STREAM = ("affine", "norm", "exit", "product")


@dataclasses.dataclass(slots=True, eq=False)
class Sum:
    """A residual sum of a stream and a branch.

    Attributes:
        sum: the origin that it makes.
        ancestor: what both sides come from.
        stream: the side that goes around the branch.
        branch: the other side.
        members: origins of the branch, in order, by index.
        previous: the sum before it on the stream.
        start: where the stream begins.
        is_entered: whether a loop begins between the previous sum and this one.
        index: of the branch on its stream.
        count: of branches on its stream.
    """

    sum: Origin
    ancestor: Origin
    stream: Member
    branch: Member
    members: dict[int, Origin]
    previous: Sum | None = None
    start: Origin | None = None
    is_entered: bool = False
    index: int = 0
    count: int = 1

    @property
    def repeats(self) -> int:
        """How often the sum is made for once that its stream begins."""
        start = 1 if self.start is None else self.start.times
        return max(1, self.sum.times // start) if self.sum.times and start else 1

    def branches(self) -> dict[int, Branch]:
        """The record of the branch for each of its members, by index."""
        depth, last = _longest(self.members, self.branch.origin), _last_layers(self)
        has_norm = _begins_with_norm(self.ancestor, self.members)
        kinds = {child.kind for child, member in self.sum.children if not member.level}
        has_norm_after = not has_norm and kinds == {"norm"}
        return {
            index: Branch(index in last, depth, self.index, self.count, has_norm, has_norm_after)
            for index in self.members
        }


class Streams:
    """The residual sums of a program, found in the order of execution.

    Args:
        found: the families of the program.

    Attributes:
        sums: by the index of the origin.
        counts: number of branches on each stream, in order.
        branches: records of the branches, by the index of the origins in them.
        bases: indices of the origins that a residual branch departs from.
    """

    def __init__(self, found: Families) -> None:
        self.sums: dict[int, Sum] = {}
        self._found = found
        self._recurrent = _recurrent_state(found.origins)
        for origin in found.origins:
            if origin.kind == "sum" and origin.detail != "sub" and len(origin.parents) == 2:
                residual = self._residual(origin)
                if residual is not None:
                    self.sums[origin.index] = residual
        self.counts = self._number()
        self.branches: dict[int, Branch] = {}
        self.bases: set[int] = set()
        for each in self.sums.values():
            self.bases |= {each.ancestor.index, each.stream.origin.index}
            # Inner branches come first, so that a layer belongs to the smallest one around it.
            for index, branch in each.branches().items():
                self.branches.setdefault(index, branch)

    def _residual(self, origin: Origin) -> Sum | None:
        """The two sides of a sum; None where neither goes around the other."""
        avals, origins = self._found.avals, self._found.origins
        met = _meeting_point(origin, origins)
        if met is None:
            return None
        ancestor, *sides = met
        layers = [side[ancestor.index] for side in sides]
        near, far = (0, 1) if layers[0] < layers[1] else (1, 0)
        stream, branch = origin.parents[near], origin.parents[far]
        # What is spread over positions conditions them, as the time of a diffusion step does.
        is_spread = size_of(avals[stream.origin.value]) < size_of(avals[origin.value])
        is_projection = (
            layers[near] == 1
            and layers[far] > 1
            and not is_spread
            and _is_projection(stream, branch, ancestor)
        )
        if layers[near] == layers[far] or (layers[near] and not is_projection):
            return None
        if stream.origin.index in self._recurrent:
            return None
        members = _between([origins[index] for index in sorted(sides[far])], ancestor)
        made = Sum(origin, ancestor, stream, branch, members)
        self._follow_stream(made)
        return made

    def reads_state(self, origin: Origin) -> bool:
        """Whether a layer reads what a loop over a sequence carries, with no layer in between."""
        return any(member.origin.index in self._recurrent for member in origin.parents)

    def _follow_stream(self, made: Sum) -> None:
        """Walks back along the stream to the sum before, or to its beginning."""
        at = made.stream.origin
        while at.index not in self.sums:
            if at.kind == "carry" and not at.is_sequence and at.parents:
                made.is_entered = True
                at = at.parents[0].origin
            elif at.kind in _ON_STREAM or (at.kind == "layer" and at.index > made.ancestor.index):
                at = min((member.origin for member in at.parents), key=lambda o: o.depth)
            else:
                made.start = at
                return
        made.previous = self.sums[at.index]
        made.start = made.previous.start

    def _number(self) -> tuple[int, ...]:
        """Gives every branch its place on its stream; counts of the streams, in order."""
        streams: dict[int, list[Sum]] = {}
        heads: dict[int, int] = {}
        for index, each in self.sums.items():
            head = index if each.previous is None else heads[each.previous.sum.index]
            heads[index] = head
            streams.setdefault(head, []).append(each)
        for sums in streams.values():
            place = total = rounds = 0
            for each in sums:
                if each.is_entered or each.repeats != rounds:
                    place = total
                each.index, rounds = place, each.repeats
                place, total = place + 1, total + rounds
            for each in sums:
                each.count = total
        return tuple(sums[0].count for sums in streams.values())


def _recurrent_state(origins: Sequence[Origin]) -> set[int]:
    """Origins that are what a loop over a sequence carries, gated or not, with no layer between."""
    found: set[int] = set()
    for origin in origins:
        reads = any(member.origin.index in found for member in origin.parents)
        is_state = reads and origin.kind in ("affine", "norm", "product", "join")
        if is_state or (origin.kind == "carry" and origin.is_sequence):
            found.add(origin.index)
    return found


def _meeting_point(
    origin: Origin, origins: Sequence[Origin]
) -> tuple[Origin, dict[int, int], dict[int, int]] | None:
    """The nearest origin that both sides of a sum come from, one of them without a layer.

    Both sides are walked backwards in one order, the youngest first, so that nothing older than
    the meeting point is looked at; and no further than until layers lie on every way.

    Args:
        origin: the sum.
        origins: all of them, by index.

    Returns:
        The origin; and for each side the fewest layers on the way to every origin that it comes
        from, by index. Where layers lie on every way, the nearest origin in common.
    """
    sides: tuple[dict[int, int], dict[int, int]] = ({}, {})
    heap: list[int] = []
    queued: set[int] = set()
    free: set[int] = set()
    first: int | None = None

    def reach(side: dict[int, int], index: int, layers: int) -> None:
        side[index] = min(layers, side.get(index, layers))
        if not layers:
            free.add(index)
        if index not in queued:
            queued.add(index)
            heapq.heappush(heap, -index)

    for side, member in zip(sides, origin.parents, strict=True):
        reach(side, member.origin.index, 0)
    while heap and (free or first is None):
        index = -heapq.heappop(heap)
        if all(index in side for side in sides):
            first = index if first is None else first
            if index in free:
                return origins[index], *sides
        free.discard(index)
        at = origins[index]
        for side in sides:
            for member in at.parents if index in side else ():
                reach(side, member.origin.index, side[index] + at.counts)
    return None if first is None else (origins[first], *sides)


def _is_projection(stream: Member, branch: Member, ancestor: Origin) -> bool:
    """Whether the stream is one linear layer of an ancestor, with norms and biases at most.

    Low-rank factors beside a kernel are one linear layer with it: no stream and no branch.
    """
    start = _start(stream, ancestor, ("affine", "norm", "layer"))
    other = _start(branch, ancestor, ("affine", "layer"))
    return start is not None and (other is None or other.value != start.value)


def _start(member: Member, ancestor: Origin, kinds: Sequence[str]) -> Member | None:
    """What a value is made of by linear steps of some kinds alone, where that is an ancestor's."""
    while member.origin is not ancestor:
        at = member.origin
        if not member.linear or at.kind not in kinds or not at.parents:
            return None
        member = at.parents[0]
    return member


def _between(seen: Sequence[Origin], ancestor: Origin) -> dict[int, Origin]:
    """Of the origins seen on a side, in order, those that come from the ancestor."""
    members: dict[int, Origin] = {}
    for origin in seen:
        parents = (member.origin for member in origin.parents)
        is_after = origin.index > ancestor.index
        if is_after and any(at is ancestor or at.index in members for at in parents):
            members[origin.index] = origin
    return members


def _longest(members: dict[int, Origin], end: Origin) -> int:
    """Layers on the longest way through a branch."""
    depths: dict[int, int] = {}
    for index, origin in members.items():
        # What a low-rank bypass adds runs beside the layer, and makes no way longer.
        parents = origin.parents if origin.main is None else [origin.main]
        before = (depths.get(member.origin.index, 0) for member in parents)
        depths[index] = 0 if origin.is_index else max(before, default=0) + origin.counts
        if origin.entry is not None and origin.entry.index in depths:
            rounds = origin.entry.length - 1
            depths[index] += max(0, rounds * (depths[index] - depths[origin.entry.index]))
    return depths.get(end.index, 0)


def _last_layers(residual: Sum) -> set[int]:
    """Layers that reach the end of a branch through biases, scales, gates, sums and dropout only.

    Those biases and scales themselves are among them. A sum weighted by a softmax counts as a
    scale: experts that a router mixes.
    """
    found: set[int] = set()
    pending = [residual.branch]
    while pending:
        member = pending.pop()
        at = member.origin
        if not (member.linear and member.is_elementwise) or at.index not in residual.members:
            continue
        # A batch norm multiplies its scale into what it divides by, not into the data.
        if at.kind in ("layer", "affine", "norm"):
            found.add(at.index)
        if at.kind in ("affine", "product", "sum", "exit", "contract"):
            pending += at.parents
    return found


def _begins_with_norm(ancestor: Origin, members: dict[int, Origin]) -> bool:
    """Whether all ways from the ancestor into a branch begin with a normalisation."""

    def passes(at: Origin, child: Origin, member: Member) -> bool:
        return child.index in members and child.kind == "affine" and member.linear

    kinds = {
        child.kind
        for at in _reached(ancestor, passes)
        for child, member in at.children
        if child.index in members and not passes(at, child, member)
    }
    return kinds == {"norm"}
