"""cast-dtype: the config gives way where it would ruin the weights, and every lossy cast says what it loses."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import Array, Raw, bfloat16, healthy, in_bfloat16, tiny_gemma3_config, tiny_gemma3n_config
from plans import admit, diagnose, left_alone, mended, plan_for

from gemma_doctor.examination import Examination
from gemma_doctor.plans import Cast, Plan, SetConfig

Q, K = (f"model.layers.0.self_attn.{part}_proj.weight" for part in "qk")
NORM = "model.norm.weight"


def tensors() -> dict[str, Array]:
    return dict(healthy(tiny_gemma3_config()))


def config(dtype: str) -> dict[str, Any]:
    return {**tiny_gemma3_config(), "dtype": dtype}


def casts(plan: Plan) -> dict[str, str]:
    return {edit.tensor: edit.dtype for edit in plan.edits if isinstance(edit, Cast)}


def settings(plan: Plan) -> dict[tuple[str, ...], object]:
    return {edit.path: edit.value for edit in plan.edits if isinstance(edit, SetConfig)}


def plan_of(
    folder: Path, stored: Mapping[str, Array | Raw], dtype: str, *, unsafe: bool = False
) -> tuple[Examination, Plan]:
    exam = admit(folder, stored, config(dtype))
    return exam, plan_for(exam, "GD203", "GD204", unsafe=unsafe)


def test_a_config_that_says_float16_above_bfloat16_is_corrected_in_every_section(tmp_path: Path) -> None:
    real = {
        **tiny_gemma3n_config(),
        "dtype": "float16",
        "text_config": {**tiny_gemma3n_config()["text_config"], "torch_dtype": "torch.float16"},
        "vision_config": {**tiny_gemma3n_config()["vision_config"], "dtype": "float32"},
        "audio_config": {**tiny_gemma3n_config()["audio_config"], "dtype": "float16"},
        "other": {"deep": {"dtype": "float16", "title": "float16"}, "quantization_config": {"dtype": "float16"}},
    }
    stored = in_bfloat16({Q: np.ones((4, 4), np.float32)})
    plan = plan_for(admit(tmp_path, stored, real), "GD203")
    assert settings(plan) == {
        ("dtype",): "bfloat16",
        ("text_config", "torch_dtype"): "bfloat16",
        ("audio_config", "dtype"): "bfloat16",
        ("other", "deep", "dtype"): "bfloat16",
    }
    assert casts(plan) == {}
    assert {edit.exactness for edit in plan.edits} == {"exact"}


def test_what_agreed_with_the_wrong_config_follows_it(tmp_path: Path) -> None:
    stored = {**in_bfloat16(tensors()), Q: tensors()[Q].astype(np.float16)}
    exam, plan = plan_of(tmp_path, stored, "float16")
    assert settings(plan) == {("dtype",): "bfloat16"}
    assert casts(plan) == {Q: "BF16"}
    assert all(mended(plan, finding) for finding in diagnose(exam, "GD203", "GD204"))


def test_a_config_with_more_bits_is_what_loaders_compute_already(tmp_path: Path) -> None:
    exam, plan = plan_of(tmp_path, in_bfloat16(tensors()), "float32")
    assert settings(plan) == {}
    assert casts(plan) == dict.fromkeys(tensors(), "F32")
    assert {edit.exactness for edit in plan.edits} == {"exact"}
    assert plan.left == ()
    assert exam.model.dtype == "float32"


def test_a_config_is_never_set_to_float16(tmp_path: Path) -> None:
    stored = {name: array.astype(np.float16) for name, array in tensors().items()}
    _, plan = plan_of(tmp_path, stored, "bfloat16")
    assert settings(plan) == {}
    assert casts(plan) == dict.fromkeys(tensors(), "BF16")
    assert {edit.exactness for edit in plan.edits} == {"rounded"}


def test_a_config_with_fewer_bits_gives_way(tmp_path: Path) -> None:
    _, plan = plan_of(tmp_path, tensors(), "bfloat16")
    assert settings(plan) == {("dtype",): "float32"}
    assert casts(plan) == {}


@pytest.mark.parametrize(
    ("value", "counts", "exactness"),
    [
        (1.0, (0, 0, 0), "rounded"),
        (2.0**-20, (0, 0, 1), "rounded"),
        (2.0**-26, (0, 1, 0), "lossy"),
        (70_000.0, (1, 0, 0), "lossy"),
        (65_519.0, (0, 0, 0), "rounded"),
        (65_520.0, (1, 0, 0), "lossy"),
    ],
)
def test_a_cast_to_float16_says_what_it_loses(
    tmp_path: Path, value: float, counts: tuple[int, int, int], exactness: str
) -> None:
    odd = np.ones((16, 16), np.float32)
    odd[0, 0] = value
    stored = {name: np.ones(array.shape, np.float16) for name, array in tensors().items()}
    exam, plan = plan_of(tmp_path, {**stored, Q: odd}, "float16", unsafe=True)
    (edit,) = plan.edits
    assert isinstance(edit, Cast)
    assert (edit.tensor, edit.dtype, edit.exactness) == (Q, "F16", exactness)
    assert tuple(edit.reason.evidence[key] for key in ("infinite", "flushed", "subnormal")) == counts
    strict = plan_for(exam, "GD203", "GD204")
    assert bool(strict.edits) is (exactness == "rounded")
    for finding in diagnose(exam, "GD203", "GD204"):
        assert mended(plan, finding)
        assert left_alone(strict, finding) is (exactness == "lossy")


def test_a_cast_to_bfloat16_that_would_overflow_needs_leave(tmp_path: Path) -> None:
    """3.4e38 is finite in float32 and inf in bfloat16."""
    odd = np.full((16, 16), 3.4e38, np.float32)
    stored = {**in_bfloat16(tensors()), Q: odd}
    _, plan = plan_of(tmp_path, stored, "bfloat16")
    assert plan.edits == ()
    assert "256 become inf" in plan.left[0].reason
    assert "--unsafe" in plan.left[0].reason


def test_a_projection_is_cast_like_its_siblings(tmp_path: Path) -> None:
    stored = {**in_bfloat16(tensors()), Q: tensors()[Q]}
    exam, plan = plan_of(tmp_path, stored, "bfloat16")
    assert casts(plan) == {Q: "BF16"}
    (edit,) = plan.edits
    assert edit.exactness == "rounded"
    assert edit.reason.rule == "GD203"
    assert "GD204: " in edit.reason.message
    assert {finding.rule for finding in diagnose(exam, "GD203", "GD204")} == {"GD203", "GD204"}


def test_without_a_config_siblings_still_agree(tmp_path: Path) -> None:
    stored: dict[str, Array | Raw] = {Q: np.ones((4, 4), np.float16), K: np.ones((4, 4), np.float32)}
    plan = plan_for(admit(tmp_path, stored, None), "GD203", "GD204")
    assert casts(plan) in ({K: "F16"}, {Q: "F32"})  # whichever the file lists first


def test_quantised_weights_are_left(tmp_path: Path) -> None:
    stored = {Q: Raw("F8_E4M3", (2, 2), bytes(4)), K: bfloat16(np.ones((2, 2)))}
    exam = admit(tmp_path, stored, None)
    plan = plan_for(exam, "GD204")
    assert plan.edits == ()
    assert all(left_alone(plan, finding) for finding in diagnose(exam, "GD204"))
    assert len(plan.left) == 1


def test_a_tensor_that_is_scaled_is_not_cast_to_float16_at_once(tmp_path: Path) -> None:
    real = {**tiny_gemma3n_config(), "dtype": "float16"}
    fusion = "model.vision_tower.timm_model.msfa.ffn.pw_proj.conv.weight"
    stored: dict[str, Array | Raw] = {
        name: array.astype(np.float16) for name, array in healthy(real).items() if array.ndim > 1 and array.size < 2000
    }
    gain = fusion.replace("pw_proj.conv", "pw_exp.bn")
    stored[gain] = healthy(real)[gain].astype(np.float16)
    weight = np.array(healthy(real)[fusion])
    weight.flat[0] = 98.0
    plan = plan_for(admit(tmp_path, {**stored, fusion: weight}, real), "GD104", "GD203")
    assert {type(edit).__name__ for edit in plan.edits if getattr(edit, "tensor", "") == fusion} == {"Scale"}
    assert [(item.rule, item.tensor) for item in plan.left] == [("GD203", fusion)]
    assert "repair the output once more" in plan.left[0].reason
