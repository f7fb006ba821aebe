"""The statistics kernel: a part of ``gpu_kernels.py``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from functools import partial

import torch
from gpu_timing import GPU, MIB, race
from table import Row

from gemma_doctor.kernels.outputs import launch
from gemma_doctor.kernels.outputs_torch import enqueue, read

__all__ = ["of_statistics"]

SIZES = (16 * MIB, 128 * MIB, 2048 * MIB)
HALVES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


def statistics_agree() -> None:
    """The Triton statistics against torch's reductions and the CPU's loops, without waiting for the GPU in between."""
    bits = torch.arange(1 << 16, dtype=torch.int32)
    every = [bits.to(torch.int16).view(dtype).to(GPU) for dtype in (torch.float16, torch.bfloat16)]
    random = torch.Generator(GPU).manual_seed(0)
    drawn = torch.randint(-(2**31), 2**31 - 1, (100_003,), device=GPU, dtype=torch.int64, generator=random)
    every.append(drawn.to(torch.int32).view(torch.float32))
    wide = [torch.randn(size, device=GPU, generator=random) for size in (1, 7, 4096, 70_001, 5_000_001)]
    tensors = [*every, *(x.to(dtype)[skip:] for x in wide for dtype in HALVES.values() for skip in (0, 1))]
    tensors += [
        torch.full((9000,), 1e-30, device=GPU),
        torch.zeros(5, device=GPU),
        torch.randn(99, device=GPU).double(),
    ]
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    launched = launch(tensors)
    torch.cuda.set_sync_debug_mode("default")
    plain = read(enqueue(tensors), [tensor.numel() for tensor in tensors])
    counted = launch([tensor.cpu() for tensor in tensors]).stats()
    names = ("count", "nan", "inf", "zeros", "fp16_overflow", "fp16_subnormal", "fp16_underflow", "minimum", "maximum")
    for index, (found, *others) in enumerate(zip(launched.stats(), plain, counted, strict=True)):
        for other in others:
            for name in names:
                if getattr(found, name) != getattr(other, name):
                    raise SystemExit(f"tensor {index}: {name} {getattr(found, name)} is not {getattr(other, name)}")
            sums = [float(stats.squares) if stats.squares is not None else None for stats in (found, other)]
            if sums[0] is None or sums[1] is None or abs(sums[0] - sums[1]) > 2.0**-17 * abs(sums[1]):
                raise SystemExit(f"tensor {index}: squares {sums[0]} are not {sums[1]}")
    print(f"statistics: {len(tensors)} tensors agree", file=sys.stderr)


def of_statistics(options: argparse.Namespace) -> Iterator[Row]:
    """One tensor, and many small ones."""
    statistics_agree()
    yield from of_large(options.rounds)
    yield from of_many_small(options.rounds)


def of_large(rounds: int) -> Iterator[Row]:
    """One tensor against a copy of it, in bytes that move."""
    for name, dtype in HALVES.items():
        for nbytes in SIZES:
            x = torch.randn(nbytes // dtype.itemsize, device=GPU, dtype=dtype)
            y = torch.empty_like(x)
            seconds = race(
                {
                    "ours": partial(launch, [x]),
                    "copy": partial(y.copy_, x),
                    "norm": partial(torch.linalg.vector_norm, x, float("inf")),
                },
                rounds,
            )
            speed, copied = nbytes / seconds["ours"], 2 * nbytes / seconds["copy"]
            yield Row(
                f"statistics of one {name} tensor, {nbytes // MIB} MiB",
                f"{speed / 1e9:,.0f} GB/s",
                f"copy {copied / 1e9:,.0f} GB/s, `vector_norm(inf)` {nbytes / seconds['norm'] / 1e9:,.0f}",
                speed / copied,
                ">= 0.9" if nbytes == SIZES[-1] else "",
                speed / copied >= 0.9 if nbytes == SIZES[-1] else None,
            )


def of_many_small(rounds: int) -> Iterator[Row]:
    """4,096 small tensors in one launch, against as many calls of a reduction, and against 256 of them."""
    tensors = [torch.randn(2048, device=GPU, dtype=torch.bfloat16) for _ in range(4096)]
    seconds = race(
        {
            "ours": lambda: launch(tensors),
            "few": lambda: launch(tensors[:256]),
            "foreach": lambda: torch._foreach_norm(tensors, float("inf")),  # noqa: SLF001  # torch has no public one
            "one by one": lambda: [torch.linalg.vector_norm(x, float("inf")) for x in tensors],
        },
        rounds,
        hidden=False,
    )
    yield Row(
        "statistics of 4,096 tensors of 4 KiB, one launch (with the host's part)",
        f"{seconds['ours'] * 1e3:.2f} ms",
        f"`_foreach_norm` {seconds['foreach'] * 1e3:.2f} ms, one by one {seconds['one by one'] * 1e3:.2f} ms, "
        f"256 of them {seconds['few'] * 1e3:.2f} ms",
        seconds["ours"] / seconds["one by one"],
        "",
        None,
    )
