"""How many numbers per second are drawn on CPU, against jax.random, torch and numpy?

Every contestant fills a fresh array, as a program does that initializes a model; beside them stands
a plain fill of the same size, which is what the memory allows (the first touch of its pages
included). One function is drawn by `jit_init`, by `jax.jit` from a fast key, and by `jax.jit`, and
their results are compared byte for byte first. Wall seconds are what a user waits. Core seconds,
those of all threads together, say what the work costs and are what to compare on a machine that
others use too.

    python benchmarks/sampling_rate.py --json benchmarks/results/sampling_rate-cpu.json
"""

import argparse
import contextlib
import time
from typing import Any

import harness
import jax
import jax.numpy as jnp
import numpy as np

import jaxinit
from jaxinit.engine._threefry import fast_compiler_options, fast_key

torch: Any = None
with contextlib.suppress(ImportError):
    import torch  # pyright: ignore[reportMissingImports]

QUESTION = "How many numbers per second are drawn on CPU?"
UNSIGNED = {1: "uint8", 2: "uint16", 4: "uint32", 8: "uint64"}
LAWS = {
    "bits": lambda key, size, dtype: jax.random.bits(key, size, UNSIGNED[dtype.itemsize]),
    "uniform": jax.random.uniform,
    "normal": jax.random.normal,
    "truncated normal": lambda key, *array: jax.random.truncated_normal(key, -2.0, 2.0, *array),
}
RIVALS = ("fast_key", "jax.random", "torch, in place", "torch", "numpy", "fill")


def compiled(function, *arguments, options=None):
    """A compiled program, the seconds that took, and the bytes of its temporaries."""
    start = time.perf_counter()
    program = jax.jit(function).lower(*arguments).compile(compiler_options=options)
    seconds = time.perf_counter() - start
    return program, {
        "compile": seconds,
        "temporaries": getattr(program.memory_analysis(), "temp_size_in_bytes", 0),
    }


def jax_contestants(law: str, size: int, dtype) -> tuple[dict, dict]:
    """jit_init, the fast key and jax.random, found equal, and a fill."""
    key = jax.random.key(0)

    def draw(key):
        return LAWS[law](key, (size,), dtype)

    usual, usual_facts = compiled(draw, key)
    quick = fast_key(key)
    fast, fast_facts = compiled(draw, quick, options=fast_compiler_options())
    init = jaxinit.jit_init(draw)
    expected = np.asarray(usual(key))
    for name, got in (("fast key", fast(quick)), ("jit_init", init(key))):
        if expected.tobytes() != np.asarray(got).tobytes():
            raise SystemExit(f"{law}, {dtype}, {size}: {name} draws other numbers than JAX")
    one = jnp.ones((), expected.dtype)
    fill, fill_facts = compiled(lambda value: jnp.full((size,), value), one)
    return {
        "jit_init": lambda: init(key),
        "fast_key": lambda: fast(quick),
        "jax.random": lambda: usual(key),
        "fill": lambda: fill(one),
    }, {"fast_key": fast_facts, "jax.random": usual_facts, "fill": fill_facts}


def torch_contestants(law: str, size: int, dtype) -> dict:
    """Torch's samplers of the same law, into a fresh tensor and into one that is there."""
    if torch is None or (law == "bits" and dtype.itemsize != 4):
        return {}
    fillers = {
        "bits": lambda tensor: tensor.random_(),
        "uniform": lambda tensor: tensor.uniform_(),
        "normal": lambda tensor: tensor.normal_(),
        "truncated normal": lambda tensor: torch.nn.init.trunc_normal_(tensor, 0.0, 1.0, -2.0, 2.0),
    }
    kind = torch.int32 if law == "bits" else getattr(torch, dtype.name)
    there = torch.zeros(size, dtype=kind)

    # A number is returned, because block_until_ready would leave torch's tensors alone anyway.
    def anew():
        return fillers[law](torch.empty(size, dtype=kind)).numel()

    return {"torch": anew, "torch, in place": lambda: fillers[law](there).numel()}


def numpy_contestants(law: str, size: int, dtype) -> dict:
    """The fastest generator of numpy, on its one thread."""
    generator = np.random.Generator(np.random.SFC64(0))
    if dtype != np.float32:
        return {}
    functions = {
        "bits": lambda: generator.integers(2**32, size=size, dtype=np.uint32),
        "uniform": lambda: generator.random(size, np.float32),
        "normal": lambda: generator.standard_normal(size, np.float32),
    }
    return {"numpy": functions[law]} if law in functions else {}


def measure(law: str, size: int, dtype, repeats: int) -> dict:
    contestants, facts = jax_contestants(law, size, dtype)
    contestants |= torch_contestants(law, size, dtype) | numpy_contestants(law, size, dtype)
    for function in contestants.values():
        harness.seconds_of(function)  # warm
    wall = harness.alternate(contestants, repeats)
    cores = harness.alternate(contestants, max(2, repeats // 2), clock=time.process_time)
    ours, ours_cores = wall["jit_init"].median, cores["jit_init"].median
    return {
        name: {
            "rate": size / wall[name].median,
            "jit_init over it": wall[name].median / ours,
            "jit_init over it, core seconds": cores[name].median / ours_cores,
            "nanoseconds of a core": cores[name].median / size * 1e9,
            "wall": wall[name],
            "cores": cores[name],
            **facts.get(name, {}),
        }
        for name in contestants
    }


def rows(results: dict) -> list[list[str]]:
    return [
        [
            name,
            f"{found['rate'] / 1e6:,.0f}",
            f"{found['jit_init over it']:.2f} x",
            f"{found['nanoseconds of a core']:.2f}",
            f"{found['jit_init over it, core seconds']:.2f} x",
            f"{found['temporaries'] >> 20:,}" if "temporaries" in found else "",
            f"{found['compile']:.2f}" if "compile" in found else "",
        ]
        for name, found in ((n, results[n]) for n in ("jit_init", *RIVALS) if n in results)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--small", action="store_true", help="one small size, two repeats")
    parser.add_argument("--sizes", type=int, nargs="+", default=[2**24, 2**26])
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--laws", nargs="+", default=list(LAWS), choices=list(LAWS))
    parser.add_argument("--repeats", type=int, default=10, help="calls of each contestant")
    parser.add_argument("--json", help="where to keep the numbers")
    arguments = parser.parse_args()
    sizes = [2**18] if arguments.small else arguments.sizes
    repeats = 2 if arguments.small else arguments.repeats

    print(f"compiler options: {fast_compiler_options()}")
    print("times: seconds of the contestant over those of jit_init; of the wall, then of all cores")
    results = {}
    for name in arguments.dtypes:
        dtype = jnp.dtype(name)
        for size in sizes:
            for law in arguments.laws:
                found = measure(law, size, dtype, repeats)
                results[f"{law}, {name}, {size}"] = found
                harness.show(
                    f"{law}, {name}, {size:,} numbers, medians of {repeats}",
                    ["", "million/s", "times", "core ns", "times", "temp MiB", "compile s"],
                    rows(found),
                )
    harness.write(arguments.json, QUESTION, results)


if __name__ == "__main__":
    main()
