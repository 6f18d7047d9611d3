"""What a law of single entries cannot say: orthogonality, identities, zeros, fans, composition."""

from __future__ import annotations

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from catalogue import assert_same_bits, evaluate, wide
from jaxinit.initializers import (
    Axes,
    compute_fans,
    delta_orthogonal,
    dirac,
    einsum_axes,
    fused,
    glorot_normal,
    he_normal,
    identity,
    lecun_normal,
    masked,
    normal,
    orthogonal,
    reshaped,
    scaled,
    scaled_orthogonal,
    sparse,
    stacked,
    uniform,
    zeros,
)

KEY = jax.random.key(7)


def _matrix(kernel, column_axis: int = -1) -> np.ndarray:
    """Rows are all axes but the one of the outputs."""
    values = np.moveaxis(wide(kernel), column_axis, -1)
    return values.reshape(-1, values.shape[-1])


def _gram_error(matrix: np.ndarray) -> float:
    """Largest entry of `Q^T Q - I`, or of `Q Q^T - I` where there are more columns than rows."""
    if matrix.shape[0] < matrix.shape[1]:
        matrix = matrix.T
    return float(np.abs(matrix.conj().T @ matrix - np.eye(matrix.shape[1])).max())


# Orthogonal.

ORTHOGONAL = ((24, 16, -1), (16, 24, -1), (20, 20, -1), (12, 30, 0))


@pytest.fixture(scope="module")
def orthogonals():
    """All shapes and dtypes from one program."""

    def draw(key):
        return {
            (rows, columns, axis, dtype): orthogonal(column_axis=axis)(key, (rows, columns), dtype)
            for rows, columns, axis in ORTHOGONAL
            for dtype in ("float32", "bfloat16", "complex64")
        }

    # Sets of keys with strings and ints are no pytree: flatten by hand.
    names = [(*shape, dtype) for shape in ORTHOGONAL for dtype in ("float32", "bfloat16", "complex64")]
    drawn = jax.jit(lambda key: [draw(key)[name] for name in names])(KEY)
    return dict(zip(names, drawn, strict=True))


@pytest.mark.parametrize("dtype", ["float32", "complex64"])
@pytest.mark.parametrize(("rows", "columns", "axis"), ORTHOGONAL)
def test_orthogonal_to_rounding(orthogonals, rows, columns, axis, dtype):
    drawn = _matrix(orthogonals[rows, columns, axis, dtype], axis)
    bound = 8 * float(jnp.finfo(dtype).eps) * math.sqrt(max(rows, columns))
    assert _gram_error(drawn) <= bound


@pytest.mark.parametrize(("rows", "columns", "axis"), ORTHOGONAL)
def test_orthogonal_after_one_cast_to_bfloat16(orthogonals, rows, columns, axis):
    """One rounding moves an entry by u = eps / 2 of itself, a product of two by 2 u + u^2.

    By Cauchy-Schwarz the sum of the products of two unit columns is at most 1, so that is the
    bound for every entry of the Gram matrix; a QR in bfloat16 would miss it many times over.
    """
    eps = float(jnp.finfo("bfloat16").eps)
    drawn = _matrix(orthogonals[rows, columns, axis, "bfloat16"], axis)
    assert _gram_error(drawn) <= eps + eps**2 / 4 + 1e-5


def test_orthogonal_flattens_all_but_the_column_axis():
    kernels = jax.jit(
        lambda key: [
            orthogonal(0.5)(key, (2, 3, 5)),
            orthogonal(0.5, 1)(key, (2, 5, 3)),
            orthogonal(0.5, -3)(key, (5, 2, 3)),
        ]
    )(KEY)
    for kernel, axis in zip(kernels, (-1, 1, -3), strict=True):
        assert _gram_error(_matrix(kernel, axis) / 0.5) < 1e-6
    np.testing.assert_allclose(_matrix(kernels[0]), _matrix(kernels[1], 1), atol=1e-6)


