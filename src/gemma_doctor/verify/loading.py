"""A checkpoint as transformers loads it: safetensors only, no code from the checkpoint, no network."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import accelerate
import torch
import transformers
from safetensors import SafetensorError
from torch import nn

from gemma_doctor.checkpoint import Checkpoint
from gemma_doctor.choices import Modality
from gemma_doctor.errors import CheckpointError, UsageError
from gemma_doctor.verify import machine
from gemma_doctor.verify.needs import first_line, why_broken
from gemma_doctor.verify.sources import ADAPTER

__all__ = ["Subject", "quiet", "read_config"]


@dataclass(frozen=True, slots=True)
class Subject:
    """What is to be run.

    Attributes:
        folder: The checkpoint's folder.
        config: Its configuration, as transformers reads it.
        build: The class of the model.
    """

    folder: Path
    config: Any
    build: Any

    @property
    def text(self) -> Any:  # noqa: ANN401  # a configuration of transformers
        """The configuration of the text model; the whole one where it has no parts."""
        return self.config.get_text_config()

    @property
    def modalities(self) -> tuple[Modality, ...]:
        """What the model takes."""
        if self.build.main_input_name == "pixel_values":
            return ("image",)
        parts: tuple[tuple[Modality, str], ...] = (("image", "vision_config"), ("audio", "audio_config"))
        return ("text", *(modality for modality, part in parts if getattr(self.config, part, None) is not None))

    @contextmanager
    def loaded(self, dtype: torch.dtype, device: torch.device, memory: dict[Any, Any] | None = None) -> Iterator[Any]:
        """The model; what one before has left in memory is freed first.

        Args:
            dtype: What the parameters are cast to, as transformers does it.
            device: Where it runs.
            memory: Bytes that each device may hold, where accelerate is to spread the model; None puts all on
                ``device``.

        Raises:
            CheckpointError: If transformers cannot load it, or would initialise missing tensors at random.
        """
        machine.give_back(device)  # here, and not at the end, when whoever ran it holds it still
        model = self._load(dtype, memory)
        if not memory:
            model.to(device)
        elif all(parameter.device.type == "cpu" for parameter in model.parameters()):  # no part fits: left as it is
            accelerate.cpu_offload(model, device)
        yield model

    def _load(self, dtype: torch.dtype, memory: dict[Any, Any] | None) -> Any:  # noqa: ANN401
        spread: dict[str, Any] = {"device_map": "auto", "max_memory": memory} if memory else {}
        try:
            with _alone(self.folder) as folder:
                model, said = self.build.from_pretrained(
                    folder,
                    config=self.config,
                    dtype=dtype,
                    use_safetensors=True,
                    local_files_only=True,
                    trust_remote_code=False,
                    ignore_mismatched_sizes=True,  # so that it tells which ones they are
                    output_loading_info=True,
                    **spread,
                )
        except torch.OutOfMemoryError:
            raise
        except (OSError, ValueError, RuntimeError, KeyError, ImportError, SafetensorError) as error:
            raise CheckpointError(f"{self.folder}: transformers cannot load it: {first_line(error)}") from error
        self._check_whole(said)
        for parameter in model.parameters():
            parameter.requires_grad_(parameter.is_floating_point())
        return model  # in evaluation mode, as transformers gives it

    def _check_whole(self, said: Mapping[str, Any]) -> None:
        """Refuse a model of which transformers has initialised a part at random.

        Args:
            said: Its report on the keys: ``mismatched_keys`` with both shapes, the stored one first.
        """
        misshapen = sorted((str(name), list(stored), list(wanted)) for name, stored, wanted in said["mismatched_keys"])
        if misshapen:
            name, stored, wanted = misshapen[0]
            raise CheckpointError(
                f"{self.folder}: its config.json is not of these weights: {len(misshapen):,} tensors have other "
                f"shapes, {name} {stored} and not {wanted}. `gemma-doctor scan` names them all."
            )
        missing = sorted(map(str, said["missing_keys"]))
        if missing:
            raise CheckpointError(
                f"{self.folder}: transformers would initialise {len(missing):,} tensors at random, {missing[0]} first: "
                "what such a model does says nothing. `gemma-doctor scan` names what is missing or misnamed."
            )


@contextmanager
def _alone(folder: Path) -> Iterator[Path]:
    """The folder as transformers is to see it: without an adapter, which it would load, too, wherever peft is there.

    Then one folder would be two models, and what runs not the one that a scan reads and a repair mends.
    """
    if not (folder / ADAPTER).exists():
        yield folder
        return
    with TemporaryDirectory(prefix="gemma-doctor-") as view:
        for file in folder.iterdir():
            if file.name != ADAPTER:
                Path(view, file.name).symlink_to(file.resolve())
        yield Path(view)


@contextmanager
def quiet() -> Iterator[None]:
    """While it lasts, transformers draws no progress bars and warns of nothing: what is wrong becomes an error here.

    Nor does accelerate, by which it offloads weights.
    """
    theirs, offloading = transformers.utils.logging, logging.getLogger("accelerate")
    wanted = theirs.is_progress_bar_enabled() and not os.environ.get("HF_HUB_DISABLE_PROGRESS_BARS")
    verbosity, level = theirs.get_verbosity(), offloading.level
    theirs.disable_progress_bar()
    theirs.set_verbosity_error()
    offloading.setLevel(logging.ERROR)
    try:
        yield
    finally:
        offloading.setLevel(level)
        theirs.set_verbosity(verbosity)
        if wanted:
            theirs.enable_progress_bar()


def read_config(checkpoint: Checkpoint) -> Subject:
    """What a checkpoint's ``config.json`` asks for.

    Raises:
        UsageError: If it is quantised, or transformers has no class for it, or only code in the checkpoint does.
    """
    folder = Path(checkpoint.root)
    try:
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except ImportError as error:
        raise _unusable(error) from error
    except (OSError, ValueError, KeyError) as error:
        raise UsageError(
            f"{folder}: transformers {transformers.__version__} cannot read its config.json: {first_line(error)}. "
            "verify needs a checkpoint folder that transformers knows, and never runs code from a checkpoint."
        ) from error
    _check_floating(folder, config)
    return Subject(folder, config, _model_class(folder, config))


def _check_floating(folder: Path, config: Any) -> None:  # noqa: ANN401  # a class of transformers
    """Refuse quantised weights: a float16 run of them is none, for their kernels compute in formats of their own."""
    quantiser = getattr(config, "quantization_config", None)
    if quantiser is not None:
        told = quantiser if isinstance(quantiser, dict) else vars(quantiser)
        how = str(told.get("quant_method", "")) or "a method that is not named"
        raise UsageError(
            f"{folder} is quantised ({how}), and its kernels compute in formats of their own: no run of it would say "
            "whether the model fits float16. Verify the checkpoint that was quantised, or a copy that dequantize() of "
            "transformers has made. scan reads quantised checkpoints as they are."
        )


def _model_class(folder: Path, config: Any) -> Any:  # noqa: ANN401  # classes of transformers
    for name in config.architectures or ():
        try:
            found = getattr(transformers, name, None)
        except ImportError as error:
            raise _unusable(error) from error
        if isinstance(found, type) and issubclass(found, nn.Module):
            return _runnable(folder, found)
    for auto in (transformers.AutoModelForCausalLM, transformers.AutoModelForImageClassification):
        if type(config) in auto._model_mapping:  # noqa: SLF001  # no public name tells it
            return auto._model_mapping[type(config)]  # noqa: SLF001
    raise UsageError(
        f"{folder}: transformers {transformers.__version__} has no language or image model for "
        f"{config.model_type!r} {config.architectures or ''}"
    )


def _runnable(folder: Path, build: Any) -> Any:  # noqa: ANN401  # as above
    """The class, if it is given text or pictures, and not both at once to compare them."""
    if hasattr(build, "get_text_features"):
        raise UsageError(
            f"{folder}: a {build.__name__} compares texts with pictures or sounds, and verify knows models of one of "
            "them: save its parts, such as model.vision_model.save_pretrained(FOLDER), and verify each"
        )
    if build.main_input_name not in {"input_ids", "pixel_values"}:
        raise UsageError(
            f"{folder}: a {build.__name__} is given {build.main_input_name}; verify runs models of texts, of pictures, "
            "and of texts with pictures or sounds. scan needs no run"
        )
    return build


def _unusable(error: ImportError) -> UsageError:
    return UsageError(f"transformers {transformers.__version__} cannot be used here: {why_broken(error)}")
