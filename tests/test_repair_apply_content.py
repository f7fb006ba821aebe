"""What the output holds: every byte against a model of the plan."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from applying import (
    add,
    bits_of,
    cast,
    clamp,
    drop,
    mend,
    modelled,
    plan_for,
    rename,
    same_values,
    scale,
    set_config,
    tree,
    values_of,
    zero,
)
from checkpoint_bytes import framed, official
from checkpoints import WRITER_NAMES, Raw, bfloat16, write
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import FLOATS

from gemma_doctor import __version__
from gemma_doctor.checkpoint import open_checkpoint
from gemma_doctor.checkpoint.dtypes import BITS
from gemma_doctor.plans import Cast, Clamp, Edit, Plan, Scale, ZeroNonfinite
from gemma_doctor.repair.applying import streams
from gemma_doctor.repair.applying.apply import apply
from gemma_doctor.repair.applying.following import Follower, following
from gemma_doctor.repair.applying.outfiles import BLOCK_BYTES
from gemma_doctor.repair.documents import plan_document

CONFIG: dict[str, Any] = {"model_type": "toy", "dtype": "bfloat16", "text_config": {"eps": 1e-06}}
WEIGHTS = {f"w{i}": bfloat16(np.arange(12, dtype=np.float32).reshape(3, 4) + i + 1) for i in range(6)}


def read(folder: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Every tensor of a folder, as the official parser reads it."""
    found: dict[str, tuple[str, tuple[int, ...], bytes]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        content = official(path.read_bytes())
        assert content is not None
        found |= content
    return found


NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=6).filter(lambda name: name != "__metadata__")


@st.composite
def raws(draw: st.DrawFn) -> Raw:
    dtype = draw(st.sampled_from(sorted(WRITER_NAMES)))
    shape = tuple(draw(st.lists(st.integers(0, 4), max_size=3)))
    size = int(np.prod(shape, dtype=int)) * BITS[dtype] // 8
    return Raw(dtype, shape, draw(st.binary(min_size=size, max_size=size)))


@st.composite
def edits_of(draw: st.DrawFn, tensors: dict[str, Raw]) -> tuple[list[Edit], dict[str, tuple[str, list[Edit]]]]:
    """Edits that fit, and for each name of the output where its tensor comes from and what changes it."""
    origin: dict[str, tuple[str, list[Edit]]] = {name: (name, []) for name in tensors}
    dtypes = {name: raw.dtype for name, raw in tensors.items()}
    edits: list[Edit] = []
    for _ in range(draw(st.integers(0, 6))):
        if not origin:
            break
        name = draw(st.sampled_from(sorted(origin)))
        kind = draw(st.sampled_from(["scale", "cast", "clamp", "zero", "drop", "rename"]))
        if kind == "drop":
            edits.append(drop(name))
            del origin[name], dtypes[name]
        elif kind == "rename":
            to = draw(NAMES.filter(lambda to: to not in origin))
            edits.append(rename(name, to))
            origin[to], dtypes[to] = origin.pop(name), dtypes.pop(name)
        elif dtypes[name] in FLOATS:
            change = draw(changes(name, kind, dtypes[name]))
            edits.append(change)
            origin[name][1].append(change)
            dtypes[name] = change.dtype if isinstance(change, Cast) else dtypes[name]
    return edits, origin


@st.composite
def changes(draw: st.DrawFn, name: str, kind: str, dtype: str) -> Edit:
    if kind == "cast" and dtype in ("F64", "F32", "F16", "BF16"):
        return cast(name, draw(st.sampled_from(["F64", "F32", "F16", "BF16"])), "lossy")
    if kind == "clamp":
        return clamp(name, draw(st.sampled_from([0.0, 0.1, 2.0, 65504.0])))
    if kind == "zero":
        return zero(name)
    return scale(name, draw(st.integers(-40, 40)), "lossy")


