"""How large every signal and gradient of a model will be, before anything is drawn.

`predict` carries the laws of the parameters through the traced model: a mean and a second moment
for every value, forward and backward; with ``measure=True`` what arrays show stands beside it.
"""

from jaxinit.signal._predict import Interval as Interval
from jaxinit.signal._predict import LayerMoments as LayerMoments
from jaxinit.signal._predict import Moments as Moments
from jaxinit.signal._predict import Prediction as Prediction
from jaxinit.signal._predict import Sizes as Sizes
from jaxinit.signal._predict import interval_text as interval_text
from jaxinit.signal._predict import law_of_sample as law_of_sample
from jaxinit.signal._predict import predict as predict
from jaxinit.signal._predict import propagate as propagate
