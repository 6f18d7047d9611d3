"""Places of the boxes of a diagram: columns by depth, lanes beside the stream, rows as in a text.

Lengths are inches from the top left corner.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from jaxinit.pictures._cells import Cell, cells_of
from jaxinit.pictures._diagram import Diagram

# Columns in a row: at this width and 1200 pixels a letter is 10 pixels high.
WIDEST = 12.4
GAP, THIN, MARGIN = 0.42, 0.26, 0.3


@dataclasses.dataclass(slots=True, eq=False)
class Page:
    """The cells and lines of a picture with their places.

    Attributes:
        cells: by the index of the box.
        lines: points of each edge; a step to the left leads to the next row.
        residual: for each line, whether it is a residual stream.
        size: width and height of the picture.
    """

    cells: dict[int, Cell]
    lines: list[list[tuple[float, float]]]
    residual: list[bool]
    size: tuple[float, float]


def lay_out(diagram: Diagram) -> Page:
    """Places a diagram.

    Args:
        diagram: from `diagram.diagram_of`.

    Returns:
        The places of all cells and lines. No two boxes or labels overlap.
    """
    diagram, cells = cells_of(diagram)
    _columns(diagram, cells)
    lanes = _Lanes(diagram, cells).run()
    return _Inches(diagram, cells, lanes).run()


def _columns(diagram: Diagram, cells: dict[int, Cell]) -> None:
    """Puts every box one column after the last that it reads, inputs right before their use."""
    for source, target in sorted(diagram.edges, key=lambda ends: ends[1]):
        cells[target].column = max(cells[target].column, cells[source].column + 1)
    # A layer that reads no other layer, as of a recurrent state, stands right before its use.
    early = {box.index for box in diagram.boxes if box.kind in ("input", "state")}
    late = [n.index for n in diagram.boxes if n.kind == "layer"]
    for index in [*late, *early]:
        targets = [cells[t].column for s, t in diagram.edges if s == index]
        sources = [s for s, t in diagram.edges if t == index]
        if targets and early.issuperset(sources):
            cells[index].column = min(targets) - 1
    used = sorted({cell.column for cell in cells.values()})
    for cell in cells.values():
        cell.column = used.index(cell.column)


class _Lanes:
    """Lanes of all boxes, and of the edges that pass other columns."""

    def __init__(self, diagram: Diagram, cells: dict[int, Cell]) -> None:
        self.diagram, self.cells = diagram, cells
        self.taken: set[tuple[int, int]] = set()
        self.placed: set[int] = set()
        self.sources: dict[int, list[int]] = {}
        for source, target in diagram.edges:
            self.sources.setdefault(target, []).append(source)
        self.onward = self.straight()
        self.lanes: dict[tuple[int, int], int] = {}

    def straight(self) -> dict[int, int]:
        """By box, the next one on its residual stream; a projection on the stream is part of it."""
        onward: dict[int, int] = {}
        for ring, at in self.diagram.streams.items():
            while at not in onward:
                onward[at] = ring
                before = self.sources.get(at, ())
                if self.cells[at].box.kind != "layer" or len(before) != 1 or not before:
                    break
                # A stream that starts at a layer of a branch ends there.
                if not any(r for r, s in self.diagram.streams.items() if r == before[0]):
                    break
                ring, at = at, before[0]
        return onward

    def run(self) -> dict[tuple[int, int], int]:
        for index in sorted(self.cells, key=self.order):
            if index not in self.placed:
                self.place(index)
        for ends in sorted(self.diagram.edges, key=lambda e: self.span(*e)):
            if ends not in self.lanes:
                self.route(*ends)
        return self.lanes

    def order(self, index: int) -> tuple[int, bool, float, int]:
        """Order of placing: by column, streams first, boxes of the same target side by side."""
        first = min((t for s, t in self.diagram.edges if s == index), default=float("inf"))
        return self.cells[index].column, index not in self.onward, first, index

    def span(self, source: int, target: int) -> int:
        return self.cells[target].column - self.cells[source].column

    def place(self, index: int) -> None:
        """Places a box, and all boxes that follow it on its stream, in one lane."""
        run = [index]
        while run[-1] in self.onward and self.onward[run[-1]] not in self.placed:
            run.append(self.onward[run[-1]])
        first, last = self.cells[index].column, self.cells[run[-1]].column
        before = [self.cells[source] for source in self.sources.get(index, ())]
        wanted = min((cell.lane for cell in before if cell.box.index in self.placed), default=0)
        lane = self.free(wanted, range(first, last + 1))
        for number, each in enumerate(run):
            self.cells[each].lane = lane
            self.placed.add(each)
            if number:
                self.lanes[run[number - 1], each] = lane
        self.taken |= {(column, lane) for column in range(first, last + 1)}

    def free(self, wanted: int, columns: range) -> int:
        """The first lane from the wanted one downwards that is free in all columns."""
        lane = wanted
        while any((column, lane) in self.taken for column in columns):
            lane += 1
        return lane

    def route(self, source: int, target: int) -> None:
        start, end = self.cells[source], self.cells[target]
        columns = range(start.column + 1, end.column)
        lane = self.free(min(start.lane, end.lane), columns)
        self.lanes[source, target] = lane
        self.taken |= {(column, lane) for column in columns}


class _Inches:
    """Places of columns, lanes and rows in inches."""

    def __init__(
        self, diagram: Diagram, cells: dict[int, Cell], lanes: dict[tuple[int, int], int]
    ) -> None:
        self.diagram, self.cells, self.lanes = diagram, cells, lanes
        self.count = 1 + max(cell.column for cell in cells.values())
        self.by_column: list[list[Cell]] = [[] for _ in range(self.count)]
        for cell in cells.values():
            self.by_column[cell.column].append(cell)
        self.widths = [sum(_parts(column)) for column in self.by_column]

    def run(self) -> Page:
        rows = self.rows()
        self.row_of = {column: n for n, row in enumerate(rows) for column in row}
        self.spans: list[tuple[float, float]] = [(0.0, 0.0)] * self.count
        for row in rows:
            x = MARGIN + GAP
            for column in row:
                self.spans[column] = (x, x + self.widths[column])
                x += self.widths[column] + GAP
        self.edge = max(right for _, right in self.spans) + GAP
        bottom = self.heights(rows)
        for number, column in enumerate(self.by_column):
            self.put(number, column)
        lines = [self.line(ends) for ends in self.diagram.edges]
        streams = self.diagram.streams
        residual = [streams.get(target) == source for source, target in self.diagram.edges]
        return Page(self.cells, lines, residual, (self.edge + MARGIN, bottom))

    def rows(self) -> list[range]:
        """Columns in rows at most as long as the page is wide; a row ends where few lines cross."""
        rows, start = [], 0
        while start < self.count:
            end, width = start, MARGIN * 2 + GAP
            while end < self.count and width + self.widths[end] + GAP <= WIDEST:
                width += self.widths[end] + GAP
                end += 1
            end = max(end, start + 1)
            if end < self.count:
                late = range(max(start + 1, start + 2 * (end - start) // 3), end + 1)
                end = min(late, key=lambda cut: (self.crossing(cut), -cut))
            rows.append(range(start, end))
            start = end
        return rows

    def crossing(self, cut: int) -> int:
        """Number of boxes with lines from the columns before a cut to those after it."""
        cells = self.cells
        return len({s for s, t in self.diagram.edges if cells[s].column < cut <= cells[t].column})

    def heights(self, rows: Sequence[range]) -> float:
        """Sets the centres of the lanes of each row; returns the bottom of the last row."""
        self.centres: dict[tuple[int, int], float] = {}
        top = 0.55
        for number, row in enumerate(rows):
            need: dict[int, float] = {}
            for cell in self.cells.values():
                if cell.column in row:
                    need[cell.lane] = max(need.get(cell.lane, THIN), cell.height)
            for ends, lane in self.lanes.items():
                first, last = (self.cells[index].column for index in ends)
                if first < row.stop and last >= row.start:
                    need.setdefault(lane, THIN)
                    # A line from the row before enters this row on the lane of its first box.
                    need.setdefault(self.cells[ends[0]].lane, THIN)
            for lane in sorted(need):
                self.centres[number, lane] = top + need[lane] / 2
                top += need[lane]
            top += 0.25
        return top

    def put(self, number: int, column: Sequence[Cell]) -> None:
        left, right = self.spans[number]
        entry, width, _ = _parts(column)
        middle = left + entry + width / 2
        for cell in column:
            cell.x, cell.right = left, right
            cell.sides = (middle - cell.width / 2, middle + cell.width / 2)
            cell.y = self.centres[self.row_of[number], cell.lane]

    def line(self, ends: tuple[int, int]) -> list[tuple[float, float]]:
        """Points of an edge; a jump to the left leads from one row to the next."""
        start, end = (self.cells[index] for index in ends)
        points = [(start.sides[1], start.y), (start.right, start.y)]
        lane = start.lane
        for column in range(start.column + 1, end.column + 1):
            if self.row_of[column] != self.row_of[column - 1]:
                points.append((self.edge, points[-1][1]))
                points.append((MARGIN, self.centres[self.row_of[column], lane]))
            lane = end.lane if column == end.column else self.lanes[ends]
            y = self.centres[self.row_of[column], lane]
            points += [(self.spans[column][0], y), (self.spans[column][1], y)]
        points[-1] = (end.sides[0], end.y)
        return points


def _parts(column: Sequence[Cell]) -> tuple[float, float, float]:
    """Widths in a column: of the labels before the boxes, of the boxes, of the labels after."""
    return (
        max(cell.room(cell.entry) for cell in column),
        max(cell.width for cell in column),
        max(cell.room(cell.exit) for cell in column),
    )
