"""What is refused, before anything is written."""

from __future__ import annotations

import json
import shutil
from collections import namedtuple
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from applying import add, cast, clamp, drop, mend, plan_for, rename, scale, set_config, tree, zero
from checkpoint_bytes import write_file
from checkpoints import Raw, bfloat16, write

from gemma_doctor.checkpoint import open_checkpoint
from gemma_doctor.errors import ChangedError, CheckpointError, DoctorError, UsageError
from gemma_doctor.plans import Edit, Fingerprint, Plan
from gemma_doctor.repair.applying.apply import apply

WEIGHTS = {f"w{i}": bfloat16(np.arange(12, dtype=np.float32).reshape(3, 4) + i + 1) for i in range(4)} | {
    "ids": Raw("I64", (2,), bytes(16))
}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write(tmp_path / "source", WEIGHTS, {"model_type": "toy", "dtype": "bfloat16"}, shards=2)


def refused(source: Path, output: Path, *edits: Edit, force: bool = False) -> DoctorError:
    """The refusal; nothing may have been written anywhere near."""
    before = sorted(output.parent.rglob("*")) if output.parent.exists() else None
    with pytest.raises(DoctorError) as caught:
        mend(source, output, *edits, force=force)
    assert (sorted(output.parent.rglob("*")) if output.parent.exists() else None) == before
    return caught.value


def test_an_output_that_is_not_empty(source: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/precious").write_text("x", encoding="utf-8")
    error = refused(source, tmp_path / "out", scale("w1", 1))
    assert isinstance(error, UsageError)
    assert "this folder is not empty" in str(error)
    assert "--force" in str(error)


def test_an_empty_output_is_taken(source: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    mend(source, tmp_path / "out", scale("w1", 1))
    assert (tmp_path / "out/gemma-doctor.json").exists()


def test_force_replaces_the_whole_folder(source: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/old").touch()
    mend(source, tmp_path / "out", scale("w1", 1), force=True)
    assert "old" not in tree(tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "source"]


def test_a_file_in_the_outputs_place_is_never_replaced(source: Path, tmp_path: Path) -> None:
    (tmp_path / "out").touch()
    assert "this is a file" in str(refused(source, tmp_path / "out", force=True))


@pytest.mark.parametrize(
    ("output", "fact"),
    [
        ("source", "this is the source"),
        ("source/mended", "inside the source"),
        ("source/a/b", "inside the source"),
        ("other/../source", "this is the source"),
        ("link", "this is the source"),
        ("link/x", "inside the source"),
        ("", "lies inside this"),
        ("..", "lies inside this"),
    ],
)
@pytest.mark.parametrize("force", [False, True])
def test_source_and_output_must_lie_apart(source: Path, tmp_path: Path, output: str, fact: str, *, force: bool) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "link").symlink_to(source, target_is_directory=True)
    before = tree(source)
    with pytest.raises(UsageError, match=fact):
        mend(source, tmp_path / output, scale("w1", 1), force=force)
    assert tree(source) == before


def test_the_blobs_behind_links_count_as_source(source: Path, tmp_path: Path) -> None:
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    for blob in source.iterdir():
        (snapshot / blob.name).symlink_to(blob)
    assert "lies inside this" in str(refused(snapshot, source, force=True))


def test_the_folder_of_a_single_file_is_not_the_output(tmp_path: Path) -> None:
    source = write(tmp_path / "source", WEIGHTS)
    assert "lies inside this" in str(refused(source / "model.safetensors", source, force=True))


def test_a_mount_point(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "is_mount", lambda path: path == tmp_path / "out")
    (tmp_path / "out").mkdir()
    assert "mount point" in str(refused(source, tmp_path / "out"))


def test_too_little_disk_with_both_figures(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")  # noqa: PYI024
    whole = mend(source, tmp_path / "whole", scale("w1", 1)).bytes_written
    linked = mend(source, tmp_path / "linked", scale("w1", 1), link=True).bytes_written
    assert linked < whole
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(0, 0, whole - 1))
    assert f"needs {whole:,} bytes, and {whole - 1:,} are free" in str(
        refused(source, tmp_path / "out", scale("w1", 1))
    )
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(0, 0, whole))
    mend(source, tmp_path / "out", scale("w1", 1))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(0, 0, linked))
    mend(source, tmp_path / "out2", scale("w1", 1), link=True)


def attempt(plan: Plan, source: Path, output: Path) -> str:
    """What a plan is refused with, and nothing written."""
    with pytest.raises(ChangedError) as caught:
        apply(plan, open_checkpoint(source), output)
    assert not output.exists()
    return str(caught.value)


