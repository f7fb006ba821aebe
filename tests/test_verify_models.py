"""Models of other families, and of other ways to load: whatever transformers knows is run."""

from __future__ import annotations

import gc
import os
import weakref
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import tiny_models  # noqa: F401  # makes torchvision importable beside a torch for CPUs
import torch
import transformers
from checkpoints import healthy, tiny_gemma3_config, tiny_gemma3n_text_config, write
from command import run
from torch import nn

from gemma_doctor import doctor
from gemma_doctor.checkpoint import open_checkpoint
from gemma_doctor.errors import CheckpointError, UsageError
from gemma_doctor.verify import bench, loading, machine
from gemma_doctor.verify.inputs import batch
from gemma_doctor.verify.measures import Measures, Request
from gemma_doctor.verify.reference import references

CPU = torch.device("cpu")
SHORT = Measures(device="cpu", request=Request(length=8))


def test_a_llama_is_run(tmp_path: Path) -> None:
    config = transformers.LlamaConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, vocab_size=64
    )
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path)
    with torch.enable_grad():
        report = doctor.verify(tmp_path, SHORT)
    assert doctor.exit_code(report) == 0
    assert report.verification is not None
    assert [run.modality for run in report.verification.runs] == ["text"]
    assert report.source.architecture == "llama"


@pytest.mark.parametrize(
    ("config", "backward", "warned"),
    [
        (tiny_gemma3n_text_config(), True, True),
        (tiny_gemma3n_text_config(), False, False),  # nothing is said of training
        (tiny_gemma3_config(), True, False),  # no layer shares KV
    ],
)
def test_layers_that_share_kv_are_warned_of_reentrant_checkpointing(
    tmp_path: Path, config: dict[str, Any], *, backward: bool, warned: bool
) -> None:
    how = replace(SHORT, backward=backward, reference="none", loss_scale=1.0)
    with torch.enable_grad():
        report = doctor.verify(write(tmp_path / "checkpoint", healthy(config), config), how)
    assert [remark for remark in report.remarks if "use_reentrant=False" in remark] == list(report.remarks)
    assert len(report.remarks) == warned


def test_layers_that_are_computed_again_have_the_same_gradients(tmp_path: Path) -> None:
    """To the last bit, though they share KV: reentrant, transformers 5.23 gives others."""
    config = tiny_gemma3n_text_config()
    subject = loading.read_config(open_checkpoint(write(tmp_path / "checkpoint", healthy(config), config)))
    batches = [batch(subject, "text", SHORT.request)]
    found = []
    for checkpointing in (False, True):
        here = bench.Bench(replace(SHORT, checkpointing=checkpointing), CPU, 0)
        with torch.enable_grad():
            reference = references(here, subject, batches)["text"]
        again = {key[2] for key in reference.figures if key[0] == "backward" and "backward" not in key[2]}
        assert any("attention" in op for op in again) is checkpointing
        found.append((reference.loss, reference.gradients))
    assert len(found[0][1]) > 50
    assert found[0] == found[1]


class Layer(nn.Module):  # type: ignore[misc]  # torch is not read by the type checker
    """Computed again in the backward pass, where its model says so, and only while training."""

    def __init__(self) -> None:
        super().__init__()
        self.gradient_checkpointing, self.dropout = False, 0.5

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """With dropout while training."""
        return nn.functional.dropout(x, self.dropout, self.training)


