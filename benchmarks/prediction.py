"""Are the pre-activations and gradients of a fresh model as large as predicted?

Five models, initialized as `jaxinit.advise` says: a 30-layer ReLU MLP, a 50-layer tanh MLP, a
20-layer SiLU MLP, an unnormalised residual MLP of 48 blocks and a pre-LN GPT-2; and the residual
MLP once more with branches that do not start at zero. For every layer the measured second moment
(mean of ten draws) should be within a factor of 2 of the prediction, or of the ends of the
predicted interval. AnyInit predicts its own initialization of the same Flax models, forward only;
it is held to what it measures with its own parameters, where it is installed.
"""

import argparse
import dataclasses
import importlib
import math
import time
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import harness
import jax
import jax.numpy as jnp

import jaxinit
from jaxinit import initializers as init
from jaxinit.report.gpt2 import GPT2Config, gpt2
from jaxinit.signal import Prediction

QUESTION = "Is the measured second moment of every layer within a factor of 2 of the prediction?"
FACTOR = 2.0


class MLP(nn.Module):
    """A plain chain of layers."""

    layers: int
    width: int
    activation: Callable[[jax.Array], jax.Array]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for layer in range(self.layers):
            x = nn.Dense(self.width)(x if layer == 0 else self.activation(x))
        return x


class Residual(nn.Module):
    """A stream that branches of two layers are added to, without normalisation."""

    blocks: int
    width: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for block in range(self.blocks):
            hidden = nn.relu(nn.Dense(self.width, use_bias=False, name=f"in_{block}")(x))
            x = x + nn.Dense(self.width, use_bias=False, name=f"out_{block}")(hidden)
        return x


@dataclasses.dataclass(frozen=True)
class Case:
    """A model, what it is called with, and its rules; None takes the advice."""

    model: nn.Module
    x: jax.ShapeDtypeStruct
    rules: list[tuple[str, Any]] | None = None


def cases(width: int, deep: float, batch: int) -> dict[str, Case]:
    """The five models; ``deep`` is the share of their full depth."""
    x = jax.ShapeDtypeStruct((batch, width), jnp.float32)
    layers = {n: max(4, round(deep * n)) for n in (12, 20, 30, 48, 50)}
    config = GPT2Config(layers=layers[12], width=width, heads=width // 64)
    if deep < 1:
        config = dataclasses.replace(config, vocabulary=211, positions=64)
    # The advice starts branches at zero, which is easy to predict; this one has them all at work.
    scaled = [
        ("**/in_*/kernel", init.he_normal()),
        ("**/out_*/kernel", init.variance_scaling(1 / layers[48], "fan_in", "normal")),
    ]
    residual = Residual(layers[48], width)
    ids = jax.ShapeDtypeStruct((2, 2 * batch), jnp.int32)
    return {
        f"ReLU, {layers[30]}": Case(MLP(layers[30], width, nn.relu), x),
        f"tanh, {layers[50]}": Case(MLP(layers[50], width, nn.tanh), x),
        f"SiLU, {layers[20]}": Case(MLP(layers[20], width, nn.silu), x),
        f"residual, {layers[48]}": Case(residual, x),
        "residual, 1/L": Case(residual, x, scaled),
        f"GPT-2, {layers[12]}": Case(gpt2(config), ids),
    }


def ours(case: Case, draws: int) -> tuple[Prediction, float]:
    """The prediction with measured numbers, and the seconds that reading and predicting took."""
    shapes = jax.eval_shape(case.model.init, jax.random.key(0), case.x)
    start = time.perf_counter()
    reading = jaxinit.read(case.model.apply, shapes, case.x)
    rules = jaxinit.advise(reading).rules() if case.rules is None else case.rules
    plan = jaxinit.plan(shapes, rules)
    jaxinit.predict(reading, plan)
    seconds = time.perf_counter() - start
    return jaxinit.predict(reading, plan, measure=True, draws=draws), seconds


def off_by(interval: tuple[float, float], measured: float | None) -> float:
    """Factor between what was measured and the nearest that was predicted; 1 inside."""
    low, high = interval
    if measured is None or not low <= high:
        return math.inf
    if low <= measured <= high:
        return 1.0
    if measured <= 0 or high <= 0:
        return math.inf
    return max(low / measured, measured / high)


def rival(case: Case, draws: int) -> list[float] | None:
    """For every layer that AnyInit predicts, the factor to what it measures; None without it."""
    try:
        anyinit = importlib.import_module("anyinit")
    except ImportError:
        return None
    predicted: dict[str, float] = {}
    measured: dict[str, list[float]] = {}
    for seed in range(draws):
        key = jax.random.key(seed)
        x = (
            jax.random.normal(key, case.x.shape)
            if case.x.dtype == jnp.float32
            else (jax.random.randint(key, case.x.shape, 0, 211))
        )
        params = case.model.init(key, jnp.zeros(case.x.shape, case.x.dtype))
        report = anyinit.initialize(case.model, "analytic", x, params=params, seed=seed)
        for layer in report.layers:
            if layer.predicted is not None and layer.measured is not None:
                predicted[layer.name] = layer.predicted
                measured.setdefault(layer.name, []).append(layer.measured)
    return [
        off_by((value, value), sum(measured[name]) / len(measured[name]))
        for name, value in predicted.items()
    ]


def summary(factors: list[float]) -> dict[str, Any]:
    within = sum(factor <= FACTOR for factor in factors)
    return {"layers": len(factors), "within": within, "worst": max(factors, default=math.nan)}


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--small", action="store_true", help="width 128, a fifth of the depth")
    parser.add_argument("--draws", type=int, default=10, help="draws to average over")
    parser.add_argument("--json", help="where to keep the numbers")
    arguments = parser.parse_args()
    width, deep = (128, 0.2) if arguments.small else (1024, 1.0)
    draws = min(arguments.draws, 3) if arguments.small else arguments.draws
    results: dict[str, Any] = {}
    rows = []
    for name, case in cases(width, deep, 16).items():
        prediction, seconds = ours(case, draws)
        forward = summary([off_by(m.forward, m.measured_forward) for m in prediction.layers])
        backward = summary([off_by(m.backward, m.measured_backward) for m in prediction.layers])
        factors = rival(case, draws)
        other = None if factors is None else summary(factors)
        results[name] = {
            "forward": forward,
            "backward": backward,
            "seconds": seconds,
            "anyinit, forward": other,
            "layers": [dataclasses.asdict(m) for m in prediction.layers],
        }
        rows.append([name, *_cells(forward), *_cells(backward), f"{seconds:.2f}", *_cells(other)])
        harness.write(arguments.json, QUESTION, results)
    harness.show(
        f"layers within a factor of {FACTOR:g}, width {width}, mean of {draws} draws",
        ["", "forward", "worst", "backward", "worst", "seconds", "AnyInit forward", "worst"],
        rows,
    )


def _cells(found: dict[str, Any] | None) -> list[str]:
    if found is None:
        return ["", ""]
    return [f"{found['within']} of {found['layers']}", f"{found['worst']:.2f}"]


if __name__ == "__main__":
    main()
