"""rescale-residual on real models: what overflows in float16 is finite then, and the same function but for eps."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import (
    Array,
    healthy,
    in_bfloat16,
    tiny_gemma2_config,
    tiny_gemma3_config,
    tiny_gemma3_multimodal_config,
    tiny_gemma3n_config,
    tiny_gemma3n_text_config,
    write,
)
from repairs import carry_out, plan
from tiny_models import answers, load
from written import written

import gemma_doctor
from gemma_doctor.checkpoint import FileBytes, open_checkpoint
from gemma_doctor.plans import Plan, Scale, ScaleGain
from gemma_doctor.repair.evidence.calibration import Calibration, Measured
from gemma_doctor.repair.fingerprint import fingerprint

STREAM_READERS = ("input_layernorm", "pre_feedforward_layernorm", "norm")
PASS = "rescale-residual"


def in_bits(array: Array) -> Array:
    """Rounded to the eight bits of bfloat16, as real checkpoints are."""
    rounded: Array = (np.ascontiguousarray(array, np.float32).view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)
    return rounded


def loud_gains(config: Mapping[str, Any]) -> dict[str, Array]:
    """Gemma 2 or 3 whose norms behind attention and feed-forward write up to 65536 each."""
    tensors = healthy(config)
    for name in tensors:
        if "embed_tokens" in name:
            tensors[name] *= np.float32(64)
        if name.endswith(("post_attention_layernorm.weight", "post_feedforward_layernorm.weight")):
            tensors[name] += np.float32(2.0**14)
    return {name: in_bits(array) for name, array in tensors.items()}


def loud_words(config: Mapping[str, Any]) -> dict[str, Array]:
    """Gemma 3n whose embedding, times sqrt(d), is beyond what it squares."""
    tensors = healthy(config)
    tensors["model.embed_tokens.weight"] *= np.float32(2.0**12)
    return {name: in_bits(array) for name, array in tensors.items()}


@dataclass(frozen=True, slots=True)
class Patient:
    """A model that overflows in float16."""

    config: Mapping[str, Any]
    plant: Callable[[Mapping[str, Any]], dict[str, Array]]
    traced: bool = False


PATIENTS = {
    "gemma2": Patient(tiny_gemma2_config(), loud_gains),
    "gemma3": Patient(tiny_gemma3_config(), loud_gains),
    "gemma3, head of its own": Patient({**tiny_gemma3_config(), "tie_word_embeddings": False}, loud_gains),
    "gemma3-multimodal": Patient(tiny_gemma3_multimodal_config(), loud_gains),
    "gemma3n-text": Patient(tiny_gemma3n_text_config(), loud_words, traced=True),
}


def sick(name: str, folder: Path) -> Path:
    """The patient on disk, in float32."""
    patient = PATIENTS[name]
    return write(folder / "sick", patient.plant(patient.config), {**patient.config, "dtype": "float32"})


def trace(folder: Path) -> Calibration:
    """The peaks of every module's output in float64."""
    peaks = written(load(folder, torch.float64).model)
    return Calibration("trace", {name: Measured(peak) for name, peak in peaks.items() if " (" not in name})


def prescribe(name: str, folder: Path) -> Plan:
    """The plan of this pass alone."""
    return plan(folder, PASS, rules=["GD301"], calibration=trace(folder) if PATIENTS[name].traced else None)


def logits(folder: Path, dtype: torch.dtype) -> torch.Tensor:
    loaded = load(folder, dtype)
    assert loaded.complaints == ()
    return answers(loaded.model)["logits"].double()


def exponent(prescription: Plan) -> int:
    """K of the residual stream."""
    return -next(
        edit.exponent for edit in prescription.edits if isinstance(edit, Scale) and "embed_tokens" in edit.tensor
    )


def error(result: torch.Tensor, reference: torch.Tensor) -> float:
    """The Euclidean distance, as a share of the reference's length; NaN where something is not finite."""
    return float((result - reference).norm() / reference.norm())


