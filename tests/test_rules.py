"""Patterns, first match wins, and nothing that silently misses."""

from __future__ import annotations

import re

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers import struct
from jaxinit import ParamSpec, like_kernel, plan
from jaxinit import initializers as init
from jaxinit.planning import compile_glob

pytestmark = pytest.mark.unoptimized

TREE = {
    "params": {
        "dense": {"kernel": struct(4, 3), "bias": struct(3)},
        "head": {"kernel": struct(3, 2), "bias": struct(2)},
    }
}


def chosen(tree, rules) -> dict:
    return {leaf.path: leaf.rule for leaf in plan(tree, rules)}


# Globs.


@pytest.mark.parametrize(
    ("glob", "yes", "no"),
    [
        ("kernel", ["kernel"], ["a/kernel", "kernels", "KERNEL"]),
        ("*", ["kernel", ""], ["a/kernel"]),
        ("*/kernel", ["a/kernel", "/kernel"], ["kernel", "a/b/kernel"]),
        ("**/kernel", ["kernel", "a/kernel", "a/b/kernel"], ["a/kernel/b", "akernel"]),
        ("a/**", ["a", "a/b", "a/b/c"], ["ab", "b/a"]),
        ("a/**/b", ["a/b", "a/x/b", "a/x/y/b"], ["ab", "a/xb", "a/b/c"]),
        ("**", ["", "a", "a/b"], []),
        ("**/**/b", ["b", "a/b", "a/c/b"], ["ab"]),
        ("**/h_?/*", ["h_1/a", "x/h_2/b"], ["h_12/a", "h_1/a/b"]),
        ("l[0-3]", ["l0", "l3"], ["l4", "l"]),
        ("l[!0-3]", ["l4", "lx"], ["l0", "l/"]),
        ("[[]x]", ["[x]"], ["x", "[x"]),
        ("[]]", ["]"], ["[", ""]),
        ("[{]a}", ["{a}"], ["a"]),
        ("[*]", ["*"], ["a"]),
        ("**/{kernel,bias}", ["kernel", "a/bias"], ["scale"]),
        ("{a,b{c,d/e}}/x", ["a/x", "bc/x", "bd/e/x"], ["b/x", "bd/x"]),
        ("x{,y}", ["x", "xy"], ["xx"]),
        ("{**/a,b}", ["a", "x/a", "b"], ["x/b"]),
        ("a.b+(c)^$|\\", ["a.b+(c)^$|\\"], ["aXb+(c)^$|\\"]),
        ("mlp/~/*", ["mlp/~/w"], ["mlp/w"]),
        ("a*\n", ["ab\n"], ["ab"]),
        ("", [""], ["a"]),
    ],
)
def test_globs(glob, yes, no):
    pattern = compile_glob("test", glob)
    assert [path for path in yes + no if pattern.fullmatch(path)] == yes


@pytest.mark.parametrize(
    ("glob", "message"),
    [
        ("a**", r"\*\* to be a whole segment of a glob, got 'a\*\*'"),
        ("a/**b/c", r"\*\* to be a whole segment"),
        ("{a,b", "braces are closed, got '{a,b'"),
        ("{a,{b}", "braces are closed"),
        ("[ab", r"brackets are closed, got '\[ab'"),
        ("[]", "brackets are closed"),
        ("[z-a]", "well-formed glob, got .*bad character range"),
        ("{0,1,2,3,4,5,6,7,8,9}" * 4, "at most 1000 alternatives"),
    ],
)
def test_malformed_globs(glob, message):
    with pytest.raises(ValueError, match=f"^plan, in rule 0, needs .*{message}"):
        plan(TREE, [(glob, "zeros")])


SEGMENT = st.text("ab[]{},*?!-^", max_size=4)


@given(st.lists(SEGMENT, max_size=4).map("/".join), st.lists(st.text("ab/", max_size=6)))
def test_any_text_is_a_glob_or_an_error(glob, paths):
    try:
        pattern = compile_glob("test", glob)
    except ValueError as error:
        assert str(error).startswith("test needs ")
        return
    for path in paths:
        pattern.fullmatch(path)


@given(st.lists(st.text("ab_[]{},*?!0", min_size=1, max_size=5), max_size=5).map("/".join))
def test_a_path_in_brackets_matches_itself(path):
    escaped = re.sub(r"([\[{*?])", r"[\1]", path)
    assert compile_glob("test", escaped).fullmatch(path)
    assert compile_glob("test", f"**/{escaped}").fullmatch(f"x/{path}")


# Rules.


def test_the_first_match_wins():
    rules = [("**/head/kernel", "zeros"), ("**/kernel", "he_normal"), ("**", "ones")]
    assert chosen(TREE, rules) == {
        "params/dense/bias": "**",
        "params/dense/kernel": "**/kernel",
        "params/head/bias": "**",
        "params/head/kernel": "**/head/kernel",
    }
    leaf = plan(TREE, rules)["params/dense/kernel"]
    assert (leaf.rule, leaf.rule_index) == ("**/kernel", 1)


