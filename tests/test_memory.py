"""Memory and manners of draws: told beforehand, drawn over, interrupted without a trace."""

from __future__ import annotations

import dataclasses
import gc
import threading
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec, SingleDeviceSharding

from helpers import assert_same_bits, slow, struct
from jaxinit import jit_init, plan
from jaxinit.engine import _compile as engine
from jaxinit.planning import _given as given

pytestmark = pytest.mark.unoptimized

P = PartitionSpec
KEY, OTHER = jax.random.key(0), jax.random.key(1)
LAWS = {"kernel": "he_normal", "q": "orthogonal", "bias": "zeros"}


def tree(*, kernel=(24, 16), bias=(16,)) -> dict:
    layer = {"kernel": struct(*kernel), "bias": struct(*bias)}
    return {"a": layer, "b": layer, "head": {"kernel": struct(8, 24, dtype="bfloat16")}}


def planned(shapes):
    leaves = {path[-1].key for path, _ in jax.tree_util.tree_flatten_with_path(shapes)[0]}
    return plan(shapes, [(f"**/{name}", law) for name, law in LAWS.items() if name in leaves])


def addresses(values) -> list:
    return [
        [shard.data.unsafe_buffer_pointer() for shard in leaf.addressable_shards]
        for leaf in jax.tree.leaves(values)
    ]


@pytest.fixture
def compilations(monkeypatch):
    """Programs that were compiled, counted from here on."""
    seen = []
    compile_ = engine._compile
    monkeypatch.setattr(engine, "_compile", lambda *a: seen.append(a) or compile_(*a))
    return seen


# Estimates.


@pytest.mark.optimized
def test_an_estimate_counts_leaves_programs_and_bytes():
    made = planned(tree())
    found = made.estimate()
    assert (found.leaves, found.programs, found.compiled) == (5, 3, 2)
    assert found.nbytes == found.device_nbytes == made.nbytes == 2 * (24 + 1) * 16 * 4 + 8 * 24 * 2
    assert found.nbytes <= found.peak <= found.nbytes + max(found.scratch, 2**20)
    text = str(found)
    assert text.startswith("5 leaves, 3 programs, 2 compiled")
    assert f"{found.peak:,}" in text and max(map(len, text.splitlines())) <= 80


def test_an_estimate_compiles_for_the_init_that_follows(compilations):
    engine.forget_executables()
    made = planned(tree())
    made.estimate()
    assert len(compilations) == 2
    made.estimate(OTHER)
    made.init(KEY)
    assert len(compilations) == 2


@pytest.mark.optimized
def test_an_estimate_allocates_no_leaf():
    large = plan({"kernel": struct(2**17, 2**18)}, [("kernel", "lecun_normal")])
    before = len(jax.live_arrays())
    assert large.estimate().nbytes == 2**37
    assert len(jax.live_arrays()) == before


@pytest.mark.optimized
def test_an_estimate_knows_what_shards_take(mesh):
    made = planned(tree())
    rows = NamedSharding(mesh, P("a"))
    found = made.estimate(out_shardings={"a": rows, "b": rows})
    layers = 2 * (24 + 1) * 16 * 4
    assert found.device_nbytes == layers // 4 + 8 * 24 * 2
    assert found.nbytes == layers + 8 * 24 * 2
    with jax.set_mesh(mesh):
        # Here the host makes no constants: zeros are one program more.
        inside = made.estimate(out_shardings={"a": P("a"), "b": P("a")})
    assert inside == dataclasses.replace(found, compiled=found.compiled + 1)
    here = jax.device_put(KEY, mesh.devices.flat[3])
    assert made.estimate(here).device_nbytes == found.nbytes


@pytest.mark.optimized
def test_an_estimate_follows_the_bound():
    """Orthogonal kernels need scratch memory: several at once need several times as much."""
    made = planned({f"l{n}": {"q": struct(64, 48)} for n in range(4)})
    alone, default = made.estimate(max_live_bytes=0), made.estimate()
    assert alone.scratch == default.scratch > 0
    assert alone.peak - alone.nbytes == alone.scratch
    assert default.peak - default.nbytes == min(4 * alone.scratch, 2**20)
    with pytest.raises(ValueError, match=r"^plan\.estimate needs max_live_bytes >= 0, got -1\. L"):
        made.estimate(max_live_bytes=-1)


