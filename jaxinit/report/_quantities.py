"""Measured against declared: moments of an array beside those of its law, with z-scores.

A z-score counts standard errors. Over n independent entries the mean has standard error
``std / sqrt(n)``, and the second moment about the declared mean has
``variance * sqrt((kurtosis - 1) / n)``.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from jaxinit.initializers import Law


@dataclasses.dataclass(frozen=True)
class Quantity:
    """One number, as it was declared and as it was measured.

    Attributes:
        name: what it is.
        declared: its value in the law; NaN where the law has none.
        measured: its value in the array; None where the array is empty.
        z: the difference in standard errors; None where chance has no part in it.
    """

    name: str
    declared: complex | float
    measured: complex | float | None
    z: float | None = None


def quantities(values: np.ndarray, law: Law, *, random: bool = True) -> tuple[Quantity, ...]:
    """Moments and ends of an array beside those of its law.

    Args:
        values: the array, as float64 or complex128.
        law: what was declared of it.
        random: whether a key decided it; z-scores say nothing of an array that is always the same.

    Example:
        >>> from jaxinit.initializers import ones
        >>> quantities(np.ones(4), ones.law((4,)))[0]
        Quantity(name='mean', declared=1.0, measured=1.0, z=None)
    """
    modulus = "|x|" if np.iscomplexobj(values) else "x"
    declared = {
        "mean": law.mean,
        "std": law.std,
        "kurtosis": law.kurtosis,
        f"smallest {modulus}": law.support[0],
        f"largest {modulus}": law.support[1],
    }
    if not values.size:
        return tuple(Quantity(name, number, None) for name, number in declared.items())
    mean = values.mean().item()
    squares = np.abs(values - mean) ** 2
    variance = float(squares.mean())
    kurtosis = float((squares**2).mean()) / variance**2 if variance**2 else math.nan
    ends = np.abs(values) if np.iscomplexobj(values) else values
    measured = (mean, math.sqrt(variance), kurtosis, float(ends.min()), float(ends.max()))
    scores: tuple[float | None, ...] = (None, None)
    if random:
        scores = (mean_z(law, values.size, mean), spread_z(law, values.size, mean, variance))
    return tuple(
        Quantity(name, number, found, z)
        for (name, number), found, z in zip(
            declared.items(), measured, (*scores, None, None, None), strict=True
        )
    )


def mean_z(law: Law, n: int, mean: complex | float) -> float | None:
    """Standard errors between a measured mean and the law's; unsigned for complex numbers."""
    if not n or law.variance == 0:
        return None
    distance = mean - law.mean
    signed = abs(distance) if isinstance(distance, complex) else float(distance)
    return signed / law.std * math.sqrt(n)


def spread_z(law: Law, n: int, mean: complex | float, variance: float) -> float | None:
    """Standard errors between a measured second moment and the law's; None where it is fixed."""
    if not n or law.variance == 0 or law.fixed_norm or not law.kurtosis > 1:
        return None
    second_moment = variance + abs(mean - law.mean) ** 2
    return (second_moment / law.variance - 1) / math.sqrt((law.kurtosis - 1) / n)
