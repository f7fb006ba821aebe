"""GD201 to GD210: what the config, the architecture and the loader ask of the tensors."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from checkpoints import (
    Array,
    Raw,
    Tensors,
    healthy,
    in_bfloat16,
    plant,
    plant_shared_kv,
    renamed,
    tiny_gemma3_config,
    tiny_gemma3_multimodal_config,
    tiny_gemma3n_config,
    tiny_gemma3n_text_config,
    with_dtype,
    without,
)
from examinations import examine, find

from gemma_doctor.architectures.loaders import SHARED_KV_USE
from gemma_doctor.choices import LOADERS, Loader
from gemma_doctor.examination import Examination
from gemma_doctor.records import Fault, Finding

CONFIG = tiny_gemma3n_text_config()
SOUND = healthy(CONFIG)
SHARED = sorted(
    f"model.layers.{layer}.self_attn.{part}.weight" for layer in (4, 5) for part in ("k_norm", "k_proj", "v_proj")
)
GEMMA3 = tiny_gemma3_config()
MULTIMODAL = tiny_gemma3_multimodal_config()
EMBEDDING = "model.embed_tokens.weight"

STRUCTURE_RULES = [f"GD{number}" for number in range(201, 211)]


def repair(finding: Finding) -> tuple[str, str] | None:
    return (finding.repair.pass_name, finding.repair.exactness) if finding.repair else None


@pytest.mark.parametrize("rule", STRUCTURE_RULES)
@pytest.mark.parametrize("config", [CONFIG, GEMMA3, MULTIMODAL], ids=["gemma3n", "gemma3", "gemma3-multimodal"])
def test_healthy_checkpoints_give_no_finding(rule: str, config: Mapping[str, Any]) -> None:
    assert find(rule, examine(in_bfloat16(healthy(config)), config)) == []


@pytest.mark.parametrize("rule", [rule for rule in STRUCTURE_RULES if rule != "GD204"])
def test_without_a_config_nothing_is_asked(rule: str) -> None:
    tensors = plant_shared_kv(SOUND, CONFIG)
    assert find(rule, examine(without(tensors, EMBEDDING))) == []


# GD201 and GD202: layers that share KV


@pytest.mark.parametrize(("value", "zero", "dead"), [(0.0, SHARED, []), (0.5, [], SHARED)])
def test_shared_kv_is_reported_as_zero_or_as_dead(value: float, zero: list[str], dead: list[str]) -> None:
    exam = examine(plant_shared_kv(SOUND, CONFIG, value), CONFIG)
    assert sorted(str(finding.tensor) for finding in find("GD201", exam)) == zero
    assert sorted(str(finding.tensor) for finding in find("GD202", exam)) == dead
    assert find("GD106", exam) == []


def test_one_element_that_is_not_zero_makes_a_tensor_dead_and_not_zero() -> None:
    exam = examine(plant(plant_shared_kv(SOUND, CONFIG), SHARED[0], 1e-30, index=3), CONFIG)
    assert [finding.tensor for finding in find("GD202", exam)] == [SHARED[0]]
    assert len(find("GD201", exam)) == 5


@pytest.mark.parametrize(("rule", "value", "severity"), [("GD201", 0.0, "warning"), ("GD202", 1.0, "note")])
@pytest.mark.parametrize("loader", LOADERS)
def test_shared_kv_is_pruned_for_the_loader_that_does_without(
    rule: str, value: float, severity: str, loader: Loader
) -> None:
    exam = replace(examine(plant_shared_kv(SOUND, CONFIG, value), CONFIG), loader=loader)
    for finding in find(rule, exam):
        assert finding.severity == severity
        assert finding.evidence["loader"] == loader
        assert repair(finding) == (("prune-shared-kv", "exact") if loader == "transformers" else None)


def test_gd201_tells_layer_donor_and_what_each_loader_does() -> None:
    exam = examine(plant_shared_kv(SOUND, CONFIG), CONFIG)
    for finding in find("GD201", exam):
        layer = int(str(finding.tensor).split(".")[2])
        assert (finding.evidence["layer"], finding.evidence["donor"]) == (layer, layer - 2)
        assert f"layer {layer} reuses the keys and values of layer {layer - 2}" in finding.message
        assert all(word in finding.message for word in ("5.6 and later drop", "4.53 to 5.5", "vLLM", "llama.cpp"))
        assert "Do not copy" not in finding.message


@pytest.mark.parametrize("loader", [loader for loader in LOADERS if SHARED_KV_USE[loader].needs])
def test_gd201_warns_of_the_wrong_mend_where_pruning_is_refused(loader: Loader) -> None:
    exam = replace(examine(plant_shared_kv(SOUND, CONFIG), CONFIG), loader=loader)
    assert all("Do not copy layer" in finding.message for finding in find("GD201", exam))


# GD203 and GD204: dtypes


def test_gd203_sums_up_a_float16_config_above_bfloat16_weights() -> None:
    config = {**CONFIG, "dtype": "float16"}
    tensors = in_bfloat16(SOUND)
    planted = np.array(SOUND[EMBEDDING])
    planted[:2, 0] = (70000, 1e-9)
    (finding,) = find("GD203", examine({**tensors, **in_bfloat16({EMBEDDING: planted})}, config))
    assert (finding.tensor, finding.file, finding.severity) == (None, None, "warning")
    assert finding.evidence["mismatching"] == finding.evidence["tensors"] == len(SOUND)
    assert (finding.evidence["fp16_overflow"], finding.evidence["dtype"]) == (1, "BF16")
    assert isinstance(finding.evidence["fp16_underflow"], int)
    assert finding.evidence["fp16_underflow"] >= 1
    assert "config says float16" in finding.message
    assert "casts to float16, where 65520 and more is inf" in finding.message
    assert repair(finding) == ("cast-dtype", "rounded")


@pytest.mark.parametrize(
    ("stated", "effect", "exactness"),
    [("bfloat16", "rounds it", "rounded"), ("float64", "changes no value", "exact")],
)
def test_gd203_tells_what_the_loader_does(stated: str, effect: str, exactness: str) -> None:
    (finding,) = find("GD203", examine(SOUND, {**CONFIG, "dtype": stated}))
    assert effect in finding.message
    assert "fp16_overflow" not in finding.evidence
    assert repair(finding) == ("cast-dtype", exactness)


@pytest.mark.parametrize("stated", ["float32", "int8", None])
def test_gd203_accepts_the_dtype_that_is_stored_and_asks_nothing_of_others(stated: str | None) -> None:
    assert find("GD203", examine(SOUND, {**CONFIG, "dtype": stated})) == []


def test_gd203_names_the_few_matrices_that_deviate() -> None:
    name = "model.layers.1.mlp.down_proj.weight"
    (finding,) = find("GD203", examine({**in_bfloat16(SOUND), name: SOUND[name]}, CONFIG))
    assert (finding.tensor, finding.evidence["dtype"], finding.evidence["config"]) == (name, "F32", "bfloat16")
    assert repair(finding) == ("cast-dtype", "rounded")


def test_gd203_accepts_vectors_that_are_kept_with_more_bits() -> None:
    vectors = {name: array for name, array in SOUND.items() if array.ndim == 1}
    assert len(vectors) > len(SOUND) / 3
    assert find("GD203", examine({**in_bfloat16(SOUND), **vectors}, CONFIG)) == []
    halved = {name: array.astype(np.float16) for name, array in vectors.items()}
    assert len(find("GD203", examine({**in_bfloat16(SOUND), **halved}, CONFIG))) == len(vectors)


def test_gd203_adds_to_the_sum_the_few_that_differ_from_both() -> None:
    name = "model.layers.1.mlp.down_proj.weight"
    found = find("GD203", examine(with_dtype(SOUND, name, np.float64), CONFIG))
    assert [finding.tensor for finding in found] == [None, name]
    assert found[0].evidence["mismatching"] == len(SOUND) - 1


def test_gd203_leaves_quantised_tensors_alone() -> None:
    name = "model.layers.1.mlp.down_proj.weight"
    packed: Tensors = {name: Raw("F8_E4M3", (16, 32), bytes(512)), "scales": np.ones(4, np.uint8)}
    assert find("GD203", examine({**in_bfloat16(SOUND), **packed}, CONFIG)) == []


def matrices(**dtypes: str) -> dict[str, Array]:
    return {f"block.{name.replace('__', '.')}": np.ones((2, 2), dtype) for name, dtype in dtypes.items()}


@pytest.mark.parametrize(
    ("dtypes", "deviating"),
    [
        ({"q_proj__weight": "f4", "k_proj__weight": "f2", "v_proj__weight": "f2"}, "block.q_proj.weight"),
        ({"query__weight": "f2", "key__weight": "f2", "value__weight": "f4"}, "block.value.weight"),
        ({"gate_proj__weight": "f2", "up_proj__weight": "f4"}, "block.up_proj.weight"),
        ({"fc__weight": "f2", "fc__bias": "f4"}, "block.fc.bias"),
    ],
)
def test_gd204_names_the_tensor_that_deviates(dtypes: dict[str, str], deviating: str) -> None:
    (finding,) = find("GD204", examine(matrices(**dtypes)))
    assert (finding.tensor, finding.severity) == (deviating, "warning")
    assert finding.evidence["dtype"] != finding.evidence["expected"]
    assert finding.evidence["beside"] in matrices(**dtypes)
    exactness = "exact" if finding.evidence["dtype"] == "F16" else "rounded"
    assert repair(finding) == ("cast-dtype", exactness)


def test_gd204_names_the_neighbour_without_the_common_path() -> None:
    (finding,) = find("GD204", examine(matrices(q_proj__weight="f4", k_proj__weight="f2", v_proj__weight="f2")))
    assert finding.message == "Stored as F32, while k_proj.weight beside it is F16."


@pytest.mark.parametrize(
    "tensors",
    [
        matrices(q_proj__weight="f4", o_proj__weight="f2"),
        matrices(a__q_proj__weight="f4", b__k_proj__weight="f2"),
        matrices(q_proj__weight="f4", gate_proj__weight="f2"),
        matrices(norm__weight="f4", fc__weight="f2"),
        {**matrices(fc__bias="f4"), "block.fc.weight": Raw("F8_E4M3", (1,), b"\0")},
        {**matrices(q_proj__weight="f4"), "block.k_proj.weight": np.ones((2, 2), np.int8)},
    ],
    ids=["output", "another layer", "another family", "norm", "float8 and bias", "packed"],
)
def test_gd204_keeps_quiet(tensors: Tensors) -> None:
    assert find("GD204", examine(tensors)) == []


def test_gd204_compares_float8_siblings_without_offering_a_cast() -> None:
    tensors: Tensors = {**matrices(q_proj__weight="f2"), "block.k_proj.weight": Raw("F8_E4M3", (1,), b"\0")}
    (finding,) = find("GD204", examine(tensors))
    assert finding.repair is None


# GD205 to GD207: which tensors, in which shape


def test_gd205_names_a_missing_tensor() -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    (finding,) = find("GD205", examine(without(SOUND, name), CONFIG))
    assert (finding.tensor, finding.file, finding.severity, finding.repair) == (name, None, "error", None)
    assert finding.evidence["shape"] == "[32, 16]"
    assert "initialises it at random" in finding.message


def test_gd205_uses_the_names_of_the_checkpoints_layout() -> None:
    tensors = renamed(SOUND, "model.", "model.language_model.")
    found = find("GD205", examine(without(tensors, "model.language_model.norm.weight"), CONFIG))
    assert [finding.tensor for finding in found] == ["model.language_model.norm.weight"]


@pytest.mark.parametrize("loader", LOADERS)
def test_gd205_asks_for_shared_kv_only_where_the_loader_needs_it(loader: Loader) -> None:
    exam = replace(examine(SOUND, CONFIG), loader=loader)
    missing = sorted(str(finding.tensor) for finding in find("GD205", exam))
    assert missing == ([] if loader == "transformers" else SHARED)
    assert all(SHARED_KV_USE[loader].absent in finding.message for finding in find("GD205", exam))


def incomplete(*faults: Fault, index: str | None = None, unreachable: Collection[str] = ()) -> Examination:
    exam = examine(without(SOUND, EMBEDDING), CONFIG)
    lost = dict.fromkeys(unreachable, "its shard is missing")
    return replace(exam, checkpoint=replace(exam.checkpoint, faults=faults, index=index, unreachable=lost))


def test_gd205_keeps_quiet_about_what_the_index_promises() -> None:
    assert find("GD205", incomplete(unreachable=[EMBEDDING])) == []


def test_gd205_keeps_quiet_where_an_unreadable_file_may_hold_it() -> None:
    broken = Fault("unreadable-shard", "b.safetensors", "Truncated.")
    assert find("GD205", incomplete(broken)) == []
    assert len(find("GD205", incomplete(broken, index="model.safetensors.index.json"))) == 1
    assert len(find("GD205", incomplete(Fault("unsafe-path", "../b", "Outside.")))) == 1


@pytest.mark.parametrize("rule", ["GD205", "GD210"])
def test_absent_tensors_are_no_matter_where_a_part_was_selected(rule: str) -> None:
    config = tiny_gemma3n_config()
    tensors = without(healthy(config), "model.vision_tower.timm_model.conv_stem.conv.bias", "model.audio_tower.x")
    exam = examine(without(tensors, "model.language_model.norm.weight"), config)
    assert len(find(rule, exam)) == 1
    assert find(rule, replace(exam, selected=False)) == []


def test_gd206_names_an_unknown_tensor() -> None:
    name = "model.layers.6.mlp.up_proj.weight"
    (finding,) = find("GD206", examine({**SOUND, name: np.ones((2, 3), np.float32)}, CONFIG))
    assert (finding.tensor, finding.severity) == (name, "note")
    assert finding.evidence == {"bytes": 24, "dtype": "F32", "shape": "[2, 3]"}


def test_gd207_names_a_tensor_of_another_shape() -> None:
    wrong = np.ones((73, 16), np.float32)
    (finding,) = find("GD207", examine({**SOUND, EMBEDDING: wrong}, CONFIG))
    assert (finding.tensor, finding.severity) == (EMBEDDING, "error")
    assert "[73, 16], and the config implies [72, 16]" in finding.message


@pytest.mark.parametrize("rule", ["GD206", "GD207"])
def test_headers_outside_the_selection_are_not_judged(rule: str) -> None:
    sick = {**SOUND, "unknown": np.ones(2, np.float32), EMBEDDING: np.ones((2, 2), np.float32)}
    exam = examine(sick, CONFIG)
    assert len(find(rule, exam)) == 1
    kept = {name: tensor for name, tensor in exam.tensors.items() if name not in {"unknown", EMBEDDING}}
    assert find(rule, replace(exam, tensors=kept, selected=False)) == []
    assert len(find(rule, replace(exam, tensors=kept))) == 1


# GD208: a stored head


def with_head(change: float | None = None) -> Examination:
    head = np.array(SOUND[EMBEDDING])
    if change is not None:
        head[3, 5] = change
    return examine({**SOUND, "lm_head.weight": head}, CONFIG)


def test_gd208_notes_a_head_with_the_same_bytes() -> None:
    (finding,) = find("GD208", replace(with_head(), tied_head_equal=True))
    assert (finding.tensor, finding.severity) == ("lm_head.weight", "note")
    assert finding.evidence["comparison"] == "equal"
    assert repair(finding) == ("drop-tied-head", "exact")


@pytest.mark.parametrize(("equal", "change"), [(False, None), (None, 9.0)], ids=["by bytes", "by statistics"])
def test_gd208_makes_a_different_head_an_error(equal: bool | None, change: float | None) -> None:  # noqa: FBT001
    (finding,) = find("GD208", replace(with_head(change), tied_head_equal=equal))
    assert (finding.severity, finding.evidence["comparison"], finding.repair) == ("error", "different", None)


def test_gd208_says_when_nothing_was_compared() -> None:
    (finding,) = find("GD208", with_head())
    assert (finding.severity, finding.evidence["comparison"], finding.repair) == ("note", "unknown", None)
    exam = with_head(9.0)
    alone = replace(exam, tensors={"lm_head.weight": exam.tensors["lm_head.weight"]})
    assert find("GD208", alone)[0].evidence["comparison"] == "unknown"


def test_gd208_compares_shapes() -> None:
    exam = examine({**SOUND, "lm_head.weight": SOUND[EMBEDDING].T.copy()}, CONFIG)
    assert find("GD208", exam)[0].severity == "error"


def test_gd208_asks_nothing_of_a_head_of_its_own() -> None:
    config = {**CONFIG, "tie_word_embeddings": False}
    exam = examine({**SOUND, "lm_head.weight": SOUND[EMBEDDING]}, config)
    assert find("GD208", replace(exam, tied_head_equal=False)) == []


# GD209 and GD210: older and newer layouts


def test_gd209_reports_a_layout_that_some_loader_does_not_find() -> None:
    tensors = renamed(healthy(MULTIMODAL), "vision_tower.vision_model.", "vision_tower.")
    exam = examine(tensors, MULTIMODAL)
    (finding,) = find("GD209", exam)
    assert (finding.tensor, finding.severity, repair(finding)) == (None, "warning", ("rename-keys", "exact"))
    assert finding.evidence["renamed"] == sum(name.startswith("vision_tower.") for name in tensors)
    assert finding.evidence["tensors"] == len(tensors)
    assert exam.layout is not None
    assert exam.layout.stale is not None
    assert finding.message.endswith(f"Not found by {exam.layout.stale}.")


def test_gd209_accepts_a_second_layout_that_all_loaders_find() -> None:
    assert find("GD209", examine(renamed(SOUND, "model.", "model.language_model."), CONFIG)) == []


def test_gd210_reports_the_missing_stem_bias() -> None:
    config = tiny_gemma3n_config()
    name = "model.vision_tower.timm_model.conv_stem.conv.bias"
    exam = examine(without(healthy(config), name), config)
    (finding,) = find("GD210", exam)
    assert (finding.tensor, finding.severity, repair(finding)) == (name, "warning", ("add-stem-bias", "exact"))
    assert finding.evidence["shape"] == "[64]"
    assert find("GD205", exam) == []
    assert find("GD210", examine(healthy(config), config)) == []
