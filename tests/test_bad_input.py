"""What happens when a call is wrong: an error that says what was needed, or nothing at all.

First a table with a case for every `raise` of `jaxinit.initializers`, then searches: whatever is
thrown at a factory, a draw or a config, the answer is a right value or an error of the documented
kind that names what was called.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import itertools
import json
import math
import pathlib
import re
from typing import Any

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

import jaxinit.initializers
from catalogue import CASES, NAMESPACE, evaluate
from jaxinit.initializers import (
    BaseInitializer,
    Initializer,
    Law,
    Traits,
    describe,
    from_config,
    from_jax,
    get,
    names,
    normal,
    to_config,
)

pytestmark = pytest.mark.unoptimized

KEY = jax.random.key(0)
FOLDER = pathlib.Path(jaxinit.initializers.__file__).parent
# Where the raises are that belong to an initializer.
FILES = {FOLDER.parent / "_arguments.py", *FOLDER.glob("*.py")}

# A search without drawing costs a few milliseconds an example: 2,000 in the profile "long".
MANY = hypothesis.settings(max_examples=5 * hypothesis.settings().max_examples)
SOME = hypothesis.settings(max_examples=2 * hypothesis.settings().max_examples)


@dataclasses.dataclass(frozen=True, repr=False)
class Counting(BaseInitializer):
    """An initializer of a user's own that draws whole numbers only."""

    own_traits = Traits(frozenset({"integer"}))

    def sample(self, key, shape, dtype):
        return jnp.zeros(shape, dtype)

    def exact_law(self, shape, is_complex):
        return Law(0.0, 0.0, math.nan, (0.0, 0.0))


# Every raise.

