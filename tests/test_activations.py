"""Theory of activations: against closed forms, independent quadratures and published numbers."""

from __future__ import annotations

import functools
import json
import math
import pickle
import re

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

from helpers import slow
from jaxinit import activations as act
from jaxinit import initializers as init
from jaxinit.activations import gain, moments

pytestmark = pytest.mark.unoptimized

# E f, E f^2, forward and backward gain, chi1, Q'(1), each to the digits on which two quadratures
# agree that are not this package's.
TABLE = {
    "linear": (0, 1, 1, 1, 1, 1),
    "sigmoid": (0.5, 0.29337904, 1.84622855, 4.72264609, 0.152827, 0.106341),
    "tanh": (0, 0.39429449, 1.59253742, 1.46741359, 1.177807, 0.461071),
    "relu": (0.39894228, 0.5, 1.41421356, 1.41421356, 1, 1),
    "leaky_relu(0.01)": (0.39495286, 0.50005, 1.41414286, 1.41414286, 1, 1),
    "leaky_relu(0.2)": (0.31915382, 0.52, 1.38675049, 1.38675049, 1, 1),
    "elu": (0.16052057, 0.64494542, 1.24519830, 1.22342856, 1.035905, 0.890968),
    "selu": (0, 1, 1, 0.96602578, 1.071575, 0.782648),
    "gelu_exact": (0.28209479, 0.42522148, 1.53353044, 1.48111441, 1.072032, 1.144063),
    "gelu": (0.28203859, 0.42519371, 1.53358052, 1.48116806, 1.072024, 1.144298),
    "silu": (0.20662096, 0.35577552, 1.67653247, 1.62332026, 1.066634, 1.172594),
    "mish": (0.24040389, 0.45234219, 1.48684758, 1.44475523, 1.059118, 1.076339),
    "softplus": (0.80605918, 0.92124591, 1.04186684, 1.84622855, 0.318459, 0.492053),
    "softsign": (0, 0.18301402, 2.33753336, 2.09578061, 1.244010, 0.476712),
    "hard_tanh": (0, 0.51605855, 1.39203614, 1.21028706, 1.322892, 0.385127),
    "hard_swish": (0.16621670, 0.33156738, 1.73665721, 1.67007637, 1.081323, 1.223920),
    "squared_relu": (0.5, 1.5, 0.81649658, 0.70710678, 1.333333, 2),
    "sin": (0, 0.43233236, 1.52086662, 1.32725060, 1.313035, 0.313035),
}
UNSTABLE = {"gelu", "gelu_exact", "silu", "mish", "hard_swish", "squared_relu"}
# What is printed is rounded to eight digits, or six.
EIGHT, SIX = 0.51e-8, 0.51e-6


def tail(k: float) -> float:
    """P(z > k)."""
    return math.erfc(k / math.sqrt(2)) / 2


def density(k: float) -> float:
    return math.exp(-k * k / 2) / math.sqrt(2 * math.pi)


@pytest.mark.parametrize("name", TABLE)
def test_the_table(name):
    mean, second, forward, backward, chi1, slope = TABLE[name]
    known = moments(name)
    assert known.mean == pytest.approx(mean, abs=EIGHT)
    assert known.second_moment == pytest.approx(second, abs=EIGHT)
    assert gain(name) == known.forward_gain == pytest.approx(forward, abs=EIGHT)
    assert gain(name, "backward") == pytest.approx(backward, abs=EIGHT)
    assert known.chi1 == pytest.approx(chi1, abs=SIX)
    assert known.slope == pytest.approx(slope, abs=SIX)
    assert known.is_unstable == (name in UNSTABLE)
    assert not known.jumps


ROOT3 = math.sqrt(3)


@pytest.mark.parametrize(
    ("name", "mean", "second", "derivative"),
    [
        ("relu", density(0), 1 / 2, 1 / 2),
        ("leaky_relu(0.3)", 0.7 * density(0), 1.09 / 2, 1.09 / 2),
        (
            "gelu_exact",
            1 / (2 * math.sqrt(math.pi)),
            1 / 3 + 1 / (2 * ROOT3 * math.pi),
            1 / 3 + 2 / (3 * ROOT3 * math.pi),
        ),
        ("sin", 0, -math.expm1(-2) / 2, (1 + math.exp(-2)) / 2),
        ("cos", math.exp(-0.5), (1 + math.exp(-2)) / 2, -math.expm1(-2) / 2),
        ("exp", math.exp(0.5), math.exp(2), math.exp(2)),
        ("square", 1, 3, 4),
        ("erf", 0, 2 / math.pi * math.asin(2 / 3), 4 / (math.pi * math.sqrt(5))),
        ("squareplus", None, 3 / 2, None),
    ],
)
def test_closed_forms(name, mean, second, derivative):
    """To 1e-12: four digits more than are promised."""
    known = moments(name)
    if mean is not None:
        assert known.mean == pytest.approx(mean, abs=1e-12)
    assert known.second_moment == pytest.approx(second, rel=1e-12)
    if derivative is not None:
        assert known.derivative_second_moment == pytest.approx(derivative, rel=1e-12)