class Layers(nn.Module):  # type: ignore[misc]  # as above
    """A model of one such layer, and of one that is never computed again."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.other = Layer(), nn.Dropout(0.5)

    def gradient_checkpointing_enable(self, *, gradient_checkpointing_kwargs: dict[str, bool]) -> None:
        """As transformers before 5.23 has it."""
        assert gradient_checkpointing_kwargs == {"use_reentrant": False}
        self.first.gradient_checkpointing = True


def test_layers_that_are_computed_again_drop_nothing() -> None:
    """They must think that they are trained; what they compute must not differ."""
    subject = mock.Mock(loaded=lambda *_: nullcontext(Layers().eval()))
    with bench.Bench(replace(SHORT, checkpointing=True), CPU, 0).model(subject, torch.float32) as model:
        assert (model.first.training, model.other.training) == (True, False)
        assert model.other(model.first(torch.ones(64))).tolist() == [1.0] * 64


def test_a_bfloat16_operation_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a model that computes its norms in bfloat16 would have it."""
    norm = transformers.models.gemma3.modeling_gemma3.Gemma3RMSNorm
    monkeypatch.setattr(norm, "_norm", lambda self, x: _normalised(x.bfloat16(), self.eps).float())
    config = tiny_gemma3_config()
    report = doctor.verify(write(tmp_path / "checkpoint", healthy(config), config), Measures("cpu", backward=False))
    (remark,) = report.remarks
    assert "aten._to_copy in model.layers.0.input_layernorm first; a T4 has none" in remark


def _normalised(x: torch.Tensor, eps: float) -> torch.Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)


