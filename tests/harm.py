"""Harm done to scan, repair and verify as their users meet it, and what is lost by it.

Every attempt runs the command in a process of its own, harms it at a random moment, and then looks at the source, at
the output and what lies beside it, at the exit code and at every word on standard error. tests/test_faults_injected.py
does each kind of harm once or twice; tools/inject_faults.py does it for as long as one likes.
"""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torchvision_operators
from applying import tree

INTERRUPTED = 130
KILLED = -signal.SIGKILL
VERIFY = ("--no-backward", "--seq-len", "8")
_SHIM = Path(__file__).with_name("harm.c")
_MANIFEST = "gemma-doctor.json"
_SMALL_DISK = """
mount -t tmpfs -o size=$SIZE tmpfs "$0" || exit 9
mkdir "$0/place" && cd "$0/place" || exit 9
(sleep $DELAY; exec cat /dev/zero > ../filler) 2> /dev/null &
"$@"
code=$?
wait
ls -A
[ $code = 2 ] || cp -r out "$COPY"
exit $code
"""
"""Runs a command on a disk of its own, which somebody fills; copies what it has made to where it lasts."""
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
    """

    folder: Path
    source: Path
    before: Mapping[str, str]
    mended: Mapping[str, str]
    report: Mapping[str, Any]
    code: int
    seconds: Mapping[str, float]
    shim: Path | None

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
        return [sys.executable, *program, command, str(self.source), *ends[command], *more]


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
        codes[command] = end(start(scene.words(command))).code
        seconds[command] = time.monotonic() - started
        documents[command] = _read(scene.document)
    if max(codes.values()) > 1:
        raise RuntimeError(f"unharmed, the commands exit with {codes}")
    return Scene(
        *(folder, source, scene.before, tree(scene.output), documents["scan"] or {}, codes["scan"], seconds, scene.shim)
    )


def start(words: list[str], **environment: str) -> subprocess.Popen[str]:
    """Begin a command."""
    env = {**os.environ, "PYTHONFAULTHANDLER": "1", **environment}
    return subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=env)


def end(process: subprocess.Popen[str]) -> Ended:
    """Wait for its end."""
    _, err = process.communicate(timeout=600)
    return Ended(process.returncode, err)


def signalled(command: str, number: signal.Signals, *, old: bool = False) -> Harm:
    """Harm by a signal, at any moment of the command, or (every other time, in a repair) while it writes.

    Args:
        command: What to harm.
        number: SIGKILL or SIGINT.
        old: Whether an older output lies there, to be replaced.
    """

    def harm(scene: Scene, rng: random.Random) -> Outcome:
        prepare(scene, old=old)
        process = start(scene.words(command, *(["--force"] if old else [])))
        if command == "repair" and rng.random() < 0.5:
            _await_workspace(scene.place, process)
            time.sleep(rng.uniform(0, 0.2))
        else:
            time.sleep(rng.uniform(0, 1.1) * scene.seconds[command])
        process.send_signal(number)
        ended = end(process)
        struck = ended.code in (KILLED, INTERRUPTED, -signal.SIGINT)
        killed = number == signal.SIGKILL
        allowed = (ended.code,) if struck else (0, 1)  # -SIGINT: Python had not begun with this program yet
        lost = judge(scene, ended, allowed, old=old, killed=killed)
        return Outcome(struck, (*lost, *again(scene, struck and killed)))

    return harm


def cut_short(command: str) -> Harm:
    """Harm by a shard that somebody cuts short meanwhile: success only if everything had been read by then."""

    def harm(scene: Scene, rng: random.Random) -> Outcome:
        prepare(scene)
        victim = scene.folder / "victim"
        shutil.copytree(scene.source, victim)
        shard = rng.choice(sorted(victim.glob("*.safetensors")))
        process = start([str(victim) if word == str(scene.source) else word for word in scene.words(command)])
        time.sleep(rng.uniform(0.3, 1.0) * scene.seconds[command])
        os.truncate(shard, rng.randrange(shard.stat().st_size))
        ended = end(process)
        shutil.rmtree(victim)
        struck = ended.code not in (0, scene.code)
        lost = judge(scene, ended, (2,) if struck else (0, 1), uri=str(victim))
        return Outcome(struck, lost)

    return harm


def failing_calls(command: str, call: str, code: int) -> Harm:
    """Harm by a disk whose reads or writes fail from some call on.

    Args:
        command: What to harm.
        call: ``"read"`` fails for the source, ``"write"`` for the output.
        code: What the failing calls say, as in errno.
    """

    def harm(scene: Scene, rng: random.Random) -> Outcome:
        prepare(scene)
        fault = {
            "LD_PRELOAD": str(scene.shim),
            "FAULT_UNDER": os.path.realpath(scene.source if call == "read" else scene.place),
            "FAULT_CALL": call,
            "FAULT_AFTER": str(rng.randrange(12)),
            "FAULT_ERRNO": str(code),
        }
        ended = end(start(scene.words(command), **fault))
        struck = ended.code == 2
        told = [] if not struck or os.strerror(code) in ended.err else [f"the cause is not told: {ended.err}"]
        return Outcome(struck, (*judge(scene, ended, (2,) if struck else (0, 1)), *told))

    return harm


def full_disk(scene: Scene, rng: random.Random) -> Outcome:
    """Harm by a small disk that somebody else fills while the repair writes."""
    prepare(scene)
    needed = sum(path.stat().st_size for path in scene.source.iterdir())
    size = int(needed * rng.uniform(0.5, 2.2))
    words = [word.replace(str(scene.output), "out") for word in scene.words("repair")]
    command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", _SMALL_DISK, str(scene.place), *words]
    given = {"SIZE": str(size), "DELAY": f"{rng.uniform(0, 1) * scene.seconds['repair']:.3f}"}
    env = {**os.environ, **given, "COPY": str(scene.folder / "copy")}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    if done.returncode == 9:
        raise RuntimeError(f"no small disk can be mounted here: {done.stderr}")
    names = [line for line in done.stdout.splitlines() if line == "out" or line.startswith(".out")]
    struck = done.returncode == 2
    lost = [] if names == ([] if struck else ["out"]) else [f"left behind: {names}"]
    if not struck and not _whole(tree(scene.folder / "copy"), scene):
        lost.append("the output is not whole")
    if struck and "No space left" not in done.stderr and "too little disk" not in done.stderr:
        lost.append(f"the cause is not told: {done.stderr}")
    shutil.rmtree(scene.folder / "copy", ignore_errors=True)
    return Outcome(struck, (*lost, *_words_lost(done.stderr)))


def two_at_once(scene: Scene, rng: random.Random) -> Outcome:
    """Harm by a second repair to the same output, with or without --force."""
    force = ["--force"] if rng.random() < 0.5 else []
    prepare(scene)
    first = start(scene.words("repair", *force))
    time.sleep(rng.uniform(0, 0.5) * scene.seconds["repair"])
    second = start(scene.words("repair", *force))
    both = [end(first), end(second)]
    won = [one for one in both if one.code in (0, 1)]
    lost = [] if won and (force or len(won) == 1) else [f"exit codes {[one.code for one in both]}"]
    lost += [f"{one.err}" for one in both if one.code == 2 and "not empty" not in one.err]
    return Outcome(len(won) < 2 or bool(force), (*lost, *judge(scene, won[0] if won else both[0], (0, 1))))


def read_only_install(scene: Scene, rng: random.Random) -> Outcome:
    """Harm by an installation and a home that nothing can be written to: it works, and says nothing of it."""
    del rng
    prepare(scene)
    package = Path(sys.modules["gemma_doctor"].__file__ or "").parent
    bare = scene.folder / "site/gemma_doctor"
    shutil.copytree(package, bare, ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True)
    script = 'mount --bind "$0" "$0" && mount -o remount,bind,ro "$0" && exec "$@" || exit 9'
    command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script, str(bare.parent)]
    nowhere = {"PYTHONPATH": str(bare.parent), "HOME": "/proc/nowhere", "XDG_CACHE_HOME": "/proc/nowhere"}
    ended = end(start([*command, *scene.words("repair")], **nowhere, TMPDIR="/proc/nowhere"))
    if ended.code == 9:
        raise RuntimeError(f"no folder can be made read-only here: {ended.err}")
    lost = [f"it says: {ended.err}"] if ended.err else []
    if list(bare.rglob("__pycache__")):
        lost.append("the folder was not read-only")
    return Outcome(struck=True, lost=(*lost, *judge(scene, ended, (0, 1))))


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
    lost = list(_words_lost(ended.err))
    if ended.code not in allowed:
        lost.append(f"exit code {ended.code}, where {allowed} is true: {ended.err}")
    if tree(scene.source) != scene.before:
        lost.append("the source has changed")
    found = tree(scene.output) if scene.output.exists() else {}
    if found and "old" not in found and not _whole(found, scene):
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
    return judge(scene, end(start(scene.words("repair", "--force"))), (0, 1), old=True)


def _whole(found: Mapping[str, str], scene: Scene) -> bool:
    """Whether this is the mended copy; its manifest names a source, which may have another name."""
    return {**found, _MANIFEST: ""} == {**scene.mended, _MANIFEST: ""}


def _document_lost(scene: Scene, uri: str | None) -> list[str]:
    found = _read(scene.document)
    if found is None:
        return ["a document is half-written"]
    if "tensors" not in found or "summary" not in found:
        return []  # a trace: whole, or it would not parse
    found["source"]["uri"] = str(scene.source) if uri in (None, found["source"]["uri"]) else uri
    if not found["complete"] or found["coverage"]["skipped"]:
        return []  # it says itself that it is not all
    return [] if found == scene.report else ["a report that calls itself complete says something else"]


def _read(document: Path) -> dict[str, Any] | None:
    """A JSON document but for the times in it; None where it is none."""
    try:
        found: dict[str, Any] = json.loads(document.read_text(encoding="utf-8"))
    except (ValueError, FileNotFoundError):
        return None
    if "summary" in found:
        found["summary"]["seconds"] = 0
    return found


def _words_lost(err: str) -> tuple[str, ...]:
    """Words that alarm a user. A traceback with no line of this program in it is Python's, which was still starting."""
    alarming = ("fault of gemma-doctor", "Fatal Python error", "Exception ignored", "Warning")
    alarms = [word for word in alarming if word in err]
    if "Traceback" in err and "gemma_doctor/" in err:
        alarms.append("Traceback")
    return tuple(f"{word}: {err}" for word in alarms)


