"""What a model should be given, what it has, and what that does to its signal."""

from jaxinit.advice.predict import MapMoments as MapMoments
from jaxinit.advice.predict import Prediction as Prediction
from jaxinit.advice.predict import predict as predict
