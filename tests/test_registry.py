"""Names, configs and closures: every way to write an initializer leads to the same value."""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxinit.initializers
from catalogue import CASES, evaluate
from jaxinit.initializers import (
    Initializer,
    constant,
    describe,
    from_config,
    from_jax,
    get,
    he_normal,
    names,
    normal,
    ones,
    to_config,
    zeros,
)

# Public names that are no factories of an initializer.
TOOLS = {
    *("Axes", "Entry", "Fans", "Initializer", "Law", "Part"),
    *("compute_fans", "describe", "einsum_axes", "from_config", "from_jax", "get", "names"),
    "to_config",
}
# Flax's spelling of the two initializers that JAX has as plain functions.
FLAX_SPELLINGS = {"zeros_init", "ones_init"}


# Names.


def test_names_are_the_public_factories():
    public = {
        name
        for name, value in vars(jaxinit.initializers).items()
        if not name.startswith("_") and not inspect.ismodule(value)
    }
    assert public - TOOLS - FLAX_SPELLINGS == set(names())
    assert TOOLS | FLAX_SPELLINGS <= public
    assert len(names()) == len(set(names()))


def test_every_factory_is_in_the_catalogue_of_the_tests():
    assert {case.name for case in CASES} == set(names()) | FLAX_SPELLINGS


@pytest.mark.parametrize("name", names())
def test_describe_has_a_full_line_and_the_public_factory(name):
    entry = describe(name)
    assert entry.name == name
    assert entry.factory is getattr(jaxinit.initializers, name)
    assert all(isinstance(text, str) and text for text in (entry.law, entry.use, entry.source))


def test_aliases_are_the_same_function():
    for alias in (name for name in names() if describe(name).law.startswith("=")):
        original = describe(alias).law.removeprefix("= ")
        assert describe(alias).factory is describe(original).factory


