"""No rule finds fault with a sound checkpoint, and every rule that reads numbers or names finds its planted fault."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from checkpoints import (
    healthy,
    plant,
    plant_published,
    plant_shared_kv,
    tiny_gemma3_config,
    tiny_gemma3_multimodal_config,
    tiny_gemma3n_config,
    tiny_gemma3n_text_config,
    without,
)
from examinations import examine

from gemma_doctor.examination import Examination
from gemma_doctor.inspect.registry import RULES
from gemma_doctor.records import Finding

CONFIGS: Mapping[str, Mapping[str, Any]] = {
    "gemma3": tiny_gemma3_config(),
    "gemma3-multimodal": tiny_gemma3_multimodal_config(),
    "gemma3n": tiny_gemma3n_config(),
    "gemma3n-text": tiny_gemma3n_text_config(),
}
STEM_BIAS = "model.vision_tower.timm_model.conv_stem.conv.bias"


def verdict(exam: Examination) -> list[Finding]:
    return [finding for rule in RULES for finding in rule.check(exam)]


@pytest.mark.parametrize("family", CONFIGS)
def test_a_sound_checkpoint_gives_no_finding(family: str) -> None:
    config = {**CONFIGS[family], "dtype": "float32"}
    findings = verdict(examine(healthy(config), config))
    expected = [("GD106", "note", STEM_BIAS)] if family == "gemma3n" else []
    assert [(finding.rule, finding.severity, finding.tensor) for finding in findings] == expected


def test_a_sick_gemma3n_gets_all_its_findings_and_no_other() -> None:
    config = {**CONFIGS["gemma3n"], "dtype": "float16"}
    text = "model.language_model."
    sick = plant_shared_kv(plant_published(healthy(config)), config)
    sick = plant(sick, f"{text}norm.weight", np.nan)
    sick = plant(sick, f"{text}layers.0.mlp.up_proj.weight", 1e5)
    sick = plant(sick, f"{text}layers.1.mlp.up_proj.weight", 4e4)
    sick = plant(sick, f"{text}embed_tokens.weight", 300.0)
    sick |= {
        f"{text}layers.2.input_layernorm.weight": np.full(16, 1e-9, np.float32),
        f"{text}layers.3.input_layernorm.weight": np.zeros(16, np.float32),
        f"{text}layers.4.input_layernorm.weight": np.full(16, -0.7, np.float32),
        f"{text}layers.4.mlp.up_proj.weight": np.eye(32, 16, dtype=np.float32),
        f"{text}layers.5.mlp.up_proj.weight": np.ones((31, 16), np.float32),
        "lm_head.weight": np.ones((72, 16), np.float32),
        "stranger": np.ones(1, np.float32),
    }
    sick = without(sick, STEM_BIAS, f"{text}layers.0.mlp.gate_proj.weight")
    exam = examine({**sick, f"{text}layers.5.self_attn.q_proj.weight": np.ones((16, 16), np.float64)}, config)
    found = {finding.rule for finding in verdict(exam)}
    untouched = {"GD001", "GD002", "GD003", "GD004", "GD202", "GD209", "GD501", "GD502", "GD503"}  # the last: GGUF
    assert {rule.id for rule in RULES} - found == untouched


def test_findings_hold_json_scalars_and_plain_sentences() -> None:
    config = {**CONFIGS["gemma3n"], "dtype": "float16"}
    sick = plant_shared_kv(plant_published(healthy(config)), config)
    findings = verdict(examine(without(sick, STEM_BIAS), config))
    assert len({finding.rule for finding in findings}) == 5
    for finding in findings:
        assert finding.message.endswith(".")
        assert finding.tensor is None or finding.tensor not in finding.message
        for value in finding.evidence.values():
            assert value is None or isinstance(value, (str, int)) or np.isfinite(value)


def test_findings_come_in_model_order() -> None:
    config = CONFIGS["gemma3n"]
    names = list(healthy(config))
    exam = examine(plant_published(healthy(config)), config)
    for rule in RULES:
        order = [names.index(finding.tensor) for finding in rule.check(exam) if finding.tensor]
        assert order == sorted(order)
