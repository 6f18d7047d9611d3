"""Graph nets, coordinate and implicit networks, operators, policies, and plain networks."""

from __future__ import annotations

import math

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from published.common import (
    Model,
    both,
    in_equinox,
    in_haiku,
    in_nnx,
    linen,
    normal,
    published,
    tokens,
    uniform,
)

NODES, EDGES, WIDTH = 32, 128, 64
ZEROS = nn.initializers.zeros
EDGE_DATA = both(normal((NODES, 16)), tokens(NODES, (EDGES,), (EDGES,)))


class GCN(nn.Module):
    """Kipf 2016: neighbours weighted by the roots of their degrees, Glorot kernels."""

    @nn.compact
    def __call__(self, x, senders, receivers):
        degree = jnp.zeros(NODES).at[receivers].add(1.0) + 1.0
        weight = jax.lax.rsqrt(degree[senders] * degree[receivers])
        for n, width in enumerate((WIDTH, WIDTH, 7)):
            x = nn.Dense(width, kernel_init=nn.initializers.glorot_uniform())(x)
            sent = jnp.zeros_like(x).at[receivers].add(x[senders] * weight[:, None])
            x = sent + x / degree[:, None]
            x = nn.relu(x) if n < 2 else x
        return x


@published("GCN", "graph")
def gcn() -> Model:
    return linen(GCN(), EDGE_DATA)


class GIN(nn.Module):
    """Xu 2018: sums over neighbours, (1 + eps) of oneself, batch norm, sum over the graph."""

    @nn.compact
    def __call__(self, x, senders, receivers):
        for n in range(3):
            eps = self.param(f"eps{n}", ZEROS, ())
            x = (1 + eps) * x + jnp.zeros_like(x).at[receivers].add(x[senders])
            x = nn.Dense(WIDTH)(x)
            x = nn.Dense(WIDTH)(nn.relu(nn.BatchNorm(use_running_average=False)(x)))
            x = nn.relu(nn.BatchNorm(use_running_average=False)(x))
        return nn.Dense(7)(x.sum(0))


@published("GIN, sum pooling", "graph")
def gin() -> Model:
    return linen(GIN(), EDGE_DATA, mutable=True)


class SAGE(nn.Module):
    """Hamilton 2017: a kernel for oneself and one for the mean of the neighbours."""

    @nn.compact
    def __call__(self, x, senders, receivers):
        count = jnp.maximum(jnp.zeros(NODES).at[receivers].add(1.0), 1.0)
        for n in range(3):
            mean = jnp.zeros_like(x).at[receivers].add(x[senders]) / count[:, None]
            x = nn.Dense(WIDTH)(x) + nn.Dense(WIDTH, use_bias=False)(mean)
            x = nn.relu(x) if n < 2 else x
        return nn.Dense(7)(x)


@published("GraphSAGE", "graph")
def sage() -> Model:
    return linen(SAGE(), EDGE_DATA)


@published("encode-process-decode", "graph", "haiku")
def simulator() -> Model:
    """Sanchez-Gonzalez 2020: MLPs with a LayerNorm at their end, residual messages."""

    def net(x, edges, senders, receivers):
        def mlp(x, norm=True, out=WIDTH):
            x = hk.nets.MLP([WIDTH, WIDTH, out])(x)
            return hk.LayerNorm(-1, True, True)(x) if norm else x

        x, e = mlp(x), mlp(edges)
        for _ in range(3):
            new = mlp(jnp.concatenate([e, x[senders], x[receivers]], -1))
            sent = jnp.zeros((NODES, WIDTH)).at[receivers].add(new)
            x, e = x + mlp(jnp.concatenate([x, sent], -1)), e + new
        return mlp(x, norm=False, out=3)

    data = both(normal((NODES, 16), (EDGES, 4)), tokens(NODES, (EDGES,), (EDGES,)))
    return in_haiku(net, data)


class DeepSets(nnx.Module):
    """Zaheer 2017: a net for each element, the sum, a net for the whole."""

    def __init__(self, rngs: nnx.Rngs):
        self.phi = nnx.List(nnx.Linear(a, WIDTH, rngs=rngs) for a in (16, WIDTH))
        self.rho = nnx.List(nnx.Linear(WIDTH, b, rngs=rngs) for b in (WIDTH, 1))

    def __call__(self, x):
        x = self.phi[1](nnx.relu(self.phi[0](x))).sum(1)
        return self.rho[1](nnx.relu(self.rho[0](x)))


@published("DeepSets", "graph", "nnx")
def deep_sets() -> Model:
    return in_nnx(DeepSets, normal((16, 10, 16)))


