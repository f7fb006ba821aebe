"""The compiled statistics equal a plain float64 oracle: on any bits, in any shape, at any address."""

from __future__ import annotations

import math

import numpy as np
import oracle
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tensors import DTYPES, LENGTHS, Tensor, agree, edges, item_size, large, packed, small, value, whole

from gemma_doctor.kernels.formats import FLOATS, INTEGERS, TABLES, UNMEASURED, why_unmeasured
from gemma_doctor.kernels.geometry import BLOCK
from gemma_doctor.tensors import TensorStats


def check_tensor(tensor: Tensor, offset: int = 0) -> None:
    agree(whole(tensor, offset=offset), oracle.measure(tensor.raw, tensor.dtype, tensor.shape))


# Properties


def test_the_oracle_knows_every_dtype_that_is_measured() -> None:
    assert set(DTYPES) == {*FLOATS, *INTEGERS, *TABLES}
    assert set(DTYPES).isdisjoint(UNMEASURED)
    assert [dtype for dtype in (*DTYPES, *UNMEASURED, "F8_E9M9") if why_unmeasured(dtype)] == [*UNMEASURED, "F8_E9M9"]


@given(small(), st.integers(0, 7))
@example(Tensor("F32", (), bytes(4)), 0)
@example(Tensor("F64", (0, 3), b""), 0)
@example(Tensor("I64", (3, 0), b""), 0)
@example(Tensor("F16", (2, 2), packed("F16", [0x8000] * 4)), 0)
def test_any_bits(tensor: Tensor, offset: int) -> None:
    check_tensor(tensor, offset)


@given(large(tuple(FLOATS)), st.sampled_from([0, 1, 2, 4]))
def test_many_floats(tensor: Tensor, offset: int) -> None:
    check_tensor(tensor, offset)


@given(large((*INTEGERS, *TABLES)), st.sampled_from([0, 1, 2, 4]))
def test_many_integers_and_scales(tensor: Tensor, offset: int) -> None:
    check_tensor(tensor, offset)


@given(large(("BF16",)))
def test_many_bfloat16(tensor: Tensor) -> None:
    check_tensor(tensor)


# Every code


@pytest.mark.parametrize("dtype", ["BF16", "F16"])
@pytest.mark.parametrize("shape", [(256, 256), (65536,), (64, 1024), (3, 21845)])
def test_all_codes_of_16_bits_in_one_tensor(dtype: str, shape: tuple[int, ...]) -> None:
    codes = np.arange(math.prod(shape), dtype="<u2")
    check_tensor(Tensor(dtype, shape, codes.tobytes()))
    check_tensor(Tensor(dtype, shape, codes[::-1].tobytes()))


@pytest.mark.parametrize("dtype", ["BF16", "F16"])
def test_all_codes_of_16_bits_by_their_upper_byte(dtype: str) -> None:
    for upper in range(256):
        check_tensor(Tensor(dtype, (16, 16), (np.arange(256, dtype="<u2") + 256 * upper).astype("<u2").tobytes()))


@pytest.mark.parametrize("dtype", ["F8_E4M3", "F8_E5M2", *TABLES, "I8", "U8", "BOOL"])
def test_all_codes_of_8_bits(dtype: str) -> None:
    check_tensor(Tensor(dtype, (16, 16), bytes(range(256))))
    for code in range(256):
        check_tensor(Tensor(dtype, (), bytes([code])))


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_edge_alone_and_all_together(dtype: str) -> None:
    codes = list(edges(dtype))
    for code in codes:
        check_tensor(Tensor(dtype, (1,), packed(dtype, [code])))
    check_tensor(Tensor(dtype, (len(codes), 1), packed(dtype, codes)))
    check_tensor(Tensor(dtype, (1, len(codes)), packed(dtype, codes)))


THRESHOLDS = [  # dtype, first code that overflows, that is normal, that is kept in float16
    ("BF16", 0x4780, 0x3880, 0x3301),
    ("F16", None, 0x0400, 0x0001),
    ("F32", 0x477FF000, 0x387FE000, 0x33000001),
    ("F64", 0x40EFFE0000000000, 0x3F0FFC0000000000, 0x3E60000000000001),
    ("F8_E5M2", None, 0x04, 0x01),
    ("F8_E4M3", None, 0x01, 0x01),
    ("F8_E8M0", 143, 113, 103),
    ("F8_E4M3FNUZ", None, 0x01, 0x01),
    ("F8_E5M2FNUZ", None, 0x08, 0x01),
]

ONE_NAN = ("F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ")


@pytest.mark.parametrize(("dtype", "overflow", "normal", "kept"), THRESHOLDS)
@pytest.mark.parametrize("sign", [0, 1])
def test_where_float16_ends(dtype: str, overflow: int | None, normal: int, kept: int, sign: int) -> None:
    sign = 0 if dtype == "F8_E8M0" else sign << 8 * item_size(dtype) - 1

    def fate(code: int) -> tuple[int, int, int]:
        stats = whole(Tensor(dtype, (1,), packed(dtype, [sign | code])))
        return stats.fp16_overflow, stats.fp16_subnormal, stats.fp16_underflow

    if overflow is not None:
        assert (fate(overflow - 1), fate(overflow)) == ((0, 0, 0), (1, 0, 0))
    assert (fate(normal - 1)[1] == (normal - 1 >= kept), fate(normal)) == (True, (0, 0, 0))
    assert fate(kept - 1) == (0, 0, int(kept > 1))
    assert fate(kept) == (0, int(kept < normal), 0)
    assert fate(0) == ((0, 0, 1) if dtype == "F8_E8M0" else (0, 0, 0))


