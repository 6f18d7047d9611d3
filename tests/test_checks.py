"""The assertions of `jaxinit.checks`: what passes, what fails, and what they say."""

from __future__ import annotations

import dataclasses
import itertools
import pickle
import re

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxinit
from catalogue import each_kind, evaluate, sample
from helpers import make_mesh, struct
from jaxinit import checks
from jaxinit.checks import twin_units
from jaxinit.checks._twins import Layout, entropy_bits, hashes_of, layout_of
from jaxinit.initializers import BaseInitializer, Law, he_normal, normal, zeros

pytestmark = pytest.mark.unoptimized

SEED = 3
KEY = jax.random.key(SEED)


def planned(tree, *rules) -> jaxinit.Plan:
    return jaxinit.plan(tree, list(rules))


def drawn(tree, *rules):
    plan = planned(tree, *rules)
    return plan, plan.init(KEY)


def complaint(assertion, *args, **kwargs) -> str:
    with pytest.raises(AssertionError) as caught:
        assertion(*args, **kwargs)
    return str(caught.value)


def rows(message: str) -> list[list[str]]:
    """Cells of the table in a message."""
    lines = message.split("\n")
    rule = next(i for i, line in enumerate(lines) if line.startswith("──"))
    return [re.split(r" {2,}", line.strip()) for line in lines[rule + 1 : -1]]


# Shapes.

TREE = {"a": {"kernel": np.zeros((3, 4), "float32"), "bias": np.zeros(4, "float32")}}


def test_shapes_that_are_right_pass():
    checks.assert_shapes(TREE, TREE)
    checks.assert_shapes(TREE, jax.eval_shape(lambda: jax.tree.map(jnp.asarray, TREE)))
    checks.assert_shapes(TREE, planned(TREE, ("**", zeros)))
    checks.assert_shapes({}, {})


def test_containers_and_boxes_do_not_matter():
    boxed = {"a": {"kernel": nn.Partitioned(TREE["a"]["kernel"], (None, "x")), "gone": None}}
    boxed["a"]["bias"] = TREE["a"]["bias"]
    checks.assert_shapes(boxed, TREE)
    checks.assert_shapes(nn.FrozenDict(TREE), planned(boxed, ("**", zeros)))  # pyright: ignore


def test_every_difference_of_shape_is_a_row():
    found = {"a": {"kernel": struct(4, 3, dtype="bfloat16"), "scale": struct(4)}}
    message = complaint(checks.assert_shapes, found, TREE)
    assert message.startswith("assert_shapes needs the 2 leaves expected, 3 of 3 differ:\n")
    assert rows(message) == [
        ["a/bias", "missing", "(4,) float32", "nothing"],
        ["a/kernel", "shape", "(3, 4)", "(4, 3)"],
        ["a/kernel", "dtype", "float32", "bfloat16"],
        ["a/scale", "surplus", "nothing", "(4,) float32"],
    ]
    with pytest.raises(AssertionError):
        chex.assert_trees_all_equal_shapes_and_dtypes(found, TREE)


def test_long_tables_are_cut():
    expected = {f"leaf_{i:02}": struct(2) for i in range(33)}
    message = complaint(checks.assert_shapes, {"leaf_00": struct(2)}, expected)
    assert "32 of 33 differ" in message
    assert len(rows(message)) == 21
    assert "\n... and 12 more\n" in message


def test_errors_carry_their_rows():
    with pytest.raises(checks.CheckError) as caught:
        checks.assert_finite({f"{i}": np.full(3, np.inf, "float32") for i in range(25)})
    assert caught.value.columns == ("path", "infinite or NaN", "entries")
    assert caught.value.rows[:1] == (("0", 3, 3),) and len(caught.value.rows) == 25
    again = pickle.loads(pickle.dumps(caught.value))
    assert (str(again), again.rows) == (str(caught.value), caught.value.rows)


