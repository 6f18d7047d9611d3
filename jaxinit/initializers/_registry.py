"""Names and configs: an initializer from a string, plain JSON or a closure of JAX, and back."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any, TypeGuard

import numpy as np

from jaxinit._arguments import FrozenArray
from jaxinit.initializers import _basic, _structured, _variance, _wrappers
from jaxinit.initializers._base import BaseInitializer
from jaxinit.initializers._protocol import Initializer


@dataclasses.dataclass(frozen=True)
class Description:
    """What the catalogue says of a name.

    Attributes:
        name: public name in `jaxinit.initializers`.
        factory: what the name is bound to.
        law: the law of an entry in one formula.
        use: when to reach for it.
        source: authors and year.
    """

    name: str
    factory: Callable[..., BaseInitializer]
    law: str
    use: str
    source: str


# Name, law, use, source. The name is that of a factory in one of the modules below.
_CATALOGUE = (
    ("zeros", "0", "biases; last map of a residual branch", "Goyal 2017"),
    ("ones", "1", "scales of normalisation layers", "Ioffe 2015"),
    ("constant", "c", "biases, gates; on kernels it leaves twins", "folklore"),
    ("uniform", "U(a, b)", "shallow nets; one width only", "classical"),
    ("normal", "N(mean, std^2)", "embeddings, transformers (0.02)", "GPT-2"),
    ("truncated_normal", "N(mean, std^2) cut at bounds", "normal without outliers", "Abadi 2016"),
    ("variance_scaling", "var = gain^2 scale / fan", "any fan-aware law", "He 2015"),
    ("lecun_uniform", "var = gain^2 / in", "linear, gates", "LeCun 1998"),
    ("lecun_normal", "var = gain^2 / in", "linear, SELU", "LeCun 1998"),
    ("glorot_uniform", "var = 2 gain^2 / (in + out)", "tanh, sigmoid, attention", "Glorot 2010"),
    ("glorot_normal", "var = 2 gain^2 / (in + out)", "tanh, sigmoid", "Glorot 2010"),
    ("xavier_uniform", "= glorot_uniform", "alias", "Glorot 2010"),
    ("xavier_normal", "= glorot_normal", "alias", "Glorot 2010"),
    ("he_uniform", "var = 2 / ((1 + a^2) in)", "ReLU, leaky ReLU, deep", "He 2015"),
    ("he_normal", "var = 2 / ((1 + a^2) in)", "ReLU, leaky ReLU, deep", "He 2015"),
    ("kaiming_uniform", "= he_uniform", "alias", "He 2015"),
    ("kaiming_normal", "= he_normal", "alias", "He 2015"),
    ("orthogonal", "Haar, Q^T Q = s^2", "recurrent; deep linear or tanh", "Saxe 2013"),
    ("scaled_orthogonal", "Haar, var = s^2 / in", "as orthogonal, widening layers", "Martens 2021"),
    ("delta_orthogonal", "Haar at one tap, else 0", "very deep plain convolutions", "Xiao 2018"),
    ("identity", "gain on the diagonal", "recurrent ReLU", "Le 2015"),
    ("dirac", "gain at one tap", "identity convolution", "Zagoruyko 2017"),
    ("sparse", "N(0, std^2), fixed zeros a unit", "few inputs a unit", "Martens 2010"),
    ("own", "as the model draws it", "running statistics, frozen leaves", "the model"),
    ("scaled", "factor * x", "residual outputs", "GPT-2"),
    ("masked", "mask * x", "causal or block structure", "Germain 2015"),
    ("reshaped", "x in another shape", "Flax DenseGeneral", "Flax"),
    ("stacked", "x for each layer", "scanned layers, experts", "folklore"),
    ("fused", "x for each piece", "packed QKV, gate and up", "folklore"),
)
_MODULES = (_basic, _variance, _structured, _wrappers)


def _factory(name: str) -> Callable[..., BaseInitializer]:
    return next(getattr(module, name) for module in _MODULES if hasattr(module, name))


_BY_NAME = {name: Description(name, _factory(name), *texts) for name, *texts in _CATALOGUE}


def names() -> tuple[str, ...]:
    """All names of the catalogue, from plain to structured, wrappers last.

    Example:
        >>> names()[:3]
        ('zeros', 'ones', 'constant')
    """
    return tuple(_BY_NAME)


def describe(name: str) -> Description:
    """What the catalogue says of a name.

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


