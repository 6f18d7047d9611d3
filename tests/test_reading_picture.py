"""Pictures of readings: what the figure holds, and that nothing in it overlaps."""

from __future__ import annotations

import itertools
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import matplotlib
import pytest
from matplotlib.colors import to_hex

import jaxinit
from jaxinit.pictures import figure_of
from jaxinit.pictures._cells import LABEL_LETTERS, wrapped
from jaxinit.pictures._diagram import diagram_of
from jaxinit.pictures._layout import WIDEST, lay_out
from zoo import flax_linen, vision
from zoo.expect import array, ids

pytestmark = pytest.mark.unoptimized

# Figures are made without pyplot, so that none stays open; this is for what saves them.
matplotlib.use("Agg")


def read(apply, variables, *inputs):
    return jaxinit.read(apply, variables, *inputs)


def read_case(case):
    return jaxinit.read(case.apply, case.variables, *case.inputs)


def chain(count, width=4):
    """Layers of different widths, so that none is a copy of another; or of one width."""
    widths = [width or 3 + n for n in range(count + 1)]
    kernels = {f"layer_{n}": array(widths[n], widths[n + 1]) for n in range(count)}

    def apply(tree, x):
        for n in range(count):
            x = jax.nn.relu(x @ tree[f"layer_{n}"])
        return x

    return read(apply, kernels, array(2, widths[0]))


def words(reading):
    """All text of the figure, in no particular order."""
    return [text.get_text() for text in figure_of(reading).axes[0].texts if text.get_text()]


@pytest.fixture(scope="module")
def transformer():
    return read_case(vision.CASES["vit"]())


# What the figure holds.


def test_a_chain_holds_paths_roles_fans_and_activations():
    def apply(tree, x):
        return jnp.tanh(jax.nn.relu(x @ tree["a"]["w"]) @ tree["b"]["w"]) @ tree["c"]["w"]

    shapes = {"a": {"w": array(3, 5)}, "b": {"w": array(5, 7)}, "c": {"w": array(7, 2)}}
    found = words(read(apply, shapes, array(4, 3)))
    for line in ("a/w", "3 → 5", "relu", "b/w", "5 → 7", "tanh", "c/w", "7 → 2", "3 layers"):
        assert found.count(line) == 1
    assert found.count("kernel") == 2 and found.count("head") == 1
    assert found.count("input") == found.count("output") == 1


def test_a_transformer_shows_its_stream_with_branches_beside_it(transformer):
    layout = lay_out(diagram_of(transformer))
    rings = [cell for cell in layout.cells.values() if cell.box.kind == "residual"]
    assert len(rings) == 4 and {ring.lane for ring in rings} == {0}
    # Between first and last sum, every layer lies in a branch.
    inside = [
        cell
        for cell in layout.cells.values()
        if cell.box.kind == "layer" and rings[0].column < cell.column < rings[-1].column
    ]
    assert len(inside) == 8 and min(cell.lane for cell in inside) == 1
    assert sum(layout.residual) == 4
    found = words(transformer)
    assert found.count("softmax") == found.count("gelu") == 2
    # Before query, key, value and the first layer of each MLP, and before the head.
    assert found.count("layer norm") == 2 * 4 + 1


def test_colours_tell_heads_and_the_unknown():
    def apply(tree, x):
        return jnp.maximum(x @ tree["w"], tree["lost"]) @ tree["head"]

    shapes = {"w": array(3, 5), "lost": array(1, 5), "head": array(5, 2)}
    reading = read(apply, shapes, array(4, 3))
    assert [each.path for each in reading.unknown] == ["lost"]
    axes = figure_of(reading).axes[0]
    edges = [to_hex(patch.get_edgecolor()) for patch in axes.patches]
    assert edges.count("#c01818") == 1 and edges.count("#b06a00") == 1


def test_parts_of_a_packed_kernel_are_boxes_of_their_own():
    def apply(tree, x):
        q, k, v = jnp.split(x @ tree["qkv"], 3, axis=-1)
        return jax.nn.softmax(q @ k.T) @ v

    found = words(read(apply, {"qkv": array(4, 15)}, array(6, 4)))
    assert [f"part {n} of 3" in found for n in (1, 2, 3)] == [True] * 3
    assert found.count("4 → 5") == 3


# Repeated layers.


def test_many_equal_layers_are_drawn_once_and_few_are_not():
    many, few = words(chain(31)), words(chain(30))
    assert "layer_*" in many and "x 30" in many
    assert "31 layers; more than 30, so that repeated layers are drawn once" in many
    assert "layer_*" not in few and {f"layer_{n}" for n in range(30)} < set(few)


def test_layers_under_a_scan_say_how_many_they_are():
    def apply(tree, x):
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, tree["w"])[0]

    found = words(read(apply, {"w": array(12, 4, 4)}, array(2, 4)))
    assert found.count("x 12") == 1 and "1 layer" in found


