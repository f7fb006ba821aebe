"""rescale-conv: the least power of two that is enough, compensated where the architecture says, refused where felt."""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from checkpoints import (
    PUBLISHED,
    Array,
    Tensors,
    healthy,
    in_bfloat16,
    plant,
    plant_published,
    tiny_gemma3n_config,
    without,
)
from examinations import examine, find
from hypothesis import given
from hypothesis import strategies as st
from networks import rms_norm
from plans import admit, answers, only_left, only_mend, plan_for

from gemma_doctor.architectures.base import Conv
from gemma_doctor.examination import Examination
from gemma_doctor.plans import Left, Plan, Scale
from gemma_doctor.records import Finding
from gemma_doctor.repair.evidence.calibration import Calibration, Measured
from gemma_doctor.repair.evidence.case import Mend
from gemma_doctor.repair.evidence.outputs import Square
from gemma_doctor.repair.evidence.windows import FLOOR, Window

CONFIG = tiny_gemma3n_config()
ENCODER = "model.vision_tower.timm_model."
STEM = f"{ENCODER}conv_stem.conv."
ATTENTION = f"{ENCODER}blocks.2.9."
QUERY, KEY, VALUE, OUTPUT = (f"{ATTENTION}attn.{part}.proj.weight" for part in ("query", "key", "value", "output"))
GAMMA = f"{ATTENTION}layer_scale.gamma"
AUDIO = "model.audio_tower.subsample_conv_projection.conv_0.conv.weight"


@cache
def sound() -> dict[str, Array]:
    return dict(healthy(CONFIG))


def scaled(name: str, factor: float, tensors: Tensors | None = None) -> dict[str, Array]:
    base = {**sound(), **(tensors or {})}
    return {**base, name: np.asarray(base[name]) * np.float32(factor)}


def exponents(plan: Plan | Mend) -> dict[str, int]:
    return {edit.tensor: edit.exponent for edit in plan.edits if isinstance(edit, Scale)}


def carried_out(tensors: Tensors, plan: Plan) -> dict[str, Array]:
    result = {name: np.asarray(tensor) for name, tensor in tensors.items()}
    for name, exponent in exponents(plan).items():
        result[name] = np.ldexp(result[name], exponent)
    return result


def traced(peak: float, square: float | None, *names: str) -> Calibration:
    return Calibration("trace", {name.removesuffix(".weight"): Measured(peak, square) for name in names})


def conv_finding(exam: Examination, name: str) -> Finding:
    return next(finding for finding in find("GD104", exam) if finding.tensor == name)


def test_the_published_convolutions_are_mended_and_nothing_else(tmp_path: Path) -> None:
    tensors = plant_published(sound())
    plan = plan_for(admit(tmp_path, tensors, CONFIG), "GD104")
    assert exponents(plan).keys() == PUBLISHED.keys()
    assert plan.left == ()
    assert {edit.exactness for edit in plan.edits} == {"eps"}
    assert find("GD104", examine(carried_out(tensors, plan), CONFIG)) == []


def test_k_is_the_least_that_leaves_one_bit(tmp_path: Path) -> None:
    plan = plan_for(admit(tmp_path, plant_published(sound()), CONFIG), "GD104")
    for edit in plan.edits:
        assert isinstance(edit, Scale)
        reach, window = edit.reason.evidence["reach"], edit.reason.evidence["window"]
        assert isinstance(reach, float)
        assert window == 256
        assert math.ldexp(reach, edit.exponent) <= 128 < math.ldexp(reach, edit.exponent + 1)
        assert edit.exponent == -int(str(edit.reason.evidence["k"]))


def test_a_proved_bound_goes_first_and_a_loose_one_gives_way(tmp_path: Path) -> None:
    plan = plan_for(admit(tmp_path, plant_published(sound()), CONFIG), "GD104")
    basis = {edit.reason.evidence["basis"]: edit.reason.message for edit in plan.edits}
    assert basis.keys() == {"proved", "likely"}
    assert "proved: " in basis["proved"]
    assert "16 times their typical rms; the proved bound, " in basis["likely"]


