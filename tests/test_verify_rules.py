"""Each rule of a verification: what it finds, what it says, and what it lets pass."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from checkpoints import tiny_gemma3_config, tiny_gemma3_multimodal_config, tiny_gemma3n_config
from hypothesis import given
from hypothesis import strategies as st

from gemma_doctor.architectures import identify
from gemma_doctor.records import Finding, Repair
from gemma_doctor.tensors import TensorInfo, TensorStats
from gemma_doctor.verifications import (
    Activation,
    Drift,
    FailingOp,
    LossScales,
    LossScaleTrial,
    ModuleDrift,
    Operand,
    Phase,
    Run,
    Verification,
)
from gemma_doctor.verify.evidence import Evidence, plain
from gemma_doctor.verify.registry import RULES

CONV = "model.vision_tower.timm_model.msfa.ffn.pw_proj"
WEIGHT = f"{CONV}.conv.weight"
AUDIO = "model.audio_tower.subsample_conv_projection.conv_0.norm"
SOUND = Run(modality="image", inputs="a picture", operations=100, seconds=1.0, drift=Drift(1e-6, 1.0))


def find(run: Run, config: Mapping[str, Any] | None = None) -> list[Finding]:
    tensors = {WEIGHT: TensorInfo(WEIGHT, "BF16", (8, 8, 1, 1), "model.safetensors", 0, 128)}
    verification = Verification(device="CPU", mode="half", backward=True, guarded=False, runs=(run,))
    model = identify(config or tiny_gemma3n_config())
    evidence = Evidence(verification, model, {name: name for name in tensors}, tensors)
    return [finding for rule in RULES for finding in rule.check(evidence)]


def output(phase: Phase = "forward", module: str = f"{CONV}.conv", op: str = "aten.convolution") -> Activation:
    stats = TensorStats(count=64, inf=3, nan=1, minimum=-5.0, maximum=60_000.0)
    return Activation("image", phase, module, op, 7, 1, "F16", (1, 8, 8), stats)


FAILURE = FailingOp(
    output(),
    (Operand(WEIGHT, "F16", (8, 8, 1, 1), TensorStats(count=64, minimum=-98.0, maximum=3.0)),),
    {"eps": 1e-6},
    reference_absmax=131_008.0,
)


def scales(*outcomes: tuple[int, Any]) -> LossScales:
    return LossScales(tuple(LossScaleTrial(2.0**at, outcome, f"layer{at}", 3) for at, outcome in outcomes))


def test_a_sound_run_has_no_finding() -> None:
    window = scales((0, "underflow"), (3, "sound"), (8, "sound"), (9, "overflow"))
    assert find(replace(SOUND, loss_scales=window, bfloat16_drift=Drift(1e-5, 1.0))) == []


def test_gd401_names_the_operation_its_weight_and_how_far_it_went() -> None:
    (finding,) = find(replace(SOUND, first_failure=FAILURE))
    assert (finding.rule, finding.severity, finding.tensor) == ("GD401", "error", WEIGHT)
    assert finding.repair == Repair("rescale-conv", "eps")
    assert finding.message == (
        f"image run, forward pass: aten.convolution in {CONV}.conv makes 4 of 64 elements inf or NaN; the float32 "
        f"reference reaches 131,008 there, 1 bit beyond 65504. It read {WEIGHT} up to 98, eps 1e-06."
    )
    assert finding.evidence["limit"] == 65504


def test_gd401_names_a_weight_that_did_not_survive_the_cast() -> None:
    failure = FailingOp(output("load", f"{CONV}.conv", "weight"), reference_absmax=98_304.0)
    (finding,) = find(replace(SOUND, first_failure=failure))
    assert (finding.rule, finding.tensor) == ("GD401", WEIGHT)
    assert f"{WEIGHT}, cast to F16, makes 4 of 64" in finding.message


@pytest.mark.parametrize(
    ("reached", "said"),
    [
        (None, "makes 4 of 64 elements inf or NaN. It read"),
        (0.0, "inf or NaN; the float32 reference reaches 0 there. It read"),
        (40_000.0, "inf or NaN; the float32 reference reaches 40,000 there. It read"),  # a sum in float16
        (65_504.0 * 2**0.5, "the float32 reference reaches 92,637 there, 0.5 bits beyond 65504. It read"),
    ],
)
def test_gd401_says_how_far_beyond_only_where_it_is(reached: float | None, said: str) -> None:
    (finding,) = find(replace(SOUND, first_failure=replace(FAILURE, reference_absmax=reached)))
    assert said in finding.message


@pytest.mark.parametrize(
    ("number", "said"),
    [(0.0012345, "0.00123"), (99.96, "100"), (100, "100"), (65504, "65,504"), (1e7, "1e+07"), (3.4e38, "3.4e+38")],
)
def test_magnitudes_are_told_in_a_few_digits(number: float, said: str) -> None:
    assert plain(number) == said


def test_gd401_proposes_no_pass_for_what_none_mends() -> None:
    (finding,) = find(replace(SOUND, first_failure=FailingOp(output(module="model.language_model", op="aten.pow"))))
    assert (finding.tensor, finding.repair) == (None, None)


@pytest.mark.parametrize("suffix", ["bn", "bn.act", "conv"])
def test_a_norm_is_mended_by_the_convolution_before_it(suffix: str) -> None:
    (finding,) = find(replace(SOUND, first_failure=FailingOp(output(module=f"{CONV}.{suffix}"))))
    assert finding.repair == Repair("rescale-conv", "eps")


@pytest.mark.parametrize(
    ("config", "module", "mended"),
    [
        (tiny_gemma3_config(), "model.layers.1", True),  # the layer, which adds up the stream
        (tiny_gemma3_config(), "model.layers.1.post_feedforward_layernorm", True),  # which writes into it
        (tiny_gemma3_config(), "model.layers.1.mlp.up_proj", False),
        (tiny_gemma3_multimodal_config(), "model.language_model.layers.1", True),  # transformers' own name
        (tiny_gemma3n_config(), "model.language_model.layers.1", False),  # refused: soft tokens cannot be scaled
    ],
)
def test_a_residual_stream_is_mended_where_what_writes_it_fails(
    config: Mapping[str, Any], module: str, *, mended: bool
) -> None:
    (finding,) = find(replace(SOUND, first_failure=FailingOp(output(module=module, op="aten.add"))), config)
    assert finding.repair == (Repair("rescale-residual", "eps") if mended else None)


def test_gd402_needs_every_scale_to_overflow() -> None:
    every = scales((0, "overflow"), (16, "overflow"))
    (finding,) = find(replace(SOUND, loss_scales=every, first_failure=FailingOp(output("backward"))))
    assert finding.rule == "GD402"
    assert "down to 1; first aten.convolution in" in finding.message
    assert (finding.evidence["least_scale"], finding.evidence["scales_tried"]) == (1.0, 2)
    (finding,) = find(replace(SOUND, loss_scales=every))
    assert "gradients of 3 parameters, of layer0 among them, are inf or NaN" in finding.message


@pytest.mark.parametrize(("module", "mended"), [(f"{CONV}.bn", True), (f"{CONV}.conv", False), (AUDIO, False)])
def test_gd402_proposes_to_rescale_for_the_norms_that_square_in_float16(module: str, *, mended: bool) -> None:
    """Those of the audio encoder compute in float32, and a convolution's own gradient is another matter."""
    every = scales((0, "overflow"))
    (finding,) = find(
        replace(SOUND, loss_scales=every, first_failure=FailingOp(output("backward", module, "aten.pow")))
    )
    assert finding.repair == (Repair("rescale-conv", "eps") if mended else None)