def test_the_slope_of_softplus_is_the_sigmoid():
    derivative = moments("softplus").derivative_second_moment
    assert derivative == pytest.approx(moments("sigmoid").second_moment, rel=1e-12)


@pytest.mark.parametrize("variance", [1e-6, 7.0, *slow(0.3, 1e5)])
@pytest.mark.parametrize("k", [0.0, 0.125, -2.71828, 5.5, *slow(0.123456789, 1 / 3)])
def test_a_kink_anywhere_at_any_variance(k, variance):
    def shifted(z):
        return jax.nn.relu(z - k)

    known = moments(shifted, variance=variance)
    s = math.sqrt(variance)
    x = k / s
    second = variance * ((1 + x * x) * tail(x) - x * density(x))
    # Beyond 1e-13 of the rectified unit's own scale the closed form itself cancels.
    slack = 1e-10 * second + 1e-13 * variance * (1 + x * x) * tail(x) + 1e-18
    assert known.second_moment == pytest.approx(second, abs=slack)
    assert known.mean == pytest.approx(s * (density(x) - x * tail(x)), rel=1e-8, abs=1e-15)
    assert known.derivative_second_moment == pytest.approx(tail(x), rel=1e-9, abs=1e-15)


@pytest.mark.parametrize("steepness", [1e3, 1e5, 1e7, 1e10])
@pytest.mark.parametrize("place", [0.0, 0.125, 0.25, 0.777])
def test_a_steep_step_has_its_slope_seen(steepness, place):
    """E f'^2 of tanh(a (z - k)) is 4 a density(k) / 3 up to 1 / a^2, whether a panel sees it."""

    def step(z):
        return jnp.tanh(steepness * (z - place))

    known = moments(step)
    limit = 4 / 3 * steepness * density(place)
    assert known.derivative_second_moment == pytest.approx(limit, rel=max(1e-8, 2 / steepness**2))
    assert known.mean == pytest.approx(2 * tail(place) - 1, abs=1e-8 + 2 / steepness**2)
    assert not known.jumps


@pytest.mark.parametrize("edge", [0.0, 0.25, 0.5 + 2**-8, 12.0, *slow(0.5, 1.0, 1.75 + 2**-12)])
@pytest.mark.parametrize("distance", [0.0, -7.6e-6, 1e-7, *slow(3e-4, -3e-9)])
def test_a_kink_beside_an_edge_of_the_panels(edge, distance):
    """No point of the rule is within 0.0022 of a panel from its edge."""
    k = edge + distance
    known = moments(lambda z: jax.nn.relu(z + k))
    assert known.derivative_second_moment == pytest.approx(tail(-k), rel=1e-10)
    assert known.second_moment == pytest.approx((1 + k * k) * tail(-k) + k * density(k), rel=1e-10)


@hypothesis.settings(max_examples=15)
@hypothesis.given(
    st.lists(st.floats(-4, 4), min_size=1, max_size=3, unique=True),
    st.lists(st.floats(-3, 3), min_size=8, max_size=8),
)
def test_piecewise_linear_functions(kinks, numbers):
    """Against E over each piece in closed form."""
    kinks = sorted(kinks)
    slopes, start = numbers[: len(kinks) + 1], numbers[7]

    def function(z):
        result = start + slopes[0] * (z - kinks[0])
        for k, before, after in zip(kinks, slopes, slopes[1:], strict=False):
            result = result + (after - before) * jnp.maximum(z - k, 0)
        return result

    ends = [-40.0, *kinks, 40.0]
    second = derivative = mean = 0.0
    value = start
    for i, slope in enumerate(slopes):
        low, high = ends[i], ends[i + 1]
        if i > 1:
            value += slopes[i - 1] * (kinks[i - 1] - kinks[i - 2])
        offset = value - slope * kinks[max(i - 1, 0)]
        p = tail(low) - tail(high)
        first = density(low) - density(high)
        square = p + low * density(low) - high * density(high)
        mean += offset * p + slope * first
        second += offset**2 * p + 2 * offset * slope * first + slope**2 * square
        derivative += slope**2 * p
    known = moments(function)
    scale = 1 + second
    assert known.mean == pytest.approx(mean, abs=1e-11 * scale)
    assert known.second_moment == pytest.approx(second, abs=1e-11 * scale)
    assert known.derivative_second_moment == pytest.approx(derivative, abs=1e-10 * (1 + derivative))
    assert not known.jumps


# Jumps.


