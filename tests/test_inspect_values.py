"""GD101 to GD103 and GD105 to GD109: what the numbers of single tensors say. Figures come from the oracle."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import architecture_data
import numpy as np
import numpy.typing as npt
import pytest
from checkpoints import (
    Array,
    Raw,
    Tensors,
    bfloat16,
    healthy,
    tiny_gemma3_config,
    tiny_gemma3_multimodal_config,
    tiny_gemma3n_text_config,
)
from examinations import examine, find

from gemma_doctor.architectures import Model, identify
from gemma_doctor.inspect.registry import RULES
from gemma_doctor.records import Finding

NAME = "encoder.dense.weight"
NUMBERS = np.linspace(-1, 1, 64, dtype=np.float32).reshape(8, 8)


def with_value(value: float, dtype: npt.DTypeLike = np.float32) -> Array:
    array = NUMBERS.astype(dtype)
    array[3, 5] = value
    return array


def findings(rule: str, tensor: Array | Raw, name: str = NAME) -> list[Finding]:
    return find(rule, examine({name: tensor}))


VALUE_RULES = [rule.id for rule in RULES if rule.id.startswith("GD1")]


@pytest.mark.parametrize("rule", VALUE_RULES)
def test_sound_numbers_give_no_finding(rule: str) -> None:
    tensors: Tensors = {"a.weight": NUMBERS, "b.weight": bfloat16(NUMBERS), "c.weight": NUMBERS.astype(np.float16)}
    assert find(rule, examine(tensors)) == []


@pytest.mark.parametrize("rule", VALUE_RULES)
def test_integers_and_booleans_are_not_judged(rule: str) -> None:
    big = np.array([[0, 0], [0, 2**40]], np.int64)
    tensors: Tensors = {"a.weight": big, "b.weight": np.zeros((4, 4), np.uint8), "c.weight": np.zeros((4, 4), np.bool_)}
    assert find(rule, examine(tensors)) == []


@pytest.mark.parametrize("rule", VALUE_RULES)
@pytest.mark.parametrize("shape", [(0,), (0, 4), (4, 0), ()])
def test_empty_tensors_and_scalars_are_sound(rule: str, shape: tuple[int, ...]) -> None:
    assert findings(rule, np.ones(shape, np.float32)) == []


@pytest.mark.parametrize("rule", ["GD102", "GD103", "GD104", "GD105"])
def test_float16_is_no_matter_for_a_bfloat16_target(rule: str) -> None:
    tensors = {
        "a.weight": with_value(1e6),
        "b.weight": with_value(4e4),
        "c.conv.weight": np.full((2, 4096, 3), 1.0, np.float32),
        "d.weight": np.full((4, 4), 1e-9, np.float32),
    }
    exam = examine(tensors)
    assert find(rule, exam) != []
    assert find(rule, replace(exam, target_dtype="bfloat16")) == []


NONFINITE: Mapping[str, tuple[Array | Raw, int, int]] = {
    "F64": (with_value(math.nan, np.float64), 1, 0),
    "F32": (with_value(math.inf), 0, 1),
    "F16": (with_value(-math.inf, np.float16), 0, 1),
    "BF16": (bfloat16([[math.nan, math.inf], [-math.inf, 1.0]]), 1, 2),
    "BF16 with a payload": (Raw("BF16", (2,), bytes([0x81, 0xFF, 0x00, 0x3F])), 1, 0),
    "F8_E4M3": (Raw("F8_E4M3", (3,), bytes([0x7F, 0xFF, 0x7E])), 2, 0),
    "F8_E5M2": (Raw("F8_E5M2", (4,), bytes([0x7C, 0xFC, 0x7F, 0x7B])), 1, 2),
}
"""What it is -> tensor, NaNs, infinities."""


@pytest.mark.parametrize("case", NONFINITE)
def test_gd101_counts_nan_and_infinity_in_every_float_dtype(case: str) -> None:
    tensor, nans, infinities = NONFINITE[case]
    (finding,) = findings("GD101", tensor)
    assert (finding.severity, finding.tensor) == ("error", NAME)
    count = nans + infinities + 1 if isinstance(tensor, Raw) else 64
    assert finding.evidence == {"nan": nans, "inf": infinities, "count": count, "allowed": 0}
    assert f"{nans} NaN and {infinities} infinite" in finding.message
    assert finding.repair is not None
    assert (finding.repair.pass_name, finding.repair.exactness) == ("zero-nonfinite", "lossy")


@pytest.mark.parametrize(("value", "overflows"), [(65504, 0), (65519.996, 0), (65520, 1), (-65520, 1), (1e30, 1)])
def test_gd102_begins_at_65520(value: float, overflows: int) -> None:
    found = findings("GD102", with_value(value))
    assert [finding.evidence["fp16_overflow"] for finding in found] == [1] * overflows
    assert all(finding.severity == "error" for finding in found)


def test_gd102_tells_the_largest_value_and_the_first_that_overflows() -> None:
    (finding,) = findings("GD102", with_value(-497160))
    assert (finding.evidence["absmax"], finding.evidence["first_inf"]) == (497160, 65520)
    assert "absmax 497160" in finding.message
    assert "begins at 65520" in finding.message
    assert "65280" not in finding.message
    assert finding.repair is not None
    assert (finding.repair.pass_name, finding.repair.exactness) == ("clamp-overflow", "lossy")


def test_gd102_tells_the_gap_of_bfloat16() -> None:
    assert findings("GD102", bfloat16([65280.0])) == []
    (finding,) = findings("GD102", bfloat16([65536.0]))
    assert "no value between 65280 and 65536" in finding.message


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_gd102_leaves_what_is_not_finite_to_gd101(value: float) -> None:
    assert findings("GD102", with_value(value)) == []


@pytest.mark.parametrize(
    ("value", "warns"), [(32751.9, False), (32752, True), (-32752, True), (65504, True), (65520, False)]
)
def test_gd103_covers_the_last_factor_of_two(value: float, warns: bool) -> None:  # noqa: FBT001
    found = findings("GD103", with_value(value))
    assert [finding.severity for finding in found] == ["warning"] * warns
    assert all(finding.evidence["threshold"] == 32752 for finding in found)


def gain(tiny: int, value: float, size: int = 200) -> Array:
    array = np.ones(size, np.float32)
    array[:tiny] = value
    return array


@pytest.mark.parametrize(
    ("tiny", "value", "share"),
    [
        (2, 2.0**-25, 0.01),
        (1, 2.0**-25, None),
        (200, -(2.0**-25), 1.0),
        (200, 2.0**-25 * (1 + 2**-23), None),
        (200, 6e-8, None),
        (50, 1e-30, 0.25),
    ],
)
def test_gd105_reports_the_share_that_becomes_zero(tiny: int, value: float, share: float | None) -> None:
    found = findings("GD105", gain(tiny, value), "norm.weight")
    assert [finding.evidence["share"] for finding in found] == [share] * (share is not None)
    assert all(finding.severity == "warning" for finding in found)
    assert all(finding.evidence["largest_flushed"] == 2.0**-25 for finding in found)


def test_gd105_counts_shares_of_what_is_not_zero_and_finite() -> None:
    sparse = np.concatenate([np.zeros(900), [math.nan], np.ones(9), [1e-9]]).astype(np.float32)
    (finding,) = findings("GD105", sparse)
    assert (finding.evidence["fp16_underflow"], finding.evidence["nonzero"], finding.evidence["share"]) == (1, 10, 0.1)


def test_gd105_tells_the_share_that_becomes_subnormal() -> None:
    array = np.array([1e-9, 1e-6, 1e-6, 1.0], np.float32)
    (finding,) = findings("GD105", array)
    assert finding.evidence["fp16_subnormal"] == 2
    assert "0.25 of the non-zero elements (1 of 4)" in finding.message
    assert "0.5 more become subnormal" in finding.message


@pytest.mark.parametrize(
    ("name", "shape", "severity"),
    [
        ("encoder.dense.weight", (4, 4), "warning"),
        ("encoder.norm.weight", (4,), "warning"),
        ("encoder.dense.bias", (4,), "note"),
    ],
)
def test_gd106_is_lighter_for_a_bias(name: str, shape: tuple[int, ...], severity: str) -> None:
    (finding,) = findings("GD106", np.zeros(shape, np.float32), name)
    assert (finding.severity, finding.tensor) == (severity, name)
    assert ("harmless" in finding.message) is (severity == "note")


def test_gd106_knows_a_gain_to_which_the_module_adds_one() -> None:
    config = tiny_gemma3_config()
    zero_gains = {name: 0 * array if "norm" in name else array for name, array in healthy(config).items()}
    assert find("GD106", examine(zero_gains, config)) == []
    (finding,) = findings("GD106", np.zeros(8, np.float32), "model.norm.weight")
    assert finding.severity == "warning"


def test_gd106_takes_a_negative_zero_for_zero_and_a_nan_for_something() -> None:
    assert len(findings("GD106", np.full((2, 2), -0.0, np.float32))) == 1
    assert findings("GD106", np.array([[0.0, math.nan]], np.float32)) == []
    assert findings("GD106", np.array([[0.0, 1e-45]], np.float32)) == []


def with_dead_rows(dead: int, shape: tuple[int, ...] = (8, 3)) -> Array:
    array = np.ones(shape, np.float32)
    array[:dead] = 0
    return array


@pytest.mark.parametrize(
    ("name", "shape", "dead", "reported"),
    [
        ("dense.weight", (8, 3), 1, True),
        ("dense.weight", (8, 3), 8, False),
        ("embed_tokens.weight", (8, 3), 1, False),
        ("embed_tokens.weight", (8, 3), 2, True),
        ("conv.weight", (8, 3, 1, 1), 2, True),
        ("conv.weight", (8, 3, 3, 3), 2, False),
        ("conv.weight", (8, 3, 5), 2, False),
        ("norm.weight", (8,), 2, False),
    ],
)
def test_gd107_counts_zero_rows_of_projections(
    name: str,
    shape: tuple[int, ...],
    dead: int,
    reported: bool,  # noqa: FBT001
) -> None:
    found = findings("GD107", with_dead_rows(dead, shape), name)
    assert [(finding.severity, finding.evidence["zero_rows"]) for finding in found] == [("note", dead)] * reported
    assert all(f"{dead} of 8 rows" in finding.message and finding.evidence["rows"] == 8 for finding in found)


def test_gd107_expects_copies_of_the_pad_row() -> None:
    table = "embed_tokens.weight"
    for dead, reported in ((4, 0), (5, 1)):
        exam = examine({table: with_dead_rows(dead)})
        padded = Model(exam.model.family, exam.model.role, pad_rows={table: (5, 8)})
        assert len(find("GD107", replace(exam, model=padded))) == reported


def layers(*magnitudes: float) -> dict[str, Array]:
    return {f"layers.{index}.dense.weight": NUMBERS * np.float32(value) for index, value in enumerate(magnitudes)}


@pytest.mark.parametrize("unit", [2.0**-10, 1.0, 2.0**10])
def test_gd108_reports_a_tensor_far_above_its_kind(unit: float) -> None:
    (finding,) = find("GD108", examine(layers(*(unit * times for times in (1, 2, 1, 0.5, 1, 1, 2, 100)))))
    assert (finding.severity, finding.tensor) == ("note", "layers.7.dense.weight")
    assert finding.evidence["absmax"] == 100 * unit
    assert finding.evidence["median"] == unit
    assert finding.evidence["z"] == pytest.approx(0.6745 * math.log2(100) / 0.5)
    assert finding.message.startswith(f"absmax {100 * unit:.6g} is 100 times the median of the 8 linear tensors")


@pytest.mark.parametrize(
    "magnitudes",
    [
        (1, 1, 1, 1, 1, 1, 100),
        (1, 1, 1, 1, 1, 1, 1, 17.7),
        (1, 1, 1, 1, 1, 1, 1, 0.001),
        (1, 4, 16, 64, 256, 1024, 4096, 16384),
    ],
    ids=["too few", "less than 18 times", "small", "widely spread"],
)
def test_gd108_keeps_quiet(magnitudes: tuple[float, ...]) -> None:
    assert find("GD108", examine(layers(*magnitudes))) == []


def test_gd108_begins_at_18_times_the_median_of_equals() -> None:
    assert len(find("GD108", examine(layers(1, 1, 1, 1, 1, 1, 1, 17.8)))) == 1


def test_gd108_compares_within_a_role_only() -> None:
    norms = {f"layers.{index}.norm.weight": np.full(4, 100, np.float32) for index in range(8)}
    assert find("GD108", examine({**layers(*[1] * 8), **norms})) == []


def test_gd108_leaves_zero_tensors_out() -> None:
    zeros = {f"zero.{index}.dense.weight": np.zeros((2, 2), np.float32) for index in range(8)}
    (finding,) = find("GD108", examine({**layers(*[1] * 7, 100), **zeros}))
    assert finding.evidence["group"] == 8


GEMMA3, GEMMA3N = tiny_gemma3_config(), tiny_gemma3n_text_config()
DIVIDED = np.linspace(0.5, 1.5, 16) / 1024 - 1
"""Gains w of 1 + w that were divided by 1024: near -1, where the next bfloat16 is -0.996."""


def judged(config: Mapping[str, Any], name: str, gains: npt.ArrayLike, *, narrow: bool = False) -> list[Finding]:
    """What GD109 finds where a checkpoint has these gains in one norm."""
    values = np.asarray(gains, np.float32)
    planted = bfloat16(values) if narrow else values
    return find("GD109", examine({**healthy(config), name: planted}, config))


@pytest.mark.parametrize(
    ("config", "name", "gains", "largest"),
    [
        (GEMMA3, "model.norm.weight", np.full(16, -1.0), 0.0),
        (GEMMA3, "model.layers.1.input_layernorm.weight", np.linspace(-3.0, -1.25, 16), -0.25),
        (GEMMA3N, "model.norm.weight", np.full(16, -0.75), -0.75),
        (GEMMA3N, "model.norm.weight", [0.0] + 15 * [-1e-30], 0.0),
    ],
    ids=["1 + w is 0", "1 + w is negative", "w is negative", "w is not positive"],
)
def test_gd109_finds_a_norm_without_a_positive_gain(
    config: Mapping[str, Any], name: str, gains: npt.ArrayLike, largest: float
) -> None:
    (finding,) = judged(config, name, gains)
    assert (finding.severity, finding.tensor) == ("warning", name)
    assert finding.evidence == {"largest_gain": largest, "threshold": 0.0, "plus_one": config is GEMMA3, "count": 16}
    form = "1 + w" if config is GEMMA3 else "the gain"
    assert finding.message.startswith(f"No gain is above 0: {form} is at most {largest:g} in all 16 channels")


@pytest.mark.parametrize(
    ("config", "gains"),
    [
        (GEMMA3, np.zeros(16)),
        (GEMMA3, np.full(16, -0.75)),
        (GEMMA3, [-0.999] + 15 * [-2.0]),
        (GEMMA3N, [1e-30] + 15 * [-0.75]),
        (GEMMA3N, np.zeros(16)),
        (GEMMA3N, [math.nan] + 15 * [-1.0]),
        (GEMMA3N, [math.inf] + 15 * [-1.0]),
    ],
    ids=["all 1", "0.25", "one above 0", "one above 0, plain", "zero: GD106", "NaN: GD101", "inf: GD101"],
)
def test_gd109_keeps_quiet(config: Mapping[str, Any], gains: npt.ArrayLike) -> None:
    assert judged(config, "model.norm.weight", gains) == []


def test_gd109_sees_what_bfloat16_does_to_gains_near_minus_one() -> None:
    assert judged(GEMMA3, "model.norm.weight", DIVIDED) == []
    (finding,) = judged(GEMMA3, "model.norm.weight", DIVIDED, narrow=True)
    assert finding.evidence["largest_gain"] == 0.0


def test_gd109_judges_declared_norms_only() -> None:
    negative = np.full(16, -2.0, np.float32)
    assert findings("GD109", negative, "model.norm.weight") == []
    config = tiny_gemma3_multimodal_config()
    biases = {name: negative[:1].repeat(array.size) for name, array in healthy(config).items() if name.endswith("bias")}
    assert biases
    assert find("GD109", examine({**healthy(config), **biases}, config)) == []


@pytest.mark.parametrize("name", architecture_data.MODELS)
def test_gd109_knows_which_norms_of_a_real_model_add_one(name: str) -> None:
    config = architecture_data.config(name)
    norms = {norm: known for norm, known in identify(config).expected.items() if known.role == "norm"}
    fresh = {norm: np.full(known.shape, not known.plus_one, np.float32) for norm, known in norms.items()}
    assert find("GD109", examine(fresh, config)) == []
    subtracted = {norm: gains - np.float32(1.25) for norm, gains in fresh.items()}
    assert [finding.tensor for finding in find("GD109", examine(subtracted, config))] == list(norms)


@pytest.mark.parametrize("rule", ["GD102", "GD103", "GD105"])
def test_what_transformers_keeps_in_float32_is_not_judged_for_float16(rule: str) -> None:
    config = {"model_type": "t5", "vocab_size": 64, "d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 2}
    layer = "encoder.block.0.layer.1.DenseReluDense"
    bad = np.full((8, 8), {"GD102": 7e4, "GD103": 4e4, "GD105": 1e-9}[rule], np.float32)
    found = find(rule, examine({f"{layer}.wi.weight": bad, f"{layer}.wo.weight": bad}, config))
    assert [finding.tensor for finding in found] == [f"{layer}.wi.weight"]
