"""From the files of a checkpoint, wherever they are, to the noun ``Checkpoint``."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace

from gemma_doctor.checkpoint.config import read_config
from gemma_doctor.checkpoint.filenames import SHARD
from gemma_doctor.checkpoint.index import Index, leaves_folder, read_index
from gemma_doctor.checkpoint.layout import Layout
from gemma_doctor.checkpoint.model import Checkpoint
from gemma_doctor.checkpoint.quoting import shown
from gemma_doctor.checkpoint.reconcile import gather, reconcile
from gemma_doctor.checkpoint.shards import Shard, read_shards
from gemma_doctor.checkpoint.stores import Store
from gemma_doctor.records import Fault, FileInfo

__all__ = ["read_checkpoint"]


def read_checkpoint(uri: str, layout: Layout, store: Store) -> Checkpoint:
    """Read the headers of a checkpoint, its index and its config; no tensor's bytes.

    What is wrong with the files becomes a fault of the checkpoint; tensors that the index promises and no
    readable file holds go to ``unreachable``.

    Args:
        uri: SOURCE as the user gave it.
        layout: Which files make the checkpoint.
        store: Where they are.

    Raises:
        IndexFileError: If the index or ``config.json`` is broken.
        TransferError: If the store does not answer, or not as it should.
    """
    checkpoint = _read(uri, layout, store)
    named = {*layout.files, *(file.name for file in checkpoint.files), *(fault.file for fault in checkpoint.faults)}
    known = named | {f"{file.partition('/')[0]}/" for file in named if "/" in file}
    return replace(checkpoint, beside=tuple(name for name in layout.weights if name not in known))


def _read(uri: str, layout: Layout, store: Store) -> Checkpoint:
    if layout.index is None:
        return _without_index(uri, layout, store)
    index = read_index(store, layout.index)
    if layout.files and not set(layout.files) <= set(index.files):
        return _without_index(uri, layout, store, _rivals(layout.files[0], layout.index))
    return _with_index(uri, layout, store, index)


def _without_index(uri: str, layout: Layout, store: Store, *known: Fault) -> Checkpoint:
    shards = read_shards(store, layout.files)
    census = gather(shards)
    gaps = () if layout.partial else _gaps(layout.files)
    return Checkpoint(
        uri=uri,
        root=layout.root,
        format=layout.format,
        files=_infos(shards),
        tensors=census.tensors,
        config=None if layout.format == "gguf" else read_config(store),
        faults=(*known, *gaps, *_faults(shards), *census.faults),
        partial=layout.partial,
        metadata=shards[0].metadata,
    )


def _with_index(uri: str, layout: Layout, store: Store, index: Index) -> Checkpoint:
    name = str(layout.index)
    unsafe = [_unsafe(name, file) for file in index.files if leaves_folder(file)]
    shards = read_shards(store, [file for file in index.files if not leaves_folder(file)])
    out_of_reach = {shard.faults[0].file: shard.faults[0].message for shard in shards if not shard.readable}
    out_of_reach |= {str(fault.evidence["path"]): fault.message for fault in unsafe}
    census = reconcile(name, index, shards, out_of_reach)
    return Checkpoint(
        uri=uri,
        root=layout.root,
        format="safetensors",
        files=_infos(shards),
        tensors=census.tensors,
        unreachable=census.unreachable,
        config=read_config(store),
        index=name,
        faults=(*unsafe, *_faults(shards), *census.faults),
    )


def _infos(shards: list[Shard]) -> tuple[FileInfo, ...]:
    return tuple(shard.info for shard in shards if shard.info is not None)


def _faults(shards: list[Shard]) -> Iterator[Fault]:
    for shard in shards:
        yield from shard.faults


def _gaps(files: tuple[str, ...]) -> Iterator[Fault]:
    """Numbers that are missing among ``stem-00001-of-00003.safetensors``, or ``.gguf``, and so on."""
    present: dict[tuple[str, str, str], set[int]] = defaultdict(set)
    for file in files:
        shard = SHARD.fullmatch(file)
        if shard:
            present[shard["stem"], shard["count"], shard["format"]].add(int(shard["number"]))
    for (stem, count, suffix), numbers in present.items():
        if len(numbers) < int(count):
            base = 0 if 0 in numbers else 1  # some writers count from zero
            first = next(n for n in range(base, base + len(numbers) + 1) if n not in numbers)
            yield _gap(f"{stem}-{first:0{len(count)}}-of-{count}.{suffix}", len(numbers), int(count))


def _gap(first: str, present: int, count: int) -> Fault:
    message = (
        f"{shown(first)}: only {present:,} of {count:,} shards are here; this is the first that is missing. "
        "Download the checkpoint again."
    )
    return Fault("index-mismatch", first, message, evidence={"present": present, "shards": count})


def _unsafe(name: str, file: str) -> Fault:
    message = (
        f"{name}: it names the file {shown(file)}, outside the checkpoint's folder, which is not read. "
        "Do not load this checkpoint before you know who wrote its index."
    )
    return Fault("unsafe-path", name, message, evidence={"path": file})


def _rivals(single: str, index: str) -> Fault:
    message = (
        f"{index}: it does not name {single}, which lies beside it. transformers loads {single}, and so it is what "
        "was read; other loaders follow the index. Delete the one that is stale."
    )
    return Fault("index-mismatch", index, message, evidence={"file": single})
