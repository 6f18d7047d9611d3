"""Recurrent and state-space models, and convolutions over time."""

from __future__ import annotations

import math

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from published.common import Model, in_equinox, in_haiku, in_nnx, linen, normal, published, tokens

SERIES = normal((8, 24, 32))
WIDTH = 64


def scanned(step, start, *sequences):
    """A scan over the second axis of each sequence."""
    _, out = jax.lax.scan(step, start, tuple(s.swapaxes(0, 1) for s in sequences))
    return out.swapaxes(0, 1)


class LinenLSTM(nn.Module):
    """Two layers of Flax's optimised cell; orthogonal recurrence."""

    @nn.compact
    def __call__(self, x):
        for _ in range(2):
            x = nn.RNN(nn.OptimizedLSTMCell(WIDTH))(x)
        return nn.Dense(10)(x[:, -1])


@published("LSTM of Linen", "recurrent")
def linen_lstm() -> Model:
    return linen(LinenLSTM(), SERIES)


class NnxLSTM(nnx.Module):
    """The cell of NNX under its own scan."""

    def __init__(self, rngs: nnx.Rngs):
        self.rnn = nnx.RNN(nnx.GRUCell(32, WIDTH, rngs=rngs))
        self.head = nnx.Linear(WIDTH, 10, rngs=rngs)

    def __call__(self, x):
        return self.head(self.rnn(x)[:, -1])


@published("GRU of NNX", "recurrent", "nnx")
def nnx_gru() -> Model:
    return in_nnx(NnxLSTM, SERIES)


class EqxGRU(eqx.Module):
    """The GRU of Equinox's example."""

    cell: eqx.nn.GRUCell
    head: eqx.nn.Linear

    def __init__(self, key):
        a, b = jax.random.split(key)
        self.cell = eqx.nn.GRUCell(32, WIDTH, key=a)
        self.head = eqx.nn.Linear(WIDTH, 1, key=b)

    def __call__(self, x):
        start = jnp.zeros(WIDTH)
        state, _ = jax.lax.scan(lambda h, x: (self.cell(x, h), None), start, x)
        return self.head(state)


@published("GRU of Equinox", "recurrent", "equinox")
def equinox_gru() -> Model:
    return in_equinox(EqxGRU, SERIES)


@published("LSTM of Haiku", "recurrent", "haiku")
def haiku_lstm() -> Model:
    def net(x):
        core = hk.LSTM(WIDTH)
        out, _ = hk.dynamic_unroll(core, x, core.initial_state(x.shape[0]), time_major=False)
        return hk.Linear(10)(out)

    return in_haiku(net, SERIES)


class Mamba(nn.Module):
    """Gu 2023: a selective state space; A_log, dt_bias and D as the authors draw them."""

    layers: int = 2

    @nn.compact
    def __call__(self, x):
        state, inner, rank = 8, 2 * WIDTH, 4
        x = nn.Dense(WIDTH)(x)
        for n in range(self.layers):
            y = nn.RMSNorm()(x)
            u, gate = jnp.split(nn.Dense(2 * inner, use_bias=False)(y), 2, -1)
            u = nn.silu(nn.Conv(inner, (4,), padding="CAUSAL", feature_group_count=inner)(u))
            parts = nn.Dense(rank + 2 * state, use_bias=False)(u)
            dt, b, c = jnp.split(parts, (rank, rank + state), -1)
            dt = nn.Dense(
                inner,
                kernel_init=lambda key, shape, dtype: jax.random.uniform(
                    key, shape, dtype, -(rank**-0.5), rank**-0.5
                ),
                bias_init=time_step,
            )(dt)
            dt = jax.nn.softplus(dt)
            log = self.param(f"A_log{n}", log_range, (inner, state))
            a = jnp.exp(dt[..., None] * -jnp.exp(log))
            bu = (dt * u)[..., None] * b[:, :, None]

            def step(h, now):
                a, bu, c = now
                h = a * h + bu
                return h, jnp.einsum("bis,bs->bi", h, c)

            h = scanned(step, jnp.zeros((x.shape[0], inner, state)), a, bu, c)
            h = h + u * self.param(f"D{n}", nn.initializers.ones, (inner,))
            x = x + nn.Dense(WIDTH, use_bias=False)(h * nn.silu(gate))
        return nn.Dense(10)(nn.RMSNorm()(x))


