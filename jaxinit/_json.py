"""Records as JSON: what Python holds as plain values, and plain values as text.

JSON has no NaN and no infinities, so these numbers become null. A record that needs them keeps them
as text, as the config of an initializer does.
"""

from __future__ import annotations

import dataclasses
import enum
import json
import math
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from typing import Any

import jax
import numpy as np


def plain(value: Any) -> Any:
    """A value as dictionaries, lists, text, finite numbers, booleans and None.

    A dataclass becomes the dictionary of its fields, a mapping a dictionary with text for keys, a
    tuple a list, a set a sorted list, an array nested lists, a NumPy scalar a Python number, a
    dtype its name, an enum its value, a complex number the two entries `re` and `im`, NaN and the
    infinities None. Every other object becomes its `str`.

    Example:
        >>> plain({"ends": (0.0, math.inf), "dtype": np.dtype("float32"), 3: np.int8(4)})
        {'ends': [0.0, None], 'dtype': 'float32', '3': 4}
    """
    if isinstance(value, enum.Enum):
        return plain(value.value)
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, complex):
        return {"re": plain(value.real), "im": plain(value.imag)}
    if isinstance(value, Mapping):
        return {str(plain(name)): plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, AbstractSet):
        return [plain(item) for item in sorted(value)]
    if isinstance(value, np.ndarray | np.generic | jax.Array):
        return _plain_array(np.asarray(value))
    if isinstance(value, np.dtype):
        return value.name
    if isinstance(value, type):
        return np.dtype(value).name if issubclass(value, np.generic) else value.__name__
    if dataclasses.is_dataclass(value):
        fields = dataclasses.fields(value)
        return {field.name: plain(getattr(value, field.name)) for field in fields}
    return str(value)


def _plain_array(values: np.ndarray) -> Any:
    if values.dtype.kind == "V":  # bfloat16 and its kin: `tolist` would leave their scalars
        values = values.astype(np.float64)
    return plain(values.tolist())


def dumps(value: Any, indent: int | None = 2) -> str:
    """The JSON text of `plain(value)`, without a newline at the end.

    Args:
        value: a record, or anything else that `plain` takes.
        indent: spaces for each level; None writes one line.

    Example:
        >>> print(dumps({"std": math.nan, "shape": (3, 2)}, indent=None))
        {"std": null, "shape": [3, 2]}
    """
    return json.dumps(plain(value), indent=indent, allow_nan=False)
