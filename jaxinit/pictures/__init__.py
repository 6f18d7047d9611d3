"""Pictures of models: a reading becomes a diagram, is laid out and drawn."""

from jaxinit.pictures._picture import draw as draw
from jaxinit.pictures._picture import figure_of as figure_of
