"""What a model does with each parameter, read from the jaxpr of its forward pass."""

from jaxinit.reading.compare import FanDifference as FanDifference
from jaxinit.reading.compare import compare_fans as compare_fans
from jaxinit.reading.reader import read as read
from jaxinit.reading.records import Activation as Activation
from jaxinit.reading.records import After as After
from jaxinit.reading.records import Branch as Branch
from jaxinit.reading.records import Parameter as Parameter
from jaxinit.reading.records import Use as Use
from jaxinit.reading.result import Reading as Reading
