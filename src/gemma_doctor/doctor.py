"""The straight line: open, survey, judge, report. The only place where the rooms meet."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from importlib import import_module
from pathlib import Path
from types import ModuleType

from gemma_doctor import catalog
from gemma_doctor.architectures import Model
from gemma_doctor.architectures.ranges import ASSUMPTIONS
from gemma_doctor.catalog import AnyRule
from gemma_doctor.checkpoint import Checkpoint, is_repository, open_checkpoint, sha256
from gemma_doctor.checkpoint.quoting import shown
from gemma_doctor.errors import ChangedError, UsageError
from gemma_doctor.examination import Examination, assemble
from gemma_doctor.inspect import registry as scanning
from gemma_doctor.inspect.crew import Crew, hire
from gemma_doctor.inspect.suppression import Suppressions, set_aside
from gemma_doctor.inspect.survey import survey
from gemma_doctor.plans import Applied, Plan
from gemma_doctor.records import (
    Coverage,
    FailOn,
    Finding,
    Loader,
    Progress,
    Proof,
    Report,
    Skipped,
    Source,
    TargetDtype,
    failing,
)
from gemma_doctor.repair.applying.apply import apply
from gemma_doctor.repair.applying.in_place import apply_in_place
from gemma_doctor.repair.applying.manifest import relisted
from gemma_doctor.repair.applying.sidecars import MANIFEST
from gemma_doctor.repair.evidence.calibration import Calibration
from gemma_doctor.repair.planning.planner import make_plan
from gemma_doctor.repair.planning.registry import find_pass
from gemma_doctor.reports.card import card_section
from gemma_doctor.reports.documents import write
from gemma_doctor.tensors import TensorStats
from gemma_doctor.verifications import Activation
from gemma_doctor.verify import registry as verifying
from gemma_doctor.verify.evidence import Evidence
from gemma_doctor.verify.measures import Device, Measures
from gemma_doctor.version import __version__

__all__ = [
    "Options",
    "Progress",
    "check_push",
    "exit_code",
    "plan",
    "push",
    "repair",
    "repair_in_place",
    "scan",
    "verify",
]


@dataclass(frozen=True, slots=True)
class Options:
    """How to examine.

    Attributes:
        select: Ids or prefixes of the rules to apply; all where empty.
        ignore: Ids or prefixes of the rules to leave out.
        include: Globs of tensor names to measure; all where empty.
        exclude: Globs of tensor names to leave out.
        target_dtype: The dtype that the weights are judged for.
        loader: The loader that the tensors must satisfy.
        jobs: Threads; None for one per core.
        dask: Address of a Dask scheduler whose workers measure in place of threads.
        suppressions: Findings that the user has set aside.
    """

    select: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    target_dtype: TargetDtype = "float16"
    loader: Loader = "transformers"
    jobs: int | None = None
    dask: str | None = None
    suppressions: Suppressions = field(default_factory=Suppressions)

    def chooses(self, tensor: str) -> bool:
        """Whether a tensor of this name is to be measured."""
        included = not self.include or any(fnmatchcase(tensor, glob) for glob in self.include)
        return included and not any(fnmatchcase(tensor, glob) for glob in self.exclude)


def scan(  # noqa: PLR0913  # a Hub repository is named by three words
    source: str | os.PathLike[str],
    options: Options | None = None,
    progress: Progress | None = None,
    *,
    executor: Executor | Crew | None = None,
    revision: str | None = None,
    token: str | None = None,
    download: bool = False,
) -> Report:
    """Examines a checkpoint: measures every selected tensor once and applies the rules.

    Args:
        source: A safetensors or GGUF file, a checkpoint folder or an index file; or a Hub repository
            ``owner/name``, or a URL, of which only what is measured is fetched.
        options: How to examine; the defaults judge everything for float16.
        progress: Who is told how far it is.
        executor: Measures in place of threads of this process: any of ``concurrent.futures``, which the caller ends.
            It is given four times ``options.jobs`` units ahead. The report is the same.
        revision: Branch, tag or commit of a Hub repository; its default branch if None.
        token: Access token for the Hub; the one of this machine if None.
        download: Whether a Hub repository is downloaded to the Hub's cache first.

    Returns:
        The report. It says itself whether it is complete.

    Raises:
        UsageError: If there is no such source, or nothing in it is selected.
        CheckpointError: If a file cannot be read, or changes meanwhile.
        ClusterError: If the executor or the Dask cluster fails, or does not see the checkpoint as this process does.
        TransferError: If the Hub or another store does not answer, or not as it should.
    """
    options = options or Options()
    started = time.perf_counter()
    rules = _chosen(scanning.RULES, options)
    checkpoint = open_checkpoint(source, revision=revision, token=token, download=download)
    chosen = [tensor for tensor in checkpoint.tensors.values() if options.chooses(tensor.name)]
    unreachable = list(_unreachable(checkpoint, options))
    if not chosen and not unreachable and (checkpoint.tensors or checkpoint.unreachable):
        raise UsageError(f"no tensor of {checkpoint.uri} is selected; check --include and --exclude")
    with hire(executor, options.dask, options.jobs) as crew:
        measured = survey(checkpoint, chosen, jobs=options.jobs, crew=crew, progress=progress)
    whole = len(chosen) == len(checkpoint.tensors)
    examination = _examination(checkpoint, measured.stats, options.target_dtype, options.loader, whole=whole)
    findings = [_advised(finding, checkpoint) for rule in rules for finding in rule.check(examination)]
    parted = set_aside(
        findings,
        options.suppressions,
        content_hash=lambda name: sha256(checkpoint, checkpoint.tensors[name]),
        judged=lambda rule, tensor: any(rule == r.id for r in rules) and (tensor is None or options.chooses(tensor)),
    )
    skipped = (*measured.skipped, *unreachable)
    return Report(
        version=__version__,
        source=Source(
            checkpoint.uri, checkpoint.revision, checkpoint.format, examination.model.family, checkpoint.files
        ),
        target_dtype=options.target_dtype,
        loader=examination.loader,
        coverage=Coverage(len(chosen) + len(unreachable), len(measured.stats), skipped),
        findings=parted.kept,
        suppressed=parted.suppressed,
        remarks=parted.remarks,
        proof=_proof(examination),
        tensors=tuple(examination.tensors.values()),
        seconds=time.perf_counter() - started,
    )


def _advised(finding: Finding, checkpoint: Checkpoint) -> Finding:
    """The finding, without a repair that the checkpoint's format does not allow."""
    if finding.repair is None or checkpoint.format in find_pass(finding.repair.pass_name).formats:
        return finding
    return replace(finding, repair=None)


