"""Flax models as trees that a plan takes, and plans back into models.

Linen: `linen_tree` gives the variables of a module as shapes that know the axes of their kernels,
`own_initializers` what the module itself would draw. What `plan.init` returns goes into
`module.apply` as it is. NNX: `nnx_tree` does the same for a model or a function that makes one,
and `nnx_model` puts the values of a plan into a working model. Nothing is allocated before that.
"""

from jaxinit.flax.linen import linen_tree as linen_tree
from jaxinit.flax.nnx import nnx_model as nnx_model
from jaxinit.flax.nnx import nnx_tree as nnx_tree
from jaxinit.flax.own import own_initializers as own_initializers

__all__ = ["linen_tree", "nnx_model", "nnx_tree", "own_initializers"]