@pytest.mark.parametrize(
    ("function", "jumps", "second"),
    [
        (jnp.sign, (0,), 1),
        (lambda z: jnp.heaviside(z, 0.5), (0,), 0.5),
        (lambda z: jnp.where(z > 0.1234, 1.0, -1.0), (0.1234,), 1),
        (lambda z: jnp.where(z > 0.125, 1.0, 0.0), (0.125,), tail(0.125)),
        (lambda z: jnp.where(jnp.abs(z) < 1, z, 0), (-1, 1), 1 - 2 * (tail(1) + density(1))),
        (lambda z: jnp.round(jnp.clip(z, -1, 1)), (-0.5, 0.5), 2 * tail(0.5)),
    ],
)
def test_a_jump_is_named_and_has_no_derivative(function, jumps, second):
    known = moments(function)
    assert known.second_moment == pytest.approx(second, abs=1e-10)
    assert known.jumps == pytest.approx(jumps, abs=1e-9)
    assert known.derivative_second_moment == known.chi1 == math.inf
    assert "jumps at" in str(known) and "jax.grad passes the jump over" in str(known)
    for mode in ("backward", "average"):
        with pytest.raises(ValueError, match=r"needs a slope with a second moment .* It jumps at"):
            gain(function, mode)
    assert gain(function) == pytest.approx(second**-0.5, rel=1e-9)


def test_a_slope_without_second_moment_is_infinite():
    """E |z| and E |z|^(2/3) exist, E 1/|z| and E |z|^(-4/3) do not."""
    root = moments(lambda z: jnp.sqrt(jnp.abs(z)))
    assert root.second_moment == pytest.approx(2 * density(0), rel=1e-9)
    assert root.derivative_second_moment == math.inf and not root.jumps
    assert "so steep" in str(root)
    # A near twin: |z|^0.75 has E f'^2 = 9/16 E |z|^-0.5.
    twin = moments(lambda z: jnp.abs(z) ** 0.75)
    exact = 9 / 16 * 2**-0.25 * math.gamma(0.25) / math.sqrt(math.pi)
    assert twin.derivative_second_moment == pytest.approx(exact, rel=1e-7)


# What a callable may be.


@pytest.mark.parametrize(
    ("name", "gate"),
    [
        ("reglu", "relu"),
        ("swiglu", "silu"),
        pytest.param("geglu", "gelu", marks=pytest.mark.slow),
        pytest.param("glu", "sigmoid", marks=pytest.mark.slow),
    ],
)
def test_gated_units(name, gate):
    assert gain(name) == pytest.approx(gain(gate), rel=1e-9)
    # Either input may be the gate. The mean over the other one is rounding errors alone, whose
    # digits are not to be looked for.
    function = act.named(gate).function
    turned = moments(lambda g, x: function(g) * x, inputs=2)
    assert (turned.mean, turned.forward_gain) == pytest.approx((0, gain(name)), rel=1e-9)


def test_functions_of_two_inputs():
    known = moments(lambda x, g: x * jax.nn.relu(g - 0.3), inputs=2)
    second = 1.09 * tail(0.3) - 0.3 * density(0.3)
    assert known.second_moment == pytest.approx(second, rel=1e-9)
    # Slope to x: relu(g - .3); to g: x where g is above .3.
    assert known.derivative_second_moment == pytest.approx(second + tail(0.3), rel=1e-9)
    larger = moments(lambda x, g: jnp.maximum(x, g), inputs=2)  # kinked along a diagonal
    assert larger.mean == pytest.approx(1 / math.sqrt(math.pi), rel=1e-8)
    assert larger.second_moment == pytest.approx(1, rel=1e-8)
    assert larger.derivative_second_moment == pytest.approx(1, rel=1e-8)


@pytest.mark.slow
def test_waves_that_nobody_could_resolve_are_refused_and_not_waited_for():
    for function, inputs in (
        (lambda z: jnp.sin(1e9 * z), 1),
        (lambda x, g: jnp.sin(1e5 * x * g), 2),
    ):
        with pytest.raises(ValueError, match="too many kinks or waves"):
            moments(function, inputs=inputs)


def test_closures_compositions_partials_and_scalar_functions():
    slopes = [0.1, 0.2]
    closures = [lambda z, a=a: jnp.where(z > 0, z, a * z) for a in slopes]
    assert [moments(f).second_moment for f in closures] == pytest.approx([1.01 / 2, 1.04 / 2])
    partial = functools.partial(jax.nn.leaky_relu, negative_slope=0.2)
    assert moments(partial).second_moment == pytest.approx(0.52, rel=1e-12)
    composed = moments(lambda z: jax.nn.relu(jnp.tanh(z)))
    assert composed.second_moment == pytest.approx(moments("tanh").second_moment / 2, rel=1e-12)
    scalar = moments(lambda z: jax.lax.cond(z > 0, lambda z: z, lambda z: 0.2 * z, z))
    assert scalar.second_moment == pytest.approx(0.52, rel=1e-12)


