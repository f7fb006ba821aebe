"""The declared names and shapes are those of the models that transformers and timm really build."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from checkpoints import (
    tiny_gemma3_config,
    tiny_gemma3_multimodal_config,
    tiny_gemma3n_config,
    tiny_gemma3n_text_config,
)
from tiny_models import answers, load, skeleton

from gemma_doctor import demo
from gemma_doctor.architectures import detect_layout, identify

CONFIGS: Mapping[str, Mapping[str, Any]] = {
    "gemma3": tiny_gemma3_config(),
    "gemma3-multimodal": tiny_gemma3_multimodal_config(),
    "gemma3n-text": tiny_gemma3n_text_config(),
    "gemma3n": tiny_gemma3n_config(),
    "demo": demo.CONFIG,
}
TIED = {"gemma3-multimodal": "language_model.lm_head.weight"}


@pytest.mark.parametrize("family", CONFIGS)
def test_every_tensor_of_the_real_model_is_declared_and_no_other(family: str) -> None:
    declared = identify(CONFIGS[family])
    state = {name: tuple(tensor.shape) for name, tensor in skeleton(CONFIGS[family]).state_dict().items()}
    layout = detect_layout(declared, state)
    real = {declared.canonical(name, layout): shape for name, shape in state.items()}
    head = TIED.get(family, "lm_head.weight")
    assert declared.expected[head].need == "tied-head"
    assert real == {name: tensor.shape for name, tensor in declared.expected.items() if tensor.need != "shared-kv"}


def test_the_demo_loads_and_answers_and_only_its_dead_tensors_are_left_over(tmp_path: Path) -> None:
    demo.build(tmp_path)
    loaded = load(tmp_path)
    assert (loaded.missing, loaded.mismatched) == ((), ())
    assert set(loaded.unexpected) <= identify(demo.CONFIG).shared_kv.keys()
    said = answers(loaded.model)
    assert {"logits", "image_hidden_states", "audio_hidden_states"} <= said.keys()
    assert all(bool(value.isfinite().all()) for value in said.values())