@pytest.mark.parametrize("dtype", [*FLOATS, *TABLES])
def test_nan_whatever_its_payload_and_infinity_are_no_extremes(dtype: str) -> None:
    beyond = [code for code in edges(dtype) if not math.isfinite(value(dtype, code))]
    one = next(code for code in edges(dtype) if value(dtype, code) == 1.0)
    assert len(beyond) == 1 if dtype in ONE_NAN else len(beyond) > 1
    stats = whole(Tensor(dtype, (len(beyond) + 1,), packed(dtype, [*beyond, one])))
    assert (stats.nan + stats.inf, stats.minimum, stats.maximum, stats.rms) == (len(beyond), 1.0, 1.0, 1.0)
    stats = whole(Tensor(dtype, (1, len(beyond)), packed(dtype, beyond)))
    assert (stats.minimum, stats.rms, stats.row_l1_max, stats.zero_rows) == (None, None, 0.0, 0)


def test_any_byte_but_zero_is_true() -> None:
    stats = whole(Tensor("BOOL", (2, 3), b"\0\1\xff\0\0\2"))
    assert (stats.zeros, stats.maximum, stats.row_l1_max, stats.rms) == (3, 1, 2.0, math.sqrt(1 / 2))


def test_zero_has_no_sign() -> None:
    stats = whole(Tensor("F32", (2,), b"\0\0\0\x80" * 2))
    assert math.copysign(1, stats.minimum or 0.0) == math.copysign(1, stats.maximum or 0.0) == 1


@pytest.mark.parametrize(("dtype", "mantissa"), [("BF16", 7), ("F16", 10), ("F32", 23), ("F8_E5M2", 2), ("F8_E4M3", 3)])
def test_every_exponent_keeps_the_bound(dtype: str, mantissa: int) -> None:
    """Squares leave float32's range long before their elements do."""
    bits = 8 * item_size(dtype)
    for exponent in range(1 << bits - 1 - mantissa):
        code = (exponent << mantissa) | (0x55555555 & ((1 << mantissa) - 1))
        less = max(code - (20 << mantissa), 0)
        row = np.array([code, less] * 1000, np.uint64)
        check_tensor(Tensor(dtype, (1, 2000), row.astype(f"<u{bits // 8}").tobytes()))


# Shapes


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(0,), (0, 3), (3, 0), (2, 0, 5)])
def test_nothing_has_no_figures(dtype: str, shape: tuple[int, ...]) -> None:
    assert whole(Tensor(dtype, shape, b"")) == TensorStats()


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32", "F8_E4M3", "I16"])
@pytest.mark.parametrize("length", LENGTHS)
def test_rows_that_are_all_zero(dtype: str, length: int) -> None:
    row, item = max(1, 9000 // length), item_size(dtype)
    raw = bytearray(item * length * (row + 3))
    raw[item * length * (row + 1) - item] = 1  # the smallest positive number, as the last element of one row
    stats = whole(Tensor(dtype, (row + 3, length), bytes(raw)))
    assert (stats.zero_rows, stats.zeros) == (row + 2, (row + 3) * length - 1)
    assert whole(Tensor(dtype, (len(raw) // item,), bytes(raw))).zero_rows == 0


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F8_E5M2", "F32", "F64", "I32", "BOOL", "F8_E8M0"])
@pytest.mark.parametrize("shape", [(2, BLOCK + 77), (3, BLOCK // 2 - 1), (BLOCK + 9,), (1, 2 * BLOCK)])
def test_tensors_of_several_blocks(dtype: str, shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(5)
    if dtype in INTEGERS or dtype == "F8_E8M0":
        raw = rng.bytes(math.prod(shape) * item_size(dtype))
    elif dtype == "F8_E5M2":
        raw = rng.integers(0, 0x40, math.prod(shape), np.uint8).tobytes()
    else:
        wide = rng.standard_normal(math.prod(shape))
        raw = (
            (wide.astype("<f4").view("<u4") >> 16).astype("<u2").tobytes()
            if dtype == "BF16"
            else wide.astype({"F16": "<f2", "F32": "<f4", "F64": "<f8"}[dtype]).tobytes()
        )
    check_tensor(Tensor(dtype, shape, raw), offset=1)


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F8_E4M3", "F8_E5M2"])
def test_long_sums_keep_their_bound_where_every_addition_rounds(dtype: str) -> None:
    mantissa = {"BF16": 0x3FFF, "F16": 0x3FFF, "F8_E4M3": 0x3F, "F8_E5M2": 0x3F}[dtype]
    length = 200_003
    codes = np.full(length, mantissa, f"<u{item_size(dtype)}")
    codes[::7] -= 1
    check_tensor(Tensor(dtype, (1, length), codes.tobytes()))
