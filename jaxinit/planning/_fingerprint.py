"""A checksum of parameters, per leaf and for the tree, that does not depend on where they live.

Every entry is mixed with its position into two 32-bit lanes, and the lanes are summed modulo 2**32,
on the devices that hold the entries. Integer sums have no order, so an array has one checksum
whether it is whole, sharded or in host memory. For a fixed position the mixing is a bijection: one
flipped bit always changes the checksum; two exchanged entries change it unless 64 bits collide.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxinit._types import AnyArray, PyTree
from jaxinit.planning._paths import flatten

_SCHEME = "jaxinit-fingerprint/1"
LANES = (0x9E3779B9, 0x7F4A7C15)  # the two halves of 2**64 over the golden ratio


@dataclasses.dataclass(frozen=True)
class Fingerprint:
    """What `fingerprint` returns.

    Attributes:
        tree: checksum of the whole, 32 hexadecimal digits.
        leaves: checksum of each leaf by canonical path, 16 digits; equal for equal arrays
            wherever they are in the tree.
    """

    tree: str
    leaves: Mapping[str, str]

    def __hash__(self) -> int:
        return hash(self.tree)

    def __str__(self) -> str:
        lines = [f"{digest}  {path}" for path, digest in self.leaves.items()]
        return "\n".join([f"{self.tree}  (tree)", *lines])


def fingerprint(params: PyTree) -> Fingerprint:
    """Tells whether two trees of parameters are the same, bit for bit.

    Sensitive to every bit of every entry (so 0.0 and -0.0 differ), to position, shape, dtype and
    path. Independent of sharding, of the order of the leaves, and of whether the arrays are
    JAX's or NumPy's.

    Where arrays are spread over several processes, all of them must call it, with the same tree,
    and all get the same: each sums over its own shards, and two words for each leaf are exchanged.

    Args:
        params: a tree of arrays.

    Returns:
        Checksums of the tree and of its leaves.

    Raises:
        TypeError: when a leaf is not an array with values.
        ValueError: when two leaves have the same canonical path.

    Example:
        >>> fingerprint({"bias": np.zeros(3, "float32")}).leaves
        {'bias': 'fcb458b11f167e3f'}
    """
    flat = flatten("fingerprint", params)
    sums = [_lanes(path, leaf) for path, leaf in zip(flat.paths, flat.leaves, strict=True)]
    leaves = {
        path: _leaf_digest(leaf, lanes)
        for path, leaf, lanes in zip(flat.paths, flat.leaves, jax.device_get(sums), strict=True)
    }
    leaves = dict(sorted(leaves.items()))
    whole = hashlib.sha256(_SCHEME.encode())
    for path, digest in leaves.items():
        encoded = path.encode()
        whole.update(len(encoded).to_bytes(8, "big") + encoded + digest.encode())
    return Fingerprint(whole.hexdigest()[:32], leaves)


def _leaf_digest(leaf: AnyArray, lanes: Sequence[np.ndarray]) -> str:
    words = ",".join(str(int(lane)) for lane in lanes)
    dtype = getattr(leaf.dtype, "name", leaf.dtype)  # without the byte order
    text = f"{_SCHEME}\0{dtype}\0{tuple(leaf.shape)}\0{words}"
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _lanes(path: str, leaf: AnyArray) -> list[jax.Array]:
    host = isinstance(leaf, np.ndarray | np.generic)
    if isinstance(leaf, Tracer) or not (host or isinstance(leaf, jax.Array)):
        raise TypeError(
            f"fingerprint needs arrays with values, got {leaf!r} of type {type(leaf).__name__} at "
            f"{path!r}. Call it on concrete arrays, outside of jit."
        )
    if host:
        try:
            return _sum_words(_host_words(np.asarray(leaf)))
        except TypeError:
            raise TypeError(
                f"fingerprint needs arrays of numbers, got dtype {leaf.dtype} at {path!r}. "
                "Leave it out of the tree."
            ) from None
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    return _sum_array(leaf)


def _host_words(array: np.ndarray) -> AnyArray:
    """Entries as 32-bit words along a last axis; without JAX, which would cut 64 bits to 32."""
    if array.dtype.itemsize < 8:
        return words_of(jnp.asarray(array))
    if array.dtype.kind not in "iufc":
        raise TypeError
    little = np.ascontiguousarray(array.astype(array.dtype.newbyteorder("<"), copy=False))
    return little.reshape(-1).view("<u4").reshape(*array.shape, array.dtype.itemsize // 4)


def words_of(array: jax.Array) -> jax.Array:
    """Entries as 32-bit words along a last axis."""
    if jnp.issubdtype(array.dtype, jnp.complexfloating):
        return jnp.concatenate([words_of(array.real), words_of(array.imag)], axis=-1)
    bits = jnp.iinfo(array.dtype).bits if jnp.issubdtype(array.dtype, jnp.integer) else 8
    if jnp.issubdtype(array.dtype, jnp.floating):
        bits = jnp.finfo(array.dtype).bits
    if array.dtype == jnp.bool_:
        array = array.astype(jnp.uint8)
    elif bits < 8:
        # Exact, and it keeps all values apart; these have no bit patterns of their own to read.
        array = array.astype(jnp.float32)
    if array.dtype.itemsize == 8:
        return jax.lax.bitcast_convert_type(array, jnp.uint32)
    unsigned = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[array.dtype.itemsize]
    return jax.lax.bitcast_convert_type(array, unsigned).astype(jnp.uint32)[..., None]


def mix(word: jax.Array) -> jax.Array:
    """The finalizer of MurmurHash3 (Appleby, 2011): a bijection that spreads every bit."""
    word = (word ^ (word >> 16)) * np.uint32(0x85EBCA6B)
    word = (word ^ (word >> 13)) * np.uint32(0xC2B2AE35)
    return word ^ (word >> 16)


@jax.jit
def _sum_words(words: Any) -> list[jax.Array]:
    """Sums over all words of their mixture with their position."""
    sums = []
    for lane in LANES:
        position = jnp.full(words.shape, lane, jnp.uint32)
        for axis in range(words.ndim):
            index = jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis)
            position = mix(position + index)
        sums.append(jnp.sum(mix(mix(words + np.uint32(lane)) + position), dtype=jnp.uint32))
    return sums


@jax.jit
def _sum_array(array: jax.Array) -> list[jax.Array]:
    return _sum_words(words_of(array))
