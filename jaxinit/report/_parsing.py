"""Text that a person types for initializers, dtypes, shapes and example inputs.

An initializer is typed as ``he_normal``, ``normal(0.02)`` or ``{"name": "normal"}``; its `repr` can
be typed too. The text is parsed and interpreted, never evaluated: it can name the catalogue,
numbers, strings and lists, and nothing else. Example inputs are typed as ``1x16:int32``,
``mask=1x16:bool`` or ``train=False``.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import json
import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxinit.initializers import Initializer, get, names
from jaxinit.planning import LikeKernel, as_numeric_dtype, like_kernel

_CONSTANTS = {"inf": math.inf, "nan": math.nan, "true": True, "false": False, "null": None}
# No power: 9**9**9 would keep the machine busy for good.
_BINARY: Mapping[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}
_UNARY: Mapping[type[ast.unaryop], Callable[[Any], Any]] = {
    ast.UAdd: operator.pos,
    ast.USub: operator.neg,
}
_FORMS = 'Write for example he_normal, normal(0.02) or \'{"name": "normal", "stddev": 0.02}\'.'
# 512 MiB as the float64 that the moments are taken in.
_MOST_ENTRIES = 2**26
_ARRAY = re.compile(r"(?P<shape>(\d+(x\d+)*)?)(:(?P<dtype>\w+))?", re.ASCII)
_NAMED = re.compile(r"(?P<name>[A-Za-z_]\w*)=(?P<value>.+)", re.ASCII | re.DOTALL)
_INPUT_FORMS = (
    "Write SHAPE:DTYPE such as 1x16:int32, or NAME=VALUE such as mask=1x16:bool, train=False."
)


# Initializers.


def parse_initializer(text: str, arguments: Mapping[str, Any] | None = None) -> Any:
    """The initializer that a text stands for.

    Args:
        text: a name of the catalogue, a call with literal arguments (other initializers among
            them), or a JSON config.
        arguments: further arguments of the factory; with a name only.

    Returns:
        An initializer, or what `jaxinit.like_kernel` returns.

    Raises:
        TypeError: when an argument is of the wrong kind, missing or unknown.
        ValueError: when the text is none of the three, or an argument has no law.

    Example:
        >>> parse_initializer("scaled(he_normal(), 1/2)")
        scaled(he_normal(), 0.5)
        >>> parse_initializer('{"name": "normal", "stddev": 0.02}')
        normal(0.02)
    """
    text = text.strip()
    if arguments:
        if not text.isidentifier():
            raise ValueError(
                f"jaxinit needs a plain name beside --arg, got {text!r}. "
                "Give all arguments in one place."
            )
        return get(text, **arguments)
    if text.startswith("{"):
        return get(_config(text))
    value = _Reader(text).value()
    if isinstance(value, str):
        raise ValueError(f"jaxinit needs an initializer, got the string {text}. {_FORMS}")
    return value if _is_rule(value) else get(value)


def parse_argument(text: str) -> tuple[str, Any]:
    """Name and value of ``NAME=VALUE``; a bare word that names nothing is a string.

    Raises:
        ValueError: when the text has another form.

    Example:
        >>> parse_argument("stddev=0.02"), parse_argument("mode=fan_out")
        (('stddev', 0.02), ('mode', 'fan_out'))
    """
    name, equals, value = text.partition("=")
    if not equals or not name.strip().isidentifier() or not value.strip():
        raise ValueError(f"--arg needs NAME=VALUE, got {text!r}. Write for example stddev=0.02.")
    value = value.strip()
    is_word = re.fullmatch(r"[A-Za-z_][\w.-]*", value) is not None
    if is_word and value not in {*_CONSTANTS, *names(), "True", "False", "None"}:
        return name.strip(), value
    return name.strip(), _Reader(value).value()


def parse_literal(text: str) -> Any:
    """The number, string, boolean, None or sequence of these that a text spells.

    Raises:
        ValueError: when it spells something else.

    Example:
        >>> parse_literal("False"), parse_literal("[1, 2.5]")
        (False, [1, 2.5])
    """
    value = _Reader(text).value()
    if _is_rule(value):
        raise ValueError(f"{text!r} is an initializer, where a plain value is needed.")
    return value


def _config(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"this is no well-formed JSON config: {text!r}: {error}.") from None


def _is_rule(value: Any) -> bool:
    return isinstance(value, Initializer | LikeKernel)


class _Reader:
    """Interprets the syntax tree of one text that stands for an initializer or a plain value."""

    def __init__(self, text: str) -> None:
        self.text = text
        try:
            self.tree = ast.parse(text.strip(), mode="eval").body
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            raise self._refused("it cannot be read") from None

    def value(self) -> Any:
        """The initializer, number, string or sequence that the text stands for."""
        try:
            return self._read(self.tree)
        except (ArithmeticError, RecursionError) as error:
            raise self._refused(str(error) or "it is nested too deep") from None

    def _refused(self, reason: str) -> ValueError:
        return ValueError(f"jaxinit cannot use {self.text!r}: {reason}. {_FORMS}")

    def _read(self, node: ast.AST) -> Any:
        match node:
            case ast.Constant(value=bool() | int() | float() | complex() | str() | None as value):
                return value
            case ast.Name(id=name):
                return _CONSTANTS[name] if name in _CONSTANTS else get(name)
            case ast.List(elts=items):
                return [self._read(item) for item in items]
            case ast.Tuple(elts=items):
                return tuple(self._read(item) for item in items)
            case ast.UnaryOp(op=op, operand=operand) if type(op) in _UNARY:
                return _UNARY[type(op)](self._number(operand))
            case ast.BinOp(left=left, op=op, right=right) if type(op) in _BINARY:
                return _BINARY[type(op)](self._number(left), self._number(right))
            case ast.Call(func=ast.Name(id=name), args=args, keywords=keywords):
                return self._call(name, args, keywords)
        raise self._refused(f"{ast.unparse(node)!r} is neither a call of the catalogue nor a value")

    def _number(self, node: ast.AST) -> int | float | complex:
        value = self._read(node)
        if isinstance(value, bool) or not isinstance(value, int | float | complex):
            raise self._refused(f"{ast.unparse(node)!r} is no number")
        return value

    def _call(self, name: str, args: list[ast.expr], keywords: list[ast.keyword]) -> Any:
        positional = [self._read(arg) for arg in args]
        named = {word.arg: self._read(word.value) for word in keywords if word.arg is not None}
        if len(named) < len(keywords):
            raise self._refused("** has no meaning here")
        if name == "float" and len(positional) == 1 and not named:
            return float(positional[0])
        if name == "like_kernel":
            return like_kernel(*positional, **named)
        return get(name, *positional, **named)


# Dtypes and shapes.


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
    """Allows 64-bit types while a dtype needs them; without it JAX silently takes 32 bits."""
    is_wide = dtype is not None and jax.dtypes.canonicalize_dtype(dtype) != dtype
    return jax.enable_x64(True) if is_wide else contextlib.nullcontext()


def parse_shape(sizes: Sequence[str]) -> tuple[int, ...]:
    """A shape from its sizes.

    Raises:
        ValueError: when a size is no whole number, or the array would not fit.

    Example:
        >>> parse_shape(["3x3", "64"])
        (3, 3, 64)
    """
    texts = [part for text in sizes for part in text.lower().split("x")]
    if not all(text.isascii() and text.isdigit() for text in texts):
        raise ValueError(
            f"SHAPE needs whole numbers that are not negative, got {' '.join(sizes)!r}. "
            "Write for example 512 256, or 512x256."
        )
    shape = tuple(int(text) for text in texts)
    if math.prod(shape) > _MOST_ENTRIES or max(shape) >= 2**31:
        raise ValueError(
            f"SHAPE needs at most {_MOST_ENTRIES:,} entries to be shown, got {' x '.join(texts)}. "
            "The law is that of a smaller array with the same fans."
        )
    return shape


# Example inputs.


@dataclasses.dataclass(frozen=True)
class Inputs:
    """Arguments that a model is traced with: shapes, and plain values such as flags.

    Attributes:
        positional: arguments in order.
        named: keyword arguments.
    """

    positional: tuple[Any, ...] = ()
    named: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.positional or self.named)

    def __str__(self) -> str:
        positional = [_input_text(value) for value in self.positional]
        named = [f"{name}={_input_text(value)}" for name, value in self.named.items()]
        return ", ".join(positional + named)


def _input_text(value: Any) -> str:
    leaves = jax.tree.leaves(value)
    if len(leaves) == 1 and leaves[0] is value and hasattr(value, "shape"):
        return f"{'x'.join(map(str, value.shape))}:{value.dtype}"
    return repr(value)


def parse_inputs(texts: Sequence[str]) -> Inputs:
    """Inputs from the texts of ``--input``, in order.

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
        raise ValueError(f"--input cannot be read: {text!r}. {_INPUT_FORMS}")
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
        raise ValueError(f"--input cannot be read: {text!r}. {_INPUT_FORMS}") from None


def offered_inputs(offer: Any) -> Inputs:
    """Inputs from the value that a model's ``example_inputs()`` returned.

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
