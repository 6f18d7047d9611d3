"""What every initializer keeps, whatever its law: run over the table of `catalogue.py`."""

from __future__ import annotations

import json
import pickle
from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from catalogue import (
    CASES,
    FIRST_KINDS,
    KINDS,
    QUICK,
    WIDE,
    Case,
    draw_all,
    each,
    each_kind,
    evaluate,
)
from helpers import BOTH_AXIS_TYPES, EXPLICIT_AXES_FIRST, assert_same_bits, content, make_mesh, slow
from jaxinit import initializers
from jaxinit.initializers import BaseInitializer, from_config, get, to_config

KEY = jax.random.key(0)


# Shape and dtype.


@each()
def test_shape_and_dtype_are_what_was_asked(case):
    """Every shape and every dtype, traced; `test_laws.py` looks at the values of every dtype."""
    first = [(shape, case.dtype) for shape in case.shapes]
    for shape, dtype in first + [(case.shape, dtype) for dtype in case.dtypes[1:]]:
        abstract = jax.eval_shape(lambda key, s=shape, d=dtype: case.initializer(key, s, d), KEY)
        assert (abstract.shape, abstract.dtype) == (shape, dtype)
        assert not abstract.weak_type


@each_kind()
def test_a_draw_is_a_finite_array(case):
    drawn = case.draw()
    assert isinstance(drawn, jax.Array)
    assert (drawn.shape, drawn.dtype) == (case.shape, case.dtype)
    assert bool(jnp.isfinite(drawn).all())


@each(*(case for case in CASES if any(0 in shape for shape in case.shapes)))
def test_an_empty_shape_has_the_right_dtype(case):
    for shape in (shape for shape in case.shapes if 0 in shape):
        for dtype in case.dtypes[-2:]:
            drawn = case.draw(shape, dtype)
            assert (drawn.shape, drawn.dtype, drawn.size) == (shape, dtype, 0)


def test_every_factory_has_an_empty_shape():
    with_empty = {case.name for case in CASES if any(0 in shape for shape in case.shapes)}
    without = {case.name for case in CASES} - with_empty
    assert without == {"reshaped"}, "reshaped has as many entries as its inner shape"


@each_kind()
def test_the_default_dtype_is_that_of_jax(case):
    """Without x64 a request for float64 gives float32, as in JAX, and is no error."""
    assert_same_bits(case.initializer(KEY, case.shape), case.draw(dtype="float32"))
    assert_same_bits(case.initializer(KEY, case.shape, "float64"), case.draw(dtype="float32"))


@each(*(case for case in CASES if set(case.dtypes) & set(WIDE)))
def test_64_bits(case, x64):
    for dtype in (WIDE[dtype] for dtype in case.dtypes if dtype in WIDE):
        abstract = jax.eval_shape(lambda key, d=dtype: case.initializer(key, case.shape, d), KEY)
        assert (abstract.shape, abstract.dtype) == (case.shape, dtype)
    if "float32" in case.dtypes:
        abstract = jax.eval_shape(lambda key: case.initializer(key, case.shape), KEY)
        assert abstract.dtype == "float64"


def test_64_bits_are_drawn_and_not_filled_up(x64):
    drawn = draw_all(KEY, [(case.call, case.shape) for case in KINDS], "float64")
    for case, array in zip(KINDS, drawn, strict=True):
        if case.initializer.random:
            rounded = np.asarray(array, np.float32).astype(np.float64)
            assert (np.asarray(array) != rounded).any(), case.call


@pytest.mark.parametrize(
    "call", ["he_normal()", "orthogonal()", *slow("sparse(0.5)", "truncated_normal(lower=-np.inf)")]
)
def test_x64_changes_no_32_bit_draw(call):
    """Whichever mode asked first, caches of laws and of compiled draws hold nothing of the other.

    Constants of 64 bits in the middle of a draw would round differently: these bits are equal.
    """
    init = evaluate(call)
    before = init(KEY, (3, 5), "float32")
    with jax.enable_x64(True):
        assert_same_bits(init(KEY, (3, 5), "float32"), before)
        assert init(KEY, (3, 5)).dtype == "float64"
        assert init.law((3, 5)).std == init.law((3, 5), "float32").std
    assert init(KEY, (3, 5)).dtype == "float32"


