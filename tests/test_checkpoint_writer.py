"""Laying out and writing safetensors files, against the official writer."""

from __future__ import annotations

import errno
import io
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from checkpoint_bytes import official
from checkpoints import WRITER_NAMES
from hypothesis import given
from hypothesis import strategies as st
from safetensors import TensorSpec, serialize

from gemma_doctor.checkpoint import header, writer
from gemma_doctor.checkpoint.dtypes import BITS
from gemma_doctor.checkpoint.writer import Entry, copy_range, lay_out, start_writeback, write_all
from gemma_doctor.errors import UsageError

DATA = np.arange(1000, dtype=np.uint16).view(np.uint8)


def test_literal_header() -> None:
    layout = lay_out("m.safetensors", [Entry("a", "F32", (2, 3)), Entry("é", "BF16", ())], {"format": "pt"})
    text = (
        '{"__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]},'
        '"é":{"dtype":"BF16","shape":[],"data_offsets":[24,26]}}'
    ).encode()
    assert layout.header == (144).to_bytes(8, "little") + text + b" " * (144 - len(text))
    assert layout.size == 152 + 26
    assert [(info.name, info.start, info.stop) for info in layout.tensors] == [("a", 152, 176), ("é", 176, 178)]


def test_no_metadata_and_empty_metadata_differ() -> None:
    assert lay_out("m", [], None).header[8:] == b"{}      "
    assert lay_out("m", [], {}).header[8:] == b'{"__metadata__":{}}     '


ENTRIES = st.dictionaries(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=8).filter(lambda name: name != "__metadata__"),
    st.tuples(st.sampled_from(sorted(WRITER_NAMES)), st.lists(st.integers(0, 3), max_size=3).map(tuple)),
    max_size=6,
).map(lambda found: [Entry(name, dtype, shape) for name, (dtype, shape) in found.items()])


@given(ENTRIES, st.none() | st.just({"format": "pt"}))
def test_what_is_laid_out_is_what_the_official_reader_reads(
    entries: Sequence[Entry], metadata: dict[str, str] | None
) -> None:
    layout = lay_out("m", entries, metadata)
    found = official(layout.header + bytes(layout.size - len(layout.header)))
    assert found is not None
    assert {name: (dtype, shape) for name, (dtype, shape, _) in found.items()} == {
        entry.name: (entry.dtype, entry.shape) for entry in entries
    }
    assert [info.name for info in layout.tensors] == [entry.name for entry in entries]
    assert all(info.start * 8 % BITS[info.dtype] == 0 for info in layout.tensors)


@given(ENTRIES)
def test_in_the_official_writers_order_the_bytes_are_the_official_writers(entries: Sequence[Entry]) -> None:
    specs = {
        entry.name: TensorSpec(
            dtype=WRITER_NAMES[entry.dtype], shape=entry.shape, data_ptr=DATA.ctypes.data, data_len=entry.nbytes
        )
        for entry in entries
    }
    theirs = serialize(specs, {"format": "pt"})
    tensors = official(theirs)
    assert tensors is not None
    by_name = {entry.name: entry for entry in entries}
    length = int.from_bytes(theirs[:8], "little")
    read = header.read_header(io.BytesIO(theirs), len(theirs), "m")
    layout = lay_out("m", [by_name[info.name] for info in read.tensors], {"format": "pt"})
    assert layout.header == theirs[: 8 + length]


def test_larger_elements_come_first_where_order_would_misalign() -> None:
    entries = [Entry("b", "U8", (1,)), Entry("w", "F32", (1,)), Entry("c", "BF16", (1,)), Entry("d", "F32", ())]
    placed = lay_out("m", entries, None).tensors
    assert [info.name for info in placed] == ["b", "w", "c", "d"]
    assert [info.name for info in sorted(placed, key=lambda info: info.start)] == ["w", "d", "c", "b"]


def test_order_stays_where_nothing_is_misaligned() -> None:
    entries = [Entry("b", "U8", (4,)), Entry("w", "F32", (1,)), Entry("c", "BF16", (1,))]
    placed = lay_out("m", entries, None).tensors
    assert [info.start for info in placed] == sorted(info.start for info in placed)


def test_a_header_that_no_reader_accepts_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "MAX_HEADER", 64)
    lay_out("m", [Entry("a", "U8", (1,))], None)
    with pytest.raises(UsageError, match="readers accept 64"):
        lay_out("m", [Entry("a" * 20, "U8", (1,))], None)


def test_elements_that_end_inside_a_byte_are_refused() -> None:
    assert Entry("w", "F4", (2,)).nbytes == 1
    with pytest.raises(UsageError, match="tensor 'w': F4 of shape \\[3\\] ends inside a byte"):
        _ = Entry("w", "F4", (3,)).nbytes


def raising(code: int) -> Callable[..., int]:
    def call(*_: object) -> int:
        raise OSError(code, os.strerror(code))

    return call


def short(source: int, target: int, count: int, start: int, at: int) -> int:
    """A kernel that copies a few bytes at a time and stops half-way."""
    if start >= 700:
        return 0
    return os.pwrite(target, os.pread(source, min(count, 7), start), at)


@pytest.fixture
def pair(tmp_path: Path) -> tuple[int, int]:
    (tmp_path / "source").write_bytes(DATA.tobytes())
    return os.open(tmp_path / "source", os.O_RDONLY), os.open(tmp_path / "target", os.O_RDWR | os.O_CREAT)


@pytest.mark.parametrize(
    "kernel",
    [None, short, raising(errno.EXDEV), raising(errno.EINVAL), raising(errno.ENOSYS), raising(errno.EOPNOTSUPP)],
)
def test_copying_with_and_without_the_kernels_help(
    kernel: Callable[..., int] | None, pair: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = pair
    if kernel:
        monkeypatch.setattr(os, "copy_file_range", kernel, raising=False)
    copy_range(source, 10, target, 5, DATA[10:1500])
    start_writeback(target, 5, 1490)
    assert os.pread(target, 4000, 0) == bytes(5) + DATA[10:1500].tobytes()


def test_copying_where_the_system_has_no_such_call(pair: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "copy_file_range", raising=False)
    copy_range(pair[0], 0, pair[1], 0, DATA)
    assert os.pread(pair[1], 4000, 0) == DATA.tobytes()


def test_a_full_disk_is_not_a_reason_to_try_another_way(pair: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "copy_file_range", raising(errno.ENOSPC), raising=False)
    with pytest.raises(OSError, match="No space left"):
        copy_range(pair[0], 0, pair[1], 0, DATA)


def test_writes_that_come_up_short_go_on(pair: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    whole = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda target, view, at: whole(target, view[:3], at))
    write_all(pair[1], 2, DATA[:100])
    assert os.pread(pair[1], 4000, 0) == bytes(2) + DATA[:100].tobytes()
