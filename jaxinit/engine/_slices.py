"""A traced init function in slices, one for each leaf, and which of the slices are the same.

`graph_of_init` makes the graph, `Judge` says which equations give the same bits wherever they are
compiled, `cut` makes the slices and `Slicing.groups` finds those that one program can compute.

Leaves that share a floating-point equation stay in one slice, because an equation that is compiled
into two programs may round in two ways, and because it may be expensive (one factorization that
fills two leaves). Leaves may share integers: integers never round.

Two slices compute the same when their equations do, one by one: primitive, parameters (nested
jaxprs compared equation by equation), literals, and the equation or argument that each operand
comes from. A value that the host computes is an argument, so layers that differ in a path, a
counter or an index of a split compute the same. Floating-point literals must be equal, because XLA
computes with them while it compiles (measured: `he_normal() * c` with `c` as an argument rounds
otherwise in jax 0.10).
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.extend.core as jex
import numpy as np

from jaxinit.engine import _host as host
from jaxinit.engine._fast_bits import FastBits, FastKey
from jaxinit.engine._threefry import are_exact
from jaxinit.jaxpr import (
    Atom,
    Bits,
    Graph,
    Node,
    called,
    constants_of,
    graph_of,
    hold,
    inner_jaxprs,
    is_integral,
    is_jaxpr,
    is_key,
    row_of,
    size_of,
)

_DERIVES_KEYS = ("random_split", "random_fold_in", "random_seed", "random_wrap")
# Parameters that say how a function is differentiated or called, not what it computes.
_IGNORED = frozenset(
    """
    name jvp_jaxpr_fun fwd_jaxpr_thunk bwd symbolic_zeros num_consts inline keep_unused
    donated_invars
    """.split()
)


def graph_of_init(jaxpr: Any) -> Graph:
    """The graph of an init function, loops kept whole.

    A call is opened where it holds more than one leaf, or the derivation of a key, so that each
    leaf can be told from the next. Other calls stay closed: the draw of one leaf is one equation.
    """
    known: dict[int, bool] = {}  # thousands of layers call the same few functions

    def opens(equation: Any) -> Any | None:
        inner = called(equation)
        if inner is None:
            return None
        if id(inner) not in known:
            # A call around a single equation, such as that of `jnp.zeros`, hides a constant.
            is_short = len(inner.eqns) <= 1
            known[id(inner)] = (
                is_short or len(inner.outvars) > 1 or hold(inner.eqns, *_DERIVES_KEYS)
            )
        return inner if known[id(inner)] else None

    return graph_of(jaxpr, opens=opens, has_bodies=lambda equation: False)


class Verdict(NamedTuple):
    """How freely an equation may be moved to another program.

    Attributes:
        bits: ``EXACT`` may be moved anywhere. ``ENTRYWISE`` may be moved with its neighbours: a
            slice holds every floating-point equation behind a leaf. ``UNKNOWN`` stays where
            ``jax.jit`` has it.
        culprit: name of the primitive that decided.
    """

    bits: Bits
    culprit: str


_FREEDOM = (Bits.EXACT, Bits.ENTRYWISE, Bits.UNKNOWN)


class Judge:
    """Judges equations, remembering nested jaxprs, which JAX shares between equations."""

    def __init__(self) -> None:
        self._known: dict[int, Verdict] = {}

    def equation(self, equation: Any) -> Verdict:
        """The verdict on an equation, with everything inside it."""
        name = equation.primitive.name
        if equation.effects:
            return Verdict(Bits.UNKNOWN, f"{name} (side effect)")
        if name == "jit" and called(equation) is None:
            return Verdict(Bits.UNKNOWN, "jit with placement or compiler options of its own")
        bits = row_of(name).bits
        if bits == Bits.INSIDE:
            return self._worst(self.jaxpr(inner) for inner in inner_jaxprs(equation))
        if bits in (Bits.ENTRYWISE, Bits.ORDERED):
            atoms = (*equation.invars, *equation.outvars)
            if all(is_integral(atom.aval) for atom in atoms):
                bits = Bits.EXACT
        return Verdict(Bits.UNKNOWN if bits is Bits.ORDERED else bits, name)

    def jaxpr(self, jaxpr: Any) -> Verdict:
        """The verdict on a jaxpr: that on its least movable equation."""
        if id(jaxpr) not in self._known:
            self._known[id(jaxpr)] = self._worst(map(self.equation, jaxpr.eqns))
        return self._known[id(jaxpr)]

    @staticmethod
    def _worst(verdicts: Iterable[Verdict]) -> Verdict:
        nothing = Verdict(Bits.EXACT, "")
        return max(verdicts, key=lambda verdict: _FREEDOM.index(verdict.bits), default=nothing)


@dataclasses.dataclass(frozen=True, eq=False, slots=True)
class Slice:
    """The equations behind one leaf, or behind several that belong together.

    Attributes:
        leaves: positions in the flat result.
        nodes: what to run; the order depends on the slice alone, not on the graph around it.
        outputs: what stands for the leaves after it.
        arguments: what it starts from: values of the host, inputs, literals that are returned.
        repeated: how many of its nodes other slices run as well.
    """

    leaves: tuple[int, ...]
    nodes: tuple[Node, ...]
    outputs: tuple[Atom, ...]
    arguments: tuple[Atom, ...]
    repeated: int


@dataclasses.dataclass(frozen=True, eq=False)
class Slicing:
    """A graph in slices.

    Attributes:
        graph: the graph of an init function.
        slices: what can be compiled apart.
        forwarded: leaves that are an argument or a closed-over array themselves.
        leftover: for every other leaf, why it stays with plain ``jax.jit``.
        on_host: numbers of the values that the host computes.
    """

    graph: Graph
    slices: Sequence[Slice]
    forwarded: tuple[int, ...]
    leftover: dict[int, str]
    on_host: frozenset[int]

    def groups(self) -> dict[Same, list[Slice]]:
        """The slices by what they compute, in order of appearance."""
        describer = Describer()
        found: dict[Same, list[Slice]] = {}
        for piece in self.slices:
            found.setdefault(describer.slice(piece, self.graph), []).append(piece)
        return found

    def is_words(self, atom: Atom) -> bool:
        """Whether an argument of a slice is a key that the host hands over as its words."""
        return isinstance(atom, int) and atom in self.on_host and is_key(self.graph.avals[atom])

    def argument_types(self, piece: Slice) -> list[jax.ShapeDtypeStruct]:
        """Types that the program of a slice is compiled for."""
        types = []
        for atom in piece.arguments:
            aval = self.graph.aval(atom)
            if self.is_words(atom):
                shape = (*aval.shape, *host.words_of(aval))
                types.append(jax.ShapeDtypeStruct(shape, np.dtype("uint32")))
            else:
                types.append(as_struct(aval))
        return types

    def function(self, piece: Slice, fast_key: FastKey | None = None) -> Callable[..., list[Any]]:
        """The function of a slice: its arguments, in order, to its leaves."""
        graph = self.graph
        arguments = [
            (
                name_of(atom),
                host.implementation_of(graph.aval(atom)) if self.is_words(atom) else None,
            )
            for atom in piece.arguments
        ]
        read = {atom for node in piece.nodes for atom in node.inputs if isinstance(atom, int)}
        fixed = {n: value for n, value in graph.constants.items() if n in read}
        domain = FastBits(fast_key)

        def run(*operands: Any) -> list[Any]:
            values: dict[Any, Any] = dict(fixed)
            for (name, implementation), operand in zip(arguments, operands, strict=True):
                values[name] = (
                    operand
                    if implementation is None
                    else jax.random.wrap_key_data(operand, impl=implementation)
                )
            domain.run_nodes(piece.nodes, values)
            return [values[name_of(atom)] for atom in piece.outputs]

        return run

    def constant(self, piece: Slice) -> Any:
        """The number that fills a leaf, where the slice does nothing else; None otherwise."""
        if len(piece.nodes) != 1 or len(piece.leaves) != 1:
            return None
        (node,), (leaf,) = piece.nodes, piece.leaves
        aval = self.graph.aval(self.graph.outputs[leaf])
        if (
            node.primitive != "broadcast_in_dim"
            or len(node.inputs) != 1
            or not isinstance(node.inputs[0], jex.Literal)
            or node.params.get("sharding") is not None
            or aval.weak_type
            or is_key(aval)
        ):
            return None
        return np.asarray(node.inputs[0].val).astype(aval.dtype)[()]


def cut(graph: Graph) -> Slicing:
    """Cuts the graph of an init function into slices."""
    cutter = _Cutter(graph)
    starts = {*graph.inputs, *graph.constants}
    is_start = [isinstance(atom, int) and atom in starts for atom in graph.outputs]
    forwarded = tuple(leaf for leaf, is_given in enumerate(is_start) if is_given)
    rest = [leaf for leaf, is_given in enumerate(is_start) if not is_given]
    leftover: dict[int, str] = {}
    reach = cutter.reach(rest)
    if reach is None:
        leftover.update(dict.fromkeys(rest, "shares most of its equations with other leaves"))
        return Slicing(graph, [], forwarded, leftover, frozenset())
    uses = collections.Counter(index for indices in reach.values() for index in indices)
    slices = []
    for leaves in _joined(reach, cutter.ties):
        indices = list(dict.fromkeys(index for leaf in leaves for index in reach[leaf]))
        verdicts = [cutter.verdicts[index] for index in indices]
        culprits = {verdict.culprit for verdict in verdicts if verdict.bits is Bits.UNKNOWN}
        if culprits:
            leftover.update(dict.fromkeys(leaves, ", ".join(sorted(culprits))))
        else:
            inside = collections.Counter(index for leaf in leaves for index in reach[leaf])
            repeated = sum(uses[index] > inside[index] for index in indices)
            slices.append(cutter.slice(leaves, indices, repeated))
    return Slicing(graph, slices, forwarded, leftover, frozenset(cutter.on_host))


class _Cutter:
    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.makers = {n: index for index, node in enumerate(graph.nodes) for n in node.outputs}
        judge = Judge()
        self.verdicts = [judge.equation(node.equation) for node in graph.nodes]
        self.on_host: set[int] = set()
        self.varies: set[int] = set(graph.inputs)
        self._find_host_values()
        # Where slices begin: what the host computes anew for every call. A constant integer is not
        # among it, since XLA may fold what it feeds; a constant key is, since bits are not folded.
        self.begins = self.on_host & self.varies
        # Other closed-over arrays stay inside a slice, as XLA may compute with them.
        self.fixed = graph.constants.keys() - self.begins

    def _find_host_values(self) -> None:
        graph = self.graph
        self.varies.update(number for number in graph.constants if is_key(graph.avals[number]))
        starts = (*graph.inputs, *graph.constants)
        self.on_host.update(n for n in starts if host.fits(graph.avals[n]))
        for node in graph.nodes:
            numbers = [atom for atom in node.inputs if isinstance(atom, int)]
            makes_keys = any(is_key(graph.avals[number]) for number in node.outputs)
            if makes_keys or not self.varies.isdisjoint(numbers):
                self.varies.update(node.outputs)
            if self.on_host.issuperset(numbers) and host.can_compute(node.equation):
                self.on_host.update(node.outputs)

    def reach(self, leaves: Iterable[int]) -> dict[int, list[int]] | None:
        """Nodes behind each leaf, by index; None when they are the same ones over and over."""
        budget = 8 * len(self.graph.nodes) + 10_000
        found = {}
        for leaf in leaves:
            atom = self.graph.outputs[leaf]
            known = isinstance(atom, int) and atom in self.on_host
            found[leaf] = [] if known else list(self._behind(atom))
            budget -= len(found[leaf])
            if budget < 0:
                return None
        return found

    def _behind(self, atom: Atom) -> Iterator[int]:
        """Indices of the nodes that make a value, each after those that it reads from."""
        makers, nodes = self.makers, self.graph.nodes
        seen: set[int] = set()
        stack: list[tuple[Atom, bool]] = [(atom, False)]
        while stack:
            atom, ready = stack.pop()
            if not isinstance(atom, int) or atom in self.begins or atom not in makers:
                continue
            index = makers[atom]
            if ready:
                yield index
            elif index not in seen:
                seen.add(index)
                stack.append((atom, True))
                stack.extend((source, False) for source in reversed(nodes[index].inputs))

    def ties(self, index: int) -> bool:
        """Whether leaves that share a node must stay together."""
        if self.verdicts[index].bits is Bits.EXACT:
            return False
        # A scalar that depends on nothing, like a standard deviation used by every layer, is
        # folded into a constant wherever it appears.
        outputs = self.graph.nodes[index].outputs
        is_scalar = all(size_of(self.graph.avals[number]) == 1 for number in outputs)
        return not (is_scalar and self.varies.isdisjoint(outputs))

    def slice(self, leaves: tuple[int, ...], indices: list[int], repeated: int) -> Slice:
        nodes = tuple([self.graph.nodes[index] for index in indices])
        outputs = tuple([self.graph.outputs[leaf] for leaf in leaves])
        made = {number for node in nodes for number in node.outputs}
        # Literals stay inside, where XLA folds them as it does in the whole function. A literal
        # that is returned becomes an argument, so that leaves that differ in it share a program.
        read = [atom for node in nodes for atom in node.inputs if isinstance(atom, int)]
        starts = {
            name_of(atom): atom
            for atom in (*read, *outputs)
            if name_of(atom) not in made and name_of(atom) not in self.fixed
        }
        return Slice(leaves, nodes, outputs, tuple(starts.values()), repeated)


def name_of(atom: Atom) -> Hashable:
    """A name for an atom. Two equal literals are two arguments, and arrays cannot be hashed."""
    return atom if isinstance(atom, int) else ("literal", id(atom))


def as_struct(aval: Any) -> jax.ShapeDtypeStruct:
    """What ``jax.jit(...).lower`` takes in the place of an array of this type."""
    weak = getattr(aval, "weak_type", False)
    return jax.ShapeDtypeStruct(aval.shape, aval.dtype, weak_type=weak)


def behind(nodes: Sequence[Node], atoms: Iterable[Atom]) -> tuple[list[Node], set[int]]:
    """Nodes that values are made of, in order, and the numbers of everything they touch."""
    numbers = {atom for atom in atoms if isinstance(atom, int)}
    found = []
    for node in reversed(nodes):
        if not numbers.isdisjoint(node.outputs):
            found.append(node)
            numbers.update(atom for atom in node.inputs if isinstance(atom, int))
    return found[::-1], numbers


def _joined(reach: dict[int, list[int]], ties: Callable[[int], bool]) -> list[tuple[int, ...]]:
    """Leaves, joined where they share a node that ties them, in order of their first leaf."""
    parents = {leaf: leaf for leaf in reach}

    def root(leaf: int) -> int:
        while parents[leaf] != leaf:
            parents[leaf] = leaf = parents[parents[leaf]]
        return leaf

    owners: dict[int, int] = {}
    for leaf, indices in reach.items():
        for index in indices:
            if index in owners or ties(index):
                one, other = root(owners.setdefault(index, leaf)), root(leaf)
                parents[max(one, other)] = min(one, other)
    joined: dict[int, list[int]] = {}
    for leaf in reach:
        joined.setdefault(root(leaf), []).append(leaf)
    return [tuple(leaves) for leaves in joined.values()]


def may_use_fast_bits(equations: Sequence[Any]) -> bool:
    """Whether equations draw bits, and fast bits leave every bit of their results the same.

    A slice holds no dead code and keeps every operation that rounds together, so it is safe with
    JAX's own bits. Fast bits are fused into other loops, and not every operation rounds alike in
    each.
    """
    return hold(equations, "random_bits") and are_exact(equations)


class Same:
    """A description compared by content, hashed once."""

    __slots__ = ("_hash", "content")

    def __init__(self, content: Hashable) -> None:
        self.content = content
        self._hash = hash(content)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Same) and self._hash == other._hash and self.content == other.content
        )


class _Identity:
    """Stands for an object that cannot be compared, and keeps it alive: equal to itself alone."""

    __slots__ = ("held",)

    def __init__(self, held: Any) -> None:
        self.held = held

    def __hash__(self) -> int:
        return id(self.held)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Identity) and self.held is other.held


class Describer:
    """Describes slices and jaxprs by what they compute, remembering nested jaxprs."""

    def __init__(self) -> None:
        self._jaxprs: dict[int, Same] = {}

    def slice(self, piece: Slice, graph: Graph) -> Same:
        """A description that two slices share exactly when one program computes both."""
        places: dict[Hashable, Hashable] = {
            name_of(atom): index for index, atom in enumerate(piece.arguments)
        }

        def place(atom: Atom) -> Hashable:
            name = name_of(atom)
            if name in places:
                return places[name]
            if isinstance(atom, int):
                return ("constant", _hashable_array(graph.constants[atom]))
            return _describe_literal(atom)

        body = []
        for index, node in enumerate(piece.nodes):
            body.append((self.equation(node.equation), tuple(map(place, node.inputs))))
            places.update((number, (index, at)) for at, number in enumerate(node.outputs))
        arguments = tuple([_describe_aval(graph.aval(atom)) for atom in piece.arguments])
        results = tuple([(place(a), _describe_aval(graph.aval(a))) for a in piece.outputs])
        return Same((arguments, tuple(body), results))

    def equation(self, equation: Any) -> Hashable:
        """What an equation computes, apart from its operands."""
        parameters = tuple(
            (name, self._value(value))
            for name, value in sorted(equation.params.items(), key=lambda item: item[0])
            if name not in _IGNORED
        )
        outputs = tuple(_describe_aval(variable.aval) for variable in equation.outvars)
        return (equation.primitive, parameters, outputs, _hashable(equation.ctx))

    def _value(self, value: Any) -> Hashable:
        if is_jaxpr(value):
            return self.jaxpr(value)
        if isinstance(value, tuple | list):
            return tuple(map(self._value, value))
        return _hashable(value)

    def jaxpr(self, jaxpr: Any) -> Same:
        """What a jaxpr computes: its equations, with variables numbered in order."""
        if id(jaxpr) not in self._jaxprs:
            self._jaxprs[id(jaxpr)] = self._describe(jaxpr)
        return self._jaxprs[id(jaxpr)]

    def _describe(self, jaxpr: Any) -> Same:
        numbers: dict[Any, int] = {}

        def define(variables: Sequence[Any]) -> tuple[Hashable, ...]:
            for variable in variables:
                numbers[variable] = len(numbers)
            return tuple(_describe_aval(variable.aval) for variable in variables)

        def read(atom: Any) -> Hashable:
            return _describe_literal(atom) if isinstance(atom, jex.Literal) else numbers[atom]

        constants = constants_of(jaxpr)
        head = (
            define([variable for variable, _ in constants]),
            tuple(_hashable_array(value) for _, value in constants),
            define(jaxpr.invars),
        )
        body = []
        for equation in jaxpr.eqns:
            body.append((self.equation(equation), tuple(map(read, equation.invars))))
            define(equation.outvars)
        return Same((head, tuple(body), tuple(map(read, jaxpr.outvars))))


def _describe_aval(aval: Any) -> Hashable:
    return (
        getattr(aval, "shape", None),
        getattr(aval, "dtype", None),
        getattr(aval, "weak_type", None),
        _hashable(getattr(aval, "sharding", None)),
    )


def _describe_literal(literal: Any) -> Hashable:
    # By bytes: 0.0 and -0.0 are equal numbers and different programs; NaN is not equal to itself.
    return ("literal", _describe_aval(literal.aval), _hashable_array(literal.val))


def _hashable_array(value: Any) -> Hashable:
    if np.ndim(value) == 0 and not isinstance(value, jax.Array):
        array = np.asarray(value)
        return (array.dtype, array.tobytes())
    return _Identity(value)


def _hashable(value: Any) -> Hashable:
    try:
        hash(value)
    except TypeError:
        return _Identity(value)
    return value
