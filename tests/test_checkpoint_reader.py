"""Bytes of a checkpoint's files: the right ones, or an error."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from checkpoint_bytes import framed, write_file

from gemma_doctor.checkpoint import FileBytes, open_checkpoint, sha256
from gemma_doctor.errors import ChangedError, CheckpointError

LARGE = (9 << 20) + 5
"""Bytes of a tensor that takes several chunks of any size."""


def large(folder: Path) -> Path:
    """A file with an unaligned tensor ``large`` of random bytes, a scalar and an empty one."""
    header = b'{"one":["U8",[],[0,1]],"large":["U8",[%d],[1,%d]],"none":["F32",[0],[1,1]]}' % (LARGE, LARGE + 1)
    data = np.random.default_rng(1).bytes(LARGE + 1)
    path = folder / "model.safetensors"
    path.write_bytes(framed(header, data))
    return path


def open_files() -> int:
    return len(list(Path("/dev/fd").iterdir()))


def test_ranges_are_the_files_bytes(tmp_path: Path) -> None:
    raw = large(tmp_path).read_bytes()
    with FileBytes(open_checkpoint(tmp_path)) as files:
        for start, stop in ((0, 8), (0, len(raw)), (77, 78), (4097, 12_289), (len(raw) - 1, len(raw)), (50, 50)):
            piece = files.read("model.safetensors", start, stop)
            assert piece.dtype == np.dtype(np.uint8)
            assert piece.tobytes() == raw[start:stop]


def test_many_threads_read_many_files_at_once(tmp_path: Path) -> None:
    names = [f"model-{n}-of-8.safetensors" for n in range(1, 9)]
    raws = {name: write_file(tmp_path / name, name).read_bytes() for name in names}
    wanted = [*raws.items()] * 50
    before = open_files()
    with FileBytes(open_checkpoint(tmp_path)) as files, ThreadPoolExecutor(8) as pool:
        pieces = list(pool.map(lambda item: files.read(item[0], 8, len(item[1])).tobytes(), wanted))
        assert open_files() >= before + len(raws)
    assert pieces == [raw[8:] for _, raw in wanted]
    assert open_files() == before


def test_bytes_cannot_be_written_to(tmp_path: Path) -> None:
    large(tmp_path)
    with FileBytes(open_checkpoint(tmp_path)) as files:
        piece = files.read("model.safetensors", 0, 8)
        with pytest.raises(ValueError, match="read-only"):
            piece[0] = 1


def shorten(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def lengthen(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"x")


def overwrite(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"x")
    os.utime(path, ns=(0, 0))  # clocks are coarse: a write within one tick would leave the time as it is


def replace(path: Path) -> None:
    copy = path.with_suffix(".copy")
    copy.write_bytes(path.read_bytes())
    copy.replace(path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (shorten, "it had 109 bytes, and has 108 now"),
        (lengthen, "it had 109 bytes, and has 110 now"),
        (Path.unlink, "gone"),
    ],
)
def test_a_file_that_changed_since_its_header_was_read(
    tmp_path: Path, change: Callable[[Path], None], words: str
) -> None:
    path = write_file(tmp_path / "model.safetensors", "a")
    path.write_bytes(framed(path.read_bytes()[8:-4].ljust(97), bytes(4)))
    checkpoint = open_checkpoint(tmp_path)
    change(path)
    before = open_files()
    with (
        FileBytes(checkpoint) as files,
        pytest.raises(ChangedError, match=rf"^model\.safetensors: the file changed .*{words}"),
    ):
        files.read("model.safetensors", 0, 8)
    assert open_files() == before


def read_and(change: Callable[[Path], None], path: Path) -> None:
    with FileBytes(open_checkpoint(path)) as files:
        files.read(path.name, 0, 8)
        change(path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (shorten, "it was written to"),
        (lengthen, "it was written to"),
        (overwrite, "it was written to"),
        (replace, "another file has taken its place"),
        (Path.unlink, "it was moved or deleted"),
    ],
)
def test_a_file_that_changes_while_it_is_read(tmp_path: Path, change: Callable[[Path], None], words: str) -> None:
    path = write_file(tmp_path / "model.safetensors", "a")
    before = open_files()
    with pytest.raises(ChangedError, match=rf"^model\.safetensors: the file changed while it was read: {words}"):
        read_and(change, path)
    assert open_files() == before


def test_an_error_inside_is_not_hidden_by_a_change(tmp_path: Path) -> None:
    def fail(path: Path) -> None:
        path.unlink()
        raise KeyError

    path = write_file(tmp_path / "model.safetensors", "a")
    before = open_files()
    with pytest.raises(KeyError):
        read_and(fail, path)
    assert open_files() == before


CUT_SHORT = """
import os, sys
from gemma_doctor.checkpoint import FileBytes, open_checkpoint
from gemma_doctor.errors import ChangedError
path = sys.argv[1]
try:
    with FileBytes(open_checkpoint(path)) as files:
        piece = files.read("model.safetensors", 0, os.path.getsize(path))
        os.truncate(path, 4096)
        print(int(piece[-1]))
        print("read on")
except ChangedError as error:
    print(error)
"""


def test_a_file_that_shrinks_under_a_running_read_is_an_error_and_no_crash(tmp_path: Path) -> None:
    path = large(tmp_path)
    done = subprocess.run([sys.executable, "-c", CUT_SHORT, str(path)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    first, second, error = done.stdout.splitlines()
    assert (first, second) == ("0", "read on")
    assert error.startswith("model.safetensors: the file ")


def test_a_shard_that_is_no_file_any_more(tmp_path: Path) -> None:
    path = write_file(tmp_path / "model.safetensors", "a")
    checkpoint = open_checkpoint(tmp_path)
    path.unlink()
    os.mkfifo(path)
    with FileBytes(checkpoint) as files, pytest.raises(CheckpointError, match="it is a named pipe, not a file"):
        files.read("model.safetensors", 0, 8)


@pytest.mark.parametrize("name", ["one", "large", "none"])
def test_the_hash_is_that_of_the_tensors_bytes(tmp_path: Path, name: str) -> None:
    raw = large(tmp_path).read_bytes()
    checkpoint = open_checkpoint(tmp_path)
    info = checkpoint.tensors[name]
    assert sha256(checkpoint, info) == hashlib.sha256(raw[info.start : info.stop]).hexdigest()
