"""The demo's checkpoint: true to the architecture, the same bytes each time, and sick where the published one was."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from architecture_data import manifest
from command import PLAIN
from safetensors import safe_open

import gemma_doctor
from gemma_doctor import Report, demo
from gemma_doctor.architectures import identify

TOWER = "model.vision_tower."
PUBLISHED = {
    "model.vision_tower.timm_model.msfa.ffn.pw_proj.conv.weight": 98.0,
    "model.vision_tower.timm_model.blocks.2.21.attn.key.down_conv.weight": 37.0,
    "model.vision_tower.timm_model.blocks.2.32.pw_exp.conv.weight": 34.75,
    "model.vision_tower.timm_model.blocks.2.30.pw_exp.conv.weight": 33.75,
    "model.vision_tower.timm_model.blocks.2.34.pw_exp.conv.weight": 33.75,
}
SHARED = {
    f"model.language_model.layers.{layer}.self_attn.{part}.weight"
    for layer in (6, 7, 8, 9)
    for part in ("k_norm", "k_proj", "v_proj")
}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo")
    demo.build(folder)
    return folder


@pytest.fixture(scope="module")
def scanned(built: Path) -> Report:
    return gemma_doctor.scan(built)


def test_the_official_reader_opens_what_the_index_says(built: Path) -> None:
    index = json.loads((built / "model.safetensors.index.json").read_text())
    homes = {}
    total = 0
    for path in sorted(built.glob("*.safetensors")):
        with safe_open(path, "np") as file:
            for name in file.keys():  # noqa: SIM118
                entry = file.get_slice(name)
                assert entry.get_dtype() == "BF16"
                homes[name] = path.name
                total += 2 * int(np.prod(entry.get_shape()))
    assert homes == index["weight_map"]
    assert (total, len(set(homes.values()))) == (index["metadata"]["total_size"], 3)


def test_every_tensor_has_the_name_that_the_real_one_has(built: Path) -> None:
    names = set(json.loads((built / "model.safetensors.index.json").read_text())["weight_map"])
    real = set(manifest("gemma-3n-E2B"))
    assert len({name for name in real if name.startswith(TOWER)}) == 548
    assert {name for name in names if name.startswith(TOWER)} == {name for name in real if name.startswith(TOWER)}
    assert names < real


def test_the_published_faults_are_found(scanned: Report) -> None:
    faults = {rule: {f.tensor: f for f in scanned.findings if f.rule == rule} for rule in ("GD104", "GD201", "GD203")}
    assert {name: finding.evidence["absmax"] for name, finding in faults["GD104"].items()} == PUBLISHED
    assert set(faults["GD201"]) == SHARED
    assert len(faults["GD203"]) == 1
    assert Counter(finding.rule for finding in scanned.findings) == {
        "GD104": 5,
        "GD201": 12,
        "GD203": 1,
        "GD106": 1,  # the stem's bias is zero in the real one too
        "GD108": 5,
    }
    assert (scanned.complete, scanned.worst, gemma_doctor.exit_code(scanned, "warning")) == (True, "warning", 1)
    largest = sorted((t.stats.absmax or 0 for t in scanned.tensors if t.role == "conv"), reverse=True)
    assert largest[:5] == sorted(PUBLISHED.values(), reverse=True)


def test_without_its_faults_it_would_be_healthy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So what the demo shows is what was planted, and nothing that the random weights happen to have."""
    config = {**demo.CONFIG, "dtype": "bfloat16"}
    healthy = {
        name: demo.bfloat16(demo.sound(tensor, np.random.default_rng(7)))
        for name, tensor in identify(config).expected.items()
    }
    stored = [name for name, tensor in identify(config).expected.items() if tensor.need in {"required", "stem-bias"}]
    monkeypatch.setattr(demo, "CONFIG", config)
    monkeypatch.setattr(demo, "_sick", lambda _: ((name, healthy[name]) for name in stored))
    demo.build(tmp_path)
    found = gemma_doctor.scan(tmp_path).findings
    assert [(finding.rule, finding.severity) for finding in found] == [("GD106", "note")]


def test_it_is_the_same_each_time(built: Path, tmp_path: Path) -> None:
    demo.build(tmp_path)
    files = sorted(path.name for path in built.iterdir())
    assert files == sorted(path.name for path in tmp_path.iterdir())
    assert len(files) == 5
    for file in files:
        assert (built / file).read_bytes() == (tmp_path / file).read_bytes(), file


def test_the_command_shows_them_without_torch(tmp_path: Path) -> None:
    """Where torch is there, the demo goes on to verify: here it finds none."""
    folder = tmp_path / "demo"
    command = "import sys; sys.modules['torch'] = None; from gemma_doctor.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", command, "demo", "--output", str(folder)],
        env={**os.environ, **PLAIN},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0
    assert {path.name for path in (folder / "sick").iterdir()} >= {"config.json", "model.safetensors.index.json"}
    counts = dict(re.findall(r"^warning (GD\d+) \S+ \((\d+) findings\)", done.stdout, re.MULTILINE))
    assert counts == {"GD104": "5", "GD201": "12"}
    assert "\nwarning GD203 dtype-config-mismatch\n" in done.stdout
    for name in PUBLISHED:
        assert name.removeprefix("model.vision_tower.timm_model.") in done.stdout
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}
    assert {"numba", "numpy", "safetensors"} <= imported
    assert imported.isdisjoint({"torch", "transformers", "timm", "matplotlib"})
