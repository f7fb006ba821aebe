"""A folder that holds a LoRA adapter: scanned as it is, and not verified without its base."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

import gemma_doctor
from gemma_doctor.errors import UsageError


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    layer = "base_model.model.model.layers.0.self_attn.{}_proj.lora_{}.weight"
    shapes = {layer.format(part, side): shape for part in "qv" for side, shape in (("A", (8, 64)), ("B", (64, 8)))}
    tensors = {name: rng.standard_normal(shape, np.float32) / 8 for name, shape in shapes.items()}
    save_file(tensors, tmp_path / "adapter_model.safetensors", {"format": "pt"})
    settings = {"peft_type": "LORA", "base_model_name_or_path": "google/gemma-3-1b-it", "r": 8}
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    return tmp_path


def test_an_adapter_is_scanned(adapter: Path) -> None:
    scanned = gemma_doctor.scan(adapter)
    assert (scanned.complete, len(scanned.tensors), scanned.findings) == (True, 4, ())
    assert {tensor.role for tensor in scanned.tensors} == {"linear"}


def test_an_adapter_is_not_verified_without_its_base(adapter: Path) -> None:
    with pytest.raises(UsageError, match=r"adapter.*base_model_name_or_path"):
        gemma_doctor.verify(adapter, device="cpu")
