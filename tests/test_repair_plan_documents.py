"""Plans and traces as JSON: what is written is read again, and what is wrong is named with its place."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from importlib.resources import files
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from gemma_doctor.choices import SEVERITIES
from gemma_doctor.errors import UsageError
from gemma_doctor.plans import (
    Add,
    Cast,
    Clamp,
    Drop,
    Edit,
    FileMark,
    Fingerprint,
    Left,
    Plan,
    Reason,
    Rename,
    Scale,
    ScaleGain,
    SetConfig,
    SetMetadata,
    ZeroNonfinite,
)
from gemma_doctor.repair.documents import plan_document, plan_text, read_plan
from gemma_doctor.repair.evidence.calibration import Measured, read_calibration

words = st.text(st.characters(codec="utf-8"), max_size=20)
names = words.filter(bool)
scalars = st.one_of(
    words, st.booleans(), st.none(), st.integers(-(2**60), 2**60), st.floats(allow_nan=False, allow_infinity=False)
)
hashes = st.integers(0, 2**256 - 1).map(lambda number: f"{number:064x}")
dtypes = st.sampled_from(["F64", "F32", "F16", "BF16", "F8_E4M3", "I64"])
common: dict[str, st.SearchStrategy[Any]] = {
    "pass_name": names,
    "exactness": st.sampled_from(["exact", "eps", "rounded", "lossy"]),
    "reason": st.builds(Reason, words, words, st.dictionaries(words, scalars, max_size=3)),
}
edits = st.one_of(
    st.builds(Scale, tensor=names, exponent=st.integers(-2200, 2200), **common),
    st.builds(ScaleGain, tensor=names, exponent=st.integers(-2200, 2200), **common),
    st.builds(Cast, tensor=names, dtype=dtypes, **common),
    st.builds(Clamp, tensor=names, limit=st.floats(0, 1e30), **common),
    st.builds(ZeroNonfinite, tensor=names, **common),
    st.builds(Drop, tensor=names, **common),
    st.builds(
        Add,
        tensor=names,
        dtype=dtypes,
        shape=st.lists(st.integers(0, 2**40), max_size=4).map(tuple),
        beside=names,
        **common,
    ),
    st.builds(Rename, tensor=names, to=names, **common),
    st.builds(SetConfig, path=st.lists(names, min_size=1, max_size=3).map(tuple), value=scalars, **common),
    st.builds(SetMetadata, file=names, key=names, number=st.integers(0, 2**32 - 1), **common),
)
marks = st.builds(FileMark, names, st.integers(0, 2**50), hashes)
plans = st.builds(
    Plan,
    version=words,
    source=words,
    fingerprint=st.builds(
        Fingerprint, st.lists(marks, max_size=3).map(tuple), st.dictionaries(names, hashes, max_size=3)
    ),
    edits=st.lists(edits, max_size=6).map(tuple),
    left=st.lists(st.builds(Left, words, st.sampled_from(SEVERITIES), st.none() | words, words), max_size=3).map(tuple),
)


@cache
def schema() -> Draft202012Validator:
    document = json.loads((files("gemma_doctor") / "plan.schema.json").read_text(encoding="utf-8"))
    Draft202012Validator.check_schema(document)
    return Draft202012Validator(document)


def reread(text: str) -> Plan:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "plan.json"
        path.write_text(text, encoding="utf-8")
        return read_plan(path)


@given(plans)
def test_law_a_plan_that_is_written_and_read_is_the_same_plan(plan: Plan) -> None:
    text = plan_text(plan)
    assert json.loads(text) == plan_document(plan)
    assert reread(text) == plan
    schema().validate(json.loads(text))


def test_every_edit_is_one_line(tmp_path: Path) -> None:
    reason = Reason("GD104", "why")
    two = (
        Drop(tensor="a", pass_name="p", exactness="exact", reason=reason),
        Scale(tensor="b", exponent=-3, pass_name="p", exactness="eps", reason=reason),
    )
    text = plan_text(Plan("1", "here", Fingerprint((), {}), two))
    assert '\n    {"op": "drop", "tensor": "a", "pass": "p", "exactness": "exact", ' in text
    assert '\n    {"op": "scale", "tensor": "b", "exponent": -3, ' in text
    assert text.endswith('\n  "left": []\n}\n')
    (tmp_path / "plan.json").write_text(text)
    assert read_plan(tmp_path / "plan.json").edits == two


def sample() -> dict[str, Any]:
    reason = Reason("GD104", "why", {"k": 3})
    every: tuple[Edit, ...] = (
        Scale(tensor="w", exponent=-3, pass_name="p", exactness="eps", reason=reason),
        Cast(tensor="w", dtype="F32", pass_name="p", exactness="exact", reason=reason),
        Clamp(tensor="w", limit=65504.0, pass_name="p", exactness="lossy", reason=reason),
        Add(tensor="b", dtype="F32", shape=(4,), beside="w", pass_name="p", exactness="exact", reason=reason),
        SetConfig(path=("dtype",), value="bfloat16", pass_name="p", exactness="exact", reason=reason),
    )
    marks = (FileMark("model.safetensors", 10, "0" * 64),)
    left = (Left("GD108", "note", None, "a note"),)
    return plan_document(Plan("1", "here", Fingerprint(marks, {"w": "f" * 64}, "0" * 64), every, left))


def put(*path: str | int, value: object) -> Callable[[dict[str, Any]], None]:
    def change(document: dict[str, Any]) -> None:
        place: Any = document
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (put("kind", value="report"), "kind: 'report' is not known"),
        (put("schema_version", value=2), "schema version 2; this gemma-doctor reads version 1"),
        (put("extra", value=1), "unknown key 'extra'"),
        (put("tool", "name", value="other"), "tool.name: "),
        (put("source", value=3), "source: expected a string, found 3"),
        (
            put("fingerprint", "files", 0, "size", value=-1),
            "fingerprint.files[0].size: expected an integer of at least 0",
        ),
        (put("fingerprint", "files", 0, "header_sha256", value="F" * 64), "fingerprint.files[0].header_sha256: "),
        (put("fingerprint", "tensors", "w", value="12"), "fingerprint.tensors.w: expected 64 lower-case hexadecimal"),
        (
            put("fingerprint", "config_sha256", value="12"),
            "fingerprint.config_sha256: expected 64 lower-case hexadecimal",
        ),
        (put("edits", value={}), "edits: expected a list"),
        (put("edits", 0, "op", value="scales"), "edits[0].op: 'scales' is not known; did you mean 'scale'?"),
        (put("edits", 0, "exponent", value=2.5), "edits[0].exponent: expected an integer from -2200 to 2200"),
        (put("edits", 0, "exponent", value=True), "edits[0].exponent: expected an integer"),
        (put("edits", 0, "exponent", value=9999), "edits[0].exponent: expected an integer"),
        (put("edits", 0, "tensor", value=""), "edits[0].tensor: expected a name that is not empty"),
        (put("edits", 0, "exactnes", value="eps"), "edits[0]: unknown key 'exactnes'; did you mean 'exactness'?"),
        (put("edits", 0, "exactness", value="exactly"), "edits[0].exactness: 'exactly' is not known"),
        (put("edits", 0, "reason", "evidence", "k", value=[1]), "edits[0].reason.evidence.k: "),
        (put("edits", 1, "dtype", value="BF17"), "edits[1].dtype: 'BF17' is no dtype of safetensors; did you mean"),
        (put("edits", 2, "limit", value=-1), "edits[2].limit: expected a number of at least 0"),
        (put("edits", 3, "shape", value=[-4]), "edits[3].shape[0]: "),
        (put("edits", 4, "path", value=[]), "edits[4].path: expected at least one key"),
        (put("edits", 4, "value", value={}), "edits[4].value: "),
        (put("left", 0, "reason", value=None), "left[0].reason: expected a string"),
    ],
)
def test_a_wrong_field_is_named_with_its_file_and_place(
    tmp_path: Path, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    document = json.loads(json.dumps(sample()))
    schema().validate(document)
    change(document)
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(document))
    with pytest.raises(UsageError) as caught:
        read_plan(path)
    assert str(caught.value).startswith(f"{path} is not a plan that can be read: {message}")
    assert not schema().is_valid(document)


@pytest.mark.parametrize("key", ["schema_version", "kind", "tool", "source", "fingerprint", "edits", "left"])
def test_a_missing_field_is_named(tmp_path: Path, key: str) -> None:
    document = sample()
    del document[key]
    (tmp_path / "plan.json").write_text(json.dumps(document))
    with pytest.raises(UsageError, match=f"missing '{key}'"):
        read_plan(tmp_path / "plan.json")
    assert not schema().is_valid(document)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"{", "line 1, column 2: "),
        (b"\xff", "can't decode"),
        (b'{"kind": "plan", "kind": "plan"}', "the key 'kind' stands twice"),
        (b'{"kind": NaN}', "NaN is not JSON"),
        (b"[]", "expected a table"),
        (b"[" * 100_000, "recursion"),
    ],
)
def test_a_file_that_is_no_json_object_is_refused(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "plan.json"
    path.write_bytes(data)
    with pytest.raises(UsageError) as caught:
        read_plan(path)
    assert str(path) in str(caught.value)
    assert message in str(caught.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"none\.json is not a trace that can be read: No such file"):
        read_calibration(tmp_path / "none.json")


# traces


def trace(folder: Path, *activations: dict[str, object]) -> Path:
    path = folder / "trace.json"
    path.write_text(json.dumps({"schema_version": 1, "kind": "trace", "tool": {}, "activations": list(activations)}))
    return path


def test_a_trace_gives_the_worst_of_every_module(tmp_path: Path) -> None:
    path = trace(
        tmp_path,
        {"module": "a", "peak": 3, "mean_square_min": 0.5, "mean": 1},
        {"module": "b", "peak": 7.5, "mean_square_min": None},
        {"module": "a", "peak": 9.0, "mean_square_min": 0.25},
        {"module": "b", "peak": 2.0},
    )
    calibration = read_calibration(path)
    assert calibration.origin == str(path)
    assert calibration.modules == {"a": Measured(9.0, 0.25), "b": Measured(7.5)}


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"peak": 1.0}, "activations[0]: missing 'module'"),
        ({"module": "a"}, "activations[0]: missing 'peak'"),
        ({"module": "a", "peak": -1}, "activations[0].peak: expected a number of at least 0"),
        ({"module": "a", "peak": "3"}, "activations[0].peak: expected a finite number"),
        ({"module": "a", "peak": None}, "trace the float32 reference"),
        ({"module": "a", "peak": 1, "mean_square_min": -1}, "activations[0].mean_square_min: "),
    ],
)
def test_a_wrong_trace_is_named_with_its_place(tmp_path: Path, entry: dict[str, object], message: str) -> None:
    path = trace(tmp_path, entry)
    with pytest.raises(UsageError) as caught:
        read_calibration(path)
    assert str(path) in str(caught.value)
    assert message in str(caught.value)