@pytest.mark.optimized
def test_a_bound_changes_no_bit():
    made = planned(tree())
    assert_same_bits(made.init(KEY, max_live_bytes=0), made.init(KEY))
    with pytest.raises(ValueError, match=r"^plan\.init needs max_live_bytes >= 0, got -8\. Leave"):
        made.init(KEY, max_live_bytes=-8)


@pytest.mark.optimized
def test_the_peak_of_a_traced_function_counts_calls():
    def init(key):
        return [jnp.linalg.qr(jax.random.normal(k, (64, 48)))[0] for k in jax.random.split(key, 4)]

    alone = jit_init(init, max_live_bytes=0).explain(KEY)
    scratch = alone.peak - alone.nbytes
    assert scratch > 0
    default = jit_init(init).explain(KEY)
    assert default.peak - default.nbytes == min(4 * scratch, 2**20)


def test_kinds_beyond_what_is_kept_are_compiled_once(compilations, monkeypatch):
    monkeypatch.setattr(engine, "_kept", engine.Kept(2))
    made = planned({f"l{n}": {"kernel": struct(2, n + 1)} for n in range(5)})
    first = made.init(KEY)
    assert len(compilations) == 5
    assert_same_bits(made.init(KEY), first)
    assert len(compilations) == 5


def test_many_equal_constants_are_compiled():
    """Copying a thousand one by one takes longer than compiling what fills them."""
    many = {f"l{n}": {"bias": struct(3)} for n in range(600)}
    made = planned(many)
    assert made.estimate().compiled == 1
    drawn = made.init(KEY)
    assert not any(leaf.any() for leaf in jax.tree.leaves(drawn))
    assert len({p for (p,) in addresses(drawn)}) == 600


# Drawing over a tree.


@pytest.mark.parametrize("implementation", ["threefry2x32", *slow("unsafe_rbg")])
def test_a_tree_is_drawn_over(implementation):
    key, other = (jax.random.key(n, impl=implementation) for n in (0, 1))
    # Larger than what the host copies: constants are then programs like any other.
    made = planned(tree(kernel=(24, 2**15), bias=(2**18 + 1,)))
    old = jax.block_until_ready(made.init(other))
    places = addresses(old)
    new = made.init(key, donate=old)
    assert addresses(new) == places
    assert_same_bits(new, made.init(key))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(old))


@pytest.mark.slow
def test_other_laws_are_drawn_over():
    kernel = {"kernel": struct(3, 4, 4)}
    laws = ["he_normal", "glorot_uniform", "orthogonal", "dirac"]
    made = plan({law: kernel for law in laws}, [(f"{law}/kernel", law) for law in laws])
    assert_same_bits(made.init(KEY, donate=made.init(OTHER)), made.init(KEY))


def test_small_constants_are_made_anew():
    made = planned(tree())
    old = made.init(OTHER)
    new = made.init(KEY, donate=old)
    assert_same_bits(new, made.init(KEY))
    assert old["a"]["bias"].is_deleted() and not new["a"]["bias"].is_deleted()


def test_what_is_not_drawn_comes_back_untouched():
    made = planned(tree())
    old = made.init(OTHER)
    new = made.init(KEY, only="**/head/*", donate=old)
    assert new["a"]["kernel"] is old["a"]["kernel"]
    assert old["head"]["kernel"].is_deleted()
    assert_same_bits(new["head"], made.init(KEY)["head"])
    loaded = jnp.full((24, 16), 3.0)
    kept = made.init(KEY, keep={"a": {"kernel": loaded}}, donate=new)
    assert kept["a"]["kernel"] is loaded
    assert not new["a"]["kernel"].is_deleted()
    assert new["b"]["kernel"].is_deleted()
    # What is neither drawn nor there stays a shape.
    partial = made.init(KEY, only="head/*", donate={"head": {"kernel": kept["head"]["kernel"]}})
    assert partial["a"]["kernel"] == struct(24, 16)


def test_a_view_of_the_old_memory_keeps_its_values():
    made = planned(tree())
    old = made.init(OTHER)
    view = np.asarray(old["a"]["kernel"])
    before = view.copy()
    new = made.init(KEY, donate=old)
    assert old["a"]["kernel"].is_deleted()
    assert (view == before).all()
    assert_same_bits(new, made.init(KEY))


