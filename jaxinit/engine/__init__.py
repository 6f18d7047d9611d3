"""Draw many arrays: a list of draws and a key for each, in; arrays, in their shards, out."""

from jaxinit.engine.run import Draw as Draw
from jaxinit.engine.run import Progress as Progress
from jaxinit.engine.run import draw as draw
