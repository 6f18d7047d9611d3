"""Traced programs: the graph, the interpreter with control flow, the table of primitives, axes."""

from __future__ import annotations

import math

import hypothesis
import hypothesis.strategies as st
import jax
import jax.extend.core.primitives as jax_primitives
import jax.numpy as jnp
import numpy as np
import pytest

from jaxinit.jaxpr import (
    TABLE,
    Class,
    Interpreter,
    MixedAxesError,
    Neighbours,
    OnArrays,
    Rules,
    factors,
    graph_of,
    is_of,
    on_numpy,
    row_of,
    single_number,
    sources,
    straighten,
    trace,
    whole_axes,
)

pytestmark = pytest.mark.unoptimized

X = jnp.linspace(-1.0, 2.0, 12).reshape(3, 4)


@jax.custom_jvp
def _cube(x):
    return x**3


_cube.defjvp(lambda primals, tangents: (_cube(*primals), 3 * primals[0] ** 2 * tangents[0]))


@jax.custom_vjp
def _double(x):
    return 2 * x


_double.defvjp(lambda x: (_double(x), None), lambda _, g: (2 * g,))


def _scanned(x):
    def step(carry, row):
        carry = jnp.tanh(carry + row)
        return carry, carry.sum()

    last, sums = jax.lax.scan(step, jnp.zeros(4), x)
    return last, sums, jax.lax.scan(step, jnp.ones(4), x, reverse=True)


def _looped(x):
    return jax.lax.while_loop(lambda s: s[0] < 5, lambda s: (s[0] + 1, s[1] * 1.5 + x), (0, x))


def _chosen(x):
    return jax.lax.switch(jnp.int32(1), [jnp.sin, jnp.cos, jnp.tanh], x)


PROGRAMS = {
    "equations": lambda x: (jnp.exp(x) @ x.T, x.T[1], jnp.float32(3.0)),
    "jit": lambda x: jax.jit(lambda y: (jax.nn.gelu(y), y))(x),
    "remat": jax.checkpoint(lambda x: jnp.sin(jnp.sin(x))),
    "custom derivatives": lambda x: _double(_cube(x)),
    "scan": _scanned,
    "while": _looped,
    "cond": _chosen,
    "a scan with a cond in a jit": lambda x: jax.jit(
        lambda y: jax.lax.scan(
            lambda c, row: (jax.lax.cond(row[0] > 0, jnp.sin, jnp.cos, c), row.sum()), y[0], y
        )
    )(x),
    "a closed-over array": lambda x: x + np.arange(4.0, dtype=np.float32)[None],
}


class Unrolled(OnArrays):
    """Arrays, with scans run round by round."""

    def __init__(self):
        self.seen = []

    def equation(self, node, operands):
        self.seen.append((node.primitive, self.rounds))
        return super().equation(node, operands)

    def scan(self, loop):
        return self.unroll(loop, lambda x, number: x[number], jnp.stack)


@pytest.mark.parametrize("domain", [OnArrays, Unrolled])
@pytest.mark.parametrize("name", PROGRAMS)
def test_a_graph_run_on_arrays_is_the_program(name, domain):
    graph, shapes = trace(PROGRAMS[name], X)
    wanted = jax.tree.leaves(PROGRAMS[name](X))
    found = domain().run(graph, [X])
    assert len(found) == len(wanted) == len(jax.tree.leaves(shapes))
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-6, atol=2e-6)


def test_rounds_say_where_an_equation_runs():
    domain = Unrolled()
    graph, _ = trace(lambda x: jax.lax.scan(lambda c, row: (jnp.sin(c), row), x[0], x)[0], X)
    domain.run(graph, [X])
    assert [rounds for name, rounds in domain.seen if name == "sin"] == [(0,), (1,), (2,)]
    assert domain.rounds == ()


class Counted(Interpreter[int]):
    """How many equations a value is made of: a domain that knows no arrays."""

    def constant(self, value):
        return 0

    def equation(self, node, operands):
        return [1 + max(operands, default=0)] * len(node.outputs)

    def scan(self, loop):
        return self.unroll(loop, lambda value, number: value, max)

    def while_loop(self, loop):
        return loop.body(loop.carries)

    def cond(self, choice):
        return [max(values) for values in zip(*choice.results(), strict=True)]


def test_a_domain_of_its_own_runs_through_control_flow():
    def model(x):
        x = jax.lax.scan(lambda c, _: (jnp.sin(jnp.sin(c)), None), x, None, length=5)[0]
        x = jax.lax.cond(True, lambda y: jnp.sin(y), lambda y: jnp.sin(jnp.sin(y)), x)
        return jax.lax.while_loop(lambda y: y[0] < 3, lambda y: y + 1, x)

    graph, _ = trace(model, jnp.ones(2))
    assert Counted().run(graph, [0]) == [2 * 5 + 2 + 1]


def test_dead_equations_and_unread_carries_are_no_part_of_a_graph():
    def model(x):
        jnp.sin(x)
        (kept, _), _ = jax.lax.scan(lambda c, _: ((c[0] + 1, jnp.cos(c[1])), None), (x, x), None, 3)
        return kept

    graph, _ = trace(model, X)
    names = {node.primitive for node in straighten(graph)}
    assert "add" in names and not names & {"sin", "cos"}


