"""What a guarded encoder costs the host in Python, seen on a CPU: Gemma 3n's 282 convolutions, made narrow.

Usage: PYTHONPATH=src:tests python benchmarks/guard_host.py

Prints a Markdown table: milliseconds of a call with the convolutions and the fused norms' kernels left out, since a CPU
computes at once and a GPU only starts to; and microseconds of one norm of 16 channels, likewise. What is left is
Python, allocation, and timm's own small operations. Processor time of one thread, the least of many turns.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any
from unittest import mock

import torch
import torchvision_operators  # noqa: F401  # before whatever imports torchvision
from checkpoints import healthy, tiny_gemma3n_config
from guarded import built
from timm.layers import RmsNorm2d
from tiny_models import encoder
from torch.nn import functional

from gemma_doctor.kernels import guard
from gemma_doctor.kernels.guards import norms, norms_tiles

TURNS, NORMS = 40, 500
"""Calls of the encoder, and of the norm in each of as many turns."""


def main() -> None:
    """Measure with gradients and without, and print."""
    torch.set_num_threads(1)
    config = {**tiny_gemma3n_config(), "dtype": "float32"}
    tower = encoder(built(dict(healthy(config)), config)).half()
    image = torch.randn(1, 3, 32, 32).half()
    maps = torch.randn(1, 16, 4, 4).half().to(memory_format=torch.channels_last)
    print("| host's part | plain | guarded |\n| --- | ---: | ---: |")
    for what, gradients in (("without gradients", False), ("with gradients", True)):
        with _nothing_computed(), torch.set_grad_enabled(gradients):
            calls = _least(_both(tower, lambda model: model.forward_features(image)), 1)
            norm = _least(_both(RmsNorm2d(16).half(), lambda norm: [norm(maps) for _ in range(NORMS)]), NORMS)
        print(f"| encoder, forward, {what}, ms | {calls['plain'] * 1e3:.1f} | {calls['guarded'] * 1e3:.1f} |")
        print(f"| one norm, forward, {what}, us | {norm['plain'] * 1e6:.1f} | {norm['guarded'] * 1e6:.1f} |")


def _both(model: Any, run: Callable[[Any], object]) -> dict[str, Callable[[], object]]:  # noqa: ANN401  # classes of timm
    guarded = copy.deepcopy(model)
    guard(guarded)
    return {"plain": lambda: run(model), "guarded": lambda: run(guarded)}


def _least(entrants: Mapping[str, Callable[[], object]], number: int) -> dict[str, float]:
    """Least processor seconds of one of so many calls in a turn."""
    least = dict.fromkeys(entrants, float("inf"))
    for _ in range(TURNS):
        for name, run in entrants.items():
            started = time.process_time()
            run()
            least[name] = min(least[name], (time.process_time() - started) / number)
    return least


class _Kernel:
    """A kernel of Triton that does nothing, compiled or not."""

    def __getitem__(self, grid: object) -> Callable[..., _Kernel]:
        return lambda *_, **__: self


def _nothing_computed() -> ExitStack:
    """Convolutions give what memory holds, in the layout that a GPU's give; and so do the fused norms."""
    stack, convolve, shapes = ExitStack(), functional.conv2d, {}

    def conv2d(x: torch.Tensor, weight: torch.Tensor, *rest: Any) -> torch.Tensor:  # noqa: ANN401
        key = (x.shape, weight.shape, *rest[1:])
        if key not in shapes:
            shapes[key] = convolve(x, weight, *rest).shape
        result = torch.empty(shapes[key], dtype=x.dtype, memory_format=torch.channels_last)
        return result.requires_grad_(torch.is_grad_enabled())

    stack.enter_context(mock.patch.object(functional, "conv2d", conv2d))
    stack.enter_context(mock.patch.object(norms, "runs_triton", return_value=True))
    stack.enter_context(mock.patch.dict(norms_tiles.KERNELS, dict.fromkeys(norms_tiles.KERNELS, _Kernel())))
    norms_tiles.plan.cache_clear()
    stack.callback(norms_tiles.plan.cache_clear)
    return stack


if __name__ == "__main__":
    main()
