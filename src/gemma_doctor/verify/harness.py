"""The straight line of a verification: reference, bfloat16, float16; each loaded, run and let go before the next."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from gemma_doctor.checkpoint import Checkpoint
from gemma_doctor.choices import Modality
from gemma_doctor.errors import UsageError
from gemma_doctor.kernels.guards.guarding import guard
from gemma_doctor.records import Skipped
from gemma_doctor.verifications import BACKWARD_PASS, WHOLE_RUN, Activation, Run, Verification
from gemma_doctor.verify import machine, reference
from gemma_doctor.verify.bench import Bench
from gemma_doctor.verify.drift import drift
from gemma_doctor.verify.float16 import Candidate
from gemma_doctor.verify.guardable import check_known
from gemma_doctor.verify.host import check_host
from gemma_doctor.verify.inputs import Batch, batch, check_used
from gemma_doctor.verify.loading import Subject, quiet, read_config
from gemma_doctor.verify.measures import Measures
from gemma_doctor.verify.reference import Bfloat16, Reference

__all__ = ["Verified", "verify"]


@dataclass(frozen=True, slots=True)
class Verified:
    """What came of it.

    Attributes:
        verification: The runs.
        activations: Every operation's outputs, merged by place.
        asked: Runs that should have been: one for each kind of input.
        skipped: Those that could not be run or judged, and why.
        offloaded: Whether the float16 model had weights on the device only while they were used.
    """

    verification: Verification
    activations: tuple[Activation, ...]
    asked: int
    skipped: tuple[Skipped, ...]
    offloaded: bool


@quiet()
def verify(
    checkpoint: Checkpoint,
    measures: Measures,
    against: Checkpoint | None = None,
    *,
    step: Callable[[str], None],
) -> Verified:
    """Run a checkpoint in float16, forward and backward, beside its float32 reference.

    Args:
        checkpoint: A folder that transformers loads.
        measures: How.
        against: Another checkpoint, whose output in float32 is compared with this one's.
        step: Told what is done next, in words.

    Raises:
        UsageError: If the model or the input cannot be run as asked.
        CheckpointError: If transformers cannot load it.
    """
    if against is not None and measures.reference == "none":
        raise UsageError("another checkpoint is compared with the float32 reference: leave out --reference none")
    subject, second = read_config(checkpoint), None if against is None else read_config(against)
    if measures.guard:
        check_known(subject)
    for opened in (checkpoint, against):
        if opened is not None:
            check_host(opened, measures)
    numel = sum(tensor.numel for tensor in checkpoint.tensors.values())
    bench = Bench(measures, machine.find(measures.device), numel, step)
    batches, skipped = _batches(subject, measures)
    left_out = len(skipped)
    if second is not None:
        _check_alike(subject, second, batches)
    true: dict[Modality, Reference] = {}
    beside: dict[Modality, Bfloat16] = {}
    other: dict[Modality, Tensor] = {}
    referred = measures.reference != "none"
    limited = machine.limited(bench.device, measures.memory_limit, backward=measures.backward, reference=referred)
    with machine.without_tf32(measures.request.seed), limited:
        _check_guard(bench)
        bench.prepare()
        if measures.reference == "float32":
            true = reference.references(bench, subject, batches)
            beside = reference.bfloat16(bench, subject, batches, true)
            other = reference.logits(bench, second, batches) if second else {}
        _check_comparable(true, other)
        runs, activations, offloaded = _float16(bench, subject, batches, true, beside)
        used = machine.peak_memory(bench.device)
    runs = [_compared(run, true[run.modality], other.get(run.modality)) if true else run for run in runs]
    verification = Verification(
        device=machine.name(bench.device),
        mode=measures.mode,
        backward=measures.backward,
        guarded=measures.guard,
        runs=tuple(runs),
        imitated=machine.imitated(bench.device, measures.memory_limit),
        not_imitated=machine.not_imitated(bench.device, measures.memory_limit),
        against=against.uri if against else None,
        peak_memory=used,
        frozen=measures.frozen,
    )
    skipped += [*_unjudged(true), *(_untrained(runs) if measures.backward else ())]
    return Verified(verification, tuple(activations), len(batches) + left_out, tuple(skipped), offloaded)


def _batches(subject: Subject, measures: Measures) -> tuple[list[Batch], list[Skipped]]:
    """The inputs. What the model takes and cannot be given is left out with the reason, unless it was asked for."""
    unknown = sorted(set(measures.modalities) - set(subject.modalities))
    if unknown:
        takes = ", ".join(subject.modalities)
        raise UsageError(f"{subject.folder}: a {subject.build.__name__} takes {takes}, not {', '.join(unknown)}")
    check_used(subject, measures.modalities or subject.modalities, measures.request)
    made: list[Batch] = []
    skipped: list[Skipped] = []
    for modality in measures.modalities or subject.modalities:
        try:
            made.append(batch(subject, modality, measures.request))
        except UsageError as error:
            if measures.modalities:
                raise
            skipped.append(Skipped(f"{WHOLE_RUN}{modality}", str(error)))
    if not made:
        raise UsageError(skipped[0].reason)
    return made, skipped


def _dtype(bench: Bench) -> torch.dtype:
    """What the weights of the run that is judged are cast to."""
    return torch.float32 if bench.measures.mode == "amp" else torch.float16


def _check_guard(bench: Bench) -> None:
    """The kernels choose their exponents by the weights, and read those of several layers at once: all must be there.

    Raises:
        UsageError: If the model would be guarded and its device cannot hold it.
    """
    room = bench.spread(_dtype(bench)) if bench.measures.guard else None
    if room is not None:
        need, there = (nbytes / (1 << 30) for nbytes in (bench.numel * _dtype(bench).itemsize, min(room.values())))
        more = " (more with --no-backward)" if bench.measures.backward else ""
        raise UsageError(
            f"--guard needs every weight on the device: they take {need:.3g} GiB, and {there:.3g} GiB may hold "
            f"weights{more}. Raise --memory-limit, run with --device cpu, or mend the weights with "
            "`gemma-doctor repair` and verify the copy without --guard"
        )


def _check_alike(subject: Subject, second: Subject, batches: Sequence[Batch]) -> None:
    """Refuse another checkpoint that cannot be given the same inputs, before anything is run."""
    lacking = sorted({item.modality for item in batches} - set(second.modalities))
    if lacking:
        takes = ", ".join(second.modalities)
        raise UsageError(
            f"--against {second.folder}: a {second.build.__name__} takes {takes}, and the {subject.build.__name__} of "
            f"{subject.folder} is given {', '.join(lacking)}: name another checkpoint of the same model"
        )


def _check_comparable(true: Mapping[Modality, Reference], other: Mapping[Modality, Tensor]) -> None:
    for modality, logits in other.items():
        if logits.shape != true[modality].logits.shape:
            shapes = f"{list(logits.shape)} and {list(true[modality].logits.shape)}"
            raise UsageError(
                f"--against: another model, its {true[modality].output} cannot be compared (shapes {shapes})"
            )


def _compared(run: Run, true: Reference, other: Tensor | None) -> Run:
    """The same run, with what was compared, and how far it lies from another checkpoint's."""
    return replace(run, output=true.output, against_drift=None if other is None else drift(other, true.logits))


