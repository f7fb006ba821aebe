"""Write docs/rules/ and docs/passes/ from docstrings, or with --check say which pages are not what they should be.

Usage: python tools/docs.py [--check]
"""

from __future__ import annotations

import argparse
import inspect
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from gemma_doctor import catalog as rules
from gemma_doctor.repair.evidence.case import Pass
from gemma_doctor.repair.planning import registry as passes
from gemma_doctor.verify import registry as verifying

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"


def pages() -> dict[str, dict[str, str]]:
    """Every file that belongs into a folder of docs/: folder -> name -> text."""
    return {
        "rules": {"README.md": _rules(), **{f"{rule.id}.md": _rule(rule) for rule in rules.RULES}},
        "passes": {"README.md": _passes(), **{f"{one.name}.md": _pass(one) for one in passes.PASSES}},
    }


def stale(wanted: Mapping[str, str], folder: Path) -> Iterator[str]:
    """What differs between the folder and the pages it should hold, one sentence each."""
    present = {path.name for path in folder.glob("*")}
    for name in sorted(present - wanted.keys()):
        yield f"{name} belongs to nothing"
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


def _rule(rule: rules.AnyRule) -> str:
    return f"{_notice(_room(rule), rule.check)}\n\n{rules.page(rule)}"


def _room(rule: rules.AnyRule) -> str:
    return "verify/rules" if rule in verifying.RULES else "inspect/rules"


def _pass(one: Pass) -> str:
    return f"{_notice('repair/passes', one.plan)}\n\n{passes.page(one)}"


def _notice(room: str, function: Callable[..., object]) -> str:
    source = Path(inspect.getfile(function)).name
    return f"<!-- Made by tools/docs.py from src/gemma_doctor/{room}/{source}: edit that file. -->"


def _rules() -> str:
    lines = [
        "<!-- Made by tools/docs.py from the rules: edit their docstrings. -->",
        "",
        "# Rules",
        "",
        "`gemma-doctor rule GD101` prints the same page. The severity is the gravest that a rule reports.",
        "",
        "| id | name | severity | what |",
        "| --- | --- | --- | --- |",
        *(
            f"| [{rule.id}]({rule.id}.md) | {rule.name} | {rule.severity} | {_summary(rules.page(rule))} |"
            for rule in rules.RULES
        ),
    ]
    return "\n".join(lines) + "\n"


def _passes() -> str:
    lines = [
        "<!-- Made by tools/docs.py from the passes: edit their docstrings. -->",
        "",
        "# Repair passes",
        "",
        "`gemma-doctor rule rescale-conv` prints the same page. The exactness is the worst that an edit of it has:",
        "exact (the same function), eps (the same up to a norm's eps), rounded (stored values are rounded) or lossy",
        "(another function, which needs `--unsafe`).",
        "",
        "| pass | mends | exactness | what |",
        "| --- | --- | --- | --- |",
        *(
            f"| [{one.name}]({one.name}.md) | {_links(one.mends)} | {one.exactness} | {_summary(passes.page(one))} |"
            for one in passes.PASSES
        ),
    ]
    return "\n".join(lines) + "\n"


def _links(ids: Iterable[str]) -> str:
    return ", ".join(f"[{rule}](../rules/{rule}.md)" for rule in ids)


def _summary(page: str) -> str:
    """What follows the name in the page's title."""
    return page.partition("\n")[0].partition(": ")[2].removesuffix(".").replace("|", r"\|")


def main() -> int:
    """Run the tool; 1 where --check finds a page that is not fresh."""
    parser = argparse.ArgumentParser(description="Write docs/rules/ and docs/passes/ from docstrings.")
    parser.add_argument("--check", action="store_true", help="write nothing; fail if a page is not fresh")
    check = parser.parse_args().check
    faults = []
    for folder, wanted in pages().items():
        if check:
            faults += [f"docs/{folder}: {fault}" for fault in stale(wanted, DOCS / folder)]
        else:
            write(wanted, DOCS / folder)
    for fault in faults:
        print(f"{fault}; run: python tools/docs.py")
    return bool(faults)


if __name__ == "__main__":
    sys.exit(main())