def test_gd402_is_silent_where_the_forward_pass_failed() -> None:
    every = scales((0, "overflow"))
    assert [f.rule for f in find(replace(SOUND, loss_scales=every, first_failure=FAILURE))] == ["GD401"]


@pytest.mark.parametrize(
    ("seen", "found"),
    [
        ({"error": 0.5, "bfloat16_error": 0.004}, True),
        ({"error": 0.5, "bfloat16_error": 0.004, "nonfinite": 1}, False),  # GD401 names the operation
        ({"error": 0.5, "bfloat16_error": 0.26}, False),  # bfloat16 is as far off: it is not the range
        ({"error": 0.5, "bfloat16_error": 0.24}, True),
        ({"error": 0.09, "bfloat16_error": 0.001}, False),
        ({"error": 0.11, "bfloat16_error": 0.001}, True),
        ({"error": 0.09, "bfloat16_error": 0.001, "collapsed": 0.001}, True),
        ({"error": None}, False),
        ({"error": 0.5, "bfloat16_error": None}, True),
    ],
)
def test_gd403_finds_outputs_that_are_finite_and_wrong(seen: Mapping[str, Any], found: bool) -> None:  # noqa: FBT001
    module = replace(ModuleDrift(f"{CONV}.bn", "RmsNormAct2d", 0.0, 0, 4.7, 0.001), **seen)
    assert [finding.rule for finding in find(replace(SOUND, modules=(module,)))] == ["GD403"] * found


