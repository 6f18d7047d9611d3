"""Fast bits are JAX's bits: equality is exact everywhere in this file.

The counters and the hash are also held to a second Threefry, written here in numpy, and that one to
published vectors, so that elements beyond 2**32 are checked without an array that large.
"""

from __future__ import annotations

import functools
import math
import pathlib

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from catalogue import QUICK
from helpers import COLLECTIVES, content, make_mesh, slow
from jaxinit.engine import _threefry as threefry
from jaxinit.engine._threefry import are_exact, fast_compiler_options, fast_key

pytestmark = pytest.mark.cpu_code

KEY = jax.random.key(20_240_229)
FAST_KEY = fast_key(KEY)
UINTS = (jnp.uint8, jnp.uint16, jnp.uint32)

# What the module promises to the last bit, on wide arrays. Shapes: one axis, an odd one, a matrix
# with an odd axis (remainder loops), a convolution kernel.
SHAPES = [(4096,), (1801,), (300, 31), (3, 3, 8, 32)]
FLOAT_LAWS = {
    "uniform": jax.random.uniform,
    "uniform between": functools.partial(jax.random.uniform, minval=-0.37, maxval=0.11),
    "normal": jax.random.normal,
    "normal scaled": lambda *a: jax.random.normal(*a) * jnp.asarray(0.02, a[2]) + 1,
    "truncated_normal": lambda *a: jax.random.truncated_normal(a[0], -2, 2, *a[1:]),
}
# The others are these with other constants.
FIRST_LAWS = [*slow("uniform", "normal scaled"), "uniform between", "normal", "truncated_normal"]
INITIALIZERS = {
    "he_normal": jax.nn.initializers.he_normal(),
    "glorot_uniform": jax.nn.initializers.glorot_uniform(),
}
INTEGER_LAWS = {
    "bernoulli": lambda key, shape: jax.random.bernoulli(key, 0.3, shape),
    "randint": lambda key, shape: jax.random.randint(key, shape, -5, 1000),
    "rademacher": jax.random.rademacher,
    "permutation": lambda key, shape: jax.random.permutation(key, math.prod(shape)),
    "choice": lambda key, shape: jax.random.choice(key, 97, shape),
    "choice without replacement": lambda key, shape: jax.random.choice(
        key, 97, (min(math.prod(shape), 97),), replace=False
    ),
    "categorical": lambda key, shape: jax.random.categorical(key, jnp.arange(5.0), shape=shape),
}
# Made of the bits that the others are made of.
LIKE_OTHERS = ("rademacher", "choice", "choice without replacement")


def assert_same(draw, key=KEY, *, options=None, reference_options=None):
    """``draw`` gives the same from a key and from the fast key, each in one program of its own."""
    fast = jax.jit(draw, compiler_options=options)(fast_key(key))
    theirs = jax.jit(draw, compiler_options=reference_options)(key)
    expected, got = (jax.tree.map(content, tree) for tree in (theirs, fast))
    assert got == expected


def assert_same_integers(draw, key=KEY):
    """The same where nothing rounds: what JAX draws then is no matter of how it was compiled.

    Our side is compiled as users have it; for a split, JAX's own took as long, at level 0 a tenth.
    """
    assert_same(draw, key, reference_options=QUICK)


def reference(key: tuple[int, int], numbers) -> tuple[np.ndarray, np.ndarray]:
    """Threefry-2x32 with 20 rounds in numpy, from the paper; counters as 64-bit integers."""
    numbers = np.asarray(numbers, np.uint64)
    words = [(numbers >> np.uint64(32)).astype(np.uint32), numbers.astype(np.uint32)]
    schedule = [np.uint32(key[0]), np.uint32(key[1])]
    schedule.append(schedule[0] ^ schedule[1] ^ np.uint32(0x1BD11BDA))
    rotations = [13, 15, 26, 6, 17, 29, 16, 24]
    with np.errstate(over="ignore"):
        words = [words[0] + schedule[0], words[1] + schedule[1]]
        for turn in range(20):
            words[0] = words[0] + words[1]
            bits = rotations[turn % 8]
            words[1] = words[1] << np.uint32(bits) | words[1] >> np.uint32(32 - bits)
            words[1] = words[1] ^ words[0]
            if turn % 4 == 3:
                turns = turn // 4 + 1
                words[0] = words[0] + schedule[turns % 3]
                words[1] = words[1] + schedule[(turns + 1) % 3] + np.uint32(turns)
    return words[0], words[1]