def test_a_closure_that_changes_is_seen_to():
    factor = 1.0

    def scaled(z):
        return factor * z

    assert moments(scaled).second_moment == 1
    factor = 2.0
    assert moments(scaled).second_moment == 4


@jax.custom_vjp
def backward_only(z):
    return jnp.sin(z)


backward_only.defvjp(lambda z: (jnp.sin(z), z), lambda z, g: (g * jnp.cos(z),))


def test_a_custom_vjp_has_its_slope():
    assert moments(backward_only).chi1 == pytest.approx(moments("sin").chi1, rel=1e-12)


def test_narrow_arithmetic_is_told_apart_from_kinks():
    """float32 inside costs digits, and the record says how many; no panel is halved for it."""
    known = moments(lambda z: jnp.tanh(z.astype(jnp.float32)))
    assert known.second_moment == pytest.approx(moments("tanh").second_moment, rel=1e-6)
    assert known.error == pytest.approx(2**-23)
    assert moments("tanh").error < 1e-12


def test_settings_of_the_user_have_no_say(devices):
    def f(z):
        return jnp.tanh(3 * z) + z

    expected = moments(f)
    mesh = Mesh(np.array(devices[:1]), ("x",))
    settings = (
        lambda: jax.enable_x64(True),
        lambda: jax.enable_x64(False),
        lambda: jax.disable_jit(),
        lambda: jax.debug_nans(True),
        lambda: jax.transfer_guard("disallow"),
        lambda: jax.set_mesh(mesh),
        lambda: jax.default_matmul_precision("bfloat16"),
    )
    for setting in settings:
        with setting():
            assert moments(lambda z: f(z)).second_moment == expected.second_moment
    inside = []
    jax.jit(lambda x: inside.append(moments(lambda z: f(z))) or x)(1.0)
    jax.vmap(lambda x: inside.append(moments(lambda z: f(z))) or x)(jnp.ones(2))
    jax.grad(lambda x: inside.append(moments(lambda z: f(z))) or x)(1.0)
    assert [known.second_moment for known in inside] == [expected.second_moment] * 3
    assert jnp.ones(()).dtype == jnp.float32


def called_back(z):
    return jax.pure_callback(np.tanh, jax.ShapeDtypeStruct(z.shape, z.dtype), z)


@pytest.mark.parametrize(
    ("function", "error", "message"),
    [
        (3, TypeError, r"activations.moments needs an activation as a callable or a name, got 3"),
        (jnp.ones(()), TypeError, r"needs an activation as a callable or a name, got Array"),
        (int, TypeError, r"needs an activation as a callable or a name, got <class 'int'>"),
        ("gelo", ValueError, r"needs a name of the catalogue, got 'gelo'. Did you mean gelu"),
        ("xyzzy", ValueError, r"got 'xyzzy'. It has identity, relu, "),
        ("elu(1e)", ValueError, r"needs elu with one number, got 'elu\(1e\)'"),
        ("leaky_relu(0.2", ValueError, r"needs leaky_relu with one number, got 'leaky_relu\(0.2'"),
        ("leaky_relu(foo)", ValueError, r"got 'leaky_relu\(foo\)'. Write for example leaky_relu\("),
        ("gelu(2)", ValueError, r"needs gelu without a parameter, got 'gelu\(2\)'. Those with"),
        (called_back, TypeError, r"that JAX can differentiate, got called_back, .* Write it with"),
        ("torch:tanh", ValueError, r"a number of torch without moments. Use 'tanh'"),
        (jax.nn.softmax, ValueError, r"elementwise function, got softmax, whose outputs depend on"),
        (lambda z: z - z.mean(), ValueError, r"outputs depend on other entries"),
        (jnp.cumsum, ValueError, r"elementwise function, got cumsum"),
        (lambda z: z * jnp.arange(z.shape[0]), ValueError, r"depend on other entries or on their"),
        (jnp.sum, ValueError, r"elementwise function, got sum, which turns shape \(4096,\) into"),
        (lambda z: jnp.stack([z, z]), ValueError, r"into \(2, 4096\)"),
        (lambda z: (z, z), TypeError, r"returns one array, got <lambda>, which returns tuple"),
        (lambda z: z + 1j, TypeError, r"real floating-point output, got complex128"),
        (lambda z: z > 0, TypeError, r"real floating-point output, got bool"),
        (lambda z: jnp.round(z).astype(int), TypeError, r"floating-point output, got int64"),
        (lambda z: np.tanh(z), TypeError, r"JAX can trace, got <lambda>, which raised Tracer"),
        (lambda x, g: x * g, TypeError, r"function of 1 array .* inputs= says how many"),
        (jnp.log, ValueError, r"values that are finite wherever .* got nan from log at -"),
        (lambda z: jnp.exp(z**4), ValueError, r"values that are finite .* got inf from <lambda>"),
        (lambda z: jnp.sqrt(jnp.maximum(z, 0)), ValueError, r"a derivative that is finite .* nan"),
        (lambda z: jnp.exp(z * z / 4), ValueError, r"finite second moment.*outgrows the Gaussian"),
        (lambda z: jnp.exp(z * z / 2), ValueError, r"finite second moment.*outgrows the Gaussian"),
        (lambda z: 1 / z, ValueError, r"finite second moment.*does not settle"),
    ],
)
def test_what_is_no_activation(function, error, message):
    with pytest.raises(error, match=message):
        moments(function)


