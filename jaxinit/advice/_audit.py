"""`audit`: whether a tree of parameters that exists already is fit to start from."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

from jaxinit._json import dumps, plain
from jaxinit._table import render_table
from jaxinit.advice._advise import advise_with, gathered, shape_text, takes_reading, with_findings
from jaxinit.advice._findings import SEVERITIES, Finding
from jaxinit.advice._guide import Goal
from jaxinit.advice._present import present_of
from jaxinit.reading import Reading

_FORMAT = "jaxinit-audit/1"


@dataclasses.dataclass(frozen=True)
class AuditedLeaf:
    """One array as it was found.

    Attributes:
        path: canonical path.
        shape: shape of the array.
        role: what it is for in the model, as in a `Prescription`.
        fan_in: products that one output sums over; None where it belongs to no layer.
        mean: mean of its entries.
        std: their standard deviation.
        advised_std: what the advice would draw.
    """

    path: str
    shape: tuple[int, ...]
    role: str
    fan_in: float | None
    mean: float
    std: float
    advised_std: float

    @property
    def gain(self) -> float | None:
        """Implied gain, std times sqrt(fan_in); None where it belongs to no layer."""
        return None if self.fan_in is None else self.std * math.sqrt(self.fan_in)

    @property
    def advised_gain(self) -> float | None:
        """Gain that the advice would draw."""
        return None if self.fan_in is None else self.advised_std * math.sqrt(self.fan_in)

    def to_dict(self) -> dict[str, Any]:
        """The leaf as plain values, with its gains; NaN is None."""
        return plain(vars(self) | {"gain": self.gain, "advised_gain": self.advised_gain})


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

    def to_dict(self) -> dict[str, Any]:
        """The audit as a dictionary of plain values; NaN is None."""
        return {
            "format": _FORMAT,
            "goal": self.goal,
            "verdict": self.verdict,
            "leaves": [leaf.to_dict() for leaf in self.leaves],
            "findings": plain(self.findings),
        }

    def to_json(self) -> str:
        """The audit as JSON."""
        return dumps(self.to_dict())

    def to_text(self, width: int = 100) -> str:
        """The audit as it prints, in lines of at most so many characters."""
        alike = gathered(self.leaves, lambda p: (p.shape, p.fan_in, f"{p.advised_std:.4g}"))
        rows = [
            (
                name,
                len(members),
                shape_text(members[0].shape),
                members[0].fan_in,
                _mean([leaf.std for leaf in members]),
                _mean([leaf.gain for leaf in members]),
                _mean([leaf.advised_gain for leaf in members]),
            )
            for name, members in alike
        ]
        columns = ["parameter", "leaves", "shape", "fan_in", "std", "gain", "advised"]
        title = f"Audit: {self.verdict}"
        table = render_table(columns, rows, title=title, max_width=width)
        return with_findings([table], self.findings, width)

    def __str__(self) -> str:
        return self.to_text()

    def __repr__(self) -> str:
        return f"<Audit of {len(self.leaves)} arrays, {self.verdict}; print it for the table>"


@takes_reading("jaxinit.audit(jaxinit.read(model.apply, variables, x), variables)")
def audit(reading: Reading, params: Any, *, goal: Goal = "train") -> Audit:
    """Judges parameters that exist already: drawn by a framework, or loaded.

    Args:
        reading: what a model does with its parameters, from `jaxinit.read`.
        params: the arrays, with the same paths.
        goal: as in `advise`.

    Returns:
        For every array its measured size, the gain that it implies with its true fan_in, and what
        the advice would draw; findings, and a verdict.

    Raises:
        TypeError: when ``reading`` is no reading, or ``params`` holds no arrays with values.
        ValueError: when the goal is unknown, or ``params`` are other parameters.

    Example:
        >>> import jax.numpy as jnp, jaxinit
        >>> params = {"w": jnp.zeros((32, 16)), "v": jnp.zeros((16, 8))}
        >>> def net(params, x):
        ...     return jnp.tanh(x @ params["w"]) @ params["v"]
        >>> found = audit(jaxinit.read(net, params, jnp.ones((4, 32))), params)
        >>> found.verdict, [finding.code for finding in found.findings]
        ('not fit to train (1 error)', ['zero-product'])
    """
    present = present_of("audit", reading, params)
    advice = advise_with("audit", reading, goal, present)
    leaves = [
        AuditedLeaf(
            p.path,
            p.shape,
            p.role,
            reading[p.path].fan_in,
            present[p.path].mean,
            present[p.path].std,
            p.std,
        )
        for p in advice
        if p.path in present
    ]
    return Audit(reading, goal, tuple(leaves), advice.findings)


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
