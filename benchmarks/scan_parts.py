"""Where the time of a warm scan goes: ``python benchmarks/scan_parts.py CHECKPOINT``, least times of many, in turns.

First its parts one after the other, beside the plain read: headers, the pass over the bytes on all cores, rules. Then
what one core counts of numbers that lie in anonymous memory, dtype by dtype.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import inputs
import numpy as np
import rivals

from gemma_doctor.cores import cores
from gemma_doctor.doctor.options import Options
from gemma_doctor.doctor.scanning import judged, opened
from gemma_doctor.inspect.survey import survey
from gemma_doctor.kernels.measure import measure

ROUNDS = 15
SIZE = 32 << 20
COLUMNS = 2048
LINE = 64


def least(entrants: Mapping[str, Callable[[], object]]) -> dict[str, float]:
    """Least seconds of each entrant; they run in turns, after one round that does not count."""
    seconds = dict.fromkeys(entrants, float("inf"))
    for turn in range(ROUNDS + 1):
        for name, run in entrants.items():
            started = time.perf_counter()
            run()
            if turn:
                seconds[name] = min(seconds[name], time.perf_counter() - started)
    return seconds


def parts(source: Path) -> None:
    """Prints the parts of a scan of a checkpoint."""
    files = sorted(source.glob("*.safetensors")) if source.is_dir() else [source]
    nbytes = sum(file.stat().st_size for file in files)
    case = opened(source, Options())
    measured = survey(case)
    seconds = least(
        {
            "headers": lambda: opened(source, Options()),
            "the pass over the bytes": lambda: survey(case),
            "rules": lambda: judged(case, measured, 0.0),
            "plain read": lambda: rivals.plain_read(files, cores()),
        }
    )
    print(f"| warm, {nbytes / 1e9:.1f} GB, {cores()} cores | ms | GB/s |\n| --- | ---: | ---: |")
    for name, took in seconds.items():
        print(f"| {name} | {1e3 * took:.0f} | {nbytes / took / 1e9:.1f} |")


def counting() -> None:
    """Prints what one core counts."""
    print("\n| one core, rows of 2048 | GB/s | ns for 64 bytes |\n| --- | ---: | ---: |")
    for dtype, itemsize in inputs.ITEMSIZE.items():
        pool = inputs.pool(dtype, np.random.default_rng(0))
        data = np.resize(pool, SIZE // itemsize).view(np.uint8)
        shape = (SIZE // itemsize // COLUMNS, COLUMNS)
        took = least({dtype: lambda data=data, dtype=dtype, shape=shape: measure(data, dtype, shape)})[dtype]  # type: ignore[misc]
        print(f"| {dtype} | {SIZE / took / 1e9:.1f} | {1e9 * took * LINE / SIZE:.2f} |")


if __name__ == "__main__":
    parts(Path(sys.argv[1]))
    counting()
