"""What is measured beside ours: the ceiling, and how others do it."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numba
import numpy as np
import numpy.typing as npt
import torch
from safetensors import safe_open

__all__ = ["copy", "peer", "plain_read", "sequential_read", "weightlens"]

CHUNK = 8 << 20


@numba.njit(nogil=True)  # type: ignore[untyped-decorator]
def _xor(words: npt.NDArray[np.uint64]) -> np.uint64:
    total = np.uint64(0)
    for word in words:
        total ^= word
    return total  # type: ignore[no-any-return]


def plain_read(files: list[Path], threads: int) -> None:
    """Touches every byte of the mapped files once: 64-bit xor, chunks of 8 MiB, as many threads as ours."""
    maps = [np.memmap(file, np.uint8, "r") for file in files]
    parts = [part[start : start + CHUNK] for part in maps for start in range(0, part.size - 7, CHUNK)]
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda part: _xor(part[: part.size // 8 * 8].view(np.uint64)), parts))


def sequential_read(files: list[Path]) -> None:
    """``dd`` of each file to /dev/null in blocks of 8 MiB."""
    for file in files:
        subprocess.run(["dd", f"if={file}", "of=/dev/null", "bs=8M"], check=True, capture_output=True)  # noqa: S607


def peer(files: list[Path], threads: int, statistic: Callable[[Any], Any]) -> None:
    """``safe_open`` and one torch statistic a tensor; a tensor to a thread."""
    torch.set_num_threads(1)
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(statistic, _tensors(files)))


def _tensors(files: list[Path]) -> Iterator[Any]:
    for file in files:
        with safe_open(file, "pt") as opened:
            for name in opened.keys():  # noqa: SIM118  # safe_open is no mapping
                yield opened.get_tensor(name)


def weightlens(file: Path, threads: int) -> None:
    """Weightlens 0.3.0, as its users run it."""
    command = shutil.which("lens")
    if command is None:
        raise FileNotFoundError("lens: pip install -r benchmarks/requirements.txt")
    subprocess.run([command, "analyze", str(file), "--num-workers", str(threads)], check=True, capture_output=True)


def copy(source: Path, target: Path) -> None:
    """``cp -r``."""
    subprocess.run(["cp", "-r", str(source), str(target)], check=True)  # noqa: S607
