"""Readings of a zoo of models against what a person works out from their architecture.

Expectations cover every leaf; those of shapes and sizes use a different number for every axis, so
that swapped fans show.
"""

from __future__ import annotations

import jax
import pytest

import jaxinit
from jaxinit.jaxpr import TABLE, straighten
from zoo import (
    convolutional,
    dense,
    derived,
    encoders,
    flax_linen,
    flax_nnx,
    frameworks,
    indexed,
    language,
    plain,
    recurrent,
    repeated,
    transformer,
    vision,
)

pytestmark = pytest.mark.unoptimized

# The models of these families enter themselves into the table of `plain`.
assert dense and encoders and repeated and convolutional
assert transformer and recurrent and derived and indexed
ROOMS = {
    "linen layers": flax_linen,
    "images": vision,
    "sequences": language,
    "nnx": flax_nnx,
    "others": frameworks,
    "plain": plain,
}
CASES = {
    f"{room}: {name}": case for room, module in ROOMS.items() for name, case in module.CASES.items()
}


@pytest.mark.parametrize("name", CASES)
def test_every_leaf_is_read_as_a_person_would(name):
    case = CASES[name]()
    before = sum(one.nbytes for one in jax.live_arrays())
    reading = jaxinit.read(case.apply, case.variables, *case.inputs)
    assert not list(case.differences(reading))
    # Nothing is allocated but constants of the trace, whatever the size of the model.
    assert sum(one.nbytes for one in jax.live_arrays()) - before < 2**20
    made = {node.primitive for node in straighten(reading.graph) if node.equation is not None}
    assert made <= set(TABLE), "give these a row in jaxinit/jaxpr/_primitives.py"
