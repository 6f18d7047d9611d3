"""The specimen: sizes and laws of the released model, and a forward pass."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxinit
from catalogue import QUICK
from jaxinit import initializers as init
from jaxinit.flax import linen_tree, own_initializers
from jaxinit.report.gpt2 import EXAMPLE_INPUTS, RULES, GPT2Config, gpt2, gpt2_124m, gpt2_rules

pytestmark = pytest.mark.unoptimized

KEY = jax.random.key(0)
SMALL = GPT2Config(layers=2, width=16, heads=2, vocabulary=40, positions=12)


@pytest.fixture(scope="module")
def tree():
    return linen_tree(gpt2_124m(), *EXAMPLE_INPUTS)


def test_it_has_the_sizes_of_the_released_model(tree):
    leaves = jax.tree.leaves(tree)
    assert len(leaves) == 148
    assert sum(leaf.size for leaf in leaves) == 124_439_808
    assert {leaf.dtype for leaf in leaves} == {jnp.dtype("float32")}
    shapes = {
        "wte/embedding": (50257, 768),
        "wpe/embedding": (1024, 768),
        "h_0/attn/c_attn/kernel": (768, 2304),
        "h_11/attn/c_proj/kernel": (768, 768),
        "h_11/mlp/c_fc/kernel": (768, 3072),
        "h_11/mlp/c_proj/kernel": (3072, 768),
        "ln_f/scale": (768,),
    }
    plan = jaxinit.plan(tree, RULES)
    assert {path: plan[f"params/{path}"].shape for path in shapes} == shapes


def test_rules_and_the_model_itself_agree_on_every_leaf(tree):
    own = own_initializers(gpt2_124m(), *gpt2_124m().example_inputs())
    plan = jaxinit.plan(tree, RULES)
    assert {leaf.path: leaf.initializer for leaf in plan} == own


def test_the_laws_are_those_of_the_release(tree):
    plan = jaxinit.plan(tree, RULES)
    std = {leaf.path.removeprefix("params/"): leaf.law.std for leaf in plan}
    assert std["wte/embedding"] == pytest.approx(0.02)
    assert std["wpe/embedding"] == pytest.approx(0.01)
    assert std["h_5/attn/c_attn/kernel"] == pytest.approx(0.02)
    assert std["h_5/mlp/c_fc/kernel"] == pytest.approx(0.02)
    assert std["h_5/attn/c_proj/kernel"] == pytest.approx(0.02 / math.sqrt(24))
    assert std["h_5/mlp/c_proj/kernel"] == pytest.approx(0.02 / math.sqrt(24))
    ones = {leaf.path for leaf in plan if leaf.initializer == init.ones}
    assert len(ones) == 25 and all(path.endswith("scale") for path in ones)
    assert sum(leaf.initializer == init.zeros for leaf in plan) == 73


def test_every_rule_is_needed_at_any_size():
    model = gpt2(SMALL)
    plan = jaxinit.plan(linen_tree(model, *model.example_inputs()), gpt2_rules(SMALL))
    assert {leaf.rule_index for leaf in plan} == set(range(len(RULES)))
    assert gpt2_rules() == RULES
    assert gpt2() == gpt2_124m()


@pytest.fixture(scope="module")
def small():
    model = gpt2(SMALL)
    rules = gpt2_rules(SMALL)
    plan = jaxinit.plan(linen_tree(model, *model.example_inputs()), rules)
    # One program: eagerly, each operation of the model is one.
    return jax.jit(model.apply, compiler_options=QUICK), plan.init(KEY)


def test_it_runs_on_planned_values(small):
    apply, variables = small
    ids = jnp.arange(20).reshape(2, 10) % SMALL.vocabulary
    logits = apply(variables, ids)
    assert logits.shape == (2, 10, 40)
    # A tied head of std 0.02 on a normalized stream of 16 features: std 0.08.
    assert 0.04 < float(logits.std()) < 0.16


def test_it_does_not_look_ahead(small):
    apply, variables = small
    ids = np.arange(20).reshape(2, 10) % SMALL.vocabulary
    changed = ids.copy()
    changed[:, 6] = 39
    before, after = (np.asarray(apply(variables, some)) for some in (ids, changed))
    assert np.array_equal(before[:, :6], after[:, :6])
    assert not np.isclose(before[:, 6:], after[:, 6:]).all(axis=-1).any()


def test_example_inputs_fit_the_model():
    assert gpt2_124m().example_inputs() == EXAMPLE_INPUTS
    (ids,) = gpt2(SMALL).example_inputs()
    assert (ids.shape, ids.dtype) == ((1, 12), jnp.int32)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"layers": 0}, r"GPT2Config needs layers >= 1, got 0"),
        ({"vocabulary": -1}, r"needs vocabulary >= 1, got -1"),
        ({"width": 10, "heads": 3}, r"heads that divide width, got width=10 and heads=3"),
    ],
)
def test_sizes_that_make_no_model(sizes, message):
    with pytest.raises(ValueError, match=message):
        GPT2Config(**sizes)


@pytest.mark.parametrize("shape", [(16,), (1, 13)])
def test_ids_that_do_not_fit(shape):
    with pytest.raises(ValueError, match=r"GPT2 needs ids of shape .* at most 12 positions"):
        linen_tree(gpt2(SMALL), jax.ShapeDtypeStruct(shape, jnp.int32))
