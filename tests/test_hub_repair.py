"""Repairing a Hub repository, and sending the mended copy to another."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from checkpoints import healthy, plant_published, tiny_gemma3n_config, write
from command import run
from hub_server import COMMIT, Hub, hub, repository


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Gemma 3n with the published convolutions, and a model card."""
    config = tiny_gemma3n_config()
    folder = write(tmp_path_factory.mktemp("sick") / "sick", plant_published(healthy(config)), config)
    (folder / "README.md").write_text("---\nlicense: gemma\n---\n# A model\n")
    return folder


@pytest.fixture
def server(folder: Path) -> Iterator[Hub]:
    with hub(sick=repository(folder)) as running:
        yield running


def tensors(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "gemma-doctor.json"}


def test_a_repair_of_the_hub_is_the_repair_of_the_folder(server: Hub, folder: Path, tmp_path: Path) -> None:
    env = {**server.environment(tmp_path / "home"), "HF_TOKEN": ""}
    server.gated = frozenset({"owner/sick"})
    arguments = ("repair", "owner/sick", "--token", server.token, "--output", tmp_path / "far")
    done = run(*arguments, env=env)
    assert done.code == 0, done.err
    assert run("repair", folder, "--output", tmp_path / "near").code == 0
    assert tensors(tmp_path / "far") == tensors(tmp_path / "near")
    manifest = json.loads((tmp_path / "far" / "gemma-doctor.json").read_text())
    assert f"owner/sick@{COMMIT}" in json.dumps(manifest)
