"""One array: laws and how to draw them.

Every factory returns a frozen value that is called as ``(key, shape, dtype, out_sharding)``, the
protocol of ``jax.nn.initializers``, and declares the law of what it draws.
"""

from jaxinit.initializers._base import BaseInitializer as BaseInitializer
from jaxinit.initializers._base import Traits as Traits
from jaxinit.initializers._basic import constant as constant
from jaxinit.initializers._basic import normal as normal
from jaxinit.initializers._basic import ones as ones
from jaxinit.initializers._basic import ones_init as ones_init
from jaxinit.initializers._basic import truncated_normal as truncated_normal
from jaxinit.initializers._basic import uniform as uniform
from jaxinit.initializers._basic import zeros as zeros
from jaxinit.initializers._basic import zeros_init as zeros_init
from jaxinit.initializers._fans import Axes as Axes
from jaxinit.initializers._fans import Fans as Fans
from jaxinit.initializers._fans import compute_fans as compute_fans
from jaxinit.initializers._fans import einsum_axes as einsum_axes
from jaxinit.initializers._laws import Law as Law
from jaxinit.initializers._laws import Slab as Slab
from jaxinit.initializers._protocol import Initializer as Initializer
from jaxinit.initializers._registry import Description as Description
from jaxinit.initializers._registry import describe as describe
from jaxinit.initializers._registry import from_config as from_config
from jaxinit.initializers._registry import from_jax as from_jax
from jaxinit.initializers._registry import get as get
from jaxinit.initializers._registry import names as names
from jaxinit.initializers._registry import to_config as to_config
from jaxinit.initializers._structured import delta_orthogonal as delta_orthogonal
from jaxinit.initializers._structured import dirac as dirac
from jaxinit.initializers._structured import identity as identity
from jaxinit.initializers._structured import orthogonal as orthogonal
from jaxinit.initializers._structured import scaled_orthogonal as scaled_orthogonal
from jaxinit.initializers._structured import sparse as sparse
from jaxinit.initializers._variance import VarianceScaling as VarianceScaling
from jaxinit.initializers._variance import glorot_normal as glorot_normal
from jaxinit.initializers._variance import glorot_uniform as glorot_uniform
from jaxinit.initializers._variance import he_normal as he_normal
from jaxinit.initializers._variance import he_uniform as he_uniform
from jaxinit.initializers._variance import kaiming_normal as kaiming_normal
from jaxinit.initializers._variance import kaiming_uniform as kaiming_uniform
from jaxinit.initializers._variance import lecun_normal as lecun_normal
from jaxinit.initializers._variance import lecun_uniform as lecun_uniform
from jaxinit.initializers._variance import variance_scaling as variance_scaling
from jaxinit.initializers._variance import xavier_normal as xavier_normal
from jaxinit.initializers._variance import xavier_uniform as xavier_uniform
from jaxinit.initializers._wrappers import FromFunction as FromFunction
from jaxinit.initializers._wrappers import Fused as Fused
from jaxinit.initializers._wrappers import Own as Own
from jaxinit.initializers._wrappers import Reshaped as Reshaped
from jaxinit.initializers._wrappers import SingleWrapper as SingleWrapper
from jaxinit.initializers._wrappers import Stacked as Stacked
from jaxinit.initializers._wrappers import fused as fused
from jaxinit.initializers._wrappers import masked as masked
from jaxinit.initializers._wrappers import own as own
from jaxinit.initializers._wrappers import reshaped as reshaped
from jaxinit.initializers._wrappers import scaled as scaled
from jaxinit.initializers._wrappers import stacked as stacked
