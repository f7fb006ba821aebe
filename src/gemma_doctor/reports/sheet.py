"""Lines of plain text on a console: wrapped on a terminal, whole in a pipe, never interpreted."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import IO

from rich.console import Console
from rich.text import Text

from gemma_doctor.choices import Severity
from gemma_doctor.reports.names import MAX_NAME, elide, safe_text

__all__ = ["SEVERITY_STYLES", "Sheet", "console_for", "rendered"]

SEVERITY_STYLES: Mapping[Severity, str] = {"error": "bold red", "warning": "bold yellow", "note": "bold cyan"}
"""Rich styles; the word itself always stands beside its colour."""

_NARROWEST = 30  # columns; narrower terminals wrap by themselves
_GAP = "  "


def console_for(stream: IO[str]) -> Console:
    """A console on ``stream`` that reads no markup, emoji or numbers into what it prints.

    Rich looks after the rest: colours only on a terminal, and none under ``NO_COLOR``.
    """
    return Console(file=stream, markup=False, emoji=False, highlight=False)


def rendered(draw: Callable[[Console], None], stream: IO[str]) -> str:
    """What ``draw`` prints on a console like ``stream``: as wide, and with colours where that has them.

    Nothing is written to ``stream`` yet, so that whoever writes the text sees every error of it.
    """
    held = _Held(stream)
    draw(console_for(held))
    return held.getvalue()


class _Held(io.StringIO):
    """Keeps in memory what would go to a stream, and looks like that stream."""

    def __init__(self, stream: IO[str]) -> None:
        super().__init__()
        self._stream = stream

    def isatty(self) -> bool:
        return self._stream.isatty()


@dataclass(frozen=True, slots=True)
class Sheet:
    """Where the lines go. Every string given to a method may be a stranger's: it is made safe here.

    Attributes:
        console: The console to print on.
        width: Columns to keep within; None for no limit (a pipe).
    """

    console: Console
    width: int | None

    @classmethod
    def on(cls, console: Console) -> Sheet:
        """A sheet that fits the console."""
        return cls(console, max(console.width, _NARROWEST) if console.is_terminal else None)

    def blank(self) -> None:
        """An empty line."""
        self.console.print()

    def paragraph(self, *parts: str | tuple[str, str], indent: int = 0, hang: int = 0) -> None:
        """Running text.

        Args:
            parts: Strings, or (string, rich style).
            indent: Columns before each line.
            hang: Columns more before each line but the first.
        """
        text = _assembled(parts)
        if self.width is None:
            self._print(" " * indent, text)
            return
        first, *more = text.wrap(self.console, self.width - indent - hang) or [text]
        self._print(" " * indent, first)
        for line in more:
            self._print(" " * (indent + hang), line)

    def name(self, name: str, *, indent: int = 0, after: str = "") -> None:
        """A name on a line of its own, its middle elided where the line is too short, and a remark after it."""
        room = MAX_NAME if self.width is None else self.width - indent - len(after)
        self._print(" " * indent, _assembled([(elide(safe_text(name), room), "bold"), after]))

    def command(self, command: str, why: str) -> None:
        """A command that can be copied, and what it is for; this program never breaks its line."""
        words = _assembled([f"{_GAP}{command}", (f"  # {why}", "dim")])
        fits = self.width is None or len(words) <= self.width
        self._print("", words if fits else words[: len(_GAP) + len(command)])

    def table(self, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Columns: names on the left, elided to the room that the right-aligned numbers leave."""
        header, *rows = [[safe_text(cell) for cell in row] for row in (header, *rows)]
        numbers = [max(len(row[column]) for row in (header, *rows)) for column in range(1, len(header))]
        names = [row[0] for row in (header, *rows)]
        room = MAX_NAME if self.width is None else self.width - sum(numbers) - len(_GAP) * (len(header))
        left = max(len(elide(name, room)) for name in names)
        for name, row in zip(names, (header, *rows), strict=True):
            cells = (f"{_GAP}{cell:>{width}}" for cell, width in zip(row[1:], numbers, strict=True))
            line = f"{elide(name, room):<{left}}{''.join(cells)}"
            self._print(_GAP, Text(line, style="dim" if row is header else ""))

    def _print(self, margin: str, text: Text) -> None:
        text.rstrip()
        self.console.print(Text(margin) + text, soft_wrap=True)


def _assembled(parts: Sequence[str | tuple[str, str]]) -> Text:
    """One text of all parts, made safe."""
    text = Text()
    for part in parts:
        words, style = (part, "") if isinstance(part, str) else part
        text.append(safe_text(words), style or None)
    return text