def unread(source: str, options: Options, why: str) -> Report:
    """The report on a source that could not be examined: incomplete, so that nothing takes it for a healthy one.

    Args:
        source: The source.
        options: How it was to be examined.
        why: The error's message.
    """
    return Report(
        version=__version__,
        source=Source(source, None, "safetensors", "generic", ()),
        target_dtype=options.target_dtype,
        loader=options.loader,
        coverage=Coverage(1, 0, (Skipped("*", why),)),
        findings=(),
        tensors=(),
        seconds=0.0,
    )


def _proof(examination: Examination) -> Proof | None:
    """How many values of a float16 run are proved to fit, if the whole checkpoint was examined for float16."""
    if examination.target_dtype != "float16" or not examination.selected or not examination.model.values:
        return None
    analysis = examination.ranges()
    written, scores = analysis.written, analysis.scores
    safe, scores_safe = (sum(item.safe for item in items) for items in (written, scores))
    return Proof(len(written), safe, ASSUMPTIONS, len(scores), scores_safe)


def plan(
    report: Report,
    *,
    passes: Sequence[str] = (),
    unsafe: bool = False,
    calibration: Calibration | None = None,
) -> Plan:
    """Plans the repair of what a scan has found.

    Args:
        report: The report of a scan; its findings are to be mended. A Hub repository is downloaded.
        passes: Names of the passes to use; every pass that mends a finding without loss where empty.
        unsafe: Whether edits that change the function are allowed.
        calibration: What a trace measured.

    Returns:
        The plan: pure data, nothing is written. What it leaves alone stands in it with a reason.

    Raises:
        UsageError: If a pass is unknown, passes conflict, or the report does not cover the whole checkpoint.
        ChangedError: If the checkpoint is no longer what was scanned.
    """
    checkpoint = _fetched(report.source.uri, report.source.revision)
    _refuse_incomplete(report)
    if checkpoint.files != report.source.files:
        raise ChangedError(f"{report.source.uri} is not what this report describes: scan it again")
    stats = {tensor.info.name: tensor.stats for tensor in report.tensors}
    examination = _examination(
        checkpoint, stats, report.target_dtype, report.loader, whole=len(stats) == len(checkpoint.tensors)
    )
    return make_plan(
        examination,
        report.findings,
        passes=passes,
        unsafe=unsafe,
        calibration=calibration,
        source=checkpoint.pinned,
        version=__version__,
    )


