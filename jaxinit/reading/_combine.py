"""Meetings of parameters with data, and what the data meet afterwards, put together as uses."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from jaxinit.jaxpr._graph import Graph, Node, straighten
from jaxinit.reading._flow import Following, follow
from jaxinit.reading._records import Use
from jaxinit.reading._values import TAGGED
from jaxinit.reading._walk import Met, Walk

_MAPS = ("kernel", "embedding")
# How one number per feature is laid over data.
_SPREADS = ("broadcast_in_dim", "reshape", "convert_element_type")


def uses_of(
    walk: Walk, graph: Graph, leaves: Sequence[int]
) -> tuple[dict[int, list[Met]], Following]:
    """Meetings by parameter, each with what follows it.

    Args:
        walk: a walk that has come to its end.
        graph: what it walked through.
        leaves: numbers of the graph's inputs that are parameters or state.

    Returns:
        By the number of each parameter its meetings, in order of execution, and the whole of what
        was found on the way from map to map.
    """
    uses: dict[int, list[Met]] = {}
    for met in _split(walk):
        uses.setdefault(met.leaf, []).append(met)
    maps = {
        number: leaf
        for leaf, several in uses.items()
        for met in several
        if met.use.role in _MAPS
        for number in (met.use.output, met.use.slice_output)
        if number is not None
    }
    found = follow(graph, maps, leaves)
    readers = _readers(graph)
    for several in uses.values():
        several[:] = [
            dataclasses.replace(met, use=_followed(met.use, found, readers)) for met in several
        ]
    return uses, found


def _readers(graph: Graph) -> dict[int, list[Node]]:
    """Nodes that read each value."""
    readers: dict[int, list[Node]] = {}
    for node in straighten(graph):
        for atom in node.inputs:
            if isinstance(atom, int):
                readers.setdefault(atom, []).append(node)
    return readers


def _made(use: Use) -> int | None:
    """Number of the value that a use makes: its slice, where several are packed together."""
    return use.output if use.slice_output is None else use.slice_output


def _scaled(number: int, readers: Mapping[int, Sequence[Node]]) -> int:
    """What a scale ends up on: a batch norm multiplies it into one over the spread first."""
    for _ in range(len(_SPREADS)):
        nodes = readers.get(number, ())
        if len(nodes) != 1 or nodes[0].primitive not in (*_SPREADS, "mul"):
            break
        (number,) = nodes[0].outputs
        if nodes[0].primitive == "mul":
            break
    return number


def _followed(use: Use, found: Following, readers: Mapping[int, Sequence[Node]]) -> Use:
    number = _made(use)
    if number is None:
        return use
    flow = found.flows.get(number) if use.role in _MAPS else None
    if flow is None:
        branch = found.branches.get(number)
        if use.role == "scale" and not (branch and branch.is_last):
            branch = found.branches.get(_scaled(number, readers), branch)
        return dataclasses.replace(use, branch=branch)
    is_head = use.role == "kernel" and flow.after.is_output
    role = "head" if is_head else use.role
    return dataclasses.replace(
        use,
        role=role,
        after=flow.after,
        branch=flow.branch,
        depth=flow.depth,
        bypass=flow.bypass,
    )


def _split(walk: Walk) -> list[Met]:
    """Meetings in order; kernels packed into one array each have their own."""
    packed = _packed(walk)
    # Power iterations and other sums of a kernel that inputs reach elsewhere are no use of it.
    reached = {met.leaf for met in walk.met if met.use.role == "kernel" and not met.is_aside}
    split = []
    for number, met in enumerate(walk.met):
        if met.is_aside and met.leaf in reached:
            continue
        for share, output in packed.get(number) or [(1.0, None)]:
            fan_out = met.use.fan_out and met.use.fan_out * share
            use = dataclasses.replace(met.use, fan_out=fan_out, slice_output=output)
            split.append(dataclasses.replace(met, use=use))
    return split


def _packed(walk: Walk) -> dict[int, list[tuple[float, int]]]:
    """Slices that each meeting's output is cut into: share of the output, number of the value."""
    packed: dict[int, list[tuple[float, int]]] = {}
    for place, slices in walk.cuts.items():
        tag, size = place.axis - TAGGED, place.size
        if place in walk.rejoined or not _tiles(sorted(slices), size):
            continue
        for start, limit, number in walk.regions.get(tag, [(0, size, tag)]):
            shares = [
                ((last - first) / (limit - start), output)
                for (first, last), output in sorted(slices.items())
                if start <= first and last <= limit
            ]
            packed.setdefault(number, shares)
    return packed


def _tiles(slices: Sequence[tuple[int, int]], size: int) -> bool:
    """Whether several slices lie side by side and cover everything."""
    ends = [0, *(last for _, last in slices)]
    starts = [*(first for first, _ in slices), size]
    return len(slices) > 1 and starts == ends
