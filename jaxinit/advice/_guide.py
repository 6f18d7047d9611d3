"""The guide: which initializer in which situation, as data. The first row that fits decides.

The order of the rows is the order of the questions: is the model normalised, is it residual, which
class is its activation of, how deep is it for its width, which part does the parameter play. To add
a row, write one `Row` and put it where its question belongs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, TypeAlias

from jaxinit.advice import _conditions as c
from jaxinit.advice import _recipes as r
from jaxinit.advice._rows import (
    BESIDE_RECURRENT,
    BYPASSES,
    ENDS,
    HEAD,
    LAYER_SCALE,
    RECURRENT,
    REST,
    ROUTERS,
    ZERO_BIAS,
    ZERO_HEAD_BIAS,
    Entry,
    Row,
)

Goal: TypeAlias = Literal["train", "classical", "mup", "policy"]

_BRANCH = "1/sqrt of the number of branches keeps the stream near unit size"

TRANSFORMERS = (
    Row(
        "vision transformer, normalised before each branch",
        c.ATTENTION & c.PRE_NORM & c.PATCHES,
        (
            Entry("first", r.scaled(), "patches are one flat fan: gain 1 by fan_in"),
            Entry("head", r.zeros, "all classes start equally likely"),
            Entry("kernel", r.scaled(1.0, "fan_avg", "uniform"), "Xavier, as ViT was trained"),
            Entry("position", r.gaussian(0.02), "small beside the patches"),
            Entry("embedding", r.zeros, "the class token starts at 0"),
        ),
        "Dosovitskiy 2020, appendix B and released code",
    ),
    Row(
        "transformer, normalised before each branch",
        c.ATTENTION & c.PRE_NORM,
        (
            Entry("residual_output", r.scaled(r.per_branch), _BRANCH),
            Entry("head", r.scaled(), "d^-1/2 gives logits of unit size"),
            Entry("kernel", r.scaled(), "gain 1 keeps what the normalisation hands over"),
        ),
        "Radford 2019, section 2.3; Groeneveld 2024 (OLMo), section 2",
    ),
    Row(
        "deep transformer, normalised after each sum",
        c.ATTENTION & c.POST_NORM & c.Condition("36 branches or more", lambda s: s.branches >= 36),
        (
            Entry("query_key", r.scaled(1.0, "fan_avg"), "Xavier: scores of unit size"),
            Entry(
                "residual_output",
                r.scaled(r.deepnorm_gain, "fan_avg"),
                "(8N)^-1/4 bounds the update; multiply the stream by (2N)^1/4",
            ),
            Entry("branch_inner", r.scaled(r.deepnorm_gain, "fan_avg"), "(8N)^-1/4, as DeepNorm"),
            Entry("kernel", r.scaled(1.0, "fan_avg"), "Xavier outside of the branches"),
        ),
        "Wang 2022 (DeepNet), section 4 and table 2",
    ),
    Row(
        "transformer, normalised after each sum",
        c.ATTENTION & c.POST_NORM,
        (Entry("kernel", r.scaled(1.0, "fan_avg"), "Xavier; each sum is normalised again"),),
        "Vaswani 2017, released code; Xiong 2020, section 3",
    ),
    Row(
        "transformer without normalisation",
        c.ATTENTION & ~c.NORMALISED,
        (
            Entry("query_key", r.scaled(1.0, "fan_avg"), "Xavier: scores of unit size"),
            Entry("residual_output", r.scaled(r.tfixup_gain, "fan_avg"), "0.67 N^-1/4 bounds it"),
            Entry("branch_inner", r.scaled(r.tfixup_gain, "fan_avg"), "0.67 N^-1/4 bounds it"),
            Entry("embedding", r.gaussian(r.inverse_sqrt_width), "d^-1/2, as T-Fixup asks"),
            Entry("kernel", r.scaled(1.0, "fan_avg"), "Xavier outside of the branches"),
        ),
        "Huang 2020 (T-Fixup), section 3.2",
    ),
)

NORMALISED = (
    Row(
        "convolutions with batch or group norm",
        c.NORMALISED & c.CONVOLUTIONAL & c.BATCH_NORM,
        (
            Entry("last_scale", r.zeros, "every block starts as the identity"),
            HEAD,
            Entry(
                "linear",
                r.scaled(r.relu_gain, "fan_out"),
                "meets no activation: gain 1, or a rectifier's where a norm sets the size",
            ),
            Entry("kernel", r.scaled(r.relu_gain, "fan_out"), "keeps gradients through rectifiers"),
        ),
        "He 2015, equation 14; Goyal 2017, section 5.1",
    ),
    Row(
        "residual, normalised",
        c.NORMALISED & c.RESIDUAL & ~c.RECURRENT,
        (
            Entry("residual_output", r.scaled(r.per_branch), _BRANCH),
            HEAD,
            Entry("kernel", r.scaled(r.own_gain), "passes the second moment on in the branch"),
        ),
        "Radford 2019, section 2.3; De 2020, section 2",
    ),
    Row(
        "normalised, no residual sums",
        c.NORMALISED & ~c.RECURRENT,
        (
            HEAD,
            Entry("kernel", r.scaled(r.own_gain), "the norm sets the size, the gain the gradient"),
        ),
        "He 2015, equation 10; Ioffe 2015, section 3.3",
    ),
)

RESIDUAL = (
    Row(
        "residual without normalisation",
        c.RESIDUAL & ~c.NORMALISED & ~c.RECURRENT,
        (
            Entry("residual_output", r.zeros, "the stream starts as the identity, at any depth"),
            Entry("branch_inner", r.scaled(r.fixup_gain), "L^-1/(2m-2) bounds the first update"),
            Entry("head", r.zeros, "the first step moves the head alone"),
            Entry("kernel", r.scaled(r.own_gain), "passes the second moment on"),
            Entry("scale", r.ones, "multipliers start at 1"),
        ),
        "Zhang 2019 (Fixup), section 4",
    ),
)

PLAIN = (
    Row(
        "coordinate network of sines",
        c.PLAIN & c.activation_is("sin"),
        (
            Entry("head", r.siren, "the output layer is drawn as the hidden ones"),
            Entry("kernel", r.siren, "pre-activations of unit size, whatever the frequency w0"),
        ),
        "Sitzmann 2020 (SIREN), section 3.2",
    ),
    Row(
        "self-normalising (SELU)",
        c.PLAIN & c.activation_is("selu"),
        (
            HEAD,
            Entry("kernel", r.scaled(1.0, "fan_in", "normal"), "SELU's fixed point needs gain 1"),
        ),
        "Klambauer 2017, section 3",
    ),
    Row(
        "plain convolutions with tanh, 30 layers or more",
        c.PLAIN & c.CONVOLUTIONAL & c.activation_is("tanh") & c.at_least(30),
        (
            Entry("hidden", r.orthogonal(1.05**0.5), "isometric at the edge of chaos"),
            ZERO_HEAD_BIAS,
            Entry("bias", r.gaussian(2.01e-5**0.5), "the critical bias variance for 1.05"),
        ),
        "Xiao 2018, section 4 and algorithm 1",
    ),
    Row(
        "shallow plain network (fewer than 5 layers)",
        c.PLAIN & ~c.at_least(5) & (c.RECTIFIED | c.NO_ACTIVATION),
        (
            HEAD,
            Entry("kernel", r.scaled(r.own_gain), "scaled by fan; N(0, 0.01^2) fits one width"),
        ),
        "He 2015, equation 10",
    ),
    Row(
        "plain network of rectifiers",
        c.PLAIN & c.RECTIFIED,
        (
            HEAD,
            Entry("linear", r.scaled(), "it meets no rectifier: gain 1"),
            Entry("kernel", r.scaled(r.relu_gain), "a rectifier halves the second moment: 2/n"),
        ),
        "He 2015, equations 10 and 15; Hanin 2018, theorem 5",
    ),
    Row(
        "deep plain network that saturates (tanh, sin, erf)",
        c.PLAIN & c.SATURATED & c.at_least(10),
        (
            HEAD,
            Entry("kernel", r.orthogonal(r.linear_gain), "the edge of chaos: 1/|f'(0)|, isometric"),
        ),
        "Schoenholz 2016, section 3; Pennington 2017, section 3",
    ),
    Row(
        "plain network of sigmoids",
        c.PLAIN & c.SIGMOID,
        (Entry("kernel", r.scaled(1.0, "fan_avg"), "Xavier; deep sigmoids need centring first"),),
        "Glorot 2010, section 3.1 and equation 12",
    ),
    Row(
        "deep plain network with an unstable length (GELU, SiLU, Mish)",
        c.PLAIN & c.UNSTABLE & c.at_least(9),
        (
            HEAD,
            Entry("kernel", r.critical_kernel, "the critical pair keeps length and correlation"),
            ZERO_HEAD_BIAS,
            Entry("bias", r.critical_bias, "the bias half of the critical pair"),
        ),
        "Roberts 2021, section 5.3; Martens 2021, section 4",
    ),
    Row(
        "plain network",
        c.PLAIN,
        (
            HEAD,
            Entry("kernel", r.scaled(r.own_gain), "passes the second moment through"),
        ),
        "LeCun 1998, section 4.6; Klambauer 2017, section 2",
    ),
)

TRAIN = (
    BYPASSES,
    LAYER_SCALE,
    ROUTERS,
    RECURRENT,
    ENDS,
    *TRANSFORMERS,
    *NORMALISED,
    *RESIDUAL,
    BESIDE_RECURRENT,
    *PLAIN,
    REST,
)
# A vision transformer's tables are not those of language, so its row goes before `ENDS`.
TRAIN = (TRANSFORMERS[0], *TRAIN)

_XAVIER = Entry("kernel", r.scaled(1.0, "fan_avg"), "Xavier balances signal and gradient")
_KAIMING = (
    Entry("linear", r.scaled(), "it meets no rectifier, or gates: gain 1"),
    Entry("kernel", r.scaled(2**0.5), "Kaiming: a rectifier halves the second moment"),
)

CLASSICAL = (
    BYPASSES,
    LAYER_SCALE,
    Row(
        "deep rectifiers (10 layers or more)",
        c.at_least(10) & (c.RECTIFIED | c.UNSTABLE),
        (*_KAIMING, ZERO_BIAS),
        "He 2015, equation 10",
    ),
    Row(
        "deep sigmoid or tanh (10 layers or more)",
        c.at_least(10) & (c.SATURATED | c.SIGMOID),
        (_XAVIER, ZERO_BIAS),
        "Glorot 2010, equation 12",
    ),
    Row(
        "shallow (fewer than 5 layers)",
        ~c.at_least(5),
        (
            Entry("kernel", r.scaled(1.0, "fan_in", "uniform"), "random is enough, scaled by fan"),
            ZERO_BIAS,
        ),
        "LeCun 1998, section 4.6",
    ),
    Row("5 to 9 rectifiers", c.RECTIFIED | c.UNSTABLE, _KAIMING, "He 2015, equation 10"),
    Row("5 to 9 other layers", c.ALWAYS, (_XAVIER,), "Glorot 2010, equation 12"),
    ENDS,
    REST,
)

MUP = (
    BYPASSES,
    LAYER_SCALE,
    RECURRENT,
    Row(
        "width will be scaled",
        c.ALWAYS,
        (
            Entry("tied_embedding", r.gaussian(1.0), "input weights keep one size at all widths"),
            Entry("embedding", r.gaussian(1.0), "input weights keep one size at all widths"),
            Entry("head", r.zeros, "a zero readout starts the same at all widths"),
            Entry("query_key", r.scaled(), "1/fan_in; divide scores by d, not sqrt d"),
            Entry("residual_output", r.scaled(r.per_branch), "1/fan_in, and the depth beside it"),
            Entry("kernel", r.scaled(r.behind_norm), "1/fan_in; scale Adam's rate with 1/fan_in"),
        ),
        "Yang 2022, table 8 and appendix D",
    ),
    REST,
)

POLICY = (
    BYPASSES,
    LAYER_SCALE,
    RECURRENT,
    Row(
        "on-policy reinforcement learning",
        c.ALWAYS,
        (
            Entry("head", r.policy_head, "near-uniform actions at first; values of unit size"),
            Entry("kernel", r.orthogonal(2**0.5), "orthogonal with gain sqrt 2"),
            ZERO_BIAS,
        ),
        "Andrychowicz 2020, section 3.2; Engstrom 2020",
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
GOALS: Mapping[str, str] = {
    "train": "a signal and a gradient that survive at the width and depth given",
    "classical": "the four rows of the classical lesson",
    "mup": "hyper-parameters that carry over when the width is scaled",
    "policy": "on-policy reinforcement learning",
}
