"""One first call of one contestant: what `init_time.py` runs in a process of its own.

The clock starts after imports, with the backend up and the model and its inputs there; it ends when
every array is ready. Memory is that of the whole process, so the parameters are in its peak.
"""

import hashlib
import itertools
import pathlib
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import models
import numpy as np

import jaxinit


class Begun(NamedTuple):
    """A first call that has ended.

    Attributes:
        result: what was made.
        again: makes it once more, as a later call would.
        phases: seconds by phase, as far as they can be told apart; asked for after the clock.
    """

    result: Any
    again: Callable[[], Any]
    phases: Callable[[], dict[str, float]]


def by_jit_init(model: models.Model, key: Any) -> Begun:
    fast = jaxinit.jit_init(model.init, out_shardings=model.out_shardings)
    result = jax.block_until_ready(fast(key, *model.inputs))

    def phases() -> dict[str, float]:
        # Kinds compile while others run already; what is left of the wall is reported as run.
        found = dict(fast.explain(key, *model.inputs).seconds)
        return {name: found.get(name, 0.0) for name in ("trace", "slice", "compile")}

    return Begun(result, lambda: fast(key, *model.inputs), phases)


def by_plan(model: models.Model, key: Any) -> Begun:
    start = time.perf_counter()
    tree = jax.eval_shape(model.init, key, *model.inputs)
    traced = time.perf_counter()
    plan = jaxinit.plan(tree, model.rules, out_shardings=model.out_shardings)
    planned = time.perf_counter()
    result = jax.block_until_ready(plan.init(key))
    taken = {"trace": traced - start, "plan": planned - traced}
    return Begun(result, lambda: plan.init(key), lambda: taken)


def by_jax_jit(model: models.Model, key: Any) -> Begun:
    placement = {} if model.out_shardings is None else {"out_shardings": model.out_shardings}
    marks = [time.perf_counter()]
    traced = jax.jit(model.init, **placement).trace(key, *model.inputs)
    marks.append(time.perf_counter())
    lowered = traced.lower()
    marks.append(time.perf_counter())
    program = lowered.compile()
    marks.append(time.perf_counter())
    result = jax.block_until_ready(program(key, *model.inputs))
    seconds = [end - start for start, end in itertools.pairwise(marks)]
    taken: dict[str, float] = dict(zip(("trace", "lower", "compile"), seconds, strict=True))
    return Begun(result, lambda: program(key, *model.inputs), lambda: taken)


def by_function(function: Callable[[], Any]) -> Begun:
    return Begun(jax.block_until_ready(function()), function, dict)


def eagerly(model: models.Model, key: Any) -> Begun:
    def draw() -> Any:
        drawn = model.init(key, *model.inputs)
        return drawn if model.out_shardings is None else jax.device_put(drawn, model.out_shardings)

    return by_function(draw)


OURS: dict[str, Callable[[models.Model, Any], Begun]] = {
    "jit_init": by_jit_init,
    "plan.init": by_plan,
    "jax.jit": by_jax_jit,
    "eager": eagerly,
}


def measure(name: str, contestant: str, small: bool, later: int) -> dict[str, Any]:
    """Seconds, bytes and a digest of one contestant, of which this is the first call."""
    model = models.MODELS[name](small)
    jax.clear_caches()  # whoever built the model may have traced it
    key = jax.random.key(0)
    jax.block_until_ready((model.inputs, key, jax.device_put(0.0)))
    before = _memory("VmRSS")
    cpu, start = time.process_time(), time.perf_counter()
    if contestant in OURS:
        begun = OURS[contestant](model, key)
    else:
        rival = model.rivals[contestant]
        begun = by_function(lambda: rival(key))
    first, cpu = time.perf_counter() - start, time.process_time() - cpu
    peak = _memory("VmHWM")
    phases = begun.phases()
    phases["run"] = first - sum(phases.values())
    leaves = jax.tree_util.tree_flatten_with_path(begun.result)[0]
    facts = {
        "first": first,
        "cores": cpu,
        "phases": phases,
        "before": before,
        "peak": peak,
        "leaves": len(leaves),
        "nbytes": sum(leaf.nbytes for _, leaf in leaves),
        "digest": _digest(leaves) if isinstance(leaves[0][1], jax.Array) else None,
    }
    again = begun.again
    del begun, leaves
    return {**facts, "later": _later(again, later)}


def _later(again: Callable[[], Any], repeats: int) -> float | None:
    """Median seconds of later calls; none of them holds the arrays of the one before."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(again())
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds) if seconds else None


def _digest(leaves: list[tuple[Any, Any]]) -> str:
    """A checksum of every path, dtype, shape and byte."""
    digest = hashlib.sha256()
    for path, leaf in leaves:
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        array = np.asarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def _memory(field: str) -> int:
    """Bytes of this process as Linux counts them: VmRSS now, VmHWM at most so far; 0 elsewhere.

    Not ``getrusage``: its peak includes that of the process which started this one.
    """
    try:
        lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith(field)), 0)
