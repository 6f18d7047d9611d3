"""Draws follow the law that their initializer declares.

Keys are fixed, so nothing here is random from run to run; tolerances are five standard errors,
derived from the law itself. With 40,000 entries of a normal law the second moment is known to
0.7 % and the test fails at 3.5 %: fan_in and fan_out swapped (1.5 in a 160 x 240 kernel), a missing
correction of the truncation (0.77), a gain used as a scale, a variance used as a standard
deviation all lie far outside.
"""

from __future__ import annotations

import functools
import math
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.stats

from catalogue import CASES, INEXACT, QUICK, Case, each, evaluate, sample, wide
from jaxinit.initializers import Law
from jaxinit.initializers import _laws as laws

pytestmark = pytest.mark.unoptimized

SIGMAS = 5
SEED = 7
KEY = jax.random.key(SEED)


def epsilon(dtype) -> float:
    return float(jnp.finfo(dtype).eps)


def parts_of(values: np.ndarray, law: Law):
    """The array and its law, then each slice with a law of its own."""
    yield values, law
    for part in law.slabs:
        inside = [slice(None)] * values.ndim
        inside[part.axis] = slice(part.start, part.stop)
        yield from parts_of(values[tuple(inside)], part.law)


def assert_moments(values: np.ndarray, law: Law, random: bool, digits: float = 1e-6) -> None:
    """Mean and second central moment, within the standard error of independent entries.

    Dependent laws have smaller errors: orthogonal kernels have an exact sum of squares and an
    exact number of zeros is kept by the sparse ones.
    """
    size = values.size
    if not random or law.variance == 0:
        np.testing.assert_allclose(values.mean(), law.mean, rtol=digits, atol=1e-12)
        np.testing.assert_allclose(values.std(), law.std, rtol=digits, atol=1e-12)
        return
    assert abs(values.mean() - law.mean) <= SIGMAS * law.std / math.sqrt(size)
    second = (np.abs(values - law.mean) ** 2).mean()
    error = 1e-3 if law.fixed_norm else SIGMAS * math.sqrt((law.kurtosis - 1) / size) + 1e-6
    assert abs(second / law.variance - 1) <= error, f"variance {second}, {law.variance} declared"


def assert_support(values: np.ndarray, law: Law, dtype) -> None:
    """Between the ends, up to the last digits of the arithmetic."""
    ends = np.abs(values) if np.iscomplexobj(values) else values
    low, high = law.support
    largest = max((abs(end) for end in (low, high) if math.isfinite(end)), default=0.0)
    slack = 8 * max(epsilon(dtype) if jnp.finfo(dtype).bits >= 32 else 0, 1e-7) * largest
    assert low - slack <= ends.min() and ends.max() <= high + slack


# Every law in every dtype.


def each_dtype(dtypes, cases=CASES):
    """Runs a test for every case in every one of some dtypes that it has."""
    pairs = [(case, dtype) for dtype in dtypes for case in cases if dtype in case.dtypes]
    return pytest.mark.parametrize(
        ("case", "dtype"),
        [
            pytest.param(
                case,
                dtype,
                id=f"{dtype}-{case.call}",
                marks=[pytest.mark.slow] * case.is_slow(dtype),
            )
            for case, dtype in pairs
        ],
    )


@each_dtype(INEXACT)
def test_moments_and_support(case, dtype):
    drawn = case.draw_bulk(dtype)
    assert drawn.dtype == dtype
    law = case.initializer.law(drawn.shape, dtype)
    assert math.isfinite(law.std) and law.support[0] <= law.support[1]
    for values, its_law in parts_of(wide(drawn), law):
        assert np.isfinite(values).all()
        # Moments of rounded laws are read off a grid of 4,096 quantiles.
        digits = 1e-4 if epsilon(dtype) > 1e-6 else 1e-6
        assert_moments(values, its_law, case.initializer.random, digits)
        assert_support(values, its_law, dtype)


