"""What a person should look at before training: the record of a finding, and the table of checks.

A check is a function of a `Case`, a model with its present initialization, that yields what it saw.
To add one, write it under `check`. Sizes of signals and gradients are those of the prediction.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Literal, NamedTuple, TypeAlias, get_args

from jaxinit import activations
from jaxinit.advice import _guide as guide
from jaxinit.advice._facts import ModelFacts, ParameterFacts, known_of
from jaxinit.advice._present import Present, PresentByPath
from jaxinit.advice._reach import is_view, is_view_or_sum, stuck, without_gradient
from jaxinit.advice._signals import UNKNOWN, Signals, chain_of, is_known, middle, over
from jaxinit.checks import twin_units
from jaxinit.initializers import Fans, compute_fans
from jaxinit.jaxpr import SUMS
from jaxinit.reading import compare_fans
from jaxinit.signal import Interval, interval_text

Severity = Literal["info", "warning", "error"]
SEVERITIES: tuple[Severity, ...] = get_args(Severity)

# Second moment of logits from which a fresh model is surely, and wrongly, opinionated: their
# standard deviation is 2, the loss about 2 above that of equal odds.
_LOGITS = 4.0
# Second moment of scores from which a softmax over them is nearly a choice of one: with a standard
# deviation of 4 the largest of 16 weights is 0.70 in the mean, measured.
_SCORES = 16.0
# Second moment of a pre-activation, by itself and over the advised one, from which it is large: its
# standard deviation is 4, where the slope of tanh is 0.0013. And from which it is small: three
# steps of 0.001 move a bias as far.
_LARGE, _SMALL = 16.0, 1e-5
# Variance times fan beyond which no common law draws, 1/3 to 2, with room for chance.
_WEIGHTS = 0.25, 2.5
# Variance b between draws of the log of the last second moment, from which it is said: the typical
# network has exp(-b / 2), 0.78 of the mean.
_SPREAD = 0.5
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


@dataclasses.dataclass(frozen=True)
class Case:
    """What checks look at.

    Attributes:
        model: facts of the model.
        present: the present initialization, as far as it is known.
        known: paths of all leaves that are drawn in a known way, or are there, sound or not.
        signals: the sizes that follow from it; None where some of it is not known.
        advised: the sizes under the advice: what the model itself allows.
        isometric: paths of layers with orthogonal kernels, now or, where that is not known, under
            the advice.
    """

    model: ModelFacts
    present: PresentByPath
    known: frozenset[str]
    signals: Signals | None
    advised: Signals
    isometric: frozenset[str]

    def drawn(self, parameters: Iterable[ParameterFacts]) -> list[tuple[ParameterFacts, Present]]:
        """Parameters with how they are drawn now, where that is known."""
        return [(p, self.present[p.path]) for p in parameters if p.path in self.present]


Look: TypeAlias = Callable[[Case], Iterator[Seen]]


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


def findings_of(case: Case) -> tuple[Finding, ...]:
    """All findings, the most severe first.

    An array that holds infinities or NaN is shown to `nonfinite` alone: one fault is one finding.
    """
    sound = {path: now for path, now in case.present.items() if not now.nonfinite}
    rest = dataclasses.replace(case, present=sound)
    found = []
    for code, remedy, source, look in CHECKS:
        for severity, leaves, evidence, own in look(case if look is nonfinite else rest):
            found.append(Finding(code, severity, tuple(leaves), evidence, own or remedy, source))
    return tuple(sorted(found, key=lambda each: -SEVERITIES.index(each.severity)))


def shortened(leaves: Sequence[str], most: int = 3) -> str:
    """The first paths, and how many there are beyond."""
    surplus = len(leaves) - most
    shown = ", ".join(leaves[:most])
    return f"{shown} and {surplus} more" if surplus > 0 else shown


# Single kernels.


@check("Draw them again, or load a sound checkpoint.", "the measurement")
def nonfinite(case: Case) -> Iterator[Seen]:
    """Arrays that hold infinities or NaN."""
    found = {path: now.nonfinite for path, now in case.present.items() if now.nonfinite}
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
def wrong_fans(case: Case) -> Iterator[Seen]:
    """Kernels drawn by fans that are not theirs; from arrays where the size gives it away."""
    known = {path: now.initializer for path, now in case.present.items() if now.initializer}
    normalised = {p.path for p in case.model.layers if p.after.normalisation}
    found: list[tuple[str, Fans, Fans, float, Severity]] = []
    for difference in compare_fans(case.model.reading, known) if known else ():
        factor = difference.factor
        if factor is not None and not math.isclose(factor, 1, rel_tol=0.02):
            found.append((difference.path, difference.implied, difference.true, factor, "error"))
    for p, now in case.drawn(case.model.layers):
        guess = None if now.initializer else _guessed_fans(p, now)
        if guess is not None:
            found.append((p.path, *guess, "warning"))
    for path, implied, true, factor, severity in found:
        # Twice or half of the standard deviation is no handicap that training would show.
        is_harmless = path in normalised or 0.24 <= factor <= 4.1
        yield Seen(
            "info" if is_harmless else severity,
            (path,),
            f"Drawn with fans {implied.fan_in:g} and {implied.fan_out:g}, while the model "
            f"contracts {true.fan_in:g} and feeds {true.fan_out:g}: {math.sqrt(factor):.3g} of the "
            "standard deviation"
            f"{'; a normalisation behind it sets the size' if path in normalised else ''}.",
        )


def _guessed_fans(p: ParameterFacts, now: Present) -> tuple[Fans, Fans, float] | None:
    """Fans of the shape and true fans, where an array fits a usual gain by the first alone.

    The third number is the variance that follows over the one of the true fans.
    """
    if not (p.fan_in and p.fan_out and len(p.shape) >= 2 and now.std > 0):
        return None
    implied, true = compute_fans("audit", p.shape), Fans(p.fan_in, p.fan_out)
    if not implied.fan_in or math.isclose(implied.fan_in, true.fan_in, rel_tol=0.1):
        return None
    # 5 sigma of the variance of n Gaussian entries, and 2 % for truncated laws.
    slack = 0.02 + 5 * math.sqrt(2 / math.prod(p.shape))

    def fits(fan_in: float, *scales: float) -> bool:
        return any(math.isclose(scale / now.std**2, fan_in, rel_tol=slack) for scale in scales)

    # Every common law of the true fans comes first, those of each piece of a packed kernel among
    # them. 1/3 is the uniform law on +-1/sqrt(fan), as torch and Equinox draw it.
    pairs = [(use.fan_in, use.fan_out) for use in p.parameter.uses if use.fan_in and use.fan_out]
    fans = [fan for one, other in pairs for fan in (one, other, (one + other) / 2)]
    is_right = any(fits(fan, 1 / 3, 1.0, 2.0) for fan in fans)
    if is_right or not fits(implied.fan_in, 1.0, 2.0):
        return None
    return implied, true, true.fan_in / implied.fan_in


@check("Draw the kernel at random, with the rules of the advice.", "Goodfellow 2016, section 8.4")
def twins(case: Case) -> Iterator[Seen]:
    """Hidden kernels with equal units, which stay copies of each other."""
    found, copies = [], {}
    for p, now in case.drawn(case.model.layers):
        if now.is_zero or p.fan_out <= 1 or "head" in p.roles:
            continue
        if now.is_constant:
            found.append((p, now))
        elif now.array is not None and p.use.produced:
            units = twin_units(now.array, p.use.produced, p.use.batched, groups=p.use.groups)
            if units.any():
                copies[p.path] = f"{units.sum()} of {units.size}"
    if found:
        p, now = found[0]
        yield Seen(
            "error",
            [p.path for p, _ in found],
            f"Every entry is {now.mean:.4g}: the {p.fan_out:g} units of a layer compute the same, "
            "get the same gradient and stay one unit, whatever the training.",
        )
    if copies:
        yield Seen(
            "error",
            copies,
            f"{next(iter(copies.values()))} units start as copies of another unit, which no "
            "draw makes: they compute the same and stay one unit, whatever the training.",
        )


@check(
    "Start one factor at zero and the other at random, as LoRA does with B and A.",
    "Hu 2021 (LoRA), section 4.1",
)
def zero_product(case: Case) -> Iterator[Seen]:
    """Zero kernels that never get a gradient, since what they are multiplied with is zero too."""
    zero = {path for path, now in case.present.items() if now.is_zero}
    model, layers = case.model, {p.path for p in case.model.layers}
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


@check("Use the rules of the advice.", "He 2015, section 2.2")
def gain_mismatch(case: Case) -> Iterator[Seen]:
    """Signals or gradients that shrink or grow from layer to layer, or that are far off in one.

    What becomes of them under the advice is what the model does by itself, with a pool for example.
    """
    if case.signals is not None:
        found = itertools.chain(_chain_off(case, case.signals), _off(case, case.signals))
        yield from itertools.islice(found, 1)


def _chain_off(case: Case, signals: Signals) -> Iterator[Seen]:
    """Plain networks whose signal or gradient is multiplied in every layer."""
    model, chain = case.model, chain_of(case.model)
    growth, allowed = signals.growth(chain), case.advised.growth(chain)
    is_asked = (guide.PLAIN & ~guide.SIGMOID).holds(model)
    if not is_asked or growth is None or allowed is None:
        return
    # On the edge of chaos lengths shrink like 1 / depth, which is no mismatch; and in a shallow
    # network most random weights will do.
    count = len(chain)
    low, high = (1 / (4 * count), 16.0) if count > 3 else (1e-6, 100.0)
    name = model.activation.name if model.activation else "linear layers"
    for what, found, usual in zip(("signal", "gradient"), growth, allowed, strict=True):
        least, most = _surely(found, usual)
        if low <= most and least <= high:
            continue
        total = max(found[1], 1e-300) if most < low else min(found[0], 1e300)
        each, bits = total ** (1 / (count - 1)), math.log2(total)
        verb = "halves" if abs(each - 0.5) < 0.02 else f"is multiplied by {each:.3g}"
        yield Seen(
            "error" if abs(bits) > 20 else "warning",
            dict.fromkeys(p.path for p in chain),
            f"The second moment of the {what} {verb} per layer, 2^{bits:.0f} after {count} layers "
            f"of {name}, whose gain is {chain[0].gain:.4g}.",
        )


def _off(case: Case, signals: Signals) -> Iterator[Seen]:
    """Models of any kind in which kernels that no common law draws make sizes that are far off.

    Both together: a sum over positions makes large sizes of right kernels, and behind a
    normalisation most kernels will do. Twice as far from the laws a kernel is off by itself.
    """
    usual = case.advised
    asked = [
        p
        for p, now in case.drawn(case.model.hidden)
        if not (now.is_zero or p.after.normalisation or "query_key" in p.roles)
        and not _meets_sines(case.model, p)
    ]
    weights = {p.path: _surely(signals.weight(p), usual.weight(p)) for p in asked}
    made = {p.path: _surely(signals.met(p.use), usual.met(p.use)) for p in asked}
    ends = itertools.starmap(_surely, zip(signals.outputs, usual.outputs, strict=True))
    is_large = any(low > 4 * _LARGE for low, _ in ends)
    is_large |= any(low > _LARGE for low, _ in made.values())
    # Branches may add as little as they like, and a shallow network takes most random weights.
    streams = [p for p in asked if p.branch is None]
    is_small = len(streams) > 3 and any(made[p.path][1] < _SMALL for p in streams)
    most = _WEIGHTS[1] if is_large else 2 * _WEIGHTS[1]
    heavy = [p for p in asked if weights[p.path][0] > most]
    light = [p for p in asked if weights[p.path][1] < _WEIGHTS[0] and is_small]
    sizes = [*(signals.met(p.use) for p in asked), *signals.outputs]
    for kernels, largest, word in ((heavy, max, "large"), (light, min, "small")):
        if kernels:
            worst = largest(kernels, key=lambda p: weights[p.path])
            size = largest((size for size in sizes if is_known(size, 16)), default=UNKNOWN)
            end = "" if size == UNKNOWN else f" It comes to {interval_text(size)}."
            yield Seen(
                "error" if size[0] > 2**20 else "warning",
                [p.path for p in kernels],
                f"Kernels are too {word} for any common law: they multiply the second moment by up "
                f"to {interval_text(signals.weight(worst))}, where the advice multiplies it by "
                f"{interval_text(usual.weight(worst))}.{end}",
            )


def _meets_sines(model: ModelFacts, p: ParameterFacts) -> bool:
    """Whether sines follow, as in Fourier features: large kernels are fine grids there."""
    nodes = (node for number in p.use.meets for node in model.graph.after(number, is_view))
    return any(node.primitive in ("sin", "cos") for node in nodes)


def _surely(found: Interval, usual: Interval) -> Interval:
    """How large a size is at least, and at most, both as it is and over the usual one."""
    low, high = usual[0] or 1e-300, usual[1] or 1e-300
    return min(found[0], found[0] / high), max(found[1], found[1] / low)


@check(
    "Take the critical pair of the advice, or add normalisation layers.",
    "Roberts 2021, section 5.3",
)
def unstable_gain(case: Case) -> Iterator[Seen]:
    """Deep plain networks at the second-moment gain of GELU, SiLU, Mish."""
    model, signals = case.model, case.signals
    known, hidden, depth = model.moments, model.hidden, model.depth
    is_asked = (guide.PLAIN & guide.UNSTABLE & guide.at_least(9)).holds(model)
    if not is_asked or known is None or not hidden:
        return
    weights = [] if signals is None else [signals.weight(p) for p in hidden]
    near = [w for w in weights if math.isclose(middle(w), known.forward_gain**2, rel_tol=0.1)]
    if weights and len(near) * 2 < len(weights):
        return
    yield Seen(
        "warning" if weights else "info",
        [p.path for p in hidden],
        f"The gain {known.forward_gain:.4g} of {known.name} is an unstable fixed point: a "
        f"deviation of the length grows by {known.slope:.4g} per layer, "
        f"{known.slope**depth:.3g} times over {depth}.",
    )


@check("Use tanh or ReLU, or normalise; no initializer repairs it.", "Glorot 2010, section 3.1")
def deep_sigmoid(case: Case) -> Iterator[Seen]:
    """Sigmoids between five layers or more, without normalisation."""
    if not (guide.PLAIN & guide.SIGMOID & guide.at_least(5)).holds(case.model):
        return
    chain = chain_of(case.model)
    met = [p for p in chain if p.activation and p.activation.name == "sigmoid"]
    growth = (case.signals or case.advised).growth(chain)
    if not met or growth is None or not is_known(growth.backward):
        return
    total = middle(growth.backward)
    each = total ** (1 / (len(chain) - 1))
    yield Seen(
        "error" if len(chain) >= 10 and each < 0.5 else "warning",
        dict.fromkeys(p.path for p in met),
        f"{len(chain)} layers of sigmoids: the squared length of the gradient is multiplied by "
        f"about {each:.2g} per layer, {total:.1g} in all.",
    )


@check("", "Hanin 2018, theorem 5")
def narrow_for_depth(case: Case) -> Iterator[Seen]:
    """Plain networks that are narrow for their depth: draws differ by large factors."""
    model, signals, chain = case.model, case.signals or case.advised, chain_of(case.model)
    widths = model.reading.chain.widths[:-1]
    is_asked = guide.PLAIN.holds(model) and len(widths) >= 4 and len(chain) > 0
    activation = model.activation
    if not is_asked or activation is None or model.width is None:
        return
    weights = [signals.weight(p) for p in chain]
    # A rectifier has no length of its own: the spread is that of any length.
    weight = None if guide.RECTIFIED.holds(model) else middle(weights[len(weights) // 2])

    def spread(orthogonal: bool) -> float:
        options = {"widths": widths, "weight_variance": weight, "orthogonal": orthogonal}
        known = known_of(activations.width_spread, activation, **options)
        return 0.0 if known is None else known.variance

    is_isometric = all(p.path in case.isometric for p in chain)
    variance = spread(is_isometric)
    if variance < _SPREAD:
        return
    severity = "warning" if variance >= 2 * _SPREAD else "info"
    wider = f"a width of {model.width * variance / _SPREAD:.0f} or more"
    helps = not is_isometric and spread(True) < 0.7 * variance
    yield Seen(
        severity,
        (),
        f"{model.depth} layers of width {model.width:.4g}: the log of the last second moment has "
        f"variance {variance:.2g} between draws, so the typical one has "
        f"exp(-{variance / 2:.2g}) of the mean.",
        f"Use {wider}, {'orthogonal kernels, ' if helps else ''}or residual sums.",
    )


# Residual streams.


@check(
    "Scale the last layer of every branch, or start it at zero.",
    "Zhang 2019, section 2; Radford 2019, section 2.3",
)
def residual_growth(case: Case) -> Iterator[Seen]:
    """Residual branches that add so much that the stream grows."""
    model, signals = case.model, case.signals
    if signals is None or model.norm_after or model.is_recurrent:
        return
    steps = [step for step in signals.steps() if step.count == model.branches]
    grown = [over(step.total, step.stream) for step in steps]
    if not steps or not all(is_known(each, 16) for each in grown):
        return
    count = model.branches
    # Low ends: nothing is said that the prediction does not stand behind.
    bits = count * sum(math.log2(max(low, 1e-30)) for low, _ in grown) / len(grown)
    said = f"{count} branches" if count > 1 else "1 branch"
    if model.norms:
        start = steps[0].stream[1]
        severity, is_found = "info", bits > 3 and start * 2**bits > 8
        said += (
            f" add to a stream that starts at {start:.3g} and grows to {start * 2**bits:.3g}; the "
            f"last of them adds {interval_text(steps[-1].added)}."
        )
    else:
        severity, is_found = ("error" if bits > 20 else "warning"), bits > 4
        said += (
            f", each of which multiplies the stream's second moment by about "
            f"{2 ** (bits / count):.3g}, 2^{bits:.0f} in all."
        )
    if is_found:
        lasts = [p.path for p in model.layers if "residual_output" in p.roles]
        yield Seen(severity, lasts, said)


# Attention, tables, heads and biases.


@check(
    "Divide the scores by sqrt(d_k), or draw the query with (d d_k)^-1/2.",
    "Vaswani 2017, section 3.2.1; Raffel 2020, released code",
)
def score_scale(case: Case) -> Iterator[Seen]:
    """Attention that starts nearly hard, since its scores are large."""
    if case.signals is None:
        return
    found = {}
    for p, _ in case.drawn(case.model.layers):
        size = case.signals.scores(p) if "query_key" in p.roles else None
        if size is not None and size[0] > _SCORES:
            found[p.path] = size
    if found:
        size = max(found.values())
        yield Seen(
            "warning",
            found,
            f"The scores have a second moment of {interval_text(size)}: the softmax over them "
            "starts nearly at a choice of one, which passes little gradient.",
        )


@check("Draw it with a standard deviation of 1.", "Takase 2023, section 4")
def embedding_scale(case: Case) -> Iterator[Seen]:
    """Tables that are too large for a tied head, or out of scale with what follows."""
    signals = case.signals
    if signals is None:
        return
    begun = next(signals.steps(), None) if case.model.norm_first else None
    for p, now in case.drawn(case.model.parameters):
        std = math.sqrt(now.second_moment)
        heads = [use for use in p.parameter.uses if use.after and use.after.is_output]
        logits = max((signals.met(use)[0] for use in heads), default=0.0)
        if p.role == "tied_embedding" and logits > _LOGITS:
            yield Seen(
                "error" if logits > 100 else "warning",
                (p.path,),
                f"The table is also the head: a standard deviation of {std:.3g} gives logits of "
                f"{math.sqrt(logits):.3g}.",
                f"Draw it with a standard deviation of {std / math.sqrt(logits):.3g}.",
            )
        elif p.role == "table":
            stream = begun.stream if begun else UNKNOWN
            size = middle(signals.output(p.use) if p.after.normalisation else stream)
            if 0 < size < 0.01:
                yield Seen(
                    "info",
                    (p.path,),
                    f"The stream that it begins has a second moment of {size:.3g}: the "
                    f"normalisation behind it multiplies gradients by {size**-0.5:.3g}.",
                )
            elif begun and now.second_moment > 100 and size > 100 * max(begun.added[1], 1.0):
                yield Seen(
                    "warning",
                    (p.path,),
                    f"A standard deviation of {std:.3g} drowns what the branches add, "
                    f"{interval_text(begun.added)} to a stream of {size:.3g}.",
                )


@check(
    "Draw the head with gain 1, or start it at zero.",
    "Glorot 2010, section 2; Yang 2022, appendix D",
)
def head_scale(case: Case) -> Iterator[Seen]:
    """Heads whose outputs start large."""
    if case.signals is None:
        return
    found = {}
    for p, _ in case.drawn(case.model.layers):
        made = case.signals.met(p.use) if "head" in p.roles else UNKNOWN
        read = case.signals.incoming(p)
        # A signal that grew on the way is a finding of its own, where there is a way.
        if made[0] > _LOGITS and (over(made, read)[0] > 2 or len(chain_of(case.model)) < 2):
            found[p.path] = made, read
    if found:
        made, read = max(found.values())
        yield Seen(
            "warning",
            found,
            f"Outputs have a second moment of {interval_text(made)}, of features with "
            f"{interval_text(read)}: a softmax over them would start about {made[0] / 2:.3g} "
            "above equal odds.",
        )


@check("Start it at zero, or write like_kernel(...) in its rule.", "google/flax#3019")
def fanless_bias(case: Case) -> Iterator[Seen]:
    """Biases that are as large as what their kernel makes."""
    model, signals = case.model, case.signals
    if signals is None:
        return
    made = {
        use.output: p
        for p, _ in case.drawn(model.layers)
        for use in p.parameter.uses
        if use.output is not None
    }
    found = []
    for p, now in case.drawn(model.parameters):
        is_bias = p.role in ("bias", "head_bias") and now.std > 0
        kernel = _kernel_of(model, p, made) if is_bias else None
        weight = UNKNOWN if kernel is None else signals.weight(kernel)
        # A constant is deliberate, and U(+-1/sqrt(fan_in)) knows its fan.
        is_large = kernel is not None and now.std**2 > max(_BIAS * weight[1], 1 / kernel.fan_in)
        if kernel is not None and is_large and is_known(weight):
            found.append((p.path, now.std**2 / weight[1], kernel.fan_in))
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
def forget_gate_bias(case: Case) -> Iterator[Seen]:
    """Forget gates that start half closed."""
    found = {}
    for p, now in case.drawn(case.model.parameters):
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


@check("Start one of the two at zero.", "Hu 2021 (LoRA), section 4.1")
def bypass_start(case: Case) -> Iterator[Seen]:
    """Low-rank bypasses that change their base before the first step."""
    zero = {path for path, now in case.present.items() if now.is_zero}
    seconds = [p.path for p, _ in case.drawn(case.model.layers) if p.use.bypass == "out"]
    firsts = [p.path for p, _ in case.drawn(case.model.layers) if p.use.bypass == "in"]
    if seconds and not zero.intersection([*seconds, *firsts]):
        yield Seen(
            "info",
            seconds,
            "Both factors of the bypass are random: the model is no longer the base that it "
            "adapts.",
        )


# Draws in 16 bits.


@check(
    "Draw in float32 and cast once, as every initializer of jaxinit does.",
    "measured; NVIDIA-NeMo/Automodel#2450",
)
def low_precision(case: Case) -> Iterator[Seen]:
    """Arrays with as few values as a draw in 16 bits has, whatever their dtype is now."""
    drawn_in = {path: _drawn_in(now.counts) for path, now in case.present.items()}
    found = [path for path, name in drawn_in.items() if name]
    if found:
        now, name = case.present[found[0]], drawn_in[found[0]]
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
def no_gradient(case: Case) -> Iterator[Seen]:
    """Parameters that act on the output only through a choice, such as a router's argmax."""
    found = without_gradient(case.model.reading, case.model.graph)
    if found:
        stops = " and ".join(dict.fromkeys(found.values()))
        yield Seen(
            "warning",
            found,
            f"The outputs depend on {'it' if len(found) == 1 else 'them'} through {stops} alone, "
            "which passes no gradient: whatever is drawn stays as it is.",
        )


