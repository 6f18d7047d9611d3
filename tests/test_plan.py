"""A tree, planned and drawn: the right law at every leaf, and bits that depend on nothing else."""

from __future__ import annotations

import dataclasses
import functools

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import jaxinit
from helpers import assert_same_bits, content, make_mesh, slow, struct
from jaxinit import ParamSpec, Plan, key_for_path, plan
from jaxinit import initializers as init
from jaxinit.checks import CheckError, assert_laws

pytestmark = pytest.mark.unoptimized

P = PartitionSpec
KEY = jax.random.key(0)
RULES = [("**/kernel", "he_normal"), ("**/scale", "ones"), ("**/bias", "zeros")]


def small_tree() -> dict:
    return {
        "dense": {"kernel": struct(6, 5), "bias": struct(5)},
        "norm": {"scale": struct(5, dtype="bfloat16")},
        "head": [{"kernel": struct(5, 3), "bias": struct(3)}, {"kernel": struct(5, 3)}],
    }


@functools.cache
def alone(initializer, shape, dtype):
    return jax.jit(lambda key: initializer(key, shape, dtype))


# The promise.


@pytest.mark.optimized
def test_every_leaf_has_the_bits_of_one_drawn_alone():
    rules = [
        ("head/0/kernel", "orthogonal"),
        ("head/1/kernel", init.scaled(init.normal(), 0.3)),
        *RULES,
    ]
    made, root = plan(small_tree(), rules), jax.random.key(5)
    params = made.init(root)
    assert jax.tree.structure(params) == jax.tree.structure(small_tree())
    assert len(made) == 6
    for leaf, value in zip(made, jax.tree.leaves(params), strict=True):
        key = key_for_path(root, leaf.path)
        expected = alone(leaf.initializer, leaf.shape, leaf.dtype)(key)
        assert content(value) == content(expected), leaf.path


@pytest.mark.optimized
def test_transformed_is_plain():
    tree = {"dense": small_tree()["dense"], "head": struct(5, 3)}
    made = plan(tree, [("head", "orthogonal"), RULES[0], RULES[2]])
    keys = jax.random.split(jax.random.key(0), 2)
    plain = [made.init(key) for key in keys]
    assert_same_bits(jax.jit(made.init)(keys[0]), plain[0])
    shapes = jax.eval_shape(made.init, keys[0])
    assert shapes == jax.eval_shape(lambda: plain[0])
    for ensemble in (jax.vmap(made.init)(keys), jax.jit(jax.vmap(made.init))(keys)):
        for number, member in enumerate(plain):
            assert_same_bits(jax.tree.map(lambda leaf, n=number: leaf[n], ensemble), member)


def test_raw_keys_are_the_same_keys():
    made = plan(small_tree(), RULES)
    expected = made.init(jax.random.key(3))
    assert_same_bits(made.init(jax.random.key_data(jax.random.key(3))), expected)
    assert_same_bits(made.init(np.asarray(jax.random.key_data(jax.random.key(3)))), expected)


@pytest.mark.optimized
@pytest.mark.parametrize("implementation", ["rbg", *slow("unsafe_rbg")])
def test_other_key_implementations(implementation):
    made = plan({"head": small_tree()["head"]}, [RULES[0], RULES[2]])
    keys = jax.random.split(jax.random.key(3, impl=implementation), 2)
    plain = [made.init(key) for key in keys]
    one, two = (plain[0]["head"][n]["kernel"] for n in (0, 1))
    assert content(one) != content(two)
    assert_same_bits(jax.jit(made.init)(keys[0]), plain[0])
    together = jax.vmap(made.init)(keys)
    assert_same_bits(jax.tree.map(lambda leaf: leaf[1], together), plain[1])


def test_other_leaves_change_nothing():
    tree = small_tree()
    before = plan(tree, RULES).init(jax.random.key(0))
    more = {"zzz": {"kernel": struct(6, 5)}, "aaa": {"kernel": struct(6, 5)}, **tree}
    after = plan(more, RULES).init(jax.random.key(0))
    assert_same_bits({name: after[name] for name in before}, before)
    fewer = {"dense": {"kernel": tree["dense"]["kernel"]}}
    alone = plan(fewer, [("**", "he_normal")]).init(jax.random.key(0))
    assert content(alone["dense"]["kernel"]) == content(before["dense"]["kernel"])


