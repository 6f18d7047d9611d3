"""Flax models born in their shards: sharding metadata, and `nnx_init` held against `nnx.jit`."""

from __future__ import annotations

import functools

import flax.linen as nn
import jax
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import AbstractMesh, AxisType, NamedSharding, PartitionSpec

import jaxinit
from helpers import BOTH_AXIS_TYPES, COLLECTIVES, EXPLICIT_AXES_FIRST, assert_same, make_mesh
from jaxinit.flax import linen_tree, nnx_init, nnx_tree, shardings_from_metadata

pytestmark = pytest.mark.unoptimized

P = PartitionSpec
KEY = jax.random.key(0)
X = np.ones((1, 8), np.float32)


def assert_same_model(ours, theirs):
    (graph, state), (other_graph, other_state) = nnx.split(ours), nnx.split(theirs)
    assert graph == other_graph
    assert_same(state, other_state)


def shard_shape(leaf) -> tuple[int, ...]:
    (shape,) = {shard.data.shape for shard in leaf.addressable_shards}
    return shape


# Metadata.

LOGICAL = (("embed", None), ("mlp", ("a", "b")))


class Boxed(nn.Module):
    """A box with axes of the mesh, one with logical axes, one with rules of its own, none."""

    @nn.compact
    def __call__(self, x):
        law = nn.initializers.lecun_normal()
        split = nn.with_partitioning(law, ("a", "b"))
        logical = nn.with_logical_partitioning(law, ("embed", "mlp"))
        own = nn.with_logical_partitioning(
            law, ("mlp", "embed"), rules=(("embed", "b"), ("mlp", None))
        )
        for kernel_init in (split, logical, own, law):
            x = nn.Dense(256, kernel_init=kernel_init)(x)
        return x


def test_boxes_are_read_as_flax_reads_them(mesh):
    shapes = jax.eval_shape(Boxed().init, KEY, X)
    placed = shardings_from_metadata(mesh, LOGICAL)(shapes)
    wanted = [P("a", "b"), P(None, ("a", "b")), P(None, "b"), P()]
    kernels = [placed["params"][f"Dense_{n}"]["kernel"] for n in range(4)]
    assert kernels == [NamedSharding(mesh, spec) for spec in wanted]
    flax = nn.logical_to_mesh_sharding(nn.get_partition_spec(shapes), mesh, LOGICAL)
    assert kernels[1] == flax["params"]["Dense_1"]["kernel"]
    for name in ("Dense_0", "Dense_3"):
        assert placed["params"][name] == nn.get_sharding(shapes["params"][name], mesh)


def test_rules_in_the_context_are_read_once(mesh):
    with nn.logical_axis_rules(LOGICAL):
        reader = shardings_from_metadata(mesh)
    assert reader == shardings_from_metadata(mesh, list(LOGICAL))
    assert hash(reader) == hash(shardings_from_metadata(mesh, LOGICAL))
    with nn.logical_axis_rules((("embed", "b"), ("mlp", None))):
        placed = reader(jax.eval_shape(Boxed().init, KEY, X))
    assert placed["params"]["Dense_1"]["kernel"].spec == P(None, ("a", "b"))


@pytest.mark.optimized
@EXPLICIT_AXES_FIRST
def test_boxed_variables_are_born_in_their_shards(devices, kind, programs):
    reader = shardings_from_metadata(make_mesh(kind), LOGICAL)
    variables = jaxinit.jit_init(Boxed().init, out_shardings=reader)(KEY, X)
    wishes = reader(jax.eval_shape(Boxed().init, KEY, X))
    assert_same(variables, jax.jit(Boxed().init, out_shardings=wishes)(KEY, X))
    kernels = [variables["params"][f"Dense_{n}"]["kernel"] for n in range(3)]
    shapes = [shard_shape(kernel.value) for kernel in kernels]
    assert shapes == [(2, 128), (256, 32), (256, 128)]
    assert kernels[0].names == ("a", "b")
    assert programs and not [name for name in COLLECTIVES for text in programs if name in text]
    assert jaxinit.fingerprint(variables).tree == fingerprint_on_one_device()


@functools.cache
def fingerprint_on_one_device():
    return jaxinit.fingerprint(jax.jit(Boxed().init)(KEY, X)).tree


