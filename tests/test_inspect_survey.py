"""The survey: every element of every file once, whatever the threads, or an error that says why not."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import oracle
import pytest
from checkpoint_bytes import Content, content_file
from tensors import DTYPES, agree, item_size

from gemma_doctor.checkpoint import Checkpoint, open_checkpoint
from gemma_doctor.errors import ChangedError
from gemma_doctor.inspect import survey as surveying
from gemma_doctor.inspect import units as room
from gemma_doctor.inspect.orders import Order
from gemma_doctor.inspect.survey import Survey, survey
from gemma_doctor.kernels import geometry
from gemma_doctor.kernels.measure import measure
from gemma_doctor.records import Skipped
from gemma_doctor.tensors import TensorInfo, TensorStats

SHAPES = [(), (0, 4), (1,), (700,), (30, 11), (3, 5, 2, 2), (2, 1500)]


@dataclass(slots=True)
class Watcher:
    """Remembers what a survey says of its progress, and does something at the first step."""

    at_first: Callable[[], None] = lambda: None
    total: list[int] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)
    threads: set[int] = field(default_factory=set)

    def start(self, total_bytes: int) -> None:
        """Remember how much there is."""
        self.total.append(total_bytes)
        self.threads.add(threading.get_ident())

    def advance(self, nbytes: int) -> None:
        """Remember how much was done."""
        self.steps.append(nbytes)
        self.threads.add(threading.get_ident())
        if len(self.steps) == 1:
            self.at_first()


def every_dtype() -> Content:
    """Random bits of every measured dtype in every shape; the first byte makes what follows unaligned."""
    rng = np.random.default_rng(11)
    content: Content = {"first": ("U8", (1,), b"\7")}
    for dtype in DTYPES:
        for shape in SHAPES:
            count = int(np.prod(shape)) * item_size(dtype)
            content[f"{dtype} {shape}"] = (dtype, shape, rng.bytes(count))
    return content


def checkpoint_of(folder: Path, *shards: Content) -> Checkpoint:
    """A checkpoint on disk, one file per content."""
    for number, content in enumerate(shards):
        (folder / f"m-{number}-of-{len(shards)}.safetensors").write_bytes(content_file(content))
    return open_checkpoint(folder)


def open_files() -> int:
    return len(list(Path("/dev/fd").iterdir()))


def survey_all(checkpoint: Checkpoint, jobs: int | None = None, progress: Watcher | None = None) -> Survey:
    return survey(Order.of(checkpoint, checkpoint.tensors.values()), jobs=jobs, progress=progress)


def test_every_tensor_has_the_oracles_figures(tmp_path: Path) -> None:
    content = every_dtype()
    half = dict(list(content.items())[:50])
    rest = {name: value for name, value in content.items() if name not in half}
    found = survey_all(checkpoint_of(tmp_path, half, rest))
    assert list(found.stats) == list(content)
    assert found.skipped == ()
    for name, (dtype, shape, data) in content.items():
        agree(found.stats[name], oracle.measure(data, dtype, shape))


@pytest.mark.parametrize("block", [64, geometry.BLOCK])
def test_neither_threads_nor_units_change_a_figure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(geometry, "BLOCK", block)
    monkeypatch.setattr(room, "PIECE_COST", 16)
    checkpoint = checkpoint_of(tmp_path, every_dtype())
    reference = survey_all(checkpoint, 1)
    for unit in (1, 3000):
        monkeypatch.setattr(room, "UNIT_BYTES", unit)
        for jobs in (1, 2, 7, None):
            assert survey_all(checkpoint, jobs) == reference
    assert all(stats.open_rows == () for stats in reference.stats.values())


def test_a_tensor_larger_than_a_unit_is_cut_at_its_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "UNIT_BYTES", 1 << 19)
    shape = (2, (1 << 19) + 5)
    data = np.random.default_rng(2).bytes(2 * shape[0] * shape[1])
    checkpoint = checkpoint_of(tmp_path, {"large": ("BF16", shape, data), "tail": ("U8", (3,), b"\1\0\2")})
    watcher = Watcher()
    found = survey_all(checkpoint, 2, watcher)
    assert len(watcher.steps) == 6
    assert found == survey_all(checkpoint, 7)
    agree(found.stats["large"], oracle.measure(data, "BF16", shape))
    agree(found.stats["tail"], oracle.measure(b"\1\0\2", "U8", (3,)))


def test_only_what_is_asked_for_is_measured_in_that_order(tmp_path: Path) -> None:
    checkpoint = checkpoint_of(tmp_path, dict.fromkeys("abcd", ("U8", (1,), b"\1")))
    watcher = Watcher()
    found = survey(Order.of(checkpoint, [checkpoint.tensors[name] for name in "db"]), progress=watcher)
    assert (list(found.stats), watcher.total, sum(watcher.steps)) == (["d", "b"], [2], 2)


UNMEASURED: Mapping[str, tuple[tuple[int, ...], int]] = {
    "F4": ((2,), 1),
    "F6_E2M3": ((4,), 3),
    "F6_E3M2": ((4,), 3),
    "C64": ((1,), 8),
}


def test_what_cannot_be_measured_is_skipped_with_a_reason(tmp_path: Path) -> None:
    content: Content = {dtype: (dtype, shape, bytes(size)) for dtype, (shape, size) in UNMEASURED.items()}
    checkpoint = checkpoint_of(tmp_path, {**content, "sound": ("F32", (1,), bytes(4))})
    watcher = Watcher()
    found = survey_all(checkpoint, progress=watcher)
    assert list(found.stats) == ["sound"]
    assert [skip.tensor for skip in found.skipped] == list(UNMEASURED)
    assert all(len(skip.reason.split()) > 4 for skip in found.skipped)
    assert Skipped("C64", "complex numbers have no order and no float16 form") in found.skipped
    assert (watcher.total, watcher.steps) == ([4], [4])


@pytest.mark.parametrize("jobs", [1, 7])
def test_progress_adds_up_and_comes_from_one_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jobs: int) -> None:
    monkeypatch.setattr(room, "UNIT_BYTES", 5000)
    content = every_dtype()
    total = sum(len(data) for _, _, data in content.values())
    watcher = Watcher()
    survey_all(checkpoint_of(tmp_path, content), jobs, watcher)
    assert (watcher.total, sum(watcher.steps)) == ([total], total)
    assert len(watcher.steps) > 10
    assert watcher.threads == {threading.get_ident()}


def test_nothing_is_measured_in_no_time(tmp_path: Path) -> None:
    checkpoint = checkpoint_of(tmp_path, {"empty": ("F32", (0, 7), b"")})
    watcher = Watcher()
    assert survey_all(checkpoint, progress=watcher) == Survey({"empty": TensorStats()}, ())
    assert (watcher.total, watcher.steps) == ([0], [])


def test_few_units_are_under_way_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory is constant: results do not pile up while somebody looks at the first of them."""
    monkeypatch.setattr(room, "UNIT_BYTES", 1)
    checkpoint = checkpoint_of(tmp_path, {f"{n:03}": ("U8", (1,), b"\1") for n in range(200)})
    drawn: list[str] = []
    tensors = checkpoint.tensors.values()

    def draw() -> Iterator[TensorInfo]:
        for tensor in tensors:
            drawn.append(tensor.name)
            yield tensor

    cut_up = room.cut
    monkeypatch.setattr(surveying, "cut", lambda _, unit_bytes: cut_up(draw(), unit_bytes))
    ahead: list[int] = []
    survey_all(checkpoint, 2, Watcher(lambda: ahead.append(len(drawn))))
    assert len(drawn) == 200
    assert 8 <= ahead[0] <= 10  # one more is looked at before a unit is known to be full


