"""The documents agree with the code, with each other and with what CI runs."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])


def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def commands() -> list[str]:
    """The README's two commands: install and run, install and test."""
    return re.findall(r"^```sh\n(.+)\n```$", text("README.md"), flags=re.MULTILINE)


def test_the_readme_has_one_command_to_try_and_one_to_test() -> None:
    demo, tests = commands()
    assert demo.endswith("gemma-doctor demo")
    assert tests.endswith("/pytest -n 2 --dist loadfile")


def test_ci_runs_the_readme_commands_word_for_word() -> None:
    demo, tests = commands()
    assert f'\ndemo="{demo}"\n' in text(".ci/run")
    assert f'\ntests="{tests}"\n' in text(".ci/run")
    assert f"- run: {tests}\n" in text(".github/workflows/ci.yml")


def test_the_pages_of_rules_and_passes_are_fresh() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "tools" / "docs.py", "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_table_of_rooms_is_the_contract() -> None:
    rows = re.findall(r"^\| (`.+?`) \|", text("ARCHITECTURE.md"), flags=re.MULTILINE)
    contract = next(
        contract
        for contract in tomllib.loads(text("pyproject.toml"))["tool"]["importlinter"]["contracts"]
        if contract["id"] == "rooms"
    )
    assert [row.replace("`", "").replace(",", " |") for row in rows] == contract["layers"]


def test_a_stale_a_missing_and_a_foreign_page_are_named(tmp_path: Path) -> None:
    tool = runpy.run_path(str(ROOT / "tools" / "docs.py"))
    wanted = {"GD001.md": "one", "GD002.md": "two", "GD003.md": "three"}
    (tmp_path / "GD001.md").write_text("one", encoding="utf-8")
    (tmp_path / "GD002.md").write_text("old", encoding="utf-8")
    (tmp_path / "GD004.md").write_text("four", encoding="utf-8")
    assert [fault.split()[0] for fault in tool["stale"](wanted, tmp_path)] == ["GD004.md", "GD002.md", "GD003.md"]
    tool["write"](wanted, tmp_path)
    assert list(tool["stale"](wanted, tmp_path)) == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_within_the_repository_lead_somewhere(document: Path) -> None:
    targets = re.findall(r"\]\((?!https?://|#)([^)#\s]+)", document.read_text(encoding="utf-8"))
    assert [target for target in targets if not (document.parent / target).exists()] == []
