"""Shardings by path, and functions of shapes as ``out_shardings``: as they say, so it is made."""

from __future__ import annotations

import pickle
import re

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import io_callback
from jax.sharding import AbstractMesh, AxisType, NamedSharding, PartitionSpec

import jaxinit
from helpers import BOTH_AXIS_TYPES, COLLECTIVES, assert_same, make_mesh, slow

pytestmark = pytest.mark.unoptimized

P = PartitionSpec
KEY = jax.random.key(0)
RULES = [("**/kernel", P("a", "b")), ("**/bias", P("b")), ("seed", None), ("**", P())]

# Rows of a shard are to be longer than a vector: see `jaxinit.engine._draws`.
WIDE = 256


@pytest.fixture(params=[*slow(AxisType.Auto), AxisType.Explicit], ids=["auto", "explicit"])
def mesh(devices, request):
    return make_mesh(request.param)


def init(key):
    """Kernels of one kind, constants, an integer, a key: `jit_init` makes each in its own way."""
    layers = [
        {"kernel": jax.random.normal(k, (64, WIDE)) * 0.1, "bias": jnp.zeros(WIDE)}
        for k in jax.random.split(key, 3)
    ]
    return {"layers": layers, "step": jnp.int32(3), "seed": key}


def abstract():
    return jax.eval_shape(init, KEY)


def assert_own_shards(tree):
    """Every device holds the part that its sharding gives it, and nothing else."""
    for leaf in jax.tree.leaves(tree):
        wanted = leaf.sharding.shard_shape(leaf.shape)
        assert [s.data.shape for s in leaf.addressable_shards] == [wanted] * len(
            leaf.sharding.device_set
        )


# A function of shapes.


def test_every_leaf_gets_the_sharding_of_its_rule(mesh):
    placed = jaxinit.sharding_rules(mesh, RULES)(abstract())
    kernel, bias = NamedSharding(mesh, P("a", "b")), NamedSharding(mesh, P("b"))
    layer = {"kernel": kernel, "bias": bias}
    assert placed == {"layers": [layer] * 3, "step": NamedSharding(mesh, P()), "seed": None}


def test_patterns_are_those_of_a_plan(mesh):
    def is_flat(path, leaf):
        return len(leaf.shape) < 2

    own = NamedSharding(mesh, P(None, "a"))
    rules = {re.compile("kernel$"): own, is_flat: P()}
    placed = jaxinit.sharding_rules(mesh, rules)(abstract())
    assert placed["layers"][1] == {"kernel": own, "bias": NamedSharding(mesh, P())}
    assert placed["seed"].spec == P()


def test_boxes_arrays_and_specs(mesh):
    box = nn.Partitioned(jax.ShapeDtypeStruct((8, 4), "float32"), names=("x", None))
    spec = jaxinit.ParamSpec((8,), np.dtype("float32"))
    tree = {"box": box, "array": np.zeros(8), "spec": spec}
    rows = NamedSharding(mesh, P("a"))
    placed = jaxinit.sharding_rules(mesh, [("*", P("a"))])(tree)
    assert placed == {"box": box.replace(value=rows), "array": rows, "spec": rows}


def test_rules_are_values(mesh):
    rules, same = (jaxinit.sharding_rules(mesh, list(RULES)) for _ in range(2))
    assert rules == same and hash(rules) == hash(same) and len({rules, same}) == 1
    assert rules != jaxinit.sharding_rules(mesh, RULES[1:])
    rules(abstract())
    assert rules == same and f"('**/kernel', {P('a', 'b')!r})" in repr(rules)


def test_rules_on_an_abstract_mesh_travel():
    # A mesh of devices cannot be pickled, in JAX itself.
    mesh = AbstractMesh((4, 2), ("a", "b"))
    rules = jaxinit.sharding_rules(mesh, RULES)
    again = pickle.loads(pickle.dumps(rules))
    assert again == rules and again(abstract()) == rules(abstract())


@pytest.mark.parametrize(
    ("rules", "error", "message"),
    [
        (
            3,
            TypeError,
            r"^sharding_rules needs rules as a list of \(pattern, spec\), got 3\. Write",
        ),
        (["*"], TypeError, r"to be a pair \(pattern, spec\), got '\*' as rule 0\. Write"),
        ([("*", "a")], TypeError, r"in rule 0, needs a PartitionSpec.*got 'a' of type str\. Write"),
        ([(3, P())], TypeError, r"^sharding_rules, in rule 0, needs a pattern that is a glob"),
        ([("[", P())], ValueError, r"^sharding_rules, in rule 0, needs a glob"),
        (
            [("*", P()), ("w", P("c"))],
            ValueError,
            r"^sharding_rules needs axes of the mesh in rule 1 'w', got .*'c'.* on {'a': 4, 'b': 2}"
            r"\. Use each of 'a', 'b'",
        ),
        ([("*", P("a", "a"))], ValueError, "at most once"),
    ],
)
def test_malformed_rules(devices, rules, error, message):
    mesh = make_mesh(AxisType.Explicit)
    with pytest.raises(error, match=message):
        jaxinit.sharding_rules(mesh, rules)


