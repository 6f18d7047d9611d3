"""The one table of every public factory, with legal shapes and dtypes.

Contract and law files run over it. A case is written as a user writes it: the text is evaluated
in the namespace of `jaxinit.initializers`. Names that `names()` lists and no case uses fail
`test_registry.py`, so a new factory cannot be forgotten here.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxinit.initializers
from helpers import slow
from jaxinit.engine import _threefry as threefry
from jaxinit.initializers import Initializer

Shape = tuple[int, ...]

NAMESPACE: dict[str, Any] = {"np": np} | {
    name: getattr(jaxinit.initializers, name)
    for name in dir(jaxinit.initializers)
    if not name.startswith("_")
}

FLOATS = ("float32", "bfloat16", "float16", "float8_e4m3fn", "float8_e5m2")
INEXACT = (*FLOATS, "complex64")
NUMBERS = (*INEXACT, "int32", "uint8")
# A factory that is called in several ways is drawn in the other dtypes by the long run.
FIRST_DTYPES = ("float32",)
# Statistics and products do not need the compiler's best code, and half of the time went into it.
QUICK: dict[str, Any] = {"xla_backend_optimization_level": 0}
# Where XLA has two generators of fused loops (jaxlib 0.10), the old one takes half of the rest:
# 0.12 s of CPU for he_normal in six dtypes against 0.29 s.
_OLD_LOOPS = ("xla_cpu_use_fusion_emitters", "False")
if threefry._xla_knows(*_OLD_LOOPS):
    QUICK |= dict([_OLD_LOOPS])
# What the 32-bit types become under `jax_enable_x64`.
WIDE = {"float32": "float64", "complex64": "complex128"}


def evaluate(text: str) -> Any:
    """What a user gets who writes `text` after importing everything."""
    return eval(text, dict(NAMESPACE))


@dataclasses.dataclass(frozen=True)
class Case:
    """A factory called in one way.

    Attributes:
        call: the call, as source text.
        shapes: legal shapes; the first has entries and serves where one shape is enough.
        bulk: a legal shape with enough entries for statistics, () where `shapes[0]` says it all.
        dtypes: legal dtypes; float32 is drawn when none is named.
    """

    call: str
    shapes: tuple[Shape, ...]
    bulk: Shape = ()
    dtypes: tuple[str, ...] = INEXACT

    @property
    def name(self) -> str:
        """Public name of the factory."""
        return re.match(r"\w+", self.call).group()  # pyright: ignore[reportOptionalMemberAccess]

    @functools.cached_property
    def initializer(self) -> Initializer:
        return evaluate(self.call)

    @property
    def shape(self) -> Shape:
        return self.shapes[0]

    @property
    def dtype(self) -> str:
        return self.dtypes[0]

    def draw(self, shape: Shape | None = None, dtype: str | None = None, seed: int = 0) -> Any:
        """One draw as a user makes it, kept for every test that looks at the same one."""
        return _draw(self, self.shape if shape is None else shape, dtype or self.dtype, seed)

    def draw_bulk(self, dtype: str) -> Any:
        """A draw of the bulk shape; one compiled program serves all dtypes, or the first ones."""
        first = tuple(dtype for dtype in self.dtypes if not self.is_slow(dtype))
        return _draw_bulk(self, self.dtypes if self.is_slow(dtype) else first)[dtype]

    def is_slow(self, dtype: str) -> bool:
        """Whether a dtype is left to the long run."""
        return self not in FIRST_KINDS and dtype not in (*FIRST_DTYPES, self.dtype)


@functools.cache
def _draw(case: Case, shape: Shape, dtype: str, seed: int) -> Any:
    return case.initializer(jax.random.key(seed), shape, dtype)


@functools.cache
def _draw_bulk(case: Case, dtypes: tuple[str, ...]) -> dict[str, Any]:
    def draw(key: jax.Array) -> dict[str, jax.Array]:
        shape = case.bulk or case.shape
        return {dtype: case.initializer(key, shape, dtype) for dtype in dtypes}

    return jax.jit(draw, compiler_options=QUICK)(jax.random.key(20))


def forget_draws() -> None:
    """Makes the next test draw anew, where the compiler was set to something else meanwhile."""
    for kept in (_draw, _draw_bulk, _sampler, sample):
        kept.cache_clear()


def _cases(calls: list[str], *shapes: Shape, bulk: Shape, dtypes: tuple[str, ...] = INEXACT):
    return [Case(call, shapes, bulk, dtypes) for call in calls]


# Without fans a scalar is legal; with fans it takes two axes. Each family has an empty shape. Small
# shapes have at most 16 entries, above which XLA takes three times as long to compile a draw.
FREE = ((3, 5), (), (4,), (2, 2, 3), (0, 3))
DENSE = ((3, 5), (2, 1, 2, 3), (0, 5))
MATRIX_BULK = (160, 240)

CASES: tuple[Case, ...] = (
    *_cases(["zeros", "ones", "constant(0.5)"], *FREE, bulk=()),
    *_cases(["zeros_init()", "ones_init()", "constant(3)"], *FREE, bulk=(), dtypes=NUMBERS),
    *_cases(["constant([1.5, -2.0, 0.1])"], (4, 3), (3,), (0, 3), bulk=()),
    *_cases(["constant([[1 + 2j], [0]])"], (2, 5), (2, 0), bulk=(), dtypes=("complex64",)),
    *_cases(
        ["uniform()", "uniform(0.5)", "uniform(minval=-0.3, maxval=0.1)"],
        *FREE, bulk=(40_000,), dtypes=FLOATS,
    ),
    *_cases(["normal()", "normal(0.02)", "normal(0.5, mean=-1.0)"], *FREE, bulk=(200, 200)),
    *_cases(
        [
            "truncated_normal()",
            "truncated_normal(0.1, lower=-1.0, upper=3.0)",
            "truncated_normal(0.5, lower=-3.0, upper=0.5, mean=1.0, exact=True)",
            "truncated_normal(lower=-np.inf, upper=1.0, exact=True)",
        ],
        *FREE, bulk=(40_000,), dtypes=FLOATS,
    ),
    *_cases(
        [
            "variance_scaling(1.5, 'fan_out', 'normal')",
            "variance_scaling(1.0, 'fan_geo_avg', 'uniform')",
            "variance_scaling(0.7, 'fan_avg', 'truncated_normal', gain=2.0)",
            "lecun_uniform()",
            "lecun_normal()",
            "lecun_normal(gain='gelu')",
            "lecun_uniform(gain=1.5)",
            "glorot_uniform(gain=5 / 3)",
            "glorot_normal(gain='torch:tanh')",
            "glorot_normal()",
            "xavier_uniform()",
            "xavier_normal()",
            "he_uniform(negative_slope=0.2)",
            "he_normal()",
            "kaiming_uniform()",
            "kaiming_normal(negative_slope=0.01)",
            "lecun_uniform(gain='silu')",
            "lecun_normal(gain=1.25)",
        ],
        *DENSE, bulk=MATRIX_BULK,
    ),
    *_cases(["glorot_uniform()", "he_uniform()"], *DENSE[1:], bulk=(3, 3, 48, 96)),
    *_cases(["he_normal(in_axis=0, out_axis=(1, 2))", "lecun_uniform(0, (-2, -1))"],
            (2, 2, 3), (4, 0, 3), bulk=(128, 4, 64)),
    *_cases(["glorot_normal(in_axis=(0, 1), out_axis=2)"], (2, 2, 4), bulk=(4, 64, 128)),
    *_cases(["he_normal(-1, -2)"], (3, 5), bulk=MATRIX_BULK),
    *_cases(["lecun_normal(batch_axis=0)", "he_uniform(*einsum_axes('ebd,edf->ebf'))"],
            (2, 2, 3), (0, 4, 6), bulk=(4, 64, 160)),
    *_cases(["glorot_normal(groups=2)"], (3, 1, 4), bulk=(3, 3, 32, 128)),
    *_cases(["lecun_normal(transposed_strides=2)"], (2, 2, 1, 3), bulk=(4, 4, 48, 64)),
    *_cases(["lecun_normal(-1, ())", "variance_scaling(2.0, 'fan_out', 'uniform', (), 0)"],
            (7,), (2,), bulk=(40_000,)),
    *_cases(
        ["orthogonal()", "orthogonal(0.5, 0)", "scaled_orthogonal()", "scaled_orthogonal(2.0, -2)"],
        (3, 5), (5, 3), (2, 2, 3), (0, 5), bulk=(96, 160),
    ),
    *_cases(["orthogonal(method='reflections')", "scaled_orthogonal(2.0, method='reflections')"],
            (3, 5), (5, 3), (2, 2, 3), (0, 5), bulk=(96, 160)),
    *_cases(["delta_orthogonal()", "delta_orthogonal(0.5, column_axis=-2)"],
            (2, 2, 3), (3, 1, 3, 2), (2, 2, 1, 2, 2), (3, 0, 4), bulk=(3, 2, 32, 48)),
    *_cases(["delta_orthogonal(method='reflections')"], (2, 2, 3), bulk=(3, 2, 32, 48)),
    *_cases(["identity()", "identity(-0.1)"], (5, 7), (7, 5), (2, 3, 4, 4), (0, 5), bulk=()),
    *_cases(["dirac()", "dirac(-0.1)"], (3, 4, 6), (3, 2, 6, 4), (2, 2, 3, 3, 3), (3, 0, 4),
            bulk=()),
    *_cases(["dirac(0.5, groups=2)"], (3, 3, 6), (3, 2, 2, 4), (3, 0, 4), bulk=()),
    *_cases(["sparse(0.5)", "sparse(0.75, 1.0)"], (4, 3), (2, 2, 1, 3), (0, 5), (5, 0),
            bulk=(200, 200)),
    *_cases(["scaled(he_normal(), 0.5)", "scaled(normal(0.1, mean=0.3), -2)"], *DENSE,
            bulk=MATRIX_BULK),
    *_cases(["scaled(orthogonal(), -2)"], (3, 5), (0, 5), bulk=(96, 160)),
    *_cases(["masked(normal(1.0), np.tri(5, 3))", "masked(identity(), np.eye(5, 3))"], (5, 3),
            bulk=()),
    *_cases(["masked(normal(0.1), [1, 0, 1, 1, 0])"], (3, 5), (5,), (0, 5), bulk=(8_000, 5)),
    *_cases(["masked(he_normal(), True)"], (3, 5), (0, 5), bulk=MATRIX_BULK),
    *_cases(["reshaped(lecun_normal(), (3, 4))"], (3, 2, 2), (12,), bulk=()),
    *_cases(["reshaped(lecun_normal(), (128, 256))"], (128, 4, 64), bulk=(128, 4, 64)),
    *_cases(["stacked(lecun_normal())"], (2, 2, 3), (2, 1, 2, 1, 3), (0, 4, 6), bulk=(8, 48, 96)),
    *_cases(["stacked(glorot_uniform(), -2)"], (3, 2, 2), bulk=(48, 8, 96)),
    *_cases(["stacked(he_normal(), (0, -1))"], (2, 2, 3, 1), (2, 0, 6, 3), bulk=(4, 48, 64, 3)),
    *_cases(["stacked(orthogonal(), 1)"], (2, 2, 3), bulk=(32, 8, 48)),
    *_cases(["stacked(identity())"], (3, 4, 6), bulk=()),
    *_cases(["own(normal(0.1))"], *FREE, bulk=(8_000, 5)),
    *_cases(["fused(glorot_normal(), (2, 2, 2))"], (2, 6), (0, 6), bulk=()),
    *_cases(["fused(glorot_normal(), (96, 32, 32))"], (3, 160), bulk=(256, 160)),
    *_cases(["fused([lecun_normal(), orthogonal(), zeros], (48, 96, 16), axis=0)"], (160, 2),
            bulk=(160, 256)),
    *_cases(["fused([normal(0.1), identity(), sparse(0.5)], (2, 0, 3), 0)"], (5, 3), bulk=()),
    *_cases(["stacked(fused(glorot_uniform(), (16, 48), axis=0), axis=1)"], (64, 2, 3),
            bulk=(64, 8, 96)),
)  # fmt: skip

# One case of each factory, for tests that compile a program for each.
ALIASES = ("zeros_init", "ones_init", "xavier_uniform", "xavier_normal")
ALIASES = (*ALIASES, "kaiming_uniform", "kaiming_normal")
KINDS = tuple({case.name: case for case in reversed(CASES) if case.name not in ALIASES}.values())
# One law with other numbers: `he_normal`, `lecun_uniform` and `variance_scaling` stand for them.
RECIPES = ("lecun_normal", "glorot_normal", "glorot_uniform", "he_uniform")
FIRST_KINDS = tuple(case for case in KINDS if case.name not in RECIPES)


def draw_all(key: jax.Array, draws: list[tuple[str, Shape]], dtype: str | None = None) -> list[Any]:
    """Several calls drawn by one program, where numbers are wanted and not bits."""

    def draw(key: jax.Array) -> list[jax.Array]:
        return [evaluate(call)(key, shape, dtype) for call, shape in draws]

    return jax.jit(draw, compiler_options=QUICK)(key)


@functools.cache
def _sampler(call: str, shape: Shape, dtype: str) -> Any:
    init = evaluate(call)
    return jax.jit(lambda key: init(key, shape, dtype), compiler_options=QUICK)


@functools.cache
def sample(call: str, shape: Shape, dtype: str = "float32", seed: int = 0) -> Any:
    """One draw where numbers are wanted and not bits; tests that ask for the same share it."""
    return _sampler(call, shape, dtype)(jax.random.key(seed))


def each(*cases: Case):
    """Runs a test once per case, the case's call being its name."""
    return pytest.mark.parametrize("case", cases or CASES, ids=lambda case: case.call)


def each_kind(*kinds: Case):
    """Runs a test that compiles something once per factory; recipes are left to the long run."""
    kinds = kinds or KINDS
    cases = [case for case in kinds if case in FIRST_KINDS]
    cases += slow(*(case for case in kinds if case not in FIRST_KINDS))
    return pytest.mark.parametrize("case", cases, ids=lambda case: case.call)


def wide(array: Any) -> np.ndarray:
    """Values in double precision, where sums do not round."""
    values = jnp.asarray(array)
    kind = np.complex128 if jnp.iscomplexobj(values) else np.float64
    return np.asarray(values).astype(kind)
