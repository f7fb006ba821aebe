"""Which devices run Triton's kernels (all others get plain torch), and whether operations are watched."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec

import torch

try:
    from torch.utils._python_dispatch import is_in_torch_dispatch_mode
except ImportError:  # torch promises no such name

    def is_in_torch_dispatch_mode() -> bool:
        """What costs time and hides nothing."""
        return True


__all__ = ["is_watched", "runs_triton", "watched"]

_OLDEST = 8
"""Major compute capability of the oldest GPUs that Triton supports."""

_observers = 0


@cache
def runs_triton(device: torch.device) -> bool:
    """Whether Triton is installed and supports the device.

    Triton supports NVIDIA GPUs of compute capability 8.0 and later (its README, "Compatibility"): not the T4 (7.5) or
    the V100 (7.0), where its kernels may fail to compile or run wrong.
    """
    if device.type != "cuda" or find_spec("triton") is None:
        return False
    major, _ = torch.cuda.get_device_capability(device)
    return int(major) >= _OLDEST


@contextmanager
def watched() -> Iterator[None]:
    """While it lasts, :func:`is_watched` says so: for what observes operators and is no dispatch mode."""
    global _observers  # noqa: PLW0603  # autograd's threads must know it too
    _observers += 1
    try:
        yield
    finally:
        _observers -= 1


def is_watched(x: torch.Tensor) -> bool:
    """Whether something sees operations on x below autograd, and so kernels must be run as operators.

    That takes the host longer than all the rest of a norm.
    """
    return _observers > 0 or is_in_torch_dispatch_mode() or type(x) is not torch.Tensor