def test_a_plan_takes_them(mesh):
    reader = shardings_from_metadata(mesh, LOGICAL)
    made = jaxinit.plan(linen_tree(Boxed(), X), [("**/kernel", "he_normal"), ("**", "zeros")])
    kernel = made.init(KEY, out_shardings=reader)["params"]["Dense_1"]["kernel"].value
    assert kernel.sharding.spec == P(None, ("a", "b"))
    with nnx.use_eager_sharding(False):
        tree = nnx_tree(lambda: Annotated(nnx.Rngs(0)))
    made = jaxinit.plan(tree, [("**/kernel", "he_normal"), ("**", "zeros")], out_shardings=reader)
    assert made["layers/0/kernel"].sharding.spec == P("a", "b")
    assert made.init(KEY)["layers"][0]["kernel"][...].sharding.spec == P("a", "b")


class Annotated(nnx.Module):
    def __init__(self, rngs):
        split = {"out_sharding": ("a", "b")}
        self.layers = nnx.List(
            [nnx.Linear(16, 256, rngs=rngs, kernel_metadata=split) for _ in range(2)]
        )
        self.plain = nnx.Linear(16, 256, rngs=rngs)


def test_nnx_annotations_are_read_as_flax_reads_them(mesh):
    with nnx.use_eager_sharding(False):
        state = nnx.state(nnx.eval_shape(lambda: Annotated(nnx.Rngs(0))))
        assert shardings_from_metadata(mesh)(state) == nnx.get_named_sharding(state, mesh)
        own = NamedSharding(mesh, P(None, "b"))
        other = make_mesh(AxisType.Explicit, (2,), names=("c",))
        struct = jax.ShapeDtypeStruct((4, 8), "float32")
        tree = nnx.State(
            {
                "whole": nnx.Param(struct, out_sharding=own),
                "elsewhere": nnx.Param(struct, out_sharding=("c",), mesh=other),
                "logical": nnx.Param(struct, out_sharding=("embed", "mlp")),
                "local": nnx.Param(struct, out_sharding=("x",), sharding_rules=(("x", "a"),)),
            }
        )
    placed = shardings_from_metadata(mesh, LOGICAL)(tree)
    assert placed["whole"].get_value() == own
    assert placed["elsewhere"].get_value() == NamedSharding(other, P("c"))
    assert placed["logical"].get_value().spec == P(None, ("a", "b"))
    assert placed["local"].get_value().spec == P("a")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("a",), r"^shardings_from_metadata needs a mesh, got 'a' of type str\. Make one"),
        ((AbstractMesh((8,), ("a",)), "ab"), r"needs logical_rules as a list.*got 'ab'\. Write"),
        ((AbstractMesh((8,), ("a",)), [3]), r"got \[3\]\. Write"),
        ((AbstractMesh((8,), ("a",)), [(1, "a")]), r"needs logical_rules as a list"),
    ],
)
def test_arguments_that_are_no_metadata(arguments, message):
    with pytest.raises(TypeError, match=message):
        shardings_from_metadata(*arguments)


def test_metadata_that_cannot_be_followed(mesh):
    def box(names, shape=(8, 8), kind=nn.Partitioned):
        return {"w": kind(jax.ShapeDtypeStruct(shape, "float32"), names=names)}

    reader = shardings_from_metadata(mesh, LOGICAL)
    with pytest.raises(
        ValueError, match=r"^shardings_from_metadata needs axes of the mesh for 'w'"
    ):
        reader(box(("c", None)))
    with pytest.raises(ValueError, match=r"a sharding that divides 'w' of shape \(6, 8\) evenly"):
        reader(box(("a", None), (6, 8)))
    with pytest.raises(
        ValueError, match=r"a rule for every logical axis, got none for 'x' of 'w'\."
    ):
        reader(box(("embed", "x"), kind=nn.LogicallyPartitioned))


# NNX constructors.


class Net(nnx.Module):
    """Keeps the generator that it was made with, has one of its own, and a tied parameter."""

    def __init__(self, depth, rngs, width=8):
        self.layers = nnx.List([nnx.Linear(width, width, rngs=rngs) for _ in range(depth)])
        self.dropout = nnx.Dropout(0.1, rngs=rngs)
        self.norm = nnx.BatchNorm(width, rngs=rngs)
        self.tied = self.layers[0].kernel
        self.rngs = rngs


@pytest.mark.optimized
def test_generators_advance_as_under_nnx_jit():
    def make(rngs):
        return Net(3, rngs)

    ours, theirs = nnx.Rngs(0, dropout=3), nnx.Rngs(0, dropout=3)
    fast, whole = nnx_init(make), nnx.jit(make)
    for _ in range(2):
        model, other = fast(ours), whole(theirs)
        assert_same_model(model, other)
        assert_same_model(ours, theirs)
        assert model.rngs is ours
        assert model.tied is model.layers[0].kernel
    assert int(ours.params.count[...]) > 0
    told = fast.explain(ours)
    assert set(told.fallback.values()) == {"returned as it came"}
    assert_same_model(ours, theirs)


