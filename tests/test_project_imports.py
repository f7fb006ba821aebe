"""What importing, asking for help and scanning load, seen from a fresh interpreter."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = (
    "dask",
    "distributed",
    "fsspec",
    "httpx2",
    "huggingface_hub",
    "matplotlib",
    "pandas",
    "timm",
    "torch",
    "transformers",
)
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


def loaded_by(*arguments: str, decoys: Path) -> set[str]:
    """The top-level modules that the command line loaded; it must have exited with 0."""
    done = run(CALL, *arguments, decoys=decoys)
    assert done.stdout, done.stderr
    code, loaded = json.loads(done.stdout)
    assert code == 0, done.stderr
    return set(loaded)


def test_the_decoys_are_seen(decoys: Path) -> None:
    done = run("import sys, torch; print(torch.__file__)", decoys=decoys)
    assert done.stdout.strip() == str(decoys / "torch.py")


def test_importing_the_package_loads_nothing_heavy(decoys: Path) -> None:
    done = run("import sys, gemma_doctor; print(*sys.modules)", decoys=decoys)
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.split()).isdisjoint({*HEAVY, "numba", "numpy", "rich", "typer"})


def test_the_command_line_loads_no_records() -> None:
    code = "import sys, gemma_doctor.cli; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    rooms = {name.split(".")[1] for name in done.stdout.split() if name.startswith("gemma_doctor.")}
    assert "cli" in rooms
    assert rooms.isdisjoint({"checkpoint", "doctor", "inspect", "plans", "records", "repair", "tensors"})


INTERRUPTED = """
import sys

class Interrupted:
    \"\"\"Something happens while a module is looked for.\"\"\"

    def find_spec(self, name, path=None, target=None):
        if name == sys.argv[1]:
            raise eval(sys.argv[2]) from eval(sys.argv[3])

for name in ("typing", "dataclasses", "inspect"):
    sys.modules.pop(name, None)
sys.meta_path.insert(0, Interrupted())
from gemma_doctor.__main__ import main
main()
"""


@pytest.mark.parametrize(
    "module", ["typing", "dataclasses", "inspect", "typer", "gemma_doctor.cli", "gemma_doctor.errors"]
)
def test_ctrl_c_while_anything_is_loaded_shows_no_traceback(module: str) -> None:
    done = interrupted(module, "KeyboardInterrupt")
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_ctrl_c_in_the_body_of_a_class_is_one_too() -> None:
    done = interrupted("gemma_doctor.cli", "RuntimeError", "KeyboardInterrupt()")
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_what_cannot_be_loaded_is_no_finding() -> None:
    done = interrupted("typer", "ModuleNotFoundError('typer is not here')")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.endswith("ModuleNotFoundError: typer is not here\n")


def interrupted(module: str, error: str, cause: str = "None") -> subprocess.CompletedProcess[str]:
    """The command line, where looking for a module raises an error."""
    words = [sys.executable, "-c", INTERRUPTED, module, error, cause]
    return subprocess.run(words, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("arguments", [["--help"], ["scan", "--help"], ["--version"]])
def test_help_loads_no_compiler(decoys: Path, arguments: list[str]) -> None:
    assert loaded_by(*arguments, decoys=decoys).isdisjoint({*HEAVY, "numba", "numpy"})


def test_scanning_needs_neither_torch_nor_transformers(decoys: Path, tmp_path: Path) -> None:
    header = json.dumps({"weight": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    checkpoint = tmp_path / "one.safetensors"
    checkpoint.write_bytes(len(header).to_bytes(8, "little") + header + b"\x00\x00\x80\x3f")
    loaded = loaded_by("scan", str(checkpoint), decoys=decoys)
    assert "numba" in loaded
    assert loaded.isdisjoint(HEAVY)


def test_the_kernels_room_loads_torch_only_for_a_guard(decoys: Path) -> None:
    done = run("import sys, gemma_doctor.kernels.measure; print(*sys.modules)", decoys=decoys)
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.split()).isdisjoint(HEAVY)
    done = run("import gemma_doctor.kernels; gemma_doctor.kernels.guard", decoys=decoys)
    assert "gemma_doctor/kernels/guards" in done.stderr  # the decoy of torch is empty
