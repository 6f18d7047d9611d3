"""Findings about single kernels: fans, twins, products of zeros, parts that are not there."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from jaxinit.advice._current import Current, Currents
from jaxinit.advice._findings import Finding
from jaxinit.advice._gradients import without_gradient
from jaxinit.advice._situation import Situation, Subject
from jaxinit.advice._zeros import stuck
from jaxinit.initializers import Fans, compute_fans
from jaxinit.reading._compare import compare_fans

# Different values in a draw of many entries, measured for the laws of JAX: uniform numbers of so
# many bits, 7 in bfloat16 (127 or 128) and 10 in float16 (998 to 1024), pushed through a quantile
# function and scaled. Fewer are codes, signs or constants, and float32 has 2**23.
_NARROW = {"bfloat16": (100, 160), "float16": (900, 1100)}


def wrong_fans(situation: Situation, currents: Currents) -> Iterator[Finding]:
    """Kernels drawn by fans that are not theirs; from arrays where the size gives it away."""
    known = {p: c.initializer for p, c in currents.items() if c.initializer is not None}
    if known:
        for difference in compare_fans(situation.reading, known):
            factor = difference.factor
            if factor is None or math.isclose(factor, 1, rel_tol=0.02):
                continue
            yield _fans(difference.path, difference.implied, difference.true, math.sqrt(factor))
    for subject in situation.maps:
        current = currents.get(subject.path)
        if current is None or current.initializer is not None or subject.pieces:
            continue
        guess = _guessed_fans(subject, current)
        if guess is not None:
            yield _fans(subject.path, *guess)


def _fans(path: str, implied: Fans, true: Fans, ratio: float) -> Finding:
    return Finding(
        "wrong-fans",
        "error" if not 0.5 <= ratio <= 2 else "warning",
        (path,),
        f"Drawn with fans {implied.fan_in:g} and {implied.fan_out:g}, while the model contracts "
        f"{true.fan_in:g} and feeds {true.fan_out:g}: {ratio:.3g} of the standard deviation.",
        "Use the rules of the advice, or pass in_axis, out_axis and batch_axis.",
        "He 2015, section 2.2",
    )


def _guessed_fans(subject: Subject, current: Current) -> tuple[Fans, Fans, float] | None:
    """Whether an array fits a well-known gain by the shape's own axes, and not by the true ones."""
    use, shape = subject.use, subject.parameter.shape
    if use is None or not use.fan_in or not use.fan_out or len(shape) < 2 or not current.std > 0:
        return None
    implied, true = compute_fans("audit", shape), Fans(use.fan_in, use.fan_out)
    if not implied.fan_in or math.isclose(implied.fan_in, true.fan_in, rel_tol=0.1):
        return None
    # 5 sigma of the variance of n Gaussian entries, and 2 % for truncated laws.
    slack = 0.02 + 5 * math.sqrt(2 / math.prod(shape))
    fits = {scale: scale / current.std**2 for scale in (1.0, 2.0)}
    if any(math.isclose(fan, true.fan_in, rel_tol=slack) for fan in fits.values()):
        return None
    for fan in fits.values():
        if math.isclose(fan, implied.fan_in, rel_tol=slack):
            return implied, true, math.sqrt(true.fan_in / implied.fan_in)
    return None


def twins(situation: Situation, currents: Currents) -> Iterator[Finding]:
    """Hidden kernels of one constant: their units stay copies of each other."""
    found = [
        subject
        for subject in situation.maps
        if (current := currents.get(subject.path)) is not None
        and current.is_constant
        and not current.is_zero
        and (subject.use and (subject.use.fan_out or 0) > 1)
        and "head" not in subject.parts
    ]
    if found:
        value = currents[found[0].path].mean
        units = found[0].use.fan_out if found[0].use else 0
        yield Finding(
            "twins",
            "error",
            tuple(subject.path for subject in found),
            f"Every entry is {value:.4g}: the {units:g} units of a layer compute the same, get the "
            "same gradient and stay one unit, whatever the training.",
            "Draw the kernel at random, with the rules of the advice.",
            "Goodfellow 2016, section 8.4",
        )