@st.composite
def cases(draw: st.DrawFn) -> tuple[dict[str, Raw], int, list[Edit], dict[str, tuple[str, list[Edit]]]]:
    tensors = draw(st.dictionaries(NAMES, raws(), min_size=1, max_size=6))
    edits, origin = draw(edits_of(tensors))
    return tensors, draw(st.integers(1, 3)), edits, origin


@settings(max_examples=60)
@given(cases())
def test_the_output_is_what_a_model_of_the_plan_says(
    case: tuple[dict[str, Raw], int, list[Edit], dict[str, tuple[str, list[Edit]]]],
) -> None:
    tensors, shards, edits, origin = case
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        source = write(root / "source", tensors, CONFIG, shards=shards)
        before = tree(source)
        checkpoint = open_checkpoint(source)
        plan = plan_reading_all(source, edits)
        applied = apply(plan, checkpoint, root / "one")
        apply(plan, checkpoint, root / "two")
        assert tree(source) == before
        assert tree(root / "one") == tree(root / "two")
        assert {file.name: file.sha256 for file in applied.files}.items() <= tree(root / "one").items()
        found = read(root / "one")
        assert found.keys() == origin.keys()
        for name, (old, made) in origin.items():
            dtype, shape, data = found[name]
            raw = tensors[old]
            assert shape == raw.shape
            if not made:
                assert (dtype, data) == (raw.dtype, raw.data)
                continue
            wanted, wanted_dtype = modelled(
                raw, *(e for e in made if isinstance(e, Scale | Cast | Clamp | ZeroNonfinite))
            )
            assert dtype == wanted_dtype
            assert same_values(values_of(bits_of(data, dtype), dtype), wanted)


def plan_reading_all(source: Path, edits: list[Edit]) -> Plan:
    """A plan whose fingerprint holds every tensor: edits here name tensors by their later names."""
    checkpoint = open_checkpoint(source)
    whole = plan_for(checkpoint, *map(zero, checkpoint.tensors))
    return replace(whole, edits=tuple(edits))


@pytest.mark.parametrize("shards", [1, 3])
def test_a_plan_and_its_inverse_restore_every_byte(tmp_path: Path, shards: int) -> None:
    source = write(tmp_path / "source", WEIGHTS, CONFIG, shards=shards)
    mend(
        source,
        tmp_path / "there",
        *(scale("w1", -7), cast("w2", "F32"), rename("w3", "x3"), add("b", "BF16", (3,), "w4")),
        set_config("float32", "dtype"),
    )
    assert tree(tmp_path / "there") != tree(source)
    mend(
        tmp_path / "there",
        tmp_path / "back",
        *(scale("w1", 7), cast("w2", "BF16"), rename("x3", "w3"), drop("b")),
        set_config("bfloat16", "dtype"),
    )
    back = tree(tmp_path / "back")
    del back["gemma-doctor.json"]
    assert back == tree(source)


def test_a_tensor_of_many_chunks(tmp_path: Path) -> None:
    values = np.random.default_rng(0).standard_normal(3_000_001).astype(np.float32)
    raw = bfloat16(values)
    tensors = {"a": Raw("U8", (3,), b"abc"), "w": raw, "big": Raw("I8", (9_000_000,), bytes(9_000_000))}
    source = write(tmp_path / "source", tensors)
    mend(source, tmp_path / "out", scale("w", 3), cast("w", "F32", "exact"))
    dtype, _, data = read(tmp_path / "out")["w"]
    wanted, _ = modelled(raw, scale("w", 3))
    assert dtype == "F32"
    assert np.array_equal(np.frombuffer(data, np.float32), wanted)
    assert read(tmp_path / "out")["big"][2] == bytes(9_000_000)


