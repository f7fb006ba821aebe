"""What a verification runs, what it leaves out and says so, and what it refuses before anything is loaded."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny_models  # noqa: F401  # makes torchvision importable beside a torch for CPUs
from checkpoints import healthy, tiny_gemma3_config, tiny_gemma3_multimodal_config, write
from faults import FAULTS

from gemma_doctor import doctor
from gemma_doctor.choices import Mode
from gemma_doctor.errors import UsageError
from gemma_doctor.verify import machine
from gemma_doctor.verify.loading import Subject
from gemma_doctor.verify.measures import Measures, Request

SHORT = Measures(device="cpu", backward=False, request=Request(length=8))
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


def test_another_model_is_not_compared(sound: Path, tmp_path: Path) -> None:
    config = {**tiny_gemma3_config(), "vocab_size": 96}
    other = write(tmp_path / "other", healthy(config), config)
    with pytest.raises(UsageError, match="--against: another model, its logits cannot be compared"):
        doctor.verify(sound, SHORT, against=other)
    with pytest.raises(UsageError, match="leave out --reference none"):
        doctor.verify(sound, replace(SHORT, reference="none"), against=sound)


def test_what_against_says_is_the_drift_of_this_checkpoint_from_the_other(sound: Path, tmp_path: Path) -> None:
    tensors = healthy(tiny_gemma3_config())
    tensors["model.norm.weight"] += 1
    other = write(tmp_path / "other", tensors, tiny_gemma3_config())
    verification = doctor.verify(sound, SHORT, against=other).verification
    assert verification is not None
    (drift,) = (run.against_drift for run in verification.runs)
    assert drift is not None
    assert (drift.kl or 0) > 1e-3


def test_the_guard_mends_what_overflows_without_it(tmp_path: Path) -> None:
    """tests/test_verify_faults.py has what is found without."""
    report = doctor.verify(RESIDUAL.build(tmp_path / "checkpoint"), replace(SHORT, guard=True))
    assert report.verification is not None
    assert (report.verification.guarded, report.verification.sound) == (True, True)
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
    with pytest.raises(
        UsageError, match=r"--guard needs every weight on the device.*--device cpu.*gemma-doctor repair"
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
