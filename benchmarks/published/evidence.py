"""What ten draws of a model measure, and whether they confirm a finding."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxinit.jaxpr import OnArrays
from jaxinit.planning import flatten
from jaxinit.reading import Reading
from published.common import Model

# From here on a size is called wrong: as much as four layers that each halve or double it.
FACTOR = 16.0
# Second moment of outputs that are surely too large: a standard deviation of 2.
LOGITS = 4.0
# Variance of the log of a second moment at which draws differ by a factor of 2.
SPREAD = math.log(2) ** 2
# Products of variance and fan that common laws have: torch's default, LeCun's, He's.
SCALES = (1 / 3, 1.0, 2.0)

ABOUT_SIZE = {
    "gain-mismatch",
    "residual-growth",
    "unstable-gain",
    "deep-sigmoid",
    "narrow-for-depth",
    "head-scale",
    "embedding-scale",
    "fanless-bias",
    "wrong-fans",
}
# What the draws cannot tell, as a person sees it: by model and finding, why it is not so.
MEANT = {
    ("Mamba", "fanless-bias"): "a time step under softplus, not a bias",
    ("SIREN", "fanless-bias"): "U(+-1/sqrt(fan_in)), as the authors draw it",
}


class Tapped(OnArrays):
    """Runs a graph, adds to some of its values, and keeps them; loops stay whole."""

    def __init__(self, added: dict[int, jax.Array]) -> None:
        self.added, self.kept = added, {}

    def equation(self, node: Any, operands: list[Any]) -> list[Any]:
        """Binds the equation again."""
        results = list(super().equation(node, operands))
        for place, number in enumerate(node.outputs):
            if number in self.added:
                self.kept[number] = results[place]
                results[place] = results[place] + self.added[number]
        return results


@dataclasses.dataclass(frozen=True)
class Facts:
    """What was measured; the first axis of every array is the draw.

    Attributes:
        order: number of the output of every layer that lies in no loop, in order of execution.
        label: path of its kernel, by number.
        forward: second moments of these outputs, by number.
        backward: those of the gradients, for independent ones of unit size at the outputs.
        outputs: second moments of the outputs of the model.
        gradients: of every leaf that has one, by path.
        means: mean of every floating leaf, by path.
        moments: second moment of every floating leaf, by path.
    """

    order: tuple[int, ...]
    label: dict[int, str]
    forward: dict[int, np.ndarray]
    backward: dict[int, np.ndarray]
    outputs: np.ndarray
    gradients: dict[str, np.ndarray]
    means: dict[str, np.ndarray]
    moments: dict[str, np.ndarray]


def is_float(x: Any) -> bool:
    return jnp.issubdtype(x.dtype, jnp.floating)


def square(x: jax.Array) -> jax.Array:
    return jnp.mean(jnp.square(jnp.abs(x.astype(jnp.float32))))


class Meter:
    """Runs a model forward and backward on drawn parameters; compiled once."""

    def __init__(self, model: Model, reading: Reading) -> None:
        graph, self.label = reading.graph, {}
        here = {number for node in graph.nodes for number in node.outputs}
        for p in reading:
            for use in p.uses:
                if use.fan_in is not None and use.output in here:
                    self.label[use.output] = p.path
        self.order = tuple(n for node in graph.nodes for n in node.outputs if n in self.label)
        self._data, self._reading = model.data, reading
        # The lowest level compiles in a third of the time; nobody asks for speed or bits here.
        options = {"xla_backend_optimization_level": 0}
        self._run = jax.jit(self._one, compiler_options=options)

    def __call__(self, trees: Sequence[Any]) -> Facts:
        """Each tree of parameters on data of its own."""
        rows = []
        for draw, tree in enumerate(trees):
            flat = flatten("verdicts", tree)
            leaves = dict(zip(flat.paths, flat.leaves, strict=True))
            rows.append(jax.device_get(self._run(leaves, jax.random.key(100 + draw))))
        return Facts(self.order, self.label, *jax.tree.map(lambda *x: np.stack(x), *rows))

    def _one(self, leaves: dict[str, jax.Array], key: jax.Array) -> Any:
        data, back = jax.random.split(key)
        graph, inputs = self._reading.graph, self._data(data)
        floats = {path: leaf for path, leaf in leaves.items() if is_float(leaf)}
        shapes = {n: graph.avals[n] for n in self.order}
        zeros = {n: jnp.zeros(a.shape, a.dtype) for n, a in shapes.items()}

        def forward(floats: Any, zeros: Any) -> Any:
            tapped, whole = Tapped(zeros), leaves | floats
            results = tapped.run(graph, [*(whole[p] for p in self._reading.inputs), *inputs])
            return [x for x in results if is_float(x)], tapped.kept

        outputs, pull, kept = jax.vjp(forward, floats, zeros, has_aux=True)
        keys = jax.random.split(back, len(outputs))
        pairs = zip(keys, outputs, strict=True)
        of_leaves, of_layers = pull([jax.random.normal(k, x.shape, x.dtype) for k, x in pairs])
        moments = [jax.tree.map(square, tree) for tree in (kept, of_layers, outputs, of_leaves)]
        moments[2] = jnp.stack(moments[2])
        return *moments, jax.tree.map(jnp.mean, floats), jax.tree.map(square, floats)


def confirmed(finding: Any, name: str, reading: Reading, facts: Facts) -> tuple[bool | None, str]:
    """Whether the draws say the same as a finding, and the number that decides.

    None where the finding only says that something is not known.
    """
    code, leaves = finding.code, finding.leaves
    if code == "not-understood":
        return None, "not judged"
    if (name, code) in MEANT:
        return False, MEANT[name, code]
    if code == "narrow-for-depth":
        last = facts.forward[facts.order[-1]] if facts.order else facts.outputs[:, 0]
        variance = float(np.log(np.maximum(last, 1e-300)).var())
        return variance > SPREAD, f"log-variance {variance:.2g} over draws"
    if code in ("head-scale", "embedding-scale"):
        moment = float(facts.outputs.mean(0).max())
        return moment > LOGITS, f"outputs of second moment {moment:.3g}"
    if code == "fanless-bias":
        return _bias(leaves, reading, facts)
    if code == "wrong-fans":
        return _fans(leaves[0], reading, facts)
    if code in ("unused", "no-gradient", "zero-product"):
        largest = max((facts.gradients[p].max() for p in leaves if p in facts.gradients), default=0)
        return not largest, f"largest gradient {largest:.2g}"
    if code == "forget-gate-bias":
        means = [facts.means[path].mean() for path in leaves]
        gates = [path for path in leaves if "f" in path.split("/")[-2][-2:]]
        return len(gates) == len(leaves), f"{len(gates)} of {len(leaves)} are; mean {means[0]:.2g}"
    if code == "nonfinite":
        return not all(np.isfinite(facts.moments[p]).all() for p in leaves), ""
    total, what = growth(facts, set(leaves))
    return not 1 / FACTOR <= total <= FACTOR, f"{what} multiplied by {total:.3g} in all"


def growth(facts: Facts, paths: set[str]) -> tuple[float, str]:
    """Typical factor per layer to the power of the number of steps, forward or backward.

    The median factor is not moved by one layer that is meant to differ, such as the first of SIREN.
    """
    numbers = [n for n in facts.order if facts.label[n] in paths] or list(facts.order)
    found = [(1.0, "signal")]
    for what, table in (("signal", facts.forward), ("gradient", facts.backward)):
        sizes = np.array([table[n].mean() for n in numbers])
        sizes = sizes[(sizes > 0) & np.isfinite(sizes)]
        if len(sizes) > 1:
            steps = np.diff(np.log(sizes))
            found.append((float(np.exp(np.clip(np.median(steps) * len(steps), -99, 99))), what))
    return max(found, key=lambda each: abs(math.log(each[0])))


def _bias(leaves: Sequence[str], reading: Reading, facts: Facts) -> tuple[bool, str]:
    """Whether biases scatter more than what their kernels make."""
    ratios = [0.0]
    for path in leaves:
        made = [facts.forward[n].mean() for n in facts.order if _added_to(reading, n, path)]
        scatter = facts.moments[path] - facts.means[path] ** 2
        ratios += [float(scatter.mean() / size) for size in made if size]
    return max(ratios) > 0.5, f"scatters by {max(ratios):.2g} of what the kernel makes"


def _added_to(reading: Reading, number: int, bias: str) -> bool:
    """Whether the first thing that a bias is added to is this value, or a view of it."""
    reached = {number}
    for node in reading.graph.nodes:
        if reached & {a for a in node.inputs if isinstance(a, int)}:
            outputs = {use.output for use in reading[bias].uses}
            if outputs & set(node.outputs):
                return True
            if node.primitive in ("reshape", "transpose", "squeeze", "broadcast_in_dim"):
                reached |= set(node.outputs)
    return False


def _fans(path: str, reading: Reading, facts: Facts) -> tuple[bool, str]:
    """Whether no common law of the true fans has the size of a kernel."""
    p = reading[path]
    fans = [f for use in p.uses for f in (use.fan_in, use.fan_out) if f]
    fans += [(a + b) / 2 for a in fans[:1] for b in fans[1:2]]
    variance = float((facts.moments[path] - facts.means[path] ** 2).mean())
    near = min((abs(math.log(variance * f / s)) for f in fans for s in SCALES), default=math.inf)
    return near > math.log(1.15), f"std {math.exp(near / 2):.3g} off the nearest common law"
