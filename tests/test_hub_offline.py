"""HF_HUB_OFFLINE=1 with a cache that holds a part: never a smaller checkpoint that looks whole."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import write
from command import Done, call, run
from hub_server import Hub, hub, repository

FETCH = "import sys, huggingface_hub as h; [h.hf_hub_download('owner/name', name) for name in sys.argv[1:]]"
INDEX = "model.safetensors.index.json"
FIRST, SECOND, THIRD = (f"model-0000{number}-of-00003.safetensors" for number in (1, 2, 3))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tensors = {f"layers.{index}.weight": np.ones((64, 256), np.float32) for index in range(6)}
    return write(tmp_path_factory.mktemp("local") / "checkpoint", tensors, {"model_type": "other"}, shards=3)


@pytest.fixture
def server(folder: Path) -> Iterator[Hub]:
    with hub(name=repository(folder)) as running:
        yield running


def offline(server: Hub, home: Path, *fetched: str) -> Done:
    """Fetch single files, as other programs do; then scan what the cache has."""
    env = server.environment(home)
    if fetched:
        subprocess.run(
            [sys.executable, "-c", FETCH, *fetched], env={**os.environ, **env}, check=True, capture_output=True
        )
    server.requests.clear()
    done = run("scan", "owner/name", "--json", "-", env={**env, "HF_HUB_OFFLINE": "1"})
    assert not server.requests
    return done


@pytest.mark.parametrize(
    ("fetched", "missing"),
    [
        ([INDEX, FIRST], f"{SECOND}, {THIRD} of owner/name (2 files) are not in the Hub's cache"),
        ([INDEX, "config.json"], f"{FIRST}, {SECOND}, {THIRD} of owner/name (3 files) are not in the Hub's cache"),
        ([INDEX, FIRST, THIRD], f"{SECOND} of owner/name is not in the Hub's cache"),
        ([SECOND], f"{FIRST}, {THIRD} of owner/name (2 files) are not in the Hub's cache"),
    ],
)
def test_a_part_of_the_shards_is_an_error_that_names_the_others(
    fetched: list[str], missing: str, server: Hub, tmp_path: Path
) -> None:
    done = offline(server, tmp_path, *fetched)
    assert (done.code, done.out) == (2, "")
    (sentence,) = done.err.splitlines()
    assert missing in sentence
    assert sentence.endswith("Unset it, or run 'hf download owner/name' where there is a network.")


def test_what_an_index_names_and_the_cache_has_is_whole(server: Hub, folder: Path, tmp_path: Path) -> None:
    found = document(offline(server, tmp_path, INDEX, "config.json", FIRST, SECOND, THIRD))
    local = document(call("scan", folder, "--json", "-"))
    for key in ("tensors", "findings", "coverage", "complete", "remarks"):
        assert found[key] == local[key]


def test_where_nobody_can_know_a_remark_says_so(server: Hub, tmp_path: Path) -> None:
    server.repos["owner/name"] = {"one.safetensors": server.repos["owner/name"][FIRST], "two.safetensors": b""}
    found = document(offline(server, tmp_path, "one.safetensors"))
    remark, without_config = found["remarks"]
    assert without_config.startswith("there is no config.json")
    assert remark.startswith(
        "without a network nobody knows which files owner/name has: what the Hub's cache holds was"
    )
    assert remark.endswith("read (one.safetensors), and there may be more")


@pytest.mark.parametrize("gone", ["config.json", INDEX, THIRD])
def test_what_was_downloaded_once_and_is_gone_is_named(gone: str, server: Hub, tmp_path: Path) -> None:
    run("scan", "owner/name", "--download", "--quiet", env=server.environment(tmp_path))
    next(tmp_path.rglob(f"snapshots/*/{gone}")).unlink()
    done = offline(server, tmp_path)
    assert (done.code, done.out) == (2, "")
    assert f"{gone} of owner/name is not in the Hub's cache" in done.err


def document(done: Done) -> dict[str, Any]:
    assert done.out, done.err
    found: dict[str, Any] = json.loads(done.out)
    return found
