"""What a person should look at before training: the record of a finding, and the table of checks.

A check is a function of the facts of a model and of its present initialization that yields what it
saw. To add one, write it under `check`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Literal, NamedTuple, TypeAlias, get_args

from jaxinit.advice import _guide as guide
from jaxinit.advice._drawing import inverse_sqrt_width
from jaxinit.advice._facts import ModelFacts, ParameterFacts, moments_of
from jaxinit.advice._present import Present, PresentByPath
from jaxinit.advice._reach import is_view, is_view_or_sum, stuck, without_gradient
from jaxinit.initializers import Fans, compute_fans
from jaxinit.jaxpr import PRODUCTS, SUMS, Node, single_number
from jaxinit.reading import compare_fans

Severity = Literal["info", "warning", "error"]
SEVERITIES: tuple[Severity, ...] = get_args(Severity)

# Second moment of logits from which a fresh model is surely, and wrongly, opinionated: their
# standard deviation is 2, the loss about 2 above that of equal odds.
_LOGITS = 4.0
# Second moment of a bias over that of what its kernel makes. The largest that a critical pair asks
# for is 0.28, for SiLU.
_BIAS = 0.5
# How many different values a draw of many entries has, measured for the laws of JAX: uniform
# numbers of so many bits, 7 in bfloat16 (127 or 128) and 10 in float16 (998 to 1024), pushed
# through a quantile function and scaled. Arrays of fewer values are codes, signs or constants, and
# float32 has 2**23.
_NARROW = {"bfloat16": (100, 160), "float16": (900, 1100)}


@dataclasses.dataclass(frozen=True)
class Finding:
    """Something that a person should look at.

    Attributes:
        code: short name of the kind of finding.
        severity: ``"info"``, ``"warning"`` or ``"error"``: it is worth knowing, it costs training,
            or it cannot train.
        leaves: paths of the parameters concerned; empty where it is the whole model.
        evidence: what was found, with numbers.
        remedy: what to do about it.
        source: authors, year, section.
    """

    code: str
    severity: Severity
    leaves: tuple[str, ...]
    evidence: str
    remedy: str
    source: str

    def is_at_least(self, severity: Severity) -> bool:
        """Whether it is as severe as that, or more."""
        return SEVERITIES.index(self.severity) >= SEVERITIES.index(severity)

    def __str__(self) -> str:
        where = f" [{shortened(self.leaves)}]" if self.leaves else ""
        return f"{self.severity} {self.code}{where}: {self.evidence} {self.remedy}"


class Seen(NamedTuple):
    """What a check saw: severity, leaves and evidence of a finding, and a remedy of its own."""

    severity: Severity
    leaves: Iterable[str]
    evidence: str
    remedy: str | None = None


Look: TypeAlias = Callable[[ModelFacts, PresentByPath], Iterator[Seen]]


class Check(NamedTuple):
    """A check: code, remedy and source of its findings, and the function that looks."""

    code: str
    remedy: str
    source: str
    look: Look


CHECKS: list[Check] = []


def check(remedy: str, source: str) -> Callable[[Look], Look]:
    """A decorator that makes a check of a function, whose name with dashes is the code."""

    def add(look: Look) -> Look:
        CHECKS.append(Check(look.__name__.replace("_", "-"), remedy, source, look))
        return look

    return add


def findings_of(model: ModelFacts, present: PresentByPath) -> tuple[Finding, ...]:
    """All findings, the most severe first.

    An array that holds infinities or NaN is shown to `nonfinite` alone: one fault is one finding.

    Args:
        model: facts of the model.
        present: the present initialization.
    """
    sound = {path: now for path, now in present.items() if not now.nonfinite}
    found = []
    for code, remedy, source, look in CHECKS:
        for severity, leaves, evidence, own in look(model, present if look is nonfinite else sound):
            found.append(Finding(code, severity, tuple(leaves), evidence, own or remedy, source))
    return tuple(sorted(found, key=lambda each: -SEVERITIES.index(each.severity)))


def shortened(leaves: Sequence[str], most: int = 3) -> str:
    """The first paths, and how many there are beyond."""
    surplus = len(leaves) - most
    shown = ", ".join(leaves[:most])
    return f"{shown} and {surplus} more" if surplus > 0 else shown


def _drawn(
    parameters: Iterable[ParameterFacts], present: PresentByPath
) -> list[tuple[ParameterFacts, Present]]:
    """Parameters with how they are drawn now, where that is known."""
    return [(p, present[p.path]) for p in parameters if p.path in present]


def _weight(p: ParameterFacts, present: PresentByPath) -> float:
    """Second moment of a weight times the true fan_in."""
    return present[p.path].second_moment * p.fan_in


# Single kernels.


@check("Draw them again, or load a sound checkpoint.", "the measurement")
def nonfinite(model: ModelFacts, present: PresentByPath) -> Iterator[Seen]:
    """Arrays that hold infinities or NaN."""
    found = {path: now.nonfinite for path, now in present.items() if now.nonfinite}
    if found:
        count = sum(found.values())
        yield Seen(
            "error",
            found,
            f"{count:,} {'entry is' if count == 1 else 'entries are'} infinite or NaN.",
        )


@check(
    "Use the rules of the advice, or pass in_axis, out_axis and batch_axis.", "He 2015, section 2.2"
)
def wrong_fans(model: ModelFacts, present: PresentByPath) -> Iterator[Seen]:
    """Kernels drawn by fans that are not theirs; from arrays where the size gives it away."""
    known = {path: now.initializer for path, now in present.items() if now.initializer}
    found = []
    for difference in compare_fans(model.reading, known) if known else ():
        factor = difference.factor
        if factor is not None and not math.isclose(factor, 1, rel_tol=0.02):
            found.append((difference.path, difference.implied, difference.true, math.sqrt(factor)))
    for p, now in _drawn(model.layers, present):
        guess = None if now.initializer or p.pieces else _guessed_fans(p, now)
        if guess is not None:
            found.append((p.path, *guess))
    for path, implied, true, ratio in found:
        yield Seen(
            "error" if not 0.5 <= ratio <= 2 else "warning",
            (path,),
            f"Drawn with fans {implied.fan_in:g} and {implied.fan_out:g}, while the model "
            f"contracts {true.fan_in:g} and feeds {true.fan_out:g}: {ratio:.3g} of the standard "
            "deviation.",
        )


def _guessed_fans(p: ParameterFacts, now: Present) -> tuple[Fans, Fans, float] | None:
    """Fans of the shape and true fans, where an array fits a usual gain by the first alone.

    The third number is the standard deviation that follows over the one of the true fans.
    """
    if not (p.fan_in and p.fan_out and len(p.shape) >= 2 and now.std > 0):
        return None
    implied, true = compute_fans("audit", p.shape), Fans(p.fan_in, p.fan_out)
    if not implied.fan_in or math.isclose(implied.fan_in, true.fan_in, rel_tol=0.1):
        return None
    # 5 sigma of the variance of n Gaussian entries, and 2 % for truncated laws.
    slack = 0.02 + 5 * math.sqrt(2 / math.prod(p.shape))

    def fits(fan_in: float) -> bool:
        return any(math.isclose(scale / now.std**2, fan_in, rel_tol=slack) for scale in (1.0, 2.0))

    if fits(true.fan_in) or not fits(implied.fan_in):
        return None
    return implied, true, math.sqrt(true.fan_in / implied.fan_in)


@check("Draw the kernel at random, with the rules of the advice.", "Goodfellow 2016, section 8.4")
def twins(model: ModelFacts, present: PresentByPath) -> Iterator[Seen]:
    """Hidden kernels of one constant: their units stay copies of each other."""
    found = [
        (p, now)
        for p, now in _drawn(model.layers, present)
        if now.is_constant and not now.is_zero and p.fan_out > 1 and "head" not in p.roles
    ]
    if found:
        p, now = found[0]
        yield Seen(
            "error",
            [p.path for p, _ in found],
            f"Every entry is {now.mean:.4g}: the {p.fan_out:g} units of a layer compute the same, "
            "get the same gradient and stay one unit, whatever the training.",
        )


@check(
    "Start one factor at zero and the other at random, as LoRA does with B and A.",
    "Hu 2021 (LoRA), section 4.1",
)
def zero_product(model: ModelFacts, present: PresentByPath) -> Iterator[Seen]:
    """Zero kernels that never get a gradient, since what they are multiplied with is zero too."""
    zero = {path for path, now in present.items() if now.is_zero}
    layers = {p.path for p in model.layers}
    never = stuck(model.reading, model.graph, zero) if zero & layers else ()
    dead = [path for path in never if path in layers]
    if not dead:
        return
    if len(dead) == 1:
        text = "It is zero and gets no gradient: what follows it passes none at zero."
    else:
        text = (
            f"{len(dead)} kernels are zero that are multiplied with each other: the gradient of "
            "each is a product with another zero, so none of them ever moves."
        )
    yield Seen("error", dead, text)


# The signal through plain networks.


def _chain(model: ModelFacts) -> list[ParameterFacts]:
    """One kernel for each depth of a plain model, without the head."""
    layers: dict[int, ParameterFacts] = {}
    for p in model.hidden:
        if p.depth:
            layers.setdefault(p.depth, p)
    ordered = [layers[depth] for depth in sorted(layers)]
    return [p for p in ordered for _ in range(p.use.times or 1)]


def _growth(chain: Sequence[ParameterFacts], present: PresentByPath) -> tuple[float, float] | None:
    """Follows a signal of second moment 1 through a chain of layers.

    Returns:
        The second moment of the last pre-activation over that of the first, and that of the
        gradient at the first over that at the last; None where the chain has no two layers, or it
        is not known how one of them is drawn.
    """
    if len(chain) < 2 or any(p.path not in present for p in chain):
        return None
    incoming, first, backward, q = 1.0, None, 1.0, 0.0
    for number, p in enumerate(chain):
        weight = _weight(p, present)
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
    return None if first is None else (max(q, 1e-300) / first, backward)


@check("Use the rules of the advice.", "He 2015, section 2.2")
def gain_mismatch(model: ModelFacts, present: PresentByPath) -> Iterator[Seen]:
    """Plain networks whose signal or gradient shrinks or grows by a factor in every layer."""
    if not (guide.PLAIN & ~guide.SIGMOID).holds(model):
        return
    chain = _chain(model)
    growth = _growth(chain, present)
    if growth is None:
        return
    # On the edge of chaos lengths shrink like 1 / depth, which is no mismatch; and in a shallow
    # network most random weights will do.
    count = len(chain)
    low, high = (1 / (4 * count), 16.0) if count > 3 else (1e-6, 100.0)
    name = model.activation.name if model.activation else "linear layers"
    for what, total in zip(("signal", "gradient"), growth, strict=True):
        if low <= total <= high:
            continue
        each, bits = total ** (1 / (count - 1)), math.log2(max(total, 1e-300))
        verb = "halves" if abs(each - 0.5) < 0.02 else f"is multiplied by {each:.3g}"
        yield Seen(
            "error" if abs(bits) > 20 else "warning",
            dict.fromkeys(p.path for p in chain),
            f"The second moment of the {what} {verb} per layer, 2^{bits:.0f} after {count} layers "
            f"of {name}, whose gain is {chain[0].gain:.4g}.",
        )
        return


@check(
    "Take the critical pair of the advice, or add normalisation layers.",
    "Roberts 2021, section 5.3",
)
def unstable_gain(model: ModelFacts, present: PresentByPath) -> Iterator[Seen]:
    """Deep plain networks at the second-moment gain of GELU, SiLU, Mish."""
    known, hidden, depth = model.moments, model.hidden, model.depth
    is_asked = (guide.PLAIN & guide.UNSTABLE & guide.at_least(9)).holds(model)
    if not is_asked or known is None or not hidden:
        return
    drawn = [_weight(p, present) for p, _ in _drawn(hidden, present)]
    near = [w for w in drawn if math.isclose(w, known.forward_gain**2, rel_tol=0.1)]
    if drawn and len(near) * 2 < len(drawn):
        return
    yield Seen(
        "warning" if drawn else "info",
        [p.path for p in hidden],
        f"The gain {known.forward_gain:.4g} of {known.name} is an unstable fixed point: a "
        f"deviation of the length grows by {known.slope:.4g} per layer, "
        f"{known.slope**depth:.3g} times over {depth}.",
    )


@check("Use tanh or ReLU, or normalise; no initializer repairs it.", "Glorot 2010, section 3.1")
def deep_sigmoid(model: ModelFacts, present: PresentByPath) -> Iterator[Seen]:
    """Sigmoids between five layers or more, without normalisation."""
    plain = [p for p in model.layers if not p.is_bypass]
    met = [p for p in plain if p.activation and p.activation.name == "sigmoid"]
    known, depth = model.moments, model.depth
    is_asked = (guide.PLAIN & guide.SIGMOID & guide.at_least(5)).holds(model)
    if not is_asked or not met or known is None:
        return
    drawn = [_weight(p, present) for p, _ in _drawn(met, present)]
    weight = sum(drawn) / len(drawn) if drawn else 1.0
    each = weight * known.derivative_second_moment
    yield Seen(
        "error" if depth >= 10 and each < 0.5 else "warning",
        [p.path for p in met],
        f"{depth} layers of sigmoids: the second moment of the gradient is multiplied by "
        f"about {each:.2g} per layer, {each**depth:.1g} in all.",
    )


@check("", "Hanin 2018, theorem 5")
def narrow_for_depth(model: ModelFacts, present: PresentByPath) -> Iterator[Seen]:
    """Plain networks that are narrow for their depth: draws differ by large factors."""
    width, depth = model.width, model.depth
    if not guide.PLAIN.holds(model) or width is None or depth < 5 or width >= 10 * depth:
        return
    spread = 5 * (depth - 1) / width
    yield Seen(
        "warning",
        (),
        f"{depth} layers of width {width:.4g}: the log of the last second moment has variance "
        f"{spread:.2g}, so the typical draw has exp(-{spread / 2:.2g}) of the mean.",
        f"Use a width of {10 * depth} or more, residual sums, or orthogonal kernels.",
    )


# Residual streams.


@check(
    "Scale the last layer of every branch, or start it at zero.",
    "Zhang 2019, section 2; Radford 2019, section 2.3",
)
def residual_growth(model: ModelFacts, present: PresentByPath) -> Iterator[Seen]:
    """Residual branches that add so much that the stream grows."""
    lasts = [p for p, _ in _drawn(model.layers, present) if "residual_output" in p.roles]
    if not lasts or model.norm_after or model.is_recurrent:
        return
    mean = sum(_branch_size(model, present, p) for p in lasts) / len(lasts)
    count = model.branches
    said = f"{count} branches each add" if count > 1 else "1 branch adds"
    if model.norms:
        known = _stream_start(model, present)
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
        yield Seen(severity, [p.path for p in lasts], said)


def _branch_size(model: ModelFacts, present: PresentByPath, last: ParameterFacts) -> float:
    """Second moment of what a branch adds, for an input of second moment 1; an upper bound."""
    by_depth: dict[int, list[ParameterFacts]] = {}
    for p, _ in _drawn(model.hidden, present):
        if _same_branch(p, last) and ("query_key" not in p.roles[:1] or p.pieces):
            by_depth.setdefault(p.depth, []).append(p)
    moment = 1.0
    for _, together in sorted(by_depth.items()):
        moment = _together(together, present, moment)
    for scale, now in _drawn(model.parameters, present):
        branches = [use.branch for use in scale.parameter.uses if use.branch]
        indices = [branch.index for branch in branches] if scale.role == "branch_scale" else []
        if last.branch and last.branch.index in indices:
            moment *= now.second_moment
    return moment * _weight(last, present)


def _same_branch(p: ParameterFacts, last: ParameterFacts) -> bool:
    """Whether a layer lies in the branch that another ends, before it."""
    one, other = p.branch, last.branch
    if one is None or other is None or p.path == last.path or one.is_last:
        return False
    apart = last.depth - p.depth
    return (one.index, one.count) == (other.index, other.count) and 0 <= apart <= other.depth


def _together(layers: Sequence[ParameterFacts], present: PresentByPath, moment: float) -> float:
    """Second moment after layers of one depth: gates multiply, others run side by side."""
    results = []
    for p in layers:
        q = _weight(p, present) * moment
        known = moments_of(p.activation, q) if p.activation and q > 0 else None
        results.append(known.second_moment if known else q)
    return math.prod(results) if any(p.after.gates for p in layers) else max(results)


def _stream_start(model: ModelFacts, present: PresentByPath) -> float | None:
    """Second moment of what the first branch is added to.

    Returns:
        The sum over the tables that are added up, times constants that the model multiplies with;
        None where the stream starts otherwise, or behind a normalisation or a layer.
    """
    known: dict[int, float] = {}
    added: dict[int, float] = {}
    for p, now in _drawn(model.parameters, present):
        for use in p.parameter.uses:
            if use.role in ("embedding", "position") and use.output is not None:
                (added if use.operation in SUMS else known)[use.output] = now.second_moment
    for node in model.graph.nodes:
        held = [known[atom] for atom in node.inputs if isinstance(atom, int) and atom in known]
        if not held or node.outputs[0] in known:
            continue
        if is_view(node):
            known[node.outputs[0]] = held[0]
        elif node.primitive in PRODUCTS:
            factor = _factor(node)
            if factor is not None:
                known[node.outputs[0]] = held[0] * factor**2
        elif node.primitive in SUMS:
            whole = sum(held)
            if node.outputs[0] in added:
                known[node.outputs[0]] = whole + added[node.outputs[0]]
            elif len(held) == len(node.inputs):
                known[node.outputs[0]] = whole
            else:
                return whole
    return None


def _factor(node: Node) -> float | None:
    """The number that a product or quotient multiplies its other operand with, if there is one."""
    first, second = (None if isinstance(a, int) else single_number(a.val) for a in node.inputs)
    if node.primitive == "div":
        return 1 / second if second else None
    return first or second


# Tables, heads and biases.


@check("Draw it with a standard deviation of 1.", "Takase 2023, section 4")
def embedding_scale(model: ModelFacts, present: PresentByPath) -> Iterator[Seen]:
    """Tables that are too large for a tied head, or out of scale with what follows."""
    for p, now in _drawn(model.parameters, present):
        moment, std = now.second_moment, math.sqrt(now.second_moment)
        if p.role == "tied_embedding":
            width = inverse_sqrt_width(p) ** -2
            if moment * width > _LOGITS:
                yield Seen(
                    "error" if moment * width > 100 else "warning",
                    (p.path,),
                    f"The table is also the head: a standard deviation of {std:.3g} at "
                    f"{width:.0f} features gives logits of {math.sqrt(moment * width):.3g}.",
                    f"Draw it with a standard deviation of {1 / math.sqrt(width):.3g}, d^-1/2.",
                )
        elif p.role == "embedding" and moment and not 0.1 <= std <= 10:
            is_small = moment < 1
            yield Seen(
                "info" if is_small else "warning",
                (p.path,),
                f"A standard deviation of {std:.3g} is {'small' if is_small else 'large'} for a "
                "table of its own: "
                + (
                    f"a normalisation behind it multiplies gradients by {moment**-0.5:.3g}."
                    if is_small
                    else "it drowns what the branches add."
                ),
            )


@check(
    "Draw the head with gain 1, or start it at zero.",
    "Glorot 2010, section 2; Yang 2022, appendix D",
)
def head_scale(model: ModelFacts, present: PresentByPath) -> Iterator[Seen]:
    """Heads whose outputs start large."""
    heads = [p for p, _ in _drawn(model.layers, present) if "head" in p.roles]
    found = {p.path: _weight(p, present) for p in heads if _weight(p, present) > _LOGITS}
    if found:
        moment = max(found.values())
        yield Seen(
            "warning",
            found,
            f"Inputs of unit size give outputs with a standard deviation of {math.sqrt(moment):.3g}"
            f": a softmax over them starts about {moment / 2:.3g} above equal odds.",
        )


@check("Start it at zero, or write like_kernel(...) in its rule.", "google/flax#3019")
def fanless_bias(model: ModelFacts, present: PresentByPath) -> Iterator[Seen]:
    """Biases that are as large as what their kernel makes."""
    made = {
        use.output: p
        for p, _ in _drawn(model.layers, present)
        for use in p.parameter.uses
        if use.output is not None
    }
    found = []
    for p, now in _drawn(model.parameters, present):
        is_bias = p.role in ("bias", "head_bias") and now.second_moment > 0
        kernel = _kernel_of(model, p, made) if is_bias else None
        weight = 0.0 if kernel is None else _weight(kernel, present)
        if kernel is not None and weight and now.second_moment > _BIAS * weight:
            found.append((p.path, now.second_moment / weight, kernel.fan_in))
    if found:
        _, ratio, fan_in = found[0]
        yield Seen(
            "warning",
            [path for path, *_ in found],
            f"The bias has {ratio:.2g} times the second moment that its kernel of fan_in "
            f"{fan_in:g} makes of unit inputs: its law does not know the fan.",
        )


def _kernel_of(
    model: ModelFacts, bias: ParameterFacts, made: Mapping[int, ParameterFacts]
) -> ParameterFacts | None:
    """The kernel whose output a bias is added to."""
    for use in bias.parameter.uses:
        if use.operation in SUMS and use.output is not None:
            reached = model.graph.before([use.output], is_view_or_sum) & made.keys()
            if reached:
                return made[max(reached)]
    return None


@check("Start it at 1.", "Jozefowicz 2015, section 2.2; Gers 2000")
def forget_gate_bias(model: ModelFacts, present: PresentByPath) -> Iterator[Seen]:
    """Forget gates that start half closed."""
    found = {}
    for p, now in _drawn(model.parameters, present):
        if p.role == "forget_bias" and p.forget_range:
            _, start, stop = p.forget_range
            if now.mean / (stop - start) < 0.5 and not p.has_forget_offset:
                found[p.path] = now.mean / (stop - start)
    if found:
        value = next(iter(found.values()))
        kept = 1 / (1 + math.exp(-value))
        yield Seen(
            "warning",
            found,
            f"The bias of the forget gate starts at {value:.2g}: the memory keeps {kept:.2g} per "
            f"step, {kept**20:.1g} after 20 steps.",
        )


# Draws in 16 bits.


@check(
    "Draw in float32 and cast once, as every initializer of jaxinit does.",
    "measured; NVIDIA-NeMo/Automodel#2450",
)
def low_precision(model: ModelFacts, present: PresentByPath) -> Iterator[Seen]:
    """Arrays with as few values as a draw in 16 bits has, whatever their dtype is now."""
    drawn_in = {path: _drawn_in(now.counts) for path, now in present.items()}
    found = [path for path, name in drawn_in.items() if name]
    if found:
        now, name = present[found[0]], drawn_in[found[0]]
        values, entries = len(now.counts), sum(now.counts)
        drift = f"mean {now.mean / now.std:+.3f} standard deviations"
        yield Seen(
            "warning",
            found,
            f"{values} different values besides 0 in {entries:,} entries, {drift}: "
            f"sampled in {name}, where the tails are missing and the mean is off.",
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


# What the reading says of parameters, however they are drawn.


@check(
    "Multiply what is chosen by its softmax or sigmoid weight.",
    "Shazeer 2017, section 2.1; Fedus 2021, section 2.1",
)
def no_gradient(model: ModelFacts, present: PresentByPath) -> Iterator[Seen]:
    """Parameters that act on the output only through a choice, such as a router's argmax."""
    found = without_gradient(model.reading, model.graph)
    if found:
        stops = " and ".join(dict.fromkeys(found.values()))
        yield Seen(
            "warning",
            found,
            f"The outputs depend on {'it' if len(found) == 1 else 'them'} through {stops} alone, "
            "which passes no gradient: whatever is drawn stays as it is.",
        )


@check("Remove it, or call the part of the model that uses it.", "the reading")
def unused(model: ModelFacts, present: PresentByPath) -> Iterator[Seen]:
    """Parameters that no output depends on."""
    paths = tuple(p.path for p in model.parameters if p.role == "unused")
    if paths:
        yield Seen(
            "warning",
            paths,
            f"{len(paths)} {'parameter has' if len(paths) == 1 else 'parameters have'} no way to "
            "an output: no gradient, and memory in every copy of the model and its optimizer.",
        )


@check("Check these rules by hand; they go by the shape alone.", "the reading")
def not_understood(model: ModelFacts, present: PresentByPath) -> Iterator[Seen]:
    """Parameters whose use stopped the reading."""
    found = model.reading.unknown
    if found:
        yield Seen(
            "warning",
            [parameter.path for parameter in found],
            f"The reading stopped at {found[0].why or 'an unknown equation'}: fans and role are "
            "not known.",
        )
