"""The guide: which initializer for which role in which model, as data; the first match decides.

The order of the rows is the order of the questions: is the model normalised, is it residual, which
class is its activation of, how deep is it for its width, which role does the parameter have. To add
a row, write one `row` and put it where its question belongs. The conditions stand first, then rows
that several goals share, then the rows of each goal.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Literal, TypeAlias

from jaxinit.advice import _drawing as draw
from jaxinit.advice._drawing import Drawing
from jaxinit.advice._facts import ModelFacts, ParameterFacts

Goal: TypeAlias = Literal["train", "classical", "mup", "policy"]


@dataclasses.dataclass(frozen=True)
class Condition:
    """A question about a model, with a text so that a row can be printed.

    Conditions combine with ``&``, ``|`` and ``~``.

    Attributes:
        text: the question as a claim, such as ``"normalised"``.
        holds: whether the claim is true of a model.
    """

    text: str
    holds: Callable[[ModelFacts], bool]

    def __and__(self, other: Condition) -> Condition:
        return Condition(f"{self.text}, {other.text}", lambda m: self.holds(m) and other.holds(m))

    def __or__(self, other: Condition) -> Condition:
        text = f"({self.text} or {other.text})"
        return Condition(text, lambda m: self.holds(m) or other.holds(m))

    def __invert__(self) -> Condition:
        return Condition(f"not {self.text}", lambda m: not self.holds(m))


def activation_is(*names: str) -> Condition:
    """The commonest activation is one of these; parameters such as a slope do not matter."""

    def holds(model: ModelFacts) -> bool:
        known = model.activation
        return known is not None and known.name.partition("(")[0] in names

    return Condition(f"activation {' or '.join(names)}", holds)


def at_least(layers: int) -> Condition:
    """So many layers on the longest way."""
    return Condition(f"{layers} layers or more", lambda m: m.depth >= layers)


ALWAYS = Condition("any model", lambda m: True)
NORMALISED = Condition("normalised", lambda m: bool(m.norms))
BATCH_NORM = Condition("batch or group norm", lambda m: bool(m.norms & {"batch", "group"}))
RESIDUAL = Condition("residual", lambda m: m.branches > 0)
PRE_NORM = Condition("normalised before each branch", lambda m: m.norm_first)
POST_NORM = Condition("normalised after each sum", lambda m: m.norm_after and not m.norm_first)
ATTENTION = Condition("attention", lambda m: m.has_attention)
PATCHES = Condition("first layer of patches", lambda m: m.begins_with_patches)
CONVOLUTIONAL = Condition("convolutional", lambda m: m.has_convolutions)
RECURRENT = Condition("recurrent", lambda m: m.is_recurrent)
COUPLED = Condition("couplings of a flow", lambda m: bool(m.before_couplings))
PLAIN = Condition("plain", (~NORMALISED & ~RESIDUAL & ~RECURRENT & ~ATTENTION & ~COUPLED).holds)
RECTIFIED = activation_is("relu", "leaky_relu", "relu6", "celu", "elu")
SATURATED = activation_is("tanh", "sin", "erf", "arctan", "hard_tanh", "soft_sign")
SIGMOID = activation_is("sigmoid", "hard_sigmoid")
# Small deviations of the length grow at the second-moment gain: GELU, SiLU, Mish.
UNSTABLE = Condition(
    "activation with an unstable length", lambda m: m.moments is not None and m.moments.is_unstable
)
NO_ACTIVATION = Condition("no activation", lambda m: m.activation is None)


@dataclasses.dataclass(frozen=True)
class Choice:
    """How a row draws one role.

    Attributes:
        role: name of the role, one of `ParameterFacts.roles`.
        drawing: from the facts of a parameter to its initializer.
        reason: why, in one sentence.
        source: authors, year, section, where it is not that of the row.
        is_final: whether the size is meant as it is, whatever the model multiplies beside it.
    """

    role: str
    drawing: Drawing
    reason: str
    source: str | None = None
    is_final: bool = False


@dataclasses.dataclass(frozen=True)
class Row:
    """One row of the guide.

    Attributes:
        name: what is said of the models that it is for.
        when: what must hold of the model.
        source: authors, year, equation or section.
        choices: how each role is drawn; roles that are not named are left to later rows.
    """

    name: str
    when: Condition
    source: str
    choices: tuple[Choice, ...]

    def choice(self, parameter: ParameterFacts) -> Choice | None:
        """The choice for the most specific role that the row speaks of."""
        by_role = {choice.role: choice for choice in self.choices}
        return next((by_role[role] for role in parameter.roles if role in by_role), None)


def row(name: str, when: Condition, source: str, *choices: Choice) -> Row:
    """A row of the guide, see `Row`."""
    return Row(name, when, source, choices)


def decide(goal: str, model: ModelFacts) -> Iterator[tuple[ParameterFacts, Row, Choice]]:
    """For each parameter the first row that holds and speaks of one of its roles.

    Random keys among the variables are left out: every plan leaves them to the model.
    """
    rows = [row for row in GUIDES[goal] if row.when.holds(model)]
    for facts in model.parameters:
        if facts.parameter.dtype.startswith("key<"):
            continue
        fitting = ((row, row.choice(facts)) for row in rows)
        # The last row is for any model and names "kernel" and "bias".
        row, choice = next((row, choice) for row, choice in fitting if choice is not None)
        if not facts.is_inexact:
            choice = COUNTERS if facts.role in ("state", "unused") else INTEGERS
        yield facts, row, choice


# The loss is not in the model. What a random head makes adds its second moment to a squared error,
# and has to be unlearned; logits of unit size cost a softmax little, and let gradients through.
HEAD = Choice(
    "head",
    draw.lecun,
    "gain 1 gives logits of unit size; not judged: the loss. For a squared error draw zeros",
    "LeCun 1998, section 4.6; Zhang 2019 (Fixup), section 4",
)
ZERO_BIAS = Choice(
    "bias", draw.zeros, "kernels break the symmetry, so a bias need not", "Glorot 2010, section 2.3"
)
ZERO_HEAD_BIAS = dataclasses.replace(ZERO_BIAS, role="head_bias")

# What a quantised or integer leaf gets, whatever its role.
INTEGERS = Choice(
    "kernel", draw.own, "integers are not drawn: draw floats and convert them", "the reading"
)

COUNTERS = Choice("state", draw.own, "a counter stays as the model makes it", "the reading")

BYPASSES = row(
    "low-rank bypass",
    ALWAYS,
    "Hu 2021 (LoRA), section 4.1",
    Choice("bypass_in", draw.lecun, "gain 1 keeps the input's size in the bypass"),
    Choice("bypass_out", draw.zeros, "the adapted model starts as the base model"),
)

LAYER_SCALE = row(
    "scale at the end of a branch",
    NORMALISED & RESIDUAL,
    "Touvron 2021 (CaiT), section 2.1",
    Choice("branch_scale", draw.layer_scale, "small: every block starts near the identity"),
)

OWN = row(
    "as the model draws it",
    ALWAYS,
    "the reading",
    Choice("state", draw.own, "no parameter: it stays as the model makes it"),
    Choice("unused", draw.own, "no output depends on it, so its values do not matter"),
    Choice("unknown", draw.own, "not judged: the reading stopped"),
    Choice("special", draw.own, "not judged: no row knows parameters that are used like this"),
    Choice("transformed", draw.own, "not judged: data meet a function of it that is no multiple"),
    Choice("offset_scale", draw.zeros, "the model adds 1: a normalisation starts as itself"),
)

WEIGHT_NORM = row(
    "weight norm",
    ALWAYS,
    "Salimans 2016 (weight normalization), sections 2 and 3",
    Choice("weight_scale", draw.weight_scale, "the kernel's own size is divided out: its gain"),
)

COUPLINGS = row(
    "affine coupling of a flow",
    ALWAYS,
    "Kingma 2018 (Glow), section 3.3",
    Choice("coupling", draw.zeros, "the flow starts as the identity"),
)

FIRST = (OWN, WEIGHT_NORM, BYPASSES, LAYER_SCALE, COUPLINGS)

# Before the rows of transformers: a cell beside attention, or inside a branch, stays a cell.
CELLS = row(
    "recurrent",
    RECURRENT,
    "Saxe 2013, section 3",
    Choice("recurrent", draw.orthogonal(), "keeps the length of the state over many steps"),
    Choice(
        "forget_bias",
        draw.forget_one,
        "an open forget gate lets gradients reach far back",
        "Jozefowicz 2015, section 2.2",
    ),
)

ENDS = row(
    "embeddings",
    ALWAYS,
    "Takase 2023, section 4; Radford 2019, released code",
    Choice(
        "tied_embedding",
        draw.gaussian(draw.inverse_sqrt_width),
        "the table is the head too: d^-1/2 gives logits of unit size",
    ),
    Choice(
        "position",
        draw.gaussian(draw.half_of_embedding),
        "positions that are smaller than tokens do not drown them",
    ),
    Choice("embedding", draw.gaussian(1.0), "unit size at the input keeps gradients of norms calm"),
)

REST = row(
    "any model",
    ALWAYS,
    "LeCun 1998, section 4.6; He 2015, equation 10",
    HEAD,
    Choice("kernel", draw.by_activation, "passes the second moment through its activation"),
    ZERO_BIAS,
    Choice("scale", draw.ones, "a normalisation starts as itself", "Ioffe 2015, section 3"),
    Choice("gate", draw.lecun, "keeps the second moment of its input"),
)


_BRANCH = "1/sqrt of the number of branches keeps the stream near unit size"

# Where a table of unit size is the head too, the logit of each token for itself is sqrt(d) times
# its share of the stream: with n branches 1 / sqrt(1 + n) at gain 1, and 1 / sqrt 2 at n^-1/2.
FULL_BRANCH = Choice(
    "residual_output",
    draw.lecun,
    "gain 1: the table fills the stream and is the head, so small branches leave the token itself",
    "Raffel 2019 (T5), released code",
)

TRAIN = (
    *FIRST,
    row(
        "mixture of experts: router",
        ALWAYS,
        "Fedus 2021, section 2.4 (scale 0.1)",
        Choice(
            "router", draw.scaled(0.1**0.5), "small logits spread tokens over all experts at first"
        ),
        Choice("index", draw.lecun, "the largest is the same at any scale: gain 1", "the reading"),
    ),
    CELLS,
    # The tables of a vision transformer are not those of language: this row precedes `ENDS`.
    row(
        "vision transformer, normalised before each branch",
        ATTENTION & PRE_NORM & PATCHES,
        "Dosovitskiy 2020, appendix B and released code",
        Choice("first", draw.lecun, "patches are one flat fan: gain 1 by fan_in"),
        Choice("head", draw.zero_head, "all classes start equally likely"),
        Choice("kernel", draw.scaled(1.0, "fan_avg", "uniform"), "Xavier, as ViT was trained"),
        Choice("position", draw.gaussian(0.02), "small beside the patches"),
        Choice("token", draw.zeros, "the class token starts at 0"),
    ),
    ENDS,
    row(
        "transformer, normalised before each branch",
        ATTENTION & PRE_NORM,
        "Radford 2019, section 2.3; Groeneveld 2024 (OLMo), section 2",
        Choice("residual_output", draw.per_branch, _BRANCH),
        Choice("head", draw.lecun, "d^-1/2 gives logits of unit size"),
        Choice("kernel", draw.lecun, "gain 1 keeps what the normalisation hands over"),
    ),
    row(
        "deep transformer, normalised after each sum",
        ATTENTION & POST_NORM & Condition("36 branches or more", lambda m: m.branches >= 36),
        "Wang 2022 (DeepNet), section 4 and table 2",
        Choice("query_key", draw.xavier, "Xavier: scores of unit size"),
        Choice(
            "residual_output",
            draw.deepnorm,
            "(8N)^-1/4 bounds the update; multiply the stream by (2N)^1/4",
        ),
        Choice("branch_inner", draw.deepnorm, "(8N)^-1/4, as DeepNorm"),
        Choice("kernel", draw.xavier, "Xavier outside of the branches"),
    ),
    row(
        "transformer, normalised after each sum",
        ATTENTION & POST_NORM,
        "Vaswani 2017, released code; Xiong 2020, section 3",
        Choice("kernel", draw.xavier, "Xavier; each sum is normalised again"),
    ),
    row(
        "transformer without normalisation",
        ATTENTION & ~NORMALISED,
        "Huang 2020 (T-Fixup), section 3.2",
        Choice("query_key", draw.xavier, "Xavier: scores of unit size"),
        Choice("residual_output", draw.tfixup, "0.67 N^-1/4 bounds it"),
        Choice("branch_inner", draw.tfixup, "0.67 N^-1/4 bounds it"),
        Choice("embedding", draw.gaussian(draw.inverse_sqrt_width), "d^-1/2, as T-Fixup asks"),
        Choice("kernel", draw.xavier, "Xavier outside of the branches"),
    ),
    row(
        "convolutions with batch or group norm",
        NORMALISED & CONVOLUTIONAL & BATCH_NORM,
        "He 2015, equation 14; Goyal 2017, section 5.1",
        Choice("last_scale", draw.zeros, "every block starts as the identity"),
        HEAD,
        Choice(
            "linear",
            draw.scaled(draw.relu_gain, "fan_out"),
            "meets no activation: gain 1, or a rectifier's where a norm sets the size",
        ),
        Choice(
            "kernel", draw.scaled(draw.relu_gain, "fan_out"), "keeps gradients through rectifiers"
        ),
    ),
    row(
        "residual, normalised",
        NORMALISED & RESIDUAL & ~RECURRENT,
        "Radford 2019, section 2.3; De 2020, section 2",
        Choice("residual_output", draw.per_branch, _BRANCH),
        HEAD,
        Choice("kernel", draw.by_activation, "passes the second moment on in the branch"),
    ),
    row(
        "normalised, no residual sums",
        NORMALISED & ~RECURRENT,
        "He 2015, equation 10; Ioffe 2015, section 3.3",
        HEAD,
        Choice("kernel", draw.by_activation, "the norm sets the size, the gain the gradient"),
    ),
    row(
        "residual without normalisation",
        RESIDUAL & ~NORMALISED & ~RECURRENT,
        "Zhang 2019 (Fixup), section 4",
        Choice("residual_output", draw.zeros, "the stream starts as the identity, at any depth"),
        Choice("branch_inner", draw.scaled(draw.fixup_gain), "L^-1/(2m-2) bounds the first update"),
        Choice("head", draw.zero_head, "the first step moves the head alone"),
        Choice("kernel", draw.by_activation, "passes the second moment on"),
        Choice("scale", draw.ones, "multipliers start at 1"),
    ),
    row(
        "beside a recurrence",
        RECURRENT,
        "LeCun 1998, section 4.6",
        HEAD,
        Choice("kernel", draw.lecun, "keeps the second moment of the input"),
    ),
    row(
        "coordinate network of sines",
        PLAIN & activation_is("sin"),
        "Sitzmann 2020 (SIREN), section 3.2",
        Choice("head", draw.siren, "the output layer is drawn as the hidden ones"),
        Choice("first", draw.siren_first, "1/n: the frequency w0 spreads the input", is_final=True),
        Choice("kernel", draw.siren, "pre-activations of unit size, whatever the frequency w0"),
    ),
    row(
        "self-normalising (SELU)",
        PLAIN & activation_is("selu"),
        "Klambauer 2017, section 3",
        HEAD,
        Choice("kernel", draw.scaled(1.0, "fan_in", "normal"), "SELU's fixed point needs gain 1"),
    ),
    row(
        "plain convolutions with tanh, 30 layers or more",
        PLAIN & CONVOLUTIONAL & activation_is("tanh") & at_least(30),
        "Xiao 2018, section 4 and algorithm 1",
        Choice("hidden", draw.orthogonal(1.05**0.5), "isometric at the edge of chaos"),
        ZERO_HEAD_BIAS,
        Choice("bias", draw.gaussian(2.01e-5**0.5), "the critical bias variance for 1.05"),
    ),
    row(
        "shallow plain network (fewer than 5 layers)",
        PLAIN & ~at_least(5) & (RECTIFIED | NO_ACTIVATION),
        "He 2015, equation 10",
        HEAD,
        Choice("kernel", draw.by_activation, "scaled by fan; N(0, 0.01^2) fits one width"),
    ),
    row(
        "plain network of rectifiers",
        PLAIN & RECTIFIED,
        "He 2015, equations 10 and 15; Hanin 2018, theorem 5",
        HEAD,
        Choice("linear", draw.lecun, "it meets no rectifier: gain 1"),
        Choice("kernel", draw.scaled(draw.relu_gain), "a rectifier halves the second moment: 2/n"),
    ),
    row(
        "deep plain network that saturates (tanh, sin, erf)",
        PLAIN & SATURATED & at_least(10),
        "Schoenholz 2016, section 3; Pennington 2017, section 3",
        HEAD,
        Choice(
            "kernel", draw.orthogonal(draw.linear_gain), "the edge of chaos: 1/|f'(0)|, isometric"
        ),
    ),
    row(
        "plain network of sigmoids",
        PLAIN & SIGMOID,
        "Glorot 2010, section 3.1 and equation 12",
        Choice("kernel", draw.xavier, "Xavier; deep sigmoids need centring first"),
    ),
    row(
        "deep plain network with an unstable length (GELU, SiLU, Mish)",
        PLAIN & UNSTABLE & at_least(9),
        "Roberts 2021, section 5.3; Martens 2021, section 4",
        HEAD,
        Choice("kernel", draw.critical_kernel, "the critical pair keeps length and correlation"),
        ZERO_HEAD_BIAS,
        Choice("bias", draw.critical_bias, "the bias half of the critical pair"),
    ),
    row(
        "plain network",
        PLAIN,
        "LeCun 1998, section 4.6; Klambauer 2017, section 2",
        HEAD,
        Choice("kernel", draw.by_activation, "passes the second moment through"),
    ),
    REST,
)

_XAVIER = Choice("kernel", draw.xavier, "Xavier balances signal and gradient")
_KAIMING = (
    Choice("linear", draw.lecun, "it meets no rectifier, or gates: gain 1"),
    Choice("kernel", draw.scaled(2**0.5), "Kaiming: a rectifier halves the second moment"),
)

CLASSICAL = (
    *FIRST,
    row(
        "deep rectifiers (10 layers or more)",
        at_least(10) & (RECTIFIED | UNSTABLE),
        "He 2015, equation 10",
        *_KAIMING,
        ZERO_BIAS,
    ),
    row(
        "deep sigmoid or tanh (10 layers or more)",
        at_least(10) & (SATURATED | SIGMOID),
        "Glorot 2010, equation 12",
        _XAVIER,
        ZERO_BIAS,
    ),
    row(
        "shallow (fewer than 5 layers)",
        ~at_least(5),
        "LeCun 1998, section 4.6",
        Choice("kernel", draw.scaled(1.0, "fan_in", "uniform"), "random is enough, scaled by fan"),
        ZERO_BIAS,
    ),
    row("5 to 9 rectifiers", RECTIFIED | UNSTABLE, "He 2015, equation 10", *_KAIMING),
    row("5 to 9 other layers", ALWAYS, "Glorot 2010, equation 12", _XAVIER),
    ENDS,
    REST,
)

MUP = (
    *FIRST,
    CELLS,
    row(
        "width will be scaled",
        ALWAYS,
        "Yang 2022, table 8 and appendix D",
        Choice("embedding", draw.gaussian(1.0), "input weights keep one size at all widths"),
        Choice("head", draw.zero_head, "a zero readout starts the same at all widths"),
        Choice("query_key", draw.lecun, "1/fan_in; divide scores by d, not sqrt d"),
        Choice("residual_output", draw.per_branch, "1/fan_in, and the depth beside it"),
        Choice(
            "kernel", draw.scaled(draw.behind_norm), "1/fan_in; scale Adam's rate with 1/fan_in"
        ),
    ),
    REST,
)

POLICY = (
    *FIRST,
    CELLS,
    row(
        "on-policy reinforcement learning",
        ALWAYS,
        "Andrychowicz 2020, section 3.2; Engstrom 2020",
        Choice("head", draw.policy_head, "near-uniform actions at first; values of unit size"),
        Choice("kernel", draw.orthogonal(2**0.5), "orthogonal with gain sqrt 2"),
        ZERO_BIAS,
    ),
    ENDS,
    REST,
)

GUIDES: Mapping[str, tuple[Row, ...]] = {
    "train": TRAIN,
    "classical": CLASSICAL,
    "mup": MUP,
    "policy": POLICY,
}
