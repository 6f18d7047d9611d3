"""The README's table of first calls, from the numbers that `init_time.py` kept.

python benchmarks/table.py benchmarks/results/init_time-cpu-python3.*.json
"""

import argparse
import json
import pathlib
from typing import Any

# Below this, what compiling takes outweighs the parameters.
_LARGE = 2**28
COLUMNS = ("jit_init", "plan.init", "jax.jit", "eager", "torch")


def cell(facts: dict[str, Any] | None) -> str:
    """Seconds of a first call, as far as it was measured."""
    if facts is None:
        return ""
    if "over" in facts:
        return f"over {facts['over']:.0f}"
    return f"{facts['first']['median']:.2f}"


def ratio(ours: dict[str, Any] | None, rival: dict[str, Any] | None) -> str:
    """How many times as long the rival takes; a lower bound where it was cut off."""
    if ours is None or rival is None:
        return ""
    if "over" in rival:
        return f"over {rival['over'] / ours['first']['median']:.0f} x"
    return f"{rival['first']['median'] / ours['first']['median']:.1f} x"


def memory(ours: dict[str, Any] | None) -> str:
    """Growth of the process over the size of the parameters, where these are more than the rest."""
    if ours is None or ours["nbytes"] < _LARGE:
        return ""
    return f"{ours['peak over parameters']:.2f}"


def rows(record: dict[str, Any]) -> list[list[str]]:
    """One line of the table for each model."""
    lines = []
    version = ".".join(record["environment"]["versions"]["jax"].split(".")[:2])
    for name, result in record["results"].items():
        found = result["contestants"]
        ours = found.get("jit_init")
        lines.append(
            [name, version, *(cell(found.get(column)) for column in COLUMNS)]
            + [ratio(ours, found.get("jax.jit"))]
            + [memory(ours)]
        )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("json", nargs="+", help="what init_time.py wrote")
    records = [json.loads(pathlib.Path(path).read_text()) for path in parser.parse_args().json]
    headings = ["first call, seconds", "jax", *COLUMNS, "jax.jit over jit_init", "memory growth"]
    print("| " + " | ".join(headings) + " |")
    print("|---" * len(headings) + "|")
    for record in records:
        for line in rows(record):
            print("| " + " | ".join(line) + " |")


if __name__ == "__main__":
    main()
