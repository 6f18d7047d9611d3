"""Residual streams: which sums add a branch to what goes around it.

A sum is residual when one of its two sides is an ancestor of the other and maps lie only on the way
around through the branch; or when one side is a single linear map of the common ancestor and the
other more than that (the projection shortcut of a ResNet). The step-to-step state of a recurrent
network is no residual stream.
"""

from __future__ import annotations

import dataclasses
import heapq
from collections.abc import Iterable, Sequence

from jaxinit.reading._families import Families, Origin, State
from jaxinit.reading._records import Branch

_LINEAR = ("affine", "norm", "exit", "product")


@dataclasses.dataclass(slots=True, eq=False)
class Sum:
    """A residual sum ``v = s + g``.

    Attributes:
        sum: origin ``v``.
        ancestor: what both sides come from.
        stream: state of ``s``.
        branch: state of ``g``.
        members: origins of the branch, in order, by index.
        depth: maps that follow each other in the branch.
        last: maps that end the branch, by index.
        has_norm: whether the branch begins with a normalisation.
        previous: the sum before it on the stream.
        start: where the stream begins.
        enters: carries between the previous sum and this one, from the inside out.
        index: of the branch on its stream.
        count: of branches on its stream.
    """

    sum: Origin
    ancestor: Origin
    stream: State
    branch: State
    members: dict[int, Origin]
    depth: int
    last: set[int]
    has_norm: bool
    previous: Sum | None = None
    start: Origin | None = None
    enters: tuple[int, ...] = ()
    index: int = 0
    count: int = 1

    @property
    def has_norm_after(self) -> bool:
        """Whether the sum goes nowhere but into a normalisation, and the branch began without."""
        kinds = {child.kind for child, state in self.sum.children if not state.level}
        return not self.has_norm and kinds == {"norm"}


class Streams:
    """The residual sums of a program, found in the order of execution.

    Args:
        found: the families of the program.
    """

    def __init__(self, found: Families) -> None:
        self.sums: dict[int, Sum] = {}
        self.branches: dict[int, Branch] = {}
        self._producers = found.producers
        self._recurrent = _recurrent_state(found.origins)
        for origin in found.origins:
            if origin.kind == "sum" and origin.detail != "sub" and len(origin.parents) == 2:
                split = self._split(origin)
                if split is not None:
                    self.sums[origin.index] = split
        self.counts = self._number()
        self._assign()

    def has_branch_from(self, origin: Origin) -> bool:
        """Whether a residual branch departs from an origin."""
        return origin.index in self._bases

    def _split(self, origin: Origin) -> Sum | None:
        """The two sides of a sum; None where neither goes around the other."""
        met = _meeting_point(origin)
        if met is None:
            return None
        ancestor, *sides = met
        maps = [side.maps[ancestor.index] for side in sides]
        near, far = (0, 1) if maps[0] < maps[1] else (1, 0)
        stream, branch = origin.parents[near], origin.parents[far]
        projected = maps[near] == 1 and maps[far] > 1 and _is_projection(stream, branch, ancestor)
        # What is spread over positions conditions them, as the time of a diffusion step does.
        projected = projected and not self._is_smaller(stream.origin, origin)
        if maps[near] == maps[far] or (maps[near] and not projected):
            return None
        if stream.origin.index in self._recurrent:
            return None
        members = _between(sides[far].seen, ancestor)
        made = Sum(origin, ancestor, stream, branch, members, 0, set(), False)
        made.depth = _longest(members, branch.origin)
        made.last = _last_maps(branch, members)
        made.has_norm = _begins_with_norm(ancestor, members)
        self._follow_stream(made)
        return made

    def _is_smaller(self, one: Origin, other: Origin) -> bool:
        """Whether a value has fewer entries than another, where both sizes are known."""
        makers = [self._producers.get(origin.value) for origin in (one, other)]
        sizes = [m.equation.outvars[0].aval.size for m in makers if m is not None and m.equation]
        return len(sizes) == 2 and sizes[0] < sizes[1]

    def _follow_stream(self, made: Sum) -> None:
        """Walks back along the stream to the sum before, or to its beginning."""
        at, enters = made.stream.origin, []
        while at.index not in self.sums:
            if at.kind == "carry" and not at.sequence and at.parents:
                enters.append(at.index)
                at = at.parents[0].origin
            elif at.kind in _LINEAR or (at.kind == "map" and at.index > made.ancestor.index):
                at = min((state.origin for state in at.parents), key=lambda o: o.depth)
            else:
                made.start = at
                break
        else:
            made.previous = self.sums[at.index]
            made.start = made.previous.start
        made.enters = tuple(enters)

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
                repeated = _repeats(each)
                if each.enters or repeated != rounds:
                    place = total
                each.index, rounds = place, repeated
                place, total = place + 1, total + repeated
            for each in sums:
                each.count = total
        return tuple(sums[0].count for sums in streams.values())

    def _assign(self) -> None:
        """Inner branches come first, so that a map belongs to the smallest one around it."""
        self._bases = set()
        for each in self.sums.values():
            self._bases |= {each.ancestor.index, each.stream.origin.index}
            for index in each.members:
                if index not in self.branches:
                    self.branches[index] = Branch(
                        index in each.last,
                        each.depth,
                        each.index,
                        each.count,
                        each.has_norm,
                        each.has_norm_after,
                    )


