"""Are the verdicts on published models right, and does the advice train as well as their own init?

A zoo of models as people publish them, at small sizes, each with the initialization that its
authors chose. For each, the errors and warnings of `jaxinit.audit` are held against ten draws that
are measured without the library's prediction: what the draws do not show is a false alarm. Then one
thing is broken in every model, and it is counted how often a finding names it. Twelve models are
trained briefly from their own initialization and from the advice, with the same data and steps; for
a squared error the head of the advice is zero, and the rate of a weight that the advice divides is
divided too, as the reasons say.
"""

import argparse
import dataclasses
import itertools
import math
import re
import statistics
import time
from typing import Any

import harness
import jax
import published
from published import broken, training
from published.evidence import Meter, confirmed
from rich.console import Console
from rich.progress import track

import jaxinit
from jaxinit.initializers import zeros

QUESTION = "Are the findings on published models true, and does the advice train as well?"
# Below this a loss has arrived: which of two is smaller says nothing.
FLOOR = 0.01
SMALL = (
    "GPT-2",
    "MLP of Equinox",
    "autoencoder of NNX",
    "DeepSets",
    "LSTM of Haiku",
    "Mamba",
    "NTK parametrisation",
    "Fixup ResNet",
)


@dataclasses.dataclass(frozen=True)
class Subject:
    """A model with one draw of its own initialization, read."""

    entry: published.Entry
    model: published.Model
    init: Any
    arrays: Any
    reading: Any
    seconds: float
    meter: Meter


def subject(entry: published.Entry) -> Subject:
    model = entry.make()
    # The lowest level of XLA compiles twice as fast, and nobody asks for speed or bits here.
    init = jax.jit(model.init, compiler_options={"xla_backend_optimization_level": 0})
    arrays = init(jax.random.key(0))
    start = time.perf_counter()
    shapes = jax.eval_shape(model.data, jax.random.key(1))
    reading = jaxinit.read(model.apply, arrays, *shapes)
    seconds = time.perf_counter() - start
    return Subject(entry, model, init, arrays, reading, seconds, Meter(model, reading))


def judge(one: Subject, draws: int) -> dict[str, Any]:
    """The findings on a model's own initialization, each held against its draws."""
    start = time.perf_counter()
    findings = jaxinit.audit(one.reading, one.arrays, goal=one.entry.goal).findings
    seconds = time.perf_counter() - start
    loud = [f for f in findings if f.severity != "info"]
    facts: Any = None
    if loud:
        trees = [one.init(jax.random.key(draw)) for draw in range(draws)]
        facts = one.meter(trees)
    rows = []
    for f in loud:
        said, why = confirmed(f, one.entry.name, one.reading, facts)
        verdict = {True: "true", False: "false", None: "not judged"}[said]
        rows.append({"verdict": verdict, "measured": why} | dataclasses.asdict(f))
    infos = [f.code for f in findings if f.severity == "info"]
    return {"findings": rows, "infos": infos, "read": one.seconds, "audit": seconds}


def breaks(one: Subject, kinds: tuple[str, ...], first: int, most: int) -> list[dict[str, Any]]:
    """What is found of one thing broken: up to ``most`` kinds, from the ``first`` on."""
    goal = one.entry.goal
    before = {
        (f.code, f.severity) for f in jaxinit.audit(one.reading, one.arrays, goal=goal).findings
    }
    rows: list[dict[str, Any]] = []
    for kind in [*kinds[first:], *kinds[:first]]:
        # Few models have a depth factor: it is always tried.
        is_wanted = len(rows) < most or kind == "depth factor"
        made = broken.apply(one.arrays, one.reading, kind) if is_wanted else None
        if made is None:
            continue
        tree, paths = made
        findings = jaxinit.audit(one.reading, tree, goal=goal).findings
        new = [f for f in findings if f.severity != "info" and (f.code, f.severity) not in before]
        found = [f.code for f in new if broken.fits(kind, f.code)]
        # Zeros, twins and NaN are broken for certain; sizes may not matter behind a normalisation.
        is_certain = kind in broken.STRUCTURAL
        effect = math.inf if is_certain else _effect(one.meter([one.arrays, tree]), set(paths))
        rows.append(
            {"kind": kind, "found": found, "other": [f.code for f in new], "effect": effect}
        )
    return rows