def test_no_mesh():
    with pytest.raises(TypeError, match=r"^sharding_rules needs a mesh, got 8 of type int\. Make"):
        jaxinit.sharding_rules(8, RULES)


@pytest.mark.parametrize(
    ("rules", "error", "message"),
    [
        ([*RULES, ("none", P())], ValueError, "rule 4 'none' matches no leaf"),
        ([("**", P()), ("step", None)], ValueError, r"rule 1 'step' is shadowed.*rule 0 '\*\*'"),
        (RULES[:1], ValueError, "5 leaves have no rule: 'layers/0/bias'.*Correct the patterns"),
        (
            [("step", P("a")), ("**", None)],
            ValueError,
            r"^sharding_rules, in rule 0 'step', needs a sharding of at most 0 dim.*Leave out",
        ),
    ],
)
def test_rules_that_do_not_fit_the_tree(devices, rules, error, message):
    mesh = make_mesh(AxisType.Explicit)
    placed = jaxinit.sharding_rules(mesh, rules)
    with pytest.raises(error, match=message):
        placed(abstract())
    with pytest.raises(error, match=message):
        jaxinit.jit_init(init, out_shardings=placed)(KEY)


def test_leaves_that_cannot_be_placed(devices):
    mesh = make_mesh(AxisType.Explicit, (8,), names=("a",))
    with pytest.raises(ValueError, match=r"rule 0 'w', needs a sharding that divides 'w' of shape"):
        jaxinit.sharding_rules(mesh, [("w", P("a"))])({"w": np.zeros(12)})
    with pytest.raises(TypeError, match=r"^sharding_rules needs leaves with a shape.*at 'w'"):
        jaxinit.sharding_rules(mesh, [("w", P())])({"w": "name"})


# In jit_init.


