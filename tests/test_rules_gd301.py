"""GD301: a residual stream beyond its limit is one finding that names its writers; what is proved gives none."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from checkpoints import (
    Array,
    healthy,
    renamed,
    tiny_gemma2_config,
    tiny_gemma3_config,
    tiny_gemma3_multimodal_config,
    tiny_gemma3n_config,
    tiny_gemma3n_text_config,
)
from examinations import examine, find

from gemma_doctor.records import Finding

GEMMA3, MULTIMODAL = tiny_gemma3_config(), tiny_gemma3_multimodal_config()
TEXT, FULL = tiny_gemma3n_text_config(), tiny_gemma3n_config()
POST = "layers.1.post_feedforward_layernorm.weight"


def findings(tensors: Mapping[str, Array], config: Mapping[str, Any]) -> list[Finding]:
    return find("GD301", examine(tensors, config))


def only(tensors: Mapping[str, Array], config: Mapping[str, Any]) -> Finding:
    (finding,) = findings(tensors, config)
    return finding


def louder(config: Mapping[str, Any], name: str, amount: float) -> dict[str, Array]:
    """Sound weights, with something added to every element of one tensor."""
    tensors = healthy(config)
    tensors[name] += np.float32(amount)
    return tensors


@pytest.mark.parametrize("config", [GEMMA3, MULTIMODAL, TEXT, FULL])
def test_a_healthy_model_gives_no_finding(config: Mapping[str, Any]) -> None:
    assert findings(healthy(config), config) == []


def test_one_finding_for_the_stream_names_its_largest_writers_and_the_bits() -> None:
    name = f"model.{POST}"
    tensors = louder(GEMMA3, name, 2.0**15)
    finding = only(tensors, GEMMA3)
    gain = np.abs(1 + tensors[name].astype(np.float64)).max()
    assert (finding.severity, finding.tensor) == ("warning", name)
    assert finding.repair is not None
    assert (finding.repair.pass_name, finding.repair.exactness) == ("rescale-residual", "eps")
    bound = float(str(finding.evidence["bound"]))
    assert 4 * gain < bound < 4 * gain * 1.08
    assert finding.evidence["bits_beyond"] == pytest.approx(math.log2(bound / 65504))
    assert (finding.evidence["value"], finding.evidence["writer 1"]) == ("model.layers.1", name)
    assert "the residual stream, which may reach" in finding.message
    assert "a bound that holds whatever the input, not a measurement" in finding.message
    assert "model.layers.0.post_attention_layernorm.weight (" in finding.message


def test_just_below_the_limit_there_is_no_finding() -> None:
    assert findings(louder(GEMMA3, f"model.{POST}", 12_000.0), GEMMA3) == []


def test_a_loud_embedding_is_a_writer() -> None:
    finding = only(louder(GEMMA3, "model.embed_tokens.weight", 2.0**15), GEMMA3)
    assert finding.tensor == "model.embed_tokens.weight"


def test_the_projector_of_images_is_a_writer() -> None:
    name = "multi_modal_projector.mm_input_projection_weight"
    finding = only(louder(MULTIMODAL, name, 2.0**13), MULTIMODAL)
    assert (finding.tensor, finding.repair is not None) == (name, True)


def test_names_are_those_on_disk() -> None:
    tensors = renamed(louder(GEMMA3, f"model.{POST}", 2.0**15), "model.", "language_model.model.")
    (finding,) = find("GD301", examine(tensors, GEMMA3))
    assert finding.tensor == f"language_model.model.{POST}"
    assert finding.evidence["writer 1"] == f"language_model.model.{POST}"


def test_values_inside_the_layers_are_one_note() -> None:
    tensors = healthy(GEMMA3)
    for layer in range(2):
        tensors[f"model.layers.{layer}.mlp.up_proj.weight"] *= np.float32(2.0**15)
    finding = only(tensors, GEMMA3)
    assert (finding.severity, finding.tensor) == ("note", None)
    assert finding.message.startswith("6 values inside the layers")
    assert finding.evidence["values"] == 6
    assert str(finding.evidence["value"]).endswith("mlp.down_proj")


def test_what_gemma_3n_squares_has_256_for_a_limit() -> None:
    finding = only(louder(TEXT, "model.embed_tokens.weight", 70.0), TEXT)
    assert (finding.evidence["limit"], finding.severity) == (256, "warning")
    assert findings(louder(TEXT, "model.embed_tokens.weight", 10.0), TEXT) == []


def test_with_image_and_sound_it_says_that_it_cannot_be_rescaled() -> None:
    name = "model.language_model.embed_tokens.weight"
    finding = only(louder(FULL, name, 70.0), FULL)
    assert finding.repair is None
    assert "It cannot be rescaled: the soft tokens" in finding.message


def test_what_goes_through_matrices_must_be_likely_as_well() -> None:
    """The image encoder's bounds leave 256 even where it is healthy; a layer scale of 1e4 makes it likely."""
    name = "model.vision_tower.timm_model.blocks.2.10.layer_scale.gamma"
    finding = only(louder(FULL, name, 1e4), FULL)
    assert (finding.tensor, finding.evidence["stream"]) == (name, "the image encoder's residual stream")
    assert finding.repair is None


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_is_left_to_other_rules(value: float) -> None:
    assert findings(louder(GEMMA3, f"model.{POST}", value), GEMMA3) == []


def test_for_bfloat16_it_is_silent() -> None:
    exam = examine(louder(GEMMA3, f"model.{POST}", 2.0**15), GEMMA3)
    assert find("GD301", replace(exam, target_dtype="bfloat16")) == []


def test_weights_that_a_loader_makes_infinite_are_left_to_gd102() -> None:
    tensors = louder(GEMMA3, f"model.{POST}", 1e5)
    assert findings(tensors, GEMMA3) == []
    assert find("GD102", examine(tensors, GEMMA3)) != []


def test_gemma_2_writes_its_scores_whatever_the_attention() -> None:
    config = tiny_gemma2_config()
    analysis, other = examine(healthy(config), config).ranges, examine(healthy(GEMMA3), GEMMA3).ranges
    assert (len(analysis.scores), len(other.scores)) == (0, 2)
    assert sum(item.value.name.endswith("(scores)") for item in analysis.written) == 2
    assert not any(item.value.name.endswith("(scores)") for item in other.written)
