"""The present initialization: what each parameter is drawn with now, or what its array holds."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import jax.numpy as jnp
import numpy as np

from jaxinit._arguments import listing
from jaxinit.advice._facts import ParameterFacts
from jaxinit.checks import Measured, concrete_leaves, measure
from jaxinit.initializers import Initializer
from jaxinit.jaxpr import is_key
from jaxinit.planning import init_by_path
from jaxinit.reading import Reading
from jaxinit.signal import Moments, law_of_sample

# Entries of an array among which distinct values are counted. Draws in float32 have 2**23 values or
# more, so about 2**15**2 / 2 / 2**23 = 64 of these entries repeat an earlier one.
_SAMPLE = 2**15


@dataclasses.dataclass(frozen=True, eq=False)
class Present:
    """How one leaf is drawn, or what it holds.

    Attributes:
        mean: expected or measured mean.
        std: expected or measured standard deviation.
        initializer: what draws it; None for an array.
        nonfinite: entries that are infinite or NaN.
        counts: how often each different value besides 0 is among the first entries of an array of
            floats; empty for an initializer, and for an array that other processes hold a part of.
        array: the array itself, where this process holds all of it.
    """

    mean: float
    std: float
    initializer: Initializer | None = None
    nonfinite: int = 0
    counts: tuple[int, ...] = ()
    array: Any = None

    @property
    def second_moment(self) -> float:
        """Mean square of an entry."""
        return self.std**2 + self.mean**2

    def moments(self, entries: int) -> Moments:
        """Mean and variance of the law that so many entries are or were drawn by."""
        if self.initializer is None:
            return law_of_sample(self.mean, self.second_moment, entries)
        return self.mean, self.std**2

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


PresentByPath: TypeAlias = Mapping[str, Present]


def present_of(caller: str, reading: Reading, init: Any) -> dict[str, Present]:
    """The present initialization of the leaves of a reading, by path.

    Args:
        caller: public name that errors start with.
        reading: the model; leaves that it does not have are left out.
        init: a plan; a mapping from path to initializer or None, as
            `jaxinit.flax.own_initializers` makes one; a tree of arrays; None where nothing is
            known.

    Raises:
        TypeError: when it is none of these.
        ValueError: when it has no leaf of the reading.
    """
    if init is None:
        return {}
    # Random keys among the variables are state without numbers that could be measured.
    leaves = {
        path: leaf
        for path, leaf in init_by_path(caller, init).items()
        if not (hasattr(leaf, "dtype") and is_key(leaf))
    }
    drawn = {p: leaf for p, leaf in leaves.items() if isinstance(leaf, Initializer | None)}
    held = {path: leaf for path, leaf in leaves.items() if path not in drawn}
    found = {
        **present_of_initializers(reading, drawn),
        **present_of_arrays(concrete_leaves(caller, held), measure(held)),
    }
    if not any(path in reading for path in leaves):
        raise ValueError(
            f"{caller} needs the parameters that were read, got the paths "
            f"{listing([repr(path) for path in leaves])} where the reading has "
            f"{listing([repr(path) for path in reading.paths])}. Pass the same tree to both."
        )
    return {path: present for path, present in found.items() if path in reading}


def present_of_initializers(
    reading: Reading, initializers: Mapping[str, Initializer | None]
) -> dict[str, Present]:
    """What initializers draw the leaves of a reading with.

    Args:
        reading: the model, which has the shapes.
        initializers: by path; None where it is not known. Those of unknown law are left out.
    """
    found = {}
    for path, initializer in initializers.items():
        if initializer is not None and path in reading:
            law = initializer.law(reading[path].shape, reading[path].dtype)
            if law.known:
                found[path] = Present(float(np.real(law.mean)), law.std, initializer)
    return found


def present_of_arrays(
    arrays: Mapping[str, Any], measured: Mapping[str, Measured]
) -> dict[str, Present]:
    """What arrays hold.

    Args:
        arrays: by path; the first entries of those that hold floats are looked at.
        measured: what was measured of them.
    """
    found = {}
    for path, array in arrays.items():
        held = measured[path]
        if held.n and held.finite:
            mean = float(np.real(held.mean))
            kept = array if getattr(array, "is_fully_addressable", True) else None
            found[path] = Present(mean, held.std, counts=_counts(array), array=kept)
        else:
            found[path] = Present(math.nan, math.nan, nonfinite=held.nonfinite)
    return found


def _counts(array: Any) -> tuple[int, ...]:
    is_whole = getattr(array, "is_fully_addressable", True)
    if not is_whole or not jnp.issubdtype(array.dtype, jnp.floating):
        return ()
    entries = np.asarray(array.reshape(-1)[:_SAMPLE]).astype(np.float64)
    _, counts = np.unique(entries[entries != 0], return_counts=True)
    return tuple(counts.tolist())


def moments_of_present(p: ParameterFacts, present: PresentByPath) -> Moments:
    """Mean and variance of a leaf that stays as the model draws it; NaN where nothing is known.

    Running statistics that are not known count as those of a standard normal.
    """
    now = present.get(p.path)
    if 0 in p.shape:
        return 0.0, 0.0
    if now is not None and not now.nonfinite:
        return now.moments(math.prod(p.shape))
    if p.role == "state":
        return float(p.path.rpartition("/")[2] in ("var", "variance")), 0.0
    return math.nan, math.nan


def laws_of_present(
    parameters: Sequence[ParameterFacts], present: PresentByPath
) -> dict[str, Moments] | None:
    """Moments of all leaves of floats, for the prediction; None where it would not hold."""
    leaves = [p for p in parameters if p.is_inexact]
    laws = {p.path: moments_of_present(p, present) for p in leaves}
    # A norm that the model estimates, as spectral norm does, is not predicted.
    through = [use.through for p in parameters for use in p.parameter.uses]
    is_estimated = any(each.is_scale_free and each.factor is None for each in through)
    is_known = not any(math.isnan(variance) for _, variance in laws.values())
    is_whole = present and is_known and not is_estimated
    return laws if is_whole else None


def isometric_of(
    reading: Reading, initializers: Mapping[str, Initializer | None]
) -> frozenset[str]:
    """Paths of leaves that orthogonal matrices are drawn into."""

    def is_isometric(path: str, initializer: Initializer) -> bool:
        law = initializer.law(reading[path].shape, reading[path].dtype)
        return law.fixed_norm or any(slab.law.fixed_norm for slab in law.slabs)

    known = {path: each for path, each in initializers.items() if each is not None}
    return frozenset(path for path, each in known.items() if is_isometric(path, each))
