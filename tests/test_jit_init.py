"""`jit_init` gives what ``jax.jit`` gives, to the last bit, from fewer programs."""

from __future__ import annotations

import contextlib
import functools
import gc

import equinox as eqx
import flax.linen as nn
import haiku as hk
import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from hypothesis import strategies as st
from jax.nn import initializers as standard
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import jaxinit.initializers
from helpers import EXPLICIT_AXES_FIRST, assert_same, facts, make_mesh, slow
from jaxinit.engine import _assembly as assembly
from jaxinit.engine import jit_init

P = PartitionSpec
KEY = jax.random.key(0)
IMPLEMENTATIONS = ["threefry2x32", *slow("rbg", "unsafe_rbg")]


def check(init, *args, leaves=None, compiled=None, fallback=None, **options):
    """Holds two calls against ``jax.jit``; returns the explanation, whose numbers it may check."""
    fast = jit_init(init, **options)
    options.pop("max_live_bytes", None)
    options.pop("verify", None)
    whole = jax.jit(init, **options)
    for _ in range(2):
        assert_same(fast(*args), whole(*args))
    told = fast.explain(*args)
    if leaves is not None:
        assert told.leaves == leaves
    if compiled is not None:
        assert sum(program.made_by == "compiled" for program in told.programs) == compiled, told
    if fallback is not None:
        assert set(told.fallback.values()) == set(fallback), told
    return told


@contextlib.contextmanager
def counting():
    """Counts what JAX traces and compiles."""
    names = {
        "/jax/core/compile/jaxpr_trace_duration": "traces",
        "/jax/core/compile/backend_compile_duration": "compiles",
    }
    counts = {"traces": 0, "compiles": 0}

    def listen(event, duration, **_):
        if event in names:
            counts[names[event]] += 1

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield counts
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


# Models.


class Block(nn.Module):
    width: int

    @nn.compact
    def __call__(self, x):
        small = nn.initializers.normal(0.02)
        y = nn.LayerNorm()(x)
        y = nn.MultiHeadDotProductAttention(num_heads=2, kernel_init=small)(y)
        x = x + y
        y = nn.gelu(nn.Dense(2 * self.width, kernel_init=small)(nn.LayerNorm()(x)))
        return x + nn.Dense(self.width, kernel_init=nn.initializers.he_normal())(y)


class Transformer(nn.Module):
    depth: int = 2
    width: int = 32

    @nn.compact
    def __call__(self, tokens):
        embed = nn.Embed(50, self.width)
        x = embed(tokens)
        for _ in range(self.depth):
            x = Block(self.width)(x)
        return embed.attend(nn.LayerNorm()(x))


TOKENS = np.zeros((1, 8), np.int32)


def test_linen_transformer():
    told = check(Transformer().init, KEY, TOKENS, leaves=35, compiled=6, fallback=())
    by_count = {program.leaves for program in told.programs if program.made_by == "compiled"}
    assert by_count == {1, 2, 6}
    assert told.nbytes == 4 * sum(
        leaf.size for leaf in jax.tree.leaves(jax.eval_shape(Transformer().init, KEY, TOKENS))
    )