def zero_product(situation: Situation, currents: Currents) -> Iterator[Finding]:
    """Zero kernels that never get a gradient, since what they are multiplied with is zero too."""
    zero = {
        subject.path
        for subject in situation.maps
        if subject.path in currents and currents[subject.path].is_zero
    }
    others = {p for p, c in currents.items() if c.is_zero and p not in zero}
    dead = [path for path in stuck(situation.reading, zero | others) if path in zero]
    if not dead:
        return
    if len(dead) == 1:
        text = "It is zero and gets no gradient: what follows it passes none at zero."
    else:
        text = (
            f"{len(dead)} kernels are zero that are multiplied with each other: the gradient of "
            "each is a product with another zero, so none of them ever moves."
        )
    yield Finding(
        "zero-product",
        "error",
        tuple(dead),
        text,
        "Start one factor at zero and the other at random, as LoRA does with B and A.",
        "Hu 2021 (LoRA), section 4.1",
    )


def unused(situation: Situation, currents: Currents) -> Iterator[Finding]:
    """Parameters that no output depends on."""
    paths = tuple(p.path for p in situation.reading if p.role == "unused")
    if paths:
        yield Finding(
            "unused",
            "warning",
            paths,
            f"{len(paths)} {'parameter has' if len(paths) == 1 else 'parameters have'} no way to "
            "an output: no gradient, and memory in every copy of the model and its optimizer.",
            "Remove it, or call the part of the model that uses it.",
            "the reading",
        )


def no_gradient(situation: Situation, currents: Currents) -> Iterator[Finding]:
    """Parameters that act on the output only through a choice, such as a router's argmax."""
    found = without_gradient(situation.reading, situation.wiring)
    if found:
        stops = " and ".join(dict.fromkeys(found.values()))
        yield Finding(
            "no-gradient",
            "warning",
            tuple(found),
            f"The outputs depend on {'it' if len(found) == 1 else 'them'} through {stops} alone, "
            "which passes no gradient: whatever is drawn stays as it is.",
            "Multiply what is chosen by its softmax or sigmoid weight.",
            "Shazeer 2017, section 2.1; Fedus 2021, section 2.1",
        )


def not_understood(situation: Situation, currents: Currents) -> Iterator[Finding]:
    """Parameters whose use stopped the reading."""
    found = situation.reading.unknown
    if found:
        yield Finding(
            "not-understood",
            "warning",
            tuple(parameter.path for parameter in found),
            f"The reading stopped at {found[0].why or 'an unknown equation'}: fans and role are "
            "not known.",
            "Check these rules by hand; they go by the shape alone.",
            "the reading",
        )


def low_precision(situation: Situation, currents: Currents) -> Iterator[Finding]:
    """Arrays with as few values as a draw in 16 bits has, whatever their dtype is now."""
    found = [(path, c, name) for path, c in currents.items() if (name := _drawn_in(c.counts))]
    if found:
        _, current, name = found[0]
        values, entries = len(current.counts), sum(current.counts)
        drift = f"mean {current.mean / current.std:+.3f} standard deviations"
        yield Finding(
            "low-precision",
            "warning",
            tuple(path for path, *_ in found),
            f"{values} different values besides 0 in {entries:,} entries, {drift}: "
            f"sampled in {name}, where the tails are missing and the mean is off.",
            "Draw in float32 and cast once, as every initializer of jaxinit does.",
            "measured; NVIDIA-NeMo/Automodel#2450",
        )


def _drawn_in(counts: Sequence[int]) -> str | None:
    """The dtype of 16 bits in which an array was drawn, by how often each value is there.

    Draws take equally likely values, so that the counts scatter like their root. Tables that
    repeat a range have equal counts, quantised weights a bell of them.
    """
    values, entries = len(counts), sum(counts)
    for name, (least, most) in _NARROW.items():
        if least <= values <= most and entries >= 16 * values:
            each = entries / values
            # Mean 1; its standard deviation sqrt(2 / values) is 0.14 for 100 values and less for
            # more, so 0.3 is 5 sigma below. Above, 4 leaves room for values that rounding merged.
            scatter = sum((count - each) ** 2 for count in counts) / each / values
            return name if 0.3 < scatter < 4 else None
    return None


def nonfinite(situation: Situation, currents: Currents) -> Iterator[Finding]:
    """Arrays that hold infinities or NaN."""
    found = [(path, c.nonfinite) for path, c in currents.items() if c.nonfinite]
    if found:
        count = sum(number for _, number in found)
        yield Finding(
            "nonfinite",
            "error",
            tuple(path for path, _ in found),
            f"{count:,} {'entry is' if count == 1 else 'entries are'} infinite or NaN.",
            "Draw them again, or load a sound checkpoint.",
            "the measurement",
        )
