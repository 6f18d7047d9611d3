"""What a model does with each parameter, read from the jaxpr of its forward pass."""

from jaxinit.reading._activations import Activations as Activations
from jaxinit.reading._compare import FanDifference as FanDifference
from jaxinit.reading._compare import compare_fans as compare_fans
from jaxinit.reading._families import Families as Families
from jaxinit.reading._families import Member as Member
from jaxinit.reading._families import Origin as Origin
from jaxinit.reading._flow import Streams as Streams
from jaxinit.reading._flow import Sum as Sum
from jaxinit.reading._reader import read as read
from jaxinit.reading._records import Activation as Activation
from jaxinit.reading._records import After as After
from jaxinit.reading._records import Branch as Branch
from jaxinit.reading._records import Chain as Chain
from jaxinit.reading._records import Flow as Flow
from jaxinit.reading._records import Parameter as Parameter
from jaxinit.reading._records import Reading as Reading
from jaxinit.reading._records import Role as Role
from jaxinit.reading._records import Through as Through
from jaxinit.reading._records import Use as Use
