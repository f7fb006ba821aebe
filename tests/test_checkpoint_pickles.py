"""Pickles are refused and never loaded: here each of them would leave a file if it were."""

from __future__ import annotations

import io
import os
import pickle
import struct
import zipfile
from pathlib import Path

import pytest
from command import call

NAMES = ("pytorch_model.bin", "m.pt", "m.pth", "m.ckpt", "m.pkl")
DISGUISES = ("model.safetensors", "model.gguf", "model.safetensors.index.json")
ADVICE = "torch.load(..., weights_only=True)"


class Trap:
    """What a stranger may pickle: unpickling it runs a command."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch '{self.mark}'",)


def plain(mark: Path) -> bytes:
    return pickle.dumps(Trap(mark))


def zipped(mark: Path) -> bytes:
    """As torch.save has written since version 1.6."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("archive/data.pkl", plain(mark))
        archive.writestr("archive/data/0", bytes(64))
    return stream.getvalue()


def legacy(mark: Path) -> bytes:
    """As torch.save wrote before: a magic number, then more pickles."""
    return pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2) + plain(mark)


FORMS = {"a pickle": plain, "a zip": zipped, "a pickle of old": legacy}


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    return tmp_path / "the pickle was loaded"


@pytest.mark.parametrize("make", FORMS.values(), ids=FORMS.keys())
def test_the_trap_works(mark: Path, make: object) -> None:
    assert callable(make)
    raw = make(mark)
    at = raw.index(pickle.dumps(Trap(mark)))
    pickle.loads(raw[at:])  # noqa: S301  # the trap itself
    assert mark.exists()


@pytest.mark.parametrize("make", FORMS.values(), ids=FORMS.keys())
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("verb", ["scan", "repair"])
def test_files_by_their_name(tmp_path: Path, mark: Path, name: str, make: object, verb: str) -> None:
    assert callable(make)
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / name).write_bytes(make(mark))
    for source in (folder / name, folder):
        done = call(verb, source, *(("--output", tmp_path / "out") if verb == "repair" else ()))
        assert done.code == 2
        assert ADVICE in done.err.replace("\n", " ")
        assert "Traceback" not in done.err
    assert not mark.exists()


def test_an_index_of_pickles(tmp_path: Path) -> None:
    index = tmp_path / "pytorch_model.bin.index.json"
    index.write_text('{"weight_map": {"w": "pytorch_model-00001-of-00001.bin"}}')
    for source in (index, tmp_path):
        done = call("scan", source)
        assert (done.code, ADVICE in done.err.replace("\n", " ")) == (2, True)


def test_a_safetensors_index_that_names_a_pickle(tmp_path: Path, mark: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"w": "pytorch_model.bin"}}')
    (tmp_path / "pytorch_model.bin").write_bytes(zipped(mark))
    done = call("scan", tmp_path)
    assert (done.code, "GD001" in done.out, mark.exists()) == (2, True, False)


@pytest.mark.parametrize("make", FORMS.values(), ids=FORMS.keys())
@pytest.mark.parametrize("name", DISGUISES)
def test_pickles_under_another_name(tmp_path: Path, mark: Path, name: str, make: object) -> None:
    assert callable(make)
    (tmp_path / name).write_bytes(make(mark))
    done = call("scan", tmp_path / name, "--json", "-")
    said = f"{done.err} {done.out}".replace("\n", " ")
    assert (done.code, mark.exists()) == (2, False)
    assert "Traceback" not in said
    assert "Pickles can run code" in " ".join(said.split())


def test_a_pickle_in_the_place_of_a_tensor(tmp_path: Path, mark: Path) -> None:
    raw = plain(mark)
    header = f'{{"w":{{"dtype":"U8","shape":[{len(raw)}],"data_offsets":[0,{len(raw)}]}}}}'.encode()
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + raw)
    done = call("scan", tmp_path / "model.safetensors")
    assert (done.code, mark.exists()) == (0, False)
