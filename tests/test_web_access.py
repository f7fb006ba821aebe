"""What a web server or a store does not let everybody do: signed URLs, logins, tokens, buckets that are not listed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest
from checkpoints import write
from command import Done, call, run
from hub_server import Hub, hub, repository
from web_server import Ranged, serving

FILE = "model.safetensors"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One file with an infinity, and a config."""
    weight = np.ones((100, 256), np.float32)
    weight[3, 4] = np.inf
    tensors = {"model.a.weight": weight, "model.b.weight": np.ones((100, 256), np.float32)}
    return write(tmp_path_factory.mktemp("local") / "checkpoint", tensors, {"model_type": "other"})


def signed(status: int) -> type[Ranged]:
    """A server of URLs that are signed for a GET of one file, as S3's are; whatever is not, it answers so."""

    class Signed(Ranged):
        def refusal(self, path: Path) -> int | None:
            right = self.command == "GET" and parse_qs(urlsplit(self.path).query).get("sig") == [path.name]
            return super().refusal(path) if right else status

    return Signed


def document(done: Done) -> dict[str, Any]:
    assert done.code == 1, done.err
    found: dict[str, Any] = json.loads(done.out)
    return found


@pytest.mark.parametrize("status", [401, 403, 404, 405])
def test_a_url_that_is_signed_for_get_alone(status: int, folder: Path, tmp_path: Path) -> None:
    shutil.copy(folder / FILE, tmp_path)
    with serving(signed(status), folder) as url:
        done = run("scan", f"{url}/{FILE}?sig={FILE}", "--json", "-")
    if status == 405:  # no answer about the config
        assert (done.code, done.out) == (2, "")
        assert "config.json: the server answers 405" in done.err
        return
    found, local = document(done), document(call("scan", tmp_path / FILE, "--json", "-"))
    assert {key: found[key] for key in ("tensors", "findings")} == {key: local[key] for key in ("tensors", "findings")}
    refused = ["config.json beside it is refused, if it is there: a signature, or a permission, may be for one file"]
    assert found["remarks"] == [*(refused if status != 404 else []), *local["remarks"]]
    assert any("there is no config.json" in remark for remark in local["remarks"])
    assert f"sig={FILE}" not in done.out + done.err


def test_a_server_that_knows_no_head(folder: Path) -> None:
    class Headless(Ranged):
        def refusal(self, path: Path) -> int | None:
            return super().refusal(path) if self.command == "GET" else 405

    with serving(Headless, folder) as url:
        found = document(run("scan", f"{url}/{FILE}", "--json", "-"))
    local = document(call("scan", folder, "--json", "-"))
    assert {**found, "source": 0, "summary": 0} == {**local, "source": 0, "summary": 0}


@pytest.mark.parametrize("status", [401, 403])
def test_a_file_that_is_refused_is_an_error_with_a_next_step(status: int, folder: Path) -> None:
    with serving(signed(status), folder) as url:
        done = run("scan", f"{url}/{FILE}?sig=old")
    assert (done.code, done.out) == (2, "")
    (sentence,) = done.err.splitlines()
    assert f"{url}/{FILE}: the server refuses it ({status}). A signature may have expired: have a new URL" in sentence
    assert "sig=old" not in sentence


