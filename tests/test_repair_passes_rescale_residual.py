"""rescale-residual: the least power of two that is enough, every writer and reader, refused where it is felt."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import (
    Array,
    healthy,
    in_bfloat16,
    tiny_gemma2_config,
    tiny_gemma3_config,
    tiny_gemma3_multimodal_config,
    tiny_gemma3n_text_config,
    without,
)
from examinations import examine, find
from hypothesis import given
from hypothesis import strategies as st
from plans import admit, answers, only_left, only_mend, plan_for

from gemma_doctor.architectures import identify
from gemma_doctor.checkpoint import FileBytes
from gemma_doctor.plans import Left, Plan, Reason, Scale, ScaleGain, SetConfig, SetMetadata
from gemma_doctor.records import Exactness
from gemma_doctor.repair.elements.edits import carry_out, scaled_gain
from gemma_doctor.repair.elements.excess import excess
from gemma_doctor.repair.elements.floats import narrow, widen
from gemma_doctor.repair.evidence.calibration import Calibration, Measured
from gemma_doctor.repair.evidence.gains import gain_losses

PASS = "rescale-residual"
GEMMA3, MULTIMODAL, TEXT = tiny_gemma3_config(), tiny_gemma3_multimodal_config(), tiny_gemma3n_text_config()
POSTS = [f"model.layers.{i}.post_{part}_layernorm.weight" for i in (0, 1) for part in ("attention", "feedforward")]
TABLE, FINAL = "model.embed_tokens.weight", "model.norm.weight"


def loud(config: Mapping[str, Any] = GEMMA3, gain: float = 2.0**14, words: float = 64.0) -> dict[str, Array]:
    """A Gemma 3 whose norms behind attention and feed-forward multiply by ``gain``."""
    tensors = healthy(config)
    for name in tensors:
        if name.endswith(("post_attention_layernorm.weight", "post_feedforward_layernorm.weight")):
            tensors[name] += np.float32(gain)
        if "embed_tokens" in name:
            tensors[name] *= np.float32(words)
    return tensors


def powers(plan: Plan) -> dict[str, int]:
    return {edit.tensor: edit.exponent for edit in plan.edits if isinstance(edit, Scale | ScaleGain)}


def certified(plan: Plan) -> bool:
    """What the one edit that speaks of the whole model says."""
    (said,) = (edit.reason.evidence["certified"] for edit in plan.edits if "certified" in edit.reason.evidence)
    return said is True


def reason_of(plan: Plan, tensor: str) -> Reason:
    return next(
        edit.reason for edit in plan.edits if not isinstance(edit, SetConfig | SetMetadata) and edit.tensor == tensor
    )


def prescription(tmp_path: Path, tensors: Mapping[str, Any], config: Mapping[str, Any] = GEMMA3) -> Plan:
    return plan_for(admit(tmp_path / "sick", tensors, config), "GD301", passes=[PASS])


def test_every_writer_shrinks_and_the_final_norm_makes_up_for_a_tied_head(tmp_path: Path) -> None:
    plan = prescription(tmp_path, loud())
    k = powers(plan)[FINAL]
    assert powers(plan) == {**dict.fromkeys((TABLE, *POSTS), -k), FINAL: k}
    assert {edit.tensor for edit in plan.edits if isinstance(edit, ScaleGain)} == {*POSTS, FINAL}
    assert {edit.reason.rule for edit in plan.edits} == {"GD301"}


def test_k_is_the_least_that_brings_the_bound_below_the_limit(tmp_path: Path) -> None:
    plan = prescription(tmp_path, loud())
    reason = reason_of(plan, TABLE)
    k, reach = int(str(reason.evidence["k"])), float(str(reason.evidence["reach"]))
    assert reach * 2.0**-k < 65504 <= reach * 2.0 ** (1 - k)
    assert reason.evidence["basis"] == "proved"
    margin = math.log2(65504 / reach) + k
    assert reason.evidence["margin_bits"] == pytest.approx(margin)
    assert f"times 2^-{k} it fits, {margin:.1f} bits below 65504." in reason.message
    assert "The residual stream can reach" in reason.message


def test_a_head_of_its_own_leaves_the_final_norm_alone(tmp_path: Path) -> None:
    config = {**GEMMA3, "tie_word_embeddings": False}
    plan = prescription(tmp_path, loud(config), config)
    assert powers(plan).keys() == {TABLE, *POSTS}


def test_a_tied_head_that_is_stored_shrinks_with_the_embedding(tmp_path: Path) -> None:
    tensors = loud()
    plan = prescription(tmp_path, {**tensors, "lm_head.weight": tensors[TABLE]})
    assert powers(plan)["lm_head.weight"] == powers(plan)[TABLE] < 0


def test_the_projector_of_images_shrinks_as_well(tmp_path: Path) -> None:
    plan = prescription(tmp_path, loud(MULTIMODAL), MULTIMODAL)
    table = "language_model.model.embed_tokens.weight"
    assert powers(plan)["multi_modal_projector.mm_input_projection_weight"] == powers(plan)[table] < 0
    assert not any("vision_tower" in name for name in powers(plan))


def test_the_plan_says_that_it_certifies_and_what_that_assumes(tmp_path: Path) -> None:
    plan = prescription(tmp_path, loud())
    first = plan.edits[0]
    assert certified(plan)
    assert first.reason.evidence["proved_safe"] == first.reason.evidence["values"]
    assert "cannot overflow in the forward pass, whatever the input. Assumed: the model is what" in first.reason.message


def test_the_certificate_says_where_eager_attention_is_not_covered(tmp_path: Path) -> None:
    tensors = loud(MULTIMODAL)
    attention = "vision_tower.vision_model.encoder.layers.0.self_attn"
    for part in ("q_proj", "k_proj"):
        tensors[f"{attention}.{part}.weight"] *= np.float32(400.0)
    plan = prescription(tmp_path, tensors, MULTIMODAL)
    assert certified(plan)
    (reason,) = (edit.reason for edit in plan.edits if "certified" in edit.reason.evidence)
    assert f"It does not hold for eager attention, of whose 4 scores 1 are not proved, {attention}" in reason.message
    assert (reason.evidence["eager_scores"], reason.evidence["eager_scores_safe"]) == (4, 3)
    assert "eager" not in prescription(tmp_path / "sound", loud(MULTIMODAL), MULTIMODAL).edits[0].reason.message


def test_where_the_final_norm_then_leaves_float16_it_says_that_it_is_not_certified(tmp_path: Path) -> None:
    tensors = loud()
    tensors[FINAL] += np.float32(8000)
    first = prescription(tmp_path, tensors).edits[0]
    assert first.reason.evidence["certified"] is False
    assert "Not certified: the first of" in first.reason.message
    assert "model.norm, of which the bound is" in first.reason.message


def test_what_a_narrower_load_costs_stands_in_the_plan(tmp_path: Path) -> None:
    plan = prescription(tmp_path, in_bfloat16(loud(gain=2.0**13)))
    reason = reason_of(plan, POSTS[0])
    costs = [float(str(reason.evidence[key])) for key in ("in_float32", "in_float16", "in_bfloat16")]
    assert costs == sorted(costs)
    assert costs[2] > 0
    said = f"casts it to float16 changes one by up to {costs[1]:.1e}, to bfloat16 by {costs[2]:.1e}"
    assert said in reason.message


def test_where_eps_would_be_felt_it_shrinks_and_with_it_what_every_norm_of_that_eps_reads(tmp_path: Path) -> None:
    plan = prescription(tmp_path, loud(words=1.0))
    k = powers(plan)[FINAL]
    read = [
        f"model.layers.{i}.{part}_proj.weight"
        for i in (0, 1)
        for part in ("self_attn.q", "self_attn.k", "self_attn.o", "mlp.down")
    ]
    assert powers(plan) == {**dict.fromkeys((TABLE, *POSTS, *read), -k), FINAL: k}
    (config,) = (edit for edit in plan.edits if isinstance(edit, SetConfig))
    assert (config.path, config.value) == (("rms_norm_eps",), 1e-6 * 4.0**-k)
    assert {edit.exactness for edit in plan.edits if not isinstance(edit, ScaleGain)} == {"exact"}
    assert f"so rms_norm_eps shrinks as well, times 2^-{2 * k}, from 1e-06 to" in reason_of(plan, TABLE).message
    assert certified(plan)


def test_where_eps_is_not_felt_it_is_left_alone(tmp_path: Path) -> None:
    plan = prescription(tmp_path, loud())
    assert not any(isinstance(edit, SetConfig) for edit in plan.edits)
    assert {edit.exactness for edit in plan.edits if not isinstance(edit, ScaleGain)} == {"eps"}


@pytest.mark.parametrize(
    ("config", "path", "parts"),
    [
        (MULTIMODAL, ("text_config", "rms_norm_eps"), 4),
        (tiny_gemma2_config(), ("rms_norm_eps",), 2),  # its queries and keys have no norms
        ({**GEMMA3, "attention_bias": True}, ("rms_norm_eps",), 7),
    ],
)
def test_the_eps_is_the_text_models_own(config: Mapping[str, Any], path: tuple[str, ...], parts: int) -> None:
    (shared,) = (one.eps for one in identify(config).rescalings if one.eps is not None)
    assert shared.path == path
    assert len(shared.smaller) == 2 * parts
    assert shared.smaller == tuple(name for name in shared.smaller if name in identify(config).expected)


def test_a_config_without_the_section_that_would_hold_the_eps_keeps_it() -> None:
    config = {key: value for key, value in MULTIMODAL.items() if key != "text_config"}
    assert all(one.eps is None for one in identify(config).rescalings)


def loud_encoder(factor: float, start: float) -> dict[str, Array]:
    """An image encoder that writes loudly on a stream that starts quietly; the words are sound."""
    tensors = healthy(MULTIMODAL)
    for name in tensors:
        if "vision_tower" in name and "mlp.fc2" in name:
            tensors[name] *= np.float32(factor)
        elif "vision_tower" in name and "embedding" in name:
            tensors[name] *= np.float32(start)
    return tensors


def test_refused_where_an_eps_is_felt_that_cannot_shrink() -> None:
    """The image encoder's: nothing is declared of the other norms that have it."""
    exam = examine(loud_encoder(2.0**15, 2.0**-10), MULTIMODAL)
    found = answers(PASS, exam, find("GD301", exam))
    assert len(found) == 2
    for one in found:
        assert isinstance(one, Left)
        assert "of the norm 'vision_tower.vision_model.encoder.layers.0.layer_norm1' is felt" in one.reason
        assert "--calibration" in one.reason


