"""How an init function is taken apart: live nodes, host values, slices, groups, placements."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding, PartitionSpec, SingleDeviceSharding

from helpers import make_mesh
from jaxinit.engine import _compile as engine
from jaxinit.engine import _host as host
from jaxinit.engine._fast_bits import FastBits
from jaxinit.engine._placement import decide, may_copy
from jaxinit.engine._slices import cut, graph_of_init, may_use_fast_bits
from jaxinit.engine._threefry import fast_key
from jaxinit.engine._traced_init import TracedInit
from jaxinit.jaxpr import graph_of

pytestmark = pytest.mark.unoptimized

P = PartitionSpec
KEY = jax.random.key(0)
WORD = st.integers(0, 2**32 - 1)


def traced(function, *args):
    return jax.jit(function).trace(*args).jaxpr


def graph_for(function, *args):
    return graph_of_init(traced(function, *args))


def names(graph) -> list[str]:
    return [node.primitive for node in graph.nodes]


def group_sizes(function, *args) -> list[int]:
    """Members of each group, in order of appearance; every leaf must be in one."""
    slicing = cut(graph_for(function, *args))
    assert not slicing.leftover and not slicing.forwarded
    return [len(members) for members in slicing.groups().values()]


# Graphs.


def test_dead_code_is_dropped():
    def init(key, x):
        kernel = jax.random.normal(key, (4, 4))
        jnp.tanh(x @ kernel)
        return kernel

    assert names(graph_for(init, KEY, jnp.ones((2, 4)))) == ["jit"]


def test_calls_that_hide_several_leaves_or_keys_are_opened():
    @jax.jit
    def layer(key):
        one, other = jax.random.split(key)
        return jax.random.normal(one, (3,)), jax.random.normal(other, (3,))

    # `normal` is a call as well, of one leaf, and stays closed.
    calls = [name for name in names(graph_for(lambda key: layer(key), KEY)) if name == "jit"]
    assert len(calls) == 2

    @jax.jit
    def indexed(key, index):
        return jax.random.normal(jax.random.fold_in(key, index), (3,))

    assert "random_fold_in" in names(graph_for(lambda key: indexed(key, 3), KEY))


def test_remat_is_opened():
    def init(key):
        return jax.checkpoint(lambda k: (jax.random.normal(k, (3,)), jnp.zeros(2)))(key)

    assert names(graph_for(init, KEY)) == ["jit", "broadcast_in_dim"]


@pytest.mark.optimized
def test_a_scan_keeps_only_what_is_read():
    def init(key):
        def layer(x, k):
            kernel = jax.random.normal(k, (4, 4))
            return jnp.tanh(x @ kernel), (kernel, x.sum())

        return jax.lax.scan(layer, jnp.ones((2, 4)), jax.random.split(key, 3))[1][0]

    graph = graph_for(init, KEY)
    (scan,) = [node for node in graph.nodes if node.primitive == "scan"]
    assert [equation.primitive.name for equation in scan.params["jaxpr"].eqns] == ["jit"]
    assert not cut(graph).leftover
    (kernel,) = TracedInit(traced(init, KEY)).whole_function([0])[0](KEY)
    assert (kernel == jax.jit(init)(KEY)).all()


def test_a_carry_that_a_result_needs_is_kept():
    def init(key):
        def layer(carry, k):
            first, second, third = carry
            return (second, third * 2, first + 1), jax.random.normal(k, (3,)) * first

        start = (1.0, 2.0, 3.0)
        return jax.lax.scan(layer, start, jax.random.split(key, 5))[1]

    (ours,) = TracedInit(traced(init, KEY)).whole_function([0])[0](KEY)
    np.testing.assert_array_equal(ours, init(KEY))


@pytest.mark.optimized
def test_fast_bits_reach_into_calls_and_loops():
    def body(key):
        def step(count, k):
            return count + 1, jax.random.bits(k, (32,))

        drawn = jax.lax.scan(step, 0, jax.random.split(key, 3))[1]
        looped = jax.lax.while_loop(
            lambda c: c[0] < 3,
            lambda c: (c[0] + 1, c[1] ^ jax.random.bits(key, (3, 32))),
            (0, drawn),
        )[1]
        chosen = jax.lax.cond(looped[0, 0] > 7, jax.random.bits, lambda k: jnp.uint32(1), key)
        return (
            drawn,
            looped,
            chosen,
            jax.jit(jax.random.uniform)(key),
            jax.random.bits(key, (3, 20)),
        )

    seen = []

    def recorded(key):
        seen.append(key.shape)
        return fast_key(key)

    graph = graph_of(traced(body, KEY), has_bodies=lambda equation: False)
    ours = jax.jit(lambda key: FastBits(recorded).run(graph, [key]))(KEY)
    for mine, theirs in zip(ours, jax.jit(body)(KEY), strict=True):
        assert (mine == theirs).all()
    assert len(seen) >= 5


# The host.


@given(first=WORD, second=WORD, data=st.lists(WORD, min_size=1, max_size=4))
def test_fold_in_on_the_host(first, second, data):
    words = np.array([first, second], np.uint32)
    key = jax.random.wrap_key_data(words, impl="threefry2x32")
    ours = host.fold_in(np.stack([words] * len(data)), np.array(data, np.uint32))
    theirs = jax.vmap(lambda d: jax.random.fold_in(key, d))(np.array(data, np.uint32))
    np.testing.assert_array_equal(ours, jax.random.key_data(theirs))
    np.testing.assert_array_equal(host.fold_in(words, np.uint32(data[0])), ours[0])


@settings(max_examples=20)
@given(first=WORD, second=WORD, shape=st.sampled_from([(1,), (2,), (3,), (7,), (2, 3), (0,), ()]))
def test_split_on_the_host(first, second, shape):
    words = np.array([first, second], np.uint32)
    key = jax.random.wrap_key_data(words, impl="threefry2x32")
    expected = jax.random.key_data(jax.random.split(key, shape))
    np.testing.assert_array_equal(host.split(words, shape), expected)
    np.testing.assert_array_equal(host.split(np.stack([words] * 2), shape)[1], expected)


def host_values(function, *args):
    """What the host makes of a function of keys and integers, and that it made all of it."""
    made_from = TracedInit(traced(function, *args))
    pieces = [piece for members in made_from.groups.values() for piece in members]
    assert not [node for piece in pieces for node in piece.nodes]
    values = made_from.values(args)
    made = {piece.leaves[0]: values[piece.arguments[0]] for piece in pieces}
    return [made[leaf] for leaf in range(len(made_from.graph.outputs))]


def assert_on_host(function, *args):
    expected = jax.tree.leaves(jax.jit(function)(*args))
    for ours, theirs in zip(host_values(function, *args), expected, strict=True):
        if jax.dtypes.issubdtype(theirs.dtype, jax.dtypes.prng_key):
            theirs = jax.random.key_data(theirs)
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs)


def many_ways(key, number):
    keys = jax.random.split(key, 6)
    grid = keys.reshape(2, 3)
    one, *_ = grid[1]
    return (
        keys[2],
        keys[-1],
        keys[jnp.array([3, 1])],
        keys[number],
        grid.T[1],
        grid[::-1, 1:],
        jnp.stack([key, one]),
        jnp.concatenate([keys[:2], keys[4:]]),
        jnp.broadcast_to(one, (2, 2)),
        jax.random.fold_in(one, number * 3 - 2),
        jax.random.clone(one),
        jax.random.wrap_key_data(jax.random.key_data(one) ^ 5, impl=jax.random.key_impl(key)),
        jax.random.split(grid[0, 0], (2, 2))[1, 0],
        jax.vmap(jax.random.split)(keys)[3],
    )


@pytest.mark.parametrize("implementation", ["threefry2x32", "rbg"])
def test_keys_are_derived_on_the_host(implementation):
    assert_on_host(many_ways, jax.random.key(3, impl=implementation), 4)


def test_counters_are_computed_on_the_host():
    def counters(number):
        other = jnp.uint8(200) + jnp.astype(number, jnp.uint8)
        return (
            number + (2**31 - 1),
            other,
            jnp.maximum(number, 3) == 3,
            jnp.where(number < 0, number, ~number),
            jnp.arange(4) * number,
            jnp.minimum(number, 2) | 8,
            (number ^ 3) & 6,
            (number != 1, number <= 2, number > 2, number >= 7),
        )

    for number in (-3, 0, 5, 100):
        assert_on_host(counters, jnp.int32(number))


@pytest.mark.parametrize("seed", [0, 1, -1, 2**31 - 1, np.uint32(2**32 - 1), np.uint8(7)])
def test_seeds_on_the_host(seed):
    assert_on_host(lambda s: jax.random.fold_in(jax.random.key(s), 1), jnp.asarray(seed))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("seed", [2**40 + 3, -5])
def test_wide_seeds_on_the_host(seed):
    assert_on_host(lambda s: jax.random.fold_in(jax.random.key(s), 2**31), jnp.asarray(seed))


def test_equal_derivations_are_hashed_at_once():
    def init(key):
        return [jax.random.fold_in(key, n) for n in range(50)]

    assert len(TracedInit(traced(init, KEY)).schedule.steps) == 1
    assert_on_host(init, KEY)


# Slices.


def slices_of(function, *args):
    slicing = cut(graph_for(function, *args))
    return [piece.leaves for piece in slicing.slices], slicing.leftover


def test_leaves_that_share_a_rounding_stay_together():
    def init(key):
        kernel = jax.random.normal(key, (4,))
        other = jax.random.normal(jax.random.fold_in(key, 1), (4,))
        return kernel, other, kernel.astype(jnp.bfloat16), jnp.zeros(3)

    assert slices_of(init, KEY) == ([(0, 2), (1,), (3,)], {})


def test_leaves_that_share_integers_do_not():
    def init(key):
        bits = jax.random.bits(key, (4,))
        scale = jnp.sqrt(2.0 / 3)
        return bits.astype(jnp.float32) * scale, bits + 1, bits.astype(jnp.float32) + scale

    assert slices_of(init, KEY) == ([(0,), (1,), (2,)], {})


def test_one_factorization_that_fills_two_leaves():
    def init(key):
        q, r = jnp.linalg.qr(jax.random.normal(key, (4, 4)))
        return q, r, jnp.linalg.qr(jax.random.normal(jax.random.fold_in(key, 1), (4, 4)))[0]

    assert slices_of(init, KEY) == ([(0, 1), (2,)], {})


@pytest.mark.parametrize(
    ("make", "culprit"),
    [
        (jnp.sum, "reduce_sum"),
        (lambda x: x @ x.T, "dot_general"),
        (lambda x: jnp.cumsum(x, 0), "cumsum"),
        (lambda x: jax.nn.softmax(x), "reduce_max, reduce_sum"),
        (lambda x: jnp.linalg.svd(x)[1], "svd"),
        (lambda x: jnp.fft.fft(x).real, "fft"),
        (lambda x: jax.pure_callback(np.sin, x, x), "pure_callback"),
        (lambda x: jax.lax.scan(lambda c, r: (c + r.sum(), c), 0.0, x)[1], "reduce_sum"),
    ],
)
def test_what_may_depend_on_its_surroundings_is_left(make, culprit):
    def init(key):
        return make(jax.random.normal(key, (5, 4))), jnp.zeros(3)

    assert slices_of(init, KEY) == ([(1,)], {0: culprit})


def test_a_leaf_goes_with_what_it_shares():
    def init(key):
        kernel = jax.random.normal(key, (5, 4))
        return kernel, kernel / jnp.sqrt(jnp.sum(kernel * kernel)), jnp.ones(2)

    pieces, leftover = slices_of(init, KEY)
    assert pieces == [(2,)]
    assert leftover == {0: "reduce_sum", 1: "reduce_sum"}


@pytest.mark.parametrize(
    "make",
    [
        jnp.sum,
        lambda x: jnp.zeros(5, int).at[x].add(x),
        lambda x: jnp.zeros(5, int).at[x].max(x),
        lambda x: jnp.zeros(5, int).at[x].min(x),
        lambda x: jnp.ones(5, int).at[x].mul(x),
    ],
)
def test_integers_are_combined_apart(make):
    assert slices_of(lambda key: make(jax.random.randint(key, (9,), 0, 5)), KEY) == ([(0,)], {})


def test_what_comes_in_goes_out():
    closed_over = jnp.arange(3.0)

    def init(key, x):
        return key, x, closed_over, 3, x + 1

    slicing = cut(graph_for(init, KEY, jnp.ones(2)))
    assert [piece.leaves for piece in slicing.slices] == [(3,), (4,)]
    assert slicing.forwarded == (0, 1, 2) and not slicing.leftover


def test_a_chain_that_the_host_cannot_follow_is_left_whole():
    """Slices that repeat each other's steps would cost more together than one program."""

    def init(key):
        leaves, words = [], jax.random.bits(key, (64,))
        for _ in range(200):
            words = words * 3 + 1
            leaves.append(words.astype(jnp.float32) * 2)
        return leaves

    made = TracedInit(traced(init, KEY))
    assert len(made.groups) < 30
    assert any("shares" in why for why in made.leftover.values())