def test_every_kind_of_pattern():
    def is_vector(path, leaf):
        assert isinstance(leaf, ParamSpec)
        return len(leaf.shape) == 1 and path.startswith("params/")

    rules = [(re.compile("de.se/k"), "he_normal"), (is_vector, "zeros"), ("**", "ones")]
    assert chosen(TREE, rules) == {
        "params/dense/bias": "predicate:is_vector",
        "params/dense/kernel": "re:de.se/k",
        "params/head/bias": "predicate:is_vector",
        "params/head/kernel": "**",
    }


def test_every_kind_of_initializer():
    tree = {name: struct(4, 3) for name in "abcde"}
    rules = {
        "a": init.he_normal(),
        "b": "he_normal",
        "c": {"name": "he_normal"},
        "d": jax.nn.initializers.he_normal(),
        "e": init.zeros,
    }
    made = plan(tree, rules)
    assert [made[name].initializer for name in "abcd"] == [init.he_normal()] * 4
    assert made["e"].initializer == init.zeros


def test_a_rule_that_matches_nothing():
    with pytest.raises(ValueError, match=r"^plan needs every rule to take a leaf") as error:
        plan(TREE, [("**/kernal", "he_normal"), ("**/bias", "zeros")])
    text = str(error.value)
    assert "rule 0 '**/kernal' matches no leaf (nearest: 'params/dense/kernel')" in text
    assert "2 leaves have no rule: 'params/dense/kernel' (nearest: '**/kernal'), " in text


def test_a_forgotten_prefix_is_found():
    with pytest.raises(ValueError, match=r"'head/bias' matches no leaf \(nearest: 'params/head/b"):
        plan(TREE, [("head/bias", "ones"), ("**", "zeros")])


def test_a_shadowed_rule_names_what_shadows_it():
    rules = [("**/dense/*", "zeros"), ("**/bias", "ones"), ("**/head/*", "zeros")]
    with pytest.raises(ValueError, match="is shadowed") as error:
        plan(TREE, [*rules, ("params/*/bias", "ones"), ("**/head/kernel", "ones")])
    text = str(error.value)
    assert (
        "rule 3 'params/*/bias' is shadowed: all that it matches is taken by "
        "rule 0 '**/dense/*', rule 1 '**/bias'" in text
    )
    assert "rule 4 '**/head/kernel' is shadowed: all that it matches is taken by rule 2" in text


def test_a_leaf_without_a_rule():
    with pytest.raises(ValueError, match="1 leaf has no rule: 'params/dense/kernel'"):
        plan(TREE, [("**/bias", "zeros"), ("**/head/kernel", "zeros")])
    tree = {f"layer_{n}": struct(3) for n in range(25)} | {"bias": struct(3)}
    with pytest.raises(ValueError, match=r"25 leaves have no rule: .*, and 15 more"):
        plan(tree, [("bias", "zeros")])


def test_no_rules():
    assert len(plan({}, [])) == 0
    with pytest.raises(ValueError, match="4 leaves have no rule"):
        plan(TREE, [])
    with pytest.raises(ValueError, match=r"rule 0 .* matches no leaf"):
        plan({}, [("**", "zeros")])


@pytest.mark.parametrize(
    ("rules", "error", "message"),
    [
        ("zeros", TypeError, "rules as a list of .*, got 'zeros'"),
        (None, TypeError, "rules as a list of .*, got None"),
        (["ab"], TypeError, "every rule to be a pair .*, got 'ab' as rule 0"),
        ([("**",)], TypeError, r"a pair .*, got \('\*\*',\) as rule 0"),
        ([("**", "zeros", 1)], TypeError, "as rule 0"),
        ([(3, "zeros")], TypeError, "in rule 0, needs a pattern .*, got 3"),
        ([(re.compile(b"x"), "zeros")], TypeError, "regular expression of str"),
        ([("**", 7)], TypeError, "in rule 0, needs an initializer, got 7"),
        ([("**", None)], TypeError, "needs an initializer, got None"),
        ([("**", "he_norml")], ValueError, "got 'he_norml'.*he_normal"),
        ([("**", {"name": "nothing"})], ValueError, "has no 'nothing'"),
        ([("**", {"name": "normal", "width": 3})], TypeError, "width"),
        ([("**", lambda key: 0)], TypeError, r"a hashable function \(key, shape, dtype\), got"),
        ([("**", init.he_normal)], ValueError, r"got the function he_normal. Call it: he_normal\("),
    ],
)
def test_malformed_rules(rules, error, message):
    with pytest.raises(error, match=f"^plan.*{message}"):
        plan(TREE, rules)