def test_a_graph_may_keep_loops_and_calls_whole():
    jaxpr = jax.make_jaxpr(lambda x: jax.jit(_scanned)(x))(X)
    whole = graph_of(jaxpr, opens=lambda equation: None, has_bodies=lambda equation: False)
    assert [node.primitive for node in whole.nodes] == ["jit"]
    opened = graph_of(jaxpr, has_bodies=lambda equation: False)
    assert all(not node.bodies for node in opened.nodes)
    for graph in (whole, opened):
        found = OnArrays().run(graph, [X])
        for one, other in zip(found, jax.tree.leaves(_scanned(X)), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-6)


def test_calls_and_custom_derivatives_are_remembered():
    graph, _ = trace(lambda x: jax.nn.silu(x) + _double(x), X)
    by_name = {node.primitive: node for node in graph.nodes}
    assert by_name["logistic"].calls[0] == "silu" and not by_name["logistic"].custom
    assert any(node.custom for node in graph.nodes)


def test_times_count_the_rounds_of_scans_and_not_those_that_data_decide():
    def model(x):
        x = jax.lax.fori_loop(0, 6, lambda _, y: jnp.sin(y), x)
        return jax.lax.while_loop(lambda y: y[0, 0] < 3, lambda y: jnp.cosh(y), x)

    times = {node.primitive: node.times for node in straighten(trace(model, X)[0])}
    assert (times["sin"], times["cosh"]) == (6, None)


def test_neighbours_follow_values_both_ways():
    graph, _ = trace(lambda x, y: jnp.exp(jnp.sin(x) * y).sum(), X, X)
    near = Neighbours(straighten(graph))
    x, y = graph.inputs
    product = next(node for node in near.nodes if node.primitive == "mul")
    assert near.before(product.outputs, lambda node: True) >= {x, y}
    assert near.before(product.outputs, lambda node: node.primitive == "mul").isdisjoint({x})
    assert [node.primitive for node in near.after(x, lambda node: True)] == [
        "sin", "mul", "exp", "reduce_sum"
    ]  # fmt: skip
    assert [n.primitive for n in near.after(x, lambda node: node.primitive != "mul")] == [
        "sin", "mul"
    ]  # fmt: skip


# The table of primitives.


def _public_primitives() -> list[str]:
    """Names of all primitives that JAX's public API has, of this version."""
    public = vars(jax_primitives)
    return sorted({public[name].name for name in public if name.endswith("_p")})


def test_every_public_primitive_has_a_row():
    missing = [name for name in _public_primitives() if name not in TABLE]
    assert not missing, f"give {missing} a row in jaxinit/jaxpr/_primitives.py"


def test_a_row_stands_under_its_own_name():
    assert all(name == row.name for name, row in TABLE.items())


# How `jax.lax` spells a primitive where it has another name for it.
_SPELLED = {
    "add_any": jax.lax.add,
    "and": jax.lax.bitwise_and,
    "integer_pow": lambda x: jax.lax.integer_pow(x, 3),
    "log2": jnp.log2,
    "not": jax.lax.bitwise_not,
    "one_minus_square": lambda x: 1 - x * x,
    "or": jax.lax.bitwise_or,
    "xor": jax.lax.bitwise_xor,
}
_OF_TWO = frozenset(
    """add add_any and atan2 complex div eq ge gt le lt max min mul ne nextafter or pow rem sub
    xor""".split()
)
_OF_THREE = ("clamp", "select_n")
_OF_CLAIMS = ("and", "not", "or", "select_n", "xor")


def _on_jax(name, operands):
    function = _SPELLED.get(name) or getattr(jax.lax, name)
    return function(*map(jnp.asarray, operands))


def _operands_of(name, points):
    count = 2 if name in _OF_TWO else 3 if name in _OF_THREE else 1
    operands = [points + 0.05 * number for number in range(count)]
    if name in _OF_CLAIMS:
        claims = 1 if name == "select_n" else count
        operands[:claims] = [operand > 0.5 for operand in operands[:claims]]
    if name in ("conj", "imag", "real"):
        operands = [operands[0] + 2j]
    return operands


@pytest.mark.parametrize("name", sorted(name for name, row in TABLE.items() if row.numpy))
def test_the_twin_in_numpy_computes_what_jax_does(name):
    # acosh begins at 1, where most others end.
    operands = _operands_of(name, np.array([1.5, 3.0] if name == "acosh" else [0.3, 0.9]))
    with jax.enable_x64(True):
        found = _on_jax(name, operands)
    np.testing.assert_allclose(on_numpy(name, {"y": 3}, operands), found, rtol=1e-12)


@pytest.mark.parametrize(
    "name",
    sorted(n for n, row in TABLE.items() if row.keeps_zeros and row.kind == Class.ELEMENTWISE),
)
def test_what_keeps_zeros_is_zero_at_zero(name):
    zeros = np.zeros(2, np.complex64 if name in ("conj", "imag", "real") else np.float32)
    np.testing.assert_array_equal(_on_jax(name, [zeros] * (2 if name in _OF_TWO else 1)), 0)