# Groups.


def layers(key, count=6):
    return [jax.random.normal(k, (8, 4)) * 0.1 for k in jax.random.split(key, count)]


def by_chain(key):
    leaves = []
    for _ in range(6):
        key, sub = jax.random.split(key)
        leaves.append(jax.random.normal(sub, (8, 4)) * 0.1)
    return leaves


def by_counter(key):
    count, leaves = jnp.uint32(0), []
    for _ in range(6):
        leaves.append(jax.random.normal(jax.random.fold_in(key, count), (8, 4)) * 0.1)
        count = count + 1
    return leaves


def by_path(key):
    paths = [hash(str(n)) % 2**32 for n in range(6)]
    return [jax.random.normal(jax.random.fold_in(key, path), (8, 4)) * 0.1 for path in paths]


@pytest.mark.parametrize("init", [layers, by_chain, by_counter, by_path])
@pytest.mark.parametrize("implementation", ["threefry2x32", "rbg"])
def test_layers_that_differ_in_their_key_are_one_group(init, implementation):
    assert group_sizes(init, jax.random.key(0, impl=implementation)) == [6]


def test_raw_keys_are_one_group_too():
    assert group_sizes(layers, jax.random.PRNGKey(0)) == [6]
    assert group_sizes(by_chain, jax.random.PRNGKey(0)) == [6]