def test_heavy_tails_that_still_have_moments():
    """E e^(a z^2) = (1 - 2 a)^(-1/2): a near twin of what outgrows the Gaussian."""
    known = moments(lambda z: jnp.exp(z * z / 5))
    assert known.mean == pytest.approx((1 - 2 / 5) ** -0.5, rel=1e-9)
    assert known.second_moment == pytest.approx((1 - 4 / 5) ** -0.5, rel=1e-9)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: moments("relu", variance=0), ValueError, r"needs variance > 0, got 0.0"),
        (
            lambda: moments("relu", variance=math.inf),
            ValueError,
            r"a finite variance, got inf",
        ),
        (lambda: moments("relu", variance="1"), TypeError, r"variance as a real number"),
        (lambda: moments(jnp.tanh, inputs=3), ValueError, r"inputs to be 1 or 2, got 3"),
        (lambda: gain("relu", "sideways"), ValueError, r"activations.gain needs mode to be"),
        (lambda: gain(lambda z: 0 * z), ValueError, r"passes something on.*finds 0.0"),
        (lambda: gain(lambda z: 0 * z + 1, "backward"), ValueError, r"passes something on"),
        (lambda: act.named(3), TypeError, r"activations.named needs a name as a string, got 3"),
        (lambda: act.torch_gain("gelu"), ValueError, r"name that torch has a gain for, got 'gelu'"),
        (lambda: act.torch_gain(jnp.tanh), TypeError, r"torch_gain needs a name as a string"),
        (
            lambda: act.chi("gelu", weight_variance=4.0),
            ValueError,
            r"activations.chi needs a length .* grows without bound",
        ),
        (lambda: act.chi("glu", weight_variance=1.0), ValueError, r"activation of one input"),
        (lambda: act.length_map("relu", 1, bias_variance=-1), ValueError, r"bias_variance >= 0"),
        (lambda: act.length_slope("relu", -1), ValueError, r"activations.length_slope needs"),
        (
            lambda: act.correlation_map("relu", 1.1, weight_variance=2),
            ValueError,
            r"needs a correlation from -1 to 1, got 1.1",
        ),
        (
            lambda: act.correlation_map("relu", "x", weight_variance=2),
            TypeError,
            r"needs correlation as a real number",
        ),
        (
            lambda: act.critical("tanh", weight_variance=1, bias_variance=1),
            ValueError,
            r"activations.critical needs at most one",
        ),
        (lambda: act.width_spread("relu", 3), TypeError, r"widths as a sequence of ints, got 3"),
        (lambda: act.width_spread("relu", [2.5]), TypeError, r"widths as a sequence of ints"),
        (lambda: act.width_spread("relu", [0]), ValueError, r"all above 0, got \[0\]"),
        (
            lambda: act.width_spread("tanh", [9], weight_variance=0.5),
            ValueError,
            r"needs a length above 0",
        ),
        (
            lambda: act.width_spread(lambda z: jnp.exp(z * z / 5), [9]),
            ValueError,
            r"finite fourth moment",
        ),
    ],
)
def test_refusals(call, error, message):
    with pytest.raises(error, match=message):
        call()


# Maps through depth.


def test_the_phases_of_tanh():
    """Schoenholz et al., with a bias variance of .05."""
    ordered = act.depth_scales("tanh", weight_variance=1.3, bias_variance=0.05)
    assert ordered.variance == pytest.approx(0.315316, abs=SIX)
    assert ordered.chi1 == pytest.approx(0.880164, abs=SIX)
    assert ordered.correlation == 1
    assert ordered.correlation_scale == pytest.approx(7.834, abs=0.51e-3)
    chaotic = act.depth_scales("tanh", weight_variance=2.5, bias_variance=0.05)
    assert chaotic.variance == pytest.approx(1.063958, abs=SIX)
    assert chaotic.chi1 == pytest.approx(1.133516, abs=SIX)
    assert chaotic.correlation == pytest.approx(0.446804, abs=SIX)
    point = act.critical("tanh", bias_variance=0.05)
    assert point.weight_variance == pytest.approx(1.7609546, abs=0.51e-7)
    assert point.variance == pytest.approx(0.570048, abs=SIX)
    edge = act.depth_scales("tanh", weight_variance=point.weight_variance, bias_variance=0.05)
    assert edge.chi1 == pytest.approx(1, abs=1e-10) and edge.correlation_scale > 1e8


