"""Example inputs written as text: ``1x16:int32``, ``mask=1x16:bool``, ``train=False``."""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxinit.planning import as_numeric_dtype
from jaxinit.report._expressions import parse_literal

_ARRAY = re.compile(r"(?P<shape>(\d+(x\d+)*)?)(:(?P<dtype>\w+))?", re.ASCII)
_NAMED = re.compile(r"(?P<name>[A-Za-z_]\w*)=(?P<value>.+)", re.ASCII | re.DOTALL)
_ADVICE = "Write SHAPE:DTYPE such as 1x16:int32, or NAME=VALUE such as mask=1x16:bool, train=False."


@dataclasses.dataclass(frozen=True)
class Inputs:
    """What a model is called with when it is traced: shapes, and plain values such as flags.

    Attributes:
        positional: arguments in order.
        named: keyword arguments.
    """

    positional: tuple[Any, ...] = ()
    named: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.positional or self.named)

    def __str__(self) -> str:
        spelled = [_spell(value) for value in self.positional]
        return ", ".join(spelled + [f"{name}={_spell(v)}" for name, v in self.named.items()])


def _spell(value: Any) -> str:
    leaves = jax.tree.leaves(value)
    if len(leaves) == 1 and leaves[0] is value and hasattr(value, "shape"):
        return f"{'x'.join(map(str, value.shape))}:{value.dtype}"
    return repr(value)


def parse_dtype(text: str, option: str = "--dtype") -> Any:
    """A numeric dtype by its name.

    Raises:
        ValueError: when JAX knows no such dtype, or it holds no numbers.
    """
    try:
        return as_numeric_dtype(option, jnp.dtype(text))
    except TypeError:
        raise ValueError(
            f"{option} needs a numeric dtype that JAX knows, got {text!r}. "
            "Use for example float32, bfloat16, float16 or int32."
        ) from None


def types_of(dtype: Any) -> contextlib.AbstractContextManager[Any]:
    """64-bit types while a dtype needs them; JAX would quietly take 32 bits otherwise."""
    is_wide = dtype is not None and jax.dtypes.canonicalize_dtype(dtype) != dtype
    return jax.enable_x64(True) if is_wide else contextlib.nullcontext()


def parse_inputs(texts: Sequence[str]) -> Inputs:
    """Inputs from the texts that were given, in order.

    Raises:
        ValueError: when a text has neither form, a dtype is unknown or a name is given twice.

    Example:
        >>> str(parse_inputs(["1x16:int32", "train=False"]))
        '1x16:int32, train=False'
    """
    positional: list[Any] = []
    named: dict[str, Any] = {}
    for text in texts:
        match = _NAMED.fullmatch(text.strip())
        if match is None:
            positional.append(_array(text.strip()))
        elif match["name"] in named:
            raise ValueError(f"--input needs every name once, got {match['name']!r} twice.")
        else:
            named[match["name"]] = _value(match["value"].strip())
    return Inputs(tuple(positional), named)


def _array(text: str) -> jax.ShapeDtypeStruct:
    match = _ARRAY.fullmatch(text)
    if match is None or not text:
        raise ValueError(f"--input cannot be read: {text!r}. {_ADVICE}")
    shape = tuple(int(size) for size in match["shape"].split("x") if size)
    if any(size >= 2**31 for size in shape):
        raise ValueError(f"--input needs sizes below 2**31, got {text!r}.")
    return jax.ShapeDtypeStruct(shape, parse_dtype(match["dtype"] or "float32", "--input"))


def _value(text: str) -> Any:
    if ":" in text or re.fullmatch(r"\d+(x\d+)+", text):
        return _array(text)
    try:
        return parse_literal(text)
    except (ValueError, TypeError):
        raise ValueError(f"--input cannot be read: {text!r}. {_ADVICE}") from None


def offered_inputs(offer: Any) -> Inputs:
    """Inputs from what a model's ``example_inputs()`` returned.

    Args:
        offer: a sequence of arrays or `jax.ShapeDtypeStruct`, one of them alone, or a mapping of
            keyword arguments.

    Raises:
        TypeError: when it is something else.
    """
    if isinstance(offer, Mapping) and all(isinstance(name, str) for name in offer):
        return Inputs((), dict(offer))
    if hasattr(offer, "shape") and hasattr(offer, "dtype"):
        return Inputs((offer,))
    if isinstance(offer, Sequence) and not isinstance(offer, str | bytes):
        return Inputs(tuple(offer))
    raise TypeError(
        f"example_inputs() needs to return a tuple of arrays or jax.ShapeDtypeStruct, or a dict of "
        f"keyword arguments, got {type(offer).__name__}."
    )