def _await_workspace(place: Path, process: subprocess.Popen[str]) -> None:
    while process.poll() is None and not any(path.name.startswith(".") for path in place.iterdir()):
        time.sleep(_ASLEEP)


def _shim(folder: Path) -> Path | None:
    compiler = shutil.which("cc")
    if compiler is None or sys.platform != "linux":
        return None
    library = folder / "harm.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", library, _SHIM, "-ldl"], check=True)
    return library


HARMS: Mapping[str, Harm] = {
    "scan killed": signalled("scan", signal.SIGKILL),
    "repair killed": signalled("repair", signal.SIGKILL),
    "repair over an older output killed": signalled("repair", signal.SIGKILL, old=True),
    "scan interrupted (Ctrl-C)": signalled("scan", signal.SIGINT),
    "repair interrupted (Ctrl-C)": signalled("repair", signal.SIGINT),
    "repair over an older output interrupted": signalled("repair", signal.SIGINT, old=True),
    "scan of a shard cut short meanwhile": cut_short("scan"),
    "repair of a shard cut short meanwhile": cut_short("repair"),
    "scan, reads fail (EIO)": failing_calls("scan", "read", errno.EIO),
    "repair, reads fail (EIO)": failing_calls("repair", "read", errno.EIO),
    "repair, writes fail (ENOSPC)": failing_calls("repair", "write", errno.ENOSPC),
    "repair, writes fail (EIO)": failing_calls("repair", "write", errno.EIO),
    "repair to a small disk that is filled meanwhile": full_disk,
    "two repairs to one output": two_at_once,
    "repair, read-only installation and home": read_only_install,
}
"""Every kind of harm."""

VERIFY_HARMS: Mapping[str, Harm] = {
    "verify killed": signalled("verify", signal.SIGKILL),
    "verify interrupted (Ctrl-C)": signalled("verify", signal.SIGINT),
}
"""The same for verify, which needs torch and takes longer."""
