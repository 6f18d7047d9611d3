"""NNX models as trees, and values of a plan as models.

As for Linen, axes are held against what the layers compute: kernels and inputs of ones count the
products in an output and the outputs that an input feeds.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

import jaxinit
from helpers import make_mesh
from jaxinit import ParamSpec, own, plan
from jaxinit import initializers as init
from jaxinit.flax import linen_tree, nnx_apply, nnx_model, nnx_tree, own_initializers
from jaxinit.initializers import Axes

pytestmark = pytest.mark.unoptimized

KEY = jax.random.key(0)


def specs(tree: Any) -> dict[str, Any]:
    """Leaves of a state by canonical path."""
    flat, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path[:-1], simple=True, separator="/"): v for path, v in flat}


def rngs() -> nnx.Rngs:
    return nnx.Rngs(params=0, dropout=1)


class MyLinear(nnx.Linear):
    """A subclass, which counts as its parent."""


class Upright(nnx.Linear):
    """A subclass whose kernel is transposed, which does not."""

    def __init__(self, n: int, m: int, rngs: nnx.Rngs):
        super().__init__(n, m, rngs=rngs)
        self.kernel = nnx.Param(self.kernel[...].T)


class Bare(nnx.Linear):
    """A subclass with a constructor of its own and none of the parent's fields."""

    def __init__(self):
        self.kernel = nnx.Param(jnp.ones((3, 4)))


CIRCULAR: dict[str, Any] = {"padding": "CIRCULAR", "use_bias": False}
LAYERS = {
    "linear": (lambda r: nnx.Linear(5, 6, use_bias=False, rngs=r), (2, 5)),
    "linear, subclass": (lambda r: MyLinear(5, 6, use_bias=False, rngs=r), (2, 5)),
    "general": (
        lambda r: nnx.LinearGeneral((5, 3), (6, 4), axis=(-2, -1), use_bias=False, rngs=r),
        (2, 5, 3),
    ),
    "general, batch": (
        lambda r: nnx.LinearGeneral(5, (6, 4), batch_axis={0: 3}, use_bias=False, rngs=r),
        (3, 2, 5),
    ),
    "einsum": (lambda r: nnx.Einsum("bd,dhk->bhk", (5, 6, 4), rngs=r), (2, 5)),
    "einsum, experts": (lambda r: nnx.Einsum("ebd,edf->ebf", (3, 5, 6), rngs=r), (3, 2, 5)),
    "conv": (lambda r: nnx.Conv(4, 6, (3, 5), **CIRCULAR, rngs=r), (2, 8, 8, 4)),
    "conv, groups": (
        lambda r: nnx.Conv(4, 6, 3, feature_group_count=2, **CIRCULAR, rngs=r),
        (2, 8, 4),
    ),
    "transposed": (lambda r: nnx.ConvTranspose(3, 6, 4, 2, **CIRCULAR, rngs=r), (2, 6, 3)),
    "transposed kernel": (
        lambda r: nnx.ConvTranspose(
            3, 6, (4, 3), (2, 1), transpose_kernel=True, **CIRCULAR, rngs=r
        ),
        (2, 6, 6, 3),
    ),
}


@pytest.mark.parametrize(("layer", "shape"), LAYERS.values(), ids=LAYERS)
def test_fans_are_what_the_layer_computes(layer, shape):
    def factory():
        return layer(rngs())

    tree = nnx_tree(factory)
    planned = jaxinit.plan(tree, [("kernel", "lecun_normal")])["kernel"]
    model = nnx_model(factory, {"kernel": jnp.ones(planned.shape)})
    inputs = jnp.ones(shape)
    products = model(inputs)
    feeds = jax.grad(lambda x: model(x).sum())(inputs)
    assert planned.fans.fan_in == float(products.sum()) / products.size
    assert planned.fans.fan_out == float(feeds.sum()) / feeds.size


