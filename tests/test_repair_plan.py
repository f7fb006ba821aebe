"""Findings to a plan: nothing is forgotten, nothing is lost without leave, and edits compose in one order."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from checkpoints import (
    Array,
    Raw,
    Tensors,
    bfloat16,
    healthy,
    plant,
    plant_shared_kv,
    renamed,
    tiny_gemma3n_config,
    tiny_gemma3n_text_config,
    with_dtype,
    without,
    write,
)
from examinations import examine
from hypothesis import given, settings
from hypothesis import strategies as st
from plans import admit, diagnose, left_alone, mended, plan_for, subject

from gemma_doctor.checkpoint import open_checkpoint
from gemma_doctor.choices import Loader
from gemma_doctor.errors import UsageError
from gemma_doctor.plans import (
    Add,
    Cast,
    Clamp,
    Drop,
    Edit,
    Plan,
    Reason,
    Rename,
    Scale,
    SetConfig,
    ZeroNonfinite,
)
from gemma_doctor.records import Finding, Repair
from gemma_doctor.repair.evidence.case import Mend
from gemma_doctor.repair.planning.merging import merge
from gemma_doctor.repair.planning.planner import make_plan
from gemma_doctor.repair.planning.registry import PASSES, find_pass, page, select

CONFIG = tiny_gemma3n_config()
ENCODER = "model.vision_tower.timm_model."
FUSION = f"{ENCODER}msfa.ffn.pw_proj.conv.weight"
GAIN = f"{ENCODER}msfa.ffn.pw_exp.bn.weight"
STEM = f"{ENCODER}conv_stem.conv."
LAYER = "model.language_model.layers.0."
HEAD, TABLE = "lm_head.weight", "model.language_model.embed_tokens.weight"


@cache
def some() -> dict[str, Array]:
    """A part of a multimodal Gemma 3n that has something for every pass to mend."""
    kept = (FUSION, GAIN, f"{STEM}weight", f"{STEM}bias", TABLE)
    whole = healthy(CONFIG)
    return {name: array for name, array in whole.items() if name in kept or name.startswith(LAYER)}


def _without_bias(tensors: Tensors) -> Tensors:
    return without(tensors, f"{STEM}bias")


SICKNESSES: dict[str, Callable[[Tensors], Tensors]] = {
    "a large convolution": lambda tensors: plant(tensors, FUSION, 98.0),
    "NaN": lambda tensors: plant(tensors, f"{LAYER}mlp.up_proj.weight", math.nan),
    "overflow": lambda tensors: plant(tensors, f"{LAYER}mlp.down_proj.weight", 1e5),
    "zero k/v": lambda tensors: plant_shared_kv(tensors, CONFIG),
    "dead k/v with infinities": lambda tensors: plant_shared_kv(tensors, CONFIG, math.inf),
    "a wide query": lambda tensors: with_dtype(tensors, f"{LAYER}self_attn.q_proj.weight", np.float64),
    "a half key": lambda tensors: with_dtype(tensors, f"{LAYER}self_attn.k_proj.weight", np.float16),
    "a head": lambda tensors: {**tensors, HEAD: tensors[TABLE]},
    "no stem bias": _without_bias,
    "NaN in the convolution": lambda tensors: plant(tensors, FUSION, math.nan, 3),
    "a zero tensor": lambda tensors: {**tensors, f"{LAYER}mlp.gate_proj.weight": np.zeros((32, 16), np.float32)},
    "an unknown convolution": lambda tensors: {**tensors, "extra.conv.weight": np.full((2, 2, 3, 3), 900, np.float16)},
}
STORED: dict[str, Callable[[Tensors], Tensors]] = {
    "float32": lambda tensors: tensors,
    "bfloat16": lambda tensors: {name: _half(tensor) for name, tensor in tensors.items()},
}


def _half(tensor: Array | Raw) -> Array | Raw:
    return bfloat16(tensor) if not isinstance(tensor, Raw) and tensor.dtype == np.float32 else tensor


@settings(max_examples=25)
@given(
    sick=st.sets(st.sampled_from(sorted(SICKNESSES)), max_size=7),
    stored=st.sampled_from(sorted(STORED)),
    says=st.sampled_from(["float16", "bfloat16", "float32"]),
    stale=st.booleans(),
    unsafe=st.booleans(),
    passes=st.one_of(
        st.just(()), st.sets(st.sampled_from([one.name for one in select((), "safetensors")]), max_size=4).map(tuple)
    ),
    loader=st.sampled_from(["transformers", "llama.cpp"]),
)
def test_law_every_finding_is_mended_or_left_with_a_reason(  # noqa: PLR0913  # a dimension each
    sick: set[str], stored: str, says: str, *, stale: bool, unsafe: bool, passes: tuple[str, ...], loader: Loader
) -> None:
    tensors: Tensors = some()
    for name in sorted(sick):
        tensors = SICKNESSES[name](tensors)
    tensors = STORED[stored](tensors)
    if stale:
        tensors = renamed(tensors, "model.", "")
    if {"rescale-conv", "upcast-conv"} <= set(passes):
        passes = tuple(name for name in passes if name != "upcast-conv")
    with TemporaryDirectory() as folder:
        exam = admit(Path(folder), tensors, {**CONFIG, "dtype": says})
        exam = replace(exam, loader=loader, tied_head_equal=True if HEAD in exam.tensors else None)
        findings = [one for one in diagnose(exam) if one.rule != "GD205" or "altup" in str(one.tensor)]
        plan = make_plan(exam, findings, passes=passes, unsafe=unsafe, source="s", version="1")
    forgotten = [finding for finding in findings if not mended(plan, finding) and not left_alone(plan, finding)]
    assert forgotten == []
    assert unsafe or all(edit.exactness != "lossy" for edit in plan.edits)
    assert not passes or {edit.pass_name for edit in plan.edits} <= set(passes)
    _check_order(plan)


ORDER = (ZeroNonfinite, Clamp, Scale, Cast, Drop, Add, Rename, SetConfig)


def _check_order(plan: Plan) -> None:
    kinds = [ORDER.index(type(edit)) for edit in plan.edits]
    assert kinds == sorted(kinds)
    changes = [(type(edit), subject(edit)) for edit in plan.edits]
    assert len(set(changes)) == len(changes)
    gone = {edit.tensor for edit in plan.edits if isinstance(edit, Drop)}
    assert not [edit for edit in plan.edits if subject(edit) in gone and not isinstance(edit, Drop)]


def test_the_same_findings_give_the_same_plan_and_leave_the_files_alone(tmp_path: Path) -> None:
    exam = admit(tmp_path, plant(some(), FUSION, 98.0), CONFIG, shards=2)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert plan_for(exam) == plan_for(exam)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_the_fingerprint_is_of_headers_and_of_the_tensors_that_count(tmp_path: Path) -> None:
    tensors = plant_shared_kv(plant(some(), FUSION, 98.0), CONFIG)
    exam = admit(tmp_path, tensors, CONFIG, shards=2)
    plan = plan_for(exam, "GD104", "GD201")
    for mark in plan.fingerprint.files:
        data = (tmp_path / mark.name).read_bytes()
        header = 8 + int.from_bytes(data[:8], "little")
        assert mark.size == len(data)
        assert mark.header_sha256 == hashlib.sha256(data[:header]).hexdigest()
    assert {mark.name for mark in plan.fingerprint.files} == {file.name for file in exam.checkpoint.files}
    names = {FUSION, *exam.model.shared_kv}
    assert plan.fingerprint.tensors == {
        name: hashlib.sha256(np.asarray(tensors[name]).tobytes()).hexdigest() for name in names
    }


def test_a_healthy_checkpoint_needs_no_edit(tmp_path: Path) -> None:
    plan = plan_for(admit(tmp_path, some(), {**CONFIG, "dtype": "float32"}), "GD101", "GD102", "GD104", "GD203")
    assert plan.edits == ()
    assert plan.left == ()
    assert plan.fingerprint.tensors == {}


def test_conflicting_passes_are_refused_with_both_names() -> None:
    with pytest.raises(UsageError, match="rescale-conv and upcast-conv"):
        select(["upcast-conv", "rescale-conv"])
    for one in PASSES:
        assert all(one.name in find_pass(name).conflicts for name in one.conflicts)


def test_an_unknown_pass_is_refused_with_a_proposal() -> None:
    with pytest.raises(UsageError, match="did you mean 'rescale-conv'"):
        find_pass("rescale-convs")
    with pytest.raises(UsageError, match="known are add-stem-bias, cast-dtype"):
        select(["???"])


def test_upcasting_is_no_default_where_rescaling_mends_the_same(tmp_path: Path) -> None:
    tensors = {name: _half(array) for name, array in plant(some(), FUSION, 98.0).items()}
    exam = admit(tmp_path, tensors, CONFIG)
    assert {edit.pass_name for edit in plan_for(exam, "GD104").edits} == {"rescale-conv"}
    assert {edit.pass_name for edit in plan_for(exam, "GD104", passes=["upcast-conv"]).edits} == {"upcast-conv"}


def test_findings_of_passes_that_were_not_asked_for_say_so(tmp_path: Path) -> None:
    exam = admit(tmp_path, plant(some(), FUSION, 98.0), CONFIG)
    (item,) = plan_for(exam, "GD104", passes=["rename-keys"]).left
    assert (item.rule, item.tensor, item.reason) == ("GD104", FUSION, "--pass rescale-conv would mend it")


def test_notes_that_nobody_mends_stand_there_once() -> None:
    exam = examine(some(), CONFIG)
    notes = [Finding("GD108", "outlier-magnitude", "note", "far out", tensor=name) for name in ("a", "b", "c")]
    fault = Finding("GD205", "missing-tensor", "error", "absent", tensor="d", repair=Repair("none-such", "exact"))
    exam = replace(exam, checkpoint=replace(exam.checkpoint, files=()))
    plan = make_plan(exam, [fault, *notes], source="s", version="1")
    assert [(item.rule, item.tensor) for item in plan.left] == [("GD205", "d"), ("GD108", None)]
    assert plan.left[1].reason.startswith("3 notes: no pass mends it")


def test_a_checkpoint_that_cannot_be_read_whole_gets_no_plan(tmp_path: Path) -> None:
    write(tmp_path, some(), CONFIG, shards=2)
    shard = tmp_path / "model-00002-of-00002.safetensors"
    whole = shard.read_bytes()
    for damage, words in (
        (lambda: shard.write_bytes(whole[:-1]), "before its files can be read"),
        (shard.unlink, "tensors cannot be read"),
    ):
        damage()
        exam = replace(examine(some(), CONFIG), checkpoint=open_checkpoint(tmp_path))
        with pytest.raises(UsageError, match=words):
            make_plan(exam, [], source="s", version="1")


def _scale(exponent: int, exactness: str = "eps", rule: str = "GD104", **evidence: int) -> Scale:
    return Scale(
        tensor="w",
        exponent=exponent,
        pass_name="p",
        exactness=exactness,  # type: ignore[arg-type]
        reason=Reason(rule, f"by {exponent}", evidence),
    )


def _cast(dtype: str, name: str = "p") -> Cast:
    return Cast(tensor="w", dtype=dtype, pass_name=name, exactness="exact", reason=Reason("GD203", "why"))


FINDING = Finding("GD203", "dtype-config-mismatch", "warning", "m", tensor="w")


def test_scalings_of_one_tensor_add_up_and_keep_both_reasons() -> None:
    exam = examine({"w": np.ones((2, 2), np.float32)})
    (edit,) = merge([Mend(None, (_scale(-5, k=5),)), Mend(None, (_scale(3, "rounded", "GD301", k=3),))], exam).edits
    assert isinstance(edit, Scale)
    assert (edit.exponent, edit.exactness) == (-2, "rounded")
    assert edit.reason == Reason("GD104", "by -5 GD301: by 3", {"k": 5, "k (2)": 3})
    assert merge([Mend(None, (_scale(-5),)), Mend(None, (_scale(5),))], exam).edits == ()


def test_of_two_dtypes_for_one_tensor_the_first_pass_wins() -> None:
    exam = examine({"w": np.ones((2, 2), np.float16)})
    merged = merge([Mend(FINDING, (_cast("F32"),)), Mend(FINDING, (_cast("BF16", "q"),))], exam)
    assert [edit.dtype for edit in merged.edits if isinstance(edit, Cast)] == ["F32"]
    assert [item.reason for item in merged.left] == ["the pass p stores it as F32, not BF16, in the same plan"]
    assert merge([Mend(FINDING, (_cast("F32"),)), Mend(FINDING, (_cast("F32"),))], exam).left == ()


@given(st.permutations(range(4)))
def test_law_the_order_of_mends_does_not_matter_to_the_order_of_edits(order: list[int]) -> None:
    exam = examine({"w": np.ones((2, 2), np.float32), "v": np.ones((2, 2), np.float32)})
    reason = Reason("GD", "m")
    edits: list[Edit] = [
        ZeroNonfinite(tensor="w", pass_name="p", exactness="lossy", reason=reason),
        _scale(2),
        _cast("F64"),
        Rename(tensor="w", to="u", pass_name="p", exactness="exact", reason=reason),
    ]
    assert list(merge([Mend(None, (edits[i],)) for i in order], exam).edits) == edits


def test_the_passes_are_those_of_the_folder_and_every_page_is_complete() -> None:
    folder = Path(__file__).parents[1] / "src" / "gemma_doctor" / "repair" / "passes"
    names = {path.stem.replace("_", "-") for path in folder.glob("*.py")} - {"--init--"}
    assert {one.name for one in PASSES} == names
    for one in PASSES:
        title, *rest = page(one).splitlines()
        assert title.startswith(f"# {one.name}: ")
        headings = [line.removeprefix("## ") for line in rest if line.startswith("## ")]
        assert headings == ["What it does", "Which findings it mends", "Exactness", "Example", "Limits"]
        mends = page(one).partition("## Which findings it mends")[2].partition("##")[0]
        assert all(rule in mends for rule in one.mends)


def test_no_rule_has_two_passes_that_do_not_conflict() -> None:
    for one, other in itertools.combinations(PASSES, 2):
        assert not set(one.mends) & set(other.mends) or other.name in one.conflicts


def test_the_plan_of_a_folder_says_what_it_was_made_for(tmp_path: Path) -> None:
    exam = admit(tmp_path, some(), tiny_gemma3n_text_config())
    plan = make_plan(exam, [], source="owner/name", version="1.2")
    assert (plan.source, plan.version) == ("owner/name", "1.2")
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "gemma3n_text"
