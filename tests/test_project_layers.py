"""The import contracts of pyproject.toml: the code keeps them, and a planted violation breaks them by name."""

from __future__ import annotations

import os
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "gemma_doctor"


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """A copy of the package and its contracts."""
    shutil.copytree(PACKAGE, tmp_path / "gemma_doctor", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path / "gemma_doctor"


def lint(package: Path) -> tuple[int, str]:
    """Exit code and output of import-linter on that copy, the output's whitespace folded."""
    command = Path(sysconfig.get_path("scripts")) / "lint-imports"
    done = subprocess.run(
        [command, "--no-cache"],
        cwd=package.parent,
        env={**os.environ, "PYTHONPATH": str(package.parent), "COLUMNS": "200", "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, " ".join((done.stdout + done.stderr).split())


def plant(module: Path, line: str) -> None:
    module.write_text(f"{module.read_text(encoding='utf-8')}\n{line}\n", encoding="utf-8")


def test_the_code_keeps_every_contract(copied: Path) -> None:
    code, output = lint(copied)
    assert code == 0, output
    assert ", 0 broken." in output


@pytest.mark.parametrize(
    ("importer", "imported"),
    [
        ("records", "checkpoint"),
        ("kernels", "architectures"),
        ("checkpoint", "kernels"),
        ("architectures", "inspect"),
        ("inspect", "reports"),
        ("doctor", "settings"),
        ("demo", "cli"),
    ],
)
def test_an_import_upwards_or_sideways_is_named(copied: Path, importer: str, imported: str) -> None:
    room = copied / importer
    plant(room / "__init__.py" if room.is_dir() else copied / f"{importer}.py", f"import gemma_doctor.{imported}")
    code, output = lint(copied)
    assert code == 1
    assert f"gemma_doctor.{importer} is not allowed to import gemma_doctor.{imported}" in output


def test_a_rule_that_leans_on_another_is_named(copied: Path) -> None:
    first, second, *_ = sorted((copied / "inspect" / "rules").glob("[!_]*.py"))
    plant(second, f"import gemma_doctor.inspect.rules.{first.stem}")
    code, output = lint(copied)
    assert code == 1
    assert f"rules.{second.stem} is not allowed to import gemma_doctor.inspect.rules.{first.stem}" in output


def test_a_new_rule_is_under_contract_without_being_listed(copied: Path) -> None:
    first = min((copied / "inspect" / "rules").glob("[!_]*.py"))
    newcomer = copied / "inspect" / "rules" / "gd999_newcomer.py"
    newcomer.write_text(f"import gemma_doctor.inspect.rules.{first.stem}\n", encoding="utf-8")
    code, output = lint(copied)
    assert code == 1
    assert f"rules.gd999_newcomer is not allowed to import gemma_doctor.inspect.rules.{first.stem}" in output


@pytest.mark.parametrize("heavy", ["torch", "transformers", "matplotlib"])
def test_a_heavy_import_is_named(copied: Path, heavy: str) -> None:
    plant(copied / "doctor" / "scanning.py", f"def late():\n    import {heavy}")
    code, output = lint(copied)
    assert code == 1
    assert f"gemma_doctor is not allowed to import {heavy}" in output


def test_a_cycle_inside_a_room_is_named(copied: Path) -> None:
    for module, other in (("left", "right"), ("right", "left")):
        (copied / "kernels" / f"{module}.py").write_text(f"import gemma_doctor.kernels.{other}\n", encoding="utf-8")
    code, output = lint(copied)
    assert code == 1
    assert "No cycles are allowed in gemma_doctor.kernels" in output


def test_a_new_room_needs_a_decision(copied: Path) -> None:
    (copied / "utils").mkdir()
    (copied / "utils" / "__init__.py").touch()
    code, output = lint(copied)
    assert code == 1
    assert "gemma_doctor.utils" in output


def test_nothing_outside_the_package_shadows_the_standard_library() -> None:
    # `inspect` is harmless inside the package only: a folder on sys.path that holds it would hide the real one.
    folders = [ROOT, ROOT / "src", ROOT / "tests", ROOT / "tools", ROOT / "benchmarks"]
    assert [folder / "inspect" for folder in folders if list(folder.glob("inspect*"))] == []