def repair(  # noqa: PLR0913  # two nouns and a place; the rest has defaults and is named
    plan: Plan,
    output: str | os.PathLike[str],
    *,
    source: str | os.PathLike[str] | None = None,
    link: bool = False,
    force: bool = False,
    progress: Progress | None = None,
) -> Applied:
    """Carries out a plan: writes a mended copy of the plan's source.

    Args:
        plan: What to do.
        output: Folder for the copy; it appears when it is complete and checked.
        source: Where the source lies now; where the plan says if None. Its contents must be those of the plan.
        link: Hard-link tensor files that no edit touches.
        force: Replace an output that is not empty.
        progress: Who is told how far it is.

    Returns:
        What was written.

    Raises:
        UsageError: If the plan does not fit its source, or the output its place.
        ChangedError: If the source is not what the plan was made for.
        OutputError: If the output cannot be written; nothing of it is left.
    """
    checkpoint = _fetched(plan.source if source is None else source)
    return apply(plan, checkpoint, Path(output), link=link, force=force, progress=progress)


def repair_in_place(plan: Plan, source: str | os.PathLike[str] | None = None) -> Applied:
    """Carries out a plan in its source: eight bytes of a GGUF file's metadata, after a backup of its header.

    Args:
        plan: What to do.
        source: Where the source lies now; where the plan says if None. Its contents must be those of the plan.

    Returns:
        What was written.

    Raises:
        UsageError: If the plan has other edits, other names lead to the file, or there is a backup already.
        ChangedError: If the source is not what the plan was made for.
        OutputError: If it cannot be written.
    """
    source = plan.source if source is None else source
    if is_repository(source):
        raise UsageError(f"{os.fsdecode(source)}: files of the Hub's cache are not changed in place. Give --output DIR")
    return apply_in_place(plan, open_checkpoint(source))


def check_push(repo: str, *, token: str | None = None, force: bool = False) -> None:
    """Refuses a repository that a checkpoint cannot be pushed to; nothing is created.

    Args:
        repo: ``owner/name``; it need not exist.
        token: Access token for the Hub; the one of this machine if None.
        force: Whether its files may be replaced.

    Raises:
        UsageError: If it holds other files, or nobody is logged in.
        TransferError: If the Hub does not answer, or refuses.
    """
    room = _pushing()
    room.check_target(room.Repository(repo, token=token), force=force)


