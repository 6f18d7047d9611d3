"""Findings about what is not a hidden kernel: tables, heads, biases."""

from __future__ import annotations

import math
from collections.abc import Iterator

from jaxinit.advice._current import Currents
from jaxinit.advice._findings import Finding
from jaxinit.advice._recipes import inverse_sqrt_width
from jaxinit.advice._situation import Situation, Subject
from jaxinit.advice._wiring import SUMS

# From here on the logits of a fresh model are surely, and wrongly, opinionated: their standard
# deviation is 2, the loss about 2 above that of equal odds.
_LOGITS = 4.0
# The largest share that a critical pair gives to the bias is 0.28, for SiLU.
_SHARE = 0.5


def embedding_scale(situation: Situation, currents: Currents) -> Iterator[Finding]:
    """Tables that are too large for a tied head, or out of scale with what follows."""
    for subject in situation.subjects:
        current = currents.get(subject.path)
        if current is None or subject.part not in ("embedding", "tied_embedding"):
            continue
        moment, width = current.second_moment, inverse_sqrt_width(situation, subject) ** -2
        if subject.part == "tied_embedding" and moment * width > _LOGITS:
            yield Finding(
                "embedding-scale",
                "error" if moment * width > 100 else "warning",
                (subject.path,),
                f"The table is also the head: a standard deviation of {math.sqrt(moment):.3g} at "
                f"{width:.0f} features gives logits of {math.sqrt(moment * width):.3g}.",
                f"Draw it with a standard deviation of {1 / math.sqrt(width):.3g}, d^-1/2.",
                "Takase 2023, section 4",
            )
        elif subject.part == "embedding" and not 0.1 <= math.sqrt(moment) <= 10 and moment:
            too = "small" if moment < 1 else "large"
            yield Finding(
                "embedding-scale",
                "info" if too == "small" else "warning",
                (subject.path,),
                f"A standard deviation of {math.sqrt(moment):.3g} is {too} for a table of its own: "
                + (
                    f"a normalisation behind it multiplies gradients by {moment**-0.5:.3g}."
                    if too == "small"
                    else "it drowns what the branches add."
                ),
                "Draw it with a standard deviation of 1.",
                "Takase 2023, section 4",
            )


def head_scale(situation: Situation, currents: Currents) -> Iterator[Finding]:
    """Heads whose outputs start large."""
    found = []
    for subject in situation.maps:
        current = currents.get(subject.path)
        if current is None or "head" not in subject.parts or subject.use is None:
            continue
        moment = current.second_moment * (subject.use.fan_in or 0.0)
        if moment > _LOGITS:
            found.append((subject.path, moment))
    if found:
        moment = max(moment for _, moment in found)
        yield Finding(
            "head-scale",
            "warning",
            tuple(path for path, _ in found),
            f"Inputs of unit size give outputs with a standard deviation of {math.sqrt(moment):.3g}"
            f": a softmax over them starts about {moment / 2:.3g} above equal odds.",
            "Draw the head with gain 1, or start it at zero.",
            "Glorot 2010, section 2; Yang 2022, appendix D",
        )


def fanless_bias(situation: Situation, currents: Currents) -> Iterator[Finding]:
    """Biases that are as large as what their kernel makes."""
    made = {
        use.output: subject
        for subject in situation.maps
        for use in subject.parameter.uses
        if use.output is not None and subject.path in currents
    }
    found = []
    for subject in situation.subjects:
        current = currents.get(subject.path)
        if (
            current is None
            or subject.part not in ("bias", "head_bias")
            or not current.second_moment > 0
        ):
            continue
        kernel = _kernel_of(situation, subject, made)
        if kernel is None or kernel.use is None:
            continue
        weight = currents[kernel.path].second_moment * (kernel.use.fan_in or 0.0)
        if weight and current.second_moment > _SHARE * weight:
            found.append((subject.path, current.second_moment / weight, kernel.use.fan_in))
    if found:
        _, ratio, fan_in = found[0]
        yield Finding(
            "fanless-bias",
            "warning",
            tuple(path for path, *_ in found),
            f"The bias has {ratio:.2g} times the second moment that its kernel of fan_in "
            f"{fan_in:g} makes of unit inputs: its law does not know the fan.",
            "Start it at zero, or write like_kernel(...) in its rule.",
            "google/flax#3019",
        )


def _kernel_of(situation: Situation, subject: Subject, made: dict[int, Subject]) -> Subject | None:
    """The kernel whose output a bias is added to."""
    for use in subject.parameter.uses:
        if use.operation in SUMS and use.output is not None:
            source = situation.wiring.source_of_sum(use.output, tuple(made))
            if source is not None:
                return made[source]
    return None


def forget_gate_bias(situation: Situation, currents: Currents) -> Iterator[Finding]:
    """Forget gates that start half closed."""
    found = []
    for subject in situation.subjects:
        current = currents.get(subject.path)
        if current is None or subject.part != "forget_bias":
            continue
        start, stop = subject.forget[0]
        if current.mean / (stop - start) < 0.5 and not situation.forget_offset(subject):
            found.append((subject.path, current.mean / (stop - start)))
    if found:
        value = found[0][1]
        kept = 1 / (1 + math.exp(-value))
        yield Finding(
            "forget-gate-bias",
            "warning",
            tuple(path for path, _ in found),
            f"The bias of the forget gate starts at {value:.2g}: the memory keeps {kept:.2g} per "
            f"step, {kept**20:.1g} after 20 steps.",
            "Start it at 1.",
            "Jozefowicz 2015, section 2.2; Gers 2000",
        )
