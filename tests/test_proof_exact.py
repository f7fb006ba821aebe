"""Exact passes: transformers finds every tensor of the mended folder, and every output has the same bits.

Each test first shows what is wrong with the sick folder, by the real loader where it notices.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import (
    PUBLISHED,
    Tensors,
    bfloat16,
    healthy,
    in_bfloat16,
    plant_rows,
    plant_shared_kv,
    renamed,
    tiny_gemma3_config,
    tiny_gemma3_multimodal_config,
    tiny_gemma3n_config,
    tiny_gemma3n_text_config,
    without,
    write,
)
from repairs import carry_out, plan
from safetensors import safe_open
from tiny_models import answers, load

CONFIG = tiny_gemma3n_config()
STEM_BIAS = "model.vision_tower.timm_model.conv_stem.conv.bias"
TIED = [
    (tiny_gemma3_config(), "lm_head.weight", "model.embed_tokens.weight"),
    (tiny_gemma3_multimodal_config(), "language_model.lm_head.weight", "language_model.model.embed_tokens.weight"),
    (tiny_gemma3n_text_config(), "lm_head.weight", "model.embed_tokens.weight"),
]


def in_float32(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config of weights that are stored in float32."""
    return {**config, "dtype": "float32"}


def outputs(folder: Path) -> dict[str, torch.Tensor]:
    """What the model says; nothing may be missing, left over or of another shape."""
    loaded = load(folder)
    assert loaded.complaints == ()
    return answers(loaded.model)


