"""Harm done to scan, repair and verify as their users meet it, and what is lost by it.

Every attempt runs the command in a process of its own, harms it at a random moment, and then looks at the source, at
the output and what lies beside it, at the exit code and at every word on standard error. tests/test_faults_injected.py
does each kind of harm once or twice; tools/inject_faults.py does it for as long as one likes.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias

import torchvision_operators
from applying import tree

INTERRUPTED = 130
KILLED = -signal.SIGKILL
VERIFY = ("--no-backward", "--seq-len", "8")
_SHIM = Path(__file__).with_name("harm.c")
_MANIFEST = "gemma-doctor.json"
_ASLEEP = 0.001  # seconds between two looks at a folder


@dataclass(frozen=True, slots=True)
class Ended:
    """How a command ended."""

    code: int
    err: str


@dataclass(frozen=True, slots=True)
class Scene:
    """A sick checkpoint, what the commands make of it unharmed, and a place for outputs.

    Attributes:
        folder: Where all of it lies.
        source: The checkpoint.
        before: Its files by their hashes.
        mended: The same of its mended copy.
        report: What a scan of it says, but for the time it took.
        code: Exit code of a scan of it.
        seconds: How long each command takes.
        shim: The library that makes reads and writes fail; None where no compiler is at hand.
        uri: What commands and reports call the source; its path, where it is empty.
        revision: Its commit, where it is far.
        environment: What the commands find in their environment, beside this process's.
    """

    folder: Path
    source: Path
    before: Mapping[str, str]
    mended: Mapping[str, str]
    report: Mapping[str, Any]
    code: int
    seconds: Mapping[str, float]
    shim: Path | None
    uri: str = ""
    revision: str | None = None
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def place(self) -> Path:
        """The folder that outputs are written to."""
        return self.folder / "place"

    @property
    def output(self) -> Path:
        """The mended copy, once it is there."""
        return self.place / "out"

    @property
    def document(self) -> Path:
        """The JSON report or the trace of a command."""
        return self.folder / "document.json"

    def words(self, command: str, *more: str) -> list[str]:
        """A command as a user would write it."""
        ends = {
            "scan": ("--json", str(self.document)),
            "repair": ("--output", str(self.output)),
            "verify": (*VERIFY, "--trace", str(self.document)),
        }
        program = [torchvision_operators.__file__] if command == "verify" else ["-m", "gemma_doctor"]
        return [sys.executable, *program, command, self.uri or str(self.source), *ends[command], *more]

    def start(self, command: str, *more: str, **environment: str) -> subprocess.Popen[str]:
        """Begin a command."""
        return start(self.words(command, *more), **self.environment, **environment)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one attempt.

    Attributes:
        struck: Whether the harm came before the command had ended.
        lost: What was lost, in words; empty if nothing was.
    """

    struck: bool
    lost: tuple[str, ...]


Harm: TypeAlias = Callable[[Scene, random.Random], Outcome]


def set_up(folder: Path, source: Path, *, verify: bool = False) -> Scene:
    """Run every command once, unharmed.

    Args:
        folder: An empty folder.
        source: A sick checkpoint that can be mended.
        verify: Whether to run verify too.
    """
    scene = Scene(folder, source, tree(source), {}, {}, 0, {}, _shim(folder))
    scene.place.mkdir()
    seconds, codes, documents = {}, {}, {}
    for command in ("scan", "repair", *(["verify"] if verify else [])):
        started = time.monotonic()
        codes[command] = end(scene.start(command)).code
        seconds[command] = time.monotonic() - started
        documents[command] = read_document(scene.document)
    if max(codes.values()) > 1:
        raise RuntimeError(f"unharmed, the commands exit with {codes}")
    report, mended = documents["scan"] or {}, tree(scene.output)
    return replace(scene, mended=mended, report=report, code=codes["scan"], seconds=seconds)


def start(words: list[str], **environment: str) -> subprocess.Popen[str]:
    """Begin a command."""
    env = {**os.environ, "PYTHONFAULTHANDLER": "1", **environment}
    return subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=env)


