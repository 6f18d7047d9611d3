"""Traced programs: one graph, one interpreter, one table of primitives, one account of axes.

The engine (which bits may be made apart), the reading (what meets which parameter), the signal
(how large values are) and the advice (what reaches what) are domains of the interpreter or walks
over the graph; what they know of a primitive is its row in the table and their own rule.
"""

from jaxinit.jaxpr._axes import Factor as Factor
from jaxinit.jaxpr._axes import MixedAxesError as MixedAxesError
from jaxinit.jaxpr._axes import factors as factors
from jaxinit.jaxpr._axes import sources as sources
from jaxinit.jaxpr._axes import whole_axes as whole_axes
from jaxinit.jaxpr._equations import Trimmed as Trimmed
from jaxinit.jaxpr._equations import called as called
from jaxinit.jaxpr._equations import constants_of as constants_of
from jaxinit.jaxpr._equations import every_equation as every_equation
from jaxinit.jaxpr._equations import hold as hold
from jaxinit.jaxpr._equations import inner_jaxprs as inner_jaxprs
from jaxinit.jaxpr._equations import is_integral as is_integral
from jaxinit.jaxpr._equations import is_jaxpr as is_jaxpr
from jaxinit.jaxpr._equations import is_key as is_key
from jaxinit.jaxpr._equations import nbytes_of as nbytes_of
from jaxinit.jaxpr._equations import size_of as size_of
from jaxinit.jaxpr._graph import Atom as Atom
from jaxinit.jaxpr._graph import Graph as Graph
from jaxinit.jaxpr._graph import Neighbours as Neighbours
from jaxinit.jaxpr._graph import Node as Node
from jaxinit.jaxpr._graph import graph_of as graph_of
from jaxinit.jaxpr._graph import straighten as straighten
from jaxinit.jaxpr._graph import trace as trace
from jaxinit.jaxpr._interpreter import Cond as Cond
from jaxinit.jaxpr._interpreter import Interpreter as Interpreter
from jaxinit.jaxpr._interpreter import OnArrays as OnArrays
from jaxinit.jaxpr._interpreter import Scan as Scan
from jaxinit.jaxpr._interpreter import While as While
from jaxinit.jaxpr._interpreter import bind as bind
from jaxinit.jaxpr._primitives import OVER_AXES as OVER_AXES
from jaxinit.jaxpr._primitives import POOLING as POOLING
from jaxinit.jaxpr._primitives import PRODUCTS as PRODUCTS
from jaxinit.jaxpr._primitives import SUMS as SUMS
from jaxinit.jaxpr._primitives import TABLE as TABLE
from jaxinit.jaxpr._primitives import Bits as Bits
from jaxinit.jaxpr._primitives import Class as Class
from jaxinit.jaxpr._primitives import Primitive as Primitive
from jaxinit.jaxpr._primitives import Rules as Rules
from jaxinit.jaxpr._primitives import is_of as is_of
from jaxinit.jaxpr._primitives import on_numpy as on_numpy
from jaxinit.jaxpr._primitives import register as register
from jaxinit.jaxpr._primitives import row_of as row_of
from jaxinit.jaxpr._primitives import single_number as single_number
