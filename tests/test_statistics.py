"""What `jaxinit.checks` measures and tolerates: exact sums, bounds that hold, stated power."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from scipy import special, stats

from catalogue import QUICK, evaluate, sample, wide
from helpers import BOTH_AXIS_TYPES, make_mesh
from jaxinit.checks import Measured, measure
from jaxinit.checks._allowances import allowance
from jaxinit.checks._measuring import _moments, measure_boxes
from jaxinit.initializers import Law, Slab, normal

pytestmark = pytest.mark.unoptimized

SEED = 11
KEY = jax.random.key(SEED)


def normals(*shape: int) -> np.ndarray:
    return np.random.default_rng(SEED).standard_normal(shape, np.float32)


def one(array) -> Measured:
    return measure({"x": array})["x"]


def assert_measures(array) -> None:
    """Within what float64 sums of this few entries can lose."""
    got, values = one(array), wide(array) if isinstance(array, jax.Array) else np.asarray(array)
    values = values.astype(np.complex128 if values.dtype.kind == "c" else np.float64)
    ends = np.abs(values) if values.dtype.kind == "c" else values
    assert got.n == values.size
    np.testing.assert_allclose(got.mean, values.mean(), rtol=1e-12, atol=1e-12 * values.std())
    np.testing.assert_allclose(got.variance, values.var(), rtol=1e-11, atol=1e-30)
    np.testing.assert_allclose([got.low, got.high], [ends.min(), ends.max()], rtol=1e-15)
    assert got.finite and got.nonfinite == 0


# Measuring.


@pytest.mark.parametrize("shape", [(), (7,), (2, 3, 4, 5)])
def test_any_rank(shape):
    assert_measures(jnp.asarray(normals(*shape) + 3))


@pytest.mark.parametrize(
    "dtype",
    [
        *("float32", "bfloat16", "float16", "float8_e4m3fn", "float8_e5m2", "float8_e4m3b11fnuz"),
        *("complex64", "int32", "int8", "uint8", "uint32", "bool", "int4", "uint2"),
    ],
)
def test_any_dtype(dtype):
    values = np.linspace(-1.4, 1.6, 60).reshape(6, 10)
    if dtype == "complex64":
        array = jnp.asarray(values + 1j * values[::-1], dtype)
    elif dtype in ("uint8", "uint32", "uint2"):
        array = jnp.asarray(np.abs(values), dtype)
    else:
        array = jnp.asarray(values, dtype)
    assert_measures(array)


def test_host_arrays_keep_their_64_bits():
    tiny = 1 + 1e-9 * np.random.default_rng(0).standard_normal(1000)
    assert_measures(tiny)
    assert one(tiny).std == pytest.approx(1e-9, rel=0.1)
    assert_measures(np.arange(5))
    assert_measures(np.float32(2))


def test_a_large_offset_costs_no_digits():
    assert_measures(jnp.asarray(normals(300, 400) + 1000))


def test_equal_entries_have_exactly_no_variance():
    for value in (0.1, -3e7, 1e-30):
        got = one(jnp.full((1001, 13), value, jnp.float32))
        assert got == Measured(13013, float(np.float32(value)), 0.0, got.mean, got.mean)


def test_many_entries_cost_no_digits():
    """Squares of 2**24 entries, where a float32 sum would stop growing at 2**24."""
    x = jnp.tile(jnp.array([1.0, -1.0, 3.0, -3.0], jnp.float32), 2**22)
    assert (one(x).mean, one(x).variance) == (0.0, 5.0)


def test_an_empty_array_has_no_moments():
    got = one(jnp.zeros((0, 3)))
    assert got.n == 0 and got.finite
    assert np.isnan([got.mean, got.variance, got.low, got.high]).all()


def test_what_is_not_finite_is_counted():
    for dtype in ("float32", "bfloat16", "float8_e5m2", "complex64"):
        got = one(jnp.zeros((4, 5), dtype).at[0, :2].set(jnp.nan).at[3, 3].set(-jnp.inf))
        assert (got.nonfinite, got.finite) == (3, False)
    assert one(jnp.zeros(9, "float8_e4m3fn").at[0].set(jnp.nan)).nonfinite == 1


def test_boxes_are_measured_within_their_array():
    x = normals(6, 8)
    boxes = [((1, 2, 5),), (), ((0, 0, 2), (1, 7, 8)), ((0, 3, 3),)]
    parts, whole, corner, empty = measure_boxes({"x": (x, boxes)})["x"]
    assert parts == one(x[:, 2:5])
    assert whole == one(x)
    assert corner == one(x[:2, 7:])
    assert empty.n == 0


@BOTH_AXIS_TYPES
@pytest.mark.parametrize("spec", [P("a", "b"), P(None, "b"), P(("a", "b"))])
def test_shards_are_measured_in_place(devices, kind, spec):
    mesh = make_mesh(kind)
    x = jnp.asarray(normals(64, 48))
    sharded = jax.device_put(x, NamedSharding(mesh, spec))
    cut = [((1, 5, 18),), ()]
    for mesh_in_context in (None, mesh):
        if mesh_in_context is None:
            got = measure_boxes({"x": (sharded, cut)})["x"]
        else:
            with jax.set_mesh(mesh_in_context):
                got = measure_boxes({"x": (sharded, cut)})["x"]
        for mine, whole in zip(got, measure_boxes({"x": (x, cut)})["x"], strict=True):
            assert mine.variance == pytest.approx(whole.variance, rel=1e-13)
            assert mine.mean == pytest.approx(whole.mean, rel=1e-12)
            assert (mine.n, mine.low, mine.high) == (whole.n, whole.low, whole.high)


def test_shards_are_never_gathered(devices):
    mesh = make_mesh(sizes=(8,), names=("a",))
    x = jax.device_put(jnp.ones((1024, 512)), NamedSharding(mesh, P("a")))
    with jax.enable_x64(True):
        compiled = _moments.lower(x, ((),)).compile()
    temporary = compiled.memory_analysis().temp_size_in_bytes
    assert temporary < x.nbytes / 8 / 4, "one shard has an eighth; sums need a few numbers"


def test_equal_kinds_share_one_program():
    before = _moments._cache_size()
    measure({f"layer_{i}": jnp.full((3, 17), float(i)) for i in range(20)})
    assert _moments._cache_size() == before + 1


@pytest.mark.parametrize(
    ("leaf", "message"),
    [
        (jax.ShapeDtypeStruct((2,), "float32"), r"needs arrays with values, got ShapeDtypeStruct"),
        ("text", r"needs arrays with values, got 'text' of type str at 'a/b'"),
        (2.0, r"got 2.0 of type float at 'a/b'"),
        (np.array(["x"]), r"needs a numeric dtype"),
        (jax.random.key(0), r"needs a numeric dtype"),
    ],
)
def test_only_arrays_with_numbers_are_measured(leaf, message):
    with pytest.raises(TypeError, match=message):
        measure({"a": {"b": leaf}})


def test_a_traced_value_is_not_measured():
    with pytest.raises(TypeError, match=r"got a traced value .* at 'x'. .* outside of jit"):
        jax.jit(lambda x: measure({"x": x}))(jnp.ones(3))


def test_two_leaves_with_one_path_are_not_measured():
    with pytest.raises(ValueError, match=r"canonical path"):
        measure({"a/b": jnp.ones(1), "a": {"b": jnp.ones(1)}})


# The inequalities that the allowances rest on, both sides computed.


def grid(low: float, high: float, density, points: int = 20_001):
    x = np.linspace(low, high, points)
    weight = density(x)
    return x, weight / weight.sum()


def gaussian(x):
    return np.exp(-(x**2) / 2)


def truncated(low: float, high: float):
    # From the mode of the interval, so that a far tail does not underflow.
    mode = min(max(0.0, low), high)
    return grid(max(low, -30), min(high, 30), lambda x: np.exp((mode**2 - x**2) / 2))


def squares(x, weight):
    """A circular law, given by the squared modulus; the real line stands for the plane."""
    return np.sqrt(x), weight


BASE_LAWS = {
    "normal": (grid(-30, 30, gaussian), (-math.inf, math.inf)),
    "uniform": (grid(-1, 1, np.ones_like), (-1, 1)),
    **{
        f"truncated {ends}": (truncated(*ends), ends)
        for ends in [
            (-2, 2),
            (-3, 3),
            (-0.5, 0.5),
            (-1, 3),
            (-2, 3),
            (0, 3),
            (1, 4),
            (2, 5),
            (2, 3),
        ]
        + [(0, math.inf), (1, math.inf), (3, math.inf), (-2, math.inf), (-math.inf, 1)]
    },
    **{
        f"sphere {n}": (
            # In the angle, where the density has no pole at the ends.
            (lambda t, w: (np.sin(t), w))(
                *grid(-math.pi / 2, math.pi / 2, lambda t, n=n: np.cos(t) ** (n - 2))
            ),
            (-1, 1),
        )
        for n in (2, 3, 10)
    },
}
CIRCULAR_LAWS = {
    "complex normal": squares(*grid(0, 80, lambda x: np.exp(-x))),
    "disk": squares(*grid(0, 2, np.ones_like)),
    "complex truncated": squares(*grid(0, 4, lambda x: np.exp(-x))),
}


def log_moments(values, weight, powers):
    """Logarithm of ``E values**q`` for every q."""
    positive = (values > 0) & (weight > 0)
    logs, weights = np.log(values[positive]), np.log(weight[positive])
    return np.array([special.logsumexp(weights + q * logs) for q in powers])


def bernstein_slack(log_moment, variance, scale, powers):
    """How far ``E X**q`` stays below ``q!/2 variance scale**(q - 2)``, in logarithms."""
    bound = special.gammaln(powers + 1) - math.log(2) + math.log(variance)
    return bound + (powers - 2) * math.log(scale) - log_moment


@pytest.mark.parametrize("share", [1.0, 0.5, 0.01], ids=lambda p: f"share {p}")
@pytest.mark.parametrize("name", [*BASE_LAWS, *CIRCULAR_LAWS])
def test_the_moments_that_bernstein_needs(name, share):
    """For the law itself, and for the law among zeros, as `sparse` and `masked` have them."""
    from jaxinit.checks._allowances import _tail_scale

    is_complex = name in CIRCULAR_LAWS
    x, weight = CIRCULAR_LAWS[name] if is_complex else BASE_LAWS[name][0]
    x, weight = np.append(x, 0.0), np.append(share * weight, 1 - share)
    mean = 0.0 if is_complex else float(weight @ x)
    distance = np.abs(x - mean)
    variance = float(weight @ distance**2)
    y = distance**2 / variance
    kurtosis = float(weight @ y**2)
    support = (0.0, x.max()) if is_complex else BASE_LAWS[name][1]
    law = Law(mean, variance, kurtosis, (min(0, support[0]), max(0, support[1])))
    if share == 1:
        law = Law(mean, variance, kurtosis, support)

    powers = np.array([3, 4, 5, 6, 8, 11, 15, 20, 30, 40])
    of_entries = log_moments(distance / math.sqrt(variance), weight, powers)
    assert bernstein_slack(of_entries, 1.0, math.sqrt(kurtosis) / 3, powers).min() >= 0
    of_squares = log_moments(y - 1, weight, powers)
    scale = _tail_scale(law, is_complex)
    assert bernstein_slack(of_squares, kurtosis - 1, scale, powers).min() >= 0
    if share == 1:  # among zeros it follows, their number being fixed
        s = np.logspace(-4, 5, 28)
        with np.errstate(divide="ignore"):
            log_weight = np.log(weight)
        left = np.array([special.logsumexp(log_weight - each * y) for each in s])
        assert (left <= -np.log1p(2 * kurtosis * s) / (2 * kurtosis) + 1e-9).all()


def test_the_reference_laws_are_those_of_the_catalogue():
    for name, law in {
        "normal": evaluate("normal(1.0)").law((1,)),
        "uniform": evaluate("uniform(minval=-1, maxval=1)").law((1,)),
        "truncated (-2, 2)": evaluate("truncated_normal(1.0)").law((1,)),
        "truncated (1, inf)": evaluate("truncated_normal(1., lower=1., upper=np.inf)").law((1,)),
        "sphere 10": evaluate("orthogonal()").law((10, 4)),
    }.items():
        (x, weight), support = BASE_LAWS[name]
        y = (x - weight @ x) ** 2
        assert law.variance == pytest.approx(weight @ y, rel=1e-3)
        assert law.kurtosis == pytest.approx(weight @ y**2 / (weight @ y) ** 2, rel=1e-3)
        assert law.support == support


# Calibration: thousands of right leaves, at rates that can be seen.

LEAVES = 4_000
FREE = (
    "normal(0.02)",
    "normal(0.02, mean=1.0)",
    "uniform(minval=-0.1, maxval=0.1)",
    "uniform(0.3)",
    "truncated_normal(0.02)",
    "truncated_normal(1.0, lower=-1.0, upper=3.0)",
    "truncated_normal(1.0, lower=0.0, upper=np.inf)",
    "truncated_normal(1.0, lower=2.0, upper=4.0)",
)
SHAPED = (
    ("orthogonal()", (1, 1)),
    ("orthogonal()", (3, 5)),
    ("scaled_orthogonal()", (3, 5)),
    ("delta_orthogonal()", (3, 4, 4)),
    ("masked(orthogonal(), np.eye(2))", (2, 2)),
    ("masked(orthogonal(), np.arange(8) % 2)", (8, 8)),
    ("sparse(0.9, 0.1)", (10, 1)),
    ("sparse(0.9, 0.1)", (40, 8)),
    ("masked(normal(0.1), np.tri(10, 4))", (10, 4)),
    ("masked(uniform(1.0), np.tri(2, 3))", (2, 3)),
    ("stacked(he_normal())", (2, 4, 4)),
    ("scaled(glorot_uniform(), -0.5)", (8, 8)),
)


def exceeded(values, law, dtype, size, t):
    """For each of many leaves (rows), whether it leaves any of its bounds."""
    distance = np.abs(values - law.mean)
    ends = np.abs(values) if values.dtype.kind == "c" else values
    allowed = allowance(law, values.shape[1], np.dtype(dtype), size, t)
    moment = (distance**2).mean(axis=1)
    return (
        (np.abs(values.mean(axis=1) - law.mean) > allowed.mean)
        | (moment < allowed.second_moment[0])
        | (moment > allowed.second_moment[1])
        | (ends.min(axis=1) < allowed.support[0])
        | (ends.max(axis=1) > allowed.support[1])
    )


def failure_fraction(values, law, dtype, size, rate):
    return exceeded(values, law, dtype, size, math.log(6 / rate)).mean()


@functools.cache
def drawn(call: str, shape: tuple[int, ...], dtype: str):
    init = evaluate(call)
    keys = jax.random.split(KEY, LEAVES)
    draw = jax.jit(jax.vmap(lambda key: init(key, shape, dtype)), compiler_options=QUICK)
    return wide(draw(keys)).reshape(LEAVES, -1)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float8_e4m3fn"])
@pytest.mark.parametrize("call", FREE)
def test_right_leaves_fail_no_more_often_than_they_may(call, dtype):
    init = evaluate(call)
    values = wide(sample(call, (LEAVES * 32,), dtype, SEED))
    for n in (1, 2, 8, 64, 1024):
        law, leaves = init.law((n,), dtype), values.reshape(-1, n)
        for rate in (0.5, 0.05):
            assert failure_fraction(leaves, law, dtype, n, rate) <= rate, (n, rate)


@pytest.mark.slow
@pytest.mark.parametrize(("call", "shape"), SHAPED)
def test_right_kernels_fail_no_more_often_than_they_may(call, shape):
    law, leaves = evaluate(call).law(shape), drawn(call, shape, "float32")
    for rate in (0.5, 0.05):
        assert failure_fraction(leaves, law, "float32", max(shape), rate) <= rate, rate


@pytest.mark.parametrize(("call", "shape"), [("normal(0.1)", (5,)), ("he_uniform()", (4, 8))])
def test_right_complex_leaves_fail_no_more_often_than_they_may(call, shape):
    law, leaves = evaluate(call).law(shape, "complex64"), drawn(call, shape, "complex64")
    for rate in (0.5, 0.05):
        assert failure_fraction(leaves, law, "complex64", max(shape), rate) <= rate, rate


def test_the_bounds_are_near_what_chance_reaches():
    """At a rate of one half about 4 % fail: the bounds cost a factor of ten, not of a thousand."""
    values = wide(sample("normal(1.0)", (LEAVES, 128), seed=SEED))
    fraction = failure_fraction(values, normal(1.0).law((128,)), "float32", 128, 0.5)
    assert 0.01 < fraction < 0.5


# Power: the numbers in the docstring of assert_laws.

T = math.log(6 * 150 / 1e-5)


def power(leaves, init, t=T):
    return exceeded(leaves, init.law(leaves.shape[1:]), "float32", leaves.shape[1], t).mean()


def test_the_power_that_is_stated():
    """By the exact law of a sum of squares of normals, and of their mean."""
    law = normal(1.0).law((4096,))
    allowed = allowance(law, 4096, np.dtype("float32"), 4096, T)
    assert pytest.approx(18.3, abs=0.05) == T
    low, high = (4096 * end for end in allowed.second_moment)
    assert stats.chi2.sf(high / 1.1**2, 4096) > 0.994
    assert stats.chi2.cdf(low / 0.9**2, 4096) > 0.998
    assert stats.norm.sf(64 * (allowed.mean - 0.15)) > 0.999
    assert stats.norm.sf(64 * (allowed.mean - 0.1)) == pytest.approx(0.57, abs=0.005)
    of_8192 = allowance(law, 8192, np.dtype("float32"), 8192, T).mean
    assert stats.norm.sf(math.sqrt(8192) * (of_8192 - 0.1)) > 0.998
    # Neyman and Pearson: the best test against 0.1 * 64 standard errors, upwards, that spends on
    # this alone what one leaf in 150 may fail.
    assert stats.norm.sf(stats.norm.isf(1e-5 / 150) - 6.4) < 0.88


@pytest.mark.parametrize("call", ["normal(1.0)", "uniform(minval=-1, maxval=1)"])
def test_the_power_that_is_seen(call):
    """1,000 leaves of 4,096 entries: 0.994 would show as less than 0.982 once in a million."""
    init = evaluate(call)
    leaves = wide(sample(call, (1000, 4096), seed=SEED))
    assert power(leaves, init) == 0
    assert power(1.1 * leaves, init) > 0.982
    assert power(0.9 * leaves, init) > 0.99
    std = init.law((4096,)).std
    assert power(leaves + 0.15 * std, init) > 0.99


@pytest.mark.parametrize("n", [4, 8, 64])
def test_zeros_are_seen_where_a_law_has_none(n):
    for call in ("normal(0.02)", "uniform(minval=-1, maxval=1)", "truncated_normal(1.0)"):
        assert power(np.zeros((1, n)), evaluate(call)) == 1


@pytest.mark.parametrize("n", [1, 2, 8])
def test_a_wild_factor_is_seen_in_the_smallest_leaf(n):
    assert power(np.full((1, n), 20.0), normal(1.0)) == 1


def test_one_wild_entry_among_a_million_is_seen():
    """It moves the second moment by 1e-3, within what chance may, but one entry reaches 25 std."""
    values = wide(sample("normal(1.0)", (1, 10**6), seed=SEED))
    assert power(values, normal(1.0)) == 0
    values[0, 123] = 30.0
    assert power(values, normal(1.0)) == 1


def test_orthogonal_kernels_are_held_to_rounding():
    init = evaluate("orthogonal()")
    for dtype, factor in (("float32", 1.001), ("bfloat16", 1.01), ("float8_e4m3fn", 1.1)):
        kernel = wide(sample("orthogonal()", (64, 48), dtype, SEED)).reshape(1, -1)
        law = init.law((64, 48), dtype)
        assert not exceeded(kernel, law, dtype, 64, T)[0]
        assert exceeded(kernel * factor, law, dtype, 64, T)[0]
        assert exceeded(kernel / factor, law, dtype, 64, T)[0]


def test_a_part_of_a_law_is_a_slice():
    law = evaluate("fused([normal(1.0), zeros], (3, 2))").law((4, 5))
    assert [part[:3] if isinstance(part, tuple) else (part.axis, part.start, part.stop)
            for part in law.slabs] == [(-1, 0, 3), (-1, 3, 5)]  # fmt: skip
    assert isinstance(law.slabs[0], Slab)