def time_step(key, shape, dtype=jnp.float32):
    """Inverse softplus of a step between .001 and .1, uniform in its logarithm."""
    low, high = math.log(1e-3), math.log(0.1)
    dt = jnp.exp(jax.random.uniform(key, shape, dtype, low, high))
    return dt + jnp.log(-jnp.expm1(-dt))


def log_range(key, shape, dtype=jnp.float32):
    """Logarithm of 1, 2, 3, ... along the states."""
    return jnp.broadcast_to(jnp.log(jnp.arange(1.0, shape[-1] + 1)), shape).astype(dtype)


@published("Mamba", "state space")
def mamba() -> Model:
    return linen(Mamba(), SERIES)


class LRU(nn.Module):
    """Orvieto 2023: complex diagonal recurrence, stable by exp(-exp(nu)), normalised."""

    layers: int = 2

    @nn.compact
    def __call__(self, x):
        n = WIDTH
        x = nn.Dense(WIDTH)(x)
        for layer in range(self.layers):
            y = nn.LayerNorm()(x)
            glorot = nn.initializers.normal((2 * WIDTH) ** -0.5)
            last = nn.initializers.normal(n**-0.5)
            nu = self.param(f"nu{layer}", ring_radius, (n,))
            theta = self.param(f"theta{layer}", ring_angle, (n,))
            b = self.param(f"B_re{layer}", glorot, (WIDTH, n))
            b = b + 1j * self.param(f"B_im{layer}", glorot, (WIDTH, n))
            c = self.param(f"C_re{layer}", last, (n, WIDTH))
            c = c + 1j * self.param(f"C_im{layer}", last, (n, WIDTH))
            turn = jnp.exp(-jnp.exp(nu) + 1j * jnp.exp(theta))
            u = (y.astype(jnp.complex64) @ b) * jnp.sqrt(1 - jnp.abs(turn) ** 2)

            def step(h, now, turn=turn):
                h = turn * h + now[0]
                return h, h

            h = scanned(step, jnp.zeros((x.shape[0], n), jnp.complex64), u)
            d = self.param(f"D{layer}", nn.initializers.normal(1.0), (WIDTH,))
            y = nn.gelu((h @ c).real + d * y)
            x = x + nn.Dense(WIDTH)(y) * nn.sigmoid(nn.Dense(WIDTH)(y))
        return nn.Dense(10)(x.mean(1))


def ring_radius(key, shape, dtype=jnp.float32):
    u = jax.random.uniform(key, shape, dtype)
    return jnp.log(-0.5 * jnp.log(u * (0.999**2 - 0.9**2) + 0.9**2))


def ring_angle(key, shape, dtype=jnp.float32):
    return jnp.log(2 * math.pi * jax.random.uniform(key, shape, dtype, 1e-3, 1.0))


@published("LRU", "state space")
def lru() -> Model:
    return linen(LRU(), SERIES)