def test_attention_cells_and_adapters_are_made_of_known_layers():
    class Model(nnx.Module):
        def __init__(self, rngs):
            self.attention = nnx.MultiHeadAttention(4, 8, decode=False, rngs=rngs)
            self.cell = nnx.OptimizedLSTMCell(3, 4, rngs=rngs)
            self.adapter = nnx.LoRALinear(8, 6, lora_rank=2, rngs=rngs)

    tree = specs(nnx_tree(lambda: Model(rngs())))
    assert tree["attention/query/kernel"].axes == Axes((-3,), (-2, -1))
    assert tree["attention/out/kernel"].axes == Axes((-3, -2), (-1,))
    assert tree["cell/dense_i/kernel"].axes == Axes()
    assert tree["adapter/kernel"].axes == Axes()
    assert tree["adapter/lora/lora_a"] == ParamSpec((8, 2), jnp.float32, axes=Axes())
    assert tree["adapter/lora/lora_b"] == ParamSpec((2, 6), jnp.float32, axes=Axes())


@pytest.mark.parametrize(
    "factory",
    [lambda: Upright(3, 4, rngs()), Bare, lambda: nnx.Embed(7, 4, rngs=rngs())],
    ids=["a kernel of another form", "no fields", "a lookup"],
)
def test_no_axes_where_none_are_certain(factory):
    tree = specs(nnx_tree(factory))
    assert {spec.axes for spec in tree.values()} == {None}
    assert {spec.stack_axes for spec in tree.values()} == {()}


# Stacked layers.


class Block(nnx.Module):
    """A layer, its normalization and a parameter of its own."""

    def __init__(self, features: int, rngs: nnx.Rngs):
        self.dense = nnx.Linear(features, 2 * features, rngs=rngs)
        self.norms = nnx.List(
            [nnx.LayerNorm(features, rngs=rngs), nnx.GroupNorm(features, 2, rngs=rngs)]
        )
        self.gate = nnx.Param(jnp.ones((features, 3)))


def stack_of(make, size: int, out_axes: int = 0):
    return nnx.split_rngs(splits=size)(nnx.vmap(make, out_axes=out_axes))


class Stacked(nnx.Module):
    """Stacked blocks between layers that are not."""

    def __init__(self, rngs: nnx.Rngs):
        self.embed = nnx.Embed(7, 4, rngs=rngs)
        self.blocks = stack_of(lambda r: Block(4, r), 3)(rngs)
        self.scales = nnx.Param(jnp.ones((3,)))
        self.head = nnx.Linear(4, 7, rngs=rngs)


def test_vmapped_constructors_stack_their_layers():
    tree = specs(nnx_tree(lambda: Stacked(rngs())))
    kernel = tree["blocks/dense/kernel"]
    assert kernel == ParamSpec((3, 4, 8), jnp.float32, axes=Axes(), stack_axes=(0,))
    assert {spec.stack_axes for path, spec in tree.items() if "blocks" in path} == {(0,)}
    assert {spec.stack_axes for path, spec in tree.items() if "blocks" not in path} == {()}


def test_nested_stacks_and_other_axes():
    def nested():
        return stack_of(stack_of(lambda r: Block(4, r), 3), 5)(rngs())

    tree = specs(nnx_tree(nested))
    assert tree["dense/kernel"].shape == (5, 3, 4, 8)
    assert {spec.stack_axes for spec in tree.values()} == {(0, 1)}
    tree = specs(nnx_tree(lambda: stack_of(lambda r: Block(4, r), 3, out_axes=1)(rngs())))
    assert tree["dense/kernel"].shape == (4, 3, 8)
    assert {spec.stack_axes for spec in tree.values()} == {(1,)}


def test_a_stacked_kernel_has_the_fans_of_one_layer():
    tree = nnx_tree(lambda: Stacked(rngs()), lambda path, value: path[-1] == "kernel")
    plan = jaxinit.plan(tree, [("**/kernel", init.lecun_normal())])
    assert plan["blocks/dense/kernel"].law.variance == 1 / 4
    assert plan["blocks/dense/kernel"].initializer == init.stacked(init.lecun_normal())
    assert plan["head/kernel"].initializer == init.lecun_normal()


# What may be passed, and which variables.


class Kitchen(nnx.Module):
    """Parameters, statistics, random state, a shared layer and a plain list."""

    def __init__(self, rngs: nnx.Rngs):
        self.dense = nnx.Linear(4, 4, rngs=rngs, kernel_metadata={"note": "kept"})
        self.again = self.dense
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)
        self.more = nnx.List([nnx.Linear(4, 2, rngs=rngs), nnx.Linear(2, 1, rngs=rngs)])

    def __call__(self, x):
        return self.more[1](self.more[0](self.drop(self.norm(self.again(self.dense(x))))))


