"""Every number of BENCHMARKS.md: ``python benchmarks/run.py [--quick] [--scratch DIR] [--write]``.

Ours, its ceiling and its peers run in turns in one process on one machine; a row holds medians. It needs the
packages of ``benchmarks/requirements.txt``, Linux, and 40 GB of disk (``--quick``: 8 GB).
"""

from __future__ import annotations

import argparse
import datetime as dt
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path

import inputs
import rivals
import torch
from table import Row, markdown, race

import gemma_doctor
from gemma_doctor.checkpoint import FileBytes, open_checkpoint
from gemma_doctor.plans import Plan, Reason, Scale
from gemma_doctor.repair.fingerprint import fingerprint

THREADS = len(os.sched_getaffinity(0))
VISION = "model.vision_tower."
HERE = Path(__file__).parent
TENTH = "repair, a tenth of the tensors touched"
FEW = "repair `--link`, only the encoder's shard touched"


def main() -> None:
    """Build the inputs, run everything, print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a part of E2B (its encoder) in place of the whole")
    parser.add_argument("--scratch", type=Path, help="folder for the inputs; kept (default: a temporary one)")
    parser.add_argument("--write", action="store_true", help="write BENCHMARKS.md")
    parser.add_argument("--rounds", type=int, default=5, help="runs of each entrant")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        scratch = options.scratch or Path(temporary)
        scratch.mkdir(parents=True, exist_ok=True)
        rows: list[Row] = []
        for row in figures(scratch, quick=options.quick, rounds=options.rounds):
            print(f"{row.what}: {row.ours}; {row.beside}; {row.ratio}", file=sys.stderr)
            rows.append(row)
    document = (
        _head(quick=options.quick)
        + markdown(rows)
        + (HERE / "remarks.md").read_text()
        + (HERE / "elsewhere.md").read_text()
    )
    print(document)
    if options.write:
        (HERE.parent / "BENCHMARKS.md").write_text(document)


def figures(scratch: Path, *, quick: bool, rounds: int) -> Iterator[Row]:
    """All rows."""
    large = inputs.e2b(scratch / "e2b", inputs.E2B_CONFIG, VISION if quick else "")
    files = sorted(large.glob("*.safetensors"))
    yield from warm(large, files, rounds)
    yield from against_weightlens(inputs.one_gigabyte(scratch / "BF16.safetensors", "BF16"))
    for dtype in ("F32", "F16", "F8_E4M3"):
        yield from other_dtype(inputs.one_gigabyte(scratch / f"{dtype}.safetensors", dtype), dtype, rounds)
    yield from cold(large, files, min(rounds, 3))
    yield from memory(scratch / "BF16.safetensors", large)
    yield from small(inputs.many_small(scratch / "small.safetensors", 100_000))
    yield from start_up(inputs.many_small(scratch / "tiny.safetensors", 100), rounds)
    yield from mending(large, files, scratch, rounds)


def warm(checkpoint: Path, files: list[Path], rounds: int) -> Iterator[Row]:
    """All statistics and rules, from the page cache."""
    nbytes = sum(file.stat().st_size for file in files)
    seconds = race(
        {
            "ours": lambda: gemma_doctor.scan(checkpoint),
            "read": lambda: rivals.plain_read(files, THREADS),
            "aminmax": lambda: rivals.peer(files, THREADS, torch.aminmax),
        },
        rounds,
    )
    seconds |= race({"absmax": lambda: rivals.peer(files, THREADS, lambda tensor: tensor.abs().max())}, 1)
    what = f"scan, warm, BF16, {nbytes / 1e9:.1f} GB"
    ours = _rate(nbytes, seconds["ours"])
    for name, label, target in (
        ("read", "plain read of the mapped bytes", 0.8),
        ("aminmax", "`safe_open` + `torch.aminmax`", 1.0),
        ("absmax", "`safe_open` + `.abs().max()`", 8.0),
    ):
        ratio = seconds[name] / seconds["ours"]
        beside = f"{label}, {_rate(nbytes, seconds[name])}"
        yield Row(what, ours, beside, ratio, f">= {target:g}", ratio >= target)


def against_weightlens(file: Path) -> Iterator[Row]:
    """One run of weightlens; ours on the same file."""
    nbytes = file.stat().st_size
    ours = race({"ours": lambda: gemma_doctor.scan(file)}, 5)["ours"]
    theirs = _once(lambda: rivals.weightlens(file, THREADS))
    ratio = theirs / ours
    beside = f"weightlens {version('weightlens')}, {_rate(nbytes, theirs)}"
    yield Row("scan, warm, BF16, 1.1 GB", _rate(nbytes, ours), beside, ratio, ">= 100", ratio >= 100)


def other_dtype(file: Path, dtype: str, rounds: int) -> Iterator[Row]:
    """The same ceiling for another dtype."""
    nbytes = file.stat().st_size
    entrants = {"ours": lambda: gemma_doctor.scan(file), "read": lambda: rivals.plain_read([file], THREADS)}
    seconds = race(entrants, rounds)
    ratio = seconds["read"] / seconds["ours"]
    beside = f"plain read, {_rate(nbytes, seconds['read'])}"
    yield Row(f"scan, warm, {dtype}, 1.1 GB", _rate(nbytes, seconds["ours"]), beside, ratio, ">= 0.7", ratio >= 0.7)


def cold(checkpoint: Path, files: list[Path], rounds: int) -> Iterator[Row]:
    """From the disk; the page cache is emptied of the files before each run."""
    nbytes = sum(file.stat().st_size for file in files)
    runs: dict[str, Callable[[], object]] = {
        "ours": lambda: gemma_doctor.scan(checkpoint),
        "read": lambda: rivals.sequential_read(files),
    }
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            _evict(files)
            times[name].append(_once(run))
    seconds = {name: statistics.median(each) for name, each in times.items()}
    ratio = seconds["read"] / seconds["ours"]
    beside = f"`dd`, {_rate(nbytes, seconds['read'])}"
    what = f"scan, cold, BF16, {nbytes / 1e9:.1f} GB"
    yield Row(what, _rate(nbytes, seconds["ours"]), beside, ratio, ">= 0.95", ratio >= 0.95)


def memory(small: Path, large: Path) -> Iterator[Row]:
    """Peak anonymous memory of two sizes."""
    peaks = [_peak(path) / 1e6 for path in (small, large)]
    good = max(peaks) < 400
    beside = f"1.1 GB: {peaks[0]:.0f} MB"
    yield Row(
        "anonymous memory, large checkpoint", f"{peaks[1]:.0f} MB", beside, peaks[1] / peaks[0], "< 400 MB, equal", good
    )


def small(file: Path) -> Iterator[Row]:
    """Overhead of a tensor."""
    seconds = _once(lambda: gemma_doctor.scan(file))
    yield Row("scan of 100,000 tensors of 64 elements", f"{seconds:.1f} s", "", None, "< 10 s", seconds < 10)


def start_up(file: Path, rounds: int) -> Iterator[Row]:
    """Whole processes."""
    command = [sys.executable, "-m", "gemma_doctor"]
    seconds = race(
        {
            "help": lambda: subprocess.run([*command, "--help"], check=True, capture_output=True),
            "scan": lambda: subprocess.run([*command, "scan", str(file)], check=True, capture_output=True),
        },
        rounds,
    )
    yield Row("`gemma-doctor --help`", f"{seconds['help']:.2f} s", "", None, "< 0.25 s", seconds["help"] < 0.25)
    yield Row("`gemma-doctor scan` of a small file", f"{seconds['scan']:.2f} s", "", None, "< 2 s", seconds["scan"] < 2)


def mending(checkpoint: Path, files: list[Path], scratch: Path, rounds: int) -> Iterator[Row]:
    """Repair against ``cp -r``: every tenth tensor halved; and with ``link``, the encoder's part of them.

    Each run begins with the source in the page cache, nothing waiting for the disk, and no copy there.
    """
    target = scratch / "copy"
    names = list(open_checkpoint(checkpoint).tensors)[::10]
    tenth, few = _plan(checkpoint, names), _plan(checkpoint, [name for name in names if name.startswith(VISION)])

    def fresh() -> None:
        shutil.rmtree(target, ignore_errors=True)
        os.sync()
        rivals.sequential_read(files)

    runs: dict[str, Callable[[], object]] = {
        "cp": lambda: rivals.copy(checkpoint, target),
        "synced": lambda: rivals.copy_and_sync(checkpoint, target),
        "hashed": lambda: rivals.hashed_copy(checkpoint, target, THREADS),
        "hashes": lambda: rivals.hash_all(files, THREADS),
        "repair": lambda: gemma_doctor.repair(tenth, target),
        "link": lambda: gemma_doctor.repair(few, target, link=True),
    }
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            fresh()
            times[name].append(_once(run))
    shutil.rmtree(target)
    seconds = {name: statistics.median(each) for name, each in times.items()}
    for name, what, beside, label, limit in (
        ("repair", TENTH, "cp", "`cp -r`", 1.3),
        ("repair", TENTH, "synced", "`cp -r`, then fsync", None),
        ("repair", TENTH, "hashed", "only copy, SHA-256, fsync", None),
        ("link", FEW, "cp", "`cp -r`", 0.5),
        ("link", FEW, "synced", "`cp -r`, then fsync", None),
        ("link", FEW, "hashes", "only SHA-256 of every file", None),
    ):
        ratio = seconds[name] / seconds[beside]
        asked, met = ("", None) if limit is None else (f"<= {limit:g}", ratio <= limit)
        yield Row(what, f"{seconds[name]:.1f} s", f"{label}, {seconds[beside]:.1f} s", ratio, asked, met)


def _plan(checkpoint: Path, names: list[str]) -> Plan:
    """A plan that halves these tensors."""
    opened = open_checkpoint(checkpoint)
    with FileBytes(opened) as files:
        marks = fingerprint(opened, files, names)
    reason = Reason("GD104", "benchmark")
    edits = (Scale(pass_name="rescale-conv", exactness="eps", reason=reason, tensor=n, exponent=-1) for n in names)
    return Plan(gemma_doctor.__version__, str(checkpoint), marks, tuple(edits))


def _once(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def _rate(nbytes: int, seconds: float) -> str:
    return f"{nbytes / seconds / 1e9:.2f} GB/s"


def _evict(files: list[Path]) -> None:
    """Drops the files from the page cache."""
    for file in files:
        descriptor = os.open(file, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def _peak(checkpoint: Path) -> int:
    """Peak anonymous memory of a scan in its own process, in bytes."""
    done = subprocess.run([sys.executable, HERE / "memory.py", checkpoint], check=True, capture_output=True, text=True)
    return int(done.stdout)


def _head(*, quick: bool) -> str:
    cpu = next((line.partition(":")[2].strip() for line in _cpuinfo() if line.startswith("model name")), "unknown CPU")
    packages = ", ".join(f"{name} {version(name)}" for name in ("numpy", "numba", "torch", "safetensors"))
    size = "--quick: the image encoder of E2B" if quick else "real-size Gemma 3n E2B, random weights"
    return (
        "# Benchmarks\n\n"
        f"`python benchmarks/run.py{' --quick' if quick else ''} --write` wrote this table on "
        f"{dt.datetime.now(tz=dt.timezone.utc):%Y-%m-%d}: {size}; {cpu}, {THREADS} cores, "
        f"{platform.system()} {platform.release()}, Python {platform.python_version()}, {packages}.\n"
        "Medians of runs in turns, on as many threads as there are cores. A ratio above its target is better.\n\n"
    )


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


if __name__ == "__main__":
    main()
