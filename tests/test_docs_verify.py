"""The five minutes of docs/verify.md: its model is built, its commands are run, and they print what the page shows."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torchvision_operators  # noqa: F401  # before whatever imports torchvision
from command import call

PAGE = Path(__file__).parents[1] / "docs" / "verify.md"
BLOCK = re.compile(r"^```(python|console)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
NUMBER = r"(?<![\w.-])(\d[\d,]*(?:\.\d+)?(?:e[+-]?\d+)?)"
NEAR = 0.75
"""By how much a number may differ, as a share of the larger: other processors round otherwise."""

NOISE = 1e-3
"""Below it, numbers are what rounding leaves."""

CODES = {"verify big --seq-len 32": 1}


def shown() -> Iterator[tuple[str, list[str]]]:
    """Each command of the page, and the lines that stand below it."""
    for language, content in BLOCK.findall(PAGE.read_text(encoding="utf-8")):
        if language == "console":
            for part in content.split("$ gemma-doctor ")[1:]:
                command, *lines = part.splitlines()
                yield command, [line for line in lines if line]


def differs(line: str, printed: str) -> str:
    """What is wrong with a printed line where the page has ``line``; empty where nothing is."""
    cut = ".*?".join(re.sub(NUMBER, "\0", part) for part in line.split("…"))
    pattern = re.escape(cut).replace(re.escape(".*?"), ".*?").replace(re.escape("\0"), NUMBER)
    found = re.fullmatch(pattern, printed)
    if found is None:
        return "other words"
    numbers = (
        tuple(float(text.replace(",", "")) for text in texts) for texts in (re.findall(NUMBER, line), found.groups())
    )
    apart = [
        (one, other)
        for one, other in zip(*numbers, strict=True)
        if not math.isclose(one, other, rel_tol=NEAR, abs_tol=NOISE)
    ]
    return f"numbers {apart}" if apart else ""


def test_the_page_shows_what_is_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    source, _of_gguf = (
        content for language, content in BLOCK.findall(PAGE.read_text(encoding="utf-8")) if language == "python"
    )
    exec(compile(source, str(PAGE), "exec"), {})  # noqa: S102  # our own document
    ran = 0
    for command, lines in shown():
        with torch.enable_grad():
            done = call(*command.split())
        assert done.code == CODES.get(command, 0), done.err
        printed = iter([line for line in done.out.splitlines() if line])
        for line in lines:
            near = line != "…" and next((one for one in printed if not differs(line, one)), None)
            assert near is not None, f"{command}: the page has {line!r}, and printed is\n{done.out}"
        ran += 1
    assert ran == len(CODES) + 4


def test_another_number_or_word_is_noticed() -> None:
    assert not differs("largest |x| 55,104, … in aten.add", "largest |x| 55,200, 0.25 bits below, in aten.add")
    assert differs("largest |x| 55,104, … in aten.add", "largest |x| 5,520, 0.25 bits below, in aten.add") == (
        "numbers [(55104.0, 5520.0)]"
    )
    assert differs("aten.add in model.layers.3", "aten.mul in model.layers.3") == "other words"
    assert differs("Sound. …", "Sick: 1 error.") == "other words"