class S4D(nn.Module):
    """Gu 2022: diagonal states, applied as a long convolution through the FFT."""

    @nn.compact
    def __call__(self, x):
        length, states = x.shape[1], 16
        x = nn.Dense(WIDTH)(x)
        for n in range(2):
            log_dt = self.param(f"log_dt{n}", log_time, (WIDTH,))
            half = nn.initializers.constant(math.log(0.5))
            real = -jnp.exp(self.param(f"log_A_real{n}", half, (WIDTH, states)))
            imag = self.param(f"A_imag{n}", frequencies, (WIDTH, states))
            one = nn.initializers.normal(0.5**0.5)
            c = self.param(f"C_re{n}", one, (WIDTH, states))
            c = c + 1j * self.param(f"C_im{n}", one, (WIDTH, states))
            a = real + 1j * imag
            dta = a * jnp.exp(log_dt)[:, None]
            powers = jnp.exp(dta[..., None] * jnp.arange(length))
            k = 2 * jnp.einsum("hs,hsl->hl", c * (jnp.exp(dta) - 1) / a, powers).real
            u = nn.LayerNorm()(x).swapaxes(1, 2)
            f = jnp.fft.rfft(u, n=2 * length) * jnp.fft.rfft(k, n=2 * length)
            y = jnp.fft.irfft(f, n=2 * length)[..., :length]
            y = y + u * self.param(f"D{n}", nn.initializers.normal(1.0), (WIDTH,))[:, None]
            y = nn.gelu(y).swapaxes(1, 2)
            a, b = jnp.split(nn.Dense(2 * WIDTH)(y), 2, -1)
            x = x + a * nn.sigmoid(b)
        return nn.Dense(10)(x.mean(1))


def log_time(key, shape, dtype=jnp.float32):
    return jax.random.uniform(key, shape, dtype, math.log(1e-3), math.log(0.1))


def frequencies(key, shape, dtype=jnp.float32):
    return jnp.broadcast_to(math.pi * jnp.arange(shape[-1]), shape).astype(dtype)


@published("S4D", "state space")
def s4d() -> Model:
    return linen(S4D(), SERIES)


class Griffin(nn.Module):
    """De 2024: the real-gated linear recurrence and a gated MLP."""

    @nn.compact
    def __call__(self, x):
        lecun = nn.initializers.lecun_normal()
        last = nn.initializers.variance_scaling(1 / 4, "fan_in", "normal")
        x = nn.Dense(WIDTH)(x)
        for n in range(2):
            y = nn.RMSNorm()(x)
            gate = nn.gelu(nn.Dense(WIDTH, kernel_init=lecun)(y))
            u = nn.Dense(WIDTH, kernel_init=lecun)(y)
            u = nn.Conv(
                WIDTH,
                (4,),
                padding="CAUSAL",
                feature_group_count=WIDTH,
                kernel_init=nn.initializers.variance_scaling(0.01, "fan_in", "normal"),
            )(u)
            r, i = nn.sigmoid(nn.Dense(WIDTH)(u)), nn.sigmoid(nn.Dense(WIDTH)(u))
            log_a = -8 * r * jax.nn.softplus(self.param(f"a{n}", decay, (WIDTH,)))
            a = jnp.exp(log_a)
            u = u * i * jnp.sqrt(1 - jnp.exp(2 * log_a))

            def step(h, now):
                a, u = now
                h = a * h + u
                return h, h

            h = scanned(step, jnp.zeros((x.shape[0], WIDTH)), a, u)
            x = x + nn.Dense(WIDTH, kernel_init=last)(h * gate)
            y = nn.RMSNorm()(x)
            y = nn.gelu(nn.Dense(128, kernel_init=lecun)(y)) * nn.Dense(128, kernel_init=lecun)(y)
            x = x + nn.Dense(WIDTH, kernel_init=last)(y)
        return nn.Dense(10)(nn.RMSNorm()(x))


def decay(key, shape, dtype=jnp.float32):
    """So that a^8 is uniform in its square between .9 and .999."""
    u = jax.random.uniform(key, shape, dtype, 0.9**2, 0.999**2)
    return jnp.log(jnp.expm1(-jnp.log(u) * 0.5))


@published("Griffin, RG-LRU", "state space")
def griffin() -> Model:
    return linen(Griffin(), SERIES)