@pytest.mark.parametrize(
    ("weight", "bias", "slack"),
    [
        (1.05, 2.01052e-5, 0.51e-10),
        (1.1, 1.5569e-4, 0.51e-8),
        (1.2, 1.17427e-3, 0.51e-8),
        (1.5, 0.0158179, 0.51e-7),
        (2.0, 0.1037798, 0.51e-7),
    ],
)
def test_the_critical_line_of_tanh(weight, bias, slack):
    point = act.critical("tanh", weight_variance=weight)
    assert point.bias_variance == pytest.approx(bias, abs=slack)
    back = act.critical("tanh", bias_variance=point.bias_variance)
    assert back.weight_variance == pytest.approx(weight, rel=1e-9)


def test_critical_pairs():
    gelu = act.critical("gelu_exact")
    assert gelu.weight_variance == pytest.approx(1.98305826, abs=EIGHT)
    assert gelu.bias_variance == pytest.approx(0.172922391, abs=0.51e-9)
    assert gelu.variance == pytest.approx(3.56155282, abs=2e-8)
    for name in ("gelu", "silu", "mish", "hard_swish"):
        point = act.critical(name)
        w, b, q = point.weight_variance, point.bias_variance, point.variance
        assert act.length_map(name, q, weight_variance=w, bias_variance=b) == pytest.approx(q)
        chi = act.chi(name, weight_variance=w, bias_variance=b, variance=q)
        assert chi == pytest.approx(1, abs=1e-9)
        assert act.length_slope(name, q, weight_variance=w) == pytest.approx(1, abs=1e-9)
    relu = act.critical("relu")
    assert (relu.weight_variance, relu.bias_variance, relu.slope) == (2, 0, 1)
    assert act.critical("relu", bias_variance=0) == act.critical("relu", weight_variance=2) == relu
    tanh = act.critical("tanh")
    assert (tanh.weight_variance, tanh.bias_variance, tanh.variance) == (1, 0, 0)
    assert act.critical("tanh", bias_variance=0) == tanh


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: act.critical("sigmoid"), r"that has a critical pair, got sigmoid: where chi is 1"),
        (lambda: act.critical("selu"), r"that has a critical pair, got selu"),
        (lambda: act.critical("sign"), r"without jumps, got sign: chi is infinite"),
        (lambda: act.critical(lambda z: 0 * z), r"slope is not zero everywhere"),
        (lambda: act.critical("relu", bias_variance=0.1), r"its only one is \(2, 0\)"),
        (lambda: act.critical("relu", weight_variance=1.9), r"its only one is \(2, 0\)"),
        (
            lambda: act.critical("tanh", weight_variance=0.9),
            r"chi is 1 for weight variances from 1 to",
        ),
        (lambda: act.critical(lambda z: z + 10, bias_variance=9), r"bias variances from -100 to -"),
    ],
)
def test_no_critical_point(call, message):
    with pytest.raises(act.NotCriticalError, match=message) as caught:
        call()
    assert caught.value.why
    again = pickle.loads(pickle.dumps(caught.value))
    assert (str(again), again.why) == (str(caught.value), caught.value.why)


def test_fixed_points_of_the_length():
    relu = act.fixed_points("relu", weight_variance=2.0)
    assert relu.is_everywhere and not relu.points
    assert not act.fixed_points("relu", weight_variance=2.0, bias_variance=0.1).points
    (only,) = act.fixed_points("relu", weight_variance=1.0, bias_variance=0.1).points
    assert only.value == pytest.approx(0.2, rel=1e-12)
    assert (only.slope, only.stability) == (pytest.approx(0.5), "stable")
    low, high = act.fixed_points("gelu", weight_variance=2.0, bias_variance=0.1).points
    assert (low.stability, high.stability) == ("stable", "unstable")
    zero, unstable = act.fixed_points("silu", weight_variance=gain("silu") ** 2).points
    assert (zero.value, zero.stability) == (0, "stable")
    assert unstable.value == pytest.approx(1, abs=1e-9)
    assert unstable.slope == pytest.approx(1.172594, abs=SIX)
    torch = act.fixed_points("tanh", weight_variance=25 / 9).points[-1]
    assert torch.value == pytest.approx(1.1784805, abs=0.51e-7)
    assert act.chi("tanh", weight_variance=25 / 9) == pytest.approx(1.2098, abs=0.51e-4)
    assert act.chi("selu", weight_variance=9 / 16) == pytest.approx(1.0037, abs=0.51e-4)


def arc_cosine(c: float) -> float:
    return (math.sqrt(1 - c * c) + (math.pi - math.acos(c)) * c) / math.pi


