"""What an activation does to a signal: moments, gains, chi, maps through depth, critical points.

Theory of wide plain networks for any elementwise function that JAX can trace, by name or as a
callable, computed in float64 on the host whatever the precision that JAX is set to.
"""

from jaxinit.activations.catalogue import Entry as Entry
from jaxinit.activations.catalogue import named as named
from jaxinit.activations.catalogue import names as names
from jaxinit.activations.correlation import correlation_fixed_points as correlation_fixed_points
from jaxinit.activations.correlation import correlation_map as correlation_map
from jaxinit.activations.critical import Critical as Critical
from jaxinit.activations.critical import NotCriticalError as NotCriticalError
from jaxinit.activations.critical import critical as critical
from jaxinit.activations.lengths import FixedPoint as FixedPoint
from jaxinit.activations.lengths import LengthFixedPoints as LengthFixedPoints
from jaxinit.activations.maps import DepthScales as DepthScales
from jaxinit.activations.maps import chi as chi
from jaxinit.activations.maps import depth_scales as depth_scales
from jaxinit.activations.maps import fixed_points as fixed_points
from jaxinit.activations.maps import length_map as length_map
from jaxinit.activations.maps import length_slope as length_slope
from jaxinit.activations.moments import Moments as Moments
from jaxinit.activations.moments import gain as gain
from jaxinit.activations.moments import moments as moments
from jaxinit.activations.spread import WidthSpread as WidthSpread
from jaxinit.activations.spread import width_spread as width_spread
from jaxinit.activations.summary import Summary as Summary
from jaxinit.activations.summary import summary as summary
from jaxinit.activations.torch_gains import TorchGain as TorchGain
from jaxinit.activations.torch_gains import torch_gain as torch_gain
