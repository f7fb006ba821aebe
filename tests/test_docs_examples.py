"""Every block of code in the documents is run, as far as it can be without a network, a GPU or an afternoon."""

from __future__ import annotations

import itertools
import os
import re
import shlex
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import ggufs
import pytest
import torchvision_operators  # noqa: F401  # before whatever imports torchvision
import yaml
from command import call
from gguf.constants import GGUFValueType

import gemma_doctor
from gemma_doctor import demo, doctor, kernels
from gemma_doctor.checkpoint import is_repository

ROOT = Path(__file__).parents[1]
HERE = ("README.md", "docs/getting-started.md", "docs/recipes.md", "docs/ci.md", "docs/guard.md", "docs/gguf.md")
ELSEWHERE = ("docs/hub.md", "docs/scale.md")
"""Their Python needs a Hub or a cluster: it is held against the signature."""

DOCUMENTS = (*HERE, *ELSEWHERE)
FENCE = re.compile(r"^```(?P<language>\w+)\n(?P<content>.*?)^```$", re.DOTALL | re.MULTILINE)

OTHERS = ("pip ", "python3 -m venv", "git ", "hf ", "dask ")
"""Commands that are not this project's: they are not run here."""


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block.

    Attributes:
        where: Document and line.
        language: What stands behind the fence.
        content: What it holds.
    """

    where: str
    language: str
    content: str


def blocks(*languages: str) -> list[Block]:
    """The blocks of some languages in all documents."""
    found = []
    for name in DOCUMENTS:
        text = (ROOT / name).read_text(encoding="utf-8")
        for match in FENCE.finditer(text):
            if match["language"] in languages:
                line = text[: match.start()].count("\n") + 1
                found.append(Block(f"{name}:{line}", match["language"], match["content"]))
    return found


def commands(block: Block) -> Iterator[str]:
    """The commands of a block; what a console printed is none."""
    for line in block.content.splitlines():
        if block.language == "console" and line.startswith("$ "):
            yield line.removeprefix("$ ").partition(" # ")[0].strip()
        elif block.language == "sh" and line.strip():
            yield line.strip()


@pytest.fixture(scope="module")
def sick(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo") / "sick"
    demo.build(folder)
    call("scan", folder, "--json", folder.parent / "report.json", "--quiet")
    return folder


@pytest.fixture
def place(sick: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that holds what the documents speak of."""
    monkeypatch.chdir(tmp_path)
    ggufs.gemma3n(tmp_path / "model.gguf", (GGUFValueType.FLOAT32, 10.0))
    for name in ("sick", "model", "path/to/checkpoint", "demo/sick", "models/one", "models/two"):
        shutil.copytree(sick, tmp_path / name, copy_function=os.link)
    for name in ("before.json", "after.json"):
        shutil.copy(sick.parent / "report.json", name)
    return tmp_path


@pytest.mark.parametrize("name", DOCUMENTS)
def test_the_commands_of_a_document_do_what_they_are_there_for(name: str, place: Path) -> None:
    ran = 0
    for block in blocks("sh", "console"):
        if not block.where.startswith(f"{name}:"):
            continue
        for line in commands(block):
            ran += _runs(line, block.where)
    assert ran or name in {"docs/guard.md", "docs/hub.md"}
    assert place.is_dir()


def _runs(line: str, where: str) -> bool:
    """Runs one command of the tool; whether it was one that can be run here."""
    line = line.partition(" || ")[0]  # a shell's own way with exit codes
    if not line.startswith("gemma-doctor "):
        return False
    words = shlex.split(line, comments=True)[1:]
    if words[0] == "verify":
        _check_options(words, where)
        return False
    if words[0] == "demo":
        return False  # its sick half is there; tests/test_cli_demo.py runs all of it
    if len(words) > 1 and (is_repository(words[1]) or "://" in line or "--push" in words):  # tests/test_hub_*.py do
        _check_options(words, where)
        return False
    if words[0] == "repair" and "--calibration" in words:
        _check_options(words, where)
        return False
    _tidy(words)
    words = [
        name for word in words for name in (sorted(map(str, Path().glob(word))) if word.endswith("*/") else [word])
    ]
    done = call(*words)
    assert done.code in {0, 1}, f"{where}: {line}\n{done.err}"
    assert "fault of gemma-doctor" not in done.err
    return True


def _check_options(words: list[str], where: str) -> None:
    """Every option of a command is one that it has."""
    help_text = call(words[0], "--help").out
    for option in (word for word in words if word.startswith("--")):
        assert f"{option} " in help_text or f"{option}\n" in help_text, f"{where}: {words[0]} has no {option}"


def _tidy(words: list[str]) -> None:
    """Make room for an output that an earlier block of the same document has written."""
    for option, target in itertools.pairwise(words):
        if option == "--output" and words[0] == "repair":
            shutil.rmtree(target, ignore_errors=True)


def test_the_commands_of_others_are_few_and_known() -> None:
    for block in blocks("console"):
        for line in commands(block):
            assert line.startswith(("gemma-doctor ", *OTHERS)), f"{block.where}: {line}"


@pytest.mark.parametrize("block", blocks("python"), ids=lambda block: block.where)
def test_python_runs(block: Block, place: Path) -> None:
    guard, unguard, verify = mock.Mock(), mock.Mock(), mock.Mock()
    stand_ins: dict[str, Any] = {
        name: mock.MagicMock() for name in ("model", "trainer", "Trainer", "arguments", "data")
    }
    scan = mock.create_autospec(doctor.scan) if block.where.startswith(ELSEWHERE) else doctor.scan
    stand_ins |= {"gemma_doctor": gemma_doctor, "ProcessPoolExecutor": mock.MagicMock()}
    with (
        mock.patch("gemma_doctor.doctor.scan", scan),
        mock.patch.dict(vars(kernels), {"guard": guard, "unguard": unguard}),  # these need a model of gigabytes
        mock.patch("gemma_doctor.doctor.verify", verify),
    ):
        exec(compile(block.content, block.where, "exec"), dict[str, Any](stand_ins))  # noqa: S102  # our own documents
    assert verify.called == ("gemma_doctor.verify(" in block.content)
    assert guard.called == (".guard(" in block.content)
    assert (place / "mended").is_dir() == ('output="mended"' in block.content)


@pytest.mark.parametrize("block", blocks("yaml"), ids=lambda block: block.where)
def test_yaml_is_yaml(block: Block) -> None:
    assert isinstance(yaml.safe_load(block.content), dict)
