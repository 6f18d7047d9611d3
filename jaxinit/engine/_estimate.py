"""What memory a list of draws takes, told before any of it is allocated."""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import Sharding

from jaxinit._table import render_table, spell_bytes
from jaxinit.engine._compile import in_use_beside, setting
from jaxinit.engine._draws import Lot
from jaxinit.engine._placement import on_mesh


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Memory that drawing a tree takes.

    Attributes:
        leaves: number of leaves.
        kinds: how many of them are distinct.
        compiled: kinds that are compiled; the others are constants that the host copies.
        nbytes: bytes of the finished tree.
        device_nbytes: bytes of it on the device that holds most, from the shapes of the shards.
        scratch: bytes that the neediest program takes on each device beside what it returns.
        peak: bytes in use at most on that device: its part of the tree, and what programs in flight
            take beside it.
    """

    leaves: int
    kinds: int
    compiled: int
    nbytes: int
    device_nbytes: int
    scratch: int
    peak: int

    def __str__(self) -> str:
        sizes = {
            "finished tree": self.nbytes,
            "its largest part on one device": self.device_nbytes,
            "scratch of the neediest program": self.scratch,
            "peak on one device": self.peak,
        }
        title = f"{self.leaves:,} leaves, {self.kinds:,} kinds, {self.compiled:,} compiled"
        rows = [(name, spell_bytes(count), f"{count:,}") for name, count in sizes.items()]
        return render_table(["memory", "size", "bytes"], rows, title=title)


def estimate_lots(
    lots: Sequence[Lot], scratch: Sequence[int | None], max_live_bytes: int
) -> Estimate:
    """Adds up what lots take.

    Args:
        lots: the draws, by kind.
        scratch: bytes that each lot's program takes beside its result; None for lots that the host
            fills.
        max_live_bytes: bytes that may be in use beside the arrays.
    """
    load: collections.Counter[Any] = collections.Counter()
    for lot in lots:
        devices, shard = _spread(lot)
        nbytes = math.prod(shard) * lot.draw.dtype.itemsize * len(lot.members)
        load.update(dict.fromkeys(devices, nbytes))
    device_nbytes = max(load.values(), default=0)
    needs = [(s or 0, len(lot.members)) for lot, s in zip(lots, scratch, strict=True)]
    return Estimate(
        leaves=sum(len(lot.members) for lot in lots),
        kinds=len(lots),
        compiled=sum(s is not None for s in scratch),
        nbytes=sum(lot.draw.nbytes * len(lot.members) for lot in lots),
        device_nbytes=device_nbytes,
        scratch=max((need for need, _ in needs), default=0),
        peak=device_nbytes + in_use_beside(needs, max_live_bytes),
    )


def _spread(lot: Lot) -> tuple[Any, tuple[int, ...]]:
    """Devices that hold a leaf, and the shape of what each of them holds."""
    sharding, mesh = on_mesh(lot.sharding), jax.sharding.get_mesh()
    if isinstance(sharding, Sharding):
        return sharding.device_set, sharding.shard_shape(lot.draw.shape)
    if not mesh.empty:
        return mesh.devices.flat, lot.draw.shape
    default = setting("jax_default_device")
    return [default if isinstance(default, jax.Device) else jax.local_devices()[0]], lot.draw.shape
