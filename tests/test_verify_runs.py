"""One run: what is told of a sound model, of one that fails forward, and of gradients; its reference is plain torch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import tiny_models
import torch
import transformers
from checkpoints import healthy, tiny_gemma3_config, write
from faults import FAULTS, RESNET, VARIANCE, Case, filled
from tiny_models import watching
from torch import nn
from torch.nn.modules.module import register_module_forward_hook

from gemma_doctor import doctor
from gemma_doctor.checkpoint import open_checkpoint
from gemma_doctor.records import Report
from gemma_doctor.verifications import Run
from gemma_doctor.verify.bench import Bench
from gemma_doctor.verify.drift import drift
from gemma_doctor.verify.float16 import Candidate
from gemma_doctor.verify.inputs import Batch, batch
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


@pytest.fixture(scope="module")
def whole(sound: Path) -> tuple[Report, Run]:
    """Of the sound one, with everything."""
    return verified(sound)


def test_a_sound_run_tells_everything_it_measured(whole: tuple[Report, Run]) -> None:
    report, run = whole
    assert {one.phase for one in report.activations} == {"load", "forward", "backward"}
    assert {one.dtype for one in report.activations if one.phase == "load"} == {"F16"}
    assert run.drift is not None
    assert run.bfloat16_drift is not None
    assert (run.drift.kl or 0) < (run.bfloat16_drift.kl or 0)
    norms = [(one.error or 0, one.bfloat16_error or 0) for one in run.modules if one.kind == "Gemma3RMSNorm"]
    assert [mine < other for mine, other in norms] == [True] * 13  # six in each of two layers, and the last
    assert run.loss == pytest.approx(run.reference_loss, rel=1e-2)


def test_gradients_are_watched_at_the_largest_sound_scale(whole: tuple[Report, Run]) -> None:
    """One bit more would overflow, so the largest lies within a bit or two of the limit."""
    report, run = whole
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


@pytest.fixture
def answers() -> Iterator[list[tuple[torch.dtype, torch.Tensor]]]:
    """What each run of a picture model was given, by its dtype, and its logits."""
    seen: list[tuple[torch.dtype, torch.Tensor]] = []

    def see(module: Any, _: object, given: dict[str, torch.Tensor], output: Any) -> None:  # noqa: ANN401
        if isinstance(module, transformers.ResNetForImageClassification):
            seen.append((given["pixel_values"].dtype, output.logits))

    handle = register_module_forward_hook(see, with_kwargs=True)
    yield seen
    handle.remove()


def test_a_collapsed_layer_is_told_beside_its_reference(
    tmp_path: Path, answers: list[tuple[torch.dtype, torch.Tensor]]
) -> None:
    """A variance that is infinite in float16: what is divided by it is 0, and no infinity tells it."""
    case = next(case for case in FAULTS if case.where and case.where[2] == "running_var")
    _, run = verified(case.build(tmp_path / "checkpoint"), modalities=("image",), backward=False)
    assert [dtype for dtype, _ in answers] == [torch.float32, torch.bfloat16, torch.float16]
    assert not any(logits.requires_grad for _, logits in answers)  # nothing waits for a backward pass
    true, _, seen = (logits for _, logits in answers)
    assert run.drift == drift(true, seen) != drift(seen, true)
    norm = next(one for one in run.modules if one.module == VARIANCE.rpartition(".")[0])
    assert (norm.kind, norm.absmax, norm.nonfinite, norm.error, norm.collapsed) == ("BatchNorm2d", 0, 0, 1, 1)
    assert (norm.bfloat16_error or 1) < 0.1
    last = next(one for one in reversed(run.modules) if one.kind == "Linear")
    assert last.reference_absmax == pytest.approx(float(true.abs().max()))
    assert last.absmax == pytest.approx(float(seen.abs().max()))
    assert run.reference_loss == pytest.approx(float(true.square().mean()))


def test_what_failed_before_stays_the_first_failure_where_gradients_do_not_overflow(tmp_path: Path) -> None:
    case = next(case for case in FAULTS if case.where and case.where[2] == "running_var")
    _, run = verified(case.build(tmp_path / "checkpoint"), modalities=("image",), loss_scale=1.0)
    assert run.loss_scales is not None
    assert "overflow" not in {trial.outcome for trial in run.loss_scales.trials}
    assert run.first_failure is not None
    assert (run.first_failure.activation.phase, run.first_failure.reference_absmax) == ("load", 497_160)


class Masked(nn.Module):  # type: ignore[misc]  # torch is not read by the type checker
    """A gradient that overflows at an activation which lets nothing through, so that no parameter's does."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(4, 4), nn.Parameter(torch.full((4,), 2.0**-5))
        self.inner.bias.data.fill_(-100)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor]:
        """Nothing comes from the first summand."""
        return (self.inner(x).relu() * 60_000 + x * self.outer,)


