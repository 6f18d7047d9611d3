"""How a row of the guide draws a parameter: small functions from facts to an initializer.

A recipe gets the situation and the subject, and answers with an initializer that has the true axes
of the parameter. Numbers that depend on the model (branches, widths, activations) are computed
here; which recipe belongs to which part is data in `guide`.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable
from typing import Any

from jaxinit import activations
from jaxinit.activations import Critical, NotCriticalError
from jaxinit.advice._fitting import Distribution, Mode, at_fans, at_true_fans, by_fans, isometric
from jaxinit.advice._situation import Situation, Subject
from jaxinit.initializers import Initializer, constant, fused, lecun_normal, normal, uniform
from jaxinit.initializers import ones as ones_value
from jaxinit.initializers import zeros as zeros_value

Recipe = Callable[[Situation, Subject], Initializer]
Number = float | Callable[[Situation, Subject], float]


def _value(number: Number, situation: Situation, subject: Subject) -> float:
    return number(situation, subject) if callable(number) else number


def fixed(initializer: Initializer) -> Recipe:
    """The same for every parameter of the part."""
    return lambda situation, subject: initializer


def scaled(
    gain: Number = 1.0, mode: Mode = "fan_in", distribution: Distribution = "truncated_normal"
) -> Recipe:
    """Variance ``gain**2`` over the true fan."""

    def recipe(situation: Situation, subject: Subject) -> Initializer:
        # Rounded, since sqrt(2)**2 is not 2, and equal laws should be equal values.
        variance = float(f"{_value(gain, situation, subject) ** 2:.6g}")
        fitted = by_fans(subject, variance, mode, distribution)
        assert subject.use is not None
        at_true = at_fans(variance, mode, subject.use) * (subject.use.fan_in or 0.0)
        return at_true_fans(subject, fitted, at_true)

    return recipe


def orthogonal(gain: Number = 1.0) -> Recipe:
    """An orthogonal map times a gain."""

    def recipe(situation: Situation, subject: Subject) -> Initializer:
        factor = _value(gain, situation, subject)
        variance = float(f"{factor * factor:.6g}")
        return at_true_fans(subject, isometric(subject, factor, variance), variance)

    return recipe


def gaussian(stddev: Number) -> Recipe:
    """Normal entries of a standard deviation whatever the fans."""

    def recipe(situation: Situation, subject: Subject) -> Initializer:
        std = _value(stddev, situation, subject)
        return normal(float(f"{std:.6g}")) if std else zeros_value

    return recipe


zeros = fixed(zeros_value)
ones = fixed(ones_value)


def own_gain(situation: Situation, subject: Subject) -> float:
    """The gain of the activation that the map's output meets."""
    return situation.gain(subject)


def relu_gain(situation: Situation, subject: Subject) -> float:
    """sqrt(2 / (1 + a^2)) for the slope a, 1 for a map that meets no activation.

    Where several meet, and behind a map whose output is normalised at once, so that the gain sets
    the gradient alone, it is the sqrt 2 of a rectifier.
    """
    after = subject.use.after if subject.use else None
    if subject.activation is not None:
        return situation.gain(subject)
    return 1.0 if subject.is_linear and not (after and after.normalisation) else math.sqrt(2)


def behind_norm(situation: Situation, subject: Subject) -> float:
    """1 for a map whose branch begins with a normalisation, else the gain of its activation.

    A normalised input has unit size already, and the next map answers for the activation.
    """
    if subject.branch is not None and subject.branch.has_norm:
        return 1.0
    return situation.gain(subject)


def linear_gain(situation: Situation, subject: Subject) -> float:
    """1 / |f'(0)|: the gain that makes the activation isometric for small signals."""
    function = subject.activation or situation.activation
    if function is None:
        return 1.0
    # In float32 a difference over 2e-4 is right to five digits, also for sin(30 x).
    slope = (float(function.function(1e-4)) - float(function.function(-1e-4))) / 2e-4
    return float(f"{1 / abs(slope):.5g}") if abs(slope) > 1e-3 else 1.0


def per_branch(situation: Situation, subject: Subject) -> float:
    """1 / sqrt of the number of branches that are added to the stream."""
    count = subject.branch.count if subject.branch else situation.branches
    return 1 / math.sqrt(max(count, 1))


def fixup_gain(situation: Situation, subject: Subject) -> float:
    """Gain of the activation times L^(-1/(2m - 2)), for L branches of m maps."""
    branch = subject.branch
    if branch is None or branch.depth < 2:
        return situation.gain(subject)
    return situation.gain(subject) * branch.count ** (-1 / (2 * branch.depth - 2))