# Determinism and transformations.


@each_kind()
def test_the_same_key_gives_the_same_bits(case):
    again = case.initializer(jax.random.key(0), case.shape, case.dtype)
    assert_same_bits(again, case.draw())


@each_kind(*(case for case in KINDS if case.initializer.random))
def test_another_key_gives_another_array(case):
    assert content(case.draw(seed=1)) != content(case.draw())


@each_kind()
def test_raw_keys_are_typed_keys(case):
    for raw in (jax.random.key_data(KEY), np.asarray(jax.random.key_data(KEY))):
        assert_same_bits(case.initializer(raw, case.shape, case.dtype), case.draw())


def test_initializers_that_are_not_random_need_no_key():
    for case in CASES:
        if not case.initializer.random:
            assert_same_bits(case.initializer(None, case.shape, case.dtype), case.draw())


def test_every_implementation_of_keys():
    for implementation in ("rbg", "unsafe_rbg"):
        key = jax.random.key(0, impl=implementation)
        calls = ("he_normal()", "orthogonal()", "stacked(lecun_normal())", "sparse(0.5)")
        for drawn in draw_all(key, [(call, (2, 2, 3)) for call in calls]):
            assert bool(jnp.isfinite(drawn).all())
            layers = np.asarray(drawn)
            assert (layers[0] != layers[1]).any()


# Cases that are drawn by one program.
TOGETHER = pytest.mark.parametrize(
    "cases",
    [FIRST_KINDS, *slow(tuple(case for case in KINDS if case not in FIRST_KINDS))],
    ids=["kinds", "recipes"],
)


@TOGETHER
def test_jit_gives_the_bits_of_eager(cases):
    """All factories in one program: neighbours do not disturb a draw either."""
    jitted = jax.jit(
        lambda key: [[c.initializer(key, c.shape, dtype) for dtype in c.dtypes[:2]] for c in cases]
    )(KEY)
    for case, (one, other) in zip(cases, jitted, strict=True):
        assert content(one) == content(case.draw()), case.call
        # One cast, at the end: the narrow draw is the rounded wide one.
        assert content(other) == content(case.draw().astype(case.dtypes[1])), case.call


@TOGETHER
def test_vmap_over_keys_is_a_loop_over_keys(cases):
    keys = jnp.stack([jax.random.key(seed) for seed in range(2)])
    # QR and sorts promise closeness only, and for that quickly compiled code will do.
    for is_elementwise, options in ((True, None), (False, QUICK)):
        some = [case for case in cases if case.initializer.elementwise == is_elementwise]

        def draw(key, some=some):
            return [case.initializer(key, case.shape, case.dtype) for case in some]

        mapped = jax.jit(jax.vmap(draw), compiler_options=options)(keys)
        for case, rows in zip(some, mapped, strict=True):
            for seed in range(2):
                one = case.draw(seed=seed)
                if is_elementwise:
                    assert content(rows[seed]) == content(one), case.call
                else:
                    np.testing.assert_allclose(rows[seed], one, atol=1e-5, err_msg=case.call)


def test_scan_remat_grad_and_export():
    """A draw is an ordinary traced function: a body, a residual, an exported program."""
    init = initializers.he_normal()
    keys = jax.random.split(KEY, 3)
    loop = np.stack([init(key, (3, 4)) for key in keys])
    _, scanned = jax.lax.scan(lambda carry, key: (carry, init(key, (3, 4))), 0, keys)
    np.testing.assert_array_equal(scanned, loop)

    def norm(scale, key):
        return scale * (jax.checkpoint(lambda key: init(key, (3, 4)))(key) ** 2).sum()

    gradient = jax.grad(norm)(2.0, KEY)
    np.testing.assert_allclose(gradient, (init(KEY, (3, 4)) ** 2).sum(), rtol=1e-6)

    raw = jax.random.key_data(KEY)
    for call in ("he_normal()", "zeros"):
        drawn = evaluate(call)

        def program(raw, drawn=drawn):
            return drawn(raw, (3, 4))

        exported = jax.export.export(jax.jit(program))(raw)
        assert_same_bits(exported.call(raw), drawn(raw, (3, 4)))


