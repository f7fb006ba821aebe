"""Repositories with GGUF files, with several checkpoints, and single files and folders of a repository."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ggufs
import numpy as np
import pytest
from checkpoints import healthy, plant_published, tiny_gemma3n_config, write
from command import Done, call, run
from gguf.constants import GGUFValueType
from hub_server import COMMIT, Hub, hub, repository
from web_server import Ranged, serving

PARTS = [f"q8-0000{number}-of-00003.gguf" for number in (1, 2, 3)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two quantisations, one of them in three parts."""
    folder = tmp_path_factory.mktemp("gguf")
    rng = np.random.default_rng(7)
    for number, part in enumerate(PARTS):
        ggufs.write(folder / part, {f"blk.{number}.attn_k.weight": ("Q8_0", ggufs.random_blocks("Q8_0", (8, 64), rng))})
    ggufs.gemma3n(folder / "q4.gguf", (GGUFValueType.FLOAT32, 10.0))
    return folder


@pytest.fixture
def server(folder: Path) -> Iterator[Hub]:
    with hub(name=repository(folder)) as running:
        yield running


def document(done: Done) -> dict[str, Any]:
    assert done.out, done.err
    found: dict[str, Any] = json.loads(done.out)
    return found


def same(far: Done, near: Path) -> dict[str, Any]:
    """What a scan says far is what it says of the same files here."""
    found, local = document(far), document(call("scan", near, "--json", "-"))
    for key in ("tensors", "findings", "coverage", "complete", "remarks"):
        assert found[key] == local[key]
    assert found["source"]["files"] == local["source"]["files"]
    return found


def test_of_several_files_one_is_to_be_named(server: Hub, folder: Path, tmp_path: Path) -> None:
    env = server.environment(tmp_path)
    done = run("scan", "owner/name", env=env)
    assert (done.code, done.out) == (2, "")
    (sentence,) = done.err.splitlines()
    assert sentence.endswith(
        "owner/name: 2 GGUF files, each a model of its own: q4.gguf, q8-00001-of-00003.gguf. Name one: "
        "gemma-doctor scan owner/name/q4.gguf"
    )
    found = same(run("scan", "owner/name/q4.gguf", "--json", "-", env=env), folder / "q4.gguf")
    assert (found["source"]["uri"], found["source"]["revision"]) == ("owner/name/q4.gguf", COMMIT)
    assert {finding["rule"] for finding in found["findings"]} >= {"GD501"}
    done = run("scan", "owner/name/q5.gguf", env=env)
    assert (done.code, done.out) == (2, "")
    assert "owner/name/q5.gguf: the repository has no such file or folder. It has 4 files: q4.gguf, q8" in done.err


def test_one_file_alone_is_meant(folder: Path, tmp_path: Path) -> None:
    with hub(name={"q4.gguf": (folder / "q4.gguf").read_bytes()}) as server:
        same(run("scan", "owner/name", "--json", "-", env=server.environment(tmp_path)), folder / "q4.gguf")


def test_any_part_of_a_split_file_is_all_of_it(server: Hub, folder: Path, tmp_path: Path) -> None:
    found = same(
        run("scan", f"hf://owner/name@main/{PARTS[1]}", "--json", "-", env=server.environment(tmp_path)),
        folder / PARTS[1],
    )
    assert [tensor["file"] for tensor in found["tensors"]] == PARTS
    with serving(Ranged, folder) as url:
        same(run("scan", f"{url}/{PARTS[2]}", "--json", "-"), folder / PARTS[2])
    same(run("scan", f"file://{folder}/{PARTS[0]}", "--json", "-"), folder / PARTS[0])


@pytest.mark.parametrize("where", ["hub", "web", "fsspec"])
def test_a_part_that_is_missing_is_named_and_nothing_is_called_whole(where: str, folder: Path, tmp_path: Path) -> None:
    few = tmp_path / "few"
    shutil.copytree(folder, few)
    (few / PARTS[1]).unlink()
    with hub(name=repository(few)) as server, serving(Ranged, few) as url:
        sources = {"hub": f"owner/name/{PARTS[0]}", "web": f"{url}/{PARTS[0]}", "fsspec": f"file://{few}/{PARTS[0]}"}
        done = run("scan", sources[where], "--json", "-", env=server.environment(tmp_path))
    found = same(done, few / PARTS[0])
    assert (done.code, found["complete"]) == (2, False)
    assert f"{PARTS[1]}: only 2 of 3 shards are here" in found["coverage"]["skipped"][0]["reason"]


