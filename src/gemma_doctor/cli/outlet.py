"""Where a repair's plan and result go: to people on standard output, to machines in documents."""
# ruff: noqa: PLC0415  # what is heavy is imported when it is needed

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from gemma_doctor.cli.outputs import Documents, Telling, write_all
from gemma_doctor.cli.running import MENDED, spelled
from gemma_doctor.reports.documents import STDOUT, draw, write

if TYPE_CHECKING:
    from rich.console import Console

    from gemma_doctor.plans import Applied, Plan
    from gemma_doctor.records import Report
    from gemma_doctor.tensors import TensorInfo

__all__ = ["Outlet"]


@dataclass(frozen=True, slots=True)
class Outlet:
    """What the command line says of the output.

    Attributes:
        documents: Documents of the scan before the repair.
        json: ``--json``.
        save_plan: ``--save-plan``.
        quiet: ``--quiet``.
        traced: SOURCE, where the repair goes by a trace of it: then verify can run here; else None.
    """

    documents: Documents
    json: str | None
    save_plan: str | None
    quiet: bool
    traced: str | None = None

    def check(self) -> None:
        """Refuse documents that could not be written, before the work that they are for.

        Raises:
            UsageError: If one cannot be written, or two have one target.
        """
        self.documents.check(json=self.json, save_plan=self.save_plan)

    def show_report(self, report: Report, telling: Telling) -> None:
        """What the scan found, to where it was asked for; people are shown the plan instead."""
        write_all(self.documents, report, telling, others=(self.json, self.save_plan))

    def show_plan(self, plan: Plan, tensors: Mapping[str, TensorInfo]) -> None:
        """The plan, to where it was asked for and to people."""
        from gemma_doctor.repair.documents import plan_text
        from gemma_doctor.reports import plan as page

        if self.save_plan is not None:
            write(self.save_plan, plan_text(plan))
        render = page.render_brief if self.quiet else page.render_plan
        self._draw(lambda console: render(plan, tensors, console))

    def show_applied(self, plan: Plan, applied: Applied, output: Path) -> None:
        """What was written."""
        from gemma_doctor.reports import plan as page

        self._write_outcome(plan, applied)
        commands = [] if self.quiet else [(spelled("scan", str(output)), "the mended copy")]
        if self.traced is not None and not self.quiet:
            commands.append((spelled("verify", str(output), "--against", self.traced), "run it in float16"))
        self._draw(lambda console: page.render_applied(applied, console, commands))

    def show_pushed(self, repo: str, address: str) -> None:
        """That the output has been sent."""
        from gemma_doctor.reports import plan as page

        commands = () if self.quiet else ((spelled("scan", repo), "what has been sent"),)
        self._draw(lambda console: page.render_pushed(repo, address, console, commands))

    def show_changed(self, plan: Plan, applied: Applied, source: str) -> None:
        """What was changed in the source itself."""
        from gemma_doctor.reports import plan as page

        self._write_outcome(plan, applied)
        commands = () if self.quiet else ((spelled("scan", source), "the mended file"),)
        self._draw(lambda console: page.render_changed(applied, console, commands))

    def show_unwritten(self, plan: Plan, source: str, file: str | Path | None) -> None:
        """That nothing was written, and how it would be.

        Args:
            plan: The plan.
            source: SOURCE as the user gave it.
            file: Where the plan is saved; None if it is not.
        """
        from gemma_doctor.reports import plan as page

        self._write_outcome(plan, None)
        why = "To write the mended copy, give --output DIR instead of --dry-run." if plan.edits else ""
        saved = plan.edits and not self.quiet and file is not None and file != STDOUT
        command = spelled("repair", source, "--plan", str(file), "--output", MENDED)
        commands = ((command, "apply this plan"),) if saved else ()
        self._draw(lambda console: page.render_unwritten(why, console, commands))

    def _write_outcome(self, plan: Plan, applied: Applied | None) -> None:
        from gemma_doctor.repair.outcome import outcome_text

        if self.json is not None:
            write(self.json, outcome_text(plan, applied))

    def _draw(self, picture: Callable[[Console], None]) -> None:
        """Print for people, unless a document has standard output for itself."""
        if not self.documents.taken(self.json, self.save_plan):
            draw(picture)
