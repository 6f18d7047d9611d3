"""What the benchmarks share: timing in alternated order, the environment, tables and JSON."""

import dataclasses
import datetime
import importlib.metadata
import json
import os
import pathlib
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
from rich.console import Console
from rich.table import Table


@dataclasses.dataclass(frozen=True)
class Spread:
    """Seconds of repeated runs."""

    median: float
    low: float
    high: float
    repeats: int

    @classmethod
    def of(cls, seconds: Sequence[float]) -> "Spread":
        return cls(statistics.median(seconds), min(seconds), max(seconds), len(seconds))

    def __str__(self) -> str:
        return f"{self.median:.3g} ({self.low:.3g}-{self.high:.3g})"


def seconds_of(
    function: Callable[[], Any], clock: Callable[[], float] = time.perf_counter
) -> float:
    """Seconds until every array that the function returns is ready."""
    start = clock()
    jax.block_until_ready(function())
    return clock() - start


def alternate(
    contestants: dict[str, Callable[[], Any]],
    repeats: int,
    *,
    cold: bool = False,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Spread]:
    """Times all contestants in turn, each round in the opposite order of the one before.

    With ``cold``, every call starts without compiled programs. With ``clock=time.process_time``,
    seconds are those of all cores together, which other jobs on the machine hardly change.
    """
    names = list(contestants)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for repeat in range(repeats):
        for name in names if repeat % 2 == 0 else reversed(names):
            if cold:
                jax.clear_caches()
            seconds[name].append(seconds_of(contestants[name], clock))
    return {name: Spread.of(taken) for name, taken in seconds.items()}


def environment() -> dict[str, Any]:
    """Device, processors and versions that the numbers belong to."""
    versions = {}
    for package in ("jaxinit", "jax", "jaxlib", "flax", "numpy", "torch", "anyinit"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    device = jax.devices()[0]
    return {
        "date": datetime.date.today().isoformat(),
        "device": f"{len(jax.devices())} x {device.device_kind}",
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "python": platform.python_version(),
        "versions": versions,
    }


def _processor() -> str:
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


def show(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    table = Table(title=title)
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 else "right")
    for row in rows:
        table.add_row(*row)
    Console().print(table)


def write(path: str | None, question: str, results: dict[str, Any], *, quiet: bool = False) -> None:
    """Keeps results with their environment, where a path is given."""
    if path is None:
        return
    record = {"question": question, "environment": environment(), "results": results}
    text = json.dumps(record, indent=2, default=dataclasses.asdict) + "\n"
    pathlib.Path(path).write_text(text)
    if not quiet:
        print(f"written: {path}")
