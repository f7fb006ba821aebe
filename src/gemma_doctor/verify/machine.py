"""What the model runs on, and what of a T4 is imitated there."""

from __future__ import annotations

import gc
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from gemma_doctor.choices import Device
from gemma_doctor.errors import UsageError

__all__ = [
    "find",
    "give_back",
    "imitated",
    "limited",
    "name",
    "not_imitated",
    "peak_memory",
    "room",
    "waiting",
    "without_tf32",
]

_GIB = 1 << 30
_ROOM = 0.9
"""Of the memory that may hold weights; the rest is for activations."""

_ROOM_BACKWARD = 0.6
"""The same where activations are kept for a backward pass, and gradients come."""


def find(wanted: Device) -> torch.device:
    """The device.

    Raises:
        UsageError: If there is no such one.
    """
    if wanted == "cuda" and not torch.cuda.is_available():
        raise UsageError("torch sees no CUDA device here; use --device cpu, or install a torch build for this GPU")
    cuda = wanted != "cpu" and torch.cuda.is_available()
    return torch.device("cuda", torch.cuda.current_device()) if cuda else torch.device("cpu")


def name(device: torch.device) -> str:
    """The device in words."""
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    return f"CPU ({platform.machine()}), torch {torch.__version__}"


def imitated(device: torch.device, limit: float | None) -> tuple[str, ...]:
    """What is as on a T4."""
    facts = [
        "float16's range and rounding, which are the same on every device",
        "no TF32, and sums of float16 products in float32",
    ]
    if device.type == "cuda" and limit is not None:
        facts.append(f"a memory of {limit:g} GiB")
    return tuple(facts)


def not_imitated(device: torch.device, limit: float | None) -> tuple[str, ...]:
    """What is not."""
    if "T4" in name(device):
        return ()
    facts = ["a T4's kernels (order of summation, attention backend) and its speed"]
    if device.type == "cpu":
        facts.append("a T4's memory" + ("" if limit is None else " (--memory-limit holds on a GPU only)"))
    return tuple(facts)


def room(nbytes: int, device: torch.device, limit: float | None, *, backward: bool) -> dict[Any, Any] | None:
    """Bytes for accelerate to fill, where a model does not fit into the device's memory; None where it does.

    Args:
        nbytes: What its parameters take.
        device: Where it is to run.
        limit: GiB that may be used.
        backward: Whether it runs backward too.
    """
    if device.type != "cuda":
        return None
    give_back(device)
    free = torch.cuda.mem_get_info(device)[0]
    usable = (_ROOM_BACKWARD if backward else _ROOM) * (free if limit is None else min(free, limit * _GIB))
    return {device.index: int(usable), "cpu": 1 << 50} if nbytes > usable else None


def give_back(device: torch.device) -> None:
    """Free what only cycles of references hold (a model, a graph with its activations), and torch's cache of memory."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def waiting(device: torch.device) -> int:
    """Bytes of outputs that a trace may keep until they are measured: a 16th of the memory that is still free."""
    if device.type != "cuda":
        return 1 << 28
    whole = torch.cuda.get_device_properties(device).total_memory
    free = int(whole * torch.cuda.get_per_process_memory_fraction(device)) - int(torch.cuda.memory_allocated(device))
    return max(free, 0) >> 4


@contextmanager
def limited(device: torch.device, limit: float | None, *, backward: bool, reference: bool) -> Iterator[None]:
    """While it lasts, tensors may take so many GiB; what goes beyond is a clear error.

    Args:
        device: Where the tensors are.
        limit: Their GiB; None for all that the device has.
        backward: Whether the backward pass is run, and could be left out.
        reference: Whether the reference is, and could be.

    Raises:
        UsageError: If the device's memory did not suffice.
    """
    whole = torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else 0
    if whole:
        torch.cuda.reset_peak_memory_stats(device)
        torch.cuda.set_per_process_memory_fraction(min(1.0, (limit * _GIB / whole) if limit else 1.0), device)
    try:
        yield
    except torch.OutOfMemoryError as error:
        size = f"{limit:g} GiB (--memory-limit)" if limit else "the memory of this device"
        less = [
            "shorten it with --seq-len or --image-size",
            "leave the backward pass out with --no-backward (or keep less for it with --gradient-checkpointing)",
            "leave the reference out with --reference none",
        ]
        ways = [way for way, there in zip(less, (True, backward, reference), strict=True) if there]
        raise UsageError(f"the run does not fit into {size}: {', or '.join(ways)}") from error
    finally:
        if whole:
            torch.cuda.set_per_process_memory_fraction(1.0, device)


def peak_memory(device: torch.device) -> int | None:
    """The largest memory that tensors took since :func:`limited` began, in bytes; None on a CPU."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None


@contextmanager
def without_tf32(seed: int) -> Iterator[None]:
    """While it lasts: seeded, float32 products in full precision, sums of float16 products in float32, as on a T4."""
    settings = (
        (torch.backends.cuda.matmul, "allow_tf32", False),
        (torch.backends.cudnn, "allow_tf32", False),
        (torch.backends.cuda.matmul, "allow_fp16_reduced_precision_reduction", False),
    )
    before = [getattr(place, key) for place, key, _ in settings]
    torch.manual_seed(seed)
    for place, key, value in settings:
        setattr(place, key, value)
    try:
        yield
    finally:
        for (place, key, _), value in zip(settings, before, strict=True):
            setattr(place, key, value)