def deepnorm_gain(situation: Situation, subject: Subject) -> float:
    """(8 N)^(-1/4), N the number of layers of two branches each."""
    return (8 * max(situation.branches / 2, 1)) ** -0.25


def tfixup_gain(situation: Situation, subject: Subject) -> float:
    """0.67 N^(-1/4), N the number of layers of two branches each."""
    return 0.67 * max(situation.branches / 2, 1) ** -0.25


def inverse_sqrt_width(situation: Situation, subject: Subject) -> float:
    """d^(-1/2), d the features of an embedding."""
    shape = subject.parameter.shape
    produced = subject.parameter.uses[0].produced if subject.parameter.uses else ()
    is_table = subject.parameter.role == "embedding" and produced
    width = math.prod(shape[axis] for axis in produced) if is_table else shape[-1]
    return 1 / math.sqrt(max(width, 1))


def half_of_embedding(situation: Situation, subject: Subject) -> float:
    """Half of what the token embedding starts from, as in the code released with GPT-2."""
    tied = any("tied_embedding" in other.parts for other in situation.subjects)
    return 0.5 * (inverse_sqrt_width(situation, subject) if tied else 1.0)


def layer_scale(situation: Situation, subject: Subject) -> Initializer:
    """0.1 up to 18 layers, 1e-5 up to 24 and 1e-6 beyond; a transformer's have two branches."""
    branches = subject.branch.count if subject.branch else situation.branches
    layers = branches / 2 if situation.has_attention else branches
    return constant(0.1 if layers <= 18 else 1e-5 if layers <= 24 else 1e-6)


def critical_pair(situation: Situation) -> Critical | None:
    """The pair of variances that keeps length and correlation; None where there is none."""
    known = situation.activation
    return None if known is None else _critical(known.name, known.function)


@functools.lru_cache(maxsize=64)
def _critical(name: str, activation: Callable[[Any], Any]) -> Critical | None:
    for function in (name, activation):
        try:
            return activations.critical(function)
        except NotCriticalError:
            return None
        except (ValueError, TypeError):
            continue
    return None


def critical_kernel(situation: Situation, subject: Subject) -> Initializer:
    """C_W over fan_in; in the first layer what brings inputs of second moment 1 to q*."""
    pair = critical_pair(situation)
    if pair is None:
        return scaled(own_gain)(situation, subject)
    variance = pair.weight_variance
    if "first" in subject.parts and pair.variance > pair.bias_variance:
        variance = pair.variance - pair.bias_variance
    return scaled(math.sqrt(variance))(situation, subject)


def critical_bias(situation: Situation, subject: Subject) -> Initializer:
    """N(0, C_b) where a critical pair is known."""
    pair = critical_pair(situation)
    return gaussian(math.sqrt(pair.bias_variance) if pair else 0.0)(situation, subject)


def siren(situation: Situation, subject: Subject) -> Initializer:
    """U(+-1/n) in the first layer and U(+-sqrt(6/n) / w0) in the others."""
    fan_in = subject.use.fan_in if subject.use and subject.use.fan_in else 1.0
    if "first" in subject.parts:
        bound = float(f"{1 / fan_in:.9g}")
        return uniform(minval=-bound, maxval=bound)
    return scaled(lambda s, t: math.sqrt(2) * linear_gain(s, t), "fan_in", "uniform")(
        situation, subject
    )


def forget_one(situation: Situation, subject: Subject) -> Initializer:
    """1 where a forget gate reads the bias, 0 elsewhere in a packed one."""
    (start, stop), size = subject.forget[0], subject.parameter.shape[-1]
    cuts = [round(share * size) for share in (0.0, start, stop, 1.0)]
    sizes = [b - a for a, b in itertools.pairwise(cuts)]
    parts = [(zeros_value, sizes[0]), (ones_value, sizes[1]), (zeros_value, sizes[2])]
    kept = [(part, count) for part, count in parts if count]
    if len(kept) == 1:
        return ones_value
    return fused([part for part, _ in kept], [count for _, count in kept])


def state(situation: Situation, subject: Subject) -> Initializer:
    """1 for a running variance, by its name, and 0 for all other state."""
    return ones_value if subject.path.rpartition("/")[2] in ("var", "variance") else zeros_value


def guess(situation: Situation, subject: Subject) -> Initializer:
    """What could not be read: LeCun by the shape alone, zeros for a vector."""
    if len(subject.parameter.shape) < 2:
        return zeros_value
    return lecun_normal()


def policy_head(situation: Situation, subject: Subject) -> Initializer:
    """Orthogonal with gain 1 for a value of one output, 0.01 for a policy of several."""
    single = subject.use is not None and subject.use.fan_out == 1
    return orthogonal(1.0 if single else 0.01)(situation, subject)