@pytest.mark.parametrize("name", PATIENTS)
def test_float16_overflows_and_is_mended(tmp_path: Path, name: str) -> None:
    before = sick(name, tmp_path)
    reference, brain = logits(before, torch.float64), logits(before, torch.bfloat16)
    assert bool(reference.isfinite().all())
    assert not bool(logits(before, torch.float16).isfinite().all())

    prescription = prescribe(name, before)
    assert {edit.pass_name for edit in prescription.edits} == {PASS}
    after = carry_out(prescription, before, tmp_path / "mended")
    half = logits(after, torch.float16)
    assert bool(half.isfinite().all())
    assert error(half, reference) <= error(brain, reference)
    assert error(logits(after, torch.float64), reference) < 2.0**-9


@pytest.mark.parametrize("name", PATIENTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_with_eps_scaled_to_match_every_output_has_the_same_bits(tmp_path: Path, name: str, dtype: torch.dtype) -> None:
    before = sick(name, tmp_path)
    prescription = prescribe(name, before)
    after = carry_out(prescription, before, tmp_path / "mended")
    one, other = load(before, dtype).model, load(after, dtype).model
    expected = answers(one)["logits"]
    k = exponent(prescription)
    assert k > 0
    for path, module in other.named_modules():
        if hasattr(module, "eps") and "vision" not in path and _reads_the_stream(path):
            module.eps *= 4.0**-k
    assert torch.equal(answers(other)["logits"], expected)


def _reads_the_stream(path: str) -> bool:
    return path.rpartition(".")[2] in (*STREAM_READERS, "router_norm", "per_layer_projection_norm")


@pytest.mark.parametrize("name", ["gemma3", "gemma3, head of its own"])
def test_a_certified_model_stays_finite_whatever_the_words(tmp_path: Path, name: str) -> None:
    before = sick(name, tmp_path)
    prescription = prescribe(name, before)
    first = prescription.edits[0].reason
    assert first.evidence["certified"] is True
    assert "cannot overflow in the forward pass, whatever the input" in first.message
    after = carry_out(prescription, before, tmp_path / "mended")
    report = gemma_doctor.scan(after)
    assert [finding for finding in report.findings if finding.rule == "GD301"] == []
    model = load(after, torch.float16).model
    words = torch.randint(0, 64, (16, 12), generator=torch.Generator().manual_seed(0))
    assert bool(model(words).logits.isfinite().all())


def test_writers_that_are_loud_in_different_channels_need_no_power_for_their_sum(tmp_path: Path) -> None:
    """What counts is the loudest channel, not one that would have the largest gain of every layer."""
    config = {**tiny_gemma3_config(), "num_hidden_layers": 4}
    tensors = healthy(config)
    loud = np.float32(2.0**15)  # the largest of a norm over 16 channels is 4 times that: a little beyond float16
    ends = ("post_attention_layernorm.weight", "post_feedforward_layernorm.weight")
    writers = [name for name in tensors if name.endswith(ends)]
    for channel, name in enumerate(writers):
        tensors[name][:] = 0
        tensors[name][channel] = loud
    before = write(tmp_path / "sick", {name: in_bits(array) for name, array in tensors.items()}, config)
    assert len(writers) == 8
    gains = np.stack([1 + in_bits(tensors[name]) for name in writers])
    reach = 4 * float(np.abs(gains).sum(axis=0).max()) * 1.1  # and what rounding may add
    prescription = plan(before, PASS, rules=["GD301"])
    assert exponent(prescription) == math.floor(math.log2(reach / 65504)) + 1 == 2
    reason = prescription.edits[0].reason
    assert reason.evidence["certified"] is True
    model = load(carry_out(prescription, before, tmp_path / "mended"), torch.float16).model
    words = torch.randint(0, 64, (16, 12), generator=torch.Generator().manual_seed(0))
    assert bool(model(words).logits.isfinite().all())


def test_gemma_3n_with_image_and_sound_is_refused(tmp_path: Path) -> None:
    config = tiny_gemma3n_config()
    tensors = healthy(config)
    tensors["model.language_model.embed_tokens.weight"] *= np.float32(2.0**12)
    folder = write(tmp_path / "sick", tensors, {**config, "dtype": "float32"})
    refused = plan(folder, PASS, rules=["GD301"])
    assert refused.edits == ()
    assert any("soft tokens" in left.reason for left in refused.left)


def inverse(done: Plan, folder: Path) -> Plan:
    """The plan that takes every scaling back, for what the first one made."""
    edits = tuple(
        replace(edit, exponent=-edit.exponent) for edit in reversed(done.edits) if isinstance(edit, Scale | ScaleGain)
    )
    assert len(edits) == len(done.edits)
    checkpoint = open_checkpoint(folder)
    with FileBytes(checkpoint) as files:
        return replace(done, edits=edits, fingerprint=fingerprint(checkpoint, files, [edit.tensor for edit in edits]))


@pytest.mark.parametrize("name", PATIENTS)
def test_a_plan_and_its_inverse_restore_every_byte(tmp_path: Path, name: str) -> None:
    before = sick(name, tmp_path)
    there = prescribe(name, before)
    mended = carry_out(there, before, tmp_path / "mended")
    restored = carry_out(inverse(there, mended), mended, tmp_path / "restored")
    files = ("model.safetensors",)
    assert all((mended / file).read_bytes() != (before / file).read_bytes() for file in files)
    assert all((restored / file).read_bytes() == (before / file).read_bytes() for file in files)


def test_gains_stored_in_bfloat16_become_float32(tmp_path: Path) -> None:
    config = tiny_gemma3_config()
    folder = write(tmp_path / "sick", in_bfloat16(loud_gains(config)), config)
    prescription = plan(folder, PASS, rules=["GD301"])
    after = carry_out(prescription, folder, tmp_path / "mended")
    stored = {name: info.dtype for name, info in open_checkpoint(after).tensors.items()}
    gains = {edit.tensor for edit in prescription.edits if isinstance(edit, ScaleGain)}
    assert len(gains) == 5
    assert {name for name, dtype in stored.items() if dtype == "F32"} == gains


def test_the_image_encoders_stream_shrinks_where_a_proof_needs_it_and_gives_the_same(tmp_path: Path) -> None:
    """Only the rescaling of SigLIP's stream can bring these bounds under the limit: layer norms take the factor out."""
    config = tiny_gemma3_multimodal_config()
    tensors = healthy(config)
    for name in tensors:
        if "vision_tower" in name and "mlp.fc2" in name:
            tensors[name] = tensors[name] * np.float32(2.0**15)
        elif "patch_embedding" in name:
            tensors[name] = tensors[name] * np.float32(4)
    sick = write(tmp_path / "sick", tensors, config)
    before = gemma_doctor.scan(sick)
    assert before.proof is not None
    assert not before.proof.certified
    prescription = plan(sick, PASS)
    powers = {edit.tensor: edit.exponent for edit in prescription.edits if isinstance(edit, Scale)}
    layers = config["vision_config"]["num_hidden_layers"]
    assert len(powers) == 3 + 4 * layers
    (power,) = set(powers.values())
    assert power < 0
    mended = carry_out(prescription, sick, tmp_path / "mended")
    after = gemma_doctor.scan(mended)
    assert after.proof is not None
    assert after.proof.certified
    size = config["vision_config"]["image_size"]
    pixels = torch.rand((1, 3, size, size), generator=torch.Generator().manual_seed(0)) * 2 - 1
    true, seen = (load(folder).model.model.vision_tower(pixels).last_hidden_state for folder in (sick, mended))
    assert (seen - true).abs().max() < 1e-3 * true.abs().max()