def test_donated_shards_stay_where_they_are(mesh):
    rows, columns = NamedSharding(mesh, P("a")), NamedSharding(mesh, P(None, "b"))
    shapes = {"a": {"kernel": struct(64, 32)}, "b": {"kernel": struct(32, 64)}}
    made = planned(shapes)
    old = made.init(OTHER, out_shardings={"a": rows, "b": columns})
    places = addresses(old)
    new = made.init(KEY, donate=old)
    assert addresses(new) == places
    assert (new["a"]["kernel"].sharding, new["b"]["kernel"].sharding) == (rows, columns)
    moved = made.init(KEY, donate=new, out_shardings=columns)
    assert all(leaf.sharding == columns for leaf in jax.tree.leaves(moved))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(new))
    with jax.set_mesh(mesh):
        places = addresses(moved)
        again = made.init(KEY, donate=moved, out_shardings=P(None, "b"))
    assert addresses(again) == places
    whole = made.init(KEY)
    assert_same_bits(again, whole)


def test_a_committed_array_stays_on_its_device(devices):
    made = planned(tree())
    third = SingleDeviceSharding(devices[3])
    old = made.init(OTHER, out_shardings=third)
    places = addresses(old["a"]["kernel"])
    new = made.init(KEY, donate=old)
    assert all(leaf.sharding == third for leaf in jax.tree.leaves(new))
    assert addresses(new["a"]["kernel"]) == places
    # An uncommitted one follows a committed key, as every leaf does.
    moved = made.init(jax.device_put(KEY, devices[2]), donate=made.init(OTHER))
    assert moved["a"]["kernel"].devices() == {devices[2]}
    assert_same_bits(moved, made.init(KEY))


def deleted(array):
    array.delete()
    return array


def one_tree():
    return planned(tree()).init(OTHER)


def replaced(change):
    values = one_tree()
    change(values)
    return values


def tie(values):
    values["b"]["kernel"] = values["a"]["kernel"]


BAD_DONATIONS = {
    "unknown": (
        lambda values: values.update(c={"kernel": jnp.ones(3)}),
        ValueError,
        r"donate= to hold leaves of the plan, got also 'c/kernel' .*nearest.*Remove them",
    ),
    "missing": (
        lambda values: values["a"].pop("bias"),
        ValueError,
        r"an array in donate= for every leaf that it draws, got none for 'a/bias'\. Add them",
    ),
    "abstract": (
        lambda values: values["b"].update(bias=struct(16)),
        ValueError,
        r"got none for 'b/bias'\. Add them",
    ),
    "shape": (
        lambda values: values["a"].update(bias=jnp.ones(17)),
        ValueError,
        r"of the planned shape and dtype, got 'a/bias' of shape \(17,\) and float32 for \(16,\) "
        r"and float32\. Only equal ones",
    ),
    "dtype": (
        lambda values: values["a"].update(bias=jnp.ones(16, "bfloat16")),
        ValueError,
        r"'a/bias' of shape \(16,\) and bfloat16",
    ),
    "numpy": (
        lambda values: values["a"].update(bias=np.ones(16, "float32")),
        TypeError,
        r"arrays of JAX in donate=, got ndarray at 'a/bias', .*Convert it with jnp.asarray",
    ),
    "number": (
        lambda values: values["a"].update(bias=0.5),
        TypeError,
        r"arrays of JAX in donate=, got float at 'a/bias'",
    ),
    "deleted": (
        lambda values: deleted(values["a"]["bias"]),
        ValueError,
        r"that are still there, got deleted ones at 'a/bias'\. They were donated before",
    ),
    "tied": (
        tie,
        ValueError,
        r"an array of its own in donate= for every leaf that it draws, got one for 'a/kernel' and "
        r"'b/kernel'\. Copy one of them with jnp.copy",
    ),
    "put on the same device": (
        lambda values: values["b"].update(
            kernel=jax.device_put(
                values["a"]["kernel"], next(iter(values["a"]["kernel"].devices()))
            )
        ),
        ValueError,
        r"got one for 'a/kernel' and 'b/kernel'",
    ),
}


@pytest.mark.parametrize("name", BAD_DONATIONS)
def test_what_cannot_be_drawn_over(name):
    change, error, message = BAD_DONATIONS[name]
    values = replaced(change)
    with pytest.raises(error, match=rf"^plan\.init needs .*{message}"):
        planned(tree()).init(KEY, donate=values)
    # Nothing was drawn over before the error was found.
    assert not values["head"]["kernel"].is_deleted()


