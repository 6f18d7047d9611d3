"""`advise`: which initializer every parameter should have, why, and what is wrong with the present.

The guide decides row by row (`guide`), the checks find what to look at (`checks_table`), and the
result is rules that `jaxinit.plan` takes.
"""

from __future__ import annotations

import dataclasses
import re
import textwrap
from collections.abc import Iterator, Sequence
from typing import Any, get_args

import jax
import numpy as np

from jaxinit._table import render_table
from jaxinit.advice._checks_table import CHECKS, FAULTS
from jaxinit.advice._current import Currents, currents_of
from jaxinit.advice._findings import Finding, run_checks, shortened
from jaxinit.advice._guide import GUIDES, Goal
from jaxinit.advice._patterns import rules_for
from jaxinit.advice._rows import COUNTERS, INTEGERS, first_match
from jaxinit.advice._situation import Situation
from jaxinit.initializers import Initializer, to_config
from jaxinit.planning import ParamSpec, Plan, plan
from jaxinit.reading._reader import Reading
from jaxinit.signal import Prediction, predict

_FORMAT = "jaxinit-advice/1"
_NUMBER = re.compile(r"\d+")
# Characters that leaves, shape, std and why take up beside a name, with the space around them.
_BESIDE = 36


@dataclasses.dataclass(frozen=True)
class Prescription:
    """What one parameter should be drawn with.

    Attributes:
        path: canonical path.
        shape: shape of the array.
        dtype: dtype of the array, by name.
        part: the part it plays in the model.
        initializer: with the true axes of the reading.
        situation: name of the row of the guide that decided.
        reason: why, in one sentence.
        source: authors, year, equation or section.
    """

    path: str
    shape: tuple[int, ...]
    dtype: str
    part: str
    initializer: Initializer
    situation: str
    reason: str
    source: str

    @property
    def std(self) -> float:
        """Standard deviation of an entry."""
        return self.initializer.law(self.shape, self.dtype).std


@dataclasses.dataclass(frozen=True, repr=False)
class Advice:
    """What `advise` returns; prints as a table.

    Attributes:
        reading: the model that was read.
        goal: what was asked for.
        prescriptions: one for each leaf of the reading but random keys, in the order of the tree.
        findings: what to look at, the most severe first.
    """

    reading: Reading
    goal: Goal
    prescriptions: tuple[Prescription, ...]
    findings: tuple[Finding, ...]

    def __len__(self) -> int:
        return len(self.prescriptions)

    def __iter__(self) -> Iterator[Prescription]:
        return iter(self.prescriptions)

    def __getitem__(self, path: str) -> Prescription:
        for prescription in self.prescriptions:
            if prescription.path == path:
                return prescription
        raise KeyError(f"the advice has no leaf {path!r}")

    def rules(self) -> list[tuple[str, Initializer]]:
        """The advice as rules that `jaxinit.plan` takes, in few patterns.

        Every rule takes a leaf, every leaf of the reading is taken, and each gets its prescription.
        """
        values = [(p.path, p.initializer) for p in self.prescriptions]
        return [(glob, values[index][1]) for glob, index in rules_for(values)]

    def plan(self, tree: Any = None) -> Plan:
        """A plan with the rules of the advice.

        Args:
            tree: the tree of the parameters; None gives a flat dictionary from path to array.
        """
        if tree is None:
            tree = {p.path: ParamSpec(p.shape, np.dtype(_dtype(p.dtype))) for p in self}
        return plan(tree, self.rules())

    def predict(self, **options: Any) -> Prediction:
        """How large every signal and gradient will be when the advice is taken.

        Args:
            **options: those of `jaxinit.predict`; ``measure=True`` draws the model as well.

        Example:
            >>> import jax.numpy as jnp, jaxinit
            >>> shapes = {"w": jax.ShapeDtypeStruct((64, 64), "float32")}
            >>> x = jax.ShapeDtypeStruct((8, 64), "float32")
            >>> reading = jaxinit.read(lambda p, x: jnp.tanh(x @ p["w"]), shapes, x)
            >>> print(advise(reading).predict())
            second moments per entry, predicted
            layer  forward  backward
            ────────────────────────
            w            1     0.464
        """
        return predict(self.reading, self.plan(), **options)

    def to_json(self) -> dict[str, Any]:
        """The advice as plain dicts, lists, strings and numbers."""
        return {
            "format": _FORMAT,
            "goal": self.goal,
            "prescriptions": [
                {
                    "path": p.path,
                    "shape": list(p.shape),
                    "dtype": p.dtype,
                    "part": p.part,
                    "initializer": to_config(p.initializer),
                    "std": p.std,
                    "situation": p.situation,
                    "reason": p.reason,
                    "source": p.source,
                }
                for p in self.prescriptions
            ],
            "findings": [
                dataclasses.asdict(finding) | {"leaves": list(finding.leaves)}
                for finding in self.findings
            ],
        }

    def to_text(self, width: int = 100) -> str:
        """The advice as it prints, in lines of at most so many characters."""
        return _text(self, width)

    def __str__(self) -> str:
        return self.to_text()

    def __repr__(self) -> str:
        return (
            f"<Advice on {len(self)} parameters with {len(self.findings)} findings; "
            "print it for the table>"
        )


