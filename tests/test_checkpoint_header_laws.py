"""Laws of the header reader, each held against the official parser."""

from __future__ import annotations

import io
import math
import random
from collections.abc import Mapping

import numpy as np
from checkpoint_bytes import F32, SEEDS, framed, mutated, official, ours, tensor_file, with_data
from hypothesis import given
from hypothesis import strategies as st
from safetensors import TensorSpec, serialize

from gemma_doctor.checkpoint.dtypes import BITS
from gemma_doctor.checkpoint.header import read_header

WRITERS = {"float32": 4, "bfloat16": 2, "int64": 8, "bool": 1, "float8_e8m0fnu": 1, "float4_e2m1fn_x2": 1}
"""Names of the official writer -> bytes of one stored item."""

shapes = st.lists(st.integers(0, 4), max_size=4)
kinds = st.tuples(st.sampled_from(sorted(WRITERS)), shapes).filter(lambda kind: kind != ("float4_e2m1fn_x2", []))
names = st.text(max_size=12).filter(lambda name: name != "__metadata__")
texts = st.dictionaries(st.text(max_size=8), st.text(max_size=8), min_size=1, max_size=3)
"""Not empty: without tensors and with empty metadata, the official writer writes what no parser reads."""


@given(st.dictionaries(names, kinds, max_size=6), st.none() | texts)
def test_whatever_the_official_writer_writes_is_read_as_written(
    tensors: Mapping[str, tuple[str, list[int]]], metadata: dict[str, str] | None
) -> None:
    buffer = np.arange(4**4 * 8, dtype=np.uint8)
    specs = {
        name: TensorSpec(
            dtype=dtype, shape=shape, data_ptr=buffer.ctypes.data, data_len=math.prod(shape) * WRITERS[dtype]
        )
        for name, (dtype, shape) in tensors.items()
    }
    raw = serialize(specs, metadata)
    header = read_header(io.BytesIO(raw), len(raw), "m")
    assert ours(raw) == official(raw)
    assert {t.name: t.shape for t in header.tensors} == {name: tuple(spec.shape) for name, spec in specs.items()}
    assert header.metadata == metadata


@given(st.sampled_from(SEEDS), st.randoms(use_true_random=False))
def test_mutants_of_sound_headers_fare_as_with_the_official_parser(header: bytes, rng: random.Random) -> None:
    for _ in range(20):
        raw = with_data(mutated(header, rng))
        assert ours(raw) == official(raw)


@given(st.binary(max_size=64))
def test_arbitrary_bytes_fare_as_with_the_official_parser(raw: bytes) -> None:
    assert ours(raw) == official(raw)
    assert ours(framed(raw)) == official(framed(raw))


digits = st.text("0123456789", min_size=1, max_size=24)
literals = st.builds(
    "".join,
    st.tuples(
        st.sampled_from(("", "-")),
        digits,
        st.one_of(st.just(""), st.builds(".{}".format, digits)),
        st.one_of(
            st.just(""), st.builds("{}{}{}".format, st.sampled_from("eE"), st.sampled_from(("", "+", "-")), digits)
        ),
        st.sampled_from(("", "", "", ".", "e", "-")),
    ),
)
edges = st.builds(
    "{}{}e{}".format,
    st.integers(1, 2**65),
    st.one_of(st.just(""), st.builds(".{}".format, digits)),
    st.integers(280, 310),
)


@given(literals | edges | st.integers(1, 2**70).map(str), st.integers(0, 400))
def test_numbers_are_in_range_where_the_official_parser_says_so(literal: str, zeros: int) -> None:
    for number in (literal, literal + "0" * zeros, f"0.{'0' * zeros}{literal}"):
        raw = framed(b'{"a":' + F32[:-1] + b',"x":' + number.encode() + b"}}", bytes(4))
        assert ours(raw) == official(raw)


@given(
    st.lists(st.integers(0, 2**64 - 1) | st.sampled_from((0, 1, 2**32, 2**61, 2**63)), max_size=4),
    st.sampled_from(sorted(BITS)),
)
def test_sizes_overflow_where_the_official_parser_says_so(shape: list[int], dtype: str) -> None:
    raw = tensor_file({"a": (dtype, shape, 0)})
    assert ours(raw) == official(raw)
