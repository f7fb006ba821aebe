"""The header of a safetensors file: what is accepted and refused is what the official parser accepts and refuses."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest
from checkpoint_bytes import F32, framed, official, ours, tensor_file
from safetensors import SafetensorError, deserialize, safe_open

from gemma_doctor.checkpoint.dtypes import BITS
from gemma_doctor.checkpoint.header import MAX_HEADER, read_header
from gemma_doctor.errors import HeaderError
from gemma_doctor.tensors import TensorInfo

FOUR = b"\x01\x02\x03\x04"


def one(entry: bytes, data: bytes = FOUR) -> bytes:
    """A file with one tensor ``a`` of that entry."""
    return framed(b'{"a":' + entry + b"}", data)


def extra(field: bytes) -> bytes:
    """A file with one sound tensor whose entry has one more field."""
    return one(F32[:-1] + b"," + field + b"}")


def shaped(shape: bytes, stop: int = 4, dtype: bytes = b"F32") -> bytes:
    entry = b'{"dtype":"%b","shape":%b,"data_offsets":[0,%d]}' % (dtype, shape, stop)
    return one(entry, bytes(stop))


ACCEPTED = {
    "nothing": framed(b"{}"),
    "space before": framed(b" \t\r\n{}"),
    "space behind": framed(b"{} \t\r\n"),
    "space everywhere": framed(
        b'\n{ "a" : { "dtype" : "F32" , "shape" : [ 1 ] , "data_offsets" : [ 0 , 4 ] } }\r', FOUR
    ),
    "metadata": framed(b'{"__metadata__":{"format":"pt"}}'),
    "metadata null": framed(b'{"__metadata__":null}'),
    "metadata with a repeated key": framed(b'{"__metadata__":{"a":"1","a":"2"}}'),
    "metadata under an escaped name": framed(b'{"__met\\u0061data__":{"a":"b"}}'),
    "scalar": shaped(b"[]"),
    "no elements": shaped(b"[0]", 0),
    "no elements, among huge extents": shaped(b"[0,18446744073709551615,2]", 0),
    "no elements, the product just fits": shaped(b"[18446744073709551615,0]", 0),
    "fields in another order": one(b'{"data_offsets":[0,4],"shape":[1],"dtype":"F32"}'),
    "tensor as an array": one(b'["F32",[1],[0,4]]'),
    "dtype as an object": one(b'{"dtype":{"F32":null},"shape":[1],"data_offsets":[0,4]}'),
    "dtype with an escape": one(b'{"dtype":"F\\u00332","shape":[1],"data_offsets":[0,4]}'),
    "unknown field": extra(b'"x":{"y":[null,true,-1.5e-7,"z"]}'),
    "unknown field, repeated": extra(b'"x":1,"x":2'),
    "125 arrays in a field": extra(b'"x":' + b"[" * 125 + b"]" * 125),
    "125 objects in a field": extra(b'"x":' + b'{"":' * 125 + b"0" + b"}" * 125),
    "surrogate pair": extra(b'"x":"\\ud83d\\ude00"'),
    "escaped backslash before u": extra(b'"x":"\\\\ud800"'),
    "minus zero in a field": extra(b'"x":-0'),
    "309 digits": extra(b'"x":' + b"1" * 309),
    "largest float": extra(b'"x":1.7976931348623157e308'),
    "float in range after many zeros": extra(b'"x":0.' + b"0" * 30 + b"1e339"),
    "float in range thanks to its exponent": extra(b'"x":' + b"9" * 400 + b"e-99"),
    "zero with a huge exponent": extra(b'"x":0e99999999999'),
    "a hair above zero": extra(b'"x":1e-99999999999'),
    "repeated tensor": framed(b'{"a":' + F32 + b',"a":' + F32 + b"}", FOUR),
    "repeated tensor, the first misplaced": framed(
        b'{"a":{"dtype":"F64","shape":[9],"data_offsets":[7,3]},"a":' + F32 + b"}", FOUR
    ),
    "tensors out of order": framed(
        b'{"b":{"dtype":"F32","shape":[1],"data_offsets":[4,8]},"c":{"dtype":"U8","shape":[0],"data_offsets":[4,4]},"a":'
        + F32
        + b"}",
        FOUR * 2,
    ),
    "unaligned": framed(
        b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"b":{"dtype":"F64","shape":[1],"data_offsets":[1,9]}}',
        bytes(9),
    ),
    "name with NUL": framed(b'{"\\u0000":' + F32 + b"}", FOUR),
    "name with DEL": framed(b'{"\x7f":' + F32 + b"}", FOUR),
    "no name": framed(b'{"":' + F32 + b"}", FOUR),
    "name with markup": framed(b'{"[red]<b>\\r\\n\\u202e":' + F32 + b"}", FOUR),
    "name of 10 kB": framed(b'{"' + b"n" * 10_000 + b'":' + F32 + b"}", FOUR),
}

REFUSED = {
    "empty file": (b"", "it is an empty file"),
    "seven bytes": (b"\2\0\0\0\0\0\0", "only 7 bytes"),
    "no header": (framed(b""), "not valid JSON: Expecting an object at character 0"),
    "header too long": (framed(b"{}", length=100_000_001), r"100,000,001 bytes; the limit is 100,000,000"),
    "length of 2**64 - 1": (framed(b"{}", length=2**64 - 1), "18,446,744,073,709,551,615 bytes; the limit"),
    "header cut off": (framed(b"{}", length=3), r"cut off: it has 10 bytes, and its header alone reaches to 11"),
    "length too short": (framed(b"{} ", length=2), r"it has 11 bytes, and its header describes only the first 10"),
    "byte order mark": (framed(b"\xef\xbb\xbf{}"), "Expecting an object at character 0"),
    "array": (framed(b"[]"), "Expecting an object"),
    "null": (framed(b"null"), "Expecting an object"),
    "NUL behind": (framed(b"{}\0"), "Extra data at character 2"),
    "second object": (framed(b"{}{}"), "Extra data at character 2"),
    "vertical tab": (framed(b"\x0b{}"), "Expecting an object"),
    "vertical tab between": (framed(b'{"a":' + F32 + b"\x0b}", FOUR), "Expecting ',' delimiter"),
    "no-break space": (framed(b"{}\xc2\xa0"), "Extra data"),
    "comma before nothing": (framed(b"{,}"), "Expecting a name in double quotes at character 1"),
    "trailing comma": (framed(b'{"a":' + F32 + b",}", FOUR), "Expecting a name in double quotes"),
    "no colon": (framed(b'{"a" ' + F32 + b"}", FOUR), "Expecting ':' delimiter"),
    "no comma": (framed(b'{"a":' + F32 + b' "b":' + F32 + b"}", FOUR), "Expecting ',' delimiter"),
    "no end": (framed(b'{"a":' + F32, FOUR), "Expecting ',' delimiter"),
    "comment": (framed(b"{/**/}"), "Expecting a name"),
    "single quotes": (framed(b"{'a':" + F32 + b"}", FOUR), "Expecting a name"),
    "not UTF-8": (framed(b'{"\xff":' + F32 + b"}", FOUR), "byte 2 is not UTF-8"),
    "surrogate in UTF-8": (framed(b'{"\xed\xa0\x80":' + F32 + b"}", FOUR), "byte 2 is not UTF-8"),
    "control character": (framed(b'{"\x01":' + F32 + b"}", FOUR), "Invalid control character at character 2"),
    "unknown escape": (framed(b'{"\\x":' + F32 + b"}", FOUR), r"Invalid \\escape"),
    "half an escape": (framed(b'{"\\u00":' + F32 + b"}", FOUR), r"Invalid \\uXXXX escape"),
    "lone high surrogate": (framed(b'{"\\ud800":' + F32 + b"}", FOUR), "lone surrogate escape at character 2"),
    "lone low surrogate": (extra(b'"x":"\\uDC00"'), "lone surrogate"),
    "surrogates the wrong way round": (extra(b'"x":"\\ude00\\ud83d"'), "lone surrogate"),
    "two high surrogates and a low one": (extra(b'"x":"\\ud83d\\ud83d\\ude00"'), "lone surrogate"),
    "NaN": (extra(b'"x":NaN'), "NaN is not JSON"),
    "Infinity": (extra(b'"x":-Infinity'), "-Infinity is not JSON"),
    "leading zero": (extra(b'"x":01'), "Expecting ',' delimiter"),
    "no fraction": (extra(b'"x":1.'), "Expecting ',' delimiter"),
    "float out of range": (extra(b'"x":1e309'), "beyond float64's range"),
    "float out of range by its digits": (extra(b'"x":1.8e308'), "beyond float64's range"),
    "float out of range by serde's rounding": (extra(b'"x":1797693134862315.806360837e293'), "beyond float64's range"),
    "float out of range by serde's cut": (extra(b'"x":1797693134862315812415.868e287'), "beyond float64's range"),
    "float out of range after many zeros": (extra(b'"x":0.' + b"0" * 30 + b"1e340"), "beyond float64's range"),
    "float out of range in spite of its exponent": (extra(b'"x":' + b"9" * 400 + b"e-9"), "beyond float64's range"),
    "float out of range by its exponent's digits": (extra(b'"x":0.1e99999999999'), "beyond float64's range"),
    "310 digits": (extra(b'"x":' + b"1" * 310), "beyond float64's range"),
    "5000 digits": (extra(b'"x":-' + b"1" * 5000), "beyond float64's range"),
    "126 arrays in a field": (extra(b'"x":' + b"[" * 126 + b"]" * 126), "nested deeper than 127 levels"),
    "126 objects in a field": (extra(b'"x":' + b'{"":' * 126 + b"0" + b"}" * 126), "nested deeper than 127 levels"),
    "100,000 arrays": (extra(b'"x":' + b"[" * 100_000 + b"]" * 100_000), "nested deeper than 127 levels"),
    "100,000 arrays, open": (framed(b'{"a":' + b"[" * 100_000), "nested deeper than 127 levels"),
    "metadata number": (framed(b'{"__metadata__":{"a":1}}'), "maps 'a' to something other than a string"),
    "metadata null inside": (framed(b'{"__metadata__":{"a":null}}'), "maps 'a' to something other than a string"),
    "metadata array": (framed(b'{"__metadata__":[]}'), "__metadata__ of its header is not an object"),
    "metadata text": (framed(b'{"__metadata__":"a"}'), "__metadata__ of its header is not an object"),
    "metadata twice": (framed(b'{"__metadata__":{},"__metadata__":{}}'), "two __metadata__ entries"),
    "metadata null and again": (framed(b'{"__metadata__":null,"__metadata__":{}}'), "two __metadata__ entries"),
    "tensor null": (framed(b'{"a":null}'), "tensor 'a' is not an object with dtype"),
    "tensor text": (framed(b'{"a":"F32"}'), "tensor 'a' is not an object with dtype"),
    "tensor empty": (framed(b'{"a":{}}'), "tensor 'a' has no dtype"),
    "no shape": (one(b'{"dtype":"F32","data_offsets":[0,4]}'), "tensor 'a' has no shape"),
    "no offsets": (one(b'{"dtype":"F32","shape":[1],"offsets":[0,4]}'), "tensor 'a' has no data_offsets"),
    "array too short": (one(b'["F32",[1]]'), "is not an object"),
    "array too long": (one(b'["F32",[1],[0,4],0]'), "is not an object"),
    "dtype twice": (extra(b'"dtype":"F32"'), "has dtype twice"),
    "shape twice": (extra(b'"sh\\u0061pe":[1]'), "has shape twice"),
    "dtype unknown": (shaped(b"[1]", dtype=b"F99"), "has the dtype 'F99', unknown"),
    "dtype in small letters": (shaped(b"[1]", dtype=b"f32"), "has the dtype 'f32', unknown"),
    "dtype number": (one(b'{"dtype":16,"shape":[1],"data_offsets":[0,4]}'), "has a dtype that is not a string"),
    "dtype null": (one(b'{"dtype":null,"shape":[1],"data_offsets":[0,4]}'), "has a dtype that is not a string"),
    "dtype object with content": (
        one(b'["F32",[1],[0,4]]'.replace(b'"F32"', b'{"F32":{}}')),
        "dtype that is not a str",
    ),
    "dtype object with two": (
        one(b'["F32",[1],[0,4]]'.replace(b'"F32"', b'{"F32":null,"F32":null}')),
        "dtype that is not a str",
    ),
    "shape number": (shaped(b"1"), "has a shape that is not a list"),
    "shape null": (shaped(b"null"), "has a shape that is not a list"),
    "extent 1.0": (shaped(b"[1.0]"), "no integer from 0"),
    "extent 1e0": (shaped(b"[1e0]"), "no integer from 0"),
    "extent -0": (shaped(b"[-0]", 0), "no integer from 0"),
    "extent -1": (shaped(b"[-1]"), "no integer from 0"),
    "extent true": (shaped(b"[true]"), "no integer from 0"),
    "extent text": (shaped(b'["1"]'), "no integer from 0"),
    "extent 2**64": (shaped(b"[18446744073709551616,0]", 0), "no integer from 0"),
    "elements overflow": (shaped(b"[18446744073709551615,2,0]", 0), "more than 2..64 - 1 elements"),
    "bits overflow": (shaped(b"[1152921504606846976]", 0), "more than 2..64 - 1 bits"),
    "one offset": (one(b'["F32",[1],[4]]'), "data_offsets that are not a list of two"),
    "three offsets": (one(b'["F32",[1],[0,4,8]]'), "data_offsets that are not a list of two"),
    "offsets as an object": (one(b'["F32",[1],{"0":0,"1":4}]'), "data_offsets that are not a list of two"),
    "begin after end": (one(b'["F32",[1],[4,0]]'), "ends at 0, before it begins at 4"),
    "begin after end, behind another": (
        framed(b'{"a":["U8",[2],[0,2]],"b":["U8",[2],[2,0]]}', b"12"),
        "'b' ends at 0, before it begins at 2",
    ),
    "begin at 0, end below": (one(b'["F32",[0],[0,-1]]', b""), "no integer from 0"),
    "size too small for its shape": (shaped(b"[2]"), r"has 4 bytes, where F32 of shape \[2\] needs 8"),
    "size too large for its shape": (shaped(b"[]", 8), r"has 8 bytes, where F32 of shape \[\] needs 4"),
    "one F4": (shaped(b"[1]", 0, b"F4"), "1 elements of 4 bits, which do not end at a whole byte"),
    "three F6": (shaped(b"[3]", 2, b"F6_E2M3"), "3 elements of 6 bits, which do not end at a whole byte"),
    "hole before": (one(b'["F32",[1],[4,8]]', FOUR * 2), "begins at 4, and the 4 bytes before it belong to no tensor"),
    "hole between": (
        framed(b'{"a":["U8",[1],[0,1]],"b":["U8",[1],[2,3]]}', b"123"),
        "'b' begins at 2, and the 1 bytes before it",
    ),
    "overlap": (
        framed(b'{"a":["U8",[2],[0,2]],"b":["U8",[2],[1,3]]}', b"123"),
        "'b' begins at 1, inside the tensor before it, which ends at 2",
    ),
    "same bytes twice": (framed(b'{"a":' + F32 + b',"b":' + F32 + b"}", FOUR), "inside the tensor before it"),
    "empty tensor inside another": (framed(b'{"a":["U8",[2],[0,2]],"b":["U8",[0],[1,1]]}', b"12"), "'b' begins at 1"),
    "data cut off": (one(F32, b"123"), r"cut off: it has \d+ bytes, and its header describes \d+"),
    "data left over": (one(F32, b"12345"), r"it has \d+ bytes, and its header describes only the first \d+"),
    "data without tensors": (framed(b"{}", b"1"), "its header describes only the first 10"),
    "repeated tensor, the first untyped": (
        framed(b'{"a":["F99",[1],[0,4]],"a":' + F32 + b"}", FOUR),
        "has the dtype 'F99', unknown",
    ),
}


@pytest.mark.parametrize("raw", ACCEPTED.values(), ids=ACCEPTED)
def test_what_the_official_parser_accepts_is_read_the_same(raw: bytes) -> None:
    expected = official(raw)
    assert expected is not None
    assert ours(raw) == expected


@pytest.mark.parametrize(("raw", "fact"), REFUSED.values(), ids=REFUSED)
def test_what_the_official_parser_refuses_is_refused_with_a_reason(raw: bytes, fact: str) -> None:
    assert official(raw) is None
    with pytest.raises(HeaderError, match=rf"^m\.safetensors: not a readable safetensors file: .*{fact}.*\.$"):
        read_header(io.BytesIO(raw), len(raw), "m.safetensors")


@pytest.mark.parametrize("raw", [*ACCEPTED.values(), *(raw for raw, _ in REFUSED.values())])
def test_the_two_official_readers_agree_with_each_other(raw: bytes, tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(raw)
    try:
        with safe_open(path, "numpy") as file:
            names = set(file.keys())
    except SafetensorError:
        names = None
    assert names == (None if ours(raw) is None else set(ours(raw) or ()))


def test_the_dtypes_are_those_of_the_official_parser() -> None:
    with pytest.raises(SafetensorError) as caught:
        deserialize(shaped(b"[1]", dtype=b"F99"))  # type: ignore[no-untyped-call]
    known = re.findall(r"`(\w+)`", str(caught.value))
    assert sorted(known) == sorted([*BITS, "F99"])


@pytest.mark.parametrize("dtype", sorted(BITS))
def test_every_dtype_has_its_official_width(dtype: str) -> None:
    for bits in (4, 6, 8, 16, 32, 64):
        raw = tensor_file({"a": (dtype, [8], bits)})
        assert (official(raw) is not None) == (ours(raw) is not None) == (bits == BITS[dtype])


def test_the_longest_header_is_read_and_no_longer_one() -> None:
    raw = framed(b"{}" + b" " * (MAX_HEADER - 2))
    assert official(raw) == ours(raw) == {}
    assert official(framed(raw[8:] + b" ")) is ours(framed(raw[8:] + b" ")) is None


def test_metadata_keeps_the_last_of_repeated_keys_and_null_is_none() -> None:
    def metadata(header: bytes) -> object:
        raw = framed(header)
        return read_header(io.BytesIO(raw), len(raw), "m").metadata

    assert metadata(b'{"__metadata__":{"a":"1","a":"2"}}') == {"a": "2"}
    assert metadata(b'{"__metadata__":{}}') == {}
    assert metadata(b'{"__metadata__":null}') is metadata(b"{}") is None


def test_tensors_come_by_offset_with_absolute_positions() -> None:
    raw = framed(b'{"b":["U8",[2],[1,3]],"z":["F32",[2,0],[1,1]],"a":["U8",[],[0,1]]}', b"123")
    base = len(raw) - 3
    assert read_header(io.BytesIO(raw), len(raw), "dir/m.safetensors").tensors == (
        TensorInfo("a", "U8", (), "dir/m.safetensors", base, base + 1),
        TensorInfo("z", "F32", (2, 0), "dir/m.safetensors", base + 1, base + 1),
        TensorInfo("b", "U8", (2,), "dir/m.safetensors", base + 1, base + 3),
    )


def test_a_repeated_name_is_told() -> None:
    raw = framed(b'{"a":["U8",[1],[0,1]],"b":["U8",[],[0,0]],"b":["U8",[1],[1,2]],"b":["U8",[0],[1,1]]}', b"1")
    assert read_header(io.BytesIO(raw), len(raw), "m").repeated == ("b",)


def test_a_file_that_ends_before_its_announced_size_is_refused() -> None:
    raw = framed(b'{"a":' + F32 + b"}", FOUR)
    with pytest.raises(HeaderError, match=r"cut off while it was read: 10 of the header's 54 bytes came"):
        read_header(io.BytesIO(raw[:18]), len(raw), "m.safetensors")


def test_a_hostile_name_is_escaped_and_cut_in_messages() -> None:
    raw = framed(b'{"\\u001b[31m' + b"n" * 10_000 + b'":["F99",[],[0,4]]}', FOUR)
    with pytest.raises(HeaderError) as caught:
        read_header(io.BytesIO(raw), len(raw), "evil\n.safetensors")
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 400
    assert r"tensor '\x1b[31mnnn" in str(caught.value)
