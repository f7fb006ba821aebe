"""JSON documents beside the weights: the index, and ``config.json``."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import NoReturn

from gemma_doctor.checkpoint.disguise import HEAD, unmask
from gemma_doctor.checkpoint.stores import Store
from gemma_doctor.checkpoint.strict_json import MAX_DEPTH, deeper_than, lone_surrogate
from gemma_doctor.errors import ChangedError, CheckpointError, IndexFileError, TransferError

__all__ = ["JSONObject", "read_document"]

_MAX_DIGITS = 400


class JSONObject(dict[str, object]):
    """A JSON object.

    Attributes:
        doubled: Keys that stand more than once; as everywhere in Python, the last one counts.
    """

    __slots__ = ("doubled",)

    def __init__(self, pairs: Iterable[tuple[str, object]] = ()) -> None:
        pairs = tuple(pairs)
        super().__init__(pairs)
        self.doubled = _doubled(key for key, _ in pairs) if len(self) < len(pairs) else ()


def _doubled(keys: Iterable[str]) -> tuple[str, ...]:
    seen: dict[str, bool] = {}
    for key in keys:
        seen[key] = key in seen
    return tuple(key for key, again in seen.items() if again)


def read_document(store: Store, name: str, limit: int) -> JSONObject:
    """The one object that a JSON file holds.

    Read as the json module of the standard library reads it (NaN and Infinity included: configs hold them),
    but for lone surrogates, integers of more than 400 digits and nesting beyond 127 levels.

    Args:
        store: Where the checkpoint is.
        name: The file.
        limit: Most bytes that it may have.

    Raises:
        FileNotFoundError: If there is no such file, not even a dangling link.
        IndexFileError: If it cannot be read; with line and column where there is one.
    """
    text = _text(name, _read(store, name, limit))
    try:
        document = json.loads(text, object_pairs_hook=JSONObject, parse_int=_integer)
    except json.JSONDecodeError as error:
        _refuse(name, error.msg.removesuffix(" at"), text, error.pos)
    except (RecursionError, OverflowError) as error:
        _refuse(name, _deep() if isinstance(error, RecursionError) else str(error))
    if not isinstance(document, JSONObject):
        _refuse(name, "it must be one JSON object in braces", text, 0)
    if deeper_than(MAX_DEPTH, document):
        _refuse(name, _deep())
    return document


def _read(store: Store, name: str, limit: int) -> bytes:
    try:
        with store.reading(name) as (stream, size):
            raw = stream.read(limit + 1)
    except (ChangedError, TransferError):
        raise
    except CheckpointError as error:
        raise IndexFileError(str(error)) from None
    if len(raw) > limit:
        _refuse(name, f"it has {size:,} bytes; the limit is {limit:,}")
    return raw


def _text(name: str, raw: bytes) -> str:
    if not raw.lstrip(b"\xef\xbb\xbf \t\r\n").startswith((b"{", b"[")):
        _refuse_disguised(name, raw)
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        before = raw[: error.start].decode("utf-8")
        _refuse(name, "not UTF-8", before, len(before))
    lone = lone_surrogate(text)
    if lone is not None:
        _refuse(name, "lone surrogate escape", text, lone)
    return text


def _refuse_disguised(name: str, raw: bytes) -> None:
    what = unmask(raw[:HEAD])
    if what:
        raise IndexFileError(f"{name}: it is {what[0]}. {what[1]}.")


def _integer(literal: str) -> int:
    if len(literal) > _MAX_DIGITS:
        raise OverflowError(f"an integer of {len(literal):,} digits; the limit is {_MAX_DIGITS}")
    return int(literal)


def _deep() -> str:
    return f"nested deeper than {MAX_DEPTH} levels"


def _refuse(name: str, fact: str, text: str = "", at: int | None = None) -> NoReturn:
    """Raise, with line and column (both from 1) of the place ``at`` in ``text``."""
    place = ""
    if at is not None:
        line, column = text.count("\n", 0, at) + 1, at - text.rfind("\n", 0, at)
        place = f", line {line}, column {column}"
    raise IndexFileError(f"{name}{place}: {fact}. Mend the file, or download it again.")
