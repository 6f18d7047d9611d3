"""What the guide decides by: facts of a whole model, and the roles of each of its parameters.

A role is a short name such as ``"hidden"`` or ``"residual_output"``. Every parameter has several,
the most specific first, so that a row of the guide may speak of residual outputs in one model and
of kernels in general in another. The last role is as a rule the coarse one that the reading gives:
a reading says ``"kernel"``, and the advice refines it by what lies around the kernel.
"""

from __future__ import annotations

import copy
import functools
import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import jax.numpy as jnp

from jaxinit import activations
from jaxinit.activations import Moments
from jaxinit.advice._reach import (
    before_couplings,
    before_decays,
    comes_to_softmax,
    forget_gates,
    functions_of,
    is_carried,
    is_nonlinear,
    is_of_one_array,
    is_view,
    is_view_or_sum,
    logits_after,
)
from jaxinit.jaxpr import Class, Neighbours, Node, is_key, is_of, single_number, straighten
from jaxinit.reading import Activation, After, Parameter, Reading, Use

R = TypeVar("R")

# Roles in a reading of the parameters that a layer contracts data with.
_OF_LAYERS = ("kernel", "head", "gate")
_NO_USE = Use("none", "unused")


class ParameterFacts:
    """What the guide asks about one parameter.

    Args:
        model: facts of the model that it belongs to, as far as they are known without it.
        parameter: its record in the reading.

    Attributes:
        model: the same.
        parameter: the same.
        path: canonical path.
        shape: shape of the array.
        use: its first use in a layer, else its first use; a record of no use where it has none.
        fan_in: true fan_in of that use; 0 where it has none.
        fan_out: true fan_out of that use; 0 where it has none.
        depth: layers on the longest way from the model's inputs to that use, that one included.
        after: what the output of that use meets.
        branch: the residual branch that it lies in, if any.
        activation: the nonlinearity that its output meets, if any.
        is_linear: whether its output meets no activation before the next layer, sum or output.
        is_layer: whether data are contracted with it.
        is_bypass: whether it is a factor of a low-rank product beside another layer.
        roles: what it is for in the model, the most specific first.
        role: the first of them.
        pieces: its uses as kernels packed side by side in one array; else empty.
        correction: what the standard deviation of a row is multiplied with, 1 unless the prediction
            of the advice asks for it.
    """

    correction = 1.0

    def __init__(self, model: ModelFacts, parameter: Parameter) -> None:
        layers = [use for use in parameter.uses if use.role in _OF_LAYERS and use.fan_in]
        self.model, self.parameter = model, parameter
        self.path, self.shape = parameter.path, parameter.shape
        self.use = use = (*layers, *parameter.uses, _NO_USE)[0]
        self.fan_in, self.fan_out = use.fan_in or 0.0, use.fan_out or 0.0
        self.depth, self.branch = use.depth or 0, use.branch
        self.after = after = use.after or After()
        met = after.activation
        self.activation = None if met is None or met.name == "identity" else met
        self.is_linear = self.activation is None and not after.several
        self.is_layer = use.role in _OF_LAYERS and self.fan_in > 0
        self.is_bypass = use.bypass is not None
        self.roles = tuple(self._roles(layers))
        self.role = self.roles[0]
        packed = [each for each in layers if each.slice_output is not None]
        self.pieces = tuple(packed) if self.roles[-1] == "kernel" else ()

    @property
    def is_inexact(self) -> bool:
        """Whether its entries are real or complex numbers: no integers, truth values or keys."""
        dtype = self.parameter.dtype
        return not dtype.startswith("key<") and bool(jnp.issubdtype(jnp.dtype(dtype), jnp.inexact))

    def corrected(self, factor: float) -> ParameterFacts:
        """The same facts, with the standard deviation multiplied."""
        new = copy.copy(self)
        new.correction = self.correction * factor
        return new

    @property
    def gain(self) -> float:
        """Gain that passes a second moment of 1 through the activation behind it; else 1.

        A layer that gates another has gain 1: its activation is one factor of a product.
        """
        known = None if self.activation is None else moments_of(self.activation)
        if self.after.gates or not known or not known.second_moment:
            return 1.0
        return known.forward_gain

    @functools.cached_property
    def data_operand(self) -> int | None:
        """Number of the value that its layer contracts it with; None where there is none."""
        graph = self.model.graph
        node = graph.makers.get(-1 if self.use.output is None else self.use.output)
        operands = [] if node is None else [a for a in node.inputs[:2] if isinstance(a, int)]
        # The parameter may have been scaled, masked or cut before.
        source = self.model.reading.inputs[self.path]
        own = [a for a in operands if source in graph.before([a], is_of_one_array)]
        others = [a for a in operands if a not in own] or own[1:]
        return others[0] if others else None

    @functools.cached_property
    def logits(self) -> int | None:
        """Number of the logits of the softmax that it comes to as a query or key; else None."""
        return logits_after(self.model.graph, self.use.meets)

    @property
    def direction(self) -> Parameter | None:
        """The kernel whose norm is divided out, of which it is the scale; else None."""
        if self.parameter.role != "scale" or self.use.after is None:
            return None
        kernels = [self.model.reading[path] for path in self.use.through.beside]
        return next((k for k in kernels if k.uses and k.uses[0].through.is_scale_free), None)

    @property
    def forget_range(self) -> tuple[int, float, float] | None:
        """An axis, and start and stop of what a forget gate reads along it, as shares of it.

        None where no forget gate reads it, or where the gate reads no single range of it.
        """
        return next((read for _, read in self._forget_gates), None)

    @functools.cached_property
    def _forget_gates(self) -> list[tuple[set[int], tuple[int, float, float]]]:
        """What each forget gate that reads it is made of, and the range that the gate reads."""
        outputs = {use.output for use in self.parameter.uses}
        gates = [reached for reached in self.model.before_forget_gates if outputs & reached]
        ranges = [(reached, self._read_of(reached)) for reached in gates]
        return [(reached, read) for reached, read in ranges if read is not None]

    def _read_of(self, reached: set[int]) -> tuple[int, float, float] | None:
        """Which part of it one of these values is made of; None for no single range of it."""
        joined, *place = self._beside_others() or (-1, 0.0, 1.0)
        length = place[1] - place[0]
        for axis in reversed(range(len(self.shape))):
            size = math.prod(self.shape[axis:]) / (length if axis <= joined else 1.0)
            share = self.model.share_of_cut(reached, round(size))
            if share is None:
                return None
            if share != (0.0, 1.0) and axis == joined:
                start, stop = (min(max((x - place[0]) / length, 0.0), 1.0) for x in share)
                return (axis, start, stop) if start < stop else None
            if share != (0.0, 1.0):
                return axis, *share
        return 0, 0.0, 1.0

    def _beside_others(self) -> tuple[int, float, float] | None:
        """The axis along which the model lays it beside other arrays, and where, as shares."""
        graph, number = self.model.graph, self.model.reading.inputs[self.path]
        aval = self.model.reading.graph.aval
        for node in graph.after(number, is_view):
            if node.primitive == "concatenate":
                axis = node.params["dimension"]
                shapes = [aval(atom).shape for atom in node.inputs]
                mine = [
                    isinstance(a, int) and number in graph.before([a], is_view) for a in node.inputs
                ]
                at = mine.index(True)
                own = axis - len(shapes[at]) + len(self.shape)
                if sum(mine) == 1 and 0 <= own and shapes[at][axis:] == self.shape[own:]:
                    ends = [0, *itertools.accumulate(shape[axis] for shape in shapes)]
                    return own, ends[at] / ends[-1], ends[at + 1] / ends[-1]
        return None

    @property
    def state_rows(self) -> tuple[tuple[int, bool], ...]:
        """Of a kernel for a state and other data side by side, the rows of each part in order.

        A part is the number of its rows, and whether a loop carries what is multiplied with them.
        Empty where nothing lies side by side, or where all or none of it is state.
        """
        graph = self.model.graph
        node = graph.makers.get(-1 if self.use.output is None else self.use.output)
        if node is None or node.primitive != "dot_general":
            return ()
        reached = [atom in self.model.data for atom in node.inputs]
        contracted = node.params["dimension_numbers"][0][reached.index(True)]
        made = graph.makers.get(node.inputs[reached.index(True)])
        if made is None or made.primitive != "concatenate" or len(contracted) != 1:
            return ()
        (axis,) = contracted
        if made.params["dimension"] != axis:
            return ()
        aval = self.model.reading.graph.aval
        sizes = [aval(atom).shape[axis] for atom in made.inputs]
        carried = [isinstance(a, int) and is_carried(graph, a) for a in made.inputs]
        is_mixed = any(carried) and not all(carried)
        return tuple(zip(sizes, carried, strict=True)) if is_mixed else ()

    @property
    def has_forget_offset(self) -> bool:
        """Whether the model itself adds a number to the forget gates that read it."""
        makers = self.model.graph.makers
        reached = set().union(*(gate for gate, _ in self._forget_gates)) & makers.keys()
        terms = [a for n in reached if makers[n].primitive == "add" for a in makers[n].inputs]
        numbers = [single_number(term.val) for term in terms if not isinstance(term, int)]
        return any(number is not None and number >= 0.5 for number in numbers)

    def _roles(self, layers: Sequence[Use]) -> Iterator[str]:
        """Its roles, where the given uses are in layers."""
        role = self.parameter.role
        if role in ("embedding", "position"):
            if role == "position" and comes_to_softmax(self.model.graph, _made_by(self.use)):
                yield from ("score_bias", "bias")
                return
            if role == "embedding" and layers:
                yield "tied_embedding"
            elif role == "embedding":
                looks_up = self.use.contracted or is_of(self.use.operation, Class.INDEXES)
                yield "table" if looks_up else "token"
            yield from dict.fromkeys((role, "embedding"))
        elif role in ("state", "unused", "unknown") or self.use is _NO_USE:
            yield role
        elif layers:
            through = self.use.through
            is_multiple = through.is_linear and self.path not in through.beside
            if not is_multiple and not through.is_scale_free:
                yield "transformed"
            yield from self._roles_of_layer()
            if self.is_linear or any(each.after and each.after.gates for each in layers):
                yield "linear"  # before "kernel", for rows whose gain is an activation's
            yield "kernel"
        else:
            is_asked = not self.forget_range and self.direction is None
            special = list(self._special()) if is_asked else []
            yield from special
            if self.direction is not None:
                yield "weight_scale"
            if role == "scale" and not special:
                yield from self._roles_of_scale()
            elif self.forget_range:
                yield "forget_bias"
            elif role == "bias" and self.model.is_made_of(self.use.output, ("head",)):
                yield "head_bias"
            yield role

    def _roles_of_layer(self) -> Iterator[str]:
        after, branch = self.after, self.branch
        if self.is_bypass:
            yield f"bypass_{self.use.bypass}"
            return
        if self.model.before_couplings & {use.output for use in self.parameter.uses}:
            yield "coupling"
        is_head = self.parameter.role == "head" or (after.is_output and not branch)
        if is_head:
            yield "head"
        else:
            if after.index and not (after.softmax or after.activation or after.several):
                yield "index"
            if after.softmax:
                if self.use.routes and not after.is_output:
                    yield "router"
                elif self._meets_keys():
                    yield "query_key"
            if branch:
                yield "residual_output" if branch.is_last else "branch_inner"
        if after.recurrent:
            yield "recurrent"
        elif not branch and not is_head and self.depth <= 1:
            yield "first"
        if not branch and not is_head:
            yield "hidden"

    def _special(self) -> Iterator[str]:
        """Roles of what no law fits but the model's own: decays, temperatures, constants.

        A scale is one only where it multiplies what is normalised, what a layer makes, or a branch.
        """
        model, uses = self.model, self.parameter.uses
        outputs = {use.output for use in uses}
        is_decay = bool(outputs & model.before_decays)
        if is_decay:
            yield "decay"
        through = functions_of(model.graph, model.reading.inputs[self.path], model.data)
        is_plain = not any(map(is_nonlinear, through))
        if self.parameter.role == "scale":
            is_scale = any(use.scales or (use.branch and use.branch.is_last) for use in uses)
            divides = any(use.operation == "div" for use in uses)
            is_plain = is_plain and is_scale and not divides and not self._are_taps()
        if is_decay or not is_plain:
            yield "special"
        elif self.parameter.role == "scale" and any(map(_adds_one, through)):
            yield "offset_scale"

    def _are_taps(self) -> bool:
        """Whether several entries multiply one value, moved: a convolution written out."""
        makers = self.model.graph.makers
        nodes = [makers[use.output] for use in self.parameter.uses if use.output in makers]
        factors = [[a for a in node.inputs if a in self.model.data] for node in nodes]
        moved = [self.model.graph.before(each, is_view) for each in factors]
        return len(moved) > 1 and bool(set.intersection(*moved))

    def _meets_keys(self) -> bool:
        """Whether a contraction lies before the softmax, or projected tokens that meet keys."""
        number = self.model.reading.inputs[self.path]
        through = functions_of(self.model.graph, number, self.model.data)
        is_projected = any(is_of(node.primitive, Class.CONTRACTS) for node in through)
        return is_projected or not comes_to_softmax(self.model.graph, _made_by(self.use))

    def _roles_of_scale(self) -> Iterator[str]:
        node = self.model.graph.makers.get(_made_by(self.use))
        if self.branch and self.branch.is_last and node is not None and node.primitive == "mul":
            # It multiplies what a layer makes, so it is no scale of a normalisation.
            if any(self.model.is_made_of(factor, _OF_LAYERS) for factor in node.inputs):
                yield "branch_scale"
        if self.path in self.model.last_scales:
            yield "last_scale"


