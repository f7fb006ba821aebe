"""Scanning a Hub repository: the command line and the real client against a Hub on this machine."""

from __future__ import annotations

import io
import json
import os
import pty
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path

import numpy as np
import pytest
from checkpoints import write
from command import PLAIN, Done, call, run
from hub_server import COMMIT, Hub, hub, repository

NAMES = [f"model.{part}.{index}.weight" for part in ("vision_tower", "language_model") for index in range(6)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two shards of 1.2 MB, one tensor with an infinity."""
    random = np.random.default_rng(7)
    tensors = {name: random.normal(size=(200, 256)).astype(np.float32) for name in NAMES}
    tensors[NAMES[-1]][3, 4] = np.inf
    return write(tmp_path_factory.mktemp("local") / "checkpoint", tensors, {"model_type": "other"}, shards=2)


@pytest.fixture
def server(folder: Path) -> Iterator[Hub]:
    with hub(name=repository(folder)) as running:
        yield running


def scan(server: Hub, tmp_path: Path, *options: str | Path, **env: str) -> Done:
    environment = {**server.environment(tmp_path / "home"), **env}
    return run("scan", "owner/name", *options, env=environment)


def document(done: Done) -> dict[str, object]:
    assert done.out, done.err
    found: dict[str, object] = json.loads(done.out)
    return found


@cache
def scanned_here(folder: Path) -> dict[str, object]:
    return document(call("scan", folder, "--json", "-"))


def same(found: dict[str, object], folder: Path) -> None:
    """The report says of the repository what a scan of the folder says, bit for bit."""
    local = scanned_here(folder)
    for key in ("tensors", "findings", "coverage", "complete"):
        assert found[key] == local[key]
    assert isinstance(found["source"], dict)
    assert isinstance(local["source"], dict)
    assert found["source"] == {**local["source"], "uri": "owner/name", "revision": COMMIT}


def test_a_scan_of_the_hub_is_the_scan_of_the_folder(server: Hub, folder: Path, tmp_path: Path) -> None:
    done = scan(server, tmp_path, "--json", "-")
    assert done.code == 1
    same(document(done), folder)
    size = sum(path.stat().st_size for path in folder.iterdir())
    assert server.sent <= size
    assert not list((tmp_path / "home").rglob("*"))


def test_progress_is_of_the_bytes_that_are_selected(server: Hub, tmp_path: Path) -> None:
    server.latency = 0.3  # so that the bar is drawn meanwhile
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "gemma_doctor", "scan", "owner/name", "--include", "*vision_tower*"],
        env={**os.environ, **PLAIN, **server.environment(tmp_path / "home")},
        stdout=subprocess.DEVNULL,
        stderr=theirs,
    )
    os.close(theirs)
    with os.fdopen(ours, "rb", buffering=0) as terminal:
        shown = b"".join(iter(partial(_heard, terminal), b"")).decode()
    assert process.wait(60) == 0, shown
    selected = 6 * 200 * 256 * 4
    assert f"/{selected / 1e6:.1f} MB" in shown


def _heard(terminal: io.FileIO) -> bytes:
    """What a terminal shows next; nothing at its end, which Linux reports as EIO."""
    try:
        return terminal.read(4096)
    except OSError:
        return b""


def test_what_is_not_selected_is_not_fetched(server: Hub, folder: Path, tmp_path: Path) -> None:
    done = scan(server, tmp_path, "--include", "*vision_tower*", "--json", "-")
    assert done.code == 0, done.err
    selected = 6 * 200 * 256 * 4
    headers = sum(8 + int.from_bytes(path.read_bytes()[:8], "little") for path in folder.glob("*.safetensors"))
    documents = sum(path.stat().st_size for path in folder.glob("*.json"))
    assert selected <= server.sent <= 1.02 * selected + headers + documents


@pytest.mark.parametrize(
    ("mischief", "asked_again"),
    [
        ({"busy": [(503, {}), (429, {"Retry-After": "0"})]}, 2),
        ({"api_busy": [(502, {}), (429, {"Retry-After": "0"}), (500, {})]}, 0),
        ({"signatures": 1}, 2),
        ({"pause": 0.3}, 0),
    ],
    ids=["busy storage", "busy api", "expired signatures", "slow"],
)
def test_trouble_that_passes_changes_nothing(
    mischief: dict[str, object], asked_again: int, server: Hub, folder: Path, tmp_path: Path
) -> None:
    for name, value in mischief.items():
        setattr(server, name, value)
    same(document(scan(server, tmp_path, "--json", "-")), folder)
    gets = [request for request in server.requests if request.startswith("GET /") and "signature" in request]
    assert len(gets) >= 6 + asked_again  # two shards: the length, the header, the tensors
    assert not server.busy
    assert not server.api_busy


def test_a_server_is_waited_for_as_long_as_it_asks(server: Hub, tmp_path: Path) -> None:
    server.busy = [(429, {"Retry-After": "4"})]
    started = time.monotonic()
    assert scan(server, tmp_path, "--quiet").code == 1
    assert time.monotonic() - started > 4


def test_a_broken_connection_is_taken_up_from_the_last_byte(server: Hub, folder: Path, tmp_path: Path) -> None:
    server.cuts = 5
    same(document(scan(server, tmp_path, "--json", "-")), folder)
    assert server.cuts == 0
    assert server.sent <= sum(path.stat().st_size for path in folder.iterdir())  # nothing came twice


@pytest.mark.parametrize(
    ("mischief", "words"),
    [
        ({"lie": "whole"}, "status 200 in place of 206"),
        ({"lie": "longer"}, "Content-Length is"),
        ({"lie": "shorter"}, "Content-Length is"),
        ({"lie": "early"}, "the body ended 1 bytes before"),
        ({"lie": "range"}, "Content-Range is"),
        ({"lie": "total"}, "the file changed while it was read: it had"),
        ({"linked_tag": "0" * 64}, "the file changed while it was read: its content was"),
        ({"busy": [(500, {})] * 99}, "the server answers 500, 5 times in a row"),
        ({"busy": [(429, {"Retry-After": "9999"})]}, "it asks to wait for 9,999 s"),
        ({"busy": [(418, {})]}, "the server answers 418"),
        ({"tags": ["one", "two"]}, "the file changed while it was read: its ETag was"),
        ({"tags": ["one"] * 4}, "the file changed while it was read: its ETag was '\"one\"'"),  # after the headers
    ],
    ids=lambda value: "-".join(map(str, value.values()))[:20] if isinstance(value, dict) else "",
)
def test_what_cannot_be_trusted_is_an_error_and_no_figure(
    mischief: dict[str, object], words: str, server: Hub, tmp_path: Path
) -> None:
    for name, value in mischief.items():
        setattr(server, name, value)
    done = scan(server, tmp_path, "--json", "-")
    assert (done.code, done.out) == (2, "")
    assert words in done.err
    assert "Traceback" not in done.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["owner/none"], "no such repository at http"),
        (["owner/name", "--revision", "v9"], "it has no branch, tag or commit 'v9'"),
        (["owner/name@v9"], "it has no branch, tag or commit 'v9'"),
        (["owner/name@v9", "--revision", "v8"], "two revisions: v8 and v9"),
        (["owner/gated"], "accept the terms, at http"),
        (["owner/gated", "--token", "hf_wrong"], "'hf auth login'"),
        (["owner/pickled"], "Pickles can run code and are never loaded"),
        (["owner/empty"], "It has 1 file: README.md."),
        (["owner/parts"], "but below it: unet, vae."),
    ],
)
def test_a_repository_that_cannot_be_scanned(
    arguments: list[str], words: str, server: Hub, tmp_path: Path, folder: Path
) -> None:
    server.repos |= {
        "owner/gated": repository(folder),
        "owner/pickled": {"pytorch_model.bin": b"1"},
        "owner/empty": {"README.md": b"1"},
        "owner/parts": {"unet/a.safetensors": b"1", "vae/b.safetensors": b"2"},
    }
    server.gated = frozenset({"owner/gated"})
    done = run("scan", *arguments, env=server.environment(tmp_path))
    assert (done.code, done.out) == (2, "")
    assert words in done.err
    assert len(done.err.splitlines()) == 1


@pytest.mark.parametrize("how", ["--token", "HF_TOKEN"])
def test_a_token_opens_a_gated_repository_and_never_leaves_the_hub(how: str, server: Hub, tmp_path: Path) -> None:
    server.gated = frozenset({"owner/name"})
    options = ["--token", server.token] if how == "--token" else []
    done = scan(server, tmp_path, *options, HF_TOKEN="" if options else server.token)
    assert done.code == 1, done.err  # the storage answers 400 to a token


def test_an_endpoint_that_is_not_there(tmp_path: Path) -> None:
    done = run("scan", "owner/name", env={"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path)})
    assert done.code == 2
    assert "http://127.0.0.1:9 cannot be reached" in done.err
    assert "HF_ENDPOINT" in done.err


def test_a_path_wins_and_a_missing_file_is_no_repository(server: Hub, folder: Path, tmp_path: Path) -> None:
    done = run("scan", "owner/model.safetensors", env=server.environment(tmp_path))
    assert (done.code, server.requests) == (2, [])
    assert "no such file or folder" in done.err
    done = run("scan", folder, "--revision", "main")
    assert done.code == 2
    assert "only Hub repositories (owner/name) have revisions" in done.err


def test_what_was_downloaded_is_read_from_the_cache(server: Hub, folder: Path, tmp_path: Path) -> None:
    same(document(scan(server, tmp_path, "--download", "--json", "-")), folder)
    sent = server.sent
    assert sent == sum(path.stat().st_size for path in folder.iterdir())
    same(document(scan(server, tmp_path, "--json", "-")), folder)
    assert server.sent == sent
    server.requests.clear()
    same(document(scan(server, tmp_path, "--json", "-", HF_HUB_OFFLINE="1")), folder)
    assert not server.requests


def test_offline_and_not_cached(server: Hub, tmp_path: Path) -> None:
    done = scan(server, tmp_path, HF_HUB_OFFLINE="1")
    assert (done.code, server.requests) == (2, [])
    assert "owner/name is not in the Hub's cache" in done.err
    scan(server, tmp_path, "--download", "--quiet")
    next((tmp_path / "home").rglob("snapshots/*/model-00002*")).unlink()
    done = scan(server, tmp_path, HF_HUB_OFFLINE="1")
    assert done.code == 2
    assert "model-00002-of-00002.safetensors of owner/name is not in the Hub's cache" in done.err
    assert scan(server, tmp_path, "--quiet").code == 1  # the missing one is fetched


def test_faults_of_files_are_the_same_as_on_disk(folder: Path, tmp_path: Path) -> None:
    sick = tmp_path / "sick"
    shutil.copytree(folder, sick)
    first, second = sorted(sick.glob("*.safetensors"))
    first.write_bytes(first.read_bytes()[:-4])
    second.unlink()
    index = json.loads((sick / "model.safetensors.index.json").read_text())
    index["weight_map"]["out"] = "../out.safetensors"
    (sick / "model.safetensors.index.json").write_text(json.dumps(index))
    with hub(name=repository(sick)) as server:
        found = document(scan(server, tmp_path, "--json", "-"))
    local = document(call("scan", sick, "--json", "-"))
    assert found["findings"] == local["findings"]
    assert isinstance(local["findings"], list)
    assert {finding["rule"] for finding in local["findings"]} == {"GD001", "GD002", "GD003"}
