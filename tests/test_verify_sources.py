"""What transformers makes no model of is told before gigabytes are fetched and torch is loaded."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny_models  # noqa: F401  # makes torchvision importable beside a torch for CPUs
import torch
from checkpoints import healthy, tiny_gemma3_config, write
from command import run
from gguf.constants import GGMLQuantizationType, GGUFValueType
from gguf.quants import quantize
from ggufs import write as write_gguf
from hub_server import hub, repository

from gemma_doctor import doctor
from gemma_doctor.errors import UsageError
from gemma_doctor.verify.measures import Measures, Request

PAGE = Path(__file__).parents[1] / "docs" / "verify.md"
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


WIDTH, WORDS = 32, [*"abcdefghijklmnopqrstuvwxyz", "ab"]
LLAMA = {
    "block_count": 1,
    "context_length": 64,
    "embedding_length": WIDTH,
    "feed_forward_length": WIDTH,
    "attention.head_count": 2,
    "attention.head_count_kv": 2,
    "rope.dimension_count": WIDTH // 2,
    "vocab_size": len(WORDS),
}


def tiny_llama(path: Path) -> Path:
    """A llama of one layer in blocks of Q4_1, with a tokenizer that knows letters."""
    rng = np.random.default_rng(0)
    shapes = {f"blk.0.{name}": WIDTH for name in ("attn_q", "attn_k", "attn_v", "attn_output")}
    shapes |= {f"blk.0.ffn_{name}": WIDTH for name in ("gate", "up", "down")} | {"token_embd": len(WORDS)}
    blocks = GGMLQuantizationType.Q4_1
    products = {
        f"{name}.weight": ("Q4_1", quantize(rng.normal(0, 0.02, (rows, WIDTH)).astype(np.float32), blocks))
        for name, rows in shapes.items()
    }
    norms = {f"{name}.weight": ("F32", np.ones(WIDTH, np.float32)) for name in ("output_norm", "blk.0.attn_norm")}
    sizes = {f"llama.{key}": (GGUFValueType.UINT32, value) for key, value in LLAMA.items()}
    words = {
        "llama.attention.layer_norm_rms_epsilon": (GGUFValueType.FLOAT32, 1e-5),
        "tokenizer.ggml.model": (GGUFValueType.STRING, "gpt2"),
        "tokenizer.ggml.tokens": (GGUFValueType.ARRAY, WORDS),
        "tokenizer.ggml.merges": (GGUFValueType.ARRAY, ["a b"]),
        "tokenizer.ggml.bos_token_id": (GGUFValueType.UINT32, 0),
        "tokenizer.ggml.eos_token_id": (GGUFValueType.UINT32, 1),
    }
    last = {"blk.0.ffn_norm.weight": ("F32", np.ones(WIDTH, np.float32))}
    return write_gguf(path, {**products, **norms, **last}, {**sizes, **words})


def test_what_transformers_writes_of_a_gguf_file_is_verified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the lines of docs/verify.md."""
    (tmp_path / "gguf").mkdir()
    tiny_llama(tmp_path / "gguf" / "model-Q4_1.gguf")
    monkeypatch.chdir(tmp_path)
    found = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    (lines,) = (content for content in found if "gguf" in content)
    exec(compile(lines, str(PAGE), "exec"), {})  # noqa: S102  # our own document
    with torch.enable_grad():
        report = doctor.verify("dequantised", Measures(device="cpu", backward=False, request=Request(length=8)))
    assert doctor.exit_code(report) == 0
    assert report.verification is not None
    assert report.verification.runs[0].inputs.startswith("1 x 8 tokens of the bundled texts")
