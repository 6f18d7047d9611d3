"""Questions that a row of the guide can ask of a model and of one of its parameters.

A condition is a value with a text, so that a row can be printed; conditions combine with ``&``,
``|`` and ``~``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from jaxinit.advice._situation import RECTIFIERS, SATURATING, Situation

Test = Callable[[Situation], bool]


@dataclasses.dataclass(frozen=True)
class Condition:
    """A question about a model.

    Attributes:
        text: the question as a claim, such as ``"normalised"``.
        holds: whether the claim is true of a situation.
    """

    text: str
    holds: Test

    def __and__(self, other: Condition) -> Condition:
        return Condition(f"{self.text}, {other.text}", lambda s: self.holds(s) and other.holds(s))

    def __or__(self, other: Condition) -> Condition:
        return Condition(
            f"({self.text} or {other.text})", lambda s: self.holds(s) or other.holds(s)
        )

    def __invert__(self) -> Condition:
        return Condition(f"not {self.text}", lambda s: not self.holds(s))


def activation_is(*names: str) -> Condition:
    """The commonest activation is one of these; parameters such as a slope do not matter."""

    def holds(situation: Situation) -> bool:
        known = situation.activation
        return known is not None and known.name.partition("(")[0] in names

    return Condition(f"activation {' or '.join(names)}", holds)


def at_least(layers: int) -> Condition:
    """As many maps on the longest way."""
    return Condition(f"{layers} layers or more", lambda s: s.depth >= layers)


def _unstable(situation: Situation) -> bool:
    """Whether small deviations of the length grow at the second-moment gain: gelu, silu, mish."""
    known = situation.moments
    return known is not None and known.is_unstable


ALWAYS = Condition("any model", lambda s: True)
NORMALISED = Condition("normalised", lambda s: bool(s.norms))
BATCH_NORM = Condition("batch or group norm", lambda s: bool(s.norms & {"batch", "group"}))
RESIDUAL = Condition("residual", lambda s: s.branches > 0)
PRE_NORM = Condition("normalised before each branch", lambda s: s.norm_first)
POST_NORM = Condition("normalised after each sum", lambda s: s.norm_after and not s.norm_first)
ATTENTION = Condition("attention", lambda s: s.has_attention)
PATCHES = Condition("first map a convolution", lambda s: s.begins_with_convolution)
CONVOLUTIONAL = Condition("convolutional", lambda s: s.has_convolutions)
RECURRENT = Condition("recurrent", lambda s: s.is_recurrent)
PLAIN = ~NORMALISED & ~RESIDUAL & ~RECURRENT & ~ATTENTION
PLAIN = Condition("plain", PLAIN.holds)
RECTIFIED = activation_is(*RECTIFIERS)
SATURATED = activation_is(*SATURATING)
SIGMOID = activation_is("sigmoid", "hard_sigmoid")
UNSTABLE = Condition("activation with an unstable length", _unstable)
NO_ACTIVATION = Condition("no activation", lambda s: s.activation is None)
