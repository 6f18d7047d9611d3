"""A plan as text: the same plan comes back, one leaf is one line, and nonsense is refused."""

from __future__ import annotations

import copy
import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding, PartitionSpec

from helpers import make_mesh, struct
from jaxinit import Plan, like_kernel, plan
from jaxinit import initializers as init

pytestmark = pytest.mark.unoptimized

P = PartitionSpec


def tree() -> dict:
    return {
        "dense": {"kernel": struct(6, 5), "bias": struct(5)},
        "head": [{"kernel": struct(5, 3, dtype="bfloat16")}, {"kernel": struct(5, 3)}],
        "count": struct(dtype="int32"),
    }


RULES = [
    ("dense/kernel", init.stacked(init.lecun_normal(in_axis=-1, out_axis=()))),
    ("dense/bias", like_kernel("lecun_uniform")),
    ("head/*/kernel", "he_normal"),
    ("count", "zeros"),
]

GOLDEN = """\
{
  "format": "jaxinit-plan",
  "version": 1,
  "keys": "jaxinit-keys/1",
  "initializers": {
    "he_normal()": {"name": "he_normal"},
    "normal(0.02)": {"name": "normal", "stddev": 0.02}
  },
  "leaves": [
    {"path": "bias", "shape": [3], "dtype": "float32", "initializer": "normal(0.02)", \
"rule": "*"},
    {"path": "kernel", "shape": [4, 3], "dtype": "bfloat16", "initializer": "he_normal()", \
"rule": "**/k*", "sharding": ["data"]}
  ]
}
"""


def golden_plan(devices):
    mesh = make_mesh(sizes=(2,), names=("data",))
    leaves = {"kernel": struct(4, 3, dtype="bfloat16"), "bias": struct(3)}
    wish = NamedSharding(mesh, P("data", None))
    rules = [("**/k*", "he_normal"), ("*", init.normal(0.02))]
    return plan(leaves, rules, out_shardings={"kernel": wish})


# Round trips.


def test_a_plan_comes_back():
    made = plan(tree(), RULES)
    again = Plan.from_json(made.to_json(), like=tree())
    assert again == made
    assert not made.diff(again)
    assert again.to_json() == made.to_json()
    assert [(x.fans, x.law, x.group, x.rule) for x in again] == [
        (x.fans, x.law, x.group, x.rule) for x in made
    ]
    one, other = made.init(jax.random.key(0)), again.init(jax.random.key(0))
    assert jax.tree.structure(one) == jax.tree.structure(other)
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), one, other))


def test_without_a_tree_it_is_flat():
    made = plan(tree(), RULES)
    flat = Plan.from_json(made.to_json())
    params = flat.init(jax.random.key(0))
    assert list(params) == sorted(made.paths)
    assert (params["head/1/kernel"] == made.init(jax.random.key(0))["head"][1]["kernel"]).all()
    assert flat.to_json() == made.to_json()
    assert not made.diff(flat)


def test_every_indent_and_bytes():
    made = plan(tree(), RULES)
    for indent in (None, 0, 1, 4):
        text = made.to_json(indent=indent)
        assert Plan.from_json(text, like=tree()) == made
        assert Plan.from_json(text.encode(), like=tree()) == made
    assert "\n" not in made.to_json(indent=None)


def test_empty_and_bare_trees():
    empty = plan({}, [])
    assert Plan.from_json(empty.to_json()) == empty
    bare = plan(struct(3, 4), [("**", "he_normal")])
    assert Plan.from_json(bare.to_json(), like=struct(3, 4)) == bare
    assert bare.init(jax.random.key(0)).shape == (3, 4)


CASES = [
    (init.constant(np.arange(12.0).reshape(3, 4)), "float32"),
    (init.constant(1 + 2j), "complex64"),
    (init.uniform(minval=-1.0, maxval=2.0), "float16"),
    (init.truncated_normal(0.5, lower=-1.0, upper=float("inf")), "float32"),
    (init.masked(init.he_normal(batch_axis=()), np.tri(3, 4)), "bfloat16"),
    (init.fused([init.he_normal(), init.zeros], [1, 3]), "float32"),
    (init.scaled(init.orthogonal(2.0), -0.5), "float32"),
]


