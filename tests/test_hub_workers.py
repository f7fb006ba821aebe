"""A Hub repository measured by other processes: the same figures, and another content is noticed."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import ggufs
import numpy as np
import pytest
from checkpoints import write
from command import call
from gguf.constants import GGUFValueType
from hub_server import COMMIT, Hub, hub, repository

from gemma_doctor.checkpoint import Checkpoint, open_checkpoint
from gemma_doctor.checkpoint.remote.filesystems import ObjectStore
from gemma_doctor.checkpoint.remote.hub_api import Access, HubFile
from gemma_doctor.checkpoint.remote.hub_store import HubStore
from gemma_doctor.checkpoint.remote.web import WebStore
from gemma_doctor.errors import ChangedError
from gemma_doctor.inspect.witness import Sighting, Site, Witness
from gemma_doctor.records import FileInfo
from gemma_doctor.tensors import TensorInfo

SCAN = """
import json, sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from gemma_doctor import scan
from gemma_doctor.inspect import units
from gemma_doctor.reports.machine import to_json

if __name__ == "__main__":
    with ProcessPoolExecutor(2, get_context("spawn")) as pool:
        print(to_json(scan("owner/name", executor=pool)))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    random = np.random.default_rng(7)
    tensors = {f"layers.{index}.weight": random.normal(size=(64, 256)).astype(np.float32) for index in range(8)}
    return write(tmp_path_factory.mktemp("local") / "checkpoint", tensors, {"model_type": "other"}, shards=2)


@pytest.fixture
def server(folder: Path) -> Iterator[Hub]:
    with hub(name=repository(folder)) as running:
        yield running


def test_other_processes_give_the_figures_of_the_folder(server: Hub, folder: Path, tmp_path: Path) -> None:
    script = tmp_path / "scanning.py"
    script.write_text(SCAN, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, script],
        env={**os.environ, **server.environment(tmp_path / "home")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found, local = json.loads(done.stdout), json.loads(call("scan", folder, "--json", "-").out)
    for key in ("tensors", "findings", "coverage", "complete"):
        assert found[key] == local[key]
    assert found["source"]["revision"] == COMMIT
    assert not list((tmp_path / "home").rglob("*.safetensors"))


def test_what_travels_with_a_unit_is_its_own_files_only(tmp_path: Path) -> None:
    """A repository may list thousands of files, and the metadata of a GGUF file hold a vocabulary."""
    files = {f"{n}.safetensors": HubFile(1 << 30, "0" * 64) for n in range(1000)}
    store = HubStore(Access("owner/name"), COMMIT, files)
    infos = tuple(FileInfo(name, file.size, {"much": "x" * 1000}, 1) for name, file in files.items())
    tensors = {name: TensorInfo(name, "U8", (1,), name, 8, 9) for name in files}
    hub_site = Site.of(Checkpoint("owner/name", tmp_path, "safetensors", infos, tensors, store=store), files)
    vocabulary = {"tokenizer.ggml.scores": (GGUFValueType.ARRAY, [0.5] * 60_000)}
    path = ggufs.write(tmp_path / "m.gguf", {"w": ("F32", np.ones((2, 2), np.float32))}, vocabulary)
    for site in (hub_site.only(["7.safetensors"]), Site.of(open_checkpoint(path), ["m.gguf"])):
        assert len(pickle.dumps(site)) < 1500
        assert len(site.checkpoint.files) == 1


def test_what_travels_shows_no_secret() -> None:
    """Some versions of Dask log the arguments of a task that fails."""
    stores = (
        HubStore(Access("owner/name", token="hf_secret"), COMMIT, {}),
        WebStore("https://user:secret@host/", "?signature=secret"),
        ObjectStore("s3://key:secret@bucket"),
    )
    for store in stores:
        site = Site.of(Checkpoint("https://secret", Path("/folder"), "safetensors", (), {}, store=store), ())
        assert "secret" not in repr((site, ()))


class Changing:
    """A store in which a file's content changes once."""

    streams = 1

    def __init__(self) -> None:
        self.answers = iter(["first", "second"])

    def identity(self, name: str) -> str:
        """Another content each time."""
        assert name == "model.safetensors"
        return next(self.answers)


def test_another_content_is_an_error() -> None:
    checkpoint = Checkpoint("s3://bucket", Path(), "safetensors", (), {}, store=Changing())  # type: ignore[arg-type]
    site = Site(checkpoint, {"model.safetensors": 8})
    assert site.unseen() is None
    witness = Witness(site)
    with pytest.raises(ChangedError, match=r"^model\.safetensors: .* sees a file with another header or content"):
        witness.hear(site.sight())
    witness.hear([Sighting("model.safetensors", "far", (0, 0, 0), "first")])