def test_the_image_encoders_stream_is_mended_with_what_is_inside_the_layers(tmp_path: Path) -> None:
    """Its finding, the one that says that the stream is likely to leave float16, is not left."""
    exam = admit(tmp_path / "sick", loud_encoder(2.0**15, 4.0), MULTIMODAL)
    stream, note = find("GD301", exam)
    assert (stream.evidence["stream"], stream.severity, note.severity) == (
        "the image encoder's residual stream",
        "warning",
        "note",
    )
    assert stream.repair is not None
    plan = plan_for(exam, "GD301", passes=[PASS])
    assert [one.severity for one in plan.left] == ["note"]
    assert all("vision_tower" in name for name in powers(plan))
    assert certified(plan)


def test_what_would_lose_elements_is_not_counted_as_carried_out(tmp_path: Path) -> None:
    """Without --unsafe such edits stay away, so that a certificate may not rest on them."""
    tensors = inside("mlp.up_proj", 2.0**12)
    name = "model.layers.1.mlp.up_proj.weight"
    tensors[name][0, 0] = 2.0**-24  # nothing is left of it where it is stored as float16, times 2^-k
    for post in POSTS:
        tensors[post] += np.float32(2.0**12)
    stored = {key: array.astype(np.float16) for key, array in tensors.items()}
    exam = admit(tmp_path / "sick", stored, GEMMA3)
    plan = plan_for(exam, "GD301", passes=[PASS])
    assert name not in powers(plan)
    assert not certified(plan)
    assert certified(plan_for(exam, "GD301", passes=[PASS], unsafe=True)) is False