def test_shapes_of_what_is_no_array():
    with pytest.raises(TypeError, match=r"assert_shapes needs leaves with a shape and a dtype"):
        checks.assert_shapes({"a": 1.0}, TREE)
    with pytest.raises(ValueError, match=r"assert_shapes needs a canonical path of its own"):
        checks.assert_shapes({"a/b": struct(1), "a": {"b": struct(1)}}, TREE)


def test_chex_can_switch_its_assertions_off():
    chex.disable_asserts()
    try:
        checks.assert_shapes({}, TREE)
        checks.assert_finite({"x": np.array([np.nan])})
    finally:
        chex.enable_asserts()
    with pytest.raises(AssertionError):
        checks.assert_shapes({}, TREE)


# Finite values.


def test_finite_values_pass():
    checks.assert_finite(TREE)
    checks.assert_finite({"i": jnp.arange(3), "c": jnp.ones(2, "complex64"), "e": jnp.ones((0, 2))})


def test_infinite_values_are_counted_by_leaf():
    bad = {
        "a": jnp.array([1.0, jnp.nan, jnp.inf]),
        "b": jnp.ones(3),
        "c": jnp.array([[1 + 1j * jnp.inf]]),
        "d": jnp.full((2, 2), jnp.nan, "float8_e4m3fn"),
    }
    message = complaint(checks.assert_finite, bad)
    assert message.startswith("assert_finite needs finite numbers only, 3 of 4 leaves hold others:")
    assert rows(message) == [["a", "2", "3"], ["c", "1", "1"], ["d", "4", "4"]]


# Laws: what is right passes.


@pytest.mark.slow
@each_kind()
def test_right_draws_of_the_whole_catalogue_pass(case):
    """Of all laws, in three widths; and all but the fixed ones break symmetry."""
    shape = case.bulk or case.shape
    dtypes = [d for d in ("float32", "float8_e4m3fn", "complex64") if d in case.dtypes]
    plan = planned({d: struct(*shape, dtype=d) for d in dtypes}, ("*", case.initializer))
    params = {dtype: case.draw_bulk(dtype) for dtype in dtypes}
    checks.assert_laws(params, plan)
    if case.initializer.random:
        checks.assert_symmetry_broken(params, plan)
    elif len(shape) > 1:
        assert twins(params, plan), case.call


def test_a_thousand_right_leaves_pass_at_a_rate_of_one_half():
    """A union bound that forgot to divide by the number of leaves would fail nearly always."""
    tree = {f"{i}": struct(8) for i in range(1000)}
    plan = planned(tree, ("*", normal(0.1)))
    values = np.asarray(sample("normal(0.1)", (1000, 8), seed=SEED))
    checks.assert_laws({str(i): values[i] for i in range(1000)}, plan, failure_rate=0.5)


def test_small_and_empty_leaves_pass():
    tree = {"scalar": struct(), "empty": struct(0, 3), "one": struct(1), "two": struct(2)}
    checks.assert_laws(*reversed(drawn(tree, ("**", normal(0.02)))))


def test_sharded_leaves_pass_and_fail(devices):
    mesh = make_mesh(AxisType.Explicit)
    plan, params = drawn({"k": struct(64, 48), "b": struct(48)}, ("k", "he_normal"), ("b", "zeros"))
    spread = {
        "k": jax.device_put(params["k"], NamedSharding(mesh, P("a", "b"))),
        "b": jax.device_put(params["b"], NamedSharding(mesh, P("b"))),
    }
    with jax.set_mesh(mesh):
        checks.assert_laws(spread, plan)
        checks.assert_symmetry_broken(spread, plan)
    assert "rms" not in complaint(checks.assert_laws, {**spread, "k": spread["k"] * 2}, plan)


# Laws: what is wrong fails.

DENSE = {"kernel": struct(64, 64), "bias": struct(64)}
RULES = (("kernel", he_normal()), ("bias", zeros))


def broken(change) -> list[list[str]]:
    plan, params = drawn(DENSE, *RULES)
    return rows(complaint(checks.assert_laws, change(params), plan))


