"""GGUF headers: read as the gguf package reads them, and never led astray by a count."""

from __future__ import annotations

import contextlib
import io
import random
import struct
import time
import tracemalloc
from pathlib import Path

import gguf_bytes
import ggufs
import numpy as np
import pytest
from command import call
from gguf import GGUFReader
from gguf.constants import GGUFValueType

import gemma_doctor
from gemma_doctor.checkpoint import open_checkpoint
from gemma_doctor.checkpoint.gguf_header import GGUFHeader, read_gguf_header
from gemma_doctor.errors import DoctorError, HeaderError


def text(content: bytes) -> bytes:
    return struct.pack("<Q", len(content)) + content


def key(name: bytes, kind: int, value: bytes) -> bytes:
    return text(name) + struct.pack("<I", kind) + value


def entry(name: bytes = b"w", dims: tuple[int, ...] = (4,), kind: int = 0, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)


def gguf(
    *parts: bytes, tensors: int = 0, keys: int = 0, version: int = 3, data: bytes = b"", alignment: int = 32
) -> bytes:
    head = b"GGUF" + struct.pack("<IQQ", version, tensors, keys) + b"".join(parts)
    return head + bytes(-len(head) % alignment) + data


def read(raw: bytes) -> GGUFHeader:
    return read_gguf_header(io.BytesIO(raw), len(raw), "model.gguf")


def test_what_the_package_writes_is_read_as_the_package_reads_it(tmp_path: Path) -> None:
    path = ggufs.gemma3n(tmp_path / "m.gguf", (GGUFValueType.UINT32, 10))
    theirs, ours = GGUFReader(path), open_checkpoint(path)
    assert [
        (t.name, t.tensor_type.name, tuple(reversed(t.shape.tolist())), t.data_offset, t.data_offset + t.n_bytes)
        for t in theirs.tensors
    ] == [(t.name, t.dtype, t.shape, t.start, t.stop) for t in ours.tensors.values()]
    fields = {name: field for name, field in theirs.fields.items() if not name.startswith("GGUF.")}
    assert {name: (field.types[0].name, field.contents()) for name, field in fields.items()} == {
        name: (value.type, value.content) for name, value in ours.metadata.items()
    }
    assert len(ours.tensors) == 727
    assert (ours.format, ours.config, ours.files[0].header) == ("gguf", None, theirs.data_offset)


@pytest.mark.parametrize(
    ("kind", "form", "number"),
    [
        ("UINT8", "<B", 200),
        ("INT8", "<b", -3),
        ("UINT16", "<H", 60_000),
        ("INT16", "<h", -300),
        ("UINT32", "<I", 4_000_000_000),
        ("INT32", "<i", -70_000),
        ("FLOAT32", "<f", 1.5),
        ("BOOL", "<?", True),
        ("UINT64", "<Q", 2**63 + 1),
        ("INT64", "<q", -(2**40)),
        ("FLOAT64", "<d", 1e300),
    ],
)
def test_every_type_of_number_alone_and_in_an_array(kind: str, form: str, number: float) -> None:
    id_, packed = int(GGUFValueType[kind]), struct.pack(form, number)
    array = struct.pack("<IQ", id_, 2) + packed * 2
    header = read(gguf(key(b"one", id_, packed), key(b"two", 9, array), keys=2))
    assert (header.metadata["one"].type, header.metadata["one"].content) == (kind, number)
    assert (header.metadata["two"].type, header.metadata["two"].content) == ("ARRAY", (number, number))


def test_a_value_says_where_its_type_stands() -> None:
    raw = gguf(key(b"a", 8, text(b"long text")), key(b"b", 6, struct.pack("<f", 10.0)), keys=2)
    at = read(raw).metadata["b"].at
    assert raw[at : at + 8] == struct.pack("<If", 6, 10.0)


def test_texts_and_arrays_that_mean_nothing_are_passed_over() -> None:
    texts = struct.pack("<IQ", 8, 3) + text(b"a") + text(b"") + text(b"\xff")
    many = struct.pack("<IQ", 0, 70_000) + bytes(70_000)
    raw = gguf(key(b"t", 9, texts), key(b"m", 9, many), key(b"l", 8, text(b"x" * 70_000)), key(b"z", 7, b"\1"), keys=4)
    found = read(raw).metadata
    assert [found[name].content for name in ("t", "m", "l", "z")] == [None, None, None, True]