# The hash


VECTORS = [
    ((0, 0), (0, 0), (0x6B200159, 0x99BA4EFE)),
    ((2**32 - 1, 2**32 - 1), (2**32 - 1, 2**32 - 1), (0x1CB996FC, 0xBB002BE7)),
    ((0x13198A2E, 0x03707344), (0x243F6A88, 0x85A308D3), (0xC4923A9C, 0x483DF7A0)),
]


@pytest.mark.parametrize("key, counter, expected", VECTORS)
def test_the_hash_gives_the_vectors_published_with_random123(key, counter, expected):
    words = threefry.threefry2x32(
        tuple(np.array([word], np.uint32) for word in key),
        tuple(np.array([word], np.uint32) for word in counter),
    )
    assert tuple(int(word[0]) for word in words) == expected
    number = np.uint64(counter[0]) << np.uint64(32) | np.uint64(counter[1])
    assert tuple(int(word) for word in reference(key, number)) == expected


# Counters, also those of arrays that no machine could hold


HUGE = [
    (2**16, 2**16),  # the last array that 32 bits number
    (2**16, 2**16 + 1),
    (70_001, 70_003),
    (2**33 + 5,),
    (3, 2**31, 2),
    (5, 1, 2**30 + 7, 1, 3),
]


def corner(shape, *, last: bool):
    """The first or last few elements along every axis: slices, and their row-major numbers."""
    starts = [max(0, size - 3) if last else 0 for size in shape]
    stops = [size if last else min(3, size) for size in shape]
    number = np.zeros((), np.uint64)
    for start, stop, size in zip(starts, stops, shape, strict=True):
        number = number[..., None] * np.uint64(size) + np.arange(start, stop, dtype=np.uint64)
    return starts, stops, number


@pytest.mark.parametrize("last", [False, True], ids=["first", "last"])
@pytest.mark.parametrize("shape", HUGE, ids=str)
def test_counters_number_the_elements_in_row_major_order(shape, last):
    starts, stops, number = corner(shape, last=last)

    def words():
        high, low = (jnp.broadcast_to(word, shape) for word in threefry.counters(shape))
        return lax.slice(high, starts, stops), lax.slice(low, starts, stops)

    program = jax.jit(words).lower().compile()
    assert program.memory_analysis().temp_size_in_bytes < 2**20
    high, low = program()
    assert high.dtype == low.dtype == np.uint32
    np.testing.assert_array_equal(np.asarray(high), (number >> np.uint64(32)).astype(np.uint32))
    np.testing.assert_array_equal(np.asarray(low), number.astype(np.uint32))


@pytest.mark.parametrize("shape", [(2**16, 2**16), (70_001, 70_003), (2**33 + 5,)], ids=str)
def test_elements_of_arrays_beyond_32_bits(shape):
    starts, stops, number = corner(shape, last=True)
    high, low = reference(tuple(jax.random.key_data(KEY).tolist()), number)

    def draw(key):
        return [lax.slice(jax.random.bits(key, shape, dtype), starts, stops) for dtype in UINTS]

    program = jax.jit(draw).lower(FAST_KEY).compile()
    assert program.memory_analysis().temp_size_in_bytes < 2**20
    for bits, dtype in zip(program(FAST_KEY), UINTS, strict=True):
        np.testing.assert_array_equal(np.asarray(bits), (high ^ low).astype(dtype))


def test_64_bit_elements_of_arrays_beyond_32_bits(x64):
    starts, stops, number = corner((2**33 + 5,), last=True)
    high, low = reference(tuple(jax.random.key_data(KEY).tolist()), number)
    bits = jax.jit(
        lambda key: lax.slice(jax.random.bits(key, (2**33 + 5,), jnp.uint64), starts, stops)
    )(FAST_KEY)
    expected = high.astype(np.uint64) << np.uint64(32) | low
    np.testing.assert_array_equal(np.asarray(bits), expected)


