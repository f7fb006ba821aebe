"""gguf-uint32: the number of layers that share KV is written as UINT32.

## What it does

The value of `gemma3n.attention.shared_kv_layers` in the metadata of a GGUF file becomes a UINT32 of the same number.
Its type and its number, eight bytes that lie together, are all that changes: a FLOAT32 takes four bytes as well.

## Which findings it mends

GD501 gguf-shared-kv-type, where the value is a FLOAT32 or INT32 that holds a whole number.

## Exactness

Exact: the same number, and every other byte as it was.

## Example

`gemma-doctor repair model.gguf --pass gguf-uint32 --output mended` writes a copy. With `--in-place` instead of
`--output` the file itself is changed: its header is copied to `model.gguf.header-backup` first, then the eight bytes
are written at once, put on the disk, and read back.

## Limits

A number of another width moves everything behind it, and one that is not whole is no number of layers: such a file has
to be converted anew. In place, a file that other names lead to (hard links, symbolic links such as the Hub's cache is
made of) is refused, for whoever uses those names would get another file. If power fails while the eight bytes are being
written, `dd if=model.gguf.header-backup of=model.gguf conv=notrunc` puts the old ones back.
"""

from __future__ import annotations

from collections.abc import Iterator

from gemma_doctor.architectures.gguf import shared_kv_key
from gemma_doctor.checkpoint.gguf_values import as_uint32
from gemma_doctor.plans import Reason, SetMetadata
from gemma_doctor.repair.evidence.case import Answer, Case, Mend, Pass, left

__all__ = ["PASS"]


def plan(case: Case) -> Iterator[Answer]:
    """An edit of the one value, if its bytes can hold the number as UINT32."""
    key = shared_kv_key(case.exam.checkpoint.metadata)
    for finding in case.findings:
        value = case.exam.checkpoint.metadata.get(key)
        number = None if value is None else as_uint32(value)
        if value is None or number is None:
            yield left(finding, "it is no whole number of four bytes, so the file has to be converted anew")
            continue
        message = f"{key} is the {value.type} {number}; a UINT32 takes the same four bytes."
        reason = Reason(finding.rule, message, {"type": value.type, "value": number})
        file = case.exam.checkpoint.files[0].name
        edit = SetMetadata(file=file, key=key, number=number, pass_name=PASS.name, exactness="exact", reason=reason)
        yield Mend(finding, (edit,))


PASS = Pass("gguf-uint32", "exact", ("GD501",), plan, formats=("gguf",))
