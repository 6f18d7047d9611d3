"""Checks that turn an argument into its one canonical form, or say what was needed instead.

Every function takes the public name that its error starts with. `FrozenArray` is the canonical form
of an array of numbers: a value that compares, hashes, prints and serialises by its content.
"""

from __future__ import annotations

import cmath
import dataclasses
import difflib
import functools
import math
import operator
from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any, Literal, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

_CAP = 10
# Comparing strings is slow; nobody reads suggestions drawn from more leaves than these.
_SEARCHED = 2_000

Shape = tuple[int, ...]
Axis = int | Sequence[int]
Kind = Literal["float", "complex", "integer", "bool"]

_NUMPY_KINDS: tuple[tuple[Any, Kind], ...] = (
    (jnp.floating, "float"),
    (jnp.complexfloating, "complex"),
    (jnp.integer, "integer"),
    (jnp.bool_, "bool"),
)
# Numbers of every real dtype are kept in one, so that equal numbers are equal values.
_CANONICAL = dict.fromkeys("biuf", np.float64) | {"c": np.complex128}


def as_shape(caller: str, shape: Any) -> Shape:
    """A shape as a tuple of Python ints."""
    try:
        if isinstance(shape, str | bytes | Mapping | Set):
            raise TypeError
        sizes = tuple(position(size) for size in shape)
    except TypeError:
        raise TypeError(
            f"{caller} needs a shape that is a sequence of ints, got {shape!r}. "
            "Pass a tuple such as (512, 256); a single axis is (512,)."
        ) from None
    if any(size < 0 for size in sizes):
        raise ValueError(
            f"{caller} needs a shape without negative sizes, got {sizes}. "
            "Write every size out; -1 is not inferred here."
        )
    if math.prod(filter(None, sizes)) >= 2**63:
        raise ValueError(f"{caller} needs a shape of fewer than 2**63 entries, got {sizes}.")
    return sizes


def as_dtype(caller: str, dtype: Any, kinds: frozenset[Kind]) -> np.dtype:
    """A dtype as JAX will hold it (64 bits only under ``jax_enable_x64``), of one of the kinds."""
    try:
        if isinstance(dtype, jax.Array | np.ndarray | np.generic):
            raise TypeError  # numpy would quietly take the dtype of the array
        resolved = jax.dtypes.canonicalize_dtype(float if dtype is None else jnp.dtype(dtype))
        kind = next(
            (kind for numpy_kind, kind in _NUMPY_KINDS if jnp.issubdtype(resolved, numpy_kind)),
            None,
        )
        if kind and resolved.itemsize > (16 if kind == "complex" else 8):
            raise TypeError  # numpy's long doubles
    except (TypeError, ValueError, SyntaxError):  # numpy parses a dtype string with commas
        raise TypeError(
            f"{caller} needs a dtype that JAX knows, got {dtype!r}. Use for example 'float32'."
        ) from None
    if kind == "float" and float(jnp.finfo(resolved).min) >= 0:
        raise TypeError(
            f"{caller} needs a dtype that holds 0 and negative numbers, got {resolved}. "
            "Use for example 'float8_e4m3fn'."
        )
    if kind not in kinds:
        wanted = " or ".join(sorted(kinds))
        raise TypeError(
            f"{caller} needs a {wanted} dtype, got {resolved}. "
            "Draw in such a dtype and convert the result yourself if you need another."
        )
    return np.dtype(cast(Any, resolved))


def position(value: Any) -> int:
    """A Python int; ``TypeError`` for bools and whatever else is no integer."""
    if isinstance(value, bool):
        raise TypeError
    return operator.index(value)


def as_index(caller: str, name: str, value: Any) -> int:
    """A Python int; bools are refused."""
    try:
        return position(value)
    except TypeError:
        raise TypeError(f"{caller} needs {name} as an int, got {value!r}.") from None


def as_axis(caller: str, name: str, value: Any) -> tuple[int, ...]:
    """One or several axes as a tuple of Python ints."""
    try:
        if isinstance(value, Iterable) and not isinstance(value, str | bytes):
            return tuple(position(axis) for axis in value)
        return (position(value),)
    except TypeError:
        raise TypeError(
            f"{caller} needs {name} as an int or a sequence of ints, got {value!r}. "
            "Axes are positions in the shape, for example -2 or (0, 1)."
        ) from None


def as_count(caller: str, name: str, value: Any) -> int:
    """An int of at least 1."""
    count = as_index(caller, name, value)
    if count < 1:
        raise ValueError(f"{caller} needs {name} >= 1, got {count}.")
    return count


def as_number(caller: str, name: str, value: Any) -> float:
    """A finite real number as a Python float, so that it stays weakly typed."""
    if isinstance(value, Tracer):
        raise TypeError(
            f"{caller} needs {name} as a concrete number, got a traced value. Call it "
            "outside of jit, or multiply its result by the traced value."
        )
    try:
        if isinstance(value, bool | str | bytes | complex) or _is_no_number(value):
            raise TypeError
        number = float(value)
    except OverflowError:
        number = math.inf
    except (TypeError, ValueError):
        raise TypeError(f"{caller} needs {name} as a real number, got {value!r}.") from None
    if not math.isfinite(number):
        raise ValueError(f"{caller} needs a finite {name}, got {number}.")
    return number + 0.0  # -0.0 equals 0.0, so it must also draw the same