@pytest.mark.parametrize("order", [reversed, sorted])
def test_the_order_of_leaves_changes_nothing(order):
    @jax.tree_util.register_pytree_with_keys_class
    @dataclasses.dataclass
    class Ordered:
        items: dict

        def tree_flatten_with_keys(self):
            keys = jax.tree_util.DictKey
            return [(keys(name), child) for name, child in self.items.items()], tuple(self.items)

        @classmethod
        def tree_unflatten(cls, names, children):
            return cls(dict(zip(names, children, strict=True)))

    tree = {name: struct(4, 3) for name in ("b", "a", "c")}
    expected = plan(tree, [("*", "he_normal")]).init(jax.random.key(0))
    names = list(order(list(tree)))
    drawn = plan(Ordered({n: tree[n] for n in names}), [("*", "he_normal")]).init(jax.random.key(0))
    assert list(drawn.items) == names
    assert {name: content(drawn.items[name]) for name in names} == {
        name: content(expected[name]) for name in names
    }


NAMES = st.text("abc", min_size=1, max_size=3)
SHAPES = st.lists(st.integers(0, 3), max_size=3).map(tuple)
TREES = st.recursive(
    SHAPES.map(lambda shape: struct(*shape)),
    lambda children: st.dictionaries(NAMES, children, max_size=3) | st.lists(children, max_size=3),
    max_leaves=6,
)


@given(TREES)
@settings(max_examples=15)
def test_any_tree_comes_back_whole(tree):
    leaves = jax.tree.leaves(tree)
    made = plan(tree, [("**", init.constant(2.0))] if leaves else [])
    params = made.init(jax.random.key(0))
    assert jax.tree.structure(params) == jax.tree.structure(tree)
    assert [leaf.shape for leaf in jax.tree.leaves(params)] == [leaf.shape for leaf in leaves]
    assert all((np.asarray(leaf) == 2).all() for leaf in jax.tree.leaves(params))
    assert Plan.from_json(made.to_json(), like=tree) == made


# Frameworks.


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x):
        boxed = nn.with_partitioning(nn.initializers.lecun_normal(), ("in", None))
        x = nn.Dense(4, name="dense", kernel_init=boxed)(x)
        return nn.Dense(2, name="head")(nn.LayerNorm(name="norm")(x))


class Nnx(nnx.Module):
    def __init__(self, rngs):
        self.dense = nnx.Linear(3, 4, rngs=rngs)
        self.norm = nnx.LayerNorm(4, rngs=rngs)
        self.head = nnx.Linear(4, 2, rngs=rngs)

    def __call__(self, x):
        return self.head(self.norm(self.dense(x)))


def test_linen_boxes_stay_boxes():
    x = jnp.ones((2, 3))
    abstract = jax.eval_shape(Linen().init, jax.random.key(0), x)
    variables = plan(abstract, RULES).init(jax.random.key(1))
    kernel = variables["params"]["dense"]["kernel"]
    assert isinstance(kernel, nn.Partitioned)
    assert kernel.names == ("in", None)
    assert isinstance(kernel.value, jax.Array)
    assert Linen().apply(nn.unbox(variables), x).shape == (2, 2)


def test_linen_and_nnx_get_the_same_weights():
    abstract = jax.eval_shape(Linen().init, jax.random.key(0), jnp.ones((2, 3)))["params"]
    model = nnx.eval_shape(lambda: Nnx(nnx.Rngs(0)))
    key = jax.random.key(7)
    linen = nn.unbox(plan(abstract, RULES).init(key))
    state = plan(nnx.state(model, nnx.Param), RULES).init(key)
    whole = plan(model, RULES).init(key)
    assert isinstance(state, nnx.State)
    assert isinstance(whole, Nnx)
    assert_same_bits(nnx.to_pure_dict(state), linen)
    assert_same_bits(nnx.to_pure_dict(nnx.state(whole)), linen)
    nnx.update(model, state)
    x = jnp.ones((2, 3))
    assert content(model(x)) == content(whole(x))
    assert np.allclose(whole(x), Linen().apply({"params": linen}, x), atol=1e-6)


def test_nnx_under_jit_and_vmap():
    state = nnx.state(nnx.eval_shape(lambda: Nnx(nnx.Rngs(0))), nnx.Param)
    made, keys = plan(state, RULES), jax.random.split(jax.random.key(0), 2)
    assert_same_bits(jax.jit(made.init)(keys[0]), made.init(keys[0]))
    assert jax.vmap(made.init)(keys)["dense"]["kernel"].shape == (2, 3, 4)


def test_equinox():
    mlp = eqx.nn.MLP(3, 2, 8, 2, key=jax.random.key(0))
    arrays, rest = eqx.partition(mlp, eqx.is_array)
    rules = [("**/weight", init.he_normal(in_axis=-1, out_axis=-2)), ("**/bias", "zeros")]
    made = plan(arrays, rules)
    assert made["layers/0/weight"].fans == init.Fans(3.0, 8.0)
    drawn = eqx.combine(made.init(jax.random.key(1)), rest)
    assert isinstance(drawn, eqx.nn.MLP)
    assert drawn(jnp.ones(3)).shape == (2,)
    abstract = eqx.filter_eval_shape(eqx.nn.MLP, 3, 2, 8, 2, key=jax.random.key(0))
    abstract = eqx.filter(abstract, lambda leaf: isinstance(leaf, jax.ShapeDtypeStruct))
    again = eqx.combine(plan(abstract, rules).init(jax.random.key(1)), rest)
    assert content(again.layers[1].weight) == content(drawn.layers[1].weight)


