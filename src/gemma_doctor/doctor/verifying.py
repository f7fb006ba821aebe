"""Verify: run, judge, report."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import ModuleType

from gemma_doctor.architectures import Model
from gemma_doctor.checkpoint import Checkpoint
from gemma_doctor.choices import Device
from gemma_doctor.doctor.fetching import fetched
from gemma_doctor.doctor.judging import chosen, counted
from gemma_doctor.doctor.options import Options
from gemma_doctor.errors import UsageError
from gemma_doctor.examination import assemble
from gemma_doctor.records import Coverage, Report, Source
from gemma_doctor.verifications import Activation
from gemma_doctor.verify.evidence import Evidence
from gemma_doctor.verify.measures import Measures, untold
from gemma_doctor.verify.registry import RULES
from gemma_doctor.verify.sources import ADAPTER, check_format, check_source
from gemma_doctor.version import __version__

__all__ = ["verify"]


def verify(  # noqa: PLR0913  # how to run, how to judge, and who is told, each with a default
    source: str | os.PathLike[str],
    measures: Measures | None = None,
    options: Options | None = None,
    *,
    device: Device | None = None,
    against: str | os.PathLike[str] | None = None,
    step: Callable[[str], None] = untold,
) -> Report:
    """Runs a checkpoint in float16, forward and backward, and watches every operation.

    It needs the extra ``verify``: torch and transformers.

    Args:
        source: A checkpoint folder that transformers loads.
        measures: How to run it.
        options: Which rules to apply, and what the user has set aside.
        device: Where to run, if not where ``measures`` says.
        against: Another checkpoint, whose output in float32 is compared with this one's.
        step: Told what is done next, in words, such as ``"text run in float32, backward"``.

    Returns:
        The report. Its ``verification`` says what was run; its coverage counts runs, one for each kind of input.

    Raises:
        UsageError: If the model or the input cannot be run as asked, or torch is not installed.
        CheckpointError: If a file cannot be read, or transformers cannot load it.
    """
    options, measures = options or Options(), measures or Measures()
    if device is not None:
        measures = replace(measures, device=device)
    started = time.perf_counter()
    rules = chosen(RULES, options)
    checkpoint = fetched(source, agree=check_format)
    other = None if against is None else fetched(against, agree=check_format)
    for opened in (checkpoint, other):
        if opened is not None:
            check_source(opened)
    verified = _harness().verify(checkpoint, measures, other, step=step)
    known = assemble(checkpoint, {}, "float16", "transformers", whole=True)
    evidence = Evidence(verified.verification, known.model, known.on_disk, checkpoint.tensors)
    findings = [finding for rule in rules for finding in rule.check(evidence)]
    parted = counted(findings, rules, options, checkpoint)
    return Report(
        version=__version__,
        source=Source(checkpoint.uri, checkpoint.revision, checkpoint.format, known.model.family, checkpoint.files),
        target_dtype="float16",
        loader="transformers",
        coverage=Coverage(verified.asked, verified.asked - len(verified.skipped), verified.skipped),
        findings=parted.kept,
        suppressed=parted.suppressed,
        remarks=(
            *checkpoint.remarks,
            *parted.remarks,
            *(remark for one in (checkpoint, other) if one is not None for remark in _on_adapter(one)),
            *_on_checkpointing(known.model, measures),
            *_on_offloading(offloaded=verified.offloaded),
            *_on_bfloat16(verified.activations),
        ),
        tensors=(),
        activations=verified.activations,
        verification=verified.verification,
        seconds=time.perf_counter() - started,
    )


def _on_adapter(checkpoint: Checkpoint) -> Iterator[str]:
    """What lies beside the model and was not run."""
    if (Path(checkpoint.root) / ADAPTER).exists():
        yield (
            f"what ran is the model of {checkpoint.root} alone, without the adapter that lies beside it; transformers "
            "adds that to the model where peft is installed. To verify the two together, merge them (merge_and_unload "
            "of peft) and verify what that saves"
        )


def _on_checkpointing(model: Model, measures: Measures) -> Iterator[str]:
    """A trap that a run with non-reentrant checkpointing does not fall into."""
    if model.shared_kv and measures.backward:
        yield (
            "its layers share KV: train it with non-reentrant gradient checkpointing (use_reentrant=False); reentrant, "
            "transformers 5.23 gives the same loss and wrong gradients"
        )


def _on_offloading(*, offloaded: bool) -> Iterator[str]:
    """Why the run took longer than the model needs."""
    if offloaded:
        yield (
            "the weights of the float16 model were read from the host's memory, each when it was used, for the "
            "device's cannot hold them all (or may not: --memory-limit); that takes longer, and changes nothing that "
            "is judged"
        )


def _on_bfloat16(activations: Sequence[Activation]) -> Iterator[str]:
    """What a T4 cannot compute."""
    found = [one for one in activations if one.dtype == "BF16"]
    if found:
        first = f"{found[0].op} in {found[0].module or 'the model itself'}"
        yield f"{len(found):,} operations of the float16 runs give bfloat16, {first} first; a T4 has none"


def _harness() -> ModuleType:
    """The room that needs torch.

    Raises:
        UsageError: If it is not installed.
    """
    try:
        return import_module("gemma_doctor.verify.harness")
    except ModuleNotFoundError as error:
        raise UsageError(f"verify needs {error.name}: pip install 'gemma-doctor[verify]'") from error