# (call, error, what its message says); `k` is a key.
RAISES: tuple[tuple[str, type[Exception], str], ...] = (
    # Shapes.
    ("normal()(k, 'ab')", TypeError, r"normal needs a shape that is a sequence of ints, got 'ab'"),
    ("normal()(k, 3)", TypeError, r"normal needs a shape .* single axis is \(512,\)"),
    ("normal()(k, (3, 2.5))", TypeError, r"normal needs a shape .*got \(3, 2\.5\)"),
    ("normal()(k, (3, True))", TypeError, r"normal needs a shape .*got \(3, True\)"),
    ("normal()(k, {2: 3})", TypeError, r"normal needs a shape"),
    ("normal()(k, (3, -1))", ValueError, r"without negative sizes, got \(3, -1\)"),
    ("normal()(k, (2**40, 2**40))", ValueError, r"fewer than 2\*\*63 entries"),
    ("zeros(k)", TypeError, r"constant needs a shape, as in zeros\(key, \(512, 256\)\)"),
    ("he_normal()(k, (3,))", ValueError, r"he_normal needs .* 2 axes, got \(3,\).*like_kernel"),
    ("lecun_normal()(k, ())", ValueError, r"lecun_normal needs .* 2 axes, got \(\)"),
    ("orthogonal()(k, (3,))", ValueError, r"orthogonal needs a shape with at least 2 axes"),
    ("scaled_orthogonal()(k, ())", ValueError, r"scaled_orthogonal needs a shape with at least 2"),
    ("delta_orthogonal()(k, (3, 3))", ValueError, r"delta_orthogonal .*1 to 3 spatial axes"),
    ("identity()(k, (3,))", ValueError, r"identity needs a shape with at least 2 axes"),
    ("dirac()(k, (3, 3))", ValueError, r"dirac .*1 to 3 spatial axes.*use identity"),
    ("sparse(0.5)(k, (3,))", ValueError, r"sparse needs a shape with at least 2 axes"),
    ("reshaped(normal(), (2, 3))(k, (5,))", ValueError, r"reshaped needs a shape of 6 entries"),
    ("constant([1, 2])(k, (3,))", ValueError, r"constant needs a value that broadcasts to shape"),
    ("masked(normal(), [1, 0])(k, (3,))", ValueError, r"masked needs a mask that broadcasts to"),
    ("fused(normal(), (2, 3))(k, (4,))", ValueError, r"fused needs sizes that add up.* 5, for"),
    ("fused(normal(), (2, 3), 1)(k, (5,))", ValueError, r"fused needs sizes that add up to axis 1"),
    ("stacked(normal(), 3)(k, (2, 2))", ValueError, r"stacked needs its axes inside shape \(2"),
    ("stacked(normal(), (0, -2))(k, (2, 2))", ValueError, r"stacked .* each once, got axis="),
    # Dtypes.
    ("normal()(k, (3,), 'nonsense')", TypeError, r"normal needs a dtype that JAX knows"),
    ("normal(dtype='f4,f4')", TypeError, r"normal needs a complex or float dtype"),
    ("normal(dtype='(,')", TypeError, r"normal needs a dtype that JAX knows, got '\(,'"),
    ("normal(dtype=jnp.ones(2))", TypeError, r"normal needs a dtype that JAX knows, got Array"),
    ("normal(dtype=np.longdouble)", TypeError, r"normal needs a dtype that JAX knows"),
    ("normal(dtype='float8_e8m0fnu')", TypeError, r"holds 0 and negative numbers"),
    ("normal()(k, (3,), 'int32')", TypeError, r"normal needs a complex or float dtype, got int32"),
    ("uniform()(k, (3,), 'complex64')", TypeError, r"uniform needs a float dtype, got complex64"),
    ("scaled(zeros, 2)(k, (3,), 'int32')", TypeError, r"scaled needs a complex or float dtype"),
    ("normal()(k, (3,), k.dtype)", TypeError, r"normal needs a .*dtype"),
    ("constant(1j)(k, (2,))", TypeError, r"constant needs a complex dtype for a complex value"),
    ("constant(0.5)(k, (2,), 'int32')", ValueError, r"values that int32 can hold, got 0\.5"),
    ("constant(300)(k, (2,), 'uint8')", ValueError, r"values that uint8 can hold, got 300"),
    ("constant(2)(k, (2,), bool)", ValueError, r"values that bool can hold"),
    ("normal(1e30)(k, (3,), 'float16')", ValueError, r"normal needs values within the range of"),
    ("normal(1e-30)(k, (3,), 'float16')", ValueError, r"standard deviation that float16 can resol"),
    ("normal(1e-9, mean=1.0)(k, (3,))", ValueError, r"around a mean of 1"),
    ("fused([normal(1e30), ones], (1, 1))(k, (2,), 'float16')", ValueError, r"within the range"),
    ("scaled(normal(mean=1e300), 1e20)(k, (3,))", ValueError, r"scaled .*got values up to"),
    ("masked(scaled(uniform(1e300), 1e20), [1, 0])(k, (2,))", ValueError, r"masked .*up to"),
    ("uniform(minval=-1e308, maxval=1e308)(k, (3,))", ValueError, r"uniform .*up to 1e\+308"),
    ("scaled(normal(1e-9), 1e40)(k, (3,))", ValueError, r"scaled needs a factor within the range"),
    ("scaled(normal(1e-40), 1e38)(k, (3,))", ValueError, r"scaled needs a standard deviation that"),
    # Numbers.
    ("normal('a')", TypeError, r"normal needs stddev as a real number, got 'a'"),
    ("normal(True)", TypeError, r"normal needs stddev as a real number, got True"),
    ("normal(np.True_)", TypeError, r"normal needs stddev as a real number"),
    ("normal(None)", TypeError, r"normal needs stddev as a real number, got None"),
    ("normal(1j)", TypeError, r"normal needs stddev as a real number, got 1j"),
    ("normal(jnp.ones(1))", TypeError, r"normal needs stddev as a real number"),
    ("normal(float('nan'))", ValueError, r"normal needs a finite stddev, got nan"),
    ("normal(10**400)", ValueError, r"normal needs a finite stddev, got inf"),
    ("normal(-1)", ValueError, r"normal needs stddev >= 0, got -1\.0"),
    ("he_normal(negative_slope=1e200)", ValueError, r"he_normal needs a negative_slope whose squa"),
    ("variance_scaling(1e300, 'fan_in', 'normal', gain=1e10)", ValueError, r"gain\*\*2 \* scale"),
    ("variance_scaling(1.0, 'fan_in', 'normal', gain='gelo')", ValueError, r"Did you mean gelu"),
    ("he_normal(nonlinearity='gelu')", TypeError, r"write lecun_normal\(gain='gelu'\)"),
    ("he_uniform(gain=2.0)", TypeError, r"he_uniform takes no gain=2\.0: .*lecun_uniform\(gain=2"),
    ("uniform(minval=1.0, maxval=0.0)", ValueError, r"uniform needs minval <= maxval"),
    ("uniform(-1.0)", ValueError, r"a negative scale has no law"),
    ("uniform(0.5, maxval=1.0)", ValueError, r"uniform needs one upper bound"),
    ("truncated_normal(lower=1.0, upper=0.0)", ValueError, r"truncated_normal needs lower < upper"),
    ("truncated_normal(lower=5.0, upper=6.0)", ValueError, r"at least 0\.001 of the normal's mass"),
    ("truncated_normal(exact=1)", TypeError, r"truncated_normal needs exact as True or False"),
    ("sparse(1.5)", ValueError, r"sparse needs sparsity between 0 and 1, got 1\.5"),
    ("constant('a')", TypeError, r"constant needs value as a number or an array of numbers"),
    ("constant([[1], [1, 2]])", TypeError, r"constant needs value as a number or an array"),
    ("constant(2**60)", ValueError, r"whole numbers in value below 2\*\*53"),
    ("constant([])", ValueError, r"constant needs at least one number in value"),
    ("masked(normal(), [0.5])", ValueError, r"masked needs a mask of booleans, or 0 and 1"),
    # Traced values.
    ("jax.eval_shape(lambda x: normal(x)(k, (3,)), 0.1)", TypeError, r"stddev as a concrete numb"),
    ("jax.eval_shape(lambda x: constant(x)(k, (3,)), 0.1)", TypeError, r"value as concrete num"),
    # Choices and axes.
    ("variance_scaling(1.0, 'fan', 'normal')", ValueError, r"mode to be one of fan_in, .*'fan'"),
    ("variance_scaling(1.0, 'fan_in', None)", TypeError, r"distribution to be one of trunc.*None"),
    ("orthogonal(column_axis=0.5)", TypeError, r"orthogonal needs column_axis as an int, got 0\.5"),
    ("orthogonal(method='lu')", ValueError, r"^orthogonal .*one of qr, reflections, got 'lu'"),
    ("scaled_orthogonal(method=2)", TypeError, r"^scaled_orthogonal needs method .*, got 2"),
    ("delta_orthogonal(method='')", ValueError, r"^delta_orthogonal needs method .*, got ''"),
    ("orthogonal(column_axis=2)(k, (3, 3))", ValueError, r"column_axis inside the 2 axes"),
    ("delta_orthogonal(column_axis=0)", ValueError, r"delta_orthogonal needs column_axis -1 or -2"),
    ("dirac(groups=0)", ValueError, r"dirac needs groups >= 1, got 0"),
    ("dirac(groups=2)(k, (3, 2, 3))", ValueError, r"3 outputs .* multiple of groups=2"),
    ("he_normal(groups=2)(k, (3, 3))", ValueError, r"he_normal needs the 3 outputs"),
    ("he_normal('in')", TypeError, r"he_normal needs in_axis as an int or a sequence of ints"),
    ("stacked(normal(), None)", TypeError, r"stacked needs axis as an int or a sequence of ints"),
    ("he_normal(0, 0)", ValueError, r"he_normal needs every axis to have one role, got in_axis"),
    ("he_normal(1)(k, (3, 3))", ValueError, r"which names an axis twice"),
    ("he_normal(5)(k, (3, 3))", ValueError, r"he_normal needs in_axis inside the 2 axes"),
    ("stacked(normal(), (0, 0))", ValueError, r"stacked needs every axis once"),
    ("he_normal(transposed_strides=0)", ValueError, r"he_normal needs transposed_strides >= 1"),
    ("he_normal(transposed_strides=(2, 2))(k, (3, 3, 3))", ValueError, r"one stride per spatial"),
    ("einsum_axes(3)", TypeError, r"einsum_axes needs the equation as a string, got 3"),
    ("einsum_axes('ab,bc')", ValueError, r"einsum_axes needs an explicit equation with '->'"),
    ("einsum_axes('ab,bc->ac', 1.0)", TypeError, r"einsum_axes needs operand as an int"),
    ("einsum_axes('ab,bc->ac', 2)", ValueError, r"einsum_axes needs operand from 0 to 1"),
    ("einsum_axes('ab,bb->ab')", ValueError, r"labels are letters, each once, got 'bb'"),
    ("einsum_axes('ab,...c->ac')", ValueError, r"labels are letters"),
    ("einsum_axes('ab,bc->ad')", ValueError, r"every output label to come from an operand"),
    # Keys.
    ("normal()(0, (3,))", TypeError, r"normal needs a JAX random key, got 0"),
    ("normal()(None, (3,))", TypeError, r"normal needs a JAX random key, got None"),
    ("normal()(jnp.zeros(2), (3,))", TypeError, r"key, got an array of dtype float32"),
    ("normal()(np.zeros(3, 'uint32'), (3,))", ValueError, r"raw key data of the default impl"),
    ("normal()(jax.random.split(k), (3,))", ValueError, r"one key, got a batch of keys"),
    # Placement.
    ("normal()(k, (3,), None, P('x'))", ValueError, r"normal needs a mesh to place"),
    ("normal()(k, (3,), None, 'x')", TypeError, r"out_sharding as a NamedSharding, a Partition"),
    # Wrappers.
    ("scaled(jax.nn.initializers.zeros, 2)", TypeError, r"scaled needs an initializer of jaxinit"),
    ("stacked('he_normal')", TypeError, r"stacked needs an initializer of jaxinit, got 'he"),
    ("fused([normal()], (2, 3))", ValueError, r"fused needs one initializer for each size, got 1"),
    ("fused(normal(), ())", ValueError, r"fused needs one initializer for each size"),
    ("fused(normal(), 3)", TypeError, r"fused \(sizes\) needs a shape"),
    ("fused([normal(), Counting()], (2, 3))", TypeError, r"fused needs parts that share a kind"),
    ("own(k, (3,))", ValueError, r"own needs the model .* got only the shape \(3,\)"),
    ("own(k)", TypeError, r"own needs a shape, as in own\(key, \(512, 256\)\)"),
    ("get(lambda key: key)", TypeError, r"needs a hashable function \(key, shape, dtype\), got"),
    ("get(dict)", TypeError, r"needs a hashable function \(key, shape, dtype\), got <class 'dict'"),
    ("get(wrong_shape).law((2,))", ValueError, r"wrong_shape to return .* got \(3,\) and fl"),
    ("get(lambda k, s, d: 1j * np.ones(s)).law((2,))", ValueError, r"float32, got \(2,\) and comp"),
    ("get(lambda k, s, d: None).law((2,))", ValueError, r"array of shape \(2,\) .* got None"),
    ("get(lambda k, s, d: 1 / 0).law((2,))", ValueError, r"<lambda> to draw .* ZeroDivisionError"),
    # The registry.
    ("describe(3)", TypeError, r"needs a name as a string, got 3"),
    ("describe('he_norml')", ValueError, r"has no 'he_norml'. Did you mean .*he_normal"),
    ("get(normal(), stddev=1.0)", TypeError, r"get needs a name beside arguments, got normal"),
    ("get(he_normal)", ValueError, r"from_jax needs an initializer made by jax\.nn\.initializers"),
    ("get(3)", TypeError, r"get needs a name, a config, an initializer, one of jax"),
    ("get('zeros', value=1)", TypeError, r"zeros takes no arguments but dtype, got \['value'\]"),
    ("get('normal', std=1.0)", TypeError, r"normal needs other arguments: .*'std'.*stddev"),
    ("get('constant')", TypeError, r"constant needs other arguments: missing .*'value'"),
    ("to_config(Counting())", TypeError, r"to_config needs an initializer of the catalogue"),
    ("to_config('normal')", TypeError, r"to_config needs an initializer of the catalogue"),
    ("from_config('normal')", TypeError, r"from_config needs a mapping with string keys"),
    ("from_config({1: 2})", TypeError, r"from_config needs a mapping with string keys"),
    ("from_config({'stddev': 1.0})", ValueError, r"from_config needs a 'name', got only"),
    ("from_config({'name': 'constant', 'value': {'float': 'x'}})", ValueError, r"number in 'flo"),
    ("from_config({'name': 'constant', 'value': {'re': 1, 'im': [1]}})", ValueError, r"one shape"),
    ("from_config({'name': 'scaled', 'initializer': {}, 'factor': 1})", ValueError, r"nested conf"),
    ("from_jax(len)", ValueError, r"from_jax needs an initializer made by jax\.nn\.initializers"),
)  # fmt: skip