# Files that change meanwhile


def cut(path: Path) -> None:
    os.truncate(path, 4096)


def rewrite(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\1")


def replace(path: Path) -> None:
    copy = path.with_name("copy")
    copy.write_bytes(path.read_bytes())
    copy.replace(path)


def lose(path: Path) -> None:
    path.unlink()


@pytest.fixture
def shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Checkpoint:
    """Two shards of 50 units each, some time old."""
    monkeypatch.setattr(room, "UNIT_BYTES", 1 << 16)
    monkeypatch.setattr(geometry, "BLOCK", 1 << 14)
    ones = np.full(50 << 16, 1, np.uint8).tobytes()
    checkpoint = checkpoint_of(tmp_path, {"a": ("BF16", (50 << 15,), ones)}, {"b": ("BF16", (50 << 15,), ones)})
    for path in tmp_path.glob("*.safetensors"):
        os.utime(path, ns=(10**18, 10**18))
    return open_checkpoint(checkpoint.root)


@pytest.mark.parametrize("jobs", [1, 7])
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (cut, "it was written to"),
        (rewrite, "it was written to"),
        (replace, "another file has taken its place"),
        (lose, "it was moved or deleted"),
    ],
)
def test_a_shard_that_changes_in_the_middle_is_an_error_that_names_it(
    shards: Checkpoint, change: Callable[[Path], None], words: str, jobs: int
) -> None:
    watcher = Watcher(lambda: change(shards.root / "m-0-of-2.safetensors"))
    with pytest.raises(ChangedError, match=rf"^m-0-of-2\.safetensors: .*{words}"):
        survey_all(shards, jobs, watcher)
    assert sum(watcher.steps) == 100 << 16


def test_the_shard_that_was_cut_short_is_named_and_not_its_sister(shards: Checkpoint) -> None:
    """Both mappings are lost then, and only one file is at fault."""
    ends: list[int] = []

    class AtTheSecond(Watcher):
        def advance(self, nbytes: int) -> None:
            super().advance(nbytes)
            if len(self.steps) == 51:
                cut(shards.root / "m-1-of-2.safetensors")
                ends.append(len(self.steps))

    with pytest.raises(ChangedError, match=r"^m-1-of-2\.safetensors: "):
        survey_all(shards, 1, AtTheSecond())
    assert ends == [51]


def test_a_shard_that_is_another_when_its_turn_comes(shards: Checkpoint) -> None:
    with pytest.raises(ChangedError, match=r"^m-1-of-2\.safetensors: .*it had [\d,]+ bytes, and has 4,096 now"):
        survey_all(shards, 1, Watcher(lambda: cut(shards.root / "m-1-of-2.safetensors")))


def test_lost_pages_are_an_error_even_if_the_file_looks_as_before(
    shards: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = shards.root / "m-0-of-2.safetensors"
    calls: list[int] = []

    def measure_cut(*arguments: object) -> TensorStats:
        calls.append(1)
        if len(calls) != 10:
            return measure(*arguments)  # type: ignore[arg-type]
        size, times = path.stat().st_size, path.stat()
        os.truncate(path, 0)
        stats = measure(*arguments)  # type: ignore[arg-type]
        os.truncate(path, size)
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
        assert stats.zeros == stats.count
        return stats

    monkeypatch.setattr(room, "measure", measure_cut)
    with pytest.raises(ChangedError, match=r"^m-0-of-2\.safetensors: the file was cut short, or its disk failed"):
        survey_all(shards, 1)


def test_an_interrupt_ends_a_survey_and_leaves_nothing_open(shards: Checkpoint) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    before = open_files()
    threads = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        survey_all(shards, 2, Watcher(interrupt))
    assert (open_files(), threading.active_count()) == (before, threads)
