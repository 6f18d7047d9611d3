"""Drop-in `kernel_init=` for Flax, in Linen and in NNX.

Initializers take the arguments of `jax.nn.initializers` in the same order and draw the same
numbers in float32. Beyond that they compare, print and declare what they draw.

    python examples/kernel_init.py
"""

import argparse
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx

from jaxinit import initializers as init


class LinenMLP(nn.Module):
    """Two leaky ReLU layers and a small head."""

    width: int

    @nn.compact
    def __call__(self, x):
        hidden = init.he_normal(negative_slope=0.01)
        for _ in range(2):
            x = nn.leaky_relu(nn.Dense(self.width, kernel_init=hidden)(x))
        return nn.Dense(10, kernel_init=init.scaled(init.lecun_normal(), 0.1))(x)


class NnxMLP(nnx.Module):
    """The same network in NNX."""

    def __init__(self, width: int, rngs: nnx.Rngs):
        hidden = init.he_normal(negative_slope=0.01)
        self.first = nnx.Linear(64, width, kernel_init=hidden, rngs=rngs)
        self.second = nnx.Linear(width, width, kernel_init=hidden, rngs=rngs)
        head = init.scaled(init.lecun_normal(), 0.1)
        self.head = nnx.Linear(width, 10, kernel_init=head, rngs=rngs)

    def __call__(self, x):
        return self.head(nnx.leaky_relu(self.second(nnx.leaky_relu(self.first(x)))))


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--small", action="store_true", help="width 64 instead of 512")
    width = 64 if parser.parse_args().small else 512

    inputs = jax.random.normal(jax.random.key(1), (256, 64))
    hidden = init.he_normal(negative_slope=0.01)

    linen = LinenMLP(width)
    variables: Any = linen.init(jax.random.key(0), inputs)
    kernel = variables["params"]["Dense_1"]["kernel"]
    print(f"Linen   {hidden}: declared std {hidden.law(kernel.shape).std:.5f}, "
          f"drawn {float(kernel.std()):.5f}")  # fmt: skip
    outputs: Any = linen.apply(variables, inputs)
    print(f"        output rms {float(jnp.std(outputs)):.3f}")

    model = NnxMLP(width, nnx.Rngs(0))
    kernel = model.second.kernel[...]
    print(f"NNX     {hidden}: declared std {hidden.law(kernel.shape).std:.5f}, "
          f"drawn {float(kernel.std()):.5f}")  # fmt: skip
    print(f"        output rms {float(jnp.std(model(inputs))):.3f}")

    print("\nThey are values:")
    print("  he_normal() == he_normal():", init.he_normal() == init.he_normal())
    print("  xavier_normal(gain=2):     ", init.xavier_normal(gain=2))
    print("  as plain JSON:             ", init.to_config(init.scaled(hidden, 0.1)))

    print("\nAttention, convolutions and experts name their axes:")
    query = init.lecun_normal(*init.einsum_axes("btd,dhk->bthk"))
    print("  query kernel (512, 8, 64): ", query.fans((512, 8, 64)))
    depthwise = init.he_normal(groups=32)
    print("  depthwise (3, 3, 1, 32):   ", depthwise.fans((3, 3, 1, 32)))
    experts = init.stacked(init.he_normal())
    print("  8 experts (8, 512, 2048):  ", experts.fans((8, 512, 2048)))


if __name__ == "__main__":
    main()