def wrong_shape(key, shape, dtype):
    return jnp.zeros(3, dtype)


SPACE = NAMESPACE | {
    "jax": jax,
    "jnp": jnp,
    "P": P,
    "k": KEY,
    "Counting": Counting,
    "wrong_shape": wrong_shape,
}


def _error(call: str) -> Exception:
    try:
        eval(call, dict(SPACE))
    except Exception as error:
        return error
    raise AssertionError(f"{call} raised nothing")


@pytest.mark.parametrize(("call", "kind", "message"), RAISES, ids=[case[0] for case in RAISES])
def test_error_says_what_was_needed(call, kind, message):
    error = _error(call)
    assert type(error) is kind
    assert re.search(message, str(error), re.DOTALL), str(error)
    assert _speaks(error), str(error)


def _raise_statements() -> set[tuple[str, int]]:
    """File and line of every `raise` in the package."""
    return {
        (path.name, node.lineno)
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Raise)
    }


def _lines_hit(error: BaseException | None) -> set[tuple[str, int]]:
    """Where an error left the package, and the errors that it replaced."""
    hit = set()
    while error is not None:
        inside = []
        trace = error.__traceback__
        while trace is not None:
            path = pathlib.Path(trace.tb_frame.f_code.co_filename)
            if path in FILES:
                inside.append((path.name, trace.tb_lineno))
            trace = trace.tb_next
        hit |= set(inside[-1:])
        error = error.__context__
    return hit