# only= and keep=.


def test_only_some_leaves():
    made = plan(small_tree(), RULES)
    whole = made.init(jax.random.key(0))
    some = made.init(jax.random.key(0), only="dense/*")
    assert_same_bits(some["dense"], whole["dense"])
    assert some["head"] == small_tree()["head"]
    assert some["norm"]["scale"] == struct(5, dtype="bfloat16")
    drawn = made.init(
        jax.random.key(0), only=["**/bias", lambda path, leaf: leaf.dtype == jnp.bfloat16]
    )
    arrays = [
        leaf.path
        for leaf, x in zip(made, jax.tree.leaves(drawn), strict=True)
        if isinstance(x, jax.Array)
    ]
    assert arrays == ["dense/bias", "head/0/bias", "norm/scale"]


def test_keep_returns_the_same_objects():
    made = plan(small_tree(), RULES)
    loaded = {
        "dense": {"kernel": jnp.ones((6, 5)), "bias": np.ones(5, np.float32)},
        "norm": {"scale": struct(5, dtype="bfloat16")},
        "head": [None, {"kernel": jnp.ones((5, 3))}],
    }
    params = made.init(jax.random.key(0), keep=loaded)
    assert params["dense"]["kernel"] is loaded["dense"]["kernel"]
    assert params["dense"]["bias"] is loaded["dense"]["bias"]
    assert params["head"][1]["kernel"] is loaded["head"][1]["kernel"]
    whole = made.init(jax.random.key(0))
    assert_same_bits(params["norm"], whole["norm"])
    assert_same_bits(params["head"][0], whole["head"][0])


def test_only_goes_before_keep():
    made = plan(small_tree(), RULES)
    loaded = jax.tree.map(lambda leaf: jnp.full(leaf.shape, 7, leaf.dtype), small_tree())
    params = made.init(jax.random.key(0), keep=loaded, only="head/**")
    assert params["dense"]["kernel"] is loaded["dense"]["kernel"]
    assert_same_bits(params["head"], made.init(jax.random.key(0))["head"])
    assert (
        made.init(jax.random.key(0), keep=loaded)["head"][0]["kernel"]
        is (loaded["head"][0]["kernel"])
    )
    some = made.init(jax.random.key(0), keep={"dense": loaded["dense"]}, only="head/0/*")
    assert some["head"][1]["kernel"] == struct(5, 3)


def test_keep_is_matched_by_path():
    abstract = jax.eval_shape(Linen().init, jax.random.key(0), jnp.ones((2, 3)))["params"]
    kernel = jnp.ones((3, 4))
    params = plan(abstract, RULES).init(jax.random.key(0), keep={"dense/kernel": kernel})
    assert params["dense"]["kernel"].value is kernel


def test_keep_inside_jit():
    made = plan(small_tree(), RULES)
    kernel = jnp.ones((6, 5))
    drawn = jax.jit(lambda key, k: made.init(key, keep={"dense": {"kernel": k}}))(
        jax.random.key(0), kernel
    )
    assert_same_bits(drawn, made.init(jax.random.key(0), keep={"dense": {"kernel": kernel}}))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            {"only": "dense/kernal"},
            ValueError,
            r"'dense/kernal', which .* \(nearest: 'dense/kernel",
        ),
        ({"only": ["dense/*", "nothing"]}, ValueError, "got 'nothing', which matches none"),
        ({"only": 3}, TypeError, "in only=, needs a pattern"),
        ({"only": "{a"}, ValueError, "in only=, needs a glob whose braces are closed"),
        (
            {"keep": {"dens": jnp.ones(3)}},
            ValueError,
            "keep= to hold leaves of the plan, .* 'dens'",
        ),
        (
            {"keep": {"dense": {"kernel": jnp.ones((5, 6)), "bias": jnp.ones(5, "int32")}}},
            ValueError,
            r"'dense/bias' of shape \(5,\) and int32 .*'dense/kernel' of shape \(5, 6\)",
        ),
        ({"keep": {"dense": {"bias": 1.5}}}, TypeError, "arrays in keep=, got 1.5 .*'dense/bias'"),
        ({"out_shardings": 3}, TypeError, "out_shardings made of shardings, got 3"),
    ],
)
def test_wrong_arguments_of_init(arguments, error, message):
    with pytest.raises(error, match=f"^plan.init.*{message}"):
        plan(small_tree(), RULES).init(jax.random.key(0), **arguments)


