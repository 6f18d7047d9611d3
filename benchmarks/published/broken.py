"""One thing broken in a sound initialization."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxinit.planning import flatten
from jaxinit.reading import Parameter, Reading

Arrays = dict[str, Any]
# From arrays and what was read to the arrays that are broken; empty where nothing can be.
Break = Callable[[Arrays, Reading], Arrays]

STRUCTURAL = {
    "zeros": {"zero-product", "no-gradient", "dead"},
    "twins": {"twins", "symmetry", "constant"},
    "NaN": {"nonfinite"},
}


def apply(tree: Any, reading: Reading, kind: str) -> tuple[Any, tuple[str, ...]] | None:
    """The tree with one thing broken, and the paths that changed; None where that cannot be."""
    flat = flatten("verdicts", tree)
    arrays = dict(zip(flat.paths, flat.leaves, strict=True))
    changed = BREAKS[kind](arrays, reading)
    if not changed:
        return None
    leaves = [changed.get(path, leaf) for path, leaf in arrays.items()]
    return jax.tree.unflatten(jax.tree.structure(tree), leaves), tuple(changed)


def fits(kind: str, code: str) -> bool:
    """Whether a finding of this code names what was broken."""
    every = set().union(*STRUCTURAL.values()) | {"unused", "not-understood", "low-precision"}
    return code in STRUCTURAL[kind] if kind in STRUCTURAL else code not in every


def hidden(arrays: Arrays, reading: Reading) -> list[Parameter]:
    """Kernels that are no heads and hold more than zeros."""
    return [
        p
        for p in reading
        if p.role == "kernel" and len(p.shape) > 1 and bool(jnp.any(arrays[p.path]))
    ]


def times(factor: float) -> Break:
    def broken(arrays: Arrays, reading: Reading) -> Arrays:
        kernels = hidden(arrays, reading)
        return {p.path: arrays[p.path] * factor for p in kernels} if len(kernels) > 1 else {}

    return broken


def wrong_fans(arrays: Arrays, reading: Reading) -> Arrays:
    """Drawn as if inputs and outputs were swapped, where that is a factor of 2 or more."""
    changed = {}
    for p in hidden(arrays, reading):
        use = p.uses[0]
        if use.fan_in and use.fan_out and not 0.25 < use.fan_in / use.fan_out < 4:
            changed[p.path] = arrays[p.path] * math.sqrt(use.fan_in / use.fan_out)
    return changed


def zeros(arrays: Arrays, reading: Reading) -> Arrays:
    """Every kernel, head and bias zero: none of the kernels gets a gradient."""
    roles = ("kernel", "head", "bias", "head_bias")
    kernels = [p for p in reading if p.role in roles[:2] and len(p.shape) > 1]
    every = [p for p in reading if p.role in roles]
    return {p.path: jnp.zeros_like(arrays[p.path]) for p in every} if len(kernels) > 1 else {}


def twins(arrays: Arrays, reading: Reading) -> Arrays:
    """The largest hidden kernel is a constant."""
    kernels = hidden(arrays, reading)
    if not kernels:
        return {}
    p = max(kernels, key=lambda p: math.prod(p.shape))
    array = arrays[p.path]
    return {p.path: jnp.full_like(array, float(jnp.std(array)) / math.sqrt(p.shape[0]))}


def nonfinite(arrays: Arrays, reading: Reading) -> Arrays:
    """One entry of one kernel is no number."""
    kernels = hidden(arrays, reading)[:1]
    return {p.path: arrays[p.path].at[(0,) * len(p.shape)].set(np.nan) for p in kernels}


def depth(arrays: Arrays, reading: Reading) -> Arrays:
    """In residual nets without normalisation branches end in He, and their scales are one."""
    changed: Arrays = {}
    met = [use.after for p in reading for use in p.uses if use.after]
    if any(after.normalisation for after in met):
        return changed
    for number, p in enumerate(reading):
        branches = [use.branch for use in p.uses if use.branch and use.branch.is_last]
        norms = [b.has_norm or b.has_norm_after for b in branches]
        if not branches or any(norms) or max(b.count for b in branches) < 3:
            continue
        array, fan_in = arrays[p.path], p.uses[0].fan_in
        if p.role == "scale":
            changed[p.path] = jnp.ones_like(array)
        elif p.role == "kernel" and fan_in:
            draw = jax.random.normal(jax.random.key(number), array.shape, array.dtype)
            changed[p.path] = draw * math.sqrt(2 / fan_in)
    return changed


BREAKS: dict[str, Break] = {
    "gain x 4": times(4.0),
    "gain / 4": times(0.25),
    "wrong fans": wrong_fans,
    "zeros": zeros,
    "twins": twins,
    "NaN": nonfinite,
    "depth factor": depth,
}
