"""Which files SOURCE stands for, and what is said where it stands for none."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import pytest
from checkpoint_bytes import write_file

from gemma_doctor.checkpoint import open_checkpoint
from gemma_doctor.errors import SourceNotFoundError, UsageError


def write_index(path: Path, weight_map: dict[str, str], total_size: object = None) -> Path:
    metadata = {} if total_size is None else {"total_size": total_size}
    path.write_text(json.dumps({"metadata": metadata, "weight_map": weight_map}))
    return path


def files(source: Path | str) -> list[str]:
    return [info.name for info in open_checkpoint(source).files]


def touch(folder: Path, names: Iterable[str]) -> None:
    for name in names:
        write_file(folder / name, name)


def test_a_file_is_taken_alone_with_the_config_beside_it(tmp_path: Path) -> None:
    touch(tmp_path, ["one.safetensors", "two.safetensors"])
    (tmp_path / "config.json").write_text('{"model_type": "x"}')
    checkpoint = open_checkpoint(str(tmp_path / "one.safetensors"))
    assert (checkpoint.uri, checkpoint.root) == (str(tmp_path / "one.safetensors"), tmp_path)
    assert (checkpoint.format, checkpoint.index, checkpoint.partial) == ("safetensors", None, False)
    assert (list(checkpoint.tensors), checkpoint.config) == (["one.safetensors"], {"model_type": "x"})
    assert checkpoint.faults == ()


def test_a_file_of_any_other_name_is_read_by_its_content(tmp_path: Path) -> None:
    assert files(write_file(tmp_path / "4d7a214614ab2935c943f9e0ff69d22e", "a")) == ["4d7a214614ab2935c943f9e0ff69d22e"]


@pytest.mark.parametrize(
    ("name", "partial"), [("m-00002-of-00003", True), ("m-00001-of-00001", False), ("m-of", False)]
)
def test_one_shard_of_several_is_known_as_a_part(tmp_path: Path, name: str, partial: bool) -> None:  # noqa: FBT001
    checkpoint = open_checkpoint(write_file(tmp_path / f"{name}.safetensors", "a"))
    assert checkpoint.partial == partial
    assert checkpoint.faults == ()


@pytest.mark.parametrize("stem", ["model", "diffusion_pytorch_model"])
def test_in_a_folder_the_single_file_is_taken_alone(tmp_path: Path, stem: str) -> None:
    touch(tmp_path, [f"{stem}.safetensors", f"{stem}.fp16.safetensors", "adapter_model.safetensors", "a.safetensors"])
    assert files(tmp_path) == [f"{stem}.safetensors"]


def test_an_index_decides_which_files_are_read(tmp_path: Path) -> None:
    touch(tmp_path, ["s-1.safetensors", "s-2.safetensors", "consolidated.safetensors"])
    weight_map = {"s-2.safetensors": "s-2.safetensors", "s-1.safetensors": "s-1.safetensors"}
    index = write_index(tmp_path / "model.safetensors.index.json", weight_map, 8)
    for source in (tmp_path, index):
        checkpoint = open_checkpoint(source)
        assert [info.name for info in checkpoint.files] == ["s-1.safetensors", "s-2.safetensors"]
        assert (checkpoint.index, checkpoint.faults, checkpoint.root) == (index.name, (), tmp_path)


@pytest.mark.parametrize(
    "name",
    [
        "diffusion_pytorch_model.safetensors.index.json",
        "consolidated.safetensors.index.json",
        "m.safetensors.index.fp16.json",
    ],
)
def test_an_index_of_another_name_will_do(tmp_path: Path, name: str) -> None:
    touch(tmp_path, ["s.safetensors", "other.safetensors"])
    write_index(tmp_path / name, {"s.safetensors": "s.safetensors"})
    assert files(tmp_path) == files(tmp_path / name) == ["s.safetensors"]


def test_the_models_own_index_wins_over_others(tmp_path: Path) -> None:
    touch(tmp_path, ["s.safetensors"])
    write_index(tmp_path / "consolidated.safetensors.index.json", {"x": "x.safetensors"})
    write_index(tmp_path / "model.safetensors.index.json", {"s.safetensors": "s.safetensors"})
    assert files(tmp_path) == ["s.safetensors"]


def test_an_index_that_names_the_single_file_is_used(tmp_path: Path) -> None:
    write_file(tmp_path / "model.safetensors", "a")
    write_index(tmp_path / "model.safetensors.index.json", {"a": "model.safetensors"}, 4)
    checkpoint = open_checkpoint(tmp_path)
    assert (checkpoint.index, checkpoint.faults) == ("model.safetensors.index.json", ())


def test_a_single_file_beside_an_index_of_others_is_what_transformers_loads(tmp_path: Path) -> None:
    touch(tmp_path, ["model.safetensors", "s.safetensors"])
    write_index(tmp_path / "model.safetensors.index.json", {"s.safetensors": "s.safetensors"})
    checkpoint = open_checkpoint(tmp_path)
    assert [info.name for info in checkpoint.files] == ["model.safetensors"]
    (fault,) = checkpoint.faults
    assert (fault.kind, fault.file) == ("index-mismatch", "model.safetensors.index.json")
    assert "does not name model.safetensors" in fault.message


def test_numbered_shards_need_no_index(tmp_path: Path) -> None:
    touch(tmp_path, ["m-00002-of-00002.safetensors", "m-00001-of-00002.safetensors", "adapter_model.safetensors"])
    checkpoint = open_checkpoint(tmp_path)
    assert list(checkpoint.tensors) == ["m-00001-of-00002.safetensors", "m-00002-of-00002.safetensors"]
    assert (checkpoint.faults, checkpoint.partial) == ((), False)


@pytest.mark.parametrize(
    ("present", "missing", "here"),
    [([1, 3], 2, 2), ([2, 3], 1, 2), ([1, 2], 3, 2), ([0, 1], 2, 2), ([3], 1, 1)],
)
def test_a_gap_between_numbered_shards_is_a_fault(tmp_path: Path, present: list[int], missing: int, here: int) -> None:
    touch(tmp_path, [f"m-{n:05}-of-00003.safetensors" for n in present])
    (fault,) = open_checkpoint(tmp_path).faults
    assert (fault.kind, fault.file) == ("index-mismatch", f"m-{missing:05}-of-00003.safetensors")
    assert fault.evidence == {"present": here, "shards": 3}


def test_shards_counted_from_zero_are_complete(tmp_path: Path) -> None:
    touch(tmp_path, ["m-00000-of-00002.safetensors", "m-00001-of-00002.safetensors"])
    assert open_checkpoint(tmp_path).faults == ()


def test_a_billion_missing_shards_cost_nothing(tmp_path: Path) -> None:
    touch(tmp_path, ["m-999999998-of-999999999.safetensors"])
    (fault,) = open_checkpoint(tmp_path).faults
    assert fault.file == "m-000000001-of-999999999.safetensors"


def test_one_file_of_any_name_is_the_model(tmp_path: Path) -> None:
    touch(tmp_path, ["a.safetensors", ".hidden.safetensors", "._b.safetensors"])
    (tmp_path / "folder.safetensors").mkdir()
    assert files(tmp_path) == ["a.safetensors"]


@pytest.mark.parametrize(
    ("names", "complaint"),
    [
        (["b", "a"], "2 files, a.safetensors, b.safetensors, and no index"),
        (["adapter_model", "b", "a", "consolidated"], "2 files, a.safetensors, b.safetensors, and no index"),
        (["consolidated", "adapter_model"], "2 files, adapter_model.safetensors, consolidated.safetensors"),
        ([f"{stem}-0000{n}-of-00002" for stem in "ba" for n in (1, 2)], "shards of several models, a-00001-of-00002"),
        (["m-1-of-2", "m-2-of-2", "m-1-of-1"], "shards of several models, m-1-of-1.safetensors, m-1-of-2.safetensors"),
        (["a\nb", "c"], r"'a\nb.safetensors', c.safetensors"),
    ],
)
def test_two_models_are_never_taken_for_one(tmp_path: Path, names: list[str], complaint: str) -> None:
    touch(tmp_path, [f"{name}.safetensors" for name in names])
    with pytest.raises(SourceNotFoundError) as caught:
        open_checkpoint(tmp_path)
    assert complaint in str(caught.value)


@pytest.mark.parametrize(
    ("model", "beside"),
    [
        (["model"], ["adapter_model", "consolidated", "model.fp16", "other"]),
        (["m-1-of-2", "m-2-of-2"], ["adapter_model", "consolidated-1-of-1", "other"]),
        (["any"], ["adapter_model", "consolidated"]),
        (["adapter_model"], []),
    ],
)
def test_weights_beside_the_model_are_known_and_not_read(tmp_path: Path, model: list[str], beside: list[str]) -> None:
    touch(tmp_path, [f"{name}.safetensors" for name in (*model, *beside)])
    for other in ("checkpoint-20/model.safetensors", "empty/config.json", ".cache/a.safetensors"):
        (tmp_path / other).parent.mkdir()
        touch(tmp_path, [other])
    checkpoint = open_checkpoint(tmp_path)
    assert [info.name for info in checkpoint.files] == [f"{name}.safetensors" for name in model]
    assert sorted(checkpoint.tensors) == sorted(f"{name}.safetensors" for name in model)
    assert checkpoint.beside == (*(f"{name}.safetensors" for name in beside), "checkpoint-20/")


def test_what_an_index_names_does_not_lie_beside(tmp_path: Path) -> None:
    (tmp_path / "part").mkdir()
    touch(tmp_path, ["s.safetensors", "part/t.safetensors", "adapter_model.bin", "training_args.bin"])
    names = ("s.safetensors", "part/t.safetensors", "gone.safetensors")
    write_index(tmp_path / "model.safetensors.index.json", {name: name for name in names})
    assert open_checkpoint(tmp_path).beside == ("adapter_model.bin",)


def test_a_file_has_nothing_beside_it(tmp_path: Path) -> None:
    touch(tmp_path, ["a.safetensors", "b.safetensors"])
    assert open_checkpoint(tmp_path / "a.safetensors").beside == ()


def test_an_adapter_is_found(tmp_path: Path) -> None:
    touch(tmp_path, ["adapter_model.safetensors"])
    assert files(tmp_path) == ["adapter_model.safetensors"]


def test_a_relative_source_is_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, ["model.safetensors"])
    monkeypatch.chdir(tmp_path)
    assert files(".") == files("model.safetensors") == ["model.safetensors"]


def test_an_existing_path_wins_over_a_repository_of_that_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "google" / "gemma").mkdir(parents=True)
    touch(tmp_path / "google" / "gemma", ["model.safetensors"])
    monkeypatch.chdir(tmp_path)
    assert files("google/gemma") == ["model.safetensors"]


NOTHING = {
    "google/gemma.safetensors": "no such file or folder",
    "nosuch://google/gemma-3n-E2B-it": "pip install 'gemma-doctor[remote]'",
    "./nowhere": "no such file or folder. Give a .safetensors or .gguf file",
    "a/b/c": "no such file or folder",
    "/no\0where": "no such file or folder",
    "x" * 5000: "no such file or folder",
    "\ud800": "no such file or folder",
    "": "no such file or folder",
}


@pytest.mark.parametrize(("source", "words"), NOTHING.items(), ids=range(len(NOTHING)))
def test_a_source_that_is_not_there(source: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError) as caught:
        open_checkpoint(source)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("pytorch_model.bin", "PyTorch pickles, not safetensors. Pickles can run code and are never loaded"),
        ("m.pt", "PyTorch pickles"),
        ("m.pth", "PyTorch pickles"),
        ("m.ckpt", "PyTorch pickles"),
        ("pytorch_model.bin.index.json", "PyTorch pickles"),
        ("config.json", "JSON, but not named *.safetensors.index.json"),
    ],
)
def test_a_file_of_another_kind_is_not_opened(name: str, words: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"\x80\x04cos\nsystem\n")
    with pytest.raises(SourceNotFoundError) as caught:
        open_checkpoint(tmp_path / name)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ([], "no *.safetensors, no *.safetensors.index.json and no *.gguf in this folder. Check the path."),
        (["pytorch_model.bin", "README.md"], "only PyTorch pickles. Pickles can run code"),
        (["pytorch_model.bin.index.json"], "only PyTorch pickles. Pickles can run code"),
        (["a.gguf", "b.gguf"], "2 GGUF files, each a model of its own: a.gguf, b.gguf. Name one: gemma-doctor scan "),
        (
            ["unet/a.safetensors", "vae/b.safetensors", "text/c.txt"],
            "subfolders, or several to scan: unet, vae.",
        ),
        ([f"{n}/a.safetensors" for n in "abcd"], "subfolders, or several to scan: a, b, c, …."),
        (["a.safetensors.index.json", "b.safetensors.index.json"], "several indexes: a.safetensors.index.json, b."),
    ],
)
def test_a_folder_without_a_checkpoint(names: list[str], words: str, tmp_path: Path) -> None:
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    with pytest.raises(SourceNotFoundError) as caught:
        open_checkpoint(tmp_path)
    assert words in str(caught.value)


def test_a_folder_that_cannot_be_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(SourceNotFoundError, match="the folder cannot be listed: Permission denied"):
        open_checkpoint(tmp_path)