class Siren(nn.Module):
    """Sitzmann 2020: sines of 30 times a layer."""

    @nn.compact
    def __call__(self, x):
        def between(bound):
            return lambda key, shape, dtype: jax.random.uniform(key, shape, dtype, -bound, bound)

        for n in range(5):
            bound = 1 / x.shape[-1] if n == 0 else math.sqrt(6 / x.shape[-1]) / 30
            bias = between(x.shape[-1] ** -0.5)
            x = jnp.sin(30 * nn.Dense(128, kernel_init=between(bound), bias_init=bias)(x))
        bound = math.sqrt(6 / 128) / 30
        return nn.Dense(3, kernel_init=between(bound))(x)


@published("SIREN", "coordinates")
def siren() -> Model:
    return linen(Siren(), uniform((64, 2)))


class NeRF(nn.Module):
    """Mildenhall 2020: encoded positions, a skip, a view direction; Glorot uniform."""

    @nn.compact
    def __call__(self, x, view):
        glorot = nn.initializers.glorot_uniform()

        def dense(features):
            return nn.Dense(features, kernel_init=glorot)

        def encode(x, count):
            angles = (x[..., None, :] * 2.0 ** jnp.arange(count)[:, None]).reshape(len(x), -1)
            return jnp.concatenate([x, jnp.sin(angles), jnp.cos(angles)], -1)

        start, x = encode(x, 6), encode(x, 6)
        for n in range(8):
            x = jnp.concatenate([x, start], -1) if n == 5 else x
            x = nn.relu(dense(128)(x))
        density = dense(1)(x)
        x = jnp.concatenate([dense(128)(x), encode(view, 4)], -1)
        return dense(3)(nn.relu(dense(64)(x))), density


@published("NeRF", "coordinates")
def nerf() -> Model:
    return linen(NeRF(), uniform((64, 3), (64, 3)))


@published("PINN, tanh, Glorot", "coordinates", "equinox")
def pinn() -> Model:
    def make(key):
        mlp = eqx.nn.MLP(2, 1, WIDTH, 4, jnp.tanh, key=key)
        keys = jax.random.split(key, 5)
        draw = jax.nn.initializers.glorot_normal(in_axis=-1, out_axis=-2)
        weights = [draw(k, layer.weight.shape) for k, layer in zip(keys, mlp.layers, strict=True)]
        biases = [jnp.zeros_like(layer.bias) for layer in mlp.layers]

        def where(m):
            return [layer.weight for layer in m.layers] + [layer.bias for layer in m.layers]

        return eqx.tree_at(where, mlp, weights + biases)

    return in_equinox(make, uniform((64, 2)))


class FNO(nn.Module):
    """Li 2020: complex kernels on low frequencies beside a pointwise map."""

    @nn.compact
    def __call__(self, x):
        modes, width = 8, 32
        x = nn.Dense(width)(x)
        for n in range(4):
            scale = 1 / width**2

            def draw(key, shape, scale=scale):
                return scale * jax.random.uniform(key, shape)

            w = self.param(f"re{n}", draw, (modes, width, width))
            w = w + 1j * self.param(f"im{n}", draw, (modes, width, width))
            f = jnp.einsum("bki,kio->bko", jnp.fft.rfft(x, axis=1)[:, :modes], w)
            y = jnp.fft.irfft(f, n=x.shape[1], axis=1) + nn.Dense(width)(x)
            x = nn.gelu(y) if n < 3 else y
        return nn.Dense(1)(nn.gelu(nn.Dense(128)(x)))


@published("FNO", "operator")
def fno() -> Model:
    return linen(FNO(), normal((8, 64, 2)))


class DeepONet(nn.Module):
    """Lu 2019: the inner product of a branch net and a trunk net; Glorot."""

    @nn.compact
    def __call__(self, u, y):
        glorot = nn.initializers.glorot_normal()
        for _ in range(3):
            u = nn.tanh(nn.Dense(WIDTH, kernel_init=glorot)(u))
            y = nn.tanh(nn.Dense(WIDTH, kernel_init=glorot)(y))
        u = nn.Dense(WIDTH, kernel_init=glorot)(u)
        return (u * y).sum(-1) + self.param("bias", ZEROS, ())


@published("DeepONet", "operator")
def deeponet() -> Model:
    return linen(DeepONet(), both(normal((32, 50)), uniform((32, 2))))


