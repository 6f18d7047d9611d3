"""One machine for every test: eight CPU devices, strict JAX, examples that repeat.

Nothing here depends on the order of the tests, and each setting yields to the user: `JAX_PLATFORMS`
and `XLA_FLAGS` from the shell win, and `--hypothesis-profile=thorough` searches longer.

Most of the time is XLA compiling. The processes of one run share what they compiled, in a directory
that goes with them. Who runs the suite again keeps it in one that stays:

    export JAX_COMPILATION_CACHE_DIR=~/.cache/jaxinit-tests

Tests marked `slow` are left out unless asked for: `pytest -m "slow or not slow"` runs them all, as
`.ci/run` does. On a machine with a GPU, `JAX_PLATFORMS=cuda,cpu` draws on the GPU; tests of meshes
take the CPU devices even so, and tests marked `cpu_code` are skipped.
"""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile

# Before jax is imported: the devices are counted once, when the first backend starts.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# XLA splits a program over 32 threads to compile it. Programs of tests are too small to gain by it,
# and it takes a quarter of the time on top; the code that comes out is the same.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_force_host_platform_device_count=8 --xla_cpu_parallel_codegen_split_count=1",
)
# Matrices are small here. OpenBLAS, which has its threads spin while they wait for each other, took
# 2 s of CPU for six factorizations of 160 x 96 where the cores were busy with something else, and
# 0.02 s where they were not.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
# The workers of pytest-xdist are started with this environment, so they share the directory.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="jaxinit-tests-")
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")

import hypothesis
import jax
import jax._src.compiler as jax_compiler
import pytest

import catalogue
from helpers import cpu_devices, make_mesh
from jaxinit.cli import main
from jaxinit.engine import _compile as compiling
from jaxinit.engine._compile import forget_executables

# An accidental outer product keeps its shape legal and its law wrong; nothing else catches it.
jax.config.update("jax_numpy_rank_promotion", "raise")

# `deadline` is off because the first example of a shape pays for a compilation, `database` because
# a test must not pass or fail by what an earlier run left on disk.
hypothesis.settings.register_profile(
    "repeatable", derandomize=True, deadline=None, database=None, max_examples=50
)
# What `.ci/run` takes on the newest Python.
hypothesis.settings.register_profile(
    "long", derandomize=True, deadline=None, database=None, max_examples=400
)
hypothesis.settings.register_profile(
    "thorough", derandomize=False, deadline=None, database=None, max_examples=5_000
)
hypothesis.settings.load_profile("repeatable")


@pytest.fixture
def x64():
    """64-bit types for one test; code compiled for 32 bits is kept apart by JAX itself."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def devices():
    """Eight CPU devices; arrays are made on the first of them where the default is a GPU."""
    found = cpu_devices(8)
    if jax.default_backend() == "cpu":
        yield found
        return
    with jax.default_device(found[0]):
        yield found


@pytest.fixture
def mesh(devices) -> jax.sharding.Mesh:
    """Eight CPU devices in four rows, "a", and two columns, "b"."""
    return make_mesh()


_compile_options = jax_compiler.get_compile_options


def _quick_compile_options(*args, env_options_overrides=None, **kwargs):
    """JAX's own, with the options for quick compiling while optimizations are off."""
    if jax.config.read("jax_disable_most_optimizations"):
        env_options_overrides = catalogue.QUICK | (env_options_overrides or {})
    return _compile_options(*args, env_options_overrides=env_options_overrides, **kwargs)


# No public setting reaches the options of every program.
jax_compiler.get_compile_options = _quick_compile_options


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    """Skips what this machine cannot judge, and sets the level that the test is compiled at.

    Here and not in a fixture: fixtures of modules are made before those of functions, and would be
    compiled at the level of the test that ran before.
    """
    if item.get_closest_marker("cpu_code") and jax.default_backend() != "cpu":
        pytest.skip(f"speaks of code for CPUs; {jax.default_backend()} is the default backend")
    compile_at(is_optimized(item))


def is_optimized(item) -> bool:
    """Whether a test is compiled as users have it."""
    names = {mark.name for mark in item.iter_markers()}
    return "optimized" in names or "unoptimized" not in names


def pytest_collection_modifyitems(items):
    """Tests of one level stand side by side in their module."""
    modules = {path: number for number, path in enumerate(dict.fromkeys(i.path for i in items))}
    items.sort(key=lambda item: (modules[item.path], is_optimized(item)))


def compile_at(optimized: bool) -> None:
    """Has XLA optimize from here on, or compile at its lowest level.

    The lowest takes half of the time, and moves floats by ulps. What was compiled is forgotten
    where the level changes, so that no test of bits meets it.
    """
    if jax.config.read("jax_disable_most_optimizations") == optimized:
        jax.config.update("jax_disable_most_optimizations", not optimized)
        jax.clear_caches()
        forget_executables()
        catalogue.forget_draws()


@pytest.fixture
def programs(monkeypatch):
    """Text of every kind that is compiled during a test."""
    texts = []

    def record(lowered, options):
        executable = compile_kind(lowered, options)
        texts.append(executable.call.as_text())
        return executable

    compile_kind = compiling._compile
    monkeypatch.setattr(compiling, "_compile", record)
    forget_executables()
    yield texts
    forget_executables()


@pytest.fixture
def run(capsys, monkeypatch):
    """Runs the command line, 80 columns wide; returns status, standard output and error."""
    monkeypatch.setenv("COLUMNS", "80")
    for name in ("FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)

    def call(*arguments: str) -> tuple[int, str, str]:
        status = main(arguments)
        return status, *capsys.readouterr()

    return call


@pytest.fixture(autouse=True)
def _settings_are_left_as_found():
    """A test that leaves another setting behind would decide what the next one sees."""
    before = (jax.config.jax_enable_x64, jax.config.jax_numpy_rank_promotion)
    yield
    after = (jax.config.jax_enable_x64, jax.config.jax_numpy_rank_promotion)
    if after != before:
        jax.config.update("jax_enable_x64", before[0])
        jax.config.update("jax_numpy_rank_promotion", before[1])
        pytest.fail(
            f"the test left (jax_enable_x64, jax_numpy_rank_promotion) at {after}, found {before}. "
            "Use the x64 fixture, or a context manager."
        )