def test_the_test_above_has_power():
    """A standard deviation that is 3 % off, or a mean off by 0.04 of it, fails."""
    case = next(case for case in CASES if case.call == "he_normal()")
    drawn = wide(case.draw_bulk("float32"))
    law = case.initializer.law(drawn.shape)
    for wrong in (law.scaled(1.03), law.scaled(0.97), law.scaled(1, 0.04 * law.std)):
        with pytest.raises(AssertionError):
            assert_moments(drawn, wrong, random=True)
    with pytest.raises(AssertionError):
        assert_support(drawn, law.scaled(0.98), "float32")


@each_dtype(
    ("float32", "complex64"),
    [case for case in CASES if case.bulk and case.initializer.random],
)
def test_kurtosis(case, dtype):
    """The fourth moment, its error read off the sample: this tells the distributions apart.

    Normal 3, cut at two deviations 2.37, uniform 1.8: 40,000 entries give each to 0.08.
    """
    drawn = case.draw_bulk(dtype)
    law = case.initializer.law(drawn.shape, dtype)
    for values, its_law in parts_of(wide(drawn), law):
        if its_law.variance:
            fourth = np.abs(values - its_law.mean) ** 4 / its_law.variance**2
            error = SIGMAS * fourth.std() / math.sqrt(fourth.size)
            assert abs(fourth.mean() - its_law.kurtosis) <= error


def is_bounded_by_density(case) -> bool:
    """Whether entries are independent and of one bounded law."""
    law = case.initializer.law(case.bulk or case.shape)
    return not law.fixed_norm and not law.slabs and all(map(math.isfinite, law.support))


BOUNDED = [c for c in CASES if c.bulk and c.initializer.random and is_bounded_by_density(c)]


@each(*BOUNDED)
def test_bounded_laws_reach_their_ends(case):
    """Of 40,000 entries some lie within 2 % of each end, so a support too wide is seen as well.

    At the ends of a normal cut at two deviations the density is 0.23 of the middle: 2 % of the
    range holds 0.2 % of the entries, and all miss it with probability e**-90. Only laws of entries
    that are independent and bounded by density, not by geometry, are held to this.
    """
    values = wide(case.draw_bulk("float32"))
    low, high = case.initializer.law(case.bulk).support
    margin = 0.02 * (high - low)
    assert values.min() < low + margin and high - margin < values.max()


def test_64_bits(x64):
    """The same laws, drawn in 64 bits."""
    calls = {
        "he_normal()": "float64",
        "lecun_uniform()": "complex128",
        "glorot_normal()": "complex128",
        "orthogonal()": "float64",
        "truncated_normal(lower=-np.inf, upper=1.0)": "float64",
    }
    drawn = jax.jit(
        lambda key: [evaluate(call)(key, (160, 240), dtype) for call, dtype in calls.items()],
        compiler_options=QUICK,
    )(KEY)
    for array, (call, dtype) in zip(drawn, calls.items(), strict=True):
        assert array.dtype == dtype
        law = evaluate(call).law((160, 240), dtype)
        assert_moments(np.asarray(array), law, random=True)
        assert_support(np.asarray(array), law, dtype)


# Whole distributions. One test per law at p > 1e-4: eighteen of them fail by chance once in 500
# keys, and the key is fixed. 20,000 entries see a distance of 0.016 between distributions.

DISTRIBUTIONS = {
    "normal(0.5, mean=-1.0)": scipy.stats.norm(-1.0, 0.5),
    "uniform(0.5)": scipy.stats.uniform(0, 0.5),
    "uniform(minval=-0.3, maxval=0.1)": scipy.stats.uniform(-0.3, 0.4),
    "truncated_normal(0.1)": scipy.stats.truncnorm(-2, 2, 0, 0.1),
    "truncated_normal(0.1, lower=-1.0, upper=3.0)": scipy.stats.truncnorm(-1, 3, 0, 0.1),
    "truncated_normal(1.0, lower=-np.inf, upper=-2.0)": scipy.stats.truncnorm(-np.inf, -2),
    "truncated_normal(1.0, lower=0.0, upper=np.inf)": scipy.stats.halfnorm(),
    "truncated_normal(1.0, exact=True)": scipy.stats.truncnorm(
        -2, 2, 0, 1 / scipy.stats.truncnorm(-2, 2).std()
    ),
    "variance_scaling(2.0, 'fan_out', 'normal')": scipy.stats.norm(0, 0.1),
    "lecun_uniform()": scipy.stats.uniform(-(0.03**0.5), 2 * 0.03**0.5),
    "he_normal()": scipy.stats.truncnorm(-2, 2, 0, 0.02**0.5 / scipy.stats.truncnorm(-2, 2).std()),
}