def test_keys_numbers_and_static_arguments():
    def make(key, scale, depth, *, name="x"):
        model = Net(depth, nnx.Rngs(params=key, dropout=1))
        model.layers[0].bias[...] += scale
        model.name = name
        return model

    static = {"static_argnums": 2, "static_argnames": "name"}
    fast, whole = nnx_init(make, **static), nnx.jit(make, **static)
    for depth in (1, 3):
        assert_same_model(fast(KEY, 2.0, depth, name="y"), whole(KEY, 2.0, depth, name="y"))
    assert fast(KEY, 2.0, 1, name="y").name == "y"
    by_name = {"static_argnames": "depth"}
    assert_same_model(
        nnx_init(Net, **by_name)(depth=2, rngs=nnx.Rngs(1)),
        nnx.jit(Net, **by_name)(depth=2, rngs=nnx.Rngs(1)),
    )


def test_several_results_share_what_they_share():
    adam = optax.adam(1e-3)

    def make(key):
        model = nnx.Linear(8, 8, rngs=nnx.Rngs(key))
        return {"model": model, "optimizer": nnx.Optimizer(model, adam, wrt=nnx.Param)}

    ours, theirs = nnx_init(make)(KEY), nnx.jit(make)(KEY)
    assert_same_model(ours["model"], theirs["model"])
    assert_same_model(ours["optimizer"], theirs["optimizer"])


def test_models_as_arguments():
    def grow(model, rngs):
        model.extra = nnx.Linear(4, 4, rngs=rngs)
        model.kernel[...] *= 2
        return nnx.List([model, model.extra])

    ours, theirs = (nnx.Linear(8, 4, rngs=nnx.Rngs(0)) for _ in range(2))
    pair = nnx_init(grow)(ours, nnx.Rngs(1))
    assert_same_model(pair, nnx.jit(grow)(theirs, nnx.Rngs(1)))
    assert_same_model(ours, theirs)
    assert pair[0] is ours and pair[1] is ours.extra