def end(process: subprocess.Popen[str]) -> Ended:
    """Wait for its end."""
    _, err = process.communicate(timeout=600)
    return Ended(process.returncode, err)


def prepare(scene: Scene, *, old: bool = False) -> None:
    """An empty place, or one with an older output; no document."""
    scene.document.unlink(missing_ok=True)
    shutil.rmtree(scene.place, ignore_errors=True)
    scene.place.mkdir()
    if old:
        scene.output.mkdir()
        (scene.output / "old").write_text("old", encoding="utf-8")


def judge(  # noqa: PLR0913  # what an attempt may have left
    scene: Scene,
    ended: Ended,
    allowed: tuple[int, ...],
    *,
    old: bool = False,
    killed: bool = False,
    uri: str | None = None,
) -> tuple[str, ...]:
    """What was lost.

    Args:
        scene: Where.
        ended: How the command ended.
        allowed: Exit codes that are true.
        old: Whether an older output was there.
        killed: Whether a hidden folder or file may be left.
        uri: What the report calls its source, if it is not the scene's.
    """
    lost = list(words_lost(ended.err))
    if ended.code not in allowed:
        lost.append(f"exit code {ended.code}, where {allowed} is true: {ended.err}")
    if tree(scene.source) != scene.before:
        lost.append("the source has changed")
    found = tree(scene.output) if scene.output.exists() else {}
    if found and "old" not in found and not whole(found, scene):
        lost.append(f"the output is torn: {sorted(found)}")
    if old and not found:
        lost.append("the older output is gone")
    beside = [path.name for path in scene.place.iterdir() if path != scene.output]
    if beside and not killed:
        lost.append(f"left behind: {beside}")
    if scene.document.exists():
        lost += _document_lost(scene, uri)
    return tuple(lost)


def again(scene: Scene, wanted: bool) -> tuple[str, ...]:  # noqa: FBT001  # one word of a sentence
    """What a repair loses that runs unharmed after a killed one, which it must clear away."""
    if not wanted or not any(scene.place.iterdir()):
        return ()
    return judge(scene, end(scene.start("repair", "--force")), (0, 1), old=True)


def whole(found: Mapping[str, str], scene: Scene) -> bool:
    """Whether this is the mended copy; its manifest names a source, which may have another name."""
    return {**found, _MANIFEST: ""} == {**scene.mended, _MANIFEST: ""}


def _document_lost(scene: Scene, uri: str | None) -> list[str]:
    found = read_document(scene.document)
    if found is None:
        return ["a document is half-written"]
    if "tensors" not in found or "summary" not in found:
        return []  # a trace: whole, or it would not parse
    source = {"uri": uri or scene.uri or str(scene.source), "revision": scene.revision}
    if not found["complete"] or found["coverage"]["skipped"]:
        return []  # it says itself that it is not all
    true = {**scene.report, "source": {**scene.report["source"], **source}}
    return [] if found == true else ["a report that calls itself complete says something else"]


def read_document(document: Path) -> dict[str, Any] | None:
    """A JSON document but for the times in it; None where it is none."""
    try:
        found: dict[str, Any] = json.loads(document.read_text(encoding="utf-8"))
    except (ValueError, FileNotFoundError):
        return None
    if "summary" in found:
        found["summary"]["seconds"] = 0
    return found


def words_lost(err: str) -> tuple[str, ...]:
    """Words that alarm a user. A traceback with no line of this program in it is Python's, which was still starting."""
    alarming = ("fault of gemma-doctor", "Fatal Python error", "Exception ignored", "Warning")
    alarms = [word for word in alarming if word in err]
    if "Traceback" in err and "gemma_doctor/" in err:
        alarms.append("Traceback")
    return tuple(f"{word}: {err}" for word in alarms)


def await_workspace(place: Path, process: subprocess.Popen[str]) -> None:
    while process.poll() is None and not any(path.name.startswith(".") for path in place.iterdir()):
        time.sleep(_ASLEEP)


def _shim(folder: Path) -> Path | None:
    compiler = shutil.which("cc")
    if compiler is None or sys.platform != "linux":
        return None
    library = folder / "harm.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", library, _SHIM, "-ldl"], check=True)
    return library