@pytest.mark.parametrize("factor", [0.9, 1.1])
def test_a_std_that_is_ten_percent_off_fails(factor):
    tree = {f"{i}": {"w": struct(64, 64)} for i in range(150)}
    plan = planned(tree, ("**", normal(0.02)))
    values = np.array(sample("normal(0.02)", (150, 64, 64), seed=SEED))
    params = {str(i): {"w": values[i]} for i in range(150)}
    checks.assert_laws(params, plan)
    params["77"]["w"] = values[77] * np.float32(factor)
    message = complaint(checks.assert_laws, params, plan)
    assert "1 of 150 leaves does not (failure rate 1e-05)" in message
    [[path, what, expected, measured, z, allowed]] = rows(message)
    assert (path, what, expected) == ("77/w", "std", "0.02")
    assert float(measured) == pytest.approx(0.02 * factor, rel=0.05)
    assert abs(float(z)) > abs(float(allowed)) > 5


def test_a_mean_that_is_off_fails():
    [row] = broken(lambda p: {**p, "kernel": p["kernel"] + 0.15 * (2 / 64) ** 0.5})[:1]
    assert row[:2] == ["kernel", "range"]
    [row] = broken(lambda p: {**p, "kernel": jnp.clip(p["kernel"] + 0.027, -0.4, 0.4)})
    assert row[:3] == ["kernel", "mean", "0"]
    assert float(row[4]) == pytest.approx(0.15 * 64, abs=4)


def test_what_the_std_of_a_kernel_is_worth_depends_on_its_axes():
    """A kernel drawn for the transposed layer has the fans of the other axis."""
    plan = planned({"w": struct(48, 96)}, ("w", he_normal()))
    swapped = {"w": sample("he_normal()", (96, 48), seed=SEED).T}
    assert [row[1] for row in rows(complaint(checks.assert_laws, swapped, plan))] == ["std"]


def test_a_value_outside_the_support_fails():
    [row] = broken(lambda p: {**p, "kernel": p["kernel"].at[3, 4].set(-0.42)})
    assert row[:3] == ["kernel", "range", "-0.4019 to 0.4019"]
    assert row[3].startswith("-0.42 to ")


def test_a_value_that_is_not_finite_fails():
    assert broken(lambda p: {**p, "kernel": p["kernel"].at[3, 4].set(jnp.nan)}) == [
        ["kernel", "finite", "all", "1 of 4096 are not"]
    ]


def test_what_is_not_random_is_compared_bit_for_bit():
    def negative(params):
        return {**params, "bias": params["bias"].at[5].set(-0.0)}

    assert broken(negative) == [["bias", "bits", "zeros", "1 of 64 differ"]]
    plan, params = drawn({"x": struct(3, 5, dtype="bfloat16")}, ("x", "identity"))
    checks.assert_laws(params, plan)
    checks.assert_laws({"x": np.asarray(params["x"])}, plan)
    assert "15 of 15 differ" in complaint(checks.assert_laws, {"x": -params["x"]}, plan)


def test_each_part_of_a_fused_kernel_follows_its_own_law():
    nested = evaluate("fused([fused([normal(1.0), normal(2.0)], (32, 16)), zeros], (48, 16))")
    plan, params = drawn({"qkv": struct(64, 64)}, ("*", nested))
    checks.assert_laws(params, plan)
    wrong = params["qkv"].at[:, 32:48].multiply(1.5).at[0, 50].set(1e-6)
    assert [row[:2] for row in rows(complaint(checks.assert_laws, {"qkv": wrong}, plan))] == [
        ["qkv[:, 32:48]", "std"],
        ["qkv[:, 48:64]", "range"],
    ]
    # One law over all would not have noticed: the sum of squares is the same.
    swapped = jnp.concatenate(
        [params["qkv"][:, 16:48], params["qkv"][:, :16], params["qkv"][:, 48:]], 1
    )
    assert {row[0] for row in rows(complaint(checks.assert_laws, {"qkv": swapped}, plan))} == {
        "qkv[:, 0:32]",
        "qkv[:, 32:48]",
    }