def kitchen() -> Kitchen:
    return Kitchen(rngs())


def test_models_abstract_models_and_factories_are_one():
    tree = nnx_tree(kitchen)
    assert isinstance(tree, nnx.State)
    assert list(specs(tree)) == list(specs(nnx.state(kitchen(), nnx.Param)))
    assert tree == nnx_tree(kitchen()) == nnx_tree(nnx.eval_shape(kitchen))
    assert specs(tree)["more/1/kernel"] == ParamSpec((2, 1), jnp.float32, axes=Axes())
    # A shared layer is there once, under the name that NNX gives it.
    assert "again/kernel" in specs(tree) and "dense/kernel" not in specs(tree)


def test_filters_choose_the_variables():
    assert set(specs(nnx_tree(kitchen, nnx.BatchStat))) == {"norm/mean", "norm/var"}
    both = specs(nnx_tree(kitchen, nnx.Param, nnx.BatchStat))
    assert {"norm/mean", "norm/scale"} < set(both)
    assert jaxinit.plan(nnx_tree(kitchen, ...), [("**", init.zeros)])["drop/rngs/key"].rule == (
        "random key"
    )


def test_nothing_is_allocated():
    (spec,) = jax.tree.leaves(
        nnx_tree(lambda: nnx.Linear(10**6, 10**6, use_bias=False, rngs=rngs()))
    )
    assert spec.nbytes == 4 * 10**12


# Into models.

RULES = [("**/kernel", init.he_normal()), ("**/bias", init.zeros), ("**/scale", init.ones)]


def test_a_plan_becomes_a_model():
    values = jaxinit.plan(nnx_tree(kitchen), RULES).init(KEY)
    model = nnx_model(kitchen, values)
    theirs = kitchen()
    assert isinstance(model, Kitchen)
    assert model.again is model.dense
    assert model.dense.kernel.get_metadata()["note"] == "kept"
    assert jnp.array_equal(model.dense.kernel[...], values["again"]["kernel"][...])
    # State that is no parameter is as the factory makes it.
    assert (model.norm.var[...] == 1).all() and not model.norm.mean[...].any()
    assert jax.random.key_data(model.drop.rngs.key[...]).tolist() == (
        jax.random.key_data(theirs.drop.rngs.key[...]).tolist()
    )
    assert model.drop.rngs.count[...] == theirs.drop.rngs.count[...]
    # It works, and its random state moves on.
    inputs = jnp.arange(8.0).reshape(2, 4)
    assert model(inputs).shape == (2, 1)
    assert model.drop.rngs.count[...] == 1
    assert model.norm.mean[...].any()


def test_values_may_be_a_state_nested_or_flat():
    values = jaxinit.plan(nnx_tree(kitchen), RULES).init(KEY)
    flat = {path: leaf for path, leaf in specs(values).items()}
    nested = nnx.to_pure_dict(values)
    wanted = specs(nnx.state(nnx_model(kitchen, values), nnx.Param))
    for other in (flat, nested):
        found = specs(nnx.state(nnx_model(kitchen, other), nnx.Param))
        assert all(jnp.array_equal(found[path], wanted[path]) for path in wanted)


def test_what_values_leave_out_is_the_factorys():
    plan = jaxinit.plan(nnx_tree(kitchen), RULES)
    part = plan.init(KEY, only="again/kernel")
    model, theirs, planned = nnx_model(kitchen, part), kitchen(), plan.init(KEY)
    assert jnp.array_equal(model.dense.kernel[...], planned["again"]["kernel"][...])
    assert jnp.allclose(model.more[0].kernel[...], theirs.more[0].kernel[...])


def test_a_model_that_is_passed_in_stays_as_it_is():
    model = kitchen()
    model.norm.mean[...] = jnp.full((4,), 7.0)
    before = specs(nnx.state(model, nnx.Param))
    new = nnx_model(model, jaxinit.plan(nnx_tree(model), RULES).init(KEY))
    after = specs(nnx.state(model, nnx.Param))
    assert all(before[path] is after[path] for path in before)
    assert not jnp.array_equal(new.dense.kernel[...], model.dense.kernel[...])
    assert (new.norm.mean[...] == 7).all()