def test_a_second_call_traces_and_compiles_nothing():
    made, compiled = [], []

    def make(rngs):
        made.append(1)
        return Net(2, rngs)

    def listen(event, duration, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(1)

    fast, rngs = nnx_init(make), nnx.Rngs(0)
    fast(rngs)
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        fast(rngs)
        fast(nnx.Rngs(0))
        fast.explain(rngs)
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert (len(made), len(compiled)) == (1, 0)


def test_inside_of_other_traces():
    fast = nnx_init(lambda rngs: Net(3, rngs))
    whole = nnx.jit(lambda rngs: Net(3, rngs))

    def state(make):
        return lambda key: nnx.state(make(nnx.Rngs(key)))

    assert_same(jax.jit(state(fast))(KEY), state(whole)(KEY))
    keys = jax.random.split(KEY, 2)
    assert_same(jax.vmap(state(fast))(keys), jax.vmap(state(whole))(keys))
    ours = nnx.eval_shape(lambda: fast(nnx.Rngs(0)))
    assert nnx.graphdef(ours) == nnx.graphdef(nnx.eval_shape(lambda: whole(nnx.Rngs(0))))
    outer, other = nnx.Rngs(0), nnx.Rngs(0)
    assert_same_model(nnx.jit(lambda r: fast(r))(outer), whole(other))
    assert_same_model(outer, other)


@pytest.mark.optimized
@EXPLICIT_AXES_FIRST
def test_metadata_hold_under_a_mesh(devices, kind):
    with jax.set_mesh(make_mesh(kind)):
        ours, theirs = nnx_init(Annotated)(nnx.Rngs(0)), nnx.jit(Annotated)(nnx.Rngs(0))
        assert_same_model(ours, theirs)
    assert shard_shape(ours.layers[1].kernel[...]) == (4, 128)
    assert ours.layers[1].kernel.get_metadata("out_sharding") == ("a", "b")


@EXPLICIT_AXES_FIRST
def test_out_shardings(devices, kind):
    mesh = make_mesh(kind)
    rows, columns = NamedSharding(mesh, P("a")), NamedSharding(mesh, P(None, "b"))

    def make(rngs):
        return Net(3, rngs, width=64)

    rules = [("layers/0/kernel", P("a")), ("layers/*/kernel", P(None, "b")), ("**", P())]
    plain = nnx_init(make)(nnx.Rngs(0))
    tree = {"layers": {0: {"kernel": rows}, 1: {"kernel": columns}, 2: {"kernel": columns}}}
    for wish in (tree, jaxinit.sharding_rules(mesh, rules)):
        rngs = nnx.Rngs(0)
        model = nnx_init(make, out_shardings=wish)(rngs)
        layers = model.layers
        assert [x.kernel[...].sharding for x in layers] == [rows, columns, columns]
        assert [shard_shape(x.kernel[...]) for x in layers] == [(16, 64), (64, 32), (64, 32)]
        assert model.rngs is rngs and model.tied is layers[0].kernel
        fingerprints = [jaxinit.fingerprint(nnx.state(x, nnx.Param)).tree for x in (plain, model)]
        assert fingerprints[0] == fingerprints[1]
    whole = NamedSharding(mesh, P())
    assert_same_model(
        nnx_init(lambda key: nnx.Linear(8, 8, rngs=nnx.Rngs(key)), out_shardings=whole)(KEY),
        nnx.jit(lambda key: nnx.Linear(8, 8, rngs=nnx.Rngs(key)), out_shardings=whole)(KEY),
    )


@pytest.mark.optimized
@pytest.mark.slow
@BOTH_AXIS_TYPES
def test_values_do_not_depend_on_the_mesh(devices, kind):
    def make(rngs):
        metadata = {"out_sharding": (None, "a")}
        return nnx.Linear(16, 2048, rngs=rngs, kernel_metadata=metadata)

    found = set()
    for count in (1, 2, 4, 8):
        mesh = make_mesh(kind, (count,), names=("a",))
        with nnx.use_eager_sharding(False):
            model = nnx_init(make, out_shardings=shardings_from_metadata(mesh))(nnx.Rngs(0))
        assert shard_shape(model.kernel[...]) == (16, 2048 // count)
        found.add(jaxinit.fingerprint(nnx.state(model, nnx.Param)).tree)
    assert len(found) == 1


def test_verify_and_a_memory_bound():
    fast = nnx_init(lambda rngs: Net(3, rngs), verify=True, max_live_bytes=0)
    assert_same_model(fast(nnx.Rngs(0)), nnx.jit(lambda rngs: Net(3, rngs))(nnx.Rngs(0)))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (3, r"^nnx_init needs a function that makes an nnx.Module, got int\. Pass the class"),
        (nn.Dense(3), r"got Dense\. Use jaxinit.jit_init\(module.init\) for Linen"),
        (nnx.Linear(2, 2, rngs=nnx.Rngs(0)), r"got Linear\. Pass the class"),
    ],
)
def test_what_makes_no_model(make, message):
    with pytest.raises(TypeError, match=message):
        nnx_init(make)


def test_shardings_that_do_not_fit(mesh):
    def make(rngs):
        return nnx.Linear(6, 8, rngs=rngs)

    rows = NamedSharding(mesh, P("a"))
    with pytest.raises(ValueError, match=r"^nnx_init needs .* divides 'kernel' of shape \(6, 8\)"):
        nnx_init(make, out_shardings=rows)(nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"^nnx_init needs out_shardings for leaves .*'kernal'"):
        nnx_init(make, out_shardings={"kernal": rows})(nnx.Rngs(0))
    with pytest.raises(TypeError, match=r"^nnx_init needs out_shardings made of shardings, got 3"):
        nnx_init(make, out_shardings=3)(nnx.Rngs(0))


def test_it_can_be_a_method():
    class Factory:
        def __init__(self, width):
            self.width = width

        def make(self, key):
            return nnx.Linear(self.width, 4, rngs=nnx.Rngs(key))

        fast = nnx_init(make, static_argnums=0)

    ours = Factory(8).fast(KEY)
    assert_same_model(ours, jax.jit(Factory(8).make)(KEY))


def test_without_jit(mesh):
    whole = NamedSharding(mesh, P())
    with jax.disable_jit():
        fast = nnx_init(lambda rngs: nnx.Linear(8, 4, rngs=rngs), out_shardings=whole)
        assert fast(nnx.Rngs(0)).kernel.shape == (8, 4)


def test_it_looks_like_the_function():
    assert nnx_init(Net).__name__ == "Net"
    assert nnx_init(Net).__doc__ == Net.__doc__