SIXTEEN = bytes(16)
HOSTILE = {
    "empty": (b"", "an empty file"),
    "magic alone": (b"GGUF", "cut short"),
    "a pickle": (b"\x80\x02}q\x00.", "a pickle"),
    "a zip": (b"PK\x03\x04" + bytes(40), "a zip archive"),
    "safetensors": (struct.pack("<Q", 2) + b"{}", "it does not begin with GGUF"),
    "version 1": (gguf(version=1), "its version is 1; this gemma-doctor reads 2 and 3"),
    "big endian": (gguf(version=0x03000000), "the other byte order"),
    "tensors without end": (
        gguf(tensors=2**64 - 1),
        "counts 18,446,744,073,709,551,615 tensors; the limit is 131,072",
    ),
    "keys without end": (gguf(keys=2**63), "metadata keys; the limit is 65,536"),
    "more keys than bytes": (gguf(keys=60_000), "needs"),
    "a text beyond the end": (gguf(struct.pack("<Q", 2**64 - 1), keys=1), "it is cut short"),
    "an array beyond the end": (gguf(key(b"a", 9, struct.pack("<IQ", 12, 2**60)), keys=1), "it is cut short"),
    "texts beyond the end": (gguf(key(b"a", 9, struct.pack("<IQ", 8, 2**61)), keys=1), "it is cut short"),
    "an array of arrays": (gguf(key(b"a", 9, struct.pack("<IQ", 9, 1) + bytes(64)), keys=1), "an array of arrays"),
    "an array of unknowns": (gguf(key(b"a", 9, struct.pack("<IQ", 13, 1) + bytes(64)), keys=1), "unknown type 13"),
    "an unknown type": (gguf(key(b"a", 77, bytes(64)), keys=1), "has the unknown type 77"),
    "a doubled key": (gguf(key(b"a", 0, b"1"), key(b"a", 0, b"1"), keys=2), "key 'a' stands twice"),
    "a key that is no text": (gguf(key(b"\xff", 0, b"1"), keys=1), "is not UTF-8"),
    "no alignment": (gguf(key(b"general.alignment", 4, bytes(4)), keys=1), "it must be a power of two"),
    "a crooked alignment": (gguf(key(b"general.alignment", 4, struct.pack("<I", 48)), keys=1), "a power of two"),
    "an alignment of bytes": (gguf(key(b"general.alignment", 0, b"\x20"), keys=1), "a power of two (UINT32)"),
    "five dimensions": (gguf(entry(dims=(1,) * 5), tensors=1), "5 dimensions; the limit is 4"),
    "dimensions without end": (gguf(text(b"w") + b"\xff" * 40, tensors=1), "dimensions; the limit is 4"),
    "an unknown tensor type": (gguf(entry(kind=4), tensors=1), "the type 4, unknown to the installed gguf package"),
    "too many elements": (gguf(entry(dims=(2**40, 2**40)), tensors=1), "elements; the limit is"),
    "broken blocks": (gguf(entry(dims=(33,), kind=2), tensors=1, data=bytes(99)), "no whole Q4_0 blocks of 32"),
    "a doubled tensor": (gguf(entry(), entry(offset=32), tensors=2, data=bytes(64)), "tensor 'w' stands twice"),
    "an overlap": (gguf(entry(), entry(b"v"), tensors=2, data=bytes(64)), "tensor 'v' overlaps the one before it"),
    "a gap": (gguf(entry(), entry(b"v", offset=64), tensors=2, data=bytes(99)), "tensor 'v' leaves a gap before it"),
    "an offset without end": (gguf(entry(offset=2**64 - 32), tensors=1, data=SIXTEEN), "leaves a gap"),
    "bytes that are missing": (gguf(entry(), tensors=1, data=bytes(15)), "it is cut short"),
}


@pytest.mark.parametrize(("raw", "message"), HOSTILE.values(), ids=HOSTILE.keys())
def test_what_breaks_the_format_is_refused_in_one_sentence(raw: bytes, message: str) -> None:
    tracemalloc.start()
    started = time.monotonic()
    with pytest.raises(HeaderError) as caught:
        read(raw)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert message in str(caught.value)
    assert str(caught.value).startswith("model.gguf: not a readable GGUF file: ")
    assert "\n" not in str(caught.value)
    assert peak < 4 << 20
    assert time.monotonic() - started < 5