def _is_no_number(value: Any) -> bool:
    """Whether an array or a numpy scalar is something that ``float`` takes and should not."""
    dtype = str(getattr(value, "dtype", ""))
    return dtype.startswith(("bool", "complex")) or getattr(value, "ndim", 0) > 0


def as_scale(caller: str, name: str, value: Any) -> float:
    """A finite number that is not negative."""
    number = as_number(caller, name, value)
    if number < 0:
        raise ValueError(
            f"{caller} needs {name} >= 0, got {number}. The laws here are symmetric or take "
            "explicit bounds, so a negative factor has no use."
        )
    return number


def as_flag(caller: str, name: str, value: Any) -> bool:
    """True or False."""
    if not isinstance(value, bool):
        raise TypeError(f"{caller} needs {name} as True or False, got {value!r}.")
    return value


def as_choice(caller: str, name: str, value: Any, choices: Sequence[str]) -> str:
    """One of the strings in ``choices``."""
    if not isinstance(value, str) or value not in choices:
        error = ValueError if isinstance(value, str) else TypeError
        raise error(f"{caller} needs {name} to be one of {', '.join(choices)}, got {value!r}.")
    return value


def as_key(caller: str, key: Any) -> Any:
    """One typed key, from a typed key or from raw key data of the default implementation."""
    advice = "Pass jax.random.key(0)"
    if not isinstance(key, jax.Array | np.ndarray):
        raise TypeError(f"{caller} needs a JAX random key, got {key!r}. {advice}.")
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        if key.dtype != np.uint32:
            raise TypeError(
                f"{caller} needs a JAX random key, got an array of dtype {key.dtype} and shape "
                f"{key.shape}. {advice}."
            )
        try:
            key = jax.random.wrap_key_data(jnp.asarray(key))
        except TypeError:
            default = jax.eval_shape(lambda: jax.random.key_data(jax.random.key(0)))
            raise ValueError(
                f"{caller} needs raw key data of the default implementation, uint32 of shape "
                f"{default.shape}, got uint32 of shape {key.shape}. {advice}, or wrap key data of "
                "another implementation with jax.random.wrap_key_data(data, impl=...)."
            ) from None
    if key.shape != ():
        raise ValueError(
            f"{caller} needs one key, got a batch of keys of shape {key.shape}. "
            "Index it, or map over the keys with jax.vmap."
        )
    return key


def source_of(value: Any) -> str:
    """Source text that evaluates to ``value``."""
    if isinstance(value, list):
        return f"[{', '.join(map(source_of, value))}]"
    if isinstance(value, complex) and not cmath.isfinite(value):
        return f"complex({source_of(value.real)}, {source_of(value.imag)})"
    if isinstance(value, float) and not math.isfinite(value):
        return f"float({str(value)!r})"
    return repr(value)


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

    def check_broadcasts(self, caller: str, argument: str, shape: Shape) -> None:
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
    def _content(self) -> tuple[str, Shape, bytes]:
        return self.array.dtype.kind, self.array.shape, self.array.tobytes()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, FrozenArray) and self._content == other._content

    def __hash__(self) -> int:
        return hash(self._content)

    def __repr__(self) -> str:
        return source_of(self.array.tolist())

    def __reduce__(self) -> Any:
        return FrozenArray.of, ("FrozenArray", "array", np.array(self.array))


# What messages say of many things at once.


def listing(items: Sequence[str], *, separator: str = ", ", total: int | None = None) -> str:
    """The first ten items, and how many there are beyond; ``total`` when not all are given."""
    shown = separator.join(items[:_CAP])
    surplus = (len(items) if total is None else total) - _CAP
    return shown if surplus <= 0 else f"{shown}{separator}and {surplus} more"


def nearest(wanted: str, candidates: Iterable[str]) -> list[str]:
    """Up to three candidates most like a path or a glob.

    A pattern often lacks the head of a path (``params/``), or stands for it (``**/``). So the last
    segments are compared, as many as are written out.
    """
    segments = [segment for segment in wanted.split("/") if segment != "**"]
    tails: dict[str, str] = {}
    for candidate in candidates:
        if len(tails) >= _SEARCHED:
            break
        tails.setdefault("/".join(candidate.split("/")[-len(segments) :]), candidate)
    close = difflib.get_close_matches("/".join(segments), tails, n=3, cutoff=0.6)
    return [tails[tail] for tail in close]


def suggestion(wanted: str, candidates: Iterable[str]) -> str:
    """``" (nearest: a, b)"``, or nothing when no candidate is near."""
    close = nearest(wanted, candidates)
    return f" (nearest: {', '.join(map(repr, close))})" if close else ""


def nearest_globs(path: str, globs: Iterable[str]) -> str:
    """The same for globs that might have been meant for a path."""
    segments = path.split("/")
    scores = {}
    for glob in globs:
        written = [segment for segment in glob.split("/") if segment != "**"]
        tail = "/".join(segments[-len(written) :]) if written else ""
        scores[glob] = difflib.SequenceMatcher(None, tail, "/".join(written)).ratio()
    close = sorted((glob for glob in scores if scores[glob] > 0.6), key=lambda g: -scores[g])
    return f" (nearest: {', '.join(map(repr, close[:3]))})" if close else ""