def test_an_orthogonal_kernel_has_no_sampling_error():
    plan, params = drawn({"q": struct(64, 48)}, ("q", "orthogonal"))
    checks.assert_laws(params, plan)
    [row] = rows(complaint(checks.assert_laws, {"q": params["q"] * 1.001}, plan))
    assert row == ["q", "rms", "0.125", "0.1251"]


def test_zeros_where_a_law_is_random_fail():
    for shape in ((4,), (64,), (64, 64)):
        plan = planned({"w": struct(*shape)}, ("w", normal(0.02)))
        [row] = rows(complaint(checks.assert_laws, {"w": np.zeros(shape, "float32")}, plan))
        assert row[:4] == ["w", "std", "0.02", "0"]


def test_the_defects_of_jax_are_seen():
    """Sampling in bfloat16 shifts the mean; the complex truncated law has 1.9 % more variance."""
    shape = (2048, 1024)
    plan = planned({"w": struct(*shape, dtype="bfloat16")}, ("w", he_normal()))
    by_jax = jax.nn.initializers.he_normal()(KEY, shape, jnp.bfloat16)
    assert "mean" in [row[1] for row in rows(complaint(checks.assert_laws, {"w": by_jax}, plan))]
    plan = planned({"w": struct(512, 512, dtype="complex64")}, ("w", he_normal()))
    by_jax = jax.nn.initializers.he_normal()(KEY, (512, 512), jnp.complex64)
    assert "std" in [row[1] for row in rows(complaint(checks.assert_laws, {"w": by_jax}, plan))]


def test_the_failure_rate_sets_the_tolerance():
    plan, params = drawn({"w": struct(64, 64)}, ("w", normal(1.0)))
    off = {"w": params["w"] / jnp.std(params["w"]) * 1.05}
    checks.assert_laws(off, plan)
    assert "(failure rate 0.9)" in complaint(checks.assert_laws, off, plan, failure_rate=0.9)


def test_a_tree_of_another_shape_is_said_first():
    plan, params = drawn(DENSE, *RULES)
    message = complaint(checks.assert_laws, {"kernel": params["kernel"] * 9}, plan)
    assert message.startswith("assert_laws needs the 2 leaves expected, 1 of 2 differs:")
    assert rows(message) == [["bias", "missing", "(64,) float32", "nothing"]]


def test_long_tables_of_laws_are_cut():
    plan = planned({f"{i}": struct(2) for i in range(30)}, ("*", "ones"))
    message = complaint(
        checks.assert_laws, {f"{i}": np.zeros(2, "float32") for i in range(30)}, plan
    )
    assert "30 of 30 leaves do not" in message and "\n... and 10 more\n" in message


@pytest.mark.parametrize("rate", [0, 1, -1e-5, 2.0, float("nan"), True, "0.1", None])
def test_a_failure_rate_is_a_probability(rate):
    plan, params = drawn({"w": struct(2)}, ("w", "ones"))
    with pytest.raises(ValueError, match=r"needs failure_rate between 0 and 1, got"):
        checks.assert_laws(params, plan, failure_rate=rate)


def test_laws_need_a_plan_and_arrays():
    plan, params = drawn({"w": struct(2)}, ("w", "ones"))
    with pytest.raises(TypeError, match=r"assert_laws needs a plan, got a value of type dict"):
        checks.assert_laws(params, params)
    with pytest.raises(TypeError, match=r"assert_laws needs arrays with values, got Shape"):
        checks.assert_laws({"w": struct(2)}, plan)
    with pytest.raises(
        TypeError, match=r"assert_laws needs arrays with values, got a traced value"
    ):
        jax.jit(lambda p: checks.assert_laws(p, plan))(params)


@dataclasses.dataclass(frozen=True, repr=False)
class Vague(BaseInitializer):
    """A user's initializer that forgot its kurtosis."""

    def sample(self, key, shape, dtype):
        return jax.random.normal(key, shape, dtype)

    def exact_law(self, shape, is_complex):
        return Law(0.0, 1.0, float("nan"), (-np.inf, np.inf))