@pytest.mark.parametrize("shape, wide", [((2**16, 2**16), False), ((2**16, 2**16 + 1), True)])
def test_64_bit_counters_only_where_they_are_needed(shape, wide):
    assert jax.eval_shape(lambda key: jax.random.bits(key, shape), FAST_KEY).shape == shape
    lowered = jax.jit(lambda key: jax.random.normal(key, shape)).lower(FAST_KEY).as_text()
    assert ("ui64" in lowered) == wide


# Bits of every width and shape


# Against the numpy reference, which compiles nothing; `SHAPES` then go against jax.random itself.
shapes = st.builds(
    lambda sizes, width, ones: (*sizes, width, *ones),
    st.lists(st.sampled_from([0, 1, 2, 3, 5, 17]), max_size=3),
    st.sampled_from([16, 17, 33]),
    st.lists(st.just(1), max_size=1),
)
words = st.integers(0, 2**32 - 1)


def expected_words(key, shape):
    number = np.arange(math.prod(shape), dtype=np.uint64).reshape(shape)
    return reference(tuple(jax.random.key_data(key).tolist()), number)


# Integers, so the compiler's level decides nothing but the time: 0.08 s a shape against 0.8 s. What
# users get is compiled in `test_bits_and_splits_of_jax`.
@hypothesis.settings(max_examples=hypothesis.settings().max_examples // 5)
@hypothesis.given(shape=shapes, data=st.tuples(words, words))
def test_bits_and_splits_of_any_shape_and_key(shape, data):
    key = fast_key(jax.random.wrap_key_data(np.array(data, np.uint32)))
    high, low = expected_words(key, shape)
    draw = jax.jit(
        lambda key: (
            [jax.random.bits(key, shape, dtype) for dtype in UINTS],
            jax.random.key_data(jax.random.split(key, shape)),
        ),
        compiler_options=QUICK,
    )
    bits, keys = draw(key)
    for array, dtype in zip(bits, UINTS, strict=True):
        assert content(array) == content((high ^ low).astype(dtype))
    assert content(keys) == content(np.stack([high, low], axis=-1))


@hypothesis.settings(max_examples=10)
@hypothesis.given(shape=shapes)
def test_64_bits_of_any_shape(shape):
    high, low = expected_words(KEY, shape)
    with jax.enable_x64(True):
        bits = jax.random.bits(FAST_KEY, shape, jnp.uint64)
        assert content(bits) == content(high.astype(np.uint64) << np.uint64(32) | low)


@pytest.mark.parametrize("shape", [SHAPES[2], *slow(*SHAPES[:2], SHAPES[3])], ids=str)
def test_bits_and_splits_of_jax(shape):
    assert_same_integers(lambda key: [jax.random.bits(key, shape, dtype) for dtype in UINTS])
    assert_same_integers(lambda key: jax.random.split(key, shape))


def test_64_bits_of_jax(x64):
    assert_same_integers(lambda key: jax.random.bits(key, (300, 31), jnp.uint64))


@pytest.mark.slow
@hypothesis.settings(max_examples=8)
@hypothesis.given(
    shape=shapes,
    law=st.sampled_from(sorted(FLOAT_LAWS)),
    dtype=st.sampled_from([jnp.float32, jnp.bfloat16, jnp.float16]),
)
def test_floats_of_any_wide_shape(shape, law, dtype):
    assert_same(lambda key: FLOAT_LAWS[law](key, shape, dtype))


@pytest.mark.parametrize(
    "shape", [(), (7,), (600, 3), (5, 0), (0, 16), *slow((1,), (2000, 1, 4))], ids=str
)
def test_narrow_arrays_are_left_to_jax(shape):
    # Fused, the logarithm would be compiled into another loop and come out an ulp apart.
    for law in (jax.random.normal, jax.random.exponential):
        assert_same(lambda key, law=law: law(key, shape))
    assert not threefry.is_wide(shape) or 0 in shape


def test_seeds():
    for seed in (0, -1, 2**31, 2**40 + 3, np.int8(-3), np.uint16(9)):
        ours = jax.random.key(seed, impl=threefry.FAST)
        assert content(ours) == content(jax.random.key(seed, impl="threefry2x32"))


@hypothesis.settings(max_examples=25)
@hypothesis.given(data=st.integers(-(2**31), 2**32 - 1))
def test_folds(data):
    data = np.uint32(data % 2**32)
    assert content(jax.random.fold_in(FAST_KEY, data)) == content(jax.random.fold_in(KEY, data))


# Samplers


@pytest.mark.parametrize("shape", [SHAPES[2], *slow(*SHAPES[:2], SHAPES[3])], ids=str)
@pytest.mark.parametrize("law", FIRST_LAWS)
def test_float_laws(law, shape):
    draw = lambda key: FLOAT_LAWS[law](key, shape, jnp.float32)  # noqa: E731
    assert_same(draw, options=fast_compiler_options())
    assert are_exact(jax.make_jaxpr(draw)(KEY).eqns)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, *slow(jnp.float16)])