@pytest.mark.parametrize(
    ("key", "error", "message"),
    [
        (0, TypeError, "a JAX random key, got 0"),
        (jnp.zeros(2), TypeError, "array of dtype float32"),
        (np.zeros(5, np.uint32), ValueError, r"raw key data .* got uint32 of shape \(5,\)"),
        (
            jnp.zeros((3, 2), jnp.uint32),
            ValueError,
            r"one key, got a batch .* jax.vmap",
        ),
    ],
)
def test_a_key_of_the_wrong_kind(key, error, message):
    with pytest.raises(error, match=f"^plan.init needs .*{message}"):
        plan(small_tree(), RULES).init(key)


# Shardings.


WIDE_RULES = [("**/kernel", "he_normal"), ("**/bias", "zeros")]


def wide_tree() -> dict:
    return {"w": {"kernel": struct(32, 64), "bias": struct(64)}, "v": {"kernel": struct(64, 32)}}


def specs(params) -> list:
    return [leaf.sharding.spec for leaf in jax.tree.leaves(params)]


def test_one_sharding_for_all(mesh):
    made, key = plan(wide_tree(), WIDE_RULES), jax.random.key(0)
    params = made.init(key, out_shardings=NamedSharding(mesh, P("a")))
    assert specs(params) == [P("a")] * 3
    assert_same_bits(params, made.init(key))
    with jax.set_mesh(mesh):
        assert specs(made.init(key, out_shardings=P("b"))) == [P("b")] * 3


def test_a_tree_of_shardings(mesh):
    rows, columns = NamedSharding(mesh, P("a")), NamedSharding(mesh, P(None, "b"))
    # A sharding higher up holds for all below, None says nothing.
    wishes = {"w": rows, "v": {"kernel": columns}}
    made = plan(wide_tree(), WIDE_RULES, out_shardings=wishes)
    assert [leaf.sharding for leaf in made] == [columns, rows, rows]
    params = made.init(jax.random.key(0))
    assert specs(params) == [P(None, "b"), P("a"), P("a")]
    assert_same_bits(params, plan(wide_tree(), WIDE_RULES).init(jax.random.key(0)))
    # The call goes before the plan, the plan before the tree.
    over = made.init(jax.random.key(0), out_shardings={"v": {"kernel": rows}, "w": None})
    assert specs(over) == [P("a"), P("a"), P("a")]
    tree = jax.tree.map(lambda leaf: leaf.update(sharding=rows), wide_tree())
    assert specs(plan(tree, WIDE_RULES).init(jax.random.key(0))) == [P("a")] * 3
    again = plan(tree, WIDE_RULES, out_shardings={"v": columns}).init(jax.random.key(0))
    assert specs(again) == [P(None, "b"), P("a"), P("a")]


def test_shardings_of_boxes_and_states(mesh):
    abstract = jax.eval_shape(Linen().init, jax.random.key(0), jnp.ones((2, 8)))
    wishes = nn.get_sharding(abstract, make_mesh(AxisType.Explicit, (2,), names=("in",)))
    made = plan(abstract, RULES, out_shardings=wishes)
    assert made["params/dense/kernel"].sharding.spec == P("in", None)
    kernel = made.init(jax.random.key(0))["params"]["dense"]["kernel"]
    assert kernel.value.sharding.spec == P("in", None)


@pytest.mark.optimized
def test_sharded_under_jit(mesh):
    wish = NamedSharding(mesh, P("a"))
    whole = plan(wide_tree(), WIDE_RULES)
    made = plan(wide_tree(), WIDE_RULES, out_shardings=wish)
    inner = jax.jit(made.init)(jax.random.key(0))
    outer = jax.jit(whole.init, out_shardings=wish)(jax.random.key(0))
    for params in (inner, outer):
        assert all(x.sharding.is_equivalent_to(wish, x.ndim) for x in jax.tree.leaves(params))
        assert_same_bits(params, whole.init(jax.random.key(0)))


def test_leaves_that_are_not_drawn_say_where_they_belong(mesh):
    wish = NamedSharding(mesh, P("a"))
    some = plan(wide_tree(), WIDE_RULES).init(jax.random.key(0), only="v/*", out_shardings=wish)
    assert some["w"]["bias"] == struct(64).update(sharding=wish)


