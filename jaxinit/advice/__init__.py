"""Which initializer fits which parameter of a model that was read, and what is wrong with others.

`advise` decides by the guide, `audit` judges arrays that exist, and `predict` says how large every
signal and gradient will be.
"""

from jaxinit.advice._advise import Advice as Advice
from jaxinit.advice._advise import Audit as Audit
from jaxinit.advice._advise import AuditedLeaf as AuditedLeaf
from jaxinit.advice._advise import Prescription as Prescription
from jaxinit.advice._advise import advise as advise
from jaxinit.advice._advise import advise_with as advise_with
from jaxinit.advice._advise import audit as audit
from jaxinit.advice._findings import SEVERITIES as SEVERITIES
from jaxinit.advice._findings import Finding as Finding
from jaxinit.advice._guide import GUIDES as GUIDES
from jaxinit.advice._guide import Goal as Goal
from jaxinit.advice._present import present_of_arrays as present_of_arrays
from jaxinit.advice._present import present_of_initializers as present_of_initializers
