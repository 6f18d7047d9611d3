"""Models as people publish them, at small sizes, with their own, right initialization."""

from published import fields, generative, language, packages, sequences, vision
from published.common import ZOO, Entry, Model

__all__ = ["ZOO", "Entry", "Model", "fields", "generative", "language", "packages", "sequences", "vision"]
