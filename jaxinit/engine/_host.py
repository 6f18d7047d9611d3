"""Key derivation on the host: the few words from which whole trees grow, without a device.

A model splits its key once per layer or folds a number into it, each time a few dozen integer
operations. Compiled into the program of a leaf they would make every leaf a program of its own
(another index here, another counter there); on the host they cost microseconds, and the leaf's
program starts from a finished key. Integers do not round, so the bits are JAX's own.

A value is a NumPy array; an array of keys is its words, with the words on the last axis.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from jaxinit.engine._threefry import PARITY, ROTATIONS, threefry2x32
from jaxinit.jaxpr._equations import is_integral, is_key, size_of

Rule = Callable[..., Any]

# Beyond this an array is no key and no counter, and belongs on the device.
MAX_SIZE = 2**16

_WORD = 0xFFFFFFFF


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


def _seed(seed: np.ndarray) -> np.ndarray:
    number = int(seed) & (2 ** (8 * seed.dtype.itemsize) - 1)
    return np.array([number >> 32, number & _WORD], np.uint32)


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


def _by_jax(equation: Any, implementation: Any) -> Rule:
    """Key derivation under an implementation that only JAX knows: a small program of its own."""
    makes_key_from_seed = equation.primitive.name == "random_seed"

    @jax.jit
    def derive(words: jax.Array, *others: jax.Array) -> jax.Array:
        first = words
        if not makes_key_from_seed:
            first = jax.random.wrap_key_data(words, impl=implementation)
        made = equation.primitive.bind(first, *others, **equation.params)
        return jax.random.key_data(made)

    return lambda *operands: np.asarray(derive(*operands))


def derivation(equation: Any) -> Rule:
    """How new keys come from old ones, or from a seed."""
    aval = equation.outvars[0].aval
    implementation = implementation_of(aval)
    if implementation != "threefry2x32":
        return _by_jax(equation, implementation)
    name, parameters = equation.primitive.name, equation.params
    if name == "random_seed":
        return _seed
    if name == "random_fold_in":
        return fold_in
    return lambda keys: split(keys, parameters["shape"])


def implementation_of(aval: Any) -> Any:
    """What ``jax.random.key_impl`` says of keys of this type."""
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


# Moves. Keys keep their words behind the axes that an equation speaks of.


def _slice(equation: Any) -> Rule:
    parameters = equation.params
    starts, limits = parameters["start_indices"], parameters["limit_indices"]
    strides = parameters["strides"] or (1,) * len(starts)
    index = tuple(slice(*bounds) for bounds in zip(starts, limits, strides, strict=True))
    return lambda x: x[index]


def _squeeze(equation: Any) -> Rule:
    dropped = equation.params["dimensions"]
    rank = len(equation.invars[0].aval.shape)
    index = tuple(0 if axis in dropped else slice(None) for axis in range(rank))
    return lambda x: x[index]


def _reshape(equation: Any) -> Rule:
    rank, shape = len(equation.invars[0].aval.shape), equation.params["new_sizes"]
    return lambda x: x.reshape((*shape, *x.shape[rank:]))


def _broadcast(equation: Any) -> Rule:
    shape, axes = equation.params["shape"], equation.params["broadcast_dimensions"]
    rank = len(equation.invars[0].aval.shape)

    def rule(x: np.ndarray, *_: Any) -> np.ndarray:
        words = x.shape[rank:]
        spread = [1] * len(shape)
        for axis, size in zip(axes, x.shape[:rank], strict=True):
            spread[axis] = size
        return np.broadcast_to(x.reshape((*spread, *words)), (*shape, *words))

    return rule


def _concatenate(equation: Any) -> Rule:
    axis = equation.params["dimension"]
    return lambda *operands: np.concatenate(operands, axis)


def _transpose(equation: Any) -> Rule:
    axes = tuple(equation.params["permutation"])
    return lambda x: x.transpose(*axes, *range(len(axes), x.ndim))


def _reverse(equation: Any) -> Rule:
    axes = equation.params["dimensions"]
    return lambda x: np.flip(x, axes)


def _unstack(equation: Any) -> Rule:
    axis = equation.params["axis"]
    count = len(equation.outvars)
    before = (slice(None),) * axis
    return lambda x: [x[(*before, index)] for index in range(count)]


def _split(equation: Any) -> Rule:
    axis, cuts = equation.params["axis"], np.cumsum(equation.params["sizes"])[:-1]
    return lambda x: np.split(x, cuts, axis)


def _stack(equation: Any) -> Rule:
    axis = equation.params["axis"]
    return lambda *operands: np.stack(operands, axis)


def _dynamic_slice(equation: Any) -> Rule:
    sizes = equation.params["slice_sizes"]
    shape = equation.invars[0].aval.shape

    def rule(x: np.ndarray, *starts: np.ndarray) -> np.ndarray:
        bounds = zip(starts, sizes, shape, strict=True)
        firsts = [min(max(int(start), 0), total - size) for start, size, total in bounds]
        return x[tuple(slice(f, f + size) for f, size in zip(firsts, sizes, strict=True))]

    return rule


def _gather(equation: Any) -> Rule:
    last = equation.invars[0].aval.shape[0] - 1
    return lambda x, indices: x[np.clip(indices[..., 0], 0, last)]


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


def _convert(equation: Any) -> Rule:
    dtype = np.dtype(equation.params["new_dtype"])
    return lambda x: x.astype(dtype)


def _iota(equation: Any) -> Rule:
    aval, dimension = equation.outvars[0].aval, equation.params["dimension"]
    spread = [-1 if axis == dimension else 1 for axis in range(len(aval.shape))]
    row = np.arange(aval.shape[dimension], dtype=aval.dtype).reshape(spread)
    return lambda *_: np.broadcast_to(row, aval.shape)


def _select(which: np.ndarray, *cases: np.ndarray) -> np.ndarray:
    words = cases[0].ndim - which.ndim if which.ndim else 0
    return np.choose(which.astype(np.int64).reshape((*which.shape, *(1,) * words)), cases)


def _same(function: Callable[..., Any]) -> Callable[[Any], Rule]:
    return lambda equation: function


_RULES: dict[str, Callable[[Any], Rule]] = {
    "random_seed": derivation,
    "random_fold_in": derivation,
    "random_split": derivation,
    "slice": _slice,
    "squeeze": _squeeze,
    "reshape": _reshape,
    "broadcast_in_dim": _broadcast,
    "concatenate": _concatenate,
    "transpose": _transpose,
    "rev": _reverse,
    "stack": _stack,
    "unstack": _unstack,
    "split": _split,
    "dynamic_slice": _dynamic_slice,
    "gather": _gather,
    "convert_element_type": _convert,
    "iota": _iota,
    "select_n": _same(_select),
    **dict.fromkeys(
        ("random_wrap", "random_unwrap", "random_clone", "copy", "copy_p", "stop_gradient"),
        _same(lambda x: x),
    ),
    "reshard": _same(lambda x, *_: x),
    "add": _same(np.add),
    "sub": _same(np.subtract),
    "mul": _same(np.multiply),
    "max": _same(np.maximum),
    "min": _same(np.minimum),
    "and": _same(np.bitwise_and),
    "or": _same(np.bitwise_or),
    "xor": _same(np.bitwise_xor),
    "not": _same(np.bitwise_not),
    "eq": _same(np.equal),
    "ne": _same(np.not_equal),
    "lt": _same(np.less),
    "le": _same(np.less_equal),
    "gt": _same(np.greater),
    "ge": _same(np.greater_equal),
}


_ARITHMETIC = frozenset("add sub mul max min and or xor not eq ne lt le gt ge".split())


def fits(aval: Any) -> bool:
    """Whether a value is of the kind and size that the host computes."""
    return is_integral(aval) and size_of(aval) <= MAX_SIZE


def can_compute(equation: Any) -> bool:
    """Whether the host has a rule for an equation, and it is as small as keys and counters are."""
    name = equation.primitive.name
    avals = [atom.aval for atom in (*equation.invars, *equation.outvars)]
    return (
        name in _RULES
        and not equation.effects
        and all(map(fits, avals))
        and not (name in _ARITHMETIC and any(map(is_key, avals)))
        and not (name == "gather" and not _picks_rows(equation))
    )


def rule_for(equation: Any) -> Rule:
    """How the host computes an equation: operands to its result, or to a list of several."""
    return _RULES[equation.primitive.name](equation)


def has_one_result(equation: Any) -> bool:
    """Whether a rule returns its result bare."""
    return equation.primitive.name not in ("unstack", "split")


def fetch(array: Any, aval: Any) -> np.ndarray:
    """An argument as the host sees it."""
    if is_key(aval):
        return np.asarray(jax.random.key_data(array))
    return np.asarray(array, aval.dtype)