def test_a_law_needs_its_kurtosis():
    plan, params = drawn({"w": struct(2)}, ("w", Vague()))
    with pytest.raises(ValueError, match=r"kurtosis of at least 1, got nan for Vague\(\) at 'w'"):
        checks.assert_laws(params, plan)


def test_64_bit_leaves(x64):
    tree = {"w": struct(64, 64, dtype="float64"), "b": struct(64, dtype="float64")}
    plan, params = drawn(tree, ("w", "he_uniform"), ("b", evaluate("constant(0.1)")))
    checks.assert_laws(params, plan)
    checks.assert_symmetry_broken(params, plan)
    off = {**params, "b": params["b"].at[0].add(1e-16)}
    assert "1 of 64 differ" in complaint(checks.assert_laws, off, plan)
    with jax.enable_x64(False):
        checks.assert_laws(params, plan)


# Symmetry.


def kernel(*shape: int, dtype: str = "float32", seed: int = 0) -> np.ndarray:
    return np.array(sample("normal(1.0)", shape, dtype, seed))


def twins(params, plan=None, **kwargs) -> list[list[str]]:
    return rows(complaint(checks.assert_symmetry_broken, params, plan, **kwargs))


def test_random_kernels_pass():
    checks.assert_symmetry_broken({"a": kernel(64, 48), "b": kernel(3, 3, 8, 16), "c": kernel(8)})
    checks.assert_symmetry_broken(
        {"identity": np.eye(8, dtype="float32"), "i": np.ones((3, 3), int)}
    )
    checks.assert_symmetry_broken({})


def test_equal_columns_are_found():
    w = kernel(16, 40)
    w[:, 17] = w[:, 39] = w[:, 3]
    assert twins({"w": w}) == [["w", "units", "3 of 40 have a twin, for example 3 and 17"]]
    w = kernel(16, 40)
    w[3] = w[9]
    checks.assert_symmetry_broken({"w": w})


def test_one_bit_tells_units_apart():
    w = kernel(16, 40)
    w[:, 17] = w[:, 3]
    w[7, 17] = np.nextafter(w[7, 17], np.float32(9))
    checks.assert_symmetry_broken({"w": w})
    w[:, 17] = -w[:, 3]
    checks.assert_symmetry_broken({"w": w})
    w[:, 17] = w[::-1, 3]
    checks.assert_symmetry_broken({"w": w})


def test_constant_kernels_are_twins():
    assert twins({"w": np.zeros((4, 6), "float32"), "v": np.ones((2, 2, 3), "float16")}) == [
        ["v", "constant", "all 3 units are equal"],
        ["w", "constant", "all 6 units are equal"],
    ]
    # One unit has no twin, and a vector has no units.
    checks.assert_symmetry_broken({"w": np.zeros((4, 1), "float32"), "b": np.zeros(9, "float32")})


def test_what_is_allowed_is_not_reported():
    params = {"block": {"out": np.zeros((4, 4), "float32")}, "head": np.zeros((4, 4), "float32")}
    assert [row[0] for row in twins(params)] == ["block/out", "head"]
    assert [row[0] for row in twins(params, allow="**/out")] == ["head"]
    checks.assert_symmetry_broken(params, allow=["**/out", re.compile("head")])
    checks.assert_symmetry_broken(params, allow=lambda path, leaf: leaf.shape == (4, 4))
    with pytest.raises(
        ValueError, match=r"allow= to match a leaf, got '\*\*/outt', which matches none"
    ):
        checks.assert_symmetry_broken(params, allow="**/outt")
    with pytest.raises(TypeError, match=r"assert_symmetry_broken, in allow=, needs a pattern"):
        checks.assert_symmetry_broken(params, allow=[3])