def test_an_empty_file_is_a_finding_as_on_disk(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(b"")
    with serving(Ranged, tmp_path) as url:
        far = json.loads(run("scan", f"{url}/{FILE}", "--json", "-").out)
    near = json.loads(call("scan", tmp_path / FILE, "--json", "-").out)
    assert far["findings"] == near["findings"]
    assert [finding["rule"] for finding in near["findings"]] == ["GD001"]


def test_a_login_in_the_url(folder: Path) -> None:
    class Basic(Ranged):
        def refusal(self, path: Path) -> int | None:
            right = self.headers.get("Authorization") == "Basic bWU6c2VjcmV0"  # me:secret
            return super().refusal(path) if right else 401

    with serving(Basic, folder) as url:
        done = run("scan", f"{url.replace('//', '//me:secret@')}/{FILE}", "--quiet")
        assert done.code == 1, done.err
        done = run("scan", f"{url}/{FILE}")
    assert (done.code, "put user:password@ before the host" in done.err) == (2, True)


class Listening(Ranged):
    """A server that keeps the tokens it is sent."""

    heard: list[str] = []  # noqa: RUF012  # the handler's class is the server's memory

    def refusal(self, path: Path) -> int | None:
        """As ever; the token is kept."""
        type(self).heard += self.headers.get_all("Authorization", [])
        return super().refusal(path)


@pytest.mark.parametrize("where", ["{}/model.safetensors", "file://{}", "{}"])
def test_a_token_is_for_the_hub_only(where: str, folder: Path) -> None:
    with serving(Listening, folder) as url:
        done = run("scan", where.format(url if where.endswith("s") else folder), "--token", "hf_secret")
    assert (done.code, done.out, Listening.heard) == (2, "", [])
    (sentence,) = done.err.splitlines()
    assert "out" in sentence
    assert "token" in sentence
    assert "hf_secret" not in sentence


@pytest.mark.parametrize("command", [["repair", "--dry-run"], ["verify"]], ids=" ".join)
def test_a_token_that_nobody_is_given_is_refused(command: list[str], folder: Path) -> None:
    done = run(command[0], folder, "--token", "hf_secret", *command[1:])
    assert (done.code, done.out) == (2, "")
    assert done.err == "gemma-doctor: --token is for the Hub, and no repository of it is named. Leave --token out\n"


def test_the_token_of_this_machine_goes_to_no_other_server(folder: Path) -> None:
    with serving(Listening, folder) as url:
        assert run("scan", f"{url}/{FILE}", "--quiet", env={"HF_TOKEN": "hf_secret"}).code == 1
    assert Listening.heard == []


@pytest.mark.parametrize("how", ["--token", "HF_TOKEN", ""])
def test_a_token_opens_a_url_of_the_hub_and_never_leaves_it(how: str, folder: Path, tmp_path: Path) -> None:
    with hub(name=repository(folder)) as server:
        server.gated = frozenset({"owner/name"})
        done = of_the_hub(server, how, tmp_path)
    if how:
        assert done.code == 1, done.err  # the storage, on another port, answers 400 to a token
        return
    assert (done.code, done.out) == (2, "")
    assert "the server refuses it (401). Log in with 'hf auth login', HF_TOKEN or --token, and accept" in done.err


def of_the_hub(server: Hub, how: str, tmp_path: Path) -> Done:
    """Scan a file by its address at the Hub, with the right token."""
    options = ["--token", server.token] if how == "--token" else []
    env = {**server.environment(tmp_path), "HF_TOKEN": server.token if how == "HF_TOKEN" else ""}
    return run("scan", f"{server.url}/owner/name/resolve/main/{FILE}", "--quiet", *options, env=env)


class Bucket(Ranged):
    """An S3 server whose user may get objects and not list them: what is missing is forbidden."""

    def refusal(self, path: Path) -> int | None:
        """Lists, and what is not there, are forbidden alike."""
        return 403 if "list-type" in self.path or super().refusal(path) else None


def test_an_object_of_a_bucket_that_may_not_be_listed(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    shutil.copy(folder / FILE, tmp_path / "models")
    with serving(Bucket, tmp_path) as url:
        env = {
            "AWS_ENDPOINT_URL": url,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": "a",
            "AWS_SECRET_ACCESS_KEY": "b",
        }
        done = run("scan", f"s3://models/{FILE}", "--json", "-", env=env)
        missing = run("scan", "s3://models/none.safetensors", env=env)
    found, local = document(done), document(call("scan", tmp_path / "models" / FILE, "--json", "-"))
    assert found["tensors"] == local["tensors"]
    assert "config.json beside it is refused" in str(found["remarks"])
    assert (missing.code, missing.out, len(missing.err.splitlines())) == (2, "", 1)
    assert "s3://models/none.safetensors" in missing.err