def advise(reading: Reading, goal: Goal = "train", *, current: Any = None) -> Advice:
    """Says which initializer every parameter should have, and why.

    Args:
        reading: what a model does with its parameters, from `jaxinit.read`.
        goal: ``"train"``, a signal and a gradient that survive at the width and depth given;
            ``"classical"``, the four rows of the classical lesson; ``"mup"``, hyper-parameters that
            carry over when the width is scaled; ``"policy"``, on-policy reinforcement learning.
        current: how the parameters are drawn now, for the findings: a plan, a mapping from path to
            initializer such as `jaxinit.flax.own_initializers` makes, or a tree of arrays. None
            leaves the findings that need none.

    Returns:
        A prescription for every leaf, with the fans that were read, and findings.

    Raises:
        TypeError: when ``reading`` is no reading.
        ValueError: when the goal is unknown, or ``current`` is of other parameters.

    Example:
        >>> import jax.numpy as jnp, jaxinit
        >>> def net(params, x):
        ...     for kernel in params["hidden"]:
        ...         x = jax.nn.relu(x @ kernel)
        ...     return x @ params["out"]
        >>> square = jax.ShapeDtypeStruct((256, 256), "float32")
        >>> shapes = {"hidden": [square] * 9, "out": jax.ShapeDtypeStruct((256, 4), "float32")}
        >>> reading = jaxinit.read(net, shapes, jax.ShapeDtypeStruct((8, 256), "float32"))
        >>> advise(reading).rules()
        [('**/out', lecun_normal()), ('**', he_normal())]

    References:
        Each prescription bears its source; the rows stand in ``jaxinit.advice._guide``.
    """
    if not isinstance(reading, Reading):
        raise TypeError(
            f"advise needs a reading, got {type(reading).__name__}. "
            "Call it as jaxinit.advise(jaxinit.read(model.apply, variables, x))."
        )
    return advise_with("advise", reading, goal, currents_of("advise", reading, current))


def advise_with(caller: str, reading: Reading, goal: Goal, currents: Currents) -> Advice:
    """As `advise`, of a current initialization that is known already."""
    if goal not in GUIDES:
        raise ValueError(
            f"{caller} needs a goal of {', '.join(map(repr, get_args(Goal)))}, got {goal!r}. "
            "Use 'train' when in doubt."
        )
    situation = Situation(reading)
    findings = run_checks(FAULTS, CHECKS, situation, currents)
    return Advice(reading, goal, prescribe(situation, goal), findings)


def prescribe(situation: Situation, goal: Goal) -> tuple[Prescription, ...]:
    """Applies the guide of a goal to every parameter."""
    guide = GUIDES[goal]
    holding = [row.when.holds(situation) for row in guide]
    found = []
    for subject in situation.subjects:
        parameter = subject.parameter
        if parameter.dtype.startswith("key<"):
            continue  # a random key among the variables is no parameter, and no plan takes it
        row, entry = first_match(guide, situation, subject, holding)
        if not jax.numpy.issubdtype(_dtype(parameter.dtype), jax.numpy.inexact):
            entry = COUNTERS if subject.part in ("state", "unused") else INTEGERS
        found.append(
            Prescription(
                parameter.path,
                parameter.shape,
                parameter.dtype,
                subject.part,
                entry.recipe(situation, subject),
                row.name,
                entry.reason,
                entry.source or row.source,
            )
        )
    return tuple(found)


def _dtype(name: str) -> Any:
    return jax.numpy.dtype(name)


def _text(advice: Advice, width: int) -> str:
    """The table, the reasons under it, and the findings."""
    kinds: dict[tuple[Any, ...], list[Prescription]] = {}
    for p in advice:
        kinds.setdefault((_NUMBER.sub("*", p.path), p.shape, p.initializer, p.reason), []).append(p)
    numbers: dict[tuple[str, str], int] = {}
    rows = []
    for (pattern, shape, initializer, reason), members in kinds.items():
        note = numbers.setdefault((reason, members[0].source), len(numbers) + 1)
        name = pattern if len(members) > 1 else members[0].path
        rows.append((name, len(members), _shape(shape), initializer, members[0].std, note))
    count = len(advice.findings)
    title = (
        f"Advice for the goal {advice.goal!r}: {len(advice)} parameters, "
        f"{count} finding{'' if count == 1 else 's'}"
    )
    lines = [title, *_table(rows, width), ""]
    for (reason, source), number in numbers.items():
        lines += _wrapped(f"{number}. {reason} ({source})", width, "   ")
    for finding in advice.findings:
        lines += ["", *finding_lines(finding, width)]
    return "\n".join(lines)


def _table(rows: Sequence[tuple[Any, ...]], width: int) -> list[str]:
    """One line for each row; where that is too wide, the initializer stands below."""
    columns = ["parameter", "leaves", "shape", "initializer", "std", "why"]
    lines = render_table(columns, rows).splitlines()
    if max(map(len, lines)) <= width:
        return lines
    stacked: list[tuple[Any, ...]] = []
    for name, leaves, shape, initializer, std, note in rows:
        below = "\n".join(_wrapped(str(initializer), width - _BESIDE, "    ", "  "))
        stacked += [(name, leaves, shape, std, note), (below, None, None, None, None)]
    columns.remove("initializer")
    return render_table(columns, stacked, max_width=width).splitlines()


def finding_lines(finding: Finding, width: int) -> list[str]:
    """A finding on lines of at most so many characters."""
    head = f"{finding.severity} {finding.code}"
    head += f"  {shortened(finding.leaves)}" if finding.leaves else ""
    body = f"{finding.evidence} {finding.remedy} ({finding.source})"
    return [*_wrapped(head, width, "    "), *_wrapped(body, width, "  ", "  ")]


def _wrapped(text: str, width: int, indent: str, first: str = "") -> list[str]:
    return textwrap.wrap(text, width, initial_indent=first, subsequent_indent=indent)


def _shape(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape)) or "scalar"