class ModelFacts:
    """The facts of a model that the guide decides by.

    Args:
        reading: what `jaxinit.read` says of the model.

    Attributes:
        reading: the same.
        graph: makers and readers of its values, with bodies of loops in line.
        parameters: facts of each of its parameters, in the order of the tree.
        layers: those that data are contracted with.
        hidden: the layers that are neither heads nor the last of a coupling, and do not run beside
            another as a low-rank bypass.
        depth: layers on the longest way through the model.
        width: harmonic mean of the widths of the hidden layers on that way; None without any.
        branches: branches on the longest residual stream; 0 where there is none.
        norms: names of the normalisations that layers meet, and ``"branch"`` where branches begin
            or end with one.
        norm_first: whether most residual branches begin with a normalisation.
        norm_after: whether most residual sums are normalised (post-norm).
        has_attention: whether queries meet keys in a softmax.
        has_convolutions: whether most layers have a receptive field.
        begins_with_patches: whether the first layer is a convolution whose windows lie side by
            side, with no activation behind it: an embedding of patches.
        is_recurrent: whether a layer reads what a loop over a sequence carries.
        activation: the nonlinearity that most layers meet; None where none does.
        before_forget_gates: what each forget gate is made of, by sums and views.
        before_couplings: what couplings of flows scale and shift by, entry by entry.
        before_decays: what decays of memories are made of, entry by entry.
        data: numbers of the values that depend on the model's inputs.
        last_scales: paths of the scales of normalisations that end a residual branch.
    """

    def __init__(self, reading: Reading) -> None:
        self.reading = reading
        self.graph = Neighbours(straighten(reading.graph))
        self.before_forget_gates = forget_gates(self.graph, reading.graph.inputs)
        self.last_scales = _last_scales(reading)
        self.before_decays = before_decays(self.graph)
        inputs = [n for n in reading.arguments if not is_key(reading.graph.avals[n])]
        reached = (self.graph.after(number, lambda node: True) for number in inputs)
        self.data = {made for nodes in reached for node in nodes for made in node.outputs}
        self.data.update(inputs)
        self.before_couplings = before_couplings(self.graph, self.data)
        self._uses = [use for parameter in reading for use in parameter.uses]

        self.parameters = tuple(ParameterFacts(self, parameter) for parameter in reading)
        self.layers = layers = [p for p in self.parameters if p.is_layer]
        ends = {"head", "coupling"}
        self.hidden = [p for p in layers if not ends & {*p.roles} and not p.is_bypass]

        self.depth, self.branches = reading.chain.depth, reading.chain.branches
        self.width = reading.chain.width

        met = [use.after for use in self._uses if use.after]
        branches = [use.branch for use in self._uses if use.branch]
        lasts = [branch for branch in branches if branch.is_last]
        self.norms = {after.normalisation for after in met if after.normalisation}
        if any(branch.has_norm or branch.has_norm_after for branch in branches):
            self.norms.add("branch")
        self.norm_first = _are_most([branch.has_norm for branch in lasts])
        self.norm_after = _are_most([branch.has_norm_after for branch in lasts])

        first = min(layers, key=lambda p: (p.depth, p.use.output or 0), default=None)
        self.begins_with_patches = first is not None and first.is_linear and self._is_tiled(first)
        self.has_convolutions = _are_most([bool(p.use.field) for p in layers])
        self.has_attention = any("query_key" in p.roles for p in self.parameters)
        self.is_recurrent = any(after.recurrent for after in met)

        nonlinear = [p.activation for p in layers if p.activation]
        counts = Counter(activation.name for activation in nonlinear)
        self.activation = max(nonlinear, key=lambda met: counts[met.name], default=None)

    def _is_tiled(self, layer: ParameterFacts) -> bool:
        """Whether a layer is a convolution whose stride is the size of its kernel."""
        node = self.graph.makers.get(_made_by(layer.use))
        if node is None or node.primitive != "conv_general_dilated" or not layer.use.field:
            return False
        kernel = self.reading.graph.aval(node.inputs[1]).shape
        field = node.params["dimension_numbers"].rhs_spec[2:]
        return tuple(kernel[axis] for axis in field) == tuple(node.params["window_strides"])

    @property
    def moments(self) -> Moments | None:
        """What the commonest activation does to a standard normal; None without one."""
        return None if self.activation is None else moments_of(self.activation)

    def is_made_of(self, value: Any, roles: Sequence[str]) -> bool:
        """Whether a value is made of what uses of these roles make, by views, sums and choices."""
        if not isinstance(value, int):
            return False
        reached = self.graph.before(
            [value], lambda node: is_view_or_sum(node) or node.primitive == "select_n"
        )
        return any(use.role in roles and _made_by(use) in reached for use in self._uses)

    def share_of_cut(self, reached: set[int], size: int) -> tuple[float, float] | None:
        """Which part one of these values is of a packed one.

        Args:
            reached: numbers of the values.
            size: entries of the packed value, which are the last axes of a batch.

        Returns:
            Start and stop as shares; the whole where nothing is cut, and None where the part is not
            one range of the packed entries.
        """
        for number in reached:
            node = self.graph.makers.get(number)
            if node is None or node.primitive not in ("slice", "split", "unstack"):
                continue
            whole = self.reading.graph.avals[node.inputs[0]].shape
            starts = [axis for axis in range(len(whole)) if math.prod(whole[axis:]) == size]
            if not starts:
                continue
            axes = range(starts[-1], len(whole))
            first, *others = (_range(node, number, axis, whole[axis]) for axis in axes)
            if first.step > 1 or [len(part) for part in others] != list(whole[axes[0] + 1 :]):
                return None
            if len(first) < whole[axes[0]]:
                part = len(first) / whole[axes[0]]
                inner = self.share_of_cut(reached, round(size * part))  # it may be cut again
                start = first.start / whole[axes[0]]
                return inner and (start + part * inner[0], start + part * inner[1])
        return 0.0, 1.0