def same(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> bool:
    """Whether all outputs are finite numbers, and the same bits."""
    finite = all(bool(value.isfinite().all()) and bool(value.any()) for value in one.values())
    return finite and one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def stored(folder: Path) -> dict[str, str]:
    """Name -> dtype of every tensor, by the official reader, which reads every byte of each."""
    found: dict[str, str] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            found |= {name: str(file.get_tensor(name).dtype) for name in file.keys()}  # noqa: SIM118
    return found


def mend(
    tmp_path: Path, tensors: Tensors, config: Mapping[str, Any], name: str, *, shards: int = 1
) -> tuple[Path, Path]:
    """The sick folder and what one pass makes of it, exactly."""
    sick = write(tmp_path / "sick", tensors, config, shards=shards)
    prescription = plan(sick, name)
    assert {(edit.pass_name, edit.exactness) for edit in prescription.edits} == {(name, "exact")}
    return sick, carry_out(prescription, sick, tmp_path / "mended")


@pytest.mark.parametrize("value", [0.0, 0.5])
def test_prune_shared_kv(tmp_path: Path, value: float) -> None:
    sound = healthy(CONFIG)
    planted = plant_shared_kv(sound, CONFIG, value)
    sick, mended = mend(tmp_path, planted, in_float32(CONFIG), "prune-shared-kv", shards=2)
    assert len(stored(sick)) == len(sound) + 6
    assert stored(mended).keys() == sound.keys()
    assert same(outputs(mended), answers(load(sick).model))


def test_prune_shared_kv_is_refused_for_a_loader_that_needs_the_tensors(tmp_path: Path) -> None:
    config = tiny_gemma3n_text_config()
    sick = write(tmp_path / "sick", plant_shared_kv(healthy(config), config), in_float32(config))
    assert len(plan(sick, "prune-shared-kv").edits) == 6
    refused = plan(sick, "prune-shared-kv", loader="transformers-pre-5.6")
    assert refused.edits == ()
    reasons = {left.reason for left in refused.left if left.rule == "GD201"}
    assert any("transformers-pre-5.6 needs it" in reason and "at random" in reason for reason in reasons)


@pytest.mark.parametrize(("config", "head", "embedding"), TIED, ids=["gemma3", "gemma3-multimodal", "gemma3n"])
def test_drop_tied_head(tmp_path: Path, config: Mapping[str, Any], head: str, embedding: str) -> None:
    sound = healthy(config)
    sick, mended = mend(tmp_path, {**sound, head: sound[embedding]}, in_float32(config), "drop-tied-head", shards=2)
    assert head in stored(sick)
    assert stored(mended).keys() == sound.keys()
    assert same(outputs(mended), answers(load(sick).model))


def test_rename_keys_of_names_that_transformers_5_does_not_find(tmp_path: Path) -> None:
    config = in_float32(tiny_gemma3_config())
    sound = healthy(config)
    stale = renamed(sound, "model.", "language_model.model.")
    sick, mended = mend(tmp_path, stale, config, "rename-keys", shards=2)
    assert len(load(sick).missing) >= len(sound)
    assert stored(mended).keys() == sound.keys()
    assert same(outputs(mended), outputs(write(tmp_path / "sound", sound, config)))


@pytest.mark.parametrize("prefix", ["model.", ""])
def test_rename_keys_of_names_that_transformers_5_writes(tmp_path: Path, prefix: str) -> None:
    """Today's transformers finds these names, older ones do not: the outputs are the same, the names the Hub's."""
    config = in_float32(tiny_gemma3_multimodal_config())
    sound = healthy(config)
    stale = renamed(sound, "vision_tower.vision_model.", f"{prefix}vision_tower.")
    if prefix:
        stale = renamed(stale, "multi_modal_projector.", "model.multi_modal_projector.")
        stale = renamed(stale, "language_model.model.", "model.language_model.")
    sick, mended = mend(tmp_path, stale, config, "rename-keys")
    assert not stored(sick).keys() & {name for name in sound if name.startswith("vision_tower.")}
    assert stored(mended).keys() == sound.keys()
    assert same(outputs(mended), outputs(sick))


def test_rename_keys_of_what_transformers_itself_saved(tmp_path: Path) -> None:
    config = in_float32(tiny_gemma3_multimodal_config())
    sound = write(tmp_path / "sound", healthy(config), config)
    loaded = load(sound)
    sick = tmp_path / "saved"
    loaded.model.save_pretrained(sick)
    prescription = plan(sick, "rename-keys")
    mended = carry_out(prescription, sick, tmp_path / "mended") if prescription.edits else sick
    assert stored(mended) == stored(sound)
    assert same(outputs(mended), outputs(sound))


def test_add_stem_bias(tmp_path: Path) -> None:
    sound = healthy(CONFIG)
    config = in_float32(CONFIG)
    sick, mended = mend(tmp_path, without(sound, STEM_BIAS), config, "add-stem-bias")
    assert load(sick).missing == (STEM_BIAS,)
    assert stored(mended).keys() == sound.keys()
    assert same(outputs(mended), outputs(write(tmp_path / "sound", sound, config)))


def test_cast_dtype_of_the_config(tmp_path: Path) -> None:
    """A config that says float16 above weights in bfloat16: ``dtype="auto"`` obeys it, and small weights are gone."""
    tensors = in_bfloat16(healthy(CONFIG))
    tiny = "model.language_model.norm.weight"
    tensors[tiny] = bfloat16(np.full(16, 2.0**-30))
    sick, mended = mend(tmp_path, tensors, {**CONFIG, "dtype": "float16"}, "cast-dtype")
    ruined, kept = (dict(load(folder, "auto").model.named_parameters())[tiny] for folder in (sick, mended))
    assert (ruined.dtype, bool(ruined.any())) == (torch.float16, False)
    assert (kept.dtype, set(kept.tolist())) == (torch.bfloat16, {2.0**-30})
    assert json.loads((mended / "config.json").read_text())["dtype"] == "bfloat16"
    assert (mended / "model.safetensors").read_bytes() == (sick / "model.safetensors").read_bytes()


def test_cast_dtype_of_tensors_to_a_wider_one(tmp_path: Path) -> None:
    odd = "model.language_model.layers.1.self_attn.k_proj.weight"
    tensors = healthy(CONFIG)
    sick, mended = mend(tmp_path, {**tensors, odd: bfloat16(tensors[odd])}, in_float32(CONFIG), "cast-dtype")
    assert stored(sick)[odd] == "torch.bfloat16"
    assert set(stored(mended).values()) == {"torch.float32"}
    assert same(outputs(mended), outputs(sick))


def test_upcast_conv(tmp_path: Path) -> None:
    sick, mended = mend(
        tmp_path, in_bfloat16(plant_rows(healthy(CONFIG), dict.fromkeys(PUBLISHED, 2.0**8))), CONFIG, "upcast-conv"
    )
    assert set(stored(sick).values()) == {"torch.bfloat16"}
    assert {name for name, dtype in stored(mended).items() if dtype == "torch.float32"} == PUBLISHED.keys()
    assert same(outputs(mended), outputs(sick))
