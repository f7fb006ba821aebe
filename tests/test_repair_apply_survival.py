"""What is left when a repair is killed, interrupted, or finds the disk full: nothing, or the old output whole."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from applying import cast, mend, plan_for, rename, scale, set_config, tree
from checkpoints import bfloat16, write

from gemma_doctor.checkpoint import open_checkpoint
from gemma_doctor.errors import OutputError
from gemma_doctor.plans import Leftover
from gemma_doctor.repair.applying import workspace as room
from gemma_doctor.repair.applying.apply import apply
from gemma_doctor.repair.applying.workspace import clear_leftovers, workspace

WEIGHTS = {f"w{i}": bfloat16(np.random.default_rng(i).standard_normal((300, 500))) for i in range(6)}
EDITS = (scale("w1", 2), cast("w2", "F32"), rename("w4", "v4"), set_config("x", "dtype"))

LIMITED = """
import resource, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from applying import mend
from gemma_doctor.errors import OutputError
from test_repair_apply_survival import EDITS

resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[4]),) * 2)
try:
    mend(Path(sys.argv[2]), Path(sys.argv[3]), *EDITS, force=True)
except OutputError as error:
    print(error)
"""
"""Repairs where no file may grow beyond a size: writing fails half-way, whoever runs it."""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write(tmp_path / "source", WEIGHTS, {"dtype": "bfloat16"}, shards=2)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with an older output in it."""
    (tmp_path / "place/out").mkdir(parents=True)
    (tmp_path / "place/out/old").write_text("old", encoding="utf-8")
    return tmp_path / "place"


