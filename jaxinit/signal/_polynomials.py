"""Sums and products of values that depend on more numbers than a table has axes.

``n + z * (h - n)`` is a function of three independent numbers, and ``h - n`` shares one of them
with ``n``. What was added and multiplied is written out again until nothing is left that is not
independent of everything else; then moments and derivatives of the polynomial are exact.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np

from jaxinit.signal import _tables as tables
from jaxinit.signal._fields import Field, World, spread_over
from jaxinit.signal._links import Link

_SIGNS = {"add": 1.0, "add_any": 1.0, "sub": -1.0}
# Gates of gates of recurrent cells have at most 6 terms.
_MOST_TERMS = 12
_MOST_STEPS = 6

# Each product of values, by their numbers, and what it is multiplied with: one number per row.
_Polynomial = dict[tuple[int, ...], np.ndarray]


def note(world: World, name: str, operands: Sequence[Field], results: Sequence[Field]) -> None:
    """Keeps what a sum or product was made of.

    Args:
        world: all fields.
        name: the primitive.
        operands: its two operands.
        results: fields that all are its result.
    """
    if (name in _SIGNS or name == "mul") and len(operands) == 2:
        for result in results:
            world.combined[result.number] = name, (operands[0], operands[1])


def resolved(
    world: World,
    name: str,
    operands: Sequence[Field],
    shape: Sequence[int],
    features: Sequence[int],
) -> Field | None:
    """A sum or product with exact moments and a normal law; None where it cannot be told apart.

    Args:
        world: where it is made.
        name: the primitive.
        operands: its two operands.
        shape: shape of the result.
        features: which of its axes hold independent units.
    """
    found = _independent(world, name, operands)
    if found is None:
        return None
    polynomial, atoms = found
    mean = _expectation(polynomial, atoms)
    second = _expectation(_product(polynomial, polynomial), atoms)
    variance = np.maximum(second - mean**2, 0.0)
    crossed = sum(world.cross(x) - x.mean**2 for x in operands)
    links = [_derivative(polynomial, atoms, number) for number in atoms]
    return world.normal(
        mean,
        variance,
        shape,
        features,
        links,
        np.clip(crossed / np.where(variance > 0, variance, 1.0), 0.0, 1.0),
        frozenset().union(*(world.all_roots(x) for x in operands)),
        lost=next((x.lost for x in operands if x.lost), None),
    )


def _independent(
    world: World, name: str, operands: Sequence[Field]
) -> tuple[_Polynomial, dict[int, Field]] | None:
    """The polynomial in values that are independent, or functions of the same one number."""
    a, b = operands
    atoms = {x.number: x for x in operands}
    polynomial = _combined(name, *({(x.number,): np.ones(tables.ROWS)} for x in (a, b)))
    for _ in range(_MOST_STEPS):
        entangled = _entangled(world, list(atoms.values()))
        if not entangled:
            break
        last = max(entangled)
        if last not in world.combined:
            return None
        inner, parts = world.combined[last]
        by = _combined(inner, *({(x.number,): np.ones(tables.ROWS)} for x in parts))
        polynomial = _substituted(polynomial, last, by)
        del atoms[last]
        atoms |= {x.number: x for x in parts}
        if len(polynomial) > _MOST_TERMS:
            return None
    else:
        return None
    flat = {number: world.compressed(x) for number, x in atoms.items()}
    renamed = {
        tuple(sorted(flat[number].number for number in term)): factor
        for term, factor in polynomial.items()
    }
    return renamed, {x.number: x for x in flat.values()}


def _entangled(world: World, atoms: Sequence[Field]) -> set[int]:
    """Values that have a history in common with another, and are not functions of one number.

    Products are among them: what gates do is told apart from what they let through.
    """
    found = {x.number for x in atoms if len(x.sources) > 1 and x.number in world.combined}
    for i, x in enumerate(atoms):
        for y in atoms[:i]:
            same = len(x.sources) == 1 and x.sources == y.sources
            if not same and world.all_roots(x) & world.all_roots(y):
                found |= {z.number for z in (x, y) if z.number in world.combined} or {x.number}
    return found


def _combined(name: str, a: _Polynomial, b: _Polynomial) -> _Polynomial:
    if name == "mul":
        return _product(a, b)
    return _sum(a, {term: _SIGNS[name] * factor for term, factor in b.items()})


def _sum(a: _Polynomial, b: _Polynomial) -> _Polynomial:
    result = dict(a)
    for term, factor in b.items():
        result[term] = result.get(term, np.zeros(tables.ROWS)) + factor
    return result


def _product(a: _Polynomial, b: _Polynomial) -> _Polynomial:
    result: _Polynomial = {}
    for one, factor in a.items():
        for other, by in b.items():
            result = _sum(result, {tuple(sorted((*one, *other))): factor * by})
    return result


def _substituted(polynomial: _Polynomial, number: int, by: _Polynomial) -> _Polynomial:
    result: _Polynomial = {}
    for term, factor in polynomial.items():
        expanded: _Polynomial = {tuple(n for n in term if n != number): factor}
        for _ in range(term.count(number)):
            expanded = _product(expanded, by)
        result = _sum(result, expanded)
    return result


def _expectation(polynomial: _Polynomial, atoms: dict[int, Field]) -> np.ndarray:
    total = np.zeros(tables.ROWS)
    for term, factor in polynomial.items():
        groups: dict[tuple[int, ...], np.ndarray] = {}
        for number in term:
            x = atoms[number]
            groups[x.sources] = groups.get(x.sources, 1.0) * x.table
        means = (tables.expectation(table) for table in groups.values())
        total = total + functools.reduce(np.multiply, means, factor)
    return total


def _derivative(polynomial: _Polynomial, atoms: dict[int, Field], number: int) -> Link:
    """The way back to one of the values."""
    slopes: _Polynomial = {}
    for term, factor in polynomial.items():
        if number in term:
            left = list(term)
            left.remove(number)
            slopes = _sum(slopes, {tuple(left): term.count(number) * factor})
    joint = sorted({s for term in slopes for n in term for s in atoms[n].sources})
    if len(joint) > 2:
        square = _expectation(_product(slopes, slopes), atoms)
        return Link(number, slope=np.sqrt(np.maximum(square, 0.0)), of=())
    table = np.zeros((tables.ROWS, *[tables.NODES] * len(joint)))
    rows = (slice(None), *[None] * len(joint))
    for term, factor in slopes.items():
        parts = (spread_over(atoms[n].table, atoms[n].sources, joint) for n in term)
        table = table + functools.reduce(np.multiply, parts, factor[rows])
    return Link(number, slope=table, of=tuple(joint))


def again_elsewhere(world: World, one: Sequence[int], other: Sequence[int]) -> bool:
    """Whether two sets of sources come from two uses of one parameter, as rounds of a loop do."""
    calls = [
        {call for s in sources for root in world.roots[s] for call in world.calls.get(root, ())}
        for sources in (one, other)
    ]
    return any(a[0] == b[0] and a[1] != b[1] for a in calls[0] for b in calls[1])


def coupled(squares: np.ndarray, slope: np.ndarray) -> np.ndarray:
    """Slopes times slopes that they may be correlated with: rows x 2 x nodes for each source.

    Two functions of one number each are between independent and of the same number, as a gate is
    that stays open. Of others nobody knows: where the largest meet the smallest their mean square
    is least, where they meet the largest most.

    Args:
        squares: squared slopes that come: rows x (low, high) x nodes for each source.
        slope: what they are multiplied with, rows x nodes for each source.
    """
    squares = np.broadcast_to(squares, (*squares.shape[:2], *[tables.NODES] * (squares.ndim - 2)))
    if squares.ndim == 3 and slope.ndim == 2:
        weights = tables.weights()
        apart = np.broadcast_to((squares @ weights)[..., None], squares.shape)
        together = (squares * slope[:, None] ** 2) @ weights
        larger = together > (apart * slope[:, None] ** 2) @ weights
        low = np.where(larger[:, :1], apart[:, 0], squares[:, 0])
        high = np.where(larger[:, 1:], squares[:, 1], apart[:, 1])
    else:
        ordered = _ascending(squares)
        mass = functools.reduce(np.multiply.outer, [tables.weights()] * (slope.ndim - 1))
        _, places = tables.compress(slope**2, mass)
        rows = np.arange(tables.ROWS).reshape(-1, *[1] * (slope.ndim - 1))
        low = ordered[:, 0][rows, tables.NODES - 1 - places]
        high = ordered[:, 1][rows, places]
    return np.sqrt(np.stack([low, high], axis=1)) * slope[:, None]


def _ascending(squares: np.ndarray) -> np.ndarray:
    """Law of squared slopes, rows x 2 x nodes for each source, as one ascending table."""
    sources = squares.ndim - 2
    mass = functools.reduce(np.multiply.outer, [tables.weights()] * sources)
    ends = [tables.compress(squares[:, end], mass)[0] for end in range(2)]
    return np.maximum(np.stack(ends, axis=1), 0.0)