def test_every_raise_has_a_case():
    hit = set().union(*(_lines_hit(_error(call)) for call, *_ in RAISES))
    missing = _raise_statements() - hit
    assert not missing, f"no case in RAISES for {sorted(missing)}"


# What counts as an answer.

PUBLIC = {
    name
    for name, value in vars(jaxinit.initializers).items()
    if not name.startswith("_") and not inspect.ismodule(value)
}


def _speaks(error: Exception) -> bool:
    """Whether a message starts with the name of what was called and says what was needed."""
    who = re.match(r"([\w.]+)( \(\w+\))? (needs|takes no|has no) ", str(error))
    return bool(who) and who[1] in {"jaxinit.initializers", "Counting", *PUBLIC}


def _attempt(call):
    """The result, or None after an error of the documented kind; any other error gets through."""
    try:
        return call()
    except (ValueError, TypeError) as error:
        assert type(error) in (ValueError, TypeError), f"{type(error)}: {error}"
        assert _speaks(error), f"{type(error).__name__}: {error}"


def _assert_value(initializer: Any) -> None:
    """A frozen value that can be written down and read again."""
    assert isinstance(initializer, Initializer)
    assert hash(initializer) == hash(initializer)
    assert evaluate(repr(initializer)) == initializer
    text = json.dumps(to_config(initializer), allow_nan=False)
    again = from_config(json.loads(text))
    assert again == initializer
    assert repr(again) == repr(initializer)
    assert initializer.elementwise in (True, False)
    assert initializer.axes is None or all(
        map(isinstance, initializer.axes, itertools.repeat(tuple))
    )


