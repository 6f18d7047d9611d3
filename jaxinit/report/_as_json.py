"""Records as strict JSON: what the terminal shows, for a machine.

Every document starts with ``format`` and ``version``. Numbers that JSON cannot hold (NaN, infinity)
are ``null``; complex numbers are ``{"re": ..., "im": ...}``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from jaxinit.report._errors import Unusable

VERSIONS = {"list": 1, "show": 1, "gain": 1, "report": 2}


def to_json(kind: str, record: Any) -> str:
    """One JSON document, ending in a newline.

    Args:
        kind: what the record is, as in ``VERSIONS``; the format becomes ``jaxinit-<kind>``.
        record: a dataclass or mapping of plain values.

    Example:
        >>> print(to_json("list", {"ends": (0.0, math.inf)}), end="")
        {
          "format": "jaxinit-list",
          "version": 1,
          "ends": [
            0.0,
            null
          ]
        }
    """
    document = {"format": f"jaxinit-{kind}", "version": VERSIONS[kind], **_plain(record)}
    return json.dumps(document, indent=2, allow_nan=False, ensure_ascii=True) + "\n"


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        names = [field.name for field in dataclasses.fields(value)]
        return {name: _plain(getattr(value, name)) for name in names}
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, complex):
        return {"re": _plain(value.real), "im": _plain(value.imag)}
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, bool | int | str):
        return value
    return str(value)


@contextlib.contextmanager
def json_file(path: str | None) -> Iterator[Callable[[str], object]]:
    """A place for a document, tried before the work that makes it.

    Args:
        path: the file, ``-`` for the standard output, None for nowhere.

    Yields:
        A function that writes the document.

    Raises:
        Unusable: when nothing can be written there. A file that was not there before and that
            nothing was written to is removed again.
    """
    if path is None:
        yield lambda text: None
        return
    if path == "-":
        yield sys.stdout.write
        return
    place = Path(path)
    is_new = not place.exists()
    _try(place, lambda: place.open("a", encoding="utf-8").close())
    written = []

    def write(text: str) -> None:
        _try(place, lambda: place.write_text(text, encoding="utf-8"))
        written.append(place)

    try:
        yield write
    finally:
        if is_new and not written:
            with contextlib.suppress(OSError):
                place.unlink()


def _try(place: Path, action: Callable[[], Any]) -> None:
    try:
        action()
    except (OSError, ValueError) as error:
        reason = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else error
        raise Unusable(f"--json cannot write {str(place)!r}: {reason}.") from error
