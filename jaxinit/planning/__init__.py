"""One tree: rules that say which law each leaf gets, keys by path, and a plan that draws them."""

from jaxinit.planning._diff import Change as Change
from jaxinit.planning._diff import PlanDiff as PlanDiff
from jaxinit.planning._fingerprint import Fingerprint as Fingerprint
from jaxinit.planning._fingerprint import fingerprint as fingerprint
from jaxinit.planning._keys import SCHEME as SCHEME
from jaxinit.planning._keys import key_for_path as key_for_path
from jaxinit.planning._keys import keys_for_paths as keys_for_paths
from jaxinit.planning._leaves import Group as Group
from jaxinit.planning._leaves import PlannedLeaf as PlannedLeaf
from jaxinit.planning._paths import ParamSpec as ParamSpec
from jaxinit.planning._paths import as_numeric_dtype as as_numeric_dtype
from jaxinit.planning._plan import Plan as Plan
from jaxinit.planning._plan import plan as plan
from jaxinit.planning._resolve import with_roles as with_roles
from jaxinit.planning._rules import LikeKernel as LikeKernel
from jaxinit.planning._rules import as_matcher as as_matcher
from jaxinit.planning._rules import as_rules as as_rules
from jaxinit.planning._rules import like_kernel as like_kernel
from jaxinit.planning._sharding_rules import ShardingRules as ShardingRules
from jaxinit.planning._sharding_rules import sharding_rules as sharding_rules
