"""A verification in the JSON report: every field, the schema, and strictness on the way back."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import fields, replace
from importlib.resources import files
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from report_strategies import activations, verifications
from sample_reports import report
from sample_verifications import FAILURE, RUNS, SOUND, VERIFICATION, verified

from gemma_doctor.errors import UsageError
from gemma_doctor.records import Proof, Report
from gemma_doctor.reports.machine import from_json, to_dict, to_json
from gemma_doctor.verifications import (
    Activation,
    Drift,
    FailingOp,
    LossScales,
    LossScaleTrial,
    ModuleDrift,
    Operand,
    Run,
    Verification,
)

SCHEMA = json.loads((files("gemma_doctor") / "report.schema.json").read_text(encoding="utf-8"))
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)


@given(verifications, activations)
def test_a_verification_survives_the_round_trip_and_obeys_the_schema(
    verification: Verification, activation: Activation
) -> None:
    original = replace(report(), verification=verification, activations=(activation,))
    document = to_json(original)
    again = from_json(document)
    assert to_dict(again) == to_dict(original)
    VALIDATOR.validate(json.loads(document, parse_constant=pytest.fail))


def test_a_verification_of_finite_numbers_comes_back_as_the_same_record() -> None:
    again = from_json(to_json(verified()))
    assert again.verification == VERIFICATION
    assert again.activations == verified().activations


def test_a_scan_has_no_verification_and_no_activations() -> None:
    document = to_dict(report())
    assert document["verification"] is None
    assert document["activations"] == []
    assert from_json(json.dumps(document)).verification is None


def test_every_figure_of_an_activation_is_in_the_document() -> None:
    entry = to_dict(verified())["activations"][1]
    assert entry == {
        "run": "text",
        "phase": "forward",
        "module": "tower.conv",
        "op": "aten.convolution",
        "step": 7,
        "calls": 1,
        "dtype": "F16",
        "shape": [2, 4],
        "numel": 8,
        "absmax": 65504.0,
        "min": -4.0,
        "max": 65504.0,
        "nan": 0,
        "inf": 4,
        "zeros": 0,
        "fp16_overflow": 0,
        "fp16_subnormal": 0,
        "fp16_underflow": 0,
        "rms": 32752.0,
        "headroom": 0.0,
    }


def test_an_activation_and_a_weight_have_the_same_keys_for_the_same_figures() -> None:
    document = to_dict(verified())
    shared = {key for key in document["activations"][0] if key in document["tensors"][0]}
    counts = {"numel", "nan", "inf", "zeros", "fp16_overflow", "fp16_subnormal", "fp16_underflow"}
    assert shared == {"dtype", "shape", "absmax", "min", "max", "rms", *counts}


def test_the_first_failure_says_what_went_in_and_by_how_much_it_failed() -> None:
    document = to_dict(verified())
    run = document["verification"]["runs"][0]
    failure = run["first_failure"]
    assert document["verification"]["sound"] is False
    assert failure["activation"] == document["activations"][1]
    assert failure["excess"] == 1.0
    assert failure["config"] == dict(FAILURE.config)
    assert failure["operands"][0] == {
        "name": "tower.conv.weight",
        "dtype": "F16",
        "shape": [2, 4],
        **{key: value for key, value in document["activations"][0].items() if key in {*failure["operands"][0]}},
    }
    assert failure["operands"][0]["absmax"] == SOUND.absmax


def test_loss_scales_and_drift_are_in_the_document() -> None:
    run = to_dict(verified())["verification"]["runs"][0]
    assert run["loss_scales"]["sound"] == [2.0, 16.0]
    assert run["loss_scales"]["room"] == 3.0
    last = {"scale": 32.0, "outcome": "overflow", "module": "b", "parameters": 1}
    assert run["loss_scales"]["trials"][3] == last
    assert run["output"] == "logits"
    assert run["drift"] == {"kl": None, "top1": 0.25, "error": None}
    assert run["bfloat16_drift"] == {"kl": 0.125, "top1": 1.0, "error": 0.0625}
    assert run["against_drift"] == {"kl": 0.5, "top1": 0.75, "error": 0.375}
    assert (run["modules"][0]["collapsed"], run["modules"][0]["mean_square_min"]) == (0.5, 0.25)


def test_every_field_of_every_record_is_in_the_document() -> None:
    document = to_dict(replace(verified(), proof=Proof(3, 2, ("weights as stored",))))
    run = run_of(document)
    pairs = (
        (Report, document | {"seconds": 0, "version": ""}),
        (Proof, document["proof"]),
        (Activation, document["activations"][0]),
        (Verification, document["verification"]),
        (Run, run),
        (Drift, run["drift"]),
        (ModuleDrift, run["modules"][0]),
        (FailingOp, run["first_failure"]),
        (Operand, run["first_failure"]["operands"][0]),
        (LossScales, run["loss_scales"]),
        (LossScaleTrial, run["loss_scales"]["trials"][0]),
    )
    for record, written in pairs:
        assert {field.name for field in fields(record)} - {"stats"} <= written.keys()
    assert from_json(json.dumps(document)).proof == Proof(3, 2, ("weights as stored",))
    assert document["proof"]["certified"] is False


def test_an_activation_has_a_line_of_its_own() -> None:
    assert sum('"headroom"' in line and '"sound"' not in line for line in to_json(verified()).splitlines()) == 2


Damage = Callable[[dict[str, Any]], object]


def run_of(document: dict[str, Any]) -> dict[str, Any]:
    """The first run of a document."""
    run: dict[str, Any] = document["verification"]["runs"][0]
    return run


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (lambda d: d.pop("verification"), "missing 'verification'"),
        (lambda d: d.update(activations=None), "activations: expected a list, found None"),
        (lambda d: d["activations"][0].update(row_l1_max=1), "activations[0]: unknown key 'row_l1_max'"),
        (lambda d: d["activations"][0].pop("headroom"), "activations[0]: missing 'headroom'"),
        (lambda d: d["activations"][0].update(run="video"), "activations[0].run: 'video' is not known"),
        (lambda d: d["activations"][0].update(phase="hind"), "activations[0].phase: 'hind' is not known"),
        (lambda d: d["activations"][0].update(step=-1), "activations[0].step: expected an integer of at least 0"),
        (lambda d: d["activations"][0].update(headroom=1), "activations[0].headroom: expected 13.9"),
        (lambda d: d["verification"].update(sound=True), "verification.sound: expected False (from the rest"),
        (lambda d: d["verification"].update(mode="quarter"), "verification.mode: 'quarter' is not known"),
        (lambda d: d["verification"].update(backward=1), "verification.backward: expected true or false, found 1"),
        (lambda d: d["verification"].update(peak=1), "verification: unknown key 'peak'"),
        (lambda d: run_of(d).update(seconds=-1), "verification.runs[0].seconds: expected a number of at least 0"),
        (lambda d: run_of(d)["drift"].update(top1=2), "verification.runs[0].drift.top1: expected a share from 0 to 1"),
        (
            lambda d: run_of(d)["loss_scales"].update(room=9),
            "verification.runs[0].loss_scales.room: expected 3.0 (from",
        ),
        (
            lambda d: run_of(d)["loss_scales"]["trials"][0].update(scale=0),
            "verification.runs[0].loss_scales.trials[0].scale: expected a number above 0, found 0",
        ),
        (
            lambda d: run_of(d)["first_failure"].update(excess=2.5),
            "verification.runs[0].first_failure.excess: expected 1.0 (from the rest of the report), found 2.5",
        ),
        (
            lambda d: run_of(d)["first_failure"].update(reference_absmax=-1),
            "verification.runs[0].first_failure.reference_absmax: expected a number of at least 0, found -1",
        ),
        (
            lambda d: run_of(d)["modules"][0].update(nonfinite=0.5),
            "verification.runs[0].modules[0].nonfinite: expected an integer of at least 0, found 0.5",
        ),
    ],
)
def test_a_damaged_verification_fails_here_and_in_the_schema(damage: Damage, complaint: str) -> None:
    document = to_dict(verified())
    damage(document)
    with pytest.raises(UsageError) as error:
        from_json(json.dumps(document), "saved.json")
    assert str(error.value).startswith(f"saved.json is not a report that can be read: {complaint}")
    adds_up = "(from" in complaint or "headroom: expected 13.9" in complaint  # a schema cannot add up
    assert VALIDATOR.is_valid(document) is adds_up


def test_an_integer_beyond_float64_is_refused() -> None:
    document = to_dict(verified())
    run_of(document)["first_failure"]["reference_absmax"] = 10**400
    with pytest.raises(UsageError, match="is not a report that can be read: a number leaves float64's range: "):
        from_json(json.dumps(document))


def test_what_json_cannot_hold_becomes_null() -> None:
    run = Run("text", "", 1, 1.0, loss=math.nan, reference_loss=math.inf)
    document = json.loads(to_json(verified(replace(VERIFICATION, runs=(run, *RUNS)))), parse_constant=pytest.fail)
    assert (run_of(document)["loss"], run_of(document)["reference_loss"]) == (None, None)