# Junk.

NUMBERS = st.one_of(
    st.floats(),
    st.sampled_from([0, 1, -1, 2, 0.5, -0.0, 1e-320, 1e-38, 1e38, 1e308, -1e308, math.pi, 10**400]),
    st.integers(),
    # Legal wherever a number is: scalars of numpy, 0-d arrays of both.
    st.sampled_from(
        [np.float32(0.5), np.float64(2.0), np.int8(1), np.uint64(3), np.array(0.25), jnp.array(0.5)]
    ),
    st.sampled_from([jnp.array(1), jnp.float32(2), jnp.bfloat16(0.5), np.float16(1.5)]),
)
AXES = st.one_of(
    st.integers(-4, 4),
    st.lists(st.integers(-4, 4), max_size=3),
    st.lists(st.integers(-4, 4), max_size=3).map(tuple),
    st.sampled_from([np.int64(-1), np.array([0, 1]), range(2), (0, 0), 10**30, jnp.array(1), {0}]),
)
SHAPES = st.one_of(
    st.lists(st.integers(0, 4), max_size=6).map(tuple),
    st.lists(st.integers(0, 4), max_size=6),
    st.lists(st.integers(-2, 2**70), max_size=3).map(tuple),
    st.sampled_from(
        ["ab", "", b"ab", 3, -1, None, (True, 2), (2.0, 3), np.array([2, 3]), [[2, 3]]]
    ),
    st.sampled_from(
        [jnp.array([2, 3]), (np.int32(2), 3), {2, 3}, {2: 3}, (None,), ("2", 3), range(3)]
    ),
)
DTYPES = st.one_of(
    st.sampled_from([None, "float32", "bfloat16", "float16", "complex64", jnp.float8_e4m3fn]),
    st.sampled_from([np.float64, complex, float, "f4", "<f4", np.dtype("float16"), "complex128"]),
    st.sampled_from(["int32", bool, "uint8", np.int64, int, KEY.dtype, jax.dtypes.prng_key]),
    st.sampled_from(
        ["int4", "float4_e2m1fn", "float8_e8m0fnu", np.longdouble, np.clongdouble, "O"]
    ),
    st.sampled_from(
        ["S3", "M8[s]", "", "nonsense", "f4,f4", 3, (2,), [], {}, object, np.void, type]
    ),
    st.text(max_size=4),
)
INITIALIZERS = st.sampled_from(
    [case.initializer for case in CASES]
    + [Counting(), "he_normal", jax.nn.initializers.zeros, None, {"name": "ones"}, type(normal())]
)
JUNK = st.one_of(
    NUMBERS,
    AXES,
    DTYPES,
    SHAPES,
    INITIALIZERS,
    st.booleans(),
    st.complex_numbers(),
    st.text(max_size=5),
    st.sampled_from(
        ["fan_in", "fan_avg", "normal", "uniform", "truncated_normal", "fan", "FAN_IN"]
    ),
    st.sampled_from(
        [KEY, np.array("a"), np.array([None]), np.array([1, 0]), np.eye(2), jnp.eye(2)]
    ),
    st.sampled_from([[], [[1], [1, 2]], [[1, 0]], np.array([]), [1j], float("nan"), object(), ...]),
    st.sampled_from([np.array(2**60), [2**53], np.longdouble(1), np.array(True), jnp.array(True)]),
)
# What an argument of this name is for; half of the time something of that kind is tried.
FITTING: dict[str, st.SearchStrategy[Any]] = {
    **dict.fromkeys(("in_axis", "out_axis", "batch_axis", "axis", "column_axis"), AXES),
    **dict.fromkeys(("groups", "transposed_strides"), st.one_of(st.integers(-1, 4), AXES)),
    **dict.fromkeys(("shape", "sizes"), SHAPES),
    "dtype": DTYPES,
    "mode": st.sampled_from(["fan_in", "fan_out", "fan_avg", "fan_geo_avg", "fan"]),
    "distribution": st.sampled_from(["normal", "uniform", "truncated_normal", "gauss"]),
    "initializer": INITIALIZERS,
    "initializers": st.one_of(INITIALIZERS, st.lists(INITIALIZERS, max_size=3)),
    "mask": st.one_of(st.booleans(), st.lists(st.sampled_from([0, 1, True]), max_size=3)),
    "exact": st.booleans(),
}


