"""The comparison with other ways to run, on a tiny sick Gemma 3: every way is there, and the sick one shows."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny_models  # noqa: F401  # makes torchvision importable beside a torch for CPUs
from checkpoints import healthy, tiny_gemma3_multimodal_config, write
from repairs import carry_out, plan

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "gpu_peers.py"
CONFIG = tiny_gemma3_multimodal_config()


def sick(folder: Path) -> Path:
    """A residual stream beyond float16."""
    tensors = healthy(CONFIG)
    for name in tensors:
        if name.endswith(("post_attention_layernorm.weight", "post_feedforward_layernorm.weight")):
            tensors[name] += np.float32(2.0**14)
        if "embed_tokens" in name:
            tensors[name] *= np.float32(64)
    return write(folder, tensors, CONFIG)


def test_every_way_is_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = sick(tmp_path / "sick")
    mended = carry_out(plan(checkpoint, "rescale-residual"), checkpoint, tmp_path / "mended")
    out = tmp_path / "peers.json"
    words = [str(checkpoint), str(mended), "--device", "cpu", "--seq-len", "16", "--budget", "0", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["gpu_peers.py", *words])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    rows = json.loads(out.read_text())
    assert [row["modality"] for row in rows] == ["text", "image"] * 7
    for modality in ("text", "image"):
        found = {row["way"]: row for row in rows if row["modality"] == modality}
        plain, repaired = found["float16"], found["float16, repaired checkpoint"]
        assert plain["broken"] > 0
        assert plain["kl"] is None
        assert repaired["broken"] == 0
        assert 0 < repaired["kl"] < found["bfloat16"]["kl"]
        for way in ("float16, residual stream in float32 (published)", "float16, `guard`"):
            assert found[way]["kl"] < found["bfloat16"]["kl"]
        assert found["float16, clamped at 64504 as transformers' T5"]["kl"] > repaired["kl"]
    assert "| float16 | " in out.with_suffix(".md").read_text()
