"""What is loaded: safetensors only, by the class that the config asks for, quietly; and what cannot be is told."""

from __future__ import annotations

from collections.abc import Iterator
from logging import NOTSET, getLogger
from pathlib import Path
from typing import Any

import pytest
import tiny_models  # noqa: F401  # makes torchvision importable beside a torch for CPUs
import torch
import transformers
from checkpoints import healthy, tiny_gemma3_config, write
from faults import FAULTS
from transformers.utils import logging

from gemma_doctor import doctor
from gemma_doctor.checkpoint import open_checkpoint
from gemma_doctor.errors import CheckpointError, UsageError
from gemma_doctor.verify.loading import Subject, quiet, read_config
from gemma_doctor.verify.measures import Measures, Request

CPU = torch.device("cpu")
FORWARD = Measures(device="cpu", backward=False, reference="none", request=Request(length=8))
PICTURES = next(case for case in FAULTS if case.config["model_type"] == "resnet")


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = tiny_gemma3_config()
    return write(tmp_path_factory.mktemp("sound") / "checkpoint", healthy(config), config)


def subject(folder: Path, config: dict[str, Any]) -> Subject:
    tensors = {"w": healthy(tiny_gemma3_config())["model.norm.weight"]}
    return read_config(open_checkpoint(write(folder / "checkpoint", tensors, config)))


