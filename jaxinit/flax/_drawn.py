"""What a program draws, from its jaxpr: every entry of a leaf as a function of its random bits.

`drawn` runs a graph without drawing: an array whose entries are one number is that number, and one
whose entries are the same function, each of its own word of random bits, is a table of that
function over evenly spaced words. From such a table follows the law, and from the law an
initializer. All else, such as an orthogonal matrix, stays unknown.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxinit.initializers import (
    Initializer,
    constant,
    glorot_normal,
    glorot_uniform,
    he_normal,
    he_uniform,
    lecun_normal,
    lecun_uniform,
    normal,
    ones,
    truncated_normal,
    uniform,
    zeros,
)
from jaxinit.jaxpr import (
    Class,
    Cond,
    Graph,
    Interpreter,
    Node,
    Scan,
    While,
    bind,
    is_key,
    is_of,
    row_of,
    trace,
)
from jaxinit.planning import ParamSpec, over_layers, with_roles

# Words at which the function of an entry is looked at.
_WORDS = 2048
_RECIPES = (
    lecun_normal(), lecun_uniform(), glorot_normal(), glorot_uniform(), he_normal(), he_uniform(),
)  # fmt: skip


@dataclasses.dataclass(frozen=True, eq=False)
class Known:
    """What is known of an array.

    Attributes:
        entry: the number that all entries are, or a table of the function that each is of a word;
            None where neither is known.
        words: which random words, in which order; None for a number.
        keyed: whether it depends on the key.
        copied: whether some of its entries are copies, so that keys made of it draw the same.
    """

    entry: np.ndarray | None
    words: int | None = None
    keyed: bool = False
    copied: bool = False

    def initializer(self, spec: ParamSpec) -> Initializer | None:
        """What draws a leaf like this, None where that is not known."""
        if self.entry is None or 0 in spec.shape:
            return None
        if self.words is None:
            return as_constant(self.entry)
        if not jnp.issubdtype(self.entry.dtype, jnp.floating):
            return None
        return _random(np.sort(self.entry.astype(float)), spec)


@dataclasses.dataclass(frozen=True)
class OneLeaf:
    """One leaf of all that a model draws, as a function ``(key, shape, dtype)``.

    Attributes:
        name: how a plan spells it.
        draw: from a key to all leaves, by path.
        path: of the leaf.
    """

    name: str
    draw: Callable[[Any], Mapping[str, Any]]
    path: str

    @property
    def __name__(self) -> str:
        return self.name

    def __call__(self, key: Any, shape: Any, dtype: Any) -> Any:
        return self.draw(key)[self.path]


def drawn(graph: Graph, tables: bool = True) -> list[Known]:
    """What is known of the results of a graph whose inputs are keys.

    Args:
        graph: the program.
        tables: whether functions of random words are looked at; without, only numbers and what
            depends on the key are known, which is quick.
    """
    operands = [Known(None, keyed=True) for _ in graph.inputs]
    with jax.ensure_compile_time_eval():
        return _Entries(tables).run(graph, operands)


def without_key(init: Callable[[Any], dict[str, Any]]) -> tuple[str, ...]:
    """Names of arrays of two axes or more that are the same for every key, single numbers aside.

    Args:
        init: from a key to arrays by name.
    """
    graph, shapes = trace(init, jax.random.key(0))
    known = zip(sorted(shapes), drawn(graph, tables=False), strict=True)
    return tuple(
        name
        for name, array in known
        if not array.keyed and array.entry is None and len(shapes[name].shape) > 1
    )


class _Entries(Interpreter[Known]):
    """Runs a graph on what is known of each array."""

    count = 0

    def __init__(self, tables: bool) -> None:
        self.tables = tables

    def constant(self, value: Any) -> Known:
        """The number that all entries are, where they are one."""
        if not hasattr(value, "dtype") or not is_key(value):
            array = np.asarray(value)
            if array.size and (array == array.flat[0]).all():
                return Known(array.reshape(-1)[0])
        return Known(None)

    def equation(self, node: Node, operands: list[Known]) -> Sequence[Known]:
        """Looks at the function of an entry at all words again."""
        if node.primitive == "random_bits" and self.tables and not operands[0].copied:
            dtype = np.dtype(f"uint{node.params['bit_width']}")
            words = (np.arange(_WORDS) + 0.5) / _WORDS * 2.0 ** (8 * dtype.itemsize)
            return [Known(words.astype(dtype), self._new(), operands[0].keyed)]
        if len(operands) == 1 and _moves(node):
            return self._moved(node, operands[0])
        entries = [operand.entry for operand in operands]
        words = {operand.words for operand in operands} - {None}
        is_entrywise = is_of(node.primitive, Class.ELEMENTWISE) or _casts(node)
        if is_entrywise and len(words) < 2 and not any(entry is None for entry in entries):
            shape = (_WORDS,) if words else ()
            tables = [jnp.broadcast_to(jnp.asarray(entry), shape) for entry in entries]
            (result,) = bind(node.equation, tables)
            return [Known(np.asarray(result), *words, keyed=_keyed(operands))]
        return self._unknown(node, operands)

    def _new(self) -> int:
        self.count += 1
        return self.count

    def _moved(self, node: Node, operand: Known) -> Sequence[Known]:
        """Entries at other places: other words, unless their order stays; copies are no draw."""
        if operand.entry is not None and operand.words is None:
            return [operand] * len(node.outputs)
        (before,), after = node.operand_avals, [atom.aval for atom in node.equation.outvars]
        if any(aval.size > before.size for aval in after):
            return [Known(None, keyed=operand.keyed, copied=True)] * len(after)
        is_elsewhere = row_of(node.primitive).cuts or node.primitive == "transpose"
        if operand.words is None or not is_elsewhere:
            return [operand] * len(after)
        return [dataclasses.replace(operand, words=self._new()) for _ in after]

    def scan(self, loop: Scan[Known]) -> Sequence[Known]:
        """Nothing is known of what comes out."""
        return self._unknown(loop.node, [*loop.carries, *loop.scanned, Known(None, keyed=True)])

    def while_loop(self, loop: While[Known]) -> Sequence[Known]:
        """Nothing is known of what comes out."""
        return self._unknown(loop.node, loop.operands)

    def cond(self, choice: Cond[Known]) -> Sequence[Known]:
        """Nothing is known of what comes out."""
        return self._unknown(choice.node, choice.operands)

    def _unknown(self, node: Node, operands: list[Known]) -> Sequence[Known]:
        copied = any(operand.copied for operand in operands)
        return [Known(None, keyed=_keyed(operands), copied=copied)] * len(node.outputs)


def _keyed(operands: Sequence[Known]) -> bool:
    return any(operand.keyed for operand in operands)


def _casts(node: Node) -> bool:
    return node.primitive in ("convert_element_type", "bitcast_convert_type")


def _moves(node: Node) -> bool:
    """Whether entries go elsewhere and stay what they are."""
    return is_of(node.primitive, Class.REARRANGES) and not _casts(node)


def as_constant(value: np.ndarray) -> Initializer:
    """The initializer of an array that is one number."""
    number = value.item()
    if number in (0, 1):
        return ones if number else zeros
    # The shortest decimal that rounds to the same value: 0.01, not 0.009999999776482582.
    is_float = jnp.issubdtype(value.dtype, jnp.floating)
    return constant(float(str(value)) if is_float else number)


def _random(table: np.ndarray, spec: ParamSpec) -> Initializer | None:
    """The initializer whose draws are distributed as a table, sorted, says."""
    # Narrow floats are drawn as they are: their words, and so the tails, are coarse.
    tolerance = 1e-4 if spec.dtype.itemsize >= 4 else 0.02
    for make, quantiles in _standard():
        mean = table.mean()
        factor = float((table - mean) @ quantiles / (quantiles @ quantiles))
        off = np.sqrt(np.mean((table - mean - factor * quantiles) ** 2))
        if not off <= tolerance * factor:
            continue
        # A mean below what rounding leaves of it is none.
        mean = 0.0 if abs(mean) < tolerance * factor else float(f"{mean:.5g}")
        recipe = _recipe(make(factor, mean), spec, tolerance)
        return recipe or over_layers(make(float(f"{factor:.5g}"), mean), spec)
    return None


@functools.cache
def _standard() -> list[tuple[Any, np.ndarray]]:
    """Families of laws with mean 0, and their standard quantiles."""
    middles = (np.arange(_WORDS) + 0.5) / _WORDS
    families = [
        (normal(1.0), lambda factor, mean: normal(factor, mean=mean)),
        (truncated_normal(1.0), lambda factor, mean: truncated_normal(factor, mean=mean)),
        (
            uniform(minval=-1.0, maxval=1.0),
            lambda factor, mean: uniform(minval=mean - factor, maxval=mean + factor),
        ),
    ]
    return [(make, standard.law(()).quantile(middles)) for standard, make in families]


def _recipe(found: Initializer, spec: ParamSpec, tolerance: float) -> Initializer | None:
    """The one recipe that has the law which was found, None where none or several have it."""
    if spec.axes is None:
        return None
    law, fits = found.law((2,)), []
    for recipe in _RECIPES:
        known = over_layers(with_roles(recipe, spec), spec)
        theirs = known.law(spec.shape, spec.dtype)
        both = [law.variance, law.kurtosis], [theirs.variance, theirs.kurtosis]
        close = np.isclose(*both, rtol=3 * tolerance)
        if close.all() and law.mean == theirs.mean:
            fits.append(known)
    return fits[0] if len(fits) == 1 else None
