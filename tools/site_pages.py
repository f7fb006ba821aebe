"""What mkdocs is given beside docs/: the documents of the repository's root, and the help of every command.

Each text stands in one place only. A root document becomes a page of its own, its links turned towards the site; links
to files that are no pages lead nowhere in a site and are left as text.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path, PurePosixPath
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]

ROOT_PAGES = {
    "README.md": "index.md",
    "BENCHMARKS.md": "benchmarks.md",
    "ARCHITECTURE.md": "architecture.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "security.md",
}
"""Documents of the root, and the pages that they become."""

COMMANDS = ("scan", "repair", "verify", "report", "rule", "demo", "completion")

_LINK = re.compile(
    r"(?P<mark>!?)\[(?P<text>[^\]]*)\]\((?P<target>(?!https?://|#|mailto:)[^)#\s]+)(?P<anchor>#[^)\s]*)?\)"
)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Write out the folders of the navigation: the page README.md first, then the others by name."""
    config.nav = [_written_out(entry) for entry in config.nav or []]
    return config


def _written_out(entry: Any) -> Any:  # noqa: ANN401  # YAML
    if isinstance(entry, dict):
        ((title, target),) = entry.items()
        if isinstance(target, str) and target.endswith("/"):
            names = sorted(
                (ROOT / "docs" / target).glob("*.md"), key=lambda path: (path.name != "README.md", path.name)
            )
            return {title: [_titled(path, target) for path in names]}
    return entry


def _titled(path: Path, folder: str) -> str | dict[str, str]:
    """A page of a rule or pass under its id and name, which are what stands before the colon of its heading."""
    page = folder + path.name
    heading = re.search(r"^# (.+?):", path.read_text(encoding="utf-8"), re.MULTILINE)
    return page if path.name == "README.md" or heading is None else {heading[1]: page}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are no files of docs/."""
    for name, page in ROOT_PAGES.items():
        if (ROOT / name).exists():
            files.append(File.generated(config, page, abs_src_path=str(ROOT / name)))
    files.append(File.generated(config, "commands.md", content=_commands()))
    return files


def on_page_markdown(markdown: str, page: Any, config: MkDocsConfig, files: Files) -> str:  # noqa: ANN401, ARG001
    """Turn links between documents of the repository into links between pages."""
    here = next((name for name, target in ROOT_PAGES.items() if target == page.file.src_uri), None)
    source = PurePosixPath(here or f"docs/{page.file.src_uri}")
    pages = {file.src_uri for file in files}
    return _LINK.sub(lambda link: _turned(link, source, page.file.src_uri, pages), markdown)


def _turned(link: re.Match[str], source: PurePosixPath, uri: str, pages: set[str]) -> str:
    """One link as the site needs it."""
    target = os.path.normpath(source.parent / link["target"])
    page = ROOT_PAGES.get(target, target.removeprefix("docs/") if target.startswith("docs/") else None)
    if page not in pages:
        return link["text"]
    relative = os.path.relpath(page, PurePosixPath(uri).parent)
    return f"{link['mark']}[{link['text']}]({relative}{link['anchor'] or ''})"


def _commands() -> str:
    """The help of every command, as it is printed."""
    helps = (f"## gemma-doctor {command}\n\n```text\n{_help(command)}\n```" for command in COMMANDS)
    return "\n\n".join(("# Commands", "Every command's `--help`, as this version prints it.", *helps)) + "\n"


def _help(command: str) -> str:
    environment = {**os.environ, "COLUMNS": "80", "TERM": "dumb", "NO_COLOR": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "gemma_doctor", command, "--help"],
        env=environment,
        check=True,
        capture_output=True,
        text=True,
    )
    return done.stdout.rstrip()
