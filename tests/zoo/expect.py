"""What a reading should say of a leaf, and how far a real reading is from it.

A table maps globs over canonical paths to expectations; the first match wins, every leaf must be
matched and every glob must match. What an expectation leaves as None is not compared.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxinit.planning import compile_glob


@dataclasses.dataclass(frozen=True)
class Joint:
    """One use: a parameter joined with data.

    ``activation`` is a name, ``"identity"`` where a map follows at once, or ``"none"`` where there
    is none: behind a head, on a factor of a gate, where two ways go on.
    """

    role: str
    fans: tuple[float | None, float | None] = (None, None)
    axes: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]] | None = None
    groups: int = 1
    strides: tuple[int, ...] = ()
    times: int | str | None = 1
    activation: str | None = None
    last: bool | None = None
    softmax: bool | None = None
    gates: bool | None = None
    norm: str | None = None
    branches: int | None = None
    pre_norm: bool | None = None
    post_norm: bool | None = None
    depth: int | None = None

    def complaints(self, use: Any) -> list[str]:
        """What differs from a `Use`; the names are those of the records."""
        after, branch = use.after, use.branch
        wanted = {
            "role": (self.role, use.role),
            "fan_in": (self.fans[0], use.fan_in),
            "fan_out": (self.fans[1], use.fan_out),
            "axes": (self.axes, (use.contracted, use.produced, use.batched)),
            "groups": (self.groups, use.groups),
            "depth": (self.depth, use.depth),
            "transposed_strides": (self.strides, use.transposed_strides),
            "times": (self.times, "unknown" if use.times is None else use.times),
        }
        if after is not None:
            got = after.activation.name if after.activation else "none"
            wanted["activation"] = (self.activation, got)
            wanted["softmax"] = (self.softmax, after.softmax)
            wanted["gates"] = (self.gates, after.gates)
            wanted["normalisation"] = (self.norm, after.normalisation)
        elif (self.activation, self.softmax, self.gates, self.norm) != (None,) * 4:
            wanted["after"] = ("something", "not followed")
        if self.last is not None:
            wanted["is_last"] = (self.last, branch is not None and branch.is_last)
        if self.branches is not None:
            wanted["branches"] = (self.branches, branch.count if branch else 0)
        if self.pre_norm is not None:
            wanted["has_norm"] = (self.pre_norm, branch is not None and branch.has_norm)
        if self.post_norm is not None:
            after = branch is not None and branch.has_norm_after
            wanted["has_norm_after"] = (self.post_norm, after)
        return [
            f"{name} {got!r}, not {want!r}"
            for name, (want, got) in wanted.items()
            if want is not None and want != got
        ]


@dataclasses.dataclass(frozen=True)
class Leaf:
    """A parameter: its role and its uses, in any order; no uses named, none compared."""

    role: str
    joints: tuple[Joint, ...] = ()
    why: str | None = None

    def complaints(self, parameter: Any) -> list[str]:
        wrong = []
        if parameter.role != self.role:
            reason = f" ({parameter.why})" if parameter.why else ""
            wrong.append(f"role {parameter.role!r}{reason}, not {self.role!r}")
        if parameter.role == "unknown" and not parameter.why:
            wrong.append("unknown without a reason")
        if self.why is not None and self.why not in (parameter.why or ""):
            wrong.append(f"why {parameter.why!r} does not name {self.why!r}")
        if not self.joints:
            return wrong
        if len(self.joints) != len(parameter.uses):
            return [*wrong, f"{len(parameter.uses)} uses, not {len(self.joints)}"]
        left = list(parameter.uses)
        for joint in self.joints:
            best = min(left, key=lambda use: len(joint.complaints(use)))
            wrong += joint.complaints(best)
            left.remove(best)
        return wrong


def kernel(fan_in: float, fan_out: float, role: str = "kernel", **rest: Any) -> Leaf:
    """A map that is used once."""
    return Leaf(role, (Joint(role, (fan_in, fan_out), **rest),))


def head(fan_in: float, fan_out: float, **rest: Any) -> Leaf:
    """The last map into an output of the model."""
    return kernel(fan_in, fan_out, "head", **rest)


def packed(*leaves: Leaf, role: str | None = None) -> Leaf:
    """Several uses of one parameter; its role is that of the first."""
    joints = tuple(joint for leaf in leaves for joint in leaf.joints)
    return Leaf(role or leaves[0].role, joints)


def embedding(**rest: Any) -> Leaf:
    """A table that data choose rows of."""
    return Leaf("embedding", (Joint("embedding", **rest),))


# A scale that a residual branch ends with.
LAST_SCALE = Leaf("scale", (Joint("scale", last=True),))
BIAS, SCALE, POSITION = Leaf("bias"), Leaf("scale"), Leaf("position")
STATE, UNUSED = Leaf("state"), Leaf("unused")


def unknown(why: str) -> Leaf:
    """A parameter that the reading must not guess about; ``why`` names the equation."""
    return Leaf("unknown", (), why)


@dataclasses.dataclass(frozen=True)
class Case:
    """A model: a function of variables and inputs, shapes of both, and the table."""

    apply: Callable[..., Any]
    variables: Any
    inputs: tuple[Any, ...]
    table: Mapping[str, Leaf]

    def differences(self, reading: Any) -> Iterator[str]:
        """Everything in which a reading departs from the table, one line each."""
        globs = {glob: compile_glob("zoo", glob) for glob in self.table}
        idle = set(globs)
        for parameter in reading:
            match = next((g for g, one in globs.items() if one.fullmatch(parameter.path)), None)
            if match is None:
                yield f"{parameter.path}: no expectation"
                continue
            idle.discard(match)
            wrong = self.table[match].complaints(parameter)
            if wrong:
                yield f"{parameter.path} {parameter.shape}: {'; '.join(wrong)}"
        for glob in sorted(idle):
            yield f"{glob}: no leaf"


def array(*shape: int, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)


def ids(*shape: int) -> jax.ShapeDtypeStruct:
    return array(*shape, dtype=jnp.int32)


def linen(module: Any, *inputs: Any, table: Mapping[str, Leaf], **rest: Any) -> Case:
    """A Linen module; what it calls mutable is written in the pass."""
    init = {name: value for name, value in rest.items() if name not in ("mutable", "rngs")}
    keys = {"params": jax.random.key(0), **rest.get("rngs", {})}
    variables = jax.eval_shape(lambda *args: module.init(keys, *args, **init), *inputs)
    return Case(lambda tree, *args: module.apply(tree, *args, **rest), variables, inputs, table)
