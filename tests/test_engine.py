"""Many arrays at once have the bits of each drawn alone, whatever surrounds the call."""

from __future__ import annotations

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec, SingleDeviceSharding

from helpers import BOTH_AXIS_TYPES, COLLECTIVES, content, make_mesh, slow
from jaxinit import initializers as init
from jaxinit.engine import LeafSpec, draw
from jaxinit.engine import _fast_bits as fast_bits

P = PartitionSpec
# Keys of threefry are those of every other test here.
IMPLEMENTATIONS = ["rbg", *slow("threefry2x32", "unsafe_rbg")]

# One case for every law; odd sizes, so that vectorised loops have remainders. Rows of fewer than 16
# entries are drawn by other code, which takes two to four times as long to compile: some have them.
CASES = {
    "zeros": (init.zeros, (7,)),
    "ones": (init.ones, ()),
    "constant": (init.constant([1.0, 2.0, 3.0]), (5, 3)),
    "uniform": (init.uniform(0.3), (33, 17)),
    "normal": (init.normal(0.02), (17, 129)),
    "truncated_normal": (init.truncated_normal(0.5), (1001,)),
    "variance_scaling": (init.variance_scaling(1.0, "fan_geo_avg", "uniform"), (3, 5, 17)),
    "he_normal": (init.he_normal(), (37, 41)),
    "orthogonal": (init.orthogonal(1.5), (12, 9)),
    "reflections": (init.orthogonal(1.5, method="reflections"), (12, 9)),
    "scaled_orthogonal": (init.scaled_orthogonal(), (5, 8)),
    "delta_orthogonal": (init.delta_orthogonal(), (3, 3, 4, 6)),
    "identity": (init.identity(), (4, 6)),
    "dirac": (init.dirac(), (3, 4, 4)),
    "sparse": (init.sparse(0.5), (16, 10)),
    "scaled": (init.scaled(init.he_normal(), 0.3), (5, 19)),
    "masked": (init.masked(init.normal(), np.tri(9, 17)), (9, 17)),
    "reshaped": (init.reshaped(init.lecun_normal(), (6, 20)), (6, 4, 5)),
    "stacked": (init.stacked(init.orthogonal()), (3, 6, 5)),
    "fused": (init.fused(init.he_normal(), (17, 18)), (3, 35)),
}
FLOAT32 = np.dtype("float32")
BFLOAT16 = np.dtype(jnp.bfloat16)
# One of each way to draw; the others are made of these.
FIRST_LAWS = ("constant", "normal", "he_normal", "orthogonal", "reflections", "sparse", "fused")
FIRST = {name: ["float32"] for name in FIRST_LAWS}
OTHER_LAWS = {name: ["float32"] for name in CASES if name not in FIRST}
OTHER_DTYPES = {
    "constant": ["int32"],
    "uniform": ["bfloat16"],
    "he_normal": ["float16", "complex64"],
}
SELECTIONS = {"first": FIRST, "other laws": OTHER_LAWS, "other dtypes": OTHER_DTYPES}


def all_draws(dtypes: dict[str, list[str]], count: int = 2) -> list[LeafSpec]:
    """Cases in their dtypes, each several times with unequal neighbours."""
    draws = [
        LeafSpec(*CASES[name], np.dtype(jnp.dtype(dtype)))
        for name in dtypes
        for dtype in dtypes[name]
    ]
    return draws * count


@functools.cache
def jitted(d: LeafSpec):
    return jax.jit(lambda key: d.initializer(key, d.shape, d.dtype))


def alone(d: LeafSpec, key) -> tuple:
    """The bits of one leaf, drawn as the documentation defines them."""
    return content(jitted(d)(key))


def subclasses(kind: type) -> set[type]:
    return {kind}.union(*map(subclasses, kind.__subclasses__()))


def test_every_law_has_a_case():
    laws = {
        kind for kind in subclasses(init.BaseInitializer) if kind.__module__.startswith("jaxinit")
    }
    # A function of the user and a model's own draw promise no law.
    promised = laws - {init.FromFunction, init.Own}
    concrete = {kind for kind in promised if not inspect.isabstract(kind)}
    assert {type(initializer) for initializer, _ in CASES.values()} == concrete


@pytest.mark.parametrize("selection", ["first", *slow("other laws", "other dtypes")])
def test_every_array_has_the_bits_of_one_drawn_alone(selection):
    draws = all_draws(SELECTIONS[selection])
    keys = jax.random.split(jax.random.key(1), len(draws))
    expected = [alone(d, key) for d, key in zip(draws, keys, strict=True)]
    assert [content(array) for array in draw(draws, keys)] == expected