def test_a_source_that_changed_since_the_plan(source: Path, tmp_path: Path) -> None:
    plan = plan_for(open_checkpoint(source), scale("w1", 1))
    shard = source / "model-00001-of-00002.safetensors"
    whole = shard.read_bytes()
    info = open_checkpoint(source).tensors["w1"]
    at = info.start + 3

    shard.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    assert "tensor 'w1' holds other numbers" in attempt(plan, source, tmp_path / "out")

    shard.write_bytes(whole.replace(b'"format"', b'"Format"'))
    assert "model-00001-of-00002.safetensors: its header is another one" in attempt(plan, source, tmp_path / "out")

    shard.write_bytes(whole)
    write_file(shard, "w9")
    (source / "model.safetensors.index.json").unlink()
    assert "model-00001-of-00002.safetensors: it had" in attempt(plan, source, tmp_path / "out")

    shard.unlink()
    assert "of the plan is gone" in attempt(plan, source, tmp_path / "out")
    shard.write_bytes(whole)
    write_file(source / "model-00003-of-00002.safetensors", "w9")
    assert "the plan does not know this tensor file" in attempt(plan, source, tmp_path / "out")


def test_a_config_that_changed_since_the_plan(source: Path, tmp_path: Path) -> None:
    plan = plan_for(open_checkpoint(source), scale("w1", 1))
    config = source / "config.json"
    said = config.read_text()
    config.write_text(said.replace("toy", "boy"))
    assert "config.json: it says something else" in attempt(plan, source, tmp_path / "out")
    config.unlink()
    assert "config.json: " in attempt(plan, source, tmp_path / "out")
    without = plan_for(open_checkpoint(source), scale("w1", 1))
    config.write_text(json.dumps(dict(reversed(json.loads(said).items())), indent=7))
    assert "config.json: " in attempt(without, source, tmp_path / "out")
    apply(plan, open_checkpoint(source), tmp_path / "out")  # it says the same in other words
    assert (tmp_path / "out").exists()


def test_an_untouched_tensor_may_have_changed(source: Path, tmp_path: Path) -> None:
    plan = plan_for(open_checkpoint(source), scale("w1", 1))
    shard = source / "model-00001-of-00002.safetensors"
    whole = bytearray(shard.read_bytes())
    whole[open_checkpoint(source).tensors["w0"].start] ^= 1
    shard.write_bytes(whole)
    apply(plan, open_checkpoint(source), tmp_path / "out")
    assert (tmp_path / "out").exists()