def test_a_stacked_model_runs():
    class Tower(nnx.Module):
        def __init__(self, rngs):
            make = stack_of(lambda r: nnx.Linear(8, 8, use_bias=False, rngs=r), 3)
            self.layers = make(rngs)

        def __call__(self, x):
            return nnx.scan(lambda x, layer: layer(x), in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)(
                x, self.layers
            )

    def factory():
        return Tower(rngs())

    values = jaxinit.plan(nnx_tree(factory), [("**/kernel", init.orthogonal())]).init(KEY)
    outputs = nnx_model(factory, values)(jnp.ones((2, 8)))
    # Three orthogonal maps keep the length of every row.
    assert jnp.allclose(jnp.linalg.norm(outputs, axis=-1), 8**0.5, atol=1e-5)


def test_shardings_of_the_metadata_are_kept(devices):
    mesh = make_mesh(sizes=(len(devices),), names=("model",))
    wanted = NamedSharding(mesh, PartitionSpec(None, "model"))

    def factory():
        metadata = {"out_sharding": (None, "model")}
        return nnx.Linear(4, 16, kernel_metadata=metadata, rngs=rngs())

    with jax.set_mesh(mesh):
        values = jaxinit.plan(nnx_tree(factory), RULES[:2]).init(KEY)
        kernel = nnx_model(factory, values).kernel
    assert values["kernel"][...].sharding == kernel[...].sharding == wanted
    assert kernel.get_metadata()["out_sharding"] == (None, "model")


# One architecture, two ways to write it.


class LinenNet(nn.Module):
    """The names are those of `NnxNet`."""

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(8, (3, 3), feature_group_count=2, name="conv")(x)
        x = nn.relu(x).reshape(x.shape[0], -1, 8)
        x = nn.MultiHeadDotProductAttention(num_heads=2, qkv_features=8, name="mix")(x)
        layers = nn.scan(
            _LinenLayer, variable_axes={"params": 0}, split_rngs={"params": True}, length=3
        )
        return layers(name="layers")(x, None)[0]


class _LinenLayer(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return x + nn.Dense(8, name="dense")(nn.LayerNorm(name="norm")(x)), None


class _NnxLayer(nnx.Module):
    def __init__(self, rngs):
        self.dense = nnx.Linear(8, 8, rngs=rngs)
        self.norm = nnx.LayerNorm(8, rngs=rngs)

    def __call__(self, x):
        return x + self.dense(self.norm(x))


class NnxNet(nnx.Module):
    """The names are those of `LinenNet`."""

    def __init__(self, rngs):
        self.conv = nnx.Conv(4, 8, (3, 3), feature_group_count=2, rngs=rngs)
        self.mix = nnx.MultiHeadAttention(2, 8, decode=False, rngs=rngs)
        self.layers = stack_of(_NnxLayer, 3)(rngs)

    def __call__(self, x):
        x = self.conv(x)
        x = self.mix(nnx.relu(x).reshape(x.shape[0], -1, 8))
        step = nnx.scan(lambda x, layer: layer(x), in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
        return step(x, self.layers)


def test_linen_and_nnx_get_the_same_weights():
    inputs = jax.random.normal(KEY, (2, 4, 4, 4))
    rules = [
        ("layers/**/kernel", init.scaled_orthogonal(0.5)),
        ("**/kernel", init.glorot_normal()),
        ("**/bias", init.constant(0.1)),
        ("**/scale", init.ones),
    ]
    linen = LinenNet()
    plans = [
        jaxinit.plan(linen_tree(linen, inputs)["params"], rules),
        jaxinit.plan(nnx_tree(lambda: NnxNet(rngs())), rules),
    ]
    assert plans[0].leaves == plans[1].leaves
    assert not plans[0].diff(plans[1])

    params, state = (plan.init(jax.random.key(3)) for plan in plans)
    theirs = specs(state)
    flat, _ = jax.tree_util.tree_flatten_with_path(params)
    for path, leaf in flat:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        assert jnp.array_equal(leaf, theirs[name]), name
    model = nnx_model(lambda: NnxNet(rngs()), params)
    outputs = jax.jit(linen.apply)({"params": params}, inputs)
    assert jnp.allclose(outputs, nnx.jit(NnxNet.__call__)(model, inputs), atol=1e-5)


# Errors.

OUTSIDE = nnx.Rngs(0)


@pytest.mark.parametrize("function", [nnx_tree, lambda model: nnx_model(model, {})])
@pytest.mark.parametrize(
    ("model", "error", "message"),
    [
        (3, TypeError, r"function that makes one, got int\. Pass lambda"),
        (nn.Dense(3), TypeError, r"got Dense\. Use linen_tree for Linen modules"),
        (nnx.Linear, ValueError, r"got Linear: TypeError: .*missing 2 required.*Write lambda"),
        (lambda: 3, TypeError, r"makes an nnx\.Module, got ShapeDtypeStruct.*Return the model"),
        (
            lambda: nnx.Linear(2, 3, rngs=OUTSIDE),
            ValueError,
            r"TraceContextError: Cannot mutate.*with the nnx\.Rngs made inside",
        ),
    ],
    ids=["number", "linen", "class", "no model", "random state from outside"],
)
def test_what_makes_no_model(function, model, error, message):
    with pytest.raises(error, match=f"^nnx_(tree|model) needs a.*{message}"):
        function(model)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"norm": {"scael": jnp.ones(4)}}, r"got 'norm/scael' \(nearest: 'norm/scale'"),
        ({"more/0/bias": jnp.ones(3)}, r"float32 of shape \(2,\) for 'more/0/bias', got float32"),
        (
            {"more/0/bias": jnp.ones(2, jnp.bfloat16)},
            r"float32 of shape \(2,\) for 'more/0/bias', got bfloat16 of shape \(2,\)",
        ),
        ({"more/0/bias": 1.0}, r"got float of shape \(\)\. Plan the values from nnx_tree"),
    ],
    ids=["path", "shape", "dtype", "kind"],
)
def test_values_that_do_not_fit(values, message):
    with pytest.raises(ValueError, match=f"^nnx_model needs .*{message}"):
        nnx_model(kitchen, values)


