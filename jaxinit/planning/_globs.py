"""Globs over canonical paths, translated to regular expressions.

``*`` stands for any characters within a segment, ``?`` for one, ``[abc]`` and ``[!abc]`` for one of
a set or none of it, ``{a,b}`` for alternatives, which may nest and may hold slashes, and ``**`` as
a whole segment for any number of segments, none included: ``**/kernel`` matches ``kernel`` too.
"""

from __future__ import annotations

import itertools
import re

_MAX_ALTERNATIVES = 1_000


def compile_glob(caller: str, glob: str) -> re.Pattern[str]:
    """The regular expression that a glob stands for, to be matched in full."""
    alternatives = [_translate(caller, glob, plain) for plain in _expand(caller, glob)]
    try:
        return re.compile("|".join(f"(?:{one})" for one in alternatives), re.DOTALL)
    except re.error as error:
        raise ValueError(
            f"{caller} needs a well-formed glob, got {glob!r}: {error}. "
            "A range in brackets runs upwards, as in [a-z]."
        ) from None


def _expand(caller: str, glob: str) -> list[str]:
    """All globs without braces that one with braces stands for."""
    done, waiting = [], [glob]
    while waiting:
        head, brace, tail = _split_at_brace(waiting.pop())
        if not brace:
            done.append(head)
            continue
        inner, closed = _split_alternatives(tail)
        if closed is None:
            raise ValueError(
                f"{caller} needs a glob whose braces are closed, got {glob!r}. "
                "Write {a,b} for alternatives, [{] for the character itself."
            )
        waiting.extend(head + one + closed for one in reversed(inner))
        if len(done) + len(waiting) > _MAX_ALTERNATIVES:
            raise ValueError(
                f"{caller} needs a glob of at most {_MAX_ALTERNATIVES} alternatives, got {glob!r}. "
                "Use a compiled regular expression."
            )
    return done


def _split_at_brace(glob: str) -> tuple[str, str, str]:
    """Splits at the first brace that is not inside a set such as ``[{]``."""
    position = 0
    while position < len(glob):
        if glob[position] == "{":
            return glob[:position], "{", glob[position + 1 :]
        position = _end_of_set(glob, position) if glob[position] == "[" else position + 1
    return glob, "", ""


def _split_alternatives(tail: str) -> tuple[list[str], str | None]:
    """The alternatives after an opening brace, and what follows the closing one, if any."""
    parts, depth, start, position = [], 0, 0, 0
    while position < len(tail):
        character = tail[position]
        if character == "[":
            position = _end_of_set(tail, position)
            continue
        if character == "," and depth == 0:
            parts.append(tail[start:position])
            start = position + 1
        elif character == "{":
            depth += 1
        elif character == "}" and depth:
            depth -= 1
        elif character == "}":
            return [*parts, tail[start:position]], tail[position + 1 :]
        position += 1
    return parts, None


def _end_of_set(glob: str, start: int) -> int:
    """Position after the set that opens at ``start``; after its bracket when it never closes."""
    first = start + 2 if glob[start + 1 : start + 2] == "!" else start + 1
    end = glob.find("]", first + 1)
    return start + 1 if end < 0 else end + 1


def _translate(caller: str, glob: str, plain: str) -> str:
    """Regular expression for a glob without braces."""
    expression, pending_slash = "", False
    # Neighbouring ** say no more than one, and would backtrack.
    segments = [
        segment
        for segment, after in itertools.pairwise([*plain.split("/"), ""])
        if (segment, after) != ("**", "**")
    ]
    for number, segment in enumerate(segments):
        is_last = number == len(segments) - 1
        if segment == "**":
            if is_last:
                expression += "(?:/.*)?" if pending_slash else ".*"
            else:
                expression += ("/" if pending_slash else "") + "(?:[^/]*/)*"
            pending_slash = False
            continue
        if "**" in segment:
            raise ValueError(
                f"{caller} needs ** to be a whole segment of a glob, got {glob!r}. "
                "Write * for any characters within a segment, **/ for any number of segments."
            )
        expression += ("/" if pending_slash else "") + _translate_segment(caller, glob, segment)
        pending_slash = True
    return expression


def _translate_segment(caller: str, glob: str, segment: str) -> str:
    pieces, position = [], 0
    while position < len(segment):
        character = segment[position]
        end = position + 1
        if character == "*":
            pieces.append("[^/]*")
        elif character == "?":
            pieces.append("[^/]")
        elif character == "[":
            end = _end_of_set(segment, position)
            if end == position + 1:
                raise ValueError(
                    f"{caller} needs a glob whose brackets are closed, got {glob!r}. "
                    "Write [abc] for one character of a set, [[] for the bracket itself."
                )
            pieces.append(_translate_set(segment[position + 1 : end - 1]))
        else:
            pieces.append(re.escape(character))
        position = end
    return "".join(pieces)


def _translate_set(inner: str) -> str:
    negated = inner.startswith("!")
    members = re.sub(r"([\\\]\[^&~|])", r"\\\1", inner[1:] if negated else inner)
    return f"[^/{members}]" if negated else f"[{members}]"