@pytest.mark.parametrize(("initializer", "dtype"), CASES)
def test_every_kind_of_initializer(initializer, dtype):
    made = plan({"w": struct(3, 4, dtype=dtype)}, [("w", initializer)])
    assert Plan.from_json(made.to_json(), like={"w": struct(3, 4, dtype=dtype)}) == made


# Reviews.


def test_golden_text(devices):
    assert golden_plan(devices).to_json() == GOLDEN


def test_the_text_does_not_depend_on_the_order_of_the_tree():
    rules = [("*", "normal")]
    one = plan([struct(3), struct(4)], rules)
    other = plan({"1": struct(4), "0": struct(3)}, rules)
    assert one.to_json() == other.to_json()


def test_a_changed_leaf_is_a_changed_line():
    before = plan(tree(), RULES).to_json().splitlines()
    other = tree()
    other["head"][1]["kernel"] = struct(5, 4)
    after = plan(other, RULES).to_json().splitlines()
    assert len(before) == len(after)
    assert sum(a != b for a, b in zip(before, after, strict=True)) == 1


def test_long_initializers_are_named_by_a_hash():
    mask = np.tri(40)
    made = plan(
        {"a": struct(40, 40), "b": struct(40, 40)}, [("*", init.masked(init.normal(), mask))]
    )
    names = list(json.loads(made.to_json())["initializers"])
    assert len(names) == 1
    assert names[0].startswith("masked-")
    assert len(names[0]) < 40
    other = plan({"a": struct(40, 40)}, [("*", init.masked(init.normal(), mask.T))])
    assert list(json.loads(other.to_json())["initializers"]) != names


# Shardings.


def test_partitions_survive_and_devices_do_not(devices):
    made = golden_plan(devices)
    again = Plan.from_json(made.to_json())
    assert again["kernel"].sharding == P("data")
    assert again["bias"].sharding is None
    assert again.to_json() == made.to_json()
    assert not made.diff(again)
    mesh = make_mesh(sizes=(4,), names=("data",))
    with pytest.raises(ValueError, match=r"plan.init needs a mesh to place 'kernel'"):
        again.init(jax.random.key(0))
    with jax.set_mesh(mesh):
        kernel = again.init(jax.random.key(0))["kernel"]
    assert len(kernel.sharding.device_set) == 4
    assert (np.asarray(kernel) == np.asarray(made.init(jax.random.key(0))["kernel"])).all()


def test_a_tree_with_shardings_goes_before_the_text(devices):
    mesh = make_mesh(sizes=(2,), names=("x",))
    wish = NamedSharding(mesh, P(None, "x"))
    like = {"kernel": struct(4, 3, dtype="bfloat16"), "bias": struct(3)}
    like["kernel"] = struct(4, 2, dtype="bfloat16").update(sharding=wish)
    rules = [("kernel", "he_normal"), ("bias", "zeros")]
    text = plan({"kernel": struct(4, 2, dtype="bfloat16"), "bias": struct(3)}, rules).to_json()
    assert Plan.from_json(text, like=like)["kernel"].sharding == wish


def test_shardings_of_several_axes_per_dimension(devices):
    mesh = make_mesh()
    wish = NamedSharding(mesh, P(("a", "b"), None))
    made = plan({"w": struct(16, 3)}, [("w", "normal")], out_shardings=wish)
    assert json.loads(made.to_json())["leaves"][0]["sharding"][0] == ["a", "b"]
    assert Plan.from_json(made.to_json())["w"].sharding[0] == ("a", "b")


# What cannot be written.


@dataclasses.dataclass(frozen=True, repr=False)
class Home(init.BaseInitializer):
    """Somebody's own law, unknown to the catalogue."""

    name = "home_made"

    def sample(self, key, shape, dtype):
        return jax.random.normal(key, shape, dtype)

    def exact_law(self, shape, is_complex):
        return init.normal(1.0).exact_law(shape, is_complex)


def test_an_initializer_without_a_config():
    made = plan({"w": struct(3)}, [("w", Home())])
    with pytest.raises(TypeError, match=r"^plan.to_json needs .*got home_made\(\) at 'w'"):
        made.to_json()