@pytest.mark.parametrize("call", DISTRIBUTIONS)
def test_the_whole_distribution(call):
    init = evaluate(call)
    drawn = wide(sample(call, (100, 200), seed=SEED)).ravel()
    assert scipy.stats.kstest(drawn, DISTRIBUTIONS[call].cdf).pvalue > 1e-4
    # The quantiles, from which the laws of narrow dtypes are computed, are of the same law.
    probabilities = np.linspace(0.001, 0.999, 999)
    np.testing.assert_allclose(
        init.law((100, 200)).quantile(probabilities),  # pyright: ignore[reportOptionalCall]
        DISTRIBUTIONS[call].ppf(probabilities),
        rtol=1e-6,
        atol=1e-9,
    )


@pytest.mark.parametrize("call", ["orthogonal()", "orthogonal(method='reflections')"])
def test_the_distribution_of_an_entry_of_an_orthogonal_matrix(call):
    """Squares of the entries of a Haar matrix are Beta distributed; the signs are even.

    One entry of each of 4,000 matrices, since those of one matrix depend on each other.
    """
    n = 4
    drawn = wide(sample(f"stacked({call})", (4_000, n, 3), seed=SEED))[:, 1, 2]
    assert scipy.stats.kstest(drawn**2, scipy.stats.beta(1 / 2, (n - 1) / 2).cdf).pvalue > 1e-4
    assert abs((drawn > 0).mean() - 0.5) < SIGMAS * 0.5 / math.sqrt(drawn.size)
    quantile = evaluate(call).law((n, 3)).quantile
    squares = scipy.stats.beta(1 / 2, (n - 1) / 2).ppf([0.2, 0.5, 0.9])
    np.testing.assert_allclose(quantile((1 + np.array([0.2, 0.5, 0.9])) / 2), squares**0.5, 1e-3)


COMPLEX_SQUARES = {
    "normal(1.0)": scipy.stats.expon(),
    "variance_scaling(1.0, 'fan_in', 'normal', 0, 1)": scipy.stats.expon(),
    "variance_scaling(1.0, 'fan_in', 'uniform', 0, 1)": scipy.stats.uniform(0, 2),
    "variance_scaling(1.0, 'fan_in', 'truncated_normal', 0, 1)": scipy.stats.truncexpon(
        4, 0, 1 / 0.9619618280082135**2
    ),
}


@pytest.mark.parametrize("call", COMPLEX_SQUARES)
def test_the_whole_distribution_of_complex_entries(call):
    """Circular: the angle is even and independent of the modulus."""
    drawn = wide(sample(call, (1, 20_000), "complex64", SEED)).ravel()
    squares, angle = np.abs(drawn) ** 2, np.angle(drawn)
    assert scipy.stats.kstest(squares, COMPLEX_SQUARES[call].cdf).pvalue > 1e-4
    even = scipy.stats.uniform(-math.pi, 2 * math.pi)
    assert scipy.stats.kstest(angle, even.cdf).pvalue > 1e-4
    assert abs(np.corrcoef(squares, angle)[0, 1]) < SIGMAS / math.sqrt(drawn.size)


# Narrow dtypes: drawn in 32 bits, rounded once.


@pytest.mark.parametrize(
    "call",
    [
        "normal(1.0)",
        "truncated_normal(0.5)",
        "uniform(minval=-1.0, maxval=1.0)",
        "he_normal(-1, ())",
        "glorot_uniform(-1, ())",
    ],
)
def test_narrow_draws_use_the_whole_dtype(call):
    """JAX draws 128 distinct bfloat16 values, with a mean 0.017 deviations off."""
    drawn = jax.jit(
        lambda key: {d: evaluate(call)(key, (10_000,), d) for d in ("bfloat16", "float16")},
        compiler_options=QUICK,
    )(KEY)
    for dtype, least in (("bfloat16", 1_000), ("float16", 3_000)):
        values = wide(drawn[dtype])
        assert np.unique(values).size > least
        law = evaluate(call).law((10_000,), dtype)
        assert abs(values.mean() - law.mean) < SIGMAS * law.std / 100


