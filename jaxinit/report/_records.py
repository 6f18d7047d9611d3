"""What a report says, as plain values: the terminal and the JSON file show the same records."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from jaxinit.advice import Finding


@dataclasses.dataclass(frozen=True)
class Request:
    """What was asked for on the command line.

    Attributes:
        target: ``module:attribute`` or ``file.py:attribute``; None is the model that ships.
        rules: rules as text, or where to find them; None is the model's own initialization.
        inputs: example inputs as text.
        seed: seed of the key.
        dtype: dtype to draw floating-point leaves in; None leaves it to the model.
        allow: globs of leaves that may hold twins.
        compare: whether to time the model's own init; None decides by size.
    """

    target: str | None = None
    rules: str | None = None
    inputs: tuple[str, ...] = ()
    seed: int = 0
    dtype: str | None = None
    allow: tuple[str, ...] = ()
    compare: bool | None = None


@dataclasses.dataclass(frozen=True)
class Leaf:
    """One array as it was measured.

    Attributes:
        path: canonical path.
        mean: mean of its entries; None when it has none.
        std: their standard deviation.
        low: smallest entry, or modulus when complex.
        high: largest entry, or modulus.
        nonfinite: entries that are infinite or NaN.
        mean_z: standard errors between the mean and the law's; None without chance or law.
        spread_z: the same for the second moment.
    """

    path: str
    mean: complex | float | None
    std: float | None
    low: float | None
    high: float | None
    nonfinite: int
    mean_z: float | None
    spread_z: float | None


@dataclasses.dataclass(frozen=True)
class Kind:
    """Leaves that are drawn alike.

    Attributes:
        patterns: paths of its leaves, with ``*`` for the numbers that tell layers apart.
        shape: shape of each leaf.
        dtype: dtype of each leaf.
        initializer: what drew them; None when the model did and its law is unknown.
        role: what the model does with them; None where it was not read.
        fan_in: inputs that one output sums over, as it was read, or else as the initializer has it;
            None where there is none.
        fan_out: outputs that one input feeds.
        expected_std: standard deviation in the law; None without one.
        measured_std: standard deviation of the entries of all leaves; None without entries.
        worst_z: z-score of largest size among its leaves; None without chance.
        own_initializer: what the model itself would use, where rules replace it and it is known.
        own_std: standard deviation in the law of that.
        own_measured_std: standard deviation of what the model drew itself, where rules replace it
            and it was drawn for comparison.
        advised: what the advice would draw; None without advice.
        advised_std: standard deviation in the law of that.
        parameters: whether they are parameters, and not other variables of the model.
        leaves: its members.
    """

    patterns: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: str
    initializer: str | None
    role: str | None
    fan_in: float | None
    fan_out: float | None
    expected_std: float | None
    measured_std: float | None
    worst_z: float | None
    own_initializer: str | None
    own_std: float | None
    own_measured_std: float | None
    advised: str | None
    advised_std: float | None
    parameters: bool
    leaves: tuple[Leaf, ...]


@dataclasses.dataclass(frozen=True)
class Timing:
    """Wall time of one stage.

    Attributes:
        stage: what was done.
        seconds: how long it took.
    """

    stage: str
    seconds: float


@dataclasses.dataclass(frozen=True)
class Read:
    """What the model does with one leaf.

    Attributes:
        path: canonical path.
        role: ``"kernel"``, ``"bias"``, ``"embedding"``, ...
        fan_in: products that one output sums over; None where the role has none.
        fan_out: outputs that one input feeds.
    """

    path: str
    role: str
    fan_in: float | None
    fan_out: float | None


@dataclasses.dataclass(frozen=True)
class Total:
    """How much of something there is.

    Attributes:
        leaves: number of arrays.
        entries: number of entries.
        nbytes: bytes.
    """

    leaves: int
    entries: int
    nbytes: int


@dataclasses.dataclass(frozen=True)
class Environment:
    """Where the report was made: versions and device."""

    jaxinit: str
    jax: str
    flax: str
    python: str
    device: str
    cores: int


@dataclasses.dataclass(frozen=True)
class Report:
    """All that a report says.

    Attributes:
        model: name of the class of the model.
        framework: ``"Linen"`` or ``"NNX"``.
        target: how it was named.
        inputs: example inputs that it was traced with.
        rules: where the rules came from; None for the model's own initialization.
        seed: seed of the key.
        environment: versions and device.
        parameters: how many parameters there are.
        others: how many other variables, such as running means.
        kinds: the leaves, by how they are drawn, largest first.
        timings: wall times, in order.
        no_reading: why the forward pass was not read; None where it was.
        reading: what the model does with each leaf; None where it was not read.
        advice: what `jaxinit advise` says of each, as it writes it; None with the reading.
        findings: what to look at, the most severe first.
    """

    model: str
    framework: str
    target: str
    inputs: str
    rules: str | None
    seed: int
    environment: Environment
    parameters: Total
    others: Total
    kinds: tuple[Kind, ...]
    timings: tuple[Timing, ...]
    no_reading: str | None
    reading: tuple[Read, ...] | None
    advice: Mapping[str, Any] | None
    findings: tuple[Finding, ...]
