"""The work of `jaxinit list`, `show` and `gain`: the catalogue, one array, one activation.

An array is held to its declared law: moments of the array stand beside those of the law, with
z-scores. A z-score counts standard errors. Over n independent entries the mean has standard error
``std / sqrt(n)``, and the second moment about the declared mean has
``variance * sqrt((kurtosis - 1) / n)``.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from jaxinit._json import dumps
from jaxinit._table import spell_bytes
from jaxinit.activations import Summary, summary
from jaxinit.initializers import Description, Initializer, Law, to_config
from jaxinit.report._output import document, new_table, number, score, shows_blocks
from jaxinit.report._parsing import (
    parse_argument,
    parse_dtype,
    parse_initializer,
    parse_shape,
    types_of,
)
from jaxinit.report._targets import as_unusable, loaded

_EIGHTHS = " ▏▎▍▌▋▊▉"
_FULL = "█"
_TORCH = "torch:"


# The catalogue.


def print_catalogue(console: Console, entries: Sequence[Description]) -> None:
    """Prints the catalogue: name, law, when to use it, source."""
    table = new_table(["name", "law", "when to use it", "source"])
    for entry in entries:
        table.add_row(Text(entry.name, "cyan"), entry.law, entry.use, entry.source)
    console.print(table)
    console.print()
    console.print("jaxinit show NAME SHAPE draws one: jaxinit show he_normal 512 256")


# Moments.


@dataclasses.dataclass(frozen=True)
class Quantity:
    """A number of a law, and the same number measured.

    Attributes:
        name: what it is.
        declared: its value in the law; NaN where the law has none.
        measured: its value in the array; None where the array is empty.
        z: the difference in standard errors; None where chance has no part in it.
    """

    name: str
    declared: complex | float
    measured: complex | float | None
    z: float | None = None


def quantities(values: np.ndarray, law: Law, *, random: bool = True) -> tuple[Quantity, ...]:
    """Moments and ends of an array beside those of its law.

    Args:
        values: the array, as float64 or complex128.
        law: what was declared of it.
        random: whether a key decided it; an array that is always the same has no z-scores.

    Example:
        >>> from jaxinit.initializers import ones
        >>> quantities(np.ones(4), ones.law((4,)))[0]
        Quantity(name='mean', declared=1.0, measured=1.0, z=None)
    """
    modulus = "|x|" if np.iscomplexobj(values) else "x"
    declared = {
        "mean": law.mean,
        "std": law.std,
        "kurtosis": law.kurtosis,
        f"smallest {modulus}": law.support[0],
        f"largest {modulus}": law.support[1],
    }
    if not values.size:
        return tuple(Quantity(name, number, None) for name, number in declared.items())
    mean = values.mean().item()
    squares = np.abs(values - mean) ** 2
    variance = float(squares.mean())
    kurtosis = float((squares**2).mean()) / variance**2 if variance**2 else math.nan
    ends = np.abs(values) if np.iscomplexobj(values) else values
    measured = (mean, math.sqrt(variance), kurtosis, float(ends.min()), float(ends.max()))
    scores: tuple[float | None, ...] = (None, None)
    if random:
        scores = (mean_z(law, values.size, mean), spread_z(law, values.size, mean, variance))
    return tuple(
        Quantity(name, number, found, z)
        for (name, number), found, z in zip(
            declared.items(), measured, (*scores, None, None, None), strict=True
        )
    )


def mean_z(law: Law, n: int, mean: complex | float) -> float | None:
    """Standard errors between a measured mean and the law's; unsigned for complex numbers."""
    if not n or law.variance == 0:
        return None
    distance = mean - law.mean
    signed = abs(distance) if isinstance(distance, complex) else float(distance)
    return signed / law.std * math.sqrt(n)


def spread_z(law: Law, n: int, mean: complex | float, variance: float) -> float | None:
    """Standard errors between a measured second moment and the law's; None where it cannot vary."""
    if not n or law.variance == 0 or law.fixed_norm or not law.kurtosis > 1:
        return None
    second_moment = variance + abs(mean - law.mean) ** 2
    return (second_moment / law.variance - 1) / math.sqrt((law.kurtosis - 1) / n)


# Histograms: blocks, or plain ASCII where the output shows nothing else.


@dataclasses.dataclass(frozen=True)
class Histogram:
    """Numbers of values between edges.

    Attributes:
        edges: one more than there are bins; equal when all values are.
        counts: entries per bin.
    """

    edges: tuple[float, ...]
    counts: tuple[int, ...]


