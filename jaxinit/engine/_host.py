"""Keys and counters computed on the host, so that the program of a leaf starts from finished keys.

A model splits its key once per layer or folds a number into it, each time a few dozen integer
operations. Compiled into the program of a leaf they would make every leaf a program of its own
(another index here, another counter there); on the host they cost microseconds. Integers do not
round, so the bits are JAX's own.

`OnHost` is a domain of the interpreter whose values are NumPy arrays; the value of an array of keys
is its words, with the words on the last axis. `Schedule` orders equations by depth and hashes equal
derivations of one depth at once, on the host and, for `jit_init` inside another trace, in JAX.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from jaxinit.engine._threefry import PARITY, ROTATIONS, threefry2x32
from jaxinit.jaxpr import (
    Atom,
    Interpreter,
    Node,
    OnArrays,
    Rules,
    is_integral,
    is_key,
    on_numpy,
    size_of,
)

# From an equation and its operands to its result, or to a list of several.
Rule: TypeAlias = Callable[..., Any]
Values: TypeAlias = dict[Any, Any]

# A larger array is neither a key nor a counter, and belongs on the device.
MAX_SIZE = 2**16

_WORD = 0xFFFFFFFF
_DERIVATIONS = ("random_seed", "random_fold_in", "random_split")


def _threefry_of_one(first: int, second: int, x: int, y: int) -> tuple[int, int]:
    """Threefry on Python integers: 12 microseconds, where NumPy takes 90 for one pair."""
    schedule = (first, second, first ^ second ^ PARITY)
    x, y = (x + first) & _WORD, (y + second) & _WORD
    for group in range(5):
        for rotation in ROTATIONS[group % 2]:
            x = (x + y) & _WORD
            y = (((y << rotation) & _WORD) | (y >> (32 - rotation))) ^ x
        x = (x + schedule[(group + 1) % 3]) & _WORD
        y = (y + schedule[(group + 2) % 3] + group + 1) & _WORD
    return x, y


def hash_pairs(keys: np.ndarray, high: np.ndarray, low: np.ndarray) -> np.ndarray:
    """Threefry of counters ``(high, low)`` under keys, broadcast; words on the last axis."""
    if high.size == low.size == 1 and keys.size == 2:
        words = _threefry_of_one(*map(int, (*keys.ravel(), high.item(), low.item())))
        shape = np.broadcast_shapes(keys.shape[:-1], high.shape, low.shape)
        return np.array(words, np.uint32).reshape((*shape, 2))
    return np.stack(threefry2x32((keys[..., 0], keys[..., 1]), (high, low)), axis=-1)


def fold_in(keys: np.ndarray, data: np.ndarray) -> np.ndarray:
    """`jax.random.fold_in` on the words of threefry keys."""
    data = data.astype(np.uint32)
    return hash_pairs(keys, np.zeros_like(data), data)


def split(keys: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """`jax.random.split` on the words of threefry keys, under ``jax_threefry_partitionable``."""
    index = np.arange(math.prod(shape), dtype=np.uint64).reshape(shape)
    high, low = (index >> np.uint64(32)).astype(np.uint32), index.astype(np.uint32)
    keys = keys.reshape((*keys.shape[:-1], *(1 for _ in shape), 2))
    return hash_pairs(keys, high, low)


def implementation_of(aval: Any) -> Any:
    """The result of ``jax.random.key_impl`` for keys of this type."""
    return _facts(aval.dtype)[0]


def words_of(aval: Any) -> tuple[int, ...]:
    """Shape of the words behind one key of this type."""
    return _facts(aval.dtype)[1]


@functools.lru_cache(maxsize=64)
def _facts(dtype: Any) -> tuple[Any, tuple[int, ...]]:
    found: list[Any] = []

    def look(key: jax.Array) -> jax.Array:
        found.append(jax.random.key_impl(key))
        return jax.random.key_data(key)

    words = jax.eval_shape(look, jax.ShapeDtypeStruct((), dtype))
    return found[0], words.shape


# Rules. The axes that an equation names are those of keys; the words of a key lie behind them.
_rules: Rules[Rule] = Rules("keys on the host")


@_rules(*_DERIVATIONS)
def _derive(equation: Any, *operands: np.ndarray) -> np.ndarray:
    """New keys from old ones, or from a seed."""
    name, params = equation.primitive.name, equation.params
    implementation = implementation_of(equation.outvars[0].aval)
    if implementation != "threefry2x32":
        derive = _derivation(equation.primitive, implementation, tuple(params.items()))
        return np.asarray(derive(*operands))
    if name == "random_seed":
        (seed,) = operands
        number = int(seed) & (2 ** (8 * seed.dtype.itemsize) - 1)
        return np.array([number >> 32, number & _WORD], np.uint32)
    if name == "random_fold_in":
        keys, numbers = operands
        return fold_in(keys, numbers)
    (keys,) = operands
    return split(keys, params["shape"])


@functools.lru_cache(maxsize=64)
def _derivation(primitive: Any, implementation: Any, params: tuple[tuple[str, Any], ...]) -> Rule:
    """A small compiled program for an implementation of keys that only JAX knows."""

    @jax.jit
    def derive(words: jax.Array, *others: jax.Array) -> jax.Array:
        first = words
        if primitive.name != "random_seed":
            first = jax.random.wrap_key_data(words, impl=implementation)
        return jax.random.key_data(primitive.bind(first, *others, **dict(params)))

    return derive


@_rules("add", "sub", "mul", "max", "min", "and", "or", "xor", "not")
@_rules("eq", "ne", "lt", "le", "gt", "ge")
def _compute(equation: Any, *operands: np.ndarray) -> Any:
    return on_numpy(equation.primitive.name, equation.params, operands)


@_rules("random_wrap", "random_unwrap", "random_clone")
@_rules("copy", "copy_p", "reshard", "stop_gradient")
def _copy(equation: Any, x: np.ndarray, *_: Any) -> np.ndarray:
    return x


@_rules("slice")
def _slice(equation: Any, x: np.ndarray) -> np.ndarray:
    starts, limits = equation.params["start_indices"], equation.params["limit_indices"]
    strides = equation.params["strides"] or (1,) * len(starts)
    return x[tuple(map(slice, starts, limits, strides))]


@_rules("reshape", "squeeze")
def _reshape(equation: Any, x: np.ndarray) -> np.ndarray:
    rank = len(equation.invars[0].aval.shape)
    return x.reshape((*equation.outvars[0].aval.shape, *x.shape[rank:]))


@_rules("broadcast_in_dim")
def _broadcast(equation: Any, x: np.ndarray, *_: Any) -> np.ndarray:
    shape, axes = equation.params["shape"], equation.params["broadcast_dimensions"]
    rank = len(equation.invars[0].aval.shape)
    spread, words = [1] * len(shape), x.shape[rank:]
    for axis, size in zip(axes, x.shape[:rank], strict=True):
        spread[axis] = size
    return np.broadcast_to(x.reshape((*spread, *words)), (*shape, *words))


@_rules("concatenate")
def _concatenate(equation: Any, *operands: np.ndarray) -> np.ndarray:
    return np.concatenate(operands, equation.params["dimension"])


@_rules("transpose")
def _transpose(equation: Any, x: np.ndarray) -> np.ndarray:
    axes = equation.params["permutation"]
    return x.transpose(*axes, *range(len(axes), x.ndim))


@_rules("rev")
def _reverse(equation: Any, x: np.ndarray) -> np.ndarray:
    return np.flip(x, equation.params["dimensions"])


@_rules("stack")
def _stack(equation: Any, *operands: np.ndarray) -> np.ndarray:
    return np.stack(operands, equation.params["axis"])


@_rules("unstack")
def _unstack(equation: Any, x: np.ndarray) -> list[np.ndarray]:
    return list(np.moveaxis(x, equation.params["axis"], 0))


@_rules("split")
def _split(equation: Any, x: np.ndarray) -> list[np.ndarray]:
    return np.split(x, np.cumsum(equation.params["sizes"])[:-1], equation.params["axis"])


@_rules("dynamic_slice")
def _dynamic_slice(equation: Any, x: np.ndarray, *starts: np.ndarray) -> np.ndarray:
    sizes, shape = equation.params["slice_sizes"], equation.invars[0].aval.shape
    bounds = zip(starts, sizes, shape, strict=True)
    firsts = [min(max(int(start), 0), total - size) for start, size, total in bounds]
    return x[tuple(slice(f, f + size) for f, size in zip(firsts, sizes, strict=True))]


@_rules("gather")
def _gather(equation: Any, x: np.ndarray, indices: np.ndarray) -> np.ndarray:
    return x[np.clip(indices[..., 0], 0, equation.invars[0].aval.shape[0] - 1)]


def _picks_rows(equation: Any) -> bool:
    """Whether a gather is ``keys[indices]``, within bounds."""
    numbers, mode = equation.params["dimension_numbers"], equation.params["mode"]
    modes = jax.lax.GatherScatterMode
    return (
        tuple(numbers.collapsed_slice_dims) == tuple(numbers.start_index_map) == (0,)
        and not numbers.offset_dims
        and not numbers.operand_batching_dims
        and len(equation.invars[0].aval.shape) == 1
        and mode in (modes.PROMISE_IN_BOUNDS, modes.CLIP)
    )


@_rules("convert_element_type")
def _convert(equation: Any, x: np.ndarray) -> np.ndarray:
    return x.astype(np.dtype(equation.params["new_dtype"]))


@_rules("iota")
def _iota(equation: Any, *_: Any) -> np.ndarray:
    aval, dimension = equation.outvars[0].aval, equation.params["dimension"]
    spread = [-1 if axis == dimension else 1 for axis in range(len(aval.shape))]
    row = np.arange(aval.shape[dimension], dtype=aval.dtype).reshape(spread)
    return np.broadcast_to(row, aval.shape)


@_rules("select_n")
def _select(equation: Any, which: np.ndarray, *cases: np.ndarray) -> np.ndarray:
    words = cases[0].ndim - which.ndim if which.ndim else 0
    return np.choose(which.astype(np.int64).reshape((*which.shape, *(1,) * words)), cases)


def fits(aval: Any) -> bool:
    """Whether a value has a type and a size that the host computes."""
    return is_integral(aval) and size_of(aval) <= MAX_SIZE


def can_compute(equation: Any) -> bool:
    """Whether the host has a rule for an equation, and it is as small as keys and counters are."""
    name = equation.primitive.name
    avals = [atom.aval for atom in (*equation.invars, *equation.outvars)]
    return (
        name in _rules
        and not equation.effects
        and all(map(fits, avals))
        and not (_rules.get(name) is _compute and any(map(is_key, avals)))
        and not (name == "gather" and not _picks_rows(equation))
    )


def fetch(array: Any, aval: Any) -> np.ndarray:
    """The value of an argument on the host."""
    if is_key(aval):
        return np.asarray(jax.random.key_data(array))
    return np.asarray(array, aval.dtype)


class OnHost(Interpreter[Any]):
    """Runs equations in NumPy."""

    def read(self, atom: Atom, values: Values) -> Any:
        """A value, or the number of a literal in the dtype of the literal."""
        return values[atom] if isinstance(atom, int) else np.asarray(atom.val, atom.aval.dtype)

    def equation(self, node: Node, operands: list[Any]) -> Sequence[Any]:
        """Computes an equation for which `can_compute` is true."""
        rule = _rules.get(node.primitive)
        assert rule is not None
        made = rule(node.equation, *operands)
        return made if node.equation.primitive.multiple_results else [made]

    def derive_together(self, equation: Any, columns: Sequence[Sequence[Any]]) -> Any:
        """Results of equal derivations of threefry keys, from a column for each operand."""
        keys, *numbers = map(np.stack, columns)
        return fold_in(keys, *numbers) if numbers else split(keys, equation.params["shape"])


class InTrace(OnArrays):
    """Runs the same equations in JAX, on tracers and typed keys."""

    def derive_together(self, equation: Any, columns: Sequence[Sequence[Any]]) -> Any:
        """Results of equal derivations, from a column for each operand."""
        with equation.ctx.manager:
            derive = jax.vmap(lambda *row: equation.primitive.bind(*row, **equation.params))
            return derive(*map(jnp.stack, columns))


class Schedule:
    """What the host computes for one call, ordered by depth.

    A Linen model folds every path into one root: one call of NumPy for all layers. Inside another
    trace, where a thousand hashes one by one would be a thousand loops to compile, it is one loop.

    Args:
        nodes: equations for the host, in an order that can be run.
    """

    def __init__(self, nodes: Sequence[Node]) -> None:
        depths: dict[int, int] = {}
        steps: dict[tuple[Any, ...], list[Node]] = {}
        for index, node in enumerate(nodes):
            sources = [depths.get(atom, 0) for atom in node.inputs if isinstance(atom, int)]
            depth = 1 + max(sources, default=0)
            depths.update(dict.fromkeys(node.outputs, depth))
            steps.setdefault((depth, *_likeness(node.equation, index)), []).append(node)
        self.steps = [step for _, step in sorted(steps.items(), key=lambda item: item[0][0])]

    def run(self, values: Values, domain: OnHost | InTrace) -> None:
        """Computes every node, from the values of its inputs into those of its outputs."""
        for step in self.steps:
            if len(step) == 1:
                domain.run_nodes(step, values)
                continue
            rows = [[domain.read(atom, values) for atom in node.inputs] for node in step]
            made = domain.derive_together(step[0].equation, list(zip(*rows, strict=True)))
            values.update((node.outputs[0], made[index]) for index, node in enumerate(step))


def _likeness(equation: Any, index: int) -> tuple[Any, ...]:
    """Equal for derivations that one hash can serve; the index, and so unique, for all others."""
    name = equation.primitive.name
    if name in ("random_fold_in", "random_split"):
        aval = equation.invars[0].aval
        if not aval.shape and implementation_of(aval) == "threefry2x32":
            return (name, equation.params.get("shape"), hash(equation.ctx))
    return (index,)
