"""GD104: convolutions whose outputs can leave their limit, on a small Gemma 3n with all of its encoder's blocks."""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction
from functools import cache

import numpy as np
import pytest
from checkpoints import (
    PUBLISHED,
    Array,
    Tensors,
    healthy,
    plant,
    plant_published,
    tiny_gemma3_multimodal_config,
    tiny_gemma3n_config,
    without,
)
from examinations import examine, find

from gemma_doctor.architectures.bounds import Bound, Prover
from gemma_doctor.architectures.expressions import (
    AfterNorm,
    Input,
    Joined,
    Linear,
    Pooled,
    Repeated,
    Scaled,
    Sum,
    Unbounded,
    Within,
)
from gemma_doctor.architectures.typical import typical_rms
from gemma_doctor.records import Finding
from gemma_doctor.tensors import MeasuredTensor, TensorInfo, TensorStats

CONFIG = tiny_gemma3n_config()
ENCODER = "model.vision_tower.timm_model."
FUSION = f"{ENCODER}msfa.ffn.pw_proj.conv.weight"
FUSION_INPUT_GAIN = f"{ENCODER}msfa.ffn.pw_exp.bn.weight"
STEM = f"{ENCODER}conv_stem."


@cache
def sound() -> dict[str, Array]:
    return dict(healthy(CONFIG))


def findings(tensors: Tensors) -> list[Finding]:
    return find("GD104", examine(tensors, CONFIG))


def only(tensors: Tensors) -> Finding:
    (finding,) = findings(tensors)
    return finding


def test_a_healthy_gemma3n_gives_no_finding() -> None:
    assert findings(sound()) == []


def test_behind_a_residual_stream_even_healthy_bounds_leave_the_limit() -> None:
    """Why the proved bound alone is no reason to warn."""
    exam = examine(sound(), CONFIG)
    prover = Prover({name: tensor.stats for name, tensor in exam.tensors.items()})
    proofs = {name: prover.output(conv, exam.tensors[name].stats) for name, conv in exam.model.convs.items()}
    over = [name for name, proof in proofs.items() if isinstance(proof, Bound) and proof.peak > 256]
    assert len(over) > 20


def test_the_published_convolutions_are_named_and_no_other() -> None:
    found = findings(plant_published(sound()))
    assert {finding.tensor: finding.evidence["absmax"] for finding in found} == PUBLISHED
    for finding in found:
        assert (finding.severity, finding.evidence["limit"]) == ("warning", 256)
        assert finding.repair is not None
        assert (finding.repair.pass_name, finding.repair.exactness) == ("rescale-conv", "eps")


def test_the_message_says_what_can_happen_and_why() -> None:
    tensors = plant_published(sound())
    finding = next(finding for finding in findings(tensors) if finding.tensor == FUSION)
    weight, gain = np.asarray(tensors[FUSION], np.float64), np.asarray(sound()[FUSION_INPUT_GAIN], np.float64)
    rows = np.abs(weight).reshape(len(weight), -1)
    row_l1, row_l2 = rows.sum(axis=1).max(), np.sqrt((rows**2).sum(axis=1)).max()
    reach = math.sqrt(gain.size) * np.abs(gain).max()
    bound = reach * min(row_l1, row_l2)
    rms = math.sqrt((gain**2).mean()) * row_l2
    assert finding.evidence["bound"] == pytest.approx(bound)
    assert finding.evidence["bits_over"] == pytest.approx(math.log2(bound / 256))
    assert finding.evidence["typical_rms"] == pytest.approx(rms)
    assert finding.evidence["input_budget"] == pytest.approx(256 / row_l1)
    assert finding.evidence["norm"] == f"{ENCODER}msfa.ffn.pw_proj.bn.weight"
    assert finding.message == (
        "Outputs can pass 256, where the norm 'bn' squares them in float16 and silently makes the whole position 0: "
        f"the proved bound is {bound:.4g} ({math.log2(bound / 256):.1f} bits over), and 16 times their typical rms is "
        f"{16 * rms:.4g}. The largest |w| is 98; inputs up to {256 / row_l1:.3g} are safe whatever their signs."
    )


def test_a_large_weight_behind_a_small_gain_is_proved_safe() -> None:
    tensors = {**plant(sound(), FUSION, 98.0), FUSION_INPUT_GAIN: sound()[FUSION_INPUT_GAIN] / 16}
    assert findings(tensors) == []


def test_the_largest_weight_alone_proves_nothing() -> None:
    assert findings(plant(sound(), f"{ENCODER}blocks.2.9.attn.output.proj.weight", 98.0)) == []


def test_without_the_encoders_norms_the_limit_is_that_of_float16() -> None:
    finding = only(plant(sound(), f"{ENCODER}blocks.2.9.attn.query.proj.weight", 1e5))
    assert (finding.evidence["limit"], finding.evidence["norm"]) == (65504, None)
    assert "become inf, with no norm behind them" in finding.message
    assert finding.repair is not None
    assert finding.repair.pass_name == "rescale-conv"


def test_a_norm_in_float32_has_no_window() -> None:
    name = "model.audio_tower.conformer.0.lconv1d.depthwise_conv1d.weight"
    assert findings(plant(sound(), name, 98.0)) == []
    finding = only(plant(sound(), name, 1e5))
    assert finding.evidence["limit"] == 65504
    assert "become inf before the norm 'conv_norm' reads them" in finding.message


