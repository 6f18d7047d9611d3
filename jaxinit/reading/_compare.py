"""The fans that an initializer goes by against those that a model really has."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any

from jaxinit._arguments import listing
from jaxinit.initializers import Fans, Initializer, VarianceScaling
from jaxinit.planning import Plan
from jaxinit.reading._records import Parameter, Reading

_LAYERS = ("kernel", "head", "gate")


@dataclasses.dataclass(frozen=True)
class FanDifference:
    """A kernel whose initializer goes by other fans than the model has.

    Attributes:
        path: canonical path.
        implied: fans that the initializer goes by.
        true: fans that were read.
        factor: variance that is drawn over variance with the true fans; None where its law has no
            mode.
    """

    path: str
    implied: Fans
    true: Fans
    factor: float | None

    def __str__(self) -> str:
        pairs = [
            f"{name} {ours:g} where the model has {theirs:g}"
            for name, ours, theirs in (
                ("fan_in", self.implied.fan_in, self.true.fan_in),
                ("fan_out", self.implied.fan_out, self.true.fan_out),
            )
            if not math.isclose(ours, theirs)
        ]
        effect = "" if self.factor is None else f": {self.factor:.3g} x the variance"
        return f"{self.path}: {' and '.join(pairs)}{effect}"


def compare_fans(
    reading: Reading, init: Plan | Mapping[str, Initializer | None]
) -> tuple[FanDifference, ...]:
    """Finds kernels that are drawn with fans which are not theirs.

    Layers stacked along an axis, batched ``DenseGeneral``, grouped convolutions, packed kernels
    and einsum kernels are where initializers that see a shape alone go wrong.

    Args:
        reading: what `read` says of the model.
        init: a plan for the same tree, or a mapping from canonical path to initializer, as
            `jaxinit.flax.own_initializers` makes one of what Flax itself would draw. Leaves that
            it lacks or holds None for are left out.

    Returns:
        A record for every kernel whose fans differ, in the order of the tree, but for those whose
        mode does not look at the fan that is wrong: they draw the right variance. A kernel that is
        used several times counts by its first use.

    Raises:
        TypeError: when ``init`` is of another kind.
        ValueError: when it has no leaf in common with the reading.

    Example:
        >>> import jax, jax.numpy as jnp, jaxinit
        >>> tree = {"w": jax.ShapeDtypeStruct((8, 16, 32), "float32")}  # 8 experts
        >>> x = jax.ShapeDtypeStruct((8, 4, 16), "float32")
        >>> reading = jaxinit.read(lambda p, x: jnp.matmul(x, p["w"]), tree, x)
        >>> plan = jaxinit.plan(tree, [("w", "lecun_normal")])
        >>> difference = compare_fans(reading, plan)[0]
        >>> difference.implied.fan_in, difference.true.fan_in, difference.factor
        (128.0, 16.0, 0.125)
    """
    if isinstance(init, Plan):
        init = {leaf.path: leaf.initializer for leaf in init}
    if not isinstance(init, Mapping):
        raise TypeError(
            "compare_fans needs a plan or a mapping from path to initializer, got "
            f"{type(init).__name__}. Pass jaxinit.plan(...) or "
            "jaxinit.flax.own_initializers(module, *inputs)."
        )
    if not any(path in reading for path in init):
        raise ValueError(
            f"compare_fans needs a plan of the tree that was read, got the paths "
            f"{listing([repr(path) for path in init])} and read "
            f"{listing([repr(path) for path in reading.paths])}. Make both from the same variables."
        )
    return tuple(_differences(reading, init))


def _differences(
    reading: Reading, init: Mapping[str, Initializer | None]
) -> Iterator[FanDifference]:
    for parameter in reading:
        initializer = init.get(parameter.path)
        true = _true_fans(parameter)
        if initializer is None or true is None:
            continue
        implied = initializer.fans(parameter.shape)
        if implied is None or _agree(implied, true):
            continue
        factor = _factor(initializer, implied, true)
        if factor is None or not math.isclose(factor, 1):
            yield FanDifference(parameter.path, implied, true, factor)


def _true_fans(parameter: Parameter) -> Fans | None:
    fan_in, fan_out = parameter.fan_in, parameter.fan_out
    if parameter.role not in _LAYERS or fan_in is None or fan_out is None:
        return None
    return Fans(fan_in, fan_out)


def _agree(one: Fans, other: Fans) -> bool:
    return math.isclose(one.fan_in, other.fan_in) and math.isclose(one.fan_out, other.fan_out)


def _factor(initializer: Any, implied: Fans, true: Fans) -> float | None:
    """Variance with the one over variance with the other, by the scaling law inside wrappers."""
    while not isinstance(initializer, VarianceScaling):
        initializer = getattr(initializer, "initializer", None)
        if initializer is None:
            return None
    wanted = initializer.variance_at(true)
    return initializer.variance_at(implied) / wanted if wanted else None
