"""The pre-commit hook: scans the checkpoints that changed files belong to, each once.

pre-commit gives it the hook's ``args`` and then the changed files. What starts with a dash is an option of
``gemma-doctor scan``, so an option's value follows an equals sign: ``--fail-on=warning``.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from gemma_doctor import cli
from gemma_doctor.checkpoint.layout import find_layout
from gemma_doctor.errors import SourceNotFoundError
from gemma_doctor.reports.documents import say

__all__ = ["main", "sources"]


def main() -> None:
    """Scan what changed; the exit code is the worst of all scans."""
    options = [word for word in sys.argv[1:] if word.startswith("-")]
    files = [Path(word) for word in sys.argv[1:] if not word.startswith("-")]
    worst = 0
    for source in sources(files):
        say(f"gemma-doctor scan {source}")
        worst = max(worst, _ended(["scan", "--quiet", *options, "--", str(source)]))
        if worst == cli.INTERRUPTED:
            break
    sys.exit(worst)


def _ended(words: Sequence[str]) -> int:
    """The exit code of a command, run in this process: ``python -m`` would look for modules in the repository first."""
    try:
        cli.main(words)
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


def sources(files: Iterable[Path]) -> list[Path]:
    """The checkpoints that files belong to, each once: a folder where it is one checkpoint, else the file itself.

    Args:
        files: Changed files: weights, indexes and configs. A config with no weights beside it is none of a checkpoint.
    """
    return list(dict.fromkeys(source for file in files for source in _source(file)))


def _source(file: Path) -> Iterator[Path]:
    try:
        layout = find_layout(str(file.parent))
    except SourceNotFoundError:  # several checkpoints in one folder, or none
        if file.suffix == ".safetensors" or file.name.endswith(".index.json"):
            yield file
        return
    belongs = layout.index is not None or file.name in layout.files
    yield file.parent if belongs or file.suffix == ".json" else file
