"""A model that its device cannot hold: accelerate keeps its weights elsewhere, and what they become is still seen.

accelerate's hooks are the real ones, with a CPU as the device that runs: in memory and on disk. Forward and backward
must tell what they tell of the same model wholly on its device, with no more of it in memory than runs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import accelerate
import faults
import numpy as np
import pytest
import tiny_models  # noqa: F401  # makes torchvision importable beside a torch for CPUs
import torch
from accelerate.utils import OffloadedWeightsLoader
from checkpoints import healthy, tiny_gemma3_config, tiny_gemma3n_text_config, write
from torch.multiprocessing.reductions import StorageWeakRef

from gemma_doctor import doctor
from gemma_doctor.records import Report
from gemma_doctor.verifications import Activation, Run
from gemma_doctor.verify import machine
from gemma_doctor.verify.figures import Figures
from gemma_doctor.verify.loading import Subject
from gemma_doctor.verify.measures import Measures, Request
from gemma_doctor.verify.streaming import Streamed

WEIGHT = "model.layers.1.mlp.up_proj.weight"
CPU = torch.device("cpu")

Spread = Callable[[Any, Path], Any]


def in_memory(model: Any, _: Path) -> Any:  # noqa: ANN401  # a class of transformers
    return accelerate.cpu_offload(model, execution_device=CPU)


def on_disk(model: Any, folder: Path) -> Any:  # noqa: ANN401  # a class of transformers
    return accelerate.disk_offload(model, str(folder), execution_device=CPU)


def in_part(model: Any, folder: Path) -> Any:  # noqa: ANN401  # a class of transformers
    """As transformers spreads a model itself: a layer and the tied embedding stay, the rest is on disk."""
    parts = {f"model.{name}": "disk" for name, _ in model.model.named_children() if name != "layers"}
    layers = {f"model.layers.{at}": "disk" for at in range(1, len(model.model.layers))}
    stay = dict.fromkeys(("model.layers.0", "model.embed_tokens", "lm_head"), "cpu")
    return accelerate.dispatch_model(model, parts | layers | stay, main_device="cpu", offload_dir=str(folder))


def offload(monkeypatch: pytest.MonkeyPatch, folder: Path, spread: Spread) -> None:
    """Every model is loaded as one that does not fit."""
    load = Subject._load  # noqa: SLF001  # the one place where models are loaded

    def offloaded(self: Subject, dtype: torch.dtype, _memory: object) -> Any:  # noqa: ANN401  # a class of transformers
        return spread(load(self, dtype, None), folder / f"{dtype}")

    monkeypatch.setattr(Subject, "_load", offloaded)
    monkeypatch.setattr(machine, "room", lambda *_, **__: {"cpu": 1})


@pytest.fixture(params=[in_memory, on_disk])
def offloading(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Either way."""
    offload(monkeypatch, tmp_path, request.param)


def verified(folder: Path, *, planted: float | None) -> Report:
    tensors = healthy(tiny_gemma3_config())
    if planted is not None:
        changed = np.array(tensors[WEIGHT], np.float32)
        changed[0, 0] = planted
        tensors = {**tensors, WEIGHT: changed}
    checkpoint = write(folder / "checkpoint", tensors, tiny_gemma3_config())
    return run(checkpoint, backward=False)


def run(checkpoint: Path, **how: Any) -> Report:  # noqa: ANN401  # fields of Measures
    short = Measures(device="cpu", modalities=("text",), request=Request(length=8, side=64))
    with torch.enable_grad():
        return doctor.verify(checkpoint, replace(short, **how))


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


@pytest.mark.parametrize(
    ("config", "spread"),
    [
        pytest.param(tiny_gemma3_config(), in_memory, id="gemma3-in-memory"),
        pytest.param(tiny_gemma3_config(), in_part, id="gemma3-in-part"),
        pytest.param(tiny_gemma3n_text_config(), on_disk, id="shared-kv-on-disk"),
    ],
)
def test_an_offloaded_model_runs_backward_like_any_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, config: dict[str, Any], spread: Spread
) -> None:
    checkpoint = write(tmp_path / "checkpoint", healthy(config), config)
    whole = run(checkpoint)
    offload(monkeypatch, tmp_path, spread)
    same(run(checkpoint), whole)


