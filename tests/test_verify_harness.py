"""What a verification runs, what it leaves out and says so, and what it refuses before anything is loaded."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny_models
import torch
from checkpoints import healthy, tiny_gemma3_config, tiny_gemma3_multimodal_config, write
from faults import FAULTS
from PIL import Image
from torch import nn
from torch.nn.modules.module import register_module_forward_hook

from gemma_doctor import doctor
from gemma_doctor.checkpoint import open_checkpoint
from gemma_doctor.choices import Mode
from gemma_doctor.errors import UsageError
from gemma_doctor.verify import machine
from gemma_doctor.verify.drift import drift
from gemma_doctor.verify.inputs import batch
from gemma_doctor.verify.loading import Subject, read_config
from gemma_doctor.verify.measures import Measures, Request

SHORT = Measures(device="cpu", backward=False, request=Request(length=8))
PICTURES = next(case for case in FAULTS if case.config["model_type"] == "resnet")
RESIDUAL = next(case for case in FAULTS if "residual" in case.name)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = tiny_gemma3_config()
    return write(tmp_path_factory.mktemp("sound") / "checkpoint", healthy(config), config)


def test_a_reference_that_is_not_finite_judges_nothing(tmp_path: Path) -> None:
    """Then nothing is known of float16, and silence would be a verdict."""
    tensors = healthy(tiny_gemma3_config())
    tensors["model.norm.weight"][0] = np.nan
    report = doctor.verify(write(tmp_path / "checkpoint", tensors, tiny_gemma3_config()), SHORT)
    assert doctor.exit_code(report) == 2
    ((skipped,), coverage) = report.coverage.skipped, report.coverage
    assert (skipped.tensor, coverage.expected, coverage.measured) == ("float16 run, text", 1, 0)
    assert "the float32 reference is not finite either" in skipped.reason


def test_an_input_that_cannot_be_made_is_left_out_unless_it_was_asked_for(tmp_path: Path) -> None:
    config = tiny_gemma3_multimodal_config()
    checkpoint = write(tmp_path / "checkpoint", healthy(config), config)
    how = replace(SHORT, reference="none", request=Request(length=8, image=tmp_path / "lost.png"))
    report = doctor.verify(checkpoint, how)
    assert doctor.exit_code(report) == 2
    assert (report.coverage.expected, report.coverage.measured) == (2, 1)
    assert report.verification is not None
    assert [run.modality for run in report.verification.runs] == ["text"]
    assert [one.tensor for one in report.coverage.skipped] == ["float16 run, image"]
    with pytest.raises(UsageError, match=r"lost\.png cannot be read"):
        doctor.verify(checkpoint, replace(how, modalities=("image",)))


def test_where_no_input_can_be_made_the_reason_is_told(tmp_path: Path) -> None:
    checkpoint = PICTURES.build(tmp_path / "checkpoint")
    with pytest.raises(UsageError, match=r"lost\.png cannot be read"):
        doctor.verify(checkpoint, replace(SHORT, request=Request(image=tmp_path / "lost.png")))


def test_another_model_is_not_compared(sound: Path, tmp_path: Path) -> None:
    config = {**tiny_gemma3_config(), "vocab_size": 96}
    other = write(tmp_path / "other", healthy(config), config)
    with pytest.raises(UsageError, match="--against: another model, its logits cannot be compared"):
        doctor.verify(sound, SHORT, against=other)
    with pytest.raises(UsageError, match="leave out --reference none"):
        doctor.verify(sound, replace(SHORT, reference="none"), against=sound)


def test_the_report_says_how_it_was_run_and_how_far_this_checkpoint_is_from_the_other(
    sound: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the divergence of this one's answers from the other's, which is not the one the other way round."""
    tensors = healthy(tiny_gemma3_config())
    tensors["model.norm.weight"] += 9
    other = write(tmp_path / "other", tensors, tiny_gemma3_config())
    monkeypatch.setattr(machine, "peak_memory", lambda _: 123)
    how = replace(SHORT, mode="amp", backward=True, loss_scale=1.0, frozen=("*embed*",), memory_limit=16.0)
    with torch.enable_grad():
        verification = doctor.verify(sound, how, against=other).verification
    assert verification is not None
    assert (verification.mode, verification.backward, verification.frozen) == ("amp", True, ("*embed*",))
    assert (verification.against, verification.peak_memory) == (str(other), 123)
    assert verification.device.startswith("CPU (")
    assert "a T4's memory (--memory-limit holds on a GPU only)" in verification.not_imitated
    (seen,) = (run.against_drift for run in verification.runs)
    words = batch(read_config(open_checkpoint(sound)), "text", SHORT.request).arguments
    mine, theirs = (tiny_models.load(one).model(**words, use_cache=False).logits for one in (sound, other))
    assert seen is not None
    assert seen.kl == pytest.approx(drift(theirs, mine).kl, rel=1e-3)
    assert seen.kl != pytest.approx(drift(mine, theirs).kl, rel=1e-2)