class Implicit(nn.Module):
    """Bai 2019: a normalised residual layer that is applied until it settles."""

    @nn.compact
    def __call__(self, x):
        small = nn.initializers.normal(0.01)
        inject = nn.Dense(WIDTH)(x)
        w = self.param("w", small, (WIDTH, 128))
        v = self.param("v", small, (128, WIDTH))
        gain = self.param("gain", nn.initializers.ones, (WIDTH,))

        def norm(z):
            z = z - z.mean(-1, keepdims=True)
            return z * jax.lax.rsqrt((z * z).mean(-1, keepdims=True) + 1e-5)

        def step(z, _):
            y = nn.relu(z @ w)
            return gain * norm(z + norm(inject + y @ v)), None

        z, _ = jax.lax.scan(step, jnp.zeros_like(inject), None, length=12)
        return nn.Dense(10)(z)


@published("DEQ", "implicit")
def implicit() -> Model:
    return linen(Implicit(), normal((16, 16)))


class NeuralODE(eqx.Module):
    """Chen 2018: Euler steps of a softplus MLP, as in Diffrax's example."""

    field: eqx.nn.MLP
    head: eqx.nn.Linear

    def __init__(self, key):
        a, b = jax.random.split(key)
        self.field = eqx.nn.MLP(8, 8, WIDTH, 2, jax.nn.softplus, key=a)
        self.head = eqx.nn.Linear(8, 2, key=b)

    def __call__(self, x):
        x, _ = jax.lax.scan(lambda x, _: (x + 0.1 * self.field(x), None), x, None, length=10)
        return self.head(x)


@published("neural ODE", "implicit", "equinox")
def neural_ode() -> Model:
    return in_equinox(NeuralODE, normal((16, 8)))


class ActorCritic(nn.Module):
    """PPO as in CleanRL: orthogonal sqrt 2, policy .01, value 1."""

    @nn.compact
    def __call__(self, x):
        def dense(features, gain):
            return nn.Dense(features, kernel_init=nn.initializers.orthogonal(gain))

        root = math.sqrt(2)
        actor = nn.tanh(dense(WIDTH, root)(nn.tanh(dense(WIDTH, root)(x))))
        value = nn.tanh(dense(WIDTH, root)(nn.tanh(dense(WIDTH, root)(x))))
        std = self.param("log_std", ZEROS, (4,))
        return dense(4, 0.01)(actor), std, dense(1, 1.0)(value)


@published("PPO, actor and critic", "policy", goal="policy")
def ppo() -> Model:
    return linen(ActorCritic(), normal((64, 17)))


class SAC(nn.Module):
    """Haarnoja 2018: a mean and a clipped log standard deviation, Flax's defaults."""

    @nn.compact
    def __call__(self, x, noise):
        for _ in range(2):
            x = nn.relu(nn.Dense(256)(x))
        mean, log = nn.Dense(4)(x), jnp.clip(nn.Dense(4)(x), -20, 2)
        return jnp.tanh(mean + jnp.exp(log) * noise), log


@published("SAC, actor", "policy", goal="policy")
def sac() -> Model:
    return linen(SAC(), normal((64, 17), (64, 4)))


@published("DQN", "policy", "haiku", goal="policy")
def dqn() -> Model:
    """Mnih 2015 with Haiku's defaults, pixels of 0 to 255 divided."""

    def net(x):
        x = x.astype(jnp.float32) / 255
        for channels, size, stride in ((32, 8, 4), (64, 4, 2), (64, 3, 1)):
            x = jax.nn.relu(hk.Conv2D(channels, size, stride, padding="VALID")(x))
        return hk.nets.MLP([256, 6])(x.reshape(len(x), -1))

    return in_haiku(net, tokens(256, (4, 84, 84, 4)))


class Dreamer(nn.Module):
    """A recurrent world model: a GRU, categorical latents, SiLU and LayerNorm, zero reward head."""

    @nn.compact
    def __call__(self, x):
        def layer(x):
            return nn.silu(nn.LayerNorm()(nn.Dense(WIDTH, use_bias=False)(x)))

        x = nn.RNN(nn.GRUCell(WIDTH))(layer(x))
        logits = nn.Dense(64)(layer(x)).reshape(*x.shape[:2], 8, 8)
        probs = 0.99 * jax.nn.softmax(logits) + 0.01 / 8
        x = jnp.concatenate([x, probs.reshape(*x.shape[:2], 64)], -1)
        return nn.Dense(16)(layer(x)), nn.Dense(1, kernel_init=ZEROS)(layer(x))


@published("Dreamer's world model", "policy")
def dreamer() -> Model:
    return linen(Dreamer(), normal((8, 12, 16)))


