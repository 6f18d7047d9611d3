"""Assertions on trees of parameters: shapes, laws, broken symmetry, finite values.

They are what a test or a job calls after initialization, in the manner of chex: nothing is returned
when all is well, and an ``AssertionError`` with a table of the leaves that fail otherwise. Arrays
stay where they are; a few numbers per leaf travel.
"""

from jaxinit.checks._laws import assert_laws as assert_laws
from jaxinit.checks._measuring import Measured as Measured
from jaxinit.checks._measuring import concrete_leaves as concrete_leaves
from jaxinit.checks._measuring import measure as measure
from jaxinit.checks._trees import CheckError as CheckError
from jaxinit.checks._trees import assert_finite as assert_finite
from jaxinit.checks._trees import assert_shapes as assert_shapes
from jaxinit.checks._twins import assert_symmetry_broken as assert_symmetry_broken
from jaxinit.checks._twins import twin_units as twin_units
