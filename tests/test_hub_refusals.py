"""Repositories that cannot be read as asked: one sentence, and what to do next."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from checkpoints import write
from command import run
from hub_server import Hub, hub, repository


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tensors = {f"layers.{index}.weight": np.ones((64, 256), np.float32) for index in range(2)}
    return write(tmp_path_factory.mktemp("local") / "checkpoint", tensors, {"model_type": "other"})


@pytest.fixture
def server(folder: Path) -> Iterator[Hub]:
    files = repository(folder)
    with hub(name=files, terms=files, disabled=files, gated=files) as running:
        running.gated, running.terms = frozenset({"owner/gated"}), frozenset({"owner/terms"})
        running.disabled = frozenset({"owner/disabled"})
        running.renamed = {"owner/old": "owner/name"}
        yield running


LOG_IN = "'hf auth login', HF_TOKEN or --token."


@pytest.mark.parametrize("command", [["scan"], ["scan", "--download"], ["repair", "--dry-run"]], ids=" ".join)
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["owner/gated"], ["owner/gated: a gated repository, and this account has no access. Ask for it", LOG_IN]),
        (["owner/terms"], ["owner/terms: a gated repository, and this account has no access. Ask for it", LOG_IN]),
        (["owner/terms", "--token", "hf_other"], ["owner/terms: a gated repository", "accept the terms, at", LOG_IN]),
        (["owner/none"], ["no such repository at", "or it is private. Check the spelling; for a private one", LOG_IN]),
        (["owner/disabled"], ["owner/disabled: the repository has been disabled, and cannot be read. See http"]),
        (["owner/name", "--token", "hf_invalid"], ["refuses (401). Check the token: " + LOG_IN]),
        (["owner/name@v9"], ["owner/name: it has no branch, tag or commit 'v9'. See http"]),
        (["owner/name", "--revision", "a" * 40], [f"it has no branch, tag or commit '{'a' * 40}'. See http"]),
        (["hf://owner/name@dev/model.safetensors"], ["it has no branch, tag or commit 'dev'. See http"]),
        (["owner/name/none.gguf"], ["owner/name/none.gguf: the repository has no such file or folder. It has 2 files"]),
    ],
    ids=lambda value: " ".join(value)[:30] if isinstance(value, list) else None,
)
def test_one_sentence_and_a_next_step(
    command: list[str], arguments: list[str], words: list[str], server: Hub, tmp_path: Path
) -> None:
    env = {**server.environment(tmp_path), "HF_TOKEN": ""}
    done = run(command[0], *arguments, *command[1:], env=env)
    assert (done.code, done.out) == (2, "")
    (sentence,) = done.err.splitlines()
    for part in words:
        assert part in sentence
    assert "hf_other" not in sentence
    assert "hf_invalid" not in sentence


def test_a_renamed_repository_is_read_and_its_name_is_told(server: Hub, tmp_path: Path) -> None:
    env = server.environment(tmp_path)
    renamed = json.loads(run("scan", "owner/old", "--json", "-", env=env).out)
    named = json.loads(run("scan", "owner/name", "--json", "-", env=env).out)
    assert renamed["tensors"] == named["tensors"]
    told = "owner/old is called owner/name at the Hub now, and was read there: use that name"
    assert renamed["remarks"] == [told, *named["remarks"]]
    done = run("scan", "owner/old", "--download", "--quiet", env=env)
    assert done.code == 0, done.err
