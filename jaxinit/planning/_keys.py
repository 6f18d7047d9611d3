r"""One key per leaf, derived from the root key and the leaf's path alone.

Scheme ``jaxinit-keys/1``. The first eight bytes of ``sha256(b"jaxinit-keys/1\0" + path)``, the
path in UTF-8, are two big-endian 32-bit words w0 and w1; the key of the leaf is
``fold_in(fold_in(root, w0), w1)``. So adding, removing or reordering leaves changes no other leaf,
and two models whose paths agree get the same weights. Among n paths two share a key with
probability about ``n**2 / 2**65``: 3e-12 for ten thousand leaves.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.core import Tracer
from jax.custom_batching import sequential_vmap

from jaxinit._arguments import as_key
from jaxinit._types import Key
from jaxinit.engine import fold_in

SCHEME = "jaxinit-keys/1"

# Implementations whose fold_in gives the same bits under vmap. That of unsafe_rbg does not, and
# implementations that users define have not been tried.
_VMAPPABLE = ("threefry2x32", "rbg")


# Cached for the next init: hashing a path takes a tenth of the time of drawing a small leaf.
@functools.lru_cache(maxsize=2**16)
def path_words(path: str) -> tuple[int, int]:
    """The two 32-bit words that a path folds into a key.

    Example:
        >>> [hex(word) for word in path_words("dense/kernel")]
        ['0xbe2ede02', '0xe1d4e846']
    """
    digest = hashlib.sha256(f"{SCHEME}\0{path}".encode()).digest()
    return int.from_bytes(digest[:4], "big"), int.from_bytes(digest[4:8], "big")


def key_for_path(key: Key, path: str) -> jax.Array:
    """The key that a plan gives the leaf at a path: the contract of ``plan.init``.

    The leaf has the bits of its initializer called alone under ``jax.jit`` with this key. So one
    leaf can be drawn again without the others, in a test or by another program, and a model that
    is drawn leaf by leaf equals one that is drawn whole. Manifests name the scheme of the keys,
    ``jaxinit-keys/1``; another scheme would have another name.

    Args:
        key: the root key, typed or raw ``uint32``.
        path: canonical path of the leaf, as ``plan.paths`` lists it.

    Returns:
        A typed key.

    Raises:
        TypeError: when ``key`` is no random key or ``path`` no string.
        ValueError: when ``key`` is a batch of keys.

    Example:
        >>> import jaxinit
        >>> tree = {"dense": {"kernel": jax.ShapeDtypeStruct((4, 2), "float32")}}
        >>> plan, key = jaxinit.plan(tree, [("**", "he_normal")]), jax.random.key(0)
        >>> draw = jax.jit(jaxinit.initializers.he_normal(), static_argnums=(1, 2))
        >>> kernel = draw(key_for_path(key, "dense/kernel"), (4, 2), "float32")
        >>> bool((kernel == plan.init(key)["dense"]["kernel"]).all())
        True
    """
    if not isinstance(path, str):
        raise TypeError(
            f"key_for_path needs a path as a string, got {path!r}. Pass for example 'dense/kernel'."
        )
    return keys_for_paths(as_key("key_for_path", key), [path])[0]


def keys_for_paths(key: Key, paths: Sequence[str]) -> jax.Array:
    """The keys of many leaves, in one vectorised hash.

    Args:
        key: the root key, typed or raw ``uint32``.
        paths: canonical paths of the leaves.

    Returns:
        A batch of typed keys, one for each path.

    Raises:
        TypeError: when ``key`` is no random key.
        ValueError: when ``key`` is a batch of keys.
    """
    key = as_key("keys_for_paths", key)
    words = np.array([path_words(path) for path in paths], np.uint32).reshape(-1, 2)
    implementation = jax.random.key_impl(key)
    root = jax.random.key_data(key)
    if _is_for_host(root, implementation):
        # Two hashes for each path are milliseconds; compiling a program of them is half a second.
        first = fold_in(np.asarray(root), words[:, 0])
        rows = fold_in(first, words[:, 1])
        data = jax.device_put(rows, root.sharding if root.committed else None)
    else:
        data = _fold_program(implementation)(root, words)
    return jax.random.wrap_key_data(data, impl=implementation)


def _is_for_host(root: jax.Array, implementation: Any) -> bool:
    return (
        implementation == "threefry2x32"
        and not isinstance(root, Tracer)
        and root.is_fully_addressable
    )


@functools.lru_cache(maxsize=16)
def _fold_program(implementation: Any) -> Callable[[Any, Any], jax.Array]:
    def fold(root: Any, words: Any) -> jax.Array:
        key = jax.random.wrap_key_data(root, impl=implementation)
        key = jax.random.fold_in(jax.random.fold_in(key, words[0]), words[1])
        return jax.random.key_data(key)

    if implementation in _VMAPPABLE:
        return jax.jit(jax.vmap(fold, in_axes=(None, 0)))
    one_by_one = sequential_vmap(fold)
    return jax.jit(lambda root, words: jax.lax.map(lambda pair: one_by_one(root, pair), words))
