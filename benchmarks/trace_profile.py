"""Where the time of a traced step goes on a GPU, beside the plain step: kernels, the host's calls, and the flushes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any
from unittest import mock

import torch
from torch.profiler import ProfilerActivity, profile

from gemma_doctor.kernels import outputs
from gemma_doctor.verify import recording

__all__ = ["compare"]

_MOST = 15
"""Lines of a table."""


@dataclass
class _Flushes:
    """What the trace handed over to be measured.

    Attributes:
        number: How often.
        seconds: What that took of the host.
    """

    number: int = 0
    seconds: float = 0.0

    def __str__(self) -> str:
        return f"{self.number:,} flushes, {1e3 * self.seconds:.0f} ms of the host in them"


def compare(what: str, plain: Callable[[], object], traced: Callable[[], object]) -> None:
    """Print where the time of a step goes, as it is and traced.

    Args:
        what: Its name.
        plain: Runs it as it is.
        traced: Runs it traced.
    """
    plain(), traced()  # warm up
    device = torch.accelerator.current_accelerator()
    print(f"\n### {what}\n")
    with _flushes() as flushes:
        seconds = _timed(traced, device)
    print(f"Traced, {1e3 * seconds:.0f} ms: {flushes}.")
    before = _memory(device)
    traced()
    after = _memory(device)
    print(", ".join(f"{key} {after[key] - before[key]:+}" for key in after))
    tables = {"plain": _profiled(plain), "traced": _profiled(traced)}
    for kind in ("device", "host"):
        print(f"\n| {kind}: what takes longest of the traced step | traced ms | calls | plain ms | calls |")
        print("| --- | ---: | ---: | ---: | ---: |")
        traced_times, plain_times = tables["traced"][kind], tables["plain"][kind]
        total = [sum(ms for ms, _ in times.values()) for times in (traced_times, plain_times)]
        print(f"| all | {total[0]:.1f} | | {total[1]:.1f} | |")
        for name in sorted(traced_times, key=lambda name: -traced_times[name][0])[:_MOST]:
            (ms, calls), (plain_ms, plain_calls) = traced_times[name], plain_times.get(name, (0.0, 0))
            print(f"| `{name[:100]}` | {ms:.1f} | {calls:,} | {plain_ms:.1f} | {plain_calls:,} |")


@contextmanager
def _flushes() -> Iterator[_Flushes]:
    """While it lasts, flushes are counted."""
    seen = _Flushes()

    def counted(launch: Callable[..., outputs.Launched], *given: Any) -> outputs.Launched:  # noqa: ANN401
        started = time.perf_counter()
        launched = launch(*given)
        seen.seconds += time.perf_counter() - started
        seen.number += 1
        return launched

    with ExitStack() as around:
        for room, name in ((outputs, "launch"), (outputs, "launch_in_place"), (recording, "launch")):
            around.enter_context(mock.patch.object(room, name, partial(counted, getattr(room, name))))
        yield seen


def _timed(run: Callable[[], object], device: torch.device | None) -> float:
    _wait(device)
    started = time.perf_counter()
    run()
    _wait(device)
    return time.perf_counter() - started


def _wait(device: torch.device | None) -> None:
    if device is not None:
        torch.accelerator.synchronize(device)


def _memory(device: torch.device | None) -> dict[str, int]:
    """What the allocator had to ask the driver for, so far."""
    seen = torch.cuda.memory_stats(device) if device is not None else {}
    return {key: seen[key] for key in ("num_device_alloc", "num_device_free", "num_alloc_retries") if key in seen}


_Times = dict[str, tuple[float, int]]
"""Milliseconds and calls by name."""


def _profiled(run: Callable[[], object]) -> dict[str, _Times]:
    """Times of the kernels, and of the host without what it calls."""
    activities = [ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * torch.cuda.is_available()]
    with profile(activities=activities, acc_events=True) as profiler:
        run()
        _wait(torch.accelerator.current_accelerator())
    averages = profiler.key_averages()
    kernels = [one for one in averages if one.device_type != torch.autograd.DeviceType.CPU]
    calls = [one for one in averages if one.device_type == torch.autograd.DeviceType.CPU]
    return {
        "device": {one.key: (one.self_device_time_total / 1e3, one.count) for one in kernels},
        "host": {one.key: (one.self_cpu_time_total / 1e3, one.count) for one in calls},
    }
