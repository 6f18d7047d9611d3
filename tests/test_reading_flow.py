"""What the output of every layer meets, on small models and on near twins of each.

Layers are found here by a few lines that know views and contractions; the reading itself has its
own tests. Names of layers are names of parameters. Everything is traced and nothing is compiled but
the activations that are cut out.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxinit
from helpers import struct as shape
from jaxinit.advice._facts import moments_of
from jaxinit.jaxpr._graph import straighten, trace
from jaxinit.reading._families import Families, features_after, scope_of
from jaxinit.reading._flow import follow
from jaxinit.report.gpt2 import GPT2, GPT2Config, gpt2_124m

pytestmark = pytest.mark.unoptimized

VIEWS = {"transpose", "reshape", "squeeze", "convert_element_type", "slice", "enter", "take"}


def layers_of(graph, names):
    owned, layers = dict(names), {}
    for node in straighten(graph):
        held = [atom for atom in node.inputs if isinstance(atom, int) and atom in owned]
        if node.primitive in VIEWS and len(node.inputs) == 1 and held:
            owned[node.outputs[0]] = owned[held[0]]
        elif node.primitive in ("dot_general", "conv_general_dilated") and len(held) == 1:
            layers[node.outputs[0]] = owned[held[0]]
        elif node.primitive == "gather" and node.inputs[0] in owned:
            layers[node.outputs[0]] = owned[node.inputs[0]]
    return layers


class Read:
    """Flows of a function by the name of the parameter, the last use of it where it has several."""

    def __init__(self, function, parameters, *args):
        graph, _ = trace(function, parameters, *args)
        leaves = jax.tree_util.tree_flatten_with_path(parameters)[0]
        names = {
            number: "/".join(str(getattr(k, "key", k)) for k in path)
            for number, (path, _) in zip(graph.inputs, leaves, strict=False)
        }
        self.graph, self.layers = graph, layers_of(graph, names)
        self.following = follow(graph, self.layers, names)
        self.chain = self.following.chain
        self.flows = {self.layers[value]: flow for value, flow in self.following.flows.items()}

    def after(self, name):
        return self.flows[name].after

    def branch(self, name):
        return self.flows[name].branch

    def activation(self, name):
        found = self.after(name).activation
        return None if found is None else found.label


def kernels(names, n=4):
    return {name: shape(n, n) for name in names}


X = shape(2, 4)


def linen(module, *args, rngs=None, **options):
    keys = {"params": jax.random.key(0), **(rngs or {})}
    variables = jax.eval_shape(lambda *a: module.init(keys, *a), *args)
    return Read(lambda v, *a: module.apply(v, *a, rngs=rngs, **options), variables, *args)


# Activations.

ACTIVATIONS = {
    "relu": jax.nn.relu,
    "leaky_relu": jax.nn.leaky_relu,
    "leaky_relu(0.2)": lambda x: jax.nn.leaky_relu(x, 0.2),
    "gelu": jax.nn.gelu,
    "gelu_exact": lambda x: jax.nn.gelu(x, approximate=False),
    "silu": jax.nn.silu,
    "tanh": jnp.tanh,
    "sigmoid": jax.nn.sigmoid,
    "softplus": jax.nn.softplus,
    "elu": jax.nn.elu,
    "elu(0.5)": lambda x: jax.nn.elu(x, 0.5),
    "celu(2)": lambda x: jax.nn.celu(x, 2.0),
    "selu": jax.nn.selu,
    "mish": jax.nn.mish,
    "soft_sign": jax.nn.soft_sign,
    "hard_tanh": jax.nn.hard_tanh,
    "hard_swish": jax.nn.hard_swish,
    "relu6": jax.nn.relu6,
    "squared_relu": lambda x: jnp.square(jax.nn.relu(x)),
    "log_sigmoid": jax.nn.log_sigmoid,
    "squareplus": jax.nn.squareplus,
    "sin": jnp.sin,
    "sin(30 x)": lambda x: jnp.sin(30 * x),
    "identity": lambda x: 0.5 * x.reshape(2, 2, 2).reshape(2, 4),
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_an_activation_is_cut_out_and_named(name):
    function = ACTIVATIONS[name]
    read = Read(lambda p, x: function(x @ p["a"] + 1.0) @ p["b"], kernels("ab"), X)
    # The constant added before belongs to the function, so only the identity keeps its name.
    if name != "identity":
        assert read.activation("a") != name, read.activation("a")
    read = Read(lambda p, x: function(x @ p["a"]) @ p["b"], kernels("ab"), X)
    assert read.activation("a") == name
    assert read.activation("b") is None


# All of these are nearly linear where their argument is small: they are told apart where they bend.
SCALED = {
    "tanh(0.0625 x)": lambda x: jnp.tanh(x / 16),
    "erf(0.0625 x)": lambda x: jax.lax.erf(x / 16),
    "arctan(0.0625 x)": lambda x: jnp.arctan(x / 16),
    "soft_sign(0.05 x)": lambda x: jax.nn.soft_sign(0.05 * x),
    "gelu(0.01562 x)": lambda x: jax.nn.gelu(x / 64),
    "silu(0.01562 x)": lambda x: jax.nn.silu(x / 64),
    "relu(0.5 x)": lambda x: jax.nn.relu(0.5 * x),
    "relu(-1 x)": lambda x: jax.nn.relu(-x),
    "elu(0.5 x)": lambda x: jax.nn.elu(0.5 * x),
    "tanh(x) * 1.716(0.6667 x)": lambda x: 1.7159 * jnp.tanh(x * 2 / 3),
    "leaky_relu(0.2)(x) * 1.414": lambda x: 2**0.5 * jax.nn.leaky_relu(x, 0.2),
    "sin(0.1 x)": lambda x: jnp.sin(0.1 * x),
    "sin(300 x)": lambda x: jnp.sin(300 * x),
}


@pytest.mark.parametrize("name", SCALED)
def test_an_activation_with_numbers_before_and_behind_keeps_its_name(name):
    read = Read(lambda p, x: SCALED[name](x @ p["a"]) @ p["b"], kernels("ab"), X)
    assert read.activation("a") == name
    cut = read.after("a").activation
    np.testing.assert_allclose(cut.function(1.5 * cut.factor), SCALED[name](1.5), rtol=1e-4)


@pytest.mark.parametrize(
    "name", ["gelu", "elu", "softplus", "hard_tanh", "squared_relu", "sin(30 x)"]
)
def test_the_function_computes_what_the_model_does(name):
    function = ACTIVATIONS[name]
    read = Read(lambda p, x: function(x @ p["a"]) @ p["b"], kernels("ab"), X)
    activation = read.after("a").activation

    def cut(x):
        return activation.function(activation.factor * x)

    points = jnp.linspace(-3, 3, 12).reshape(4, 3)
    # Both are float32; sin(30 x) turns one ulp of 90 into 4e-6.
    np.testing.assert_allclose(cut(points), function(points), atol=1e-5)
    np.testing.assert_allclose(jax.grad(cut)(0.7), jax.grad(function)(0.7), rtol=1e-4)
    assert cut(1).shape == ()


def test_a_bias_and_a_scale_come_before_the_activation():
    parameters = {**kernels("ab"), "bias": shape(1, 4), "scale": shape(1, 4)}
    read = Read(
        lambda p, x: jnp.tanh((x @ p["a"]) * p["scale"] + p["bias"]) @ p["b"], parameters, X
    )
    assert read.activation("a") == "tanh"
    assert not read.after("a").gates and not read.after("a").residual


def test_an_unknown_activation_is_named_by_its_call_or_its_primitives():
    @jax.jit
    def wavelet(x):
        return jnp.cos(5 * x) * jnp.exp(-x * x)

    read = Read(lambda p, x: wavelet(x @ p["a"]) @ p["b"], kernels("ab"), X)
    assert read.activation("a") == "wavelet"
    read = Read(lambda p, x: jnp.cos(jnp.tanh(x @ p["a"])) @ p["b"], kernels("ab"), X)
    assert read.activation("a") == "tanh+cos"


def test_a_function_with_the_name_of_another_does_not_bear_it():
    @jax.jit
    def silu(x):
        return x * jax.nn.sigmoid(1.702 * x)

    read = Read(lambda p, x: silu(x @ p["a"]) @ p["b"], kernels("ab"), X)
    assert read.activation("a") == "mul+logistic+mul"
    met = read.after("a").activation
    known, wanted = moments_of(met), jaxinit.activations.moments(silu)
    assert known.second_moment == pytest.approx(wanted.second_moment, rel=1e-6)
    assert abs(wanted.second_moment - jaxinit.activations.moments("silu").second_moment) > 0.05


def test_moves_pooling_and_dropout_do_not_hide_the_activation():
    def model(p, x, key):
        h = jax.nn.gelu(x @ p["a"]).astype(jnp.bfloat16).astype(jnp.float32)
        keep = jax.random.bernoulli(key, 0.9, h.shape)
        h = jnp.where(keep, h / 0.9, 0.0)
        h = jnp.pad(h, ((0, 0), (0, 0), (0, 2)))[:, 1:, :4].transpose(1, 0, 2)
        h = nn.max_pool(h, (2,), (1,)).mean(0)
        return h @ p["b"]

    key = jax.eval_shape(lambda: jax.random.key(0))
    assert Read(model, kernels("ab"), shape(2, 5, 4), key).activation("a") == "gelu"


def test_a_multiplied_mask_is_dropout_and_a_data_mask_is_no_gate():
    def dropout(p, x, key):
        mask = jax.random.bernoulli(key, 0.5, x.shape).astype(x.dtype)
        return (jnp.tanh(x @ p["a"]) * mask) @ p["b"]

    key = jax.eval_shape(lambda: jax.random.key(0))
    read = Read(dropout, kernels("ab"), X, key)
    assert read.activation("a") == "tanh" and not read.after("a").gates
    read = Read(lambda p, x, mask: jnp.tanh((x @ p["a"]) * mask) @ p["b"], kernels("ab"), X, X)
    assert read.activation("a") == "tanh" and not read.after("a").gates


def test_two_ways_on_are_no_activation_unless_they_agree():
    two = Read(
        lambda p, x: (jnp.tanh(h := x @ p["a"]) @ p["b"], jax.nn.relu(h) @ p["c"]),
        kernels("abc"),
        X,
    )
    assert two.activation("a") is None
    one = Read(
        lambda p, x: (jnp.tanh(h := x @ p["a"]) @ p["b"], jnp.tanh(h) @ p["c"]), kernels("abc"), X
    )
    assert one.activation("a") == "tanh"
    skip = Read(lambda p, x: (jnp.tanh(h := x @ p["a"]) @ p["b"], h @ p["c"]), kernels("abc"), X)
    assert skip.activation("a") is None


def test_a_learned_slope_is_no_activation_of_constants_and_no_gate():
    parameters = {**kernels("ab"), "slope": shape()}
    read = Read(
        lambda p, x: jnp.where((h := x @ p["a"]) > 0, h, p["slope"] * h) @ p["b"], parameters, X
    )
    assert read.activation("a") is None and not read.after("a").gates
    read = Read(
        lambda p, x: ((h := x @ p["a"]) * jax.nn.sigmoid(p["slope"] * h)) @ p["b"], parameters, X
    )
    assert read.activation("a") is None and not read.after("a").gates


# Normalisations.


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (lambda: nn.LayerNorm(), "layer"),
        (lambda: nn.LayerNorm(use_fast_variance=False), "layer"),
        (lambda: nn.RMSNorm(), "rms"),
        (lambda: nn.GroupNorm(2), "group"),
        (lambda: nn.InstanceNorm(), "instance"),
        (lambda: nn.BatchNorm(use_running_average=False), "batch"),
        (lambda: nn.BatchNorm(use_running_average=True), "batch"),
    ],
    ids=["layer", "two-pass layer", "rms", "group", "instance", "batch", "running batch"],
)
def test_a_normalisation_is_seen_by_its_structure(make, kind):
    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.Conv(4, (3, 3), name="first")(x)
            return nn.Conv(3, (1, 1), name="second")(nn.relu(make()(x)))

    read = linen(Model(), shape(2, 5, 5, 3), mutable=["batch_stats"])
    first = read.after("params/first/kernel")
    assert (first.normalisation, first.activation.name) == (kind, "relu")
    assert read.after("params/second/kernel").normalisation is None
    assert read.after("params/second/kernel").is_output


@pytest.mark.parametrize(
    "function",
    [
        lambda h: h - h.mean(-1, keepdims=True),
        lambda h: h * h.mean(-1, keepdims=True),
        lambda h: h / (1 + jnp.abs(h)),
        lambda h: h * jax.lax.rsqrt(1 + h * h),
    ],
    ids=["centred", "times its mean", "soft sign", "rsqrt of each entry"],
)
def test_what_is_no_normalisation(function):
    read = Read(lambda p, x: function(x @ p["a"]) @ p["b"], kernels("ab"), X)
    assert read.after("a").normalisation is None and not read.after("a").softmax


@pytest.mark.parametrize("make", [nn.LayerNorm, nn.RMSNorm], ids=["layer", "rms"])
def test_a_normalisation_behind_the_activation(make):
    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = make()(nn.relu(nn.Dense(4, name="first")(x)))
            return nn.Dense(3, name="second")(x)

    read = linen(Model(), X)
    after = read.after("params/first/kernel")
    assert (after.normalisation, after.activation.name) == (make.__name__[:-4].lower(), "relu")
    # What the activation is applied to is no normalised value.
    (number,) = read.flows["params/first/kernel"].meets
    assert read.following.neighbours.makers[number].primitive == "add"


@pytest.mark.parametrize("kept", ["chosen", "mixed", "chosen mixture"])
def test_running_statistics_beside_those_of_the_batch(kept):
    def statistic(p, name, now, first):
        mixture = 0.99 * p[name] + 0.01 * now
        choices = {"chosen": (p[name], now), "mixed": (mixture,) * 2}
        return jnp.where(first, *choices.get(kept, (now, mixture)))

    def model(p, x, first):
        h = x @ p["a"]
        mean = jax.lax.pmean(h, "batch")
        mean, var = statistic(p, "mean", mean, first), jax.lax.pmean((h - mean) ** 2, "batch")
        h = (h - mean) / jnp.sqrt(statistic(p, "var", var, first) + 1e-5)
        return jax.nn.relu(h) @ p["b"]

    parameters = {**kernels("ab"), "mean": shape(4), "var": shape(4)}
    batched = jax.vmap(model, (None, 0, None), axis_name="batch")
    after = Read(batched, parameters, X, shape(dtype=bool)).after("a")
    assert (after.normalisation, after.activation.name) == ("batch", "relu")


def test_a_normalisation_after_pooling():
    def model(p, x):
        h = jax.nn.relu(x @ p["a"]).mean(1)
        h = (h - h.mean(-1, keepdims=True)) / (h.std(-1, keepdims=True) + 1e-6)
        return h @ p["b"]

    after = Read(model, kernels("ab"), shape(2, 5, 4)).after("a")
    assert after.activation.name == "relu"
    graph, _ = trace(model, kernels("ab"), shape(2, 5, 4))
    layers = layers_of(graph, dict(zip(graph.inputs[:2], "ab", strict=True)))
    norms = [
        o.detail for o in Families(graph, layers, graph.inputs[:2]).origins if o.kind == "norm"
    ]
    assert norms == ["layer"]


def test_scopes_of_statistics():
    assert scope_of((2,), (5, 6, 7), (2,)) == "layer"
    assert scope_of((0, 1), (5, 6, 7), (2,)) == "batch"
    assert scope_of((1,), (5, 6, 7), (2,)) == "instance"
    assert scope_of((1, 3), (5, 6, 2, 3), (2, 3)) == "group"
    assert scope_of((1, 3), (5, 6, 1, 3), (2, 3)) == "layer"
    assert scope_of((0,), (1, 6), (1,)) is None


def test_features_are_followed_through_moves():
    def features(function, *sizes):
        graph, _ = trace(function, shape(*sizes))
        at, (node,) = (len(sizes) - 1,), graph.nodes
        return features_after(node, 0, at, graph.avals)

    assert features(lambda x: x.transpose(2, 0, 1), 2, 3, 4) == (0,)
    assert features(lambda x: x.reshape(2, 3, 2, 2), 2, 3, 4) == (2, 3)
    assert features(lambda x: x.reshape(2, 12), 2, 3, 4) == (1,)
    assert features(lambda x: x.reshape(6, 4), 2, 3, 4) == (1,)
    assert features(lambda x: x[None], 3, 4) == (2,)
    assert features(lambda x: x.sum(0), 3, 4) == (0,)
    assert features(lambda x: x.sum(1), 3, 4) == ()


# Softmax, gates, heads.


def attention(p, x):
    q, k, v = x @ p["q"], x @ p["k"], x @ p["v"]
    return jax.nn.softmax(q @ k.swapaxes(-1, -2) / 2) @ v @ p["o"]


def test_attention_is_a_softmax_and_no_gate():
    read = Read(attention, kernels("qkvo"), shape(2, 3, 4))
    assert [read.after(name).softmax for name in "qkvo"] == [True, True, False, False]
    assert not any(read.after(name).gates for name in "qkvo")
    assert [read.activation(name) for name in "qkvo"] == [None] * 4
    assert [read.flows[name].depth for name in "qkvo"] == [1, 1, 1, 2]


def test_a_softmax_over_the_features_and_one_that_is_none():
    read = Read(lambda p, x: jax.nn.softmax(x @ p["a"]) @ p["b"], kernels("ab"), X)
    assert read.after("a").softmax and read.activation("a") is None
    read = Read(lambda p, x: jax.nn.log_softmax(x @ p["a"]).mean(), kernels("a"), X)
    assert read.after("a").softmax and read.after("a").is_output
    read = Read(
        lambda p, x: (jnp.exp(h := x @ p["a"]) / (1 + jnp.exp(h))) @ p["b"], kernels("ab"), X
    )
    assert not read.after("a").softmax and read.activation("a") == "sigmoid"
    read = Read(
        lambda p, x: (e := jnp.exp(x @ p["a"])) / e.sum(-1, keepdims=True) @ p["b"],
        kernels("ab"),
        X,
    )
    assert read.after("a").softmax and read.activation("a") is None


def test_gated_units():
    read = Read(
        lambda p, x: (jax.nn.silu(x @ p["gate"]) * (x @ p["up"])) @ p["down"],
        kernels(["gate", "up", "down"]),
        X,
    )
    assert [read.after(n).gates for n in ("gate", "up", "down")] == [True, True, False]
    assert [read.activation(n) for n in ("gate", "up", "down")] == ["silu", None, None]


def test_a_packed_gate_is_no_product_with_itself():
    def model(p, x):
        a, b = jnp.split(x @ p["a"], 2, axis=-1)
        return (a * jax.nn.sigmoid(b)) @ p["b"]

    read = Read(model, {"a": shape(4, 8), "b": shape(4, 4)}, X)
    assert read.after("a").gates
    silu = Read(lambda p, x: ((h := x @ p["a"]) * jax.nn.sigmoid(h)) @ p["b"], kernels("ab"), X)
    assert not silu.after("a").gates and silu.activation("a") == "silu"


def test_a_rotation_of_features_is_linear():
    def rotary(p, x):
        h = x @ p["a"]
        angles = np.arange(3)[:, None] * np.array([1.0, 0.1])
        angles = angles[None]
        left, right = h[..., :2], h[..., 2:]
        turned = jnp.concatenate(
            [
                left * np.cos(angles) - right * np.sin(angles),
                left * np.sin(angles) + right * np.cos(angles),
            ],
            -1,
        )
        return turned @ p["b"]

    after = Read(rotary, kernels("ab"), shape(2, 3, 4)).after("a")
    assert after.activation.name == "identity" and not after.gates and not after.residual


def test_heads():
    read = Read(
        lambda p, x: ((h := jnp.tanh(x @ p["a"])) @ p["policy"], jnp.tanh(h @ p["value"])),
        kernels(["a", "policy", "value"]),
        X,
    )
    assert [read.after(n).is_output for n in ("a", "policy", "value")] == [False, True, True]
    assert read.activation("value") == "tanh" and read.activation("policy") is None
    both = Read(lambda p, x: ((h := x @ p["a"]), h @ p["b"]), kernels("ab"), X)
    assert not both.after("a").is_output and both.after("b").is_output


def test_the_last_map_of_a_branch_and_a_gate_are_no_heads():
    read = Read(lambda p, x: x + jnp.tanh(x @ p["a"]) @ p["b"], kernels("ab"), X)
    assert not read.after("b").is_output and read.after("b").residual
    read = Read(lambda p, x: jax.nn.sigmoid(x @ p["a"]) * jnp.tanh(x @ p["b"]), kernels("ab"), X)
    assert not read.after("a").is_output and not read.after("b").is_output


# Residual streams.


def norm(x):
    return (x - x.mean(-1, keepdims=True)) * jax.lax.rsqrt(x.var(-1, keepdims=True) + 1e-6)


def test_a_residual_branch():
    read = Read(lambda p, x: x + jax.nn.relu(x @ p["a"]) @ p["b"], kernels("ab"), X)
    first, last = read.branch("a"), read.branch("b")
    assert (first.is_last, last.is_last) == (False, True)
    assert (last.depth, last.index, last.count, last.has_norm) == (2, 0, 1, False)
    assert read.after("b").residual and not read.after("a").residual
    assert read.activation("a") == "relu"


@pytest.mark.parametrize(
    "model",
    [
        lambda p, x: x @ p["a"] + p["c"][:1],
        lambda p, x: x @ p["a"] + x @ p["b"],
        lambda p, x: x @ p["a"] + jnp.tanh(x @ p["b"]),
        lambda p, x: (x @ p["a"]) @ p["b"] + jnp.tanh(x @ p["c"]) @ p["d"],
        lambda p, x: jnp.concatenate([x, x @ p["a"]], -1),
        lambda p, x: (x - x @ p["a"]) ** 2,
        lambda p, x: x * jax.nn.sigmoid(x @ p["a"]),
    ],
    ids=["bias", "two layers", "one of them bent", "two towers", "concatenation", "error", "gate"],
)
def test_what_is_no_residual_sum(model):
    read = Read(model, kernels("abcd"), X)
    assert all(flow.branch is None and not flow.after.residual for flow in read.flows.values())
    assert read.chain.streams == ()


@pytest.mark.parametrize(
    ("model", "is_last"),
    [
        (lambda x, g, p: x + 0.1 * g, True),
        (lambda x, g, p: 2.5 * x + g, True),
        (lambda x, g, p: x + p["gamma"] * g, True),
        (lambda x, g, p: (x + g) / jnp.sqrt(2.0), True),
        (lambda x, g, p: g + x, True),
        (lambda x, g, p: x + jax.nn.sigmoid(x @ p["a"]) * g, True),
        (lambda x, g, p: x + jax.nn.relu(g), False),
        (lambda x, g, p: x + norm(g), False),
    ],
    ids=["scaled", "deepnorm", "layer scale", "halved", "turned", "gated", "bent", "normed"],
)
def test_what_scales_a_branch(model, is_last):
    parameters = {**kernels("abc"), "gamma": shape(1, 4)}
    read = Read(lambda p, x: model(x, jnp.tanh(x @ p["b"]) @ p["c"], p), parameters, X)
    assert read.branch("c").is_last == is_last
    assert read.chain.streams == (1,)


def test_experts_that_a_router_mixes_end_the_branch():
    def model(p, x):
        weights = jax.nn.softmax(x @ p["router"])
        hidden = jax.nn.gelu(jnp.einsum("bd,edf->bef", x, p["a"]))
        return x + jnp.einsum("be,bed->bd", weights, jnp.einsum("bef,efd->bed", hidden, p["b"]))

    parameters = {"router": shape(4, 3), "a": shape(3, 4, 6), "b": shape(3, 6, 4)}
    read = Read(model, parameters, X)
    assert [read.branch(n).is_last for n in ("router", "a", "b")] == [False, False, True]
    assert [read.after(n).residual for n in ("router", "a", "b")] == [False, False, True]
    assert not any(read.after(n).is_output for n in ("router", "a", "b"))


def test_an_activation_on_the_stream_is_not_that_of_the_last_map():
    def model(p, x):
        for name in "ab":
            x = jax.nn.relu(x + x @ p[name])
        return x @ p["c"]

    read = Read(model, kernels("abc"), X)
    assert read.activation("a") is None and read.branch("a").is_last
    assert [read.branch(name).index for name in "ab"] == [0, 1]
    assert read.chain.streams == (2,) and read.flows["c"].depth == 3


def test_norms_before_and_after_a_branch():
    def pre(p, x):
        x = x + jnp.tanh(norm(x) @ p["a"]) @ p["b"]
        x = x + jnp.tanh(norm(x) @ p["c"]) @ p["d"]
        return norm(x) @ p["e"]

    def post(p, x):
        x = norm(x + jnp.tanh(x @ p["a"]) @ p["b"])
        x = norm(x + jnp.tanh(x @ p["c"]) @ p["d"])
        return x @ p["e"]

    read = Read(pre, kernels("abcde"), X)
    assert [read.branch(n).has_norm for n in "abcd"] == [True] * 4
    assert [read.branch(n).has_norm_after for n in "abcd"] == [False] * 4
    assert read.chain.streams == (2,) and read.branch("e") is None
    read = Read(post, kernels("abcde"), X)
    assert [read.branch(n).has_norm for n in "abcd"] == [False] * 4
    assert [read.branch(n).has_norm_after for n in "abcd"] == [True] * 4
    assert [read.branch(n).index for n in "abcd"] == [0, 0, 1, 1]


def test_parallel_branches():
    def one_sum(p, x):
        h = norm(x)
        return x + (jnp.tanh(h @ p["a"]) @ p["b"] + jax.nn.relu(h @ p["c"]) @ p["d"])

    def two_sums(p, x):
        h = norm(x)
        return x + jnp.tanh(h @ p["a"]) @ p["b"] + jax.nn.relu(h @ p["c"]) @ p["d"]

    read = Read(one_sum, kernels("abcd"), X)
    assert read.chain.streams == (1,)
    assert [read.branch(n).is_last for n in "abcd"] == [False, True, False, True]
    assert [read.branch(n).depth for n in "abcd"] == [2] * 4
    read = Read(two_sums, kernels("abcd"), X)
    assert read.chain.streams == (2,)
    assert [read.branch(n).index for n in "abcd"] == [0, 0, 1, 1]
    assert all(read.branch(n).has_norm for n in "abcd")


def test_a_branch_within_a_branch():
    def model(p, x):
        h = x @ p["a"]
        h = h + jnp.tanh(h @ p["b"])
        return x + h @ p["c"]

    read = Read(model, kernels("abc"), X)
    assert [read.branch(n).depth for n in "abc"] == [3, 1, 3]
    assert read.chain.streams == (1, 1)


class ResNetBlock(nn.Module):
    features: int
    stride: int = 1

    @nn.compact
    def __call__(self, x):
        def batch_norm(name):
            return nn.BatchNorm(use_running_average=False, name=name)

        strides = (self.stride, self.stride)
        y = nn.Conv(self.features, (3, 3), strides, name="first")(x)
        y = nn.Conv(self.features, (3, 3), name="second")(nn.relu(batch_norm("n1")(y)))
        y = batch_norm("n2")(y)
        if self.stride > 1:
            x = batch_norm("n3")(nn.Conv(self.features, (1, 1), strides, name="skip")(x))
        return nn.relu(x + y)


class ResNet(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.Conv(4, (3, 3), name="stem")(x)
        x = nn.relu(nn.BatchNorm(use_running_average=False, name="norm")(x))
        x = nn.max_pool(x, (2, 2), (2, 2))
        for index, (features, stride) in enumerate([(4, 1), (8, 2), (8, 1)]):
            x = ResNetBlock(features, stride, name=f"block_{index}")(x)
        return nn.Dense(10, name="head")(x.mean((1, 2)))


def test_a_resnet():
    read = linen(ResNet(), shape(2, 8, 8, 3), mutable=["batch_stats"])
    assert read.activation("params/stem/kernel") == "relu"
    for index in range(3):
        first, second = (
            read.flows[f"params/block_{index}/{n}/kernel"] for n in ("first", "second")
        )
        assert (first.branch.index, first.branch.count, first.branch.depth) == (index, 3, 2)
        assert first.after.activation.name == "relu" and second.after.activation is None
        assert first.after.normalisation == second.after.normalisation == "batch"
        assert second.after.residual and not first.after.residual
        assert not second.branch.is_last, "a normalisation lies between it and the sum"
    skip = read.flows["params/block_1/skip/kernel"]
    assert skip.branch is None and not skip.after.residual
    assert read.flows["params/head/kernel"].after.is_output
    assert read.chain.streams == (3,) and read.chain.depth == 8


def test_skips_by_concatenation_are_no_stream():
    def unet(p, x):
        down = jax.nn.relu(x @ p["a"])
        h = jax.nn.relu(jax.nn.relu(down @ p["b"]) @ p["c"])
        return jnp.concatenate([down, h], -1) @ p["d"]

    read = Read(unet, {**kernels("abc"), "d": shape(8, 4)}, X)
    assert all(flow.branch is None for flow in read.flows.values())
    assert [read.activation(n) for n in "abc"] == ["relu"] * 3
    assert [read.flows[n].depth for n in "abcd"] == [1, 2, 3, 4]


# Loops.


def test_blocks_under_scan_are_one_stream_with_all_rounds():
    def block(x, p):
        x = x + attention(p, norm(x))
        return x + jax.nn.gelu(norm(x) @ p["a"]) @ p["b"], None

    def model(p, x):
        x = x @ p["stem"]
        x, _ = jax.lax.scan(block, x, p["layers"])
        x = x + jnp.tanh(norm(x) @ p["after"])
        return norm(x) @ p["head"]

    layers = {name: shape(6, 4, 4) for name in "qkvoab"}
    read = Read(model, {"layers": layers, **kernels(["stem", "after", "head"])}, shape(2, 3, 4))
    assert read.chain.streams == (13,) and read.chain.depth == 1 + 6 * 4 + 1 + 1
    assert [read.branch(f"layers/{n}").index for n in "qoab"] == [0, 0, 1, 1]
    assert {read.branch(f"layers/{n}").count for n in "qoab"} == {13}
    assert read.branch("after").index == 12
    assert read.branch("layers/b").is_last and read.branch("layers/b").has_norm
    assert read.flows["layers/b"].depth == 5 and read.flows["head"].depth == 27
    assert not any(flow.after.recurrent for flow in read.flows.values())


def test_a_plain_scanned_chain():
    def model(p, x):
        x, _ = jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, p["w"])
        return x @ p["head"]

    read = Read(model, {"w": shape(7, 4, 4), "head": shape(4, 3)}, X)
    assert read.activation("w") == "tanh" and read.branch("w") is None
    assert read.chain.widths == (4,) * 7 + (3,)
    assert read.flows["w"].depth == 1 and read.flows["head"].depth == 8
    assert not read.after("w").is_output


def test_an_lstm():
    read = linen(nn.RNN(nn.LSTMCell(5)), shape(2, 7, 3))
    for gate, activation in {"i": "sigmoid", "f": "sigmoid", "g": "tanh", "o": "sigmoid"}.items():
        for source in "ih":
            after = read.after(f"params/cell/{source}{gate}/kernel")
            assert after.activation.name == activation and after.gates
            assert after.recurrent == (source == "h")
            assert not after.residual
    assert read.chain.streams == ()


def test_a_gru_and_its_head():
    read = linen(nn.Sequential([nn.RNN(nn.GRUCell(5)), nn.Dense(2)]), shape(2, 7, 3))
    assert read.activation("params/layers_0/cell/hz/kernel") == "sigmoid"
    assert read.activation("params/layers_0/cell/in/kernel") == "tanh"
    assert read.after("params/layers_0/cell/hn/kernel").recurrent
    assert not read.after("params/layers_0/cell/in/kernel").recurrent
    assert read.after("params/layers_1/kernel").is_output
    assert read.chain.streams == (), "the state that a GRU carries is no residual stream"


def test_a_residual_step_within_a_recurrent_loop():
    def step(h, x):
        x = x + jnp.tanh(x @ W["a"]) @ W["b"]
        return jnp.tanh(x + h @ W["h"]), None

    W = {}

    def model(p, x):
        W.update(p)
        return jax.lax.scan(step, jnp.zeros(4), x)[0]

    read = Read(model, kernels("abh"), shape(9, 4))
    assert read.branch("b").is_last and read.branch("b").count == 1
    assert read.after("h").recurrent and not read.after("a").recurrent


def test_branches_of_a_cond_and_a_while():
    def model(p, x):
        x = jax.lax.cond(x.sum() > 0, lambda x: jnp.tanh(x @ p["a"]), lambda x: x, x)
        x = jax.lax.while_loop(lambda x: x.sum() < 1, lambda x: jax.nn.relu(x @ p["b"]), x)
        return x @ p["c"]

    read = Read(model, kernels("abc"), X)
    assert [read.activation(n) for n in "abc"] == ["tanh", "relu", None]
    assert read.after("c").is_output and not read.after("b").is_output


def test_keys_that_a_scan_takes_are_no_sequence():
    def block(x, both):
        w, key = both
        keep = jax.random.bernoulli(key, 0.9, x.shape)
        return x + jnp.where(keep, jnp.tanh(norm(x) @ w) / 0.9, 0), None

    def model(p, x, key):
        return jax.lax.scan(block, x, (p["w"], jax.random.split(key, 5)))[0]

    key = jax.eval_shape(lambda: jax.random.key(0))
    read = Read(model, {"w": shape(5, 4, 4)}, X, key)
    assert read.branch("w").count == 5 and not read.after("w").recurrent


def test_slices_of_one_product_are_followed_each_by_itself():
    read = jaxinit.read(*linen_parts(nn.RNN(nn.OptimizedLSTMCell(5)), shape(2, 7, 3)))
    for gate, activation in {"i": "sigmoid", "f": "sigmoid", "g": "tanh", "o": "sigmoid"}.items():
        for source in "ih":
            (use,) = read[f"params/cell/{source}{gate}/kernel"].uses
            assert use.after.activation.name == activation and use.after.gates
            assert use.after.recurrent == (source == "h")


def linen_parts(module, *args):
    return module.apply, jax.eval_shape(module.init, jax.random.key(0), *args), *args


# Whole models.


def test_packed_queries_keys_and_values_through_read():
    config = GPT2Config(layers=1, width=8, heads=2, vocabulary=11, positions=6)
    read = jaxinit.read(*linen_parts(GPT2(config), shape(1, 4, dtype="int32")))
    uses = read["params/h_0/attn/c_attn/kernel"].uses
    assert [use.after.softmax for use in uses] == [True, True, False]
    assert {(use.branch.index, use.branch.is_last, use.depth) for use in uses} == {(0, False, 1)}


def test_gpt2():
    config = GPT2Config(layers=3, width=8, heads=2, vocabulary=11, positions=6)
    read = linen(GPT2(config), shape(1, 4, dtype="int32"))
    for layer in range(3):
        at = f"params/h_{layer}"
        assert read.after(f"{at}/attn/c_attn/kernel").softmax
        assert read.activation(f"{at}/mlp/c_fc/kernel") == "gelu"
        for part, index in (("attn", 2 * layer), ("mlp", 2 * layer + 1)):
            branch = read.branch(f"{at}/{part}/c_proj/kernel")
            assert (branch.is_last, branch.depth, branch.index) == (True, 2, index)
            assert (branch.count, branch.has_norm, branch.has_norm_after) == (6, True, False)
    assert read.after("params/wte/embedding").is_output, "the last use of it is the head"
    assert read.flows["params/wpe/embedding"].depth == 0
    assert read.chain.depth == 13 and read.chain.branches == 6
    # 3 x (24, 8, 32, 8), and 11 for the head, which does not count.
    assert read.chain.widths == (24, 8, 32, 8) * 3 + (11,)
    assert read.chain.width == pytest.approx(12 / (3 * (1 / 24 + 2 / 8 + 1 / 32)))


def test_scales_and_biases_know_their_branch():
    read = linen(GPT2(GPT2Config(1, 8, 2, 11, 6)), shape(1, 4, dtype="int32"))
    muls = [node for node in read.graph.nodes if node.primitive == "mul"]
    branches = [read.following.branches.get(node.outputs[0]) for node in muls]
    assert {branch.index for branch in branches if branch} == {0, 1}


def test_a_large_model_has_as_many_origins_as_its_blocks_take():
    """Each block adds the same number of origins, so nothing grows faster than the program."""

    def origins(layers):
        config = GPT2Config(layers, 8, 2, 11, 6)
        read = linen(GPT2(config), shape(1, 4, dtype="int32"))
        return len(Families(read.graph, read.layers, read.graph.inputs[:-1]).origins)

    two, three, five = (origins(layers) for layers in (2, 3, 5))
    assert five - three == 2 * (three - two) > 0
    large = linen(gpt2_124m(), shape(1, 16, dtype="int32"))
    assert large.chain.streams == (24,) and large.chain.depth == 49


# Low-rank bypasses.


def low_rank(join, rank=2, n=6):
    tree = {"w": shape(n, n), "a": shape(n, rank), "b": shape(rank, n), "end": shape(n, 3)}
    return Read(lambda p, x: jnp.tanh(join(p, x)) @ p["end"], tree, shape(4, n))


@pytest.mark.parametrize(
    "join",
    [
        lambda p, x: x @ p["w"] + (x @ p["a"]) @ p["b"],
        lambda p, x: 0.5 * ((x @ p["a"]) @ p["b"]) + (x @ p["w"] + 1.0),
    ],
)
def test_a_low_rank_product_beside_a_map_is_no_layer(join):
    read = low_rank(join)
    assert read.chain.widths == (6, 3)
    assert [read.flows[n].bypass for n in ("w", "a", "b", "end")] == [None, "in", "out", None]
    assert read.flows["end"].depth == 2


@pytest.mark.parametrize(
    "read",
    [
        low_rank(lambda p, x: x @ p["w"] + jnp.tanh(x @ p["a"]) @ p["b"]),
        low_rank(lambda p, x: x @ p["w"] + (x @ p["a"]) @ p["b"], rank=6),
        low_rank(lambda p, x: x @ p["w"] + (jnp.sin(x) @ p["a"]) @ p["b"]),
        low_rank(lambda p, x: x @ p["w"] * ((x @ p["a"]) @ p["b"])),
    ],
    ids=["an activation between", "no bottleneck", "another input", "multiplied"],
)
def test_near_twins_of_a_low_rank_bypass_are_layers(read):
    assert read.chain.widths[1:] == (6, 3) and read.flows["end"].depth == 3
    assert read.flows["a"].bypass is read.flows["b"].bypass is None


def test_an_adapter_makes_no_residual_branch_longer():
    def model(p, x):
        h = jnp.tanh(x @ p["up"])
        return x + (h @ p["w"] + (h @ p["a"]) @ p["b"])

    tree = {"up": shape(6, 8), "w": shape(8, 6), "a": shape(8, 2), "b": shape(2, 6)}
    read = Read(model, tree, shape(4, 6))
    assert (read.branch("w").depth, read.branch("w").is_last) == (2, True)
    assert read.chain.widths == (8, 6)


@pytest.mark.parametrize("spread", [True, False])
def test_a_condition_that_is_spread_over_positions_is_no_shortcut(spread):
    """As the time of a diffusion step, added twice; with a row for each position it is one."""

    def model(p, x, t):
        for layer in p["layers"]:
            made = t @ layer["t"]
            x = jnp.tanh(x @ layer["w"] + (made[:, None] if spread else made))
        return x

    tree = {"layers": [{"w": shape(4, 4), "t": shape(3, 4)}] * 2}
    read = Read(model, tree, shape(2, 5, 4), shape(2, 3) if spread else shape(2, 5, 3))
    assert read.chain.streams == (() if spread else (1,))


@pytest.mark.parametrize("by", ["scan", "fori_loop", "while"])
def test_a_loop_that_picks_entries_of_data_runs_over_a_sequence(by):
    def step(p, h, x):
        return jnp.tanh(h @ p["a"] + x @ p["b"])

    def model(p, xs):
        start, length = jnp.zeros((2, 4)), xs.shape[1]

        def at(t):
            return jax.lax.dynamic_index_in_dim(xs, t, 1, keepdims=False)

        if by == "scan":
            h, _ = jax.lax.scan(lambda h, t: (step(p, h, at(t)), None), start, jnp.arange(length))
        elif by == "fori_loop":
            h = jax.lax.fori_loop(0, length, lambda t, h: step(p, h, xs[:, t]), start)
        else:
            _, h = jax.lax.while_loop(
                lambda state: state[0] < length,
                lambda state: (state[0] + 1, step(p, state[1], at(state[0]))),
                (0, start),
            )
        return h @ p["c"]

    read = Read(model, kernels("abc"), shape(2, 6, 4))
    assert read.after("a").recurrent and not read.after("b").recurrent
    assert read.chain.depth == 2 and not read.chain.streams


def test_a_loop_that_picks_parameters_is_no_sequence():
    def model(p, x):
        return jax.lax.fori_loop(0, 5, lambda i, h: jnp.tanh(h @ p["a"][i]), x) @ p["b"]

    reading = jaxinit.read(model, {"a": shape(5, 4, 4), "b": shape(4, 4)}, X)
    assert reading.chain.depth == 6


# The values at which a layer's output meets its end.

MEETS = {
    "scaled before it": (lambda p, x: jax.nn.gelu(x @ p["a"] / 16) @ p["b"], ["div"]),
    "sum of two": (lambda p, x: jax.nn.relu(x @ p["a"] + x @ p["b"]) @ p["c"], ["add"]),
    "next layer": (lambda p, x: (x @ p["a"] * 3) @ p["b"], ["mul"]),
    "pooled": (lambda p, x: jnp.tanh(jnp.sum(x @ p["a"], 0)) @ p["b"], ["reduce_sum"]),
    "masked scores": (
        lambda p, x: jax.nn.softmax(jnp.where(np.tri(2, 4) > 0, x @ p["a"] * 2, -1e9)) @ x.T[:, :1],
        ["mul"],
    ),
    "residual": (lambda p, x: x + (jnp.tanh(x @ p["b"]) @ p["a"]) * 0.5, ["mul"]),
    "output": (lambda p, x: (x @ p["a"]).reshape(4, 2) * 2, ["mul"]),
    "two ways": (
        lambda p, x: (jnp.tanh(h := x @ p["a"]) @ p["b"], jax.nn.relu(2 * h) @ p["c"]),
        ["dot_general", "mul"],
    ),
}


@pytest.mark.parametrize("name", MEETS)
def test_where_the_output_of_a_layer_ends_is_told_by_value(name):
    function, expected = MEETS[name]
    read = Read(function, kernels("abc"), X)
    makers = read.following.neighbours.makers
    meets = read.flows["a"].meets
    assert sorted(makers[number].primitive for number in meets) == sorted(expected)