def test_an_infinity_that_reaches_no_gradient_of_a_parameter_is_no_failure() -> None:
    subject = mock.Mock(loaded=lambda dtype, *_: nullcontext(Masked().to(dtype)))
    here, inputs = Bench(SHORT, torch.device("cpu"), 0), Batch("text", {"x": torch.ones(2, 4)}, "ones")
    with torch.enable_grad():
        true = references(here, subject, [inputs])
        with here.model(subject, torch.float16) as model:
            run, seen = Candidate(here, model).run(inputs, true["text"], None)
    assert any(one.stats.inf for one in seen if one.phase == "backward")
    assert run.loss_scales is not None
    assert {trial.outcome for trial in run.loss_scales.trials} == {"sound", "overflow"}  # at the largest, of all
    assert run.first_failure is None


def test_what_even_bfloat16_cannot_hold_has_no_relative_error() -> None:
    """There is no number for it, in JSON neither: 3.4e38 is less than float32's largest and more than bfloat16's."""

    def huge(dtype: torch.dtype) -> nn.Module:
        return nn.Sequential(nn.Linear(4, 8).apply(lambda layer: fill(layer, 3.4e38))).to(dtype)

    subject = mock.Mock(loaded=lambda dtype, *_: nullcontext(huge(dtype)))
    measures = replace(SHORT, backward=False)
    here, inputs = Bench(measures, torch.device("cpu"), 0), Batch("text", {"input": torch.ones(1, 4) / 4}, "ones")
    true = references(here, subject, [inputs])
    beside = bfloat16(here, subject, [inputs], true)
    with here.model(subject, torch.float16) as model:
        run, _ = Candidate(here, model).run(inputs, true["text"], beside["text"])
    ((module,), (kept,)) = run.modules, true["text"].kept.values()
    assert kept.peak == pytest.approx(3.4e38)
    assert (module.module, module.error, module.bfloat16_error) == ("0", None, None)


def fill(layer: nn.Linear, value: float) -> None:
    """All of its weights, and no bias."""
    layer.weight.data.fill_(value)
    layer.bias.data.zero_()


def test_autocast_is_given_the_input_in_float32(
    tmp_path: Path, answers: list[tuple[torch.dtype, torch.Tensor]]
) -> None:
    """As a trainer gives it."""
    checkpoint = Case("sound", RESNET, lambda _: None).build(tmp_path / "checkpoint")
    verified(checkpoint, modalities=("image",), backward=False, reference="none", mode="amp")
    assert [dtype for dtype, _ in answers] == [torch.float32]


def test_the_search_for_loss_scales_begins_where_the_reference_says(tmp_path: Path) -> None:
    """Three passes backward: at the largest sound scale, which is not the usual one, at the next, and at 1."""
    tensors = healthy(tiny_gemma3_config())
    tensors["model.norm.weight"] += 50
    _, run = verified(write(tmp_path / "checkpoint", tensors, tiny_gemma3_config()))
    assert run.loss_scales is not None
    tried = [trial.scale for trial in run.loss_scales.trials]
    most = max(run.loss_scales.sound)
    assert tried == [1.0, most, 2 * most]
    assert most < 2.0**14


def test_what_a_module_made_of_the_reference_is_told_for_a_calibration(whole: tuple[Report, Run], sound: Path) -> None:
    """Its largest output, and of sequences the least mean square over the channels."""
    words = batch(read_config(open_checkpoint(sound)), "text", SHORT.request).arguments
    model, seen, norm = tiny_models.load(sound).model, [], "model.layers.1.post_feedforward_layernorm"
    with watching({norm: model.get_submodule(norm)}, lambda *call: seen.append(call[-1])):
        model(**words, use_cache=False)
    ((true,), (told,)) = seen, (one for one in whole[1].modules if one.module == norm)
    assert told.reference_absmax == pytest.approx(float(true.abs().max()), rel=1e-5)
    assert told.mean_square_min == pytest.approx(float(true.square().mean(-1).min()), rel=1e-5)
    assert told.absmax == pytest.approx(told.reference_absmax, rel=1e-2)


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
