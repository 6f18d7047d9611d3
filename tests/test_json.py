"""The one way from a record to JSON."""

import dataclasses
import enum
import json
import math

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from jaxinit._json import dumps, plain


class Colour(enum.Enum):
    RED = "red"


class Named(enum.StrEnum):
    LEFT = "left"


class Size(enum.IntEnum):
    TWO = 2


@dataclasses.dataclass(frozen=True)
class Point:
    x: float
    tags: tuple[str, ...] = ()


CASES = [
    (None, None),
    (True, True),
    (np.True_, True),
    (3, 3),
    ("text", "text"),
    (0.5, 0.5),
    (math.nan, None),
    (math.inf, None),
    (-math.inf, None),
    (np.float64(0.25), 0.25),
    (np.float32("nan"), None),
    (np.int8(-4), -4),
    (ml_dtypes.bfloat16(1.5), 1.5),
    (ml_dtypes.bfloat16("inf"), None),
    (1 + 2j, {"re": 1.0, "im": 2.0}),
    (complex(math.nan, 1), {"re": None, "im": 1.0}),
    (np.complex64(1j), {"re": 0.0, "im": 1.0}),
    ((1, (2.0, math.nan)), [1, [2.0, None]]),
    ({"b", "a"}, ["a", "b"]),
    (frozenset({2, 1}), [1, 2]),
    ({1: (2,), Colour.RED: 3}, {"1": [2], "red": 3}),
    (Colour.RED, "red"),
    (Named.LEFT, "left"),
    (Size.TWO, 2),
    (np.dtype("float32"), "float32"),
    (jnp.dtype("bfloat16"), "bfloat16"),
    (np.float16, "float16"),
    (int, "int"),
    (np.array([[1, 2]]), [[1, 2]]),
    (np.array(7.0), 7.0),
    (np.array([1.0, np.inf]), [1.0, None]),
    (jnp.arange(2), [0, 1]),
    (jnp.array([0.5, jnp.nan], jnp.bfloat16), [0.5, None]),
    (Point(math.inf, ("a",)), {"x": None, "tags": ["a"]}),
    ([Point(1.0)], [{"x": 1.0, "tags": []}]),
    (Point, "Point"),
]


@pytest.mark.parametrize(("value", "expected"), CASES, ids=range(len(CASES)))
def test_plain(value, expected):
    got = plain(value)
    assert got == expected
    assert type(got) is type(expected)
    assert json.loads(dumps(value)) == expected


def test_plain_spells_what_it_does_not_know():
    class Thing:
        def __str__(self):
            return "a thing"

    assert plain({"thing": Thing()}) == {"thing": "a thing"}


def test_plain_has_no_numpy_number_left():
    """A NumPy float is a Python float too; its repr is not."""
    assert type(plain(np.float64(1.5))) is float
    assert type(plain([np.float64(1.5)])[0]) is float


def test_dumps():
    value = {"b": (1, 2), "a": "é"}
    assert dumps(value) == '{\n  "b": [\n    1,\n    2\n  ],\n  "a": "\\u00e9"\n}'
    assert dumps(value, indent=None) == '{"b": [1, 2], "a": "\\u00e9"}'
