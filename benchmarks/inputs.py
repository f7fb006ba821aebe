"""Checkpoints to measure on, each written once, with weights from a normal distribution."""

from __future__ import annotations

import json
import lzma
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

__all__ = ["E2B_CONFIG", "ITEMSIZE", "config_of", "e2b", "many_small", "matrices", "one_gigabyte", "pool"]

_ARCHITECTURES = Path(__file__).parents[1] / "tests" / "data" / "architectures.json.xz"
_MODELS: dict[str, Any] = json.loads(lzma.decompress(_ARCHITECTURES.read_bytes()))["models"]
_E2B: dict[str, Any] = _MODELS["gemma-3n-E2B"]

E2B_CONFIG: dict[str, Any] = _E2B["config"]
"""The ``config.json`` of Gemma 3n E2B."""

SHARDS = 3
POOL = 1 << 24
"""Numbers that are drawn once; tensors take runs of them that start anywhere."""

ITEMSIZE = {"BF16": 2, "F32": 4, "F16": 2, "F8_E4M3": 1}

Shapes: TypeAlias = Mapping[str, tuple[int, ...]]


def config_of(model: str) -> dict[str, Any]:
    """The ``config.json`` of a model, such as ``"gemma-3-4b"``."""
    config: dict[str, Any] = _MODELS[model]["config"]
    return config


def e2b(folder: Path, config: Mapping[str, Any], prefix: str = "") -> Path:
    """Gemma 3n E2B in bfloat16, real size: 10.9 GB in three shards.

    Args:
        folder: Where it goes, unless it is there.
        config: Its ``config.json``.
        prefix: Leaves out the tensors whose names do not start so.
    """
    if folder.exists():
        return folder
    shapes = {name: tuple(shape) for name, shape, _ in _E2B["tensors"] if name.startswith(prefix)}
    half_done = folder.with_name(f"{folder.name}.part")
    half_done.mkdir(exist_ok=True)
    shards = _split(shapes)
    for file, part in shards.items():
        _write(half_done / file, part, "BF16")
    index = {
        "metadata": {"total_size": 2 * sum(map(math.prod, shapes.values()))},
        "weight_map": {name: file for file, part in shards.items() for name in part},
    }
    (half_done / "model.safetensors.index.json").write_text(json.dumps(index))
    (half_done / "config.json").write_text(json.dumps(config))
    half_done.rename(folder)
    return folder


def one_gigabyte(path: Path, dtype: str) -> Path:
    """Sixteen matrices of 2048 columns, 1.1 GB together."""
    rows = (1 << 26) // (2048 * ITEMSIZE[dtype])
    return _file(path, {f"layers.{index}.weight": (rows, 2048) for index in range(16)}, dtype)


def matrices(path: Path, number: int, dtype: str) -> Path:
    """So many matrices of 2048 by 2048."""
    return _file(path, {f"layers.{index}.weight": (2048, 2048) for index in range(number)}, dtype)


def many_small(path: Path, tensors: int) -> Path:
    """So many tensors of 64 elements in bfloat16."""
    return _file(path, {f"layers.{index}.weight": (8, 8) for index in range(tensors)}, "BF16")


def _file(path: Path, shapes: Shapes, dtype: str) -> Path:
    if not path.exists():
        half_done = path.with_name(f"{path.name}.part")
        _write(half_done, shapes, dtype)
        half_done.rename(path)
    return path


def _write(path: Path, shapes: Shapes, dtype: str) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    stop = 0
    for name, shape in shapes.items():
        start, stop = stop, stop + math.prod(shape) * ITEMSIZE[dtype]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    random = np.random.default_rng(0)
    numbers = pool(dtype, random)
    with path.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for shape in shapes.values():
            for part in _runs(numbers, math.prod(shape), random):
                stream.write(part.data)


def pool(dtype: str, random: np.random.Generator) -> npt.NDArray[Any]:
    """``POOL`` numbers from a normal distribution in that dtype; of float8 any finite codes."""
    if dtype == "F8_E4M3":
        finite = np.array([code for code in range(256) if code & 0x7F < 0x7F], np.uint8)
        codes: npt.NDArray[np.uint8] = random.choice(finite, POOL)
        return codes
    normal: npt.NDArray[np.float32] = random.standard_normal(POOL, dtype=np.float32) * np.float32(0.02)
    if dtype == "BF16":
        return (normal.view(np.uint32) >> 16).astype(np.uint16)
    return normal.astype({"F16": np.float16, "F32": np.float32}[dtype])


def _runs(pool: npt.NDArray[Any], count: int, random: np.random.Generator) -> Iterator[npt.NDArray[Any]]:
    """So many numbers of the pool, in runs."""
    while count:
        start = int(random.integers(POOL // 2))
        part = pool[start : start + min(count, POOL // 2)]
        count -= part.size
        yield part


def _split(shapes: Shapes) -> dict[str, Shapes]:
    """Shards of about the same size, in the order of the tensors."""
    files = [f"model-{number:05}-of-{SHARDS:05}.safetensors" for number in range(1, SHARDS + 1)]
    parts: dict[str, dict[str, tuple[int, ...]]] = {file: {} for file in files}
    total, seen = sum(map(math.prod, shapes.values())), 0
    for name, shape in shapes.items():
        parts[files[seen * SHARDS // total]][name] = shape
        seen += math.prod(shape)
    return dict(parts)
