"""Names and configs: the catalogue is complete, documented and readable from JSON."""

from __future__ import annotations

import dataclasses
import inspect
import json
import math
import pickle

import jax
import numpy as np
import pytest

import jaxinit
from catalogue import CASES, evaluate
from jaxinit import initializers
from jaxinit.initializers import (
    Description,
    Initializer,
    describe,
    from_config,
    get,
    names,
    to_config,
)

pytestmark = pytest.mark.unoptimized

KEY = jax.random.key(0)

# Public names that are no factories.
TOOLS = {
    "Axes", "BaseInitializer", "Description", "Fans", "FromFunction", "Fused", "Initializer", "Law",
    "Own", "Reshaped", "SingleWrapper", "Slab", "Stacked", "Traits", "VarianceScaling",
    "compute_fans", "describe", "einsum_axes", "from_config", "from_jax", "get", "names",
    "to_config",
}  # fmt: skip
# Flax's second spelling of `zeros` and `ones`: not in the catalogue, since it is the same value.
SPELLINGS = {"zeros_init", "ones_init"}
MODULES = {name for name in dir(initializers) if inspect.ismodule(getattr(initializers, name))}
FACTORIES = {name for name in dir(initializers) if not name.startswith("_")} - TOOLS - MODULES


def test_the_table_of_the_tests_is_complete():
    missing = FACTORIES - {case.name for case in CASES}
    assert not missing, f"tests/catalogue.py has no case for {sorted(missing)}"


def test_the_catalogue_is_complete():
    assert set(names()) == FACTORIES - SPELLINGS
    assert len(names()) == len(set(names()))


@pytest.mark.parametrize("name", names())
def test_entries(name):
    entry = describe(name)
    assert isinstance(entry, Description)
    assert entry.name == name
    assert entry.factory is getattr(initializers, name)
    assert entry.law and entry.use and entry.source
    assert all(len(text) < 60 for text in (entry.law, entry.use, entry.source))


VALUES = [name for name in names() if isinstance(getattr(initializers, name), Initializer)]
CALLED = [name for name in names() if name not in VALUES]


@pytest.mark.parametrize("name", CALLED)
def test_every_factory_is_documented(name):
    """In the order of the style: what it is for, its law, arguments, result, errors, example."""
    value = getattr(initializers, name)
    text = inspect.getdoc(value) or ""
    parts = ["Law: ", "Args:", "Returns:", "Raises:", "Example:"]
    places = [text.find(part) for part in parts]
    assert -1 not in places, f"{name} lacks {parts[places.index(-1)]}"
    assert places == sorted(places)
    for parameter in inspect.signature(value).parameters:
        assert f"{parameter}: " in text, f"{name} does not say what {parameter} is"


@pytest.mark.parametrize("name", VALUES)
def test_get_by_name_of_a_value(name):
    assert get(name) == getattr(initializers, name)


@pytest.mark.parametrize("name", CALLED)
def test_get_by_name(name):
    """Names whose parameters all have defaults are initializers by themselves."""
    factory = getattr(initializers, name)
    required = [
        parameter.name
        for parameter in inspect.signature(factory).parameters.values()
        if parameter.default is inspect.Parameter.empty
    ]
    if not required:
        assert get(name) == factory()
    else:
        with pytest.raises(TypeError, match=rf"{name} needs other arguments: missing a required"):
            get(name)


def test_get_takes_whatever_names_an_initializer():
    he = initializers.he_normal()
    assert get("he_normal") == he
    assert get("he_normal", in_axis=0, out_axis=1) == initializers.he_normal(0, 1)
    assert get(he) is he
    assert get({"name": "he_normal"}) == he
    assert get(jax.nn.initializers.he_normal()) == he
    assert get("zeros", dtype="bfloat16")(None, (2,)).dtype == "bfloat16"
    assert get("constant", value=3) == initializers.constant(3)
    assert get("fused", initializers=he, sizes=(1, 2)) == initializers.fused(he, (1, 2))


