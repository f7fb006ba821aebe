"""Where words go: documents to a file, or to standard output for ``-``; remarks to standard error.

Importing it is cheap: rich comes with the first drawing.
"""

from __future__ import annotations

import os
import secrets
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from gemma_doctor.errors import UsageError
from gemma_doctor.reports.names import safe_text

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["STDOUT", "append", "check_target", "draw", "on_github", "say", "write"]

STDOUT = "-"
_TENSOR_FILES = {".safetensors", ".gguf"}
_MOST_SUMMARY = 1 << 20  # bytes of a step's summary; GitHub drops one that is larger


def check_target(target: str | Path | None) -> None:
    """Refuse a target that could not be written, before the work that it is for; None is no target.

    Raises:
        UsageError: It is a folder, lies in none, or has the name of a tensor file.
    """
    if target is None or target == STDOUT:
        return
    path = Path(target)
    if path.suffix in _TENSOR_FILES:
        raise UsageError(f"{path} is named like a tensor file, which a report or baseline must not overwrite")
    if path.is_dir() or not path.parent.is_dir():
        raise UsageError(f"{path} cannot be written: {'it is a folder' if path.is_dir() else 'its folder is missing'}")


def write(target: str | Path, text: str) -> None:
    """Write a document, all of it or nothing; a reader of standard output that goes away early is no error.

    Raises:
        UsageError: The system refuses; the message says why.
    """
    try:
        if target == STDOUT:
            _write_whole(sys.stdout, text)
        else:
            _write_file(Path(target), text)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        name = "standard output" if target == STDOUT else target
        raise UsageError(f"{name} cannot be written: {error.strerror}") from error


def _write_whole(stream: TextIO, text: str) -> None:
    """Write all of the text: an unbuffered stream (``PYTHONUNBUFFERED``) may take a part and say nothing of it."""
    stream.flush()
    rest = memoryview(text.encode(stream.encoding, "backslashreplace"))
    while rest:
        rest = rest[stream.buffer.write(rest) :]
    stream.buffer.flush()


def _write_file(target: Path, text: str) -> None:
    """Write a file that has its name once it is whole; a pipe or device is written to as it is."""
    if target.exists() and not target.is_file():
        target.write_text(text, encoding="utf-8", newline="\n")
        return
    place = Path(os.path.realpath(target))  # a link stays one
    fresh = place.with_name(f".gemma-doctor-{secrets.token_hex(8)}.partial")
    try:
        fresh.write_text(text, encoding="utf-8", newline="\n")
        if place.exists():
            shutil.copymode(place, fresh)
        fresh.replace(place)
    finally:
        fresh.unlink(missing_ok=True)


def append(path: Path, text: str) -> str:
    """Add a document to the summary of a workflow's step.

    Returns:
        Why it was not added; empty where it was.
    """
    data = text.encode("utf-8", "backslashreplace")
    try:
        with path.open("ab") as summary:
            if summary.tell() + len(data) > _MOST_SUMMARY:
                return f"the step's summary has no room for the report: GitHub takes {_MOST_SUMMARY:,} bytes"
            summary.write(data)
    except OSError as error:
        return f"the step's summary {path} cannot be written: {error.strerror}"
    return ""


def on_github() -> bool:
    """Whether this is a step of a GitHub workflow, whose runner reads commands out of what is printed."""
    return os.environ.get("GITHUB_ACTIONS") == "true"


def draw(picture: Callable[[Console], None]) -> None:
    """Print on standard output what ``picture`` prints on a console.

    In a GitHub workflow, no line of it is a command, whatever a tensor is called: commands are off meanwhile
    (https://docs.github.com/en/actions/reference/workflows-and-actions/workflow-commands, "Stopping and starting").
    """
    from gemma_doctor.reports.sheet import rendered  # noqa: PLC0415  # rich takes 0.1 s to load

    text = rendered(picture, sys.stdout)
    if on_github():
        token = secrets.token_hex(16)
        text = f"::stop-commands::{token}\n{text}::{token}::\n"
    write(STDOUT, text)


def say(message: str) -> None:
    """Print one line on standard error, if there is anything to say."""
    if message:
        print(safe_text(message), file=sys.stderr)  # noqa: T201  # as above