def test_a_model_of_which_no_part_fits_runs_like_any_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is left where it is, on the CPU, by transformers, and its inputs would be on the GPU."""
    config = tiny_gemma3n_text_config()
    checkpoint = write(tmp_path / "checkpoint", healthy(config), config)
    whole = run(checkpoint)
    monkeypatch.setattr(machine, "room", lambda *_, **__: {"cpu": 1 << 40})
    same(run(checkpoint), whole)


@pytest.mark.parametrize(
    "how",
    [{"mode": "amp"}, {"mode": "amp", "checkpointing": True}, {"frozen": ("*.layers.1.*", "*embed*")}],
    ids=str,
)
def test_an_offloaded_model_runs_so_in_every_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: dict[str, Any]
) -> None:
    """Activations are left out: where a layer is computed again, or casts are kept, their places differ."""
    config = tiny_gemma3n_text_config()
    checkpoint = write(tmp_path / "checkpoint", healthy(config), config)
    whole = run(checkpoint, **how)
    offload(monkeypatch, tmp_path, on_disk)
    same(replace(run(checkpoint, **how), activations=()), replace(whole, activations=()))


@pytest.mark.parametrize(
    "case", [case for case in faults.FAULTS if case.backward or "residual" in case.name], ids=lambda case: case.name
)
def test_what_fails_first_is_the_same_operation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: faults.Case
) -> None:
    checkpoint = case.build(tmp_path / "checkpoint")
    whole = run(checkpoint, modalities=(case.modality,))
    assert case.rule in {finding.rule for finding in whole.findings}
    offload(monkeypatch, tmp_path, on_disk)
    same(run(checkpoint, modalities=(case.modality,)), whole)


def same(offloaded: Report, whole: Report) -> None:
    """Findings, losses, drift, loss scales, modules and figures are equal, to the last bit."""
    assert offloaded.findings == whole.findings
    told = [[remark for remark in report.remarks if "host's memory" in remark] for report in (offloaded, whole)]
    assert [len(remarks) for remarks in told] == [1, 0]
    assert [judged(one) for one in runs(offloaded)] == [judged(one) for one in runs(whole)]
    assert [figures(one) for one in offloaded.activations if not added_up(one)] == [
        figures(one) for one in whole.activations if not added_up(one)
    ]


def runs(report: Report) -> tuple[Run, ...]:
    assert report.verification is not None
    return report.verification.runs


def judged(one: Run) -> Run:
    """A run without its time, and without the numbering of operations: see ``added_up``."""
    failure = one.first_failure and replace(one.first_failure, activation=replace(one.first_failure.activation, step=0))
    return replace(one, seconds=0.0, operations=0, first_failure=failure)


def figures(one: Activation) -> Activation:
    return replace(one, step=0)


def added_up(one: Activation) -> bool:
    """Whether autograd copies a gradient to where it adds them up, which an offloaded weight does not have."""
    return one.phase == "backward" and one.op == "aten.copy"


@dataclass
class Alive:
    """Memory of weights that were read and of gradients that came, as far as anything still holds it."""

    known: dict[StorageWeakRef, int] = field(default_factory=dict)
    peak: int = 0

    def see(self, tensor: torch.Tensor) -> None:
        """Count one more."""
        self.known[StorageWeakRef(tensor.untyped_storage())] = tensor.nbytes
        self.known = {one: size for one, size in self.known.items() if not one.expired()}
        self.peak = max(self.peak, sum(self.known.values()))


@pytest.mark.parametrize(
    "how", [{}, {"mode": "amp"}, {"checkpointing": True}, {"frozen": ("*.layers.1.*", "*embed*")}], ids=str
)
def test_weights_and_gradients_of_an_offloaded_model_are_let_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: dict[str, Any]
) -> None:
    """The largest tensor of this model is a sixteenth of it."""
    config = tiny_gemma3n_text_config()
    checkpoint = write(tmp_path / "checkpoint", healthy(config), config)
    alive, read, add, pack = Alive(), OffloadedWeightsLoader.__getitem__, Figures.add, Streamed._pack  # noqa: SLF001

    def reading(self: OffloadedWeightsLoader, name: str) -> torch.Tensor:
        tensor: torch.Tensor = read(self, name).clone()  # as it would be on another device
        alive.see(tensor)
        return tensor

    def adding(self: Figures, name: str, tensor: torch.Tensor) -> None:
        alive.see(tensor)
        add(self, name, tensor)

    def packing(self: Streamed, tensor: torch.Tensor) -> object:
        kept = pack(self, tensor)
        if kept is tensor and any(one.value.shape[::-1] == tensor.shape for one in self._there):
            alive.see(tensor)  # a cast of a weight, transposed for the product
        return kept

    monkeypatch.setattr(Streamed, "_pack", packing)
    monkeypatch.setattr(OffloadedWeightsLoader, "__getitem__", reading)
    monkeypatch.setattr(Figures, "add", adding)
    monkeypatch.setattr(machine, "waiting", lambda _: 1)
    offload(monkeypatch, tmp_path, on_disk)
    run(checkpoint, reference="none", **how)
    width = 4 if how.get("mode") == "amp" else 2
    whole = width * sum(tensor.size for tensor in healthy(config).values())
    assert alive.peak < whole / 4