def push(  # what is sent, where to, and how
    plan: Plan, applied: Applied, repo: str, *, token: str | None = None, force: bool = False
) -> str:
    """Sends a mended checkpoint to the Hub in one commit, its model card with a section about the repair.

    The card is written into the output first, so that what is sent is what the folder holds.

    Args:
        plan: What was done.
        applied: Where the output is.
        repo: ``owner/name``; it is created if it is not there.
        token: Access token for the Hub; the one of this machine if None.
        force: Whether files that the repository holds are replaced.

    Returns:
        The commit's address.

    Raises:
        UsageError: If the repository holds other files, the card cannot be read, or the source holds links to files
            outside it.
        TransferError: If the Hub does not answer, or refuses. The output stays.
    """
    room, folder = _pushing(), applied.output
    if os.path.isdir(plan.source):  # noqa: PTH112  # Path.is_dir raises on what it cannot look at
        room.check_links(Path(plan.source))
    base = plan.source.partition("@")[0] if is_repository(plan.source) else None
    _write_card(folder, room.CARD, lambda card: room.with_section(card, card_section(plan), base))
    message = f"Repaired by gemma-doctor {__version__}"
    address: str = room.upload(folder, room.Repository(repo, token=token), message, force=force)
    return address


def _write_card(folder: Path, name: str, edited: Callable[[str], str]) -> None:
    """Edit the model card of an output, and what its manifest says of it."""
    path = folder / name
    try:
        card = edited(path.read_text(encoding="utf-8") if path.exists() else "")
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: it is not UTF-8 ({error.reason}). Mend it.") from None
    manifest = relisted((folder / MANIFEST).read_bytes(), name, card.encode())
    write(path, card)
    write(folder / MANIFEST, manifest.decode())


def _pushing() -> ModuleType:
    """What knows the Hub, loaded when it is needed."""
    return import_module("gemma_doctor.checkpoint.remote.push")


