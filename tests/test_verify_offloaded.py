"""A model that its device cannot hold: accelerate keeps its weights elsewhere, and what they become is still seen.

accelerate's hooks are the real ones, with a CPU as the device that runs: in memory and on disk.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import accelerate
import numpy as np
import pytest
import tiny_models  # noqa: F401  # makes torchvision importable beside a torch for CPUs
import torch
from checkpoints import healthy, tiny_gemma3_config, write

from gemma_doctor import doctor
from gemma_doctor.errors import UsageError
from gemma_doctor.records import Report
from gemma_doctor.verify import machine
from gemma_doctor.verify.loading import Subject
from gemma_doctor.verify.measures import Measures, Request

WEIGHT = "model.layers.1.mlp.up_proj.weight"
CPU = torch.device("cpu")


@pytest.fixture(params=["memory", "disk"])
def offloading(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Every model is loaded as one that does not fit."""
    load = Subject._load  # noqa: SLF001  # the one place where models are loaded

    def offloaded(self: Subject, dtype: torch.dtype, _memory: object) -> Any:  # noqa: ANN401  # a class of transformers
        model = load(self, dtype, None)
        if request.param == "memory":
            return accelerate.cpu_offload(model, execution_device=CPU)
        return accelerate.disk_offload(model, str(tmp_path / f"{dtype}"), execution_device=CPU)

    monkeypatch.setattr(Subject, "_load", offloaded)
    monkeypatch.setattr(machine, "room", lambda *_: {"cpu": 1})


def verified(folder: Path, *, planted: float | None, backward: bool = False) -> Report:
    tensors = healthy(tiny_gemma3_config())
    if planted is not None:
        changed = np.array(tensors[WEIGHT], np.float32)
        changed[0, 0] = planted
        tensors = {**tensors, WEIGHT: changed}
    checkpoint = write(folder / "checkpoint", tensors, tiny_gemma3_config())
    measures = Measures(device="cpu", backward=backward, modalities=("text",), request=Request(length=8))
    with torch.enable_grad():
        return doctor.verify(checkpoint, measures)


@pytest.mark.usefixtures("offloading")
def test_an_offloaded_weight_that_overflows_in_the_cast_is_named(tmp_path: Path) -> None:
    report = verified(tmp_path, planted=1e5)
    (run,) = report.verification.runs if report.verification else ()
    assert run.first_failure is not None
    seen = run.first_failure.activation
    assert (seen.phase, f"{seen.module}.{seen.op}", seen.stats.inf) == ("load", WEIGHT, 1)
    assert run.first_failure.reference_absmax == 1e5
    assert "GD401" in {finding.rule for finding in report.findings}


@pytest.mark.usefixtures("offloading")
def test_an_offloaded_model_that_is_sound_raises_no_alarm(tmp_path: Path) -> None:
    report = verified(tmp_path, planted=None)
    assert report.findings == ()
    assert report.verification is not None
    assert report.verification.runs[0].operations > 100


@pytest.mark.usefixtures("offloading")
def test_gradients_of_an_offloaded_model_are_refused(tmp_path: Path) -> None:
    """Accelerate drops them with the weights that it filled in."""
    with pytest.raises(UsageError, match="--no-backward"):
        verified(tmp_path, planted=None, backward=True)
