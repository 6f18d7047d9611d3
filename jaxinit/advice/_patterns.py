"""Globs that take exactly the leaves they should: as few as possible, and none by chance."""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection, Hashable, Sequence

from jaxinit.planning import compile_glob

_NUMBER = re.compile(r"\d+")
_SPECIAL = re.compile(r"[*?\[\]{}]")


def rules_for(values: Sequence[tuple[str, Hashable]]) -> list[tuple[str, int]]:
    """Ordered globs over paths, each with the index of a path that has the value it stands for.

    The first match wins, so a glob may also match what earlier ones have taken. Values with few
    leaves come first, the commonest last, so that it may have a wide glob.

    Args:
        values: every path with what it shall be given.

    Returns:
        Pairs of a glob and the index of one of its leaves; every glob takes a leaf, every leaf is
        taken, and each gets its own value.
    """
    members: dict[Hashable, list[int]] = {}
    for index, (_, value) in enumerate(values):
        members.setdefault(value, []).append(index)
    paths = [path for path, _ in values]
    order = sorted(members.values(), key=lambda group: (len(group), group[0]))
    rules: list[tuple[str, int]] = []
    left = set(range(len(values)))
    for number, group in enumerate(order):
        if number == len(order) - 1 and len(order) > 1:
            tail = _common_tail(group, left, paths)
            rules.append((tail, group[0]))
            break
        wanted = set(group)
        others = [paths[index] for index in left - wanted]
        for glob, taken in _cover([paths[index] for index in group], others):
            rules.append((glob, next(i for i in group if paths[i] in taken)))
        left -= wanted
    return rules


def _common_tail(group: Sequence[int], left: Collection[int], paths: Sequence[str]) -> str:
    """A glob for the last value: its last segment where all leaves share one, else everything."""
    names = {paths[index].rpartition("/")[2] for index in left}
    assert set(group) == set(left)
    return f"**/{_literal(names.pop())}" if len(names) == 1 else "**"


def _cover(wanted: Sequence[str], others: Sequence[str]) -> list[tuple[str, set[str]]]:
    """Globs that match all of the wanted paths and none of the others, greedily the widest."""
    left = list(wanted)
    chosen: list[tuple[str, set[str]]] = []
    while left:
        best: tuple[str, set[str]] | None = None
        for glob in _candidates(left[0]):
            matches = compile_glob("advise", glob).fullmatch
            if any(matches(path) for path in others):
                continue
            taken = {path for path in left if matches(path)}
            if best is None or len(taken) > len(best[1]):
                best = (glob, taken)
        if best is None:
            best = (_literal(left[0]), {left[0]})
        chosen.append(best)
        left = [path for path in left if path not in best[1]]
    return chosen


def _candidates(path: str) -> list[str]:
    """Globs that match a path, from the widest to the path itself.

    First the last one, two and three segments with their numbers left open, then those with
    their numbers, then all segments.
    """
    segments = path.split("/")
    found = []
    for count in range(1, min(len(segments), 4) + 1):
        tail = segments[-count:]
        found += [f"**/{'/'.join(tail)}" for tail in _opened(tail)]
    # One name, whatever is above and between: layers of one kind at several depths.
    for first, last in itertools.combinations(range(len(segments)), 2):
        found += [f"**/{name}/**/{_literal(segments[last])}" for name in _names(segments[first])]
    found += ["/".join(each) for each in _opened(segments)]
    return [*dict.fromkeys(found), _literal(path)]


def _opened(segments: Sequence[str]) -> list[list[str]]:
    """Segments with all numbers left open, and as they are."""
    return [[_names(segment)[0] for segment in segments], [_literal(s) for s in segments]]


def _names(segment: str) -> list[str]:
    """A segment with its numbers left open, and as it is."""
    literal = _literal(segment)
    return [literal] if _SPECIAL.search(segment) else [_NUMBER.sub("*", segment), literal]


def _literal(path: str) -> str:
    """A glob that matches a path and nothing else."""
    return _SPECIAL.sub(lambda match: f"[{match[0]}]", path)
