"""One of several processes that draw a tree together; started by test_processes, not by pytest.

    python process_worker.py together ADDRESS COUNT NUMBER
    python process_worker.py dies|waits|joins ADDRESS COUNT NUMBER HEARTBEAT_SECONDS
    python process_worker.py cached DIRECTORY

What it finds goes to stdout, one line of JSON for each finding.
"""

from __future__ import annotations

import collections
import hashlib
import json
import os
import signal
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import jaxinit
from jaxinit import initializers as init

P = PartitionSpec
MARK = "found: "  # Gloo writes to stdout as well
# Rows of a shard are wide enough for values that do not depend on the mesh in any jaxlib: see
# jaxinit.engine._draws.
SHAPE = (16, 64)
RULES = [
    ("{normal,again}", init.normal(0.02)),
    ("truncated", init.he_normal()),
    ("uniform", init.glorot_uniform()),
    ("orthogonal", init.orthogonal()),
    ("{zeros,count}", init.zeros),
]
# Every process compiles: with many of them, one law by entries, one that all work on, one constant.
FEW_RULES = [("normal", init.normal(0.02)), ("orthogonal", init.orthogonal()), ("**", init.zeros)]


def shapes(names: Any = None) -> dict[str, jax.ShapeDtypeStruct]:
    """A tree with every way in which a leaf is made, as a plan sees it; or some of its leaves."""
    matrices = ("normal", "again", "truncated", "uniform", "orthogonal")
    tree = {name: jax.ShapeDtypeStruct(SHAPE, "float32") for name in matrices}
    tree["zeros"] = jax.ShapeDtypeStruct((64,), "float32")
    tree["count"] = jax.ShapeDtypeStruct((), "int32")
    return tree if names is None else {name: tree[name] for name in names}


def make(key: Any, names: Any = None) -> dict[str, Any]:
    """The like of it as an init function, with JAX's own initializers."""
    law = jax.nn.initializers
    keys = jax.random.split(key, 5)
    tree = {
        "normal": law.normal(0.02)(keys[0], SHAPE),
        "again": law.normal(0.02)(keys[1], SHAPE),
        "truncated": law.he_normal()(keys[2], SHAPE),
        "uniform": law.glorot_uniform()(keys[3], SHAPE),
        "orthogonal": law.orthogonal()(keys[4], SHAPE),
        "zeros": jnp.zeros(64),
        "count": jnp.array(7, jnp.int32),
    }
    return tree if names is None else {name: tree[name] for name in names}


def mesh_of(devices: list[jax.Device]) -> Mesh:
    return Mesh(np.array(devices).reshape(4, 2), ("a", "b"))


def shardings(mesh: Mesh) -> dict[str, NamedSharding]:
    """Matrices in eight parts; what has no two axes is whole on every device."""
    return {
        name: NamedSharding(mesh, P("a", "b") if len(leaf.shape) == 2 else P())
        for name, leaf in shapes().items()
    }


def draw(mesh: Mesh, names: Any = None, rules: Any = RULES) -> dict[str, Any]:
    """The tree, or some of its leaves, drawn both ways, into shards."""
    names = tuple(shapes() if names is None else names)
    where = {name: sharding for name, sharding in shardings(mesh).items() if name in names}
    key = jax.random.key(0)
    traced = jaxinit.jit_init(lambda key: make(key, names), out_shardings=where)
    plan = jaxinit.plan(shapes(names), rules)
    trees = {"traced": traced(key), "planned": plan.init(key, out_shardings=where)}
    for name, sharding in where.items():
        assert trees["traced"][name].sharding == trees["planned"][name].sharding == sharding
    return trees


def draw_where_the_key_is(mesh: Mesh) -> dict[str, Any]:
    """Leaves that follow a key which is on every device already; nobody says where they go."""
    placed = jax.jit(lambda: jax.random.key(0), out_shardings=NamedSharding(mesh, P()))()
    some = jaxinit.jit_init(lambda k: {"again": make(k)["again"], "ones": jnp.ones(3)}, verify=True)
    return {"placed": some(placed)}


def own_shards(tree: Any) -> dict[str, dict[str, str]]:
    """A checksum of every shard that this process holds, by leaf and by place in the leaf."""
    return {
        jax.tree_util.keystr(path): {
            str([(s.start, s.stop) for s in shard.index]): hashlib.sha256(
                np.asarray(shard.data).tobytes()
            ).hexdigest()
            for shard in array.addressable_shards
        }
        for path, array in jax.tree.leaves_with_path(tree)
    }


def elementwise(mesh: Mesh, progress: Any = None) -> dict[str, Any]:
    """Leaves of which every process can make its shards without the others."""
    where = shardings(mesh)
    names = ("normal", "again", "truncated")
    plan = jaxinit.plan(shapes(names), RULES[:2])
    wish = {name: where[name] for name in names}
    return plan.init(jax.random.key(0), out_shardings=wish, progress=progress)


def tell(finding: Any) -> None:
    print(MARK + json.dumps(finding), flush=True)


def start(address: str, count: str, number: str, **options: Any) -> Mesh:
    jax.distributed.initialize(address, int(count), int(number), **options)
    return mesh_of(jax.devices())


def together(*arguments: str) -> None:
    """Draws everything with the others; beyond two, a leaf of each way to make one."""
    mesh = start(*arguments)
    if jax.process_count() == 2:
        trees = draw(mesh) | draw_where_the_key_is(mesh)
    else:
        trees = draw(mesh, ("normal", "orthogonal", "zeros", "count"), FEW_RULES)
    tell(own_shards(trees))
    tell(dict(jaxinit.fingerprint(trees).leaves))


def dies(*arguments: str) -> None:
    """Is killed when the first of its leaves is there."""
    *arguments, seconds = arguments
    mesh = start(*arguments, heartbeat_timeout_seconds=int(seconds))
    elementwise(mesh, lambda *_: os.kill(os.getpid(), signal.SIGKILL))


def waits(*arguments: str) -> None:
    """Draws once it is told on stdin that another is dead, and leaves without a farewell."""
    *arguments, seconds = arguments
    mesh = start(*arguments, heartbeat_timeout_seconds=int(seconds))
    sys.stdin.readline()
    tell(own_shards(elementwise(mesh)))
    os._exit(0)


def joins(*arguments: str) -> None:
    """Draws, then asks for checksums that need those who died."""
    *arguments, seconds = arguments
    mesh = start(*arguments, heartbeat_timeout_seconds=int(seconds))
    tell(jaxinit.fingerprint(elementwise(mesh)).tree)


def cached(directory: str) -> None:
    """Counts what the persistent compilation cache is asked for and what it has."""
    jax.config.update("jax_compilation_cache_dir", directory)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    counts: collections.Counter[str] = collections.Counter()
    jax.monitoring.register_event_listener(lambda event, **_: counts.update([event]))
    key = jax.random.key(0)
    names = ("compile_requests_use_cache", "cache_hits", "cache_misses")

    def count(work: Any) -> Any:
        counts.clear()
        jax.block_until_ready(work())
        return [counts[f"/jax/compilation_cache/{name}"] for name in names]

    where = shardings(mesh_of(jax.devices()))
    plan = jaxinit.plan(shapes(("normal", "again", "truncated", "zeros")), [*RULES[:2], RULES[-1]])
    tell(count(lambda: jaxinit.jit_init(make, out_shardings=where)(key)))
    tell(count(lambda: plan.init(key)))


if __name__ == "__main__":
    modes = {f.__name__: f for f in (together, dies, waits, joins, cached)}
    modes[sys.argv[1]](*sys.argv[2:])
