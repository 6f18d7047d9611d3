"""Which initializer fits which parameter of a model that was read, and what is wrong with others.

`advise` decides by the guide, `audit` judges arrays that exist, and `predict` says how large every
signal and gradient will be.
"""

from jaxinit.advice.advise import Advice as Advice
from jaxinit.advice.advise import Prescription as Prescription
from jaxinit.advice.advise import advise as advise
from jaxinit.advice.audit import Audit as Audit
from jaxinit.advice.audit import AuditedLeaf as AuditedLeaf
from jaxinit.advice.audit import audit as audit
from jaxinit.advice.audit import audit_reading as audit_reading
from jaxinit.advice.findings import SEVERITIES as SEVERITIES
from jaxinit.advice.findings import Finding as Finding
from jaxinit.advice.guide import GOALS as GOALS
from jaxinit.advice.guide import GUIDES as GUIDES
