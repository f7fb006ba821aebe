"""Make the corpora of tests/data from what a fuzzer has kept: the smallest documents that reach every step.

Of the documents in --work and those kept already, from the smallest on, one stays if it takes a step from a line to
a line of gemma_doctor that no smaller one has taken. A fault that was
mended gets a test of its own.

Usage: PYTHONPATH=tests python tools/fuzz_corpora.py --work FOLDER
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import TypeAlias
from zipfile import ZIP_DEFLATED, ZipFile, ZipInfo

from hostile_documents import CORPORA, Reader, Target, corpus, targets

import gemma_doctor

PACKAGE = str(Path(gemma_doctor.__file__).parent)
LONGEST = 8192  # bytes of a kept document

Step: TypeAlias = tuple[str, int, int]


def steps(reader: Reader, text: bytes) -> set[Step]:
    """The steps from line to line, by file, that the reader takes in this package."""
    taken: set[Step] = set()
    before: dict[int, int] = {}

    def trace(frame: FrameType, event: str, _: object) -> object:
        if not frame.f_code.co_filename.startswith(PACKAGE):
            return None
        if event == "line":
            taken.add((frame.f_code.co_filename, before.get(id(frame), 0), frame.f_lineno))
            before[id(frame)] = frame.f_lineno
        elif event in ("call", "return"):
            before.pop(id(frame), None)
        return trace

    sys.settrace(trace)  # type: ignore[arg-type]
    try:
        reader(text)
    finally:
        sys.settrace(None)
    return taken


def smallest(target: Target, texts: set[bytes]) -> Iterator[bytes]:
    """Of these documents, those that reach something which neither a smaller one nor a sound one does."""
    reached = {step for seed in target.seeds for step in steps(target.reader, seed)}
    for text in sorted(texts, key=lambda text: (len(text), text)):
        new = steps(target.reader, text) - reached
        if new:
            reached |= new
            yield text


def pack(path: Path, texts: list[bytes]) -> None:
    """Write an archive, the same for the same documents."""
    with ZipFile(path, "w", ZIP_DEFLATED) as archive:
        for text in sorted(texts, key=lambda text: hashlib.sha256(text).digest()):
            archive.writestr(ZipInfo(hashlib.sha256(text).hexdigest()[:16]), text, ZIP_DEFLATED)


def documents(folder: Path) -> set[bytes]:
    """The documents in a folder that are short enough; none if there is no folder."""
    paths = folder.iterdir() if folder.exists() else ()
    return {path.read_bytes() for path in paths if path.stat().st_size <= LONGEST}


def main() -> None:
    """Make every corpus."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="as given to tools/fuzz.py")
    work = parser.parse_args().work
    CORPORA.mkdir(exist_ok=True)
    for name, target in targets().items():
        path = CORPORA / f"{name}.zip"
        known = set(corpus(name)) if path.exists() else set()
        found = known | documents(work / name)
        kept = list(smallest(target, found))
        pack(path, kept)
        print(f"{name}: {len(kept)} of {len(found)} documents, {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