def test_added_tensors_are_zeros_beside_their_neighbour_and_can_be_changed(tmp_path: Path) -> None:
    source = write(tmp_path / "source", WEIGHTS, shards=2)
    mend(source, tmp_path / "out", add("bias", "F32", (5,), "w4"), scale("bias", 9), cast("bias", "F16", "exact"))
    assert read(tmp_path / "out")["bias"] == ("F16", (5,), bytes(10))
    index = json.loads((tmp_path / "out/model.safetensors.index.json").read_text(encoding="utf-8"))
    assert index["weight_map"]["bias"] == index["weight_map"]["w4"]


def test_a_name_is_free_once_its_tensor_is_gone(tmp_path: Path) -> None:
    source = write(tmp_path / "source", WEIGHTS)
    mend(source, tmp_path / "out", drop("w0"), rename("w1", "w0"), rename("w2", "w1"), add("w2", "F32", (), "w1"))
    found = read(tmp_path / "out")
    assert found["w0"][2] == WEIGHTS["w1"].data
    assert found["w1"][2] == WEIGHTS["w2"].data
    assert found["w2"] == ("F32", (), bytes(4))


def test_the_header_of_a_file_whose_tensors_keep_their_places_is_the_sources(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    header = b'{ "w":{"shape":[2],"dtype":"F16","data_offsets":[0,4]}, "__metadata__":{"z":"1","a":"2"} }   '
    (tmp_path / "source/model.safetensors").write_bytes(framed(header, bytes([0, 60, 0, 64])))
    mend(tmp_path / "source", tmp_path / "out", scale("w", 1))
    assert (tmp_path / "out/model.safetensors").read_bytes() == framed(header, bytes([0, 64, 0, 68]))


def test_metadata_is_kept_when_a_header_changes(tmp_path: Path) -> None:
    for metadata in ({"format": "pt", "é": "ü"}, {}):
        source = write(tmp_path / "source", WEIGHTS, metadata=metadata)
        mend(source, tmp_path / "out", drop("w1"), force=True)
        assert open_checkpoint(tmp_path / "out").files[0].metadata == (metadata or None)


def index_of(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "model.safetensors.index.json").read_text(encoding="utf-8"))
    return content


def test_the_index_follows_names_and_sizes_and_keeps_the_rest(tmp_path: Path) -> None:
    source = write(tmp_path / "source", WEIGHTS, shards=2)
    path = source / "model.safetensors.index.json"
    old = index_of(source)
    old["metadata"] |= {"total_parameters": 100, "made_by": "é"}
    old["extra"] = [1, 2.5]
    old["weight_map"] = dict(sorted(old["weight_map"].items(), reverse=True))
    path.write_text(json.dumps(old, indent=4, ensure_ascii=False), encoding="utf-8")
    mend(source, tmp_path / "out", drop("w1"), rename("w3", "v3"), cast("w4", "F32"), add("b", "F32", (2,), "w0"))
    new = index_of(tmp_path / "out")
    first, second = old["weight_map"]["w0"], old["weight_map"]["w5"]
    assert list(new["weight_map"].items()) == [
        *(("w5", second), ("w4", second), ("v3", second), ("w2", first), ("w0", first), ("b", first)),
    ]
    assert new["metadata"] == {"total_size": 24 * 4 + 48 + 8, "total_parameters": 100 - 12 + 2, "made_by": "é"}
    assert new["extra"] == [1, 2.5]
    text = (tmp_path / "out/model.safetensors.index.json").read_text(encoding="utf-8")
    assert text.startswith('{\n    "')
    assert "é" in text


def test_an_index_that_still_fits_is_copied(tmp_path: Path) -> None:
    source = write(tmp_path / "source", WEIGHTS, shards=2)
    path = source / "model.safetensors.index.json"
    path.write_text(json.dumps(index_of(source), separators=(" , ", " : ")), encoding="utf-8")
    mend(source, tmp_path / "out", scale("w1", 1))
    assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes()


def test_a_wrong_total_size_is_set_right(tmp_path: Path) -> None:
    source = write(tmp_path / "source", WEIGHTS, shards=2)
    path = source / "model.safetensors.index.json"
    path.write_text(path.read_text(encoding="utf-8").replace("144", "145"), encoding="utf-8")
    assert open_checkpoint(source).faults
    mend(source, tmp_path / "out", scale("w1", 1))
    assert not open_checkpoint(tmp_path / "out").faults