@pytest.mark.slow
@pytest.mark.parametrize("selection", SELECTIONS)
def test_every_array_has_these_bits_inside_jit_too(selection):
    draws = all_draws(SELECTIONS[selection])
    keys = jax.random.split(jax.random.key(1), len(draws))
    traced = jax.jit(lambda k: draw(draws, k))(keys)
    assert [content(array) for array in traced] == [content(array) for array in draw(draws, keys)]


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_under_every_key_implementation(implementation):
    draws = [
        LeafSpec(init.normal(), (5, 3), FLOAT32),
        LeafSpec(init.orthogonal(), (4, 4), FLOAT32),
    ] * 3
    keys = jax.random.split(jax.random.key(2, impl=implementation), len(draws))
    expected = [alone(d, key) for d, key in zip(draws, keys, strict=True)]
    assert len(set(expected)) == len(draws)
    assert [content(array) for array in draw(draws, keys)] == expected
    assert [content(array) for array in jax.jit(lambda k: draw(draws, k))(keys)] == expected


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_an_ensemble_is_its_members(implementation, wrap):
    """QR under vmap, and rbg keys under vmap, have other bits; the loop of the engine has not."""
    draws = [
        LeafSpec(init.normal(), (5, 3), FLOAT32),
        LeafSpec(init.orthogonal(), (6, 4), FLOAT32),
        LeafSpec(init.zeros, (2,), FLOAT32),
        LeafSpec(init.normal(), (5, 3), FLOAT32),
    ]
    roots = jax.random.split(jax.random.key(4, impl=implementation), 3)

    def member(root):
        return draw(draws, jax.random.split(root, len(draws)))

    # Keys first, one member at a time: splitting unsafe_rbg keys under vmap has other bits too.
    keys = jnp.stack([jax.random.split(root, len(draws)) for root in roots])
    together = wrap(jax.vmap(lambda k: draw(draws, k)))(keys)
    for number, root in enumerate(roots):
        for whole, single in zip(together, member(root), strict=True):
            assert content(whole[number]) == content(single)


def test_long_groups_are_drawn_in_pieces(monkeypatch):
    monkeypatch.setattr(fast_bits, "_MAX_LOOP_BYTES", 4 * 6 * 4)
    draws = [LeafSpec(init.normal(), (2, 3), FLOAT32)] * 10 + [
        LeafSpec(init.normal(), (64, 3), FLOAT32)
    ]
    keys = jax.random.split(jax.random.key(0), len(draws))
    traced = jax.jit(lambda k: draw(draws, k))(keys)
    assert [content(a) for a in traced] == [alone(d, k) for d, k in zip(draws, keys, strict=True)]


class Counting(init.BaseInitializer):
    """A law that counts its traces."""

    traces = 0

    def sample(self, key, shape, dtype):
        type(self).traces += 1
        return jax.random.normal(key, shape, dtype)

    def exact_law(self, shape, is_complex):
        return init.normal(1.0).exact_law(shape, is_complex)


@pytest.mark.unoptimized
def test_equal_draws_are_traced_once():
    draws = [LeafSpec(Counting(), (3, 5), FLOAT32)] * 20
    keys = jax.random.split(jax.random.key(0), 20)
    Counting.traces = 0
    draw(draws, keys)
    assert Counting.traces == 1
    draw(draws, keys)
    assert Counting.traces == 1
    jax.eval_shape(lambda k: draw(draws, k), keys)
    assert Counting.traces <= 2


@pytest.mark.unoptimized
def test_every_array_is_a_buffer_of_its_own():
    """A training step that donates its state must not donate one buffer twice."""
    draws = [LeafSpec(init.zeros, (4,), FLOAT32)] * 5
    keys = jax.random.split(jax.random.key(0), 5)
    for arrays in (draw(draws, keys), jax.jit(lambda k: draw(draws, k))(keys)):
        assert len({array.unsafe_buffer_pointer() for array in arrays}) == 5


@pytest.mark.unoptimized
def test_without_jit():
    draws = [LeafSpec(init.normal(), (2, 20), FLOAT32), LeafSpec(init.zeros, (5,), FLOAT32)]
    keys = jax.random.split(jax.random.key(0), 2)
    with jax.disable_jit():
        kernel, bias = draw(draws, keys)
        expected = init.normal()(keys[0], (2, 20), FLOAT32)
    assert bool((kernel == expected).all()) and not bias.any()


@pytest.mark.unoptimized
def test_nothing_to_draw():
    assert draw([], jax.random.split(jax.random.key(0), 0)) == []


@pytest.mark.unoptimized
def test_a_key_too_few():
    with pytest.raises(
        ValueError, match=r"one key for each of its 2 leaves, got keys of shape \(3"
    ):
        draw([LeafSpec(init.zeros, (4,), FLOAT32)] * 2, jax.random.split(jax.random.key(0), 3))