def test_a_pickle_that_takes_the_weights_place_is_not_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the folder was looked at."""
    config = tiny_gemma3_config()
    opened = read_config(open_checkpoint(write(tmp_path / "checkpoint", healthy(config), config)))
    (opened.folder / "model.safetensors").unlink()
    weights = {name: torch.from_numpy(tensor) for name, tensor in healthy(config).items()}
    torch.save(weights, opened.folder / "pytorch_model.bin")
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("it was loaded"))
    with pytest.raises(CheckpointError, match="transformers cannot load it"), opened.loaded(torch.float32, CPU):
        pass


def test_what_is_loaded_is_run_as_in_use_and_every_parameter_can_be_trained(sound: Path) -> None:
    """Without dropout, that is."""
    with read_config(open_checkpoint(sound)).loaded(torch.float16, CPU) as model:
        assert not any(module.training for module in model.modules())
        assert {(one.dtype, one.requires_grad) for one in model.parameters()} == {(torch.float16, True)}


def test_it_is_loaded_to_where_it_runs(sound: Path) -> None:
    where = torch.device("meta")
    with read_config(open_checkpoint(sound)).loaded(torch.float16, where) as model:
        assert {parameter.device for parameter in model.parameters()} == {where}


def test_code_beside_the_weights_is_never_run(tmp_path: Path) -> None:
    """What transformers would load to generate with, where it may."""
    config = tiny_gemma3_config()
    folder = write(tmp_path / "checkpoint", healthy(config), config)
    (folder / "custom_generate").mkdir()
    (folder / "custom_generate" / "generate.py").write_text("raise SystemExit('it ran')\n")
    with read_config(open_checkpoint(folder)).loaded(torch.float16, CPU) as model:
        assert model.dtype == torch.float16


@pytest.fixture(params=[True, False], ids=["bars", "no bars"])
def bars(request: pytest.FixtureRequest) -> Iterator[bool]:
    """Whether transformers draws progress bars, and an unusual verbosity."""
    there, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    (logging.enable_progress_bar if request.param else logging.disable_progress_bar)()
    logging.set_verbosity(logging.INFO)
    yield request.param
    (logging.enable_progress_bar if there else logging.disable_progress_bar)()
    logging.set_verbosity(verbosity)


def test_transformers_is_quiet_meanwhile_and_as_before_afterwards(
    sound: Path, capfd: pytest.CaptureFixture[str], *, bars: bool
) -> None:
    with quiet(), read_config(open_checkpoint(sound)).loaded(torch.float16, CPU):
        logging.get_logger("transformers").warning("a warning")
        getLogger("accelerate.big_modeling").warning("a warning")
    assert getLogger("accelerate").level == NOTSET
    assert (logging.is_progress_bar_enabled(), logging.get_verbosity()) == (bars, logging.INFO)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("architectures", [None, ["Gemma3TextConfig"], ["logging"], ["NoSuchModel"]], ids=str)
def test_without_a_class_of_its_own_the_model_is_the_one_that_generates(
    tmp_path: Path, architectures: list[str] | None
) -> None:
    """No class is named, or one that is none of a model, or one that this transformers does not have."""
    found = subject(tmp_path, {**tiny_gemma3_config(), "architectures": architectures})
    assert (found.build, found.modalities) == (transformers.Gemma3ForCausalLM, ("text",))


def test_without_a_class_of_its_own_a_picture_model_is_the_one_that_classifies(tmp_path: Path) -> None:
    found = subject(tmp_path, {"model_type": "resnet"})
    assert (found.build, found.modalities) == (transformers.ResNetForImageClassification, ("image",))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"quantization_config": {"bits": 4}}, r"is quantised \(a method that is not named\)"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, r"is quantised \(gptq\)"),
        (
            {"model_type": "whisper", "architectures": ["WhisperForConditionalGeneration"]},
            "a WhisperForConditionalGeneration is given input_features; verify runs models of texts, of pictures",
        ),
    ],
)
def test_what_no_run_can_be_made_of_is_told(tmp_path: Path, config: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        subject(tmp_path, {**tiny_gemma3_config(), **config})


def test_a_file_is_told_to_be_given_by_its_folder(sound: Path) -> None:
    with pytest.raises(UsageError, match=rf"is a file, and transformers loads folders: give {sound}$"):
        doctor.verify(sound / "model.safetensors", FORWARD)


def out_of_memory(*_: object, **__: object) -> None:
    raise torch.OutOfMemoryError


@pytest.mark.parametrize("error", [TypeError, ValueError, KeyError, AttributeError, RuntimeError])
def test_an_input_that_a_model_does_not_take_is_told(
    sound: Path, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    """Whatever its code raises."""

    def raising(*_: object, **__: object) -> None:
        raise error("no such input")

    monkeypatch.setattr(transformers.Gemma3ForCausalLM, "forward", raising)
    with pytest.raises(UsageError, match=r"Gemma3ForCausalLM cannot be run with 1 x 8 tokens.*: .?no such input"):
        doctor.verify(sound, FORWARD)


@pytest.mark.parametrize("method", ["from_pretrained", "forward"])
def test_memory_that_does_not_suffice_is_told_with_the_next_step(
    sound: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """Wherever it runs out; it is neither the checkpoint's fault nor the input's."""
    monkeypatch.setattr(transformers.Gemma3ForCausalLM, method, out_of_memory)
    with pytest.raises(UsageError, match="does not fit into the memory of this device: shorten it with --seq-len"):
        doctor.verify(sound, FORWARD)


def test_a_model_that_cannot_compute_layers_again_is_told(tmp_path: Path) -> None:
    checkpoint = PICTURES.build(tmp_path / "checkpoint")
    with pytest.raises(UsageError, match=r"^--gradient-checkpointing: ResNetForImageClassification does not support"):
        doctor.verify(checkpoint, Measures(device="cpu", checkpointing=True, reference="none"))


def beside_an_adapter(folder: Path) -> Path:
    """A checkpoint, and a LoRA of its q_proj in the same folder, as large as its weights."""
    from peft import LoraConfig, get_peft_model  # noqa: PLC0415  # seconds

    config = tiny_gemma3_config()
    root = write(folder / "checkpoint", healthy(config), config)
    model = transformers.AutoModelForCausalLM.from_pretrained(root)
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    adapted.save_pretrained(root)
    return root


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # PEFT reads it
def test_an_adapter_in_the_folder_is_not_run_and_that_is_said(tmp_path: Path, sound: Path) -> None:
    """Transformers loads it, too, where peft is installed: one folder would be two models."""
    root = beside_an_adapter(tmp_path)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(root)
    assert any("lora" in name for name, _ in loaded.named_parameters())
    report = doctor.verify(root, FORWARD)
    assert not any("lora" in one.module for one in report.activations)
    assert [(one.module, one.op, one.stats) for one in report.activations] == [
        (one.module, one.op, one.stats) for one in doctor.verify(sound, FORWARD).activations
    ]
    assert f"what ran is the model of {root} alone, without the adapter that lies beside it" in report.remarks[0]
    assert doctor.verify(sound, FORWARD).remarks == ()


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # PEFT reads it
def test_an_adapter_beside_what_is_compared_with_is_not_run_either(tmp_path: Path, sound: Path) -> None:
    measures = Measures(device="cpu", backward=False, request=Request(length=8))
    report = doctor.verify(sound, measures, against=beside_an_adapter(tmp_path))
    assert report.verification is not None
    (run,) = report.verification.runs
    assert (run.against_drift.kl if run.against_drift else None) == 0
    assert "without the adapter" in report.remarks[0]