@check("Remove it, or call the part of the model that uses it.", "the reading")
def unused(case: Case) -> Iterator[Seen]:
    """Parameters that no output depends on."""
    paths = tuple(p.path for p in case.model.parameters if p.role == "unused")
    if paths:
        yield Seen(
            "warning",
            paths,
            f"{len(paths)} {'parameter has' if len(paths) == 1 else 'parameters have'} no way to "
            "an output: no gradient, and memory in every copy of the model and its optimizer.",
        )


@check("Check these rules by hand; they go by the shape alone.", "the reading")
def not_understood(case: Case) -> Iterator[Seen]:
    """Parameters whose use stopped the reading."""
    found = case.model.reading.unknown
    if found:
        yield Seen(
            "warning",
            [parameter.path for parameter in found],
            f"The reading stopped at {found[0].why or 'an unknown equation'}: fans and role are "
            "not known.",
        )


@check("Pass all leaves, or read the sizes off a draw.", "the prediction")
def not_judged(case: Case) -> Iterator[Seen]:
    """Sizes that nothing is known of, since it is not known how all leaves are drawn."""
    if not case.present:
        return
    if case.signals is None:
        leaves = [
            p.path for p in case.model.parameters if p.is_inexact and p.path not in case.known
        ]
        why = "it is not known how these leaves are drawn"
        if not leaves:
            why = "the model divides kernels by a norm that it estimates"
        # What is not finite is a finding of its own.
        if leaves or len(case.present) == len(case.known):
            yield Seen("info", leaves, f"Sizes of signals and gradients are not judged: {why}.")
        return
    missed = {p.path: why for p in case.model.layers if (why := case.signals.why(p.use))}
    if missed:
        why = " and ".join(dict.fromkeys(missed.values()))
        yield Seen("info", missed, f"The sizes of these layers are not judged, because of {why}.")
