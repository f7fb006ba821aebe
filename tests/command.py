"""The command line as a user runs it: in a process of its own, or, where that proves nothing more, in this one."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

from gemma_doctor.cli import main

PLAIN = {"COLUMNS": "100", "TERM": "xterm", "PYTHONIOENCODING": "utf-8"}


@dataclass(frozen=True, slots=True)
class Done:
    """How a command ended."""

    code: int
    out: str
    err: str


def run(*arguments: str | Path, env: Mapping[str, str] | None = None) -> Done:
    """Run ``gemma-doctor`` with these arguments in a process of its own, its output in pipes."""
    done = subprocess.run(
        [sys.executable, "-m", "gemma_doctor", *map(str, arguments)],
        env={**os.environ, **PLAIN, **(env or {})},
        capture_output=True,
        check=False,
    )
    return Done(done.returncode, done.stdout.decode(), done.stderr.decode())


class Terminal(io.TextIOWrapper):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        """True."""
        return True


def call(*arguments: str | Path, stream: type[io.TextIOWrapper] = io.TextIOWrapper) -> Done:
    """Run ``gemma-doctor`` with these arguments in this process, which is fast once all is imported and compiled.

    Args:
        arguments: Arguments of the command.
        stream: What its output and errors go to: a file, or a :class:`Terminal`.
    """
    out, err = (stream(io.BytesIO(), encoding="utf-8") for _ in range(2))
    argv = ["gemma-doctor", *map(str, arguments)]
    code: object = None
    with mock.patch.object(sys, "argv", argv), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main()
        except SystemExit as stop:
            code = stop.code
    if not isinstance(code, int):
        raise TypeError(f"gemma-doctor ended with {code!r}")
    return Done(code, _text(out), _text(err))


def _text(stream: io.TextIOWrapper) -> str:
    stream.flush()
    stream.seek(0)
    return stream.read()
