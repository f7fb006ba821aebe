"""Families that the architectures know nothing of: a sound one raises no alarm, and a planted overflow is named."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import tiny_models  # noqa: F401  # makes torchvision importable beside a torch for CPUs
import torch
import transformers

from gemma_doctor import doctor
from gemma_doctor.errors import UsageError
from gemma_doctor.records import Report
from gemma_doctor.verify.measures import Measures, Request

SIZES: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "vocab_size": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
PICTURES = {
    **{key: value for key, value in SIZES.items() if key.startswith(("hidden", "intermediate", "num"))},
    "image_size": 32,
    "patch_size": 16,
}
EXPERTS = {**SIZES, "num_key_value_heads": 1, "num_experts_per_tok": 2}
GPT2 = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32, "vocab_size": 64, "eos_token_id": 1}

FAMILIES: dict[str, tuple[Mapping[str, Any], str]] = {
    "Qwen2ForCausalLM": (SIZES | {"num_key_value_heads": 1}, "model.layers.1.self_attn.v_proj"),
    "Phi3ForCausalLM": (SIZES, "model.layers.1.self_attn.qkv_proj"),
    "GPT2LMHeadModel": (GPT2, "transformer.h.1.attn.c_attn"),  # tied, and its weights lie the other way
    "MixtralForCausalLM": (EXPERTS | {"num_local_experts": 2}, "model.layers.1.self_attn.q_proj"),
    "OlmoeForCausalLM": (EXPERTS | {"num_experts": 2}, "model.layers.1.self_attn.q_proj"),
    "MambaForCausalLM": (SIZES | {"state_size": 4}, "backbone.layers.1.mixer.in_proj"),
    "BertForMaskedLM": (SIZES, "bert.encoder.layer.1.attention.self.value"),
    "BertForSequenceClassification": (SIZES, "bert.encoder.layer.1.attention.self.value"),
    "ViTForImageClassification": (PICTURES, "vit.layers.1.attention.v_proj"),
    "SiglipVisionModel": (PICTURES, "encoder.layers.1.self_attn.v_proj"),
}
"""A class of transformers, its sizes, and a linear layer whose input is of order 1."""

SHORT = Measures(device="cpu", backward=False, request=Request(length=8))


def saved(folder: Path, name: str, sick: str | None = None) -> Path:
    """A model with random weights; where a layer is named, its weights are large, and fit float16."""
    torch.manual_seed(0)
    build = getattr(transformers, name)
    model = build(build.config_class(**FAMILIES[name][0]))
    if sick is not None:
        weight = model.get_submodule(sick).weight
        weight.data *= 40_000 / weight.abs().max()
    model.save_pretrained(folder)
    return folder


def verified(folder: Path, measures: Measures = SHORT) -> Report:
    with torch.enable_grad():
        return doctor.verify(folder, measures)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_sound_model_of_any_family_raises_no_alarm(tmp_path: Path, name: str) -> None:
    report = verified(saved(tmp_path, name))
    assert (report.findings, doctor.exit_code(report)) == ((), 0)


@pytest.mark.parametrize("name", FAMILIES)
def test_an_overflow_in_any_family_is_named_with_its_weight(tmp_path: Path, name: str) -> None:
    """The layer, and of its weight and its bias, which is 0, the one that made it."""
    sick = FAMILIES[name][1]
    report = verified(saved(tmp_path, name, sick))
    (found,) = (finding for finding in report.findings if finding.rule == "GD401")
    assert found.evidence["module"] == sick
    assert found.tensor in {f"{sick}.weight", None}  # None where the running model has names of its own
    assert f"It read {sick}.weight up to 40,000, " in found.message


def test_transformers_says_nothing_while_it_runs(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Of GPT-2's loss it would warn, once in a process."""
    transformers.utils.logging.warning_once.cache_clear()
    folder = saved(tmp_path, "GPT2LMHeadModel")
    capfd.readouterr()
    verified(folder)
    assert capfd.readouterr() == ("", "")


def test_a_text_beyond_the_positions_that_a_model_has_is_told_with_the_option(tmp_path: Path) -> None:
    folder = saved(tmp_path, "GPT2LMHeadModel")
    with pytest.raises(UsageError, match="These are 33 tokens, and its config names 32 positions: shorten with --seq"):
        verified(folder, Measures(device="cpu", backward=False, request=Request(length=33)))
    assert doctor.exit_code(verified(folder, Measures(device="cpu", backward=False, request=Request(length=32)))) == 0


def test_a_picture_is_given_to_paligemma(tmp_path: Path) -> None:
    """How many tokens stand for it is the text model's number."""
    text = {**SIZES, "model_type": "gemma", "num_key_value_heads": 1, "head_dim": 8}
    vision = {**PICTURES, "model_type": "siglip_vision_model", "vision_use_head": False}
    config = transformers.PaliGemmaConfig(
        text_config=text, vision_config=vision, image_token_index=63, projection_dim=16, hidden_size=16
    )
    transformers.PaliGemmaForConditionalGeneration(config).save_pretrained(tmp_path)
    report = verified(tmp_path)
    assert report.verification is not None
    assert [run.modality for run in report.verification.runs] == ["text", "image"]
    assert (report.findings, doctor.exit_code(report)) == ((), 0)
