"""GD001 to GD004: what is wrong with the files themselves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
from examinations import examine, find

from gemma_doctor.examination import Examination
from gemma_doctor.records import Fault, FaultKind, FileInfo

HEALTHY = examine({"weight": np.ones((2, 2), np.float32)})


def with_files(*files: FileInfo, faults: tuple[Fault, ...] = (), form: str = "safetensors") -> Examination:
    checkpoint = replace(HEALTHY.checkpoint, files=files, faults=faults, format=form)
    return replace(HEALTHY, checkpoint=checkpoint)


@pytest.mark.parametrize(
    ("rule", "kind"), [("GD001", "unreadable-shard"), ("GD002", "index-mismatch"), ("GD003", "unsafe-path")]
)
def test_a_fault_becomes_a_finding_of_its_rule_alone(rule: str, kind: FaultKind) -> None:
    fault = Fault(kind, "b.safetensors", "It is broken at byte 8.", "weight", {"offset": 8})
    exam = with_files(FileInfo("b.safetensors", 8), faults=(fault,))
    (finding,) = find(rule, exam)
    assert (finding.rule, finding.name, finding.severity) == (rule, kind, "error")
    assert (finding.tensor, finding.file, finding.message) == ("weight", "b.safetensors", "It is broken at byte 8.")
    assert finding.evidence == {"offset": 8}
    assert not any(find(other, exam) for other in ("GD001", "GD002", "GD003") if other != rule)


@pytest.mark.parametrize("rule", ["GD001", "GD002", "GD003", "GD004"])
def test_sound_files_give_no_finding(rule: str) -> None:
    assert find(rule, HEALTHY) == []


@pytest.mark.parametrize(("metadata", "keys"), [(None, 0), ({}, 0), ({"author": "me", "license": "none"}, 2)])
def test_a_file_without_format_is_a_note(metadata: Mapping[str, str] | None, keys: int) -> None:
    exam = with_files(FileInfo("a.safetensors", 1, {"format": "pt"}), FileInfo("b.safetensors", 1, metadata))
    (finding,) = find("GD004", exam)
    assert (finding.severity, finding.tensor, finding.file) == ("note", None, "b.safetensors")
    assert finding.evidence == {"metadata_keys": keys}


def test_the_format_is_not_asked_of_a_file_that_cannot_be_read() -> None:
    fault = Fault("unreadable-shard", "a.safetensors", "Truncated.")
    exam = with_files(FileInfo("a.safetensors", 1), FileInfo("b.safetensors", 1), faults=(fault,))
    assert [finding.file for finding in find("GD004", exam)] == ["b.safetensors"]


def test_the_format_is_asked_where_only_the_index_is_wrong() -> None:
    fault = Fault("index-mismatch", "a.safetensors", "total_size is 8, the tensors take 16 bytes.")
    assert len(find("GD004", with_files(FileInfo("a.safetensors", 1), faults=(fault,)))) == 1


def test_gguf_has_no_such_metadata() -> None:
    assert find("GD004", with_files(FileInfo("a.gguf", 1), form="gguf")) == []
