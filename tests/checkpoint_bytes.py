"""Safetensors files as bytes, sound and broken, and what two parsers make of them."""

from __future__ import annotations

import io
import json
import random
import re
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import TypeAlias

from safetensors import SafetensorError, deserialize

from gemma_doctor.checkpoint.header import read_header
from gemma_doctor.errors import HeaderError

Content: TypeAlias = "dict[str, tuple[str, tuple[int, ...], bytes]]"
"""Tensors by name: dtype, shape, bytes."""

F32 = b'{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'
"""The entry of a tensor with one float32 at the beginning of the data."""

SEEDS = (
    b"{}",
    b'{"a":' + F32 + b"}",
    b'{"__metadata__": {"format": "pt", "k": "v"}, "a": ' + F32 + b', "b":["BF16",[2,3],[4,16]] }  ',
    b'{"a":{"dtype":"F4","shape":[2,0],"data_offsets":[0,0],"x":[1.5,-2e3,{"y":[null,true,"z"]}]},"b":["U8",[],[0,1]]}',
    b'{"w":{"dtype":{"I64":null},"shape":[1],"data_offsets":[0,8]},"v":{"shape":[],"data_offsets":[8,10],"dtype":"F16"}}',
    b'{"e":{"data_offsets":[0,0],"dtype":"F32","shape":[0,18446744073709551615]}}',
)
"""Sound headers to begin mutating with."""

_STOP = re.compile(rb",\s*([0-9]{1,4})\s*\]")
_DATA = bytes(i % 251 for i in range(10_000))
_TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*"|[-+.0-9a-zA-Z]+|\s+|.', re.DOTALL)

_INTERESTING = (
    *(b"{", b"}", b"[", b"]", b",", b":", b" ", b"\n", b"\0", b"\xff", b"\xef\xbb\xbf", b"\xc2\xa0", b"\\", b'"'),
    *(b"null", b"true", b"NaN", b"Infinity", b"-Infinity", b"nul", b"0", b"-0", b"1", b"4", b"8", b"-1", b"01", b"1."),
    *(b"1.0", b"1e2", b"1E-2", b".5", b"-", b"1e400", b"0e400", b"1e-400", b"1.7976931348623157e308", b"1.8e308"),
    *(b"9223372036854775807", b"9223372036854775808", b"18446744073709551615", b"18446744073709551616"),
    *(b"1" * 308, b"1" * 309, b"9" * 309, b"1" * 4301, b"[" * 130, b"]" * 130, b'{"":' * 126, b"}" * 126),
    *(b'"dtype"', b'"shape"', b'"data_offsets"', b'"__metadata__"', b'"x"', b'""', b'"F32"', b'"F4"', b'"F8_E8M0"'),
    *(b'{"F32":null}', b'["F32",[1],[0,4]]', b'"x":', b'"x":[],', b'"\\ud800"', b'"\\ud83d\\ude00"', b'"\\udc00"'),
    *(b'"\\u0064type"', b'"\\\\ud800"', b'"\\/"', b'"\\x"', b'"\x01"', b'"\x7f"', '"é"'.encode(), '"😀"'.encode()),
)


def framed(header: bytes, data: bytes = b"", length: int | None = None) -> bytes:
    """A file: the header's length (or the one given), the header, the data."""
    return struct.pack("<Q", len(header) if length is None else length) + header + data


def with_data(header: bytes) -> bytes:
    """A file whose data ends where the last tensor of the header seems to end."""
    stop = max(map(int, _STOP.findall(header)), default=0)
    return framed(header, _DATA[:stop])


def tensor_file(tensors: Mapping[str, tuple[str, list[int], int]], metadata: Mapping[str, str] | None = None) -> bytes:
    """A sound file of zeros from name -> (dtype, shape, bytes)."""
    header: dict[str, object] = {} if metadata is None else {"__metadata__": metadata}
    at = 0
    for name, (dtype, shape, nbytes) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + nbytes]}
        at += nbytes
    return framed(json.dumps(header).encode(), bytes(at))


def content_file(content: Content) -> bytes:
    """A sound file of these tensors in this order, with no padding: at any address, of any dtype."""
    header: dict[str, object] = {}
    at = 0
    for name, (dtype, shape, data) in content.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + len(data)]}
        at += len(data)
    return framed(json.dumps(header).encode(), b"".join(data for _, _, data in content.values()))


def write_file(path: Path, *names: str, metadata: Mapping[str, str] | None = None) -> Path:
    """A file on disk with one float32 per name."""
    path.write_bytes(tensor_file(dict.fromkeys(names, ("F32", [1], 4)), metadata))
    return path


def official(raw: bytes) -> Content | None:
    """What the official parser reads; None where it refuses."""
    try:
        tensors = deserialize(raw)  # type: ignore[no-untyped-call]
    except SafetensorError:
        return None
    return {name: (str(t["dtype"]), tuple(t["shape"]), bytes(t["data"])) for name, t in tensors}


def ours(raw: bytes) -> Content | None:
    """What this project's parser reads; None where it refuses."""
    try:
        header = read_header(io.BytesIO(raw), len(raw), "x.safetensors")
    except HeaderError:
        return None
    return {t.name: (t.dtype, t.shape, raw[t.start : t.stop]) for t in header.tensors}


def mutated(header: bytes, rng: random.Random) -> bytes:
    """The header with a few tokens removed, doubled, swapped, replaced or put in, or a byte changed."""
    tokens = _TOKEN.findall(header)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        at = rng.randrange(len(tokens) + 1)
        match rng.randrange(6):
            case 0:
                tokens[at : at + rng.randint(1, 3)] = []
            case 1:
                tokens[at:at] = tokens[at : at + rng.randint(1, 12)]
            case 2:
                tokens[at : at + 2] = tokens[at : at + 2][::-1]
            case 3:
                tokens[at : at + 1] = [rng.choice(_INTERESTING)]
            case 4:
                tokens[at:at] = [rng.choice(_INTERESTING)]
            case _:
                text = bytearray(b"".join(tokens) or b"{}")
                text[rng.randrange(len(text))] = rng.randrange(256)
                tokens = _TOKEN.findall(bytes(text))
    return b"".join(tokens)
