"""Second moments after every map of a model, forward and backward, before anything is drawn.

`predict` follows the law of every value through the traced model: residual sums add, maps multiply
by fan times variance, activations are integrated exactly, normalisation sets the second moment, and
attention gives an interval. Gradients go the same way back, from independent ones of unit variance
at the outputs. It holds at initialization, for wide layers and independent weights: what is
predicted is the mean over draws, from which a network of width n and depth L strays by a factor of
about ``exp(sqrt(5 L / n))``.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxinit._table import render_table
from jaxinit.initializers import Law
from jaxinit.planning import Plan
from jaxinit.planning.paths import flatten
from jaxinit.prediction.backward import second_moments
from jaxinit.prediction.elementwise import Operand
from jaxinit.prediction.fields import Field, Known, World
from jaxinit.prediction.measured import draw_input, measure_once
from jaxinit.prediction.walk import Map, Walk
from jaxinit.reading.graph import Graph

Interval = tuple[float, float]


@dataclasses.dataclass(frozen=True)
class MapMoments:
    """One map of the model: a contraction with a parameter, and the bias that follows it.

    Attributes:
        path: canonical path of the parameter.
        order: its place among the maps, from 0, in order of execution.
        rounds: which round of the loops around it, outermost first; empty outside of loops.
        forward: predicted second moment per entry of its output, low and high end.
        backward: predicted second moment per entry of the gradient with respect to its output;
            (0, 0) where no gradient comes.
        measured_forward: what was measured, mean over draws; None where nothing was.
        measured_backward: the same for the gradient.
        why: what could not be followed, where an interval reaches to infinity.
    """

    path: str
    order: int
    rounds: tuple[int, ...]
    forward: Interval
    backward: Interval
    measured_forward: float | None = None
    measured_backward: float | None = None
    why: str | None = None

    def holds(self, factor: float = 2.0) -> bool:
        """Whether what was measured is inside the intervals, widened by a factor on both sides.

        Raises:
            ValueError: when nothing was measured.
        """
        if self.measured_forward is None or self.measured_backward is None:
            raise ValueError(
                f"MapMoments.holds needs a measurement, got none for {self.path!r}. "
                "Call predict(..., measure=True)."
            )
        pairs = (
            (self.forward, self.measured_forward),
            (self.backward, self.measured_backward),
        )
        return all(low / factor <= value <= high * factor for (low, high), value in pairs)


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What `predict` returns; prints as a table.

    Attributes:
        maps: all maps in order of execution.
        outputs: predicted second moment per entry of every float output.
        draws: how many draws the measured numbers are means of; 0 when nothing was measured.
    """

    maps: tuple[MapMoments, ...]
    outputs: tuple[Interval, ...]
    draws: int = 0

    def __getitem__(self, path: str) -> tuple[MapMoments, ...]:
        """The maps of one parameter, in order of execution.

        Raises:
            KeyError: when it has none.
        """
        found = tuple(m for m in self.maps if m.path == path)
        if not found:
            raise KeyError(f"the prediction has no map with the parameter {path!r}")
        return found

    def __str__(self) -> str:
        columns = ["map", "forward", "backward"]
        if self.draws:
            columns = ["map", "forward", "measured", "backward", "measured"]
        rows = []
        for m in self.maps:
            rounds = "".join(f"[{number}]" for number in m.rounds)
            row = [m.path + rounds, _spell(m.forward)]
            row += [_number(m.measured_forward)] if self.draws else []
            row += [_spell(m.backward)]
            row += [_number(m.measured_backward)] if self.draws else []
            rows.append(row)
        return render_table(columns, rows, title="second moments per entry, predicted")

    __repr__ = __str__

    def to_json(self) -> str:
        """JSON; an end at infinity is null."""
        record = dataclasses.asdict(self)
        return json.dumps(_finite(record), indent=2)


