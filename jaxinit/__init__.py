"""jaxinit: the initialization layer for JAX.

One array (`jaxinit.initializers`), what an activation does to a signal (`jaxinit.activations`), one
tree from rules (`plan`) or from any init function (`jit_init`), assertions that hold both to their
declared laws (`jaxinit.checks`), what a model does with each of its parameters (`read`), and which
initializer fits it (`advise`, `audit`). The bridge to Flax is `jaxinit.flax`; Flax is imported when
it is first used.
"""

import typing as _typing

from jaxinit import activations as activations
from jaxinit import checks as checks
from jaxinit import initializers as initializers
from jaxinit.advice import Advice as Advice
from jaxinit.advice import Audit as Audit
from jaxinit.advice import advise as advise
from jaxinit.advice import audit as audit
from jaxinit.engine import fast_key as fast_key
from jaxinit.engine import jit_init as jit_init
from jaxinit.initializers import own as own
from jaxinit.planning import ParamSpec as ParamSpec
from jaxinit.planning import Plan as Plan
from jaxinit.planning import ShardingRules as ShardingRules
from jaxinit.planning import fingerprint as fingerprint
from jaxinit.planning import key_for_path as key_for_path
from jaxinit.planning import like_kernel as like_kernel
from jaxinit.planning import plan as plan
from jaxinit.planning import sharding_rules as sharding_rules
from jaxinit.reading import Reading as Reading
from jaxinit.reading import compare_fans as compare_fans
from jaxinit.reading import read as read
from jaxinit.signal import Prediction as Prediction
from jaxinit.signal import predict as predict

if _typing.TYPE_CHECKING:
    from jaxinit import flax as flax

__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    """Imports `jaxinit.flax` when it is first asked for."""
    if name != "flax":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        import jaxinit.flax as bridge
    except ModuleNotFoundError as error:
        if error.name != "flax":
            raise
        raise ImportError(
            "jaxinit.flax needs Flax, and flax is not installed. Install it with "
            "pip install 'jaxinit[flax]'.",
            name="flax",
        ) from None
    return bridge


def __dir__() -> list[str]:
    return sorted({*globals(), "flax"})
