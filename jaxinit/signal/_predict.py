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
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxinit._table import render_table
from jaxinit.reading._reader import Reading
from jaxinit.signal._backward import second_moments
from jaxinit.signal._elementwise import Operand
from jaxinit.signal._fields import Field, Known, World
from jaxinit.signal._given import Moments, drawn_parameters, moments_by_path
from jaxinit.signal._measured import draw_input, measure_once
from jaxinit.signal._walk import Map, Walk

_FORMAT = "jaxinit-prediction/1"

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

    def to_text(self, width: int = 100) -> str:
        """The prediction as it prints, in lines of at most so many characters."""
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
        title = "second moments per entry, predicted"
        return render_table(columns, rows, title=title, max_width=width)

    def __str__(self) -> str:
        return self.to_text()

    __repr__ = __str__

    def to_json(self) -> dict[str, Any]:
        """The prediction as plain dicts, lists, strings and numbers; infinity is None."""
        return {"format": _FORMAT} | _finite(dataclasses.asdict(self))


def predict(
    reading: Reading,
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
        reading: what the model does with its parameters, from `jaxinit.read`.
        laws: how every parameter is drawn, matched by path: a `jaxinit.Plan`; or a tree of arrays,
            whose leaves' mean and variance are measured; or a mapping from path to `Law` or
            (mean, variance).
        inputs: for every array that the model is called with (mean, second moment), or None where
            it is standard normal or integers.
        measure: whether to draw as well, from a plan; a tree is taken as it is.
        draws: how many draws to average over, of parameters and data.
        key: for the draws; ``jax.random.key(0)`` by default.

    Returns:
        For every map the predicted second moments, with the measured ones beside them when asked.

    Raises:
        TypeError: when ``reading`` is no reading, or a law is none.
        ValueError: when a leaf has no law, or a law is of no leaf, when ``inputs`` has not one
            entry for each array, when ``draws`` is below 1, or there is nothing to draw from.

    Example:
        >>> import jaxinit
        >>> from jaxinit.initializers import he_normal
        >>> shapes = {"w": jax.ShapeDtypeStruct((64, 32), "float32")}
        >>> x = jax.ShapeDtypeStruct((8, 64), "float32")
        >>> reading = jaxinit.read(lambda p, x: x @ p["w"], shapes, x)
        >>> print(predict(reading, jaxinit.plan(shapes, [("w", he_normal())])))
        second moments per entry, predicted
        map  forward  backward
        ──────────────────────
        w          2         1

    References:
        Poole et al., *Exponential Expressivity in Deep Neural Networks through Transient Chaos*,
        2016; Schoenholz et al., *Deep Information Propagation*, 2017.
    """
    if not isinstance(reading, Reading):
        raise TypeError(
            f"predict needs a reading, got {type(reading).__name__}. "
            "Call it as jaxinit.predict(jaxinit.read(model.apply, variables, x), plan)."
        )
    if draws < 1:
        raise ValueError(f"predict needs draws of at least 1, got {draws}.")
    given = [None] * len(reading.arguments) if inputs is None else list(inputs)
    if len(given) != len(reading.arguments):
        raise ValueError(
            f"predict needs one entry of inputs for each of the {len(reading.arguments)} arrays "
            f"that the model is called with, got {len(given)}. Write None for what is standard "
            "normal or integers."
        )
    named, avals = moments_by_path(reading, laws), reading.graph.avals
    walk = Walk(World())
    operands = [
        _parameter(walk.world, path, named.get(path), avals[number])
        for path, number in reading.inputs.items()
    ]
    operands += [
        _datum(walk.world, moments, avals[number])
        for moments, number in zip(given, reading.arguments, strict=True)
    ]
    # Exponentials of wide logits leave the range of floats; softmax takes the logits instead.
    with np.errstate(all="ignore"):
        outputs = [x for x in walk.run(reading.graph, operands) if isinstance(x, Field)]
        totals = second_moments(walk.world, outputs)
    maps = [_record(m, order, totals) for order, m in enumerate(walk.maps)]
    prediction = Prediction(tuple(maps), tuple(_forward(x) for x in outputs))
    if not measure:
        return prediction
    key = jax.random.key(0) if key is None else key
    return _measured(prediction, reading, laws, walk.maps, given, draws, key)


def _parameter(world: World, path: str, moments: Moments | None, aval: Any) -> Operand:
    if moments is None:
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
    reading: Reading,
    laws: Any,
    maps: Sequence[Map],
    given: Sequence[Any],
    draws: int,
    key: Any,
) -> Prediction:
    """The prediction with measured numbers beside it."""
    places = [m.place for m in maps]
    sums = {place: np.zeros(2) for place in places}
    for number in range(draws):
        of_parameters, of_data, last = jax.random.split(jax.random.fold_in(key, number), 3)
        parameters = drawn_parameters(reading, laws, of_parameters)
        operands = [*parameters, *_draw_data(reading, given, parameters, of_data)]
        forward, backward = measure_once(reading.graph, operands, places, last)
        for place in places:
            sums[place] += [forward.get(place, np.nan), backward.get(place, np.nan)]
    records = []
    for record, place in zip(prediction.maps, places, strict=True):
        ahead, back = (None if np.isnan(v) else float(v) for v in sums[place] / draws)
        records.append(dataclasses.replace(record, measured_forward=ahead, measured_backward=back))
    return dataclasses.replace(prediction, maps=tuple(records), draws=draws)


def _draw_data(
    reading: Reading, given: Sequence[Any], parameters: Sequence[Any], key: jax.Array
) -> list[jax.Array]:
    """Data of the right shapes; integers stay below the rows of the smallest table."""
    if not given:
        return []
    rows = min((leaf.shape[0] for leaf in parameters if leaf.ndim == 2), default=None)
    data = []
    for k, number, moments in zip(
        jax.random.split(key, len(given)), reading.arguments, given, strict=True
    ):
        drawn = draw_input(k, reading.graph.avals[number], rows)
        if moments is not None:
            mean, second = moments
            drawn = mean + math.sqrt(max(second - mean**2, 0.0)) * drawn
        data.append(drawn)
    return data


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
