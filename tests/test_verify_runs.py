"""One run: what is told of a sound model, of one that fails forward, and of gradients; its reference is plain torch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from checkpoints import healthy, tiny_gemma3_config, write
from faults import FAULTS, RESNET, VARIANCE, Case, filled

from gemma_doctor import doctor
from gemma_doctor.checkpoint import open_checkpoint
from gemma_doctor.records import Report
from gemma_doctor.verifications import Run
from gemma_doctor.verify.bench import Bench
from gemma_doctor.verify.drift import drift
from gemma_doctor.verify.inputs import batch
from gemma_doctor.verify.loading import read_config
from gemma_doctor.verify.measures import Measures, Request
from gemma_doctor.verify.outputs import Kept
from gemma_doctor.verify.reference import Reference, bfloat16, peaks, references

SHORT = Measures(device="cpu", modalities=("text",), request=Request(length=8))


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = tiny_gemma3_config()
    return write(tmp_path_factory.mktemp("sound") / "checkpoint", healthy(config), config)


def verified(checkpoint: Path, **how: Any) -> tuple[Report, Run]:  # noqa: ANN401  # fields of Measures
    with torch.enable_grad():
        report = doctor.verify(checkpoint, replace(SHORT, **how))
    assert report.verification is not None
    (run,) = report.verification.runs
    return report, run


def test_a_sound_run_tells_everything_it_measured(sound: Path) -> None:
    report, run = verified(sound)
    assert {one.phase for one in report.activations} == {"load", "forward", "backward"}
    assert {one.dtype for one in report.activations if one.phase == "load"} == {"F16"}
    assert run.drift is not None
    assert run.bfloat16_drift is not None
    assert (run.drift.kl or 0) < (run.bfloat16_drift.kl or 0)
    norms = [(one.error or 0, one.bfloat16_error or 0) for one in run.modules if one.kind == "Gemma3RMSNorm"]
    assert [mine < other for mine, other in norms] == [True] * 13  # six in each of two layers, and the last
    assert run.loss == pytest.approx(run.reference_loss, rel=1e-2)


def test_gradients_are_watched_at_the_largest_sound_scale(sound: Path) -> None:
    """One bit more would overflow, so the largest lies within a bit or two of the limit."""
    report, run = verified(sound)
    assert run.loss_scales is not None
    assert max(trial.scale for trial in run.loss_scales.trials) > max(run.loss_scales.sound)
    narrow = (one.headroom for one in report.activations if (one.phase, one.dtype) == ("backward", "F16"))
    assert 0 <= min(room for room in narrow if room is not None) < 2


def test_where_every_scale_overflows_the_least_tells_where(tmp_path: Path) -> None:
    """At a larger one, gradients overflow nearer to the loss."""
    case = next(case for case in FAULTS if "projection" in case.name)
    _, run = verified(case.build(tmp_path / "checkpoint"), reference="none", request=Request(length=16))
    assert run.loss_scales is not None
    assert len(run.loss_scales.trials) > 1
    assert run.first_failure is not None
    seen = run.first_failure.activation
    assert (seen.phase, seen.module, seen.op) == case.where


def test_one_loss_scale_that_is_asked_for_is_the_only_one(sound: Path) -> None:
    _, run = verified(sound, loss_scale=8.0, reference="none")
    assert run.loss_scales is not None
    assert [trial.scale for trial in run.loss_scales.trials] == [8.0]


def test_autocast_multiplies_in_float16_and_keeps_the_weights(sound: Path) -> None:
    report, _ = verified(sound, mode="amp", backward=False, reference="none")
    dtypes = {
        one.phase: {other.dtype for other in report.activations if other.phase == one.phase}
        for one in report.activations
    }
    assert dtypes == {"load": {"F32"}, "forward": {"F16", "F32"}}
    assert {one.dtype for one in report.activations if one.op == "aten.mm"} == {"F16"}


def test_where_the_loss_is_not_finite_no_loss_scale_is_tried(tmp_path: Path) -> None:
    tensors = healthy(tiny_gemma3_config())
    tensors["model.embed_tokens.weight"][:, 0] = 30_000.0
    report, run = verified(write(tmp_path / "checkpoint", tensors, tiny_gemma3_config()))
    assert (run.loss, run.loss_scales) == (None, None)
    assert any(one.nonfinite and one.error is None for one in run.modules)
    assert [finding.rule for finding in report.findings] == ["GD401"]


def test_a_weight_that_was_infinite_before_is_not_the_casts_fault(tmp_path: Path) -> None:
    """A scan reports it. Here the reference divides by it, too."""
    case = Case("infinite", RESNET, filled(VARIANCE, float("inf")))
    _, run = verified(case.build(tmp_path / "checkpoint"), modalities=("image",), backward=False)
    assert run.first_failure is None


def test_the_reference_is_what_plain_torch_computes(sound: Path) -> None:
    subject = read_config(open_checkpoint(sound))
    inputs = batch(subject, "text", SHORT.request)
    here = Bench(SHORT, torch.device("cpu"), 0)
    with torch.enable_grad():
        true = references(here, subject, [inputs])
        wide = tiny_models.load(sound).model
        for parameter in wide.parameters():
            parameter.requires_grad_()
        plain = wide(**inputs.arguments, use_cache=False)
        plain.loss.backward()
    reference = true["text"]
    assert reference.logits == pytest.approx(plain.logits.detach(), abs=1e-5)
    assert reference.loss == pytest.approx(float(plain.loss.detach()))
    largest = {name: float(parameter.grad.abs().max()) for name, parameter in wide.named_parameters()}
    assert {name: stats.absmax for name, stats in reference.gradients.items()} == pytest.approx(largest, rel=1e-3)
    beside = bfloat16(here, subject, [inputs], true)["text"]
    narrow = tiny_models.load(sound, torch.bfloat16).model(**inputs.arguments, use_cache=False).logits
    assert beside.drift.kl == pytest.approx(drift(plain.logits.detach(), narrow).kl, rel=1e-2)
    assert 0 < beside.errors["lm_head"] < 0.1


@pytest.mark.parametrize(
    ("logits", "loss", "sound"), [(1.0, 1.0, True), (float("nan"), 1.0, False), (1.0, float("inf"), False)]
)
def test_a_reference_must_be_finite(logits: float, loss: float, *, sound: bool) -> None:
    assert Reference({}, {}, {}, {}, torch.tensor([0.0, logits]), loss).sound is sound


def test_peaks_are_over_all_calls_of_a_module() -> None:
    figures = {("norm", 0): (9.0, 4.0), ("norm", 1): (3.0, None), ("norm", 2): (5.0, 2.0), ("norm", 3): (1.0, 3.0)}
    kept = {call: Kept("Norm", torch.zeros(1), *pair) for call, pair in figures.items()}
    kept["other", 0] = Kept("Linear", torch.zeros(1), 7.0, None)
    assert peaks(Reference(kept, {}, {}, {}, torch.zeros(1), 0.0)) == {"norm": (9.0, 2.0), "other": (7.0, None)}
