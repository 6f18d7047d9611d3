"""Brief training of a model from two initializations: same data, same steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxinit.planning import flatten
from jaxinit.reading import Reading
from published.common import Model

RATES = (1e-3, 1e-2)
BATCHES = 4
# From inputs and outputs to a loss; the second number is what a constant guess has.
Task = Callable[[tuple[jax.Array, ...], Any], jax.Array]


def _cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def classify(inputs: tuple[jax.Array, ...], outputs: Any) -> jax.Array:
    """Labels are the largest of random linear functions of the inputs."""
    x, logits = inputs[0], jax.tree.leaves(outputs)[0]
    rows = math.prod(logits.shape[:-1])
    flat = x.reshape(rows, -1) if x.size % rows == 0 else x.reshape(len(x), -1)
    teacher = jax.random.normal(jax.random.key(7), (flat.shape[-1], logits.shape[-1]))
    return _cross_entropy(logits.reshape(rows, -1), (flat @ teacher).argmax(-1))


def tokens(inputs: tuple[jax.Array, ...], outputs: Any) -> jax.Array:
    """The next token is a fixed permutation of the last input's token."""
    ids, logits = inputs[-1], jax.tree.leaves(outputs)[0]
    return _cross_entropy(logits, (ids * 7 + 3) % logits.shape[-1])


def reconstruct(inputs: tuple[jax.Array, ...], outputs: Any) -> jax.Array:
    """The first input comes out again."""
    return jnp.mean((jax.tree.leaves(outputs)[0] - inputs[0]) ** 2)


def regress(inputs: tuple[jax.Array, ...], outputs: Any) -> jax.Array:
    """A product of sines of random linear functions of the inputs, of unit size."""
    out = jax.tree.leaves(outputs)[0]
    flat = inputs[0].reshape(inputs[0].shape[0], -1)
    teacher = jax.random.normal(jax.random.key(7), (flat.shape[-1], 2)) / math.sqrt(flat.shape[-1])
    wanted = 2 * jnp.sin(2 * flat @ teacher).prod(-1)
    return jnp.mean((out.reshape(len(flat), -1) - wanted[:, None]) ** 2)


TASKS: dict[str, Task] = {
    "GPT-2": tokens,
    "T5": tokens,
    "BERT of the Equinox tutorial": classify,
    "ViT": classify,
    "ResNet, batch norm": classify,
    "Fixup ResNet": classify,
    "autoencoder of NNX": reconstruct,
    "DeepSets": regress,
    "MLP of Equinox": classify,
    "LSTM of Haiku": classify,
    "Mamba": classify,
    "FNO": regress,
}


def train(
    model: Model, reading: Reading, task: Task, starts: Sequence[Any], steps: int
) -> list[list[float]]:
    """Mean loss of the last eighth of the steps: for every start, for every rate."""
    trained = {p.path for p in reading if p.role != "state"}
    data = [model.data(jax.random.key(1000 + n)) for n in range(BATCHES)]
    batches = jax.tree.map(lambda *x: jnp.stack(x), *data)
    optimizer = optax.inject_hyperparams(optax.adam)(1e-3)

    def run(leaves: Any, rate: jax.Array) -> jax.Array:
        paths = list(leaves)
        moving = {
            p: leaves[p]
            for p in paths
            if p in trained and jnp.issubdtype(leaves[p].dtype, jnp.floating)
        }

        def loss(moving: Any, inputs: Any) -> jax.Array:
            whole = jax.tree.unflatten(tree, [(leaves | moving)[p] for p in paths])
            return task(inputs, model.apply(whole, *inputs))

        def step(carry: Any, number: jax.Array) -> Any:
            moving, state = carry
            inputs = jax.tree.map(lambda x: x[number % BATCHES], batches)
            value, gradient = jax.value_and_grad(loss)(moving, inputs)
            updates, state = optimizer.update(gradient, state)
            return (optax.apply_updates(moving, updates), state), value

        state = optimizer.init(moving)
        state.hyperparams["learning_rate"] = rate
        _, losses = jax.lax.scan(step, (moving, state), jnp.arange(steps))
        return losses[-max(steps // 8, 1) :].mean()

    flat = [flatten("verdicts", start) for start in starts]
    tree = jax.tree.structure(starts[0])
    # Paths sorted by jax.tree would not be the order of the leaves.
    jitted = jax.jit(lambda values, rate: run(dict(zip(flat[0].paths, values, strict=True)), rate))
    losses = [[float(jitted(one.leaves, rate)) for rate in RATES] for one in flat]
    return [[x if math.isfinite(x) else math.inf for x in row] for row in losses]
