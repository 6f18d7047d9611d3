"""The key scheme, pinned: a change here changes the weights of every plan."""

from __future__ import annotations

import hashlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers import slow
from jaxinit.planning import SCHEME, key_for_path, keys_for_paths
from jaxinit.planning._keys import path_words

pytestmark = pytest.mark.unoptimized

IMPLEMENTATIONS = ["threefry2x32", "rbg", "unsafe_rbg"]
FIRST_OF_ALL = [IMPLEMENTATIONS[0], *slow(*IMPLEMENTATIONS[1:])]
PATHS = ["", "kernel", "params/dense/kernel", "params/dense/bias", "schön/日本/0"]


def data(key) -> list:
    return np.asarray(jax.random.key_data(key)).tolist()


def test_the_scheme_has_a_name():
    assert SCHEME == "jaxinit-keys/1"


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("", (0x773B8CD4, 0xC889B0A1)),
        ("kernel", (0xB54BA8D7, 0x9AA3E40D)),
        ("params/dense/kernel", (0x5AEF4796, 0x2E590AB7)),
        ("params/dense/bias", (0x02F0E3A3, 0x27B2D8E8)),
        ("schön/日本/0", (0x09F8B1A5, 0x5D3FD1B8)),
    ],
)
def test_golden_words(path, words):
    assert path_words(path) == words


@pytest.mark.parametrize(
    ("seed", "path", "expected"),
    [
        (0, "", [3879525357, 1686510816]),
        (0, "kernel", [2562784498, 3830329479]),
        (0, "params/dense/kernel", [1430095805, 169763864]),
        (42, "", [3393327012, 4061501936]),
        (42, "kernel", [1049283017, 3174055884]),
        (42, "params/dense/kernel", [2807204811, 2715834568]),
    ],
)
def test_golden_keys(seed, path, expected):
    assert data(key_for_path(jax.random.key(seed, impl="threefry2x32"), path)) == expected
    # The rbg implementation derives keys by threefry, twice over.
    assert data(key_for_path(jax.random.key(seed, impl="rbg"), path)) == expected * 2


@given(st.text(max_size=40))
def test_the_words_are_what_the_documentation_says(path):
    digest = hashlib.sha256(b"jaxinit-keys/1\0" + path.encode("utf-8")).digest()
    assert path_words(path) == tuple(np.frombuffer(digest[:8], ">u4").tolist())


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_all_at_once_is_one_at_a_time(implementation):
    root = jax.random.key(7, impl=implementation)
    expected = []
    for path in PATHS:
        first, second = path_words(path)
        folded = jax.random.fold_in(root, np.uint32(first))
        expected.append(data(jax.random.fold_in(folded, np.uint32(second))))
    assert data(keys_for_paths(root, PATHS)) == expected
    assert [data(key_for_path(root, path)) for path in PATHS] == expected


@pytest.mark.parametrize("implementation", FIRST_OF_ALL)
def test_transformed_is_plain(implementation):
    roots = jax.random.split(jax.random.key(3, impl=implementation), 3)
    plain = [data(keys_for_paths(root, PATHS)) for root in roots]
    assert data(jax.jit(keys_for_paths, static_argnums=1)(roots[0], tuple(PATHS))) == plain[0]
    assert data(jax.vmap(lambda root: keys_for_paths(root, PATHS))(roots)) == plain
    assert data(jax.jit(jax.vmap(lambda root: keys_for_paths(root, PATHS)))(roots)) == plain


def test_the_implementation_is_kept():
    for implementation in IMPLEMENTATIONS:
        keys = keys_for_paths(jax.random.key(0, impl=implementation), PATHS)
        assert jax.random.key_impl(keys) == implementation
        assert keys.shape == (len(PATHS),)


def test_no_paths_no_keys():
    assert keys_for_paths(jax.random.key(0), []).shape == (0,)


def test_raw_keys_are_the_same_keys():
    expected = data(key_for_path(jax.random.key(5), "kernel"))
    raw = jax.random.key_data(jax.random.key(5))
    assert data(key_for_path(raw, "kernel")) == expected
    assert data(key_for_path(np.asarray(raw), "kernel")) == expected


def test_ten_thousand_paths_have_ten_thousand_keys():
    paths = [f"layers/{layer}/{name}" for layer in range(5_000) for name in ("kernel", "bias")]
    assert len({tuple(key) for key in data(keys_for_paths(jax.random.key(0), paths))}) == 10_000


@pytest.mark.parametrize(
    ("key", "error", "message"),
    [
        (0, TypeError, "needs a JAX random key, got 0"),
        (None, TypeError, "needs a JAX random key, got None"),
        (jnp.zeros(2), TypeError, "got an array of dtype float32 and shape"),
        (jnp.zeros(2, jnp.int32), TypeError, "got an array of dtype int32"),
        (np.zeros(3, np.uint32), ValueError, r"uint32 of shape \(2,\), got uint32 of shape \(3,\)"),
        (np.zeros((), np.uint32), ValueError, r"raw key data .* got uint32 of shape \(\)"),
        (np.zeros((4, 2), np.uint32), ValueError, r"one key, got a batch of keys of shape \(4,\)"),
    ],
)
def test_a_key_of_the_wrong_kind(key, error, message):
    for function in (key_for_path, keys_for_paths):
        with pytest.raises(error, match=f"^{function.__name__}.* {message}"):
            function(key, "kernel")


def test_a_batch_of_keys_is_pointed_to_vmap():
    with pytest.raises(ValueError, match=r"got a batch of keys of shape \(3,\).*jax\.vmap"):
        key_for_path(jax.random.split(jax.random.key(0), 3), "kernel")


def test_a_path_is_a_string():
    with pytest.raises(TypeError, match="key_for_path needs a path as a string, got 3"):
        key_for_path(jax.random.key(0), 3)