def _float16(
    bench: Bench,
    subject: Subject,
    batches: list[Batch],
    true: Mapping[Modality, Reference],
    beside: Mapping[Modality, Bfloat16],
) -> tuple[list[Run], list[Activation], bool]:
    runs: list[Run] = []
    activations: list[Activation] = []
    _check_guard(bench)  # the runs before may have left less memory free
    with bench.model(subject, _dtype(bench)) as model:
        if bench.measures.guard:
            guard(model)
        candidate = Candidate(bench, model)
        for item in batches:
            run, seen = candidate.run(item, true.get(item.modality), beside.get(item.modality))
            runs.append(run)
            activations += seen
        return runs, activations, candidate.places.offloaded is not None


def _unjudged(true: Mapping[Modality, Reference]) -> list[Skipped]:
    """The runs whose reference is not finite itself, forward or backward."""
    why = "the float32 reference is not finite either, so float16 cannot be judged; `gemma-doctor scan` may say why"
    skipped = []
    for modality, one in true.items():
        if not one.sound:
            skipped.append(Skipped(f"{WHOLE_RUN}{modality}", why))
        elif broken := [name for name, stats in one.gradients.items() if stats.finite < stats.count]:
            skipped.append(Skipped(f"{BACKWARD_PASS}{modality}", _no_gradients(broken)))
    return skipped


def _untrained(runs: Sequence[Run]) -> Iterator[Skipped]:
    """The runs whose loss is finite, and has no gradient."""
    for run in runs:
        if run.loss is not None and run.loss_scales is None:
            why = (
                "the loss depends on no parameter that is trained, so there is no gradient: --freeze less, pick "
                "another input with --modality, or run forward only with --no-backward"
            )
            yield Skipped(f"{BACKWARD_PASS}{run.modality}", why)


def _no_gradients(broken: list[str]) -> str:
    return (
        f"in float32, too, gradients of {len(broken):,} parameters are inf or NaN, of {broken[-1]} among them, "
        "so these cannot be judged: another input may do, or --freeze for those that are not trained"
    )
