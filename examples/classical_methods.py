"""The classical methods, and what each does to a signal that crosses 30 layers.

Zeros, ones, a constant, U(-0.1, 0.1), N(0, 0.01), Xavier and Kaiming, each in a ReLU and a tanh
network without normalisation. Printed: the root mean square of the activations after the first,
the middle and the last layer. Drawn: all layers, saved as a picture.

    python examples/classical_methods.py --out classical_methods.png
"""

import argparse

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
from rich.console import Console
from rich.table import Table

from jaxinit import initializers as init

matplotlib.use("Agg")
import matplotlib.pyplot as plt

METHODS = {
    "zeros": init.zeros,
    "ones": init.ones,
    "constant 0.01": init.constant(0.01),
    "uniform U(-0.1, 0.1)": init.uniform(minval=-0.1, maxval=0.1),
    "normal N(0, 0.01²)": init.normal(0.01),
    "Xavier": init.xavier_normal(),
    "Kaiming": init.kaiming_normal(),
}
ACTIVATIONS = {"ReLU": jax.nn.relu, "tanh": jnp.tanh}


def layer_sizes(initializer, activation, depth: int, width: int, key) -> np.ndarray:
    """Root mean square of the activations after every layer, for standard normal inputs."""
    key_input, key_layers = jax.random.split(key)
    inputs = jax.random.normal(key_input, (256, width))

    def layer(signal, key):
        signal = activation(signal @ initializer(key, (width, width)))
        return signal, jnp.sqrt(jnp.mean(signal**2))

    _, sizes = jax.lax.scan(layer, inputs, jax.random.split(key_layers, depth))
    return np.asarray(sizes, np.float64)


def describe(size: float) -> str:
    if not np.isfinite(size):
        return "[red]overflow[/]"
    return "[red]0[/]" if size == 0 else f"{size:.2g}"


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--small", action="store_true", help="10 layers of 64 instead of 30 of 512")
    parser.add_argument("--out", default="classical_methods.png", help="where the picture goes")
    arguments = parser.parse_args()
    depth, width = (10, 64) if arguments.small else (30, 512)

    figure, panels = plt.subplots(1, 2, figsize=(11, 4.2), sharey=True, layout="constrained")
    table = Table(title=f"Root mean square of the activations, {depth} layers of {width}")
    table.add_column("method")
    for activation in ACTIVATIONS:
        for layer in (1, depth // 2, depth):
            table.add_column(f"{activation} {layer}", justify="right")
    rows = {name: [name] for name in METHODS}
    for panel, (title, activation) in zip(panels, ACTIVATIONS.items(), strict=True):
        for name, initializer in METHODS.items():
            sizes = layer_sizes(initializer, activation, depth, width, jax.random.key(0))
            rows[name] += [describe(sizes[layer - 1]) for layer in (1, depth // 2, depth)]
            drawn = np.where(np.isfinite(sizes) & (sizes > 0), sizes, np.nan)
            panel.semilogy(np.arange(1, depth + 1), drawn, marker=".", label=name)
        panel.set(title=f"{title}, width {width}", xlabel="layer", ylim=(1e-8, 1e8))
        panel.grid(alpha=0.3)
    for row in rows.values():
        table.add_row(*row)
    panels[0].set_ylabel("root mean square of the activations")
    panels[1].legend(loc="upper right", fontsize=8)
    figure.savefig(arguments.out, dpi=120)

    Console().print(table)
    print("Zeros pass nothing on, ones and constants explode or saturate with all units equal,")
    print("a fixed spread fits one width only. Kaiming keeps a ReLU net's signal, Xavier loses")
    print("half of the power in each ReLU layer and is made for tanh.")
    print(f"Picture: {arguments.out}")


if __name__ == "__main__":
    main()