@pytest.mark.parametrize(
    ("misspelled", "meant"),
    [
        ("he_norml", "he_normal"),
        ("xavier_unifrom", "xavier_uniform"),
        ("orthogonl", "orthogonal"),
        ("trunc_normal", "truncated_normal"),
        ("zero", "zeros"),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest(misspelled, meant):
    for ask in (describe, get, lambda name: from_config({"name": name})):
        with pytest.raises(ValueError, match=rf"no '{misspelled}'\. Did you mean .*\b{meant}\b"):
            ask(misspelled)


def test_a_name_like_no_other_is_answered_with_all():
    with pytest.raises(ValueError) as error:
        get("qqqq")
    assert all(name in str(error.value) for name in names())


# get.


def test_get_takes_whatever_names_an_initializer():
    expected = he_normal(negative_slope=0.2)
    assert get("he_normal", negative_slope=0.2) == expected
    assert get({"name": "he_normal", "negative_slope": 0.2}) == expected
    assert get(expected) is expected
    assert get(jax.nn.initializers.he_normal()) == he_normal() == get("he_normal")


def test_get_of_a_value_that_is_no_function():
    """`zeros` and `ones` are values: their only argument is the dtype."""
    assert get("zeros") == zeros
    assert get("ones", dtype="bfloat16") == constant(1, dtype="bfloat16")


def test_get_passes_arguments_on_unchanged():
    for case in CASES:
        initializer = case.initializer
        assert get(initializer.label, **initializer.arguments()) == initializer


# Configs.

CALLS = (
    *(case.call for case in CASES),
    # Nested, and with wrappers in every position.
    "stacked(scaled(masked(he_normal(dtype='bfloat16'), np.tri(3)), -0.5), (0, -1))",
    "fused([stacked(glorot_normal(gain=3.0), -1), scaled(orthogonal(0.5, 0), 2.0), zeros], (1, 2, 3), 0)",
    "reshaped(fused(lecun_normal(0, 1), (4, 4)), (2, 8))",
    "masked(fused([constant(1j), normal(0.5)], (1, 1)), [[True], [False]])",
    # Values that JSON has no word for.
    "constant([[1.5, float('nan')], [float('inf'), -float('inf')]])",
    "constant(float('-inf'))",
    "constant(1 - 2j)",
    "constant([1j, complex(float('inf'), 0.5)])",
    "truncated_normal(0.1, lower=-np.inf)",
    "truncated_normal(0.1, upper=np.inf, exact=True)",
    "constant(np.arange(24).reshape(2, 3, 4))",
    # Every argument of a law, none at its default.
    "variance_scaling(0.3, 'fan_geo_avg', 'normal', (0, 1), 3, 2, 'float16', groups=2)",
    "lecun_uniform(-1, (), dtype='complex64', transposed_strides=(2, 3))",
    "he_uniform(negative_slope=0.1, groups=3, batch_axis=(0, 1))",
    "glorot_uniform(gain=0.0)",
    "uniform(minval=-1.0, maxval=2.0, dtype='float32')",
    "normal(1e-300, mean=-1e300)",
    "sparse(1.0, 0.0)",
    "dirac(-2.0, 4, 'float16')",
    "delta_orthogonal(2.0, -2, 'complex64')",
)


@pytest.mark.parametrize("call", dict.fromkeys(CALLS))
def test_config_goes_through_json_and_back(call):
    initializer = evaluate(call)
    config = to_config(initializer)
    text = json.dumps(config, allow_nan=False)
    again = from_config(json.loads(text))
    assert again == initializer
    assert hash(again) == hash(initializer)
    assert repr(again) == repr(initializer)
    assert to_config(again) == json.loads(text)
    assert evaluate(repr(again)) == initializer


def test_config_names_only_what_is_no_default():
    assert to_config(he_normal()) == {"name": "he_normal"}
    assert to_config(normal(0.02)) == {"name": "normal", "stddev": 0.02}
    assert to_config(zeros) == {"name": "constant", "value": 0.0}
    assert from_config({"name": "zeros"}) == zeros
    assert from_config({"name": "ones", "dtype": "int32"}) == constant(1, "int32")


def test_config_keeps_the_recipe_that_was_called():
    config = to_config(evaluate("glorot_normal(gain=5 / 3)"))
    assert config == {"name": "glorot_normal", "gain": 5 / 3}
    config = to_config(evaluate("kaiming_uniform(negative_slope=0.2)"))
    assert config == {"name": "he_uniform", "negative_slope": 0.2}


def test_config_by_hand_may_spell_as_a_call_does():
    """A whole number for a float, a name that is an alias, a list for a tuple."""
    by_hand = {"name": "xavier_normal", "gain": 2, "in_axis": [0, 1], "out_axis": 2}
    assert from_config(by_hand) == evaluate("glorot_normal((0, 1), 2, gain=2.0)")
    layers = {"name": "stacked", "initializer": {"name": "ones"}, "axis": [0]}
    assert from_config(layers) == evaluate("stacked(ones)")


def test_config_keeps_every_bit_of_a_number():
    for number in (0.1, 1 / 3, 5e-324, 2.0**-1074 * 3, 1.7976931348623157e308, math.pi):
        text = json.dumps(to_config(constant([number, -number])), allow_nan=False)
        assert from_config(json.loads(text)) == constant([number, -number])


# Closures of JAX.

JAX = jax.nn.initializers
CLOSURES: tuple[tuple[str, Callable[..., Any], str], ...] = (
    ("zeros", JAX.zeros, "zeros"),
    ("ones", JAX.ones, "ones"),
    ("constant", JAX.constant(0.5, "float16"), "constant(0.5, 'float16')"),
    ("constant", JAX.constant(jnp.arange(3.0)), "constant([0, 1, 2])"),
    ("uniform", JAX.uniform(), "uniform()"),
    ("uniform", JAX.uniform(0.3, jnp.bfloat16), "uniform(0.3, 'bfloat16')"),
    ("normal", JAX.normal(), "normal()"),
    ("normal", JAX.normal(0.02, jnp.complex64), "normal(0.02, 'complex64')"),
    ("truncated_normal", JAX.truncated_normal(), "truncated_normal()"),
    (
        "truncated_normal",
        JAX.truncated_normal(0.1, "float16", -1.0, 3.0),
        "truncated_normal(0.1, 'float16', -1.0, 3.0)",
    ),
    (
        "variance_scaling",
        JAX.variance_scaling(0.7, "fan_avg", "normal", (0, 1), 3, 2, "bfloat16"),
        "variance_scaling(0.7, 'fan_avg', 'normal', (0, 1), 3, 2, 'bfloat16')",
    ),
    (
        "variance_scaling",
        JAX.variance_scaling(3.0, "fan_geo_avg", "uniform"),
        "variance_scaling(3.0, 'fan_geo_avg', 'uniform')",
    ),
    *(
        (name, getattr(JAX, name)(-1, (-2, 0), 1, "float16"), f"{name}(-1, (-2, 0), 1, 'float16')")
        for name in dir(JAX)
        if name.split("_")[0] in ("glorot", "he", "kaiming", "lecun", "xavier")
    ),
    ("orthogonal", JAX.orthogonal(), "orthogonal()"),
    ("orthogonal", JAX.orthogonal(0.5, 0, jnp.float32), "orthogonal(0.5, 0, 'float32')"),
    ("delta_orthogonal", JAX.delta_orthogonal(), "delta_orthogonal()"),
    ("delta_orthogonal", JAX.delta_orthogonal(2.0, -2), "delta_orthogonal(2.0, -2)"),
)


def _without_jax_default(initializer: Initializer) -> Initializer:
    """JAX closes over a dtype where the user names none; its default says as little as None."""
    import dataclasses

    default = jax.dtypes.canonicalize_dtype(float).name
    if initializer.dtype == default:
        return dataclasses.replace(initializer, dtype=None)
    return initializer


@pytest.mark.parametrize(
    ("closure", "call"), [case[1:] for case in CLOSURES], ids=[case[2] for case in CLOSURES]
)
def test_from_jax(closure, call):
    translated, expected = from_jax(closure), evaluate(call)
    assert _without_jax_default(translated) == _without_jax_default(expected)
    assert get(closure) == translated
    assert from_config(to_config(translated)) == translated


def test_from_jax_covers_all_of_jax():
    public = {
        name
        for name in dir(JAX)
        if not name.startswith("_") and inspect.isfunction(getattr(JAX, name))
    }
    assert {name for name, *_ in CLOSURES} == public


def test_from_jax_keeps_what_is_ours():
    initializer = he_normal()
    assert from_jax(initializer) is initializer
    assert from_jax(ones) is ones


def test_from_jax_refuses_what_it_cannot_read():
    def init(key, shape, dtype=jnp.float32, out_sharding=None):
        return jnp.zeros(shape, dtype)

    wrapped = JAX.he_normal()
    for function in (lambda *a: init(*a), init, JAX.he_normal, JAX.constant, jnp.zeros, np.ones):
        with pytest.raises(ValueError, match=r"from_jax needs an initializer made by jax\.nn"):
            from_jax(function)
    with pytest.raises(ValueError, match="from_jax"):
        from_jax(lambda *arguments: wrapped(*arguments) / 2)


def test_from_jax_reads_the_law_and_not_the_name():
    """A closure of another module with a familiar name is refused, not guessed."""

    def he_normal():
        def init(key, shape, dtype=jnp.float32, out_sharding=None):
            return jnp.zeros(shape, dtype)

        return init

    with pytest.raises(ValueError, match="from_jax"):
        from_jax(he_normal())
