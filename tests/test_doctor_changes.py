"""A checkpoint that is written to while it is scanned: an error with exit code 2, never a figure, never a crash."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from checkpoints import healthy, in_bfloat16, tiny_gemma3_config, write
from command import PLAIN, call

import gemma_doctor
from gemma_doctor import doctor
from gemma_doctor.doctor import scanning
from gemma_doctor.errors import ChangedError
from gemma_doctor.inspect import survey as room
from gemma_doctor.inspect import units
from gemma_doctor.inspect.orders import Order

FILE = "model.safetensors"


def cut(path: Path) -> None:
    os.truncate(path, 4096)


def rewrite(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(-2, os.SEEK_END)
        file.write(b"\1\1")


def grow(path: Path) -> None:
    with path.open("ab") as file:
        file.write(bytes(4096))


def replace(path: Path) -> None:
    copy = path.with_name("copy")
    copy.write_bytes(path.read_bytes())
    copy.replace(path)


CHANGES = [cut, rewrite, grow, replace, Path.unlink]


@dataclass(slots=True)
class Meddler:
    """A progress display that changes the file at its first step."""

    change: Callable[[Path], None]
    path: Path
    steps: int = 0

    def start(self, _total_bytes: int) -> None:
        """Nothing is known yet."""

    def advance(self, _nbytes: int) -> None:
        """One unit more is done."""
        self.steps += 1
        if self.steps == 1:
            self.change(self.path)


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkpoint of many units, some time old; the folder of the file."""
    monkeypatch.setattr(units, "UNIT_BYTES", 4096)
    write(tmp_path, {f"{n}.weight": np.full((64, 64), 0.01, np.float32) for n in range(200)})
    os.utime(tmp_path / FILE, ns=(10**18, 10**18))
    return tmp_path


@pytest.mark.parametrize("change", CHANGES)
def test_a_file_that_changes_meanwhile_gives_no_report(model: Path, change: Callable[[Path], None]) -> None:
    meddler = Meddler(change, model / FILE)
    with pytest.raises(ChangedError, match=rf"^{FILE}: .*scan again"):
        gemma_doctor.scan(model, progress=meddler)
    assert meddler.steps > 100


@pytest.mark.parametrize("change", CHANGES)
def test_the_command_exits_with_2_and_one_line(
    model: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Path], None]
) -> None:
    scan = doctor.scan
    meddler = Meddler(change, model / FILE)
    monkeypatch.setattr(doctor, "scan", lambda source, options, _, **__: scan(source, options, meddler))
    done = call("scan", model, "--fail-on", "never")
    assert (done.code, done.out, done.err.count("\n")) == (2, "", 1)
    assert done.err.startswith(f"gemma-doctor: {FILE}: the file ")


def test_a_file_that_changes_before_its_tied_head_is_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_gemma3_config()
    tensors = in_bfloat16(healthy(config))
    write(tmp_path, {**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"]}, config)

    def measure_then_cut(order: Order, **_: object) -> room.Survey:
        measured = room.survey(order)
        cut(tmp_path / FILE)
        return measured

    monkeypatch.setattr(scanning, "survey", measure_then_cut)
    with pytest.raises(ChangedError, match="and has 4,096 now"):
        gemma_doctor.scan(tmp_path)


WAITING = """
import sys
from gemma_doctor.cli import main
from gemma_doctor.inspect import units
measure, calls = units.measure, []
def wait(*arguments):
    calls.append(1)
    if len(calls) == 3:
        print("mapped", flush=True)
        sys.stdin.readline()
    return measure(*arguments)
units.measure = wait
units.UNIT_BYTES = 1 << 16
sys.argv[0] = "gemma-doctor"
main()
"""


@pytest.mark.parametrize("jobs", ["1", "4"])
def test_the_process_survives_a_file_cut_short_by_another(tmp_path: Path, jobs: str) -> None:
    write(tmp_path, {f"{n}.weight": np.full((256, 256), 0.01, np.float32) for n in range(40)})
    command = [sys.executable, "-c", WAITING, "scan", str(tmp_path / FILE), "--fail-on", "never", "--jobs", jobs]
    with subprocess.Popen(
        command,
        env={**os.environ, **PLAIN},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "mapped\n"
        cut(tmp_path / FILE)
        out, err = process.communicate("go on\n")
    assert (process.returncode, out) == (2, "")
    assert err.startswith(f"gemma-doctor: {FILE}: the file changed while it was read: it was written to.")
    assert err.count("\n") == 1
