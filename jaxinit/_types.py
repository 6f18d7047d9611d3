"""Types that several rooms use, under the names of what they are for."""

from __future__ import annotations

from typing import Any, TypeAlias

import jax
import numpy as np
from jax.sharding import PartitionSpec, Sharding

# Containers of any kind that JAX takes apart, down to arrays, shapes or other leaves.
PyTree: TypeAlias = Any
# The structure of a tree; JAX's own class is not public to type checkers.
TreeDef: TypeAlias = Any
# An array with values, on a device or in host memory.
AnyArray: TypeAlias = jax.Array | np.ndarray | np.generic
# A typed key of `jax.random.key`, or the raw `uint32` words of one.
Key: TypeAlias = jax.Array | np.ndarray
Shape: TypeAlias = tuple[int, ...]
# What `json.loads` returns, and what a config is made of.
Json: TypeAlias = Any
# Where one array lives; None leaves it to JAX.
ArraySharding: TypeAlias = Sharding | PartitionSpec | None
# Where the leaves of a tree live: one sharding for all, a tree of shardings, or a function from
# the tree of shapes to such a tree.
Shardings: TypeAlias = Any
