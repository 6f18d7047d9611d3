"""Models as people publish them, at small sizes, with their own, right initialization.

To add one, write a function under `published` in the file of its kind.
"""

from published import fields as fields
from published import generative as generative
from published import language as language
from published import packages as packages
from published import sequences as sequences
from published import vision as vision
from published.common import ZOO as ZOO
from published.common import Entry as Entry
from published.common import Model as Model