def verify(
    source: str | os.PathLike[str],
    measures: Measures | None = None,
    options: Options | None = None,
    *,
    device: Device | None = None,
    against: str | os.PathLike[str] | None = None,
) -> Report:
    """Runs a checkpoint in float16, forward and backward, and watches every operation.

    It needs the extra ``verify``: torch and transformers.

    Args:
        source: A checkpoint folder that transformers loads.
        measures: How to run it.
        options: Which rules to apply, and what the user has set aside.
        device: Where to run, if not where ``measures`` says.
        against: Another checkpoint, whose logits in float32 are compared with this one's.

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
    rules = _chosen(verifying.RULES, options)
    checkpoint = _fetched(source)
    other = None if against is None else _fetched(against)
    verified = _harness().verify(checkpoint, measures, other)
    known = assemble(checkpoint, {}, "float16", "transformers", whole=True)
    evidence = Evidence(verified.verification, known.model, known.on_disk, checkpoint.tensors)
    parted = set_aside(
        [finding for rule in rules for finding in rule.check(evidence)],
        options.suppressions,
        content_hash=lambda name: sha256(checkpoint, checkpoint.tensors[name]),
        judged=lambda rule, _: any(rule == r.id for r in rules),
    )
    return Report(
        version=__version__,
        source=Source(checkpoint.uri, checkpoint.revision, checkpoint.format, known.model.family, checkpoint.files),
        target_dtype="float16",
        loader="transformers",
        coverage=Coverage(verified.asked, verified.asked - len(verified.skipped), verified.skipped),
        findings=parted.kept,
        suppressed=parted.suppressed,
        remarks=(*parted.remarks, *_on_checkpointing(known.model, measures), *_on_bfloat16(verified.activations)),
        tensors=(),
        activations=verified.activations,
        verification=verified.verification,
        seconds=time.perf_counter() - started,
    )


def _fetched(source: str | os.PathLike[str], revision: str | None = None) -> Checkpoint:
    """A checkpoint whose files are on this machine, which a Hub repository's are after a download.

    Raises:
        UsageError: If they are not, and cannot be downloaded by us.
    """
    checkpoint = open_checkpoint(source, revision=revision, download=is_repository(source))
    if checkpoint.store is not None:
        raise UsageError(f"{checkpoint.uri}: only a scan reads it where it is. Download it, and give the path")
    return checkpoint


def _on_checkpointing(model: Model, measures: Measures) -> Iterator[str]:
    """A trap that a run with non-reentrant checkpointing does not fall into."""
    if model.shared_kv and measures.backward:
        yield (
            "its layers share KV: train it with non-reentrant gradient checkpointing (use_reentrant=False); reentrant, "
            "transformers 5.23 gives the same loss and wrong gradients"
        )


def _on_bfloat16(activations: Sequence[Activation]) -> Iterator[str]:
    """What a T4 cannot compute."""
    found = [one for one in activations if one.dtype == "BF16"]
    if found:
        first = f"{found[0].op} in {found[0].module or 'the model itself'}"
        yield f"{len(found):,} operations of the float16 runs give bfloat16, {first} first; a T4 has none"


def _chosen(own: tuple[AnyRule, ...], options: Options) -> tuple[AnyRule, ...]:
    """The rules of one command that are switched on."""
    switched_on = catalog.select(options.select, options.ignore)
    chosen = tuple(rule for rule in own if rule in switched_on)
    if switched_on and not chosen:
        wanted = ", ".join(options.select)
        raise UsageError(f"{wanted} selects no rule from {own[0].id} to {own[-1].id}, which are those of this command")
    return chosen


def _harness() -> ModuleType:
    """The room that needs torch.

    Raises:
        UsageError: If it is not installed.
    """
    try:
        return import_module("gemma_doctor.verify.harness")
    except ModuleNotFoundError as error:
        raise UsageError(f"verify needs {error.name}: pip install 'gemma-doctor[verify]'") from error


def _refuse_incomplete(report: Report) -> None:
    """What was not measured may be sick, and a plan would pass it over in silence."""
    if report.complete:
        return
    covered = report.coverage
    first = "".join(f": {shown(item.tensor)}, {item.reason}" for item in covered.skipped[:1])
    raise UsageError(
        f"{report.source.uri} cannot be repaired before all of it can be measured; {covered.measured:,} of "
        f"{covered.expected:,} tensors were{first}"
    )


def _unreachable(checkpoint: Checkpoint, options: Options) -> Iterator[Skipped]:
    """What should be measured and cannot be reached.

    A file that cannot be read, or is missing, and that no index describes, may hold anything: it counts as one
    tensor called ``*``, whatever is selected.
    """
    yield from (Skipped(name, why) for name, why in checkpoint.unreachable.items() if options.chooses(name))
    for fault in checkpoint.faults:
        missing_shard = "shards" in fault.evidence
        if checkpoint.index is None and (fault.kind == "unreadable-shard" or missing_shard):
            yield Skipped("*", f"whatever {fault.file} holds: {fault.message}")


def exit_code(report: Report, fail_on: FailOn = "error") -> int:
    """The exit code that a report earns.

    Args:
        report: The report.
        fail_on: Least severity of a finding that counts as failure.

    Returns:
        2 where something was left unmeasured, whatever else was found; 1 where a finding is grave enough;
        else 0.
    """
    if not report.complete:
        return 2
    return int(any(map(report.count, failing(fail_on))))


def _examination(
    checkpoint: Checkpoint,
    stats: Mapping[str, TensorStats],
    target_dtype: TargetDtype,
    loader: Loader,
    *,
    whole: bool,
) -> Examination:
    """Everything that is known once the tensors are measured."""
    known = assemble(checkpoint, stats, target_dtype, loader, whole=whole)
    return replace(known, tied_head_equal=_tied_head_equal(known))


def _tied_head_equal(known: Examination) -> bool | None:
    """Whether a stored head holds the bytes of the embedding that it is tied to; None where that cannot be said."""
    if known.model.tied_head is None:
        return None
    head, embedding = map(known.measured, known.model.tied_head)
    if head is None or embedding is None or head.info.dtype != embedding.info.dtype:
        return None
    if head.info.shape != embedding.info.shape or head.stats != embedding.stats:
        return False
    return sha256(known.checkpoint, head.info) == sha256(known.checkpoint, embedding.info)
