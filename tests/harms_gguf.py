"""Kinds of harm to the repair of a GGUF file: into a copy, as any other; and in the file itself.

A file that is mended in place is, whatever happens, byte for byte the old one or the mended one. A backup lies beside
it where it is the mended one, whole; and where a disk failed or the run was killed.
"""

from __future__ import annotations

import errno
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from harm import INTERRUPTED, KILLED, Ended, Harm, Outcome, Scene, end, start, words_lost
from harms import HARMS

NAME = "model.gguf"
BACKUP = f"{NAME}.header-backup"
_COPIED = (
    "repair killed",
    "repair interrupted (Ctrl-C)",
    "repair over an older output killed",
    "scan of a shard cut short meanwhile",
    "repair of a shard cut short meanwhile",
    "repair, reads fail (EIO)",
    "repair, writes fail (ENOSPC)",
    "repair to a small disk that is filled meanwhile",
    "two repairs to one output",
)
_FULL_DISK = """
mount -t tmpfs -o size=$SIZE tmpfs "$0" && cp "$SOURCE" "$0" || exit 9
cat /dev/zero > "$0/filler" 2> /dev/null
truncate -s -$FREE "$0/filler" || exit 9
"$@"
code=$?
rm "$0/filler" && cp -r "$0" "$COPY" || exit 9
exit $code
"""
"""Runs a command on a disk with so many bytes free; copies what is there to where it lasts."""


def _victim(scene: Scene) -> Path:
    """The file that is to be mended, in a folder of its own."""
    folder = scene.folder / "victim"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return Path(shutil.copy(scene.source / NAME, folder / NAME))


def _words(path: Path) -> list[str]:
    return [sys.executable, "-m", "gemma_doctor", "repair", str(path), "--in-place"]


def _contents(scene: Scene) -> tuple[bytes, bytes]:
    """The file as it was, and as it is when it is mended."""
    old = (scene.source / NAME).read_bytes()
    key = b"gemma3n.attention.shared_kv_layers"
    at = old.index(key) + len(key)
    return old, old[:at] + (4).to_bytes(4, "little") + (10).to_bytes(4, "little") + old[at + 8 :]


def lost_in_place(scene: Scene, ended: Ended, folder: Path, *, cut: bool = False) -> tuple[str, ...]:
    """What was lost.

    Args:
        scene: Where.
        ended: How the command ended.
        folder: Where the file lies.
        cut: Whether somebody has cut it short.
    """
    (old, new), lost = _contents(scene), list(words_lost(ended.err))
    found, backup = (folder / NAME).read_bytes(), folder / BACKUP
    if not (old.startswith(found) or new.startswith(found) if cut else found in {old, new}):
        lost.append("the file is neither the old one nor the mended one")
    if ended.code in {0, 1} and not (cut or found == new):
        lost.append("it says that the file is mended")
    if found == new and not _is_header(backup, old):
        lost.append("the file is mended, and there is no whole backup of its header")
    if backup.exists() and not (ended.code in {0, 1, KILLED} or f"dd if={backup}" in ended.err):
        lost.append(f"a backup is left, and it is not said what for: {ended.err}")
    if ended.code == INTERRUPTED and (found != old or backup.exists()):
        lost.append("interrupted, and something is left of it")
    beside = {path.name for path in folder.iterdir()} - {NAME, BACKUP}
    return (*lost, *(f"left behind: {name}" for name in sorted(beside)))


def _is_header(backup: Path, old: bytes) -> bool:
    """Whether the backup puts the old bytes back: it begins the old file, and goes beyond the value."""
    if not backup.exists():
        return False
    kept = backup.read_bytes()
    return old.startswith(kept) and len(kept) > old.index(b"output_norm.weight")


def signalled_in_place(number: signal.Signals) -> Harm:
    """Harm by a signal, at any moment or, every other time, as soon as there is a backup."""

    def harm(scene: Scene, rng: random.Random) -> Outcome:
        path = _victim(scene)
        process = start(_words(path))
        if rng.random() < 0.5:
            while process.poll() is None and not path.with_name(BACKUP).exists():
                time.sleep(0.0002)
            time.sleep(rng.uniform(0, 0.01))
        else:
            time.sleep(rng.uniform(0, 1.1) * scene.seconds["repair"])
        process.send_signal(number)
        ended = end(process)
        struck = ended.code in {KILLED, INTERRUPTED, -signal.SIGINT}
        lost = lost_in_place(scene, ended, path.parent)
        return Outcome(struck, (*lost, *(_again(scene, path) if struck else ())))

    return harm


