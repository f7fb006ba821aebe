"""The JSON report: strict, described by its schema, and the same after a round trip."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from importlib.resources import files
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from report_strategies import reports
from sample_reports import PUBLISHED, finding, report, tensor

from gemma_doctor.errors import UsageError
from gemma_doctor.records import Coverage, Report, Skipped, Suppressed
from gemma_doctor.reports.machine import from_json, to_dict, to_json
from gemma_doctor.tensors import TensorStats

SCHEMA = json.loads((files("gemma_doctor") / "report.schema.json").read_text(encoding="utf-8"))
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)


@given(reports)
def test_a_report_survives_the_round_trip_and_obeys_the_schema(original: Report) -> None:
    document = to_json(original)
    assert to_dict(from_json(document)) == to_dict(original)
    VALIDATOR.validate(json.loads(document, parse_constant=pytest.fail))


def test_the_schema_itself_is_sound_and_describes_every_field() -> None:
    VALIDATOR.check_schema(SCHEMA)

    def undescribed(node: object, place: str) -> list[str]:
        if isinstance(node, list):
            return [hit for index, item in enumerate(node) for hit in undescribed(item, f"{place}[{index}]")]
        if not isinstance(node, dict):
            return []
        own = [
            f"{place}.{key}"
            for key, item in node.get("properties", {}).items()
            if not {"description", "$ref"} & {*item}
        ]
        return own + [hit for key, item in node.items() for hit in undescribed(item, f"{place}.{key}")]

    assert undescribed(SCHEMA, "") == []


def test_figures_of_the_contract_are_in_the_document() -> None:
    sick = tensor(
        "a.weight",
        role="conv",
        stats=TensorStats(
            count=64,
            nan=1,
            inf=2,
            zeros=3,
            fp16_overflow=4,
            fp16_subnormal=5,
            fp16_underflow=6,
            minimum=-70000.0,
            maximum=2.0,
            squares=Fraction(61 * 9),
            zero_rows=1,
            row_l1_max=16.0,
            row_squares_max=25.0,
        ),
    )
    (entry,) = to_dict(report(tensors=[sick]))["tensors"]
    assert entry == {
        "name": "a.weight",
        "file": "model.safetensors",
        "offset": 1000,
        "dtype": "BF16",
        "shape": [8, 8],
        "numel": 64,
        "bytes": 128,
        "role": "conv",
        "absmax": 70000.0,
        "min": -70000.0,
        "max": 2.0,
        "nan": 1,
        "inf": 2,
        "zeros": 3,
        "zero_rows": 1,
        "fp16_overflow": 4,
        "fp16_subnormal": 5,
        "fp16_underflow": 6,
        "rms": 3.0,
        "row_l1_max": 16.0,
        "row_l2_max": 5.0,
        "limit": 65504.0,
        "input_budget": 4094.0,
    }


def test_the_summary_counts_and_an_unmeasured_tensor_makes_it_incomplete() -> None:
    part = replace(
        report([finding("GD101"), finding("GD104", "warning"), finding("GD104", "warning")], PUBLISHED),
        coverage=Coverage(6, 5, (Skipped("b.weight", "unknown dtype F3"),)),
        suppressed=(Suppressed(finding(), "allow", "fine", "x.toml"),),
    )
    document = to_dict(part)
    assert document["summary"] == {
        "tensors": 5,
        "parameters": 320,
        "bytes": 640,
        "errors": 1,
        "warnings": 2,
        "notes": 0,
        "suppressed": 1,
        "seconds": 0.5,
    }
    assert document["complete"] is False
    assert document["coverage"]["skipped"] == [{"tensor": "b.weight", "reason": "unknown dtype F3"}]
    assert document["findings"][0]["repair"] == {"pass": "clamp-overflow", "exactness": "lossy"}


def test_what_json_cannot_hold_becomes_null() -> None:
    vast = tensor("a", stats=TensorStats(count=64, minimum=-1.0, maximum=1.0, squares=None, row_l1_max=math.inf))
    document = json.loads(to_json(report([finding(measure=math.nan)], [vast])), parse_constant=pytest.fail)
    assert document["findings"][0]["evidence"]["measure"] is None
    assert document["tensors"][0]["row_l1_max"] is None
    assert document["tensors"][0]["rms"] is None


def test_every_tensor_and_finding_has_a_line_of_its_own() -> None:
    lines = to_json(report([finding("GD101"), finding("GD102")], PUBLISHED)).splitlines()
    assert sum('"absmax"' in line for line in lines) == len(PUBLISHED)
    assert sum('"severity"' in line for line in lines) == 2
    assert all(line.isascii() for line in lines)


Damage = Callable[[dict[str, Any]], object]


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (lambda d: d.pop("findings"), "missing 'findings'"),
        (lambda d: d.update(extra=1), "unknown key 'extra'"),
        (lambda d: d["tensors"][0].update(absmx=1), "tensors[0]: unknown key 'absmx'; did you mean 'absmax'?"),
        (lambda d: d["tensors"][0].update(dtype=7), "tensors[0].dtype: expected a string, found 7"),
        (lambda d: d["tensors"][0].update(nan=-1), "tensors[0].nan: expected an integer of at least 0, found -1"),
        (lambda d: d["tensors"][0].update(nan=True), "tensors[0].nan: expected an integer of at least 0, found True"),
        (lambda d: d["tensors"][0].update(shape="8"), "tensors[0].shape: expected a list, found '8'"),
        (lambda d: d["tensors"][0].update(rms="big"), "tensors[0].rms: expected a finite number, found 'big'"),
        (lambda d: d["tensors"][0].update(role="cnv"), "tensors[0].role: 'cnv' is not known; did you mean 'conv'?"),
        (lambda d: d["tensors"][0].update(absmax=5.0), "tensors[0].absmax: expected 98.0 (from the rest"),
        (lambda d: d["summary"].update(errors=0), "summary.errors: expected 1 (from the rest of the report), found 0"),
        (lambda d: d.update(complete=False), "complete: expected True (from the rest of the report), found False"),
        (lambda d: d.update(complete=1), "complete: expected True (from the rest of the report), found 1"),
        (lambda d: d["findings"][0].update(severity="fatal"), "findings[0].severity: 'fatal' is not known; known are"),
        (lambda d: d["findings"].append([]), "findings[1]: expected a table, found []"),
        (lambda d: d.update(source="x"), "source: expected a table, found 'x'"),
    ],
)
def test_a_damaged_document_fails_here_and_in_the_schema(damage: Damage, complaint: str) -> None:
    document = to_dict(report([finding()], PUBLISHED))
    consistent = "from the rest" in complaint and "found 1" not in complaint  # a schema cannot add up
    damage(document)
    with pytest.raises(UsageError) as error:
        from_json(json.dumps(document), "saved.json")
    assert str(error.value).startswith(f"saved.json is not a report that can be read: {complaint}")
    assert VALIDATOR.is_valid(document) is consistent


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "line 1, column 1: Expecting value"),
        ('{"schema_version":\n}', "line 2, column 1: "),
        ("[]", "expected a table, found []"),
        ("{}", "missing 'schema_version'"),
        ('{"schema_version": NaN}', "NaN is not JSON"),
        ('{"schema_version": 2, "tool": {"version": "9"}}', "schema version 2 (of gemma-doctor 9); this one reads"),
        pytest.param('{"schema_version": ' + "1" * 5000 + "}", "Exceeds the limit", id="long number"),
        pytest.param("[" * 100_000, "maximum recursion depth", id="deep"),
        (b"\xff", "'utf-8' codec can't decode"),
    ],
)
def test_what_is_no_report_is_refused_in_a_sentence(text: str | bytes, complaint: str) -> None:
    with pytest.raises(UsageError, match="is not a report that can be read: ") as error:
        from_json(text)
    assert complaint in str(error.value)


def test_a_number_beyond_float64_is_refused() -> None:
    text = to_json(report()).replace('"seconds": 0.5', '"seconds": 1e999')
    with pytest.raises(UsageError, match=r"summary\.seconds: expected a finite number, found inf"):
        from_json(text)
