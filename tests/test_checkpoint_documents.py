"""The JSON files beside the weights: the index and ``config.json``."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import pytest

from gemma_doctor.checkpoint.config import MAX_CONFIG, read_config
from gemma_doctor.checkpoint.index import Index, leaves_folder, read_index
from gemma_doctor.checkpoint.stores import Folder
from gemma_doctor.errors import IndexFileError


def index_of(folder: Path, text: bytes) -> Index:
    path = folder / "model.safetensors.index.json"
    path.write_bytes(text)
    return read_index(Folder(folder), path.name)


def config_of(folder: Path, text: bytes) -> object:
    (folder / "config.json").write_bytes(text)
    return read_config(Folder(folder))


def test_an_index_is_read(tmp_path: Path) -> None:
    index = index_of(tmp_path, b'{"metadata":{"total_size":12,"x":null},"weight_map":{"b":"2","a":"1","c":"2"}}')
    assert index == Index({"b": "2", "a": "1", "c": "2"}, 12)
    assert index.files == ("1", "2")


@pytest.mark.parametrize("metadata", [b"", b'"metadata":null,', b'"metadata":[],', b'"metadata":{},'])
def test_an_index_may_lack_its_total_size(tmp_path: Path, metadata: bytes) -> None:
    assert index_of(tmp_path, b'{%b"weight_map":{}}' % metadata) == Index({}, None)


def test_a_tensor_that_an_index_lists_twice_is_told(tmp_path: Path) -> None:
    index = index_of(tmp_path, b'{"weight_map":{"a":"1","b":"1","a":"2","a":"3"}}')
    assert index.weight_map == {"a": "3", "b": "1"}
    assert index.doubled == ("a",)


BROKEN_INDEXES = {
    "no map": (b"{}", "it needs one weight_map"),
    "map null": (b'{"weight_map":null}', "it needs one weight_map"),
    "map array": (b'{"weight_map":[]}', "it needs one weight_map"),
    "two maps": (b'{"weight_map":{},"weight_map":{}}', "it needs one weight_map"),
    "file number": (b'{"weight_map":{"a":"1","b":2}}', "weight_map has no file's name for 'b'"),
    "file null": (b'{"weight_map":{"a":null}}', "weight_map has no file's name for 'a'"),
    "file object": (b'{"weight_map":{"a":{}}}', "weight_map has no file's name for 'a'"),
}

BROKEN_DOCUMENTS = {
    "nothing": (b"", r": it is an empty file \(0 bytes\)"),
    "array": (b"[]", ", line 1, column 1: it must be one JSON object in braces"),
    "text": (b'"{}"', ", line 1, column 1: it must be one JSON object in braces"),
    "trailing comma": (b'{\n "a": 1,\n}', ", line [23], column .*: (Expecting property name|Illegal trailing comma)"),
    "second object": (b"{}\n{}", ", line 2, column 1: Extra data"),
    "cut off": (b'{"a": [1,\n2', ", line 2, column 2: Expecting ',' delimiter"),
    "byte order mark": (b"\xef\xbb\xbf{}", ", line 1, column 1: Unexpected UTF-8 BOM"),
    "not UTF-8": ('{\n"ä": "ä'.encode() + b"\xff", ", line 2, column 8: not UTF-8"),
    "control character": (b'{"a": "\x01"}', ", line 1, column 8: Invalid control character"),
    "lone surrogate": (b'{"a":\n "\\udc80"}', ", line 2, column 3: lone surrogate"),
    "nested": (b'{"a":' + b"[" * 127 + b"]" * 127 + b"}", ": nested deeper than 127 levels"),
    "nested bomb": (b"[" * 200_000, ": nested deeper than 127 levels"),
    "nested bomb of objects": (b'{"":' * 200_000, ": nested deeper than 127 levels"),
    "long integer": (b'{"a": -' + b"1" * 400 + b"}", r": an integer of 401 digits; the limit is 400"),
    "Git LFS pointer": (b"version https://git-lfs.github.com/spec/v1\n", ": it is a Git LFS pointer"),
    "web page": (b"<!doctype html>", ": it is a web page"),
}


@pytest.mark.parametrize(("text", "fact"), [*BROKEN_INDEXES.values(), *BROKEN_DOCUMENTS.values()])
def test_a_broken_index_is_an_error_that_says_where(tmp_path: Path, text: bytes, fact: str) -> None:
    with pytest.raises(IndexFileError, match=rf"^model\.safetensors\.index\.json.*{fact}.*\.$"):
        index_of(tmp_path, text)


@pytest.mark.parametrize(("text", "fact"), BROKEN_DOCUMENTS.values(), ids=BROKEN_DOCUMENTS)
def test_a_broken_config_is_an_error_that_says_where(tmp_path: Path, text: bytes, fact: str) -> None:
    with pytest.raises(IndexFileError, match=rf"^config\.json{fact}.*\.$"):
        config_of(tmp_path, text)


def test_a_config_is_read_as_the_json_module_reads_it(tmp_path: Path) -> None:
    text = b'\n{"a": {"b": [1, -2.5, null, true]}, "limit": Infinity, "n": NaN, "\\ud83d\\ude00": "\\\\ud800", "a": 1}'
    config = config_of(tmp_path, text)
    assert repr(config) == repr(json.loads(text))


def test_a_config_may_be_nested_127_levels(tmp_path: Path) -> None:
    text = b'{"a":' + b"[" * 126 + b"]" * 126 + b"}"
    assert config_of(tmp_path, text) == json.loads(text)


def test_a_folder_without_config_has_none(tmp_path: Path) -> None:
    assert read_config(Folder(tmp_path)) is None


def test_a_config_beyond_the_limit_is_refused(tmp_path: Path) -> None:
    assert config_of(tmp_path, b"{}".ljust(MAX_CONFIG)) == {}
    with pytest.raises(IndexFileError, match=r"config\.json: it has 10,000,001 bytes; the limit is 10,000,000"):
        config_of(tmp_path, b"{}".ljust(MAX_CONFIG + 1))


def test_a_folder_in_place_of_the_config_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "config.json").mkdir()
    with pytest.raises(IndexFileError, match=r"config\.json: it is a folder, not a file"):
        read_config(Folder(tmp_path))


def test_a_pipe_in_place_of_the_config_is_an_error_and_no_wait(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(IndexFileError, match=r"config\.json: it is a named pipe, not a file"):
        read_config(Folder(tmp_path))


def test_a_dangling_link_is_not_taken_for_no_config(tmp_path: Path) -> None:
    (tmp_path / "config.json").symlink_to("../blobs/gone")
    with pytest.raises(IndexFileError, match=r"config\.json: a symbolic link to a file that does not exist"):
        read_config(Folder(tmp_path))


@pytest.mark.parametrize(
    "name",
    [
        "",
        "/etc/passwd",
        "..",
        "../x",
        "a/../../x",
        "a/..",
        "a\\b",
        "..\\x",
        "C:x",
        "c:/x",
        "a\0b",
        "//server/x",
        "a/../x",
    ],
)
def test_names_that_lead_out_of_the_folder(name: str) -> None:
    assert leaves_folder(name)


@pytest.mark.parametrize(
    "name", ["x.safetensors", "a/b.safetensors", "...", "a..b", "..a/b", "a/..b", "ä:x", "12:x", "~", "./x"]
)
def test_names_that_stay_in_the_folder(name: str) -> None:
    assert not leaves_folder(name)


@pytest.mark.parametrize(
    ("total", "value"), [(b"12", 12), (b"12.0", 12.0), (b'"12"', "12"), (b"true", True), (b"1e400", math.inf)]
)
def test_total_size_is_kept_as_it_stands(tmp_path: Path, total: bytes, value: object) -> None:
    index = index_of(tmp_path, b'{"weight_map":{},"metadata":{"total_size":%b}}' % total)
    assert index.total_size == value
    assert type(index.total_size) is type(value)
