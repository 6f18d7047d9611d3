"""Which way of drawing orthogonal matrices is the fastest that is right?

`jax.nn.initializers.orthogonal` factorizes a Gaussian matrix by QR. It stands here called leaf by
leaf and vmapped over equal leaves; `plan.init` draws by each method of the library. Other ways to
the same law (Haar) with other numbers: reflections as one compact product; QR by two Cholesky
factorizations; the polar factor by Newton-Schulz iterations. Each must have orthonormal columns (or
rows) within 8 eps sqrt(n), or the table says FAILS, and a mean trace near zero, which a missing
sign fix would show, or the benchmark stops.

Why `plan.init` draws leaf by leaf: under vmap reflections had the bits of single draws on jax 0.10,
but not for every shape on 0.12, and LAPACK is called once for each matrix either way. 512 leaves of
64 x 64 took 81 ms one by one and 42 ms in vmapped groups of eight, whose program took 0.9 s longer
to compile, so it would pay beyond about 10,000 equal leaves. From 256 x 256 on, vmap is slower.

Why the library has no compact product: its bits depend on the mesh that it is drawn on (half to
nine tenths of the entries of 64 x 64 and larger, 4 x 2 devices, jax 0.10 and 0.12), and LAPACK is
about as fast when the vectors lie as it wants them.

    python benchmarks/orthogonal.py --json benchmarks/results/orthogonal-cpu.json

LAPACK's threads spin while they wait: on a machine that others use too, set OPENBLAS_NUM_THREADS=1.
"""

import argparse
import math
import time
from collections.abc import Callable
from typing import Any

import harness
import jax
import jax.numpy as jnp
import numpy as np

import jaxinit
from jaxinit import initializers as init

QUESTION = "Which way of drawing orthogonal matrices is the fastest that is right?"
STACKS = (
    (512, 64, 64),
    (64, 256, 256),
    (8, 1024, 1024),
    (2, 2048, 2048),
    (16, 2048, 128),
    (16, 128, 2048),
)
SMALL = ((8, 16, 16), (2, 48, 32), (2, 32, 48))
SCHULZ_STEPS = 30
MAX_SCHULZ = 256  # columns; ten times as slow as QR there, and worse beyond
TRACES = 512


def by_qr(key: Any, rows: int, columns: int) -> jax.Array:
    q, r = jnp.linalg.qr(jax.random.normal(key, (rows, columns)))
    return q * jnp.sign(jnp.diagonal(r))


def by_reflections(key: Any, rows: int, columns: int) -> jax.Array:
    return init.orthogonal(method="reflections")(key, (rows, columns))


def by_compact_product(key: Any, rows: int, columns: int) -> jax.Array:
    """The same kind of product as I - V T V^T, T^-1 the upper triangle of V^T V, halved inside."""
    lower = jnp.tril(jax.random.normal(key, (rows, columns)))
    first = jnp.diagonal(lower)
    length = jnp.sqrt(jnp.sum(lower * lower, axis=0))
    sign = jnp.where(first < 0, -1.0, 1.0)
    head = first + sign * length
    vectors = jnp.where(jnp.eye(rows, columns, dtype=bool), 1.0, lower / head)
    inverse = jnp.triu(vectors.T @ vectors, 1) + jnp.diag(length / jnp.abs(head))
    inner = jax.lax.linalg.triangular_solve(inverse, vectors[:columns].T, left_side=True)
    return (jnp.eye(rows, columns) - vectors @ inner) * -sign


def by_cholesky(key: Any, rows: int, columns: int) -> jax.Array:
    def orthonormal(matrix: jax.Array) -> jax.Array:
        factor = jax.lax.linalg.cholesky(matrix.T @ matrix, symmetrize_input=False)
        return jax.lax.linalg.triangular_solve(factor, matrix, lower=True, transpose_a=True)

    return orthonormal(orthonormal(jax.random.normal(key, (rows, columns))))


def by_newton_schulz(key: Any, rows: int, columns: int) -> jax.Array:
    matrix = jax.random.normal(key, (rows, columns)) / (math.sqrt(rows) + math.sqrt(columns))

    def step(_: Any, x: jax.Array) -> jax.Array:
        return 1.5 * x - 0.5 * x @ (x.T @ x)

    return jax.lax.fori_loop(0, SCHULZ_STEPS, step, matrix)


METHODS: dict[str, Callable[[Any, int, int], jax.Array]] = {
    "QR": by_qr,
    "reflections": by_reflections,
    "compact product": by_compact_product,
    "Cholesky QR": by_cholesky,
    "Newton-Schulz": by_newton_schulz,
}

VMAPPED = ("reflections", "compact product")


