"""Strangers' strings in GitHub-flavoured Markdown: shown as they are, and nothing else.

Markup, tables, links, mentions, issue numbers and mathematics are what GitHub would read into a name. The grammar is
GitHub Flavored Markdown 0.29 (https://github.github.com/gfm/); mentions and the like are found later, in the rendered
text, so that no escape stops them: a zero-width space after their first character does, as dependabot has it.
"""

from __future__ import annotations

import html
import re

from gemma_doctor.reports.names import MAX_NAME, MAX_TEXT, clipped, elide, safe_text

__all__ = ["cell", "code", "markup", "prose"]

_BREAK = "&#8203;"
_TICKS = re.compile(r"`+")
_SPECIAL = re.compile(r"[\\`*_\[\]<>&|~^]")
_ACTIVE = re.compile(
    r"(?P<dollar>\$)"  # mathematics: GitHub's own way to write a dollar sign is a span
    r"|(?P<hook>[@#]|\b[Gg][Hh]-|:(?=//)|\b[Ww]{3}(?=\.))"  # mentions, issues, addresses
)
_FIRST = re.compile(r"^(?:[-+=](?![^\s\-+=])|[0-9]{1,9}(?=[.)]))")  # a list, rule or heading at a line's start


def prose(text: str, most: int = MAX_TEXT) -> str:
    """Running text."""
    escaped = _SPECIAL.sub(r"\\\g<0>", clipped(text, most).lstrip())
    return _inert(_FIRST.sub(_held, escaped))


def _held(match: re.Match[str]) -> str:
    """The start of a line so that it starts no block."""
    found = match[0]
    return f"{found}\\" if found[0].isdigit() else f"\\{found}"


def code(name: str) -> str:
    """A name as a code span: whatever it holds, its fence is longer than any run of backticks in it."""
    text = elide(safe_text(name), MAX_NAME)
    if not text.strip(" "):
        return "(no name)" if not text else "(spaces)"
    fence = "`" * (max((len(run) for run in _TICKS.findall(text)), default=0) + 1)
    padded = f" {text} " if text[0] in "` " or text[-1] in "` " else text
    return f"{fence}{padded}{fence}"


def cell(name: str) -> str:
    """A name as a code span in a table, where no escape is safe from the table's own reading of ``|``."""
    return code(name.replace("|", r"\x7c"))


def markup(text: str, most: int = MAX_TEXT) -> str:
    """Text within HTML."""
    return _inert(html.escape(clipped(text, most)).replace("&#x27;", "'"))


def _inert(text: str) -> str:
    return _ACTIVE.sub(lambda match: "<span>$</span>" if match["dollar"] else f"{match[0]}{_BREAK}", text)
