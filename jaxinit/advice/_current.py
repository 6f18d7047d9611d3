"""What the parameters are drawn with now: the laws of a plan, or a tree as it was measured."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxinit.checks import Measured, concrete_leaves, measure
from jaxinit.initializers import Fans, Initializer
from jaxinit.planning import Plan, flatten, listing
from jaxinit.reading._reader import Reading

# Entries looked at to count distinct values: draws in float32 have 2**23 values or more, so of so
# many about 2**15**2 / 2 / 2**23 = 64 are repeated.
_SAMPLE = 2**15


@dataclasses.dataclass(frozen=True, eq=False)
class Current:
    """How one leaf is drawn, or what it holds.

    Attributes:
        mean: expected or measured mean.
        std: expected or measured standard deviation.
        initializer: what draws it; None for an array.
        fans: fans that the initializer goes by; None where it knows none.
        nonfinite: entries that are infinite or NaN.
        counts: of the different values besides 0 among the first entries of an array of floats, how
            often each is there; empty for a plan, and for arrays that are not all here.
    """

    mean: float
    std: float
    initializer: Initializer | None = None
    fans: Fans | None = None
    nonfinite: int = 0
    counts: tuple[int, ...] = ()

    @property
    def second_moment(self) -> float:
        """Mean square of an entry."""
        return self.std**2 + self.mean**2

    @property
    def is_zero(self) -> bool:
        """Whether every entry is 0."""
        return self.second_moment == 0

    @property
    def is_constant(self) -> bool:
        """Whether every entry is the same number."""
        if self.initializer is not None:
            return self.std == 0 and not self.initializer.random
        return self.std <= 1e-7 * abs(self.mean)


Currents = Mapping[str, Current]


def currents_of(caller: str, reading: Reading, given: Any) -> Currents:
    """The current initialization by path.

    Args:
        caller: public name that errors start with.
        reading: what was read; leaves that it has not are left out.
        given: a plan, a tree of arrays, a mapping from path to initializer or None as
            `jaxinit.flax.own_initializers` makes one, or None for nothing known.

    Raises:
        TypeError: when it is none of these.
        ValueError: when it has no leaf of the reading.
    """
    if given is None:
        return {}
    found = currents_of_plan(given) if isinstance(given, Plan) else None
    if found is None:
        found = _of_initializers(reading, given)
    if found is None:
        flat = flatten(caller, given)
        leaves = zip(flat.paths, flat.leaves, strict=True)
        # Random keys among the variables are state without numbers that could be measured.
        kept = {path: leaf for path, leaf in leaves if not _is_key(leaf)}
        found = currents_of_arrays(concrete_leaves(caller, kept), measure(kept))
    if not any(path in reading for path in found):
        raise ValueError(
            f"{caller} needs the parameters that were read, got the paths "
            f"{listing([repr(path) for path in found])} where the reading has "
            f"{listing([repr(path) for path in reading.paths])}. Pass the same tree to both."
        )
    return {path: current for path, current in found.items() if path in reading}


def currents_of_plan(plan: Plan) -> dict[str, Current]:
    """What a plan draws its leaves with."""
    return {
        leaf.path: Current(
            abs(leaf.law.mean) if isinstance(leaf.law.mean, complex) else float(leaf.law.mean),
            leaf.law.std,
            leaf.initializer,
            leaf.fans,
        )
        for leaf in plan
    }


def _of_initializers(reading: Reading, given: Any) -> dict[str, Current] | None:
    """From a mapping of paths to initializers; None where it is no such thing."""
    if not isinstance(given, Mapping) or not given:
        return None
    if not all(value is None or isinstance(value, Initializer) for value in given.values()):
        return None
    found = {}
    for path, initializer in given.items():
        if initializer is None or path not in reading:
            continue
        parameter = reading[path]
        law = initializer.law(parameter.shape, parameter.dtype)
        found[path] = Current(
            float(np.real(law.mean)), law.std, initializer, initializer.fans(parameter.shape)
        )
    return found


def currents_of_arrays(
    arrays: Mapping[str, Any], measured: Mapping[str, Measured]
) -> dict[str, Current]:
    """What arrays hold.

    Args:
        arrays: by path; of those of floats the first entries are looked at.
        measured: what was measured of them.
    """
    return {path: _of_array(array, measured[path]) for path, array in arrays.items()}


def _of_array(array: Any, measured: Measured) -> Current:
    if not measured.n or not measured.finite:
        return Current(math.nan, math.nan, nonfinite=measured.nonfinite)
    counts = _counts(array) if jnp.issubdtype(array.dtype, jnp.floating) else ()
    return Current(float(np.real(measured.mean)), measured.std, counts=counts)


def _is_key(leaf: Any) -> bool:
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _counts(array: Any) -> tuple[int, ...]:
    if getattr(array, "is_fully_addressable", True) is False:
        return ()
    entries = np.asarray(array.reshape(-1)[:_SAMPLE]).astype(np.float64)
    _, counts = np.unique(entries[entries != 0], return_counts=True)
    return tuple(counts.tolist())
