"""The oracle and the checkpoint builder, held against literal bytes and the official reader: all tests lean on them."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import oracle
import pytest
from checkpoints import Raw, as_raw, bfloat16, healthy, plant, tiny_gemma3_config, write
from hypothesis import given
from hypothesis import strategies as st
from safetensors import deserialize, safe_open

LITERALS = [
    ("F64", "000000000000f0bf", -1.0),
    ("F32", "0000c03f", 1.5),
    ("F16", "ff7b", 65504.0),
    ("F16", "0100", 2.0**-24),
    ("BF16", "803f", 1.0),
    ("BF16", "7f47", 65280.0),
    ("F8_E4M3", "7e", 448.0),
    ("F8_E4M3", "01", 2.0**-9),
    ("F8_E4M3", "88", -(2.0**-6)),
    ("F8_E5M2", "7b", 57344.0),
    ("F8_E5M2", "01", 2.0**-16),
    ("I64", "ffffffffffffff7f", 2**63 - 1),
    ("U64", "ffffffffffffffff", 2**64 - 1),
    ("I8", "80", -128),
    ("BOOL", "01", 1),
]


@pytest.mark.parametrize(("dtype", "code", "value"), LITERALS)
def test_the_oracle_reads_literal_bytes(dtype: str, code: str, value: float) -> None:
    figures = oracle.measure(bytes.fromhex(code), dtype, ())
    assert (figures.count, figures.min, figures.max, figures.absmax) == (1, value, value, abs(value))


@pytest.mark.parametrize(
    ("dtype", "code", "nan", "inf"),
    [
        ("F8_E4M3", "7fff", 2, 0),
        ("F8_E5M2", "7cfd", 1, 1),
        ("BF16", "80ff817f", 1, 1),
        ("F16", "007c01fc", 1, 1),
    ],
)
def test_the_oracle_knows_what_is_not_finite(dtype: str, code: str, nan: int, inf: int) -> None:
    figures = oracle.measure(bytes.fromhex(code), dtype, (2,))
    assert (figures.nan, figures.inf, figures.absmax) == (nan, inf, 0 if nan + inf < 2 else None)


@pytest.mark.parametrize(
    ("value", "overflow", "subnormal", "underflow"),
    [
        (65519.996, 0, 0, 0),
        (65520.0, 1, 0, 0),
        (2.0**-25, 0, 0, 1),
        (np.nextafter(2.0**-25, 1), 0, 1, 0),
        (np.nextafter(2.0**-14 - 2.0**-25, 0), 0, 1, 0),
        (2.0**-14 - 2.0**-25, 0, 0, 0),
        (0.0, 0, 0, 0),
        (math.inf, 0, 0, 0),
        (math.nan, 0, 0, 0),
    ],
)
def test_the_oracle_knows_what_float16_does(value: float, overflow: int, subnormal: int, underflow: int) -> None:
    for sign in (1, -1):
        figures = oracle.measure(np.float64(sign * value).tobytes(), "F64", ())
        assert (figures.fp16_overflow, figures.fp16_subnormal, figures.fp16_underflow) == (
            overflow,
            subnormal,
            underflow,
        )


def test_the_oracle_sums_rows() -> None:
    array = np.array([[3, -4], [0, 0], [math.nan, 1], [-0.0, 0]], np.float32)
    figures = oracle.measure(array, "F32", (4, 2))
    assert (figures.row_l1_max, figures.row_l2_max, figures.zero_rows, figures.zeros) == (7, 5, 2, 4)
    assert figures.rms == math.sqrt(26 / 7)
    stats = oracle.as_stats(figures)
    assert (stats.rms, stats.row_l1_max, stats.row_l2_max, stats.absmax) == (figures.rms, 7, 5, 4)


def test_the_oracle_has_no_figures_of_nothing() -> None:
    figures = oracle.measure(b"", "F32", (0, 3))
    assert (figures.count, figures.absmax, figures.rms, figures.row_l1_max, figures.zero_rows) == (
        0,
        None,
        None,
        None,
        0,
    )
    assert oracle.as_stats(figures) == type(oracle.as_stats(figures))()


def test_every_bfloat16_survives_the_helper() -> None:
    bits = np.arange(2**16, dtype=np.uint16)
    values = (bits.astype(np.uint32) << 16).view(np.float32)
    back = np.frombuffer(bfloat16(values).data, "<u2")
    assert np.array_equal(back[~np.isnan(values)], bits[~np.isnan(values)])
    assert np.all(back[np.isnan(values)] == 0x7FC0)


@given(st.floats(width=32, allow_nan=False))
def test_the_bfloat16_helper_rounds_to_nearest_ties_to_even(value: float) -> None:
    bits = int(np.frombuffer(bfloat16(np.float32(value)).data, "<u2")[0])
    neighbours = np.arange(max(bits - 1, 0), min(bits + 2, 2**16), dtype=np.uint32) << 16
    with np.errstate(invalid="ignore"):
        distances = np.abs(neighbours.view(np.float32).astype(np.float64) - value)
    chosen = abs(float(np.uint32(bits << 16).view(np.float32)) - value)
    if math.isinf(float(np.uint32(bits << 16).view(np.float32))):
        assert abs(value) >= 3.3961775292304595e38  # half way from the largest bfloat16 to 2**128
        return
    assert chosen == np.nanmin(distances)
    assert (distances == chosen).sum() == 1 or bits % 2 == 0


TENSORS = {
    "scalar": np.float32(2).reshape(()),
    "empty": np.zeros((0, 3), np.float16),
    "b.weight": bfloat16([[1.0, -2.0]]),
    "f8": Raw("F8_E4M3", (3,), b"\x01\x7f\x80"),
    "a.ids": np.arange(3),
    "mask": np.array([True, False]),
}


@pytest.mark.parametrize("shards", [1, 2, 3])
def test_what_is_written_is_what_the_official_reader_reads(tmp_path: Path, shards: int) -> None:
    folder = write(tmp_path / "deep" / "er", TENSORS, {"model_type": "none"}, shards=shards)
    found: dict[str, Raw] = {}
    for path in folder.glob("*.safetensors"):
        for name, tensor in deserialize(path.read_bytes()):  # type: ignore[no-untyped-call]  # its stub has no types
            found[name] = Raw(tensor["dtype"], tuple(tensor["shape"]), bytes(tensor["data"]))
        with safe_open(path, "np") as file:
            assert file.metadata() == {"format": "pt"}
    assert found == {name: as_raw(tensor) for name, tensor in TENSORS.items()}
    assert json.loads((folder / "config.json").read_text()) == {"model_type": "none"}


def test_the_index_names_every_tensors_file_and_the_bytes(tmp_path: Path) -> None:
    write(tmp_path, TENSORS, shards=2, metadata={})
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(len(as_raw(tensor).data) for tensor in TENSORS.values()) == 37
    for name, file in index["weight_map"].items():
        with safe_open(tmp_path / file, "np") as opened:
            assert name in opened.keys()  # noqa: SIM118
            assert opened.metadata() is None
    assert not (tmp_path / "config.json").exists()


def test_planting_leaves_the_healthy_tensors_alone() -> None:
    tensors = healthy(tiny_gemma3_config())
    sick = plant(tensors, "model.norm.weight", 7.0, index=2)
    assert np.flatnonzero(np.asarray(sick["model.norm.weight"]) == 7.0).tolist() == [2]
    assert not np.any(tensors["model.norm.weight"] == 7.0)
    with pytest.raises(TypeError, match="plant before"):
        plant({"b": bfloat16([1.0])}, "b", 1.0)


def test_the_same_seed_gives_the_same_checkpoint() -> None:
    first, second, other = (healthy(tiny_gemma3_config(), seed) for seed in (1, 1, 2))
    assert all(np.array_equal(first[name], second[name]) for name in first)
    assert not np.array_equal(first["model.norm.weight"], other["model.norm.weight"])