def test_equal_initializers_are_one_static_argument():
    chex.clear_trace_counter()

    @chex.assert_max_traces(n=1)
    def draw(init, key):
        return init(key, (3, 4))

    jitted = jax.jit(draw, static_argnums=0)
    spellings = (
        initializers.he_normal(),
        initializers.kaiming_normal(),
        initializers.he_normal(-2, -1),
        initializers.variance_scaling(2, "fan_in", "truncated_normal"),
        evaluate("he_normal([-2], np.int64(-1), negative_slope=np.float32(0))"),
        pickle.loads(pickle.dumps(initializers.he_normal())),
    )
    for init in spellings:
        jitted(init, KEY)


def test_names_alone_do_not_make_a_new_compilation():
    """Recipes are read by name and compared by law."""
    one = initializers.he_normal(negative_slope=0.5)
    other = initializers.variance_scaling(1.6, "fan_in", "truncated_normal")
    assert repr(one) == "he_normal(negative_slope=0.5)"
    assert one == other and hash(one) == hash(other)


# Values.


@each()
def test_equality_and_hash(case):
    again = evaluate(case.call)
    assert again == case.initializer
    assert hash(again) == hash(case.initializer)
    assert again != evaluate("scaled(normal(0.123), 0.456)")
    assert again != case.call


def test_different_calls_are_different_values():
    """Aliases and spellings of one law are equal; nothing else is."""
    alias = {"xavier_uniform()": "glorot_uniform()", "xavier_normal()": "glorot_normal()"}
    alias |= {"kaiming_uniform()": "he_uniform()", "zeros_init()": "zeros", "ones_init()": "ones"}
    calls = {case.call for case in CASES} - set(alias)
    calls -= {"normal(0.02)", "sparse(0.5)"}
    values = {evaluate(call): call for call in calls}
    assert len(values) == len(calls)


@pytest.mark.parametrize(
    ("call", "other"),
    [
        ("normal()", "normal(dtype='float64')"),
        ("normal()", "normal(dtype='float32')"),
        ("normal(0.1)", "normal(0.1, mean=0.5)"),
        ("orthogonal()", "scaled_orthogonal()"),
        ("orthogonal()", "orthogonal(method='reflections')"),
        ("he_normal()", "he_normal(groups=2)"),
        ("he_normal()", "he_normal(transposed_strides=2)"),
        ("truncated_normal(0.5)", "truncated_normal(0.5, exact=True)"),
        ("constant([1, 2])", "constant([[1, 2]])"),
        ("constant([1, 2])", "constant([2, 1])"),
        ("stacked(zeros)", "stacked(zeros, 1)"),
        ("masked(zeros, [1, 0])", "masked(zeros, [1, 1])"),
        ("fused(normal(), (1, 2))", "fused(normal(), (2, 1))"),
    ],
)
def test_a_different_argument_is_a_different_value(call, other):
    assert evaluate(call) != evaluate(other)
    assert len({evaluate(call), evaluate(other)}) == 2