def test_an_input_without_a_bound_is_judged_by_the_budget() -> None:
    name = "model.audio_tower.subsample_conv_projection.conv_1.conv.weight"
    assert findings(plant(sound(), name, 900.0)) == []
    finding = only(plant(sound(), name, 1200.0))
    assert "assumed, not proved" in finding.message
    assert "cumulative group norm" in finding.message


def test_an_infinite_gain_proves_nothing_and_alarms_nobody_else() -> None:
    tensors = plant(sound(), f"{ENCODER}blocks.2.0.pw_proj.bn.weight", math.inf)
    assert findings(tensors) == []
    planted = plant_published(tensors)
    found = {finding.tensor: finding for finding in findings(planted)}
    assert set(found) == set(PUBLISHED)
    residual = found[f"{ENCODER}blocks.2.32.pw_exp.conv.weight"]
    assert residual.evidence["bound"] is None
    assert "no bound is proved" in residual.message
    assert "holds NaN or infinity" in str(residual.evidence["why"])


def test_a_missing_stem_bias_takes_no_proof_away() -> None:
    sick = plant(sound(), f"{STEM}conv.weight", 300.0)
    for tensors in (sick, without(sick, f"{STEM}conv.bias")):
        finding = only(tensors)
        assert finding.tensor == f"{STEM}conv.weight"
        assert finding.evidence["bound"] is not None


def test_a_stored_stem_bias_counts() -> None:
    sick = plant(sound(), f"{STEM}conv.weight", 300.0)
    with_bias = plant(sick, f"{STEM}conv.bias", 50.0)
    lift = [only(tensors).evidence["bound"] for tensors in (sick, with_bias)]
    assert lift[1] == pytest.approx(float(str(lift[0])) + 50)


def test_a_convolution_that_nothing_absorbs_is_upcast() -> None:
    config = tiny_gemma3_multimodal_config()
    name = "vision_tower.vision_model.embeddings.patch_embedding.weight"
    assert find("GD104", examine(healthy(config), config)) == []
    (finding,) = find("GD104", examine(plant(healthy(config), name, 1e5), config))
    assert finding.repair is not None
    assert (finding.repair.pass_name, finding.repair.exactness) == ("upcast-conv", "exact")


@pytest.mark.parametrize(("elements", "reported"), [(2047, False), (2048, True)])
def test_an_unknown_convolution_is_judged_by_its_budget(elements: int, reported: bool) -> None:  # noqa: FBT001
    """Rows of 2047 * 0.5 have a budget of 65504 / 1023.5, exactly 64."""
    found = find("GD104", examine({"decoder.conv.weight": np.full((2, elements, 1), 0.5, np.float32)}))
    assert [finding.evidence["assumed_input"] for finding in found] == [64] * reported
    assert all("assumed, not proved" in finding.message for finding in found)


@pytest.mark.parametrize("name", ["decoder.deconv.weight", "decoder.dense.weight", "decoder.norm.weight"])
def test_only_convolutions_with_output_rows_are_judged(name: str) -> None:
    shape = {"deconv": (2, 4096, 3), "dense": (2, 4096), "norm": (4096,)}[name.split(".")[1]]
    assert find("GD104", examine({name: np.ones(shape, np.float32)})) == []


def test_a_partial_selection_still_finds_what_needs_no_proof() -> None:
    exam = examine(plant_published(sound()), CONFIG)
    part = replace(exam, tensors={name: exam.tensors[name] for name in PUBLISHED}, selected=False)
    assert {finding.tensor for finding in find("GD104", part)} == set(PUBLISHED)


def measured(shape: tuple[int, ...], squares: Fraction | None) -> MeasuredTensor:
    info = TensorInfo("", "F32", shape, "", 0, 0)
    return MeasuredTensor(info, TensorStats(count=math.prod(shape), squares=squares), "other")


TENSORS = {
    "huge": measured((2,), None),
    "huge matrix": measured((2, 2), None),
    "three": measured((2,), Fraction(18)),
    "weight": measured((4, 2), Fraction(100)),
}
NORMED = AfterNorm("three", 2)


@pytest.mark.parametrize(
    ("source", "rms"),
    [
        (Within(12.5, 1, "pixels"), 12.5),
        (NORMED, 3.0),
        (Scaled("three", NORMED), 9.0),
        (Linear("weight", NORMED), 15.0),
        (Sum((NORMED, Within(4.0, 1, "pixels"))), 5.0),
        (Joined((NORMED, Within(4.0, 1, "pixels"))), 4.0),
        (Pooled(NORMED), 3.0),
        (Repeated(NORMED, 4), 3.0),
    ],
)
def test_the_typical_rms_adds_independent_parts(source: Input, rms: float) -> None:
    assert typical_rms(source, TENSORS) == rms


UNKNOWN = (Unbounded("nobody knows"), AfterNorm("absent", 2), AfterNorm("huge", 2), Linear("huge matrix", NORMED))


@pytest.mark.parametrize("unknown", UNKNOWN)
@pytest.mark.parametrize("wrap", ["itself", "scaled", "linear", "sum", "joined", "pooled"])
def test_what_is_unknown_makes_the_whole_unknown(unknown: Input, wrap: str) -> None:
    wrapped: dict[str, Input] = {
        "itself": unknown,
        "scaled": Scaled("three", unknown),
        "linear": Linear("weight", unknown),
        "sum": Sum((NORMED, unknown)),
        "joined": Joined((NORMED, unknown)),
        "pooled": Pooled(unknown),
    }
    assert math.isnan(typical_rms(wrapped[wrap], TENSORS))
