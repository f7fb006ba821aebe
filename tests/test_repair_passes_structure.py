"""The passes that drop, add, rename, clamp and zero: what they mend, and where they refuse."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from checkpoints import (
    Array,
    Tensors,
    bfloat16,
    healthy,
    plant_shared_kv,
    renamed,
    tiny_gemma3_config,
    tiny_gemma3_multimodal_config,
    tiny_gemma3n_config,
    tiny_gemma3n_text_config,
    without,
)
from examinations import examine, find
from plans import admit, answers, only_left, only_mend, plan_for

from gemma_doctor.architectures.loaders import SHARED_KV_USE
from gemma_doctor.choices import LOADERS, Loader
from gemma_doctor.plans import Add, Cast, Clamp, Drop, Left, Rename, ZeroNonfinite

TEXT = tiny_gemma3n_text_config()
HEAD, TABLE = "lm_head.weight", "model.embed_tokens.weight"
STEM = "model.vision_tower.timm_model.conv_stem.conv."


@cache
def text() -> dict[str, Array]:
    return dict(healthy(TEXT))


@cache
def multimodal() -> dict[str, Array]:
    """Enough of a multimodal Gemma 3n to tell its layout."""
    whole = healthy(tiny_gemma3n_config())
    return {name: array for name, array in whole.items() if "conv_stem" in name or ".layers.0." in name}


# prune-shared-kv


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize(("rule", "value"), [("GD201", 0.0), ("GD202", 0.5)])
def test_shared_kv_is_dropped_for_loaders_that_share_and_kept_for_others(
    tmp_path: Path, rule: str, value: float, loader: Loader
) -> None:
    exam = replace(admit(tmp_path, plant_shared_kv(text(), TEXT, value), TEXT), loader=loader)
    plan = plan_for(exam, rule)
    if SHARED_KV_USE[exam.loader].needs:
        assert plan.edits == ()
        assert {item.tensor for item in plan.left} == set(exam.model.shared_kv)
        assert all(loader in item.reason and "donor's weights would be wrong" in item.reason for item in plan.left)
    else:
        assert all(isinstance(edit, Drop) for edit in plan.edits)
        assert {edit.tensor for edit in plan.edits if isinstance(edit, Drop)} == set(exam.model.shared_kv)
        assert plan.left == ()


def test_what_is_wrong_with_a_dropped_tensor_goes_with_it(tmp_path: Path) -> None:
    tensors = plant_shared_kv(text(), TEXT, math.nan)
    plan = plan_for(admit(tmp_path, tensors, TEXT), "GD101", "GD202")
    assert {type(edit) for edit in plan.edits} == {Drop}
    assert plan.left == ()


# drop-tied-head


@pytest.mark.parametrize(("equal", "drops"), [(True, True), (False, False), (None, False)])
def test_only_a_head_that_is_known_to_be_the_embedding_is_dropped(
    tmp_path: Path,
    *,
    equal: bool | None,
    drops: bool,
) -> None:
    tensors = {**text(), HEAD: text()[TABLE]}
    plan = plan_for(replace(admit(tmp_path, tensors, TEXT), tied_head_equal=equal), "GD208")
    assert [edit.tensor for edit in plan.edits if isinstance(edit, Drop)] == [HEAD] * drops
    assert [item.tensor for item in plan.left] == [HEAD] * (not drops)


# rename-keys


def test_names_of_a_stale_layout_become_the_hubs() -> None:
    config = tiny_gemma3_multimodal_config()
    sound = healthy(config)
    exam = examine(renamed(sound, "vision_tower.vision_model.", "vision_tower."), config)
    mend = only_mend(answers("rename-keys", exam, find("GD209", exam)))
    renames = {edit.tensor: edit.to for edit in mend.edits if isinstance(edit, Rename)}
    assert {renames.get(name, name) for name in exam.checkpoint.tensors} == set(sound)
    assert all(name.startswith("vision_tower.") for name in renames)
    assert len(renames) == len(mend.edits)


def test_a_name_that_is_taken_stops_the_renaming() -> None:
    config = tiny_gemma3_multimodal_config()
    sound = healthy(config)
    old = "vision_tower.vision_model.post_layernorm.weight"
    exam = examine({**renamed(sound, "vision_tower.vision_model.", "vision_tower."), old: sound[old]}, config)
    finding = find("GD209", exam)[0]
    refusal = only_left(answers("rename-keys", exam, [finding]))
    assert old in refusal.reason
    assert "two layouts are mixed" in refusal.reason


# add-stem-bias


def test_an_old_stem_gets_its_bias_of_zeros(tmp_path: Path) -> None:
    tensors = without(multimodal(), f"{STEM}bias")
    plan = plan_for(admit(tmp_path, tensors, tiny_gemma3n_config()), "GD210")
    (edit,) = plan.edits
    assert isinstance(edit, Add)
    assert (edit.tensor, edit.beside) == (f"{STEM}bias", f"{STEM}weight")
    assert (edit.dtype, edit.shape) == ("F32", multimodal()[f"{STEM}bias"].shape)


def test_the_bias_is_stored_and_named_as_its_weight_will_be(tmp_path: Path) -> None:
    """The weight is cast and renamed in the same plan."""
    config = {**tiny_gemma3n_config(), "dtype": "float32"}
    stale = renamed(without(multimodal(), f"{STEM}bias"), "model.", "")
    plan = plan_for(
        admit(tmp_path, {name: bfloat16(np.asarray(a)) for name, a in stale.items()}, config), "GD203", "GD209", "GD210"
    )
    (added,) = (edit for edit in plan.edits if isinstance(edit, Add))
    assert (added.tensor, added.dtype) == (f"{STEM}bias", "F32")
    assert added.beside == f"{STEM}weight".removeprefix("model.")
    renames = {edit.tensor: edit.to for edit in plan.edits if isinstance(edit, Rename)}
    assert renames[added.beside] == f"{STEM}weight"
    assert added.tensor not in renames.values()


def test_a_stem_without_its_weight_gets_no_bias() -> None:
    exam = examine(without(multimodal(), f"{STEM}bias", f"{STEM}weight"), tiny_gemma3n_config())
    assert "weight is missing too" in only_left(answers("add-stem-bias", exam, find("GD210", exam))).reason


# upcast-conv


def test_upcasting_takes_weight_and_bias_and_warns() -> None:
    tensors: Tensors = {
        "conv.weight": np.full((4, 4, 3, 3), 1000, np.float16),
        "conv.bias": np.zeros(4, np.float16),
        "other.bias": np.zeros(4, np.float16),
    }
    exam = examine(tensors)
    mend = only_mend(answers("upcast-conv", exam, find("GD104", exam)))
    assert [(edit.tensor, edit.dtype) for edit in mend.edits if isinstance(edit, Cast)] == [
        ("conv.weight", "F32"),
        ("conv.bias", "F32"),
    ]
    assert all("cast it back" in edit.reason.message and "--guard" in edit.reason.message for edit in mend.edits)


def test_a_convolution_in_float32_has_nothing_to_gain() -> None:
    exam = examine({"conv.weight": np.full((4, 4, 3, 3), 1000, np.float32)})
    assert "--guard" in only_left(answers("upcast-conv", exam, find("GD104", exam))).reason


# clamp-overflow and zero-nonfinite


@pytest.mark.parametrize(
    ("stored", "limit"),
    [
        (np.full((2, 2), 70_000, np.float32), 65504.0),
        (np.full((2, 2), 70_000, np.float64), 65504.0),
        (bfloat16(np.full((2, 2), 70_000)), 65280.0),
    ],
)
def test_overflow_is_cut_to_what_the_stored_dtype_holds(stored: Array, limit: float) -> None:
    exam = examine({"w": stored})
    (edit,) = only_mend(answers("clamp-overflow", exam, find("GD102", exam))).edits
    assert isinstance(edit, Clamp)
    assert (edit.limit, edit.exactness) == (limit, "lossy")
    dtype = exam.tensors["w"].info.dtype
    held = np.float32(limit).view(np.uint32)
    assert dtype != "BF16" or int(held) & 0xFFFF == 0


def test_nan_and_infinities_become_zeros() -> None:
    exam = examine({"w": np.array([1, math.nan, math.inf, -math.inf], np.float32)})
    (edit,) = only_mend(answers("zero-nonfinite", exam, find("GD101", exam))).edits
    assert isinstance(edit, ZeroNonfinite)
    assert edit.exactness == "lossy"
    assert edit.reason.message == "1 NaN and 2 infinities of 4 elements become 0."


@pytest.mark.parametrize("rule", ["GD101", "GD102"])
def test_what_changes_the_function_needs_leave(tmp_path: Path, rule: str) -> None:
    tensors = {"w": np.array([[1.0, 70_000.0, math.nan]], np.float32)}
    exam = admit(tmp_path, tensors, tiny_gemma3_config())
    plan = plan_for(exam, rule)
    assert plan.edits == ()
    assert isinstance(plan.left[0], Left)
    assert "needs --unsafe" in plan.left[0].reason
    assert len(plan_for(exam, rule, unsafe=True).edits) == 1
