"""Why it matters: the same deep ReLU network, trained with optax from three starting points.

Ten Gaussian classes, plain SGD. Zeros never move, Xavier stalls because each ReLU layer halves
the signal, Kaiming converges.

    python examples/training.py
"""

import argparse
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

import jaxinit
from jaxinit import initializers as init

METHODS = {
    "zeros": init.zeros,
    "Xavier": init.xavier_normal(),
    "Kaiming": init.kaiming_normal(),
}
CLASSES, FEATURES = 10, 32


class DeepMLP(nn.Module):
    """`depth` ReLU layers without normalisation or residual connections."""

    depth: int
    width: int

    @nn.compact
    def __call__(self, x):
        for _ in range(self.depth - 1):
            x = nn.relu(nn.Dense(self.width)(x))
        return nn.Dense(CLASSES)(x)


def gaussian_classes(key, count: int):
    """Points around one random centre for each class, and their labels."""
    key_centres, key_labels, key_noise = jax.random.split(key, 3)
    centres = jax.random.normal(key_centres, (CLASSES, FEATURES))
    labels = jax.random.randint(key_labels, (count,), 0, CLASSES)
    return centres[labels] + 0.3 * jax.random.normal(key_noise, (count, FEATURES)), labels


def train(model: nn.Module, params, steps: int, points, labels) -> jax.Array:
    """Losses of plain SGD with learning rate 0.01 over the whole data set."""
    optimizer = optax.sgd(0.01)

    def loss(params):
        logits: Any = model.apply(params, points)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    def step(carry, _):
        params, state = carry
        value, gradient = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(gradient, state)
        return (optax.apply_updates(params, updates), state), value

    run = jax.jit(lambda carry: jax.lax.scan(step, carry, length=steps)[1])
    return run((params, optimizer.init(params)))


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--small", action="store_true", help="100 steps instead of 300")
    steps = 100 if parser.parse_args().small else 300

    points, labels = gaussian_classes(jax.random.key(1), 512)
    model = DeepMLP(depth=30, width=128)
    abstract = jax.eval_shape(model.init, jax.random.key(0), points)
    print(f"30 ReLU layers of 128, SGD 0.01, {steps} steps; guessing costs {jnp.log(10.0):.3f}")
    for name, kernel in METHODS.items():
        plan = jaxinit.plan(abstract, [("**/kernel", kernel), ("**/bias", init.zeros)])
        losses = train(model, plan.init(jax.random.key(0)), steps, points, labels)
        print(f"  {name:<8} loss {float(losses[0]):.3f} -> {float(losses[-1]):.3f}")


if __name__ == "__main__":
    main()
