"""What is wrong with the files of a checkpoint becomes faults, and never an exception or a wait."""

from __future__ import annotations

import json
import os
import socket
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from checkpoint_bytes import framed, tensor_file, write_file

from gemma_doctor.checkpoint import Checkpoint, open_checkpoint
from gemma_doctor.errors import IndexFileError
from gemma_doctor.records import Fault, FileInfo

INDEX = "model.safetensors.index.json"


def sharded(folder: Path, weight_map: dict[str, str], total_size: object = None) -> Path:
    """A folder whose two shards ``1.safetensors`` and ``2.safetensors`` hold ``a b`` and ``c d``, and an index."""
    write_file(folder / "1.safetensors", "a", "b", metadata={"format": "pt"})
    write_file(folder / "2.safetensors", "c", "d")
    metadata = {} if total_size is None else {"total_size": total_size}
    (folder / INDEX).write_text(json.dumps({"metadata": metadata, "weight_map": weight_map}))
    return folder


RIGHT = {"a": "1.safetensors", "b": "1.safetensors", "c": "2.safetensors", "d": "2.safetensors"}


def only(checkpoint: Checkpoint) -> Fault:
    (fault,) = checkpoint.faults
    assert fault.message.endswith(".")
    return fault


def test_a_sound_checkpoint_has_no_fault(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(sharded(tmp_path, RIGHT, 16))
    sizes = [(tmp_path / name).stat().st_size for name in ("1.safetensors", "2.safetensors")]
    assert checkpoint.files == (
        FileInfo("1.safetensors", sizes[0], {"format": "pt"}, 2),
        FileInfo("2.safetensors", sizes[1], None, 2),
    )
    assert {name: info.file for name, info in checkpoint.tensors.items()} == RIGHT
    assert (checkpoint.faults, checkpoint.unreachable) == ((), {})


def test_the_caches_links_into_its_blobs_are_followed(tmp_path: Path) -> None:
    snapshot = tmp_path / "models--x--y" / "snapshots" / "main"
    blobs = tmp_path / "models--x--y" / "blobs"
    for folder in (snapshot, blobs):
        folder.mkdir(parents=True)
    for number, path in enumerate(sorted(sharded(tmp_path, RIGHT, 16).glob("*.*"))):
        path.rename(blobs / f"{number}")
        (snapshot / path.name).symlink_to(f"../../blobs/{number}")
    checkpoint = open_checkpoint(snapshot)
    assert (len(checkpoint.tensors), checkpoint.faults, checkpoint.root) == (4, (), snapshot)
    assert len(open_checkpoint(snapshot / INDEX).tensors) == 4
    assert len(open_checkpoint(snapshot / "1.safetensors").tensors) == 2


def test_a_tensor_without_bytes_and_a_scalar_are_tensors(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(tensor_file({"empty": ("F32", [0, 3], 0), "scalar": ("BF16", [], 2)}))
    tensors = open_checkpoint(tmp_path).tensors
    assert [(info.name, info.numel, info.nbytes) for info in tensors.values()] == [("empty", 0, 0), ("scalar", 1, 2)]


def test_hostile_names_pass_through_as_data(tmp_path: Path) -> None:
    names = ["[bold]x[/]<script>", "\x1b[2J\r\n\0\u202e", "n" * 10_000, "../../etc/passwd"]
    write_file(tmp_path / "model.safetensors", *names)
    assert list(open_checkpoint(tmp_path).tensors) == names


# Files that cannot be read.


def broken_single(folder: Path, raw: bytes) -> Fault:
    (folder / "model.safetensors").write_bytes(raw)
    checkpoint = open_checkpoint(folder)
    assert checkpoint.tensors == {}
    assert checkpoint.files == (FileInfo("model.safetensors", len(raw)),)
    return only(checkpoint)


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"", "it is an empty file"),
        (framed(b'{"a":["F32",[1],[0,4]]}', b"123"), "it is cut off"),
        (framed(b'{"a":["F32",[1],[0,4]]}', b"12345"), "describes only the first"),
        (b"version https://git-lfs.github.com/spec/v1\n", "it is a Git LFS pointer"),
    ],
)
def test_a_broken_file_is_a_fault(tmp_path: Path, raw: bytes, words: str) -> None:
    fault = broken_single(tmp_path, raw)
    assert (fault.kind, fault.file, fault.tensor) == ("unreadable-shard", "model.safetensors", None)
    assert words in fault.message
    assert fault.evidence == {"bytes": len(raw)}


def make_folder(path: Path) -> None:
    path.mkdir()


def make_pipe(path: Path) -> None:
    os.mkfifo(path)


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(path))


def make_link_to_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def make_dangling_link(path: Path) -> None:
    path.symlink_to("../blobs/gone")


