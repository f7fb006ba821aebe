"""What transformers makes no model of is told before gigabytes are fetched and torch is loaded."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from checkpoints import healthy, tiny_gemma3_config, write
from command import run
from ggufs import write as write_gguf
from hub_server import hub, repository

from gemma_doctor import doctor
from gemma_doctor.errors import UsageError

GGUF = "is GGUF, which llama.cpp runs; verify runs safetensors"


@pytest.fixture
def gguf(tmp_path: Path) -> Path:
    """A folder with a GGUF file and a config.json, as repositories of such files often have one."""
    (tmp_path / "gguf").mkdir()
    (tmp_path / "gguf" / "config.json").write_text('{"model_type": "llama"}')
    values = np.ones((4, 4), np.float32)
    return write_gguf(tmp_path / "gguf" / "model.gguf", {"output.weight": ("F32", values)})


def test_gguf_is_refused_with_what_to_do(gguf: Path) -> None:
    for source in (gguf, gguf.parent):
        with pytest.raises(UsageError, match=GGUF) as refused:
            doctor.verify(source)
        assert str(refused.value).startswith(f"{source} is GGUF")
        assert "quantization_config=GgufConfig(dequantize=True)" in str(refused.value)


def test_gguf_to_compare_with_is_refused_before_anything_runs(gguf: Path, tmp_path: Path) -> None:
    config = tiny_gemma3_config()
    told: list[str] = []
    with pytest.raises(UsageError, match=GGUF):
        doctor.verify(write(tmp_path / "checkpoint", healthy(config), config), against=gguf, step=told.append)
    assert told == []


def test_a_file_is_refused_and_its_folder_named(tmp_path: Path) -> None:
    config = tiny_gemma3_config()
    folder = write(tmp_path / "checkpoint", healthy(config), config)
    with pytest.raises(UsageError, match=f"is a file, and transformers loads folders: give {folder}"):
        doctor.verify(folder / "model.safetensors")


def test_torch_is_not_loaded_for_it(gguf: Path) -> None:
    """So it is told in no time, and without torch, too."""
    program = (
        "import sys, gemma_doctor.cli\n"
        "try: gemma_doctor.cli.app(sys.argv[1:])\n"
        "finally: print('torch' in sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "verify", str(gguf)], capture_output=True, text=True, check=False
    )
    assert (GGUF in done.stderr, done.stdout) == (True, "False\n"), done.stderr


def test_gguf_of_the_hub_is_not_downloaded(gguf: Path, tmp_path: Path) -> None:
    for source in ("owner/big", "owner/big/model.gguf"):
        with hub(big=repository(gguf.parent)) as server:
            done = run("verify", source, env={**os.environ, **server.environment(tmp_path / "home")})
        assert (done.code, server.sent) == (2, 0), done.err
        assert f"{source} {GGUF}" in done.err