# What cannot be read.


def document() -> dict:
    return json.loads(plan(tree(), RULES).to_json())


def edited(*steps, to=None) -> str:
    """The document with one place changed, or removed when ``to`` is absent."""
    top = document()
    place = top
    for step in steps[:-1]:
        place = place[step]
    if to is None:
        del place[steps[-1]]
    else:
        place[steps[-1]] = to
    return json.dumps(top)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "cannot read this"),
        ("{", "cannot read this"),
        ("plan", "cannot read this"),
        (b"\xff\xfe\x00", "cannot read this"),
        ("[" * 100_000, "cannot read this"),
        ("9" * 5_000, "cannot read this|an object in the manifest"),
        ('{"a": 1, "a": 2}', "'a' twice"),
        ('{"a": NaN}', "NaN is not JSON"),
        ("[]", r"an object in the manifest, got \[\]"),
        ("null", "an object in the manifest, got None"),
        ("{}", "an entry 'format' in the manifest"),
        (edited("leaves"), "an entry 'leaves' in the manifest"),
        (edited("surplus", to=1), "no entry 'surplus' in the manifest"),
        (edited("leafs", to=1), r"no entry 'leafs' \(nearest: 'leaves'\)"),
        (edited("format", to="safetensors"), "'jaxinit-plan' in format, got 'safetensors'"),
        (edited("version", to=2), "1 in version, got 2.*another version of jaxinit"),
        (edited("version", to=True), "1 in version, got True"),
        (edited("keys", to="jaxinit-keys/2"), "'jaxinit-keys/1' in keys"),
        (edited("initializers", to=[]), "an object in initializers"),
        (edited("leaves", to={}), "a list in leaves"),
        (edited("leaves", 0, to=3), r"an object in leaves\[0\], got 3"),
        (edited("leaves", 1, "path"), r"an entry 'path' in leaves\[1\]"),
        (edited("leaves", 1, "path", to=3), r"a string in leaves\[1\].path, got 3"),
        (edited("leaves", 1, "path", to="count"), r"a path other than that of leaves\[0\] in leav"),
        (edited("leaves", 1, "shpae", to=[3]), r"no entry 'shpae' \(nearest: 'shape'\)"),
        (edited("leaves", 1, "shape", to="5"), r"a list in leaves\[1\] \(dense/bias\).shape"),
        (
            edited("leaves", 1, "shape", to=[-5]),
            r"sizes from 0 .* \(dense/bias\).shape, got \[-5\]",
        ),
        (edited("leaves", 1, "shape", to=[1.0]), "sizes from 0"),
        (edited("leaves", 1, "shape", to=[True]), "sizes from 0"),
        (edited("leaves", 1, "shape", to=[2**63]), "sizes from 0"),
        (edited("leaves", 1, "dtype", to=32), r"a string in leaves\[1\] \(dense/bias\).dtype"),
        (edited("leaves", 1, "dtype", to="object"), "the name of a numeric dtype"),
        (edited("leaves", 1, "dtype", to="float31"), "the name of a numeric dtype"),
        (edited("leaves", 1, "dtype", to="f4"), "full name of a dtype, 'float32'"),
        (edited("leaves", 1, "dtype", to="int32"), r"for shape \(5,\) and int32 .*uniform needs"),
        (edited("leaves", 1, "initializer", to=3), "a string in .*initializer, got 3"),
        (
            edited("leaves", 2, "shape", to=[5]),
            r"an initializer for shape \(5,\) .*\(dense/kernel\)",
        ),
        (edited("leaves", 3, "initializer", to="he_norml()"), r"nearest: 'he_normal\(\)'"),
        (edited("leaves", 1, "rule"), "an entry 'rule'"),
        (edited("leaves", 1, "rule", to=[]), "a string in .*rule"),
        (edited("leaves", 1, "sharding", to="data"), "a list in .*sharding"),
        (edited("leaves", 1, "sharding", to=["a", "b"]), "mesh axes for each of the 1 dimensions"),
        (edited("leaves", 1, "sharding", to=[3]), "mesh axes for each"),
        (edited("leaves", 1, "sharding", to=[[["a"]]]), "mesh axes for each"),
        (edited("leaves", 2, "sharding", to=["a", "a"]), "every mesh axis once"),
        (edited("initializers", "zeros", to=3), r"in initializers\['zeros'\], got 3"),
        (edited("initializers", "zeros", to={"name": "zero"}), r"\['zeros'\].*Did you mean zeros"),
        (edited("initializers", "zeros", to={"name": ["zeros"]}), r"in initializers\['zeros'\]"),
        (edited("initializers", "zeros", to={"name": "zeros", "x": 1}), "takes no arguments"),
        (edited("initializers", "zeros", to={"name": "constant", "value": {}}), "nested config"),
        (edited("initializers", "idle", to={"name": "ones"}), "each entry to be used .*'idle'"),
        (edited("leaves", to=[]), "each entry to be used by a leaf"),
    ],
)
def test_malformed_text(text, message):
    with pytest.raises(ValueError, match=f"^Plan.from_json needs .*({message})"):
        Plan.from_json(text)