@pytest.mark.parametrize("law", ["normal", "uniform", *slow("truncated_normal")])
def test_narrow_dtypes(law, dtype):
    assert_same(lambda key: FLOAT_LAWS[law](key, (130, 31), dtype), options=fast_compiler_options())


@pytest.mark.parametrize("law", ["normal", *slow(*(law for law in FLOAT_LAWS if law != "normal"))])
def test_float64(law, x64):
    assert_same(lambda key: FLOAT_LAWS[law](key, (130, 31), jnp.float64))


@pytest.mark.parametrize("shape", [(256, 48), *slow((3, 3, 8, 32))], ids=str)
@pytest.mark.parametrize("name", INITIALIZERS)
def test_initializers_of_jax(name, shape):
    draw = lambda key: INITIALIZERS[name](key, shape)  # noqa: E731
    assert_same(draw, options=fast_compiler_options())
    assert are_exact(jax.make_jaxpr(draw)(KEY).eqns)


@pytest.mark.parametrize(
    "name", [*(name for name in INTEGER_LAWS if name not in LIKE_OTHERS), *slow(*LIKE_OTHERS)]
)
def test_integer_laws(name):
    # A category is the largest of numbers that are rounded.
    same = assert_same if name == "categorical" else assert_same_integers
    same(lambda key: INTEGER_LAWS[name](key, (33, 17)))


def test_eager_calls():
    for draw in (
        lambda key: jax.random.bits(key, (7, 33)),
        lambda key: jax.random.normal(key, (7, 33)),
        lambda key: jax.random.split(key, (2, 3)),
        lambda key: jax.random.fold_in(key, 3),
        jax.random.clone,
        jax.random.key_data,
    ):
        assert content(draw(FAST_KEY)) == content(draw(KEY))


# Batches and transformations


def test_a_batch_of_keys():
    keys = jax.random.split(KEY, (2, 3))
    assert fast_key(keys).shape == (2, 3)

    assert_same(jax.vmap(jax.vmap(lambda key: jax.random.normal(key, (5, 17)))), keys)

    def of_folded(key, number):
        kept, used = jax.random.split(jax.random.fold_in(key, number))
        return jax.random.bits(used, (4, 5)), kept

    def integers(keys):
        return jax.vmap(jax.vmap(of_folded, (0, None)), (0, 0))(keys, jnp.arange(2))

    assert_same(integers, keys, options=QUICK, reference_options=QUICK)


def test_vmap_is_a_loop_over_keys():
    keys = fast_key(jax.random.split(KEY, 5))
    together = jax.jit(jax.vmap(lambda key: jax.random.normal(key, (9, 31))))(keys)
    alone = [jax.random.normal(key, (9, 31)) for key in jax.random.split(KEY, 5)]
    assert content(together) == content(jnp.stack(alone))


def test_scan_carries_the_key():
    def draw(key):
        def step(key, _):
            key, used = jax.random.split(key)
            return key, jax.random.normal(used, (64,))

        return lax.scan(step, key, length=4)

    assert_same(draw)


def test_inside_a_trace():
    draw = jax.jit(lambda key: jax.random.normal(fast_key(key), (64, 16)))
    assert content(draw(KEY)) == content(jax.random.normal(KEY, (64, 16)))
    abstract = jax.eval_shape(lambda key: jax.random.normal(fast_key(key), (2**40, 16)), KEY)
    assert abstract.shape == (2**40, 16)


# Devices