def test_what_shrinks_with_the_stream_needs_no_power_of_its_own() -> None:
    tensors, names = loud(words=1.0), [f"model.layers.{layer}.mlp.down_proj" for layer in (0, 1)]
    bounds = {item.value.name: item.bound for item in examine(tensors, GEMMA3).ranges.values}
    for name in names:
        tensors[f"{name}.weight"] *= np.float32(2 * 65504 / (bounds[name] or 0.0))
    exam = examine(tensors, GEMMA3)
    found = answers(PASS, exam, find("GD301", exam))
    reasons = [one.reason for one in found if isinstance(one, Left)]
    assert reasons == ["What is done for the streams brings them under their limits as well"]


@pytest.mark.parametrize("name", [TABLE, FINAL])
def test_refused_where_a_tensor_is_missing(name: str) -> None:
    finding = find("GD301", examine(loud(), GEMMA3))
    left = only_left(answers(PASS, examine(without(loud(), name), GEMMA3), finding))
    assert name in left.reason or "a tensor is missing" in left.reason


def test_quantised_weights_are_refused() -> None:
    finding = find("GD301", examine(loud(), GEMMA3))
    exam = examine(loud(), GEMMA3)
    table = exam.tensors[TABLE]
    quantised = replace(table, info=replace(table.info, dtype="F8_E4M3"))
    left = only_left(answers(PASS, replace(exam, tensors={**exam.tensors, TABLE: quantised}), finding))
    assert "stored as F8_E4M3" in left.reason


