"""`Reading`: every parameter of a model with what is done with it, as records, table and JSON."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxinit._naming import common, skeleton
from jaxinit._table import render_table
from jaxinit.jaxpr._graph import Graph
from jaxinit.planning import suggestion
from jaxinit.reading._records import Activation, Chain, Parameter, Use

_FORMAT = "jaxinit-reading/1"


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Reading:
    """What a model does with each of its parameters. Prints as a table.

    Attributes:
        parameters: one record for each leaf of the variables, in the order of the tree.
        graph: the traced forward pass.
        inputs: by path, the number that each leaf has among the values of the graph.
        arguments: numbers of the other arrays that the model was called with.
        chain: the longest way through the model, and its residual streams.
    """

    parameters: tuple[Parameter, ...]
    graph: Graph
    inputs: Mapping[str, int]
    arguments: tuple[int, ...]
    chain: Chain

    def __len__(self) -> int:
        return len(self.parameters)

    def __iter__(self) -> Iterator[Parameter]:
        return iter(self.parameters)

    def __contains__(self, path: object) -> bool:
        return path in self._by_path

    def __getitem__(self, path: str) -> Parameter:
        if path not in self._by_path:
            raise KeyError(f"the reading has no leaf {path!r}{suggestion(str(path), self.paths)}")
        return self._by_path[path]

    @functools.cached_property
    def paths(self) -> tuple[str, ...]:
        """Canonical paths, in the order of the leaves."""
        return tuple(parameter.path for parameter in self.parameters)

    @functools.cached_property
    def _by_path(self) -> dict[str, Parameter]:
        return {parameter.path: parameter for parameter in self.parameters}

    @property
    def unknown(self) -> tuple[Parameter, ...]:
        """Parameters with a use that was not understood; ``why`` says what stopped the reading."""
        return tuple(each for each in self.parameters if each.why or each.role == "unknown")

    def to_json(self) -> dict[str, Any]:
        """The reading as plain dicts, lists, strings and numbers, without the graph."""
        return {
            "format": _FORMAT,
            "parameters": [_plain(parameter) for parameter in self.parameters],
        }

    def draw(self, path: str | Path) -> None:
        """Draws the model as a picture: its maps from left to right, branches beside the stream.

        Every map is a box with its path, its role, and ``fan_in → fan_out``; on the lines stand the
        activations, normalisations, softmaxes and gates that its output meets. Heavy lines are
        residual streams, rings the sums and products on the way. Heads and embeddings are orange,
        what was not understood is red. In a model of more than 30 maps repeated layers are drawn
        once, with the number of times. Needs matplotlib: ``pip install "jaxinit[plots]"``.

        Args:
            path: where the picture goes; ends in ``.png``, ``.svg`` or ``.pdf``.

        Raises:
            ImportError: when matplotlib is not installed.
            ValueError: when the model has no map, or more than 60 that differ; when the path ends
                in something else.
        """
        from jaxinit.pictures import draw

        draw(self, path)

    def __repr__(self) -> str:
        return f"<Reading of {len(self.parameters)} parameters; print it for the table>"

    def __str__(self) -> str:
        return _table(self)


def _plain(value: Any) -> Any:
    if isinstance(value, Activation):
        return value.name
    if dataclasses.is_dataclass(value):
        fields = dataclasses.fields(value)
        return {field.name: _plain(getattr(value, field.name)) for field in fields}
    return [_plain(each) for each in value] if isinstance(value, tuple) else value


_COLUMNS = (
    "parameter",
    "shape",
    "leaves",
    "role",
    "contracted",
    "produced",
    "batched",
    "fan_in",
    "fan_out",
    "times",
    "meets",
    "remarks",
)


def _table(reading: Reading) -> str:
    """One line for each use; layers that differ in a number of their path alone share one."""
    groups: dict[tuple[Any, ...], list[str]] = {}
    for parameter in reading.parameters:
        lines = tuple(_cells(parameter, use) for use in parameter.uses or (None,))
        key = (skeleton(parameter.path), parameter.shape, lines)
        groups.setdefault(key, []).append(parameter.path)
    rows = []
    for (_, shape, lines), paths in groups.items():
        for number, cells in enumerate(lines):
            head = (common(paths), _spell(shape), len(paths)) if number == 0 else ("", "", "")
            rows.append((*head, *cells))
    title = f"{len(reading)} parameters"
    if reading.unknown:
        title += f", {len(reading.unknown)} of them not understood"
    empty = [
        number
        for number in range(len(_COLUMNS))
        if number > 3 and not any(row[number] not in ("", None) for row in rows)
    ]
    kept = [number for number in range(len(_COLUMNS)) if number not in empty]
    columns = [_COLUMNS[number] for number in kept]
    return render_table(columns, [[row[n] for n in kept] for row in rows], title=title)


def _cells(parameter: Parameter, use: Use | None) -> tuple[Any, ...]:
    if use is None:
        return (parameter.role, "", "", "", None, None, "", "", parameter.why or "")
    role = parameter.role if parameter.uses[0] is use else use.role
    return (
        role,
        _axes(use.contracted + use.field),
        _axes(use.produced),
        _axes(use.batched),
        _count(use.fan_in),
        _count(use.fan_out),
        "by data" if use.times is None else use.times if use.times != 1 else "",
        _meets(use),
        _remarks(parameter, use),
    )


def _count(fan: float | None) -> int | float | None:
    return int(fan) if fan is not None and fan.is_integer() else fan


def _meets(use: Use) -> str:
    """What comes after a map, in the order in which a reader looks for it."""
    if use.after is None:
        return ""
    after, met = use.after, []
    if after.normalisation:
        met.append(f"{after.normalisation} norm")
    if after.activation is not None and after.activation.name != "identity":
        met.append(after.activation.name)
    met += [word for word in ("softmax", "gates") if getattr(after, word)]
    met += [after.index] if after.index else []
    if use.branch is not None and use.branch.is_last:
        count = use.branch.count
        met.append(f"sum of {count} branch{'' if count == 1 else 'es'}")
    return ", ".join(met)


def _remarks(parameter: Parameter, use: Use) -> str:
    remarks = []
    if use.groups > 1:
        remarks.append(f"{use.groups} groups")
    if use.transposed_strides:
        remarks.append(f"transposed by {_spell(use.transposed_strides)}")
    if use.slice_output is not None:
        remarks.append("packed")
    if use.bypass is not None:
        remarks.append("low-rank bypass")
    if use.role == "unknown" and parameter.why:
        remarks.append(f"stopped by {parameter.why}")
    return ", ".join(remarks)


def _axes(axes: Sequence[int]) -> str:
    return ", ".join(map(str, axes))


def _spell(shape: Sequence[int]) -> str:
    return f"({', '.join(map(str, shape))}{',' if len(shape) == 1 else ''})"
