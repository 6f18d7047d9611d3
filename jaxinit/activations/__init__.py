"""What an activation does to a signal: moments, gains, chi, maps through depth, critical points.

Theory of wide plain networks for any elementwise function that JAX can trace, by name or as a
callable, computed in float64 on the host whatever the precision that JAX is set to.
"""

from jaxinit.activations._catalogue import NamedActivation as NamedActivation
from jaxinit.activations._catalogue import TorchGain as TorchGain
from jaxinit.activations._catalogue import named as named
from jaxinit.activations._catalogue import names as names
from jaxinit.activations._catalogue import torch_gain as torch_gain
from jaxinit.activations._critical import Critical as Critical
from jaxinit.activations._critical import NotCriticalError as NotCriticalError
from jaxinit.activations._critical import critical as critical
from jaxinit.activations._maps import DepthScales as DepthScales
from jaxinit.activations._maps import FixedPoint as FixedPoint
from jaxinit.activations._maps import LengthFixedPoints as LengthFixedPoints
from jaxinit.activations._maps import chi as chi
from jaxinit.activations._maps import correlation_fixed_points as correlation_fixed_points
from jaxinit.activations._maps import correlation_map as correlation_map
from jaxinit.activations._maps import depth_scales as depth_scales
from jaxinit.activations._maps import fixed_points as fixed_points
from jaxinit.activations._maps import length_map as length_map
from jaxinit.activations._maps import length_slope as length_slope
from jaxinit.activations._moments import Moments as Moments
from jaxinit.activations._moments import gain as gain
from jaxinit.activations._moments import moments as moments
from jaxinit.activations._spread import WidthSpread as WidthSpread
from jaxinit.activations._spread import width_spread as width_spread
from jaxinit.activations._summary import Summary as Summary
from jaxinit.activations._summary import summary as summary