def test_what_is_returned_cannot_be_drawn_over():
    made, message = planned(tree()), r"got one for '(.*)' that is to be returned untouched as "
    with pytest.raises(ValueError, match=rf"{message}'b/kernel'\. Copy one of them"):
        made.init(KEY, only="a/kernel", donate=replaced(tie))
    old = one_tree()
    with pytest.raises(ValueError, match=rf"{message}'a/kernel'"):
        made.init(KEY, keep={"a": {"kernel": old["b"]["kernel"]}}, donate=old)
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(old))


def test_nothing_is_drawn_over_inside_a_trace():
    made, old = planned(tree()), one_tree()
    message = r"^plan\.init needs arrays that are there .*inside a trace.*keep_unused=True"
    for run in (
        lambda: jax.jit(lambda key: made.init(key, donate=old))(KEY),
        lambda: jax.jit(lambda donate: made.init(KEY, donate=donate))(old),
        lambda: jax.eval_shape(lambda key: made.init(key, donate=old), KEY),
        lambda: jax.vmap(lambda key: made.init(key, donate=old))(jax.random.split(KEY)),
    ):
        with pytest.raises(ValueError, match=message):
            run()
    # What the message says to do instead.
    outer = jax.jit(lambda key, old: made.init(key), donate_argnums=1, keep_unused=True)
    assert_same_bits(outer(KEY, old), jax.jit(made.init)(KEY))
    assert old["a"]["kernel"].is_deleted()


def test_memory_that_has_no_address_is_told_apart_by_its_array():
    def refuses():
        raise jax.errors.JaxRuntimeError("UNIMPLEMENTED")

    array = types.SimpleNamespace(
        nbytes=4,
        sharding=types.SimpleNamespace(device_set={0}),
        device=0,
        unsafe_buffer_pointer=refuses,
    )
    assert given._memory(array) == [id(array)]
    assert given._memory(jnp.zeros((0, 3))) == []


# Interruptions.


@pytest.fixture(scope="module")
def young_heap():
    """Puts what earlier tests left out of the collector's way.

    JAX keeps what it traced and compiled, so towards the end of the suite a collection takes a
    second.
    """
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


class Stop(Exception):
    pass


def assert_nothing_is_left(interrupted, error, good):
    """A call that is interrupted leaves no thread, no array, and the next one works."""
    expected = good()
    engine.forget_executables()
    gc.collect()
    threads, arrays = set(threading.enumerate()), len(jax.live_arrays())
    with pytest.raises(error) as caught:
        interrupted()
    # The exception still holds the frames it went through.
    assert set(threading.enumerate()) <= threads
    del caught
    gc.collect()
    assert len(jax.live_arrays()) == arrays
    assert_same_bits(good(), expected)


def wide() -> dict:
    """Constants that are just too large to be copied: nothing compiles faster."""
    return {f"l{n}": {"bias": struct(2**18 + 1 + n)} for n in range(3)}


def traced(key):
    return [jnp.ones((2**18 + 1 + n,)) for n in range(3)]


@pytest.mark.usefixtures("young_heap")
@pytest.mark.parametrize("error", [Stop, KeyboardInterrupt])
@pytest.mark.parametrize("leaf", [1, 3])
def test_a_callback_ends_a_draw(error, leaf):
    made = planned(wide())

    def progress(done, *numbers):
        if done == leaf:
            raise error

    assert_nothing_is_left(lambda: made.init(KEY, progress=progress), error, lambda: made.init(KEY))


@pytest.mark.usefixtures("young_heap")
@pytest.mark.parametrize("where", ["_lower", "_compile"])
@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("kind", ["plan", "jit_init"])
def test_an_interrupted_compilation(monkeypatch, where, count, kind):
    made = planned(wide())
    original = getattr(engine, where)
    calls = []

    def interrupted():
        def work(*arguments):
            calls.append(arguments)
            if len(calls) == count:
                raise KeyboardInterrupt
            return original(*arguments)

        with monkeypatch.context() as patch:
            patch.setattr(engine, where, work)
            return good()

    def good():
        return made.init(KEY) if kind == "plan" else jit_init(traced)(KEY)

    assert_nothing_is_left(interrupted, KeyboardInterrupt, good)


def test_a_half_drawn_tree_is_gone_and_can_be_drawn_again():
    made, old = planned(wide()), planned(wide()).init(OTHER)

    def progress(done, *numbers):
        if done == 2:
            raise Stop

    with pytest.raises(Stop):
        made.init(KEY, donate=old, progress=progress)
    assert any(leaf.is_deleted() for leaf in jax.tree.leaves(old))
    assert_same_bits(made.init(KEY), jax.jit(made.init)(KEY))