@pytest.mark.parametrize(
    ("call", "other"),
    [
        ("normal(dtype='bfloat16')", "normal(dtype=np.dtype('bfloat16'))"),
        ("normal(dtype='float64')", "normal(dtype=float)"),
        ("normal(dtype='float32')", "normal(dtype=np.float32)"),
        ("normal(dtype='float32')", "normal(dtype=np.dtype('>f4'))"),
        ("constant(1)", "constant(1.0)"),
        ("constant(True)", "ones"),
        ("constant(0.0)", "constant(-0.0)"),
        ("normal(0.5)", "normal(np.float32(0.5))"),
        ("normal(1)", "normal(np.int8(1))"),
        ("constant([1, 0])", "constant(np.array([True, False]))"),
        ("masked(ones, [1, 0])", "masked(ones, [True, False])"),
        ("uniform(0.5)", "uniform(minval=0, maxval=0.5)"),
        ("he_normal(0, 1)", "he_normal([0], (1,))"),
        ("stacked(zeros, 1)", "stacked(zeros, [1])"),
        ("fused(zeros, (1, 2))", "fused([zeros, zeros], np.array([1, 2]))"),
        ("identity(0.0)", "identity(-0.0)"),
        ("he_normal(transposed_strides=1)", "he_normal()"),
    ],
)
def test_equal_values_are_equal_draws(call, other):
    """`==` decides which compiled draw is used, so it must not be coarser than the bits."""
    one, two = evaluate(call), evaluate(other)
    assert one == two and hash(one) == hash(two)
    shape = (3, 3) if call.startswith("fused") else (2, 2)
    assert_same_bits(one(KEY, shape), two(KEY, shape))


def test_minus_zero_draws_as_zero():
    """-0.0 == 0.0, so which came first must not decide the sign of what is drawn."""
    for call in ("constant(-0.0)", "identity(-0.0)", "scaled(ones, -0.0)", "constant([-0.0])"):
        drawn = evaluate(call)(None, (3, 3))
        assert not np.signbit(drawn).any(), call


def test_numbers_may_be_numpy_scalars_and_jax_arrays():
    numbers: list[Any] = [np.float32(0.25), np.float64(0.25), jnp.float32(0.25), jnp.bfloat16(0.25)]
    for number in numbers:
        assert initializers.normal(number) == initializers.normal(0.25)
        assert initializers.constant(number) == initializers.constant(0.25)
        assert initializers.variance_scaling(number, "fan_in", "normal").scale == 0.25
    assert evaluate("orthogonal(np.int32(2))") == initializers.orthogonal(2)


@each()
def test_pickle(case):
    for protocol in (2, pickle.HIGHEST_PROTOCOL):
        again = pickle.loads(pickle.dumps(case.initializer, protocol))
        assert again == case.initializer
        assert hash(again) == hash(case.initializer)
        assert repr(again) == repr(case.initializer)


@each()
def test_repr_recreates(case):
    again = evaluate(repr(case.initializer))
    assert again == case.initializer
    assert repr(again) == repr(case.initializer)
    assert type(again) is type(case.initializer)


@each()
def test_config_survives_json(case):
    text = json.dumps(to_config(case.initializer), allow_nan=False)
    again = from_config(json.loads(text))
    assert again == case.initializer
    assert repr(again) == repr(case.initializer)
    assert get(json.loads(text)) == case.initializer


@pytest.mark.parametrize("dtype", ["bfloat16", "float64", "complex64", "float8_e4m3fn"])
@pytest.mark.parametrize(
    "call", ["normal({})", "he_normal({})", "constant(0.5, {})", "sparse(0.5, 1, {})"]
)
def test_the_dtype_is_kept(call, dtype):
    init = evaluate(call.format(f"dtype={dtype!r}"))
    assert init.dtype == dtype
    for again in (
        evaluate(repr(init)),
        pickle.loads(pickle.dumps(init)),
        from_config(json.loads(json.dumps(to_config(init)))),
    ):
        assert again == init and again.dtype == dtype
    abstract = jax.eval_shape(lambda key: (init(key, (4, 3)), init(key, (4, 3), "float16")), KEY)
    assert abstract[0].dtype == {"float64": "float32"}.get(dtype, dtype)
    assert abstract[1].dtype == "float16"