def make_link_to_itself(path: Path) -> None:
    path.symlink_to(path.name)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (make_folder, "it is a folder, not a file"),
        (make_pipe, "it is a named pipe, not a file"),
        (make_socket, "it cannot be read"),
        (make_link_to_device, "it is a character device, not a file"),
        (make_dangling_link, "a symbolic link to a file that does not exist"),
        (make_link_to_itself, "it cannot be read"),
    ],
)
def test_what_is_no_file_is_a_fault_and_no_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[Path], None], words: str
) -> None:
    monkeypatch.chdir(tmp_path)  # the path of a socket must be short
    sharded(tmp_path, RIGHT)
    (tmp_path / "2.safetensors").unlink()
    make(tmp_path / "2.safetensors")
    checkpoint = open_checkpoint(tmp_path)
    fault = only(checkpoint)
    assert (fault.kind, fault.file) == ("unreadable-shard", "2.safetensors")
    assert words in fault.message
    assert list(checkpoint.tensors) == ["a", "b"]
    assert checkpoint.unreachable == {"c": fault.message, "d": fault.message}


@pytest.mark.parametrize("source", ["", "1.safetensors"])
def test_a_file_that_may_not_be_read_is_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str) -> None:
    sharded(tmp_path, RIGHT)
    real = os.open

    def refuse(path: Path, flags: int) -> int:
        if Path(path).name == "1.safetensors":
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, flags)

    monkeypatch.setattr(os, "open", refuse)
    fault = only(open_checkpoint(tmp_path / source))
    assert (fault.kind, fault.file) == ("unreadable-shard", "1.safetensors")
    assert "no permission to read it" in fault.message


def test_a_repeated_name_in_a_header_is_a_fault(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(framed(b'{"a":["U8",[9],[9,9]],"a":["U8",[1],[0,1]]}', b"1"))
    fault = only(open_checkpoint(tmp_path))
    assert (fault.kind, fault.file, fault.tensor) == ("index-mismatch", "model.safetensors", "a")
    assert "lists tensor 'a' twice" in fault.message


# The index and the shards.


def test_a_missing_shard_is_a_fault_and_its_tensors_are_out_of_reach(tmp_path: Path) -> None:
    sharded(tmp_path, RIGHT, 16)
    (tmp_path / "1.safetensors").unlink()
    checkpoint = open_checkpoint(tmp_path)
    fault = only(checkpoint)
    assert (fault.kind, fault.file, fault.tensor) == ("index-mismatch", "1.safetensors", None)
    assert "this file is missing" in fault.message
    assert list(checkpoint.tensors) == ["c", "d"]
    assert checkpoint.unreachable == {"a": fault.message, "b": fault.message}
    assert [info.name for info in checkpoint.files] == ["2.safetensors"]


@pytest.mark.parametrize(
    "path", ["../2.safetensors", "/2.safetensors", "..\\2.safetensors", "C:2.safetensors", "2\0", ""]
)
def test_a_file_outside_the_folder_is_a_fault_and_never_opened(tmp_path: Path, path: str) -> None:
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    sharded(folder, {**RIGHT, "c": path, "d": path})
    (folder / "2.safetensors").rename(tmp_path / "2.safetensors")
    checkpoint = open_checkpoint(folder)
    fault = only(checkpoint)
    assert (fault.kind, fault.file, fault.evidence) == ("unsafe-path", INDEX, {"path": path})
    assert fault.message.isprintable()
    assert list(checkpoint.tensors) == ["a", "b"]
    assert checkpoint.unreachable == {"c": fault.message, "d": fault.message}


def test_a_shard_in_a_subfolder_is_inside(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    write_file(tmp_path / "sub" / "x.safetensors", "a")
    (tmp_path / INDEX).write_text('{"weight_map": {"a": "sub/x.safetensors"}}')
    checkpoint = open_checkpoint(tmp_path)
    assert (checkpoint.tensors["a"].file, checkpoint.faults) == ("sub/x.safetensors", ())


def test_an_overlong_file_name_is_a_fault(tmp_path: Path) -> None:
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"a": "x" * 5000}}))
    fault = only(open_checkpoint(tmp_path))
    assert fault.kind == "unreadable-shard"
    assert len(fault.message) < 300


