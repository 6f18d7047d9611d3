"""One array: laws and how to draw them.

Every factory returns a frozen value that is called as ``(key, shape, dtype, out_sharding)``, the
protocol of ``jax.nn.initializers``, and declares the law of what it draws.
"""

from jaxinit.initializers.basic import constant as constant
from jaxinit.initializers.basic import normal as normal
from jaxinit.initializers.basic import ones as ones
from jaxinit.initializers.basic import ones_init as ones_init
from jaxinit.initializers.basic import truncated_normal as truncated_normal
from jaxinit.initializers.basic import uniform as uniform
from jaxinit.initializers.basic import zeros as zeros
from jaxinit.initializers.basic import zeros_init as zeros_init
from jaxinit.initializers.composites import fused as fused
from jaxinit.initializers.composites import stacked as stacked
from jaxinit.initializers.fans import Axes as Axes
from jaxinit.initializers.fans import Fans as Fans
from jaxinit.initializers.fans import compute_fans as compute_fans
from jaxinit.initializers.fans import einsum_axes as einsum_axes
from jaxinit.initializers.laws import Law as Law
from jaxinit.initializers.laws import Part as Part
from jaxinit.initializers.orthogonal import delta_orthogonal as delta_orthogonal
from jaxinit.initializers.orthogonal import orthogonal as orthogonal
from jaxinit.initializers.orthogonal import scaled_orthogonal as scaled_orthogonal
from jaxinit.initializers.protocol import Initializer as Initializer
from jaxinit.initializers.recipes import glorot_normal as glorot_normal
from jaxinit.initializers.recipes import glorot_uniform as glorot_uniform
from jaxinit.initializers.recipes import he_normal as he_normal
from jaxinit.initializers.recipes import he_uniform as he_uniform
from jaxinit.initializers.recipes import kaiming_normal as kaiming_normal
from jaxinit.initializers.recipes import kaiming_uniform as kaiming_uniform
from jaxinit.initializers.recipes import lecun_normal as lecun_normal
from jaxinit.initializers.recipes import lecun_uniform as lecun_uniform
from jaxinit.initializers.recipes import xavier_normal as xavier_normal
from jaxinit.initializers.recipes import xavier_uniform as xavier_uniform
from jaxinit.initializers.registry import Entry as Entry
from jaxinit.initializers.registry import describe as describe
from jaxinit.initializers.registry import from_config as from_config
from jaxinit.initializers.registry import from_jax as from_jax
from jaxinit.initializers.registry import get as get
from jaxinit.initializers.registry import names as names
from jaxinit.initializers.registry import to_config as to_config
from jaxinit.initializers.structured import dirac as dirac
from jaxinit.initializers.structured import identity as identity
from jaxinit.initializers.structured import sparse as sparse
from jaxinit.initializers.variance import variance_scaling as variance_scaling
from jaxinit.initializers.wrappers import masked as masked
from jaxinit.initializers.wrappers import reshaped as reshaped
from jaxinit.initializers.wrappers import scaled as scaled
