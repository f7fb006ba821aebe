"""What a scaling or a cast would lose, counted: against NumPy's own conversions, element for element."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import numpy.typing as npt
import pytest
from checkpoints import Array, Raw, bfloat16, write
from hypothesis import given
from hypothesis import strategies as st

from gemma_doctor.checkpoint import FileBytes, open_checkpoint
from gemma_doctor.repair.evidence.losses import Losses, losses

NORMAL = {"F16": 2.0**-14, "BF16": 2.0**-126, "F32": 2.0**-126, "F64": 2.0**-1022}


def counted(tensor: Array | Raw, exponent: int, dtype: str) -> Losses:
    with TemporaryDirectory() as folder:
        checkpoint = open_checkpoint(write(Path(folder), {"w": tensor}))
        with FileBytes(checkpoint) as files:
            return losses(files, checkpoint.tensors["w"], exponent, dtype)


def stored(values: npt.NDArray[np.float64], dtype: str) -> npt.NDArray[np.float64]:
    """The values once they have been stored."""
    with np.errstate(over="ignore"):
        if dtype == "BF16":
            # float64 to float32 rounds first; a sticky bit keeps the second rounding honest
            single = values.astype(np.float32)
            bits = single.view(np.uint32)
            bits |= (single.astype(np.float64) != values) & np.isfinite(single)
            halves = np.frombuffer(bfloat16(bits.view(np.float32)).data, "<u2").astype(np.uint32) << 16
            return halves.view(np.float32).astype(np.float64)
        kind = {"F16": np.float16, "F32": np.float32, "F64": np.float64}[dtype]
        return values.astype(kind).astype(np.float64)


def oracle(values: npt.NDArray[np.float64], exponent: int, dtype: str) -> Losses:
    values = values[np.isfinite(values) & (values != 0)]
    with np.errstate(over="ignore", under="ignore"):
        products = np.ldexp(values, exponent)
    result = stored(products, dtype)
    small = np.abs(products) < NORMAL[dtype]
    return Losses(
        infinite=int(np.isinf(result).sum()),
        flushed=int((result == 0).sum()),
        subnormal=int(((result != 0) & (np.abs(result) < NORMAL[dtype])).sum()),
        lost=int((small & (result != products)).sum()),
    )


edges = [2.0**power * factor for power in (-149, -133, -126, -25, -24, -14, 15, 127) for factor in (0.5, 0.75, 1, 1.25)]
numbers = st.one_of(
    st.floats(width=32),
    st.floats(width=16),
    st.sampled_from([*edges, 0.0, 65504.0, 65519.0, 65520.0, float("inf"), float("nan")]),
)


@pytest.mark.parametrize("dtype", ["F16", "BF16", "F32"])
@given(values=st.lists(numbers, min_size=1, max_size=40), exponent=st.integers(-30, 30))
def test_law_the_counts_are_those_of_the_conversion(dtype: str, values: list[float], exponent: int) -> None:
    with np.errstate(over="ignore"):
        array = np.array(values, np.float32)
    assert counted(array, exponent, dtype) == oracle(array.astype(np.float64), exponent, dtype)


@pytest.mark.parametrize(
    ("tensor", "exponent", "dtype", "expected"),
    [
        (np.array([1.0, 0.0, np.nan, np.inf], np.float16), -3, "F16", Losses()),
        (np.array([2.0**-14], np.float16), -1, "F16", Losses(subnormal=1)),
        (np.array([2.0**-14 * 1.5], np.float16), -11, "F16", Losses(subnormal=1, lost=1)),
        (np.array([2.0**-24], np.float16), -1, "F16", Losses(flushed=1, lost=1)),
        (np.array([40_000.0], np.float16), 1, "F16", Losses(infinite=1)),
        (np.array([65504.0, 65519.0, 65520.0], np.float32), 0, "F16", Losses(infinite=1)),
        (bfloat16([2.0**-130]), -4, "BF16", Losses(flushed=1, lost=1)),
        (bfloat16([1.0, 3.0]), -100, "BF16", Losses()),
        (bfloat16([1.0]), -26, "F16", Losses(flushed=1, lost=1)),
        (np.array([2.0**-1074]), -1, "F64", Losses(flushed=1, lost=1)),
        (np.array([2.0**-1022 * 1.25]), -2, "F64", Losses(subnormal=1)),
        (np.array([3.0 * 2.0**-1074]), -1, "F64", Losses(subnormal=1, lost=1)),
        (np.array([3.3961775292304601e38]), 0, "BF16", Losses(infinite=1)),
    ],
)
def test_known_cases(tensor: Array | Raw, exponent: int, dtype: str, expected: Losses) -> None:
    assert counted(tensor, exponent, dtype) == expected


def test_chunks_add_up() -> None:
    tensor = np.full(600_000, 2.0**-20, np.float16)
    assert counted(tensor, -10, "F16") == Losses(flushed=600_000, lost=600_000)
