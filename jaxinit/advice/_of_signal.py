"""Findings about the signal on its way through the layers: too small, too large, or unstable."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence

from jaxinit.advice import _conditions as c
from jaxinit.advice._current import Current, Currents
from jaxinit.advice._findings import Finding
from jaxinit.advice._situation import Situation, Subject, moments_of
from jaxinit.advice._streams import stream_start

_RULES = "Use the rules of the advice."


@dataclasses.dataclass(frozen=True)
class _Walk:
    """Second moments along a plain chain.

    Attributes:
        forward: of the last pre-activation over the first.
        backward: of the gradient at the first over the last.
        steps: layers between the two.
        leaves: the kernels on the way.
    """

    forward: float
    backward: float
    steps: int
    leaves: tuple[str, ...]


def _chain(situation: Situation) -> list[Subject]:
    """One kernel for each depth of a plain model, without the head."""
    layers: dict[int, Subject] = {}
    for subject in situation.hidden:
        if subject.use and subject.use.depth:
            layers.setdefault(subject.use.depth, subject)
    chain = []
    for _, subject in sorted(layers.items()):
        assert subject.use is not None
        chain += [subject] * (subject.use.times or 1)
    return chain


def _walk(situation: Situation, currents: Currents) -> _Walk | None:
    """Follows a signal of second moment 1 through the chain."""
    chain = _chain(situation)
    if len(chain) < 2 or any(subject.path not in currents for subject in chain):
        return None
    incoming, first, backward, q = 1.0, None, 1.0, 0.0
    for number, subject in enumerate(chain):
        weight = _weight(subject, currents[subject.path])
        if number:
            met = chain[number - 1].activation
            known = None if met is None else moments_of(met, q)
            incoming = known.second_moment if known else q
            slope = known.derivative_second_moment if known else 1.0
            backward *= weight * slope if math.isfinite(slope) else 1.0
        q = float(f"{weight * incoming:.6g}")
        if not 1e-60 < q < 1e60:
            break
        first = q if first is None else first
    if first is None:
        return None
    leaves = tuple(dict.fromkeys(subject.path for subject in chain))
    return _Walk(max(q, 1e-300) / first, backward, len(chain) - 1, leaves)


def _weight(subject: Subject, current: Current) -> float:
    """Variance of a weight times the true fan_in."""
    assert subject.use is not None
    return current.second_moment * (subject.use.fan_in or 0.0)


def gain_mismatch(situation: Situation, currents: Currents) -> Iterator[Finding]:
    """Plain networks whose signal or gradient shrinks or grows by a factor in every layer."""
    if not c.PLAIN.holds(situation) or c.SIGMOID.holds(situation):
        return
    walk = _walk(situation, currents)
    if walk is None:
        return
    # On the edge of chaos lengths shrink like 1 / depth, which is no mismatch; and in a shallow
    # network most random weights will do.
    deep = walk.steps >= 3
    low, high = (1 / (4 * (walk.steps + 1)), 16.0) if deep else (1e-6, 100.0)
    name = situation.activation.name if situation.activation else "linear layers"
    wanted = situation.gain(_chain(situation)[0])
    for what, total in (("signal", walk.forward), ("gradient", walk.backward)):
        if low <= total <= high:
            continue
        each = total ** (1 / walk.steps)
        verb = "halves" if abs(each - 0.5) < 0.02 else f"is multiplied by {each:.3g}"
        yield Finding(
            "gain-mismatch",
            "error" if abs(math.log2(max(total, 1e-300))) > 20 else "warning",
            walk.leaves,
            f"The second moment of the {what} {verb} per layer, "
            f"2^{math.log2(max(total, 1e-300)):.0f} after {walk.steps + 1} layers of {name}, whose "
            f"gain is {wanted:.4g}.",
            _RULES,
            "He 2015, section 2.2",
        )
        return


def unstable_gain(situation: Situation, currents: Currents) -> Iterator[Finding]:
    """Deep plain networks at the second-moment gain of GELU, SiLU, Mish."""
    if not (c.PLAIN & c.UNSTABLE & c.at_least(9)).holds(situation):
        return
    known, hidden = situation.moments, situation.hidden
    if known is None or not hidden:
        return
    drawn = [_weight(s, currents[s.path]) for s in hidden if s.path in currents]
    near = [w for w in drawn if math.isclose(w, known.forward_gain**2, rel_tol=0.1)]
    if drawn and len(near) * 2 < len(drawn):
        return
    slope, depth = known.slope, situation.depth
    yield Finding(
        "unstable-gain",
        "warning" if drawn else "info",
        tuple(subject.path for subject in hidden),
        f"The gain {known.forward_gain:.4g} of {known.name} is an unstable fixed point: a "
        f"deviation of the length grows by {slope:.4g} per layer, {slope**depth:.3g} times over "
        f"{depth}.",
        "Take the critical pair of the advice, or add normalisation layers.",
        "Roberts 2021, section 5.3",
    )


def deep_sigmoid(situation: Situation, currents: Currents) -> Iterator[Finding]:
    """Sigmoids between five maps or more, without normalisation."""
    ask = c.SIGMOID & c.at_least(5) & ~c.NORMALISED & ~c.RESIDUAL & ~c.RECURRENT & ~c.ATTENTION
    if not ask.holds(situation):
        return
    plain = [s for s in situation.maps if not s.is_bypass]
    met = [s for s in plain if s.activation and s.activation.name == "sigmoid"]
    known = situation.moments
    if not met or known is None:
        return
    drawn = [_weight(s, currents[s.path]) for s in met if s.path in currents]
    weight = sum(drawn) / len(drawn) if drawn else 1.0
    each = weight * known.derivative_second_moment
    yield Finding(
        "deep-sigmoid",
        "error" if situation.depth >= 10 and each < 0.5 else "warning",
        tuple(subject.path for subject in met),
        f"{situation.depth} layers of sigmoids: the second moment of the gradient is multiplied by "
        f"about {each:.2g} per layer, {each**situation.depth:.1g} in all.",
        "Use tanh or ReLU, or normalise; no initializer repairs it.",
        "Glorot 2010, section 3.1",
    )


def narrow_for_depth(situation: Situation, currents: Currents) -> Iterator[Finding]:
    """Plain networks that are narrow for their depth: draws differ by large factors."""
    width, depth = situation.width, situation.depth
    if not c.PLAIN.holds(situation) or width is None or depth < 5 or width >= 10 * depth:
        return
    spread = 5 * (depth - 1) / width
    yield Finding(
        "narrow-for-depth",
        "warning",
        (),
        f"{depth} layers of width {width:.4g}: the log of the last second moment has variance "
        f"{spread:.2g}, so the typical draw has exp(-{spread / 2:.2g}) of the mean.",
        f"Use a width of {10 * depth} or more, residual sums, or orthogonal kernels.",
        "Hanin 2018, theorem 5",
    )


def residual_growth(situation: Situation, currents: Currents) -> Iterator[Finding]:
    """Residual branches that add so much that the stream grows."""
    lasts = [s for s in situation.maps if "residual_output" in s.parts and s.path in currents]
    if not lasts or situation.norm_after or situation.is_recurrent:
        return
    sizes = [_branch_size(situation, currents, subject) for subject in lasts]
    mean, count = sum(sizes) / len(sizes), situation.branches
    leaves = tuple(subject.path for subject in lasts)
    said = f"{count} branches each add" if count > 1 else "1 branch adds"
    if situation.norms:
        known = stream_start(situation, currents)
        start = 1.0 if known is None else known
        severity, is_found = "info", count * mean > 8 * max(start, 1)
        said += (
            f" a second moment of about {mean:.2g}, for inputs of 1 behind a normalisation: a "
            f"stream that starts at {start:.3g}{'' if known is None else ', as its table does,'} "
            f"grows to {start:.3g} + {count} x {mean:.2g} = {start + count * mean:.3g}."
        )
    else:
        bits = count * math.log2(1 + mean)
        severity, is_found = ("error" if bits > 20 else "warning"), bits > 4
        said += (
            f" about {mean:.2g} of the stream's second moment, which grows to "
            f"(1 + {mean:.2g})^{count} = 2^{bits:.0f}."
        )
    if is_found:
        yield Finding(
            "residual-growth",
            severity,
            leaves,
            said,
            "Scale the last map of every branch, or start it at zero.",
            "Zhang 2019, section 2; Radford 2019, section 2.3",
        )


def _branch_size(situation: Situation, currents: Currents, last: Subject) -> float:
    """Second moment of what a branch adds, for an input of second moment 1; an upper bound."""
    assert last.use is not None
    own = [s for s in situation.hidden if _same_branch(s, last) and s.path in currents]
    by_depth: dict[int, list[Subject]] = {}
    for subject in own:
        if "query_key" not in subject.parts[:1] or subject.pieces:
            by_depth.setdefault(subject.use.depth or 0 if subject.use else 0, []).append(subject)
    moment = 1.0
    for _, together in sorted(by_depth.items()):
        moment = _together(together, currents, moment)
    for scale in situation.subjects:
        if scale.part != "branch_scale" or scale.path not in currents or last.branch is None:
            continue
        branches = (use.branch for use in scale.parameter.uses)
        if any(branch and branch.index == last.branch.index for branch in branches):
            moment *= currents[scale.path].second_moment
    return moment * _weight(last, currents[last.path])


def _same_branch(subject: Subject, last: Subject) -> bool:
    """Whether a map lies in the branch that another ends, before it."""
    one, other = subject.branch, last.branch
    if one is None or other is None or subject.path == last.path or one.is_last:
        return False
    apart = (last.use.depth or 0) - (subject.use.depth or 0) if subject.use and last.use else 0
    return (one.index, one.count) == (other.index, other.count) and 0 <= apart <= other.depth


def _together(subjects: Sequence[Subject], currents: Currents, moment: float) -> float:
    """Second moment after maps of one depth: gates multiply, others run side by side."""
    results, gated = [], False
    for subject in subjects:
        q = _weight(subject, currents[subject.path]) * moment
        known = moments_of(subject.activation, q) if subject.activation and q > 0 else None
        results.append(known.second_moment if known else q)
        after = subject.use.after if subject.use else None
        gated |= bool(after and after.gates)
    return math.prod(results) if gated else max(results)
