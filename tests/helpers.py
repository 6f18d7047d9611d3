"""What tests of several rooms share: shapes, meshes of CPU devices, equality to the last bit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh

from jaxinit.report import Report, ReportedGroup

# What XLA's partitioner puts into a program where devices talk to each other.
COLLECTIVES = ("all-gather", "all-reduce", "all-to-all", "collective-permute", "reduce-scatter")


def slow(*values: Any) -> list[Any]:
    """Values of a parametrized test that only the long run draws: see the marker `slow`."""
    return [pytest.param(value, marks=pytest.mark.slow) for value in values]


# The two types of axes that a mesh of users has.
BOTH_AXIS_TYPES = pytest.mark.parametrize(
    "kind", [AxisType.Auto, AxisType.Explicit], ids=["auto", "explicit"]
)
# Where they differ in what JAX traces alone: the other one is left to the long run.
EXPLICIT_AXES_FIRST = pytest.mark.parametrize(
    "kind", [*slow(AxisType.Auto), AxisType.Explicit], ids=["auto", "explicit"]
)


def struct(*shape: int, dtype: Any = "float32") -> jax.ShapeDtypeStruct:
    """An array without its values."""
    return jax.ShapeDtypeStruct(shape, dtype)


# Devices.


def cpu_devices(count: int = 1) -> list[jax.Device]:
    """The first CPU devices; the test is skipped where the shell allows for fewer."""
    try:
        found = jax.devices("cpu")
    except RuntimeError:
        pytest.skip("needs CPU devices: JAX_PLATFORMS=cuda,cpu starts them beside a GPU")
    if len(found) < count:
        pytest.skip(f"needs {count} CPU devices, XLA_FLAGS from the shell gives {len(found)}")
    return found[:count]


def make_mesh(
    kind: AxisType = AxisType.Auto,
    sizes: Sequence[int] = (4, 2),
    names: Sequence[str] = ("a", "b"),
) -> Mesh:
    """A mesh of CPU devices, whatever the default backend."""
    devices = cpu_devices(int(np.prod(sizes)))
    return jax.make_mesh(sizes, names, devices=devices, axis_types=(kind,) * len(sizes))


# Equality.


def content(array: Any) -> tuple:
    """Shape, dtype and bytes of an array: NaN equals NaN, and -0.0 is not 0.0."""
    if jax.dtypes.issubdtype(array.dtype, jax.dtypes.prng_key):
        array = jax.random.key_data(array)
    values = np.asarray(array)
    return values.shape, str(values.dtype), values.tobytes()


def facts(leaf: Any) -> tuple:
    """Everything about a leaf that a program could notice."""
    if not isinstance(leaf, jax.Array):
        return type(leaf), leaf
    weak = getattr(leaf, "weak_type", None)
    return leaf.shape, leaf.dtype, weak, leaf.sharding, leaf.committed, content(leaf)


def _assert_same(by: Any, one: Any, other: Any) -> None:
    assert jax.tree.structure(one) == jax.tree.structure(other)
    pairs = zip(jax.tree.leaves_with_path(one), jax.tree.leaves(other), strict=True)
    for (path, mine), its in pairs:
        assert by(mine) == by(its), jax.tree_util.keystr(path)


def assert_same(one: Any, other: Any) -> None:
    """Two trees that no program can tell apart: bits, weak types, shardings, commitment."""
    _assert_same(facts, one, other)


def assert_same_bits(one: Any, other: Any) -> None:
    """Two trees of the same bits, wherever their leaves lie."""
    _assert_same(content, one, other)


# Reports.


def group_of(report: Report, pattern: str) -> ReportedGroup:
    """The group that has a pattern."""
    return next(group for group in report.groups if pattern in group.patterns)


def codes(report: Report) -> list[str]:
    """Codes of the findings, in order."""
    return [finding.code for finding in report.findings]