@pytest.mark.parametrize("spec", [("x", "y"), (None, "x"), *slow(("x",), ("y", None))], ids=str)
def test_every_device_fills_its_shard(devices, spec):
    mesh = make_mesh(AxisType.Explicit, names=("x", "y"))
    sharding = NamedSharding(mesh, PartitionSpec(*spec))
    program = jax.jit(lambda key: jax.random.normal(key, (48, 128)), out_shardings=sharding)
    compiled = program.lower(FAST_KEY).compile()
    text = compiled.as_text()
    assert not [name for name in COLLECTIVES if name in text]
    array = compiled(FAST_KEY)
    assert array.sharding == sharding
    assert content(array) == content(jax.random.normal(KEY, (48, 128)))


def test_shards_of_arrays_beyond_32_bits_need_no_communication(devices):
    mesh = make_mesh(AxisType.Explicit, (8,), names=("x",))
    sharding = NamedSharding(mesh, PartitionSpec("x"))
    draw = jax.jit(lambda key: jax.random.bits(key, (2**17, 2**16)), out_shardings=sharding)
    text = draw.lower(FAST_KEY).compile().as_text()
    assert not [name for name in COLLECTIVES if name in text]


def test_sharded_keys(devices):
    mesh = make_mesh(AxisType.Explicit, (8,), names=("x",))
    keys = jax.device_put(jax.random.split(KEY, 16), NamedSharding(mesh, PartitionSpec("x")))
    assert fast_key(keys).sharding == keys.sharding
    assert_same(jax.vmap(lambda key: jax.random.normal(key, (32,))), keys)


def test_shard_map(devices):
    mesh = make_mesh(AxisType.Explicit, (8,), names=("x",))

    def draw(keys):
        return jax.shard_map(
            lambda keys: jax.random.normal(keys[0], (4, 32)),
            mesh=mesh,
            in_specs=PartitionSpec("x"),
            out_specs=PartitionSpec("x"),
        )(keys)

    keys = jax.device_put(jax.random.split(KEY, 8), NamedSharding(mesh, PartitionSpec("x")))
    assert_same(draw, keys)


# One loop, no temporaries


@pytest.mark.parametrize("law", FIRST_LAWS)
def test_bits_fuse_into_what_consumes_them(law):
    draw = jax.jit(lambda key: FLOAT_LAWS[law](key, (512, 256), jnp.float32))
    program = draw.lower(FAST_KEY).compile()
    assert program.memory_analysis().temp_size_in_bytes == 0
    assert "while" not in program.as_text()


# Where it steps aside


@pytest.mark.parametrize("name", ["rbg", "unsafe_rbg"])
def test_other_implementations_are_returned_unchanged(name):
    key = jax.random.key(0, impl=name)
    assert fast_key(key) is key


def test_a_fast_key_stays_as_it_is():
    assert fast_key(FAST_KEY) is FAST_KEY


def test_raw_key_data_of_the_default_implementation():
    data = jax.random.key_data(KEY)
    for given_data in (data, np.asarray(data)):
        key = fast_key(given_data)
        assert key.dtype == FAST_KEY.dtype and content(key) == content(KEY)
    with jax.default_prng_impl("rbg"):
        data = jax.random.key_data(jax.random.key(0))
        assert fast_key(data) is data


def test_other_numbering_of_elements_is_returned_unchanged():
    with jax.threefry_partitionable(False):
        assert fast_key(KEY) is KEY
        # A fast key made before the setting was changed follows it.
        assert_same(lambda key: jax.random.bits(key, (64, 17)))
        assert content(jax.random.split(FAST_KEY, 5)) == content(jax.random.split(KEY, 5))
        assert content(jax.random.bits(FAST_KEY, (33,))) == content(jax.random.bits(KEY, (33,)))