@pytest.mark.parametrize(
    ("nbytes", "limit", "backward", "spread"),
    [
        (1 << 30, None, False, None),
        (16 << 30, None, False, 9),
        (6 << 30, 8.0, False, None),
        (8 << 30, 8.0, False, 7),
        (8 << 30, None, True, 6),
        (5 << 30, None, True, None),
    ],
)
def test_a_model_is_spread_where_its_device_cannot_hold_it(
    monkeypatch: pytest.MonkeyPatch, *, nbytes: int, limit: float | None, backward: bool, spread: int | None
) -> None:
    """On a GPU with 10 GiB, of which a tenth is for activations, or four with a backward pass."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (10 << 30, 10 << 30))
    room = machine.room(nbytes, torch.device("cuda", 0), limit, backward=backward)
    assert (None if room is None else room[0] >> 30) == spread
    assert machine.room(nbytes, torch.device("cpu"), limit, backward=backward) is None


def test_pickled_weights_are_never_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = transformers.LlamaConfig(hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(tmp_path)
    model = transformers.LlamaForCausalLM(config)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    write(tmp_path, {"unrelated": healthy(tiny_gemma3_config())["model.norm.weight"]})
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("it was loaded"))
    with pytest.raises(CheckpointError, match="would initialise"):
        doctor.verify(tmp_path, SHORT)


def test_a_shard_that_is_cut_short_after_it_was_opened_is_an_error(tmp_path: Path) -> None:
    config = tiny_gemma3_config()
    folder = write(tmp_path / "checkpoint", healthy(config), config)
    opened = loading.read_config(open_checkpoint(folder))
    os.truncate(folder / "model.safetensors", 4000)
    with pytest.raises(CheckpointError, match="transformers cannot load it"), opened.loaded(torch.float32, CPU):
        pass


def test_an_unknown_model_is_named(tmp_path: Path) -> None:
    config = {"model_type": "foonet", "architectures": ["FooNet"]}
    folder = write(tmp_path / "unknown", {"a": healthy(tiny_gemma3_config())["model.norm.weight"]}, config)
    with pytest.raises(UsageError, match="foonet"):
        doctor.verify(folder, SHORT)


def test_code_of_a_checkpoint_is_never_run(tmp_path: Path) -> None:
    config = {**tiny_gemma3_config(), "model_type": "own", "auto_map": {"AutoConfig": "own.Config"}}
    folder = write(tmp_path / "checkpoint", healthy(tiny_gemma3_config()), config)
    (folder / "own.py").write_text("raise SystemExit('it ran')\n")
    with pytest.raises(UsageError, match="never runs code from a checkpoint"):
        doctor.verify(folder, SHORT)


class Kept:
    """What only a cycle of references keeps, as a frame keeps the output of a model that it raised in."""

    def __init__(self) -> None:
        self.itself = self


def test_what_a_run_leaves_behind_is_freed_before_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    left: list[weakref.ref[Kept]] = []
    alive: list[list[bool]] = []

    def forward(*_: object, **__: object) -> Kept:
        alive.append([reference() is not None for reference in left])
        kept = Kept()
        left.append(weakref.ref(kept))
        return kept

    monkeypatch.setattr(bench, "forward", forward)
    here = bench.Bench(SHORT, torch.device("cpu"), 0)
    gc.disable()
    try:
        for _ in range(2):
            here.run(torch.nn.Identity(), mock.Mock(), torch.float32)
    finally:
        gc.enable()
    assert alive == [[], [False]]


def test_a_quantised_checkpoint_is_not_taken_for_a_float16_one(tmp_path: Path) -> None:
    """With float8, every run computes in the format that the checkpoint names, and all agree: that proves nothing."""
    config = {**tiny_gemma3_config(), "quantization_config": {"quant_method": "fp8", "weight_block_size": [8, 8]}}
    folder = write(tmp_path / "checkpoint", healthy(tiny_gemma3_config()), config)
    with pytest.raises(UsageError, match=r"is quantised \(fp8\).* Verify the checkpoint that was quantised"):
        doctor.verify(folder, SHORT)


def test_a_config_of_another_size_is_told_and_transformers_tells_nothing(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config = {**tiny_gemma3_config(), "hidden_size": 24}
    folder = write(tmp_path / "checkpoint", healthy(tiny_gemma3_config()), config)
    with pytest.raises(
        CheckpointError,
        match=r"24 tensors have other shapes, model\.embed_tokens\.weight \[64, 16\] and not \[64, 24\]",
    ):
        doctor.verify(folder, SHORT)
    assert capfd.readouterr() == ("", "")


def test_a_model_that_compares_two_inputs_is_told_before_its_weights_are_loaded(tmp_path: Path) -> None:
    narrow = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {**narrow, "vocab_size": 64, "bos_token_id": 1, "eos_token_id": 2}
    config = transformers.CLIPConfig(text_config=text, vision_config={**narrow, "image_size": 32, "patch_size": 16})
    config.architectures = ["CLIPModel"]
    config.save_pretrained(tmp_path)
    write(tmp_path, {"unrelated": healthy(tiny_gemma3_config())["model.norm.weight"]})
    with pytest.raises(UsageError, match=r"a CLIPModel compares texts.* model\.vision_model\.save_pretrained"):
        doctor.verify(tmp_path, SHORT)


def test_a_torchvision_that_is_not_torchs_is_told_with_the_next_step(tmp_path: Path) -> None:
    """As it is where torch is built for CPUs and torchvision comes from the Python Package Index."""
    (tmp_path / "torchvision").mkdir()
    broken = "raise RuntimeError('operator torchvision::nms does not exist')\n"
    (tmp_path / "torchvision" / "__init__.py").write_text(broken)
    config = tiny_gemma3_config()
    folder = write(tmp_path / "checkpoint", healthy(config), config)
    done = run("verify", folder, env={"PYTHONPATH": str(tmp_path)})
    assert done.code == 2
    assert f"does not work with torch {torch.__version__} (operator torchvision::nms does not exist)" in done.err
    assert "pip install --force-reinstall torch torchvision" in done.err


def test_whoever_wants_to_know_is_told_each_step(tmp_path: Path) -> None:
    """On a processor a run takes minutes."""
    config = tiny_gemma3_config()
    folder = write(tmp_path / "checkpoint", healthy(config), config)
    told: list[str] = []
    with torch.enable_grad():
        doctor.verify(folder, replace(SHORT, loss_scale=2.0), against=folder, step=told.append)
    assert told == [
        "loading the weights as float32",
        "text run in float32",
        "text run in float32, backward",
        "loading the weights as bfloat16",
        "text run in bfloat16",
        "loading the weights as float32",
        "the other checkpoint in float32",
        "loading the weights as float16",
        "text run in float16",
        "text run in float16, backward at loss scale 2",
        "text run in float16, backward",
    ]
