"""The work of `jaxinit report`: a model is shaped, planned, drawn, measured, checked and read.

Nothing is printed here; the result is a record.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import math
import os
import platform
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax

import jaxinit
from jaxinit import checks
from jaxinit._naming import patterns
from jaxinit.checks import Measured
from jaxinit.initializers import Fans, lecun_normal
from jaxinit.planning import ParamSpec, Plan, matching_paths, with_roles
from jaxinit.report._assemble import Assembled, Pairs, Specs, assemble, opened_rules
from jaxinit.report._catalogue import mean_z, spread_z
from jaxinit.report._findings import Understood, find, fixed, joined, understand
from jaxinit.report._output import Watch
from jaxinit.report._parsing import parse_dtype, types_of
from jaxinit.report._report import (
    Environment,
    Report,
    ReportedGroup,
    ReportedLeaf,
    Request,
    Timing,
    Total,
)
from jaxinit.report._targets import Opened, Unusable, as_unusable, opened_model

# By default the model's own init is timed up to this many parameters, and a second draw is timed
# where the first took at most this many seconds.
_MOST_COMPARED = 500_000_000
_MOST_REPEATED_SECONDS = 5.0


def collect(request: Request, watch: Watch) -> Report:
    """Makes a report.

    Args:
        request: the arguments of the command.
        watch: told which stage runs.

    Raises:
        Unusable: when something that was given cannot be used.
    """
    with contextlib.ExitStack() as stack:
        with as_unusable():
            dtype = None if request.dtype is None else parse_dtype(request.dtype)
        if dtype is not None and not jax.numpy.issubdtype(dtype, jax.numpy.floating):
            raise Unusable(f"--dtype needs a floating-point dtype, got {dtype}.")
        stack.enter_context(types_of(dtype))
        watch("importing", 0, 0)
        opened = stack.enter_context(opened_model(request.target, request.inputs))
        rules = None
        if request.rules is not None:
            rules = stack.enter_context(opened_rules(request.rules))
        return _Work(request, opened, watch).report(rules, dtype)


class _Work:
    """The stages of one report, and the wall time of each."""

    def __init__(self, request: Request, opened: Opened, watch: Watch) -> None:
        self.request, self.opened, self.watch = request, opened, watch
        self.model = opened.model
        self.key = jax.random.key(request.seed)
        self.timings: list[Timing] = []

    @contextlib.contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        self.watch(stage, 0, 0)
        start = time.perf_counter()
        yield
        self.timings.append(Timing(stage, time.perf_counter() - start))

    def report(self, rules: Pairs | Plan | None, dtype: Any) -> Report:
        specs, assembled = self.plan(rules, dtype)
        with as_unusable():
            allowed = matching_paths("jaxinit report", "--allow", self.request.allow, specs)
        with self.timed("draw, first time (compiles)"):
            values = self.draw(assembled, "draw")
        is_quick = self.timings[-1].seconds < _MOST_REPEATED_SECONDS
        with self.timed("measure"):
            measured = checks.measure(values)
        with self.timed("read and advise"):
            understood = understand(self.opened, specs, assembled, values, measured)
        with self.timed("check"):
            checked = find(assembled, values, measured, allowed, understood.judged)
            if rules is None:
                checked = (*checked, *fixed(self.model.without_key()))
        shapes = {path: ParamSpec(value.shape, value.dtype) for path, value in values.items()}
        del values  # one copy of the model at a time
        if is_quick:
            with self.timed("draw, second time"):
                self.draw(assembled, "draw again")
        is_parameter = self.model.is_parameter
        parameters = _total(shapes[path] for path in specs if is_parameter(path))
        own_measured = self.compare(is_quick and parameters.entries < _MOST_COMPARED)
        drawn = Drawn(specs, assembled, shapes, measured, own_measured, is_parameter, understood)
        return Report(
            model=self.model.name,
            framework=self.model.kind,
            target=self.opened.target,
            inputs=str(self.opened.inputs),
            rules=self.request.rules,
            seed=self.request.seed,
            environment=environment(),
            parameters=parameters,
            others=_total(shapes[path] for path in specs if not is_parameter(path)),
            groups=drawn.groups(),
            timings=tuple(self.timings),
            no_reading=understood.why_not,
            reading=understood.roles(),
            advice=understood.said(),
            findings=joined(checked, understood, allowed),
        )

    def plan(self, rules: Pairs | Plan | None, dtype: Any) -> tuple[Specs, Assembled]:
        """The shapes of the model, and what draws each leaf."""
        with as_unusable("TARGET: ", self.opened.source):
            with self.timed("shape"):
                specs = self.model.shapes()
            if not specs:
                raise ValueError(f"{self.opened.target} has no parameters to initialize.")
            with self.timed("read own initializers"):
                own = self.model.own_initializers()
        with as_unusable("--rules: " if rules is not None else ""), self.timed("plan"):
            return specs, assemble(specs, own, rules, self.model.is_parameter, dtype)

    def draw(self, assembled: Assembled, stage: str) -> dict[str, jax.Array]:
        """Draws all leaves: the plan its own, the model the rest."""

        def progress(done: int, total: int, done_bytes: int, total_bytes: int) -> None:
            self.watch(stage, done_bytes, total_bytes)

        values = dict(assembled.plan.init(self.key, progress=progress))
        if assembled.unknown:
            self.watch("the model draws", 0, 0)
            values |= self.model.draw(self.key, assembled.unknown)
        return jax.block_until_ready(values)

    def compare(self, by_default: bool) -> dict[str, checks.Measured]:
        """Times the model's own init as users call it, and under rules measures its arrays."""
        if not (by_default if self.request.compare is None else self.request.compare):
            return {}
        with self.timed("the model's own jitted init, first time"):
            values = jax.block_until_ready(self.model.draw(self.key))
        return {} if self.request.rules is None else checks.measure(values)


