"""The random bits of ``jax.random``, drawn several times faster on CPU.

JAX's default generator, Threefry-2x32, computes element ``i`` of an array from the key and the
number ``i`` alone. On CPU, JAX runs its 20 rounds as a loop over whole arrays, so that every round
reads and writes them, through temporaries of three times the result. Here the rounds are written
out: XLA then fuses counters, bits and whatever consumes the bits into one loop over the result,
split between the cores, without a temporary. `fast_key` turns a key into one that draws so.

Bits, and all that integers make of them, are the same everywhere: splits, folds, permutations,
every shape, batch of keys and sharding. A float law is what XLA compiles from the bits, and since
jaxlib 0.12 that depends on the loop around it, in JAX itself: ``normal(key, (600, 4))`` and
``normal(key, (2400,))`` differ by an ulp in 3 % of their entries, because LLVM unrolls short loops
and then settles anew which products and sums become one fused operation. Arrays with a short last
axis are therefore left to JAX's own program, and `are_exact` tells of traced equations whether fast
bits leave them the same to the last bit.
"""

from __future__ import annotations

import functools
import math
import pathlib
from collections.abc import Hashable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from jax.extend.random import define_prng_impl, threefry_prng_impl

from jaxinit.jaxpr import every_equation, inner_jaxprs

ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
PARITY = 0x1BD11BDA

# A last axis shorter than this is left to JAX. Measured with jaxlib 0.12.0: fused `normal` and
# `truncated_normal` differ from JAX's on axes up to 5 long, laws with one logarithm up to 8.
# Little is lost: XLA draws such arrays with scalar code, at 30 to 50 ns per normal either way.
_NARROW = 16

# Primitives whose float results, on wide arrays, do not depend on the loop they are compiled into:
# those of jax.random's uniform, normal, truncated normal and Bernoulli laws, and of what scales and
# shifts them. Established bit for bit over shapes and vector widths with jaxlib 0.10.2 and 0.12.0.
_EXACT = frozenset(
    "add mul sub div neg max min clamp abs sign sqrt erf_inv select_n bitcast_convert_type "
    "convert_element_type broadcast_in_dim reshape squeeze expand_dims copy reshard "
    "sharding_constraint".split()
)
_WIDE_VECTORS = ("xla_cpu_prefer_vector_width", "512")
_CALLS = frozenset("jit pjit closed_call custom_jvp_call".split())


def threefry2x32(key: tuple[Any, Any], counter: tuple[Any, Any]) -> tuple[jax.Array, jax.Array]:
    """The Threefry hash of 64-bit counters under a 64-bit key, both as pairs of uint32 words.

    Args:
        key: high and low word of the key, scalars.
        counter: high and low word of the counters, arrays or scalars that broadcast.

    Returns:
        Two words for each counter.

    References:
        Salmon et al., *Parallel random numbers: as easy as 1, 2, 3*, 2011, section 3.3.
    """
    schedule = (*key, key[0] ^ key[1] ^ np.uint32(PARITY))
    x, y = counter[0] + key[0], counter[1] + key[1]
    for group in range(5):
        for distance in ROTATIONS[group % 2]:
            x = x + y
            y = x ^ ((y << np.uint32(distance)) | (y >> np.uint32(32 - distance)))
        x = x + schedule[(group + 1) % 3]
        y = y + (schedule[(group + 2) % 3] + np.uint32(group + 1))
    return x, y


def counters(shape: tuple[int, ...]) -> tuple[jax.Array | np.uint32, jax.Array]:
    """Row-major number of every element of an array, as high and low uint32 word.

    The high word is a scalar zero where 32 bits are enough. Built from one iota for each axis and
    never by a reshape: from this, XLA's partitioner gives each device the numbers of its own shard
    without communication.
    """
    size = math.prod(shape)
    strides = [math.prod(shape[axis + 1 :]) if size else 0 for axis in range(len(shape))]
    if size <= 2**32:
        low = lax.full(shape, 0, np.uint32)
        for axis, length in enumerate(shape):
            if length > 1:
                low += lax.broadcasted_iota(np.uint32, shape, axis) * np.uint32(strides[axis])
        return np.uint32(0), low
    # 64-bit types within these lines only, whatever jax_enable_x64 says: what leaves is 32 bits
    # wide.
    with jax.enable_x64(True):
        number = lax.full(shape, 0, np.uint64)
        for axis in range(len(shape)):
            number += lax.broadcasted_iota(np.uint64, shape, axis) * np.uint64(strides[axis])
        high = lax.convert_element_type(number >> np.uint64(32), np.uint32)
        return high, lax.convert_element_type(number, np.uint32)


