"""A checksum that sees every bit and no sharding."""

from __future__ import annotations

import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import NamedSharding, PartitionSpec

from helpers import EXPLICIT_AXES_FIRST, make_mesh
from jaxinit import fingerprint, plan

# Integers all the way.
pytestmark = pytest.mark.unoptimized

P = PartitionSpec
DTYPES = [
    "bool",
    "int4",
    "uint8",
    "int16",
    "int32",
    "float8_e4m3fn",
    "bfloat16",
    "float16",
    "float32",
    "complex64",
]


def leaf(array) -> str:
    return fingerprint({"leaf": array}).leaves["leaf"]


def some(dtype, shape=(6, 8), seed=0) -> np.ndarray:
    values = np.random.default_rng(seed).integers(0, 8, shape)
    return (values > 3) if dtype == "bool" else values.astype(jnp.dtype(dtype))


def test_golden():
    """What other machines and versions must find for the same bits."""
    params = {
        "dense": {
            "kernel": np.arange(6, dtype="float32").reshape(2, 3),
            "bias": np.zeros(3, "int8"),
        },
        "scale": np.float32(1.5),
        "empty": np.zeros((0, 4), "float16"),
    }
    assert fingerprint(params).leaves == {
        "dense/bias": "41360232395bc9cc",
        "dense/kernel": "2cfbd54c6417ea5b",
        "empty": "6f3ec7b2b9240827",
        "scale": "1967fc6f442239de",
    }
    assert fingerprint(params).tree == "85eb945a9ad26de30ee28f639bdd1a9b"


@pytest.mark.parametrize("dtype", DTYPES)
def test_host_and_device_agree(dtype):
    array = some(dtype)
    assert leaf(array) == leaf(jnp.asarray(array))
    assert leaf(array) != leaf(some(dtype, seed=1))


@pytest.mark.parametrize("dtype", ["float64", "int64", "complex128"])
def test_64_bits_are_read_on_the_host_too(dtype):
    array = some(dtype)
    with jax.enable_x64(True):
        assert leaf(array) == leaf(jnp.asarray(array))
    other = array.copy()
    other.reshape(-1).view(np.uint32)[-2] ^= 1  # the low bit, lost in 32 bits
    assert leaf(array) != leaf(other)
    assert leaf(array) == leaf(array.astype(array.dtype.newbyteorder(">")))


@EXPLICIT_AXES_FIRST
def test_sharded_is_whole(devices, kind):
    mesh = make_mesh(kind)
    for dtype in ("float32", "bfloat16"):
        array = some(dtype, (8, 16, 3))
        whole = leaf(array)
        for spec in (P(), P("a"), P("b", "a"), P(None, ("a", "b"))):
            sharded = jax.device_put(array, NamedSharding(mesh, spec))
            assert leaf(sharded) == whole
            with jax.set_mesh(mesh):
                assert leaf(sharded) == whole


@given(st.integers(0, 47), st.integers(0, 31))
def test_one_flipped_bit(position, bit):
    array = some("float32")
    other = array.copy()
    other.view(np.uint32).reshape(-1)[position] ^= np.uint32(1 << bit)
    assert leaf(array) != leaf(other)


@given(st.permutations(range(12)))
def test_every_order_is_another(order):
    array = np.arange(12, dtype=np.float32)
    same = list(order) == sorted(order)
    assert (leaf(array[list(order)]) == leaf(array)) == same


def test_position_shape_and_dtype_count():
    array = some("float32")
    others = [
        array.T,
        array.reshape(-1),
        array.reshape(8, 6),
        array[None],
        array.astype("int32"),
        array.view("int32"),
        array.astype(jnp.bfloat16),
        array[::-1],
        np.roll(array, 1),
        -array,
        np.zeros_like(array),
        np.zeros((8, 6), np.float32),
        np.zeros((0, 6), np.float32),
        np.zeros((6, 0), np.float32),
    ]
    assert len({leaf(x) for x in [array, *others]}) == len(others) + 1


def test_zeros_have_signs_and_nans_have_payloads():
    zero = np.zeros(3, np.float32)
    assert leaf(zero) != leaf(-zero)
    quiet, other = np.array([0x7FC00000, 0x7FC00001], np.uint32).view(np.float32)[:, None]
    assert leaf(quiet) != leaf(other)


def test_paths_count_in_the_tree_only():
    array = some("float32")
    one, two = fingerprint({"a": array, "b": -array}), fingerprint({"a": -array, "b": array})
    assert one.leaves == {"a": two.leaves["b"], "b": two.leaves["a"]}
    assert one.tree != two.tree
    assert fingerprint({"a": {"b": array}}).tree == fingerprint({"a/b": array}).tree
    assert fingerprint({"c": array}).tree != fingerprint({"a": array}).tree
    assert fingerprint([array, -array]) == fingerprint({"1": -array, "0": array})


def test_an_empty_tree():
    assert fingerprint({}).leaves == {}


def test_keys_are_data():
    assert leaf(jax.random.key(0)) != leaf(jax.random.key(1))
    assert leaf(jax.random.key(0)) != leaf(jax.random.key_data(jax.random.key(0)))


def test_it_is_a_value():
    one = fingerprint({"b": some("float32"), "a": some("int32")})
    assert list(one.leaves) == ["a", "b"]
    assert pickle.loads(pickle.dumps(one)) == one
    assert hash(one) == hash(fingerprint({"a": some("int32"), "b": some("float32")}))
    assert str(one).splitlines()[0] == f"{one.tree}  (tree)"
    assert str(one).splitlines()[1] == f"{one.leaves['a']}  a"


def test_a_plan_has_one_fingerprint_on_any_mesh(devices):
    tree = {
        "w": jax.ShapeDtypeStruct((64, 32), "float32"),
        "b": jax.ShapeDtypeStruct((32,), "int32"),
    }
    wanted = plan(tree, [("w", "he_normal"), ("b", "ones")])
    whole = fingerprint(wanted.init(jax.random.key(0)))
    for sizes in ((8, 1), (2, 4)):
        mesh = make_mesh(sizes=sizes)
        sharded = wanted.init(jax.random.key(0), out_shardings=NamedSharding(mesh, P("a")))
        assert fingerprint(sharded) == whole


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (1.5, "got 1.5 of type float at 'a/0'"),
        (jax.ShapeDtypeStruct((3,), "float32"), "of type ShapeDtypeStruct at 'a/0'"),
        (np.array(["text"]), "arrays of numbers, got dtype <U4 at 'a/0'"),
        (np.array([None]), "arrays of numbers, got dtype object at 'a/0'"),
    ],
)
def test_what_has_no_values(value, message):
    with pytest.raises(TypeError, match=f"^fingerprint needs .*{message}"):
        fingerprint({"a": [value]})


def test_not_inside_jit():
    with pytest.raises(TypeError, match="concrete arrays, outside of jit"):
        jax.jit(lambda x: fingerprint([x]).tree)(jnp.ones(3))
