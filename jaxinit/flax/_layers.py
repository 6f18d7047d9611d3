"""What is known of Flax's own layers: which axes of a kernel they contract, and its plain shape.

One small function per layer type, in two tables, one for Linen and one for NNX. Subclasses of a
layer count as that layer as long as their kernel keeps its shape; a kernel that does not fit is
left without axes. An embedding table has none on purpose: a lookup contracts nothing, and a tied
head contracts the features. A rule says which of the two counts, as Flax's own default does with
`out_axis=0`.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx
from flax.linen import recurrent

from jaxinit._types import Shape
from jaxinit.initializers import Axes, einsum_axes
from jaxinit.planning import ParamSpec, spec_of


@dataclasses.dataclass(frozen=True)
class Roles:
    """The roles of a kernel's axes, counted from its end, and what a convolution adds to them."""

    axes: Axes
    groups: int = 1
    transposed_strides: int | tuple[int, ...] = 1


@dataclasses.dataclass(frozen=True)
class Call:
    """The arguments that a layer was called with."""

    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def is_numeric(leaf: Any) -> bool:
    """Whether a leaf holds numbers, and not random keys or the like."""
    return hasattr(leaf, "dtype") and not jnp.issubdtype(leaf.dtype, jax.dtypes.extended)


def name_of(function: Any) -> str | None:
    """The qualified name of a function or class, None for a callable that has none."""
    return getattr(function, "__qualname__", None)


def param_spec(leaf: Any, stack: tuple[int, ...] | None, roles: Roles | None) -> ParamSpec:
    """What is known of a leaf, for a plan.

    Args:
        leaf: the array, or its shape and dtype.
        stack: its stacked axes; None where it is not a stack of what its layer made, and then
            the roles of the layer's axes say nothing.
        roles: the roles of the other axes, where the layer is known.
    """
    spec = spec_of("jaxinit.flax", "", leaf)
    known = {} if stack is None or roles is None else vars(roles)
    return dataclasses.replace(spec, stack_axes=stack or (), **known)


def contiguous(batch: int, inputs: int, outputs: int) -> Axes:
    """Roles of a kernel whose axes are, in this order, batch, input and output axes."""
    ends = (-inputs - outputs, -outputs, 0)
    in_axis, out_axis = (tuple(range(a, b)) for a, b in itertools.pairwise(ends))
    return Axes(in_axis, out_axis, tuple(range(ends[0] - batch, ends[0])))


def stack_axes_of(
    shape: Shape, layer: Shape, names: Sequence[Any] = (), layer_names: Sequence[Any] = ()
) -> tuple[int, ...] | None:
    """Axes of ``shape`` that ``layer`` lacks, the leading ones where several would do.

    Args:
        shape: shape of the parameter as it is stored.
        layer: shape of the parameter of one layer.
        names: names of the stored axes, where metadata tells them; they decide between equals.
        layer_names: names of the axes of one layer.

    Returns:
        The axes, or None when one shape is not the other plus some axes.
    """
    added = len(shape) - len(layer)
    if added < 0:
        return None
    fits = [
        axes
        for axes in itertools.combinations(range(len(shape)), added)
        if _without(shape, axes) == layer
    ]
    if names and layer_names:
        stored, single = _padded(names, len(shape)), _padded(layer_names, len(layer))
        fits.sort(key=lambda axes: _without(stored, axes) != single)
    return fits[0] if fits else None


def _without(values: tuple[Any, ...], axes: tuple[int, ...]) -> tuple[Any, ...]:
    return tuple(value for axis, value in enumerate(values) if axis not in axes)


def _padded(names: Sequence[Any], rank: int) -> tuple[Any, ...]:
    return (*names, *[None] * (rank - len(names)))


def _tuple(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, Iterable) else (value,)


def _einsum_roles(equation: Any, shape: Shape) -> Roles | None:
    try:
        axes = einsum_axes(equation)
    except (TypeError, ValueError):
        return None  # an ellipsis in the kernel, for one
    if sum(map(len, axes)) != len(shape):
        return None
    return Roles(Axes(*(tuple(axis - len(shape) for axis in role) for role in axes)))


def _strides(layer: Any) -> int | tuple[int, ...]:
    strides = 1 if layer.strides is None else layer.strides
    return strides if isinstance(strides, int) else tuple(strides)


def _transposed(layer: Any) -> Roles:
    axes = Axes((-1,), (-2,)) if layer.transpose_kernel else Axes()
    return Roles(axes, transposed_strides=_strides(layer))


# Linen: the kernel's shape is seen while it is made, its roles follow from the layer's fields.


def _linen_dense(layer: Any, shape: Shape, _: Call) -> Roles | None:
    return Roles(Axes()) if len(shape) == 2 and shape[-1] == layer.features else None


def dense_general_counts(layer: nn.DenseGeneral, shape: Shape) -> tuple[int, int, int]:
    """Numbers of batch, input and output axes of the kernel of a DenseGeneral."""
    batch, outputs = len(_tuple(layer.batch_dims)), len(_tuple(layer.features))
    return batch, len(shape) - batch - outputs, outputs


def _linen_dense_general(layer: Any, shape: Shape, _: Call) -> Roles | None:
    counts = dense_general_counts(layer, shape)
    fits = counts[1] == len(_tuple(layer.axis)) and shape[-counts[2] :] == _tuple(layer.features)
    return Roles(contiguous(*counts)) if fits else None


def _linen_einsum(layer: Any, shape: Shape, call: Call) -> Roles | None:
    given = call.args[1] if len(call.args) > 1 else call.kwargs.get("einsum_str")
    return _einsum_roles(given if layer.einsum_str is None else layer.einsum_str, shape)


