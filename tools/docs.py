"""Write docs/rules/ from the rules' docstrings, or with --check say which pages are not what they should be.

Usage: python tools/docs.py [--check]
"""

from __future__ import annotations

import argparse
import inspect
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from gemma_doctor.inspect.registry import RULES, page
from gemma_doctor.inspect.rule import Rule

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "docs" / "rules"


def pages() -> dict[str, str]:
    """Every file that belongs into docs/rules/: its name and its text."""
    return {"README.md": _index(), **{f"{rule.id}.md": _page(rule) for rule in RULES}}


def stale(wanted: Mapping[str, str], folder: Path) -> Iterator[str]:
    """What differs between the folder and the pages it should hold, one sentence each."""
    present = {path.name for path in folder.glob("*")}
    for name in sorted(present - wanted.keys()):
        yield f"{name} belongs to no rule"
    for name, text in wanted.items():
        if name not in present:
            yield f"{name} is missing"
        elif (folder / name).read_text(encoding="utf-8") != text:
            yield f"{name} differs from the docstring that it is made from"


def write(wanted: Mapping[str, str], folder: Path) -> None:
    """Make the folder hold these pages and nothing else."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.glob("*"):
        if path.name not in wanted:
            path.unlink()
    for name, text in wanted.items():
        (folder / name).write_text(text, encoding="utf-8")


def _page(rule: Rule) -> str:
    source = Path(inspect.getfile(rule.check)).name
    notice = f"<!-- Made by tools/docs.py from src/gemma_doctor/inspect/rules/{source}: edit that file. -->"
    return f"{notice}\n\n{page(rule)}"


def _index() -> str:
    lines = [
        "<!-- Made by tools/docs.py from the rules: edit their docstrings. -->",
        "",
        "# Rules",
        "",
        "`gemma-doctor rule GD101` prints the same page. The severity is the gravest that a rule reports.",
        "",
        "| id | name | severity | what |",
        "| --- | --- | --- | --- |",
        *(f"| [{rule.id}]({rule.id}.md) | {rule.name} | {rule.severity} | {_summary(rule)} |" for rule in RULES),
    ]
    return "\n".join(lines) + "\n"


def _summary(rule: Rule) -> str:
    """What follows the name in the page's title."""
    title = page(rule).partition("\n")[0]
    return title.removeprefix(f"# {rule.id} {rule.name}: ").removesuffix(".").replace("|", r"\|")


def main() -> int:
    """Run the tool; 1 where --check finds a page that is not fresh."""
    parser = argparse.ArgumentParser(description="Write docs/rules/ from the rules' docstrings.")
    parser.add_argument("--check", action="store_true", help="write nothing; fail if a page is not fresh")
    wanted = pages()
    if not parser.parse_args().check:
        write(wanted, FOLDER)
        return 0
    faults = list(stale(wanted, FOLDER))
    for fault in faults:
        print(f"docs/rules: {fault}; run: python tools/docs.py")
    return bool(faults)


if __name__ == "__main__":
    sys.exit(main())