@st.composite
def calls(draw):
    """A factory of the catalogue and arguments, right and wrong ones mixed."""
    name = draw(st.sampled_from([name for name in names() if name not in ("zeros", "ones")]))
    factory = describe(name).factory
    arguments = {}
    for key, parameter in inspect.signature(factory).parameters.items():
        if parameter.default is inspect.Parameter.empty or draw(st.integers(0, 3)) == 0:
            fitting = FITTING.get(key, NUMBERS)
            arguments[key] = draw(fitting if draw(st.integers(0, 3)) else JUNK)
    return factory, arguments


@MANY
@hypothesis.given(calls())
def test_a_factory_makes_a_value_or_says_what_was_needed(call):
    factory, arguments = call
    initializer = _attempt(lambda: factory(**arguments))
    if initializer is not None and "Counting" not in repr(initializer):
        _assert_value(initializer)


PARAMETERS = [
    (name, key)
    for name in names()
    if name not in ("zeros", "ones", "own")
    for key in inspect.signature(describe(name).factory).parameters
]
LEGAL = {
    **{"value": 1.0, "scale": 1.0, "mode": "fan_in", "distribution": "normal", "sparsity": 0.5},
    **{"initializer": normal(), "initializers": normal(), "factor": 2.0, "mask": 1},
    **{"shape": (2, 3), "sizes": (2, 3)},
}


def test_a_traced_parameter_is_refused_with_its_name():
    """Every parameter of every factory: a law is known before anything is traced."""
    for name, key in PARAMETERS:
        factory = describe(name).factory
        signature = inspect.signature(factory).parameters
        needed = {k: LEGAL[k] for k, p in signature.items() if p.default is inspect.Parameter.empty}
        assert isinstance(factory(**needed), Initializer)

        def build(traced, factory=factory, needed=needed, key=key):
            factory(**needed | {key: traced})

        with pytest.raises((TypeError, ValueError)) as error:
            jax.eval_shape(build, 1.0)
        assert type(error.value) in (TypeError, ValueError), (name, key, error.value)
        assert _speaks(error.value), (name, key, str(error.value))


@pytest.mark.parametrize(
    "number",
    [
        2,
        2.0,
        np.float32(2),
        np.float16(2),
        np.int8(2),
        np.array(2.0),
        jnp.array(2),
        jnp.bfloat16(2),
    ],
    ids=lambda number: f"{type(number).__name__}-{getattr(number, 'dtype', '')}",
)
def test_scalars_of_every_library_are_numbers(number):
    """Legal, equal to the Python number, and a plain float afterwards."""
    for call in (
        "normal({})",
        "scaled(normal(), {})",
        "constant({})",
        "uniform({})",
        "glorot_normal(gain={})",
        "he_normal(negative_slope={})",
        "orthogonal({})",
        "sparse(0.5, {})",
        "truncated_normal(lower=-1.0, upper={})",
    ):
        built = eval(call.format("number"), dict(SPACE) | {"number": number})
        expected = eval(call.format("2.0"), dict(SPACE))
        assert built == expected
        assert hash(built) == hash(expected)
        assert repr(built) == repr(expected)


# Configs.

LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.floats(),
    st.text(max_size=3),
    st.sampled_from(["he_normal", "normal", "fan_in", "uniform", "float32", "inf", "nan", "1e999"]),
)
WORDS = st.one_of(
    st.sampled_from(["name", "float", "re", "im", "initializer", "initializers", "value", "dtype"]),
    st.sampled_from(["stddev", "scale", "axis", "sizes", "factor", "mask", "shape", "in_axis"]),
    st.text(max_size=3),
)
TREES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(WORDS, inner, max_size=3),
        st.dictionaries(WORDS, inner, max_size=3).flatmap(
            lambda config: st.sampled_from(names()).map(lambda name: {"name": name} | config)
        ),
    ),
    max_leaves=8,
)


@MANY
@hypothesis.given(TREES)
def test_junk_configs_say_what_was_needed(config):
    built = _attempt(lambda: from_config(config))
    if built is not None:
        _assert_value(built)


@SOME
@hypothesis.given(st.data())
def test_spoiled_configs_say_what_was_needed(data):
    """One entry of a good config is replaced, dropped or added."""
    config = to_config(data.draw(st.sampled_from(CASES)).initializer)
    spoiled = dict(config)
    if data.draw(st.booleans()):
        spoiled.pop(data.draw(st.sampled_from(sorted(spoiled))))
    else:
        key = data.draw(st.one_of(st.sampled_from(sorted(spoiled)), WORDS))
        spoiled[key] = data.draw(st.one_of(TREES, JUNK))
    built = _attempt(lambda: from_config(spoiled))
    if built is not None and "Counting" not in repr(built):
        _assert_value(built)


@SOME
@hypothesis.given(JUNK)
def test_junk_is_no_source(value):
    for ask in (get, to_config, from_jax, describe):
        _attempt(lambda ask=ask: ask(value))


@SOME
@hypothesis.given(
    st.one_of(
        st.text(alphabet="abc,->. ", max_size=12),
        st.from_regex(r"[a-d]{0,3},[a-d]{0,3}->[a-e]{0,3}", fullmatch=True),
        JUNK,
    ),
    st.one_of(st.integers(-1, 3), JUNK),
)
def test_einsum_axes_gives_every_axis_one_role(equation, operand):
    axes = _attempt(lambda: jaxinit.initializers.einsum_axes(equation, operand))
    if axes is not None:
        kernel = equation.replace(" ", "").partition("->")[0].split(",")[operand]
        assert sorted(itertools.chain(*axes)) == list(range(len(kernel)))


# Laws and draws.

KEYS = st.sampled_from(
    [KEY, KEY, KEY, jax.random.key_data(KEY), jax.random.split(KEY, 2), None, 0, 1.5, "key"]
    + [np.zeros(2, np.uint32), np.zeros(2), jnp.zeros((2, 2), jnp.uint32), np.uint32(3), [0, 0]]
    + [jax.random.key(0, impl="rbg"), np.zeros(4, np.uint32), object()]
)


@SOME
@hypothesis.given(st.sampled_from(CASES), SHAPES, DTYPES)
def test_a_law_is_sound_or_the_shape_is_refused(case, shape, dtype):
    law = _attempt(lambda: case.initializer.law(shape, dtype))
    if law is not None:
        _assert_sound(law, case.initializer.resolve_dtype(dtype))
        fans = case.initializer.fans(shape)
        assert fans is None or (fans.fan_in >= 0 and fans.fan_out >= 0)
    _attempt(lambda: case.initializer.fans(shape))


def _assert_sound(law: Law, dtype) -> None:
    """No contradiction between the numbers; the support of a complex law is that of its moduli."""
    assert math.isfinite(law.variance)
    assert law.variance >= 0
    assert math.isfinite(abs(law.mean))
    low, high = law.support
    assert low <= high
    if not jnp.issubdtype(dtype, jnp.complexfloating) and law.variance:
        assert low - 1e-6 * abs(low) <= law.mean <= high + 1e-6 * abs(high)
    # By Jensen's inequality, up to rounding.
    assert math.isnan(law.kurtosis) == (law.variance == 0)
    assert not law.kurtosis < 1 - 1e-6
    for part in law.slabs:
        assert part.axis < 0
        assert part.start < part.stop
        _assert_sound(part.law, dtype)


@SOME
@hypothesis.given(calls(), st.lists(st.integers(0, 3), max_size=5).map(tuple), DTYPES)
def test_whatever_was_built_has_a_law_or_refuses(call, shape, dtype):
    factory, arguments = call
    initializer = _attempt(lambda: factory(**arguments))
    if initializer is None or not _all_finite(initializer):
        return
    law = _attempt(lambda: initializer.law(shape, dtype))
    if law is not None:
        _assert_sound(law, initializer.resolve_dtype(dtype))