def test_a_primitive_without_a_row_claims_nothing():
    row = row_of("no_such_primitive")
    assert (row.kind, row.bits, row.numpy, row.keeps_zeros) == (Class.OTHER, "unknown", None, False)
    assert not is_of("no_such_primitive", *Class)
    assert on_numpy("no_such_primitive", {}, []) is None


def test_a_rule_for_a_name_goes_before_that_of_its_class():
    rules = Rules("test")
    rules(Class.ELEMENTWISE)("of the class")
    rules("tanh", "dot_general")("of the name")
    assert rules.get("exp") == "of the class"
    assert rules.get("tanh") == rules.get("dot_general") == "of the name"
    assert rules.get("reduce_sum") is None and "reduce_sum" not in rules


def test_single_numbers():
    assert single_number(np.full((2, 3), 1.5)) == 1.5
    assert single_number(jnp.bfloat16(2)) == 2.0
    assert single_number(np.arange(3)) is None
    assert single_number(np.zeros(5000)) is None
    assert single_number(jax.random.key(0)) is None


# Axes.

SHAPES = st.lists(st.sampled_from([1, 2, 3, 4, 5, 6]), max_size=4).map(tuple)


def _splits(size: int) -> list[int]:
    return [n for n in range(1, size + 1) if size % n == 0]


@st.composite
def reshapes(draw):
    """Two shapes of as many entries."""
    old = draw(SHAPES)
    left, new = math.prod(old), []
    while left > 1:
        new.append(draw(st.sampled_from(_splits(left))))
        left //= new[-1]
    return old, tuple(new)


@hypothesis.given(reshapes())
def test_factors_say_where_every_entry_of_a_reshape_comes_from(shapes):
    old, new = shapes
    try:
        found = factors(old, new)
    except MixedAxesError:
        hypothesis.reject()  # axes that mix have no factors
    assert len(found) == len(new)
    assert all(
        math.prod(f.size for f in held) == size for held, size in zip(found, new, strict=True)
    )
    source = np.stack(np.indices(old), -1).reshape(*new, len(old)) if old else np.zeros((*new, 0))
    for place in np.ndindex(*new):
        index = np.zeros(len(old), int)
        for entry, held in zip(place, found, strict=True):
            for factor in reversed(held):
                entry, digit = divmod(entry, factor.size)
                index[factor.axis] += digit * factor.stride
        np.testing.assert_array_equal(index, source[place])


@hypothesis.given(reshapes())
def test_sources_of_a_reshape_are_the_axes_that_an_axis_of_the_result_varies_with(shapes):
    old, new = shapes
    hypothesis.assume(old != new)
    graph, _ = trace(lambda x: jax.lax.reshape(x, new), np.zeros(old, np.float32))
    (node,) = graph.nodes
    found = sources(node, old, new)
    coordinates = np.stack(np.indices(old), -1).reshape(*new, len(old)) if old else None
    for axis, held in enumerate(found):
        if new[axis] > 1 and coordinates is not None:
            varies = np.any(np.diff(coordinates, axis=axis) != 0, tuple(range(len(new))))
            assert set(np.flatnonzero(varies)) <= set(held)


@pytest.mark.parametrize(
    ("function", "shape", "wanted"),
    [
        (lambda x: jax.lax.transpose(x, (1, 0)), (2, 3), [(1,), (0,)]),
        (lambda x: jax.lax.broadcast_in_dim(x, (2, 5, 3), (0, 2)), (2, 3), [(0,), (), (1,)]),
        (lambda x: jax.lax.squeeze(x, (1,)), (2, 1, 3), [(0,), (2,)]),
        (lambda x: jax.lax.reduce_sum(x, (0,)), (2, 3, 4), [(1,), (2,)]),
        (lambda x: jax.lax.argmax(x, 1, np.int32), (2, 3, 4), [(0,), (2,)]),
        (lambda x: jax.lax.slice(x, (0, 0), (1, 3)), (2, 3), [(0,), (1,)]),
        (lambda x: jax.lax.cumsum(x, 1), (2, 3), [(0,), (1,)]),
        (lambda x: jax.lax.convert_element_type(x, np.int32), (2, 3), [(0,), (1,)]),
    ],
    ids=["transpose", "broadcast", "squeeze", "sum", "argmax", "slice", "running sum", "cast"],
)
def test_sources_of_other_equations(function, shape, wanted):
    graph, _ = trace(function, np.zeros(shape, np.float32))
    (node,) = graph.nodes
    assert sources(node, shape, graph.avals[node.outputs[0]].shape) == wanted


def test_whole_axes_of_a_reshape():
    assert whole_axes((2, 3, 4), (2, 12)) == (0, None, None)
    assert whole_axes((6, 4), (2, 3, 4)) == (None, 2)
    assert whole_axes((2, 1, 3), (2, 3)) == (0, None, 1)