def test_a_tensor_that_its_shard_lacks_is_a_fault_and_out_of_reach(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(sharded(tmp_path, {**RIGHT, "e": "2.safetensors"}, 20))
    fault = only(checkpoint)
    assert (fault.kind, fault.file, fault.tensor) == ("index-mismatch", "2.safetensors", "e")
    assert checkpoint.unreachable == {"e": f"2.safetensors does not hold it, though {INDEX} says so"}


def test_a_tensor_that_the_index_lacks_is_a_fault_and_measured_all_the_same(tmp_path: Path) -> None:
    weight_map = {name: file for name, file in RIGHT.items() if name != "b"}
    checkpoint = open_checkpoint(sharded(tmp_path, weight_map, 16))
    fault = only(checkpoint)
    assert (fault.kind, fault.file, fault.tensor) == ("index-mismatch", "1.safetensors", "b")
    assert "does not list" in fault.message
    assert list(checkpoint.tensors) == ["a", "b", "c", "d"]


def test_a_tensor_in_another_shard_than_the_index_says_is_a_fault(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(sharded(tmp_path, {**RIGHT, "b": "2.safetensors"}, 16))
    fault = only(checkpoint)
    assert (fault.kind, fault.file, fault.tensor) == ("index-mismatch", "1.safetensors", "b")
    assert fault.evidence == {"index_file": "2.safetensors"}
    assert checkpoint.tensors["b"].file == "1.safetensors"


def test_a_tensor_found_elsewhere_than_in_its_missing_shard_is_in_reach(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(sharded(tmp_path, {**RIGHT, "b": "3.safetensors"}, 16))
    assert Counter(fault.file for fault in checkpoint.faults) == {"3.safetensors": 1, "1.safetensors": 1}
    assert checkpoint.unreachable == {}


@pytest.mark.parametrize("home", ["1.safetensors", "2.safetensors"])
def test_of_a_doubled_tensor_the_copy_counts_that_the_index_names(tmp_path: Path, home: str) -> None:
    sharded(tmp_path, {**RIGHT, "c": home}, 16)
    write_file(tmp_path / "1.safetensors", "a", "b", "c")
    checkpoint = open_checkpoint(tmp_path)
    fault = only(checkpoint)
    assert (fault.kind, fault.file, fault.tensor) == ("index-mismatch", "2.safetensors", "c")
    assert fault.evidence == {"other_file": "1.safetensors"}
    assert checkpoint.tensors["c"].file == home


def test_without_an_index_the_first_copy_counts(tmp_path: Path) -> None:
    write_file(tmp_path / "m-1-of-2.safetensors", "a", "b")
    write_file(tmp_path / "m-2-of-2.safetensors", "b", "c")
    checkpoint = open_checkpoint(tmp_path)
    assert only(checkpoint).tensor == "b"
    assert {name: info.file[2] for name, info in checkpoint.tensors.items()} == {"a": "1", "b": "1", "c": "2"}


def test_a_tensor_that_the_index_lists_twice_is_a_fault(tmp_path: Path) -> None:
    sharded(tmp_path, RIGHT)
    text = (tmp_path / INDEX).read_text().replace('"a":', '"a": "2.safetensors", "a":')
    (tmp_path / INDEX).write_text(text)
    fault = only(open_checkpoint(tmp_path))
    assert (fault.kind, fault.file, fault.tensor) == ("index-mismatch", INDEX, "a")


@pytest.mark.parametrize("total_size", [None, 16, 16.0])
def test_a_right_total_size_is_no_fault(tmp_path: Path, total_size: object) -> None:
    assert open_checkpoint(sharded(tmp_path, RIGHT, total_size)).faults == ()


@pytest.mark.parametrize(
    ("total_size", "shown"),
    [(15, "15"), (0, "0"), (10**30, f"{10**30:,}"), (16.5, "'16.5'"), ("16", "'16'"), (True, "'True'")],
)
def test_a_wrong_total_size_is_a_fault(tmp_path: Path, total_size: object, shown: str) -> None:
    fault = only(open_checkpoint(sharded(tmp_path, RIGHT, total_size)))
    assert (fault.kind, fault.file) == ("index-mismatch", INDEX)
    assert f"total_size says {shown}, and the tensors have 16 bytes" in fault.message
    assert fault.evidence == {"total_size": str(total_size), "bytes": 16}


def test_total_size_is_not_judged_while_tensors_are_out_of_reach(tmp_path: Path) -> None:
    sharded(tmp_path, RIGHT, 999)
    (tmp_path / "1.safetensors").unlink()
    assert only(open_checkpoint(tmp_path)).file == "1.safetensors"


def test_total_parameters_may_count_the_tied_head_twice(tmp_path: Path) -> None:
    sharded(tmp_path, RIGHT)
    metadata = {"total_size": 16, "total_parameters": 8}
    (tmp_path / INDEX).write_text(json.dumps({"metadata": metadata, "weight_map": RIGHT}))
    assert open_checkpoint(tmp_path).faults == ()


def test_an_empty_index_reads_nothing(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(sharded(tmp_path, {}, 0))
    assert (checkpoint.files, checkpoint.tensors, checkpoint.faults) == ((), {}, ())


@pytest.mark.parametrize("name", [INDEX, "config.json"])
def test_a_broken_document_is_an_error(tmp_path: Path, name: str) -> None:
    sharded(tmp_path, RIGHT)
    (tmp_path / name).write_text('{"a": 1,\n')
    with pytest.raises(IndexFileError, match=rf"^{name}, line 2, column 1: "):
        open_checkpoint(tmp_path)