ROUNDED = {
    "normal(0.02)": "float8_e4m3fn",
    "normal(1.0, mean=3.0)": "float8_e5m2",
    "normal(1e-6)": "float16",
    "uniform(minval=-0.3, maxval=0.1)": "float8_e5m2",
    "uniform(minval=1.0, maxval=1.01)": "bfloat16",
    "truncated_normal(0.01, lower=-1.0, upper=3.0)": "float8_e4m3fn",
    "sparse(0.5, 0.01)": "float8_e4m3fn",
    "identity(0.1)": "float8_e5m2",
    "constant([0.1, 0.3, 1.7])": "float8_e4m3fn",
    "scaled(masked(normal(0.02), [1, 0, 0]), -0.5)": "float8_e4m3fn",
    "fused([normal(0.01), uniform(0.02)], (1, 2))": "float8_e4m3fn",
    "orthogonal()": "float8_e4m3fn",
    "delta_orthogonal()": "float8_e5m2",
}


@functools.cache
def quantile_of_entries(call: str) -> np.ndarray:
    """Entries in exact proportion to their law: 3 * 2**18 quantiles, or a real float32 draw."""
    init = evaluate(call)
    law = init.law((3, 3) if "delta" not in call else (3, 3, 3))
    if law.quantile is not None and not law.fixed_norm:
        return law.quantile((np.arange(3 * 2**16) + 0.5) / (3 * 2**16))
    shape = (3, 384, 384) if "delta" in call else (768, 768)
    shape = (2**17, 3) if "fused" in call or "masked" in call else shape
    return wide(sample(call, shape, seed=SEED))


@pytest.mark.parametrize("call", ROUNDED)
def test_the_law_after_rounding(call):
    """Against the same entries rounded by brute force; both sides see the same sample.

    Moments of the declared law move with the rounding as those of the entries do, to a tenth of
    the shift or 1e-3 of the value: without the correction the first five are 0.1 % to 30 % off.
    """
    dtype = ROUNDED[call]
    exact = quantile_of_entries(call)
    rounded = exact.astype(np.float32).astype(dtype).astype(np.float64)
    init = evaluate(call)
    shape = exact.shape if exact.ndim > 1 else (3, 3)
    before, after = init.law(shape), init.law(shape, dtype)
    shift = rounded.mean() - exact.mean()
    assert after.mean - before.mean == pytest.approx(shift, abs=1e-3 * before.std)
    growth = rounded.var() / exact.var()
    assert after.variance / before.variance == pytest.approx(growth, rel=2e-3)
    if after.variance:
        assert after.support[0] <= rounded.min() and rounded.max() <= after.support[1]
    for part, part_before in zip(after.slabs, before.slabs, strict=True):
        assert part.law == part_before.law.rounded(jnp.dtype(dtype))


def test_rounding_leaves_infinite_ends_and_wide_dtypes_alone():
    """float8_e4m3fn has no infinity: the support of a normal law must not become NaN."""
    law = evaluate("normal(0.02)").law((3, 3), "float8_e4m3fn")
    assert law.support == (-math.inf, math.inf)
    law = evaluate("normal(0.02)").law((3, 3))
    for dtype in ("float32", "complex64", "int32"):
        assert law.rounded(jnp.dtype(dtype)) is law


# Laws against numbers that were computed elsewhere.

BOUNDS = [
    (-2.0, 2.0), (-1.0, 3.0), (0.0, 1.0), (0.0, 0.003), (1.0, 1.01), (-3.0, -2.5), (-0.5, math.inf),
    (3.0, math.inf), (-math.inf, -3.0), (-math.inf, math.inf), (-40.0, 40.0),
]  # fmt: skip