def test_keys_made_inside_are_one_group():
    assert group_sizes(lambda: by_counter(jax.random.key(7))) == [6]


@pytest.mark.parametrize(
    "make",
    [
        lambda key, n: jax.random.normal(key, (8, 4)) * (0.1 + n),
        lambda key, n: jax.random.normal(key, (8, 4 + n)),
        lambda key, n: jax.random.normal(key, (8, 4), [jnp.float32, jnp.float16][n]),
        lambda key, n: [jnp.sin, jnp.cos][n](jax.random.normal(key, (8, 4))),
        lambda key, n: [0.0, -0.0][n] * jax.random.normal(key, (8, 4)),
        lambda key, n: jax.random.normal(key, (4, 4)).reshape([(2, 8), (8, 2)][n]),
    ],
)
def test_what_differs_otherwise_is_not(make):
    def init(key):
        one, other = jax.random.split(key)
        return [make(one, 0), make(other, 0), make(one, 1)]

    assert group_sizes(init, KEY) == [2, 1]


def test_nested_functions_are_compared_by_what_they_do():
    def make(slope):
        # A new function each time, so that JAX traces each anew.
        return jax.jit(lambda x: jnp.where(x > 0, x, x * slope))

    def init(key):
        keys = jax.random.split(key, 3)
        slopes = (0.1, 0.1, 0.2)
        return [make(s)(jax.random.normal(k, (4,))) for k, s in zip(keys, slopes, strict=True)]

    assert group_sizes(init, KEY) == [2, 1]


