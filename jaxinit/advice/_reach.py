"""What reaches what in a traced model: softmaxes, memories, zeros and gradients.

These are questions about the equations of a model that the records of its reading do not answer.
All functions here take the nodes of a straightened graph, whose loop bodies stand in line.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import jax.numpy as jnp

from jaxinit.jaxpr import SUMS, Class, Neighbours, Node, Rules, is_of, row_of, single_number
from jaxinit.reading import Reading

# Nodes that move values and are not of the class: `straighten` adds the last three.
_MOVES = ("dynamic_slice", "enter", "take", "merge")
# Functions of floats whose derivative is 0 wherever they have one.
_STEPS = ("floor", "ceil", "round", "sign")
_EXPONENTIALS = ("exp", "exp2", "pow")


def is_view(node: Node) -> bool:
    """Whether a node moves, copies or casts values and changes none of them."""
    return is_of(node.primitive, Class.REARRANGES) or node.primitive in _MOVES


def is_view_or_sum(node: Node) -> bool:
    """Whether a node moves values, or adds or subtracts two."""
    return is_view(node) or node.primitive in SUMS


def is_of_one_array(node: Node) -> bool:
    """Whether a node neither contracts two arrays nor looks entries of one up by another."""
    return not is_of(node.primitive, Class.CONTRACTS) and not is_of(node.primitive, Class.INDEXES)


def logits_after(graph: Neighbours, values: Collection[int]) -> int | None:
    """Number of the logits that queries or keys are contracted to; None where no softmax follows.

    Args:
        graph: the nodes of a model.
        values: what the output of the layer meets.
    """
    for value in values:
        for scores in graph.after(value, is_of_one_array):
            if is_of(scores.primitive, Class.CONTRACTS):
                for node in graph.after(scores.outputs[0], is_of_one_array):
                    if node.primitive == "reduce_max" and isinstance(node.inputs[0], int):
                        return node.inputs[0]
    return None


def comes_to_softmax(graph: Neighbours, value: int) -> bool:
    """Whether exponentials of a value are summed before another contraction reads them."""
    for node in graph.after(value, lambda node: not is_of(node.primitive, Class.CONTRACTS)):
        summed = graph.after(node.outputs[0], is_view) if node.primitive == "exp" else ()
        if any(reader.primitive == "reduce_sum" for reader in summed):
            return True
    return False


def forget_gates(graph: Neighbours, inputs: Collection[int]) -> list[set[int]]:
    """What sigmoids are made of that a memory is multiplied with, before it is added to.

    A memory is what a loop carries, or what the model was called with. The product must be a term
    of a sum with another product, as in ``c = sigmoid(f) * c + sigmoid(i) * tanh(g)``. Where the
    other product has the factor ``1 - sigmoid(f)``, the gate interpolates: a GRU's is none.

    Args:
        graph: the nodes of a model.
        inputs: numbers of the model's arguments.

    Returns:
        For each gate the numbers of the values that it is made of, by sums and views.
    """

    def factors(node: Node) -> list[int]:
        return [atom for atom in node.inputs if isinstance(atom, int)]

    def is_summed(product: int, gate: int) -> bool:
        terms = [
            graph.makers.get(atom)
            for reader in graph.readers.get(product, ())
            if reader.primitive in SUMS
            for atom in factors(reader)
            if atom != product
        ]
        products = [term for term in terms if term is not None and term.primitive == "mul"]
        rest = [_rest_of(graph, factor) for term in products for factor in factors(term)]
        return bool(products) and gate not in rest

    def is_memory(value: int) -> bool:
        return bool(_viewed(graph, value) & set(inputs)) or is_carried(graph, value)

    gates: dict[int, set[int]] = {}
    for node in graph.nodes:
        pair = factors(node)
        if node.primitive != "mul" or len(pair) != 2:
            continue
        for gate, memory in (pair, pair[::-1]):
            made = _sigmoid_of(graph, gate)
            if made is not None and is_memory(memory) and is_summed(node.outputs[0], made):
                # The sigmoid may be of all gates at once, and cut behind.
                cut = graph.before([gate], is_view)
                gates[gate] = cut | graph.before([made], is_view_or_sum)
    return list(gates.values())


def _viewed(graph: Neighbours, value: int) -> set[int]:
    """Values that one is a view of, within the body of a loop that it stands in."""
    return graph.before([value], lambda node: is_view(node) and node.primitive != "enter")


def is_carried(graph: Neighbours, value: int) -> bool:
    """Whether a value is a view of what a loop carries."""
    makers = [graph.makers.get(number) for number in _viewed(graph, value)]
    return any(
        node is not None and node.primitive == "enter" and len(node.inputs) == 2 for node in makers
    )


def before_decays(graph: Neighbours) -> set[int]:
    """Values that decays of a memory are made of, entry by entry.

    A decay is an exponential that what a loop carries is multiplied with; or one that is multiplied
    with itself from step to step, or made of a running sum, where all steps are computed at once.

    Args:
        graph: the nodes of a model.
    """

    def is_entrywise(node: Node) -> bool:
        return is_view(node) or is_of(node.primitive, Class.ELEMENTWISE) or _runs(node)

    found: set[int] = set()
    for node in graph.nodes:
        factors = [atom for atom in node.inputs if isinstance(atom, int)]
        if node.primitive == "mul" and len(factors) == 2:
            first, second = (graph.before([factor], is_view) for factor in factors)
            decays = first & second
            for memory, other in zip(factors, (second, first), strict=True):
                decays |= other if is_carried(graph, memory) else set()
        elif _runs(node):
            reached = graph.after(node.outputs[0], is_entrywise)
            decays = {made for each in reached for made in each.outputs}
        else:
            continue
        makers = (graph.makers.get(number) for number in decays)
        exponentials = [n for n in makers if n is not None and n.primitive in _EXPONENTIALS]
        inside = [a for n in exponentials for a in n.inputs if isinstance(a, int)]
        found |= graph.before(inside, is_entrywise)
    return found


def before_couplings(graph: Neighbours, data: set[int]) -> set[int]:
    """Values that scales and shifts of affine couplings are made of, entry by entry.

    A coupling of a flow is ``b * exp(s) + t`` or ``(b - t) * exp(s)``, where ``s`` is made of what
    lay beside ``b`` in one array. Where ``b`` is noise, as a sample of a normal law has it, it lay
    beside nothing.

    Args:
        graph: the nodes of a model.
        data: numbers of the values that depend on the model's inputs.
    """

    def is_entrywise(node: Node) -> bool:
        is_own = sum(atom in data for atom in node.inputs if isinstance(atom, int)) == 1
        return is_view(node) or (is_of(node.primitive, Class.ELEMENTWISE) and is_own)

    def is_moved(node: Node) -> bool:
        return is_entrywise(node) or node.primitive in SUMS

    def terms(value: int) -> list[int]:
        """Operands of the sums that read a value, and of the one that makes it."""
        makers = [graph.makers[value]] if value in graph.makers else []
        sums = [n for n in (*graph.readers.get(value, ()), *makers) if n.primitive in SUMS]
        return [a for node in sums for a in node.inputs if isinstance(a, int) and a != value]

    found: set[int] = set()
    for node in graph.nodes:
        factors = [atom for atom in node.inputs if isinstance(atom, int)]
        if node.primitive != "mul" or len(factors) != 2:
            continue
        for memory, factor in (factors, factors[::-1]):
            makers = [graph.makers.get(number) for number in graph.before([factor], is_view)]
            made = [a for n in makers if n is not None and n.primitive == "exp" for a in n.inputs]
            shifts = terms(node.outputs[0]) or terms(memory)
            if not made or not shifts:
                continue
            before = graph.before(made, lambda node: True)
            moved = graph.before([memory], is_moved)
            if factor not in moved and moved & before & data and not moved & set(made):
                found |= graph.before([*made, *shifts], is_entrywise)
    return found


def _runs(node: Node) -> bool:
    return node.primitive in ("cumsum", "cumprod", "cumlogsumexp")


def functions_of(graph: Neighbours, parameter: int, data: Collection[int]) -> list[Node]:
    """What a parameter goes through, alone or with other parameters, before it meets data.

    Args:
        graph: the nodes of a model.
        parameter: its number.
        data: numbers of the values that depend on the model's inputs.
    """

    def is_fixed(node: Node) -> bool:
        return not any(number in data for number in node.outputs)

    return [node for node in graph.after(parameter, is_fixed) if is_fixed(node)]


def is_nonlinear(node: Node) -> bool:
    """Whether a node is a function of entries that is no sum, multiple or choice of them."""
    names = SUMS | {"mul", "neg", "select_n"}
    if node.primitive == "div":
        return not isinstance(node.inputs[0], int)
    squares = node.primitive == "mul" and node.inputs[0] is node.inputs[1]
    return squares or (is_of(node.primitive, Class.ELEMENTWISE) and node.primitive not in names)


def _sigmoid_of(graph: Neighbours, value: int) -> int | None:
    """What a value is the sigmoid of; None where it is none."""
    for number in graph.before([value], is_view):
        node = graph.makers.get(number)
        if node is not None and node.primitive == "logistic" and isinstance(node.inputs[0], int):
            return node.inputs[0]
    return None


def _rest_of(graph: Neighbours, value: int) -> int | None:
    """What a value is 1 minus the sigmoid of; None where it is nothing of the kind."""
    for number in graph.before([value], is_view):
        node = graph.makers.get(number)
        last = None if node is None else node.inputs[-1]
        if node is not None and node.primitive == "sub" and isinstance(last, int):
            return _sigmoid_of(graph, last)
    made = _sigmoid_of(graph, value)
    node = None if made is None else graph.makers.get(made)
    if node is None or node.primitive != "neg" or not isinstance(node.inputs[0], int):
        return None
    return node.inputs[0]


# Zeros: whether all that an equation makes is exactly zero, of which of its operands are.

_zero_rules: Rules[Callable[[Node, Sequence[bool]], bool]] = Rules("zeros")


_zero_rules("mul", Class.CONTRACTS)(lambda node, zeros: any(zeros[:2]))
_zero_rules("div", "dynamic_slice", "gather")(lambda node, zeros: zeros[0])
_zero_rules("dynamic_update_slice")(lambda node, zeros: zeros[0] and zeros[1])
_zero_rules("scatter", "scatter-add")(lambda node, zeros: zeros[0] and zeros[2])
_zero_rules("integer_pow")(lambda node, zeros: zeros[0] and node.params["y"] > 0)
_zero_rules("select_n")(lambda node, zeros: all(zeros[1:]))
# What a loop carries back comes later in the line: it counts as not zero.
_zero_rules("enter", "take", "merge")(lambda node, zeros: all(zeros))


def _is_zero(node: Node, zeros: Sequence[bool]) -> bool:
    """Whether all that a node makes is exactly zero."""
    rule = _zero_rules.get(node.primitive)
    if rule is not None:
        return rule(node, zeros)
    return bool(zeros) and row_of(node.primitive).keeps_zeros and all(zeros)


def stuck(reading: Reading, graph: Neighbours, zero: Collection[str]) -> tuple[str, ...]:
    """Zero parameters that can never move: the gradient of each is a product with another zero.

    A gradient reaches a parameter when some way to an output multiplies it with nothing that is
    zero. What it reaches is no longer zero after the first step; the question is asked again until
    nothing changes.

    Args:
        reading: a traced model.
        graph: its nodes.
        zero: paths of the parameters that are exactly zero.

    Returns:
        Those that stay zero, in the order of the tree.
    """
    left = set(zero)
    while left:
        live = _live(graph, reading, {reading.inputs[path] for path in left})
        moving = {path for path in left if reading.inputs[path] in live}
        if not moving:
            break
        left -= moving
    return tuple(path for path in reading.paths if path in left)


def _live(graph: Neighbours, reading: Reading, zero: set[int]) -> set[int]:
    """Values that a gradient reaches while these parameters, and all made of them alone, are 0."""
    zeros = {}
    for node in graph.nodes:
        zeros[id(node)] = [
            atom in zero if isinstance(atom, int) else single_number(atom.val) == 0
            for atom in node.inputs
        ]
        if _is_zero(node, zeros[id(node)]):
            zero.update(node.outputs)
    live = {atom for atom in reading.graph.outputs if isinstance(atom, int)}
    while True:  # again until what loops carry back has been seen
        before = len(live)
        for node in reversed(graph.nodes):
            if live.intersection(node.outputs):
                live.update(_reached(node, zeros[id(node)]))
        if len(live) == before:
            return live


def _reached(node: Node, zeros: Sequence[bool]) -> list[int]:
    """Operands that a gradient at the results of a node goes on to."""
    meets_zero = any(isinstance(a, int) and z for a, z in zip(node.inputs, zeros, strict=True))
    if node.primitive == "max" and "relu" in node.calls and meets_zero:
        return []  # jax.nn.relu has slope 0 at 0
    others = [False] * len(zeros)
    if node.primitive == "mul" or is_of(node.primitive, Class.CONTRACTS):
        others[:2] = zeros[1], zeros[0]
    pairs = zip(node.inputs, others, strict=True)
    return [atom for atom, other in pairs if isinstance(atom, int) and not other]


# Gradients.


def without_gradient(reading: Reading, graph: Neighbours) -> dict[str, str]:
    """Parameters that reach an output of floats, and none by a way that has a derivative.

    A gradient stops at whole numbers and truth values, such as the index that ``argmax`` makes, and
    at steps such as ``floor``. What `jax.custom_vjp` or `jax.custom_jvp` encloses is taken to pass
    one.

    Args:
        reading: a traced model.
        graph: its nodes.

    Returns:
        By path, the primitive at which the gradient of each stops. A parameter that an output of
        whole numbers needs is left out: what a model chooses may be trained by other means.
    """

    def is_float(number: int) -> bool:
        return jnp.issubdtype(reading.graph.avals[number].dtype, jnp.inexact)

    def passes(node: Node) -> bool:
        return node.custom or (node.primitive not in _STEPS and any(map(is_float, node.outputs)))

    outputs = {atom for atom in reading.graph.outputs if isinstance(atom, int)}
    floats = set(filter(is_float, outputs))
    live = graph.before(floats, passes) | graph.before(outputs - floats, lambda node: True)
    found = {}
    for parameter in reading:
        number = reading.inputs[parameter.path]
        if floats and is_float(number) and parameter.uses and number not in live:
            reached = graph.after(number, passes)
            stop = next((node.primitive for node in reached if not passes(node)), None)
            if stop is not None:
                found[parameter.path] = stop
    return found
