"""``repair --pass gguf-uint32``: eight bytes change, in a copy or in place, and the gguf package reads the number."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import ggufs
import numpy as np
import pytest
from command import call, run
from gguf import GGUFReader
from gguf.constants import GGUFValueType
from jsonschema import Draft202012Validator

import gemma_doctor
from gemma_doctor import doctor
from gemma_doctor.checkpoint import open_checkpoint
from gemma_doctor.errors import ChangedError, OutputError, UsageError
from gemma_doctor.plans import SetMetadata
from gemma_doctor.repair.applying import in_place
from gemma_doctor.repair.documents import plan_document, plan_text, read_plan

FLOAT32 = GGUFValueType.FLOAT32


@pytest.fixture
def sick(tmp_path: Path) -> Path:
    """A Gemma 3n that says FLOAT32 10.0."""
    folder = tmp_path / "in"
    folder.mkdir()
    return ggufs.gemma3n(folder / "m.gguf", (FLOAT32, 10.0))


def number(path: Path) -> tuple[str, Any]:
    """Type and value as the gguf package reads them."""
    field = GGUFReader(path).fields[ggufs.SHARED_KV]
    return field.types[0].name, field.contents()


def expected(before: bytes, path: Path) -> bytes:
    """The file with the value as UINT32, worked out without this project's writer."""
    at = before.index(ggufs.SHARED_KV.encode()) + len(ggufs.SHARED_KV)
    assert before[at : at + 8] == b"\6\0\0\0" + np.float32(10).tobytes(), path
    return before[:at] + b"\4\0\0\0\x0a\0\0\0" + before[at + 8 :]


def test_a_copy_differs_in_eight_bytes(sick: Path, tmp_path: Path) -> None:
    before = sick.read_bytes()
    done = call("repair", sick, "--pass", "gguf-uint32", "--output", tmp_path / "out", "--fail-on", "warning")
    assert (done.code, done.err) == (0, "")
    assert sick.read_bytes() == before
    assert (tmp_path / "out" / "m.gguf").read_bytes() == expected(before, sick)
    assert number(tmp_path / "out" / "m.gguf") == ("UINT32", 10)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["gemma-doctor.json", "m.gguf"]
    old, new = ggufs.values_of(sick), ggufs.values_of(tmp_path / "out" / "m.gguf")
    assert old.keys() == new.keys()
    assert all(np.array_equal(old[name][1], new[name][1]) for name in old)
    again = gemma_doctor.scan(tmp_path / "out")
    assert "GD501" not in {finding.rule for finding in again.findings}


def test_the_pass_is_used_without_being_asked_for(sick: Path, tmp_path: Path) -> None:
    assert call("repair", sick, "--output", tmp_path / "out").code == 0
    assert number(tmp_path / "out" / "m.gguf") == ("UINT32", 10)