def test_closed_over_arrays_are_part_of_a_program():
    mask, other = jnp.arange(4.0), jnp.arange(4.0)

    def init(key):
        keys = jax.random.split(key, 3)
        masks = (mask, mask, other)
        return [jax.random.normal(k, (4,)) * m for k, m in zip(keys, masks, strict=True)]

    assert group_sizes(init, KEY) == [2, 1]


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda k: jax.random.normal(k, (4, 32)) * 0.1, True),
        (lambda k: jax.random.truncated_normal(k, -2, 2, (33,)), True),
        (lambda k: jax.random.normal(k, (32, 4)), False),
        (lambda k: jax.random.normal(k, (4, 32)).reshape(32, 4) * 2.0, False),
        (lambda k: jnp.exp(jax.random.normal(k, (4, 32))), False),
        (lambda k: jnp.zeros((4, 32)), False),
    ],
)
def test_only_established_programs_draw_fast_bits(make, expected):
    assert may_use_fast_bits(traced(make, KEY).eqns) is expected


# Compiling and calling.


class Slow:
    """An executable that records what is alive while it runs."""

    def __init__(self, log):
        self.log = log

    def __call__(self, name):
        self.log.append(f"call {name}")
        return [Result(name, self.log)], None


class Result:
    def __init__(self, name, log):
        self.name, self.log = name, log

    def block_until_ready(self):
        self.log.append(f"wait {self.name}")


def carried_out(scratch, max_scratch, count=4):
    log = []
    ready = [(0, engine.Executable(Slow(log), scratch))]
    calls = [engine.Call((n,), [n]) for n in range(count)]
    leaves = [leaves for leaves, _ in engine.carry_out(ready, lambda index: calls, max_scratch)]
    assert leaves == [(n,) for n in range(count)]
    return log