@pytest.mark.parametrize(
    ("call", "config"),
    [
        ("zeros", {"name": "constant", "value": 0.0}),
        ("normal(0.02)", {"name": "normal", "stddev": 0.02}),
        ("normal(0.5, mean=1, dtype=np.float16)",
         {"name": "normal", "stddev": 0.5, "mean": 1.0, "dtype": "float16"}),
        ("uniform(0.5)", {"name": "uniform", "scale": 0.5}),
        ("uniform(minval=-1)", {"name": "uniform", "minval": -1.0, "maxval": 0.01}),
        ("truncated_normal(lower=-np.inf)",
         {"name": "truncated_normal", "stddev": 0.01, "lower": {"float": "-inf"}}),
        ("he_normal()", {"name": "he_normal"}),
        ("he_normal(0, (1, 2))", {"name": "he_normal", "in_axis": 0, "out_axis": [1, 2]}),
        ("variance_scaling(2, 'fan_in', 'truncated_normal')", {"name": "he_normal"}),
        ("glorot_uniform(gain=2)", {"name": "glorot_uniform", "gain": 2.0}),
        ("kaiming_normal(negative_slope=0.5)", {"name": "he_normal", "negative_slope": 0.5}),
        ("scaled_orthogonal(2)", {"name": "scaled_orthogonal", "scale": 2.0}),
        ("orthogonal(method='reflections')", {"name": "orthogonal", "method": "reflections"}),
        ("constant(1 + 2j)", {"name": "constant", "value": {"re": 1.0, "im": 2.0}}),
        ("constant([1, np.inf])", {"name": "constant", "value": [1.0, {"float": "inf"}]}),
        ("stacked(zeros)", {"name": "stacked", "initializer": {"name": "constant", "value": 0.0}}),
        ("masked(ones, [[1, 0]])",
         {"name": "masked", "initializer": {"name": "constant", "value": 1.0}, "mask": [[1, 0]]}),
        ("fused(he_normal(), (1, 2), 0)",
         {"name": "fused", "initializers": [{"name": "he_normal"}] * 2, "sizes": [1, 2],
          "axis": 0}),
    ],
)  # fmt: skip
def test_configs(call, config):
    """Short enough to be written by hand, and only what differs from the defaults."""
    init = evaluate(call)
    assert to_config(init) == config
    assert from_config(config) == init
    assert from_config(json.loads(json.dumps(config, allow_nan=False))) == init


@pytest.mark.parametrize(
    "call",
    [
        "constant(1 + 2j)",
        "constant(np.array([np.inf + 1j, -2 - np.inf * 1j, 0]))",
        "constant([[1.5, -np.inf], [0.1, 3e300]])",
        "constant(np.nan)",
        "truncated_normal(0.1, lower=-np.inf, upper=np.float32(1.5))",
        "scaled(fused([stacked(masked(he_normal(0, 1), np.eye(3))), zeros], (3, 4)), 1 / 3)",
        "stacked(constant(np.arange(6).reshape(2, 3)), (0, -1))",
        "lecun_normal(*einsum_axes('ebd,edf->ebf'), transposed_strides=(2, 1))",
        "normal(np.float32(0.1))",
        "he_uniform(negative_slope=np.float32(0.1), dtype=np.dtype('complex64'))",
        "constant(np.array(2.5, dtype='float16'))",
    ],
)
def test_round_trips_of_odd_values(call):
    init = evaluate(call)
    text = json.dumps(to_config(init), allow_nan=False)
    for again in (from_config(json.loads(text)), evaluate(repr(init))):
        assert again == init and hash(again) == hash(init)
        assert repr(again) == repr(init)
        assert to_config(again) == to_config(init)


def test_configs_ignore_the_order_of_keys():
    config = {"im": [3.0, 4.0], "re": [1.0, 2.0]}
    init = from_config({"value": config, "name": "constant"})
    np.testing.assert_array_equal(init(None, (2,), "complex64"), [1 + 3j, 2 + 4j])


def test_configs_hold_plain_json_only():
    def plain(value) -> bool:
        if isinstance(value, dict):
            return all(type(key) is str and plain(item) for key, item in value.items())
        if isinstance(value, list):
            return all(map(plain, value))
        return type(value) in (str, int, float, bool) and value == value

    for case in CASES:
        assert plain(to_config(case.initializer)), case.call


