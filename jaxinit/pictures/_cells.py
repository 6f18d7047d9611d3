"""A cell for each box: its text, the labels on its lines, and the room that they take.

Lengths are inches. The letters of the font are equally wide, so that the room of a text is known
before it is drawn.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

from jaxinit.pictures._diagram import Box, Diagram, EdgeLabels

POINTS = 7.5
# DejaVu Sans Mono: a letter is 0.602 of the size of the font.
LETTER = 0.602 * POINTS / 72
LINE = 1.3 * POINTS / 72
PAD, RING = 0.07, 0.11
LETTERS, LABEL_LETTERS = 22, 12


@dataclasses.dataclass(slots=True, eq=False)
class Cell:
    """A box with its text, its labels and its place.

    Attributes:
        box: the box.
        text: its lines, the path first, wrapped.
        entry: label on all edges that enter.
        exit: label on all edges that leave.
        x: left end of the column; lines run from here to the box.
        sides: left and right end of the box, without labels.
        right: right end of the column.
        y: centre.
        half: half of its height.
    """

    box: Box
    text: list[str]
    entry: list[str] = dataclasses.field(default_factory=list)
    exit: list[str] = dataclasses.field(default_factory=list)
    column: int = 0
    lane: int = 0
    x: float = 0.0
    sides: tuple[float, float] = (0.0, 0.0)
    right: float = 0.0
    y: float = 0.0

    @property
    def width(self) -> float:
        """Width of the box."""
        return 2 * RING if self.is_ring else LETTER * max(map(len, self.text)) + 2 * PAD

    @property
    def half(self) -> float:
        """Half of the height of the box."""
        return RING if self.is_ring else (LINE * len(self.text)) / 2 + PAD

    @property
    def is_ring(self) -> bool:
        return self.box.kind in ("residual", "junction")

    def room(self, label: Sequence[str]) -> float:
        """Width that a label beside the box takes."""
        return LETTER * max(map(len, label)) + 4 * PAD if label else 0.0

    @property
    def height(self) -> float:
        """Height of the box with its labels."""
        labels = LINE * max(len(self.entry), len(self.exit))
        return max(2 * self.half, labels + 2 * PAD) + 0.16


def cells_of(diagram: Diagram) -> tuple[Diagram, dict[int, Cell]]:
    """The diagram with its notes, and its cells by the indices of the boxes."""
    diagram = _with_notes(diagram)
    prefix = _shared_prefix([box.name for box in diagram.layers])
    cells = {box.index: Cell(box, _text(box, prefix)) for box in diagram.boxes}
    _label(diagram, cells)
    return diagram, cells


def _shared_prefix(names: Sequence[str]) -> str:
    """First segment of all paths, such as ``params/``, where every path has more than that."""
    first = {name.partition("/")[0] for name in names}
    return f"{first.pop()}/" if len(first) == 1 and all("/" in name for name in names) else ""


def _text(box: Box, prefix: str) -> list[str]:
    if box.kind != "layer":
        return list(box.lines)
    lines = wrapped(box.name.removeprefix(prefix), LETTERS)
    copies = [path for path in box.paths[1:] if box.name == box.paths[0] != path]
    if copies:
        lines.append(f"and {len(copies)} more")
    lines += box.lines
    return [*lines, f"x {box.times}"] if box.times not in (1, None) else lines


def wrapped(path: str, letters: int) -> list[str]:
    """A path over several lines, cut behind a slash where it can be."""
    lines, line = [], ""
    for number, part in enumerate(path.split("/")):
        piece = part if number == 0 else f"/{part}"
        if line and len(line) + len(piece) > letters:
            lines.append(line)
            line = ""
        line += piece
        while len(line) > letters:
            lines.append(line[:letters])
            line = line[letters:]
    return [*lines, line] if line else lines


def _with_notes(diagram: Diagram) -> Diagram:
    """The diagram with a box for each label that only one of several lines into a junction has."""
    shared = _shared_labels(diagram)
    apart = 2 + 2 * len(diagram.edges)
    numbers = {box.index: apart * (place + 1) for place, box in enumerate(diagram.boxes)}
    boxes = [dataclasses.replace(box, index=numbers[box.index]) for box in diagram.boxes]
    kinds = {box.index: box.kind for box in boxes}
    edges: dict[tuple[int, int], EdgeLabels] = {}
    for (source, target), labels in diagram.edges.items():
        start, end = numbers[source], numbers[target]
        rest = labels[len(shared[source]) :]
        if rest and kinds[end] in ("residual", "junction"):
            note = end - 1 - len(edges)
            boxes.append(Box(note, "note", lines=tuple(_short(rest))))
            edges[start, note] = shared[source]
            start, labels = note, ()
        edges[start, end] = labels
    boxes.sort(key=lambda box: box.index)
    streams = {
        numbers[ring]: numbers[at]
        for ring, at in diagram.streams.items()
        if (numbers[at], numbers[ring]) in edges
    }
    return Diagram(boxes, edges, streams, diagram.layer_count)


def _label(diagram: Diagram, cells: dict[int, Cell]) -> None:
    """Puts labels that all edges of a box share after it, the other labels before its targets."""
    shared = _shared_labels(diagram)
    for source, labels in shared.items():
        cells[source].exit = _short(labels)
    for (source, target), labels in diagram.edges.items():
        for line in _short(labels[len(shared[source]) :]):
            if line not in cells[target].entry:
                cells[target].entry.append(line)


def _shared_labels(diagram: Diagram) -> dict[int, EdgeLabels]:
    out: dict[int, list[EdgeLabels]] = {}
    for (source, _), labels in diagram.edges.items():
        out.setdefault(source, []).append(labels)
    return {source: _common_start(each) for source, each in out.items()}


def _common_start(several: Sequence[EdgeLabels]) -> EdgeLabels:
    start = several[0]
    for each in several[1:]:
        length = 0
        while length < min(len(start), len(each)) and start[length] == each[length]:
            length += 1
        start = start[:length]
    return start


def _short(labels: Iterable[str]) -> list[str]:
    return [e if len(e) <= LABEL_LETTERS else f"{e[: LABEL_LETTERS - 1]}…" for e in labels]
