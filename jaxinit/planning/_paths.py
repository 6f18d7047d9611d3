"""One canonical string per leaf of any pytree, and what is known about the array behind it.

The path of a leaf is made of the keys, indices and attribute names on the way to it, joined by
``/``. A last attribute called ``value`` is left out, because boxes (``flax.linen.Partitioned``) and
variables (``flax.nnx.Param``) keep their array there: so the Linen variables and the NNX state of
one architecture have the same paths. Nothing is escaped; two leaves with one path are an error.
"""

from __future__ import annotations

import abc
import dataclasses
import math
from collections.abc import Callable, Collection, Iterator
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.sharding import AbstractMesh, NamedSharding
from jax.tree_util import DictKey, FlattenedIndexKey, GetAttrKey, SequenceKey

from jaxinit._arguments import as_shape, listing
from jaxinit._types import ArraySharding, PyTree, Shape, TreeDef
from jaxinit.initializers import Axes, Initializer


@runtime_checkable
class OwnModel(Protocol):
    """A model, as far as a plan of some of its leaves asks for it."""

    @property
    @abc.abstractmethod
    def leaves(self) -> Collection[str]:
        """Canonical paths of all leaves of the model, those that the tree leaves out among them."""
        ...

    @abc.abstractmethod
    def initializer(self, path: str) -> Initializer | None:
        """What draws a leaf as the model does; None where the model is abstract."""
        ...


class OwnLeaf(NamedTuple):
    """A leaf of a model: the model, and its path there."""

    model: OwnModel
    path: str


@dataclasses.dataclass(frozen=True)
class ParamSpec:
    """A parameter that is not there yet: its shape, and the roles of its axes where known.

    It is a leaf of a tree, as ``jax.ShapeDtypeStruct`` is, and can stand wherever that can.

    Attributes:
        shape: shape of the array.
        dtype: dtype of the array.
        sharding: where it shall live, None where nothing is said.
        axes: which axes of one layer the model contracts, produces and batches; None when unknown,
            and then the initializer's own axes hold.
        stack_axes: axes along which independent layers are stacked (scanned or vmapped layers).
            ``axes`` count within the shape that is left without them.
        groups: feature groups of a convolution.
        transposed_strides: strides of a transposed convolution.
        own: where the model's own draw of the leaf is found, for rules of `own`.

    Example:
        >>> ParamSpec((12, 64, 256), np.dtype("float32"), stack_axes=(0,)).layer_shape
        (64, 256)
    """

    shape: Shape
    dtype: np.dtype
    sharding: ArraySharding = None
    axes: Axes | None = None
    stack_axes: tuple[int, ...] = ()
    groups: int = 1
    transposed_strides: int | tuple[int, ...] = 1
    own: OwnLeaf | None = dataclasses.field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", as_shape("ParamSpec", self.shape))
        object.__setattr__(self, "dtype", as_leaf_dtype("ParamSpec", self.dtype))
        if self.axes is not None:
            object.__setattr__(self, "axes", Axes(*self.axes))
        if not isinstance(self.transposed_strides, int):
            object.__setattr__(self, "transposed_strides", tuple(self.transposed_strides))
        object.__setattr__(self, "stack_axes", _stack_axes(self.stack_axes, self.shape))

    @property
    def is_key(self) -> bool:
        """Whether it holds random keys, which no law draws."""
        return not isinstance(self.dtype, np.dtype)

    @property
    def size(self) -> int:
        """Number of entries."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the array."""
        return self.size * self.dtype.itemsize

    @property
    def layer_shape(self) -> Shape:
        """Shape of one layer: the shape without the stacked axes."""
        return tuple(n for axis, n in enumerate(self.shape) if axis not in self.stack_axes)


class FlatTree(NamedTuple):
    """A tree taken apart.

    Attributes:
        paths: canonical path of each leaf.
        leaves: the leaves, in the same order.
        treedef: the structure, which builds the tree again.
    """

    paths: tuple[str, ...]
    leaves: list[Any]
    treedef: TreeDef

    def items(self) -> Iterator[tuple[str, Any]]:
        """Path and leaf, one after the other."""
        return zip(self.paths, self.leaves, strict=True)

    def specs(self, caller: str) -> dict[str, ParamSpec]:
        """What every leaf says about its array, by path; `spec_of` says what it raises."""
        return {path: spec_of(caller, path, leaf) for path, leaf in self.items()}


def canonical_path(entries: tuple[Any, ...]) -> str:
    """The path of a leaf, from the entries of ``jax.tree_util.tree_flatten_with_path``.

    Example:
        >>> tree = {"dense": [{"kernel": 0}]}
        >>> canonical_path(jax.tree_util.tree_flatten_with_path(tree)[0][0][0])
        'dense/0/kernel'
    """
    if entries and entries[-1] == GetAttrKey("value"):
        entries = entries[:-1]
    return "/".join(map(_segment, entries))


def _segment(entry: Any) -> str:
    match entry:
        case DictKey(key=key) | FlattenedIndexKey(key=key):
            return str(key)
        case SequenceKey(idx=index):
            return str(index)
        case GetAttrKey(name=name):
            return str(name)
    return str(entry)


