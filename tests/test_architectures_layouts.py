"""Which of the known ways of naming tensors a checkpoint uses."""

from __future__ import annotations

import re
from collections.abc import Callable

import checkpoints
import pytest

from gemma_doctor.architectures import detect_layout, identify
from gemma_doctor.architectures.base import KeyLayout, Model

TEXT = checkpoints.tiny_gemma3_config()
MULTIMODAL = checkpoints.tiny_gemma3_multimodal_config()
TEXT_3N = {**checkpoints.tiny_gemma3n_config()["text_config"], "architectures": ["Gemma3nForCausalLM"]}
MULTIMODAL_3N = checkpoints.tiny_gemma3n_config()

Renaming = Callable[[str], str]


def _same(name: str) -> str:
    return name


def _state(name: str) -> str:
    """As in the memory of transformers 4.52 to 5: everything but the head below ``model.``."""
    if name.startswith("language_model.lm_head."):
        return name.removeprefix("language_model.")
    return "model." + re.sub(r"^language_model\.model\.", "language_model.", name)


def _fresh(name: str) -> str:
    """As transformers 5 saves a model that never was loaded."""
    return name.replace("vision_tower.vision_model.", "vision_tower.")


def _state_5(name: str) -> str:
    return _state(_fresh(name))


def _prefixed(name: str) -> str:
    return f"language_model.{name}"


def _bare(name: str) -> str:
    return name.removeprefix("model.")


def _deeper(name: str) -> str:
    return re.sub(r"^model\.", "model.language_model.", name)


def _layout(model: Model, rename: Renaming) -> KeyLayout:
    found = detect_layout(model, [rename(name) for name in model.expected])
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("config", "rename", "position", "stale"),
    [
        (TEXT, _same, 0, None),
        (TEXT, _prefixed, 1, "transformers 5"),
        (TEXT, _bare, 2, "transformers 4.53"),
        ({**TEXT, "architectures": ["Gemma3TextModel"]}, _same, 0, None),
        ({**TEXT, "architectures": ["Gemma3TextModel"]}, "model.{}".format, 1, "transformers 4.53"),
        (MULTIMODAL, _same, 0, None),
        (MULTIMODAL, _state, 1, "llama.cpp"),
        (MULTIMODAL, _fresh, 2, "transformers 4.53"),
        (MULTIMODAL, _state_5, 3, "transformers 4.53"),
        (TEXT_3N, _same, 0, None),
        (TEXT_3N, _deeper, 1, None),
        (TEXT_3N, _bare, 2, None),
        (MULTIMODAL_3N, _same, 0, None),
        (MULTIMODAL_3N, _bare, 1, "vLLM"),
    ],
)
def test_a_layout_is_recognised_and_translated(
    config: checkpoints.Config, rename: Renaming, position: int, stale: str | None
) -> None:
    model = identify(config)
    layout = _layout(model, rename)
    assert layout is model.layouts[position]
    assert {name: model.canonical(rename(name), layout) for name in model.expected} == {n: n for n in model.expected}
    assert layout.stale is None if stale is None else stale in str(layout.stale)


def test_the_head_of_a_hub_checkpoint_is_found_without_its_prefix() -> None:
    model = identify(MULTIMODAL)
    assert model.canonical("lm_head.weight", model.layouts[0]) == "language_model.lm_head.weight"


def test_the_layout_that_explains_most_names_wins() -> None:
    model = identify(MULTIMODAL)
    towers = [name for name in model.expected if "vision_tower" in name]
    assert detect_layout(model, [*map(_fresh, towers), towers[0]]) is model.layouts[2]
    assert detect_layout(model, [*towers, _fresh(towers[0])]) is model.layouts[0]
    assert detect_layout(model, [*towers, "model.language_model.norm.weight"]) is model.layouts[1]  # explains both


def test_no_layout_where_no_name_is_known() -> None:
    assert detect_layout(identify(MULTIMODAL), ["conv1.weight", "fc.bias"]) is None
    assert detect_layout(identify(None), ["conv1.weight"]) is None


def test_layouts_try_longer_prefixes_first() -> None:
    for config in (TEXT, MULTIMODAL, TEXT_3N, MULTIMODAL_3N):
        for layout in identify(config).layouts:
            prefixes = [prefix for prefix, _ in layout.prefixes]
            shadowed = [(a, b) for i, a in enumerate(prefixes) for b in prefixes[i + 1 :] if b.startswith(a)]
            assert shadowed == []
