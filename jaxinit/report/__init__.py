"""The work of the command line: what ``jaxinit list``, ``show``, ``gain``, ... collect and print.

Each command has a record, with its faces beside it: JSON and lines on a terminal. `gpt2`, the model
that ``jaxinit report`` draws when none is named, is imported on its own, since it needs Flax.
"""

from jaxinit.report._advising import AdviceRequest as AdviceRequest
from jaxinit.report._advising import Judged as Judged
from jaxinit.report._advising import advice_for as advice_for
from jaxinit.report._advising import audit_of as audit_of
from jaxinit.report._catalogue import Shown as Shown
from jaxinit.report._catalogue import gain_row as gain_row
from jaxinit.report._catalogue import print_array as print_array
from jaxinit.report._catalogue import print_catalogue as print_catalogue
from jaxinit.report._catalogue import print_gain as print_gain
from jaxinit.report._catalogue import show as show
from jaxinit.report._collect import collect as collect
from jaxinit.report._output import document as document
from jaxinit.report._output import json_file as json_file
from jaxinit.report._output import output as output
from jaxinit.report._output import progress as progress
from jaxinit.report._output import stdout_kept_clean as stdout_kept_clean
from jaxinit.report._report import Report as Report
from jaxinit.report._report import ReportedGroup as ReportedGroup
from jaxinit.report._report import ReportedLeaf as ReportedLeaf
from jaxinit.report._report import Request as Request
from jaxinit.report._report import print_report as print_report
from jaxinit.report._targets import Unusable as Unusable
from jaxinit.report._targets import error_text as error_text
from jaxinit.report._targets import one_line as one_line
