"""A plain network of 50 layers that does not train, what the advice finds, and the same repaired.

The model is read, never run; its own initialization (Flax's default) is judged, the rules of the
advice make a plan, and both trees are trained with the same optimizer on the same data. Drawn: the
second moment of every layer's output, and the loss.

    python examples/advise_and_repair.py --out advise_and_repair.png
"""

import argparse
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import optax

import jaxinit
from jaxinit.flax import own_initializers

matplotlib.use("Agg")
import matplotlib.pyplot as plt

CLASSES, FEATURES = 10, 32


class Plain(nn.Module):
    """`depth` ReLU layers without normalisation or residual sums."""

    depth: int
    width: int

    @nn.compact
    def __call__(self, x):
        for _ in range(self.depth - 1):
            x = nn.relu(nn.Dense(self.width)(x))
            self.sow("intermediates", "moment", jnp.mean(x**2))
        return nn.Dense(CLASSES)(x)


def gaussian_classes(key, count: int):
    """Points around one random centre for each class, and their labels."""
    key_centres, key_labels, key_noise = jax.random.split(key, 3)
    centres = jax.random.normal(key_centres, (CLASSES, FEATURES))
    labels = jax.random.randint(key_labels, (count,), 0, CLASSES)
    return centres[labels] + 0.3 * jax.random.normal(key_noise, (count, FEATURES)), labels


def moments(model: nn.Module, variables, points) -> np.ndarray:
    """Mean square of the output of every hidden layer."""
    _, state = model.apply(variables, points, mutable="intermediates")
    return np.asarray(state["intermediates"]["moment"], np.float64)


def train(model: nn.Module, variables, points, labels, steps: int, rate: float) -> np.ndarray:
    """Losses of plain SGD over the whole data set."""
    optimizer = optax.sgd(rate)

    def loss_fn(variables):
        logits: Any = model.apply(variables, points)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    def step(carry, _):
        variables, state = carry
        loss, gradients = jax.value_and_grad(loss_fn)(variables)
        updates, state = optimizer.update(gradients, state)
        return (optax.apply_updates(variables, updates), state), loss

    run = jax.jit(lambda v: jax.lax.scan(step, (v, optimizer.init(v)), length=steps)[1])
    return np.asarray(run(variables))


def draw(results: dict[str, tuple[np.ndarray, np.ndarray]], out: str) -> None:
    """Saves both curves of every method."""
    figure, (signal, loss) = plt.subplots(1, 2, figsize=(10, 4), constrained_layout=True)
    for name, (sizes, losses) in results.items():
        signal.semilogy(range(1, len(sizes) + 1), np.maximum(sizes, 1e-30), label=name)
        loss.plot(losses, label=name)
    signal.set(xlabel="layer", ylabel="mean square of the output", title="before training")
    loss.set(xlabel="step", ylabel="loss", title="training")
    loss.axhline(np.log(CLASSES), color="grey", linestyle=":", label="guessing")
    loss.legend()
    figure.savefig(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--small", action="store_true", help="20 layers of 32, 20 steps")
    parser.add_argument("--out", default="advise_and_repair.png", help="where the picture goes")
    arguments = parser.parse_args()
    depth, width, steps = (20, 32, 20) if arguments.small else (50, 128, 500)

    model = Plain(depth, width)
    key, key_data = jax.random.split(jax.random.key(0))
    points, labels = gaussian_classes(key_data, 256)
    reading = jaxinit.read(model.apply, jax.eval_shape(model.init, key, points), points)
    advice = jaxinit.advise(reading, init=own_initializers(model, points))
    print(advice)

    before = jax.jit(model.init)(key, points)
    before = {"params": before["params"]}
    after = jaxinit.plan(before, advice.rules()).init(key)
    results = {}
    for name, variables in {"as Flax draws it": before, "as advised": after}.items():
        print(f"\n{name}: {jaxinit.audit(reading, variables).verdict}")
        losses = train(model, variables, points, labels, steps, 0.003)
        results[name] = (moments(model, variables, points), losses)
        print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f} (guessing is {np.log(CLASSES):.3f})")
    draw(results, arguments.out)
    print(f"\n{arguments.out}")


if __name__ == "__main__":
    main()