def histogram(values: np.ndarray, bins: int | None = None) -> Histogram:
    """Counts real finite values in bins of equal width.

    Args:
        values: the values.
        bins: number of bins; None takes the number of Sturges' rule, at most 15.

    Example:
        >>> histogram(np.array([0.0, 0.0, 1.0]), bins=2)
        Histogram(edges=(0.0, 0.5, 1.0), counts=(2, 1))
    """
    values = values.astype(np.float64).ravel()
    if not values.size:
        return Histogram((), ())
    low, high = values.min(), values.max()
    if low == high:
        return Histogram((float(low), float(high)), (values.size,))
    bins = bins or min(15, math.ceil(math.log2(values.size)) + 1)
    counts, edges = np.histogram(values, bins=bins, range=(low, high))
    return Histogram(tuple(edges.tolist()), tuple(counts.tolist()))


def draw_histogram(shown: Histogram, width: int, *, blocks: bool) -> list[str]:
    """Lines of a histogram: the middle of the bin, a bar, the share of the entries.

    Args:
        shown: the histogram.
        width: characters per line.
        blocks: whether the output can show block characters.

    Example:
        >>> for line in draw_histogram(Histogram((0.0, 0.5, 1.0), (2, 1)), 24, blocks=False):
        ...     print(line)
         0.25 ########## 66.67 %
         0.75 #####      33.33 %
    """
    if not shown.counts:
        return []
    pairs = zip(shown.edges[:-1], shown.edges[1:], strict=True)
    spread = shown.edges[-1] - shown.edges[0]
    middles = [_middle_text((low + high) / 2, spread) for low, high in pairs]
    shares = [f"{100 * count / sum(shown.counts):.2f} %" for count in shown.counts]
    label, share = max(map(len, middles)), max(map(len, shares))
    room = max(4, width - label - share - 3)
    largest = max(shown.counts)
    return [
        f" {middle:>{label}} {_bar(count / largest, room, blocks):<{room}} {text:>{share}}"
        for middle, count, text in zip(middles, shown.counts, shares, strict=True)
    ]