def test_a_file_that_loses_all_its_tensors_is_left_out_of_a_sharded_checkpoint(tmp_path: Path) -> None:
    source = write(tmp_path / "source", WEIGHTS, shards=3)
    applied = mend(source, tmp_path / "out", drop("w0"), drop("w1"))
    assert not (tmp_path / "out/model-00001-of-00003.safetensors").exists()
    assert "model-00001-of-00003.safetensors: left out: none of its tensors is left" in applied.remarks
    alone = write(tmp_path / "alone", {"w0": WEIGHTS["w0"]})
    mend(alone, tmp_path / "empty", drop("w0"))
    assert read(tmp_path / "empty") == {}


def test_the_config_changes_only_where_it_must(tmp_path: Path) -> None:
    source = write(tmp_path / "source", WEIGHTS)
    text = (
        '{\n  "b": 1e-6, "dtype":"bfloat16",\n  "é": "\\u00e9",\n  "text_config": {\n    "x": [1, {"dtype": 2}]\n  }, '
        '"e": {}\n}\n\n'
    )
    (source / "config.json").write_text(text, encoding="utf-8")
    edits = [
        set_config("float16", "dtype"),
        set_config(None, "text_config", "dtype"),
        set_config(2.5, "e", "n"),
        set_config(7, "new"),
    ]
    mend(source, tmp_path / "out", *edits)
    assert (tmp_path / "out/config.json").read_text(encoding="utf-8") == (
        '{\n  "b": 1e-6, "dtype":"float16",\n  "é": "\\u00e9",\n  "text_config": {\n    "x": [1, {"dtype": 2}],'
        '\n    "dtype": null\n  }, "e": {"n": 2.5},\n  "new": 7\n}\n\n'
    )


def snapshot(tmp_path: Path) -> Path:
    """A checkpoint as the Hub's cache has it: every file a link to a blob."""
    write(tmp_path / "blobs", WEIGHTS, CONFIG, shards=2)
    source = tmp_path / "snapshots/abc"
    source.mkdir(parents=True)
    for blob in (tmp_path / "blobs").iterdir():
        (source / blob.name).symlink_to(os.path.relpath(blob, source))
    return source


def test_side_files_come_along_and_links_become_files(tmp_path: Path) -> None:
    source = snapshot(tmp_path)
    (source / "onnx/deep").mkdir(parents=True)
    (source / "onnx/deep/model.bin").write_bytes(b"x" * 5_000_000)
    (source / "tokenizer.json").write_text("{}", encoding="utf-8")
    (source / "empty.txt").touch()
    (source / ".hidden").write_text("h", encoding="utf-8")
    (source / "pytorch_model.bin").write_bytes(b"pickle")
    mend(source, tmp_path / "out", scale("w1", 1))
    kept = ("onnx/deep/model.bin", "tokenizer.json", "empty.txt", ".hidden", "pytorch_model.bin", "config.json")
    ours, theirs = tree(tmp_path / "out"), tree(source)
    assert {name: ours[name] for name in kept} == {name: theirs[name] for name in kept}
    assert ours.keys() == theirs.keys() | {"gemma-doctor.json"}
    assert not any(path.is_symlink() for path in (tmp_path / "out").rglob("*"))


def test_empty_folders_and_permissions_are_kept(tmp_path: Path) -> None:
    source = write(tmp_path / "source", WEIGHTS, CONFIG)
    (source / "assets/none").mkdir(parents=True)
    (source / "run.sh").touch(0o755)
    (source / "config.json").chmod(0o600)
    (source / "model.safetensors").chmod(0o440)
    mend(source, tmp_path / "out", scale("w1", 1), set_config("x", "dtype"))
    assert (tmp_path / "out/assets/none").is_dir()
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "out").iterdir() if path.is_file()}
    umask = os.umask(0)
    os.umask(umask)
    wanted = {"run.sh": 0o755, "config.json": 0o600, "model.safetensors": 0o440, "gemma-doctor.json": 0o666}
    assert modes == {name: mode & ~umask for name, mode in wanted.items()}


