"""What `jaxinit show` does: draws one array and measures it against its declared law."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from jaxinit.initializers import Initializer, to_config
from jaxinit.report._errors import as_unusable
from jaxinit.report._expressions import parse_argument, parse_initializer
from jaxinit.report._histogram import Histogram, histogram
from jaxinit.report._inputs import parse_dtype, types_of
from jaxinit.report._quantities import Quantity, quantities

# 512 MiB as the float64 that the moments are taken in.
_MOST_ENTRIES = 2**26


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
        parts: the same for slices with laws of their own, by where they are.
        histogram: how the values, or the moduli of complex values, are spread.
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


def parse_shape(sizes: Sequence[str]) -> tuple[int, ...]:
    """A shape from its sizes.

    Raises:
        ValueError: when a size is no whole number, or the array would not fit.

    Example:
        >>> parse_shape(["3x3", "64"])
        (3, 3, 64)
    """
    texts = [part for text in sizes for part in text.lower().split("x")]
    if not all(text.isascii() and text.isdigit() for text in texts):
        raise ValueError(
            f"SHAPE needs whole numbers that are not negative, got {' '.join(sizes)!r}. "
            "Write for example 512 256, or 512x256."
        )
    shape = tuple(int(text) for text in texts)
    if math.prod(shape) > _MOST_ENTRIES or max(shape) >= 2**31:
        raise ValueError(
            f"SHAPE needs at most {_MOST_ENTRIES:,} entries to be shown, got {' x '.join(texts)}. "
            "The law is that of a smaller array with the same fans."
        )
    return shape


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
