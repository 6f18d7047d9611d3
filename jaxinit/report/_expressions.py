"""Initializers written as text: ``he_normal``, ``normal(0.02)``, ``{"name": "normal"}``.

What `repr` prints can be typed back in. The text is parsed and interpreted, never evaluated: it can
name the catalogue, numbers, strings, lists and nothing else.
"""

from __future__ import annotations

import ast
import inspect
import json
import math
import operator
import re
from collections.abc import Callable, Mapping
from typing import Any

from jaxinit.initializers import Initializer, describe, get, names
from jaxinit.planning import LikeKernel, like_kernel

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
_ADVICE = 'Write for example he_normal, normal(0.02) or \'{"name": "normal", "stddev": 0.02}\'.'


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
        return get(_json(text))
    value = _Reader(text).value()
    if isinstance(value, str):
        raise ValueError(f"jaxinit needs an initializer, got the string {text}. {_ADVICE}")
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


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"this is no well-formed JSON config: {text!r}: {error}.") from None


def _is_rule(value: Any) -> bool:
    return isinstance(value, Initializer | LikeKernel)


class _Reader:
    """Interprets the syntax tree of one text."""

    def __init__(self, text: str) -> None:
        self.text = text
        try:
            self.tree = ast.parse(text.strip(), mode="eval").body
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            raise self._refused("it cannot be read") from None

    def value(self) -> Any:
        """What the text stands for."""
        try:
            return self._read(self.tree)
        except (ArithmeticError, RecursionError) as error:
            raise self._refused(str(error) or "it is nested too deep") from None

    def _refused(self, reason: str) -> ValueError:
        return ValueError(f"jaxinit cannot use {self.text!r}: {reason}. {_ADVICE}")

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
            factory: Any = like_kernel
        else:
            factory = describe(name).factory
            if isinstance(factory, Initializer):
                if positional:
                    raise TypeError(f"{name} takes no arguments but dtype, got {self.text!r}.")
                return get(name, **named)
        try:
            bound = inspect.signature(factory).bind(*positional, **named)
        except TypeError as error:
            signature = ", ".join(inspect.signature(factory).parameters)
            raise TypeError(f"{name}({signature}): {error}, got {self.text!r}.") from None
        return factory(*bound.args, **bound.kwargs)
