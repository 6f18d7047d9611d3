"""One tree: rules that say which law each leaf gets, keys by path, and a plan that draws them."""

from jaxinit.planning.diff import Change as Change
from jaxinit.planning.diff import PlanDiff as PlanDiff
from jaxinit.planning.fingerprint import Fingerprint as Fingerprint
from jaxinit.planning.fingerprint import fingerprint as fingerprint
from jaxinit.planning.keys import SCHEME as SCHEME
from jaxinit.planning.keys import key_for_path as key_for_path
from jaxinit.planning.keys import keys_for_paths as keys_for_paths
from jaxinit.planning.leaves import Group as Group
from jaxinit.planning.leaves import PlannedLeaf as PlannedLeaf
from jaxinit.planning.paths import ParamSpec as ParamSpec
from jaxinit.planning.plan import Plan as Plan
from jaxinit.planning.plan import plan as plan
from jaxinit.planning.rules import LikeKernel as LikeKernel
from jaxinit.planning.rules import like_kernel as like_kernel
from jaxinit.planning.sharding_rules import ShardingRules as ShardingRules
from jaxinit.planning.sharding_rules import sharding_rules as sharding_rules
