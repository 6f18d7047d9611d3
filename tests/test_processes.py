"""Many processes draw what one draws, and a second start finds what the first compiled.

Processes talk over loopback, each with its share of eight CPU devices. Every wait has a deadline.
"""

from __future__ import annotations

import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import threading

import jax
import pytest

import jaxinit
import process_worker as worker
from helpers import COLLECTIVES, cpu_devices, slow
from jaxinit.engine import _compile as engine
from jaxinit.engine._jit_init import JitInit

# All devices here are CPUs, so what one process draws beside them must be drawn on one too.
# Each starts interpreters of its own.
pytestmark = [pytest.mark.cpu_code, pytest.mark.slow]

WORKER = pathlib.Path(worker.__file__)
DEADLINE_SECONDS = 120  # of a hang; far beyond what a slow machine needs


@pytest.fixture
def launch():
    """Starts workers, and leaves none behind."""
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: object, devices: int = 4) -> subprocess.Popen[str]:
        flags = f"--xla_force_host_platform_device_count={devices}"
        environment = {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
        environment["PYTHONPATH"] = str(WORKER.parent.parent)
        process = subprocess.Popen(
            [sys.executable, str(WORKER), *map(str, arguments)],
            env={**os.environ, **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def an_address() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


def findings(process: subprocess.Popen[str], told: str | None = None) -> list:
    out, err = process.communicate(told, timeout=DEADLINE_SECONDS)
    assert process.returncode == 0, err
    lines = [line.partition(worker.MARK) for line in out.splitlines()]
    return [json.loads(finding) for _, mark, finding in lines if mark]


@pytest.fixture(scope="module")
def alone():
    """What one process with all eight devices draws."""
    mesh = worker.mesh_of(cpu_devices(8))
    trees = worker.draw(mesh) | worker.draw_where_the_key_is(mesh)
    return worker.own_shards(trees), dict(jaxinit.fingerprint(trees).leaves)


def test_one_process_draws_what_one_device_draws(alone):
    key = jax.random.key(0)
    whole = {
        "traced": jax.jit(worker.make)(key),
        "planned": jaxinit.plan(worker.shapes(), worker.RULES).init(key),
    }
    leaves = jaxinit.fingerprint(whole).leaves
    assert leaves == {path: alone[1][path] for path in leaves}


@pytest.mark.parametrize("count", [2, *slow(4)])
def test_many_processes_draw_what_one_draws(launch, alone, count):
    address = an_address()
    arguments = [("together", address, count, number) for number in range(count)]
    processes = [launch(*a, devices=8 // count) for a in arguments]
    shards: dict[str, dict[str, str]] = {}
    for process in processes:
        own, prints = findings(process)
        assert prints.items() <= alone[1].items()
        assert len(prints) == (16 if count == 2 else 8)
        for path, found in own.items():
            known = shards.setdefault(path, {})
            assert all(known.get(place, digest) == digest for place, digest in found.items())
            known.update(found)
    assert shards == {path: alone[0][path] for path in shards}


def test_survivors_finish_their_own_shards(launch):
    """Elementwise laws need nobody else; the heartbeat is too slow to interfere."""
    address = an_address()
    survivor, victim = (
        launch(mode, address, 2, number, 600) for number, mode in enumerate(("waits", "dies"))
    )
    victim.communicate(timeout=DEADLINE_SECONDS)
    assert victim.returncode == -signal.SIGKILL
    (own,) = findings(survivor, "it is dead\n")
    whole = worker.own_shards(worker.elementwise(worker.mesh_of(cpu_devices(8))))
    for path, found in own.items():
        assert len(found) == 4
        assert found.items() <= whole[path].items()


@pytest.mark.parametrize("number", [0, *slow(1)])
def test_who_needs_the_dead_gets_an_error(launch, number):
    address = an_address()
    modes = {number: "dies", 1 - number: "joins"}
    processes = {n: launch(mode, address, 2, n, 5) for n, mode in modes.items()}
    processes[number].communicate(timeout=DEADLINE_SECONDS)
    assert processes[number].returncode == -signal.SIGKILL
    out, err = processes[1 - number].communicate(timeout=DEADLINE_SECONDS)
    assert processes[1 - number].returncode != 0
    assert worker.MARK not in out
    assert re.search("unhealthy|UNAVAILABLE|Connection reset|Connection closed", err), err


# Order.


@pytest.mark.parametrize("count", [1, 2])
def test_several_processes_launch_in_one_order(monkeypatch, count):
    """The first of two kinds is ready only after the second; alone, nobody waits for it."""
    second_is_there = threading.Event()

    def compile_out_of_order(name, options):
        if name == "first":
            assert second_is_there.wait(DEADLINE_SECONDS)
        elif count > 1:
            second_is_there.set()
        return engine.Executable(print, 0)

    monkeypatch.setattr(engine, "_compile", compile_out_of_order)
    monkeypatch.setattr(engine, "_lower", lambda program: program.identity)
    monkeypatch.setattr(engine, "_processors", lambda: 2)
    monkeypatch.setattr(jax, "process_count", lambda: count)

    def order(*names):
        indices = []
        for index, _ in engine.compiled([engine.Program(name, print, ()) for name in names]):
            indices.append(index)
            if names[index] == "second":
                second_is_there.set()
        return indices

    engine.forget_executables()
    assert order("first", "second") == ([1, 0] if count == 1 else [0, 1])
    # What is kept from before comes first where that is one's own business.
    assert order("third", "second") == ([1, 0] if count == 1 else [0, 1])
    engine.forget_executables()


# Communication.


def test_kinds_hold_no_collectives(monkeypatch):
    """For laws drawn entry by entry; what stays with `jax.jit` may have them."""
    texts = []
    real = engine._compile

    def keep_text(lowered, options):
        executable = real(lowered, options)
        texts.append(executable.call.as_text())
        return executable

    monkeypatch.setattr(engine, "_compile", keep_text)
    engine.forget_executables()
    mesh = worker.mesh_of(cpu_devices(8))
    where = worker.shardings(mesh)
    worker.elementwise(mesh)
    assert len(texts) == 2

    def init(key):
        tree = worker.make(key)
        del tree["orthogonal"]
        return tree

    wish = {name: sharding for name, sharding in where.items() if name != "orthogonal"}
    fast: JitInit = jaxinit.jit_init(init, out_shardings=wish)
    fast(jax.random.key(0))
    assert len(texts) == 5
    assert not [name for name in COLLECTIVES for text in texts if f" {name}" in text]


# The second start.


def test_a_second_start_compiles_nothing(launch, tmp_path):
    first = findings(launch("cached", tmp_path, devices=8))
    second = findings(launch("cached", tmp_path, devices=8))
    for (asked, found, missed), (again, hits, misses) in zip(first, second, strict=True):
        assert (asked, found) == (missed, 0)
        assert (again, hits, misses) == (asked, asked, 0)
