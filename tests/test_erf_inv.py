"""The written-out inverse error function has the bits of XLA's own, wherever a law can go."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import jaxinit
from helpers import make_mesh, slow
from jaxinit.engine import _fast_bits as module
from jaxinit.engine._fast_bits import erf_inv, pays_off
from jaxinit.engine._threefry import fast_compiler_options
from jaxinit.initializers import he_normal, normal, truncated_normal
from jaxinit.jaxpr._equations import inner_jaxprs

pytestmark = pytest.mark.cpu_code

BELOW_ONE = np.nextafter(np.float32(1), np.float32(0))
BETWEEN = {
    "normal": (-BELOW_ONE, 1.0),
    "cut at two": (-0.9544997, 0.9544997),
    "cut far out": (-1.0, 1.0),
    "one side": (-0.3, 0.99),
}
LARGE = (1025, 1031)  # above the size from which the engine replaces, odd on both axes


@pytest.fixture
def written_out(monkeypatch):
    """The formula in use, also where the processor has nothing to gain from it."""
    monkeypatch.setattr(module, "fast_compiler_options", lambda: {"any": "option"})
    jaxinit.engine._compile.forget_executables()
    yield
    jaxinit.engine._compile.forget_executables()


def words(array) -> np.ndarray:
    return np.asarray(array).view(np.uint32)


def assert_same(function, *arguments, options=None):
    """Both functions compiled, and equal byte by byte."""
    ours = jax.jit(lambda *a: function(erf_inv, *a), compiler_options=options)(*arguments)
    theirs = jax.jit(lambda *a: function(lax.erf_inv, *a))(*arguments)
    np.testing.assert_array_equal(words(ours), words(theirs))


@pytest.mark.parametrize("wide", [True, *slow(False)], ids=["widest vectors", "default vectors"])
@pytest.mark.parametrize("law", BETWEEN)
def test_every_number_that_a_law_can_draw(law, wide):
    low, high = map(np.float32, BETWEEN[law])

    def draw(inverse, first):  # as jax.random.uniform makes floats from 23 bits
        bits = first + lax.iota(np.uint32, 2**23)
        unit = lax.bitcast_convert_type(bits | np.uint32(0x3F800000), np.float32) - np.float32(1)
        return inverse(jnp.maximum(low, unit * (high - low) + low)) * np.float32(np.sqrt(2) * 0.02)

    assert_same(draw, np.uint32(0), options=fast_compiler_options() if wide else None)


def test_numbers_of_every_exponent_and_what_is_none():
    # Every 1021st float32 of the 2**32, which are 4.2 million: all signs and exponents, subnormal
    # numbers, infinities, NaN of several kinds, and what lies beside 1.
    every = np.arange(0, 2**32, 1021, dtype=np.uint64).astype(np.uint32)
    ones = np.array([1.0, BELOW_ONE, 0.0, np.inf, np.nan], np.float32)
    beside = np.concatenate([ones, -ones]).view(np.uint32)
    bits = np.concatenate([beside, beside + np.uint32(1), every])
    # Whole vectors: which NaN the library returns for NaN is another matter in the loop that
    # handles what is left over.
    assert_same(
        lambda inverse, bits: inverse(lax.bitcast_convert_type(bits, np.float32)),
        bits[: len(bits) // 4096 * 4096],
    )


@pytest.mark.parametrize("shape", [(17,), (33, 19), *slow((16,), (5, 3, 3, 64), LARGE)])
def test_bits_do_not_depend_on_the_loop(shape):
    assert_same(
        lambda inverse, key: inverse(jax.random.uniform(key, shape, minval=-1)),
        jax.random.key(0),
    )


def primitives(jaxpr) -> set[str]:
    inside = (primitives(inner) for equation in jaxpr.eqns for inner in inner_jaxprs(equation))
    return {equation.primitive.name for equation in jaxpr.eqns}.union(*inside)


@pytest.mark.parametrize(
    "law", [he_normal(), *slow(normal(0.02), truncated_normal(lower=-6, upper=1))]
)
def test_large_leaves_of_plans(law, written_out):
    shapes = {"large": jax.ShapeDtypeStruct(LARGE, "float32")}
    drawn = jaxinit.plan(shapes, [("**", law)]).init(jax.random.key(0))["large"]
    key = jaxinit.planning.keys_for_paths(jax.random.key(0), ["large"])[0]
    alone = jax.jit(lambda key: law(key, LARGE, jnp.float32))(key)
    np.testing.assert_array_equal(words(drawn), words(alone))


def test_large_leaves_of_init_functions(written_out, monkeypatch):
    calls = []
    monkeypatch.setattr(
        "jaxinit.engine._fast_bits.erf_inv", lambda x: calls.append(x.shape) or erf_inv(x)
    )

    def init(key):
        large, small = jax.random.split(key)
        return {
            "large": jax.random.normal(large, LARGE) * 0.02,
            "half": jax.random.normal(large, LARGE, jnp.bfloat16),
            "small": jax.random.truncated_normal(small, -2.0, 2.0, (64, 64)),
        }

    drawn = jaxinit.jit_init(init)(jax.random.key(0))
    usual = jax.jit(init)(jax.random.key(0))
    assert jaxinit.fingerprint(drawn) == jaxinit.fingerprint(usual)
    assert calls == [LARGE]


@pytest.mark.parametrize("spec", [("x", None), *slow((None, "x"), ("x",))])
def test_large_leaves_in_shards(spec, written_out, devices):
    mesh = make_mesh(AxisType.Explicit, (len(devices),), names=("x",))
    place = NamedSharding(mesh, PartitionSpec(*spec))
    shape = (2048, 1024) if len(spec) == 2 else (2**21,)

    def init(key):
        return he_normal()(key, shape) if len(shape) == 2 else jax.random.normal(key, shape)

    drawn = jaxinit.jit_init(init, out_shardings=place)(jax.random.key(3))
    assert drawn.sharding.is_equivalent_to(place, drawn.ndim)
    np.testing.assert_array_equal(words(drawn), words(jax.jit(init)(jax.random.key(3))))


def test_what_is_left_to_the_library(monkeypatch):
    monkeypatch.setattr(module, "fast_compiler_options", lambda: {"any": "option"})
    assert pays_off(jnp.zeros(LARGE))
    assert not pays_off(jnp.zeros(LARGE, jnp.bfloat16))
    assert not pays_off(jnp.zeros((512, 512)))
    monkeypatch.setattr(module, "fast_compiler_options", dict)
    assert not pays_off(jnp.zeros(LARGE))


def test_a_constant_is_written_into_the_program_once_for_each_use():
    # What tracing costs is the number of equations.
    jaxpr = jax.make_jaxpr(erf_inv)(jnp.zeros(LARGE))
    assert len(jaxpr.eqns) < 150
    assert "erf_inv" not in primitives(jaxpr) and "log1p" not in primitives(jaxpr)