@pytest.mark.optimized
@pytest.mark.parametrize("in_context", [False, True])
def test_jit_init_is_jit_with_the_tree(mesh, in_context):
    rules = jaxinit.sharding_rules(mesh, RULES)
    fast = jaxinit.jit_init(init, out_shardings=rules)
    whole = jax.jit(init, out_shardings=rules(abstract()))
    if in_context:
        with jax.set_mesh(mesh):
            ours, theirs = fast(KEY), whole(KEY)
            told = fast.explain(KEY)
    else:
        ours, theirs = fast(KEY), whole(KEY)
        told = fast.explain(KEY)
    assert_same(ours, theirs)
    assert_own_shards(ours["layers"])
    assert ours["layers"][2]["kernel"].addressable_shards[0].data.shape == (16, WIDE // 2)
    assert set(told.fallback.values()) <= {"returned as it came"}


def test_a_function_is_asked_once_a_trace(mesh):
    asked = []

    def place(tree):
        asked.append(tree)
        return jax.tree.map(lambda leaf: NamedSharding(mesh, P("a")), tree)

    def draw(key, rows):
        return {"w": jax.random.normal(key, (rows, WIDE)) * 0.1}

    fast = jaxinit.jit_init(draw, out_shardings=place, static_argnums=1)
    for rows in (8, 16, 8, 16):
        wanted = jax.jit(draw, out_shardings=NamedSharding(mesh, P("a")), static_argnums=1)
        assert_same(fast(KEY, rows), wanted(KEY, rows))
    fast.explain(KEY, 16)
    assert asked == [{"w": jax.ShapeDtypeStruct((rows, WIDE), "float32")} for rows in (8, 16)]


def test_a_prefix_partial_wishes_and_specs_in_context(mesh):
    def place(tree):
        return {"layers": P("a"), "step": None, "seed": P()}

    with jax.set_mesh(mesh):
        ours = jaxinit.jit_init(init, out_shardings=place)(KEY)
        assert_same(ours, jax.jit(init, out_shardings=place(None))(KEY))
    assert_same(jaxinit.jit_init(init, out_shardings=lambda tree: None)(KEY), jax.jit(init)(KEY))


def test_every_path_of_a_call_honours_it(devices):
    mesh = make_mesh(AxisType.Explicit, (8,), names=("a",))
    rows = NamedSharding(mesh, P("a"))
    calls = []

    def draw(key):
        return {"w": jax.random.normal(key, (16, WIDE)), "n": jax.random.normal(key, (8, 8)).sum(0)}

    def loud(key):
        io_callback(calls.append, None, 1)
        return draw(key)

    rules = jaxinit.sharding_rules(mesh, [("*", P("a"))])
    fast, whole = jaxinit.jit_init(draw, out_shardings=rules), jax.jit(draw, out_shardings=rows)
    # Together: the sum.
    assert_same(fast(KEY), whole(KEY))
    assert list(fast.explain(KEY).fallback) == ["n"]
    # Whole.
    assert_same(jaxinit.jit_init(loud, out_shardings=rules)(KEY), whole(KEY))
    jax.effects_barrier()
    assert calls == [1]
    with jax.threefry_partitionable(False):
        assert_same(fast(KEY), whole(KEY))
    # Inside of other traces.
    assert_same(jax.jit(lambda key: fast(key))(KEY), jax.jit(lambda key: whole(key))(KEY))
    struct = jax.eval_shape(fast, KEY)["w"]
    assert (struct.shape, struct.dtype) == ((16, WIDE), np.dtype("float32"))


def test_a_tree_that_can_be_called_is_a_tree(devices):
    rows = NamedSharding(make_mesh(AxisType.Explicit, (8,), names=("a",)), P("a"))

    def draw(key):
        return eqx.filter(eqx.nn.Linear(8, 8, key=key), eqx.is_array)

    shardings = jax.tree.map(lambda _: rows, jax.eval_shape(draw, KEY))
    assert callable(shardings)
    ours = jaxinit.jit_init(draw, out_shardings=shardings)(KEY)
    assert_same(ours, jax.jit(draw, out_shardings=shardings)(KEY))


@pytest.mark.parametrize(
    ("place", "error", "message"),
    [
        (lambda tree: "a", TypeError, r"to return shardings, got 'a' of type str.*Return Named"),
        (lambda tree: tree, TypeError, r"to return shardings, got ShapeDtypeStruct"),
        (
            lambda tree: {"w": P()},
            ValueError,
            r"a tree like the one it is given, got .*jax.tree.map",
        ),
    ],
)
def test_functions_that_place_nothing(place, error, message):
    with pytest.raises(error, match=rf"^jit_init needs a function in out_shardings.*{message}"):
        jaxinit.jit_init(init, out_shardings=place)(KEY)
    made = jaxinit.plan({"a": {"b": np.zeros(2)}}, [("**", "zeros")])
    with pytest.raises(error, match=rf"^plan.init needs a function in out_shardings.*{message}"):
        made.init(KEY, out_shardings=place)


# In plans.

PLAN = [("**/kernel", "he_normal"), ("**/bias", "zeros")]


def planned_tree():
    return {"layers": abstract()["layers"]}


def test_plans_take_the_same_function(mesh):
    rules = jaxinit.sharding_rules(mesh, RULES[:2])
    plain = jaxinit.plan(planned_tree(), PLAN)
    ours = plain.init(KEY, out_shardings=rules)
    assert_same(ours, plain.init(KEY, out_shardings=rules(planned_tree())))
    assert_own_shards(ours)
    made = jaxinit.plan(planned_tree(), PLAN, out_shardings=rules)
    assert made["layers/0/kernel"].sharding == NamedSharding(mesh, P("a", "b"))
    assert_same(made.init(KEY), ours)
    with pytest.raises(ValueError, match="rule 2 'seed' matches no leaf"):
        plain.init(KEY, out_shardings=jaxinit.sharding_rules(mesh, RULES))


# What it is for.


@pytest.mark.optimized
@pytest.mark.slow
@BOTH_AXIS_TYPES
def test_values_do_not_depend_on_the_mesh(devices, kind):
    fast = jaxinit.jit_init(init)
    made = jaxinit.plan(planned_tree(), PLAN)
    prints = (
        {jaxinit.fingerprint(fast(KEY)["layers"]).tree},
        {jaxinit.fingerprint(made.init(KEY)).tree},
    )
    for count in (1, 2, 4, 8):
        mesh = make_mesh(kind, (count,), names=("a",))
        rules = jaxinit.sharding_rules(mesh, [("**/kernel", P("a")), ("**", P())])
        tree = jaxinit.jit_init(lambda key: init(key)["layers"], out_shardings=rules)(KEY)
        planned = made.init(KEY, out_shardings=rules)
        assert tree[0]["kernel"].addressable_shards[-1].data.shape == (64 // count, WIDE)
        assert_own_shards([tree, planned])
        prints[0].add(jaxinit.fingerprint(tree).tree)
        prints[1].add(jaxinit.fingerprint(planned).tree)
    assert list(map(len, prints)) == [1, 1]


@pytest.mark.optimized
@pytest.mark.parametrize("in_context", [False, True])
def test_nothing_is_sent_between_devices_and_all_is_fused(mesh, programs, in_context):
    """The loops of JAX's own threefry would take three times the memory of a shard."""
    rules = jaxinit.sharding_rules(mesh, RULES)
    made = jaxinit.plan(planned_tree(), PLAN)

    def draw():
        jaxinit.jit_init(init, out_shardings=rules)(KEY)
        made.init(KEY, out_shardings=jaxinit.sharding_rules(mesh, RULES[:2]))

    if in_context:
        with jax.set_mesh(mesh):
            draw()
    else:
        draw()
    assert len(programs) >= 2
    for text in programs:
        assert not [name for name in (*COLLECTIVES, " while(") if name in text]