def test_orthogonal_is_haar():
    """Mean and mean square of the trace, which `Q^T Q` cannot see.

    With k the smaller and n = 8 the larger side, Haar has E tr Q = 0 and E |tr Q|^2 = k / n, with
    a variance of |tr Q|^2 below 2. Without the sign fix the square matrix has -1.57 and 3.0: 100
    and 63 standard errors away with these 4,096 keys.
    """
    count, n = 4096, 8
    variants = [((n, n), "float32"), ((n, n), "complex64"), ((n, 3), "float32"), ((3, n), "float32")]
    keys = jax.random.split(KEY, count)

    def traces(key):
        return [jnp.trace(orthogonal()(key, shape, dtype)) for shape, dtype in variants]

    for trace, (shape, dtype) in zip(jax.jit(jax.vmap(traces))(keys), variants, strict=True):
        trace = wide(trace)
        second = min(shape) / n
        assert abs(trace.mean()) < 5 * math.sqrt(second / count), (shape, dtype)
        assert abs((np.abs(trace) ** 2).mean() - second) < 5 * math.sqrt(2 / count), (shape, dtype)


def test_scaled_orthogonal_keeps_the_second_moment_of_a_unit():
    """Widening: for every input. Narrowing: on average over inputs, as the trace says."""
    widening, narrowing, by_axis = jax.jit(
        lambda key: (
            scaled_orthogonal()(key, (12, 30)),
            scaled_orthogonal()(key, (30, 12)),
            scaled_orthogonal(2.0, 0)(key, (30, 12)),
        )
    )(KEY)
    x = np.random.default_rng(0).normal(size=(50, 12))
    y = x @ wide(widening)
    np.testing.assert_allclose((y**2).mean(1), (x**2).mean(1), rtol=1e-5)
    assert _gram_error(wide(narrowing)) < 1e-5
    np.testing.assert_allclose((wide(narrowing) ** 2).sum() / 12, 1.0, rtol=1e-5)
    # Axis 0 holds 30 outputs of 12 inputs: widening again, twice as large.
    y = x @ wide(by_axis).T
    np.testing.assert_allclose((y**2).mean(1), 4 * (x**2).mean(1), rtol=1e-5)


# Identity convolutions.

SPATIAL = ((3,), (4,), (2, 5), (2, 4), (3, 2, 4), (2, 2, 2))


def _same(x, kernel, groups: int = 1, kernel_layout: str = "IO"):
    letters = "DHW"[-(x.ndim - 2) :]
    layout = (f"N{letters}C", letters + kernel_layout, f"N{letters}C")
    return lax.conv_general_dilated(
        x,
        kernel,
        (1,) * (x.ndim - 2),
        "SAME",
        dimension_numbers=layout,
        feature_group_count=groups,
        precision=lax.Precision.HIGHEST,
    )


def _image(spatial, channels, seed=0):
    # Whole numbers: products with 0 and 1 and their sums are exact in any order.
    size = (2, *(k + 3 for k in spatial), channels)
    return np.random.default_rng(seed).integers(-9, 9, size).astype(np.float32)


@pytest.mark.parametrize("spatial", SPATIAL, ids=str)
def test_dirac_passes_its_input_through(spatial):
    """Exactly, under SAME padding, where an even kernel has no middle tap."""
    x = _image(spatial, 4)
    square, wider, narrower, grouped, depthwise, multiplied = jax.jit(
        lambda x: (
            _same(x, dirac()(None, (*spatial, 4, 4))),
            _same(x, dirac(-2.0)(None, (*spatial, 4, 6))),
            _same(x, dirac()(None, (*spatial, 4, 3))),
            _same(x, dirac(groups=2)(None, (*spatial, 2, 4)), 2),
            _same(x, dirac(groups=4)(None, (*spatial, 1, 4)), 4),
            _same(x, dirac(groups=2)(None, (*spatial, 2, 6)), 2),
        )
    )(x)
    np.testing.assert_array_equal(square, x)
    np.testing.assert_array_equal(wider[..., :4], -2 * x)
    assert not wider[..., 4:].any()
    np.testing.assert_array_equal(narrower, x[..., :3])
    np.testing.assert_array_equal(grouped, x)
    np.testing.assert_array_equal(depthwise, x)
    # Three outputs a group: its two inputs, then nothing.
    np.testing.assert_array_equal(multiplied[..., [0, 1, 3, 4]], x)
    assert not multiplied[..., [2, 5]].any()