def _again(scene: Scene, path: Path) -> tuple[str, ...]:
    """What the next run loses, once the user has put a backup away, as it asks."""
    path.with_name(BACKUP).unlink(missing_ok=True)
    mended = path.read_bytes() == _contents(scene)[1]
    ended = end(start(_words(path)))
    if mended:
        return () if ended.code in {0, 1} and path.read_bytes() == _contents(scene)[1] else ("it is mended no more",)
    return lost_in_place(scene, ended, path.parent) if ended.code in {0, 1} else (f"no second run: {ended.err}",)


def failing_in_place(code: int) -> Harm:
    """Harm by a disk that cannot be written to from some call on."""

    def harm(scene: Scene, rng: random.Random) -> Outcome:
        path = _victim(scene)
        fault = {
            "LD_PRELOAD": str(scene.shim),
            "FAULT_UNDER": os.path.realpath(path.parent),
            "FAULT_CALL": "write",
            "FAULT_AFTER": str(rng.randrange(6)),
            "FAULT_ERRNO": str(code),
        }
        ended = end(start(_words(path), **fault))
        told = [] if ended.code != 2 or os.strerror(code) in ended.err else [f"the cause is not told: {ended.err}"]
        return Outcome(ended.code == 2, (*lost_in_place(scene, ended, path.parent), *told))

    return harm


def full_in_place(scene: Scene, rng: random.Random) -> Outcome:
    """Harm by a disk that has no room for the backup, or just enough."""
    place, copy = scene.folder / "disk", scene.folder / "copy"
    place.mkdir(exist_ok=True)
    shutil.rmtree(copy, ignore_errors=True)
    command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", _FULL_DISK, str(place)]
    size = (scene.source / NAME).stat().st_size
    given = {"SIZE": str(2 * size), "FREE": str(rng.randrange(1 << 17)), "SOURCE": str(scene.source / NAME)}
    env = {**os.environ, **given, "COPY": str(copy)}
    done = subprocess.run(
        [*command, *_words(place / NAME)], capture_output=True, text=True, check=False, env=env, timeout=600
    )
    if done.returncode == 9:
        raise RuntimeError(f"no small disk can be mounted here: {done.stderr}")
    struck = done.returncode == 2
    told = [] if not struck or "No space left" in done.stderr else [f"the cause is not told: {done.stderr}"]
    return Outcome(struck, (*lost_in_place(scene, Ended(done.returncode, done.stderr), copy), *told))


def cut_in_place(scene: Scene, rng: random.Random) -> Outcome:
    """Harm by somebody who cuts the file short meanwhile."""
    path = _victim(scene)
    process = start(_words(path))
    time.sleep(rng.uniform(0.3, 1.0) * scene.seconds["repair"])
    os.truncate(path, rng.randrange(path.stat().st_size))
    ended = end(process)
    lost = lost_in_place(scene, ended, path.parent, cut=True)
    return Outcome(ended.code not in {0, 1}, lost if ended.code in {0, 1, 2} else (*lost, f"exit code {ended.code}"))


def two_in_place(scene: Scene, rng: random.Random) -> Outcome:
    """Harm by a second repair of the same file: one of them mends it."""
    path = _victim(scene)
    first = start(_words(path))
    time.sleep(rng.uniform(0, 0.3) * scene.seconds["repair"])
    second = start(_words(path))
    both = [end(first), end(second)]
    won = [one for one in both if one.code in {0, 1}]
    lost = [] if won else [f"exit codes {[one.code for one in both]}: {[one.err for one in both]}"]
    known = ("there is a backup already", "has changed", "the file changed while")
    lost += [one.err for one in both if one.code == 2 and not any(words in one.err for words in known)]
    return Outcome(len(won) < 2, (*lost, *lost_in_place(scene, won[0] if won else both[0], path.parent)))


GGUF_HARMS: Mapping[str, Harm] = {
    **{f"GGUF: {name}": HARMS[name] for name in _COPIED},
    "GGUF: repair --in-place killed": signalled_in_place(signal.SIGKILL),
    "GGUF: repair --in-place interrupted (Ctrl-C)": signalled_in_place(signal.SIGINT),
    "GGUF: repair --in-place, writes fail (ENOSPC)": failing_in_place(errno.ENOSPC),
    "GGUF: repair --in-place, writes fail (EIO)": failing_in_place(errno.EIO),
    "GGUF: repair --in-place, no room for the backup": full_in_place,
    "GGUF: repair --in-place of a file cut short meanwhile": cut_in_place,
    "GGUF: two repairs --in-place of one file": two_in_place,
}
"""Every kind of harm to a GGUF file."""