def predict(
    graph: Any,
    laws: Any,
    *,
    inputs: Sequence[Any] | None = None,
    measure: bool = False,
    draws: int = 10,
    key: Any = None,
) -> Prediction:
    """Predicts how large every pre-activation is, and every gradient, at initialization.

    Assumed: layers are wide, weights independent of each other and of the data, data as ``inputs``
    says, and gradients at the outputs independent, of mean 0 and variance 1. What is exact under
    these is one number. The ends of an interval are two whole runs: one with all that is uncertain
    (how attention divides, how positions are correlated) at its low end, one with all of it at its
    high end. They are no strict bound: what is largest in between is not looked for.

    Weights that a loop applies again count as new ones in each round. Gates that stay open or shut
    for many rounds let more through: at width 256 an LSTM's gradient six rounds back is measured at
    1.6 times the prediction, a GRU's at 1.5.

    Args:
        graph: a traced forward pass whose first inputs are the parameters, as
            `jaxinit.reading.graph.trace` gives it for ``trace(apply, variables, *args)``; or
            anything with such a ``graph``.
        laws: the law of every parameter, in the order of the flattened tree: a `jaxinit.Plan` made
            from that tree, or the tree itself, whose leaves' mean and variance are measured, or a
            mapping from path to `Law` or (mean, variance) in that order.
        inputs: for every further input (mean, second moment), or None where it is standard normal
            or integers.
        measure: whether to draw as well, from a plan; a tree is taken as it is.
        draws: how many draws to average over, of parameters and data.
        key: for the draws; ``jax.random.key(0)`` by default.

    Returns:
        For every map the predicted second moments, with the measured ones beside them when asked.

    Raises:
        TypeError: when ``graph`` is no graph, or a law is none.
        ValueError: when there are more laws than inputs, when ``inputs`` has another length than
            the inputs that are left, when ``draws`` is below 1, or there is nothing to draw from.

    Example:
        >>> import jaxinit
        >>> from jaxinit.initializers import he_normal
        >>> from jaxinit.reading.graph import trace
        >>> shapes = {"w": jax.ShapeDtypeStruct((64, 32), "float32")}
        >>> x = jax.ShapeDtypeStruct((8, 64), "float32")
        >>> graph, _ = trace(lambda p, x: x @ p["w"], shapes, x)
        >>> print(predict(graph, jaxinit.plan(shapes, [("w", he_normal())])))
        second moments per entry, predicted
        map  forward  backward
        ──────────────────────
        w          2         1

    References:
        Poole et al., *Exponential Expressivity in Deep Neural Networks through Transient Chaos*,
        2016; Schoenholz et al., *Deep Information Propagation*, 2017.
    """
    graph = getattr(graph, "graph", graph)
    if not isinstance(graph, Graph):
        raise TypeError(
            f"predict needs a traced forward pass, got {type(graph).__name__}. "
            "Pass trace(apply, variables, x)[0] of jaxinit.reading.graph, or a reading."
        )
    named = _named_laws(laws)
    if draws < 1:
        raise ValueError(f"predict needs draws of at least 1, got {draws}.")
    rest = graph.inputs[len(named) :]
    if len(named) > len(graph.inputs):
        raise ValueError(
            f"predict needs a law for each parameter among the {len(graph.inputs)} inputs of the "
            f"graph, got {len(named)} laws. Pass the plan of the tree that was traced."
        )
    given = [None] * len(rest) if inputs is None else list(inputs)
    if len(given) != len(rest):
        raise ValueError(
            f"predict needs one entry of inputs for each of the {len(rest)} inputs after the "
            f"parameters, got {len(given)}. Write None for what is standard normal or integers."
        )
    walk = Walk(World())
    operands: list[Operand] = [
        _parameter(walk.world, path, law, graph.avals[number])
        for (path, law), number in zip(named.items(), graph.inputs, strict=False)
    ]
    operands += [
        _datum(walk.world, moments, graph.avals[number])
        for moments, number in zip(given, rest, strict=True)
    ]
    # Exponentials of wide logits leave the range of floats; softmax takes the logits instead.
    with np.errstate(all="ignore"):
        outputs = [x for x in walk.run(graph, operands) if isinstance(x, Field)]
        totals = second_moments(walk.world, outputs)
    maps = [_record(m, order, totals) for order, m in enumerate(walk.maps)]
    prediction = Prediction(tuple(maps), tuple(_forward(x) for x in outputs))
    if not measure:
        return prediction
    key = jax.random.key(0) if key is None else key
    return _measured(prediction, graph, laws, walk.maps, given, draws, key)


def _named_laws(laws: Any) -> dict[str, tuple[float, float]]:
    """Mean and variance of every parameter by path, in the order of the tree."""
    if isinstance(laws, Plan):
        return {leaf.path: _moments(leaf.path, leaf.law) for leaf in laws}
    if (
        isinstance(laws, Mapping)
        and laws
        and all(isinstance(v, Law | tuple) for v in laws.values())
    ):
        return {str(path): _moments(str(path), law) for path, law in laws.items()}
    flat = flatten("predict", laws)
    return {p: _moments(p, leaf) for p, leaf in zip(flat.paths, flat.leaves, strict=True)}


