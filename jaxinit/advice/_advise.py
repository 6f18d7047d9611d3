"""`advise` and `audit`: which initializer every parameter should have, and whether a tree is fit.

The guide decides row by row and the checks find what to look at. Advice becomes rules that
`jaxinit.plan` takes: few globs, which match exactly the leaves that they should. An audit puts what
arrays hold beside what the advice would draw.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import re
import textwrap
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Sequence
from typing import Any, ParamSpec, TypeVar, get_args

import jax.numpy as jnp

from jaxinit._json import dumps, plain
from jaxinit._naming import common, skeleton
from jaxinit._table import render_table
from jaxinit.advice._correct import Decision, decisions_of
from jaxinit.advice._facts import ModelFacts
from jaxinit.advice._findings import SEVERITIES, Case, Finding, findings_of, shortened
from jaxinit.advice._guide import GUIDES, Goal
from jaxinit.advice._present import PresentByPath, isometric_of, laws_of_present, present_of
from jaxinit.advice._signals import Signals
from jaxinit.initializers import Initializer, own, to_config
from jaxinit.planning import ParamSpec as LeafSpec
from jaxinit.planning import Patterns, Plan, compile_glob, matching_paths, plan
from jaxinit.reading import Reading
from jaxinit.signal import Prediction, predict

P = ParamSpec("P")
R = TypeVar("R")
L = TypeVar("L", bound=Any)
H = TypeVar("H", bound=Hashable)

_SPECIAL = re.compile(r"[*?\[\]{},]")
# Numbers of a path that a glob may leave open in any combination.
_MOST_OPENED = 4
# Characters that leaves, shape, std and why take up beside a name, with the space around them.
_BESIDE = 36


@dataclasses.dataclass(frozen=True)
class Prescription:
    """What one parameter should be drawn with.

    Attributes:
        path: canonical path.
        shape: shape of the array.
        dtype: dtype of the array, by name.
        role: what it is for in the model, such as ``"residual_output"``; finer than the role in
            the reading, ``"kernel"``.
        initializer: with the true axes of the reading.
        row: name of the row of the guide that decided.
        reason: why, in one sentence.
        source: authors, year, equation or section.
    """

    path: str
    shape: tuple[int, ...]
    dtype: str
    role: str
    initializer: Initializer
    row: str
    reason: str
    source: str

    @property
    def std(self) -> float:
        """Standard deviation of an entry."""
        return self.initializer.law(self.shape, self.dtype).std

    def to_dict(self) -> dict[str, Any]:
        """The prescription as plain values, with the config of the initializer and its std."""
        return plain(vars(self) | {"initializer": to_config(self.initializer), "std": self.std})


@dataclasses.dataclass(frozen=True, repr=False)
class Advice:
    """What `advise` returns; prints as a table.

    Attributes:
        reading: the model that was read.
        goal: what was asked for.
        prescriptions: one for each leaf of the reading but random keys, in the order of the tree.
        findings: what to look at, the most severe first.
        not_judged: parameters of which it is not known how they are drawn now, by path; findings
            are about the others.
    """

    reading: Reading
    goal: Goal
    prescriptions: tuple[Prescription, ...]
    findings: tuple[Finding, ...]
    not_judged: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.prescriptions)

    def __iter__(self) -> Iterator[Prescription]:
        return iter(self.prescriptions)

    def __getitem__(self, path: str) -> Prescription:
        for prescription in self.prescriptions:
            if prescription.path == path:
                return prescription
        raise KeyError(f"the advice has no leaf {path!r}")

    def rules(self, *, frozen: Patterns = ()) -> list[tuple[str, Initializer]]:
        """The advice as rules that `jaxinit.plan` takes, in few patterns.

        Every rule takes a leaf, every leaf of the reading is taken, and each gets its prescription.
        A leaf that was not read and has another name, numbers aside, has no rule.

        Args:
            frozen: patterns over paths: leaves that are kept, by the rule `own`.
        """
        specs = {p.path: LeafSpec(p.shape, jnp.dtype(p.dtype)) for p in self}
        kept = matching_paths("rules", "frozen=", frozen, specs)
        return rules_for([(p.path, own if p.path in kept else p.initializer) for p in self])

    def plan(self, tree: Any = None, *, frozen: Any = ()) -> Plan:
        """A plan with the rules of the advice.

        Args:
            tree: the tree of the parameters; None gives a flat dictionary from path to array.
            frozen: leaves that are kept, as `jaxinit.plan` takes them.
        """
        if tree is None:
            tree = {p.path: LeafSpec(p.shape, jnp.dtype(p.dtype)) for p in self}
        return plan(tree, self.rules(), frozen=frozen)

    def predict(self, **options: Any) -> Prediction:
        """How large every signal and gradient will be when the advice is taken.

        Args:
            **options: those of `jaxinit.predict`; ``measure=True`` draws the model as well.

        Example:
            >>> import jax, jax.numpy as jnp, jaxinit
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

    def to_dict(self) -> dict[str, Any]:
        """The advice as a dictionary of plain values."""
        return {
            "format": "jaxinit-advice/1",
            "goal": self.goal,
            "prescriptions": [p.to_dict() for p in self],
            "findings": plain(self.findings),
            "not_judged": list(self.not_judged),
        }

    def to_json(self) -> str:
        """The advice as JSON."""
        return dumps(self.to_dict())

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