def test_wrong_shardings(mesh):
    odd = NamedSharding(mesh, P("a"))
    tree = {"kernel": struct(6, 5), "bias": struct(5)}
    rules = [("kernel", "he_normal"), ("bias", "zeros")]
    with pytest.raises(
        ValueError, match=r"^plan needs a sharding that divides 'bias' of shape \(5,"
    ):
        plan(tree, rules, out_shardings=odd)
    with pytest.raises(ValueError, match=r"^plan.init needs .*'kernel' of shape \(6, 5\)"):
        plan(tree, rules).init(jax.random.key(0), out_shardings={"kernel": odd})
    with pytest.raises(ValueError, match="at most 1 dimensions for 'bias'"):
        plan(tree, rules, out_shardings={"bias": P(None, "a")})
    with pytest.raises(ValueError, match=r"got them for 'kernal' \(nearest: 'kernel'\)"):
        plan(tree, rules, out_shardings={"kernal": odd})
    with pytest.raises(TypeError, match="got 'a' at 'kernel'"):
        plan(tree, rules, out_shardings={"kernel": "a"})


def test_a_partition_needs_a_mesh(mesh):
    made = plan(wide_tree(), WIDE_RULES, out_shardings=P("a"))
    with pytest.raises(
        ValueError, match=r"^plan.init needs a mesh to place 'v/kernel' as .*set_mesh"
    ):
        made.init(jax.random.key(0))
    with jax.set_mesh(mesh):
        assert specs(made.init(jax.random.key(0))) == [P("a")] * 3
        with pytest.raises(ValueError, match=r"needs axes of the mesh in context .*'v/kernel'"):
            made.init(jax.random.key(0), out_shardings=P("c"))
        with pytest.raises(ValueError, match="divides 'kernel'"):
            plan({"kernel": struct(6)}, [("*", "zeros")], out_shardings=P("a")).init(
                jax.random.key(0)
            )


# What a leaf knows about itself.


def test_axes_of_the_model_go_before_defaults():
    axes = init.Axes((0,), (1, 2), ())
    tree = {"query": ParamSpec((64, 4, 16), "float32", axes=axes)}
    leaf = plan(tree, [("query", "lecun_normal")])["query"]
    assert leaf.fans == init.Fans(64.0, 64.0)
    by_hand = init.lecun_normal(in_axis=2, out_axis=0)
    assert plan(tree, [("query", by_hand)])["query"].initializer == by_hand


def test_groups_and_strides_of_the_model():
    axes = init.Axes((-2,), (-1,), ())
    spec = ParamSpec((3, 3, 1, 32), "float32", axes=axes, groups=32)
    leaf = plan({"kernel": spec}, [("kernel", "glorot_normal")])["kernel"]
    assert leaf.fans == init.Fans(9.0, 9.0)
    spec = ParamSpec((4, 4, 8, 8), "float32", axes=axes, transposed_strides=(2, 2))
    leaf = plan({"kernel": spec}, [("kernel", "lecun_normal")])["kernel"]
    assert leaf.fans == init.Fans(32.0, 128.0)


def test_stacked_layers_have_the_law_of_one():
    axes = init.Axes((0,), (1,), ())
    tree = {
        "kernel": ParamSpec((12, 64, 32), "float32", axes=axes, stack_axes=(0,)),
        "bias": ParamSpec((12, 32), "float32", stack_axes=(0,)),
        "noise": ParamSpec((12, 32), "float32", stack_axes=(0,)),
    }
    made = plan(tree, [("kernel", "lecun_normal"), ("bias", "zeros"), ("noise", "normal")])
    assert made["kernel"].fans == init.Fans(64.0, 32.0)
    assert made["kernel"].law.std == pytest.approx(1 / 8)
    assert repr(made["kernel"].initializer).startswith("stacked(lecun_normal(")
    assert made["bias"].initializer == init.zeros
    assert made["noise"].initializer == init.stacked(init.normal())
    kernel = np.asarray(made.init(jax.random.key(0))["kernel"])
    assert len({layer.tobytes() for layer in kernel}) == 12
    # A rule that stacks by itself is not stacked twice.
    once = plan({"kernel": tree["kernel"]}, [("kernel", init.stacked(init.lecun_normal()))])
    assert once["kernel"].initializer == made["kernel"].initializer


# Errors when the plan is made.


@pytest.mark.parametrize(
    ("leaf", "rule", "error", "message"),
    [
        (struct(5), "he_normal", ValueError, "he_normal needs a shape with"),
        (struct(5, 5, dtype="int32"), "he_normal", TypeError, "needs a complex or float dtype"),
        (struct(3, 4), init.he_normal(in_axis=5), ValueError, "he_normal needs"),
        (
            struct(5),
            init.constant([1.0, 2.0]),
            ValueError,
            "constant needs a value that broadcasts",
        ),
        (struct(4, 3, dtype="float16"), init.normal(1e6), ValueError, "float16"),
        (
            struct(
                4,
            ),
            "delta_orthogonal",
            ValueError,
            "delta_orthogonal",
        ),
    ],
)
def test_a_law_that_makes_no_sense(leaf, rule, error, message):
    with pytest.raises(error, match=f"^plan cannot draw 'x' of shape .* by rule 0 .*{message}"):
        plan({"x": leaf}, [("*", rule)])