def _moments(path: str, law: Any) -> tuple[float, float]:
    if isinstance(law, Law):
        return float(np.real(law.mean)), float(law.variance)
    if isinstance(law, tuple) and len(law) == 2:
        return float(law[0]), float(law[1])
    if isinstance(law, tuple | jax.ShapeDtypeStruct) or not hasattr(law, "dtype"):
        raise TypeError(
            f"predict needs a law for {path!r}, got {law!r}. "
            "Pass a plan, a tree of arrays, or a mapping from path to (mean, variance)."
        )
    if not jnp.issubdtype(law.dtype, np.floating) or not law.size:
        return 0.0, 0.0
    wide = jnp.asarray(law, jnp.float32)
    return float(wide.mean()), float(wide.var())


def _parameter(world: World, path: str, moments: tuple[float, float], aval: Any) -> Operand:
    if not jnp.issubdtype(aval.dtype, np.floating):
        return Known(None, aval.shape)
    features = [length > 1 for length in aval.shape]
    # The same at every position: correlation 1.
    return world.normal(*moments, aval.shape, features, correlation=1.0, label=path)


def _datum(world: World, moments: Any, aval: Any) -> Operand:
    if not jnp.issubdtype(aval.dtype, np.floating):
        return Known(None, aval.shape)
    mean, second = (0.0, 1.0) if moments is None else moments
    features = [axis == len(aval.shape) - 1 for axis in range(len(aval.shape))]
    return world.normal(mean, max(second - mean**2, 0.0), aval.shape, features)


def _forward(field: Field) -> Interval:
    if field.lost:
        return (0.0, math.inf)
    return float(field.second.min()), float(field.second.max())


def _record(found: Map, order: int, totals: Mapping[int, np.ndarray]) -> MapMoments:
    total = totals.get(found.field.number, np.zeros((2, 2)))
    backward = (float(total.min()), float(total.max()))
    why = found.field.lost
    if why is None and math.isinf(backward[1]):
        why = "a value further on that could not be followed"
    _, rounds = found.place
    return MapMoments(found.label, order, rounds, _forward(found.field), backward, why=why)


def _measured(
    prediction: Prediction,
    graph: Graph,
    laws: Any,
    maps: Sequence[Map],
    given: Sequence[Any],
    draws: int,
    key: Any,
) -> Prediction:
    """The prediction with measured numbers beside it."""
    if isinstance(laws, Mapping) and all(isinstance(v, Law | tuple) for v in laws.values()):
        raise ValueError(
            "predict needs something to draw from where measure=True, got moments alone. "
            "Pass a plan, or a tree of arrays."
        )
    places = [m.place for m in maps]
    sums = {place: np.zeros(2) for place in places}
    for number in range(draws):
        operands, last = _draw(graph, laws, given, jax.random.fold_in(key, number))
        forward, backward = measure_once(graph, operands, places, last)
        for place in places:
            sums[place] += [forward.get(place, np.nan), backward.get(place, np.nan)]
    records = []
    for record, place in zip(prediction.maps, places, strict=True):
        ahead, back = (None if np.isnan(v) else float(v) for v in sums[place] / draws)
        records.append(dataclasses.replace(record, measured_forward=ahead, measured_backward=back))
    return dataclasses.replace(prediction, maps=tuple(records), draws=draws)


def _draw(graph: Graph, laws: Any, given: Sequence[Any], key: Any) -> tuple[list[Any], Any]:
    """Parameters and data for one pass, and the key that is left."""
    keys = jax.random.split(key, len(given) + 2)
    parameters = jax.tree.leaves(laws.init(keys[0]) if isinstance(laws, Plan) else laws)
    avals = [graph.avals[number] for number in graph.inputs[len(parameters) :]]
    rows = [leaf.shape[0] for leaf in parameters if leaf.ndim == 2]
    data = []
    for k, aval, moments in zip(keys[2:], avals, given, strict=True):
        drawn = draw_input(k, aval, min(rows, default=None))
        if moments is not None:
            mean, second = moments
            drawn = mean + math.sqrt(max(second - mean**2, 0.0)) * drawn
        data.append(drawn)
    return [*parameters, *data], keys[1]


def _spell(interval: Interval) -> str:
    low, high = interval
    return _number(low) if math.isclose(low, high, rel_tol=5e-3) else f"{low:.3g} to {high:.3g}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