def _repeats(each: Sum) -> int:
    """How often a sum is made for once that its stream begins."""
    start = each.start.times if each.start is not None else 1
    return max(1, each.sum.times // start) if each.sum.times and start else 1


def _recurrent_state(origins: Sequence[Origin]) -> set[int]:
    """Origins that are what a loop over a sequence carries, gated or not, with no map between."""
    found: set[int] = set()
    for origin in origins:
        if origin.kind == "carry":
            passed = origin.sequence
        else:
            passes = origin.kind in ("affine", "norm", "product", "join")
            passed = passes and any(state.origin.index in found for state in origin.parents)
        if passed:
            found.add(origin.index)
    return found


class _Side:
    """One side of a sum, walked backwards: what was seen, and the fewest maps on the way there."""

    def __init__(self) -> None:
        self.seen: dict[int, Origin] = {}
        self.maps: dict[int, int] = {}

    def reach(self, origin: Origin, maps: int) -> None:
        self.seen[origin.index] = origin
        self.maps[origin.index] = min(maps, self.maps.get(origin.index, maps))


def _meeting_point(origin: Origin) -> tuple[Origin, _Side, _Side] | None:
    """The nearest origin that both sides of a sum come from, one of them without a map.

    Both sides are walked backwards in one order, the youngest first, so that nothing older than
    the meeting point is looked at; and no further than until maps lie on every way.

    Returns:
        The origin and both sides. Where maps lie on every way, the nearest origin in common.
    """
    sides = (_Side(), _Side())
    heap: list[int] = []
    queued: set[int] = set()
    free: set[int] = set()
    first: Origin | None = None

    def reach(side: _Side, to: Origin, maps: int) -> None:
        side.reach(to, maps)
        if not maps:
            free.add(to.index)
        if to.index not in queued:
            queued.add(to.index)
            heapq.heappush(heap, -to.index)

    for side, state in zip(sides, origin.parents, strict=True):
        reach(side, state.origin, 0)
    while heap and (free or first is None):
        index = -heapq.heappop(heap)
        if all(index in side.seen for side in sides):
            first = first or sides[0].seen[index]
            if index in free:
                return sides[0].seen[index], *sides
        free.discard(index)
        for side in sides:
            if index in side.seen:
                at = side.seen[index]
                for state in at.parents:
                    reach(side, state.origin, side.maps[index] + at.counts)
    return None if first is None else (first, *sides)


def _is_projection(stream: State, branch: State, ancestor: Origin) -> bool:
    """Whether the stream is one linear map of an ancestor, with norms and biases at most.

    Low-rank factors beside a kernel are one linear map with it: no stream and no branch.
    """
    start = _start(stream, ancestor, ("affine", "norm", "map"))
    other = _start(branch, ancestor, ("affine", "map"))
    return start is not None and (other is None or other.value != start.value)


def _start(state: State, ancestor: Origin, kinds: Sequence[str]) -> State | None:
    """What a value is made of by linear steps of some kinds alone, where that is an ancestor's."""
    while state.origin is not ancestor:
        at = state.origin
        if not state.linear or at.kind not in kinds or not at.parents:
            return None
        state = at.parents[0]
    return state


def _between(seen: dict[int, Origin], ancestor: Origin) -> dict[int, Origin]:
    """Of the origins seen on a side, those that come from the ancestor."""
    members: dict[int, Origin] = {}
    for index in sorted(seen):
        if index <= ancestor.index:
            continue
        parents = (state.origin for state in seen[index].parents)
        if any(parent is ancestor or parent.index in members for parent in parents):
            members[index] = seen[index]
    return members


def _longest(members: dict[int, Origin], end: Origin) -> int:
    """Maps on the longest way through a branch."""
    depths: dict[int, int] = {}
    for index, origin in members.items():
        # What a low-rank bypass adds runs beside the map, and makes no way longer.
        parents = origin.parents if origin.main is None else [origin.main]
        before = (depths.get(state.origin.index, 0) for state in parents)
        depths[index] = 0 if origin.is_index else max(before, default=0) + origin.counts
        if origin.entry is not None and origin.entry.index in depths:
            rounds = origin.entry.length - 1
            depths[index] += max(0, rounds * (depths[index] - depths[origin.entry.index]))
    return depths.get(end.index, 0)


def _last_maps(branch: State, members: dict[int, Origin]) -> set[int]:
    """Maps that reach the end of a branch through biases, scales, gates, sums and dropout only.

    Those biases and scales themselves are among them. A sum weighted by a softmax counts as a
    scale: experts that a router mixes.
    """
    found: set[int] = set()
    pending = [branch]
    while pending:
        state = pending.pop()
        at = state.origin
        if not (state.linear and state.is_elementwise) or at.index not in members:
            continue
        # A batch norm multiplies its scale into what it divides by, not into the data.
        if at.map is not None or at.kind in ("affine", "norm"):
            found.add(at.index)
        if at.map is None and at.kind in ("affine", "product", "sum", "exit", "contract"):
            pending += at.parents
    return found


def _begins_with_norm(ancestor: Origin, members: dict[int, Origin]) -> bool:
    """Whether all ways from the ancestor into a branch begin with a normalisation."""
    pending = _inside(ancestor, members)
    first = False
    while pending:
        at, linear = pending.pop()
        if at.kind == "affine" and linear:
            pending += _inside(at, members)
        elif at.kind != "norm":
            return False
        else:
            first = True
    return first


def _inside(origin: Origin, members: dict[int, Origin]) -> list[tuple[Origin, bool]]:
    children: Iterable[tuple[Origin, State]] = origin.children
    return [(child, state.linear) for child, state in children if child.index in members]