def test_not_text_at_all():
    with pytest.raises(TypeError, match=r"Plan.from_json needs the text of a manifest, got dict"):
        Plan.from_json(document())


def test_a_tree_that_does_not_fit():
    text = plan(tree(), RULES).to_json()
    other = tree()
    other["extra"] = other.pop("count")
    with pytest.raises(ValueError, match="without 'count' and with 'extra' beyond"):
        Plan.from_json(text, like=other)
    other = tree()
    other["count"] = struct(2)
    with pytest.raises(ValueError, match=r"got \(2,\) and float32 at 'count' for \(\) and int32"):
        Plan.from_json(text, like=other)


JUNK = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(min_value=10**18, max_value=10**320)
    | st.floats(allow_nan=False)
    | st.text("abkernl/*{}[]()", max_size=8)
    | st.sampled_from(["normal", "constant", "fused", "masked", "stacked", "float32", "data"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["name", "value", "initializer", "stddev", "factor", "re", "im", "float"]
            ),
            inner,
            max_size=3,
        )
    ),
    max_leaves=5,
)


def places(value, path=()):
    """Every place of a document."""
    yield path
    if isinstance(value, dict | list):
        for step in value if isinstance(value, dict) else range(len(value)):
            yield from places(value[step], (*path, step))


DOCUMENT = {
    **document(),
    "initializers": {
        **document()["initializers"],
        "normal()": {"name": "normal", "stddev": 0.5, "dtype": "float32"},
        "masked": {"name": "masked", "initializer": {"name": "normal"}, "mask": [1.0, 0.0]},
    },
}
DOCUMENT["leaves"] = [
    *DOCUMENT["leaves"],
    {"path": "x", "shape": [3], "dtype": "float32", "initializer": "normal()", "rule": "*"},
    {"path": "y", "shape": [2], "dtype": "float32", "initializer": "masked", "rule": "*"},
]


@given(st.sampled_from([path for path in places(DOCUMENT) if path]), JUNK)
@settings(max_examples=2 * settings().max_examples)
def test_a_document_with_junk_is_a_plan_or_an_error(path, junk):
    top = copy.deepcopy(DOCUMENT)
    place = top
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = junk
    try:
        made = Plan.from_json(json.dumps(top))
    except ValueError as error:
        assert str(error).startswith("Plan.from_json needs ")
    else:
        assert Plan.from_json(made.to_json()) == made


@given(st.text() | st.binary())
def test_any_text_is_an_error(text):
    with pytest.raises(ValueError, match=r"^Plan\.from_json needs "):
        Plan.from_json(text)


@given(st.integers(0, 400), st.characters())
def test_one_changed_character_is_a_plan_or_an_error(position, character):
    text = json.dumps(DOCUMENT)
    position %= len(text)
    try:
        Plan.from_json(text[:position] + character + text[position + 1 :])
    except ValueError as error:
        assert str(error).startswith("Plan.from_json needs ")


def test_a_plan_read_back_draws_in_low_precision_too():
    made = plan({"w": struct(64, 64, dtype="bfloat16")}, [("w", "glorot_normal")])
    again = Plan.from_json(made.to_json())
    assert again.init(jax.random.key(0))["w"].dtype == jnp.bfloat16
