"""Leaves that are drawn alike, gathered into the groups of a report."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence

from jaxinit._naming import patterns
from jaxinit.checks import Measured
from jaxinit.initializers import Fans, lecun_normal
from jaxinit.planning import ParamSpec, with_roles
from jaxinit.report._assemble import Assembled, Specs
from jaxinit.report._catalogue import mean_z, spread_z
from jaxinit.report._findings import Understood
from jaxinit.report._report import ReportedGroup, ReportedLeaf


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
