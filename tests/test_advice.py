"""The guide row by row, the rules that come of it, and what `advise` and `audit` say and refuse."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import advice_models as models
import jaxinit
from helpers import slow
from jaxinit import initializers as init
from jaxinit.advice import GUIDES
from jaxinit.advice._advise import rules_for
from jaxinit.planning import compile_glob

pytestmark = pytest.mark.unoptimized


def rows(reading, goal="train"):
    return {p.path: p.row for p in jaxinit.advise(reading, goal)}


def moe():
    def fn(params, x):
        share = jax.nn.softmax(x @ params["router"])
        hidden = jax.nn.relu(jnp.einsum("bd,edf->bef", x, params["up"]))
        return jnp.einsum("be,bef,efk->bk", share, hidden, params["down"])

    shapes = {"router": (6, 4), "up": (4, 6, 10), "down": (4, 10, 6)}
    return models.read(fn, shapes, models.struct(3, 6))


def with_spare():
    def fn(params, x):
        return x @ params["w"] + 0 * params["spare"].shape[0]

    return models.read(fn, {"w": (3, 2), "spare": (2,)}, models.struct(4, 3))


def flow():
    def fn(params, x):
        scale, shift = jnp.split(jax.nn.relu(x[:, :4] @ params["in"]) @ params["out"], 2, -1)
        return jnp.concatenate([x[:, :4], x[:, 4:] * jnp.exp(scale) + shift], -1)

    return models.read(fn, {"in": (4, 16), "out": (16, 8)}, models.struct(4, 8))


def weight_norm():
    def fn(params, x):
        v = params["v"]
        return x @ (params["g"] * v / jnp.sqrt((v * v).sum(0, keepdims=True))) @ params["out"]

    return models.read(fn, {"v": (8, 8), "g": (8,), "out": (8, 2)}, models.struct(4, 8))


ROWS = {
    "as the model draws it": (with_spare, "spare"),
    "weight norm": (weight_norm, "g"),
    "low-rank bypass": (models.adapted, "layers/0/b"),
    "mixture of experts: router": (moe, "router"),
    "embeddings": (models.transformer, "table"),
    "vision transformer, normalised before each branch": (
        lambda: models.transformer(patches=True), "blocks/0/up",
    ),
    "transformer, normalised before each branch": (models.transformer, "blocks/0/up"),
    "deep transformer, normalised after each sum": (
        lambda: models.transformer("after", layers=18), "blocks/0/up",
    ),
    "transformer, normalised after each sum": (
        lambda: models.transformer("after"), "blocks/0/up",
    ),
    "transformer without normalisation": (lambda: models.transformer(None), "blocks/0/up"),
    "convolutions with batch or group norm": (
        lambda: models.convolutional(True, 3), "layers/1/kernel",
    ),
    "residual, normalised": (lambda: models.residual("before", 3), "blocks/0/down"),
    "normalised, no residual sums": (lambda: normalised_plain(), "0"),
    "residual without normalisation": (lambda: models.residual(None, 3), "blocks/0/down"),
    "recurrent": (models.lstm, "wh"),
    "scale at the end of a branch": (
        lambda: models.transformer(scaled="branch"), "blocks/0/scale",
    ),
    "beside a recurrence": (models.lstm, "wx"),
    "coordinate network of sines": (lambda: models.plain(jnp.sin, 4), "hidden/0/kernel"),
    "self-normalising (SELU)": (lambda: models.plain(jax.nn.selu, 4), "hidden/0/kernel"),
    "plain convolutions with tanh, 30 layers or more": (
        lambda: models.convolutional(False, 30, jnp.tanh), "layers/1/kernel",
    ),
    "shallow plain network (fewer than 5 layers)": (
        lambda: models.plain(jax.nn.relu, 3), "hidden/0/kernel",
    ),
    "plain network of rectifiers": (lambda: models.plain(jax.nn.relu, 8), "hidden/0/kernel"),
    "deep plain network that saturates (tanh, sin, erf)": (
        lambda: models.plain(jnp.tanh, 12), "hidden/0/kernel",
    ),
    "plain network of sigmoids": (lambda: models.plain(jax.nn.sigmoid, 4), "hidden/0/kernel"),
    "deep plain network with an unstable length (GELU, SiLU, Mish)": (
        lambda: models.plain(jax.nn.silu, 10), "hidden/0/kernel",
    ),
    "plain network": (lambda: models.plain(jnp.tanh, 4), "hidden/0/kernel"),
    "affine coupling of a flow": (flow, "out"),
    "any model": (lambda: models.plain(jnp.tanh, 4), "hidden/0/bias"),
}  # fmt: skip


def normalised_plain():
    def fn(params, x):
        for kernel in params:
            x = x @ kernel
            x = jax.nn.relu((x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True)))
        return x

    return models.read(fn, [(6, 6)] * 3, models.struct(4, 6))


@pytest.mark.parametrize("row", ROWS)
def test_every_row_has_a_model_that_reaches_it(row):
    make, path = ROWS[row]
    assert rows(make())[path] == row


def test_no_row_of_the_guide_is_left_out():
    assert {row.name for row in GUIDES["train"]} == set(ROWS)


@pytest.mark.parametrize("goal", GUIDES)
def test_no_row_stands_twice_in_a_guide(goal):
    names = [row.name for row in GUIDES[goal]]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("goal", GUIDES)
def test_every_goal_covers_every_leaf_and_every_row_can_be_printed(goal):
    for make in (models.transformer, models.lstm, lambda: models.plain(jnp.tanh, 12), moe):
        reading = make()
        advice = jaxinit.advise(reading, goal)
        assert [p.path for p in advice] == list(reading.paths)
        assert all(p.reason and p.source for p in advice)
    assert all(row.name and row.when.text and row.source for row in GUIDES[goal])


def test_the_classical_lesson():
    def kernel(activation, depth):
        advice = jaxinit.advise(models.plain(activation, depth), "classical")
        return advice["hidden/1/kernel"].initializer

    assert kernel(jax.nn.relu, 12) == init.he_normal()
    assert kernel(jax.nn.relu, 7) == init.he_normal()
    assert kernel(jnp.tanh, 12) == init.glorot_normal()
    assert kernel(jax.nn.sigmoid, 12) == init.glorot_normal()
    assert kernel(jnp.tanh, 3) == init.lecun_uniform()
    assert jaxinit.advise(models.plain(jnp.tanh, 3), "classical")["hidden/0/bias"].std == 0


# Numbers of single rows.


def test_leaky_slope_is_in_the_gain():
    advice = jaxinit.advise(models.plain(lambda x: jax.nn.leaky_relu(x, 0.2), 8))
    variance = advice["hidden/1/kernel"].std ** 2 * 16
    assert math.isclose(variance, 2 / 1.04, rel_tol=1e-5)


def test_residual_outputs_of_a_pre_norm_transformer_shrink_with_the_branches():
    advice = jaxinit.advise(models.transformer(layers=3))
    assert math.isclose(advice["blocks/0/o"].std ** 2 * 8, 1 / 6, rel_tol=1e-5)
    assert math.isclose(advice["blocks/2/down"].std ** 2 * 16, 1 / 6, rel_tol=1e-5)
    assert advice["blocks/0/q"].initializer == init.lecun_normal()
    assert math.isclose(advice["table"].std, 8**-0.5, rel_tol=1e-5)


def test_an_untied_table_has_unit_size():
    advice = jaxinit.advise(models.transformer(tied=False))
    assert (advice["table"].std, advice["head"].role) == (1.0, "head")


def test_fixup_of_sixteen_branches_of_two_maps():
    advice = jaxinit.advise(models.residual(None, 16))
    assert advice["blocks/3/down"].initializer == init.zeros
    assert advice["head"].initializer == init.zeros
    # L^(-1/(2m-2)) with L = 16 and m = 2 is 1/4; the gain of ReLU is sqrt 2.
    assert math.isclose(advice["blocks/3/up"].std ** 2 * 16, 2 / 16, rel_tol=1e-5)


@pytest.mark.parametrize("goal", GUIDES)
def test_an_adapted_model_starts_as_the_base_model(goal):
    advice = jaxinit.advise(models.adapted(), goal)
    assert advice["layers/1/b"].initializer == init.zeros
    assert advice["layers/1/a"].initializer == init.lecun_normal()
    assert advice["layers/1/b"].source.startswith("Hu 2021")
    twin = jaxinit.advise(models.adapted(rank=32), goal)
    assert twin["layers/1/b"].std > 0


def test_an_adapted_vision_transformer_starts_as_the_base_model():
    """Rows of vision speak of kernels, and a factor of a bypass is one too."""

    def normalise(x):
        return (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-6)

    def fn(params, images):
        x = jax.lax.conv_general_dilated(
            images, params["patch"], (2, 2), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        ).reshape(images.shape[0], -1, 8)
        for block in params["blocks"]:
            y = normalise(x)
            q, k, v = (y @ block[name] + (y @ block["a"]) @ block["b"] for name in "qkv")
            x = x + (jax.nn.softmax(q @ jnp.swapaxes(k, -1, -2)) @ v) @ block["o"]
        return normalise(x) @ params["head"]

    block = {name: (8, 8) for name in "qkvo"} | {"a": (8, 2), "b": (2, 8)}
    shapes = {"patch": (2, 2, 3, 8), "blocks": [block] * 2, "head": (8, 3)}
    advice = jaxinit.advise(models.read(fn, shapes, models.struct(2, 4, 4, 3)))
    assert advice["blocks/0/q"].row == "vision transformer, normalised before each branch"
    assert advice["blocks/0/b"].initializer == init.zeros
    assert advice["blocks/0/a"].initializer == init.lecun_normal()


def gains(reading, goal):
    """Variance times the fan that the kernel goes by, of every map."""
    return {
        p.path.rpartition("/")[2]: round(p.std**2 * reading[p.path].fan_in, 3)
        for p in jaxinit.advise(reading, goal)
        if reading[p.path].role in ("kernel", "head")
    }


@pytest.mark.parametrize("goal", ["mup", "classical"])
def test_gates_and_maps_that_meet_no_activation_have_gain_one(goal):
    found = gains(models.transformer(layers=6, tied=False, gated=True), goal)
    assert [found[name] for name in ("q", "k", "v", "up", "gate")] == [1] * 5
    twin = gains(models.transformer(layers=6, tied=False), goal)
    assert [twin[name] for name in ("q", "k", "v")] == [1] * 3
    # GELU is met: a rectifier's gain; behind a normalisation, mup leaves it to the next map.
    assert twin["up"] == (2 if goal == "classical" else 1)
    if goal == "classical":
        assert (twin["o"], twin["down"], twin["head"]) == (1, 1, 1)


@pytest.mark.parametrize("is_normed, down", [(False, 1), (True, 2)])
def test_a_convolution_that_meets_no_activation_has_gain_one(is_normed, down):
    def fn(params, x):
        def conv(x, kernel):
            layout = ("NHWC", "HWIO", "NHWC")
            return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=layout)

        def norm(x):
            return (x - x.mean((0, 1, 2))) / jnp.sqrt(x.var((0, 1, 2)) + 1e-5)

        inner = conv(jax.nn.relu(norm(conv(x, params["up"]))), params["down"])
        x = conv(x, params["skip"]) + (norm(inner) if is_normed else inner)
        return jax.nn.relu(x).mean((1, 2)) @ params["head"]

    shapes = {"up": (3, 3, 4, 5), "down": (3, 3, 5, 6), "skip": (1, 1, 4, 6), "head": (6, 3)}
    reading = models.read(fn, shapes, models.struct(2, 6, 6, 4))
    variances = {
        p.path: round(p.std**2 * reading[p.path].fan_out, 3) for p in jaxinit.advise(reading)
    }
    assert (variances["up"], variances["down"], variances["skip"]) == (2, down, 1)


def test_a_cell_beside_attention_stays_a_cell():
    def fn(params, x):
        def step(h, x):
            h = jnp.tanh(x @ params["wi"] + h @ params["wh"])
            return h, h

        _, x = jax.lax.scan(step, jnp.zeros(6), x)
        x = x @ params["mix"]
        y = (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-6)
        q, k, v = (y @ params[name] for name in "qkv")
        return x + (jax.nn.softmax(q @ k.T) @ v) @ params["o"]

    shapes = dict.fromkeys(("wi", "wh", "mix", *"qkvo"), (6, 6))
    reading = models.read(fn, shapes, models.struct(5, 6))
    for goal in ("train", "mup", "policy"):
        advice = jaxinit.advise(reading, goal)
        wh = advice["wh"]
        assert (wh.row, wh.initializer) == ("recurrent", init.scaled_orthogonal())
        assert advice["mix"].row != "recurrent"


@pytest.mark.parametrize("blocks, value", [(18, 0.1), (19, 1e-5), (24, 1e-5), (25, 1e-6)])
def test_layer_scale_is_small_and_smaller_in_deep_models(blocks, value):
    def fn(params, x):
        for block in params["blocks"]:
            y = (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-6)
            x = x + jax.nn.relu(y @ block["w"]) @ block["v"] * block["scale"]
        return x @ params["head"]

    block = {"w": (6, 6), "v": (6, 6), "scale": (6,)}
    shapes = {"blocks": [block] * blocks, "head": (6, 3)}
    advice = jaxinit.advise(models.read(fn, shapes, models.struct(4, 6)))
    assert advice["blocks/0/scale"].initializer == init.constant(value)


BY_LAYERS = {10: 0.1, 18: 0.1, 24: 1e-5, 25: 1e-6}


@pytest.mark.parametrize("layers", [10, *slow(18, 24, 25)])
def test_a_block_of_a_transformer_is_two_branches(layers):
    advice = jaxinit.advise(models.transformer(layers=layers, scaled="branch"))
    assert advice["blocks/0/scale"].initializer == init.constant(BY_LAYERS[layers])


def test_the_scale_of_a_normalisation_that_ends_a_branch_is_no_layer_scale():
    advice = jaxinit.advise(models.transformer(layers=2, scaled="norm"))
    assert advice["blocks/0/scale"].initializer == init.ones


def test_the_first_layer_brings_a_critical_pair_to_its_fixed_point():
    advice = jaxinit.advise(models.plain(jax.nn.gelu, 12))
    pair = jaxinit.activations.critical("gelu")
    first = advice["hidden/0/kernel"].std ** 2 * 16 + advice["hidden/0/bias"].std ** 2
    assert math.isclose(first, pair.variance, rel_tol=1e-4)
    inner = advice["hidden/5/kernel"].std ** 2 * 16
    assert math.isclose(inner, pair.weight_variance, rel_tol=1e-4)


def test_siren_divides_by_its_frequency():
    advice = jaxinit.advise(models.plain(lambda x: jnp.sin(30 * x), 4))
    assert advice["hidden/0/kernel"].initializer.law((16, 16)).support[1] == pytest.approx(1 / 16)
    bound = math.sqrt(6 / 16) / 30
    assert advice["hidden/1/kernel"].initializer.law((16, 16)).support[1] == pytest.approx(
        bound, rel=1e-4
    )


@pytest.mark.parametrize("packed", [True, False])
def test_the_forget_gate_alone_starts_open(packed):
    reading = models.lstm(packed)
    values = jaxinit.advise(reading).plan().init(jax.random.key(0))
    if packed:
        assert values["b"].reshape(4, 6).tolist() == [[0] * 6, [1] * 6, [0] * 6, [0] * 6]
    else:
        assert {n: float(values[f"b/{n}"].mean()) for n in "ifgo"} == {
            "i": 0, "f": 1, "g": 0, "o": 0,
        }  # fmt: skip


@pytest.mark.parametrize(
    ("shape", "axis", "is_forget"),
    [((24,), -2, True), ((4, 6), -2, True), ((6, 4), -1, True), ((24,), -1, False)],
    ids=["one axis", "an axis of gates", "a last axis of gates", "entry by entry"],
)
def test_gates_that_are_unstacked(shape, axis, is_forget):
    """Gates are packed one after the other, or entry by entry: then no range is a gate."""

    def step(params, state, x):
        c, h = state
        gates = x @ params["wx"] + h @ params["wh"]
        packed = (4, 6) if axis == -2 else (6, 4)
        if len(shape) == 1:
            gates = (gates + params["b"]).reshape(-1, *packed)
        else:
            gates = gates.reshape(-1, *packed) + params["b"]
        i, f, g, o = jnp.unstack(gates, axis=axis)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        h = jax.nn.sigmoid(o) * jnp.tanh(c)
        return (c, h), h

    def fn(params, x):
        start = (jnp.zeros((x.shape[1], 6)), jnp.zeros((x.shape[1], 6)))
        (_, h), _ = jax.lax.scan(lambda s, x: step(params, s, x), start, x)
        return h @ params["head"]

    shapes = {"wx": (4, 24), "wh": (6, 24), "b": shape, "head": (6, 3)}
    advice = jaxinit.advise(models.read(fn, shapes, models.struct(7, 2, 4)))
    assert (advice["b"].role == "forget_bias") == is_forget
    values = advice.plan().init(jax.random.key(0))["b"].reshape((4, 6) if axis == -2 else (6, 4))
    gates = values if axis == -2 else values.T
    assert gates.tolist() == [[0] * 6, [int(is_forget)] * 6, [0] * 6, [0] * 6]


def test_the_forget_gates_of_stacked_cells_start_open():
    """Cells over layers of one array: the range is of the last axis, not of all entries."""

    def step(params, state, x):
        gates = x @ params["wx"] + state[1] @ params["wh"] + params["b"]
        i, f, g, o = jnp.split(gates, 4, -1)
        c = jax.nn.sigmoid(f) * state[0] + jax.nn.sigmoid(i) * jnp.tanh(g)
        h = jax.nn.sigmoid(o) * jnp.tanh(c)
        return (c, h), h

    def layer(x, params):
        start = (jnp.zeros((2, 6)), jnp.zeros((2, 6)))
        return jax.lax.scan(lambda state, x: step(params, state, x), start, x)[1], None

    shapes = {"wx": (3, 6, 24), "wh": (3, 6, 24), "b": (3, 24)}
    reading = models.read(lambda p, x: jax.lax.scan(layer, x, p)[0], shapes, models.struct(7, 2, 6))
    advice = jaxinit.advise(reading)
    values = advice.plan().init(jax.random.key(0))["b"].reshape(3, 4, 6)
    assert values.tolist() == [[[0] * 6, [1] * 6, [0] * 6, [0] * 6]] * 3


def test_policy_and_value_heads():
    def fn(params, x):
        x = jnp.tanh(x @ params["body"])
        return x @ params["policy"], x @ params["value"]

    shapes = {"body": (6, 6), "policy": (6, 4), "value": (6, 1)}
    advice = jaxinit.advise(models.read(fn, shapes, models.struct(3, 6)), "policy")
    assert math.isclose(advice["policy"].std ** 2 * 6, 1e-4, rel_tol=1e-5)
    assert math.isclose(advice["value"].std ** 2 * 6, 1.0, rel_tol=1e-5)


# Rules.


def stacked_and_grouped():
    """Every layout whose fans a shape does not show."""

    def fn(params, x):
        x, _ = jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, params["stack"])
        q, k, v = jnp.split(x @ params["packed"], 3, -1)
        x = jnp.einsum("bd,hdk->bhk", q * k + v, params["heads"]).reshape(x.shape[0], 6, 2)
        x = jax.lax.conv_general_dilated(
            x, params["grouped"], (1,), "SAME",
            dimension_numbers=("NWC", "WIO", "NWC"), feature_group_count=2,
        )  # fmt: skip
        return x.reshape(x.shape[0], -1) @ params["turned"].T

    shapes = {
        "stack": (5, 6, 6), "packed": (6, 18), "heads": (3, 6, 4), "grouped": (3, 1, 4),
        "turned": (7, 24),
    }  # fmt: skip
    return models.read(fn, shapes, models.struct(2, 6))


@pytest.mark.parametrize(
    "make",
    [stacked_and_grouped, moe, models.lstm, models.transformer, lambda: models.residual(None, 3)],
)
@pytest.mark.parametrize("goal", ["train", "classical"])
def test_rules_make_a_plan_with_the_fans_of_the_reading(make, goal):
    reading = make()
    advice = jaxinit.advise(reading, goal)
    plan = advice.plan()
    checked = 0
    for prescription in advice:
        leaf, parameter = plan[prescription.path], reading[prescription.path]
        assert leaf.initializer == prescription.initializer
        if leaf.fans is not None and parameter.fan_in is not None:
            assert (leaf.fans.fan_in, leaf.fans.fan_out) == (parameter.fan_in, parameter.fan_out)
            checked += 1
    assert checked


def test_rules_fit_the_tree_of_the_model_itself():
    tree = {"hidden": [{"kernel": models.struct(8, 8)}] * 3, "out": models.struct(8, 2)}

    def fn(params, x):
        for layer in params["hidden"]:
            x = jax.nn.relu(x @ layer["kernel"])
        return x @ params["out"]

    advice = jaxinit.advise(jaxinit.read(fn, tree, models.struct(4, 8)))
    values = jaxinit.plan(tree, advice.rules()).init(jax.random.key(0))
    assert jax.tree.structure(values) == jax.tree.structure(tree)
    assert len(advice.rules()) == 2


@pytest.mark.parametrize(
    "values",
    [
        [("a/kernel", 1), ("b/kernel", 2), ("a/bias", 0), ("b/bias", 0)],
        [("layer_1/w", 1), ("layer_2/w", 2), ("layer_10/w", 1), ("layer_11/w", 3)],
        [("a[0]/w", 1), ("a{1}/w", 2), ("a*/w", 3), ("ab/w", 4)],
        [("w", 1)],
        [(f"block_{n}/{name}/kernel", name) for n in range(30) for name in "qkvo"],
    ],
)
def test_globs_are_exact_and_few(values):
    rules = rules_for(values)
    left = dict(values)
    for glob, value in rules:
        taken = [path for path in left if compile_glob("test", glob).fullmatch(path)]
        assert taken, glob
        assert all(left.pop(path) == value for path in taken)
    assert not left
    assert len(rules) <= len(values)
    if len(values) == 120:
        assert len(rules) == 4


def test_rules_cover_what_was_read_alone():
    rules = rules_for([(f"hidden/{n}/w", 1) for n in range(9)] + [("out/w", 1), ("b,c", 0)])
    assert rules == [("b[,]c", 0), ("{hidden/[0-9]*,out}/w", 1)]
    tree = {"a": models.struct(4, 4), "b": models.struct(4, 4)}
    advice = jaxinit.advise(
        jaxinit.read(lambda p, x: x @ p["a"] @ p["b"], tree, models.struct(2, 4))
    )
    with pytest.raises(ValueError, match=r"1 leaf has no rule: 'new'"):
        jaxinit.plan(tree | {"new": models.struct(4)}, advice.rules())


# What is printed, and refused.


@pytest.mark.parametrize("width", [60, 80, 100])
@pytest.mark.parametrize("activation", [jax.nn.relu, jax.nn.silu])
def test_the_table_fits_its_width_and_says_why(activation, width):
    advice = jaxinit.advise(models.plain(activation, 12), init=None)
    text = advice.to_text(width)
    assert max(map(len, text.splitlines())) <= width
    assert "hidden/*/kernel" in text
    assert all(p.source in " ".join(text.split()) for p in advice)


def test_the_advice_prints_a_hundred_columns_wide():
    advice = jaxinit.advise(models.plain(jax.nn.relu, 12), init=None)
    assert str(advice) == advice.to_text(100)
    assert repr(advice).startswith("<Advice on 23 parameters")


def test_json_is_plain_and_tells_the_initializers():
    advice = jaxinit.advise(models.lstm())
    read_back = json.loads(advice.to_json(), parse_constant=pytest.fail)
    first = read_back["prescriptions"][0]
    assert init.from_config(first["initializer"]) == advice.prescriptions[0].initializer
    assert read_back["goal"] == "train"


def test_advise_refuses_what_it_cannot_use():
    reading = models.plain(jnp.tanh, 3)
    with pytest.raises(TypeError, match=r"advise needs a reading, got dict.*jaxinit.read"):
        jaxinit.advise({})
    with pytest.raises(ValueError, match=r"advise needs a goal of 'train'.*got 'win'.*in doubt"):
        jaxinit.advise(reading, "win")  # type: ignore
    with pytest.raises(ValueError, match=r"advise needs the parameters that were read, got .*'w'"):
        jaxinit.advise(reading, init={"w": np.ones(3, "float32")})
    with pytest.raises(KeyError, match="no leaf 'nowhere'"):
        jaxinit.advise(reading)["nowhere"]


# Audit.


def drawn(reading, initializer):
    tree = {p.path: jaxinit.ParamSpec(p.shape, np.dtype(p.dtype)) for p in reading}
    rules = [("**/kernel", initializer), ("**", init.zeros)]
    return jaxinit.plan(tree, rules).init(jax.random.key(0))


def test_an_audit_implies_the_gain_from_the_true_fan():
    reading = models.plain(jax.nn.relu, 12, 64)
    found = jaxinit.audit(reading, drawn(reading, init.he_normal()))
    leaf = next(leaf for leaf in found if leaf.path == "hidden/3/kernel")
    # 4,096 entries: the variance is within 5 sigma = 5 sqrt(1.37 / 4096) = 9 %, its root within 5.
    assert math.isclose(leaf.gain, math.sqrt(2), rel_tol=0.05)
    assert math.isclose(leaf.advised_gain, math.sqrt(2), rel_tol=1e-6)
    assert leaf.fan_in == 64
    worse = jaxinit.audit(reading, drawn(reading, init.lecun_normal()))
    assert worse.severity in ("warning", "error")
    assert "gain-mismatch" in [finding.code for finding in worse.findings]
    assert "gain-mismatch" not in [finding.code for finding in found.findings]
    assert "fit to train" in worse.verdict or "handicap" in worse.verdict
    for width in (70, 100):
        assert max(map(len, worse.to_text(width).splitlines())) <= width
    assert json.loads(worse.to_json(), parse_constant=pytest.fail) == worse.to_dict()


def test_random_keys_and_counters_are_state():
    """As NNX keeps them in dropout: a key has no numbers to measure, a count is no parameter."""

    def fn(params, x):
        key = jax.random.fold_in(params["key"], params["count"])
        return jnp.tanh(x @ params["w"] * jax.random.bernoulli(key, 0.5, (4, 8))) @ params["v"]

    params = {
        "w": init.lecun_normal()(jax.random.key(0), (8, 8)),
        "v": init.lecun_normal()(jax.random.key(1), (8, 2)),
        "key": jax.random.key(2),
        "count": jnp.zeros((), "uint32"),
    }
    found = jaxinit.audit(jaxinit.read(fn, params, jnp.ones((4, 8))), params)
    assert [leaf.path for leaf in found] == ["count", "v", "w"]
    assert not found.findings
    advice = jaxinit.advise(found.reading)
    assert "a counter stays as the model makes it" in advice["count"].reason
    assert advice["count"].initializer == init.own
    # Integers that are multiplied are a quantised kernel, and no counter.
    quantised = {"w": models.struct(8, 8, dtype="int8")}
    reading = jaxinit.read(lambda p, x: x @ p["w"].astype("float32"), quantised, jnp.ones((4, 8)))
    assert "integers are not drawn" in jaxinit.advise(reading)["w"].reason


def test_audit_needs_values():
    reading = models.read(lambda p, x: x @ p["w"], {"w": (3, 2)}, models.struct(4, 3))
    with pytest.raises(TypeError, match="needs arrays with values"):
        jaxinit.audit(reading, {"w": models.struct(3, 2)})
    with pytest.raises(ValueError, match="audit needs a goal of"):
        jaxinit.audit(reading, {"w": jnp.ones((3, 2))}, goal="win")  # type: ignore
    with pytest.raises(ValueError, match=r"audit needs the parameters that were read, got .*'v'"):
        jaxinit.audit(reading, {"v": jnp.ones((3, 2))})


def test_old_spellings_show_the_new_line():
    def fn(p, x):
        return x @ p["w"]

    params, x = {"w": jnp.ones((3, 2))}, models.struct(4, 3)
    reading = jaxinit.read(fn, params, x)
    line = r"jaxinit.audit\(jaxinit.read\(model.apply, variables, x\), variables\)"
    with pytest.raises(TypeError, match=f"audit needs a reading, got function. .* {line}"):
        jaxinit.audit(fn, params, x)  # type: ignore
    with pytest.raises(
        TypeError, match=r"needs init= for .* got current=. .*\(reading, init=...\)"
    ):
        jaxinit.advise(reading, current=params)  # type: ignore
    assert not hasattr(jaxinit.advice, "audit_reading")