@pytest.mark.unoptimized
def test_progress_is_told_leaf_by_leaf():
    draws = [LeafSpec(init.normal(), (2, 3), FLOAT32), LeafSpec(init.zeros, (5,), BFLOAT16)]
    keys = jax.random.split(jax.random.key(0), 2)
    told = []
    draw(draws, keys, progress=lambda *numbers: told.append(numbers))
    # Whichever is compiled first comes first.
    assert told in ([(1, 2, 24, 34), (2, 2, 34, 34)], [(1, 2, 10, 34), (2, 2, 34, 34)])
    told.clear()
    jax.jit(lambda k: draw(draws, k, progress=lambda *numbers: told.append(numbers)))(keys)
    assert told == []


# Placement.


@BOTH_AXIS_TYPES
# A PartitionSpec alone means nothing without a mesh.
@pytest.mark.parametrize(
    ("named", "in_context"),
    [
        pytest.param(True, False, id="named"),
        pytest.param(False, True, id="spec-set_mesh"),
        pytest.param(True, True, id="named-set_mesh", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("traced", [True, False], ids=["jit", "eager"])
def test_sharded_is_whole(devices, kind, named, in_context, traced):
    mesh = make_mesh(kind)
    spec = P("b", "a")

    def draws(sharding):
        # Shards of (8, 16). In rows of a few entries XLA:CPU computes a logarithm by scalar code,
        # which since jax 0.12 is an ulp away from its vector code.
        once = [
            LeafSpec(i, (16, 64), FLOAT32, sharding) for i in (init.normal(), init.orthogonal())
        ]
        return once * 2 + [LeafSpec(init.ones, (4, 4), FLOAT32, sharding)]

    keys = jax.random.split(jax.random.key(0), 5)
    expected = [content(array) for array in draw(draws(None), keys)]
    wanted = draws(NamedSharding(mesh, spec) if named else spec)
    function = jax.jit(lambda k: draw(wanted, k)) if traced else lambda k: draw(wanted, k)
    if in_context:
        with jax.set_mesh(mesh):
            arrays = function(keys)
    else:
        arrays = function(keys)
    assert [content(array) for array in arrays] == expected
    for array in arrays:
        assert array.sharding.is_equivalent_to(NamedSharding(mesh, spec), array.ndim)
        assert {shard.data.size for shard in array.addressable_shards} == {array.size // 8}


@pytest.mark.unoptimized
def test_other_shardings(devices):
    mesh = make_mesh()
    replicated, single = NamedSharding(mesh, P()), SingleDeviceSharding(devices[3])
    draws = [LeafSpec(init.normal(), (4, 4), FLOAT32, s) for s in (None, replicated, single)]
    keys = jax.random.split(jax.random.key(0), 3)
    arrays = draw(draws, keys)
    assert arrays[1].sharding == replicated
    assert arrays[2].devices() == {devices[3]}
    traced = jax.jit(lambda k: draw(draws[:2], k))(keys[:2])
    assert [content(a) for a in traced] == [content(a) for a in arrays[:2]]


@pytest.mark.unoptimized
def test_a_committed_key_says_where_and_a_sharding_wins(devices):
    mesh = make_mesh()
    keys = jax.random.split(jax.random.key(0), 2)
    committed = jax.device_put(keys, devices[5])
    wish = NamedSharding(mesh, P("a"))
    draws = [
        LeafSpec(init.normal(), (4, 4), FLOAT32),
        LeafSpec(init.normal(), (4, 4), FLOAT32, wish),
    ]
    arrays = draw(draws, committed)
    assert arrays[0].devices() == {devices[5]}
    assert arrays[1].sharding == wish
    assert [content(a) for a in arrays] == [content(a) for a in draw(draws, keys)]


@pytest.mark.unoptimized
def test_a_sharded_ensemble(devices):
    mesh = make_mesh()
    draws = [LeafSpec(init.normal(), (4, 6), FLOAT32, NamedSharding(mesh, P("a", "b")))] * 2
    keys = jnp.stack([jax.random.split(jax.random.key(seed), 2) for seed in range(3)])
    together = jax.vmap(lambda k: draw(draws, k))(keys)
    assert together[1].sharding.spec == P(None, "a", "b")
    assert content(together[1][2]) == content(draw(draws, keys[2])[1])


def test_sharded_draws_need_no_communication(devices):
    wish = NamedSharding(make_mesh(), P("a", "b"))
    draws = [LeafSpec(init.he_normal(), (8, 12), FLOAT32, wish)] * 3
    keys = jax.random.split(jax.random.key(0), 3)
    text = jax.jit(lambda k: draw(draws, k)).lower(keys).compile().as_text()
    assert not [name for name in COLLECTIVES if name in text]