@pytest.mark.parametrize(
    "call",
    [
        "scaled({}, 0.5)",
        "masked({}, [1, 0, 1])",
        "reshaped({}, (3, 4))",
        "stacked({})",
        "fused([zeros, {}], (1, 2))",
        "fused([zeros, scaled(stacked({}), 2)], (1, 2))",
    ],
)
def test_a_wrapper_draws_in_the_dtype_of_what_it_wraps(call):
    init = evaluate(call.format("normal(dtype='bfloat16')"))
    abstract = jax.eval_shape(lambda key: (init(key, (4, 3)), init(key, (4, 3), "float32")), KEY)
    assert [one.dtype for one in abstract] == ["bfloat16", "float32"]
    assert init.law((4, 3)) == init.law((4, 3), "bfloat16")


def test_an_initializer_of_ones_own():
    """The base class says how: a frozen dataclass with a sample and a law."""
    import dataclasses

    from jaxinit.initializers import Law

    @dataclasses.dataclass(frozen=True, repr=False)
    class Rademacher(BaseInitializer):
        def sample(self, key, shape, dtype):
            return jax.random.rademacher(key, shape, dtype)

        def exact_law(self, shape, is_complex):
            return Law(0.0, 1.0, 1.0, (-1.0, 1.0))

    init = Rademacher()
    drawn = init(KEY, (100,), "bfloat16")
    assert drawn.dtype == "bfloat16" and set(np.asarray(drawn, float)) == {-1.0, 1.0}
    assert init == Rademacher() and repr(init) == "Rademacher()"
    assert initializers.stacked(init).law((3, 4)).variance == 1
    with pytest.raises(TypeError, match=r"Rademacher needs a shape that is a sequence"):
        init(KEY, "ab")  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match=r"to_config needs an initializer of the catalogue"):
        to_config(init)


# As Flax and JAX users write it.


def test_zeros_and_ones_in_both_spellings():
    for init, value in ((initializers.zeros, 0), (initializers.ones, 1)):
        assert init() is init
        for spelling in (init, init()):
            drawn = spelling(KEY, (2, 3), jnp.bfloat16)
            assert drawn.dtype == "bfloat16" and (np.asarray(drawn, float) == value).all()
    assert initializers.zeros_init() is initializers.zeros
    assert initializers.ones_init() is initializers.ones


KINDS_OF_DRAW = ("zeros", "normal(0.5, mean=1.0)", "orthogonal()", "sparse(0.5)")
DENSE_CASES = [
    case
    for case in KINDS
    if {"float32", "bfloat16"} <= set(case.dtypes)
    and any(len(s) == 2 and s[0] for s in case.shapes)
]


def dense_shape(case: Case) -> tuple[int, int]:
    return next(shape for shape in case.shapes if len(shape) == 2 and shape[0])


@each(*DENSE_CASES)
def test_flax_layers_take_it(case):
    """Linen and NNX pass (key, shape, dtype) by position; NNX says which key."""
    inputs, outputs = dense_shape(case)

    def linear():
        options = dict(kernel_init=case.initializer, param_dtype=jnp.bfloat16, rngs=nnx.Rngs(3))
        return nnx.Linear(inputs, outputs, **options)

    kernel = nnx.eval_shape(linear).kernel
    assert (kernel.shape, kernel.dtype) == ((inputs, outputs), jnp.bfloat16)
    if case.call in KINDS_OF_DRAW:  # what the others draw is traced and not compiled
        key = nnx.Rngs(3).params()
        expected = case.initializer(key, (inputs, outputs), jnp.bfloat16)
        assert_same_bits(linear().kernel[...], expected)
    dense = nn.Dense(outputs, kernel_init=case.initializer, bias_init=initializers.zeros)
    params = jax.eval_shape(dense.init, KEY, jnp.zeros((1, inputs)))["params"]
    assert params["kernel"].shape == (inputs, outputs)
    assert dense == nn.Dense(outputs, kernel_init=evaluate(case.call), bias_init=initializers.zeros)