@pytest.mark.parametrize("bounds", BOUNDS, ids=str)
def test_moments_of_truncated_normals(bounds):
    """Against quadrature about the mean, on intervals where raw moments cancel as well."""
    low, high = max(bounds[0], -15.0), min(bounds[1], 15.0)
    nearest = low if low > 0 else high if high < 0 else 0.0

    def integral(function):
        points = [x for x in (-3.0, 0.0, 3.0) if low < x < high] or None
        with warnings.catch_warnings(action="ignore"):  # of an integral that is 0 by symmetry
            return scipy.integrate.quad(
                lambda x: function(x) * math.exp(nearest**2 / 2 - x * x / 2),
                low, high, epsabs=0, epsrel=1e-13, points=points, limit=200,
            )[0]  # fmt: skip

    mass = integral(lambda x: 1.0)
    middle = (low + high) / 2
    mean = middle + integral(lambda x: x - middle) / mass
    variance = integral(lambda x: (x - mean) ** 2) / mass
    fourth = integral(lambda x: (x - mean) ** 4) / mass
    law = laws.standard_truncated(*bounds)
    assert law.mean == pytest.approx(mean, rel=1e-10, abs=1e-12)
    assert law.variance == pytest.approx(variance, rel=1e-10)
    assert law.kurtosis == pytest.approx(fourth / variance**2, rel=1e-8)
    assert law.support == bounds


def test_known_constants():
    assert laws.standard_truncated(-2.0, 2.0).std == pytest.approx(0.87962566103423978, rel=1e-15)
    assert laws.complex_truncated(2.0).std == pytest.approx(0.9619618280082135, rel=1e-15)
    assert laws.standard_truncated(-2.0, 2.0).kurtosis == pytest.approx(2.3655367171, rel=1e-9)
    assert laws.standard_normal().kurtosis == 3
    assert laws.standard_uniform().kurtosis == 1.8
    assert laws.complex_normal().kurtosis == 2


@pytest.mark.parametrize(
    ("lower", "upper"), [(-2.0, 2.0), (-1.0, 3.0), (-math.inf, 0.5), (1.0, 1.5)]
)
def test_exact_truncated_normals_have_what_was_asked(lower, upper):
    bounds = f"lower={lower}, upper={upper}".replace("inf", "np.inf")
    call = f"truncated_normal(0.02, {bounds}, mean=-1.0, exact=True)"
    law = evaluate(call).law((3,))
    assert law.mean == pytest.approx(-1, rel=1e-12)
    assert law.std == pytest.approx(0.02, rel=1e-12)
    values = wide(sample(call, (20_000,), seed=SEED))
    assert_moments(values, law, random=True)
    assert_support(values, law, "float32")


@pytest.mark.parametrize("side", ["lower=-np.inf, upper=-3.0", "lower=3.0, upper=np.inf"])
def test_an_open_bound_has_no_outliers(side):
    """JAX returns 3.4e38 where the distribution function rounds to 0 or 1: here 11 in 10**6."""
    call = f"truncated_normal(1.0, {side})"
    values = wide(sample(call, (1_000_000,), seed=SEED))
    assert 3 <= np.abs(values).min() and np.abs(values).max() < 6
    assert_moments(values, evaluate(call).law((3,)), random=True)


@pytest.mark.parametrize(
    ("call", "shape", "variance"),
    [
        ("lecun_normal()", (200, 50), 1 / 200),
        ("lecun_uniform()", (3, 3, 20, 50), 1 / 180),
        ("glorot_uniform()", (200, 50), 2 / 250),
        ("glorot_normal(gain=5 / 3)", (200, 50), 25 / 9 * 2 / 250),
        ("he_normal()", (200, 50), 2 / 200),
        ("he_uniform(negative_slope=0.2)", (200, 50), 2 / 1.04 / 200),
        ("variance_scaling(3.0, 'fan_out', 'normal')", (200, 50), 3 / 50),
        ("variance_scaling(3.0, 'fan_avg', 'uniform')", (200, 50), 3 / 125),
        ("variance_scaling(3.0, 'fan_geo_avg', 'normal')", (200, 50), 3 / 100),
        ("variance_scaling(3.0, 'fan_in', 'normal', gain=2)", (200, 50), 12 / 200),
        ("orthogonal(2.0)", (200, 50), 4 / 200),
        ("orthogonal()", (2, 100, 400), 1 / 400),
        ("scaled_orthogonal()", (50, 200), 1 / 50),
        ("scaled_orthogonal()", (200, 50), 1 / 200),
        ("delta_orthogonal()", (3, 3, 8, 16), 1 / 16 / 9),
        ("identity(2.0)", (4, 8), 4 / 8 - 1 / 16),
        ("sparse(0.9, 2.0)", (100, 7), 0.4),
        ("scaled(he_normal(), -3)", (200, 50), 18 / 200),
        ("stacked(he_normal())", (12, 200, 50), 2 / 200),
        ("reshaped(lecun_normal(), (64, 128))", (64, 8, 16), 1 / 64),
        ("masked(normal(1.0), [[1, 0, 0, 1]])", (5, 4), 0.5),
    ],
)
def test_variances_by_hand(call, shape, variance):
    assert evaluate(call).law(shape).variance == pytest.approx(variance, rel=1e-12)
    # In a complex law the variance is that of the modulus about the mean: the same number.
    if "identity" not in call:
        assert evaluate(call).law(shape, "complex64").variance == pytest.approx(variance, rel=1e-12)


