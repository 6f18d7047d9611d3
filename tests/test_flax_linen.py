"""Linen modules as trees: true axes, stacked layers, the module's own laws, and the way back.

The axes are not compared with a table of expectations but with the layers themselves: with a
kernel of ones, an input of ones and circular padding, every output is the number of products it
sums, which is fan_in, and every input's gradient is the number of outputs it feeds, fan_out.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

import jaxinit
from catalogue import QUICK
from helpers import make_mesh
from jaxinit import ParamSpec, Plan, own, plan
from jaxinit import initializers as init
from jaxinit.flax import linen_tree, own_initializers
from jaxinit.initializers import Axes

pytestmark = pytest.mark.unoptimized

KEY = jax.random.key(0)
Partitioned = nn.meta.Partitioned


def floats(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def by_path(tree: Any) -> dict[str, Any]:
    """Leaves by canonical path, as a plan names them."""
    flat, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {
        jax.tree_util.keystr(_but_value(path), simple=True, separator="/"): v for path, v in flat
    }


def _but_value(path: tuple[Any, ...]) -> tuple[Any, ...]:
    return path[:-1] if path[-1] == jax.tree_util.GetAttrKey("value") else path


class MyDense(nn.Dense):
    """A subclass, which counts as its parent."""


class Upright(nn.Dense):
    """A subclass whose kernel is transposed, which does not."""

    @nn.compact
    def __call__(self, inputs):
        kernel = self.param("kernel", self.kernel_init, (self.features, inputs.shape[-1]))
        return inputs @ kernel.T


CIRCULAR: dict[str, Any] = {"padding": "CIRCULAR", "use_bias": False}
LAYERS = {
    "dense": (nn.Dense(6, use_bias=False), (2, 5)),
    "dense, subclass": (MyDense(6, use_bias=False), (2, 5)),
    "general, two in": (nn.DenseGeneral(6, axis=(-2, -1), use_bias=False), (2, 5, 3)),
    "general, two out": (nn.DenseGeneral((6, 4), use_bias=False), (2, 5)),
    "general, batch": (nn.DenseGeneral((6, 4), batch_dims=(0,), use_bias=False), (3, 2, 5)),
    "general, two batches": (nn.DenseGeneral(6, batch_dims=(0, 1), use_bias=False), (3, 2, 2, 5)),
    "einsum": (nn.Einsum((5, 6, 4), "bd,dhk->bhk", use_bias=False), (2, 5)),
    "einsum, experts": (nn.Einsum((3, 5, 6), "ebd,edf->ebf", use_bias=False), (3, 2, 5)),
    "einsum, transposed": (nn.Einsum((6, 5), "...d,fd->...f", use_bias=False), (2, 5)),
    "conv": (nn.Conv(6, (3, 5), **CIRCULAR), (2, 8, 8, 4)),
    "conv, one size": (nn.Conv(6, 3, **CIRCULAR), (2, 8, 4)),
    "conv, groups": (nn.Conv(6, (3, 3), feature_group_count=2, **CIRCULAR), (2, 8, 8, 4)),
    "conv, depthwise": (nn.Conv(8, (3, 3), feature_group_count=4, **CIRCULAR), (2, 8, 8, 4)),
    "transposed": (nn.ConvTranspose(6, (4, 4), (2, 2), **CIRCULAR), (2, 6, 6, 3)),
    "transposed, no stride": (nn.ConvTranspose(6, (3,), **CIRCULAR), (2, 6, 3)),
    "transposed, odd": (nn.ConvTranspose(6, (4, 3), (2, 1), **CIRCULAR), (2, 6, 6, 3)),
    "transposed kernel": (
        nn.ConvTranspose(6, (4,), (2,), transpose_kernel=True, **CIRCULAR),
        (2, 6, 3),
    ),
}


@pytest.mark.parametrize(("layer", "shape"), LAYERS.values(), ids=LAYERS)
def test_fans_are_what_the_layer_computes(layer, shape):
    (spec,) = jax.tree.leaves(linen_tree(layer, floats(*shape)))
    planned = jaxinit.plan({"kernel": spec}, [("kernel", "lecun_normal")])["kernel"]

    ones = {"params": {"kernel": jnp.ones(spec.shape)}}
    inputs = jnp.ones(shape)
    products = layer.apply(ones, inputs)
    feeds = jax.grad(lambda x: layer.apply(ones, x).sum())(inputs)
    # A transposed convolution with stride reaches its outputs unevenly: the mean is what counts.
    assert planned.fans.fan_in == float(products.sum()) / products.size
    assert planned.fans.fan_out == float(feeds.sum()) / feeds.size
    assert planned.law.variance == pytest.approx(1 / planned.fans.fan_in)


def test_positions_of_a_local_convolution_are_a_batch():
    """Its window and its features share an axis, so a fan_out is that of one position."""
    layer = nn.ConvLocal(6, (3, 1), **CIRCULAR)
    (spec,) = jax.tree.leaves(linen_tree(layer, floats(2, 4, 4, 2)))
    assert (spec.shape, spec.axes) == ((4, 4, 6, 6), Axes((-2,), (-1,), (-4, -3)))
    fans = init.lecun_normal(*spec.axes).fans(spec.shape)
    products = layer.apply({"params": {"kernel": jnp.ones(spec.shape)}}, jnp.ones((2, 4, 4, 2)))
    assert (products == fans.fan_in).all()


def test_axes_of_a_dense_kernel_are_the_default_ones():
    """So that a rule gives equal initializers with and without this knowledge."""
    tree = linen_tree(nn.Dense(6), floats(2, 5))
    assert tree["params"]["kernel"] == ParamSpec((5, 6), jnp.float32, axes=Axes())
    assert tree["params"]["bias"] == ParamSpec((6,), jnp.float32)
    assert jaxinit.plan(tree, [("**/kernel", init.he_normal()), ("**/bias", init.zeros)]) == (
        jaxinit.plan(
            jax.eval_shape(nn.Dense(6).init, KEY, floats(2, 5)),
            [("**/kernel", init.he_normal()), ("**/bias", init.zeros)],
        )
    )


def test_attention_and_cells_are_made_of_known_layers():
    attention = nn.MultiHeadDotProductAttention(num_heads=4, qkv_features=8)
    tree = by_path(linen_tree(attention, floats(2, 3, 8), floats(2, 3, 8)))
    assert tree["params/query/kernel"].axes == Axes((-3,), (-2, -1))
    assert tree["params/out/kernel"].axes == Axes((-3, -2), (-1,))
    for cell in (nn.LSTMCell(4), nn.OptimizedLSTMCell(4), nn.GRUCell(4), nn.MGUCell(4)):
        tree = by_path(linen_tree(nn.RNN(cell), floats(2, 3, 5)))
        kernels = [spec for path, spec in tree.items() if path.endswith("kernel")]
        assert len(kernels) >= 4
        assert all(spec.axes == Axes() for spec in kernels)


@pytest.mark.parametrize(
    "module",
    [
        Upright(6),
        nn.Embed(7, 4),
        nn.Einsum((5, 6), "bd,...->bd", use_bias=False),
    ],
    ids=["a kernel of another form", "a lookup", "an ellipsis in the kernel"],
)
def test_no_axes_where_none_are_certain(module):
    inputs = jax.ShapeDtypeStruct(
        (2, 5), jnp.int32 if isinstance(module, nn.Embed) else jnp.float32
    )
    if isinstance(module, nn.Einsum):
        inputs = floats(5, 6)
    (spec,) = jax.tree.leaves(linen_tree(module, inputs)["params"])[-1:]
    assert spec.axes is None


def test_an_equation_may_come_with_the_call():
    class Called(nn.Module):
        @nn.compact
        def __call__(self, x):
            layer = nn.Einsum((3, 4, 5), name="einsum")
            return layer(x, einsum_str="bhd,hdk->bhk") + layer(x, "bhd,hdk->bhk")

    tree = by_path(linen_tree(Called(), floats(2, 3, 4)))
    assert tree["params/einsum/kernel"].axes == Axes((-2,), (-1,), (-3,))


# Stacked layers.


class Block(nn.Module):
    """A body for scans: a layer, and a parameter of its own."""

    features: int = 8
    kernel_init: Any = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, x, _=None):
        scale = self.param("scale", nn.initializers.normal(0.5), (self.features,))
        dense = nn.Dense(self.features, kernel_init=self.kernel_init, name="dense")
        return dense(x) * scale[None], None


def scanned(length: int, axis: int = 0, **options: Any) -> Any:
    return nn.scan(
        Block, variable_axes={"params": axis}, split_rngs={"params": True}, length=length, **options
    )


@pytest.mark.parametrize(
    ("axis", "shape", "stack"), [(0, (3, 8, 8), 0), (1, (8, 3, 8), 1), (-1, (8, 8, 3), 2)]
)
def test_scanned_layers_are_stacked(axis, shape, stack):
    tree = by_path(linen_tree(scanned(3, axis)(), floats(2, 8), None))
    kernel = tree["params/dense/kernel"]
    assert (kernel.shape, kernel.stack_axes, kernel.axes) == (shape, (stack,), Axes())
    assert kernel.layer_shape == (8, 8)
    assert tree["params/scale"].stack_axes == (min(stack, 1),)
    assert tree["params/scale"].layer_shape == (8,)


def test_vmapped_layers_are_stacked():
    ensemble = nn.vmap(
        nn.Dense,
        in_axes=None,
        variable_axes={"params": 0},
        split_rngs={"params": True},
        axis_size=5,
    )
    kernel = linen_tree(ensemble(4), floats(2, 8))["params"]["kernel"]
    assert (kernel.shape, kernel.stack_axes, kernel.axes) == ((5, 8, 4), (0,), Axes())


def test_nested_scans_have_several_stacked_axes():
    nested = nn.remat_scan(MyDense, lengths=(2, 3))
    kernel = linen_tree(nested(8), floats(2, 8))["params"]["kernel"]
    assert (kernel.shape, kernel.stack_axes) == ((2, 3, 8, 8), (0, 1))
    assert kernel.layer_shape == (8, 8)


def test_a_scanned_function_is_followed():
    class Outer(nn.Module):
        @nn.compact
        def __call__(self, x):
            def body(module, carry, _):
                weight = module.param("weight", nn.initializers.normal(), (8, 4))
                return nn.Dense(8, name="dense")(carry @ weight), None

            scan = nn.scan(body, variable_axes={"params": 0}, split_rngs={"params": True}, length=3)
            return scan(self, x, None)[0]

    tree = by_path(linen_tree(Outer(), floats(2, 8)))
    assert tree["params/dense/kernel"].stack_axes == (0,)
    assert tree["params/weight"] == ParamSpec((3, 8, 4), jnp.float32, stack_axes=(0,))


def test_shared_layers_of_a_scan_are_not_stacked():
    shared = nn.scan(Block, variable_broadcast="params", split_rngs={"params": False}, length=3)
    tree = by_path(linen_tree(shared(), floats(2, 8), None))
    assert tree["params/dense/kernel"] == ParamSpec((8, 8), jnp.float32, axes=Axes())


def test_the_leading_axis_is_taken_where_all_are_equal():
    kernel = linen_tree(scanned(8, 1)(), floats(2, 8), None)["params"]["dense"]["kernel"]
    assert (kernel.shape, kernel.stack_axes) == ((8, 8, 8), (0,))


def test_axis_names_decide_where_all_are_equal():
    kernel_init = nn.with_partitioning(nn.initializers.lecun_normal(), ("in", "out"))
    layers = scanned(8, 1, metadata_params={nn.PARTITION_NAME: "layers"})(kernel_init=kernel_init)
    box = linen_tree(layers, floats(2, 8), None)["params"]["dense"]["kernel"]
    assert isinstance(box, Partitioned)
    assert box.names == ("in", "layers", "out")
    assert (box.value.shape, box.value.stack_axes) == ((8, 8, 8), (1,))


def test_a_parameter_stored_in_another_form_keeps_to_itself():
    def transposed(variables):
        return jax.tree.map(jnp.transpose, variables)

    Stored = nn.map_variables(
        nn.Dense, "params", trans_in_fn=transposed, trans_out_fn=transposed, init=True, mutable=True
    )
    kernel = linen_tree(Stored(6), floats(2, 5))["params"]["kernel"]
    assert kernel == ParamSpec((6, 5), jnp.float32)
    assert own_initializers(Stored(6), floats(2, 5))["params/kernel"] is None


# Ways in which modules are written.


class Setup(nn.Module):
    """Layers made in setup, one used twice, one by a method that is not its call."""

    def setup(self):
        self.tokens = nn.Embed(11, 8)
        self.shared = nn.Dense(8)
        self.offset = self.param("offset", nn.initializers.normal(0.1), (1, 1, 8))

    def __call__(self, ids):
        x = self.tokens(ids) + self.offset
        return self.tokens.attend(self.shared(self.shared(x)))


def test_setup_and_shared_modules():
    tree = by_path(linen_tree(Setup(), jax.ShapeDtypeStruct((2, 3), jnp.int32)))
    assert tree == {
        "params/offset": ParamSpec((1, 1, 8), jnp.float32),
        "params/shared/bias": ParamSpec((8,), jnp.float32),
        "params/shared/kernel": ParamSpec((8, 8), jnp.float32, axes=Axes()),
        "params/tokens/embedding": ParamSpec((11, 8), jnp.float32),
    }


class Jitted(nn.Module):
    """Equal layers under `nn.jit`, which traces the first and reuses the trace for the second."""

    layer: Any

    @nn.compact
    def __call__(self, x):
        return self.layer(8, name="second")(self.layer(8, name="first")(x))


def test_jitted_layers_are_seen_each_time():
    module = Jitted(nn.jit(nn.Dense))
    module.init(KEY, jnp.ones((2, 8)))
    for jitted in (module, module, nn.jit(Jitted)(module.layer)):
        tree = by_path(linen_tree(jitted, floats(2, 8)))
        assert [spec.axes for path, spec in tree.items() if "kernel" in path] == [Axes(), Axes()]
        own = own_initializers(jitted, floats(2, 8))
        assert set(map(repr, own.values())) == {"zeros", "lecun_normal()"}


def test_remat_keeps_everything_in_sight():
    class Remat(nn.Module):
        @nn.remat
        @nn.compact
        def __call__(self, x):
            x = x @ self.param("weight", nn.initializers.normal(0.1), (8, 8))
            return nn.remat(nn.Dense)(4, name="dense")(x)

    tree = by_path(linen_tree(Remat(), floats(2, 8)))
    assert tree["params/dense/kernel"].axes == Axes()
    own = own_initializers(Remat(), floats(2, 8))
    assert own["params/weight"] == init.normal(0.1)
    assert own["params/dense/kernel"] == init.lecun_normal()


class Kitchen(nn.Module):
    """Several inputs, flags, random streams and collections."""

    @nn.compact
    def __call__(self, ids, image, *, train: bool, mask=None):
        x = nn.Embed(11, 8)(ids)
        attention = nn.MultiHeadDotProductAttention(
            num_heads=2, qkv_features=8, dropout_rate=0.1, decode=True, deterministic=not train
        )
        x = attention(x, mask=mask)
        image = nn.BatchNorm(use_running_average=not train)(nn.Conv(4, (3, 3))(image))
        noise = jax.random.normal(self.make_rng("noise"), x.shape)
        x = nn.LayerNorm()(nn.Dropout(0.1, deterministic=not train)(x + noise))
        self.sow("intermediates", "x", x)
        return x.sum() + nn.GroupNorm(2)(image).sum()


KITCHEN = (jax.ShapeDtypeStruct((2, 3), jnp.int32), floats(2, 8, 8, 3))


def test_flags_streams_and_collections():
    tree = linen_tree(Kitchen(), *KITCHEN, train=True)
    assert set(tree) == {"params", "batch_stats", "cache"}
    own = own_initializers(Kitchen(), *KITCHEN, train=True)
    assert own["batch_stats/BatchNorm_0/mean"] == init.zeros
    assert own["batch_stats/BatchNorm_0/var"] == init.ones
    assert own["cache/MultiHeadDotProductAttention_0/cached_key"] == init.zeros
    assert own["cache/MultiHeadDotProductAttention_0/cache_index"] == init.zeros
    assert None not in own.values()
    assert linen_tree(Kitchen(), *KITCHEN, train=False, rngs={"params": KEY, "noise": KEY}) == tree


def test_the_tree_is_that_of_init():
    abstract = jax.eval_shape(functools.partial(Kitchen().init, train=True), KEY, *KITCHEN)
    tree = linen_tree(Kitchen(), *KITCHEN, train=True)
    assert jax.tree.structure(tree) == jax.tree.structure(abstract)
    for spec, leaf in zip(jax.tree.leaves(tree), jax.tree.leaves(abstract), strict=True):
        assert (spec.shape, spec.dtype) == (leaf.shape, leaf.dtype)


def test_another_method_can_be_traced():
    class Model(nn.Module):
        def setup(self):
            self.dense = nn.Dense(4)

        def encode(self, x):
            return self.dense(x)

    assert set(by_path(linen_tree(Model(), floats(1, 3), method="encode"))) == {
        "params/dense/bias",
        "params/dense/kernel",
    }


def test_nothing_is_allocated_and_nothing_is_left_behind():
    module = nn.Dense(10**6, param_dtype=jnp.bfloat16)
    before = dict(vars(module))
    spec = linen_tree(module, floats(1, 10**6))["params"]["kernel"]
    assert (spec.shape, spec.dtype) == ((10**6, 10**6), jnp.bfloat16)
    assert vars(module) == before
    assert not module.is_initializing() if module.scope else True


def test_no_tracer_outlives_the_trace():
    module = Jitted(nn.remat(nn.Dense))
    with jax.checking_leaks():
        assert set(by_path(linen_tree(module, floats(2, 8)))) == set(
            own_initializers(module, floats(2, 8))
        )
        statistics = own_initializers(nn.BatchNorm(False), floats(2, 3))
    assert statistics["batch_stats/var"] == init.ones


def test_a_plan_leaves_a_random_key_among_the_variables_to_the_model():
    class Keeper(nn.Module):
        @nn.compact
        def __call__(self, x):
            self.variable("random", "key", lambda: jax.random.key(0))
            return nn.Dense(2)(x)

    tree = linen_tree(Keeper(), floats(1, 2))
    plan = jaxinit.plan(tree, [("**", init.zeros)])
    assert plan["random/key"].initializer == jaxinit.own
    jaxinit.plan(tree["params"], [("**", init.zeros)])


# Errors.


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (nn.Dense, r"got the class Dense\. Call the class: Dense\(\.\.\.\)"),
        (3, r"got 3\. Pass the module itself"),
        (nn.Dense(3).apply, r"got <bound method .*\.\.\.\. Pass the module itself, not"),
        (lambda: nnx.Linear(2, 3, rngs=nnx.Rngs(0)), r"an NNX model of type Linear\. Use nnx_tree"),
    ],
    ids=["class", "number", "method", "nnx"],
)
def test_what_is_no_linen_module(module, message):
    if getattr(module, "__name__", "") == "<lambda>":
        module = module()
    for function in (linen_tree, own_initializers):
        with pytest.raises(TypeError, match=f"^{function.__name__} needs a .*{message}"):
            function(module, floats(1, 2))


@pytest.mark.parametrize(
    ("inputs", "kwargs", "message"),
    [
        ((), {}, r"got \(\): TypeError: .*missing 1 required positional argument"),
        ((1, 16), {}, r"got \(1, 16\): TypeError: .*takes 2 positional arguments but 3 were given"),
        ((floats(4),), {}, r"got \(float32\[4\]\): ValueError: a model of ours wants two axes\."),
        ((floats(2, 4),), {"gain": 2}, r"got \(float32\[2,4\], gain=2\): TypeError: .*'gain'"),
    ],
    ids=["too few", "a shape in place of an array", "a wrong one", "unknown keyword"],
)
def test_inputs_that_do_not_trace(inputs, kwargs, message):
    class Ours(nn.Module):
        @nn.compact
        def __call__(self, x):
            if x.ndim != 2:
                raise ValueError("a model of ours wants two axes\nand says more")
            return nn.Dense(2)(x)

    for function in (linen_tree, own_initializers):
        with pytest.raises(ValueError, match="needs inputs that Ours can be traced with") as caught:
            function(Ours(), *inputs, **kwargs)
        assert caught.match(message)
        assert caught.match("arrays or jax.ShapeDtypeStruct")
        assert "says more" not in str(caught.value)
        assert caught.value.__cause__ is not None


def test_an_array_that_should_be_a_flag_is_named():
    class Branches(nn.Module):
        @nn.compact
        def __call__(self, x, train):
            return nn.Dense(2 if train else 3)(x)

    with pytest.raises(ValueError, match=r"bool\[\]\): TracerBoolConversionError.*train=False"):
        linen_tree(Branches(), floats(1, 2), jnp.array(True))
    tree = by_path(linen_tree(Branches(), floats(1, 2), True))
    assert tree["params/Dense_0/bias"].shape == (2,)


# The module's own laws.


def halved(function):
    """A decorator that changes the law: what it wraps must not be taken for it."""

    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        return function(*args, **kwargs) / 2

    return wrapper


class Mine(nn.Module):
    """One kernel, drawn by the function given."""

    draw: Any

    @nn.compact
    def __call__(self, x):
        return x @ self.param("kernel", self.draw, (x.shape[-1], 4))


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (init.he_normal(), init.he_normal()),
        (nn.initializers.he_normal(), init.he_normal()),
        (nn.initializers.truncated_normal(0.02), init.truncated_normal(0.02)),
        (nn.initializers.zeros, init.zeros),
        (nn.initializers.ones_init(), init.ones),
        (nn.with_partitioning(init.he_normal(), (None, None)), init.he_normal()),
        (nn.with_partitioning(nn.initializers.orthogonal(), (None,)), init.orthogonal()),
        (nn.with_logical_partitioning(nn.initializers.zeros, ("a", "b")), init.zeros),
        (lambda key, shape: jnp.full(shape, 1e-4), init.constant(1e-4)),
        (lambda key, shape: 2 * jnp.ones(shape) / 8, init.constant(0.25)),
        (lambda key, shape: jax.random.normal(key, shape), None),
        (lambda key, shape: jnp.arange(32.0).reshape(shape), None),
        (halved(nn.initializers.he_normal()), None),
    ],
)
def test_functions_that_draw(function, expected):
    assert own_initializers(Mine(function), floats(1, 8)) == {"params/kernel": expected}


class Zoo(nn.Module):
    """Kernels whose own laws are easily got wrong, all of 4,000 entries or more."""

    @nn.compact
    def __call__(self, x, ids, image):
        x = x + nn.Embed(100, 64)(ids)
        x = nn.MultiHeadDotProductAttention(num_heads=8, qkv_features=64, name="attention")(x)
        x = nn.DenseGeneral((8, 16), batch_dims=(0,), name="experts")(x)
        x = nn.DenseGeneral(64, axis=(-2, -1), kernel_init=init.he_uniform(), name="merge")(x)
        general = nn.DenseGeneral((8, 12), kernel_init=nn.initializers.orthogonal(), name="haar")
        x = nn.Einsum((8, 12, 64), "bthk,hkd->btd", use_bias=False, name="einsum")(general(x))
        x = nn.Einsum((64, 4, 32), "btd,dhk->bthk", name="split")(x)
        image = nn.Conv(128, (3, 3), feature_group_count=8, name="grouped")(image)
        image = nn.ConvTranspose(16, (4, 4), (2, 2), transpose_kernel=True, name="up")(image)
        image = nn.ConvLocal(8, (3, 3), (4, 4), name="local")(image)
        gamma = self.param("gamma", lambda key, shape: jnp.full(shape, 1e-5), (8,))
        layers = scanned(4)(8, kernel_init=nn.initializers.glorot_uniform(), name="layers")
        rows, _ = layers(image.reshape(-1, 8) * gamma[None], None)
        return x.sum() + nn.BatchNorm(use_running_average=False)(rows).sum()


ZOO = (floats(4, 16, 64), jax.ShapeDtypeStruct((4, 16), jnp.int32), floats(2, 8, 8, 32))


@pytest.fixture(scope="module")
def zoo():
    inputs = [jnp.zeros(leaf.shape, leaf.dtype) for leaf in ZOO]
    drawn = jax.jit(Zoo().init, compiler_options=QUICK)(KEY, *inputs)
    return by_path(drawn), own_initializers(Zoo(), *ZOO)


def test_own_laws_are_those_of_init(zoo):
    """The second moment at 5 standard errors: with 4,096 entries a std that is 8 % off fails."""
    arrays, own = zoo
    assert set(arrays) == set(own)
    for path, array in arrays.items():
        initializer = own[path]
        assert initializer is not None, path
        law = initializer.law(array.shape, array.dtype)
        moment = float(np.mean(np.square(np.asarray(array, np.float64))))
        if law.variance == 0:
            assert moment == pytest.approx(law.mean**2, rel=1e-6), path
        else:
            error = math.sqrt((law.kurtosis - 1) / array.size)
            assert moment == pytest.approx(law.variance, rel=5 * error), (path, initializer)
            assert law.support[0] <= array.min() and array.max() <= law.support[1], path


def test_own_laws_say_what_flax_does(zoo):
    _, own = zoo
    assert {path.removeprefix("params/"): repr(own[path]) for path in own if "kernel" in path} == {
        "attention/key/kernel": "lecun_normal(in_axis=-3, out_axis=(-2, -1))",
        "attention/out/kernel": "lecun_normal()",
        "attention/query/kernel": "lecun_normal(in_axis=-3, out_axis=(-2, -1))",
        "attention/value/kernel": "lecun_normal(in_axis=-3, out_axis=(-2, -1))",
        # Four experts make the fan_in four times too large: half the standard deviation.
        "experts/kernel": "reshaped(lecun_normal(), (256, 128))",
        "merge/kernel": "he_uniform()",
        "haar/kernel": "reshaped(orthogonal(), (64, 96))",
        "einsum/kernel": "lecun_normal()",
        # The raw shape with default axes: 64 counts as receptive field of 4 inputs.
        "split/kernel": "reshaped(lecun_normal(), (64, 4, 32))",
        "grouped/kernel": "lecun_normal()",
        "up/kernel": "reshaped(lecun_normal(), (4, 4, 16, 128))",
        "local/kernel": "reshaped(lecun_normal(), (4, 4, 144, 8))",
        "layers/dense/kernel": "stacked(glorot_uniform())",
    }
    assert own["params/Embed_0/embedding"].law((100, 64)).variance == 1 / 64


def test_own_laws_survive_a_plan_that_knows_better(zoo):
    arrays, own = zoo
    rules = [
        (functools.partial(lambda wanted, path, leaf: path == wanted, path), initializer)
        for path, initializer in own.items()
    ]
    for tree in (linen_tree(Zoo(), *ZOO), jax.eval_shape(Zoo().init, KEY, *ZOO)):
        plan = jaxinit.plan(tree, rules)
        for path, array in arrays.items():
            law = own[path].law(array.shape, array.dtype)
            assert (plan[path].law.mean, plan[path].law.variance) == (law.mean, law.variance), path


def test_a_grouped_convolution_of_its_own_law_keeps_the_wrong_fan_out():
    """fan_out of 3x3x1x64 depthwise: 576 for JAX, 9 in truth."""
    layer = nn.Conv(64, (3, 3), feature_group_count=64, kernel_init=nn.initializers.he_normal())
    assert own_initializers(layer, floats(1, 8, 8, 64))["params/kernel"] == init.he_normal()
    fan_out = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
    layer = layer.clone(kernel_init=fan_out)
    own = own_initializers(layer, floats(1, 8, 8, 64))["params/kernel"]
    assert own.law((3, 3, 1, 64)).variance == 2 / 576
    tree = linen_tree(layer, floats(1, 8, 8, 64))
    rules = [("**/kernel", fan_out), ("**/bias", init.zeros)]
    assert jaxinit.plan(tree, rules)["params/kernel"].law.variance == 2 / 9


def test_a_layer_axis_costs_nothing_in_its_own_law():
    own = own_initializers(scanned(12)(), floats(2, 8), None)
    assert own["params/dense/kernel"] == init.stacked(init.lecun_normal())
    assert own["params/dense/kernel"].law((12, 8, 8)).variance == 1 / 8
    assert own["params/scale"] == init.stacked(init.normal(0.5))
    assert own["params/dense/bias"] == init.zeros


# Back into the module.


def test_values_of_a_plan_go_into_apply():
    kernel_init = nn.with_partitioning(nn.initializers.lecun_normal(), (None, "model"))
    layers = scanned(3, metadata_params={nn.PARTITION_NAME: None})(kernel_init=kernel_init)
    tree = linen_tree(layers, floats(2, 8), None)
    rules = [("**/kernel", init.orthogonal()), ("**/bias", init.zeros), ("**/scale", init.ones)]
    variables = jaxinit.plan(tree, rules).init(KEY)

    box = variables["params"]["dense"]["kernel"]
    assert isinstance(box, Partitioned)
    assert box.names == (None, None, "model")
    for kernel in box.value:
        assert jnp.allclose(kernel.T @ kernel, jnp.eye(8), atol=1e-5)
    inputs = jnp.ones((2, 8))
    (outputs, _) = layers.apply(variables, inputs, None)
    # Three orthogonal maps keep the length of every row.
    assert jnp.allclose(jnp.linalg.norm(outputs, axis=-1), math.sqrt(8), atol=1e-5)


def test_shardings_of_the_metadata_can_be_asked_for(devices):
    mesh = make_mesh(sizes=(len(devices),), names=("model",))
    kernel_init = nn.with_partitioning(nn.initializers.lecun_normal(), (None, "model"))
    dense = nn.Dense(16, kernel_init=kernel_init)
    tree = linen_tree(dense, floats(2, 4))
    rules = [("**/kernel", init.he_normal()), ("**/bias", init.zeros)]
    variables = jaxinit.plan(tree, rules, out_shardings=nn.get_sharding(tree, mesh)).init(KEY)
    kernel = variables["params"]["kernel"].value
    assert kernel.sharding == NamedSharding(mesh, PartitionSpec(None, "model"))
    assert jnp.array_equal(kernel, jaxinit.plan(tree, rules).init(KEY)["params"]["kernel"].value)
    with jax.set_mesh(mesh):
        assert dense.apply(variables, jnp.ones((2, 4))).shape == (2, 16)
        assert linen_tree(dense, floats(2, 4)) == tree


def test_statistics_are_planned_like_parameters():
    normalize = nn.BatchNorm(use_running_average=False)
    rules = [("**/{mean,bias}", init.zeros), ("**/{var,scale}", init.ones)]
    variables = jaxinit.plan(linen_tree(normalize, floats(4, 3)), rules).init(KEY)
    inputs = jnp.arange(12.0).reshape(4, 3)
    outputs, updated = normalize.apply(variables, inputs, mutable=["batch_stats"])
    assert jnp.allclose(outputs.mean(0), 0, atol=1e-6)
    assert jnp.allclose(updated["batch_stats"]["mean"], 0.01 * inputs.mean(0))


def test_a_plan_leaves_variables_to_a_module():
    class Scaled(nn.Module):
        @nn.compact
        def __call__(self, x):
            odd = self.param("odd", lambda key: jax.random.normal(key, (4, 1)) @ jnp.ones((1, 4)))
            std = self.variable("stats", "std", jnp.ones, (4,))
            return nn.Dense(2)(x @ (odd * std.value[:, None]))

    tree = linen_tree(Scaled(), jax.ShapeDtypeStruct((2, 4), "float32"))
    p = plan(tree, [("**/bias", "zeros"), ("**", own)])
    assert repr(p["stats/std"].initializer) == "own(ones)" and not p["params/odd"].law.known
    params = p.init(jax.random.key(1))
    assert (params["stats"]["std"] == 1).all()
    odd = params["params"]["odd"]
    assert (odd == odd[:, :1]).all() and len(set(odd[:, 0].tolist())) == 4
    again = Plan.from_json(p.to_json(), like=tree)
    assert again["stats/std"] == p["stats/std"]
    assert (again.init(jax.random.key(1))["params"]["odd"] == odd).all()
