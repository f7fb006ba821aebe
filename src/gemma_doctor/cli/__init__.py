"""The command line: parse, ask the doctor, render, exit.

Whatever is heavy (rich, numba, the rules) is imported inside the command that needs it, so that ``--help`` and usage
errors come at once. Exit codes: 0 healthy, 1 findings at or above ``--fail-on``, 2 could not tell, 130 interrupted.
Standard output carries the report, or nothing but the document that goes to ``-``; all else goes to standard error.
"""

from __future__ import annotations

from gemma_doctor.cli import complete, demonstrate, explain, mend, report, run, scan
from gemma_doctor.cli.frame import INTERRUPTED, Sections, app, main

__all__ = ["INTERRUPTED", "app", "main"]

app.command("scan", cls=Sections, epilog=scan.EPILOG)(scan.command)
app.command("repair", cls=Sections, epilog=mend.EPILOG)(mend.command)
app.command("verify", cls=Sections, epilog=run.EPILOG)(run.command)
app.command("report", cls=Sections, epilog=report.EPILOG)(report.command)
app.command("rule", cls=Sections, epilog=explain.EPILOG)(explain.command)
app.command("demo", cls=Sections, epilog=demonstrate.EPILOG)(demonstrate.command)
app.command("completion", cls=Sections, epilog=complete.EPILOG)(complete.command)