@pytest.mark.usefixtures("devices")
def test_flax_layers_of_other_kinds():
    init = initializers.he_normal()
    x = jnp.ones((1, 8, 6))
    layers = (
        nn.Conv(4, (3,), kernel_init=init),
        nn.DenseGeneral((2, 3), kernel_init=init, bias_init=initializers.zeros_init()),
        nn.LayerNorm(scale_init=initializers.ones, bias_init=initializers.zeros),
        nn.Dense(4, kernel_init=nn.with_partitioning(init, (None, "x"))),
    )
    together = jax.jit(lambda key: [layer.init(key, x) for layer in layers], compiler_options=QUICK)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(together(KEY)))
    with jax.set_mesh(make_mesh(AxisType.Auto, names=("x", "y"))):
        partitioned = nnx.with_partitioning(init, (None, "x"))
        layer = nnx.Linear(3, 4, kernel_init=partitioned, rngs=nnx.Rngs(0))
    assert layer.kernel.shape == (3, 4)


# Sharding. Devices: eight, forced by conftest.

SHARDED = {
    "zeros": ((4, 2), P("x", "y")),
    "constant([1.0, 2.0, 3.0, 4.0])": ((4, 4), P("x", "y")),
    "normal(0.5, mean=1.0)": ((4, 2), P("x", "y")),
    "uniform(0.5)": ((8,), P(("x", "y"))),
    "truncated_normal(lower=-np.inf)": ((3, 4), P(None, "y")),
    "he_normal(dtype='bfloat16')": ((4, 3), P("x")),
    "orthogonal()": ((4, 2), P("x", "y")),
    "orthogonal(method='reflections')": ((32, 16), P("x", "y")),
    "delta_orthogonal()": ((2, 4, 2), P(None, "x", "y")),
    "identity()": ((4, 2), P("x", "y")),
    "dirac()": ((3, 4, 6), P(None, "x", "y")),
    "sparse(0.5)": ((4, 2), P("x", "y")),
    "scaled(masked(he_normal(), np.tri(4, 3)), 2)": ((4, 3), P("y", None)),
    "stacked(orthogonal())": ((4, 2, 2), P("x", "y")),
    "fused([normal(), zeros, orthogonal()], (1, 2, 1))": ((2, 4), P("y", "x")),
}  # fmt: skip


SHARDED_FIRST = {
    *KINDS_OF_DRAW,
    "he_normal(dtype='bfloat16')",
    "orthogonal(method='reflections')",
    "delta_orthogonal()",
    "stacked(orthogonal())",
    "fused([normal(), zeros, orthogonal()], (1, 2, 1))",
}


def assert_sharded(drawn, whole, sharding: NamedSharding) -> None:
    """On its devices in its pieces, and the same bits as a draw on one device."""
    assert drawn.sharding.is_equivalent_to(sharding, whole.ndim), drawn.sharding
    assert_same_bits(drawn, whole)


@pytest.mark.parametrize(
    ("call", "kind"),
    [
        pytest.param(
            call,
            kind,
            id=f"{call}-{kind.name.lower()}",
            # What a mesh asks of a draw differs by how it is drawn, not by its law; the two types
            # of axes differ where it is traced.
            marks=[pytest.mark.slow] * (call not in SHARDED_FIRST or kind == AxisType.Auto),
        )
        for kind in (AxisType.Auto, AxisType.Explicit)
        for call in SHARDED
    ],
)
@pytest.mark.usefixtures("devices")
def test_a_draw_onto_a_mesh(call, kind):
    init, (shape, spec) = evaluate(call), SHARDED[call]
    sharding = NamedSharding(make_mesh(kind, names=("x", "y")), spec)
    assert_sharded(init(KEY, shape, None, sharding), init(KEY, shape), sharding)