def test_all_offenders_are_named():
    tree = {f"b{n}": struct(5) for n in range(12)} | {"i": struct(3, dtype="int32")}
    with pytest.raises(ValueError, match=r"^plan cannot draw") as error:
        plan(tree, [("b*", "he_normal"), ("i", "normal")])
    text = str(error.value)
    assert "'b0' of shape (5,) and float32, " in text
    assert "and 2 more by rule 0 'b*'" in text
    assert "Nor 'i' of shape (3,) and int32 by rule 1 'i'" in text


def test_64_bits_need_to_be_on():
    made = plan({"w": struct(3, dtype="float64")}, [("w", "normal")])
    with pytest.raises(ValueError, match=r"^plan.init needs 64-bit types to draw 'w' as float64"):
        made.init(jax.random.key(0))


def test_64_bits(x64):
    made = plan({"w": struct(3, 2, dtype="float64")}, [("w", "he_normal")])
    assert made.init(jax.random.key(0))["w"].dtype == np.float64
    made = plan({"w": np.zeros((3, 2))}, [("w", "he_normal")])
    assert made["w"].dtype == np.float64


# A plan as a value.


def test_what_a_plan_says():
    made = plan(small_tree(), RULES)
    assert made.paths[:2] == ("dense/bias", "dense/kernel")
    assert [leaf.path for leaf in made] == list(made.paths)
    assert len(made) == 6
    assert "dense/kernel" in made
    assert "dense" not in made
    assert made.size == 5 + 30 + 3 + 15 + 15 + 5
    assert made.nbytes == 4 * (made.size - 5) + 2 * 5
    with pytest.raises(KeyError, match=r"no leaf 'dense/kernal' \(nearest: 'dense/kernel'"):
        made["dense/kernal"]


def test_groups_share_a_program():
    made = plan(small_tree(), RULES)
    assert [leaf.group for leaf in made] == [0, 1, 2, 3, 3, 4]
    group = made.groups[3]
    assert [leaf.path for leaf in group.leaves] == ["head/0/kernel", "head/1/kernel"]
    assert (group.index, group.size, group.nbytes) == (3, 30, 120)


def test_plans_compare_by_what_they_draw():
    one = plan(small_tree(), RULES)
    assert one == plan(small_tree(), [("**/{kernel,nothing}", init.he_normal()), *RULES[1:]])
    assert hash(one) == hash(plan(small_tree(), RULES))
    assert one != plan(small_tree(), [("**/kernel", "lecun_normal"), *RULES[1:]])
    assert one != plan({"dense": small_tree()["dense"]}, [RULES[0], RULES[2]])


def test_the_table():
    tree = {
        "dense": {"kernel": struct(64, 256), "bias": struct(256)},
        "norm": {"scale": struct(256)},
    }
    made = plan(tree, [("**/kernel", "lecun_uniform"), ("**/scale", "ones"), ("**", "zeros")])
    assert (
        str(made)
        == """\
Plan: 3 leaves in 3 groups, 16,896 entries, 67,584 bytes
path          shape      dtype    initializer      fan_in  fan_out    std  group
────────────────────────────────────────────────────────────────────────────────
dense/bias    (256,)     float32  zeros                                 0      0
dense/kernel  (64, 256)  float32  lecun_uniform()      64      256  0.125      1
norm/scale    (256,)     float32  ones                                  0      2"""
    )
    assert repr(made) == str(made)


def test_a_long_table_is_cut_in_repr_only():
    tree = {f"layer_{n:03}": struct(3) for n in range(200)}
    made = plan(tree, [("*", "zeros")])
    assert len(str(made).splitlines()) == 203
    assert repr(made).splitlines()[-1] == "... and 140 more leaves; print(plan) shows them all"
    assert len(repr(made).splitlines()) == 64


def test_the_difference_of_two_plans():
    before = plan(small_tree(), RULES)
    tree = small_tree()
    tree["dense"]["kernel"] = struct(6, 7)
    tree["dense"]["gate"] = tree["dense"].pop("bias")
    tree["norm"]["scale"] = struct(5)
    after = plan(tree, [("head/1/*", "lecun_normal"), ("**/gate", "ones"), *RULES])
    diff = before.diff(after)
    assert diff
    assert diff.added == ("dense/gate",)
    assert diff.removed == ("dense/bias",)
    assert [(c.path, c.what, str(c.before), str(c.after)) for c in diff.changed] == [
        ("dense/kernel", "shape", "(6, 5)", "(6, 7)"),
        ("head/1/kernel", "initializer", "he_normal()", "lecun_normal()"),
        ("norm/scale", "dtype", "bfloat16", "float32"),
    ]
    assert str(diff).splitlines()[2:] == [
        "dense/bias     removed",
        "dense/gate     added",
        "dense/kernel   shape        (6, 5)       (6, 7)",
        "head/1/kernel  initializer  he_normal()  lecun_normal()",
        "norm/scale     dtype        bfloat16     float32",
    ]
    assert not before.diff(plan(small_tree(), RULES))
    assert str(before.diff(before)) == "The plans draw the same."
    with pytest.raises(TypeError, match=r"plan\.diff needs another plan, got 3"):
        before.diff(3)