# Laws of laws.


def test_scaling_a_law():
    law = Law(1.0, 4.0, 3.0, (-1.0, 7.0), fixed_norm=True)
    assert law.scaled(-2) == Law(-2.0, 16.0, 3.0, (-14.0, 2.0), fixed_norm=True)
    assert law.scaled(2, 1) == Law(3.0, 16.0, 3.0, (-1.0, 15.0))
    still = law.scaled(0)
    assert (still.mean, still.variance, still.support) == (0, 0, (0, 0))
    assert math.isnan(still.kurtosis)
    assert law.std == 2
    huge = laws.standard_normal().scaled(1e200)
    assert huge.variance == math.inf


def test_a_mixture():
    law = laws.mixture([0.25, 0.75], [laws.point(4.0), laws.point(0.0)])
    values = np.array([4.0, 0, 0, 0])
    assert (law.mean, law.variance) == (1.0, values.var())
    assert law.kurtosis == pytest.approx(scipy.stats.kurtosis(values, fisher=False))
    assert law.support == (0, 4)
    alone = laws.mixture([1.0, 0.0], [laws.point(4.0), laws.point(0.0)])
    assert alone.support == (4, 4)
    tiny = laws.mixture([0.5, 0.5], [laws.point(1e-100), laws.point(0.0)])
    assert tiny.kurtosis == pytest.approx(1)


@pytest.mark.parametrize(
    ("call", "shape"),
    [
        ("masked(identity(), np.eye(6, 4))", (6, 4)),
        ("masked(identity(2.0), 1 - np.eye(6, 4))", (6, 4)),
        ("masked(scaled(constant([1.0, 2.0, 3.0, 4.0]), -0.1), [0, 1, 1, 0])", (6, 4)),
        ("masked(dirac(), [[[0]], [[1]], [[0]]])", (3, 4, 4)),
        ("masked(fused([ones, zeros], (2, 2)), [1, 0, 1, 1])", (6, 4)),
        ("fused([identity(), constant([[1.0, -1.0]])], (2, 2), 1)", (6, 4)),
        ("fused([fused([ones, zeros], (1, 1), 0), zeros], (2, 4), 1)", (2, 6)),
        ("stacked(constant([1.0, 2.0, 4.0]), 1)", (2, 5, 3)),
        ("reshaped(identity(), (4, 6))", (3, 8)),
        ("scaled(dirac(0.5, groups=2), -3)", (3, 3, 4)),
        ("constant([[1 + 2j], [0]])", (2, 3)),
        ("scaled(fused([ones, zeros], (2, 2)), -1)", (6, 4)),
    ],
)
def test_laws_of_fixed_arrays_are_the_numbers_in_them(call, shape):
    """Where nothing is random the law can be checked to the last digit, parts included."""
    init = evaluate(call)
    for dtype in ("float32", "complex64"):
        if "j" in call and dtype == "float32":
            continue
        values = wide(sample(call, shape, dtype))
        law = init.law(shape, dtype)
        for inside, its_law in parts_of(values, law):
            assert_moments(inside, its_law, random=False)
            ends = np.abs(inside) if dtype == "complex64" else inside
            np.testing.assert_allclose((ends.min(), ends.max()), its_law.support, rtol=1e-6)
            # Skewed pieces leave a kurtosis that is close, not exact: see `laws.mixture`.
            if its_law.variance and "identity(), constant" not in call:
                fourth = (np.abs(inside - inside.mean()) ** 4).mean() / inside.var() ** 2
                assert its_law.kurtosis == pytest.approx(fourth, rel=1e-5)


