"""`audit`: whether a tree of parameters that exists already is fit to start from."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Iterator
from typing import Any

from jaxinit._table import render_table
from jaxinit.advice._advise import advise_with, finding_lines
from jaxinit.advice._current import currents_of
from jaxinit.advice._findings import SEVERITIES, Finding
from jaxinit.advice._guide import Goal
from jaxinit.reading._reader import Reading, read

_FORMAT = "jaxinit-audit/1"
_NUMBER = re.compile(r"\d+")


@dataclasses.dataclass(frozen=True)
class AuditedLeaf:
    """One array as it was found.

    Attributes:
        path: canonical path.
        shape: shape of the array.
        part: the part it plays in the model.
        fan_in: products that one output sums over; None where it is no map.
        mean: mean of its entries.
        std: their standard deviation.
        advised_std: what the advice would draw.
    """

    path: str
    shape: tuple[int, ...]
    part: str
    fan_in: float | None
    mean: float
    std: float
    advised_std: float

    @property
    def gain(self) -> float | None:
        """Implied gain, std times sqrt(fan_in); None where it is no map."""
        return None if self.fan_in is None else self.std * math.sqrt(self.fan_in)

    @property
    def advised_gain(self) -> float | None:
        """Gain that the advice would draw."""
        return None if self.fan_in is None else self.advised_std * math.sqrt(self.fan_in)


@dataclasses.dataclass(frozen=True, repr=False)
class Audit:
    """What `audit` returns; prints as a table.

    Attributes:
        reading: the model that was read; ``jaxinit.predict(found.reading, params)`` says what
            these parameters do to the signal.
        goal: what the advice was asked for.
        leaves: one line for each array.
        findings: what to look at, the most severe first.
    """

    reading: Reading
    goal: Goal
    leaves: tuple[AuditedLeaf, ...]
    findings: tuple[Finding, ...]

    def __iter__(self) -> Iterator[AuditedLeaf]:
        return iter(self.leaves)

    @property
    def severity(self) -> str | None:
        """The severity of the worst finding; None without findings."""
        return self.findings[0].severity if self.findings else None

    @property
    def verdict(self) -> str:
        """The judgement in a sentence."""
        counts = [(sum(f.severity == s for f in self.findings), s) for s in SEVERITIES[::-1]]
        said = ", ".join(f"{n} {s}{'s' if n > 1 else ''}" for n, s in counts if n)
        return {
            None: "fit to train: nothing to look at",
            "info": f"fit to train ({said} to know of)",
            "warning": f"trains with a handicap ({said})",
            "error": f"not fit to train ({said})",
        }[self.severity]

    def to_json(self) -> dict[str, Any]:
        """The audit as plain dicts, lists, strings and numbers; NaN is None."""
        return {
            "format": _FORMAT,
            "goal": self.goal,
            "verdict": self.verdict,
            "leaves": [
                {k: _plain(v) for k, v in dataclasses.asdict(leaf).items()}
                | {"gain": _plain(leaf.gain), "advised_gain": _plain(leaf.advised_gain)}
                for leaf in self.leaves
            ],
            "findings": [
                dataclasses.asdict(finding) | {"leaves": list(finding.leaves)}
                for finding in self.findings
            ],
        }

    def to_text(self, width: int = 100) -> str:
        """The audit as it prints, in lines of at most so many characters."""
        rows = [
            (
                name,
                len(members),
                "x".join(map(str, members[0].shape)) or "scalar",
                members[0].fan_in,
                _mean([leaf.std for leaf in members]),
                _mean([leaf.gain for leaf in members]),
                _mean([leaf.advised_gain for leaf in members]),
            )
            for name, members in _kinds(self.leaves)
        ]
        columns = ["parameter", "leaves", "shape", "fan_in", "std", "gain", "advised"]
        title = f"Audit: {self.verdict}"
        lines = [render_table(columns, rows, title=title, max_width=width)]
        for finding in self.findings:
            lines += ["", *finding_lines(finding, width)]
        return "\n".join(lines)

    def __str__(self) -> str:
        return self.to_text()

    def __repr__(self) -> str:
        return f"<Audit of {len(self.leaves)} arrays, {self.verdict}; print it for the table>"


def audit(
    apply_fn: Callable[..., Any], params: Any, /, *args: Any, goal: Goal = "train", **kwargs: Any
) -> Audit:
    """Judges parameters that exist already: drawn by a framework, or loaded.

    Args:
        apply_fn: the forward pass, ``apply_fn(params, *args, **kwargs)``; traced, not run.
        params: the arrays.
        *args: what the model is called with besides; of arrays only shape and dtype count.
        goal: as in `advise`.
        **kwargs: the same, by name.

    Returns:
        For every array its measured size, the gain that it implies with its true fan_in, and what
        the advice would draw; findings, and a verdict.

    Raises:
        TypeError: when ``apply_fn`` is no function, or ``params`` holds no arrays with values.
        ValueError: when the goal is unknown.
        Exception: whatever the forward pass raises.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> params = {"w": jnp.zeros((32, 16)), "v": jnp.zeros((16, 8))}
        >>> found = audit(lambda p, x: jnp.tanh(x @ p["w"]) @ p["v"], params, jnp.ones((4, 32)))
        >>> found.verdict, [finding.code for finding in found.findings]
        ('not fit to train (1 error)', ['zero-product'])
    """
    return audit_reading(read(apply_fn, params, *args, **kwargs), params, goal=goal)


def audit_reading(reading: Reading, params: Any, *, goal: Goal = "train") -> Audit:
    """As `audit`, of a model that was read already.

    Args:
        reading: what the model does with its parameters.
        params: the arrays, with the same paths.
        goal: as in `advise`.
    """
    currents = currents_of("audit", reading, params)
    advice = advise_with("audit", reading, goal, currents)
    leaves = [
        AuditedLeaf(
            p.path,
            p.shape,
            p.part,
            reading[p.path].fan_in,
            currents[p.path].mean,
            currents[p.path].std,
            p.std,
        )
        for p in advice
        if p.path in currents
    ]
    return Audit(reading, goal, tuple(leaves), advice.findings)


def _kinds(leaves: tuple[AuditedLeaf, ...]) -> list[tuple[str, list[AuditedLeaf]]]:
    """Leaves that differ in the numbers of their paths alone."""
    kinds: dict[tuple[Any, ...], list[AuditedLeaf]] = {}
    for leaf in leaves:
        key = (_NUMBER.sub("*", leaf.path), leaf.shape, leaf.fan_in, f"{leaf.advised_std:.4g}")
        kinds.setdefault(key, []).append(leaf)
    return [
        (key[0] if len(members) > 1 else members[0].path, members) for key, members in kinds.items()
    ]


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return list(value) if isinstance(value, tuple) else value
