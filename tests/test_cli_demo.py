"""``gemma-doctor demo``: the published faults, found in a checkpoint that it builds."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from command import call

if TYPE_CHECKING:
    import pytest


def test_the_demo_shows_the_published_faults_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    done = call("demo")
    assert done.code == 0
    assert list(tmp_path.iterdir()) == []
    table = re.findall(r"^  (\S+)\.conv\.weight +(\S+)", done.out[done.out.index("Largest") :], re.MULTILINE)
    assert [number for _, number in table][:1] == ["98.000"]
    assert re.findall(r" (98\.000|37\.000|34\.750|33\.750) ", done.out) == [
        "98.000",
        "37.000",
        "34.750",
        "33.750",
        "33.750",
    ]
    assert {"GD104", "GD201", "GD203"} <= set(re.findall(r"GD\d{3}", done.out))
    assert done.out.endswith("  gemma-doctor demo --output sick-gemma  # the same, and keep the checkpoint\n")


def test_the_demo_can_be_kept(tmp_path: Path) -> None:
    folder = tmp_path / "sick gemma"
    done = call("demo", "--output", folder)
    assert done.code == 0
    assert (folder / "model.safetensors.index.json").is_file()
    assert done.out.endswith(f"  gemma-doctor scan '{folder}' --json report.json  # every number\n")
    assert call("demo", "--output", folder).code == 2