def test_units_lie_along_the_axes_that_the_plan_knows():
    w = kernel(12, 20)
    w[5] = w[2]
    checks.assert_symmetry_broken({"w": w})
    plan = planned({"w": struct(12, 20)}, ("w", he_normal(-1, -2)))
    assert twins({"w": w}, plan) == [["w", "units", "2 of 12 have a twin, for example 2 and 5"]]
    # Heads and features of attention: 4 x 5 units of 12 weights.
    w = kernel(12, 4, 5)
    w[:, 3, 1] = w[:, 0, 2]
    plan = planned({"w": struct(12, 4, 5)}, ("w", he_normal(0, (1, 2))))
    assert twins({"w": w}, plan) == [
        ["w", "units", "2 of 20 have a twin, for example (0, 2) and (3, 1)"]
    ]
    checks.assert_symmetry_broken({"w": w})


def test_a_kernel_drawn_in_another_shape_has_its_units_there():
    w = kernel(12, 20)
    w[:, 7] = w[:, 4]
    plan = planned({"w": struct(12, 4, 5)}, ("w", evaluate("reshaped(he_normal(), (12, 20))")))
    assert twins({"w": w.reshape(12, 4, 5)}, plan) == [
        ["w", "units", "2 of 20 have a twin, for example 4 and 7"]
    ]


def test_layers_of_a_stack():
    stack = evaluate("stacked(he_normal())")
    plan, params = drawn({"w": struct(5, 16, 24)}, ("w", stack))
    checks.assert_symmetry_broken(params, plan)
    w = np.array(params["w"])
    w[4] = w[1]
    assert twins({"w": w}, plan) == [["w", "layers", "layers 1 and 4 are equal"]]
    w = np.array(params["w"])
    w[2, :, 9] = w[2, :, 8]
    assert twins({"w": w}, plan) == [
        ["w", "units", "2 of 120 have a twin, for example 8 and 9 in layer 2"]
    ]
    # A unit of another layer is no rival.
    w = np.array(params["w"])
    w[2, :, 9] = w[3, :, 9]
    checks.assert_symmetry_broken({"w": w}, plan)


def test_batch_axes_are_layers_too():
    plan, params = drawn({"w": struct(16, 4, 24)}, ("w", he_normal(0, 2, 1)))
    checks.assert_symmetry_broken(params, plan)
    w = np.array(params["w"])
    w[:, 3] = w[:, 0]
    assert twins({"w": w}, plan) == [["w", "layers", "layers 0 and 3 are equal"]]


def test_stacked_constants_borrow_their_axes():
    """A plan keeps a stack of one constant as that constant; it is no kernel for that."""
    from jaxinit import ParamSpec

    def stack(*shape):
        return ParamSpec((6, *shape), np.dtype("float32"), stack_axes=(0,))

    tree = {
        "blocks": {
            "dense": {"kernel": stack(16, 24), "bias": stack(24)},
            "norm": {"scale": stack(24)},
            "out": {"kernel": stack(24, 16)},
        },
        "head": struct(24, 7),
    }
    rules = [
        ("**/dense/kernel", he_normal()),
        ("**/scale", "ones"),
        ("**", zeros),
    ]
    plan, params = drawn(tree, *rules)
    assert twins(params, plan) == [
        ["blocks/out/kernel", "constant", "all 96 units are equal"],
        ["head", "constant", "all 7 units are equal"],
    ]
    checks.assert_symmetry_broken(params, plan, allow=["**/out/kernel", "head"])


def test_a_bias_of_several_axes_is_no_kernel():
    attention = {"kernel": kernel(32, 4, 8), "bias": np.zeros((4, 8), "float32")}
    checks.assert_symmetry_broken({"query": attention})
    assert twins({"query": attention, "alone": {"bias": attention["bias"]}}) == [
        ["alone/bias", "constant", "all 8 units are equal"]
    ]


def test_groups_have_inputs_of_their_own():
    """In an identity convolution of two groups each input is passed on once per group."""
    plan, params = drawn({"w": struct(3, 4, 8)}, ("w", evaluate("dirac(groups=2)")))
    checks.assert_symmetry_broken(params, plan)
    plan, params = drawn({"w": struct(3, 4, 8)}, ("w", evaluate("dirac()")))
    assert twins(params, plan) == [["w", "units", "4 of 8 have a twin, for example 4 and 5"]]


