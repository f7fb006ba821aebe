"""What a scan did without, and what lies beside the checkpoint and was not read."""

from __future__ import annotations

from collections.abc import Iterator

from gemma_doctor.checkpoint import Checkpoint
from gemma_doctor.checkpoint.layout import is_adapter, listed

__all__ = ["remarks"]


def remarks(checkpoint: Checkpoint) -> Iterator[str]:
    """Sentences for people who would otherwise take more for examined than was.

    Args:
        checkpoint: The checkpoint that was scanned.
    """
    yield from checkpoint.remarks
    if any(is_adapter(file.name) for file in checkpoint.files):
        yield "this is an adapter, measured as it is: its sum with the base model was not. verify needs the two merged"
    elif checkpoint.config is None and checkpoint.format == "safetensors":
        yield (
            "there is no config.json, so the architecture is unknown: no names, shapes, shared KV or bounds were "
            "judged. Put the model's config.json beside the weights"
        )
    elif checkpoint.config is not None and checkpoint.config.get("quantization_config") is not None:
        yield (
            "the weights are quantised: packed integers and scales were measured as they are stored, and the weights "
            "that they stand for were not"
        )
    adapters = [name for name in checkpoint.beside if is_adapter(name)]
    if adapters:
        yield (
            f"not read: {listed(tuple(adapters))}, an adapter that transformers adds to this model where peft is "
            "installed. Scan it by its path; verify the two merged"
        )
    others = tuple(name for name in checkpoint.beside if name not in adapters)
    if others:
        yield f"not read: {listed(others)}; these are other weights, to be scanned as SOURCES of their own"
