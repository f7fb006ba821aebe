"""What importing, asking for help and scanning load, seen from a fresh interpreter."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = ("matplotlib", "pandas", "timm", "torch", "transformers")
CALL = """
import contextlib, json, sys
from gemma_doctor.cli import main
sys.argv[0] = "gemma-doctor"
with contextlib.redirect_stdout(sys.stderr):
    try:
        main()
    except SystemExit as stop:
        code = stop.code
print(json.dumps([code, sorted({name.partition(".")[0] for name in sys.modules})]))
"""


@pytest.fixture
def decoys(tmp_path: Path) -> Path:
    """A folder of empty modules with heavy names: importing one succeeds, so even a guarded import shows."""
    folder = tmp_path / "decoys"
    folder.mkdir()
    for name in HEAVY:
        (folder / f"{name}.py").touch()
    return folder


def run(code: str, *arguments: str, decoys: Path) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(decoys), *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )


def call(*arguments: str, decoys: Path) -> tuple[int, set[str]]:
    """Exit code of the command line, and the top-level modules that it loaded."""
    done = run(CALL, *arguments, decoys=decoys)
    assert done.stdout, done.stderr
    code, loaded = json.loads(done.stdout)
    return code, set(loaded)


def test_the_decoys_are_seen(decoys: Path) -> None:
    done = run("import sys, torch; print(torch.__file__)", decoys=decoys)
    assert done.stdout.strip() == str(decoys / "torch.py")


def test_importing_the_package_loads_nothing_heavy(decoys: Path) -> None:
    done = run("import sys, gemma_doctor; print(*sys.modules)", decoys=decoys)
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.split()).isdisjoint({*HEAVY, "numba", "numpy", "rich", "typer"})


@pytest.mark.parametrize("arguments", [["--help"], ["scan", "--help"], ["--version"]])
def test_help_loads_no_compiler(decoys: Path, arguments: list[str]) -> None:
    code, loaded = call(*arguments, decoys=decoys)
    assert code == 0
    assert loaded.isdisjoint({*HEAVY, "numba", "numpy"})


def test_scanning_needs_neither_torch_nor_transformers(decoys: Path, tmp_path: Path) -> None:
    header = json.dumps({"weight": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    checkpoint = tmp_path / "one.safetensors"
    checkpoint.write_bytes(len(header).to_bytes(8, "little") + header + b"\x00\x00\x80\x3f")
    code, loaded = call("scan", str(checkpoint), decoys=decoys)
    assert code == 0
    assert "numba" in loaded
    assert loaded.isdisjoint(HEAVY)
