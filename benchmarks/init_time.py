"""How long does a model's first initialization take, and how much memory, against `jax.jit`?

Every first call runs in a process of its own, with no compilation cache, the contestants in
alternating order. `jit_init` must return the bits of `jax.jit`, or the benchmark stops. A
contestant that is slow runs less often, one that takes longer than the limit is cut off; both are
said in the table. Later calls reuse what the first compiled.

    python benchmarks/init_time.py --json benchmarks/results/init_time-cpu.json
    python benchmarks/init_time.py --models "GPT-2 XL" --contestants jit_init jax.jit --repeats 1

With `--small` all tiny models run in one process, which shows that everything works and no more.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from typing import Any

import harness

QUESTION = "How long does a model's first initialization take, and how much memory?"
LINEN = ("jit_init", "plan.init", "jax.jit", "eager", "lazy_init")
TORCH = ("torch", "torch, meta")
CONTESTANTS: dict[str, tuple[str, ...]] = {
    "GPT-2 124M": LINEN + TORCH,
    "GPT-2 XL": LINEN + TORCH,
    "Linen MLP, 400 layers": LINEN + TORCH,
    "NNX MLP, 100 layers": ("nnx_init", *LINEN[:4], "nnx.jit"),
    "Equinox MLP, 100 layers": (*LINEN[:4], "eqx.filter_jit"),
    "Haiku MLP, 100 layers": LINEN[:4],
    "mixture, 10,010 leaves": LINEN,
    "ResNet-50": LINEN,
    "GPT-2 124M on 8 devices": LINEN[:4],
}
# These run once, whatever --repeats says: each takes half a minute or more.
ONCE = {
    ("GPT-2 XL", "jax.jit"),
    ("GPT-2 XL", "eager"),
    ("GPT-2 XL", "lazy_init"),
    ("GPT-2 XL", "torch"),
    ("GPT-2 XL", "torch, meta"),
    ("Linen MLP, 400 layers", "jax.jit"),
    ("mixture, 10,010 leaves", "jax.jit"),
    ("mixture, 10,010 leaves", "eager"),
    ("mixture, 10,010 leaves", "lazy_init"),
    ("ResNet-50", "jax.jit"),
}
# With --small, eager contestants run on these models only; they are the slowest of all there.
IN_FULL = ("GPT-2 124M", "NNX MLP, 100 layers")
DEVICES = "--xla_force_host_platform_device_count=8"
# With --small times mean nothing, and quick compiling takes half of them.
QUICK = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
MISSING = 3  # exit status of a child that lacks a library


def child(pairs: list[list[str]], small: bool, later: int) -> None:
    """Measures in this process; one line of JSON for each pair of model and contestant."""
    import first_call
    import jax

    from jaxinit.engine._compile import forget_executables

    for name, contestant in pairs:
        jax.clear_caches()
        forget_executables()
        try:
            facts = first_call.measure(name, contestant, small, later)
        except ModuleNotFoundError as error:
            if len(pairs) > 1:
                continue
            print(error, file=sys.stderr)
            sys.exit(MISSING)
        print(json.dumps({"model": name, "contestant": contestant, **facts}), flush=True)


def start(pairs: list[tuple[str, str]], small: bool, later: int, limit: float) -> list[dict]:
    """Starts this script as a child; an empty list says that a library is missing."""
    settings = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("JAX_COMPILATION", "JAX_PERSISTENT", "XLA_FLAGS"))
    }
    if small or any("devices" in name for name, _ in pairs):
        settings["XLA_FLAGS"] = f"{DEVICES} {QUICK}" if small else DEVICES
    command = [sys.executable, __file__, "--child", json.dumps(pairs), "--later", str(later)]
    try:
        done = subprocess.run(
            [*command, *["--small"] * small],
            env=settings,
            stdout=subprocess.PIPE,
            timeout=limit,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return [{"model": name, "contestant": who, "limit": limit} for name, who in pairs]
    if done.returncode == MISSING:
        return []
    if done.returncode:
        raise SystemExit(f"{pairs}: exit status {done.returncode}")
    return [json.loads(line) for line in done.stdout.splitlines()]


def measure(name: str, contestants: list[str], repeats: int, limit: float) -> list[dict]:
    """All first calls of one model, each round in the opposite order of the one before."""
    found: list[dict] = []
    for repeat in range(repeats):
        for contestant in contestants if repeat % 2 == 0 else reversed(contestants):
            if repeat and (name, contestant) in ONCE:
                continue
            later = 2 if (name, contestant) in ONCE or name == "GPT-2 XL" else 5
            new = start([(name, contestant)], False, later, limit)
            for facts in new:
                took = f"{facts['first']:.2f} s" if "first" in facts else f"over {limit:.0f} s"
                print(f"{name}: {contestant}: {took}", file=sys.stderr, flush=True)
            found += new
    return found


def summarize(runs: list[dict]) -> dict[str, dict[str, Any]]:
    """Medians by contestant, and their ratios to `jit_init`."""
    summary = {}
    for contestant in dict.fromkeys(run["contestant"] for run in runs):
        mine = [run for run in runs if run["contestant"] == contestant and "first" in run]
        if not mine:
            limit = max(run["limit"] for run in runs if run["contestant"] == contestant)
            summary[contestant] = {"over": limit}
            continue
        middle = {
            fact: statistics.median(run[fact] for run in mine)
            for fact in ("cores", "later", "before", "peak")
        }
        nbytes = mine[0]["nbytes"]
        summary[contestant] = {
            "first": harness.Spread.of([run["first"] for run in mine]),
            "phases": {
                phase: statistics.median(run["phases"][phase] for run in mine)
                for phase in mine[0]["phases"]
            },
            **middle,
            "leaves": mine[0]["leaves"],
            "nbytes": nbytes,
            "peak over parameters": (middle["peak"] - middle["before"]) / nbytes,
        }
    ours = summary.get("jit_init", {})
    for facts in summary.values():
        if "first" in ours and "first" in facts:
            facts["over jit_init"] = facts["first"].median / ours["first"].median
            facts["over jit_init, cores"] = facts["cores"] / ours["cores"]
            facts["over jit_init, later"] = facts["later"] / ours["later"]
    return summary


def same_bits(name: str, runs: list[dict]) -> bool:
    """Whether `jit_init` and `jax.jit` were compared; they must agree."""
    digests = {
        who: {r["digest"] for r in runs if r["contestant"] == who and "digest" in r}
        for who in ("jit_init", "jax.jit")
    }
    if not all(digests.values()):
        return False
    if len(set.union(*digests.values())) != 1:
        raise SystemExit(f"{name}: jit_init and jax.jit differ: {digests}")
    return True


def show(name: str, summary: dict[str, dict[str, Any]], compared: bool) -> None:
    def row(contestant: str, facts: dict[str, Any]) -> list[str]:
        if "over" in facts:
            return [contestant, f"over {facts['over']:.0f}", *[""] * 6]
        return [
            contestant,
            f"{facts['first'].median:.2f}",
            str(facts["first"].repeats),
            f"{facts['over jit_init']:.2f}" if "over jit_init" in facts else "",
            f"{facts['cores']:.2f}",
            f"{facts['later']:.3f}",
            f"{facts['peak'] / 2**30:.2f}",
            f"{facts['peak over parameters']:.2f}",
        ]

    facts = next((f for f in summary.values() if "leaves" in f), {"leaves": 0, "nbytes": 0})
    proof = "same bits as jax.jit" if compared else "bits NOT compared with jax.jit"
    harness.show(
        f"{name}: {facts['leaves']:,} leaves, {facts['nbytes'] / 2**20:,.1f} MiB; {proof}",
        ["", "first s", "runs", "times", "core s", "later s", "peak GiB", "growth"],
        [row(contestant, facts) for contestant, facts in summary.items()],
    )
    for contestant, facts in summary.items():
        if len(facts.get("phases", ())) > 1:
            print(
                f"  {contestant}: " + ", ".join(f"{p} {s:.2f}" for p, s in facts["phases"].items())
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--small", action="store_true", help="tiny models, all in one process")
    parser.add_argument("--models", nargs="+", default=list(CONTESTANTS), choices=list(CONTESTANTS))
    parser.add_argument("--contestants", nargs="+", help="of those in the table; all by default")
    parser.add_argument("--repeats", type=int, default=3, help="processes for each contestant")
    parser.add_argument("--limit", type=float, default=180.0, help="seconds for one process")
    parser.add_argument("--json", help="where to keep the numbers")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--later", type=int, default=5, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(json.loads(arguments.child), arguments.small, arguments.later)
        return
    print("times: first call over that of jit_init; growth: peak less memory before, over size")
    chosen = {
        name: [who for who in CONTESTANTS[name] if who in (arguments.contestants or [who])]
        for name in arguments.models
    }
    results, every_run = {}, []
    if arguments.small:
        pairs = [
            (name, who)
            for name in chosen
            for who in chosen[name]
            if who not in ("eager", "lazy_init") or name in IN_FULL
        ]
        every_run = start(pairs, True, 1, 600.0)
    for name, contestants in chosen.items():
        if arguments.small:
            runs = [run for run in every_run if run["model"] == name]
        else:
            runs = measure(name, contestants, arguments.repeats, arguments.limit)
        compared = same_bits(name, runs)
        results[name] = {"compared": compared, "contestants": summarize(runs), "runs": runs}
        show(name, results[name]["contestants"], compared)
        harness.write(arguments.json, QUESTION, results)


if __name__ == "__main__":
    main()