@pytest.mark.parametrize("c", [0.999, *slow(-1.0, -0.9, 0.0, 0.3, 0.9)])
def test_correlation_maps_in_closed_form(c):
    relu = act.correlation_map("relu", c, weight_variance=2.0)
    assert relu == pytest.approx(arc_cosine(c), abs=1e-11)
    erf = act.correlation_map("erf", c, weight_variance=1.0, variance=1.0)
    assert erf == pytest.approx(math.asin(2 * c / 3) / math.asin(2 / 3), abs=1e-11)
    sign = act.correlation_map("sign", c, weight_variance=1.0)
    assert sign == pytest.approx(2 / math.pi * math.asin(c), abs=1e-9)
    with_bias = act.correlation_map("relu", c, weight_variance=1.0, bias_variance=0.1, variance=0.2)
    assert with_bias == pytest.approx((0.1 * arc_cosine(c) + 0.1) / 0.2, abs=1e-11)


def test_what_is_missing_to_full_correlation_keeps_its_digits():
    """1 - C = e - (2 sqrt 2 / 3 pi) e^(3/2) + O(e^(5/2)) for ReLU, e = 1 - c."""
    for e in (2.0**-20, 2.0**-30):
        missing = 1 - act.correlation_map("relu", 1 - e, weight_variance=2.0)
        series = e - 2 * math.sqrt(2) / (3 * math.pi) * e**1.5
        assert missing == pytest.approx(series, abs=2 * e**2.5 + 2.3e-16)


@pytest.mark.slow
def test_correlations_of_relu_converge_as_a_power():
    c, found = 0.0, {}
    for layer in range(1, 31):
        c = act.correlation_map("relu", c, weight_variance=2.0, variance=1.0)
        found[layer] = c
    assert found[10] == pytest.approx(0.87153552, abs=EIGHT)
    assert found[30] == pytest.approx(0.97201087, abs=EIGHT)


def test_fixed_points_of_the_correlation():
    low, one = act.correlation_fixed_points("tanh", weight_variance=2.5, bias_variance=0.05)
    assert low.value == pytest.approx(0.446804, abs=SIX)
    assert (low.stability, one.stability) == ("stable", "unstable")
    (alone,) = act.correlation_fixed_points("tanh", weight_variance=1.3, bias_variance=0.05)
    assert (alone.value, alone.stability) == (1, "stable")
    (marginal,) = act.correlation_fixed_points("relu", weight_variance=2.0)
    assert marginal.stability == "marginal"


def test_spread_over_finite_widths():
    spread = act.width_spread("relu", [100] * 50)
    assert spread.per_layer == pytest.approx(5, rel=1e-10)
    assert (spread.variance, spread.mean) == pytest.approx((2.5, -1.25), rel=1e-9)
    assert spread.median == pytest.approx(math.exp(-1.25), rel=1e-9)
    assert act.width_spread("linear", [10, 20]).variance == pytest.approx(2 * 0.15, rel=1e-9)
    # The slope .461 of tanh forgets what happened two layers ago; that of gelu remembers more.
    tanh, gelu = (act.width_spread(name, [100] * 50) for name in ("tanh", "gelu"))
    slope = moments("tanh").slope
    assert tanh.variance == pytest.approx(tanh.per_layer / 100 / (1 - slope**2), rel=1e-9)
    assert gelu.variance > 100 * tanh.variance


def test_the_spread_is_that_of_drawn_networks():
    """Variance of the log over 400 networks: relative standard error sqrt(2 / 400) = 7 %."""
    width, layers, count = 64, 6, 400
    b = act.width_spread("relu", [width] * layers).variance

    def length(key):
        h = jnp.ones(width)
        for k in jax.random.split(key, layers):
            h = jax.nn.relu(jax.random.normal(k, (width, width)) @ h * math.sqrt(2 / width))
        return jnp.log(jnp.mean(h * h) * 2)

    logs = np.asarray(jax.jit(jax.vmap(length))(jax.random.split(jax.random.key(0), count)))
    # The log-normal law itself is a limit: 5 sigma, and a tenth for what it leaves out.
    assert logs.var() == pytest.approx(b, rel=0.35 + 0.1)


# Names.


@pytest.mark.parametrize("name", act.names())
def test_entries(name):
    entry = act.named(name)
    assert entry.name == name and entry.formula and len(entry.formula) < 45
    z = jnp.linspace(-2, 2, 5)
    assert entry.function(*[z] * entry.inputs).shape == z.shape


def test_second_spellings():
    for one, other in (("swish", "silu"), ("linear", "identity"), ("SiLU", "silu")):
        assert act.named(one) is act.named(other)
    assert moments(jax.nn.gelu).name == "gelu"


def test_torch_has_numbers_of_its_own():
    assert gain("torch:tanh") == act.torch_gain("tanh").gain == 5 / 3
    assert gain("torch:leaky_relu(0.2)") == math.sqrt(2 / 1.04)
    assert gain("torch:relu") == gain("relu")
    row = act.torch_gain("torch:selu")
    assert (row.gain, row.ours) == (0.75, "selu")
    assert "normalises itself" in str(row)


