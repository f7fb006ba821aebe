"""``gemma-doctor demo``: the published faults, found in a checkpoint that it builds, mended, and gone."""

from __future__ import annotations

import re
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from command import call

if TYPE_CHECKING:
    import pytest


def test_the_demo_shows_the_published_faults_mends_them_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setitem(sys.modules, "torch", None)  # as where it is not installed
    done = call("demo")
    assert done.code == 0
    assert list(tmp_path.iterdir()) == []
    steps = re.split(r"^\$ gemma-doctor (\w+) .*\n", done.out, flags=re.MULTILINE)
    before, repaired, after = steps[2::2]
    assert steps[1::2] == ["scan", "repair", "scan"]
    table = re.findall(r"^  (\S+)\.weight +(\S+) ", before[before.index("Largest") :], re.MULTILINE)
    assert [number for _, number in table] == ["98.000", "37.000", "34.750", "33.750", "33.750"]
    assert {"GD104", "GD201", "GD203"} <= set(re.findall(r"GD\d{3}", before))
    assert re.findall(r"^([\w-]+) \((\w+): ", repaired, re.MULTILINE) == [
        ("rescale-conv", "eps"),
        ("prune-shared-kv", "exact"),
        ("cast-dtype", "exact"),
    ]
    assert after.startswith("Healthy: 1 note. Every measured weight fits float16.\n")
    assert set(re.findall(r"^\w+ (GD\d{3})", after, re.MULTILINE)) == {"GD106"}
    assert done.out.endswith("  gemma-doctor demo --output gemma-demo  # the same, and keep both checkpoints\n")
    assert [line for line in excerpt() if line not in done.out] == []


def excerpt() -> list[str]:
    """What the README shows of the demo: the lines that were printed, each up to where it was cut."""
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    shown = readme.partition("```console\n$ gemma-doctor scan sick\n")[2].partition("```")[0].splitlines()
    lines = [line.partition("…")[0].rstrip() for line in shown if not line.startswith("$ ")]
    assert len(lines) > 20
    return lines


def test_the_demo_can_be_kept(tmp_path: Path) -> None:
    folder = tmp_path / "gemma demo"
    done = call("demo", "--output", folder)
    assert done.code == 0
    assert sorted(path.name for path in folder.iterdir()) == ["mended", "sick"]
    assert (folder / "sick" / "model.safetensors.index.json").is_file()
    assert (folder / "mended" / "gemma-doctor.json").is_file()
    assert f"\n  gemma-doctor scan '{folder}/sick' --json report.json  # every number\n" in done.out
    assert call("demo", "--output", folder).code == 2
