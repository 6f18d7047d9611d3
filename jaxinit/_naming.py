"""Names for groups of leaves: a star stands for the numbers in which their paths differ."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

_NUMBER = re.compile(r"(\d+)")


def skeleton(path: str) -> str:
    """A path without its numbers: the same for the layers of a stack."""
    return _NUMBER.sub("*", path)


def common(paths: Sequence[str]) -> str:
    """One name for paths of the same skeleton, with a star where they differ.

    Example:
        >>> common(["h_0/attn/Dense_1", "h_1/attn/Dense_1"])
        'h_*/attn/Dense_1'
    """
    pieces = zip(*map(_NUMBER.split, paths), strict=True)
    return "".join(each[0] if len(set(each)) == 1 else "*" for each in pieces)


def patterns(paths: Iterable[str]) -> list[str]:
    """The names of paths, one name for all paths of a skeleton.

    Example:
        >>> patterns(["h_0/kernel", "h_1/kernel", "ln_f/scale", "conv2/kernel"])
        ['h_*/kernel', 'ln_f/scale', 'conv2/kernel']
    """
    members: dict[str, list[str]] = {}
    for path in paths:
        members.setdefault(skeleton(path), []).append(path)
    return [common(alike) for alike in members.values()]