def test_equal_leaves_are_found():
    same = {"a": kernel(8, 8), "b": kernel(8, 8), "c": kernel(8, 8, seed=1)}
    assert twins(same) == [["b", "leaves", "equal to a"]]
    checks.assert_symmetry_broken(same, allow="a")
    checks.assert_symmetry_broken({**same, "b": same["b"].reshape(4, 16)})
    # Without a plan, vectors and constants may be equal; with one, its laws decide.
    biases = {"a": kernel(8), "b": kernel(8)}
    checks.assert_symmetry_broken(biases)
    plan = planned({"a": struct(8), "b": struct(8)}, ("*", normal(1.0)))
    assert twins(biases, plan) == [["b", "leaves", "equal to a"]]
    checks.assert_symmetry_broken(
        {"a": np.zeros(8, "float32"), "b": np.zeros(8, "float32")},
        planned({"a": struct(8), "b": struct(8)}, ("*", zeros)),
    )


def test_the_same_key_for_every_layer_is_found():
    """What a forgotten split does (google/flax#2665)."""
    plan, params = drawn({f"{i}": struct(16, 16) for i in range(4)}, ("*", he_normal()))
    checks.assert_symmetry_broken(params, plan)
    again = {path: plan[path].initializer(KEY, (16, 16)) for path in plan.paths}
    assert [row[2] for row in twins(again, plan)] == ["equal to 0"] * 3


def test_twins_by_chance_are_not_reported():
    """512 units of one bfloat16 weight hold about 500 twins, of one float32 weight 0.03."""
    narrow = kernel(1, 512, dtype="bfloat16")
    assert len(np.unique(narrow)) < 512
    checks.assert_symmetry_broken({"w": narrow})
    wide = kernel(1, 512)
    wide[0, 8] = wide[0, 9]
    checks.assert_symmetry_broken({"w": wide})
    # Three weights rule chance out: 2**17 pairs, 2**-66 each.
    wide = kernel(3, 512)
    wide[:, 8] = wide[:, 9]
    assert len(twins({"w": wide})) == 1
    # Zeros are no evidence where a law has them: one weight of 20 is left.
    sparse = np.array(sample("sparse(0.95, 1.0)", (20, 64), "bfloat16", SEED))
    sparse[:, 8] = sparse[:, 9]
    checks.assert_symmetry_broken({"w": sparse})


def test_right_draws_of_narrow_kernels_are_never_twins():
    shapes = [(1, 2048), (2, 2048), (6, 512)]
    for std, dtype in itertools.product((1.0, 0.002), ("bfloat16", "float8_e4m3fn")):
        tree = {f"{i}": struct(*shape, dtype=dtype) for i, shape in enumerate(shapes)}
        plan = planned(tree, ("*", normal(std)))
        for seed in range(5):
            values = [kernel(*shape, seed=seed) * std for shape in shapes]
            params = {f"{i}": jnp.asarray(x, dtype) for i, x in enumerate(values)}
            checks.assert_symmetry_broken(params, plan)
            checks.assert_symmetry_broken(params)


def test_entropy_is_not_overstated():
    """Against the share of equal pairs among 1e5 draws, whose own error is below 0.05 bits."""
    for law in ("normal(1.0)", "uniform(minval=-1.7, maxval=1.7)", "truncated_normal(1.1)"):
        drawn = np.asarray(sample(law, (10**5,), seed=SEED))
        for std in (1.0, 0.02, 0.003):
            for dtype in ("bfloat16", "float16", "float8_e4m3fn", "float8_e5m2"):
                values = (drawn * np.float32(std)).astype(jnp.dtype(dtype)).astype(np.float32)
                counts = np.unique(values, return_counts=True)[1].astype(float)
                equal = (counts * (counts - 1)).sum() / (1e5 * (1e5 - 1))
                assert entropy_bits(dtype, std) <= -np.log2(equal) + 0.05, (law, dtype, std)