@pytest.mark.parametrize(("raw", "message"), HOSTILE.values(), ids=HOSTILE.keys())
def test_the_command_line_reports_it_as_gd001(tmp_path: Path, raw: bytes, message: str) -> None:
    (tmp_path / "model.gguf").write_bytes(raw)
    done = call("scan", tmp_path / "model.gguf", "--json", tmp_path / "r.json")
    assert done.code == 2
    assert "GD001" in done.out
    assert message in (tmp_path / "r.json").read_text()


def test_a_header_beyond_the_limit_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    with path.open("wb") as stream:
        stream.write(b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + key(b"a", 9, struct.pack("<IQ", 8, 1 << 36)))
        stream.truncate(1 << 40)  # sparse: 512 GiB of empty texts
    with path.open("rb") as stream, pytest.raises(HeaderError, match="the limit is 100,000,000"):
        read_gguf_header(stream, path.stat().st_size, path.name)


def test_tensors_without_elements_and_scalars() -> None:
    header = read(gguf(entry(b"none", (0, 3)), entry(b"scalar", ()), tensors=2, data=bytes(4)))
    assert [(t.name, t.shape, t.nbytes) for t in header.tensors] == [("none", (3, 0), 0), ("scalar", (), 4)]


def test_alignment_is_obeyed() -> None:
    values = key(b"general.alignment", 4, struct.pack("<I", 128))
    raw = gguf(values, entry(), entry(b"v", offset=128), keys=1, tensors=2, data=bytes(144), alignment=128)
    assert [tensor.start % 128 for tensor in read(raw).tensors] == [0, 0]


def test_law_mutants_are_refused_or_read_as_the_package_reads_them(tmp_path: Path) -> None:
    rng, accepted = random.Random(0), 0
    path = tmp_path / "m.gguf"
    for number in range(1500):
        raw = gguf_bytes.mutated(rng.choice(gguf_bytes.SEEDS), rng)
        ours = gguf_bytes.ours(raw)
        if ours is not None:
            accepted += 1
            assert gguf_bytes.official(raw) == ours
        if number % 10 == 0:
            path.write_bytes(raw)
            with contextlib.suppress(DoctorError):
                gemma_doctor.scan(path)
    assert 100 < accepted < 1400


# -- which files ---------------------------------------------------------------------------------------------------


def small(path: Path, *names: str) -> Path:
    return ggufs.write(path, {name: ("F32", np.ones(4, np.float32)) for name in names})


def test_a_folder_with_one_gguf_file_is_scanned(tmp_path: Path) -> None:
    small(tmp_path / "m.gguf", "a")
    assert list(open_checkpoint(tmp_path).tensors) == ["a"]


def test_several_gguf_files_are_not_guessed_among(tmp_path: Path) -> None:
    for name in ("a.gguf", "b.gguf"):
        small(tmp_path / name, "a")
    done = call("scan", tmp_path)
    assert (done.code, "2 GGUF files, each a model of its own: a.gguf, b.gguf" in done.err.replace("\n", " ")) == (
        2,
        True,
    )


@pytest.mark.parametrize("given", ["", "m-00001-of-00002.gguf", "m-00002-of-00002.gguf"])
def test_a_split_file_is_one_checkpoint(tmp_path: Path, given: str) -> None:
    small(tmp_path / "m-00001-of-00002.gguf", "a")
    small(tmp_path / "m-00002-of-00002.gguf", "b")
    if given:
        small(tmp_path / "other.gguf", "c")
    checkpoint = open_checkpoint(tmp_path / given)
    assert (list(checkpoint.tensors), checkpoint.faults, checkpoint.partial) == (["a", "b"], (), False)


def test_a_missing_part_is_a_finding_and_exit_code_2(tmp_path: Path) -> None:
    small(tmp_path / "m-00001-of-00003.gguf", "a")
    small(tmp_path / "m-00003-of-00003.gguf", "b")
    done = call("scan", tmp_path)
    assert done.code == 2
    assert "m-00002-of-00003.gguf" in done.out
    assert "GD002" in done.out


def test_safetensors_beside_a_gguf_file_come_first(tmp_path: Path) -> None:
    small(tmp_path / "m.gguf", "a")
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", 2) + b"{}")
    assert open_checkpoint(tmp_path).format == "safetensors"
