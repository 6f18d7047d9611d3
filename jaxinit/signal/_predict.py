"""Second moments after every layer of a model, forward and backward, before anything is drawn.

`predict` follows the law of every value through the traced model: residual sums add, layers
multiply by fan times variance, activations are integrated exactly, normalisation sets the second
moment, and attention gives an interval. Gradients go the same way back, from independent ones of
unit variance at the outputs. It holds at initialization, for wide layers and independent weights:
what is predicted is the mean over draws, from which a network of width n and depth L strays by a
factor of about ``exp(sqrt(5 L / n))``.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from jaxinit import _json
from jaxinit._arguments import suggestion
from jaxinit._table import render_table
from jaxinit.initializers import Initializer, Law, own
from jaxinit.jaxpr import is_key
from jaxinit.planning import Plan, init_by_path
from jaxinit.reading import Reading
from jaxinit.signal._backward import second_moments
from jaxinit.signal._rules import COMPLEX, Aval, is_float
from jaxinit.signal._tape import Discrete, Signal, Tape, Value
from jaxinit.signal._walk import Layer, Walk, draw_input, random_keys
from jaxinit.signal._walk import measure as run_measured

_FORMAT = "jaxinit-prediction/1"

Interval: TypeAlias = tuple[float, float]
# Mean and variance of an entry of a parameter; mean and second moment of an entry of data.
Moments: TypeAlias = tuple[float, float]
# How parameters are drawn: a plan, by path, or as a tree of arrays.
Drawn: TypeAlias = Plan | Mapping[str, Law | Moments | Initializer | None] | Any


@dataclasses.dataclass(frozen=True)
class LayerMoments:
    """One layer of the model: a contraction with a parameter, and the bias that follows it.

    Attributes:
        path: canonical path of the parameter.
        order: its place among the layers, from 0, in order of execution.
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
                f"LayerMoments.holds needs a measurement, got none for {self.path!r}. "
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
        layers: all layers in order of execution.
        outputs: predicted second moment per entry of every float output.
        draws: how many draws the measured numbers are means of; 0 when nothing was measured.
    """

    layers: tuple[LayerMoments, ...]
    outputs: tuple[Interval, ...]
    draws: int = 0

    def __getitem__(self, path: str) -> tuple[LayerMoments, ...]:
        """The layers of one parameter, in order of execution.

        Raises:
            KeyError: when it has none.
        """
        found = tuple(layer for layer in self.layers if layer.path == path)
        if not found:
            raise KeyError(f"the prediction has no layer with the parameter {path!r}")
        return found

    def to_text(self, width: int = 100) -> str:
        """The prediction as it prints, in lines of at most so many characters."""
        measured = ["measured"] if self.draws else []
        rows = []
        for layer in self.layers:
            row = [layer.path + "".join(f"[{number}]" for number in layer.rounds)]
            for interval, number in (
                (layer.forward, layer.measured_forward),
                (layer.backward, layer.measured_backward),
            ):
                row += [interval_text(interval), *([_number_text(number)] if measured else [])]
            rows.append(row)
        title = "second moments per entry, predicted"
        columns = ["layer", "forward", *measured, "backward", *measured]
        return render_table(columns, rows, title=title, max_width=width)

    def __str__(self) -> str:
        return self.to_text()

    __repr__ = __str__

    def to_dict(self) -> dict[str, Any]:
        """The prediction as dictionaries, lists, strings and numbers; infinity is None."""
        return {"format": _FORMAT} | _json.plain(self)

    def to_json(self) -> str:
        """The same as JSON text."""
        return _json.dumps(self.to_dict())


def interval_text(interval: Interval) -> str:
    """An interval as text, one number where its ends are close."""
    low, high = interval
    same = math.isclose(low, high, rel_tol=5e-3)
    return _number_text(low) if same else f"{low:.3g} to {high:.3g}"


def _number_text(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def predict(
    reading: Reading,
    init: Drawn,
    *,
    inputs: Sequence[Moments | None] | None = None,
    measure: bool = False,
    draws: int = 10,
    key: jax.Array | None = None,
) -> Prediction:
    """Predicts how large every pre-activation is, and every gradient, at initialization.

    Assumed: layers are wide, weights independent of each other and of the data, data as ``inputs``
    says, and gradients at the outputs independent, of mean 0 and variance 1. What is exact under
    these is one number. Some things are uncertain: how attention divides, how positions are
    correlated. An interval comes from two whole runs, one with everything that is uncertain at its
    low end, one with all of it at its high end. It is no strict bound: a mixture of low and high
    ends may give less, or more.

    Weights that a loop applies again count as new ones in each round. Gates that stay open or shut
    for many rounds let more through: at width 256 an LSTM's gradient six rounds back is measured at
    1.6 times the prediction, a GRU's at 1.5.

    Args:
        reading: what the model does with its parameters, from `jaxinit.read`.
        init: how every parameter is drawn, matched by path: a `jaxinit.Plan`; or a mapping from
            path to initializer, `Law` or (mean, variance); or a tree of arrays, whose leaves' mean
            and variance are measured.
        inputs: for every array that the model is called with (mean, second moment), or None where
            it is standard normal or integers.
        measure: whether to draw as well, from a plan or from initializers; a tree of arrays is
            taken as it is.
        draws: how many draws to average over, of parameters and data.
        key: for the draws; ``jax.random.key(0)`` by default.

    Returns:
        For every layer the predicted second moments, with the measured ones beside them when asked.

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
        layer  forward  backward
        ────────────────────────
        w            2         1

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
    given = [None] * len(reading.arguments) if inputs is None else inputs
    if len(given) != len(reading.arguments):
        raise ValueError(
            f"predict needs one entry of inputs for each of the {len(reading.arguments)} arrays "
            f"that the model is called with, got {len(given)}. Write None for what is standard "
            "normal or integers."
        )
    data = [(0.0, 1.0) if own is None else own for own in given]
    sizes, walk = _propagated(reading, init, data)
    layers = [_record(layer, order, sizes) for order, layer in enumerate(walk.layers)]
    if measure:
        key = jax.random.key(0) if key is None else key
        layers = _measured(reading, init, layers, walk.layers, data, draws, key)
    return Prediction(tuple(layers), sizes.outputs, draws if measure else 0)


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Second moments per entry of every value of a model, low and high end.

    Gradients are followed when they are first asked for.

    Attributes:
        signals: what is predicted of each value of the graph, by number, one for each round.
        tape: that the signals are on.
        ends: the float outputs.
    """

    signals: Mapping[int, Sequence[Signal]]
    tape: Tape
    ends: Sequence[Signal]

    @property
    def outputs(self) -> tuple[Interval, ...]:
        """Second moments of every float output."""
        return tuple(map(_forward, self.ends))

    def forward(self, number: int) -> tuple[Interval, ...]:
        """Second moments of a value, one for each round of the loops around it.

        Args:
            number: of the value, in the graph of the reading.
        """
        return tuple(map(_forward, self.signals.get(number, ())))

    def backward(self, number: int) -> tuple[Interval, ...]:
        """Second moments of the gradient at a value, one for each round; (0, 0) for none."""
        return tuple(map(self.gradient, self.signals.get(number, ())))

    def gradient(self, signal: Signal) -> Interval:
        """Second moment of the gradient at a signal."""
        total = self._gradients.get(signal.number, np.zeros((2, 2)))
        return float(total.min()), float(total.max())

    @functools.cached_property
    def _gradients(self) -> Mapping[int, np.ndarray]:
        with np.errstate(all="ignore"):
            return second_moments(self.tape, self.ends)

    def why(self, number: int) -> str | None:
        """Why nothing is known of a value; None where something is."""
        return next((s.unknown for s in self.signals.get(number, ()) if s.unknown), None)


def propagate(reading: Reading, init: Drawn) -> Sizes:
    """The size of every value and every gradient of a model, for standard normal data.

    Args:
        reading: what the model does with its parameters.
        init: how they are drawn, as in `predict`.

    Raises:
        TypeError: when a law is none.
        ValueError: when a leaf has no law, or a law is of no leaf.
    """
    return _propagated(reading, init, [(0.0, 1.0)] * len(reading.arguments))[0]


def _propagated(reading: Reading, init: Drawn, data: Sequence[Moments]) -> tuple[Sizes, Walk]:
    moments, walk = _moments_by_path(reading, init), Walk(Tape())
    operands = [
        _parameter(walk.tape, path, moments.get(path), _aval(reading, path))
        for path in reading.inputs
    ]
    operands += [
        _datum(walk.tape, own, reading.graph.avals[number])
        for own, number in zip(data, reading.arguments, strict=True)
    ]
    # Exponentials of wide logits leave the range of floats; softmax takes the logits instead.
    with np.errstate(all="ignore"):
        outputs = [x for x in walk.run(reading.graph, operands) if isinstance(x, Signal)]
    return Sizes(walk.signals, walk.tape, outputs), walk


def _aval(reading: Reading, path: str) -> Aval:
    return reading.graph.avals[reading.inputs[path]]


def _parameter(tape: Tape, path: str, moments: Moments | None, aval: Aval) -> Value:
    if jnp.issubdtype(aval.dtype, np.complexfloating):
        return tape.parameter(path, (0.0, 1.0), aval.shape, COMPLEX)
    is_unknown = moments is not None and math.isnan(moments[1])
    if not is_float(aval) or moments is None:
        return Discrete(aval.shape, path, None if is_unknown else moments)
    if is_unknown:
        return tape.parameter(path, (0.0, 1.0), aval.shape, f"the law of {path!r} is unknown")
    return tape.parameter(path, moments, aval.shape)


def _datum(tape: Tape, moments: Moments, aval: Aval) -> Value:
    if not is_float(aval):
        return Discrete(aval.shape)
    mean, second = moments
    features = [axis == len(aval.shape) - 1 for axis in range(len(aval.shape))]
    return tape.normal(mean, max(second - mean**2, 0.0), aval.shape, features)


def _forward(signal: Signal) -> Interval:
    if signal.unknown or np.isnan(signal.second).any():
        return (0.0, math.inf)
    return float(signal.second.min()), float(signal.second.max())


def _record(layer: Layer, order: int, sizes: Sizes) -> LayerMoments:
    backward = sizes.gradient(layer.signal)
    why = layer.signal.unknown
    if why is None and np.isnan(layer.signal.second).any():
        why = "no number: a division by zero, or a root of a negative number"
    if why is None and math.isinf(backward[1]):
        why = "a value further on that could not be followed"
    forward, (_, rounds) = _forward(layer.signal), layer.occurrence
    return LayerMoments(layer.label, order, rounds, forward, backward, why=why)


# How parameters are drawn: their moments, and arrays where a measurement is asked for.


def _moments_by_path(reading: Reading, init: Drawn) -> dict[str, Moments]:
    """Mean and variance of an entry of every floating-point leaf of a reading.

    Raises:
        TypeError: when something is no law.
        ValueError: when a leaf has no law, or a law is of no leaf.
    """
    laws = _laws_by_path(init)
    for path in laws:
        if path not in reading:
            raise ValueError(
                f"predict needs laws of the {len(reading)} leaves that were read, got one for "
                f"{path!r}{suggestion(path, reading.paths)}. Pass a plan of the same tree."
            )
    found = {path: _moments(path, law, _aval(reading, path)) for path, law in laws.items()}
    floating = [path for path in reading.paths if is_float(_aval(reading, path))]
    missing = [path for path in floating if path not in found]
    if missing:
        raise ValueError(
            f"predict needs a law for every leaf that was read, got none for {missing[0]!r} "
            f"({len(missing)} of {len(floating)} are missing). Pass a plan of the same tree, or "
            "the tree itself."
        )
    return found


def _laws_by_path(init: Drawn) -> dict[str, Any]:
    """What is known of each leaf: its initializer, `Law`, (mean, variance) or array."""
    known = init_by_path("predict", init)
    kinds = Initializer | Law | tuple
    return {p: law for p, law in known.items() if isinstance(law, kinds) or hasattr(law, "dtype")}


def _moments(path: str, law: Any, aval: Aval) -> Moments:
    if isinstance(law, Initializer):
        law = law.law(aval.shape, aval.dtype)
    if isinstance(law, Law):
        return float(np.real(law.mean)), float(law.variance)
    if isinstance(law, tuple) and len(law) == 2:
        return float(law[0]), float(law[1])
    if isinstance(law, tuple | jax.ShapeDtypeStruct):
        raise TypeError(
            f"predict needs a law for {path!r}, got {law!r}. Pass a plan, a tree of arrays, or a "
            "mapping from path to an initializer or (mean, variance)."
        )
    counts = not is_key(law) and np.issubdtype(law.dtype, np.integer)
    wide = jnp.asarray(law, jnp.float32) if counts or is_float(law) else jnp.zeros(0)
    if not wide.size:
        return 0.0, 0.0
    return law_of_sample(float(wide.mean()), float(jnp.mean(wide**2)), wide.size)


def law_of_sample(mean: float, second: float, entries: int) -> Moments:
    """Mean and variance of the law that entries were drawn by.

    A mean within 5 standard errors of zero is chance. Along many layers of one sign it would add
    up, and no other draw of the law would show it. Entries that do not scatter are what they are.

    Args:
        mean: mean of the entries.
        second: their mean square.
        entries: how many there are.
    """
    variance = max(second - mean**2, 0.0)
    if abs(mean) <= 5 * math.sqrt(variance / entries):
        return 0.0, second
    return mean, variance


def _measured(
    reading: Reading,
    init: Drawn,
    records: Sequence[LayerMoments],
    layers: Sequence[Layer],
    data: Sequence[Moments],
    draws: int,
    key: jax.Array,
) -> list[LayerMoments]:
    """The records with measured numbers beside what is predicted."""
    wanted = [layer.occurrence for layer in layers]
    sums = np.zeros((len(wanted), 2))
    for number in range(draws):
        of_parameters, of_data, last = jax.random.split(jax.random.fold_in(key, number), 3)
        parameters = _drawn_parameters(reading, init, of_parameters)
        operands = [*parameters, *_drawn_data(reading, data, parameters, of_data)]
        found = run_measured(reading.graph, operands, set(wanted), last)
        for row, occurrence in zip(sums, wanted, strict=True):
            row += [moments.get(occurrence, math.nan) for moments in found]
    pairs = [[None if math.isnan(v) else float(v) for v in row] for row in sums / draws]
    return [
        dataclasses.replace(record, measured_forward=forward, measured_backward=backward)
        for record, (forward, backward) in zip(records, pairs, strict=True)
    ]


def _drawn_parameters(reading: Reading, init: Drawn, key: jax.Array) -> list[jax.Array]:
    """Arrays for every leaf of a reading, in its order; of a tree of arrays the tree as it is.

    Raises:
        ValueError: when there are moments alone.
    """
    if isinstance(init, Plan):
        # Random keys and counters that the model draws itself need no law.
        counters = [leaf for leaf in init if leaf.initializer == own and not is_float(leaf)]
        init = init.init(key, keep={leaf.path: _counter(key, leaf) for leaf in counters})
    laws = _laws_by_path(init)
    arrays = []
    for number, path in enumerate(reading.paths):
        aval, law = _aval(reading, path), laws.get(path)
        if isinstance(law, Law | tuple):
            raise ValueError(
                "predict needs something to draw from where measure=True, got moments alone. "
                "Pass a plan, initializers, or a tree of arrays."
            )
        if isinstance(law, Initializer):
            law = law(jax.random.fold_in(key, number), aval.shape, aval.dtype)
        arrays.append(_counter(key, aval) if law is None else law)
    return arrays


def _counter(key: jax.Array, aval: Any) -> jax.Array:
    return random_keys(key, aval) if is_key(aval) else jnp.zeros(aval.shape, aval.dtype)


def _drawn_data(
    reading: Reading,
    data: Sequence[Moments],
    parameters: Sequence[jax.Array],
    key: jax.Array,
) -> list[jax.Array]:
    """Data of the right shapes; integers stay below the rows of the smallest table."""
    rows = min((leaf.shape[0] for leaf in parameters if leaf.ndim == 2), default=None)
    keys = jax.random.split(key, len(data))
    return [
        draw_input(k, reading.graph.avals[number], moments, rows)
        for k, number, moments in zip(keys, reading.arguments, data, strict=True)
    ]
