"""Repairs that are killed at chosen moments, each in a process of its own; run as a script by the survival tests.

``python victim.py FOLDER force|fresh POINTS SEED`` repairs ``FOLDER/source`` to ``FOLDER/place/out`` again and again.
Each time the repair kills itself (SIGKILL) at another call that touches the disk. After each it prints, as a line of
JSON, what is left; then it repairs once more, unharmed, and prints what that found and left.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
from collections.abc import Callable
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

from applying import cast, mend, rename, scale, set_config, tree

EDITS = (scale("w1", 2), cast("w2", "F32"), rename("w4", "v4"), set_config("x", "dtype"))
CALLS = (
    *("open", "close", "pwrite", "copy_file_range", "ftruncate", "fsync", "listdir", "scandir"),
    *("mkdir", "rename", "unlink", "rmdir", "lstat", "stat"),
)


def fatal(call: Callable[..., Any], calls: count[int], point: int, *args: Any, **keywords: Any) -> Any:  # noqa: ANN401
    """A call that, as the n-th of all, is the process's last."""
    if next(calls) == point:
        os.kill(os.getpid(), signal.SIGKILL)
    return call(*args, **keywords)


def attempt(folder: Path, point: int, *, force: bool) -> bool:
    """Repair in a child process that dies at a point; whether it lived to the end."""
    child = os.fork()
    if child == 0:
        calls = count(1)
        for name in CALLS:
            if hasattr(os, name):
                setattr(os, name, partial(fatal, getattr(os, name), calls, point))
        code = 1
        try:
            mend(folder / "source", folder / "place/out", *EDITS, force=force)
            (folder / "calls").write_text(str(next(calls)), encoding="utf-8")
            code = 0
        finally:
            os._exit(code)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status not in (0, -signal.SIGKILL):
        raise RuntimeError(f"the repair failed with {status} at call {point}")
    return status == 0


def set_up(folder: Path, *, force: bool) -> None:
    """An empty place, or one with an older output."""
    place = folder / "place"
    if place.exists():
        shutil.rmtree(place)
    place.mkdir()
    if force:
        (place / "out").mkdir()
        (place / "out/old").write_text("old", encoding="utf-8")


def state(folder: Path, new: dict[str, str]) -> str:
    """What the output is now."""
    output = folder / "place/out"
    found = tree(output) if output.exists() else {}
    return "none" if not output.exists() else "new" if found == new else "old" if list(found) == ["old"] else "torn"


def main() -> None:
    """Kills and reports."""
    folder, force, points, seed = Path(sys.argv[1]), sys.argv[2] == "force", int(sys.argv[3]), int(sys.argv[4])
    mend(folder / "source", folder / "spare", *EDITS)
    new, before = tree(folder / "spare"), tree(folder / "source")
    set_up(folder, force=force)
    attempt(folder, 0, force=force)
    total = int((folder / "calls").read_text(encoding="utf-8"))
    for point in sorted(random.Random(seed).sample(range(1, total), points)):
        set_up(folder, force=force)
        lived = attempt(folder, point, force=force)
        left = state(folder, new)
        leftovers = [path.name for path in (folder / "place").iterdir() if path.name != "out"]
        again = mend(folder / "source", folder / "place/out", *EDITS, force=True)
        report = {
            "point": point,
            "lived": lived,
            "left": left,
            "leftovers": leftovers,
            "named": [leftover.name for leftover in again.removed_leftovers],
            "then": state(folder, new),
            "beside": [path.name for path in (folder / "place").iterdir() if path.name != "out"],
            "source": tree(folder / "source") == before,
        }
        print(json.dumps(report))  # noqa: T201


if __name__ == "__main__":
    main()