MASKED = {
    "masked(masked(normal(1.0), [1, 0, 1, 0]), [1, 1, 0, 0])": 0.25,
    "masked(fused([normal(1.0), normal(2.0)], (2, 2)), [0, 1, 1, 1])": (0.25 + 2 * 4 / 4),
    "masked(stacked(normal(1.0)), [[1, 1, 0, 0]])": 0.5,
    "scaled(masked(normal(1.0), [1, 0, 0, 0]), 2)": 1.0,
    "stacked(masked(normal(1.0), [1, 1, 1, 0]), 1)": 0.75,
}


@pytest.mark.parametrize("call", MASKED)
def test_laws_of_masks(call):
    init, shape = evaluate(call), (2_000, 5, 4)
    law = init.law(shape)
    assert law.variance == pytest.approx(MASKED[call], rel=1e-12)
    for values, its_law in parts_of(wide(sample(call, shape, seed=SEED)), law):
        assert_moments(values, its_law, random=True)


def test_parts_of_fused_kernels():
    law = evaluate("fused([normal(0.1), zeros, uniform(0.2)], (2, 0, 3), axis=0)").law((5, 4))
    assert [(part.axis, part.start, part.stop) for part in law.slabs] == [(-2, 0, 2), (-2, 2, 5)]
    assert law.slabs[0].law.std == pytest.approx(0.1)
    assert law.slabs[1].law.support == (0, 0.2)
    law = evaluate("stacked(fused(normal(), (1, 2), axis=0), axis=1)").law((3, 7, 4))
    assert [(part.axis, part.start, part.stop) for part in law.slabs] == [(-3, 0, 1), (-3, 1, 3)]
    law = evaluate("stacked(fused(normal(), (1, 3)), axis=-1)").law((3, 4, 7))
    assert [part.axis for part in law.slabs] == [-2, -2]
    nested = "stacked(fused(fused(normal(), (1, 1), axis=0), (2, 2), axis=1), axis=1)"
    law = evaluate(nested).law((2, 9, 4))
    assert [part.axis for part in law.slabs] == [-1, -1]
    assert [part.axis for part in law.slabs[0].law.slabs] == [-3, -3]
    turned = evaluate("scaled(fused([ones, zeros], (1, 1)), -1)").law((2,), "complex64")
    assert [part.law.mean for part in turned.slabs] == [-1, 0]
    assert turned.support == (0, 1)


def test_a_law_is_refused_where_a_draw_is():
    """What a plan learns from `law` is what `init` would say."""
    for call, shape, dtype in [
        ("normal(1e6)", (3,), "float16"),
        ("normal(1e-12)", (3,), "float16"),
        ("constant(0.5)", (3,), "int32"),
        ("constant(300)", (3,), "uint8"),
        ("constant(1j)", (3,), "float32"),
        ("he_normal()", (3,), "float32"),
        ("he_normal()", (3, 3), "int32"),
        ("identity(1e6)", (1, 1), "float16"),
    ]:
        init = evaluate(call)
        errors = []
        for ask in (lambda: init.law(shape, dtype), lambda: init(KEY, shape, dtype)):  # noqa: B023
            with pytest.raises((TypeError, ValueError)) as caught:
                ask()
            errors.append((type(caught.value), str(caught.value)))
        assert errors[0] == errors[1], call


def test_laws_are_values():
    law = evaluate("he_normal()").law((4, 6))
    assert law == evaluate("kaiming_normal()").law((4, 6))
    assert hash(law) == hash(evaluate("he_normal()").law((4, 6)))
    assert law is evaluate("he_normal()").law([4, np.int64(6)])


def test_every_case_with_a_bulk_is_large():
    small = [case.call for case in CASES if case.bulk and math.prod(case.bulk) < 9_000]
    assert not small
    assert isinstance(CASES[0], Case)
