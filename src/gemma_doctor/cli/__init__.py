"""The command line: parse, ask the doctor, render, exit. Each command is a module of its name.

Whatever is heavy (rich, numba, the rules) is imported inside the command that needs it, so that ``--help`` and usage
errors come at once. Exit codes: 0 healthy, 1 findings at or above ``--fail-on``, 2 could not tell, 130 interrupted.
Standard output carries the report, or nothing but the document that goes to ``-``; all else goes to standard error.
"""

from __future__ import annotations

from gemma_doctor.cli import completion, demo, repair, report, rule, scan, verify
from gemma_doctor.cli.frame import INTERRUPTED, Sections, app, main

__all__ = ["INTERRUPTED", "app", "main"]

for module in (scan, repair, verify, report, rule, demo, completion):  # the help lists them in this order
    app.command(module.__name__.rpartition(".")[2], cls=Sections, epilog=module.EPILOG)(module.command)
