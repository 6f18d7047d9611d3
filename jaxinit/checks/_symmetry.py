"""The assertion that no two units of a layer, no two layers and no two leaves are twins."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxinit.checks._measuring import concrete_leaves, measure
from jaxinit.checks._trees import fail, planned_specs, require_same_shapes
from jaxinit.checks._units import Layout, filled_of, hashes_of, layouts_of
from jaxinit.planning import ParamSpec, Plan, PlannedLeaf, as_matcher, spec_of, suggestion

# Probability, at most, that twins are reported which chance made.
_FAILURE_RATE = 1e-5


class _Finding(NamedTuple):
    path: str
    what: str
    found: str


@dataclasses.dataclass(frozen=True)
class _Leaf:
    """A leaf that may hold twins.

    Attributes:
        path: canonical path.
        array: its values.
        layout: where its units are.
        planned: its line of the plan, None without a plan.
    """

    path: str
    array: Any
    layout: Layout
    planned: PlannedLeaf | None

    @property
    def is_fixed(self) -> bool:
        """Whether the plan says that no key decides its values."""
        leaf = self.planned
        return leaf is not None and (not leaf.initializer.random or leaf.law.variance == 0)

    @property
    def is_random(self) -> bool:
        """Whether the plan says that its values are random."""
        return self.planned is not None and not self.is_fixed

    @property
    def kind(self) -> tuple[Any, ...]:
        """What two leaves must share for their checksums to be comparable."""
        return self.layout, np.dtype(self.array.dtype)


def assert_symmetry_broken(params: Any, plan: Plan | None = None, *, allow: Any = ()) -> None:
    """Asserts that no two units of a layer start equal, for then no training tells them apart.

    The units of a kernel are its slices along the output axes: those of the plan's initializer
    where it knows them, else the last axis. Embedding tables count. Two units are twins when all
    their bits are equal, which 64-bit checksums decide, taken on the device. A constant kernel
    consists of twins. With a plan, layers of a stack that are equal are reported too, and equal
    leaves whose law is random; without one, equal leaves of two axes or more that are not constant.

    Not judged are: leaves of one axis (of one layer), integers, constant leaves whose shape
    ends the shape of a larger leaf beside them (its bias), and equal units that chance may have
    made. Chance makes twins of n units with probability ``n**2 / 2 * 2**-b``, where b, the bits of
    their entries other than zero, is taken as 22 for each from 32 bits on, one more than the
    mantissa has below, and less near the smallest number of the dtype. Twins are reported only
    where that is below 1e-5 over the number of leaves: a bfloat16 kernel of shape (1, 512) is not.
    Without a plan, stacked layers count as more weights of the same units, so stacked biases and
    scales look like kernels, and equal layers are not seen: pass the plan.

    Args:
        params: a tree of arrays.
        plan: what they were drawn by.
        allow: patterns, as in the rules of a plan, of leaves that may hold twins: output maps that
            start at zero, tied weights. One that matches no leaf is an error.

    Raises:
        CheckError: an ``AssertionError`` with a table of twins; or when leaves are missing, or of
            another shape or dtype than planned.
        TypeError: when an argument is of the wrong kind, or a leaf is not an array with values.
        ValueError: when a pattern of ``allow`` is malformed or matches no leaf, or two leaves have
            the same canonical path.

    Example:
        >>> assert_symmetry_broken({"kernel": np.eye(3, dtype="float32")})
        >>> assert_symmetry_broken({"out": {"kernel": np.zeros((3, 4), "float32")}}, allow="out/*")
        >>> assert_symmetry_broken({"kernel": np.eye(3, dtype="float32")[:, [0, 1, 1]]})
        Traceback (most recent call last):
        jaxinit.checks.CheckError: assert_symmetry_broken needs units, ... holds twins:
        path    what   found
        ──────────────────────────────────────────────────────
        kernel  units  2 of 3 have a twin, for example 1 and 2
        ...
    """
    caller = "assert_symmetry_broken"
    if plan is not None and not isinstance(plan, Plan):
        raise TypeError(
            f"{caller} needs a plan or None, got a value of type {type(plan).__name__}. Make one "
            "with jaxinit.plan(tree, rules)."
        )
    arrays = concrete_leaves(caller, params)
    specs = {path: spec_of(caller, path, array) for path, array in arrays.items()}
    if plan is not None:
        require_same_shapes(caller, specs, planned_specs(plan))
    exempt = _exempt(caller, allow, specs)
    layouts = layouts_of(specs, plan)
    judged = [
        leaf
        for path, array in arrays.items()
        if path not in exempt and jnp.issubdtype(array.dtype, jnp.inexact) and np.size(array)
        for leaf in [_Leaf(path, array, layouts[path], None if plan is None else plan[path])]
        if leaf.layout.layer_rank >= 2 or leaf.is_random
    ]
    judge = _Judge(
        hashes_of({leaf.path: (leaf.array, leaf.layout) for leaf in judged}),
        layouts,
        math.log2(max(len(judged), 1) / _FAILURE_RATE),
    )
    findings = [finding for leaf in judged for finding in judge.within(leaf)]
    findings += judge.among(judged)
    if findings:
        count = len({finding.path for finding in findings})
        fail(
            f"{caller} needs units, layers and leaves that differ, {count} of {len(arrays)} leaves "
            f"{'holds' if count == 1 else 'hold'} twins:",
            _Finding._fields,
            findings,
            "Twins get equal gradients and stay twins. Draw them at random, or name those that are "
            "meant to be equal in allow=.",
        )


def _exempt(caller: str, allow: Any, specs: Mapping[str, ParamSpec]) -> set[str]:
    """Paths that a pattern of ``allow`` matches."""
    patterns = list(allow) if isinstance(allow, list | tuple | set | frozenset) else [allow]
    exempt: set[str] = set()
    for pattern in patterns:
        matcher = as_matcher(f"{caller}, in allow=,", pattern)
        hits = {path for path, spec in specs.items() if matcher.matches(path, spec)}
        if not hits:
            raise ValueError(
                f"{caller} needs every pattern in allow= to match a leaf, got {matcher.text!r}, "
                f"which matches none{suggestion(matcher.text, specs)}. Remove or correct it."
            )
        exempt |= hits
    return exempt


@dataclasses.dataclass(frozen=True)
class _Judge:
    """Tells twins from what chance may have made.

    Attributes:
        hashes: checksums by path, by layer and unit.
        layouts: layouts of all leaves of the tree.
        needed: bits of entropy beyond which chance is out of question for one pair.
    """

    hashes: Mapping[str, np.ndarray]
    layouts: Mapping[str, Layout]
    needed: float

    def within(self, leaf: _Leaf) -> Iterator[_Finding]:
        """Twins among the units, and among the layers, of a leaf."""
        hashes, layout = self.hashes[leaf.path], leaf.layout
        rivals = hashes.reshape(len(hashes) * layout.groups, -1)
        units = _repeated(rivals) & (layout.layer_rank >= 2)
        layers = _repeated(_digests(hashes)[None])[0] & (not leaf.is_fixed)
        if not units.any() and not layers.any():
            return  # nearly always, and then nothing more is computed
        constant, entropy = _evidence(leaf)
        if constant and not leaf.is_random and self._is_bias(leaf):
            return
        if constant and units.any():
            if entropy.sum() >= self.needed:
                yield _Finding(leaf.path, "constant", f"all {hashes.size} units are equal")
            return
        units &= entropy.reshape(rivals.shape) >= self.needed + _log2_pairs(*rivals.shape)
        if units.any():
            yield _Finding(leaf.path, "units", _spell_units(layout, rivals, units))
        layers &= entropy.sum(axis=1) >= self.needed + _log2_pairs(1, len(layers))
        if layers.any():
            first = int(np.flatnonzero(layers)[0])
            second = _next_equal(_digests(hashes), first)
            yield _Finding(leaf.path, "layers", f"layers {first} and {second} are equal")

    def among(self, leaves: Sequence[_Leaf]) -> Iterator[_Finding]:
        """Leaves of one shape, dtype and layout that are equal and were meant to be random."""
        kinds: dict[Any, list[_Leaf]] = {}
        for leaf in leaves:
            if not leaf.is_fixed:
                kinds.setdefault(leaf.kind, []).append(leaf)
        for members in kinds.values():
            firsts: dict[bytes, _Leaf] = {}
            for leaf in members:
                first = firsts.setdefault(self.hashes[leaf.path].tobytes(), leaf)
                if first is leaf:
                    continue
                constant, entropy = _evidence(leaf)
                enough = entropy.sum() >= self.needed + _log2_pairs(1, len(members))
                if enough and not (constant and leaf.layout.layer_rank >= 2):
                    yield _Finding(leaf.path, "leaves", f"equal to {first.path}")

    def _is_bias(self, leaf: _Leaf) -> bool:
        """Whether a leaf beside this one has the same shape and more axes in front."""
        parent, shape = leaf.path.rpartition("/")[0], leaf.layout.layer_shape
        beside = (
            layout.layer_shape
            for path, layout in self.layouts.items()
            if path.rpartition("/")[0] == parent
        )
        return any(len(s) > len(shape) and s[-len(shape) :] == shape for s in beside)


def _evidence(leaf: _Leaf) -> tuple[bool, np.ndarray]:
    """Whether all entries are equal, and the bits of entropy of each unit."""
    measured = measure({"": leaf.array})[""]
    constant = measured.variance == 0
    filled = filled_of(leaf.array, leaf.layout)
    if leaf.is_fixed or (constant and leaf.planned is None):
        return constant, np.full(filled.shape, np.inf)  # no chance was involved
    std = measured.std if leaf.planned is None else leaf.planned.law.std
    entries = np.where(filled > 0, filled, measured.n // filled.size)
    return constant, entries * entropy_bits(leaf.array.dtype, std)


def entropy_bits(dtype: Any, std: float) -> float:
    """Bits of collision entropy of one random entry, at least.

    JAX draws from 2**23 levels in float32 and wider; a narrow dtype keeps its mantissa and the
    sign. Near its smallest number a dtype is a grid of step d, on which two normals meet with
    probability ``d / (2 sqrt(pi) std)``.
    """
    limits = jnp.finfo(dtype)
    precision = 22.0 if limits.bits >= 32 else limits.nmant + 1.0
    if std > 0:
        steps = 2 * math.sqrt(math.pi) * std / float(limits.smallest_subnormal)
        precision = min(precision, max(0.0, math.log2(steps)))
    return precision * (2 if np.dtype(dtype).kind == "c" else 1)


def _log2_pairs(rows: int, members: int) -> float:
    return math.log2(rows * members**2 / 2)


def _digests(hashes: np.ndarray) -> np.ndarray:
    """One integer per row: a number for each distinct row."""
    return np.unique(hashes, axis=0, return_inverse=True)[1].reshape(len(hashes))


def _repeated(rows: np.ndarray) -> np.ndarray:
    """Where a row holds the same value elsewhere as well."""
    order = np.argsort(rows, axis=1, kind="stable")
    ordered = np.take_along_axis(rows, order, axis=1)
    same = ordered[:, 1:] == ordered[:, :-1]
    either = np.pad(same, ((0, 0), (1, 0))) | np.pad(same, ((0, 0), (0, 1)))
    repeated = np.empty_like(either)
    np.put_along_axis(repeated, order, either, axis=1)
    return repeated


def _next_equal(values: np.ndarray, index: int) -> int:
    return int(index + 1 + np.flatnonzero(values[index + 1 :] == values[index])[0])


def _spell_units(layout: Layout, rivals: np.ndarray, twins: np.ndarray) -> str:
    row, column = (int(index[0]) for index in np.nonzero(twins))
    layer, group = divmod(row, layout.groups)
    offset = group * rivals.shape[1]
    names = [
        _spell_unit(layout, offset + index) for index in (column, _next_equal(rivals[row], column))
    ]
    where = f" in layer {layer}" if layout.stack else ""
    count = int(twins.sum())
    return f"{count} of {twins.size} have a twin, for example {' and '.join(names)}{where}"


def _spell_unit(layout: Layout, index: int) -> str:
    sizes = [layout.shape[axis] for axis in layout.out]
    place = tuple(int(i) for i in np.unravel_index(index, sizes))
    return str(place[0] if len(place) == 1 else place)
