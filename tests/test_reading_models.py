"""Readings of a zoo of models against what a person works out from their architecture.

Expectations cover every leaf; those of shapes and sizes use a different number for every axis, so
that swapped fans show.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import pytest

import jaxinit
from helpers import slow, struct
from jaxinit import initializers as init
from jaxinit.advice._facts import ModelFacts
from jaxinit.advice._guide import decide
from jaxinit.jaxpr import TABLE, Graph, straighten, trace
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


# What is advised.

# Models whose advice takes the longest to predict, made of what the others show.
LONG = [name for name in CASES if name.startswith(("images", "sequences", "others"))]
# Of each other family every eighth.
SOME = [name for name in CASES if name not in LONG][::8]


@pytest.mark.parametrize("name", [*SOME, *slow(*(name for name in CASES if name not in SOME))])
def test_the_advice_is_what_its_prediction_shows(name):
    """Every layer within a factor of 4 of what its law makes of data of unit size, or a reason."""
    case = CASES[name]()
    reading = jaxinit.read(case.apply, case.variables, *case.inputs)
    advice = jaxinit.advise(reading)
    prediction = advice.predict()
    said = {p.path: p for p in advice}
    for layer in prediction.layers:
        # Of a product of two parameters no row speaks.
        if layer.path not in said or not reading[layer.path].uses:
            continue
        p, use = said[layer.path], reading[layer.path].uses[0]
        # States of a recurrence start at zero, and a normalisation sets its own size.
        is_apart = p.role == "recurrent" or (use.after and use.after.normalisation)
        is_own = p.initializer in (init.zeros, jaxinit.own) or not use.fan_in
        if is_apart or is_own or math.isnan(p.std):
            continue
        meant = p.std**2 * use.fan_in
        is_right = meant / 4 <= layer.forward[0] and layer.forward[1] <= 4 * meant
        words = ("second moment", "size is not judged", "beside it", "branch")
        assert is_right or any(word in p.reason for word in words), (str(layer), p)
    for output in prediction.outputs:
        assert output[1] > 0 or any("start" in p.reason or "zero" in p.reason for p in advice)


# The order of operands.


def commuted(graph: Graph) -> Graph:
    """A graph with the operands of all commutative equations exchanged."""
    for node in graph.nodes:
        if node.primitive in ("add", "add_any", "mul", "max", "min", "and", "or"):
            node.inputs = node.inputs[::-1]
        for body in node.bodies:
            commuted(body)
    return graph


def advised(reading: jaxinit.Reading) -> list[tuple[object, ...]]:
    """What the guide chooses, without the prediction that `advise` checks it by."""
    chosen = decide("train", ModelFacts(reading))
    return [(p.path, p.roles, row.name, choice.drawing(p)) for p, row, choice in chosen]


# Models of full depth, made of what the smaller ones show.
DEEP = [name for name in CASES if name.startswith(("images", "sequences"))]


@pytest.mark.parametrize("name", [*(name for name in CASES if name not in DEEP), *slow(*DEEP)])
def test_operands_of_a_sum_or_product_have_no_order(name, monkeypatch):
    case = CASES[name]()
    one = jaxinit.read(case.apply, case.variables, *case.inputs)

    def traced(*args):
        graph, shapes = trace(*args)
        return commuted(graph), shapes

    monkeypatch.setattr("jaxinit.reading._reader.trace", traced)
    other = jaxinit.read(case.apply, case.variables, *case.inputs)
    for one_of, other_of in zip(one, other, strict=True):
        assert [use.meets for use in one_of.uses] == [use.meets for use in other_of.uses]
    assert one.to_dict() == other.to_dict()
    assert one.chain == other.chain
    assert advised(one) == advised(other)


# Each in each place; the other three are these, backwards.
@pytest.mark.parametrize("order", ["hxb", "xbh", "bhx", *slow("bxh", "hbx", "xhb")])
def test_a_packed_cell_has_a_kernel_for_each_gate_in_any_order(order):
    def step(p, state, x):
        h, c = state
        terms = {"h": lambda: h @ p["h"], "x": lambda: x @ p["x"], "b": lambda: p["b"]}
        first, *others = (terms[name]() for name in order)
        packed = first
        for term in others:
            packed = packed + term
        i, g, f, o = jnp.split(packed, 4, -1)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        h = jax.nn.sigmoid(o) * jnp.tanh(c)
        return (h, c), h

    def model(p, x):
        start = (jnp.zeros((2, 4)), jnp.zeros((2, 4)))
        _, hs = jax.lax.scan(lambda state, x: step(p, state, x), start, x)
        return hs @ p["out"]

    shapes = {"h": struct(4, 16), "x": struct(3, 16), "b": struct(1, 16), "out": struct(4, 5)}
    reading = jaxinit.read(model, shapes, struct(7, 2, 3))
    for name, reads_state in (("h", True), ("x", False)):
        uses = reading[name].uses
        assert [use.fan_out for use in uses] == [4.0] * 4
        met = [use.after.activation.name for use in uses]
        assert met == ["sigmoid", "tanh", "sigmoid", "sigmoid"]
        assert [use.after.recurrent for use in uses] == [reads_state] * 4
    drawn = {p.path: p.initializer for p in jaxinit.advise(reading)}
    assert drawn["h"] == init.fused((init.scaled_orthogonal(),) * 4, (4,) * 4)
    assert drawn["x"] == init.fused((init.lecun_normal(),) * 4, (4,) * 4)
    assert drawn["b"] == init.fused((init.zeros, init.ones, init.zeros), (8, 4, 4))
