"""Brief training of a model from two initializations: same data, same steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxinit.planning import flatten
from jaxinit.reading import Reading
from published.common import Model
from published.evidence import is_float

RATES = (1e-3, 3e-3, 1e-2)
BATCHES = 4
# From inputs and outputs to a loss.
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


def recall(inputs: tuple[jax.Array, ...], outputs: Any) -> jax.Array:
    """At every position of a sequence the label of the fourth before it, as in `classify`."""
    x, logits = inputs[0], jax.tree.leaves(outputs)[0]
    return classify((x[:, :-4],), logits[:, 4:])


# The advice does not know the loss, and says that heads start at zero for a squared error.
SQUARED = (reconstruct, regress)

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
    "LSTM of Haiku": recall,
    "Mamba": classify,
    "FNO": regress,
}


def train(
    model: Model,
    reading: Reading,
    task: Task,
    starts: Sequence[Any],
    steps: int,
    slower: Sequence[Mapping[str, float]],
) -> list[list[float]]:
    """Mean loss of the last eighth of the steps: for every start, for every rate.

    For each start ``slower`` holds what the rate of a parameter is multiplied with, by path.
    """
    trained = {p.path for p in reading if p.role != "state"}
    batches = [model.data(jax.random.key(1000 + n)) for n in range(BATCHES)]
    optimizer = optax.inject_hyperparams(optax.adam)(learning_rate=1e-3)
    tree, paths = jax.tree.structure(starts[0]), flatten("verdicts", starts[0]).paths

    # A step is a program of its own: XLA runs convolutions inside of loops slowly on CPUs.
    @jax.jit
    def step(moving: Any, rest: Any, state: Any, factors: Any, inputs: Any) -> Any:
        def loss(moving: Any) -> jax.Array:
            whole = jax.tree.unflatten(tree, [(rest | moving)[p] for p in paths])
            return task(inputs, model.apply(whole, *inputs))

        value, gradient = jax.value_and_grad(loss)(moving)
        updates, state = optimizer.update(gradient, state)
        updates = {path: factors[path] * update for path, update in updates.items()}
        return optax.apply_updates(moving, updates), state, value

    def final(start: Any, rate: float, slower: Mapping[str, float]) -> float:
        leaves = dict(zip(paths, flatten("verdicts", start).leaves, strict=True))
        moving = {p: x for p, x in leaves.items() if p in trained and is_float(x)}
        rest = {p: x for p, x in leaves.items() if p not in moving}
        factors = {p: jnp.float32(slower.get(p, 1.0)) for p in moving}
        state = optimizer.init(moving)
        state.hyperparams["learning_rate"] = jnp.asarray(rate)
        losses = []
        for number in range(steps):
            moving, state, value = step(moving, rest, state, factors, batches[number % BATCHES])
            losses.append(value)
        last = float(jnp.stack(losses[-max(steps // 8, 1) :]).mean())
        return last if math.isfinite(last) else math.inf

    pairs = zip(starts, slower, strict=True)
    return [[final(start, rate, each) for rate in RATES] for start, each in pairs]
