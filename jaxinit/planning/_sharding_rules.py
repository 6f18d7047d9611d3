"""Shardings by path: rules as a plan has them, with a ``PartitionSpec`` in the initializer's place.

What `sharding_rules` returns is a function from a tree of shapes to a tree of shardings, and a
value: it compares, hashes and prints. `jaxinit.jit_init` and ``plan.init`` take it as
``out_shardings``.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from jaxinit.planning._paths import FlatTree, flatten, spec_of
from jaxinit.planning._rules import Matcher, Pattern, as_matcher, as_pairs, assign
from jaxinit.planning._shardings import check_fit, on_mesh

_EXAMPLE = "('**/kernel', PartitionSpec(None, 'model'))", "('**', PartitionSpec())"


class _Rule(NamedTuple):
    """One line of the list: which leaves, and where they live."""

    matcher: Matcher
    sharding: NamedSharding | None


@dataclasses.dataclass(frozen=True)
class ShardingRules:
    """What `sharding_rules` returns.

    Attributes:
        mesh: the mesh that specs are laid over.
        rules: pairs of a pattern and a spec, a sharding, or None; the first match wins.
    """

    mesh: Mesh | AbstractMesh
    rules: tuple[tuple[Pattern, PartitionSpec | NamedSharding | None], ...]

    def __post_init__(self) -> None:
        if not isinstance(self.mesh, Mesh | AbstractMesh):
            raise TypeError(
                f"sharding_rules needs a mesh, got {self.mesh!r} of type "
                f"{type(self.mesh).__name__}. Make one with jax.make_mesh((8,), ('model',))."
            )
        pairs = as_pairs("sharding_rules", self.rules, "spec", _EXAMPLE)
        object.__setattr__(self, "rules", tuple(pairs))
        _ = self._compiled  # so that what is wrong is said here

    @functools.cached_property
    def _compiled(self) -> tuple[_Rule, ...]:
        compiled = []
        for number, (pattern, wish) in enumerate(self.rules):
            place = f"sharding_rules, in rule {number},"
            if isinstance(wish, PartitionSpec):
                wish = on_mesh("sharding_rules", self.mesh, f"in rule {number} {pattern!r}", wish)
            if not isinstance(wish, NamedSharding | None):
                raise TypeError(
                    f"{place} needs a PartitionSpec, a NamedSharding or None, got {wish!r} of type "
                    f"{type(wish).__name__}. Write for example {_EXAMPLE[0]}."
                )
            compiled.append(_Rule(as_matcher(place, pattern), wish))
        return tuple(compiled)

    def __call__(self, tree: Any) -> Any:
        """Places every leaf of a tree.

        Args:
            tree: a tree of arrays, ``jax.ShapeDtypeStruct`` or ``ParamSpec``; boxes stay.

        Returns:
            The same tree with a ``NamedSharding`` for every leaf, or None where a rule says so.

        Raises:
            TypeError: when a leaf has no shape and dtype.
            ValueError: when a rule takes no leaf, a leaf has no rule, or a spec is too long for a
                leaf or does not divide it.
        """
        flat = flatten("sharding_rules", tree)
        compiled = self._compiled
        shardings = []
        for path, leaf, number in zip(flat.paths, flat.leaves, self._assign(flat), strict=True):
            sharding = compiled[number].sharding
            caller = f"sharding_rules, in rule {number} {compiled[number].matcher.text!r},"
            check_fit(caller, path, tuple(leaf.shape), sharding)
            shardings.append(sharding)
        return jax.tree_util.tree_unflatten(flat.treedef, shardings)

    def _assign(self, flat: FlatTree) -> list[int]:
        leaves = zip(flat.paths, flat.leaves, strict=True)
        specs = [_described(path, leaf) for path, leaf in leaves]
        return assign("sharding_rules", self._compiled, flat.paths, specs)

    def __getstate__(self) -> dict[str, Any]:
        # Compiled patterns are closures, and are compiled again.
        return {"mesh": self.mesh, "rules": self.rules}


def _described(path: str, leaf: Any) -> Any:
    """What a predicate is told of a leaf."""
    dtype = getattr(leaf, "dtype", None)
    if hasattr(leaf, "shape") and dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key):
        return leaf  # keys of generators are placed too, though no plan would draw them
    return spec_of("sharding_rules", path, leaf)


def sharding_rules(mesh: Mesh | AbstractMesh, rules: Any) -> ShardingRules:
    """Says where the leaves of a tree live, by their paths.

    Args:
        mesh: the mesh that specs are laid over.
        rules: a list of (pattern, spec); the first match wins. A pattern is a glob over the
            canonical path, a compiled regular expression, or a predicate on (path, leaf), as in
            `jaxinit.plan`. A spec is a ``PartitionSpec`` on ``mesh``, a ``NamedSharding``, or None
            where JAX shall decide.

    Returns:
        A function from a tree of shapes to a tree of shardings, for ``out_shardings`` of
        `jaxinit.jit_init`, ``plan.init`` and `jaxinit.plan`.

    Raises:
        TypeError: when a part is of the wrong kind.
        ValueError: when a glob is malformed, or a spec names an axis that the mesh has not.

    Example:
        >>> from jax.sharding import PartitionSpec
        >>> mesh = jax.make_mesh((1,), ("model",))
        >>> rules = sharding_rules(mesh, [("**/kernel", PartitionSpec(None, "model"))])
        >>> placed = rules({"dense": {"kernel": jax.ShapeDtypeStruct((2, 4), "float32")}})
        >>> placed["dense"]["kernel"].spec == PartitionSpec(None, "model")
        True
    """
    return ShardingRules(mesh, rules)
