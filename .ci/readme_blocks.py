"""Takes the fenced code out of a Markdown file, so that what the page says is what CI runs.

readme_blocks.py print LANGUAGE NUMBER FILE    prints one block, counted from 1
readme_blocks.py count LANGUAGE FILE           prints how many there are
readme_blocks.py run FILE                      runs the python blocks top to bottom in one namespace
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import NamedTuple

FENCE = "```"


class Block(NamedTuple):
    """One fenced block: its language, the line its code starts on, its code."""

    language: str
    line: int
    code: str


def blocks(text: str) -> list[Block]:
    """Fenced blocks of a page, in order."""
    found: list[Block] = []
    language: str | None = None
    start, lines = 0, []
    for number, line in enumerate(text.splitlines(), 1):
        if language is None and line.startswith(FENCE):
            language, start, lines = line[len(FENCE) :].strip(), number + 1, []
        elif language is not None and line.rstrip() == FENCE:
            found.append(Block(language, start, "\n".join(lines) + "\n"))
            language = None
        elif language is not None:
            lines.append(line)
    if language is not None:
        raise SystemExit(f"readme_blocks: the fence that opens before line {start} never closes")
    return found


def run(path: Path, python: list[Block]) -> None:
    """Runs blocks as one program; a traceback names the page and the line in it."""
    namespace: dict[str, object] = {"__name__": "__main__"}
    for block in python:
        print(f"{path.name}:{block.line}: {block.code.splitlines()[0]}", flush=True)
        padded = "\n" * (block.line - 1) + block.code
        exec(compile(padded, str(path), "exec"), namespace)
    print(f"{len(python)} blocks ran")


def main(arguments: list[str]) -> None:
    match arguments:
        case ["print", language, number, file]:
            chosen = [b for b in blocks(Path(file).read_text("utf-8")) if b.language == language]
            if not 1 <= int(number) <= len(chosen):
                raise SystemExit(f"readme_blocks: {file} has {len(chosen)} {language} blocks")
            print(chosen[int(number) - 1].code, end="")
        case ["count", language, file]:
            print(sum(b.language == language for b in blocks(Path(file).read_text("utf-8"))))
        case ["run", file]:
            path = Path(file)
            python = [b for b in blocks(path.read_text("utf-8")) if b.language == "python"]
            if not python:
                raise SystemExit(f"readme_blocks: {file} has no python block to run")
            run(path, python)
        case _:
            raise SystemExit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
