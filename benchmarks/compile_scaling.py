"""How does the time to compile an init function grow with the depth of the model?

A transformer of width 256 at 6 to 96 layers: seconds to trace and to compile with `jit_init`, whose
work is that of the few kinds of leaves, and with `jax.jit`, whose work is that of every leaf.
Tracing runs the model's own Python for every layer, whoever asks, and is reported apart: `compile`
is all that comes after it. Caches are cleared before each measurement; nothing is drawn. Core
seconds, those of all threads together, are kept beside the seconds of the wall.

    python benchmarks/compile_scaling.py --json benchmarks/results/compile_scaling-cpu.json \
        --picture compile_scaling.png
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import harness
import jax
import jax.numpy as jnp

import jaxinit
from jaxinit.engine._compile import forget_executables
from jaxinit.report import gpt2

QUESTION = "How does the time to compile an init function grow with the depth of the model?"
CLOCKS = ("trace", "compile", "wall", "cores")
COLOURS = {"jit_init": "#0b6e4f", "jax.jit": "#b23a48"}


def by_jit_init(init: Callable[..., Any], *inputs: Any) -> float:
    """Makes everything ready; returns the seconds of tracing."""
    return jaxinit.jit_init(init).explain(*inputs).seconds["trace"]


def by_jax_jit(init: Callable[..., Any], *inputs: Any) -> float:
    start = time.perf_counter()
    traced = jax.jit(init).trace(*inputs)
    seconds = time.perf_counter() - start
    traced.lower().compile()
    return seconds


CONTESTANTS = {"jit_init": by_jit_init, "jax.jit": by_jax_jit}


def measure(contestant: str, layers: int, width: int) -> dict[str, float]:
    """Seconds from a function to its compiled programs, with empty caches."""
    config = gpt2.GPT2Config(layers, width, width // 32, vocabulary=1024, positions=64)
    ids = jnp.zeros((1, 16), jnp.int32)
    key = jax.random.key(0)
    jax.clear_caches()
    forget_executables()
    cores, start = time.process_time(), time.perf_counter()
    trace = CONTESTANTS[contestant](gpt2.gpt2(config).init, key, ids)
    wall, cores = time.perf_counter() - start, time.process_time() - cores
    return {"trace": trace, "compile": wall - trace, "wall": wall, "cores": cores}


def summarize(runs: dict[str, dict[int, list[dict[str, float]]]]) -> dict[str, dict[int, dict]]:
    return {
        name: {
            layers: {clock: harness.Spread.of([run[clock] for run in found]) for clock in found[0]}
            for layers, found in sorted(by_depth.items())
        }
        for name, by_depth in runs.items()
    }


def ratios(summary: dict[str, dict[int, dict]]) -> dict[str, dict[str, Any]]:
    """Seconds at 96 layers over those at 12, or at the ends of what was measured."""
    found = {}
    for name, by_depth in summary.items():
        low = 12 if 12 in by_depth else min(by_depth)
        high = max(by_depth)
        found[name] = {
            "layers": [low, high],
            **{c: by_depth[high][c].median / by_depth[low][c].median for c in CLOCKS},
        }
    return found


def _plain(value: float, _: Any) -> str:
    """Labels at 1, 2 and 5 of every decade."""
    return f"{value:g}" if f"{value:e}"[0] in "125" else ""


def draw(summary: dict[str, dict[int, dict]], path: str) -> None:
    """Seconds against layers, both axes logarithmic, each line with its name at its end."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot, ticker

    figure, axes = pyplot.subplots(figsize=(7, 4.2), layout="constrained", facecolor="white")
    for name, by_depth in summary.items():
        layers = list(by_depth)
        seconds = [by_depth[depth]["wall"].median for depth in layers]
        axes.plot(layers, seconds, marker="o", color=COLOURS[name], linewidth=2)
        label = f"{name}\n{seconds[-1]:.1f} s"
        axes.annotate(
            label,
            (layers[-1], seconds[-1]),
            xytext=(10, 0),
            textcoords="offset points",
            va="center",
            color=COLOURS[name],
            fontweight="bold",
        )
    depths = sorted({depth for by_depth in summary.values() for depth in by_depth})
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(depths, [str(depth) for depth in depths])
    axes.xaxis.set_minor_locator(ticker.NullLocator())
    for which in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
        which(ticker.FuncFormatter(_plain))
    axes.set_xlim(depths[0] / 1.15, depths[-1] * 1.6)
    axes.set_xlabel("layers of the transformer")
    axes.set_ylabel("seconds to trace and compile init")
    axes.grid(True, which="major", color="#dddddd", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=160)
    print(f"written: {path}")


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--small", action="store_true", help="width 32, 1 and 2 layers, one run")
    parser.add_argument("--layers", type=int, nargs="+", default=[6, 12, 24, 48, 96])
    parser.add_argument("--repeats", type=int, default=5, help="runs of jit_init at each depth")
    parser.add_argument("--jax-repeats", type=int, default=1, help="runs of jax.jit, which is slow")
    parser.add_argument("--jax-layers", type=int, default=48, help="deepest model for jax.jit")
    parser.add_argument("--json", help="where to keep the numbers")
    parser.add_argument("--picture", help="where to keep the picture (needs matplotlib)")
    arguments = parser.parse_args()
    depths, width = ([1, 2], 32) if arguments.small else (arguments.layers, 256)
    repeats = {"jit_init": arguments.repeats, "jax.jit": arguments.jax_repeats}
    if arguments.small:
        repeats = dict.fromkeys(CONTESTANTS, 1)

    measure("jit_init", 1, 32)  # what Python and JAX do once in a process
    runs: dict[str, dict[int, list[dict[str, float]]]] = {name: {} for name in CONTESTANTS}
    for repeat in range(max(repeats.values())):
        for layers in depths if repeat % 2 == 0 else reversed(depths):
            for name in CONTESTANTS:
                if repeat < repeats[name] and (name != "jax.jit" or layers <= arguments.jax_layers):
                    runs[name].setdefault(layers, []).append(measure(name, layers, width))
    summary = summarize({name: by_depth for name, by_depth in runs.items() if by_depth})
    harness.show(
        f"Seconds to trace and to compile, width {width}; medians",
        ["layers", *[f"{name} {clock}" for name in summary for clock in CLOCKS[:3]]],
        [
            [
                str(layers),
                *[
                    f"{summary[name][layers][clock].median:.2f}" if layers in summary[name] else ""
                    for name in summary
                    for clock in CLOCKS[:3]
                ],
            ]
            for layers in depths
        ],
    )
    growth = ratios(summary)
    for name, ratio in growth.items():
        low, high = ratio["layers"]
        print(
            f"{name}, {high} layers over {low}: "
            + ", ".join(f"{clock} {ratio[clock]:.2f} x" for clock in CLOCKS)
        )
    if arguments.picture:
        draw(summary, arguments.picture)
    harness.write(arguments.json, QUESTION, {"seconds": summary, "growth": growth})


if __name__ == "__main__":
    main()