def test_calls_wait_for_room():
    assert carried_out(0, 0) == [f"call {n}" for n in range(4)]
    assert carried_out(10, 40) == [f"call {n}" for n in range(4)]
    twice = ["call 0", "call 1", "wait 0", "call 2", "wait 1", "call 3"]
    assert carried_out(10, 29) == twice
    alone = ["call 0", "wait 0", "call 1", "wait 1", "call 2", "wait 2", "call 3"]
    assert carried_out(10, 5) == alone


def test_two_thousand_leaves_never_take_more_than_is_allowed():
    alive, most = 0, 0

    class Leaf:
        def __init__(self, scratch):
            self.scratch = scratch

        def block_until_ready(self):
            nonlocal alive
            alive -= self.scratch

    def executable(scratch):
        def call():
            nonlocal alive, most
            alive += scratch
            most = max(most, alive)
            return [Leaf(scratch)], None

        return engine.Executable(call, scratch)

    scratches = [7, 30, 0, 50, 11]
    ready = list(enumerate(map(executable, scratches)))
    calls = [engine.Call((0,), ())] * 400
    assert len(list(engine.carry_out(ready, lambda index: calls, 120))) == 2_000
    assert 120 - max(scratches) < most <= 120
    needs = [(scratch, 400) for scratch in scratches]
    assert most <= engine.in_use_beside(needs, 120) == 120
    assert engine.in_use_beside(needs, 20) == 50
    assert engine.in_use_beside([(7, 3)], 120) == 21
    assert engine.in_use_beside([], 120) == 0


def test_the_default_bound_is_the_largest_leaf():
    assert engine.allowance(None, [2**21, 5]) == 2**21
    assert engine.allowance(None, [5]) == engine.allowance(None, []) == 2**20
    assert engine.allowance(0, [5]) == 0


def test_as_many_programs_are_kept_as_the_largest_list_needs(monkeypatch):
    monkeypatch.setattr(engine, "_MAX_KEPT", 3)
    kept = engine.Kept(2)
    for n in range(3):
        kept.put(n, str(n))
    assert [kept.get(n) for n in range(3)] == [None, "1", "2"]
    kept.make_room(4)
    kept.make_room(1)
    kept.put(0, "0")
    assert [kept.get(n) for n in range(3)] == ["0", "1", "2"]
    kept.put(3, "3")
    assert [kept.get(n) for n in range(4)] == [None, "1", "2", "3"]
    kept.clear()
    for n in range(3):
        kept.put(n, str(n))
    assert [kept.get(n) for n in range(3)] == [None, "1", "2"]


def test_executables_are_kept_by_identity_and_settings():
    engine.forget_executables()
    row = jax.ShapeDtypeStruct((3,), jnp.float32)
    programs = [engine.Program(name, lambda x: [x + 1], (row,)) for name in ("one", "other", "one")]
    first = dict(engine.compiled(programs[:2]))
    again = dict(engine.compiled(programs))
    assert again[0] is again[2] is first[0]
    with jax.enable_x64(True):
        assert dict(engine.compiled(programs[:1]))[0] is not first[0]
    nobody = engine.Program(None, lambda x: [x], (row,))
    assert dict(engine.compiled([nobody]))[0] is not dict(engine.compiled([nobody]))[0]


def test_a_compilation_that_fails_is_raised():
    def bad(x):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        list(
            engine.compiled([engine.Program("bad", bad, (jax.ShapeDtypeStruct((), jnp.float32),))])
        )


# Placement.


def test_placement(devices):
    mesh = make_mesh(sizes=(8,), names=("a",))
    everywhere = NamedSharding(mesh, P())
    split, third = NamedSharding(mesh, P("a")), SingleDeviceSharding(devices[3])
    key, here = KEY, jax.device_put(KEY, devices[3])
    spread = jax.device_put(KEY, everywhere)
    assert decide([key], [None], []) == (None, None, True)
    assert decide([here], [None], []) == (third, None, True)
    assert decide([spread], [None], []) == (everywhere, everywhere, True)
    assert decide([key], [split, None], []) == (None, everywhere, True)
    assert decide([key], [None], [split]) == (None, everywhere, True)
    assert decide([key], [third], []) == (None, third, True)
    assert not decide([here], [split], []).is_known
    assert not decide([key], [split, third], []).is_known
    assert not decide([here, jax.device_put(KEY, devices[2])], [None], []).is_known
    other = make_mesh(sizes=(2,), names=("a",))
    assert not decide([key], [split, NamedSharding(other, P())], []).is_known
    with jax.set_mesh(mesh):
        assert decide([key], [P("a")], []) == (None, None, True)
        assert not may_copy(8, None)
    assert may_copy(8, split)
    assert not may_copy(2**21, None)