def test_layers_that_lead_into_folded_layers_say_where(transformer):
    found = words(read_case(vision.CASES["resnet-50"]()))
    assert "54 layers; more than 30, so that repeated layers are drawn once" in found
    assert found.count("on to conv_2") == 4
    assert not any("on to" in line for line in words(transformer))


# The layout.


@pytest.mark.parametrize("name", ["u-net", "resnet", "resnet-50", "mixer", "lstm", "gru"])
def test_nothing_overlaps_and_the_page_is_not_too_wide(name):
    if name in vision.CASES:
        reading = read_case(vision.CASES[name]())
    else:
        cell = {"lstm": nn.LSTMCell, "gru": nn.GRUCell}[name](6)
        model = nn.Sequential([nn.Embed(9, 5), nn.RNN(cell), nn.Dense(3)])
        shapes = jax.eval_shape(model.init, jax.random.key(0), ids(2, 4))
        reading = read(model.apply, shapes, ids(2, 4))
    layout = lay_out(diagram_of(reading))
    boxes = [
        (*(cell.sides[0] - cell.room(cell.entry), cell.sides[1] + cell.room(cell.exit)),)
        + (cell.y - cell.height / 2, cell.y + cell.height / 2)
        for cell in layout.cells.values()
    ]
    for one, other in itertools.combinations(boxes, 2):
        beside = one[1] <= other[0] or other[1] <= one[0]
        # Lanes touch; the last bit of a sum of heights may differ.
        above = one[3] <= other[2] + 1e-9 or other[3] <= one[2] + 1e-9
        assert beside or above
    assert layout.size[0] <= WIDEST + 0.5
    assert all(box[0] >= 0 and box[1] <= layout.size[0] for box in boxes)
    assert all(box[2] >= 0 and box[3] <= layout.size[1] for box in boxes)


def test_text_takes_the_room_it_was_given(transformer):
    """The widths of letters that the layout counts with are those of the font."""
    figure = figure_of(transformer)
    figure.draw_without_rendering()
    cells = lay_out(diagram_of(transformer)).cells.values()
    rooms = {line: cell.width for cell in cells if not cell.is_ring for line in cell.text}
    measured = 0
    for text in figure.axes[0].texts:
        if text.get_text() in rooms:
            width = text.get_window_extent().width / figure.dpi
            assert width <= rooms[text.get_text()]
            measured += 1
    assert measured > 15 * 3


def test_paths_are_wrapped_behind_slashes():
    assert wrapped("short/kernel", 22) == ["short/kernel"]
    assert wrapped("encoder/attention/query/kernel", 22) == ["encoder/attention", "/query/kernel"]
    assert wrapped("x" * 25, 10) == ["x" * 10, "x" * 10, "x" * 5]


def test_long_labels_are_cut():
    def apply(tree, x):
        y = x @ tree["a"]
        return jnp.sin(jnp.cos(jnp.exp(jnp.sin(y)))) @ tree["b"]

    found = words(read(apply, {"a": array(3, 4), "b": array(4, 2)}, array(2, 3)))
    cut = [line for line in found if line.endswith("…")]
    assert len(cut) == 1 and len(cut[0]) == LABEL_LETTERS


# Files and errors.


@pytest.mark.parametrize(("ending", "start"), [("png", b"\x89PNG"), ("svg", b"<?xml")])
def test_the_file_is_written(tmp_path, ending, start):
    path = tmp_path / f"model.{ending}"
    chain(3).draw(path)
    assert path.read_bytes().startswith(start)
    chain(3).draw(str(path))


def test_other_endings_are_refused(tmp_path):
    with pytest.raises(
        ValueError, match=r"Reading\.draw needs a path that ends in \.png, .*got '.*m\.txt'.*Name"
    ):
        chain(2).draw(tmp_path / "m.txt")
    assert not list(tmp_path.iterdir())


def test_large_models_are_refused_and_those_at_the_limit_are_not():
    words(chain(60, width=0))
    with pytest.raises(
        ValueError,
        match=r"Reading\.draw needs .*at most 60 distinct layers, got 61\. Read and draw",
    ):
        chain(61, width=0).draw("never.png")
    # As many layers, but all of them alike.
    words(chain(61))


def test_models_without_a_layer_are_refused():
    reading = read_case(flax_linen.CASES["layer norm, alone"]())
    with pytest.raises(
        ValueError, match=r"at least one layer, got \d parameters and none.* Use print\(reading\)"
    ):
        reading.draw("never.png")


def test_a_missing_matplotlib_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(
        ImportError,
        match=r"Reading\.draw needs matplotlib, which is not installed\. .*jaxinit\[plots\]",
    ):
        chain(2).draw("never.png")
