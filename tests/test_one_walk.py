"""One graph builder, one interpreter, one table of primitives, read from the source; what it buys.

Whoever teaches the house a primitive writes a row and, where no rule of its class will do, a rule
in one room. A test here does that with a toy primitive; another lists who knows what.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.extend.core as jex
import jax.numpy as jnp
import numpy as np
import pytest
from jax.interpreters import mlir

import jaxinit
from jaxinit import initializers as init
from jaxinit.jaxpr import TABLE, Bits, Class, Primitive, Rules, register, straighten, trace
from jaxinit.reading._domain import rules as reading_rules
from jaxinit.signal._rules import rules as signal_rules

pytestmark = pytest.mark.unoptimized

PACKAGE = Path(jaxinit.__file__).parent
OUTSIDE = [path for path in sorted(PACKAGE.rglob("*.py")) if path.parent.name != "jaxpr"]
# The engine compares programs, and asks what is inside an equation that it moves elsewhere.
COMPARE = {"engine"}
# Which bits are equal was measured for these, primitive by primitive: a rule of the engine's own.
MEASURED = {"engine/_threefry.py"}
MOST_NAMES = 6


def each_outside(test):
    """Runs a test once for every file of the package that is not in the room of traced programs."""
    name = [path.relative_to(PACKAGE).as_posix() for path in OUTSIDE]
    return pytest.mark.parametrize("path", OUTSIDE, ids=name)(test)


def tables_of_primitives(tree: ast.AST) -> Iterator[tuple[int, list[str]]]:
    """Line and names of every literal that lists many primitives, as a collection or as text."""
    for node in ast.walk(tree):
        texts: list[ast.expr | None] = []
        if isinstance(node, ast.Set | ast.Tuple | ast.List):
            texts = list(node.elts)
        elif isinstance(node, ast.Dict):
            texts = list(node.keys)
        names = [n.value for n in texts if isinstance(n, ast.Constant) and isinstance(n.value, str)]
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            words = node.value.split()
            # Prose has words that are primitives too, but also words that are not.
            names = words if all(re.fullmatch(r"[a-z][a-z0-9_-]*", w) for w in words) else []
        known = [name for name in names if name in TABLE]
        if len(known) >= MOST_NAMES:
            yield node.lineno, known


def test_the_reader_sees_tables():
    written = [
        'A = frozenset({"add", "sub", "mul", "div", "exp", "log"})',
        'A = {"add": 1, "sub": 2, "mul": 3, "div": 4, "exp": 5, "log": 6}',
        'A = "add sub mul div exp log".split()',
    ]
    assert all(list(tables_of_primitives(ast.parse(line))) for line in written)
    assert not list(tables_of_primitives(ast.parse('rules("add", "sub", "mul", "div", "exp")')))


@each_outside
def test_there_is_one_table_of_primitives(path):
    found = list(tables_of_primitives(ast.parse(path.read_text(encoding="utf-8"))))
    allowed = int(path.relative_to(PACKAGE).as_posix() in MEASURED)
    assert len(found) == allowed, (
        f"{path.name}: ask the table in jaxinit/jaxpr/_primitives.py: {found}"
    )


@each_outside
def test_there_is_one_graph_builder_and_one_interpreter(path):
    """Nobody else goes through equations, nor divides the operands of a loop."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    walked = [
        node.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and node.attr in ("eqns", "invars")
    ]
    assert not walked or path.parent.name in COMPARE, f"{path.name}: equations at {walked}"
    divided = [
        node.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant)
        and node.value in ("cond_nconsts", "body_nconsts", "condition_constants", "num_consts")
    ]
    assert not divided, f"{path.name}: operands of loops divided at {divided}"


RULES: dict[str, Rules] = {"reading": reading_rules, "signal": signal_rules}
# What each analysis of models has no rule for: its results are unknown, and it says so.
WITHOUT_RULE = {
    "reading": """
        approx_top_k reduce reduce_window select_and_gather_add select_and_scatter
        select_and_scatter_add top_k
    """,
    # Whole numbers (argmax, scatter into counters) have no second moment to predict; running
    # products, largest and scattered entries have laws that are not written.
    "signal": """
        approx_top_k argmax argmin cumlogsumexp cummax cummin cumprod reduce reduce_and reduce_or
        reduce_prod reduce_window reduce_xor scatter scatter-add scatter-max scatter-min
        scatter-mul select_and_gather_add select_and_scatter select_and_scatter_add top_k
    """,
}
# An older name of `ragged_dot_general`, which no supported JAX traces to.
NEVER_TRACED = {"ragged_dot"}


def forward_primitives() -> set[str]:
    """Primitives that a forward pass may hold: all of the table but loops, calls and devices."""
    outside = (Class.CALLS, Class.OTHER, Class.DRAWS)
    return {name for name, row in TABLE.items() if row.kind not in outside} - NEVER_TRACED


@pytest.mark.parametrize("analysis", RULES)
def test_what_an_analysis_has_no_rule_for_is_written_down(analysis):
    unknown = {name for name in forward_primitives() if name not in RULES[analysis]}
    assert unknown == set(WITHOUT_RULE[analysis].split())


def _toy(x):
    return toy.bind(x)


toy = jex.Primitive("toy")
toy.def_abstract_eval(lambda x: jax.core.ShapedArray(x.shape, x.dtype))
toy.def_impl(lambda x: jnp.tanh(x) + 0 * x)
mlir.register_lowering(toy, mlir.lower_fun(lambda x: jnp.tanh(x), multiple_results=False))


def test_a_toy_primitive_is_taught_to_all_rooms(monkeypatch):
    """A row is all: the reading names it, the signal predicts it, the engine cuts beside it."""
    jax.interpreters.ad.defjvp(toy, lambda g, x: g * (1 - jnp.tanh(x) ** 2))
    monkeypatch.setitem(TABLE, "toy", TABLE["tanh"])  # taken back at the end
    register(Primitive("toy", Class.ELEMENTWISE, Bits.ENTRYWISE, np.tanh, keeps_zeros=True))

    def model(params, x):
        return _toy(x @ params["w"]) @ params["out"]

    shapes = {"w": jnp.zeros((64, 256)), "out": jnp.zeros((256, 8))}
    reading = jaxinit.read(model, shapes, jnp.zeros((32, 64)))
    assert reading["w"].uses[0].after.activation.name == "tanh"
    plan = jaxinit.plan(shapes, [("*", init.lecun_normal())])
    prediction = jaxinit.predict(reading, plan, measure=True, draws=4)
    assert all(layer.holds(1.2) for layer in prediction.layers)
    assert abs(prediction.layers[1].forward[0] - 0.39429449) < 1e-4  # E tanh(z)^2

    def make(key):
        return [_toy(jax.random.normal(k, (8, 8))) for k in jax.random.split(key, 3)]

    drawn, wanted = (f(jax.random.key(0)) for f in (jaxinit.jit_init(make), jax.jit(make)))
    assert all((one == other).all() for one, other in zip(drawn, wanted, strict=True))
    assert not jaxinit.jit_init(make).explain(jax.random.key(0)).fallback
    assert "toy" in {node.primitive for node in straighten(trace(make, jax.random.key(0))[0])}