def flatten(caller: str, tree: PyTree, is_leaf: Callable[[Any], bool] | None = None) -> FlatTree:
    """Takes a tree apart into canonical paths and leaves.

    Args:
        caller: public name that an error starts with.
        tree: any pytree.
        is_leaf: as in ``jax.tree.flatten``.

    Raises:
        ValueError: when two leaves have the same canonical path.
    """
    entries, treedef = jax.tree_util.tree_flatten_with_path(tree, is_leaf)
    paths = tuple(canonical_path(path) for path, _ in entries)
    if len(set(paths)) < len(paths):
        places: dict[str, list[str]] = {}
        for path, (keys, _) in zip(paths, entries, strict=True):
            places.setdefault(path, []).append(f"tree{jax.tree_util.keystr(keys)}")
        clashes = [f"{p!r} is {' and '.join(k)}" for p, k in places.items() if len(k) > 1]
        raise ValueError(
            f"{caller} needs a canonical path of its own for every leaf, got the same for several: "
            f"{listing(clashes, separator='; ')}. Rename one of each."
        )
    return FlatTree(paths, [leaf for _, leaf in entries], treedef)


def spec_of(caller: str, path: str, leaf: Any) -> ParamSpec:
    """What a leaf says about its array.

    Args:
        caller: public name that an error starts with.
        path: canonical path, named in errors.
        leaf: a ``ParamSpec``, ``jax.ShapeDtypeStruct``, or array.

    Raises:
        TypeError: when the leaf has no shape and dtype, or holds neither numbers nor random keys.
    """
    if isinstance(leaf, ParamSpec):
        return leaf
    if not hasattr(leaf, "shape") or not hasattr(leaf, "dtype"):
        raise TypeError(
            f"{caller} needs leaves with a shape and a dtype, got {leaf!r} of type "
            f"{type(leaf).__name__} at {path!r}. Keep only the arrays, for example with "
            "jax.eval_shape, equinox.filter(tree, equinox.is_array) or "
            "nnx.state(model, nnx.Param)."
        )
    dtype = as_leaf_dtype(f"{caller}, at {path!r},", leaf.dtype)
    if isinstance(leaf, np.ndarray | np.generic):
        # The dtype that jnp.asarray would give it: a float64 of NumPy is seldom meant to be one.
        dtype = np.dtype(jax.dtypes.canonicalize_dtype(dtype))
    return ParamSpec(tuple(leaf.shape), dtype, _sharding_of(leaf))


def as_leaf_dtype(caller: str, dtype: Any) -> Any:
    """A dtype of numbers or booleans, or that of random keys; objects and the like are refused."""
    if not isinstance(dtype, str) and jnp.issubdtype(dtype, jax.dtypes.prng_key):
        return dtype
    return as_numeric_dtype(caller, dtype)


def as_numeric_dtype(caller: str, dtype: Any) -> np.dtype:
    """A dtype of numbers or booleans; keys, objects and the like are refused."""
    try:
        classes = (jnp.number, jnp.bool_)
        numeric = dtype is not None and any(jnp.issubdtype(dtype, each) for each in classes)
    except TypeError:
        numeric = False
    if not numeric:
        raise TypeError(
            f"{caller} needs a numeric dtype, got {dtype}. Random keys and other state are no "
            "parameters: filter them out, for example with nnx.state(model, nnx.Param)."
        )
    return np.dtype(jnp.dtype(dtype))


def _sharding_of(leaf: Any) -> ArraySharding:
    """The sharding that a leaf asks for, None where it only happens to live somewhere."""
    if isinstance(leaf, Tracer | np.ndarray | np.generic):
        return None
    sharding = getattr(leaf, "sharding", None)
    if isinstance(leaf, jax.Array):
        # Somebody laid the array over a mesh; any other sharding came by default.
        return sharding if isinstance(sharding, NamedSharding) else None
    if isinstance(sharding, NamedSharding) and isinstance(sharding.mesh, AbstractMesh):
        # Under jax.set_mesh, jax.eval_shape says "replicated" of every array that nobody placed.
        return None if sharding.is_fully_replicated else sharding
    return sharding


def _stack_axes(stack_axes: Any, shape: Shape) -> tuple[int, ...]:
    try:
        axes = tuple(int(axis) for axis in stack_axes)
    except (TypeError, ValueError):
        raise TypeError(
            f"ParamSpec needs stack_axes as a sequence of ints, got {stack_axes!r}. "
            "Pass for example (0,)."
        ) from None
    if any(not -len(shape) <= axis < len(shape) for axis in axes):
        raise ValueError(
            f"ParamSpec needs stack_axes within the {len(shape)} axes of shape {shape}, got {axes}."
        )
    axes = tuple(sorted(axis % len(shape) for axis in axes))
    if len(set(axes)) < len(axes):
        raise ValueError(f"ParamSpec needs every stacked axis once, got {axes} for shape {shape}.")
    return axes