def _bar(share: float, room: int, blocks: bool) -> str:
    if not blocks:
        return "#" * max(round(share * room), int(share > 0))
    eighths = max(round(share * room * 8), int(share > 0))
    return _FULL * (eighths // 8) + _EIGHTHS[eighths % 8].strip()


def _middle_text(value: float, spread: float) -> str:
    """Three digits of the middle of a bin; 0 where it differs from 0 by rounding alone."""
    if spread and abs(value) < 1e-3 * spread:
        value = 0.0
    return f"{value:.3g}"


# One array.


@dataclasses.dataclass(frozen=True)
class Shown:
    """One array that was drawn.

    Attributes:
        initializer: the call that makes the initializer.
        config: its JSON config; None when it has none.
        shape: shape of the array.
        dtype: dtype of the array.
        seed: seed of the key.
        entries: number of entries.
        nbytes: bytes of the array.
        fan_in: inputs that one output sums over; None where the law knows no fans.
        fan_out: outputs that one input feeds.
        quantities: moments and ends of the values.
        parts: the same for slices with laws of their own, by axis and range.
        histogram: numbers of values, or of moduli of complex values, between edges.
    """

    initializer: str
    config: Any
    shape: tuple[int, ...]
    dtype: str
    seed: int
    entries: int
    nbytes: int
    fan_in: float | None
    fan_out: float | None
    quantities: tuple[Quantity, ...]
    parts: dict[str, tuple[Quantity, ...]]
    histogram: Histogram

    def to_dict(self) -> dict[str, Any]:
        """The array as plain dictionaries, lists, strings and numbers, without its entries."""
        return document("show", self)

    def to_json(self) -> str:
        """The same as JSON text."""
        return dumps(self.to_dict())


def show(
    name: str,
    sizes: Sequence[str],
    *,
    arguments: Sequence[str] = (),
    dtype: str | None = None,
    seed: int = 0,
) -> Shown:
    """Draws one array and measures it.

    Args:
        name: a name of the catalogue, a call or a JSON config.
        sizes: the shape, as ``["512", "256"]`` or ``["512x256"]``.
        arguments: further arguments of the factory, as ``NAME=VALUE``.
        dtype: name of the dtype.
        seed: seed of the key.

    Raises:
        Unusable: when any of these cannot be used, or the law makes no sense for the shape.
    """
    with as_unusable():
        named = _named(arguments)
        initializer = parse_initializer(name, named)
        if not isinstance(initializer, Initializer):
            raise ValueError(f"show needs an initializer, got {initializer!r}, a rule for trees.")
        shape = parse_shape(sizes)
        target = None if dtype is None else parse_dtype(dtype)
        with types_of(target):
            array = initializer(jax.random.key(seed), shape, target)
            values = np.asarray(array)
            return _shown(initializer, values, str(array.dtype), seed)


def _named(arguments: Sequence[str]) -> dict[str, Any]:
    named: dict[str, Any] = {}
    for text in arguments:
        name, value = parse_argument(text)
        if name in named:
            raise ValueError(f"--arg needs every name once, got {name!r} twice.")
        named[name] = value
    return named


def _shown(initializer: Initializer, values: np.ndarray, dtype: str, seed: int) -> Shown:
    law = initializer.law(values.shape, values.dtype)
    fans = initializer.fans(values.shape)
    wide = _wide(values)
    parts = {}
    for slab in law.slabs:
        inside = np.take(wide, range(slab.start, slab.stop), axis=slab.axis)
        parts[f"axis {slab.axis}, {slab.start} to {slab.stop}"] = quantities(
            inside, slab.law, random=initializer.random
        )
    try:
        config = to_config(initializer)
    except TypeError:
        config = None
    return Shown(
        initializer=repr(initializer),
        config=config,
        shape=values.shape,
        dtype=dtype,
        seed=seed,
        entries=values.size,
        nbytes=values.nbytes,
        fan_in=fans.fan_in if fans else None,
        fan_out=fans.fan_out if fans else None,
        quantities=quantities(wide, law, random=initializer.random),
        parts=parts,
        histogram=histogram(np.abs(wide) if np.iscomplexobj(wide) else wide),
    )


def _wide(values: np.ndarray) -> np.ndarray:
    return values.astype(np.complex128 if np.iscomplexobj(values) else np.float64)


def print_array(console: Console, shown: Shown) -> None:
    """Prints one array: what it is, measured against declared, a histogram."""
    shape = " x ".join(map(str, shown.shape)) or "scalar"
    console.print(Text(shown.initializer, "bold cyan"))
    console.print(
        f"{shape}, {shown.dtype}, {shown.entries:,} entries, {spell_bytes(shown.nbytes)}, "
        f"seed {shown.seed}"
    )
    if shown.fan_in is not None and shown.fan_out is not None:
        console.print(f"fan in {shown.fan_in:g}, fan out {shown.fan_out:g}")
    console.print()
    console.print(_quantities(shown.quantities))
    for place, part in shown.parts.items():
        console.print()
        console.print(f"part: {place}")
        console.print(_quantities(part))
    lines = draw_histogram(shown.histogram, min(console.width, 100), blocks=shows_blocks(console))
    if lines:
        console.print()
        console.print("\n".join(lines))


def _quantities(rows: Sequence[Quantity]) -> Table:
    table = new_table(["", "declared", "measured", "z"], ["declared", "measured", "z"])
    for row in rows:
        table.add_row(row.name, number(row.declared), number(row.measured), score(row.z))
    return table


# One activation.


def gain_row(target: str, inputs: int | None = None) -> Summary:
    """The summary of an activation.

    Args:
        target: a name of the catalogue, or ``module:attribute`` / ``file.py:attribute``;
            ``torch:NAME`` is the activation whose number in torch is wanted.
        inputs: how many inputs a callable takes.

    Raises:
        Unusable: when there is no such name, nothing usable is there, or it is no activation.
    """
    name = target.strip().removeprefix(_TORCH)
    if ":" not in name:
        with as_unusable():
            return summary(name, inputs=inputs)
    with loaded(target) as found, as_unusable(f"TARGET: {found.text}: ", found.source):
        return summary(found.value, inputs=inputs)


def print_gain(console: Console, row: Summary) -> None:
    """Prints the summary: a table, torch's gain and the difference to it, and warnings."""
    table = new_table(["", "value", "what it is"], ["value"])
    for label, value, meaning in row.quantities:
        table.add_row(label, "none" if value is None else f"{value:.9g}", meaning)
    console.print(Text(row.name, "bold cyan"))
    console.print(table)
    if row.torch:
        console.print(f"\n{row.torch}")
    if note := _in_depth(row):
        console.print(f"\n{note}")
    if row.no_critical:
        console.print(f"\nNo critical pair: {row.no_critical}.")
    for warning in row.warnings:
        console.print(Text(f"\nwarning: {warning}", "bold yellow"))


def _in_depth(row: Summary) -> str | None:
    """Which of two gains the advice takes, where one layer and many ask for different ones."""
    pair, gain = row.critical, row.forward_gain
    if pair is None or gain is None or not pair.weight_variance:
        return None
    deep = math.sqrt(pair.weight_variance)
    if math.isclose(deep, gain, rel_tol=0.01):
        return None
    bias = f" and biases of std {math.sqrt(pair.bias_variance):.4g}" if pair.bias_variance else ""
    return (
        f"Two gains: {gain:.4g} keeps inputs of unit size through one layer; through many layers "
        f"the critical pair keeps signals and gradients, with a gain of {deep:.4g}{bias}, which is "
        "what jaxinit advise draws plain networks with."
    )