def test_random_leaves_that_are_constant_fail():
    plan = planned({"w": struct(1, 512), "b": struct(4)}, ("*", normal(1.0)))
    params = {"w": np.zeros((1, 512), "float32"), "b": kernel(4)}
    assert twins(params, plan) == [["w", "constant", "all 512 units are equal"]]


def test_symmetry_of_another_tree_is_said_first():
    plan, params = drawn(DENSE, *RULES)
    message = complaint(checks.assert_symmetry_broken, {"bias": params["bias"]}, plan)
    assert message.startswith("assert_symmetry_broken needs the 2 leaves expected")
    with pytest.raises(TypeError, match=r"needs a plan, got a value of type dict"):
        checks.assert_symmetry_broken(params, params)
    with pytest.raises(TypeError, match=r"assert_symmetry_broken needs arrays with values"):
        checks.assert_symmetry_broken({"w": struct(2, 2)})


# Checksums of units.


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float8_e5m2", "complex64"])
def test_checksums_of_units_do_not_depend_on_where_the_unit_is(dtype):
    w = jnp.asarray(kernel(3, 4, 5)).astype(dtype)
    base = hashes_of({"w": (w, Layout(w.shape, (), (1, 2)))})["w"]
    assert base.shape == (1, 20) and len(np.unique(base)) == 20
    turned = jnp.transpose(w, (2, 0, 1))
    for axes, kept in (((2, 0), "units"), ((0, 2), "turned")):
        got = hashes_of({"w": (turned, Layout(turned.shape, (), axes))})["w"]
        grid = got.reshape([turned.shape[a] for a in axes])
        expected = base.reshape(4, 5) if kept == "units" else base.reshape(4, 5).T
        np.testing.assert_array_equal(grid, expected)


def test_layouts():
    def layout(call, *shape):
        return layout_of(shape, evaluate(call))

    assert layout_of((2, 3, 4)) == Layout((2, 3, 4), (), (2,))
    assert layout_of(()) == Layout(())
    assert layout("he_normal(0, 1, 2)", 2, 3, 4) == Layout((2, 3, 4), (2,), (1,))
    assert layout("stacked(he_normal(), 1)", 2, 3, 4) == Layout((2, 3, 4), (1,), (2,))
    assert layout("scaled(stacked(he_normal(-1, -2), (0, 1)), 2.)", 2, 3, 4, 5) == Layout(
        (2, 3, 4, 5), (0, 1), (2,)
    )
    assert layout("stacked(scaled(he_normal(-1, -2), 2.))", 2, 3, 4) == Layout(
        (2, 3, 4), (0,), (1,)
    )
    assert layout("stacked(normal())", 2, 3) == Layout((2, 3), (0,), (1,))
    assert layout("stacked(normal())", 3) == Layout((3,), (0,))
    assert layout("stacked(he_normal(batch_axis=0))", 2, 3, 4, 5) == Layout(
        (2, 3, 4, 5), (0, 1), (3,)
    )
    assert layout("glorot_normal(groups=2)", 3, 2, 4) == Layout((3, 2, 4), (), (2,), 2)
    assert layout("stacked(reshaped(he_normal(), (6, 4)))", 2, 6, 2, 2) == Layout(
        (2, 6, 2, 2), (0,), (3,)
    )


def test_twin_units_of_one_array():
    rng = np.random.default_rng(0)
    kernel = rng.normal(size=(2, 8, 6)).astype("float32")
    assert not twin_units(kernel, batch_axis=0).any()
    kernel[1, :, 4] = kernel[1, :, 0]
    found = twin_units(kernel, batch_axis=0)
    assert found.shape == (2, 6) and np.argwhere(found).tolist() == [[1, 0], [1, 4]]
    assert not twin_units(kernel, 1, 0).any()
    assert twin_units(np.zeros((3, 4), "float32")).all()
    assert twin_units(np.tile(kernel[0, :, :1], (1, 5))).all()
    # One bfloat16 entry for each of 6 units: chance makes copies.
    assert not twin_units(jnp.array([[1, 2, 3, 4, 5, 1]], jnp.bfloat16)).any()