def script(*arguments: str | Path) -> str:
    """What a Python process prints."""
    done = subprocess.run([sys.executable, *map(str, arguments)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def untouched(place: Path) -> bool:
    """Whether the older output is whole and nothing is beside it."""
    return [path.name for path in place.iterdir()] == ["out"] and os.listdir(place / "out") == ["old"]  # noqa: PTH208


@pytest.mark.parametrize("mode", ["fresh", "force"])
def test_killed_at_any_moment(source: Path, tmp_path: Path, mode: str) -> None:
    points = 24
    lines = script(Path(__file__).with_name("victim.py"), tmp_path, mode, str(points), "1").splitlines()
    reports = [json.loads(line) for line in lines]
    assert source.exists()
    assert len(reports) == points
    for report in reports:
        assert report["left"] in ({"fresh": ("none", "new"), "force": ("old", "new")}[mode]), report
        assert report["named"] == report["leftovers"], report
        assert (report["then"], report["beside"], report["source"]) == ("new", [], True), report
    assert sum(not report["lived"] for report in reports) > points // 2
    assert sum(bool(report["leftovers"]) for report in reports) > points // 4


def failing(call: Callable[..., Any], after: int, code: int) -> Callable[..., Any]:
    """A call that fails from some time on."""
    lock, left = threading.Lock(), [after]

    def wrapper(*args: Any, **keywords: Any) -> Any:  # noqa: ANN401
        with lock:
            left[0] -= 1
            if left[0] < 0:
                raise OSError(code, os.strerror(code))
        return call(*args, **keywords)

    return wrapper


ROOM, CHECK = "Give an --output on a disk with room", "Check the folder and the disk"


@pytest.mark.parametrize(
    ("name", "after", "code", "advice"),
    [
        *(("copy_file_range", after, errno.ENOSPC, ROOM) for after in (0, 1)),
        *(("pwrite", after, errno.ENOSPC, ROOM) for after in (0, 1, 2, 5)),
        *(("pwrite", after, errno.EIO, CHECK) for after in (0, 4)),
        *(("fsync", after, errno.EIO, CHECK) for after in range(6)),
    ],
)
def test_a_write_that_fails(  # noqa: PLR0913, PLR0917  # a test takes what its parametrisation gives
    source: Path, place: Path, monkeypatch: pytest.MonkeyPatch, name: str, after: int, code: int, advice: str
) -> None:
    if not hasattr(os, name):
        name = "pwrite"
    monkeypatch.setattr(os, name, failing(getattr(os, name), after, code))
    with pytest.raises(OutputError, match=advice) as caught:
        mend(source, place / "out", *EDITS, force=True)
    assert os.strerror(code) in str(caught.value)
    assert untouched(place)


@pytest.mark.parametrize("limit", [0, 4_000, 400_000, 1_000_000])
def test_files_that_may_not_grow(source: Path, place: Path, limit: int) -> None:
    said = script("-c", LIMITED, Path(__file__).parent, source, place / "out", str(limit))
    assert "it could not be written: File too large. Nothing of it is left." in said
    assert untouched(place)


def test_a_disk_that_fills_up_meanwhile(source: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A real small disk where this process may mount one in a namespace of its own; else the limit does its work.
    mounted = "mount -t tmpfs -o size=1200k tmpfs " + str(place) + ' && mkdir "$3/out" && touch "$3/out/old" && '
    roomy = (
        "import shutil, collections; "
        "shutil.disk_usage = lambda _: collections.namedtuple('usage', 'total used free')(0, 0, 1 << 40)\n"
    )
    attempt = f'{mounted} "$0" -c "$1" "$2" "$4" "$3/out" 100000000 && ls -A "$3" "$3/out"'
    unshare = shutil.which("unshare")
    command = [unshare or "false", "--user", "--map-root-user", "--mount", "sh", "-c", attempt, sys.executable]
    command += [roomy + LIMITED, str(Path(__file__).parent), str(place), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        monkeypatch.setattr(os, "pwrite", failing(os.pwrite, 3, errno.ENOSPC))
        with pytest.raises(OutputError, match="No space left on device"):
            mend(source, place / "out", *EDITS, force=True)
    else:
        assert "it could not be written: No space left on device. Nothing of it is left." in done.stdout
        assert done.stdout.endswith(f"{place}:\nout\n\n{place}/out:\nold\n")
    assert untouched(place)


class Interrupting:
    """A user who presses Ctrl-C half-way."""

    def __init__(self) -> None:
        self.left = 0

    def start(self, total_bytes: int) -> None:
        """Takes aim."""
        self.left = total_bytes // 2

    def advance(self, nbytes: int) -> None:
        """Strikes."""
        self.left -= nbytes
        if self.left < 0:
            raise KeyboardInterrupt


def test_an_interrupt_cleans_up(source: Path, place: Path) -> None:
    checkpoint, threads = open_checkpoint(source), threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        apply(plan_for(checkpoint, *EDITS), checkpoint, place / "out", force=True, progress=Interrupting())
    assert untouched(place)
    assert threading.active_count() == threads


def test_bytes_that_are_read_back_otherwise(source: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = os.pwrite

    def lying(target: int, view: Any, at: int) -> int:  # noqa: ANN401
        data = bytearray(view)
        data[-1] ^= 1
        return whole(target, data, at)

    monkeypatch.setattr(os, "pwrite", lying)
    with pytest.raises(OutputError, match=r"read back, the bytes from .* are not what was written"):
        mend(source, place / "out", *EDITS, force=True)
    assert untouched(place)


def test_an_output_that_ends_early_when_it_is_read_back(
    source: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "preadv", lambda *_: 0)
    with pytest.raises(OutputError, match=r"read back, the bytes from 0 on are not what was written"):
        mend(source, place / "out", *EDITS, force=True)
    assert untouched(place)


def test_reading_back_in_small_steps(source: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = os.preadv
    mend(source, place / "whole", *EDITS)
    monkeypatch.setattr(os, "preadv", lambda target, views, at: whole(target, [views[0][:50_001]], at))
    mend(source, place / "steps", *EDITS)
    assert tree(place / "steps") == tree(place / "whole")


@pytest.mark.parametrize("name", ["new", "out"])
def test_a_disk_that_does_not_confirm_the_name(
    source: Path, place: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def refuse(folder: Path) -> None:
        if folder == place:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    mend(source, place / "same", *EDITS)
    monkeypatch.setattr(room, "sync_folder", refuse)
    with pytest.raises(OutputError, match=rf"{name}: it is complete and in its place, but .* Input/output error"):
        mend(source, place / name, *EDITS, force=True)
    assert tree(place / name) == tree(place / "same")


def test_an_output_that_somebody_fills_meanwhile(source: Path, place: Path) -> None:
    class Rival(Interrupting):
        def advance(self, nbytes: int) -> None:
            assert nbytes >= 0
            (place / "new").mkdir(exist_ok=True)
            (place / "new/theirs").touch()

    checkpoint = open_checkpoint(source)
    with pytest.raises(ValueError, match="not empty"):
        apply(plan_for(checkpoint, *EDITS), checkpoint, place / "new", progress=Rival())
    assert sorted(tree(place)) == ["new/theirs", "out/old"]


def test_a_living_run_is_left_alone_and_a_dead_one_cleared(tmp_path: Path) -> None:
    dead = tmp_path / ".out.gemma-doctor-1-0123abcd.partial"
    (dead / "sub").mkdir(parents=True)
    (dead / "sub/x").write_bytes(bytes(1000))
    near = [
        tmp_path / name for name in (".out.gemma-doctor-1-0123abcd.partially", "out.gemma-doctor-1-0123abcd.partial")
    ]
    for path in near:
        path.mkdir()
    (tmp_path / ".o.gemma-doctor-1-0123abcd.partial").symlink_to(near[0], target_is_directory=True)
    with workspace(tmp_path / "out") as work:
        assert clear_leftovers(tmp_path) == (Leftover(dead.name, 1000),)
        assert work.folder.is_dir()
        assert clear_leftovers(tmp_path) == ()
    assert not dead.exists()
    assert not work.folder.exists()
    assert all(path.exists() for path in near)


@pytest.mark.parametrize("there", [False, True])
def test_an_output_that_was_set_aside_comes_back_where_it_is_the_only_one(tmp_path: Path, *, there: bool) -> None:
    aside = tmp_path / ".out.gemma-doctor-1-0123abcd.replaced"
    aside.mkdir()
    (aside / "old").write_text("old", encoding="utf-8")
    if there:
        (tmp_path / "out").mkdir()
    assert clear_leftovers(tmp_path) == (Leftover(aside.name, 3, None if there else "out"),)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (tmp_path / "out/old").exists() is not there


def test_replacing_where_names_cannot_be_exchanged(source: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "_exchange", lambda *_: False)
    mend(source, place / "out", *EDITS, force=True)
    assert [path.name for path in place.iterdir()] == ["out"]
    assert "old" not in tree(place)
    mend(source, place / "again", *EDITS)
    assert tree(place / "out") == tree(place / "again")


def test_the_old_output_comes_back_if_the_new_one_cannot_take_its_place(
    source: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Path.rename

    def failing_second(src: Path, dst: Path) -> Path:
        if str(src).endswith(".partial"):
            raise OSError(errno.EIO, "Input/output error")
        return whole(src, dst)

    monkeypatch.setattr(room, "_exchange", lambda *_: False)
    monkeypatch.setattr(Path, "rename", failing_second)
    with pytest.raises(OutputError, match="Input/output error"):
        mend(source, place / "out", *EDITS, force=True)
    assert untouched(place)


def test_an_exchange_is_one_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    (tmp_path / "b/x").touch()
    monkeypatch.setattr(os, "rename", lambda *_: pytest.fail("renamed step by step"))
    with workspace(tmp_path / "b") as work:
        (work.folder / "new").touch()
        work.publish(replace=True)
    assert sorted(tree(tmp_path)) == ["b/new"]


def test_without_force_a_folder_filled_at_the_last_moment_stays(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b/x").touch()
    with workspace(tmp_path / "b") as work, pytest.raises(OSError, match="not empty"):
        work.publish(replace=False)
    assert sorted(tree(tmp_path)) == ["b/x"]