@given(
    log_square=st.floats(-8, 8),
    log_eps=st.floats(-8, -2),
    exponent=st.integers(0, 12),
    seed=st.integers(0, 2**32 - 1),
)
def test_law_a_norm_changes_by_no_more_than_stated(log_square: float, log_eps: float, exponent: int, seed: int) -> None:
    """Against the norm itself, in float64: never larger than before, and smaller by the stated share at most."""
    x = np.random.default_rng(seed).normal(size=64)
    x *= math.sqrt(10**log_square / np.mean(x**2))
    eps = 10**log_eps
    before, after = (v / np.sqrt(np.mean(v**2) + eps) for v in (x, np.ldexp(x, -exponent)))
    change = np.max(np.abs(after - before) / np.abs(before))
    assert change <= Square(10**log_square, "here").change(eps, exponent) * (1 + 1e-9) + 1e-12
    assert np.all(np.abs(after) <= np.abs(before) * (1 + 1e-12))


def test_the_stated_change_is_that_of_the_encoders_norm(tmp_path: Path) -> None:
    """The fusion convolution on normed inputs: wherever the mean square is the stated one or more, its norm moves less.

    One planted row makes most of the mean square, and counts for nothing in the cautious estimate.
    """
    fusion = f"{ENCODER}msfa.ffn.pw_proj.conv.weight"
    tensors = plant_published(sound())
    plan = plan_for(admit(tmp_path, tensors, CONFIG), "GD104")
    (edit,) = (edit for edit in plan.edits if isinstance(edit, Scale) and edit.tensor == fusion)
    weight = np.asarray(tensors[fusion], np.float64)[:, :, 0, 0]
    gain = np.asarray(tensors[f"{ENCODER}msfa.ffn.pw_exp.bn.weight"], np.float64)
    x = rms_norm(np.random.default_rng(0).normal(size=(weight.shape[1], 1, 200)), gain)[:, 0]
    y = weight @ x
    squares = np.mean(y**2, axis=0)
    change = 1 - np.sqrt((squares + 1e-6) / (squares + 1e-6 * 4.0**-edit.exponent))
    stated = float(str(edit.reason.evidence["relative_change"]))
    cautious = float(str(edit.reason.evidence["mean_square"]))
    assert 0.9 < cautious < 1.1 < squares.mean()
    assert stated / 10 < change[squares >= cautious].max() <= stated
    assert np.all(change <= Square(float(squares.min()), "here").change(1e-6, -edit.exponent))


def test_a_bias_is_scaled_with_its_weight() -> None:
    tensors = plant(scaled(f"{STEM}weight", 400.0), f"{STEM}bias", 3.0)
    exam = examine(tensors, CONFIG)
    mend = only_mend(answers("rescale-conv", exam, find("GD104", exam)))
    k = exponents(mend)[f"{STEM}weight"]
    assert k < 0
    assert exponents(mend) == {f"{STEM}weight": k, f"{STEM}bias": k}


def test_an_old_stem_without_a_bias_is_mended_too() -> None:
    exam = examine(without(scaled(f"{STEM}weight", 400.0), f"{STEM}bias"), CONFIG)
    assert exponents(only_mend(answers("rescale-conv", exam, find("GD104", exam)))).keys() == {f"{STEM}weight"}


def test_every_convolution_of_the_encoder_can_be_rescaled() -> None:
    """All 282, not only those whose norm lies in the same module: shown with a measured peak beyond the window."""
    exam = examine(sound(), CONFIG)
    convs = {name: conv for name, conv in exam.model.convs.items() if name.startswith(ENCODER)}
    assert len(convs) == 282
    for name, conv in convs.items():
        limit = exam.tensors[name].limit
        assert limit is not None
        mend = only_mend(answers("rescale-conv", exam, (), traced(4 * limit, 1.0, name)))
        assert exponents(mend) == _expected(name, conv)
        assert {edit.exactness for edit in mend.edits} == {"eps" if conv.norm else "exact"}


def _expected(name: str, conv: Conv) -> dict[str, int]:
    if conv.norm is None:
        assert conv.absorber is not None
        return {name: -3, conv.absorber.tensor: 3}
    return {name: -3, **({conv.bias: -3} if conv.bias else {})}


def test_attention_keeps_its_function_bit_for_bit() -> None:
    """Query with key, value with output, output with the layer scale: what they are multiplied with takes 2^k."""
    exam = examine(sound(), CONFIG)
    rng = np.random.default_rng(0)
    for name, other in ((QUERY, KEY), (VALUE, OUTPUT), (OUTPUT, GAMMA)):
        limit = exam.tensors[name].limit
        assert limit is not None
        both = exponents(only_mend(answers("rescale-conv", exam, (), traced(2 * limit, None, name))))
        a, b = (np.ldexp(rng.normal(size=100).astype(np.float32), both[n]) for n in (name, other))
        rng = np.random.default_rng(0)
        c, d = (rng.normal(size=100).astype(np.float32) for _ in range(2))
        assert np.array_equal(a * b, c * d)
        rng = np.random.default_rng(0)


