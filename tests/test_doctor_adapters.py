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


def test_an_adapter_says_what_was_not_measured(adapter: Path) -> None:
    (remark,) = gemma_doctor.scan(adapter).remarks
    assert remark.startswith("this is an adapter")


def test_an_adapter_beside_a_model_is_named_and_counted_in_nothing(adapter: Path) -> None:
    save_file({"a.weight": np.ones((2, 2), np.float32)}, adapter / "model.safetensors", {"format": "pt"})
    scanned = gemma_doctor.scan(adapter)
    assert [tensor.info.name for tensor in scanned.tensors] == ["a.weight"]
    (remark,) = [remark for remark in scanned.remarks if remark.startswith("not read: adapter_model.safetensors")]
    assert "peft" in remark


def test_a_repair_says_that_an_adapter_beside_the_model_does_not_fit_any_more(adapter: Path, tmp_path: Path) -> None:
    names = ["a.weight", "checkpoint-1/b.weight"]
    (adapter / "checkpoint-1").mkdir()
    for name in names:
        file = f"{name.removesuffix('a.weight').removesuffix('b.weight')}model.safetensors"
        save_file({name: np.array([[np.inf]], np.float32)}, adapter / file, {"format": "pt"})
    plan = gemma_doctor.plan(gemma_doctor.scan(adapter), unsafe=True)
    assert plan.edits
    applied = gemma_doctor.repair(plan, output=tmp_path.parent / f"{tmp_path.name}-mended")
    assert [remark.partition(";")[0] for remark in applied.remarks] == [
        "adapter_model.safetensors: copied as it is",
        "checkpoint-1/: copied as it is",
    ]


def test_a_scan_without_a_config_says_what_it_did_without(adapter: Path) -> None:
    save_file({"a.weight": np.ones((2, 2), np.float32)}, adapter / "alone.safetensors")
    (remark,) = gemma_doctor.scan(adapter / "alone.safetensors").remarks
    assert remark.startswith("there is no config.json")
    (adapter / "config.json").write_text('{"model_type": "unheard-of"}')
    (remark,) = gemma_doctor.scan(adapter / "alone.safetensors").remarks
    assert remark.startswith("nothing is proved of what a float16 run computes: no bounds on activations are known for")


def test_a_model_without_a_config_is_not_verified(tmp_path: Path) -> None:
    save_file({"a.weight": np.ones((2, 2), np.float32)}, tmp_path / "model.safetensors")
    with pytest.raises(UsageError, match=r"holds no config\.json.*Copy the one"):
        gemma_doctor.verify(tmp_path, device="cpu")


def test_an_adapter_is_not_verified_without_its_base(adapter: Path) -> None:
    with pytest.raises(UsageError, match=r"adapter.*base_model_name_or_path"):
        gemma_doctor.verify(adapter, device="cpu")
