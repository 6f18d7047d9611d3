"""A numpy array that is a value: it compares, hashes, prints and serialises by its content."""

from __future__ import annotations

import cmath
import dataclasses
import functools
import math
from typing import Any

import numpy as np
from jax.core import Tracer

# One dtype for all real numbers, so that equal numbers are equal values wherever they came from.
_CANONICAL = {
    "b": np.float64,
    "i": np.float64,
    "u": np.float64,
    "f": np.float64,
    "c": np.complex128,
}


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class FrozenArray:
    """A read-only array with ``==``, ``hash`` and a ``repr`` made of nested lists."""

    array: np.ndarray

    @classmethod
    def of(cls, caller: str, argument: str, value: Any) -> FrozenArray:
        """Copies and freezes anything numeric.

        Raises:
            TypeError: when the value is traced or not numeric.
            ValueError: when an integer is too large for a float64.
        """
        if isinstance(value, FrozenArray):
            return value
        if isinstance(value, Tracer):
            raise TypeError(
                f"{caller} needs {argument} as concrete numbers, got a traced value. Build the "
                "initializer outside of jit."
            )
        try:
            array = np.array(value)
            if array.dtype.kind == "V":  # bfloat16 and its kin are void dtypes to numpy
                array = array.astype(np.float64)
            kind = array.dtype.kind
            array = array.astype(_CANONICAL[kind])
        except (TypeError, ValueError, KeyError, OverflowError):
            raise TypeError(
                f"{caller} needs {argument} as a number or an array of numbers, got {value!r}."
            ) from None
        if kind in "iu" and np.abs(array).max(initial=0) >= 2**53:
            raise ValueError(
                f"{caller} needs whole numbers in {argument} below 2**53, got {value!r}. "
                "They are kept as float64."
            )
        if not array.size:
            raise ValueError(
                f"{caller} needs at least one number in {argument}, got an array of shape "
                f"{array.shape}. A number broadcasts to an empty array too."
            )
        # -0.0 equals 0.0, so it must also draw the same.
        array = np.asarray(array + 0)
        reals = array.reshape(-1).view(np.float64)
        reals[np.isnan(reals)] = math.nan  # of all its bit patterns one
        array.setflags(write=False)
        return cls(array)

    def tolist(self) -> Any:
        """Nested lists of Python numbers; complex numbers as ``{"re": ..., "im": ...}``."""
        if self.array.dtype.kind != "c":
            return self.array.tolist()
        return {"re": np.real(self.array).tolist(), "im": np.imag(self.array).tolist()}

    def check_broadcasts(self, caller: str, argument: str, shape: tuple[int, ...]) -> None:
        """Raises ``ValueError`` unless the array broadcasts to ``shape``."""
        try:
            fits = np.broadcast_shapes(self.array.shape, shape) == shape
        except ValueError:
            fits = False
        if not fits:
            raise ValueError(
                f"{caller} needs a {argument} that broadcasts to shape {shape}, got one of shape "
                f"{self.array.shape}. Pass a number, or an array of the shape of the parameter."
            )

    @functools.cached_property
    def _content(self) -> tuple[str, tuple[int, ...], bytes]:
        return self.array.dtype.kind, self.array.shape, self.array.tobytes()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, FrozenArray) and self._content == other._content

    def __hash__(self) -> int:
        return hash(self._content)

    def __repr__(self) -> str:
        return _spell(self.array.tolist())

    def __reduce__(self) -> Any:
        return FrozenArray.of, ("FrozenArray", "array", np.array(self.array))


def _spell(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_spell, value))}]"
    if isinstance(value, complex) and not cmath.isfinite(value):
        return f"complex({_spell(value.real)}, {_spell(value.imag)})"
    if isinstance(value, float) and not math.isfinite(value):
        return f"float({str(value)!r})"
    return repr(value)