def test_the_output_projection_takes_what_the_value_gives_and_gives_its_own(tmp_path: Path) -> None:
    calibration = Calibration(
        "trace",
        {
            VALUE.removesuffix(".weight"): Measured(2.0**18),
            OUTPUT.removesuffix(".weight"): Measured(2.0**20),
        },
    )
    plan = plan_for(admit(tmp_path, sound(), CONFIG), "GD104", calibration=calibration)
    assert exponents(plan) == {VALUE: -4, OUTPUT: 4 - 6, GAMMA: 6}
    (edit,) = (edit for edit in plan.edits if isinstance(edit, Scale) and edit.tensor == OUTPUT)
    assert f"Takes back the factor 2^-4 of {VALUE}" in edit.reason.message
    assert edit.reason.evidence["k"] == 6
    assert edit.reason.evidence["k (2)"] == 4


def test_equal_powers_of_two_cancel_and_nothing_is_written_for_them(tmp_path: Path) -> None:
    modules = {name.removesuffix(".weight"): Measured(2.0**18) for name in (VALUE, OUTPUT)}
    plan = plan_for(admit(tmp_path, sound(), CONFIG), "GD104", calibration=Calibration("trace", modules))
    assert exponents(plan) == {VALUE: -4, GAMMA: 4}


def test_query_and_key_that_both_overflow_are_left() -> None:
    exam = examine(scaled(QUERY, 1e5, scaled(KEY, 1e5)), CONFIG)
    found = answers("rescale-conv", exam, find("GD104", exam))
    assert [answer.tensor for answer in found if isinstance(answer, Left)] == [QUERY, KEY]
    assert all("its own outputs" in answer.reason for answer in found if isinstance(answer, Left))


def test_a_query_that_overflows_alone_hands_its_scale_to_the_key() -> None:
    exam = examine(scaled(QUERY, 1e4), CONFIG)
    both = exponents(only_mend(answers("rescale-conv", exam, find("GD104", exam))))
    assert both[QUERY] == -both[KEY] < 0


def test_a_gain_near_the_limit_takes_nothing() -> None:
    exam = examine(plant(sound(), GAMMA, 20_000.0), CONFIG)
    refusal = only_left(answers("rescale-conv", exam, (), traced(2.0**17, None, OUTPUT)))
    assert refusal.tensor == OUTPUT
    assert GAMMA in refusal.reason
    assert "65504" in refusal.reason


def test_a_change_that_is_felt_is_refused_with_its_number() -> None:
    exam = examine(sound(), CONFIG)
    weight = f"{ENCODER}blocks.2.32.pw_exp.conv.weight"
    refusal = only_left(answers("rescale-conv", exam, (), traced(1024, 1e-3, weight)))
    change = 1e-6 * 4**3 / 2e-3
    assert f"values change by {change:.2g} of their size; 0.002 is allowed" in refusal.reason
    assert "upcast-conv" in refusal.reason
    assert isinstance(answers("rescale-conv", exam, (), traced(1024, 1e-3 * 17, weight))[0], Mend)


def test_the_audio_towers_weak_norm_is_judged_by_its_eps() -> None:
    """Eps 1e-3 is a thousand times that of the encoder: only a large mean square bears it."""
    exam = examine(sound(), CONFIG)
    assert "the eps 0.001" in only_left(answers("rescale-conv", exam, (), traced(2 * 65504.0, 1.0, AUDIO))).reason
    assert exponents(only_mend(answers("rescale-conv", exam, (), traced(2 * 65504.0, 100.0, AUDIO)))) == {AUDIO: -2}


def test_the_audio_towers_light_convolutions_are_absorbed() -> None:
    name = "model.audio_tower.conformer.0.lconv1d.depthwise_conv1d.weight"
    exam = examine(sound(), CONFIG)
    assert exponents(only_mend(answers("rescale-conv", exam, (), traced(2 * 65504.0, 1.0, name)))) == {name: -2}