def is_wide(shape: Iterable[int]) -> bool:
    """Whether an array of this shape is drawn by the fused loop, and worth `fast_compiler_options`.

    Axes of length one do not count: ``(4096, 1)`` is as wide as ``(4096,)``.
    """
    return next((size for size in reversed(tuple(shape)) if size != 1), 1) >= _NARROW


def are_exact(equations: Iterable[Any]) -> bool:
    """Whether traced equations yield the same bits with fast keys as with JAX's own.

    True for programs on wide arrays and scalars made of arithmetic, comparisons and ``erf_inv``:
    the uniform, normal, truncated normal and Bernoulli laws and what scales and shifts them. False
    where that was not established: logarithms and exponentials (an ulp in some entries, depending
    on the shape), reductions, matrix products, and ``jax.random.gamma``, which JAX evaluates in
    another way for keys of other types than its own.

    Args:
        equations: those of a program, such as ``jax.make_jaxpr`` returns.

    Returns:
        True when equality with JAX's own program was established for all that they compute.
    """
    return all(map(_is_exact, equations))


def _is_exact(equation: Any) -> bool:
    name, inner = equation.primitive.name, list(inner_jaxprs(equation))
    if name in _CALLS:
        return all(are_exact(jaxpr.eqns) for jaxpr in inner)
    inside = every_equation(found for jaxpr in inner for found in jaxpr.eqns)
    if name == "random_gamma" or any(map(_makes_floats, inside)):
        return False
    if not _makes_floats(equation):
        return True  # integers and booleans are exact wherever they are computed
    arrays = [
        variable.aval
        for variable in (*equation.invars, *equation.outvars)
        if _has_fractions(variable.aval) and math.prod(variable.aval.shape) > 1
    ]
    # A single number is no loop. Complex products leave open which of two to fuse with their sum.
    return not arrays or (
        name in _EXACT
        and all(is_wide(a.shape) and jnp.issubdtype(a.dtype, jnp.floating) for a in arrays)
    )


def _makes_floats(equation: Any) -> bool:
    return any(_has_fractions(variable.aval) for variable in equation.outvars)


def _has_fractions(aval: Any) -> bool:
    return jnp.issubdtype(aval.dtype, jnp.inexact)


def _words(key: jax.Array) -> tuple[jax.Array, jax.Array]:
    return lax.index_in_dim(key, 0, keepdims=False), lax.index_in_dim(key, 1, keepdims=False)


def _counts_as_jax(shape: tuple[Any, ...]) -> bool:
    """Whether `counters` numbers the elements of an array as JAX does now.

    It does not where ``jax_threefry_partitionable`` is off, nor for the symbolic sizes of
    ``jax.export``, which leave the width of a counter open.
    """
    return _is_partitionable() and all(isinstance(size, int) for size in shape)


def _is_partitionable() -> bool:
    config: Any = jax.config  # whose attributes are made at run time
    return bool(config.jax_threefry_partitionable)


# Jitted for the sake of eager calls, which would dispatch a hundred operations one by one.
@functools.partial(jax.jit, static_argnums=(1, 2), inline=True)
def random_bits(key: jax.Array, bit_width: int, shape: tuple[int, ...]) -> jax.Array:
    """Uniform unsigned integers, from the two words of a key.

    Args:
        key: key data, uint32 of shape ``(2,)``.
        bit_width: 8, 16, 32 or, under ``jax_enable_x64``, 64.
        shape: shape of the result.

    Returns:
        The integers that JAX's own implementation draws.
    """
    if not (_counts_as_jax(shape) and is_wide(shape) and math.prod(shape)):
        return threefry_prng_impl.random_bits(key, bit_width, shape)
    high, low = threefry2x32(_words(key), counters(shape))
    dtype = np.dtype(f"uint{bit_width}")
    if bit_width == 64:
        high, low = (lax.convert_element_type(word, dtype) for word in (high, low))
        return (high << np.uint64(32)) | low
    return lax.convert_element_type(high ^ low, dtype)


# Keys are derived by JAX's own functions. Written out, a chain of ten splits takes four times as
# long to compile: XLA fuses each hash into the next and computes it anew for both its words.
FAST: Hashable = define_prng_impl(
    key_shape=(2,),
    seed=threefry_prng_impl.seed,
    split=threefry_prng_impl.split,
    random_bits=random_bits,
    fold_in=threefry_prng_impl.fold_in,
    name="jaxinit_threefry2x32",
    tag="fast_fry",
)
"""The key implementation behind `fast_key`, for ``jax.random.key(seed, impl=FAST)``."""


