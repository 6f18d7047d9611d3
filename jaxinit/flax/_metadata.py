"""Shardings that a Flax model already carries: the axis names in Linen's boxes and NNX's variables.

Flax writes down where a parameter shall live (`nn.with_partitioning`,
`nn.with_logical_partitioning`, ``out_sharding`` of an `nnx.Variable`) and does not place it there.
`shardings_from_metadata` reads what is written, and `jaxinit.jit_init` and ``plan.init`` place the
parameter accordingly.
"""

from __future__ import annotations

import contextlib
import dataclasses
from typing import Any

import flax.linen as nn
import jax
from flax import nnx
from flax.linen.spmd import logical_to_mesh_axes
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from jaxinit._types import PyTree
from jaxinit.planning import canonical_path, check_fit, check_is_mesh, on_mesh

_CALLER = "shardings_from_metadata"
# An axis of the mesh, several, or None for an axis that is not cut.
_OnMesh = str | tuple[str, ...] | None


@dataclasses.dataclass(frozen=True)
class MetadataShardings:
    """What `shardings_from_metadata` returns.

    Attributes:
        mesh: the mesh that axis names are laid over, where the metadata name none of their own.
        logical_rules: pairs of a logical axis and the axis of the mesh that it is cut along.
    """

    mesh: Mesh | AbstractMesh
    logical_rules: tuple[tuple[str, _OnMesh], ...] = ()

    def __post_init__(self) -> None:
        check_is_mesh(_CALLER, self.mesh)
        object.__setattr__(self, "logical_rules", _pairs(self.logical_rules))

    def __call__(self, params: PyTree) -> PyTree:
        """Places every leaf of a tree.

        Args:
            params: Linen variables, boxes included, or an NNX state.

        Returns:
            The tree with a ``NamedSharding`` in the place of every array. As `nn.get_sharding` has
            it, a sharding takes the place of a whole box; as `nnx.get_named_sharding` has it, it
            lies inside of an NNX variable.

        Raises:
            ValueError: when an axis is in neither the rules nor the mesh, or a sharding does not
                fit the shape.
        """

        def place(entries: Any, leaf: Any) -> Any:
            path = canonical_path(entries)
            sharding = self._sharding(path, leaf)
            for array in jax.tree.leaves(leaf):
                check_fit(_CALLER, path, tuple(array.shape), sharding)
            return leaf.replace(sharding) if isinstance(leaf, nnx.Variable) else sharding

        # Flax reads the rules of logical axes from the context.
        with nn.logical_axis_rules(self.logical_rules):
            return jax.tree_util.tree_map_with_path(place, params, is_leaf=_is_annotated)

    def _sharding(self, path: str, leaf: Any) -> NamedSharding:
        spec, mesh = PartitionSpec(), None
        if isinstance(leaf, nn.LogicallyPartitioned):
            spec, mesh = self._logical(path, leaf), leaf.mesh
        elif isinstance(leaf, nn.meta.AxisMetadata):
            spec, mesh = nn.get_partition_spec(leaf) or spec, getattr(leaf, "mesh", None)
        elif isinstance(leaf, nnx.Variable):
            metadata = leaf.get_metadata()
            if isinstance(metadata.get("out_sharding"), NamedSharding):
                return metadata["out_sharding"]
            spec = nnx.get_partition_spec(leaf).get_value() or spec
            mesh = metadata.get("mesh")
        return on_mesh(_CALLER, mesh or self.mesh, f"for {path!r}", spec)

    def _logical(self, path: str, box: nn.LogicallyPartitioned) -> Any:
        rules = self.logical_rules if box.rules is None else box.rules
        known = {name for name, _ in rules}
        unknown = [name for name in box.names if isinstance(name, str) and name not in known]
        if unknown:
            raise ValueError(
                f"{_CALLER} needs a rule for every logical axis, got none for "
                f"{', '.join(map(repr, unknown))} of {path!r}. Pass logical_rules=[("
                f"{unknown[0]!r}, 'model'), ...], with None for an axis that is not cut."
            )
        return logical_to_mesh_axes(box.names, rules)


def _is_annotated(value: Any) -> bool:
    return isinstance(value, nn.meta.AxisMetadata | nnx.Variable)


def _pairs(rules: Any) -> tuple[tuple[str, _OnMesh], ...]:
    pairs = None
    if not isinstance(rules, str):
        with contextlib.suppress(TypeError, ValueError):
            pairs = tuple(
                (name, tuple(axes) if isinstance(axes, list) else axes) for name, axes in rules
            )
    if pairs is None or not all(isinstance(name, str) for name, _ in pairs):
        raise TypeError(
            f"{_CALLER} needs logical_rules as a list of (logical axis, axis of the mesh), got "
            f"{rules!r}. Write for example [('embed', None), ('mlp', 'model')]."
        )
    return pairs


def shardings_from_metadata(
    mesh: Mesh | AbstractMesh, logical_rules: Any = ()
) -> MetadataShardings:
    """Reads where a Flax model says that its parameters live.

    Understands the boxes of `nn.with_partitioning` and `nn.with_logical_partitioning`, and
    ``out_sharding``, ``sharding_rules`` and ``mesh`` of NNX variables. What has no metadata lives
    whole on every device, as in Flax.

    Args:
        mesh: the mesh that axis names are laid over, where the metadata name none of their own.
        logical_rules: pairs of a logical axis and the axis of the mesh that it is cut along, or
            None; an earlier pair takes precedence over a later one. When empty, the rules that
            `nn.logical_axis_rules` has set when this function is called. Rules in a box take
            precedence over these; unlike Flax, a logical axis that no rule knows is an error.

    Returns:
        A function from a tree of shapes to a tree of shardings, for ``out_shardings`` of
        `jaxinit.jit_init`, `jaxinit.flax.nnx_init`, ``plan.init`` and `jaxinit.plan`.

    Raises:
        TypeError: when ``mesh`` is no mesh or ``logical_rules`` are no pairs.

    Example:
        >>> mesh = jax.make_mesh((1,), ("model",))
        >>> kernel_init = nn.with_partitioning(nn.initializers.lecun_normal(), (None, "model"))
        >>> dense = nn.Dense(8, kernel_init=kernel_init)
        >>> shapes = jax.eval_shape(dense.init, jax.random.key(0), jax.numpy.ones((1, 4)))
        >>> placed = shardings_from_metadata(mesh)(shapes)
        >>> placed["params"]["kernel"].spec == PartitionSpec(None, "model")
        True
    """
    return MetadataShardings(mesh, _pairs(logical_rules or nn.get_logical_axis_rules()))