def test_a_measured_peak_decides_instead_of_the_bound() -> None:
    fusion = f"{ENCODER}msfa.ffn.pw_proj.conv.weight"
    exam = examine(plant(sound(), fusion, 98.0), CONFIG)
    finding = conv_finding(exam, fusion)
    mend = only_mend(answers("rescale-conv", exam, [finding], traced(300.0, 5.0, fusion)))
    assert exponents(mend) == {fusion: -2}
    assert (mend.edits[0].reason.evidence["basis"], mend.edits[0].reason.evidence["mean_square"]) == ("measured", 5.0)
    refusal = only_left(answers("rescale-conv", exam, [finding], traced(100.0, 5.0, fusion)))
    assert "reach 100 (the peak in the trace), and may reach 256" in refusal.reason


def test_only_measured_peaks_beyond_the_window_are_mended_without_a_finding() -> None:
    exam = examine(sound(), CONFIG)
    weight = f"{ENCODER}blocks.2.32.pw_exp.conv.weight"
    assert answers("rescale-conv", exam, (), traced(256.0, 1.0, weight)) == []
    assert only_mend(answers("rescale-conv", exam, (), traced(257.0, 1.0, weight))).finding is None


PW_EXP = f"{ENCODER}blocks.2.32.pw_exp.conv.weight"


def test_outputs_near_the_lower_end_of_the_window_are_scaled_to_its_middle() -> None:
    """Peak 1 may grow by 2^7 within one bit of 256; a mean square of 1e-4 must by 2^4 to clear 6.2e-4 by two bits."""
    exam = examine(sound(), CONFIG)
    mend = only_mend(answers("rescale-conv", exam, (), traced(1.0, 1e-4, PW_EXP)))
    assert mend.finding is None
    assert exponents(mend) == {PW_EXP: 6}
    (edit,) = mend.edits
    assert edit.reason.rule == "GD402"
    assert edit.reason.evidence["relative_change"] == pytest.approx(1e-6 / 2e-4)
    assert f"times 2^6 it is {1e-4 * 4**6:.2g}" in edit.reason.message
    assert answers("rescale-conv", exam, (), traced(1.0, 0.0099, PW_EXP)) == []
    assert len(answers("rescale-conv", exam, (), traced(1.0, 0.0098, PW_EXP))) == 1


def test_a_stem_is_lifted_with_its_bias() -> None:
    mend = only_mend(answers("rescale-conv", examine(sound(), CONFIG), (), traced(1.0, 1e-4, f"{STEM}weight")))
    assert exponents(mend) == {f"{STEM}weight": 6, f"{STEM}bias": 6}


@pytest.mark.parametrize(("peak", "power"), [(16.0, 3), (32.0, 2)])
def test_where_both_ends_cannot_be_met_outputs_go_as_far_up_as_they_may(peak: float, power: int) -> None:
    mend = only_mend(answers("rescale-conv", examine(sound(), CONFIG), (), traced(peak, 5e-5, PW_EXP)))
    assert exponents(mend) == {PW_EXP: power}
    assert "as far up as the largest output allows" in mend.edits[0].reason.message


def test_a_peak_that_leaves_the_window_counts_more_than_the_backward_pass() -> None:
    exam = examine(sound(), CONFIG)
    mend = only_mend(answers("rescale-conv", exam, (), traced(512.0, 0.0096, PW_EXP)))
    assert exponents(mend) == {PW_EXP: -2}
    assert "No power of two serves both ends: the least mean square becomes 0.0006," in mend.edits[0].reason.message
    refusal = only_left(answers("rescale-conv", exam, (), traced(200.0, 1e-4, PW_EXP)))
    assert (refusal.rule, refusal.tensor) == ("GD402", PW_EXP)
    assert "no room to scale it up" in refusal.reason


def test_a_norm_that_its_eps_dominates_is_not_lifted() -> None:
    refusal = only_left(answers("rescale-conv", examine(sound(), CONFIG), (), traced(1.0, 7.9e-6, PW_EXP)))
    assert refusal.rule == "GD402"
    assert "0.063 of their size; 0.062 is allowed" in refusal.reason
    lifted = only_mend(answers("rescale-conv", examine(sound(), CONFIG), (), traced(1.0, 8.1e-6, PW_EXP)))
    assert exponents(lifted) == {PW_EXP: 7}


def test_norms_that_square_in_float32_have_no_lower_end() -> None:
    exam = examine(sound(), CONFIG)
    assert answers("rescale-conv", exam, (), traced(1.0, 1e-5, AUDIO)) == []
    assert answers("rescale-conv", exam, (), traced(1.0, 1e-5, VALUE)) == []


