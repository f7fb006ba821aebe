"""Repairing a Hub repository, and sending the mended copy to another."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from checkpoints import healthy, plant_published, tiny_gemma3n_config, write
from command import Done, call, run
from hub_server import COMMIT, Hub, hub, repository

from gemma_doctor import __version__
from gemma_doctor.checkpoint.remote.push import with_section
from gemma_doctor.errors import UsageError


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
    assert call("repair", folder, "--output", tmp_path / "near").code == 0
    assert tensors(tmp_path / "far") == tensors(tmp_path / "near")
    manifest = json.loads((tmp_path / "far" / "gemma-doctor.json").read_text())
    assert f"owner/sick@{COMMIT}" in json.dumps(manifest)


def push(server: Hub, folder: Path, tmp_path: Path, *options: str, **env: str) -> Done:
    environment = {**server.environment(tmp_path / "home"), "HF_TOKEN": server.token, **env}
    return run("repair", folder, "--output", tmp_path / "mended", "--push", "owner/new", *options, env=environment)


def test_what_is_pushed_is_the_folder_in_one_commit(server: Hub, folder: Path, tmp_path: Path) -> None:
    done = push(server, folder, tmp_path)
    assert done.code == 0, done.err
    assert f"Pushed to owner/new in one commit, model card included: {server.url}/owner/new/commit/1" in done.out
    sent = {name: raw for name, raw in server.repos["owner/new"].items() if name != ".gitattributes"}
    assert sent == repository(tmp_path / "mended")
    assert any(len(raw) > 10_000 for raw in server.uploaded.values())  # some went through LFS
    assert [header["summary"] for header in server.committed] == [f"Repaired by gemma-doctor {__version__}"]
    assert server.committed[0]["parentCommit"] == COMMIT
    listed = json.loads(sent["gemma-doctor.json"])["files"]
    assert {file["name"]: file["sha256"] for file in listed} == {
        name: hashlib.sha256(raw).hexdigest() for name, raw in sent.items() if name != "gemma-doctor.json"
    }


def test_the_card_keeps_its_metadata_and_says_what_was_done(server: Hub, folder: Path, tmp_path: Path) -> None:
    assert push(server, folder, tmp_path).code == 0
    card = server.repos["owner/new"]["README.md"].decode()
    assert card.startswith("---\nlicense: gemma\n---\n# A model\n")
    section = card.partition("## Repaired by gemma-doctor\n")[2]
    plan = json.loads((tmp_path / "mended" / "gemma-doctor.json").read_text())["plan"]
    assert f"with {len(plan['edits'])} edits" in section
    for edit in plan["edits"]:
        assert f"**{edit['pass']}** ({edit['exactness']}: " in section
    for left in plan["left"]:
        assert f"Left as it is: {left['rule']}" in section


def test_a_repaired_repository_is_the_base_of_what_is_pushed(server: Hub, tmp_path: Path) -> None:
    del server.repos["owner/sick"]["README.md"]
    environment = {**server.environment(tmp_path / "home"), "HF_TOKEN": server.token}
    arguments = ("repair", "owner/sick", "--output", tmp_path / "mended", "--push", "owner/new", "--quiet")
    assert run(*arguments, env=environment).code == 0
    card = server.repos["owner/new"]["README.md"].decode()
    assert card.startswith("---\nbase_model: owner/sick\n---\n## Repaired by gemma-doctor\n")
    assert f"owner/sick@{COMMIT}" in card.replace("&#8203;", "")


def test_a_repository_with_files_is_refused_before_the_work(server: Hub, folder: Path, tmp_path: Path) -> None:
    before = {".gitattributes": b"", "README.md": b"", "old.safetensors": b"old"}
    server.repos["owner/new"] = dict(before)
    done = push(server, folder, tmp_path)
    assert done.code == 2
    assert "holds files already (old.safetensors)" in done.err
    assert not (tmp_path / "mended").exists()
    assert server.repos["owner/new"] == before
    assert push(server, folder, tmp_path, "--force").code == 0
    assert server.repos["owner/new"] == {**repository(tmp_path / "mended"), ".gitattributes": b""}


@pytest.mark.parametrize("repo", ["new", "owner/new/x", "owner/a b"])
def test_a_name_that_no_repository_can_have_is_refused(repo: str, server: Hub, folder: Path, tmp_path: Path) -> None:
    environment = {**server.environment(tmp_path / "home"), "HF_TOKEN": server.token}
    done = run("repair", folder, "--output", tmp_path / "mended", "--push", repo, env=environment)
    assert done.code == 2
    assert done.err.startswith(f"gemma-doctor: --push {repo}: ")
    assert not (tmp_path / "mended").exists()


@pytest.mark.parametrize("options", [["--dry-run"], []])
def test_only_an_output_is_pushed(options: list[str], server: Hub, folder: Path, tmp_path: Path) -> None:
    environment = {**server.environment(tmp_path / "home"), "HF_TOKEN": server.token}
    done = run("repair", folder, "--push", "owner/new", *options, env=environment)
    assert (done.code, "give --output DIR" in done.err) == (2, True)
    assert not server.requests


def test_nobody_logged_in_is_refused_before_the_work(server: Hub, folder: Path, tmp_path: Path) -> None:
    done = push(server, folder, tmp_path, HF_TOKEN="")
    assert (done.code, "nobody is logged in" in done.err) == (2, True)
    assert not (tmp_path / "mended").exists()


@pytest.mark.parametrize(
    ("token", "read_only", "status"),
    [("hf_wrong", "", 401), ("hf_right", "/api/repos", 403), ("hf_right", "/api/models/owner/new/commit", 403)],
    ids=["wrong token", "may not create", "may not commit"],
)
def test_a_refused_upload_leaves_the_output_and_says_how_to_go_on(  # noqa: PLR0913, PLR0917  # parameters and fixtures
    token: str, read_only: str, status: int, server: Hub, folder: Path, tmp_path: Path
) -> None:
    server.read_only = read_only
    done = push(server, folder, tmp_path, HF_TOKEN=token)
    assert done.code == 2
    (sentence,) = done.err.splitlines()
    assert f"owner/new: {server.url} refuses the upload ({status}). The token must be allowed to write" in sentence
    assert sentence.endswith(f"push it again with: hf upload owner/new {tmp_path / 'mended'}")
    assert "## Repaired by gemma-doctor" in (tmp_path / "mended" / "README.md").read_text()
    assert call("scan", tmp_path / "mended", "--quiet").code == 0
    assert not server.committed


@pytest.mark.parametrize("metadata", ["[", "- a", "model-index: 3"])
def test_a_card_whose_metadata_cannot_be_read(metadata: str) -> None:
    with pytest.raises(UsageError, match=r"README\.md: the metadata at its top cannot be read"):
        with_section(f"---\n{metadata}\n---\n# A model\n", "## Section\n", None)


def test_a_card_without_metadata_gets_none() -> None:
    assert with_section("# A model\n", "## Section\n", None) == "# A model\n\n## Section\n"
    assert with_section("---\nbase_model: a/b\n---\nText", "## Section\n", "c/d").startswith(
        "---\nbase_model: a/b\n---\n"
    )


def test_a_link_to_a_file_outside_is_not_published(server: Hub, folder: Path, tmp_path: Path) -> None:
    secret = tmp_path / "id_rsa"
    secret.write_text("secret", encoding="utf-8")
    source = tmp_path / "source"
    shutil.copytree(folder, source)
    (source / "notes.txt").symlink_to(secret)
    done = push(server, source, tmp_path)
    assert_refused(done, "notes.txt", secret, tmp_path)
    assert not server.repos.get("owner/new")


def assert_refused(done: Done, link: str, secret: Path, tmp_path: Path) -> None:
    """Before the work, and without a word of how to send it all the same."""
    assert (done.code, done.out) == (2, "")
    (sentence,) = done.err.splitlines()
    assert sentence.startswith(f"gemma-doctor: {link}: a link to ")
    assert secret.name in sentence or "…" in sentence
    assert "outside the checkpoint, whose content would be published." in sentence
    assert "hf upload" not in sentence
    assert not (tmp_path / "mended").exists()


def test_it_is_the_source_that_is_looked_at_and_not_where_the_plan_was_made(
    server: Hub, folder: Path, tmp_path: Path
) -> None:
    plan, source, secret = tmp_path / "plan.json", tmp_path / "source", tmp_path / "id_rsa"
    assert call("repair", folder, "--dry-run", "--save-plan", plan, "--quiet").code == 0
    secret.write_text("secret", encoding="utf-8")
    shutil.copytree(folder, source)
    (source / "notes.txt").symlink_to(secret)
    assert_refused(push(server, source, tmp_path, "--plan", str(plan)), "notes.txt", secret, tmp_path)
    (source / "notes.txt").unlink()
    done = push(server, source, tmp_path, "--plan", str(plan))
    assert done.code == 0, done.err


def test_a_config_beside_a_single_file_is_no_link_to_elsewhere(server: Hub, folder: Path, tmp_path: Path) -> None:
    source, secret = tmp_path / "source", tmp_path / "config.json"
    source.mkdir()
    shutil.copy(folder / "config.json", secret)
    shutil.copy(folder / "model.safetensors", source)
    (source / "config.json").symlink_to(secret)
    (source / "unrelated").symlink_to(tmp_path / "plan.json")
    assert_refused(push(server, source / "model.safetensors", tmp_path), "config.json", secret, tmp_path)
    (source / "config.json").unlink()
    (source / "config.json").write_bytes(secret.read_bytes())
    done = push(server, source / "model.safetensors", tmp_path)
    assert done.code == 0, done.err


def test_hidden_files_are_not_published(server: Hub, folder: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(folder, source)
    (source / ".env").write_text("TOKEN=x", encoding="utf-8")
    done = push(server, source, tmp_path)
    assert done.code == 0, done.err
    pushed = server.repos["owner/new"]
    assert "config.json" in pushed
    assert ".env" not in pushed


@pytest.mark.parametrize("token", ["hf_secret ", "hf_sécret", "hf_secret\nx"])
def test_what_cannot_be_a_token_is_refused_and_not_shown(token: str, server: Hub, tmp_path: Path) -> None:
    done = run("scan", "owner/sick", "--token", token, env=server.environment(tmp_path / "home"))
    assert done.code == 2
    assert "--token holds a blank" in done.err
    assert token.strip() not in done.err + done.out


def test_a_cache_that_holds_a_part_is_not_taken_for_the_whole(server: Hub, folder: Path, tmp_path: Path) -> None:
    env = server.environment(tmp_path / "home")
    one = "from huggingface_hub import hf_hub_download as get; get('owner/sick', 'model.safetensors', revision=%r)"
    subprocess.run([sys.executable, "-c", one % COMMIT], env={**os.environ, **env}, check=True, capture_output=True)
    done = run("scan", f"owner/sick@{COMMIT}", "--download", "--json", "-", env=env)
    local = json.loads(call("scan", folder, "--json", "-").out)
    assert json.loads(done.out)["findings"] == local["findings"]