def test_a_dry_run_and_a_saved_plan(sick: Path, tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    done = call("repair", sick, "--dry-run", "--save-plan", file)
    assert (done.code, "10 as UINT32" in done.out, "exact" in done.out) == (0, True, True)
    plan = read_plan(file)
    (edit,) = plan.edits
    assert isinstance(edit, SetMetadata)
    assert (edit.file, edit.key, edit.number, edit.exactness) == ("m.gguf", ggufs.SHARED_KV, 10, "exact")
    schema = json.loads((Path(gemma_doctor.__path__[0]) / "plan.schema.json").read_text())
    Draft202012Validator(schema).validate(plan_document(plan))
    assert file.read_text() == plan_text(plan)
    assert call("repair", sick, "--plan", file, "--output", tmp_path / "out").code == 0
    assert number(tmp_path / "out" / "m.gguf") == ("UINT32", 10)


def test_a_folder_and_a_split_file_keep_what_stands_beside(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    ggufs.gemma3n(folder / "m-00001-of-00002.gguf", (FLOAT32, 10.0))
    ggufs.write(folder / "m-00002-of-00002.gguf", {"more": ("F32", np.ones(4, np.float32))})
    (folder / "README.md").write_text("hello")
    assert call("repair", folder, "--output", tmp_path / "out").code == 0
    assert number(tmp_path / "out" / "m-00001-of-00002.gguf") == ("UINT32", 10)
    for name in ("m-00002-of-00002.gguf", "README.md"):
        assert (tmp_path / "out" / name).read_bytes() == (folder / name).read_bytes()


def test_in_place_eight_bytes_and_a_backup(sick: Path) -> None:
    before, header = sick.read_bytes(), open_checkpoint(sick).files[0].header
    done = call("repair", sick, "--pass", "gguf-uint32", "--in-place")
    assert (done.code, "Mended in place" in done.out) == (0, True)
    assert sick.read_bytes() == expected(before, sick)
    assert number(sick) == ("UINT32", 10)
    backup = sick.with_name("m.gguf.header-backup")
    assert backup.read_bytes() == before[:header]
    with sick.open("r+b") as stream:  # the advice of the page: dd conv=notrunc
        stream.write(backup.read_bytes())
    assert sick.read_bytes() == before


def test_in_place_is_written_with_one_call(sick: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    real = os.pwrite

    def counted(descriptor: int, data: bytes, at: int) -> int:
        calls.append(len(data))
        return real(descriptor, data, at)

    monkeypatch.setattr(os, "pwrite", counted)
    doctor.repair_in_place(gemma_doctor.plan(gemma_doctor.scan(sick)))
    assert calls == [8]


def test_in_place_with_a_dry_run_changes_nothing(sick: Path) -> None:
    before = sick.read_bytes()
    assert call("repair", sick, "--in-place", "--dry-run").code == 0
    assert (sick.read_bytes(), len(list(sick.parent.iterdir()))) == (before, 1)


@pytest.mark.parametrize("option", [("--output", "out"), ("--link",), ("--force",)])
def test_in_place_beside_options_of_a_copy_is_refused(sick: Path, option: tuple[str, ...]) -> None:
    done = call("repair", sick, "--in-place", *option)
    assert (done.code, "--in-place changes the source and writes no copy" in done.err) == (2, True)


def test_in_place_refuses_links_and_an_old_backup(sick: Path, tmp_path: Path) -> None:
    before = sick.read_bytes()
    (tmp_path / "link.gguf").symlink_to(sick)
    assert "this is a link" in call("repair", tmp_path / "link.gguf", "--in-place").err
    (tmp_path / "hard.gguf").hardlink_to(sick)
    assert "hard links" in call("repair", sick, "--in-place").err
    (tmp_path / "hard.gguf").unlink()
    sick.with_name("m.gguf.header-backup").write_text("old")
    assert "there is a backup already" in call("repair", sick, "--in-place").err
    assert sick.read_bytes() == before


def test_in_place_refuses_another_file_than_the_plans(sick: Path) -> None:
    plan = gemma_doctor.plan(gemma_doctor.scan(sick))
    ggufs.gemma3n(sick, (FLOAT32, 10.0), table="Q8_0")
    before = sick.read_bytes()
    with pytest.raises(ChangedError, match="The source has changed"):
        doctor.repair_in_place(plan)
    assert (sick.read_bytes(), len(list(sick.parent.iterdir()))) == (before, 1)


def test_in_place_refuses_a_value_that_is_not_the_plans(sick: Path, tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    call("repair", sick, "--dry-run", "--save-plan", file)
    file.write_text(file.read_text().replace('"number": 10', '"number": 11'))
    before = sick.read_bytes()
    with pytest.raises(UsageError, match=r"is 10\.0 \(FLOAT32\), not 11 in four bytes"):
        doctor.repair_in_place(read_plan(file))
    assert sick.read_bytes() == before


def test_in_place_takes_the_bytes_back_when_they_read_wrong(sick: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, real = sick.read_bytes(), os.pread
    reads: list[int] = []

    def failing(descriptor: int, count: int, at: int) -> bytes:
        reads.append(count)
        return real(descriptor, count, at) if len(reads) == 1 else b"\0" * count

    plan = gemma_doctor.plan(gemma_doctor.scan(sick))
    monkeypatch.setattr(os, "pread", failing)
    with pytest.raises(OutputError, match="the old bytes are in place"):
        in_place.apply_in_place(plan, open_checkpoint(sick))
    assert sick.read_bytes() == before


def test_a_full_disk_says_how_to_restore(sick: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    plan = gemma_doctor.plan(gemma_doctor.scan(sick))
    before = sick.read_bytes()
    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(OutputError, match=r"No space left.*dd if=.*header-backup of=.*conv=notrunc"):
        in_place.apply_in_place(plan, open_checkpoint(sick))
    assert sick.read_bytes() == before


@pytest.mark.parametrize("where", ["../other.gguf", "{}/other.gguf"])
@pytest.mark.parametrize("how", ["--in-place", "--output"])
def test_a_plan_never_leads_out_of_the_checkpoint(sick: Path, tmp_path: Path, where: str, how: str) -> None:
    other, file = ggufs.gemma3n(tmp_path / "other.gguf", (FLOAT32, 10.0)), tmp_path / "plan.json"
    before = other.read_bytes()
    call("repair", sick, "--dry-run", "--save-plan", file)
    plan = json.loads(file.read_text())
    plan["edits"][0]["file"] = where.format(tmp_path)
    file.write_text(json.dumps(plan))
    done = call("repair", sick, "--plan", file, how, *([tmp_path / "out"] if how == "--output" else []))
    assert (done.code, "cannot be carried out" in done.err) == (2, True)
    assert other.read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {"in", "other.gguf", "plan.json"}


def test_a_disk_too_full_for_the_backup_leaves_nothing(sick: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    plan = gemma_doctor.plan(gemma_doctor.scan(sick))
    before = sick.read_bytes()
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match=r"header's copy.*No space left.*itself was not touched") as refused:
        in_place.apply_in_place(plan, open_checkpoint(sick))
    assert "dd if=" not in str(refused.value)
    assert (sick.read_bytes(), list(sick.parent.iterdir())) == (before, [sick])


def test_a_backup_that_somebody_else_makes_meanwhile_stays(sick: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = gemma_doctor.plan(gemma_doctor.scan(sick))
    before, backup = sick.read_bytes(), sick.with_name("m.gguf.header-backup")
    monkeypatch.setattr(in_place, "check_files", lambda *_: backup.write_text("theirs"))
    with pytest.raises(UsageError, match="there is a backup already"):
        in_place.apply_in_place(plan, open_checkpoint(sick))
    assert (sick.read_bytes(), backup.read_text()) == (before, "theirs")


def test_a_file_that_changes_at_the_last_moment_is_not_touched(sick: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan, real = gemma_doctor.plan(gemma_doctor.scan(sick)), in_place._write_backup  # noqa: SLF001

    def and_change(backup: Path, header: bytes) -> None:
        real(backup, header)
        os.truncate(sick, 400)

    monkeypatch.setattr(in_place, "_write_backup", and_change)
    before = sick.read_bytes()[:400]
    with pytest.raises(ChangedError, match="header has changed since it was read; it was not touched"):
        in_place.apply_in_place(plan, open_checkpoint(sick))
    assert (sick.read_bytes(), list(sick.parent.iterdir())) == (before, [sick])


@pytest.mark.parametrize("moment", ["_write_backup", "_change", "_prove"])
def test_an_interrupt_takes_everything_back(sick: Path, monkeypatch: pytest.MonkeyPatch, moment: str) -> None:
    """Ctrl-C just before the backup, or just after the change or the proof."""
    real = getattr(in_place, moment)

    def interrupted(*arguments: Any) -> None:  # noqa: ANN401
        if moment != "_write_backup":
            real(*arguments)
            assert number(sick) == ("UINT32", 10)
        raise KeyboardInterrupt

    plan = gemma_doctor.plan(gemma_doctor.scan(sick))
    before = sick.read_bytes()
    monkeypatch.setattr(in_place, moment, interrupted)
    with pytest.raises(KeyboardInterrupt):
        in_place.apply_in_place(plan, open_checkpoint(sick))
    assert (sick.read_bytes(), list(sick.parent.iterdir())) == (before, [sick])


@pytest.mark.parametrize("name", ["rescale-conv", "prune-shared-kv", "cast-dtype"])
def test_other_passes_are_refused_with_a_reason(sick: Path, tmp_path: Path, name: str) -> None:
    done = call("repair", sick, "--pass", name, "--output", tmp_path / "out")
    assert done.code == 2
    assert f"the pass {name} edits safetensors, and this checkpoint is gguf" in done.err.replace("\n", " ")
    assert not (tmp_path / "out").exists()


def test_edits_of_safetensors_in_a_plan_are_refused(sick: Path, tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    call("repair", sick, "--dry-run", "--save-plan", file)
    plan = json.loads(file.read_text())
    own = {key: plan["edits"][0][key] for key in ("pass", "exactness", "reason")}
    plan["edits"] = [{"op": "drop", "tensor": "output_norm.weight", **own}]
    file.write_text(json.dumps(plan))
    done = run("repair", sick, "--plan", file, "--output", tmp_path / "out")
    assert (done.code, "it edits safetensors, and the checkpoint is gguf" in done.err.replace("\n", " ")) == (2, True)


def test_what_no_pass_mends_is_left_with_a_reason(tmp_path: Path) -> None:
    sick = ggufs.gemma3n(tmp_path / "m.gguf", (GGUFValueType.UINT64, 10), zero_shared=True)
    plan = gemma_doctor.plan(gemma_doctor.scan(sick))
    assert plan.edits == ()
    reasons = {item.rule: item.reason for item in plan.left}
    assert reasons["GD501"] == "it is no whole number of four bytes, so the file has to be converted anew"
    assert reasons["GD201"].startswith("no pass mends it")


def test_a_file_that_can_no_longer_be_read_is_named_with_the_cause(sick: Path) -> None:
    report = gemma_doctor.scan(sick)
    os.truncate(sick, 400)
    with pytest.raises(ChangedError, match=r"is not what this report describes \(.*it is cut short.*\): scan it again"):
        gemma_doctor.plan(report)
