"""The straight line: open, survey, judge, report; plan, apply; run. The only place where the rooms meet.

One verb, one module: what it composes is what it imports.
"""

from __future__ import annotations

from gemma_doctor.doctor.options import Options
from gemma_doctor.doctor.pushing import check_push, push
from gemma_doctor.doctor.repairing import plan, repair, repair_in_place
from gemma_doctor.doctor.rounds import Outcome, Round, scan_all
from gemma_doctor.doctor.scanning import scan
from gemma_doctor.doctor.verdicts import exit_code, unread
from gemma_doctor.doctor.verifying import verify
from gemma_doctor.records import Progress

__all__ = [
    "Options",
    "Outcome",
    "Progress",
    "Round",
    "check_push",
    "exit_code",
    "plan",
    "push",
    "repair",
    "repair_in_place",
    "scan",
    "scan_all",
    "unread",
    "verify",
]
