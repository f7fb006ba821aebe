"""The progress bar: bytes, rate and time left, whoever advances it and how often."""

from __future__ import annotations

import io
import re
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import Progress

from gemma_doctor.reports import progress

if TYPE_CHECKING:
    import pytest


def test_it_shows_bytes_rate_and_time_left_and_leaves_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_PERIOD", 0.0)
    stream = io.StringIO()
    with progress.bar(Console(file=stream, force_terminal=True, width=100, color_system=None), "scanning") as bar:
        bar.start(10_000_000_000)
        bar.advance(4_000_000_000)
        bar.advance(2_000_000_000)
    text = stream.getvalue()
    assert re.search(r"scanning .* 6\.0/10\.0 GB +(\d+\.\d .?B/s|\?) +(\d:\d\d:\d\d|-:--:--)", text)
    assert text.endswith("\x1b[2K")


def test_threads_lose_no_byte_and_rarely_redraw(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[int] = []
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    with progress.bar(Console(file=io.StringIO(), force_terminal=True), "scanning") as bar:
        monkeypatch.setattr(Progress, "advance", lambda _self, _task, nbytes: shown.append(nbytes))
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(bar.advance, [3] * 10_000))
        now[0] = 1.0
        bar.advance(5)
        bar.advance(7)
    assert shown == [30_005]


def test_steps_show_what_is_done_and_for_how_long_and_leave_no_trace() -> None:
    stream = io.StringIO()
    with progress.steps(Console(file=stream, force_terminal=True, width=60, color_system=None), "loading") as tell:
        tell("text run in float32")
    text = stream.getvalue()
    assert re.search(r"\S text run in float32 0:00:0\d", text)
    assert text.endswith("\x1b[2K")
