"""Whether the host can hold a model at all: Linux kills a process that asks for more, without a word or a report."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from gemma_doctor.checkpoint import Checkpoint
from gemma_doctor.errors import UsageError
from gemma_doctor.verify.measures import Measures

__all__ = ["check_host", "memory"]

_GIB = 1 << 30
_WIDTHS = {"F32": 4, "BF16": 2, "F16": 2}
_NAMES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
_MEMINFO, _GROUP = Path("/proc/meminfo"), Path("/sys/fs/cgroup")


def memory(meminfo: Path = _MEMINFO, group: Path = _GROUP) -> int | None:
    """Bytes that a process may take here, swap included; None where nobody tells, which is everywhere but on Linux.

    Args:
        meminfo: What the kernel says of the whole machine, in kB (proc(5)).
        group: The control group that the process sees as its own, as in a container: its ``memory.max`` and
            ``memory.swap.max``, bytes or ``max`` (Linux, "Control Group v2").
    """
    if not meminfo.exists():
        return None
    lines = (line.split() for line in meminfo.read_text(encoding="ascii").splitlines())
    told = {words[0]: int(words[1]) << 10 for words in lines if words[0] in {"MemTotal:", "SwapTotal:"}}
    ram, swap = told["MemTotal:"], told.get("SwapTotal:", 0)
    return _least(ram, group / "memory.max") + _least(swap, group / "memory.swap.max")


def _least(there: int, limit: Path) -> int:
    """What is there, or what the control group allows of it."""
    allowed = limit.read_text(encoding="ascii").strip() if limit.exists() else "max"
    return there if allowed == "max" else min(there, int(allowed))


def check_host(checkpoint: Checkpoint, measures: Measures) -> None:
    """Refuse a model that the host cannot hold, before it is loaded.

    Each is loaded into the host's memory first. Weights that are stored in the dtype that they run in stay in their
    file, which is mapped; others are cast, and that takes memory.

    Args:
        checkpoint: The checkpoint.
        measures: Which models are made of it.

    Raises:
        UsageError: If its weights, as they are cast, are larger than the memory.
    """
    there = memory()
    need, dtype = max((_cast(checkpoint, dtype), dtype) for dtype in _dtypes(measures))
    if there is None or need <= there:
        return
    less = max(_cast(checkpoint, dtype) for dtype in _dtypes(replace(measures, reference="none")))
    instead = (
        f"leave out the float32 reference with --reference none ({less / _GIB:.3g} GiB), or " if less < need else ""
    )
    raise UsageError(
        f"{checkpoint.uri}: its weights take {need / _GIB:.3g} GiB in {_NAMES[dtype]}, and this machine has "
        f"{there / _GIB:.3g} GiB of memory, swap included: {instead}run it where there is more. scan needs none of it"
    )


def _dtypes(measures: Measures) -> tuple[str, ...]:
    """What the weights are cast to, one model after the other."""
    reference = ("F32", "BF16") if measures.reference == "float32" else ()
    return (*reference, "F32" if measures.mode == "amp" else "F16")


def _cast(checkpoint: Checkpoint, dtype: str) -> int:
    """Bytes of the floating-point weights that are not stored in a dtype, once they are cast to it."""
    others = (tensor for tensor in checkpoint.tensors.values() if tensor.is_float and tensor.dtype != dtype)
    return _WIDTHS[dtype] * sum(tensor.numel for tensor in others)
