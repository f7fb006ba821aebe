"""Verifying a Hub repository: it is downloaded through the Hub's cache, and run from there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import torchvision_operators
from checkpoints import healthy, tiny_gemma3_config, write
from hub_server import COMMIT, hub, repository


def test_a_repository_is_verified_from_the_cache(tmp_path: Path) -> None:
    config = tiny_gemma3_config()
    tensors = healthy(config)
    tensors["model.embed_tokens.weight"][:, 0] = 30_000.0  # times sqrt(16) it leaves float16's range
    folder = write(tmp_path / "checkpoint", tensors, config)
    command = [sys.executable, torchvision_operators.__file__, "verify", "owner/sick", "--seq-len", "8"]
    with hub(sick=repository(folder)) as server:
        env = {**os.environ, **server.environment(tmp_path / "home")}
        done = subprocess.run(
            [*command, "--modality", "text", "--no-backward", "--reference", "none", "--json", "-"],
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
            env=env,
        )
        assert done.returncode == 1, done.stderr
        assert server.sent == sum(path.stat().st_size for path in folder.iterdir())
    document = json.loads(done.stdout)
    assert (document["source"]["uri"], document["source"]["revision"]) == ("owner/sick", COMMIT)
    first = next(finding for finding in document["findings"] if finding["rule"] == "GD401")
    assert first["evidence"]["module"] == "model.embed_tokens"
    assert list((tmp_path / "home").rglob(f"snapshots/{COMMIT}/*.safetensors"))