def _total(shapes: Iterable[ParamSpec]) -> Total:
    shapes = list(shapes)
    return Total(len(shapes), sum(s.size for s in shapes), sum(s.nbytes for s in shapes))


def environment() -> Environment:
    """The versions and the device of this process."""
    devices = jax.devices()
    names = dict.fromkeys([devices[0].platform, devices[0].device_kind])
    return Environment(
        jaxinit=jaxinit.__version__,
        jax=jax.__version__,
        flax=importlib.metadata.version("flax"),
        python=platform.python_version(),
        device=f"{len(devices)} x {' '.join(names)}",
        cores=os.cpu_count() or 0,
    )


# Leaves that are drawn alike, gathered into the groups of a report.


@dataclasses.dataclass(frozen=True)
class Drawn:
    """A model that was drawn, measured and read.

    Attributes:
        specs: shapes of all leaves as the model has them, by path.
        assembled: the leaves, and what drew them.
        shapes: shapes and dtypes of the arrays that were drawn.
        measured: moments and ends of each array.
        own_measured: the same of arrays that the model drew itself for comparison.
        is_parameter: whether a leaf is a parameter.
        understood: what was read of the model.
    """

    specs: Specs
    assembled: Assembled
    shapes: Mapping[str, ParamSpec]
    measured: Mapping[str, Measured]
    own_measured: Mapping[str, Measured]
    is_parameter: Callable[[str], bool]
    understood: Understood

    def groups(self) -> tuple[ReportedGroup, ...]:
        """The groups of a report, largest first."""
        members: dict[ReportedGroup, list[str]] = {}
        for path in self.specs:
            members.setdefault(self._traits(path), []).append(path)
        groups = [self._filled(traits, paths) for traits, paths in members.items()]
        return tuple(sorted(groups, key=lambda group: -len(group.leaves) * math.prod(group.shape)))

    def _traits(self, path: str) -> ReportedGroup:
        """A group without members: everything that the leaves of a group have in common."""
        plan, own = self.assembled.plan, self.assembled.own
        planned = plan[path] if path in plan else None
        replaced = own[path] if own is not plan and path in own else None
        fans = (planned and planned.fans) or _fans_of(self.specs[path])
        role = advised = None
        if self.understood.reading and path in self.understood.reading:
            read = self.understood.reading[path]
            role, advised = read.role, self.understood.prescriptions.get(path)
            if role != "unknown":
                fans = None
                if read.fan_in is not None and read.fan_out is not None:
                    fans = Fans(read.fan_in, read.fan_out)
        return ReportedGroup(
            shape=self.shapes[path].shape,
            dtype=str(self.shapes[path].dtype),
            initializer=planned and repr(planned.initializer),
            role=role,
            fan_in=fans and fans.fan_in,
            fan_out=fans and fans.fan_out,
            expected_std=planned and planned.law.std,
            own_initializer=replaced and repr(replaced.initializer),
            own_std=replaced and replaced.law.std,
            advised=advised and repr(advised.initializer),
            advised_std=advised and advised.std,
            parameters=self.is_parameter(path),
        )

    def _filled(self, traits: ReportedGroup, paths: Sequence[str]) -> ReportedGroup:
        leaves = tuple(self._leaf(path) for path in paths)
        scores = [abs(z) for leaf in leaves for z in (leaf.mean_z, leaf.spread_z) if z is not None]
        own_measured = [self.own_measured[path] for path in paths if path in self.own_measured]
        return dataclasses.replace(
            traits,
            patterns=tuple(patterns(paths)),
            measured_std=_pooled_std([self.measured[path] for path in paths]),
            worst_z=max(scores, default=None),
            own_measured_std=_pooled_std(own_measured),
            leaves=leaves,
        )

    def _leaf(self, path: str) -> ReportedLeaf:
        found = self.measured[path]
        if not found.n:
            return ReportedLeaf(path)
        mean_score = spread_score = None
        planned = self.assembled.plan[path] if path in self.assembled.plan else None
        # The moments of a fused array are those of a mixture; `checks` looks at its parts.
        if planned and planned.initializer.random and not planned.law.slabs:
            mean_score = mean_z(planned.law, found.n, found.mean)
            spread_score = spread_z(planned.law, found.n, found.mean, found.variance)
        return ReportedLeaf(
            path, found.mean, found.std, found.low, found.high, found.nonfinite,
            mean_score, spread_score,
        )  # fmt: skip


def _fans_of(spec: ParamSpec) -> Fans | None:
    """Fans from the axes that the model contracts, for leaves whose law has none."""
    if spec.axes is None:
        return None
    return with_roles(lecun_normal(), spec).fans(spec.layer_shape)


def _pooled_std(parts: Sequence[Measured]) -> float | None:
    """Standard deviation of all entries of several arrays."""
    n = sum(part.n for part in parts)
    if not n:
        return None
    mean = sum(part.n * part.mean for part in parts) / n
    return math.sqrt(sum(part.n * part.second_moment(mean) for part in parts) / n)
