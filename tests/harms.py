"""Kinds of harm to scan, repair and verify of a checkpoint on this machine; harm.py judges what is lost."""

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
from dataclasses import replace
from pathlib import Path

from applying import tree
from harm import (
    INTERRUPTED,
    KILLED,
    Harm,
    Outcome,
    Scene,
    again,
    await_workspace,
    end,
    judge,
    prepare,
    start,
    whole,
    words_lost,
)

_TENSOR_FILES = (".safetensors", ".gguf")
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


def signalled(command: str, number: signal.Signals, *, old: bool = False) -> Harm:
    """Harm by a signal, at any moment of the command, or (every other time, in a repair) while it writes.

    Args:
        command: What to harm.
        number: SIGKILL or SIGINT.
        old: Whether an older output lies there, to be replaced.
    """

    def harm(scene: Scene, rng: random.Random) -> Outcome:
        prepare(scene, old=old)
        process = scene.start(command, *(["--force"] if old else []))
        if command == "repair" and rng.random() < 0.5:
            await_workspace(scene.place, process)
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
        shard = rng.choice(sorted(path for path in victim.iterdir() if path.suffix in _TENSOR_FILES))
        process = replace(scene, uri=str(victim)).start(command)
        time.sleep(rng.uniform(0.3, 1.0) * scene.seconds[command])
        os.truncate(shard, rng.randrange(shard.stat().st_size))
        ended = end(process)
        shutil.rmtree(victim)
        struck = ended.code not in (0, scene.code)
        lost = judge(scene, ended, (2,) if struck else (0, 1), uri=str(victim))
        return Outcome(struck, lost)

    return harm


def failing_calls(command: str, call: str, code: int, most: int = 11) -> Harm:
    """Harm by a disk whose reads or writes fail from some call on.

    Args:
        command: What to harm.
        call: ``"read"`` fails for the source, ``"write"`` for what is written.
        code: What the failing calls say, as in errno.
        most: How many calls are let through, at most.
    """

    def harm(scene: Scene, rng: random.Random) -> Outcome:
        prepare(scene)
        fault = {
            "LD_PRELOAD": str(scene.shim),
            "FAULT_UNDER": os.path.realpath(scene.source if call == "read" else scene.folder),
            "FAULT_CALL": call,
            "FAULT_AFTER": str(rng.randint(0, most)),
            "FAULT_ERRNO": str(code),
        }
        ended = end(scene.start(command, **fault))
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
    if not struck and not whole(tree(scene.folder / "copy"), scene):
        lost.append("the output is not whole")
    if struck and "No space left" not in done.stderr and "too little disk" not in done.stderr:
        lost.append(f"the cause is not told: {done.stderr}")
    shutil.rmtree(scene.folder / "copy", ignore_errors=True)
    return Outcome(struck, (*lost, *words_lost(done.stderr)))


def two_at_once(scene: Scene, rng: random.Random) -> Outcome:
    """Harm by a second repair to the same output, with or without --force."""
    force = ["--force"] if rng.random() < 0.5 else []
    prepare(scene)
    first = scene.start("repair", *force)
    time.sleep(rng.uniform(0, 0.5) * scene.seconds["repair"])
    second = scene.start("repair", *force)
    both = [end(first), end(second)]
    won = [one for one in both if one.code in (0, 1)]
    lost = [] if won and (force or len(won) == 1) else [f"exit codes {[one.code for one in both]}"]
    lost += [f"{one.err}" for one in both if one.code == 2 and "not empty" not in one.err]
    return Outcome(len(won) < 2 or bool(force), (*lost, *judge(scene, won[0] if won else both[0], (0, 1))))


def read_only_install(command: str) -> Harm:
    """Harm by an installation and a home that nothing can be written to: it works, and says nothing of it."""

    def harm(scene: Scene, rng: random.Random) -> Outcome:
        del rng
        prepare(scene)
        package = Path(sys.modules["gemma_doctor"].__file__ or "").parent
        bare = scene.folder / "site/gemma_doctor"
        shutil.copytree(package, bare, ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True)
        script = 'mount --bind "$0" "$0" && mount -o remount,bind,ro "$0" && exec "$@" || exit 9'
        mounted = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script, str(bare.parent)]
        nowhere = {"PYTHONPATH": str(bare.parent), "HOME": "/proc/nowhere", "XDG_CACHE_HOME": "/proc/nowhere"}
        ended = end(start([*mounted, *scene.words(command)], **nowhere, TMPDIR="/proc/nowhere"))
        if ended.code == 9:
            raise RuntimeError(f"no folder can be made read-only here: {ended.err}")
        lost = [f"it says: {ended.err}"] if ended.err else []
        if list(bare.rglob("__pycache__")):
            lost.append("the folder was not read-only")
        return Outcome(struck=True, lost=(*lost, *judge(scene, ended, (0, 1))))

    return harm


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
    "scan, the report's disk is full (ENOSPC)": failing_calls("scan", "write", errno.ENOSPC, 1),
    "scan, read-only installation and home": read_only_install("scan"),
    "repair, read-only installation and home": read_only_install("repair"),
}
"""Every kind of harm."""

VERIFY_HARMS: Mapping[str, Harm] = {
    "verify killed": signalled("verify", signal.SIGKILL),
    "verify interrupted (Ctrl-C)": signalled("verify", signal.SIGINT),
    "verify of a shard cut short meanwhile": cut_short("verify"),
    "verify, reads fail (EIO)": failing_calls("verify", "read", errno.EIO),
}
"""The same for verify, which needs torch and takes longer."""
