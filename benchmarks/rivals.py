"""What is measured beside ours: the ceiling, and how others do it."""

from __future__ import annotations

import hashlib
import os
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

from gemma_doctor.checkpoint.writer import start_writeback

__all__ = [
    "copy",
    "copy_and_sync",
    "hash_all",
    "hashed_copy",
    "peer",
    "plain_read",
    "sequential_read",
    "weightlens",
]

CHUNK = 8 << 20
HOT = 1 << 18
"""Bytes that stay in the second-level cache."""


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


def copy_and_sync(source: Path, target: Path) -> None:
    """``cp -r``, and an fsync of each file: until then a part of the copy is in memory only."""
    copy(source, target)
    for file in target.iterdir():
        _sync(file)


def hashed_copy(source: Path, target: Path, threads: int) -> None:
    """The least that a copy with hashes does: each file read once, hashed with SHA-256, written, synced; nothing else.

    All files at once, so that the threads end together.
    """
    target.mkdir()
    files = list(source.iterdir())
    with ThreadPoolExecutor(max(threads, len(files))) as pool:
        list(pool.map(lambda file: _hashed_copy(file, target / file.name), files))


def hash_all(files: list[Path], threads: int) -> None:
    """The least that the hashes of linked files cost: SHA-256 of each file, a file to a thread."""
    with ThreadPoolExecutor(max(threads, len(files))) as pool:
        list(pool.map(_sha256, files))


def _hashed_copy(source: Path, target: Path) -> str:
    digest, block, done = hashlib.sha256(), memoryview(bytearray(HOT)), 0
    with source.open("rb", buffering=0) as stream, target.open("wb", buffering=0) as copied:
        while count := stream.readinto(block):
            digest.update(block[:count])
            copied.write(block[:count])
            done += count
            if done % CHUNK == 0:
                start_writeback(copied.fileno(), done - CHUNK, CHUNK)
        os.fsync(copied.fileno())
    return digest.hexdigest()


def _sha256(file: Path) -> str:
    digest, block = hashlib.sha256(), memoryview(bytearray(HOT))
    with file.open("rb", buffering=0) as stream:
        while count := stream.readinto(block):
            digest.update(block[:count])
    return digest.hexdigest()


def _sync(file: Path) -> None:
    descriptor = os.open(file, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)