class DLRM(nn.Module):
    """Naumov 2019: tables U(+-1/sqrt(rows)), pairwise products, MLPs."""

    @nn.compact
    def __call__(self, dense, ids):
        def table(key, shape, dtype):
            bound = shape[0] ** -0.5
            return jax.random.uniform(key, shape, dtype, -bound, bound)

        def mlp(x, sizes):
            for size in sizes:
                std = math.sqrt(2 / (x.shape[-1] + size))
                x = nn.relu(nn.Dense(size, kernel_init=nn.initializers.normal(std))(x))
            return x

        rows = [nn.Embed(100, 16, embedding_init=table)(ids[:, n]) for n in range(5)]
        bottom = mlp(dense, (64, 16))
        z = jnp.stack([bottom, *rows], 1)
        pairs = jnp.einsum("bid,bjd->bij", z, z)[:, *np.triu_indices(6, 1)]
        x = mlp(jnp.concatenate([bottom, pairs], -1), (64, 32))
        return nn.Dense(1)(x)


@published("DLRM", "recommendation")
def dlrm() -> Model:
    return linen(DLRM(), both(normal((32, 13)), tokens(100, (32, 5))))


@published("MLP of Equinox", "plain", "equinox")
def equinox_mlp() -> Model:
    return in_equinox(lambda key: eqx.nn.MLP(32, 10, 128, 3, key=key), normal((32, 32)))


class Normed(eqx.Module):
    """Residual layers with the batch norm of Equinox."""

    layers: list
    norms: list
    head: eqx.nn.Linear

    def __init__(self, key):
        keys = jax.random.split(key, 5)
        self.layers = [eqx.nn.Linear(32, 32, key=k) for k in keys[:4]]
        self.norms = [eqx.nn.BatchNorm(32, "batch", mode="batch") for _ in range(4)]
        self.head = eqx.nn.Linear(32, 4, key=keys[4])

    def __call__(self, x, state):
        for layer, norm in zip(self.layers, self.norms, strict=True):
            y, state = norm(layer(x), state)
            x = x + jax.nn.relu(y)
        return self.head(x), state


class Stateful(eqx.Module):
    """The layers with their state, over a batch."""

    parts: tuple

    def __init__(self, key):
        self.parts = eqx.nn.make_with_state(Normed)(key)

    def __call__(self, x):
        each = jax.vmap(self.parts[0], axis_name="batch", in_axes=(0, None), out_axes=(0, None))
        return each(x, self.parts[1])[0]


@published("batch norm of Equinox", "residual", "equinox")
def equinox_batch_norm() -> Model:
    return in_equinox(Stateful, normal((32, 32)), batched=True)


class Plain(nn.Module):
    """Layers of one kind, one after the other."""

    layers: int
    activation: str
    kernel: str
    gain: float = 1.0

    @nn.compact
    def __call__(self, x):
        init = {
            "orthogonal": nn.initializers.orthogonal(self.gain),
            "he": nn.initializers.he_normal(),
            "lecun": nn.initializers.lecun_normal(),
        }[self.kernel]
        for _ in range(self.layers):
            x = getattr(jax.nn, self.activation)(nn.Dense(128, kernel_init=init)(x))
        return nn.Dense(10)(x)


@published("deep tanh, orthogonal", "plain")
def deep_tanh() -> Model:
    return linen(Plain(30, "tanh", "orthogonal"), normal((32, 128)))


@published("deep ReLU, He", "plain")
def deep_relu() -> Model:
    return linen(Plain(12, "relu", "he"), normal((32, 128)))


@published("SELU, LeCun", "plain")
def selu() -> Model:
    return linen(Plain(12, "selu", "lecun"), normal((32, 128)))


class NeuralTangent(nn.Module):
    """Jacot 2018: unit kernels, divided by the root of the width in the pass."""

    @nn.compact
    def __call__(self, x):
        for n in range(6):
            w = self.param(f"w{n}", nn.initializers.normal(1.0), (x.shape[-1], 256))
            x = nn.relu(x @ w / math.sqrt(x.shape[-1])) * math.sqrt(2)
        w = self.param("out", nn.initializers.normal(1.0), (256, 1))
        return x @ w / 16


@published("NTK parametrisation", "plain")
def tangent() -> Model:
    return linen(NeuralTangent(), normal((32, 64)))


class RBM(nn.Module):
    """Carleo 2017 as in NetKet: log cosh of one layer, kernels of .01."""

    @nn.compact
    def __call__(self, x):
        small = nn.initializers.normal(0.01)
        h = nn.Dense(64, kernel_init=small, bias_init=small)(x)
        s = 1 - 2 * jnp.signbit(h)
        visible = self.param("visible", small, x.shape[-1:])
        return ((s * h) + jnp.log1p(jnp.exp(-2 * s * h)) - math.log(2)).sum(-1) + x @ visible


@published("RBM of NetKet", "quantum")
def rbm() -> Model:
    return linen(RBM(), normal((16, 32)))