def test_a_finding_that_the_trace_does_not_confirm_is_left_and_its_backward_pass_mended() -> None:
    fusion = f"{ENCODER}msfa.ffn.pw_proj.conv.weight"
    exam = examine(plant(sound(), fusion, 98.0), CONFIG)
    refused, mend = answers("rescale-conv", exam, [conv_finding(exam, fusion)], traced(1.0, 1e-4, fusion))
    assert isinstance(refused, Left)
    assert refused.rule == "GD104"
    assert isinstance(mend, Mend)
    assert exponents(mend) == {fusion: 6}


@given(
    peak=st.floats(-6, 5),
    share=st.floats(-4, 0),
)
def test_law_a_window_that_is_wide_is_reached_at_both_ends(peak: float, share: float) -> None:
    """Within 128 and at least four times the root of the floor, for any peak and any share of it as least rms."""
    largest = 10.0**peak
    square = (largest * 10.0**share) ** 2
    window = Window.of(largest, square, 256.0)
    k = window.middle
    assert math.ldexp(largest, -k) <= 128
    if window.wide:
        assert math.ldexp(square, -2 * k) >= 16 * FLOOR * (1 - 1e-9)
    else:
        assert math.ldexp(largest, 1 - k) > 128


def test_a_weight_with_nan_is_left() -> None:
    fusion = f"{ENCODER}msfa.ffn.pw_proj.conv.weight"
    exam = examine(plant(plant(sound(), fusion, 98.0), fusion, math.nan, 7), CONFIG)
    assert "NaN or infinities" in only_left(answers("rescale-conv", exam, find("GD104", exam))).reason


def test_weights_that_float16_could_not_hold_afterwards_are_refused() -> None:
    """One enormous row among tiny ones: scaled for that row, the others would drown in float16's subnormals."""
    fusion = f"{ENCODER}msfa.ffn.pw_proj.conv.weight"
    quiet = scaled(fusion, 1e-4)
    exam = examine(quiet, CONFIG)
    refusal = only_left(answers("rescale-conv", exam, (), traced(256.0 * 2**6, 1e6, fusion)))
    assert "float16 would round them" in refusal.reason


def test_what_float16_storage_loses_is_counted_from_the_bytes(tmp_path: Path) -> None:
    fusion = f"{ENCODER}msfa.ffn.pw_proj.conv.weight"
    half = np.asarray(plant(sound(), fusion, 98.0)[fusion]).astype(np.float16)
    clean = np.where(np.abs(half) < 2**-8, np.float16(0.25), half).astype(np.float16)
    for number, (tiny, exactness) in enumerate(
        [(2.0**-8, "eps"), (2.0**-13 + 2.0**-23, "rounded"), (2.0**-24, "lossy")]
    ):
        weight = clean.copy()
        weight.flat[5] = tiny
        tensors = {**sound(), fusion: weight}
        plan = plan_for(admit(tmp_path / str(number), tensors, CONFIG), "GD104", unsafe=True)
        (edit,) = (edit for edit in plan.edits if edit.reason.rule == "GD104")
        assert edit.exactness == exactness
        assert edit.reason.evidence.get("lost", 0) == int(exactness != "eps")
        if exactness == "lossy":
            strict = plan_for(admit(tmp_path / "strict", tensors, CONFIG), "GD104")
            assert "which needs --unsafe" in strict.left[0].reason


def test_bfloat16_loses_nothing(tmp_path: Path) -> None:
    published = plant_published(sound())
    tensors = {**sound(), **in_bfloat16({name: np.asarray(published[name]) for name in PUBLISHED})}
    plan = plan_for(admit(tmp_path, tensors, CONFIG), "GD104")
    assert exponents(plan).keys() == PUBLISHED.keys()
    assert {edit.exactness for edit in plan.edits} == {"eps"}


def test_a_convolution_that_is_not_declared_is_left() -> None:
    exam = examine({"conv.weight": np.full((4, 4, 3, 3), 1000.0, np.float32)})
    (finding,) = find("GD104", exam)
    assert "not known" in only_left(answers("rescale-conv", exam, [finding])).reason


def test_where_the_norms_input_is_not_known_nothing_is_scaled() -> None:
    fusion = f"{ENCODER}msfa.ffn.pw_proj.conv.weight"
    exam = examine({fusion: plant(sound(), fusion, 98.0)[fusion]}, CONFIG)
    assert "is not known" in only_left(answers("rescale-conv", exam, find("GD104", exam))).reason
