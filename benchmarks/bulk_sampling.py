"""How long does it take to draw a whole model, against what one would write without jaxinit?

The tree is the GPT-2 that ships with the package. Contestants: `plan.init`, `jax.jit(model.init)`,
eager `model.init`, a hand-written loop of `jax.random` over the leaves, and, where installed,
torch and numpy filling arrays of the same shapes. First calls (trace, compile and run) start
from empty caches; later calls only run. A fill of the same number of bytes stands beside them.

    python benchmarks/bulk_sampling.py --json benchmarks/results/bulk_sampling-cpu.json
"""

import argparse
import contextlib
import functools
from typing import Any

import harness
import jax
import jax.numpy as jnp
import numpy as np

import jaxinit
import jaxinit.flax
from jaxinit.report import gpt2

torch: Any = None
with contextlib.suppress(ImportError):
    import torch  # pyright: ignore[reportMissingImports]

QUESTION = "How long does it take to draw a whole model?"


def by_hand(key, leaves):
    """The loop people write: one key for each leaf, one draw for each leaf."""
    keys = jax.random.split(key, len(leaves))
    return [
        jnp.full(leaf.shape, leaf.law.mean, leaf.dtype)
        if leaf.law.variance == 0
        else jax.random.normal(key, leaf.shape, leaf.dtype) * leaf.law.std
        for key, leaf in zip(keys, leaves, strict=True)
    ]


def by_torch(leaves):
    drawn = []
    for leaf in leaves:
        array = torch.empty(leaf.shape)
        drawn.append(array.normal_(0, leaf.law.std) if leaf.law.variance else array.fill_(0))
    return [int(array.numel()) for array in drawn]


def by_numpy(leaves):
    generator = np.random.Generator(np.random.SFC64(0))
    return [
        generator.standard_normal(leaf.shape, np.float32) * np.float32(leaf.law.std)
        if leaf.law.variance
        else np.zeros(leaf.shape, np.float32)
        for leaf in leaves
    ]


def contestants(model, inputs, plan, rules) -> tuple[dict, dict]:
    """First calls, which build what they run, and later calls of the same."""
    key = jax.random.key(0)
    leaves = plan.leaves
    abstract = jaxinit.flax.linen_tree(model, *inputs)
    zeros = [jnp.zeros(shape.shape, shape.dtype) for shape in inputs]
    size = plan.nbytes // 4
    first = {
        "plan.init": lambda: jaxinit.plan(abstract, rules).init(key),
        "jax.jit(model.init)": lambda: jax.jit(model.init)(key, *zeros),
        "eager model.init": lambda: model.init(key, *zeros),
        "jit of a loop": lambda: jax.jit(functools.partial(by_hand, leaves=leaves))(key),
        "eager loop": lambda: by_hand(key, leaves),
    }
    jitted, looped = jax.jit(model.init), jax.jit(functools.partial(by_hand, leaves=leaves))
    later = {
        "plan.init": lambda: plan.init(key),
        "jax.jit(model.init)": lambda: jitted(key, *zeros),
        "eager model.init": lambda: model.init(key, *zeros),
        "jit of a loop": lambda: looped(key),
        "eager loop": lambda: by_hand(key, leaves),
        "numpy": lambda: by_numpy(leaves),
        "fill of the same size": lambda: jnp.ones(size, jnp.float32),
    }
    if torch is not None:
        later["torch"] = lambda: by_torch(leaves)
    return first, later


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--small", action="store_true", help="one layer of 64, one repeat")
    parser.add_argument("--repeats", type=int, default=10, help="later calls of each contestant")
    parser.add_argument("--json", help="where to keep the numbers")
    arguments = parser.parse_args()

    small = gpt2.GPT2Config(layers=1, width=64, heads=2, vocabulary=512)
    config = small if arguments.small else gpt2.GPT2Config()
    model, rules = gpt2.gpt2(config), gpt2.gpt2_rules(config)
    inputs = model.example_inputs()
    plan = jaxinit.plan(jaxinit.flax.linen_tree(model, *inputs), rules)
    jaxinit.checks.assert_laws(plan.init(jax.random.key(0)), plan)
    print(f"{plan.size:,} parameters in {len(plan.leaves)} leaves; the laws hold")

    first, later = contestants(model, inputs, plan, rules)
    firsts = harness.alternate(first, 1 if arguments.small else 3, cold=True)
    for function in later.values():
        harness.seconds_of(function)  # compiled and warm
    laters = harness.alternate(later, 1 if arguments.small else arguments.repeats)

    ours = firsts["plan.init"].median
    harness.show(
        "Seconds, median and range",
        ["contestant", "first call", "over plan.init", "later calls"],
        [
            [
                name,
                str(firsts[name]) if name in firsts else "",
                f"{firsts[name].median / ours:.1f} x" if name in firsts else "",
                str(laters[name]),
            ]
            for name in later
        ],
    )
    results = {"parameters": plan.size, "first": firsts, "later": laters}
    harness.write(arguments.json, QUESTION, results)


if __name__ == "__main__":
    main()
