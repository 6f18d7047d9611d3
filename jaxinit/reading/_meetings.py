"""Rules for equations in which parameters meet data: layers, biases, scales, positions.

A contraction or a convolution says by its dimension numbers which axes of a parameter it sums over
and which the output has; a function of single entries says by the dimensions that data have and
the parameter has not. A value may hold several parameters: the two factors of a low-rank product
are both kernels, the first of them the one that data reach first.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from jaxinit.jaxpr import PRODUCTS, SUMS, Atom, Class, Node, is_of, row_of, single_number
from jaxinit.reading._domain import (
    AXIS,
    FEATURE,
    OTHER,
    TAGGED,
    Dimension,
    Joint,
    ParameterDomain,
    Piece,
    Term,
    Value,
    View,
    axes_of,
    combined,
    data,
    data_of,
    fans,
    filler,
    is_feature,
    is_held,
    length_of,
    parameters,
    rules,
    through_of,
    untagged,
)
from jaxinit.reading._moves import reduced
from jaxinit.reading._records import SMALL, Role, Through

# Contractions.


@dataclasses.dataclass(frozen=True)
class Side:
    """One operand of a contraction, with its dimensions by what the contraction does to them."""

    value: Value
    shape: tuple[int, ...]
    contracted: tuple[int, ...]
    batched: tuple[int, ...]

    @property
    def free(self) -> tuple[int, ...]:
        """Dimensions that the output has for itself."""
        return tuple(
            n for n in range(len(self.shape)) if n not in self.contracted and n not in self.batched
        )

    @property
    def is_repeated(self) -> bool:
        """Whether no parameter holds one of the free dimensions: tokens repeated for a batch."""
        return any(self.shape[number] > 1 and not self.holds(number) for number in self.free)

    @property
    def dims(self) -> tuple[Dimension, ...]:
        """Dimensions of data; rows of constants are as good as data: coordinates, for example."""
        value = self.value if self.value.is_data else data_of(self.shape, is_real=False)
        return untagged(value).dims

    def holds(self, number: int) -> bool:
        """Whether a parameter holds a dimension."""
        return self.value.is_view and any(is_held(view.dims[number]) for view in self.value.views)


@rules("dot_general")
def _contraction(domain: ParameterDomain, node: Node, operands: list[Value]) -> list[Value]:
    contracted, batched = node.params["dimension_numbers"]
    left, right = (
        Side(value, domain.shape(atom), tuple(contracted[i]), tuple(batched[i]))
        for i, (value, atom) in enumerate(zip(operands, node.inputs, strict=True))
    )
    if left.value.is_view and right.value.is_view:
        if left.is_repeated == right.is_repeated:
            return [_product_of_parameters(domain, left, right)]
        tokens = left if left.is_repeated else right
        domain.enters(tokens.value, node, node.outputs[0])
        entered = dataclasses.replace(tokens, value=data_of(tokens.shape, is_real=False))
        left, right = (left, entered) if tokens is right else (entered, right)
    tags = []
    for side, other in ((left, right), (right, left)):
        if not side.value.is_view:
            tags.append(FEATURE)
        elif other.value.is_one_hot and len(side.contracted) == 1:
            tags.append(_look_up(domain, node, side, other))
        elif _is_projected(side, other):
            tags.append(_project(domain, node, side))
        else:
            tags.append(_contract(domain, node, side, is_aside=not other.value.is_real))
    is_real = left.value.is_real or right.value.is_real
    made_of = {} if is_real else _passed_sums(left.value, right.value)
    made = data(_output_dims(left, right, tags), is_real=is_real)
    return [dataclasses.replace(made, made_of=tuple(made_of.items()))]


@rules("ragged_dot_general")
def _by_group(domain: ParameterDomain, node: Node, operands: list[Value]) -> list[Value]:
    """Rows by group, each group with a matrix of its own: the group axis is batched."""
    numbers = node.params["ragged_dot_dimension_numbers"]
    contracted, batched = numbers.dot_dimension_numbers
    rows, matrices, *_ = operands
    shape = domain.shape(node.outputs[0])
    is_real = any(value.is_real for value in operands)
    domain.enters(rows, node, node.outputs[0])
    if not matrices.is_view:
        return [data_of(shape, is_real=is_real)]
    repeats = (*batched[1], *numbers.rhs_group_dimensions)
    right = Side(matrices, domain.shape(node.inputs[1]), tuple(contracted[1]), repeats)
    tag = _contract(domain, node, right)
    made = range(len(shape) - len(right.free), len(shape))
    return [data_of(shape, is_real=is_real, made=made, tag=tag)]


def _output_dims(left: Side, right: Side, tags: Sequence[int]) -> list[Dimension]:
    """Dimensions of the output: batch, free ones of the left, free ones of the right."""
    dims: list[Dimension] = []
    for pair in zip(left.batched, right.batched, strict=True):
        both = list(zip((left, right), pair, strict=True))
        of_data = [side.dims[number] for side, number in both if not side.value.is_view]
        held = any(side.holds(number) for side, number in both)
        size = left.shape[pair[0]]
        dims.append((Piece(FEATURE, size),) if held or not of_data else of_data[0])
    for side, tag in zip((left, right), tags, strict=True):
        for number in side.free:
            dims.append(_made(side, number, tag) if side.value.is_view else side.dims[number])
    return dims


def _made(side: Side, number: int, tag: int) -> Dimension:
    """A dimension that a kernel makes, in the pieces in which the kernel holds it."""
    size, views = side.shape[number], side.value.views
    if len(views) == 1:
        pieces = [piece for piece in views[0].dims[number] if piece.axis is not None]
        if math.prod(piece.size for piece in pieces) == size and len(pieces) > 1:
            return tuple(
                Piece(tag, piece.size, (piece.axis or 0) * AXIS + piece.stride) for piece in pieces
            )
    axis = next((p.axis for view in views for p in view.dims[number] if p.axis), 0)
    return (Piece(tag, size, axis * AXIS + 1),) if side.holds(number) else filler(size)


def _product_of_parameters(domain: ParameterDomain, left: Side, right: Side) -> Value:
    """A product of two values of parameters, which holds the parameters of both."""
    domain.notes.products += 1
    views, through = [], _passed_sums(left.value, right.value)
    for number, (side, other) in enumerate(((left, right), (right, left))):
        beside = [filler(other.shape[dimension]) for dimension in other.free]
        for view in side.value.views:
            own = [view.dims[dimension] for dimension in side.free]
            batch = [view.dims[dimension] for dimension in side.batched]
            joint = Joint(domain.notes.products, number, view.pieces(side.contracted))
            free = [*own, *beside] if side is left else [*beside, *own]
            new = view.with_dims([*batch, *free])
            joints = (*view.joints, joint)
            views.append(dataclasses.replace(new, joints=joints, through=through[view.leaf]))
    return parameters(views)


def _passed_sums(left: Value, right: Value) -> dict[int, Through]:
    """What parameters went through once two values were contracted that depend on no input."""
    one, other = through_of(left), through_of(right)
    both = {
        leaf: dataclasses.replace(
            _with_itself("mul", {0: (one[leaf], 0), 1: (other[leaf], 0)}), factor=None
        )
        for leaf in one.keys() & other.keys()
    }
    return one | other | both


def _shares(side: Side) -> list[tuple[list[Piece], list[Piece]]]:
    """Pieces that each parameter contracts and produces, products with others included.

    Data reach first the parameters that hold a contracted axis; what those hand on along a joint is
    produced by them and contracted by the next.
    """
    views = side.value.views
    shares = [(list(view.pieces(side.contracted)), _own(view.pieces(side.free))) for view in views]
    reached = [number for number, (contracted, _) in enumerate(shares) if _own(contracted)]
    used = set()
    for number in reached:
        for joint in views[number].joints:
            if (number, joint.number) in used:
                continue
            shares[number][1].extend(_own(joint.pieces))
            for other, theirs in _across(views, joint):
                if other not in reached and theirs.pieces:
                    reached.append(other)
                    used.add((other, joint.number))
                    shares[other][0][:] = theirs.pieces
    for number in set(range(len(views))).difference(reached):
        shares[number][0].clear()
        for joint in views[number].joints:
            shares[number][1].extend(_own(joint.pieces))
    return shares


def _own(pieces: Sequence[Piece]) -> list[Piece]:
    """Pieces that are no filler."""
    return [piece for piece in pieces if piece.axis is not None]


def _across(views: Sequence[View], joint: Joint) -> Iterator[tuple[int, Joint]]:
    """Views on the other side of a product, by number, with their end of the joint."""
    for number, view in enumerate(views):
        for theirs in view.joints:
            if theirs.number == joint.number and theirs.side != joint.side:
                yield number, theirs


def _is_projected(side: Side, other: Side) -> bool:
    """Whether a product of parameters meets a fresh kernel output: learned queries and keys.

    Not so a low-rank kernel, which meets inputs, normalised or activated values.
    """
    views = side.value.views
    if not other.value.is_data or not all(view.joints and view.why is None for view in views):
        return False
    pieces = other.value.views[0].pieces(other.contracted)
    return bool(pieces) and all((piece.axis or 0) >= TAGGED for piece in pieces)


def _project(domain: ParameterDomain, node: Node, side: Side) -> int:
    """Notes learned tokens and the kernel that projects them, where both meet data as one."""
    for view in side.value.views:
        own = _own(view.pieces(side.contracted))
        if not own and len(view.joints) == 1:
            domain.enters(parameters([view]), node, node.outputs[0])
        elif not own or len(view.joints) > 1:
            domain.note_unknown(view, node, node.outputs[0])
        else:
            inner = [piece for joint in view.joints for piece in joint.pieces]
            batched = view.pieces(side.batched)
            domain.meets(node, view, "kernel", inner, own, batched)
    return FEATURE


def _contract(domain: ParameterDomain, node: Node, side: Side, *, is_aside: bool = False) -> int:
    """Notes what every parameter does in a contraction; returns the tag of the output."""
    first = None
    for view, (contracted, produced) in zip(side.value.views, _shares(side), strict=True):
        if view.why is not None:
            domain.note_unknown(view, node, node.outputs[0])
            continue
        outer = not side.contracted and any(piece.size > 1 for piece in produced)
        is_kernel = (contracted or outer) and not _is_factor(domain, view, side.value.views)
        role = "kernel" if is_kernel else "scale"
        batched = view.pieces(side.batched)
        number = domain.meets(node, view, role, contracted, produced, batched)
        if is_aside:
            domain.notes.asides.add(number)
        if role == "kernel":
            first = number if first is None else first
            stretch = next((piece for piece in produced if not piece.is_whole), None)
            if stretch is not None:
                region = (stretch.start, stretch.start + stretch.entries, number)
                regions = domain.notes.regions
                regions[first] = (*regions.get(first, ()), region)
    return FEATURE if first is None else TAGGED + first


def _is_factor(domain: ParameterDomain, view: View, views: Sequence[View]) -> bool:
    """Whether a parameter scales a larger one before both meet data: that of a weight norm."""

    def held(view: View) -> set[int]:
        return {number for number, dim in enumerate(view.dims) if is_held(dim)}

    return any(
        domain.paths[other.leaf] in view.through.beside and held(view) < held(other)
        for other in views
    )


def _look_up(domain: ParameterDomain, node: Node, side: Side, other: Side) -> int:
    """Notes the lookup in a table by a product with one-hot vectors."""
    role = "embedding" if other.value.is_real else "position"
    for view in domain.readable(side.value, node):
        pieces = map(view.pieces, (side.contracted, side.free, side.batched))
        domain.meets(node, view, role, *pieces)
    return FEATURE


@rules("conv_general_dilated")
def _convolution(domain: ParameterDomain, node: Node, operands: list[Value]) -> list[Value]:
    image, kernel = operands
    domain.enters(image, node, node.outputs[0])
    tag = FEATURE
    for view in domain.readable(kernel, node):
        if _is_factor(domain, view, kernel.views):
            domain.meets(node, view, "scale", produced=view.pieces())
        else:
            tag = _convolve(domain, node, view)
    is_real = image.is_real or kernel.is_real
    feature = node.params["dimension_numbers"].out_spec[1]
    return [data_of(domain.shape(node.outputs[0]), is_real=is_real, made=(feature,), tag=tag)]


def _convolve(domain: ParameterDomain, node: Node, view: View) -> int:
    """Notes what a parameter does as the kernel of a convolution; the tag of the output."""
    params = node.params
    out, inner, *field = params["dimension_numbers"].rhs_spec
    groups = params["feature_group_count"] * params["batch_group_count"]
    batched, produced = [], _own(view.dims[out])
    # A vmapped convolution keeps its layers side by side, as groups.
    while len(produced) > 1 and groups > 1 and groups % produced[0].size == 0:
        groups //= produced[0].size
        batched.append(produced.pop(0))
    contracted, spatial = view.dims[inner], view.pieces(field)
    strides = tuple(params["lhs_dilation"])
    strides = strides if math.prod(strides) > 1 else ()
    is_kernel = bool(_own((*contracted, *spatial)))
    changes: dict[str, Any] = {"field": axes_of(spatial), "groups": groups}
    changes["transposed_strides"] = strides
    if is_kernel:
        taps = math.prod(piece.terms for piece in spatial)
        found = fans(contracted, produced)
        met = min(taps / math.prod(strides), _taps_that_meet(domain, node))
        changes["fan_in"] = found["fan_in"] * met
        changes["fan_out"] = found["fan_out"] * taps / groups
    role = "kernel" if is_kernel else "scale"
    number = domain.meets(node, view, role, contracted, produced, batched, **changes)
    return TAGGED + number if is_kernel and groups == 1 and not batched else FEATURE


def _taps_that_meet(domain: ParameterDomain, node: Node) -> float:
    """The most taps that meet data at one place, where an image grows; no bound elsewhere.

    An image that is wider than what the kernel slides over meets few of the taps at a time.
    """
    params = node.params
    shapes = [domain.shape(atom) for atom in (*node.inputs, *node.outputs)]
    specs = params["dimension_numbers"]
    sizes = [[shape[n] for n in spec[2:]] for shape, spec in zip(shapes, specs, strict=True)]
    most = 1
    for n, (image, kernel, out) in enumerate(zip(*sizes, strict=True)):
        if out <= image:
            return math.inf
        places = np.arange(kernel) * params["rhs_dilation"][n] - params["padding"][n][0]
        reached = places + np.arange(out)[:, None] * params["window_strides"][n]
        apart = params["lhs_dilation"][n]
        inside = (reached >= 0) & (reached <= (image - 1) * apart) & (reached % apart == 0)
        most *= int(inside.sum(1).max())
    return most


# Functions of single entries.


@rules(Class.ELEMENTWISE)
def _elementwise(domain: ParameterDomain, node: Node, operands: list[Value]) -> list[Value]:
    shape = domain.shape(node.outputs[0])
    known = [value for value in operands if value.is_data]
    views = _aligned(operands, shape)
    is_real = any(value.is_real for value in known)
    if not known or (views and not is_real and not _repeats(combined(known, shape), views)):
        # A function of parameters alone, or of parameters and state, holds all of them.
        passed = _passed(domain, node, operands)
        bent = [view for view in views if view.joints and view.through.degree is not None]
        if any(passed[view.leaf].degree is None for view in bent):
            domain.activates(views)
        return [parameters(dataclasses.replace(view, through=passed[view.leaf]) for view in views)]
    _settle_outer(domain, node, operands)
    is_linear = node.primitive in SUMS or _keeps_product(node.primitive, operands)
    seen = known if is_linear else [untagged(value) for value in known]
    dims = combined(seen, shape)
    if node.primitive in SUMS and len(known) == 2 and all(map(domain.is_read_once, node.inputs)):
        both = zip(*(value.views[0].aligned(shape).dims for value in known), dims, strict=True)
        dims = tuple(domain.notes.join(left, right) or dim for left, right, dim in both)
    result = data(dims, is_real=is_real)
    if views:
        result = _meet(domain, node, operands, views, result)
    if not is_real:
        made_of = tuple(_passed(domain, node, operands).items())
        result = dataclasses.replace(result, made_of=made_of)
    return [_with_flags(domain, node, operands, result, is_linear)]


def _aligned(operands: Sequence[Value], shape: Sequence[int]) -> list[View]:
    """The views among operands, broadcast to a shape."""
    return [
        view.aligned(shape) if view.why is None else view.unknown(shape, view.why)
        for value in operands
        if value.is_view
        for view in value.views
    ]


# What a parameter passes through before it meets data.

_LINEAR = frozenset({"complex", "conj", "copy", "imag", "real"})


def _passed(domain: ParameterDomain, node: Node, operands: Sequence[Value]) -> dict[int, Through]:
    """What parameters and state have gone through after a function of entries, by number."""
    found: dict[int, dict[int, Through]] = {}
    for place, value in enumerate(operands):
        if node.primitive == "select_n" and _guarded(operands) not in (None, place):
            continue
        for leaf, through in through_of(value).items():
            found.setdefault(leaf, {})[place] = through
    passed = {}
    for leaf, places in found.items():
        if len(places) > 1:
            shares = {n: (through, _held(operands[n], leaf)) for n, through in places.items()}
            passed[leaf] = _with_itself(node.primitive, shares)
        else:
            ((place, through),) = places.items()
            passed[leaf] = _after(domain, node, operands, place, through)
    return passed


def _guarded(operands: Sequence[Value]) -> int | None:
    """The case that a choice takes where numbers are not zero, as almost all are; else None."""
    last = {through.functions[-1:] for through in through_of(operands[0]).values()}
    cases: dict[tuple[tuple[str, ...], ...], int] = {(("ne",),): 2, (("eq",),): 1}
    return cases.get(tuple(last)) if len(operands) == 3 else None


def _after(
    domain: ParameterDomain, node: Node, operands: Sequence[Value], place: int, through: Through
) -> Through:
    """What a parameter in one operand has gone through after a function of entries."""
    name = node.primitive
    others = [n for n in range(len(operands)) if n != place]
    if name in PRODUCTS:
        through = through.powered(-1.0, "div") if name == "div" and place == 1 else through
        for n in others:
            through = _multiplied(domain, node, n, operands[n], through)
        return through
    if name in SUMS:
        through = through.times(-1.0) if name == "sub" and place == 1 else through
        constants = [n for n in others if operands[n].kind == "constant"]
        return (
            through.plus(_size(domain.array(node.inputs[constants[0]]))[0])
            if constants
            else through
        )
    if name in _LINEAR or name == "neg":
        return through.times(-1.0) if name == "neg" else through
    if name == "select_n":
        return _chosen(domain, node, operands, place, through)
    return _bent(domain, node, operands, place, through)


def _held(value: Value, leaf: int) -> int:
    """How many dimensions of a value hold a parameter."""
    return len({dim for view in value.views if view.leaf == leaf for dim, *_ in view.held})


def _size(array: np.ndarray | None) -> tuple[float | None, float]:
    """Root mean square of the entries that are not zero, with sign where all are alike; share."""
    if array is None or not array.size or array.dtype.kind not in "biufcV":
        return None, 1.0
    array = np.asarray(array, complex if array.dtype.kind == "c" else float)
    entries = array[array != 0]
    if not entries.size:
        return 0.0, 0.0
    is_alike = array.dtype.kind == "f" and bool((entries == entries[0]).all())
    size = entries[0] if is_alike else np.sqrt(np.mean(np.abs(entries) ** 2))
    return float(size), entries.size / array.size


def _multiplied(
    domain: ParameterDomain, node: Node, n: int, value: Value, through: Through
) -> Through:
    """A parameter times an operand, or over it: a constant, or other parameters and state."""
    if value.kind == "constant":
        array = domain.array(node.inputs[n])
        if array is not None and node.primitive == "div" and n == 1:
            with np.errstate(divide="ignore"):
                array = 1 / array
        return through.times(*_size(array))
    # State that only gives a direction, as a power iteration starts from, is no factor.
    others = [
        domain.paths[leaf]
        for leaf, other in through_of(value).items()
        if value.is_view or other.degree != 0
    ]
    return dataclasses.replace(through, beside=tuple(dict.fromkeys((*through.beside, *others))))


def _chosen(
    domain: ParameterDomain, node: Node, operands: Sequence[Value], place: int, through: Through
) -> Through:
    """A choice by a condition: by a constant one against zero it is a mask."""
    if place == 0:
        return through.powered(None, node.primitive)
    others = [n for n in range(1, len(operands)) if n != place]
    offsets = [
        _size(domain.array(node.inputs[n]))[0] for n in others if operands[n].kind == "constant"
    ]
    if operands[0].kind != "constant":
        through = _multiplied(domain, node, 0, operands[0], through)
        return through if offsets == [0.0] else through.times(None)
    which = domain.array(node.inputs[0])
    if which is None:
        return through.times(None)
    kept = float(np.mean(which == place - 1))
    through = through.times(1.0, kept)
    return through.plus(offsets[0]) if offsets and kept < 1 else through


def _bent(
    domain: ParameterDomain, node: Node, operands: Sequence[Value], place: int, through: Through
) -> Through:
    """A function that is not linear."""
    name, power = node.primitive, row_of(node.primitive).power
    other = next((n for n in range(len(operands)) if n != place), None)
    number = None if other is None else single_number(domain.array(node.inputs[other]))
    if name == "integer_pow":
        power = node.params["y"]
    elif name == "pow" and place == 0:
        power = number
    elif name in ("max", "min") and number is not None and abs(number) <= SMALL:
        if number > 0 and not through.is_linear:
            return through  # A guard against division by zero.
        return through.powered(1.0, name).times(None)
    elif number == 0 and domain.graph.aval(node.outputs[0]).dtype == bool:
        power = 0.0
    return through.powered(power, name)


def _with_itself(name: str, shares: Mapping[int, tuple[Through, int]]) -> Through:
    """A function of several functions of one parameter: a kernel and its own norm or mean.

    Args:
        name: the primitive.
        shares: by operand, what the parameter went through, and how much of it the operand holds.
    """
    (one, held), *others = (shares[place] for place in sorted(shares))
    for other, also_held in others:
        # What holds more of it stays; the other is a number for each row, or for all of it.
        kept = [each for each, n in ((one, held), (other, also_held)) if n == max(held, also_held)]
        joined = kept[0] if len(kept) == 1 else kept[0].joined(kept[1])
        sign = -1.0 if name == "div" else 1.0
        factor, degree = joined.factor, one.degree if one.degree == other.degree else None
        functions = joined.functions
        if name in PRODUCTS:
            degree = factor = None
            if one.degree is not None and other.degree is not None:
                degree = one.degree + sign * other.degree
            if one.factor is not None and other.factor:
                factor = one.factor * other.factor**sign
        if len(kept) > 1 and name not in SUMS:
            functions = tuple(dict.fromkeys((*functions, name)))
        elif len(kept) > 1:
            factor = None if functions or factor is None else factor * math.sqrt(2)
        one = dataclasses.replace(joined, degree=degree, factor=factor, functions=functions)
    return one


def _repeats(dims: Sequence[Dimension], views: Sequence[View]) -> bool:
    """Whether derived data have a dimension that no parameter here has: a layer on its rows."""
    return any(
        is_held(dim) and not any(is_held(view.dims[n]) for view in views if view.why is None)
        for n, dim in enumerate(dims)
    )


def _with_flags(
    domain: ParameterDomain, node: Node, operands: list[Value], result: Value, is_linear: bool
) -> Value:
    """What later equations ask of a result: whether it is one-hot, a slice, or a product."""
    name = node.primitive
    known = [value for value in operands if value.is_data]
    if name == "eq" and any(value.is_iota for value in operands):
        dims = [dim if is_held(dim) else (Piece(OTHER, length_of(dim)),) for dim in result.dims]
        return dataclasses.replace(data(dims, is_real=result.is_real), is_one_hot=True)
    if name == "mul" and any(value.is_one_hot for value in known):
        result = dataclasses.replace(result, is_one_hot=True)
    if name in SUMS:
        domain.notes.rejoin(known)
        terms = tuple(dict.fromkeys(term for value in known for term in value.terms))
        result = dataclasses.replace(result, terms=terms)
        _settle_taps(domain, node, terms)
    if is_linear:
        cuts = frozenset(cut for value in known for cut in value.cuts)
        if name in PRODUCTS and len(known) > 1:
            cuts = frozenset(cut._replace(is_scaled=True) for cut in cuts)
        result = dataclasses.replace(result, cuts=cuts)
    is_product = name in PRODUCTS or name == "neg"
    if is_product and len(known) == 1 and known[0].is_outer:
        product = known[0].product + result.product
        result = dataclasses.replace(result, product=product, is_outer=True)
    return result


def _keeps_product(name: str, operands: Sequence[Value]) -> bool:
    """Whether a product is linear in the one kernel output that it holds: rotated by angles."""
    made = [n for n, value in enumerate(operands) if value.is_data and _is_made(value)]
    known = sum(value.is_data for value in operands)
    if name == "div":
        return known == 1 or made == [0]
    return name in ("mul", "neg") and (known == 1 or len(made) == 1)


def _is_made(value: Value) -> bool:
    return any(map(is_feature, value.dims))


def _settle_outer(domain: ParameterDomain, node: Node, operands: Sequence[Value]) -> None:
    """Data spread along a parameter's axes and multiplied by it: a kernel with one input.

    Unless it is multiplied once more with data that have those axes, as the scale of a
    normalisation is when it meets the inverse deviation first.
    """
    if node.primitive in PRODUCTS or node.primitive == "neg":
        return
    for value in operands:
        for number, view in value.product if value.is_outer else ():
            if domain.notes.meetings[number].use.role == "scale":
                own = _own(view.pieces())
                produced = axes_of(own)
                domain.notes.amend(number, role="kernel", produced=produced, **fans((), own))


def _meet(
    domain: ParameterDomain,
    node: Node,
    operands: Sequence[Value],
    views: Sequence[View],
    result: Value,
) -> Value:
    """Notes what each parameter does to the data, and marks the dimensions that it brings."""
    output = node.outputs[0]
    shape = domain.shape(output)
    dims = list(result.dims)
    before = combined([value for value in operands if value.is_data], shape)
    product, terms, is_outer = [], [], True
    for view in views:
        if node.primitive == "select_n" and not operands[0].is_view:
            domain.enters(parameters([view]), node, output)
            continue
        role = None if view.why else _role(node, view, dims, before)
        if role is None:
            domain.note_unknown(view, node, output)
            continue
        number = domain.meets(node, view, role, produced=view.pieces())
        if node.primitive == "mul":
            product.append((number, view))
            is_outer &= _is_outer(view, before)
            roots = [
                _root(domain, a) for a, v in zip(node.inputs, operands, strict=True) if v.is_data
            ]
            terms += [Term(number, view, root) for root in roots]
    for number, size in enumerate(shape):
        if not is_held(dims[number]) and any(is_held(view.dims[number]) for view in views):
            dims[number] = (Piece(FEATURE, size),)
    made = data(dims, is_real=result.is_real)
    is_outer &= bool(product)
    return dataclasses.replace(made, product=tuple(product), terms=tuple(terms), is_outer=is_outer)


def _role(
    node: Node, view: View, dims: Sequence[Dimension], before: Sequence[Dimension]
) -> Role | None:
    held = [number for number, dim in enumerate(view.dims) if is_held(dim)]
    if node.primitive in PRODUCTS:
        # A learned image, whose features data scale, is more than a scale of data.
        spread = sum(not is_held(before[number]) for number in held)
        is_image = 1 < spread < len(held) and view.through.is_linear
        return "embedding" if is_image else "scale"
    if node.primitive not in SUMS:
        return None
    if view.is_indexed:
        return "position"
    apart = [number for number in held if not is_feature(dims[number])]
    return "position" if len(held) > 1 and apart else "bias"


def _root(domain: ParameterDomain, atom: Atom) -> Atom:
    """What a value was before it was moved: padded, shifted, cut."""
    while (node := domain.neighbours.makers.get(atom)) and is_of(node.primitive, Class.REARRANGES):
        atom = node.inputs[-1 if node.primitive == "concatenate" else 0]
    return atom


def _settle_taps(domain: ParameterDomain, node: Node, terms: Sequence[Term]) -> None:
    """Entries of one parameter times one value, shifted, and added up: a depthwise convolution."""
    taps: dict[tuple[int, tuple[int, ...], Atom], list[Term]] = {}
    for term in terms:
        if term.view.dropped:
            key = (term.view.leaf, term.view.dropped, term.root)
            taps.setdefault(key, []).append(term)
    for (_, dropped, _), several in taps.items():
        if len(several) < 2:
            continue
        (first, view, _), *others = several
        domain.notes.asides.update(number for number, *_ in others)
        domain.notes.amend(
            first,
            role="kernel",
            field=dropped,
            produced=(),
            batched=axes_of(view.pieces()),
            fan_in=float(len(several)),
            fan_out=float(len(several)),
            output=node.outputs[0],
        )


def _is_outer(view: View, dims: Sequence[Dimension]) -> bool:
    """Whether data repeat along all axes of a parameter."""
    held = [number for number, dim in enumerate(view.dims) if is_held(dim)]
    return bool(held) and not any(is_held(dims[number]) for number in held)


@rules("reduce_sum")
def _sum(domain: ParameterDomain, node: Node, operands: list[Value]) -> Sequence[Value]:
    """A sum; of a product with a parameter, which nothing else reads, it makes a contraction.

    A normalisation that follows a scale sums the product too, but reads it again.
    """
    (value,) = operands
    gone = node.params["axes"]
    is_contraction = not value.is_outer and domain.is_read_once(node.inputs[0])
    for number, view in value.product if is_contraction else ():
        inner = [piece for piece in _own(view.pieces(gone)) if piece.size > 1]
        if not inner:
            continue
        outer = _own(view.pieces(n for n in range(len(view.dims)) if n not in gone))
        changes: dict[str, Any] = fans(view.pieces(gone), outer) | {"role": "kernel"}
        if value.is_one_hot:
            changes = {"role": "embedding" if value.is_real else "position"}
            outer = [piece for piece in outer if piece.axis not in axes_of(inner)]
        domain.notes.amend(
            number,
            operation="reduce_sum",
            contracted=axes_of(inner),
            produced=axes_of(outer),
            output=node.outputs[0],
            **changes,
        )
    return reduced(domain, node, operands)
