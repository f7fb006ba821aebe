"""Element edits against a look through every value that the format has."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from applying import cast, clamp, model_of, same_values, scale, scale_gain, values_of, zero
from hypothesis import given
from hypothesis import strategies as st
from oracle import FLOATS

from gemma_doctor.records import Exactness
from gemma_doctor.repair.elements.edits import Change, carry_out, dtype_after, why_impossible
from gemma_doctor.repair.elements.excess import Excess, excess

NARROW = ("F16", "BF16", "F8_E4M3", "F8_E5M2")
FORMATS = ("F64", "F32", *NARROW)


def every(dtype: str) -> npt.NDArray[Any]:
    """Every bit pattern of a narrow format."""
    storage = np.dtype(FLOATS[dtype][0])
    return np.arange(1 << (8 * storage.itemsize)).astype(storage)


def edges(dtype: str) -> npt.NDArray[Any]:
    """Bit patterns around every power of two, the subnormals, the largest numbers, inf and NaN of a wide format."""
    storage = np.dtype(FLOATS[dtype][0])
    exponents = np.arange(1 << (8 if dtype == "F32" else 11), dtype=np.uint64) << np.uint64(
        23 if dtype == "F32" else 52
    )
    offsets = np.array([-2, -1, 0, 1, 2, 3, 0x1000, 0x1001, 0x7FFF, 0x8000, 0x8001, 0x18000], np.int64).astype(
        np.uint64
    )
    patterns = (exponents[:, None] + offsets).reshape(-1).astype(storage)
    top = storage.type(1 << (8 * storage.itemsize - 1))
    return np.concatenate([patterns, patterns | top])


def patterns(dtype: str) -> npt.NDArray[Any]:
    return every(dtype) if dtype in NARROW else edges(dtype)


def agrees(change: Change, dtype: str) -> bool:
    """Whether an edit makes of every pattern what the model makes of its value."""
    bits = patterns(dtype)
    wanted, now = model_of(change, values_of(bits, dtype), dtype)
    return same_values(values_of(carry_out(change, bits, dtype), now), wanted)


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("exponent", [-2300, -300, -41, -17, -8, -1, 0, 1, 3, 9, 30, 250, 2300])
def test_scaling_rounds_every_value_once(dtype: str, exponent: int) -> None:
    assert agrees(scale("w", exponent), dtype)


@pytest.mark.parametrize("dtype", ["F64", "F32", "F16", "BF16"])
@pytest.mark.parametrize("exponent", [-2300, -40, -5, -1, 0, 1, 6, 120, 2300])
def test_scaling_a_gain_rounds_every_value_once(dtype: str, exponent: int) -> None:
    assert agrees(scale_gain("w", exponent), dtype)


@pytest.mark.parametrize("source", ["F64", "F32", "F16", "BF16"])
@pytest.mark.parametrize("target", ["F64", "F32", "F16", "BF16"])
def test_casting_rounds_every_value_once(source: str, target: str) -> None:
    assert agrees(cast("w", target), source)


def test_a_cast_from_float64_does_not_round_twice() -> None:
    # By way of float32 this would become a tie, and go to the even 1.0.
    bits = np.array([1 + 2.0**-8 + 2.0**-40]).view(np.uint64)
    assert carry_out(cast("w", "BF16"), bits, "F64").tolist() == [0x3F81]


@pytest.mark.parametrize(
    ("dtype", "bits", "target", "wanted"),
    [
        ("F32", [0x7F800001, 0xFFFFFFFF, 0x7FC00000], "BF16", [0x7FC0, 0xFFFF, 0x7FC0]),
        ("F32", [0x7F800000, 0xFF800000, 0x477FF000], "F16", [0x7C00, 0xFC00, 0x7C00]),
        ("F32", [0x477FEFFF, 0x33000000, 0x33000001], "F16", [0x7BFF, 0x0000, 0x0001]),
        ("BF16", [0x8000, 0x3F80, 0x4780], "F32", [0x80000000, 0x3F800000, 0x47800000]),
        ("F32", [0x3F808000, 0x3F818000, 0x3F808001], "BF16", [0x3F80, 0x3F82, 0x3F81]),
    ],
)
def test_literal_casts(dtype: str, bits: list[int], target: str, wanted: list[int]) -> None:
    stored = np.array(bits, FLOATS[dtype][0])
    assert carry_out(cast("w", target), stored, dtype).tolist() == wanted


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("limit", [0.0, 1e-3, 1.0, 447.9, 65504.0])
def test_clamping_never_goes_above_the_limit(dtype: str, limit: float) -> None:
    assert agrees(clamp("w", limit), dtype)
    after = values_of(carry_out(clamp("w", limit), patterns(dtype), dtype), dtype)
    assert np.abs(after[~np.isnan(after)]).max() <= limit


def test_bfloat16_has_no_65504() -> None:
    inf = np.array([0x7F80, 0xFF80, 0x477F, 0x4780, 0x7FC0], np.uint16)
    assert carry_out(clamp("w", 65504.0), inf, "BF16").tolist() == [0x477F, 0xC77F, 0x477F, 0x477F, 0x7FC0]


@pytest.mark.parametrize("dtype", FORMATS)
def test_zeroing_leaves_what_is_finite(dtype: str) -> None:
    assert agrees(zero("w"), dtype)


@pytest.mark.parametrize("dtype", FORMATS)
def test_the_source_bits_are_not_written_to(dtype: str) -> None:
    bits = patterns(dtype)
    bits.setflags(write=False)
    before = bits.tobytes()
    for change in (scale("w", 5), clamp("w", 1.0), zero("w")):
        carry_out(change, bits, dtype)
    assert bits.tobytes() == before


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("exponent", [-300, -9, -1, 1, 9, 300])
def test_a_scaling_exceeds_exactness_where_its_value_is_not_the_product(dtype: str, exponent: int) -> None:
    bits = patterns(dtype)
    before = values_of(bits, dtype)
    change = scale("w", exponent, "exact")
    after = values_of(carry_out(change, bits, dtype), dtype)
    with np.errstate(all="ignore"):
        lost = np.isfinite(before) & (np.ldexp(after, -exponent) != before)
    found = excess(change, bits, carry_out(change, bits, dtype), dtype, 7)
    assert found.count == lost.sum()
    if found.worst:
        assert abs(found.worst.before) == np.abs(before[lost]).max()
        assert before[found.worst.index - 7] == found.worst.before
        assert np.array_equal(after[found.worst.index - 7], found.worst.after, equal_nan=True)


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("exponent", [-9, -1, 1, 9])
def test_a_scaling_and_its_inverse_restore_the_bits_that_were_scaled_exactly(dtype: str, exponent: int) -> None:
    bits = patterns(dtype)
    change = scale("w", exponent)
    there = carry_out(change, bits, dtype)
    back = carry_out(scale("w", -exponent), there, dtype)
    differing = int((back != bits).sum())
    assert excess(change, bits, there, dtype, 0).count == differing
    assert differing < bits.size


@pytest.mark.parametrize("source", ["F64", "F32", "F16", "BF16"])
@pytest.mark.parametrize("target", ["F64", "F32", "F16", "BF16"])
def test_a_cast_exceeds_its_exactness(source: str, target: str) -> None:
    bits = patterns(source)
    before = values_of(bits, source)
    after_bits = carry_out(cast("w", target), bits, source)
    after = values_of(after_bits, target)
    real = ~np.isnan(before)
    ruined = (np.isfinite(before) & ~np.isfinite(after)) | (real & (before != 0) & (after == 0))
    counts: dict[Exactness, int] = {
        "exact": int((real & (before != after)).sum()),
        "eps": int((real & (before != after)).sum()),
        "rounded": int(ruined.sum()),
        "lossy": 0,
    }
    for exactness, count in counts.items():
        assert excess(cast("w", target, exactness), bits, after_bits, source, 0).count == count


@pytest.mark.parametrize("exactness", ["exact", "eps", "rounded"])
def test_a_replaced_value_is_no_rounding(exactness: Exactness) -> None:
    bits = np.array([0x3F80, 0x7F80, 0xC100, 0x7FC0], np.uint16)  # 1, inf, -8, NaN
    for change in (clamp("w", 2.0, exactness), zero("w", exactness)):
        found = excess(change, bits, carry_out(change, bits, "BF16"), "BF16", 0)
        assert found.count == 2
        assert found.worst is not None
        assert (found.worst.index, found.worst.before) == (1, np.inf)


@given(st.lists(st.integers(0, 0xFFFF), max_size=60), st.integers(0, 60), st.integers(-40, 40))
def test_excess_does_not_depend_on_the_chunks(codes: list[int], cut: int, exponent: int) -> None:
    bits = np.array(codes, np.uint16)
    change = scale("w", exponent)
    after = carry_out(change, bits, "F16")
    parts = (
        excess(change, b, a, "F16", f) for b, a, f in ((bits[:cut], after[:cut], 0), (bits[cut:], after[cut:], cut))
    )
    whole = excess(change, bits, after, "F16", 0)
    merged = Excess()
    for part in parts:
        merged = part.merge(merged)
    assert merged.count == whole.count
    assert merged.worst == whole.worst


@given(st.integers(0, 2**32 - 1), st.integers(-400, 400))
def test_any_float32_is_scaled_as_its_value_is(code: int, exponent: int) -> None:
    bits = np.array([code], np.uint32)
    change = scale("w", exponent)
    wanted, _ = model_of(change, values_of(bits, "F32"), "F32")
    assert same_values(values_of(carry_out(change, bits, "F32"), "F32"), wanted)


def test_more_than_one_block() -> None:
    bits = np.tile(every("BF16"), 3)
    change = scale("w", -5)
    assert np.array_equal(carry_out(change, bits, "BF16"), np.tile(carry_out(change, every("BF16"), "BF16"), 3))
    once = excess(change, every("BF16"), carry_out(change, every("BF16"), "BF16"), "BF16", 0)
    thrice = excess(change, bits, carry_out(change, bits, "BF16"), "BF16", 0)
    assert (thrice.count, thrice.worst) == (3 * once.count, once.worst)


def test_an_empty_tensor_stays_empty() -> None:
    assert carry_out(cast("w", "F32"), np.empty(0, np.uint16), "BF16").dtype == np.uint32


@pytest.mark.parametrize(
    ("change", "dtype", "fact"),
    [
        (scale("w", 1), "I32", "I32 elements cannot be changed"),
        (zero("w"), "BOOL", "BOOL elements cannot be changed"),
        (scale("w", 1), "F8_E8M0", "F8_E8M0 elements cannot be changed"),
        (cast("w", "F8_E5M2"), "F32", "not from F32 to F8_E5M2"),
        (cast("w", "F32"), "I64", "not from I64 to F32"),
        (clamp("w", -1.0), "F32", "not -1.0"),
        (clamp("w", float("nan")), "F32", "not nan"),
        (clamp("w", 1.0), "U8", "U8 elements cannot be changed"),
    ],
)
def test_impossible_edits_say_why(change: Change, dtype: str, fact: str) -> None:
    why = why_impossible(change, dtype)
    assert why is not None
    assert fact in why


def test_possible_edits_are_possible() -> None:
    assert why_impossible(scale("w", 1), "F8_E4M3") is None
    assert why_impossible(clamp("w", 0.0), "F16") is None
    assert [dtype_after(change, "F16") for change in (scale("w", 1), cast("w", "F32"))] == ["F16", "F32"]