def test_gd403_reports_the_first_module_and_counts_the_others() -> None:
    modules = tuple(
        ModuleDrift(name, "RmsNorm2d", 0.0, 0, 4.7, error, 0.004, collapsed)
        for name, error, collapsed in (
            (f"{CONV}.conv", 0.001, 0.0),
            (f"{CONV}.bn", 1.0, 0.25),
            ("model.next", 0.7, 0.0),
        )
    )
    (finding,) = find(replace(SOUND, modules=modules))
    assert finding.evidence["module"] == f"{CONV}.bn"
    assert finding.repair == Repair("rescale-conv", "eps")
    assert "25.00% of its positions" in finding.message
    assert finding.message.endswith("So do 1 modules after it")


@pytest.mark.parametrize("module", [f"{CONV}.conv", f"{CONV}.conv.inner"])
def test_gd403_names_the_weight_of_the_module_or_of_what_it_is_a_part_of(module: str) -> None:
    (finding,) = find(replace(SOUND, modules=(ModuleDrift(module, "Conv2d", 0.0, 0, 4.7, 0.5, 0.001),)))
    assert (finding.tensor, finding.file) == (WEIGHT, "model.safetensors")


KL = st.floats(0, 10) | st.floats(0, 3e-5) | st.none()


@given(KL, KL)
def test_gd404_compares_with_bfloat16(own: float | None, beside: float | None) -> None:
    found = find(replace(SOUND, drift=Drift(own, 0.5), bfloat16_drift=Drift(beside, 0.9)))
    further = beside is not None and (own is None or own > max(beside, 1e-5))
    assert [finding.rule for finding in found] == ["GD404"] * further


def test_gd404_is_silent_where_an_operation_is_named() -> None:
    drifting = replace(SOUND, first_failure=FAILURE, drift=Drift(None, 0.0), bfloat16_drift=Drift(1e-3, 1.0))
    assert [finding.rule for finding in find(drifting)] == ["GD401"]


@pytest.mark.parametrize(
    ("window", "found"),
    [
        (scales((0, "sound"), (4, "sound"), (5, "overflow")), False),
        (scales((0, "underflow"), (9, "sound"), (12, "sound"), (13, "overflow")), True),
        (scales((0, "underflow"), (1, "overflow")), True),
        (scales((3, "sound")), False),  # the user's own: nothing is known of a window
        (scales((3, "underflow")), True),  # but of this scale
    ],
)
def test_gd405_needs_four_bits_of_room(window: LossScales, found: bool) -> None:  # noqa: FBT001
    findings = find(replace(SOUND, loss_scales=window))
    assert [finding.rule for finding in findings] == ["GD405"] * found


def test_gd405_names_the_layers_on_both_sides() -> None:
    """The nearest on either side, of all that were tried."""
    outcomes = ((0, "underflow"), (8, "underflow"), (9, "sound"), (12, "sound"), (13, "overflow"), (16, "overflow"))
    (finding,) = find(replace(SOUND, loss_scales=scales(*outcomes)))
    assert finding.message == (
        "image run: loss scales from 2^9 to 2^12 are sound, 3 bits of room; above, gradients of layer13 overflow; "
        "below, those of layer8 vanish"
    )


ERROR = st.floats(0, 1) | st.floats(0, 3e-3) | st.none()


@given(ERROR, ERROR)
def test_gd404_compares_the_errors_of_what_are_no_logits(own: float | None, beside: float | None) -> None:
    """Whatever a divergence would say of them."""
    encoding = replace(SOUND, output="last_hidden_state", drift=Drift(9.0, 0.0, own))
    found = find(replace(encoding, bfloat16_drift=Drift(0.0, 1.0, beside)))
    further = beside is not None and (own is None or own > max(beside, 2.0**-10))
    assert [finding.rule for finding in found] == ["GD404"] * further
    assert all("last_hidden_state" in finding.message and "logits" not in finding.message for finding in found)
