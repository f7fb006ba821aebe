"""The guard of mapped files: a vanished page is an error of one scan, never the end of the process.

What can kill a process runs in one of its own.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gemma_doctor.checkpoint.mapping import Mapping

SIZE = 1 << 20

PRELUDE = f"""
import hashlib, mmap, os, signal, sys, threading
import numpy as np
from gemma_doctor.checkpoint.mapping import Mapping
from gemma_doctor.errors import ChangedError
folder = sys.argv[1]
def mapped(name, size={SIZE}):
    path = os.path.join(folder, name)
    with open(path, "wb") as file:
        file.write(bytes([1]) * size)
    descriptor = os.open(path, os.O_RDWR)
    return Mapping(descriptor, name, size), descriptor
def lost(mapping):
    try:
        mapping.check()
    except ChangedError:
        return True
    return False
"""


def run(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Runs code that may die of a signal."""
    command = [sys.executable, "-c", PRELUDE + code, str(folder)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def said(code: str, folder: Path) -> str:
    """What code prints that must not die."""
    done = run(code, folder)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.strip()


def bus_handler() -> int:
    """Address of the process's SIGBUS handler."""
    libc = ctypes.CDLL(None)
    libc.signal.restype, libc.signal.argtypes = ctypes.c_void_p, (ctypes.c_int, ctypes.c_void_p)
    handler = libc.signal(signal.SIGBUS, None)
    libc.signal(signal.SIGBUS, handler)
    return int(handler or 0)


@pytest.fixture
def descriptor(tmp_path: Path) -> Iterator[int]:
    """An open file of ten bytes."""
    path = tmp_path / "ten"
    path.write_bytes(b"0123456789")
    descriptor = os.open(path, os.O_RDONLY)
    yield descriptor
    os.close(descriptor)


def test_a_mapping_is_the_files_bytes_and_outlives_its_descriptor(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"0123456789")
    descriptor = os.open(path, os.O_RDONLY)
    mapping = Mapping(descriptor, "file", 10)
    os.close(descriptor)
    assert (mapping.bytes.tobytes(), mapping.lost) == (b"0123456789", False)
    assert not mapping.bytes.flags.writeable
    mapping.check()
    mapping.close()
    assert mapping.bytes.tobytes() == b"0123456789"


@pytest.mark.parametrize("first_closed", [0, 1])
def test_the_handler_of_before_comes_back_with_the_last_mapping(descriptor: int, first_closed: int) -> None:
    before = bus_handler()
    mappings = [Mapping(descriptor, "ten", 10) for _ in range(2)]
    ours = bus_handler()
    mappings[first_closed].close()
    mappings[first_closed].close()
    assert bus_handler() == ours != before
    mappings[1 - first_closed].close()
    assert bus_handler() == before
    again = Mapping(descriptor, "ten", 10)
    assert bus_handler() == ours
    again.close()
    assert bus_handler() == before


def test_pythons_own_handler_comes_back(descriptor: int) -> None:
    heard: list[int] = []
    before = signal.signal(signal.SIGBUS, lambda number, _: heard.append(number))
    try:
        Mapping(descriptor, "ten", 10).close()
        signal.raise_signal(signal.SIGBUS)
        assert heard == [signal.SIGBUS]
    finally:
        signal.signal(signal.SIGBUS, before)


READERS = {
    "a sum": "found = int(m.bytes[4096:].sum())",
    "a copy": "found = sum(m.bytes[-8:].tobytes())",
    "a table": "found = int(np.arange(256)[m.bytes[4096:]].max())",
    "a comparison": "found = int((m.bytes[4096:] != 0).sum())",
    "a hash": f"found = int(hashlib.sha256(m.bytes[4096:]).digest() != hashlib.sha256(bytes({SIZE} - 4096)).digest())",
    "a kernel": (
        "from gemma_doctor.kernels.measure import measure\n"
        "found = measure(m.bytes[4096:], 'BF16', (1, m.bytes[4096:].size // 2)).finite - "
        "measure(m.bytes[4096:], 'BF16', (1, m.bytes[4096:].size // 2)).zeros"
    ),
}


@pytest.mark.parametrize("reader", READERS)
def test_what_is_cut_off_reads_as_zeros_and_is_an_error_in_the_end(tmp_path: Path, reader: str) -> None:
    code = f"m, fd = mapped('weights')\nos.ftruncate(fd, 4096)\n{READERS[reader]}\nprint(found, lost(m))\nm.close()"
    assert said(code, tmp_path) == "0 True"


def test_the_error_names_the_file_and_the_next_step(tmp_path: Path) -> None:
    code = """
m, fd = mapped("wei\\tghts")
os.ftruncate(fd, 0)
m.bytes[0]
try:
    m.check()
except ChangedError as error:
    print(error)
"""
    assert said(code, tmp_path) == (
        r"'wei\tghts': the file was cut short, or its disk failed, while it was read. "
        "Let the writer finish and scan again, or check the disk."
    )


def test_a_loss_counts_for_every_mapping_of_that_time_and_for_no_later_one(tmp_path: Path) -> None:
    code = """
sound, _ = mapped("sound"); cut, fd = mapped("cut"); closed, _ = mapped("closed"); closed.close()
os.ftruncate(fd, 0)
print(int(cut.bytes[0]), lost(cut), lost(sound), lost(closed), int(closed.bytes[0]))
later, fd = mapped("later")
print(int(later.bytes[0]), lost(later))
os.ftruncate(fd, 0)
print(int(later.bytes[0]), lost(later))
cut.close(); sound.close(); later.close()
"""
    assert said(code, tmp_path).splitlines() == ["0 True True False 1", "1 False", "0 True"]


def test_threads_that_fault_at_once_all_go_on(tmp_path: Path) -> None:
    code = """
bad = 0
keep, _ = mapped("keep", 4096)
for _ in range(60):
    m, fd = mapped("weights", 1 << 17)
    os.ftruncate(fd, 0)
    start = threading.Barrier(8)
    def read(n):
        start.wait()
        m.bytes[n * m.bytes.size // 8:][:4096].sum()
    threads = [threading.Thread(target=read, args=(n,)) for n in range(8)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
    bad += not lost(m) or bool(m.bytes.any())
    m.close(); os.close(fd)
print(bad)
"""
    assert said(code, tmp_path) == "0"


def test_a_thread_that_comes_late_does_not_end_the_guard(tmp_path: Path) -> None:
    """Its fault is handled when another thread has mended all; a raised signal stands for it."""
    code = """
m, fd = mapped("weights"); os.ftruncate(fd, 0)
print(int(m.bytes[0]))
signal.raise_signal(signal.SIGBUS)
other, fd = mapped("other"); os.ftruncate(fd, 0)
print(int(other.bytes[0]), lost(other))
signal.raise_signal(signal.SIGBUS)
other.close(); m.close()
print("alive")
"""
    assert said(code, tmp_path).splitlines() == ["0", "0 True", "alive"]


FOREIGN = """
plain_fd = os.open(os.path.join(folder, "plain"), os.O_RDWR | os.O_CREAT)
os.ftruncate(plain_fd, 4096)
plain = mmap.mmap(plain_fd, 4096)
os.ftruncate(plain_fd, 0)
"""


@pytest.mark.parametrize(
    "code",
    [
        FOREIGN + "plain[0]",
        FOREIGN + "m, _ = mapped('weights'); print(m.bytes[0], flush=True); plain[0]",
        FOREIGN + "m, fd = mapped('weights'); os.ftruncate(fd, 0); print(m.bytes[0] + 1, flush=True); plain[0]",
        FOREIGN + "m, _ = mapped('weights'); print(m.bytes[0], flush=True); m.close(); plain[0]",
        "m, _ = mapped('weights'); print(1, flush=True); [signal.raise_signal(signal.SIGBUS) for _ in range(4)]",
    ],
    ids=["without a mapping", "beside a sound one", "beside a lost one", "after a closed one", "sent by somebody"],
)
def test_a_fault_that_is_somebody_elses_kills_as_ever(tmp_path: Path, code: str) -> None:
    done = run(code, tmp_path)
    assert done.returncode == -signal.SIGBUS
    assert done.stdout.strip() == ("1" if "mapped" in code else "")


def test_a_handler_of_before_gets_what_is_not_ours(tmp_path: Path) -> None:
    code = """
heard = []
signal.signal(signal.SIGBUS, lambda number, _: heard.append(number))
m, _ = mapped("weights")
for _ in range(4): signal.raise_signal(signal.SIGBUS)
print(len(heard), lost(m))
m.close()
"""
    assert said(code, tmp_path) == "1 True"