@pytest.mark.parametrize("large", [1000, 1 << 30])
def test_many_blocks_checked_beside_or_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, large: int) -> None:
    names = [f"{number:04}{'n' * 120}" for number in range(2_000)]  # a header of two blocks
    weights = {name: bfloat16(np.full((1,), number)) for number, name in enumerate(names)}
    weights |= {"odd": bfloat16(np.random.default_rng(0).standard_normal(3 * BLOCK_BYTES // 2 + 7)), **WEIGHTS}
    source = write(tmp_path / "source", weights, {"dtype": "x", "notes": "y" * 2 * BLOCK_BYTES})
    monkeypatch.setattr(streams, "_LARGE", large)
    beside: set[bool] = set()

    def seen(check: Callable[[Any], None], *, aside: bool) -> AbstractContextManager[Follower[Any]]:
        beside.add(aside)
        return following(check, aside=aside)

    monkeypatch.setattr(streams, "following", seen)
    mend(source, tmp_path / "out", scale("odd", 1), scale("odd", -1), set_config("z", "dtype"))
    record = json.loads((tmp_path / "out/gemma-doctor.json").read_text(encoding="utf-8"))
    made = tree(tmp_path / "out")
    assert {file["name"]: file["sha256"] for file in record["files"]} == {
        name: made[name] for name in made if name != "gemma-doctor.json"
    }
    assert made["model.safetensors"] == tree(source)["model.safetensors"]
    assert (True in beside) is (large == 1000)


def test_what_is_not_copied_is_named(tmp_path: Path) -> None:
    source = write(tmp_path / "source", WEIGHTS, CONFIG)
    os.mkfifo(source / "pipe")
    (source / "broken").symlink_to("nowhere")
    (source / "up").symlink_to("..", target_is_directory=True)
    (source / ".cache").mkdir()
    (source / ".cache/x").touch()
    (source / "gemma-doctor.json").write_text("{}", encoding="utf-8")
    applied = mend(source, tmp_path / "out", scale("w1", 1))
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        *("config.json", "gemma-doctor.json", "model.safetensors")
    ]
    assert [remark.split(":")[0] for remark in applied.remarks] == [
        *(".cache", "broken", "gemma-doctor.json", "pipe", "up")
    ]


def test_a_single_file_as_source_brings_only_its_config(tmp_path: Path) -> None:
    source = write(tmp_path / "source", WEIGHTS, CONFIG)
    (source / "holiday.jpg").touch()
    mend(source / "model.safetensors", tmp_path / "out", scale("w1", 1))
    assert sorted(tree(tmp_path / "out")) == ["config.json", "gemma-doctor.json", "model.safetensors"]
    inside = source / "mended"
    mend(source / "model.safetensors", inside, scale("w1", 1), set_config("x", "dtype"))
    assert json.loads((inside / "config.json").read_text(encoding="utf-8"))["dtype"] == "x"


def test_an_index_as_source(tmp_path: Path) -> None:
    source = write(tmp_path / "source", WEIGHTS, CONFIG, shards=2)
    mend(source / "model.safetensors.index.json", tmp_path / "out", rename("w1", "v1"))
    assert "v1" in open_checkpoint(tmp_path / "out").tensors


def test_the_record_names_tool_plan_and_every_file(tmp_path: Path) -> None:
    source = write(tmp_path / "source", WEIGHTS, CONFIG, shards=2)
    checkpoint = open_checkpoint(source)
    plan = plan_for(checkpoint, scale("w1", 1))
    applied = apply(plan, checkpoint, tmp_path / "out")
    record = json.loads((tmp_path / "out/gemma-doctor.json").read_text(encoding="utf-8"))
    assert record["tool"] == {"name": "gemma-doctor", "version": __version__}
    assert record["plan"] == json.loads(json.dumps(plan_document(plan)))
    files = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir() if path.name != "gemma-doctor.json"}
    assert {file["name"]: (file["size"], file["sha256"]) for file in record["files"]} == {
        name: (len(data), hashlib.sha256(data).hexdigest()) for name, data in files.items()
    }
    assert applied.bytes_written == sum(path.stat().st_size for path in (tmp_path / "out").iterdir())
    assert (applied.bytes_linked, applied.output, applied.removed_leftovers, applied.remarks) == (
        0,
        tmp_path / "out",
        (),
        (),
    )


def test_linking_shares_untouched_files_and_changes_no_byte(tmp_path: Path) -> None:
    source = snapshot(tmp_path)
    plain = mend(source, tmp_path / "plain", scale("w1", 1))
    applied = mend(source, tmp_path / "out", scale("w1", 1), link=True)
    untouched = "model-00002-of-00002.safetensors"
    assert (tmp_path / "out" / untouched).samefile(source / untouched)
    assert not (tmp_path / "out" / untouched).is_symlink()
    assert not (tmp_path / "out/config.json").samefile(source / "config.json")
    assert tree(tmp_path / "out") == tree(tmp_path / "plain")
    size = (source / untouched).stat().st_size
    assert (applied.bytes_linked, applied.bytes_written) == (size, plain.bytes_written - size)


def test_where_links_cannot_be_made_files_are_copied_and_that_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    source = write(tmp_path / "source", WEIGHTS, shards=2)
    applied = mend(source, tmp_path / "out", scale("w1", 1), link=True)
    assert applied.bytes_linked == 0
    assert [remark for remark in applied.remarks if "copied, not linked" in remark]
    assert read(tmp_path / "out")["w5"][2] == WEIGHTS["w5"].data


def test_links_across_disks_are_not_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write(tmp_path / "source", WEIGHTS, shards=2)
    whole = Path.stat

    def elsewhere(path: Path, *, follow_symlinks: bool = True) -> os.stat_result:
        state = whole(path, follow_symlinks=follow_symlinks)
        return (
            os.stat_result((*state[:2], state.st_dev + (path == tmp_path), *state[3:])) if path == tmp_path else state
        )

    monkeypatch.setattr(Path, "stat", elsewhere)
    monkeypatch.setattr(os, "link", lambda *_: pytest.fail("a link was tried"))
    applied = mend(source, tmp_path / "out", scale("w1", 1), link=True)
    assert len([remark for remark in applied.remarks if "copied, not linked" in remark]) == 1


class Told:
    """A progress that remembers."""

    def __init__(self) -> None:
        self.total, self.done = 0, 0

    def start(self, total_bytes: int) -> None:
        """Remembers the total."""
        self.total = total_bytes

    def advance(self, nbytes: int) -> None:
        """Adds up."""
        self.done += nbytes


@pytest.mark.parametrize("link", [False, True])
def test_progress_ends_at_the_total(tmp_path: Path, *, link: bool) -> None:
    source = write(tmp_path / "source", WEIGHTS, CONFIG, shards=3)
    checkpoint, told = open_checkpoint(source), Told()
    applied = apply(plan_for(checkpoint, cast("w1", "F32")), checkpoint, tmp_path / "out", link=link, progress=told)
    assert told.done == told.total == sum(file.size for file in applied.files)


def test_an_empty_plan_is_a_copy(tmp_path: Path) -> None:
    source = write(tmp_path / "source", WEIGHTS, CONFIG, shards=2)
    mend(source, tmp_path / "some/where/out")
    copied = tree(tmp_path / "some/where/out")
    del copied["gemma-doctor.json"]
    assert copied == tree(source)
    shutil.rmtree(tmp_path / "some")