def test_more_parts_than_anybody_makes_are_not_asked_for(folder: Path) -> None:
    with serving(Ranged, folder) as url:
        done = run("scan", f"{url}/q8-00001-of-99999.gguf")
    assert (done.code, done.out) == (2, "")
    assert "q8-00001-of-99999.gguf: a file in 99,999 parts" in done.err


def test_what_is_not_read_beside_safetensors_is_said(server: Hub, folder: Path, tmp_path: Path) -> None:
    both = write(tmp_path / "both", {"a.weight": np.ones((40, 256), np.float32)}, {"model_type": "other"})
    shutil.copy(folder / "q4.gguf", both)
    server.repos["owner/both"] = repository(both)
    env = server.environment(tmp_path / "home")
    found = document(run("scan", "owner/both", "--json", "-", env=env))
    unproved, unread = found["remarks"]
    assert unproved.startswith("nothing is proved")
    assert unread == "not read: q4.gguf; these are other weights, to be scanned as SOURCES of their own"
    near = document(call("scan", both, "--json", "-"))
    assert (found["tensors"], found["remarks"]) == (near["tensors"], near["remarks"])
    assert run("scan", "owner/both", "--download", "--quiet", env=env).code == 0
    assert not list((tmp_path / "home").rglob("*.gguf"))


def test_a_folder_of_a_repository(folder: Path, tmp_path: Path) -> None:
    files = {f"{place}/{name}": raw for place in ("q", "r") for name, raw in repository(folder).items()}
    with hub(name={name: raw for name, raw in files.items() if "q8" in name}) as server:
        env = server.environment(tmp_path / "home")
        done = run("scan", "owner/name", env=env)
        assert done.code == 2
        assert "but below it: q, r. Give the folder, as in hf://owner/name/q." in done.err
        found = same(run("scan", "hf://owner/name/q", "--json", "-", env=env), folder / PARTS[0])
        assert found["source"]["uri"] == "hf://owner/name/q"
        same(run("scan", "hf://owner/name/q", "--download", "--json", "-", env=env), folder / PARTS[0])
        assert {path.parent.name for path in (tmp_path / "home").rglob("*.gguf")} == {"q"}
        same(run("scan", "hf://owner/name/q", "--json", "-", env={**env, "HF_HUB_OFFLINE": "1"}), folder / PARTS[0])


def test_a_file_of_a_repository_is_repaired_alone(server: Hub, folder: Path, tmp_path: Path) -> None:
    env = server.environment(tmp_path / "home")
    done = run(
        "repair", "owner/name/q4.gguf", "--output", tmp_path / "far", "--save-plan", tmp_path / "p.json", env=env
    )
    assert done.code == 0, done.err
    assert call("repair", folder / "q4.gguf", "--output", tmp_path / "near").code == 0
    far, near = repository(tmp_path / "far"), repository(tmp_path / "near")
    assert far.keys() == near.keys() == {"q4.gguf", "gemma-doctor.json"}
    assert far["q4.gguf"] == near["q4.gguf"]
    assert json.loads((tmp_path / "p.json").read_text())["source"] == f"owner/name@{COMMIT}/q4.gguf"
    assert [path.name for path in (tmp_path / "home").rglob("*.gguf")] == ["q4.gguf"]
    again = run(
        "repair", f"owner/name@{COMMIT}/q4.gguf", "--plan", tmp_path / "p.json", "--output", tmp_path / "2", env=env
    )
    assert again.code == 0, again.err
    assert repository(tmp_path / "2") == far


def test_an_index_and_a_file_of_a_subfolder_have_their_config(tmp_path: Path) -> None:
    config = tiny_gemma3n_config()
    near = write(tmp_path / "near", plant_published(healthy(config)), config, shards=2)
    index = "model.safetensors.index.json"
    with hub(name={f"sub/{name}": raw for name, raw in repository(near).items()}) as server:
        env = server.environment(tmp_path / "home")
        found = same(run("scan", f"owner/name/sub/{index}", "--json", "-", env=env), near / index)
        assert found["source"]["architecture"] == "gemma3n"
        arguments = ("repair", f"owner/name/sub/{index}", "--output", tmp_path / "far", "--quiet")
        assert run(*arguments, env=env).code == 0
    assert call("repair", near / index, "--output", tmp_path / "mended", "--quiet").code == 0
    far, mended = repository(tmp_path / "far"), repository(tmp_path / "mended")
    del far["gemma-doctor.json"], mended["gemma-doctor.json"]
    assert far == mended
