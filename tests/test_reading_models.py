"""Readings of a zoo of models against what a person works out from their architecture.

Expectations cover every leaf; those of shapes and sizes use a different number for every axis, so
that swapped fans show.
"""

from __future__ import annotations

import jax
import pytest

import jaxinit
from zoo import (
    beyond,
    edges,
    frameworks,
    in_nnx,
    language,
    layers,
    more_linen,
    people,
    plain,
    vision,
    wider,
)

pytestmark = pytest.mark.unoptimized

# The models of these enter themselves into the table of `plain`.
assert people and beyond and wider and edges
ROOMS = {
    "linen layers": layers,
    "images": vision,
    "sequences": language,
    "more of linen": more_linen,
    "nnx": in_nnx,
    "others": frameworks,
}
CASES = {
    f"{room}: {name}": case
    for room, module in {**ROOMS, "plain": plain}.items()
    for name, case in module.CASES.items()
}


@pytest.mark.parametrize("name", CASES)
def test_every_leaf_is_read_as_a_person_would(name):
    case = CASES[name]()
    before = sum(one.nbytes for one in jax.live_arrays())
    reading = jaxinit.read(case.apply, case.variables, *case.inputs)
    assert not list(case.differences(reading))
    # Nothing is allocated but constants of the trace, whatever the size of the model.
    assert sum(one.nbytes for one in jax.live_arrays()) - before < 2**20
