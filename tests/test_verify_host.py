"""A model that the host cannot hold is refused before it is loaded, with what would take less."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import tiny_models  # noqa: F401  # makes torchvision importable beside a torch for CPUs
import torch
from checkpoints import Array, Raw, healthy, in_bfloat16, tiny_gemma3_config, write

from gemma_doctor import doctor
from gemma_doctor.choices import Mode
from gemma_doctor.errors import UsageError
from gemma_doctor.verify import host
from gemma_doctor.verify.loading import Subject
from gemma_doctor.verify.measures import Measures, Request

CONFIG = tiny_gemma3_config()
NUMEL = sum(tensor.size for tensor in healthy(CONFIG).values())
SHORT = Measures(device="cpu", backward=False, request=Request(length=8))
MEMINFO = "MemTotal:       1024 kB\nMemFree:          24 kB\nSwapTotal:        16 kB\n"


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[torch.dtype]:
    """The models that were loaded."""
    seen: list[torch.dtype] = []
    load = Subject._load  # noqa: SLF001  # the one place where models are loaded

    def loading(self: Subject, dtype: torch.dtype, memory: None) -> object:
        seen.append(dtype)
        return load(self, dtype, memory)

    monkeypatch.setattr(Subject, "_load", loading)
    return seen


def stored(folder: Path, *, narrow: bool = True) -> Path:
    tensors: dict[str, Array | Raw] = {**healthy(CONFIG)}
    return write(folder / "checkpoint", in_bfloat16(healthy(CONFIG)) if narrow else tensors, CONFIG)


def test_a_reference_that_the_host_cannot_hold_is_refused_and_what_takes_less_is_named(
    tmp_path: Path, loads: list[torch.dtype], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = stored(tmp_path)
    monkeypatch.setattr(host, "memory", lambda: 4 * NUMEL - 1)
    for source, against in ((folder, None), (stored(tmp_path / "own", narrow=False), folder)):
        with pytest.raises(UsageError, match=r"GiB in float32, and this machine has .* --reference none \(") as refused:
            doctor.verify(source, SHORT, against=against)
        assert str(refused.value).startswith(f"{folder}: its weights take")
    assert loads == []
    assert doctor.exit_code(doctor.verify(folder, replace(SHORT, reference="none"))) == 0


@pytest.mark.parametrize(("mode", "width", "said"), [("half", 2, "float16"), ("amp", 4, "float32")])
def test_what_nothing_makes_smaller_is_for_a_larger_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: Mode, width: int, said: str
) -> None:
    monkeypatch.setattr(host, "memory", lambda: width * NUMEL - 1)
    how = replace(SHORT, reference="none", mode=mode)
    with pytest.raises(UsageError, match=rf"GiB in {said}, .* swap included: run it where there is more"):
        doctor.verify(stored(tmp_path), how)


@pytest.mark.parametrize("there", [4 * NUMEL, None])
def test_what_fits_is_loaded(
    tmp_path: Path, loads: list[torch.dtype], monkeypatch: pytest.MonkeyPatch, there: int | None
) -> None:
    monkeypatch.setattr(host, "memory", lambda: there)
    assert doctor.exit_code(doctor.verify(stored(tmp_path), SHORT)) == 0
    assert loads == [torch.float32, torch.bfloat16, torch.float16]


def test_weights_that_are_mapped_take_no_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that are stored as float32 already are cast for the other two runs only."""
    folder = stored(tmp_path, narrow=False)
    monkeypatch.setattr(host, "memory", lambda: 2 * NUMEL)
    assert doctor.exit_code(doctor.verify(folder, SHORT)) == 0
    monkeypatch.setattr(host, "memory", lambda: 2 * NUMEL - 1)
    with pytest.raises(UsageError, match=r"GiB in float16, .* swap included: run it where there is more"):
        doctor.verify(folder, SHORT)


@pytest.mark.parametrize(
    ("ram", "swap", "found"),
    [(None, None, 1040), ("max", "max", 1040), ("524288", None, 528), ("524288", "0", 512), ("9999999", "8192", 1032)],
)
def test_a_container_has_what_its_control_group_allows(
    tmp_path: Path, ram: str | None, swap: str | None, found: int
) -> None:
    (tmp_path / "meminfo").write_text(MEMINFO, encoding="ascii")
    for name, allowed in (("memory.max", ram), ("memory.swap.max", swap)):
        if allowed is not None:
            (tmp_path / name).write_text(f"{allowed}\n", encoding="ascii")
    assert host.memory(tmp_path / "meminfo", tmp_path) == found << 10


def test_where_nobody_tells_nothing_is_refused(tmp_path: Path) -> None:
    assert host.memory(tmp_path / "meminfo", tmp_path) is None
