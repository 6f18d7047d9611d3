"""Draw many arrays: from a list of leaves and keys, or from a whole init function, into shards.

Both ways end in the same place: groups, the leaves that one program fills because they differ in
their key alone. `compile` compiles programs side by side and calls them leaf by leaf within a
memory bound. A plan goes there directly, by `draws`, which also tells beforehand what memory that
takes. An init function (`jit_init`) is traced and becomes a graph without dead code; `slices` cuts
the graph leaf by leaf where bits allow and finds slices that compute the same; `traced_init` keeps
what one trace teaches, with the keys that the `host` derives; `assembly` makes its programs for
certain devices (`placement`). `threefry` and `fast_bits` draw random numbers fast.
"""

from jaxinit.engine._assembly import Explanation as Explanation
from jaxinit.engine._compile import check_bound as check_bound
from jaxinit.engine._draws import Estimate as Estimate
from jaxinit.engine._draws import LeafSpec as LeafSpec
from jaxinit.engine._draws import Progress as Progress
from jaxinit.engine._draws import draw as draw
from jaxinit.engine._draws import estimate as estimate
from jaxinit.engine._host import fold_in as fold_in
from jaxinit.engine._jit_init import JitInit as JitInit
from jaxinit.engine._jit_init import jit_init as jit_init
from jaxinit.engine._placement import is_sharding_function as is_sharding_function
from jaxinit.engine._placement import shardings_of as shardings_of
from jaxinit.engine._threefry import fast_key as fast_key