def _range(node: Node, number: int, axis: int, size: int) -> range:
    """Which entries a slice, split or unstack keeps along an axis.

    Args:
        node: the equation.
        number: which of its results is asked for.
        axis: axis of its operand.
        size: entries of the operand along that axis.
    """
    params = node.params
    if node.primitive == "slice":
        stride = 1 if params["strides"] is None else params["strides"][axis]
        return range(params["start_indices"][axis], params["limit_indices"][axis], stride)
    if axis != params["axis"]:
        return range(size)
    place, sizes = node.outputs.index(number), params.get("sizes", [1] * len(node.outputs))
    return range(sum(sizes[:place]), sum(sizes[: place + 1]))


def _last_scales(reading: Reading) -> set[str]:
    """Paths of the scales of normalisations that end a residual branch."""
    uses = [(parameter.path, use) for parameter in reading for use in parameter.uses]
    scales = [
        (use.output, path, use.branch.index)
        for path, use in uses
        if use.role == "scale" and use.output is not None and use.branch
    ]
    found = set()
    for _, use in uses:
        if use.after and use.after.residual and use.after.normalisation and use.branch:
            behind = [
                (output, path)
                for output, path, index in scales
                if output > (use.output or 0) and index == use.branch.index
            ]
            found |= {min(behind)[1]} if behind else set()
    return found