def test_the_difference_in_shardings(mesh):
    before = plan(wide_tree(), WIDE_RULES)
    after = plan(wide_tree(), WIDE_RULES, out_shardings={"w": NamedSharding(mesh, P("a"))})
    rows = [(c.path, c.what) for c in before.diff(after).changed]
    assert rows == [("w/bias", "sharding"), ("w/kernel", "sharding")]
    assert str(before.diff(after)).count("on {'a': 4, 'b': 2}") == 2


def test_progress_counts_what_is_drawn():
    told = []
    made = plan(small_tree(), RULES)
    made.init(jax.random.key(0), only="**/kernel", progress=lambda *numbers: told.append(numbers))
    assert [(done, leaves, total) for done, leaves, _, total in told] == [
        (number, 3, 240) for number in (1, 2, 3)
    ]
    # Programs are called in the order in which they are compiled, which is nobody's to say.
    steps = np.diff([0, *(nbytes for _, _, nbytes, _ in told)])
    assert sorted(steps) == [60, 60, 120]


# Work, counted instead of timed.


@dataclasses.dataclass(frozen=True, repr=False)
class Counting(init.BaseInitializer):
    """Counts how often its law is asked for and its draw is traced."""

    name = "counting"
    laws = 0
    traces = 0

    def sample(self, key, shape, dtype):
        type(self).traces += 1
        return jax.random.normal(key, shape, dtype)

    def exact_law(self, shape, is_complex):
        type(self).laws += 1
        return init.normal(1.0).exact_law(shape, is_complex)


def test_the_work_follows_kinds_and_not_leaves():
    tree = {f"l{n}": {"kernel": struct(3, 4), "bias": struct(4)} for n in range(1_000)}
    Counting.laws = Counting.traces = 0
    made = plan(tree, [("**", Counting())])
    assert len(made.groups) == 2
    assert Counting.laws <= 2 * 3
    made.init(jax.random.key(0))
    made.init(jax.random.key(1))
    assert Counting.traces == 2


def test_nothing_is_allocated_before_init():
    petabyte = {"kernel": struct(2**24, 2**24)}
    made = plan(petabyte, [("kernel", "lecun_normal")])
    assert made.nbytes == 2**50
    assert jax.eval_shape(made.init, jax.random.key(0)) == petabyte


# What the model draws itself.


def test_own_leaves_are_kept_where_they_are_given():
    tree = {"w": struct(4, 2), "stats": {"mean": struct(2)}}
    p = plan(tree, [("w", "he_normal"), ("stats/*", init.own)])
    mean = np.full(2, 3, "float32")
    old = p.init(KEY, keep={"stats": {"mean": mean}})
    assert (old["stats"]["mean"] == mean).all()
    old_w = np.asarray(old["w"])
    fresh = p.init(jax.random.key(1), donate=jax.tree.map(jnp.asarray, old))
    assert (fresh["stats"]["mean"] == mean).all() and (fresh["w"] != old_w).any()
    assert "law unknown" in str(p) and p.estimate().nbytes == 32
    assert isinstance(p.init(KEY, only="w")["stats"]["mean"], jax.ShapeDtypeStruct)
    assert Plan.from_json(p.to_json(), like=tree) == p


def test_own_leaves_that_nobody_gives():
    """The error says what to write, and that draws the other leaves."""
    p = plan({"w": struct(4), "v": struct(4)}, [("w", "ones"), ("v", init.own)])
    message = r"an array, or the model, for every leaf .* got neither for 'v'\. Pass .* donate=mod"
    with pytest.raises(ValueError, match=message):
        p.init(KEY, keep={"w": np.zeros(4, "float32")})
    made = p.init(KEY, donate={"w": jnp.zeros(4), "v": jnp.full(4, 2.0)})
    assert made["w"].tolist() == [1] * 4 and made["v"].tolist() == [2] * 4


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg"])
def test_random_keys_are_the_models_whatever_the_rules_say(impl):
    tree = {"w": struct(4), "key": jax.random.key(3, impl=impl)}
    for rules in ([("**", "ones")], [("w", "ones")], [("w", "ones"), ("key", init.own)]):
        p = plan(tree, rules)
        assert p["key"].initializer == init.own and p["key"].rule == "random key"
        made = p.init(KEY, donate=tree | {"w": jnp.zeros(4)})
        assert made["key"] is tree["key"] and made["w"].tolist() == [1] * 4
        assert Plan.from_json(p.to_json()) == plan(dict(p.init(KEY, only="w")), rules)
    with pytest.raises(ValueError, match=r"that the model draws itself .* 'key'"):
        p.init(KEY)


