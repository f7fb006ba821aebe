"""What the name of a file says of it: which part of which whole, and whether it holds weights."""

from __future__ import annotations

import re
from collections.abc import Iterable

from gemma_doctor.checkpoint.quoting import shown
from gemma_doctor.errors import UsageError

__all__ = [
    "PICKLES",
    "PICKLE_ADVICE",
    "SHARD",
    "all_parts",
    "is_adapter",
    "is_copy",
    "is_weights",
    "parts_among",
    "whole_of",
]

SHARD = re.compile(
    r"(?P<stem>.+)-(?P<number>[0-9]{1,9})-of-(?P<count>[0-9]{1,9})\.(?P<format>safetensors|gguf)", re.DOTALL
)
"""A shard's name: stem, its number (from 1), how many there are, and the format."""

PICKLES = (".bin", ".ckpt", ".pkl", ".pt", ".pth")
PICKLE_ADVICE = (
    "Pickles can run code and are never loaded: convert them on a machine that may be lost, with "
    "torch.load(..., weights_only=True) and safetensors.torch.save_file"
)
_ADAPTER = "adapter_model."
_COPY = "consolidated"
"""How the files of an adapter begin, and those of a copy in its makers' own layout."""

_MOST_PARTS = 1_000


def is_adapter(name: str) -> bool:
    """Whether a file of this name holds an adapter, as peft writes it."""
    return name.startswith(_ADAPTER)


def is_copy(name: str) -> bool:
    """Whether a file of this name holds a copy of the model beside it, in its makers' own layout."""
    return name.startswith(_COPY)


def is_weights(name: str) -> bool:
    """Whether a file of this name holds weights; of pickles only an adapter's, for trainers leave many others."""
    return name.endswith((".safetensors", ".gguf")) or (is_adapter(name) and name.endswith(PICKLES))


def parts_among(name: str, names: Iterable[str]) -> tuple[str, ...]:
    """The file, and of a split one every other part that is there, sorted.

    Args:
        name: The file.
        names: The files of its folder.
    """
    return tuple(sorted({name} | {other for other in names if whole_of(other) == whole_of(name)}))


def all_parts(name: str) -> tuple[str, ...]:
    """The file, or the names of all parts of the split file that it is a part of, there or not.

    Args:
        name: The file.

    Raises:
        UsageError: If there would be more than 1,000.
    """
    part = SHARD.fullmatch(name)
    if part is None:
        return (name,)
    count = int(part["count"])
    if count > _MOST_PARTS:
        raise UsageError(
            f"{shown(name)}: a file in {count:,} parts; each would be asked for, and {_MOST_PARTS:,} is the limit"
        )
    first = 0 if int(part["number"]) == 0 else 1
    width = len(part["number"])
    return tuple(
        f"{part['stem']}-{number:0{width}}-of-{part['count']}.{part['format']}"
        for number in range(first, first + count)
    )


def whole_of(name: str) -> tuple[str, ...]:
    """What the parts of one split file have in common; of another file its name."""
    part = SHARD.fullmatch(name)
    return (name,) if part is None else (part["stem"], part["count"], part["format"])