def get(source: Any, *positional: Any, **arguments: Any) -> Initializer:
    """An initializer from whatever names one.

    Args:
        source: a name of the catalogue, a config, an initializer, a closure of
            ``jax.nn.initializers``, or any other function ``(key, shape, dtype)``, of which no
            law is known.
        *positional: arguments of the factory by position; with a name only.
        **arguments: arguments of the factory by name; with a name only.

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
        return _call(describe(source), *positional, **arguments)
    if positional or arguments:
        given = [*positional, *sorted(arguments)]
        raise TypeError(f"get needs a name beside arguments, got {source!r} with {given}.")
    if _is_initializer(source):
        return source
    if isinstance(source, Mapping):
        return from_config(source)
    if callable(source):
        return from_jax(source) if _is_of_library(source) else _wrappers.FromFunction(source)
    raise TypeError(
        "get needs a name, a config, an initializer, one of jax.nn.initializers or a function "
        f"(key, shape, dtype), got {source!r}."
    )


def _is_of_library(function: Callable[..., Any]) -> bool:
    """Whether a function is one of JAX's initializers, or makes initializers and was not called."""
    module = str(getattr(function, "__module__", ""))
    return module.endswith("nn.initializers") or module.startswith("jaxinit.")


def _is_initializer(value: Any) -> TypeGuard[Initializer]:
    """Whether a value is an initializer, and not a class of them, which has the same members."""
    return isinstance(value, Initializer) and not isinstance(value, type)


def _call(described: Description, *positional: Any, **arguments: Any) -> Initializer:
    name, factory = described.name, described.factory
    given = [*positional, *sorted(arguments)]
    if isinstance(factory, BaseInitializer):
        known = [field.name for field in dataclasses.fields(factory) if field.name != "value"]
        if positional or arguments.keys() - set(known):
            raise TypeError(f"{name} takes no arguments but {' and '.join(known)}, got {given}.")
        return dataclasses.replace(factory, **arguments)
    signature = inspect.signature(factory)
    try:
        signature.bind(*positional, **arguments)
    except TypeError as error:
        raise TypeError(
            f"{name} needs other arguments: {error}, got {given}. "
            f"Its signature is {name}({', '.join(signature.parameters)})."
        ) from None
    return factory(*positional, **arguments)


def to_config(initializer: Initializer) -> dict[str, Any]:
    """Plain JSON that `from_config` turns back into an equal initializer.

    Args:
        initializer: any initializer of the catalogue.

    Returns:
        ``{"name": ..., argument: value, ...}`` with the arguments that are not defaults.

    Raises:
        TypeError: when the value is not an initializer of the catalogue.

    Example:
        >>> from jaxinit.initializers import he_normal
        >>> to_config(he_normal(batch_axis=0))
        {'name': 'he_normal', 'batch_axis': 0}
    """
    if (
        not isinstance(initializer, BaseInitializer)
        # A subclass that has no name of its own would be read back as its base.
        or "name" not in vars(type(initializer))
        or initializer.label not in _BY_NAME
    ):
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
    return _call(describe(config["name"]), **arguments)


def _encode(value: Any) -> Any:
    if isinstance(value, BaseInitializer):
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


# Factories of jax.nn.initializers whose closures bear the names of their arguments here.
_MAKERS = (
    "constant", "uniform", "normal", "truncated_normal", "variance_scaling", "orthogonal",
    "delta_orthogonal",
)  # fmt: skip


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
    if _is_initializer(function):
        return function
    # A wrapper such as Flax's with_partitioning bears the name of what it wraps.
    wraps = hasattr(function, "__wrapped__")
    if str(getattr(function, "__module__", "")).endswith("nn.initializers") and not wraps:
        maker, _, inner = getattr(function, "__qualname__", "").partition(".<locals>.")
        if maker in ("zeros", "ones") and not inner:
            return _BY_NAME[maker].factory  # pyright: ignore[reportReturnType]
        if maker in _MAKERS and inner == "init":
            closed_over = dict(inspect.getclosurevars(function).nonlocals)
            closed_over["dtype"] = inspect.signature(function).parameters["dtype"].default
            factory = _BY_NAME[maker].factory
            known = inspect.signature(factory).parameters
            return factory(**{k: v for k, v in closed_over.items() if k in known})
    raise ValueError(
        f"from_jax needs an initializer made by jax.nn.initializers, got {function!r}. "
        "Use the jaxinit factory with the law you want."
    )