def _effect(facts: Any, touched: set[str]) -> float:
    """The largest factor between sound and broken: outputs, and gradients of what is untouched."""
    pairs = [*facts.outputs.T]
    pairs += [g for path, g in facts.gradients.items() if path not in touched]
    largest = 1.0
    for sound, other in pairs:
        if not math.isfinite(other):
            return math.inf
        if sound > 0:
            largest = max(largest, sound / other if other else math.inf, other / sound)
    return float(largest)


def race(one: Subject, seeds: int, steps: int) -> dict[str, Any]:
    """Final losses of the own initialization and of the advice, at the better rate of each."""
    advice = jaxinit.advise(one.reading, one.entry.goal)
    task = training.TASKS[one.entry.name]
    if task in training.SQUARED:
        lines = [
            dataclasses.replace(p, initializer=zeros) if p.role == "head" else p for p in advice
        ]
        advice = dataclasses.replace(advice, prescriptions=tuple(lines))
    plan = jaxinit.plan(one.arrays, advice.rules())
    keys = [jax.random.key(seed) for seed in range(seeds)]
    # What is no parameter, and what the advice does not judge, is the model's own draw.
    starts = [*map(one.init, keys), *(plan.init(key, donate=one.init(key)) for key in keys)]
    slower = [{}] * seeds + [slower_of(advice)] * seeds
    losses = training.train(one.model, one.reading, task, starts, steps, slower)
    (own, spread), (ours, other) = (best(half) for half in (losses[:seeds], losses[seeds:]))
    ratio = (ours + FLOOR) / (own + FLOOR)
    error = ratio * math.hypot(spread / (own + FLOOR), other / (ours + FLOOR))
    return {"own": own, "advice": ours, "ratio": ratio, "error": error, "losses": losses}


def slower_of(advice: jaxinit.Advice) -> dict[str, float]:
    """What the advice wants rates of Adam multiplied with, by path."""
    found = {p.path: re.search(r"divided by ([\d.e+]+),.* rate", p.reason) for p in advice}
    return {path: 1 / float(said[1]) for path, said in found.items() if said}


def best(losses: list[list[float]]) -> tuple[float, float]:
    """Mean loss over the draws at the better rate, and its standard error."""
    finals = min(zip(*losses, strict=True), key=statistics.fmean)
    spread = statistics.stdev(finals) if len(finals) > 1 else 0.0
    return statistics.fmean(finals), spread / math.sqrt(len(finals))


def attempt(function: Any, *arguments: Any) -> Any:
    """The result, or the error as text: one model that fails does not end the benchmark."""
    try:
        return function(*arguments)
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:300]}"


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument(
        "--small", action="store_true", help=f"{len(SMALL)} models, two of them trained"
    )
    parser.add_argument("--only", nargs="*", help="names of models, or parts of them")
    parser.add_argument("--breaks", type=int, default=1, help="things to break in each model")
    parser.add_argument("--draws", type=int, default=10, help="draws that hold against findings")
    parser.add_argument("--steps", type=int, default=60, help="steps of training")
    parser.add_argument("--seeds", type=int, default=12, help="draws that are trained")
    parser.add_argument("--no-training", action="store_true", help="verdicts alone")
    parser.add_argument("--json", help="where to keep the numbers")
    arguments = parser.parse_args()
    zoo = [e for e in published.ZOO if not arguments.small or e.name in SMALL]
    if arguments.only:
        zoo = [e for e in zoo if any(part in e.name for part in arguments.only)]
    raced = [e.name for e in zoo if e.name in training.TASKS and not arguments.no_training]
    raced, seeds = (raced[:2], 1) if arguments.small else (raced, arguments.seeds)
    results: dict[str, Any] = {}
    kinds = tuple(broken.BREAKS)
    for number, entry in enumerate(track(zoo, "models", transient=True)):
        row: dict[str, Any] = {"kind": entry.kind, "library": entry.library}
        results[entry.name] = row
        try:
            one = subject(entry)
        except ImportError as error:
            row["skipped"] = f"{error.name or error} is not installed"
            continue
        except Exception as error:
            row["failed"] = f"{type(error).__name__}: {str(error)[:300]}"
            continue
        row["verdicts"] = attempt(judge, one, arguments.draws)
        row["advice"] = attempt(_plans, one)
        row["broken"] = attempt(breaks, one, kinds, number % len(kinds), arguments.breaks)
        if entry.name in raced:
            row["training"] = attempt(race, one, seeds, arguments.steps)
        keep(arguments.json, results)
    report(results)
    keep(arguments.json, results)