def test_a_subclass_is_not_written_under_the_name_of_its_base():
    """It would be read back as another law."""

    @dataclasses.dataclass(frozen=True, repr=False)
    class Twice(type(initializers.normal())):
        def sample(self, key, shape, dtype):
            return 2 * super().sample(key, shape, dtype)

    with pytest.raises(TypeError, match=r"to_config needs an initializer of the catalogue"):
        to_config(Twice(1.0))
    assert Twice(1.0) != initializers.normal(1.0)


def test_near_names_are_offered():
    with pytest.raises(ValueError, match=r"has no 'he_norm'\. Did you mean he_normal"):
        describe("he_norm")
    with pytest.raises(ValueError, match=r"jaxinit.initializers has no 'qqq'"):
        get("qqq")


def test_reprs_read_as_users_write_them():
    for call in (
        "zeros",
        "ones",
        "constant(0.5)",
        "uniform(0.5)",
        "uniform(minval=-0.3, maxval=0.1)",
        "normal(0.02)",
        "normal(0.02, mean=1.0, dtype='bfloat16')",
        "truncated_normal(0.1, lower=float('-inf'))",
        "he_normal()",
        "he_normal(in_axis=0, out_axis=(1, 2))",
        "he_uniform(negative_slope=0.2)",
        "glorot_uniform(gain=2.0)",
        "variance_scaling(3.0, 'fan_out', 'normal')",
        "orthogonal()",
        "orthogonal(scale=0.5)",
        "scaled_orthogonal(scale=2.0, column_axis=0)",
        "delta_orthogonal(method='reflections')",
        "sparse(0.5)",
        "scaled(he_normal(), 0.5)",
        "stacked(lecun_normal())",
        "stacked(lecun_normal(), axis=(0, 1))",
        "fused((normal(0.1), zeros), (1, 2), axis=0)",
        "masked(ones, [1.0, 0.0])",
        "reshaped(lecun_normal(), (8, 6))",
    ):
        assert repr(evaluate(call)) == call


def test_entries_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        describe("normal").law = "x"  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(dataclasses.FrozenInstanceError):
        initializers.normal().stddev = 3.0  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(ValueError, match="read-only"):
        initializers.constant([1.0, 2.0]).value.array[0] = 3
    assert math.isclose(initializers.normal().stddev, 0.01)


def test_arrays_are_copied():
    """A mask that its owner writes to later stays what it was."""
    mask = np.array([1, 0, 1])
    init = initializers.masked(initializers.ones, mask)
    before = hash(init)
    mask[:] = 0
    assert hash(init) == before
    np.testing.assert_array_equal(init(None, (3,)), [1, 0, 1])


# What nothing is known of.


def test_own_is_a_value_that_knows_the_model_or_says_what_it_lacks():
    own = initializers.own
    known = own(initializers.normal(0.5))
    assert jaxinit.own is own and repr(own) == "own" and repr(known) == "own(normal(0.5))"
    assert not own.law((3, 2)).known and own.law((3, 2)) == own.law((4,))
    assert math.isnan(own.law((3, 2)).variance) and known.law((3, 2)).variance == 0.25
    for value in (own, known):
        assert from_config(json.loads(json.dumps(to_config(value)))) == value
        assert pickle.loads(pickle.dumps(value)) == value and hash(value)
    assert (known(KEY, (3,)) == initializers.normal(0.5)(KEY, (3,))).all()
    with pytest.raises(ValueError, match=r"own needs the model .* got only the shape \(3,\)"):
        own(KEY, (3,))
    with pytest.raises(TypeError, match=r"own needs a shape, as in own\(key, \(512, 256\)\)"):
        own(KEY)


def halved(key, shape, dtype):
    return jax.random.normal(key, shape, dtype) / 2


def test_a_plain_function_draws_and_promises_nothing():
    init = get(halved)
    assert repr(init) == init.label == "halved" and init == get(halved)
    assert pickle.loads(pickle.dumps(init)) == init
    assert not init.law((3, 2)).known and not initializers.scaled(init, 2.0).law((3, 2)).known
    assert (init(KEY, (3,), "bfloat16") == halved(KEY, (3,), "bfloat16")).all()
    packed = initializers.fused([init, initializers.zeros], (3, 2), 0)
    assert not packed.law((5,)).known and packed.law((5,)).slabs[1].law.variance == 0
    assert packed(KEY, (5,))[3:].tolist() == [0, 0]
