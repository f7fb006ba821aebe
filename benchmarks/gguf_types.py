"""How fast GGUF tensors are measured, by type: ``python benchmarks/gguf_types.py [MIB]``.

Beside each scan, in the same run: what a script does, which is ``GGUFReader``, ``dequantize`` and ``abs().max()`` of
each tensor on one thread. The file is warm in the page cache. Medians of five (of three for the script); memory is the
peak of a scan in a process of its own, for a file of that size and for one of a quarter.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from gguf import GGUFReader, GGUFWriter
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize

import gemma_doctor

TYPES = ("F16", "Q8_0", "Q4_1")
WIDTH = 4096
TENSOR = 16 << 20


def build(path: Path, kind: str, nbytes: int) -> None:
    """Random blocks with small scales, in tensors of about 16 MiB."""
    block, size = GGML_QUANT_SIZES[GGMLQuantizationType[kind]]
    row = WIDTH // block * size
    rows, rng = TENSOR // row, np.random.default_rng(0)
    writer = GGUFWriter(path, "llama")
    for layer in range(nbytes // (rows * row)):
        blocks = rng.integers(0, 32, (rows, row), dtype=np.uint8)
        writer.add_tensor(f"blk.{layer}.ffn_up.weight", blocks, raw_dtype=GGMLQuantizationType[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def script(path: Path) -> None:
    """The largest magnitude of each tensor, as a script finds it."""
    for tensor in GGUFReader(path).tensors:
        np.abs(dequantize(tensor.data, tensor.tensor_type)).max()


def median(work: Callable[[], object], runs: int) -> float:
    """Median time in seconds, after one run that warms all up."""
    work()
    times = []
    for _ in range(runs):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def memory(path: Path) -> float:
    """Peak anonymous memory of a scan in MB."""
    command = [sys.executable, str(Path(__file__).with_name("memory.py")), str(path)]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout) / 1e6


def main() -> None:
    """Print the table."""
    nbytes = int(sys.argv[1] if sys.argv[1:] else "256") << 20
    print("| type | scan GB/s | million elements/s | script GB/s | scan / script | memory MB | a quarter's memory MB |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    with tempfile.TemporaryDirectory() as folder:
        for kind in TYPES:
            path, small = Path(folder, f"{kind}.gguf"), Path(folder, f"{kind}-small.gguf")
            build(path, kind, nbytes)
            build(small, kind, nbytes // 4)
            tensors = gemma_doctor.scan(path).tensors
            size, elements = sum(t.info.nbytes for t in tensors), sum(t.info.numel for t in tensors)
            ours, theirs = median(lambda p=path: gemma_doctor.scan(p), 5), median(lambda p=path: script(p), 3)  # type: ignore[misc]
            print(
                f"| {kind} | {size / ours / 1e9:.2f} | {elements / ours / 1e6:,.0f} | {size / theirs / 1e9:.3f} "
                f"| {theirs / ours:.1f} | {memory(path):.0f} | {memory(small):.0f} |",
                flush=True,
            )
            path.unlink()


if __name__ == "__main__":
    main()