def _all_finite(initializer: Initializer) -> bool:
    """A constant may be infinite or NaN by its own wish, and so is its law."""
    return not re.search(r"float\('|complex\('", repr(initializer).replace("lower=", ""))


@hypothesis.settings(max_examples=150)
@hypothesis.given(st.sampled_from(CASES), KEYS, SHAPES, DTYPES)
def test_a_draw_is_what_was_asked_or_is_refused(case, key, shape, dtype):
    """Traced, not run: the trace is where arguments are read."""
    init = case.initializer
    drawn = _attempt(lambda: jax.eval_shape(lambda: init(key, shape, dtype)))
    law = _attempt(lambda: init.law(shape, dtype))
    if drawn is not None:
        assert law is not None, "a draw that has no law"
        assert drawn.shape == tuple(shape)
        assert drawn.dtype == init.resolve_dtype(dtype)
    elif law is not None:
        assert init.random, "refused although shape and dtype have a law and no key is needed"
        assert _attempt(lambda: jax.eval_shape(lambda: normal()(key, ()))) is None


SCALES = st.one_of(
    st.floats(0, allow_infinity=False),
    st.floats(-45, 38).map(lambda exponent: 10.0**exponent),
    st.sampled_from([0.0, 1e-45, 1e-38, 1e-30, 1e30, 6e37, 1e38, 3e38]),
)
EXTREMES = (
    "normal(a)",
    "normal(a, mean=b)",
    "uniform(a)",
    "uniform(minval=-a, maxval=b)",
    "uniform(minval=b, maxval=b)",
    "truncated_normal(a, mean=b)",
    "truncated_normal(a, lower=-1.5, upper=0.5, mean=-b, exact=True)",
    "truncated_normal(a, lower=-np.inf, upper=-1.0)",
    "variance_scaling(a, 'fan_in', 'uniform')",
    "glorot_normal(gain=a)",
    "constant(a)",
    "identity(-a)",
    "sparse(0.5, a)",
    "scaled(normal(a), b)",
    "masked(normal(a), np.eye(4))",
    "masked(scaled(normal(a, mean=b), b), np.eye(4))",
    "fused([scaled(uniform(a), b), normal(b)], (1, 3))",
)


@SOME
@hypothesis.given(
    st.sampled_from(EXTREMES),
    SCALES,
    SCALES,
    st.sampled_from(["float32", "bfloat16", "float16", "float8_e4m3fn", "float8_e5m2"]),
)
def test_extreme_parameters_draw_inside_the_support_or_are_refused(call, a, b, dtype):
    """One shape, sampled without compiling a program for each number.

    This is the draw of `Initializer.__call__`, one primitive at a time: float32, then one cast.
    """
    initializer = _attempt(lambda: eval(call, {**SPACE, "a": a, "b": b}))
    law = initializer and _attempt(lambda: initializer.law((4, 4), dtype))
    if not law:
        return
    drawn = _attempt(lambda: initializer.sample(KEY, (4, 4), np.dtype("float32")))
    if drawn is None:
        return
    values = np.asarray(drawn.astype(dtype)).astype(np.float64)
    assert np.isfinite(values).all()
    low, high = law.support
    # The law is stated in doubles, the draw rounds each of a few products to float32.
    slack = 4 * float(jnp.finfo("float32").eps)
    tiny = float(jnp.finfo("float32").tiny)
    assert values.min() >= low - slack * abs(low) - tiny
    assert values.max() <= high + slack * abs(high) + tiny


@hypothesis.settings(max_examples=25)
@hypothesis.given(
    st.sampled_from([case for case in CASES if len(case.shapes) > 1]),
    st.sampled_from(["float32", "bfloat16", "float16", "float8_e5m2", "complex64"]),
    st.integers(0, 5),
)
def test_a_draw_is_finite_and_inside_the_support(case, dtype, which):
    if dtype not in case.dtypes:
        dtype = case.dtype
    shape = case.shapes[which % len(case.shapes)]
    drawn = case.draw(shape, dtype)
    assert (drawn.shape, drawn.dtype) == (shape, dtype)
    values = np.asarray(drawn).astype(complex if dtype == "complex64" else float)
    law = case.initializer.law(shape, dtype)
    ends = np.abs(values) if law.support[0] >= 0 and dtype == "complex64" else values.real
    assert np.isfinite(values).all()
    if values.size:
        slack = 4 * float(jnp.finfo("float32").eps) * max(1.0, float(np.abs(ends).max()))
        assert law.support[0] - slack <= ends.min()
        assert ends.max() <= law.support[1] + slack
