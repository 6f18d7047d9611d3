"""What a row of the guide is made of, and the rows that every goal shares."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from jaxinit.advice import _conditions as conditions
from jaxinit.advice import _recipes as r
from jaxinit.advice._conditions import ALWAYS, Condition
from jaxinit.advice._recipes import Recipe
from jaxinit.advice._situation import Situation, Subject


@dataclasses.dataclass(frozen=True)
class Entry:
    """How a row draws one part.

    Attributes:
        part: name of the part, as in `Subject.parts`.
        recipe: from facts to an initializer.
        reason: why, in one sentence.
        source: authors, year, section, where it is not that of the row.
    """

    part: str
    recipe: Recipe
    reason: str
    source: str | None = None


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the guide.

    Attributes:
        name: of the situation.
        when: what must hold of the model.
        entries: how each part is drawn; parts that are not named are left to later rows.
        source: authors, year, equation or section.
    """

    name: str
    when: Condition
    entries: tuple[Entry, ...]
    source: str

    def entry(self, subject: Subject) -> Entry | None:
        """The entry for the most telling part that the row speaks of."""
        by_part = {entry.part: entry for entry in self.entries}
        return next((by_part[part] for part in subject.parts if part in by_part), None)


def first_match(
    guide: Sequence[Row], situation: Situation, subject: Subject, holding: Sequence[bool]
) -> tuple[Row, Entry]:
    """The first row that holds and speaks of a part of the subject.

    Args:
        guide: rows in the order of decision, the last one for everything.
        situation: facts of the model.
        subject: the parameter.
        holding: for each row whether it holds, worked out once for all parameters.
    """
    for row, holds in zip(guide, holding, strict=True):
        entry = row.entry(subject) if holds else None
        if entry is not None:
            return row, entry
    raise AssertionError(f"no row for {subject.parts}")  # the last row names "kernel" and "bias"


HEAD = Entry("head", r.scaled(), "gain 1 keeps outputs near unit size", "LeCun 1998, section 4.6")
ZERO_BIAS = Entry(
    "bias", r.zeros, "kernels break the symmetry, so a bias need not", "Glorot 2010, section 2.3"
)
ZERO_HEAD_BIAS = dataclasses.replace(ZERO_BIAS, part="head_bias")

# What a quantised or integer leaf gets, whatever its part.
INTEGERS = Entry(
    "kernel", r.zeros, "integers are not drawn: draw floats and convert them", "the reading"
)

COUNTERS = Entry("state", r.zeros, "a counter: kept as it is, and 0 in a new model", "the reading")

ROUTERS = Row(
    "mixture of experts: router",
    ALWAYS,
    (
        Entry("router", r.scaled(0.1**0.5), "small logits spread tokens over all experts at first"),
        Entry("index", r.scaled(), "the largest is the same at any scale: gain 1", "the reading"),
    ),
    "Fedus 2021, section 2.4 (scale 0.1)",
)

BYPASSES = Row(
    "low-rank bypass",
    ALWAYS,
    (
        Entry("bypass_in", r.scaled(), "gain 1 keeps the input's size in the bypass"),
        Entry("bypass_out", r.zeros, "the adapted model starts as the base model"),
    ),
    "Hu 2021 (LoRA), section 4.1",
)

LAYER_SCALE = Row(
    "scale at the end of a branch",
    conditions.NORMALISED & conditions.RESIDUAL,
    (Entry("branch_scale", r.layer_scale, "small: every block starts near the identity"),),
    "Touvron 2021 (CaiT), section 2.1",
)

# Before the rows of transformers: a cell beside attention, or inside a branch, stays a cell.
RECURRENT = Row(
    "recurrent",
    conditions.RECURRENT,
    (
        Entry("recurrent", r.orthogonal(), "keeps the length of the state over many steps"),
        Entry(
            "forget_bias",
            r.forget_one,
            "an open forget gate lets gradients reach far back",
            "Jozefowicz 2015, section 2.2",
        ),
    ),
    "Saxe 2013, section 3",
)

BESIDE_RECURRENT = Row(
    "beside a recurrence",
    conditions.RECURRENT,
    (HEAD, Entry("kernel", r.scaled(), "keeps the second moment of the input")),
    "LeCun 1998, section 4.6",
)

ENDS = Row(
    "embeddings",
    ALWAYS,
    (
        Entry(
            "tied_embedding",
            r.gaussian(r.inverse_sqrt_width),
            "the table is the head too: d^-1/2 gives logits of unit size",
        ),
        Entry(
            "position",
            r.gaussian(r.half_of_embedding),
            "positions that are smaller than tokens do not drown them",
        ),
        Entry("embedding", r.gaussian(1.0), "unit size at the input keeps gradients of norms calm"),
    ),
    "Takase 2023, section 4; Radford 2019, released code",
)

REST = Row(
    "any model",
    ALWAYS,
    (
        HEAD,
        Entry("kernel", r.scaled(r.own_gain), "passes the second moment through its activation"),
        ZERO_BIAS,
        Entry("scale", r.ones, "a normalisation starts as itself", "Ioffe 2015, section 3"),
        Entry(
            "state",
            r.state,
            "running statistics start as those of a standard normal",
            "Ioffe 2015, section 3.1",
        ),
        Entry("unused", r.zeros, "no output depends on it, so its values do not matter", "reading"),
        Entry("unknown", r.guess, "the reading stopped: check what the shape says", "reading"),
        Entry("gate", r.scaled(), "keeps the second moment of its input"),
    ),
    "LeCun 1998, section 4.6; He 2015, equation 10",
)
