"""The pages of rules and passes for people at a terminal; in a pipe they stay Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from rich.markdown import Markdown

from gemma_doctor.choices import Severity
from gemma_doctor.records import Exactness
from gemma_doctor.reports.sheet import SEVERITY_STYLES, Sheet

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["render_list", "render_page"]


def render_list(
    rules: Iterable[tuple[str, str, Severity, str]],
    passes: Iterable[tuple[str, Exactness, Sequence[str], str]],
    console: Console,
) -> None:
    """Print a line for each rule and for each pass.

    Args:
        rules: (id, name, severity, first line of its page).
        passes: (name, exactness, ids of the rules whose findings it mends, first line of its page).
        console: Where to print.
    """
    sheet = Sheet.on(console)
    for rule, name, severity, summary in rules:
        sheet.paragraph((rule, "bold"), f" {name} (", (severity, SEVERITY_STYLES[severity]), f"): {summary}", hang=6)
    sheet.blank()
    sheet.paragraph("Repair passes:")
    for name, exactness, mended, summary in passes:
        sheet.paragraph((name, "bold"), f" ({exactness}; {', '.join(mended)}): {summary}", hang=6)


def render_page(page: str, console: Console) -> None:
    """Print a page that is written in Markdown."""
    if console.is_terminal:
        console.print(Markdown(page, hyperlinks=False))
    else:
        console.print(page, end="", soft_wrap=True)