def _linen_conv(layer: Any, shape: Shape, _: Call) -> Roles | None:
    fits = shape[:-2] == _tuple(layer.kernel_size) and shape[-1] == layer.features
    return Roles(Axes(), groups=layer.feature_group_count) if fits else None


def _linen_conv_local(layer: Any, shape: Shape, _: Call) -> Roles | None:
    # Every output position has a kernel of its own: positions x (window * features) x features.
    # Window and features share an axis, so fan_out counts the outputs at one position only.
    positions = len(_tuple(layer.kernel_size))
    return Roles(contiguous(positions, 1, 1)) if len(shape) == positions + 2 else None


def _linen_conv_transpose(layer: Any, shape: Shape, _: Call) -> Roles | None:
    return _transposed(layer) if shape[:-2] == _tuple(layer.kernel_size) else None


_LINEN: tuple[tuple[type, Callable[[Any, Shape, Call], Roles | None]], ...] = (
    (nn.Dense, _linen_dense),
    (recurrent.DenseParams, _linen_dense),
    (nn.DenseGeneral, _linen_dense_general),
    (nn.Einsum, _linen_einsum),
    (nn.Conv, _linen_conv),
    (nn.ConvLocal, _linen_conv_local),
    (nn.ConvTranspose, _linen_conv_transpose),
)


def linen_roles(module: nn.Module, name: str, shape: Shape, call: Call) -> Roles | None:
    """Roles of the axes of a parameter, or None when the module is no layer that is known.

    Args:
        module: the module that owns the parameter.
        name: name of the parameter.
        shape: its shape in one layer.
        call: the arguments that the module was called with.
    """
    if name != "kernel":
        return None
    for kind, roles in _LINEN:
        if isinstance(module, kind):
            return roles(module, shape, call)
    return None


# NNX: `nnx.vmap` around a constructor leaves no trace, but layers keep their sizes as fields. From
# these the shape of a single layer follows.


@dataclasses.dataclass(frozen=True)
class Single:
    """A parameter of one NNX layer: its shape without stacked axes, and the roles of those."""

    shape: Shape
    roles: Roles | None = None


def _nnx_linear(layer: Any) -> dict[str, Single]:
    kernel = (layer.in_features, layer.out_features)
    return {"kernel": Single(kernel, Roles(Axes())), "bias": Single(kernel[-1:])}


def _nnx_linear_general(layer: Any) -> dict[str, Single]:
    batch, inputs = tuple(layer.batch_axis.values()), _tuple(layer.in_features)
    outputs = _tuple(layer.out_features)
    roles = Roles(contiguous(len(batch), len(inputs), len(outputs)))
    return {
        "kernel": Single((*batch, *inputs, *outputs), roles),
        "bias": Single((*batch, *outputs)),
    }


def _nnx_einsum(layer: Any) -> dict[str, Single]:
    kernel = tuple(layer.kernel_shape)
    bias = tuple(layer.bias_shape or ())
    return {
        "kernel": Single(kernel, _einsum_roles(layer.einsum_str, kernel)),
        "bias": Single(bias),
    }


def _nnx_conv(layer: Any) -> dict[str, Single]:
    if isinstance(layer, nnx.ConvTranspose):
        roles = _transposed(layer)
    else:
        roles = Roles(Axes(), groups=layer.feature_group_count)
    kernel = Single(tuple(layer.kernel_shape), roles)
    return {"kernel": kernel, "bias": Single((layer.out_features,))}


def _nnx_embed(layer: Any) -> dict[str, Single]:
    return {"embedding": Single((layer.num_embeddings, layer.features))}


def _nnx_norm(layer: Any) -> dict[str, Single]:
    grouped = isinstance(layer, nnx.GroupNorm)
    features = layer.num_groups * layer.group_size if grouped else layer.num_features
    return dict.fromkeys(("scale", "bias", "mean", "var"), Single((features,)))


def _nnx_lora(layer: Any) -> dict[str, Single]:
    rank, roles = layer.lora_a.shape[-1], Roles(Axes())
    return {
        "lora_a": Single((layer.in_features, rank), roles),
        "lora_b": Single((rank, layer.out_features), roles),
    }


_NNX: tuple[tuple[type, Callable[[Any], dict[str, Single]]], ...] = (
    (nnx.Linear, _nnx_linear),
    (nnx.LinearGeneral, _nnx_linear_general),
    (nnx.Einsum, _nnx_einsum),
    (nnx.Conv, _nnx_conv),
    (nnx.ConvTranspose, _nnx_conv),
    (nnx.Embed, _nnx_embed),
    (nnx.BatchNorm, _nnx_norm),
    (nnx.LayerNorm, _nnx_norm),
    (nnx.RMSNorm, _nnx_norm),
    (nnx.GroupNorm, _nnx_norm),
    (nnx.InstanceNorm, _nnx_norm),
    (nnx.LoRA, _nnx_lora),
)


def nnx_parameters(module: nnx.Module) -> dict[str, Single]:
    """Parameters of one layer by attribute, empty when the module is no layer that is known."""
    for kind, describe in _NNX:
        if isinstance(module, kind):
            try:
                return describe(module)
            except AttributeError:
                return {}  # a subclass with a constructor and fields of its own
    return {}


def flat_shape(counts: tuple[int, int, int], shape: Shape) -> Shape:
    """The two-axis shape that a DenseGeneral hands to its initializer."""
    split = counts[0] + counts[1]
    return (math.prod(shape[:split]), math.prod(shape[split:]))