def test_an_abstract_model_has_no_state_to_give():
    values = jaxinit.plan(nnx_tree(kitchen), RULES).init(KEY)
    with pytest.raises(ValueError, match=r"'norm/mean'.*Pass the factory instead"):
        nnx_model(nnx.eval_shape(kitchen), values)
    linear = nnx.eval_shape(lambda: nnx.Linear(2, 2, use_bias=False, rngs=rngs()))
    assert nnx_model(linear, {"kernel": jnp.ones((2, 2))})(jnp.ones((1, 2))).tolist() == [[2, 2]]


# What the constructor draws.


class Mixed(nnx.Module):
    def __init__(self, rngs):
        inits = nnx.initializers
        self.a = nnx.Linear(8, 16, rngs=rngs, bias_init=inits.constant(0.1))
        self.b = nnx.Linear(16, 16, rngs=rngs, kernel_init=inits.glorot_uniform())
        self.c = nnx.Conv(3, 8, (3, 3), rngs=rngs, kernel_init=inits.he_normal(), dtype="bfloat16")
        self.o = nnx.Linear(8, 8, rngs=rngs, kernel_init=inits.orthogonal())
        self.e = nnx.Embed(30, 16, rngs=rngs)
        self.norm, self.drop = nnx.BatchNorm(16, rngs=rngs), nnx.Dropout(0.5, rngs=rngs)
        stack = nnx.vmap(lambda key: nnx.Linear(8, 6, rngs=nnx.Rngs(key)))
        self.stack = stack(jax.random.split(rngs.params(), 3))


def make_mixed():
    return Mixed(nnx.Rngs(0))


def test_what_a_constructor_draws_is_read_from_its_jaxpr():
    drawn = own_initializers(make_mixed)
    texts = {path: repr(value) for path, value in drawn.items()}
    assert texts["a/kernel"] == "lecun_normal()" and texts["a/bias"] == "constant(0.1)"
    assert texts["c/kernel"] == "he_normal()" and texts["e/embedding"] == "normal(0.25)"
    # Glorot's, LeCun's and others have one law where the fans are the same.
    assert texts["b/kernel"] == "uniform(minval=-0.43301, maxval=0.43301)"
    assert texts["stack/kernel"] == "stacked(lecun_normal())"
    assert texts["norm/var"] == "ones" and texts["norm/mean"] == "zeros"
    assert drawn["o/kernel"] is None
    assert set(own_initializers(make_mixed()).values()) == {None}