PATTERN = (
    st.text("abk/*?[]{},!", max_size=8)
    | st.sampled_from(["**", "**/kernel", "**/bias", re.compile("bias$"), lambda path, leaf: True])
    | st.none()
    | st.integers()
)
LAW = (
    st.sampled_from(["zeros", "he_normal", init.normal(), init.orthogonal(), {"name": "ones"}])
    | st.text(max_size=5)
    | st.dictionaries(st.text(max_size=5), st.integers(), max_size=2)
    | st.floats()
    | st.none()
)
LISTS = st.lists(st.tuples(PATTERN, LAW) | PATTERN | st.tuples(PATTERN), max_size=4)


@given(LISTS | PATTERN | LAW)
@settings(max_examples=300)
def test_any_rules_are_a_plan_or_an_error(rules):
    try:
        made = plan(TREE, rules)
    except (TypeError, ValueError) as error:
        assert str(error).startswith("plan")
    else:
        assert len(made) == 4


# like_kernel.


def test_a_bias_gets_the_fan_of_its_kernel():
    torch_bias = like_kernel(init.variance_scaling(1 / 3, "fan_in", "uniform"))
    made = plan(TREE, [("**/bias", torch_bias), ("**", "he_normal")])
    assert made["params/dense/bias"].law.support == pytest.approx((-(4**-0.5), 4**-0.5))
    assert made["params/head/bias"].law.support == pytest.approx((-(3**-0.5), 3**-0.5))
    values = made.init(jax.random.key(0))["params"]["dense"]["bias"]
    assert np.abs(np.asarray(values)).max() <= 0.5


@pytest.mark.parametrize("name", ["kernel", "weight", "w", "embedding"])
def test_siblings_by_their_usual_names(name):
    tree = {"a": {name: struct(25, 4), "b": struct(4)}, name: struct(100, 2)}
    made = plan(tree, [("a/b", like_kernel("lecun_normal")), ("**", "normal")])
    assert made["a/b"].law.std == pytest.approx(25**-0.5)


def test_a_sibling_by_its_name():
    tree = {"kernel": struct(9, 4), "other": struct(16, 4), "bias": struct(4)}
    made = plan(tree, [("bias", like_kernel("lecun_normal", sibling="other")), ("**", "normal")])
    assert made["bias"].law.std == pytest.approx(0.25)


def test_the_first_of_the_usual_names_counts():
    tree = {"kernel": struct(9, 4), "embedding": struct(16, 4), "bias": struct(4)}
    made = plan(tree, [("bias", like_kernel("lecun_normal")), ("**", "normal")])
    assert made["bias"].law.std == pytest.approx(1 / 3)


def test_axes_of_the_kernel_count():
    transposed = init.he_normal(in_axis=-1, out_axis=-2)
    tree = {"kernel": struct(9, 100), "bias": struct(9)}
    rules = [("bias", like_kernel("lecun_normal")), ("kernel", transposed)]
    assert plan(tree, rules)["bias"].law.std == pytest.approx(0.1)
    # Axes read from the model say more than a rule.
    axes = init.Axes((0,), (1,), ())
    tree["kernel"] = ParamSpec((9, 100), "float32", axes=axes)
    assert plan(tree, rules)["bias"].law.std == pytest.approx(1 / 3)


def test_stacked_layers_have_the_fans_of_one():
    axes = init.Axes((0,), (1,), ())
    tree = {
        "kernel": ParamSpec((12, 25, 4), "float32", axes=axes, stack_axes=(0,)),
        "bias": ParamSpec((12, 4), "float32", stack_axes=(0,)),
    }
    made = plan(tree, [("bias", like_kernel("lecun_normal")), ("kernel", "lecun_normal")])
    assert made["bias"].law.std == pytest.approx(0.2)
    assert made["kernel"].law.std == pytest.approx(0.2)


def test_no_kernel_beside_the_bias():
    tree = {"a": {"bias": struct(4)}, "kernel": struct(3, 4)}
    rules = [("a/bias", like_kernel("lecun_normal")), ("**", "normal")]
    with pytest.raises(
        ValueError, match=r"'a/bias' of shape \(4,\) .* sibling named kernel or weight"
    ):
        plan(tree, rules)
    rules[0] = ("a/bias", like_kernel("lecun_normal", sibling="nothing"))
    with pytest.raises(ValueError, match="sibling named nothing beside the leaf"):
        plan(tree, rules)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("zeros",), TypeError, "whose variance depends on fans, got zeros"),
        ((init.normal(0.02),), TypeError, r"got normal\(0.02\)"),
        ((3,), TypeError, "an initializer, got 3"),
        (("lecun",), ValueError, "got 'lecun'"),
        (("lecun_normal", 3), TypeError, "sibling as the name of a leaf, got 3"),
    ],
)
def test_like_kernel_of_the_wrong_kind(arguments, error, message):
    with pytest.raises(error, match=f"^like_kernel needs .*{message}"):
        like_kernel(*arguments)


def test_like_kernel_is_a_value():
    one = like_kernel("lecun_normal", sibling="w")
    assert one == like_kernel(init.lecun_normal(), "w")
    assert repr(one) == "like_kernel(lecun_normal(), sibling='w')"
    assert hash(one) != hash(like_kernel("lecun_normal"))