def test_a_hash_of_a_tensor_that_is_dropped_is_checked_too(source: Path, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(source)
    plan = plan_for(checkpoint, drop("w1"))
    mark = replace(plan.fingerprint, tensors={"w1": "0" * 64})
    assert "tensor 'w1' holds other numbers" in attempt(replace(plan, fingerprint=mark), source, tmp_path / "out")
    mark = replace(plan.fingerprint, tensors={"gone": "0" * 64})
    assert "tensor 'gone'" in attempt(replace(plan, fingerprint=mark), source, tmp_path / "out")


def test_a_plan_without_a_hash_of_what_it_edits(source: Path, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(source)
    plan = plan_for(checkpoint, scale("w1", 1))
    bare = replace(plan, fingerprint=replace(plan.fingerprint, tensors={}))
    with pytest.raises(UsageError, match="edits tensor 'w1' and has no hash of it"):
        apply(bare, checkpoint, tmp_path / "out")


def test_a_source_that_changes_while_it_is_copied(source: Path, tmp_path: Path) -> None:
    shard = source / "model-00002-of-00002.safetensors"

    class Writer:
        def start(self, total_bytes: int) -> None:
            assert total_bytes

        def advance(self, nbytes: int) -> None:
            assert nbytes
            shard.write_bytes(shard.read_bytes())

    checkpoint = open_checkpoint(source)
    plan = plan_for(checkpoint, scale("w1", 1))
    with pytest.raises(DoctorError, match=r"model-00002-of-00002\.safetensors: .*(changed|written to|cut short)"):
        apply(plan, checkpoint, tmp_path / "out", progress=Writer())
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


@pytest.mark.parametrize(
    ("edits", "fact"),
    [
        ([scale("nope", 1)], "edit 1 (Scale of rescale-conv) cannot be carried out: there is no tensor 'nope'"),
        (
            [drop("w1"), scale("w1", 1)],
            "edit 2 (Scale of rescale-conv) cannot be carried out: an earlier edit has dropped",
        ),
        ([drop("w1"), drop("w1")], "an earlier edit has dropped tensor 'w1'"),
        ([rename("w1", "v1"), scale("w1", 1)], "an earlier edit has renamed to 'v1' tensor 'w1'"),
        ([rename("w1", "w2")], "there is a tensor 'w2' already"),
        ([rename("w1", "x"), rename("w2", "x")], "there is a tensor 'x' already"),
        ([rename("w1", "__metadata__")], "__metadata__ is no tensor's name"),
        ([add("w2", "F32", (1,), "w1")], "there is a tensor 'w2' already"),
        ([add("b", "F32", (1,), "nope")], "there is no tensor 'nope'"),
        ([add("b", "F31", (1,), "w1")], "safetensors has no 'F31'"),
        ([add("b", "F32", (-1,), "w1")], "safetensors has no 'F32' of shape [-1]"),
        ([add("b", "F4", (1,), "w1")], "ends inside a byte"),
        ([scale("ids", 1)], "tensor 'ids': I64 elements cannot be changed"),
        ([cast("ids", "F32")], "casts are made between"),
        ([clamp("w1", -2.0)], "not negative"),
        ([set_config(1, "a", "b")], "config.json: the plan sets a.b, and there is no object to hold it"),
        ([set_config(1, "dtype", "b")], "config.json: the plan sets dtype.b"),
    ],
)
def test_edits_that_do_not_fit(source: Path, tmp_path: Path, edits: list[Edit], fact: str) -> None:
    assert fact in str(refused(source, tmp_path / "out", *edits))


def test_a_config_to_set_and_none_there(tmp_path: Path) -> None:
    source = write(tmp_path / "source", WEIGHTS)
    assert "there is no config.json" in str(refused(source, tmp_path / "out", set_config(1, "a")))


def halves(*values: float) -> dict[str, Any]:
    return {"w": np.array(values, np.float16), "other": np.ones(3, np.float32)}


@pytest.mark.parametrize(
    ("edit", "facts"),
    [
        (scale("w", 3), ("Scale by rescale-conv exact", "2 of 6 elements", "element 4, -60000.0", "becomes -inf")),
        (scale("w", -5, "eps"), ("eps", "1 of 6 elements", "element 1, 0.000305414")),
        (scale("w", 3, "rounded"), ("2 of 6 elements become inf, NaN or zero",)),
        (cast("w", "BF16", "exact"), ("Cast by cast-dtype exact", "3 of 6 elements", "element 4, -60000.0")),
        (clamp("w", 100.0, "rounded"), ("2 of 6 elements", "are replaced", "element 4, -60000.0", "-100.0")),
    ],
)
def test_an_edit_that_loses_more_than_it_says(tmp_path: Path, edit: Edit, facts: tuple[str, ...]) -> None:
    source = write(tmp_path / "source", halves(1, 0.00030517578125 * (1 + 2**-10), 9000, 0, -60000, 2))
    message = str(refused(source, tmp_path / "out", edit))
    assert "model.safetensors: tensor 'w'" in message
    assert [fact for fact in facts if fact not in message] == [], message


@pytest.mark.parametrize(
    "edit",
    [scale("w", 3, "lossy"), scale("w", -5, "rounded"), cast("w", "BF16"), clamp("w", 100.0), zero("w", "exact")],
)
def test_an_edit_that_keeps_its_word(tmp_path: Path, edit: Edit) -> None:
    source = write(tmp_path / "source", halves(1, 0.00030517578125, 9000, 0, -60000, 2))
    mend(source, tmp_path / "out", edit)
    assert (tmp_path / "out").exists()


def test_a_cast_that_makes_an_inf(tmp_path: Path) -> None:
    source = write(tmp_path / "source", {"w": np.array([1, 70000, 1e-9], np.float32)})
    message = str(refused(source, tmp_path / "out", cast("w", "F16")))
    assert "2 of 3 elements become inf, NaN or zero" in message
    assert "element 1, 70000.0, which becomes inf" in message
    assert "--unsafe" in message


def test_incomplete_and_ambiguous_sources(source: Path, tmp_path: Path) -> None:
    shard = source / "model-00002-of-00002.safetensors"
    whole = shard.read_bytes()
    nothing = Plan("0", "x", Fingerprint((), {}), ())

    def error() -> str:
        with pytest.raises(CheckpointError) as caught:
            apply(nothing, open_checkpoint(source), tmp_path / "out")
        assert not (tmp_path / "out").exists()
        return str(caught.value)

    shard.write_bytes(whole[:-1])
    assert "cannot be repaired as it is" in error()
    shard.unlink()
    assert "cannot be read" in error()
    shard.write_bytes(whole)
    index = source / "model.safetensors.index.json"
    index.rename(source / "x")
    shutil.copy(shard, source / "model-00001-of-00002.safetensors")
    assert "stands in two files" in error()