class RWKV(nn.Module):
    """Peng 2023: token shift, a decay per channel, squared ReLU; released initialization."""

    layers: int = 2

    @nn.compact
    def __call__(self, ids):
        def shift(x):
            return jnp.pad(x, ((0, 0), (1, 0), (0, 0)))[:, :-1]

        def fixed(name, value):
            return self.param(name, lambda key, shape: jnp.asarray(value, jnp.float32), None)

        def mix(name, x, power):
            m = fixed(name, (np.arange(WIDTH) / WIDTH) ** power)
            return x * m + shift(x) * (1 - m)

        zeros, orthogonal = nn.initializers.zeros, nn.initializers.orthogonal

        def dense(features, init=zeros):
            return nn.Dense(features, use_bias=False, kernel_init=init)

        narrow = nn.initializers.uniform(2e-4)
        x = nn.LayerNorm()(nn.Embed(200, WIDTH, embedding_init=narrow)(ids))
        ramp = np.arange(WIDTH) / (WIDTH - 1)
        for n in range(self.layers):
            power = 1 - n / self.layers
            y = nn.LayerNorm()(x)
            k = dense(WIDTH)(mix(f"mix_k{n}", y, power))
            v = dense(WIDTH, orthogonal())(mix(f"mix_v{n}", y, power))
            r = nn.sigmoid(dense(WIDTH)(mix(f"mix_r{n}", y, 0.5 * power)))
            w = -jnp.exp(fixed(f"time_decay{n}", -5 + 8 * ramp ** (0.7 + 1.3 * n)))
            first = fixed(f"time_first{n}", math.log(0.3) + (np.arange(WIDTH) % 3 - 1) * 0.5)

            def step(carry, now, w=w, first=first):
                top, bottom = carry
                k, v = jnp.exp(now[0]), now[1]
                out = (top + jnp.exp(first) * k * v) / (bottom + jnp.exp(first) * k)
                return (jnp.exp(w) * top + k * v, jnp.exp(w) * bottom + k), out

            zero = jnp.zeros((x.shape[0], WIDTH))
            x = x + dense(WIDTH)(r * scanned(step, (zero, zero), k, v))
            y = nn.LayerNorm()(x)
            k = nn.relu(dense(4 * WIDTH, orthogonal(2.0))(mix(f"ffn_k{n}", y, power))) ** 2
            r = nn.sigmoid(dense(WIDTH)(mix(f"ffn_r{n}", y, power)))
            x = x + r * dense(WIDTH)(k)
        return dense(200, orthogonal(0.5))(nn.LayerNorm()(x))


@published("RWKV-4", "state space")
def rwkv() -> Model:
    return linen(RWKV(), tokens(200, (8, 24)))


class WaveNet(nn.Module):
    """Van den Oord 2016: gated dilated convolutions, skips that are summed."""

    @nn.compact
    def __call__(self, x):
        x, skip = nn.Conv(WIDTH, (1,))(x), 0.0
        for n in range(6):
            y = nn.Conv(2 * WIDTH, (2,), kernel_dilation=2**n, padding="CAUSAL")(x)
            a, b = jnp.split(y, 2, -1)
            y = nn.tanh(a) * nn.sigmoid(b)
            skip = skip + nn.Conv(WIDTH, (1,))(y)
            x = x + nn.Conv(WIDTH, (1,))(y)
        return nn.Conv(10, (1,))(nn.relu(nn.Conv(WIDTH, (1,))(nn.relu(skip))))


@published("WaveNet", "speech")
def wavenet() -> Model:
    return linen(WaveNet(), SERIES)


class TCN(nn.Module):
    """Bai 2018: weight-normalised causal convolutions in residual blocks."""

    @nn.compact
    def __call__(self, x):
        for n in range(3):
            y = x
            for _ in range(2):
                conv = nn.Conv(WIDTH, (3,), kernel_dilation=2**n, padding="CAUSAL")
                y = nn.relu(nn.WeightNorm(conv)(y))
            short = nn.Conv(WIDTH, (1,))(x) if x.shape[-1] != WIDTH else x
            x = nn.relu(short + y)
        return nn.Dense(10)(x[:, -1])


@published("TCN, weight norm", "convolutional")
def tcn() -> Model:
    return linen(TCN(), SERIES)
