"""Flax models as trees that a plan takes, and plans back into models.

Linen: `linen_tree` gives the variables of a module as shapes that know the axes of their kernels,
`own_initializers` what the module itself would draw. What `plan.init` returns goes into
`module.apply` as it is. NNX: `nnx_tree` does the same for a model or a function that makes one,
and `nnx_model` puts the values of a plan into a working model; `nnx_apply` makes of a model the
function and the state that `jaxinit.read` takes. Nothing is allocated before values are drawn.
`nnx_init` is `nnx.jit` for functions that make a model, at the speed of `jaxinit.jit_init`, and
`shardings_from_metadata` reads the shardings that models of either kind already carry.
"""

from jaxinit.flax._metadata import MetadataShardings as MetadataShardings
from jaxinit.flax._metadata import shardings_from_metadata as shardings_from_metadata
from jaxinit.flax._models import LinenModel as LinenModel
from jaxinit.flax._models import Model as Model
from jaxinit.flax._models import NnxModel as NnxModel
from jaxinit.flax._models import NoModelError as NoModelError
from jaxinit.flax._models import as_model as as_model
from jaxinit.flax._nnx import nnx_apply as nnx_apply
from jaxinit.flax._nnx import nnx_model as nnx_model
from jaxinit.flax._nnx import nnx_tree as nnx_tree
from jaxinit.flax._nnx_init import NnxInit as NnxInit
from jaxinit.flax._nnx_init import nnx_init as nnx_init
from jaxinit.flax._own import linen_tree as linen_tree
from jaxinit.flax._own import own_initializers as own_initializers
