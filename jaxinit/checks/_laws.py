"""The assertion that arrays follow the laws that their plan declares for them."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
from collections.abc import Iterator, Mapping
from numbers import Real
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxinit._types import AnyArray, PyTree
from jaxinit.checks._allowances import allowance
from jaxinit.checks._measuring import Box, Measured, as_auto, box_shape, measure_boxes
from jaxinit.checks._trees import fail, planned_arrays, require_plan
from jaxinit.initializers import Initializer, Law, Slab
from jaxinit.planning import Plan, PlannedLeaf, words_of

# Mean, second moment and ends of the support, each on two sides.
_SIDES = 6


@dataclasses.dataclass(frozen=True)
class _Claim:
    """A law that the entries in a box of a leaf should follow."""

    leaf: PlannedLeaf
    box: Box
    law: Law

    @property
    def place(self) -> str:
        """The path, with the slice where the box is not the whole."""
        if not self.box:
            return self.leaf.path
        cuts = [":"] * len(self.leaf.shape)
        for axis, start, stop in self.box:
            cuts[axis] = f"{start}:{stop}"
        return f"{self.leaf.path}[{', '.join(cuts)}]"


class _Failure(NamedTuple):
    """A line of the table; ``leaf`` is the path without the slice, and is not shown."""

    leaf: str
    path: str
    what: str
    expected: str
    measured: str
    z: float | None = None
    allowed: float | None = None


def assert_laws(params: PyTree, plan: Plan, *, failure_rate: float = 1e-5) -> None:
    r"""Asserts that every array follows the law that its plan declares.

    Of each leaf, or of each slab of a fused one: all entries are finite; their mean is that of the
    law; their second moment around the law's mean is the law's variance; the smallest and the
    largest lie in its support, or, where an end is infinite, no further out than one entry may
    reach. The sum of squares of an orthogonal kernel is held to rounding. A leaf whose initializer
    is not random is compared bit for bit with what it draws; one whose law is unknown (`own`, a
    function of the user) is held to finite values alone.

    Tolerances follow from the number of entries n, the kurtosis k of the law and the failure rate
    r by tail bounds that hold for every n. With :math:`t = \log(6 N / r)`, N being the number of
    laws that are tested, three on two sides each, the mean may be off by

    .. math:: \sigma \left(\sqrt{2 t / n} + \sqrt{k}\, t / (3 n)\right)

    and the second moment by :math:`\sqrt{2 (k - 1) t / n}`, relative, plus :math:`2 k t / (3 n)`
    above and :math:`t / (3 n)` below. Each is left with probability at most :math:`e^{-t} =
    r / (6 N)`, so a right tree fails with probability at most r, by the union bound. Assumed is
    that entries are independent, or fixed in number by kind, and have no heavier tails than every
    law of the catalogue has: :math:`E|x - m|^q \leq \frac{q!}{2} \sigma^2 c^{q-2}` with
    :math:`c = \sqrt{k} \sigma / 3`, and the like for squares, with more room above for a law that
    is not symmetric. To this comes what rounding to a narrow dtype may move.

    Power, in a tree of 150 leaves at the default rate (t = 18.3), from the normal approximation of
    what is measured: a standard deviation 10 % off in a leaf of 4,096 normal entries fails with
    probability 0.994 (too large) and 0.998 (too small), and with more for laws of lighter tails. A
    mean off by 0.15 standard deviations fails there with 0.999, one off by 0.1 with 0.57, and with
    0.998 in a leaf of 8,192 entries. At 4,096 entries, where 0.1 standard deviations are 6.4
    standard errors, no test of one leaf can reach more than 0.88 at this rate.

    Args:
        params: a tree of arrays with the leaves of the plan.
        plan: what the arrays were drawn by.
        failure_rate: probability that a right tree fails, at most.

    Raises:
        CheckError: an ``AssertionError``; when leaves are missing or of another shape or dtype,
            as from `assert_shapes`, else with a table of the laws that are broken. There ``z`` is
            the distance from the law in standard errors, ``allowed`` what is tolerated.
        TypeError: when an argument is of the wrong kind, or a leaf is not an array with values.
        ValueError: when the failure rate is not between 0 and 1, or a law lacks its kurtosis.

    Example:
        >>> import jaxinit
        >>> plan = jaxinit.plan({"kernel": jax.ShapeDtypeStruct((64, 64), "float32")},
        ...                     [("kernel", "he_normal")])
        >>> params = plan.init(jax.random.key(0))
        >>> assert_laws(params, plan)
        >>> assert_laws({"kernel": params["kernel"] / 2}, plan)
        Traceback (most recent call last):
        jaxinit.checks.CheckError: assert_laws needs arrays that follow their laws, 1 of 1 ...
    """
    require_plan("assert_laws", plan)
    is_number = isinstance(failure_rate, Real) and not isinstance(failure_rate, bool)
    if not is_number or not 0 < failure_rate < 1:
        raise ValueError(
            f"assert_laws needs failure_rate between 0 and 1, got {failure_rate!r}. It is the "
            "probability that a right tree fails."
        )
    arrays, _ = planned_arrays("assert_laws", params, plan)
    failures = [*_fixed_failures(arrays, plan), *_law_failures(arrays, plan, failure_rate)]
    if not failures:
        return
    broken = len({failure.leaf for failure in failures})
    fail(
        f"assert_laws needs arrays that follow their laws, {broken} of {len(plan)} leaves "
        f"{'does' if broken == 1 else 'do'} not (failure rate {failure_rate:g}):",
        _Failure._fields[1:],
        [failure[1:] for failure in failures],
        "A right tree fails less often than the failure rate: look at what wrote these leaves.",
    )


def _fixed_failures(arrays: Mapping[str, AnyArray], plan: Plan) -> Iterator[_Failure]:
    """Leaves that no key decides, compared with what their initializers draw."""
    differing = {}
    for leaf in plan:
        if leaf.initializer.random or not leaf.size:
            continue
        is_64_bit = jax.dtypes.canonicalize_dtype(leaf.dtype) != leaf.dtype
        wide = jax.enable_x64(True) if is_64_bit else contextlib.nullcontext()
        with as_auto(arrays[leaf.path]) as array, wide:
            differing[leaf.path] = _count_differing(array, leaf.initializer, leaf.dtype)
    for path, count in jax.device_get(differing).items():
        if count:
            leaf = plan[path]
            found = f"{int(count)} of {leaf.size} differ"
            yield _Failure(path, path, "bits", repr(leaf.initializer), found)


@functools.partial(jax.jit, static_argnums=(1, 2))
def _count_differing(array: jax.Array, initializer: Initializer, dtype: np.dtype) -> jax.Array:
    fresh = initializer(None, array.shape, dtype)
    return jnp.sum(jnp.any(words_of(array) != words_of(fresh), axis=-1), dtype=jnp.uint32)


def _law_failures(
    arrays: Mapping[str, AnyArray], plan: Plan, failure_rate: float
) -> Iterator[_Failure]:
    """Laws that what was drawn does not follow."""
    claims = {
        leaf.path: list(_claims(leaf, leaf.law))
        for leaf in plan
        if leaf.initializer.random and leaf.size
    }
    count = sum(claim.law.variance > 0 for several in claims.values() for claim in several)
    t = math.log(_SIDES * max(count, 1) / failure_rate)
    requests = {path: (arrays[path], [c.box for c in several]) for path, several in claims.items()}
    measured = measure_boxes(requests)
    for path, several in claims.items():
        for claim, found in zip(several, measured[path], strict=True):
            yield from _judge(claim, found, t)


def _claims(leaf: PlannedLeaf, law: Law, box: Box = ()) -> Iterator[_Claim]:
    """The law of a box, or those of its slabs when they cover it."""
    covered = sum(slab.stop - slab.start for slab in law.slabs)
    sizes = {slab.axis: box_shape(leaf.shape, box)[slab.axis] for slab in law.slabs}
    if list(sizes.values()) != [covered]:
        yield _Claim(leaf, box, law)
    for slab in law.slabs:
        yield from _claims(leaf, slab.law, _inside(box, slab, len(leaf.shape)))


def _inside(box: Box, slab: Slab, rank: int) -> Box:
    axis = slab.axis % rank
    offset = next((start for cut, start, _ in box if cut == axis), 0)
    others = (cut for cut in box if cut[0] != axis)
    return (*others, (axis, offset + slab.start, offset + slab.stop))


def _judge(claim: _Claim, found: Measured, t: float) -> Iterator[_Failure]:
    """What is wrong with a box."""
    law, failure = claim.law, functools.partial(_Failure, claim.leaf.path, claim.place)
    if not found.n:
        return
    if not found.finite:
        yield failure("finite", "all", f"{found.nonfinite} of {found.n} are not")
        return
    if law.variance > 0 and not law.kurtosis >= 1:
        raise ValueError(
            f"assert_laws needs laws with a kurtosis of at least 1, got {law.kurtosis} for "
            f"{claim.leaf.initializer!r} at {claim.leaf.path!r}. Declare it in exact_law."
        )
    if not law.known:
        return
    allowed = allowance(law, found.n, claim.leaf.dtype, max(claim.leaf.shape, default=1), t)
    low, high = allowed.support
    if not low <= found.low <= found.high <= high:
        yield failure("range", f"{low:.4g} to {high:.4g}", f"{found.low:.4g} to {found.high:.4g}")
    if law.variance == 0:
        return
    error = law.std / math.sqrt(found.n)
    distance = abs(found.mean - law.mean)
    if not distance <= allowed.mean:
        ends = (f"{law.mean:.4g}", f"{found.mean:.4g}")
        yield failure("mean", *ends, distance / error, allowed.mean / error)
    moment = found.second_moment(law.mean)
    low, high = allowed.second_moment
    if not low <= moment <= high:
        ends = (f"{law.std:.4g}", f"{math.sqrt(moment):.4g}")
        if law.fixed_norm:
            yield failure("rms", *ends)
            return
        error = law.variance * math.sqrt((law.kurtosis - 1) / found.n) or math.inf
        limit = low if moment < low else high
        yield failure("std", *ends, *((x - law.variance) / error for x in (moment, limit)))