def test_what_a_model_draws_itself_follows_the_seed(tmp_path: Path) -> None:
    """Its picture is the user's, so that nothing else does."""
    checkpoint = PICTURES.build(tmp_path / "checkpoint")
    Image.new("RGB", (64, 64), (200, 100, 50)).save(tmp_path / "own.png")

    def noisy(module: nn.Module, _: object, output: torch.Tensor) -> torch.Tensor | None:
        return output + torch.rand_like(output) if isinstance(module, nn.Linear) else None

    def loss(seed: int) -> float | None:
        how = replace(SHORT, reference="none", request=Request(seed=seed, image=tmp_path / "own.png"))
        verification = doctor.verify(checkpoint, how).verification
        return verification.runs[0].loss if verification else None

    handle = register_module_forward_hook(noisy)
    try:
        first = loss(1)
        torch.rand(1)
        assert loss(1) == first != loss(2)
    finally:
        handle.remove()


def test_a_file_for_a_kind_of_input_that_is_left_out_is_refused(tmp_path: Path) -> None:
    config = tiny_gemma3_multimodal_config()
    checkpoint = write(tmp_path / "checkpoint", healthy(config), config)
    how = replace(SHORT, modalities=("text",), request=Request(length=8, image=tmp_path / "own.png"))
    with pytest.raises(UsageError, match=r"own\.png would not be used: --modality leaves image out"):
        doctor.verify(checkpoint, how)


def test_the_guard_mends_what_overflows_without_it(tmp_path: Path) -> None:
    """tests/test_verify_faults.py has what is found without."""
    report = doctor.verify(RESIDUAL.build(tmp_path / "checkpoint"), replace(SHORT, guard=True))
    assert report.verification is not None
    found = report.verification
    assert (found.guarded, found.backward, found.sound) == (True, False, True)
    assert report.findings == ()


@pytest.mark.parametrize("mode", ["half", "amp"])
def test_a_model_that_its_device_cannot_hold_is_not_guarded(
    sound: Path, monkeypatch: pytest.MonkeyPatch, mode: Mode
) -> None:
    """It is refused before anything is loaded, by what its own weights take: twice as much in amp."""
    width = {"half": 2, "amp": 4}[mode]
    numel = sum(tensor.size for tensor in healthy(tiny_gemma3_config()).values())
    most = width * numel - 1

    def room(nbytes: int, *_: object, **__: object) -> dict[int, int] | None:
        return {0: most} if nbytes > most else None

    monkeypatch.setattr(machine, "room", room)
    monkeypatch.setattr(Subject, "_load", lambda *_: pytest.fail("it was loaded"))
    need = f"{width * numel / (1 << 30):.3g} GiB, and {most / (1 << 30):.3g} GiB may hold weights"
    with pytest.raises(
        UsageError,
        match=rf"--guard needs every weight on the device: they take {need}.*--device cpu.*gemma-doctor repair",
    ):
        doctor.verify(sound, replace(SHORT, mode=mode, guard=True))


def test_the_guard_is_refused_where_the_runs_before_have_left_too_little(
    sound: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def room(nbytes: int, *_: object, **__: object) -> dict[int, int] | None:
        asked.append(nbytes)
        return {0: 1} if len(asked) > 3 else None  # at the start, for the reference, for bfloat16

    monkeypatch.setattr(machine, "room", room)
    with pytest.raises(UsageError, match="--guard needs every weight"):
        doctor.verify(sound, replace(SHORT, guard=True))
    assert len(asked) == 4