def contestants(count: int, rows: int, columns: int, keys: Any) -> dict[str, Callable[[], Any]]:
    """Ways to draw a stack of equal matrices; a wide one is the transpose of a tall one."""
    jax_law = jax.nn.initializers.orthogonal()
    each = list(keys)
    shape = jax.ShapeDtypeStruct((rows, columns), jnp.float32)
    plans = {
        method: jaxinit.plan([shape] * count, [("**", init.orthogonal(method=method))])
        for method in ("qr", "reflections")
    }

    def one_by_one(function: Any) -> Callable[[], Any]:
        program = jax.jit(function)
        return lambda: [program(key) for key in each]

    def stacked(function: Any) -> Callable[[], Any]:
        program = jax.jit(jax.vmap(function))
        return lambda: program(keys)

    def whole(key: Any) -> jax.Array:
        return jax_law(key, (rows, columns))

    def of(method: Any) -> Any:
        if rows < columns:
            return lambda key: method(key, columns, rows).T
        return lambda key: method(key, rows, columns)

    methods = dict(METHODS)
    if min(rows, columns) > MAX_SCHULZ:
        del methods["Newton-Schulz"]
    return {
        "Gaussians alone": one_by_one(lambda key: jax.random.normal(key, (rows, columns))),
        "jax.nn each": one_by_one(whole),
        "jax.nn, vmap": stacked(whole),
        "plan.init, qr": lambda: plans["qr"].init(jax.random.key(0)),
        "plan.init, reflections": lambda: plans["reflections"].init(jax.random.key(0)),
        **{name: one_by_one(of(method)) for name, method in methods.items()},
        **{f"{name}, vmap": stacked(of(METHODS[name])) for name in VMAPPED},
    }


def error_of(drawn: Any) -> float:
    """Largest entry of Q^T Q - I over the first few matrices, in double precision."""
    worst = 0.0
    for matrix in list(drawn)[:4]:
        q = np.asarray(matrix, np.float64)
        q = q.T if q.shape[0] < q.shape[1] else q
        worst = max(worst, float(np.abs(q.T @ q - np.eye(q.shape[1])).max()))
    return worst if np.isfinite(worst) else math.inf


def assert_haar() -> None:
    """The trace of a Haar matrix has mean 0 and variance 1; the mean is -1.6 without sign fix."""
    keys = jax.random.split(jax.random.key(1), TRACES)
    for name, method in METHODS.items():
        drawn = jax.jit(jax.vmap(lambda key, method=method: jnp.trace(method(key, 8, 8))))(keys)
        mean = float(np.nanmean(np.asarray(drawn)))
        # 5 sigma of the mean of so many traces
        if not abs(mean) < 5 / math.sqrt(TRACES):
            raise SystemExit(f"{name}: the mean trace is {mean:.2f}, so it is not Haar")


def measure(count: int, rows: int, columns: int, repeats: int) -> dict[str, dict[str, Any]]:
    keys = jax.random.split(jax.random.key(0), count)
    functions = contestants(count, rows, columns, keys)
    errors = {}
    for name, function in functions.items():
        drawn = jax.block_until_ready(function())  # compiles
        errors[name] = math.nan if "alone" in name else error_of(drawn)
    wall = harness.alternate(functions, repeats)
    cores = harness.alternate(functions, max(1, repeats // 2), clock=time.process_time)
    usual = "jax.nn each"
    return {
        name: {
            "wall": wall[name],
            "cores": cores[name],
            "jax over it": wall[usual].median / wall[name].median,
            "jax over it, cores": cores[usual].median / cores[name].median,
            "error": errors[name],
        }
        for name in functions
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--small", action="store_true", help="two tiny stacks, one repeat")
    parser.add_argument("--repeats", type=int, default=5, help="calls of each contestant")
    parser.add_argument("--json", help="where to keep the numbers")
    arguments = parser.parse_args()

    assert_haar()
    print("times: jax.nn leaf by leaf over it, seconds of the wall and of all cores")
    results = {}
    for count, rows, columns in SMALL if arguments.small else STACKS:
        found = measure(count, rows, columns, 1 if arguments.small else arguments.repeats)
        bound = 8 * float(np.finfo(np.float32).eps) * math.sqrt(max(rows, columns))
        title = f"{count} of {rows} x {columns}"
        results[title] = {"bound": bound, "contestants": found}
        harness.show(
            f"{title}; error at most {bound:.1e}",
            ["", "seconds", "times", "core s", "times", "error"],
            [
                [
                    name,
                    f"{facts['wall'].median:.4f}",
                    f"{facts['jax over it']:.2f}",
                    f"{facts['cores'].median:.4f}",
                    f"{facts['jax over it, cores']:.2f}",
                    ""
                    if math.isnan(facts["error"])
                    else f"{facts['error']:.1e}" + " FAILS" * (facts["error"] > bound),
                ]
                for name, facts in found.items()
            ],
        )
        harness.write(arguments.json, QUESTION, results)


if __name__ == "__main__":
    main()
