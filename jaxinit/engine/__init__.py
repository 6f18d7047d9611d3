"""Draw many arrays: a list of draws and keys, or a whole init function, in; arrays, in shards, out.

Both ways end in the same place: kinds, which `compile` compiles side by side and calls leaf by leaf
within a memory bound. A plan's draws go there directly: `draws` finds their kinds, `run` draws
them, `estimate` tells beforehand what memory that takes. An init function is traced
(`jit_init`) and becomes a `program`, flat and without dead code; `slices` cut it leaf by leaf where
`safety` allows; `kinds` finds equal slices; `recipe` is what one trace teaches, with the keys that
the `host` derives by `schedule`; `assembly` is a recipe on certain devices (`placement`).
`threefry` makes the random bits fast.
"""

from jaxinit.engine._draws import Draw as Draw
from jaxinit.engine._estimate import Estimate as Estimate
from jaxinit.engine._explain import Explanation as Explanation
from jaxinit.engine._jit_init import JitInit as JitInit
from jaxinit.engine._jit_init import jit_init as jit_init
from jaxinit.engine._run import Progress as Progress
from jaxinit.engine._run import draw as draw
from jaxinit.engine._run import estimate as estimate
from jaxinit.engine._threefry import fast_key as fast_key
