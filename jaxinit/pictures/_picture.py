"""The picture of a reading: its diagram, laid out and drawn with matplotlib."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxinit.pictures._cells import LINE, PAD, POINTS, RING, Cell
from jaxinit.pictures._diagram import FOLDS_ABOVE, diagram_of
from jaxinit.pictures._layout import Layout, lay_out

if TYPE_CHECKING:
    from jaxinit.reading import Reading

MOST_MAPS = 60
_ENDINGS = (".png", ".svg", ".pdf")
# Edge and face of the boxes, by role; the colours can be told apart by the colour-blind.
_COLOURS = {
    "kernel": ("#2f6c9e", "#e8f1f9"),
    "gate": ("#2f6c9e", "#e8f1f9"),
    "head": ("#b06a00", "#fdf0db"),
    "embedding": ("#b06a00", "#fdf0db"),
    "unknown": ("#c01818", "#fbdada"),
}
_PLAIN = ("#777777", "#f4f4f4")
_WAY, _STREAM, _LABEL = "#8a8a8a", "#222222", "#1d6b3a"


def draw(reading: Reading, path: str | Path) -> None:
    """Writes the picture of a reading; see `Reading.draw`."""
    ending = Path(path).suffix.lower()
    if ending not in _ENDINGS:
        raise ValueError(
            f"Reading.draw needs a path that ends in {', '.join(_ENDINGS)}, got {str(path)!r}. "
            "Name the file for example reading.png."
        )
    # 150 dots to the inch: the widest picture is 1,900 pixels wide.
    figure_of(reading).savefig(path, dpi=150)


def figure_of(reading: Reading) -> Any:
    """The picture as a ``matplotlib.figure.Figure``, which no window and no backend holds on to."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            "Reading.draw needs matplotlib, which is not installed. Install it with "
            'pip install "jaxinit[plots]", or print(reading) for the same as a table.'
        ) from error
    diagram = diagram_of(reading)
    boxes = len(diagram.boxes)
    if not boxes:
        raise ValueError(
            f"Reading.draw needs a model with at least one map, got {len(reading)} parameters and "
            "none of them a kernel or an embedding. Use print(reading) for what they are."
        )
    if boxes > MOST_MAPS:
        raise ValueError(
            f"Reading.draw needs a model of at most {MOST_MAPS} distinct maps, got {boxes}. "
            "Read and draw a part of it, such as one block, or print(reading) for the table."
        )
    layout = lay_out(diagram)
    title = f"{diagram.maps} maps" if diagram.maps != 1 else "1 map"
    if diagram.maps > boxes:
        title += f"; more than {FOLDS_ABOVE}, so that repeated layers are drawn once"
    return _drawn(Figure, layout, title)


def _drawn(figure_type: Any, layout: Layout, title: str) -> Any:
    width, height = layout.size
    width = max(width, 0.075 * len(title) + 0.6)
    figure = figure_type(figsize=(width, height), facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width), ylim=(height, 0))
    axes.axis("off")
    axes.text(0.3, 0.3, title, fontsize=9, va="center", family="monospace", color="#444444")
    for points, is_stream in zip(layout.lines, layout.residual, strict=True):
        _draw_line(axes, points, is_stream)
    for cell in layout.cells.values():
        _draw_cell(axes, cell)
    return figure


def _draw_line(axes: Any, points: list[tuple[float, float]], is_stream: bool) -> None:
    """Straight along the lanes, an S from one to another, an arrow where a row goes on below."""
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path as Curve

    colour, width = (_STREAM, 2.0) if is_stream else (_WAY, 1.1)
    vertices, codes = [points[0]], [Curve.MOVETO]
    for (x, y), (next_x, next_y) in itertools.pairwise(points):
        if next_x < x - 1e-9:
            axes.annotate(
                "",
                (x + 0.12, y),
                (x - 0.05, y),
                arrowprops={"arrowstyle": "-|>", "color": colour, "linewidth": width},
            )
            axes.plot([next_x], [next_y], marker="o", markersize=4, color=colour)
            vertices.append((next_x, next_y))
            codes.append(Curve.MOVETO)
        elif abs(next_y - y) < 1e-9:
            vertices.append((next_x, next_y))
            codes.append(Curve.LINETO)
        else:
            middle = (x + next_x) / 2
            vertices += [(middle, y), (middle, next_y), (next_x, next_y)]
            codes += [Curve.CURVE4] * 3
    curve = Curve(vertices, codes)
    axes.add_patch(PathPatch(curve, fill=False, edgecolor=colour, linewidth=width, zorder=1))


def _draw_cell(axes: Any, cell: Cell) -> None:
    from matplotlib.patches import Circle, FancyBboxPatch

    left, right = cell.box
    middle = (left + right) / 2
    if cell.node.kind == "note":
        _draw_label(axes, middle, cell.y, cell.text)
        return
    edge, face = _COLOURS.get(cell.node.role, _PLAIN)
    if cell.is_ring:
        stream = cell.node.kind == "residual"
        edge = _STREAM if stream else _WAY
        ring = Circle((middle, cell.y), RING, facecolor="white", edgecolor=edge, zorder=3)
        ring.set_linewidth(2.0 if stream else 1.1)
        axes.add_patch(ring)
    else:
        corner = (left, cell.y - cell.half)
        style = "round,pad=0,rounding_size=0.06"
        box = FancyBboxPatch(corner, right - left, 2 * cell.half, boxstyle=style, zorder=3)
        box.set(edgecolor=edge, facecolor=face, linewidth=1.2)
        axes.add_patch(box)
    for number, line in enumerate(cell.text):
        y = cell.y + (number - (len(cell.text) - 1) / 2) * LINE
        is_path = cell.node.kind == "map" and number < len(cell.text) - _below(cell)
        weight = "bold" if is_path or cell.is_ring else "normal"
        _write(axes, middle, y, line, "#111111" if is_path else "#444444", weight)
    if cell.entry:
        _draw_label(axes, left - cell.room(cell.entry) / 2, cell.y, cell.entry)
    if cell.exit:
        _draw_label(axes, right + cell.room(cell.exit) / 2, cell.y, cell.exit)


def _below(cell: Cell) -> int:
    """Lines of a box below its path."""
    return len(cell.node.lines) + (cell.node.times not in (1, None))


def _draw_label(axes: Any, x: float, y: float, lines: list[str]) -> None:
    """What a value meets: words on the line, over white."""
    from matplotlib.patches import Rectangle

    half = LINE * len(lines) / 2
    width = max(map(len, lines)) * POINTS * 0.602 / 72 + PAD
    patch = Rectangle((x - width / 2, y - half), width, 2 * half, zorder=2)
    patch.set(facecolor="white", edgecolor="none")
    axes.add_patch(patch)
    for number, line in enumerate(lines):
        _write(axes, x, y + (number - (len(lines) - 1) / 2) * LINE, line, _LABEL, "normal")


def _write(axes: Any, x: float, y: float, text: str, colour: str, weight: str) -> None:
    axes.text(
        x,
        y,
        text,
        fontsize=POINTS,
        family="monospace",
        ha="center",
        va="center_baseline",
        color=colour,
        fontweight=weight,
        zorder=4,
        parse_math=False,
    )