def test_a_plain_function_in_a_rule():
    def ramp(key, shape, dtype):
        return jnp.arange(shape[0], dtype=dtype)

    p = plan({"a": struct(3), "b": struct(4)}, [("*", ramp)])
    assert p.init(KEY)["b"].tolist() == [0, 1, 2, 3]
    assert "ramp" in str(p) and "law unknown" in str(p) and not p["a"].law.known
    with pytest.raises(TypeError, match=r"plan.to_json needs initializers that have a config"):
        p.to_json()
    assert_laws(p.init(KEY), p)
    with pytest.raises(CheckError, match="finite"):
        assert_laws({"a": p.init(KEY)["a"] / 0, "b": p.init(KEY)["b"]}, p)
    reading = jaxinit.read(lambda p, x: jnp.sum(x * p["a"]) * p["b"], p.init(KEY), jnp.ones(3))
    assert jaxinit.advise(reading, init=p).findings == jaxinit.advise(reading).findings


def test_what_has_no_law_is_predicted_as_unknown():
    shapes = {"a": struct(8, 16), "b": struct(16, 4)}
    reading = jaxinit.read(lambda p, x: x @ p["a"] @ p["b"], shapes, struct(2, 8))
    layers = jaxinit.predict(reading, plan(shapes, [("a", init.own), ("b", "he_normal")])).layers
    assert [layer.path for layer in layers] == ["a", "b"]
    assert {layer.why for layer in layers} == {"the law of 'a' is unknown"}


def test_a_function_that_draws_the_wrong_shape():
    with pytest.raises(ValueError, match=r"plan cannot draw 'a' of shape \(2,\) .* got \(3,\)"):
        plan({"a": struct(2)}, [("a", lambda key, shape, dtype: jnp.zeros(3))])


def test_one_initializer_for_each_layer_of_a_stack():
    values = [init.constant(n / 4) for n in range(3)]
    p = plan({"w": struct(3, 5, 2)}, [("w", values)])
    assert p.init(KEY)["w"][:, 0, 0].tolist() == [0, 0.25, 0.5]
    assert Plan.from_json(p.to_json())["w"] == p["w"]
    spec = ParamSpec((5, 3, 2), np.dtype("float32"), axes=init.Axes(-2, -1), stack_axes=(1,))
    kernel = plan({"w": spec}, [("w", ["he_normal", "he_normal", "zeros"])])["w"]
    assert [slab.law.variance for slab in kernel.law.slabs] == [2 / 5, 0]
    with pytest.raises(ValueError, match=r"for each layer along axis 0 of \(3,\), got 2"):
        plan({"w": struct(3)}, [("w", ["zeros", "ones"])])


@pytest.mark.parametrize(
    "frozen",
    [
        "a/*",
        ["a/kernel"],
        {"a": {"kernel": True}, "b": False},
        lambda tree: {"a": {"kernel": True}},
    ],
)
def test_frozen_leaves_are_kept(frozen):
    """Rules that take frozen leaves alone are no mistakes."""
    tree = {"a": {"kernel": struct(2, 3)}, "b": struct(3)}
    p = plan(tree, [("a/kernel", "he_normal"), ("b", "zeros")], frozen=frozen)
    assert (p["a/kernel"].initializer, p["b"].initializer) == (init.own, init.zeros)
    kept = np.ones((2, 3), "float32")
    assert (p.init(KEY, keep={"a": {"kernel": kept}})["a"]["kernel"] == kept).all()


@pytest.mark.parametrize(
    ("frozen", "error", "match"),
    [
        ("w", ValueError, r"every pattern in frozen= to match a leaf, got 'w'"),
        ({"w": True}, ValueError, r"booleans for leaves of the tree, got True at 'w'"),
        ({"a": 1}, TypeError, r"booleans for leaves of the tree, got 1 at 'a'"),
        (
            nnx.LoRAParam,
            ValueError,
            r"frozen= to name a leaf, got .*LoRAParam.*, which",
        ),
    ],
)
def test_what_cannot_be_frozen(frozen, error, match):
    with pytest.raises(error, match=match):
        plan({"a": struct(3)}, [("a", "zeros")], frozen=frozen)
