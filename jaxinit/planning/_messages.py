"""What error messages of this room share: long lists cut short, and the nearest candidates."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

_CAP = 10
# Comparing strings is slow; nobody reads suggestions drawn from more leaves than these.
_SEARCHED = 2_000


def listing(items: Sequence[str], *, separator: str = ", ", total: int | None = None) -> str:
    """The first ten items, and how many there are beyond; ``total`` when not all are given."""
    shown = separator.join(items[:_CAP])
    surplus = (len(items) if total is None else total) - _CAP
    return shown if surplus <= 0 else f"{shown}{separator}and {surplus} more"


def nearest(wanted: str, candidates: Iterable[str]) -> list[str]:
    """Up to three candidates most like a path or a glob.

    A pattern often lacks the head of a path (``params/``), or stands for it (``**/``). So the last
    segments are compared, as many as are written out.
    """
    segments = [segment for segment in wanted.split("/") if segment != "**"]
    tails: dict[str, str] = {}
    for candidate in candidates:
        if len(tails) >= _SEARCHED:
            break
        tails.setdefault("/".join(candidate.split("/")[-len(segments) :]), candidate)
    close = difflib.get_close_matches("/".join(segments), tails, n=3, cutoff=0.6)
    return [tails[tail] for tail in close]


def suggestion(wanted: str, candidates: Iterable[str]) -> str:
    """``" (nearest: a, b)"``, or nothing when no candidate is near."""
    close = nearest(wanted, candidates)
    return f" (nearest: {', '.join(map(repr, close))})" if close else ""


def nearest_globs(path: str, globs: Iterable[str]) -> str:
    """The same for globs that might have been meant for a path."""
    segments = path.split("/")
    scores = {}
    for glob in globs:
        written = [segment for segment in glob.split("/") if segment != "**"]
        tail = "/".join(segments[-len(written) :]) if written else ""
        scores[glob] = difflib.SequenceMatcher(None, tail, "/".join(written)).ratio()
    close = sorted((glob for glob in scores if scores[glob] > 0.6), key=lambda g: -scores[g])
    return f" (nearest: {', '.join(map(repr, close[:3]))})" if close else ""