@pytest.mark.parametrize("spatial", [(4,), (2, 5), (3, 2, 4)], ids=str)
def test_delta_orthogonal_is_an_isometry(spatial):
    """Of every pixel: up to more channels, and back from what lies in the range.

    `orthogonal` on the same kernel fails this: its taps mix neighbours.
    """
    x = _image(spatial, 3)

    def run(key):
        widening = delta_orthogonal()(key, (*spatial, 3, 5))
        narrowing = delta_orthogonal()(key, (*spatial, 5, 3))
        out_first = delta_orthogonal(column_axis=-2)(key, (*spatial, 5, 3))
        narrow_first = delta_orthogonal(0.5, column_axis=-2)(key, (*spatial, 3, 5))
        inside = _same(x, narrowing, kernel_layout="OI")
        return (
            _same(x, widening),
            _same(inside, narrowing),
            _same(x, out_first, kernel_layout="OI"),
            _same(_same(x, narrow_first), narrow_first, kernel_layout="OI"),
            [widening, narrowing, out_first, narrow_first],
        )

    up, back, up_first, back_first, kernels = jax.jit(run)(KEY)
    norm = (x**2).sum(-1)
    np.testing.assert_allclose((wide(up) ** 2).sum(-1), norm, rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose((wide(up_first) ** 2).sum(-1), norm, rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(back, x, atol=1e-4)
    np.testing.assert_allclose(back_first, x / 4, atol=1e-4)
    for kernel in kernels:
        assert (np.abs(wide(kernel)).sum((-2, -1)) > 0).sum() == 1


def test_identity_of_any_rectangle():
    np.testing.assert_array_equal(identity(3.0)(None, (3, 4)), 3 * np.eye(3, 4))
    drawn = identity()(None, (2, 1, 4, 3))
    np.testing.assert_array_equal(drawn, np.broadcast_to(np.eye(4, 3), (2, 1, 4, 3)))


# Sparse.


def test_sparse_cuts_the_same_number_of_inputs_of_every_unit():
    """Counts worked out by hand, rounded up; 0.1 * 30 is 3.0000000000000004 in floats."""
    counts = {
        (0.1, (30, 6)): 3,
        (0.5, (7, 4)): 4,
        (0.9, (2, 5, 2, 5)): 18,
        (0.0, (5, 3)): 0,
        (1.0, (5, 3)): 5,
        (0.001, (4, 3)): 1,
    }
    drawn = jax.jit(lambda key: [sparse(s, 1.0)(key, shape) for s, shape in counts])(KEY)
    for array, ((_, shape), expected) in zip(drawn, counts.items(), strict=True):
        zeros_of_unit = (np.asarray(array).reshape(-1, shape[-1]) == 0).sum(0)
        assert zeros_of_unit.tolist() == [expected] * shape[-1]
    places = np.asarray(drawn[0]) == 0
    assert len({column.tobytes() for column in places.T}) == 6, "units share their places"


# Fans.


def _count(layer, kernel_shape, x_shape, margin=0, period=1):
    """Fans by brute force: how many products an output sums, how many outputs an input feeds.

    Everything is 1, so values are counts. Outputs and inputs near the border have fewer; they are
    left out, and of a strided layer whole periods are averaged.
    """
    x = jnp.ones(x_shape)
    y, pull = jax.vjp(lambda x: layer(x, jnp.ones(kernel_shape)), x)
    (fed,) = pull(jnp.ones_like(y))

    def inside(counts, edge):
        if not edge:
            return float(counts.mean())
        # A window that starts at a multiple of the period and holds a whole number of them.
        window = (slice(edge, counts.shape[axis] - edge) for axis in range(1, counts.ndim - 1))
        return float(counts[(slice(None), *window)].mean())

    return inside(y, margin * period), inside(fed, margin)


def _conv(groups=1):
    def layer(x, kernel):
        return _same(x, kernel, groups)

    return layer


def _transposed(*strides):
    def layer(x, kernel):
        letters = "HW"[: len(strides)]
        layout = (f"N{letters}C", f"{letters}IO", f"N{letters}C")
        return lax.conv_transpose(x, kernel, strides, "SAME", dimension_numbers=layout)

    return layer


COUNTED = {
    # name: (call, kernel shape, layer, input shape, margin, period, fan_in, fan_out)
    "dense": ("he_normal()", (5, 7), jnp.matmul, (2, 5), 0, 1, 5, 7),
    "conv": ("he_normal()", (3, 5, 4, 6), _conv(), (1, 16, 16, 4), 5, 1, 60, 90),
    "conv 1d": ("he_normal()", (2, 4, 6), _conv(), (1, 16, 4), 4, 1, 8, 12),
    "grouped": ("he_normal(groups=2)", (3, 2, 6), _conv(2), (1, 16, 4), 4, 1, 6, 9),
    "depthwise": ("he_normal(groups=4)", (3, 3, 1, 4), _conv(4), (1, 12, 12, 4), 4, 1, 9, 9),
    "multiplier": ("he_normal(groups=4)", (3, 1, 8), _conv(4), (1, 16, 4), 4, 1, 3, 6),
    "transposed": (
        "he_normal(transposed_strides=2)", (4, 4, 3, 5), _transposed(2, 2),
        (1, 12, 12, 3), 4, 2, 12, 80,
    ),
    "transposed, uneven": (
        "he_normal(transposed_strides=(2,))", (3, 4, 5), _transposed(2), (1, 16, 4), 4, 2, 6, 15,
    ),
    "transposed, wide steps": (
        "he_normal(transposed_strides=3)", (2, 6, 5), _transposed(3), (1, 16, 6), 4, 3, 4, 10,
    ),
    "attention in": (
        "he_normal(*einsum_axes('btd,dhk->bthk'))", (6, 2, 5),
        lambda x, w: jnp.einsum("btd,dhk->bthk", x, w), (2, 3, 6), 0, 1, 6, 10,
    ),
    "attention out": (
        "he_normal(*einsum_axes('bthk,hkd->btd'))", (2, 5, 6),
        lambda x, w: jnp.einsum("bthk,hkd->btd", x, w), (2, 3, 2, 5), 0, 1, 10, 6,
    ),
    "experts": (
        "he_normal(*einsum_axes('ebd,edf->ebf'))", (4, 3, 7),
        lambda x, w: jnp.einsum("ebd,edf->ebf", x, w), (4, 2, 3), 0, 1, 3, 7,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", COUNTED)
def test_fans_are_what_the_layer_sums(name):
    call, kernel, layer, x, margin, period, fan_in, fan_out = COUNTED[name]
    assert evaluate(call).fans(kernel) == (fan_in, fan_out)
    assert _count(layer, kernel, x, margin, period) == (fan_in, fan_out)


def test_fans_of_two_strides():
    """Six taps of 2 x 3 steps: each output meets one of six."""
    strides = he_normal(transposed_strides=(2, 3))
    assert strides.fans((2, 3, 4, 5)) == (4, 30)
    assert _count(_transposed(2, 3), (2, 3, 4, 5), (1, 8, 8, 4))[1] == 30
    assert strides.law((2, 3, 4, 5)).variance == 2 / 4


def test_compute_fans_with_roles_in_any_order():
    assert compute_fans("he_normal", (4, 6)) == (4, 6)
    assert compute_fans("he_normal", (8, 3, 5), Axes((1,), (2,), (0,))) == (3, 5)
    assert compute_fans("he_normal", (8, 3, 5), Axes((-1,), (-3,))) == (15, 24)
    assert compute_fans("he_normal", (8, 3, 5), Axes((0, 1), (2,))) == (24, 5)
    assert compute_fans("he_normal", (7,), Axes((), (0,))) == (1, 7)
    assert compute_fans("he_normal", (0, 5)) == (0, 5)


@pytest.mark.parametrize(
    ("equation", "operand", "axes"),
    [
        ("bd,df->bf", 1, Axes((0,), (1,), ())),
        ("df,bd->bf", 0, Axes((0,), (1,), ())),
        ("btd,dhk->bthk", 1, Axes((0,), (1, 2), ())),
        ("bthk,hkd->btd", 1, Axes((0, 1), (2,), ())),
        ("ebd,edf->ebf", 1, Axes((1,), (2,), (0,))),
        ("...d,fd->...f", 1, Axes((1,), (0,), ())),
        ("b t d , d h k -> b t h k", 1, Axes((0,), (1, 2), ())),
        ("bthk,hkm->bthm", 1, Axes((1,), (2,), (0,))),
        ("bi,oij,bj->bo", 1, Axes((1, 2), (0,), ())),
        ("d->d", 0, Axes((), (0,), ())),
        ("bd,d->bd", 1, Axes((), (), (0,))),
        ("dD,bd->bD", 0, Axes((0,), (1,), ())),
    ],
)
def test_einsum_axes(equation, operand, axes):
    assert einsum_axes(equation, operand) == axes


# Composition.


def _vmapped(initializer, key, count, shape, dtype="float32"):
    keys = jax.random.split(key, count)
    return jax.vmap(lambda key: initializer(key, shape, dtype))(keys)


@pytest.mark.parametrize("call", ["he_normal()", "orthogonal()", "sparse(0.5)", "uniform(0.3)"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_stacked_layers_are_single_draws(call, dtype):
    inner = evaluate(call)
    together = stacked(inner)(KEY, (3, 4, 5), dtype)
    assert_same_bits(together, _vmapped(inner, KEY, 3, (4, 5), dtype))
    layers = {np.asarray(layer).tobytes() for layer in together}
    assert len(layers) == 3, "layers are independent, not copies"


def test_stacked_along_other_axes():
    inner = lecun_normal()
    layers = _vmapped(inner, KEY, 3, (4, 5))
    assert_same_bits(stacked(inner, 1)(KEY, (4, 3, 5)), jnp.moveaxis(layers, 0, 1))
    assert_same_bits(stacked(inner, -1)(KEY, (4, 5, 3)), jnp.moveaxis(layers, 0, -1))
    six = _vmapped(inner, KEY, 6, (4, 5)).reshape(2, 3, 4, 5)
    assert_same_bits(stacked(inner, (0, 1))(KEY, (2, 3, 4, 5)), six)
    assert_same_bits(stacked(inner, (0, -1))(KEY, (2, 4, 5, 3)), jnp.moveaxis(six, 1, -1))
    # The order of the axes is the order of the layers.
    assert_same_bits(stacked(inner, (1, 0))(KEY, (3, 2, 4, 5)), jnp.swapaxes(six, 0, 1))


def test_stacked_twice():
    """Experts inside of layers: each level splits the key that it gets."""
    inner = glorot_normal()
    nested = stacked(stacked(inner, -1))
    expected = _vmapped(stacked(inner, -1), KEY, 2, (4, 5, 3))
    assert_same_bits(nested(KEY, (2, 4, 5, 3)), expected)
    assert nested.fans((2, 4, 5, 3)) == (4, 5)
    assert nested.law((2, 4, 5, 3)) == inner.law((4, 5))


@pytest.mark.parametrize(
    ("axis", "shape"), [(0, (12, 64, 32)), (1, (64, 12, 32)), ((0, -1), (3, 64, 32, 4))]
)
def test_stacked_has_the_law_of_one_layer(axis, shape):
    for inner in (he_normal(), glorot_normal(), orthogonal(2.0), sparse(0.5), normal(0.1)):
        stack = stacked(inner, axis)
        assert stack.law(shape) == inner.law((64, 32))
        assert stack.fans(shape) == inner.fans((64, 32))


def test_stacked_of_fused_names_the_axes_of_the_whole():
    """Parts are told apart on the axis that they have in the stack."""
    law = stacked(fused(glorot_normal(), (2, 3), axis=0), axis=1).law((5, 4, 6))
    assert [(part.axis, part.start, part.stop) for part in law.parts] == [(-3, 0, 2), (-3, 2, 5)]
    assert law.parts[0].law == glorot_normal().law((2, 6))


def test_fused_pieces_are_single_draws():
    pieces = [he_normal(), zeros, normal(0.5), orthogonal()]
    sizes = (3, 2, 4, 6)
    keys = jax.random.split(KEY, len(sizes))
    for axis, shape in ((-1, (5, 15)), (0, (15, 5))):
        together = np.asarray(fused(pieces, sizes, axis)(KEY, shape))
        cuts = np.split(together, np.cumsum(sizes)[:-1], axis)
        for piece, key, cut in zip(pieces, keys, cuts, strict=True):
            assert_same_bits(cut, np.asarray(piece(key, cut.shape)))


def test_fused_keeps_the_law_of_each_piece():
    init = fused([glorot_normal(), normal(0.3), zeros], (8, 16, 8))
    law = init.law((32, 32))
    assert [(part.start, part.stop) for part in law.parts] == [(0, 8), (8, 24), (24, 32)]
    inner = [glorot_normal().law((32, 8)), normal(0.3).law((32, 16)), zeros.law((32, 8))]
    assert [part.law for part in law.parts] == inner
    weights = (0.25, 0.5, 0.25)
    variance = sum(w * one.variance for w, one in zip(weights, inner, strict=True))
    assert math.isclose(law.variance, variance)
    assert init.fans((32, 32)) is None, "the pieces have other fans"
    assert fused(he_normal(), (16, 16)).fans((32, 32)) == (32, 16)


def test_masked_is_the_draw_where_the_mask_is_one():
    mask = np.tri(4, 6, dtype=bool)
    inner = normal(1.0)
    drawn, full = masked(inner, mask)(KEY, (4, 6)), inner(KEY, (4, 6))
    assert_same_bits(drawn, jnp.where(mask, full, 0))
    assert (np.asarray(full) != 0).all()
    law = masked(inner, mask).law((4, 6))
    assert law.variance == mask.mean()
    assert masked(he_normal(), mask).fans((4, 6)) == (4, 6)


def test_reshaped_is_the_draw_in_the_other_shape():
    inner = lecun_normal()
    drawn = reshaped(inner, (4, 6))(KEY, (2, 2, 3, 2), "bfloat16")
    assert_same_bits(drawn, inner(KEY, (4, 6), "bfloat16").reshape(2, 2, 3, 2))
    assert reshaped(inner, (4, 6)).fans((2, 2, 3, 2)) == (4, 6)
    assert reshaped(inner, (4, 6)).law((2, 2, 3, 2)) == inner.law((4, 6))


def test_scaled_is_the_draw_times_the_factor():
    """Bit for bit with a power of two; otherwise in float32 before the one cast."""
    inner = uniform(minval=-1.0, maxval=1.0)
    full = inner(KEY, (4, 6))
    assert_same_bits(scaled(inner, -0.5)(KEY, (4, 6)), full * -0.5)
    third = scaled(inner, 1 / 3)
    np.testing.assert_allclose(third(KEY, (4, 6)), full / 3, rtol=3e-7)
    once = third(KEY, (4, 6), "bfloat16")
    assert_same_bits(once, (full * (1 / 3)).astype("bfloat16"))
    assert (once != inner(KEY, (4, 6), "bfloat16") * (1 / 3)).any(), "casting twice would show"
    assert third.law((4, 6)).std == inner.law((4, 6)).std / 3
    assert scaled(he_normal(), 2.0).fans((4, 6)) == (4, 6)


def test_wrappers_pass_the_true_axes_on():
    axes = Axes((0,), (1, 2), ())
    inner = he_normal().with_axes(axes)
    for wrap in (
        lambda init: scaled(init, 2.0),
        lambda init: masked(init, 1),
        lambda init: stacked(init),
        lambda init: fused(init, (2, 2)),
    ):
        assert wrap(he_normal()).with_axes(axes) == wrap(inner)
        assert wrap(inner).axes == axes
    layered = itertools.chain.from_iterable(stacked(inner).fans((9, 3, 2, 4)) for _ in range(1))
    assert tuple(layered) == (3, 8)
