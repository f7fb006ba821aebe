"""What is checked before a byte is written: that the source is the plan's, and that no edit loses what it may not.

Every edited tensor is read once, hashed and edited without being stored. That is a pass over the edited tensors
only, and it means that a plan is refused as a whole, with every number known, before anything is there to clean up.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np

from gemma_doctor.checkpoint import Checkpoint, FileBytes
from gemma_doctor.checkpoint.config import CONFIG_NAME
from gemma_doctor.checkpoint.quoting import quoted, shown
from gemma_doctor.errors import ChangedError, UsageError
from gemma_doctor.plans import Fingerprint
from gemma_doctor.repair.applying.outfiles import chunks, origin_bytes
from gemma_doctor.repair.applying.schedule import Target
from gemma_doctor.repair.elements.edits import Change, carry_out, dtype_after
from gemma_doctor.repair.elements.excess import Excess, Worst, excess
from gemma_doctor.repair.elements.floats import FORMS
from gemma_doctor.repair.fingerprint import config_mark
from gemma_doctor.tensors import TensorInfo

__all__ = ["check_files", "rehearse"]

_CHANGED = "The source has changed since the plan was made. Scan it again and make a new plan."


def check_files(fingerprint: Fingerprint, checkpoint: Checkpoint, source: FileBytes) -> None:
    """Check files against the fingerprint: which tensor files there are, their sizes and headers; and the config.

    Args:
        fingerprint: What the plan was made for.
        checkpoint: The source.
        source: The source's files.

    Raises:
        ChangedError: If they are not what the plan was made for; names the file.
    """
    marks = {mark.name: mark for mark in fingerprint.files}
    sizes = {info.name: info.size for info in checkpoint.files}
    for name in sorted(marks.keys() ^ sizes.keys()):
        fact = "the plan does not know this tensor file" if name in sizes else "this tensor file of the plan is gone"
        raise ChangedError(f"{shown(name)}: {fact}. {_CHANGED}")
    for name, mark in marks.items():
        if sizes[name] != mark.size:
            raise ChangedError(f"{shown(name)}: it had {mark.size:,} bytes, and has {sizes[name]:,} now. {_CHANGED}")
        if hashlib.sha256(source.header(name)).hexdigest() != mark.header_sha256:
            raise ChangedError(f"{shown(name)}: its header is another one. {_CHANGED}")
    if config_mark(checkpoint) != fingerprint.config:
        raise ChangedError(f"{CONFIG_NAME}: it says something else, or is there only now, or no more. {_CHANGED}")


def rehearse(
    fingerprint: Fingerprint, checkpoint: Checkpoint, targets: Sequence[Target], source: FileBytes, jobs: int
) -> None:
    """Check the tensors against the fingerprint, and every edit against its exactness.

    Args:
        fingerprint: What the plan was made for.
        checkpoint: The source.
        targets: The output's tensors.
        source: The source's files.
        jobs: Threads.

    Raises:
        ChangedError: If a tensor is not what the plan was made for.
        UsageError: If an edit would lose what its exactness does not allow, or the plan does not fingerprint a tensor
            that it edits; names the tensor.
    """
    edited = [target for target in targets if target.changes]
    by_origin = {target.origin.name for target in edited if target.origin}
    for name in sorted(by_origin - fingerprint.tensors.keys()):
        raise UsageError(f"the plan edits tensor {quoted(name)} and has no hash of it. Make the plan anew.")
    others = [_hashed(fingerprint, checkpoint, name) for name in fingerprint.tensors if name not in by_origin]
    tasks: list[Callable[[], None]] = [partial(_check_hash, source, info, wanted) for info, wanted in others]
    tasks += [partial(_rehearse_tensor, source, target, fingerprint.tensors) for target in edited]
    with ThreadPoolExecutor(jobs) as pool:
        try:
            for done in [pool.submit(task) for task in tasks]:
                done.result()
        finally:
            pool.shutdown(cancel_futures=True)


def _hashed(fingerprint: Fingerprint, checkpoint: Checkpoint, name: str) -> tuple[TensorInfo, str]:
    info = checkpoint.tensors.get(name)
    if info is None:
        raise ChangedError(f"tensor {quoted(name)}: the plan has a hash of it, and it is gone. {_CHANGED}")
    return info, fingerprint.tensors[name]


def _check_hash(source: FileBytes, info: TensorInfo, wanted: str) -> None:
    _compare(info, source.sha256(info), wanted)


def _rehearse_tensor(source: FileBytes, target: Target, hashes: Mapping[str, str]) -> None:
    digest = hashlib.sha256()
    totals = [Excess()] * len(target.changes)
    for first, stop in chunks(target):
        content, dtype = origin_bytes(source, target, first, stop), target.begins_as
        digest.update(content.data)
        for number, change in enumerate(target.changes):
            before = content.view(FORMS[dtype].word)
            after = carry_out(change, before, dtype)
            totals[number] = totals[number].merge(excess(change, before, after, dtype, first))
            content, dtype = after.view(np.uint8), dtype_after(change, dtype)
    if target.origin is not None:
        _compare(target.origin, digest.hexdigest(), hashes[target.origin.name])
    for change, total in zip(target.changes, totals, strict=True):
        if total.worst is not None:
            raise UsageError(_refusal(target, change, total.count, total.worst))


def _compare(info: TensorInfo, found: str, wanted: str) -> None:
    if found != wanted:
        raise ChangedError(f"{shown(info.file)}: tensor {quoted(info.name)} holds other numbers. {_CHANGED}")


def _refusal(target: Target, change: Change, count: int, worst: Worst) -> str:
    origin = target.origin
    subject = f"{shown(origin.file)}: tensor {quoted(origin.name)}" if origin else f"tensor {quoted(target.entry.name)}"
    what = "become inf, NaN or zero, or are replaced" if change.exactness == "rounded" else "change beyond it"
    return (
        f"{subject}: the plan calls its {type(change).__name__} by {change.pass_name} {change.exactness}, and "
        f"{count:,} of {math.prod(target.entry.shape):,} elements {what}; the largest is element {worst.index:,}, "
        f"{worst.before!r}, which becomes {worst.after!r}. Leave the tensor out, choose a smaller step or a wider "
        "dtype, or allow the loss with --unsafe."
    )