def fast_key(key: Any) -> Any:
    """The same key, from which every ``jax.random`` call draws the same numbers faster on CPU.

    Elements are filled at several times the rate of JAX's own lowering, without its temporaries.
    Use the key as any other: ``split``, ``fold_in``, ``vmap``, ``jit``, shardings. Steps aside, and
    returns what it was given, where there is nothing to gain or no equality to promise: for other
    implementations than Threefry (rbg, philox), on other devices than CPUs, and where
    ``jax_threefry_partitionable`` is off.

    Equality is to the last bit for everything computed in integers, and for the uniform, normal,
    truncated normal and Bernoulli laws. With jaxlib 0.12 a few others, ``logistic`` for one, are an
    ulp off in some entries, as in JAX itself between two shapes; `are_exact` decides for a traced
    program. JAX's ``gamma``, and ``beta``, ``dirichlet``, ``t`` and others that call it, are
    evaluated in another way for keys of another type: slower, and off by an ulp; ``poisson`` raises
    ``NotImplementedError``. Draw those from the key that you have.

    Args:
        key: a typed key or a batch of keys, or raw ``uint32`` key data of the default
            implementation. Traced keys are taken to run on the default backend.

    Returns:
        A typed key, or batch of keys, of the same shape. From raw key data too, so that splits of
        it are typed.

    Raises:
        TypeError: when ``key`` is not a key.

    Example:
        >>> key = jax.random.key(0)
        >>> draws = [jax.random.normal(k, (64, 64)) for k in (key, fast_key(key))]
        >>> bool((draws[0] == draws[1]).all())
        True
    """
    typed = _as_keys(key)
    if jax.random.key_impl(typed) != "threefry2x32" or not _is_partitionable():
        return key
    traced = isinstance(typed, Tracer)
    places = {jax.default_backend()} if traced else {d.platform for d in typed.devices()}
    if places != {"cpu"}:
        return key
    return jax.random.wrap_key_data(jax.random.key_data(typed), impl=FAST)


def _as_keys(key: Any) -> jax.Array:
    advice = "Pass jax.random.key(0), or a batch from jax.random.split."
    if not isinstance(key, jax.Array | np.ndarray):
        raise TypeError(f"fast_key needs JAX random keys, got {type(key).__name__}. {advice}")
    if jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        return key  # pyright: ignore[reportReturnType]
    try:
        if key.dtype != np.uint32:
            raise TypeError
        return jax.random.wrap_key_data(jnp.asarray(key))
    except TypeError:
        raise TypeError(
            "fast_key needs JAX random keys or raw uint32 data of the default implementation, got "
            f"{key.dtype} of shape {key.shape}. {advice}"
        ) from None


def fast_compiler_options() -> dict[str, str | bool]:
    """Options with which XLA compiles a drawing program to its fastest on this machine.

    For ``jax.jit(..., compiler_options=...)``, so they bind one program and no other: 512-bit
    vectors, where XLA:CPU prefers 256. Measured: 1.1 ns of a core for 32 random bits in place of
    1.5, 3.1 for a normal in place of 4.4 (jaxlib 0.12), with the same bits in every program that is
    exact (`are_exact`).

    Returns:
        The options; empty on other backends than CPU, on processors without 512-bit vectors, and
        where the installed XLA does not know the option.

    Example:
        >>> draw = jax.jit(lambda k: jax.random.normal(k, (64, 64)),
        ...                compiler_options=fast_compiler_options())
        >>> draw(fast_key(jax.random.key(0))).shape
        (64, 64)
    """
    if jax.default_backend() == "cpu" and _has_avx512() and _xla_knows(*_WIDE_VECTORS):
        return dict([_WIDE_VECTORS])
    return {}


@functools.cache
def _has_avx512() -> bool:
    # Linux only. A wrong answer costs speed, never bits: asked for vectors that the processor does
    # not have, LLVM builds them from narrower ones.
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return False
    return any(line.startswith("flags") and "avx512f" in line.split() for line in lines)


@functools.cache
def _xla_knows(option: str, value: str) -> bool:
    program = jax.jit(lambda x: x + 1).lower(jax.ShapeDtypeStruct((), np.int32))
    try:
        program.compile(compiler_options={option: value})
    except jax.errors.JaxRuntimeError:  # No such compile option
        return False
    return True
