"""Names and configs: an initializer from a string, plain JSON or a closure of JAX, and back."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from jaxinit.initializers._basic import constant, normal, ones, truncated_normal, uniform, zeros
from jaxinit.initializers._composites import fused, stacked
from jaxinit.initializers._frozen import FrozenArray
from jaxinit.initializers._orthogonal import delta_orthogonal, orthogonal, scaled_orthogonal
from jaxinit.initializers._protocol import Initializer
from jaxinit.initializers._recipes import (
    glorot_normal,
    glorot_uniform,
    he_normal,
    he_uniform,
    kaiming_normal,
    kaiming_uniform,
    lecun_normal,
    lecun_uniform,
    xavier_normal,
    xavier_uniform,
)
from jaxinit.initializers._structured import dirac, identity, sparse
from jaxinit.initializers._variance import variance_scaling
from jaxinit.initializers._wrappers import masked, reshaped, scaled


@dataclasses.dataclass(frozen=True)
class Entry:
    """A line of the catalogue.

    Attributes:
        name: public name in `jaxinit.initializers`.
        factory: what the name is bound to.
        law: the law of an entry in one formula.
        use: when to reach for it.
        source: authors and year.
    """

    name: str
    factory: Callable[..., Initializer]
    law: str
    use: str
    source: str


_ENTRIES = (
    Entry("zeros", zeros, "0", "biases; last map of a residual branch", "Goyal 2017"),
    Entry("ones", ones, "1", "scales of normalisation layers", "Ioffe 2015"),
    Entry("constant", constant, "c", "biases, gates; on kernels it leaves twins", "folklore"),
    Entry("uniform", uniform, "U(a, b)", "shallow nets; one width only", "classical"),
    Entry("normal", normal, "N(mean, std^2)", "embeddings, transformers (0.02)", "GPT-2"),
    Entry(
        "truncated_normal",
        truncated_normal,
        "N(mean, std^2) cut at bounds",
        "as normal, without outliers",
        "Abadi 2016",
    ),
    Entry(
        "variance_scaling",
        variance_scaling,
        "var = gain^2 scale / fan",
        "any fan-aware law",
        "He 2015",
    ),
    Entry("lecun_uniform", lecun_uniform, "var = gain^2 / in", "linear, gates", "LeCun 1998"),
    Entry("lecun_normal", lecun_normal, "var = gain^2 / in", "linear, SELU", "LeCun 1998"),
    Entry(
        "glorot_uniform",
        glorot_uniform,
        "var = 2 gain^2 / (in + out)",
        "tanh, sigmoid, attention",
        "Glorot 2010",
    ),
    Entry(
        "glorot_normal",
        glorot_normal,
        "var = 2 gain^2 / (in + out)",
        "tanh, sigmoid",
        "Glorot 2010",
    ),
    Entry("xavier_uniform", xavier_uniform, "= glorot_uniform", "alias", "Glorot 2010"),
    Entry("xavier_normal", xavier_normal, "= glorot_normal", "alias", "Glorot 2010"),
    Entry(
        "he_uniform",
        he_uniform,
        "var = 2 / ((1 + a^2) in)",
        "ReLU, leaky ReLU, deep",
        "He 2015",
    ),
    Entry(
        "he_normal",
        he_normal,
        "var = 2 / ((1 + a^2) in)",
        "ReLU, leaky ReLU, deep",
        "He 2015",
    ),
    Entry("kaiming_uniform", kaiming_uniform, "= he_uniform", "alias", "He 2015"),
    Entry("kaiming_normal", kaiming_normal, "= he_normal", "alias", "He 2015"),
    Entry(
        "orthogonal",
        orthogonal,
        "Haar, Q^T Q = s^2",
        "recurrent; deep linear or tanh",
        "Saxe 2013",
    ),
    Entry(
        "scaled_orthogonal",
        scaled_orthogonal,
        "Haar, var = s^2 / in",
        "as orthogonal, widening layers",
        "Martens 2021",
    ),
    Entry(
        "delta_orthogonal",
        delta_orthogonal,
        "Haar at one tap, else 0",
        "very deep plain convolutions",
        "Xiao 2018",
    ),
    Entry("identity", identity, "gain on the diagonal", "recurrent ReLU", "Le 2015"),
    Entry("dirac", dirac, "gain at one tap", "identity convolution", "Zagoruyko 2017"),
    Entry(
        "sparse",
        sparse,
        "N(0, std^2), fixed zeros a unit",
        "few inputs a unit",
        "Martens 2010",
    ),
    Entry("scaled", scaled, "factor * x", "residual outputs", "GPT-2"),
    Entry("masked", masked, "mask * x", "causal or block structure", "Germain 2015"),
    Entry("reshaped", reshaped, "x in another shape", "Flax DenseGeneral", "Flax"),
    Entry("stacked", stacked, "x for each layer", "scanned layers, experts", "folklore"),
    Entry("fused", fused, "x for each piece", "packed QKV, gate and up", "folklore"),
)
_BY_NAME = {entry.name: entry for entry in _ENTRIES}


def names() -> tuple[str, ...]:
    """All names of the catalogue, from plain to structured, wrappers last.

    Example:
        >>> names()[:3]
        ('zeros', 'ones', 'constant')
    """
    return tuple(_BY_NAME)


def describe(name: str) -> Entry:
    """The catalogue's line for a name.

    Raises:
        TypeError: when the name is no string.
        ValueError: when the catalogue has no such name; the message offers the nearest.

    Example:
        >>> describe("he_normal").source
        'He 2015'
    """
    if not isinstance(name, str):
        raise TypeError(f"jaxinit.initializers needs a name as a string, got {name!r}.")
    if name not in _BY_NAME:
        near = difflib.get_close_matches(name, _BY_NAME, 3) or list(_BY_NAME)
        raise ValueError(f"jaxinit.initializers has no {name!r}. Did you mean {' or '.join(near)}?")
    return _BY_NAME[name]


def get(source: Any, **arguments: Any) -> Initializer:
    """An initializer from whatever names one.

    Args:
        source: a name of the catalogue, a config, an initializer, or a closure of
            ``jax.nn.initializers``.
        **arguments: arguments of the factory; with a name only.

    Returns:
        The initializer.

    Raises:
        TypeError: when the source is something else, or an argument is missing or unknown.
        ValueError: when the name is unknown or an argument has no law.

    Example:
        >>> get("he_normal", negative_slope=0.2).law((52, 10)).variance * 52 * 1.04
        2.0
    """
    if isinstance(source, str):
        return _call(describe(source), arguments)
    if arguments:
        raise TypeError(
            f"get needs a name beside arguments, got {source!r} with {sorted(arguments)}."
        )
    if isinstance(source, Initializer):
        return source
    if isinstance(source, Mapping):
        return from_config(source)
    if callable(source):
        return from_jax(source)
    raise TypeError(
        f"get needs a name, a config, an initializer or one of jax.nn.initializers, got {source!r}."
    )


def _call(entry: Entry, arguments: Mapping[str, Any]) -> Initializer:
    if isinstance(entry.factory, Initializer):
        if set(arguments) - {"dtype"}:
            raise TypeError(f"{entry.name} takes no arguments but dtype, got {sorted(arguments)}.")
        return dataclasses.replace(entry.factory, **arguments)
    try:
        inspect.signature(entry.factory).bind(**arguments)
    except TypeError as error:
        raise TypeError(
            f"{entry.name} needs other arguments: {error}, got {sorted(arguments)}. "
            f"Its signature is {entry.name}{_parameters(entry.factory)}."
        ) from None
    return entry.factory(**arguments)


def _parameters(factory: Callable[..., Any]) -> str:
    return f"({', '.join(inspect.signature(factory).parameters)})"


def to_config(initializer: Initializer) -> dict[str, Any]:
    """Plain JSON that `from_config` turns back into an equal initializer.

    Args:
        initializer: any initializer of the catalogue.

    Returns:
        ``{"name": ..., argument: value, ...}`` with the arguments that are not defaults.

    Raises:
        TypeError: when the value is not an initializer of the catalogue.

    Example:
        >>> to_config(he_normal(batch_axis=0))
        {'name': 'he_normal', 'batch_axis': 0}
    """
    # A subclass that has no name of its own would be read back as its base.
    of_the_catalogue = isinstance(initializer, Initializer) and initializer.label in _BY_NAME
    if not of_the_catalogue or "name" not in vars(type(initializer)):
        raise TypeError(
            f"to_config needs an initializer of the catalogue, got {initializer!r}. "
            "Only those can be written by name; pickle keeps any frozen dataclass."
        )
    encoded = {name: _encode(value) for name, value in initializer.arguments().items()}
    return {"name": initializer.label, **encoded}


def from_config(config: Mapping[str, Any]) -> Initializer:
    """The initializer that a config describes.

    Args:
        config: what `to_config` returns, or the same written by hand: a ``name`` of the
            catalogue and arguments of its factory.

    Returns:
        The initializer.

    Raises:
        TypeError: when the config is not a mapping with string keys, or an argument is missing,
            unknown or of the wrong kind.
        ValueError: when the name is missing or unknown, or an argument has no law.

    Example:
        >>> from_config({"name": "normal", "stddev": 0.02})
        normal(0.02)
    """
    if not isinstance(config, Mapping) or not all(isinstance(name, str) for name in config):
        raise TypeError(f"from_config needs a mapping with string keys, got {config!r}.")
    if "name" not in config:
        raise ValueError(
            f"from_config needs a 'name', got only {sorted(config)}. "
            "Write for example {'name': 'he_normal'}."
        )
    arguments = {name: _decode(value) for name, value in config.items() if name != "name"}
    return _call(describe(config["name"]), arguments)


def _encode(value: Any) -> Any:
    if isinstance(value, Initializer):
        return to_config(value)
    if isinstance(value, FrozenArray):
        return _encode(value.tolist())
    if isinstance(value, tuple | list):
        return [_encode(item) for item in value]
    if isinstance(value, Mapping):
        return {name: _encode(item) for name, item in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": str(value)}  # JSON has no infinity
    return value


def _decode(value: Any) -> Any:
    if isinstance(value, Mapping):
        if "name" in value:
            return from_config(value)
        if set(value) == {"float"}:
            try:
                return float(value["float"])
            except (TypeError, ValueError):
                raise ValueError(f"from_config needs a number in 'float', got {value!r}.") from None
        if set(value) == {"re", "im"}:
            re, im = (
                FrozenArray.of("from_config", part, _decode(value[part])).array
                for part in ("re", "im")
            )
            if re.shape != im.shape or "c" in re.dtype.kind + im.dtype.kind:
                raise ValueError(
                    f"from_config needs 're' and 'im' of one shape and real, got {value!r}."
                )
            return np.stack([re, im], -1).view(np.complex128)[..., 0]
        raise ValueError(f"from_config needs a nested config with a 'name', got {dict(value)!r}.")
    if isinstance(value, list | tuple):
        return [_decode(item) for item in value]
    return value


_CLOSURES: dict[str, Callable[..., Initializer]] = {
    "constant": constant,
    "uniform": uniform,
    "normal": normal,
    "truncated_normal": truncated_normal,
    "variance_scaling": variance_scaling,
    "orthogonal": orthogonal,
    "delta_orthogonal": delta_orthogonal,
}


def from_jax(function: Callable[..., Any]) -> Initializer:
    """The jaxinit value of an initializer made by ``jax.nn.initializers``.

    A closure of JAX cannot say what it draws; this reads the arguments that it closed over.

    Args:
        function: for example ``jax.nn.initializers.he_normal()``, or Flax's default kernel
            initializer.

    Returns:
        The initializer with the same law and, in float32, the same numbers.

    Raises:
        ValueError: when the function is none of JAX's initializers.

    Example:
        >>> import jax
        >>> from_jax(jax.nn.initializers.he_normal())
        he_normal()
    """
    if isinstance(function, Initializer):
        return function
    # A wrapper such as Flax's with_partitioning bears the name of what it wraps.
    wraps = hasattr(function, "__wrapped__")
    if str(getattr(function, "__module__", "")).endswith("nn.initializers") and not wraps:
        maker, _, inner = getattr(function, "__qualname__", "").partition(".<locals>.")
        if maker in ("zeros", "ones") and not inner:
            return _BY_NAME[maker].factory  # pyright: ignore[reportReturnType]
        if maker in _CLOSURES and inner == "init":
            closed_over = dict(inspect.getclosurevars(function).nonlocals)
            closed_over["dtype"] = inspect.signature(function).parameters["dtype"].default
            known = inspect.signature(_CLOSURES[maker]).parameters
            return _CLOSURES[maker](**{k: v for k, v in closed_over.items() if k in known})
    raise ValueError(
        f"from_jax needs an initializer made by jax.nn.initializers, got {function!r}. "
        "Use the jaxinit factory with the law you want."
    )