@pytest.mark.slow
@BOTH_AXIS_TYPES
@pytest.mark.parametrize("call", KINDS_OF_DRAW)
@pytest.mark.usefixtures("devices")
def test_a_draw_onto_the_mesh_in_context(call, kind):
    init, (shape, spec) = evaluate(call), SHARDED[call]
    mesh = make_mesh(kind, names=("x", "y"))
    sharding = NamedSharding(mesh, spec)
    with jax.set_mesh(mesh):
        assert_sharded(init(KEY, shape, None, spec), init(KEY, shape), sharding)
        if kind == AxisType.Explicit:  # elsewhere this is the draw of the test above
            assert_sharded(init(KEY, shape, None, sharding), init(KEY, shape), sharding)


@EXPLICIT_AXES_FIRST
@pytest.mark.usefixtures("devices")
def test_a_draw_onto_a_mesh_inside_jit(kind):
    """One program for several: what each device fills does not depend on neighbours."""
    mesh = make_mesh(kind, names=("x", "y"))

    def draw(key, by_spec):
        drawn = []
        for call in KINDS_OF_DRAW:
            shape, spec = SHARDED[call]
            where = spec if by_spec else NamedSharding(mesh, spec)
            drawn.append(evaluate(call)(key, shape, None, where))
        return drawn

    outside = jax.jit(draw, static_argnums=1)(KEY, False)
    with jax.set_mesh(mesh):
        inside = jax.jit(draw, static_argnums=1)(KEY, True)
    for call, *several in zip(KINDS_OF_DRAW, outside, inside, strict=True):
        shape, spec = SHARDED[call]
        for drawn in several:
            assert_sharded(drawn, evaluate(call)(KEY, shape), NamedSharding(mesh, spec))


@pytest.mark.usefixtures("devices")
def test_an_explicit_sharding_is_part_of_the_type():
    mesh = make_mesh(AxisType.Explicit, names=("x", "y"))
    for call in ("he_normal()", "zeros", "orthogonal()"):
        with jax.set_mesh(mesh):
            seen = jax.eval_shape(lambda key, c=call: evaluate(c)(key, (8, 6), None, P("x")), KEY)
        assert seen.sharding.spec == P("x", None)


@pytest.mark.usefixtures("devices")
def test_a_replicated_draw():
    mesh = make_mesh(AxisType.Explicit, names=("x", "y"))
    init = initializers.he_normal()
    with jax.set_mesh(mesh):
        drawn = init(KEY, (3, 4), "complex64", P())
    assert_sharded(drawn, init(KEY, (3, 4), "complex64"), NamedSharding(mesh, P()))


@pytest.mark.usefixtures("devices")
def test_a_whole_draw_under_an_explicit_mesh():
    """Shardings inside the draw would stop fusions, and an ulp here and there would change."""
    mesh = make_mesh(AxisType.Explicit, names=("x", "y"))
    init = evaluate("normal(0.5, mean=1.0)")
    with jax.set_mesh(mesh):
        keys = jax.device_put(jax.random.split(KEY, 4), NamedSharding(mesh, P("x")))
        ensemble = jax.vmap(lambda key: init(key, (4, 2)))(keys)
        inside = init(KEY, (4, 2))
    assert_same_bits(inside, init(KEY, (4, 2)))
    assert ensemble.sharding.spec == P("x", None, None)


@pytest.mark.usefixtures("devices")
def test_an_empty_array_on_a_mesh():
    for kind in (AxisType.Auto, AxisType.Explicit):
        sharding = NamedSharding(make_mesh(kind, names=("x", "y")), P(None, "x"))
        for call in ("he_normal()", "orthogonal()", "zeros"):
            assert evaluate(call)(KEY, (0, 4), None, sharding).shape == (0, 4)


@pytest.mark.usefixtures("devices")
def test_keys_on_a_mesh():
    """A key that was replicated onto the mesh draws what the same key draws elsewhere."""
    mesh = make_mesh(AxisType.Auto, names=("x", "y"))
    sharding = NamedSharding(mesh, P("x", "y"))
    key = jax.device_put(KEY, NamedSharding(mesh, P()))
    init = initializers.he_normal()
    assert_sharded(init(key, (4, 2), None, sharding), init(KEY, (4, 2)), sharding)