def test_records_are_values_and_print():
    for record in (
        moments("gelu"),
        act.fixed_points("gelu", weight_variance=2.0, bias_variance=0.1),
        act.depth_scales("tanh", weight_variance=1.3, bias_variance=0.05),
        act.critical("gelu"),
        act.width_spread("relu", [8]),
        act.summary("gelu"),
        act.torch_gain("tanh"),
    ):
        assert pickle.loads(pickle.dumps(record)) == record
        assert hash(record) == hash(pickle.loads(pickle.dumps(record)))
        name = getattr(record, "ours", None) or record.name
        assert name in str(record)
    assert "every length" in str(act.fixed_points("relu", weight_variance=2.0))
    assert "no fixed point" in str(act.fixed_points("relu", weight_variance=3.0, bias_variance=1))


def test_a_summary_warns_of_what_runs_away():
    gelu = act.summary("gelu")
    assert re.search(r"unstable fixed point.*by 1\.144.*critical pair", gelu.warnings[0])
    assert act.summary("tanh").warnings == ()
    assert "jumps at 0" in act.summary("sign").warnings[0]
    assert act.summary("swiglu").critical is None


# In the initializers.


@pytest.mark.parametrize("name", ["gelu", "tanh", "silu", "torch:tanh", "leaky_relu(0.2)"])
def test_gains_of_initializers_by_name(name):
    g = gain(name)
    for factory in (init.glorot_normal, init.glorot_uniform, init.lecun_normal, init.lecun_uniform):
        assert factory(gain=name) == factory(gain=g)
    scaled = init.variance_scaling(1.0, "fan_in", "normal", gain=name)
    assert scaled.law((50, 20)).variance == pytest.approx(g * g / 50, rel=1e-14)


def test_gains_of_initializers_by_callable():
    def bent(z):
        return jnp.tanh(z) + 0.1 * z

    g = gain(bent)
    for made in (init.lecun_normal(gain=bent), init.glorot_uniform(gain=bent)):
        assert made.arguments()["gain"] == g
        assert eval(repr(made), vars(init)) == made
        assert pickle.loads(pickle.dumps(made)) == made
        text = json.dumps(init.to_config(made))
        again = init.from_config(json.loads(text))
        assert (again, repr(again)) == (made, repr(made))
    assert init.to_config(init.lecun_normal(gain=bent)) == {"name": "lecun_normal", "gain": g}
    assert init.get("lecun_normal", gain="gelu") == init.lecun_normal(gain="gelu")


def test_the_rectifiers_stay_what_they_are():
    """A He recipe is the LeCun recipe with the gain of a rectifier, up to its last digit."""
    for slope, name in ((0.0, "relu"), (0.2, "leaky_relu(0.2)")):
        he, lecun = init.he_normal(negative_slope=slope), init.lecun_normal(gain=name)
        assert he.law((50, 20)).variance == pytest.approx(lecun.law((50, 20)).variance, rel=1e-12)
    assert repr(init.he_normal(negative_slope=0.2)) == "he_normal(negative_slope=0.2)"


@pytest.mark.parametrize("he", ["he_normal", "he_uniform", "kaiming_normal", "kaiming_uniform"])
@pytest.mark.parametrize("argument", ["nonlinearity", "gain"])
def test_a_he_recipe_says_what_to_write_for_another_activation(he, argument):
    with pytest.raises(TypeError, match=rf"^he_\w+ takes no {argument}='silu'") as error:
        getattr(init, he)(**{argument: "silu"})
    (line,) = re.findall(r"write (lecun_\w+\(.*?\)),", str(error.value))
    assert eval(line, vars(init)).law((50, 20)).variance * 50 == pytest.approx(gain("silu") ** 2)
    with pytest.raises(TypeError, match=rf"{argument}=silu: .*\(gain=silu\)"):
        getattr(init, he)(**{argument: jax.nn.silu})


def test_a_gain_under_a_trace():
    @jax.jit
    def draw(key):
        return init.lecun_normal(gain=lambda z: jax.nn.silu(2 * z))(key, (8, 4))

    assert draw(jax.random.key(0)).shape == (8, 4)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: init.glorot_normal(gain="gelo"), ValueError, r"^glorot_normal needs gain .*gelu"),
        (lambda: init.lecun_normal(gain=-1), ValueError, r"^lecun_normal needs gain >= 0"),
        (lambda: init.lecun_uniform(gain=jax.nn.softmax), ValueError, r"^lecun_uniform .* softmax"),
        (
            lambda: init.variance_scaling(1, "fan_in", "normal", gain="torch:gelu"),
            ValueError,
            r"^variance_scaling needs gain .* torch has a gain for",
        ),
    ],
)
def test_gains_that_cannot_be(call, error, message):
    with pytest.raises(error, match=message):
        call()