def keep(path: str | None, results: dict[str, Any]) -> None:
    """Keeps what there is so far: an interrupted run loses one model."""
    harness.write(path, QUESTION, {"summary": summary(results), "models": results}, quiet=True)


def _plans(one: Subject) -> str:
    rules = jaxinit.advise(one.reading, one.entry.goal).rules()
    return f"{len(jaxinit.plan(one.arrays, rules))} leaves"


def findings_in(results: dict[str, Any], verdict: str, severity: str) -> int:
    found = [r["verdicts"]["findings"] for r in results.values() if is_judged(r)]
    both = [(f["verdict"], f["severity"]) for f in itertools.chain(*found)]
    return both.count((verdict, severity))


def is_judged(row: dict[str, Any]) -> bool:
    return isinstance(row.get("verdicts"), dict)


def summary(results: dict[str, Any]) -> dict[str, Any]:
    """The numbers that the README quotes."""
    judged = [row for row in results.values() if is_judged(row)]
    tried = [b for row in judged if isinstance(row["broken"], list) for b in row["broken"]]
    felt = [b for b in tried if not 1 / 4 <= b["effect"] <= 4]
    by_kind = {
        kind: [
            sum(bool(b["found"]) for b in felt if b["kind"] == kind),
            sum(b["kind"] == kind for b in felt),
        ]
        for kind in broken.BREAKS
    }
    raced = [r["training"] for r in judged if isinstance(r.get("training"), dict)]
    ratios = [each["ratio"] for each in raced]
    return {
        "models": len(judged),
        "skipped": sum("skipped" in row for row in results.values()),
        "raised": sum(
            "failed" in row
            or any(isinstance(row.get(k), str) for k in ("verdicts", "broken", "training"))
            for row in results.values()
        ),
        "models with a false alarm": sum(
            any(f["verdict"] == "false" for f in row["verdicts"]["findings"]) for row in judged
        ),
        "false errors": findings_in(results, "false", "error"),
        "false warnings": findings_in(results, "false", "warning"),
        "true findings": findings_in(results, "true", "error")
        + findings_in(results, "true", "warning"),
        "not judged": findings_in(results, "not judged", "warning"),
        "broken": len(tried),
        "broken, and it shows": len(felt),
        "of these found": sum(bool(b["found"]) for b in felt),
        "found by kind": by_kind,
        "trained": len(ratios),
        "advice at least as good": sum(ratio <= 1.05 for ratio in ratios),
        "advice worse by two standard errors": sum(r["ratio"] - 2 * r["error"] > 1 for r in raced),
        "worst ratio": max(ratios, default=None),
    }


def report(results: dict[str, Any]) -> None:
    rows = []
    for name, row in results.items():
        if not is_judged(row):
            said = row.get("skipped") or row.get("failed") or row.get("verdicts")
            rows.append([name, row["library"], str(said)[:60], "", "", "", ""])
            continue
        texts = [
            f"{'' if f['verdict'] == 'false' else f['verdict'] + ' '}{f['severity']} {f['code']}"
            for f in row["verdicts"]["findings"]
        ]
        tried = row["broken"] if isinstance(row["broken"], list) else []
        shown = [
            f"{b['kind']}: {', '.join(b['found']) or 'not found'} ({b['effect']:.3g}x)"
            for b in tried
        ]
        raced = row.get("training")
        ratio = (
            f"{raced['ratio']:.2f} ± {raced['error']:.2f}"
            if isinstance(raced, dict)
            else str(raced or "")[:30]
        )
        seconds = f"{row['verdicts']['read'] + row['verdicts']['audit']:.1f}"
        rows.append(
            [name, row["library"], "\n".join(texts) or "-", "\n".join(shown), ratio, seconds]
        )
    columns = ["", "library", "alarms (false unless said)", "broken", "loss ratio", "seconds"]
    harness.show("findings on published models", columns, [row[:6] for row in rows])
    for key, value in summary(results).items():
        Console().print(f"{key}: {value}")


if __name__ == "__main__":
    main()
