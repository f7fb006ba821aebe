"""What a checkpoint must be for transformers to load it, told before gigabytes are fetched and torch is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from gemma_doctor.errors import UsageError

if TYPE_CHECKING:
    from gemma_doctor.checkpoint import Checkpoint  # the command line's help does without

__all__ = ["ADAPTER", "check_format", "check_source"]

ADAPTER = "adapter_config.json"
"""What peft and transformers take for the sign of an adapter."""


def check_format(uri: str, kind: str) -> None:
    """Refuse GGUF files: llama.cpp runs them, and what it computes in is not float16 as transformers has it.

    Args:
        uri: SOURCE, as messages call it.
        kind: ``"safetensors"`` or ``"gguf"``.

    Raises:
        UsageError: If it is GGUF.
    """
    if kind == "gguf":
        raise UsageError(
            f"{uri} is GGUF, which llama.cpp runs; verify runs safetensors, as transformers loads them. Verify the "
            "checkpoint that it was converted from. Where there is none, transformers can write its values as "
            "safetensors: from_pretrained with gguf_file and quantization_config=GgufConfig(dequantize=True), then "
            "save_pretrained. scan reads GGUF as it is."
        )


def check_source(checkpoint: Checkpoint) -> None:
    """Refuse what transformers has no model to make of.

    Args:
        checkpoint: An opened checkpoint whose files are on this machine.

    Raises:
        UsageError: If it is GGUF, one file of a folder, or an adapter without its base, or has no config.
    """
    check_format(checkpoint.uri, checkpoint.format)
    folder = Path(checkpoint.root)
    if Path(checkpoint.uri).is_file():
        raise UsageError(f"{checkpoint.uri} is a file, and transformers loads folders: give {folder}")
    if checkpoint.config is not None:
        return
    if (folder / ADAPTER).exists():
        raise UsageError(
            f"{folder} holds an adapter, which runs with its base model only: merge the two (merge_and_unload of peft; "
            f"{ADAPTER} names the base as base_model_name_or_path), save that, and verify it. scan reads "
            "adapters as they are."
        )
    raise UsageError(
        f"{folder} holds no config.json, without which transformers cannot build the model. Copy the one of the "
        "model that these weights are of, and its tokenizer, into the folder. scan needs neither."
    )
