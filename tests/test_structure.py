"""What a kernel does as a map: isometries, identities, zeros per unit, layers, pieces, fans.

Statistics of single entries are in `test_laws.py`; here matrices are multiplied and convolutions
are run.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from catalogue import QUICK, draw_all, evaluate, sample, wide
from helpers import assert_same_bits, slow
from jaxinit import initializers
from jaxinit.initializers import Axes, Fans, compute_fans, einsum_axes

pytestmark = pytest.mark.unoptimized

SEED = 5
KEY = jax.random.key(SEED)


def numbers(call: str, shape: tuple[int, ...], dtype: str = "float32") -> np.ndarray:
    """Values of one draw, in double precision."""
    return wide(sample(call, shape, dtype, SEED))


def adjoint(matrix: np.ndarray) -> np.ndarray:
    return np.conj(np.swapaxes(matrix, -1, -2))


def assert_isometry(matrix: np.ndarray, scale: float, dtype) -> None:
    """The shorter side is orthonormal: within 8 eps sqrt(n), n the longer side."""
    tall = matrix if matrix.shape[-2] >= matrix.shape[-1] else adjoint(matrix)
    gram = adjoint(tall) @ tall / scale**2
    tolerance = 8 * float(jnp.finfo(dtype).eps) * math.sqrt(tall.shape[-2])
    np.testing.assert_allclose(gram, np.broadcast_to(np.eye(tall.shape[-1]), gram.shape),
                               atol=tolerance)  # fmt: skip


# Orthogonal.

HAAR = ("orthogonal()", "orthogonal(method='reflections')")


@pytest.mark.parametrize("dtype", ["float32", "complex64", "bfloat16", *slow("float16")])
def test_orthogonal_keeps_lengths(dtype):
    scaled = ("orthogonal(0.5)", "orthogonal(0.5, method='reflections')")
    calls = [(call, shape) for call in scaled for shape in ((12, 12), (20, 7), (7, 20))]
    for drawn in draw_all(KEY, calls, dtype):
        assert_isometry(wide(drawn), 0.5, dtype)


def test_orthogonal_in_64_bits(x64):
    for dtype in ("float64", "complex128"):
        for call in HAAR:
            assert_isometry(numbers(call, (9, 6), dtype), 1.0, dtype)


def test_a_large_matrix_of_reflections_keeps_its_tolerance():
    """Rounding grows slower than sqrt(n), for many products of reflections as for QR."""
    for shape in ((300, 300), (600, 100), (100, 600)):
        assert_isometry(numbers(HAAR[1], shape), 1.0, "float32")


@pytest.mark.parametrize("column_axis", [-1, 0, 1])
def test_rows_are_all_axes_but_the_columns(column_axis):
    for method in ("qr", "reflections"):
        drawn = numbers(f"orthogonal(column_axis={column_axis}, method={method!r})", (4, 3, 5))
        columns = np.moveaxis(drawn, column_axis, -1)
        assert_isometry(columns.reshape(-1, columns.shape[-1]), 1.0, "float32")


@pytest.mark.parametrize("call", HAAR)
def test_orthogonal_of_one(call):
    """An n x 1 matrix is a unit vector; a 1 x 1 matrix is a sign, either with probability 1/2."""
    drawn = numbers(f"stacked({call})", (200, 1, 1)).ravel()
    assert set(np.abs(drawn)) == {1.0}
    assert abs(drawn.sum()) < 5 * math.sqrt(200)
    assert np.linalg.norm(numbers(call, (8, 1))) == pytest.approx(1, abs=1e-6)


def reflections_of(monkeypatch, gaussian):
    """What the method makes of Gaussian vectors that are chosen by hand, one a row."""
    rows = jnp.asarray(gaussian)
    monkeypatch.setattr(jax.random, "normal", lambda key, shape, dtype: rows.astype(dtype))
    law = evaluate(HAAR[1])
    return np.asarray(law.sample(KEY, rows.T.shape, np.dtype(rows.dtype)))


@pytest.mark.parametrize(
    "vector",
    [
        [3.0, 1e-3, 2e-3, -1e-3],  # 1 - u_1 cancels to 1 digit if it is not rearranged
        [5.0, 1e-7, 0.0, 1e-7],  # ... to none
        [-3.0, 1e-7, 0.0, 1e-7],
        [0.0, 1.0, -2.0, 0.5],
        [-2.0, 0.0, 0.0, 0.0],
        [3.0 + 1e-3j, 1e-3, 2e-3j, 0.0],
        [-1.0 - 2.0j, 0.5j, 0.0, 1.0],
        [-2.0j, 0.0, 0.0, 0.0],
    ],
    ids=str,
)
def test_the_first_reflection_takes_the_axis_to_the_vector(monkeypatch, vector):
    """To the vector itself, not to minus it: nothing is left for signs to mend."""
    others = np.random.default_rng(0).normal(size=(2, 4))
    gaussian = np.array([vector, *others], np.complex64 if np.iscomplexobj(vector) else np.float32)
    drawn = reflections_of(monkeypatch, gaussian)
    assert_isometry(drawn, 1.0, drawn.dtype)
    np.testing.assert_allclose(drawn[:, 0], vector / np.linalg.norm(vector), atol=2e-6)


@pytest.mark.parametrize("dtype", ["float32", "complex64"])
def test_reflections_of_vectors_of_zeros(monkeypatch, dtype):
    """A normal draw is exactly zero once in 2**23, and the last vector has one entry."""
    np.testing.assert_array_equal(
        reflections_of(monkeypatch, np.zeros((3, 4), dtype)), np.eye(4, 3)
    )


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "complex64"])
def test_reflections_under_vmap_are_those_of_a_loop(dtype):
    """Up to rounding: the bits are the same on jax 0.10, and were not for all shapes on 0.12."""
    keys = jax.random.split(KEY, 3)

    def draw(key):
        return [evaluate(HAAR[1])(key, shape, dtype) for shape in ((48, 32), (16, 64), (7, 7))]

    one = jax.jit(draw)
    for mapped, *single in zip(jax.jit(jax.vmap(draw))(keys), *map(one, keys), strict=True):
        np.testing.assert_allclose(mapped, np.stack(single), atol=1e-5)


@pytest.mark.parametrize("call", HAAR)
def test_orthogonal_is_haar(call):
    """At n = 8, E tr Q = 0 and E (tr Q)^2 = 1; without the fix of the signs -1.57 and 3.0.

    The trace of 4,000 matrices has a standard error of 1/63: five are 0.08, a twentieth of the
    defect. Q^T Q cannot see it.
    """
    stack = numbers(f"stacked({call})", (4_000, 8, 8))
    traces = np.trace(stack, axis1=-2, axis2=-1)
    assert abs(traces.mean()) < 5 / math.sqrt(traces.size)
    squares = traces**2
    assert abs(squares.mean() - 1) < 5 * squares.std() / math.sqrt(traces.size)
    assert abs((np.linalg.det(stack) > 0).mean() - 0.5) < 5 * 0.5 / math.sqrt(traces.size)


@pytest.mark.parametrize("call", HAAR)
def test_unitary_is_haar(call):
    """E |tr U|^2 = 1 and E (tr U)^2 = 0: the phases are as random as the axes.

    So is that of the determinant, which misses no factor: uniform, by Kolmogorov and Smirnov.
    """
    stack = numbers(f"stacked({call})", (1_000, 4, 4), "complex64")
    traces = np.trace(stack, axis1=1, axis2=2)
    phases = np.angle(np.linalg.det(stack)) / (2 * np.pi) + 0.5
    assert scipy.stats.kstest(phases, "uniform").pvalue > 1e-4
    limit = 5 / math.sqrt(traces.size)
    assert abs(traces.mean()) < limit
    assert abs((traces**2).mean()) < 2 * limit
    assert abs((np.abs(traces) ** 2).mean() - 1) < limit * 1.5


@pytest.mark.parametrize("shape", [(32, 128), (128, 32)])
def test_scaled_orthogonal_keeps_the_second_moment(shape):
    """Widening, exactly, whatever the input; narrowing, on average over inputs.

    A narrowing isometry projects: the mean of the outputs' squares has a standard error of
    sqrt(2 / (32 * 500)) = 1.1 %.
    """
    kernel = numbers("scaled_orthogonal()", shape)
    x = np.random.default_rng(0).normal(size=(500, shape[0]))
    ratio = ((x @ kernel) ** 2).mean(axis=1) / (x**2).mean(axis=1)
    if shape[1] > shape[0]:
        np.testing.assert_allclose(ratio, 1, rtol=1e-5)
        plain = numbers("orthogonal()", shape)
        np.testing.assert_allclose(kernel, plain * math.sqrt(shape[1] / shape[0]), rtol=1e-6)
    else:
        assert abs(ratio.mean() - 1) < 0.05
        np.testing.assert_array_equal(kernel, numbers("orthogonal()", shape))


def test_scaled_orthogonal_counts_along_its_column_axis():
    law = evaluate("scaled_orthogonal(column_axis=0)").law((128, 32))
    assert law.variance == pytest.approx(1 / 32)


# Convolutions that are identities and isometries.


@functools.partial(jax.jit, static_argnames="groups", compiler_options=QUICK)
def convolve(x, kernel, groups: int = 1):
    """SAME convolution of channels-last `x` with a Flax-shaped kernel."""
    spatial = "WHD"[: kernel.ndim - 2]
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (1,) * len(spatial),
        "SAME",
        dimension_numbers=(f"N{spatial}C", f"{spatial}IO", f"N{spatial}C"),
        feature_group_count=groups,
        precision="highest",
    )


def signal(kernel_shape: tuple[int, ...], channels: int):
    sizes = (2, *(range(5, 5 + len(kernel_shape) - 2)), channels)
    return np.random.default_rng(SEED).standard_normal(sizes, np.float32)


SPATIAL = [(3,), (4,), (1,), (3, 3), (2, 5), (4, 4), (3, 3, 3), (2, 3, 4)]


@pytest.mark.parametrize("spatial", SPATIAL, ids=str)
def test_dirac_is_the_identity(spatial):
    """Bit for bit, at even sizes too: there the padding is one shorter in front."""
    kernel = sample("dirac()", (*spatial, 4, 4))
    x = signal(kernel.shape, 4)
    np.testing.assert_array_equal(convolve(x, kernel), x)


@pytest.mark.parametrize(("inputs", "outputs"), [(3, 5), (5, 3)])
def test_dirac_between_unequal_channels(inputs, outputs):
    kernel = sample("dirac(-0.5)", (3, 3, inputs, outputs))
    x = signal(kernel.shape, inputs)
    y = np.asarray(convolve(x, kernel))
    shared = min(inputs, outputs)
    np.testing.assert_array_equal(y[..., :shared], -0.5 * x[..., :shared])
    assert not y[..., shared:].any()


@pytest.mark.parametrize(
    ("inputs", "outputs", "groups"), [(6, 6, 2), (4, 4, 4), (6, 12, 3), (8, 4, 2)]
)
def test_dirac_in_groups(inputs, outputs, groups):
    """Output j of a group passes input j of the same group, as far as both go."""
    kernel = sample(f"dirac(groups={groups})", (3, inputs // groups, outputs))
    x = signal(kernel.shape, inputs)
    y = np.asarray(convolve(x, kernel, groups)).reshape(*x.shape[:-1], groups, -1)
    x = x.reshape(*x.shape[:-1], groups, -1)
    shared = min(x.shape[-1], y.shape[-1])
    np.testing.assert_array_equal(y[..., :shared], x[..., :shared])
    assert not y[..., shared:].any()


@pytest.mark.parametrize(("inputs", "outputs"), [(4, 4), (3, 6)])
def test_delta_orthogonal_keeps_lengths(inputs, outputs):
    calls = [("delta_orthogonal(2.0)", (*spatial, inputs, outputs)) for spatial in SPATIAL]
    for kernel in draw_all(KEY, calls):
        x = signal(kernel.shape, inputs)
        y = convolve(x, kernel)
        assert y.shape == (*x.shape[:-1], outputs)
        before, after = (np.linalg.norm(wide(one), axis=-1) for one in (x, y))
        np.testing.assert_allclose(after, 2 * before, rtol=1e-5, err_msg=str(kernel.shape))


def test_delta_orthogonal_onto_fewer_channels():
    """No output is louder than the input, and the map back is the inverse on the outputs."""
    calls = ["delta_orthogonal()", "delta_orthogonal(column_axis=-2)"]
    kernel, other = map(wide, draw_all(KEY, [(call, (3, 6, 3)) for call in calls]))
    assert_isometry(kernel[1], 1.0, "float32")
    assert not kernel[[0, 2]].any()
    assert_isometry(other[1], 1.0, "float32")


def test_orthogonal_convolutions_are_no_isometries():
    """Why delta_orthogonal exists: 3 taps of 16 channels reach from 0.01 to 1.9."""
    kernel = numbers("orthogonal()", (3, 16, 16))
    frequencies = np.fft.fft(kernel, n=32, axis=0)
    values = np.linalg.svd(frequencies, compute_uv=False)
    assert values.min() < 0.1 and values.max() > 1.5


# Identity and sparse.


@pytest.mark.parametrize("shape", [(5, 5), (3, 5), (5, 3), (2, 3, 5), (2, 2, 4, 3)], ids=str)
def test_identity(shape):
    drawn = evaluate("identity(2.5)")(None, shape)
    np.testing.assert_array_equal(drawn, np.broadcast_to(2.5 * np.eye(*shape[-2:]), shape))


@pytest.mark.parametrize("shape", [(30, 7), (2, 15, 5), (7, 3)])
def test_sparse_cuts_the_same_number_for_each_unit(shape):
    shares = (0.0, 0.1, 0.25, 0.5, 0.9, 1.0)
    drawn = draw_all(KEY, [(f"sparse({share}, 1.0)", shape) for share in shares])
    for share, array in zip(shares, drawn, strict=True):
        units = wide(array).reshape(-1, shape[-1])
        wanted = math.ceil(round(share * units.shape[0], 6))
        np.testing.assert_array_equal((units == 0).sum(axis=0), wanted)


def test_sparse_cuts_different_places_in_each_unit():
    """Each place is cut with the same probability: 1,600 places of 400 units, 5 sigma."""
    drawn = numbers("sparse(0.25, 1.0)", (40, 400))
    places = {tuple(np.flatnonzero(column == 0)) for column in drawn.T}
    assert len(places) == 400
    share = (drawn == 0).mean(axis=1)
    assert np.abs(share - 0.25).max() < 5 * math.sqrt(0.25 * 0.75 / 400)


def test_sparse_of_a_fraction_that_floats_round_up():
    """0.14 * 50 is 7.000000000000001: 7 zeros, not 8."""
    drawn = numbers("sparse(0.14, 1.0)", (50, 4))
    assert ((drawn == 0).sum(axis=0) == 7).all()


# Wrappers.


def test_stacked_layers_are_single_draws():
    keys = jax.random.split(KEY, 3)
    for call in ("he_normal()", "orthogonal()"):
        layers = [evaluate(call)(key, (2, 4)) for key in keys]
        stacks = [(f"stacked({call})", (3, 2, 4)), (f"stacked({call}, -1)", (2, 4, 3))]
        for axis, drawn in zip((0, 2), draw_all(KEY, stacks), strict=True):
            np.testing.assert_allclose(drawn, np.stack(layers, axis), rtol=1e-5, atol=1e-6)


def test_stacks_of_stacks():
    """Two axes at once, in the order in which they are named."""
    orders = [f"stacked(he_normal(), {axes})" for axes in ((0, 2), (2, 0))]
    drawn, swapped = draw_all(KEY, [(call, (2, 4, 3, 5)) for call in orders])
    keys = jax.random.split(KEY, 6)
    one = evaluate("he_normal()")
    np.testing.assert_allclose(drawn[1, :, 0], one(keys[3], (4, 5)), rtol=1e-5)
    np.testing.assert_allclose(swapped[1, :, 0], one(keys[1], (4, 5)), rtol=1e-5)
    assert len({layer.tobytes() for row in np.moveaxis(wide(drawn), 2, 1) for layer in row}) == 6
    nested = evaluate("stacked(stacked(he_normal(), 1), 0)")
    assert nested.fans((2, 4, 3, 5)) == Fans(4, 5)
    assert nested.law((2, 4, 3, 5)).variance == 2 / 4


def test_stacked_layers_have_the_variance_of_one():
    """Against the defect: without the wrapper 12 layers count as 12 taps, std 0.289 of target.

    12 layers of 64 x 64 know their second moment to 0.5 %; each layer alone to 1.8 %.
    """
    shape = (12, 64, 64)
    assert evaluate("lecun_normal()").law(shape).std * 8 == pytest.approx(0.289, abs=1e-3)
    drawn = numbers("stacked(lecun_normal())", shape)
    error = math.sqrt((2.37 - 1) / 64**2)
    np.testing.assert_allclose((drawn**2).mean(axis=(1, 2)) * 64, 1, atol=5 * error)
    correlations = np.corrcoef(drawn.reshape(12, -1))
    assert np.abs(correlations - np.eye(12)).max() < 5 / 64


def test_stacked_fixed_arrays_are_repeated():
    drawn = evaluate("stacked(identity(2.0), 1)")(None, (4, 3, 5))
    for layer in range(3):
        np.testing.assert_array_equal(drawn[:, layer], 2 * np.eye(4, 5))


def test_fused_pieces_are_single_draws():
    keys = jax.random.split(KEY, 3)
    drawn = evaluate("fused([he_normal(), ones, orthogonal()], (2, 1, 3), axis=0)")(KEY, (6, 4))
    he, orthogonal = evaluate("he_normal()"), evaluate("orthogonal()")
    np.testing.assert_allclose(drawn[:2], he(keys[0], (2, 4)), rtol=1e-6)
    np.testing.assert_array_equal(drawn[2:3], np.ones((1, 4)))
    np.testing.assert_allclose(drawn[3:], orthogonal(keys[2], (3, 4)), rtol=1e-5, atol=1e-6)


def test_fused_pieces_have_the_fans_of_one():
    """A packed QKV of Glorot has half the variance without the wrapper."""
    init = evaluate("fused(glorot_normal(), (64, 64, 64))")
    assert init.fans((64, 192)) == Fans(64, 64)
    assert init.law((64, 192)).variance == pytest.approx(1 / 64)
    assert evaluate("glorot_normal()").law((64, 192)).variance == pytest.approx(1 / 128)
    unequal = evaluate("fused(glorot_normal(), (64, 32, 32))")
    assert unequal.fans((64, 128)) is None
    assert [part.law.variance for part in unequal.law((64, 128)).slabs] == pytest.approx(
        [1 / 64, 1 / 48, 1 / 48]
    )


def test_fused_pieces_of_no_size():
    """Laws that divide by a size, or index a tap, are not asked for an empty piece."""
    empty = "scaled_orthogonal(), he_normal(), sparse(0.5), identity()"
    drawn = evaluate(f"fused([{empty}, ones], (0, 0, 0, 0, 3))")(KEY, (4, 3))
    np.testing.assert_array_equal(drawn, np.ones((4, 3)))
    drawn = evaluate("fused([dirac(), delta_orthogonal(), ones], (0, 0, 3), 0)")(KEY, (3, 2, 2))
    np.testing.assert_array_equal(drawn, np.ones((3, 2, 2)))


def test_masked():
    mask = np.tri(5, 4)
    calls = ["masked(normal(1.0), np.tri(5, 4))", "masked(normal(1.0), [[1], [0], [1], [0], [1]])"]
    drawn, column = (sample(call, (5, 4)) for call in calls)
    whole = sample("normal(1.0)", (5, 4))
    np.testing.assert_array_equal(drawn, np.where(mask, whole, 0))
    np.testing.assert_array_equal(column, np.where([[1], [0], [1], [0], [1]], whole, 0))


def test_scaled():
    whole = np.asarray(sample("normal(1.0)", (5, 4)))
    np.testing.assert_array_equal(sample("scaled(normal(1.0), -0.5)", (5, 4)), -0.5 * whole)
    # The product is taken before the cast: 1e6 * 1e-3 does not pass through float16's infinity.
    drawn = evaluate("scaled(constant(1e6), 1e-3)")(None, (2,), "float16")
    np.testing.assert_array_equal(drawn, np.full(2, 1000, np.float16))


def test_reshaped():
    drawn = evaluate("reshaped(orthogonal(), (8, 6))")(KEY, (2, 4, 6))
    assert_same_bits(drawn, evaluate("orthogonal()")(KEY, (8, 6)).reshape(2, 4, 6))
    init = evaluate("reshaped(lecun_normal(), (8, 6))")
    assert init.fans((2, 4, 6)) == Fans(8, 6)
    assert init.axes is None
    assert init.with_axes(Axes((0,), (1, 2))) is init


def test_wrappers_forward_what_they_wrap():
    for call in ("scaled({}, 2)", "masked({}, True)", "stacked({}, 0)", "fused({}, (3, 3))"):
        elementwise = evaluate(call.format("he_normal()"))
        assert elementwise.elementwise and elementwise.random
        assert elementwise.axes == Axes()
        assert not evaluate(call.format("orthogonal()")).elementwise
        assert not evaluate(call.format("zeros")).random
        turned = elementwise.with_axes(Axes((1,), (0,)))
        assert turned.axes == Axes((1,), (0,))
        shape = (5, 4, 6) if "stacked" in call else (4, 6)
        outputs = 3 if "fused" in call else 6
        assert elementwise.fans(shape) == Fans(4, outputs)
        assert turned.fans(shape) == Fans(outputs, 4)


# Fans by hand.


@pytest.mark.parametrize(
    ("call", "shape", "fans"),
    [
        ("he_normal()", (7, 5), (7, 5)),
        ("he_normal(1, 0)", (7, 5), (5, 7)),
        ("he_normal(-1, -2)", (7, 5), (5, 7)),
        ("he_normal()", (3, 3, 7, 5), (63, 45)),
        ("he_normal()", (4, 7, 5), (28, 20)),
        ("he_normal(groups=2)", (3, 3, 7, 10), (63, 45)),
        ("he_normal(groups=32)", (3, 3, 1, 32), (9, 9)),
        ("he_normal(groups=32)", (3, 3, 1, 64), (9, 18)),
        ("he_normal(transposed_strides=2)", (4, 4, 7, 5), (28, 80)),
        ("he_normal(transposed_strides=(2, 1))", (4, 3, 7, 5), (42, 60)),
        ("he_normal(transposed_strides=3)", (2, 7, 5), (14 / 3, 10)),
        ("he_normal(0, (1, 2))", (512, 8, 64), (512, 512)),
        ("he_normal((0, 1), 2)", (8, 64, 512), (512, 512)),
        ("he_normal(batch_axis=0)", (8, 7, 5), (7, 5)),
        ("he_normal(1, 3, (0, 2))", (8, 7, 6, 5), (7, 5)),
        ("he_normal(-1, ())", (9,), (9, 1)),
        ("he_normal((), 0)", (9,), (1, 9)),
        ("he_normal(*einsum_axes('btd,dhk->bthk'))", (512, 8, 64), (512, 512)),
        ("he_normal(*einsum_axes('bthk,hkd->btd'))", (8, 64, 512), (512, 512)),
        ("he_normal(*einsum_axes('ebd,edf->ebf'))", (16, 7, 5), (7, 5)),
        ("he_normal()", (0, 5), (0, 5)),
        ("stacked(he_normal())", (12, 7, 5), (7, 5)),
        ("stacked(he_normal(), (0, -1))", (12, 7, 5, 3), (7, 5)),
        ("stacked(he_normal(batch_axis=0), 1)", (4, 12, 7, 5), (7, 5)),
    ],
)
def test_fans(call, shape, fans):
    assert evaluate(call).fans(shape) == Fans(*fans)


@pytest.mark.parametrize("call", ["zeros", "normal()", "orthogonal()", "identity()", "sparse(0.5)"])
def test_laws_without_fans(call):
    init = evaluate(call)
    assert init.fans((7, 5)) is None and init.axes is None
    assert init.with_axes(Axes((1,), (0,)), groups=2) is init


@pytest.mark.parametrize(
    ("mode", "n"), [("fan_in", 63), ("fan_out", 45), ("fan_avg", 54), ("fan_geo_avg", 2835**0.5)]
)
def test_modes(mode, n):
    init = initializers.variance_scaling(2.0, mode, "normal")
    assert init.law((3, 3, 7, 5)).variance == pytest.approx(2 / n, rel=1e-12)


CONVOLUTIONS = [
    # spatial, inputs, outputs, groups, stride, transposed
    ((3, 3), 4, 6, 1, 1, False),
    ((3,), 4, 6, 2, 1, False),
    ((3, 3), 4, 8, 4, 1, False),
    ((4, 4), 2, 3, 1, 2, True),
    ((4,), 3, 2, 1, 4, True),
    ((5,), 3, 2, 1, 2, True),
    ((3, 2), 2, 2, 1, 2, True),
    ((2,), 3, 2, 1, 3, True),
]


@pytest.mark.parametrize(("spatial", "inputs", "outputs", "groups", "stride", "transposed"),
                         CONVOLUTIONS)  # fmt: skip
def test_fans_count_products(spatial, inputs, outputs, groups, stride, transposed):
    """On a circle there is no border: average products per output and per input, exactly.

    With a kernel of ones, the derivative of the sum of all outputs to an input is the number of
    products that it takes part in.
    """
    kernel = np.ones((*spatial, inputs // groups, outputs), np.float32)
    period = 12
    x = np.ones((1, *(period,) * len(spatial), inputs), np.float32)
    letters = "WH"[: len(spatial)]
    numbers = (f"N{letters}C", f"{letters}IO", f"N{letters}C")

    def run(x):
        # Three periods side by side: what is counted lies in the middle one.
        tiled = jnp.tile(x, (1, *(3,) * len(spatial), 1))
        if transposed:
            y = jax.lax.conv_transpose(
                tiled, kernel, (stride,) * len(spatial), "SAME", dimension_numbers=numbers
            )
        else:
            y = jax.lax.conv_general_dilated(
                tiled, kernel, (stride,) * len(spatial), "SAME", dimension_numbers=numbers,
                feature_group_count=groups,
            )  # fmt: skip
        middle = slice(period * stride, 2 * period * stride) if transposed else slice(12, 24)
        return y[(slice(None), *(middle,) * len(spatial))]

    axes = {"transposed_strides": stride} if transposed else {"groups": groups}
    fans = initializers.he_normal(**axes).fans(kernel.shape)

    def sums(x):
        y = run(x)
        return y.sum(), y

    per_input, y = jax.jit(jax.grad(sums, has_aux=True), compiler_options=QUICK)(x)
    assert wide(y).mean() == pytest.approx(fans.fan_in, rel=1e-6)
    assert wide(per_input).mean() == pytest.approx(fans.fan_out, rel=1e-6)


@pytest.mark.parametrize("stride", [1, 2, 4])
def test_transposed_convolutions_keep_the_second_moment(stride):
    """The reason for the stride: a LeCun kernel of width 4, drawn for it, keeps a signal's size.

    Outputs: 64 positions x 32 channels x 20 inputs, correlated within a kernel: 5 % is far.
    """
    kernel = sample(f"lecun_normal(transposed_strides={stride})", (4, 32, 32), seed=SEED)
    x = np.random.default_rng(1).standard_normal((20, 64, 32), np.float32)

    def run(x, kernel):
        return jax.lax.conv_transpose(
            x, kernel, (stride,), "SAME", dimension_numbers=("NWC", "WIO", "NWC")
        )

    y = jax.jit(run, compiler_options=QUICK)(x, kernel)
    inner = wide(y)[:, 8:-8]
    assert (inner**2).mean() == pytest.approx(1, abs=0.08)


def test_compute_fans_is_public():
    assert compute_fans("mine", (3, 3, 7, 5)) == Fans(63.0, 45.0)
    assert compute_fans("mine", np.array([7, 5]).tolist(), Axes((1,), (0,))) == Fans(5.0, 7.0)


def test_with_axes_yields_to_axes_chosen_by_hand():
    read = Axes((0,), (1, 2))
    plain = evaluate("he_normal()").with_axes(read, groups=2, transposed_strides=(2,))
    assert plain.axes == read and plain.groups == 2 and plain.transposed_strides == (2,)
    for call in ("he_normal(0, 1)", "he_normal(groups=4)", "he_normal(transposed_strides=2)"):
        init = evaluate(call)
        assert init.with_axes(read) is init
    renamed = evaluate("he_normal(negative_slope=0.5)").with_axes(read)
    assert repr(renamed) == "he_normal(in_axis=0, out_axis=(1, 2), negative_slope=0.5)"


@pytest.mark.parametrize("distribution", ["normal", "uniform", "truncated_normal"])
@pytest.mark.parametrize("mode", ["fan_in", "fan_out", "fan_avg"])
def test_at_fans(distribution, mode):
    """A bias with the law of its kernel: the same variance, kurtosis and support, no axes."""
    init = initializers.variance_scaling(2.0, mode, distribution, dtype="bfloat16")
    bias = init.at_fans(init.fans((30, 20)))
    kernel, alone = init.law((30, 20), "float32"), bias.law((20,), "float32")
    assert alone.variance == pytest.approx(kernel.variance, rel=1e-12)
    assert alone.kurtosis == pytest.approx(kernel.kurtosis)
    assert alone.support == pytest.approx(kernel.support)
    assert bias.dtype == "bfloat16" and bias.axes is None


@pytest.mark.parametrize(
    ("equation", "operand", "axes"),
    [
        ("btd,df->btf", 1, ((0,), (1,), ())),
        ("btd,dhk->bthk", 1, ((0,), (1, 2), ())),
        ("bthk,hkd->btd", 1, ((0, 1), (2,), ())),
        ("ebd,edf->ebf", 1, ((1,), (2,), (0,))),
        ("dhk,btd->bthk", 0, ((0,), (1, 2), ())),
        ("...d,df->...f", 1, ((0,), (1,), ())),
        ("b t d, d f -> b t f", 1, ((0,), (1,), ())),
        ("bd,bdf,bf->b", 1, ((1, 2), (), (0,))),
    ],
)
def test_einsum_axes(equation, operand, axes):
    assert einsum_axes(equation, operand) == Axes(*axes)
    assert isinstance(einsum_axes(equation, operand), Axes)


def test_einsum_axes_keep_the_second_moment():
    """The axes of an attention output projection: without them fan_in is 64 times too large."""
    kernel = numbers("lecun_normal(*einsum_axes('bthk,hkd->btd'))", (4, 16, 64))
    x = np.random.default_rng(1).normal(size=(8, 32, 4, 16))
    y = np.einsum("bthk,hkd->btd", x, kernel)
    assert (y**2).mean() == pytest.approx(1, abs=0.1)