@pytest.mark.unoptimized
def test_raw_keys_and_dictionaries_of_keys():
    class Noisy(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dropout(0.5, deterministic=False)(nn.Dense(4)(x))

    keys = {"params": jax.random.PRNGKey(1), "dropout": jax.random.PRNGKey(2)}
    check(Noisy().init, keys, np.ones((1, 3), np.float32), fallback=())


@pytest.mark.unoptimized
def test_partitioned_boxes():
    class Boxed(nn.Module):
        @nn.compact
        def __call__(self, x):
            kernel = nn.with_partitioning(nn.initializers.lecun_normal(), (None, "model"))
            for _ in range(3):
                x = nn.Dense(16, kernel_init=kernel)(x)
            return x

    told = check(Boxed().init, KEY, np.ones((1, 16), np.float32), leaves=6, compiled=1)
    variables = jit_init(Boxed().init)(KEY, np.ones((1, 16), np.float32))
    assert variables["params"]["Dense_0"]["kernel"].names == (None, "model")
    assert "params/Dense_0/kernel" in str(told)


def test_scanned_layers():
    class Layer(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            return nn.tanh(nn.Dense(8)(x)), None

    class Scanned(nn.Module):
        @nn.compact
        def __call__(self, x):
            layers = nn.scan(Layer, {"params": 0}, split_rngs={"params": True}, length=5)
            return layers()(x, None)

    # The forward pass inside the loop, a product of matrices, is dead and holds nothing back.
    check(Scanned().init, KEY, np.ones((1, 8), np.float32), leaves=2, fallback=())


class Rectangle(nnx.Module):
    def __init__(self, depth, rngs):
        self.layers = nnx.List([nnx.Linear(16, 16, rngs=rngs) for _ in range(depth)])
        self.dropout = nnx.Dropout(0.1, rngs=rngs)


def test_nnx_constructor():
    def init(key):
        return nnx.split(Rectangle(5, nnx.Rngs(key)))

    # The state of the generators comes along: a key and a counter, which the host computes.
    check(init, KEY, compiled=2, fallback=())


@pytest.mark.unoptimized
def test_nnx_with_a_seed_inside():
    check(lambda: nnx.state(Rectangle(4, nnx.Rngs(3)), nnx.Param), compiled=1, fallback=())


@pytest.mark.slow
def test_equinox_mlp():
    def init(key):
        model = eqx.nn.MLP(6, 6, 6, depth=2, key=key)
        return eqx.filter(model, eqx.is_array)

    check(init, KEY, leaves=6, compiled=2, fallback=())


def test_equinox_layers_under_vmap():
    def init(key):
        make = jax.vmap(lambda k: eqx.filter(eqx.nn.Linear(5, 20, key=k), eqx.is_array))
        rows = jax.random.split(key, 4).reshape(2, 2)[1]
        return [make(jax.random.split(k, 4)) for k in rows]

    check(init, KEY, leaves=4, compiled=2, fallback=())


def test_haiku_mlp():
    net = hk.transform(lambda x: hk.nets.MLP([16] * 3)(x))
    check(net.init, KEY, np.ones((1, 16), np.float32), leaves=6, compiled=1, fallback=())


@pytest.mark.unoptimized
def test_optimizer_behind():
    model = nn.Sequential([nn.Dense(16) for _ in range(4)])

    def init(key, x):
        params = model.init(key, x)
        return params, optax.chain(optax.clip(1.0), optax.adamw(1e-3)).init(params)

    told = check(init, KEY, np.ones((1, 16), np.float32), leaves=25, compiled=1, fallback=())
    assert {program.made_by for program in told.programs} == {"compiled", "host"}


def test_master_copies_in_half_precision():
    """A leaf and its cast share what rounds: one program makes both, for all layers."""

    def init(key):
        params = [jax.random.normal(k, (24, 16)) * 0.1 for k in jax.random.split(key, 3)]
        return params, jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)

    told = check(init, KEY, leaves=6, compiled=1, fallback=())
    assert [program.leaves for program in told.programs] == [6]


# What an init may return.


def everything(key, x, scale=2.0):
    keys = jax.random.split(key, 8)
    kernel = jax.random.normal(keys[0], (24, 16))
    closed_over = np.arange(6.0, dtype=np.float32)
    half = jax.random.uniform(keys[1], (5,), jnp.bfloat16)
    return {
        "tied": [kernel, kernel],
        "key": key,
        "keys": keys[2:4],
        "new_key": jax.random.fold_in(key, 9),
        "int": 3,
        "float": 2.5,
        "bool": True,
        "input": x,
        "scaled": x * scale,
        "scale": scale,
        "constant": closed_over,
        "of_constant": jnp.sin(closed_over) * jax.random.normal(keys[4], (6,)),
        "none": None,
        "twos": jnp.full((3,), 2),
        "large": jnp.zeros((600, 600)),
        "scalar": jax.random.normal(keys[5], ()),
        "mean": kernel.mean(0),
        "half": half,
        "half_half": half * half + 1,
        "order": jax.random.permutation(keys[6], 9),
        "empty": jnp.zeros((0, 3)),
        "empty_draw": jax.random.normal(keys[7], (0, 3)),
        "many": jnp.arange(70_000),
    }


EVERYTHING_LEFT = {"returned as it came", "reduce_sum"}


@pytest.mark.parametrize("implementation", ["threefry2x32", *slow("rbg", "unsafe_rbg")])
def test_everything_that_an_init_may_return(implementation):
    key = jax.random.key(1, impl=implementation)
    told = check(everything, key, jnp.ones(3), fallback=EVERYTHING_LEFT)
    assert told.fallback["mean"] == told.fallback["tied/0"] == "reduce_sum"
    assert set(told.fallback) >= {"key", "input", "constant"}


@pytest.mark.slow
def test_raw_keys():
    check(everything, jax.random.PRNGKey(1), jnp.ones(3), fallback=EVERYTHING_LEFT)


@pytest.mark.usefixtures("x64")
def test_wide_types():
    assert jit_init(lambda key: jax.random.normal(key, (3,)))(KEY).dtype == jnp.float64
    check(lambda key: [*layers(key), jax.random.permutation(key, 9), 3, 2.5, key], KEY)


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
def test_everything_in_wide_types():
    check(everything, KEY, jnp.ones(3), fallback=EVERYTHING_LEFT)


def test_without_partitionable_threefry():
    with jax.threefry_partitionable(False):
        check(layers, KEY)


@pytest.mark.unoptimized
def test_settings_are_seen_between_calls():
    fast, whole = jit_init(layers), jax.jit(layers)
    assert_same(fast(KEY), whole(KEY))
    with jax.enable_x64(True):
        assert_same(fast(KEY), whole(KEY))
    with jax.threefry_partitionable(False):
        assert_same(fast(KEY), whole(KEY))
    assert_same(fast(KEY), whole(KEY))


@pytest.mark.unoptimized
@pytest.mark.parametrize("result", [None, {}, (), {"a": None}, []])
def test_nothing_at_all(result):
    assert jit_init(lambda: result)() == result
    assert jit_init(lambda key: result)(KEY) == result


@pytest.mark.unoptimized
def test_every_leaf_is_a_buffer_of_its_own():
    """A training step that donates its state must not donate one buffer twice."""

    def init(key):
        kernel = jax.random.normal(key, (4, 20))
        return [kernel, kernel, jnp.zeros(3), jnp.zeros(3), 1, 1]

    leaves = jit_init(init)(KEY)
    assert len({leaf.unsafe_buffer_pointer() for leaf in leaves}) == len(leaves)
    donate = jax.jit(lambda tree: jax.tree.map(lambda x: x + 1, tree), donate_argnums=0)
    assert_same(donate(leaves), donate(jax.jit(init)(KEY)))


def test_orthogonal_layers():
    def init(key):
        make = standard.orthogonal(1.5)
        return [make(k, (12, 7)) for k in jax.random.split(key, 3)]

    check(init, KEY, leaves=3, compiled=1, fallback=())


def test_layers_of_reflections():
    """The sums before LAPACK's call are additions, so that nothing binds them to the program."""

    def init(key):
        make = jaxinit.initializers.orthogonal(1.5, method="reflections")
        return [make(k, (12, 7)) for k in jax.random.split(key, 3)]

    check(init, KEY, leaves=3, compiled=1, fallback=())


@pytest.mark.unoptimized
def test_side_effects_happen_once_a_call():
    seen = []

    def init(key):
        kernel = jax.random.normal(key, (3,))
        jax.debug.callback(lambda: seen.append(1))
        return kernel, jnp.zeros(2)

    fast = jit_init(init)
    assert_same(fast(KEY), jax.jit(init)(KEY))
    jax.effects_barrier()
    assert len(seen) == 2
    fast(KEY)
    jax.effects_barrier()
    assert len(seen) == 3
    assert set(fast.explain(KEY).fallback.values()) == {"side effects"}


@pytest.mark.unoptimized
def test_pure_callbacks_and_closures():
    table = jnp.arange(8.0)

    def init(key):
        one, other = jax.random.split(key)
        noise = jax.random.normal(one, (8,))
        shifted = jax.pure_callback(lambda x: x + np.float32(1), noise, noise)
        return shifted, noise, table, table * 2, jax.random.normal(other, (8,)) + table

    told = check(init, KEY)
    assert told.fallback == {
        "0": "pure_callback",
        "1": "pure_callback",
        "2": "returned as it came",
    }


@pytest.mark.unoptimized
def test_a_key_that_is_closed_over():
    check(lambda: layers(KEY), compiled=1, fallback=())
    check(lambda x: [x * 2, jax.random.normal(KEY, (3,)), KEY], jnp.ones(2))


# Arguments.


@pytest.mark.unoptimized
def test_static_arguments():
    def init(key, sizes, name="layer", *, flag=False):
        assert isinstance(sizes, tuple)
        keys = jax.random.split(key, len(sizes))
        leaves = [jax.random.normal(k, (s,)) for k, s in zip(keys, sizes, strict=True)]
        return {name: leaves, "flag": int(flag)}

    by_number = dict(static_argnums=(1, 2), static_argnames="flag")
    check(init, KEY, (3, 3, 4), **by_number)
    check(init, KEY, (3, 3, 4), "other", **by_number)
    fast = jit_init(init, static_argnames=("sizes", "name", "flag"))
    whole = jax.jit(init, static_argnames=("sizes", "name", "flag"))
    assert_same(fast(KEY, (2, 5), flag=True), whole(KEY, (2, 5), flag=True))
    assert_same(fast(KEY, sizes=(2, 5), name="x"), whole(KEY, sizes=(2, 5), name="x"))
    last = jit_init(lambda key, n: jax.random.normal(key, (n,)), static_argnums=-1)
    assert last(KEY, 4).shape == (4,)


@pytest.mark.unoptimized
def test_scalars_and_arrays_as_arguments():
    def init(key, scale, offset, *, count):
        kernel = jax.random.normal(jax.random.fold_in(key, count), (20,))
        return kernel * scale + offset, count + 1, scale

    fast, whole = jit_init(init), jax.jit(init)
    for scale, offset, count in [(2, 1.0, 3), (0.5, np.ones(20, np.float32), np.int32(4))]:
        ours = fast(KEY, scale, offset, count=count)
        assert_same(ours, whole(KEY, scale, offset, count=count))


@pytest.mark.unoptimized
def test_bad_arguments():
    with pytest.raises(TypeError, match=r"jit_init needs a function, got dict.*Pass model\.init"):
        jit_init({"params": 1})
    with pytest.raises(ValueError, match=r"max_live_bytes >= 0, got -1"):
        jit_init(layers, max_live_bytes=-1)
    with pytest.raises(TypeError):
        jit_init(layers)(KEY, 3, 4, 5)
    with pytest.raises(TypeError, match="non-array argument"):
        jit_init(layers)("key")


@pytest.mark.unoptimized
def test_a_method():
    class Model:
        width = 20

        @functools.partial(jit_init, static_argnums=0)
        def init(self, key):
            return jax.random.normal(key, (self.width,))

    assert_same(Model().init(KEY), jax.jit(lambda key: jax.random.normal(key, (20,)))(KEY))


@pytest.mark.unoptimized
def test_without_jit():
    """`jax.disable_jit` is for stepping through a function with a debugger."""
    seen = []

    def init(key):
        seen.append(key)
        return layers(key)

    with jax.disable_jit():
        tree = jit_init(init)(KEY)
        assert_same(tree, layers(KEY))
    assert not isinstance(seen[0], jax.core.Tracer)


@pytest.mark.unoptimized
def test_it_looks_like_the_function():
    fast = jit_init(everything)
    assert fast.__name__ == "everything" and fast.__wrapped__ is everything


# Work that is done once.


def layers(key, count=3, shape=(24, 20)):
    return [jax.random.normal(k, shape) * 0.1 for k in jax.random.split(key, count)]


@pytest.mark.unoptimized
def test_a_second_call_traces_and_compiles_nothing():
    calls = []

    def init(key, x):
        calls.append(1)
        return {"kernels": layers(key), "bias": jnp.zeros(3), "x": x, "mean": layers(key)[0].sum()}

    fast = jit_init(init)
    jax.block_until_ready(fast(KEY, 1.0))
    with counting() as counts:
        for seed in range(3):
            jax.block_until_ready(fast(jax.random.wrap_key_data(np.uint32([seed, 1])), 2.0))
    assert calls == [1]
    assert counts["compiles"] == 0
    fast.explain(KEY, 1.0)
    assert calls == [1]


@pytest.mark.unoptimized
@pytest.mark.parametrize("is_on", [True, False])
def test_the_collector_rests_during_a_call_only(is_on):
    """Going through the objects of a large trace again and again took a third of its time."""
    was_enabled = gc.isenabled()
    seen = []

    def init(key):
        seen.append(gc.isenabled())
        return layers(key)

    def broken(key):
        seen.append(gc.isenabled())
        raise OverflowError

    try:
        (gc.enable if is_on else gc.disable)()
        jit_init(init)(KEY)
        assert gc.isenabled() == is_on
        with pytest.raises(OverflowError):
            jit_init(broken)(KEY)
        assert gc.isenabled() == is_on
    finally:
        (gc.enable if was_enabled else gc.disable)()
    assert seen == [False, False]


@pytest.mark.unoptimized
def test_compilations_do_not_grow_with_layers():
    def compiles(count, width):
        """A width of its own makes a kind that nobody has compiled, and nobody must forget his."""
        with counting() as counts:
            jit_init(functools.partial(layers, count=count, shape=(7, width)))(KEY)
        return counts["compiles"]

    compiles(2, width=2)  # takes what JAX compiles once, whatever the function
    assert 1 <= compiles(30, width=3) <= compiles(3, width=5)


@pytest.mark.unoptimized
def test_kinds_are_shared_between_functions():
    shape = (7, 11)
    with counting() as first:
        jit_init(lambda key: layers(key, 3, shape))(KEY)
    assert first["compiles"] >= 1
    with counting() as counts:
        jit_init(lambda key: [layers(key, 5, shape), jnp.ones(2)])(KEY)
    assert counts["compiles"] == 0


@pytest.mark.unoptimized
def test_explanation():
    def init(key):
        return {"layers": layers(key), "bias": jnp.zeros(3), "sum": jnp.sum(key_noise(key)), "i": 1}

    def key_noise(key):
        return jax.random.normal(jax.random.fold_in(key, 99), (20,))

    fast = jit_init(init)
    told = fast.explain(jax.ShapeDtypeStruct((), KEY.dtype))
    assert told.leaves == 6
    assert told.fallback == {"sum": "reduce_sum"}
    assert told.nbytes == 3 * 24 * 20 * 4 + 12 + 4 + 4
    assert told.nbytes <= told.peak
    assert [(k.leaves, k.types, k.made_by) for k in told.programs] == [
        (1, "float32[3]", "host"),
        (1, "int32[]", "compiled"),
        (3, "float32[24,20]", "compiled"),
    ]
    assert {"trace", "slice", "compile"} <= set(told.seconds)
    text = str(told)
    for piece in ("6 leaves", "layers/0", "reduce_sum", "compile"):
        assert piece in text
    fast(KEY)
    assert "run" in fast.explain(KEY).seconds


@pytest.mark.unoptimized
def test_a_memory_bound_changes_no_bit():
    check(lambda key: [layers(key), jnp.zeros(3), layers(key)[0].sum()], KEY, max_live_bytes=0)


@pytest.mark.slow
def test_a_memory_bound_changes_nothing_of_everything():
    check(everything, KEY, jnp.ones(3), max_live_bytes=0)


@pytest.mark.unoptimized
def test_verify(monkeypatch):
    fast = jit_init(layers, verify=True)
    assert_same(fast(KEY), jax.jit(layers)(KEY))
    monkeypatch.setattr(assembly, "_bytes", lambda array, aval: id(array))
    with pytest.raises(RuntimeError, match=r"needs the bits of jax\.jit, and \[0\] differs"):
        jit_init(layers, verify=True)(KEY)


# Inside other transformations.


@pytest.mark.unoptimized
def test_eval_shape():
    ours = jax.eval_shape(jit_init(everything), KEY, jnp.ones(3))
    theirs = jax.eval_shape(everything, KEY, jnp.ones(3))
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for mine, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert (mine.shape, mine.dtype) == (other.shape, other.dtype)
        assert mine.weak_type == other.weak_type


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_under_jit(implementation):
    def init(key):
        return layers(key, 2), jnp.zeros(3), layers(key, 2)[0].sum(), 1, key

    key = jax.random.key(5, impl=implementation)
    assert_same(jax.jit(lambda k: jit_init(init)(k))(key), jax.jit(init)(key))


@pytest.mark.unoptimized
def test_under_jit_without_arguments():
    assert_same(jax.jit(lambda: jit_init(lambda: layers(KEY))())(), jax.jit(lambda: layers(KEY))())


def test_under_jit_equal_leaves_are_one_loop():
    def program(count):
        fast = jit_init(functools.partial(layers, count=count))
        return jax.jit(lambda key: fast(key)).lower(KEY).as_text()

    assert program(30).count("erf_inv") <= program(6).count("erf_inv")


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_under_vmap(implementation):
    keys = jax.random.split(jax.random.key(2, impl=implementation), 3)
    init = functools.partial(layers, count=2)
    ours = jax.vmap(jit_init(init))(keys)
    theirs = jax.vmap(jax.jit(init))(keys)
    for mine, other in zip(ours, theirs, strict=True):
        assert facts(mine) == facts(other)


@pytest.mark.unoptimized
def test_of_a_jitted_function():
    check(jax.jit(layers, static_argnums=1), KEY, leaves=3, compiled=1, fallback=())


# Devices.


def sharded_init(key):
    return {
        "layers": layers(key, 3, (64, 128)),
        "bias": jnp.zeros(8),
        "count": 3,
        "key": key,
    }


@pytest.mark.unoptimized
def test_leaves_are_born_in_their_shards(mesh):
    split, spread = NamedSharding(mesh, P("a", "b")), NamedSharding(mesh, P())
    shardings = {"layers": [split, None, split], "bias": None, "count": spread, "key": None}
    told = check(sharded_init, KEY, out_shardings=shardings)
    assert max(program.leaves for program in told.programs) == 2
    tree = jit_init(sharded_init, out_shardings=shardings)(KEY)
    assert {shard.data.shape for shard in tree["layers"][0].addressable_shards} == {(16, 64)}
    check(sharded_init, KEY, out_shardings=spread)
    check(lambda key: sharded_init(key)["layers"], KEY, out_shardings=split)
    check(lambda key: sharded_init(key)["layers"], KEY, out_shardings=[split, spread, None])


@pytest.mark.unoptimized
@EXPLICIT_AXES_FIRST
def test_a_mesh_in_the_context(devices, kind):
    mesh = make_mesh(kind)
    with jax.set_mesh(mesh):
        check(sharded_init, KEY)
        # A key that is made here is committed to the mesh.
        check(sharded_init, jax.random.key(0))
        shardings = {"layers": P("a", "b"), "bias": P("b"), "count": P(), "key": P()}
        check(sharded_init, KEY, out_shardings=shardings)


@pytest.mark.unoptimized
def test_explicit_axes_inside(devices):
    mesh = make_mesh(AxisType.Explicit, (8,), names=("a",))

    def init(key):
        keys = jax.random.split(key, 3)
        return [jax.random.normal(k, (16, 32), out_sharding=P("a")) * 0.1 for k in keys]

    with jax.set_mesh(mesh):
        told = check(init, KEY, compiled=1, fallback=())
        assert jit_init(init)(KEY)[0].sharding.spec[0] == "a"
    assert told.leaves == 3


@pytest.mark.unoptimized
def test_constraints_inside(mesh):
    def init(key):
        tree = sharded_init(key)
        place = NamedSharding(mesh, P("b"))
        tree["layers"] = jax.lax.with_sharding_constraint(tree["layers"], [place] * 3)
        return tree

    check(init, KEY)


@pytest.mark.unoptimized
def test_a_committed_key_takes_the_leaves_along(devices, mesh):
    def init(key, x):
        drawn = layers(key, 2)
        left = {"key": key, "input": x, "mean": jax.random.normal(key, (9,)).mean()}
        return {"layers": drawn, "bias": jnp.zeros(8), "scaled": x * 2, "count": 3, **left}

    here, x = jax.device_put(KEY, devices[5]), np.ones(3, np.float32)
    fast, whole = jit_init(init), jax.jit(init)
    for key in (KEY, here, KEY, jax.device_put(KEY, NamedSharding(mesh, P())), here):
        assert_same(fast(key, x), whole(key, x))
    # What nothing depends on places nothing.
    there = jax.device_put(x, devices[4])
    check(lambda key, x: layers(key, 2), KEY, there)
    check(lambda key, x: [layers(key, 2), x * 2], KEY, there)


@pytest.mark.unoptimized
def test_a_default_device(devices):
    with jax.default_device(devices[3]):
        check(sharded_init, jax.random.key(4))
        check(lambda: layers(jax.random.key(4), 1))


def test_verify_shard_by_shard(mesh):
    """Rows of two entries: a shard may be an ulp off the whole array, for `jax.jit` as well."""
    split = NamedSharding(mesh, P("a", "b"))

    def init(key):
        return [jax.random.normal(k, (8, 4)) for k in jax.random.split(key)]

    jit_init(init, out_shardings=split, verify=True)(KEY)


def test_values_do_not_depend_on_shards(mesh):
    split = NamedSharding(mesh, P("a", "b"))
    init = functools.partial(layers, count=2)
    sharded = jit_init(init, out_shardings=NamedSharding(mesh, P("a")))(KEY)
    for mine, other in zip(sharded, jit_init(init)(KEY), strict=True):
        np.testing.assert_array_equal(mine, other)
    compiled = jax.jit(init, out_shardings=split).lower(KEY).compile().as_text()
    assert "all-reduce" not in compiled


# Any function.

SHAPES = [(), (3,), (24,), (5, 7), (8, 32), (2, 3, 20)]
DRAWS = {
    "normal": lambda k, s: jax.random.normal(k, s),
    "half": lambda k, s: jax.random.normal(k, s, jnp.bfloat16),
    "uniform": lambda k, s: jax.random.uniform(k, s, minval=-1.0, maxval=0.3),
    "truncated": lambda k, s: jax.random.truncated_normal(k, -2.0, 1.5, s),
    "integers": lambda k, s: jax.random.randint(k, s, 0, 17),
    "coin": lambda k, s: jax.random.bernoulli(k, 0.3, s),
    "gumbel": lambda k, s: jax.random.gumbel(k, s),
    "fan": lambda k, s: standard.he_normal()(k, (6, *s, 20)) * 0.37,
    "orthogonal": lambda k, s: standard.orthogonal()(k, (4, 3)),
    "constant": lambda k, s: jnp.full(s, 0.3),
    "ramp": lambda k, s: jnp.sin(jnp.arange(12.0) / 7),
    "stack": lambda k, s: jax.lax.scan(
        lambda c, j: (c * 2, jax.random.normal(j, s) * c), 1.0, jax.random.split(k, 2)
    )[1],
    "batch": lambda k, s: jax.vmap(lambda j: jax.random.normal(j, s))(jax.random.split(k, 3)),
}
CHANGES = {
    "scale": lambda x, k: x * 0.1,
    "shift": lambda x, k: x * 1.7 - 0.25,
    "square": lambda x, k: x * x + x,
    "tanh": lambda x, k: jnp.tanh(x),
    "exp": lambda x, k: jnp.exp(-jnp.abs(x)),
    "root": lambda x, k: jnp.sqrt(jnp.abs(x)) / 3,
    "narrow": lambda x, k: x.astype(jnp.float16),
    "flip": lambda x, k: jnp.flip(x).T,
    "flat": lambda x, k: x.reshape(-1),
    "choose": lambda x, k: jnp.where(x > 0, x * 1.3, x),
    "noise": lambda x, k: x + jax.random.uniform(k, x.shape).astype(x.dtype),
    "normalize": lambda x, k: x / (1 + jnp.sum(x * x)),
    "mean": lambda x, k: jnp.mean(x),
}
PICK = st.integers(0, 30)
STEPS = st.one_of(
    st.tuples(st.just("split"), PICK, st.integers(2, 4)),
    st.tuples(st.just("fold"), PICK, st.integers(0, 2**31 - 1)),
    st.tuples(st.just("draw"), PICK, st.sampled_from(sorted(DRAWS)), st.sampled_from(SHAPES)),
    st.tuples(st.just("draw"), PICK, st.sampled_from(sorted(DRAWS)), st.sampled_from(SHAPES)),
    st.tuples(st.just("change"), PICK, st.sampled_from(sorted(CHANGES)), PICK),
    st.tuples(st.just("return"), PICK),
)


def build(steps):
    """An init function out of a list of steps; numbers pick among what there is."""

    def init(key):
        keys, arrays, returned = [key], [], [3, None]
        for kind, pick, *rest in steps:
            key = keys[pick % len(keys)]
            if kind == "split":
                keys.extend(jax.random.split(key, rest[0]))
            elif kind == "fold":
                keys.append(jax.random.fold_in(key, rest[0]))
            elif kind == "draw":
                arrays.append(DRAWS[rest[0]](key, rest[1]))
            elif arrays and kind == "change":
                array = arrays[pick % len(arrays)]
                if jnp.issubdtype(array.dtype, jnp.floating):
                    arrays.append(CHANGES[rest[0]](array, keys[rest[1] % len(keys)]))
            elif arrays:
                returned.append(arrays[pick % len(arrays)])
        return [*returned, *arrays[-4:], keys[-1]]

    return init


@pytest.mark.slow
# Each example compiles everything twice, so eight in the profile "long" are all there is time for,
# the same in each run. They hold what holds now;
# `--hypothesis-profile=thorough` looks for more with 100.
@hypothesis.settings(max_examples=hypothesis.settings().max_examples // 50)
@hypothesis.given(steps=st.lists(STEPS, min_size=3, max_size=14), is_constant=st.booleans())
def test_any_function(steps, is_constant):
    init = build(steps)
    if is_constant:
        constant = lambda: init(jax.random.key(11))  # noqa: E731
        assert_same(jit_init(constant)(), jax.jit(constant)())
    else:
        assert_same(jit_init(init)(KEY), jax.jit(init)(KEY))


def test_a_transposed_leaf_has_company():
    """XLA arranges a program's only result in another way than one of several.

    jax 0.12 draws one entry of this leaf an ulp apart in a program of its own: it was found by
    random functions, in seed 145.
    """

    def init(key):
        make = standard.he_normal()
        stack = jax.vmap(lambda k: make(k, (4, 3)))(jax.random.split(key, 3))
        return stack.T, jnp.zeros(2)

    for seed in range(4):
        check(init, jax.random.key(145 + seed), compiled=1, fallback=())
