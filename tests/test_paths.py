"""One string per leaf: the same for every framework that keeps an array at the same place."""

from __future__ import annotations

import dataclasses
import pickle
from typing import NamedTuple

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from helpers import make_mesh
from jaxinit import ParamSpec, plan
from jaxinit.initializers import Axes
from jaxinit.planning import flatten, spec_of

pytestmark = pytest.mark.unoptimized


def paths(tree) -> tuple[str, ...]:
    return flatten("test", tree).paths


class Layer(NamedTuple):
    kernel: object
    bias: object


@jax.tree_util.register_pytree_with_keys_class
@dataclasses.dataclass
class Odd:
    """A node whose keys are of no class that JAX knows."""

    inner: object

    def tree_flatten_with_keys(self):
        return [("odd key", self.inner)], None

    @classmethod
    def tree_unflatten(cls, aux, children):
        return cls(*children)


def test_every_kind_of_container():
    tree = {"b": [1, (2, None)], "a": {3: 4}, "c": Layer(5, {"x": 6}), "d": Odd(7)}
    assert paths(tree) == ("a/3", "b/0", "b/1/0", "c/kernel", "c/bias/x", "d/odd key")


def test_a_bare_leaf_has_the_empty_path():
    assert paths(np.zeros(3)) == ("",)


def test_only_the_last_value_attribute_is_left_out():
    box = nn.Partitioned(value=1, names=("a",))
    assert paths({"kernel": box, "value": 2}) == ("kernel", "value")
    assert paths({"value": box}) == ("value",)
    assert paths(nn.Partitioned(value={"kernel": 1}, names=())) == ("value/kernel",)


def test_linen_and_nnx_agree():
    class Linen(nn.Module):
        @nn.compact
        def __call__(self, x):
            boxed = nn.with_partitioning(nn.initializers.ones, ("a", "b"))
            return nn.LayerNorm(name="norm")(nn.Dense(4, name="dense", kernel_init=boxed)(x))

    class Nnx(nnx.Module):
        def __init__(self, rngs):
            self.dense = nnx.Linear(3, 4, rngs=rngs)
            self.norm = nnx.LayerNorm(4, rngs=rngs)

    linen = jax.eval_shape(Linen().init, jax.random.key(0), jnp.ones((2, 3)))["params"]
    model = nnx.eval_shape(lambda: Nnx(nnx.Rngs(0)))
    expected = {"dense/bias", "dense/kernel", "norm/bias", "norm/scale"}
    assert set(paths(linen)) == expected
    assert set(paths(model)) == expected
    assert set(paths(nnx.state(model, nnx.Param))) == expected
    assert set(paths(nnx.to_pure_dict(nnx.state(model, nnx.Param)))) == expected


def test_equinox_and_haiku():
    mlp = eqx.filter_eval_shape(eqx.nn.MLP, 2, 3, 4, 1, key=jax.random.key(0))
    arrays = eqx.filter(mlp, lambda leaf: isinstance(leaf, jax.ShapeDtypeStruct))
    assert paths(arrays) == (
        "layers/0/weight",
        "layers/0/bias",
        "layers/1/weight",
        "layers/1/bias",
    )
    net = hk.transform(lambda x: hk.nets.MLP([4, 3])(x))
    params = jax.eval_shape(net.init, jax.random.key(0), jnp.ones((1, 2)))
    assert "mlp/~/linear_0/w" in paths(params)


def test_two_leaves_with_one_path_are_named():
    tree = {"a/b": np.zeros(1), "a": {"b": np.zeros(2)}, 1: np.zeros(1)}
    with pytest.raises(ValueError, match=r"'a/b' is tree\['a'\]\['b'\] and tree\['a/b'\]") as error:
        plan({key: tree[key] for key in ("a/b", "a")}, [("**", "zeros")])
    assert str(error.value).startswith("plan needs a canonical path of its own for every leaf")


def test_many_clashes_are_capped():
    tree = {str(n): 0 for n in range(25)}
    with pytest.raises(ValueError, match="and 15 more"):
        flatten("test", {"x": tree, **{f"x/{name}": 0 for name in tree}})


# What a leaf says about itself.


def test_a_spec_is_a_leaf_and_a_value():
    spec = ParamSpec([3, np.int64(4)], "bfloat16", axes=((-2,), (-1,), ()))
    assert jax.tree.leaves({"w": spec}) == [spec]
    assert spec == ParamSpec((3, 4), jnp.bfloat16, axes=Axes((-2,), (-1,), ()))
    assert hash(spec) == hash(pickle.loads(pickle.dumps(spec)))
    assert (spec.size, spec.nbytes) == (12, 24)


def test_a_stack_has_a_layer_shape():
    assert ParamSpec((12, 5, 3, 4), np.float32, stack_axes=(0, -2)).layer_shape == (5, 4)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"shape": "ab"}, TypeError, "ParamSpec needs a shape"),
        ({"shape": (3, -1)}, ValueError, "without negative sizes"),
        ({"dtype": None}, TypeError, "ParamSpec needs a numeric dtype, got None"),
        ({"dtype": "O"}, TypeError, "numeric dtype"),
        ({"dtype": "no_such"}, TypeError, "numeric dtype, got no_such"),
        ({"stack_axes": (2,)}, ValueError, "stack_axes within the 2 axes"),
        ({"stack_axes": (0, -2)}, ValueError, "every stacked axis once"),
        ({"stack_axes": 0}, TypeError, "stack_axes as a sequence of ints, got 0"),
    ],
)
def test_a_wrong_spec(arguments, error, message):
    with pytest.raises(error, match=message):
        ParamSpec(**{"shape": (3, 4), "dtype": np.float32, **arguments})


@pytest.mark.parametrize("leaf", ["text", 1.5, jnp.tanh, object()])
def test_a_leaf_that_is_no_array(leaf):
    with pytest.raises(TypeError, match=r"leaves with a shape and a dtype, got .* at 'a/0'"):
        plan({"a": [leaf]}, [("**", "zeros")])


def test_what_holds_no_numbers_is_refused():
    with pytest.raises(TypeError, match=r"at 'a', needs a numeric dtype, got .*float0.*nnx\.Param"):
        plan({"a": np.zeros(3, jax.dtypes.float0)}, [("**", "zeros")])


def test_numpy_shapes_are_32_bits_wide_as_in_jax():
    assert spec_of("test", "a", np.zeros(3)).dtype == np.float32
    assert spec_of("test", "a", np.zeros(3, np.int64)).dtype == np.int32
    assert spec_of("test", "a", np.zeros(3, np.float16)).dtype == np.float16


def test_a_struct_keeps_what_it_says(x64):
    assert spec_of("test", "a", np.zeros(3)).dtype == np.float64


def test_where_a_leaf_wants_to_live(devices):
    mesh = make_mesh(sizes=(2,), names=("x",))
    wish = NamedSharding(mesh, PartitionSpec("x"))
    assert spec_of("test", "a", jax.ShapeDtypeStruct((4,), "float32")).sharding is None
    assert (
        spec_of("test", "a", jax.ShapeDtypeStruct((4,), "float32", sharding=wish)).sharding == wish
    )
    assert spec_of("test", "a", jnp.zeros(4)).sharding is None
    assert spec_of("test", "a", jax.device_put(jnp.zeros(4), wish)).sharding == wish
    explicit = make_mesh(AxisType.Explicit, (2,), names=("x",))
    with jax.set_mesh(explicit):
        shapes = jax.eval_shape(lambda: jnp.zeros(4))
        assert spec_of("test", "a", shapes).sharding is None