def test_traced_keys_on_another_backend_are_returned_unchanged(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    jaxpr = jax.make_jaxpr(fast_key)(KEY)
    assert not jaxpr.eqns
    assert fast_key(KEY).dtype == FAST_KEY.dtype  # lives on a CPU whatever the default is
    assert fast_compiler_options() == {}


def test_symbolic_shapes_are_drawn_by_jax():
    (size,) = jax.export.symbolic_shape("n")

    def draw(like):
        return jax.random.bits(FAST_KEY, like.shape)

    exported = jax.export.export(jax.jit(draw))(jax.ShapeDtypeStruct((size,), jnp.float32))
    assert content(exported.call(np.zeros(33, np.float32))) == content(jax.random.bits(KEY, (33,)))


def test_poisson_refuses_and_gamma_is_not_called_exact():
    with pytest.raises(NotImplementedError, match="only implemented for the threefry2x32"):
        jax.random.poisson(FAST_KEY, 3.0, (16,))
    gamma = functools.partial(jax.random.gamma, a=0.7, shape=(200,))
    assert not are_exact(jax.make_jaxpr(gamma)(KEY).eqns)
    gamma = jax.jit(gamma, compiler_options=QUICK)
    # The same numbers up to the last digits: the same bits lead to them.
    np.testing.assert_allclose(gamma(FAST_KEY), gamma(KEY), rtol=1e-5)


INEXACT = {
    "logistic": lambda key: jax.random.logistic(key, (64, 32)),
    "narrow": lambda key: jax.random.normal(key, (64, 3)),
    "narrowed": lambda key: jax.random.normal(key, (64, 32)).reshape(-1, 4) * 2,
    "a sum": lambda key: jax.random.normal(key, (64, 32)).sum(),
    "an orthogonal matrix": lambda key: jax.random.orthogonal(key, 32),
    "complex": lambda key: jax.random.normal(key, (64, 32), jnp.complex64),
    "a loop over floats": lambda key: lax.fori_loop(0, 3, lambda i, x: x * 2, jnp.zeros(32)),
    "a scalar from gamma": lambda key: jax.random.gamma(key, 0.7),
}


@pytest.mark.parametrize("name", INEXACT)
def test_programs_whose_last_bit_depends_on_the_loop_around_it(name):
    assert not are_exact(jax.make_jaxpr(jax.jit(INEXACT[name]))(KEY).eqns)


@pytest.mark.parametrize("name", ["randint", "choice", "permutation"])
def test_integers_are_exact_in_any_shape(name):
    assert are_exact(jax.make_jaxpr(lambda key: INTEGER_LAWS[name](key, (5, 3)))(KEY).eqns)


@pytest.mark.parametrize(
    "key, match",
    [
        ("key", "fast_key needs JAX random keys, got str. Pass jax.random.key"),
        (0, "got int"),
        (np.zeros(2, np.float32), r"got float32 of shape \(2,\)"),
        (np.zeros(3, np.uint32), r"raw uint32 data .* got uint32 of shape \(3,\)"),
        (jnp.zeros((), jnp.uint32), r"got uint32 of shape \(\)"),
    ],
)
def test_what_is_no_key_is_refused(key, match):
    with pytest.raises(TypeError, match=match):
        fast_key(key)


# Compiler options


@pytest.fixture
def fresh_probes():
    def clear():
        threefry._has_avx512.cache_clear()
        threefry._xla_knows.cache_clear()

    clear()
    yield
    clear()


@pytest.mark.parametrize("flags, wide", [("fpu sse2 avx2", False), ("fpu avx512f avx2", True)])
def test_options_follow_the_processor(fresh_probes, monkeypatch, flags, wide):
    text = f"processor\t: 0\nmodel name\t: avx512f\nflags\t\t: {flags}\n"
    monkeypatch.setattr(pathlib.Path, "read_text", lambda self: text)
    options = fast_compiler_options()
    assert options == ({"xla_cpu_prefer_vector_width": "512"} if wide else {})
    assert fast_compiler_options() is not options
    assert jax.jit(lambda x: x + 1, compiler_options=options)(1) == 2


def test_no_options_where_the_processor_is_unknown(fresh_probes, monkeypatch):
    def missing(self):
        raise FileNotFoundError(self)

    monkeypatch.setattr(pathlib.Path, "read_text", missing)
    assert fast_compiler_options() == {}


def test_no_options_that_the_installed_xla_does_not_know(fresh_probes, monkeypatch):
    monkeypatch.setattr(threefry, "_has_avx512", lambda: True)
    monkeypatch.setattr(threefry, "_WIDE_VECTORS", ("xla_cpu_an_option_of_tomorrow", "512"))
    assert fast_compiler_options() == {}
