"""The zoo of the verdicts, and the judgement that ten draws pass on findings."""

import dataclasses
import pathlib
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxinit

sys.path.append(str(pathlib.Path(__file__).parents[1] / "benchmarks"))

from published import ZOO, Model, broken
from published.evidence import Meter, confirmed

pytestmark = pytest.mark.unoptimized

WIDTH, LAYERS = 64, 9
OWN = [entry for entry in ZOO if entry.library != "transformers"]


def test_zoo_is_wide():
    names = [entry.name for entry in ZOO]
    assert len(OWN) >= 40 and len(set(names)) == len(names)
    assert {entry.library for entry in OWN} == {"linen", "nnx", "equinox", "haiku"}


@pytest.mark.parametrize("name", ["GCN", "LoRA", "MLP of Equinox", "LSTM of Haiku"])
def test_models_run_from_their_own_initialization(name):
    model = next(entry for entry in OWN if entry.name == name).make()
    arrays = jax.eval_shape(model.init, jax.random.key(0))
    inputs = jax.eval_shape(model.data, jax.random.key(1))
    outputs = jax.eval_shape(model.apply, arrays, *inputs)
    assert all(jnp.issubdtype(x.dtype, jnp.floating) for x in jax.tree.leaves(outputs))


def chain(variance: float) -> Model:
    """A deep linear-then-ReLU chain with kernels of so much times 1 / fan_in."""

    def init(key):
        keys = jax.random.split(key, LAYERS)
        return [jax.random.normal(k, (WIDTH, WIDTH)) * (variance / WIDTH) ** 0.5 for k in keys]

    def apply(kernels, x):
        for kernel in kernels[:-1]:
            x = jax.nn.relu(x @ kernel)
        return x @ kernels[-1]

    return Model(init, apply, lambda key: (jax.random.normal(key, (8, WIDTH)),))


@pytest.fixture(scope="module")
def measured():
    def of(variance):
        model = chain(variance)
        trees = [model.init(jax.random.key(n)) for n in range(3)]
        shapes = jax.eval_shape(model.data, jax.random.key(0))
        reading = jaxinit.read(model.apply, trees[0], *shapes)
        return trees, reading, Meter(model, reading)(trees)

    return {variance: of(variance) for variance in (1.0, 2.0)}


def finding(code, leaves=("0",)):
    return types.SimpleNamespace(code=code, leaves=tuple(leaves))


def test_measurement_halves_under_relu(measured):
    _, _, facts = measured[1.0]
    sizes = [facts.forward[n].mean() for n in facts.order]
    # Gain 1 under ReLU halves the second moment; nine layers of width 64 stray by exp(sqrt(5 / 8)).
    assert 2**-8 / 3 < sizes[-1] / sizes[0] < 2**-8 * 3
    np.testing.assert_allclose(facts.moments["0"].mean(), 1 / WIDTH, rtol=0.1)


@pytest.mark.parametrize(("variance", "true"), [(1.0, True), (2.0, False)])
def test_draws_decide_about_a_gain(measured, variance, true):
    _, reading, facts = measured[variance]
    said, why = confirmed(finding("gain-mismatch", reading.paths), "chain", reading, facts)
    assert said is true and "multiplied by" in why


def test_draws_decide_about_fans(measured):
    _, reading, facts = measured[1.0]
    assert confirmed(finding("wrong-fans"), "chain", reading, facts)[0] is False
    far = {path: moment * 9 for path, moment in facts.moments.items()}
    facts = dataclasses.replace(facts, moments=far)
    assert confirmed(finding("wrong-fans"), "chain", reading, facts)[0] is True
    assert confirmed(finding("not-understood"), "chain", reading, facts)[0] is None


def test_one_thing_is_broken(measured):
    trees, reading, _ = measured[2.0]
    tree, paths = broken.apply(trees[0], reading, "NaN")
    assert paths == ("0",) and int(jnp.isnan(tree[0]).sum()) == 1
    tree, paths = broken.apply(trees[0], reading, "gain x 4")
    assert len(paths) == LAYERS - 1
    np.testing.assert_allclose(tree[0], 4 * trees[0][0], rtol=1e-6)
    assert broken.apply(trees[0], reading, "wrong fans") is None
    assert broken.fits("gain x 4", "gain-mismatch") and not broken.fits("twins", "gain-mismatch")
