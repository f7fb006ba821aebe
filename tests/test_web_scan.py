"""Scanning by URL: web servers with and without ranges, and stores that fsspec reads."""

from __future__ import annotations

import json
import os
from pathlib import Path

import fsspec
import numpy as np
import pytest
from checkpoints import write
from command import Done, call, run
from web_server import Plain, Ranged, serving

from gemma_doctor.checkpoint import open_bytes, open_checkpoint
from gemma_doctor.errors import ChangedError

NAMES = [f"model.{part}.{index}.weight" for part in ("vision_tower", "language_model") for index in range(4)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two shards of 0.4 MB, one tensor with an infinity."""
    random = np.random.default_rng(7)
    tensors = {name: random.normal(size=(100, 256)).astype(np.float32) for name in NAMES}
    tensors[NAMES[-1]][3, 4] = np.inf
    return write(tmp_path_factory.mktemp("local") / "checkpoint", tensors, {"model_type": "other"}, shards=2)


def same(done: Done, near: Path | str) -> None:
    """What was scanned far is what a scan of the same files here says, but for its name."""
    assert done.code == 1, done.err
    local = json.loads(call("scan", near, "--json", "-").out)
    found = json.loads(done.out)
    for key in ("tensors", "findings", "coverage", "complete"):
        assert found[key] == local[key]
    assert found["source"]["files"] == local["source"]["files"]


@pytest.mark.parametrize("name", ["model-00002-of-00002.safetensors", "model.safetensors.index.json"])
def test_a_file_or_an_index_of_a_web_server(name: str, folder: Path) -> None:
    with serving(Ranged, folder) as url:
        same(run("scan", f"{url}/{name}", "--json", "-"), folder / name)


def test_only_what_is_selected_comes_from_a_web_server(folder: Path) -> None:
    class Counting(Ranged):
        sent = 0

    with serving(Counting, folder) as url:
        done = run("scan", f"{url}/model.safetensors.index.json", "--include", "*.vision_tower.*", "--quiet")
    assert done.code == 0, done.err
    selected = 4 * 100 * 256 * 4
    headers = sum(8 + int.from_bytes(path.read_bytes()[:8], "little") for path in folder.glob("*.safetensors"))
    documents = sum(path.stat().st_size for path in folder.glob("*.json"))
    assert selected <= Counting.sent <= 1.02 * selected + headers + documents


def test_a_file_that_changes_meanwhile_is_an_error(folder: Path) -> None:
    class Changing(Ranged):
        sent = 0

        @property
        def tag(self) -> str:  # type: ignore[override]  # it was a constant
            """Another one once the header has been sent."""
            return '"two"' if type(self).sent > 8 else '"one"'

    with serving(Changing, folder) as url:
        done = run("scan", f"{url}/model-00002-of-00002.safetensors", "--json", "-")
    assert (done.code, done.out) == (2, "")
    assert "the file changed while it was read" in done.err


def test_a_web_server_without_ranges_is_refused(folder: Path) -> None:
    with serving(Plain, folder) as url:
        done = run("scan", f"{url}/model-00001-of-00002.safetensors")
    assert (done.code, done.out) == (2, "")
    (sentence,) = done.err.splitlines()
    assert "status 200 in place of 206" in sentence
    assert "download" in sentence.lower()


def test_what_is_not_on_a_web_server(folder: Path) -> None:
    with serving(Ranged, folder) as url:
        done = run("scan", f"{url}/none.safetensors")
        assert (done.code, done.out) == (2, "")
        assert "the server has no such file" in done.err
    done = run("scan", f"{url}/model-00001-of-00002.safetensors")
    assert (done.code, done.out) == (2, "")
    assert "the server cannot be reached" in done.err


def test_a_folder_and_a_file_of_fsspec(folder: Path) -> None:
    same(run("scan", f"file://{folder}", "--json", "-"), folder)
    shard = "model-00002-of-00002.safetensors"
    same(run("scan", f"file://{folder}/{shard}", "--json", "-"), folder / shard)


def test_a_file_that_changes_after_its_header_was_read(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes((folder / "model-00001-of-00002.safetensors").read_bytes())
    checkpoint = open_checkpoint(f"file://{file}")
    tensor = next(iter(checkpoint.tensors.values()))
    with open_bytes(checkpoint) as files:
        assert files.sha256(tensor)
    os.utime(file, (0, 0))
    with pytest.raises(ChangedError, match="the file changed while it was read"), open_bytes(checkpoint) as files:
        files.sha256(tensor)


def test_a_folder_in_memory(folder: Path) -> None:
    memory = fsspec.filesystem("memory")
    for path in folder.iterdir():
        memory.pipe_file(f"/checkpoint/{path.name}", path.read_bytes())
    try:
        same(call("scan", "memory://checkpoint", "--json", "-"), folder)
    finally:
        memory.rm("/checkpoint", recursive=True)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("file://{}/none", "nothing is there"),
        ("file://{}", "no *.gguf in this folder. Check the URL.\n"),
        ("nosuch://bucket/x", "pip install 'gemma-doctor[remote]'"),
    ],
)
def test_a_url_that_cannot_be_scanned(url: str, words: str, tmp_path: Path) -> None:
    done = run("scan", url.format(tmp_path))
    assert (done.code, done.out) == (2, "")
    assert words in done.err
    assert len(done.err.splitlines()) == 1


def test_what_is_secret_in_a_url_stays_there(folder: Path) -> None:
    with serving(Ranged, folder) as address:
        server = address.removeprefix("http://")
        secret = f"http://user:PASSWORD@{server}/model-00001-of-00002.safetensors?X-Sig=SECRET"
        found = open_checkpoint(secret)
        missing = run("scan", secret.replace("00001-of", "00009-of"))
    assert found.uri == f"{address}/model-00001-of-00002.safetensors"
    assert missing.code == 2
    assert "PASSWORD" not in missing.err + missing.out
    assert "SECRET" not in missing.err + missing.out
