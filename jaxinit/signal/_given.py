"""What the parameters of a prediction are drawn with: moments by path, and arrays where asked for.

A plan has laws and draws; a tree of arrays is measured and stands for itself; a mapping from path
to moments has nothing to draw from.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxinit.initializers import Law
from jaxinit.planning import Plan, flatten, suggestion
from jaxinit.reading._reader import Reading

Moments = tuple[float, float]


def moments_by_path(reading: Reading, laws: Any) -> dict[str, Moments]:
    """Mean and variance of an entry of every floating-point leaf of a reading.

    Args:
        reading: the reading.
        laws: a plan, a tree of arrays, or a mapping from path to `Law` or (mean, variance).

    Raises:
        TypeError: when something is no law.
        ValueError: when a leaf has no law, or a law is of no leaf.
    """
    found = {path: _moments(path, law) for path, law in _laws_by_path(laws).items()}
    for path in found:
        if path not in reading:
            raise ValueError(
                f"predict needs laws of the {len(reading)} leaves that were read, got one for "
                f"{path!r}{suggestion(path, reading.paths)}. Pass a plan of the same tree."
            )
    floating = [p.path for p in reading if jnp.issubdtype(_dtype(reading, p.path), np.floating)]
    missing = [path for path in floating if path not in found]
    if missing:
        raise ValueError(
            f"predict needs a law for every leaf that was read, got none for {missing[0]!r} "
            f"({len(missing)} of {len(floating)} are missing). Pass a plan of the same tree, or "
            "the tree itself."
        )
    return {path: found[path] for path in floating}


def drawn_parameters(reading: Reading, laws: Any, key: jax.Array) -> list[jax.Array]:
    """Arrays for every leaf of a reading, in its order: from a plan, or the tree as it is.

    Raises:
        ValueError: when there are moments alone, or a leaf is missing that is no float.
    """
    if _is_mapping_of_laws(laws):
        raise ValueError(
            "predict needs something to draw from where measure=True, got moments alone. "
            "Pass a plan, or a tree of arrays."
        )
    flat = flatten("predict", laws.init(key) if isinstance(laws, Plan) else laws)
    arrays = dict(zip(flat.paths, flat.leaves, strict=True))
    return [
        arrays[path] if path in arrays else _filler(reading, path, key) for path in reading.paths
    ]


def _filler(reading: Reading, path: str, key: jax.Array) -> jax.Array:
    """For a leaf that no law is of: a random key, or zeros."""
    aval = reading.graph.avals[reading.inputs[path]]
    if jnp.issubdtype(aval.dtype, jax.dtypes.prng_key):
        return jax.random.split(key, aval.shape) if aval.shape else key
    return jnp.zeros(aval.shape, aval.dtype)


def _dtype(reading: Reading, path: str) -> Any:
    return reading.graph.avals[reading.inputs[path]].dtype


def _laws_by_path(laws: Any) -> dict[str, Any]:
    if isinstance(laws, Plan):
        return {leaf.path: leaf.law for leaf in laws}
    if _is_mapping_of_laws(laws):
        return {str(path): law for path, law in laws.items()}
    flat = flatten("predict", laws)
    found = dict(zip(flat.paths, flat.leaves, strict=True))
    return {path: leaf for path, leaf in found.items() if hasattr(leaf, "dtype")}


def _is_mapping_of_laws(laws: Any) -> bool:
    return (
        isinstance(laws, Mapping)
        and bool(laws)
        and all(isinstance(law, Law | tuple) for law in laws.values())
    )


def _moments(path: str, law: Any) -> Moments:
    if isinstance(law, Law):
        return float(np.real(law.mean)), float(law.variance)
    if isinstance(law, tuple) and len(law) == 2:
        return float(law[0]), float(law[1])
    if isinstance(law, tuple | jax.ShapeDtypeStruct) or not hasattr(law, "dtype"):
        raise TypeError(
            f"predict needs a law for {path!r}, got {law!r}. "
            "Pass a plan, a tree of arrays, or a mapping from path to (mean, variance)."
        )
    if not jnp.issubdtype(law.dtype, np.floating) or not law.size:
        return 0.0, 0.0
    wide = jnp.asarray(law, jnp.float32)
    mean, second = float(wide.mean()), float(jnp.mean(wide**2))
    # A mean that chance explains, by 5 standard errors, is none: along many layers of one sign it
    # would add up as no draw of the law does.
    if abs(mean) <= 5 * math.sqrt(second / law.size):
        mean = 0.0
    return mean, second - mean**2
