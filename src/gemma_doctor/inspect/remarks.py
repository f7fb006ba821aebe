"""What a scan did without, and what lies beside the checkpoint and was not read."""

from __future__ import annotations

from collections.abc import Iterator

from gemma_doctor.checkpoint import Checkpoint
from gemma_doctor.checkpoint.filenames import is_adapter
from gemma_doctor.checkpoint.quoting import listed
from gemma_doctor.examination import Examination

__all__ = ["remarks"]


def remarks(exam: Examination) -> Iterator[str]:
    """Sentences for people who would otherwise take more for examined than was.

    Args:
        exam: The checkpoint that was scanned, and how.
    """
    yield from exam.checkpoint.remarks
    if exam.checkpoint.tensors:  # where no file can be read, the findings say so, and nothing else matters
        yield from _unjudged(exam)
    yield from _unread(exam.checkpoint)


def _unjudged(exam: Examination) -> Iterator[str]:
    """What could not be judged of the tensors, and for want of what."""
    checkpoint, quantised = exam.checkpoint, exam.model.as_stored is not None
    if any(is_adapter(file.name) for file in checkpoint.files):
        yield "this is an adapter, measured as it is: its sum with the base model was not. verify needs the two merged"
        return
    if quantised:
        yield (
            "the weights are quantised: packed integers and scales were measured as they are stored, and the weights "
            "that they stand for were not"
        )
    if checkpoint.config is None and checkpoint.format == "safetensors":
        yield (
            "there is no config.json, so the architecture is unknown: no names, shapes, shared KV or bounds were "
            "judged. Put the model's config.json beside the weights"
        )
    elif checkpoint.format == "safetensors" and not quantised and _unproved(exam):
        family = "this architecture" if exam.model.family == "generic" else exam.model.family
        yield (
            f"nothing is proved of what a float16 run computes: no bounds on activations are known for {family}. "
            "That the weights fit does not say that they do; verify runs the model and measures them"
        )


def _unproved(exam: Examination) -> bool:
    """Whether a proof could be asked for, and none is known."""
    return exam.target_dtype == "float16" and exam.selected and not exam.model.values


def _unread(checkpoint: Checkpoint) -> Iterator[str]:
    """The weights beside the checkpoint that were not read."""
    adapters = [name for name in checkpoint.beside if is_adapter(name)]
    if adapters:
        yield (
            f"not read: {listed(tuple(adapters))}, an adapter that transformers adds to this model where peft is "
            "installed. Scan it by its path; verify the two merged"
        )
    others = tuple(name for name in checkpoint.beside if name not in adapters)
    if others:
        yield f"not read: {listed(others)}; these are other weights, to be scanned as SOURCES of their own"
