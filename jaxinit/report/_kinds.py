"""Leaves that are drawn alike, gathered into the lines of a report."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from jaxinit.advice import Prescription
from jaxinit.checks import Measured
from jaxinit.initializers import Fans, Law, lecun_normal
from jaxinit.planning import ParamSpec, with_roles
from jaxinit.reading import Parameter
from jaxinit.report._assemble import Assembled, Specs
from jaxinit.report._quantities import mean_z, spread_z
from jaxinit.report._records import Kind, Leaf
from jaxinit.report._understand import Understood


class _Traits(NamedTuple):
    """What the leaves of one kind share."""

    role: str | None

    shape: tuple[int, ...]
    dtype: str
    initializer: str | None
    fans: Fans | None
    expected_std: float | None
    own_initializer: str | None
    own_std: float | None
    advised: str | None
    advised_std: float | None
    parameters: bool


def gather_kinds(
    assembled: Assembled,
    specs: Specs,
    shapes: Mapping[str, ParamSpec],
    measured: Mapping[str, Measured],
    own_measured: Mapping[str, Measured],
    is_parameter: Callable[[str], bool],
    understood: Understood,
) -> tuple[Kind, ...]:
    """The lines of a report, largest first.

    Args:
        assembled: what was drawn, and by whom.
        specs: what the model says of its leaves, by path.
        shapes: shapes and dtypes as they were drawn.
        measured: what was measured of each leaf.
        own_measured: what was measured of leaves that the model drew itself for comparison.
        is_parameter: whether a leaf is a parameter.
        understood: what was read of the model.
    """
    reading = understood.reading or {}
    advised = {} if understood.advice is None else {p.path: p for p in understood.advice}
    members: dict[_Traits, list[str]] = {}
    for path, spec in specs.items():
        traits = _traits(path, assembled, spec, shapes[path], is_parameter(path))
        if path in reading:
            traits = _as_read(traits, reading[path], advised.get(path))
        members.setdefault(traits, []).append(path)
    laws = {leaf.path: leaf.law for leaf in assembled.plan if leaf.initializer.random}
    kinds = [
        dataclasses.replace(
            _kind(traits, paths, measured, laws),
            own_measured_std=_pooled_std([own_measured[p] for p in paths if p in own_measured]),
        )
        for traits, paths in members.items()
    ]
    return tuple(sorted(kinds, key=lambda kind: -len(kind.leaves) * math.prod(kind.shape)))


def _traits(
    path: str, assembled: Assembled, spec: ParamSpec, drawn: ParamSpec, is_parameter: bool
) -> _Traits:
    planned = assembled.plan[path] if path in assembled.plan else None
    own = assembled.own[path] if path in assembled.own else None
    if assembled.own is assembled.plan:
        own = None  # nothing to compare with
    return _Traits(
        role=None,
        shape=drawn.shape,
        dtype=str(drawn.dtype),
        initializer=planned and repr(planned.initializer),
        fans=(planned and planned.fans) or _fans_of(spec),
        expected_std=planned and planned.law.std,
        own_initializer=own and repr(own.initializer),
        own_std=own and own.law.std,
        advised=None,
        advised_std=None,
        parameters=is_parameter,
    )


def _as_read(traits: _Traits, read: Parameter, advised: Prescription | None) -> _Traits:
    """The fans that the model really has, in place of those of the initializer."""
    fans = traits.fans
    if read.role != "unknown":
        fans = None
        if read.fan_in is not None and read.fan_out is not None:
            fans = Fans(read.fan_in, read.fan_out)
    return traits._replace(
        role=read.role,
        fans=fans,
        advised=advised and repr(advised.initializer),
        advised_std=advised and advised.std,
    )


def _fans_of(spec: ParamSpec) -> Fans | None:
    """Fans from the axes that the model contracts, whatever the law makes of them."""
    if spec.axes is None:
        return None
    return with_roles(lecun_normal(), spec).fans(spec.layer_shape)


def _kind(
    traits: _Traits,
    paths: Sequence[str],
    measured: Mapping[str, Measured],
    laws: Mapping[str, Law],
) -> Kind:
    leaves = tuple(_leaf(path, measured[path], laws.get(path)) for path in paths)
    scores = [abs(z) for leaf in leaves for z in (leaf.mean_z, leaf.spread_z) if z is not None]
    return Kind(
        patterns=tuple(patterns_of(paths)),
        shape=traits.shape,
        dtype=traits.dtype,
        initializer=traits.initializer,
        role=traits.role,
        fan_in=traits.fans and traits.fans.fan_in,
        fan_out=traits.fans and traits.fans.fan_out,
        expected_std=traits.expected_std,
        measured_std=_pooled_std([measured[path] for path in paths]),
        worst_z=max(scores) if scores else None,
        own_initializer=traits.own_initializer,
        own_std=traits.own_std,
        own_measured_std=None,
        advised=traits.advised,
        advised_std=traits.advised_std,
        parameters=traits.parameters,
        leaves=leaves,
    )


def _leaf(path: str, found: Measured, law: Law | None) -> Leaf:
    if not found.n:
        return Leaf(path, None, None, None, None, 0, None, None)
    mean_score = spread_score = None
    # The moments of a fused array are those of a mixture; its slabs are what is checked.
    if law is not None and not law.slabs:
        mean_score = mean_z(law, found.n, found.mean)
        spread_score = spread_z(law, found.n, found.mean, found.variance)
    return Leaf(
        path, found.mean, found.std, found.low, found.high, found.nonfinite,
        mean_score, spread_score,
    )  # fmt: skip


def _pooled_std(parts: Sequence[Measured]) -> float | None:
    """Standard deviation of all entries of several arrays."""
    n = sum(part.n for part in parts)
    if not n:
        return None
    mean = sum(part.n * part.mean for part in parts) / n
    return math.sqrt(sum(part.n * part.second_moment(mean) for part in parts) / n)


def patterns_of(paths: Sequence[str]) -> list[str]:
    """Paths with ``*`` for numbers that tell them apart, each pattern once.

    Example:
        >>> patterns_of(["h_0/kernel", "h_1/kernel", "ln_f/scale", "conv2/kernel"])
        ['h_*/kernel', 'ln_f/scale', 'conv2/kernel']
    """
    members: dict[str, list[str]] = {}
    for path in paths:
        members.setdefault(re.sub(r"\d+", "*", path), []).append(path)
    return [_pattern(alike) for alike in members.values()]


def _pattern(paths: Sequence[str]) -> str:
    """One pattern for paths that differ in numbers only; a number they share is written out."""
    pieces = [re.split(r"(\d+)", path) for path in paths]
    return "".join(
        column[0] if len(set(column)) == 1 else "*" for column in zip(*pieces, strict=True)
    )