def _adds_one(node: Node) -> bool:
    """Whether a node adds 1."""
    numbers = [single_number(a.val) for a in node.inputs if not isinstance(a, int)]
    return node.primitive == "add" and numbers == [1]


def _made_by(use: Use) -> int:
    """Number of what a use makes; of a packed kernel, of its own slice."""
    number = use.output if use.slice_output is None else use.slice_output
    return -1 if number is None else number


def _are_most(claims: Sequence[bool]) -> bool:
    return sum(claims) * 2 > len(claims)


def moments_of(activation: Activation, variance: float = 1.0) -> Moments | None:
    """Moments of an activation; None where it has none."""
    return known_of(activations.moments, activation, variance=variance)


def known_of(question: Callable[..., R], activation: Activation, **options: Any) -> R | None:
    """What is known of an activation, by its name or else by its function; None where nothing is.

    Args:
        question: a function of a name or of a function, such as `jaxinit.activations.moments`.
        activation: the activation.
        **options: of the question.
    """
    answers = (_answer(question, fn, **options) for fn in (activation.name, activation.function))
    return next((answer for answer in answers if answer is not None), None)


@functools.lru_cache(maxsize=512)
def _answer(question: Callable[..., R], fn: Any, **options: Any) -> R | None:
    """The answer, which models share that have an activation of the same name; None for none."""
    try:
        return question(fn, **options)
    except (ValueError, TypeError):
        return None
