"""Parts that several pages for people share: entries under their names, and the commands that come next."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from gemma_doctor.reports.digest import Entry
from gemma_doctor.reports.names import fold
from gemma_doctor.reports.sheet import Sheet

__all__ = ["write_commands", "write_entries", "write_names", "write_step"]

_NAMES = 3  # names of an entry that are shown


def write_entries(entries: Sequence[Entry], sheet: Sheet, most: int = 5) -> None:
    """Print entries: the names, and under them what is said of them.

    Args:
        entries: In their order.
        sheet: Where to print.
        most: How many are shown in full; of the others, only the names.
    """
    for entry in entries[:most]:
        write_names(entry.subjects, sheet)
        sheet.paragraph(entry.message, indent=6 if entry.subjects else 2)
    rest = [subject for entry in entries[most:] for subject in entry.subjects]
    if len(entries) > most:
        sheet.paragraph(f"and {sum(entry.count for entry in entries[most:]):,} more:", indent=2)
        write_names(rest, sheet, indent=6)


def write_names(names: Iterable[str], sheet: Sheet, indent: int = 2) -> None:
    """Print names, a family of layers on a line."""
    families = fold(names)
    for pattern, members in families[:_NAMES]:
        many = len(members) > 1
        sheet.name(pattern, indent=indent, after=f" ({len(members)})" if many else "")
    more = sum(len(members) for _, members in families[_NAMES:])
    if more:
        sheet.paragraph(f"and {more:,} more", indent=indent)


def write_commands(commands: Sequence[tuple[str, str]], sheet: Sheet) -> None:
    """Print what to do next, if there is anything.

    Args:
        commands: Commands that can be copied, and what each is for.
        sheet: Where to print.
    """
    if commands:
        sheet.blank()
        sheet.paragraph(("Next:", "bold"))
    for command, why in commands:
        sheet.command(command, why)


def write_step(text: str, sheet: Sheet) -> None:
    """Print the heading of one step of several."""
    sheet.blank()
    sheet.paragraph((text, "bold magenta"), hang=2)
