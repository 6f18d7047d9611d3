"""A plan as plain JSON: reviewed in a pull request, diffed line by line, read back.

One line per initializer and one per leaf, sorted by path, so a change of one leaf is a change of
one line. A sharding is kept as its partition (mesh axes per dimension); devices and meshes belong
to the machine and are left out. Reading is strict: what is not exactly a manifest is a
``ValueError`` that names the place.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import jax
import numpy as np
from jax.sharding import PartitionSpec

from jaxinit._arguments import listing, suggestion
from jaxinit._json import dumps
from jaxinit._types import Json, Shape
from jaxinit.initializers import Initializer, Own, from_config, own, to_config
from jaxinit.planning._keys import SCHEME
from jaxinit.planning._leaves import PlannedLeaf, number_groups, partition_of
from jaxinit.planning._paths import FlatTree, ParamSpec, as_numeric_dtype
from jaxinit.planning._rules import own_of

_FORMAT = "jaxinit-plan"
_VERSION = 1
_TOP = ("format", "version", "keys", "initializers", "leaves")
_LEAF = ("path", "shape", "dtype", "initializer", "rule")
# An initializer whose repr is longer than this is named by a hash instead.
_LONGEST_NAME = 80
_LARGEST_SIZE = 2**63
# Everything that a hand-edited config has been seen to raise.
_BAD_CONFIG = (TypeError, ValueError, ArithmeticError, RecursionError, MemoryError)


def write_manifest(leaves: Sequence[PlannedLeaf], indent: int | None) -> str:
    """The manifest of a plan with these leaves."""
    ordered = sorted(leaves, key=lambda leaf: leaf.path)
    names = {leaf.initializer: "" for leaf in ordered}
    configs = {}
    for leaf in ordered:
        if not names[leaf.initializer]:
            config = _config(leaf)
            names[leaf.initializer] = _name(leaf.initializer, config)
            configs[names[leaf.initializer]] = config
    lines = [_line(leaf, names[leaf.initializer]) for leaf in ordered]
    top = {"format": _FORMAT, "version": _VERSION, "keys": SCHEME}
    if indent is None:
        return dumps({**top, "initializers": configs, "leaves": lines}, indent=None)
    one, two = " " * indent, " " * (2 * indent)
    head = [one + _entry(name, value) for name, value in top.items()]
    named = [two + _entry(name, configs[name]) for name in sorted(configs)]
    listed = [two + dumps(line, indent=None) for line in lines]
    head.append(f'{one}"initializers": {_block("{", named, one, "}")}')
    head.append(f'{one}"leaves": {_block("[", listed, one, "]")}')
    return _block("{", head, "", "}") + "\n"


def _entry(name: str, value: Json) -> str:
    return dumps({name: value}, indent=None)[1:-1]


def _block(opening: str, lines: Sequence[str], margin: str, closing: str) -> str:
    body = ",\n".join(lines)
    return f"{opening}\n{body}\n{margin}{closing}" if lines else opening + closing


def _config(leaf: PlannedLeaf) -> dict[str, Json]:
    try:
        return to_config(leaf.initializer)
    except TypeError as error:
        if isinstance(leaf.initializer, Own):
            return to_config(own)  # with the model at hand, it is found again
        raise TypeError(
            f"plan.to_json needs initializers that have a config, got {leaf.initializer!r} at "
            f"{leaf.path!r}. {error}"
        ) from None


def _name(initializer: Initializer, config: Json) -> str:
    name = "own" if config == to_config(own) else repr(initializer)
    if len(name) <= _LONGEST_NAME:
        return name
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()
    return f"{initializer.label}-{digest[:16]}"


def _line(leaf: PlannedLeaf, name: str) -> dict[str, Json]:
    line = {
        "path": leaf.path,
        "shape": list(leaf.shape),
        "dtype": leaf.dtype.name,
        "initializer": name,
        "rule": leaf.rule,
    }
    partition = partition_of(leaf.sharding)
    if partition is None:
        return line
    entries = [list(entry) if isinstance(entry, tuple) else entry for entry in partition]
    if not all(_is_partition_entry(entry) for entry in entries):
        raise TypeError(
            f"plan.to_json needs shardings made of mesh axes, got {leaf.sharding} at {leaf.path!r}."
        )
    return {**line, "sharding": entries}


def _is_partition_entry(entry: Json) -> bool:
    if isinstance(entry, list):
        return all(isinstance(axis, str) for axis in entry)
    return entry is None or isinstance(entry, str)


def read_manifest(text: str | bytes) -> tuple[PlannedLeaf, ...]:
    """The leaves that a manifest describes, sorted by path.

    Raises:
        TypeError: when the text is no text.
        ValueError: when it is no manifest; the message names the place.
    """
    top = _parse(text)
    _check_entries("the manifest", top, _TOP)
    for name, wanted in (("format", _FORMAT), ("version", _VERSION), ("keys", SCHEME)):
        if top[name] != wanted or isinstance(top[name], bool):
            _fail(name, repr(wanted), top[name], "It may come from another version of jaxinit.")
    configs = _typed("initializers", top["initializers"], dict, "an object")
    initializers = {name: _initializer(name, config) for name, config in configs.items()}
    lines = _typed("leaves", top["leaves"], list, "a list")
    leaves = [_leaf(f"leaves[{n}]", line, initializers) for n, line in enumerate(lines)]
    numbers: dict[str, int] = {}
    for number, leaf in enumerate(leaves):
        if numbers.setdefault(leaf.path, number) != number:
            _fail(
                f"leaves[{number}].path",
                f"a path other than that of leaves[{numbers[leaf.path]}]",
                leaf.path,
            )
    used = {line["initializer"] for line in lines}
    if idle := sorted(set(initializers) - used):
        _fail("initializers", "each entry to be used by a leaf", idle)
    return number_groups(sorted(leaves, key=lambda leaf: leaf.path))


def arrange(leaves: Sequence[PlannedLeaf], like: FlatTree) -> tuple[PlannedLeaf, ...]:
    """The leaves of a manifest in the order of a tree, with the shardings that it has.

    Raises:
        ValueError: when the tree has other leaves than the manifest.
    """
    by_path = {leaf.path: leaf for leaf in leaves}
    missing = [repr(path) for path in by_path if path not in set(like.paths)]
    surplus = [repr(path) for path in like.paths if path not in by_path]
    if missing or surplus:
        raise ValueError(
            f"Plan.from_json needs like= with the leaves of the manifest, got one without "
            f"{listing(missing) or 'none'} and with {listing(surplus) or 'none'} beyond. "
            "Make a new plan for a new tree."
        )
    arranged = []
    for path, spec in like.specs("Plan.from_json, in like=,").items():
        leaf = by_path[path]
        if (spec.shape, spec.dtype) != (leaf.shape, leaf.dtype):
            raise ValueError(
                f"Plan.from_json needs like= with the shapes of the manifest, got {spec.shape} and "
                f"{spec.dtype} at {path!r} for {leaf.shape} and {leaf.dtype}. "
                "Make a new plan for a new tree."
            )
        sharding = leaf.sharding if spec.sharding is None else spec.sharding
        initializer = own_of(spec) if leaf.initializer == own else leaf.initializer
        placed = dataclasses.replace(spec, sharding=sharding)
        arranged.append(PlannedLeaf.of(path, placed, initializer, leaf.rule, None))
    return number_groups(arranged)


def _parse(text: Any) -> dict[str, Json]:
    if not isinstance(text, str | bytes | bytearray):
        raise TypeError(
            f"Plan.from_json needs the text of a manifest, got {type(text).__name__}. "
            "Pass for example pathlib.Path('plan.json').read_text()."
        )
    try:
        top = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"Plan.from_json needs the JSON that plan.to_json() writes, and cannot read this: "
            f"{error}"
        ) from None
    return _typed("the manifest", top, dict, "an object")


def _unique(pairs: list[tuple[str, Json]]) -> dict[str, Json]:
    names = [name for name, _ in pairs]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"an object holds {twice!r} twice.")
    return dict(pairs)


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON.")


def _leaf(place: str, line: Json, initializers: Mapping[str, Initializer]) -> PlannedLeaf:
    _check_entries(place, _typed(place, line, dict, "an object"), _LEAF, ("sharding",))
    path = _typed(f"{place}.path", line["path"], str, "a string")
    place = f"{place} ({path})"
    shape = _shape(f"{place}.shape", line["shape"])
    dtype = _dtype(f"{place}.dtype", line["dtype"])
    sharding = _sharding(f"{place}.sharding", line.get("sharding"), shape)
    rule = _typed(f"{place}.rule", line["rule"], str, "a string")
    name = _typed(f"{place}.initializer", line["initializer"], str, "a string")
    if name not in initializers:
        _fail(
            f"{place}.initializer", f"a name in initializers{suggestion(name, initializers)}", name
        )
    try:
        spec = ParamSpec(shape, dtype, sharding)
        return PlannedLeaf.of(path, spec, initializers[name], rule, None)
    except _BAD_CONFIG as error:
        _fail(place, f"an initializer for shape {shape} and {dtype}", name, str(error))


def _initializer(name: str, config: Json) -> Initializer:
    try:
        return from_config(config)
    except _BAD_CONFIG as error:
        _fail(f"initializers[{name!r}]", "the config of an initializer", config, str(error))


def _shape(place: str, value: Json) -> Shape:
    sizes = _typed(place, value, list, "a list")
    for size in sizes:
        if type(size) is not int or not 0 <= size < _LARGEST_SIZE:
            _fail(place, "sizes from 0 to 2**63 - 1", value)
    return tuple(sizes)


def _dtype(place: str, value: Json) -> np.dtype:
    name = _typed(place, value, str, "a string")
    try:
        dtype = _key_dtypes().get(name) or as_numeric_dtype("a leaf", name)
    except TypeError:
        _fail(place, "the name of a numeric dtype", value)
    if dtype.name != name:
        _fail(place, f"the full name of a dtype, {dtype.name!r}", value)
    return dtype


@functools.cache
def _key_dtypes() -> dict[str, Any]:
    """Dtypes of random keys, by name."""
    keys = (
        jax.eval_shape(functools.partial(jax.random.key, 0, impl=impl))
        for impl in ("threefry2x32", "rbg", "unsafe_rbg")
    )
    return {key.dtype.name: key.dtype for key in keys}


def _sharding(place: str, value: Json, shape: Shape) -> PartitionSpec | None:
    if value is None:
        return None
    entries = _typed(place, value, list, "a list")
    if len(entries) > len(shape) or not all(map(_is_partition_entry, entries)):
        _fail(place, f"mesh axes for each of the {len(shape)} dimensions, at most", value)
    named = [axis for entry in entries for axis in (entry if isinstance(entry, list) else [entry])]
    named = [axis for axis in named if axis is not None]
    if len(set(named)) < len(named):
        _fail(place, "every mesh axis once", value)
    return PartitionSpec(*(tuple(e) if isinstance(e, list) else e for e in entries))


def _check_entries(
    place: str, value: Mapping[str, Json], required: Sequence[str], optional: Sequence[str] = ()
) -> None:
    if missing := [name for name in required if name not in value]:
        _fail(place, f"an entry {missing[0]!r}", sorted(value))
    if unknown := sorted(set(value) - {*required, *optional}):
        _fail(place, f"no entry {unknown[0]!r}{suggestion(unknown[0], required)}", sorted(value))


def _typed(place: str, value: Json, kind: type, words: str) -> Json:
    if not isinstance(value, kind):
        _fail(place, words, value)
    return value


def _fail(place: str, wanted: str, got: Json, advice: str = "") -> NoReturn:
    shown = repr(got)
    shown = shown if len(shown) <= 200 else f"{shown[:200]}..."
    advice = advice or "Write manifests with plan.to_json()."
    raise ValueError(f"Plan.from_json needs {wanted} in {place}, got {shown}. {advice}")
