"""What a command does to the world, seen from below it: every file it opens to write, every process and connection.

The checkpoint here is a trap: beside its weights lie modules named as those that gemma-doctor imports, and they leave a
mark when they run. ``SECURITY.md`` says which test holds which promise.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from checkpoints import bfloat16, tiny_gemma3_config, write

ROOT = Path(__file__).parents[1]
SCRIPT = Path(sys.executable).with_name("gemma-doctor")
HOOK = Path(sys.executable).with_name("gemma-doctor-pre-commit")

WATCH = """
import os, sys

CHANGES = "chmod chown link mkdir remove rename rmdir symlink truncate".split()
BEYOND = "os.exec os.fork os.posix_spawn os.system socket.connect socket.sendto subprocess.Popen".split()
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC

def watch(event, arguments):
    if event in BEYOND:
        note(event, arguments[0])
    elif event.startswith("os.") and event[3:] in CHANGES:
        note(event, *(word for word in arguments[:2] if isinstance(word, (str, bytes))))
    elif event == "open" and isinstance(arguments[0], (str, bytes)) and arguments[2] & WRITING:
        note("write", arguments[0])

def note(*words):
    named = (os.path.abspath(os.fsdecode(word)) if isinstance(word, (bytes, str)) else repr(word) for word in words[1:])
    os.write(LOG, " ".join((words[0], *named, "\\n")).encode())

LOG = os.open(os.environ["WATCHED"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
sys.addaudithook(watch)
"""

DECOYS = ("numpy", "numba", "typer", "rich", "json", "inspect", "gguf", "huggingface_hub", "own", "sitecustomize")


@pytest.fixture
def trap(tmp_path: Path) -> Path:
    """A checkpoint with a fault that can be mended, in a folder with code and with links that lead out of it."""
    config = {**tiny_gemma3_config(), "auto_map": {"AutoConfig": "own.Config"}, "trust_remote_code": True}
    tensors = {"model.norm.weight": bfloat16(np.full(16, np.nan)), "a.weight": bfloat16(np.ones((4, 4)))}
    folder = write(tmp_path / "trap", tensors, {**config, "model_type": "own", "architectures": ["Own"]})
    for name in DECOYS:
        (folder / f"{name}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'a').write({name!r})\n")
    (tmp_path / "outside").write_text("not the checkpoint's")
    (folder / "link").symlink_to(tmp_path / "outside")
    return folder


def watched(program: Path, *words: str, cwd: Path, tmp_path: Path) -> tuple[int, list[str], str]:
    """The exit code of a command, what it did to files and beyond, and what it said."""
    log, startup = tmp_path / "log", tmp_path / "startup"
    startup.mkdir(exist_ok=True)
    (startup / "sitecustomize.py").write_text(WATCH)
    log.write_text("")
    env = {**os.environ, "PYTHONPATH": str(startup), "WATCHED": str(log), "PYTHONDONTWRITEBYTECODE": "1"}
    for name in ("GITHUB_STEP_SUMMARY", "GITHUB_ACTIONS"):
        env.pop(name, None)
    command = [sys.executable, "-B", str(program), *words]
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False)
    return done.returncode, log.read_text().splitlines(), done.stdout + done.stderr


def state(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Every file below a folder: when it was changed, and its bytes."""
    return {str(path): (path.lstat().st_mtime_ns, path.read_bytes()) for path in folder.rglob("*") if path.is_file()}


def beyond(events: list[str], *allowed: Path) -> list[str]:
    """The events that touch anything but these paths and the caches of compiled code, which stand beside the code."""
    near = (*map(str, allowed), os.devnull)
    return [event for event in events if "__pycache__" not in event and not all_near(event, near)]


def all_near(event: str, near: tuple[str, ...]) -> bool:
    return all(path.startswith(near) for path in event.split()[1:])


KINDS = ("json", "html", "markdown", "sarif", "junit")
COMMANDS = {
    "scan": (["scan", "."], 1),
    "scan to documents": (["scan", ".", *(f"--{kind}=D/{kind}" for kind in KINDS)], 1),
    "scan with settings": (["scan", ".", "--write-baseline", "D/known.json"], 1),
    "repair": (["repair", ".", "--unsafe", "--output", "D/out"], 0),
    "repair, a dry run": (["repair", ".", "--unsafe", "--dry-run", "--save-plan", "D/plan.json"], 0),
    "rule": (["rule", "GD101"], 0),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_writes_what_it_was_told_to_and_starts_and_calls_nothing(
    trap: Path, tmp_path: Path, name: str
) -> None:
    documents = tmp_path / "documents"
    documents.mkdir()
    words, code = COMMANDS[name]
    before = state(trap)
    ended, events, said = watched(
        SCRIPT, *(word.replace("D/", f"{documents}/") for word in words), cwd=trap, tmp_path=tmp_path
    )
    assert ended == code, said
    assert beyond(events, documents) == []
    assert any(str(documents) in event for event in events) == any("D/" in word for word in words)
    assert state(trap) == before
    assert not (tmp_path / "ran").exists()
    assert (tmp_path / "outside").read_text() == "not the checkpoint's"


DEEDS = """
import os, socket, subprocess, sys
open("written", "w").close()
os.rename("written", "moved")
os.mkdir("made")
subprocess.run([sys.executable, "-c", ""])
try:
    socket.create_connection(("127.0.0.1", 9))
except OSError:
    pass
"""


def test_the_watch_sees_what_it_should(tmp_path: Path) -> None:
    (tmp_path / "deeds.py").write_text(DEEDS)
    code, events, said = watched(tmp_path / "deeds.py", cwd=tmp_path, tmp_path=tmp_path)
    assert code == 0, said
    seen = {event.split()[0] for event in beyond(events, tmp_path / "none")}
    assert seen >= {"write", "os.rename", "os.mkdir", "subprocess.Popen", "socket.connect"}


def test_the_pre_commit_hook_runs_no_module_of_the_repository(trap: Path, tmp_path: Path) -> None:
    """It starts in the repository's folder, where ``python -m`` would look for modules first."""
    code, _, said = watched(HOOK, "model.safetensors", cwd=trap, tmp_path=tmp_path)
    assert code == 1, said
    assert "GD101" in said
    assert not (tmp_path / "ran").exists()


def test_every_test_that_the_promises_name_is_there() -> None:
    named = re.findall(r"`(test_\w+\.py)(?:::(\w+))?`", (ROOT / "SECURITY.md").read_text(encoding="utf-8"))
    assert len(named) > 20
    for file, function in named:
        assert f"def {function}(" in (ROOT / "tests" / file).read_text(encoding="utf-8") if function else True
        assert (ROOT / "tests" / file).is_file()