@pytest.mark.parametrize(
    "make",
    [
        lambda key: jnp.tile(jax.random.normal(key, (4, 1)), (1, 4)),
        lambda key: (lambda w: w + w.T)(jax.random.normal(key, (4, 4))),
        lambda key: jax.vmap(lambda k: jax.random.normal(k, (4,)))(jnp.broadcast_to(key, (4,))),
        lambda key: jax.random.normal(key, (4, 4)) * jax.random.normal(key, (4, 1)),
        lambda key: jax.random.normal(key, (4, 4)) ** 3,
    ],
)
def test_entries_that_are_not_independent_have_no_law(make):
    def model():
        return nnx.Dict(w=nnx.Param(make(jax.random.key(0))))

    assert own_initializers(model) == {"w": None}


def test_a_plan_leaves_parameters_to_an_nnx_model():
    """Rules of what the tree leaves out, such as counters and statistics, take no leaf of it."""
    rules = [("{a,norm}/*", "zeros"), ("drop/rngs/count", own), ("**/mean", own), ("**", own)]
    p = plan(nnx_tree(make_mixed), rules)
    assert repr(p["c/kernel"].initializer) == "own(he_normal())" and p["c/kernel"].fans.fan_in == 27
    model, made = nnx_model(make_mixed, p.init(jax.random.key(1))), make_mixed()
    assert (model.o.kernel[...] == made.o.kernel[...]).all() and not model.a.bias[...].any()
    assert model.norm.var[...].all()
    held = plan(nnx_tree(made), [("**", own)]).init(jax.random.key(1))
    assert (jax.tree.leaves(held)[0] == made.a.bias[...]).all()
    with pytest.raises(ValueError, match=r"'\*\*/cuont' matches no leaf"):
        plan(nnx_tree(make_mixed), [("**/cuont", own), ("**", own)])


class Adapted(nnx.Module):
    def __init__(self, rngs):
        self.base = nnx.Linear(8, 8, rngs=rngs)
        self.norm, self.drop = nnx.BatchNorm(8, rngs=rngs), nnx.Dropout(0.1, rngs=rngs)
        self.lora = nnx.LoRA(8, 2, 8, rngs=rngs)

    def __call__(self, x):
        x = self.drop(self.norm(x))
        return self.base(x) + self.lora(x)


def test_advice_on_an_nnx_model_with_state_becomes_a_plan():
    def make():
        return Adapted(nnx.Rngs(0))

    x = jax.ShapeDtypeStruct((4, 8), "float32")
    advice = jaxinit.advise(jaxinit.read(*nnx_apply(make), x))
    p = plan(nnx_tree(make), advice.rules())
    assert {"drop/rngs/count", "norm/var"}.isdisjoint(p.paths)
    model = nnx_model(make, p.init(jax.random.key(0)))
    assert (model.norm.var[...] == 1).all() and model(jnp.ones((4, 8))).shape == (4, 8)
    for frozen in (nnx.Not(nnx.LoRAParam), "{base,norm}/*"):
        kept = plan(nnx_tree(make), advice.rules(), frozen=frozen)
        # 8**-0.5, over the 0.87963 that truncation leaves.
        assert repr(kept["base/kernel"].initializer) == "own(truncated_normal(0.40194))"
        assert kept["lora/lora_a"] == p["lora/lora_a"]
    # A plan of the whole state keeps what is no parameter: statistics, counters and keys.
    state = nnx.state(make())
    seed = jax.random.key_data(state["drop"]["rngs"]["key"].get_value())
    whole = plan(state, advice.rules()).init(jax.random.key(0), donate=state)
    assert (whole["norm"]["var"].get_value() == 1).all()
    assert (jax.random.key_data(whole["drop"]["rngs"]["key"].get_value()) == seed).all()
    assert (whole["base"]["kernel"].get_value() == model.base.kernel[...]).all()
    base = plan(nnx_tree(make), advice.rules(), frozen=nnx.LoRAParam)
    assert repr(base["lora/lora_b"].initializer) == "own(zeros)"
    assert dict(advice.rules(frozen="base/kernel"))["base/kernel"] == own
