"""Whether the index and the shards agree, and the shards with each other."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from gemma_doctor.checkpoint.index import Index
from gemma_doctor.checkpoint.quoting import quoted, shown
from gemma_doctor.checkpoint.shards import Shard
from gemma_doctor.records import Fault
from gemma_doctor.tensors import TensorInfo

__all__ = ["Census", "gather", "reconcile"]

_REWRITE = "Write the index anew from the shards, or download the checkpoint again."


@dataclass(frozen=True, slots=True)
class Census:
    """The tensors of a checkpoint, and where its files contradict each other.

    Attributes:
        tensors: Every readable tensor by name, in file order.
        faults: The contradictions.
        unreachable: Tensors that the index promises and no readable file holds: name -> reason.
    """

    tensors: Mapping[str, TensorInfo]
    faults: tuple[Fault, ...]
    unreachable: Mapping[str, str] = field(default_factory=dict)


def gather(shards: Iterable[Shard], weight_map: Mapping[str, str] | None = None) -> Census:
    """All tensors of the shards, those that stand in two of them once.

    Args:
        shards: In reading order.
        weight_map: Of a doubled tensor the copy counts that the index names; without an index the first.
    """
    tensors: dict[str, TensorInfo] = {}
    faults = []
    for tensor in (tensor for shard in shards for tensor in shard.tensors):
        first = tensors.setdefault(tensor.name, tensor)
        if first is not tensor:
            faults.append(_doubled(first, tensor))
            if weight_map is not None and weight_map.get(tensor.name) == tensor.file:
                tensors[tensor.name] = tensor
    return Census(tensors, tuple(faults))


def reconcile(name: str, index: Index, shards: Iterable[Shard], out_of_reach: Mapping[str, str]) -> Census:
    """The census of the shards that an index names, held against the index.

    Args:
        name: Name of the index file.
        index: What it says.
        shards: The files it names, as far as they are there.
        out_of_reach: Files that it names and that cannot be read: file -> reason.
    """
    census = gather(shards, index.weight_map)
    tensors = census.tensors
    unreachable = {
        tensor: out_of_reach[file] if file in out_of_reach else f"{shown(file)} does not hold it, though {name} says so"
        for tensor, file in index.weight_map.items()
        if tensor not in tensors
    }
    faults = [*census.faults, *_listings(name, index)]
    faults += (_absent(name, t, f) for t, f in index.weight_map.items() if t in unreachable and f not in out_of_reach)
    faults += (_astray(name, index.weight_map[t], info) for t, info in tensors.items() if _is_astray(index, info))
    faults += (_unlisted(name, info) for t, info in tensors.items() if t not in index.weight_map)
    if not unreachable:
        faults += _total_size(name, index.total_size, sum(info.nbytes for info in tensors.values()))
    return Census(tensors, tuple(faults), unreachable)


def _is_astray(index: Index, info: TensorInfo) -> bool:
    return index.weight_map.get(info.name, info.file) != info.file


def _doubled(first: TensorInfo, second: TensorInfo) -> Fault:
    message = (
        f"{shown(second.file)}: tensor {quoted(second.name)} stands in {shown(first.file)} as well. If these are two "
        "models, give one file as SOURCE; if they are one, delete the copy that is not meant."
    )
    return Fault("index-mismatch", second.file, message, second.name, {"other_file": first.file})


def _listings(name: str, index: Index) -> Iterator[Fault]:
    for tensor in index.doubled:
        message = f"{name}: it lists tensor {quoted(tensor)} twice; readers take the last entry. {_REWRITE}"
        yield Fault("index-mismatch", name, message, tensor)


def _absent(name: str, tensor: str, file: str) -> Fault:
    message = f"{shown(file)}: it does not hold tensor {quoted(tensor)}, though {name} says so. {_REWRITE}"
    return Fault("index-mismatch", file, message, tensor)


def _astray(name: str, file: str, info: TensorInfo) -> Fault:
    message = (
        f"{shown(info.file)}: it holds tensor {quoted(info.name)}, which {name} places in {shown(file)}. {_REWRITE}"
    )
    return Fault("index-mismatch", info.file, message, info.name, {"index_file": file})


def _unlisted(name: str, info: TensorInfo) -> Fault:
    message = f"{shown(info.file)}: it holds tensor {quoted(info.name)}, which {name} does not list. {_REWRITE}"
    return Fault("index-mismatch", info.file, message, info.name)


def _total_size(name: str, claimed: object, actual: int) -> Iterator[Fault]:
    """``metadata.total_size`` is bytes; some writers make it a float, for they count in fractions of a byte."""
    if claimed is None or (isinstance(claimed, (int, float)) and claimed == actual):
        return
    shown = f"{claimed:,}" if type(claimed) is int else quoted(str(claimed))
    message = f"{name}: total_size says {shown}, and the tensors have {actual:,} bytes. {_REWRITE}"
    yield Fault("index-mismatch", name, message, evidence={"total_size": str(claimed)[:80], "bytes": actual})
