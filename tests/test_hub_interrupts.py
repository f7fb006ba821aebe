"""Ctrl-C while the Hub or its storage asks to wait: the command ends at once, with 130, and leaves nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from checkpoints import write
from command import PLAIN
from hub_server import Hub, Refusal, hub, repository

from gemma_doctor.checkpoint.waiting import CalledOff, Waiters, go_on, sleep

LATER: Refusal = (429, {"Retry-After": "60"})


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Hub]:
    tensors = {f"layers.{index}.weight": np.ones((200, 256), np.float32) for index in range(6)}
    with hub(name=repository(write(tmp_path / "local", tensors, {"model_type": "other"}, shards=2))) as running:
        yield running


@pytest.mark.parametrize(
    ("queue", "refusals"),
    [("api_busy", [LATER]), ("busy", [LATER] * 2), ("busy", [None] * 2 + [LATER] * 2)],
    ids=["the API", "headers", "tensors"],
)
def test_nobody_sits_out_what_a_server_asks_for(
    queue: str, refusals: list[Refusal | None], server: Hub, tmp_path: Path
) -> None:
    waiting: list[Refusal | None] = list(refusals)
    setattr(server, queue, waiting)
    process = subprocess.Popen(
        [sys.executable, "-m", "gemma_doctor", "scan", "owner/name"],
        env={**os.environ, **PLAIN, **server.environment(tmp_path / "home")},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        while waiting:  # until it has met with the last refusal
            assert process.poll() is None
            time.sleep(0.02)
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=10)
    finally:
        process.kill()
    assert (process.returncode, out, err) == (130, "", "gemma-doctor: interrupted\n")


def test_an_error_ends_the_waiting_of_the_others() -> None:
    def failing(pool: Waiters) -> None:
        with pool:
            sleeping.extend(pool.submit(sleep, 60) for _ in range(3))
            raise ZeroDivisionError

    started = time.monotonic()
    sleeping: list[Future[None]] = []
    with pytest.raises(ZeroDivisionError):
        failing(Waiters(2, "test"))
    assert time.monotonic() - started < 30
    assert [type(future.exception()) for future in sleeping[:2]] == [CalledOff] * 2
    assert sleeping[2].cancelled()


def stepping() -> None:
    for _ in range(10_000):
        go_on()
        time.sleep(0.01)


def test_what_is_called_off_does_not_go_on() -> None:
    pool = Waiters(1, "test")
    steps = pool.submit(stepping)
    pool.call_off()
    with pytest.raises(CalledOff):
        steps.result()


def test_other_threads_sleep_as_long_as_they_are_told() -> None:
    with ThreadPoolExecutor(1) as pool:
        started = time.monotonic()
        pool.submit(sleep, 0.1).result()
        go_on()
    assert time.monotonic() - started >= 0.1