def test_an_unknown_family_is_left() -> None:
    finding = find("GD301", examine(loud(), GEMMA3))
    left = only_left(answers(PASS, examine(loud(), None), finding))
    assert "not declared" in left.reason


# Values inside the layers.


def inside(part: str, factor: float) -> dict[str, Array]:
    tensors = healthy(GEMMA3)
    for layer in range(2):
        tensors[f"model.layers.{layer}.{part}.weight"] *= np.float32(factor)
    return tensors


@pytest.mark.parametrize("part", ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.up_proj"])
def test_a_loud_projection_is_scaled_and_the_model_certified(tmp_path: Path, part: str) -> None:
    plan = prescription(tmp_path, inside(part, 2.0**15))
    assert all(part in name or "o_proj" in name or "down_proj" in name for name in powers(plan))
    assert all(powers(plan)[f"model.layers.{layer}.{part}.weight"] < 0 for layer in range(2))
    assert certified(plan)


@pytest.mark.parametrize("part", ["self_attn.o_proj", "mlp.down_proj"])
def test_what_is_behind_takes_what_is_left(tmp_path: Path, part: str) -> None:
    plan = prescription(tmp_path, inside(part, 2.0**15))
    assert powers(plan).keys() == {f"model.layers.{layer}.{part}.weight" for layer in range(2)}
    assert certified(plan)


def test_all_that_need_it_or_none() -> None:
    tensors = inside("mlp.up_proj", 2.0**15)
    tensors["model.layers.1.mlp.up_proj.weight"][:] = 0
    tensors["model.layers.1.mlp.up_proj.weight"][0, 0] = 2.0**15.9
    tensors["model.layers.1.mlp.up_proj.weight"][1:] = 2.0**-20
    exam = examine(tensors, GEMMA3)
    found = answers(PASS, exam, find("GD301", exam))
    assert "All of them or none" in only_left(found).reason


# Traces.


def traced(peak: float, written: float) -> Calibration:
    """The last layer's peak, and what each norm writes."""
    norms = dict.fromkeys((name.removesuffix(".weight") for name in POSTS), Measured(written))
    states = {"model.embed_tokens": Measured(4.0, 1.0), "model.layers.0": Measured(5000.0)}
    return Calibration("trace", {**norms, **states, "model.layers.1": Measured(peak)})


def test_a_measured_peak_asks_for_less_with_two_bits_to_spare() -> None:
    exam = examine(loud(), GEMMA3)
    mend = only_mend(answers(PASS, exam, find("GD301", exam), traced(30_000.0, 20_000.0)))
    evidence = mend.edits[0].reason.evidence
    assert (evidence["basis"], evidence["reach"], evidence["k"]) == ("measured", 30_000.0, 1)
    assert float(str(evidence["margin_bits"])) >= 2
    assert evidence["mean_square"] == 1.0


def test_a_trace_does_not_cost_the_proof_where_the_streams_are_proved(tmp_path: Path) -> None:
    """Only the scalings inside the layers can bring the last bounds under the limit; measured peaks ask for none."""
    tensors = inside("mlp.up_proj", 2.0**15)
    exam = admit(tmp_path / "sick", tensors, GEMMA3)
    assert not exam.ranges.certified
    quiet = {f"model.layers.{i}.mlp.{part}_proj": Measured(1.0) for i in (0, 1) for part in ("up", "down")}
    plan = plan_for(exam, "GD301", passes=[PASS], calibration=Calibration("trace", quiet))
    assert powers(plan).keys() >= {f"model.layers.{i}.mlp.up_proj.weight" for i in (0, 1)}
    assert certified(plan)


def test_a_trace_decides_inside_the_layers_where_the_streams_are_not_proved() -> None:
    tensors = inside("mlp.up_proj", 2.0**15)
    for name in POSTS:
        tensors[name] += np.float32(2.0**14)
    exam = examine(tensors, GEMMA3)
    quiet = {f"model.layers.{i}.mlp.{part}_proj": Measured(1.0) for i in (0, 1) for part in ("up", "down")}
    loudest = traced(14_000.0, 5000.0).modules
    found = answers(PASS, exam, find("GD301", exam), Calibration("trace", {**loudest, **quiet}))
    assert "The measured peaks fit, with two bits to spare" in [one.reason for one in found if isinstance(one, Left)]


def test_where_the_measured_peak_fits_nothing_is_scaled() -> None:
    exam = examine(loud(), GEMMA3)
    left = only_left(answers(PASS, exam, find("GD301", exam), traced(14_000.0, 5000.0)))
    assert "in the trace" in left.reason


def test_modules_may_be_called_as_transformers_does() -> None:
    exam = examine(loud(MULTIMODAL), MULTIMODAL)
    named = traced(30_000.0, 20_000.0).modules.items()
    modules = {f"model.language_model.{name.removeprefix('model.')}": measured for name, measured in named}
    others = {"model.multi_modal_projector": Measured(1.0)}
    mend = only_mend(answers(PASS, exam, find("GD301", exam), Calibration("trace", {**modules, **others})))
    assert mend.edits[0].reason.evidence["k"] == 1


def test_altups_streams_need_a_trace() -> None:
    tensors = healthy(TEXT)
    tensors["model.embed_tokens.weight"] += np.float32(100)
    exam = examine(tensors, TEXT)
    left = only_left(answers(PASS, exam, find("GD301", exam)))
    assert "--calibration" in left.reason


def test_every_reader_of_gemma_3ns_stream_makes_up_for_it() -> None:
    tensors = healthy(TEXT)
    tensors["model.embed_tokens.weight"] += np.float32(100)
    exam = examine(tensors, TEXT)
    streams = [f"model.layers.{layer}" for layer in range(6)]
    small = {f"{name}.altup.{part}_coefs": Measured(0.1) for name in streams for part in ("prediction", "correction")}
    modules = {"model.embed_tokens": 300.0} | dict.fromkeys(streams, 300.0)
    modules |= {f"model.altup_{kind}projections.{i}": 300.0 for kind in ("", "unembed_") for i in range(3)}
    calibration = Calibration("trace", {**small, **{name: Measured(peak) for name, peak in modules.items()}})
    mend = only_mend(answers(PASS, exam, find("GD301", exam), calibration))
    k = int(str(mend.edits[0].reason.evidence["k"]))
    found = {edit.tensor: edit.exponent for edit in mend.edits if isinstance(edit, Scale)}
    assert found["model.layers.5.input_layernorm.weight"] == found["model.embed_tokens.weight"] == -k < 0
    assert found["model.layers.5.self_attn.q_proj.weight"] == found["model.norm.weight"] == k
    assert "model.layers.5.self_attn.k_proj.weight" not in found  # it shares keys and values
    assert len(mend.edits) == len(found) == 1 + 6 * 5 + 1 + 4 * 3 + 2 * 1 + 6 * 2 + 1


# The edit itself.


@given(st.lists(st.floats(-200, 200, width=32), min_size=1, max_size=20), st.integers(-12, 12))
def test_a_scaled_gain_is_rounded_once(values: list[float], exponent: int) -> None:
    bits = np.array(values, np.float32).view(np.uint32)
    edit = ScaleGain(tensor="t", exponent=exponent, pass_name=PASS, exactness="rounded", reason=Reason("GD301", "why"))
    stored = widen(carry_out(edit, bits, "F32"), "F32")
    wanted = (1 + np.array(values, np.float32).astype(np.float64)) * 2.0**exponent - 1
    assert np.array_equal(stored, wanted.astype(np.float32))


def test_gain_losses_are_counted_from_the_bytes(tmp_path: Path) -> None:
    exam = admit(tmp_path / "some", {"gain": np.array([0.0, 1.0, -0.5, 1e-9], np.float32)}, None)
    with FileBytes(exam.checkpoint) as files:
        losses = gain_losses(files, exam.checkpoint.tensors["gain"], -3)
    gains = np.array([1, 2, 0.5, 1 + 1e-9]) / 8
    errors = np.abs((gains - 1).astype(np.float16).astype(np.float64) - (gains - 1))
    assert losses.inexact == 1
    assert losses.in_float16 == pytest.approx(errors.max() / math.sqrt(np.mean(gains**2)), abs=1e-12)
    assert losses.in_float32 < losses.in_bfloat16 + 1e-12


def test_scaling_a_gain_and_back_gives_the_gain() -> None:
    values = np.array([0.0, 0.25, -1.0, 63.0])
    assert np.array_equal(scaled_gain(scaled_gain(values, -5), 5), values)
    assert np.array_equal(widen(narrow(scaled_gain(values, -5), "F32"), "F32"), scaled_gain(values, -5))


@pytest.mark.parametrize(
    ("value", "exactness", "refused"),
    [
        (0.5, "eps", False),
        (1e-9, "eps", True),
        (1e-9, "rounded", False),
        (31.0, "eps", False),  # becomes zero, which is a gain of one
        (3e38, "rounded", True),  # becomes inf
    ],
)
def test_an_edit_of_a_gain_is_held_to_its_exactness(value: float, exactness: Exactness, *, refused: bool) -> None:
    power = 5 if value > 1e30 else -5
    bits = np.array([value], np.float32).view(np.uint32)
    edit = ScaleGain(tensor="t", exponent=power, pass_name=PASS, exactness=exactness, reason=Reason("GD301", "why"))
    assert bool(excess(edit, bits, carry_out(edit, bits, "F32"), "F32", 0).count) is refused
