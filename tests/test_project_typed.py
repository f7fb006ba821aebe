"""What a user's type checker sees of the package: py.typed, and an API without holes."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

USE = """
import gemma_doctor

report = gemma_doctor.scan("model")
plan = gemma_doctor.plan(report)
reveal_type(report)
reveal_type(plan)
reveal_type(gemma_doctor.repair(plan, output="mended"))
reveal_type(gemma_doctor.verify("mended", device="cpu"))
reveal_type([finding.rule for finding in report.findings])
gemma_doctor.scan(1)
"""

SEEN = """
use.py:6: note: Revealed type is "gemma_doctor.records.Report"
use.py:7: note: Revealed type is "gemma_doctor.plans.Plan"
use.py:8: note: Revealed type is "gemma_doctor.plans.Applied"
use.py:9: note: Revealed type is "gemma_doctor.records.Report"
use.py:10: note: Revealed type is "list[str]"
use.py:11: error: Argument 1 to "scan" has incompatible type "int"; expected "str | PathLike[str]"  [arg-type]
"""


def test_mypy_knows_the_api_from_a_users_file(tmp_path: Path) -> None:
    (tmp_path / "use.py").write_text(USE, encoding="utf-8")
    (tmp_path / "mypy.ini").write_text("[mypy]\nstrict = True\nfollow_imports = silent\n", encoding="utf-8")
    command = [sys.executable, "-m", "mypy", "--no-error-summary", "--cache-dir", str(tmp_path / "cache"), "use.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout.strip().replace("builtins.", "") == SEEN.strip()


def test_the_commands_that_are_installed_are_those_of_the_package() -> None:
    mine = entry_points(group="console_scripts").select(value="gemma_doctor.__main__:main")
    assert [entry.name for entry in mine] == ["gemma-doctor"]
    for entry in entry_points(group="console_scripts"):
        if entry.value.startswith("gemma_doctor."):
            assert callable(entry.load()), entry