def takes_reading(line: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """A decorator: calls that have no reading first, or an old argument, raise a TypeError.

    Args:
        line: the call as it should be written.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            name = function.__name__
            first = args[0] if args else kwargs.get("reading")
            if not isinstance(first, Reading):
                came = type(first).__name__
                raise TypeError(f"{name} needs a reading, got {came}. Call it as {line}.")
            if "current" in kwargs:
                raise TypeError(
                    f"{name} needs init= for how the parameters are drawn now, got current=. "
                    f"Call it as jaxinit.{name}(reading, init=...)."
                )
            return function(*args, **kwargs)

        return call

    return decorate


@takes_reading("jaxinit.advise(jaxinit.read(model.apply, variables, x))")
def advise(reading: Reading, goal: Goal = "train", *, init: Any = None) -> Advice:
    """Says which initializer every parameter should have, and why.

    Args:
        reading: what a model does with its parameters, from `jaxinit.read`.
        goal: ``"train"``, a signal and a gradient that survive at the width and depth given;
            ``"classical"``, the four rows of the classical lesson; ``"mup"``, hyper-parameters that
            carry over when the width is scaled; ``"policy"``, on-policy reinforcement learning.
        init: how the parameters are drawn now, for the findings: a plan, a mapping from path to
            initializer such as `jaxinit.flax.own_initializers` makes, or a tree of arrays. With
            None there are only the findings that do not depend on it.

    Returns:
        A prescription for every leaf, with the fans that were read, and findings.

    Raises:
        TypeError: when ``reading`` is no reading, or ``init`` is of none of these kinds.
        ValueError: when the goal is unknown, or ``init`` is of other parameters.

    Example:
        >>> import jax, jax.numpy as jnp, jaxinit
        >>> def net(params, x):
        ...     for kernel in params["hidden"]:
        ...         x = jax.nn.relu(x @ kernel)
        ...     return x @ params["out"]
        >>> square = jax.ShapeDtypeStruct((256, 256), "float32")
        >>> shapes = {"hidden": [square] * 9, "out": jax.ShapeDtypeStruct((256, 4), "float32")}
        >>> reading = jaxinit.read(net, shapes, jax.ShapeDtypeStruct((8, 256), "float32"))
        >>> advise(reading).rules()
        [('out', lecun_normal()), ('hidden/[0-9]*', he_normal())]

    References:
        Each prescription bears its source; the rows stand in ``jaxinit.advice._guide``.
    """
    return advise_with("advise", reading, goal, present_of("advise", reading, init))


def advise_with(caller: str, reading: Reading, goal: Goal, present: PresentByPath) -> Advice:
    """As `advise`, of a present initialization that is known already."""
    if goal not in GUIDES:
        raise ValueError(
            f"{caller} needs a goal of {', '.join(map(repr, get_args(Goal)))}, got {goal!r}. "
            "Use 'train' when in doubt."
        )
    model = ModelFacts(reading)
    decisions, advised = decisions_of(goal, model, present)
    laws = laws_of_present(model.parameters, present)
    signals = None if laws is None else Signals(model, laws)
    drawn = {each.facts.path: each.initializer for each in decisions}
    drawn |= {path: now.initializer for path, now in present.items()}
    case = Case(model, present, frozenset(present), signals, advised, isometric_of(reading, drawn))
    prescriptions = map(_prescription, decisions)
    missing = [p.path for p in reading if p.path not in present and p.role != "state"]
    return Advice(reading, goal, tuple(prescriptions), findings_of(case), tuple(missing))


def _prescription(decided: Decision) -> Prescription:
    p, choice = decided.facts, decided.choice
    reason = "; ".join(filter(None, (choice.reason, decided.remark)))
    source = choice.source or decided.row.source
    leaf = (p.path, p.shape, p.parameter.dtype, p.role)
    return Prescription(*leaf, decided.initializer, decided.row.name, reason, source)


# Audit.


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
            "format": "jaxinit-audit/1",
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
        rows = []
        alike = gathered(self.leaves, lambda p: (p.shape, p.fan_in, f"{p.advised_std:.4g}"))
        for name, members in alike:
            sizes = [(leaf.std, leaf.gain, leaf.advised_gain) for leaf in members]
            means = map(_mean, zip(*sizes, strict=True))
            shape, fan_in = shape_text(members[0].shape), members[0].fan_in
            rows.append((name, len(members), shape, fan_in, *means))
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
        >>> import jax, jax.numpy as jnp, jaxinit
        >>> params = {"w": jnp.zeros((32, 16)), "v": jnp.zeros((16, 8))}
        >>> def net(params, x):
        ...     return jnp.tanh(x @ params["w"]) @ params["v"]
        >>> found = audit(jaxinit.read(net, params, jnp.ones((4, 32))), params)
        >>> found.verdict, [finding.code for finding in found.findings]
        ('not fit to train (1 error)', ['zero-product'])
    """
    present = present_of("audit", reading, params)
    advice = advise_with("audit", reading, goal, present)
    leaves = []
    for p in advice:
        if p.path in present:
            now, fan_in = present[p.path], reading[p.path].fan_in
            leaf = AuditedLeaf(p.path, p.shape, p.role, fan_in, now.mean, now.std, p.std)
            leaves.append(leaf)
    return Audit(reading, goal, tuple(leaves), advice.findings)


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


# As text.


def gathered(leaves: Iterable[L], traits: Callable[[L], Hashable]) -> list[tuple[str, list[L]]]:
    """Leaves with equal traits whose paths differ in numbers alone, under a name in common."""
    found: dict[Hashable, list[L]] = {}
    for leaf in leaves:
        found.setdefault((skeleton(leaf.path), traits(leaf)), []).append(leaf)
    return [(common([leaf.path for leaf in members]), members) for members in found.values()]


def shape_text(shape: Sequence[int]) -> str:
    """A shape as it prints, such as ``"3x4"``."""
    return "x".join(map(str, shape)) or "scalar"


def with_findings(lines: Iterable[str], findings: Iterable[Finding], width: int) -> str:
    """Lines, and under them the findings in lines of at most so many characters."""
    whole = list(lines)
    for finding in findings:
        head = f"{finding.severity} {finding.code}"
        head += f"  {shortened(finding.leaves)}" if finding.leaves else ""
        body = f"{finding.evidence} {finding.remedy} ({finding.source})"
        whole += ["", *_wrapped(head, width, "    "), *_wrapped(body, width, "  ", "  ")]
    return "\n".join(whole)


def _text(advice: Advice, width: int) -> str:
    """The table, the reasons under it, and the findings."""
    numbers: dict[tuple[str, str], int] = {}
    rows = []
    for name, members in gathered(advice, lambda p: (p.shape, p.initializer, p.reason)):
        p = members[0]
        note = numbers.setdefault((p.reason, p.source), len(numbers) + 1)
        rows.append((name, len(members), shape_text(p.shape), p.initializer, p.std, note))
    count = len(advice.findings)
    title = (
        f"Advice for the goal {advice.goal!r}: {len(advice)} parameters, "
        f"{count} finding{'' if count == 1 else 's'}"
    )
    if advice.not_judged:
        whole = len(advice.not_judged) >= len(advice.reading)
        title += f"; {'none' if whole else f'{len(advice.not_judged)} not'} judged as drawn now"
    lines = [*_wrapped(title, width, "  "), *_table(rows, width), ""]
    for (reason, source), number in numbers.items():
        lines += _wrapped(f"{number}. {reason} ({source})", width, "   ")
    return with_findings(lines, advice.findings, width)


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


def _wrapped(text: str, width: int, indent: str, first: str = "") -> list[str]:
    return textwrap.wrap(text, width, initial_indent=first, subsequent_indent=indent)


# As rules.


def rules_for(values: Sequence[tuple[str, H]]) -> list[tuple[str, H]]:
    """Ordered globs over paths, as few as possible, each with its value.

    A glob spells a path from the root, with its numbers left open: what has another name is not
    covered. The first match wins, so a glob may also match what earlier ones have taken. Values
    with few leaves come first.

    Args:
        values: every path with its value.

    Returns:
        Pairs of a glob and a value; every glob takes a leaf, every leaf is taken, and each gets its
        own value.
    """
    members: dict[H, list[str]] = {}
    for path, value in values:
        members.setdefault(value, []).append(path)
    # A stable sort: values with equally many leaves stay in the order of the tree.
    order = sorted(members.items(), key=lambda item: len(item[1]))
    rules: list[tuple[str, H]] = []
    for number, (value, wanted) in enumerate(order):
        others = [path for _, paths in order[number + 1 :] for path in paths]
        rules += [(glob, value) for glob in _joined(_cover(wanted, others))]
    return rules


def _cover(wanted: Sequence[str], others: Collection[str]) -> list[str]:
    """Globs that match all of the wanted paths and none of the others, greedily the widest."""
    left = list(wanted)
    chosen: list[str] = []
    while left:
        best, taken = "", set[str]()
        for glob in _candidates(left[0]):
            matches = compile_glob("advise", glob).fullmatch
            found = set(filter(matches, left))
            if len(found) > len(taken) and not any(map(matches, others)):
                best, taken = glob, found
        chosen.append(best)
        left = [path for path in left if path not in taken]
    return chosen


def _candidates(path: str) -> list[str]:
    """Globs for a path: with all of its numbers left open, with some of them, and the path."""
    exact = [_literal(segment) for segment in path.split("/")]
    numbered = [n for n, segment in enumerate(exact) if skeleton(segment) != segment]
    # A segment with characters that mean something in a glob keeps its numbers.
    numbered = [n for n in numbered if exact[n] == path.split("/")[n]][-_MOST_OPENED:]
    found = []
    for count in range(len(numbered), -1, -1):
        for opened in itertools.combinations(numbered, count):
            segments = [_opened(s) if n in opened else s for n, s in enumerate(exact)]
            found.append("/".join(segments))
    return found


def _opened(segment: str) -> str:
    """A segment with its numbers left open."""
    return "[0-9]*" if segment.isdecimal() else skeleton(segment)


def _joined(globs: Sequence[str]) -> list[str]:
    """Globs of one value with those that end alike written as one, with braces."""
    ends: dict[str, list[list[str]]] = {}
    for glob in globs:
        segments = glob.split("/")
        ends.setdefault(segments[-1], []).append(segments)
    return [_with_braces(paths) for paths in ends.values()]


def _with_braces(paths: Sequence[list[str]]) -> str:
    """One glob for paths, with braces where they differ."""
    shortest = min(map(len, paths)) - 1
    levels = list(zip(*paths, strict=False))[:shortest]
    tails = list(zip(*(path[::-1] for path in paths), strict=False))[:shortest]
    head = len(list(itertools.takewhile(lambda each: len(set(each)) == 1, levels)))
    tail = len(list(itertools.takewhile(lambda each: len(set(each)) == 1, tails)))
    tail = min(tail, shortest - head)
    first = paths[0]
    if len(paths) == 1:
        return "/".join(first)
    middles = ["/".join(path[head : len(path) - tail]) for path in paths]
    return "/".join([*first[:head], f"{{{','.join(middles)}}}", *first[len(first) - tail :]])


def _literal(path: str) -> str:
    """A glob that matches a path and nothing else."""
    return _SPECIAL.sub(lambda match: f"[{match[0]}]", path)
